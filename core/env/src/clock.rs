//! Wall clock, monotonic clock, and the waits built on it.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the one place that may ask the system"
)]

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A deadline passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

/// Returns the wall-clock time in nanoseconds since the Unix epoch. May jump; never used to judge a lease.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Returns the monotonic time.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits for `duration`. Needs a tokio context.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Runs `future` for at most `duration`. Needs a tokio context. The future is dropped when time is up.
///
/// # Errors
/// [`Elapsed`].
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout(duration, future)
        .await
        .map_err(|_| Elapsed)
}
