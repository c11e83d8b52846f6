//! Targets outside EC2: CodeDeploy's name for one, Systems Manager's id, and nobody's mistake about who is meant.

use std::time::Duration;

use serde_json::json;
use sim::{Fault, FaultKind, Host, State, TagFilter, Target};
use tokio::time::sleep;

use super::support::{EVENT_TIME, REGION, Story, commands, event, id, request};

const TAG: (&str, &str) = ("AgentRestart", "yes");

/// The n-th machine, under that name.
fn machine(n: usize, name: &str) -> Host {
    Host {
        id: sim::managed_id(n),
        name: Some(name.to_owned()),
        computer_name: format!("computer-{n}"),
        ..Host::default()
    }
}

fn target(state: &mut State, name: &str) {
    state.deployment(sim::DEPLOYMENT).targets.push(Target {
        id: name.to_owned(),
        ..Target::default()
    });
}

/// One instance, and a machine `mi-…1` that CodeDeploy calls `rack-1`; both were deployed to.
fn rack() -> Story {
    Story::of(1).given(|state| {
        target(state, "rack-1");
        state.region(REGION).hosts.push(machine(1, "rack-1"));
    })
}

fn mi(n: usize) -> String {
    sim::managed_id(n)
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_restarted_by_the_id_that_systems_manager_has_for_its_name() {
    let story = rack();
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    assert!(story.silent());
    assert_eq!(story.sent_to(), [id(1), mi(1)]);
    let calls = story.world.calls();
    for call in &calls {
        let asked = ["DescribeInstances", "DescribeAutoScalingInstances"];
        let of_ec2 = asked.contains(&call.operation.as_str());
        assert!(!of_ec2 || !call.params.to_string().contains("mi-"));
    }
}

#[tokio::test(start_paused = true)]
async fn without_such_a_target_nobody_asks_for_machines() {
    let story = Story::of(2).given(|state| {
        state.region(REGION).hosts.push(machine(1, "rack-1"));
    });
    assert_eq!(story.run().await.counts(), &json!({"restarted": 2}));
    assert_eq!(story.count("DescribeInstanceInformation"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_windows_machine_is_sent_the_document_for_windows() {
    let story = rack().given(|state| state.host(&mi(1)).platform = "Windows".to_owned());
    assert_eq!(story.run().await.counts(), &json!({"restarted": 2}));
    let commands = commands(&story);
    assert_eq!(commands[1]["DocumentName"], sim::WINDOWS_DOCUMENT);
    assert_eq!(commands[1]["InstanceIds"], json!([mi(1)]));
}

/// Its id is what can be used in a command; its name, what people and CodeDeploy know it by.
#[tokio::test(start_paused = true)]
async fn a_machine_that_fails_is_told_by_its_id_with_its_name() {
    let story = rack().given(|state| {
        let agent = &mut state.host(&mi(1)).agent;
        agent.fault = Some(sim::AgentFault::AgentDown);
    });
    let told = story.run().await;
    let row = told.attention(&mi(1));
    assert_eq!(
        (&row["name"], &row["outcome"]),
        (&json!("rack-1"), &json!("failed"))
    );
    let mail = story.body("email");
    assert!(mail.contains("mi-00000000000000001 (rack-1): "), "{mail}");
}

#[tokio::test(start_paused = true)]
async fn of_a_name_that_no_machine_or_several_bear_nobody_is_sent_to() {
    let story = rack().given(|state| {
        for name in [
            "rack-2",
            "rack-3",
            "Rack-1",
            "rack-1 ",
            "computer-1",
            "mi-00000000000000001",
        ] {
            target(state, name);
        }
        let hosts = &mut state.region(REGION).hosts;
        hosts.extend([
            machine(2, "rack-2"),
            machine(3, "other"),
            machine(4, "rack-2"),
        ]);
        // An instance may be called like a machine, and is none.
        hosts[0].name = Some("rack-3".to_owned());
        // A machine without a name has that of its computer, which means nothing.
        hosts[3].name = None;
        hosts[3].computer_name = "rack-3".to_owned();
        // The namesakes stand on two pages.
        state.page_shortfall = 49;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2, "unreachable": 6}));
    assert_eq!(story.sent_to(), [id(1), mi(1)]);
    let detail = |name: &str| told.attention(name)["detail"].as_str().unwrap().to_owned();
    insta::assert_snapshot!(detail("rack-2"), @"on-premises: 2 managed nodes have this name: mi-00000000000000002, mi-00000000000000004");
    insta::assert_snapshot!(detail("rack-3"), @"on-premises: no managed node has exactly this name in Systems Manager");
    let mail = story.body("email");
    assert!(
        mail.contains("DefaultInstanceName is exactly its name in CodeDeploy"),
        "{mail}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_offline_is_unreachable_and_ec2_is_not_asked() {
    let story = rack().given(|state| {
        let machine = state.host(&mi(1));
        machine.ping = "ConnectionLost".to_owned();
        machine.last_ping = -3600.0;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
    let detail = &told.attention(&mi(1))["detail"];
    insta::assert_snapshot!(detail.as_str().unwrap(), @"on-premises; Systems Manager: ConnectionLost, offline since 2026-02-17T08:14:05Z");
    assert_eq!(story.count("DescribeInstances"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_back_at_the_end_is_restarted_after_all() {
    let story = rack().given(|state| state.host(&mi(1)).ping = "ConnectionLost".to_owned());
    let back = async {
        sleep(Duration::from_secs(20)).await;
        let online = |state: &mut State| state.host(&mi(1)).ping = "Online".to_owned();
        story.world.with(online);
    };
    let (told, ()) = tokio::join!(story.run(), back);
    assert_eq!(told.counts(), &json!({"restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_deregistered_before_its_turn_is_split_off() {
    let story = rack();
    let leaves = async {
        while story.count("DescribeInstanceInformation") < 2 && story.elapsed() < 900.0 {
            sleep(Duration::from_millis(10)).await;
        }
        story.world.with(|state| state.host(&mi(1)).managed = false);
    };
    let (told, ()) = tokio::join!(story.run(), leaves);
    assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
    let detail = &told.attention(&mi(1))["detail"];
    insta::assert_snapshot!(detail.as_str().unwrap(), @"on-premises; not managed by Systems Manager");
}

#[tokio::test(start_paused = true)]
async fn where_systems_manager_does_not_say_who_bears_the_name_it_is_held_back_and_the_others_go_on()
 {
    let story = rack().given(|state| {
        state.faults.push(Fault {
            operation: "DescribeInstanceInformation".to_owned(),
            kind: FaultKind::NoReply,
            after: 1,
            times: 100,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 1, "restarted": 1}));
    assert_eq!(told.group()["problem"]["code"], "Timeout");
    // The instances of EC2 wait for 30 s at most.
    let sent = story.flights()[0].sent;
    assert!((30.0..35.0).contains(&sent), "{sent} s");
    insta::assert_snapshot!(told.attention("rack-1")["detail"].as_str().unwrap(), @"not sent: nobody says which machine outside EC2 has this name");
}

/// Three groups of one event, two of them here.
#[tokio::test(start_paused = true)]
async fn the_machines_of_a_region_are_asked_for_once_however_many_groups_have_some() {
    let story = rack().given(|state| {
        let region = state.region(REGION);
        let mut group = region.deployment_groups[0].clone();
        let mut deployment = region.deployments[0].clone();
        let action = &mut region.pipelines[0].executions[0].actions;
        let mut more = action[0].clone();
        group.name = "racks".to_owned();
        group.auto_scaling_groups.clear();
        deployment.id = "d-RACKS0001".to_owned();
        deployment.deployment_group = "racks".to_owned();
        deployment.targets = vec![Target {
            id: "rack-2".to_owned(),
            ..Target::default()
        }];
        more.action = "Racks".to_owned();
        more.deployment_group = Some("racks".to_owned());
        more.deployment_id = Some(deployment.id.clone());
        action.push(more);
        region.deployment_groups.push(group);
        region.deployments.push(deployment);
        region.hosts.push(machine(2, "rack-2"));
    });
    let told = story.run().await;
    assert_eq!(told.answer["groups"][0]["counts"], json!({"restarted": 2}));
    assert_eq!(told.answer["groups"][1]["counts"], json!({"restarted": 1}));
    let calls = story.world.calls().into_iter();
    let all = calls.filter(|call| call.params["Filters"][0]["Key"] == "ResourceType");
    assert_eq!(all.count(), 1);
}

/// A follow-up of CodeDeploy's concerns its own targets, machines too: by the name that it has for them.
#[tokio::test(start_paused = true)]
async fn a_deployment_that_goes_on_at_a_machine_makes_it_busy_and_a_later_one_stale() {
    let follow_up = |state: &mut State, status: &str, completed: Option<f64>| {
        let deployment = sim::Deployment {
            id: "d-FOLLOWUP1".to_owned(),
            creator: "CodeDeployAutoUpdate".to_owned(),
            status: status.to_owned(),
            created_at: -4.0,
            completed_at: completed,
            targets: vec![Target {
                id: "rack-1".to_owned(),
                ..Target::default()
            }],
            ..state.deployment(sim::DEPLOYMENT).clone()
        };
        state.region(REGION).deployments.push(deployment);
    };
    let story = rack().given(|state| follow_up(state, "InProgress", None));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"busy": 1, "restarted": 1}));
    told.attention(&mi(1));

    let story = rack().given(|state| follow_up(state, "Succeeded", Some(-2.0)));
    assert_eq!(story.run().await.counts(), &json!({"restarted": 2}));
    let since = |n: usize| commands(&story)[n]["Parameters"]["triggeredAt"][0].clone();
    assert_eq!(since(0), format!("{}", EVENT_TIME - 5.0));
    assert_eq!(since(1), format!("{}", EVENT_TIME - 2.0));
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_the_tag_is_skipped_by_the_inventory_s_word() {
    let story = rack()
        .setting("INSTANCE_TAG", "AgentRestart=yes")
        .given(|state| {
            for n in 2..=4 {
                let name = format!("rack-{n}");
                target(state, &name);
                state.region(REGION).hosts.push(machine(n, &name));
            }
            let (key, value) = TAG;
            state.send_condition = Some(TagFilter {
                key: key.to_owned(),
                value: value.to_owned(),
            });
            for (id, value) in [
                (id(1), "yes"),
                (mi(1), "yes"),
                (mi(2), "no"),
                (mi(4), "yes"),
            ] {
                let tags = &mut state.host(&id).tags;
                tags.insert(key.to_owned(), value.to_owned());
            }
            // The tagged ones stand on several pages.
            state.page_shortfall = 49;
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 3, "skipped": 2}));
    assert!(story.silent());
    assert_eq!(story.sent_to(), [id(1), mi(1), mi(4)]);
}

#[tokio::test(start_paused = true)]
async fn where_the_inventory_does_not_say_who_has_the_tag_the_machine_is_not_sent_to() {
    let story = rack()
        .setting("INSTANCE_TAG", "AgentRestart=yes")
        .given(|state| {
            for id in [id(1), mi(1)] {
                let tags = &mut state.host(&id).tags;
                tags.insert(TAG.0.to_owned(), TAG.1.to_owned());
            }
            state.faults.push(Fault {
                operation: "DescribeInstanceInformation".to_owned(),
                code: Some("AccessDeniedException".to_owned()),
                after: 1,
                times: 100,
                ..Fault::default()
            });
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 1, "restarted": 1}));
    assert_eq!(told.group()["problem"]["code"], "AccessDeniedException");
}

#[tokio::test(start_paused = true)]
async fn a_plan_names_a_machine_by_its_id() {
    let story = rack();
    let told = story.event(&request(json!({"dryRun": true}))).await;
    let row = json!({"instanceId": mi(1), "decision": "restart", "reason": "online"});
    assert_eq!(told.group()["plan"][1], row);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_again_leaves_the_fresh_machine_alone() {
    let story = rack();
    story.run().await;
    let again = story.event(&event("codedeploy-success")).await;
    assert_eq!(again.counts(), &json!({"already-restarted": 2}));
}
