//! Which calls are made: no more than can answer, none larger than AWS takes, and every page of what they give.

use serde_json::json;
use sim::Target;

use super::decisions::tagged;
use super::support::{EVENT_TIME, REGION, Story, commands, id};

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
    assert_eq!(parameters["executionTimeoutSeconds"], json!(["480"]));
    let sent_at: f64 = parameters["sentAt"][0]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("epoch seconds");
    assert!((EVENT_TIME..EVENT_TIME + 10.0).contains(&sent_at));
}

#[tokio::test(start_paused = true)]
async fn systems_manager_is_asked_only_for_nodes_that_may_be_restarted() {
    let story = Story::of(3).given(|state| {
        let group = &mut state.region(REGION).auto_scaling_groups[0];
        group.instances[1].lifecycle = "Terminating:Wait".to_owned();
        state.deployment("d-EXAMPLEE5").targets.push(Target {
            id: "rack-7".to_owned(),
            ..Target::default()
        });
    });
    story.run().await;
    let calls = story.world.calls();
    let asked: Vec<_> = calls
        .iter()
        .filter(|call| call.operation == "DescribeInstanceInformation")
        .map(|call| &call.params["Filters"][0]["Values"])
        .collect();
    assert_eq!(asked, [&json!([id(1), id(3)]), &json!(["ManagedInstance"])]);
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
            // One look for running deployments, and one for those that were created since.
            ("ListDeployments".to_owned(), 2),
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

/// How many ids each different question of this operation named, in the order of asking.
fn asked(story: &Story, operation: &str, ids: &str) -> Vec<usize> {
    let mut questions: Vec<String> = Vec::new();
    let mut sizes = Vec::new();
    let calls = story.world.calls().into_iter();
    for call in calls.filter(|call| call.operation == operation) {
        let ids = call.params.pointer(ids).expect("the call names ids");
        // The pages of one answer ask the same again.
        if !questions.contains(&ids.to_string()) {
            questions.push(ids.to_string());
            sizes.push(ids.as_array().expect("a list").len());
        }
    }
    sizes
}

#[tokio::test(start_paused = true)]
async fn ids_are_asked_for_in_the_fewest_calls_that_aws_takes() {
    let story = tagged(130).given(|state| {
        for n in 71..=130 {
            state.host(&id(n)).managed = false;
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 70, "unreachable": 60}));
    let lifecycles = asked(&story, "DescribeAutoScalingInstances", "/InstanceIds");
    assert_eq!(lifecycles, [50, 50, 30, 50, 10]);
    let inventory = asked(&story, "DescribeInstanceInformation", "/Filters/0/Values");
    assert_eq!(inventory, [50, 50, 30, 50, 10]);
    // Once at first, and once more when nothing else is open.
    let machines = asked(&story, "DescribeInstances", "/Filter/0/Value");
    assert_eq!(machines, [60]);
    assert_eq!(story.count("DescribeInstances"), 2);
    assert_eq!(asked(&story, "SendCommand", "/InstanceIds"), [50, 20]);
}

#[tokio::test(start_paused = true)]
async fn members_lifecycles_are_not_asked_for_twice() {
    // Three of five targets are members; the others have left their group.
    let story = Story::of(5).given(|state| {
        let region = state.region(REGION);
        region.auto_scaling_groups[0].instances.truncate(3);
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 5}));
    let lifecycles = asked(&story, "DescribeAutoScalingInstances", "/InstanceIds");
    assert_eq!(lifecycles, [2]);
}

#[tokio::test(start_paused = true)]
async fn a_command_names_its_instances_in_order_and_leaves_the_rate_to_us() {
    let story = Story::of(7).setting("MAX_CONCURRENCY", "3");
    story.run().await;
    for command in commands(&story) {
        let ids = command["InstanceIds"].as_array().expect("ids");
        assert!(ids.is_sorted_by_key(|id| id.as_str()), "{ids:?}");
        assert_eq!(command.get("Targets"), None);
        assert_eq!(command["MaxConcurrency"], "100%");
        assert_eq!(command["MaxErrors"], "100%");
        assert_eq!(command["DocumentVersion"], "$LATEST");
        assert_eq!(command["DocumentName"], sim::DOCUMENT);
    }
    let calls = story.world.calls();
    let looks = calls
        .iter()
        .filter(|call| call.operation == "ListCommandInvocations");
    for look in looks {
        assert_eq!(look.params["Details"], true);
        assert!(look.params["CommandId"].is_string());
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_command_waits_for_no_turn_of_its_own() {
    for instances in [1, 50, 130, 150] {
        let story = Story::of(instances);
        story.run().await;
        let latency = story.world.with(|state| state.latency);
        let inventory = story.times_of("DescribeInstanceInformation");
        let sent = story.times_of("SendCommand")[0];
        let waited = sent - inventory[0];
        assert!(
            waited <= latency * 1.01,
            "{instances} instances: sent {waited} s after the inventory was asked for"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_asked_for_at_once_fits_one_page() {
    let story = tagged(130);
    story.run().await;
    let calls = story.world.calls();
    let asked = calls
        .iter()
        .filter(|call| call.operation == "DescribeInstanceInformation");
    for call in asked {
        let ids = &call.params["Filters"][0]["Values"];
        let ids = ids.as_array().expect("ids").len() as u64;
        assert!(ids <= call.params["MaxResults"].as_u64().expect("a number"));
    }
    let pages = [
        "DescribeAutoScalingInstances",
        "DescribeInstanceInformation",
    ];
    assert_eq!(pages.map(|operation| story.count(operation)), [3, 3]);
}
