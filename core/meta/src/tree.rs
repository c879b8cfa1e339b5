//! What both doors do to the tree: make inodes, add and remove entries, count links and usage, give up content.
//!
//! Invariants:
//! - An entry, its directory's figures and the child's link count change in one transaction.
//! - An inode with a link is counted in its accounting root; [`orphan_inode`] takes it out and files it in the current epoch.
//! - Whoever takes a blob into use that is not the namesake of its inode calls [`claim_blob`]; whoever refers to a blob once more
//!   calls [`share_blob`]; whoever stops calls [`release_content`], which waits for readers. One reference per extent.

use janusfs_kv::Txn;
use janusfs_types::{
    Attr, BlobId, Content, DataVersion, DentryName, Extent, FileKind, FsError, InodeId, Layout,
    Times,
};

use crate::{
    MetaError,
    store::{
        blob::{self, BlobRecord},
        dentry::{self, Dentry},
        dir_stat, epoch,
        inode::{self, InodeRecord},
        orphan, usage,
    },
};

/// What a new inode is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewInode {
    /// Its number.
    pub(crate) id: InodeId,
    /// Its kind.
    pub(crate) kind: FileKind,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Accounting root: the parent's record has it.
    pub(crate) root: InodeId,
    /// Now.
    pub(crate) now_ns: i64,
}

/// Returns a fresh inode with one link (a directory: 2), no content, and for a directory `explicit` unset and `parent` 0.
pub(crate) fn new_inode(new: NewInode) -> InodeRecord {
    let NewInode {
        id,
        kind,
        mode,
        uid,
        gid,
        root,
        now_ns,
    } = new;
    let directory = kind == FileKind::Directory;
    let times = Times {
        accessed_ns: now_ns,
        modified_ns: now_ns,
        changed_ns: now_ns,
        born_ns: now_ns,
    };
    InodeRecord {
        attr: Attr {
            inode: id,
            kind,
            mode: mode & 0o7777,
            uid,
            gid,
            nlink: if directory { 2 } else { 1 },
            size: 0,
            rdev: 0,
            times,
            data_version: DataVersion(1),
        },
        content: Content::empty(),
        root,
        parent: InodeId(0),
        explicit: false,
        symlink: Vec::new(),
        trim_from: None,
        extent_rows: 0,
    }
}

/// Reads a directory that entries are to be looked up in or added to.
///
/// # Errors
/// `NotFound` when it is gone or removed, `NotDirectory`.
pub(crate) async fn directory(txn: &mut impl Txn, id: InodeId) -> Result<InodeRecord, MetaError> {
    let record = inode::load(txn, id).await?;
    if record.attr.kind != FileKind::Directory {
        return Err(FsError::NotDirectory.into());
    }
    if record.attr.nlink == 0 {
        return Err(FsError::NotFound.into());
    }
    Ok(record)
}

/// Returns attributes as callers see them: a directory's with what its entries did to it. Its size is its entry count.
pub(crate) async fn attr_of(txn: &mut impl Txn, stored: Attr) -> Result<Attr, MetaError> {
    if stored.kind != FileKind::Directory {
        return Ok(stored);
    }
    let stat = dir_stat::read(txn, stored.inode).await?;
    let mut attr = stored;
    attr.size = stat.entries;
    attr.times.modified_ns = stat.modified_ns.unwrap_or(stored.times.modified_ns);
    attr.times.changed_ns = stat
        .changed_ns
        .unwrap_or(i64::MIN)
        .max(stored.times.changed_ns);
    Ok(attr)
}

/// Adds an inode to the figures of its accounting root, or takes it out.
pub(crate) fn account(txn: &mut impl Txn, record: &InodeRecord, sign: i64) {
    if record.root == record.attr.inode {
        return;
    }
    usage::add(
        txn,
        record.root,
        sign * usage::delta(0, counted_bytes(record)),
        sign,
    );
}

/// Returns the bytes that an inode counts with.
pub(crate) fn counted_bytes(record: &InodeRecord) -> u64 {
    if record.attr.kind == FileKind::Regular {
        record.attr.size
    } else {
        0
    }
}

/// Stores a fresh inode, counts it and gives it its first name. The name's slot must be free.
pub(crate) fn publish(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &DentryName,
    record: &mut InodeRecord,
    now_ns: i64,
) {
    if record.attr.kind == FileKind::Directory {
        record.parent = parent;
    }
    inode::store(txn, record);
    account(txn, record, 1);
    link_entry(
        txn,
        parent,
        name,
        record.attr.inode,
        record.attr.kind,
        now_ns,
    );
}

/// Adds an entry and notes it in its directory. Link count and usage are the caller's. The slot must be free.
pub(crate) fn link_entry(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &DentryName,
    id: InodeId,
    kind: FileKind,
    now_ns: i64,
) {
    dentry::put(txn, parent, name, Dentry { inode: id, kind });
    dir_stat::touch(txn, parent, 1, now_ns);
}

/// Points an existing entry at another inode of the same slot. Links of both are the caller's.
pub(crate) fn replace_entry(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &DentryName,
    id: InodeId,
    kind: FileKind,
    now_ns: i64,
) {
    dentry::put(txn, parent, name, Dentry { inode: id, kind });
    dir_stat::touch(txn, parent, 0, now_ns);
}

/// Removes an entry and notes it in its directory. The child's link is the caller's: [`drop_link`].
pub(crate) fn unlink_entry(txn: &mut impl Txn, parent: InodeId, name: &DentryName, now_ns: i64) {
    dentry::remove(txn, parent, name);
    dir_stat::touch(txn, parent, -1, now_ns);
}

/// Takes one link from an inode whose entry was removed or replaced; with the last one (or a directory's only one) it becomes an orphan.
pub(crate) async fn drop_link(
    txn: &mut impl Txn,
    record: &mut InodeRecord,
    now_ns: i64,
) -> Result<(), MetaError> {
    record.attr.times.changed_ns = now_ns;
    if record.attr.kind != FileKind::Directory && record.attr.nlink > 1 {
        record.attr.nlink -= 1;
        inode::store_attr(txn, record);
        return Ok(());
    }
    orphan_inode(txn, record).await
}

/// Files an inode that has lost its last name: no links, no longer counted, reclaimed once no reader is left.
pub(crate) async fn orphan_inode(
    txn: &mut impl Txn,
    record: &mut InodeRecord,
) -> Result<(), MetaError> {
    account(txn, record, -1);
    record.attr.nlink = 0;
    inode::store_attr(txn, record);
    let epoch = epoch::current(txn).await?;
    orphan::put_inode(txn, epoch, record.attr.inode);
    Ok(())
}

/// Notes the first reference to a blob that is not the namesake of the inode that holds it (parts, spilled files).
pub(crate) fn claim_blob(txn: &mut impl Txn, id: BlobId, layout: Layout, len_bytes: u64) {
    blob::store(
        txn,
        id,
        &BlobRecord {
            layout,
            len_bytes,
            refs: 1,
        },
    );
}

/// Notes `refs` more references to a blob that has at least one.
pub(crate) async fn share_blob(
    txn: &mut impl Txn,
    id: BlobId,
    layout: Layout,
    len_bytes: u64,
    refs: u64,
) -> Result<(), MetaError> {
    let before = blob::load(txn, id).await?;
    let record = match before {
        Some(before) => BlobRecord {
            layout,
            len_bytes: before.len_bytes.max(len_bytes),
            refs: before.refs + refs,
        },
        None => BlobRecord {
            layout,
            len_bytes,
            refs: 1 + refs,
        },
    };
    blob::store(txn, id, &record);
    Ok(())
}

/// Returns the references of a content: one per extent, one for an owned blob.
pub(crate) fn references(content: &Content, size: u64) -> Vec<Extent> {
    match content {
        Content::Inline(_) => Vec::new(),
        Content::Blob { blob, layout } => vec![Extent {
            file_offset: 0,
            len_bytes: size,
            blob: *blob,
            blob_offset: 0,
            layout: *layout,
        }],
        Content::Extents(extents) => extents.clone(),
    }
}

/// Gives up content that a living inode or part held: its blobs are dropped once today's readers are gone. Not for an
/// orphaned inode, which gives up its content when it is reclaimed.
pub(crate) async fn release_content(
    txn: &mut impl Txn,
    content: &Content,
    size: u64,
) -> Result<(), MetaError> {
    let references = references(content, size);
    if references.is_empty() {
        return Ok(());
    }
    let epoch = epoch::current(txn).await?;
    for extent in references {
        if blob::load(txn, extent.blob).await?.is_none() {
            // The waiting reference is not the namesake inode's any more.
            claim_blob(
                txn,
                extent.blob,
                extent.layout,
                extent.blob_offset + extent.len_bytes,
            );
        }
        orphan::add_blob(txn, epoch, extent.blob, extent.layout, 1).await?;
    }
    Ok(())
}

/// Drops references to a blob for good; with the last one it is marked dead and its chunks may be removed.
pub(crate) async fn drop_references(
    txn: &mut impl Txn,
    id: BlobId,
    layout: Layout,
    refs: u64,
) -> Result<(), MetaError> {
    let before = blob::load(txn, id).await?;
    let held = before.map_or(1, |before| before.refs);
    match before {
        Some(before) if held > refs => {
            blob::store(
                txn,
                id,
                &BlobRecord {
                    refs: held - refs,
                    ..before
                },
            );
        }
        _ => {
            blob::remove(txn, id);
            orphan::put_dead(txn, id, layout);
        }
    }
    Ok(())
}
