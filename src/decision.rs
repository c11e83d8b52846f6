//! The safety rule: whose agent is restarted, and why everybody else is not. Pure: no call is made here.

use std::collections::BTreeMap;
use std::fmt;

use crate::clock::Timestamp;
use crate::ec2::State;
use crate::ids::InstanceId;
use crate::outcome::Cause;
use crate::platform::{Platform, PlatformType};
use crate::settings::Tag;
use crate::text::quoted;

/// Machines of one name that are named.
const MAX_NAMESAKES: usize = 5;

/// What CodeDeploy deploys to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// An EC2 instance; or a machine outside EC2 of which the id is known.
    Instance(InstanceId),
    /// An on-premises instance by the name that its owner chose, which is all that CodeDeploy knows of it.
    OnPremises(String),
}

impl Target {
    /// Reads CodeDeploy's target id.
    pub fn read(id: &str) -> Self {
        // A name may look like anything.
        match InstanceId::read(id).filter(|id| !id.is_on_premises()) {
            Some(id) => Self::Instance(id),
            None => Self::OnPremises(id.to_owned()),
        }
    }

    /// The id, or the name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Instance(id) => id.as_str(),
            Self::OnPremises(name) => name,
        }
    }

    /// The instance, if it is one.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Instance(id) => Some(id),
            Self::OnPremises(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The machines that names turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(BTreeMap<String, InstanceId>);

impl Names {
    /// The name is this machine's.
    pub fn note(&mut self, name: &str, id: &InstanceId) {
        self.0.insert(name.to_owned(), id.clone());
    }

    /// The target by its id, as far as that is known.
    pub fn resolved(&self, target: Target) -> Target {
        match &target {
            Target::OnPremises(name) => self.0.get(name).cloned().map_or(target, Target::Instance),
            Target::Instance(_) => target,
        }
    }
}

/// Everything that is known of one candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The lifecycle state, when Auto Scaling knows the instance.
    pub lifecycle: Option<Lifecycle>,
    /// What Systems Manager knows of it.
    pub node: Option<Node>,
    /// What EC2 says of one that Systems Manager does not reach, or of each where a tag is asked for.
    pub machine: Machine,
    /// Whether it has the tag that is asked for, if one is.
    pub tagged: Tagged,
    /// Of a name: the machines that bear it, unless it is one alone; none when Systems Manager did not say.
    pub namesakes: Option<Vec<InstanceId>>,
}

impl Candidate {
    /// Whether its lifecycle leaves the decision open.
    pub fn may_stay(&self) -> bool {
        self.lifecycle.as_ref().is_none_or(Lifecycle::stays)
    }

    /// Whether the decision needs EC2's word: where a tag is asked for, only those that start or leave are left without it.
    pub fn needs_ec2(&self, tag: Option<&Tag>) -> bool {
        let unreached = self.may_stay() && !self.is_online();
        let passes = matches!(self.lifecycle, Some(Lifecycle::Passing(_)));
        unreached || (tag.is_some() && self.tagged == Tagged::Untold && !passes)
    }

    /// Whether Systems Manager reaches it.
    pub fn is_online(&self) -> bool {
        self.node
            .as_ref()
            .is_some_and(|node| node.ping == Node::ONLINE)
    }

    /// What it runs, as far as Systems Manager knows.
    pub fn platform(&self) -> &PlatformType {
        self.node
            .as_ref()
            .map_or(&PlatformType::Untold, |node| &node.platform)
    }
}

/// What EC2 says of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// Nothing: it was not asked, or did not answer.
    #[default]
    Untold,
    /// It does not know the instance.
    NotThere,
    /// The instance is in this state.
    Is(State),
    /// It is a machine outside EC2, which is not asked about it.
    OutsideEc2,
}

impl Machine {
    /// Whether it has ended for good, or is about to: then it loses its tags too.
    pub fn is_ending(&self) -> bool {
        matches!(self, Self::Is(State::ShuttingDown | State::Terminated))
    }
}

/// Whether an instance has the tag that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tagged {
    /// Nobody says.
    #[default]
    Untold,
    /// It has not.
    No,
    /// It has.
    Yes,
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
    /// What it runs.
    pub platform: PlatformType,
}

impl Node {
    /// The ping status of a node that Systems Manager reaches.
    pub const ONLINE: &'static str = "Online";

    /// One of which nothing else is known.
    pub fn online(platform: Platform) -> Self {
        Self {
            ping: Self::ONLINE.to_owned(),
            last_ping: None,
            name: None,
            platform: PlatformType::Ours(platform),
        }
    }
}

/// The deployments of a group that run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// One that concerns the whole group: nobody can tell whose lifecycle events it runs.
    pub everywhere: Option<String>,
    /// Those that CodeDeploy made for instances that it had missed: the others have nothing to do with them.
    pub at: BTreeMap<Target, String>,
}

impl Running {
    /// The deployment that runs on this target, as far as can be told.
    pub fn on(&self, target: &Target) -> Option<&str> {
        let own = self.at.get(target);
        self.everywhere.as_ref().or(own).map(String::as_str)
    }

    /// The same, with ids in place of the names that are known.
    pub fn named(self, names: &Names) -> Self {
        let at = self.at.into_iter();
        Self {
            everywhere: self.everywhere,
            at: at
                .map(|(target, id)| (names.resolved(target), id))
                .collect(),
        }
    }
}

/// What is true of the whole group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// The deployments of the group that still run.
    pub running: Running,
    /// The deployments ended so long ago that EC2 may have forgotten an instance that was terminated since.
    pub long_ago: bool,
    /// Those that a restart document is set for.
    pub platforms: Vec<Platform>,
    /// The tag that one must have to be sent to, if there is one.
    pub tag: Option<Tag>,
}

/// What to do with a candidate, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its agent is to be restarted, by the document of its platform.
    Restart(Platform, String),
    /// Systems Manager does not reach it: to be asked once more, as late as it makes sense.
    AskAgain(String),
    /// It is accounted for without a restart.
    Leave(Cause, String),
}

impl Decision {
    /// The word in a plan: `restart`, or the outcome.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Restart(..) => "restart",
            Self::AskAgain(_) => Cause::Unreachable.kind().word(),
            Self::Leave(cause, _) => cause.kind().word(),
        }
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Restart(_, reason) | Self::AskAgain(reason) | Self::Leave(_, reason) => reason,
        }
    }
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

/// States in which an instance is starting, leaving or not in service (`LifecycleState` of
/// <https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_Instance.html>). A restart there could fail a
/// launch deployment, and with it the launch.
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

    /// Whether an instance in this state may be restarted.
    pub fn stays(&self) -> bool {
        matches!(self, Self::Staying(_) | Self::Detached)
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

/// The decision for one candidate.
pub fn decide(target: &Target, candidate: &Candidate, group: &Circumstances) -> Decision {
    use Decision::{Leave, Restart};
    if target.instance().is_none() {
        return decide_unmatched(candidate);
    }
    if let Some(Lifecycle::Passing(state)) = &candidate.lifecycle {
        return Leave(Cause::Skipped, format!("lifecycle state {state}"));
    }
    if let Some(tag) = &group.tag {
        match (candidate.tagged, &candidate.machine) {
            (Tagged::No, _) => return Leave(Cause::Skipped, format!("without the tag {tag}")),
            (Tagged::Untold, Machine::Untold) => {
                let reason = format!("not sent: nobody says whether it has the tag {tag}");
                return Leave(Cause::FailedCall, reason);
            }
            (Tagged::Untold | Tagged::Yes, _) => {}
        }
    }
    if let Some(Lifecycle::Unknown(state)) = &candidate.lifecycle {
        let reason = format!("unknown lifecycle state {}: not touched", quoted(state));
        return Leave(Cause::UnknownLifecycle, reason);
    }
    let running = group.running.on(target);
    if !candidate.is_online() || candidate.machine == Machine::NotThere {
        return decide_unreached(candidate, group, running);
    }
    let platform = match with_document(candidate.platform(), group) {
        Ok(platform) => platform,
        Err((cause, reason)) => return Leave(cause, reason),
    };
    match (running, &candidate.lifecycle) {
        (Some(id), _) => Leave(
            Cause::DeploymentRuns,
            format!("deployment {id} of the group is running"),
        ),
        (None, Some(lifecycle)) => Restart(platform, format!("{lifecycle}, online")),
        (None, None) => Restart(platform, "online".to_owned()),
    }
}

/// The decision for an on-premises target of which no id is known.
fn decide_unmatched(candidate: &Candidate) -> Decision {
    let (cause, reason) = match candidate.namesakes.as_deref() {
        None => (
            Cause::FailedCall,
            "not sent: nobody says which machine outside EC2 has this name".to_owned(),
        ),
        Some([]) => (
            Cause::Unmatched,
            "on-premises: no managed node has exactly this name in Systems Manager".to_owned(),
        ),
        Some(several) => {
            let ids: Vec<&str> = several.iter().map(InstanceId::as_str).collect();
            let (count, ids) = (ids.len(), ids[..ids.len().min(MAX_NAMESAKES)].join(", "));
            let reason = format!("on-premises: {count} managed nodes have this name: {ids}");
            (Cause::Unmatched, reason)
        }
    };
    Decision::Leave(cause, reason)
}

/// The platform, if there is a document for it; else why nothing is sent there, which time does not cure.
fn with_document(
    platform: &PlatformType,
    group: &Circumstances,
) -> Result<Platform, (Cause, String)> {
    match platform {
        PlatformType::Ours(platform) if group.platforms.contains(platform) => Ok(*platform),
        PlatformType::Ours(platform) => Err((
            Cause::NoDocument,
            format!("platform {platform}: no restart document is set for it"),
        )),
        PlatformType::Other(name) => Err((
            Cause::UnknownPlatform,
            format!("platform {name}: there is no restart document for it"),
        )),
        PlatformType::Untold => Err((
            Cause::UnknownPlatform,
            "Systems Manager does not say which platform it is".to_owned(),
        )),
    }
}

/// The decision for a candidate that Systems Manager does not reach: whether it matters depends on whether it runs.
fn decide_unreached(
    candidate: &Candidate,
    group: &Circumstances,
    running: Option<&str>,
) -> Decision {
    let manager = match &candidate.node {
        None => "not managed by Systems Manager".to_owned(),
        Some(Node {
            ping,
            last_ping: Some(since),
            ..
        }) if ping != Node::ONLINE => format!("Systems Manager: {ping}, offline since {since}"),
        Some(Node { ping, .. }) => format!("Systems Manager: {ping}"),
    };
    let reason = match &candidate.machine {
        Machine::Is(State::Pending | State::Running) => format!("it runs; {manager}"),
        Machine::Is(State::Unknown(word)) => {
            format!("EC2 says {}; {manager}", quoted(word))
        }
        Machine::Is(
            gone @ (State::Stopping | State::Stopped | State::ShuttingDown | State::Terminated),
        ) => return Decision::Leave(Cause::Skipped, format!("EC2: {gone}")),
        Machine::NotThere if group.long_ago => {
            let reason = "gone: EC2 does not know it, and the deployment is over an hour old";
            return Decision::Leave(Cause::Skipped, reason.to_owned());
        }
        Machine::NotThere => format!("EC2 does not know it; {manager}"),
        Machine::Untold => format!("EC2 does not say whether it runs; {manager}"),
        Machine::OutsideEc2 => format!("on-premises; {manager}"),
    };
    match running {
        None => Decision::AskAgain(reason),
        // Nothing will be sent there anyway.
        Some(_) => Decision::Leave(Cause::Unreachable, reason),
    }
}
