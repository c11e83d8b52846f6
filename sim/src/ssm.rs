//! Systems Manager: the inventory, and Run Command as seen from its API.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::host::{Order, Start, truncated};
use crate::service::{Answered, Context, Input, object, page};
use crate::state::{Answer, Command, DocumentKind, Host, Invocation, Lost};
use crate::wire::{Failure, iso_8601, uuid};

/// Nodes in one page (API_DescribeInstanceInformation).
const MAX_NODES: (i64, i64) = (5, 50);
/// Values of one filter (API_InstanceInformationStringFilter).
const MAX_FILTER_VALUES: usize = 100;
/// Instance ids in one command (API_SendCommand).
const MAX_INSTANCE_IDS: usize = 50;
/// Seconds that a command may wait for its delivery, and the default (API_SendCommand).
const DELIVERY_TIMEOUT: (i64, i64) = (30, 2_592_000);
const DELIVERY_TIMEOUT_DEFAULT: i64 = 3600;
/// Characters of a comment (API_SendCommand).
const COMMENT_LIMIT: usize = 100;
/// Invocations in one page (API_ListCommandInvocations).
const MAX_INVOCATIONS: (i64, i64) = (1, 50);
/// Characters of a command's id (API_ListCommandInvocations).
const COMMAND_ID_LENGTH: usize = 36;
/// The version of the SSM agent on every host.
const SSM_AGENT: &str = "3.3.3572.0";
/// Seconds between two pings of an online node.
const PING_EVERY: f64 = 60.0;
/// Seconds before the start at which every node was registered.
const REGISTERED: f64 = -864_000.0;
/// The document's parameters, each with its default where it has one.
pub const PARAMETERS: [(&str, Option<&str>); 5] = [
    ("triggeredAt", None),
    ("sentAt", None),
    ("busyWaitSeconds", Some("120")),
    ("minMemoryMiB", Some("0")),
    ("executionTimeoutSeconds", Some("570")),
];
/// Digits of a parameter's value.
const MAX_DIGITS: usize = 10;

pub(crate) fn describe_instance_information(
    context: &mut Context<'_>,
    input: &Input<'_>,
) -> Answered {
    let size = input.page_size(
        "MaxResults",
        MAX_NODES,
        context.state.page_sizes.instance_information,
        context.state.page_shortfall,
    )?;
    let filters = inventory_filters(input)?;
    let region = context.region.to_owned();
    for (_, values) in filters.iter().filter(|(key, _)| key == "InstanceIds") {
        for id in values {
            let rejected = context
                .here()
                .hosts
                .iter()
                .any(|host| host.id == *id && host.rejected);
            if rejected || !is_node_id(id) {
                return Err(invalid_instance(id));
            }
        }
    }
    let hosts = hosts(context);
    let nodes: Vec<&Host> = hosts
        .iter()
        .filter(|host| host.managed && !host.rejected && is_node_id(&host.id))
        .filter(|host| matches!(host.state.as_str(), "running" | "pending" | "stopping"))
        .filter(|host| {
            filters
                .iter()
                .all(|(key, values)| passes(host, key, values))
        })
        .collect();
    let query = format!("DescribeInstanceInformation {region} {filters:?}");
    let page = page(nodes, size, input.text("NextToken")?, &query).ok_or_else(invalid_token)?;
    let nodes = page.items.iter().map(|host| node(context, host)).collect();
    let mut listed = Map::new();
    listed.insert("InstanceInformationList".to_owned(), Value::Array(nodes));
    if let Some(next) = page.next {
        listed.insert("NextToken".to_owned(), Value::String(next));
    }
    Ok(listed)
}

/// The hosts of the called region, where they are.
fn hosts<'a>(context: &'a Context<'_>) -> &'a [Host] {
    let region = context.state.regions.get(context.region);
    region.map_or(&[], |region| &region.hosts)
}

/// Both forms of the filter: the older one writes its members in small letters.
fn inventory_filters<'a>(input: &Input<'a>) -> Result<Vec<(String, Vec<&'a str>)>, Failure> {
    let mut filters = Vec::new();
    for (list, key, values) in [
        ("Filters", "Key", "Values"),
        ("InstanceInformationFilterList", "key", "valueSet"),
    ] {
        for filter in input.structures(list)? {
            let Some(name) = filter.text(key)? else {
                return Err(input.refused(list, "null", "Member must not be null"));
            };
            let given = filter.texts(values)?.unwrap_or_default();
            if given.is_empty() || given.len() > MAX_FILTER_VALUES {
                let constraint =
                    format!("Member must have length between 1 and {MAX_FILTER_VALUES}");
                return Err(input.refused(list, &format!("{} values", given.len()), &constraint));
            }
            check_inventory_filter(name, &given)?;
            filters.push((name.to_owned(), given));
        }
    }
    let by_tag = |key: &str| key.starts_with("tag:") || key == "tag-key";
    if filters.iter().any(|(key, _)| by_tag(key)) && !filters.iter().all(|(key, _)| by_tag(key)) {
        let message = "Tag filters can't be combined with other filter types";
        return Err(Failure::new("InvalidFilterKey", message));
    }
    Ok(filters)
}

fn check_inventory_filter(key: &str, values: &[&str]) -> Result<(), Failure> {
    let allowed: &[&str] = match key {
        "PingStatus" => &["Online", "ConnectionLost", "Inactive"],
        "PlatformTypes" => &["Windows", "Linux", "MacOS"],
        "ResourceType" => &["ManagedInstance", "EC2Instance"],
        "InstanceIds" | "AgentVersion" | "ActivationIds" | "IamRole" | "AssociationStatus" => {
            return Ok(());
        }
        other if other.starts_with("tag:") || other == "tag-key" => return Ok(()),
        other => {
            return Err(Failure::new(
                "InvalidFilterKey",
                format!("The filter key {other} is not valid"),
            ));
        }
    };
    match values.iter().find(|value| !allowed.contains(value)) {
        Some(unknown) => {
            let message = format!("{unknown} is not a value of the filter {key}");
            Err(Failure::new(
                "InvalidInstanceInformationFilterValue",
                message,
            ))
        }
        None => Ok(()),
    }
}

fn passes(host: &Host, key: &str, values: &[&str]) -> bool {
    match key {
        "InstanceIds" => values.contains(&host.id.as_str()),
        "PingStatus" => values.contains(&host.ping.as_str()),
        "PlatformTypes" => values.contains(&host.platform.as_str()),
        "AgentVersion" => values.contains(&SSM_AGENT),
        "ResourceType" => values.contains(&resource_type(host)),
        "tag-key" => values.iter().any(|key| host.tags.contains_key(*key)),
        // The hosts of this world carry no activations, roles or associations.
        other => {
            let value = other
                .strip_prefix("tag:")
                .and_then(|key| host.tags.get(key));
            value.is_some_and(|value| values.contains(&value.as_str()))
        }
    }
}

fn resource_type(host: &Host) -> &'static str {
    match host.is_on_premises() {
        true => "ManagedInstance",
        false => "EC2Instance",
    }
}

fn node(context: &Context<'_>, host: &Host) -> Value {
    let (platform_name, platform_version) = match host.platform.as_str() {
        "Windows" => ("Microsoft Windows Server 2022 Datacenter", "10.0.20348"),
        "MacOS" => ("macOS", "15.1"),
        _ => ("Amazon Linux", "2023"),
    };
    // An online node is heard of once a minute; the others were heard of last when the data says.
    let missed = if host.ping == "Online" {
        ((context.at - host.last_ping) / PING_EVERY)
            .floor()
            .max(0.0)
    } else {
        0.0
    };
    Value::Object(object(json!({
        "InstanceId": host.id,
        "PingStatus": host.ping,
        "LastPingDateTime": context.epoch(host.last_ping + missed * PING_EVERY),
        "AgentVersion": SSM_AGENT,
        "IsLatestVersion": true,
        "PlatformType": Some(&host.platform).filter(|platform| !platform.is_empty()),
        "PlatformName": platform_name,
        "PlatformVersion": platform_version,
        "RegistrationDate": context.epoch(REGISTERED),
        "ResourceType": resource_type(host),
        "Name": host.name,
        "IPAddress": "10.0.3.17",
        "ComputerName": computer_name(host, context.region),
        "SourceId": host.id,
        "SourceType": match host.is_on_premises() {
            true => "AWS::SSM::ManagedInstance",
            false => "AWS::EC2::Instance",
        },
    })))
}

fn computer_name(host: &Host, region: &str) -> String {
    if host.computer_name.is_empty() {
        match host.is_on_premises() {
            true => format!("{}.example.internal", host.id),
            false => format!("{}.{region}.compute.internal", host.id),
        }
    } else {
        host.computer_name.clone()
    }
}

pub(crate) fn send_command(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let document = document(context, input)?;
    let version = document_version(input)?;
    let ids = instance_ids(context, input)?;
    let timeout = delivery_timeout(input)?;
    check_platforms(context, document.1, &ids)?;
    let parameters = parameters(input, &document)?;
    let (max_concurrency, max_errors) = (
        rate(input, "MaxConcurrency", "50")?,
        rate(input, "MaxErrors", "0")?,
    );
    let comment = comment(input)?;

    let (at, lag) = (context.at, context.state.invocation_lag);
    let number = context.here().commands.len();
    #[expect(clippy::cast_precision_loss, reason = "at most a month of seconds")]
    let timeout_seconds = timeout as f64;
    let command = Command {
        id: uuid(&format!("command {number} in {}", context.region)),
        document: document.0,
        document_version: version,
        comment,
        sent_at: at,
        timeout_seconds,
        parameters,
        max_concurrency,
        max_errors,
        invocations: ids
            .iter()
            .enumerate()
            .map(|(number, id)| Invocation {
                instance_id: (*id).to_owned(),
                // Some appear before the others, so that the list is empty first, and short then.
                visible_at: at + if number % 2 == 0 { lag } else { lag / 2.0 },
                ..Invocation::default()
            })
            .collect(),
    };
    begin(context, &command, document.1);
    let told = told_command(context, &command, &ids);
    context.here().commands.push(command);
    Ok(object(json!({ "Command": told })))
}

/// The document's name and what it does; a name or an ARN names it.
fn document(
    context: &mut Context<'_>,
    input: &Input<'_>,
) -> Result<(String, DocumentKind), Failure> {
    let Some(given) = input.text("DocumentName")? else {
        return Err(input.refused("DocumentName", "null", "Member must not be null"));
    };
    let prefix = format!(
        "arn:aws:ssm:{}:{}:document/",
        context.region, context.state.account
    );
    let name = given.strip_prefix(&prefix).unwrap_or(given);
    match context
        .here()
        .documents
        .iter()
        .find(|document| document.name == name)
    {
        Some(document) => Ok((document.name.clone(), document.kind)),
        None => Err(Failure::new(
            "InvalidDocument",
            format!("Document with name {given} does not exist."),
        )),
    }
}

/// Every document of this world has one version.
fn document_version(input: &Input<'_>) -> Result<String, Failure> {
    let version = input.text("DocumentVersion")?.unwrap_or("$DEFAULT");
    if ["$LATEST", "$DEFAULT", "1"].contains(&version) {
        return Ok(version.to_owned());
    }
    Err(Failure::new(
        "InvalidDocumentVersion",
        format!("The document has no version {version}"),
    ))
}

/// The explicit ids. One that SSM does not know, or whose machine goes away, spoils the whole call.
fn instance_ids<'a>(context: &mut Context<'_>, input: &Input<'a>) -> Result<Vec<&'a str>, Failure> {
    let ids = input.texts("InstanceIds")?.unwrap_or_default();
    if input.has("Targets") {
        return Err(input.refused(
            "Targets",
            "[…]",
            "the simulation sends to explicit instance ids only",
        ));
    }
    if ids.is_empty() {
        return Err(invalid_instance(""));
    }
    if ids.len() > MAX_INSTANCE_IDS {
        let constraint =
            format!("Member must have length less than or equal to {MAX_INSTANCE_IDS}");
        return Err(input.refused("InstanceIds", &format!("[{}]", ids.join(", ")), &constraint));
    }
    if let Some(id) = ids.iter().find(|id| !is_node_id(id)) {
        let constraint =
            "Member must satisfy regular expression pattern: (^i-(\\w{8}|\\w{17})$)|(^mi-\\w{17}$)";
        return Err(input.refused("InstanceIds", id, constraint));
    }
    if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
        return Err(Failure::new(
            "DuplicateInstanceId",
            "You can't specify an instance ID more than once.",
        ));
    }
    let spoils = |id: &&&str| {
        let known = context
            .state
            .regions
            .get(context.region)
            .into_iter()
            .flat_map(|region| &region.hosts);
        let host = known.into_iter().find(|host| host.id == **id);
        !host.is_some_and(|host| {
            host.managed
                && !host.rejected
                && !matches!(host.state.as_str(), "shutting-down" | "terminated")
        })
    };
    let denied = |id: &&&str| {
        let known = context
            .state
            .regions
            .get(context.region)
            .into_iter()
            .flat_map(|region| &region.hosts);
        let mut known = known.into_iter().filter(|host| host.id == **id);
        let condition = context.state.send_condition.as_ref();
        known.any(|host| host.denied || condition.is_some_and(|tag| !host.has(tag)))
    };
    if let Some(id) = ids.iter().find(denied) {
        let (region, account) = (context.region, &context.state.account);
        let message = format!(
            "User: arn:aws:sts::{account}:assumed-role/restarter/restarter is not authorized to perform: ssm:SendCommand \
             on resource: {} because no identity-based policy allows the \
             ssm:SendCommand action",
            match id.starts_with("mi-") {
                true => format!("arn:aws:ssm:{region}:{account}:managed-instance/{id}"),
                false => format!("arn:aws:ec2:{region}:{account}:instance/{id}"),
            }
        );
        return Err(Failure::new("AccessDeniedException", message));
    }
    match ids.iter().find(spoils) {
        // AWS does not say which one it is.
        Some(_) => Err(Failure::new(
            "InvalidInstanceId",
            format!(
                "Instances [[{}]] not in a valid state for account {}",
                ids.join(", "),
                context.state.account
            ),
        )),
        None => Ok(ids),
    }
}

/// One instance of a platform that the document is not for spoils the whole call. The text is AWS's own
/// (<https://github.com/aws/aws-sdk-java/issues/1209>).
fn check_platforms(
    context: &Context<'_>,
    document: DocumentKind,
    ids: &[&str],
) -> Result<(), Failure> {
    let named = hosts(context)
        .iter()
        .filter(|host| ids.contains(&host.id.as_str()));
    match named
        .into_iter()
        .find(|host| !document.is_sent_to(&host.platform))
    {
        Some(host) => Err(Failure::new(
            "UnsupportedPlatformType",
            format!(
                "Cannot perform operation for instance id {} of platform type {}",
                host.id, host.platform
            ),
        )),
        None => Ok(()),
    }
}

fn delivery_timeout(input: &Input<'_>) -> Result<i64, Failure> {
    let timeout = input
        .integer("TimeoutSeconds")?
        .unwrap_or(DELIVERY_TIMEOUT_DEFAULT);
    if (DELIVERY_TIMEOUT.0..=DELIVERY_TIMEOUT.1).contains(&timeout) {
        return Ok(timeout);
    }
    let constraint = format!(
        "Member must have value between {} and {}",
        DELIVERY_TIMEOUT.0, DELIVERY_TIMEOUT.1
    );
    Err(input.refused("TimeoutSeconds", &timeout.to_string(), &constraint))
}

fn comment(input: &Input<'_>) -> Result<String, Failure> {
    let comment = input.text("Comment")?.unwrap_or_default();
    if comment.chars().count() > COMMENT_LIMIT {
        let constraint = format!("Member must have length less than or equal to {COMMENT_LIMIT}");
        return Err(input.refused("Comment", comment, &constraint));
    }
    Ok(comment.to_owned())
}

/// `10` or `10%`; an error count may be 0. The simulation sends to all at once whatever it says.
fn rate(input: &Input<'_>, name: &str, default: &str) -> Result<String, Failure> {
    let text = input.text(name)?.unwrap_or(default);
    let number: Option<u32> = text.strip_suffix('%').unwrap_or(text).parse().ok();
    let least = u32::from(name == "MaxConcurrency");
    let most = if text.ends_with('%') { 100 } else { 9_999_999 };
    let written = number.is_some_and(|number| format!("{number}") == text.trim_end_matches('%'));
    if written && number.is_some_and(|number| (least..=most).contains(&number)) && text.len() <= 7 {
        return Ok(text.to_owned());
    }
    Err(input.refused(
        name,
        text,
        "Member must satisfy regular expression pattern: ^([1-9][0-9]*|[1-9][0-9]%|[1-9]%|100%)$",
    ))
}

/// Names, and digits as the document's `allowedPattern` wants them.
fn parameters(
    input: &Input<'_>,
    (document, kind): &(String, DocumentKind),
) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let given = input.map_of_texts("Parameters")?;
    let owned = |values: &[&str]| {
        values
            .iter()
            .map(|value| (*value).to_owned())
            .collect::<Vec<_>>()
    };
    let parameters = given
        .iter()
        .map(|(name, values)| ((*name).to_owned(), owned(values)))
        .collect();
    if *kind == DocumentKind::Foreign {
        return Ok(parameters);
    }
    let wrong = |what: String| Err(Failure::new("InvalidParameters", what));
    for (name, values) in &given {
        if !PARAMETERS.iter().any(|(known, _)| known == name) {
            return wrong(format!(
                "document {document} does not support parameters: {name}"
            ));
        }
        let digits = |value: &&str| {
            (1..=MAX_DIGITS).contains(&value.len())
                && value.bytes().all(|byte| byte.is_ascii_digit())
                && (*value == "0" || !value.starts_with('0'))
        };
        if values.len() != 1 || !values.iter().all(digits) {
            return wrong(format!(
                "Parameter \"{name}\" does not match allowedPattern: ^(0|[1-9][0-9]{{0,9}})$"
            ));
        }
    }
    for (name, _) in PARAMETERS.iter().filter(|(_, default)| default.is_none()) {
        if !given.iter().any(|(known, _)| known == name) {
            return wrong(format!(
                "document {document} has required parameters missing: {name}"
            ));
        }
    }
    Ok(parameters)
}

fn begin(context: &mut Context<'_>, command: &Command, document: DocumentKind) {
    let order = order(&command.parameters);
    let hosts = context.state.regions.get(context.region);
    let delivery = |id: &str| {
        let host = hosts.and_then(|region| region.hosts.iter().find(|host| host.id == id));
        host.map_or(0.0, |host| host.delivery_seconds)
    };
    let starts = command.invocations.iter().map(|invocation| Start {
        region: context.region.to_owned(),
        command: command.id.clone(),
        instance: invocation.instance_id.clone(),
        document,
        order,
        sent: context.at,
        delivery_timeout: command.timeout_seconds,
        delivery: delivery(&invocation.instance_id),
    });
    context.runs.begin(starts.collect(), context.state.ramp);
}

fn order(parameters: &BTreeMap<String, Vec<String>>) -> Order {
    let number = |wanted: &str| -> u64 {
        let default = PARAMETERS
            .iter()
            .find(|(name, _)| *name == wanted)
            .and_then(|(_, default)| *default);
        let given = parameters
            .get(wanted)
            .and_then(|values| values.first())
            .map(String::as_str);
        given
            .or(default)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default()
    };
    #[expect(clippy::cast_precision_loss, reason = "ten digits are exact")]
    let seconds = |wanted: &str| number(wanted) as f64;
    Order {
        triggered_at: seconds("triggeredAt"),
        sent_at: seconds("sentAt"),
        busy_wait: seconds("busyWaitSeconds"),
        min_memory_mib: number("minMemoryMiB"),
        execution_timeout: seconds("executionTimeoutSeconds"),
    }
}

fn told_command(context: &Context<'_>, command: &Command, ids: &[&str]) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "it came from an integer")]
    let timeout = command.timeout_seconds as i64;
    json!({
        "CommandId": command.id,
        "DocumentName": command.document,
        "DocumentVersion": command.document_version,
        "Comment": command.comment,
        "ExpiresAfter": context.epoch(command.sent_at + command.timeout_seconds),
        "Parameters": command.parameters,
        "InstanceIds": ids,
        "Targets": [],
        "RequestedDateTime": context.epoch(command.sent_at),
        "Status": "Pending",
        "StatusDetails": "Pending",
        "OutputS3Region": context.region,
        "OutputS3BucketName": "",
        "OutputS3KeyPrefix": "",
        "MaxConcurrency": command.max_concurrency,
        "MaxErrors": command.max_errors,
        "TargetCount": ids.len(),
        "CompletedCount": 0,
        "ErrorCount": 0,
        "DeliveryTimedOutCount": 0,
        "ServiceRole": "",
        "NotificationConfig": { "NotificationArn": "", "NotificationEvents": [], "NotificationType": "" },
        "CloudWatchOutputConfig": { "CloudWatchLogGroupName": "", "CloudWatchOutputEnabled": false },
        "TimeoutSeconds": timeout,
    })
}

/// Written at once: a fleet is polled often, and a tree of values for each answer would be most of the work.
pub(crate) fn list_command_invocations(
    context: &mut Context<'_>,
    input: &Input<'_>,
) -> Result<String, Failure> {
    let size = input.page_size(
        "MaxResults",
        MAX_INVOCATIONS,
        context.state.page_sizes.command_invocations,
        context.state.page_shortfall,
    )?;
    let command_id = input.text("CommandId")?;
    let instance = input.text("InstanceId")?;
    let details = input.boolean("Details")?.unwrap_or(false);
    let filters = command_filters(input)?;
    if let Some(id) = command_id {
        check_command_id(context, input, id)?;
    }
    if let Some(id) = instance.filter(|id| !is_node_id(id)) {
        return Err(invalid_instance(id));
    }
    let mut found = Vec::new();
    let region = context.state.regions.get(context.region);
    for command in region
        .into_iter()
        .flat_map(|region| &region.commands)
        .filter(|command| command_id.is_none_or(|id| id == command.id))
    {
        for invocation in &command.invocations {
            let named = instance.is_none_or(|id| id == invocation.instance_id);
            let seen = seen(context, invocation);
            if named
                && invocation.visible_at <= context.at
                && keeps(context, &filters, command, &seen)
            {
                found.push((command, seen));
            }
        }
    }
    let query = format!(
        "ListCommandInvocations {} {command_id:?} {instance:?} {filters:?}",
        context.region
    );
    let page = page(found, size, input.text("NextToken")?, &query).ok_or_else(invalid_token)?;
    let told = page.items.iter();
    let listed = ListedInvocations {
        command_invocations: told
            .map(|(command, seen)| told_invocation(context, command, seen, details))
            .collect(),
        next_token: page.next,
    };
    Ok(serde_json::to_string(&listed).unwrap_or_default())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ListedInvocations<'a> {
    command_invocations: Vec<ToldInvocation<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ToldInvocation<'a> {
    command_id: &'a str,
    instance_id: &'a str,
    instance_name: String,
    comment: &'a str,
    document_name: &'a str,
    document_version: &'a str,
    requested_date_time: f64,
    status: &'a str,
    status_details: &'a str,
    standard_output_url: &'static str,
    standard_error_url: &'static str,
    command_plugins: Vec<ToldPlugin<'a>>,
    service_role: &'static str,
    notification_config: NotificationConfig,
    cloud_watch_output_config: CloudWatchOutputConfig,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NotificationConfig {
    notification_arn: &'static str,
    notification_events: [&'static str; 0],
    notification_type: &'static str,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct CloudWatchOutputConfig {
    cloud_watch_log_group_name: &'static str,
    cloud_watch_output_enabled: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ToldPlugin<'a> {
    name: &'a str,
    status: &'a str,
    status_details: &'a str,
    response_code: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_start_date_time: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_finish_date_time: Option<f64>,
    output: Cow<'a, str>,
    standard_output_url: &'static str,
    standard_error_url: &'static str,
    #[serde(rename = "OutputS3Region")]
    output_s3_region: &'a str,
    #[serde(rename = "OutputS3BucketName")]
    output_s3_bucket_name: &'static str,
    #[serde(rename = "OutputS3KeyPrefix")]
    output_s3_key_prefix: &'static str,
}

fn command_filters<'a>(input: &Input<'a>) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    input
        .structures("Filters")?
        .iter()
        .map(|filter| {
            let (key, value) = (
                filter.text("key")?.unwrap_or_default(),
                filter.text("value")?.unwrap_or_default(),
            );
            if ["InvokedAfter", "InvokedBefore", "Status", "DocumentName"].contains(&key) {
                return Ok((key, value));
            }
            Err(Failure::new(
                "InvalidFilterKey",
                format!("The filter key {key} is not valid"),
            ))
        })
        .collect()
}

fn check_command_id(context: &mut Context<'_>, input: &Input<'_>, id: &str) -> Result<(), Failure> {
    if id.len() != COMMAND_ID_LENGTH {
        let constraint = format!("Member must have length {COMMAND_ID_LENGTH}");
        return Err(input.refused("CommandId", id, &constraint));
    }
    let (at, lag) = (context.at, context.state.command_lag);
    let mut commands = context.here().commands.iter();
    if commands.any(|command| command.id == id && command.sent_at + lag <= at) {
        return Ok(());
    }
    Err(Failure::new(
        "InvalidCommandId",
        format!("There is no command {id}"),
    ))
}

/// An invocation as SSM shows it, together with the host it runs on.
struct Seen<'a> {
    invocation: Cow<'a, Invocation>,
    host: Option<&'a Host>,
    /// Output was given verbatim, or a step has run.
    steps: bool,
    /// The invocation has ended, and its step's own end is not known yet.
    awaited: bool,
}

impl Seen<'_> {
    /// A moment of a step as the host's SSM agent tells it, which reads the host's wall clock.
    fn by_its_clock(&self, time: Option<f64>) -> Option<f64> {
        let skew = self.host.map_or(0.0, |host| host.clock_skew);
        time.map(|time| time + skew)
    }
}

/// Puts the host's verbatim answer, once it is due, in the place of what happened.
fn seen<'a>(context: &'a Context<'_>, invocation: &'a Invocation) -> Seen<'a> {
    let mut invocation = Cow::Borrowed(invocation);
    let host = hosts(context)
        .iter()
        .find(|host| host.id == invocation.instance_id);
    let agent = host.map(|host| &host.ssm_agent);
    let steps_lost = agent.is_some_and(|agent| agent.output_lost == Some(Lost::Steps));
    let mut steps = invocation.status_details != "DeliveryTimedOut"
        && !(steps_lost && invocation.ended_at.is_some() && !invocation.unheard);
    let mut awaited = invocation.output_at.is_some_and(|due| due > context.at);
    if awaited {
        invocation.to_mut().output.clear();
    }
    if let Some(answer) = host.and_then(|host| host.answer.as_ref()) {
        steps = answer.output.is_some();
        awaited = false;
        overrule(invocation.to_mut(), answer, context.at);
    }
    Seen {
        invocation,
        host,
        steps,
        awaited,
    }
}

fn overrule(invocation: &mut Invocation, answer: &Answer, at: f64) {
    invocation.status = answer.status.clone();
    invocation.status_details = answer
        .status_details
        .clone()
        .unwrap_or_else(|| answer.status.clone());
    invocation.output = truncated(answer.output.as_deref().unwrap_or_default());
    invocation.response_code = answer
        .response_code
        .unwrap_or(match answer.status.as_str() {
            "Success" => 0,
            "Failed" => 1,
            _ => -1,
        });
    invocation.began_at = Some(invocation.began_at.unwrap_or(invocation.visible_at.min(at)));
    invocation.ended_at = answer
        .is_final()
        .then(|| invocation.ended_at.unwrap_or(invocation.visible_at.min(at)));
}

fn keeps(
    context: &Context<'_>,
    filters: &[(&str, &str)],
    command: &Command,
    seen: &Seen<'_>,
) -> bool {
    filters.iter().all(|(key, value)| {
        let requested = iso_8601(context.epoch(command.sent_at));
        match *key {
            "Status" => seen.invocation.status == *value,
            "DocumentName" => command.document == *value,
            "InvokedAfter" => requested.as_str() > *value,
            _ => requested.as_str() < *value,
        }
    })
}

fn told_invocation<'a>(
    context: &'a Context<'_>,
    command: &'a Command,
    seen: &'a Seen<'_>,
    details: bool,
) -> ToldInvocation<'a> {
    let invocation = &seen.invocation;
    let name = seen
        .host
        .map(|host| computer_name(host, context.region))
        .unwrap_or_default();
    ToldInvocation {
        command_id: &command.id,
        instance_id: &invocation.instance_id,
        instance_name: name,
        comment: &command.comment,
        document_name: &command.document,
        document_version: &command.document_version,
        requested_date_time: context.epoch(command.sent_at),
        status: &invocation.status,
        status_details: &invocation.status_details,
        standard_output_url: "",
        standard_error_url: "",
        command_plugins: match details && seen.steps {
            true => vec![the_step(context, command, seen)],
            false => Vec::new(),
        },
        service_role: "",
        notification_config: NotificationConfig::default(),
        cloud_watch_output_config: CloudWatchOutputConfig::default(),
    }
}

/// The document's only step: it ran, or its precondition kept it from that.
fn the_step<'a>(context: &'a Context<'_>, command: &Command, seen: &'a Seen<'_>) -> ToldPlugin<'a> {
    let kind = context
        .state
        .regions
        .get(context.region)
        .and_then(|region| {
            region
                .documents
                .iter()
                .find(|document| document.name == command.document)
        })
        .map(|document| document.kind)
        .unwrap_or_default();
    let skips = |host: &Host| host.answer.is_none() && !kind.runs_on(&host.platform);
    match kind.platform().filter(|_| seen.host.is_some_and(skips)) {
        Some(wanted) => skipped(context, kind.step(), wanted, seen),
        None => ran(context, kind.step(), seen),
    }
}

fn ran<'a>(context: &'a Context<'_>, step: &'static str, seen: &'a Seen<'_>) -> ToldPlugin<'a> {
    let invocation = &seen.invocation;
    if seen.awaited {
        let times = (seen.by_its_clock(invocation.began_at), None);
        return plugin(
            context,
            step,
            ("InProgress", "InProgress"),
            -1,
            times,
            "".into(),
        );
    }
    // A step has fewer statuses than an invocation.
    let status = match invocation.status.as_str() {
        "Delayed" => "Pending",
        "Cancelling" => "InProgress",
        other => other,
    };
    let details = match invocation.status_details.as_str() {
        "Delayed" => "Pending",
        other => other,
    };
    let output = Cow::Borrowed(invocation.output.as_str());
    let code = invocation.response_code;
    let times = (
        seen.by_its_clock(invocation.began_at),
        seen.by_its_clock(invocation.ended_at),
    );
    plugin(context, step, (status, details), code, times, output)
}

/// A skipped step, which is a success with a text of the SSM agent's.
fn skipped<'a>(
    context: &'a Context<'_>,
    step: &'static str,
    platform: &str,
    seen: &'a Seen<'_>,
) -> ToldPlugin<'a> {
    let told = ran(context, step, seen);
    let output = match seen.invocation.ended_at {
        Some(_) => Cow::Owned(format!(
            "Step execution skipped due to unsatisfied preconditions: \
             '\"StringEquals\": [platformType, {platform}]'. Step name: {step}"
        )),
        None => told.output.clone(),
    };
    ToldPlugin { output, ..told }
}

fn plugin<'a>(
    context: &'a Context<'_>,
    step: &'static str,
    status: (&'a str, &'a str),
    code: i64,
    times: (Option<f64>, Option<f64>),
    output: Cow<'a, str>,
) -> ToldPlugin<'a> {
    ToldPlugin {
        name: step,
        status: status.0,
        status_details: status.1,
        response_code: code,
        response_start_date_time: times.0.map(|time| context.epoch(time)),
        response_finish_date_time: times.1.map(|time| context.epoch(time)),
        output,
        standard_output_url: "",
        standard_error_url: "",
        output_s3_region: context.region,
        output_s3_bucket_name: "",
        output_s3_key_prefix: "",
    }
}

/// `i-` and 8 or 17 word characters, or `mi-` and 17 (API_SendCommand).
fn is_node_id(id: &str) -> bool {
    let word = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let instance = id
        .strip_prefix("i-")
        .is_some_and(|rest| matches!(rest.len(), 8 | 17) && word(rest));
    instance
        || id
            .strip_prefix("mi-")
            .is_some_and(|rest| rest.len() == 17 && word(rest))
}

fn invalid_instance(id: &str) -> Failure {
    Failure::new(
        "InvalidInstanceId",
        format!("The instance ID {id} is not valid"),
    )
}

fn invalid_token() -> Failure {
    Failure::new("InvalidNextToken", "The specified token isn't valid.")
}
