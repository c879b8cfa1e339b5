//! What a mount does, told without FUSE: inodes, handles and bytes in, attributes and bytes out.
//!
//! Owns the tables of open handles. Every method is async and runs to completion on the thread that polls it; there are
//! no tasks here. No lock is held across an await.
//!
//! Set-user-id and set-group-id bits (`FUSE_HANDLE_KILLPRIV_V2` makes them ours): a write or truncation by anyone but
//! uid 0, and every change of owner, drops them. A handle looks at the mode when it opens and again after any `chmod`
//! through this mount that set such a bit (`privileged`).

mod dir;
mod io;
mod namespace;
mod xattr;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use janusfs_client::{CacheLease, Client};
use janusfs_types::{Attr, FileKind, FsError, InodeId, limits};

use crate::{
    handles::{HANDLES_MAX, HandleTable},
    kernel_cache::KernelCache,
    page_cache::CachedVersions,
};

pub(crate) use dir::Entries;
pub(crate) use io::{CreateRequest, OpenFlags, OpenReply, WriteOrigin};
pub(crate) use namespace::AttrUpdate;

/// Names that begin so stand for rows that POSIX cannot name; `core/meta` decodes them.
const RESERVED_PREFIX: &[u8] = b".janusfs-s3:";

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum VfsError {
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error("the mount has {HANDLES_MAX} open handles, which is its limit")]
    TooManyHandles,
    #[error("no such handle")]
    BadHandle,
}

impl VfsError {
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Fs(error) => error.errno(),
            Self::TooManyHandles => 23, // ENFILE
            Self::BadHandle => 9,       // EBADF
        }
    }

    /// Tells whether programs provoke this all day: probing for a name or an xattr.
    pub(crate) fn is_everyday(&self) -> bool {
        matches!(self, Self::Fs(FsError::NotFound | FsError::NoXattr))
    }
}

/// An answer, and for how long the kernel may believe it.
#[derive(Clone, Debug)]
pub(crate) struct Leased<T> {
    pub(crate) value: T,
    pub(crate) lease: CacheLease,
}

/// A mounted namespace.
pub(crate) struct Vfs {
    client: Client,
    files: HandleTable<io::OpenFile>,
    directories: HandleTable<dir::OpenDirectory>,
    cached: CachedVersions,
    /// The kernel's cache; absent while nothing is mounted.
    kernel: OnceLock<Arc<KernelCache>>,
    /// Counts changes made through this mount: a directory page fetched before one is not handed out after it, or the
    /// kernel would take an old size, or a name that is gone, for the truth.
    changes: AtomicU64,
    /// Counts `chmod`s through this mount that set a set-user-id or set-group-id bit.
    privileged: AtomicU64,
    sync: bool,
}

impl Vfs {
    pub(crate) fn new(client: Client, sync: bool) -> Self {
        Self {
            client,
            files: HandleTable::new(HANDLES_MAX),
            directories: HandleTable::new(HANDLES_MAX),
            cached: CachedVersions::default(),
            kernel: OnceLock::new(),
            changes: AtomicU64::new(0),
            privileged: AtomicU64::new(0),
            sync,
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Publishes what every open file still buffers.
    pub(crate) async fn publish_all(&self) {
        for file in self.files.all() {
            file.publish_at_end().await;
        }
    }

    /// Closes every handle that the kernel did not release before it went away.
    pub(crate) async fn close_all(&self) {
        self.directories.drain();
        for file in self.files.drain() {
            file.close_at_end().await;
        }
    }

    /// Takes up the mount's kernel cache, once.
    pub(crate) fn mounted(&self, kernel: Arc<KernelCache>) {
        let _ = self.kernel.set(kernel);
    }

    pub(crate) fn kernel(&self) -> Option<&KernelCache> {
        self.kernel.get().map(Arc::as_ref)
    }

    /// Has the kernel ask again for attributes that were changed without its knowing: times set by a publication, bits
    /// dropped by a write.
    fn forget_attr(&self, inode: InodeId) {
        if let Some(kernel) = self.kernel() {
            kernel.forget_attr(inode);
        }
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Holds a name to POSIX' length unless it is the reserved form of one that S3 made.
fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > limits::POSIX_NAME_MAX_BYTES && !name.starts_with(RESERVED_PREFIX) {
        return Err(FsError::NameTooLong);
    }
    Ok(())
}

/// An inode number that leads nowhere any more: `ESTALE` makes the kernel walk the path again, once.
fn by_inode<T>(result: Result<T, FsError>) -> Result<T, FsError> {
    result.map_err(|error| match error {
        FsError::NotFound => FsError::Stale,
        other => other,
    })
}

/// Returns the mode without set-user-id, and without set-group-id if the group may execute (else that bit is a mark of
/// mandatory locking); `None` when nothing changes. Directories keep theirs.
fn without_privileges(kind: FileKind, mode: u32) -> Option<u32> {
    if kind == FileKind::Directory {
        return None;
    }
    let group = if mode & 0o010 != 0 { 0o2000 } else { 0 };
    let kept = mode & !(0o4000 | group);
    (kept != mode).then_some(kept)
}

fn has_privileges(attr: &Attr) -> bool {
    without_privileges(attr.kind, attr.mode).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_are_linux() {
        assert_eq!(
            VfsError::TooManyHandles.errno(),
            rustix::io::Errno::NFILE.raw_os_error()
        );
        assert_eq!(
            VfsError::BadHandle.errno(),
            rustix::io::Errno::BADF.raw_os_error()
        );
        for (error, errno) in [
            (FsError::Stale, rustix::io::Errno::STALE),
            (FsError::NameReserved, rustix::io::Errno::PERM),
            (FsError::NoXattr, rustix::io::Errno::NODATA),
            (FsError::TooBig, rustix::io::Errno::RANGE),
            (FsError::NameTooLong, rustix::io::Errno::NAMETOOLONG),
            (FsError::NotEmpty, rustix::io::Errno::NOTEMPTY),
            (FsError::CrossDevice, rustix::io::Errno::XDEV),
            (FsError::QuotaExceeded, rustix::io::Errno::DQUOT),
            (
                FsError::Unsupported("this".into()),
                rustix::io::Errno::OPNOTSUPP,
            ),
        ] {
            assert_eq!(VfsError::from(error).errno(), errno.raw_os_error());
        }
    }

    #[test]
    fn an_inode_that_is_gone_is_stale() {
        assert_eq!(by_inode::<()>(Err(FsError::NotFound)), Err(FsError::Stale));
        assert_eq!(by_inode::<()>(Err(FsError::Busy)), Err(FsError::Busy));
        assert_eq!(by_inode(Ok(1)), Ok(1));
    }

    #[test]
    fn names_are_held_to_posix_length() {
        assert_eq!(check_name(&[b'x'; 255]), Ok(()));
        assert_eq!(check_name(&[b'x'; 256]), Err(FsError::NameTooLong));
        let reserved = [RESERVED_PREFIX, &[b'x'; 300]].concat();
        assert_eq!(check_name(&reserved), Ok(()));
    }

    #[test]
    fn privileges_are_dropped_as_linux_does() {
        let drop = |mode| without_privileges(FileKind::Regular, mode);
        assert_eq!(drop(0o6755), Some(0o755));
        assert_eq!(
            drop(0o2745),
            None,
            "without group execute it marks mandatory locking"
        );
        assert_eq!(drop(0o6745), Some(0o2745));
        assert_eq!(drop(0o1777), None);
        assert_eq!(without_privileges(FileKind::Directory, 0o6755), None);
    }
}
