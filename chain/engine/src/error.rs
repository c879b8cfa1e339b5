//! Why an engine call failed, and what that is to the rest of the system.

use std::{io, path::PathBuf};

use janusfs_types::{ChunkId, ChunkVersion, FsError};

/// Why the engine refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such chunk, or no such pending version.
    #[error("the chunk does not exist")]
    NotFound,
    /// `Create` met a chunk that exists.
    #[error("the chunk exists already")]
    Exists,
    /// The version does not follow the committed one; nothing was changed.
    #[error("chunk {chunk} is committed at {committed}, the request carried {got}")]
    VersionMismatch {
        /// Which chunk.
        chunk: ChunkId,
        /// What is committed.
        committed: ChunkVersion,
        /// What the request carried.
        got: ChunkVersion,
    },
    /// Stored bytes or a payload do not match their checksum.
    #[error("bytes of chunk {chunk} do not match their checksum")]
    Corrupt {
        /// Which chunk.
        chunk: ChunkId,
    },
    /// The write would end past the largest chunk size.
    #[error("chunk {chunk} would grow past the largest chunk size")]
    TooLarge {
        /// Which chunk.
        chunk: ChunkId,
    },
    /// The disk is at its free-space limit.
    #[error("no space left for chunk data")]
    NoSpace,
    /// The directory was written by a newer program.
    #[error("the store has format {found}, this program knows up to {supported}")]
    NewerFormat {
        /// What the directory says.
        found: u32,
        /// The newest this program reads.
        supported: u32,
    },
    /// Another process has the directory open.
    #[error("the store is in use by another process")]
    Locked,
    /// A file operation failed. After a failed write of a row or a failed barrier the engine refuses every further
    /// change until it is opened again: the kernel may have forgotten what it could not write.
    #[error("input/output error at {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// RocksDB failed.
    #[error("the chunk metadata store failed")]
    Meta(#[source] rocksdb::Error),
}

impl EngineError {
    /// Wraps a failed file operation; a full disk is `NoSpace` wherever it is noticed.
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io {
                path: path.into(),
                source,
            },
        }
    }
}

impl From<EngineError> for FsError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NotFound => Self::NotFound,
            EngineError::Exists => Self::Exists,
            EngineError::VersionMismatch { .. } | EngineError::Locked => Self::Busy,
            EngineError::Corrupt { chunk } => Self::Corrupt(format!("chunk {chunk}")),
            EngineError::TooLarge { .. } => Self::Invalid(error.to_string()),
            EngineError::NoSpace => Self::NoSpace,
            EngineError::NewerFormat { .. } => Self::Unsupported(error.to_string()),
            EngineError::Io { path, source } => Self::Io(format!("{}: {source}", path.display())),
            EngineError::Meta(source) => Self::Io(format!("chunk metadata store: {source}")),
        }
    }
}
