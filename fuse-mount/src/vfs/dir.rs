//! Reading directories.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use janusfs_client::CacheLease;
use janusfs_env::clock;
use janusfs_types::{Attr, FsError, InodeId, limits::READDIR_PAGE_MAX};
use janusfs_wire::meta::{DirEntry, DirPage, ReadDir, SyncMeta};
use parking_lot::Mutex;

use super::{Vfs, VfsError};
use crate::dir_cache::{DirectoryStream, Next};

/// Entries fetched at once when their attributes are wanted: about what one reply to the kernel holds (32 KiB), since
/// those that do not fit are fetched again if anything changed meanwhile.
const PLUS_PAGE_ENTRIES: u32 = 256;
/// For how long a fetched page's attributes may be handed out.
const ATTRS_FRESH: Duration = Duration::from_millis(200);

/// An open directory.
pub(crate) struct OpenDirectory {
    inode: InodeId,
    stream: Mutex<DirectoryStream<Stamp>>,
}

/// When a page was fetched.
#[derive(Clone, Copy)]
struct Stamp {
    at: Instant,
    changes: u64,
    lease: CacheLease,
}

/// Entries to hand out; those that do not fit are asked for again.
pub(crate) struct Entries {
    page: Arc<Vec<DirEntry>>,
    from: usize,
    lease: CacheLease,
}

impl Entries {
    /// Returns for how long the kernel may believe them.
    pub(crate) fn lease(&self) -> CacheLease {
        self.lease
    }

    /// Returns the entries with the attributes as this client sees them.
    pub(crate) fn iter<'e>(&'e self, vfs: &'e Vfs) -> impl Iterator<Item = (&'e [u8], Attr)> {
        self.page[self.from..]
            .iter()
            .map(|entry| (&entry.name[..], vfs.client.overlay(entry.attr)))
    }
}

impl Vfs {
    /// Opens a directory without asking anyone: the kernel has just looked it up and checked its mode.
    pub(crate) fn open_directory(&self, inode: InodeId) -> Result<u64, VfsError> {
        let place = self.directories.reserve().ok_or(VfsError::TooManyHandles)?;
        Ok(place.fill(OpenDirectory {
            inode,
            stream: Mutex::new(DirectoryStream::new()),
        }))
    }

    /// Starts a handle over.
    pub(crate) fn rewind_directory(&self, handle: u64) -> Result<(), VfsError> {
        let directory = self.directories.get(handle).ok_or(VfsError::BadHandle)?;
        directory.stream.lock().rewind();
        Ok(())
    }

    /// Returns entries from `position` on; none at the end. With `plus`, their attributes are at most
    /// [`ATTRS_FRESH`] old and not older than any change through this mount.
    pub(crate) async fn read_directory(
        &self,
        handle: u64,
        position: u64,
        plus: bool,
    ) -> Result<Option<Entries>, VfsError> {
        let directory = self.directories.get(handle).ok_or(VfsError::BadHandle)?;
        let position = usize::try_from(position)
            .map_err(|_| FsError::Invalid("a directory position out of range".into()))?;
        let changes = self.changes.load(Ordering::Relaxed);
        let fresh = |stamp: &Stamp| {
            !plus || stamp.changes == changes && clock::now() < stamp.at + ATTRS_FRESH
        };
        let after = match directory.stream.lock().next(position, fresh) {
            Next::Serve(page, from, Stamp { lease, .. }) => {
                return Ok(Some(Entries { page, from, lease }));
            }
            Next::End => return Ok(None),
            Next::Fetch(after) => after,
        };
        let at = clock::now();
        let limit = if plus {
            PLUS_PAGE_ENTRIES
        } else {
            READDIR_PAGE_MAX
        };
        let message = ReadDir {
            inode: directory.inode,
            after,
            limit,
        };
        let (page, lease) = match self.client.call_leased(&message).await {
            Ok(answer) => answer,
            // A removed directory that is still open is empty.
            Err(FsError::NotFound | FsError::Stale) => {
                let (entries, end) = (Vec::new(), true);
                (DirPage { entries, end }, CacheLease::none())
            }
            Err(error) => return Err(error.into()),
        };
        let stamp = Stamp { at, changes, lease };
        let mut stream = directory.stream.lock();
        stream.accept(position, page, stamp);
        // Only a rewind by another thread in between leaves anything else to do, and then its order is undefined.
        Ok(match stream.next(position, |_| true) {
            Next::Serve(page, from, Stamp { lease, .. }) => Some(Entries { page, from, lease }),
            Next::End | Next::Fetch(_) => None,
        })
    }

    pub(crate) fn release_directory(&self, handle: u64) -> Result<(), VfsError> {
        self.directories
            .remove(handle)
            .map(drop)
            .ok_or(VfsError::BadHandle)
    }

    /// Returns when every name that was made or removed before is on stable storage.
    pub(crate) async fn sync_directory(&self) -> Result<(), VfsError> {
        Ok(self.client.call(&SyncMeta {}).await?)
    }
}
