//! Which groups an event is about, by the account's own data.

use std::collections::{BTreeMap, BTreeSet};

use codedeploy_agent_restarter::report::GroupReport;
use sim::{Action, Call, Deployment};

use super::Evidence;
use super::calls::texts;
use crate::deliveries::{Delivery, Invocation, Meaning};
use crate::fleet::{ACCOUNT, EXECUTION, Group, HOME, PIPELINE};

/// Seconds before a success that the last of the listed actions may have ended, and seconds for which the list is asked for
/// again.
const LIST_LAG: f64 = 30.0;
/// Deployments of a group among which the last one is looked for.
const RECENT: usize = 100;

/// A group that an event is about.
#[derive(Clone, Debug)]
pub struct Meant {
    pub region: String,
    pub application: String,
    pub name: String,
    /// The deployments that concern the function; none when it is about the present members.
    pub deployments: Vec<Deployment>,
    /// A deployment that does not exist, or is another group's.
    pub unknown: bool,
    /// Which deployments are meant changed while the function was asking, or there are too many to tell.
    pub uncertain: bool,
    /// Whether it is meant at all changed while the function was asking.
    pub optional: bool,
    /// Since when an agent counts as fresh, if a request says so, in seconds since the start.
    pub asked: Option<f64>,
    /// When the event happened.
    pub time: f64,
}

impl Meant {
    /// What the group's commands are marked with.
    pub fn comment(&self) -> String {
        format!(
            "codedeploy-agent-restarter: {}/{}",
            self.application, self.name
        )
    }

    pub fn is_certain(&self) -> bool {
        !self.unknown && !self.uncertain && !self.optional
    }

    fn has(&self, deployment: &Deployment) -> bool {
        deployment.application == self.application && deployment.deployment_group == self.name
    }
}

/// Region, application and name of a group.
type Key = (String, String, String);

/// What an event is about.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    pub groups: Vec<Meant>,
    /// Groups that turn out not to be the function's once their deployments are known.
    pub others: Vec<Key>,
    /// Something beside the groups cannot be treated, and must be told.
    pub problem: bool,
}

/// What the list of an execution's actions showed.
#[derive(Default)]
struct Listed {
    wanted: BTreeMap<Key, Vec<String>>,
    /// Groups of rows that changed during the last look.
    moving: BTreeSet<Key>,
    problem: bool,
}

impl<'a> Evidence<'a> {
    /// What the event is about, by the account's own data.
    pub fn subject(&self, delivery: &Delivery, invocation: &Invocation) -> Subject {
        let mut listed = Listed::default();
        let mut uncertain = false;
        let mut asked = None;
        match &delivery.meaning {
            Meaning::Nothing | Meaning::Unreadable => return Subject::default(),
            Meaning::Elsewhere => {
                return Subject {
                    problem: !self.scene.is_covered(),
                    ..Subject::default()
                };
            }
            Meaning::Pipeline { succeeded } => {
                listed = self.actions(*succeeded, delivery.time, invocation);
            }
            Meaning::Deployment(number) => {
                let group = &self.scene.groups[*number];
                listed
                    .wanted
                    .insert(key_of(group), vec![group.deployment.clone()]);
            }
            Meaning::Request {
                group, named, time, ..
            } => {
                let group = &self.scene.groups[*group];
                asked = *time;
                let ids = match named {
                    true => vec![group.deployment.clone()],
                    false => {
                        let (ids, certain) = self.last(group, invocation);
                        uncertain = !certain;
                        ids
                    }
                };
                listed.wanted.insert(key_of(group), ids);
            }
        }
        let by_hand = matches!(delivery.meaning, Meaning::Request { .. });
        let (mut groups, mut others) = (Vec::new(), Vec::new());
        for (key, ids) in listed.wanted {
            let optional = listed.moving.contains(&key);
            let (region, application, name) = key;
            let mut meant = Meant {
                region,
                application,
                name,
                deployments: Vec::new(),
                unknown: ids.is_empty() && !by_hand,
                uncertain,
                optional,
                asked,
                time: delivery.time,
            };
            for id in &ids {
                let known = self.deployments_of(&meant).find(|d| d.id == *id).cloned();
                match known {
                    Some(known) => meant.deployments.push(known),
                    None => meant.unknown = true,
                }
            }
            meant.deployments.retain(|d| {
                d.compute_platform == "Server" && !by_auto_scaling(d) && !d.never_started
            });
            let platform = self
                .group(&meant)
                .map(|group| group.compute_platform.as_str());
            let elsewhere = by_hand && platform != Some("Server");
            let none = meant.deployments.is_empty() && !meant.unknown;
            if none && (!ids.is_empty() || elsewhere) {
                others.push((meant.region, meant.application, meant.name));
            } else {
                groups.push(meant);
            }
        }
        Subject {
            groups,
            others,
            problem: listed.problem,
        }
    }

    /// Every deployment of the group that there will ever be.
    pub fn deployments_of(&self, meant: &Meant) -> impl Iterator<Item = &'a Deployment> {
        let held = self.scene.state.regions.get(&meant.region);
        let deployments = held.into_iter().flat_map(|region| &region.deployments);
        deployments.filter(move |deployment| meant.has(deployment))
    }

    /// Since when an agent counts as fresh on an instance that was sent to by this call: whatever was deployed there, and
    /// had ended when the function looked at the group for the last time.
    pub fn since(&self, meant: &Meant, id: &str, call: &Call) -> f64 {
        if let Some(asked) = meant.asked {
            return asked;
        }
        if meant.deployments.is_empty() {
            return f64::MIN;
        }
        let looked = self.looks.iter().rev().find(|look| {
            look.access_key == call.access_key && look.at < call.at && is_about(look, meant)
        });
        let looked = looked.map_or(f64::MIN, |look| look.at);
        let created = meant.deployments.iter().map(|d| d.created_at);
        let first = created.fold(f64::MAX, f64::min);
        self.deployments_of(meant)
            .filter(|d| d.created_at >= first && !by_auto_scaling(d) && !d.never_started)
            .filter(|d| !is_follow_up(d) || self.goes_to(meant, d, id))
            .filter_map(|d| d.completed_at.filter(|ended| *ended <= looked))
            .reduce(f64::max)
            .unwrap_or(meant.time)
    }

    /// Whether a deployment leaves something on the instance: the blue ones of a blue/green deployment go.
    fn goes_to(&self, meant: &Meant, deployment: &Deployment, id: &str) -> bool {
        let stays = |label: Option<&str>| deployment.style != "BLUE_GREEN" || label != Some("Blue");
        let mut targets = deployment.targets.iter();
        targets.any(|target| {
            self.is_target(&meant.region, &target.id, id) && stays(target.label.as_deref())
        })
    }

    /// What the last list of the execution's actions showed, if the function may have been content with it; else all that
    /// there is.
    fn actions(&self, succeeded: bool, at: f64, invocation: &Invocation) -> Listed {
        let home = self.scene.state.regions.get(HOME);
        let pipelines = home.into_iter().flat_map(|region| &region.pipelines);
        let rows: Vec<&Action> = pipelines
            .filter(|pipeline| pipeline.name == PIPELINE)
            .flat_map(|pipeline| &pipeline.executions)
            .filter(|execution| execution.id == EXECUTION)
            .flat_map(|execution| &execution.actions)
            .collect();
        let covered = self.scene.is_covered();
        let tries = self.calls.iter().filter(|call| {
            call.access_key == invocation.key && call.operation == "ListActionExecutions"
        });
        let looks: Vec<&Call> = tries.clone().filter(|call| call.status == 200).collect();
        // Attempts that were refused are a wait as well.
        let (Some(first), Some(last)) = (tries.clone().next(), looks.last()) else {
            return listed(&rows, f64::MAX, f64::MAX, covered);
        };
        let begun = looks
            .iter()
            .rev()
            .find(|look| look.params["nextToken"].is_null());
        let begun = begun.map_or(last.at, |look| look.at);
        let shown: Vec<&Action> = rows
            .iter()
            .copied()
            .filter(|row| is_shown(row, last.at))
            .collect();
        let open = |row: &&&Action| is_codedeploy(row) && row.updated_at > begun;
        let open = shown.iter().any(|row| open(&row));
        let ends = shown
            .iter()
            .map(|row| row.updated_at)
            .filter(|end| *end <= last.at);
        let late = succeeded && ends.fold(f64::MIN, f64::max) < at - LIST_LAG - 1.0;
        // An execution that did not succeed may have failed at an action whose row is not there yet.
        let ours = succeeded || shown.iter().any(|row| is_codedeploy(row));
        let settled = !shown.is_empty() && !open && !late && ours;
        let waited = last.at - first.at >= LIST_LAG - 1.0;
        let mut listed = match settled || waited {
            true => listed(&rows, begun, last.at, covered),
            false => listed(&rows, f64::MAX, f64::MAX, covered),
        };
        listed.problem |= waited && (shown.is_empty() || open);
        listed
    }

    /// The last deployment of a group that ended, and the last one that succeeded, of those that a person or a pipeline
    /// made, when the function asked; and whether they were the same all the while.
    fn last(&self, group: &Group, invocation: &Invocation) -> (Vec<String>, bool) {
        let asked = self.calls.iter().filter(|call| {
            call.access_key == invocation.key
                && call.operation == "ListDeployments"
                && call.status == 200
                && !texts(&call.params["includeOnlyStatuses"]).contains(&"InProgress")
                && call.params["createTimeRange"].is_null()
        });
        let (from, to) = asked.fold((f64::MAX, invocation.began), |(from, to), call| {
            (call.at.min(from), call.at.max(to))
        });
        let held = self.scene.state.regions.get(group.region);
        let deployments = held.into_iter().flat_map(|region| &region.deployments);
        let ours = || {
            deployments.clone().filter(|d| {
                d.application == group.application
                    && d.deployment_group == group.name
                    && d.created_at <= to
            })
        };
        let done = || {
            ours()
                .filter(|d| !by_auto_scaling(d) && !is_follow_up(d) && !d.never_started)
                .filter_map(|d| Some((d.completed_at.filter(|time| *time <= to)?, d)))
        };
        let newest =
            |one: &(f64, &Deployment), other: &(f64, &Deployment)| one.0.total_cmp(&other.0);
        let ended = done().max_by(newest);
        let succeeded = done()
            .filter(|(_, d)| d.status == "Succeeded" && !d.outdated_only)
            .max_by(newest);
        let found: Vec<(f64, &Deployment)> = [ended, succeeded].into_iter().flatten().collect();
        let certain = found.iter().all(|(time, _)| *time <= from) && ours().count() <= RECENT;
        let mut ids: Vec<String> = found.iter().map(|(_, d)| d.id.clone()).collect();
        ids.dedup();
        (ids, certain)
    }
}

fn key_of(group: &Group) -> Key {
    (
        group.region.to_owned(),
        group.application.clone(),
        group.name.clone(),
    )
}

/// Whether a call names the group.
pub fn is_about(call: &Call, meant: &Meant) -> bool {
    call.region == meant.region
        && call.params["deploymentGroupName"] == meant.name.as_str()
        && call.params["applicationName"] == meant.application.as_str()
}

fn is_codedeploy(row: &Action) -> bool {
    row.owner == "AWS" && row.category == "Deploy" && row.provider == "CodeDeploy"
}

fn is_shown(row: &Action, at: f64) -> bool {
    row.visible_at.is_none_or(|time| time <= at)
}

/// The groups of the actions that have ended, by the last row of each that is shown at that time: a try that deployed nothing
/// does not hide the one before it. Another account's is told, unless it is covered.
fn listed(rows: &[&Action], from: f64, to: f64, covered: bool) -> Listed {
    let mut last: BTreeMap<(&str, &str), &Action> = BTreeMap::new();
    let over = |row: &&&Action| {
        let deployed = row.status == "Succeeded" || row.deployment_id.is_some();
        is_codedeploy(row) && is_shown(row, to) && row.updated_at <= to && deployed
    };
    for row in rows.iter().filter(over) {
        let known = last.entry((&row.stage, &row.action)).or_insert(row);
        if row.updated_at > known.updated_at {
            *known = row;
        }
    }
    let mut listed = Listed::default();
    for row in last.into_values() {
        let ours = row
            .role_arn
            .as_ref()
            .is_none_or(|role| role.contains(ACCOUNT));
        match (&row.application, &row.deployment_group, &row.deployment_id) {
            (Some(application), Some(group), Some(id)) if ours => {
                let region = row.region.clone().unwrap_or_else(|| HOME.to_owned());
                let key = (region, application.clone(), group.clone());
                if row.updated_at > from || row.visible_at.is_some_and(|time| time > from) {
                    listed.moving.insert(key.clone());
                }
                listed.wanted.entry(key).or_default().push(id.clone());
            }
            _ => listed.problem |= ours || !covered,
        }
    }
    listed
}

pub fn names(subject: &Subject) -> Vec<&str> {
    subject
        .groups
        .iter()
        .map(|meant| meant.name.as_str())
        .collect()
}

pub fn is(meant: &Meant, group: &GroupReport) -> bool {
    let name = &group.name;
    name.account.as_str() == ACCOUNT
        && name.region.as_str() == meant.region
        && name.application.as_str() == meant.application
        && name.deployment_group.as_str() == meant.name
}

pub fn by_auto_scaling(deployment: &Deployment) -> bool {
    ["autoscaling", "autoscalingTermination"].contains(&deployment.creator.as_str())
}

/// Whether CodeDeploy made the deployment for instances that an earlier one had missed.
pub fn is_follow_up(deployment: &Deployment) -> bool {
    deployment.creator == "CodeDeployAutoUpdate"
}
