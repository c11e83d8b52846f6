//! The demo tells the truth: its table is the simulated world's own state, and its messages name whom it
//! concerns.

use std::collections::{BTreeMap, BTreeSet};

use codedeploy_agent_restarter::Handled;
use codedeploy_agent_restarter::report::Report;
use serde_json::Value;
use sim::{AgentFault, Call, Host, Invocation, State};

#[path = "../examples/demo/bad_day.rs"]
mod bad_day;
#[path = "../examples/demo/screen.rs"]
#[expect(dead_code, reason = "only the table is looked at here")]
mod screen;
#[path = "../examples/demo/stage.rs"]
#[expect(dead_code, reason = "the plan and the progress are not looked at here")]
mod stage;

use stage::{Cast, Stage};

/// Seconds that Lambda leaves from the delivery to its deadline.
const DEADLINE: f64 = 900.0;
/// Every outcome there is.
const OUTCOMES: [&str; 13] = [
    "already-restarted",
    "below-threshold",
    "busy",
    "cancelled",
    "failed",
    "held-back",
    "restarted",
    "skipped",
    "started",
    "timed-out",
    "undelivered",
    "unfinished",
    "unreachable",
];
/// Those of them of which nobody needs to hear.
const CALM: [&str; 5] = [
    "already-restarted",
    "below-threshold",
    "restarted",
    "skipped",
    "started",
];
/// Lifecycle states in which an instance is starting or leaving, of those that the demo uses.
const PASSING: [&str; 1] = ["Pending:Wait"];
/// Statuses of an invocation that are an end.
const ENDS: [&str; 4] = ["Success", "Failed", "TimedOut", "Cancelled"];

#[tokio::test(start_paused = true)]
async fn the_table_of_the_demo_is_the_state_of_the_world() {
    for (seed, instances, fail) in [(1, 24, 1), (2, 12, 4), (3, 37, 2), (4, 0, 0)] {
        let cast = Cast {
            instances,
            fail,
            seed,
        };
        let played = play(Stage::set(event(), &cast)).await;
        assert_eq!(played.shown, played.expected, "seed {seed}");
        assert_eq!(played.shown.len(), instances);
        assert_braked(&played, 10);
        assert_told(&played, 0);
    }
}

/// Who has no Rust sees there what they would get.
#[tokio::test(start_paused = true)]
async fn the_message_in_the_readme_is_the_demo_s() {
    let played = play(Stage::set(event(), &Cast::default())).await;
    let messages = played.stage.world.messages();
    let bodies: Value = serde_json::from_str(&messages[0].message).expect("JSON");
    let mail = bodies["email"].as_str().expect("a mail").trim_end();
    let shown = include_str!("../README.md").contains(&format!("```text\n{mail}\n```"));
    assert!(shown, "README.md shows another message than\n{mail}");
}

#[tokio::test(start_paused = true)]
async fn the_table_of_the_bad_day_is_the_state_of_the_world_and_all_of_it_happens() {
    for seed in 1..=5 {
        let stage = Stage::set_bad_day(event(), seed);
        let played = play(stage).await;
        assert_eq!(played.shown, played.expected, "seed {seed}");
        assert_braked(&played, 35);
        // Of the action in another account.
        assert_told(&played, 1);

        let words = played
            .shown
            .iter()
            .filter_map(|line| line.split(' ').nth(1));
        let seen: BTreeSet<&str> = words.collect();
        assert_eq!(seen, BTreeSet::from(OUTCOMES), "seed {seed}");
        assert!(played.seconds < DEADLINE, "{} s", played.seconds);
        assert_eq!(played.answer["notified"], true);

        let report = &played.report;
        let details: Vec<&str> = report
            .groups
            .iter()
            .flat_map(|group| group.outcomes())
            .map(|outcome| outcome.detail.as_str())
            .collect();
        for reason in [
            "(code 10)",
            "(code 12,",
            "(code 20,",
            "(code 30,",
            "(code 31,",
            "(code 32,",
            "(code 33,",
            "(code 34,",
            "is not the restart document's",
            "no valid JSON",
            "lifecycle state Pending:Wait",
            "unknown lifecycle state",
            "EC2: terminated",
            "EC2: stopped",
            "offline since",
            "refuses it",
            "it runs; not managed",
            "MAX_ERRORS allows",
            "InvalidDocument",
        ] {
            let told = details.iter().any(|detail| detail.contains(reason));
            assert!(told, "seed {seed}: nobody is {reason:?}: {details:#?}");
        }
        let problems: Vec<&str> = report.problems().map(|p| p.code.word()).collect();
        assert_eq!(problems, ["OtherAccount", "InvalidDocument"]);
        assert!(
            report
                .problems()
                .all(|problem| !problem.remedy().is_empty())
        );

        assert_it_was_a_bad_day(&played);
    }
}

/// What the table does not show: the function waited for quiet where another deployment ran and only there,
/// met throttling and a refusal for one id, sent in rounds, and sent to one that was offline when it first
/// looked.
fn assert_it_was_a_bad_day(played: &Played) {
    let called = |operation: &str, error: &str| {
        let mut calls = played.stage.world.calls();
        calls.retain(|call| {
            call.operation == operation && call.error.as_deref().unwrap_or_default() == error
        });
        calls
    };
    // Only running deployments are asked for in batches.
    assert!(called("BatchGetDeployments", "").len() > 1);
    assert!(!called("ListCommandInvocations", "ThrottlingException").is_empty());
    assert!(!called("SendCommand", "InvalidInstanceId").is_empty());
    assert!(called("SendCommand", "AccessDeniedException").len() > 1);
    let sent = called("SendCommand", "");
    let ended = played.stage.world.with(|state| {
        let other = state.deployment("d-OTHER0001");
        other.completed_at.expect("it ends")
    });
    let is_of_api = |id: &Value| {
        let host = played.hosts.iter().find(|host| *id == host.id);
        let name = host.and_then(|host| host.name.as_deref());
        name.is_some_and(|name| name.starts_with("api-"))
    };
    let ids = |call: &Call| call.params["InstanceIds"].as_array().cloned().expect("ids");
    let (to_api, to_others): (Vec<&Call>, Vec<&Call>) = sent
        .iter()
        .partition(|call| ids(call).iter().any(is_of_api));
    assert!(
        to_api.iter().all(|call| call.at > ended),
        "sent while it ran"
    );
    assert!(
        to_others.iter().any(|call| call.at < ended),
        "another group waited"
    );

    let back = played
        .hosts
        .iter()
        .find(|host| host.name.as_deref() == Some("worker-07") && !host.agent.restarts.is_empty());
    assert!(back.is_some_and(|host| host.ping == "Online" && host.last_ping > 0.0));
}

/// A day that is over.
struct Played {
    stage: Stage,
    report: Report,
    answer: Value,
    /// The table, each line reduced to id, outcome, and memory before and after.
    shown: Vec<String>,
    /// The same from the world's state.
    expected: Vec<String>,
    hosts: Vec<Host>,
    seconds: f64,
}

async fn play(stage: Stage) -> Played {
    let before = stage.world.with(|state| memory(state));
    let (handled, answer) = stage.deliver().await.expect("the event is handled");
    let seconds = stage.now();
    let Handled::Done(report) = handled else {
        panic!("the event is acted upon")
    };
    let tables = report.groups.iter().map(stage::table);
    let mut shown: Vec<String> = tables
        .flat_map(|rows| screen::table_lines(&rows))
        .filter(|line| line.starts_with("i-"))
        .map(|line| reduced(&line))
        .collect();
    shown.sort();
    let (mut expected, hosts) = stage.world.with(|state| {
        let hosts = hosts(state);
        let lines = hosts
            .iter()
            .map(|host| truth(state, host, before[&host.id]));
        (lines.collect::<Vec<_>>(), hosts)
    });
    expected.sort();
    Played {
        stage,
        report,
        answer,
        shown,
        expected,
        hosts,
        seconds,
    }
}

fn event() -> Value {
    serde_json::from_str(include_str!("../events/pipeline-succeeded.json"))
        .expect("the event is JSON")
}

/// Id, outcome and memory of a line. The name is no part of the comparison: a launching instance has none yet.
fn reduced(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let outcome = words.iter().position(|word| OUTCOMES.contains(word));
    let outcome = outcome.unwrap_or_else(|| panic!("no outcome in {line:?}"));
    assert!(outcome <= 2, "between id and outcome stands a name: {line}");
    let numbers = words[outcome + 1..].iter().filter(|word| **word != "MiB");
    let numbers: Vec<&str> = numbers.copied().collect();
    assert_eq!(numbers.len(), 2, "before and after: {line}");
    format!("{} {} {}", words[0], words[outcome], numbers.join(" "))
}

/// What the table must say of a host: id, outcome, memory before and after.
fn truth(state: &State, host: &Host, before_kib: u64) -> String {
    let agent = &host.agent;
    let outcome = outcome(state, host, before_kib);
    let untouched = [
        "unreachable",
        "skipped",
        "held-back",
        "undelivered",
        "timed-out",
        "cancelled",
        "unfinished",
    ];
    // Without the document's line nobody knows what the agent holds.
    if untouched.contains(&outcome) || host.answer.is_some() {
        assert!(agent.restarts.is_empty());
        return format!("{} {outcome} - -", host.id);
    }
    let now_kib = if agent.running { agent.memory_kib } else { 0 };
    let (before_kib, after_kib) = match outcome {
        "already-restarted" | "below-threshold" => (now_kib, now_kib),
        // It is replaced after the document's end.
        "busy" => (before_kib, before_kib),
        _ => (before_kib, now_kib),
    };
    let mebibytes = |kib: u64| kib / 1024;
    format!(
        "{} {outcome} {} {}",
        host.id,
        mebibytes(before_kib),
        mebibytes(after_kib)
    )
}

fn outcome(state: &State, host: &Host, before_kib: u64) -> &'static str {
    let agent = &host.agent;
    let lifecycle = state
        .regions
        .values()
        .flat_map(|region| &region.auto_scaling_groups)
        .flat_map(|group| &group.instances)
        .find(|member| member.id == host.id)
        .map(|member| member.lifecycle.as_str());
    let Some(invocation) = invocation(state, host) else {
        return match lifecycle {
            Some(state) if PASSING.contains(&state) => "skipped",
            // One that the function cannot know.
            Some(state) if state != "InService" => "held-back",
            // It went away, or was away when the deployment ran.
            None if host.state != "running" => "skipped",
            _ if !host.managed || host.ping != "Online" || host.denied => "unreachable",
            // After too many failures the rest is left alone; and nothing is sent without a document.
            _ => "held-back",
        };
    };
    assert!(matches!(lifecycle, Some("InService") | None));
    assert!(host.managed && host.state == "running" && !host.denied);
    if let Some(answer) = &host.answer {
        return match answer.status.as_str() {
            "Cancelled" => "cancelled",
            status if ENDS.contains(&status) => "failed",
            _ => "unfinished",
        };
    }
    match (agent.fault, invocation.status_details.as_str()) {
        _ if invocation.began_at.is_none() => "undelivered",
        (Some(AgentFault::Hangs), details) => {
            assert_eq!(details, "ExecutionTimedOut");
            "timed-out"
        }
        (Some(AgentFault::Draining), _) => "busy",
        (Some(_), _) => "failed",
        _ if !agent.installed => "failed",
        _ if !agent.restarts.is_empty() => {
            assert!(agent.running && agent.started_at > 0.0, "a new agent runs");
            match before_kib {
                0 => "started",
                _ => "restarted",
            }
        }
        _ if agent.started_at > 0.0 => "already-restarted",
        _ if !agent.busy.is_empty() => "busy",
        _ => {
            let threshold_kib = 60 * 1024;
            assert!(
                agent.memory_kib < threshold_kib,
                "only a small, a fresh or a busy agent is not restarted"
            );
            "below-threshold"
        }
    }
}

/// Who is held back although all is well with it, is so because more restarts of its group failed than
/// `percent` of them, or because its region has no document.
fn assert_braked(played: &Played, percent: usize) {
    played.stage.world.with(|state| {
        for region in state.regions.values() {
            for group in &region.deployments {
                let hosts: Vec<&Host> = region
                    .hosts
                    .iter()
                    .filter(|host| group.targets.iter().any(|target| target.id == host.id))
                    .collect();
                let line = |host: &Host| {
                    let found = played.shown.iter().find(|line| line.starts_with(&host.id));
                    found.cloned().unwrap_or_default()
                };
                let braked = hosts.iter().filter(|host| {
                    let member = region.auto_scaling_groups.iter();
                    let member = member
                        .flat_map(|group| &group.instances)
                        .any(|member| member.id == host.id && member.lifecycle == "InService");
                    member && line(host).contains("held-back")
                });
                let braked = braked.count();
                if braked == 0 || region.documents.is_empty() {
                    continue;
                }
                let sent: Vec<&&Host> = hosts
                    .iter()
                    .filter(|host| invocation(state, host).is_some())
                    .collect();
                let failed = sent.iter().filter(|host| {
                    let untouched = !host.agent.installed
                        || host.agent.fault == Some(AgentFault::PreflightFailed);
                    let line = line(host);
                    !untouched && (line.contains(" failed ") || line.contains(" timed-out "))
                });
                let allowed = ((sent.len() + braked) * percent).div_ceil(100);
                assert!(failed.count() > allowed, "{}: {allowed}", group.id);
            }
        }
    });
}

/// There is one message for each group that needs somebody, whose mail names who needs it and nobody else,
/// and as many `others`, of no group.
fn assert_told(played: &Played, others: usize) {
    let ids = |wanted: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
        let ids = played.hosts.iter().map(|host| &host.id);
        ids.filter(|id| wanted(id)).cloned().collect()
    };
    let needs_somebody = |id: &str| {
        let mut lines = played.expected.iter();
        lines.any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[0] == id && !CALM.contains(&words[1])
        })
    };
    let mut expected = played.stage.world.with(|state| {
        let deployments = state.regions.values().flat_map(|held| &held.deployments);
        let groups = deployments.map(|held| {
            let is_target = |id: &str| held.targets.iter().any(|target| target.id == id);
            let ids = ids(&|id| is_target(id) && needs_somebody(id));
            // A group without anybody is a problem.
            let told = !ids.is_empty() || played.hosts.is_empty();
            told.then(|| (held.deployment_group.clone(), ids))
        });
        groups.flatten().collect::<Vec<_>>()
    });
    expected.extend((0..others).map(|_| (String::new(), BTreeSet::new())));
    expected.sort();
    let messages = played.stage.world.messages().into_iter();
    let mut told: Vec<_> = messages
        .map(|message| {
            let bodies: Value = serde_json::from_str(&message.message).expect("JSON");
            let mail = bodies["email"].as_str().expect("a text for mails");
            let group = message.attributes.get("deploymentGroup");
            let group = group.and_then(|group| group["Value"].as_str());
            (
                group.unwrap_or_default().to_owned(),
                ids(&|id| mail.contains(id)),
            )
        })
        .collect();
    told.sort();
    assert_eq!(told, expected);
}

fn invocation<'a>(state: &'a State, host: &Host) -> Option<&'a Invocation> {
    let commands = state.regions.values().flat_map(|region| &region.commands);
    let mut invocations = commands.flat_map(|command| &command.invocations);
    invocations.find(|invocation| invocation.instance_id == host.id)
}

fn hosts(state: &State) -> Vec<Host> {
    state
        .regions
        .values()
        .flat_map(|region| region.hosts.clone())
        .collect()
}

fn memory(state: &State) -> BTreeMap<String, u64> {
    hosts(state)
        .into_iter()
        .map(|host| (host.id, host.agent.memory_kib))
        .collect()
}
