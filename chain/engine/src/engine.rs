//! The engine: rows in memory, their changes, reads and the barrier.
//!
//! Lock order: `stripes` (one writer a chunk) → `shards` (a row, held for moments, never during I/O) → `index`; the
//! allocator's locks come last. Reads take a shard's lock to clone an `Arc` and no other.
//!
//! Invariants: memory changes only after the row is written; pending is committed + 1; a failed row write or
//! barrier stops all further changes ("failed"), since what the disk holds is no longer known.

mod recover;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use janusfs_types::{BlobId, ChunkId, ChunkVersion};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::{
    ChunkInfo, ChunkRead, EngineError, EngineOp, EngineOptions, EngineUsage, ReadMode, StageWrite,
    StagedInfo, Tag,
    crc::{Shift, crc32c},
    disk::Disk,
    image::{LiveImage, Row},
    meta::{MetaStore, row},
    slots::{Epochs, Slots},
};

/// Shards of the row map and stripes of the writer locks: far more than threads, so that two rarely meet.
const SHARD_COUNT: usize = 256;
/// How much of a chunk is verified or copied at a time, in bytes; at least a piece of the largest class.
const WINDOW_BYTES: u32 = 1 << 20;

/// One local chunk store.
pub struct Engine {
    dir: PathBuf,
    options: EngineOptions,
    disk: Arc<dyn Disk>,
    meta: Box<dyn MetaStore>,
    epochs: Arc<Epochs>,
    slots: Arc<Slots>,
    stripes: Vec<Mutex<()>>,
    shards: Vec<Mutex<HashMap<ChunkId, Row>>>,
    index: RwLock<BTreeSet<ChunkId>>,
    /// Chunks with fallback images, to be dropped by the next barrier.
    fallbacks: Mutex<HashSet<ChunkId>>,
    /// Something was written since the last barrier began.
    unsynced: AtomicBool,
    failed: AtomicBool,
    barrier: Mutex<BarrierState>,
    barrier_done: Condvar,
    /// Holds the lock on the directory.
    _lock: Option<File>,
}

#[derive(Default)]
struct BarrierState {
    running: bool,
    started: u64,
    completed: u64,
}

fn shard_of(chunk: ChunkId) -> usize {
    let mixed = (chunk.blob.0 ^ (u64::from(chunk.index) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ u64::from(chunk.index).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    usize::from(mixed.to_be_bytes()[0])
}

fn describe(chunk: ChunkId, row: &Row) -> ChunkInfo {
    let committed = row.committed.as_deref();
    ChunkInfo {
        chunk,
        committed: row.committed_version(),
        len_bytes: committed.map_or(0, |image| image.len),
        crc: committed.map_or(0, |image| image.crc),
        last: committed.and_then(|image| image.tag),
        pending: row.pending.as_ref().map(|image| image.version),
    }
}

impl Engine {
    /// Opens the store in `dir`, creating it if missing. Everything an earlier process had is on stable storage
    /// when this returns; what a power cut damaged has fallen back to its last stable version.
    ///
    /// # Errors
    /// `Locked` if another process has it open, `NewerFormat` if a newer program wrote it, `Corrupt` if a row is damaged.
    pub fn open(dir: &Path, options: EngineOptions) -> Result<Self, EngineError> {
        recover::open_dir(dir, options)
    }

    fn row(&self, chunk: ChunkId) -> Option<Row> {
        self.shards[shard_of(chunk)].lock().get(&chunk).cloned()
    }

    fn writer(&self, chunk: ChunkId) -> Result<MutexGuard<'_, ()>, EngineError> {
        let guard = self.stripes[shard_of(chunk)].lock();
        self.check_failed()?;
        Ok(guard)
    }

    fn check_failed(&self) -> Result<(), EngineError> {
        if self.failed.load(Ordering::SeqCst) {
            let source = std::io::Error::other("the store failed earlier and must be opened again");
            return Err(EngineError::Io {
                path: self.dir.clone(),
                source,
            });
        }
        Ok(())
    }

    fn fail<T>(&self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(error) = &result
            && !self.failed.swap(true, Ordering::SeqCst)
        {
            tracing::error!(dir = %self.dir.display(), %error, "chunk store stops taking changes");
        }
        result
    }

    /// Reads committed bytes, clipped to the chunk's length; of a missing chunk: version 0 and nothing.
    /// `Cached` gives `None` instead of waiting for the disk.
    ///
    /// # Errors
    /// `Corrupt` if a touched piece does not match its checksum; `Io`.
    pub fn read(
        &self,
        chunk: ChunkId,
        offset: u32,
        len: u32,
        mode: ReadMode,
    ) -> Result<Option<ChunkRead>, EngineError> {
        let (image, pending) = {
            let shard = self.shards[shard_of(chunk)].lock();
            shard.get(&chunk).map_or((None, false), |row| {
                (
                    row.committed.as_ref().map(Arc::clone),
                    row.pending.is_some(),
                )
            })
        };
        let version = image
            .as_ref()
            .map_or(ChunkVersion(0), |image| image.version);
        let empty = ChunkRead {
            version,
            pending,
            data: Bytes::new(),
            crc: 0,
        };
        let Some(image) = image else {
            return Ok(Some(empty));
        };
        let end = offset.saturating_add(len).min(image.len);
        if offset >= end {
            return Ok(Some(empty));
        }
        let bytes = read_verified(chunk, &image, offset, end, mode)?;
        Ok(bytes.map(|(data, crc)| ChunkRead {
            version,
            pending,
            data,
            crc,
        }))
    }

    /// Returns what is known about a chunk, also one that has only a pending version.
    #[must_use]
    pub fn query(&self, chunk: ChunkId) -> Option<ChunkInfo> {
        self.shards[shard_of(chunk)]
            .lock()
            .get(&chunk)
            .map(|row| describe(chunk, row))
    }

    /// Writes the pending version, which must follow the committed one; staging it again replaces it. A killed
    /// process keeps it; [`Self::sync`] makes it stable.
    ///
    /// # Errors
    /// `VersionMismatch`, `Exists` (for `Create`), `Corrupt` (payload or copied bytes), `TooLarge`, `NoSpace`, `Io`, `Meta`.
    pub fn stage(&self, write: &StageWrite<'_>) -> Result<StagedInfo, EngineError> {
        let _writer = self.writer(write.chunk)?;
        let row = self.row(write.chunk).unwrap_or_default();
        let image = Arc::new(self.build(write, &row)?);
        let staged = StagedInfo {
            len_bytes: image.len,
            crc: image.crc,
        };
        self.install(write.chunk, &row, row.committed.clone(), Some(image))?;
        Ok(staged)
    }

    /// Makes the pending version the committed one. Done already: no change.
    ///
    /// # Errors
    /// `NotFound` if the chunk is unknown, `VersionMismatch` if `version` is neither pending nor committed; `Meta`.
    pub fn commit(&self, chunk: ChunkId, version: ChunkVersion) -> Result<ChunkInfo, EngineError> {
        let _writer = self.writer(chunk)?;
        let row = self.row(chunk).ok_or(EngineError::NotFound)?;
        let committed = row.committed_version();
        if committed == version {
            return Ok(describe(chunk, &row));
        }
        match &row.pending {
            Some(pending) if pending.version == version => {
                self.install(chunk, &row, row.pending.clone(), None)
            }
            _ => Err(EngineError::VersionMismatch {
                chunk,
                committed,
                got: version,
            }),
        }
    }

    /// Stages and commits with one metadata write.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub fn stage_and_commit(&self, write: &StageWrite<'_>) -> Result<ChunkInfo, EngineError> {
        let _writer = self.writer(write.chunk)?;
        let row = self.row(write.chunk).unwrap_or_default();
        let image = Arc::new(self.build(write, &row)?);
        self.install(write.chunk, &row, Some(image), None)
    }

    /// Drops the pending version, if there is one.
    ///
    /// # Errors
    /// `Meta`.
    pub fn discard_pending(&self, chunk: ChunkId) -> Result<(), EngineError> {
        let _writer = self.writer(chunk)?;
        match self.row(chunk) {
            Some(row) if row.pending.is_some() => {
                if row.committed.is_some() {
                    self.install(chunk, &row, row.committed.clone(), None)?;
                } else {
                    self.uninstall(chunk)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Sets the chunk to exactly these bytes at `version`, whatever was there; a pending version goes (repair, resync).
    ///
    /// # Errors
    /// `Corrupt` if the bytes do not match `crc`; `TooLarge`, `NoSpace`, `Io`, `Meta`.
    pub fn replace(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        data: &[Bytes],
        crc: u32,
        last: Option<Tag>,
    ) -> Result<(), EngineError> {
        let _writer = self.writer(chunk)?;
        let row = self.row(chunk).unwrap_or_default();
        let op = EngineOp::Write { offset: 0 };
        let write = StageWrite {
            chunk,
            version,
            op,
            data,
            crc,
            tag: last,
            expected_len_bytes: 0,
        };
        let image = Arc::new(self.build_bytes(&write, None, 0, false)?);
        self.install(chunk, &row, Some(image), None)?;
        Ok(())
    }

    /// Removes at most `limit` chunks of a blob with index at least `from_index`; returns how many went.
    ///
    /// # Errors
    /// `Meta`; some may be gone.
    pub fn remove_blob(
        &self,
        blob: BlobId,
        from_index: u32,
        limit: u32,
    ) -> Result<u32, EngineError> {
        let range = ChunkId {
            blob,
            index: from_index,
        }..=ChunkId {
            blob,
            index: u32::MAX,
        };
        let chunks: Vec<ChunkId> = self
            .index
            .read()
            .range(range)
            .take(limit as usize)
            .copied()
            .collect();
        let mut removed = 0;
        for chunk in chunks {
            let _writer = self.writer(chunk)?;
            if self.row(chunk).is_some() {
                self.uninstall(chunk)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Returns chunks after `after` in order of blob and index, at most `limit`; also those with only a pending version.
    ///
    /// # Errors
    /// None today; a store that does not keep all rows in memory would have some.
    pub fn list(&self, after: Option<ChunkId>, limit: u32) -> Result<Vec<ChunkInfo>, EngineError> {
        let mut from = after.map_or(Bound::Unbounded, Bound::Excluded);
        loop {
            let page: Vec<ChunkId> = {
                let index = self.index.read();
                index
                    .range((from, Bound::Unbounded))
                    .take(limit as usize)
                    .copied()
                    .collect()
            };
            let found: Vec<_> = page.iter().filter_map(|chunk| self.query(*chunk)).collect();
            match page.last() {
                // All were removed meanwhile; only the end may look like the end.
                Some(last) if found.is_empty() => from = Bound::Excluded(*last),
                _ => return Ok(found),
            }
        }
    }

    /// Reads all committed bytes of a chunk and checks them.
    ///
    /// # Errors
    /// `Corrupt`, `NotFound`, `Io`.
    pub fn verify(&self, chunk: ChunkId) -> Result<(), EngineError> {
        let row = self.row(chunk).ok_or(EngineError::NotFound)?;
        match row.committed {
            Some(image) => verify_image(chunk, &image),
            None => Ok(()),
        }
    }

    /// Returns when everything staged, committed or removed before the call is on stable storage. Concurrent callers share one
    /// barrier: one leads, those that come while it runs wait and share the next.
    ///
    /// # Errors
    /// `Io` or `Meta`; the engine then takes no further changes.
    pub fn sync(&self) -> Result<(), EngineError> {
        let mut state = self.barrier.lock();
        let mine = state.started + 1;
        loop {
            self.check_failed()?;
            if state.completed >= mine {
                return Ok(());
            }
            if state.running {
                self.barrier_done.wait(&mut state);
                continue;
            }
            state.running = true;
            state.started += 1;
            let result = MutexGuard::unlocked(&mut state, || self.fail(self.run_barrier()));
            state.running = false;
            if result.is_ok() {
                state.completed = state.started;
            }
            self.barrier_done.notify_all();
            return result;
        }
    }

    fn run_barrier(&self) -> Result<(), EngineError> {
        if !self.unsynced.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let epoch = self.epochs.take();
        self.slots.sync_data()?;
        self.meta
            .put_durable(row::BARRIER_KEY, &row::encode_barrier(epoch))?;
        self.epochs.set_durable(epoch);
        self.drop_fallbacks(epoch);
        self.slots.recycle(epoch)?;
        if self.slots.has_freed() {
            // What was freed since waits for one more barrier, which must not be skipped.
            self.unsynced.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    fn drop_fallbacks(&self, durable: u64) {
        let chunks = std::mem::take(&mut *self.fallbacks.lock());
        for chunk in chunks {
            let mut shard = self.shards[shard_of(chunk)].lock();
            let Some(row) = shard.get_mut(&chunk) else {
                continue;
            };
            *row = row.settle(durable);
            if !row.previous.is_empty() {
                self.fallbacks.lock().insert(chunk);
            }
        }
    }

    /// Returns space and count.
    #[must_use]
    pub fn usage(&self) -> EngineUsage {
        let (capacity_bytes, free_bytes) = self
            .disk
            .space()
            .map_or((0, 0), |space| (space.capacity_bytes, space.free_bytes));
        let used_bytes = self.slots.used_bytes();
        let chunks = self.index.read().len() as u64;
        EngineUsage {
            capacity_bytes,
            free_bytes,
            used_bytes,
            chunks,
        }
    }

    /// Writes the row that succeeds `old`, then makes it visible.
    fn install(
        &self,
        chunk: ChunkId,
        old: &Row,
        committed: Option<Arc<LiveImage>>,
        pending: Option<Arc<LiveImage>>,
    ) -> Result<ChunkInfo, EngineError> {
        let row = old.succeed(committed, pending, self.epochs.durable());
        self.fail(self.meta.put(&row::chunk_key(chunk), &row::encode(&row)))?;
        let info = describe(chunk, &row);
        let has_fallback = !row.previous.is_empty();
        let replaced = self.shards[shard_of(chunk)].lock().insert(chunk, row);
        if replaced.is_none() {
            self.index.write().insert(chunk);
        }
        if has_fallback {
            self.fallbacks.lock().insert(chunk);
        }
        self.unsynced.store(true, Ordering::SeqCst);
        Ok(info)
    }

    fn uninstall(&self, chunk: ChunkId) -> Result<(), EngineError> {
        self.fail(self.meta.delete(&row::chunk_key(chunk)))?;
        let removed = self.shards[shard_of(chunk)].lock().remove(&chunk);
        self.index.write().remove(&chunk);
        drop(removed);
        self.unsynced.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// Reads `[offset, end)` of an image and the rest of the pieces it touches; returns the bytes and their checksum, or
/// `None` if `Cached` would have to wait.
fn read_verified(
    chunk: ChunkId,
    image: &LiveImage,
    offset: u32,
    end: u32,
    mode: ReadMode,
) -> Result<Option<(Bytes, u32)>, EngineError> {
    let body = image.body.as_ref().expect("an image with bytes has a slot");
    let piece = body.class().piece();
    let from = offset - offset % piece;
    let until = end.next_multiple_of(piece).min(image.len);
    let mut buf = vec![0; (until - from) as usize];
    match mode {
        ReadMode::Cached => {
            if !body.read_cached(&mut buf, from)? {
                return Ok(None);
            }
        }
        ReadMode::Blocking => {
            if !body.read(&mut buf, from)? {
                return Err(EngineError::Corrupt { chunk });
            }
        }
    }
    let full_piece = Shift::by(piece as usize);
    let mut crc = 0;
    let mut at = from;
    let sums = &image.pieces[(from / piece) as usize..];
    for (bytes, sum) in buf.chunks(piece as usize).zip(sums) {
        if crc32c(bytes) != *sum {
            return Err(EngineError::Corrupt { chunk });
        }
        let next = at + u32::try_from(bytes.len()).expect("a piece fits a u32");
        let (low, high) = (offset.max(at), end.min(next));
        let wanted = (high - low) as usize;
        let part = if wanted == bytes.len() {
            *sum
        } else {
            crc32c(&bytes[(low - at) as usize..(high - at) as usize])
        };
        let shift = if wanted == piece as usize {
            full_piece
        } else {
            Shift::by(wanted)
        };
        crc = shift.combine(crc, part);
        at = next;
    }
    let data = Bytes::from(buf).slice((offset - from) as usize..(end - from) as usize);
    Ok(Some((data, crc)))
}

fn verify_image(chunk: ChunkId, image: &LiveImage) -> Result<(), EngineError> {
    let mut at = 0;
    while at < image.len {
        let end = image.len.min(at + WINDOW_BYTES);
        read_verified(chunk, image, at, end, ReadMode::Blocking)?;
        at = end;
    }
    Ok(())
}
