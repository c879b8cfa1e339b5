//! Ids and versions, each its own type so that two bare `u64` never meet in one signature.
//!
//! `Display` gives the form used in logs and error texts. Versions step with `next`, never with bare
//! arithmetic.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $raw);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }
    };
}

macro_rules! version {
    ($(#[$doc:meta])* $name:ident($raw:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $raw);

        impl $name {
            /// Returns the version that follows this one.
            ///
            /// # Panics
            /// When the counter is exhausted, which no real system lives to see.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a version counter never wraps"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A file, directory, symlink or special file. `1` is the root directory.
    InodeId(u64), "inode-"
);
id!(
    /// A run of bytes cut into chunks. Shares the number space of [`InodeId`]: an ordinary file owns the
    /// blob whose number is its own.
    BlobId(u64), "blob-"
);
id!(
    /// A replication chain.
    ChainId(u32), "chain-"
);
id!(
    /// A storage target: one chunk engine on one disk.
    TargetId(u32), "target-"
);
id!(
    /// A machine or process that hosts roles.
    NodeId(u32), "node-"
);
id!(
    /// A client process (a mount, a gateway). Random, chosen by the client at start.
    ClientId(u64), "client-"
);
id!(
    /// A write-open of an inode, unique within its client.
    SessionId(u64), "session-"
);
id!(
    /// One request of a client on one channel; a retry keeps it.
    RequestId(u64), "request-"
);

version!(
    /// The version of a chain: grows with each change of its members or their states.
    ChainVersion(u32), "v"
);
version!(
    /// The version of a chunk: grows by one with each committed write. `0` means the chunk does not exist.
    ChunkVersion(u64), "v"
);
version!(
    /// The version of a file's bytes: grows with each published change of content or size.
    DataVersion(u64), "v"
);
version!(
    /// The cluster's reclamation epoch (DESIGN.md, section 6).
    Epoch(u64), "e"
);

impl InodeId {
    /// The root directory of the namespace.
    pub const ROOT: Self = Self(1);
    /// The lowest number handed out to files; the ones below are reserved.
    pub const FIRST_FREE: Self = Self(0x100);

    /// Returns the blob that an ordinary file of this inode owns.
    #[must_use]
    pub fn own_blob(self) -> BlobId {
        BlobId(self.0)
    }
}

/// One chunk of one blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkId {
    /// The blob the chunk belongs to.
    pub blob: BlobId,
    /// The chunk's index in the blob: byte offset divided by the layout's chunk size.
    pub index: u32,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.blob, self.index)
    }
}
