//! Events, requests and commands that arrive twice.

use serde_json::json;
use sim::{AgentFault, Fault};

use super::support::{REGION, Story, event, id, request};

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
async fn a_repeated_request_with_its_time_leaves_fresh_agents_alone() {
    let story = Story::of(2);
    let request = request(json!({"time": "2026-02-17T09:14:05Z"}));
    story.event(&request).await;
    let told = story.event(&request).await;
    assert_eq!(told.counts(), &json!({"already-restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn two_deliveries_at_the_same_time_restart_nobody_twice() {
    let story = Story::of(5);
    let (first, second) = tokio::join!(story.run(), story.run());
    for told in [&first, &second] {
        assert_eq!(told.answer["result"], "ok", "{:#}", told.answer);
    }
    story.world.with(|state| {
        for n in 1..=5 {
            assert_eq!(state.host(&id(n)).agent.restarts.len(), 1);
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_command_that_arrived_although_its_reply_was_lost_restarts_nobody_twice() {
    let story = Story::of(3).given(|state| {
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            lost_reply: true,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    // The SDK's own retry sends a second command; the host meets the first one's lock, then its new agent.
    assert_eq!(told.counts(), &json!({"already-restarted": 3}));
    story.world.with(|state| {
        for n in 1..=3 {
            assert_eq!(state.host(&id(n)).agent.restarts.len(), 1);
        }
    });
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

#[tokio::test(start_paused = true)]
async fn a_host_s_wrong_clock_changes_nothing() {
    let story = Story::of(2).given(|state| {
        state.host(&id(1)).clock_skew = 86_400.0;
        state.host(&id(2)).clock_skew = -86_400.0;
    });
    assert_eq!(story.run().await.counts(), &json!({"restarted": 2}));
    assert_eq!(story.run().await.counts(), &json!({"already-restarted": 2}));
    // What Systems Manager tells of the steps is a day off, one way and the other.
    assert_eq!(days_off(&story, &id(1)).await, [1, 1]);
    assert_eq!(days_off(&story, &id(2)).await, [-1, -1]);
}

/// By how many days the end of an instance's step, as it is told, lies off the time at which it is asked: for each
/// command.
async fn days_off(story: &Story, instance: &str) -> Vec<i64> {
    let ssm = aws_sdk_ssm::Client::new(&story.world.sdk_config(REGION));
    let listed = ssm
        .list_command_invocations()
        .instance_id(instance)
        .details(true)
        .send()
        .await
        .expect("the commands were sent");
    let plugins = listed
        .command_invocations()
        .iter()
        .map(|command| &command.command_plugins()[0]);
    plugins
        .filter_map(|plugin| plugin.response_finish_date_time())
        .map(|told| ((told.as_secs_f64() - story.world.now()) / 86_400.0).round() as i64)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_leaves_fresh_agents_alone_and_a_later_time_restarts_them() {
    let story = Story::of(2);
    let told = story.event(&event("by-hand")).await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    let told = story.event(&event("by-hand")).await;
    assert_eq!(told.counts(), &json!({"already-restarted": 2}));
    let now = codedeploy_agent_restarter::clock::Timestamp(story.world.now() as u64);
    let anew = request(json!({"deploymentId": "d-EXAMPLEE5", "time": now}));
    assert_eq!(story.event(&anew).await.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn the_retry_after_a_report_that_was_not_published_hurts_nobody_and_tells() {
    let story = Story::of(3).given(|state| {
        state.host(&id(3)).ping = "ConnectionLost".to_owned();
        state.faults.push(Fault {
            operation: "Publish".to_owned(),
            code: Some("AuthorizationError".to_owned()),
            ..Fault::default()
        });
    });
    let error = story
        .try_event(&event("pipeline-succeeded"))
        .await
        .expect_err("nobody was told");
    assert!(error.starts_with("PublishFailed: "), "{error}");
    assert!(story.silent());

    // Lambda delivers the event again.
    let told = story.run().await;
    assert_eq!(
        told.counts(),
        &json!({"already-restarted": 2, "unreachable": 1})
    );
    assert!(story.body("email").contains(&id(3)));
    story.world.with(|state| {
        for n in 1..=2 {
            assert_eq!(state.host(&id(n)).agent.restarts.len(), 1);
        }
    });
}

#[tokio::test(start_paused = true)]
async fn ten_applications_on_one_fleet_that_end_in_one_minute_restart_each_agent_and_tell_who_was_busy()
 {
    let story = (0..9).fold(Story::of(3), |story, n| {
        super::groups::with_group_of_shop(story, &format!("app{n}"), REGION, 1..=3)
    });
    let orders = (0..10).map(|n| {
        let mut order = event("codedeploy-success");
        if n < 9 {
            order["detail"]["application"] = json!("shop");
            order["detail"]["deploymentGroup"] = json!(format!("app{n}"));
            order["detail"]["deploymentId"] = json!(format!("d-APP{n}00001"));
        }
        order
    });
    let runs = orders.map(async |order| story.event(&order).await);
    let all = futures_util::future::join_all(runs).await;
    for told in &all {
        let counts = told.counts().as_object().expect("counts").clone();
        // As long as nothing is tried again by itself, who was busy for the whole wait needs somebody.
        let busy = counts.contains_key("busy");
        assert_eq!(told.answer["result"], if busy { "attention" } else { "ok" });
        let known = ["restarted", "already-restarted", "busy"];
        assert!(
            counts.keys().all(|word| known.contains(&word.as_str())),
            "{counts:?}"
        );
    }
    story.world.with(|state| {
        for n in 1..=3 {
            assert_eq!(
                state.host(&id(n)).agent.restarts.len(),
                1,
                "one restart is enough"
            );
        }
    });
}
