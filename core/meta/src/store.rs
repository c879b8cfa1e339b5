//! The records: key, versioned value and access of each kind, one file per kind.
//!
//! Invariants: a key begins with four letters that name its kind. A value begins with its version (1), save the
//! little-endian counters that the store itself adds to. Numbers in keys are big-endian, so that they sort, except an
//! inode's, which is little-endian to spread consecutive inodes over the key space.

pub(crate) mod alloc;
pub(crate) mod blob;
pub(crate) mod dentry;
pub(crate) mod dir_stat;
pub(crate) mod epoch;
pub(crate) mod inode;
pub(crate) mod object;
pub(crate) mod orphan;
pub(crate) mod session;
pub(crate) mod usage;
pub(crate) mod xattr;

use bytes::Bytes;
use janusfs_kv::Txn;
use janusfs_wire::{DecodeError, Decoder, Encoder, Wire};

use crate::{MetaError, error::corrupt};

/// The version byte that values begin with.
const VALUE_VERSION: u8 = 1;

/// Rows that one read of a longer scan takes.
pub(crate) const SCAN_PAGE: u32 = 1000;

/// Joins the kind and the parts of a key.
pub(crate) fn key(kind: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let mut key = kind.to_vec();
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// Returns the first key after all keys that begin with `prefix`.
///
/// # Panics
/// If the prefix is all `0xff`: ours begin with a kind's letters.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    panic!("a key begins with the letters of its kind");
}

/// Returns the first key after `key`.
pub(crate) fn key_after(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// Encodes a value behind its version byte.
pub(crate) fn encode<W: Wire>(value: &W) -> Bytes {
    let mut out = Encoder::new();
    VALUE_VERSION.put(&mut out);
    value.put(&mut out);
    out.finish()
}

/// Decodes a value of version 1; `what` names the record kind in errors.
pub(crate) fn decode<W: Wire>(what: &str, bytes: &[u8]) -> Result<W, MetaError> {
    decode_from(what, bytes, |mut input| {
        let value = W::get(&mut input)?;
        input.finish()?;
        Ok(value)
    })
}

/// Decodes what a value of version 1 begins with, and passes over the rest.
pub(crate) fn decode_start<W: Wire>(what: &str, bytes: &[u8]) -> Result<W, MetaError> {
    decode_from(what, bytes, |mut input| W::get(&mut input))
}

fn decode_from<W>(
    what: &str,
    bytes: &[u8],
    get: impl FnOnce(Decoder<'_>) -> Result<W, DecodeError>,
) -> Result<W, MetaError> {
    let inner = || {
        let mut input = Decoder::new(bytes);
        match u8::get(&mut input)? {
            VALUE_VERSION => {}
            tag => {
                return Err(DecodeError::Tag {
                    what: "value version",
                    tag,
                });
            }
        }
        get(input)
    };
    inner().map_err(|error| corrupt(what, error))
}

/// Reads a big-endian u64 out of a key at `at`.
pub(crate) fn key_u64(what: &str, key: &[u8], at: usize) -> Result<u64, MetaError> {
    key.get(at..at + 8)
        .and_then(|raw| raw.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or_else(|| corrupt(what, DecodeError::Short))
}

/// Reads a little-endian counter; an absent one is 0.
pub(crate) fn counter(what: &str, value: Option<&[u8]>) -> Result<u64, MetaError> {
    match value {
        None => Ok(0),
        Some(raw) => raw
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| corrupt(what, DecodeError::Value("counter"))),
    }
}

/// Reads every row that begins with `prefix`, in pages, without conflicting.
pub(crate) async fn scan_all(
    txn: &mut impl Txn,
    prefix: &[u8],
) -> Result<Vec<(Bytes, Bytes)>, MetaError> {
    let end = prefix_end(prefix);
    let mut start = prefix.to_vec();
    let mut rows = Vec::new();
    loop {
        let page = txn.range_snapshot(&start, &end, SCAN_PAGE).await?;
        let full = page.len() >= usize::try_from(SCAN_PAGE).unwrap_or(usize::MAX);
        if let Some((last, _)) = page.last() {
            start = key_after(last);
        }
        rows.extend(page);
        if !full {
            return Ok(rows);
        }
    }
}

#[cfg(test)]
mod tests;
