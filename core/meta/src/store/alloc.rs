//! `SING` `next-id` → the first number for inodes and blobs that was never reserved.

use janusfs_kv::Txn;
use janusfs_types::InodeId;

use super::{decode, encode, key};
use crate::MetaError;

fn row_key() -> Vec<u8> {
    key(b"SING", &[b"next-id"])
}

/// Reads the counter.
pub(crate) async fn next(txn: &mut impl Txn) -> Result<u64, MetaError> {
    match txn.get(&row_key()).await? {
        Some(value) => decode("next-id", &value),
        None => Ok(InodeId::FIRST_FREE.0),
    }
}

/// Moves the counter.
pub(crate) fn set_next(txn: &mut impl Txn, next: u64) {
    txn.set(&row_key(), &encode(&next));
}
