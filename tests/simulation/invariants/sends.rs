//! What was sent: to whom, when, and how many at a time.

use std::collections::BTreeSet;

use codedeploy_agent_restarter::fleet::Decision;
use sim::{Call, Deployment, Fault, FaultKind, Host, Invocation as Ran};

use super::calls::texts;
use super::candidates::during;
use super::hosts::{host, result_of};
use super::subject::{Meant, Subject, by_auto_scaling, is};
use super::{Evidence, MOMENT, RATE, UNHARMED};
use crate::deliveries::{End, Invocation};
use crate::fleet::STAYING;

/// Seconds after which a command that has not begun no longer holds its slot.
const LATE: f64 = 150.0;
/// Seconds for which a lifecycle state that was read may be relied on.
const LIFECYCLE_AGE: f64 = 60.0;
/// Seconds within which a reply must arrive to be of use.
const ATTEMPT: f64 = 10.0;

/// An invocation as Systems Manager shows it.
struct Seen {
    began: Option<f64>,
    ended: Option<f64>,
    /// The restart was tried and went wrong.
    error: bool,
}

impl Evidence<'_> {
    /// What was sent: to whom, when, and how many at a time.
    pub fn sends(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        calls: &[&Call],
    ) {
        let firsts = calls
            .iter()
            .filter(|call| call.operation == "SendCommand" && call.attempt <= 1);
        for call in firsts {
            let comment = call.params["Comment"].as_str().unwrap_or_default();
            let meant = subject.groups.iter().find(|meant| {
                meant.region == call.region
                    && comment
                        == format!(
                            "codedeploy-agent-restarter: {}/{}",
                            meant.application, meant.name
                        )
            });
            let Some(meant) = meant else {
                self.broken(
                    UNHARMED,
                    format!("{who}: a command for none of the event's groups: {comment}"),
                );
                continue;
            };
            let ids: Vec<&str> = texts(&call.params["InstanceIds"]);
            if let Some(what) = self.wrongly_sent(meant, invocation, call, &ids, calls) {
                self.broken(UNHARMED, format!("{who}, at {:.3}: {what}", call.at));
            }
            if let Some(what) = self.too_many(meant, invocation, call, &ids, calls) {
                self.broken(RATE, format!("{who}, at {:.3}: {what}", call.at));
            }
        }
    }

    fn wrongly_sent(
        &self,
        meant: &Meant,
        invocation: &Invocation,
        call: &Call,
        ids: &[&str],
        calls: &[&Call],
    ) -> Option<String> {
        let (may, _) = self.candidates(meant, invocation.began, call.at);
        if let Some(id) = ids
            .iter()
            .find(|id| !may.contains(*id))
            .filter(|_| meant.is_certain())
        {
            return Some(format!("{id} is sent to, and is not of {}", meant.name));
        }
        let restartable = |id: &&str| {
            let since = call.at - LIFECYCLE_AGE - MOMENT;
            let mut recent =
                during(self.standings_of(&meant.region, id), since, call.at).peekable();
            recent.peek().is_none()
                || recent.any(|standing| {
                    let member = standing.member.as_ref();
                    member.is_none_or(|(word, _)| STAYING.contains(&word.as_str()))
                })
        };
        if let Some(id) = ids.iter().find(|id| !restartable(id)) {
            return Some(format!(
                "{id} is sent to: {:?}",
                self.standings_of(&meant.region, id)
            ));
        }
        let asked = calls.iter().rev().find(|asked| {
            asked.operation == "ListDeployments"
                && asked.at < call.at
                && asked.status == 200
                && asked.region == meant.region
                && asked.params["deploymentGroupName"] == meant.name.as_str()
                && asked.params["applicationName"] == meant.application.as_str()
                && texts(&asked.params["includeOnlyStatuses"]).contains(&"InProgress")
        });
        let Some(asked) = asked else {
            return Some(format!(
                "nobody asked whether a deployment of {} runs",
                meant.name
            ));
        };
        let running = self
            .scene
            .state
            .regions
            .get(&meant.region)?
            .deployments
            .iter()
            .find(|d| {
                d.application == meant.application
                    && d.deployment_group == meant.name
                    && !by_auto_scaling(d)
                    && runs_at(d, asked.at)
            });
        running.map(|d| format!("sent, though {} was seen running at {:.3}", d.id, asked.at))
    }

    /// Window and brake, by what the function may have known at the time of the call.
    fn too_many(
        &self,
        meant: &Meant,
        invocation: &Invocation,
        call: &Call,
        ids: &[&str],
        calls: &[&Call],
    ) -> Option<String> {
        if meant.uncertain {
            return None;
        }
        let planned =
            match &invocation.end {
                End::Reported(report, _) => report
                    .groups
                    .iter()
                    .find(|group| is(meant, group))
                    .map(|group| {
                        group
                            .instances
                            .values()
                            .filter(|entry| matches!(entry.decision, Decision::Restart(_)))
                            .count()
                    }),
                _ => None,
            };
        let fleet =
            planned.unwrap_or_else(|| self.candidates(meant, invocation.began, call.at).0.len());
        let window = share(&self.scene.settings["MAX_CONCURRENCY"], "50%", fleet).max(1);
        let allowed = share(&self.scene.settings["MAX_ERRORS"], "10%", fleet);
        let (mut in_flight, mut failed) = (BTreeSet::new(), 0);
        for (sent, command) in &self.commands {
            let ours = sent.access_key == call.access_key
                && sent.params["Comment"] == call.params["Comment"]
                && sent.region == call.region
                && sent.at < call.at;
            if !ours || !is_answered(sent) {
                continue;
            }
            let looked = calls.iter().rev().find(|look| {
                look.operation == "ListCommandInvocations"
                    && look.at < call.at
                    && look.status == 200
                    && is_answered(look)
                    && look.params["NextToken"].is_null()
                    && look.params["CommandId"] == command.id.as_str()
            });
            let looked = looked.map_or(f64::MIN, |look| look.at);
            for ran in &command.invocations {
                let Some(host) = host(self.end, &meant.region, &ran.instance_id) else {
                    continue;
                };
                let seen = seen(host, ran);
                if seen.ended.is_none_or(|ended| ended > call.at) {
                    let began = seen
                        .began
                        .is_some_and(|began| began.max(ran.visible_at) <= looked);
                    if call.at - sent.at < LATE || began {
                        in_flight.insert(ran.instance_id.as_str());
                    }
                }
                if seen.error
                    && ran.visible_at <= looked
                    && seen.ended.is_some_and(|ended| ended <= looked)
                {
                    failed += 1;
                }
            }
        }
        if failed > allowed {
            return Some(format!(
                "sent after {failed} failures, {allowed} of {fleet} are allowed"
            ));
        }
        let more = ids.iter().filter(|id| !in_flight.contains(*id)).count();
        (in_flight.len() + more > window).then(|| {
            format!(
                "{} in flight and {more} sent, {window} of {fleet} are allowed",
                in_flight.len()
            )
        })
    }
}

fn seen(host: &Host, ran: &Ran) -> Seen {
    let Some(answer) = &host.answer else {
        return Seen {
            began: ran.began_at,
            ended: ran.ended_at,
            error: match (ran.status.as_str(), result_of(&ran.output)) {
                ("TimedOut", _) => ran.status_details == "ExecutionTimedOut",
                ("Success" | "Failed", Some((_, code))) => matches!(code, 30..=33),
                ("Success" | "Failed", None) => true,
                _ => false,
            },
        };
    };
    let details = answer.status_details.as_deref().unwrap_or(&answer.status);
    let (open, error) = match (answer.status.as_str(), details) {
        ("Success" | "Failed", "Success" | "Failed") => (false, true),
        ("Success" | "Failed" | "Cancelled", _) => (false, false),
        ("TimedOut", details) => (false, details == "ExecutionTimedOut"),
        _ => (true, false),
    };
    let waits = matches!(answer.status.as_str(), "Pending" | "Delayed");
    Seen {
        began: (!waits).then_some(ran.visible_at),
        ended: (!open).then_some(ran.visible_at),
        error,
    }
}

/// `50%` of a fleet, or a number; rounded up.
fn share(setting: &str, default: &str, fleet: usize) -> usize {
    let setting = if setting.is_empty() { default } else { setting };
    match setting.strip_suffix('%') {
        Some(percent) => (fleet * percent.parse::<usize>().unwrap_or(0)).div_ceil(100),
        None => setting.parse().unwrap_or(0),
    }
}

/// Whether the function can have seen the reply.
fn is_answered(call: &Call) -> bool {
    let slow = |fault: &Fault| fault.kind() == FaultKind::Slow && fault.seconds >= ATTEMPT;
    call.error.is_none() && !call.fault.as_ref().is_some_and(slow)
}

/// Whether it is created and has not come to its end.
fn runs_at(deployment: &Deployment, at: f64) -> bool {
    let ends = ["Succeeded", "Failed", "Stopped"].contains(&deployment.status.as_str());
    let over = ends && deployment.completed_at.is_none_or(|time| time <= at);
    deployment.created_at <= at && !over
}
