//! The safety rule: whose agent is restarted, and why everybody else is not. Pure: no call is made here.

use std::collections::BTreeMap;
use std::fmt;

use crate::clock::Timestamp;
use crate::ec2::State;
use crate::ids::InstanceId;
use crate::outcome::Cause;
use crate::platform::{Platform, PlatformType};
use crate::text::quoted;

/// What CodeDeploy deploys to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// An EC2 instance.
    Instance(InstanceId),
    /// An on-premises instance, which carries a name that its owner chose.
    OnPremises(String),
}

impl Target {
    /// Reads CodeDeploy's target id.
    pub fn read(id: &str) -> Self {
        match InstanceId::read(id) {
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

/// Everything that is known of one candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The lifecycle state, when Auto Scaling knows the instance.
    pub lifecycle: Option<Lifecycle>,
    /// What Systems Manager knows of it.
    pub node: Option<Node>,
    /// What EC2 says of one that Systems Manager does not reach.
    pub machine: Machine,
}

impl Candidate {
    /// Whether its lifecycle leaves the decision open.
    pub fn may_stay(&self) -> bool {
        self.lifecycle.as_ref().is_none_or(Lifecycle::stays)
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
        let reason = "an on-premises target: this function cannot match its name to a managed node";
        return Leave(Cause::Unreachable, reason.to_owned());
    }
    match &candidate.lifecycle {
        Some(Lifecycle::Passing(state)) => {
            return Leave(Cause::Skipped, format!("lifecycle state {state}"));
        }
        Some(Lifecycle::Unknown(state)) => {
            let reason = format!("unknown lifecycle state {}: not touched", quoted(state));
            return Leave(Cause::UnknownLifecycle, reason);
        }
        None | Some(Lifecycle::Staying(_) | Lifecycle::Detached) => {}
    }
    let running = group.running.on(target);
    if !candidate.is_online() {
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
        }) => format!("Systems Manager: {ping}, offline since {since}"),
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
    };
    match running {
        None => Decision::AskAgain(reason),
        // Nothing will be sent there anyway.
        Some(_) => Decision::Leave(Cause::Unreachable, reason),
    }
}
