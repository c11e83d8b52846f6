//! CodeDeploy: deployments, groups and targets.

use serde_json::{Value, json};

use crate::service::{Answered, Context, Input, object, page};
use crate::state::{Deployment, DeploymentGroup, Target};
use crate::wire::{Failure, hash, uuid};

/// Deployments in one `BatchGetDeployments` (API_BatchGetDeployments).
const DEPLOYMENTS_PER_BATCH: usize = 25;
/// Characters of the name of an application or group (API_GetDeploymentGroup).
const NAME_LIMIT: usize = 100;
/// The statuses of a deployment (API_ListDeployments).
const STATUSES: [&str; 8] = [
    "Created",
    "Queued",
    "InProgress",
    "Baking",
    "Succeeded",
    "Failed",
    "Stopped",
    "Ready",
];
/// Those that hold from the completion on.
const FINAL_STATUSES: [&str; 3] = ["Succeeded", "Failed", "Stopped"];
/// The statuses of a target (API_InstanceTarget).
const TARGET_STATUSES: [&str; 7] = [
    "Pending",
    "InProgress",
    "Succeeded",
    "Failed",
    "Skipped",
    "Unknown",
    "Ready",
];

pub(crate) fn get_deployment(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let deployment = named_deployment(context, input)?;
    Ok(object(
        json!({ "deploymentInfo": info(context, &deployment) }),
    ))
}

/// Ids that there are no deployments for are left out.
pub(crate) fn batch_get_deployments(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let ids = input.texts("deploymentIds")?.unwrap_or_default();
    if ids.is_empty() {
        return Err(Failure::new(
            "DeploymentIdRequiredException",
            "At least one deployment ID must be specified",
        ));
    }
    if ids.len() > DEPLOYMENTS_PER_BATCH {
        let message = format!("The maximum number of deployment IDs is {DEPLOYMENTS_PER_BATCH}");
        return Err(Failure::new("BatchLimitExceededException", message));
    }
    for id in &ids {
        check_deployment_id(id)?;
    }
    let found: Vec<Deployment> = ids
        .iter()
        .filter_map(|id| deployment(context, id))
        .collect();
    let found: Vec<Value> = found
        .iter()
        .map(|deployment| info(context, deployment))
        .collect();
    Ok(object(json!({ "deploymentsInfo": found })))
}

pub(crate) fn get_deployment_group(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let application = application_name(input)?.ok_or_else(|| {
        Failure::new(
            "ApplicationNameRequiredException",
            "The application name must be specified",
        )
    })?;
    let name = group_name(input)?.ok_or_else(group_required)?;
    check_application(context, application)?;
    let found = context
        .here()
        .deployment_groups
        .iter()
        .find(|group| group.application == application && group.name == name);
    let Some(group) = found.cloned() else {
        return Err(group_missing(name));
    };
    Ok(object(
        json!({ "deploymentGroupInfo": group_info(context, &group) }),
    ))
}

/// Ids only, and in no helpful order: AWS documents none.
pub(crate) fn list_deployments(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let (application, group) = (application_name(input)?, group_name(input)?);
    match (application, group) {
        (Some(_), None) => return Err(group_required()),
        (None, Some(_)) => {
            let message = "The application name must be specified with a deployment group name";
            return Err(Failure::new("ApplicationNameRequiredException", message));
        }
        (Some(application), Some(group)) => check_group(context, application, group)?,
        (None, None) => {}
    }
    let statuses = input.texts("includeOnlyStatuses")?.unwrap_or_default();
    if let Some(unknown) = statuses.iter().find(|status| !STATUSES.contains(status)) {
        return Err(Failure::new(
            "InvalidDeploymentStatusException",
            format!("Invalid deployment status: {unknown}"),
        ));
    }
    let created = created_within(input)?;
    if input.has("externalId") {
        return Err(Failure::new(
            "InvalidExternalIdException",
            "The simulation knows no external ids",
        ));
    }

    let (at, start) = (context.at, context.start);
    let mut ids: Vec<String> = context
        .here()
        .deployments
        .iter()
        .filter(|deployment| deployment.created_at <= at)
        .filter(|deployment| application.is_none_or(|name| deployment.application == name))
        .filter(|deployment| group.is_none_or(|name| deployment.deployment_group == name))
        .filter(|deployment| statuses.is_empty() || statuses.contains(&status(deployment, at)))
        .filter(|deployment| (created.0..=created.1).contains(&(start + deployment.created_at)))
        .map(|deployment| deployment.id.clone())
        .collect();
    ids.sort_by_key(|id| (hash(id), id.clone()));
    let size = context.state.page_sizes.deployments;
    let query = format!(
        "ListDeployments {} {application:?} {group:?} {statuses:?} {created:?}",
        context.region
    );
    let page =
        page(ids, size.max(1), input.text("nextToken")?, &query).ok_or_else(invalid_token)?;
    Ok(object(
        json!({ "deployments": page.items, "nextToken": page.next }),
    ))
}

pub(crate) fn list_deployment_targets(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let deployment = named_deployment(context, input)?;
    let filters = input.map_of_texts("targetFilters")?;
    for (key, values) in &filters {
        check_filter(key, values, &deployment)?;
    }
    check_started(context, &deployment)?;
    let passes = |target: &&Target| {
        filters.iter().all(|(key, values)| match *key {
            "TargetStatus" => values.contains(&target.status.as_str()),
            _ => target
                .label
                .as_deref()
                .is_some_and(|label| values.contains(&label)),
        })
    };
    let ids: Vec<String> = deployment
        .targets
        .iter()
        .filter(passes)
        .map(|target| target.id.clone())
        .collect();
    let size = context.state.page_sizes.deployment_targets;
    let query = format!(
        "ListDeploymentTargets {} {} {filters:?}",
        context.region, deployment.id
    );
    let page =
        page(ids, size.max(1), input.text("nextToken")?, &query).ok_or_else(invalid_token)?;
    Ok(object(
        json!({ "targetIds": page.items, "nextToken": page.next }),
    ))
}

fn named_deployment(context: &mut Context<'_>, input: &Input<'_>) -> Result<Deployment, Failure> {
    let Some(id) = input.text("deploymentId")?.filter(|id| !id.is_empty()) else {
        return Err(Failure::new(
            "DeploymentIdRequiredException",
            "The deployment ID must be specified",
        ));
    };
    check_deployment_id(id)?;
    deployment(context, id).ok_or_else(|| {
        Failure::new(
            "DeploymentDoesNotExistException",
            format!("The deployment {id} could not be found"),
        )
    })
}

fn deployment(context: &mut Context<'_>, id: &str) -> Option<Deployment> {
    let at = context.at;
    let found = context
        .here()
        .deployments
        .iter()
        .find(|deployment| deployment.id == id && deployment.created_at <= at);
    found.cloned()
}

/// An id is `d-` and capital letters or digits.
fn check_deployment_id(id: &str) -> Result<(), Failure> {
    let code = id.strip_prefix("d-").unwrap_or_default();
    if !code.is_empty()
        && code
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    {
        return Ok(());
    }
    Err(Failure::new(
        "InvalidDeploymentIdException",
        format!("Deployment ID {id} is not valid"),
    ))
}

fn application_name<'a>(input: &Input<'a>) -> Result<Option<&'a str>, Failure> {
    name(input, "applicationName", "InvalidApplicationNameException")
}

fn group_name<'a>(input: &Input<'a>) -> Result<Option<&'a str>, Failure> {
    name(
        input,
        "deploymentGroupName",
        "InvalidDeploymentGroupNameException",
    )
}

fn name<'a>(input: &Input<'a>, member: &str, code: &str) -> Result<Option<&'a str>, Failure> {
    match input.text(member)? {
        Some(name) if name.is_empty() || name.len() > NAME_LIMIT => Err(Failure::new(
            code,
            format!("{member} must have 1 to {NAME_LIMIT} characters"),
        )),
        name => Ok(name),
    }
}

fn check_application(context: &mut Context<'_>, application: &str) -> Result<(), Failure> {
    let here = context.here();
    let in_group = here
        .deployment_groups
        .iter()
        .any(|group| group.application == application);
    if in_group
        || here
            .deployments
            .iter()
            .any(|deployment| deployment.application == application)
    {
        return Ok(());
    }
    let message = format!("No application found for name: {application}");
    Err(Failure::new("ApplicationDoesNotExistException", message))
}

fn check_group(context: &mut Context<'_>, application: &str, name: &str) -> Result<(), Failure> {
    check_application(context, application)?;
    let mut groups = context.here().deployment_groups.iter();
    if groups.any(|group| group.application == application && group.name == name) {
        return Ok(());
    }
    Err(group_missing(name))
}

fn group_missing(name: &str) -> Failure {
    Failure::new(
        "DeploymentGroupDoesNotExistException",
        format!("No Deployment Group found for name: {name}"),
    )
}

fn group_required() -> Failure {
    Failure::new(
        "DeploymentGroupNameRequiredException",
        "The deployment group name must be specified",
    )
}

fn invalid_token() -> Failure {
    Failure::new("InvalidNextTokenException", "The next token is not valid")
}

/// The range of `createTimeRange` in epoch seconds.
fn created_within(input: &Input<'_>) -> Result<(f64, f64), Failure> {
    let Some(range) = input.structure("createTimeRange")? else {
        return Ok((f64::NEG_INFINITY, f64::INFINITY));
    };
    let start = range.timestamp("start")?.unwrap_or(f64::NEG_INFINITY);
    let end = range.timestamp("end")?.unwrap_or(f64::INFINITY);
    if start > end {
        return Err(Failure::new(
            "InvalidTimeRangeException",
            "The start of the time range is after its end",
        ));
    }
    Ok((start, end))
}

fn check_filter(key: &str, values: &[&str], deployment: &Deployment) -> Result<(), Failure> {
    match key {
        "TargetStatus" => match values.iter().find(|value| !TARGET_STATUSES.contains(value)) {
            Some(unknown) => Err(Failure::new(
                "InvalidInstanceStatusException",
                format!("Invalid target status: {unknown}"),
            )),
            None => Ok(()),
        },
        "ServerInstanceLabel" => {
            if let Some(unknown) = values
                .iter()
                .find(|value| !["Blue", "Green"].contains(value))
            {
                return Err(Failure::new(
                    "InvalidInstanceTypeException",
                    format!("Invalid instance label: {unknown}"),
                ));
            }
            if deployment.style == "BLUE_GREEN" {
                return Ok(());
            }
            let message = "Instance labels were specified for an in-place deployment";
            Err(Failure::new(
                "InvalidDeploymentInstanceTypeException",
                message,
            ))
        }
        other => Err(Failure::new(
            "InvalidTargetFilterNameException",
            format!("Invalid target filter name: {other}"),
        )),
    }
}

fn check_started(context: &Context<'_>, deployment: &Deployment) -> Result<(), Failure> {
    if deployment.never_started || matches!(status(deployment, context.at), "Created" | "Queued") {
        let message = format!("The deployment {} has not started", deployment.id);
        return Err(Failure::new("DeploymentNotStartedException", message));
    }
    Ok(())
}

/// A final status holds from the completion on.
fn status(deployment: &Deployment, at: f64) -> &str {
    let over = deployment.completed_at.is_none_or(|time| time <= at);
    if !over && FINAL_STATUSES.contains(&deployment.status.as_str()) {
        "InProgress"
    } else {
        &deployment.status
    }
}

fn info(context: &Context<'_>, deployment: &Deployment) -> Value {
    let status = status(deployment, context.at);
    let started = !deployment.never_started && !matches!(status, "Created" | "Queued");
    let over = FINAL_STATUSES.contains(&status);
    let server = deployment.compute_platform == "Server";
    let completed = deployment
        .completed_at
        .filter(|_| over)
        .map(|time| context.epoch(time));
    let style = if server {
        deployment.style.as_str()
    } else {
        "BLUE_GREEN"
    };
    Value::Object(object(json!({
        "applicationName": deployment.application,
        "deploymentGroupName": deployment.deployment_group,
        "deploymentConfigName": configuration_name(&deployment.compute_platform),
        "deploymentId": deployment.id,
        "revision": {
            "revisionType": "S3",
            "s3Location": { "bucket": "artifact-bucket", "key": "pipeline/SourceArti/key", "bundleType": "zip" },
        },
        "status": status,
        "createTime": context.epoch(deployment.created_at),
        "startTime": started.then(|| context.epoch(deployment.created_at)),
        "completeTime": completed,
        "deploymentOverview": server.then(|| overview(deployment)),
        "creator": deployment.creator,
        "ignoreApplicationStopFailures": false,
        "updateOutdatedInstancesOnly": deployment.outdated_only,
        "deploymentStyle": { "deploymentType": style, "deploymentOption": "WITHOUT_TRAFFIC_CONTROL" },
        "instanceTerminationWaitTimeStarted": false,
        "fileExistsBehavior": "DISALLOW",
        "deploymentStatusMessages": [],
        "computePlatform": deployment.compute_platform,
    })))
}

fn overview(deployment: &Deployment) -> Value {
    let count = |status: &str| {
        deployment
            .targets
            .iter()
            .filter(|target| target.status == status)
            .count()
    };
    json!({
        "Pending": count("Pending"), "InProgress": count("InProgress"), "Succeeded": count("Succeeded"),
        "Failed": count("Failed"), "Skipped": count("Skipped"), "Ready": count("Ready"),
    })
}

fn configuration_name(platform: &str) -> &'static str {
    match platform {
        "Lambda" => "CodeDeployDefault.LambdaAllAtOnce",
        "ECS" => "CodeDeployDefault.ECSAllAtOnce",
        _ => "CodeDeployDefault.OneAtATime",
    }
}

fn group_info(context: &mut Context<'_>, group: &DeploymentGroup) -> Value {
    let id = uuid(&format!("group {} {}", group.application, group.name));
    let filters: Vec<Value> = group
        .tag_filters
        .iter()
        .map(|filter| json!({ "Key": filter.key, "Value": filter.value, "Type": "KEY_AND_VALUE" }))
        .collect();
    let auto_scaling_groups: Vec<Value> = group
        .auto_scaling_groups
        .iter()
        .map(|name| json!({ "name": name, "hook": format!("CodeDeploy-managed-automatic-launch-deployment-hook-{id}") }))
        .collect();
    let account = context.state.account.clone();
    let server = group.compute_platform == "Server";
    let style = if server {
        group.style.as_str()
    } else {
        "BLUE_GREEN"
    };
    Value::Object(object(json!({
        "applicationName": group.application,
        "deploymentGroupId": id,
        "deploymentGroupName": group.name,
        "deploymentConfigName": configuration_name(&group.compute_platform),
        "ec2TagFilters": filters,
        "onPremisesInstanceTagFilters": [],
        "autoScalingGroups": auto_scaling_groups,
        "serviceRoleArn": format!("arn:aws:iam::{account}:role/CodeDeployServiceRole"),
        "triggerConfigurations": [],
        "deploymentStyle": { "deploymentType": style, "deploymentOption": "WITHOUT_TRAFFIC_CONTROL" },
        "outdatedInstancesStrategy": "UPDATE",
        "lastSuccessfulDeployment": last(context, group, &|status| status == "Succeeded"),
        "lastAttemptedDeployment": last(context, group, &|_| true),
        "computePlatform": group.compute_platform,
        "terminationHookEnabled": false,
    })))
}

fn last(
    context: &mut Context<'_>,
    group: &DeploymentGroup,
    counts: &dyn Fn(&str) -> bool,
) -> Option<Value> {
    let at = context.at;
    let newest = context
        .here()
        .deployments
        .iter()
        .filter(|one| one.application == group.application && one.deployment_group == group.name)
        .filter(|one| one.created_at <= at && counts(status(one, at)))
        .max_by(|one, other| one.created_at.total_cmp(&other.created_at))?
        .clone();
    let status = status(&newest, at);
    let ended = newest
        .completed_at
        .filter(|_| FINAL_STATUSES.contains(&status));
    Some(Value::Object(object(json!({
        "deploymentId": newest.id,
        "status": status,
        "createTime": context.epoch(newest.created_at),
        "endTime": ended.map(|time| context.epoch(time)),
    }))))
}
