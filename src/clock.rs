//! Time as the function sees it: one reading of the wall clock at the receipt of an event, and tokio's
//! monotonic clock from there on. Nothing else in this crate reads a clock, so the whole way of an event
//! runs under virtual time in the tests.

use std::fmt;
use std::time::Duration;

use aws_sdk_ssm::primitives::{DateTime, DateTimeFormat};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

/// What is kept back before Lambda's deadline for the report and for publishing it, retries included.
pub const RESERVE: Duration = Duration::from_secs(45);

/// `Publish` is given up this long before the deadline, so that the invocation ends in an error that
/// Lambda retries and not in a timeout that nobody can read.
const PUBLISH_RESERVE: Duration = Duration::from_secs(3);

/// A moment in whole seconds since 1970, shown and serialized as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Reads an RFC 3339 time, rounded up to a second. `None` when it is none, or when it lies before 1970.
    pub fn parse(text: &str) -> Option<Self> {
        let time = DateTime::from_str(text, DateTimeFormat::DateTimeWithOffset).ok()?;
        (time.secs() >= 0).then(|| Self::rounded_up(&time))
    }

    /// The SDK's time, rounded *up* to a second: a later `triggeredAt` can only cause a needless restart,
    /// an earlier one could let a stale agent pass for fresh.
    pub fn rounded_up(time: &DateTime) -> Self {
        let seconds = time.secs() + i64::from(time.subsec_nanos() > 0);
        Self(u64::try_from(seconds).unwrap_or(0))
    }

    /// The SDK's time, rounded down to a second.
    pub fn rounded_down(time: &DateTime) -> Self {
        Self(u64::try_from(time.secs()).unwrap_or(0))
    }

    /// Seconds from `earlier` to this moment, zero when it is not earlier.
    pub fn seconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from(*self).fmt(DateTimeFormat::DateTime) {
            Ok(text) => f.write_str(&text),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

impl From<Timestamp> for DateTime {
    fn from(time: Timestamp) -> Self {
        Self::from_secs(i64::try_from(time.0).unwrap_or(i64::MAX))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The time of one event: when it was received, and until when it may work.
#[derive(Clone, Debug)]
pub struct Clock {
    received_at: Duration,
    received: Instant,
    deadline: Instant,
}

impl Clock {
    /// `now` is the time since 1970 at receipt; `remaining` what Lambda leaves until its deadline.
    pub fn new(now: Duration, remaining: Duration) -> Self {
        let received = Instant::now();
        Self {
            received_at: now,
            received,
            deadline: received + remaining,
        }
    }

    /// The present moment, rounded down to a second: the function's own clock, carried on monotonically.
    pub fn now(&self) -> Timestamp {
        Timestamp((self.received_at + self.received.elapsed()).as_secs())
    }

    /// The moment at which the event was received, rounded up to a second.
    pub fn received_at(&self) -> Timestamp {
        Timestamp(self.received_at.as_secs() + u64::from(self.received_at.subsec_nanos() > 0))
    }

    /// Until when instances may be waited for: the deadline less what the report needs.
    pub fn until(&self) -> Instant {
        self.deadline.checked_sub(RESERVE).unwrap_or(self.received)
    }

    /// Until when publishing may be tried.
    pub fn publish_until(&self) -> Instant {
        self.deadline
            .checked_sub(PUBLISH_RESERVE)
            .unwrap_or(self.received)
    }

    /// How long ago the event was received.
    pub fn elapsed(&self) -> Duration {
        self.received.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_reads_and_shows_rfc_3339() {
        let time = Timestamp::parse("2026-11-21T10:15:30Z").unwrap();
        assert_eq!(time.to_string(), "2026-11-21T10:15:30Z");
        assert_eq!(Timestamp::parse("2026-11-21T11:15:30+01:00"), Some(time));
        assert_eq!(Timestamp::parse("2026-11-21T10:15:29.1Z"), Some(time));
        assert_eq!(Timestamp::parse("1969-12-31T23:59:59Z"), None);
        assert_eq!(Timestamp::parse("1969-12-31T23:59:59.9Z"), None);
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[test]
    fn the_sdk_s_fractions_round_up() {
        assert_eq!(
            Timestamp::rounded_up(&DateTime::from_secs_f64(9.001)),
            Timestamp(10)
        );
        assert_eq!(Timestamp::rounded_up(&DateTime::from_secs(9)), Timestamp(9));
    }
}
