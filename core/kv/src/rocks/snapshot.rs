//! A RocksDB snapshot that keeps its database open.
//!
//! Owns the one lifetime that the borrow checker cannot follow. Invariant: the snapshot is released before its hold on the
//! database is. Absent: anything else.
#![expect(
    unsafe_code,
    reason = "the snapshot borrows the database that it is kept with"
)]

use std::sync::Arc;

use rocksdb::{DB, Snapshot};

/// A snapshot together with its database.
pub(super) struct OwnedSnapshot {
    // Dropped first: fields are dropped in their order.
    snapshot: Snapshot<'static>,
    _db: Arc<DB>,
}

impl OwnedSnapshot {
    pub(super) fn new(db: Arc<DB>) -> Self {
        let snapshot = db.snapshot();
        // SAFETY: the snapshot borrows the `DB` inside the `Arc`, which does not move and lives as long as `_db`; `_db`
        // is dropped after `snapshot` and never handed out, and `get` lends the snapshot for the life of `self` only.
        let snapshot = unsafe { std::mem::transmute::<Snapshot<'_>, Snapshot<'static>>(snapshot) };
        Self { snapshot, _db: db }
    }

    pub(super) fn get<'a>(&'a self) -> &'a Snapshot<'a> {
        &self.snapshot
    }
}
