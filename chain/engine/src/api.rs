//! The values that cross the engine's boundary.

use bytes::Bytes;
use janusfs_types::{ChunkId, ChunkVersion, ClientId, RequestId, limits};

/// Settings of one store.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Writes are refused with `NoSpace` when they would leave less than this free on the file system, in bytes.
    pub free_min_bytes: u64,
    /// RocksDB's block cache in bytes.
    pub meta_cache_bytes: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            free_min_bytes: limits::TARGET_FREE_MIN_BYTES,
            meta_cache_bytes: 16 << 20,
        }
    }
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadMode {
    /// Only what the page cache holds.
    Cached,
    /// Waits for the disk where needed.
    Blocking,
}

/// Identity of a write for exactly-once: a retry carries the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag {
    /// Who.
    pub client: ClientId,
    /// Which of its writes.
    pub request: RequestId,
}

/// Committed bytes of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkRead {
    /// The committed version the bytes belong to; 0: no such chunk.
    pub version: ChunkVersion,
    /// Whether an uncommitted version is staged as well.
    pub pending: bool,
    /// The bytes; shorter than asked when the chunk ends earlier.
    pub data: Bytes,
    /// CRC32C of `data`.
    pub crc: u32,
}

/// What the engine knows about a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkInfo {
    /// The chunk.
    pub chunk: ChunkId,
    /// Committed version; 0 when only a pending one exists.
    pub committed: ChunkVersion,
    /// Committed length in bytes.
    pub len_bytes: u32,
    /// CRC32C of all committed bytes.
    pub crc: u32,
    /// The write that made the committed version.
    pub last: Option<Tag>,
    /// The staged version, if there is one.
    pub pending: Option<ChunkVersion>,
}

/// What a write does to a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineOp {
    /// Puts the payload at an offset; a gap before it reads as zeros.
    Write {
        /// First byte in the chunk.
        offset: u32,
    },
    /// As `Write` at offset 0, only if no version is committed; else `Exists`.
    Create,
    /// Cuts the chunk to a length; longer than it is: no change of the bytes. The payload is ignored.
    Truncate {
        /// New length in bytes.
        len_bytes: u32,
    },
}

/// One write to stage.
#[derive(Clone, Copy, Debug)]
pub struct StageWrite<'a> {
    /// The chunk.
    pub chunk: ChunkId,
    /// The version it will be: committed + 1.
    pub version: ChunkVersion,
    /// What to do.
    pub op: EngineOp,
    /// The payload, in order.
    pub data: &'a [Bytes],
    /// CRC32C of the payload.
    pub crc: u32,
    /// Kept with the version, for exactly-once.
    pub tag: Option<Tag>,
    /// Length that the chunk is expected to reach; 0: not known. Only a hint: a fresh slot is chosen for it, so that a
    /// chunk that arrives in several writes does not move from class to class.
    pub expected_len_bytes: u32,
}

/// The chunk as it will be once the staged version is committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StagedInfo {
    /// Length in bytes.
    pub len_bytes: u32,
    /// CRC32C of all bytes.
    pub crc: u32,
}

/// Space and count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineUsage {
    /// Size of the file system in bytes.
    pub capacity_bytes: u64,
    /// Bytes of it that may still be written.
    pub free_bytes: u64,
    /// Bytes of allocated slots, also those whose release still waits for a barrier.
    pub used_bytes: u64,
    /// Chunks, also those that only have a pending version.
    pub chunks: u64,
}
