//! Waits until no other deployment of a group runs: their lifecycle events must not meet a restart.

use std::time::Duration;

use aws_sdk_codedeploy::types::DeploymentStatus;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::aws::RegionClients;
use crate::clock::Clock;
use crate::deployments::{by_auto_scaling, get_deployments, list_deployments};
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

/// The id of a deployment of the group that still runs, at the latest at the limit; `None` when none does. With
/// `patient` false it is asked once.
///
/// # Errors
/// When CodeDeploy does not tell.
pub async fn running_deployment(
    client: &RegionClients,
    group: &GroupName,
    clock: &Clock,
    patient: bool,
) -> Result<Option<String>, Problem> {
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
        let Some(id) = running else {
            return Ok(None);
        };
        let now = Instant::now();
        if now >= give_up {
            return Ok(Some(id));
        }
        tracing::info!(deployment.id = %id, "waiting for deployment {id} of {group}");
        sleep_until((now + PAUSE).min(give_up)).await;
    }
}

async fn look(client: &RegionClients, group: &GroupName) -> Result<Option<String>, CallError> {
    let ids = list_deployments(client, group, &UNENDED, usize::MAX).await?;
    if ids.is_empty() {
        return Ok(None);
    }
    let infos = get_deployments(client, group, &ids).await?;
    // One that is listed but not described counts: nobody says that it is Auto Scaling's.
    let not_counted: Vec<&str> = infos
        .iter()
        .filter(|info| by_auto_scaling(info))
        .filter_map(|info| info.deployment_id())
        .collect();
    Ok(ids
        .into_iter()
        .filter(|id| !not_counted.contains(&id.as_str()))
        .min())
}
