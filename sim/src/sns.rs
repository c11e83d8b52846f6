//! SNS: `Publish` to a standard or FIFO topic.

use serde_json::{Map, Value, json};

use crate::service::{Answered, Context, Input, object};
use crate::state::Message;
use crate::wire::{Failure, uuid};

/// Bytes of a message with its attributes (API_Publish).
const MESSAGE_LIMIT: usize = 262_144;
/// Characters of a subject: fewer than this (API_Publish).
const SUBJECT_LIMIT: usize = 100;
/// Characters of an attribute's name (SNS message attributes).
const ATTRIBUTE_NAME_LIMIT: usize = 256;

pub(crate) fn publish(context: &mut Context<'_>, input: &Input<'_>) -> Answered {
    let arn = topic_arn(context, input)?.to_owned();
    let message = input.text("Message")?.unwrap_or_default();
    if message.is_empty() {
        return Err(invalid("Empty message"));
    }
    let subject = input.text("Subject")?;
    check_subject(subject)?;
    check_structure(input, message)?;
    let attributes = attributes(input)?;
    let size = message.len() + subject.map_or(0, str::len) + attributes_size(&attributes);
    if size > MESSAGE_LIMIT {
        return Err(invalid("Message too long"));
    }
    let fifo = arn.ends_with(".fifo");
    if fifo && !input.has("MessageGroupId") {
        return Err(invalid(
            "The MessageGroupId parameter is required for FIFO topics",
        ));
    }

    let published = Message {
        at: context.at,
        topic: arn.clone(),
        subject: subject.map(str::to_owned),
        message: message.to_owned(),
        attributes,
    };
    let Some(topic) = context
        .state
        .topics
        .iter_mut()
        .find(|topic| topic.arn == arn)
    else {
        return Err(Failure::new("NotFound", "Topic does not exist"));
    };
    topic.messages.push(published);
    let number = topic.messages.len();
    Ok(object(json!({
        "MessageId": uuid(&format!("message {number} of {arn}")),
        "SequenceNumber": fifo.then(|| format!("{number:020}")),
    })))
}

/// The topic that is named, which must lie in the called region.
fn topic_arn<'a>(context: &Context<'_>, input: &Input<'a>) -> Result<&'a str, Failure> {
    let Some(arn) = input.text("TopicArn")?.or(input.text("TargetArn")?) else {
        return Err(invalid(
            "TopicArn or TargetArn Reason: no value for required parameter",
        ));
    };
    let parts: Vec<&str> = arn.split(':').collect();
    match parts.as_slice() {
        [
            "arn",
            "aws" | "aws-cn" | "aws-us-gov",
            "sns",
            region,
            _account,
            name,
        ] if !name.is_empty() && *region == context.region => Ok(arn),
        _ => Err(invalid("TopicArn")),
    }
}

fn check_subject(subject: Option<&str>) -> Result<(), Failure> {
    let Some(subject) = subject else {
        return Ok(());
    };
    let printable = subject.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if subject.is_empty()
        || subject.len() >= SUBJECT_LIMIT
        || !printable
        || subject.starts_with(' ')
    {
        return Err(invalid("Subject"));
    }
    Ok(())
}

/// With `MessageStructure=json`, the message is an object of texts with the key `default`.
fn check_structure(input: &Input<'_>, message: &str) -> Result<(), Failure> {
    match input.text("MessageStructure")? {
        None => Ok(()),
        Some("json") => match serde_json::from_str(message) {
            Ok(Value::Object(bodies)) if bodies.values().any(|body| !body.is_string()) => Err(
                invalid("Message Structure - JSON message body failed to parse"),
            ),
            Ok(Value::Object(bodies)) if bodies.contains_key("default") => Ok(()),
            Ok(Value::Object(_)) => Err(invalid(
                "Message Structure - No default entry in JSON message body",
            )),
            _ => Err(invalid(
                "Message Structure - JSON message body failed to parse",
            )),
        },
        Some(_) => Err(invalid("MessageStructure")),
    }
}

/// The attributes by name, each `{"Type": …, "Value": …}` as a subscriber sees it.
fn attributes(input: &Input<'_>) -> Result<Map<String, Value>, Failure> {
    let Some(given) = input.map("MessageAttributes")? else {
        return Ok(Map::new());
    };
    given
        .iter()
        .map(|(name, value)| Ok((name.clone(), attribute(name, value)?)))
        .collect()
}

fn attribute(name: &str, value: &Value) -> Result<Value, Failure> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
    if name.is_empty() || name.len() > ATTRIBUTE_NAME_LIMIT || !name.chars().all(allowed) {
        return Err(invalid(&format!(
            "The message attribute name '{name}' is not valid"
        )));
    }
    let Some(kind) = value["DataType"].as_str() else {
        return Err(attribute_error(
            name,
            "must contain a non-empty message attribute type.",
        ));
    };
    let text = value["StringValue"].as_str();
    let member = if kind.split('.').next() == Some("Binary") {
        value["BinaryValue"].as_str()
    } else {
        text
    };
    let Some(content) = member.filter(|content| !content.is_empty()) else {
        return Err(attribute_error(
            name,
            "must contain a non-empty message attribute value.",
        ));
    };
    let fits = match kind.split('.').next() {
        Some("String") if kind == "String.Array" => is_array_of_scalars(content),
        Some("Number") => content.parse::<f64>().is_ok(),
        Some("String" | "Binary") => true,
        _ => {
            return Err(attribute_error(
                name,
                "has an invalid message attribute type.",
            ));
        }
    };
    if !fits {
        return Err(attribute_error(
            name,
            &format!("does not hold a value of type {kind}."),
        ));
    }
    Ok(json!({ "Type": kind, "Value": content }))
}

fn is_array_of_scalars(content: &str) -> bool {
    match serde_json::from_str(content) {
        Ok(Value::Array(items)) => !items.iter().any(|item| item.is_array() || item.is_object()),
        _ => false,
    }
}

/// Name, type and value of each attribute count towards the message's size.
fn attributes_size(attributes: &Map<String, Value>) -> usize {
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    attributes
        .iter()
        .map(|(name, value)| name.len() + length(&value["Type"]) + length(&value["Value"]))
        .sum()
}

fn invalid(what: &str) -> Failure {
    Failure::new("InvalidParameter", format!("Invalid parameter: {what}"))
}

fn attribute_error(name: &str, what: &str) -> Failure {
    Failure::new(
        "ParameterValueInvalid",
        format!("The message attribute '{name}' {what}"),
    )
}
