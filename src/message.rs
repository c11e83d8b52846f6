//! What a message says, to people (text, one line, chat card) and to programs: about one group, or about what belongs
//! to no group. Pure; what to do comes from [`advice`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::advice::{self, MAX_COMMANDS};
use crate::answer::{Answer, Detail};
use crate::ids::{AccountId, Name, Region};
use crate::kind::{Kind, Severity};
use crate::problem::{Problem, Problems};
use crate::report::{Entry, GroupReport, Row};
use crate::text::{abridged, cut, harmless, plain};
use crate::trigger::{Home, Order, Subject};

/// Bytes of one `Publish`, attributes included
/// (<https://docs.aws.amazon.com/sns/latest/api/API_Publish.html>).
const MAX_MESSAGE: usize = 262_144;
/// Characters of a subject (`API_Publish`: fewer than 100).
const MAX_SUBJECT: usize = 99;
/// Characters of one text message.
const MAX_SMS: usize = 140;
/// Characters of a card's title and of its description, as Amazon Q Developer in chat applications takes them
/// (<https://docs.aws.amazon.com/chatbot/latest/adminguide/custom-notifs.html>).
const MAX_TITLE: usize = 250;
const MAX_DESCRIPTION: usize = 4_000;
/// Instances that a card names, characters of what it says about each, and its next steps.
const CARD_INSTANCES: usize = 10;
const CARD_DETAIL: usize = 200;
const CARD_STEPS: usize = 5;
/// Outcomes that a headline counts one by one, the others together.
const HEADLINE_OUTCOMES: usize = 3;
/// Characters of an on-premises target's name (CodeDeploy itself takes 100).
const MAX_TARGET: usize = 150;
/// Problems that a text tells; a pipeline may have hundreds of actions.
const MAX_PROBLEMS: usize = 20;

/// How much is said of each instance: the first of these that fits one message.
const SIZES: [Size; 5] = [
    Size::of(50, 500, 900),
    Size::of(50, 250, 300),
    Size::of(50, 100, 100),
    Size::of(25, 50, 60),
    Size::of(5, 10, 40),
];

#[derive(Clone, Copy, Debug)]
struct Size {
    /// Instances of each outcome that a text names.
    named: usize,
    /// What programs get.
    data: Detail,
}

impl Size {
    const fn of(named: usize, rows: usize, characters: usize) -> Self {
        let data = Detail { rows, characters };
        Self { named, data }
    }
}

/// A message as SNS takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Printable ASCII, at most 99 characters.
    pub subject: String,
    /// One text for each protocol, `default` among them.
    pub bodies: BTreeMap<&'static str, String>,
    /// What subscriptions can filter on, all of the type String.
    pub attributes: BTreeMap<&'static str, String>,
}

impl Message {
    /// The `Message` of `Publish`: JSON with a text for each protocol.
    pub fn body(&self) -> String {
        json!(self.bodies).to_string()
    }

    fn fits(&self) -> bool {
        let attributes = self.attributes.iter();
        let attributes: usize = attributes
            .map(|(name, value)| name.len() + "String".len() + value.len())
            .sum();
        self.body().len() + self.subject.len() + attributes <= MAX_MESSAGE
    }
}

/// The message about a group.
pub fn about_group(order: &Order, group: &GroupReport, home: &Home) -> Message {
    let sized = |size: Size| {
        let answer = Answer::of_group(order, group, size.data);
        let headline = |most| headline(group, most);
        let text = group_text(order, group, home, size);
        let card = group_card(order, group, home);
        let mut message = message(order, headline, text, card, &answer);
        let names = [
            ("account", group.name.account.as_str()),
            ("region", group.name.region.as_str()),
            ("application", group.name.application.as_str()),
            ("deploymentGroup", group.name.deployment_group.as_str()),
        ];
        let names = names.map(|(name, value)| (name, value.to_owned()));
        message.attributes.extend(names);
        message
    };
    let [first, smaller @ ..] = SIZES;
    smaller
        .into_iter()
        .fold(sized(first), |message, size| match message.fits() {
            true => message,
            false => sized(size),
        })
}

/// The message about what belongs to no group.
pub fn about_problems(order: &Order, problems: &Problems, home: &Home) -> Message {
    let answer = Answer::of_problems(order, problems);
    let place = place(&order.account, &order.region);
    let headline = |most: usize| {
        let begin = "WARNING: some agents not restarted: ";
        let room = most.saturating_sub(begin.len() + place.len());
        format!("{begin}{}{place}", abridged(&order.subject.words(), room))
    };
    let mut text = format!("{}\n{}\n", headline(usize::MAX), happened(order, &[]));
    write_problems(&mut text, problems);
    let card = card(
        &headline(MAX_TITLE),
        answer.severity,
        problem_lines(problems),
        steps(problems, &[]),
        order,
        home,
    );
    message(order, headline, text, card, &answer)
}

fn message(
    order: &Order,
    headline: impl Fn(usize) -> String,
    text: String,
    card: Value,
    answer: &Answer<'_>,
) -> Message {
    let data = json!(answer).to_string();
    let bodies = BTreeMap::from([
        ("default", text.clone()),
        ("email", text),
        ("sms", headline(MAX_SMS)),
        ("https", card.to_string()),
        ("sqs", data.clone()),
        ("lambda", data),
    ]);
    Message {
        subject: headline(MAX_SUBJECT),
        bodies,
        attributes: attributes(order, answer),
    }
}

/// What subscriptions can filter on, as far as the order itself tells.
fn attributes(order: &Order, answer: &Answer<'_>) -> BTreeMap<&'static str, String> {
    let mut attributes = BTreeMap::from([
        ("result", answer.result.to_owned()),
        ("severity", answer.severity.to_string()),
        ("account", order.account.to_string()),
        ("region", order.region.to_string()),
    ]);
    if let Subject::Pipeline { pipeline, .. } = &order.subject {
        attributes.insert("pipeline", pipeline.to_string());
    }
    if let Some((application, deployment_group)) = order.subject.group() {
        attributes.insert("application", application.to_string());
        attributes.insert("deploymentGroup", deployment_group.to_string());
    }
    attributes
}

/// One line that says what, how many and where, in at most `most` characters: first fewer outcomes are counted one
/// by one, then names are cut.
fn headline(group: &GroupReport, most: usize) -> String {
    let place = place(&group.name.account, &group.name.region);
    let full = |outcomes| format!("{}: {}{place}", group_words(group, outcomes), group.name);
    let lines = [full(HEADLINE_OUTCOMES), full(HEADLINE_OUTCOMES - 1)];
    if let Some(line) = lines.into_iter().find(|line| line.len() <= most) {
        return line;
    }
    let begin = group_words(group, HEADLINE_OUTCOMES - 1);
    let room = most.saturating_sub(begin.len() + place.len() + ": /".len());
    let name = |name: &Name| abridged(name.as_str(), room / 2);
    let (application, name) = (
        name(&group.name.application),
        name(&group.name.deployment_group),
    );
    plain(&format!("{begin}: {application}/{name}{place}"), most)
}

fn place(account: &AccountId, region: &Region) -> String {
    format!(" ({account} {region})")
}

fn is_skipped(entry: &Entry) -> bool {
    matches!(&entry.outcome, Some(outcome) if outcome.kind() == Kind::Skipped)
}

/// How bad it is, and how many agents need attention: so many outcomes one by one, and the others together.
fn group_words(group: &GroupReport, outcomes: usize) -> String {
    let level = group.severity().word().to_uppercase();
    let all = group.instances.len();
    let agents = if all == 1 { "agent" } else { "agents" };
    let rows = group.attention();
    if rows.is_empty() {
        return match (group.problems.is_empty(), all) {
            (true, 0) => format!("{level}: nothing to restart"),
            (true, _) => format!("{level}: {all} of {all} {agents} fine"),
            (false, 0) => format!("{level}: agents not restarted"),
            // Nothing is known of their health.
            (false, _) if group.instances.values().all(is_skipped) => {
                format!("{level}: a problem, {all} {agents} skipped")
            }
            (false, _) => format!("{level}: a problem, {all} {agents} fine"),
        };
    }
    let is_down = |row: &&Row<'_>| row.outcome.severity() == Severity::Critical;
    let mut counts = vec![(rows.iter().filter(is_down).count(), "down")];
    counts.extend(Kind::ALL.iter().map(|kind| {
        let of_kind = rows
            .iter()
            .filter(|row| row.outcome.kind() == *kind && !is_down(row));
        (of_kind.count(), kind.word())
    }));
    counts.retain(|(count, _)| *count > 0);
    if counts.len() > outcomes {
        let others = counts.split_off(outcomes - 1);
        counts.push((others.iter().map(|(count, _)| count).sum(), "others"));
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    format!("{level}: {} of {all} {agents}", counts.join(", "))
}

fn group_text(order: &Order, group: &GroupReport, home: &Home, size: Size) -> String {
    let mut text = headline(group, usize::MAX);
    let _ = writeln!(text, "\n{}", happened(order, &group.deployment_ids));
    let counts: Vec<String> = group
        .counts()
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    if !counts.is_empty() {
        let _ = writeln!(text, "In all: {}.", counts.join(", "));
    }
    let (critical, others): (Vec<_>, Vec<_>) = sections(group, size)
        .into_iter()
        .partition(|section| section.severity == Severity::Critical);
    write_sections(&mut text, &critical);
    // A problem explains what was not sent to, or has no result.
    write_problems(&mut text, &group.problems);
    write_sections(&mut text, &others);
    if group.severity() > Severity::Ok {
        text.push_str("\nRepeat by hand (leaves agents alone that are fresh by now):\n");
        let (ids, since) = (&group.deployment_ids, order.since);
        for command in advice::repeat_commands(&group.name, ids, since, home) {
            let _ = writeln!(text, "  {command}");
        }
        let more = group.deployment_ids.len().saturating_sub(MAX_COMMANDS);
        if more > 0 {
            let _ = writeln!(text, "  and the same for {more} more deployments");
        }
    }
    text
}

/// What the message follows.
fn happened(order: &Order, deployment_ids: &[Name]) -> String {
    let what = match &order.subject {
        Subject::Pipeline {
            pipeline,
            execution_id,
            ..
        } => format!("Pipeline {pipeline}, execution {execution_id}"),
        Subject::Deployment { deployment_id, .. } => format!("Deployment {deployment_id}"),
        Subject::Request { .. } => "A request by hand".to_owned(),
    };
    let known = matches!(order.subject, Subject::Deployment { .. });
    let ids = deployment_ids.iter().take(MAX_COMMANDS).map(Name::as_str);
    let ids: Vec<&str> = ids.collect();
    let more = match deployment_ids.len().saturating_sub(ids.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match known || ids.is_empty() {
        true => format!("{what}, {}.", order.time),
        false => format!(
            "{what}, {}; deployment {}{more}.",
            order.time,
            ids.join(", ")
        ),
    }
}

fn write_problems(text: &mut String, problems: &Problems) {
    for problem in problems.iter().take(MAX_PROBLEMS) {
        let (step, code, message) = (problem.step, problem.code.word(), &problem.message);
        let _ = writeln!(text, "\nProblem in step {step}: {code}: {message}");
        let _ = writeln!(text, "  Do: {}.", problem.remedy());
    }
    let more = problems.iter().skip(MAX_PROBLEMS).count();
    if more > 0 {
        let _ = writeln!(text, "\nand {more} more problems, in the function's log");
    }
}

fn write_sections(text: &mut String, sections: &[Section]) {
    for section in sections {
        let level = section.severity.word().to_uppercase();
        let _ = writeln!(text, "\n{level} {}:", section.kind);
        for line in &section.lines {
            let _ = writeln!(text, "  {line}");
        }
        if section.more > 0 {
            let _ = writeln!(text, "  and {} more", section.more);
        }
        let _ = writeln!(text, "  Do: {}.", section.advice);
    }
}

/// Instances with the same outcome and the same advice.
struct Section {
    severity: Severity,
    kind: Kind,
    advice: &'static str,
    lines: Vec<String>,
    /// Those that are not named.
    more: usize,
}

fn sections(group: &GroupReport, size: Size) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut named: BTreeMap<Kind, usize> = BTreeMap::new();
    for row in group.attention() {
        let (severity, kind) = (row.outcome.severity(), row.outcome.kind());
        let advice = row.remedy();
        let same = |s: &Section| (s.severity, s.kind, s.advice) == (severity, kind, advice);
        let place = sections.iter().position(same).unwrap_or(sections.len());
        if place == sections.len() {
            sections.push(Section {
                severity,
                kind,
                advice,
                lines: Vec::new(),
                more: 0,
            });
        }
        let named = named.entry(kind).or_default();
        if *named < size.named {
            *named += 1;
            sections[place].lines.push(line(row, size.data.characters));
        } else {
            sections[place].more += 1;
        }
    }
    sections
}

fn line(row: Row<'_>, characters: usize) -> String {
    let mut line = harmless(row.target.as_str(), MAX_TARGET);
    if let Some(name) = row.name {
        let _ = write!(line, " ({name})");
    }
    let _ = write!(line, ": {}", cut(&row.outcome.detail, characters));
    if let Some(command) = &row.outcome.command_id {
        let _ = write!(line, " [command {command}]");
    }
    line
}

fn group_card(order: &Order, group: &GroupReport, home: &Home) -> Value {
    let rows = group.attention();
    let named = rows.iter().take(CARD_INSTANCES).map(|row| {
        let name = row
            .name
            .map(|name| format!(" ({name})"))
            .unwrap_or_default();
        let detail = code_span(&cut(&row.outcome.detail, CARD_DETAIL));
        let target = harmless(row.target.as_str(), MAX_TARGET);
        let line = format!("`{target}{name}` *{}*: {detail}", row.outcome.kind());
        (row.outcome.severity(), line)
    });
    let (critical, others): (Vec<_>, Vec<_>) =
        named.partition(|(severity, _)| *severity == Severity::Critical);
    let more = rows.len().saturating_sub(CARD_INSTANCES);
    let lines = critical
        .into_iter()
        .map(|(_, line)| line)
        .chain(problem_lines(&group.problems))
        .chain(others.into_iter().map(|(_, line)| line))
        .chain((more > 0).then(|| format!("and {more} more")))
        .collect();
    let title = headline(group, MAX_TITLE);
    let steps = steps(&group.problems, &rows);
    card(&title, group.severity(), lines, steps, order, home)
}

fn problem_lines(problems: &Problems) -> Vec<String> {
    let line = |problem: &Problem| {
        let message = code_span(&problem.message);
        let code = problem.code.word();
        format!("Problem in step {}: {code}: {message}", problem.step)
    };
    problems.iter().map(line).collect()
}

/// The distinct advice, in the order of what it is about.
fn steps(problems: &Problems, rows: &[Row<'_>]) -> Vec<String> {
    let (critical, others): (Vec<_>, Vec<_>) = rows
        .iter()
        .partition(|row| row.outcome.severity() == Severity::Critical);
    let advice = |row: &Row<'_>| row.remedy().to_owned();
    let every = critical
        .into_iter()
        .map(advice)
        .chain(problems.iter().map(Problem::remedy))
        .chain(others.into_iter().map(advice));
    let mut steps: Vec<String> = Vec::new();
    for step in every {
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps.truncate(CARD_STEPS);
    steps
}

/// Text in which no chat application looks for markup or mentions.
fn code_span(text: &str) -> String {
    format!(
        "`{}`",
        text.replace('`', "'").replace('<', "(").replace('>', ")")
    )
}

/// A custom notification of Amazon Q Developer in chat applications: anything else on the topic it drops
/// without a word.
fn card(
    title: &str,
    severity: Severity,
    lines: Vec<String>,
    steps: Vec<String>,
    order: &Order,
    home: &Home,
) -> Value {
    let mut description = String::new();
    for (number, line) in lines.iter().enumerate() {
        let left = lines.len() - number;
        let more = format!("and {left} more, in the mail");
        if description.len() + line.len() + more.len() + 2 > MAX_DESCRIPTION {
            description.push_str(&more);
            break;
        }
        let _ = writeln!(description, "{line}");
    }
    if description.is_empty() {
        description = title.to_owned();
    }
    json!({
        "version": "1.0",
        "source": "custom",
        "content": {
            "textType": "client-markdown",
            "title": title,
            "description": description,
            "nextSteps": steps,
            "keywords": ["codedeploy-agent", severity],
        },
        "metadata": {
            "threadId": order.subject.thread(),
            "summary": title,
            "eventType": "codedeploy-agent-restart",
            "additionalContext": { "function": home.function },
        },
    })
}
