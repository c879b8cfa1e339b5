//! Typed errors as stable numbers, both ways. Total: a new [`FsError`] does not compile until it has a number.

use bytes::Bytes;
use janusfs_types::FsError;

use crate::{DecodeError, Decoder, Encoder, Wire};

/// Encodes an error: its number, and its text where it has one.
#[must_use]
pub fn encode_error(error: &FsError) -> Bytes {
    let (code, text): (u16, &str) = match error {
        FsError::NotFound => (1, ""),
        FsError::Exists => (2, ""),
        FsError::NotDirectory => (3, ""),
        FsError::IsDirectory => (4, ""),
        FsError::NotEmpty => (5, ""),
        FsError::AccessDenied => (6, ""),
        FsError::NotPermitted => (7, ""),
        FsError::Invalid(text) => (8, text),
        FsError::NameTooLong => (9, ""),
        FsError::NameReserved => (10, ""),
        FsError::FileTooLarge => (11, ""),
        FsError::TooManyLinks => (12, ""),
        FsError::CrossDevice => (13, ""),
        FsError::Stale => (14, ""),
        FsError::PreconditionFailed => (15, ""),
        FsError::NoXattr => (16, ""),
        FsError::TooBig => (17, ""),
        FsError::NoSpace => (18, ""),
        FsError::QuotaExceeded => (19, ""),
        FsError::Busy => (20, ""),
        FsError::StaleChain => (21, ""),
        FsError::Corrupt(text) => (22, text),
        FsError::Unavailable(text) => (23, text),
        FsError::Unsupported(text) => (24, text),
        FsError::Io(text) => (25, text),
    };
    let mut out = Encoder::new();
    code.put(&mut out);
    out.put_bytes(text.as_bytes());
    out.finish()
}

/// Reads an error back.
///
/// # Errors
/// [`DecodeError`] for bytes that are no status.
pub fn decode_error(bytes: &[u8]) -> Result<FsError, DecodeError> {
    let mut input = Decoder::new(bytes);
    let code = u16::get(&mut input)?;
    let text = String::get(&mut input)?;
    input.finish()?;
    Ok(match code {
        1 => FsError::NotFound,
        2 => FsError::Exists,
        3 => FsError::NotDirectory,
        4 => FsError::IsDirectory,
        5 => FsError::NotEmpty,
        6 => FsError::AccessDenied,
        7 => FsError::NotPermitted,
        8 => FsError::Invalid(text),
        9 => FsError::NameTooLong,
        10 => FsError::NameReserved,
        11 => FsError::FileTooLarge,
        12 => FsError::TooManyLinks,
        13 => FsError::CrossDevice,
        14 => FsError::Stale,
        15 => FsError::PreconditionFailed,
        16 => FsError::NoXattr,
        17 => FsError::TooBig,
        18 => FsError::NoSpace,
        19 => FsError::QuotaExceeded,
        20 => FsError::Busy,
        21 => FsError::StaleChain,
        22 => FsError::Corrupt(text),
        23 => FsError::Unavailable(text),
        24 => FsError::Unsupported(text),
        25 => FsError::Io(text),
        _ => return Err(DecodeError::Value("status")),
    })
}
