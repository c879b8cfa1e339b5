//! The storage role: chunk engines of one node behind the replication protocol.
//!
//! Owns: dispatch of storage requests, the driver of each [`janusfs_chain_protocol::Replica`], repair, scrub and the
//! reconciliation after a restart. Absent: decisions of the protocol (`chain/protocol`), bytes on disk
//! (`chain/engine`), sockets (`chain/transport`).
//!
//! Reading order: `role`, `target`, `write`, `repair`, `reconcile`.
#![forbid(unsafe_code)]

mod barriers;
mod limits;
mod reconcile;
mod repair;
mod role;
mod target;
mod unbroken;
mod write;

pub use barriers::Barriers;
pub use role::{PeerSource, StorageConfig, StorageRole};
