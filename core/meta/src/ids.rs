//! Fresh numbers for inodes and blobs, out of a range reserved in the store.
//!
//! Invariant: a range is on stable storage as reserved before the first of its numbers is handed out, so no number comes
//! twice, whatever crashes. What was reserved and not handed out before a restart is lost.

use std::ops::Range;

use janusfs_kv::{Durability, Kv, run};
use janusfs_types::{FsError, InodeId};
use parking_lot::Mutex;

use crate::{Meta, MetaError, store::alloc};

/// Numbers reserved at a time: one durable commit for as many files.
const RESERVE: u64 = 1 << 16;
/// Most numbers of one request.
const COUNT_MAX: u32 = 1 << 20;

/// The reserved numbers that were not handed out yet.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    free: Mutex<Range<u64>>,
}

impl Ids {
    fn take(&self, count: u64) -> Option<u64> {
        let mut free = self.free.lock();
        let first = free.start;
        if free.end - first < count {
            return None;
        }
        free.start = first + count;
        Some(first)
    }

    /// Returns the first number not handed out.
    pub(crate) fn next(&self) -> u64 {
        self.free.lock().start
    }
}

impl<K: Kv> Meta<K> {
    /// Returns the first of `count` fresh numbers in a row.
    pub(crate) async fn allocate(&self, count: u32) -> Result<u64, MetaError> {
        if count == 0 || count > COUNT_MAX {
            return Err(FsError::Invalid(format!("count {count}")).into());
        }
        let count = u64::from(count);
        loop {
            if let Some(first) = self.ids.take(count) {
                return Ok(first);
            }
            let reserved = self.reserve(count.max(RESERVE)).await?;
            let mut free = self.ids.free.lock();
            if reserved.start == free.end {
                free.end = reserved.end;
            } else {
                *free = reserved;
            }
        }
    }

    async fn reserve(&self, count: u64) -> Result<Range<u64>, MetaError> {
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let first = alloc::next(txn).await?;
                alloc::set_next(txn, first + count);
                Ok(first..first + count)
            })
        })
        .await
    }

    /// Returns a fresh inode number.
    pub(crate) async fn new_id(&self) -> Result<InodeId, MetaError> {
        self.allocate(1).await.map(InodeId)
    }
}
