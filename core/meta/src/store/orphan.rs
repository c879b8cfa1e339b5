//! `ORPH` epoch, kind, id → what is to be reclaimed once no reader of that epoch is left; and `DEAD` blob → a blob whose
//! chunks are being removed.
//!
//! An orphan is an inode without a name, or references to a blob that a living inode gave up (truncation, unsharing). A
//! `DEAD` row outlives every other trace of its blob and goes after the chunks, so that a crash repeats the removal.

use bytes::Bytes;
use janusfs_kv::Txn;
use janusfs_types::{BlobId, Epoch, InodeId, Layout};
use janusfs_wire::{DecodeError, wire_fields};

use super::{decode, encode, key, key_u64, prefix_end};
use crate::{MetaError, error::corrupt};

/// What waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Orphan {
    /// An inode whose last link went.
    Inode(InodeId),
    /// References to a blob that were given up.
    Blob(BlobId, Released),
}

/// References to a blob that were given up in one epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Released {
    /// The blob's layout.
    pub(crate) layout: Layout,
    /// How many.
    pub(crate) refs: u64,
}
wire_fields!(Released { layout, refs });

pub(crate) const KIND: &[u8; 4] = b"ORPH";
pub(crate) const DEAD_KIND: &[u8; 4] = b"DEAD";
const INODE: &[u8] = b"i";
const BLOB: &[u8] = b"b";

fn inode_key(epoch: Epoch, id: InodeId) -> Vec<u8> {
    key(KIND, &[&epoch.0.to_be_bytes(), INODE, &id.0.to_be_bytes()])
}

fn blob_key(epoch: Epoch, id: BlobId) -> Vec<u8> {
    key(KIND, &[&epoch.0.to_be_bytes(), BLOB, &id.0.to_be_bytes()])
}

fn dead_key(id: BlobId) -> Vec<u8> {
    key(DEAD_KIND, &[&id.0.to_be_bytes()])
}

/// Files an inode as orphan.
pub(crate) fn put_inode(txn: &mut impl Txn, epoch: Epoch, id: InodeId) {
    txn.set(&inode_key(epoch, id), &encode(&()));
}

/// Files `refs` more references to a blob as given up.
pub(crate) async fn add_blob(
    txn: &mut impl Txn,
    epoch: Epoch,
    id: BlobId,
    layout: Layout,
    refs: u64,
) -> Result<(), MetaError> {
    let key = blob_key(epoch, id);
    let before: Option<Released> = txn
        .get(&key)
        .await?
        .map(|value| decode("ORPH", &value))
        .transpose()?;
    let refs = before.map_or(0, |before| before.refs) + refs;
    txn.set(&key, &encode(&Released { layout, refs }));
    Ok(())
}

fn row_key(epoch: Epoch, orphan: Orphan) -> Vec<u8> {
    match orphan {
        Orphan::Inode(id) => inode_key(epoch, id),
        Orphan::Blob(id, _) => blob_key(epoch, id),
    }
}

/// Tells whether an orphan still waits; conflicts with another that reclaims it.
pub(crate) async fn waits(
    txn: &mut impl Txn,
    epoch: Epoch,
    orphan: Orphan,
) -> Result<bool, MetaError> {
    Ok(txn.get(&row_key(epoch, orphan)).await?.is_some())
}

/// Removes an orphan's row.
pub(crate) fn remove(txn: &mut impl Txn, epoch: Epoch, orphan: Orphan) {
    txn.clear(&row_key(epoch, orphan));
}

/// Returns at most `limit` orphans of epochs before `before`, oldest first, after the key `after`, without conflicting; and
/// the key of the last.
pub(crate) async fn scan(
    txn: &mut impl Txn,
    before: Epoch,
    after: Option<&[u8]>,
    limit: u32,
) -> Result<(Vec<(Epoch, Orphan)>, Option<Bytes>), MetaError> {
    let start = after.map_or_else(|| key(KIND, &[]), super::key_after);
    let end = key(KIND, &[&before.0.to_be_bytes()]);
    if start >= end {
        return Ok((Vec::new(), None));
    }
    let rows = txn.range_snapshot(&start, &end, limit).await?;
    let last = rows.last().map(|(key, _)| key.clone());
    let orphans = rows
        .iter()
        .map(|(key, value)| from_row(key, value))
        .collect::<Result<_, MetaError>>()?;
    Ok((orphans, last))
}

/// Reads back a row of a scan.
pub(crate) fn from_row(key: &[u8], value: &[u8]) -> Result<(Epoch, Orphan), MetaError> {
    let epoch = Epoch(key_u64("ORPH", key, 4)?);
    let id = key_u64("ORPH", key, 13)?;
    match &key[12..13] {
        INODE => Ok((epoch, Orphan::Inode(InodeId(id)))),
        BLOB => Ok((epoch, Orphan::Blob(BlobId(id), decode("ORPH", value)?))),
        _ => Err(corrupt("ORPH", DecodeError::Value("kind"))),
    }
}

/// Marks a blob that nothing refers to any more: its chunks may be removed.
pub(crate) fn put_dead(txn: &mut impl Txn, id: BlobId, layout: Layout) {
    txn.set(&dead_key(id), &encode(&layout));
}

/// Forgets a dead blob: its chunks are gone.
pub(crate) fn remove_dead(txn: &mut impl Txn, id: BlobId) {
    txn.clear(&dead_key(id));
}

/// Returns at most `limit` dead blobs, without conflicting.
pub(crate) async fn dead(
    txn: &mut impl Txn,
    limit: u32,
) -> Result<Vec<(BlobId, Layout)>, MetaError> {
    let prefix = key(DEAD_KIND, &[]);
    let rows = txn
        .range_snapshot(&prefix, &prefix_end(&prefix), limit)
        .await?;
    rows.iter()
        .map(|(key, value)| Ok((BlobId(key_u64("DEAD", key, 4)?), decode("DEAD", value)?)))
        .collect()
}
