//! Why a metadata operation failed, before it becomes an [`FsError`] on the wire.

use janusfs_kv::{KvError, RetryClass};
use janusfs_types::{FsError, NameError};
use janusfs_wire::DecodeError;

/// Why a metadata operation failed: the filesystem says no, or the store does.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The operation's own answer.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The store's; conflicts were retried already.
    #[error(transparent)]
    Kv(#[from] KvError),
}

impl MetaError {
    /// Returns the error as callers of the service see it.
    #[must_use]
    pub fn into_fs(self) -> FsError {
        match self {
            Self::Fs(error) => error,
            Self::Kv(KvError::Conflict | KvError::TooOld) => FsError::Busy,
            Self::Kv(error @ KvError::TooLarge(_)) => FsError::Invalid(error.to_string()),
            Self::Kv(error @ (KvError::CommitUnknown(_) | KvError::Unavailable(_))) => {
                FsError::Unavailable(error.to_string())
            }
        }
    }
}

impl From<MetaError> for FsError {
    fn from(error: MetaError) -> Self {
        error.into_fs()
    }
}

impl From<NameError> for MetaError {
    fn from(error: NameError) -> Self {
        Self::Fs(error.into())
    }
}

impl RetryClass for MetaError {
    fn kv(&self) -> Option<&KvError> {
        match self {
            Self::Kv(error) => Some(error),
            Self::Fs(_) => None,
        }
    }
}

/// Returns the error for a stored row that does not decode.
pub(crate) fn corrupt(what: &str, error: DecodeError) -> MetaError {
    MetaError::Fs(FsError::Corrupt(format!("metadata row {what}: {error}")))
}
