//! `SING` `epoch` → the current reclamation epoch; `SING` `format` → the version of the stored format; `SING` `leases` →
//! present while clients in other processes may hold cache leases; `SING` `starts` → how often a service was started on the store.

use janusfs_kv::Txn;
use janusfs_types::Epoch;

use super::{decode, encode, key};
use crate::MetaError;

/// The stored format that this build writes and reads.
pub(crate) const FORMAT: u32 = 1;

fn epoch_key() -> Vec<u8> {
    key(b"SING", &[b"epoch"])
}

fn format_key() -> Vec<u8> {
    key(b"SING", &[b"format"])
}

/// Reads the epoch for filing an orphan. Conflicts when it advances meanwhile: an open that still saw the name then has
/// an epoch no later than the orphan's.
pub(crate) async fn current(txn: &mut impl Txn) -> Result<Epoch, MetaError> {
    let value = txn.get(&epoch_key()).await?;
    value.map_or(Ok(Epoch(1)), |value| decode("epoch", &value))
}

/// Reads the epoch for a reader, without conflicting.
pub(crate) async fn current_snapshot(txn: &mut impl Txn) -> Result<Epoch, MetaError> {
    let value = txn.get_snapshot(&epoch_key()).await?;
    value.map_or(Ok(Epoch(1)), |value| decode("epoch", &value))
}

/// Sets the epoch.
pub(crate) fn set(txn: &mut impl Txn, epoch: Epoch) {
    txn.set(&epoch_key(), &encode(&epoch));
}

/// Reads the version of the stored format; none: the store is new.
pub(crate) async fn format(txn: &mut impl Txn) -> Result<Option<u32>, MetaError> {
    txn.get(&format_key())
        .await?
        .map(|value| decode("format", &value))
        .transpose()
}

/// Sets the version of the stored format.
pub(crate) fn set_format(txn: &mut impl Txn, format: u32) {
    txn.set(&format_key(), &encode(&format));
}

/// Counts a start of a service; returns how many there were with it.
pub(crate) async fn count_start(txn: &mut impl Txn) -> Result<u64, MetaError> {
    let key = key(b"SING", &[b"starts"]);
    let before: u64 = match txn.get(&key).await? {
        Some(value) => decode("starts", &value)?,
        None => 0,
    };
    let starts = before + 1;
    txn.set(&key, &encode(&starts));
    Ok(starts)
}

fn leases_key() -> Vec<u8> {
    key(b"SING", &[b"leases"])
}

/// Tells whether clients in other processes may hold cache leases.
pub(crate) async fn remote_leases(txn: &mut impl Txn) -> Result<bool, MetaError> {
    let value = txn.get(&leases_key()).await?;
    value.map_or(Ok(false), |value| decode("leases", &value))
}

/// Notes whether clients in other processes may hold cache leases.
pub(crate) fn set_remote_leases(txn: &mut impl Txn, held: bool) {
    if held {
        txn.set(&leases_key(), &encode(&true));
    } else {
        txn.clear(&leases_key());
    }
}
