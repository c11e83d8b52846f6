//! Which instances are of a group, and where each stands at which time.

use std::collections::{BTreeMap, BTreeSet};

use sim::DeploymentGroup;

use super::subject::Meant;
use super::{Evidence, MOMENT};
use crate::fleet::Scene;
use crate::weather::What;

/// Where an instance stood at which time: Auto Scaling's word and group, and whether SSM lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub from: f64,
    pub member: Option<(String, String)>,
    pub listed: bool,
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

    /// Who may be a candidate of the group between the two moments, and who must be.
    pub fn candidates(
        &self,
        meant: &Meant,
        from: f64,
        to: f64,
    ) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
        let (mut may, mut must) = (BTreeSet::new(), BTreeSet::new());
        let held = self.scene.state.regions.get(&meant.region);
        let deployments = held.into_iter().flat_map(|region| &region.deployments);
        for deployment in
            deployments.filter(|d| meant.deployments.iter().any(|ours| ours.id == d.id))
        {
            let green =
                |label: Option<&str>| deployment.style != "BLUE_GREEN" || label == Some("Green");
            for target in deployment
                .targets
                .iter()
                .filter(|t| green(t.label.as_deref()))
            {
                may.insert(target.id.as_str());
                must.insert(target.id.as_str());
            }
        }
        let only_targets = meant
            .deployments
            .iter()
            .all(|d| d.creator == "CodeDeployAutoUpdate");
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
                listed: host.managed
                    && !host.rejected
                    && ["running", "pending", "stopping"].contains(&host.state.as_str()),
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
                now.listed = false;
            }
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
