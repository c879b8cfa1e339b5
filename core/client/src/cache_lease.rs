//! What this client's caches may believe, and for how long: the client's half of cache leases.
//!
//! The metadata service lets a client believe an answer for a while and tells it, over a `Watch` call that is always
//! open, what to forget before that (`core/meta`, `watch`). The holder of the caches (the mount, for the kernel) has
//! them forget it before the next `Watch` call acknowledges it.
//!
//! Invariant: an answer is handed to the caches with a lease only if nothing was to be forgotten between asking for it
//! and handing it over. Which fact it was is not compared: it would save a question now and then.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use janusfs_env::{clock, tasks};
use janusfs_rpc::{Caller, Peer};
use janusfs_types::{ClientId, FsError, limits};
use janusfs_wire::{
    Method,
    meta::{Forget, Watch},
};
use parking_lot::RwLock;

use crate::{client::Inner, retry};

const LEASE: Duration = Duration::from_millis(limits::CACHE_LEASE_MS as u64);
/// Wait before the next try when the service does not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// Caches that can forget.
pub trait ForgetfulCache: Send + Sync + 'static {
    /// Forgets, and may block for it. Tells whether nothing of it is believed any more; else its lease is waited out.
    fn forget(&self, what: &Forget) -> bool;
}

/// For how long an answer may be believed.
#[derive(Clone, Copy, Debug)]
pub struct CacheLease {
    until: Instant,
    /// Batches forgotten when the question was asked.
    forgotten: u64,
}

impl CacheLease {
    /// The lease of an answer that may not be believed any longer.
    #[must_use]
    pub fn none() -> Self {
        Self {
            until: clock::now(),
            forgotten: 0,
        }
    }

    /// The lease of an answer that rests on two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            until: self.until.min(other.until),
            forgotten: self.forgotten.min(other.forgotten),
        }
    }
}

/// The leases of one client.
#[derive(Debug, Default)]
pub(crate) struct CacheLeases {
    /// Batches forgotten. Held for reading while an answer is handed over.
    forgotten: RwLock<u64>,
}

impl CacheLeases {
    pub(crate) async fn call<M: Method>(
        &self,
        meta: &Peer,
        client: ClientId,
        message: &M,
    ) -> Result<(M::Reply, CacheLease), FsError> {
        let caller = Caller {
            client,
            wants_lease: true,
            remote: false,
        };
        let forgotten = *self.forgotten.read();
        let asked = clock::now();
        let (reply, lease_ms) = retry::call_as(meta, caller, message).await?;
        let lease = Duration::from_millis(lease_ms.min(limits::CACHE_LEASE_MS).into());
        let until = asked + lease;
        Ok((reply, CacheLease { until, forgotten }))
    }

    /// Runs `hand_over` with the time that is left of a lease. What it hands over is in the caches before anything else
    /// is forgotten.
    pub(crate) fn hand_over<T>(
        &self,
        lease: CacheLease,
        hand_over: impl FnOnce(Duration) -> T,
    ) -> T {
        let forgotten = self.forgotten.read();
        let left = if *forgotten == lease.forgotten {
            lease.until.saturating_duration_since(clock::now())
        } else {
            Duration::ZERO
        };
        hand_over(left)
    }

    async fn forget(&self, what: Forget, cache: &Arc<dyn ForgetfulCache>) -> bool {
        // Whoever asked before this gets no lease; whoever has handed over already is told below.
        *self.forgotten.write() += 1;
        let cache = Arc::clone(cache);
        tasks::blocking(move || cache.forget(&what)).await
    }
}

/// Keeps a `Watch` call open until the client is gone.
pub(crate) async fn keep_watching(
    client: ClientId,
    meta: Peer,
    inner: Weak<Inner>,
    cache: Arc<dyn ForgetfulCache>,
) {
    let caller = Caller {
        client,
        wants_lease: false,
        remote: false,
    };
    let timeout = Duration::from_millis(limits::META_DEADLINE_MS);
    let mut acked = 0;
    loop {
        let message = Watch { client, acked };
        let what = match janusfs_rpc::call_as(&*meta, caller, &message, timeout).await {
            Ok((what, _)) => what,
            Err(error) => {
                tracing::debug!(%client, %error, "no answer to the watch call");
                clock::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(inner) = inner.upgrade() else {
            return;
        };
        acked = what.batch;
        let nothing = what.inodes.is_empty() && what.names.is_empty();
        if !nothing && !inner.cache_leases.forget(what, &cache).await {
            clock::sleep(LEASE).await;
        }
    }
}
