//! What became of an instance, as the document and Systems Manager report it; and what became of a call
//! that failed. Pure functions over plain data.

use std::fmt;

use aws_sdk_ssm::types::{CommandInvocation, CommandInvocationStatus, CommandPlugin};
use serde::{Deserialize, Serialize, Serializer};

use crate::aws::CallError;
use crate::text::{plain, quoted};

/// Characters of raw text that are shown when an answer is not the document's.
const MAX_RAW: usize = 300;
/// Characters of a detail that the document gives.
const MAX_DETAIL: usize = 600;
/// Characters of the agent's version.
const MAX_VERSION: usize = 60;
/// The version of the document's line that this function understands.
const LINE_VERSION: u64 = 1;

/// The outcome of one instance: exactly one for each candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A new agent runs and is proven healthy.
    Restarted,
    /// No agent was running; one runs now and is proven healthy.
    Started,
    /// The agent already started after the deployment, and is proven healthy.
    AlreadyRestarted,
    /// The agent uses less memory than the threshold, and is proven healthy.
    BelowThreshold,
    /// Deliberately left alone: starting, leaving, gone, or never deployed to.
    Skipped,
    /// The document ran and reports a failure, or an answer that proves nothing.
    Failed,
    /// A lifecycle event, an update, another restart or another deployment was running.
    Busy,
    /// Systems Manager cannot reach the instance.
    Unreachable,
    /// The command did not arrive at the instance.
    Undelivered,
    /// The document did not end in time.
    TimedOut,
    /// Somebody cancelled the command.
    Cancelled,
    /// Not sent to: the brake, the time limit, a failed call, or a lifecycle state that is unknown.
    HeldBack,
    /// Sent, but without a result when the function had to report.
    Unfinished,
}

impl Kind {
    /// The word in JSON, messages and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::Started => "started",
            Self::AlreadyRestarted => "already-restarted",
            Self::BelowThreshold => "below-threshold",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Undelivered => "undelivered",
            Self::TimedOut => "timed-out",
            Self::Cancelled => "cancelled",
            Self::HeldBack => "held-back",
            Self::Unfinished => "unfinished",
        }
    }

    /// Whether somebody must hear of it.
    pub fn needs_attention(self) -> bool {
        !matches!(
            self,
            Self::Restarted
                | Self::Started
                | Self::AlreadyRestarted
                | Self::BelowThreshold
                | Self::Skipped
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// What became of one instance, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The outcome.
    pub kind: Kind,
    /// Why, in words for a person.
    pub detail: String,
    /// The document's exit code, when its line was understood.
    pub code: Option<u8>,
    /// The command that was sent to the instance.
    pub command_id: Option<String>,
    /// Memory of the agent before and after, when the document reported it.
    pub memory: Option<Memory>,
    /// Decides what people are to do, where kind and code alone do not.
    pub cause: Option<Cause>,
}

/// What stood in the way of a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// More restarts failed than `MAX_ERRORS` allows.
    TooManyErrors,
    /// The function's own time was over.
    NoTime,
    /// A call failed that was needed for it.
    FailedCall,
    /// The function's role may send to others, and not to this instance.
    Denied,
}

/// Resident memory of the agent's processes, in KiB; 0 where no agent ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Before the restart.
    pub before_kib: u64,
    /// After it.
    pub after_kib: u64,
}

impl Outcome {
    /// An outcome that no document reported.
    pub fn of(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            code: None,
            command_id: None,
            memory: None,
            cause: None,
        }
    }

    /// The same, for that cause.
    pub fn because(self, cause: Cause) -> Self {
        Self {
            cause: Some(cause),
            ..self
        }
    }

    /// The same, of the command with this id.
    pub fn of_command(self, command_id: &str) -> Self {
        Self {
            command_id: Some(command_id.to_owned()),
            ..self
        }
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self.code {
            _ if !self.kind.needs_attention() => Severity::Ok,
            Some(30 | 32) => Severity::Critical,
            _ => Severity::Warning,
        }
    }

    /// Whether it counts towards `MAX_ERRORS`: the restart was tried on the host and went wrong. Codes 10
    /// to 12 left everything untouched, so they say nothing about the next host.
    pub fn counts_as_error(&self) -> bool {
        match self.kind {
            Kind::TimedOut => true,
            Kind::Failed => !matches!(self.code, Some(10..=12)),
            _ => false,
        }
    }

    /// Whether another command is restarting the agent.
    pub fn restarts_elsewhere(&self) -> bool {
        self.code == Some(22)
    }
}

/// How bad a report is; the worst of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Every agent is fresh and alive, or deliberately left alone.
    Ok,
    /// Somebody should look.
    Warning,
    /// An agent is down: the next deployment will fail there.
    Critical,
}

impl Severity {
    /// The word in JSON, messages and attributes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A call that failed for good: its group, or the event, could not be treated as it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The step that failed: `deployments`, `quiet`, `fleet`, `send` or `poll`.
    pub step: &'static str,
    /// AWS's error code, or one of ours.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// A failed call in a step.
    pub fn of_call(step: &'static str, error: &CallError) -> Self {
        Self {
            step,
            code: error.code.clone(),
            message: format!(
                "{} ({}): {}",
                error.operation, error.resource, error.message
            ),
            remedy: error.remedy(),
        }
    }

    /// A step that ran into its time limit.
    pub fn out_of_time(step: &'static str) -> Self {
        Self::new(
            step,
            "Timeout",
            "AWS did not give the answers within this step's time limit",
            "repeat by hand",
        )
    }

    /// A problem that is not a failed call.
    pub fn new(
        step: &'static str,
        code: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            step,
            code: code.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// Two problems in one place: both are told, the first one's code leads.
    pub fn and(self, other: Option<Self>) -> Self {
        match other {
            None => self,
            Some(other) if other == self => self,
            Some(other) => Self {
                step: self.step,
                code: self.code,
                message: format!("{}; {}", self.message, other.message),
                remedy: if self.remedy == other.remedy {
                    self.remedy
                } else {
                    format!("{}; {}", self.remedy, other.remedy)
                },
            },
        }
    }
}

/// How far the command has come on one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The command has not reached the instance, as far as Systems Manager says.
    Waiting,
    /// The document runs; or the status is one that this function does not know, which is given.
    Running(Option<String>),
    /// The end.
    Done(Outcome),
}

/// Reads an invocation. Whether it has ended is decided by `Status`; the reason is in `StatusDetails`, whose
/// spelling varies (`API_CommandInvocation`). A status we do not know is not an end.
pub fn of_invocation(invocation: &CommandInvocation) -> Progress {
    let details = invocation.status_details().unwrap_or_default();
    let outcome = match invocation.status() {
        Some(CommandInvocationStatus::Pending | CommandInvocationStatus::Delayed) => {
            return Progress::Waiting;
        }
        Some(CommandInvocationStatus::Success | CommandInvocationStatus::Failed) => {
            ended(details, invocation)
        }
        Some(CommandInvocationStatus::TimedOut) => not_ended(details, Kind::TimedOut),
        Some(CommandInvocationStatus::Cancelled) => not_ended(details, Kind::Cancelled),
        None | Some(CommandInvocationStatus::InProgress | CommandInvocationStatus::Cancelling) => {
            return Progress::Running(None);
        }
        Some(unknown) => return Progress::Running(Some(quoted(unknown.as_str()))),
    };
    let command_id = invocation.command_id().unwrap_or_default();
    Progress::Done(outcome.of_command(command_id))
}

/// `Success` and `Failed` mean that Systems Manager is done; only the document's own line says with what.
/// Unless the details say that the document never ran.
fn ended(details: &str, invocation: &CommandInvocation) -> Outcome {
    match undelivered_or(details) {
        Some(kind) => not_ended(details, kind),
        None => of_document(details, invocation),
    }
}

/// What the details alone decide, if they do.
fn undelivered_or(details: &str) -> Option<Kind> {
    match squeezed(details).as_str() {
        "deliverytimedout" | "undeliverable" | "terminated" | "accessdenied"
        | "invalidplatform" => Some(Kind::Undelivered),
        "executiontimedout" => Some(Kind::TimedOut),
        "cancelled" | "canceled" => Some(Kind::Cancelled),
        _ => None,
    }
}

/// The reason why there is no result, by `StatusDetails`.
fn not_ended(details: &str, otherwise: Kind) -> Outcome {
    let kind = undelivered_or(details).unwrap_or(otherwise);
    let what = match kind {
        Kind::TimedOut => "the document did not end in time",
        Kind::Cancelled => "the command was cancelled",
        _ => "the command did not run there",
    };
    let details = quoted(details);
    Outcome::of(kind, format!("{what}; Systems Manager says {details}"))
}

/// `In Progress` and `InProgress`, `Canceled` and `canceled` are the same.
fn squeezed(details: &str) -> String {
    details
        .chars()
        .filter(|c| !c.is_whitespace())
        .flat_map(char::to_lowercase)
        .collect()
}

fn of_document(details: &str, invocation: &CommandInvocation) -> Outcome {
    let plugins = invocation.command_plugins();
    let found = plugins
        .iter()
        .find_map(|plugin| line_of(plugin.output().unwrap_or_default()).map(|line| (plugin, line)));
    match found {
        Some((plugin, line)) => of_line(&line, plugin, invocation).unwrap_or_else(|misfit| {
            Outcome::of(
                Kind::Failed,
                format!(
                    "{misfit}: {}",
                    plain(plugin.output().unwrap_or_default(), MAX_RAW)
                ),
            )
        }),
        None => Outcome::of(
            Kind::Failed,
            format!(
                "Systems Manager says {}, but the output is not the restart document's: {}",
                quoted(details),
                plain(most_telling_output(plugins), MAX_RAW)
            ),
        ),
    }
}

/// The output of the step that ran, or that of a skipped one when none did.
fn most_telling_output(plugins: &[CommandPlugin]) -> &str {
    let outputs = || {
        plugins
            .iter()
            .map(|plugin| plugin.output().unwrap_or_default())
    };
    outputs()
        .find(|output| !output.starts_with("Step execution skipped"))
        .or_else(|| outputs().next())
        .filter(|output| !output.trim().is_empty())
        .unwrap_or("(no output)")
}

/// The document's line, as the contract has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    agent_restart: u64,
    result: String,
    code: u8,
    #[serde(default)]
    agent_version: String,
    #[serde(default, rename = "memoryBeforeKiB")]
    memory_before_kib: u64,
    #[serde(default, rename = "memoryAfterKiB")]
    memory_after_kib: u64,
    #[serde(default)]
    detail: String,
}

/// The first line with `agentRestart`, read as JSON; `None` when no line holds the word.
fn line_of(output: &str) -> Option<Result<Line, String>> {
    let line = output
        .lines()
        .find(|line| line.contains("\"agentRestart\""))?;
    Some(serde_json::from_str(line.trim()).map_err(|error| error.to_string()))
}

/// Each result word with its exit code and what it means for us.
const RESULTS: [(&str, u8, Kind); 15] = [
    ("restarted", 0, Kind::Restarted),
    ("started", 0, Kind::Started),
    ("already-restarted", 0, Kind::AlreadyRestarted),
    ("below-threshold", 0, Kind::BelowThreshold),
    ("not-installed", 10, Kind::Failed),
    ("not-root", 11, Kind::Failed),
    ("preflight-failed", 12, Kind::Failed),
    ("busy", 20, Kind::Busy),
    ("update-running", 21, Kind::Busy),
    ("restart-running", 22, Kind::Busy),
    ("draining", 34, Kind::Busy),
    ("service-manager-failed", 30, Kind::Failed),
    ("old-agent-survived", 31, Kind::Failed),
    ("agent-down", 32, Kind::Failed),
    ("agent-unhealthy", 33, Kind::Failed),
];

fn of_line(
    line: &Result<Line, String>,
    plugin: &CommandPlugin,
    invocation: &CommandInvocation,
) -> Result<Outcome, String> {
    let line = line
        .as_ref()
        .map_err(|error| format!("the document's line is no valid JSON ({error})"))?;
    if line.agent_restart != LINE_VERSION {
        return Err(format!(
            "the document's line has version {}, this function knows {LINE_VERSION}",
            line.agent_restart
        ));
    }
    let kind = RESULTS
        .iter()
        .find(|(word, code, _)| *word == line.result && *code == line.code)
        .map(|(_, _, kind)| *kind)
        .ok_or_else(|| {
            format!(
                "the document's line has the unknown result {} with code {}",
                quoted(&line.result),
                line.code
            )
        })?;
    if plugin.response_code() != i32::from(line.code) {
        return Err(format!(
            "the document's line says code {}, Systems Manager saw exit code {}",
            line.code,
            plugin.response_code()
        ));
    }
    if line.code == 0 && invocation.status() != Some(&CommandInvocationStatus::Success) {
        return Err("the document's line says success, Systems Manager says Failed".to_owned());
    }
    Ok(Outcome {
        kind,
        detail: detail_of(line, kind),
        code: Some(line.code),
        command_id: None,
        memory: Some(Memory {
            before_kib: line.memory_before_kib,
            after_kib: line.memory_after_kib,
        }),
        cause: None,
    })
}

fn detail_of(line: &Line, kind: Kind) -> String {
    let detail = plain(&line.detail, MAX_DETAIL);
    if !kind.needs_attention() {
        return detail;
    }
    let version = plain(&line.agent_version, MAX_VERSION);
    let agent = if version.is_empty() {
        String::new()
    } else {
        format!(", agent {version}")
    };
    match detail.is_empty() {
        true => format!("{} (code {}{agent})", line.result, line.code),
        false => format!("{} (code {}{agent}): {detail}", line.result, line.code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_problems_both_are_told_and_the_same_one_once() {
        let problem =
            |message: &str, remedy: &str| Problem::new("poll", "Timeout", message, remedy);
        let first = || problem("no answer to a", "repeat");
        assert_eq!(first().and(None), first());
        assert_eq!(first().and(Some(first())), first());
        assert_eq!(
            first().and(Some(problem("no answer to b", "repeat"))),
            problem("no answer to a; no answer to b", "repeat")
        );
        assert_eq!(
            first().and(Some(problem("denied", "allow it"))),
            problem("no answer to a; denied", "repeat; allow it")
        );
    }
}
