//! The instances of a deployment group, and one decision for each: restart, or why not.
//!
//! CodeDeploy has already evaluated tag filters, so it is asked *who was deployed to*; Auto Scaling adds
//! the members of now; Systems Manager says who can be reached. [`decide`] is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aws_sdk_autoscaling::types::AutoScalingInstanceDetails;
use aws_sdk_codedeploy::types::{
    DeploymentGroupInfo, DeploymentTarget, InstanceTarget, LifecycleEventStatus, TargetFilterName,
    TargetStatus,
};
use aws_sdk_ssm::types::{InstanceInformation, InstanceInformationStringFilter, PingStatus};
use futures_util::future::{join_all, try_join, try_join_all};
use tokio::time::Instant;

use crate::aws::{CallError, Clients, RegionClients, pages};
use crate::clock::{Clock, Timestamp};
use crate::deployments::{Deployment, Group, GroupName, Unresolved, group_resource};
use crate::outcome::{Kind, Problem};
use crate::text::{plain, quoted};

/// Group names in one `DescribeAutoScalingGroups`, and groups on one page of it.
const AUTO_SCALING_GROUPS_PAGE: i32 = 100;
/// Instance ids in one `DescribeAutoScalingInstances`.
const LIFECYCLE_BATCH: usize = 50;
/// Instance ids in one `DescribeInstanceInformation`, and nodes on one page of it.
const INVENTORY_BATCH: usize = 50;
/// Target ids in one `BatchGetDeploymentTargets`.
const TARGETS_BATCH: usize = 25;
/// The ping status of a node that Systems Manager reaches.
const ONLINE: &str = "Online";
/// Characters of an instance's name.
const MAX_NAME: usize = 100;
/// Seconds after which the targets of a deployment that a request names may well be gone.
const OLD_DEPLOYMENT: u64 = 24 * 60 * 60;

/// The instances of one group, each with its decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The group.
    pub group: Group,
    /// Every candidate once, by id.
    pub instances: BTreeMap<String, Instance>,
    /// What could not be found out; it does not concern the instances above.
    pub problem: Option<Problem>,
    /// What the decisions rest on besides the candidates.
    pub circumstances: Circumstances,
    /// When the lifecycle states were read.
    pub read_at: Instant,
    /// When CodeDeploy said whether another deployment of the group runs.
    pub quiet_at: Instant,
    /// Another deployment of the group runs, or nobody can say that none does: nothing is sent to.
    pub busy: bool,
}

impl Fleet {
    /// The instances whose agents are to be restarted, ascending.
    pub fn to_restart(&self) -> Vec<String> {
        self.instances
            .iter()
            .filter(|(_, instance)| matches!(instance.decision, Decision::Restart(_)))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// The instances that were offline, with the reason: they are asked for once more.
    pub fn offline(&self) -> Vec<(String, String)> {
        self.instances
            .iter()
            .filter_map(|(id, instance)| match &instance.decision {
                Decision::AskAgain(reason) => Some((id.clone(), reason.clone())),
                _ => None,
            })
            .collect()
    }

    /// Whether another deployment of the group runs cannot be said: those that were to be restarted are held
    /// back.
    pub fn hold_back(&mut self, problem: Problem) {
        self.busy = true;
        for instance in self.instances.values_mut() {
            if instance.decision.is_open() {
                let reason = format!("not sent: {}", problem.message);
                instance.decision = Decision::Leave(Kind::HeldBack, reason);
            }
        }
        self.problem = Some(match self.problem.take() {
            Some(first) => first.and(Some(problem)),
            None => problem,
        });
    }

    /// Another deployment of the group still runs: those that were to be restarted are `busy` instead, and
    /// those that were offline are not asked for again.
    pub fn mark_busy(&mut self, deployment_id: &str) {
        self.busy = true;
        for instance in self.instances.values_mut() {
            let left = match &instance.decision {
                Decision::Restart(_) => Decision::Leave(
                    Kind::Busy,
                    format!("deployment {deployment_id} of the group is running"),
                ),
                Decision::AskAgain(reason) => Decision::Leave(Kind::Unreachable, reason.clone()),
                Decision::Elsewhere(_) | Decision::Leave(..) => continue,
            };
            instance.decision = left;
        }
    }
}

/// Makes sure that an instance in several groups is sent to once: by the group whose deployment ended last, then
/// the first in order, and by none while a deployment of any of them runs.
pub fn send_once(fleets: &mut [Result<Fleet, Unresolved>]) {
    let mut homes: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (index, fleet) in fleets.iter().enumerate() {
        let Ok(fleet) = fleet else { continue };
        for (id, instance) in &fleet.instances {
            let left_alone = matches!(
                instance.decision,
                Decision::Leave(Kind::Busy | Kind::Unreachable | Kind::HeldBack, _)
            );
            if fleet.busy && left_alone || instance.decision.is_open() {
                let key = (fleet.group.name.region.clone(), id.clone());
                homes.entry(key).or_default().push(index);
            }
        }
    }
    for ((_, id), indices) in homes {
        if indices.len() < 2 {
            continue;
        }
        let busy = indices
            .iter()
            .filter_map(|index| fleets[*index].as_ref().ok()?.instances.get(&id))
            .map(|instance| &instance.decision)
            .find(|decision| !decision.is_open())
            .cloned();
        let newest = indices
            .iter()
            .filter_map(|index| Some((fleets[*index].as_ref().ok()?.group.triggered_at, index)))
            .max_by_key(|(time, index)| (*time, std::cmp::Reverse(**index)));
        let Some((_, &owner)) = newest else { continue };
        let Ok(owner_fleet) = &fleets[owner] else {
            continue;
        };
        let elsewhere = Decision::Elsewhere(owner_fleet.group.name.clone());
        for index in indices {
            let Ok(fleet) = &mut fleets[index] else {
                continue;
            };
            let Some(instance) = fleet.instances.get_mut(&id) else {
                continue;
            };
            match &busy {
                Some(busy) if instance.decision.is_open() => instance.decision = busy.clone(),
                None if index != owner => instance.decision = elsewhere.clone(),
                _ => {}
            }
        }
    }
}

/// A candidate with its decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The name that Systems Manager shows, else the computer's name.
    pub name: Option<String>,
    /// What to do with it.
    pub decision: Decision,
}

/// What to do with a candidate, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its agent is to be restarted.
    Restart(String),
    /// Systems Manager shows it as offline: to be asked once more, as late as it makes sense.
    AskAgain(String),
    /// Another group of the same event restarts it; its outcome, whatever it is, stands here too.
    Elsewhere(GroupName),
    /// It is accounted for without a restart.
    Leave(Kind, String),
}

impl Decision {
    /// The word in a plan: `restart`, or the outcome.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Restart(_) | Self::Elsewhere(_) => "restart",
            Self::AskAgain(_) => Kind::Unreachable.word(),
            Self::Leave(kind, _) => kind.word(),
        }
    }

    /// Whether it may still be sent to.
    fn is_open(&self) -> bool {
        matches!(self, Self::Restart(_) | Self::AskAgain(_))
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Restart(reason) | Self::AskAgain(reason) | Self::Leave(_, reason) => reason,
            Self::Elsewhere(_) => "sent to once, with another deployment group of this event",
        }
    }
}

/// Everything that a decision rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The id, or the name of an on-premises target.
    pub id: String,
    /// The lifecycle state, when Auto Scaling knows the instance.
    pub lifecycle: Option<Lifecycle>,
    /// What Systems Manager knows of it.
    pub node: Option<Node>,
    /// Whether the deployment did anything on it; `None` when nobody asked or CodeDeploy does not tell.
    pub reached: Option<bool>,
}

/// A managed node, as Systems Manager's inventory shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The connection: `Online`, or something else.
    pub ping: String,
    /// When it last answered.
    pub last_ping: Option<Timestamp>,
    /// Its name, if it has one.
    pub name: Option<String>,
}

/// Facts of the group that its candidates' decisions rest on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// The group selects instances by tags, so a target need not be an Auto Scaling member.
    pub tag_filters: bool,
    /// Asked for by hand, more than a day after the deployment ended.
    pub old_deployment: bool,
}

/// Where an instance stands in its Auto Scaling group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// It runs and stays: `InService`, `Standby`, `EnteringStandby`.
    Staying(String),
    /// It has left the group and runs on.
    Detached,
    /// It is starting, leaving, warming or being replaced: any other state we know.
    Passing(String),
    /// A state that is newer than this function.
    Unknown(String),
}

/// States in which an instance is starting, leaving or not in service (`LifecycleState` of Auto Scaling). A
/// restart there could fail a launch deployment, and with it the launch.
const PASSING: [&str; 26] = [
    "Pending",
    "Pending:Wait",
    "Pending:Proceed",
    "Quarantined",
    "Terminating",
    "Terminating:Wait",
    "Terminating:Proceed",
    "Terminating:Retained",
    "Terminated",
    "Detaching",
    "Warmed:Pending",
    "Warmed:Pending:Wait",
    "Warmed:Pending:Proceed",
    "Warmed:Pending:Retained",
    "Warmed:Terminating",
    "Warmed:Terminating:Wait",
    "Warmed:Terminating:Proceed",
    "Warmed:Terminating:Retained",
    "Warmed:Terminated",
    "Warmed:Stopped",
    "Warmed:Running",
    "Warmed:Hibernated",
    "ReplacingRootVolume",
    "ReplacingRootVolume:Wait",
    "ReplacingRootVolume:Proceed",
    "RootVolumeReplaced",
];

impl Lifecycle {
    /// Reads Auto Scaling's word.
    pub fn read(state: &str) -> Self {
        match state {
            "InService" | "Standby" | "EnteringStandby" => Self::Staying(state.to_owned()),
            "Detached" => Self::Detached,
            known if PASSING.contains(&known) => Self::Passing(state.to_owned()),
            _ => Self::Unknown(state.to_owned()),
        }
    }

    fn is_member(&self) -> bool {
        !matches!(self, Self::Detached)
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Staying(state) | Self::Passing(state) | Self::Unknown(state) => {
                f.write_str(state)
            }
            Self::Detached => f.write_str("Detached"),
        }
    }
}

/// Whether this is an EC2 instance's id. On-premises targets carry names.
pub fn is_instance_id(id: &str) -> bool {
    id.strip_prefix("i-").is_some_and(|digits| {
        (8..=17).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_hexdigit())
    })
}

/// The decision for one candidate.
pub fn decide(candidate: &Candidate, circumstances: Circumstances) -> Decision {
    use Decision::{AskAgain, Leave, Restart};
    if !is_instance_id(&candidate.id) {
        return Leave(
            Kind::Unreachable,
            "an on-premises target: this function cannot match its name to a managed node"
                .to_owned(),
        );
    }
    match &candidate.lifecycle {
        Some(Lifecycle::Passing(state)) => {
            return Leave(Kind::Skipped, format!("lifecycle state {state}"));
        }
        Some(Lifecycle::Unknown(state)) => {
            return Leave(
                Kind::HeldBack,
                format!("unknown lifecycle state {}: not touched", quoted(state)),
            );
        }
        None | Some(Lifecycle::Staying(_) | Lifecycle::Detached) => {}
    }
    match &candidate.node {
        Some(node) if node.ping == ONLINE => Restart(match &candidate.lifecycle {
            Some(lifecycle) => format!("{lifecycle}, online"),
            None => "online".to_owned(),
        }),
        Some(node) => AskAgain(match node.last_ping {
            Some(since) => format!("Systems Manager: {}, offline since {since}", node.ping),
            None => format!("Systems Manager: {}", node.ping),
        }),
        None => decide_missing(candidate, circumstances),
    }
}

/// The decision for a candidate that Systems Manager does not know.
fn decide_missing(candidate: &Candidate, circumstances: Circumstances) -> Decision {
    let skipped = |reason: &str| Decision::Leave(Kind::Skipped, reason.to_owned());
    let member = candidate
        .lifecycle
        .as_ref()
        .is_some_and(Lifecycle::is_member);
    if member {
        return Decision::Leave(
            Kind::Unreachable,
            "not managed by Systems Manager, though a member of its Auto Scaling group".to_owned(),
        );
    }
    if !circumstances.tag_filters {
        return skipped("scaled in: no member of an Auto Scaling group any more");
    }
    if circumstances.old_deployment {
        return skipped("not known to Systems Manager any more; the deployment is over a day old");
    }
    match candidate.reached {
        Some(false) => skipped("the deployment did not reach it (stopped?)"),
        Some(true) | None => Decision::Leave(
            Kind::Unreachable,
            "not managed by Systems Manager".to_owned(),
        ),
    }
}

/// Finds a group's instances and decides for each.
///
/// # Errors
/// A problem when an answer is missing without which nobody can be told apart.
pub async fn find(clients: &Clients, group: &Group, clock: &Clock) -> Result<Fleet, Problem> {
    let client = clients.in_region(&group.name.region);
    read(&client, group, clock.now())
        .await
        .map_err(|error| Problem::of_call("fleet", &error))
}

async fn read(client: &RegionClients, group: &Group, now: Timestamp) -> Result<Fleet, CallError> {
    let (info, targets) = try_join(
        get_group(client, group),
        try_join_all(group.deployments.iter().map(|d| list_targets(client, d))),
    )
    .await?;

    let read_at = Instant::now();
    let names = auto_scaling_groups(&info);
    let members = describe_members(client, &names).await?;
    let mut candidates = BTreeMap::new();
    for id in targets.iter().flatten() {
        candidates.insert(id.clone(), Candidate::new(id));
    }
    // Deployments that CodeDeploy made for instances it had missed concern these alone.
    if !group.deployments.iter().all(|d| d.auto_update) {
        for id in members.lifecycles.keys() {
            candidates.insert(id.clone(), Candidate::new(id));
        }
    }

    let others: Vec<String> = candidates
        .keys()
        .filter(|id| is_instance_id(id) && !members.lifecycles.contains_key(*id))
        .cloned()
        .collect();
    let mut lifecycles = describe_lifecycles(client, &others).await?;
    lifecycles.extend(members.lifecycles);
    for (id, candidate) in &mut candidates {
        candidate.lifecycle = lifecycles.remove(id);
    }

    let asked: Vec<String> = candidates
        .values()
        .filter(|c| is_instance_id(&c.id) && !c.is_left_alone())
        .map(|c| c.id.clone())
        .collect();
    let mut nodes = describe_nodes(client, &asked).await?;
    for id in &asked {
        if let Some(candidate) = candidates.get_mut(id) {
            candidate.node = nodes.remove(id);
        }
    }

    let circumstances = Circumstances {
        tag_filters: has_tag_filters(&info),
        old_deployment: group.by_hand
            && group
                .deployments
                .iter()
                .filter_map(|d| d.completed_at)
                .max()
                .is_some_and(|completed| now.seconds_since(completed) > OLD_DEPLOYMENT),
    };
    // Without this answer those it is about count as unreachable, and the others go on.
    let reached =
        find_out_who_was_reached(client, group, &targets, circumstances, &mut candidates).await;
    let unanswered = reached.err().map(|error| Problem::of_call("fleet", &error));

    let instances = candidates
        .into_values()
        .map(|candidate| {
            let decision = decide(&candidate, circumstances);
            let name = candidate.node.and_then(|node| node.name);
            (candidate.id, Instance { name, decision })
        })
        .collect();
    Ok(Fleet {
        group: group.clone(),
        instances,
        circumstances,
        read_at,
        quiet_at: read_at,
        busy: false,
        problem: match missing_groups(group, &members.missing) {
            Some(problem) => Some(problem.and(unanswered)),
            None => unanswered,
        },
    })
}

/// Decides again for some instances of a fleet, after a while or a refusal: their lifecycle is read again, and
/// with `inventory` also what Systems Manager knows of them. Without it they count as online.
///
/// # Errors
/// When a call fails for good.
pub async fn decide_again(
    client: &RegionClients,
    ids: &[String],
    circumstances: Circumstances,
    inventory: bool,
) -> Result<BTreeMap<String, Decision>, CallError> {
    let mut lifecycles = describe_lifecycles(client, ids).await?;
    let mut nodes = match inventory {
        true => describe_nodes(client, ids).await?,
        false => BTreeMap::new(),
    };
    let online = Node {
        ping: ONLINE.to_owned(),
        last_ping: None,
        name: None,
    };
    Ok(ids
        .iter()
        .map(|id| {
            let candidate = Candidate {
                id: id.clone(),
                lifecycle: lifecycles.remove(id),
                node: match inventory {
                    true => nodes.remove(id),
                    false => Some(online.clone()),
                },
                reached: None,
            };
            let decision = decide(&candidate, circumstances);
            (candidate.id, decision)
        })
        .collect())
}

impl Candidate {
    fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            lifecycle: None,
            node: None,
            reached: None,
        }
    }

    fn is_left_alone(&self) -> bool {
        matches!(
            self.lifecycle,
            Some(Lifecycle::Passing(_) | Lifecycle::Unknown(_))
        )
    }
}

async fn get_group(
    client: &RegionClients,
    group: &Group,
) -> Result<DeploymentGroupInfo, CallError> {
    const OPERATION: &str = "codedeploy:GetDeploymentGroup";
    let resource = group_resource(&group.name);
    client
        .codedeploy
        .get_deployment_group()
        .application_name(&group.name.application)
        .deployment_group_name(&group.name.deployment_group)
        .send()
        .await
        .map_err(|error| CallError::new(OPERATION, &resource, &error))?
        .deployment_group_info
        .ok_or_else(|| CallError::incomplete(OPERATION, resource, "deploymentGroupInfo"))
}

fn auto_scaling_groups(info: &DeploymentGroupInfo) -> Vec<String> {
    let names: BTreeSet<String> = info
        .auto_scaling_groups()
        .iter()
        .filter_map(|group| group.name().map(str::to_owned))
        .collect();
    names.into_iter().collect()
}

/// An empty list of filters matches nothing, not everything.
fn has_tag_filters(info: &DeploymentGroupInfo) -> bool {
    let tag_set = info.ec2_tag_set().map(|set| set.ec2_tag_set_list());
    !info.ec2_tag_filters().is_empty() || tag_set.is_some_and(|list| !list.is_empty())
}

/// The ids of those that a deployment went to. For blue/green only the green ones: CodeDeploy refuses the
/// label for a deployment in place.
async fn list_targets(
    client: &RegionClients,
    deployment: &Deployment,
) -> Result<Vec<String>, CallError> {
    const OPERATION: &str = "codedeploy:ListDeploymentTargets";
    pages(OPERATION, |token| async move {
        let mut call = client
            .codedeploy
            .list_deployment_targets()
            .deployment_id(&deployment.id)
            .set_next_token(token);
        if deployment.blue_green {
            call = call.target_filters(
                TargetFilterName::ServerInstanceLabel,
                vec!["Green".to_owned()],
            );
        }
        let page = call.send().await.map_err(|error| {
            CallError::new(OPERATION, format!("deployment {}", deployment.id), &error)
        })?;
        Ok((page.target_ids.unwrap_or_default(), page.next_token))
    })
    .await
}

/// The present members of Auto Scaling groups, and the groups that do not exist.
struct Members {
    lifecycles: BTreeMap<String, Lifecycle>,
    missing: Vec<String>,
}

async fn describe_members(client: &RegionClients, names: &[String]) -> Result<Members, CallError> {
    const OPERATION: &str = "autoscaling:DescribeAutoScalingGroups";
    let mut missing: BTreeSet<&String> = names.iter().collect();
    let mut lifecycles = BTreeMap::new();
    if !names.is_empty() {
        let groups = pages(OPERATION, |token| async move {
            let page = client
                .autoscaling
                .describe_auto_scaling_groups()
                .set_auto_scaling_group_names(Some(names.to_vec()))
                .max_records(AUTO_SCALING_GROUPS_PAGE)
                .set_next_token(token)
                .send()
                .await
                .map_err(|error| CallError::new(OPERATION, names.join(", "), &error))?;
            Ok((
                page.auto_scaling_groups.unwrap_or_default(),
                page.next_token,
            ))
        })
        .await?;
        for group in &groups {
            missing.retain(|name| Some(name.as_str()) != group.auto_scaling_group_name());
            for instance in group.instances() {
                let state = instance
                    .lifecycle_state()
                    .map_or("", |state| state.as_str());
                if let Some(id) = instance.instance_id() {
                    lifecycles.insert(id.to_owned(), Lifecycle::read(state));
                }
            }
        }
    }
    Ok(Members {
        lifecycles,
        missing: missing.into_iter().cloned().collect(),
    })
}

fn missing_groups(group: &Group, missing: &[String]) -> Option<Problem> {
    (!missing.is_empty()).then(|| {
        Problem::new(
            "fleet",
            "AutoScalingGroupMissing",
            format!(
                "{} names Auto Scaling groups that do not exist: {}",
                group_resource(&group.name),
                missing.join(", ")
            ),
            "correct the deployment group",
        )
    })
}

async fn describe_lifecycles(
    client: &RegionClients,
    ids: &[String],
) -> Result<BTreeMap<String, Lifecycle>, CallError> {
    let batches = ids
        .chunks(LIFECYCLE_BATCH)
        .map(|batch| describe_lifecycles_listed(client, batch));
    let found = try_join_all(batches).await?;
    Ok(found
        .into_iter()
        .flatten()
        .filter_map(|instance| {
            let lifecycle = Lifecycle::read(instance.lifecycle_state().unwrap_or_default());
            Some((instance.instance_id?, lifecycle))
        })
        .collect())
}

/// One batch: those that the service lists, also where its list moved up between two pages.
async fn describe_lifecycles_listed(
    client: &RegionClients,
    ids: &[String],
) -> Result<Vec<AutoScalingInstanceDetails>, CallError> {
    let (mut found, pages_read) = describe_lifecycles_once(client, ids).await?;
    let known = found.iter().filter_map(|instance| instance.instance_id());
    let missing = between_pages(ids, known.collect(), pages_read);
    if !missing.is_empty() {
        found.extend(describe_lifecycles_once(client, &missing).await?.0);
    }
    Ok(found)
}

/// Every page, and their number.
async fn describe_lifecycles_once(
    client: &RegionClients,
    ids: &[String],
) -> Result<(Vec<AutoScalingInstanceDetails>, usize), CallError> {
    const OPERATION: &str = "autoscaling:DescribeAutoScalingInstances";
    let mut pages_read = 0;
    let found = pages(OPERATION, |token| {
        pages_read += 1;
        async move {
            let page = client
                .autoscaling
                .describe_auto_scaling_instances()
                .set_instance_ids(Some(ids.to_vec()))
                .set_next_token(token)
                .send()
                .await
                .map_err(|error| {
                    CallError::new(OPERATION, format!("{} instances", ids.len()), &error)
                })?;
            Ok((
                page.auto_scaling_instances.unwrap_or_default(),
                page.next_token,
            ))
        }
    })
    .await?;
    Ok((found, pages_read))
}

/// Those that may have fallen between two pages: when an instance goes away in mid-paging, the rest of the list
/// may move up. They are asked for once more.
fn between_pages(ids: &[String], known: BTreeSet<&str>, pages_read: usize) -> Vec<String> {
    let missing = ids.iter().filter(|id| !known.contains(id.as_str()));
    match pages_read {
        0 | 1 => Vec::new(),
        _ => missing.cloned().collect(),
    }
}

/// What Systems Manager knows of these instances. Those it does not know are absent.
async fn describe_nodes(
    client: &RegionClients,
    ids: &[String],
) -> Result<BTreeMap<String, Node>, CallError> {
    let batches = ids
        .chunks(INVENTORY_BATCH)
        .map(|batch| describe_nodes_of(client, batch));
    let mut nodes = BTreeMap::new();
    for found in join_all(batches).await {
        for info in found? {
            if let Some(id) = info.instance_id() {
                nodes.insert(id.to_owned(), read_node(&info));
            }
        }
    }
    Ok(nodes)
}

/// One batch. An id that the service rejects spoils the whole call, so the batch is halved until the culprit
/// stands alone; it is then unknown like any other that the service does not list.
async fn describe_nodes_of(
    client: &RegionClients,
    ids: &[String],
) -> Result<Vec<InstanceInformation>, CallError> {
    let mut nodes = Vec::new();
    let mut open = vec![ids];
    while let Some(ids) = open.pop() {
        match describe_nodes_listed(client, ids).await {
            Ok(found) => nodes.extend(found),
            Err(error) if error.code == "InvalidInstanceId" => {
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

/// Those that the service lists, also where its list moved up between two pages.
async fn describe_nodes_listed(
    client: &RegionClients,
    ids: &[String],
) -> Result<Vec<InstanceInformation>, CallError> {
    let (mut found, pages_read) = describe_nodes_once(client, ids).await?;
    let known = found.iter().filter_map(|node| node.instance_id());
    let missing = between_pages(ids, known.collect(), pages_read);
    if !missing.is_empty() {
        found.extend(describe_nodes_once(client, &missing).await?.0);
    }
    Ok(found)
}

/// Every page, and their number.
async fn describe_nodes_once(
    client: &RegionClients,
    ids: &[String],
) -> Result<(Vec<InstanceInformation>, usize), CallError> {
    const OPERATION: &str = "ssm:DescribeInstanceInformation";
    let resource = format!("{} instances", ids.len());
    let filter = InstanceInformationStringFilter::builder()
        .key("InstanceIds")
        .set_values(Some(ids.to_vec()))
        .build()
        .map_err(|_| CallError::incomplete(OPERATION, &resource, "filter"))?;
    let mut pages_read = 0;
    let found = pages(OPERATION, |token| {
        pages_read += 1;
        let (filter, resource) = (filter.clone(), resource.clone());
        async move {
            let _turn = client.ssm_pace.turn().await;
            let page = client
                .ssm
                .describe_instance_information()
                .filters(filter)
                .max_results(i32::try_from(INVENTORY_BATCH).unwrap_or(i32::MAX))
                .set_next_token(token)
                .send()
                .await
                .map_err(|error| CallError::new(OPERATION, resource, &error))?;
            Ok((
                page.instance_information_list.unwrap_or_default(),
                page.next_token,
            ))
        }
    })
    .await?;
    Ok((found, pages_read))
}

fn read_node(info: &InstanceInformation) -> Node {
    // A host chooses its own name.
    let text = |value: Option<&str>| {
        value
            .map(|text| plain(text, MAX_NAME))
            .filter(|text| !text.is_empty())
    };
    Node {
        ping: plain(
            info.ping_status().map_or("unknown", PingStatus::as_str),
            MAX_NAME,
        ),
        last_ping: info.last_ping_date_time().map(Timestamp::rounded_up),
        name: text(info.name()).or_else(|| text(info.computer_name())),
    }
}

/// Asks CodeDeploy about the targets that Systems Manager does not know: it also lists instances that were
/// stopped during the deployment, and those have no agent to restart.
async fn find_out_who_was_reached(
    client: &RegionClients,
    group: &Group,
    targets: &[Vec<String>],
    circumstances: Circumstances,
    candidates: &mut BTreeMap<String, Candidate>,
) -> Result<(), CallError> {
    if !circumstances.tag_filters || circumstances.old_deployment {
        return Ok(());
    }
    let unknown: BTreeSet<String> = candidates
        .values()
        .filter(|c| is_instance_id(&c.id) && c.node.is_none() && !c.is_left_alone())
        .filter(|c| !c.lifecycle.as_ref().is_some_and(Lifecycle::is_member))
        .map(|c| c.id.clone())
        .collect();
    for (deployment, ids) in group.deployments.iter().zip(targets) {
        let asked: Vec<String> = ids
            .iter()
            .filter(|id| unknown.contains(*id))
            .cloned()
            .collect();
        for target in get_targets(client, deployment, &asked).await? {
            let Some(candidate) = target.target_id().and_then(|id| candidates.get_mut(id)) else {
                continue;
            };
            // Reached by any of the deployments is reached.
            candidate.reached = Some(candidate.reached.unwrap_or(false) || was_reached(&target));
        }
    }
    Ok(())
}

async fn get_targets(
    client: &RegionClients,
    deployment: &Deployment,
    ids: &[String],
) -> Result<Vec<InstanceTarget>, CallError> {
    const OPERATION: &str = "codedeploy:BatchGetDeploymentTargets";
    let batches = ids.chunks(TARGETS_BATCH).map(|batch| async move {
        client
            .codedeploy
            .batch_get_deployment_targets()
            .deployment_id(&deployment.id)
            .set_target_ids(Some(batch.to_vec()))
            .send()
            .await
            .map(|answer| answer.deployment_targets.unwrap_or_default())
            .map_err(|error| {
                CallError::new(OPERATION, format!("deployment {}", deployment.id), &error)
            })
    });
    Ok(try_join_all(batches)
        .await?
        .into_iter()
        .flatten()
        .filter_map(|target: DeploymentTarget| target.instance_target)
        .collect())
}

/// Whether the deployment did anything on the target: a lifecycle event that only waits is nothing.
fn was_reached(target: &InstanceTarget) -> bool {
    let untouched = matches!(
        target.status(),
        Some(TargetStatus::Pending | TargetStatus::Skipped)
    );
    let started = target.lifecycle_events().iter().any(|event| {
        !matches!(
            event.status(),
            None | Some(LifecycleEventStatus::Pending | LifecycleEventStatus::Skipped)
        )
    });
    !untouched && started
}

#[cfg(test)]
mod tests {
    use aws_sdk_codedeploy::types::{Ec2TagFilter, Ec2TagSet};

    use super::*;
    use crate::clock::Timestamp;

    const ID: &str = "i-0123456789abcdef0";

    /// A group with one instance.
    fn fleet(name: &str, triggered_at: u64, decision: Decision) -> Fleet {
        let instance = Instance {
            name: None,
            decision,
        };
        Fleet {
            group: Group {
                name: group_name(name),
                deployments: Vec::new(),
                triggered_at: Timestamp(triggered_at),
                by_hand: false,
            },
            instances: BTreeMap::from([(ID.to_owned(), instance)]),
            problem: None,
            circumstances: Circumstances::default(),
            read_at: Instant::now(),
            quiet_at: Instant::now(),
            busy: false,
        }
    }

    fn group_name(name: &str) -> GroupName {
        GroupName {
            account: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            application: "shop".to_owned(),
            deployment_group: name.to_owned(),
        }
    }

    fn restart() -> Decision {
        Decision::Restart("online".to_owned())
    }

    fn decisions(fleets: impl IntoIterator<Item = Fleet>) -> Vec<Decision> {
        let mut fleets: Vec<_> = fleets.into_iter().map(Ok).collect();
        send_once(&mut fleets);
        fleets
            .into_iter()
            .flatten()
            .map(|fleet| fleet.instances[ID].decision.clone())
            .collect()
    }

    #[test]
    fn of_three_groups_one_sends_to_the_instance_that_is_in_all() {
        let fleets = [("a", 5), ("b", 9), ("c", 7)];
        let fleets = fleets.map(|(name, time)| fleet(name, time, restart()));
        let elsewhere = || Decision::Elsewhere(group_name("b"));
        assert_eq!(decisions(fleets), [elsewhere(), restart(), elsewhere()]);
    }

    #[test]
    fn what_is_skipped_in_a_busy_group_may_be_restarted_by_another() {
        let skipped = Decision::Leave(Kind::Skipped, "scaled in".to_owned());
        let busy = Fleet {
            busy: true,
            ..fleet("busy", 9, skipped.clone())
        };
        let quiet = fleet("quiet", 5, restart());
        assert_eq!(decisions([busy, quiet]), [skipped, restart()]);
    }

    #[test]
    fn of_two_busy_groups_each_names_its_own_deployment() {
        let mut fleets = ["d-FIRST", "d-SECOND"].map(|name| fleet(name, 5, restart()));
        for (fleet, deployment) in fleets.iter_mut().zip(["d-FIRST", "d-SECOND"]) {
            fleet.mark_busy(deployment);
        }
        let reasons = decisions(fleets);
        assert!(reasons[0].reason().contains("d-FIRST"));
        assert!(reasons[1].reason().contains("d-SECOND"));
    }

    #[test]
    fn a_tag_set_counts_like_tag_filters_and_an_empty_one_like_none() {
        let filter = || Ec2TagFilter::builder().key("app").build();
        let info = DeploymentGroupInfo::builder;
        let set = |list| Ec2TagSet::builder().set_ec2_tag_set_list(list).build();
        assert!(!has_tag_filters(&info().build()));
        assert!(has_tag_filters(&info().ec2_tag_filters(filter()).build()));
        assert!(!has_tag_filters(&info().ec2_tag_set(set(None)).build()));
        let some = set(Some(vec![vec![filter()]]));
        assert!(has_tag_filters(&info().ec2_tag_set(some).build()));
    }
}
