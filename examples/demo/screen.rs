//! What a person sees: on a terminal with a moving bar and at a pace to follow, elsewhere in plain lines.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use codedeploy_agent_restarter::Handled;
use codedeploy_agent_restarter::decision::Decision;
use codedeploy_agent_restarter::ids::Name;
use codedeploy_agent_restarter::outcome::Cause;
use codedeploy_agent_restarter::problem::Problems;
use codedeploy_agent_restarter::report::{GroupReport, Report};
use serde_json::Value;
use sim::Call;

use crate::stage::{self, Row, Stage};

/// `println!` for an output that may be closed: `demo | head` ends the demo, and is no failure.
macro_rules! say {
    ($($words:tt)*) => {
        if writeln!(stdout(), $($words)*).is_err() {
            std::process::exit(0)
        }
    };
}

/// How long the bar may hold up a person who watches, in all.
const PACE_LIMIT: Duration = Duration::from_secs(4);
/// Real time for one second of the fleet's.
const PACE: Duration = Duration::from_millis(20);
/// Seconds of the fleet's time between two plain lines, when something has changed …
const PLAIN_EVERY: u64 = 30;
/// … and when nothing has.
const PLAIN_AT_LEAST_EVERY: u64 = 120;
/// Characters of the bar.
const BAR: usize = 40;
/// Characters of a line of ours; the event and the messages are shown as they are.
const WIDTH: usize = 80;
/// Rows of a table that are shown; those that need attention always are.
const ROWS: usize = 40;
/// Instances with the same decision and reason that the plan names; more are counted.
const NAMED: usize = 3;

/// Standard output.
pub struct Screen {
    terminal: bool,
    paced: Duration,
}

impl Screen {
    /// Looks whether a person watches.
    pub fn new() -> Self {
        Self {
            terminal: stdout().is_terminal(),
            paced: Duration::ZERO,
        }
    }

    /// The event, as it arrives.
    pub fn event(&self, stage: &Stage) {
        say!("The real handler, a simulated fleet, virtual time; nothing leaves this machine.");
        headline("The event");
        say!("{:#}", stage.event);
        if !stage.settings.is_empty() {
            let settings: Vec<String> = stage
                .settings
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            say!();
            say_folded(&format!("Settings: {}", settings.join(" ")), 2);
        }
    }

    /// What the function will do.
    pub fn plan(&self, planned: &Handled) {
        headline("The plan");
        let report = match planned {
            Handled::Ignored { reason, .. } => {
                say!("nothing: {reason}");
                return;
            }
            Handled::Done(report) => report,
        };
        for group in &report.groups {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for entry in group.instances.values() {
                *counts.entry(entry.decision.word()).or_default() += 1;
            }
            let counts: Vec<String> = counts
                .iter()
                .map(|(word, count)| format!("{count} {word}"))
                .collect();
            let counts = match counts.is_empty() {
                true => "no instances".to_owned(),
                false => counts.join(", "),
            };
            say_folded(&format!("{}: {counts}", title(group)), 2);
            for line in plan_lines(group) {
                say_folded(&line, 6);
            }
            show_problems(&group.problems);
        }
        show_problems(&report.problems);
        if report.groups.iter().any(is_waited_for) {
            say_folded(
                "A plan looks once; the run waits until no other deployment of the group runs.",
                0,
            );
        }
    }

    /// Follows the restarts until `done`; a dry run has none.
    pub async fn watch(&mut self, stage: &Stage, planned: &Handled, done: &Cell<bool>) {
        let total = to_restart(planned);
        if total == 0 || stage.is_dry_run() {
            return;
        }
        headline("The restarts");
        let mut known = stage.world.calls().len();
        let mut happened = 0;
        let mut second = 0;
        let mut shown = None;
        loop {
            let incidents = stage.incidents[happened..].iter();
            for incident in incidents.take_while(|incident| incident.after <= second) {
                self.tell(second, &format!("meanwhile, {}", incident.what));
                happened += 1;
            }
            let calls = stage.world.calls();
            for line in news(&calls[known..], stage) {
                self.tell(second, &line);
            }
            known = calls.len();
            let ended = stage.ended();
            if self.terminal {
                bar(ended, total, second);
            }
            if done.get() {
                break;
            }
            if self.terminal && self.paced < PACE_LIMIT {
                std::thread::sleep(PACE);
                self.paced += PACE;
            }
            let due = match shown == Some(ended) {
                true => second % PLAIN_AT_LEAST_EVERY == 0,
                false => second % PLAIN_EVERY == 0,
            };
            if !self.terminal && due {
                self.tell(second, &progress(ended, total));
                shown = Some(ended);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            second += 1;
        }
        match self.terminal {
            true => say!(),
            false => self.tell(second, &progress(stage.ended(), total)),
        }
        self.tell(second, "the function is done");
    }

    /// One line of the story; on a terminal it goes above the bar.
    fn tell(&self, second: u64, text: &str) {
        if self.terminal {
            print!("\r\x1b[K");
        }
        say_folded(&format!("{second:>4} s  {text}"), 8);
    }

    /// What became of each instance.
    pub fn table(&self, report: &Report) {
        headline("The outcomes");
        let many = report.groups.len() > 1;
        for group in &report.groups {
            if many {
                say_folded(&title(group), 2);
                say!();
            }
            for line in table_lines(&stage::table(group)) {
                say!("{line}");
            }
            show_problems(&group.problems);
            if many {
                say!();
            }
        }
        show_problems(&report.problems);
    }

    /// The messages as SNS delivers them by mail, in the order of their publication.
    pub fn messages(&self, stage: &Stage, dry_run: bool) {
        headline("The messages");
        let messages = stage.world.messages();
        let all = messages.len();
        let about = match (all, dry_run) {
            (0, true) => "none: a dry run publishes nothing",
            (0, false) => {
                "none: silence means that every agent is fresh and alive, or deliberately left alone"
            }
            _ => "As mails: one for each group that needs somebody, one for what has no group.",
        };
        say_folded(about, 0);
        for (n, message) in messages.into_iter().enumerate() {
            let bodies: Value = serde_json::from_str(&message.message).unwrap_or_default();
            say!("\n{:-<WIDTH$}", format!("-- {} of {all} ", n + 1));
            say!("Subject: {}\n", message.subject.unwrap_or_default());
            say!(
                "{}",
                bodies["email"].as_str().unwrap_or_default().trim_end()
            );
        }
    }

    /// A last line.
    pub fn hint(text: &str) {
        say!("\n{text}");
    }

    /// The end of it.
    pub fn answer(&self, answer: &Value) {
        headline("The answer");
        say!(
            "result {}, severity {}, notified {}; the whole of it with --json",
            answer["result"],
            answer["severity"],
            answer["notified"]
        );
    }
}

/// The table of outcomes as lines: id, name, outcome, memory before and after; below it, indented, why.
pub fn table_lines(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<19}  {:<10}  {:<17} {:>9} {:>9}",
        "instance", "name", "outcome", "before", "after"
    )];
    let mut left_out = 0;
    for (n, row) in rows.iter().enumerate() {
        let fine = matches!(row.outcome, "restarted" | "started" | "already-restarted");
        if fine && n >= ROWS {
            left_out += 1;
            continue;
        }
        lines.push(format!(
            "{:<19}  {:<10}  {:<17} {:>9} {:>9}",
            row.id,
            row.name,
            row.outcome,
            mebibytes(row.before_kib),
            mebibytes(row.after_kib),
        ));
        if !row.detail.is_empty() {
            lines.extend(folded(&format!("    {}", row.detail), 4));
        }
    }
    if left_out > 0 {
        lines.push(format!("… and {left_out} more that are fresh"));
    }
    lines
}

/// A group and its deployments.
fn title(group: &GroupReport) -> String {
    let GroupReport {
        name,
        deployment_ids,
        ..
    } = group;
    let ids: Vec<&str> = deployment_ids.iter().map(Name::as_str).collect();
    format!("{name} in {}, deployment {}", name.region, ids.join(", "))
}

/// Those that are not simply restarted, and why; many with one reason are counted.
fn plan_lines(group: &GroupReport) -> Vec<String> {
    let left: Vec<_> = group
        .instances
        .iter()
        .filter(|(_, entry)| !matches!(entry.decision, Decision::Restart(..)))
        .collect();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (_, entry) in &left {
        let (word, reason) = (entry.decision.word(), entry.decision.reason());
        *counts.entry((word, reason)).or_default() += 1;
    }
    let mut lines = Vec::new();
    for (id, entry) in left {
        let (word, reason) = (entry.decision.word(), entry.decision.reason());
        match counts.get(&(word, reason)) {
            Some(count) if *count > NAMED => {
                lines.push(format!("  {count} instances {word}: {reason}"));
                counts.remove(&(word, reason));
            }
            Some(_) => {
                let name = entry.name.as_deref().unwrap_or_default();
                lines.push(format!("  {id}  {name:<10} {word}: {reason}"));
            }
            None => {}
        }
    }
    lines
}

/// Whether another deployment of the group runs at the time of the plan.
fn is_waited_for(group: &GroupReport) -> bool {
    let mut entries = group.instances.values();
    entries.any(|entry| matches!(entry.decision, Decision::Leave(Cause::DeploymentRuns, _)))
}

/// What is worth telling of these calls: commands sent and refused, throttling, deployments waited for. The
/// same several times in a row is told once, but for refusals: what was refused is sent again in parts.
fn news(calls: &[Call], stage: &Stage) -> Vec<String> {
    let mut told: Vec<(News, usize)> = Vec::new();
    for call in calls {
        let Some((news, count)) = News::of(call, stage) else {
            continue;
        };
        match told.last_mut() {
            Some((last, sum)) if *last == news && !matches!(news, News::Refused(..)) => {
                *sum += count;
            }
            _ => told.push((news, count)),
        }
    }
    told.into_iter()
        .map(|(news, count)| news.words(count))
        .collect()
}

/// A kind of news.
#[derive(PartialEq)]
enum News {
    /// A command for the group was accepted.
    Sent(String),
    /// A command for the group was refused, with this code.
    Refused(String, String),
    /// An operation was throttled.
    Throttled(String),
    /// Another deployment runs.
    Waiting(String),
}

impl News {
    /// The news in a call, and how many instances or calls it concerns.
    fn of(call: &Call, stage: &Stage) -> Option<(Self, usize)> {
        let error = call.error.clone().unwrap_or_default();
        if error.contains("Throttl") {
            return Some((Self::Throttled(call.operation.clone()), 1));
        }
        match call.operation.as_str() {
            "SendCommand" => {
                let ids = call.params["InstanceIds"].as_array().map_or(0, Vec::len);
                let comment = call.params["Comment"].as_str().unwrap_or_default();
                let group = comment.rsplit(' ').next().unwrap_or_default().to_owned();
                Some(match error.is_empty() {
                    true => (Self::Sent(group), ids),
                    false => (Self::Refused(group, error), ids),
                })
            }
            "BatchGetDeployments" => {
                let ids = call.params["deploymentIds"].as_array()?;
                let mut ids = ids.iter().filter_map(Value::as_str);
                let running = ids.find(|id| stage.still_runs(id))?;
                Some((Self::Waiting(running.to_owned()), 1))
            }
            _ => None,
        }
    }

    fn words(&self, count: usize) -> String {
        match self {
            Self::Sent(group) => format!("{group}: sent to {}", instances(count)),
            Self::Refused(group, code) => {
                format!(
                    "{group}: sending to {} is refused: {code}",
                    instances(count)
                )
            }
            Self::Throttled(operation) => {
                format!("AWS throttles {operation}; it is called again")
            }
            Self::Waiting(id) => {
                format!("deployment {id} of the group still runs; the function waits")
            }
        }
    }
}

fn instances(count: usize) -> String {
    match count {
        1 => "1 instance".to_owned(),
        _ => format!("{count} instances"),
    }
}

fn mebibytes(kib: Option<u64>) -> String {
    kib.map_or_else(|| "-".to_owned(), |kib| format!("{} MiB", kib / 1024))
}

/// How many instances are to be restarted, at once or after another deployment.
fn to_restart(planned: &Handled) -> usize {
    match planned {
        Handled::Ignored { .. } => 0,
        Handled::Done(report) => report
            .groups
            .iter()
            .flat_map(|group| group.instances.values())
            .filter(|entry| {
                matches!(
                    entry.decision,
                    Decision::Restart(..) | Decision::Leave(Cause::DeploymentRuns, _)
                )
            })
            .count(),
    }
}

fn progress(ended: usize, total: usize) -> String {
    format!("{ended} of {total} restarts have ended")
}

fn bar(ended: usize, total: usize, second: u64) {
    let filled = (BAR * ended.min(total)) / total.max(1);
    print!(
        "\r{second:>4} s  [{}{}] {ended} of {total}",
        "#".repeat(filled),
        ".".repeat(BAR - filled)
    );
    // A bar that cannot be drawn is no reason to stop.
    let _ = stdout().flush();
}

fn headline(text: &str) {
    say!("\n== {text}\n");
}

fn show_problems(problems: &Problems) {
    for problem in problems.iter() {
        let (step, code, message) = (problem.step, problem.code.word(), &problem.message);
        say_folded(&format!("Problem in step {step}: {code}: {message}"), 2);
        say_folded(&format!("  Do: {}", problem.remedy()), 6);
    }
}

fn say_folded(text: &str, indent: usize) {
    for line in folded(text, indent) {
        say!("{line}");
    }
}

/// The text in lines of at most `WIDTH` characters, broken at spaces; all but the first are indented.
fn folded(text: &str, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    // Each word with the spaces before it: in a row they align columns.
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c| c != ' ').unwrap_or(rest.len());
        let end = rest[word..].find(' ').map_or(rest.len(), |n| word + n);
        if !line.is_empty() && line.chars().count() + rest[..end].chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            line.push_str(&rest[word..end]);
        } else {
            line.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    lines.push(line);
    lines
}
