//! The time of an event: what is sent at the latest, what is cut off, and that the report is out before the end.

use std::time::Duration;

use serde_json::json;
use sim::{Action, AgentFault, Answer, Deployment, Fault};
use tokio::time::sleep;

use super::support::{EVENT_TIME, REGION, Story, event, id};

#[tokio::test(start_paused = true)]
async fn what_has_no_result_at_the_end_is_unfinished_and_reported_in_time() {
    let story = Story::of(2)
        .timeout(300)
        .setting("BUSY_WAIT_SECONDS", "0")
        .given(|state| state.host(&id(2)).agent.fault = Some(AgentFault::Hangs));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "unfinished": 1}));
    assert!(story.world.now() - EVENT_TIME < 300.0);
    assert!(told.attention(&id(2))["commandId"].is_string());
}

#[tokio::test(start_paused = true)]
async fn without_time_left_nothing_is_sent() {
    let story = Story::of(2).timeout(200);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 2}));
    let reason = told.attention(&id(1))["detail"].to_string();
    assert!(reason.contains("no time left"), "{reason}");
    assert!(story.sent_to().is_empty());
}

#[tokio::test(start_paused = true)]
async fn answers_that_never_come_end_in_a_report_before_the_deadline() {
    for operation in [
        "ListActionExecutions",
        "ListDeployments",
        "GetDeploymentGroup",
    ] {
        let story = Story::of(2).given(|state| {
            state.faults.push(Fault {
                operation: operation.to_owned(),
                code: Some("InternalFailure".to_owned()),
                status: Some(500),
                times: 1_000,
                ..Fault::default()
            });
        });
        let told = story.run().await;
        assert_eq!(told.answer["result"], "attention", "{operation}");
        assert_eq!(told.answer["notified"], true, "{operation}");
        let elapsed = story.world.now() - EVENT_TIME;
        assert!(elapsed < 330.0, "{operation}: {elapsed} s");
    }
}

#[tokio::test(start_paused = true)]
async fn the_worst_day_is_reported_before_the_deadline() {
    // Another deployment for almost the whole patience, hosts busy for almost all of theirs, slow restarts,
    // two rounds, and one agent that never picks its command up.
    let story = Story::of(40)
        .setting("MAX_CONCURRENCY", "50%")
        .given(|state| {
            let mut other = state.deployment("d-EXAMPLEE5").clone();
            other.id = "d-RUNNING01".to_owned();
            other.completed_at = Some(105.0);
            state.region(REGION).deployments.push(other);
            for n in 1..=40 {
                let agent = &mut state.host(&id(n)).agent;
                agent.restart_seconds = 80.0;
                agent.busy = if n <= 20 {
                    vec![[0.0, 220.0]]
                } else {
                    vec![[300.0, 430.0]]
                };
            }
            state.host(&id(40)).offline = true;
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 39, "undelivered": 1}));
    let counts = told.counts().as_object().expect("counts");
    assert_eq!(
        counts
            .values()
            .filter_map(serde_json::Value::as_u64)
            .sum::<u64>(),
        40
    );
    let seconds = story.world.now() - EVENT_TIME;
    assert!(seconds < 860.0, "{seconds} s");
    assert!(seconds > 500.0, "{seconds} s: a bad day takes its time");
    assert_eq!(told.answer["notified"], true);
}

#[tokio::test(start_paused = true)]
async fn the_first_command_leaves_if_the_busy_wait_and_120_seconds_are_left_before_until() {
    // Until is 45 seconds before the deadline, and finding the fleet takes less than one.
    for (busy_wait, least) in [("120", 285), ("30", 195), ("0", 165), ("240", 405)] {
        for (timeout, outcome) in [(least + 1, "restarted"), (least, "held-back")] {
            let story = Story::of(1)
                .setting("BUSY_WAIT_SECONDS", busy_wait)
                .timeout(timeout);
            let told = story.run().await;
            assert_eq!(
                told.counts(),
                &json!({outcome: 1}),
                "{busy_wait} of {timeout} s"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_time_any_more_is_held_back_and_told_when_the_others_are_done() {
    let story = Story::of(8).setting("MAX_CONCURRENCY", "1").timeout(500);
    let told = story.run().await;
    let sent = story.times_of("SendCommand");
    let last = sent[sent.len() - 1];
    // 500 - 45 - 240 is 215; each restart takes most of a minute.
    assert!((150.0..215.2).contains(&last), "{sent:?}");
    assert_eq!(
        told.counts(),
        &json!({"held-back": 8 - sent.len(), "restarted": sent.len()})
    );
    let detail = told.attention(&id(8))["detail"].to_string();
    assert!(detail.contains("no time left"), "{detail}");
    let ends = story.flights().into_iter().filter_map(|f| f.ended);
    let done = ends.fold(f64::MIN, f64::max);
    let told_at = story.told_at();
    assert!((done..done + 6.0).contains(&told_at), "told at {told_at} s");
}

#[tokio::test(start_paused = true)]
async fn what_is_open_45_seconds_before_the_deadline_is_unfinished_and_told_then() {
    for timeout in [300, 900] {
        let story = Story::of(1).timeout(timeout).given(|state| {
            state.host(&id(1)).answer = Some(Answer {
                status: "InProgress".to_owned(),
                ..Answer::default()
            });
        });
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"unfinished": 1}));
        let sent = &story
            .world
            .with(|state| state.region(REGION).commands[0].id.clone());
        assert_eq!(&told.attention(&id(1))["commandId"], sent);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let left = timeout as f64 - story.told_at();
        assert!(
            (43.0..=45.0).contains(&left),
            "told {left} s before the end"
        );
    }
}

/// Seconds of a slow call, which is still answered.
const SLOW: f64 = 4.5;

/// Every call takes this long from a moment on.
async fn calls_take(story: &Story, seconds: f64, from: Duration) {
    sleep(from).await;
    story.world.with(|state| state.latency = seconds);
}

#[tokio::test(start_paused = true)]
async fn finding_the_deployments_is_cut_off_after_60_seconds() {
    // Every page is answered in time, but there are too many of them: one row on each.
    let story = Story::of(1).given(|state| {
        state.latency = SLOW;
        state.page_shortfall = 99;
        let actions = &mut state.region(REGION).pipelines[0].executions[0].actions;
        for n in 0..30 {
            actions.push(Action {
                action: format!("Build{n}"),
                category: "Build".to_owned(),
                provider: "CodeBuild".to_owned(),
                ..Action::default()
            });
        }
    });
    let told = story.run().await;
    assert_eq!(told.answer["problem"]["step"], "deployments");
    assert_eq!(told.answer["problem"]["code"], "Timeout");
    let publishing = story.told_at() - SLOW;
    assert!((60.0..60.5).contains(&publishing), "{publishing} s");
}

#[tokio::test(start_paused = true)]
async fn finding_the_fleet_is_cut_off_when_both_together_took_90_seconds() {
    let story = Story::of(40).given(|state| {
        state.latency = SLOW;
        // One node a page.
        state.page_shortfall = 99;
    });
    let told = story.run().await;
    assert_eq!(told.group()["problem"]["step"], "fleet");
    assert_eq!(told.group()["problem"]["code"], "Timeout");
    // The look for another deployment has a limit of its own.
    let publishing = story.told_at() - SLOW;
    let least = 90.0 + SLOW;
    assert!((least..least + 0.5).contains(&publishing), "{publishing} s");
}

#[tokio::test(start_paused = true)]
async fn a_look_for_other_deployments_that_does_not_end_is_cut_off() {
    let story = Story::of(1).given(|state| {
        state.latency = SLOW;
        state.page_sizes.deployments = 1;
        for n in 0..40 {
            let mut launch = state.deployment("d-EXAMPLEE5").clone();
            launch.id = format!("d-LAUNCH{n:03}");
            launch.creator = "autoscaling".to_owned();
            launch.status = "InProgress".to_owned();
            launch.completed_at = None;
            state.region(REGION).deployments.push(launch);
        }
    });
    let told = story.run().await;
    assert_eq!(told.group()["problem"]["step"], "quiet");
    assert!(story.sent_to().is_empty());
    // Three calls come before it; the last of its looks may take one pause more than the 120 seconds.
    let publishing = story.told_at() - SLOW;
    let limit = publishing - 3.0 * SLOW;
    assert!((120.0..131.0).contains(&limit), "{limit} s");
}

#[tokio::test(start_paused = true)]
async fn a_look_at_the_commands_is_cut_off_45_seconds_before_the_deadline() {
    let story = Story::of(20).given(|state| {
        for n in 1..=20 {
            state.host(&id(n)).agent.fault = Some(AgentFault::Hangs);
        }
    });
    // A script that hangs is killed after nine and a half minutes; here the end comes first.
    let story = story.timeout(400);
    // From then on a look takes a minute and a half: twenty pages.
    let slow = async {
        calls_take(&story, SLOW, Duration::from_secs(300)).await;
        story.world.with(|state| state.page_shortfall = 49);
    };
    let (told, ()) = tokio::join!(story.run(), slow);
    assert_eq!(told.answer["result"], "attention");
    assert_eq!(told.counts().get("restarted"), None);
    let publishing = story.told_at() - SLOW;
    assert!((354.9..355.5).contains(&publishing), "{publishing} s");
}

#[tokio::test(start_paused = true)]
async fn publishing_is_given_up_3_seconds_before_the_deadline_with_an_error() {
    let story = Story::of(1).timeout(300).given(|state| {
        state.host(&id(1)).answer = Some(Answer {
            status: "InProgress".to_owned(),
            ..Answer::default()
        });
    });
    // No attempt is answered any more.
    let hangs = calls_take(&story, 60.0, Duration::from_secs(254));
    let event = event("pipeline-succeeded");
    let (ended, ()) = tokio::join!(story.try_event(&event), hangs);
    let error = ended.expect_err("nobody was told");
    assert!(error.starts_with("PublishFailed: "), "{error}");
    assert!(error.contains("sns:Publish"), "{error}");
    let left = 300.0 - story.elapsed();
    assert!((2.9..3.1).contains(&left), "{left} s before the deadline");
}

/// A deployment of the group that runs until then.
fn while_another_runs(story: Story, until: Option<f64>) -> Story {
    story.given(|state| {
        let other = Deployment {
            id: "d-RUNNING01".to_owned(),
            status: match until {
                Some(_) => "Succeeded".to_owned(),
                None => "InProgress".to_owned(),
            },
            completed_at: until,
            ..state.deployment("d-EXAMPLEE5").clone()
        };
        state.region(REGION).deployments.push(other);
    })
}

#[tokio::test(start_paused = true)]
async fn the_worst_case_is_told_before_the_deadline() {
    // Another deployment runs for almost all of the 120 seconds; then every host is busy for almost all of
    // its own 120, and its agent drains for almost all of the 150 that a restart may take: in both rounds.
    let story = while_another_runs(Story::of(2), Some(109.0))
        .setting("MAX_CONCURRENCY", "50%")
        .setting("NOTIFY_ON", "always")
        .given(|state| {
            for n in 1..=2 {
                state.host(&id(n)).agent.restart_seconds = 145.0;
            }
            state.host(&id(1)).agent.busy = vec![[0.0, 228.0]];
        });
    let second_is_busy = async {
        // From before its command until 116 seconds after it.
        while story.count("SendCommand") < 2 && story.elapsed() < 900.0 {
            sleep(Duration::from_millis(500)).await;
        }
        let now = story.elapsed();
        story
            .world
            .with(|state| state.host(&id(2)).agent.busy = vec![[now - 1.0, now + 116.0]]);
    };
    let (told, ()) = tokio::join!(story.run(), second_is_busy);
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    let told_at = story.told_at();
    assert!((660.0..855.0).contains(&told_at), "told after {told_at} s");
    assert!(story.elapsed() < 900.0);
    let flights = story.flights();
    assert!(flights[0].sent > 109.0, "{flights:?}");
    for flight in &flights {
        let seconds = flight.ended.expect("it ended") - flight.sent;
        assert!(seconds > 270.0, "{flights:?}");
    }
    assert!(
        Some(flights[1].sent) > flights[0].ended,
        "two rounds: {flights:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_worst_case_of_a_fleet_is_told_before_the_deadline_with_everybody_in_it() {
    // The same for twenty, of which some hang, one never gets its command, and one is offline.
    let story = while_another_runs(Story::of(20), Some(109.0))
        .setting("MAX_CONCURRENCY", "50%")
        .given(|state| {
            for n in 1..=20 {
                let agent = &mut state.host(&id(n)).agent;
                agent.restart_seconds = 145.0;
                agent.busy = vec![[0.0, 228.0], [370.0, 510.0]];
                if n % 10 == 0 {
                    agent.fault = Some(AgentFault::Hangs);
                }
            }
            state.host(&id(7)).offline = true;
            state.host(&id(13)).ping = "ConnectionLost".to_owned();
        });
    let told = story.run().await;
    let counts = told.counts().as_object().expect("counts");
    let all: u64 = counts.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(all, 20, "{counts:?}");
    assert_eq!(told.answer["notified"], true);
    let told_at = story.told_at();
    assert!((500.0..857.0).contains(&told_at), "told after {told_at} s");
    assert!(story.elapsed() < 900.0);
}

#[tokio::test(start_paused = true)]
async fn when_the_other_deployment_does_not_end_everybody_is_busy_and_it_is_told_at_once() {
    let story = while_another_runs(Story::of(40), None)
        .setting("MAX_CONCURRENCY", "50%")
        .given(|state| {
            for n in 1..=40 {
                state.host(&id(n)).agent.busy = vec![[0.0, 5_000.0]];
            }
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"busy": 40}));
    assert!(story.sent_to().is_empty());
    let told_at = story.told_at();
    assert!((109.0..123.0).contains(&told_at), "told after {told_at} s");
}

#[tokio::test(start_paused = true)]
async fn when_the_first_round_takes_everybody_s_time_the_second_is_not_begun() {
    // With the longest busy wait the first round ends when less than the busy wait and 120 seconds are left.
    let story = while_another_runs(Story::of(2), Some(109.0))
        .setting("MAX_CONCURRENCY", "50%")
        .setting("BUSY_WAIT_SECONDS", "240")
        .given(|state| {
            let agent = &mut state.host(&id(1)).agent;
            agent.busy = vec![[0.0, 340.0]];
            agent.restart_seconds = 145.0;
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 1, "restarted": 1}));
    let detail = told.attention(&id(2))["detail"].to_string();
    assert!(detail.contains("no time left"), "{detail}");
    let told_at = story.told_at();
    assert!((530.0..545.0).contains(&told_at), "told after {told_at} s");
}
