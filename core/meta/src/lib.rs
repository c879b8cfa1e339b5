//! The metadata service: one namespace as strictly serializable transactions over `core/kv`.
//!
//! Owns: the records (one file per kind under `store`), the tree they form, what every message of
//! `janusfs_wire::meta` does, reclamation, and the check of all of it. Absent: sockets (it is a
//! `janusfs_rpc::Handler`), chunk data (clients and the server's reclaimer talk to the chains), and any state that
//! a restart may not lose, save the leases of clients, which a grace period covers.
//!
//! Reading order: `store`, `tree`, `meta`, `ops`, `s3`, `reclaim`, `journal`, `fsck`, `service`.
#![forbid(unsafe_code)]

mod error;
mod fsck;
mod ids;
mod journal;
mod lease;
mod meta;
mod ops;
mod posix_name;
mod reclaim;
mod room;
mod s3;
mod service;
mod store;
#[cfg(test)]
mod tests;
mod tree;
mod watch;
mod watched;

pub use error::MetaError;
pub use meta::{Meta, MetaConfig};
pub use reclaim::ReclaimBlob;
