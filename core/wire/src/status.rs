//! Typed errors as stable numbers, both ways. Total: a new [`FsError`] does not compile until it has a number.

use janusfs_types::FsError;

use crate::{DecodeError, Decoder, Encoder, Wire};

/// Its number, and its text where it has one.
impl Wire for FsError {
    fn put(&self, out: &mut Encoder) {
        let (code, text): (u16, &str) = match self {
            Self::NotFound => (1, ""),
            Self::Exists => (2, ""),
            Self::NotDirectory => (3, ""),
            Self::IsDirectory => (4, ""),
            Self::NotEmpty => (5, ""),
            Self::AccessDenied => (6, ""),
            Self::NotPermitted => (7, ""),
            Self::Invalid(text) => (8, text),
            Self::NameTooLong => (9, ""),
            Self::NameReserved => (10, ""),
            Self::FileTooLarge => (11, ""),
            Self::TooManyLinks => (12, ""),
            Self::CrossDevice => (13, ""),
            Self::Stale => (14, ""),
            Self::PreconditionFailed => (15, ""),
            Self::NoXattr => (16, ""),
            Self::TooBig => (17, ""),
            Self::NoSpace => (18, ""),
            Self::QuotaExceeded => (19, ""),
            Self::Busy => (20, ""),
            Self::StaleChain => (21, ""),
            Self::Corrupt(text) => (22, text),
            Self::Unavailable(text) => (23, text),
            Self::Unsupported(text) => (24, text),
            Self::Io(text) => (25, text),
            Self::ThroughSymlink => (26, ""),
        };
        code.put(out);
        out.put_bytes(text.as_bytes());
    }

    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let code = u16::get(input)?;
        let text = String::get(input)?;
        Ok(match code {
            1 => Self::NotFound,
            2 => Self::Exists,
            3 => Self::NotDirectory,
            4 => Self::IsDirectory,
            5 => Self::NotEmpty,
            6 => Self::AccessDenied,
            7 => Self::NotPermitted,
            8 => Self::Invalid(text),
            9 => Self::NameTooLong,
            10 => Self::NameReserved,
            11 => Self::FileTooLarge,
            12 => Self::TooManyLinks,
            13 => Self::CrossDevice,
            14 => Self::Stale,
            15 => Self::PreconditionFailed,
            16 => Self::NoXattr,
            17 => Self::TooBig,
            18 => Self::NoSpace,
            19 => Self::QuotaExceeded,
            20 => Self::Busy,
            21 => Self::StaleChain,
            22 => Self::Corrupt(text),
            23 => Self::Unavailable(text),
            24 => Self::Unsupported(text),
            25 => Self::Io(text),
            26 => Self::ThroughSymlink,
            _ => return Err(DecodeError::Value("status")),
        })
    }
}
