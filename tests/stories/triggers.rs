//! What an event asks for.

use serde_json::{Value, json};
use sim::{Action, AgentFault, Deployment, DeploymentGroup, Host, Target};

use crate::support::{ACCOUNT, REGION, Story, event, id, request};

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
        assert_eq!(
            told.answer["trigger"],
            json!({
                "kind": "pipeline",
                "pipeline": "my-pipeline",
                "executionId": "3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f",
                "account": ACCOUNT,
                "region": REGION,
                "time": "2026-02-17T09:14:05Z",
            })
        );
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
    let mut other_state = event("codedeploy-success");
    other_state["detail"]["state"] = json!("START");
    let mut stateless = event("pipeline-succeeded");
    stateless["detail"]
        .as_object_mut()
        .expect("an object")
        .remove("state");
    for (event, reason) in [
        (event("pipeline-failed"), "FAILED"),
        (event("action-succeeded"), "CodePipeline Action Execution"),
        (other_state, "START"),
        (stateless, "no detail.state"),
        (json!({"detail-type": "Scheduled Event"}), "Scheduled Event"),
        (json!({"detail-type": 7}), "detail-type 7"),
        (
            json!({"detail-type": "CodePipeline Pipeline Execution State Change", "detail": []}),
            "no detail.state",
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
async fn the_pipeline_s_and_the_deployment_s_event_mean_the_same_moment() {
    let story = Story::of(2);
    story.event(&event("codedeploy-success")).await;
    let told = story.event(&event("pipeline-succeeded")).await;
    assert_eq!(told.counts(), &json!({"already-restarted": 2}));
    let restarts = story
        .world
        .with(|state| state.host(&id(1)).agent.restarts.len());
    assert_eq!(restarts, 1, "nobody is restarted twice for one deployment");
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
async fn a_request_without_a_deployment_means_the_last_one_that_people_made() {
    let story = Story::of(2).given(|state| {
        let group = |id: &str, creator: &str, completed_at: f64| Deployment {
            id: id.to_owned(),
            application: sim::APPLICATION.to_owned(),
            deployment_group: sim::DEPLOYMENT_GROUP.to_owned(),
            creator: creator.to_owned(),
            completed_at: Some(completed_at),
            ..Deployment::default()
        };
        state.region(REGION).deployments.extend([
            group("d-OLD000001", "user", -5_000.0),
            group("d-LAUNCH001", "autoscaling", -1.0),
            group("d-LEAVE0001", "autoscalingTermination", -1.0),
            group("d-MISSED001", "CodeDeployAutoUpdate", -1.0),
        ]);
    });
    let told = story.event(&request(json!({}))).await;
    assert_eq!(told.group()["deploymentIds"], json!(["d-EXAMPLEE5"]));
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_group_without_a_deployment_is_told_so() {
    let story = Story::of(2).given(|state| state.region(REGION).deployments.clear());
    let told = story.event(&request(json!({}))).await;
    assert_eq!(told.answer["result"], "attention");
    assert_eq!(told.group()["problem"]["code"], "NoDeployment");
    assert!(story.body("email").contains("give a deploymentId"));
}

#[tokio::test(start_paused = true)]
async fn a_request_with_the_deployment_of_another_group_is_refused() {
    let story = Story::of(2).given(|state| {
        state.deployment("d-EXAMPLEE5").deployment_group = "another".to_owned();
    });
    let told = story.event(&event("by-hand")).await;
    assert_eq!(told.group()["problem"]["code"], "ForeignDeployment");
    assert!(story.sent_to().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_with_its_time_leaves_fresh_agents_alone() {
    let story = Story::of(2);
    let request = request(json!({"time": "2026-02-17T09:14:05Z"}));
    story.event(&request).await;
    let told = story.event(&request).await;
    assert_eq!(told.counts(), &json!({"already-restarted": 2}));
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
    let story = Story::of(1);
    let mut event = event("pipeline-succeeded");
    event["account"] = json!("999999999999");
    let told = story.event(&event).await;
    assert_eq!(told.answer["result"], "attention");
    assert_eq!(told.answer["problem"]["code"], "OtherAccount");
    assert_eq!(told.answer["notified"], true);
    assert_eq!(story.calls().keys().collect::<Vec<_>>(), ["Publish"]);
    assert!(story.body("email").contains("999999999999"));
}

/// Changes the only pipeline's actions.
fn actions(story: Story, change: impl FnOnce(&mut Vec<Action>)) -> Story {
    story.given(|state| {
        change(&mut state.region(REGION).pipelines[0].executions[0].actions);
    })
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_deploys_to_no_instances_is_ignored() {
    let to_ecs = actions(Story::of(1), |actions| {
        actions[0].provider = "CodeDeployToECS".to_owned();
    });
    let build_only = actions(Story::of(1), |actions| {
        actions[0].category = "Build".to_owned();
        actions[0].provider = "CodeBuild".to_owned();
    });
    let lambda = Story::of(1).given(|state| {
        state.deployment("d-EXAMPLEE5").compute_platform = "Lambda".to_owned();
    });
    for story in [to_ecs, build_only, lambda] {
        let told = story.run().await;
        assert_eq!(told.answer["result"], "ignored", "{:#}", told.answer);
        assert_eq!(told.answer["trigger"]["kind"], "pipeline");
        assert_eq!(told.answer["groups"], json!([]));
        assert!(story.silent());
        assert!(story.sent_to().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_retried_stage_the_newest_row_counts() {
    let story = actions(Story::of(1), |actions| {
        let mut failed = actions[0].clone();
        failed.status = "Failed".to_owned();
        failed.deployment_id = Some("d-FAILED001".to_owned());
        failed.updated_at = -500.0;
        actions.insert(0, failed.clone());
        actions.push(failed);
    });
    let told = story.run().await;
    assert_eq!(told.group()["deploymentIds"], json!(["d-EXAMPLEE5"]));
    assert_eq!(told.counts(), &json!({"restarted": 1}));
}

#[tokio::test(start_paused = true)]
async fn a_list_of_actions_that_lags_behind_is_asked_again() {
    let story = actions(Story::of(1), |actions| actions[0].visible_at = Some(12.0));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert!(story.count("ListActionExecutions") > 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_of_actions_that_never_comes_is_a_problem() {
    let story = actions(Story::of(1), Vec::clear);
    let told = story.run().await;
    assert_eq!(told.answer["result"], "attention");
    assert_eq!(told.answer["problem"]["code"], "ActionsNotListed");
    assert_eq!(told.answer["problem"]["step"], "deployments");
    assert_eq!(told.answer["notified"], true);
}

#[tokio::test(start_paused = true)]
async fn an_action_without_a_deployment_id_is_a_problem_and_the_others_go_on() {
    let story = actions(Story::of(1), |actions| {
        let mut nameless = actions[0].clone();
        nameless.action = "Nameless".to_owned();
        nameless.deployment_id = None;
        actions.push(nameless);
    });
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "IncompleteAction");
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert_eq!(told.answer["result"], "attention");
}

#[tokio::test(start_paused = true)]
async fn deployments_that_auto_scaling_made_are_ignored() {
    for creator in ["autoscaling", "autoscalingTermination"] {
        let story = Story::of(1)
            .given(|state| state.deployment("d-EXAMPLEE5").creator = creator.to_owned());
        let told = story.event(&event("codedeploy-success")).await;
        assert_eq!(told.answer["result"], "ignored", "{creator}");
        assert!(story.sent_to().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_for_missed_instances_restarts_just_those() {
    let story = Story::of(3).given(|state| {
        let deployment = state.deployment("d-EXAMPLEE5");
        deployment.creator = "CodeDeployAutoUpdate".to_owned();
        deployment.targets.truncate(1);
    });
    let told = story.event(&event("codedeploy-success")).await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert_eq!(story.sent_to(), [id(1)]);
}

#[tokio::test(start_paused = true)]
async fn two_actions_on_two_groups_in_two_regions_are_two_groups() {
    let story = Story::of(2).given(|state| {
        let away = id(900);
        let region = state.region("eu-west-1");
        region.deployment_groups.push(DeploymentGroup {
            application: "shop".to_owned(),
            name: "back".to_owned(),
            ..DeploymentGroup::default()
        });
        region.deployment_groups[0].tag_filters = vec![sim::TagFilter {
            key: "app".to_owned(),
            value: "shop".to_owned(),
        }];
        region.deployments.push(Deployment {
            id: "d-BACK00001".to_owned(),
            application: "shop".to_owned(),
            deployment_group: "back".to_owned(),
            completed_at: Some(-4.0),
            targets: vec![Target {
                id: away.clone(),
                ..Target::default()
            }],
            ..Deployment::default()
        });
        region.hosts.push(Host {
            id: away,
            ..Host::default()
        });
        region.documents.push(sim::Document {
            name: sim::DOCUMENT.to_owned(),
            ..sim::Document::default()
        });
        let actions = &mut state.region(REGION).pipelines[0].executions[0].actions;
        actions.push(Action {
            action: "DeployBack".to_owned(),
            region: Some("eu-west-1".to_owned()),
            application: Some("shop".to_owned()),
            deployment_group: Some("back".to_owned()),
            deployment_id: Some("d-BACK00001".to_owned()),
            ..actions[0].clone()
        });
    });
    let told = story.run().await;
    let groups = told.answer["groups"].as_array().expect("a list");
    let seen: Vec<_> = groups
        .iter()
        .map(|group| (&group["region"], &group["application"], &group["counts"]))
        .collect();
    assert_eq!(
        seen,
        [
            (
                &json!("eu-west-1"),
                &json!("shop"),
                &json!({"restarted": 1})
            ),
            (
                &json!("us-east-1"),
                &json!("my-application"),
                &json!({"restarted": 2})
            ),
        ]
    );
    assert_eq!(told.metrics.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_region_without_the_document_is_a_problem_with_its_remedy() {
    let story = Story::of(2).given(|state| state.region(REGION).documents.clear());
    let told = story.run().await;
    assert_eq!(told.group()["problem"]["code"], "InvalidDocument");
    assert_eq!(told.counts(), &json!({"held-back": 2}));
    assert!(story.body("email").contains("create the restart document"));
}

#[tokio::test(start_paused = true)]
async fn two_actions_on_one_group_are_one_group_with_both_deployments_targets() {
    let story = Story::of(2).given(|state| {
        let mut second = state.deployment("d-EXAMPLEE5").clone();
        second.id = "d-SECOND001".to_owned();
        second.targets = vec![Target {
            id: id(2),
            ..Target::default()
        }];
        state.deployment("d-EXAMPLEE5").targets.truncate(1);
        let region = state.region(REGION);
        region.deployments.push(second);
        // Without members the targets alone make the fleet.
        region.deployment_groups[0].auto_scaling_groups.clear();
        region.deployment_groups[0].tag_filters = vec![sim::TagFilter {
            key: "app".to_owned(),
            value: "shop".to_owned(),
        }];
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(Action {
            action: "DeployAgain".to_owned(),
            deployment_id: Some("d-SECOND001".to_owned()),
            ..actions[0].clone()
        });
    });
    let told = story.run().await;
    assert_eq!(
        told.group()["deploymentIds"],
        json!(["d-EXAMPLEE5", "d-SECOND001"])
    );
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn an_action_in_another_account_is_a_problem_and_ours_go_on() {
    let story = actions(Story::of(1), |actions| {
        let mut foreign = actions[0].clone();
        foreign.action = "DeployElsewhere".to_owned();
        foreign.role_arn = Some("arn:aws:iam::999999999999:role/deployer".to_owned());
        actions.push(foreign);
    });
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "OtherAccount");
    assert_eq!(told.counts(), &json!({"restarted": 1}));
}

#[tokio::test(start_paused = true)]
async fn a_crash_looping_agent_is_not_called_fresh_on_the_second_try() {
    let story = Story::of(1)
        .given(|state| state.host(&id(1)).agent.fault = Some(AgentFault::AgentUnhealthy));
    story.run().await;
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"failed": 1}));
    assert_eq!(story.world.messages().len(), 2);
}

/// The `triggeredAt` that the only command carries.
fn triggered_at(story: &Story) -> String {
    let calls = story.world.calls();
    let sent: Vec<_> = calls
        .iter()
        .filter(|call| call.operation == "SendCommand")
        .collect();
    assert_eq!(sent.len(), 1);
    sent[0].params["Parameters"]["triggeredAt"][0]
        .as_str()
        .expect("text")
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn fresh_means_since_the_newest_deployment_or_the_request() {
    let of_event = Story::of(1).given(|state| {
        let mut older = state.deployment("d-EXAMPLEE5").clone();
        older.id = "d-OLDER0001".to_owned();
        older.completed_at = Some(-400.0);
        let region = state.region(REGION);
        region.deployments.push(older);
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(Action {
            action: "DeployFirst".to_owned(),
            deployment_id: Some("d-OLDER0001".to_owned()),
            ..actions[0].clone()
        });
    });
    of_event.run().await;
    assert_eq!(
        triggered_at(&of_event),
        "1771319640",
        "five seconds before the event"
    );

    let with_time = Story::of(1);
    let order = request(json!({"deploymentId": "d-EXAMPLEE5", "time": "2026-02-17T09:00:00.2Z"}));
    with_time.event(&order).await;
    assert_eq!(
        triggered_at(&with_time),
        "1771318801",
        "the request's time, rounded up"
    );

    let without_time = Story::of(1);
    without_time.event(&event("by-hand")).await;
    assert_eq!(
        triggered_at(&without_time),
        "1771319645",
        "the moment of receipt"
    );
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
async fn an_action_that_is_listed_as_running_is_asked_for_again() {
    let story = actions(Story::of(1), |actions| actions[0].updated_at = 14.0);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert_eq!(story.count("ListActionExecutions"), 4, "every five seconds");

    let story = actions(Story::of(1), |actions| actions[0].updated_at = 1_000.0);
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "ActionsNotListed");
    assert_eq!(story.count("ListActionExecutions"), 7, "for thirty seconds");
}

#[tokio::test(start_paused = true)]
async fn an_action_of_another_owner_is_not_codedeploy() {
    let story = actions(Story::of(1), |actions| {
        actions[0].owner = "Custom".to_owned()
    });
    assert_eq!(story.run().await.answer["result"], "ignored");
}

#[tokio::test(start_paused = true)]
async fn an_action_without_its_configuration_is_a_problem() {
    let story = actions(Story::of(1), |actions| actions[0].application = None);
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "IncompleteAction");
    assert!(
        told.answer["problem"]["message"]
            .to_string()
            .contains("ApplicationName")
    );
}

#[tokio::test(start_paused = true)]
async fn a_user_s_deployment_beside_an_automatic_one_still_means_all_members() {
    let story = Story::of(3).given(|state| {
        let mut automatic = state.deployment("d-EXAMPLEE5").clone();
        automatic.id = "d-AUTO00001".to_owned();
        automatic.creator = "CodeDeployAutoUpdate".to_owned();
        state.deployment("d-EXAMPLEE5").targets.clear();
        let region = state.region(REGION);
        region.deployments.push(automatic);
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(Action {
            action: "Automatic".to_owned(),
            deployment_id: Some("d-AUTO00001".to_owned()),
            ..actions[0].clone()
        });
    });
    assert_eq!(story.run().await.counts(), &json!({"restarted": 3}));
}

#[tokio::test(start_paused = true)]
async fn of_many_deployments_the_first_hundred_are_looked_at() {
    let story = Story::of(1).given(|state| {
        state.page_sizes.deployments = 5;
        for n in 0..600 {
            state.region(REGION).deployments.push(Deployment {
                id: format!("d-PAST{n:05}"),
                application: sim::APPLICATION.to_owned(),
                deployment_group: sim::DEPLOYMENT_GROUP.to_owned(),
                completed_at: Some(-10_000.0 - f64::from(n)),
                ..Deployment::default()
            });
        }
    });
    story.event(&request(json!({}))).await;
    assert_eq!(story.count("BatchGetDeployments"), 4);
    // Twenty pages of five, and one look for running deployments.
    assert_eq!(story.count("ListDeployments"), 21);
}
