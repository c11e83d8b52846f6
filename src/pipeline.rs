//! What a pipeline's execution deployed, by CodePipeline's own list of its actions.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_codepipeline::types::{
    ActionExecutionDetail, ActionExecutionFilter, ActionExecutionStatus, ActionOwner,
};
use tokio::time::{Instant, sleep};

use crate::aws::{RegionClients, pages};
use crate::ids::{AccountId, Arn, GroupName, Name, Region};
use crate::problem::{CallError, Code, Problem, Problems, Step};
use crate::trigger::{Home, Order};

/// CodePipeline's list may lag behind its event: it is asked again this often …
const LIST_LAG_PAUSE: Duration = Duration::from_secs(5);
/// … for this long.
const LIST_LAG_LIMIT: Duration = Duration::from_secs(30);
/// Action executions on one page
/// (<https://docs.aws.amazon.com/codepipeline/latest/APIReference/API_ListActionExecutions.html>).
const ACTIONS_PAGE: i32 = 100;

/// What an execution deployed.
pub enum Actions {
    /// Nothing of ours, and why.
    None(String),
    /// Deployments by group, and what could not be read.
    Some {
        /// The ids of the deployments to each group.
        wanted: BTreeMap<GroupName, Vec<Name>>,
        /// One for each action that makes no sense.
        problems: Problems,
    },
}

/// Reads the execution's CodeDeploy actions that succeeded.
///
/// # Errors
/// When CodePipeline does not tell, or its list does not settle.
pub async fn actions(
    client: &RegionClients,
    order: &Order,
    home: &Home,
    pipeline: &Name,
    execution_id: &str,
) -> Result<Actions, Problem> {
    let rows = settled_rows(client, pipeline, execution_id).await?;
    let succeeded: Vec<&ActionExecutionDetail> = rows
        .iter()
        .filter(|row| row.status() == Some(&ActionExecutionStatus::Succeeded))
        .collect();
    if succeeded.is_empty() {
        return Ok(Actions::None(format!(
            "no CodeDeploy action succeeded in execution {execution_id} of pipeline {pipeline}"
        )));
    }
    let mut wanted: BTreeMap<GroupName, Vec<Name>> = BTreeMap::new();
    let mut problems = Problems::default();
    for row in succeeded {
        match read_action(row, order, home) {
            Ok((name, id)) => wanted.entry(name).or_default().push(id),
            Err(problem) => problems.note(problem),
        }
    }
    Ok(Actions::Some { wanted, problems })
}

/// The last row of each CodeDeploy action, once all of them have ended.
async fn settled_rows(
    client: &RegionClients,
    pipeline: &Name,
    execution_id: &str,
) -> Result<Vec<ActionExecutionDetail>, Problem> {
    let give_up = Instant::now() + LIST_LAG_LIMIT;
    loop {
        let rows = list_actions(client, pipeline, execution_id)
            .await
            .map_err(|error| Problem::of_call(Step::Deployments, &error))?;
        let newest = newest_per_action(rows.iter().filter(|row| is_codedeploy(row)));
        if !rows.is_empty() && newest.values().all(|row| has_ended(row)) {
            return Ok(newest.into_values().cloned().collect());
        }
        if Instant::now() >= give_up {
            let listed = match rows.is_empty() {
                true => "no action",
                false => "a CodeDeploy action that has not ended",
            };
            return Err(Problem::new(
                Step::Deployments,
                Code::ActionsNotListed,
                format!(
                    "CodePipeline still lists {listed} for execution {execution_id} of pipeline {pipeline} \
                     {} s after its success event",
                    LIST_LAG_LIMIT.as_secs(),
                ),
            ));
        }
        tracing::info!(
            execution.id = %execution_id,
            "the list of execution {execution_id} lags behind its event: asking again"
        );
        sleep(LIST_LAG_PAUSE).await;
    }
}

async fn list_actions(
    client: &RegionClients,
    pipeline: &Name,
    execution_id: &str,
) -> Result<Vec<ActionExecutionDetail>, CallError> {
    const OPERATION: &str = "codepipeline:ListActionExecutions";
    pages(OPERATION, |token| async move {
        let page = client
            .codepipeline
            .list_action_executions()
            .pipeline_name(pipeline.as_str())
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

/// A status that is newer than this function is no end.
fn has_ended(row: &ActionExecutionDetail) -> bool {
    matches!(
        row.status(),
        Some(
            ActionExecutionStatus::Succeeded
                | ActionExecutionStatus::Failed
                | ActionExecutionStatus::Abandoned
        )
    )
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
) -> Result<(GroupName, Name), Problem> {
    let action = format!(
        "action {}/{}",
        row.stage_name().unwrap_or_default(),
        row.action_name().unwrap_or_default()
    );
    let lacks = |what: &str| {
        Problem::new(
            Step::Deployments,
            Code::IncompleteAction,
            format!("{action} succeeded, but CodePipeline shows no {what} for it"),
        )
    };
    let input = row.input().ok_or_else(|| lacks("input"))?;
    let account = match input.role_arn() {
        None => home.account.clone(),
        Some(role) => Arn::read(role)
            .and_then(|arn| AccountId::read(arn.account))
            .ok_or_else(|| lacks("usable role"))?,
    };
    if account != home.account {
        return Err(other_account(&action, &account, home));
    }
    let configured = |key: &str| {
        input
            .resolved_configuration()
            .and_then(|configuration| configuration.get(key))
            .and_then(|value| Name::read(value))
            .ok_or_else(|| lacks(key))
    };
    let id = row
        .output()
        .and_then(|output| output.execution_result())
        .and_then(|result| result.external_execution_id())
        .and_then(Name::read)
        .ok_or_else(|| lacks("deployment id"))?;
    let region = match input.region() {
        None => order.region.clone(),
        Some(region) => Region::read(region).ok_or_else(|| lacks("usable region"))?,
    };
    let group = GroupName {
        account,
        region,
        application: configured("ApplicationName")?,
        deployment_group: configured("DeploymentGroupName")?,
    };
    Ok((group, id))
}

/// What belongs to another account is told, and nothing is asked there.
pub fn other_account(what: &str, account: &AccountId, home: &Home) -> Problem {
    Problem::new(
        Step::Deployments,
        Code::OtherAccount(account.clone()),
        format!(
            "{what} belongs to account {account}, this function to {}; no call was made",
            home.account
        ),
    )
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
