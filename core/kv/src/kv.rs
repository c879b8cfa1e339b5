//! The contract: the [`Kv`] and [`Txn`] traits, [`Durability`] and [`KvError`].
//!
//! Owns the words of the seam and nothing else. Absent: any backend, and any hint of how a backend keeps the promises.

use std::future::Future;

use bytes::Bytes;
/// When a commit must be on stable storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Before the commit returns.
    Now,
    /// Within `limits::SYNC_INTERVAL_MS` (promise P2); a killed process loses nothing, a power cut may.
    Soon,
}

/// Why a transaction did not commit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KvError {
    /// Something read was changed meanwhile; nothing applied. Run the transaction again.
    #[error("the transaction conflicts with another")]
    Conflict,
    /// Maybe applied. Run again only what is idempotent.
    #[error("the outcome of the commit is unknown: {0}")]
    CommitUnknown(String),
    /// A key, value or transaction is over its limit; the text says which.
    #[error("over a limit: {0}")]
    TooLarge(String),
    /// The transaction lived longer than its limit; nothing applied. Run it again.
    #[error("the transaction is too old")]
    TooOld,
    /// The store cannot serve now (disk full, failed disk); nothing applied.
    #[error("the metadata store is not available: {0}")]
    Unavailable(String),
}

/// A transactional, ordered key-value store.
pub trait Kv: Send + Sync + 'static {
    /// Its transactions.
    type Txn: Txn + 'static;
    /// Starts a transaction; the snapshot is taken by its first read.
    fn begin(&self) -> Self::Txn;
    /// Tells whether there is room for more than deletes need. A store that never fills always has it.
    fn has_room(&self) -> bool;
    /// Returns when everything committed before is on stable storage.
    fn sync(&self) -> impl Future<Output = Result<(), KvError>> + Send;
}

/// One transaction.
pub trait Txn: Send {
    /// Reads a key.
    fn get(&mut self, key: &[u8]) -> impl Future<Output = Result<Option<Bytes>, KvError>> + Send;
    /// Reads a key without conflicting on it.
    fn get_snapshot(
        &mut self,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<Bytes>, KvError>> + Send;
    /// Reads many keys without conflicting on them, each value where its key is: at once where a store can, so for more
    /// than a few keys prefer this to one read after the other. Sorted keys are found quickest.
    fn get_many_snapshot(
        &mut self,
        keys: &[Vec<u8>],
    ) -> impl Future<Output = Result<Vec<Option<Bytes>>, KvError>> + Send;
    /// At most `limit` pairs with `start <= key < end`, in key order. Conflicts only on the part that was seen.
    fn range(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(Bytes, Bytes)>, KvError>> + Send;
    /// As `range`, without conflicting.
    fn range_snapshot(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(Bytes, Bytes)>, KvError>> + Send;
    /// Makes a later change of `key` by another transaction a conflict, as if it had been read.
    fn add_read_conflict(&mut self, key: &[u8]);
    /// Writes a key.
    fn set(&mut self, key: &[u8], value: &[u8]);
    /// Removes a key.
    fn clear(&mut self, key: &[u8]);
    /// Removes every key with `start <= key < end`.
    fn clear_range(&mut self, start: &[u8], end: &[u8]);
    /// Adds to a little-endian i64 (absent: 0) without reading it: two adders do not conflict.
    fn atomic_add(&mut self, key: &[u8], amount: i64);
    /// Raises a little-endian u64 (absent: 0) without reading it.
    fn atomic_max(&mut self, key: &[u8], value: u64);
    /// Commits. A transaction that wrote nothing succeeds without a check.
    fn commit(self, durability: Durability) -> impl Future<Output = Result<(), KvError>> + Send;
}
