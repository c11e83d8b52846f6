//! Calls that fail.

use serde_json::json;
use sim::Fault;

use super::support::{REGION, Story, id};

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
        (
            "ListDeploymentTargets",
            "AccessDeniedException",
            "deployments",
            0,
        ),
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
            times: 1_000,
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
async fn a_report_that_cannot_be_published_fails_the_invocation() {
    let story = Story::of(1).given(|state| {
        state.host(&id(1)).ping = "ConnectionLost".to_owned();
        state.topics.clear();
    });
    let error = story
        .try_event(&super::support::event("pipeline-succeeded"))
        .await
        .expect_err("nobody was told");
    assert!(error.starts_with("PublishFailed: "), "{error}");
    assert!(error.contains("NotFound"), "{error}");
    assert!(error.contains(sim::TOPIC), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_region_without_the_document_is_a_problem_with_its_remedy() {
    let story = Story::of(2).given(|state| state.region(REGION).documents.clear());
    let told = story.run().await;
    assert_eq!(told.group()["problem"]["code"], "InvalidDocument");
    assert_eq!(told.counts(), &json!({"held-back": 2}));
    assert!(story.body("email").contains("create the restart document"));
}

#[tokio::test(start_paused = true)]
async fn after_looks_that_failed_to_the_end_the_sent_ones_are_unfinished_and_the_others_held_back()
{
    let story = Story::of(3).setting("MAX_CONCURRENCY", "1").given(|state| {
        state.faults.push(Fault {
            operation: "ListCommandInvocations".to_owned(),
            code: Some("AccessDeniedException".to_owned()),
            after: 2,
            times: 1_000,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 2, "unfinished": 1}));
    assert_eq!(told.group()["problem"]["step"], "poll");
    assert!(told.attention(&id(1))["commandId"].is_string());
    for n in 2..=3 {
        let row = told.attention(&id(n));
        assert_eq!(row["outcome"], "held-back");
        assert_eq!(row.get("commandId"), None, "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_send_what_was_sent_is_still_waited_for() {
    let story = Story::of(4).setting("MAX_CONCURRENCY", "2").given(|state| {
        state.host(&id(2)).agent.restart_seconds = 120.0;
        state.faults.push(Fault {
            operation: "SendCommand".to_owned(),
            code: Some("InvalidDocumentVersion".to_owned()),
            after: 1,
            times: 100,
            ..Fault::default()
        });
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 2, "restarted": 2}));
    let problem = &told.group()["problem"];
    assert_eq!(problem["step"], "send");
    for field in ["step", "code", "message", "remedy"] {
        let text = problem[field].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{field}: {problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_may_fail_seven_times_and_no_more() {
    for operation in [
        "ListActionExecutions",
        "GetDeployment",
        "ListDeployments",
        "GetDeploymentGroup",
        "ListDeploymentTargets",
        "DescribeAutoScalingGroups",
        "DescribeInstanceInformation",
        "SendCommand",
        "ListCommandInvocations",
    ] {
        for failures in [7, 8] {
            // The pauses between the attempts are the SDK's, and left to chance: these add up to less than
            // the steps' limits.
            fastrand::seed(3);
            let story = Story::of(1).given(|state| {
                state.faults.push(Fault {
                    operation: operation.to_owned(),
                    code: Some("InternalFailure".to_owned()),
                    status: Some(500),
                    times: failures,
                    ..Fault::default()
                });
            });
            let told = story.run().await;
            // Another look is another call.
            let again = operation == "ListCommandInvocations";
            let result = if failures == 7 || again {
                "ok"
            } else {
                "attention"
            };
            assert_eq!(
                told.answer["result"], result,
                "{operation} failed {failures} times: {:#}",
                told.answer
            );
        }
    }
}
