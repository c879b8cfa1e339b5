//! `USAG` root, figure → bytes and entries counted in an accounting root, by atomic add.
//!
//! Invariant: every inode with a link is counted in its record's `root`: its size (regular files) and one entry. An
//! accounting root is not counted in itself.

use janusfs_kv::Txn;
use janusfs_types::InodeId;

use super::{counter, key, key_u64, prefix_end, scan_all};
use crate::MetaError;

/// What is below an accounting root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage {
    /// Sum of the sizes of regular files.
    pub(crate) bytes: u64,
    /// Inodes.
    pub(crate) entries: u64,
}

pub(crate) const KIND: &[u8; 4] = b"USAG";
const BYTES: &[u8] = b"b";
const ENTRIES: &[u8] = b"n";

fn row_key(root: InodeId, field: &[u8]) -> Vec<u8> {
    key(KIND, &[&root.0.to_be_bytes(), field])
}

/// Adds to the figures.
pub(crate) fn add(txn: &mut impl Txn, root: InodeId, bytes: i64, entries: i64) {
    if bytes != 0 {
        txn.atomic_add(&row_key(root, BYTES), bytes);
    }
    if entries != 0 {
        txn.atomic_add(&row_key(root, ENTRIES), entries);
    }
}

/// Returns how much larger `new` is than `old`.
///
/// # Panics
/// Never: sizes are below `limits::FILE_SIZE_MAX_BYTES`.
pub(crate) fn delta(old: u64, new: u64) -> i64 {
    let signed = |size: u64| i64::try_from(size).expect("sizes are limited");
    signed(new) - signed(old)
}

/// Reads the figures of a root, without conflicting.
pub(crate) async fn read(txn: &mut impl Txn, root: InodeId) -> Result<Usage, MetaError> {
    let bytes = txn.get_snapshot(&row_key(root, BYTES)).await?;
    let entries = txn.get_snapshot(&row_key(root, ENTRIES)).await?;
    Ok(Usage {
        bytes: counter("USAG", bytes.as_deref())?,
        entries: counter("USAG", entries.as_deref())?,
    })
}

/// Reads the figures of every root, without conflicting.
pub(crate) async fn all(txn: &mut impl Txn) -> Result<Vec<(InodeId, Usage)>, MetaError> {
    let mut roots: Vec<(InodeId, Usage)> = Vec::new();
    for (key, value) in scan_all(txn, &key(KIND, &[])).await? {
        let root = InodeId(key_u64("USAG", &key, 4)?);
        if roots.last().is_none_or(|(last, _)| *last != root) {
            roots.push((root, Usage::default()));
        }
        let amount = counter("USAG", Some(&value))?;
        if let Some((_, usage)) = roots.last_mut() {
            match &key[12..] {
                BYTES => usage.bytes = amount,
                _ => usage.entries = amount,
            }
        }
    }
    Ok(roots)
}

/// Removes the figures of a root that is one no more.
pub(crate) fn remove(txn: &mut impl Txn, root: InodeId) {
    let prefix = row_key(root, b"");
    txn.clear_range(&prefix, &prefix_end(&prefix));
}
