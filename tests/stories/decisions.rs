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
async fn whoever_does_not_run_is_skipped_by_ec2_s_word_whatever_systems_manager_and_codedeploy_say()
{
    for state in ["stopping", "stopped", "shutting-down", "terminated"] {
        for (managed, status) in [(false, "Succeeded"), (false, "Skipped"), (true, "Failed")] {
            let story = tagged(2).given(|world| {
                let host = world.host(&id(2));
                state.clone_into(&mut host.state);
                host.managed = managed;
                "ConnectionLost".clone_into(&mut host.ping);
                let target = &mut world.deployment("d-EXAMPLEE5").targets[1];
                status.clone_into(&mut target.status);
            });
            let told = story.run().await;
            let expected = json!({"restarted": 1, "skipped": 1});
            assert_eq!(told.counts(), &expected, "{state} {managed} {status}");
            assert!(story.silent());
            assert_eq!(story.count("DescribeInstances"), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_runs_without_systems_manager_is_told_of_however_old_its_deployment_is() {
    for (state, age) in [
        ("running", 5.0),
        ("pending", 5.0),
        ("running", 200_000.0),
        ("Dreaming", 5.0),
    ] {
        let story = tagged(2).given(|world| {
            let host = world.host(&id(2));
            state.clone_into(&mut host.state);
            host.managed = false;
            let deployment = world.deployment("d-EXAMPLEE5");
            deployment.completed_at = Some(-age);
            deployment.created_at = -age - 60.0;
        });
        let told = story.event(&request(json!({}))).await;
        assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
        let detail = told.attention(&id(2))["detail"].to_string();
        assert!(
            detail.contains("not managed by Systems Manager"),
            "{detail}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_was_scaled_in_is_skipped_and_one_that_runs_on_is_told_of() {
    for (state, outcome) in [("terminated", "skipped"), ("running", "unreachable")] {
        let story = Story::of(2).given(|world| {
            world.region(REGION).auto_scaling_groups[0].instances.pop();
            let gone = world.host(&id(2));
            gone.managed = false;
            state.clone_into(&mut gone.state);
        });
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 1, outcome: 1}));
    }
}

#[tokio::test(start_paused = true)]
async fn what_ec2_has_forgotten_is_gone_an_hour_after_its_deployment_and_not_before() {
    for (age, outcome) in [(3_590.0, "unreachable"), (3_610.0, "skipped")] {
        let story = tagged(1).given(|world| {
            let host = world.host(&id(1));
            host.managed = false;
            host.forgotten = true;
            world.deployment("d-EXAMPLEE5").completed_at = Some(-age);
        });
        let told = story.event(&event("by-hand")).await;
        assert_eq!(told.counts(), &json!({outcome: 1}), "after {age} s");
    }
}

#[tokio::test(start_paused = true)]
async fn without_ec2_s_word_a_host_is_unreachable_and_the_others_go_on() {
    let story = tagged(2).given(|world| {
        let host = world.host(&id(2));
        host.managed = false;
        "stopped".clone_into(&mut host.state);
        world.faults.push(sim::Fault {
            operation: "DescribeInstances".to_owned(),
            code: Some("UnauthorizedOperation".to_owned()),
            times: 100,
            ..sim::Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
    assert_eq!(told.group()["problem"]["code"], "UnauthorizedOperation");
    let remedy = told.group()["problem"]["remedy"].to_string();
    assert!(remedy.contains("ec2:DescribeInstances"), "{remedy}");
}

#[tokio::test(start_paused = true)]
async fn who_registers_or_ends_while_the_others_are_restarted_is_seen() {
    for (state, managed, expected) in [
        ("running", true, json!({"restarted": 2})),
        ("terminated", false, json!({"restarted": 1, "skipped": 1})),
    ] {
        let story = Story::of(2).given(|world| world.host(&id(2)).managed = false);
        let changes = async {
            tokio::time::sleep(std::time::Duration::from_secs(8)).await;
            story.world.with(|world| {
                let host = world.host(&id(2));
                state.clone_into(&mut host.state);
                host.managed = managed;
            });
        };
        let (told, ()) = tokio::join!(story.run(), changes);
        assert_eq!(told.counts(), &expected);
        assert!(story.silent());
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_at_all_is_a_problem_and_not_fine() {
    let no_targets = tagged(1).given(|world| world.deployment("d-EXAMPLEE5").targets.clear());
    let all_blue = tagged(1).given(|world| {
        let deployment = world.deployment("d-EXAMPLEE5");
        deployment.style = "BLUE_GREEN".to_owned();
        deployment.targets[0].label = Some("Blue".to_owned());
    });
    for story in [no_targets, all_blue, Story::of(0)] {
        let told = story.run().await;
        assert_eq!(told.answer["result"], "attention");
        assert_eq!(told.counts(), &json!({}));
        assert_eq!(told.group()["problem"]["code"], "NoTargets");
        assert!(story.body("email").contains("NoTargets"));
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_blue_green_deployment_a_target_without_a_label_is_not_forgotten() {
    let story = tagged(3).given(|world| {
        let deployment = world.deployment("d-EXAMPLEE5");
        deployment.style = "BLUE_GREEN".to_owned();
        deployment.targets[0].label = Some("Blue".to_owned());
        deployment.targets[1].label = Some("Green".to_owned());
        deployment.targets[2].label = None;
    });
    story.run().await;
    assert_eq!(story.sent_to(), [id(2), id(3)]);
}
