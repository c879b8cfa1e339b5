//! Keys whose byte order is the order of what they hold.
//!
//! Owns the ordered encoding: a fixed tag, big-endian numbers, raw bytes. Invariant: appending to a builder never changes
//! the order of what is before. Absent: an escape for bytes in the middle of a key; [`KeyBuilder::bytes`] is for the last
//! part, or for parts of one length, and [`KeyBuilder::terminated`] for names that hold no zero byte.

use bytes::Bytes;

/// Builds a key from its parts, first part first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyBuilder {
    buf: Vec<u8>,
}

impl KeyBuilder {
    /// Starts a key with a tag, which keeps one kind of record apart from the others.
    #[must_use]
    pub fn new(tag: &[u8]) -> Self {
        let mut buf = Vec::with_capacity(64);
        buf.extend_from_slice(tag);
        Self { buf }
    }

    /// Appends one byte.
    #[must_use]
    pub fn u8(mut self, value: u8) -> Self {
        self.buf.push(value);
        self
    }

    /// Appends a number, big-endian.
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a number, big-endian.
    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a number, big-endian.
    #[must_use]
    pub fn u128(mut self, value: u128) -> Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends bytes as they are. Keys compare rightly only if nothing of differing length follows.
    #[must_use]
    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.buf.extend_from_slice(value);
        self
    }

    /// Appends a name and the zero byte that ends it, so that more may follow and a name sorts before its extensions.
    ///
    /// # Panics
    /// If the name holds a zero byte.
    #[must_use]
    pub fn terminated(mut self, name: &[u8]) -> Self {
        assert!(!name.contains(&0), "a terminated part holds no zero byte");
        self.buf.extend_from_slice(name);
        self.buf.push(0);
        self
    }

    /// Returns the key.
    #[must_use]
    pub fn build(self) -> Bytes {
        self.buf.into()
    }
}

impl AsRef<[u8]> for KeyBuilder {
    fn as_ref(&self) -> &[u8] {
        &self.buf
    }
}

impl std::ops::Deref for KeyBuilder {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf
    }
}

/// Returns the smallest key after all keys that begin with `prefix`: the end of their range.
///
/// # Panics
/// If the prefix is empty or all `0xff`: no key is after those.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let last = prefix
        .iter()
        .rposition(|&byte| byte != 0xff)
        .expect("a prefix has a byte below 0xff");
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

/// Returns the smallest key after `key`: where a listing goes on.
#[must_use]
pub fn key_after(key: &[u8]) -> Bytes {
    let mut after = Vec::with_capacity(key.len() + 1);
    after.extend_from_slice(key);
    after.push(0);
    after.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_sort_as_their_parts(
            a in (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..6)),
            b in (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..6)),
        ) {
            let key = |p: &(u64, Vec<u8>)| KeyBuilder::new(b"DENT").u64(p.0).bytes(&p.1).build();
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
        }

        #[test]
        fn prefix_end_splits_the_keys(
            prefix in proptest::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..4),
            key in proptest::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..6),
        ) {
            let prefix = [&b"T"[..], &prefix].concat();
            let key = [&b"T"[..], &key].concat();
            let inside = key >= prefix && key[..] < prefix_end(&prefix)[..];
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }
    }

    #[test]
    fn a_terminated_name_sorts_before_its_extensions() {
        let key = |name: &[u8]| KeyBuilder::new(b"X").terminated(name).u32(u32::MAX).build();
        assert!(key(b"a") < key(b"a\x01"));
        assert!(key(b"ab") < key(b"b"));
        assert_eq!(key_after(b"a")[..], b"a\0"[..]);
    }
}
