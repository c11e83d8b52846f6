//! The returned JSON, which subscribed programs get too. Its form is a contract: other programs read it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::decision::Target;
use crate::ids::{AccountId, GroupName, Name, Region};
use crate::kind::{Kind, Severity};
use crate::problem::{Problem, Problems, Step};
use crate::report::{Entry, GroupReport, Report, Row, severity_of};
use crate::text::{cut, plain};
use crate::trigger::Order;

/// Characters of the messages of several problems as one, and of their remedies.
const MAX_JOINED: usize = 4_000;

/// What is shown of each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Instances that need attention; the rest is counted.
    pub rows: usize,
    /// Characters of a detail.
    pub characters: usize,
}

/// Instances that need attention in one answer, and in one group of it: each takes about a kilobyte, and Lambda takes
/// 6 MB (<https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>).
const MAX_ROWS: usize = 4_000;
const MAX_GROUP_ROWS: usize = 500;

/// The answer to one event, or the part of it that is about one group.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer<'a> {
    /// `ok`, `attention`, `ignored` or `dry-run`.
    pub result: &'static str,
    /// Why the event was ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// The worst of everything below.
    pub severity: Severity,
    /// What was ordered; absent when the event is none of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<&'a Order>,
    /// The groups.
    pub groups: Vec<GroupAnswer<'a>>,
    /// Problems that belong to no group, as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Joined<'a>>,
    /// Whether a message was published.
    pub notified: bool,
}

impl<'a> Answer<'a> {
    /// The answer to an event that asks for nothing.
    pub fn ignored(order: Option<&'a Order>, reason: &'a str) -> Self {
        Self {
            result: "ignored",
            reason: Some(reason),
            severity: Severity::Ok,
            trigger: order,
            groups: Vec::new(),
            problem: None,
            notified: false,
        }
    }

    /// The answer to an event that was acted upon, or planned.
    pub fn of_report(report: &'a Report, notified: bool) -> Self {
        let detail = Detail {
            rows: MAX_GROUP_ROWS.min(MAX_ROWS / report.groups.len().max(1)),
            characters: usize::MAX,
        };
        let groups = report.groups.iter();
        let groups = groups.map(|group| GroupAnswer::of(group, report.dry_run, detail));
        Self {
            result: match report.dry_run {
                true if report.problems().next().is_none() => "dry-run",
                true => "attention",
                false => result(report.severity()),
            },
            groups: groups.collect(),
            problem: Joined::of(&report.problems),
            ..Self::about(&report.order, report.severity(), notified)
        }
    }

    /// What a group's message tells programs.
    pub fn of_group(order: &'a Order, group: &'a GroupReport, detail: Detail) -> Self {
        Self {
            groups: vec![GroupAnswer::of(group, false, detail)],
            ..Self::about(order, group.severity(), true)
        }
    }

    /// What a message about problems of no group tells programs.
    pub fn of_problems(order: &'a Order, problems: &'a Problems) -> Self {
        Self {
            problem: Joined::of(problems),
            ..Self::about(order, severity_of(problems), true)
        }
    }

    fn about(order: &'a Order, severity: Severity, notified: bool) -> Self {
        Self {
            result: result(severity),
            reason: None,
            severity,
            trigger: Some(order),
            groups: Vec::new(),
            problem: None,
            notified,
        }
    }
}

fn result(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Warning | Severity::Critical => "attention",
    }
}

/// One group of the returned JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupAnswer<'a> {
    account: &'a AccountId,
    region: &'a Region,
    application: &'a Name,
    deployment_group: &'a Name,
    deployment_ids: &'a [Name],
    counts: BTreeMap<&'static str, usize>,
    attention: Vec<AttentionRow<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    omitted: usize,
    #[serde(rename = "memoryBeforeKiB", skip_serializing_if = "Option::is_none")]
    memory_before_kib: Option<u64>,
    #[serde(rename = "memoryAfterKiB", skip_serializing_if = "Option::is_none")]
    memory_after_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Joined<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Vec<PlanRow<'a>>>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over references"
)]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttentionRow<'a> {
    instance_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    outcome: Kind,
    severity: Severity,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_id: Option<&'a str>,
}

impl<'a> AttentionRow<'a> {
    fn of(row: Row<'a>, characters: usize) -> Self {
        Self {
            instance_id: row.target.as_str(),
            name: row.name,
            outcome: row.outcome.kind(),
            severity: row.outcome.severity(),
            detail: cut(&row.outcome.detail, characters),
            command_id: row.outcome.command_id.as_deref(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PlanRow<'a> {
    instance_id: &'a str,
    decision: &'static str,
    reason: &'a str,
}

impl<'a> PlanRow<'a> {
    fn of((target, entry): (&'a Target, &'a Entry)) -> Self {
        Self {
            instance_id: target.as_str(),
            decision: entry.decision.word(),
            reason: entry.decision.reason(),
        }
    }
}

impl<'a> GroupAnswer<'a> {
    fn of(group: &'a GroupReport, dry_run: bool, detail: Detail) -> Self {
        let GroupName {
            account,
            region,
            application,
            deployment_group,
        } = &group.name;
        let rows = group.attention();
        let memory = group.memory();
        Self {
            account,
            region,
            application,
            deployment_group,
            deployment_ids: &group.deployment_ids,
            counts: group.counts(),
            omitted: rows.len().saturating_sub(detail.rows),
            attention: rows
                .into_iter()
                .take(detail.rows)
                .map(|row| AttentionRow::of(row, detail.characters))
                .collect(),
            memory_before_kib: memory.map(|(before, _)| before),
            memory_after_kib: memory.map(|(_, after)| after),
            problem: Joined::of(&group.problems),
            plan: dry_run.then(|| group.instances.iter().map(PlanRow::of).collect()),
        }
    }
}

/// The problems of one place as one: the first one's step and code lead, messages and remedies are joined.
#[derive(Debug, PartialEq, Serialize)]
pub struct Joined<'a> {
    step: Step,
    code: &'a str,
    message: String,
    remedy: String,
}

impl<'a> Joined<'a> {
    /// `None` when there is none.
    fn of(problems: &'a Problems) -> Option<Self> {
        let first = problems.iter().next()?;
        Some(Self {
            step: first.step,
            code: first.code.word(),
            message: join(problems, |problem| problem.message.clone()),
            remedy: join(problems, Problem::remedy),
        })
    }
}

/// Each text once.
fn join(problems: &Problems, text: impl Fn(&Problem) -> String) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in problems.iter().map(text) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    plain(&texts.join("; "), MAX_JOINED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Code;

    #[test]
    fn of_two_problems_both_are_told_and_the_same_one_once() {
        let mut problems = Problems::default();
        assert_eq!(Joined::of(&problems), None);
        for (code, message) in [
            (Code::Timeout, "no answer to a"),
            (Code::Timeout, "no answer to a"),
            (Code::Timeout, "no answer to b"),
            (Code::NoDeployment, "none"),
        ] {
            problems.note(Problem::new(Step::Poll, code, message));
        }
        assert_eq!(problems.iter().count(), 3);
        let joined = Joined {
            step: Step::Poll,
            code: "Timeout",
            message: "no answer to a; no answer to b; none".to_owned(),
            remedy:
                "repeat by hand; if it fails again, see the function's log; give a deploymentId"
                    .to_owned(),
        };
        assert_eq!(Joined::of(&problems), Some(joined));
    }
}
