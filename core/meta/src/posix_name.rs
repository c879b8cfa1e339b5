//! Names as POSIX sees them: a row that POSIX cannot name appears under a reserved, reversible one (DESIGN.md, section 5).
//!
//! POSIX cannot name a row whose name is empty, `.`, `..` or over 255 bytes, or begins with the reserved prefix, nor a file
//! beside a directory of the same name. Such a row is called `.janusfs-s3:` and its stored name percent-encoded, so a
//! directory's ends in `%2F`. Where that is too long: the prefix, as much of the encoded name as fits, `%~`, and
//! 16 hex digits of a hash of the whole stored name; reading it back scans the names that begin alike.

use std::fmt::Write as _;

use janusfs_kv::Txn;
use janusfs_types::{DentryName, FileKind, FsError, InodeId, limits::POSIX_NAME_MAX_BYTES};

use crate::{
    MetaError,
    store::{
        SCAN_PAGE,
        dentry::{self, Dentry},
    },
};

/// What reserved names begin with.
pub(crate) const PREFIX: &[u8] = b".janusfs-s3:";
/// Longest encoded part before a hash; with it the name stays below 255 bytes.
const CUT_BYTES: usize = 180;
/// Length of an encoded byte that is not plain.
const ESCAPED_BYTES: usize = 3;
/// Marks a hash; `%` is followed by a hex digit everywhere else.
const HASH_MARK: &str = "%~";

/// Checks a name that a POSIX call wants to create.
///
/// # Errors
/// `NameReserved`, `NameTooLong`, `Invalid`.
pub(crate) fn check_creatable(name: &[u8]) -> Result<(), MetaError> {
    if name.len() > POSIX_NAME_MAX_BYTES {
        return Err(FsError::NameTooLong.into());
    }
    if name.starts_with(PREFIX) {
        return Err(FsError::NameReserved.into());
    }
    if matches!(name, b"" | b"." | b"..") {
        return Err(FsError::Invalid("empty name, `.` or `..`".into()).into());
    }
    DentryName::file(name)?;
    Ok(())
}

/// Returns the slot that an inode of this kind has under a name.
pub(crate) fn slot(name: &[u8], kind: FileKind) -> Result<DentryName, MetaError> {
    Ok(match kind {
        FileKind::Directory => DentryName::directory(name)?,
        _ => DentryName::file(name)?,
    })
}

/// Finds what a POSIX name leads to: the directory, else the file, or the one row that a reserved name stands for.
pub(crate) async fn find(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &[u8],
) -> Result<Option<(DentryName, Dentry)>, MetaError> {
    if name.starts_with(PREFIX) {
        let Some(name) = decode(txn, parent, name).await? else {
            return Ok(None);
        };
        return Ok(dentry::get(txn, parent, &name)
            .await?
            .map(|dentry| (name, dentry)));
    }
    for slot in [directory_slot(name)?, file_slot(name)?] {
        if let Some(dentry) = dentry::get(txn, parent, &slot).await? {
            return Ok(Some((slot, dentry)));
        }
    }
    Ok(None)
}

/// Finds what `unlink` (a file) or `rmdir` (a directory) of a name acts on.
///
/// # Errors
/// `NotFound`; `IsDirectory` or `NotDirectory` when the name leads to the other kind only.
pub(crate) async fn find_kind(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &[u8],
    directory: bool,
) -> Result<(DentryName, Dentry), MetaError> {
    if !name.starts_with(PREFIX) {
        let slot = if directory {
            directory_slot(name)?
        } else {
            file_slot(name)?
        };
        if let Some(dentry) = dentry::get(txn, parent, &slot).await? {
            return Ok((slot, dentry));
        }
    }
    match find(txn, parent, name).await? {
        None => Err(FsError::NotFound.into()),
        Some((slot, dentry)) if slot.is_directory() == directory => Ok((slot, dentry)),
        Some(_) if directory => Err(FsError::NotDirectory.into()),
        Some(_) => Err(FsError::IsDirectory.into()),
    }
}

fn check_plain(name: &[u8]) -> Result<(), MetaError> {
    if name.len() > POSIX_NAME_MAX_BYTES {
        return Err(FsError::NameTooLong.into());
    }
    if matches!(name, b"" | b"." | b"..") {
        return Err(FsError::NotFound.into());
    }
    Ok(())
}

fn directory_slot(name: &[u8]) -> Result<DentryName, MetaError> {
    check_plain(name)?;
    Ok(DentryName::directory(name)?)
}

fn file_slot(name: &[u8]) -> Result<DentryName, MetaError> {
    check_plain(name)?;
    Ok(DentryName::file(name)?)
}

/// Returns the name under which POSIX sees a row. `shadowed`: a file beside a directory of its name.
pub(crate) fn visible(name: &DentryName, shadowed: bool) -> Vec<u8> {
    let plain = name.bytes();
    let unnameable = shadowed
        || plain.len() > POSIX_NAME_MAX_BYTES
        || plain.starts_with(PREFIX)
        || matches!(plain, b"" | b"." | b"..");
    if unnameable {
        encode(name.stored())
    } else {
        plain.to_vec()
    }
}

/// Returns every name under which POSIX may see a name's rows, in either slot and whatever is beside them.
pub(crate) fn all_visible(name: &[u8]) -> [Vec<u8>; 3] {
    let directory = [name, b"/"].concat();
    [name.to_vec(), encode(name), encode(&directory)]
}

fn encode(stored: &[u8]) -> Vec<u8> {
    let mut text = String::new();
    // Where the encoded name is cut if it turns out too long: after a whole byte.
    let mut cut = 0;
    for &byte in stored {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
        if text.len() <= CUT_BYTES {
            cut = text.len();
        }
    }
    if PREFIX.len() + text.len() > POSIX_NAME_MAX_BYTES {
        text.truncate(cut);
        let _ = write!(text, "{HASH_MARK}{:016x}", hash(stored));
    }
    [PREFIX, text.as_bytes()].concat()
}

/// FNV-1a: short, well known, and part of no promise beyond telling names of one directory apart.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    Some(bytes)
}

/// Reads a reserved name back to the row that it stands for; `None` when it is none that we give.
async fn decode(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &[u8],
) -> Result<Option<DentryName>, MetaError> {
    let Some(text) = name
        .strip_prefix(PREFIX)
        .and_then(|text| std::str::from_utf8(text).ok())
    else {
        return Ok(None);
    };
    let Some((start, _)) = text.split_once(HASH_MARK) else {
        let stored = unescape(text).and_then(|stored| DentryName::from_stored(&stored).ok());
        return Ok(stored.filter(|stored| encode(stored.stored()) == name));
    };
    // What is cut shorter is no name that we give: looking for it would read all rows.
    let Some(start) = unescape(start).filter(|_| start.len() > CUT_BYTES - ESCAPED_BYTES) else {
        return Ok(None);
    };
    let mut from = start.clone();
    loop {
        let page = dentry::scan_from(txn, parent, &from, &start, SCAN_PAGE, true).await?;
        let Some((last, _)) = page.last() else {
            return Ok(None);
        };
        from = [last.stored(), b"\0"].concat();
        if let Some((found, _)) = page
            .into_iter()
            .find(|(row, _)| encode(row.stored()) == name)
        {
            return Ok(Some(found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(name: &[u8]) -> DentryName {
        DentryName::file(name).unwrap()
    }

    #[test]
    fn only_what_posix_cannot_name_is_encoded() {
        assert_eq!(visible(&file(b"a b\xff"), false), b"a b\xff");
        assert_eq!(visible(&file(b""), false), b".janusfs-s3:");
        assert_eq!(
            visible(&DentryName::directory(b"").unwrap(), false),
            b".janusfs-s3:%2F"
        );
        assert_eq!(
            visible(&DentryName::directory(b"..").unwrap(), false),
            b".janusfs-s3:..%2F"
        );
        assert_eq!(visible(&file(b"a"), true), b".janusfs-s3:a");
        assert_eq!(
            visible(&file(b".janusfs-s3:a"), false),
            b".janusfs-s3:.janusfs-s3%3Aa"
        );
    }

    #[test]
    fn reserved_and_impossible_names_are_not_created() {
        let error = |name: &[u8]| check_creatable(name).unwrap_err().into_fs();
        assert_eq!(error(b".janusfs-s3:a"), FsError::NameReserved);
        assert_eq!(error(&[b'x'; 256]), FsError::NameTooLong);
        assert!(matches!(error(b".."), FsError::Invalid(_)));
        assert!(matches!(error(b"a/b"), FsError::Invalid(_)));
        assert!(check_creatable(b".janusfs").is_ok());
    }

    proptest! {
        #[test]
        fn encoded_names_fit_and_differ(a in proptest::collection::vec(1u8..=255, 0..1024), cut in 0usize..1024) {
            let a: Vec<u8> = a.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect();
            let b = &a[..cut.min(a.len())];
            prop_assert!(encode(&a).len() <= POSIX_NAME_MAX_BYTES);
            prop_assert_eq!(encode(&a) == encode(b), a == b);
            let text = encode(&a);
            let text = std::str::from_utf8(&text[PREFIX.len()..]).unwrap();
            if !text.contains(HASH_MARK) {
                prop_assert_eq!(unescape(text), Some(a));
            }
        }
    }
}
