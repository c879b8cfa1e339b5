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
use tokio::runtime::Handle;

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

    fn forget(&self, what: &Forget, cache: &dyn ForgetfulCache) -> bool {
        // Whoever asked before this gets no lease; whoever has handed over already is told below.
        *self.forgotten.write() += 1;
        cache.forget(what)
    }
}

/// Keeps a `Watch` call open on a thread of its own, until the client is gone: forgetting may block.
pub(crate) fn watch(inner: &Arc<Inner>, handle: Handle, cache: Arc<dyn ForgetfulCache>) {
    let (client, meta) = (inner.id, Arc::clone(&inner.meta));
    let inner = Arc::downgrade(inner);
    tasks::spawn_thread("janusfs-watch", move || {
        tasks::block_on(&handle, keep_watching(client, meta, inner, cache));
    });
}

async fn keep_watching(
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
    let mut acked = 0;
    while inner.strong_count() > 0 {
        let message = Watch { client, acked };
        let timeout = Duration::from_millis(limits::META_DEADLINE_MS);
        match janusfs_rpc::call_as(&*meta, caller, &message, timeout).await {
            Ok((what, _)) => {
                if !(what.inodes.is_empty() && what.names.is_empty()) {
                    let Some(inner) = inner.upgrade() else {
                        return;
                    };
                    if !inner.cache_leases.forget(&what, &*cache) {
                        clock::sleep(LEASE).await;
                    }
                }
                acked = what.batch;
            }
            Err(error) => {
                tracing::debug!(%client, %error, "no answer to the watch call");
                clock::sleep(PAUSE).await;
            }
        }
    }
}
