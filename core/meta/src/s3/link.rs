//! Where a symlink leads, for a door that has none: to an object or to a directory of the same bucket, or nowhere.
//!
//! Invariant: nothing outside of the bucket's directory is ever reached. An absolute target is a path of some machine, not of
//! the namespace, so it leads nowhere; so does a relative one that climbs over the bucket's directory, even to come back.

use janusfs_kv::Txn;
use janusfs_types::{DentryName, FileKind, InodeId, limits};

use crate::{
    MetaError, posix_name,
    store::{dentry, inode},
};

/// Where a symlink leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// To a regular file.
    File(InodeId),
    /// To a directory.
    Directory(InodeId),
}

/// Follows the symlink `link`, an entry of the directory `at` in the bucket of `root`, as `path_resolution(7)` has it.
/// `None`: out of the bucket, to nothing, to a special file, or through more than [`limits::SYMLINK_HOPS_MAX`] links and
/// [`limits::SYMLINK_PARTS_MAX`] parts of their targets.
pub(super) async fn follow(
    txn: &mut impl Txn,
    root: InodeId,
    mut at: InodeId,
    link: InodeId,
) -> Result<Option<Target>, MetaError> {
    // The parts that are left to go, the next one last.
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut link = Some(link);
    let (mut hops, mut passed) = (0, 0);
    loop {
        if let Some(link) = link.take() {
            let target = inode::load(txn, link).await?.symlink;
            hops += 1;
            if hops > limits::SYMLINK_HOPS_MAX || target.starts_with(b"/") {
                return Ok(None);
            }
            let split = target.split(|&byte| byte == b'/');
            parts.extend(split.rev().map(<[u8]>::to_vec));
        }
        let Some(part) = parts.pop() else {
            return Ok(Some(Target::Directory(at)));
        };
        passed += 1;
        if passed > limits::SYMLINK_PARTS_MAX {
            return Ok(None);
        }
        match &*part {
            b"" | b"." => {}
            b".." if at == root => return Ok(None),
            b".." => at = inode::load(txn, at).await?.parent,
            name if name.len() > limits::POSIX_NAME_MAX_BYTES || name.contains(&0) => {
                return Ok(None);
            }
            name => match posix_name::find(txn, at, name).await? {
                None => return Ok(None),
                Some((_, entry)) => match entry.kind {
                    FileKind::Directory => at = entry.inode,
                    FileKind::Symlink => link = Some(entry.inode),
                    FileKind::Regular if parts.is_empty() => {
                        return Ok(Some(Target::File(entry.inode)));
                    }
                    // Not a directory, or a fifo, a socket or a device.
                    _ => return Ok(None),
                },
            },
        }
    }
}

/// Returns the directory that a symlink in the file's slot of `name` leads to.
pub(super) async fn directory_at(
    txn: &mut impl Txn,
    root: InodeId,
    at: InodeId,
    name: &DentryName,
) -> Result<Option<InodeId>, MetaError> {
    let name = DentryName::file(name.bytes())?;
    let entry = dentry::get(txn, at, &name).await?;
    let Some(entry) = entry.filter(|entry| entry.kind == FileKind::Symlink) else {
        return Ok(None);
    };
    Ok(match follow(txn, root, at, entry.inode).await? {
        Some(Target::Directory(id)) => Some(id),
        Some(Target::File(_)) | None => None,
    })
}

/// Tells whether a key that has passed the directories `way`, `links` of them by a symlink, goes on to `directory` by one: not
/// where that one is on the way, since it would contain itself.
pub(super) fn may_pass(
    mut way: impl Iterator<Item = InodeId>,
    links: usize,
    directory: InodeId,
) -> bool {
    links < limits::KEY_LINKED_DIRECTORIES_MAX && !way.any(|passed| passed == directory)
}
