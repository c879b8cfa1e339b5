//! What a store that has no room for more than deletes still takes.
//!
//! Invariant: nothing that makes room, and nothing that publishes bytes already taken in, is refused.

use janusfs_kv::Kv;
use janusfs_types::FsError;
use janusfs_wire::{
    Method,
    meta::{
        CopyObject, CopyPart, Create, CreateBucket, CreateKey, CreateUpload, CreateUser, Link,
        PutObject, PutPart, SetXattr, Spill, Symlink, Unshare, WriteInline,
    },
};

/// Calls that leave the store larger than it was.
const GROWING: &[u16] = &[
    Create::ID,
    Symlink::ID,
    Link::ID,
    WriteInline::ID,
    Spill::ID,
    Unshare::ID,
    SetXattr::ID,
    CreateBucket::ID,
    PutObject::ID,
    CopyObject::ID,
    CreateUpload::ID,
    PutPart::ID,
    CopyPart::ID,
    CreateUser::ID,
    CreateKey::ID,
];

/// Refuses a call that the store has no room for.
///
/// # Errors
/// [`FsError::NoSpace`].
pub(crate) fn check(kv: &impl Kv, method: u16) -> Result<(), FsError> {
    if GROWING.contains(&method) && !kv.has_room() {
        return Err(FsError::NoSpace);
    }
    Ok(())
}
