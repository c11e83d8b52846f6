//! Random worlds: one seed, one account with its fleets, settings, and what will be delivered to the function.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::{Value, json};
use sim::{
    Action, AgentFault, Answer, AutoScalingGroup, Deployment, DeploymentGroup, DocumentKind,
    Execution, Host, Job, JobKind, Lost, Member, Pipeline, Region, SsmAgentFault, State, TagFilter,
    Target, Topic,
};

use crate::deliveries::{self, Delivery};
use crate::weather::{self, Change};

/// The moment at which every world starts, 2026-02-17T09:14:05Z: about when its first event is delivered.
pub const EVENT_TIME: f64 = 1_771_319_645.0;
/// Where the function and its pipeline live.
pub const HOME: &str = "us-east-1";
/// The other region that a pipeline deploys to.
pub const ABROAD: &str = "eu-west-1";
pub const ACCOUNT: &str = "123456789012";
/// One that the pipeline deploys to as well, and whose events a bus may pass on.
pub const OTHER_ACCOUNT: &str = "210987654321";
pub const PIPELINE: &str = "my-pipeline";
pub const EXECUTION: &str = "3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f";

/// Lifecycle states in which an instance is starting, leaving or out of service.
pub const PASSING: [&str; 26] = [
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
    "ReplacingRootVolume",
    "ReplacingRootVolume:Wait",
    "ReplacingRootVolume:Proceed",
    "RootVolumeReplaced",
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
];
/// Those in which it runs and stays.
pub const STAYING: [&str; 4] = ["InService", "Standby", "EnteringStandby", "Detached"];
/// A state that is newer than the function.
pub const UNKNOWN_LIFECYCLE: &str = "Dreaming";

/// The tag that some worlds ask of an instance, as the setting has it.
pub const TAG: (&str, &str) = ("AgentRestart", "yes");

/// Everything that is drawn before the first event is delivered.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The account.
    pub state: State,
    /// The function's environment.
    pub settings: BTreeMap<&'static str, String>,
    /// Its groups, in the order of drawing.
    pub groups: Vec<Group>,
    /// What changes in mid-run, by time.
    pub changes: Vec<Change>,
    /// What is delivered: the tracks run at the same time, each one's deliveries one after the other.
    pub tracks: Vec<Vec<Delivery>>,
    /// The conditions that were drawn, to be counted.
    pub conditions: Vec<Condition>,
}

impl Scene {
    /// Whether an instance must have the tag to be sent to.
    pub fn asks_for_tag(&self) -> bool {
        !self.settings["INSTANCE_TAG"].is_empty()
    }

    /// Whether the other account has an installation of its own.
    pub fn is_covered(&self) -> bool {
        self.settings["COVERED_ACCOUNTS"].contains(OTHER_ACCOUNT)
    }
}

/// Something that is not as usual.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The name under which it is counted.
    pub name: &'static str,
    /// The instance that it concerns; none for what concerns a group, the pipeline or the account.
    pub instance: Option<String>,
}

/// A deployment group and the deployment that is the reason of it all.
#[derive(Clone, Debug)]
pub struct Group {
    pub region: &'static str,
    pub application: String,
    pub name: String,
    pub deployment: String,
    /// How that ended: `Succeeded`, `Failed` or `Stopped`.
    pub status: &'static str,
    /// When that ended, in seconds since the start.
    pub completed: f64,
}

impl Scene {
    /// The world of this seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut draft = Draft {
            sick: *pick(
                &mut rng,
                &[0.0, 0.0, 0.0, 0.02, 0.02, 0.08, 0.08, 0.3, 0.3, 0.9],
            ),
            late_output: *pick(&mut rng, &[0.0, 0.0, 0.0, 0.05, 0.3, 1.0]),
            long_names: one_in(&mut rng, 3),
            tagged: *pick(
                &mut rng,
                &[
                    None,
                    None,
                    None,
                    None,
                    Some(1.0),
                    Some(0.9),
                    Some(0.5),
                    Some(0.05),
                    Some(0.0),
                ],
            ),
            rng,
            state: State::default(),
            groups: Vec::new(),
            conditions: Vec::new(),
            succeeded: 0.0,
            last_action: 0.0,
            instances: 0,
            deployments: 0,
            machines: 0,
        };
        draft.account();
        draft.times();
        draft.fleets();
        draft.pipeline();
        let Draft {
            mut rng,
            mut state,
            groups,
            mut conditions,
            succeeded,
            tagged,
            ..
        } = draft;
        let mut settings = settings(&mut rng, &state);
        let tag = tagged.map(|_| format!("{}={}", TAG.0, TAG.1));
        settings.insert("INSTANCE_TAG", tag.unwrap_or_default());
        if settings["WINDOWS_DOCUMENT_NAME"].is_empty() {
            let name = "no Windows document set";
            conditions.push(Condition {
                name,
                instance: None,
            });
        }
        state.faults = weather::faults(&mut rng);
        let changes = weather::changes(&mut rng, &state);
        let tracks = deliveries::draw(&mut rng, &groups, succeeded);
        let mut scene = Self {
            state,
            settings,
            groups,
            changes,
            tracks,
            conditions,
        };
        if scene.is_covered() {
            let kinds = scene.tracks.iter_mut().flatten().flat_map(|d| &mut d.kinds);
            let conditions = scene.conditions.iter_mut().map(|c| &mut c.name);
            for name in kinds.chain(conditions) {
                *name = match *name {
                    "event of another account" => "event of a covered account",
                    "action of another account" => "action of a covered account",
                    other => other,
                };
            }
        }
        scene
    }

    /// How many machines there are.
    pub fn size(&self) -> usize {
        self.state.regions.values().map(|r| r.hosts.len()).sum()
    }
}

/// One of these.
pub fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}

/// True once in `of` times.
pub fn one_in(rng: &mut Rng, of: u32) -> bool {
    rng.u32(..of) == 0
}

/// A number from `low` to `high`.
pub fn between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low + rng.f64() * (high - low)
}

/// A world in the making.
struct Draft {
    rng: Rng,
    state: State,
    groups: Vec<Group>,
    conditions: Vec<Condition>,
    /// When the pipeline succeeds, in whole seconds since the start: the time of its event.
    succeeded: f64,
    /// When the last of its actions ends.
    last_action: f64,
    /// How likely it is that something is the matter with a host.
    sick: f64,
    /// How likely it is that a host's output arrives later than its final status.
    late_output: f64,
    /// Hosts are called as long as Systems Manager allows, so that a message about many of them cannot hold all that there is
    /// to say.
    long_names: bool,
    /// How likely it is that a host has the tag, where one is asked for.
    tagged: Option<f64>,
    instances: usize,
    deployments: usize,
    /// Machines outside EC2.
    machines: usize,
}

impl Draft {
    fn note(&mut self, name: &'static str) {
        let instance = None;
        self.conditions.push(Condition { name, instance });
    }

    fn note_of(&mut self, id: &str, name: &'static str) {
        let instance = Some(id.to_owned());
        self.conditions.push(Condition { name, instance });
    }

    /// The pipeline has mostly just succeeded when the first event is delivered. In some worlds it still runs, so
    /// that its event comes minutes after those of its deployments; or its end was noticed late.
    fn times(&mut self) {
        let rng = &mut self.rng;
        self.succeeded = match one_in(rng, 10) {
            true => between(rng, 10.0, 300.0).round(),
            false => -between(rng, 0.0, 5.0).round(),
        };
        let noticed_after = match one_in(rng, 6) {
            true => between(rng, 30.0, 400.0),
            false => between(rng, 0.0, 30.0),
        };
        self.last_action = self.succeeded - noticed_after;
    }

    /// When a group's deployment ends, to the millisecond as CodeDeploy tells it: at the end of the pipeline, or
    /// long before that when later actions take their time. Always before the start.
    fn completion(&mut self) -> f64 {
        let rng = &mut self.rng;
        let before = match rng.u32(..16) {
            // A pipeline may wait for an approval for days.
            0 => between(rng, 3700.0, 200_000.0),
            1..=4 => between(rng, 20.0, 1800.0),
            _ => between(rng, 0.0, 20.0),
        };
        let completed = self.last_action.min(0.0) - before;
        (completed * 1000.0).floor() / 1000.0
    }

    fn account(&mut self) {
        let rng = &mut self.rng;
        let state = &mut self.state;
        state.latency = *pick(rng, &[0.02, 0.05, 0.05, 0.2]);
        state.invocation_lag = *pick(rng, &[0.0, 1.0, 2.0, 2.0, 8.0, 40.0, 170.0]);
        state.ramp = rng.u32(0..5) == 0;
        state.command_lag = *pick(rng, &[0.0, 0.0, 0.0, 0.0, 0.0, 6.0, 12.0, 31.0]);
        state.page_shortfall = *pick(rng, &[0, 0, 1, 7, 30]);
        state.page_sizes.action_executions = rng.usize(1..6);
        // The few that run at the same time stand on one page, so that what the function saw is certain.
        state.page_sizes.deployments = rng.usize(5..12);
        state.page_sizes.deployment_targets = *pick(rng, &[3, 10, 100]);
        state.page_sizes.auto_scaling_groups = rng.usize(1..4);
        state.page_sizes.auto_scaling_instances = *pick(rng, &[7, 20, 50]);
        let topic = *pick(rng, &[HOME, HOME, HOME, ABROAD]);
        // The stack gives its role the same condition; a role of one's own may have none.
        if self.tagged.is_some() && !one_in(rng, 4) {
            state.send_condition = Some(TagFilter {
                key: TAG.0.to_owned(),
                value: TAG.1.to_owned(),
            });
        }
        state.topics = vec![Topic {
            arn: format!("arn:aws:sns:{topic}:{ACCOUNT}:agent-restarts"),
            messages: Vec::new(),
        }];
    }

    fn fleets(&mut self) {
        let size = self.fleet_size();
        let count = *pick(&mut self.rng, &[1, 1, 1, 1, 1, 2, 2, 3]);
        let mut left = size;
        for number in 0..count {
            let share = match number + 1 == count {
                true => left,
                false => self.rng.usize(..=left),
            };
            left -= share;
            self.group(number, share);
        }
    }

    /// Half of the fleets have more than twenty instances, one in ten over a hundred.
    fn fleet_size(&mut self) -> usize {
        let rng = &mut self.rng;
        match rng.u32(..100) {
            0..=6 => rng.usize(..=2),
            7..=44 => rng.usize(3..=22),
            45..=82 => rng.usize(23..=60),
            83..=87 => rng.usize(61..=100),
            88..=97 => rng.usize(101..=160),
            98 => rng.usize(161..=260),
            // So many that what there is to say about them does not fit into one message, nor into the answer.
            _ => rng.usize(261..=800),
        }
    }

    fn region(&mut self, name: &'static str) -> &mut Region {
        self.state.regions.entry(name.to_owned()).or_default()
    }

    fn group(&mut self, number: usize, share: usize) {
        let region = match number > 0 && one_in(&mut self.rng, 3) {
            true => ABROAD,
            false => HOME,
        };
        if self.region(region).documents.is_empty() {
            self.documents(region);
        }
        let application = match one_in(&mut self.rng, 2) {
            true => "shop".to_owned(),
            false => format!("application-{number}"),
        };
        let name = format!("group-{number}");
        let (by_tags, by_scaling) = *pick(
            &mut self.rng,
            &[(false, true), (false, true), (true, false), (true, true)],
        );
        let blue_green = one_in(&mut self.rng, 6);
        let mut scaling = Vec::new();
        if by_scaling {
            let count = *pick(&mut self.rng, &[1, 1, 2]);
            scaling.extend((0..count).map(|n| format!("scaling-{number}-{n}")));
        }
        let (platform, creator) = self.platform_and_creator();
        let completed = self.completion();
        let (targets, members) =
            self.instances(region, (share, completed), (by_tags, &scaling), blue_green);
        self.scaling_groups(region, &scaling, members);
        let style = if blue_green { "BLUE_GREEN" } else { "IN_PLACE" };
        let (status, never_started) = self.end_of_deployment();
        let no_targets = never_started || targets.is_empty() || one_in(&mut self.rng, 30);
        if no_targets {
            self.note("no target listed");
        }
        let main = Deployment {
            id: self.deployment_id(),
            status: status.to_owned(),
            never_started,
            application: application.clone(),
            deployment_group: name.clone(),
            compute_platform: platform.to_owned(),
            creator: creator.to_owned(),
            style: style.to_owned(),
            created_at: completed - between(&mut self.rng, 20.0, 300.0),
            completed_at: Some(completed),
            targets: if no_targets { Vec::new() } else { targets },
            outdated_only: false,
        };
        self.groups.push(Group {
            status,
            region,
            application: application.clone(),
            name: name.clone(),
            deployment: main.id.clone(),
            completed,
        });
        if scaling.is_empty() || one_in(&mut self.rng, 12) {
            // A group may also name one that was deleted, or share one with another group.
            let shared = self.region(region).auto_scaling_groups.first();
            match shared.map(|group| group.name.clone()) {
                Some(shared) if one_in(&mut self.rng, 2) => {
                    self.note("groups share members");
                    scaling.push(shared);
                }
                _ if by_scaling => {
                    self.note("deleted Auto Scaling group");
                    scaling.push("deleted".to_owned());
                }
                _ => {}
            }
        }
        let tags = TagFilter {
            key: "group".to_owned(),
            value: name.clone(),
        };
        let compute_platform = platform.to_owned();
        self.region(region).deployment_groups.push(DeploymentGroup {
            application,
            name,
            compute_platform,
            style: style.to_owned(),
            auto_scaling_groups: scaling,
            tag_filters: if by_tags { vec![tags] } else { Vec::new() },
        });
        self.earlier_deployments(region, &main);
        self.later_deployments(region, &main);
        self.running_deployments(region, &main);
        self.region(region).deployments.push(main);
    }

    /// How a deployment ended, and whether it never began.
    fn end_of_deployment(&mut self) -> (&'static str, bool) {
        let (status, never_started) = match self.rng.u32(..40) {
            0 => ("Failed", true),
            1..=3 => ("Failed", false),
            4 => ("Stopped", false),
            _ => ("Succeeded", false),
        };
        if never_started {
            self.note("deployment that never started");
        } else if status != "Succeeded" {
            self.note("deployment that did not succeed");
        }
        (status, never_started)
    }

    fn platform_and_creator(&mut self) -> (&'static str, &'static str) {
        let rng = &mut self.rng;
        let platform = match rng.u32(..40) {
            0 => *pick(rng, &["ECS", "Lambda"]),
            _ => "Server",
        };
        let creator = match rng.u32(..30) {
            0 => *pick(rng, &["autoscaling", "autoscalingTermination"]),
            1 | 2 => "CodeDeployAutoUpdate",
            3..=9 => *pick(rng, &["CloudFormation", "codeDeployRollback"]),
            _ => "user",
        };
        if platform != "Server" {
            self.note("deployment to no instances");
        }
        if creator.starts_with("autoscaling") {
            self.note("deployment of Auto Scaling");
        }
        if creator == "CodeDeployAutoUpdate" {
            self.note("automatic update");
        }
        (platform, creator)
    }

    fn documents(&mut self, region: &'static str) {
        let mut documents = sim::documents();
        match self.rng.u32(..60) {
            0 => {
                self.note("no document in the region");
                documents.clear();
            }
            1 => {
                self.note("somebody else's document");
                for document in &mut documents {
                    document.kind = DocumentKind::Foreign;
                }
            }
            2 | 3 => {
                self.note("no Windows document in the region");
                documents.retain(|document| document.name == sim::DOCUMENT);
            }
            4 => {
                self.note("no Linux document in the region");
                documents.retain(|document| document.name != sim::DOCUMENT);
            }
            _ => {}
        }
        self.region(region).documents = documents;
    }

    fn deployment_id(&mut self) -> String {
        self.deployments += 1;
        format!("d-{:09}", self.deployments * 7919 % 1_000_000_007)
    }

    /// The group's machines, and those that were but are no more; with their place in the deployment and in
    /// Auto Scaling.
    fn instances(
        &mut self,
        region: &'static str,
        (count, completed): (usize, f64),
        (by_tags, scaling): (bool, &[String]),
        blue_green: bool,
    ) -> (Vec<Target>, Vec<Member>) {
        let (mut targets, mut members) = (Vec::new(), Vec::new());
        let odd = *pick(&mut self.rng, &[0, 8, 40]);
        for _ in 0..count {
            self.instances += 1;
            let id = sim::instance_id(self.instances);
            let mut host = self.host(&id, completed);
            let member = !scaling.is_empty() && (!by_tags || self.rng.bool());
            let mut target = Target {
                id: id.clone(),
                label: blue_green.then(|| "Green".to_owned()),
                ..Target::default()
            };
            if odd > 0 && one_in(&mut self.rng, odd) {
                if one_in(&mut self.rng, 3) {
                    self.note_of(&id, "target that did not succeed");
                    let words = ["Pending", "Skipped", "Failed", "Unknown"];
                    target.status = (*pick(&mut self.rng, &words)).to_owned();
                }
                if blue_green {
                    match self.rng.u32(..4) {
                        0 | 1 => {
                            self.note("blue target");
                            target.label = Some("Blue".to_owned());
                        }
                        2 => {
                            self.note("target without a label");
                            target.label = None;
                        }
                        _ => {}
                    }
                }
            }
            let mut launched_later = false;
            if member {
                let lifecycle = self.lifecycle(&id, odd);
                launched_later = odd > 0 && one_in(&mut self.rng, odd);
                let gone = odd > 0 && one_in(&mut self.rng, odd);
                if gone {
                    self.note_of(&id, "scaled in");
                    host.state =
                        (*pick(&mut self.rng, &["terminated", "terminated", "running"])).to_owned();
                } else {
                    members.push(Member {
                        id: id.clone(),
                        lifecycle,
                    });
                }
            }
            if launched_later {
                self.note_of(&id, "launched after the deployment");
                host.agent.started_at = between(&mut self.rng, completed, 0.0);
            } else {
                targets.push(target);
            }
            self.region(region).hosts.push(host);
        }
        // An instance in two groups: another group's machine was deployed to as well.
        let others: Vec<String> = self
            .region(region)
            .hosts
            .iter()
            .filter_map(|h| match h.is_on_premises() {
                true => h.name.clone(),
                false => Some(h.id.clone()),
            })
            .collect();
        if one_in(&mut self.rng, 3) && others.len() > count {
            self.note("instances in two groups");
            for id in &others[..self.rng.usize(1..=others.len() - count)] {
                targets.push(Target {
                    id: id.clone(),
                    label: blue_green.then(|| "Green".to_owned()),
                    ..Target::default()
                });
            }
        }
        if by_tags && one_in(&mut self.rng, 4) {
            let label = blue_green.then_some("Green");
            self.machines(region, completed, label, &mut targets);
        }
        self.rng.shuffle(&mut targets);
        (targets, members)
    }

    /// Machines outside EC2, which CodeDeploy knows by a name; whose that is, is not always plain.
    fn machines(
        &mut self,
        region: &'static str,
        completed: f64,
        label: Option<&str>,
        targets: &mut Vec<Target>,
    ) {
        self.note("on-premises target");
        // So that the inventory of machines has several pages.
        let others = *pick(&mut self.rng, &[0, 0, 25, 60]);
        for _ in 0..self.rng.usize(1..=4) {
            let mut host = self.machine(completed);
            let name = format!("rack-{}", self.machines);
            host.name = Some(name.clone());
            let condition = match self.rng.u32(..12) {
                0 => {
                    host.name = Some(format!("Rack-{}", self.machines));
                    Some("name that nobody bears")
                }
                1 => {
                    host.name = None;
                    host.computer_name.clone_from(&name);
                    Some("name of a computer alone")
                }
                2 | 3 => {
                    let mut namesake = self.machine(completed);
                    namesake.name = Some(name.clone());
                    self.region(region).hosts.push(namesake);
                    for _ in 0..others {
                        let other = self.machine(completed);
                        self.region(region).hosts.push(other);
                    }
                    Some("name that several bear")
                }
                4 => {
                    // An instance may be called like a machine.
                    let mut instances = self.region(region).hosts.iter_mut();
                    let instance = instances.find(|host| !host.is_on_premises());
                    if let Some(instance) = instance {
                        instance.name = Some(name.clone());
                    }
                    None
                }
                5 => {
                    host.managed = false;
                    Some("name that nobody bears")
                }
                _ => None,
            };
            match condition {
                Some(condition) => self.note_of(&name, condition),
                None => self.note_of(&host.id, "machine outside EC2"),
            }
            self.region(region).hosts.push(host);
            let looks_like_an_id = condition == Some("name that nobody bears") && self.rng.bool();
            let id = match looks_like_an_id {
                true => sim::managed_id(self.machines),
                false => name,
            };
            targets.push(Target {
                id,
                label: label.map(str::to_owned),
                ..Target::default()
            });
        }
    }

    /// One that runs, as far as anybody can tell: there is no EC2 to say that it does not.
    fn machine(&mut self, completed: f64) -> Host {
        self.machines += 1;
        let id = sim::managed_id(self.machines);
        let mut host = self.host(&id, completed);
        if host.state != "running" {
            host.state = "running".to_owned();
            host.ping = "ConnectionLost".to_owned();
            host.offline = true;
        }
        host.name = None;
        host
    }

    /// The host that a deployment's target is, if there is just one.
    fn host_of(&mut self, region: &'static str, target: &str) -> Option<&mut Host> {
        let is_it = |host: &&mut Host| {
            host.id == target || (host.is_on_premises() && host.name.as_deref() == Some(target))
        };
        self.region(region).hosts.iter_mut().find(is_it)
    }

    fn lifecycle(&mut self, id: &str, odd: u32) -> String {
        if odd == 0 || !one_in(&mut self.rng, odd) {
            return "InService".to_owned();
        }
        let word = match self.rng.u32(..6) {
            0 => UNKNOWN_LIFECYCLE,
            1 => pick(&mut self.rng, &STAYING),
            _ => pick(&mut self.rng, &PASSING),
        };
        self.note_of(id, word);
        word.to_owned()
    }

    fn scaling_groups(&mut self, region: &'static str, names: &[String], members: Vec<Member>) {
        let mut groups: Vec<AutoScalingGroup> = names
            .iter()
            .map(|name| AutoScalingGroup {
                name: name.clone(),
                instances: Vec::new(),
            })
            .collect();
        let count = groups.len();
        for (number, member) in members.into_iter().enumerate() {
            groups[number % count].instances.push(member);
        }
        self.region(region).auto_scaling_groups.extend(groups);
    }

    /// A machine of a group whose deployment ended then.
    fn host(&mut self, id: &str, completed: f64) -> Host {
        let rng = &mut self.rng;
        let mut host = Host {
            id: id.to_owned(),
            // Nothing may depend on it.
            clock_skew: *pick(rng, &[0.0, 0.0, -3.0, 90.0, -86_400.0, 1e6]),
            // At once, so that no delay hides an error of a second in the age that is compared.
            delivery_seconds: match one_in(rng, 4) {
                true => between(rng, 0.0, 0.3),
                false => between(rng, 0.2, 4.0),
            },
            last_ping: -between(rng, 1.0, 50.0),
            ..Host::default()
        };
        host.agent.restart_seconds = between(rng, 2.0, 55.0);
        host.agent.memory_kib = rng.u64(40_000..400_000);
        host.agent.started_at = agent_start(rng, completed);
        if one_in(rng, 12) {
            host.platform = "Windows".to_owned();
        }
        if self.long_names {
            host.computer_name = format!("{}{id}", "\"long\" name ".repeat(19));
        }
        if one_in(rng, 15) {
            host.name = Some(format!("näme of\n{id}"));
        }
        if one_in(rng, 12) {
            let from = between(rng, -30.0, 60.0);
            host.agent.busy = vec![[from, from + between(rng, 1.0, 60.0)]];
        }
        if rng.f64() < self.late_output {
            host.ssm_agent.output_after = match rng.u32(..10) {
                0..=6 => between(rng, 0.5, 8.0),
                7 | 8 => between(rng, 8.0, 60.0),
                _ => between(rng, 60.0, 250.0),
            };
            self.note_of(id, "late output");
        }
        self.tag(&mut host);
        let rng = &mut self.rng;
        if rng.f64() < self.sick {
            let condition = affliction(rng, &mut host, completed);
            self.note_of(id, condition);
        }
        host
    }

    /// Where a tag is asked for, some have it, and some have it with another value.
    fn tag(&mut self, host: &mut Host) {
        let Some(tagged) = self.tagged else {
            return;
        };
        let value = match self.rng.f64() < tagged {
            true => Some(TAG.1),
            false => *pick(&mut self.rng, &[None, None, Some("Yes"), Some("")]),
        };
        match value {
            Some(value) if value == TAG.1 => {}
            Some(_) => self.note_of(&host.id, "another value of the asked tag"),
            None => self.note_of(&host.id, "instance without the asked tag"),
        }
        let tags = value.map(|value| (TAG.0.to_owned(), value.to_owned()));
        host.tags.extend(tags);
    }

    /// Deployments of the group long before.
    fn earlier_deployments(&mut self, region: &'static str, main: &Deployment) {
        let launches = one_in(&mut self.rng, 25);
        let count = match launches {
            true => 140,
            false => *pick(&mut self.rng, &[0, 0, 3, 14, 60]),
        };
        let creators: &[&str] = match launches {
            true => {
                self.note("many launch deployments");
                &["autoscaling"]
            }
            false => &["user", "user", "autoscaling", "CodeDeployAutoUpdate"],
        };
        for _ in 0..count {
            let ended = main.completed_at.unwrap_or(0.0);
            let completed = ended - between(&mut self.rng, 500.0, 200_000.0);
            let words = ["Succeeded", "Succeeded", "Failed", "Stopped"];
            let deployment = Deployment {
                id: self.deployment_id(),
                status: (*pick(&mut self.rng, &words)).to_owned(),
                never_started: false,
                creator: (*pick(&mut self.rng, creators)).to_owned(),
                created_at: completed - 100.0,
                completed_at: Some(completed),
                ..main.clone()
            };
            self.region(region).deployments.push(deployment);
        }
    }

    /// Deployments that came after the event's own and are over when its event is delivered. Some of the agents were
    /// restarted in between: they are stale all the same.
    fn later_deployments(&mut self, region: &'static str, main: &Deployment) {
        let completed = main.completed_at.unwrap_or(0.0);
        if completed > -10.0 || !one_in(&mut self.rng, 3) {
            return;
        }
        self.note("later deployment that ended");
        for _ in 0..self.rng.usize(1..=2) {
            let creators = [
                "user",
                "user",
                "codeDeployRollback",
                "CloudFormation",
                "CodeDeployAutoUpdate",
                "autoscaling",
            ];
            let creator = *pick(&mut self.rng, &creators);
            let created = between(&mut self.rng, completed + 1.0, -2.0);
            let ended = (between(&mut self.rng, created + 1.0, 0.0) * 1000.0).floor() / 1000.0;
            let targets = self.some_of(&main.targets, creator);
            for target in &targets {
                let between_the_two = between(&mut self.rng, completed, ended);
                let again = one_in(&mut self.rng, 3);
                if let Some(host) = self.host_of(region, &target.id).filter(|_| again) {
                    host.agent.started_at = between_the_two;
                }
            }
            let words = ["Succeeded", "Succeeded", "Failed", "Stopped"];
            let deployment = Deployment {
                id: self.deployment_id(),
                status: (*pick(&mut self.rng, &words)).to_owned(),
                never_started: false,
                creator: creator.to_owned(),
                outdated_only: one_in(&mut self.rng, 4),
                created_at: created,
                completed_at: Some(ended),
                targets,
                ..main.clone()
            };
            self.region(region).deployments.push(deployment);
        }
    }

    /// Deployments that run when the event is delivered, or begin soon afterwards.
    fn running_deployments(&mut self, region: &'static str, main: &Deployment) {
        if self.rng.u32(..6) > 0 {
            return;
        }
        for _ in 0..self.rng.usize(1..=3) {
            let creators = [
                "user",
                "user",
                "codeDeployRollback",
                "autoscaling",
                "CodeDeployAutoUpdate",
                "CodeDeployAutoUpdate",
            ];
            let creator = *pick(&mut self.rng, &creators);
            self.note(match creator {
                "autoscaling" => "launch deployment of Auto Scaling runs",
                "CodeDeployAutoUpdate" => "follow-up deployment runs",
                _ => "another deployment runs",
            });
            let created = between(&mut self.rng, -60.0, 240.0);
            let open = one_in(&mut self.rng, 3);
            let words: &[&str] = match open {
                true => &["Created", "Queued", "InProgress", "Baking", "Ready"],
                false => &["Succeeded", "Succeeded", "Failed", "Stopped"],
            };
            let status = (*pick(&mut self.rng, words)).to_owned();
            let took = between(&mut self.rng, 5.0, 300.0);
            let targets = self.some_of(&main.targets, creator);
            if !matches!(status.as_str(), "Created" | "Queued") {
                for target in &targets {
                    let part = self.rng.f64();
                    if let Some(host) = self.host_of(region, &target.id) {
                        let from = created + took * part;
                        host.agent.busy.push([from, from + took / 4.0]);
                    }
                }
            }
            let deployment = Deployment {
                id: self.deployment_id(),
                status,
                never_started: false,
                creator: creator.to_owned(),
                created_at: created,
                completed_at: (!open).then_some(created + took),
                targets,
                ..main.clone()
            };
            self.region(region).deployments.push(deployment);
        }
    }

    /// Whom a deployment of that creator goes to: those that CodeDeploy had missed are few.
    fn some_of(&mut self, targets: &[Target], creator: &str) -> Vec<Target> {
        let few = creator == "CodeDeployAutoUpdate" || creator == "autoscaling";
        let most = if few { 2 } else { targets.len() };
        let mut chosen: Vec<Target> = targets
            .iter()
            .filter(|_| self.rng.bool())
            .cloned()
            .collect();
        chosen.truncate(most);
        chosen
    }

    /// The execution whose success is the event: one action for each group, and what else a pipeline has.
    fn pipeline(&mut self) {
        let groups = self.groups.clone();
        let mut actions = vec![Action {
            stage: "Source".to_owned(),
            action: "Source".to_owned(),
            category: "Source".to_owned(),
            provider: "S3".to_owned(),
            updated_at: -3000.0,
            ..Action::default()
        }];
        actions.push(Action {
            stage: "Approve".to_owned(),
            action: "Approve".to_owned(),
            category: "Approval".to_owned(),
            provider: "Manual".to_owned(),
            updated_at: self.last_action,
            ..Action::default()
        });
        for (number, group) in groups.iter().enumerate() {
            let status = match group.status {
                "Stopped" => "Abandoned",
                status => status,
            };
            // CodePipeline asks CodeDeploy for the end.
            let noticed = group.completed + between(&mut self.rng, 0.0, 15.0);
            let action = Action {
                action: format!("Deploy-{number}"),
                status: status.to_owned(),
                region: Some(group.region.to_owned()),
                role_arn: Some(format!("arn:aws:iam::{ACCOUNT}:role/pipeline")),
                application: Some(group.application.clone()),
                deployment_group: Some(group.name.clone()),
                deployment_id: Some(group.deployment.clone()),
                updated_at: noticed.min(self.last_action),
                ..Action::default()
            };
            if one_in(&mut self.rng, 8) {
                self.retried_stage(group, &action, &mut actions);
            }
            if one_in(&mut self.rng, 8) {
                self.second_action(group, &action, &mut actions);
            }
            actions.push(action);
        }
        // What CodePipeline's list lacks when the event is delivered.
        let late = self.succeeded.max(0.0);
        match self.rng.u32(..60) {
            6..=13 => {
                for action in &mut actions {
                    if action.provider == "CodeDeploy" && one_in(&mut self.rng, 2) {
                        action.visible_at = Some(late + between(&mut self.rng, 0.5, 33.0));
                    }
                }
                self.note("rows that lag each by itself");
            }
            14 => {
                self.note("action that failed before it deployed");
                actions.push(Action {
                    action: "Refused".to_owned(),
                    status: "Failed".to_owned(),
                    application: Some("shop".to_owned()),
                    deployment_group: Some("group-0".to_owned()),
                    updated_at: self.last_action,
                    ..Action::default()
                });
            }
            0 => {
                self.note("action of another account");
                actions.push(Action {
                    action: "Elsewhere".to_owned(),
                    role_arn: Some(format!("arn:aws:iam::{OTHER_ACCOUNT}:role/pipeline")),
                    application: Some("shop".to_owned()),
                    deployment_group: Some("elsewhere".to_owned()),
                    deployment_id: Some("d-999999999".to_owned()),
                    updated_at: self.last_action,
                    ..Action::default()
                });
            }
            1 => {
                self.note("action without a deployment id");
                actions.push(Action {
                    action: "Incomplete".to_owned(),
                    application: Some("shop".to_owned()),
                    deployment_group: Some("group-0".to_owned()),
                    updated_at: self.last_action,
                    ..Action::default()
                });
            }
            2 | 3 => {
                self.note("late action list");
                let at = late + between(&mut self.rng, 1.0, 50.0);
                for action in &mut actions {
                    action.visible_at = Some(at);
                }
            }
            4 | 5 => {
                self.note("action still in progress");
                let at = late + between(&mut self.rng, 1.0, 50.0);
                if let Some(action) = actions.last_mut() {
                    action.updated_at = at;
                }
            }
            _ => {}
        }
        self.region(HOME).pipelines.push(Pipeline {
            name: PIPELINE.to_owned(),
            executions: vec![Execution {
                id: EXECUTION.to_owned(),
                actions,
            }],
        });
    }

    fn deployment_of(&mut self, group: &Group) -> Option<Deployment> {
        let mut deployments = self.region(group.region).deployments.iter();
        deployments.find(|d| d.id == group.deployment).cloned()
    }

    /// An action that failed, and was tried again.
    fn retried_stage(&mut self, group: &Group, action: &Action, actions: &mut Vec<Action>) {
        let id = self.deployment_id();
        let Some(main) = self.deployment_of(group) else {
            return;
        };
        self.note("retried stage");
        let completed = main.created_at - between(&mut self.rng, 1.0, 500.0);
        self.region(group.region).deployments.push(Deployment {
            id: id.clone(),
            status: "Failed".to_owned(),
            created_at: completed - 60.0,
            completed_at: Some(completed),
            ..main
        });
        actions.push(Action {
            status: "Failed".to_owned(),
            deployment_id: Some(id),
            updated_at: completed,
            ..action.clone()
        });
    }

    /// Two actions of one execution may deploy to one group.
    fn second_action(&mut self, group: &Group, action: &Action, actions: &mut Vec<Action>) {
        let id = self.deployment_id();
        let Some(main) = self.deployment_of(group) else {
            return;
        };
        self.note("two deployments to one group");
        let completed = main.completed_at.unwrap_or(0.0) - between(&mut self.rng, 0.0, 90.0);
        let deployment = Deployment {
            id: id.clone(),
            creator: "user".to_owned(),
            created_at: completed - 60.0,
            completed_at: Some(completed),
            targets: main
                .targets
                .iter()
                .filter(|_| self.rng.bool())
                .cloned()
                .collect(),
            ..main
        };
        self.region(group.region).deployments.push(deployment);
        actions.push(Action {
            action: format!("{}-again", action.action),
            deployment_id: Some(id),
            updated_at: completed,
            ..action.clone()
        });
    }
}

/// When an agent started whose deployment ended then: mostly long ago, sometimes within the very second or
/// between the deployment's end and the event.
fn agent_start(rng: &mut Rng, completed: f64) -> f64 {
    match rng.u32(..24) {
        0 => (completed + between(rng, -1.0, 1.0)).min(0.0),
        1 => between(rng, completed, 0.0),
        _ => completed - between(rng, 400.0, 2e6),
    }
}

/// Lets something be the matter with a host, and names it.
fn affliction(rng: &mut Rng, host: &mut Host, completed: f64) -> &'static str {
    let agent = &mut host.agent;
    match rng.u32(..51) {
        0 => {
            host.offline = true;
            "picks nothing up"
        }
        1 => {
            host.managed = false;
            host.state = (*pick(rng, &["running", "running", "pending"])).to_owned();
            "not managed"
        }
        2 | 3 => {
            host.state = (*pick(rng, &["stopped", "stopped", "stopping"])).to_owned();
            "stopped"
        }
        4 => {
            host.state = (*pick(rng, &["terminated", "shutting-down"])).to_owned();
            host.forgotten = host.state == "terminated" && one_in(rng, 3);
            "terminated"
        }
        5 => {
            let (platform, name) = *pick(rng, &[("MacOS", "MacOS"), ("", "platform not told")]);
            host.platform = platform.to_owned();
            name
        }
        6 => {
            host.rejected = true;
            "rejected by SSM"
        }
        7 => {
            host.denied = true;
            "without the tag"
        }
        8 | 9 => {
            host.ping = (*pick(rng, &["ConnectionLost", "Inactive", "Napping"])).to_owned();
            host.last_ping = -between(rng, 100.0, 9000.0);
            host.offline = rng.bool();
            "connection lost"
        }
        10 | 11 => {
            host.delivery_seconds = between(rng, 4.0, 130.0);
            "slow delivery"
        }
        12 => {
            agent.installed = false;
            agent.running = false;
            agent.memory_kib = 0;
            "no agent"
        }
        13 => {
            agent.running = false;
            agent.memory_kib = 0;
            "agent does not run"
        }
        14 => {
            agent.started_at = (completed + between(rng, -30.0, 30.0)).min(0.0);
            "restarted around the deployment"
        }
        15 => {
            let from = between(rng, -100.0, 100.0);
            agent.busy = vec![[from, from + between(rng, 60.0, 900.0)]];
            "long lifecycle event"
        }
        16 if one_in(rng, 3) => {
            let kind = *pick(rng, &[JobKind::Start, JobKind::Stop, JobKind::Restart]);
            let ends = between(rng, 1.0, 400.0);
            if kind == JobKind::Start {
                agent.running = false;
                agent.memory_kib = 0;
            }
            agent.job = Some(Job { kind, ends });
            "job in systemd's queue"
        }
        16 => {
            let from = between(rng, -20.0, 60.0);
            agent.updates = vec![[from, from + between(rng, 1.0, 400.0)]];
            "package manager runs"
        }
        17 => {
            agent.restart_seconds = between(rng, 140.0, 400.0);
            "long poll that does not end"
        }
        18..=27 => {
            let (fault, name) = *pick(
                rng,
                &[
                    (AgentFault::NotRoot, "not root"),
                    (AgentFault::PreflightFailed, "preflight fails"),
                    (AgentFault::ServiceManagerFailed, "service manager fails"),
                    (AgentFault::OldAgentSurvived, "old agent survives"),
                    (AgentFault::AgentDown, "agent goes down"),
                    (AgentFault::AgentUnhealthy, "agent crash-loops"),
                    (AgentFault::Deaf, "agent that CodeDeploy does not hear"),
                    (AgentFault::ProgramAway, "program is away"),
                    (AgentFault::UnknownAgent, "no agent that is known"),
                    (AgentFault::Draining, "agent drains"),
                    (AgentFault::Hangs, "script hangs"),
                ],
            );
            agent.fault = Some(fault);
            name
        }
        28..=42 => ssm_affliction(rng, host),
        _ => {
            let (name, answer) = pick(rng, &verbatim()).clone();
            host.answer = Some(answer);
            name
        }
    }
}

/// Lets something be the matter with a host's SSM Agent, and names it.
fn ssm_affliction(rng: &mut Rng, host: &mut Host) -> &'static str {
    let agent = &mut host.ssm_agent;
    match rng.u32(..16) {
        0 | 1 => {
            agent.output_lost = Some(Lost::Output);
            "output lost"
        }
        2 => {
            agent.output_lost = Some(Lost::Steps);
            "step lost"
        }
        3 => {
            agent.buffered = between(rng, 2.0, 100.0);
            "buffered command"
        }
        4 => {
            agent.runs_old = true;
            host.delivery_seconds = between(rng, 115.0, 420.0);
            "message older than its time-out"
        }
        5 => {
            agent.noise = rng.usize(50..5000);
            "noise on standard error"
        }
        _ => {
            let mut here = SSM_FAULTS.to_vec();
            here.retain(|(fault, _)| fault.happens_on(&host.platform));
            let (fault, name) = *pick(rng, &here);
            agent.fault = Some(fault);
            name
        }
    }
}

/// What goes wrong when an SSM Agent runs a script, by name.
pub const SSM_FAULTS: [(SsmAgentFault, &str); 11] = [
    (SsmAgentFault::NoExec, "script not executable"),
    (SsmAgentFault::ScriptGone, "script gone"),
    (SsmAgentFault::NoSpace, "disk full"),
    (SsmAgentFault::NoShell, "no shell"),
    (SsmAgentFault::NoPlugin, "plugin missing"),
    (SsmAgentFault::WorkerLost, "worker lost"),
    (SsmAgentFault::GroupEnded, "process group ended"),
    (SsmAgentFault::KilledBefore, "killed before its line"),
    (SsmAgentFault::KilledAfter, "killed after its line"),
    (SsmAgentFault::Cancelled, "cancelled in mid-script"),
    (SsmAgentFault::Booted, "booted in mid-script"),
];

/// What Systems Manager may report for an instance although the document did not do its work there. None of it
/// proves anything.
fn verbatim() -> Vec<(&'static str, Answer)> {
    let answer =
        |status: &str, details: Option<&str>, output: Option<&str>, code: Option<i64>| Answer {
            status: status.to_owned(),
            status_details: details.map(str::to_owned),
            output: output.map(str::to_owned),
            response_code: code,
        };
    let line = |version: u32, result: &str, code: u32| {
        json!({
            "agentRestart": version, "result": result, "code": code, "agentVersion": "OFFICIAL_1.8.1-1_rpm",
            "memoryBeforeKiB": 1, "memoryAfterKiB": 1, "seconds": 1, "detail": "",
        })
        .to_string()
    };
    let good = line(1, "restarted", 0);
    vec![
        ("unknown status", answer("Napping", None, None, None)),
        ("stays pending", answer("Pending", None, None, None)),
        ("stays delayed", answer("Delayed", None, None, None)),
        (
            "pending shown as running",
            answer("InProgress", Some("Pending"), None, None),
        ),
        ("stays cancelling", answer("Cancelling", None, None, None)),
        (
            "cancelled",
            answer("Cancelled", Some("Canceled"), None, None),
        ),
        (
            "delivery timed out",
            answer("TimedOut", Some("Delivery Timed Out"), None, None),
        ),
        (
            "execution timed out",
            answer("TimedOut", Some("ExecutionTimedOut"), None, None),
        ),
        (
            "undeliverable",
            answer("Failed", Some("Undeliverable"), None, None),
        ),
        (
            "terminated by SSM",
            answer("Failed", Some("Terminated"), None, None),
        ),
        (
            "access denied on the host",
            answer("Failed", Some("AccessDenied"), None, None),
        ),
        (
            "success without output",
            answer("Success", None, None, None),
        ),
        (
            "foreign output",
            answer("Success", None, Some("hello\n<b>world</b>"), None),
        ),
        (
            "long foreign output",
            answer("Failed", None, Some(&"ünd so weiter ".repeat(400)), None),
        ),
        (
            "truncated line",
            answer("Success", None, Some(&good[..40]), None),
        ),
        (
            "line of another version",
            answer("Success", None, Some(&line(2, "restarted", 0)), None),
        ),
        (
            "unknown result",
            answer("Success", None, Some(&line(1, "rejuvenated", 0)), None),
        ),
        (
            "word and code disagree",
            answer("Success", None, Some(&line(1, "restarted", 20)), Some(20)),
        ),
        (
            "line and exit code disagree",
            answer("Success", None, Some(&good), Some(1)),
        ),
        (
            "success line, failed status",
            answer("Failed", None, Some(&good), Some(0)),
        ),
        (
            "success line, access denied",
            answer("Success", Some("AccessDenied"), Some(&good), Some(0)),
        ),
    ]
}

/// The names of all verbatim answers.
pub fn verbatim_names() -> Vec<&'static str> {
    verbatim().into_iter().map(|(name, _)| name).collect()
}

fn settings(rng: &mut Rng, state: &State) -> BTreeMap<&'static str, String> {
    let mut settings = BTreeMap::from([
        ("TOPIC_ARN", state.topics[0].arn.clone()),
        ("DOCUMENT_NAME", sim::DOCUMENT.to_owned()),
    ]);
    let windows = sim::WINDOWS_DOCUMENT;
    let choices: [(&'static str, &[&str]); 8] = [
        (
            "WINDOWS_DOCUMENT_NAME",
            &[windows, windows, windows, windows, windows, windows, ""],
        ),
        (
            "MAX_CONCURRENCY",
            &["", "1", "3", "10%", "33%", "50%", "100%", "100%", "40"],
        ),
        (
            "MAX_ERRORS",
            &["", "0", "1", "4", "0%", "20%", "100%", "100%"],
        ),
        ("BUSY_WAIT_SECONDS", &["", "0", "7", "60", "240"]),
        ("MIN_MEMORY_MIB", &["", "", "", "64", "200"]),
        ("NOTIFY_ON", &["", "attention", "always"]),
        (
            "COVERED_ACCOUNTS",
            &["", "999999999999", "123456789012,210987654321"],
        ),
        (
            "DRY_RUN",
            &[
                "", "", "", "", "", "", "", "", "", "", "", "", "", "false", "true",
            ],
        ),
    ];
    for (name, values) in choices {
        settings.insert(name, (*pick(rng, values)).to_owned());
    }
    settings
}

/// The pipeline's event, of that time in whole seconds since the start.
pub fn pipeline_event(state: &str, time: f64) -> Value {
    json!({
        "version": "0", "id": "0c6b1f0e-6f5e-4a0e-9d57-0f3f7a1c2b01", "source": "aws.codepipeline",
        "detail-type": "CodePipeline Pipeline Execution State Change",
        "account": ACCOUNT, "region": HOME, "time": rfc_3339(time), "resources": [],
        "detail": { "pipeline": PIPELINE, "execution-id": EXECUTION, "state": state, "version": 6.0 },
    })
}

/// The event of a group's deployment, of that time in whole seconds since the start.
pub fn deployment_event(group: &Group, state: &str, time: f64) -> Value {
    json!({
        "version": "0", "id": "0c6b1f0e-6f5e-4a0e-9d57-0f3f7a1c2b07", "source": "aws.codedeploy",
        "detail-type": "CodeDeploy Deployment State-change Notification",
        "account": ACCOUNT, "region": group.region, "time": rfc_3339(time), "resources": [],
        "detail": {
            "region": group.region, "application": group.application, "deploymentGroup": group.name,
            "deploymentId": group.deployment, "state": state, "instanceGroupId": "x",
        },
    })
}

/// A moment in seconds since the start, as events and requests write it.
pub fn rfc_3339(time: f64) -> String {
    codedeploy_agent_restarter::clock::Timestamp((EVENT_TIME + time) as u64).to_string()
}
