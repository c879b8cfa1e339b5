//! Runs a plan: fetches its chunks, bounded in parallel, and fills holes with zeros.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use janusfs_types::{ChunkRange, Content, FsError, Layout};

use crate::{
    client::Inner,
    dirty::length,
    lease,
    plan::{Piece, plan},
};

/// Chunks of one read in flight at the same time.
const PARALLEL: usize = 6;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes followed by zeros.
struct Fetched {
    bytes: Bytes,
    zeros: u64,
}

impl Fetched {
    fn push_to(self, out: &mut Vec<Bytes>) {
        if !self.bytes.is_empty() {
            out.push(self.bytes);
        }
        let mut left = self.zeros;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            out.push(Bytes::from_static(&ZEROS[..step]));
            left -= length(step);
        }
    }
}

/// See [`crate::Client::read`].
pub(crate) async fn read(
    inner: &Inner,
    content: &Content,
    size: u64,
    offset: u64,
    len: u64,
) -> Result<Vec<Bytes>, FsError> {
    let len = len.min(size.saturating_sub(offset));
    if len == 0 {
        return Ok(Vec::new());
    }
    let generation = inner.lease.generation();
    let mut out = Vec::with_capacity(1);
    if let Some((range, layout)) = one_chunk(content, offset, len) {
        chunk(inner, range, layout).await?.push_to(&mut out);
    } else {
        let mut pieces = plan(content, offset, len);
        if pieces.len() == 1 {
            fetch(inner, content, pieces.remove(0))
                .await?
                .push_to(&mut out);
        } else {
            let fetches: Vec<_> = pieces
                .into_iter()
                .map(|piece| fetch(inner, content, piece))
                .collect();
            let mut fetched = stream::iter(fetches).buffered(PARALLEL);
            while let Some(piece) = fetched.try_next().await? {
                piece.push_to(&mut out);
            }
        }
    }
    // A chunk of a reclaimed blob reads as a hole: zeros count only while the lease is known to have held.
    if inner.lease.is_in_doubt() {
        lease::beat(inner).await?;
    }
    if inner.lease.generation() != generation {
        return Err(FsError::Stale);
    }
    Ok(out)
}

/// The usual small read, without a plan.
fn one_chunk(content: &Content, offset: u64, len: u64) -> Option<(ChunkRange, Layout)> {
    let Content::Blob { blob, layout } = content else {
        return None;
    };
    let range = layout.split(*blob, offset, len).next()?;
    (u64::from(range.len_bytes) == len).then_some((range, *layout))
}

async fn fetch(inner: &Inner, content: &Content, piece: Piece) -> Result<Fetched, FsError> {
    match (piece, content) {
        (Piece::Chunk(range, layout), _) => chunk(inner, range, layout).await,
        (Piece::Inline(range), Content::Inline(bytes)) => Ok(Fetched {
            bytes: Bytes::copy_from_slice(&bytes[range]),
            zeros: 0,
        }),
        (Piece::Inline(_), _) => unreachable!("only inline content is planned as inline"),
        (Piece::Hole(zeros), _) => Ok(Fetched {
            bytes: Bytes::new(),
            zeros,
        }),
    }
}

async fn chunk(inner: &Inner, range: ChunkRange, layout: Layout) -> Result<Fetched, FsError> {
    let (_, bytes) = inner
        .chains
        .read(range.chunk, &layout, range.offset, range.len_bytes)
        .await?;
    let zeros = u64::from(range.len_bytes) - length(bytes.len());
    Ok(Fetched { bytes, zeros })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_reply_is_filled_with_zeros() {
        let mut out = Vec::new();
        Fetched {
            bytes: Bytes::from_static(b"ab"),
            zeros: 130_000,
        }
        .push_to(&mut out);
        let whole = out.concat();
        assert_eq!(whole.len(), 130_002);
        assert_eq!(&whole[..3], b"ab\0");
        assert!(whole[2..].iter().all(|byte| *byte == 0));
    }
}
