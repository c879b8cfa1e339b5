//! `DSTA` inode, field → a directory's mtime and ctime (by atomic max) and entry count (by atomic add).
//!
//! Apart from the inode, and never read by a change of the directory: siblings made at once must not conflict.

use janusfs_kv::Txn;
use janusfs_types::InodeId;

use super::{counter, key, prefix_end};
use crate::MetaError;

/// A directory's own figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct DirStat {
    /// Last change of the entries, ns; `None`: never.
    pub(crate) modified_ns: Option<i64>,
    /// As `modified_ns`; the inode has one too, the later counts.
    pub(crate) changed_ns: Option<i64>,
    /// Entries, in both slots.
    pub(crate) entries: u64,
}

pub(crate) const KIND: &[u8; 4] = b"DSTA";
const MODIFIED: &[u8] = b"m";
const CHANGED: &[u8] = b"c";
const ENTRIES: &[u8] = b"n";

fn row_key(id: InodeId, field: &[u8]) -> Vec<u8> {
    key(KIND, &[&id.0.to_be_bytes(), field])
}

/// Maps a time so that the order of the unsigned numbers is the order of times; 0 is kept for "never".
fn ordered(ns: i64) -> u64 {
    (ns.cast_unsigned() ^ (1 << 63)).max(1)
}

fn time(raw: u64) -> Option<i64> {
    (raw != 0).then(|| (raw ^ (1 << 63)).cast_signed())
}

/// Notes that entries came (positive) or went, at a time.
pub(crate) fn touch(txn: &mut impl Txn, id: InodeId, entries: i64, now_ns: i64) {
    txn.atomic_max(&row_key(id, MODIFIED), ordered(now_ns));
    txn.atomic_max(&row_key(id, CHANGED), ordered(now_ns));
    if entries != 0 {
        txn.atomic_add(&row_key(id, ENTRIES), entries);
    }
}

/// Sets the mtime, also to an earlier one.
pub(crate) fn set_modified(txn: &mut impl Txn, id: InodeId, ns: i64) {
    txn.set(&row_key(id, MODIFIED), &ordered(ns).to_le_bytes());
}

/// Reads the figures without conflicting.
pub(crate) async fn read(txn: &mut impl Txn, id: InodeId) -> Result<DirStat, MetaError> {
    let prefix = row_key(id, b"");
    let mut stat = DirStat::default();
    for (key, value) in txn.range_snapshot(&prefix, &prefix_end(&prefix), 3).await? {
        let raw = counter("DSTA", Some(&value))?;
        match &key[12..] {
            MODIFIED => stat.modified_ns = time(raw),
            CHANGED => stat.changed_ns = time(raw),
            _ => stat.entries = raw,
        }
    }
    Ok(stat)
}

/// Removes the figures.
pub(crate) fn remove(txn: &mut impl Txn, id: InodeId) {
    for field in [MODIFIED, CHANGED, ENTRIES] {
        txn.clear(&row_key(id, field));
    }
}
