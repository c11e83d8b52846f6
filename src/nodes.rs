//! What Systems Manager's inventory tells of managed nodes: EC2 instances, and machines outside EC2.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ssm::types::{
    InstanceInformation, InstanceInformationStringFilter, PingStatus, ResourceType,
};
use futures_util::future::try_join_all;

use crate::aws::RegionClients;
use crate::clock::Timestamp;
use crate::decision::Node;
use crate::ids::InstanceId;
use crate::paging::pages;
use crate::platform::PlatformType;
use crate::problem::CallError;
use crate::settings::Tag;
use crate::text::{harmless, plain};

const OPERATION: &str = "ssm:DescribeInstanceInformation";
/// Instance ids in one `DescribeInstanceInformation`, and nodes on one page of it
/// (<https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_DescribeInstanceInformation.html>).
const BATCH: usize = 50;
const PAGE: i32 = 50;
/// Characters of a node's name.
const MAX_NAME: usize = 100;

/// What is known of these nodes. Those that Systems Manager does not know are absent.
///
/// # Errors
/// When a call fails for good.
pub async fn describe(
    client: &RegionClients,
    ids: &[InstanceId],
) -> Result<BTreeMap<InstanceId, Node>, CallError> {
    let batches = ids.chunks(BATCH).map(|batch| describe_batch(client, batch));
    let found = try_join_all(batches).await?;
    Ok(found.into_iter().flatten().filter_map(read).collect())
}

/// A machine outside EC2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its id, `mi-…`.
    pub id: InstanceId,
    /// Its name, to the letter; that which its activation gave it.
    pub name: String,
    /// What else is known of it.
    pub node: Node,
}

/// Every machine outside EC2 that has a name.
///
/// # Errors
/// When a call fails for good.
pub async fn outside_ec2(client: &RegionClients) -> Result<Vec<Machine>, CallError> {
    let kind = vec![ResourceType::ManagedInstance.as_str().to_owned()];
    let found = list(client, "ResourceType", kind, "machines outside EC2").await?;
    let read = |info: InstanceInformation| {
        let name = info.name()?.to_owned();
        let (id, node) = read(info)?;
        id.is_on_premises().then_some(Machine { id, name, node })
    };
    Ok(found.into_iter().filter_map(read).collect())
}

/// Every node that has the tag.
///
/// # Errors
/// When a call fails for good.
pub async fn tagged(client: &RegionClients, tag: &Tag) -> Result<BTreeSet<InstanceId>, CallError> {
    let (key, value) = (format!("tag:{}", tag.key), vec![tag.value.clone()]);
    let found = list(client, &key, value, &format!("nodes with the tag {tag}")).await?;
    let ids = found.iter().filter_map(|info| info.instance_id());
    Ok(ids.filter_map(InstanceId::read).collect())
}

/// One batch. An id that the service rejects spoils the whole call, so the batch is halved until the culprit
/// stands alone; it is then unknown like any other that the service does not list.
async fn describe_batch(
    client: &RegionClients,
    ids: &[InstanceId],
) -> Result<Vec<InstanceInformation>, CallError> {
    let mut nodes = Vec::new();
    let mut open = vec![ids];
    while let Some(ids) = open.pop() {
        let texts = ids.iter().map(ToString::to_string).collect();
        let resource = format!("{} instances", ids.len());
        match list(client, "InstanceIds", texts, &resource).await {
            Ok(found) => nodes.extend(found),
            Err(error) if error.code.refuses_an_id() => {
                if ids.len() > 1 {
                    let (left, right) = ids.split_at(ids.len() / 2);
                    open.extend([right, left]);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(nodes)
}

/// The nodes that pass a filter. A tag is a filter that knows no other beside it.
async fn list(
    client: &RegionClients,
    key: &str,
    values: Vec<String>,
    resource: &str,
) -> Result<Vec<InstanceInformation>, CallError> {
    let filter = &InstanceInformationStringFilter::builder()
        .key(key)
        .set_values(Some(values))
        .build()
        .map_err(|_| CallError::incomplete(OPERATION, resource, "filter"))?;
    pages(OPERATION, |token| async move {
        let page = client
            .ssm
            .turn()
            .await
            .describe_instance_information()
            .filters(filter.clone())
            .max_results(PAGE)
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| CallError::new(OPERATION, resource, &error))?;
        let nodes = page.instance_information_list.unwrap_or_default();
        Ok((nodes, page.next_token))
    })
    .await
}

fn read(info: InstanceInformation) -> Option<(InstanceId, Node)> {
    let id = InstanceId::read(info.instance_id()?)?;
    Some((id, read_node(&info)))
}

fn read_node(info: &InstanceInformation) -> Node {
    // A host chooses its own name.
    let text = |value: Option<&str>| {
        value
            .map(|text| harmless(text, MAX_NAME))
            .filter(|text| !text.is_empty())
    };
    Node {
        ping: plain(
            info.ping_status().map_or("unknown", PingStatus::as_str),
            MAX_NAME,
        ),
        last_ping: info.last_ping_date_time().map(Timestamp::rounded_up),
        name: text(info.name()).or_else(|| text(info.computer_name())),
        platform: PlatformType::read(info.platform_type()),
    }
}
