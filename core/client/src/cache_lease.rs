//! What this client's caches may believe, and for how long: the client's half of cache leases.
//!
//! The metadata service lets a client believe an answer for a while and tells it, over a `Watch` call that is always
//! open, what to forget before that (`core/meta`, `watch`). The holder of the caches (the mount, for the kernel) has
//! them forget it before the next `Watch` call acknowledges it.
//!
//! Invariant: an answer is handed to the caches with a lease only if, between asking for it and handing it over, nothing
//! was to be forgotten and this client has changed nothing. Which fact it was is not compared: it would save a question
//! now and then.

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
/// What a lease is shortened by: a kernel counts it from when it takes the answer in, in ticks of up to 10 ms.
const SLACK: Duration = Duration::from_millis(100);
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
    /// The generation in which the question was asked, or in which its own change was made.
    generation: u64,
}

impl CacheLease {
    /// The lease of an answer that may not be believed any longer.
    #[must_use]
    pub fn none() -> Self {
        Self {
            until: clock::now(),
            generation: 0,
        }
    }
}

/// The leases of one client.
#[derive(Debug, Default)]
pub(crate) struct CacheLeases {
    /// Grows with everything that makes answers under way old: what is to be forgotten, and the client's own changes.
    /// Held for reading while an answer is handed over.
    generation: RwLock<u64>,
}

impl CacheLeases {
    pub(crate) async fn call<M: Method>(
        &self,
        meta: &Peer,
        caller: Caller,
        message: &M,
    ) -> Result<(M::Reply, CacheLease), FsError> {
        let asked_in = *self.generation.read();
        let asked = clock::now();
        let answer = retry::call_as(meta, caller, message).await;
        let generation = if retry::only_reads(M::ID) {
            asked_in
        } else {
            let own = self.changed(asked_in);
            if let Err(FsError::Unavailable(_)) = &answer {
                // Perhaps it was done, and the caches, told that it was not, believe what was before.
                clock::sleep(LEASE).await;
            }
            own
        };
        let (reply, lease_ms) = answer?;
        let lease = Duration::from_millis(lease_ms.min(limits::CACHE_LEASE_MS).into());
        let until = asked + lease;
        Ok((reply, CacheLease { until, generation }))
    }

    /// Makes answers that were asked for before now old; returns the generation of the change itself, which was asked for
    /// in `asked_in`.
    fn changed(&self, asked_in: u64) -> u64 {
        let mut generation = self.generation.write();
        let current = *generation == asked_in;
        *generation += 1;
        if current { *generation } else { asked_in }
    }

    /// Runs `hand_over` with the time that is left of a lease: none if the answer may be old.
    pub(crate) fn hand_over<T>(
        &self,
        lease: CacheLease,
        hand_over: impl FnOnce(Duration) -> T,
    ) -> T {
        let generation = self.generation.read();
        let left = if *generation == lease.generation {
            let until = lease.until - SLACK;
            until.saturating_duration_since(clock::now())
        } else {
            Duration::ZERO
        };
        hand_over(left)
    }

    async fn forget(&self, what: Forget, cache: &Arc<dyn ForgetfulCache>) -> bool {
        // Whoever asked before this gets no lease; what has been handed over already is forgotten below.
        *self.generation.write() += 1;
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
    let caller = Caller::new(client, false);
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
