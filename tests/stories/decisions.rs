//! Which instances are restarted, and why not.

use serde_json::json;
use sim::{Host, Target};

use super::support::{REGION, Story, event, id, request};

/// A group that selects by tags, with `n` targets and no Auto Scaling group.
pub fn tagged(n: usize) -> Story {
    Story::of(n).given(|state| {
        let region = state.region(REGION);
        region.deployment_groups[0].auto_scaling_groups.clear();
        region.deployment_groups[0].tag_filters = vec![sim::TagFilter {
            key: "app".to_owned(),
            value: "shop".to_owned(),
        }];
        region.auto_scaling_groups.clear();
    })
}

#[tokio::test(start_paused = true)]
async fn every_lifecycle_state_has_its_decision() {
    let restarted = ["InService", "Standby", "EnteringStandby", "Detached"];
    let skipped = [
        "Pending",
        "Pending:Wait",
        "Pending:Proceed",
        "Quarantined",
        "Terminating",
        "Terminating:Wait",
        "Terminating:Proceed",
        "Terminating:Retained",
        "Terminated",
        "Detaching",
        "ReplacingRootVolume",
        "ReplacingRootVolume:Wait",
        "ReplacingRootVolume:Proceed",
        "RootVolumeReplaced",
        "Warmed:Pending",
        "Warmed:Pending:Wait",
        "Warmed:Pending:Proceed",
        "Warmed:Pending:Retained",
        "Warmed:Terminating",
        "Warmed:Terminating:Wait",
        "Warmed:Terminating:Proceed",
        "Warmed:Terminating:Retained",
        "Warmed:Terminated",
        "Warmed:Stopped",
        "Warmed:Running",
        "Warmed:Hibernated",
    ];
    let states = restarted
        .iter()
        .map(|state| (state, "restarted"))
        .chain(skipped.iter().map(|state| (state, "skipped")));
    for (state, outcome) in states {
        let story = Story::of(1).given(|world| *world.lifecycle(&id(1)) = (*state).to_owned());
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({outcome: 1}), "{state}");
        assert_eq!(
            story.sent_to().len(),
            usize::from(outcome == "restarted"),
            "{state}"
        );
        assert!(story.silent(), "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_lifecycle_state_is_shown_and_not_touched() {
    let story = Story::of(1).given(|state| *state.lifecycle(&id(1)) = "Napping".to_owned());
    let told = story.run().await;
    let row = told.attention(&id(1));
    assert_eq!(row["outcome"], "held-back");
    assert!(row["detail"].as_str().expect("text").contains("Napping"));
    assert!(story.sent_to().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_tagged_instance_that_an_auto_scaling_group_is_launching_is_left_alone() {
    // It is found by its tag, not as a member: its lifecycle must be asked for all the same.
    let story = tagged(1).given(|state| {
        state
            .region(REGION)
            .auto_scaling_groups
            .push(sim::AutoScalingGroup {
                name: "another".to_owned(),
                instances: vec![sim::Member {
                    id: id(1),
                    lifecycle: "Pending:Wait".to_owned(),
                }],
            });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"skipped": 1}));
    assert!(story.sent_to().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_member_that_launched_after_the_deployment_is_restarted_too() {
    let story = Story::of(3).given(|state| {
        state.deployment("d-EXAMPLEE5").targets.truncate(2);
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 3}));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_systems_manager_lost_is_unreachable_since_then() {
    for ping in ["ConnectionLost", "Inactive", "Dreaming"] {
        let story = Story::of(2).given(|state| {
            let host = state.host(&id(2));
            host.ping = ping.to_owned();
            host.last_ping = -3_600.0;
        });
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
        let detail = told.attention(&id(2))["detail"].to_string();
        assert!(detail.contains(ping), "{detail}");
        assert!(detail.contains("since 2026-02-17T08:14:05Z"), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_systems_manager_does_not_manage_is_unreachable() {
    let story = Story::of(2).given(|state| state.host(&id(2)).managed = false);
    let told = story.run().await;
    let detail = told.attention(&id(2))["detail"].to_string();
    assert!(
        detail.contains("not managed by Systems Manager"),
        "{detail}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_target_that_was_scaled_in_is_skipped() {
    let story = Story::of(2).given(|state| {
        let region = state.region(REGION);
        region.auto_scaling_groups[0].instances.pop();
        let gone = state.host(&id(2));
        gone.managed = false;
        gone.state = "terminated".to_owned();
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "skipped": 1}));
    assert!(story.silent());
    // Without tag filters a target that is no member can only have been scaled in.
    assert_eq!(story.count("BatchGetDeploymentTargets"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tagged_instance_that_was_stopped_during_the_deployment_is_skipped() {
    for untouched in [
        Target {
            status: "Skipped".to_owned(),
            lifecycle_started: true,
            ..Target::default()
        },
        Target {
            status: "Pending".to_owned(),
            lifecycle_started: false,
            ..Target::default()
        },
        Target {
            status: "Failed".to_owned(),
            lifecycle_started: false,
            ..Target::default()
        },
    ] {
        let story = tagged(2).given(|state| {
            let stopped = state.host(&id(2));
            stopped.managed = false;
            stopped.state = "stopped".to_owned();
            state.deployment("d-EXAMPLEE5").targets[1] = Target {
                id: id(2),
                ..untouched.clone()
            };
        });
        let told = story.run().await;
        assert_eq!(
            told.counts(),
            &json!({"restarted": 1, "skipped": 1}),
            "{untouched:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_tagged_instance_that_was_deployed_to_and_is_not_managed_is_unreachable() {
    let story = tagged(2).given(|state| state.host(&id(2)).managed = false);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
}

#[tokio::test(start_paused = true)]
async fn by_hand_an_instance_of_an_old_deployment_that_is_gone_is_skipped() {
    let story = tagged(2).given(|state| {
        state.host(&id(2)).managed = false;
        state.deployment("d-EXAMPLEE5").completed_at = Some(-90_000.0);
    });
    let told = story.event(&event("by-hand")).await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "skipped": 1}));
}

#[tokio::test(start_paused = true)]
async fn an_on_premises_target_is_unreachable_by_its_name() {
    let story = tagged(1).given(|state| {
        state.deployment("d-EXAMPLEE5").targets.push(Target {
            id: "rack-7".to_owned(),
            ..Target::default()
        });
    });
    let told = story.run().await;
    let detail = told.attention("rack-7")["detail"].to_string();
    assert!(detail.contains("on-premises"), "{detail}");
    assert_eq!(story.sent_to(), [id(1)]);
}

#[tokio::test(start_paused = true)]
async fn of_a_blue_green_deployment_only_the_green_instances_are_restarted() {
    let story = tagged(2).given(|state| {
        state.region(REGION).deployment_groups[0].style = "BLUE_GREEN".to_owned();
        let deployment = state.deployment("d-EXAMPLEE5");
        deployment.style = "BLUE_GREEN".to_owned();
        deployment.targets[0].label = Some("Blue".to_owned());
        deployment.targets[1].label = Some("Green".to_owned());
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
    assert_eq!(story.sent_to(), [id(2)]);
}

#[tokio::test(start_paused = true)]
async fn an_auto_scaling_group_that_is_gone_is_told_and_the_rest_goes_on() {
    let story = Story::of(2).given(|state| {
        state.region(REGION).deployment_groups[0]
            .auto_scaling_groups
            .push("demolished".to_owned());
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert_eq!(told.answer["result"], "attention");
    let problem = told.group()["problem"].to_string();
    assert!(problem.contains("demolished"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn an_id_that_the_inventory_rejects_does_not_hide_the_others() {
    let story = tagged(60).given(|state| {
        let gone = state.host(&id(17));
        gone.rejected = true;
        gone.managed = false;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 59, "unreachable": 1}));
    assert_eq!(told.attention(&id(17))["outcome"], "unreachable");
}

#[tokio::test(start_paused = true)]
async fn a_group_without_instances_is_fine() {
    let told = Story::of(0).run().await;
    assert_eq!(told.answer["result"], "ok");
    assert_eq!(told.counts(), &json!({}));
}

#[tokio::test(start_paused = true)]
async fn only_by_hand_and_after_a_day_is_a_missing_instance_taken_for_gone() {
    let missing = |completed_at: f64| {
        tagged(1).given(|state| {
            state.host(&id(1)).managed = false;
            state.deployment("d-EXAMPLEE5").completed_at = Some(completed_at);
        })
    };
    let story = missing(-86_000.0);
    let told = story.event(&event("by-hand")).await;
    assert_eq!(told.counts(), &json!({"unreachable": 1}), "not a day yet");
    let story = missing(-90_000.0);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"unreachable": 1}), "not by hand");
}

#[tokio::test(start_paused = true)]
async fn without_the_answer_about_one_instance_the_others_go_on() {
    let story = tagged(2).given(|state| {
        state.host(&id(2)).managed = false;
        state.faults.push(sim::Fault {
            operation: "BatchGetDeploymentTargets".to_owned(),
            code: Some("AccessDeniedException".to_owned()),
            times: 100,
            ..sim::Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
    assert_eq!(told.group()["problem"]["code"], "AccessDeniedException");
}

#[tokio::test(start_paused = true)]
async fn reached_by_one_of_two_deployments_is_reached() {
    let story = tagged(1).given(|state| {
        state.host(&id(1)).managed = false;
        let mut second = state.deployment("d-EXAMPLEE5").clone();
        second.id = "d-SECOND001".to_owned();
        second.targets[0].status = "Skipped".to_owned();
        let region = state.region(REGION);
        region.deployments.push(second);
        let actions = &mut region.pipelines[0].executions[0].actions;
        actions.push(sim::Action {
            action: "Again".to_owned(),
            deployment_id: Some("d-SECOND001".to_owned()),
            ..actions[0].clone()
        });
    });
    assert_eq!(story.run().await.counts(), &json!({"unreachable": 1}));
}

#[tokio::test(start_paused = true)]
async fn names_are_systems_manager_s_else_the_computer_s() {
    let story = Story::of(2).given(|state| {
        for n in 1..=2 {
            let host: &mut Host = state.host(&id(n));
            host.ping = "ConnectionLost".to_owned();
            host.computer_name = format!("computer-{n}");
        }
        state.host(&id(1)).name = Some("web-1".to_owned());
    });
    let told = story.event(&request(json!({}))).await;
    assert_eq!(told.attention(&id(1))["name"], "web-1");
    assert_eq!(told.attention(&id(2))["name"], "computer-2");
}

#[tokio::test(start_paused = true)]
async fn a_missing_instance_counts_as_gone_24_hours_after_its_deployment() {
    for (age, outcome) in [(86_390.0, "unreachable"), (86_410.0, "skipped")] {
        let story = tagged(1).given(|state| {
            state.host(&id(1)).managed = false;
            state.deployment("d-EXAMPLEE5").completed_at = Some(-age);
        });
        let told = story.event(&event("by-hand")).await;
        assert_eq!(told.counts(), &json!({outcome: 1}), "after {age} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_looks_like_an_instance_s_is_on_premises_and_spoils_no_call() {
    for name in [
        "i-web",
        "i-0123456789abcdefg",
        "i-0123456z",
        "mi-0123456789abcdef0",
        "web-1",
    ] {
        let story = tagged(1).given(|state| {
            state.deployment("d-EXAMPLEE5").targets.push(Target {
                id: name.to_owned(),
                ..Target::default()
            });
        });
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
        let detail = told.attention(name)["detail"].to_string();
        assert!(detail.contains("on-premises"), "{name}: {detail}");
        assert_eq!(told.group()["problem"], json!(null), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_detached_instance_that_systems_manager_does_not_know_is_no_member() {
    let story = Story::of(1).given(|state| {
        *state.lifecycle(&id(1)) = "Detached".to_owned();
        state.host(&id(1)).managed = false;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"skipped": 1}));
}
