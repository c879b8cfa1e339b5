//! The one retry policy of metadata calls.
//!
//! Invariant: a call whose outcome is unknown is repeated only when doing it twice is as good as once. Chunk
//! operations carry their own identity and are retried below, in `chain/client`.

use std::time::Duration;

use janusfs_chain_client::Backoff;
use janusfs_rpc::{Caller, Peer};
use janusfs_types::{FsError, limits};
use janusfs_wire::{
    Method,
    meta::{
        AllocIds, Fsck, GetAttr, GetBucket, GetKey, GetObject, GetUpload, GetXattr, Heartbeat,
        Hello, ListBuckets, ListObjects, ListParts, ListUploads, ListUsers, ListXattr, Lookup,
        Open, ReadDir, ReadLink, StatFs, SyncMeta, Trimmed,
    },
};

const DEADLINE: Duration = Duration::from_millis(limits::META_DEADLINE_MS);

/// Methods that read, or that may be applied twice: ids may be skipped, a session is recorded under its own number.
const REPEATABLE: &[u16] = &[
    AllocIds::ID,
    Fsck::ID,
    GetAttr::ID,
    GetBucket::ID,
    GetKey::ID,
    GetObject::ID,
    GetUpload::ID,
    GetXattr::ID,
    Heartbeat::ID,
    Hello::ID,
    ListBuckets::ID,
    ListObjects::ID,
    ListParts::ID,
    ListUploads::ID,
    ListUsers::ID,
    ListXattr::ID,
    Lookup::ID,
    Open::ID,
    ReadDir::ID,
    ReadLink::ID,
    StatFs::ID,
    SyncMeta::ID,
    Trimmed::ID,
];

/// Tells whether a method changes nothing that a client could see.
pub(crate) fn only_reads(method: u16) -> bool {
    REPEATABLE.contains(&method)
}

/// Calls the metadata service as `caller`, again while that may help and the deadline allows. Returns the answer's lease
/// too, in milliseconds from before the call.
pub(crate) async fn call_as<M: Method>(
    meta: &Peer,
    caller: Caller,
    message: &M,
) -> Result<(M::Reply, u32), FsError> {
    let mut backoff = Backoff::new(DEADLINE);
    loop {
        let left = backoff.remaining();
        let error = match janusfs_rpc::call_as(&**meta, caller, message, left).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let again = match &error {
            FsError::Busy => true,
            FsError::Unavailable(_) => REPEATABLE.contains(&M::ID),
            _ => false,
        };
        if !again || !backoff.pause().await {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use janusfs_wire::meta::{Create, PutObject, Rename, Unlink, WriteInline};

    use super::*;

    #[test]
    fn what_changes_something_is_not_repeatable() {
        for id in [
            Create::ID,
            Unlink::ID,
            Rename::ID,
            WriteInline::ID,
            PutObject::ID,
        ] {
            assert!(!REPEATABLE.contains(&id));
        }
    }
}
