//! From an order to the deployment groups it concerns: which deployments, of which groups, since when an
//! agent counts as fresh, and whether another deployment of the group is still running.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_codedeploy::types::{
    ComputePlatform, DeploymentCreator, DeploymentInfo, DeploymentStatus, DeploymentType,
};
use aws_sdk_codepipeline::types::{
    ActionExecutionDetail, ActionExecutionFilter, ActionExecutionStatus, ActionOwner,
};
use futures_util::future::{join_all, try_join_all};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::aws::{CallError, Clients, RegionClients, first_pages, pages};
use crate::clock::{Clock, Timestamp};
use crate::outcome::Problem;
use crate::settings::is_region;
use crate::trigger::{Home, Order, Subject};

/// CodePipeline's list may lag behind its event: it is asked again this often …
const LIST_LAG_PAUSE: Duration = Duration::from_secs(5);
/// … for this long.
const LIST_LAG_LIMIT: Duration = Duration::from_secs(30);
/// Action executions on one page (`API_ListActionExecutions`).
const ACTIONS_PAGE: i32 = 100;
/// Other deployments of the group are asked for this often …
const QUIET_PAUSE: Duration = Duration::from_secs(10);
/// … and waited for this long.
const QUIET_LIMIT: Duration = Duration::from_secs(120);
/// A single look for other deployments may take this long, retries included.
const ONLY_LOOK: Duration = Duration::from_secs(30);
/// Deployment ids in one `BatchGetDeployments` (`API_BatchGetDeployments`).
const DEPLOYMENTS_BATCH: usize = 25;
/// Of the successful deployments that `ListDeployments` gives, so many are looked at to find the last one.
const RECENT_DEPLOYMENTS: usize = 100;

/// A deployment group, wherever it lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupName {
    /// The account, twelve digits.
    pub account: String,
    /// The region.
    pub region: String,
    /// The CodeDeploy application.
    pub application: String,
    /// The deployment group.
    pub deployment_group: String,
}

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
    /// The group when its instances cannot be found out.
    pub fn unresolved(self, problem: Problem) -> Unresolved {
        Unresolved {
            name: self.name,
            deployment_ids: self.deployments.into_iter().map(|d| d.id).collect(),
            triggered_at: Some(self.triggered_at),
            problem,
        }
    }
}

/// A deployment to instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: String,
    /// Blue/green: only its green targets are the group's.
    pub blue_green: bool,
    /// Made by CodeDeploy for instances that a deployment missed: it concerns its own targets only.
    pub auto_update: bool,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
}

/// A deployment group that is concerned but could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Its name.
    pub name: GroupName,
    /// The deployments as far as they are known.
    pub deployment_ids: Vec<String>,
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
    /// These deployment groups, and what kept others from being found.
    Groups {
        /// The groups, by name.
        groups: Vec<Result<Group, Unresolved>>,
        /// A problem that belongs to no group.
        problem: Option<Problem>,
    },
}

/// Finds the deployment groups that an order concerns. Never fails: what AWS refuses becomes a problem.
/// What has no answer by then is a problem of its own, so that one region that hangs does not stop the rest.
pub async fn find(clients: &Clients, order: &Order, home: &Home, by: Instant) -> Found {
    if order.account != home.account {
        return Found::Groups {
            groups: Vec::new(),
            problem: Some(other_account("the event", &order.account, home)),
        };
    }
    let group_in_order = |application: &str, deployment_group: &str| GroupName {
        account: order.account.clone(),
        region: order.region.clone(),
        application: application.to_owned(),
        deployment_group: deployment_group.to_owned(),
    };
    let (wanted, problem) = match &order.subject {
        Subject::Pipeline {
            pipeline,
            execution_id,
        } => match timeout_at(
            by,
            of_pipeline(clients, order, home, pipeline, execution_id),
        )
        .await
        .unwrap_or_else(|_| Err(Problem::out_of_time("deployments")))
        {
            Ok(Actions::None(reason)) => return Found::Nothing(reason),
            Ok(Actions::Some { wanted, problem }) => (wanted, problem),
            Err(problem) => (BTreeMap::new(), Some(problem)),
        },
        Subject::Deployment {
            application,
            deployment_group,
            deployment_id,
        } => (
            BTreeMap::from([(
                group_in_order(application, deployment_group),
                vec![deployment_id.clone()],
            )]),
            None,
        ),
        Subject::Request {
            application,
            deployment_group,
            deployment_id,
        } => (
            BTreeMap::from([(
                group_in_order(application, deployment_group),
                deployment_id.iter().cloned().collect(),
            )]),
            None,
        ),
    };
    let resolved = join_all(
        wanted
            .into_iter()
            .map(|(name, ids)| resolve(clients, order, name, ids, by)),
    )
    .await;

    let mut groups = Vec::new();
    let mut reasons = Vec::new();
    for one in resolved {
        match one {
            Resolved::Ours(group) => groups.push(Ok(group)),
            Resolved::Unresolved(unresolved) => groups.push(Err(unresolved)),
            Resolved::NotOurs(reason) => reasons.push(reason),
        }
    }
    if groups.is_empty() && problem.is_none() {
        return Found::Nothing(reasons.join("; "));
    }
    Found::Groups { groups, problem }
}

fn other_account(what: &str, account: &str, home: &Home) -> Problem {
    Problem::new(
        "deployments",
        "OtherAccount",
        format!(
            "{what} belongs to account {account}, this function to {}; no call was made",
            home.account
        ),
        format!("deploy this function in account {account} too"),
    )
}

/// What a pipeline's execution deployed.
enum Actions {
    /// Nothing of ours, and why.
    None(String),
    /// Deployment ids by group, and what could not be read.
    Some {
        wanted: BTreeMap<GroupName, Vec<String>>,
        problem: Option<Problem>,
    },
}

async fn of_pipeline(
    clients: &Clients,
    order: &Order,
    home: &Home,
    pipeline: &str,
    execution_id: &str,
) -> Result<Actions, Problem> {
    let client = clients.in_region(&order.region);
    let give_up = Instant::now() + LIST_LAG_LIMIT;
    let rows = loop {
        let rows = list_actions(&client, pipeline, execution_id)
            .await
            .map_err(|error| Problem::of_call("deployments", &error))?;
        let newest = newest_per_action(rows.iter().filter(|row| is_codedeploy(row)));
        // A status that is newer than this function is no end either.
        let settled = newest.values().all(|row| {
            matches!(
                row.status(),
                Some(
                    ActionExecutionStatus::Succeeded
                        | ActionExecutionStatus::Failed
                        | ActionExecutionStatus::Abandoned
                )
            )
        });
        if !rows.is_empty() && settled {
            break newest.into_values().cloned().collect::<Vec<_>>();
        }
        if Instant::now() >= give_up {
            return Err(Problem::new(
                "deployments",
                "ActionsNotListed",
                format!(
                    "CodePipeline still lists {} for execution {execution_id} of pipeline {pipeline} \
                     {} s after its success event",
                    if rows.is_empty() {
                        "no action"
                    } else {
                        "a CodeDeploy action that has not ended"
                    },
                    LIST_LAG_LIMIT.as_secs(),
                ),
                "repeat by hand with the application and the deployment group",
            ));
        }
        tracing::info!(
            execution.id = %execution_id,
            "the list of execution {execution_id} lags behind its event: asking again"
        );
        sleep(LIST_LAG_PAUSE).await;
    };
    let succeeded: Vec<&ActionExecutionDetail> = rows
        .iter()
        .filter(|row| row.status() == Some(&ActionExecutionStatus::Succeeded))
        .collect();
    if succeeded.is_empty() {
        return Ok(Actions::None(format!(
            "no CodeDeploy action succeeded in execution {execution_id} of pipeline {pipeline}"
        )));
    }

    let mut wanted: BTreeMap<GroupName, Vec<String>> = BTreeMap::new();
    let mut problem: Option<Problem> = None;
    for row in succeeded {
        match read_action(row, order, home) {
            Ok((name, id)) => wanted.entry(name).or_default().push(id),
            Err(found) => problem = Some(found.and(problem)),
        }
    }
    Ok(Actions::Some { wanted, problem })
}

async fn list_actions(
    client: &RegionClients,
    pipeline: &str,
    execution_id: &str,
) -> Result<Vec<ActionExecutionDetail>, CallError> {
    const OPERATION: &str = "codepipeline:ListActionExecutions";
    pages(OPERATION, |token| async move {
        let page = client
            .codepipeline
            .list_action_executions()
            .pipeline_name(pipeline)
            .filter(
                ActionExecutionFilter::builder()
                    .pipeline_execution_id(execution_id)
                    .build(),
            )
            .max_results(ACTIONS_PAGE)
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| CallError::new(OPERATION, format!("pipeline {pipeline}"), &error))?;
        Ok((
            page.action_execution_details.unwrap_or_default(),
            page.next_token,
        ))
    })
    .await
}

/// Whether the row is a CodeDeploy action to instances; deployments to ECS have a provider of their own.
fn is_codedeploy(row: &ActionExecutionDetail) -> bool {
    let kind = row.input().and_then(|input| input.action_type_id());
    kind.is_some_and(|kind| {
        *kind.owner() == ActionOwner::Aws
            && kind.category().as_str() == "Deploy"
            && kind.provider() == "CodeDeploy"
    })
}

/// A retried stage has several rows for one action: the last one counts.
fn newest_per_action<'a>(
    rows: impl Iterator<Item = &'a ActionExecutionDetail>,
) -> BTreeMap<(&'a str, &'a str), &'a ActionExecutionDetail> {
    let mut newest: BTreeMap<_, &ActionExecutionDetail> = BTreeMap::new();
    for row in rows {
        let key = (
            row.stage_name().unwrap_or_default(),
            row.action_name().unwrap_or_default(),
        );
        let time = |row: &ActionExecutionDetail| row.last_update_time().copied();
        let slot = newest.entry(key).or_insert(row);
        if time(row) > time(slot) {
            *slot = row;
        }
    }
    newest
}

/// The group and the deployment of a succeeded action.
fn read_action(
    row: &ActionExecutionDetail,
    order: &Order,
    home: &Home,
) -> Result<(GroupName, String), Problem> {
    let action = format!(
        "action {}/{}",
        row.stage_name().unwrap_or_default(),
        row.action_name().unwrap_or_default()
    );
    let lacks = |what: &str| {
        Problem::new(
            "deployments",
            "IncompleteAction",
            format!("{action} succeeded, but CodePipeline shows no {what} for it"),
            "repeat by hand with the application and the deployment group",
        )
    };
    let input = row.input().ok_or_else(|| lacks("input"))?;
    let account = match input.role_arn() {
        None => home.account.clone(),
        Some(role) => role.split(':').nth(4).unwrap_or_default().to_owned(),
    };
    if account != home.account {
        return Err(other_account(&action, &account, home));
    }
    let configured = |key: &str| {
        input
            .resolved_configuration()
            .and_then(|configuration| configuration.get(key))
            .filter(|value| !value.is_empty())
            .cloned()
            .ok_or_else(|| lacks(key))
    };
    let id = row
        .output()
        .and_then(|output| output.execution_result())
        .and_then(|result| result.external_execution_id())
        .filter(|id| !id.is_empty())
        .ok_or_else(|| lacks("deployment id"))?;
    let region = match input.region() {
        None => order.region.clone(),
        Some(region) if is_region(region) => region.to_owned(),
        Some(_) => return Err(lacks("usable region")),
    };
    Ok((
        GroupName {
            account,
            region,
            application: configured("ApplicationName")?,
            deployment_group: configured("DeploymentGroupName")?,
        },
        id.to_owned(),
    ))
}

/// What a wanted group turned out to be.
enum Resolved {
    Ours(Group),
    Unresolved(Unresolved),
    NotOurs(String),
}

/// Reads the group's deployments. Without ids, the last successful one is meant.
async fn resolve(
    clients: &Clients,
    order: &Order,
    name: GroupName,
    mut ids: Vec<String>,
    by: Instant,
) -> Resolved {
    ids.sort();
    ids.dedup();
    let client = clients.in_region(&name.region);
    let get = async {
        if ids.is_empty() {
            return last_successful(&client, &name).await;
        }
        try_join_all(ids.iter().map(|id| get_deployment(&client, id)))
            .await
            .map_err(|error| Problem::of_call("deployments", &error))
    };
    let deployments = timeout_at(by, get)
        .await
        .unwrap_or_else(|_| Err(Problem::out_of_time("deployments")));
    match deployments.and_then(|infos| read_group(order, &name, infos)) {
        Ok(Ok(group)) => Resolved::Ours(group),
        Ok(Err(reason)) => Resolved::NotOurs(reason),
        Err(problem) => Resolved::Unresolved(Unresolved {
            name,
            deployment_ids: ids,
            triggered_at: None,
            problem,
        }),
    }
}

async fn get_deployment(client: &RegionClients, id: &str) -> Result<DeploymentInfo, CallError> {
    const OPERATION: &str = "codedeploy:GetDeployment";
    client
        .codedeploy
        .get_deployment()
        .deployment_id(id)
        .send()
        .await
        .map_err(|error| CallError::new(OPERATION, format!("deployment {id}"), &error))?
        .deployment_info
        .ok_or_else(|| CallError::incomplete(OPERATION, id, "deploymentInfo"))
}

/// The group, or why it is none of ours.
fn read_group(
    order: &Order,
    name: &GroupName,
    infos: Vec<DeploymentInfo>,
) -> Result<Result<Group, String>, Problem> {
    let mut deployments = Vec::new();
    let mut reasons = Vec::new();
    for info in &infos {
        let id = info.deployment_id().unwrap_or_default();
        if !belongs_to(info, name) {
            return Err(Problem::new(
                "deployments",
                "ForeignDeployment",
                format!(
                    "deployment {id} belongs to {}/{}, not to {}/{}",
                    info.application_name().unwrap_or("?"),
                    info.deployment_group_name().unwrap_or("?"),
                    name.application,
                    name.deployment_group
                ),
                "repeat by hand with the deployment's own application and deployment group",
            ));
        }
        match not_ours(info) {
            Some(reason) => reasons.push(reason),
            None => deployments.push(read_deployment(info)),
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
    info.application_name() == Some(&name.application)
        && info.deployment_group_name() == Some(&name.deployment_group)
}

fn read_deployment(info: &DeploymentInfo) -> Deployment {
    let style = info.deployment_style().and_then(|s| s.deployment_type());
    Deployment {
        id: info.deployment_id().unwrap_or_default().to_owned(),
        blue_green: style == Some(&DeploymentType::BlueGreen),
        auto_update: info.creator() == Some(&DeploymentCreator::CodeDeployAutoUpdate),
        completed_at: info.complete_time().map(Timestamp::rounded_up),
    }
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
fn by_auto_scaling(info: &DeploymentInfo) -> bool {
    let creator = info.creator().map_or("", DeploymentCreator::as_str);
    // The SDK's enum may be older than the creator.
    matches!(creator, "autoscaling" | "autoscalingTermination")
}

/// The last deployment of the group that succeeded and was made by a person or a pipeline.
async fn last_successful(
    client: &RegionClients,
    name: &GroupName,
) -> Result<Vec<DeploymentInfo>, Problem> {
    let call = |error: CallError| Problem::of_call("deployments", &error);
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
            "deployments",
            "NoDeployment",
            format!(
                "{}/{} has no successful deployment among its last {RECENT_DEPLOYMENTS}",
                name.application, name.deployment_group
            ),
            "give a deploymentId",
        )),
    }
}

async fn list_deployments(
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
            .application_name(&name.application)
            .deployment_group_name(&name.deployment_group)
            .set_include_only_statuses(Some(statuses.to_vec()))
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| CallError::new(OPERATION, group_resource(name), &error))?;
        Ok((page.deployments.unwrap_or_default(), page.next_token))
    })
    .await
}

/// How a group is called in a failed call.
pub fn group_resource(name: &GroupName) -> String {
    format!(
        "deployment group {}/{}",
        name.application, name.deployment_group
    )
}

async fn get_deployments(
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
            .map_err(|error| CallError::new(OPERATION, group_resource(name), &error))
    });
    Ok(try_join_all(batches).await?.into_iter().flatten().collect())
}

/// Waits until no other deployment of the group runs: their lifecycle events must not meet a restart.
/// Gives the id of one that still runs at the limit. With `patient` false it asks once.
///
/// # Errors
/// When CodeDeploy does not tell.
pub async fn quiet(
    clients: &Clients,
    group: &Group,
    clock: &Clock,
    patient: bool,
) -> Result<Option<String>, Problem> {
    let client = clients.in_region(&group.name.region);
    // A call that does not end must not outlast this step by much.
    let (patience, last_look) = match patient {
        true => (QUIET_LIMIT, QUIET_PAUSE),
        false => (Duration::ZERO, ONLY_LOOK),
    };
    let give_up = (Instant::now() + patience).min(clock.until());
    loop {
        let by = (give_up + last_look).min(clock.until());
        let running = timeout_at(by, running_deployment(&client, group))
            .await
            .unwrap_or_else(|_| {
                let resource = group_resource(&group.name);
                Err(CallError::out_of_time(
                    "codedeploy:ListDeployments",
                    resource,
                ))
            })
            .map_err(|error| Problem::of_call("quiet", &error))?;
        let Some(id) = running else {
            return Ok(None);
        };
        let now = Instant::now();
        if now >= give_up {
            return Ok(Some(id));
        }
        tracing::info!(
            deployment.id = %id,
            "waiting for deployment {id} of {}/{}",
            group.name.application,
            group.name.deployment_group
        );
        sleep_until((now + QUIET_PAUSE).min(give_up)).await;
    }
}

async fn running_deployment(
    client: &RegionClients,
    group: &Group,
) -> Result<Option<String>, CallError> {
    let statuses = [
        DeploymentStatus::Created,
        DeploymentStatus::Queued,
        DeploymentStatus::InProgress,
        DeploymentStatus::Baking,
        DeploymentStatus::Ready,
    ];
    let ids = list_deployments(client, &group.name, &statuses, usize::MAX).await?;
    if ids.is_empty() {
        return Ok(None);
    }
    let infos = get_deployments(client, &group.name, &ids).await?;
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

#[cfg(test)]
mod tests {
    use aws_sdk_codepipeline::primitives::DateTime;

    use super::*;

    #[test]
    fn the_newest_row_counts_wherever_it_stands_in_the_list() {
        let row = |id: &str, seconds| {
            ActionExecutionDetail::builder()
                .stage_name("Deploy")
                .action_name("Deploy")
                .action_execution_id(id)
                .last_update_time(DateTime::from_secs(seconds))
                .build()
        };
        for rows in [
            [row("old", 1), row("new", 2)],
            [row("new", 2), row("old", 1)],
        ] {
            let newest = newest_per_action(rows.iter());
            let ids: Vec<_> = newest
                .values()
                .filter_map(|row| row.action_execution_id())
                .collect();
            assert_eq!(ids, ["new"]);
        }
    }
}
