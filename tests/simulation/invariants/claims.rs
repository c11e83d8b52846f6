//! Whether an agent that a report calls fresh and healthy is.

use codedeploy_agent_restarter::report::Report;
use sim::{AgentFault, Call, Command, Host};

use super::hosts::{host, result_of};
use super::report::word;
use super::subject::{Meant, Subject, is};
use super::{Evidence, FINE, TRUE};

/// Those that claim a fresh agent.
const FRESH: [&str; 3] = ["restarted", "started", "already-restarted"];

impl Evidence<'_> {
    /// What a report calls fresh and healthy was, when the command ended on the host.
    pub fn claims(&mut self, who: &str, subject: &Subject, report: &Report) {
        for meant in &subject.groups {
            let Some(group) = report.groups.iter().find(|group| is(meant, group)) else {
                continue;
            };
            for (target, entry) in &group.instances {
                let id = target.as_str();
                let claim = word(entry);
                if claim == "skipped" || !FINE.contains(&claim) {
                    continue;
                }
                let outcome = entry.outcome.as_ref();
                let command = outcome.and_then(|outcome| outcome.command_id.as_deref());
                if let Some(lie) = self.lie(meant, id, claim, command) {
                    self.broken(
                        TRUE,
                        format!("{who}: {id} of {} is called {claim}, and {lie}", meant.name),
                    );
                }
            }
        }
    }

    /// What is not true of a claim.
    fn lie(&self, meant: &Meant, id: &str, claim: &str, command: Option<&str>) -> Option<String> {
        let Some((sent, command)) = self.commands.iter().find(|(call, known)| {
            call.region == meant.region && Some(known.id.as_str()) == command
        }) else {
            return Some("no command was sent".to_owned());
        };
        // A request's time may lie ahead: what it restarts before that time cannot be fresher than its command.
        let since = self.since(meant, id, sent);
        let since = match claim {
            "already-restarted" => since,
            _ => since.min(sent.at),
        };
        let ran = command.invocations.iter().find(|ran| ran.instance_id == id);
        let Some((ran, ended)) = ran.and_then(|ran| Some((ran, ran.ended_at?))) else {
            return Some("the document has not ended there".to_owned());
        };
        let before = host(&self.scene.state, &meant.region, id)?;
        let host = host(self.end, &meant.region, id)?;
        if host.answer.is_some() || ran.began_at.is_none() {
            return Some("the document did not run there".to_owned());
        }
        let never_well = match host.agent.fault {
            Some(AgentFault::AgentUnhealthy) => Some("its poller crash-loops"),
            Some(AgentFault::Deaf) => Some("CodeDeploy does not hear it"),
            Some(AgentFault::UnknownAgent) => Some("it is no agent that is known"),
            _ => None,
        };
        if let Some(lie) = never_well {
            return Some(lie.to_owned());
        }
        let (started, running) = self.agent_at(&meant.region, host, before, ended);
        if !running {
            return Some("no agent runs".to_owned());
        }
        if FRESH.contains(&claim) && started < since && !meant.uncertain {
            let old = since - started;
            return Some(format!(
                "its agent is {old:.3} s older than the deployment's end"
            ));
        }
        let least: u64 = self.scene.settings["MIN_MEMORY_MIB"].parse().unwrap_or(0);
        let mut restarts = host.agent.restarts.iter().chain(&host.boots);
        let restarted = restarts.any(|time| *time <= ended);
        let memory = match restarted {
            true => host.agent.fresh_memory_kib,
            false => before.agent.memory_kib,
        };
        (claim == "below-threshold" && memory >= least * 1024)
            .then(|| format!("it holds {memory} KiB of {least} MiB"))
    }

    /// When the agent that was there at that time had started, and whether one ran.
    fn agent_at(&self, region: &str, host: &Host, before: &Host, at: f64) -> (f64, bool) {
        let restart = host
            .agent
            .restarts
            .iter()
            .chain(&host.boots)
            .copied()
            .filter(|time| *time <= at)
            .reduce(f64::max);
        let started = restart.unwrap_or(before.agent.started_at);
        let went_down = |(call, command): &&(&Call, &Command)| {
            call.region == region
                && command.invocations.iter().any(|ran| {
                    ran.instance_id == host.id
                        && ran
                            .ended_at
                            .is_some_and(|ended| ended <= at && ended > started)
                        && matches!(result_of(&ran.output), Some((_, 30 | 32)))
                })
        };
        let down = self.commands.iter().any(|command| went_down(&command));
        (
            started,
            !down && (restart.is_some() || before.agent.running),
        )
    }
}
