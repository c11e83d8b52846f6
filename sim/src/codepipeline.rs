//! CodePipeline: `ListActionExecutions`.

use serde_json::{Map, Value, json};

use crate::service::{Answered, Context, Input, object, page};
use crate::state::{Action, Execution};
use crate::wire::{Failure, uuid};

/// Rows in one page (API_ListActionExecutions).
const MAX_RESULTS: (i64, i64) = (1, 100);
/// Characters of a pipeline's name (API_ListActionExecutions).
const NAME_LIMIT: usize = 100;
/// Seconds that an action took, as its start time tells.
const ACTION_TOOK: f64 = 30.0;

pub(crate) fn list_action_executions(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let name = pipeline_name(input)?;
    let wanted = wanted_execution(input)?;
    let size = input.page_size(
        "maxResults",
        MAX_RESULTS,
        context.state.page_sizes.action_executions,
        context.state.page_shortfall,
    )?;
    let token = input.text("nextToken")?;

    let Some(pipeline) = context
        .here()
        .pipelines
        .iter()
        .find(|pipeline| pipeline.name == name)
        .cloned()
    else {
        let account = context.state.account.clone();
        let message = format!("Account '{account}' does not have a pipeline with name '{name}'");
        return Err(Failure::new("PipelineNotFoundException", message));
    };
    let executions: Vec<&Execution> = match wanted {
        None => pipeline.executions.iter().collect(),
        Some(id) => match pipeline
            .executions
            .iter()
            .find(|execution| execution.id == id)
        {
            Some(execution) => vec![execution],
            None => {
                let message =
                    format!("Cannot find pipeline execution with id '{id}' for pipeline '{name}'");
                return Err(Failure::new("PipelineExecutionNotFoundException", message));
            }
        },
    };

    let mut rows: Vec<(f64, Value)> = Vec::new();
    for execution in executions {
        for (number, action) in execution.actions.iter().enumerate() {
            if action.visible_at.is_none_or(|time| time <= context.at) {
                rows.push((action.updated_at, row(context, execution, number, action)));
            }
        }
    }
    // AWS lists the newest first.
    rows.sort_by(|one, other| other.0.total_cmp(&one.0));
    let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    let query = format!("ListActionExecutions {} {name} {wanted:?}", context.region);
    let Some(page) = page(rows, size, token, &query) else {
        return Err(Failure::new(
            "InvalidNextTokenException",
            "The next token is not valid",
        ));
    };
    Ok(object(
        json!({ "actionExecutionDetails": page.items, "nextToken": page.next }),
    ))
}

fn pipeline_name<'a>(input: &Input<'a>) -> Result<&'a str, Failure> {
    let Some(name) = input.text("pipelineName")? else {
        return Err(input.refused("pipelineName", "null", "Member must not be null"));
    };
    let allowed = |character: char| character.is_ascii_alphanumeric() || ".@-_".contains(character);
    if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(allowed) {
        let constraint = "Member must satisfy regular expression pattern: [A-Za-z0-9.@\\-_]+";
        return Err(input.refused("pipelineName", name, constraint));
    }
    Ok(name)
}

/// The execution that the filter names.
fn wanted_execution<'a>(input: &Input<'a>) -> Result<Option<&'a str>, Failure> {
    let Some(filter) = input.structure("filter")? else {
        return Ok(None);
    };
    let by_id = filter.text("pipelineExecutionId")?;
    let latest = match filter.structure("latestInPipelineExecution")? {
        Some(latest) => latest.text("pipelineExecutionId")?,
        None => None,
    };
    let wanted = by_id.or(latest);
    if let Some(id) = wanted.filter(|id| !is_uuid(id)) {
        let constraint = "Member must satisfy regular expression pattern: \
                          [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
        return Err(input.refused("filter.pipelineExecutionId", id, constraint));
    }
    Ok(wanted)
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let hexadecimal = |group: &str| {
        group
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.into_iter().all(hexadecimal)
}

fn row(context: &Context<'_>, execution: &Execution, number: usize, action: &Action) -> Value {
    let done = action.updated_at <= context.at;
    let status = if done {
        action.status.as_str()
    } else {
        "InProgress"
    };
    let updated = if done { action.updated_at } else { context.at };
    let configuration = configuration(action);
    let mut input = json!({
        "actionTypeId": {
            "category": action.category, "owner": action.owner, "provider": action.provider, "version": "1",
        },
        "region": action.region.as_deref().unwrap_or(context.region),
        "inputArtifacts": [
            { "name": "SourceArtifact", "s3location": { "bucket": "artifact-bucket", "key": "pipeline/SourceArti/key" } },
        ],
        "namespace": "DeployVariables",
    });
    if let Some(configuration) = configuration {
        input["configuration"] = configuration.clone();
        input["resolvedConfiguration"] = configuration;
    }
    if let Some(role) = &action.role_arn {
        input["roleArn"] = role.as_str().into();
    }
    let mut result = Map::new();
    if let Some(id) = &action.deployment_id {
        result.insert("externalExecutionId".to_owned(), id.as_str().into());
        let summary = format!("Deployment {status}");
        result.insert("externalExecutionSummary".to_owned(), summary.into());
        let region = action.region.as_deref().unwrap_or(context.region);
        let url = format!(
            "https://console.aws.amazon.com/codedeploy/home?region={region}#/deployments/{id}"
        );
        result.insert("externalExecutionUrl".to_owned(), url.into());
    }
    json!({
        "pipelineExecutionId": execution.id,
        "actionExecutionId": uuid(&format!("{} {number}", execution.id)),
        "pipelineVersion": 1,
        "stageName": action.stage,
        "actionName": action.action,
        "startTime": context.epoch(action.updated_at.min(updated) - ACTION_TOOK),
        "lastUpdateTime": context.epoch(updated),
        "status": status,
        "input": input,
        "output": { "outputArtifacts": [], "executionResult": result, "outputVariables": {} },
    })
}

fn configuration(action: &Action) -> Option<Value> {
    let application = action.application.as_deref()?;
    let mut configuration = json!({ "ApplicationName": application });
    if let Some(group) = &action.deployment_group {
        configuration["DeploymentGroupName"] = group.as_str().into();
    }
    Some(configuration)
}
