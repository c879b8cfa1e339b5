//! Rename in its three modes.

use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{DentryName, FileKind, FsError, InodeId};
use janusfs_wire::meta::{Rename, RenameMode};

use super::{invalid, names::check_removable};
use crate::{
    Meta, MetaError, posix_name,
    store::{
        dentry,
        inode::{self, InodeRecord},
    },
    tree,
};

/// Deepest directory that a cycle check walks up from. Paths of `PATH_MAX` bytes have at most half as many parts;
/// deeper trees come from renames of deep subtrees and are refused as a destination.
const DEPTH_MAX: usize = 4096;

/// One end of a rename: a name in a directory and what it leads to.
struct End {
    parent: InodeId,
    /// Accounting root of what is in the directory.
    root: InodeId,
    slot: DentryName,
    record: InodeRecord,
}

impl<K: Kv> Meta<K> {
    pub(crate) async fn rename(&self, m: Rename) -> Result<(), MetaError> {
        if !(m.mode == RenameMode::Exchange && m.new_name.starts_with(posix_name::PREFIX)) {
            posix_name::check_creatable(&m.new_name)?;
        }
        let m = &m;
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let old_root = tree::directory(txn, m.parent).await?.root;
                let new_root = tree::directory(txn, m.new_parent).await?.root;
                let source = end(txn, m.parent, old_root, &m.name)
                    .await?
                    .ok_or(FsError::NotFound)?;
                let target = end(txn, m.new_parent, new_root, &m.new_name).await?;
                match (target, m.mode) {
                    (Some(_), RenameMode::NoReplace) => Err(FsError::Exists.into()),
                    (None, RenameMode::Exchange) => Err(FsError::NotFound.into()),
                    (Some(target), RenameMode::Exchange) => {
                        exchange(txn, source, target, now_ns).await
                    }
                    (target, RenameMode::Replace | RenameMode::NoReplace) => {
                        let slot = posix_name::slot(&m.new_name, source.record.attr.kind)?;
                        let to = (m.new_parent, new_root, slot);
                        replace(txn, source, target, to, now_ns).await
                    }
                }
            })
        })
        .await
    }
}

async fn end(
    txn: &mut impl Txn,
    parent: InodeId,
    root: InodeId,
    name: &[u8],
) -> Result<Option<End>, MetaError> {
    let Some((slot, dentry)) = posix_name::find(txn, parent, name).await? else {
        return Ok(None);
    };
    let record = inode::load(txn, dentry.inode).await?;
    Ok(Some(End {
        parent,
        root,
        slot,
        record,
    }))
}

async fn replace(
    txn: &mut impl Txn,
    source: End,
    target: Option<End>,
    (new_parent, new_root, slot): (InodeId, InodeId, DentryName),
    now_ns: i64,
) -> Result<(), MetaError> {
    let End {
        parent,
        slot: old_slot,
        mut record,
        ..
    } = source;
    if target
        .as_ref()
        .is_some_and(|target| target.record.attr.inode == record.attr.inode)
    {
        // Two names of one inode, or a name onto itself: POSIX says that nothing happens.
        return Ok(());
    }
    let directory = record.attr.kind == FileKind::Directory;
    if directory {
        refuse_cycle(txn, record.attr.inode, new_parent).await?;
    }
    check_roots(&record, new_root)?;
    let id = record.attr.inode;
    let kind = record.attr.kind;
    if let Some(target) = &target {
        // Before the source's entry goes: it may be the last one of the target.
        match (directory, target.record.attr.kind == FileKind::Directory) {
            (true, false) => return Err(FsError::NotDirectory.into()),
            (false, true) => return Err(FsError::IsDirectory.into()),
            (true, true) => check_removable(txn, &target.record).await?,
            (false, false) => {}
        }
    }
    tree::unlink_entry(txn, parent, &old_slot, now_ns);
    match target {
        Some(mut target) => {
            tree::replace_entry(txn, new_parent, &target.slot, id, kind, now_ns);
            tree::drop_link(txn, &mut target.record, now_ns).await?;
        }
        None => tree::link_entry(txn, new_parent, &slot, id, kind, now_ns),
    }
    settle(txn, &mut record, new_parent, new_root, now_ns);
    Ok(())
}

async fn exchange(txn: &mut impl Txn, a: End, b: End, now_ns: i64) -> Result<(), MetaError> {
    if a.record.attr.inode == b.record.attr.inode {
        return Ok(());
    }
    for (moved, to) in [(&a, &b), (&b, &a)] {
        if moved.record.attr.kind == FileKind::Directory {
            refuse_cycle(txn, moved.record.attr.inode, to.parent).await?;
        }
        check_roots(&moved.record, to.root)?;
    }
    let a_slot = posix_name::slot(b.slot.bytes(), a.record.attr.kind)?;
    let b_slot = posix_name::slot(a.slot.bytes(), b.record.attr.kind)?;
    tree::unlink_entry(txn, a.parent, &a.slot, now_ns);
    tree::unlink_entry(txn, b.parent, &b.slot, now_ns);
    for (moved, slot, to) in [(&a, a_slot, &b), (&b, b_slot, &a)] {
        // A file and a directory that change places change slots; there the name may have a row of the other door.
        if dentry::get(txn, to.parent, &slot).await?.is_some() {
            return Err(FsError::Exists.into());
        }
        let mut record = moved.record.clone();
        let attr = record.attr;
        tree::link_entry(txn, to.parent, &slot, attr.inode, attr.kind, now_ns);
        settle(txn, &mut record, to.parent, to.root, now_ns);
    }
    Ok(())
}

/// Stores a moved inode: its parent, its accounting root, its ctime.
fn settle(
    txn: &mut impl Txn,
    record: &mut InodeRecord,
    parent: InodeId,
    root: InodeId,
    now_ns: i64,
) {
    if record.attr.kind == FileKind::Directory {
        record.parent = parent;
    } else if record.root != root {
        tree::account(txn, record, -1);
        record.root = root;
        tree::account(txn, record, 1);
    }
    record.attr.times.changed_ns = now_ns;
    inode::store_attr(txn, record);
}

/// Refuses to move a directory to where its content would be accounted elsewhere. A bucket's takes its account along.
fn check_roots(record: &InodeRecord, new_root: InodeId) -> Result<(), MetaError> {
    let bound = record.attr.kind == FileKind::Directory && record.root != record.attr.inode;
    if bound && record.root != new_root {
        return Err(FsError::CrossDevice.into());
    }
    Ok(())
}

/// Refuses to move directory `moved` into itself or below. Reads every directory on the way up, so that two renames that
/// would make a cycle together conflict.
async fn refuse_cycle(txn: &mut impl Txn, moved: InodeId, into: InodeId) -> Result<(), MetaError> {
    let mut at = into;
    for _ in 0..DEPTH_MAX {
        if at == moved {
            return Err(invalid("a directory cannot move below itself"));
        }
        if at == InodeId::ROOT {
            return Ok(());
        }
        at = inode::load_head(txn, at).await?.parent;
    }
    Err(invalid("the destination is too deep"))
}
