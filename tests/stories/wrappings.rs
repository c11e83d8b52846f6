//! What people put around an event before it reaches the function.

use insta::assert_snapshot;
use serde_json::{Value, json};

use super::support::{Story, event, request};

/// The record of an SQS queue that calls the function.
fn queued(body: &str) -> Value {
    json!({"Records": [{"messageId": "1", "body": body, "attributes": {}, "eventSource": "aws:sqs"}]})
}

/// The record of an SNS topic that calls the function.
fn published(message: &str) -> Value {
    json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Type": "Notification", "Subject": null, "Message": message}}]})
}

/// The message of a notification rule of a pipeline.
fn notification() -> Value {
    json!({
        "account": "111122223333",
        "detailType": "CodePipeline Pipeline Execution State Change",
        "region": "us-west-2",
        "source": "aws.codepipeline",
        "time": "2022-03-29T16:55:27Z",
        "notificationRuleArn": "arn:aws:codestar-notifications:us-west-2:111122223333:notificationrule/0123456789abcdef",
        "detail": {
            "pipeline": "web-pipeline",
            "execution-id": "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d",
            "state": "SUCCEEDED",
            "version": 16.0,
        },
        "resources": ["arn:aws:codepipeline:us-west-2:111122223333:web-pipeline"],
        "additionalAttributes": {"sourceActions": []},
    })
}

/// Why the event is refused; nothing is called for it.
async fn refused(event: &Value) -> String {
    let story = Story::of(1);
    let told = story.try_event(event).await;
    let refused = told.expect_err("it is refused");
    assert!(story.world.calls().is_empty(), "{event}");
    let reason = refused.strip_prefix("InvalidEvent: ");
    reason.expect("the event is at fault").to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_calls_the_function_through_a_queue_or_a_topic() {
    for name in ["sqs-record", "sns-record"] {
        let story = Story::of(2);
        let told = story.event(&event(name)).await;
        assert_eq!(told.counts(), &json!({"restarted": 2}), "{name}");
        assert_eq!(told.answer["trigger"]["kind"], "pipeline");
        assert_eq!(told.answer["trigger"]["time"], "2026-02-17T09:14:05Z");
    }
}

/// With everything that is true of an event that comes directly.
#[tokio::test(start_paused = true)]
async fn what_lies_in_a_record_is_read_as_if_it_had_come_directly() {
    for wrap in [queued, published] {
        let wrapped = |event: Value| wrap(&event.to_string());
        let story = Story::of(2);
        let told = story.event(&wrapped(event("codedeploy-failure"))).await;
        assert_eq!(told.counts(), &json!({"restarted": 2}));
        let told = story.event(&wrapped(event("pipeline-started"))).await;
        assert_eq!(told.answer["result"], "ignored");
        let told = story.event(&wrapped(event("dry-run"))).await;
        assert_eq!(told.answer["result"], "dry-run");

        let mistyped = wrapped(request(json!({"dryrun": true})));
        assert!(refused(&mistyped).await.contains("\"dryrun\" is unknown"));
        let mut nameless = event("pipeline-succeeded");
        nameless["detail"]["pipeline"] = Value::Null;
        assert!(
            refused(&wrapped(nameless))
                .await
                .contains("detail.pipeline")
        );
        assert!(refused(&wrapped(json!({}))).await.contains("neither"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_hands_over_batches() {
    let one = &queued(&event("pipeline-succeeded").to_string())["Records"][0];
    let two = refused(&json!({"Records": [one, one]})).await;
    assert_snapshot!(two, @"Records holds 2 records, not one: set the batch size to 1 where the queue calls the function");
    let none = refused(&json!({"Records": []})).await;
    assert!(none.starts_with("Records holds 0 records"), "{none}");
}

#[tokio::test(start_paused = true)]
async fn an_input_transformer_that_makes_a_sentence_of_the_event() {
    let sentence = "Pipeline web-pipeline has ended";
    assert_snapshot!(refused(&queued(sentence)).await, @"the record's body is no JSON object: let the rule pass the whole event, without an input transformer");
    assert_snapshot!(refused(&published(sentence)).await, @"the record's Sns.Message is no JSON object: let the rule pass the whole event, without an input transformer");
    for body in ["", "\"text\"", "[]", "7", "null", "{\"application\":"] {
        assert!(refused(&queued(body)).await.contains("no JSON object"));
    }
}

/// The subscription lacks raw message delivery.
#[tokio::test(start_paused = true)]
async fn a_topic_that_fills_the_queue_that_calls_the_function() {
    let envelope = json!({
        "Type": "Notification",
        "MessageId": "1",
        "TopicArn": "arn:aws:sns:us-east-1:123456789012:pipeline-events",
        "Message": event("pipeline-succeeded").to_string(),
    });
    let told = refused(&queued(&envelope.to_string())).await;
    assert_snapshot!(told, @r#"the event lies in a topic's envelope ("Type":"Notification") in a queue's message, so it is wrapped twice: switch on raw message delivery for the queue's subscription to the topic"#);
}

#[tokio::test(start_paused = true)]
async fn records_of_a_topic_that_somebody_puts_into_a_queue() {
    let inner = event("sns-record").to_string();
    assert_snapshot!(refused(&queued(&inner)).await, @"the record's body holds Records again, so the event is wrapped twice: let one queue or one topic lie between the rule and the function, not both");
    let inner = event("sqs-record").to_string();
    assert_snapshot!(refused(&published(&inner)).await, @"the record's Sns.Message holds Records again, so the event is wrapped twice: let one queue or one topic lie between the rule and the function, not both");
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_calls_the_function() {
    let bucket =
        json!({"Records": [{"eventSource": "aws:s3", "s3": {"bucket": {"name": "artifacts"}}}]});
    assert_snapshot!(refused(&bucket).await, @r#"the record is neither of SQS (a text "body") nor of SNS (a text "Sns.Message"): send the event through one of these, or by an EventBridge rule"#);
    for strange in [
        json!({"Records": 7}),
        json!({"Records": [null]}),
        json!({"Records": [{"body": 7}]}),
        json!({"Records": [{"Sns": "text"}]}),
    ] {
        let told = refused(&strange).await;
        assert!(told.starts_with("the record is neither"), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_notification_rule_in_place_of_an_event_rule() {
    assert_snapshot!(refused(&notification()).await, @r#"this is the message of a notification rule ("detailType"), not an event: add an EventBridge rule for "CodePipeline Pipeline Execution State Change" or "CodeDeploy Deployment State-change Notification" whose target is the function"#);
    // As it comes in fact: a notification rule's target is a topic.
    let through_a_topic = published(&notification().to_string());
    assert_eq!(
        refused(&through_a_topic).await,
        refused(&notification()).await
    );
}

#[tokio::test(start_paused = true)]
async fn a_trigger_of_the_deployment_group_in_place_of_an_event_rule() {
    let message = json!({
        "region": "us-east-1",
        "accountId": "111122223333",
        "eventTriggerName": "all",
        "applicationName": "web",
        "deploymentId": "d-EXAMPLE03",
        "deploymentGroupName": "blue",
        "createTime": "Tue Nov 05 14:23:04 UTC 2024",
        "completeTime": "Tue Nov 05 14:25:22 UTC 2024",
        "deploymentOverview": "{\"Succeeded\":2,\"Failed\":0,\"Skipped\":0,\"InProgress\":0,\"Pending\":0}",
        "status": "SUCCEEDED",
    });
    let told = refused(&published(&message.to_string())).await;
    assert_snapshot!(told, @r#"this is the message of a CodeDeploy trigger ("eventTriggerName"), not an event: add an EventBridge rule for "CodeDeploy Deployment State-change Notification" whose target is the function"#);
    assert_eq!(refused(&message).await, told);
}

/// The job holds credentials: nothing of it is shown.
#[tokio::test(start_paused = true)]
async fn a_lambda_action_of_the_pipeline_in_place_of_an_event_rule() {
    let job = json!({"CodePipeline.job": {
        "id": "00000000-0000-4000-8000-000000000006",
        "accountId": "111122223333",
        "data": {
            "actionConfiguration": {"configuration": {
                "FunctionName": "codedeploy-agent-restarter",
                "UserParameters": "{\"application\":\"web\",\"deploymentGroup\":\"blue\"}",
            }},
            "inputArtifacts": [],
            "outputArtifacts": [],
            "artifactCredentials": {"accessKeyId": "x", "secretAccessKey": "x", "sessionToken": "x"},
        },
    }});
    assert_snapshot!(refused(&job).await, @r#"this is a pipeline's job ("CodePipeline.job"), which the function does not answer: take the Lambda action out of the pipeline, and add an EventBridge rule for "CodePipeline Pipeline Execution State Change" whose target is the function"#);
}

/// It was taken for a request by hand with a field too many.
#[tokio::test(start_paused = true)]
async fn a_rule_that_passes_only_the_detail() {
    let mut detail = json!({
        "instanceGroupId": "9fd2fbef-2157-40d8-91e7-6845af69e2d2",
        "region": "us-east-1",
        "application": "web",
        "deploymentId": "d-EXAMPLE04",
        "state": "FAILURE",
        "deploymentGroup": "blue",
    });
    assert_snapshot!(refused(&detail).await, @r#"this is only the "detail" of an event (field "state"): remove InputPath from the rule's target, so that the rule passes the whole event"#);
    detail.as_object_mut().expect("an object").remove("state");
    assert!(refused(&detail).await.contains("remove InputPath"));
    for name in ["pipeline-succeeded", "action-succeeded"] {
        let detail = event(name)["detail"].clone();
        assert!(
            refused(&detail).await.contains("remove InputPath"),
            "{name}"
        );
    }
}
