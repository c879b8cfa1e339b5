//! `XATR` inode, name → value of an extended attribute.

use bytes::Bytes;
use janusfs_kv::Txn;
use janusfs_types::InodeId;

use super::{decode, encode, key, scan_all};
use crate::MetaError;

pub(crate) const KIND: &[u8; 4] = b"XATR";

fn row_key(id: InodeId, name: &[u8]) -> Vec<u8> {
    key(KIND, &[&id.0.to_be_bytes(), name])
}

/// Reads a value.
pub(crate) async fn get(
    txn: &mut impl Txn,
    id: InodeId,
    name: &[u8],
) -> Result<Option<Bytes>, MetaError> {
    txn.get(&row_key(id, name))
        .await?
        .map(|value| decode("XATR", &value))
        .transpose()
}

/// Writes a value.
pub(crate) fn set(txn: &mut impl Txn, id: InodeId, name: &[u8], value: &Bytes) {
    txn.set(&row_key(id, name), &encode(value));
}

/// Removes a value.
pub(crate) fn remove(txn: &mut impl Txn, id: InodeId, name: &[u8]) {
    txn.clear(&row_key(id, name));
}

/// Returns the names in order, without conflicting.
pub(crate) async fn names(txn: &mut impl Txn, id: InodeId) -> Result<Vec<Bytes>, MetaError> {
    let rows = scan_all(txn, &row_key(id, b"")).await?;
    Ok(rows.into_iter().map(|(key, _)| key.slice(12..)).collect())
}

/// Removes every value of an inode.
pub(crate) async fn remove_all(txn: &mut impl Txn, id: InodeId) -> Result<(), MetaError> {
    for name in names(txn, id).await? {
        remove(txn, id, &name);
    }
    Ok(())
}
