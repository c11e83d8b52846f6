//! Which instances are of a group, and where each stands at which time.

use std::collections::{BTreeMap, BTreeSet};

use sim::{Call, DeploymentGroup, Host};

use super::calls::texts;
use super::hosts::host;
use super::sends::is_answered;
use super::subject::{Meant, is_follow_up};
use super::{Evidence, MOMENT};
use crate::deliveries::Invocation;
use crate::fleet::{PASSING, Scene, TAG};
use crate::weather::{Change, What};

/// Where an instance stood at which time: Auto Scaling's word and group, EC2's state, and whether SSM lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub from: f64,
    pub member: Option<(String, String)>,
    pub state: String,
    pub listed: bool,
    /// Whether EC2 shows the tag that some worlds ask for.
    pub tagged: bool,
}

impl Standing {
    /// Whether EC2 says that nothing runs there.
    pub fn is_down(&self) -> bool {
        self.is_gone() || ["stopping", "stopped"].contains(&self.state.as_str())
    }

    /// Whether EC2 says that nothing will run there again.
    pub fn is_gone(&self) -> bool {
        ["shutting-down", "terminated"].contains(&self.state.as_str())
    }

    /// Whether Auto Scaling says that it starts or leaves.
    pub fn is_passing(&self) -> bool {
        let member = self.member.as_ref();
        member.is_some_and(|(state, _)| PASSING.contains(&state.as_str()))
    }
}

/// The standings of each instance in turn, by region and id.
pub type Standings<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Vec<Standing>>>;

impl<'a> Evidence<'a> {
    pub fn standings_of(&self, region: &str, id: &str) -> &[Standing] {
        let standings = self.standings.get(region).and_then(|ids| ids.get(id));
        standings.map_or(&[], Vec::as_slice)
    }

    pub fn group(&self, meant: &Meant) -> Option<&'a DeploymentGroup> {
        let held = self.scene.state.regions.get(&meant.region)?;
        held.deployment_groups
            .iter()
            .find(|group| group.application == meant.application && group.name == meant.name)
    }

    /// Whom the group's deployments went to.
    pub fn targets(&self, meant: &Meant) -> BTreeSet<&'a str> {
        let held = self.scene.state.regions.get(&meant.region);
        let deployments = held.into_iter().flat_map(|region| &region.deployments);
        let ours = deployments.filter(|d| meant.deployments.iter().any(|ours| ours.id == d.id));
        ours.flat_map(|deployment| {
            let stays =
                |label: Option<&str>| deployment.style != "BLUE_GREEN" || label != Some("Blue");
            let targets = deployment.targets.iter();
            targets.filter(move |target| stays(target.label.as_deref()))
        })
        .map(|target| self.borne_by(&meant.region, &target.id))
        .collect()
    }

    /// The machine that bears the name of a target, if it is one alone; else the target's own id.
    fn borne_by(&self, region: &str, target: &'a str) -> &'a str {
        match self.bearers(region, target)[..] {
            [host] => &host.id,
            _ => target,
        }
    }

    /// The machines outside EC2 that Systems Manager shows under this name at the start.
    pub fn bearers(&self, region: &str, name: &str) -> Vec<&'a Host> {
        let held = self.scene.state.regions.get(region);
        let hosts = held.into_iter().flat_map(|region| &region.hosts);
        let bears = |host: &&Host| {
            let shown = host.managed && !host.rejected;
            shown && host.is_on_premises() && host.name.as_deref() == Some(name)
        };
        hosts.filter(bears).collect()
    }

    /// Whether a deployment's target is this instance.
    pub fn is_target(&self, region: &str, target: &str, id: &str) -> bool {
        let named = |host: &Host| host.is_on_premises() && host.name.as_deref() == Some(target);
        target == id || host(&self.scene.state, region, id).is_some_and(named)
    }

    /// Whether who bears a name may have changed since the start, have been missed between two pages of an inventory that
    /// somebody left, or not have been told.
    pub fn is_shaky(&self, region: &str, id: &str, invocation: &Invocation) -> bool {
        let outside_ec2 = id.starts_with("mi-") || !id.starts_with("i-");
        let leaves = |change: &Change| {
            change.region == region
                && change.at <= invocation.ended
                && matches!(change.what, What::Vanishes | What::Terminates)
        };
        let untold = |call: &Call| {
            call.access_key == invocation.key
                && call.region == region
                && call.operation == "DescribeInstanceInformation"
                && !is_answered(call)
        };
        outside_ec2 && (self.scene.changes.iter().any(leaves) || self.calls.iter().any(untold))
    }

    /// Whether a report accounts for a machine outside EC2 all the same: by its name, or by another one that bears it.
    pub fn is_accounted(&self, region: &str, id: &str, there: &BTreeSet<&str>) -> bool {
        let name = host(&self.scene.state, region, id).and_then(|host| host.name.as_deref());
        let held = self.scene.state.regions.get(region);
        let hosts = held.into_iter().flat_map(|region| &region.hosts);
        let mut namesakes =
            hosts.filter(|host| host.is_on_premises() && host.name.as_deref() == name.or(Some(id)));
        there.contains(name.unwrap_or(id)) || namesakes.any(|host| there.contains(host.id.as_str()))
    }

    /// Who was a member of the group's Auto Scaling groups all the while.
    pub fn members(&self, meant: &Meant, invocation: &Invocation) -> BTreeSet<&'a str> {
        let present = Meant {
            deployments: Vec::new(),
            ..meant.clone()
        };
        self.candidates(&present, invocation.began, invocation.ended)
            .1
    }

    /// Who may be a candidate of the group between the two moments, and who must be.
    pub fn candidates(
        &self,
        meant: &Meant,
        from: f64,
        to: f64,
    ) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
        let mut must = self.targets(meant);
        let mut may = must.clone();
        let only_targets =
            !meant.deployments.is_empty() && meant.deployments.iter().all(is_follow_up);
        if let Some(group) = self.group(meant).filter(|_| !only_targets) {
            let ours = |standing: &Standing| {
                let member = standing.member.as_ref();
                member.is_some_and(|(_, name)| group.auto_scaling_groups.contains(name))
            };
            for (id, standings) in self
                .standings
                .get(meant.region.as_str())
                .into_iter()
                .flatten()
            {
                let mut during = during(standings, from, to).peekable();
                let always = during.peek().is_some() && during.clone().all(ours);
                if during.any(ours) {
                    may.insert(id);
                }
                if always {
                    must.insert(id);
                }
            }
        }
        (may, must)
    }
}

/// Whether the instance may have fallen between two pages of what was read about it: Auto Scaling's list of members and
/// Systems Manager's of nodes move up when somebody before it leaves between two calls, and who then stands where the
/// first page ended is on neither. The function asks for no more ids than AWS gives on one page, so that it takes pages
/// that are shorter than AWS's, and it does not look for such an instance again: of what it read then, nothing is judged.
pub fn fell_between_pages(scene: &Scene, region: &str, id: &str, calls: &[&Call]) -> bool {
    let later = calls.iter().filter(|call| {
        call.region == region
            && call.params["NextToken"].is_string()
            && asked_about(call).contains(&id)
    });
    later.into_iter().any(|call| {
        let asked = asked_about(call);
        let first = calls.iter().rev().find(|first| {
            first.at < call.at
                && first.operation == call.operation
                && first.region == region
                && first.params["NextToken"].is_null()
                && asked_about(first) == asked
        });
        let from = first.map_or(f64::MIN, |first| first.at);
        scene.changes.iter().any(|change| {
            let leaves = match call.operation.as_str() {
                "DescribeAutoScalingInstances" => {
                    matches!(change.what, What::Leaves | What::Terminates)
                }
                _ => matches!(change.what, What::Vanishes | What::Terminates),
            };
            leaves
                && change.region == region
                && asked.contains(&change.id.as_str())
                && (from..=call.at).contains(&change.at)
        })
    })
}

/// The instances that a call names to be told about, by Auto Scaling or by Systems Manager.
fn asked_about(call: &Call) -> Vec<&str> {
    match call.operation.as_str() {
        "DescribeAutoScalingInstances" => texts(&call.params["InstanceIds"]),
        "DescribeInstanceInformation" => texts(&call.params["Filters"][0]["Values"]),
        _ => Vec::new(),
    }
}

/// Where each instance stood at which time.
pub fn standings(scene: &Scene) -> Standings<'_> {
    let mut standings = Standings::new();
    for (name, region) in &scene.state.regions {
        let mut members = BTreeMap::new();
        for group in &region.auto_scaling_groups {
            for member in &group.instances {
                members.insert(
                    member.id.as_str(),
                    (member.lifecycle.clone(), group.name.clone()),
                );
            }
        }
        for host in &region.hosts {
            let standing = Standing {
                from: f64::MIN,
                member: members.remove(host.id.as_str()),
                state: host.state.clone(),
                listed: host.managed
                    && !host.rejected
                    && ["running", "pending", "stopping"].contains(&host.state.as_str()),
                tagged: host.tags.get(TAG.0).map(String::as_str) == Some(TAG.1)
                    && host.state != "terminated",
            };
            let here = standings.entry(name).or_default();
            here.insert(&host.id, vec![standing]);
        }
    }
    for change in &scene.changes {
        let Some(known) = standings
            .get_mut(change.region.as_str())
            .and_then(|ids| ids.get_mut(change.id.as_str()))
        else {
            continue;
        };
        let Some(mut now) = known.last().cloned() else {
            continue;
        };
        now.from = change.at;
        match &change.what {
            What::Lifecycle(word) => {
                if let Some((state, _)) = &mut now.member {
                    (*word).clone_into(state);
                }
            }
            What::Leaves => now.member = None,
            What::Joins(group) => {
                now.member
                    .get_or_insert_with(|| ("InService".to_owned(), group.clone()));
            }
            What::Terminates => {
                now.member = None;
                "terminated".clone_into(&mut now.state);
                now.listed = false;
                now.tagged = false;
            }
            What::LosesTags => now.tagged = false,
            What::Vanishes => now.listed = false,
            What::GoesOffline | What::ComesBack => {}
        }
        known.push(now);
    }
    standings
}

/// The standings that held at some time between the two moments.
pub fn during(
    standings: &[Standing],
    from: f64,
    to: f64,
) -> impl Iterator<Item = &Standing> + Clone {
    let after = standings
        .iter()
        .skip(1)
        .map(|next| next.from)
        .chain([f64::MAX]);
    standings
        .iter()
        .zip(after)
        .filter(move |(standing, until)| standing.from <= to + MOMENT && *until >= from)
        .map(|(standing, _)| standing)
}
