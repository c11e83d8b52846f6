//! What the function says: every candidate accounted for, every trouble told, nobody left without a reason.

use std::collections::{BTreeMap, BTreeSet};

use codedeploy_agent_restarter::fleet::Decision;
use codedeploy_agent_restarter::report::{Entry, GroupReport, Report};
use serde_json::Value;
use sim::{Call, Deployment};

use super::candidates::{Standing, during};
use super::subject::{Subject, is};
use super::{ACCOUNTED, CALM, Evidence, FINE, TOLD};
use crate::deliveries::{Delivery, End, Fate, Invocation};
use crate::fleet::PASSING;

/// The steps that a problem may name.
const STEPS: [&str; 5] = ["deployments", "quiet", "fleet", "send", "poll"];

/// Seconds below which an invocation may have no time left to publish.
const SHORT_DEADLINE: f64 = 60.0;
/// Codes of problems that are about one action of a pipeline: they are no reason for another action's group to be missing.
const OF_ONE_ACTION: [&str; 2] = ["IncompleteAction", "OtherAccount"];

impl Evidence<'_> {
    pub fn accounted(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        report: &Report,
        answer: &Value,
    ) {
        if subject.problem && report.problem.is_none() {
            self.broken(
                ACCOUNTED,
                format!("{who}: an action that cannot be treated is no problem of the report"),
            );
        }
        for problem in report.problems() {
            if !STEPS.contains(&problem.step)
                || problem.code.is_empty()
                || problem.message.is_empty()
            {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: a problem names no step: {problem:?}"),
                );
            }
        }
        for group in &report.groups {
            let name = &group.name;
            let other = subject.others.iter().any(|(region, application, group)| {
                (region, application, group)
                    == (&name.region, &name.application, &name.deployment_group)
            });
            let unresolved = group.instances.is_empty() && group.problem.is_some();
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
                    .problem
                    .as_ref()
                    .is_some_and(|problem| !OF_ONE_ACTION.contains(&problem.code.as_str()));
                if !unlisted || !report.groups.is_empty() {
                    self.broken(
                        ACCOUNTED,
                        format!("{who}: {} is not in the report", meant.name),
                    );
                }
                continue;
            };
            let (may, must) = self.candidates(meant, invocation.began, invocation.ended);
            let there: BTreeSet<&str> = group.instances.keys().map(String::as_str).collect();
            if there.is_empty() && (meant.unknown || !must.is_empty()) {
                if group.problem.is_none() {
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
            if let Some(what) = counted(group, &answer["groups"][number], report.dry_run) {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {}: {what}", group.name.deployment_group),
                );
            }
        }
    }

    /// Every row of attention and every problem stands in the messages that this run published.
    pub fn told(&mut self, who: &str, report: &Report, answer: &Value, calls: &[&Call]) {
        if report.dry_run {
            return;
        }
        let messages: Vec<Value> = calls
            .iter()
            .filter(|call| call.operation == "Publish" && call.status == 200)
            .filter_map(|call| serde_json::from_str(call.params["Message"].as_str()?).ok())
            .collect();
        let bodies = |protocol: &str| -> Vec<String> {
            let bodies = messages
                .iter()
                .filter_map(|message| message[protocol].as_str());
            bodies.map(str::to_owned).collect()
        };
        let data: Vec<Value> = bodies("sqs")
            .iter()
            .filter_map(|body| serde_json::from_str(body).ok())
            .collect();
        let texts =
            [bodies("default"), bodies("email"), bodies("lambda")].map(|bodies| bodies.join("\n"));
        let mut told = BTreeSet::new();
        let mut problems = BTreeSet::new();
        for part in &data {
            if part["problem"].is_object() {
                problems.insert(usize::MAX);
            }
            for (number, group) in part["groups"].as_array().into_iter().flatten().enumerate() {
                if group["problem"].is_object() {
                    problems.insert(number);
                }
                for row in group["attention"].as_array().into_iter().flatten() {
                    told.insert((number, row["instanceId"].as_str().unwrap_or_default()));
                }
            }
        }
        let mut any = false;
        for (number, group) in report.groups.iter().enumerate() {
            any |= group.problem.is_some();
            if group.problem.is_some() && !problems.contains(&number) {
                self.broken(
                    TOLD,
                    format!(
                        "{who}: the problem of {} is told nowhere",
                        group.name.deployment_group
                    ),
                );
            }
            for (id, entry) in &group.instances {
                if FINE.contains(&word(entry)) {
                    continue;
                }
                any = true;
                if !told.contains(&(number, id.as_str()))
                    || !texts.iter().all(|text| text.contains(id.as_str()))
                {
                    self.broken(
                        TOLD,
                        format!("{who}: {id} is {} and is told nowhere", word(entry)),
                    );
                }
            }
        }
        if report.problem.is_some() && !problems.contains(&usize::MAX) {
            self.broken(TOLD, format!("{who}: the event's problem is told nowhere"));
        }
        any |= report.problem.is_some();
        let wanted = any || self.scene.settings["NOTIFY_ON"] == "always";
        if wanted != (answer["notified"] == true) || wanted == messages.is_empty() {
            let what = format!(
                "{who}: a message is due: {wanted}, published: {}",
                messages.len()
            );
            self.broken(TOLD, what);
        }
    }

    /// Publishing fails only where SNS failed, or the time was short.
    pub fn unpublished(&mut self, who: &str, delivery: &Delivery, calls: &[&Call]) {
        let failed = calls
            .iter()
            .any(|call| call.operation == "Publish" && call.fault.is_some());
        let short = delivery
            .runs
            .iter()
            .any(|run| run.remaining < SHORT_DEADLINE);
        if !failed && !short {
            self.broken(TOLD, format!("{who}: publishing failed without a reason"));
        }
    }

    /// Only those may be skipped who start, leave, are gone, or were never reached.
    pub fn skips(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        report: &Report,
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
            for (id, entry) in &found.instances {
                // One that another group of the event treats is judged there.
                let elsewhere = matches!(entry.decision, Decision::Elsewhere(_));
                if word(entry) != "skipped" || elsewhere {
                    continue;
                }
                let targets = meant.deployments.iter().flat_map(|d| &d.targets);
                let reached = targets.filter(|target| target.id == *id).any(|target| {
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
                if !passing && !gone {
                    wrong = Some(id.clone());
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
            && scene.conditions.is_empty()
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
        .map_or("planned", |outcome| outcome.kind.word())
}

/// What is wrong with the counts and rows of a group's answer.
fn counted(group: &GroupReport, answer: &Value, dry_run: bool) -> Option<String> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut attention = BTreeSet::new();
    for (id, entry) in &group.instances {
        match &entry.outcome {
            None if !dry_run => return Some(format!("{id} has no outcome")),
            None => {}
            Some(outcome) => {
                *counts.entry(outcome.kind.word()).or_default() += 1;
                if !FINE.contains(&outcome.kind.word()) {
                    attention.insert((id.as_str(), outcome.kind.word()));
                }
            }
        }
    }
    let told: BTreeMap<&str, u64> = answer["counts"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(word, count)| (word.as_str(), count.as_u64().unwrap_or(0)))
        .collect();
    let rows: Vec<(&str, &str)> = answer["attention"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            (
                row["instanceId"].as_str().unwrap_or_default(),
                row["outcome"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    if told != counts {
        return Some(format!("counts {told:?}, outcomes {counts:?}"));
    }
    (rows.len() != attention.len() || rows.iter().copied().collect::<BTreeSet<_>>() != attention)
        .then(|| {
            format!(
                "{} rows of attention, {} expected",
                rows.len(),
                attention.len()
            )
        })
}
