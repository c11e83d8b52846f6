//! What is refused, or has changed, between the first look at the fleet and the command.

use std::time::Duration;

use serde_json::json;
use sim::{AgentFault, Fault, FaultKind};
use tokio::time::sleep;

use super::support::{Story, id, most_at_once};

#[tokio::test(start_paused = true)]
async fn an_id_that_spoils_its_command_is_split_off() {
    // It goes away between the inventory and the command.
    let story = Story::of(50);
    let goes_away = async {
        while story.count("DescribeInstanceInformation") == 0 && story.elapsed() < 900.0 {
            sleep(Duration::from_millis(10)).await;
        }
        story
            .world
            .with(|state| state.host(&id(33)).state = "shutting-down".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), goes_away);
    assert_eq!(told.counts(), &json!({"restarted": 49, "skipped": 1}));
    assert!(story.silent(), "nobody is needed");
    // Lifecycle and inventory were read again, so that one more command was enough.
    assert_eq!(story.count("SendCommand"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_the_role_may_not_send_to_is_split_off() {
    let story = Story::of(50).given(|state| state.host(&id(33)).denied = true);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 49, "unreachable": 1}));
    let detail = told.attention(&id(33))["detail"].to_string();
    assert!(detail.contains("refuses it: AccessDenied"), "{detail}");
    // Halves down to the culprit: not fifty single commands.
    assert!(
        story.count("SendCommand") < 14,
        "{}",
        story.count("SendCommand")
    );
}

#[tokio::test(start_paused = true)]
async fn a_role_that_may_send_to_nobody_is_a_problem_after_fifty_denials() {
    let story = Story::of(130).given(|state| {
        for n in 1..=130 {
            state.host(&id(n)).denied = true;
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 130}));
    assert_eq!(told.group()["problem"]["step"], "send");
    assert_eq!(story.count("SendCommand"), 50);
}

#[tokio::test(start_paused = true)]
async fn a_command_without_any_answer_may_have_arrived() {
    let story = Story::of(2).given(|state| {
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            lost_reply: true,
            times: 100,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 2}));
    let detail = told.attention(&id(1))["detail"].to_string();
    assert!(detail.contains("may have arrived"), "{detail}");
    assert_eq!(story.count("SendCommand"), 8, "eight attempts");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_begins_to_leave_before_its_turn_is_not_sent_to() {
    let story = Story::of(10)
        .setting("MAX_CONCURRENCY", "50%")
        .given(|state| {
            for n in 1..=5 {
                state.host(&id(n)).agent.restart_seconds = 60.0;
            }
        });
    let leaves = async {
        sleep(Duration::from_secs(40)).await;
        story
            .world
            .with(|state| *state.lifecycle(&id(8)) = "Terminating:Wait".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), leaves);
    assert_eq!(told.counts(), &json!({"restarted": 9, "skipped": 1}));
    assert!(!story.sent_to().contains(&id(8)));
    // For the one command of the second round.
    assert_eq!(story.count("DescribeAutoScalingInstances"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_back_at_the_end_is_restarted_after_all() {
    let story = Story::of(3).given(|state| {
        state.host(&id(2)).ping = "ConnectionLost".to_owned();
        state.host(&id(3)).ping = "ConnectionLost".to_owned();
    });
    let back = async {
        sleep(Duration::from_secs(20)).await;
        story
            .world
            .with(|state| state.host(&id(2)).ping = "Online".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), back);
    assert_eq!(told.counts(), &json!({"restarted": 2, "unreachable": 1}));
    assert_eq!(told.attention(&id(3))["outcome"], "unreachable");
    assert_eq!(
        story.count("DescribeInstanceInformation"),
        2,
        "asked once more"
    );
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_refused_though_all_seems_well_is_found_by_halving() {
    // The inventory still shows it: six refusals lead to one of fifty.
    let story = Story::of(50).given(|state| {
        state.page_sizes.auto_scaling_instances = 50;
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            code: Some("InvalidInstanceId".to_owned()),
            message: Some("Instances not in a valid state".to_owned()),
            times: 6,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 49, "unreachable": 1}));
    let row = &told.group()["attention"][0];
    let detail = row["detail"].to_string();
    assert!(detail.contains("refuses it: InvalidInstanceId"), "{detail}");
    assert!(
        detail.contains("Instances not in a valid state"),
        "{detail}"
    );
    assert_eq!(told.group()["problem"], json!(null));
    let lost = row["instanceId"].as_str().expect("text");
    let mut sent = story.sent_to();
    assert!(!sent.contains(&lost.to_owned()));
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), 49, "each of the others once");
    // Lifecycle and inventory are read again once, before the first halving.
    assert_eq!(story.count("DescribeAutoScalingInstances"), 1);
    assert_eq!(story.count("DescribeInstanceInformation"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_left_since_the_fleet_was_read_is_skipped_after_the_refusal() {
    let story = Story::of(10);
    let leaves = async {
        while story.count("DescribeInstanceInformation") == 0 && story.elapsed() < 900.0 {
            sleep(Duration::from_millis(10)).await;
        }
        story.world.with(|state| {
            *state.lifecycle(&id(4)) = "Terminating:Wait".to_owned();
            state.host(&id(4)).state = "shutting-down".to_owned();
            // This one does not spoil the command, and must not get it either.
            *state.lifecycle(&id(7)) = "Terminating:Wait".to_owned();
        });
    };
    let (told, ()) = tokio::join!(story.run(), leaves);
    assert_eq!(told.counts(), &json!({"restarted": 8, "skipped": 2}));
    assert!(!story.sent_to().contains(&id(7)));
    assert!(story.silent());
}

#[tokio::test(start_paused = true)]
async fn once_one_command_was_accepted_any_number_of_denials_hides_nobody() {
    let story = Story::of(130).given(|state| {
        for n in 61..=130 {
            state.host(&id(n)).denied = true;
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 60, "unreachable": 70}));
    assert_eq!(told.group()["problem"], json!(null));
    assert!(story.count("SendCommand") > 100);
}

#[tokio::test(start_paused = true)]
async fn a_role_that_may_send_to_none_of_a_few_is_a_problem() {
    let story = Story::of(3).given(|state| {
        for n in 1..=3 {
            state.host(&id(n)).denied = true;
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 3}));
    assert_eq!(told.group()["problem"]["step"], "send");
    assert_eq!(told.group()["problem"]["code"], "AccessDeniedException");
}

#[tokio::test(start_paused = true)]
async fn lifecycle_states_are_asked_for_again_after_60_seconds_and_not_before() {
    // The second command leaves when the first instance is done and a look has shown it.
    for (restart_seconds, asked) in [(1.0, 0), (15.0, 1)] {
        let story = Story::of(2)
            .setting("MAX_CONCURRENCY", "1")
            .given(|state| state.host(&id(1)).agent.restart_seconds = restart_seconds);
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 2}));
        let read = story.times_of("DescribeAutoScalingGroups")[0];
        let age = story.times_of("SendCommand")[1] - read;
        assert_eq!(age > 60.0, asked == 1, "sent {age} s after the states");
        assert!((50.0..75.0).contains(&age), "{age} s");
        assert_eq!(
            story.count("DescribeAutoScalingInstances"),
            asked,
            "{age} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_offline_instance_is_asked_for_again_once_when_nothing_else_is_open() {
    let story = Story::of(3)
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| state.host(&id(3)).ping = "ConnectionLost".to_owned());
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2, "unreachable": 1}));
    let asked = story.times_of("DescribeInstanceInformation");
    assert_eq!(asked.len(), 2, "{asked:?}");
    let ends = story
        .flights()
        .into_iter()
        .filter_map(|flight| flight.ended);
    let done = ends.fold(f64::MIN, f64::max);
    assert!(
        (done..done + 6.0).contains(&asked[1]),
        "asked at {asked:?}, done at {done}"
    );
    assert!(story.told_at() < asked[1] + 1.0, "and told at once");
}

/// The first instance is online, and so are the others from 20 seconds on.
async fn the_others_come_back(story: &Story, others: usize) -> super::support::Told {
    story.world.with(|state| {
        for n in 2..=1 + others {
            state.host(&id(n)).ping = "ConnectionLost".to_owned();
        }
    });
    let back = async {
        sleep(Duration::from_secs(20)).await;
        story.world.with(|state| {
            for n in 2..=1 + others {
                state.host(&id(n)).ping = "Online".to_owned();
            }
        });
    };
    tokio::join!(story.run(), back).0
}

#[tokio::test(start_paused = true)]
async fn those_that_come_back_keep_to_the_window() {
    let story = Story::of(5).setting("MAX_CONCURRENCY", "2");
    let told = the_others_come_back(&story, 4).await;
    assert_eq!(told.counts(), &json!({"restarted": 5}));
    let most = most_at_once(&story.flights());
    assert!(most <= 2, "{most} at the same time");
}

#[tokio::test(start_paused = true)]
async fn those_that_come_back_after_too_many_failures_are_held_back() {
    let story = Story::of(3)
        .setting("MAX_ERRORS", "0")
        .given(|state| state.host(&id(1)).agent.fault = Some(AgentFault::AgentDown));
    let told = the_others_come_back(&story, 2).await;
    assert_eq!(told.counts(), &json!({"failed": 1, "held-back": 2}));
    assert_eq!(story.sent_to(), [id(1)]);
}

#[tokio::test(start_paused = true)]
async fn those_that_come_back_too_late_are_not_sent_to() {
    // Commands may leave until 335 - 45 - 240 = 50 seconds after the start.
    let story = Story::of(3).timeout(335);
    let told = the_others_come_back(&story, 2).await;
    // Just before that they are found back; but the window is full, and there is no time to wait for it.
    assert_eq!(told.counts(), &json!({"held-back": 2, "restarted": 1}));
    let detail = told.attention(&id(2))["detail"].as_str().expect("text");
    assert!(detail.contains("no time left"), "{detail}");
    assert_eq!(story.sent_to(), [id(1)]);
}

#[tokio::test(start_paused = true)]
async fn those_that_come_back_are_not_forgotten_while_something_stays_open() {
    // The first one shows a status that is no end, until the end.
    let story = Story::of(3).given(|state| {
        state.host(&id(1)).answer = Some(sim::Answer {
            status: "Meditating".to_owned(),
            ..sim::Answer::default()
        });
    });
    let told = the_others_come_back(&story, 1).await;
    assert_eq!(told.counts(), &json!({"restarted": 2, "unfinished": 1}));
    // Commands may leave until 900 - 45 - 240 seconds after the start.
    let sent = story.times_of("SendCommand")[1];
    assert!((600.0..615.0).contains(&sent), "{sent} s");
}

#[tokio::test(start_paused = true)]
async fn after_a_denial_an_instance_that_left_since_is_skipped() {
    let story = Story::of(10).given(|state| state.host(&id(4)).denied = true);
    let leaves = async {
        while story.count("DescribeInstanceInformation") == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        story
            .world
            .with(|state| *state.lifecycle(&id(7)) = "Terminating:Wait".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), leaves);
    assert_eq!(
        told.counts(),
        &json!({"restarted": 8, "skipped": 1, "unreachable": 1})
    );
    assert!(!story.sent_to().contains(&id(7)));
}

#[tokio::test(start_paused = true)]
async fn after_a_slow_second_look_it_may_be_too_late_to_send() {
    // Commands may leave until 465 - 45 - 240 = 180 s after the start. The second one's turn comes before
    // that; but reading its lifecycle again takes until after it.
    let story = Story::of(2)
        .timeout(465)
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| {
            state.host(&id(1)).agent.restart_seconds = 140.0;
            state.faults.push(Fault {
                operation: "DescribeAutoScalingInstances".to_owned(),
                // Ten seconds for each attempt, whatever the pauses between them are.
                kind: FaultKind::NoReply,
                times: 4,
                ..Fault::default()
            });
        });
    let told = story.run().await;
    let sent = story.times_of("SendCommand");
    assert!(sent.iter().all(|at| *at <= 180.0), "{sent:?}");
    assert_eq!(told.counts(), &json!({"held-back": 1, "restarted": 1}));
}

#[tokio::test(start_paused = true)]
async fn halves_of_a_refused_command_are_read_again_after_60_seconds_too() {
    // One of 32 cannot be sent to. Finding it takes more than a minute, in which another begins to leave.
    let story = Story::of(32).given(|state| {
        state.latency = 8.0;
        state.host(&id(1)).denied = true;
    });
    let leaves = async {
        while story.count("SendCommand") < 3 {
            sleep(Duration::from_millis(100)).await;
        }
        story
            .world
            .with(|state| *state.lifecycle(&id(32)) = "Terminating:Wait".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), leaves);
    assert!(!story.sent_to().contains(&id(32)), "{:?}", told.counts());
    assert_eq!(told.counts()["skipped"], 1, "{:#}", told.answer);
}

#[tokio::test(start_paused = true)]
async fn once_sending_has_stopped_those_that_are_offline_are_told_as_they_were_seen() {
    // One is offline from the beginning, another goes offline before its command is refused for it; the next
    // command is refused for good, and nobody is asked for again.
    let story = Story::of(3).setting("MAX_CONCURRENCY", "1").given(|state| {
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        // One after the other.
        for code in ["InvalidInstanceId", "InvalidParameters"] {
            state.faults.push(Fault {
                operation: "SendCommand".to_owned(),
                code: Some(code.to_owned()),
                times: 1,
                ..Fault::default()
            });
        }
    });
    let goes_offline = async {
        while story.count("SendCommand") == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        story
            .world
            .with(|state| state.host(&id(2)).ping = "Inactive".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), goes_offline);
    assert_eq!(told.counts(), &json!({"held-back": 1, "unreachable": 2}));
    for (n, ping) in [(1, "ConnectionLost"), (2, "Inactive")] {
        let detail = told.attention(&id(n))["detail"].to_string();
        assert!(detail.contains(ping), "{detail}");
    }
}

/// The inventory's answer came after seven attempts, 77 s after that of Auto Scaling; seed 9012, in which lifecycle states
/// counted from the last answer, and were over a minute old when the command left.
#[tokio::test(start_paused = true)]
async fn lifecycle_states_count_from_their_own_answer_and_not_from_the_inventory_s() {
    let story = Story::of(2).given(|state| {
        let mut refusal = |operation: &str, kind, after, times| {
            state.faults.push(Fault {
                operation: operation.to_owned(),
                code: Some("InvalidInstanceId".to_owned()),
                kind,
                after,
                times,
                ..Fault::default()
            });
        };
        refusal("SendCommand", FaultKind::Error, 0, 1);
        refusal("DescribeInstanceInformation", FaultKind::NoReply, 1, 6);
    });
    let leave = async {
        sleep(Duration::from_secs(60)).await;
        story
            .world
            .with(|state| *state.lifecycle(&id(2)) = "Terminating:Wait".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), leave);
    assert_eq!(told.counts(), &json!({"restarted": 1, "skipped": 1}));
    assert_eq!(story.sent_to(), [id(1)]);
}

#[tokio::test(start_paused = true)]
async fn where_ec2_cannot_be_asked_one_refused_id_holds_nobody_else_back() {
    let story = Story::of(10).given(|state| {
        state.faults.push(sim::Fault {
            operation: "DescribeInstances".to_owned(),
            code: Some("UnauthorizedOperation".to_owned()),
            times: 100,
            ..sim::Fault::default()
        });
    });
    let goes = async {
        while story.count("DescribeInstanceInformation") == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        story.world.with(|state| state.host(&id(4)).managed = false);
    };
    let (told, ()) = tokio::join!(story.run(), goes);
    assert_eq!(told.counts(), &json!({"restarted": 9, "unreachable": 1}));
    assert_eq!(told.group()["problem"]["code"], "UnauthorizedOperation");
}
