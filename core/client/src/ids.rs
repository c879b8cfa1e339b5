//! Fresh numbers for inodes and blobs, reserved in batches.
//!
//! Invariant: [`Ids::oldest`] is never above a number that this client may still use: the service takes a blob below it
//! that no inode owns for garbage. So a batch counts from before it is asked for until its last number is dropped.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Weak},
};

use janusfs_rpc::Peer;
use janusfs_types::{BlobId, ClientId, FsError, InodeId};
use janusfs_wire::meta::AllocIds;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::client::call;

const BATCH: u32 = 1_024;
/// Heartbeats without an allocation after which the rest of a batch is given up, so that an idle client holds back
/// nothing.
const IDLE_PULSES: u32 = 5;

struct State {
    /// Reserved and not handed out.
    next: u64,
    end: u64,
    /// Handed out, guard alive.
    live: BTreeSet<u64>,
    /// While a batch is being reserved: a bound below it.
    reserving: Option<u64>,
    /// Heartbeats since the last allocation.
    idle_pulses: u32,
}

/// The numbers of one client.
pub(crate) struct Ids {
    state: Mutex<State>,
    /// One reservation at a time. Held across the call, guards no data.
    reserve: Semaphore,
}

impl Ids {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            next: 0,
            end: 0,
            live: BTreeSet::new(),
            reserving: None,
            idle_pulses: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            reserve: Semaphore::new(1),
        })
    }

    /// Hands out a number, reserving a batch first where none is left.
    pub(crate) async fn alloc(
        self: &Arc<Self>,
        meta: &Peer,
        client: ClientId,
    ) -> Result<AllocatedId, FsError> {
        loop {
            if let Some(number) = self.take() {
                return Ok(AllocatedId {
                    number,
                    ids: Arc::downgrade(self),
                });
            }
            let _permit = self.reserve.acquire().await.map_err(|_| FsError::Stale)?;
            let reserving = {
                let mut state = self.state.lock();
                if state.next < state.end {
                    continue;
                }
                state.reserving = Some(state.end);
                Reserving(self)
            };
            let count = BATCH;
            let first = call(meta, client, &AllocIds { client, count }).await?;
            let mut state = self.state.lock();
            state.next = first;
            state.end = first + u64::from(BATCH);
            drop(state);
            drop(reserving);
        }
    }

    /// Returns the lowest number that may still become a blob, for the heartbeat.
    pub(crate) fn oldest(&self) -> Option<BlobId> {
        let mut state = self.state.lock();
        state.idle_pulses = state.idle_pulses.saturating_add(1);
        if state.idle_pulses > IDLE_PULSES && state.live.is_empty() && state.reserving.is_none() {
            state.next = state.end;
        }
        let unused = (state.next < state.end).then_some(state.next);
        let lowest = state
            .live
            .first()
            .copied()
            .into_iter()
            .chain(unused)
            .chain(state.reserving)
            .min();
        lowest.map(BlobId)
    }

    fn take(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.next == state.end {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.idle_pulses = 0;
        state.live.insert(number);
        Some(number)
    }
}

/// Ends a reservation, also one that was cancelled.
struct Reserving<'a>(&'a Ids);

impl Drop for Reserving<'_> {
    fn drop(&mut self) {
        self.0.state.lock().reserving = None;
    }
}

/// A fresh number for an inode or blob. While it lives, the service takes no blob from it on for garbage: keep it until
/// the blob is published or removed.
pub struct AllocatedId {
    number: u64,
    ids: Weak<Ids>,
}

impl AllocatedId {
    /// Returns the number as an inode.
    #[must_use]
    pub fn inode(&self) -> InodeId {
        InodeId(self.number)
    }

    /// Returns the number as a blob: the one that the inode of this number owns.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.inode().own_blob()
    }
}

impl Drop for AllocatedId {
    fn drop(&mut self) {
        if let Some(ids) = self.ids.upgrade() {
            ids.state.lock().live.remove(&self.number);
        }
    }
}

impl fmt::Debug for AllocatedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AllocatedId").field(&self.number).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stocked() -> Arc<Ids> {
        let ids = Ids::new();
        {
            let mut state = ids.state.lock();
            state.next = 256;
            state.end = 259;
        }
        ids
    }

    fn take(ids: &Arc<Ids>) -> AllocatedId {
        AllocatedId {
            number: ids.take().unwrap(),
            ids: Arc::downgrade(ids),
        }
    }

    #[test]
    fn a_number_is_held_from_reservation_to_drop() {
        let ids = stocked();
        assert_eq!(ids.oldest(), Some(BlobId(256)));
        let first = take(&ids);
        let second = take(&ids);
        assert_eq!(second.inode(), InodeId(257));
        assert_eq!(ids.oldest(), Some(BlobId(256)));
        drop(first);
        assert_eq!(ids.oldest(), Some(BlobId(257)));
        drop(second);
        assert_eq!(ids.oldest(), Some(BlobId(258)));
        drop(take(&ids));
        assert_eq!(ids.oldest(), None);
        assert!(ids.take().is_none());
    }

    #[test]
    fn an_idle_client_holds_back_nothing() {
        let ids = stocked();
        let held = take(&ids);
        for _ in 0..=IDLE_PULSES {
            assert_eq!(ids.oldest(), Some(BlobId(256)));
        }
        drop(held);
        assert_eq!(ids.oldest(), None);
    }

    #[test]
    fn a_reservation_under_way_counts() {
        let ids = Ids::new();
        ids.state.lock().reserving = Some(0);
        let reserving = Reserving(&ids);
        assert_eq!(ids.oldest(), Some(BlobId(0)));
        drop(reserving);
        assert_eq!(ids.oldest(), None);
    }
}
