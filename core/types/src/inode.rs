//! What an inode is: kind, attributes, and where its bytes live.

use alloc::vec::Vec;

use crate::{BlobId, DataVersion, InodeId, Layout};

/// The kind of an inode, as POSIX knows them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileKind {
    /// A regular file; the only kind that S3 lists.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A Unix domain socket.
    Socket,
}

/// Access, modification, change and birth time, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Times {
    /// Last access, kept as `relatime` would: set at creation and by `utimens`, not by reads (promise P6).
    pub accessed_ns: i64,
    /// Last change of the content.
    pub modified_ns: i64,
    /// Last change of the inode.
    pub changed_ns: i64,
    /// Creation.
    pub born_ns: i64,
}

/// The attributes of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Which inode.
    pub inode: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links; for a directory 2 plus its subdirectories is not kept, it is always 2 (as btrfs: 1).
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Device number of a device node (`makedev` form), else 0.
    pub rdev: u32,
    /// Times.
    pub times: Times,
    /// Version of the bytes.
    pub data_version: DataVersion,
}

/// Who asks: the POSIX identity that ownership and permission checks use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
}

/// A run of a file's bytes inside a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte in the file.
    pub file_offset: u64,
    /// Length in bytes, never 0.
    pub len_bytes: u64,
    /// The blob that holds them.
    pub blob: BlobId,
    /// First byte in the blob.
    pub blob_offset: u64,
    /// The blob's layout.
    pub layout: Layout,
}

/// Where the bytes of a regular file live.
///
/// Reads beyond what is stored but below the size give zeros (a hole).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// In the inode record itself, at most [`crate::limits::INLINE_MAX_BYTES`]. May be shorter than the size.
    Inline(Vec<u8>),
    /// In one blob that this inode owns alone: it may be written in place.
    Blob {
        /// The blob.
        blob: BlobId,
        /// Its layout.
        layout: Layout,
    },
    /// In several, or shared, blobs, ordered by file offset, without overlap. Written by copying first.
    Extents(Vec<Extent>),
}

impl Content {
    /// Returns content without a byte.
    #[must_use]
    pub fn empty() -> Self {
        Self::Inline(Vec::new())
    }
}
