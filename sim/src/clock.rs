//! Where the world's time comes from: tokio's clock, which a test can pause.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_async::time::TimeSource;
use tokio::time::Instant;

/// A clock that began at a moment of our choice and runs as tokio's does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
    /// Epoch seconds at which it began.
    pub(crate) start: f64,
}

impl Clock {
    pub(crate) fn starting_at(start: f64) -> Self {
        Self {
            origin: Instant::now(),
            start,
        }
    }

    /// Seconds since it began.
    pub(crate) fn elapsed(&self) -> f64 {
        self.origin.elapsed().as_secs_f64()
    }

    /// Epoch seconds.
    pub(crate) fn now(&self) -> f64 {
        self.start + self.elapsed()
    }
}

/// The SDK signs and judges expiry by the world's time.
impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(Clock::now(self).max(0.0))
    }
}
