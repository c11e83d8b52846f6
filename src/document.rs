//! The contract with the scripts of the Run Command document, in one place: what they are given, the line they
//! print, what each result means, and how long they may take. `document/README.md` tells it to people.

use serde::Deserialize;

use crate::clock::Timestamp;
use crate::kind::{Kind, Severity};
use crate::text::{harmless, host_says};

/// Seconds within which Systems Manager must deliver the command (`TimeoutSeconds` of
/// <https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_SendCommand.html>).
pub const DELIVERY_SECONDS: i32 = 120;
/// Beyond the busy wait, the longest that a script may run before Systems Manager kills it, in seconds. The script ends by
/// itself a minute earlier, so that its line arrives.
const EXECUTION_SECONDS: u32 = 450;
/// The version of the line that this function understands.
const LINE_VERSION: u64 = 1;
/// Characters of a detail that the script gives.
const MAX_DETAIL: usize = 600;
/// Characters of the agent's version, and of a result that is unknown.
const MAX_WORD: usize = 60;

/// What a script is given: numbers, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// An agent that started at or after this moment is fresh.
    pub triggered_at: Timestamp,
    /// The moment of sending, rounded down: an agent's age is compared with the time between the two.
    pub sent_at: Timestamp,
    /// Seconds that the script waits while the host is busy.
    pub busy_wait_seconds: u32,
    /// Agents that hold less are left alone, in MiB; 0 restarts every agent.
    pub min_memory_mib: u32,
}

impl Parameters {
    /// The document's parameters, by name.
    pub fn pairs(self) -> [(&'static str, u64); 5] {
        [
            ("triggeredAt", self.triggered_at.0),
            ("sentAt", self.sent_at.0),
            ("busyWaitSeconds", self.busy_wait_seconds.into()),
            ("minMemoryMiB", self.min_memory_mib.into()),
            (
                "executionTimeoutSeconds",
                (self.busy_wait_seconds + EXECUTION_SECONDS).into(),
            ),
        ]
    }
}

/// Each result with its word and its exit code.
macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $code:literal;)+) => {
        /// What a script found and did, as its line says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Verdict {
            $($(#[$doc])* $name,)+
        }

        impl Verdict {
            /// Every result.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word in the line's `result`.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// The exit code, and the line's `code`.
            pub fn code(self) -> u8 {
                match self {
                    $(Self::$name => $code,)+
                }
            }
        }
    };
}

verdicts! {
    /// A new agent runs and is proven healthy: one master, its poller ready, both stay, and CodeDeploy answers its polls.
    Restarted = "restarted", 0;
    /// No agent was running; one runs now and is proven healthy.
    Started = "started", 0;
    /// The agent started after the deployment, and is proven healthy.
    AlreadyRestarted = "already-restarted", 0;
    /// The agent holds less memory than the threshold, and is proven healthy.
    BelowThreshold = "below-threshold", 0;
    /// No agent is installed: neither a program nor a process.
    NotInstalled = "not-installed", 10;
    /// The script does not run as root.
    NotRoot = "not-root", 11;
    /// Left untouched: a new agent would not start, what runs is no agent that is known, its unit would kill more than
    /// the agent, or the script could not see enough to be sure.
    PreflightFailed = "preflight-failed", 12;
    /// A lifecycle event ran for the whole wait, or the agent refused to stop for one.
    Busy = "busy", 20;
    /// An update of the agent ran for the whole wait.
    UpdateRunning = "update-running", 21;
    /// Another restart ran for the whole wait, or systemd did not come to a start that it has queued.
    RestartRunning = "restart-running", 22;
    /// The service manager could not do it, nor once more.
    ServiceManagerFailed = "service-manager-failed", 30;
    /// The old agent still runs, or several do.
    OldAgentSurvived = "old-agent-survived", 31;
    /// No agent runs, even though it was started once more.
    AgentDown = "agent-down", 32;
    /// The agent does not become or stay ready, or CodeDeploy does not hear it.
    AgentUnhealthy = "agent-unhealthy", 33;
    /// The old agent was asked to end, by this script or by somebody else, and still drains.
    Draining = "draining", 34;
}

impl Verdict {
    /// The outcome that it makes.
    pub fn kind(self) -> Kind {
        match self {
            Self::Restarted => Kind::Restarted,
            Self::Started => Kind::Started,
            Self::AlreadyRestarted => Kind::AlreadyRestarted,
            Self::BelowThreshold => Kind::BelowThreshold,
            Self::NotInstalled
            | Self::NotRoot
            | Self::PreflightFailed
            | Self::ServiceManagerFailed
            | Self::OldAgentSurvived
            | Self::AgentDown
            | Self::AgentUnhealthy => Kind::Failed,
            Self::Busy | Self::UpdateRunning | Self::RestartRunning | Self::Draining => Kind::Busy,
        }
    }

    /// How bad it is: critical where no agent runs, so that the next deployment fails.
    pub fn severity(self) -> Severity {
        match self {
            Self::Restarted | Self::Started | Self::AlreadyRestarted | Self::BelowThreshold => {
                Severity::Ok
            }
            Self::ServiceManagerFailed | Self::AgentDown => Severity::Critical,
            Self::NotInstalled
            | Self::NotRoot
            | Self::PreflightFailed
            | Self::Busy
            | Self::UpdateRunning
            | Self::RestartRunning
            | Self::OldAgentSurvived
            | Self::AgentUnhealthy
            | Self::Draining => Severity::Warning,
        }
    }

    /// Whether it counts towards `MAX_ERRORS`: the restart was tried, and went wrong. What left everything
    /// untouched says nothing about the next host.
    pub fn brakes(self) -> bool {
        match self {
            Self::ServiceManagerFailed
            | Self::OldAgentSurvived
            | Self::AgentDown
            | Self::AgentUnhealthy => true,
            Self::Restarted
            | Self::Started
            | Self::AlreadyRestarted
            | Self::BelowThreshold
            | Self::NotInstalled
            | Self::NotRoot
            | Self::PreflightFailed
            | Self::Busy
            | Self::UpdateRunning
            | Self::RestartRunning
            | Self::Draining => false,
        }
    }

    fn read(word: &str, code: u8) -> Option<Self> {
        let fits = |verdict: &Self| verdict.word() == word && verdict.code() == code;
        Self::ALL.iter().copied().find(fits)
    }
}

/// Resident memory of the agent's processes, in KiB; 0 where no agent ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Before the restart.
    pub before_kib: u64,
    /// After it.
    pub after_kib: u64,
}

/// The line that a script prints, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it found and did.
    pub verdict: Verdict,
    /// The same for people: the result with its code, the agent's version, and what the host says of it.
    pub detail: String,
    /// The agent's memory.
    pub memory: Memory,
}

/// The line as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
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

/// The script's line in an output: the first one with `agentRestart`. `None` when no line holds the word.
///
/// # Errors
/// What is wrong with the line, in words.
pub fn line_in(output: &str) -> Option<Result<Line, String>> {
    let line = output
        .lines()
        .find(|line| line.contains("\"agentRestart\""))?;
    Some(read(line.trim()))
}

fn read(line: &str) -> Result<Line, String> {
    let written: Written = serde_json::from_str(line).map_err(|error| {
        format!(
            "the document's line is no valid JSON (column {})",
            error.column()
        )
    })?;
    if written.agent_restart != LINE_VERSION {
        return Err(format!(
            "the document's line has version {}, this function knows {LINE_VERSION}",
            written.agent_restart
        ));
    }
    let verdict = Verdict::read(&written.result, written.code).ok_or_else(|| {
        format!(
            "the document's line has an unknown result ({}) with code {}",
            host_says(&written.result, MAX_WORD),
            written.code
        )
    })?;
    Ok(Line {
        verdict,
        detail: detail(verdict, &written),
        memory: Memory {
            before_kib: written.memory_before_kib,
            after_kib: written.memory_after_kib,
        },
    })
}

/// In words: whose outcome is fine needs no more than the host's own.
fn detail(verdict: Verdict, written: &Written) -> String {
    let mut words = Vec::new();
    if verdict.kind().needs_attention() {
        let version = harmless(&written.agent_version, MAX_WORD);
        let agent = match version.is_empty() {
            true => String::new(),
            false => format!(", agent {version}"),
        };
        words.push(format!(
            "{} (code {}{agent})",
            verdict.word(),
            verdict.code()
        ));
    }
    if !written.detail.trim().is_empty() {
        words.push(host_says(&written.detail, MAX_DETAIL));
    }
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole of `document/README.md`'s table: a new result needs a line here, and one that changes its meaning
    /// does not do so unseen.
    #[test]
    fn what_each_result_means() {
        use Severity::{Critical, Ok, Warning};
        let table = Verdict::ALL.iter().map(|verdict| {
            (
                verdict.word(),
                verdict.code(),
                verdict.kind().word(),
                verdict.severity(),
                verdict.brakes(),
            )
        });
        let expected = [
            ("restarted", 0, "restarted", Ok, false),
            ("started", 0, "started", Ok, false),
            ("already-restarted", 0, "already-restarted", Ok, false),
            ("below-threshold", 0, "below-threshold", Ok, false),
            ("not-installed", 10, "failed", Warning, false),
            ("not-root", 11, "failed", Warning, false),
            ("preflight-failed", 12, "failed", Warning, false),
            ("busy", 20, "busy", Warning, false),
            ("update-running", 21, "busy", Warning, false),
            ("restart-running", 22, "busy", Warning, false),
            ("service-manager-failed", 30, "failed", Critical, true),
            ("old-agent-survived", 31, "failed", Warning, true),
            ("agent-down", 32, "failed", Critical, true),
            ("agent-unhealthy", 33, "failed", Warning, true),
            ("draining", 34, "busy", Warning, false),
        ];
        assert_eq!(table.collect::<Vec<_>>(), expected);
    }
}
