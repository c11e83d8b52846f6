//! What was sent: to whom, and when.

use sim::{Call, Deployment, Fault, FaultKind};

use super::calls::texts;
use super::candidates::{Standing, during, fell_between_pages};
use super::hosts::host;
use super::subject::{Meant, Subject, by_auto_scaling, is_about, is_follow_up};
use super::{Evidence, MOMENT, RATE, UNHARMED};
use crate::deliveries::Invocation;
use crate::fleet::STAYING;

/// Seconds for which a lifecycle state that was read may be relied on, and those of a wait for the turn to call.
const LIFECYCLE_AGE: f64 = 60.0 + 5.0;
/// Seconds within which a reply must arrive to be of use.
const ATTEMPT: f64 = 10.0;

impl<'a> Evidence<'a> {
    /// Judges each command at the moment at which the function first tried to send it.
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
            let meant = subject
                .groups
                .iter()
                .find(|meant| meant.region == call.region && comment == meant.comment());
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
            .find(|id| !may.contains(*id) && !self.is_shaky(&meant.region, id, invocation))
            .filter(|_| meant.is_certain())
        {
            return Some(format!("{id} is sent to, and is not of {}", meant.name));
        }
        if let Some(id) = ids
            .iter()
            .find(|id| !self.restartable(meant, call, id, calls))
        {
            return Some(format!(
                "{id} is sent to: {:?}",
                self.standings_of(&meant.region, id)
            ));
        }
        if let Some(what) = self.sent_without_tag(meant, call, ids, calls) {
            return Some(what);
        }
        if let Some(what) = self.wrong_document(meant, call, ids) {
            return Some(what);
        }
        let Some(asked) = last_asked(meant, call, calls) else {
            return Some(format!(
                "nobody asked whether a deployment of {} runs",
                meant.name
            ));
        };
        let running = self.running(meant, asked.at, ids);
        running.map(|d| format!("sent, though {} was seen running at {:.3}", d.id, asked.at))
    }

    /// Whether the function may have read, not long before the call, that the instance stays: by its id, or with its Auto
    /// Scaling group. Which of the event's groups a reading was for cannot be told.
    fn restartable(&self, meant: &Meant, call: &Call, id: &str, calls: &[&Call]) -> bool {
        if id.starts_with("mi-") {
            return self.is_matched(meant, call, id, calls);
        }
        let Some(group) = self.group(meant) else {
            return false;
        };
        let covers = |read: &&&Call| match read.operation.as_str() {
            "DescribeAutoScalingInstances" => texts(&read.params["InstanceIds"]).contains(&id),
            "DescribeAutoScalingGroups" => texts(&read.params["AutoScalingGroupNames"])
                .iter()
                .any(|name| group.auto_scaling_groups.iter().any(|ours| ours == name)),
            _ => false,
        };
        let stays = |standing: &Standing| {
            let member = standing.member.as_ref();
            member.is_none_or(|(word, _)| STAYING.contains(&word.as_str()))
        };
        let known = self.standings_of(&meant.region, id);
        calls
            .iter()
            .filter(|read| read.at < call.at && call.at - read.at <= LIFECYCLE_AGE + MOMENT)
            .filter(|read| {
                read.region == meant.region && read.status == 200 && read.error.is_none()
            })
            .filter(covers)
            .any(|read| known.is_empty() || during(known, read.at, read.at).any(stays))
            || fell_between_pages(self.scene, &meant.region, id, calls)
    }

    fn concerns(&self, meant: &Meant, deployment: &Deployment, ids: &[&str]) -> bool {
        let mut targets = deployment.targets.iter();
        targets.any(|target| {
            ids.iter()
                .any(|id| self.is_target(&meant.region, &target.id, id))
        })
    }

    /// Whether the inventory of machines outside EC2 may have shown that this one alone bears its name.
    fn is_matched(&self, meant: &Meant, call: &Call, id: &str, calls: &[&Call]) -> bool {
        let name = host(&self.scene.state, &meant.region, id).and_then(|host| host.name.as_deref());
        let bearers = self.bearers(&meant.region, name.unwrap_or_default());
        calls
            .iter()
            .filter(|read| read.at < call.at && read.region == meant.region && read.status == 200)
            .filter(|read| read.params["Filters"][0]["Values"][0] == "ManagedInstance")
            .any(|read| {
                let listed = bearers.iter().filter(|host| {
                    let standings = self.standings_of(&meant.region, &host.id);
                    // Who leaves between two pages may hide another one.
                    during(standings, read.at, read.at + ATTEMPT).all(|standing| standing.listed)
                });
                listed.count() <= 1 && name.is_some()
            })
    }

    /// A deployment of the group that ran at that time, and concerns one of these.
    pub fn running(&self, meant: &Meant, at: f64, ids: &[&str]) -> Option<&'a Deployment> {
        self.deployments_of(meant)
            .filter(|d| !by_auto_scaling(d) && runs_at(d, at))
            .find(|d| !is_follow_up(d) || is_unlisted(d) || self.concerns(meant, d, ids))
    }
}

/// Whether CodeDeploy does not say yet whom it will deploy to.
fn is_unlisted(deployment: &Deployment) -> bool {
    matches!(deployment.status.as_str(), "Created" | "Queued") || deployment.targets.is_empty()
}

/// The function's last question, before a call, whether a deployment of the group runs.
pub fn last_asked<'a>(meant: &Meant, call: &Call, calls: &[&'a Call]) -> Option<&'a Call> {
    let asked = calls
        .iter()
        .rev()
        .copied()
        .filter(|asked| asked.at < call.at);
    asked.into_iter().find(|asked| asks_for_quiet(asked, meant))
}

/// Whether a call asked whether a deployment of the group runs, and was told.
pub fn asks_for_quiet(call: &Call, meant: &Meant) -> bool {
    call.operation == "ListDeployments"
        && call.status == 200
        && is_about(call, meant)
        && texts(&call.params["includeOnlyStatuses"]).contains(&"InProgress")
}

/// Whether the function has seen the reply for certain: a slow one needs the time of the call on top.
pub fn is_answered(call: &Call) -> bool {
    let slow = |fault: &Fault| fault.kind() == FaultKind::Slow && fault.seconds + MOMENT >= ATTEMPT;
    call.error.is_none() && !call.fault.as_ref().is_some_and(slow)
}

/// Whether it is created and has not come to its end.
fn runs_at(deployment: &Deployment, at: f64) -> bool {
    let ends = ["Succeeded", "Failed", "Stopped"].contains(&deployment.status.as_str());
    let over = ends && deployment.completed_at.is_none_or(|time| time <= at);
    deployment.created_at <= at && !over
}
