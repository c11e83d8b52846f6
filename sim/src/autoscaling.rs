//! EC2 Auto Scaling: groups, and the lifecycle of their members.

use serde_json::{Value, json};

use crate::service::{Answered, Context, Input, object, page};
use crate::state::Member;
use crate::wire::{Failure, iso_8601, uuid};

/// Groups in one page (API_DescribeAutoScalingGroups).
const MAX_GROUPS: (i64, i64) = (1, 100);
/// Names in one call, unless the page is larger (API_DescribeAutoScalingGroups).
const MAX_NAMES: usize = 50;
/// Instances in one page, and ids in one call (API_DescribeAutoScalingInstances).
const MAX_INSTANCES: (i64, i64) = (1, 50);
const MAX_INSTANCE_IDS: usize = 50;
/// Characters of an instance id (API_DescribeAutoScalingInstances).
const ID_LIMIT: usize = 19;
/// Seconds before the start at which every group was made.
const CREATED: f64 = -31_536_000.0;

/// Names that there are no groups for are left out.
pub(crate) fn describe_groups(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let names = input.texts("AutoScalingGroupNames")?.unwrap_or_default();
    let with_instances = input.boolean("IncludeInstances")?.unwrap_or(true);
    let size = input.page_size(
        "MaxRecords",
        MAX_GROUPS,
        context.state.page_sizes.auto_scaling_groups,
        context.state.page_shortfall,
    )?;
    let asked = input.integer("MaxRecords")?.unwrap_or_default();
    let most = MAX_NAMES.max(usize::try_from(asked).unwrap_or_default());
    if names.len() > most {
        let message = format!("At most {most} names may be passed in");
        return Err(Failure::new("ValidationError", message));
    }
    if input.has("Filters") {
        return Err(Failure::new(
            "ValidationError",
            "The simulation knows no filters of Auto Scaling groups",
        ));
    }
    let region = context.region.to_owned();
    let account = context.state.account.clone();
    let created = iso_8601(context.epoch(CREATED));
    let groups: Vec<Value> = context
        .here()
        .auto_scaling_groups
        .iter()
        .filter(|group| names.is_empty() || names.contains(&group.name.as_str()))
        .map(|group| {
            let instances: Vec<Value> = group.instances.iter().map(|member| member_of_group(member, &region)).collect();
            Value::Object(object(json!({
                "AutoScalingGroupName": group.name,
                "AutoScalingGroupARN": format!(
                    "arn:aws:autoscaling:{region}:{account}:autoScalingGroup:{}:autoScalingGroupName/{}",
                    uuid(&group.name), group.name
                ),
                "LaunchTemplate": launch_template(),
                "MinSize": 0,
                "MaxSize": group.instances.len() + 10,
                "DesiredCapacity": group.instances.len(),
                "DefaultCooldown": 300,
                "AvailabilityZones": [format!("{region}a")],
                "LoadBalancerNames": [],
                "TargetGroupARNs": [],
                "HealthCheckType": "EC2",
                "HealthCheckGracePeriod": 300,
                "Instances": with_instances.then_some(instances),
                "CreatedTime": created,
                "SuspendedProcesses": [],
                "EnabledMetrics": [],
                "Tags": [],
                "TerminationPolicies": ["Default"],
                "NewInstancesProtectedFromScaleIn": false,
            })))
        })
        .collect();
    let query = format!("DescribeAutoScalingGroups {region} {names:?}");
    let page = page(groups, size, input.text("NextToken")?, &query).ok_or_else(invalid_token)?;
    Ok(object(
        json!({ "AutoScalingGroups": page.items, "NextToken": page.next }),
    ))
}

/// Ids that are members of no group are left out.
pub(crate) fn describe_instances(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let ids = input.texts("InstanceIds")?.unwrap_or_default();
    if ids.len() > MAX_INSTANCE_IDS {
        let message = format!(
            "The number of instance ids that may be passed in is limited to {MAX_INSTANCE_IDS}"
        );
        return Err(Failure::new("ValidationError", message));
    }
    if let Some(id) = ids.iter().find(|id| id.is_empty() || id.len() > ID_LIMIT) {
        let constraint = format!("Member must have length between 1 and {ID_LIMIT}");
        return Err(input.refused("InstanceIds", id, &constraint));
    }
    let size = input.page_size(
        "MaxRecords",
        MAX_INSTANCES,
        context.state.page_sizes.auto_scaling_instances,
        context.state.page_shortfall,
    )?;
    let region = context.region.to_owned();
    let mut found = Vec::new();
    for group in &context.here().auto_scaling_groups {
        for member in &group.instances {
            if ids.is_empty() || ids.contains(&member.id.as_str()) {
                let mut told = member_of_group(member, &region);
                told["AutoScalingGroupName"] = group.name.as_str().into();
                // Here the health is written in capitals, unlike in the groups.
                told["HealthStatus"] = "HEALTHY".into();
                found.push(told);
            }
        }
    }
    let query = format!("DescribeAutoScalingInstances {region} {ids:?}");
    let page = page(found, size, input.text("NextToken")?, &query).ok_or_else(invalid_token)?;
    Ok(object(
        json!({ "AutoScalingInstances": page.items, "NextToken": page.next }),
    ))
}

fn member_of_group(member: &Member, region: &str) -> Value {
    json!({
        "InstanceId": member.id,
        "InstanceType": "t3.micro",
        "AvailabilityZone": format!("{region}a"),
        "LifecycleState": member.lifecycle,
        "HealthStatus": "Healthy",
        "LaunchTemplate": launch_template(),
        "ProtectedFromScaleIn": false,
    })
}

fn launch_template() -> Value {
    json!({ "LaunchTemplateId": "lt-0123456789abcdef0", "LaunchTemplateName": "fleet", "Version": "1" })
}

fn invalid_token() -> Failure {
    Failure::new("InvalidNextToken", "The NextToken value is not valid.")
}
