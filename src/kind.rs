//! The thirteen outcomes that an instance can have, and how bad anything is: words that other programs rely on.

use crate::text::worded;

worded! {
    /// The outcome of one instance: exactly one for each candidate.
    pub enum Kind {
        /// A new agent runs and is proven healthy.
        Restarted = "restarted",
        /// No agent was running; one runs now and is proven healthy.
        Started = "started",
        /// The agent already started after the last deployment, and is proven healthy.
        AlreadyRestarted = "already-restarted",
        /// The agent uses less memory than the threshold, and is proven healthy.
        BelowThreshold = "below-threshold",
        /// Deliberately left alone: starting, leaving, not running, or without the tag that is asked for.
        Skipped = "skipped",
        /// The document ran and reports a failure, or an answer that proves nothing.
        Failed = "failed",
        /// A lifecycle event, an update, another restart or another deployment was running.
        Busy = "busy",
        /// Systems Manager cannot reach the instance, which runs as far as is known.
        Unreachable = "unreachable",
        /// The command is not known to have run on the instance.
        Undelivered = "undelivered",
        /// The document did not end in time.
        TimedOut = "timed-out",
        /// Somebody cancelled the command.
        Cancelled = "cancelled",
        /// Not sent to: the brake, the time limit, a failed call, an unknown lifecycle state, or no document for its platform.
        HeldBack = "held-back",
        /// Sent, but without a result when the function had to report.
        Unfinished = "unfinished",
    }
}

impl Kind {
    /// Whether somebody must hear of it.
    pub fn needs_attention(self) -> bool {
        match self {
            Self::Restarted
            | Self::Started
            | Self::AlreadyRestarted
            | Self::BelowThreshold
            | Self::Skipped => false,
            Self::Failed
            | Self::Busy
            | Self::Unreachable
            | Self::Undelivered
            | Self::TimedOut
            | Self::Cancelled
            | Self::HeldBack
            | Self::Unfinished => true,
        }
    }
}

worded! {
    /// How bad something is; the worst of its parts.
    pub enum Severity {
        /// Every agent is fresh and alive, or deliberately left alone.
        Ok = "ok",
        /// Somebody should look.
        Warning = "warning",
        /// An agent is down: the next deployment will fail there.
        Critical = "critical",
    }
}
