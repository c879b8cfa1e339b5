//! How a write becomes an image: in place, shared, or copied.
//!
//! Bytes that some image covers are never written again. So only an append to an unsealed image with nothing staged
//! goes into its slot; an overwrite, a growth past the class and a growth after a truncation copy to a fresh slot. What
//! is copied is verified on the way: damage is reported, never given a new checksum.

use std::sync::Arc;

use janusfs_types::ChunkVersion;

use super::{Engine, WINDOW_BYTES, read_verified};
use crate::{
    EngineError, EngineOp, ReadMode, StageWrite,
    crc::Shift,
    image::{LiveImage, PieceSums, Row},
    slots::{SizeClass, SlotRef},
};

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
        let append = base
            .filter(|image| may_append && !image.sealed && offset >= image.len)
            .and_then(|image| Some((image, image.slot.as_ref()?)))
            .filter(|(_, slot)| slot.class().size() >= len);
        let class = append.map_or(fresh, |(_, slot)| slot.class());

        let payload = PieceSums::apart(class, offset, write.data);
        if payload.crc() != write.crc {
            return Err(EngineError::Corrupt { chunk });
        }
        self.check_space(if append.is_some() {
            data_len
        } else {
            u64::from(len)
        })?;
        let (slot, mut sums) = match append {
            Some((image, slot)) => (Arc::clone(slot), PieceSums::after(image, class)),
            None => (self.slots.allocate(class)?, PieceSums::new(class)),
        };
        if append.is_none()
            && let Some(base) = base
        {
            copy(write, base, base_len.min(offset), &slot, &mut sums)?;
        }
        fill(&slot, &mut sums, offset)?;
        let mut at = offset;
        for bytes in write.data {
            slot.write(bytes, at)?;
            at += u32::try_from(bytes.len()).expect("the payload fits a chunk");
        }
        sums.append(&payload);
        if let Some(base) = base
            && base_len > end
        {
            copy(write, base, base_len, &slot, &mut sums)?;
        }
        Ok(self.image(write, slot, sums, write.version))
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
        let slot = base.slot.as_ref().expect("an image with bytes has a slot");
        let class = SizeClass::for_len(u64::from(len)).expect("shorter than a chunk that fits");
        if class != slot.class() {
            self.check_space(u64::from(len))?;
            let slot = self.slots.allocate(class)?;
            let mut sums = PieceSums::new(class);
            copy(write, base, len, &slot, &mut sums)?;
            return Ok(self.image(write, slot, sums, write.version));
        }
        let piece = class.piece();
        let mut pieces = base.pieces[..len.div_ceil(piece) as usize].to_vec();
        let cut = len % piece;
        if cut > 0 {
            let (_, crc) = read_verified(write.chunk, base, len - cut, len, ReadMode::Blocking)?
                .expect("a blocking read has bytes");
            *pieces.last_mut().expect("a cut piece is the last one") = crc;
        }
        let full_piece = Shift::by(piece as usize);
        let last = if cut > 0 {
            Shift::by(cut as usize)
        } else {
            full_piece
        };
        let (final_sum, full_sums) = pieces.split_last().expect("the length is not 0");
        let crc = full_sums
            .iter()
            .fold(0, |crc, sum| full_piece.combine(crc, *sum));
        Ok(LiveImage {
            version: write.version,
            epoch: base.epoch,
            slot: Some(Arc::clone(slot)),
            len,
            crc: last.combine(crc, *final_sum),
            sealed: true,
            tag: write.tag,
            pieces: pieces.into(),
        })
    }

    fn image(
        &self,
        write: &StageWrite<'_>,
        slot: Arc<SlotRef>,
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
            slot: Some(slot),
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
        slot: None,
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

/// Copies `base` from where `sums` ends up to `until`, verified, into the same place of `slot`.
fn copy(
    write: &StageWrite<'_>,
    base: &LiveImage,
    until: u32,
    slot: &SlotRef,
    sums: &mut PieceSums,
) -> Result<(), EngineError> {
    while sums.len() < until {
        let at = sums.len();
        let end = until.min((at / WINDOW_BYTES + 1) * WINDOW_BYTES);
        let (bytes, _) = read_verified(write.chunk, base, at, end, ReadMode::Blocking)?
            .expect("a blocking read has bytes");
        slot.write(&bytes, at)?;
        sums.push(&bytes);
    }
    Ok(())
}

/// Writes zeros from where `sums` ends up to `until`: a slot may hold an earlier owner's bytes.
fn fill(slot: &SlotRef, sums: &mut PieceSums, until: u32) -> Result<(), EngineError> {
    while sums.len() < until {
        let at = sums.len();
        let part = ((until - at) as usize).min(ZEROS.len());
        slot.write(&ZEROS[..part], at)?;
        sums.push_zeros(part);
    }
    Ok(())
}
