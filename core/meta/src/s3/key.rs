//! Keys and the entry names they are made of (the design, section 5).
//!
//! A key splits at `/`: every part but the last names a directory's slot, the last, possibly empty part a file's. A
//! stored name that is not UTF-8 has no key; it is shown with every byte that is not a plain one percent-encoded, under
//! [`RESERVED`]. Invariant: [`decode_part`] undoes [`encode_part`], and leaves alone what `encode_part` never makes.

use std::borrow::Cow;

use janusfs_types::{DentryName, FsError, limits};

/// What an encoded part starts with.
pub(super) const RESERVED: &str = ".janusfs-s3:";

/// A key taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KeyPath {
    /// The directories to pass, from the bucket's.
    pub(super) directories: Vec<DentryName>,
    /// The file's slot in the last of them.
    pub(super) file: DentryName,
}

/// Takes a key apart.
///
/// # Errors
/// [`FsError::Invalid`] for an empty key or one with a zero byte, [`FsError::NameTooLong`].
pub(super) fn split(key: &str) -> Result<KeyPath, FsError> {
    if key.is_empty() {
        return Err(FsError::Invalid(
            "an object's key is at least one byte long".into(),
        ));
    }
    if key.len() > limits::KEY_MAX_BYTES {
        return Err(FsError::NameTooLong);
    }
    let mut parts: Vec<&str> = key.split('/').collect();
    let last = parts.pop().unwrap_or_default();
    let directories = parts
        .iter()
        .map(|part| Ok(DentryName::directory(&decode_part(part))?))
        .collect::<Result<_, FsError>>()?;
    Ok(KeyPath {
        directories,
        file: DentryName::file(&decode_part(last))?,
    })
}

/// Returns the stored form of a key, a prefix or an `after`: the concatenation of the stored names.
pub(super) fn stored_form(key: &str) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len());
    for (index, part) in key.split('/').enumerate() {
        if index > 0 {
            stored.push(b'/');
        }
        stored.extend_from_slice(&decode_part(part));
    }
    stored
}

/// Appends the shown form of a name (without the mark of a directory) to a key.
pub(super) fn encode_part(name: &[u8], key: &mut String) {
    if let Ok(text) = str::from_utf8(name) {
        key.push_str(text);
        return;
    }
    key.push_str(RESERVED);
    for &byte in name {
        if byte.is_ascii_graphic() && byte != b'%' {
            key.push(char::from(byte));
        } else {
            key.push('%');
            for half in [byte >> 4, byte & 15] {
                key.push(char::from_digit(u32::from(half), 16).unwrap_or('0'));
            }
        }
    }
}

/// Returns the name that a part stands for: itself, unless it is the shown form of a name that is not UTF-8.
fn decode_part(part: &str) -> Cow<'_, [u8]> {
    let plain = Cow::Borrowed(part.as_bytes());
    let Some(encoded) = part.strip_prefix(RESERVED) else {
        return plain;
    };
    let mut name = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            name.push(byte);
            continue;
        }
        let Some((digits, after)) = rest.split_at_checked(2) else {
            return plain;
        };
        rest = after;
        let digits = str::from_utf8(digits).ok();
        let Some(value) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return plain;
        };
        name.push(value);
    }
    if str::from_utf8(&name).is_ok() {
        return plain;
    }
    // Only the one form that a listing shows stands for the name.
    let mut shown = String::with_capacity(part.len());
    encode_part(&name, &mut shown);
    if shown == part {
        Cow::Owned(name)
    } else {
        plain
    }
}

/// Returns the least byte string above every string that starts with `prefix`; `None` when there is none.
pub(super) fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_splits_into_slots() {
        let path = split("a//b/").unwrap();
        let stored: Vec<&[u8]> = path.directories.iter().map(DentryName::stored).collect();
        assert_eq!(stored, [b"a/" as &[u8], b"/", b"b/"]);
        assert_eq!(path.file.stored(), b"");
        assert_eq!(split("./..").unwrap().file.stored(), b"..");
        assert!(matches!(split(""), Err(FsError::Invalid(_))));
        assert!(matches!(split("a\0"), Err(FsError::Invalid(_))));
        assert_eq!(split(&"x".repeat(1025)), Err(FsError::NameTooLong));
    }

    #[test]
    fn what_only_looks_encoded_is_taken_as_it_is() {
        for key in [
            ".janusfs-s3:",
            ".janusfs-s3:a",
            ".janusfs-s3:%",
            ".janusfs-s3:%FF",
            ".janusfs-s3:%41",
        ] {
            assert_eq!(split(key).unwrap().file.stored(), key.as_bytes());
        }
        assert_eq!(split(".janusfs-s3:%ff").unwrap().file.stored(), [0xff]);
    }

    #[test]
    fn the_successor_skips_everything_below_a_prefix() {
        assert_eq!(successor(b"a/"), Some(b"a0".to_vec()));
        assert_eq!(successor(&[b'a', 0xff]), Some(b"b".to_vec()));
        assert_eq!(successor(&[0xff]), None);
        assert_eq!(successor(b""), None);
    }

    proptest! {
        #[test]
        fn every_name_has_a_key_of_its_own(name in proptest::collection::vec(1u8.., 0..40)) {
            prop_assume!(!name.contains(&b'/'));
            let mut key = String::new();
            encode_part(&name, &mut key);
            prop_assert_eq!(decode_part(&key).into_owned(), name);
        }
    }
}
