//! What the messages of clients and POSIX callers do, one file per group; each message is a method of `Meta` of its name.
//!
//! Invariant: each is one transaction. POSIX changes are on stable storage within a second unless the message says
//! durable (promise P2). Permission bits are checked by the mount's kernel, not here.

mod attr;
mod cluster;
mod data;
mod names;
mod rename;
mod xattr;

use janusfs_kv::{Durability, Txn};
use janusfs_types::FsError;
use janusfs_wire::meta::{Found, Opened};

use crate::{
    MetaError,
    store::{epoch, inode::InodeRecord},
    tree,
};

/// Returns when a change that the caller may want durable must be.
fn durability(durable: bool) -> Durability {
    if durable {
        Durability::Now
    } else {
        Durability::Soon
    }
}

/// Returns a record as callers see it.
async fn found(txn: &mut impl Txn, record: &InodeRecord) -> Result<Found, MetaError> {
    Ok(Found {
        attr: tree::attr_of(txn, record.attr).await?,
    })
}

/// Returns a record with its content and the epoch of this read.
pub(crate) async fn opened(txn: &mut impl Txn, record: InodeRecord) -> Result<Opened, MetaError> {
    let epoch = epoch::current_snapshot(txn).await?;
    let attr = tree::attr_of(txn, record.attr).await?;
    Ok(Opened {
        attr,
        content: record.content,
        epoch,
    })
}

fn invalid(text: &str) -> MetaError {
    FsError::Invalid(text.into()).into()
}
