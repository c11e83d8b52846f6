//! What a person sees: on a terminal with a moving bar and at a pace to follow, elsewhere in plain lines.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use codedeploy_agent_restarter::Handled;
use codedeploy_agent_restarter::fleet::Decision;
use codedeploy_agent_restarter::report::Report;
use serde_json::Value;

use crate::stage::{Row, Stage};

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
/// Seconds of the fleet's time between two plain lines.
const PLAIN_EVERY: u64 = 30;
/// Characters of the bar.
const BAR: usize = 40;
/// Rows of a table that are shown; those that need attention always are.
const ROWS: usize = 40;

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
        say!(
            "The real handler on a simulated fleet; its time is virtual. Nothing leaves this machine."
        );
        headline("The event");
        say!("{:#}", stage.event);
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
            say!(
                "{}/{} in {}, deployment {}: {}",
                group.name.application,
                group.name.deployment_group,
                group.name.region,
                group.deployment_ids.join(", "),
                if counts.is_empty() {
                    "no instances".to_owned()
                } else {
                    counts.join(", ")
                },
            );
            for (id, entry) in &group.instances {
                if !matches!(entry.decision, Decision::Restart(_)) {
                    let (word, reason) = (entry.decision.word(), entry.decision.reason());
                    let name = entry.name.as_deref().unwrap_or_default();
                    say!("  {id}  {name:<9} {word}: {reason}");
                }
            }
            show_problem(group.problem.as_ref());
        }
        show_problem(report.problem.as_ref());
    }

    /// Follows the restarts until `done`; a dry run has none.
    pub async fn watch(&mut self, stage: &Stage, planned: &Handled, done: &Cell<bool>) {
        let total = to_restart(planned);
        if total == 0 || stage.is_dry_run() {
            return;
        }
        headline("The restarts");
        let mut second = 0;
        while !done.get() {
            if self.terminal {
                bar(stage.ended(), total, second);
                if self.paced < PACE_LIMIT {
                    std::thread::sleep(PACE);
                    self.paced += PACE;
                }
            } else if second % PLAIN_EVERY == 0 {
                say!("{second:>4} s  {} of {total}", stage.ended());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            second += 1;
        }
        if self.terminal {
            bar(stage.ended(), total, second);
            say!();
        } else {
            say!("{second:>4} s  {} of {total}", stage.ended());
        }
    }

    /// What became of each instance.
    pub fn table(&self, report: &Report, rows: &[Row]) {
        headline("The outcomes");
        for line in table_lines(rows) {
            say!("{line}");
        }
        for group in &report.groups {
            show_problem(group.problem.as_ref());
        }
        show_problem(report.problem.as_ref());
    }

    /// The message as SNS delivers it by mail.
    pub fn message(&self, stage: &Stage, dry_run: bool) {
        headline("The message");
        let messages = stage.world.messages();
        if messages.is_empty() && dry_run {
            say!("none: a dry run publishes nothing");
        } else if messages.is_empty() {
            say!(
                "none: silence means that every agent is fresh and alive, or deliberately left alone"
            );
        }
        for message in messages {
            let bodies: Value = serde_json::from_str(&message.message).unwrap_or_default();
            say!("Subject: {}\n", message.subject.unwrap_or_default());
            say!(
                "{}",
                bodies["email"].as_str().unwrap_or_default().trim_end()
            );
        }
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

/// The table of outcomes as lines: id, name, outcome, memory before and after, why.
pub fn table_lines(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<19}  {:<9} {:<17} {:>9} {:>9}  {}",
        "instance", "name", "outcome", "before", "after", "why"
    )];
    let mut left_out = 0;
    for (n, row) in rows.iter().enumerate() {
        let fine = matches!(row.outcome, "restarted" | "started" | "already-restarted");
        if fine && n >= ROWS {
            left_out += 1;
            continue;
        }
        let why: String = row.detail.chars().take(90).collect();
        let line = format!(
            "{:<19}  {:<9} {:<17} {:>9} {:>9}  {why}",
            row.id,
            row.name,
            row.outcome,
            mebibytes(row.before_kib),
            mebibytes(row.after_kib),
        );
        lines.push(line.trim_end().to_owned());
    }
    if left_out > 0 {
        lines.push(format!("… and {left_out} more that are fresh"));
    }
    lines
}

fn mebibytes(kib: Option<u64>) -> String {
    kib.map_or_else(|| "-".to_owned(), |kib| format!("{} MiB", kib / 1024))
}

fn to_restart(planned: &Handled) -> usize {
    match planned {
        Handled::Ignored { .. } => 0,
        Handled::Done(report) => report
            .groups
            .iter()
            .flat_map(|group| group.instances.values())
            .filter(|entry| matches!(entry.decision, Decision::Restart(_)))
            .count(),
    }
}

fn bar(ended: usize, total: usize, second: u64) {
    let filled = (BAR * ended.min(total)) / total.max(1);
    print!(
        "\r[{}{}] {ended:>4} of {total}  {second:>4} s",
        "#".repeat(filled),
        ".".repeat(BAR - filled)
    );
    // A bar that cannot be drawn is no reason to stop.
    let _ = stdout().flush();
}

fn headline(text: &str) {
    say!("\n== {text}\n");
}

fn show_problem(problem: Option<&codedeploy_agent_restarter::outcome::Problem>) {
    if let Some(problem) = problem {
        say!(
            "problem in step {}: {}: {} (do: {})",
            problem.step,
            problem.code,
            problem.message,
            problem.remedy
        );
    }
}
