//! A simulated fleet in which an event is true, and the function that is told of it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use codedeploy_agent_restarter::aws::Clients;
use codedeploy_agent_restarter::clock::{Clock, Timestamp};
use codedeploy_agent_restarter::ids::{AccountId, Region};
use codedeploy_agent_restarter::outcome::Outcome;
use codedeploy_agent_restarter::report::GroupReport;
use codedeploy_agent_restarter::settings::Settings;
use codedeploy_agent_restarter::trigger::Home;
use codedeploy_agent_restarter::wrapping::unwrapped;
use codedeploy_agent_restarter::{Handled, Restarter};
use serde_json::Value;
use sim::{AgentFault, AutoScalingGroup, Invocation, Member, State, World};
use tokio::time::{Instant, sleep_until};

use crate::bad_day;

/// When the fleet's story happens if the event does not say: 2026-02-17T09:14:05Z.
const USUAL_TIME: Timestamp = Timestamp(1_771_319_645);
/// Seconds between the event and its arrival.
const ARRIVAL: u64 = 2;
/// What Lambda leaves until its deadline.
const TIMEOUT: Duration = Duration::from_secs(900);
/// How an agent fails, one after the other.
const FAULTS: [AgentFault; 4] = [
    AgentFault::AgentUnhealthy,
    AgentFault::AgentDown,
    AgentFault::OldAgentSurvived,
    AgentFault::PreflightFailed,
];

/// Who plays.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// Instances in the fleet.
    pub instances: usize,
    /// Of these, how many fail to restart.
    pub fail: usize,
    /// Which of the possible fleets.
    pub seed: u64,
}

impl Default for Cast {
    fn default() -> Self {
        Self {
            instances: 24,
            fail: 1,
            seed: 1,
        }
    }
}

/// The simulated AWS, the event, and the function.
pub struct Stage {
    /// The simulated AWS.
    pub world: World,
    /// The event.
    pub event: Value,
    /// What the operator set besides what must be set.
    pub settings: &'static [(&'static str, &'static str)],
    /// What happens while the function works, in order.
    pub incidents: Vec<Incident>,
    /// The world's start, in seconds since 1970.
    start: f64,
    home: Home,
}

/// Something that happens to the fleet while the function works.
pub struct Incident {
    /// Seconds after the event was delivered.
    pub after: u64,
    /// What, in words.
    pub what: String,
    /// What it changes in the world, at a moment in the world's own seconds.
    pub change: Change,
}

/// A change of the world at a moment.
pub type Change = Box<dyn Fn(&mut State, f64)>;

/// One line of the table of outcomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The instance.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub outcome: &'static str,
    /// The agent's memory before, in KiB, if the function knows it.
    pub before_kib: Option<u64>,
    /// The agent's memory after, in KiB, if the function knows it.
    pub after_kib: Option<u64>,
    /// Why.
    pub detail: String,
}

impl Stage {
    /// Builds the fleet to which the event's deployment went.
    pub fn set(event: Value, cast: &Cast) -> Self {
        let told = told(&event);
        let names = [
            named(&told, "application"),
            named(&told, "deploymentGroup"),
            named(&told, "deploymentId"),
        ]
        .map(|name| name.map(str::to_owned));
        Self::open(event, cast.instances, &[], |state, region| {
            let [application, group, deployment] = &names;
            rename(
                state.region(region),
                application.as_deref(),
                group.as_deref(),
                deployment.as_deref(),
            );
            give_parts(state, region, cast);
            Vec::new()
        })
    }

    /// Builds the fleets on which everything happens that may happen.
    pub fn set_bad_day(event: Value, seed: u64) -> Self {
        Self::open(event, 0, &bad_day::SETTINGS, |state, region| {
            bad_day::cast(state, region, seed)
        })
    }

    /// A world in which the event is true, filled by `fill`.
    fn open(
        event: Value,
        instances: usize,
        settings: &'static [(&'static str, &'static str)],
        fill: impl FnOnce(&mut State, &str) -> Vec<Incident>,
    ) -> Self {
        let told = told(&event).into_owned();
        let text = |pointer: &str| told.pointer(pointer).and_then(Value::as_str);
        // With other names the event is refused, wherever the function lives.
        let home = Home {
            account: text("/account")
                .and_then(AccountId::read)
                .or_else(|| AccountId::read("123456789012"))
                .expect("an account id"),
            region: text("/detail/region")
                .or(text("/region"))
                .and_then(Region::read)
                .or_else(|| Region::read("us-east-1"))
                .expect("a region's name"),
            function: "codedeploy-agent-restarter".to_owned(),
        };
        let region = home.region.as_str();
        let time = text("/time")
            .and_then(Timestamp::parse)
            .unwrap_or(USUAL_TIME);

        let mut state = State::for_pipeline(
            text("/detail/pipeline").unwrap_or("my-pipeline"),
            text("/detail/execution-id").unwrap_or("3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f"),
            region,
            instances,
        );
        home.account.as_str().clone_into(&mut state.account);
        let incidents = fill(&mut state, region);
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
        let start = (time.0 + ARRIVAL) as f64;
        Self {
            world: World::new(state, start),
            home,
            event,
            settings,
            incidents,
            start,
        }
    }

    /// Asks the function for its plan only.
    pub async fn plan(&self) -> Result<Handled, String> {
        let handled = self
            .function("true")
            .carry_out(&self.event, &self.clock(), &self.home)
            .await;
        handled.map_err(|error| format!("the function refuses the event: {error}"))
    }

    /// Delivers the event. Gives what happened, and the JSON that the function returns.
    pub async fn deliver(&self) -> Result<(Handled, Value), String> {
        tokio::select! {
            biased;
            never = self.let_happen() => match never {},
            answered = self.call() => answered,
        }
    }

    async fn call(&self) -> Result<(Handled, Value), String> {
        let function = self.function("false");
        let clock = self.clock();
        let handled = function
            .carry_out(&self.event, &clock, &self.home)
            .await
            .map_err(|error| format!("the function refuses the event: {error}"))?;
        let answer = function
            .conclude(&handled, &clock, &self.home)
            .await
            .map_err(|error| format!("the function fails: {error}"))?;
        Ok((handled, answer))
    }

    /// Lets the incidents happen, each at its time.
    async fn let_happen(&self) -> Infallible {
        let delivered = Instant::now();
        for incident in &self.incidents {
            sleep_until(delivered + Duration::from_secs(incident.after)).await;
            let at = self.now();
            self.world.with(|state| (incident.change)(state, at));
        }
        std::future::pending().await
    }

    /// Seconds since the world's start.
    pub fn now(&self) -> f64 {
        self.world.now() - self.start
    }

    /// Whether the event itself asks for a plan only.
    pub fn is_dry_run(&self) -> bool {
        told(&self.event)["dryRun"] == Value::Bool(true)
    }

    /// How many restarts have ended so far, whatever their end.
    pub fn ended(&self) -> usize {
        let now = self.now();
        self.world.with(|state| {
            let commands = state.regions.values().flat_map(|region| &region.commands);
            let listed: Vec<Invocation> = commands
                .flat_map(|command| &command.invocations)
                .filter(|invocation| invocation.visible_at <= now)
                .cloned()
                .collect();
            listed
                .iter()
                .filter(|invocation| has_ended(state, invocation))
                .count()
        })
    }

    /// Whether that deployment has not ended yet.
    pub fn still_runs(&self, id: &str) -> bool {
        let now = self.now();
        self.world.with(|state| {
            let mut deployments = state
                .regions
                .values()
                .flat_map(|region| &region.deployments);
            deployments.any(|held| held.id == id && held.completed_at.is_some_and(|at| at > now))
        })
    }

    fn function(&self, dry_run: &str) -> Restarter {
        let settings = Settings::read(|name| match name {
            "TOPIC_ARN" => Some(sim::TOPIC.to_owned()),
            "DOCUMENT_NAME" => Some(sim::DOCUMENT.to_owned()),
            "WINDOWS_DOCUMENT_NAME" => Some(sim::WINDOWS_DOCUMENT.to_owned()),
            "DRY_RUN" => Some(dry_run.to_owned()),
            _ => self
                .settings
                .iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| (*value).to_owned()),
        });
        Restarter {
            settings: settings.expect("the demo's settings are in order"),
            clients: Clients::new(&self.world.sdk_config(self.home.region.as_str())),
            print: |_| {},
        }
    }

    fn clock(&self) -> Clock {
        Clock::new(Duration::from_secs_f64(self.world.now()), TIMEOUT)
    }
}

/// The event itself, out of what it comes in; as it comes, if the function refuses that.
fn told(event: &Value) -> Cow<'_, Value> {
    unwrapped(event).unwrap_or(Cow::Borrowed(event))
}

/// What the event calls one of the group's names, in its detail or, a request, in itself.
fn named<'a>(event: &'a Value, field: &str) -> Option<&'a str> {
    let text = |pointer: String| event.pointer(&pointer).and_then(Value::as_str);
    text(format!("/detail/{field}")).or(text(format!("/{field}")))
}

/// Whether Systems Manager shows an end. A host that answers verbatim has none of its own.
fn has_ended(state: &mut State, invocation: &Invocation) -> bool {
    let host = state.find_host(&invocation.instance_id);
    match host.and_then(|host| host.answer.as_ref()) {
        Some(answer) => matches!(
            answer.status.as_str(),
            "Success" | "Failed" | "Cancelled" | "TimedOut"
        ),
        None => invocation.ended_at.is_some(),
    }
}

/// A group's rows of the table of outcomes, by id.
pub fn table(group: &GroupReport) -> Vec<Row> {
    group
        .instances
        .iter()
        .filter_map(|(target, entry)| Some((target, entry, entry.outcome.as_ref()?)))
        .map(|(target, entry, outcome)| Row {
            id: target.to_string(),
            name: entry.name.clone().unwrap_or_default(),
            outcome: outcome.kind().word(),
            before_kib: memory(outcome).map(|memory| memory.0),
            after_kib: memory(outcome).map(|memory| memory.1),
            detail: outcome.detail.clone(),
        })
        .collect()
}

fn memory(outcome: &Outcome) -> Option<(u64, u64)> {
    outcome
        .memory
        .map(|memory| (memory.before_kib, memory.after_kib))
}

/// Gives the group and its deployment the names that the event uses.
fn rename(
    region: &mut sim::Region,
    application: Option<&str>,
    group: Option<&str>,
    deployment: Option<&str>,
) {
    let actions = region
        .pipelines
        .iter_mut()
        .flat_map(|pipeline| &mut pipeline.executions)
        .flat_map(|execution| &mut execution.actions);
    for action in actions {
        action.application = application.map(str::to_owned).or(action.application.take());
        action.deployment_group = group.map(str::to_owned).or(action.deployment_group.take());
        action.deployment_id = deployment
            .map(str::to_owned)
            .or(action.deployment_id.take());
    }
    let set = |field: &mut String, value: Option<&str>| {
        if let Some(value) = value {
            value.clone_into(field);
        }
    };
    for held in &mut region.deployment_groups {
        set(&mut held.application, application);
        set(&mut held.name, group);
    }
    for held in &mut region.deployments {
        set(&mut held.application, application);
        set(&mut held.deployment_group, group);
        set(&mut held.id, deployment);
    }
}

/// Spreads the fleet over two Auto Scaling groups, and gives some instances a part: those that fail, one
/// that Systems Manager lost, one in the middle of a lifecycle event, one that is just launching.
fn give_parts(state: &mut State, region: &str, cast: &Cast) {
    let mut random = fastrand::Rng::with_seed(cast.seed);
    let held = state.region(region);
    let mut ids: Vec<String> = (0..held.hosts.len())
        .map(|_| format!("i-0{:016x}", random.u64(..)))
        .collect();
    ids.sort();
    for ((host, target), id) in held
        .hosts
        .iter_mut()
        .zip(&mut held.deployments[0].targets)
        .zip(&ids)
    {
        host.id.clone_from(id);
        target.id.clone_from(id);
        host.delivery_seconds = 0.5 + 3.0 * random.f64();
        host.agent.restart_seconds = 15.0 + 60.0 * random.f64();
        host.agent.memory_kib = 1024 * random.u64(64..280);
        host.agent.fresh_memory_kib = 1024 * random.u64(48..56);
    }
    let half = ids.len().div_ceil(2);
    let halves = [("web-a", &ids[..half]), ("web-b", &ids[half..])];
    held.auto_scaling_groups = halves
        .iter()
        .map(|(name, ids)| AutoScalingGroup {
            name: (*name).to_owned(),
            instances: ids
                .iter()
                .map(|id| Member {
                    id: id.clone(),
                    ..Member::default()
                })
                .collect(),
        })
        .collect();
    held.deployment_groups[0].auto_scaling_groups =
        halves.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, ids) in halves {
        for (n, id) in ids.iter().enumerate() {
            state.host(id).name = Some(format!("{name}-{}", n + 1));
        }
    }

    random.shuffle(&mut ids);
    let mut players = ids.into_iter();
    for (n, id) in players.by_ref().take(cast.fail).enumerate() {
        state.host(&id).agent.fault = Some(FAULTS[n % FAULTS.len()]);
    }
    if let Some(lost) = players.next() {
        let host = state.host(&lost);
        host.ping = "ConnectionLost".to_owned();
        host.last_ping = -5_400.0;
    }
    if let Some(busy) = players.next() {
        state.host(&busy).agent.busy = vec![[-40.0, 600.0]];
    }
    if let Some(launching) = players.next() {
        "Pending:Wait".clone_into(state.lifecycle(&launching));
        state.host(&launching).agent.started_at = -30.0;
        let targets = &mut state.region(region).deployments[0].targets;
        targets.retain(|target| target.id != launching);
    }
}
