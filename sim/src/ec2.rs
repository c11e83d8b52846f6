//! EC2: instances and their states.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::service::{Answered, Context, Input, object, page};
use crate::state::Host;
use crate::wire::{Failure, hash, iso_8601};

/// Instances in one page (API_DescribeInstances).
const MAX_INSTANCES: (i64, i64) = (5, 1000);
/// Values of all filters of one call (EC2's "Client error codes", `FilterLimitExceeded`).
const MAX_FILTER_VALUES: usize = 200;
/// The parameters that the simulation knows.
const PARAMETERS: [&str; 4] = ["Filter", "InstanceId", "MaxResults", "NextToken"];
/// Seconds before the start at which every instance was launched.
const LAUNCHED: f64 = -2_592_000.0;
/// Instances that one call of somebody's launched together.
const LAUNCHED_TOGETHER: usize = 3;

/// Ids in a filter that there are no instances for are left out; named as such they are an error. A page is cut out of all
/// instances before a filter looks at it: it may be short, or empty, and have a next one.
pub(crate) fn describe_instances(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    if let Some(name) = input.names().find(|name| !PARAMETERS.contains(name)) {
        let message = format!("The parameter {name} is not recognized");
        return Err(Failure::new("UnknownParameter", message));
    }
    let filters = filters(input)?;
    let ids = input.texts("InstanceId")?.unwrap_or_default();
    if !ids.is_empty() && input.has("MaxResults") {
        let message = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(Failure::new("InvalidParameterCombination", message));
    }
    let sizes = (&context.state.page_sizes, context.state.page_shortfall);
    let size = input.page_size("MaxResults", MAX_INSTANCES, sizes.0.instances, sizes.1)?;
    let start = iso_8601(context.epoch(LAUNCHED));
    let (region, account) = (context.region.to_owned(), context.state.account.clone());
    let known = launches(&context.here().hosts);
    check_ids(&ids, &known)?;
    let named = |host: &Host| ids.is_empty() || ids.contains(&host.id.as_str());
    let asked: Vec<(u64, &Host)> = known.into_iter().filter(|(_, host)| named(host)).collect();
    let size = if ids.is_empty() { size } else { asked.len() };
    let query = format!("DescribeInstances {region} {filters:?} {ids:?}");
    let page = page(asked, size, input.text("NextToken")?, &query)
        .ok_or_else(|| Failure::new("InvalidNextToken", "The specified NextToken is not valid."))?;
    let mut reservations: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for (launch, host) in page.items {
        if filters
            .iter()
            .all(|(name, values)| passes(host, name, values))
        {
            let told = instance(host, &region, &start);
            reservations.entry(launch).or_default().push(told);
        }
    }
    let reservations: Vec<Value> = reservations
        .into_iter()
        .map(|(launch, instances)| {
            json!({
                "reservationId": format!("r-0{launch:016x}"),
                "ownerId": account,
                "groupSet": [],
                "instancesSet": instances,
            })
        })
        .collect();
    Ok(object(
        json!({ "reservationSet": reservations, "nextToken": page.next }),
    ))
}

/// The instances that EC2 knows, each with the launch that it belongs to, in no order that means anything.
fn launches(hosts: &[Host]) -> Vec<(u64, &Host)> {
    let instances = hosts.iter().filter(|host| is_instance_id(&host.id));
    let mut known: Vec<(u64, &Host)> = instances
        .enumerate()
        .map(|(place, host)| (hash(&format!("launch {}", place / LAUNCHED_TOGETHER)), host))
        .filter(|(_, host)| !host.forgotten)
        .collect();
    known.sort_by_key(|(launch, host)| (*launch, hash(&host.id)));
    known
}

fn check_ids(ids: &[&str], known: &[(u64, &Host)]) -> Result<(), Failure> {
    if let Some(id) = ids.iter().find(|id| !is_instance_id(id)) {
        let message = format!("Invalid id: \"{id}\"");
        return Err(Failure::new("InvalidInstanceID.Malformed", message));
    }
    let unknown = |id: &&&str| known.iter().all(|(_, host)| host.id != **id);
    match ids.iter().find(unknown) {
        Some(id) => {
            let message = format!("The instance ID '{id}' does not exist");
            Err(Failure::new("InvalidInstanceID.NotFound", message))
        }
        None => Ok(()),
    }
}

fn is_instance_id(id: &str) -> bool {
    id.strip_prefix("i-").is_some_and(|digits| {
        [8, 17].contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn filters<'a>(input: &Input<'a>) -> Result<Vec<(&'a str, Vec<&'a str>)>, Failure> {
    let invalid = |message: String| Failure::new("InvalidParameterValue", message);
    let mut filters = Vec::new();
    for filter in input.structures("Filter")? {
        let name = filter.text("Name")?.unwrap_or("null");
        if !["instance-id", "instance-state-name"].contains(&name) {
            return Err(invalid(format!("The filter '{name}' is invalid")));
        }
        let values = filter.texts("Value")?.unwrap_or_default();
        if values.is_empty() {
            return Err(invalid(format!("The filter '{name}' has no values")));
        }
        if values.iter().any(|value| value.contains(['*', '?'])) {
            return Err(invalid("The simulation knows no wildcards".to_owned()));
        }
        filters.push((name, values));
    }
    let values: usize = filters.iter().map(|(_, values)| values.len()).sum();
    if values > MAX_FILTER_VALUES {
        let message = format!(
            "The maximum number of filter values specified on a single call is {MAX_FILTER_VALUES}"
        );
        return Err(Failure::new("FilterLimitExceeded", message));
    }
    Ok(filters)
}

fn passes(host: &Host, name: &str, values: &[&str]) -> bool {
    let value = match name {
        "instance-id" => &host.id,
        _ => &host.state,
    };
    values.contains(&value.as_str())
}

fn instance(host: &Host, region: &str, launched: &str) -> Value {
    let gone = host.state == "terminated";
    let ended = ["stopped", "terminated"].contains(&host.state.as_str());
    let reason = json!({
        "code": "Client.UserInitiatedShutdown",
        "message": "Client.UserInitiatedShutdown: User initiated shutdown",
    });
    json!({
        "instanceId": host.id,
        "imageId": "ami-0123456789abcdef0",
        "instanceState": { "code": state_code(&host.state), "name": host.state },
        "privateDnsName": if gone { "" } else { host.computer_name.as_str() },
        "dnsName": "",
        "reason": if ended { "User initiated" } else { "" },
        "stateReason": ended.then_some(reason),
        "amiLaunchIndex": 0,
        "productCodes": [],
        "instanceType": "t3.micro",
        "launchTime": launched,
        "placement": { "availabilityZone": format!("{region}a"), "groupName": "", "tenancy": "default" },
        "monitoring": { "state": "disabled" },
        "subnetId": (!gone).then_some("subnet-0123456789abcdef0"),
        "vpcId": (!gone).then_some("vpc-0123456789abcdef0"),
        "architecture": "x86_64",
        "rootDeviceType": "ebs",
        "rootDeviceName": "/dev/xvda",
        "blockDeviceMapping": [],
        "virtualizationType": "hvm",
        "tagSet": tags(host),
        "hypervisor": "xen",
        "platformDetails": if host.platform == "Windows" { "Windows" } else { "Linux/UNIX" },
    })
}

/// One that was terminated loses them before EC2 forgets it.
fn tags(host: &Host) -> Vec<Value> {
    let name = host.name.as_deref().map(|name| ("Name", name));
    let others = host
        .tags
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    name.into_iter()
        .chain(others)
        .filter(|_| host.state != "terminated")
        .map(|(key, value)| json!({ "key": key, "value": value }))
        .collect()
}

/// The state's number in the low byte (API_InstanceState).
fn state_code(state: &str) -> u8 {
    match state {
        "pending" => 0,
        "shutting-down" => 32,
        "terminated" => 48,
        "stopping" => 64,
        "stopped" => 80,
        _ => 16,
    }
}
