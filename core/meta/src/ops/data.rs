//! Content and size of regular files. The bytes of blobs are the clients'; here is where they are and how many count.
//!
//! Invariant: `trim_from` is set only on blob files and then equals the size: what a crashed client left past it.

use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{
    Content, DataVersion, Extent, FileKind, FsError, InodeId, Layout,
    limits::{CHUNK_SIZE_LOG2_MAX, CHUNK_SIZE_LOG2_MIN, FILE_SIZE_MAX_BYTES, INLINE_MAX_BYTES},
};
use janusfs_wire::meta::{
    CommitWrite, Found, Opened, Spill, Trimmed, Truncate, Truncated, Unshare, WriteInline,
};

use super::{durability, found, invalid, opened};
use crate::{
    Meta, MetaError,
    meta::Versions,
    store::{
        inode::{self, InodeRecord},
        usage,
    },
    tree,
};

impl<K: Kv> Meta<K> {
    pub(crate) async fn write_inline(&self, m: WriteInline) -> Result<Found, MetaError> {
        if m.bytes.len() > INLINE_MAX_BYTES {
            return Err(FsError::TooBig.into());
        }
        check_size(m.size)?;
        if u64::try_from(m.bytes.len()).unwrap_or(u64::MAX) > m.size {
            return Err(invalid("more bytes than the size says"));
        }
        let m = &m;
        let (versions, now_ns) = (&self.versions, clock::now_ns());
        run(&*self.kv, durability(m.durable), |txn| {
            Box::pin(async move {
                let mut record = regular(txn, m.inode).await?;
                check_version(&record, m.expected)?;
                if !matches!(record.content, Content::Inline(_)) {
                    return Err(FsError::PreconditionFailed.into());
                }
                record.content = Content::Inline(m.bytes.to_vec());
                resize(txn, &mut record, m.size);
                touch(&mut record, versions, now_ns);
                inode::store(txn, &record);
                found(txn, &record).await
            })
        })
        .await
    }

    pub(crate) async fn spill(&self, m: Spill) -> Result<Opened, MetaError> {
        check_layout(m.layout)?;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut record = regular(txn, m.inode).await?;
                check_version(&record, m.expected)?;
                if !matches!(record.content, Content::Inline(_)) {
                    return Err(FsError::PreconditionFailed.into());
                }
                if m.blob != m.inode.own_blob() {
                    tree::claim_blob(txn, m.blob, m.layout, record.attr.size);
                }
                record.content = Content::Blob {
                    blob: m.blob,
                    layout: m.layout,
                };
                inode::store(txn, &record);
                opened(txn, record).await
            })
        })
        .await
    }

    pub(crate) async fn commit_write(&self, m: CommitWrite) -> Result<Found, MetaError> {
        check_size(m.end)?;
        let (versions, now_ns) = (&self.versions, clock::now_ns());
        run(&*self.kv, durability(m.durable), |txn| {
            Box::pin(async move {
                let mut record = regular(txn, m.inode).await?;
                if !matches!(record.content, Content::Blob { .. }) {
                    return Err(FsError::PreconditionFailed.into());
                }
                if m.end > record.attr.size {
                    // The writer trimmed what was past the size, or wrote over it: it asked for the size first.
                    record.trim_from = None;
                    resize(txn, &mut record, m.end);
                }
                touch(&mut record, versions, now_ns);
                inode::store(txn, &record);
                found(txn, &record).await
            })
        })
        .await
    }

    pub(crate) async fn truncate(&self, m: Truncate) -> Result<Truncated, MetaError> {
        check_size(m.size)?;
        let (versions, now_ns) = (&self.versions, clock::now_ns());
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut record = regular(txn, m.inode).await?;
                let old = record.attr.size;
                if m.size == old {
                    record.attr.times.modified_ns = now_ns;
                    record.attr.times.changed_ns = now_ns;
                } else {
                    cut(txn, &mut record, m.size).await?;
                    resize(txn, &mut record, m.size);
                    touch(&mut record, versions, now_ns);
                }
                inode::store(txn, &record);
                let trim = record.trim_from.is_some();
                Ok(Truncated {
                    file: opened(txn, record).await?,
                    trim,
                })
            })
        })
        .await
    }

    pub(crate) async fn trimmed(&self, m: Trimmed) -> Result<(), MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut record = regular(txn, m.inode).await?;
                if record.attr.data_version == m.version && record.trim_from.is_some() {
                    record.trim_from = None;
                    inode::store(txn, &record);
                }
                Ok(())
            })
        })
        .await
    }

    pub(crate) async fn unshare(&self, m: Unshare) -> Result<Opened, MetaError> {
        check_layout(m.layout)?;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut record = regular(txn, m.inode).await?;
                check_version(&record, m.expected)?;
                if !matches!(record.content, Content::Extents(_)) {
                    return Err(FsError::PreconditionFailed.into());
                }
                let size = record.attr.size;
                tree::release_content(txn, &record.content, size).await?;
                if m.blob != m.inode.own_blob() {
                    tree::claim_blob(txn, m.blob, m.layout, size);
                }
                record.content = Content::Blob {
                    blob: m.blob,
                    layout: m.layout,
                };
                inode::store(txn, &record);
                opened(txn, record).await
            })
        })
        .await
    }
}

fn check_size(size: u64) -> Result<(), MetaError> {
    if size > FILE_SIZE_MAX_BYTES {
        Err(FsError::FileTooLarge.into())
    } else {
        Ok(())
    }
}

/// Checks the layout that a client chose for a blob.
pub(crate) fn check_layout(layout: Layout) -> Result<(), MetaError> {
    let log2 = layout.chunk_size_log2;
    if !(CHUNK_SIZE_LOG2_MIN..=CHUNK_SIZE_LOG2_MAX).contains(&log2) || layout.stripe == 0 {
        return Err(invalid("layout"));
    }
    Ok(())
}

fn check_version(record: &InodeRecord, expected: DataVersion) -> Result<(), MetaError> {
    if record.attr.data_version == expected {
        Ok(())
    } else {
        Err(FsError::PreconditionFailed.into())
    }
}

async fn regular(txn: &mut impl Txn, id: InodeId) -> Result<InodeRecord, MetaError> {
    let record = inode::load(txn, id).await?;
    match record.attr.kind {
        FileKind::Regular => Ok(record),
        FileKind::Directory => Err(FsError::IsDirectory.into()),
        _ => Err(invalid("not a regular file")),
    }
}

/// Sets the size and counts the difference, if the inode still counts.
fn resize(txn: &mut impl Txn, record: &mut InodeRecord, size: u64) {
    if record.attr.nlink > 0 {
        usage::add(txn, record.root, usage::delta(record.attr.size, size), 0);
    }
    record.attr.size = size;
}

/// Marks a published change of the bytes.
fn touch(record: &mut InodeRecord, versions: &Versions, now_ns: i64) {
    record.attr.times.modified_ns = now_ns;
    record.attr.times.changed_ns = now_ns;
    record.attr.data_version = versions.after(&record.attr);
}

/// Makes the content fit a new size other than the current one, so that whatever is past it, now or after growing again,
/// reads as zeros.
async fn cut(txn: &mut impl Txn, record: &mut InodeRecord, size: u64) -> Result<(), MetaError> {
    let old = record.attr.size;
    match &mut record.content {
        Content::Inline(bytes) => {
            bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        }
        Content::Blob { .. } if size == 0 => {
            let content = std::mem::replace(&mut record.content, Content::empty());
            record.trim_from = None;
            tree::release_content(txn, &content, old).await?;
        }
        Content::Blob { .. } if size < old => record.trim_from = Some(size),
        Content::Blob { blob, layout } => {
            if let Some(len_bytes) = record.trim_from.take() {
                // Leftovers of a crashed truncation lie where the hole is to be: an extent leaves them out.
                record.content = Content::Extents(vec![Extent {
                    file_offset: 0,
                    len_bytes,
                    blob: *blob,
                    blob_offset: 0,
                    layout: *layout,
                }]);
            }
        }
        Content::Extents(extents) => {
            let kept = extents.partition_point(|extent| extent.file_offset < size);
            let gone = Content::Extents(extents.split_off(kept));
            if let Some(last) = extents.last_mut() {
                last.len_bytes = last.len_bytes.min(size - last.file_offset);
            }
            if extents.is_empty() {
                record.content = Content::empty();
            }
            tree::release_content(txn, &gone, old).await?;
        }
    }
    Ok(())
}
