//! Rows in RocksDB: write-ahead log in the system's hands at each write, synced at the barrier.
//!
//! Memory is bounded by two 16 MiB write buffers and the block cache. Info logs are capped.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, IteratorMode, Options, WriteOptions,
};

use super::{MetaStore, Visit};
use crate::EngineError;

/// RocksDB's write buffer in bytes.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// How much write-ahead log may collect in the page cache before writeback starts, in bytes: keeps a barrier short.
const WAL_WRITEBACK_BYTES: u64 = 1 << 20;

/// Rows in a RocksDB directory.
pub(crate) struct RocksMeta {
    db: DB,
    durable: WriteOptions,
}

impl RocksMeta {
    /// Opens or creates the database.
    pub(crate) fn open(dir: &Path, cache_bytes: usize) -> Result<Self, EngineError> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(cache_bytes));
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_write_buffer_number(2);
        options.set_max_open_files(256);
        options.set_max_background_jobs(2);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_wal_bytes_per_sync(WAL_WRITEBACK_BYTES);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        let db = DB::open(&options, dir).map_err(EngineError::Meta)?;
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        Ok(Self { db, durable })
    }
}

impl MetaStore for RocksMeta {
    fn load(&self, visit: Visit<'_>) -> Result<(), EngineError> {
        for item in self.db.iterator(IteratorMode::Start) {
            let (key, value) = item.map_err(EngineError::Meta)?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.db.put(key, value).map_err(EngineError::Meta)
    }

    fn delete(&self, key: &[u8]) -> Result<(), EngineError> {
        self.db.delete(key).map_err(EngineError::Meta)
    }

    fn put_durable(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.db
            .put_opt(key, value, &self.durable)
            .map_err(EngineError::Meta)
    }
}
