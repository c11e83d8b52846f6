//! Waits until no other deployment of a group runs: their lifecycle events must not meet a restart.

use std::time::Duration;

use aws_sdk_codedeploy::types::DeploymentStatus;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::aws::RegionClients;
use crate::clock::Clock;
use crate::decision::Running;
use crate::deployments::{
    by_auto_scaling, get_deployments, list_all_targets, list_deployments, read_deployment,
};
use crate::ids::GroupName;
use crate::problem::{CallError, Problem, Step};

/// Other deployments of the group are asked for this often …
const PAUSE: Duration = Duration::from_secs(10);
/// … and waited for this long.
const LIMIT: Duration = Duration::from_secs(120);
/// A single look for other deployments may take this long, retries included.
const ONLY_LOOK: Duration = Duration::from_secs(30);

/// The states of a deployment that has not ended.
const UNENDED: [DeploymentStatus; 5] = [
    DeploymentStatus::Created,
    DeploymentStatus::Queued,
    DeploymentStatus::InProgress,
    DeploymentStatus::Baking,
    DeploymentStatus::Ready,
];

/// What still runs in the group: waits, at most for the limit, until there is nothing that concerns the whole group. With
/// `patient` false it is asked once.
///
/// # Errors
/// When CodeDeploy does not tell.
pub async fn running_deployments(
    client: &RegionClients,
    group: &GroupName,
    clock: &Clock,
    patient: bool,
) -> Result<Running, Problem> {
    // A call that does not end must not outlast this step by much.
    let (patience, last_look) = match patient {
        true => (LIMIT, PAUSE),
        false => (Duration::ZERO, ONLY_LOOK),
    };
    let give_up = (Instant::now() + patience).min(clock.until());
    loop {
        let by = (give_up + last_look).min(clock.until());
        let running = timeout_at(by, look(client, group))
            .await
            .unwrap_or_else(|_| {
                let resource = format!("deployment group {group}");
                Err(CallError::out_of_time(
                    "codedeploy:ListDeployments",
                    resource,
                ))
            })
            .map_err(|error| Problem::of_call(Step::Quiet, &error))?;
        let now = Instant::now();
        let Some(id) = running.everywhere.as_ref().filter(|_| now < give_up) else {
            return Ok(running);
        };
        tracing::info!(deployment.id = %id, "waiting for deployment {id} of {group}");
        sleep_until((now + PAUSE).min(give_up)).await;
    }
}

async fn look(client: &RegionClients, group: &GroupName) -> Result<Running, CallError> {
    let mut running = Running::default();
    let ids = list_deployments(client, group, &UNENDED, None, usize::MAX).await?;
    let mut infos = match ids.is_empty() {
        true => Vec::new(),
        false => get_deployments(client, group, &ids).await?,
    };
    infos.sort_by(|one, other| one.deployment_id().cmp(&other.deployment_id()));
    for info in &infos {
        if by_auto_scaling(info) {
            continue;
        }
        let mut deployment = read_deployment(info)?;
        let id = deployment.id.to_string();
        if deployment.auto_update {
            // The blue ones too: on these it runs lifecycle events as well.
            deployment.targets = list_all_targets(client, &deployment).await?;
        }
        match deployment.targets.is_empty() {
            // CodeDeploy does not say yet whom it will go to.
            true => running.everywhere = running.everywhere.or(Some(id)),
            false => running.at.extend(
                deployment
                    .targets
                    .into_iter()
                    .map(|target| (target, id.clone())),
            ),
        }
    }
    // One that is listed but not described counts: nobody says that it is Auto Scaling's.
    let described = |id: &&String| infos.iter().any(|info| info.deployment_id() == Some(id));
    let unknown = ids.iter().filter(|id| !described(id)).min();
    running.everywhere = running.everywhere.or(unknown.cloned());
    Ok(running)
}
