//! What happened on the hosts: why each agent was restarted, and how each script ended.

use serde_json::Value;
use sim::{AgentFault, Host, State};

use super::{Evidence, MOMENT, ONCE, UNHARMED, Violation};
use crate::weather::What;

/// What is lost by telling times in whole seconds, once up and once down, with a moment for the call.
const ROUNDING: f64 = 2.0 + MOMENT;

impl Evidence<'_> {
    /// No agent is restarted for a deployment that an earlier restart had followed, unless the command came
    /// later than that restart had followed the deployment.
    pub fn restarts(&mut self) {
        for (name, region) in &self.end.regions {
            for host in region
                .hosts
                .iter()
                .filter(|host| host.agent.restarts.len() > 1)
            {
                for pair in host.agent.restarts.windows(2) {
                    let causes = self.causes(name, host, pair[1]);
                    let needless = |cause: &&(f64, f64, f64)| {
                        let (since, sent, began) = **cause;
                        pair[0] >= since && began - sent <= pair[0] - since - ROUNDING
                    };
                    if !causes.is_empty() && causes.iter().all(|cause| needless(&cause)) {
                        let what = format!(
                            "{} was restarted at {:.3} and at {:.3}, by commands of (deployment's end, sent, begun) {causes:.3?}",
                            host.id, pair[0], pair[1]
                        );
                        self.violations.push(Violation {
                            invariant: ONCE,
                            what,
                        });
                    }
                }
            }
        }
    }

    /// The commands that may have caused the restart of a host at that time, each as the end of the deployment
    /// that it followed, the moment at which the function first tried to send it, and its begin on the host.
    fn causes(&self, region: &str, host: &Host, at: f64) -> Vec<(f64, f64, f64)> {
        let mut causes = Vec::new();
        for (call, command) in self
            .commands
            .iter()
            .filter(|(call, _)| call.region == region)
        {
            let Some(ran) = command
                .invocations
                .iter()
                .find(|ran| ran.instance_id == host.id)
            else {
                continue;
            };
            let Some(began) = ran.began_at.filter(|began| *began <= at) else {
                continue;
            };
            let result = result_of(&ran.output);
            let left = matches!(result, Some((_, 34))) || ran.status_details == "ExecutionTimedOut";
            if !left && ran.ended_at.is_some_and(|ended| ended < at) {
                continue;
            }
            let Some(invocation) = self
                .course
                .invocations
                .iter()
                .find(|run| run.key == call.access_key)
            else {
                continue;
            };
            let subject = self.subject(self.deliveries[invocation.delivery], invocation);
            let comment = call.params["Comment"].as_str().unwrap_or_default();
            let meant = subject
                .groups
                .iter()
                .find(|meant| meant.region == region && comment == meant.comment());
            let Some(meant) = meant.filter(|meant| meant.is_certain()) else {
                continue;
            };
            // The SDK repeats a call with the same content: the first attempt says when it was sent.
            let first = self.calls.iter().find(|first| {
                first.operation == "SendCommand"
                    && first.access_key == call.access_key
                    && first.params == call.params
                    && first.region == call.region
            });
            let since = self.since(meant, &host.id, call);
            causes.push((since, first.map_or(call.at, |first| first.at), began));
        }
        causes
    }

    /// Scripts are never ended by Systems Manager unless they hang, and a restart is ordered when the host is quiet.
    pub fn scripts(&mut self) {
        let mut found = Vec::new();
        for (call, command) in &self.commands {
            for ran in &command.invocations {
                let Some(host) = host(self.end, &call.region, &ran.instance_id) else {
                    continue;
                };
                let changed = self.scene.changes.iter().any(|change| {
                    change.id == host.id
                        && matches!(change.what, What::Terminates | What::GoesOffline)
                });
                let hangs = host.agent.fault == Some(AgentFault::Hangs);
                if ran.status_details == "ExecutionTimedOut" && !hangs && !changed {
                    found.push(format!("{} was killed by its execution time-out", host.id));
                }
                let (Some((result, _)), Some(ended)) = (result_of(&ran.output), ran.ended_at)
                else {
                    continue;
                };
                let Some(began) = ran
                    .began_at
                    .filter(|_| result == "restarted" && host.agent.fault.is_none())
                else {
                    continue;
                };
                let restart = host
                    .agent
                    .restarts
                    .iter()
                    .find(|time| **time >= began && **time <= ended);
                let ordered = restart.map(|time| time - host.agent.restart_seconds);
                // One that was merged with an earlier one was not ordered by this script.
                let Some(ordered) = ordered.filter(|time| *time >= began && !changed) else {
                    continue;
                };
                if host
                    .agent
                    .busy
                    .iter()
                    .any(|[from, to]| *from <= ordered && ordered < *to - 0.001)
                {
                    found.push(format!(
                        "{} was restarted at {ordered:.3} in a lifecycle event",
                        host.id
                    ));
                }
            }
        }
        for what in found {
            self.broken(UNHARMED, what);
        }
    }
}

pub fn host<'a>(state: &'a State, region: &str, id: &str) -> Option<&'a Host> {
    state
        .regions
        .get(region)?
        .hosts
        .iter()
        .find(|host| host.id == id)
}

/// Result and code of the document's line.
pub fn result_of(output: &str) -> Option<(String, i64)> {
    let line = output.lines().find(|line| line.contains("agentRestart"))?;
    let line: Value = serde_json::from_str(line.trim()).ok()?;
    Some((line["result"].as_str()?.to_owned(), line["code"].as_i64()?))
}
