//! `OBJA` inode → S3 attributes of an object.

use janusfs_kv::Txn;
use janusfs_types::InodeId;
use janusfs_wire::meta::ObjectAttrs;

use super::{decode, encode, key, key_after, key_u64};
use crate::MetaError;

pub(crate) const KIND: &[u8; 4] = b"OBJA";

fn row_key(id: InodeId) -> Vec<u8> {
    key(KIND, &[&id.0.to_be_bytes()])
}

/// Reads the attributes of an object, if S3 wrote any.
pub(crate) async fn load(
    txn: &mut impl Txn,
    id: InodeId,
) -> Result<Option<ObjectAttrs>, MetaError> {
    txn.get(&row_key(id))
        .await?
        .map(|value| decode("OBJA", &value))
        .transpose()
}

/// Reads the attributes of the objects from `first` to `last`, in order, without conflicting.
pub(crate) async fn scan_snapshot(
    txn: &mut impl Txn,
    first: InodeId,
    last: InodeId,
) -> Result<Vec<(InodeId, ObjectAttrs)>, MetaError> {
    let rows = txn
        .range_snapshot(&row_key(first), &key_after(&row_key(last)), u32::MAX)
        .await?;
    rows.iter()
        .map(|(key, value)| Ok((InodeId(key_u64("OBJA", key, 4)?), decode("OBJA", value)?)))
        .collect()
}

/// Writes the attributes of an object.
pub(crate) fn store(txn: &mut impl Txn, id: InodeId, attrs: &ObjectAttrs) {
    txn.set(&row_key(id), &encode(attrs));
}

/// Removes the attributes of an object.
pub(crate) fn remove(txn: &mut impl Txn, id: InodeId) {
    txn.clear(&row_key(id));
}
