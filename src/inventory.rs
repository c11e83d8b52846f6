//! The instances of a deployment group, and what is known of each: CodeDeploy has evaluated tag filters already,
//! so it is asked *who was deployed to*; Auto Scaling adds the members of now; Systems Manager says who can be
//! reached, and EC2 whether the others run. Which machine an on-premises target is, the [`directory`](crate::directory)
//! says; what to do with each is decided in [`decision`](crate::decision).

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_autoscaling::types::AutoScalingInstanceDetails;
use aws_sdk_codedeploy::types::DeploymentGroupInfo;
use futures_util::future::try_join_all;
use tokio::time::Instant;

use crate::aws::{ATTEMPT_TIMEOUT, RegionClients};
use crate::clock::Clock;
use crate::decision::{
    Candidate, Circumstances, Decision, Lifecycle, Machine, Names, Node, Running, Tagged, Target,
    decide,
};
use crate::deployments::list_targets;
use crate::directory::Directory;
use crate::ec2;
use crate::groups::Group;
use crate::ids::{GroupName, InstanceId, Region};
use crate::nodes;
use crate::paging::pages;
use crate::platform::Platform;
use crate::problem::{CallError, Code, Problem, Problems, Step};
use crate::settings::{Settings, Tag};
use crate::text::harmless;

/// Group names in one `DescribeAutoScalingGroups`, and groups on one page of it.
const AUTO_SCALING_GROUPS_PAGE: i32 = 100;
/// Instance ids in one `DescribeAutoScalingInstances`, and instances on one page of it
/// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingInstances.html>).
const LIFECYCLE_BATCH: usize = 50;
/// Characters of the names of Auto Scaling groups.
const MAX_SHOWN: usize = 300;
/// Seconds for which EC2 shows an instance that was terminated, about
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html>).
const TERMINATED_ARE_SHOWN: u64 = 60 * 60;

/// The instances of one group, each with its decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Every candidate once.
    pub instances: BTreeMap<Target, Instance>,
    /// The machines that CodeDeploy's names turned out to be.
    pub names: Names,
    /// What could not be found out; it does not concern the instances above.
    pub problems: Problems,
    /// What the decisions rest on besides the candidates.
    pub circumstances: Circumstances,
    /// When the lifecycle states were read.
    pub read_at: Instant,
}

/// A candidate with its decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The name that Systems Manager shows, else the computer's name.
    pub name: Option<String>,
    /// What to do with it.
    pub decision: Decision,
}

/// Finds a group's instances and decides for each.
///
/// # Errors
/// When an answer is missing without which nobody can be told apart.
pub async fn find(
    client: &RegionClients,
    group: &Group,
    running: Running,
    settings: &Settings,
    directory: &Directory,
    clock: &Clock,
) -> Result<Fleet, CallError> {
    let info = get_group(client, &group.name).await?;
    let read_at = Instant::now();
    let names = auto_scaling_groups(&info);
    let members = describe_members(client, &names).await?;
    let mut targets: BTreeSet<Target> = group.targets().cloned().collect();
    // One that had not begun when it was asked about has them now.
    for deployment in group.deployments.iter().filter(|d| d.targets.is_empty()) {
        targets.extend(list_targets(client, deployment).await?);
    }
    let mut candidates: BTreeMap<Target, Candidate> = targets
        .into_iter()
        .map(|target| (target, Candidate::default()))
        .collect();
    // Deployments that CodeDeploy made for instances it had missed concern these alone.
    if group.deployments.is_empty() || !group.deployments.iter().all(|d| d.auto_update) {
        let present = members.lifecycles.keys().cloned();
        candidates.extend(present.map(|id| (Target::Instance(id), Candidate::default())));
    }

    let others = instances(&candidates, |id, _| !members.lifecycles.contains_key(id));
    let mut lifecycles = describe_lifecycles(client, &others).await?;
    lifecycles.extend(members.lifecycles);
    for (target, candidate) in &mut candidates {
        candidate.lifecycle = target.instance().and_then(|id| lifecycles.remove(id));
    }

    let asked = instances(&candidates, |_, candidate| candidate.may_stay());
    let mut nodes = nodes::describe(client, &asked).await?;
    for (target, candidate) in &mut candidates {
        candidate.node = target.instance().and_then(|id| nodes.remove(id));
    }

    let mut problems = Problems::default();
    let region = &group.name.region;
    let (names, unread) = match_names(client, region, directory, &mut candidates).await;
    problems.extend(unread.map(|error| Problem::of_call(Step::Fleet, &error)));

    let ends = group.deployments.iter().filter_map(|d| d.completed_at);
    let circumstances = Circumstances {
        running: running.named(&names),
        long_ago: ends
            .max()
            .is_some_and(|ended| clock.now().seconds_since(ended) > TERMINATED_ARE_SHOWN),
        platforms: settings.documents.platforms(),
        tag: settings.instance_tag.clone(),
    };
    problems.extend(missing_groups(&group.name, &members.missing));
    if candidates.is_empty() {
        problems.note(no_targets(group));
    }
    let tag = circumstances.tag.as_ref();
    let unanswered = ask_ec2(client, &mut candidates, tag).await;
    let asked = tag.filter(|_| unanswered.is_none());
    problems.extend(asked.and_then(|tag| nobody_tagged(&group.name, tag, &candidates)));
    problems.extend(unanswered.map(|error| Problem::of_call(Step::Fleet, &error)));

    let instances = candidates
        .into_iter()
        .map(|(target, candidate)| {
            let decision = decide(&target, &candidate, &circumstances);
            let name = candidate.node.and_then(|node| node.name);
            (target, Instance { name, decision })
        })
        .collect();
    Ok(Fleet {
        instances,
        names,
        problems,
        circumstances,
        read_at,
    })
}

/// What is to be asked again about instances that were decided to be restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Their lifecycle: they count as online still, and are all of this platform.
    Lifecycle(Platform),
    /// Their lifecycle, whether Systems Manager reaches them, and else whether they run.
    LifecycleAndInventory,
}

/// What was decided again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// One for each instance.
    pub decisions: BTreeMap<InstanceId, Decision>,
    /// Since when the lifecycle states may have changed: not the moment of the question, since an answer may come after
    /// many attempts.
    pub read_at: Instant,
    /// EC2 was asked, and did not answer.
    pub unanswered: Option<CallError>,
}

/// Decides again for some instances of a fleet, after a while or a refusal.
///
/// # Errors
/// When another call than EC2's fails for good.
pub async fn decide_again(
    client: &RegionClients,
    ids: &[InstanceId],
    circumstances: &Circumstances,
    question: Question,
) -> Result<Again, CallError> {
    let asked_at = Instant::now();
    let of_ec2: Vec<InstanceId> = ids
        .iter()
        .filter(|id| !id.is_on_premises())
        .cloned()
        .collect();
    let mut lifecycles = describe_lifecycles(client, &of_ec2).await?;
    let answered = Instant::now().checked_sub(ATTEMPT_TIMEOUT);
    let read_at = answered.map_or(asked_at, |answered| answered.max(asked_at));
    let mut nodes = match question {
        Question::LifecycleAndInventory => nodes::describe(client, ids).await?,
        Question::Lifecycle(platform) => ids
            .iter()
            .map(|id| (id.clone(), Node::online(platform)))
            .collect(),
    };
    let mut candidates: BTreeMap<Target, Candidate> = ids
        .iter()
        .map(|id| {
            let candidate = Candidate {
                lifecycle: lifecycles.remove(id),
                node: nodes.remove(id),
                machine: match id.is_on_premises() {
                    true => Machine::OutsideEc2,
                    false => Machine::Untold,
                },
                // A tag does not change from minute to minute. Who was refused, or comes back, EC2 is asked about.
                tagged: match question {
                    Question::LifecycleAndInventory if !id.is_on_premises() => Tagged::Untold,
                    Question::LifecycleAndInventory | Question::Lifecycle(_) => Tagged::Yes,
                },
                namesakes: None,
            };
            (Target::Instance(id.clone()), candidate)
        })
        .collect();
    let tag = circumstances.tag.as_ref();
    let unanswered = ask_ec2(client, &mut candidates, tag).await;
    let decide = |(target, candidate): (&Target, &Candidate)| {
        let decision = decide(target, candidate, circumstances);
        Some((target.instance()?.clone(), decision))
    };
    Ok(Again {
        decisions: candidates.iter().filter_map(decide).collect(),
        read_at,
        unanswered,
    })
}

/// Exchanges the names of machines outside EC2 for their ids, as far as there is exactly one of a name. Without Systems
/// Manager's answer they stay names, and the others go on.
async fn match_names(
    client: &RegionClients,
    region: &Region,
    directory: &Directory,
    candidates: &mut BTreeMap<Target, Candidate>,
) -> (Names, Option<CallError>) {
    let mut names = Names::default();
    if candidates.keys().all(|target| target.instance().is_some()) {
        return (names, None);
    }
    let machines = match directory.in_region(client, region).await {
        Ok(machines) => machines,
        Err(error) => return (names, Some(error)),
    };
    let mut matched = BTreeMap::new();
    for (target, candidate) in std::mem::take(candidates) {
        match target {
            Target::OnPremises(name) => {
                let (target, candidate) = machines.candidate(&name);
                if let Some(id) = target.instance() {
                    names.note(&name, id);
                }
                matched.insert(target, candidate);
            }
            Target::Instance(_) => _ = matched.insert(target, candidate),
        }
    }
    *candidates = matched;
    (names, None)
}

/// The instances among the candidates that fit.
fn instances(
    candidates: &BTreeMap<Target, Candidate>,
    fits: impl Fn(&InstanceId, &Candidate) -> bool,
) -> Vec<InstanceId> {
    candidates
        .iter()
        .filter_map(|(target, candidate)| Some((target.instance()?, candidate)))
        .filter(|(id, candidate)| fits(id, candidate))
        .map(|(id, _)| id.clone())
        .collect()
}

async fn get_group(
    client: &RegionClients,
    name: &GroupName,
) -> Result<DeploymentGroupInfo, CallError> {
    const OPERATION: &str = "codedeploy:GetDeploymentGroup";
    let resource = format!("deployment group {name}");
    client
        .codedeploy
        .get_deployment_group()
        .application_name(name.application.as_str())
        .deployment_group_name(name.deployment_group.as_str())
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

/// The present members of Auto Scaling groups, and the groups that do not exist.
#[derive(Default)]
struct Members {
    lifecycles: BTreeMap<InstanceId, Lifecycle>,
    missing: Vec<String>,
}

async fn describe_members(client: &RegionClients, names: &[String]) -> Result<Members, CallError> {
    const OPERATION: &str = "autoscaling:DescribeAutoScalingGroups";
    let mut members = Members::default();
    // No names would mean every group of the account.
    if names.is_empty() {
        return Ok(members);
    }
    members.missing.extend_from_slice(names);
    let groups = pages(OPERATION, |token| async move {
        let page = client
            .autoscaling
            .describe_auto_scaling_groups()
            .set_auto_scaling_group_names(Some(names.to_vec()))
            .max_records(AUTO_SCALING_GROUPS_PAGE)
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| CallError::new(OPERATION, shown(names), &error))?;
        let groups = page.auto_scaling_groups.unwrap_or_default();
        Ok((groups, page.next_token))
    })
    .await?;
    for group in &groups {
        let name = group.auto_scaling_group_name();
        members
            .missing
            .retain(|missing| Some(missing.as_str()) != name);
        for instance in group.instances() {
            let state = instance
                .lifecycle_state()
                .map_or("", |state| state.as_str());
            if let Some(id) = instance.instance_id().and_then(InstanceId::read) {
                members.lifecycles.insert(id, Lifecycle::read(state));
            }
        }
    }
    Ok(members)
}

/// The names of Auto Scaling groups, which may hold anything.
fn shown(names: &[String]) -> String {
    harmless(&names.join(", "), MAX_SHOWN)
}

fn missing_groups(group: &GroupName, missing: &[String]) -> Option<Problem> {
    (!missing.is_empty()).then(|| {
        let names = shown(missing);
        Problem::new(
            Step::Fleet,
            Code::AutoScalingGroupMissing,
            format!(
                "deployment group {group} names Auto Scaling groups that do not exist: {names}"
            ),
        )
    })
}

fn no_targets(group: &Group) -> Problem {
    let name = &group.name;
    let (code, message) = match group.deployments.is_empty() {
        true => (
            Code::NoDeployment,
            format!(
                "none of the last deployments of {name} was made by a person or a pipeline, and it has no Auto Scaling \
                 members: whom it concerns is not known"
            ),
        ),
        false => {
            let ids: Vec<&str> = group.deployments.iter().map(|d| d.id.as_str()).collect();
            let ids = ids.join(", ");
            (
                Code::NoTargets,
                format!(
                    "CodeDeploy lists no target for {ids} of {name}, and it has no Auto Scaling members"
                ),
            )
        }
    };
    Problem::new(Step::Fleet, code, message)
}

/// A roll-out to a few instances is silent about the others, but one that reaches nobody looks like one that is done.
fn nobody_tagged(
    group: &GroupName,
    tag: &Tag,
    candidates: &BTreeMap<Target, Candidate>,
) -> Option<Problem> {
    let told = candidates
        .values()
        .filter(|candidate| candidate.tagged != Tagged::Untold && !candidate.machine.is_ending());
    let (count, yes) = told.fold((0, false), |(count, yes), candidate| {
        (count + 1, yes || candidate.tagged == Tagged::Yes)
    });
    (count > 0 && !yes).then(|| {
        let message = format!("none of {count} instances of {group} has the tag {tag}");
        Problem::new(Step::Fleet, Code::NobodyTagged, message)
    })
}

/// What Auto Scaling knows of these instances. Those it does not know are absent.
async fn describe_lifecycles(
    client: &RegionClients,
    ids: &[InstanceId],
) -> Result<BTreeMap<InstanceId, Lifecycle>, CallError> {
    let batches = ids
        .chunks(LIFECYCLE_BATCH)
        .map(|batch| describe_lifecycles_of(client, batch));
    let found = try_join_all(batches).await?;
    let read = |instance: AutoScalingInstanceDetails| {
        let lifecycle = Lifecycle::read(instance.lifecycle_state().unwrap_or_default());
        Some((InstanceId::read(instance.instance_id()?)?, lifecycle))
    };
    Ok(found.into_iter().flatten().filter_map(read).collect())
}

async fn describe_lifecycles_of(
    client: &RegionClients,
    ids: &[InstanceId],
) -> Result<Vec<AutoScalingInstanceDetails>, CallError> {
    const OPERATION: &str = "autoscaling:DescribeAutoScalingInstances";
    let resource = &format!("{} instances", ids.len());
    pages(OPERATION, |token| async move {
        let page = client
            .autoscaling
            .describe_auto_scaling_instances()
            .set_instance_ids(Some(texts(ids)))
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| CallError::new(OPERATION, resource, &error))?;
        let instances = page.auto_scaling_instances.unwrap_or_default();
        Ok((instances, page.next_token))
    })
    .await
}

fn texts(ids: &[InstanceId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// Asks EC2 about those that Systems Manager does not reach: without its answer they count as unreachable, and the others
/// go on. Where a tag is asked for, about the others too.
async fn ask_ec2(
    client: &RegionClients,
    candidates: &mut BTreeMap<Target, Candidate>,
    tag: Option<&Tag>,
) -> Option<CallError> {
    let asked = instances(candidates, |id, candidate| {
        !id.is_on_premises() && candidate.needs_ec2(tag)
    });
    if asked.is_empty() {
        return None;
    }
    let mut told = match ec2::instances(&client.ec2, &asked).await {
        Ok(told) => told,
        Err(error) => return Some(error),
    };
    for id in asked {
        let instance = told.remove(&id);
        let Some(candidate) = candidates.get_mut(&Target::Instance(id)) else {
            continue;
        };
        candidate.machine = Machine::NotThere;
        if let Some(instance) = instance {
            candidate.tagged = match tag.is_some_and(|tag| tag.is_among(&instance.tags)) {
                true => Tagged::Yes,
                false => Tagged::No,
            };
            candidate.machine = Machine::Is(instance.state);
        }
    }
    None
}
