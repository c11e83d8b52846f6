//! Whatever arrives in an event, an environment variable or a host's output: it is read or refused in one
//! short printable line, never with a panic, and never taken for more than it says.

use std::time::Duration;

use aws_sdk_ssm::types::{CommandInvocation, CommandInvocationStatus, CommandPlugin};
use codedeploy_agent_restarter::clock::{Clock, Timestamp};
use codedeploy_agent_restarter::ids::{AccountId, Region};
use codedeploy_agent_restarter::outcome::{Progress, of_invocation};
use codedeploy_agent_restarter::settings::{Rate, Settings};
use codedeploy_agent_restarter::trigger::{self, Home, Subject, Trigger};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The longest text that a reason, an error or a detail may be, in characters.
const MAX_LINE: usize = 1_000;
/// Bytes of output that Systems Manager keeps of a step.
const MAX_OUTPUT: usize = 2_500;
/// The moment at which everything here is received.
const NOW: Timestamp = Timestamp(1_771_319_645);

const EVENTS: [&str; 16] = [
    include_str!("../events/pipeline-succeeded.json"),
    include_str!("../events/pipeline-succeeded-integers.json"),
    include_str!("../events/pipeline-succeeded-strings.json"),
    include_str!("../events/pipeline-rollback.json"),
    include_str!("../events/pipeline-failed.json"),
    include_str!("../events/pipeline-stopped.json"),
    include_str!("../events/pipeline-superseded.json"),
    include_str!("../events/pipeline-started.json"),
    include_str!("../events/sqs-record.json"),
    include_str!("../events/sns-record.json"),
    include_str!("../events/action-succeeded.json"),
    include_str!("../events/codedeploy-success.json"),
    include_str!("../events/codedeploy-failure.json"),
    include_str!("../events/codedeploy-other-account.json"),
    include_str!("../events/by-hand.json"),
    include_str!("../events/dry-run.json"),
];

/// A line as the document prints it.
const LINE: &str = r#"{"agentRestart":1,"result":"restarted","code":0,"agentVersion":"OFFICIAL_1.8.1-1_rpm","memoryBeforeKiB":108544,"memoryAfterKiB":52224,"seconds":47,"detail":""}"#;

fn assert_one_short_line(text: &str) {
    assert!(text.chars().count() <= MAX_LINE, "{text:?} is too long");
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// Reads an event as Lambda hands it over.
fn read(event: &Value) -> Result<Trigger, String> {
    let clock = Clock::new(Duration::from_secs(NOW.0), Duration::from_secs(900));
    let home = Home {
        account: AccountId::read("123456789012").expect("an account id"),
        region: Region::read("us-east-1").expect("a region's name"),
        function: "restarter".to_owned(),
    };
    trigger::read(event, &clock, &home).map_err(|error| error.to_string())
}

/// What is read is an order that AWS would accept and no mail or chat takes for markup, or one line that
/// says why not.
fn check_event(event: &Value) {
    match read(event) {
        Ok(Trigger::Restart(order)) => {
            let accepted = |name: &str| {
                assert!((1..=100).contains(&name.len()), "{name:?}");
                let fits = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
                assert!(name.chars().all(fits), "{name:?}");
            };
            match &order.subject {
                Subject::Pipeline {
                    pipeline,
                    execution_id,
                    ended: _,
                } => [pipeline.as_str(), execution_id]
                    .into_iter()
                    .for_each(accepted),
                Subject::Deployment {
                    application,
                    deployment_group,
                    deployment_id,
                    ended: _,
                } => [application, deployment_group, deployment_id]
                    .into_iter()
                    .for_each(|name| accepted(name.as_str())),
                Subject::Request {
                    application,
                    deployment_group,
                    deployment_id,
                } => [application, deployment_group]
                    .into_iter()
                    .chain(deployment_id)
                    .for_each(|name| accepted(name.as_str())),
            }
            let (account, region) = (order.account.as_str(), order.region.as_str());
            assert_eq!(account.len(), 12);
            assert!(account.bytes().all(|byte| byte.is_ascii_digit()));
            assert!(
                region
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
                "{region:?} becomes part of a host name"
            );
        }
        Ok(Trigger::Ignore(reason)) => assert_one_short_line(&reason),
        Err(error) => assert_one_short_line(&error),
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop_oneof![
            Just("SUCCEEDED"),
            Just("SUCCESS"),
            Just("us-east-1"),
            Just("123456789012"),
            Just("2026-02-17T09:14:05Z"),
            Just("1969-12-31T23:59:59Z"),
            Just("+262142-12-31T23:59:59Z"),
            Just("3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f"),
            Just(""),
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Every place of a JSON value, as a pointer.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(member, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(members) => {
            for (number, member) in members.iter().enumerate() {
                places(member, &format!("{at}/{number}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_an_event_or_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(event) = serde_json::from_slice(&bytes) {
            check_event(&event);
        }
    }

    #[test]
    fn any_json_is_an_event_or_one_line(event in any_json()) {
        check_event(&event);
    }

    #[test]
    fn a_real_event_with_a_strange_field_is_read_or_refused(
        which in 0..EVENTS.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
        strange in any::<Option<String>>(),
        wrapped in 0..6_usize,
    ) {
        let mut event: Value = serde_json::from_str(EVENTS[which]).expect("an event file is JSON");
        for (index, value) in changes {
            let mut found = Vec::new();
            places(&event, "", &mut found);
            if let Some(place) = event.pointer_mut(index.get::<String>(&found)) {
                *place = value;
            }
        }
        if let (Some(name), Value::Object(members)) = (strange, &mut event) {
            members.insert(name, Value::Null);
        }
        for _ in 0..wrapped / 2 {
            event = if wrapped % 2 == 0 {
                json!({"Records": [{"body": event.to_string()}]})
            } else {
                json!({"Records": [{"Sns": {"Message": event.to_string()}}]})
            };
        }
        check_event(&event);
    }

    #[test]
    fn any_setting_is_in_its_range_or_a_problem_of_one_line(
        values in proptest::collection::vec(
            prop_oneof![
                any::<Option<String>>(),
                "[0-9]{0,9}%?".prop_map(Some),
                "arn:aws[a-z-]{0,8}:sns:[a-z0-9-]{0,34}:[0-9]{11,13}:[a-zA-Z0-9_.-]{0,9}".prop_map(Some),
                "[a-zA-Z0-9_.:/-]{0,140}".prop_map(Some),
                prop_oneof![Just("always"), Just("attention"), Just("true"), Just("false")]
                    .prop_map(|word| Some(word.to_owned())),
            ],
            Settings::ALL.len(),
        ),
        good in proptest::collection::vec(any::<bool>(), Settings::ALL.len()),
    ) {
        // In the order of `Settings::ALL`.
        const GOOD: [&str; Settings::ALL.len()] = [
            "arn:aws:sns:eu-west-1:123456789012:t", "restart-agent", "restart-windows-agent", "always", "3", "0%", "240", "1", "AgentRestart=yes", "123456789012", "true",
        ];
        let value = |name: &'static str| {
            let number = Settings::ALL.iter().position(|known| known.variable == name).expect("a known variable");
            if good[number] { Some(GOOD[number].to_owned()) } else { values[number].clone() }
        };
        match Settings::read(value) {
            Ok(settings) => {
                // The ranges as they are promised, and the syntax as `SendCommand` has it.
                prop_assert!(settings.busy_wait_seconds <= 240);
                prop_assert!(settings.min_memory_mib <= 1_048_576);
                for fleet in [0, 1, 3, 1_000] {
                    if let Rate::Percent(percent) = settings.max_concurrency {
                        prop_assert!((1..=100).contains(&percent));
                        prop_assert!(settings.max_concurrency.of(fleet) <= fleet);
                    }
                    prop_assert!(fleet == 0 || settings.max_concurrency.of(fleet) >= 1);
                }
                prop_assert!(settings.topic.arn.matches(':').count() == 5);
                prop_assert!(!settings.topic.arn.contains('.'), "a FIFO topic");
            }
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    let line = problem.to_string();
                    assert_one_short_line(&line);
                    prop_assert!(line.starts_with(problem.setting.variable));
                    prop_assert!(Settings::ALL.contains(&problem.setting));
                }
            }
        }
    }

    #[test]
    fn any_output_is_an_end_whose_detail_is_one_short_line(
        output in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..MAX_OUTPUT)
                .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            any::<String>(),
            mangled_line(),
            mangled_line(),
        ],
        status in prop_oneof![Just("Success"), Just("Failed")],
        code in prop_oneof![Just(0), any::<i32>(), code()],
    ) {
        check_output(&output, status, code);
    }
}

/// An exit code of the document, or one that it does not have.
fn code() -> impl Strategy<Value = i32> {
    prop_oneof![Just(0), Just(20), Just(30), Just(32), Just(256)]
}

/// The document's line with a few bytes replaced, left out or added, or cut off.
fn mangled_line() -> impl Strategy<Value = String> {
    let changes =
        proptest::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 0..4);
    let replaced = prop_oneof![
        Just((String::new(), String::new())),
        code().prop_map(|code| ("\"code\":0".to_owned(), format!("\"code\":{code}"))),
        code().prop_map(|code| ("\"code\":0".to_owned(), format!("\"code\":{code}"))),
        prop_oneof![Just("busy"), Just("agent-down"), Just("below-threshold")]
            .prop_map(|word| ("restarted".to_owned(), word.to_owned())),
        "[a-z-]{0,20}".prop_map(|word| ("restarted".to_owned(), word)),
        any::<i64>().prop_map(|number| ("108544".to_owned(), number.to_string())),
        any::<String>().prop_map(|text| {
            let text = json!(text).to_string();
            ("\"detail\":\"\"".to_owned(), format!("\"detail\":{text}"))
        }),
    ];
    (changes, replaced).prop_map(|(changes, (old, new))| {
        let line = if old.is_empty() {
            LINE.to_owned()
        } else {
            LINE.replacen(&old, &new, 1)
        };
        let mut bytes = line.into_bytes();
        for (index, kind, byte) in changes {
            let at = index.index(bytes.len().max(1));
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at.min(bytes.len()), byte),
                _ => bytes.truncate(at),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// An outcome that says that all is well stands on a line that says so, and on Systems Manager's agreement.
fn check_output(output: &str, status: &str, code: i32) {
    let plugin = CommandPlugin::builder()
        .name("linux")
        .output(output)
        .response_code(code)
        .build();
    let invocation = CommandInvocation::builder()
        .status(CommandInvocationStatus::from(status))
        .status_details(status)
        .command_plugins(plugin)
        .build();
    let outcome = match of_invocation(&invocation) {
        Progress::Done(outcome) => outcome,
        Progress::Silent(said) => {
            let text = output.trim();
            assert!(text.is_empty() || text.starts_with("Step execution skipped"));
            return assert_one_short_line(&said);
        }
        Progress::Waiting | Progress::Running(_) => panic!("{status} is an end"),
    };
    assert_one_short_line(&outcome.detail);
    assert!(outcome.detail.is_ascii());
    let word = outcome.kind().word();
    if outcome.kind().needs_attention() {
        assert!(["failed", "busy", "undelivered"].contains(&word), "{word}");
        assert!(!outcome.detail.is_empty());
        return;
    }
    let agreed = code == -1 || (status, code) == ("Success", 0);
    assert!(agreed, "{word}: {output:?}");
    let line = output
        .lines()
        .find(|line| line.contains("agentRestart"))
        .expect("the document's line");
    let line: Value = serde_json::from_str(line.trim()).expect("JSON");
    assert_eq!(line["agentRestart"], 1);
    assert_eq!(line["code"], 0);
    assert_eq!(line["result"], word);
}

/// Bytes of the largest payload that Lambda accepts asynchronously. No setting and no output is as large on AWS.
const MIB: usize = 1 << 20;

/// Does it, which must not take long: even an unoptimized build needs a small part of this.
#[expect(
    clippy::disallowed_methods,
    reason = "how long it really takes is the question"
)]
fn in_no_time(what: &str, work: impl FnOnce()) {
    let began = std::time::Instant::now();
    work();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{what} takes {took:?}");
}

#[test]
fn a_large_event_is_read_in_no_time() {
    let long = "x".repeat(MIB);
    let many: Map<String, Value> = (0..50_000).map(|n| (format!("f{n}"), json!(n))).collect();
    let mut detail = many.clone();
    detail.insert("state".to_owned(), json!("SUCCEEDED"));
    let pipeline = "CodePipeline Pipeline Execution State Change";
    let events = [
        json!({"application": long, "deploymentGroup": long}),
        json!({"application": "a", "deploymentGroup": "g", "time": long}),
        json!({"detail-type": long}),
        json!({"detail-type": pipeline, "detail": {"state": long}}),
        json!({"detail-type": pipeline, "detail": detail, "account": many, "region": long, "time": long}),
        Value::Object(many.clone()),
        json!({"Records": many.values().collect::<Vec<_>>()}),
        json!({"Records": [{"body": long}]}),
        json!({"Records": [{"body": "[".repeat(MIB)}]}),
        json!({"Records": [{"body": json!({"detail-type": long}).to_string()}]}),
    ];
    for (number, event) in events.iter().enumerate() {
        in_no_time(&format!("event {number}"), || check_event(event));
    }
    let deep = "[".repeat(MIB);
    assert!(
        serde_json::from_str::<Value>(&deep).is_err(),
        "the parser has a limit of its own"
    );
}

#[test]
fn large_settings_are_refused_in_no_time() {
    let arn = format!("arn:aws:sns:eu-west-1:123456789012:{}", "t".repeat(MIB));
    let values = [
        "9".repeat(MIB),
        "%".repeat(MIB),
        format!("{}%", "0".repeat(MIB)),
        ":".repeat(MIB),
        "\n".repeat(MIB),
        " ".repeat(MIB),
        arn,
    ];
    for value in &values {
        let start = &value[..40];
        in_no_time(start, || {
            let problems =
                Settings::read(|_| Some(value.clone())).expect_err("no setting is a mebibyte long");
            assert_eq!(problems.len(), Settings::ALL.len(), "{start:?}");
            for problem in problems {
                assert_one_short_line(&problem.to_string());
            }
        });
    }
}

#[test]
fn a_large_output_is_read_in_no_time() {
    let mark = "{\"agentRestart\":";
    let outputs = [
        "x".repeat(MIB),
        "\n".repeat(MIB),
        "x\n".repeat(MIB / 2),
        mark.repeat(MIB / mark.len()),
        format!("{mark}\n").repeat(MIB / (mark.len() + 1)),
        format!("{mark}{}", "[".repeat(MIB)),
        format!("{LINE}\n").repeat(MIB / LINE.len()),
        LINE.replace(
            "\"detail\":\"\"",
            &format!("\"detail\":\"{}\"", "x".repeat(MIB)),
        ),
        LINE.replace("108544", &"9".repeat(MIB)),
    ];
    for (number, output) in outputs.iter().enumerate() {
        for (status, code) in [("Success", 0), ("Failed", 30)] {
            in_no_time(&format!("output {number}, {status}"), || {
                check_output(output, status, code);
            });
        }
    }
}
