//! What became of an instance, and why: the causes behind the thirteen outcomes. And what an invocation's end, as
//! Systems Manager tells it, means. Pure functions over plain data.

use aws_sdk_ssm::types::{CommandInvocation, CommandInvocationStatus, CommandPlugin};

use crate::document::{self, Line, Memory, Verdict};
use crate::kind::{Kind, Severity};
use crate::problem::CallError;
use crate::ssm_agent;
use crate::text::{host_says, quoted};

/// Characters of raw text that are shown when an answer is not the document's.
const MAX_RAW: usize = 300;
/// Systems Manager's response code for a script that a signal ended: somebody ended its process group. A line that stands
/// there was its last act all the same.
const ENDED_BY_SIGNAL: i32 = -1;

/// Why an instance has its outcome. It decides the outcome's kind, how bad that is, whether it brakes the
/// others, and what people are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The document says so.
    Reported(Verdict),
    /// The document's step ended, and its output proves nothing.
    NoProof,
    /// Starting, leaving, not running, or without the tag that is asked for.
    Skipped,
    /// Another deployment of the group runs.
    DeploymentRuns,
    /// Offline, not managed by Systems Manager, or refused by it.
    Unreachable,
    /// On-premises, and no managed node bears its name alone.
    Unmatched,
    /// The function's role may send to others, and not to this instance.
    Denied,
    /// The command is not known to have arrived, or could not run there.
    Undelivered,
    /// The SSM Agent there could not run the script, or lost sight of it.
    CannotRun,
    /// The document did not end in time.
    TimedOut,
    /// Somebody cancelled the command.
    Cancelled,
    /// Its lifecycle state is newer than this function.
    UnknownLifecycle,
    /// There is no restart document for its platform, or Systems Manager does not say which that is.
    UnknownPlatform,
    /// The restart document of its platform is not set, or not there.
    NoDocument,
    /// More restarts failed than `MAX_ERRORS` allows.
    TooManyErrors,
    /// The function's own time was over.
    NoTime,
    /// A call failed that was needed for it.
    FailedCall,
    /// Sent, without a result so far.
    NoResult,
}

impl Cause {
    /// The outcome that it makes.
    pub fn kind(self) -> Kind {
        match self {
            Self::Reported(verdict) => verdict.kind(),
            Self::NoProof => Kind::Failed,
            Self::Skipped => Kind::Skipped,
            Self::DeploymentRuns => Kind::Busy,
            Self::Unreachable | Self::Unmatched | Self::Denied => Kind::Unreachable,
            Self::Undelivered | Self::CannotRun => Kind::Undelivered,
            Self::TimedOut => Kind::TimedOut,
            Self::Cancelled => Kind::Cancelled,
            Self::UnknownLifecycle
            | Self::UnknownPlatform
            | Self::NoDocument
            | Self::TooManyErrors
            | Self::NoTime
            | Self::FailedCall => Kind::HeldBack,
            Self::NoResult => Kind::Unfinished,
        }
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::Reported(verdict) => verdict.severity(),
            Self::Skipped => Severity::Ok,
            Self::NoProof
            | Self::DeploymentRuns
            | Self::Unreachable
            | Self::Unmatched
            | Self::Denied
            | Self::Undelivered
            | Self::CannotRun
            | Self::TimedOut
            | Self::Cancelled
            | Self::UnknownLifecycle
            | Self::UnknownPlatform
            | Self::NoDocument
            | Self::TooManyErrors
            | Self::NoTime
            | Self::FailedCall
            | Self::NoResult => Severity::Warning,
        }
    }

    /// Whether it counts towards `MAX_ERRORS`: the restart was tried on the host and went wrong.
    pub fn brakes(self) -> bool {
        match self {
            Self::Reported(verdict) => verdict.brakes(),
            Self::NoProof | Self::TimedOut => true,
            Self::Skipped
            | Self::DeploymentRuns
            | Self::Unreachable
            | Self::Unmatched
            | Self::Denied
            | Self::Undelivered
            | Self::CannotRun
            | Self::Cancelled
            | Self::UnknownLifecycle
            | Self::UnknownPlatform
            | Self::NoDocument
            | Self::TooManyErrors
            | Self::NoTime
            | Self::FailedCall
            | Self::NoResult => false,
        }
    }
}

/// What became of one instance, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub cause: Cause,
    /// The same in words for a person.
    pub detail: String,
    /// The command that was sent to the instance.
    pub command_id: Option<String>,
    /// Memory of the agent before and after, when the document reported it.
    pub memory: Option<Memory>,
}

impl Outcome {
    /// An outcome that no document reported.
    pub fn of(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            detail: detail.into(),
            command_id: None,
            memory: None,
        }
    }

    /// Nothing was sent, because a call failed.
    pub fn failed_call(reason: &str) -> Self {
        Self::of(Cause::FailedCall, format!("not sent: {reason}"))
    }

    /// Nothing was sent, because this call failed.
    pub fn not_sent(error: &CallError) -> Self {
        Self::failed_call(&format!("{}: {}", error.code.word(), error.message))
    }

    /// Sending failed, and the command may have arrived all the same if there was no answer.
    pub fn of_sending(error: &CallError) -> Self {
        if !error.code.may_have_arrived() {
            return Self::not_sent(error);
        }
        let detail = format!(
            "sending got no answer ({}): the command may have arrived all the same",
            error.message
        );
        Self::of(Cause::FailedCall, detail)
    }

    /// Nothing was sent, because it was too late for that.
    pub fn no_time() -> Self {
        let detail = "not sent: no time left before the function's end";
        Self::of(Cause::NoTime, detail)
    }

    /// Systems Manager refused a command to it alone.
    pub fn refused(error: &CallError) -> Self {
        let cause = match error.code.is_denied() {
            true => Cause::Denied,
            false => Cause::Unreachable,
        };
        let (code, message) = (error.code.word(), &error.message);
        Self::of(
            cause,
            format!("Systems Manager refuses it: {code}: {message}"),
        )
    }

    /// The same, of the command with this id.
    pub fn of_command(self, command_id: &str) -> Self {
        Self {
            command_id: Some(command_id.to_owned()),
            ..self
        }
    }

    /// Which of the thirteen it is.
    pub fn kind(&self) -> Kind {
        self.cause.kind()
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.cause.severity()
    }
}

/// How far the command has come on one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The command has not reached the instance, as far as Systems Manager says.
    Waiting,
    /// The document runs; or the status is one that this function does not know, which is given.
    Running(Option<String>),
    /// Systems Manager has called it ended, in the given words, and shows no output of the document's step. The SSM Agent
    /// sends the two apart, and the output may follow minutes later.
    Silent(String),
    /// The end.
    Done(Outcome),
}

/// Reads an invocation. Whether it has ended is decided by `Status`; the reason is in `StatusDetails`, whose
/// spelling varies (<https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_CommandInvocation.html>).
/// A status we do not know is not an end; and `Success` and `Failed` mean that Systems Manager is done: only the
/// document's own line says with what, unless the details say that the document never ran.
pub fn of_invocation(invocation: &CommandInvocation) -> Progress {
    let details = invocation.status_details().unwrap_or_default();
    let outcome = match invocation.status() {
        Some(CommandInvocationStatus::Pending | CommandInvocationStatus::Delayed) => {
            return Progress::Waiting;
        }
        Some(CommandInvocationStatus::Success | CommandInvocationStatus::Failed) => {
            match (told_by(details), speaking(invocation).next()) {
                (Some(end), _) => end.outcome(invocation),
                (None, Some(first)) => of_document(first, invocation),
                (None, None) => return Progress::Silent(said(invocation)),
            }
        }
        Some(CommandInvocationStatus::TimedOut) => {
            let end = told_by(details).unwrap_or(NoEnd::TimedOut);
            end.outcome(invocation)
        }
        Some(CommandInvocationStatus::Cancelled) => {
            let end = told_by(details).unwrap_or(NoEnd::Cancelled);
            end.outcome(invocation)
        }
        None | Some(CommandInvocationStatus::InProgress | CommandInvocationStatus::Cancelling) => {
            return Progress::Running(None);
        }
        Some(unknown) => return Progress::Running(Some(quoted(unknown.as_str()))),
    };
    let command_id = invocation.command_id().unwrap_or_default();
    Progress::Done(outcome.of_command(command_id))
}

/// Systems Manager's words for where an invocation stands.
fn said(invocation: &CommandInvocation) -> String {
    let status = invocation.status().map(CommandInvocationStatus::as_str);
    let details = invocation.status_details().filter(|text| !text.is_empty());
    quoted(details.or(status).unwrap_or_default())
}

/// An end without a result.
#[derive(Clone, Copy)]
enum NoEnd {
    /// Nobody heard of it in time. The SSM Agent does not look at the age of a message: it may still run it.
    Unheard,
    /// Systems Manager, or the SSM Agent, did not let it run.
    Refused,
    TimedOut,
    Cancelled,
}

impl NoEnd {
    fn outcome(self, invocation: &CommandInvocation) -> Outcome {
        let (cause, what) = match self {
            Self::Unheard => (
                Cause::Undelivered,
                "the command is not known to have run there (it still may)",
            ),
            Self::Refused => (Cause::Undelivered, "the command did not run there"),
            Self::TimedOut => (Cause::TimedOut, "the document did not end in time"),
            Self::Cancelled => (Cause::Cancelled, "the command was cancelled"),
        };
        let mut detail = format!("{what}; Systems Manager says {}", said(invocation));
        if let Some(plugin) = speaking(invocation).next() {
            detail += &format!("; {}", host_says(output_of(plugin), MAX_RAW));
        }
        Outcome::of(cause, detail)
    }
}

/// What the details alone decide, if they do. `In Progress` and `InProgress`, `Canceled` and `canceled` are the
/// same.
fn told_by(details: &str) -> Option<NoEnd> {
    let squeezed: String = details
        .chars()
        .filter(|c| !c.is_whitespace())
        .flat_map(char::to_lowercase)
        .collect();
    match squeezed.as_str() {
        "deliverytimedout" => Some(NoEnd::Unheard),
        "undeliverable" | "terminated" | "accessdenied" | "invalidplatform" => Some(NoEnd::Refused),
        "executiontimedout" => Some(NoEnd::TimedOut),
        "cancelled" | "canceled" => Some(NoEnd::Cancelled),
        _ => None,
    }
}

/// The steps that printed something. One that was skipped has a text of Systems Manager's, which is no output.
fn speaking(invocation: &CommandInvocation) -> impl Iterator<Item = &CommandPlugin> {
    let plugins = invocation.command_plugins().iter();
    plugins.filter(|plugin| {
        let output = output_of(plugin).trim();
        !output.is_empty() && !output.starts_with("Step execution skipped")
    })
}

fn of_document(first: &CommandPlugin, invocation: &CommandInvocation) -> Outcome {
    let found = speaking(invocation)
        .find_map(|plugin| document::line_in(output_of(plugin)).map(|line| (plugin, line)));
    let (misfit, raw) = match found {
        Some((plugin, line)) => match line.and_then(|line| agreed(line, plugin, invocation)) {
            Ok(line) => {
                return Outcome {
                    memory: Some(line.memory),
                    ..Outcome::of(Cause::Reported(line.verdict), line.detail)
                };
            }
            Err(misfit) => (misfit, output_of(plugin)),
        },
        None => {
            let failed = invocation.status() == Some(&CommandInvocationStatus::Failed);
            let own = |plugin| ssm_agent::could_not_run(output_of(plugin), plugin.response_code());
            let own = || speaking(invocation).find_map(own);
            if let Some(text) = failed.then(own).flatten() {
                let what = "the SSM Agent could not run the script, or lost sight of it";
                let detail = format!("{what}; {}", host_says(text, MAX_RAW));
                return Outcome::of(Cause::CannotRun, detail);
            }
            let misfit = format!(
                "Systems Manager says {}, but the output is not the restart document's",
                said(invocation)
            );
            (misfit, output_of(first))
        }
    };
    Outcome::of(
        Cause::NoProof,
        format!("{misfit}; {}", host_says(raw, MAX_RAW)),
    )
}

/// The line, if Systems Manager saw the same end.
fn agreed(
    line: Line,
    plugin: &CommandPlugin,
    invocation: &CommandInvocation,
) -> Result<Line, String> {
    let code = line.verdict.code();
    if plugin.response_code() == ENDED_BY_SIGNAL {
        return Ok(line);
    }
    if plugin.response_code() != i32::from(code) {
        return Err(format!(
            "the document's line says code {code}, Systems Manager saw exit code {}",
            plugin.response_code()
        ));
    }
    if code == 0 && invocation.status() != Some(&CommandInvocationStatus::Success) {
        return Err("the document's line says success, Systems Manager says Failed".to_owned());
    }
    Ok(line)
}

fn output_of(plugin: &CommandPlugin) -> &str {
    plugin.output().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_needs_attention_is_worse_than_ok_and_nothing_else_is() {
        let causes = [
            Cause::NoProof,
            Cause::Skipped,
            Cause::DeploymentRuns,
            Cause::Unreachable,
            Cause::Unmatched,
            Cause::Denied,
            Cause::Undelivered,
            Cause::CannotRun,
            Cause::TimedOut,
            Cause::Cancelled,
            Cause::UnknownLifecycle,
            Cause::UnknownPlatform,
            Cause::NoDocument,
            Cause::TooManyErrors,
            Cause::NoTime,
            Cause::FailedCall,
            Cause::NoResult,
        ];
        let verdicts = Verdict::ALL.iter().copied().map(Cause::Reported);
        for cause in causes.into_iter().chain(verdicts) {
            let told = cause.severity() > Severity::Ok;
            assert_eq!(cause.kind().needs_attention(), told, "{cause:?}");
        }
    }
}
