//! The client's lease: heartbeats, the epochs its reads began in, and what happens when it is lost.
//!
//! Invariant: the epoch reported is never newer than the one heard of in the answer to the heartbeat before. So an open
//! whose answer is still on its way, or not yet pinned, is covered until the next heartbeat but one.
//! (DESIGN.md, section 6.)

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use janusfs_env::clock;
use janusfs_types::{Epoch, FsError, limits};
use janusfs_wire::meta::{Heartbeat, Hello};
use parking_lot::Mutex;

use crate::client::Inner;

const LEASE: Duration = Duration::from_millis(limits::CLIENT_LEASE_MS);
const PERIOD: Duration = Duration::from_millis(limits::CLIENT_LEASE_MS / 5);

struct Pins {
    /// Pins per epoch, never 0.
    by_epoch: BTreeMap<Epoch, u64>,
    /// As of the last answer.
    heard: Epoch,
    /// Until when the last answer is good, by this client's clock from before it asked.
    valid_until: Instant,
}

/// The lease of one client.
pub(crate) struct Lease {
    pins: Mutex<Pins>,
    /// Grows when a lease is lost; a handle of another generation is stale.
    generation: AtomicU64,
}

impl Lease {
    /// Takes up a lease granted in answer to a call made at `asked`.
    pub(crate) fn new(asked: Instant, epoch: Epoch) -> Arc<Self> {
        let pins = Pins {
            by_epoch: BTreeMap::new(),
            heard: epoch,
            valid_until: asked + LEASE,
        };
        Arc::new(Self {
            pins: Mutex::new(pins),
            generation: AtomicU64::new(0),
        })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Tells whether the service may have given this client up without its knowing.
    pub(crate) fn is_in_doubt(&self) -> bool {
        clock::now() > self.pins.lock().valid_until
    }

    pub(crate) fn pin(self: &Arc<Self>, epoch: Epoch) -> EpochPin {
        *self.pins.lock().by_epoch.entry(epoch).or_insert(0) += 1;
        EpochPin {
            epoch,
            lease: Arc::downgrade(self),
        }
    }

    fn oldest(&self) -> Epoch {
        let pins = self.pins.lock();
        pins.by_epoch
            .first_key_value()
            .map_or(pins.heard, |(&epoch, _)| epoch.min(pins.heard))
    }

    fn renew(&self, asked: Instant, epoch: Epoch) {
        let mut pins = self.pins.lock();
        pins.heard = epoch;
        pins.valid_until = pins.valid_until.max(asked + LEASE);
    }

    fn lose(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// Holds back the reclamation of what an open read of this epoch can see, while it lives.
pub struct EpochPin {
    epoch: Epoch,
    lease: Weak<Lease>,
}

impl Drop for EpochPin {
    fn drop(&mut self) {
        let Some(lease) = self.lease.upgrade() else {
            return;
        };
        let mut pins = lease.pins.lock();
        if let Some(count) = pins.by_epoch.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                pins.by_epoch.remove(&self.epoch);
            }
        }
    }
}

impl fmt::Debug for EpochPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EpochPin").field(&self.epoch).finish()
    }
}

/// Sends one heartbeat and acts on the answer: a lost lease makes open handles stale and a new one is taken.
pub(crate) async fn beat(inner: &Inner) -> Result<(), FsError> {
    let asked = clock::now();
    let heartbeat = Heartbeat {
        client: inner.id,
        oldest_epoch: Some(inner.lease.oldest()),
        oldest_blob: inner.ids.oldest(),
    };
    // One attempt: the next heartbeat is the retry.
    let pulse = janusfs_rpc::call(&*inner.meta, &heartbeat, LEASE).await?;
    if pulse.alive {
        inner.lease.renew(asked, pulse.epoch);
        return Ok(());
    }
    inner.lease.lose();
    tracing::warn!(client = %inner.id, "the lease lapsed: open files are stale");
    let asked = clock::now();
    let welcome = inner.call(&Hello { client: inner.id }).await?;
    inner.chains.set_table(welcome.table)?;
    inner.lease.renew(asked, welcome.epoch);
    Ok(())
}

/// Keeps the lease, and publishes files left dirty, until the client is gone.
pub(crate) async fn keep(client: Weak<Inner>) {
    let mut reachable = true;
    loop {
        clock::sleep(PERIOD).await;
        let Some(inner) = client.upgrade() else {
            return;
        };
        match beat(&inner).await {
            Ok(()) => reachable = true,
            Err(error) => {
                if std::mem::replace(&mut reachable, false) {
                    tracing::warn!(client = %inner.id, %error, "no answer to the heartbeat");
                }
            }
        }
        for open in inner.files.all() {
            if open.has_aged() {
                inner.spawn(async move { open.publish_aged().await });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_reported_is_the_oldest_pin_and_never_news() {
        let lease = Lease::new(clock::now(), Epoch(3));
        assert_eq!(lease.oldest(), Epoch(3));
        let old = lease.pin(Epoch(3));
        let twin = lease.pin(Epoch(3));
        let new = lease.pin(Epoch(9));
        assert_eq!(lease.oldest(), Epoch(3));
        lease.renew(clock::now(), Epoch(7));
        drop(old);
        assert_eq!(lease.oldest(), Epoch(3));
        drop(twin);
        assert_eq!(lease.oldest(), Epoch(7));
        lease.renew(clock::now(), Epoch(10));
        assert_eq!(lease.oldest(), Epoch(9));
        drop(new);
        assert_eq!(lease.oldest(), Epoch(10));
    }
}
