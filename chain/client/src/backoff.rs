//! The pause between attempts: exponential, jittered, and bounded by a deadline.

use std::time::{Duration, Instant};

use janusfs_env::{clock, rng};

/// First pause: about what a committing chunk write takes.
const FIRST: Duration = Duration::from_millis(2);
/// Longest pause: a peer that comes back is found within this time.
const LONGEST: Duration = Duration::from_millis(250);

/// The attempts of one operation under one deadline.
#[derive(Debug)]
pub struct Backoff {
    deadline: Instant,
    pause: Duration,
}

impl Backoff {
    /// Starts an operation that may take `budget` over all its attempts.
    #[must_use]
    pub fn new(budget: Duration) -> Self {
        Self {
            deadline: clock::now() + budget,
            pause: FIRST,
        }
    }

    /// Returns what is left of the budget.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(clock::now())
    }

    /// Waits before the next attempt. Returns false, at once, when the deadline leaves no room for one.
    ///
    /// The pause is drawn from the upper half of the current step, so that clients that failed together do not come
    /// back together.
    pub async fn pause(&mut self) -> bool {
        let half = self.pause / 2;
        let range = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        let pause = half + Duration::from_micros(rng::random_u64() % range);
        if pause >= self.remaining() {
            return false;
        }
        self.pause = (self.pause * 2).min(LONGEST);
        clock::sleep(pause).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_outlasts_the_deadline() {
        let mut backoff = Backoff::new(Duration::ZERO);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        assert!(!runtime.block_on(backoff.pause()));
        assert_eq!(backoff.remaining(), Duration::ZERO);
    }
}
