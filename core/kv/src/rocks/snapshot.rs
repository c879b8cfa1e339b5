//! A RocksDB snapshot that keeps its database open.
//!
//! Owns the one lifetime that the borrow checker cannot follow. Invariant: the snapshot is released before its hold on the
//! database is. Absent: anything else.
#![expect(
    unsafe_code,
    reason = "the snapshot borrows the database that it is kept with"
)]

use std::sync::{Arc, OnceLock};

use rocksdb::{DB, DBPinnableSlice, ReadOptions, ReadTier, Snapshot};

/// A snapshot together with its database.
pub(super) struct OwnedSnapshot {
    // Fields are dropped in their order: what names the snapshot, the snapshot, its database.
    /// Made once: a transaction of many look-ups would pay for them with each.
    from_memory: OnceLock<ReadOptions>,
    from_anywhere: OnceLock<ReadOptions>,
    snapshot: Snapshot<'static>,
    db: Arc<DB>,
}

impl OwnedSnapshot {
    pub(super) fn new(db: Arc<DB>) -> Self {
        let snapshot = db.snapshot();
        // SAFETY: the snapshot borrows the `DB` inside the `Arc`, which does not move and lives as long as `db`; `db`
        // is dropped after `snapshot` and never handed out, and `get` lends the snapshot for the life of `self` only.
        let snapshot = unsafe { std::mem::transmute::<Snapshot<'_>, Snapshot<'static>>(snapshot) };
        Self {
            from_memory: OnceLock::new(),
            from_anywhere: OnceLock::new(),
            snapshot,
            db,
        }
    }

    /// Looks a key up.
    pub(super) fn look_up(
        &self,
        key: &[u8],
        tier: ReadTier,
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        let options = if tier == ReadTier::BlockCache {
            &self.from_memory
        } else {
            &self.from_anywhere
        };
        let options = options.get_or_init(|| {
            let mut options = ReadOptions::default();
            options.set_read_tier(tier);
            options.set_snapshot(&self.snapshot);
            options
        });
        self.db.get_pinned_opt(key, options)
    }

    pub(super) fn get<'a>(&'a self) -> &'a Snapshot<'a> {
        &self.snapshot
    }
}
