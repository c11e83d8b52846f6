//! Keeps the calls of Systems Manager apart: it publishes no rate limits, and a restart of a large fleet must
//! not take them away from everybody else in the account.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Calls begin this far apart in each region.
const INTERVAL: Duration = Duration::from_millis(200);
/// Calls that are under way at the same time in each region. The SDK repeats a throttled call by itself, after
/// pauses of its own choice: so few cannot add up to many attempts a second. One that hangs leaves a way for
/// the others.
const AT_ONCE: usize = 2;

/// Whose turn it is in one region. Clones share it.
#[derive(Clone, Debug)]
pub struct Pace {
    next: Arc<Mutex<Instant>>,
    under_way: Arc<Semaphore>,
}

/// The right to make one call, until it is dropped.
#[derive(Debug)]
#[must_use = "the call is over when the turn is dropped"]
pub struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Pace {
    /// A pace at which the first turn is now.
    pub fn new() -> Self {
        Self {
            next: Arc::new(Mutex::new(Instant::now())),
            under_way: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Waits until the next call may be made. The call is over when the turn is dropped.
    pub async fn turn(&self) -> Turn {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.under_way).acquire_owned().await.ok();
        tokio::time::sleep_until(self.book()).await;
        Turn { _permit: permit }
    }

    /// Takes the next moment at which a call may begin.
    fn book(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(Instant::now());
        *next = turn + INTERVAL;
        turn
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}
