//! What the function says: every candidate accounted for, nobody left without a reason.

use std::collections::BTreeSet;

use codedeploy_agent_restarter::decision::{Decision, Target};
use codedeploy_agent_restarter::outcome::Cause;
use codedeploy_agent_restarter::problem::{Code, Problem};
use codedeploy_agent_restarter::report::{Entry, Report};
use serde_json::Value;
use sim::Call;

use super::candidates::{Standing, during, fell_between_pages};
use super::hosts::host;
use super::messages::MOST_ROWS;
use super::sends::asks_for_quiet;
use super::subject::{Meant, Subject, is};
use super::{ACCOUNTED, CALM, Evidence, NEEDED, TOLD};
use crate::deliveries::{End, Fate, Invocation};

/// Codes of problems that are about one action of a pipeline: they are no reason for another action's group to be missing.
const OF_ONE_ACTION: [&str; 2] = ["IncompleteAction", "OtherAccount"];
/// Conditions that are no reason to leave anybody.
const HARMLESS: [&str; 4] = [
    "instances in two groups",
    "two deployments to one group",
    "on-premises target",
    "machine outside EC2",
];

impl Evidence<'_> {
    pub fn accounted(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        report: &Report,
        answer: &Value,
    ) {
        if subject.problem && report.problems.is_empty() {
            self.broken(
                ACCOUNTED,
                format!("{who}: an action that cannot be treated is no problem of the report"),
            );
        }
        for problem in report.problems() {
            let texts = [problem.code.word(), &problem.message, &problem.remedy()];
            if texts.iter().any(|text| text.is_empty()) {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: a problem does not say what it is: {problem:?}"),
                );
            }
        }
        for group in &report.groups {
            let name = &group.name;
            let other = subject.others.iter().any(|(region, application, group)| {
                region == name.region.as_str()
                    && application == name.application.as_str()
                    && group == name.deployment_group.as_str()
            });
            let unresolved = group.instances.is_empty() && !group.problems.is_empty();
            let expected = subject.groups.iter().any(|meant| is(meant, group));
            if !expected && (!other || !unresolved) {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {:?} is none of the event's groups", group.name),
                );
            }
        }
        for meant in &subject.groups {
            let Some(group) = report.groups.iter().find(|group| is(meant, group)) else {
                let unlisted = report
                    .problems
                    .iter()
                    .any(|problem| !OF_ONE_ACTION.contains(&problem.code.word()));
                if !meant.optional && (!unlisted || !report.groups.is_empty()) {
                    self.broken(
                        ACCOUNTED,
                        format!("{who}: {} is not in the report", meant.name),
                    );
                }
                continue;
            };
            let (may, must) = self.candidates(meant, invocation.began, invocation.ended);
            let there: BTreeSet<&str> = group.instances.keys().map(Target::as_str).collect();
            if there.is_empty() {
                // Where no deployment can be meant, the present members are.
                let members = !meant.unknown && !self.members(meant, invocation).is_empty();
                let none = |problem: &Problem| members && problem.code == Code::NoDeployment;
                if group.problems.is_empty() || group.problems.iter().any(none) {
                    let what = format!(
                        "{who}: {} has no instance, {} expected: {:?}",
                        meant.name,
                        must.len(),
                        group.problems
                    );
                    self.broken(ACCOUNTED, what);
                }
                continue;
            }
            if !meant.is_certain() {
                continue;
            }
            let shaky = |id: &&&str| self.is_shaky(&meant.region, id, invocation);
            let accounted = |id: &&&str| self.is_accounted(&meant.region, id, &there);
            let mut absent = must.difference(&there);
            let missing = absent.find(|id| !shaky(id) || !accounted(id));
            let strange = there.difference(&may).find(|id| !shaky(id));
            if let Some(id) = missing {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {id} of {} is not in the report", meant.name),
                );
            }
            if let Some(id) = strange {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {id} is no candidate of {}", meant.name),
                );
            }
        }
        for (number, group) in report.groups.iter().enumerate() {
            let told = &answer["groups"][number];
            if let Some(what) = self.counted(group, told, report.dry_run, MOST_ROWS) {
                self.broken(ACCOUNTED, format!("{who}: {}: {what}", group.name));
            }
        }
    }

    /// Only those may be skipped who start, leave, or do not run; and nobody is called out for those who do not run, nor
    /// for a deployment that goes elsewhere.
    pub fn left(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        report: &Report,
        calls: &[&Call],
    ) {
        for meant in subject.groups.iter().filter(|meant| meant.is_certain()) {
            let Some(found) = report.groups.iter().find(|group| is(meant, group)) else {
                continue;
            };
            for (target, entry) in &found.instances {
                let id = target.as_str();
                let standings = self.standings_of(&meant.region, id);
                let standings = || during(standings, invocation.began, invocation.ended);
                let wrong = match word(entry) {
                    "skipped" => {
                        let between = fell_between_pages(self.scene, &meant.region, id, calls);
                        !standings().any(|s| s.is_passing() || s.is_down() || self.is_left_out(s))
                            && !between
                            && !self.is_forgotten(meant, id, invocation)
                            && !self.is_shaky(&meant.region, id, invocation)
                    }
                    // Else Systems Manager refused a command to it.
                    "unreachable" if !matches!(entry.decision, Decision::Restart(..)) => {
                        let asked = calls
                            .iter()
                            .filter(|call| call.operation == "DescribeInstances");
                        let troubled = asked
                            .into_iter()
                            .any(|call| call.status != 200 || call.error.is_some());
                        standings().next().is_some()
                            && standings().all(Standing::is_down)
                            && !host(&self.scene.state, &meant.region, id)
                                .is_some_and(|h| h.forgotten)
                            && !troubled
                    }
                    "busy"
                        if matches!(entry.decision, Decision::Leave(Cause::DeploymentRuns, _)) =>
                    {
                        let asked = calls.iter().rev().find(|call| asks_for_quiet(call, meant));
                        asked.is_some_and(|asked| self.running(meant, asked.at, &[id]).is_none())
                    }
                    _ => false,
                };
                if wrong {
                    let invariant = match word(entry) {
                        "skipped" => TOLD,
                        _ => NEEDED,
                    };
                    let what = format!(
                        "{who}: {id} of {} is {} without a reason: {}",
                        meant.name,
                        word(entry),
                        entry.decision.reason()
                    );
                    self.broken(invariant, what);
                }
            }
        }
    }

    /// Whether EC2 may not know it any more: it shows those that are terminated for an hour.
    fn is_forgotten(&self, meant: &Meant, id: &str, invocation: &Invocation) -> bool {
        let ends = meant.deployments.iter().filter_map(|d| d.completed_at);
        let hours_ago = ends.fold(f64::MIN, f64::max) < invocation.ended - 3600.0;
        hours_ago && host(&self.scene.state, &meant.region, id).is_some_and(|host| host.forgotten)
    }

    /// Where nothing goes wrong, nobody is left.
    pub fn calm(&mut self, who: &str, invocation: &Invocation, report: &Report) {
        let scene = self.scene;
        let calm = scene.state.faults.is_empty()
            && scene.changes.is_empty()
            && scene
                .conditions
                .iter()
                .all(|condition| HARMLESS.contains(&condition.name))
            && scene.state.invocation_lag < 10.0
            && invocation.deadline - invocation.began >= 900.0;
        if !calm {
            return;
        }
        for (id, entry) in report.groups.iter().flat_map(|group| &group.instances) {
            let detail = entry
                .outcome
                .as_ref()
                .map_or("", |outcome| outcome.detail.as_str());
            // One restart at a time may take longer than there is; a lifecycle event longer than the patience.
            let out_of_time = detail.contains("no time left") || word(entry) == "unfinished";
            let fine = matches!(
                word(entry),
                "restarted" | "already-restarted" | "below-threshold" | "busy" | "planned"
            );
            if !fine && !out_of_time {
                self.broken(CALM, format!("{who}: {id} is {}: {detail}", word(entry)));
            }
        }
        if let Some(problem) = report.problems().next() {
            self.broken(CALM, format!("{who}: {problem:?}"));
        }
    }

    /// An event ends handled or in the dead-letter queue.
    pub fn fates(&mut self) {
        for (number, fate) in self.course.fates.iter().enumerate() {
            let runs = self
                .course
                .invocations
                .iter()
                .filter(|run| run.delivery == number);
            let handled = runs
                .clone()
                .any(|run| matches!(run.end, End::Ignored | End::Reported(..)));
            if handled != (*fate == Fate::Handled) || (!handled && runs.count() != 3) {
                self.broken(TOLD, format!("delivery {number} ended nowhere"));
            }
        }
    }
}

pub fn word(entry: &Entry) -> &'static str {
    entry
        .outcome
        .as_ref()
        .map_or("planned", |outcome| outcome.kind().word())
}
