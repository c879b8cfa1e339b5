//! The vocabulary of JanusFS: ids, versions, attributes, layouts, errors and limits.
//!
//! Pure (`no_std` + `alloc`): no clock, no socket, no encoding. How these values look on disk or on the
//! wire is decided in `core/wire`, `core/meta/store` and `chain/engine/meta`, never by a derive here.
//!
//! Reading order: `ids`, `inode`, `layout`, `error`, `limits`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod chain;
mod error;
mod ids;
mod inode;
mod layout;
pub mod limits;
mod name;

pub use chain::{ChainInfo, ChainTable, TargetInfo};
pub use error::{Advice, FsError};
pub use ids::{
    BlobId, ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, DataVersion, Epoch, InodeId,
    NodeId, RequestId, SessionId, TargetId,
};
pub use inode::{Attr, Content, Credentials, Extent, FileKind, Times};
pub use layout::{ChunkRange, Layout};
pub use name::{DentryName, NameError};
