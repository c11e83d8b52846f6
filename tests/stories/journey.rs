//! The whole way of a fleet: commands, window, brake, time.

use std::time::Duration;

use serde_json::{Value, json};
use sim::{AgentFault, Fault};
use tokio::time::sleep;

use crate::support::{EVENT_TIME, REGION, Story, id};

fn commands(story: &Story) -> Vec<Value> {
    story
        .world
        .calls()
        .into_iter()
        .filter(|call| call.operation == "SendCommand" && call.status == 200)
        .map(|call| call.params)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_fleet_of_130_is_restarted_by_three_commands() {
    let story = Story::of(130);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 130}));
    let sizes: Vec<usize> = commands(&story)
        .iter()
        .map(|params| params["InstanceIds"].as_array().expect("ids").len())
        .collect();
    assert_eq!(sizes, [50, 50, 30]);
    let mut sent = story.sent_to();
    assert!(sent.is_sorted());
    sent.dedup();
    assert_eq!(sent.len(), 130);
    assert!(story.silent());
}

#[tokio::test(start_paused = true)]
async fn a_command_carries_the_document_s_parameters() {
    let story = Story::of(1)
        .setting("BUSY_WAIT_SECONDS", "30")
        .setting("MIN_MEMORY_MIB", "64");
    story.run().await;
    let command = &commands(&story)[0];
    assert_eq!(command["DocumentName"], "restart-agent");
    assert_eq!(command["DocumentVersion"], "$LATEST");
    assert_eq!(command["TimeoutSeconds"], 120);
    assert_eq!(command["MaxConcurrency"], "100%");
    assert_eq!(command["MaxErrors"], "100%");
    let parameters = &command["Parameters"];
    // The deployment completed five seconds before the event.
    assert_eq!(
        parameters["triggeredAt"],
        json!([format!("{}", EVENT_TIME - 5.0)])
    );
    assert_eq!(parameters["busyWaitSeconds"], json!(["30"]));
    assert_eq!(parameters["minMemoryMiB"], json!(["64"]));
    assert_eq!(parameters["executionTimeoutSeconds"], json!(["390"]));
    let sent_at: f64 = parameters["sentAt"][0]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("epoch seconds");
    assert!((EVENT_TIME..EVENT_TIME + 10.0).contains(&sent_at));
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
async fn half_of_the_fleet_at_a_time_takes_two_rounds() {
    let story = Story::of(10).setting("MAX_CONCURRENCY", "50%");
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 10}));
    let sizes: Vec<usize> = commands(&story)
        .iter()
        .map(|params| params["InstanceIds"].as_array().expect("ids").len())
        .collect();
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
async fn one_command_s_missing_answer_does_not_hide_the_other_s() {
    // Two commands are looked at in turn. Wherever the answers stop, in one of these runs it is between
    // the look that shows the ends of one command's instances and the look at the other's.
    let mut seen = Vec::new();
    for answered in 10..30 {
        let story = Story::of(60).given(|state| {
            state.faults.push(Fault {
                operation: "ListCommandInvocations".to_owned(),
                code: Some("AccessDeniedException".to_owned()),
                after: answered,
                times: 1_000,
                ..Fault::default()
            });
        });
        seen.push(story.run().await.counts().clone());
    }
    let either = [(50, 10), (10, 50)].map(|(a, b)| json!({"restarted": a, "unfinished": b}));
    assert!(either.iter().any(|one| seen.contains(one)), "{seen:#?}");
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

#[tokio::test(start_paused = true)]
async fn calls_of_systems_manager_are_paced() {
    let story = Story::of(400);
    story.run().await;
    let at: Vec<f64> = story
        .world
        .calls()
        .iter()
        .filter(|call| call.service == "ssm")
        .map(|call| call.at)
        .collect();
    let fastest = at
        .windows(6)
        .map(|six| six[5] - six[0])
        .fold(f64::MAX, f64::min);
    assert!(fastest > 0.9, "six calls within {fastest} s");
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_down_leaves_the_other_groups_alone() {
    let story = Story::of(2).given(|state| {
        let actions = &mut state.region(REGION).pipelines[0].executions[0].actions;
        for n in 0..8 {
            actions.push(sim::Action {
                action: format!("Deploy{n}"),
                region: Some("eu-west-1".to_owned()),
                deployment_group: Some(format!("group-{n}")),
                deployment_id: Some(format!("d-FAR00000{n}")),
                ..actions[0].clone()
            });
        }
        state.faults.push(Fault {
            operation: "GetDeployment".to_owned(),
            region: Some("eu-west-1".to_owned()),
            code: Some("InternalFailure".to_owned()),
            status: Some(500),
            times: 1_000,
            ..Fault::default()
        });
        // The report needs one retry too.
        state.faults.push(Fault {
            operation: "Publish".to_owned(),
            code: Some("InternalFailure".to_owned()),
            status: Some(500),
            ..Fault::default()
        });
    });
    let told = story.run().await;
    let groups = told.answer["groups"].as_array().expect("a list");
    assert_eq!(groups.len(), 9);
    assert_eq!(groups[8]["counts"], json!({"restarted": 2}));
    assert!(
        groups[..8]
            .iter()
            .all(|group| group["problem"]["code"] == "InternalFailure")
    );
    assert_eq!(told.answer["notified"], true);
}

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
async fn an_id_that_spoils_its_command_is_split_off() {
    // It goes away between the inventory and the command.
    let story = Story::of(50);
    let goes_away = async {
        while story.count("DescribeInstanceInformation") == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        story
            .world
            .with(|state| state.host(&id(33)).state = "shutting-down".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), goes_away);
    assert_eq!(told.counts(), &json!({"restarted": 49, "unreachable": 1}));
    let detail = told.attention(&id(33))["detail"].to_string();
    assert!(detail.contains("not managed"), "{detail}");
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

/// A second group of the same event, with a deployment of its own to instances 2 and 3.
fn with_second_group(story: Story, completed_at: f64) -> Story {
    story.given(|state| {
        let mut second = state.deployment("d-EXAMPLEE5").clone();
        second.id = "d-SECOND001".to_owned();
        second.deployment_group = "second".to_owned();
        second.completed_at = Some(completed_at);
        second.targets.remove(0);
        let region = state.region(REGION);
        region.deployments.push(second);
        region.deployment_groups.push(sim::DeploymentGroup {
            application: sim::APPLICATION.to_owned(),
            name: "second".to_owned(),
            tag_filters: vec![sim::TagFilter {
                key: "app".to_owned(),
                value: "shop".to_owned(),
            }],
            ..sim::DeploymentGroup::default()
        });
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(sim::Action {
            action: "DeploySecond".to_owned(),
            deployment_group: Some("second".to_owned()),
            deployment_id: Some("d-SECOND001".to_owned()),
            ..actions[0].clone()
        });
    })
}

#[tokio::test(start_paused = true)]
async fn an_instance_in_two_groups_is_sent_to_once_and_counted_in_both() {
    for (completed_at, by_second) in [(-1.0, true), (-60.0, false)] {
        let story = with_second_group(Story::of(3), completed_at).given(|state| {
            state.host(&id(3)).agent.fault = Some(AgentFault::AgentDown);
        });
        let told = story.run().await;
        let groups = &told.answer["groups"];
        assert_eq!(groups[0]["counts"], json!({"failed": 1, "restarted": 2}));
        assert_eq!(groups[1]["counts"], json!({"failed": 1, "restarted": 1}));
        assert_eq!(groups[0]["attention"], groups[1]["attention"]);
        let mut sizes: Vec<usize> = commands(&story)
            .iter()
            .map(|params| params["InstanceIds"].as_array().expect("ids").len())
            .collect();
        sizes.sort_unstable();
        // The group whose deployment ended last restarts the shared ones.
        assert_eq!(sizes, if by_second { vec![1, 2] } else { vec![3] });
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_left_alone_while_a_deployment_of_any_of_its_groups_runs() {
    let story = with_second_group(Story::of(3), -1.0).given(|state| {
        let mut other = state.deployment("d-SECOND001").clone();
        other.id = "d-RUNNING01".to_owned();
        other.status = "InProgress".to_owned();
        other.completed_at = None;
        state.region(REGION).deployments.push(other);
    });
    let told = story.run().await;
    assert_eq!(
        told.answer["groups"][0]["counts"],
        json!({"busy": 2, "restarted": 1})
    );
    assert_eq!(told.answer["groups"][1]["counts"], json!({"busy": 2}));
    assert_eq!(story.sent_to(), [id(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_is_a_problem_with_its_remedy() {
    for (operation, code, step, held_back) in [
        (
            "ListActionExecutions",
            "AccessDeniedException",
            "deployments",
            0,
        ),
        ("GetDeployment", "AccessDeniedException", "deployments", 0),
        ("ListDeployments", "AccessDeniedException", "quiet", 0),
        ("GetDeploymentGroup", "AccessDeniedException", "fleet", 0),
        ("ListDeploymentTargets", "AccessDeniedException", "fleet", 0),
        ("DescribeAutoScalingGroups", "AccessDenied", "fleet", 0),
        (
            "DescribeInstanceInformation",
            "AccessDeniedException",
            "fleet",
            0,
        ),
        ("SendCommand", "AccessDeniedException", "send", 3),
    ] {
        let story = Story::of(3).given(|state| {
            state.faults.push(Fault {
                operation: operation.to_owned(),
                code: Some(code.to_owned()),
                times: 100,
                ..Fault::default()
            });
        });
        let told = story.run().await;
        let problem = match told.answer.get("problem") {
            Some(problem) => problem,
            None => &told.group()["problem"],
        };
        assert_eq!(problem["code"], code, "{operation}: {:#}", told.answer);
        assert_eq!(problem["step"], step, "{operation}");
        let remedy = problem["remedy"].as_str().expect("text");
        assert!(remedy.contains(&format!(":{operation}")), "{remedy}");
        assert_eq!(told.answer["result"], "attention", "{operation}");
        assert!(story.body("email").contains(remedy), "{operation}");
        assert!(story.sent_to().is_empty(), "{operation}");
        if held_back > 0 {
            assert_eq!(told.counts(), &json!({"held-back": held_back}));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn polls_that_are_refused_leave_the_sent_ones_unfinished() {
    let story = Story::of(2).given(|state| {
        state.faults.push(Fault {
            operation: "ListCommandInvocations".to_owned(),
            code: Some("AccessDeniedException".to_owned()),
            times: 100,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"unfinished": 2}));
    assert_eq!(told.group()["problem"]["step"], "poll");
}

#[tokio::test(start_paused = true)]
async fn throttling_is_waited_out() {
    let story = Story::of(60).given(|state| {
        for operation in [
            "ListActionExecutions",
            "GetDeployment",
            "DescribeInstanceInformation",
            "SendCommand",
            "ListCommandInvocations",
        ] {
            state.faults.push(Fault {
                operation: operation.to_owned(),
                times: 3,
                ..Fault::default()
            });
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 60}));
    assert!(story.silent());
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
async fn a_host_s_wrong_clock_changes_nothing() {
    let story = Story::of(2).given(|state| {
        state.host(&id(1)).clock_skew = 86_400.0;
        state.host(&id(2)).clock_skew = -86_400.0;
    });
    assert_eq!(story.run().await.counts(), &json!({"restarted": 2}));
    assert_eq!(story.run().await.counts(), &json!({"already-restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_report_that_cannot_be_published_fails_the_invocation() {
    let story = Story::of(1).given(|state| {
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        state.topics.clear();
    });
    let error = story
        .try_event(&crate::support::event("pipeline-succeeded"))
        .await
        .expect_err("nobody was told");
    assert!(error.starts_with("PublishFailed: "), "{error}");
    assert!(error.contains("NotFound"), "{error}");
    assert!(error.contains(sim::TOPIC), "{error}");
}

#[tokio::test(start_paused = true)]
async fn every_page_of_every_list_is_read() {
    let story = Story::of(7).given(|state| {
        // AWS may give fewer items than asked for: here it gives one, or two where nobody asks.
        state.page_shortfall = 99;
        state.page_sizes = sim::PageSizes {
            deployments: 2,
            deployment_targets: 2,
            auto_scaling_instances: 1,
            ..sim::PageSizes::default()
        };
        let region = state.region(REGION);
        // The CodeDeploy action stands on the last page.
        let actions = &mut region.pipelines[0].executions[0].actions;
        for n in 0..4 {
            actions.push(sim::Action {
                action: format!("Build{n}"),
                category: "Build".to_owned(),
                provider: "CodeBuild".to_owned(),
                ..sim::Action::default()
            });
        }
        // Members stand in groups of one or two, the targets six and seven in none.
        let members = region.auto_scaling_groups.remove(0).instances;
        for (n, members) in members[..5].chunks(2).enumerate() {
            let name = format!("web-{n}");
            region.auto_scaling_groups.push(sim::AutoScalingGroup {
                name: name.clone(),
                instances: members.to_vec(),
            });
            region.deployment_groups[0].auto_scaling_groups.push(name);
        }
        region.deployment_groups[0].auto_scaling_groups.remove(0);
        region.auto_scaling_groups.push(sim::AutoScalingGroup {
            name: "another".to_owned(),
            instances: members[5..].to_vec(),
        });
        // Running deployments, all made by Auto Scaling: they do not count.
        for n in 0..3 {
            region.deployments.push(sim::Deployment {
                id: format!("d-LAUNCH00{n}"),
                application: sim::APPLICATION.to_owned(),
                deployment_group: sim::DEPLOYMENT_GROUP.to_owned(),
                status: "InProgress".to_owned(),
                creator: "autoscaling".to_owned(),
                ..sim::Deployment::default()
            });
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 7}));
    for operation in [
        "ListActionExecutions",
        "ListDeployments",
        "ListDeploymentTargets",
        "DescribeAutoScalingGroups",
        "DescribeAutoScalingInstances",
        "DescribeInstanceInformation",
    ] {
        assert!(story.count(operation) > 1, "{operation} has pages");
    }
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
async fn no_more_calls_are_made_than_can_answer() {
    for instances in [1, 50, 130, 1_000] {
        let story = Story::of(instances).given(|state| {
            // Pages as large as AWS gives them.
            state.page_sizes.deployment_targets = 100;
        });
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": instances}));
        let batches = instances.div_ceil(50);
        let calls = story.calls();
        let polls = calls["ListCommandInvocations"];
        let mut expected = std::collections::BTreeMap::from([
            ("ListActionExecutions".to_owned(), 1),
            ("GetDeployment".to_owned(), 1),
            ("GetDeploymentGroup".to_owned(), 1),
            ("ListDeployments".to_owned(), 1),
            ("ListDeploymentTargets".to_owned(), instances.div_ceil(100)),
            ("DescribeAutoScalingGroups".to_owned(), 1),
            ("DescribeInstanceInformation".to_owned(), batches),
            ("SendCommand".to_owned(), batches),
        ]);
        expected.insert("ListCommandInvocations".to_owned(), polls);
        assert_eq!(calls, expected, "{instances} instances");
        // One look at each command every five seconds or more.
        let seconds = story.world.now() - EVENT_TIME;
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let most = (seconds / 5.0).ceil() * batches as f64;
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let polls = polls as f64;
        assert!(
            polls <= most,
            "{polls} looks in {seconds} s for {instances}"
        );
    }
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
    assert!((90.0..150.0).contains(&seconds), "{seconds} s");
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
    let seconds = story.world.now() - EVENT_TIME;
    assert!(seconds < 855.0, "{seconds} s");
    assert!(seconds > 500.0, "{seconds} s: a bad day takes its time");
    assert_eq!(told.answer["notified"], true);
}
