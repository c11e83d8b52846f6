//! Which groups an event is about, by the account's own data.

use std::collections::BTreeMap;

use codedeploy_agent_restarter::report::GroupReport;
use sim::Deployment;

use super::Evidence;
use super::calls::texts;
use crate::deliveries::{Delivery, Invocation, Meaning};
use crate::fleet::{ACCOUNT, EXECUTION, Group, HOME, PIPELINE};

/// A group that an event is about.
#[derive(Clone, Debug)]
pub struct Meant {
    pub region: String,
    pub application: String,
    pub name: String,
    /// The deployments that concern the function; none when they cannot be told for certain.
    pub deployments: Vec<Deployment>,
    /// A deployment that does not exist, or is another group's.
    pub unknown: bool,
    /// The last deployment is meant, and that changed while the function was asking which it is.
    pub uncertain: bool,
    /// Since when an agent counts as fresh, in seconds since the start.
    pub since: f64,
    pub by_hand: bool,
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
        !self.unknown && !self.uncertain
    }
}

/// What an event is about.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    pub groups: Vec<Meant>,
    /// Groups (region, application, name) that turn out not to be the function's once their deployments are known.
    pub others: Vec<(String, String, String)>,
    /// Something beside the groups cannot be treated, and must be told.
    pub problem: bool,
}

impl Evidence<'_> {
    /// What the event is about, by the account's own data.
    pub fn subject(&self, delivery: &Delivery, invocation: &Invocation) -> Subject {
        let mut wanted: BTreeMap<(String, String, String), Vec<String>> = BTreeMap::new();
        let (mut problem, mut uncertain) = (false, false);
        match &delivery.meaning {
            Meaning::Nothing | Meaning::Unreadable => return Subject::default(),
            Meaning::Pipeline => problem = self.actions(&mut wanted),
            Meaning::Deployment(number)
            | Meaning::Request {
                group: number,
                named: true,
                ..
            } => {
                let group = &self.scene.groups[*number];
                let key = (
                    group.region.to_owned(),
                    group.application.clone(),
                    group.name.clone(),
                );
                wanted.insert(key, vec![group.deployment.clone()]);
            }
            Meaning::Request { group, .. } => {
                let group = &self.scene.groups[*group];
                let key = (
                    group.region.to_owned(),
                    group.application.clone(),
                    group.name.clone(),
                );
                let (id, certain) = self.last(group, invocation);
                uncertain = !certain;
                wanted.insert(key, id.into_iter().collect());
            }
        }
        let by_hand = matches!(delivery.meaning, Meaning::Request { .. });
        let asked = match delivery.meaning {
            Meaning::Request {
                time: Some(time), ..
            } => Some(time),
            Meaning::Request { .. } => Some(invocation.began),
            _ => None,
        };
        let (mut groups, mut others) = (Vec::new(), Vec::new());
        for ((region, application, name), ids) in wanted {
            let known = |id: &String| {
                let held = self.scene.state.regions.get(&region)?;
                let found = held.deployments.iter().find(|d| d.id == *id)?;
                (found.application == application && found.deployment_group == name)
                    .then_some(found)
            };
            let deployments: Vec<Option<&Deployment>> = ids.iter().map(known).collect();
            let unknown = ids.is_empty() || deployments.iter().any(Option::is_none);
            let ours: Vec<Deployment> = deployments
                .into_iter()
                .flatten()
                .filter(|d| d.compute_platform == "Server" && !by_auto_scaling(d))
                .cloned()
                .collect();
            if ours.is_empty() && !unknown {
                others.push((region, application, name));
                continue;
            }
            let completed = ours
                .iter()
                .filter_map(|d| d.completed_at)
                .fold(f64::MIN, f64::max);
            groups.push(Meant {
                region,
                application,
                name,
                unknown,
                uncertain,
                since: asked.unwrap_or(if completed == f64::MIN {
                    0.0
                } else {
                    completed
                }),
                deployments: ours,
                by_hand,
            });
        }
        Subject {
            groups,
            others,
            problem,
        }
    }

    /// The execution's actions: the last row of each that succeeded. Whether one of them cannot be treated.
    fn actions(&self, wanted: &mut BTreeMap<(String, String, String), Vec<String>>) -> bool {
        let home = self.scene.state.regions.get(HOME);
        let pipelines = home.into_iter().flat_map(|region| &region.pipelines);
        let rows = pipelines
            .filter(|pipeline| pipeline.name == PIPELINE)
            .flat_map(|pipeline| &pipeline.executions)
            .filter(|execution| execution.id == EXECUTION)
            .flat_map(|execution| &execution.actions)
            .filter(|row| {
                row.owner == "AWS" && row.category == "Deploy" && row.provider == "CodeDeploy"
            });
        let mut last = BTreeMap::new();
        for row in rows {
            let known = last.entry((&row.stage, &row.action)).or_insert(row);
            if row.updated_at > known.updated_at {
                *known = row;
            }
        }
        let mut problem = false;
        for row in last.into_values().filter(|row| row.status == "Succeeded") {
            let ours = row
                .role_arn
                .as_ref()
                .is_none_or(|role| role.contains(ACCOUNT));
            match (&row.application, &row.deployment_group, &row.deployment_id) {
                (Some(application), Some(group), Some(id)) if ours => {
                    let region = row.region.clone().unwrap_or_else(|| HOME.to_owned());
                    let key = (region, application.clone(), group.clone());
                    wanted.entry(key).or_default().push(id.clone());
                }
                _ => problem = true,
            }
        }
        problem
    }

    /// The last successful deployment of a group that a person or a pipeline made, when the function asked; and
    /// whether it was the same all the while.
    fn last(&self, group: &Group, invocation: &Invocation) -> (Option<String>, bool) {
        let asked = self.calls.iter().filter(|call| {
            call.access_key == invocation.key
                && call.operation == "ListDeployments"
                && call.status == 200
                && texts(&call.params["includeOnlyStatuses"]) == ["Succeeded"]
        });
        let (from, to) = asked.fold((f64::MAX, invocation.began), |(from, to), call| {
            (call.at.min(from), call.at.max(to))
        });
        let held = self.scene.state.regions.get(group.region);
        let deployments = held.into_iter().flat_map(|region| &region.deployments);
        let done = deployments.filter(|d| {
            d.application == group.application
                && d.deployment_group == group.name
                && d.status == "Succeeded"
                && !by_auto_scaling(d)
                && d.creator != "CodeDeployAutoUpdate"
        });
        let last = done
            .filter_map(|d| Some((d.completed_at?, &d.id)))
            .filter(|(time, _)| *time <= to)
            .max_by(|one, other| one.0.total_cmp(&other.0));
        let certain = last.is_none_or(|(time, _)| time <= from);
        (last.map(|(_, id)| id.clone()), certain)
    }
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
