//! The report of one event: every candidate of each group in one outcome, every problem told. The returned JSON, the
//! messages and the metrics are views of it. Nothing here talks to AWS.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::decision::{Decision, Target};
use crate::groups::{Group, Unresolved};
use crate::ids::{GroupName, Name};
use crate::inventory::Fleet;
use crate::kind::{Kind, Severity};
use crate::outcome::{Cause, Outcome};
use crate::platform::Platform;
use crate::problem::{Problem, Problems};
use crate::trigger::Order;
use crate::window::Results;

/// Everything that happened after one event.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was ordered.
    pub order: Order,
    /// The groups, by account, region, application and name.
    pub groups: Vec<GroupReport>,
    /// What belongs to no group.
    pub problems: Problems,
    /// Only planned.
    pub dry_run: bool,
}

/// What happened to one deployment group.
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// The group.
    pub name: GroupName,
    /// The deployments that were meant.
    pub deployment_ids: Vec<Name>,
    /// Every candidate.
    pub instances: BTreeMap<Target, Entry>,
    /// Why the group could not be treated as it should.
    pub problems: Problems,
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
}

/// An instance that somebody must hear of.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its id, or the name of an on-premises one.
    pub target: &'a Target,
    /// The name that people know it by.
    pub name: Option<&'a str>,
    /// The platform of the document that it was to be restarted by; none if it was left alone.
    pub platform: Option<Platform>,
    /// What became of it.
    pub outcome: &'a Outcome,
}

impl Report {
    /// Every problem: the event's, then the groups'.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let groups = self.groups.iter().flat_map(|group| group.problems.iter());
        self.problems.iter().chain(groups)
    }

    /// The worst of all groups and problems.
    pub fn severity(&self) -> Severity {
        let groups = self.groups.iter().map(GroupReport::severity);
        groups.fold(severity_of(&self.problems), Severity::max)
    }
}

impl GroupReport {
    /// A group whose instances could not be found out.
    pub fn unresolved(unresolved: Unresolved, duration: Duration) -> Self {
        Self {
            name: unresolved.name,
            deployment_ids: unresolved.deployment_ids,
            instances: BTreeMap::new(),
            problems: unresolved.problem.into(),
            duration,
        }
    }

    /// A group with its decisions and, unless restarts are merely planned, their results.
    pub fn of(group: Group, fleet: Fleet, results: Option<Results>, duration: Duration) -> Self {
        let mut problems = fleet.problems;
        let planned = results.is_none();
        let mut outcomes = results.map(|results| {
            problems.extend(results.problems);
            results.outcomes
        });
        let instances = fleet
            .instances
            .into_iter()
            .map(|(target, instance)| {
                let id = target.instance();
                let result = id.and_then(|id| outcomes.as_mut()?.remove(id));
                let outcome = match (&instance.decision, result) {
                    (_, Some(result)) => Some(result),
                    (Decision::Leave(cause, reason), None) => Some(Outcome::of(*cause, reason)),
                    (Decision::AskAgain(reason), None) => {
                        Some(Outcome::of(Cause::Unreachable, reason))
                    }
                    (Decision::Restart(..), None) if planned => None,
                    (Decision::Restart(..), None) => Some(Outcome::of(Cause::NoTime, "not sent")),
                };
                let entry = Entry {
                    name: instance.name,
                    decision: instance.decision,
                    outcome,
                };
                (target, entry)
            })
            .collect();
        Self {
            name: group.name,
            deployment_ids: group.deployments.into_iter().map(|d| d.id).collect(),
            instances,
            problems,
            duration,
        }
    }

    /// The instances that somebody must hear of: the worst first, then by outcome and id.
    pub fn attention(&self) -> Vec<Row<'_>> {
        let rows = self.instances.iter().filter_map(|(target, entry)| {
            Some(Row {
                target,
                name: entry.name.as_deref(),
                platform: match entry.decision {
                    Decision::Restart(platform, _) => Some(platform),
                    Decision::AskAgain(_) | Decision::Leave(..) => None,
                },
                outcome: entry.outcome.as_ref()?,
            })
        });
        let mut rows: Vec<Row<'_>> = rows
            .filter(|row| row.outcome.kind().needs_attention())
            .collect();
        rows.sort_by_key(|row| {
            let (severity, word) = (row.outcome.severity(), row.outcome.kind().word());
            (Reverse(severity), word, row.target.as_str())
        });
        rows
    }

    /// How many instances have each outcome, by its word; those that have none are left out.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for outcome in self.outcomes() {
            *counts.entry(outcome.kind().word()).or_default() += 1;
        }
        counts
    }

    /// How many instances have one of these outcomes.
    pub fn count(&self, kinds: &[Kind]) -> usize {
        self.outcomes()
            .filter(|outcome| kinds.contains(&outcome.kind()))
            .count()
    }

    /// The outcomes, by instance.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.instances
            .values()
            .filter_map(|entry| entry.outcome.as_ref())
    }

    /// Memory of all agents that were restarted, before and after, in KiB; none when none was.
    pub fn memory(&self) -> Option<(u64, u64)> {
        self.outcomes()
            .filter(|outcome| outcome.kind() == Kind::Restarted)
            .filter_map(|outcome| outcome.memory)
            .map(|memory| (memory.before_kib, memory.after_kib))
            .reduce(|sum, one| (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1)))
    }

    /// The worst of its instances and problems.
    pub fn severity(&self) -> Severity {
        let outcomes = self.outcomes().map(Outcome::severity);
        outcomes.fold(severity_of(&self.problems), Severity::max)
    }
}

/// A problem needs a person.
pub fn severity_of(problems: &Problems) -> Severity {
    match problems.is_empty() {
        true => Severity::Ok,
        false => Severity::Warning,
    }
}
