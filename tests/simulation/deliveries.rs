//! How events come to the function: Lambda's asynchronous invocation. One that fails, or that is lost at any
//! moment, runs again with the same event after one minute and then after two; after the third the event goes
//! to the dead-letter queue.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use codedeploy_agent_restarter::aws::Clients;
use codedeploy_agent_restarter::clock::Clock;
use codedeploy_agent_restarter::report::Report;
use codedeploy_agent_restarter::settings::Settings;
use codedeploy_agent_restarter::trigger::Home;
use codedeploy_agent_restarter::{Error, Handled, Restarter};
use fastrand::Rng;
use serde_json::{Value, json};
use sim::{State, World};
use tokio::time::{sleep, timeout};

use crate::fleet::{
    ABROAD, EVENT_TIME, Group, HOME, OTHER_ACCOUNT, Scene, between, deployment_event, one_in, pick,
    pipeline_event, rfc_3339,
};

const FUNCTION_ARN: &str = "arn:aws:lambda:us-east-1:123456789012:function:restarter";
/// Seconds between the runs of an event whose invocation failed.
const RETRY_AFTER: [f64; 2] = [60.0, 120.0];
/// Seconds after the last delivery within which everything on the hosts has come to its end.
const AFTERMATH: f64 = 2500.0;

/// An event that is delivered to the function.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Under which names it is counted.
    pub kinds: Vec<&'static str>,
    pub event: Value,
    pub meaning: Meaning,
    /// When the event happened, in seconds since the start: it is not delivered before.
    pub time: f64,
    /// Seconds before it begins.
    pub pause: f64,
    /// What its runs will meet.
    pub runs: [Run; 3],
}

/// What an event asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// Every group that the pipeline's execution deployed to.
    Pipeline {
        /// It succeeded, so that its last action has just ended.
        succeeded: bool,
    },
    /// The group with this number, for its deployment.
    Deployment(usize),
    /// The same by hand.
    Request {
        group: usize,
        /// Names the deployment; otherwise the last successful one is meant.
        named: bool,
        /// The time it gives, in seconds since the start.
        time: Option<f64>,
        dry_run: bool,
    },
    /// What another account's group needs.
    Elsewhere,
    /// Nothing: it is none of the function's.
    Nothing,
    /// It cannot be read.
    Unreadable,
}

/// What one run of an event will meet.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Seconds that Lambda leaves.
    pub remaining: f64,
    /// Where it is lost, if it is.
    pub lost: Option<Lost>,
}

/// Where an invocation is lost.
#[derive(Clone, Copy, Debug)]
pub enum Lost {
    /// After so many polls of its future: at one of its await points.
    AtPoll(u32),
    /// So many seconds after it began.
    AtSecond(f64),
}

/// One run of a delivery, as it happened.
#[derive(Debug)]
pub struct Invocation {
    /// The delivery, in the order of the tracks.
    pub delivery: usize,
    /// The access key of its calls.
    pub key: String,
    pub began: f64,
    pub ended: f64,
    /// When Lambda would have ended it.
    pub deadline: f64,
    pub end: End,
}

/// How an invocation ended.
#[derive(Debug)]
pub enum End {
    /// It was lost.
    Lost,
    /// Lambda's deadline came first.
    OutOfTime,
    /// It failed, with its type of error.
    Failed(&'static str),
    /// It ignored the event.
    Ignored,
    /// It reported.
    Reported(Box<Report>, Value),
}

/// What happened to a delivery in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A run came to its own end.
    Handled,
    /// The event lies in the dead-letter queue.
    DeadLetter,
}

/// Everything that happened.
pub struct Course {
    pub world: World,
    pub invocations: Vec<Invocation>,
    pub fates: Vec<Fate>,
}

/// Draws what is delivered.
pub fn draw(rng: &mut Rng, groups: &[Group], succeeded: f64) -> Vec<Vec<Delivery>> {
    let first = event(rng, groups, succeeded);
    let second = match &first.meaning {
        Meaning::Pipeline { .. } if rng.u32(..3) == 0 => {
            Some((deployment(rng, groups), "pipeline's and deployment's event"))
        }
        Meaning::Deployment(_) if rng.u32(..3) == 0 => Some((
            pipeline(rng, succeeded),
            "pipeline's and deployment's event",
        )),
        _ if rng.u32(..3) == 0 => Some((first.clone(), "the same event twice")),
        _ => None,
    };
    let mut tracks = match second {
        None => vec![vec![first]],
        Some((mut second, how)) => {
            second.kinds.push(how);
            if rng.bool() {
                second.kinds.push("in a row");
                second.pause = between(rng, 0.0, 90.0);
                vec![vec![first, second]]
            } else {
                second.kinds.push("at the same time");
                second.pause = *pick(rng, &[0.0, 0.0, 0.3, 7.0, 40.0]);
                vec![vec![first], vec![second]]
            }
        }
    };
    let fragile = *pick(rng, &[0, 0, 12, 3, 1]);
    let hasty = *pick(rng, &[0, 0, 0, 4]);
    // Several applications on one fleet end in one minute.
    if groups.len() > 1 && one_in(rng, 4) {
        for number in 0..groups.len() {
            let mut other = deployment_of(rng, groups, number);
            other
                .kinds
                .push("events of several groups at the same time");
            other.pause = between(rng, 0.0, 60.0);
            tracks.push(vec![other]);
        }
    }
    for delivery in tracks.iter_mut().flatten() {
        wrap(rng, delivery);
    }
    for run in tracks
        .iter_mut()
        .flatten()
        .flat_map(|delivery| &mut delivery.runs)
    {
        *run = Run {
            remaining: match hasty > 0 && one_in(rng, hasty) {
                true => *pick(rng, &[5.0, 30.0, 50.0, 100.0, 200.0, 300.0, 450.0]),
                false => 900.0,
            },
            lost: (fragile > 0 && one_in(rng, fragile)).then(|| match rng.bool() {
                // Most invocations are polled some hundred times.
                true => Lost::AtPoll(2_f64.powf(between(rng, 0.0, 10.0)) as u32),
                false => Lost::AtSecond(2_f64.powf(between(rng, -4.0, 8.5))),
            }),
        };
    }
    tracks
}

impl Delivery {
    fn of(meaning: Meaning, event: Value, kind: &'static str) -> Self {
        let run = Run {
            remaining: 900.0,
            lost: None,
        };
        Self {
            kinds: vec![kind],
            event,
            meaning,
            time: 0.0,
            pause: 0.0,
            runs: [run; 3],
        }
    }
}

/// How an execution ends whose CodeDeploy actions are over: something after them may fail or be rejected, somebody may
/// stop it, a newer execution may overtake it. The event and the name under which it is counted; none is a success.
const EXECUTION_ENDS: [(&str, Option<&str>); 13] = [
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("SUCCEEDED", None),
    ("FAILED", Some("execution that failed")),
    ("STOPPED", Some("execution that was stopped")),
    ("SUPERSEDED", Some("execution that was superseded")),
    ("CANCELED", Some("execution that was canceled")),
];
fn pipeline(rng: &mut Rng, ended: f64) -> Delivery {
    let (state, kind) = *pick(rng, &EXECUTION_ENDS);
    let event = pipeline_event(state, ended);
    let meaning = Meaning::Pipeline {
        succeeded: kind.is_none(),
    };
    let mut delivery = Delivery::of(meaning, event, "pipeline's event");
    delivery.kinds.extend(kind);
    delivery.time = ended;
    delivery
}

fn deployment(rng: &mut Rng, groups: &[Group]) -> Delivery {
    let number = rng.usize(..groups.len());
    deployment_of(rng, groups, number)
}

fn deployment_of(rng: &mut Rng, groups: &[Group], number: usize) -> Delivery {
    let group = &groups[number];
    // Told within two seconds.
    let time = (group.completed + between(rng, 0.0, 1.0)).ceil();
    let (state, kind) = match group.status {
        "Succeeded" => ("SUCCESS", None),
        "Failed" => ("FAILURE", Some("deployment that failed")),
        _ => ("STOP", Some("deployment that was stopped")),
    };
    let event = deployment_event(group, state, time);
    let mut delivery = Delivery::of(Meaning::Deployment(number), event, "deployment's event");
    delivery.kinds.extend(kind);
    delivery.time = time;
    delivery
}

fn event(rng: &mut Rng, groups: &[Group], succeeded: f64) -> Delivery {
    match rng.u32(..32) {
        0..=14 => pipeline(rng, succeeded),
        15 => elsewhere(rng, groups),
        16..=22 => deployment(rng, groups),
        23..=27 => request(rng, groups),
        28 | 29 => Delivery::of(
            Meaning::Nothing,
            none_of_ours(rng, groups),
            "event to be ignored",
        ),
        30 => {
            let event = pick(
                rng,
                &[json!([]), json!({"application": 7}), json!({"detail": {}})],
            )
            .clone();
            Delivery::of(Meaning::Unreadable, event, "unreadable event")
        }
        _ => {
            let event = wrongly_wrapped(rng, groups);
            Delivery::of(Meaning::Unreadable, event, "wrapping that is refused")
        }
    }
}

/// A bus may gather the events of several accounts.
fn elsewhere(rng: &mut Rng, groups: &[Group]) -> Delivery {
    let mut event = match rng.bool() {
        true => pipeline_event("SUCCEEDED", 0.0),
        false => deployment_event(&groups[0], "SUCCESS", 0.0),
    };
    event["account"] = json!(OTHER_ACCOUNT);
    Delivery::of(Meaning::Elsewhere, event, "event of another account")
}

/// Some rules send to a queue or a topic that calls the function.
fn wrap(rng: &mut Rng, delivery: &mut Delivery) {
    if delivery.meaning == Meaning::Unreadable {
        return;
    }
    let (record, kind) = match rng.u32(..16) {
        0 => (queued(&delivery.event), "event in a queue's record"),
        1 => (published(&delivery.event), "event in a topic's record"),
        _ => return,
    };
    delivery.event = json!({ "Records": [record] });
    delivery.kinds.push(kind);
}

/// The record of an SQS queue.
fn queued(event: &Value) -> Value {
    json!({ "messageId": "1", "eventSource": "aws:sqs", "body": event.to_string() })
}

/// The record of an SNS topic.
fn published(event: &Value) -> Value {
    json!({ "EventSource": "aws:sns", "Sns": { "Type": "Notification", "Message": event.to_string() } })
}

/// An event that would be an order, in a wrapping that hides it, or that holds more or less than one.
fn wrongly_wrapped(rng: &mut Rng, groups: &[Group]) -> Value {
    let event = match rng.bool() {
        true => pipeline_event("SUCCEEDED", 0.0),
        false => deployment_event(&groups[0], "SUCCESS", 0.0),
    };
    let records = |records: Vec<Value>| json!({ "Records": records });
    let renamed = || {
        let mut message = event.clone();
        message["detailType"] = message["detail-type"].take();
        if let Some(fields) = message.as_object_mut() {
            fields.remove("detail-type");
        }
        message
    };
    match rng.u32(..9) {
        0 => records(vec![queued(&event), queued(&event)]),
        1 => records(vec![published(&event), published(&event)]),
        2 => records(Vec::new()),
        3 => records(vec![queued(&json!("a sentence"))]),
        4 => records(vec![queued(&records(vec![published(&event)]))]),
        5 => records(vec![queued(&published(&event)["Sns"])]),
        6 => records(vec![published(&renamed())]),
        7 => event["detail"].clone(),
        _ => json!({ "CodePipeline.job": { "data": { "inputArtifacts": [] } } }),
    }
}

fn none_of_ours(rng: &mut Rng, groups: &[Group]) -> Value {
    match rng.u32(..3) {
        0 => {
            let state = pick(rng, &["STARTED", "RESUMED", "STOPPING"]);
            pipeline_event(state, 0.0)
        }
        1 => {
            let state = pick(rng, &["START", "READY"]);
            deployment_event(&groups[0], state, 0.0)
        }
        _ => {
            json!({"detail-type": "CodePipeline Action Execution State Change", "detail": {"state": "SUCCEEDED"}})
        }
    }
}

fn request(rng: &mut Rng, groups: &[Group]) -> Delivery {
    let number = rng.usize(..groups.len());
    let group = &groups[number];
    let mut event = json!({ "application": group.application, "deploymentGroup": group.name });
    if group.region == ABROAD || rng.bool() {
        event["region"] = json!(group.region);
    }
    let named = rng.bool();
    if named {
        event["deploymentId"] = json!(group.deployment);
    }
    let time = match rng.u32(..3) {
        0 => None,
        1 => Some(0.0),
        _ => Some(between(rng, -200_000.0, 120.0).round()),
    };
    if let Some(time) = time {
        event["time"] = json!(rfc_3339(time));
    }
    let dry_run = one_in(rng, 4);
    if dry_run {
        event["dryRun"] = json!(true);
    }
    let kind = if dry_run {
        "dry run by hand"
    } else {
        "request by hand"
    };
    let meaning = Meaning::Request {
        group: number,
        named,
        time,
        dry_run,
    };
    Delivery::of(meaning, event, kind)
}

/// Lets everything happen.
pub async fn happen(scene: &Scene, state: State) -> Course {
    let world = World::unrecorded(state, EVENT_TIME, 1.0);
    let invocations = RefCell::new(Vec::new());
    let total = scene.tracks.iter().map(Vec::len).sum();
    let fates = RefCell::new(vec![Fate::Handled; total]);
    let mut numbers = 0..total;
    let tracks = scene.tracks.iter().map(|track| {
        let numbered: Vec<(usize, &Delivery)> = numbers.by_ref().zip(track).collect();
        let (world, invocations, fates) = (&world, &invocations, &fates);
        Box::pin(async move {
            for (number, delivery) in numbered {
                let early = delivery.time - (world.now() - EVENT_TIME);
                sleep(seconds(delivery.pause.max(early))).await;
                let fate = deliver(world, scene, number, delivery, invocations).await;
                fates.borrow_mut()[number] = fate;
            }
        })
    });
    let tracks: Vec<_> = tracks.collect();
    let delivered = futures_util::future::join_all(tracks);
    tokio::select! {
        biased;
        () = changes(&world, scene) => {}
        _ = delivered => {}
    }
    sleep(seconds(AFTERMATH)).await;
    // Its clock stands when the runtime has ended.
    world.with(|_| ());
    Course {
        world,
        invocations: invocations.into_inner(),
        fates: fates.into_inner(),
    }
}

async fn changes(world: &World, scene: &Scene) {
    for change in &scene.changes {
        let now = world.now() - EVENT_TIME;
        sleep(seconds((change.at - now).max(0.0))).await;
        world.with(|state| change.apply(state));
    }
    std::future::pending().await
}

async fn deliver(
    world: &World,
    scene: &Scene,
    number: usize,
    delivery: &Delivery,
    invocations: &RefCell<Vec<Invocation>>,
) -> Fate {
    for (attempt, run) in delivery.runs.iter().enumerate() {
        let began = world.now() - EVENT_TIME;
        let key = format!("AKIA{number:06}{attempt:06}");
        let end = invoke(world, scene, &delivery.event, run, &key).await;
        let fine = matches!(end, End::Ignored | End::Reported(..));
        invocations.borrow_mut().push(Invocation {
            delivery: number,
            key,
            began,
            ended: world.now() - EVENT_TIME,
            deadline: began + run.remaining,
            end,
        });
        if fine {
            return Fate::Handled;
        }
        if let Some(pause) = RETRY_AFTER.get(attempt) {
            sleep(seconds(*pause)).await;
        }
    }
    Fate::DeadLetter
}

/// One run of the function, in a process of its own.
async fn invoke(world: &World, scene: &Scene, event: &Value, run: &Run, key: &str) -> End {
    let settings = Settings::read(|name| scene.settings.get(name).cloned());
    let restarter = Restarter {
        settings: settings.expect("the settings drawn are in order"),
        clients: Clients::new(&world.sdk_config_of(key, HOME)),
        print: |_| {},
    };
    let home = Home::of_function(FUNCTION_ARN).expect("the function's ARN is one");
    let remaining = seconds(run.remaining);
    let clock = Clock::new(Duration::from_secs_f64(world.now()), remaining);
    let handled = async {
        let handled = match restarter.carry_out(event, &clock, &home).await {
            Ok(handled) => handled,
            Err(error) => return End::Failed(Error::from(error).kind()),
        };
        match (restarter.conclude(&handled, &clock, &home).await, handled) {
            (Err(error), _) => End::Failed(error.kind()),
            (Ok(_), Handled::Ignored { .. }) => End::Ignored,
            (Ok(answer), Handled::Done(report)) => End::Reported(Box::new(report), answer),
        }
    };
    let (polls, moment) = match run.lost {
        None => (u32::MAX, remaining),
        Some(Lost::AtPoll(polls)) => (polls, remaining),
        Some(Lost::AtSecond(moment)) => (u32::MAX, seconds(moment).min(remaining)),
    };
    match timeout(moment, until_poll(polls, handled)).await {
        Ok(Some(end)) => end,
        Err(_) if moment == remaining => End::OutOfTime,
        Ok(None) | Err(_) => End::Lost,
    }
}

/// The future's output, or none when it was polled so often without an end.
async fn until_poll<T>(mut polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}
