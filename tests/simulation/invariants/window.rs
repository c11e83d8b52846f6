//! Window and brake: how many were in flight, and how many had failed, by what the function may have known.

use std::collections::BTreeSet;

use codedeploy_agent_restarter::decision::Decision;
use codedeploy_agent_restarter::outcome::Cause;
use codedeploy_agent_restarter::report::{Entry, GroupReport, Report};
use sim::{Call, Host, Invocation as Ran};

use super::hosts::{host, result_of};
use super::sends::is_answered;
use super::subject::{Meant, is};
use super::{Evidence, RATE};
use crate::deliveries::{End, Invocation};

/// Seconds after which an instance whose command has not begun there may lose its slot, at the earliest: the function holds
/// it longer where others of the same command move.
const LATE: f64 = 150.0;

/// An invocation as Systems Manager shows it.
struct Seen {
    began: Option<f64>,
    ended: Option<f64>,
    /// When its result can be read.
    told: Option<f64>,
    /// The restart was tried and went wrong.
    error: bool,
}

impl Evidence<'_> {
    /// Nobody is held back for failures that are allowed.
    pub fn brakes(&mut self, who: &str, report: &Report) {
        let allowed = &self.scene.settings["MAX_ERRORS"];
        let mut groups = report.groups.iter();
        if let Some(what) = groups.find_map(|group| braked_early(group, allowed)) {
            self.broken(RATE, format!("{who}: {what}"));
        }
    }

    /// Window and brake, by what the function may have known at the time of the call.
    pub fn too_many(
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
                            .filter(|entry| matches!(entry.decision, Decision::Restart(..)))
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
                    && seen.told.is_some_and(|told| told <= looked)
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
            told: ran.output_at.or(ran.ended_at),
            error: match (ran.status.as_str(), result_of(&ran.output)) {
                ("TimedOut", _) => ran.status_details != "DeliveryTimedOut",
                ("Success" | "Failed", Some((_, code))) => matches!(code, 30..=33),
                ("Success" | "Failed", None) => !ran.unheard && !ran.output.is_empty(),
                _ => false,
            },
        };
    };
    let details = answer.status_details.as_deref().unwrap_or(&answer.status);
    let (open, error) = match (answer.status.as_str(), details) {
        ("Success" | "Failed", "Success" | "Failed") => (false, answer.output.is_some()),
        ("Success" | "Failed" | "Cancelled", _) => (false, false),
        ("TimedOut", details) => (false, details == "ExecutionTimedOut"),
        _ => (true, false),
    };
    let waits = matches!(answer.status.as_str(), "Pending" | "Delayed");
    Seen {
        began: (!waits).then_some(ran.visible_at),
        ended: (!open).then_some(ran.visible_at),
        told: (!open).then_some(ran.visible_at),
        error,
    }
}

/// What is wrong with a group's brake: instances held back by it, though no more had failed than may.
fn braked_early(group: &GroupReport, allowed: &str) -> Option<String> {
    let outcomes = || group.instances.values().filter_map(|e| e.outcome.as_ref());
    if !outcomes().any(|outcome| outcome.cause == Cause::TooManyErrors) {
        return None;
    }
    let planned = |entry: &&Entry| matches!(entry.decision, Decision::Restart(..));
    let planned = group.instances.values().filter(planned).count();
    let untouched = ["(code 10", "(code 11", "(code 12"];
    let failed = outcomes().filter(|outcome| match outcome.kind().word() {
        "timed-out" => true,
        "failed" => !untouched.iter().any(|code| outcome.detail.contains(code)),
        _ => false,
    });
    let (failed, allowed) = (failed.count(), share(allowed, "10%", planned));
    (failed <= allowed).then(|| {
        format!("held back after {failed} failures, though {allowed} of {planned} are allowed")
    })
}

/// `50%` of a fleet, or a number; rounded up.
fn share(setting: &str, default: &str, fleet: usize) -> usize {
    let setting = if setting.is_empty() { default } else { setting };
    match setting.strip_suffix('%') {
        Some(percent) => (fleet * percent.parse::<usize>().unwrap_or(0)).div_ceil(100),
        None => setting.parse().unwrap_or(0),
    }
}
