//! Other deployments of the group.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::support::{REGION, Story, assert_every, event, id};

/// Adds a deployment of the group that ends at `until`, seconds after the start.
fn other_deployment(story: Story, status: &str, creator: &str, until: Option<f64>) -> Story {
    story.given(|state| {
        let mut other = state.deployment("d-EXAMPLEE5").clone();
        other.id = "d-RUNNING01".to_owned();
        other.status = status.to_owned();
        other.creator = creator.to_owned();
        other.completed_at = until;
        state.region(REGION).deployments.push(other);
    })
}

#[tokio::test(start_paused = true)]
async fn while_another_deployment_of_the_group_runs_nothing_is_sent() {
    for status in ["Created", "Queued", "InProgress", "Baking", "Ready"] {
        let story = other_deployment(Story::of(2), status, "user", None);
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"busy": 2}), "{status}");
        assert!(story.sent_to().is_empty(), "{status}");
        let mail = story.body("email");
        assert!(mail.contains("d-RUNNING01"), "{mail}");
        let waited = story.world.now() - super::support::EVENT_TIME;
        assert!((110.0..140.0).contains(&waited), "{status}: {waited} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_ends_in_time_is_waited_for() {
    let story = other_deployment(Story::of(2), "Succeeded", "user", Some(55.0));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    story.world.with(|state| {
        assert!(state.host(&id(1)).agent.restarts[0] > 55.0);
    });
}

#[tokio::test(start_paused = true)]
async fn auto_scaling_s_own_deployments_are_not_waited_for() {
    for creator in ["autoscaling", "autoscalingTermination"] {
        let story = other_deployment(Story::of(2), "InProgress", creator, None);
        assert_eq!(story.run().await.counts(), &json!({"restarted": 2}));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_asks_once_whether_a_deployment_runs() {
    let story = other_deployment(Story::of(2), "InProgress", "user", None);
    let told = story.event(&event("dry-run")).await;
    assert_eq!(told.group()["plan"][0]["decision"], "busy");
    assert_eq!(
        story.count("ListDeployments"),
        2,
        "and for those created since"
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_deployment_is_asked_for_every_10_seconds_for_120_at_most() {
    let story = other_deployment(Story::of(2), "InProgress", "user", None);
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"busy": 2}));
    let mut times = story.times_of("ListDeployments");
    assert!(times[0] < 1.0, "{times:?}");
    // The very last one is for those that were created since.
    times.pop();
    let last = times[times.len() - 1];
    // The last pause ends with the limit.
    assert_every(10.0, &times[..times.len() - 1]);
    assert!((119.9..121.0).contains(&last), "{times:?}");
    let told_at = story.told_at();
    assert!(
        (last..last + 2.0).contains(&told_at),
        "told {told_at} s after the start"
    );
    for n in 1..=2 {
        let detail = told.attention(&id(n))["detail"].to_string();
        assert!(detail.contains("d-RUNNING01"), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_ends_just_in_time_is_followed_by_the_restart_at_once() {
    for ends in [1.0, 55.0, 108.0, 119.0] {
        let story = other_deployment(Story::of(2), "Succeeded", "user", Some(ends));
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 2}), "{ends}");
        let sent = story.times_of("SendCommand")[0];
        assert!(
            (ends..ends + 11.5).contains(&sent),
            "it ended after {ends} s, and the command was sent after {sent} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_follows_the_first_is_waited_for_too() {
    let story = other_deployment(Story::of(2), "Succeeded", "user", Some(35.0)).given(|state| {
        let mut next = state.deployment("d-RUNNING01").clone();
        next.id = "d-RUNNING02".to_owned();
        next.created_at = 30.0;
        next.completed_at = Some(75.0);
        state.region(REGION).deployments.push(next);
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    let sent = story.times_of("SendCommand")[0];
    assert!((75.0..86.5).contains(&sent), "sent after {sent} s");
}

#[tokio::test(start_paused = true)]
async fn another_group_s_deployment_is_not_waited_for() {
    let story = other_deployment(Story::of(2), "InProgress", "user", None).given(|state| {
        state.deployment("d-RUNNING01").deployment_group = "another".to_owned();
        let region = state.region(REGION);
        let another = sim::DeploymentGroup {
            name: "another".to_owned(),
            ..region.deployment_groups[0].clone()
        };
        region.deployment_groups.push(another);
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 2}));
    let sent = story.times_of("SendCommand")[0];
    assert!(sent < 2.0, "sent after {sent} s");
}

#[tokio::test(start_paused = true)]
async fn only_those_that_were_to_be_restarted_are_busy() {
    let story = other_deployment(Story::of(4), "InProgress", "user", None).given(|state| {
        *state.lifecycle(&id(2)) = "Terminating:Wait".to_owned();
        *state.lifecycle(&id(3)) = "Napping".to_owned();
        state.host(&id(4)).managed = false;
    });
    let told = story.run().await;
    assert_eq!(
        told.counts(),
        &json!({"busy": 1, "held-back": 1, "skipped": 1, "unreachable": 1})
    );
    assert_eq!(told.attention(&id(1))["outcome"], "busy");
    assert!(story.sent_to().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_does_not_wait_for_a_deployment() {
    let story = other_deployment(Story::of(2), "InProgress", "user", None);
    let told = story.event(&event("dry-run")).await;
    for n in 0..2 {
        let row = &told.group()["plan"][n];
        assert_eq!(row["decision"], "busy");
        assert!(row["reason"].to_string().contains("d-RUNNING01"), "{row}");
    }
    assert!(story.elapsed() < 2.0, "{} s", story.elapsed());
}

#[tokio::test(start_paused = true)]
async fn whoever_made_the_other_deployment_it_is_waited_for_unless_it_is_auto_scaling() {
    for creator in [
        "user",
        "codeDeployRollback",
        "CodeDeploy",
        "CodeDeployAutoUpdate",
        "CloudFormation",
        "SomebodyNew",
    ] {
        let story = other_deployment(Story::of(2), "InProgress", creator, None);
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"busy": 2}), "{creator}");
        assert!(story.sent_to().is_empty(), "{creator}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_online_is_not_sent_to_while_another_deployment_runs() {
    let story = other_deployment(Story::of(2), "InProgress", "user", None)
        .given(|state| state.host(&id(2)).ping = "ConnectionLost".to_owned());
    let back = async {
        while story.count("DescribeInstanceInformation") == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        story
            .world
            .with(|state| state.host(&id(2)).ping = "Online".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), back);
    assert_eq!(story.sent_to(), Vec::<String>::new(), "{:#}", told.answer);
}

#[tokio::test(start_paused = true)]
async fn a_follow_up_deployment_makes_its_own_targets_busy_and_nobody_else() {
    // A scale-out during the deployment: CodeDeploy's follow-up for one instance runs at the moment of the event.
    let story = other_deployment(Story::of(3), "InProgress", "CodeDeployAutoUpdate", None)
        .given(|state| state.deployment("d-RUNNING01").targets.truncate(1));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"busy": 1, "restarted": 2}));
    let detail = told.attention(&id(1))["detail"].to_string();
    assert!(detail.contains("d-RUNNING01"), "{detail}");
    assert!(
        story.times_of("SendCommand")[0] < 5.0,
        "nobody waits for it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_follow_up_whose_targets_are_not_listed_yet_is_waited_for_until_they_are() {
    let created = || other_deployment(Story::of(3), "Created", "CodeDeployAutoUpdate", None);
    let told = created().run().await;
    assert_eq!(told.counts(), &json!({"busy": 3}), "they are never listed");

    let story = created().given(|state| state.deployment("d-RUNNING01").targets.truncate(1));
    let begins = async {
        tokio::time::sleep(std::time::Duration::from_secs(25)).await;
        story
            .world
            .with(|state| state.deployment("d-RUNNING01").status = "InProgress".to_owned());
    };
    let (told, ()) = tokio::join!(story.run(), begins);
    assert_eq!(told.counts(), &json!({"busy": 1, "restarted": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_follow_up_makes_its_blue_targets_busy_too() {
    let story =
        other_deployment(Story::of(3), "InProgress", "CodeDeployAutoUpdate", None).given(|state| {
            let follow_up = state.deployment("d-RUNNING01");
            follow_up.style = "BLUE_GREEN".to_owned();
            follow_up.targets.truncate(2);
            follow_up.targets[0].label = Some("Blue".to_owned());
            follow_up.targets[1].label = Some("Green".to_owned());
        });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"busy": 2, "restarted": 1}));
}
