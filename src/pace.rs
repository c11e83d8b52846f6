//! Keeps the calls of Systems Manager apart: it publishes no rate limits, and a restart of a large fleet must
//! not take them away from everybody else in the account. A [`Paced`] client cannot be called without a turn.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Calls that may begin at once in each region, after a pause …
const BURST: u32 = 10;
/// … and then one each so often.
const INTERVAL: Duration = Duration::from_millis(200);
/// Calls that are under way at the same time in each region. The SDK repeats a throttled call by itself, after
/// pauses of its own choice: so few cannot add up to many attempts a second. One that hangs leaves ways for
/// the others.
const AT_ONCE: usize = 4;

/// A client of one region whose calls take turns. Clones share them.
#[derive(Clone, Debug)]
pub struct Paced<C> {
    client: C,
    /// When the burst will be whole again.
    whole: Arc<Mutex<Instant>>,
    under_way: Arc<Semaphore>,
}

/// The client for one call. The call is over when this is dropped.
#[derive(Debug)]
#[must_use = "the call is over when the turn is dropped"]
pub struct Turn<'a, C> {
    client: &'a C,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<C> Paced<C> {
    /// The client, with a whole burst.
    pub fn new(client: C) -> Self {
        Self {
            client,
            whole: Arc::new(Mutex::new(Instant::now())),
            under_way: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Waits until the next call may be made.
    pub async fn turn(&self) -> Turn<'_, C> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.under_way).acquire_owned().await.ok();
        tokio::time::sleep_until(self.book()).await;
        Turn {
            client: &self.client,
            _permit: permit,
        }
    }

    /// Takes the next moment at which a call may begin.
    fn book(&self) -> Instant {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *whole = (*whole).max(now) + INTERVAL;
        whole.checked_sub(INTERVAL * BURST).unwrap_or(now).max(now)
    }
}

impl<C> Deref for Turn<'_, C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_calls_go_at_once_and_then_five_a_second() {
        let paced = Paced::new(());
        let begun = Instant::now();
        let mut at = Vec::new();
        for _ in 0..13 {
            drop(paced.turn().await);
            at.push(begun.elapsed().as_millis());
        }
        assert_eq!(at[..10], [0; 10]);
        assert_eq!(at[10..], [200, 400, 600]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = begun.elapsed();
        for _ in 0..5 {
            drop(paced.turn().await);
        }
        assert_eq!(begun.elapsed(), after);
        drop(paced.turn().await);
        assert_eq!(begun.elapsed() - after, INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_under_way_and_no_more() {
        let paced = Paced::new(());
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(paced.turn().await);
        }
        let soon = tokio::time::timeout(Duration::from_secs(60), paced.turn());
        assert!(soon.await.is_err());
        turns.pop();
        let _turn = paced.turn().await;
    }
}
