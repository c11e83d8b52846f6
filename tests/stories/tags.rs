//! Whom the tag of `INSTANCE_TAG` leaves out.

use std::time::Duration;

use serde_json::{Value, json};
use sim::{Fault, State, TagFilter};
use tokio::time::sleep;

use super::support::{REGION, Story, event, id, request};

fn give(state: &mut State, numbers: impl IntoIterator<Item = usize>, value: &str) {
    for n in numbers {
        let tags = &mut state.host(&id(n)).tags;
        tags.insert("AgentRestart".to_owned(), value.to_owned());
    }
}

/// A fleet of `instances`, of which the first `tagged` have the tag that the function's role asks for.
fn condition(instances: usize, tagged: usize) -> Story {
    Story::of(instances).given(|state| {
        state.send_condition = Some(TagFilter {
            key: "AgentRestart".to_owned(),
            value: "yes".to_owned(),
        });
        give(state, 1..=tagged, "yes");
    })
}

/// The same, with the setting, as the stack has both.
fn tagged(instances: usize, tagged: usize) -> Story {
    condition(instances, tagged).setting("INSTANCE_TAG", "AgentRestart=yes")
}

#[tokio::test(start_paused = true)]
async fn a_roll_out_to_five_of_five_hundred_is_silent_about_the_others() {
    let story = tagged(500, 5);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 5, "skipped": 495}));
    assert_eq!(told.answer["result"], "ok");
    assert!(story.silent());
    assert_eq!(story.count("SendCommand"), 1, "nobody is denied");
}

/// The condition alone, as in a role of one's own: Systems Manager's denial is all that is known.
#[tokio::test(start_paused = true)]
async fn without_the_setting_those_that_are_denied_are_unreachable() {
    let told = condition(20, 15).run().await;
    assert_eq!(told.counts(), &json!({"restarted": 15, "unreachable": 5}));
}

#[tokio::test(start_paused = true)]
async fn the_tag_is_its_key_and_its_value_to_the_letter() {
    let story = tagged(5, 1).given(|state| {
        give(state, [2], "Yes");
        give(state, [3], "");
        let other = &mut state.host(&id(4)).tags;
        other.insert("agentrestart".to_owned(), "yes".to_owned());
        other.insert("Owner".to_owned(), "yes".to_owned());
        state.host(&id(5)).name = Some("yes".to_owned());
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "skipped": 4}));
    assert_eq!(story.sent_to(), [id(1)]);
}

/// Whatever else is the matter with them.
#[tokio::test(start_paused = true)]
async fn nobody_hears_of_instances_without_the_tag() {
    let story = tagged(9, 2).given(|state| {
        state.host(&id(3)).ping = "ConnectionLost".to_owned();
        state.host(&id(4)).managed = false;
        state.host(&id(5)).platform = "MacOS".to_owned();
        state.host(&id(6)).state = "stopped".to_owned();
        *state.lifecycle(&id(7)) = "Dreaming".to_owned();
        *state.lifecycle(&id(8)) = "Pending:Wait".to_owned();
        state.host(&id(2)).ping = "ConnectionLost".to_owned();
        let running = sim::Deployment {
            id: "d-RUNNING01".to_owned(),
            status: "InProgress".to_owned(),
            creator: "CodeDeployAutoUpdate".to_owned(),
            completed_at: None,
            targets: vec![sim::Target {
                id: id(9),
                ..sim::Target::default()
            }],
            ..state.deployment(sim::DEPLOYMENT).clone()
        };
        state.region(REGION).deployments.push(running);
    });
    let told = story.run().await;
    let counts = json!({"restarted": 1, "skipped": 7, "unreachable": 1});
    assert_eq!(told.counts(), &counts, "{:#}", told.answer);
    told.attention(&id(2));
}

#[tokio::test(start_paused = true)]
async fn a_group_in_which_nobody_has_the_tag_is_a_problem() {
    let story = tagged(3, 0);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"skipped": 3}));
    assert_eq!(told.answer["result"], "attention");
    assert_eq!(story.count("SendCommand"), 0);
    insta::assert_snapshot!(story.body("email"), @r#"
    WARNING: a problem, 3 agents skipped: my-application/my-deployment-group (123456789012 us-east-1)
    Pipeline my-pipeline, execution 3f1c9c4e-52d6-4b7a-9e0d-8a6b5c4d3e2f, 2026-02-17T09:14:05Z; deployment d-EXAMPLEE5.
    In all: 3 skipped.

    Problem in step fleet: NobodyTagged: none of 3 instances of my-application/my-deployment-group has the tag AgentRestart=yes
      Do: tag those whose agents are to be restarted, or clear InstanceTagValue (INSTANCE_TAG) to restart all; then repeat by hand.

    Repeat by hand (leaves agents alone that are fresh by now):
      aws lambda invoke --region us-east-1 --function-name restarter --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{"application":"my-application","deploymentGroup":"my-deployment-group","deploymentId":"d-EXAMPLEE5","region":"us-east-1"}' answer.json
    "#);
}

/// Those that are going have lost their tags, and say nothing about the roll-out.
#[tokio::test(start_paused = true)]
async fn a_group_whose_instances_have_all_gone_is_no_problem() {
    let story = tagged(2, 2).given(|state| {
        state.region(REGION).auto_scaling_groups[0]
            .instances
            .clear();
        for n in 1..=2 {
            state.host(&id(n)).state = "terminated".to_owned();
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"skipped": 2}));
    assert!(story.silent());
}

#[tokio::test(start_paused = true)]
async fn where_ec2_cannot_be_asked_nothing_is_sent() {
    let story = tagged(3, 2).given(|state| {
        *state.lifecycle(&id(3)) = "Terminating".to_owned();
        state.faults.push(Fault {
            operation: "DescribeInstances".to_owned(),
            code: Some("UnauthorizedOperation".to_owned()),
            message: Some("You are not authorized to perform this operation.".to_owned()),
            times: 100,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 2, "skipped": 1}));
    assert_eq!(told.group()["problem"]["code"], "UnauthorizedOperation");
    assert_eq!(story.count("SendCommand"), 0);
    insta::assert_snapshot!(told.attention(&id(1))["detail"].as_str().unwrap(), @"not sent: nobody says whether it has the tag AgentRestart=yes");
}

#[tokio::test(start_paused = true)]
async fn whom_ec2_does_not_know_yet_is_not_sent_to() {
    let story = tagged(2, 2).given(|state| state.host(&id(2)).forgotten = true);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "unreachable": 1}));
    assert_eq!(story.sent_to(), [id(1)]);
}

#[tokio::test(start_paused = true)]
async fn one_that_loses_the_tag_before_its_turn_is_split_off_and_left_alone() {
    let story = tagged(8, 8);
    let loses_it = async {
        while story.count("DescribeInstances") == 0 && story.elapsed() < 900.0 {
            sleep(Duration::from_millis(10)).await;
        }
        let lose = |state: &mut State| state.host(&id(3)).tags.clear();
        story.world.with(lose);
    };
    let (told, ()) = tokio::join!(story.run(), loses_it);
    assert_eq!(told.counts(), &json!({"restarted": 7, "skipped": 1}));
    assert!(story.silent());
}

/// EC2's word and IAM's may differ for a while.
#[tokio::test(start_paused = true)]
async fn one_that_is_denied_although_it_has_the_tag_is_unreachable() {
    let story = tagged(8, 8).given(|state| state.host(&id(3)).denied = true);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 7, "unreachable": 1}));
}

#[tokio::test(start_paused = true)]
async fn ec2_is_asked_once_though_the_restarts_take_many_rounds() {
    let story = tagged(6, 6).setting("MAX_CONCURRENCY", "1").given(|state| {
        for n in 1..=6 {
            state.host(&id(n)).agent.restart_seconds = 50.0;
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 6}));
    assert!(story.count("DescribeAutoScalingInstances") > 1);
    assert_eq!(story.count("DescribeInstances"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_plan_says_who_is_left_out() {
    let story = tagged(2, 1);
    let told = story.event(&request(json!({"dryRun": true}))).await;
    assert_eq!(told.answer["result"], "dry-run");
    let row = |decision: &str, reason: &str, n| json!({"instanceId": id(n), "decision": decision, "reason": reason});
    let left = row("skipped", "without the tag AgentRestart=yes", 2);
    let plan = [row("restart", "InService, online", 1), left];
    assert_eq!(told.group()["plan"], json!(plan));
}

#[tokio::test(start_paused = true)]
async fn without_the_setting_ec2_is_not_asked_about_those_that_are_online() {
    let story = Story::of(3);
    let told = story.event(&event("pipeline-succeeded")).await;
    assert_eq!(told.answer["problem"], Value::Null);
    assert_eq!(story.count("DescribeInstances"), 0);
}
