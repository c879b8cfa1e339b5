//! Open files: where opening modes become the client's calls and the kernel's hints.
//!
//! Every opened file is closed exactly once: by its release, or at unmount. An append-open bypasses the page cache: the
//! kernel would fill a page at the end that it knows, while the bytes land at the end that is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use janusfs_client::File;
use janusfs_types::{Attr, Credentials, FileKind, FsError, InodeId};
use janusfs_wire::meta::{AttrChange, Create, SetAttr};
use rustix::fs::OFlags;

use super::{Leased, Vfs, VfsError, by_inode, check_name, has_privileges, without_privileges};

/// How a file is opened, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpenFlags {
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) truncate: bool,
    pub(crate) exclusive: bool,
    pub(crate) direct: bool,
    pub(crate) sync: bool,
}

impl OpenFlags {
    /// Reads `open(2)`'s flags.
    pub(crate) fn from_raw(raw: i32) -> Self {
        let flags = OFlags::from_bits_retain(raw.cast_unsigned());
        let write = matches!(flags & OFlags::RWMODE, OFlags::WRONLY | OFlags::RDWR);
        Self {
            write,
            append: write && flags.contains(OFlags::APPEND),
            truncate: flags.contains(OFlags::TRUNC),
            exclusive: flags.contains(OFlags::EXCL),
            direct: flags.contains(OFlags::DIRECT),
            sync: write && flags.contains(OFlags::DSYNC),
        }
    }
}

/// What the kernel is told about an opened file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpenReply {
    pub(crate) handle: u64,
    /// Every read and write comes here, past the page cache.
    pub(crate) direct: bool,
    /// Writes through this handle may come in parallel.
    pub(crate) parallel_writes: bool,
    /// The cached pages are still right.
    pub(crate) keep_cache: bool,
    /// A close needs no message.
    pub(crate) no_flush: bool,
}

/// A file to be created and opened.
pub(crate) struct CreateRequest<'n> {
    pub(crate) parent: InodeId,
    pub(crate) name: &'n [u8],
    pub(crate) mode: u32,
    pub(crate) flags: OpenFlags,
    pub(crate) who: Credentials,
}

/// Where a write comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WriteOrigin {
    /// The kernel writes back a mapped page: the offset is meant, even if the handle appends.
    pub(crate) page_cache: bool,
    /// The writer may not keep set-user-id and set-group-id bits.
    pub(crate) drops_privileges: bool,
}

/// An open file.
pub(crate) struct OpenFile {
    inode: InodeId,
    file: File,
    flags: OpenFlags,
    /// [`Vfs::privileged`] when the mode was last seen without privileges; [`PRIVILEGED`] if it had some.
    unprivileged_at: AtomicU64,
    /// The data version whose attributes the kernel was last told to ask for.
    told: AtomicU64,
}

const PRIVILEGED: u64 = u64::MAX;

impl OpenFile {
    pub(super) async fn publish_at_end(&self) {
        if let Err(error) = self.file.flush().await {
            tracing::error!(inode = %self.inode, %error, "buffered bytes were not published");
        }
    }

    pub(super) async fn close_at_end(&self) {
        if let Err(error) = self.file.close().await {
            tracing::error!(inode = %self.inode, %error, "the file did not close cleanly");
        }
    }
}

impl Vfs {
    pub(crate) async fn open(
        &self,
        inode: InodeId,
        flags: OpenFlags,
        caller: &Credentials,
    ) -> Result<OpenReply, VfsError> {
        let place = self.files.reserve().ok_or(VfsError::TooManyHandles)?;
        if flags.truncate {
            self.truncate_for_open(inode, caller).await?;
        }
        let privileged = self.privileged.load(Ordering::Acquire);
        let file = by_inode(self.client.open(inode, flags.write).await)?;
        let attr = file.attr();
        let keep_cache = self.cached.opened(inode, attr.data_version);
        let handle = place.fill(open_file(file, &attr, flags, privileged));
        Ok(open_reply(handle, flags, keep_cache))
    }

    pub(crate) async fn create(
        &self,
        request: CreateRequest<'_>,
    ) -> Result<(Leased<Attr>, OpenReply), VfsError> {
        let CreateRequest {
            parent,
            name,
            mode,
            flags,
            who,
        } = request;
        check_name(name)?;
        let place = self.files.reserve().ok_or(VfsError::TooManyHandles)?;
        let privileged = self.privileged.load(Ordering::Acquire);
        let create = Create {
            parent,
            name: Bytes::copy_from_slice(name),
            kind: FileKind::Regular,
            mode: mode & 0o7777,
            rdev: 0,
            who: who.clone(),
            exclusive: flags.exclusive,
        };
        let (opened, lease) = self.client.call_leased(&create).await?;
        self.changed();
        let inode = opened.attr.inode;
        // Without O_EXCL somebody may have made the file after the kernel looked; then this is an open of it.
        let file = if flags.truncate && opened.attr.size > 0 {
            self.truncate_for_open(inode, &who).await?;
            self.client.open(inode, flags.write).await?
        } else {
            self.client.open_created(opened, flags.write).await?
        };
        self.settle().await?;
        let attr = file.attr();
        let keep_cache = self.cached.opened(inode, attr.data_version);
        let handle = place.fill(open_file(file, &attr, flags, privileged));
        let value = self.client.overlay(attr);
        Ok((
            Leased { value, lease },
            open_reply(handle, flags, keep_cache),
        ))
    }

    /// Returns up to `len` bytes, fewer only at the end of the file.
    pub(crate) async fn read(
        &self,
        handle: u64,
        offset: u64,
        len: u32,
    ) -> Result<Vec<Bytes>, VfsError> {
        let open = self.open_file(handle)?;
        Ok(open.file.read(offset, len).await?)
    }

    /// Takes all of `data`; returns its length.
    pub(crate) async fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        origin: WriteOrigin,
    ) -> Result<u32, VfsError> {
        let open = self.open_file(handle)?;
        let len = u32::try_from(data.len())
            .map_err(|_| FsError::Invalid("a write of 4 GiB or more".into()))?;
        self.changed();
        if origin.drops_privileges {
            self.drop_privileges(&open).await?;
        }
        if open.flags.append && !origin.page_cache {
            open.file.append(data).await?;
        } else {
            open.file.write(offset, data).await?;
        }
        if open.flags.sync || self.sync {
            open.file.fsync().await?;
            self.published(&open);
        }
        self.changed();
        Ok(len)
    }

    /// One descriptor of the handle was closed: what it wrote becomes visible to everyone.
    pub(crate) async fn flush(&self, handle: u64) -> Result<(), VfsError> {
        let open = self.open_file(handle)?;
        if !open.flags.write {
            return Ok(());
        }
        if self.sync {
            open.file.fsync().await?;
        } else {
            open.file.flush().await?;
        }
        self.published(&open);
        Ok(())
    }

    pub(crate) async fn fsync(&self, handle: u64) -> Result<(), VfsError> {
        let open = self.open_file(handle)?;
        open.file.fsync().await?;
        if open.flags.write {
            self.published(&open);
        }
        Ok(())
    }

    /// The last descriptor and mapping of the handle are gone.
    pub(crate) async fn release(&self, handle: u64) -> Result<(), VfsError> {
        let open = self.files.remove(handle).ok_or(VfsError::BadHandle)?;
        open.file.close().await?;
        if open.flags.write {
            self.published(&open);
        }
        Ok(())
    }

    fn published(&self, open: &OpenFile) {
        let version = open.file.attr().data_version;
        self.cached.published(open.inode, version);
        if open.told.swap(version.0, Ordering::AcqRel) != version.0 {
            self.forget_attr(open.inode);
        }
    }

    fn open_file(&self, handle: u64) -> Result<Arc<OpenFile>, VfsError> {
        self.files.get(handle).ok_or(VfsError::BadHandle)
    }

    async fn truncate_for_open(
        &self,
        inode: InodeId,
        caller: &Credentials,
    ) -> Result<(), VfsError> {
        self.changed();
        let attr = by_inode(self.client.truncate(inode, 0).await)?;
        self.cached.published(inode, attr.data_version);
        if caller.uid != 0 {
            self.set_unprivileged(&attr).await?;
        }
        self.changed();
        Ok(())
    }

    async fn drop_privileges(&self, open: &OpenFile) -> Result<(), VfsError> {
        let privileged = self.privileged.load(Ordering::Acquire);
        if open.unprivileged_at.load(Ordering::Acquire) == privileged {
            return Ok(());
        }
        let attr = self.attr(open.inode).await?.value;
        self.set_unprivileged(&attr).await?;
        open.unprivileged_at.store(privileged, Ordering::Release);
        Ok(())
    }

    async fn set_unprivileged(&self, attr: &Attr) -> Result<(), VfsError> {
        if let Some(mode) = without_privileges(attr.kind, attr.mode) {
            let change = AttrChange {
                mode: Some(mode),
                ..AttrChange::default()
            };
            by_inode(
                self.client
                    .call(&SetAttr {
                        inode: attr.inode,
                        change,
                    })
                    .await,
            )?;
            self.forget_attr(attr.inode);
        }
        Ok(())
    }
}

fn open_file(file: File, attr: &Attr, flags: OpenFlags, privileged: u64) -> OpenFile {
    let seen = if has_privileges(attr) {
        PRIVILEGED
    } else {
        privileged
    };
    OpenFile {
        inode: attr.inode,
        file,
        flags,
        unprivileged_at: AtomicU64::new(seen),
        told: AtomicU64::new(attr.data_version.0),
    }
}

fn open_reply(handle: u64, flags: OpenFlags, keep_cache: bool) -> OpenReply {
    OpenReply {
        handle,
        direct: flags.direct || flags.append,
        parallel_writes: flags.direct && !flags.append,
        keep_cache,
        no_flush: !flags.write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(flags: OFlags) -> OpenFlags {
        OpenFlags::from_raw(flags.bits().cast_signed())
    }

    #[test]
    fn open_flags_are_read_as_linux_means_them() {
        let none = OpenFlags {
            write: false,
            append: false,
            truncate: false,
            exclusive: false,
            direct: false,
            sync: false,
        };
        assert_eq!(flags(OFlags::RDONLY), none);
        assert_eq!(
            flags(OFlags::RDONLY | OFlags::APPEND | OFlags::SYNC),
            none,
            "nothing is written"
        );
        assert_eq!(
            flags(OFlags::WRONLY),
            OpenFlags {
                write: true,
                ..none
            }
        );
        assert_eq!(
            flags(OFlags::RDWR | OFlags::APPEND | OFlags::DIRECT),
            OpenFlags {
                write: true,
                append: true,
                direct: true,
                ..none
            }
        );
        assert_eq!(
            flags(OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC),
            OpenFlags {
                write: true,
                exclusive: true,
                truncate: true,
                ..none
            }
        );
        for sync in [OFlags::SYNC, OFlags::DSYNC] {
            assert!(flags(OFlags::WRONLY | sync).sync);
        }
    }

    #[test]
    fn the_kernel_is_told_what_each_opening_allows() {
        let reply = |raw, keep| open_reply(7, flags(raw), keep);
        let read = reply(OFlags::RDONLY, true);
        assert!(read.no_flush && read.keep_cache && !read.direct);
        let write = reply(OFlags::RDWR, false);
        assert!(!write.no_flush && !write.keep_cache && !write.direct);
        let append = reply(OFlags::WRONLY | OFlags::APPEND, true);
        assert!(
            append.direct && !append.parallel_writes,
            "pages are never filled at a guessed end"
        );
        let direct = reply(OFlags::RDWR | OFlags::DIRECT, true);
        assert!(direct.direct && direct.parallel_writes);
    }
}
