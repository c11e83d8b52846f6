//! The message to people and programs about a report, and its publishing. All outbound text stands here.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aws_sdk_sns::types::MessageAttributeValue;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::aws::{CallError, Clients};
use crate::outcome::{Cause, Kind, Outcome, Problem, Severity};
use crate::report::{GroupReport, Report};
use crate::settings::{NotifyOn, Settings};
use crate::text::plain;
use crate::trigger::{Home, Subject};

/// Bytes of one `Publish`, attributes included (`API_Publish`).
const MAX_MESSAGE: usize = 262_144;
/// Characters of a subject (`API_Publish`: fewer than 100).
const MAX_SUBJECT: usize = 99;
/// Characters of one text message.
const MAX_SMS: usize = 140;
/// Characters that are left of each detail when the whole does not fit one message.
const SHORT_DETAIL: usize = 100;
/// Messages about one event. Each holds some hundreds of instances, and a pipeline deploys to a few thousand.
const MAX_PARTS: usize = 200;
const PUBLISH: &str = "sns:Publish";
/// Instances that a chat card names; the other bodies name all.
const CARD_INSTANCES: usize = 10;

/// A message as SNS takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Printable ASCII, at most 99 characters.
    pub subject: String,
    /// One text for each protocol, `default` among them.
    pub bodies: BTreeMap<&'static str, String>,
    /// What subscriptions can filter on: the attribute's type and value.
    pub attributes: BTreeMap<&'static str, (&'static str, String)>,
}

/// Whether a message is due.
pub fn is_due(report: &Report, settings: &Settings) -> bool {
    !report.dry_run && (report.needs_attention() || settings.notify_on == NotifyOn::Always)
}

/// Writes the message: one, or numbered ones when it does not fit. Details are cut first, then the instances
/// are shared out; nobody is dropped. Pure.
pub fn messages(report: &Report, home: &Home) -> Vec<Message> {
    let whole = message(report, home, Part::ONLY);
    if whole.fits() {
        return vec![whole];
    }
    let short = report.shortened(SHORT_DETAIL);
    let mut messages = Vec::new();
    for count in 1..=MAX_PARTS {
        let parts = short.split(count);
        let of = parts.len();
        messages = parts
            .iter()
            .enumerate()
            .map(|(n, part)| message(part, home, Part { number: n + 1, of }))
            .collect();
        // More parts than instances there are not.
        if messages.iter().all(Message::fits) || of < count {
            break;
        }
    }
    messages
}

/// Which part of a message this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    number: usize,
    of: usize,
}

impl Part {
    const ONLY: Self = Self { number: 1, of: 1 };

    /// What stands before the headline of a numbered message.
    fn prefix(self) -> String {
        match self.of {
            1 => String::new(),
            of => format!("({}/{of}) ", self.number),
        }
    }
}

fn message(report: &Report, home: &Home, part: Part) -> Message {
    let headline = format!("{}{}", part.prefix(), headline(report));
    let text = text(report, home, &headline);
    let data = data(report, part);
    let bodies = BTreeMap::from([
        ("default", text.clone()),
        ("email", text),
        ("sms", plain(&headline, MAX_SMS)),
        ("https", card(report, home, &headline).to_string()),
        ("sqs", data.clone()),
        ("lambda", data),
    ]);
    Message {
        subject: plain(&headline, MAX_SUBJECT),
        bodies,
        attributes: attributes(report),
    }
}

impl Message {
    /// The `Message` of `Publish`: JSON with a text for each protocol.
    fn body(&self) -> String {
        json!(self.bodies).to_string()
    }

    fn fits(&self) -> bool {
        let attributes = self.attributes.iter();
        let attributes: usize = attributes
            .map(|(name, (kind, value))| name.len() + kind.len() + value.len())
            .sum();
        self.body().len() + self.subject.len() + attributes <= MAX_MESSAGE
    }
}

/// Publishes the messages in order, until `until`.
///
/// # Errors
/// When SNS refuses, or does not answer in time: the invocation must then fail, so that Lambda repeats it
/// and its dead-letter queue speaks up.
pub async fn publish(
    clients: &Clients,
    settings: &Settings,
    messages: &[Message],
    until: Instant,
) -> Result<(), CallError> {
    let topic = &settings.topic;
    let sns = clients.in_region(&topic.region).sns;
    for message in messages {
        timeout_at(until, publish_one(&sns, &topic.arn, message))
            .await
            .unwrap_or_else(|_| Err(CallError::out_of_time(PUBLISH, &topic.arn)))?;
    }
    Ok(())
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
    for (name, (kind, value)) in &message.attributes {
        let attribute = MessageAttributeValue::builder()
            .data_type(*kind)
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

/// What failed, where: one line, for the subject, text messages and the first line of the text.
fn headline(report: &Report) -> String {
    let (attention, all) = report.instance_counts();
    let level = report.severity().word().to_uppercase();
    let what = report.order.subject.words();
    match (attention, report.has_problem()) {
        (0, false) => {
            format!("{level}: none of {all} CodeDeploy agents needs attention: {what}")
        }
        (0, true) => format!("{level}: not every CodeDeploy agent could be treated: {what}"),
        (1, _) => format!("{level}: 1 of {all} CodeDeploy agents needs attention: {what}"),
        _ => format!("{level}: {attention} of {all} CodeDeploy agents need attention: {what}"),
    }
}

fn text(report: &Report, home: &Home, headline: &str) -> String {
    let order = &report.order;
    let mut text = headline.to_owned();
    if let Subject::Pipeline { execution_id, .. } = &order.subject {
        let _ = write!(text, ", execution {execution_id}");
    }
    let _ = write!(
        text,
        "\nAccount {}, region {}, {}\n",
        order.account, order.region, order.time
    );
    if let Some(problem) = &report.problem {
        write_problem(&mut text, problem);
    }
    for group in report.worst_first() {
        write_group(&mut text, group, report, home);
    }
    text
}

fn write_problem(text: &mut String, problem: &Problem) {
    let _ = write!(
        text,
        "\nProblem in step {}: {}: {}\n  Do: {}.\n",
        problem.step, problem.code, problem.message, problem.remedy
    );
}

fn write_group(text: &mut String, group: &GroupReport, report: &Report, home: &Home) {
    let _ = write!(
        text,
        "\n{}/{} in {}",
        group.name.application, group.name.deployment_group, group.name.region
    );
    if !group.deployment_ids.is_empty() {
        let _ = write!(text, ", deployment {}", group.deployment_ids.join(", "));
    }
    let counts: Vec<String> = group
        .counts()
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    let _ = match counts.is_empty() {
        true => writeln!(text),
        false => writeln!(text, ": {}", counts.join(", ")),
    };
    if let Some(problem) = &group.problem {
        write_problem(text, problem);
    }
    for section in sections(group) {
        let _ = writeln!(
            text,
            "\n{} {}:",
            section.severity.word().to_uppercase(),
            section.kind
        );
        for line in &section.lines {
            let _ = writeln!(text, "  {line}");
        }
        let _ = writeln!(text, "  Do: {}.", section.advice);
    }
    if group.problem.is_some() || group.attention_count() > 0 {
        text.push_str("\nRepeat by hand (leaves agents alone that are fresh by now):\n");
        for command in repeat_commands(group, report, home) {
            let _ = writeln!(text, "  {command}");
        }
    }
}

/// Instances with the same outcome and the same advice.
struct Section {
    severity: Severity,
    kind: Kind,
    advice: &'static str,
    lines: Vec<String>,
}

fn sections(group: &GroupReport) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for (id, entry, outcome) in group.attention() {
        let mut line = id.to_owned();
        if let Some(name) = &entry.name {
            let _ = write!(line, " ({name})");
        }
        let _ = write!(line, ": {}", outcome.detail);
        if let Some(command) = &outcome.command_id {
            let _ = write!(line, " [command {command}]");
        }
        let (severity, kind, advice) = (outcome.severity(), outcome.kind, advice(outcome));
        match sections
            .iter_mut()
            .find(|s| (s.severity, s.kind, s.advice) == (severity, kind, advice))
        {
            Some(section) => section.lines.push(line),
            None => sections.push(Section {
                severity,
                kind,
                advice,
                lines: vec![line],
            }),
        }
    }
    sections
}

/// What a person should do about an outcome.
fn advice(outcome: &Outcome) -> &'static str {
    match outcome.cause {
        Some(cause) => advice_on(cause),
        None => general_advice(outcome),
    }
}

fn advice_on(cause: Cause) -> &'static str {
    match cause {
        Cause::TooManyErrors => "mend those that failed, then repeat by hand",
        Cause::NoTime => "repeat by hand",
        Cause::FailedCall => "do what the problem says, then repeat by hand",
        Cause::Denied => {
            "allow this function's role ssm:SendCommand on the instance (by its tag or the policy), then \
             repeat by hand"
        }
    }
}

fn general_advice(outcome: &Outcome) -> &'static str {
    match (outcome.kind, outcome.code) {
        (Kind::Failed, Some(30 | 32)) => {
            "start the agent now, or the next deployment fails there: sudo systemctl start \
             codedeploy-agent; journalctl -u codedeploy-agent shows why it went down"
        }
        (Kind::Failed, Some(10)) => {
            "install the agent, or take the instance out of the deployment group"
        }
        (Kind::Failed, Some(11)) => "let the SSM Agent run commands as root",
        (Kind::Failed, Some(12)) => {
            "repair the agent's installation or unit; the running agent was left alone, a new one would \
             not start"
        }
        (Kind::Failed, Some(31)) => {
            "pgrep -af codedeploy-agent shows the old agent: when no deployment runs, stop it and start the \
             service once"
        }
        (Kind::Failed, Some(33)) => {
            "read /var/log/aws/codedeploy-agent/codedeploy-agent.log: the new agent does not reach \
             CodeDeploy (credentials, network, region)"
        }
        (Kind::Failed, _) => {
            "check that DOCUMENT_NAME is the restart document of this version, and the command's output"
        }
        (Kind::Busy, Some(_)) => "repeat by hand when what runs there has ended",
        (Kind::Busy, None) => {
            "nothing, if this function also hears of that deployment's success: it brings the restart; \
             else repeat by hand"
        }
        (Kind::Unreachable | Kind::Undelivered, _) => {
            "check the SSM Agent, the instance profile (AmazonSSMManagedInstanceCore) and the network, \
             then repeat by hand; or terminate the instance"
        }
        (Kind::TimedOut, _) => {
            "systemctl status codedeploy-agent on the instance: it may be down; then repeat by hand"
        }
        (Kind::Cancelled, _) => "find out who cancelled it, then repeat by hand",
        (Kind::HeldBack, _) => {
            "if a call failed, do what the problem says; if its lifecycle state is unknown, wait until it is \
             InService; then repeat by hand"
        }
        (Kind::Unfinished, _) => {
            "see the command's result in Systems Manager, Run Command; then repeat by hand"
        }
        _ => "nothing",
    }
}

/// One command for each deployment: a request takes one. The time makes it safe to repeat.
fn repeat_commands(group: &GroupReport, report: &Report, home: &Home) -> Vec<String> {
    let time = group.triggered_at.unwrap_or(report.order.time);
    let ids: Vec<Option<&String>> = match group.deployment_ids.is_empty() {
        true => vec![None],
        false => group.deployment_ids.iter().map(Some).collect(),
    };
    ids.into_iter()
        .map(|id| {
            let mut request = json!({
                "application": group.name.application,
                "deploymentGroup": group.name.deployment_group,
                "region": group.name.region,
                "time": time,
            });
            if let Some(id) = id {
                request["deploymentId"] = json!(id);
            }
            let payload = request.to_string().replace('\'', "'\\''");
            format!(
                "aws lambda invoke --region {} --function-name {} \
                 --cli-read-timeout 900 --cli-binary-format raw-in-base64-out --payload '{payload}' \
                 answer.json",
                home.region, home.function
            )
        })
        .collect()
}

/// The returned JSON for programs: each part is valid, with its own instances and the event's counts.
fn data(report: &Report, part: Part) -> String {
    let mut data = json!(report.answer(true));
    data["part"] = json!(part.number);
    data["parts"] = json!(part.of);
    data.to_string()
}

/// A custom notification of Amazon Q Developer in chat applications: anything else on the topic it drops
/// without a word.
fn card(report: &Report, home: &Home, headline: &str) -> Value {
    let mut description = String::new();
    let mut steps: Vec<String> = Vec::new();
    let mut named = 0;
    for problem in report.problems() {
        let _ = writeln!(
            description,
            "Problem in step {}: {}: {}",
            problem.step, problem.code, problem.message
        );
        steps.push(problem.remedy.clone());
    }
    for group in report.worst_first() {
        let rows = group.attention();
        for (id, _, outcome) in &rows {
            if named < CARD_INSTANCES {
                // What a host says may not become markup or a mention.
                let detail = outcome.detail.replace('`', "'");
                let _ = writeln!(description, "`{id}` *{}*: `{detail}`", outcome.kind);
            }
            named += 1;
            let step = advice(outcome).to_owned();
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
    }
    if named > CARD_INSTANCES {
        let _ = writeln!(description, "and {} more", named - CARD_INSTANCES);
    }
    if description.is_empty() {
        description = headline.to_owned();
    }
    let groups: Vec<String> = report
        .groups
        .iter()
        .map(|g| format!("{}/{}", g.name.application, g.name.deployment_group))
        .collect();
    json!({
        "version": "1.0",
        "source": "custom",
        "content": {
            "textType": "client-markdown",
            "title": headline,
            "description": description,
            "nextSteps": steps,
            "keywords": ["codedeploy-agent", report.severity().word()],
        },
        "metadata": {
            "threadId": report.order.subject.words(),
            "summary": headline,
            "eventType": "codedeploy-agent-restart",
            "additionalContext": {
                "function": home.function,
                "deploymentGroups": groups.join(", "),
            },
        },
    })
}

fn attributes(report: &Report) -> BTreeMap<&'static str, (&'static str, String)> {
    let mut attributes = BTreeMap::from([
        ("result", ("String", report.answer(true).result.to_owned())),
        ("severity", ("String", report.severity().word().to_owned())),
    ]);
    if let Subject::Pipeline { pipeline, .. } = &report.order.subject {
        attributes.insert("pipeline", ("String", pipeline.clone()));
    }
    let (application, deployment_group) = report.order.subject.group().unzip();
    let lists = [
        (
            "application",
            names(report, application, |group| &group.name.application),
        ),
        (
            "deploymentGroup",
            names(report, deployment_group, |group| {
                &group.name.deployment_group
            }),
        ),
    ];
    for (attribute, names) in lists {
        if !names.is_empty() {
            attributes.insert(attribute, ("String.Array", json!(names).to_string()));
        }
    }
    attributes
}

/// The distinct names of all groups, and of the one that was ordered.
fn names<'a>(
    report: &'a Report,
    ordered: Option<&'a String>,
    name: impl Fn(&'a GroupReport) -> &'a String,
) -> Vec<&'a String> {
    let mut names: Vec<&String> = report.groups.iter().map(name).chain(ordered).collect();
    names.sort();
    names.dedup();
    names
}
