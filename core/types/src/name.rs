//! Directory entry names as they are stored (DESIGN.md, section 5).
//!
//! A name is any byte string without `/`, also an empty one, `.`, `..`, or one over 255 bytes: S3 keys have such
//! parts. The stored form of a *directory's* name ends in `/`, a file's does not, so the byte order of the
//! stored names is S3's order of the keys below.

use alloc::vec::Vec;

use crate::limits;

/// Why bytes are no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// A name may not contain `/`.
    Slash,
    /// A name may not contain a zero byte: no POSIX call could name it.
    Nul,
    /// A name is at most [`limits::NAME_MAX_BYTES`].
    TooLong,
}

/// A validated entry name together with the slot it lives in: file or directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DentryName {
    stored: Vec<u8>,
}

impl DentryName {
    /// Returns the file slot of `name`.
    ///
    /// # Errors
    /// [`NameError`] when the bytes are no name.
    pub fn file(name: &[u8]) -> Result<Self, NameError> {
        check(name)?;
        Ok(Self {
            stored: name.to_vec(),
        })
    }

    /// Returns the directory slot of `name`.
    ///
    /// # Errors
    /// [`NameError`] when the bytes are no name.
    pub fn directory(name: &[u8]) -> Result<Self, NameError> {
        check(name)?;
        let mut stored = Vec::with_capacity(name.len() + 1);
        stored.extend_from_slice(name);
        stored.push(b'/');
        Ok(Self { stored })
    }

    /// Reads a stored name back.
    ///
    /// # Errors
    /// [`NameError`] when no such name could have been stored.
    pub fn from_stored(stored: &[u8]) -> Result<Self, NameError> {
        check(stored.strip_suffix(b"/").unwrap_or(stored))?;
        Ok(Self {
            stored: stored.to_vec(),
        })
    }

    /// Returns the bytes that order the entry: with a trailing `/` for a directory.
    #[must_use]
    pub fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// Returns the name without the directory mark.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.stored.strip_suffix(b"/").unwrap_or(&self.stored)
    }

    /// Tells whether this is a directory's slot.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.stored.last() == Some(&b'/')
    }
}

fn check(name: &[u8]) -> Result<(), NameError> {
    if name.len() > limits::NAME_MAX_BYTES {
        return Err(NameError::TooLong);
    }
    match name.iter().find(|byte| matches!(byte, b'/' | 0)) {
        None => Ok(()),
        Some(b'/') => Err(NameError::Slash),
        Some(_) => Err(NameError::Nul),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_order_is_the_order_of_s3_keys() {
        let file = |name: &[u8]| DentryName::file(name).unwrap();
        let mut names = [
            file(b"a0"),
            DentryName::directory(b"a").unwrap(),
            file(b"a-b"),
            file(b"a"),
            file(b""),
        ];
        names.sort();
        let stored: Vec<&[u8]> = names.iter().map(DentryName::stored).collect();
        assert_eq!(stored, [b"" as &[u8], b"a", b"a-b", b"a/", b"a0"]);
    }

    #[test]
    fn a_directory_with_an_empty_name_is_not_a_file_with_one() {
        let directory = DentryName::directory(b"").unwrap();
        assert!(directory.is_directory());
        assert_eq!(directory.bytes(), b"");
        assert_ne!(directory, DentryName::file(b"").unwrap());
        assert_eq!(DentryName::from_stored(b"/"), Ok(directory));
    }

    #[test]
    fn bad_names_are_refused() {
        assert_eq!(DentryName::file(b"a/b"), Err(NameError::Slash));
        assert_eq!(DentryName::directory(b"a\0"), Err(NameError::Nul));
        assert_eq!(DentryName::file(&[b'x'; 1025]), Err(NameError::TooLong));
    }
}
