//! Chunk reads and writes over the chains of one chain table.
//!
//! Owns: which replica answers, checking CRC32C on arrival, computing it before departure, and riding through a busy
//! chunk, a stale route or a lost peer until the deadline. Absent: files and blobs' lengths (`core/client`), the
//! protocol between replicas (`chain/protocol`).
//!
//! Invariants: a write keeps its [`WriteTag`](janusfs_wire::storage::WriteTag) over all its attempts, so a retry after
//! an unknown outcome is applied once. No byte leaves [`ChainClient::read`] unverified. Against one target in process
//! that answers at once, no call suspends.
#![forbid(unsafe_code)]

mod backoff;
mod client;
mod crc;
mod routing;

pub use backoff::Backoff;
pub use client::ChainClient;
