//! An event of several deployment groups.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::json;
use sim::{
    Action, AgentFault, Deployment, DeploymentGroup, Fault, FaultKind, Host, Member, Target,
};
use tokio::time::sleep;

use super::support::{REGION, Story, id, most_at_once};

/// A second group of the same event, `shop/back`, which deployed to instances of its own in that region.
pub fn with_separate_group(story: Story, region: &str, instances: RangeInclusive<usize>) -> Story {
    with_group_of_shop(story, "back", region, instances)
}

/// A group of the application `shop`, whose name has four letters.
pub fn with_group_of_shop(
    story: Story,
    name: &str,
    region: &str,
    instances: RangeInclusive<usize>,
) -> Story {
    let deployment = format!("d-{}00001", name.to_uppercase());
    story.given(|state| {
        let there = state.region(region);
        there.deployment_groups.push(DeploymentGroup {
            application: "shop".to_owned(),
            name: name.to_owned(),
            tag_filters: vec![sim::TagFilter {
                key: "app".to_owned(),
                value: "shop".to_owned(),
            }],
            ..DeploymentGroup::default()
        });
        there.deployments.push(Deployment {
            id: deployment.clone(),
            application: "shop".to_owned(),
            deployment_group: name.to_owned(),
            completed_at: Some(-4.0),
            targets: instances
                .clone()
                .map(|n| Target {
                    id: id(n),
                    ..Target::default()
                })
                .collect(),
            ..Deployment::default()
        });
        there.hosts.extend(instances.map(|n| Host {
            id: id(n),
            ..Host::default()
        }));
        if there.documents.is_empty() {
            there.documents = sim::documents();
        }
        let actions = &mut state.region(REGION).pipelines[0].executions[0].actions;
        actions.push(Action {
            action: format!("Deploy-{name}"),
            region: Some(region.to_owned()),
            application: Some("shop".to_owned()),
            deployment_group: Some(name.to_owned()),
            deployment_id: Some(deployment),
            ..actions[0].clone()
        });
    })
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
async fn groups_that_share_instances_follow_each_other_and_restart_each_agent_once() {
    for completed_at in [-1.0, -60.0] {
        let story = with_second_group(Story::of(3), completed_at);
        let told = story.run().await;
        let groups = &told.answer["groups"];
        assert_eq!(groups[0]["counts"], json!({"restarted": 3}));
        assert_eq!(groups[1]["counts"], json!({"already-restarted": 2}));
        assert!(story.silent());
        let flights = story.flights();
        let (first, second) = flights.split_at(3);
        let ended = first.iter().filter_map(|flight| flight.ended);
        let last = ended.fold(f64::MIN, f64::max);
        assert!(second.iter().all(|flight| flight.sent > last));
        story.world.with(|state| {
            for n in 1..=3 {
                assert_eq!(state.host(&id(n)).agent.restarts.len(), 1, "{}", id(n));
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_shared_instance_is_told_by_each_of_its_groups_in_a_message_of_its_own() {
    for (change, first, second) in [
        (
            (|host| host.ping = "ConnectionLost".to_owned()) as fn(&mut Host),
            "unreachable",
            "unreachable",
        ),
        (|host| host.offline = true, "undelivered", "undelivered"),
        (
            |host| host.agent.busy = vec![[0.0, 5_000.0]],
            "busy",
            "busy",
        ),
        (
            |host| host.agent.fault = Some(AgentFault::AgentUnhealthy),
            "failed",
            "failed",
        ),
        (
            |host| host.agent.running = false,
            "started",
            "already-restarted",
        ),
    ] {
        let story = with_second_group(Story::of(3), -3.0).given(|state| change(state.host(&id(3))));
        let told = story.run().await;
        let groups = &told.answer["groups"];
        assert_eq!(groups[0]["counts"][first], 1, "{groups:#}");
        let fine = second == "already-restarted";
        let others = json!({second: 1 + i32::from(fine), "already-restarted": 1 + i32::from(fine)});
        assert_eq!(groups[1]["counts"], others, "{groups:#}");
        let messages = story.world.messages();
        let of_groups: Vec<_> = messages
            .iter()
            .map(|message| message.attributes["deploymentGroup"]["Value"].clone())
            .collect();
        match first {
            "started" => assert!(of_groups.is_empty()),
            _ => assert_eq!(of_groups, [sim::DEPLOYMENT_GROUP, "second"]),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_of_one_group_makes_only_that_group_busy_and_its_hosts_wait_by_themselves() {
    let story = with_second_group(Story::of(3), -1.0).given(|state| {
        let mut other = state.deployment("d-SECOND001").clone();
        other.id = "d-RUNNING01".to_owned();
        other.status = "InProgress".to_owned();
        other.completed_at = None;
        state.region(REGION).deployments.push(other);
        // Its lifecycle event on a host of both groups.
        state.host(&id(3)).agent.busy = vec![[0.0, 70.0]];
    });
    let told = story.run().await;
    let groups = &told.answer["groups"];
    assert_eq!(groups[0]["counts"], json!({"restarted": 3}));
    assert_eq!(groups[1]["counts"], json!({"busy": 2}));
    let restarted = story
        .world
        .with(|state| state.host(&id(3)).agent.restarts[0]);
    assert!(restarted > 70.0, "{restarted} s");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_had_to_wait_for_another_asks_anew_whether_a_deployment_of_it_runs() {
    let story = with_second_group(Story::of(3), -1.0).given(|state| {
        let mut other = state.deployment("d-SECOND001").clone();
        other.id = "d-RUNNING01".to_owned();
        other.created_at = 20.0;
        other.completed_at = Some(2_000.0);
        state.region(REGION).deployments.push(other);
    });
    let told = story.run().await;
    let groups = &told.answer["groups"];
    assert_eq!(groups[0]["counts"], json!({"restarted": 3}));
    assert_eq!(groups[1]["counts"], json!({"busy": 2}));
    assert_eq!(story.sent_to().len(), 3);
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
    for group in &groups[..8] {
        // The pauses between eight attempts are drawn, and may take longer than there is.
        let code = group["problem"]["code"].as_str().expect("text");
        assert!(["InternalFailure", "Timeout"].contains(&code), "{code}");
    }
    assert_eq!(told.answer["notified"], true);
}

#[tokio::test(start_paused = true)]
async fn two_actions_on_two_groups_in_two_regions_are_two_groups() {
    let story = Story::of(2).given(|state| {
        let away = id(900);
        let region = state.region("eu-west-1");
        region.deployment_groups.push(DeploymentGroup {
            application: "shop".to_owned(),
            name: "back".to_owned(),
            ..DeploymentGroup::default()
        });
        region.deployment_groups[0].tag_filters = vec![sim::TagFilter {
            key: "app".to_owned(),
            value: "shop".to_owned(),
        }];
        region.deployments.push(Deployment {
            id: "d-BACK00001".to_owned(),
            application: "shop".to_owned(),
            deployment_group: "back".to_owned(),
            completed_at: Some(-4.0),
            targets: vec![Target {
                id: away.clone(),
                ..Target::default()
            }],
            ..Deployment::default()
        });
        region.hosts.push(Host {
            id: away,
            ..Host::default()
        });
        region.documents = sim::documents();
        let actions = &mut state.region(REGION).pipelines[0].executions[0].actions;
        actions.push(Action {
            action: "DeployBack".to_owned(),
            region: Some("eu-west-1".to_owned()),
            application: Some("shop".to_owned()),
            deployment_group: Some("back".to_owned()),
            deployment_id: Some("d-BACK00001".to_owned()),
            ..actions[0].clone()
        });
    });
    let told = story.run().await;
    let groups = told.answer["groups"].as_array().expect("a list");
    let seen: Vec<_> = groups
        .iter()
        .map(|group| (&group["region"], &group["application"], &group["counts"]))
        .collect();
    assert_eq!(
        seen,
        [
            (
                &json!("eu-west-1"),
                &json!("shop"),
                &json!({"restarted": 1})
            ),
            (
                &json!("us-east-1"),
                &json!("my-application"),
                &json!({"restarted": 2})
            ),
        ]
    );
    assert_eq!(told.metrics.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn groups_are_restarted_at_the_same_time_each_with_a_window_of_its_own() {
    for region in [REGION, "eu-west-1"] {
        let story =
            with_separate_group(Story::of(3), region, 11..=13).setting("MAX_CONCURRENCY", "1");
        let told = story.run().await;
        for group in told.answer["groups"].as_array().expect("a list") {
            assert_eq!(group["counts"], json!({"restarted": 3}), "{region}");
        }
        let mut flights = story.flights();
        if region != REGION {
            flights.extend(story.flights_in(region));
        }
        let (back, front): (Vec<_>, Vec<_>) = flights
            .into_iter()
            .partition(|flight| flight.instance >= id(11));
        for group in [&front, &back] {
            assert_eq!(group.len(), 3);
            assert_eq!(most_at_once(group), 1);
        }
        // Round by round they go side by side.
        for (one, other) in front.iter().zip(&back) {
            let apart = (one.sent - other.sent).abs();
            assert!(apart < 2.0, "{region}: {apart} s apart");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_s_failures_hold_no_other_group_back() {
    let story = with_separate_group(Story::of(4), REGION, 11..=14)
        .setting("MAX_CONCURRENCY", "1")
        .setting("MAX_ERRORS", "0")
        .given(|state| {
            state.host(&id(1)).agent.fault = Some(AgentFault::ServiceManagerFailed);
        });
    let told = story.run().await;
    let groups = &told.answer["groups"];
    assert_eq!(groups[0]["counts"], json!({"failed": 1, "held-back": 3}));
    assert_eq!(groups[1]["counts"], json!({"restarted": 4}));
    // Nobody is woken for the other one.
    let mail = story.body("email");
    assert!(!mail.contains("shop/back"), "{mail}");
    assert!(mail.contains(&id(1)), "{mail}");
}

#[tokio::test(start_paused = true)]
async fn a_region_without_the_document_leaves_the_other_groups_alone() {
    let story = with_separate_group(Story::of(2), "eu-west-1", 11..=12)
        .given(|state| state.region("eu-west-1").documents.clear());
    let told = story.run().await;
    let groups = &told.answer["groups"];
    assert_eq!(groups[0]["region"], "eu-west-1");
    assert_eq!(groups[0]["counts"], json!({"held-back": 2}));
    assert_eq!(groups[0]["problem"]["code"], "InvalidDocument");
    let remedy = groups[0]["problem"]["remedy"].to_string();
    assert!(remedy.contains(sim::DOCUMENT), "{remedy}");
    assert_eq!(groups[1]["counts"], json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_begins_while_a_sister_group_waits_is_not_met_by_a_restart() {
    let story = with_separate_group(Story::of(2), REGION, 11..=12).given(|state| {
        let mut sister_s = state.deployment("d-BACK00001").clone();
        sister_s.id = "d-RUNNING01".to_owned();
        sister_s.completed_at = Some(95.0);
        let mut ours = state.deployment("d-EXAMPLEE5").clone();
        ours.id = "d-RUNNING02".to_owned();
        ours.created_at = 30.0;
        ours.completed_at = Some(2_000.0);
        state.region(REGION).deployments.extend([sister_s, ours]);
    });
    story.run().await;
    for flight in story.flights().iter().filter(|f| f.instance < id(11)) {
        assert!(
            flight.sent < 30.0,
            "sent after {} s, while another deployment of the group runs",
            flight.sent
        );
    }
}

/// Calls of Systems Manager take turns, some at a time in a region. Where these hung, another group's command waited for its
/// turn with lifecycle states that were fresh when it began to wait: seed 509576, in which they were 66 s old in the end.
#[tokio::test(start_paused = true)]
async fn who_began_to_leave_while_a_command_waited_for_its_turn_is_not_sent_to() {
    let story = with_separate_group(Story::of(2), REGION, 11..=12);
    let story = with_group_of_shop(story, "side", REGION, 21..=22);
    let story = with_group_of_shop(story, "left", REGION, 31..=32);
    let story = with_group_of_shop(story, "tail", REGION, 41..=42).given(|state| {
        let members = &mut state.region(REGION).auto_scaling_groups[0].instances;
        members.extend([11, 21, 31, 41].map(|n| Member {
            id: id(n),
            lifecycle: "InService".to_owned(),
        }));
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            kind: FaultKind::NoReply,
            times: 28,
            ..Fault::default()
        });
    });
    let leave = async {
        sleep(Duration::from_secs(30)).await;
        story.world.with(|state| {
            for member in &mut state.region(REGION).auto_scaling_groups[0].instances {
                member.lifecycle = "Terminating".to_owned();
            }
        });
    };
    let (told, ()) = tokio::join!(story.run(), leave);
    let calls = story.world.calls();
    let late = calls
        .iter()
        .filter(|call| call.operation == "SendCommand" && call.attempt == 1 && call.at > 35.0);
    let late: Vec<String> = late.map(|call| call.params.to_string()).collect();
    assert!(!late.is_empty(), "no command waited: {:#}", told.answer);
    for params in late {
        for n in [1, 2, 11, 21, 31, 41] {
            assert!(!params.contains(&id(n)), "{} is leaving: {params}", id(n));
        }
    }
}

/// A region whose answers never come took the time that the others need for their instances.
#[tokio::test(start_paused = true)]
async fn a_region_that_never_answers_leaves_the_other_groups_time() {
    for operation in ["GetDeployment", "ListDeploymentTargets"] {
        let story = with_separate_group(Story::of(2), "eu-west-1", 11..=12).given(|state| {
            state.faults.push(Fault {
                operation: operation.to_owned(),
                region: Some("eu-west-1".to_owned()),
                kind: FaultKind::NoReply,
                times: 1_000,
                ..Fault::default()
            });
        });
        let told = story.run().await;
        let groups = &told.answer["groups"];
        assert_eq!(groups[0]["problem"]["step"], "deployments", "{operation}");
        assert_eq!(groups[1]["counts"], json!({"restarted": 2}), "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn whose_turn_comes_when_nothing_can_be_sent_any_more_is_held_back_by_name() {
    let story = with_second_group(Story::of(5), -1.0)
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| {
            for n in 1..=5 {
                state.host(&id(n)).agent.restart_seconds = 140.0;
            }
            // A member that was launched after the deployment, and one that is leaving.
            state.deployment("d-SECOND001").targets.truncate(2);
            *state.lifecycle(&id(3)) = "Terminating:Wait".to_owned();
            let region = state.region(REGION);
            let members = region.deployment_groups[0].auto_scaling_groups.clone();
            region.deployment_groups[1].auto_scaling_groups = members;
        });
    let told = story.run().await;
    let groups = &told.answer["groups"];
    assert_eq!(groups[0]["counts"], json!({"restarted": 4, "skipped": 1}));
    assert_eq!(groups[1]["counts"], json!({"held-back": 4, "skipped": 1}));
    let detail = groups[1]["attention"][0]["detail"].to_string();
    assert!(detail.contains("no time left"), "{detail}");
}

#[tokio::test(start_paused = true)]
async fn a_group_for_which_no_time_is_left_at_all_is_a_problem_that_says_so() {
    let story = with_second_group(Story::of(3), -1.0).given(|state| {
        state.host(&id(1)).answer = Some(sim::Answer {
            status: "InProgress".to_owned(),
            ..sim::Answer::default()
        });
    });
    let told = story.run().await;
    let groups = &told.answer["groups"];
    assert_eq!(
        groups[0]["counts"],
        json!({"restarted": 2, "unfinished": 1})
    );
    assert_eq!(groups[1]["problem"]["code"], "NoTime");
    assert_eq!(told.answer["notified"], true);
    assert_eq!(story.world.messages().len(), 2);
}
