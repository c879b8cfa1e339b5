//! How a write becomes an image: in place, shared, patched, or copied.
//!
//! Bytes that some image covers are never written again. So only an append to an unsealed image with nothing staged
//! goes into its slots; an overwrite copies the stretches it touches to fresh slots; a large overwrite, a growth past the
//! class and an append after a truncation copy all to a fresh slot. What is copied is verified on the way: damage is
//! reported, never given a new checksum.

use std::{ops::RangeInclusive, sync::Arc};

use janusfs_types::ChunkVersion;

use super::{Engine, WINDOW_BYTES, read_verified};
use crate::{
    EngineError, EngineOp, ReadMode, StageWrite,
    crc::crc32c,
    image::{Body, LiveBody, LiveImage, Patch, PieceSums, Row, combine_pieces},
    slots::{SizeClass, SlotRef},
};

/// At most one in this many stretches of a chunk is patched: bounds the space that the chunk's slot wastes on them, and
/// the reads that gather them.
const PATCHED_SHARE: usize = 2;
/// Source of the zeros that fill a gap.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Engine {
    /// Builds the image that `write` makes of the row's committed version.
    pub(super) fn build(
        &self,
        write: &StageWrite<'_>,
        row: &Row,
    ) -> Result<LiveImage, EngineError> {
        let base = row.committed.as_deref();
        if write.op == EngineOp::Create && base.is_some() {
            return Err(EngineError::Exists);
        }
        let committed = row.committed_version();
        if committed.0.checked_add(1) != Some(write.version.0) {
            return Err(EngineError::VersionMismatch {
                chunk: write.chunk,
                committed,
                got: write.version,
            });
        }
        // A staged version may have bytes in the slot past the committed ones; they stay whole until it is replaced.
        let may_append = row.pending.is_none();
        match write.op {
            EngineOp::Create => self.build_bytes(write, None, 0, may_append),
            EngineOp::Write { offset } => self.build_bytes(write, base, offset, may_append),
            EngineOp::Truncate { len_bytes } => self.build_truncated(write, base, len_bytes),
        }
    }

    /// Builds the image with the payload at `offset` of `base`.
    pub(super) fn build_bytes(
        &self,
        write: &StageWrite<'_>,
        base: Option<&LiveImage>,
        offset: u32,
        may_append: bool,
    ) -> Result<LiveImage, EngineError> {
        let chunk = write.chunk;
        let too_large = EngineError::TooLarge { chunk };
        let data_len = write
            .data
            .iter()
            .map(|bytes| bytes.len() as u64)
            .sum::<u64>();
        if data_len == 0 {
            return if write.crc == 0 {
                Ok(unchanged(write, base))
            } else {
                Err(EngineError::Corrupt { chunk })
            };
        }
        let base_len = base.map_or(0, |image| image.len);
        let end = u64::from(offset) + data_len;
        let len = end.max(u64::from(base_len));
        let Some(smallest) = SizeClass::for_len(len) else {
            return Err(too_large);
        };
        let expected = u64::from(write.expected_len_bytes);
        let fresh = SizeClass::for_len(len.max(expected)).unwrap_or(smallest);
        let (Ok(end), Ok(len)) = (u32::try_from(end), u32::try_from(len)) else {
            return Err(too_large);
        };
        let bodied = base
            .and_then(|image| Some((image, image.body.as_ref()?)))
            .filter(|(_, body)| body.class().size() >= len);
        if let Some((image, body)) = bodied
            && let Some(stretches) = Stretches::touched(body, offset, image.len, end, len)
        {
            return self.build_patched(write, image, body, &stretches);
        }
        let append = bodied.filter(|(image, _)| may_append && !image.sealed && offset >= image.len);
        let class = append.map_or(fresh, |(_, body)| body.class());

        let payload = PieceSums::apart(class, offset, write.data);
        if payload.crc() != write.crc {
            return Err(EngineError::Corrupt { chunk });
        }
        self.check_space(if append.is_some() {
            data_len
        } else {
            u64::from(len)
        })?;
        let (body, mut sums) = match append {
            Some((image, body)) => (body.clone(), PieceSums::after(image, class)),
            None => {
                let slot = self.slots.allocate(class)?;
                (Body::plain(slot), PieceSums::new(class))
            }
        };
        if append.is_none()
            && let Some(base) = base
        {
            copy(write, base, base_len.min(offset), &body, &mut sums)?;
        }
        fill(&body, &mut sums, offset)?;
        let mut at = offset;
        for bytes in write.data {
            body.write(bytes, at)?;
            at += u32::try_from(bytes.len()).expect("the payload fits a chunk");
        }
        sums.append(&payload);
        if let Some(base) = base
            && base_len > end
        {
            copy(write, base, base_len, &body, &mut sums)?;
        }
        Ok(self.image(write, body, sums, write.version))
    }

    /// Builds the image whose touched stretches lie in fresh slots, and all others where they lie in `base`.
    fn build_patched(
        &self,
        write: &StageWrite<'_>,
        base: &LiveImage,
        body: &LiveBody,
        stretches: &Stretches,
    ) -> Result<LiveImage, EngineError> {
        let class = body.class();
        let (piece, size) = (class.piece(), stretches.class.size());
        if PieceSums::apart(class, stretches.offset, write.data).crc() != write.crc {
            return Err(EngineError::Corrupt { chunk: write.chunk });
        }
        self.check_space(u64::from(size) * stretches.numbers.clone().count() as u64)?;
        let mut pieces = base.pieces.to_vec();
        pieces.resize(stretches.len.div_ceil(piece) as usize, 0);
        let mut patches: Vec<_> = stretches.kept(body).cloned().collect();
        let mut payload = write
            .data
            .iter()
            .flat_map(|bytes| bytes.chunks(size as usize));
        let mut left: &[u8] = &[];
        for number in stretches.numbers.clone() {
            let start = number * size;
            let until = stretches.len.min(start + size);
            let low = stretches.offset.max(start);
            let high = stretches.end.min(until);
            let stays = base.len.min(until);
            let mut bytes = if low > start || high < stays {
                let (bytes, _) =
                    read_verified(write.chunk, base, start, stays, ReadMode::Blocking)?
                        .expect("a blocking read has bytes");
                Vec::from(bytes)
            } else {
                Vec::new()
            };
            bytes.resize((until - start) as usize, 0);
            let mut room = &mut bytes[(low - start) as usize..(high - start) as usize];
            while !room.is_empty() {
                if left.is_empty() {
                    left = payload
                        .next()
                        .expect("the payload has the bytes of its length");
                }
                let count = room.len().min(left.len());
                let (part, rest) = room.split_at_mut(count);
                part.copy_from_slice(&left[..count]);
                (room, left) = (rest, &left[count..]);
            }
            let slot = self.slots.allocate(stretches.class)?;
            slot.write(&bytes, 0)?;
            let sums = pieces[(start / piece) as usize..].iter_mut();
            for ((at, bytes), sum) in (start..)
                .step_by(piece as usize)
                .zip(bytes.chunks(piece as usize))
                .zip(sums)
            {
                // What the payload does not touch was verified and keeps its sum.
                if at < high && low < at + piece {
                    *sum = crc32c(bytes);
                }
            }
            patches.push(Patch { number, slot });
        }
        patches.sort_unstable_by_key(|patch| patch.number);
        Ok(LiveImage {
            version: write.version,
            // All bytes are written by now, which the epoch relies on.
            epoch: self.epochs.current(),
            body: Some(Body {
                slot: Arc::clone(&body.slot),
                patches: patches.into(),
            }),
            len: stretches.len,
            crc: combine_pieces(class, &pieces, stretches.len),
            // The chunk's slot still has what it had past the end.
            sealed: base.sealed,
            tag: write.tag,
            pieces: pieces.into(),
        })
    }

    fn build_truncated(
        &self,
        write: &StageWrite<'_>,
        base: Option<&LiveImage>,
        len: u32,
    ) -> Result<LiveImage, EngineError> {
        let Some(base) = base.filter(|base| len < base.len) else {
            return Ok(unchanged(write, base));
        };
        if len == 0 {
            return Ok(unchanged(write, None));
        }
        let body = base.body.as_ref().expect("an image with bytes has a slot");
        let class = SizeClass::for_len(u64::from(len)).expect("shorter than a chunk that fits");
        if class != body.class() {
            self.check_space(u64::from(len))?;
            let body = Body::plain(self.slots.allocate(class)?);
            let mut sums = PieceSums::new(class);
            copy(write, base, len, &body, &mut sums)?;
            return Ok(self.image(write, body, sums, write.version));
        }
        let piece = class.piece();
        let mut pieces = base.pieces[..len.div_ceil(piece) as usize].to_vec();
        let cut = len % piece;
        if cut > 0 {
            let (_, crc) = read_verified(write.chunk, base, len - cut, len, ReadMode::Blocking)?
                .expect("a blocking read has bytes");
            *pieces.last_mut().expect("a cut piece is the last one") = crc;
        }
        let stays = |patch: &&Patch<_>| {
            let stretch = class.patch().expect("a class with patches").size();
            patch.number * stretch < len
        };
        let patches = body.patches.iter().filter(stays).cloned().collect();
        Ok(LiveImage {
            version: write.version,
            epoch: base.epoch,
            body: Some(Body {
                slot: Arc::clone(&body.slot),
                patches,
            }),
            len,
            crc: combine_pieces(class, &pieces, len),
            sealed: true,
            tag: write.tag,
            pieces: pieces.into(),
        })
    }

    fn image(
        &self,
        write: &StageWrite<'_>,
        body: LiveBody,
        sums: PieceSums,
        version: ChunkVersion,
    ) -> LiveImage {
        let len = sums.len();
        let (pieces, crc) = sums.finish();
        // All bytes are written by now, which the epoch relies on.
        let epoch = self.epochs.current();
        LiveImage {
            version,
            epoch,
            body: Some(body),
            len,
            crc,
            sealed: false,
            tag: write.tag,
            pieces,
        }
    }

    fn check_space(&self, bytes: u64) -> Result<(), EngineError> {
        let space = self
            .disk
            .space()
            .map_err(|e| EngineError::io(&self.dir, e))?;
        if space.free_bytes < self.options.free_min_bytes.saturating_add(bytes) {
            return Err(EngineError::NoSpace);
        }
        Ok(())
    }
}

/// Returns the same bytes as a new version; without a base, no bytes. No bytes are stable at once: epoch 0.
fn unchanged(write: &StageWrite<'_>, base: Option<&LiveImage>) -> LiveImage {
    let empty = LiveImage {
        version: write.version,
        epoch: 0,
        body: None,
        len: 0,
        crc: 0,
        sealed: false,
        tag: write.tag,
        pieces: Arc::new([]),
    };
    base.map_or(empty, |base| LiveImage {
        version: write.version,
        tag: write.tag,
        ..base.clone()
    })
}

/// The stretches of a chunk that an overwrite puts into slots of their own.
struct Stretches {
    /// The class of those slots.
    class: SizeClass,
    numbers: RangeInclusive<u32>,
    /// Where the payload begins and ends in the chunk.
    offset: u32,
    end: u32,
    /// How long the chunk will be.
    len: u32,
}

impl Stretches {
    /// Returns what a payload in `[offset, end)` touches of a chunk with `base_len` bytes in `body`; `None` if it is no
    /// overwrite, or if the chunk is better copied whole.
    fn touched(body: &LiveBody, offset: u32, base_len: u32, end: u32, len: u32) -> Option<Self> {
        let class = body.class().patch().filter(|_| offset < base_len)?;
        let size = class.size();
        let stretches = Self {
            class,
            numbers: offset / size..=(end - 1) / size,
            offset,
            end,
            len,
        };
        let patched = stretches.kept(body).count() + stretches.numbers.clone().count();
        (patched * PATCHED_SHARE <= len.div_ceil(size) as usize).then_some(stretches)
    }

    /// Returns the patches that stay.
    fn kept<'a>(&'a self, body: &'a LiveBody) -> impl Iterator<Item = &'a Patch<Arc<SlotRef>>> {
        let stays = |patch: &&Patch<_>| !self.numbers.contains(&patch.number);
        body.patches.iter().filter(stays)
    }
}

/// Copies `base` from where `sums` ends up to `until`, verified, into the same place of `body`.
fn copy(
    write: &StageWrite<'_>,
    base: &LiveImage,
    until: u32,
    body: &LiveBody,
    sums: &mut PieceSums,
) -> Result<(), EngineError> {
    while sums.len() < until {
        let at = sums.len();
        let end = until.min((at / WINDOW_BYTES + 1) * WINDOW_BYTES);
        let (bytes, _) = read_verified(write.chunk, base, at, end, ReadMode::Blocking)?
            .expect("a blocking read has bytes");
        body.write(&bytes, at)?;
        sums.push(&bytes);
    }
    Ok(())
}

/// Writes zeros from where `sums` ends up to `until`: a slot may hold an earlier owner's bytes.
fn fill(body: &LiveBody, sums: &mut PieceSums, until: u32) -> Result<(), EngineError> {
    while sums.len() < until {
        let at = sums.len();
        let part = ((until - at) as usize).min(ZEROS.len());
        body.write(&ZEROS[..part], at)?;
        sums.push_zeros(part);
    }
    Ok(())
}
