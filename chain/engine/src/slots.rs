//! Slots: where a chunk's bytes lie. Size classes, data files, allocation, and the wait of freed slots.
//!
//! Invariants: a set bit is a slot that a [`SlotRef`] holds, that waits in `freed`, or that is kept for the next patch.
//! Rows and readers hold a slot through an `Arc<SlotRef>`; when the last one goes, the slot is filed under the epoch of
//! that moment and becomes free only when a barrier has covered that epoch. So no slot is reused while a reader is in
//! it, nor while a row that a power cut could bring back still names it. Nothing here is stored: rows are the truth.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use janusfs_types::limits;
use parking_lot::Mutex;

use crate::{
    EngineError,
    disk::{Disk, DiskFile},
};

/// Largest data file in bytes: file systems limit a file, and a smaller file syncs less at once.
const FILE_MAX_BYTES: u64 = 64 << 30;
/// How many free slots of the smallest class keep their blocks on the disk. An overwrite takes one and lets one go: on blocks
/// that are there its `fdatasync` finds no change of the file's layout to put in the file system's journal.
const KEPT_MAX: usize = 64;
/// Smallest piece in bytes: what a partial read must fetch to verify itself.
const PIECE_MIN_BYTES: u32 = 16 << 10;
/// Most pieces of a chunk: bounds the row at about 1 KiB an image.
const PIECE_COUNT_MAX: u32 = 256;

/// A size class: slots of 64 KiB times two to the class.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct SizeClass(u8);

impl SizeClass {
    /// Number of classes: 64 KiB to 64 MiB.
    pub(crate) const COUNT: u8 = limits::CHUNK_SIZE_LOG2_MAX - limits::CHUNK_SIZE_LOG2_MIN + 1;

    /// Returns the class by number, if there is one.
    pub(crate) fn new(number: u8) -> Option<Self> {
        (number < Self::COUNT).then_some(Self(number))
    }

    /// Returns the smallest class that holds `len` bytes, if any does.
    pub(crate) fn for_len(len: u64) -> Option<Self> {
        (0..Self::COUNT)
            .map(Self)
            .find(|class| u64::from(class.size()) >= len)
    }

    /// Returns the class's number.
    pub(crate) fn number(self) -> u8 {
        self.0
    }

    /// Returns the slot size in bytes.
    pub(crate) fn size(self) -> u32 {
        1 << (limits::CHUNK_SIZE_LOG2_MIN + self.0)
    }

    /// Returns the piece size in bytes.
    pub(crate) fn piece(self) -> u32 {
        (self.size() / PIECE_COUNT_MAX).max(PIECE_MIN_BYTES)
    }

    /// Returns the class of the slots that patch one of this class, whole pieces each; `None` for the smallest class,
    /// of which nothing smaller can be replaced.
    pub(crate) fn patch(self) -> Option<Self> {
        Self::for_len(u64::from(self.piece())).filter(|patch| patch.size() < self.size())
    }

    fn slots_per_file(self) -> u32 {
        u32::try_from(FILE_MAX_BYTES / u64::from(self.size())).expect("at most 2^20 slots a file")
    }
}

/// A slot by number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Slot {
    pub(crate) class: SizeClass,
    pub(crate) index: u32,
}

/// Something that lies in a slot.
pub(crate) trait Placed {
    /// Returns the slot.
    fn slot(&self) -> Slot;
}

impl Placed for Slot {
    fn slot(&self) -> Slot {
        *self
    }
}

impl Placed for Arc<SlotRef> {
    fn slot(&self) -> Slot {
        self.slot
    }
}

/// The epochs of barriers: what is written now belongs to `current`; up to `durable` all is on stable storage.
#[derive(Default)]
pub(crate) struct Epochs {
    current: AtomicU64,
    durable: AtomicU64,
}

impl Epochs {
    /// Returns the epoch of what has been handed to the system before this call.
    ///
    /// The tag of written bytes must be taken *after* their `pwrite`: a barrier first moves the epoch on and syncs
    /// then, so bytes tagged with its epoch were written before its sync began.
    pub(crate) fn current(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// Starts a barrier: returns the epoch it will cover.
    pub(crate) fn take(&self) -> u64 {
        self.current.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn set_durable(&self, epoch: u64) {
        self.durable.store(epoch, Ordering::SeqCst);
    }

    pub(crate) fn set_current(&self, epoch: u64) {
        self.current.store(epoch, Ordering::SeqCst);
    }
}

/// One open data file.
pub(crate) struct DataFile {
    name: PathBuf,
    file: Box<dyn DiskFile>,
    dirty: AtomicBool,
}

/// A held slot: its bytes stay what they are until the last holder lets go.
pub(crate) struct SlotRef {
    slot: Slot,
    file: Arc<DataFile>,
    offset: u64,
    slots: Arc<Slots>,
}

impl SlotRef {
    /// Reads at `at`; returns the count, fewer than asked only where the file ends.
    pub(crate) fn read(&self, buf: &mut [u8], at: u32) -> Result<usize, EngineError> {
        let offset = self.offset + u64::from(at);
        self.file
            .file
            .pread(buf, offset)
            .map_err(|e| EngineError::io(&self.file.name, e))
    }

    /// Fills `buf` if that needs no waiting, and tells whether it did.
    pub(crate) fn read_cached(&self, buf: &mut [u8], at: u32) -> Result<bool, EngineError> {
        let offset = self.offset + u64::from(at);
        self.file
            .file
            .pread_cached(buf, offset)
            .map_err(|e| EngineError::io(&self.file.name, e))
    }

    /// Writes at `at`.
    pub(crate) fn write(&self, buf: &[u8], at: u32) -> Result<(), EngineError> {
        assert!(u64::from(at) + buf.len() as u64 <= u64::from(self.slot.class.size()));
        let offset = self.offset + u64::from(at);
        let written = self.file.file.pwrite(buf, offset);
        // After the write: a barrier that clears the mark before it would miss these bytes.
        self.file.dirty.store(true, Ordering::SeqCst);
        written.map_err(|e| EngineError::io(&self.file.name, e))
    }
}

impl Drop for SlotRef {
    fn drop(&mut self) {
        let epoch = self.slots.epochs.current();
        self.slots.freed.lock().push(Freed {
            epoch,
            slot: self.slot,
        });
    }
}

struct Freed {
    epoch: u64,
    slot: Slot,
}

#[derive(Default)]
struct Bitmap {
    words: Vec<u64>,
    /// No clear bit lies in a word before this one.
    first_free: usize,
}

impl Bitmap {
    fn take_first(&mut self) -> u32 {
        while self
            .words
            .get(self.first_free)
            .is_some_and(|word| *word == u64::MAX)
        {
            self.first_free += 1;
        }
        if self.first_free == self.words.len() {
            self.words.push(0);
        }
        let bit = self.words[self.first_free].trailing_ones();
        self.words[self.first_free] |= 1 << bit;
        u32::try_from(self.first_free).expect("slots of a class fit a u32") * 64 + bit
    }

    /// Sets a bit; tells whether it was clear.
    fn set(&mut self, index: u32) -> bool {
        let (word, bit) = (index as usize / 64, 1 << (index % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let clear = self.words[word] & bit == 0;
        self.words[word] |= bit;
        clear
    }

    fn clear(&mut self, index: u32) {
        let (word, bit) = (index as usize / 64, 1 << (index % 64));
        assert!(
            self.words[word] & bit != 0,
            "only an allocated slot is freed"
        );
        self.words[word] &= !bit;
        self.first_free = self.first_free.min(word);
    }
}

/// The allocator of one store and its open data files.
pub(crate) struct Slots {
    disk: Arc<dyn Disk>,
    epochs: Arc<Epochs>,
    bitmaps: Vec<Mutex<Bitmap>>,
    files: Mutex<HashMap<(SizeClass, u32), Arc<DataFile>>>,
    /// Innermost lock: taken when an image is dropped, whatever else is held.
    freed: Mutex<Vec<Freed>>,
    /// Free slots of the smallest class that were not punched; their bits are set.
    kept: Mutex<Vec<u32>>,
    used_bytes: AtomicU64,
}

impl Slots {
    pub(crate) fn new(disk: Arc<dyn Disk>, epochs: Arc<Epochs>) -> Self {
        Self {
            disk,
            epochs,
            bitmaps: (0..SizeClass::COUNT).map(|_| Mutex::default()).collect(),
            files: Mutex::default(),
            freed: Mutex::default(),
            kept: Mutex::default(),
            used_bytes: AtomicU64::new(0),
        }
    }

    /// Allocates a free slot of a class: one that was kept, or the first.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        class: SizeClass,
    ) -> Result<Arc<SlotRef>, EngineError> {
        let kept = (class.0 == 0).then(|| self.kept.lock().pop()).flatten();
        let index = kept.unwrap_or_else(|| self.bitmaps[usize::from(class.0)].lock().take_first());
        let slot = Slot { class, index };
        match self.file(slot) {
            Ok(file) => Ok(self.hold(slot, file)),
            Err(error) => {
                self.bitmaps[usize::from(class.0)].lock().clear(index);
                Err(error)
            }
        }
    }

    /// Marks a slot that a stored row names; `None` when another row has it.
    pub(crate) fn occupy(
        self: &Arc<Self>,
        slot: Slot,
    ) -> Result<Option<Arc<SlotRef>>, EngineError> {
        let file = self.file(slot)?;
        let was_clear = self.bitmaps[usize::from(slot.class.0)]
            .lock()
            .set(slot.index);
        Ok(was_clear.then(|| self.hold(slot, file)))
    }

    fn hold(self: &Arc<Self>, slot: Slot, file: Arc<DataFile>) -> Arc<SlotRef> {
        self.used_bytes
            .fetch_add(u64::from(slot.class.size()), Ordering::Relaxed);
        let place = slot.index % slot.class.slots_per_file();
        let offset = u64::from(place) * u64::from(slot.class.size());
        Arc::new(SlotRef {
            slot,
            file,
            offset,
            slots: Arc::clone(self),
        })
    }

    fn file(&self, slot: Slot) -> Result<Arc<DataFile>, EngineError> {
        let number = slot.index / slot.class.slots_per_file();
        let mut files = self.files.lock();
        if let Some(file) = files.get(&(slot.class, number)) {
            return Ok(Arc::clone(file));
        }
        let name = format!("{}k.{number}", slot.class.size() >> 10);
        let file = self
            .disk
            .open(&name)
            .map_err(|e| EngineError::io(&name, e))?;
        // What an earlier process wrote may still be unsynced.
        let file = Arc::new(DataFile {
            name: name.into(),
            file,
            dirty: AtomicBool::new(true),
        });
        files.insert((slot.class, number), Arc::clone(&file));
        Ok(file)
    }

    /// Syncs every file written since its last sync.
    pub(crate) fn sync_data(&self) -> Result<(), EngineError> {
        let files: Vec<_> = self.files.lock().values().map(Arc::clone).collect();
        for file in files {
            if file.dirty.swap(false, Ordering::SeqCst) {
                file.file.sync_data().map_err(|e| EngineError::Io {
                    path: file.name.clone(),
                    source: e,
                })?;
            }
        }
        Ok(())
    }

    /// Makes slots freed up to `epoch` available again and gives their blocks back to the file system, so that
    /// another class can have them, but for the few that are kept.
    pub(crate) fn recycle(&self, epoch: u64) -> Result<(), EngineError> {
        let ready: Vec<Freed> = self
            .freed
            .lock()
            .extract_if(.., |freed| freed.epoch <= epoch)
            .collect();
        for Freed { slot, .. } in &ready {
            if slot.class.0 == 0 {
                let mut kept = self.kept.lock();
                if kept.len() < KEPT_MAX {
                    kept.push(slot.index);
                    let size = u64::from(slot.class.size());
                    self.used_bytes.fetch_sub(size, Ordering::Relaxed);
                    continue;
                }
            }
            let file = self.file(*slot)?;
            let size = u64::from(slot.class.size());
            let offset = u64::from(slot.index % slot.class.slots_per_file()) * size;
            if let Err(error) = file.file.punch(offset, size) {
                // Costs space, not correctness.
                tracing::warn!(file = %file.name.display(), offset, %error, "hole not punched");
            }
            self.used_bytes.fetch_sub(size, Ordering::Relaxed);
            self.bitmaps[usize::from(slot.class.0)]
                .lock()
                .clear(slot.index);
        }
        Ok(())
    }

    /// Tells whether slots wait for a barrier.
    pub(crate) fn has_freed(&self) -> bool {
        !self.freed.lock().is_empty()
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Returns the allocated slots that no longer have a holder, and all allocated slots but the kept ones.
    #[cfg(test)]
    pub(crate) fn census(&self) -> (Vec<Slot>, Vec<Slot>) {
        let waiting = self.freed.lock().iter().map(|freed| freed.slot).collect();
        let mut allocated = Vec::new();
        for (number, bitmap) in (0..).zip(&self.bitmaps) {
            let class = SizeClass::new(number).expect("one bitmap a class");
            let kept = self.kept.lock();
            for (at, word) in (0..).zip(&bitmap.lock().words) {
                let is_kept = |bit| number == 0 && kept.contains(&(at * 64 + bit));
                let set = (0..64).filter(|bit| word >> bit & 1 == 1 && !is_kept(*bit));
                allocated.extend(set.map(|bit| Slot {
                    class,
                    index: at * 64 + bit,
                }));
            }
        }
        (waiting, allocated)
    }
}
