//! From an order to the deployment groups it concerns, each with the deployments that are meant.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_codedeploy::types::{
    ComputePlatform, DeploymentCreator, DeploymentInfo, DeploymentStatus,
};
use futures_util::future::{join_all, try_join_all};
use tokio::time::{Instant, timeout_at};

use crate::accounts::{Accounts, NotOurs};
use crate::aws::{Clients, RegionClients};
use crate::clock::Timestamp;
use crate::decision::Target;
use crate::deployments::{
    Deployment, ENDED, by_auto_scaling, get_deployment, get_deployments, list_deployments,
    list_targets, never_began, read_deployment,
};
use crate::ids::{GroupName, Name};
use crate::pipeline::{self, Actions};
use crate::problem::{CallError, Code, Problem, Problems, Step};
use crate::trigger::{Ended, Order, Subject};

/// Of the deployments that `ListDeployments` gives, so many are looked at to find the last one.
const RECENT_DEPLOYMENTS: usize = 100;

/// A deployment group whose agents are to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// This order's deployments in the group, ascending; none when it is about the present members alone.
    pub deployments: Vec<Deployment>,
    /// When what the order is about happened.
    pub ordered_at: Timestamp,
    /// Since when an agent counts as fresh, if a request says so.
    pub asked_since: Option<Timestamp>,
}

impl Group {
    /// Whom its deployments went to.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.deployments.iter().flat_map(|d| &d.targets)
    }

    /// The group when its instances cannot be found out.
    pub fn unresolved(self, problem: Problem) -> Unresolved {
        Unresolved {
            name: self.name,
            deployment_ids: self.deployments.into_iter().map(|d| d.id).collect(),
            problem,
        }
    }

    fn shares_instances_with(&self, other: &Self) -> bool {
        let theirs: BTreeSet<&Target> = other.targets().collect();
        self.name.region == other.name.region && self.targets().any(|t| theirs.contains(t))
    }
}

/// A deployment group that is concerned but could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Its name.
    pub name: GroupName,
    /// The deployments as far as they are known.
    pub deployment_ids: Vec<Name>,
    /// Why.
    pub problem: Problem,
}

/// What an order concerns.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing of ours, and why.
    Nothing(String),
    /// These deployment groups.
    Groups {
        /// The groups, by name.
        groups: Vec<Group>,
        /// Those that could not be resolved.
        unresolved: Vec<Unresolved>,
        /// What belongs to no group.
        problems: Problems,
    },
}

/// Finds the deployment groups that an order concerns. Never fails: what AWS refuses becomes a problem. What has
/// no answer by then is a problem of its own, so that one region that hangs does not stop the rest.
pub async fn find(clients: &Clients, order: &Order, accounts: Accounts<'_>, by: Instant) -> Found {
    let only = |problem: Problem| Found::Groups {
        groups: Vec::new(),
        unresolved: Vec::new(),
        problems: problem.into(),
    };
    match accounts.check("the event", &order.account) {
        Ok(()) => {}
        Err(NotOurs::Covered(reason)) => return Found::Nothing(reason),
        Err(NotOurs::Problem(problem)) => return only(problem),
    }
    let actions = match &order.subject {
        Subject::Pipeline {
            pipeline,
            execution_id,
            ended,
        } => {
            let client = clients.in_region(&order.region);
            let succeeded_at = (*ended == Ended::Succeeded).then_some(order.time);
            let actions = pipeline::actions(
                &client,
                order,
                accounts,
                pipeline,
                execution_id,
                succeeded_at,
            );
            match timeout_at(by, actions).await {
                Ok(Ok(actions)) => actions,
                Ok(Err(problem)) => return only(problem),
                Err(_) => return only(Problem::out_of_time(Step::Deployments)),
            }
        }
        Subject::Deployment {
            application,
            deployment_group,
            deployment_id,
            ..
        } => of_group(order, application, deployment_group, Some(deployment_id)),
        Subject::Request {
            application,
            deployment_group,
            deployment_id,
        } => of_group(order, application, deployment_group, deployment_id.as_ref()),
    };
    let Actions {
        wanted,
        problems,
        mut reasons,
    } = actions;
    let resolved = wanted
        .into_iter()
        .map(|(name, ids)| resolve(clients, order, name, ids, by));
    let (mut groups, mut unresolved) = (Vec::new(), Vec::new());
    for one in join_all(resolved).await {
        match one {
            Resolved::Ours(group) => groups.push(group),
            Resolved::Unresolved(group) => unresolved.push(group),
            Resolved::NotOurs(reason) => reasons.push(reason),
        }
    }
    if groups.is_empty() && unresolved.is_empty() && problems.is_empty() {
        return Found::Nothing(reasons.join("; "));
    }
    for reason in reasons {
        tracing::info!("{reason}");
    }
    Found::Groups {
        groups,
        unresolved,
        problems,
    }
}

/// The groups in chains: those that share instances stand in one chain, to be treated one after the other.
pub fn chains(groups: Vec<Group>) -> Vec<Vec<Group>> {
    let mut chains: Vec<Vec<Group>> = Vec::new();
    for group in groups {
        let (sharing, others): (Vec<_>, Vec<_>) = chains.into_iter().partition(|chain| {
            chain
                .iter()
                .any(|other| other.shares_instances_with(&group))
        });
        chains = others;
        let mut chain = sharing.concat();
        chain.push(group);
        chain.sort_by(|one, other| one.name.cmp(&other.name));
        chains.push(chain);
    }
    chains
}

fn of_group(
    order: &Order,
    application: &Name,
    deployment_group: &Name,
    deployment_id: Option<&Name>,
) -> Actions {
    let name = GroupName {
        account: order.account.clone(),
        region: order.region.clone(),
        application: application.clone(),
        deployment_group: deployment_group.clone(),
    };
    Actions {
        wanted: BTreeMap::from([(name, deployment_id.into_iter().cloned().collect())]),
        ..Actions::default()
    }
}

/// What a wanted group turned out to be.
enum Resolved {
    Ours(Group),
    Unresolved(Unresolved),
    NotOurs(String),
}

/// Reads the group's deployments and their targets. Without ids, the last ones are meant.
async fn resolve(
    clients: &Clients,
    order: &Order,
    name: GroupName,
    mut ids: Vec<Name>,
    by: Instant,
) -> Resolved {
    ids.sort();
    ids.dedup();
    let client = clients.in_region(&name.region);
    let found = async {
        let deployments = match ids.is_empty() {
            true => last_deployments(&client, &name).await?,
            false => get_named(&client, &name, &ids).await?,
        };
        let mut deployments = match deployments {
            Ok(deployments) => deployments,
            Err(reason) => return Ok(Err(reason)),
        };
        let listed = deployments.iter_mut().map(async |deployment| {
            deployment.targets = list_targets(&client, deployment).await?;
            Ok(())
        });
        try_join_all(listed)
            .await
            .map_err(|error| Problem::of_call(Step::Deployments, &error))?;
        deployments.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Ok(deployments))
    };
    let found = timeout_at(by, found)
        .await
        .unwrap_or_else(|_| Err(Problem::out_of_time(Step::Deployments)));
    match found {
        Ok(Ok(deployments)) => Resolved::Ours(Group {
            name,
            deployments,
            ordered_at: order.time,
            asked_since: order.since,
        }),
        Ok(Err(reason)) => Resolved::NotOurs(reason),
        Err(problem) => Resolved::Unresolved(Unresolved {
            name,
            deployment_ids: ids,
            problem,
        }),
    }
}

/// These deployments, as far as they are the function's; or why none of them is.
async fn get_named(
    client: &RegionClients,
    name: &GroupName,
    ids: &[Name],
) -> Result<Result<Vec<Deployment>, String>, Problem> {
    let infos = try_join_all(ids.iter().map(|id| get_deployment(client, id)))
        .await
        .map_err(|error| Problem::of_call(Step::Deployments, &error))?;
    let (mut deployments, mut reasons) = (Vec::new(), Vec::new());
    for info in &infos {
        if !belongs_to(info, name) {
            return Err(Problem::new(
                Step::Deployments,
                Code::ForeignDeployment,
                format!(
                    "deployment {} belongs to {}/{}, not to {name}",
                    info.deployment_id().unwrap_or("?"),
                    info.application_name().unwrap_or("?"),
                    info.deployment_group_name().unwrap_or("?"),
                ),
            ));
        }
        match not_ours(info) {
            Some(reason) => reasons.push(reason),
            None => deployments.push(
                read_deployment(info)
                    .map_err(|error| Problem::of_call(Step::Deployments, &error))?,
            ),
        }
    }
    match deployments.is_empty() {
        true => Ok(Err(reasons.join("; "))),
        false => Ok(Ok(deployments)),
    }
}

fn belongs_to(info: &DeploymentInfo, name: &GroupName) -> bool {
    info.application_name() == Some(name.application.as_str())
        && info.deployment_group_name() == Some(name.deployment_group.as_str())
}

/// Why a deployment concerns no instances, if it does not: then no deployment of its group does.
fn for_no_instances(info: &DeploymentInfo) -> Option<String> {
    let id = info.deployment_id().unwrap_or_default();
    let platform = info.compute_platform()?;
    (*platform != ComputePlatform::Server)
        .then(|| format!("deployment {id} is for {platform}, not for instances"))
}

/// Why a deployment is none of ours, if it is not.
fn not_ours(info: &DeploymentInfo) -> Option<String> {
    let id = info.deployment_id().unwrap_or_default();
    if let Some(reason) = for_no_instances(info) {
        return Some(reason);
    }
    if by_auto_scaling(info) {
        return Some(format!(
            "deployment {id} was made by Auto Scaling: its instances are starting or leaving"
        ));
    }
    never_began(info).then(|| format!("deployment {id} ended before it deployed anything"))
}

/// The last deployment of the group that ended and the last one that succeeded (one that failed may have missed most of the
/// hosts), of those that a person or a pipeline made. None when there is none among those that are looked at: then the
/// present members are meant. Why it is none of ours when there never was a deployment.
async fn last_deployments(
    client: &RegionClients,
    name: &GroupName,
) -> Result<Result<Vec<Deployment>, String>, Problem> {
    let call = |error: CallError| Problem::of_call(Step::Deployments, &error);
    let mut ids = list_deployments(client, name, &[], None, RECENT_DEPLOYMENTS)
        .await
        .map_err(call)?;
    if ids.is_empty() {
        return Ok(Err(format!("{name} never had a deployment")));
    }
    ids.truncate(RECENT_DEPLOYMENTS);
    let infos = get_deployments(client, name, &ids).await.map_err(call)?;
    if let Some(reason) = infos.iter().find_map(for_no_instances) {
        return Ok(Err(reason));
    }
    let ended = |info: &&DeploymentInfo| {
        info.status().is_some_and(|status| ENDED.contains(status))
            && not_ours(info).is_none()
            && info.creator() != Some(&DeploymentCreator::CodeDeployAutoUpdate)
    };
    let succeeded = |info: &&DeploymentInfo| info.status() == Some(&DeploymentStatus::Succeeded);
    let newest = |info: &&DeploymentInfo| info.complete_time().copied();
    let last = infos.iter().filter(ended).max_by_key(newest);
    // One that goes to outdated instances alone leaves out those that the one before it reached.
    let whole = |info: &&DeploymentInfo| !info.update_outdated_instances_only();
    let good = infos
        .iter()
        .filter(ended)
        .filter(succeeded)
        .filter(whole)
        .max_by_key(newest);
    let mut deployments = Vec::new();
    for info in last.into_iter().chain(good) {
        let deployment = read_deployment(info).map_err(call)?;
        if !deployments.contains(&deployment) {
            deployments.push(deployment);
        }
    }
    Ok(Ok(deployments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{AccountId, Region};

    fn group(name: &str, region: &str, targets: &[&str]) -> Group {
        let text = |text| Name::read(text).unwrap();
        Group {
            name: GroupName {
                account: AccountId::read("123456789012").unwrap(),
                region: Region::read(region).unwrap(),
                application: text("shop"),
                deployment_group: text(name),
            },
            deployments: vec![Deployment {
                id: text("d-1"),
                blue_green: false,
                auto_update: false,
                created_at: None,
                completed_at: None,
                targets: targets.iter().map(|id| Target::read(id)).collect(),
            }],
            ordered_at: Timestamp(0),
            asked_since: None,
        }
    }

    #[test]
    fn groups_that_share_instances_stand_in_one_chain_also_by_way_of_a_third() {
        let chains = chains(vec![
            group("a", "eu-west-1", &["i-00000001"]),
            group("b", "eu-west-1", &["i-00000003"]),
            group("c", "us-east-1", &["i-00000001"]),
            group("d", "eu-west-1", &["i-00000001", "i-00000003"]),
            group("e", "eu-west-1", &[]),
        ]);
        let mut names: Vec<Vec<&str>> = chains
            .iter()
            .map(|chain| {
                chain
                    .iter()
                    .map(|g| g.name.deployment_group.as_str())
                    .collect()
            })
            .collect();
        names.sort();
        assert_eq!(names, [vec!["a", "b", "d"], vec!["c"], vec!["e"]]);
    }
}
