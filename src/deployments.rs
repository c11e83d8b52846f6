//! What CodeDeploy tells about a group's deployments: which there are, who made them, when they ended, and whom they
//! went to.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_codedeploy::types::{
    DeploymentCreator, DeploymentInfo, DeploymentStatus, DeploymentType, TargetFilterName,
    TimeRange,
};
use futures_util::future::try_join_all;

use crate::aws::RegionClients;
use crate::clock::Timestamp;
use crate::decision::Target;
use crate::ids::{GroupName, Name};
use crate::paging::{first_pages, pages};
use crate::problem::{CallError, Code};

/// Deployment ids in one `BatchGetDeployments`
/// (<https://docs.aws.amazon.com/codedeploy/latest/APIReference/API_BatchGetDeployments.html>).
const DEPLOYMENTS_BATCH: usize = 25;
/// CodeDeploy's error for the targets of a deployment that has not begun
/// (<https://docs.aws.amazon.com/codedeploy/latest/APIReference/API_ListDeploymentTargets.html>).
const NOT_STARTED: &str = "DeploymentNotStartedException";
/// The states of a deployment that has ended.
pub const ENDED: [DeploymentStatus; 3] = [
    DeploymentStatus::Succeeded,
    DeploymentStatus::Failed,
    DeploymentStatus::Stopped,
];

/// A deployment to instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: Name,
    /// Blue/green: only its green targets are the group's.
    pub blue_green: bool,
    /// Made by CodeDeploy for instances that a deployment missed: it concerns its own targets only.
    pub auto_update: bool,
    /// When it was created, rounded down to a second.
    pub created_at: Option<Timestamp>,
    /// When it ended, rounded up to a second.
    pub completed_at: Option<Timestamp>,
    /// Whom it went to.
    pub targets: BTreeSet<Target>,
}

/// One deployment.
///
/// # Errors
/// When the call fails for good.
pub async fn get_deployment(
    client: &RegionClients,
    id: &Name,
) -> Result<DeploymentInfo, CallError> {
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

/// Reads a deployment; its targets are not listed yet.
///
/// # Errors
/// When CodeDeploy does not tell its id.
pub fn read_deployment(info: &DeploymentInfo) -> Result<Deployment, CallError> {
    let style = info.deployment_style().and_then(|s| s.deployment_type());
    let id = info.deployment_id().and_then(Name::read).ok_or_else(|| {
        CallError::incomplete("codedeploy:GetDeployment", "deployment", "deploymentId")
    })?;
    Ok(Deployment {
        id,
        blue_green: style == Some(&DeploymentType::BlueGreen),
        auto_update: info.creator() == Some(&DeploymentCreator::CodeDeployAutoUpdate),
        created_at: info.create_time().map(Timestamp::rounded_down),
        completed_at: info.complete_time().map(Timestamp::rounded_up),
        targets: BTreeSet::new(),
    })
}

/// Whether the deployment ended without having begun: no agent had anything to do with it.
pub fn never_began(info: &DeploymentInfo) -> bool {
    matches!(
        info.status(),
        Some(DeploymentStatus::Failed | DeploymentStatus::Stopped)
    ) && info.start_time().is_none()
}

/// Whether Auto Scaling made the deployment, for an instance that it launches or terminates.
pub fn by_auto_scaling(info: &DeploymentInfo) -> bool {
    let creator = info.creator().map_or("", DeploymentCreator::as_str);
    // The SDK's enum may be older than the creator.
    matches!(creator, "autoscaling" | "autoscalingTermination")
}

/// The ids of the group's deployments in these states (none means all), created since then, until there are `enough`.
///
/// # Errors
/// When the call fails for good.
pub async fn list_deployments(
    client: &RegionClients,
    name: &GroupName,
    statuses: &[DeploymentStatus],
    since: Option<Timestamp>,
    enough: usize,
) -> Result<Vec<String>, CallError> {
    const OPERATION: &str = "codedeploy:ListDeployments";
    let statuses = Some(statuses.to_vec()).filter(|statuses| !statuses.is_empty());
    let since = since.map(|since| TimeRange::builder().start(since.into()).build());
    let (statuses, since) = (&statuses, &since);
    first_pages(OPERATION, enough, |token| async move {
        let page = client
            .codedeploy
            .list_deployments()
            .application_name(name.application.as_str())
            .deployment_group_name(name.deployment_group.as_str())
            .set_include_only_statuses(statuses.clone())
            .set_create_time_range(since.clone())
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

/// Whom a deployment has to do with; nobody yet when it has not begun.
///
/// # Errors
/// When the call fails for good.
pub async fn list_all_targets(
    client: &RegionClients,
    deployment: &Deployment,
) -> Result<BTreeSet<Target>, CallError> {
    list_labelled(client, deployment, None).await
}

/// Whom it went to: of blue/green all but those that are labelled blue, since these go, and an answer may lack labels.
///
/// # Errors
/// When a call fails for good.
pub async fn list_targets(
    client: &RegionClients,
    deployment: &Deployment,
) -> Result<BTreeSet<Target>, CallError> {
    let all = list_all_targets(client, deployment).await?;
    if !deployment.blue_green || all.is_empty() {
        return Ok(all);
    }
    let blue = list_labelled(client, deployment, Some("Blue")).await?;
    Ok(all.difference(&blue).cloned().collect())
}

async fn list_labelled(
    client: &RegionClients,
    deployment: &Deployment,
    label: Option<&str>,
) -> Result<BTreeSet<Target>, CallError> {
    const OPERATION: &str = "codedeploy:ListDeploymentTargets";
    let filter = label.map(|label| {
        HashMap::from([(
            TargetFilterName::ServerInstanceLabel,
            vec![label.to_owned()],
        )])
    });
    let filter = &filter;
    let listed = pages(OPERATION, |token| async move {
        let page = client
            .codedeploy
            .list_deployment_targets()
            .deployment_id(deployment.id.as_str())
            .set_target_filters(filter.clone())
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| {
                CallError::new(OPERATION, format!("deployment {}", deployment.id), &error)
            })?;
        Ok((page.target_ids.unwrap_or_default(), page.next_token))
    })
    .await;
    match listed {
        Ok(ids) => Ok(ids.iter().map(|id| Target::read(id)).collect()),
        Err(error) if error.code == Code::Aws(NOT_STARTED.to_owned()) => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}
