//! A RocksDB snapshot that keeps its database open.
//!
//! Owns the one lifetime that the borrow checker cannot follow. Invariant: the snapshot is released before its hold on the
//! database is. Absent: anything else.
#![expect(
    unsafe_code,
    reason = "the snapshot borrows the database that it is kept with"
)]

use std::sync::{Arc, OnceLock};

use rocksdb::{DB, DBPinnableSlice, DEFAULT_COLUMN_FAMILY_NAME, ReadOptions, ReadTier, Snapshot};

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
        self.db.get_pinned_opt(key, self.options(tier))
    }

    /// Looks many keys up, each value where its key is. Sorted keys share the way to them.
    pub(super) fn look_up_many(
        &self,
        keys: &[Vec<u8>],
        tier: ReadTier,
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>, rocksdb::Error> {
        let family = self
            .db
            .cf_handle(DEFAULT_COLUMN_FAMILY_NAME)
            .expect("the store opens its one column family by name");
        let sorted = keys.is_sorted();
        self.db
            .batched_multi_get_cf_opt(&family, keys, sorted, self.options(tier))
            .into_iter()
            .collect()
    }

    fn options(&self, tier: ReadTier) -> &ReadOptions {
        let options = if tier == ReadTier::BlockCache {
            &self.from_memory
        } else {
            &self.from_anywhere
        };
        options.get_or_init(|| {
            let mut options = ReadOptions::default();
            options.set_read_tier(tier);
            options.set_snapshot(&self.snapshot);
            options
        })
    }

    pub(super) fn get<'a>(&'a self) -> &'a Snapshot<'a> {
        &self.snapshot
    }
}
