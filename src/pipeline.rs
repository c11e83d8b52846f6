//! What a pipeline's execution deployed, by CodePipeline's own list of its actions.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_codepipeline::types::{
    ActionExecutionDetail, ActionExecutionFilter, ActionExecutionStatus, ActionOwner,
};
use tokio::time::{Instant, sleep};

use crate::accounts::{Accounts, NotOurs};
use crate::aws::RegionClients;
use crate::clock::Timestamp;
use crate::ids::{AccountId, Arn, GroupName, Name, Region};
use crate::paging::pages;
use crate::problem::{CallError, Code, Problem, Problems, Step};
use crate::trigger::Order;

/// CodePipeline's list may lag behind its event, each row by itself: it is asked again this often …
const LIST_LAG_PAUSE: Duration = Duration::from_secs(5);
/// … for this long.
const LIST_LAG_LIMIT: Duration = Duration::from_secs(30);
/// An execution succeeds at the end of its last action: a list whose last action ended this many seconds earlier lacks one.
const LAST_END_SECONDS: i64 = 30;
/// Action executions on one page
/// (<https://docs.aws.amazon.com/codepipeline/latest/APIReference/API_ListActionExecutions.html>).
const ACTIONS_PAGE: i32 = 100;

/// What an execution deployed.
#[derive(Debug, Default)]
pub struct Actions {
    /// The ids of the deployments to each group.
    pub wanted: BTreeMap<GroupName, Vec<Name>>,
    /// One for each action that makes no sense.
    pub problems: Problems,
    /// Why nothing is done about the others.
    pub reasons: Vec<String>,
}

impl Actions {
    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.problems.is_empty() && self.reasons.is_empty()
    }
}

/// Reads the execution's CodeDeploy actions that have ended: one that failed or was abandoned has deployed as well. When
/// the execution succeeded at a moment, its last action ended then.
///
/// # Errors
/// When CodePipeline does not tell.
pub async fn actions(
    client: &RegionClients,
    order: &Order,
    accounts: Accounts<'_>,
    pipeline: &Name,
    execution_id: &str,
    succeeded_at: Option<Timestamp>,
) -> Result<Actions, Problem> {
    let (rows, lag) = settled_rows(client, succeeded_at, pipeline, execution_id).await?;
    let mut actions = Actions::default();
    let lag = lag.and_then(|lag| lag.problem(pipeline, execution_id));
    actions.problems.extend(lag);
    // A try that deployed nothing does not hide the one before it, nor does one that still runs.
    let over = rows
        .iter()
        .filter(|row| has_ended(row) && (succeeded(row) || deployment(row).is_some()));
    for row in newest_per_action(over).values() {
        match read_action(row, order, accounts) {
            Ok((name, id)) => actions.wanted.entry(name).or_default().push(id),
            Err(NotOurs::Covered(reason)) => actions.reasons.push(reason),
            Err(NotOurs::Problem(problem)) => actions.problems.note(problem),
        }
    }
    if actions.is_empty() {
        actions.reasons.push(format!(
            "no CodeDeploy action deployed anything in execution {execution_id} of pipeline {pipeline}"
        ));
    }
    Ok(actions)
}

/// What shows that the list of an execution's actions is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lag {
    /// There is no row.
    NoAction,
    /// A CodeDeploy action has not ended.
    Unended,
    /// The execution succeeded long after the last of the listed actions ended. CodePipeline may have noticed that
    /// late, so that this alone is no problem.
    LateSuccess,
    /// The execution did not succeed, and none of the listed actions is CodeDeploy's: its row may be missing.
    NotOurs,
}

impl Lag {
    fn of(rows: &[ActionExecutionDetail], succeeded_at: Option<Timestamp>) -> Option<Self> {
        let ends = rows.iter().filter(|row| has_ended(row));
        let last_end = ends
            .filter_map(|row| Some(row.last_update_time()?.secs()))
            .max();
        let late = |at: Timestamp| {
            let at = i64::try_from(at.0).unwrap_or(i64::MAX);
            last_end.is_some_and(|end| end < at - LAST_END_SECONDS)
        };
        let newest = newest_per_action(rows.iter());
        if rows.is_empty() {
            Some(Self::NoAction)
        } else if !newest.values().all(|row| has_ended(row)) {
            Some(Self::Unended)
        } else if succeeded_at.is_none() && newest.is_empty() {
            Some(Self::NotOurs)
        } else {
            succeeded_at.is_some_and(late).then_some(Self::LateSuccess)
        }
    }

    fn problem(self, pipeline: &Name, execution_id: &str) -> Option<Problem> {
        let listed = match self {
            Self::NoAction => "no action",
            Self::Unended => "a CodeDeploy action that has not ended",
            Self::LateSuccess | Self::NotOurs => return None,
        };
        let message = format!(
            "CodePipeline still lists {listed} for execution {execution_id} of pipeline {pipeline} {} s after the event \
             of its end",
            LIST_LAG_LIMIT.as_secs(),
        );
        Some(Problem::new(
            Step::Deployments,
            Code::ActionsNotListed,
            message,
        ))
    }
}

/// The execution's rows, once the list is whole; at the latest after the limit, with what shows that it is not.
async fn settled_rows(
    client: &RegionClients,
    succeeded_at: Option<Timestamp>,
    pipeline: &Name,
    execution_id: &str,
) -> Result<(Vec<ActionExecutionDetail>, Option<Lag>), Problem> {
    let give_up = Instant::now() + LIST_LAG_LIMIT;
    loop {
        // An answer may come late: the question is what has to be late enough.
        let asked_at = Instant::now();
        let rows = list_actions(client, pipeline, execution_id)
            .await
            .map_err(|error| Problem::of_call(Step::Deployments, &error))?;
        let lag = Lag::of(&rows, succeeded_at);
        if lag.is_none() || asked_at >= give_up {
            return Ok((rows, lag));
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

/// The CodeDeploy actions. A retried stage has several rows for one action: the last one counts.
fn newest_per_action<'a>(
    rows: impl Iterator<Item = &'a ActionExecutionDetail>,
) -> BTreeMap<(&'a str, &'a str), &'a ActionExecutionDetail> {
    let mut newest: BTreeMap<_, &ActionExecutionDetail> = BTreeMap::new();
    for row in rows.filter(|row| is_codedeploy(row)) {
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

/// The deployment that an action made, if it made one.
fn deployment(row: &ActionExecutionDetail) -> Option<&str> {
    let result = row.output()?.execution_result()?;
    result.external_execution_id()
}

fn succeeded(row: &ActionExecutionDetail) -> bool {
    row.status() == Some(&ActionExecutionStatus::Succeeded)
}

/// The group and the deployment of an action that has ended.
fn read_action(
    row: &ActionExecutionDetail,
    order: &Order,
    accounts: Accounts<'_>,
) -> Result<(GroupName, Name), NotOurs> {
    let action = format!(
        "action {}/{}",
        row.stage_name().unwrap_or_default(),
        row.action_name().unwrap_or_default()
    );
    let lacks = |what: &str| {
        Problem::new(
            Step::Deployments,
            Code::IncompleteAction,
            format!("{action} has ended, but CodePipeline shows no {what} for it"),
        )
    };
    let input = row.input().ok_or_else(|| lacks("input"))?;
    let account = match input.role_arn() {
        None => accounts.home.account.clone(),
        Some(role) => Arn::read(role)
            .and_then(|arn| AccountId::read(arn.account))
            .ok_or_else(|| lacks("usable role"))?,
    };
    accounts.check(&action, &account)?;
    let configured = |key: &str| {
        input
            .resolved_configuration()
            .and_then(|configuration| configuration.get(key))
            .and_then(|value| Name::read(value))
            .ok_or_else(|| lacks(key))
    };
    let id = deployment(row)
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

#[cfg(test)]
mod tests {
    use aws_sdk_codepipeline::primitives::DateTime;
    use aws_sdk_codepipeline::types::{ActionCategory, ActionExecutionInput, ActionTypeId};

    use super::*;

    fn row(id: &str, status: ActionExecutionStatus, seconds: i64) -> ActionExecutionDetail {
        let kind = ActionTypeId::builder()
            .owner(ActionOwner::Aws)
            .category(ActionCategory::Deploy)
            .provider("CodeDeploy")
            .version("1")
            .build()
            .unwrap();
        ActionExecutionDetail::builder()
            .stage_name("Deploy")
            .action_name("Deploy")
            .action_execution_id(id)
            .status(status)
            .input(ActionExecutionInput::builder().action_type_id(kind).build())
            .last_update_time(DateTime::from_secs(seconds))
            .build()
    }

    #[test]
    fn a_success_long_after_the_last_listed_end_means_that_a_row_is_missing() {
        let rows = [row("a", ActionExecutionStatus::Succeeded, 100)];
        let at = |seconds| Lag::of(&rows, Some(Timestamp(seconds)));
        assert_eq!(at(130), None);
        assert_eq!(at(131), Some(Lag::LateSuccess));
        assert_eq!(
            Lag::of(&rows, None),
            None,
            "only a success has to be the last"
        );
        assert_eq!(Lag::of(&[], None), Some(Lag::NoAction));
        let open = [row("a", ActionExecutionStatus::InProgress, 100)];
        assert_eq!(Lag::of(&open, None), Some(Lag::Unended));
    }

    #[test]
    fn the_newest_row_counts_wherever_it_stands_in_the_list() {
        let row = |id: &str, seconds| row(id, ActionExecutionStatus::Succeeded, seconds);
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
