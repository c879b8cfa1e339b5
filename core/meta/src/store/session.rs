//! `SESS` inode, client, session → a write-open. It holds back the reclamation of its inode while its client lives.

use bytes::Bytes;
use janusfs_kv::Txn;
use janusfs_types::{ClientId, InodeId, SessionId};

use super::{SCAN_PAGE, encode, key, key_u64, prefix_end};
use crate::MetaError;

pub(crate) const KIND: &[u8; 4] = b"SESS";

fn row_key(id: InodeId, client: ClientId, session: SessionId) -> Vec<u8> {
    key(
        KIND,
        &[
            &id.0.to_be_bytes(),
            &client.0.to_be_bytes(),
            &session.0.to_be_bytes(),
        ],
    )
}

/// Records a write-open.
pub(crate) fn put(txn: &mut impl Txn, id: InodeId, client: ClientId, session: SessionId) {
    txn.set(&row_key(id, client, session), &encode(&()));
}

/// Forgets a write-open.
pub(crate) fn remove(txn: &mut impl Txn, id: InodeId, client: ClientId, session: SessionId) {
    txn.clear(&row_key(id, client, session));
}

/// Returns the first write-opens of an inode, a page at most; conflicts with one that is made meanwhile.
pub(crate) async fn of_inode(
    txn: &mut impl Txn,
    id: InodeId,
) -> Result<Vec<(ClientId, SessionId)>, MetaError> {
    let prefix = key(KIND, &[&id.0.to_be_bytes()]);
    let rows = txn.range(&prefix, &prefix_end(&prefix), SCAN_PAGE).await?;
    rows.iter()
        .map(|(key, _)| {
            Ok((
                ClientId(key_u64("SESS", key, 12)?),
                SessionId(key_u64("SESS", key, 20)?),
            ))
        })
        .collect()
}

/// Returns a page of all write-opens after a key, without conflicting: keys and clients.
pub(crate) async fn page(
    txn: &mut impl Txn,
    after: Option<&[u8]>,
) -> Result<Vec<(Bytes, ClientId)>, MetaError> {
    let start = after.map_or_else(|| key(KIND, &[]), super::key_after);
    let rows = txn
        .range_snapshot(&start, &prefix_end(KIND), SCAN_PAGE)
        .await?;
    rows.into_iter()
        .map(|(key, _)| {
            let client = ClientId(key_u64("SESS", &key, 12)?);
            Ok((key, client))
        })
        .collect()
}

/// Forgets a write-open by the key that [`page`] gave.
pub(crate) fn remove_row(txn: &mut impl Txn, key: &[u8]) {
    txn.clear(key);
}
