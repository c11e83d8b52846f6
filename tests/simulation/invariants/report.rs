//! What the function says: every candidate accounted for, nobody left without a reason.

use std::collections::BTreeSet;

use codedeploy_agent_restarter::decision::Target;
use codedeploy_agent_restarter::report::{Entry, Report};
use serde_json::Value;
use sim::{Call, Deployment};

use super::candidates::{Standing, during, fell_between_pages};
use super::messages::MOST_ROWS;
use super::subject::{Subject, is};
use super::{ACCOUNTED, CALM, Evidence, TOLD};
use crate::deliveries::{End, Fate, Invocation};
use crate::fleet::PASSING;

/// Codes of problems that are about one action of a pipeline: they are no reason for another action's group to be missing.
const OF_ONE_ACTION: [&str; 2] = ["IncompleteAction", "OtherAccount"];
/// Conditions that are no reason to leave anybody.
const HARMLESS: [&str; 2] = ["instances in two groups", "two deployments to one group"];

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
        for meant in subject.groups.iter().filter(|meant| !meant.uncertain) {
            let Some(group) = report.groups.iter().find(|group| is(meant, group)) else {
                let unlisted = report
                    .problems
                    .iter()
                    .any(|problem| !OF_ONE_ACTION.contains(&problem.code.word()));
                if !unlisted || !report.groups.is_empty() {
                    self.broken(
                        ACCOUNTED,
                        format!("{who}: {} is not in the report", meant.name),
                    );
                }
                continue;
            };
            let (may, must) = self.candidates(meant, invocation.began, invocation.ended);
            let there: BTreeSet<&str> = group.instances.keys().map(Target::as_str).collect();
            if there.is_empty() && (meant.unknown || !must.is_empty()) {
                if group.problems.is_empty() {
                    let what = format!(
                        "{who}: {} has no instance and no problem, {} expected",
                        meant.name,
                        must.len()
                    );
                    self.broken(ACCOUNTED, what);
                }
                continue;
            }
            if meant.unknown {
                continue;
            }
            if let Some(id) = must.difference(&there).next() {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {id} of {} is not in the report", meant.name),
                );
            }
            if let Some(id) = there.difference(&may).next() {
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

    /// Only those may be skipped who start, leave, are gone, or were never reached.
    pub fn skips(
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
            let Some(group) = self.group(meant) else {
                continue;
            };
            let old = |d: &Deployment| {
                d.completed_at
                    .is_some_and(|time| invocation.ended - time > 86_400.0)
            };
            let old = meant.by_hand && meant.deployments.iter().all(old);
            let mut wrong = None;
            for (target, entry) in &found.instances {
                let id = target.as_str();
                if word(entry) != "skipped" {
                    continue;
                }
                let targets = meant.deployments.iter().flat_map(|d| &d.targets);
                let reached = targets.filter(|target| target.id == id).any(|target| {
                    !matches!(target.status.as_str(), "Pending" | "Skipped")
                        && target.lifecycle_started
                });
                let missing = group.tag_filters.is_empty() || old || !reached;
                let standings = || {
                    during(
                        self.standings_of(&meant.region, id),
                        invocation.began,
                        invocation.ended,
                    )
                };
                let of_nobody = |standing: &Standing| {
                    let member = standing.member.as_ref();
                    member.is_none_or(|(state, _)| state == "Detached")
                };
                let passing = standings().any(|standing| {
                    let member = standing.member.as_ref();
                    member.is_some_and(|(state, _)| PASSING.contains(&state.as_str()))
                });
                // One that Auto Scaling lost while Systems Manager was asked may show a mixture of both.
                let gone = missing
                    && standings().any(of_nobody)
                    && standings().any(|standing| !standing.listed);
                let between = || fell_between_pages(self.scene, &meant.region, id, calls);
                if !passing && !gone && !between() {
                    wrong = Some(target);
                }
            }
            if let Some(id) = wrong {
                self.broken(
                    TOLD,
                    format!("{who}: {id} of {} was skipped without a reason", meant.name),
                );
            }
        }
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
