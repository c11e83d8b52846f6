//! How commands are watched: how often, how fast, and who is not waited for.

use std::time::Duration;

use serde_json::json;
use sim::{Fault, FaultKind};
use tokio::time::sleep;

use super::groups::with_separate_group;
use super::support::{EVENT_TIME, REGION, Story, assert_every, gaps, id};

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_picks_the_command_up_is_undelivered_and_the_rest_finishes() {
    let story = Story::of(3)
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| state.host(&id(1)).offline = true);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2, "undelivered": 1}));
    assert!(told.attention(&id(1))["commandId"].is_string());
    let elapsed = story.world.now() - EVENT_TIME;
    assert!(
        elapsed < 400.0,
        "it took {elapsed} s: nobody waits for the timeout of a lost command"
    );
}

#[tokio::test(start_paused = true)]
async fn a_late_starter_is_taken_back_in() {
    // The list shows the first invocation so late that its slot is given to the second instance; then it
    // is seen to run, and the end waits for it.
    let story = Story::of(2).setting("MAX_CONCURRENCY", "1").given(|state| {
        state.invocation_lag = 170.0;
        state.host(&id(1)).delivery_seconds = 110.0;
        state.host(&id(1)).agent.busy = vec![[0.0, 215.0]];
    });
    let later = async {
        sleep(Duration::from_secs(140)).await;
        story.world.with(|state| state.invocation_lag = 2.0);
    };
    let (told, ()) = tokio::join!(story.run(), later);
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    story.world.with(|state| {
        let (first, second) = (state.host(&id(1)).clone(), state.host(&id(2)).clone());
        assert!(first.agent.restarts[0] > second.agent.restarts[0]);
    });
}

#[tokio::test(start_paused = true)]
async fn one_command_s_missing_answer_does_not_hide_the_other_s() {
    // Two commands are looked at in turn. Wherever the answers stop, in one of these runs it is between
    // the look that shows the ends of one command's instances and the look at the other's.
    for kind in [sim::FaultKind::Error, sim::FaultKind::NoReply] {
        let mut seen = Vec::new();
        for answered in 25..45 {
            // The attempts at a call that hangs do not end before the function's end.
            let story = Story::of(60).setting("BUSY_WAIT_SECONDS", "0").timeout(200);
            let story = story.given(|state| {
                state.faults.push(Fault {
                    operation: "ListCommandInvocations".to_owned(),
                    code: Some("AccessDeniedException".to_owned()),
                    kind,
                    after: answered,
                    times: 1_000,
                    ..Fault::default()
                });
            });
            let told = story.run().await;
            seen.push(told.counts().clone());
            if !told.counts()["unfinished"].is_null() {
                assert_eq!(told.group()["problem"]["step"], "poll", "{kind:?}");
            }
        }
        let either = [(50, 10), (10, 50)].map(|(a, b)| json!({"restarted": a, "unfinished": b}));
        assert!(
            either.iter().any(|one| seen.contains(one)),
            "{kind:?}: {seen:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_runs_is_not_called_undelivered_for_want_of_an_answer() {
    let story = Story::of(1).given(|state| {
        state.host(&id(1)).agent.busy = vec![[0.0, 118.0]];
        state.host(&id(1)).agent.restart_seconds = 140.0;
        state.faults.push(Fault {
            operation: "ListCommandInvocations".to_owned(),
            code: Some("AccessDeniedException".to_owned()),
            // Thirty-five looks, five seconds apart: the command was sent 180 seconds ago.
            after: 35,
            times: 1_000,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"unfinished": 1}));
}

/// Polls from the `after`th on that get no answer.
fn refused(kind: FaultKind, code: Option<&str>, after: u64, times: u64) -> Fault {
    Fault {
        operation: "ListCommandInvocations".to_owned(),
        kind,
        code: code.map(str::to_owned),
        after,
        times,
        ..Fault::default()
    }
}

/// Every way in which a poll gets no answer.
const REFUSALS: [(FaultKind, Option<&str>); 8] = [
    (FaultKind::Error, Some("ExpiredTokenException")),
    (FaultKind::Error, Some("AccessDeniedException")),
    (FaultKind::Error, Some("InvalidCommandId")),
    (FaultKind::Error, Some("ThrottlingException")),
    (FaultKind::Error, Some("InternalServerError")),
    (FaultKind::Refused, None),
    (FaultKind::NoReply, None),
    (FaultKind::Unreadable, None),
];

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_refused_is_asked_again_whatever_the_reason() {
    for (kind, code) in REFUSALS {
        for (after, times) in [(0, 1), (3, 1), (2, 30)] {
            let story = Story::of(4)
                .setting("MAX_CONCURRENCY", "50%")
                .given(|state| state.faults = vec![refused(kind, code, after, times)]);
            let told = story.run().await;
            assert_eq!(
                told.counts(),
                &json!({"restarted": 4}),
                "{kind:?} {code:?}, {times} times after {after}"
            );
            assert!(
                told.group()["problem"].is_null() && story.silent(),
                "{kind:?} {code:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn polls_that_are_refused_until_the_end_are_a_problem_and_cost_one_call_at_each_look() {
    for code in [
        "AccessDeniedException",
        "ExpiredTokenException",
        "InvalidCommandId",
    ] {
        let story = Story::of(4)
            .setting("MAX_CONCURRENCY", "50%")
            .given(|state| state.faults = vec![refused(FaultKind::Error, Some(code), 3, 10_000)]);
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"held-back": 2, "unfinished": 2}));
        assert_eq!(told.group()["problem"]["step"], "poll");
        assert_eq!(told.group()["problem"]["code"], code);
        let looks = story.times_of("ListCommandInvocations");
        let last = looks[looks.len() - 1];
        assert!(
            (845.0..855.5).contains(&last),
            "the last look came after {last} s"
        );
        assert_every(5.0, &looks);
    }
}

#[tokio::test(start_paused = true)]
async fn one_command_s_refused_polls_keep_nothing_from_the_others() {
    // Two groups of one region: whoever asks at an odd place is refused for two minutes.
    let story = with_separate_group(Story::of(2), REGION, 301..=302).given(|state| {
        state.faults = (0..24)
            .map(|n| refused(FaultKind::Error, Some("AccessDeniedException"), n, 1))
            .collect();
    });
    let told = story.run().await;
    for group in told.answer["groups"].as_array().expect("groups are a list") {
        assert_eq!(group["counts"], json!({"restarted": 2}));
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_not_known_everywhere_at_once_is_asked_about_again() {
    let story = Story::of(2)
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| state.command_lag = 31.0);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert!(story.silent());
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_an_ssm_agent_s_buffer_keeps_its_slot() {
    let story = Story::of(2)
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| state.host(&id(1)).ssm_agent.buffered = 200.0);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    let flights = story.flights();
    let ended = flights[0].ended.expect("it ended");
    assert!(ended > 200.0 && flights[1].sent > ended, "{flights:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_undelivered_may_still_run_and_the_message_says_so() {
    let story = Story::of(1).given(|state| {
        state.host(&id(1)).delivery_seconds = 300.0;
        state.host(&id(1)).ssm_agent.runs_old = true;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"undelivered": 1}));
    let detail = told.attention(&id(1))["detail"].to_string();
    assert!(
        detail.contains("not known to have run") && detail.contains("it still may"),
        "{detail}"
    );
    sleep(Duration::from_secs(400)).await;
    let restarts = story
        .world
        .with(|state| state.host(&id(1)).agent.restarts.len());
    assert_eq!(restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn calls_of_systems_manager_are_paced() {
    let story = Story::of(400);
    story.run().await;
    assert_paced(&story, None);
}

#[tokio::test(start_paused = true)]
async fn a_command_is_looked_at_every_5_seconds_and_its_end_is_told_at_the_next_look() {
    let story = Story::of(1).setting("NOTIFY_ON", "always");
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    let sent = story.times_of("SendCommand")[0];
    let mut times = vec![sent];
    times.extend(story.times_of("ListCommandInvocations"));
    assert_every(5.0, &times);
    let ended = story.flights()[0].ended.expect("it ended");
    let told_at = story.told_at();
    assert!(
        (ended..ended + 5.5).contains(&told_at),
        "it ended after {ended} s, and was told after {told_at} s"
    );
}

#[tokio::test(start_paused = true)]
async fn many_open_commands_are_looked_at_less_often() {
    // Every second instance is denied, so that each of the others gets a command of its own.
    for (instances, pause) in [(40, 5.0), (64, 8.0)] {
        let story = Story::of(instances).given(|state| {
            for n in 1..=instances {
                let host = state.host(&id(n));
                host.denied = n % 2 == 1;
                host.agent.restart_seconds = 100.0;
            }
        });
        let told = story.run().await;
        let half = instances / 2;
        assert_eq!(
            told.counts(),
            &json!({"restarted": half, "unreachable": half})
        );
        let sent = story.times_of("SendCommand");
        let all_sent = sent[sent.len() - 1];
        let ends = story.flights().into_iter().filter_map(|f| f.ended);
        let first_end = ends.fold(f64::MAX, f64::min);
        let looks: Vec<f64> = story
            .times_of("ListCommandInvocations")
            .into_iter()
            .filter(|at| (all_sent..first_end).contains(at))
            .collect();
        // The calls of one look follow each other closely.
        let pauses: Vec<f64> = gaps(&looks).into_iter().filter(|gap| *gap > 1.0).collect();
        assert!(pauses.len() > 3, "{pauses:?}");
        for found in &pauses {
            assert!(
                (pause..pause + 0.5).contains(found),
                "{half} open commands: {pauses:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_shows_nothing_for_minutes_ends_nothing() {
    // The script has ended by then.
    let story = Story::of(1).given(|state| state.invocation_lag = 100.0);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    let told_after = story.elapsed();
    assert!((100.0..107.0).contains(&told_after), "{told_after} s");
}

#[tokio::test(start_paused = true)]
async fn what_has_not_started_frees_its_slot_after_150_seconds_and_not_before() {
    let story = Story::of(2)
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| state.host(&id(1)).offline = true);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "undelivered": 1}));
    let sent = story.times_of("SendCommand");
    let waited = sent[1] - sent[0];
    assert!((149.9..156.0).contains(&waited), "{waited} s");
    let row = told.attention(&id(1));
    assert!(row["detail"].to_string().contains("150 s"), "{row}");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_until_the_end_for_what_has_not_started() {
    let story = Story::of(1).given(|state| state.host(&id(1)).offline = true);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"undelivered": 1}));
    let waited = story.told_at() - story.times_of("SendCommand")[0];
    assert!((149.9..156.0).contains(&waited), "{waited} s");
}

#[tokio::test(start_paused = true)]
async fn what_runs_keeps_its_slot_beyond_150_seconds() {
    let story = Story::of(2).setting("MAX_CONCURRENCY", "1").given(|state| {
        let agent = &mut state.host(&id(1)).agent;
        agent.busy = vec![[0.0, 110.0]];
        agent.restart_seconds = 140.0;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    let flights = story.flights();
    let ended = flights[0].ended.expect("it ended");
    assert!(ended > 250.0, "{ended} s");
    assert!(flights[1].sent > ended, "{flights:?}");
}

/// When calls of Systems Manager were made.
fn ssm_calls(story: &Story, region: Option<&str>) -> Vec<f64> {
    let calls = story.world.calls().into_iter();
    calls
        .filter(|call| call.service == "ssm" && region.is_none_or(|name| name == call.region))
        .map(|call| call.at)
        .collect()
}

/// Ten calls may begin at once, and five more in each second.
fn assert_paced(story: &Story, region: Option<&str>) {
    let at = ssm_calls(story, region);
    for (n, from) in at.iter().enumerate() {
        for (more, to) in at[n..].iter().enumerate() {
            let most = 10.0 + 5.0 * (to - from) + 0.01;
            let count = (more + 1) as f64;
            assert!(count <= most, "{count} calls from {from} s to {to} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_groups_of_one_region_share_its_turns() {
    let story = with_separate_group(Story::of(200), REGION, 301..=500);
    story.run().await;
    assert_eq!(story.sent_to().len(), 400);
    assert_paced(&story, None);
}

#[tokio::test(start_paused = true)]
async fn each_region_has_turns_of_its_own() {
    let story = with_separate_group(Story::of(500), "eu-west-1", 601..=1_100);
    story.run().await;
    assert_eq!(story.sent_to().len(), 1_000);
    for region in [REGION, "eu-west-1"] {
        assert_paced(&story, Some(region));
        // And they are used: nothing is slower than it must be. Ten of the inventory at once, ten commands then.
        let at = ssm_calls(&story, Some(region));
        let twenty = at[19] - at[0];
        assert!((1.8..2.3).contains(&twenty), "{region}: {twenty} s");
    }
    let both = ssm_calls(&story, None);
    assert!(both[39] - both[0] < 2.3, "both together: {both:?}");
}

#[tokio::test(start_paused = true)]
async fn throttled_calls_take_their_turns_from_the_others() {
    // Every other look is throttled at first, and the SDK repeats each by itself.
    let story = Story::of(1_000).given(|state| {
        state.faults.extend((0..120).map(|n| Fault {
            operation: "ListCommandInvocations".to_owned(),
            after: n,
            ..Fault::default()
        }));
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1_000}));
    let calls = story.world.calls().into_iter();
    let at: Vec<f64> = calls
        .filter(|call| call.service == "ssm")
        .map(|call| call.at)
        .collect();
    let most = at
        .iter()
        .map(|from| {
            at.iter()
                .filter(|at| (*from..from + 10.0).contains(*at))
                .count()
        })
        .max()
        .unwrap_or_default();
    // Ten at once and five a second, and some repeats of the four that are under way.
    assert!(most <= 70, "{most} calls in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn who_was_seen_to_run_keeps_its_slot_though_one_list_misses_it() {
    for instances in [2, 4] {
        let story = Story::of(instances)
            .setting("MAX_CONCURRENCY", "2")
            .given(|state| {
                for n in 1..=instances {
                    let agent = &mut state.host(&id(n)).agent;
                    agent.busy = vec![[0.0, 110.0]];
                    agent.restart_seconds = 140.0;
                }
            });
        let hidden = async {
            sleep(Duration::from_secs(156)).await;
            story.world.with(|state| {
                for invocation in &mut state.region(REGION).commands[0].invocations {
                    invocation.visible_at = 163.0;
                }
            });
        };
        let (told, ()) = tokio::join!(story.run(), hidden);
        assert_eq!(told.counts(), &json!({"restarted": instances}));
        assert!(super::support::most_at_once(&story.flights()) <= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_from_its_own_moment_and_not_from_that_of_another_command_s() {
    // Two commands; of one the poll hangs, just before the other's instance begins and would be late.
    let story = Story::of(3).setting("MAX_CONCURRENCY", "2").given(|state| {
        state.invocation_lag = 0.0;
        for n in 1..=3 {
            let host = state.host(&id(n));
            host.agent.busy = vec![[0.0, 118.0]];
            host.agent.restart_seconds = 140.0;
            host.delivery_seconds = 105.0;
        }
        for n in 2..=3 {
            state.host(&id(n)).platform = "Windows".to_owned();
        }
        state.faults.push(Fault {
            operation: "ListCommandInvocations".to_owned(),
            kind: FaultKind::NoReply,
            after: 39,
            times: 7,
            ..Fault::default()
        });
    });
    story.run().await;
    assert!(super::support::most_at_once(&story.flights()) <= 2);
}
