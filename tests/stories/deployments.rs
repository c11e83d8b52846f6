//! Which deployments an event means, and since when an agent counts as fresh.

use serde_json::{Value, json};
use sim::{Action, Deployment, Target};

use super::support::{EVENT_TIME, REGION, Story, assert_every, commands, event, id, request};

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
async fn an_action_of_another_owner_is_not_codedeploy() {
    let story = actions(Story::of(1), |actions| {
        actions[0].owner = "Custom".to_owned()
    });
    assert_eq!(story.run().await.answer["result"], "ignored");
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

/// A pipeline of which the last action deploys in another account; and of which no other does.
fn also_elsewhere(actions: &mut Vec<Action>) {
    let mut foreign = actions[0].clone();
    foreign.action = "DeployElsewhere".to_owned();
    foreign.role_arn = Some("arn:aws:iam::999999999999:role/deployer".to_owned());
    actions.push(foreign);
}

fn only_elsewhere(actions: &mut Vec<Action>) {
    also_elsewhere(actions);
    actions.remove(0);
}

#[tokio::test(start_paused = true)]
async fn an_action_in_another_account_is_a_problem_and_ours_go_on() {
    let story = actions(Story::of(1), also_elsewhere);
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "OtherAccount");
    assert_eq!(told.counts(), &json!({"restarted": 1}));

    let story = actions(Story::of(1), only_elsewhere);
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "OtherAccount");
    assert_eq!(told.answer["groups"], json!([]));
    assert!(!story.silent());
}

#[tokio::test(start_paused = true)]
async fn an_action_in_a_covered_account_is_none_of_ours_and_ours_go_on() {
    let covering = |story: Story| story.setting("COVERED_ACCOUNTS", "999999999999");
    let story = actions(covering(Story::of(1)), also_elsewhere);
    let told = story.run().await;
    assert_eq!(told.answer["result"], "ok");
    assert_eq!(told.answer["problem"], Value::Null);
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert!(story.silent());
    assert_eq!(story.count("GetDeployment"), 1);

    let story = actions(covering(Story::of(1)), only_elsewhere);
    let told = story.run().await;
    assert_eq!(told.answer["result"], "ignored");
    assert!(story.silent());
    insta::assert_snapshot!(told.answer["reason"].as_str().unwrap(), @"action Deploy/DeployElsewhere belongs to account 999999999999, which has an installation of its own (COVERED_ACCOUNTS)");
    let calls = story.calls();
    assert_eq!(calls.keys().collect::<Vec<_>>(), ["ListActionExecutions"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_done_about_several_actions_of_other_accounts_is_said_once_for_each() {
    let accounts = ["999999999999", "999999999999", "888888888888"];
    let story = actions(Story::of(1), |actions| {
        for (n, account) in accounts.iter().enumerate() {
            let mut foreign = actions[0].clone();
            foreign.action = format!("Elsewhere{n}");
            foreign.role_arn = Some(format!("arn:aws:iam::{account}:role/deployer"));
            actions.push(foreign);
        }
    });
    let told = story.run().await;
    let problem = &told.answer["problem"];
    let remedy = problem["remedy"].as_str().expect("text");
    for account in ["999999999999", "888888888888"] {
        assert_eq!(remedy.matches(account).count(), 1, "{remedy}");
    }
    for n in 0..3 {
        let action = format!("Elsewhere{n}");
        assert!(
            problem["message"].to_string().contains(&action),
            "{problem}"
        );
    }
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
async fn of_many_deployments_the_first_hundred_are_looked_at() {
    let story = Story::of(1).given(|state| {
        state.page_sizes.deployments = 5;
        for n in 0..600 {
            state.region(REGION).deployments.push(Deployment {
                id: format!("d-PAST{n:05}"),
                application: sim::APPLICATION.to_owned(),
                deployment_group: sim::DEPLOYMENT_GROUP.to_owned(),
                created_at: -20_000.0,
                completed_at: Some(-10_000.0 - f64::from(n)),
                ..Deployment::default()
            });
        }
    });
    story.event(&request(json!({}))).await;
    assert_eq!(story.count("BatchGetDeployments"), 4);
    // Twenty pages of five, one look for running deployments, and one for those that were created since.
    assert_eq!(story.count("ListDeployments"), 22);
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
    assert_eq!(triggered_at(&without_time), "1771319640", "its deployment");
}

#[tokio::test(start_paused = true)]
async fn the_completion_time_is_rounded_up() {
    let story =
        Story::of(1).given(|state| state.deployment("d-EXAMPLEE5").completed_at = Some(-4.75));
    story.run().await;
    let triggered_at = &commands(&story)[0]["Parameters"]["triggeredAt"];
    assert_eq!(triggered_at, &json!([format!("{}", EVENT_TIME - 4.0)]));
}

#[tokio::test(start_paused = true)]
async fn a_list_of_actions_that_lags_behind_is_asked_every_5_seconds_for_30() {
    // It shows nothing at all, or a CodeDeploy action that still runs.
    let never = |actions: &mut Vec<Action>| actions[0].visible_at = Some(1_000.0);
    let runs_on = |actions: &mut Vec<Action>| actions[0].updated_at = 1_000.0;
    for change in [never, runs_on] {
        let story = actions(Story::of(1), change);
        let told = story.run().await;
        assert_eq!(told.answer["problem"]["code"], "ActionsNotListed");
        assert_eq!(told.answer["groups"], json!([]));
        let times = story.times_of("ListActionExecutions");
        assert!(times[0] < 1.0, "{times:?}");
        assert_every(5.0, &times);
        let last = times[times.len() - 1];
        assert!((29.0..32.0).contains(&last), "{times:?}");
        assert!(story.told_at() < last + 1.0, "told at once");
    }
    // What comes at the last moment is still in time.
    for change in [
        |actions: &mut Vec<Action>| actions[0].visible_at = Some(29.0),
        |actions: &mut Vec<Action>| actions[0].updated_at = 29.0,
    ] {
        let story = actions(Story::of(1), change);
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 1}));
        let sent = story.times_of("SendCommand")[0];
        assert!((29.0..33.0).contains(&sent), "sent after {sent} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_without_a_deployment_to_instances_is_ignored_without_waiting() {
    for (owner, category, provider, status, updated_at) in [
        ("AWS", "Deploy", "CodeDeployToECS", "Succeeded", -5.0),
        ("AWS", "Approval", "CodeDeploy", "Succeeded", -5.0),
        ("ThirdParty", "Deploy", "CodeDeploy", "Succeeded", -5.0),
        // Still running, but none of ours.
        ("AWS", "Build", "CodeBuild", "Succeeded", 1_000.0),
    ] {
        let name = format!("{owner} {category} {provider} {status}");
        let story = actions(Story::of(1), |actions| {
            actions[0] = Action {
                owner: owner.to_owned(),
                category: category.to_owned(),
                provider: provider.to_owned(),
                status: status.to_owned(),
                updated_at,
                ..actions[0].clone()
            };
        });
        let told = story.run().await;
        assert_eq!(told.answer["result"], "ignored", "{name}");
        assert!(told.answer["reason"].is_string(), "{name}");
        assert_eq!(story.count("ListActionExecutions"), 1, "{name}");
        assert!(story.elapsed() < 1.0, "{name}: {} s", story.elapsed());
        assert!(story.silent(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn actions_of_one_name_in_two_stages_are_two_actions() {
    let story = Story::of(2).given(|state| {
        let mut second = state.deployment("d-EXAMPLEE5").clone();
        second.id = "d-SECOND001".to_owned();
        let region = state.region(REGION);
        region.deployments.push(second);
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(Action {
            stage: "Production".to_owned(),
            deployment_id: Some("d-SECOND001".to_owned()),
            updated_at: -1.0,
            ..actions[0].clone()
        });
    });
    let told = story.run().await;
    assert_eq!(
        told.group()["deploymentIds"],
        json!(["d-EXAMPLEE5", "d-SECOND001"])
    );
}

#[tokio::test(start_paused = true)]
async fn an_action_under_a_role_of_our_own_account_is_ours() {
    let story = actions(Story::of(1), |actions| {
        actions[0].role_arn = Some(format!(
            "arn:aws:iam::{}:role/deployer",
            super::support::ACCOUNT
        ));
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert_eq!(told.answer["result"], "ok");
}

#[tokio::test(start_paused = true)]
async fn a_deployment_to_no_instances_leaves_no_group_beside_the_others() {
    for platform in ["Lambda", "ECS"] {
        let story = Story::of(2).given(|state| {
            let region = state.region(REGION);
            region.deployments.push(Deployment {
                id: "d-NOSERVER1".to_owned(),
                application: "functions".to_owned(),
                deployment_group: "all".to_owned(),
                compute_platform: platform.to_owned(),
                completed_at: Some(-1.0),
                ..Deployment::default()
            });
            let actions = &mut region.pipelines[0].executions[0].actions;
            actions.push(Action {
                action: "Functions".to_owned(),
                application: Some("functions".to_owned()),
                deployment_group: Some("all".to_owned()),
                deployment_id: Some("d-NOSERVER1".to_owned()),
                ..actions[0].clone()
            });
        });
        let told = story.run().await;
        assert_eq!(told.group()["application"], "my-application", "{platform}");
        assert_eq!(told.counts(), &json!({"restarted": 2}), "{platform}");
        assert_eq!(told.answer["result"], "ok", "{platform}");
        assert!(story.silent(), "{platform}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_by_auto_scaling_beside_one_by_people_adds_no_targets() {
    let story = super::decisions::tagged(2).given(|state| {
        let mut launch = state.deployment("d-EXAMPLEE5").clone();
        launch.id = "d-LAUNCH001".to_owned();
        launch.creator = "autoscaling".to_owned();
        launch.targets.remove(0);
        launch.completed_at = Some(-1.0);
        state.deployment("d-EXAMPLEE5").targets.truncate(1);
        let region = state.region(REGION);
        region.deployments.push(launch);
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(Action {
            action: "Launch".to_owned(),
            deployment_id: Some("d-LAUNCH001".to_owned()),
            ..actions[0].clone()
        });
    });
    let told = story.run().await;
    assert_eq!(told.group()["deploymentIds"], json!(["d-EXAMPLEE5"]));
    assert_eq!(story.sent_to(), [id(1)]);
    // Its end says nothing about when an agent of the others is fresh.
    assert_eq!(triggered_at(&story), "1771319640");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_deployments_are_looked_at_however_the_pages_fall() {
    let story = Story::of(1).given(|state| {
        // Three pages hold 120.
        state.page_sizes.deployments = 40;
        for n in 0..200 {
            let mut past = state.deployment("d-EXAMPLEE5").clone();
            past.id = format!("d-PAST{n:05}");
            past.created_at = -20_000.0;
            past.completed_at = Some(-10_000.0 - f64::from(n));
            state.region(REGION).deployments.push(past);
        }
    });
    story.event(&request(json!({}))).await;
    let calls = story.world.calls();
    let asked: Vec<usize> = calls
        .iter()
        .filter(|call| call.operation == "BatchGetDeployments")
        .map(|call| call.params["deploymentIds"].as_array().expect("ids").len())
        .collect();
    assert_eq!(asked, [25, 25, 25, 25]);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_the_deployment_of_another_application_is_refused() {
    let story = Story::of(2)
        .given(|state| state.deployment("d-EXAMPLEE5").application = "another".to_owned());
    let told = story.event(&event("by-hand")).await;
    assert_eq!(told.group()["problem"]["code"], "ForeignDeployment");
    assert!(story.sent_to().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_completion_time_fresh_means_since_the_event() {
    let story = Story::of(1).given(|state| state.deployment("d-EXAMPLEE5").completed_at = None);
    let event = event("codedeploy-success");
    assert_eq!(event["time"], "2026-02-17T09:14:02Z");
    story.event(&event).await;
    assert_eq!(triggered_at(&story), "1771319642");
}

#[tokio::test(start_paused = true)]
async fn if_one_of_two_deployments_lacks_its_completion_time_fresh_means_since_the_event() {
    let story = Story::of(1).given(|state| {
        let mut second = state.deployment("d-EXAMPLEE5").clone();
        second.id = "d-SECOND001".to_owned();
        second.completed_at = None;
        let region = state.region(REGION);
        region.deployments.push(second);
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(Action {
            action: "DeployAgain".to_owned(),
            deployment_id: Some("d-SECOND001".to_owned()),
            ..actions[0].clone()
        });
    });
    story.run().await;
    // It may have ended after the other one.
    assert_eq!(event("pipeline-succeeded")["time"], "2026-02-17T09:14:05Z");
    assert_eq!(triggered_at(&story), "1771319645");
}

#[tokio::test(start_paused = true)]
async fn whoever_made_the_last_deployment_it_is_meant_unless_it_is_automatic() {
    for creator in [
        "codeDeployRollback",
        "CodeDeploy",
        "CloudFormation",
        "SomebodyNew",
    ] {
        let story = Story::of(1).given(|state| {
            let mut last = state.deployment("d-EXAMPLEE5").clone();
            last.id = "d-LAST00001".to_owned();
            last.creator = creator.to_owned();
            last.completed_at = Some(-1.0);
            state.region(REGION).deployments.push(last);
        });
        let told = story.event(&request(json!({}))).await;
        assert_eq!(
            told.group()["deploymentIds"],
            json!(["d-LAST00001"]),
            "{creator}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_none_is_told_and_not_called() {
    let story = actions(Story::of(1), |actions| {
        actions[0].region = Some("eu west.example.com".to_owned());
    });
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["code"], "IncompleteAction");
    let message = told.answer["problem"]["message"].to_string();
    assert!(message.contains("usable region"), "{message}");
    assert_eq!(story.count("GetDeployment"), 0);
}

#[tokio::test(start_paused = true)]
async fn rows_that_lag_each_by_itself_are_waited_for() {
    // Source and Staging are listed, Production's row comes 6 s later.
    let story = actions(Story::of(2), |actions| {
        let mut staging = actions[0].clone();
        staging.action = "Staging".to_owned();
        staging.provider = "Manual".to_owned();
        staging.category = "Approval".to_owned();
        staging.updated_at = -400.0;
        actions[0].visible_at = Some(6.0);
        actions.push(staging);
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert_eq!(story.count("ListActionExecutions"), 3);
}

#[tokio::test(start_paused = true)]
async fn when_a_row_does_not_end_it_is_told_and_the_listed_groups_go_on() {
    let story = actions(Story::of(2), |actions| {
        let mut open = actions[0].clone();
        open.action = "Open".to_owned();
        open.updated_at = 1_000.0;
        actions.push(open);
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert_eq!(told.answer["problem"]["code"], "ActionsNotListed");
}

#[tokio::test(start_paused = true)]
async fn an_action_that_failed_or_was_abandoned_has_deployed_as_well() {
    for (row, deployment) in [("Failed", "Failed"), ("Abandoned", "Stopped")] {
        let story = actions(Story::of(2), |actions| actions[0].status = row.to_owned())
            .given(|state| state.deployment("d-EXAMPLEE5").status = deployment.to_owned());
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 2}), "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_before_it_deployed_anything_is_none_of_ours() {
    let without_id = actions(Story::of(1), |actions| {
        actions[0].status = "Failed".to_owned();
        actions[0].deployment_id = None;
    });
    let never_began = Story::of(1).given(|state| {
        let deployment = state.deployment("d-EXAMPLEE5");
        deployment.status = "Failed".to_owned();
        deployment.never_started = true;
    });
    for story in [without_id, never_began] {
        let told = story.run().await;
        assert_eq!(told.answer["result"], "ignored", "{:#}", told.answer);
        assert!(story.silent());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_means_the_last_deployment_that_ended_and_the_last_that_succeeded() {
    let story = Story::of(3).given(|state| {
        let mut failed = state.deployment("d-EXAMPLEE5").clone();
        failed.id = "d-FAILED001".to_owned();
        failed.status = "Failed".to_owned();
        failed.completed_at = Some(-1.0);
        // It gave up after the first.
        failed.targets.truncate(1);
        let region = state.region(REGION);
        region.deployments.push(failed);
        region.auto_scaling_groups[0].instances.clear();
    });
    let told = story.event(&request(json!({}))).await;
    let ids = json!(["d-EXAMPLEE5", "d-FAILED001"]);
    assert_eq!(told.group()["deploymentIds"], ids);
    assert_eq!(told.counts(), &json!({"restarted": 3}));
    assert_eq!(triggered_at(&story), "1771319644");
}

#[tokio::test(start_paused = true)]
async fn where_only_auto_scaling_deployed_lately_the_present_members_health_is_asked_for() {
    let story = Story::of(2).given(|state| {
        state.page_sizes.deployments = 100;
        let last = state.deployment("d-EXAMPLEE5").clone();
        // 900 launches since the last deployment by people.
        let launches = (0..900).map(|n| Deployment {
            id: format!("d-LAUNCH{n:03}"),
            creator: "autoscaling".to_owned(),
            completed_at: Some(-10.0 - f64::from(n)),
            ..last.clone()
        });
        state.region(REGION).deployments = launches.collect();
        state.host(&id(2)).agent.fault = Some(sim::AgentFault::AgentUnhealthy);
    });
    let told = story.event(&request(json!({}))).await;
    assert_eq!(triggered_at(&story), "1");
    assert_eq!(
        told.counts(),
        &json!({"already-restarted": 1, "failed": 1}),
        "none is restarted, and one is sick"
    );
}

#[tokio::test(start_paused = true)]
async fn without_members_a_group_whose_last_deployment_is_not_found_is_a_problem() {
    let story = Story::of(1).given(|state| {
        state.deployment("d-EXAMPLEE5").creator = "autoscaling".to_owned();
        state.region(REGION).auto_scaling_groups[0]
            .instances
            .clear();
    });
    let told = story.event(&request(json!({}))).await;
    assert_eq!(told.group()["problem"]["code"], "NoDeployment");
    assert!(story.body("email").contains("give a deploymentId"));
}

#[tokio::test(start_paused = true)]
async fn a_group_that_never_had_a_deployment_is_ignored() {
    let story = Story::of(2).given(|state| state.region(REGION).deployments.clear());
    let told = story.event(&request(json!({}))).await;
    assert_eq!(told.answer["result"], "ignored");
    assert!(
        told.answer["reason"]
            .to_string()
            .contains("never had a deployment")
    );
}

#[tokio::test(start_paused = true)]
async fn a_group_an_execution_or_a_deployment_that_is_gone_is_told_by_its_name() {
    let group = Story::of(1).given(|state| state.region(REGION).deployment_groups.clear());
    let execution = Story::of(1).given(|state| {
        state.region(REGION).pipelines[0].executions[0].id =
            "00000000-0000-4000-8000-000000000000".to_owned();
    });
    let deployment = actions(Story::of(1), |actions| {
        actions[0].deployment_id = Some("d-NOWHERE01".to_owned());
    });
    for (story, code, name) in [
        (
            group,
            "DeploymentGroupDoesNotExistException",
            sim::DEPLOYMENT_GROUP,
        ),
        (
            execution,
            "PipelineExecutionNotFoundException",
            "my-pipeline",
        ),
        (deployment, "DeploymentDoesNotExistException", "d-NOWHERE01"),
    ] {
        let told = story.run().await;
        assert_eq!(told.answer["result"], "attention");
        let mail = story.body("email");
        assert!(mail.contains(code), "{mail}");
        assert!(mail.contains(name), "{mail}");
    }
}

/// A later deployment of the story's group that is over, by a creator.
fn later(story: Story, creator: &str, targets: usize) -> Story {
    story.given(|state| {
        let mut later = state.deployment("d-EXAMPLEE5").clone();
        later.id = "d-LATER0001".to_owned();
        later.creator = creator.to_owned();
        later.created_at = -4.0;
        later.completed_at = Some(-1.0);
        later.targets.truncate(targets);
        state.region(REGION).deployments.push(later);
        // Restarted between the two.
        for n in 1..=2 {
            state.host(&id(n)).agent.started_at = -3.0;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_restarted_before_a_later_deployment_ended_is_stale() {
    for (creator, expected) in [
        ("user", json!({"restarted": 2})),
        ("codeDeployRollback", json!({"restarted": 2})),
        ("CloudFormation", json!({"restarted": 2})),
        ("SomebodyNew", json!({"restarted": 2})),
        ("autoscaling", json!({"already-restarted": 2})),
        ("autoscalingTermination", json!({"already-restarted": 2})),
        // It counts for whom it went to.
        (
            "CodeDeployAutoUpdate",
            json!({"restarted": 1, "already-restarted": 1}),
        ),
    ] {
        let story = later(Story::of(2), creator, 1);
        let told = story.run().await;
        assert_eq!(told.counts(), &expected, "{creator}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_was_waited_for_counts_for_what_is_fresh() {
    let story = later(Story::of(2), "user", 2).given(|state| {
        state.deployment("d-LATER0001").completed_at = Some(20.0);
        state.host(&id(1)).agent.started_at = 15.0;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_try_that_deployed_nothing_does_not_hide_the_one_before_it() {
    // The stage was tried again, which could not even create a deployment; or is being tried again.
    for (status, ended) in [("Failed", -5.0), ("Succeeded", 300.0)] {
        let story = actions(Story::of(2), |actions| {
            actions[0].status = "Failed".to_owned();
            actions[0].updated_at = -50.0;
            let mut again = actions[0].clone();
            again.status = status.to_owned();
            again.deployment_id = None;
            again.updated_at = ended;
            actions.push(again);
        });
        let told = story.event(&event("pipeline-failed")).await;
        assert_eq!(told.counts(), &json!({"restarted": 2}), "{status}");
    }
}

/// Beside the story's action, one of a stage long before; the story's own is listed from then on.
fn after_source(story: Story, visible_at: f64) -> Story {
    actions(story, |actions| {
        let mut source = actions[0].clone();
        source.stage = "Source".to_owned();
        source.category = "Source".to_owned();
        source.provider = "S3".to_owned();
        source.updated_at = -600.0;
        actions[0].visible_at = Some(visible_at);
        actions.push(source);
    })
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_did_not_succeed_is_not_ignored_before_its_rows_can_be_there() {
    let story = after_source(Story::of(1), 1.0);
    let told = story.event(&event("pipeline-failed")).await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));

    let story = actions(Story::of(1), |actions| {
        actions[0].provider = "CodeDeployToECS".to_owned();
    });
    let told = story.event(&event("pipeline-failed")).await;
    assert_eq!(told.answer["result"], "ignored");
    assert!(
        (29.0..32.0).contains(&story.elapsed()),
        "{}",
        story.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_was_canceled_has_deployed_what_it_had() {
    let mut canceled = event("pipeline-failed");
    canceled["detail"]["state"] = json!("CANCELED");
    let told = Story::of(2).event(&canceled).await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_later_deployment_whose_end_is_not_told_may_have_ended_just_now() {
    let story = later(Story::of(2), "user", 2).given(|state| {
        state.deployment("d-LATER0001").completed_at = None;
    });
    // The event comes an hour late.
    let mut event = event("codedeploy-success");
    event["time"] = json!("2026-02-17T08:14:05Z");
    let told = story.event(&event).await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_deployment_to_outdated_instances_alone_does_not_hide_the_whole_one_before_it() {
    let story = super::decisions::tagged(2).given(|state| {
        let mut outdated = state.deployment("d-EXAMPLEE5").clone();
        outdated.id = "d-OUTDATED1".to_owned();
        outdated.outdated_only = true;
        outdated.targets.remove(0);
        let whole = state.deployment("d-EXAMPLEE5");
        whole.created_at = -5_000.0;
        whole.completed_at = Some(-4_900.0);
        state.region(REGION).deployments.push(outdated);
    });
    let told = story.event(&request(json!({}))).await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn targets_that_were_not_listed_at_first_are_asked_for_again_when_the_group_is_quiet() {
    let story = super::decisions::tagged(2).given(|state| {
        state.deployment("d-EXAMPLEE5").status = "Queued".to_owned();
    });
    let begins = async {
        tokio::time::sleep(std::time::Duration::from_secs(15)).await;
        story
            .world
            .with(|state| state.deployment("d-EXAMPLEE5").status = "Succeeded".to_owned());
    };
    let stopped = event("pipeline-stopped");
    let (told, ()) = tokio::join!(story.event(&stopped), begins);
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}
