//! What an event comes in. Out of one record of a queue or a topic it is taken; any other wrapping that people put around
//! one is refused by its name, with what to set up instead: a delivery that is dropped without a word leaves agents as
//! they are, and nobody hears of it.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::text::quoted;

/// The event of a pipeline's execution
/// (<https://docs.aws.amazon.com/codepipeline/latest/userguide/detect-state-changes-cloudwatch-events.html>).
pub const PIPELINE_EVENT: &str = "CodePipeline Pipeline Execution State Change";
/// The event of a deployment
/// (<https://docs.aws.amazon.com/codedeploy/latest/userguide/monitoring-cloudwatch-events.html>).
pub const DEPLOYMENT_EVENT: &str = "CodeDeploy Deployment State-change Notification";

/// A wrapping that is not read, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrappingError {
    /// A batch. Its events have one invocation, one answer and one end: one that fails would repeat the others.
    #[error(
        "Records holds {0} records, not one: set the batch size to 1 where the queue calls the function"
    )]
    NotOne(usize),
    /// `Records` of another service, or of no service.
    #[error(
        "the record is neither of SQS (a text \"body\") nor of SNS (a text \"Sns.Message\"): send the event through one of these, or by an EventBridge rule"
    )]
    OtherRecord,
    /// What was sent is no event: an input transformer made a sentence of it, or somebody wrote one.
    #[error(
        "{0} is no JSON object: let the rule pass the whole event, without an input transformer"
    )]
    NoObject(&'static str),
    /// A record in a record.
    #[error(
        "{0} holds Records again, so the event is wrapped twice: let one queue or one topic lie between the rule and the function, not both"
    )]
    Twice(&'static str),
    /// A topic's message as the topic wraps it for a queue.
    #[error(
        "the event lies in a topic's envelope (\"Type\":\"Notification\") in a queue's message, so it is wrapped twice: switch on raw message delivery for the queue's subscription to the topic"
    )]
    TopicInQueue,
    /// AWS CodeStar Notifications: <https://docs.aws.amazon.com/codestar-notifications/latest/userguide/concepts.html>.
    #[error(
        "this is the message of a notification rule (\"detailType\"), not an event: add an EventBridge rule for \"{}\" or \"{}\" whose target is the function",
        PIPELINE_EVENT,
        DEPLOYMENT_EVENT
    )]
    NotificationRule,
    /// A deployment group's own trigger:
    /// <https://docs.aws.amazon.com/codedeploy/latest/userguide/monitoring-sns-event-notifications-json-format.html>.
    #[error(
        "this is the message of a CodeDeploy trigger (\"eventTriggerName\"), not an event: add an EventBridge rule for \"{}\" whose target is the function",
        DEPLOYMENT_EVENT
    )]
    DeploymentTrigger,
    /// An invoke action: <https://docs.aws.amazon.com/codepipeline/latest/userguide/actions-invoke-lambda-function.html>.
    /// It would wait for an answer to the job until it times out.
    #[error(
        "this is a pipeline's job (\"CodePipeline.job\"), which the function does not answer: take the Lambda action out of the pipeline, and add an EventBridge rule for \"{}\" whose target is the function",
        PIPELINE_EVENT
    )]
    PipelineJob,
    /// A rule's target with an input path.
    #[error(
        "this is only the \"detail\" of an event (field {0}): remove InputPath from the rule's target, so that the rule passes the whole event"
    )]
    OnlyDetail(String),
}

/// The event itself: as it is, or out of the one record that it lies in.
///
/// # Errors
/// When it lies in a wrapping that is not read.
pub fn unwrapped(given: &Value) -> Result<Cow<'_, Value>, WrappingError> {
    let Value::Object(fields) = given else {
        return Ok(Cow::Borrowed(given));
    };
    let Some(records) = fields.get("Records") else {
        return refuse_wrapping(fields).map(|()| Cow::Borrowed(given));
    };
    let (place, text) = only_text(records)?;
    let Ok(Value::Object(event)) = serde_json::from_str(text) else {
        return Err(WrappingError::NoObject(place));
    };
    if event.contains_key("Records") {
        return Err(WrappingError::Twice(place));
    }
    refuse_wrapping(&event)?;
    Ok(Cow::Owned(Value::Object(event)))
}

/// What the only record holds, and where.
fn only_text(records: &Value) -> Result<(&'static str, &str), WrappingError> {
    let record = match records.as_array().map(Vec::as_slice) {
        Some([record]) => record,
        Some(records) => return Err(WrappingError::NotOne(records.len())),
        None => return Err(WrappingError::OtherRecord),
    };
    let queued = record.get("body").and_then(Value::as_str);
    let published = || record.pointer("/Sns/Message").and_then(Value::as_str);
    queued
        .map(|body| ("the record's body", body))
        .or_else(|| Some(("the record's Sns.Message", published()?)))
        .ok_or(WrappingError::OtherRecord)
}

/// Refuses what is no event, but made of one.
fn refuse_wrapping(event: &Map<String, Value>) -> Result<(), WrappingError> {
    let has = |field: &str| event.contains_key(field);
    // Whatever else it holds, it is an event.
    if has("detail-type") {
        return Ok(());
    }
    if has("CodePipeline.job") {
        return Err(WrappingError::PipelineJob);
    }
    if has("detailType") {
        return Err(WrappingError::NotificationRule);
    }
    if has("eventTriggerName") {
        return Err(WrappingError::DeploymentTrigger);
    }
    if has("Message") && event.get("Type").and_then(Value::as_str) == Some("Notification") {
        return Err(WrappingError::TopicInQueue);
    }
    // No request has any of these, and each detail has one.
    match ["state", "instanceGroupId", "execution-id"]
        .into_iter()
        .find(|field| has(field))
    {
        Some(field) => Err(WrappingError::OnlyDetail(quoted(field))),
        None => Ok(()),
    }
}
