//! Opening a store: format, lock, rows, and what a power cut did to them.
//!
//! Rows written after the last barrier may have reached the disk without their bytes. Their bytes are checked; a
//! committed image that fails falls back to the newest earlier one that is stable or whole, a pending one is dropped. A
//! barrier ends the recovery, so that a later power cut cannot bring back rows from before it.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use janusfs_types::ChunkId;
use rustix::fs::FlockOperation;

use super::{Engine, SHARD_COUNT, shard_of, verify_image};
use crate::{
    EngineError, EngineOptions,
    disk::{Disk, file::FileDisk},
    image::{Body, Image, LiveImage, Patch, Row},
    meta::{
        MetaStore,
        rocks::RocksMeta,
        row::{self, RowError, StoredRow},
    },
    slots::{Epochs, Slot, SlotRef, Slots},
};

/// The newest format of the directory that this program reads, and the one it writes.
const FORMAT: u32 = 1;
const FORMAT_WORD: &str = "janusfs-chunk-store";

pub(super) fn open_dir(dir: &Path, options: EngineOptions) -> Result<Engine, EngineError> {
    let data = dir.join("data");
    fs::create_dir_all(&data).map_err(|e| EngineError::io(&data, e))?;
    let lock = lock(&dir.join("LOCK"))?;
    check_format(dir)?;
    let meta = RocksMeta::open(&dir.join("meta"), options.meta_cache_bytes)?;
    sync_names(dir)?;
    let disk = Arc::new(FileDisk::new(data));
    open_on(dir, options, disk, Box::new(meta), Some(lock))
}

/// Puts the store's own name, and the names in it, on stable storage: chunks are not stable while their store is not. Not only
/// for a fresh one, since a power cut may have come before this.
fn sync_names(dir: &Path) -> Result<(), EngineError> {
    for path in [Some(dir), dir.parent()].into_iter().flatten() {
        // The parent of a relative directory of one part is the empty path.
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        File::open(path)
            .and_then(|opened| opened.sync_all())
            .map_err(|e| EngineError::io(path, e))?;
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, EngineError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| EngineError::io(path, e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(EngineError::Locked),
        Err(error) => Err(EngineError::io(path, error.into())),
    }
}

fn check_format(dir: &Path) -> Result<(), EngineError> {
    let path = dir.join("FORMAT");
    let failed = |error| EngineError::io(&path, error);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let number = text
                .trim_end()
                .strip_prefix(FORMAT_WORD)
                .map(|rest| rest.trim().parse());
            match number {
                Some(Ok(FORMAT)) => Ok(()),
                Some(Ok(found)) if found > FORMAT => Err(EngineError::NewerFormat {
                    found,
                    supported: FORMAT,
                }),
                _ => Err(failed(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "not a chunk store",
                ))),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if dir.join("meta").exists() {
                let lost = "rows exist, but the file that names their format is gone";
                return Err(failed(io::Error::new(io::ErrorKind::InvalidData, lost)));
            }
            let fresh = dir.join("FORMAT.new");
            let write = || {
                let mut file = File::create(&fresh)?;
                writeln!(file, "{FORMAT_WORD} {FORMAT}")?;
                file.sync_all()?;
                fs::rename(&fresh, &path)?;
                File::open(dir)?.sync_all()
            };
            write().map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Opens a store on any disk and metadata store.
pub(super) fn open_on(
    dir: &Path,
    options: EngineOptions,
    disk: Arc<dyn Disk>,
    meta: Box<dyn MetaStore>,
    lock: Option<File>,
) -> Result<Engine, EngineError> {
    let (barrier, stored) = load(dir, meta.as_ref())?;
    let epochs = Arc::new(Epochs::default());
    let images = || stored.iter().flat_map(|(_, row)| row.images());
    let newest = images().map(|image| image.epoch).fold(barrier, u64::max);
    epochs.set_durable(barrier);
    epochs.set_current(newest + 1);
    let slots = Arc::new(Slots::new(Arc::clone(&disk), Arc::clone(&epochs)));
    let engine = Engine {
        dir: dir.to_owned(),
        options,
        disk,
        meta,
        epochs,
        slots,
        stripes: (0..SHARD_COUNT).map(|_| Default::default()).collect(),
        shards: (0..SHARD_COUNT).map(|_| Default::default()).collect(),
        index: Default::default(),
        fallbacks: Default::default(),
        unsynced: true.into(),
        failed: false.into(),
        barrier: Default::default(),
        barrier_done: Default::default(),
        _lock: lock,
    };
    for (chunk, stored) in stored {
        engine.recover_row(chunk, stored, barrier)?;
    }
    engine.sync()?;
    Ok(engine)
}

fn load(dir: &Path, meta: &dyn MetaStore) -> Result<(u64, Vec<(ChunkId, StoredRow)>), EngineError> {
    let damaged = || {
        EngineError::io(
            dir,
            io::Error::new(io::ErrorKind::InvalidData, "damaged metadata"),
        )
    };
    let mut barrier = 0;
    let mut rows = Vec::new();
    meta.load(&mut |key, value| {
        if key == row::BARRIER_KEY {
            barrier = row::decode_barrier(value).map_err(|_| damaged())?;
            return Ok(());
        }
        let chunk = row::parse_chunk_key(key).ok_or_else(damaged)?;
        let row = row::decode(value).map_err(|error| match error {
            RowError::Newer(found) => EngineError::NewerFormat {
                found: found.into(),
                supported: row::ENCODING.into(),
            },
            RowError::Damaged => EngineError::Corrupt { chunk },
        })?;
        rows.push((chunk, row));
        Ok(())
    })?;
    Ok((barrier, rows))
}

impl Engine {
    /// Takes a stored row into memory, as far as its bytes are there.
    fn recover_row(
        &self,
        chunk: ChunkId,
        mut stored: StoredRow,
        barrier: u64,
    ) -> Result<(), EngineError> {
        if stored
            .committed
            .as_ref()
            .is_none_or(|image| image.epoch <= barrier)
        {
            // Their slots may have new owners.
            stored.previous.clear();
        }
        let mut held = HashMap::new();
        let mut hold = |image: Image<Slot>| self.hold_image(chunk, image, &mut held);
        let had_committed = stored.committed.is_some();
        let candidates: Vec<LiveImage> = stored
            .committed
            .into_iter()
            .chain(stored.previous)
            .map(&mut hold)
            .collect::<Result<_, _>>()?;
        let pending = stored.pending.map(&mut hold).transpose()?;

        let mut row = Row::default();
        let mut fell_back = had_committed;
        for (rank, image) in candidates.into_iter().enumerate() {
            if image.epoch <= barrier || is_whole(chunk, &image)? {
                fell_back = rank > 0;
                row.committed = Some(Arc::new(image));
                break;
            }
        }
        // A pending version may share a slot with a later one that was staged after it was discarded, so its bytes are
        // checked whatever its epoch.
        let had_pending = pending.is_some();
        if let Some(image) = pending
            && !fell_back
            && is_whole(chunk, &image)?
        {
            row.pending = Some(Arc::new(image));
        }
        let lost_pending = had_pending && row.pending.is_none();
        if fell_back || lost_pending {
            tracing::warn!(%chunk, fell_back, lost_pending, version = %row.committed_version(),
                "bytes written just before a power cut are gone");
        }
        if row.committed.is_none() && row.pending.is_none() {
            return self.meta.delete(&row::chunk_key(chunk));
        }
        if fell_back || lost_pending {
            self.meta.put(&row::chunk_key(chunk), &row::encode(&row))?;
        }
        self.shards[shard_of(chunk)].lock().insert(chunk, row);
        self.index.write().insert(chunk);
        Ok(())
    }

    /// Holds an image's slots; images of one chunk may share them, those of two may not.
    fn hold_image(
        &self,
        chunk: ChunkId,
        image: Image<Slot>,
        held: &mut HashMap<Slot, Arc<SlotRef>>,
    ) -> Result<LiveImage, EngineError> {
        let mut hold = |slot: Slot| -> Result<Arc<SlotRef>, EngineError> {
            if let Some(shared) = held.get(&slot) {
                return Ok(Arc::clone(shared));
            }
            let fresh = self.slots.occupy(slot)?;
            let fresh = fresh.ok_or(EngineError::Corrupt { chunk })?;
            held.insert(slot, Arc::clone(&fresh));
            Ok(fresh)
        };
        let mut hold_body = |body: Body<Slot>| -> Result<_, EngineError> {
            let slot = hold(body.slot)?;
            let mut patches = Vec::with_capacity(body.patches.len());
            for Patch { number, slot } in body.patches.iter() {
                let (number, slot) = (*number, hold(*slot)?);
                patches.push(Patch { number, slot });
            }
            let patches = patches.into();
            Ok(Body { slot, patches })
        };
        Ok(LiveImage {
            version: image.version,
            epoch: image.epoch,
            body: image.body.map(&mut hold_body).transpose()?,
            len: image.len,
            crc: image.crc,
            sealed: image.sealed,
            tag: image.tag,
            pieces: image.pieces,
        })
    }
}

fn is_whole(chunk: ChunkId, image: &LiveImage) -> Result<bool, EngineError> {
    match verify_image(chunk, image) {
        Ok(()) => Ok(true),
        Err(EngineError::Corrupt { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
