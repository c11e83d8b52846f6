//! What an event asks for.

use serde_json::{Value, json};
use sim::Action;

use super::support::{ACCOUNT, REGION, Story, event, id, request};

/// What the answer says of every end of the story's execution.
fn pipeline_trigger() -> serde_json::Value {
    json!({
        "kind": "pipeline",
        "pipeline": "my-pipeline",
        "executionId": "3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f",
        "account": ACCOUNT,
        "region": REGION,
        "time": "2026-02-17T09:14:05Z",
    })
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_s_success_restarts_the_fleet_however_its_numbers_are_written() {
    for name in [
        "pipeline-succeeded",
        "pipeline-succeeded-integers",
        "pipeline-succeeded-strings",
        "pipeline-rollback",
    ] {
        let story = Story::of(3);
        let told = story.event(&event(name)).await;
        assert_eq!(told.answer["result"], "ok", "{name}: {:#}", told.answer);
        assert_eq!(told.counts(), &json!({"restarted": 3}), "{name}");
        assert!(story.silent(), "{name}");
        assert_eq!(told.answer["trigger"], pipeline_trigger());
        story.world.with(|state| {
            for n in 1..=3 {
                let agent = &state.host(&id(n)).agent;
                assert!(agent.started_at > 0.0, "{name}: the agent is new");
                assert_eq!(agent.restarts.len(), 1, "{name}");
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_are_none_of_ours_are_ignored_without_a_call() {
    let in_state = |name: &str, state: &str| {
        let mut event = event(name);
        event["detail"]["state"] = json!(state);
        event
    };
    let mut stateless = event("pipeline-succeeded");
    stateless["detail"]
        .as_object_mut()
        .expect("an object")
        .remove("state");
    for (event, reason) in [
        (
            event("pipeline-started"),
            "the pipeline execution's detail.state is \"STARTED\"; it has ended only in SUCCEEDED, FAILED, STOPPED, SUPERSEDED, CANCELED",
        ),
        (in_state("pipeline-succeeded", "RESUMED"), "RESUMED"),
        (in_state("pipeline-succeeded", "STOPPING"), "STOPPING"),
        (event("action-succeeded"), "CodePipeline Action Execution"),
        (
            in_state("codedeploy-success", "START"),
            "the deployment's detail.state is \"START\"; it has ended only in SUCCESS, FAILURE, STOP",
        ),
        (in_state("codedeploy-success", "READY"), "READY"),
        (stateless, "detail.state is missing"),
        (json!({"detail-type": "Scheduled Event"}), "Scheduled Event"),
        (json!({"detail-type": 7}), "detail-type 7"),
        (
            json!({"detail-type": "CodePipeline Pipeline Execution State Change", "detail": []}),
            "detail.state is missing",
        ),
        (
            json!({"detail-type": "CodePipeline Pipeline Execution State Change", "detail": {"state": ["SUCCEEDED"]}}),
            "SUCCEEDED",
        ),
    ] {
        let story = Story::of(1);
        let told = story.event(&event).await;
        assert_eq!(told.answer["result"], "ignored", "{event}");
        let given = told.answer["reason"].as_str().expect("there is a reason");
        assert!(given.contains(reason), "{given} should name {reason}");
        assert_eq!(told.answer.get("trigger"), None);
        assert_eq!(told.answer["notified"], false);
        assert!(told.metrics.is_empty());
        assert!(story.world.calls().is_empty(), "{event}");
    }
}

/// Staging was deployed, and then the approval for production was rejected; or a newer execution went by, or somebody
/// stopped it while it waited. The agents of Staging hold their memory all the same, and nobody else tells of them.
#[tokio::test(start_paused = true)]
async fn an_execution_that_ended_otherwise_restarts_what_it_had_deployed() {
    for name in ["pipeline-failed", "pipeline-stopped", "pipeline-superseded"] {
        let story = Story::of(3).given(|state| {
            let pipeline = &mut state.region(REGION).pipelines[0];
            pipeline.executions[0].actions.push(Action {
                stage: "Approve".to_owned(),
                action: "Approve".to_owned(),
                category: "Approval".to_owned(),
                provider: "Manual".to_owned(),
                status: "Failed".to_owned(),
                updated_at: -1.0,
                ..Action::default()
            });
        });
        let told = story.event(&event(name)).await;
        assert_eq!(told.answer["result"], "ok", "{name}: {:#}", told.answer);
        assert_eq!(told.counts(), &json!({"restarted": 3}), "{name}");
        // How it ended is no part of the answer: programs that read it need not know.
        assert_eq!(told.answer["trigger"], pipeline_trigger(), "{name}");
    }
}

/// A deployment often fails because an agent was deaf or out of memory: that one above all needs its restart.
#[tokio::test(start_paused = true)]
async fn a_deployment_that_failed_or_was_stopped_restarts_its_group() {
    for (state, status) in [("FAILURE", "Failed"), ("STOP", "Stopped")] {
        let story =
            Story::of(2).given(|world| world.deployment("d-EXAMPLEE5").status = status.to_owned());
        let mut event = event("codedeploy-failure");
        event["detail"]["state"] = json!(state);
        let told = story.event(&event).await;
        assert_eq!(told.counts(), &json!({"restarted": 2}), "{state}");
        assert_eq!(told.answer["trigger"]["kind"], "deployment");
        assert_eq!(told.answer["trigger"].get("ended"), None);
    }
}

/// Clocks of AWS's services differ a little. A `triggeredAt` that lies ahead would make every restart look too old.
#[tokio::test(start_paused = true)]
async fn an_event_s_time_that_lies_ahead_counts_as_the_moment_of_receipt() {
    for name in ["pipeline-succeeded", "codedeploy-success"] {
        let mut event = event(name);
        event["time"] = json!("2026-02-17T12:00:00Z");
        let told = Story::of(2).event(&event).await;
        assert_eq!(told.answer["trigger"]["time"], "2026-02-17T09:14:05Z");
        assert_eq!(told.counts(), &json!({"restarted": 2}), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_s_success_restarts_its_group() {
    let story = Story::of(2);
    let told = story.event(&event("codedeploy-success")).await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert_eq!(told.answer["trigger"]["kind"], "deployment");
    assert_eq!(told.answer["trigger"]["deploymentId"], "d-EXAMPLEE5");
    assert_eq!(story.count("ListActionExecutions"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_by_hand_restarts_the_group() {
    let story = Story::of(2);
    let told = story.event(&event("by-hand")).await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert_eq!(told.answer["trigger"]["kind"], "request");
    assert_eq!(told.answer["trigger"]["account"], ACCOUNT);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_plans_and_writes_nothing() {
    let story = Story::of(3).given(|state| {
        *state.lifecycle(&id(2)) = "Pending:Wait".to_owned();
        state.host(&id(3)).ping = "ConnectionLost".to_owned();
    });
    let told = story.event(&event("dry-run")).await;
    assert_eq!(told.answer["result"], "dry-run");
    assert_eq!(told.answer["notified"], false);
    assert_eq!(told.counts(), &json!({"skipped": 1, "unreachable": 1}));
    let plan = told.group()["plan"].as_array().expect("there is a plan");
    let decisions: Vec<&Value> = plan.iter().map(|row| &row["decision"]).collect();
    assert_eq!(decisions, ["restart", "skipped", "unreachable"]);
    assert_eq!(plan[0]["reason"], "InService, online");
    assert_eq!(plan[1]["reason"], "lifecycle state Pending:Wait");
    assert_eq!(story.count("SendCommand"), 0);
    assert_eq!(story.count("Publish"), 0);
    assert!(told.metrics.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_setting_makes_every_event_a_dry_run() {
    let story = Story::of(2).setting("DRY_RUN", "true");
    let told = story.run().await;
    assert_eq!(told.answer["result"], "dry-run");
    assert_eq!(story.count("SendCommand"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_fails_and_names_the_field() {
    let without = |name: &str, field: &str| {
        let mut event = event(name);
        let (object, field) = match field.strip_prefix("detail.") {
            Some(field) => (&mut event["detail"], field),
            None => (&mut event, field),
        };
        object.as_object_mut().expect("an object").remove(field);
        event
    };
    let with = |name: &str, pointer: &str, value: Value| {
        let mut event = event(name);
        *event.pointer_mut(pointer).expect("the field is there") = value;
        event
    };
    let pipeline = "pipeline-succeeded";
    let deployment = "codedeploy-success";
    for (event, named) in [
        (json!([]), "no JSON object"),
        (json!(null), "no JSON object"),
        (json!(7), "no JSON object"),
        (json!("text"), "no JSON object"),
        (json!({}), "neither"),
        (json!({"deploymentGroup": "web"}), "neither"),
        (without(pipeline, "account"), "account"),
        (without(pipeline, "region"), "region"),
        (without(pipeline, "time"), "time"),
        (without(pipeline, "detail.pipeline"), "detail.pipeline"),
        (
            without(pipeline, "detail.execution-id"),
            "detail.execution-id",
        ),
        (
            with(pipeline, "/account", json!(123_456_789_012_u64)),
            "account",
        ),
        (with(pipeline, "/account", json!("12")), "account"),
        (with(pipeline, "/region", json!("example.com/?")), "region"),
        (with(pipeline, "/time", json!("yesterday")), "time"),
        (
            with(pipeline, "/time", json!("1969-12-31T23:59:59Z")),
            "time",
        ),
        (with(pipeline, "/time", json!(null)), "time"),
        (
            with(pipeline, "/detail/pipeline", json!("")),
            "detail.pipeline",
        ),
        (
            with(pipeline, "/detail/pipeline", json!({"a": 1})),
            "detail.pipeline",
        ),
        (
            with(pipeline, "/detail/execution-id", json!("1")),
            "detail.execution-id",
        ),
        (
            without(deployment, "detail.application"),
            "detail.application",
        ),
        (
            without(deployment, "detail.deploymentGroup"),
            "detail.deploymentGroup",
        ),
        (
            without(deployment, "detail.deploymentId"),
            "detail.deploymentId",
        ),
        (without(deployment, "detail.region"), "detail.region"),
        (request(json!({"dryrun": true})), "dryrun"),
        (request(json!({"x".repeat(9_000): 1})), "xxx"),
        (request(json!({"dryRun": "true"})), "dryRun"),
        (request(json!({"application": 7})), "application"),
        (request(json!({"deploymentGroup": null})), "deploymentGroup"),
        (request(json!({"deploymentId": {}})), "deploymentId"),
        (request(json!({"region": 1})), "region"),
        (request(json!({"application": ""})), "application"),
        (request(json!({"region": "nowhere!"})), "region"),
        (request(json!({"deploymentId": ""})), "deploymentId"),
        (request(json!({"time": 1_771_319_645})), "field time"),
        (request(json!({"time": "1969-01-01T00:00:00Z"})), "time"),
        (request(json!({"time": "2026-02-17T09:17:00Z"})), "150 s"),
        (json!({"application": "shop"}), "deploymentGroup"),
    ] {
        let story = Story::of(1);
        let error = story.try_event(&event).await.expect_err("it is refused");
        assert!(error.starts_with("InvalidEvent: "), "{error}");
        assert!(error.contains(named), "{error:?} should name {named:?}");
        assert!(error.len() < 400, "{error}");
        assert!(story.world.calls().is_empty(), "{event}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_of_another_account_is_told_and_no_call_is_made_for_it() {
    let mut pipeline = event("pipeline-succeeded");
    pipeline["account"] = json!("210987654321");
    for foreign in [pipeline, event("codedeploy-other-account")] {
        let story = Story::of(1).setting("COVERED_ACCOUNTS", "999999999999");
        let told = story.event(&foreign).await;
        assert_eq!(told.answer["result"], "attention");
        assert_eq!(told.answer["problem"]["code"], "OtherAccount");
        assert_eq!(told.answer["notified"], true);
        assert_eq!(story.calls().keys().collect::<Vec<_>>(), ["Publish"]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(told.answer["problem"]["remedy"].as_str().unwrap(), @"install this function in account 210987654321 too, with Trigger=deployments, and then name that account here, in CoveredAccounts (COVERED_ACCOUNTS)");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_of_a_covered_account_is_ignored_and_no_call_is_made_for_it() {
    let mut pipeline = event("pipeline-succeeded");
    pipeline["account"] = json!("210987654321");
    for foreign in [pipeline, event("codedeploy-other-account")] {
        let story = Story::of(1).setting("COVERED_ACCOUNTS", "999999999999,210987654321");
        let told = story.event(&foreign).await;
        assert_eq!(told.answer["result"], "ignored");
        assert_eq!(told.answer["trigger"]["account"], "210987654321");
        assert!(story.world.calls().is_empty());
        insta::allow_duplicates! {
            insta::assert_snapshot!(told.answer["reason"].as_str().unwrap(), @"the event belongs to account 210987654321, which has an installation of its own (COVERED_ACCOUNTS)");
        }
    }
}

/// One list may serve every account that it names.
#[tokio::test(start_paused = true)]
async fn the_function_s_own_account_may_be_among_the_covered_ones() {
    let story = Story::of(1).setting("COVERED_ACCOUNTS", "123456789012,210987654321");
    assert_eq!(story.run().await.counts(), &json!({"restarted": 1}));
}

#[tokio::test(start_paused = true)]
async fn a_deployment_s_region_is_the_one_in_its_detail() {
    let mut event = event("codedeploy-success");
    event["region"] = json!("eu-central-1");
    let told = Story::of(1).event(&event).await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert_eq!(told.group()["region"], REGION);
}

#[tokio::test(start_paused = true)]
async fn a_request_may_name_its_region() {
    let story = Story::with(sim::State::for_pipeline(
        "my-pipeline",
        "3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f",
        "eu-west-3",
        2,
    ));
    let told = story.event(&request(json!({"region": "eu-west-3"}))).await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert_eq!(told.answer["trigger"]["region"], "eu-west-3");
}

#[tokio::test(start_paused = true)]
async fn only_the_needed_fields_of_an_event_are_read() {
    let pipeline = json!({
        "detail-type": "CodePipeline Pipeline Execution State Change",
        "account": ACCOUNT,
        "region": REGION,
        "time": "2026-02-17T09:14:05Z",
        "detail": {
            "pipeline": "my-pipeline",
            "execution-id": "3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f",
            "state": "SUCCEEDED",
        },
    });
    let deployment = json!({
        "detail-type": "CodeDeploy Deployment State-change Notification",
        "account": ACCOUNT,
        "region": REGION,
        "time": "2026-02-17T09:14:05Z",
        "detail": {
            "application": sim::APPLICATION,
            "deploymentGroup": sim::DEPLOYMENT_GROUP,
            "deploymentId": "d-EXAMPLEE5",
            "region": REGION,
            "state": "SUCCESS",
        },
    });
    for bare in [pipeline, deployment] {
        let told = Story::of(1).event(&bare).await;
        assert_eq!(told.counts(), &json!({"restarted": 1}), "{bare}");

        let mut strange = bare;
        for name in ["version", "id", "source", "resources"] {
            strange[name] = json!([{"not": "what it was"}, 7.5, null]);
        }
        for name in [
            "version",
            "pipeline-execution-attempt",
            "execution-trigger",
            "start-time",
        ] {
            strange["detail"][name] = json!({"not": ["what", "it", "was"]});
        }
        let told = Story::of(1).event(&strange).await;
        assert_eq!(told.counts(), &json!({"restarted": 1}), "{strange}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_request_may_lie_150_seconds_ahead_and_no_more() {
    // The function receives it at 09:14:05.
    let story = Story::of(1);
    let told = story
        .event(&request(json!({"time": "2026-02-17T09:16:35Z"})))
        .await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));

    let story = Story::of(1);
    let error = story
        .try_event(&request(json!({"time": "2026-02-17T09:16:36Z"})))
        .await
        .expect_err("a second too far");
    assert!(error.contains("field time"), "{error}");
    assert!(story.world.calls().is_empty());

    let told = Story::of(1)
        .event(&request(json!({"time": "1970-01-01T00:00:00Z"})))
        .await;
    assert_eq!(
        told.answer["result"], "ok",
        "the first moment that is accepted"
    );
}

/// Anybody who may invoke the function could otherwise make a sentence or a link of theirs stand in the subject, the mail
/// and the chat card as the name of an application.
#[tokio::test(start_paused = true)]
async fn a_name_that_codedeploy_could_not_have_is_refused_by_its_field() {
    let long = "n".repeat(101);
    let names = [
        "<https://evil.example|Open the runbook>",
        "shop; call 0900-1234",
        "it's",
        "sh\u{f6}p",
        "a/b",
        "a\u{202e}b",
        "",
        &long,
    ];
    for name in names {
        let mut events = Vec::new();
        for field in ["application", "deploymentGroup", "deploymentId"] {
            events.push((request(json!({ field: name })), field));
            let mut event = event("codedeploy-success");
            event["detail"][field] = json!(name);
            events.push((event, field));
        }
        let mut execution = event("pipeline-succeeded");
        execution["detail"]["pipeline"] = json!(name);
        events.push((execution, "detail.pipeline"));
        for (event, field) in events {
            let story = Story::of(1);
            let refused = story.try_event(&event).await.expect_err("it is refused");
            assert!(refused.contains(field), "{field}: {refused}");
            let form = "1 to 100 of letters, digits and + = , . @ _ -";
            assert!(refused.contains(form), "{field}: {refused}");
            assert_eq!(story.world.calls().len(), 0, "{field}");
        }
    }
}
