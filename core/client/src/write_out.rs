//! Moves file bytes to chunks and away from them: write-out of ranges, copies of shared content, trims.
//!
//! Invariant: writes of one chunk follow one another; no write is abandoned half way while another may follow it.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use janusfs_types::{BlobId, ChunkId, Content, FsError, Layout};
use janusfs_wire::{
    meta::{Opened, SyncMeta, Trimmed},
    storage::WriteOp,
};

use crate::{
    client::Inner,
    dirty::length,
    plan::{Piece, plan},
    read,
};

/// Chunks of one file that are written at the same time.
const CHUNKS_IN_FLIGHT: usize = 4;
/// Chunks of one file that are copied at the same time; each is in memory whole.
const COPIES_IN_FLIGHT: usize = 2;
/// A write this far into a chunk is probably one of a stream that will fill it, in bytes.
const STREAM_MIN_BYTES: u32 = 512 << 10;

/// Cuts the chunks of an owned blob that lie past the file's end, then tells the service.
pub(crate) async fn trim(client: &Inner, file: &Opened) -> Result<(), FsError> {
    let Content::Blob { blob, layout } = &file.content else {
        return Ok(());
    };
    // Bytes that are cut off do not come back, so the size must not either.
    client.call(&SyncMeta {}).await?;
    let (index, within) = position(layout, file.attr.size);
    let mut first_gone = index;
    if within > 0 {
        let chunk = ChunkId { blob: *blob, index };
        client
            .chains
            .write(
                chunk,
                layout,
                WriteOp::Truncate { len_bytes: within },
                Vec::new(),
            )
            .await?;
        first_gone += 1;
    }
    client.chains.remove(*blob, layout, first_gone).await?;
    client
        .call(&Trimmed {
            inode: file.attr.inode,
            version: file.attr.data_version,
        })
        .await
}

fn position(layout: &Layout, offset: u64) -> (u32, u32) {
    let size = layout.chunk_size_bytes();
    let index = u32::try_from(offset / size).expect("the file size limit bounds the index");
    (
        index,
        u32::try_from(offset % size).expect("a chunk is at most 64 MiB"),
    )
}

/// Removes a blob that did not become anybody's; what fails is left to reclamation.
pub(crate) async fn abandon(client: &Inner, blob: BlobId, layout: Layout) {
    if let Err(error) = client.chains.remove(blob, &layout, 0).await {
        tracing::info!(%blob, %error, "an abandoned blob is left to reclamation");
    }
}

/// Copies a file's bytes to a fresh blob, chunk by chunk, keeping holes.
pub(crate) async fn copy(
    client: &Inner,
    content: &Content,
    size: u64,
    blob: BlobId,
    layout: Layout,
) -> Result<(), FsError> {
    let copies: Vec<_> = layout
        .split(blob, 0, size)
        .filter_map(|range| {
            let from = u64::from(range.chunk.index) * layout.chunk_size_bytes();
            let len = u64::from(range.len_bytes);
            let hole = plan(content, from, len)
                .iter()
                .all(|piece| matches!(piece, Piece::Hole(_)));
            (!hole).then_some(async move {
                let pieces = read::read(client, content, size, from, len).await?;
                client
                    .chains
                    .write(range.chunk, &layout, WriteOp::Write { offset: 0 }, pieces)
                    .await
            })
        })
        .collect();
    all_ended(copies, COPIES_IN_FLIGHT).await
}

/// Runs the futures, a bounded number at a time, all to their end: a write that is dropped half way might still be
/// applied after the one that replaces it. Returns the first failure.
async fn all_ended<T, F>(futures: Vec<F>, parallel: usize) -> Result<(), FsError>
where
    F: Future<Output = Result<T, FsError>>,
{
    let mut results = stream::iter(futures).buffer_unordered(parallel);
    let mut outcome = Ok(());
    while let Some(result) = results.next().await {
        if let Err(error) = result
            && outcome.is_ok()
        {
            outcome = Err(error);
        }
    }
    outcome
}

/// A run of consecutive bytes of one chunk.
#[derive(PartialEq, Debug)]
struct ChunkRun {
    offset: u32,
    len_bytes: u32,
    pieces: Vec<Bytes>,
}

/// Sorts ordered file ranges by chunk, joining neighbours into runs.
fn by_chunk(
    blob: BlobId,
    layout: &Layout,
    ranges: &[(u64, Bytes)],
) -> Vec<(ChunkId, Vec<ChunkRun>)> {
    let mut chunks: Vec<(ChunkId, Vec<ChunkRun>)> = Vec::new();
    for (offset, bytes) in ranges {
        let mut rest = bytes.clone();
        for range in layout.split(blob, *offset, length(bytes.len())) {
            let piece =
                rest.split_to(usize::try_from(range.len_bytes).expect("a u32 fits a usize"));
            if chunks.last().is_none_or(|(chunk, _)| *chunk != range.chunk) {
                chunks.push((range.chunk, Vec::new()));
            }
            let Some((_, runs)) = chunks.last_mut() else {
                continue;
            };
            match runs.last_mut() {
                Some(run) if run.offset + run.len_bytes == range.offset => {
                    run.len_bytes += range.len_bytes;
                    run.pieces.push(piece);
                }
                _ => {
                    let (offset, len_bytes) = (range.offset, range.len_bytes);
                    runs.push(ChunkRun {
                        offset,
                        len_bytes,
                        pieces: vec![piece],
                    });
                }
            }
        }
    }
    chunks
}

/// Writes file ranges to their chunks: runs of a chunk one after the other, chunks at the same time.
pub(crate) async fn write_ranges(
    client: Arc<Inner>,
    blob: BlobId,
    layout: Layout,
    ranges: Arc<Vec<(u64, Bytes)>>,
) -> Result<(), FsError> {
    let client = &client;
    let writes: Vec<_> = by_chunk(blob, &layout, &ranges)
        .into_iter()
        .map(|(chunk, runs)| async move {
            for run in runs {
                let op = WriteOp::Write { offset: run.offset };
                let expected = if run.offset < STREAM_MIN_BYTES {
                    0
                } else {
                    layout.chunk_size_bytes()
                };
                let expected = u32::try_from(expected).expect("a chunk is at most 64 MiB");
                client
                    .chains
                    .write_growing(chunk, &layout, op, run.pieces, expected)
                    .await?;
            }
            Ok(())
        })
        .collect();
    all_ended(writes, CHUNKS_IN_FLIGHT).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        chunk_size_log2: 16,
        chain_table: 1,
        stripe: 1,
        seed: 0,
    };
    const CHUNK: u64 = 1 << 16;

    #[test]
    fn neighbours_share_a_write_and_chunks_do_not() {
        let range = |offset: u64, len: usize| (offset, Bytes::from(vec![1; len]));
        let ranges = [
            range(10, 5),
            range(15, 5),
            range(30, 5),
            range(CHUNK - 2, 4),
            range(3 * CHUNK, 1),
        ];
        let shape: Vec<(u32, Vec<_>)> = by_chunk(BlobId(9), &LAYOUT, &ranges)
            .into_iter()
            .map(|(chunk, runs)| {
                let runs = runs
                    .iter()
                    .map(|run| (run.offset, run.len_bytes, run.pieces.len()));
                (chunk.index, runs.collect())
            })
            .collect();
        let expected = [
            (0, vec![(10, 10, 2), (30, 5, 1), ((1 << 16) - 2, 2, 1)]),
            (1, vec![(0, 2, 1)]),
            (3, vec![(0, 1, 1)]),
        ];
        assert_eq!(shape, expected);
    }
}
