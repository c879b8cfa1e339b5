//! `DENT` parent, stored name → child inode and kind. The stored name of a directory ends in `/`.
//!
//! Invariant: the order of a parent's rows is the order of S3 keys (`janusfs_types::DentryName`).

use bytes::Bytes;
use janusfs_kv::Txn;
use janusfs_types::{DentryName, FileKind, InodeId, NameError};
use janusfs_wire::{DecodeError, wire_fields};

use super::{encode, key_after, key_u64, prefix_end};
use crate::{MetaError, error::corrupt};

/// Where a name leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dentry {
    /// The child.
    pub(crate) inode: InodeId,
    /// Its kind, so that a walk need not read the inode.
    pub(crate) kind: FileKind,
}
wire_fields!(Dentry { inode, kind });

pub(crate) const KIND: &[u8; 4] = b"DENT";

/// Returns the key of an entry; of an empty `stored`: where the directory's entries begin.
pub(crate) fn key(parent: InodeId, stored: &[u8]) -> Vec<u8> {
    super::key(KIND, &[&parent.0.to_be_bytes(), stored])
}

/// Reads a value back.
pub(crate) fn decode(value: &[u8]) -> Result<Dentry, MetaError> {
    super::decode("DENT", value)
}

/// Reads an entry.
pub(crate) async fn get(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &DentryName,
) -> Result<Option<Dentry>, MetaError> {
    let value = txn.get(&key(parent, name.stored())).await?;
    value.as_deref().map(decode).transpose()
}

/// Tells without conflicting whether an entry exists.
pub(crate) async fn exists_snapshot(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &DentryName,
) -> Result<bool, MetaError> {
    Ok(txn
        .get_snapshot(&key(parent, name.stored()))
        .await?
        .is_some())
}

/// Writes an entry; counts and times are `tree`'s.
pub(crate) fn put(txn: &mut impl Txn, parent: InodeId, name: &DentryName, dentry: Dentry) {
    txn.set(&key(parent, name.stored()), &encode(&dentry));
}

/// Removes an entry; counts and times are `tree`'s.
pub(crate) fn remove(txn: &mut impl Txn, parent: InodeId, name: &DentryName) {
    txn.clear(&key(parent, name.stored()));
}

/// Returns at most `limit` entries of a directory whose stored names sort after `after` (exclusive), in order.
pub(crate) async fn scan(
    txn: &mut impl Txn,
    parent: InodeId,
    after: Option<&[u8]>,
    limit: u32,
    snapshot: bool,
) -> Result<Vec<(DentryName, Dentry)>, MetaError> {
    let prefix = key(parent, b"");
    let start = after.map_or_else(|| prefix.clone(), |after| key_after(&key(parent, after)));
    scan_range(txn, &start, &prefix_end(&prefix), limit, snapshot).await
}

/// As [`scan`], of the stored names that are `from` or sort after it and are before the end of `within` as a prefix.
pub(crate) async fn scan_from(
    txn: &mut impl Txn,
    parent: InodeId,
    from: &[u8],
    within: &[u8],
    limit: u32,
    snapshot: bool,
) -> Result<Vec<(DentryName, Dentry)>, MetaError> {
    let end = prefix_end(&key(parent, within));
    scan_range(txn, &key(parent, from), &end, limit, snapshot).await
}

async fn scan_range(
    txn: &mut impl Txn,
    start: &[u8],
    end: &[u8],
    limit: u32,
    snapshot: bool,
) -> Result<Vec<(DentryName, Dentry)>, MetaError> {
    let rows = if snapshot {
        txn.range_snapshot(start, end, limit).await?
    } else {
        txn.range(start, end, limit).await?
    };
    rows.iter()
        .map(|(key, value)| from_row(key, value).map(|(_, name, dentry)| (name, dentry)))
        .collect()
}

/// Reads back a row of a scan.
pub(crate) fn from_row(
    row_key: &Bytes,
    value: &[u8],
) -> Result<(InodeId, DentryName, Dentry), MetaError> {
    let parent = InodeId(key_u64("DENT", row_key, 4)?);
    let name = DentryName::from_stored(&row_key[12..])
        .map_err(|_: NameError| corrupt("DENT", DecodeError::Value("name")))?;
    Ok((parent, name, decode(value)?))
}

/// Tells whether a directory has no entry; conflicts with any that is made meanwhile.
pub(crate) async fn is_empty(txn: &mut impl Txn, parent: InodeId) -> Result<bool, MetaError> {
    let prefix = key(parent, b"");
    Ok(txn
        .range(&prefix, &prefix_end(&prefix), 1)
        .await?
        .is_empty())
}

/// As [`is_empty`], asked after `name` was removed: looks from there on first. Who removes many names does it in their order,
/// and a store passes over the rows that are gone one by one.
pub(crate) async fn is_empty_without(
    txn: &mut impl Txn,
    parent: InodeId,
    name: &DentryName,
) -> Result<bool, MetaError> {
    let prefix = key(parent, b"");
    let name = key(parent, name.stored());
    let behind = txn.range(&name, &prefix_end(&prefix), 1).await?;
    Ok(behind.is_empty() && txn.range(&prefix, &name, 1).await?.is_empty())
}
