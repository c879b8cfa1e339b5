//! The transactional seam: an ordered, strictly serializable key-value store with FoundationDB's semantics.
//!
//! Contract (FoundationDB developer guide, "Transactions in FoundationDB"):
//! - A transaction reads one snapshot, taken at its first read, and its own writes.
//! - It commits only if nothing it read (keys *and* ranges, phantoms too) was changed since its snapshot; otherwise
//!   [`KvError::Conflict`] and nothing is applied. `snapshot` reads do not count.
//! - Limits of `janusfs_types::limits` (key, value, transaction bytes, seconds) hold on every backend.
//! - [`KvError::CommitUnknown`] means maybe applied.
//!
//! Backends: `MemKv` (tests, simulation), `RocksKv` (embedded default). [`run`] is the only retry loop.

mod kv;
mod run;

mod key;
mod mem;
mod rocks;
mod window;
mod writes;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(test)]
mod model_tests;

pub use key::{KeyBuilder, key_after, prefix_end};
pub use kv::{Durability, Kv, KvError, Txn};
pub use mem::{MemKv, MemTxn};
pub use rocks::{OpenError, RocksKv, RocksKvOptions, RocksTxn};
pub use run::{ATTEMPTS_MAX, Attempt, RETRY_TIME_MAX, RetryClass, run, run_idempotent};
