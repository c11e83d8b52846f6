//! The world as plain data, which is also the format of a world file.
//!
//! Every time in it is in seconds relative to the world's start; a negative one lies before it.
//! Every field has a default, and an unknown field is refused, because a mistyped one would
//! silently describe another world. `README.md` explains each field.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Seconds in ten days: how long a host's agent has been running unless the data says otherwise.
const TEN_DAYS: f64 = 864_000.0;

/// Seconds in thirty days: the longest duration that a world may name.
const LONGEST: f64 = 2_592_000.0;
/// The operations that the world answers.
pub(crate) const OPERATIONS: [&str; 13] = [
    "ListActionExecutions",
    "GetDeployment",
    "BatchGetDeployments",
    "GetDeploymentGroup",
    "ListDeployments",
    "ListDeploymentTargets",
    "DescribeAutoScalingGroups",
    "DescribeAutoScalingInstances",
    "DescribeInstanceInformation",
    "SendCommand",
    "ListCommandInvocations",
    "Publish",
    "DescribeInstances",
];

/// Everything there is in one AWS account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct State {
    /// The account's twelve digits.
    pub account: String,
    /// What each region holds, by its name; any other region is empty.
    pub regions: BTreeMap<String, Region>,
    /// The SNS topics of all regions.
    pub topics: Vec<Topic>,
    /// Seconds that every call takes.
    pub latency: f64,
    /// Seconds before an invocation appears in the list of its command (every second one after half of it).
    pub invocation_lag: f64,
    /// Whether Run Command hands a command out in waves of 1, 2, 4, … instances, each when all of the wave
    /// before have ended, as it is documented for targets. Explicit ids are believed to go out at once.
    pub ramp: bool,
    /// Seconds after its sending for which `ListCommandInvocations` does not know a command: `InvalidCommandId`.
    pub command_lag: f64,
    /// How many items one page holds when the caller does not say.
    pub page_sizes: PageSizes,
    /// Items by which a page falls short of the size that the caller asks for, which is a maximum.
    pub page_shortfall: usize,
    /// The tag that the caller's permission to send asks of an instance (`ssm:resourceTag/KEY`): `AccessDeniedException` for
    /// the whole call when one lacks it.
    pub send_condition: Option<TagFilter>,
    /// Errors to answer instead of what the world would answer.
    pub faults: Vec<Fault>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            account: "123456789012".to_owned(),
            regions: BTreeMap::new(),
            topics: Vec::new(),
            latency: 0.05,
            invocation_lag: 2.0,
            ramp: false,
            command_lag: 0.0,
            page_sizes: PageSizes::default(),
            page_shortfall: 0,
            send_condition: None,
            faults: Vec::new(),
        }
    }
}

impl State {
    /// What in this world cannot be meant, each in one line that names the place; none when all is well.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let lags = [
            ("latency", self.latency),
            ("invocationLag", self.invocation_lag),
            ("commandLag", self.command_lag),
        ];
        problems.extend(
            lags.into_iter()
                .filter_map(|(name, value)| not_a_duration(name, value)),
        );
        let unknown = |fault: &&Fault| !OPERATIONS.contains(&fault.operation.as_str());
        problems.extend(self.faults.iter().filter(unknown).map(|fault| {
            format!(
                "faults: there is no operation {:?}; one of {}",
                fault.operation,
                OPERATIONS.join(", ")
            )
        }));
        problems.extend(
            self.faults
                .iter()
                .filter_map(|fault| not_a_duration("faults: seconds", fault.seconds)),
        );
        for (name, region) in &self.regions {
            problems.extend(
                region
                    .problems()
                    .into_iter()
                    .map(|problem| format!("{name}: {problem}")),
            );
        }
        problems
    }
}

impl Region {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let groups = self
            .deployment_groups
            .iter()
            .map(|group| (&group.name, &group.style));
        let deployments = self
            .deployments
            .iter()
            .map(|deployment| (&deployment.id, &deployment.style));
        for (name, style) in groups.chain(deployments) {
            if !["IN_PLACE", "BLUE_GREEN"].contains(&style.as_str()) {
                problems.push(format!("{name}: style {style:?}; IN_PLACE or BLUE_GREEN"));
            }
        }
        let mut ids = BTreeSet::new();
        for host in &self.hosts {
            if !ids.insert(&host.id) {
                problems.push(format!(
                    "there are two hosts {:?}; an id names one",
                    host.id
                ));
            }
            let told = host.problems().into_iter();
            problems.extend(told.map(|problem| format!("host {:?}: {problem}", host.id)));
        }
        problems
    }
}

impl Host {
    fn problems(&self) -> Vec<String> {
        let durations = [
            ("deliverySeconds", self.delivery_seconds),
            ("restartSeconds", self.agent.restart_seconds),
            ("outputAfter", self.ssm_agent.output_after),
            ("buffered", self.ssm_agent.buffered),
        ];
        let mut problems: Vec<String> = durations
            .into_iter()
            .filter_map(|(name, value)| not_a_duration(name, value))
            .collect();
        for [from, to] in self.agent.busy.iter().chain(&self.agent.updates) {
            if from > to {
                problems.push(format!("the period [{from}, {to}] ends before it begins"));
            }
        }
        problems
    }
}

/// A duration is at least 0, and no longer than anything in the world lasts.
fn not_a_duration(name: &str, value: f64) -> Option<String> {
    let fits = (0.0..=LONGEST).contains(&value);
    (!fits).then(|| format!("{name} {value}: give seconds from 0 to {LONGEST}"))
}

/// Default page sizes: small, so that a caller who reads one page only is found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PageSizes {
    /// `ListActionExecutions`, at most 100.
    pub action_executions: usize,
    /// `ListDeployments`.
    pub deployments: usize,
    /// `ListDeploymentTargets`.
    pub deployment_targets: usize,
    /// `DescribeAutoScalingGroups`, at most 100.
    pub auto_scaling_groups: usize,
    /// `DescribeAutoScalingInstances`, at most 50.
    pub auto_scaling_instances: usize,
    /// `DescribeInstanceInformation`, 10 by AWS's own default.
    pub instance_information: usize,
    /// `ListCommandInvocations`, at most 50.
    pub command_invocations: usize,
    /// `DescribeInstances`, at most 1,000.
    pub instances: usize,
}

impl Default for PageSizes {
    fn default() -> Self {
        Self {
            action_executions: 5,
            deployments: 10,
            deployment_targets: 10,
            auto_scaling_groups: 5,
            auto_scaling_instances: 20,
            instance_information: 10,
            command_invocations: 20,
            instances: 10,
        }
    }
}

/// One region of the account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Region {
    /// CodePipeline's pipelines.
    pub pipelines: Vec<Pipeline>,
    /// CodeDeploy's deployment groups; an application exists where a group or deployment names it.
    pub deployment_groups: Vec<DeploymentGroup>,
    /// CodeDeploy's deployments.
    pub deployments: Vec<Deployment>,
    /// Auto Scaling groups.
    pub auto_scaling_groups: Vec<AutoScalingGroup>,
    /// Machines, each with its SSM agent and its CodeDeploy agent.
    pub hosts: Vec<Host>,
    /// SSM documents.
    pub documents: Vec<Document>,
    /// SSM commands, as they arise.
    pub commands: Vec<Command>,
}

/// A pipeline and its executions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// Its executions.
    pub executions: Vec<Execution>,
}

/// One execution of a pipeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Execution {
    /// A UUID.
    pub id: String,
    /// The rows of `ListActionExecutions`.
    pub actions: Vec<Action>,
}

/// One row of `ListActionExecutions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Action {
    /// The stage's name.
    pub stage: String,
    /// The action's name.
    pub action: String,
    /// `AWS`, `ThirdParty` or `Custom`.
    pub owner: String,
    /// `Deploy`, `Build`, …
    pub category: String,
    /// `CodeDeploy`, `S3`, …
    pub provider: String,
    /// The status it has from `updatedAt` on; `InProgress` before.
    pub status: String,
    /// The region it acts in; the pipeline's own by default.
    pub region: Option<String>,
    /// The role it acts under.
    pub role_arn: Option<String>,
    /// CodeDeploy's application; without one the row has no configuration.
    pub application: Option<String>,
    /// CodeDeploy's deployment group.
    pub deployment_group: Option<String>,
    /// The external execution id, which is the deployment's.
    pub deployment_id: Option<String>,
    /// When it was last updated.
    pub updated_at: f64,
    /// When the row appears in the list; always there by default.
    pub visible_at: Option<f64>,
}

impl Default for Action {
    fn default() -> Self {
        Self {
            stage: "Deploy".to_owned(),
            action: "Deploy".to_owned(),
            owner: "AWS".to_owned(),
            category: "Deploy".to_owned(),
            provider: "CodeDeploy".to_owned(),
            status: "Succeeded".to_owned(),
            region: None,
            role_arn: None,
            application: None,
            deployment_group: None,
            deployment_id: None,
            updated_at: -5.0,
            visible_at: None,
        }
    }
}

/// A deployment group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeploymentGroup {
    /// The application it belongs to.
    pub application: String,
    /// Its name.
    pub name: String,
    /// `Server`, `Lambda` or `ECS`.
    pub compute_platform: String,
    /// `IN_PLACE` or `BLUE_GREEN`.
    pub style: String,
    /// Names of its Auto Scaling groups.
    pub auto_scaling_groups: Vec<String>,
    /// Its EC2 tag filters.
    pub tag_filters: Vec<TagFilter>,
}

impl Default for DeploymentGroup {
    fn default() -> Self {
        Self {
            application: String::new(),
            name: String::new(),
            compute_platform: "Server".to_owned(),
            style: "IN_PLACE".to_owned(),
            auto_scaling_groups: Vec::new(),
            tag_filters: Vec::new(),
        }
    }
}

/// A tag: a filter of type `KEY_AND_VALUE`, or what a permission asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TagFilter {
    /// The tag's key.
    pub key: String,
    /// The tag's value.
    pub value: String,
}

/// A deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Deployment {
    /// `d-` and nine capital letters or digits.
    pub id: String,
    /// Its application.
    pub application: String,
    /// Its deployment group.
    pub deployment_group: String,
    /// `Server`, `Lambda` or `ECS`.
    pub compute_platform: String,
    /// Its status; a final one holds from `completedAt` on, and is `InProgress` before.
    pub status: String,
    /// `user`, `autoscaling`, `CodeDeployAutoUpdate`, …
    pub creator: String,
    /// `IN_PLACE` or `BLUE_GREEN`.
    pub style: String,
    /// When it was made; it does not exist before.
    pub created_at: f64,
    /// When it ended.
    pub completed_at: Option<f64>,
    /// It ended before it deployed anything: it has no start and no targets.
    pub never_started: bool,
    /// It goes to those alone that an earlier one had missed (`updateOutdatedInstancesOnly`).
    pub outdated_only: bool,
    /// What it deploys to.
    pub targets: Vec<Target>,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            id: String::new(),
            application: String::new(),
            deployment_group: String::new(),
            compute_platform: "Server".to_owned(),
            status: "Succeeded".to_owned(),
            creator: "user".to_owned(),
            style: "IN_PLACE".to_owned(),
            created_at: -60.0,
            completed_at: None,
            never_started: false,
            outdated_only: false,
            targets: Vec::new(),
        }
    }
}

/// One target of a deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Target {
    /// An instance id; on-premises machines carry names.
    pub id: String,
    /// `Pending`, `InProgress`, `Succeeded`, `Failed`, `Skipped`, `Unknown` or `Ready`.
    pub status: String,
    /// `Blue` or `Green`, of a blue/green deployment.
    pub label: Option<String>,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            id: String::new(),
            status: "Succeeded".to_owned(),
            label: None,
        }
    }
}

/// An Auto Scaling group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AutoScalingGroup {
    /// Its name.
    pub name: String,
    /// Its present members.
    pub instances: Vec<Member>,
}

/// A member of an Auto Scaling group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Member {
    /// The instance id.
    pub id: String,
    /// Its lifecycle state.
    pub lifecycle: String,
}

impl Default for Member {
    fn default() -> Self {
        Self {
            id: String::new(),
            lifecycle: "InService".to_owned(),
        }
    }
}

/// A machine as Systems Manager knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Host {
    /// The instance id; `mi-` and 17 hexadecimal digits of a machine outside EC2.
    pub id: String,
    /// SSM's name for it, if it has one. That of a machine outside EC2 comes from its activation, so that several may share
    /// one.
    pub name: Option<String>,
    /// Its tags, values by key, besides an instance's `Name`.
    pub tags: BTreeMap<String, String>,
    /// Its host name; made from the id when empty.
    pub computer_name: String,
    /// `Linux`, `Windows` or `MacOS`; empty when Systems Manager does not tell.
    pub platform: String,
    /// The EC2 state: `pending`, `running`, `stopping`, `stopped`, `shutting-down` or `terminated`.
    pub state: String,
    /// Whether EC2 does not show it any more, as from about an hour after its end on.
    pub forgotten: bool,
    /// Whether Systems Manager manages it.
    pub managed: bool,
    /// Whether SSM answers `InvalidInstanceId` for it, wherever it is named.
    pub rejected: bool,
    /// Whether the caller may not send to it: `AccessDeniedException` for the whole call, as with a tag condition.
    pub denied: bool,
    /// SSM's ping status: `Online`, `ConnectionLost`, `Inactive`, or a word that is still unknown.
    pub ping: String,
    /// When SSM heard of it last.
    pub last_ping: f64,
    /// Whether it never picks a command up, whatever the ping status says.
    pub offline: bool,
    /// Seconds until it picks a command up.
    pub delivery_seconds: f64,
    /// Seconds by which its wall clock is ahead. The SSM agent reads that clock for the times at which a step began
    /// and ended, so that these are shown with it. The script measures ages by the time since boot and does not
    /// read it, and Systems Manager keeps its own times: nothing that is decided may depend on it.
    pub clock_skew: f64,
    /// Its SSM Agent.
    pub ssm_agent: SsmAgent,
    /// Its CodeDeploy agent.
    pub agent: Agent,
    /// What SSM reports for it verbatim, in place of what the host does.
    pub answer: Option<Answer>,
    /// When the machine was booted anew in mid-script: the world writes it.
    pub boots: Vec<f64>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            id: String::new(),
            name: None,
            tags: BTreeMap::new(),
            computer_name: String::new(),
            platform: "Linux".to_owned(),
            state: "running".to_owned(),
            forgotten: false,
            managed: true,
            rejected: false,
            denied: false,
            ping: "Online".to_owned(),
            last_ping: -3.0,
            offline: false,
            delivery_seconds: 1.0,
            clock_skew: 0.0,
            ssm_agent: SsmAgent::default(),
            agent: Agent::default(),
            answer: None,
            boots: Vec::new(),
        }
    }
}

impl Host {
    /// Whether it is no instance of EC2's.
    #[must_use]
    pub fn is_on_premises(&self) -> bool {
        self.id.starts_with("mi-")
    }

    /// Whether it has the tag.
    #[must_use]
    pub fn has(&self, tag: &TagFilter) -> bool {
        self.tags.get(&tag.key) == Some(&tag.value)
    }
}

/// A host's SSM Agent: how it runs and reports a command.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SsmAgent {
    /// Seconds by which the output follows the final status: they are separate replies, and the first may get through
    /// long before the second.
    pub output_after: f64,
    /// The output never follows, and whether the step is listed all the same.
    pub output_lost: Option<Lost>,
    /// Seconds for which the command lies in the agent's buffer, reported `InProgress`, before its script begins.
    pub buffered: f64,
    /// It runs a message that is older than its delivery time-out: it does not look at the age.
    pub runs_old: bool,
    /// Bytes that others write to the script's standard error (a library that is preloaded, for instance).
    pub noise: usize,
    /// What goes wrong with the next command.
    pub fault: Option<SsmAgentFault>,
}

/// What is left of a step whose output is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lost {
    /// The step is listed, and is empty.
    Output,
    /// No step is listed.
    Steps,
}

/// What goes wrong when an SSM Agent runs a script. The texts are the agent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SsmAgentFault {
    /// The shell cannot open the script's file (`noexec`): exit status 126. On Windows a policy forbids scripts: 1.
    NoExec,
    /// The script's file is gone before the shell opens it: exit status 127. On Windows an antivirus product has it: 1.
    ScriptGone,
    /// The disk is full: the script is not run.
    NoSpace,
    /// No memory is left for a shell. On Windows a policy forbids PowerShell.
    NoShell,
    /// The agent has no such plugin: the script is not run.
    NoPlugin,
    /// The agent gives its worker up, and the script runs on unheard.
    WorkerLost,
    /// Whoever sent the script's process group a signal ended it after the line: response code -1.
    GroupEnded,
    /// The kernel kills the script for want of memory before it has printed anything. A shell that forks makes exit
    /// code 137 of it, which the agent calls a time-out; a restart that was ordered goes on.
    KilledBefore,
    /// The same, after the line.
    KilledAfter,
    /// Somebody cancels the command in mid-script; a restart that was ordered goes on.
    Cancelled,
    /// The machine is booted anew in mid-script.
    Booted,
}

impl SsmAgentFault {
    /// Whether it can happen there: what a signal does has no likeness on Windows.
    #[must_use]
    pub fn happens_on(self, platform: &str) -> bool {
        platform != "Windows"
            || !matches!(
                self,
                Self::GroupEnded | Self::KilledBefore | Self::KilledAfter
            )
    }
}

/// A host's CodeDeploy agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Agent {
    /// Whether it is installed.
    pub installed: bool,
    /// Its version, as in its version file.
    pub version: String,
    /// Whether its master process runs.
    pub running: bool,
    /// When its master process started.
    #[serde(rename = "startedAt")]
    pub started_at: f64,
    /// What its processes hold now, in KiB.
    #[serde(rename = "memoryKiB")]
    pub memory_kib: u64,
    /// What they hold after a restart, in KiB.
    #[serde(rename = "freshMemoryKiB")]
    pub fresh_memory_kib: u64,
    /// Seconds that a restart takes, mostly the rest of a long poll.
    pub restart_seconds: f64,
    /// Periods `[from, to]` in which a lifecycle event runs.
    pub busy: Vec<[f64; 2]>,
    /// Periods `[from, to]` in which a package manager or updater runs.
    pub updates: Vec<[f64; 2]>,
    /// What somebody has asked of systemd, which has not come to it.
    pub job: Option<Job>,
    /// What goes wrong on this host.
    pub fault: Option<AgentFault>,
    /// When its master process was replaced or started, in order.
    pub restarts: Vec<f64>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            installed: true,
            version: "OFFICIAL_1.8.1-1_rpm".to_owned(),
            running: true,
            started_at: -TEN_DAYS,
            memory_kib: 112_640,
            fresh_memory_kib: 52_224,
            restart_seconds: 35.0,
            busy: Vec::new(),
            updates: Vec::new(),
            job: None,
            fault: None,
            restarts: Vec::new(),
        }
    }
}

/// A job that systemd has queued for the agent's unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// What it will do.
    pub kind: JobKind,
    /// When it does.
    pub ends: f64,
}

/// What a job of systemd's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Starts the agent, when what it waits for is there.
    Start,
    /// Stops it, when it has drained.
    Stop,
    /// The same, and starts a new one.
    Restart,
}

/// What goes wrong on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentFault {
    /// The script does not run as root: 11.
    NotRoot,
    /// A new agent would not start, so that the old one is left alone: 12. Where none runs, the start fails: 30.
    PreflightFailed,
    /// The agent's program is not there. While an agent runs all the same, it is left alone: 12; else 10.
    ProgramAway,
    /// What runs the agent's program is no agent that is known, and is left alone: 12.
    UnknownAgent,
    /// The service manager's restart fails and leaves no agent: 30.
    ServiceManagerFailed,
    /// The restart is reported and the old master still runs: 31.
    OldAgentSurvived,
    /// No master runs after the restart: 32.
    AgentDown,
    /// The poller crash-loops, before a restart and after it: 33.
    AgentUnhealthy,
    /// Master and poller live, and CodeDeploy refuses its polls, before a restart and after it: 33.
    Deaf,
    /// The old agent drains until its busy period ends: 34.
    Draining,
    /// The script never ends: SSM's execution timeout ends it.
    Hangs,
}

/// What SSM reports for a host, verbatim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Answer {
    /// The invocation's status, known or not.
    pub status: String,
    /// The invocation's status details; the status by default.
    pub status_details: Option<String>,
    /// The output of the step; without it no step is listed.
    pub output: Option<String>,
    /// The response code of the step; 0 for `Success`, 1 for `Failed`, else -1.
    pub response_code: Option<i64>,
}

impl Answer {
    /// Whether the status is one after which nothing more comes. One that is not known is.
    pub(crate) fn is_final(&self) -> bool {
        !["Pending", "InProgress", "Delayed", "Cancelling"].contains(&self.status.as_str())
    }
}

/// An SSM document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Document {
    /// Its name; commands may also give its ARN.
    pub name: String,
    /// What it does.
    pub kind: DocumentKind,
}

/// What a document does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DocumentKind {
    /// It restarts the agent as the restarter's own document for Linux does: one step, `linux`.
    #[default]
    RestartAgent,
    /// The same for Windows: one step, `windows`.
    RestartWindowsAgent,
    /// Somebody else's: it accepts any parameter and prints a text of its own.
    Foreign,
}

impl DocumentKind {
    /// The name of its only step.
    pub(crate) fn step(self) -> &'static str {
        match self {
            Self::RestartAgent => "linux",
            Self::RestartWindowsAgent => "windows",
            Self::Foreign => "runShellScript",
        }
    }

    /// The platform in its step's precondition, if it has one.
    pub(crate) fn platform(self) -> Option<&'static str> {
        match self {
            Self::RestartAgent => Some("Linux"),
            Self::RestartWindowsAgent => Some("Windows"),
            Self::Foreign => None,
        }
    }

    /// Whether `SendCommand` takes instances of this platform, which goes by the step's action: a shell script runs on
    /// macOS too, and only the precondition keeps it from that.
    pub(crate) fn is_sent_to(self, platform: &str) -> bool {
        match self {
            Self::RestartAgent => platform != "Windows",
            Self::RestartWindowsAgent => platform == "Windows",
            Self::Foreign => true,
        }
    }

    /// Whether its step runs on this platform, and is not skipped.
    pub(crate) fn runs_on(self, platform: &str) -> bool {
        self.platform().is_none_or(|wanted| wanted == platform)
    }
}

/// A command, as `SendCommand` made it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Command {
    /// The command's id, 36 characters.
    pub id: String,
    /// The document's name.
    pub document: String,
    /// The document's version as asked for.
    pub document_version: String,
    /// The comment given with it.
    pub comment: String,
    /// When it was sent.
    pub sent_at: f64,
    /// Seconds within which it must be delivered.
    pub timeout_seconds: f64,
    /// Its parameters.
    pub parameters: BTreeMap<String, Vec<String>>,
    /// As given, `50` by default.
    pub max_concurrency: String,
    /// As given, `0` by default.
    pub max_errors: String,
    /// One for each instance.
    pub invocations: Vec<Invocation>,
}

/// A command on one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Invocation {
    /// The instance id.
    pub instance_id: String,
    /// When it appears in the list.
    pub visible_at: f64,
    /// SSM's status.
    pub status: String,
    /// SSM's status details.
    pub status_details: String,
    /// When the script began.
    pub began_at: Option<f64>,
    /// When the invocation ended.
    pub ended_at: Option<f64>,
    /// The step's response code.
    pub response_code: i64,
    /// The step's standard output and error, as SSM joins them.
    pub output: String,
    /// When that output can be read; with the end by default, and never when it is lost.
    pub output_at: Option<f64>,
    /// The output is the SSM Agent's own text: it could not run the script, or lost sight of it.
    pub unheard: bool,
}

impl Default for Invocation {
    fn default() -> Self {
        Self {
            instance_id: String::new(),
            visible_at: 0.0,
            status: "Pending".to_owned(),
            status_details: "Pending".to_owned(),
            began_at: None,
            ended_at: None,
            response_code: -1,
            output: String::new(),
            output_at: None,
            unheard: false,
        }
    }
}

/// An SNS topic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Topic {
    /// Its ARN.
    pub arn: String,
    /// What was published to it.
    pub messages: Vec<Message>,
}

/// A published message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Message {
    /// When it was published.
    pub at: f64,
    /// The topic's ARN.
    pub topic: String,
    /// The subject, if there was one.
    pub subject: Option<String>,
    /// The message as it was sent: with `MessageStructure=json`, the whole JSON object.
    pub message: String,
    /// The attributes by name, each `{"Type": …, "Value": …}` as subscribers see it.
    pub attributes: Map<String, Value>,
}

/// An error to answer instead of what the world would answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fault {
    /// The operation, for instance `SendCommand`.
    pub operation: String,
    /// The region; any by default.
    pub region: Option<String>,
    /// The error code; without one, the service's own for throttling.
    pub code: Option<String>,
    /// The HTTP status; by default the one that fits the code.
    pub status: Option<u16>,
    /// The error message.
    pub message: Option<String>,
    /// How many calls get it; it is used up then.
    pub times: u64,
    /// Calls that pass before it begins.
    pub after: u64,
    /// The call takes effect, and its reply is lost on the way: the connection breaks. The same as the kind
    /// `lost-reply`.
    pub lost_reply: bool,
    /// What goes wrong; an error is answered by default.
    pub kind: FaultKind,
    /// Of a slow reply: how much later it comes.
    pub seconds: f64,
}

impl Fault {
    /// What goes wrong, in whichever way it was said.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        if self.lost_reply {
            FaultKind::LostReply
        } else {
            self.kind
        }
    }
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// An error is answered, before any effect.
    #[default]
    Error,
    /// The connection is refused.
    Refused,
    /// The connection breaks before the call takes effect.
    Reset,
    /// The call takes effect, and the connection breaks before its reply arrives.
    LostReply,
    /// The call neither takes effect nor is answered; the connection stays open.
    NoReply,
    /// The call takes effect and is never answered; the connection stays open.
    NoReplyAfter,
    /// The call takes effect at once, and its reply comes later.
    Slow,
    /// The token of a next page is refused; calls for a first page pass, and are not counted.
    ExpiredToken,
    /// The call takes effect, and its reply is not what the client can read.
    Unreadable,
}

impl Default for Fault {
    fn default() -> Self {
        Self {
            operation: String::new(),
            region: None,
            code: None,
            status: None,
            message: None,
            times: 1,
            after: 0,
            lost_reply: false,
            kind: FaultKind::Error,
            seconds: 0.0,
        }
    }
}
