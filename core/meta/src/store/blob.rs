//! `BLOB` blob → layout, length, reference count.
//!
//! Invariant: a blob without a row has exactly one reference, from the inode of the same number (the ordinary file). Every
//! other blob, and every one that is shared, has a row with the count of references: one per extent of a file or part,
//! one per `Content::Blob`, one per reference that waits in an `ORPH` row. So a blob can be told live without a walk.

use janusfs_kv::Txn;
use janusfs_types::{BlobId, Layout};
use janusfs_wire::wire_fields;

use super::{decode, encode, key};
use crate::MetaError;

/// A blob that is shared or is not its inode's namesake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlobRecord {
    /// How it is cut and spread.
    pub(crate) layout: Layout,
    /// Length in bytes as of the last reference made; a file that owns it may have grown since.
    pub(crate) len_bytes: u64,
    /// References.
    pub(crate) refs: u64,
}
wire_fields!(BlobRecord {
    layout,
    len_bytes,
    refs
});

pub(crate) const KIND: &[u8; 4] = b"BLOB";

fn row_key(id: BlobId) -> Vec<u8> {
    key(KIND, &[&id.0.to_be_bytes()])
}

/// Reads a blob's record, if it has one.
pub(crate) async fn load(txn: &mut impl Txn, id: BlobId) -> Result<Option<BlobRecord>, MetaError> {
    txn.get(&row_key(id))
        .await?
        .map(|value| decode("BLOB", &value))
        .transpose()
}

/// Writes a blob's record.
pub(crate) fn store(txn: &mut impl Txn, id: BlobId, record: &BlobRecord) {
    txn.set(&row_key(id), &encode(record));
}

/// Removes a blob's record.
pub(crate) fn remove(txn: &mut impl Txn, id: BlobId) {
    txn.clear(&row_key(id));
}

/// Reads back a row of a scan.
pub(crate) fn from_row(key: &[u8], value: &[u8]) -> Result<(BlobId, BlobRecord), MetaError> {
    Ok((
        BlobId(super::key_u64("BLOB", key, 4)?),
        decode("BLOB", value)?,
    ))
}
