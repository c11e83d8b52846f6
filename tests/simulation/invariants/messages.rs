//! What the function tells, and whether it is all that somebody must hear: in its answer, and in the messages, of which there
//! is one for each group that needs somebody, and one for what belongs to no group.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use codedeploy_agent_restarter::problem::Problems;
use codedeploy_agent_restarter::report::{Entry, GroupReport, Report};
use serde_json::Value;
use sim::Call;

use super::hosts::result_of;
use super::report::word;
use super::{Evidence, FINE, TOLD};
use crate::deliveries::{Delivery, Invocation, Meaning};
use crate::fleet::PIPELINE;

/// Rows of attention that the answer holds of a group.
pub const MOST_ROWS: usize = 500;
/// Instances of each outcome that a text names.
const NAMED: usize = 50;
/// The same of a message that would be too large otherwise; with no more instances than a text names, none is.
const NAMED_AT_LEAST: usize = 5;
/// Characters of a text message, and of a card's title and description.
const SHORT_FORMS: [usize; 3] = [140, 250, 4_000];
/// Seconds below which an invocation may have no time left to publish.
const SHORT_DEADLINE: f64 = 60.0;

/// A message as it was published.
struct Published<'a> {
    subject: &'a str,
    attributes: BTreeMap<&'a str, &'a str>,
    bodies: Value,
    /// What programs get.
    data: Value,
}

impl<'a> Published<'a> {
    fn of(call: &'a Call) -> Option<Self> {
        let attributes = call.params["MessageAttributes"].as_object();
        let attributes = attributes.into_iter().flatten();
        let bodies: Value = serde_json::from_str(call.params["Message"].as_str()?).ok()?;
        Some(Self {
            subject: call.params["Subject"].as_str()?,
            attributes: attributes
                .map(|(name, value)| {
                    (
                        name.as_str(),
                        value["StringValue"].as_str().unwrap_or_default(),
                    )
                })
                .collect(),
            data: serde_json::from_str(bodies["sqs"].as_str()?).ok()?,
            bodies,
        })
    }

    /// The group that it is about, by its place in the report; none when it is about no group.
    fn about(&self, report: &Report) -> Option<usize> {
        let told = &self.data["groups"][0];
        report.groups.iter().position(|group| {
            let name = &group.name;
            told["account"] == name.account.as_str()
                && told["region"] == name.region.as_str()
                && told["application"] == name.application.as_str()
                && told["deploymentGroup"] == name.deployment_group.as_str()
        })
    }
}

impl Evidence<'_> {
    /// The answer, and the messages that this run published.
    pub fn told(
        &mut self,
        who: &str,
        invocation: &Invocation,
        report: &Report,
        answer: &Value,
        calls: &[&Call],
    ) {
        let needs = |group: &GroupReport| {
            !group.problems.is_empty()
                || group
                    .instances
                    .values()
                    .any(|entry| !FINE.contains(&word(entry)))
        };
        let always = self.scene.settings["NOTIFY_ON"] == "always";
        let groups = report.groups.iter().enumerate();
        let mut due: BTreeSet<Option<usize>> = groups
            .filter(|(_, group)| needs(group) || always)
            .map(|(number, _)| Some(number))
            .collect();
        if !report.problems.is_empty() {
            due.insert(None);
        }
        if report.dry_run {
            due.clear();
        }
        if let Some(what) = self.answered(report, answer, !due.is_empty(), needs) {
            self.broken(TOLD, format!("{who}: {what}"));
        }
        // The SDK repeats a message that got no reply: it may have arrived, and then arrives twice.
        let published = calls
            .iter()
            .filter(|call| call.operation == "Publish" && call.attempt <= 1);
        let mut missing = due.clone();
        for call in published {
            let Some(message) = Published::of(call) else {
                self.broken(TOLD, format!("{who}: a message that cannot be read"));
                continue;
            };
            let about = message.about(report);
            let arrived = |other: &&Call| {
                other.operation == "Publish" && other.status == 200 && other.params == call.params
            };
            let what = match about {
                _ if !calls.iter().any(arrived) => Some("it did not arrive".to_owned()),
                _ if !missing.remove(&about) => {
                    Some("nobody has to hear of it, or has heard already".to_owned())
                }
                Some(number) => self.tells_group(&message, &report.groups[number], invocation),
                None => self.tells_problems(&message, &report.problems, answer),
            };
            if let Some(what) = what {
                let subject = message.subject;
                self.broken(TOLD, format!("{who}: the message {subject:?}: {what}"));
            }
        }
        if let Some(about) = missing.first() {
            let name = about.map(|number| report.groups[number].name.to_string());
            self.broken(TOLD, format!("{who}: nobody is told of {name:?}"));
        }
    }

    /// What is wrong with the answer besides its groups.
    fn answered(
        &self,
        report: &Report,
        answer: &Value,
        due: bool,
        needs: impl Fn(&GroupReport) -> bool,
    ) -> Option<String> {
        let troubled = match report.dry_run {
            true => report.problems().next().is_some(),
            false => !report.problems.is_empty() || report.groups.iter().any(needs),
        };
        let result = match (troubled, report.dry_run) {
            (true, _) => "attention",
            (false, true) => "dry-run",
            (false, false) => "ok",
        };
        let groups = report.groups.iter();
        let severity = groups
            .map(|group| self.severity(group))
            .chain((!report.problems.is_empty()).then_some(WARNING))
            .max()
            .unwrap_or(OK);
        let told = (&answer["result"], &answer["severity"], &answer["notified"]);
        (told != (&result.into(), &severity.word().into(), &due.into()))
            .then(|| format!("it answers {told:?}, not {result}, {severity:?}, notified: {due}"))
    }

    /// What is wrong with a group's message.
    fn tells_group(
        &self,
        message: &Published<'_>,
        group: &GroupReport,
        invocation: &Invocation,
    ) -> Option<String> {
        let delivery = self.deliveries[invocation.delivery];
        let severity = self.severity(group);
        let result = if severity == OK { "ok" } else { "attention" };
        let name = &group.name;
        let mut attributes = BTreeMap::from([
            ("result", result),
            ("severity", severity.word()),
            ("account", name.account.as_str()),
            ("region", name.region.as_str()),
            ("application", name.application.as_str()),
            ("deploymentGroup", name.deployment_group.as_str()),
        ]);
        attributes.extend(pipeline(delivery));
        let data = &message.data;
        let told = &data["groups"][0];
        if data["groups"]
            .as_array()
            .is_none_or(|groups| groups.len() != 1)
        {
            return Some("programs get more than the one group".to_owned());
        }
        let text = message.bodies["default"].as_str().unwrap_or_default();
        let counts = counts(group);
        let untold = counts.iter().find(|(word, count)| {
            let told = format!("{count} {word}");
            !text
                .lines()
                .any(|line| line.starts_with("In all: ") && line.contains(&told))
        });
        if let Some((word, count)) = untold {
            return Some(format!("its text does not count {count} {word}"));
        }
        self.tells(message, &attributes, severity)
            .or_else(|| self.counted(group, told, false, rows_at_least(group)))
            .or_else(|| self.names(group, text))
            .or_else(|| problems_untold(&group.problems, &told["problem"], text))
    }

    /// What is wrong with the message about what belongs to no group.
    fn tells_problems(
        &self,
        message: &Published<'_>,
        problems: &Problems,
        answer: &Value,
    ) -> Option<String> {
        let trigger = &answer["trigger"];
        let names = [
            "account",
            "region",
            "pipeline",
            "application",
            "deploymentGroup",
        ];
        let mut attributes = BTreeMap::from([("result", "attention"), ("severity", "warning")]);
        attributes.extend(
            names
                .into_iter()
                .filter_map(|name| Some((name, trigger[name].as_str()?))),
        );
        let text = message.bodies["default"].as_str().unwrap_or_default();
        if message.data["groups"] != Value::Array(Vec::new()) {
            return Some("it is about a group that is none of the report's".to_owned());
        }
        self.tells(message, &attributes, WARNING)
            .or_else(|| problems_untold(problems, &message.data["problem"], text))
    }

    /// What is wrong with what all messages have in common.
    fn tells(
        &self,
        message: &Published<'_>,
        attributes: &BTreeMap<&str, &str>,
        severity: Severity,
    ) -> Option<String> {
        let bodies = &message.bodies;
        let text = |protocol: &str| bodies[protocol].as_str().unwrap_or_default();
        let loud = format!("{}: ", severity.word().to_uppercase());
        let card: Value = serde_json::from_str(text("https")).unwrap_or_default();
        let card = |part: &str| card["content"][part].as_str().unwrap_or_default().len();
        let data = &message.data;
        if message.attributes != *attributes {
            return Some(format!(
                "its attributes are {:?}, not {attributes:?}",
                message.attributes
            ));
        }
        if data["result"] != attributes["result"]
            || data["severity"] != severity.word()
            || data["notified"] != true
            || data["trigger"]["account"].as_str() != attributes.get("account").copied()
            || text("lambda") != text("sqs")
        {
            return Some(format!("programs get another result: {data}"));
        }
        if text("email") != text("default")
            || ![message.subject, text("sms"), text("default")]
                .iter()
                .all(|text| text.starts_with(&loud))
        {
            return Some(format!(
                "it does not say at once that it is {}",
                severity.word()
            ));
        }
        let lengths = [text("sms").len(), card("title"), card("description")];
        let fits = |(length, most): (&usize, usize)| (1..=most).contains(length);
        (!lengths.iter().zip(SHORT_FORMS).all(fits))
            .then(|| format!("its short forms are {lengths:?} long"))
    }

    /// Whether a text names the group's instances, and counts those that it does not name.
    fn names(&self, group: &GroupReport, text: &str) -> Option<String> {
        let lines = || text.lines().filter_map(|line| line.strip_prefix("  "));
        let named: BTreeSet<&str> = lines()
            .filter_map(|line| line.split([' ', ':']).next())
            .collect();
        let counted: usize = lines()
            .filter_map(|line| {
                line.strip_prefix("and ")?
                    .strip_suffix(" more")?
                    .parse::<usize>()
                    .ok()
            })
            .sum();
        let rows = self.attention(group);
        let unnamed = rows.iter().filter(|row| !named.contains(row.id)).count();
        if unnamed != counted {
            return Some(format!(
                "its text does not name {unnamed} instances, and counts {counted}"
            ));
        }
        let least = match rows.len() {
            0..=NAMED => NAMED,
            _ => NAMED_AT_LEAST,
        };
        let mut outcomes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for row in &rows {
            let (all, here) = outcomes.entry(row.outcome).or_default();
            *all += 1;
            *here += usize::from(named.contains(row.id));
        }
        let wrong = outcomes
            .iter()
            .find(|(_, (all, here))| *here < least.min(*all) || *here > NAMED);
        wrong.map(|(outcome, (all, here))| {
            format!("its text names {here} of {all} that are {outcome}")
        })
    }

    /// What is wrong with the counts and rows of a group as programs get it. Of those that need attention it may leave out
    /// the last ones beyond so many, and counts them.
    pub fn counted(
        &self,
        group: &GroupReport,
        told: &Value,
        dry_run: bool,
        most: usize,
    ) -> Option<String> {
        let open = |(_, entry): &(_, &Entry)| entry.outcome.is_none();
        if let Some((id, _)) = group.instances.iter().find(open).filter(|_| !dry_run) {
            return Some(format!("{id} has no outcome"));
        }
        let counts = counts(group);
        let counted: BTreeMap<&str, u64> = told["counts"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(word, count)| (word.as_str(), count.as_u64().unwrap_or(0)))
            .collect();
        if counted != counts {
            return Some(format!("counts {counted:?}, outcomes {counts:?}"));
        }
        let rows: Vec<(&str, &str, &str)> = told["attention"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| {
                let text = |name: &str| row[name].as_str().unwrap_or_default();
                (text("instanceId"), text("outcome"), text("severity"))
            })
            .collect();
        let expected: Vec<(&str, &str, &str)> = self
            .attention(group)
            .iter()
            .map(|row| (row.id, row.outcome, row.severity.word()))
            .collect();
        let omitted = told["omitted"].as_u64().unwrap_or(0) as usize;
        let whole =
            rows.len() + omitted == expected.len() && rows.len() >= expected.len().min(most);
        (!whole || rows[..] != expected[..rows.len()]).then(|| {
            format!(
                "{} rows of attention and {omitted} omitted, {} expected",
                rows.len(),
                expected.len()
            )
        })
    }

    /// Those of a group whom somebody must hear of, in the order of the contract.
    fn attention<'a>(&self, group: &'a GroupReport) -> Vec<Row<'a>> {
        let troubled = group
            .instances
            .iter()
            .filter(|(_, entry)| entry.outcome.is_some() && !FINE.contains(&word(entry)));
        let mut rows: Vec<Row<'a>> = troubled
            .map(|(target, entry)| Row {
                id: target.as_str(),
                outcome: word(entry),
                severity: match self.is_down(group, target.as_str(), entry) {
                    true => Severity::Critical,
                    false => WARNING,
                },
            })
            .collect();
        rows.sort_by_key(|row| (Reverse(row.severity), row.outcome, row.id));
        rows
    }

    /// Whether the document said that no agent runs there any more.
    fn is_down(&self, group: &GroupReport, id: &str, entry: &Entry) -> bool {
        let command = entry
            .outcome
            .as_ref()
            .and_then(|outcome| outcome.command_id.as_deref());
        let mut sent = self.commands.iter().filter(|(call, known)| {
            call.region == group.name.region.as_str() && Some(known.id.as_str()) == command
        });
        word(entry) == "failed"
            && sent.any(|(_, command)| {
                command.invocations.iter().any(|ran| {
                    ran.instance_id == id && matches!(result_of(&ran.output), Some((_, 30 | 32)))
                })
            })
    }

    fn severity(&self, group: &GroupReport) -> Severity {
        let worst = self.attention(group).first().map(|row| row.severity);
        let problem = (!group.problems.is_empty()).then_some(WARNING);
        worst.max(problem).unwrap_or(OK)
    }

    /// Publishing fails only where SNS failed, or the time was short.
    pub fn unpublished(&mut self, who: &str, delivery: &Delivery, calls: &[&Call]) {
        let failed = calls
            .iter()
            .any(|call| call.operation == "Publish" && call.fault.is_some());
        let short = delivery
            .runs
            .iter()
            .any(|run| run.remaining < SHORT_DEADLINE);
        if !failed && !short {
            self.broken(TOLD, format!("{who}: publishing failed without a reason"));
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Ok,
    Warning,
    Critical,
}

use Severity::{Ok as OK, Warning as WARNING};

impl Severity {
    fn word(self) -> &'static str {
        match self {
            OK => "ok",
            WARNING => "warning",
            Self::Critical => "critical",
        }
    }
}

/// An instance that somebody must hear of.
struct Row<'a> {
    id: &'a str,
    outcome: &'static str,
    severity: Severity,
}

/// How many of a group's instances have each outcome.
fn counts(group: &GroupReport) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for entry in group
        .instances
        .values()
        .filter(|entry| entry.outcome.is_some())
    {
        *counts.entry(word(entry)).or_default() += 1;
    }
    counts
}

/// Rows that a message about this group holds: fewer than the answer only where they may not fit.
fn rows_at_least(group: &GroupReport) -> usize {
    match group.instances.len() {
        0..=NAMED => NAMED,
        _ => 2 * NAMED_AT_LEAST,
    }
}

/// The attribute that only a pipeline's messages have.
fn pipeline(delivery: &Delivery) -> Option<(&'static str, &'static str)> {
    matches!(delivery.meaning, Meaning::Pipeline { .. }).then_some(("pipeline", PIPELINE))
}

/// A problem that programs or people are not told.
fn problems_untold(problems: &Problems, told: &Value, text: &str) -> Option<String> {
    if told.is_object() == problems.is_empty() {
        return Some(
            "it tells of a problem that is none, or of none though there is one".to_owned(),
        );
    }
    let message = told["message"].as_str().unwrap_or_default();
    let untold = problems.iter().find(|problem| {
        ![message, text]
            .iter()
            .all(|place| place.contains(&problem.message))
            || !text.contains(problem.code.word())
            || !text.contains(&problem.remedy())
    });
    untold.map(|problem| format!("it does not tell {problem:?}"))
}
