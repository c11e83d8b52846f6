//! What became of an instance, and why: the causes behind the thirteen outcomes. And what an invocation's end, as
//! Systems Manager tells it, means. Pure functions over plain data.

use aws_sdk_ssm::types::{CommandInvocation, CommandInvocationStatus, CommandPlugin};

use crate::document::{self, Line, Memory, Verdict};
use crate::kind::{Kind, Severity};
use crate::text::{host_says, quoted};

/// Characters of raw text that are shown when an answer is not the document's.
const MAX_RAW: usize = 300;

/// Why an instance has its outcome. It decides the outcome's kind, how bad that is, whether it brakes the
/// others, and what people are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The document says so.
    Reported(Verdict),
    /// The document's step ended, and its output proves nothing.
    NoProof,
    /// Starting, leaving, gone, or never deployed to.
    Skipped,
    /// Another deployment of the group runs.
    DeploymentRuns,
    /// Offline, not managed by Systems Manager, refused by it, or on-premises.
    Unreachable,
    /// The function's role may send to others, and not to this instance.
    Denied,
    /// The command did not arrive, or could not run there.
    Undelivered,
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
            Self::Unreachable | Self::Denied => Kind::Unreachable,
            Self::Undelivered => Kind::Undelivered,
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
            | Self::Denied
            | Self::Undelivered
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
            | Self::Denied
            | Self::Undelivered
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
    /// The end.
    Done(Outcome),
}

/// Reads an invocation. Whether it has ended is decided by `Status`; the reason is in `StatusDetails`, whose
/// spelling varies (<https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_CommandInvocation.html>).
/// A status we do not know is not an end.
pub fn of_invocation(invocation: &CommandInvocation) -> Progress {
    let details = invocation.status_details().unwrap_or_default();
    let outcome = match invocation.status() {
        Some(CommandInvocationStatus::Pending | CommandInvocationStatus::Delayed) => {
            return Progress::Waiting;
        }
        Some(CommandInvocationStatus::Success | CommandInvocationStatus::Failed) => {
            ended(details, invocation)
        }
        Some(CommandInvocationStatus::TimedOut) => {
            told_by(details).unwrap_or(NoEnd::TimedOut).outcome(details)
        }
        Some(CommandInvocationStatus::Cancelled) => told_by(details)
            .unwrap_or(NoEnd::Cancelled)
            .outcome(details),
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
    match told_by(details) {
        Some(end) => end.outcome(details),
        None => of_document(details, invocation),
    }
}

/// An end without a result.
#[derive(Clone, Copy)]
enum NoEnd {
    Undelivered,
    TimedOut,
    Cancelled,
}

impl NoEnd {
    fn outcome(self, details: &str) -> Outcome {
        let (cause, what) = match self {
            Self::Undelivered => (Cause::Undelivered, "the command did not run there"),
            Self::TimedOut => (Cause::TimedOut, "the document did not end in time"),
            Self::Cancelled => (Cause::Cancelled, "the command was cancelled"),
        };
        let details = quoted(details);
        Outcome::of(cause, format!("{what}; Systems Manager says {details}"))
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
        "deliverytimedout" | "undeliverable" | "terminated" | "accessdenied"
        | "invalidplatform" => Some(NoEnd::Undelivered),
        "executiontimedout" => Some(NoEnd::TimedOut),
        "cancelled" | "canceled" => Some(NoEnd::Cancelled),
        _ => None,
    }
}

fn of_document(details: &str, invocation: &CommandInvocation) -> Outcome {
    let plugins = invocation.command_plugins();
    let found = plugins
        .iter()
        .find_map(|plugin| document::line_in(output_of(plugin)).map(|line| (plugin, line)));
    let (misfit, raw) = match found {
        None => (
            format!(
                "Systems Manager says {}, but the output is not the restart document's",
                quoted(details)
            ),
            most_telling_output(plugins),
        ),
        Some((plugin, line)) => match line.and_then(|line| agreed(line, plugin, invocation)) {
            Ok(line) => {
                return Outcome {
                    memory: Some(line.memory),
                    ..Outcome::of(Cause::Reported(line.verdict), line.detail)
                };
            }
            Err(misfit) => (misfit, output_of(plugin)),
        },
    };
    let raw = match raw.trim() {
        "" => "there is no output".to_owned(),
        raw => host_says(raw, MAX_RAW),
    };
    Outcome::of(Cause::NoProof, format!("{misfit}; {raw}"))
}

/// The line, if Systems Manager saw the same end.
fn agreed(
    line: Line,
    plugin: &CommandPlugin,
    invocation: &CommandInvocation,
) -> Result<Line, String> {
    let code = line.verdict.code();
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

/// The output of the step that ran, or that of a skipped one when none did.
fn most_telling_output(plugins: &[CommandPlugin]) -> &str {
    let outputs = || plugins.iter().map(output_of);
    outputs()
        .find(|output| !output.starts_with("Step execution skipped"))
        .or_else(|| outputs().next())
        .unwrap_or_default()
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
            Cause::Denied,
            Cause::Undelivered,
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
