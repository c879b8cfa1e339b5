//! One version of a chunk's bytes: where they lie and the checksums that cover them; and a chunk's set of versions.
//!
//! An image never changes. A later version shares its slots, all when it only appends or shortens, all but the patches it
//! makes when it overwrites; what an image covers (`len` bytes) is never written again while the image exists.

use std::sync::Arc;

use bytes::Bytes;
use janusfs_types::ChunkVersion;

use crate::{
    EngineError, Tag,
    crc::{Shift, crc32c, crc32c_zeros},
    slots::{Placed, SizeClass, SlotRef},
};

/// One version of a chunk. `S` is a slot's number in a stored row, a held slot in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Image<S> {
    pub(crate) version: ChunkVersion,
    /// The barrier that makes the bytes stable.
    pub(crate) epoch: u64,
    /// `None` exactly when `len` is 0.
    pub(crate) body: Option<Body<S>>,
    pub(crate) len: u32,
    /// CRC32C of all bytes.
    pub(crate) crc: u32,
    /// The slots have bytes past `len` that an older version may still need: the next growth moves elsewhere.
    pub(crate) sealed: bool,
    pub(crate) tag: Option<Tag>,
    /// CRC32C of each piece; the last one covers only what lies below `len`.
    pub(crate) pieces: Arc<[u32]>,
}

/// An image whose slots are held.
pub(crate) type LiveImage = Image<Arc<SlotRef>>;

/// Where the bytes of an image lie: in a slot, apart from the stretches that patches stand for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Body<S> {
    pub(crate) slot: S,
    /// In order of their numbers; each begins below `len`.
    pub(crate) patches: Arc<[Patch<S>]>,
}

/// A slot that stands for the stretch `[number, number + 1)`, in units of its class, of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Patch<S> {
    pub(crate) number: u32,
    pub(crate) slot: S,
}

impl<S> Body<S> {
    /// Returns a body without patches.
    pub(crate) fn plain(slot: S) -> Self {
        Self {
            slot,
            patches: Arc::new([]),
        }
    }

    /// Returns all slots.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> impl Iterator<Item = &S> {
        let patches = self.patches.iter().map(|patch| &patch.slot);
        std::iter::once(&self.slot).chain(patches)
    }
}

/// A body whose slots are held.
pub(crate) type LiveBody = Body<Arc<SlotRef>>;

impl LiveBody {
    pub(crate) fn class(&self) -> SizeClass {
        self.slot.slot().class
    }

    /// Returns the slot that the byte `at` lies in, its place there, and how many bytes from it on lie there.
    fn run(&self, at: u32) -> (&SlotRef, u32, usize) {
        let size = self.class().size();
        let Some(first) = self.patches.first() else {
            return (&self.slot, at, (size - at) as usize);
        };
        let stretch = first.slot.slot().class.size();
        let number = at / stretch;
        let next = self.patches.partition_point(|patch| patch.number < number);
        match self.patches.get(next) {
            Some(patch) if patch.number == number => {
                let place = at % stretch;
                (&patch.slot, place, (stretch - place) as usize)
            }
            Some(patch) => (&self.slot, at, (patch.number * stretch - at) as usize),
            None => (&self.slot, at, (size - at) as usize),
        }
    }

    /// Fills `buf` from `at` on; tells whether the slots have that many bytes.
    pub(crate) fn read(&self, mut buf: &mut [u8], mut at: u32) -> Result<bool, EngineError> {
        while !buf.is_empty() {
            let (slot, place, room) = self.run(at);
            let (part, rest) = buf.split_at_mut(room.min(buf.len()));
            if slot.read(part, place)? < part.len() {
                return Ok(false);
            }
            at += len_of(part);
            buf = rest;
        }
        Ok(true)
    }

    /// Fills `buf` if that needs no waiting, and tells whether it did.
    pub(crate) fn read_cached(&self, mut buf: &mut [u8], mut at: u32) -> Result<bool, EngineError> {
        while !buf.is_empty() {
            let (slot, place, room) = self.run(at);
            let (part, rest) = buf.split_at_mut(room.min(buf.len()));
            if !slot.read_cached(part, place)? {
                return Ok(false);
            }
            at += len_of(part);
            buf = rest;
        }
        Ok(true)
    }

    /// Writes at `at`, which no image may cover.
    pub(crate) fn write(&self, mut bytes: &[u8], mut at: u32) -> Result<(), EngineError> {
        while !bytes.is_empty() {
            let (slot, place, room) = self.run(at);
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            slot.write(part, place)?;
            at += len_of(part);
            bytes = rest;
        }
        Ok(())
    }
}

fn len_of(part: &[u8]) -> u32 {
    u32::try_from(part.len()).expect("a part of a chunk fits a u32")
}

/// Returns the checksum of `len` bytes from those of their pieces.
pub(crate) fn combine_pieces(class: SizeClass, pieces: &[u32], len: u32) -> u32 {
    let Some((last, full)) = pieces.split_last() else {
        return 0;
    };
    let piece = class.piece();
    let full_piece = Shift::by(piece as usize);
    let crc = full
        .iter()
        .fold(0, |crc, sum| full_piece.combine(crc, *sum));
    let rest = len - piece * u32::try_from(full.len()).expect("a chunk has few pieces");
    Shift::by(rest as usize).combine(crc, *last)
}

/// A chunk's versions, as a stored row or in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Versions<I> {
    pub(crate) committed: Option<I>,
    pub(crate) pending: Option<I>,
    /// What to fall back to when a power cut took the committed bytes: newest first, at most one for each epoch.
    /// Empty once a barrier covers `committed`.
    pub(crate) previous: Vec<I>,
}

impl<I> Versions<I> {
    /// Returns all of them.
    pub(crate) fn images(&self) -> impl Iterator<Item = &I> {
        self.committed
            .iter()
            .chain(&self.pending)
            .chain(&self.previous)
    }
}

impl<I> Default for Versions<I> {
    fn default() -> Self {
        Self {
            committed: None,
            pending: None,
            previous: Vec::new(),
        }
    }
}

/// A chunk in memory.
pub(crate) type Row = Versions<Arc<LiveImage>>;

impl Row {
    pub(crate) fn committed_version(&self) -> ChunkVersion {
        self.committed
            .as_ref()
            .map_or(ChunkVersion(0), |image| image.version)
    }

    /// Returns the row with other committed and pending versions, and what it then may have to fall back to.
    ///
    /// `durable` may be stale (smaller): then an image more is kept than needed. While a barrier runs, images of
    /// its epoch and of the next one are both unstable, hence more than one fallback: which of them a power cut
    /// leaves is known only to the reader of the barrier.
    pub(crate) fn succeed(
        &self,
        committed: Option<Arc<LiveImage>>,
        pending: Option<Arc<LiveImage>>,
        durable: u64,
    ) -> Self {
        let mut previous: Vec<Arc<LiveImage>> = Vec::new();
        if let Some(new) = committed.as_ref().filter(|new| new.epoch > durable) {
            for image in self.committed.iter().chain(&self.previous) {
                let youngest = previous.last().map_or(new.epoch, |image| image.epoch);
                if image.epoch < youngest {
                    previous.push(Arc::clone(image));
                }
                if image.epoch <= durable {
                    break;
                }
            }
        }
        Self {
            committed,
            pending,
            previous,
        }
    }

    /// Returns the row without the fallbacks that a barrier made superfluous.
    pub(crate) fn settle(&self, durable: u64) -> Self {
        self.succeed(self.committed.clone(), self.pending.clone(), durable)
    }
}

/// Collects the checksums of bytes that arrive in order.
pub(crate) struct PieceSums {
    piece: u32,
    full_piece: Shift,
    sums: Vec<u32>,
    crc: u32,
    len: u32,
}

impl PieceSums {
    pub(crate) fn new(class: SizeClass) -> Self {
        let piece = class.piece();
        Self {
            piece,
            full_piece: Shift::by(piece as usize),
            sums: Vec::new(),
            crc: 0,
            len: 0,
        }
    }

    /// Continues after an image in the same class.
    pub(crate) fn after(image: &LiveImage, class: SizeClass) -> Self {
        Self {
            sums: image.pieces.to_vec(),
            crc: image.crc,
            len: image.len,
            ..Self::new(class)
        }
    }

    /// Sums bytes that will lie at `offset`, apart from what lies before them: the first sum covers only their part
    /// of its piece.
    pub(crate) fn apart(class: SizeClass, offset: u32, data: &[Bytes]) -> Self {
        let mut sums = Self {
            len: offset,
            ..Self::new(class)
        };
        if !offset.is_multiple_of(sums.piece) {
            sums.sums.push(0);
        }
        data.iter().for_each(|bytes| sums.push(bytes));
        sums
    }

    pub(crate) fn crc(&self) -> u32 {
        self.crc
    }

    /// Adds bytes that were summed apart at the offset where this one ends.
    pub(crate) fn append(&mut self, apart: &Self) {
        for sum in &apart.sums {
            let part = self.room().min((apart.len - self.len) as usize);
            self.add(*sum, part);
        }
        assert_eq!(self.len, apart.len, "the sums continue where the bytes lie");
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Returns how many bytes the current piece still takes.
    fn room(&self) -> usize {
        (self.piece - self.len % self.piece) as usize
    }

    fn add(&mut self, crc: u32, len: usize) {
        let shift = if len == self.piece as usize {
            self.full_piece
        } else {
            Shift::by(len)
        };
        if self.len.is_multiple_of(self.piece) {
            self.sums.push(crc);
        } else {
            let last = self.sums.last_mut().expect("a started piece has a sum");
            *last = shift.combine(*last, crc);
        }
        self.crc = shift.combine(self.crc, crc);
        self.len += u32::try_from(len).expect("a part is at most a piece");
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(self.room()));
            self.add(crc32c(part), part.len());
            bytes = rest;
        }
    }

    /// Adds zeros.
    pub(crate) fn push_zeros(&mut self, mut len: usize) {
        while len > 0 {
            let part = len.min(self.room());
            self.add(crc32c_zeros(part), part);
            len -= part;
        }
    }

    /// Returns the sums of the pieces and of the whole.
    pub(crate) fn finish(self) -> (Arc<[u32]>, u32) {
        (self.sums.into(), self.crc)
    }
}
