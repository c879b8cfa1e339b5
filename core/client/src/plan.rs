//! From content and a byte range to the pieces that make it up. Pure.
//!
//! Invariant: the pieces of a range cover it exactly, in order, without overlap; what no stored byte covers is a hole.

use std::ops::Range;

use janusfs_types::{ChunkRange, Content, Extent, Layout};

/// A run of a file's bytes that comes from one place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    /// Bytes of the inline content.
    Inline(Range<usize>),
    /// Zeros.
    Hole(u64),
    /// Bytes of one chunk; where the chunk is shorter, zeros.
    Chunk(ChunkRange, Layout),
}

/// Cuts the file range `[offset, offset + len)` into pieces.
pub(crate) fn plan(content: &Content, offset: u64, len: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let end = offset.saturating_add(len);
    if offset == end {
        return pieces;
    }
    match content {
        Content::Inline(bytes) => {
            let stored = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let inline = offset.min(stored)..end.min(stored);
            if !inline.is_empty() {
                pieces.push(Piece::Inline(index(inline.start)..index(inline.end)));
            }
            push_hole(&mut pieces, end - end.min(stored.max(offset)));
        }
        Content::Blob { blob, layout } => {
            pieces.extend(
                layout
                    .split(*blob, offset, end - offset)
                    .map(|range| Piece::Chunk(range, *layout)),
            );
        }
        Content::Extents(extents) => plan_extents(extents, offset, end, &mut pieces),
    }
    pieces
}

fn plan_extents(extents: &[Extent], offset: u64, end: u64, pieces: &mut Vec<Piece>) {
    let mut at = offset;
    let first = extents.partition_point(|extent| extent.file_offset + extent.len_bytes <= offset);
    for extent in &extents[first..] {
        if extent.file_offset >= end {
            break;
        }
        push_hole(pieces, extent.file_offset.saturating_sub(at));
        at = at.max(extent.file_offset);
        let until = end.min(extent.file_offset + extent.len_bytes);
        let in_blob = extent.blob_offset + (at - extent.file_offset);
        let ranges = extent.layout.split(extent.blob, in_blob, until - at);
        pieces.extend(ranges.map(|range| Piece::Chunk(range, extent.layout)));
        at = until;
    }
    push_hole(pieces, end - at);
}

fn push_hole(pieces: &mut Vec<Piece>, len: u64) {
    if len > 0 {
        pieces.push(Piece::Hole(len));
    }
}

fn index(within_inline: u64) -> usize {
    usize::try_from(within_inline).expect("inline content fits in memory")
}

#[cfg(test)]
mod tests {
    use janusfs_types::{BlobId, ChunkId};
    use proptest::prelude::*;

    use super::*;

    fn layout(chunk_size_log2: u8) -> Layout {
        Layout {
            chunk_size_log2,
            chain_table: 1,
            stripe: 3,
            seed: 7,
        }
    }

    /// Where one byte of a file is: the naive answer that `plan` must agree with.
    #[derive(PartialEq, Debug)]
    enum Place {
        Inline(usize),
        Hole,
        Chunk(ChunkId, u64),
    }

    fn place(content: &Content, at: u64) -> Place {
        let in_blob = |blob, layout: &Layout, at: u64| {
            let index = u32::try_from(at / layout.chunk_size_bytes()).unwrap();
            Place::Chunk(ChunkId { blob, index }, at % layout.chunk_size_bytes())
        };
        match content {
            Content::Inline(bytes) if at < bytes.len() as u64 => Place::Inline(index(at)),
            Content::Inline(_) => Place::Hole,
            Content::Blob { blob, layout } => in_blob(*blob, layout, at),
            Content::Extents(extents) => extents
                .iter()
                .find(|extent| {
                    at >= extent.file_offset && at - extent.file_offset < extent.len_bytes
                })
                .map_or(Place::Hole, |extent| {
                    in_blob(
                        extent.blob,
                        &extent.layout,
                        at - extent.file_offset + extent.blob_offset,
                    )
                }),
        }
    }

    /// First place, last place and length of a piece.
    fn bounds(piece: &Piece) -> (Place, Place, u64) {
        match piece {
            Piece::Inline(range) => (
                Place::Inline(range.start),
                Place::Inline(range.end - 1),
                range.len() as u64,
            ),
            Piece::Hole(len) => (Place::Hole, Place::Hole, *len),
            Piece::Chunk(range, _) => {
                let (first, len) = (u64::from(range.offset), u64::from(range.len_bytes));
                (
                    Place::Chunk(range.chunk, first),
                    Place::Chunk(range.chunk, first + len - 1),
                    len,
                )
            }
        }
    }

    fn any_content() -> impl Strategy<Value = Content> {
        let extent = (0u64..200_000, 1u64..400_000, 0u64..300_000, 16u8..=20);
        let extents = proptest::collection::vec(extent, 0..6).prop_map(|specs| {
            let mut at = 0;
            let extents = specs.into_iter().enumerate().map(
                |(number, (gap, len_bytes, blob_offset, log2))| {
                    let file_offset = at + gap;
                    at = file_offset + len_bytes;
                    let blob = BlobId(100 + number as u64);
                    Extent {
                        file_offset,
                        len_bytes,
                        blob,
                        blob_offset,
                        layout: layout(log2),
                    }
                },
            );
            Content::Extents(extents.collect())
        });
        prop_oneof![
            (0usize..4096).prop_map(|len| Content::Inline(vec![1; len])),
            (16u8..=26).prop_map(|log2| Content::Blob {
                blob: BlobId(9),
                layout: layout(log2)
            }),
            extents,
        ]
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_exactly(
            content in any_content(), offset in 0u64..1 << 21, len in 0u64..1 << 21,
        ) {
            let mut at = offset;
            for piece in plan(&content, offset, len) {
                let (first, last, len) = bounds(&piece);
                prop_assert!(len > 0);
                prop_assert_eq!(first, place(&content, at));
                prop_assert_eq!(last, place(&content, at + len - 1));
                at += len;
            }
            prop_assert_eq!(at, offset + len);
        }
    }
}
