//! The errors that cross crates, what a caller should do about each, and their errno.
//!
//! The S3 code of an error is decided in `gateway-s3/src/error.rs`, the wire status in `core/wire/src/status.rs`;
//! both matches are total, so a new variant does not compile until it is mapped.

use alloc::string::String;
use core::fmt;

/// What the caller of a failed operation should do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Nothing was applied and nothing will change by itself: report it.
    Report,
    /// Nothing was applied; the same request may succeed later.
    RetryLater,
    /// Refresh routing (chain table, endpoint), then retry with the same request id.
    Refresh,
    /// It may or may not have been applied; retry with the same request id.
    Unknown,
}

/// Why a filesystem operation failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FsError {
    /// No such entry, inode, xattr or upload.
    NotFound,
    /// The entry exists already.
    Exists,
    /// A directory was needed.
    NotDirectory,
    /// A directory was given where none may be.
    IsDirectory,
    /// The directory has entries.
    NotEmpty,
    /// The caller may not do this (`EACCES`).
    AccessDenied,
    /// The operation is not allowed on this object (`EPERM`).
    NotPermitted,
    /// An argument makes no sense; the text says which.
    Invalid(String),
    /// A name is too long.
    NameTooLong,
    /// A reserved or impossible name, such as `.janusfs-s3:` given to a POSIX create.
    NameReserved,
    /// The file would grow past its limit.
    FileTooLarge,
    /// Too many hard links.
    TooManyLinks,
    /// Source and destination have different accounting roots; copy instead.
    CrossDevice,
    /// The key is another name, by a symlink, of what the operation is not to touch under it.
    ThroughSymlink,
    /// A handle or inode that no longer exists, or whose client lost its lease.
    Stale,
    /// A condition of the request (ETag, data version, create-new) does not hold.
    PreconditionFailed,
    /// No xattr of this name.
    NoXattr,
    /// The value does not fit the caller's buffer or the limit.
    TooBig,
    /// No space on a target that the operation needs.
    NoSpace,
    /// A quota is exhausted.
    QuotaExceeded,
    /// A queue is full, or a chunk has an uncommitted write.
    Busy,
    /// The chain table is newer than the request.
    StaleChain,
    /// Stored bytes do not match their checksum and no replica had good ones.
    Corrupt(String),
    /// Not reachable, or the deadline passed: it may have been applied.
    Unavailable(String),
    /// The operation exists, but not on this object or in this version.
    Unsupported(String),
    /// A disk or another local resource failed; the text names it.
    Io(String),
}

impl FsError {
    /// Says what a caller should do.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Busy | Self::NoSpace | Self::QuotaExceeded => Advice::RetryLater,
            Self::StaleChain => Advice::Refresh,
            Self::Unavailable(_) => Advice::Unknown,
            Self::NotFound
            | Self::Exists
            | Self::NotDirectory
            | Self::IsDirectory
            | Self::NotEmpty
            | Self::AccessDenied
            | Self::NotPermitted
            | Self::Invalid(_)
            | Self::NameTooLong
            | Self::NameReserved
            | Self::FileTooLarge
            | Self::TooManyLinks
            | Self::CrossDevice
            | Self::ThroughSymlink
            | Self::Stale
            | Self::PreconditionFailed
            | Self::NoXattr
            | Self::TooBig
            | Self::Corrupt(_)
            | Self::Unsupported(_)
            | Self::Io(_) => Advice::Report,
        }
    }

    /// Returns Linux's errno for the error (values of x86-64 and arm64, `asm-generic/errno.h`).
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotPermitted | Self::NameReserved => 1, // EPERM
            Self::NotFound => 2,                          // ENOENT
            Self::Corrupt(_) | Self::Io(_) => 5,          // EIO
            Self::Busy | Self::PreconditionFailed | Self::StaleChain => 11, // EAGAIN
            Self::AccessDenied => 13,                     // EACCES
            Self::Exists => 17,                           // EEXIST
            Self::CrossDevice => 18,                      // EXDEV
            Self::NotDirectory => 20,                     // ENOTDIR
            Self::IsDirectory => 21,                      // EISDIR
            Self::Invalid(_) => 22,                       // EINVAL
            Self::FileTooLarge => 27,                     // EFBIG
            Self::NoSpace => 28,                          // ENOSPC
            Self::TooManyLinks => 31,                     // EMLINK
            Self::TooBig => 34,                           // ERANGE
            Self::NameTooLong => 36,                      // ENAMETOOLONG
            Self::NotEmpty => 39,                         // ENOTEMPTY
            Self::ThroughSymlink => 40,                   // ELOOP
            Self::NoXattr => 61,                          // ENODATA
            Self::Unsupported(_) => 95,                   // EOPNOTSUPP
            Self::Unavailable(_) => 110,                  // ETIMEDOUT
            Self::Stale => 116,                           // ESTALE
            Self::QuotaExceeded => 122,                   // EDQUOT
        }
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such file or directory"),
            Self::Exists => f.write_str("it exists already"),
            Self::NotDirectory => f.write_str("not a directory"),
            Self::IsDirectory => f.write_str("is a directory"),
            Self::NotEmpty => f.write_str("the directory is not empty"),
            Self::AccessDenied => f.write_str("access denied"),
            Self::NotPermitted => f.write_str("operation not permitted"),
            Self::Invalid(what) => write!(f, "invalid argument: {what}"),
            Self::NameTooLong => f.write_str("the name is too long"),
            Self::NameReserved => f.write_str("the name is reserved"),
            Self::FileTooLarge => f.write_str("the file would be too large"),
            Self::TooManyLinks => f.write_str("too many links"),
            Self::CrossDevice => {
                f.write_str("source and destination are accounted apart: copy instead")
            }
            Self::ThroughSymlink => f.write_str(
                "the key leads through a symlink: use the key of what the symlink leads to",
            ),
            Self::Stale => f.write_str("stale handle"),
            Self::PreconditionFailed => f.write_str("a precondition does not hold"),
            Self::NoXattr => f.write_str("no such extended attribute"),
            Self::TooBig => f.write_str("the value is too big"),
            Self::NoSpace => f.write_str("no space left on a storage target"),
            Self::QuotaExceeded => f.write_str("quota exceeded"),
            Self::Busy => f.write_str("busy: try again"),
            Self::StaleChain => f.write_str("the chain table has changed"),
            Self::Corrupt(what) => write!(f, "stored bytes are damaged: {what}"),
            Self::Unavailable(what) => write!(f, "not available: {what}"),
            Self::Unsupported(what) => write!(f, "not supported: {what}"),
            Self::Io(what) => write!(f, "input/output error: {what}"),
        }
    }
}

impl core::error::Error for FsError {}

impl From<crate::NameError> for FsError {
    fn from(error: crate::NameError) -> Self {
        match error {
            crate::NameError::TooLong => Self::NameTooLong,
            crate::NameError::Slash => Self::Invalid("a name may not contain '/'".into()),
            crate::NameError::Nul => Self::Invalid("a name may not contain a zero byte".into()),
        }
    }
}
