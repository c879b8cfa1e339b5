//! Where a blob's chunks live: a pure function of the layout, so that clients compute it alone and forever.
//!
//! Invariant: [`Layout::chain_slot`] never changes for given arguments. It is part of the stored format; the
//! test below pins its values (3FS lost data to a library shuffle that changed between compilers, its issue 368).

use crate::{BlobId, ChunkId};

/// How a blob is cut into chunks and spread over chains.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// Logarithm of the chunk size in bytes; 16 (64 KiB) to 26 (64 MiB).
    pub chunk_size_log2: u8,
    /// Which version of the chain table the slots refer to.
    pub chain_table: u32,
    /// Number of chains the blob is striped over, at least 1.
    pub stripe: u16,
    /// Where in the table the stripe begins.
    pub seed: u32,
}

/// A byte range inside one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkRange {
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte in the chunk.
    pub offset: u32,
    /// Length in bytes, never 0.
    pub len_bytes: u32,
}

impl Layout {
    /// Returns the chunk size in bytes.
    #[must_use]
    pub fn chunk_size_bytes(&self) -> u64 {
        1 << self.chunk_size_log2
    }

    /// Returns the slot of the chain table (below `chain_count`) that holds chunk `index`.
    ///
    /// Consecutive chunks walk round the stripe, the stripe starts at a place that mixes the seed
    /// (the finaliser of SplitMix64, Steele et al., OOPSLA '14).
    ///
    /// # Panics
    /// If `chain_count` is 0: a chain table is never empty.
    #[must_use]
    pub fn chain_slot(&self, index: u32, chain_count: u32) -> u32 {
        assert!(chain_count > 0, "a chain table holds at least one chain");
        let start = mix(u64::from(self.seed)) % u64::from(chain_count);
        let step = u64::from(index) % u64::from(self.stripe.max(1));
        let slot = (start + step) % u64::from(chain_count);
        u32::try_from(slot).expect("slot is below a u32")
    }

    /// Cuts the byte range of a blob into ranges of chunks, in order.
    ///
    /// # Panics
    /// The iterator panics past chunk index `u32::MAX`, which `limits::FILE_SIZE_MAX_BYTES` keeps out of reach.
    pub fn split(
        &self,
        blob: BlobId,
        offset: u64,
        len_bytes: u64,
    ) -> impl Iterator<Item = ChunkRange> {
        let size = self.chunk_size_bytes();
        let end = offset.saturating_add(len_bytes);
        let mut at = offset;
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let within = at % size;
            let len = (size - within).min(end - at);
            let range = ChunkRange {
                chunk: ChunkId {
                    blob,
                    index: u32::try_from(at / size)
                        .expect("file size limit bounds the chunk index"),
                },
                offset: u32::try_from(within).expect("a chunk is at most 64 MiB"),
                len_bytes: u32::try_from(len).expect("a chunk is at most 64 MiB"),
            };
            at += len;
            Some(range)
        })
    }
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(chunk_size_log2: u8, seed: u32, stripe: u16) -> Layout {
        Layout {
            chunk_size_log2,
            chain_table: 1,
            stripe,
            seed,
        }
    }

    #[test]
    fn the_stored_mapping_is_pinned() {
        let slots = |seed| [0, 1, 2, 7].map(|index| layout(20, seed, 4).chain_slot(index, 5));
        assert_eq!(slots(0), [0, 1, 2, 3]);
        assert_eq!(slots(1), [0, 1, 2, 3]);
        assert_eq!(slots(77), [2, 3, 4, 0]);
    }

    proptest! {
        #[test]
        fn split_covers_exactly(log2 in 16u8..=26, offset in 0u64..1 << 34, len in 0u64..1 << 28) {
            let layout = layout(log2, 0, 1);
            let mut at = offset;
            for range in layout.split(BlobId(9), offset, len) {
                let start = u64::from(range.chunk.index) * layout.chunk_size_bytes() + u64::from(range.offset);
                prop_assert_eq!(start, at);
                prop_assert!(range.len_bytes > 0);
                prop_assert!(u64::from(range.offset) + u64::from(range.len_bytes) <= layout.chunk_size_bytes());
                at += u64::from(range.len_bytes);
            }
            prop_assert_eq!(at, offset + len);
        }
    }
}
