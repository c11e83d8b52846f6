//! A story's stage: a world, the function's environment, and one event after another.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use codedeploy_agent_restarter::Restarter;
use codedeploy_agent_restarter::aws::Clients;
use codedeploy_agent_restarter::clock::Clock;
use codedeploy_agent_restarter::settings::Settings;
use codedeploy_agent_restarter::trigger::Home;
use serde_json::{Value, json};
use sim::{State, World};

/// The moment at which every story's event happened, 2026-02-17T09:14:05Z; the world starts with it.
pub const EVENT_TIME: f64 = 1_771_319_645.0;
pub const REGION: &str = "us-east-1";
pub const ACCOUNT: &str = "123456789012";
pub const PIPELINE: &str = "my-pipeline";
pub const EXECUTION: &str = "3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f";
pub const FUNCTION_ARN: &str = "arn:aws:lambda:us-east-1:123456789012:function:restarter";

pub struct Story {
    pub world: World,
    environment: BTreeMap<&'static str, String>,
    timeout: Duration,
}

/// What a story's event led to.
#[derive(Debug)]
pub struct Told {
    pub answer: Value,
    pub metrics: Vec<Value>,
}

thread_local! {
    /// Each story runs on a thread of its own.
    static PRINTED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

impl Story {
    /// A fleet of `instances` in one Auto Scaling group, to which a pipeline has just deployed.
    pub fn of(instances: usize) -> Self {
        Self::with(State::for_pipeline(PIPELINE, EXECUTION, REGION, instances))
    }

    pub fn with(state: State) -> Self {
        let environment = BTreeMap::from([
            ("TOPIC_ARN", sim::TOPIC.to_owned()),
            ("DOCUMENT_NAME", sim::DOCUMENT.to_owned()),
            ("WINDOWS_DOCUMENT_NAME", sim::WINDOWS_DOCUMENT.to_owned()),
            ("MAX_CONCURRENCY", "100%".to_owned()),
        ]);
        Self {
            world: World::new(state, EVENT_TIME),
            environment,
            timeout: Duration::from_secs(900),
        }
    }

    /// Changes the world before, or between, events.
    pub fn given(self, change: impl FnOnce(&mut State)) -> Self {
        self.world.with(change);
        self
    }

    pub fn setting(mut self, name: &'static str, value: &str) -> Self {
        self.environment.insert(name, value.to_owned());
        self
    }

    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// Delivers an event as Lambda would, to a new process.
    pub async fn try_event(&self, event: &Value) -> Result<Told, String> {
        let settings = Settings::read(|name| self.environment.get(name).cloned())
            .expect("the story's settings are in order");
        let restarter = Restarter {
            settings,
            clients: Clients::new(&self.world.sdk_config(REGION)),
            print: |line| PRINTED.with_borrow_mut(|printed| printed.push(line.to_owned())),
        };
        let home = Home::of_function(FUNCTION_ARN).expect("the story's ARN is one");
        let clock = Clock::new(Duration::from_secs_f64(self.world.now()), self.timeout);
        PRINTED.take();
        let answer = restarter.handle(event, &clock, &home).await;
        let metrics = PRINTED
            .take()
            .iter()
            .map(|line| serde_json::from_str(line).expect("a metrics line is JSON"))
            .collect();
        answer
            .map(|answer| Told { answer, metrics })
            .map_err(|error| format!("{}: {error}", error.kind()))
    }

    pub async fn event(&self, event: &Value) -> Told {
        self.try_event(event).await.expect("the event is handled")
    }

    /// Delivers the pipeline's success.
    pub async fn run(&self) -> Told {
        self.event(&event("pipeline-succeeded")).await
    }

    /// The operations called so far, with how often.
    pub fn calls(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for call in self.world.calls() {
            *counts.entry(call.operation).or_default() += 1;
        }
        counts
    }

    pub fn count(&self, operation: &str) -> usize {
        self.calls().get(operation).copied().unwrap_or(0)
    }

    /// The only message published.
    pub fn message(&self) -> sim::Message {
        let mut messages = self.world.messages();
        assert_eq!(messages.len(), 1, "one message: {messages:#?}");
        messages.remove(0)
    }

    /// One body of the only message published.
    pub fn body(&self, protocol: &str) -> String {
        let bodies: Value = serde_json::from_str(&self.message().message).expect("bodies are JSON");
        bodies[protocol]
            .as_str()
            .unwrap_or_else(|| panic!("there is no body for {protocol}"))
            .to_owned()
    }

    pub fn silent(&self) -> bool {
        self.world.messages().is_empty()
    }

    /// The ids that restart commands were sent to, in the order of sending.
    pub fn sent_to(&self) -> Vec<String> {
        self.world
            .calls()
            .iter()
            .filter(|call| call.operation == "SendCommand" && call.status == 200)
            .flat_map(|call| {
                call.params["InstanceIds"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
            })
            .filter_map(|id| id.as_str().map(str::to_owned))
            .collect()
    }
}

impl Told {
    /// The outcomes' counts of the only group.
    pub fn counts(&self) -> &Value {
        &self.group()["counts"]
    }

    pub fn group(&self) -> &Value {
        let groups = self.answer["groups"].as_array().expect("groups are a list");
        assert_eq!(groups.len(), 1, "one group: {:#}", self.answer);
        &groups[0]
    }

    /// The row of an instance that needs attention.
    pub fn attention(&self, id: &str) -> &Value {
        self.group()["attention"]
            .as_array()
            .expect("attention is a list")
            .iter()
            .find(|row| row["instanceId"] == id)
            .unwrap_or_else(|| panic!("{id} needs no attention: {:#}", self.answer))
    }
}

/// The n-th instance's id.
pub fn id(n: usize) -> String {
    sim::instance_id(n)
}

/// One of the repository's event files.
pub fn event(name: &str) -> Value {
    let text = match name {
        "pipeline-succeeded" => include_str!("../../events/pipeline-succeeded.json"),
        "pipeline-succeeded-integers" => {
            include_str!("../../events/pipeline-succeeded-integers.json")
        }
        "pipeline-succeeded-strings" => {
            include_str!("../../events/pipeline-succeeded-strings.json")
        }
        "pipeline-rollback" => include_str!("../../events/pipeline-rollback.json"),
        "pipeline-failed" => include_str!("../../events/pipeline-failed.json"),
        "pipeline-stopped" => include_str!("../../events/pipeline-stopped.json"),
        "pipeline-superseded" => include_str!("../../events/pipeline-superseded.json"),
        "pipeline-started" => include_str!("../../events/pipeline-started.json"),
        "sqs-record" => include_str!("../../events/sqs-record.json"),
        "sns-record" => include_str!("../../events/sns-record.json"),
        "action-succeeded" => include_str!("../../events/action-succeeded.json"),
        "codedeploy-success" => include_str!("../../events/codedeploy-success.json"),
        "codedeploy-failure" => include_str!("../../events/codedeploy-failure.json"),
        "codedeploy-other-account" => {
            include_str!("../../events/codedeploy-other-account.json")
        }
        "by-hand" => include_str!("../../events/by-hand.json"),
        "dry-run" => include_str!("../../events/dry-run.json"),
        other => panic!("there is no event {other}"),
    };
    serde_json::from_str(text).expect("the event file is JSON")
}

/// A request by hand for the story's group, with more fields.
pub fn request(more: Value) -> Value {
    let mut request = json!({
        "application": sim::APPLICATION,
        "deploymentGroup": sim::DEPLOYMENT_GROUP,
    });
    if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
        request.extend(more);
    }
    request
}

/// The parameters of each restart command that was accepted, in the order of sending.
pub fn commands(story: &Story) -> Vec<Value> {
    story
        .world
        .calls()
        .into_iter()
        .filter(|call| call.operation == "SendCommand" && call.status == 200)
        .map(|call| call.params)
        .collect()
}

/// One command on one instance, in seconds since the start.
#[derive(Clone, Debug)]
pub struct Flight {
    pub instance: String,
    pub sent: f64,
    /// None when it never ended.
    pub ended: Option<f64>,
}

impl Story {
    /// When an operation was called, refused calls included, in seconds since the start.
    pub fn times_of(&self, operation: &str) -> Vec<f64> {
        let calls = self.world.calls().into_iter();
        calls
            .filter(|call| call.operation == operation)
            .map(|call| call.at)
            .collect()
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> f64 {
        self.world.now() - EVENT_TIME
    }

    /// Everything that was sent to instances of the region, in the order of sending.
    pub fn flights_in(&self, region: &str) -> Vec<Flight> {
        self.world.with(|state| {
            let commands = state.region(region).commands.iter();
            commands
                .flat_map(|command| {
                    command.invocations.iter().map(|invocation| Flight {
                        instance: invocation.instance_id.clone(),
                        sent: command.sent_at,
                        ended: invocation.ended_at,
                    })
                })
                .collect()
        })
    }

    /// Everything that was sent to instances.
    pub fn flights(&self) -> Vec<Flight> {
        self.flights_in(REGION)
    }

    /// When the only message was published, in seconds since the start.
    pub fn told_at(&self) -> f64 {
        self.message().at
    }
}

/// How many of these were in flight at that moment.
pub fn in_flight(flights: &[Flight], at: f64) -> usize {
    let open = |flight: &&Flight| flight.sent <= at && flight.ended.is_none_or(|end| at < end);
    flights.iter().filter(open).count()
}

/// The most that were in flight at the same time.
pub fn most_at_once(flights: &[Flight]) -> usize {
    let moments = flights.iter().map(|flight| flight.sent);
    let counts = moments.map(|at| in_flight(flights, at));
    counts.max().unwrap_or_default()
}

/// The pauses between moments that follow each other.
pub fn gaps(times: &[f64]) -> Vec<f64> {
    times.windows(2).map(|two| two[1] - two[0]).collect()
}

/// That these moments follow each other after `pause` seconds, and the few tenths that the calls take.
pub fn assert_every(pause: f64, times: &[f64]) {
    let gaps = gaps(times);
    assert!(!gaps.is_empty(), "once only: {times:?}");
    let fits = |gap: &f64| (pause..pause + 0.5).contains(gap);
    assert!(gaps.iter().all(fits), "not every {pause} s: {times:?}");
}
