//! Bytes by reference: what copies and parts hold of a source.
//!
//! Invariant: one reference per extent (`tree`). A source that owns its blob alone gives that up: afterwards it holds
//! the blob as an extent too, so a writer copies before it writes. Its bytes and data version stay.

use janusfs_kv::Txn;
use janusfs_types::{Content, Extent, FsError, limits};

use crate::{
    MetaError,
    store::{
        self,
        inode::{self, InodeRecord},
        session,
    },
    tree,
};

/// Returns content that refers to a range of a file's bytes, and takes the references. The range is inside the file.
///
/// # Errors
/// [`FsError::Unsupported`] while the file is open for writing or a truncation of it is not finished: its bytes can be
/// copied then, but not shared.
pub(super) async fn share_range(
    txn: &mut impl Txn,
    source: &mut InodeRecord,
    offset: u64,
    len_bytes: u64,
) -> Result<Content, MetaError> {
    if len_bytes == 0 {
        return Ok(Content::empty());
    }
    if let Content::Blob { blob, layout } = source.content {
        check_unwritten(txn, source).await?;
        let whole = Extent {
            file_offset: 0,
            len_bytes: source.attr.size,
            blob,
            blob_offset: 0,
            layout,
        };
        source.content = Content::Extents(vec![whole]);
        source.trim_from = None;
        inode::store(txn, source);
        if source.attr.inode.own_blob() != blob && store::blob::load(txn, blob).await?.is_none() {
            return Err(FsError::Corrupt(format!("{blob} has no row")).into());
        }
    }
    match &source.content {
        Content::Inline(bytes) => Ok(Content::Inline(slice(bytes, offset, len_bytes))),
        Content::Blob { .. } => unreachable!("an owned blob became an extent above"),
        Content::Extents(extents) => {
            let taken = cut(extents, offset, len_bytes);
            for extent in &taken {
                let end = extent.blob_offset + extent.len_bytes;
                tree::share_blob(txn, extent.blob, extent.layout, end, 1).await?;
            }
            Ok(if taken.is_empty() {
                Content::empty()
            } else {
                Content::Extents(taken)
            })
        }
    }
}

/// Refuses a file that somebody may be writing in place. A write-open that comes meanwhile is a conflict.
async fn check_unwritten(txn: &mut impl Txn, source: &InodeRecord) -> Result<(), MetaError> {
    if source.trim_from.is_some_and(|from| from < source.attr.size) {
        return Err(FsError::Unsupported("sharing a file that is being truncated".into()).into());
    }
    let prefix = store::key(session::KIND, &[&source.attr.inode.0.to_be_bytes()]);
    if txn
        .range(&prefix, &store::prefix_end(&prefix), 1)
        .await?
        .is_empty()
    {
        return Ok(());
    }
    Err(FsError::Unsupported("sharing a file that is open for writing".into()).into())
}

fn slice(bytes: &[u8], offset: u64, len_bytes: u64) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
    let rest = bytes.get(start..).unwrap_or_default();
    rest[..len.min(rest.len())].to_vec()
}

/// Returns the parts of extents inside a range of the file, moved so that the range begins at 0.
fn cut(extents: &[Extent], offset: u64, len_bytes: u64) -> Vec<Extent> {
    let end = offset.saturating_add(len_bytes);
    extents
        .iter()
        .filter_map(|extent| {
            let first = extent.file_offset.max(offset);
            let last = (extent.file_offset + extent.len_bytes).min(end);
            (first < last).then(|| Extent {
                file_offset: first - offset,
                len_bytes: last - first,
                blob_offset: extent.blob_offset + (first - extent.file_offset),
                ..*extent
            })
        })
        .collect()
}

/// Joins contents of given sizes end to end; the references move along.
///
/// # Errors
/// [`FsError::Invalid`] `InlinePart` when bytes that are inline would have to be an extent; [`FsError::FileTooLarge`].
pub(super) fn concatenate(contents: Vec<(Content, u64)>) -> Result<(Content, u64), FsError> {
    let mut contents: Vec<(Content, u64)> =
        contents.into_iter().filter(|(_, size)| *size > 0).collect();
    let total = contents
        .iter()
        .try_fold(0u64, |sum, (_, size)| sum.checked_add(*size))
        .filter(|total| *total <= limits::FILE_SIZE_MAX_BYTES)
        .ok_or(FsError::FileTooLarge)?;
    if contents.len() <= 1 {
        let content = contents
            .pop()
            .map_or_else(Content::empty, |(content, _)| content);
        return Ok((content, total));
    }
    let inline_max = u64::try_from(limits::INLINE_MAX_BYTES).unwrap_or(u64::MAX);
    if total <= inline_max
        && contents
            .iter()
            .all(|(content, _)| matches!(content, Content::Inline(_)))
    {
        let mut bytes = Vec::new();
        let mut end = 0;
        for (content, size) in contents {
            if let Content::Inline(part) = content {
                bytes.extend_from_slice(&part);
            }
            end += usize::try_from(size).map_err(|_| FsError::FileTooLarge)?;
            bytes.resize(end, 0);
        }
        return Ok((Content::Inline(bytes), total));
    }
    let mut extents = Vec::with_capacity(contents.len());
    let mut at = 0;
    for (content, size) in contents {
        match content {
            // Only a hole.
            Content::Inline(bytes) if bytes.is_empty() => {}
            Content::Inline(_) => return Err(FsError::Invalid("InlinePart".into())),
            other => {
                extents.extend(
                    tree::references(&other, size)
                        .into_iter()
                        .map(|extent| Extent {
                            file_offset: extent.file_offset + at,
                            ..extent
                        }),
                )
            }
        }
        at += size;
    }
    Ok((
        if extents.is_empty() {
            Content::empty()
        } else {
            Content::Extents(extents)
        },
        total,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use janusfs_types::{BlobId, Layout};

    const LAYOUT: Layout = Layout {
        chunk_size_log2: 16,
        chain_table: 1,
        stripe: 1,
        seed: 0,
    };

    fn extent(file_offset: u64, len_bytes: u64, blob: u64, blob_offset: u64) -> Extent {
        Extent {
            file_offset,
            len_bytes,
            blob: BlobId(blob),
            blob_offset,
            layout: LAYOUT,
        }
    }

    #[test]
    fn a_range_cuts_extents_on_both_sides() {
        let extents = [
            extent(0, 10, 1, 5),
            extent(10, 10, 2, 0),
            extent(30, 10, 3, 0),
        ];
        assert_eq!(
            cut(&extents, 4, 12),
            [extent(0, 6, 1, 9), extent(6, 6, 2, 0)]
        );
        assert_eq!(
            cut(&extents, 15, 20),
            [extent(0, 5, 2, 5), extent(15, 5, 3, 0)]
        );
        assert_eq!(cut(&extents, 20, 10), []);
    }

    #[test]
    fn contents_join_end_to_end() {
        let blob = |id| Content::Blob {
            blob: BlobId(id),
            layout: LAYOUT,
        };
        let inline = |text: &str| Content::Inline(text.into());
        let joined = concatenate(vec![
            (blob(1), 7),
            (Content::Extents(vec![extent(2, 3, 2, 9)]), 5),
        ]);
        let extents = Content::Extents(vec![extent(0, 7, 1, 0), extent(9, 3, 2, 9)]);
        assert_eq!(joined, Ok((extents, 12)));
        assert_eq!(concatenate(vec![(blob(1), 7)]), Ok((blob(1), 7)));
        assert_eq!(concatenate(vec![]), Ok((Content::empty(), 0)));
        let joined = concatenate(vec![(inline("ab"), 3), (inline("c"), 1)]);
        assert_eq!(joined, Ok((inline("ab\0c"), 4)));
        let mixed = concatenate(vec![(blob(1), 7), (inline("c"), 1)]);
        assert_eq!(mixed, Err(FsError::Invalid("InlinePart".into())));
        let large = concatenate(vec![(blob(1), 1 << 47), (blob(2), 1)]);
        assert_eq!(large, Err(FsError::FileTooLarge));
    }
}
