//! The report of one event: every candidate in one outcome, every problem told. The returned JSON, the
//! message and the metrics are views of it. Nothing here talks to AWS.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::deployments::{GroupName, Unresolved};
use crate::fleet::{Decision, Fleet};
use crate::outcome::{Kind, Outcome, Problem, Severity};
use crate::restart::Results;
use crate::text::plain;
use crate::trigger::Order;

/// Everything that happened after one event.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was ordered.
    pub order: Order,
    /// The groups, by account, region, application and name.
    pub groups: Vec<GroupReport>,
    /// A problem that belongs to no group.
    pub problem: Option<Problem>,
    /// Only planned.
    pub dry_run: bool,
}

/// What happened to one deployment group.
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// The group.
    pub name: GroupName,
    /// The deployments that were meant.
    pub deployment_ids: Vec<String>,
    /// Since when an agent counts as fresh, as far as it is known.
    pub triggered_at: Option<Timestamp>,
    /// Every candidate, by id.
    pub instances: BTreeMap<String, Entry>,
    /// Why the group could not be treated as it should.
    pub problem: Option<Problem>,
    /// How long it took.
    pub duration: Duration,
}

/// One candidate: what was decided, and what became of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name that people know it by.
    pub name: Option<String>,
    /// What was decided.
    pub decision: Decision,
    /// What became of it; none only when a restart is merely planned.
    pub outcome: Option<Outcome>,
    /// Another part of the message names it.
    pub told_elsewhere: bool,
}

/// Outcomes of all groups, by the group that was to restart the instance.
type Outcomes = BTreeMap<(GroupName, String), Outcome>;

/// The reports of all groups, from what was found and what became of it (none when merely planned), with the
/// time that each took.
pub fn groups(
    fleets: Vec<Result<Fleet, Unresolved>>,
    results: Vec<(Option<Results>, Duration)>,
) -> Vec<GroupReport> {
    let mut outcomes: Option<Outcomes> = None;
    for (fleet, (results, _)) in fleets.iter().zip(&results) {
        if let (Ok(fleet), Some(results)) = (fleet, results) {
            let of_group = results.outcomes.iter().map(|(id, outcome)| {
                let key = (fleet.group.name.clone(), id.clone());
                (key, outcome.clone())
            });
            outcomes.get_or_insert_default().extend(of_group);
        }
    }
    fleets
        .into_iter()
        .zip(results)
        .map(|(fleet, (results, duration))| match fleet {
            Ok(fleet) => {
                let problem = results.and_then(|results| results.problem);
                GroupReport::of_fleet(fleet, outcomes.as_ref(), problem, duration)
            }
            Err(unresolved) => GroupReport::unresolved(unresolved, duration),
        })
        .collect()
}

impl GroupReport {
    fn unresolved(unresolved: Unresolved, duration: Duration) -> Self {
        Self {
            name: unresolved.name,
            deployment_ids: unresolved.deployment_ids,
            triggered_at: unresolved.triggered_at,
            instances: BTreeMap::new(),
            problem: Some(unresolved.problem),
            duration,
        }
    }

    /// `outcomes` are those of all groups; none when restarts are merely planned.
    fn of_fleet(
        fleet: Fleet,
        outcomes: Option<&Outcomes>,
        problem: Option<Problem>,
        duration: Duration,
    ) -> Self {
        let group = &fleet.group.name;
        let outcome_of = |owner: &GroupName, id: &String| {
            let outcomes = outcomes?;
            let found = outcomes.get(&(owner.clone(), id.clone())).cloned();
            Some(found.unwrap_or_else(|| Outcome::of(Kind::HeldBack, "not sent")))
        };
        let instances = fleet
            .instances
            .into_iter()
            .map(|(id, instance)| {
                let outcome = match &instance.decision {
                    Decision::Leave(kind, reason) => Some(Outcome::of(*kind, reason)),
                    Decision::Restart(_) => outcome_of(group, &id),
                    Decision::Elsewhere(owner) => outcome_of(owner, &id),
                    Decision::AskAgain(reason) => outcome_of(group, &id)
                        .or_else(|| Some(Outcome::of(Kind::Unreachable, reason))),
                };
                let entry = Entry {
                    name: instance.name,
                    decision: instance.decision,
                    outcome,
                    told_elsewhere: false,
                };
                (id, entry)
            })
            .collect();
        Self {
            name: fleet.group.name,
            deployment_ids: fleet.group.deployments.into_iter().map(|d| d.id).collect(),
            triggered_at: Some(fleet.group.triggered_at),
            instances,
            problem: match fleet.problem {
                Some(first) => Some(first.and(problem)),
                None => problem,
            },
            duration,
        }
    }

    /// How many instances somebody must hear of.
    pub fn attention_count(&self) -> usize {
        self.outcomes()
            .filter(|outcome| outcome.kind.needs_attention())
            .count()
    }

    /// The instances that somebody must hear of, less those that another part of the message names: the
    /// worst first, then by outcome and id.
    pub fn attention(&self) -> Vec<(&str, &Entry, &Outcome)> {
        let mut rows: Vec<_> = self
            .instances
            .iter()
            .filter(|(_, entry)| !entry.told_elsewhere)
            .filter_map(|(id, entry)| Some((id.as_str(), entry, entry.outcome.as_ref()?)))
            .filter(|(_, _, outcome)| outcome.kind.needs_attention())
            .collect();
        rows.sort_by_key(|(id, _, outcome)| {
            (
                std::cmp::Reverse(outcome.severity()),
                outcome.kind.word(),
                *id,
            )
        });
        rows
    }

    /// How many instances have each outcome; those that have none are left out.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for outcome in self.outcomes() {
            *counts.entry(outcome.kind.word()).or_default() += 1;
        }
        counts
    }

    /// How many instances have one of these outcomes.
    pub fn count(&self, kinds: &[Kind]) -> usize {
        self.outcomes()
            .filter(|outcome| kinds.contains(&outcome.kind))
            .count()
    }

    /// The outcomes, by instance id.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.instances
            .values()
            .filter_map(|entry| entry.outcome.as_ref())
    }

    /// Memory of all agents that were restarted, before and after, in KiB; none when none was.
    pub fn memory(&self) -> Option<(u64, u64)> {
        self.outcomes()
            .filter(|outcome| outcome.kind == Kind::Restarted)
            .filter_map(|outcome| outcome.memory)
            .map(|memory| (memory.before_kib, memory.after_kib))
            .reduce(|sum, one| (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1)))
    }

    fn severity(&self) -> Severity {
        let problem = self.problem.as_ref().map(|_| Severity::Warning);
        self.outcomes()
            .map(Outcome::severity)
            .chain(problem)
            .max()
            .unwrap_or(Severity::Ok)
    }
}

impl Report {
    /// The worst of all groups and problems.
    pub fn severity(&self) -> Severity {
        let problem = self.problem.as_ref().map(|_| Severity::Warning);
        self.groups
            .iter()
            .map(GroupReport::severity)
            .chain(problem)
            .max()
            .unwrap_or(Severity::Ok)
    }

    /// How many instances need attention, and how many there are; one that is in two groups is one.
    pub fn instance_counts(&self) -> (usize, usize) {
        let (mut attention, mut all) = (BTreeSet::new(), BTreeSet::new());
        for group in &self.groups {
            for (id, entry) in &group.instances {
                let instance = (&group.name.region, id);
                let outcome = entry.outcome.as_ref();
                if outcome.is_some_and(|outcome| outcome.kind.needs_attention()) {
                    attention.insert(instance);
                }
                all.insert(instance);
            }
        }
        (attention.len(), all.len())
    }

    /// The groups as people are to read of them: the worst first, and else in their order.
    pub fn worst_first(&self) -> Vec<&GroupReport> {
        let mut groups: Vec<&GroupReport> = self.groups.iter().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.severity()));
        groups
    }

    /// Whether somebody must hear of it.
    pub fn needs_attention(&self) -> bool {
        self.severity() > Severity::Ok
    }

    /// The same report with every detail cut to `most` characters.
    pub fn shortened(&self, most: usize) -> Self {
        let mut report = self.clone();
        let groups = report.groups.iter_mut();
        for entry in groups.flat_map(|group| group.instances.values_mut()) {
            if let Some(outcome) = &mut entry.outcome {
                outcome.detail = plain(&outcome.detail, most);
            }
        }
        report
    }

    /// The report in `parts` parts: each names its share of the instances that need attention, in order, and
    /// each has all counts and problems.
    pub fn split(&self, parts: usize) -> Vec<Self> {
        let all: Vec<(usize, String)> = self
            .groups
            .iter()
            .enumerate()
            .flat_map(|(group, report)| {
                let rows = report.attention().into_iter();
                rows.map(move |(id, _, _)| (group, id.to_owned()))
            })
            .collect();
        let share = all.len().div_ceil(parts.max(1)).max(1);
        let shares = all.chunks(share);
        shares
            .map(|share| {
                let mut part = self.clone();
                for (index, group) in part.groups.iter_mut().enumerate() {
                    let here: BTreeSet<&str> = share
                        .iter()
                        .filter(|(group, _)| *group == index)
                        .map(|(_, id)| id.as_str())
                        .collect();
                    for (id, entry) in &mut group.instances {
                        entry.told_elsewhere = !here.contains(id.as_str());
                    }
                }
                part
            })
            .collect()
    }

    /// Whether a call failed for good, or an answer was missing.
    pub fn has_problem(&self) -> bool {
        self.problems().next().is_some()
    }

    /// Every problem: the event's, then the groups'.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let groups = self
            .groups
            .iter()
            .filter_map(|group| group.problem.as_ref());
        self.problem.iter().chain(groups)
    }

    /// The decisions of a dry run, by id in each group; nothing otherwise.
    pub fn plan(&self) -> impl Iterator<Item = (&String, &Entry)> {
        let groups = self.groups.iter().filter(|_| self.dry_run);
        groups.flat_map(|group| &group.instances)
    }

    fn result(&self) -> &'static str {
        match self.dry_run {
            true if !self.has_problem() => "dry-run",
            false if !self.needs_attention() => "ok",
            _ => "attention",
        }
    }

    /// The answer that the function returns.
    pub fn answer(&self, notified: bool) -> Answer<'_> {
        Answer {
            result: self.result(),
            reason: None,
            severity: self.severity(),
            trigger: Some(&self.order),
            groups: self
                .groups
                .iter()
                .map(|group| GroupAnswer::of(group, self.dry_run))
                .collect(),
            problem: self.problem.as_ref(),
            notified,
        }
    }
}

/// The returned JSON. Its form is a contract: other programs read it.
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
    /// A problem that belongs to no group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<&'a Problem>,
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
}

/// One group of the returned JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupAnswer<'a> {
    account: &'a str,
    region: &'a str,
    application: &'a str,
    deployment_group: &'a str,
    deployment_ids: &'a [String],
    counts: BTreeMap<&'static str, usize>,
    attention: Vec<AttentionRow<'a>>,
    #[serde(rename = "memoryBeforeKiB", skip_serializing_if = "Option::is_none")]
    memory_before_kib: Option<u64>,
    #[serde(rename = "memoryAfterKiB", skip_serializing_if = "Option::is_none")]
    memory_after_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Vec<PlanRow<'a>>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttentionRow<'a> {
    instance_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    outcome: Kind,
    severity: Severity,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_id: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PlanRow<'a> {
    instance_id: &'a str,
    decision: &'static str,
    reason: &'a str,
}

impl<'a> GroupAnswer<'a> {
    fn of(group: &'a GroupReport, dry_run: bool) -> Self {
        let attention = group
            .attention()
            .into_iter()
            .map(|(id, entry, outcome)| AttentionRow {
                instance_id: id,
                name: entry.name.as_deref(),
                outcome: outcome.kind,
                severity: outcome.severity(),
                detail: &outcome.detail,
                command_id: outcome.command_id.as_deref(),
            })
            .collect();
        let plan = dry_run.then(|| {
            group
                .instances
                .iter()
                .map(|(id, entry)| PlanRow {
                    instance_id: id,
                    decision: entry.decision.word(),
                    reason: entry.decision.reason(),
                })
                .collect()
        });
        let memory = group.memory();
        Self {
            account: &group.name.account,
            region: &group.name.region,
            application: &group.name.application,
            deployment_group: &group.name.deployment_group,
            deployment_ids: &group.deployment_ids,
            counts: group.counts(),
            attention,
            memory_before_kib: memory.map(|(before, _)| before),
            memory_after_kib: memory.map(|(_, after)| after),
            problem: group.problem.as_ref(),
            plan,
        }
    }
}
