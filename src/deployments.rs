//! From an order to the deployment groups it concerns: which deployments, of which groups, to which targets, and
//! since when an agent counts as fresh.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_codedeploy::types::{
    ComputePlatform, DeploymentCreator, DeploymentInfo, DeploymentStatus, DeploymentType,
    TargetFilterName,
};
use futures_util::future::{join_all, try_join_all};
use tokio::time::{Instant, timeout_at};

use crate::aws::{Clients, RegionClients, first_pages, pages};
use crate::clock::Timestamp;
use crate::decision::Target;
use crate::ids::{GroupName, Name};
use crate::pipeline::{self, Actions};
use crate::problem::{CallError, Code, Problem, Problems, Step};
use crate::trigger::{Home, Order, Subject};

/// Deployment ids in one `BatchGetDeployments`
/// (<https://docs.aws.amazon.com/codedeploy/latest/APIReference/API_BatchGetDeployments.html>).
const DEPLOYMENTS_BATCH: usize = 25;
/// Of the successful deployments that `ListDeployments` gives, so many are looked at to find the last one.
const RECENT_DEPLOYMENTS: usize = 100;

/// A deployment group whose agents are to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// This order's deployments in the group, ascending.
    pub deployments: Vec<Deployment>,
    /// An agent that started at or after this moment is fresh.
    pub triggered_at: Timestamp,
    /// Asked for by hand, so the deployment may be old.
    pub by_hand: bool,
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
            triggered_at: Some(self.triggered_at),
            problem,
        }
    }

    fn shares_instances_with(&self, other: &Self) -> bool {
        let theirs: BTreeSet<&Target> = other.targets().collect();
        self.name.region == other.name.region && self.targets().any(|t| theirs.contains(t))
    }
}

/// A deployment to instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: Name,
    /// Blue/green: only its green targets are the group's.
    pub blue_green: bool,
    /// Made by CodeDeploy for instances that a deployment missed: it concerns its own targets only.
    pub auto_update: bool,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Whom it went to.
    pub targets: BTreeSet<Target>,
}

/// A deployment group that is concerned but could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Its name.
    pub name: GroupName,
    /// The deployments as far as they are known.
    pub deployment_ids: Vec<Name>,
    /// Since when an agent counts as fresh, as far as it is known.
    pub triggered_at: Option<Timestamp>,
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
pub async fn find(clients: &Clients, order: &Order, home: &Home, by: Instant) -> Found {
    let only = |problem: Problem| Found::Groups {
        groups: Vec::new(),
        unresolved: Vec::new(),
        problems: problem.into(),
    };
    if order.account != home.account {
        return only(pipeline::other_account("the event", &order.account, home));
    }
    let (wanted, problems) = match &order.subject {
        Subject::Pipeline {
            pipeline,
            execution_id,
        } => {
            let client = clients.in_region(&order.region);
            let actions = pipeline::actions(&client, order, home, pipeline, execution_id);
            match timeout_at(by, actions).await {
                Ok(Ok(Actions::None(reason))) => return Found::Nothing(reason),
                Ok(Ok(Actions::Some { wanted, problems })) => (wanted, problems),
                Ok(Err(problem)) => return only(problem),
                Err(_) => return only(Problem::out_of_time(Step::Deployments)),
            }
        }
        Subject::Deployment {
            application,
            deployment_group,
            deployment_id,
        } => (
            of_group(order, application, deployment_group, Some(deployment_id)),
            Problems::default(),
        ),
        Subject::Request {
            application,
            deployment_group,
            deployment_id,
        } => (
            of_group(order, application, deployment_group, deployment_id.as_ref()),
            Problems::default(),
        ),
    };
    let resolved = wanted
        .into_iter()
        .map(|(name, ids)| resolve(clients, order, name, ids, by));
    let (mut groups, mut unresolved, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
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
) -> BTreeMap<GroupName, Vec<Name>> {
    let name = GroupName {
        account: order.account.clone(),
        region: order.region.clone(),
        application: application.clone(),
        deployment_group: deployment_group.clone(),
    };
    BTreeMap::from([(name, deployment_id.into_iter().cloned().collect())])
}

/// What a wanted group turned out to be.
enum Resolved {
    Ours(Group),
    Unresolved(Unresolved),
    NotOurs(String),
}

/// Reads the group's deployments and their targets. Without ids, the last successful one is meant.
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
    let infos = async {
        if ids.is_empty() {
            return last_successful(&client, &name).await;
        }
        try_join_all(ids.iter().map(|id| get_deployment(&client, id)))
            .await
            .map_err(|error| Problem::of_call(Step::Deployments, &error))
    };
    let infos = timeout_at(by, infos)
        .await
        .unwrap_or_else(|_| Err(Problem::out_of_time(Step::Deployments)));
    let mut group = match infos.and_then(|infos| read_group(order, &name, &infos)) {
        Ok(Ok(group)) => group,
        Ok(Err(reason)) => return Resolved::NotOurs(reason),
        Err(problem) => {
            return Resolved::Unresolved(Unresolved {
                name,
                deployment_ids: ids,
                triggered_at: None,
                problem,
            });
        }
    };
    let targets = group.deployments.iter_mut().map(async |deployment| {
        deployment.targets = list_targets(&client, deployment).await?;
        Ok(())
    });
    let listed = timeout_at(by, try_join_all(targets)).await;
    match listed {
        Ok(Ok(_)) => Resolved::Ours(group),
        Ok(Err(error)) => {
            Resolved::Unresolved(group.unresolved(Problem::of_call(Step::Deployments, &error)))
        }
        Err(_) => Resolved::Unresolved(group.unresolved(Problem::out_of_time(Step::Deployments))),
    }
}

async fn get_deployment(client: &RegionClients, id: &Name) -> Result<DeploymentInfo, CallError> {
    const OPERATION: &str = "codedeploy:GetDeployment";
    client
        .codedeploy
        .get_deployment()
        .deployment_id(id.as_str())
        .send()
        .await
        .map_err(|error| CallError::new(OPERATION, format!("deployment {id}"), &error))?
        .deployment_info
        .ok_or_else(|| CallError::incomplete(OPERATION, id.as_str(), "deploymentInfo"))
}

/// The group, its targets not listed yet; or why it is none of ours.
fn read_group(
    order: &Order,
    name: &GroupName,
    infos: &[DeploymentInfo],
) -> Result<Result<Group, String>, Problem> {
    let mut deployments = Vec::new();
    let mut reasons = Vec::new();
    for info in infos {
        let id = info.deployment_id().unwrap_or_default();
        if !belongs_to(info, name) {
            return Err(Problem::new(
                Step::Deployments,
                Code::ForeignDeployment,
                format!(
                    "deployment {id} belongs to {}/{}, not to {name}",
                    info.application_name().unwrap_or("?"),
                    info.deployment_group_name().unwrap_or("?"),
                ),
            ));
        }
        match not_ours(info) {
            Some(reason) => reasons.push(reason),
            None => deployments.push(read_deployment(info)?),
        }
    }
    if deployments.is_empty() {
        return Ok(Err(reasons.join("; ")));
    }
    deployments.sort_by(|a, b| a.id.cmp(&b.id));
    let by_hand = matches!(order.subject, Subject::Request { .. });
    // One whose end is not told may have ended last, but no later than the order came.
    let all_told = deployments.iter().all(|d| d.completed_at.is_some());
    let completed = deployments.iter().filter_map(|d| d.completed_at).max();
    let usable = completed.filter(|_| all_told && !by_hand);
    Ok(Ok(Group {
        name: name.clone(),
        triggered_at: usable.unwrap_or(order.time),
        deployments,
        by_hand,
    }))
}

fn belongs_to(info: &DeploymentInfo, name: &GroupName) -> bool {
    info.application_name() == Some(name.application.as_str())
        && info.deployment_group_name() == Some(name.deployment_group.as_str())
}

fn read_deployment(info: &DeploymentInfo) -> Result<Deployment, Problem> {
    let style = info.deployment_style().and_then(|s| s.deployment_type());
    let id = info.deployment_id().and_then(Name::read).ok_or_else(|| {
        let error = CallError::incomplete("codedeploy:GetDeployment", "deployment", "deploymentId");
        Problem::of_call(Step::Deployments, &error)
    })?;
    Ok(Deployment {
        id,
        blue_green: style == Some(&DeploymentType::BlueGreen),
        auto_update: info.creator() == Some(&DeploymentCreator::CodeDeployAutoUpdate),
        completed_at: info.complete_time().map(Timestamp::rounded_up),
        targets: BTreeSet::new(),
    })
}

/// Why a deployment is none of ours, if it is not.
fn not_ours(info: &DeploymentInfo) -> Option<String> {
    let id = info.deployment_id().unwrap_or_default();
    match info.compute_platform() {
        None | Some(ComputePlatform::Server) => {}
        Some(other) => {
            return Some(format!(
                "deployment {id} is for {}, not for instances",
                other.as_str()
            ));
        }
    }
    by_auto_scaling(info).then(|| {
        format!("deployment {id} was made by Auto Scaling: its instances are starting or leaving")
    })
}

/// Whether Auto Scaling made the deployment, for an instance that it launches or terminates.
pub fn by_auto_scaling(info: &DeploymentInfo) -> bool {
    let creator = info.creator().map_or("", DeploymentCreator::as_str);
    // The SDK's enum may be older than the creator.
    matches!(creator, "autoscaling" | "autoscalingTermination")
}

/// The last deployment of the group that succeeded and was made by a person or a pipeline.
async fn last_successful(
    client: &RegionClients,
    name: &GroupName,
) -> Result<Vec<DeploymentInfo>, Problem> {
    let call = |error: CallError| Problem::of_call(Step::Deployments, &error);
    let succeeded = [DeploymentStatus::Succeeded];
    let mut ids = list_deployments(client, name, &succeeded, RECENT_DEPLOYMENTS)
        .await
        .map_err(call)?;
    ids.truncate(RECENT_DEPLOYMENTS);
    let infos = get_deployments(client, name, &ids).await.map_err(call)?;
    let last = infos
        .into_iter()
        .filter(|info| {
            !by_auto_scaling(info)
                && info.creator() != Some(&DeploymentCreator::CodeDeployAutoUpdate)
        })
        .max_by_key(|info| info.complete_time().copied());
    match last {
        Some(info) => Ok(vec![info]),
        None => Err(Problem::new(
            Step::Deployments,
            Code::NoDeployment,
            format!("{name} has no successful deployment among its last {RECENT_DEPLOYMENTS}"),
        )),
    }
}

/// The ids of the group's deployments in these states, until there are `enough`.
///
/// # Errors
/// When the call fails for good.
pub async fn list_deployments(
    client: &RegionClients,
    name: &GroupName,
    statuses: &[DeploymentStatus],
    enough: usize,
) -> Result<Vec<String>, CallError> {
    const OPERATION: &str = "codedeploy:ListDeployments";
    first_pages(OPERATION, enough, |token| async move {
        let page = client
            .codedeploy
            .list_deployments()
            .application_name(name.application.as_str())
            .deployment_group_name(name.deployment_group.as_str())
            .set_include_only_statuses(Some(statuses.to_vec()))
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| {
                CallError::new(OPERATION, format!("deployment group {name}"), &error)
            })?;
        Ok((page.deployments.unwrap_or_default(), page.next_token))
    })
    .await
}

/// These deployments of the group, as far as CodeDeploy describes them.
///
/// # Errors
/// When the call fails for good.
pub async fn get_deployments(
    client: &RegionClients,
    name: &GroupName,
    ids: &[String],
) -> Result<Vec<DeploymentInfo>, CallError> {
    const OPERATION: &str = "codedeploy:BatchGetDeployments";
    let batches = ids.chunks(DEPLOYMENTS_BATCH).map(|batch| async move {
        client
            .codedeploy
            .batch_get_deployments()
            .set_deployment_ids(Some(batch.to_vec()))
            .send()
            .await
            .map(|answer| answer.deployments_info.unwrap_or_default())
            .map_err(|error| CallError::new(OPERATION, format!("deployment group {name}"), &error))
    });
    Ok(try_join_all(batches).await?.into_iter().flatten().collect())
}

/// Whom a deployment went to. For blue/green only the green ones: CodeDeploy refuses the label for a deployment in
/// place.
async fn list_targets(
    client: &RegionClients,
    deployment: &Deployment,
) -> Result<BTreeSet<Target>, CallError> {
    const OPERATION: &str = "codedeploy:ListDeploymentTargets";
    let ids = pages(OPERATION, |token| async move {
        let mut call = client
            .codedeploy
            .list_deployment_targets()
            .deployment_id(deployment.id.as_str())
            .set_next_token(token);
        if deployment.blue_green {
            call = call.target_filters(
                TargetFilterName::ServerInstanceLabel,
                vec!["Green".to_owned()],
            );
        }
        let page = call.send().await.map_err(|error| {
            CallError::new(OPERATION, format!("deployment {}", deployment.id), &error)
        })?;
        Ok((page.target_ids.unwrap_or_default(), page.next_token))
    })
    .await?;
    Ok(ids.iter().map(|id| Target::read(id)).collect())
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
                completed_at: None,
                targets: targets.iter().map(|id| Target::read(id)).collect(),
            }],
            triggered_at: Timestamp(0),
            by_hand: false,
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
