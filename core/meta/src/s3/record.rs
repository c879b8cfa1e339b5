//! Access to the rows of buckets, users and uploads, whose kinds are in the files that use them.

use bytes::Bytes;
use janusfs_kv::Txn;
use janusfs_wire::Wire;

use crate::{
    MetaError,
    store::{decode, encode, prefix_end},
};

/// A record kind.
pub(super) trait Record: Wire {
    /// The letters that its keys begin with.
    const NAME: &'static str;
}

/// Reads a record.
pub(super) async fn get<R: Record>(txn: &mut impl Txn, key: &[u8]) -> Result<Option<R>, MetaError> {
    txn.get(key)
        .await?
        .map(|value| decode(R::NAME, &value))
        .transpose()
}

/// Writes a record.
pub(super) fn set<R: Record>(txn: &mut impl Txn, key: &[u8], record: &R) {
    txn.set(key, &encode(record));
}

/// Reads at most `limit` records whose keys begin with `prefix` and are not below `start`, with what follows the prefix;
/// without conflicting.
pub(super) async fn scan<R: Record>(
    txn: &mut impl Txn,
    prefix: &[u8],
    start: &[u8],
    limit: u32,
) -> Result<Vec<(Bytes, R)>, MetaError> {
    txn.range_snapshot(start.max(prefix), &prefix_end(prefix), limit)
        .await?
        .into_iter()
        .map(|(key, value)| Ok((key.slice(prefix.len()..), decode(R::NAME, &value)?)))
        .collect()
}

/// Encodes a record and reads it back.
#[cfg(test)]
pub(super) fn there_and_back<R: Record>(record: &R) -> R {
    decode(R::NAME, &encode(record)).unwrap()
}
