//! One local chunk store on one directory: versioned chunks in slots of data files, their rows in RocksDB.
//!
//! Synchronous, passive and thread-safe: no threads, no timers, no async. The caller supplies concurrency, calls
//! [`Engine::sync`] for stability and paces [`Engine::verify`]. Replication, repair and throttling are absent: they
//! belong to `chain/server`. How it survives a power cut is in `DESIGN.md` beside this crate.
//!
//! Reading order: `api`, `engine`, `engine/write`, `engine/recover`, `slots`, `image`, `meta/row`, `disk`, `crc`.

mod api;
mod crc;
mod disk;
mod engine;
mod error;
mod image;
mod meta;
mod slots;

pub use api::{
    ChunkInfo, ChunkRead, EngineOp, EngineOptions, EngineUsage, ReadMode, StageWrite, StagedInfo,
    Tag,
};
pub use engine::Engine;
pub use error::EngineError;
