//! How many restarts are in flight at the same time, and when failures stop the sending.

use serde_json::json;
use sim::{AgentFault, Answer, Fault, FaultKind};
use tokio::time::sleep;

use std::time::Duration;

use super::support::{EVENT_TIME, REGION, Story, commands, id, in_flight, most_at_once};

#[tokio::test(start_paused = true)]
async fn half_of_the_fleet_at_a_time_takes_two_rounds() {
    let story = Story::of(10).setting("MAX_CONCURRENCY", "50%");
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 10}));
    let sizes: Vec<usize> = commands(&story)
        .iter()
        .map(|params| params["InstanceIds"].as_array().expect("ids").len())
        .collect();
    assert!(most_at_once(&story.flights()) <= 5);
    assert_eq!(sizes, [5, 5]);
    story.world.with(|state| {
        let first = (1..=5).map(|n| state.host(&id(n)).agent.restarts[0]);
        let last_of_first = first.fold(f64::MIN, f64::max);
        for n in 6..=10 {
            assert!(state.host(&id(n)).agent.restarts[0] > last_of_first);
        }
    });
}

#[tokio::test(start_paused = true)]
async fn three_instances_at_the_defaults_take_two_rounds() {
    let story = Story::of(3).setting("MAX_CONCURRENCY", "");
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 3}));
    let sizes: Vec<usize> = commands(&story)
        .iter()
        .map(|params| params["InstanceIds"].as_array().expect("ids").len())
        .collect();
    assert_eq!(sizes, [2, 1]);
    let seconds = story.world.now() - EVENT_TIME;
    assert!((160.0..200.0).contains(&seconds), "{seconds} s");
}

/// The most invocations that were open at the same time while the event was handled.
async fn most_in_flight(story: &Story) -> usize {
    let done = std::cell::Cell::new(false);
    let handle = async {
        story.run().await;
        done.set(true);
    };
    let watch = async {
        let mut most = 0;
        while !done.get() {
            let open = story.world.with(|state| {
                let commands = state.region(REGION).commands.iter();
                let invocations = commands.flat_map(|command| &command.invocations);
                invocations
                    .filter(|invocation| invocation.ended_at.is_none())
                    .count()
            });
            most = most.max(open);
            sleep(Duration::from_millis(500)).await;
        }
        most
    };
    let ((), most) = tokio::join!(handle, watch);
    most
}

#[tokio::test(start_paused = true)]
async fn never_more_than_the_window_is_in_flight() {
    for (instances, concurrency, most) in
        [(12, "3", 3), (10, "50%", 5), (7, "50%", 4), (3, "1%", 1)]
    {
        let story = Story::of(instances).setting("MAX_CONCURRENCY", concurrency);
        assert_eq!(
            most_in_flight(&story).await,
            most,
            "{concurrency} of {instances}"
        );
        story.world.with(|state| {
            for n in 1..=instances {
                assert_eq!(state.host(&id(n)).agent.restarts.len(), 1);
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_is_refilled_when_a_quarter_of_it_is_free() {
    let story = Story::of(16)
        .setting("MAX_CONCURRENCY", "8")
        .given(|state| {
            for n in 1..=16 {
                // One after the other, far apart.
                state.host(&id(n)).agent.restart_seconds =
                    10.0 * f64::from(u8::try_from(n).expect("small"));
            }
        });
    story.run().await;
    let sizes: Vec<usize> = commands(&story)
        .iter()
        .map(|params| params["InstanceIds"].as_array().expect("ids").len())
        .collect();
    assert_eq!(sizes[0], 8);
    assert!(
        sizes[1..sizes.len() - 1].iter().all(|size| *size >= 2),
        "{sizes:?}"
    );
    assert_eq!(sizes.iter().sum::<usize>(), 16);
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_stop_the_sending_and_the_rest_is_told() {
    let story = Story::of(20)
        .setting("MAX_CONCURRENCY", "2")
        .setting("MAX_ERRORS", "3")
        .given(|state| {
            for n in 1..=20 {
                state.host(&id(n)).agent.fault = Some(AgentFault::AgentDown);
            }
        });
    let told = story.run().await;
    let failed = told.counts()["failed"].as_u64().expect("a count");
    assert!((4..=5).contains(&failed), "{failed} agents were touched");
    assert_eq!(told.counts()["held-back"], 20 - failed);
    let reason = told.attention(&id(20))["detail"].to_string();
    assert!(reason.contains("MAX_ERRORS allows 3"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn hosts_without_an_agent_never_hold_the_others_back() {
    let story = Story::of(6)
        .setting("MAX_CONCURRENCY", "1")
        .setting("MAX_ERRORS", "0")
        .given(|state| {
            state.host(&id(1)).agent.installed = false;
            state.host(&id(2)).agent.installed = false;
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"failed": 2, "restarted": 4}));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_touched_says_nothing_about_the_next_host() {
    let story = Story::of(6)
        .setting("MAX_CONCURRENCY", "1")
        .setting("MAX_ERRORS", "0")
        .given(|state| {
            state.host(&id(1)).agent.fault = Some(AgentFault::NotRoot);
            state.host(&id(2)).agent.fault = Some(AgentFault::PreflightFailed);
            state.host(&id(3)).agent.busy = vec![[0.0, 5_000.0]];
        });
    let told = story.run().await;
    assert_eq!(
        told.counts(),
        &json!({"busy": 1, "failed": 2, "restarted": 3})
    );
}

#[tokio::test(start_paused = true)]
async fn a_script_that_never_ends_counts_as_a_failure() {
    let story = Story::of(2)
        .setting("MAX_CONCURRENCY", "1")
        .setting("MAX_ERRORS", "0")
        .setting("BUSY_WAIT_SECONDS", "0")
        .given(|state| state.host(&id(1)).agent.fault = Some(AgentFault::Hangs));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 1, "timed-out": 1}));
}

#[tokio::test(start_paused = true)]
async fn a_quarter_of_the_window_that_is_free_is_refilled_at_the_next_look() {
    for window in [1, 3, 8] {
        let story = Story::of(20)
            .setting("MAX_CONCURRENCY", &window.to_string())
            .given(|state| {
                for n in 1..=20 {
                    // Ends far apart, in no order.
                    let seconds = u8::try_from(n * 7 % 11).expect("small");
                    state.host(&id(n)).agent.restart_seconds = 5.0 + 3.0 * f64::from(seconds);
                }
            })
            .timeout(3_000);
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 20}), "{window}");
        let flights = story.flights();
        assert_eq!(most_at_once(&flights), window);
        let last_sent = flights[flights.len() - 1].sent;
        let ends = flights.iter().filter_map(|flight| flight.ended);
        for end in ends.filter(|end| *end < last_sent) {
            let free = window - in_flight(&flights, end);
            let next = flights.iter().find(|flight| flight.sent >= end);
            let sent = next.expect("one more was sent").sent;
            // A look every five seconds, which takes some tenths.
            let soon = sent - end <= 5.8;
            assert!(
                soon || free * 4 < window,
                "{free} of {window} were free at {end} s, and the next was sent at {sent} s"
            );
        }
        for (n, flight) in flights.iter().enumerate() {
            let before: Vec<_> = flights[..n]
                .iter()
                .filter(|earlier| earlier.sent < flight.sent)
                .cloned()
                .collect();
            let free = window - in_flight(&before, flight.sent);
            assert!(free * 4 >= window, "sent into less than a quarter: {free}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_twenty_failing_agents_at_most_five_are_touched() {
    let story = Story::of(20)
        .setting("MAX_CONCURRENCY", "2")
        .setting("MAX_ERRORS", "3")
        .given(|state| {
            for n in 1..=20 {
                state.host(&id(n)).agent.fault = Some(AgentFault::AgentDown);
            }
        });
    let told = story.run().await;
    let touched = story.world.with(|state| {
        let down = |n: &usize| !state.host(&id(*n)).agent.running;
        (1..=20).filter(down).count()
    });
    assert!((4..=5).contains(&touched), "{touched} agents are down");
    assert_eq!(story.sent_to().len(), touched);
    // Nothing is sent after the fourth has failed, and the report follows the last that ran.
    let mut ends: Vec<f64> = story.flights().iter().filter_map(|f| f.ended).collect();
    ends.sort_by(f64::total_cmp);
    let sent = story.times_of("SendCommand");
    assert!(sent[sent.len() - 1] < ends[3], "{sent:?} {ends:?}");
    let last = ends[ends.len() - 1];
    let told_at = story.told_at();
    assert!((last..last + 6.5).contains(&told_at), "told at {told_at} s");
    assert_eq!(told.answer["severity"], "critical");
}

#[tokio::test(start_paused = true)]
async fn as_many_failures_as_are_allowed_stop_nothing() {
    let story = Story::of(8)
        .setting("MAX_CONCURRENCY", "2")
        .setting("MAX_ERRORS", "3")
        .given(|state| {
            for n in 1..=3 {
                state.host(&id(n)).agent.fault = Some(AgentFault::AgentUnhealthy);
            }
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"failed": 3, "restarted": 5}));
}

#[tokio::test(start_paused = true)]
async fn what_runs_when_too_many_have_failed_may_finish() {
    let story = Story::of(6)
        .setting("MAX_CONCURRENCY", "3")
        .setting("MAX_ERRORS", "0")
        .given(|state| {
            state.host(&id(1)).agent.fault = Some(AgentFault::ServiceManagerFailed);
            state.host(&id(2)).agent.restart_seconds = 90.0;
            state.host(&id(3)).agent.busy = vec![[0.0, 60.0]];
        });
    let told = story.run().await;
    assert_eq!(
        told.counts(),
        &json!({"failed": 1, "held-back": 3, "restarted": 2})
    );
    assert_eq!(story.sent_to(), [id(1), id(2), id(3)]);
    for n in 4..=6 {
        let detail = told.attention(&id(n))["detail"].to_string();
        assert!(detail.contains("MAX_ERRORS allows 0"), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_failed_restart_stops_nothing() {
    let answer = |status: &str, details: &str| Answer {
        status: status.to_owned(),
        status_details: Some(details.to_owned()),
        ..Answer::default()
    };
    for (answer, outcome) in [
        (answer("Cancelled", "Cancelled"), "cancelled"),
        (answer("TimedOut", "DeliveryTimedOut"), "undelivered"),
        (answer("Failed", "Undeliverable"), "undelivered"),
        (answer("Cancelled", "Terminated"), "undelivered"),
        (answer("Failed", "AccessDenied"), "undelivered"),
        (answer("Failed", "InvalidPlatform"), "undelivered"),
    ] {
        let story = Story::of(3)
            .setting("MAX_CONCURRENCY", "1")
            .setting("MAX_ERRORS", "0")
            .given(|state| {
                state.host(&id(1)).answer = Some(answer.clone());
                state.host(&id(2)).answer = Some(answer.clone());
            });
        let told = story.run().await;
        assert_eq!(
            told.counts(),
            &json!({outcome: 2, "restarted": 1}),
            "{answer:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_a_hanging_restart_and_a_draining_agent_stop_nothing() {
    let story = Story::of(4)
        .setting("MAX_CONCURRENCY", "1")
        .setting("MAX_ERRORS", "0")
        .setting("BUSY_WAIT_SECONDS", "10")
        .given(|state| {
            state.host(&id(1)).agent.updates = vec![[0.0, 5_000.0]];
            state.host(&id(2)).agent.busy = vec![[0.0, 5_000.0]];
            state.host(&id(3)).agent.fault = Some(AgentFault::Draining);
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"busy": 3, "restarted": 1}));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_start_gives_its_slot_away_though_the_others_still_run() {
    let story = Story::of(4)
        .setting("MAX_CONCURRENCY", "3")
        .setting("BUSY_WAIT_SECONDS", "240")
        .given(|state| {
            state.host(&id(1)).offline = true;
            for n in [2, 3] {
                state.host(&id(n)).agent.busy = vec![[0.0, 230.0]];
            }
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 3, "undelivered": 1}));
    let sent = story.times_of("SendCommand");
    let pause = sent[1] - sent[0];
    assert!((150.0..160.0).contains(&pause), "{pause} s");
}

#[tokio::test(start_paused = true)]
async fn who_has_no_time_one_at_a_time_is_told_by_name_for_nothing_goes_on_by_itself() {
    // As long as nothing is tried again by itself: each of them needs somebody.
    for (instances, at_once) in [(40, "1"), (200, "10")] {
        let story = Story::of(instances).setting("MAX_CONCURRENCY", at_once);
        let told = story.run().await;
        let counts = told.counts();
        let count = |word: &str| counts[word].as_u64().unwrap_or(0);
        assert!(count("held-back") > 0, "{counts}");
        assert_eq!(count("held-back") + count("restarted"), instances as u64);
        assert_eq!(told.answer["result"], "attention");
        let rows = told.group()["attention"].as_array().expect("a list");
        assert_eq!(rows.len() as u64, count("held-back"));
        assert!(rows[0]["detail"].to_string().contains("no time left"));
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_next_command_is_sent_it_is_known_what_became_of_the_last() {
    // The second command of the window is sent after minutes without an answer; by then the first fifty have failed.
    let story = Story::of(100).setting("MAX_ERRORS", "0").given(|state| {
        for n in 1..=50 {
            let agent = &mut state.host(&id(n)).agent;
            agent.fault = Some(AgentFault::OldAgentSurvived);
            agent.restart_seconds = 10.0;
        }
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            kind: FaultKind::NoReply,
            after: 1,
            times: 7,
            ..Fault::default()
        });
        // What the lost attempts were for is asked about before it is tried once more.
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            code: Some("InvalidInstanceId".to_owned()),
            after: 1,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"failed": 50, "held-back": 50}));
    assert_eq!(story.sent_to().len(), 50);
}
