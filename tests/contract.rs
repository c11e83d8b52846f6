//! One table for two. The cases of `host/contract.json` are told in the contract's words; `host/run.py` feeds
//! them to the real script under a real systemd, and this test feeds them, through the function's own
//! `SendCommand`, to the simulated hosts that every story rests on: both must say the same. And what the real
//! script printed there is read here by the function's own parser.

use std::collections::BTreeSet;

use aws_sdk_ssm::types::{CommandInvocation, CommandInvocationStatus, CommandPlugin};
use codedeploy_agent_restarter::document::Verdict;
use codedeploy_agent_restarter::outcome::{Cause, Progress, of_invocation};
use codedeploy_agent_restarter::text::harmless;
use serde::Deserialize;
use serde_json::{Value, json};
use sim::{AgentFault, Job, JobKind, World};
use support::{Story, id, request};

#[expect(
    dead_code,
    reason = "the stage of the stories, of which this uses a part"
)]
#[path = "stories/support.rs"]
mod support;

#[derive(Deserialize)]
struct Case {
    name: String,
    given: Given,
    expect: Expected,
}

/// What is true of the host before the script runs.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Given {
    installed: bool,
    running: bool,
    /// Its agent started after the deployment.
    fresh: bool,
    /// Its agent uses less than the threshold.
    small: bool,
    event: Option<Busy>,
    update: Option<Busy>,
    other_run: Option<Busy>,
    /// What somebody has asked of systemd, which does not come to it.
    job: Option<JobKind>,
    fault: Option<AgentFault>,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            installed: true,
            running: true,
            fresh: false,
            small: false,
            event: None,
            update: None,
            other_run: None,
            job: None,
            fault: None,
        }
    }
}

/// How long something is under way that a restart would disturb.
#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Busy {
    /// Before the script's patience ends.
    Ends,
    /// Longer than its patience.
    Stays,
    /// It begins when the script has looked, and stays.
    Begins,
    /// The agent died in it, and its tracking file is still there.
    Left,
}

impl Busy {
    /// A simulated host keeps no files: of an event that was left behind nothing is there.
    fn period(self) -> Option<[f64; 2]> {
        match self {
            Self::Ends => Some([-10.0, 30.0]),
            Self::Stays => Some([-10.0, 800.0]),
            Self::Begins => Some([12.0, 400.0]),
            Self::Left => None,
        }
    }
}

#[derive(Debug, Deserialize, PartialEq)]
struct Expected {
    result: String,
    code: i64,
}

#[tokio::test(start_paused = true)]
async fn the_simulated_host_says_what_the_real_script_says() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("host/contract.json")).expect("the table is valid");
    assert!(cases.len() >= 20, "the table has {} cases", cases.len());
    for case in cases {
        let story = story_of(&case.given);
        let time = if case.given.fresh {
            "2026-02-17T08:14:05Z"
        } else {
            "2026-02-17T09:14:05Z"
        };
        let order = request(json!({ "time": time }));
        let told = if case.given.other_run.is_some() {
            let mut impatient = story_of(&case.given).setting("BUSY_WAIT_SECONDS", "5");
            impatient.world = story.world.clone();
            tokio::join!(story.event(&order), impatient.event(&order)).1
        } else {
            story.event(&order).await
        };
        let said = last_line(&story.world);
        assert_eq!(said, case.expect, "{}", case.name);
        let kind = outcome_of(&case.expect.result);
        assert_eq!(told.counts(), &json!({ kind: 1 }), "{}", case.name);
    }
}

fn story_of(given: &Given) -> Story {
    let story = Story::of(1).given(|state| {
        let agent = &mut state.host(&id(1)).agent;
        agent.installed = given.installed;
        agent.running = given.running;
        agent.fault = given.fault;
        if given.fresh {
            agent.started_at = -1800.0;
        }
        if given.small {
            agent.memory_kib = 50 * 1024;
        }
        agent.busy = given.event.and_then(Busy::period).into_iter().collect();
        agent.updates = given.update.and_then(Busy::period).into_iter().collect();
        agent.job = given.job.map(|kind| Job { kind, ends: 800.0 });
        if given.event == Some(Busy::Begins) {
            agent.fault = Some(AgentFault::Draining);
        }
    });
    story.setting("MIN_MEMORY_MIB", if given.small { "100" } else { "0" })
}

/// What the script said that was sent last.
fn last_line(world: &World) -> Expected {
    world.with(|state| {
        let commands = &state.region(support::REGION).commands;
        let invocation = &commands.last().expect("a command was sent").invocations[0];
        let line = invocation.output.lines().next().expect("there is output");
        let line: Value = serde_json::from_str(line).expect("the line is JSON");
        assert_eq!(line["code"], invocation.response_code, "{line}");
        serde_json::from_value(line).expect("the line has a result and a code")
    })
}

/// The outcome that the contract gives a result.
fn outcome_of(result: &str) -> &str {
    match result {
        "restarted" | "started" | "already-restarted" | "below-threshold" => result,
        "busy" | "update-running" | "restart-running" | "draining" => "busy",
        _ => "failed",
    }
}

/// A line that the real script printed.
#[derive(Deserialize)]
struct Printed {
    case: String,
    exit: i32,
    line: String,
}

#[test]
fn the_function_reads_what_the_real_script_printed() {
    let mut seen = BTreeSet::new();
    for text in include_str!("host/lines.jsonl").lines() {
        let printed: Printed = serde_json::from_str(text).expect("lines.jsonl holds JSON");
        let line: Value = serde_json::from_str(&printed.line).expect("the line is JSON");
        let invocation = invocation_of(&printed, printed.exit);
        let Progress::Done(outcome) = of_invocation(&invocation) else {
            panic!("{}: an ended command is not an end", printed.case);
        };
        // A signal to the script's process group behind the line changes nothing that it says.
        let ended = of_invocation(&invocation_of(&printed, -1));
        assert_eq!(ended, Progress::Done(outcome.clone()), "{}", printed.case);
        let result = line["result"].as_str().expect("a result is a word");
        assert_eq!(
            outcome.kind().word(),
            outcome_of(result),
            "{}",
            printed.line
        );
        let Cause::Reported(verdict) = outcome.cause else {
            panic!("{} is not understood: {}", printed.line, outcome.detail);
        };
        assert_eq!(i32::from(verdict.code()), printed.exit);
        let memory = outcome
            .memory
            .expect("a line that is understood has memory");
        assert_eq!(line["memoryBeforeKiB"], memory.before_kib);
        assert_eq!(line["memoryAfterKiB"], memory.after_kib);
        let detail = line["detail"].as_str().expect("a detail is text");
        let detail = harmless(detail, 600);
        assert!(outcome.detail.contains(&detail), "{}", outcome.detail);
        seen.insert(result.to_owned());
    }
    assert_eq!(seen.len(), Verdict::ALL.len(), "results seen: {seen:?}");
}

/// The invocation as Systems Manager would show it.
fn invocation_of(printed: &Printed, code: i32) -> CommandInvocation {
    let (status, error) = match code {
        0 => (CommandInvocationStatus::Success, String::new()),
        code => (
            CommandInvocationStatus::Failed,
            format!("\n----------ERROR-------\nfailed to run commands: exit status {code}"),
        ),
    };
    let ran = CommandPlugin::builder()
        .name("linux")
        .response_code(code)
        .output(format!("{}\n{error}", printed.line));
    CommandInvocation::builder()
        .status_details(status.as_str())
        .status(status)
        .command_plugins(ran.build())
        .build()
}
