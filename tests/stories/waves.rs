//! Run Command as AWS documents it for targets: one instance, then two, then four, each wave when the one
//! before has ended. Explicit ids are believed to go out at once; nobody may be called late only because
//! they do not.

use serde_json::json;
use sim::AgentFault;

use super::support::{EVENT_TIME, REGION, Story, id};

fn in_waves(instances: usize) -> Story {
    Story::of(instances).given(|state| state.ramp = true)
}

fn restarted_at(story: &Story, n: usize) -> f64 {
    story
        .world
        .with(|state| state.host(&id(n)).agent.restarts[0])
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_an_earlier_wave_is_not_undelivered() {
    let story = in_waves(130);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 130}));
    assert!(story.silent());
    // Five waves go before it, far more than the 150 s after which an instance is late.
    let last = restarted_at(&story, 50);
    assert!((400.0..550.0).contains(&last), "{last} s");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_an_earlier_wave_holds_its_slot() {
    let story = in_waves(8).setting("MAX_CONCURRENCY", "4").given(|state| {
        // The first wave takes longer than the 150 s.
        state.host(&id(1)).agent.busy = vec![[0.0, 100.0]];
        state.host(&id(1)).agent.restart_seconds = 100.0;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 8}));
    let ended = restarted_at(&story, 1);
    assert!(ended > 200.0, "{ended} s");
    let second = story
        .world
        .calls()
        .iter()
        .filter(|call| call.operation == "SendCommand")
        .map(|call| call.at)
        .nth(1)
        .expect("a second command");
    assert!(
        second > ended,
        "sent at {second} s, in the first one's place"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wave_that_nobody_picks_up_leaves_the_later_ones_undelivered_and_the_end_does_not_wait() {
    let story = in_waves(6).given(|state| state.host(&id(2)).offline = true);
    let told = story.run().await;
    // The first one, and the third in the wave of the lost one.
    assert_eq!(told.counts(), &json!({"restarted": 2, "undelivered": 4}));
    let moved = restarted_at(&story, 3);
    let waited = story.world.now() - EVENT_TIME - moved;
    // It is proven for 45 s, and only then the command has moved for the last time.
    assert!((195.0..225.0).contains(&waited), "{waited} s");
    for n in [2, 4, 5, 6] {
        let detail = told.attention(&id(n))["detail"].as_str().expect("text");
        assert!(detail.contains("150 s"), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_wave_does_not_keep_the_others_from_their_turn() {
    let story = in_waves(7)
        .setting("MAX_ERRORS", "100%")
        .given(|state| state.host(&id(1)).agent.fault = Some(AgentFault::AgentDown));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"failed": 1, "restarted": 6}));
}

#[tokio::test(start_paused = true)]
async fn whoever_still_waits_for_its_wave_at_the_end_is_unfinished() {
    // Five waves of 110 s each do not fit.
    let story = in_waves(40).timeout(500).given(|state| {
        for n in 1..=40 {
            state.host(&id(n)).agent.restart_seconds = 90.0;
        }
    });
    let told = story.run().await;
    let restarted = told.counts()["restarted"].as_u64().expect("a count");
    assert!([7, 15].contains(&restarted), "{restarted}");
    assert_eq!(told.counts()["unfinished"], 40 - restarted);
    let command = story
        .world
        .with(|state| state.region(REGION).commands[0].id.clone());
    assert_eq!(told.attention(&id(40))["commandId"], command.as_str());
}
