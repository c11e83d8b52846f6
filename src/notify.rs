//! Who is told, and the publishing: one message for each group that needs somebody, and one for what belongs to no
//! group. What they say is written in [`message`](crate::message).

use aws_sdk_sns::types::MessageAttributeValue;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::aws::Clients;
use crate::kind::Severity;
use crate::message::{Message, about_group, about_problems};
use crate::problem::CallError;
use crate::report::{GroupReport, Report};
use crate::settings::{NotifyOn, Settings, Topic};
use crate::trigger::Home;

const PUBLISH: &str = "sns:Publish";

/// Every message that is due: none for a dry run, one for what belongs to no group, and one for each group that
/// needs a person, or for each group if so set.
pub fn messages(report: &Report, settings: &Settings, home: &Home) -> Vec<Message> {
    if report.dry_run {
        return Vec::new();
    }
    let due = |group: &&GroupReport| {
        group.severity() > Severity::Ok || settings.notify_on == NotifyOn::Always
    };
    let order = &report.order;
    let of_event =
        (!report.problems.is_empty()).then(|| about_problems(order, &report.problems, home));
    let groups = report.groups.iter().filter(due);
    let of_groups = groups.map(|group| about_group(order, group, home));
    of_event.into_iter().chain(of_groups).collect()
}

/// Publishes the messages, until `until`. One that fails does not keep the others.
///
/// # Errors
/// When SNS refuses one, or does not answer in time: the invocation must then fail, so that Lambda repeats it
/// and its dead-letter queue speaks up.
pub async fn publish(
    clients: &Clients,
    topic: &Topic,
    messages: &[Message],
    until: Instant,
) -> Result<(), CallError> {
    let sns = &clients.in_region(&topic.region).sns;
    let published = messages.iter().map(async |message| {
        let published = timeout_at(until, publish_one(sns, &topic.arn, message))
            .await
            .unwrap_or_else(|_| Err(CallError::out_of_time(PUBLISH, &topic.arn)));
        if let Err(error) = &published {
            tracing::error!(
                code = error.code.word(),
                "not published: {}: {error}",
                message.subject
            );
        }
        published
    });
    join_all(published).await.into_iter().collect()
}

async fn publish_one(
    sns: &aws_sdk_sns::Client,
    topic: &str,
    message: &Message,
) -> Result<(), CallError> {
    let mut call = sns
        .publish()
        .topic_arn(topic)
        .subject(&message.subject)
        .message_structure("json")
        .message(message.body());
    for (name, value) in &message.attributes {
        let attribute = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(value)
            .build()
            .map_err(|_| CallError::incomplete(PUBLISH, topic, "attribute type"))?;
        call = call.message_attributes(*name, attribute);
    }
    match call.send().await {
        Ok(_) => Ok(()),
        Err(error) => Err(CallError::new(PUBLISH, topic, &error)),
    }
}
