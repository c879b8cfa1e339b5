//! `RocksKv`: the embedded store, optimistic transactions over RocksDB.
//!
//! A transaction reads a RocksDB snapshot. Its commit takes the *sequencer* lock, compares what it read with the window of
//! recent commits, writes one batch, and publishes the next version. Invariants:
//! - The version is loaded before the snapshot is taken, so the snapshot holds at least that version. It may hold one
//!   more commit; then the check refuses more than it must, never less.
//! - Batches enter the write-ahead log in version order, so a sync of a version covers all before it.
//! - No runtime worker waits for the disk or for the sequencer: what is not in memory goes to the blocking pool.
//! - After a failed write or sync the store is read-only until it is opened again.
//!
//! Absent: versions across restarts; they start anew, as no transaction survives one.

mod format;
mod snapshot;
mod syncer;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use janusfs_env::{
    clock,
    metrics::{KV_COMMITS, KV_CONFLICTS},
    tasks,
};
use janusfs_types::limits::{META_FREE_MIN_BYTES, SYNC_INTERVAL_MS};
use parking_lot::Mutex;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, ErrorKind, Options, ReadOptions, ReadTier,
    WriteBatch,
};

use crate::{
    kv::{Durability, Kv, KvError, Txn},
    mem::apply_all,
    window::{TRANSACTION_LIFE_MAX, Window},
    writes::{Atomic, Overlay, Pair, Reads, Writes, check_key},
};
use snapshot::OwnedSnapshot;
use syncer::Syncer;

/// Two memtables of this size: what a restart replays at most, and most of the store's memory.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Default of [`RocksKvOptions::block_cache_bytes`].
const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// Most open table files.
const OPEN_FILES_MAX: i32 = 512;
/// Cleared ranges with at most this many keys become point removals: a range tombstone slows every later read.
const CLEAR_POINTS_MAX: usize = 64;
/// The log is synced this often, so that the wait and the sync itself fit in the promised interval together.
const SYNC_PAUSE: Duration = Duration::from_millis(SYNC_INTERVAL_MS / 2);

/// Settings of a [`RocksKv`].
#[derive(Clone, Debug)]
pub struct RocksKvOptions {
    /// Memory for uncompressed blocks, in bytes. 64 MiB unless set.
    pub block_cache_bytes: usize,
    /// Free space on the disk below which [`Kv::has_room`] says no, in bytes. `META_FREE_MIN_BYTES` unless set.
    pub free_min_bytes: u64,
}

impl Default for RocksKvOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: BLOCK_CACHE_BYTES,
            free_min_bytes: META_FREE_MIN_BYTES,
        }
    }
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Use the program version that wrote it, or a later one.
    #[error(
        "the metadata store has format {found}, this program knows formats up to {supported}: \
         it was written by a newer JanusFS; use that version or a later one"
    )]
    NewerFormat {
        /// The store's format.
        found: u32,
        /// The newest format that this program knows.
        supported: u32,
    },
    /// Stop the other process first.
    #[error("the metadata store {} is in use by another process; stop that one first", dir.display())]
    Locked {
        /// The store's directory.
        dir: PathBuf,
    },
    /// Give another directory.
    #[error("{} is not the format file of a metadata store; is this the right directory?", path.display())]
    NotAStore {
        /// The file in question.
        path: PathBuf,
    },
    /// Look at the disk and the permissions.
    #[error("cannot open {}", path.display())]
    Io {
        /// The file in question.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Look at the disk; if it is sound, restore the store from a backup.
    #[error("cannot open the metadata store {}", dir.display())]
    Store {
        /// The store's directory.
        dir: PathBuf,
        /// RocksDB's error.
        #[source]
        source: rocksdb::Error,
    },
}

/// The embedded store. Dropping it syncs the log and stops its thread, so drop it where blocking is allowed.
pub struct RocksKv {
    store: Arc<Store>,
    sync_thread: Option<JoinHandle<()>>,
}

struct Store {
    db: Arc<DB>,
    sequencer: Mutex<Sequencer>,
    syncer: Syncer,
    /// Looked at with every periodic sync: a system call for each commit would cost more than it tells.
    has_room: AtomicBool,
}

struct Sequencer {
    version: u64,
    window: Window,
    /// Why the store is read-only.
    failed: Option<String>,
}

impl RocksKv {
    /// Opens the store in `dir`, or creates it there. Blocks.
    ///
    /// # Errors
    /// [`OpenError`] says what to do.
    pub fn open(dir: &Path, options: RocksKvOptions) -> Result<RocksKv, OpenError> {
        let db_dir = dir.join("db");
        std::fs::create_dir_all(dir).map_err(|source| OpenError::Io {
            path: dir.into(),
            source,
        })?;
        format::check_or_create(dir, !db_dir.exists())?;
        let db = DB::open(&db_options(&options), &db_dir).map_err(|source| {
            if is_locked(&source) {
                OpenError::Locked { dir: dir.into() }
            } else {
                OpenError::Store {
                    dir: dir.into(),
                    source,
                }
            }
        })?;
        sync_dirs(dir)?;
        let store = Arc::new(Store {
            db: Arc::new(db),
            sequencer: Mutex::new(Sequencer {
                version: 0,
                window: Window::default(),
                failed: None,
            }),
            syncer: Syncer::default(),
            has_room: AtomicBool::new(has_room(dir, options.free_min_bytes)),
        });
        let in_thread = store.clone();
        let (dir, free_min_bytes) = (dir.to_owned(), options.free_min_bytes);
        let sync_thread = tasks::spawn_thread("kv-sync", move || {
            while in_thread.syncer.pause(SYNC_PAUSE) {
                let room = has_room(&dir, free_min_bytes);
                if in_thread.has_room.swap(room, Ordering::Relaxed) && !room {
                    tracing::warn!(dir = %dir.display(), "the disk of the metadata is full: only deletes go on");
                }
                // A failure is logged by the syncer and refuses the next commit.
                let _ = in_thread.sync_to(in_thread.syncer.written());
            }
        });
        Ok(RocksKv {
            store,
            sync_thread: Some(sync_thread),
        })
    }
}

impl Drop for RocksKv {
    fn drop(&mut self) {
        self.store
            .sequencer
            .lock()
            .failed
            .get_or_insert_with(|| "the store is closed".into());
        self.store.syncer.stop();
        if let Some(thread) = self.sync_thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that syncs the metadata log panicked");
        }
        // A failure is logged by the syncer; nobody is left to be told.
        let _ = self.store.sync_to(self.store.syncer.written());
    }
}

fn db_options(settings: &RocksKvOptions) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(settings.block_cache_bytes));
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_keep_log_file_num(2);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_manual_wal_flush(false);
    options
}

/// A disk that does not tell its space is taken to have some.
fn has_room(dir: &Path, free_min_bytes: u64) -> bool {
    rustix::fs::statvfs(dir).map_or(true, |stat| {
        stat.f_bavail.saturating_mul(stat.f_frsize) >= free_min_bytes
    })
}

/// RocksDB has no code of its own for a held lock, only texts: one for this process, one for another.
fn is_locked(error: &rocksdb::Error) -> bool {
    let text: &str = error.as_ref();
    text.contains("lock hold by current process") || text.contains("While lock file")
}

/// Puts a fresh store's directory entries on stable storage.
fn sync_dirs(dir: &Path) -> Result<(), OpenError> {
    for path in [Some(dir), dir.parent()].into_iter().flatten() {
        // The parent of a relative directory of one part is the empty path.
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        File::open(path)
            .and_then(|opened| opened.sync_all())
            .map_err(|source| OpenError::Io {
                path: path.into(),
                source,
            })?;
    }
    Ok(())
}

fn unavailable(error: &rocksdb::Error) -> KvError {
    KvError::Unavailable(error.to_string())
}

impl Store {
    /// Checks, writes and publishes a transaction. Blocks on the disk.
    fn commit(
        &self,
        writes: &Writes,
        reads: &Reads,
        snapshot: Option<u64>,
        durability: Durability,
    ) -> Result<(), KvError> {
        let version = self.sequence(writes, reads, snapshot)?;
        KV_COMMITS.add(1);
        if durability == Durability::Now {
            self.sync_to(version).map_err(KvError::CommitUnknown)?;
        }
        Ok(())
    }

    fn sequence(
        &self,
        writes: &Writes,
        reads: &Reads,
        snapshot: Option<u64>,
    ) -> Result<u64, KvError> {
        let mut sequencer = self.sequencer.lock();
        if let Some(reason) = &sequencer.failed {
            return Err(KvError::Unavailable(reason.clone()));
        }
        if let Some(version) = snapshot {
            sequencer.window.check(reads, version)?;
        }
        let batch = self.batch(writes).map_err(|error| unavailable(&error))?;
        if let Err(error) = self.db.write(batch) {
            tracing::error!(%error, "write of the metadata log failed, the store is read-only");
            let reason = format!("write of the write-ahead log failed: {error}");
            sequencer.failed = Some(reason.clone());
            // The log may hold the batch, whole, and a later open would replay it.
            return Err(KvError::CommitUnknown(reason));
        }
        sequencer.version += 1;
        let version = sequencer.version;
        sequencer.window.push(version, clock::now(), writes);
        self.syncer.publish(version);
        Ok(version)
    }

    /// Builds the batch. Under the sequencer lock, so that atomic changes go on from the last committed value.
    fn batch(&self, writes: &Writes) -> Result<WriteBatch, rocksdb::Error> {
        let mut batch = WriteBatch::with_capacity_bytes(writes.size_bytes() + 64);
        for (start, end) in writes.cleared() {
            match self.few_keys(start, end)? {
                Some(keys) => keys.iter().for_each(|key| batch.delete(key)),
                None => batch.delete_range(start, end),
            }
        }
        writes.resolve(
            |key| {
                Ok(self
                    .db
                    .get_pinned(key)?
                    .map(|value| Bytes::copy_from_slice(&value)))
            },
            |key, value| match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            },
        )?;
        Ok(batch)
    }

    /// Returns the keys of a range if they are few.
    fn few_keys(
        &self,
        start: &Bytes,
        end: &Bytes,
    ) -> Result<Option<Vec<Box<[u8]>>>, rocksdb::Error> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(&end[..]);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(start);
        let mut keys = Vec::new();
        while let Some(key) = iterator.key() {
            if keys.len() == CLEAR_POINTS_MAX {
                return Ok(None);
            }
            keys.push(key.into());
            iterator.next();
        }
        iterator.status()?;
        Ok(Some(keys))
    }

    /// Waits until `version` is on stable storage. Blocks on the disk.
    fn sync_to(&self, version: u64) -> Result<(), String> {
        let done = self.syncer.wait(version, || self.db.flush_wal(true));
        if let Err(reason) = &done {
            self.sequencer
                .lock()
                .failed
                .get_or_insert_with(|| reason.clone());
        }
        done
    }
}

impl Kv for RocksKv {
    type Txn = RocksTxn;

    fn begin(&self) -> RocksTxn {
        RocksTxn {
            store: self.store.clone(),
            snapshot: None,
            writes: Arc::default(),
            reads: Reads::default(),
        }
    }

    fn has_room(&self) -> bool {
        self.store.has_room.load(Ordering::Relaxed)
    }

    async fn sync(&self) -> Result<(), KvError> {
        let store = self.store.clone();
        let version = store.syncer.written();
        tasks::blocking(move || store.sync_to(version))
            .await
            .map_err(KvError::Unavailable)
    }
}

/// What a transaction reads from.
struct ReadView {
    snapshot: OwnedSnapshot,
    version: u64,
    at: Instant,
}

impl ReadView {
    fn take(store: &Store) -> Self {
        // In this order: see the module's invariants.
        let version = store.syncer.written();
        Self {
            snapshot: OwnedSnapshot::new(store.db.clone()),
            version,
            at: clock::now(),
        }
    }

    fn read(&self, key: &[u8], tier: ReadTier) -> Result<Option<Bytes>, rocksdb::Error> {
        let value = self.snapshot.look_up(key, tier)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        writes: &Writes,
        start: &[u8],
        end: &[u8],
        limit: u32,
        tier: ReadTier,
    ) -> Result<(Vec<Pair>, Bytes), rocksdb::Error> {
        let mut options = ReadOptions::default();
        options.set_read_tier(tier);
        options.set_iterate_upper_bound(end);
        let mut iterator = self.snapshot.get().raw_iterator_opt(options);
        iterator.seek(start);
        writes.merge(start, end, limit, || {
            let pair = iterator
                .item()
                .map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            match pair {
                Some(_) => iterator.next(),
                None => iterator.status()?,
            }
            Ok(pair)
        })
    }
}

/// A transaction of [`RocksKv`].
pub struct RocksTxn {
    store: Arc<Store>,
    snapshot: Option<Arc<ReadView>>,
    /// Shared with a read on the blocking pool, which goes on if its future is dropped.
    writes: Arc<Writes>,
    reads: Reads,
}

/// Reads at once what is in memory, or anything where the thread may wait; else on the blocking pool.
async fn read_tiered<T: Send + 'static>(
    read: impl Fn(ReadTier) -> Result<T, rocksdb::Error>,
    later: impl FnOnce() -> Box<dyn FnOnce() -> Result<T, rocksdb::Error> + Send>,
) -> Result<T, KvError> {
    if tasks::may_block() {
        return read(ReadTier::All).map_err(|error| unavailable(&error));
    }
    match read(ReadTier::BlockCache) {
        Err(error) if error.kind() == ErrorKind::Incomplete => tasks::blocking(later())
            .await
            .map_err(|error| unavailable(&error)),
        done => done.map_err(|error| unavailable(&error)),
    }
}

impl RocksTxn {
    fn view(&mut self) -> Result<Arc<ReadView>, KvError> {
        let view = self
            .snapshot
            .get_or_insert_with(|| Arc::new(ReadView::take(&self.store)));
        if view.at.elapsed() > TRANSACTION_LIFE_MAX {
            return Err(KvError::TooOld);
        }
        Ok(view.clone())
    }

    async fn read(&mut self, key: &[u8], conflicting: bool) -> Result<Option<Bytes>, KvError> {
        check_key(key)?;
        if let Overlay::Known(value) = self.writes.overlay(key) {
            return Ok(value);
        }
        let view = self.view()?;
        if conflicting {
            self.reads.add_key(key);
        }
        let later = || -> Box<dyn FnOnce() -> _ + Send> {
            let (view, key) = (view.clone(), Bytes::copy_from_slice(key));
            Box::new(move || view.read(&key, ReadTier::All))
        };
        let base = read_tiered(|tier| view.read(key, tier), later).await?;
        Ok(match self.writes.overlay(key) {
            Overlay::Known(value) => value,
            Overlay::Untouched => base,
            Overlay::Changed(changes) => apply_all(changes, base),
        })
    }

    async fn scan(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
        conflicting: bool,
    ) -> Result<Vec<Pair>, KvError> {
        if start >= end || limit == 0 {
            return Ok(Vec::new());
        }
        check_key(start).and_then(|()| check_key(end))?;
        let view = self.view()?;
        let writes = self.writes.clone();
        let later = || -> Box<dyn FnOnce() -> _ + Send> {
            let (view, writes) = (view.clone(), writes.clone());
            let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
            Box::new(move || view.scan(&writes, &start, &end, limit, ReadTier::All))
        };
        let in_place = |tier| view.scan(&writes, start, end, limit, tier);
        let (pairs, seen_end) = read_tiered(in_place, later).await?;
        if conflicting {
            self.reads.add_range(start, seen_end);
        }
        Ok(pairs)
    }
}

impl Txn for RocksTxn {
    async fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.read(key, true).await
    }

    async fn get_snapshot(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.read(key, false).await
    }

    async fn get_many_snapshot(&mut self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, KvError> {
        // One by one: RocksDB's `MultiGet` is no quicker here, and from memory alone (`kBlockCacheTier`) it answers `Ok`
        // without bytes for a row whose block is not cached, where `Get` answers `Incomplete`.
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.read(key, false).await?);
        }
        Ok(values)
    }

    async fn range(&mut self, start: &[u8], end: &[u8], limit: u32) -> Result<Vec<Pair>, KvError> {
        self.scan(start, end, limit, true).await
    }

    async fn range_snapshot(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> Result<Vec<Pair>, KvError> {
        self.scan(start, end, limit, false).await
    }

    fn add_read_conflict(&mut self, key: &[u8]) {
        // A transaction that is too old is told so by its commit.
        let _ = self.view();
        self.reads.add_key(key);
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        Arc::make_mut(&mut self.writes).set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        Arc::make_mut(&mut self.writes).clear(key);
    }

    fn clear_range(&mut self, start: &[u8], end: &[u8]) {
        Arc::make_mut(&mut self.writes).clear_range(start, end);
    }

    fn atomic_add(&mut self, key: &[u8], amount: i64) {
        Arc::make_mut(&mut self.writes).atomic(key, Atomic::Add(amount));
    }

    fn atomic_max(&mut self, key: &[u8], value: u64) {
        Arc::make_mut(&mut self.writes).atomic(key, Atomic::Max(value));
    }

    async fn commit(mut self, durability: Durability) -> Result<(), KvError> {
        self.writes.check()?;
        if self.writes.is_empty() {
            return Ok(());
        }
        let snapshot = if self.reads.is_empty() {
            None
        } else {
            Some(self.view()?.version)
        };
        let RocksTxn {
            store,
            snapshot: view,
            writes,
            reads,
        } = self;
        // Given back early: a snapshot keeps RocksDB from dropping old versions.
        drop(view);
        let done =
            tasks::blocking(move || store.commit(&writes, &reads, snapshot, durability)).await;
        if matches!(done, Err(KvError::Conflict)) {
            KV_CONFLICTS.add(1);
        }
        done
    }
}

#[cfg(test)]
mod tests;
