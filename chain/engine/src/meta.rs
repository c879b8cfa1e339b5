//! The seam to the metadata store: ordered rows, writes that are durable in order, a barrier.
//!
//! [`rocks::RocksMeta`] is the real one; the tests' `mem::MemMeta` models the prefix that a power cut leaves. Reads
//! of single rows are absent: all rows live in memory after [`MetaStore::load`].

#[cfg(test)]
pub(crate) mod mem;
pub(crate) mod rocks;
pub(crate) mod row;

use crate::EngineError;

/// Called with each stored key and value.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), EngineError>;

/// A store of rows. After a power cut it holds a prefix of the writes, one that has everything up to the last barrier.
pub(crate) trait MetaStore: Send + Sync {
    /// Visits every row in key order.
    fn load(&self, visit: Visit<'_>) -> Result<(), EngineError>;

    /// Writes a row; a killed process keeps it.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError>;

    /// Deletes a row.
    fn delete(&self, key: &[u8]) -> Result<(), EngineError>;

    /// Writes a row and returns when it and everything written before is on stable storage.
    fn put_durable(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
}
