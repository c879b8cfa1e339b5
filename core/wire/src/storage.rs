//! Messages of the storage role: chunk reads and writes, the chain-internal forward, barriers, and removal.

use janusfs_types::{
    BlobId, ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, RequestId, TargetId,
};

use crate::{ServiceId, methods, wire_enum, wire_fields};

/// Where a request goes and which chain version its sender knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainRoute {
    /// The chain.
    pub chain: ChainId,
    /// The version the sender routed by; another one is refused with `StaleChain`.
    pub version: ChainVersion,
    /// The target that shall act.
    pub target: TargetId,
}
wire_fields!(ChainRoute {
    chain,
    version,
    target
});

/// What a write does to a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteOp {
    /// Puts the payload at an offset; a gap before it reads as zeros.
    Write {
        /// First byte in the chunk.
        offset: u32,
    },
    /// As `Write` at offset 0, only if the chunk does not exist; else `Exists`.
    Create,
    /// Cuts the chunk to a length; longer than it is: no change.
    Truncate {
        /// New length in bytes; 0 removes the bytes but keeps the version going.
        len_bytes: u32,
    },
}
wire_enum!(WriteOp { 1 => Write { offset }, 2 => Create, 3 => Truncate { len_bytes } });

/// Identity of a write for exactly-once: a retry carries the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WriteTag {
    /// Who.
    pub client: ClientId,
    /// Which of its writes.
    pub request: RequestId,
}
wire_fields!(WriteTag { client, request });

/// Answer to a read. The payload is the reply's bulk body and may be shorter than asked: the chunk ends there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadDone {
    /// Version of the bytes; 0: no such chunk.
    pub version: ChunkVersion,
    /// CRC32C of the payload.
    pub crc: u32,
}
wire_fields!(ReadDone { version, crc });

/// Answer to a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteDone {
    /// The committed version.
    pub version: ChunkVersion,
    /// Length of the chunk afterwards.
    pub len_bytes: u32,
}
wire_fields!(WriteDone { version, len_bytes });

/// A chunk as one target knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkStatus {
    /// The chunk.
    pub chunk: ChunkId,
    /// Committed version.
    pub version: ChunkVersion,
    /// Committed length in bytes.
    pub len_bytes: u32,
    /// CRC32C of the committed bytes.
    pub crc: u32,
    /// The write that made this version; a repair carries it along, so that a retry still applies once.
    pub last: Option<WriteTag>,
}
wire_fields!(ChunkStatus {
    chunk,
    version,
    len_bytes,
    crc,
    last
});

/// Figures of one target.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TargetUsage {
    /// The target's number.
    pub target: u32,
    /// Bytes of the disk.
    pub capacity_bytes: u64,
    /// Free bytes of the disk.
    pub free_bytes: u64,
    /// Bytes in allocated slots.
    pub used_bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Checksum errors noticed since start.
    pub corruptions: u64,
    /// Chunks repaired from another replica since start.
    pub repairs: u64,
}
wire_fields!(TargetUsage {
    target,
    capacity_bytes,
    free_bytes,
    used_bytes,
    chunks,
    corruptions,
    repairs
});

methods! { ServiceId::Storage;
    /// Reads committed bytes. When a pending version exists the replica asks the tail (CRAQ). `relaxed` skips that.
    1 Read { route: ChainRoute, chunk: ChunkId, offset: u32, len_bytes: u32, relaxed: bool } -> ReadDone;
    /// Writes through the chain; goes to the head. Answered once every serving replica has it in hand (promise P2);
    /// `Sync` makes it stable. The payload is the bulk body; `crc` is its CRC32C. `expected_len_bytes` is what the chunk is
    /// expected to grow to, or 0: a hint for where to put it.
    2 Write { route: ChainRoute, chunk: ChunkId, op: WriteOp, crc: u32, tag: WriteTag, expected_len_bytes: u32 } -> WriteDone;
    /// Chain-internal: a predecessor passes a write on with the version the head gave it.
    3 Forward { route: ChainRoute, chunk: ChunkId, op: WriteOp, crc: u32, tag: WriteTag, version: ChunkVersion, expected_len_bytes: u32 } -> WriteDone;
    /// Returns when everything the chain acknowledged before is on stable storage of every serving replica. To the head.
    4 Sync { route: ChainRoute } -> ();
    /// Removes chunks of a blob with index >= `from_index`, through the chain, at most 1,024 a call; returns how many went (0: done).
    /// Only for blobs nobody can reach (reclamation) or chunks past a file's end (trim).
    5 Remove { route: ChainRoute, blob: BlobId, from_index: u32 } -> u32;
    /// A target's committed state of a chunk (chain-internal: version query of CRAQ, repair, fsck).
    6 Query { route: ChainRoute, chunk: ChunkId } -> Option<ChunkStatus>;
    /// Chunks of a target after `after` in order, at most `limit`.
    7 List { route: ChainRoute, after: Option<ChunkId>, limit: u32 } -> Vec<ChunkStatus>;
    /// Figures of every target of the node.
    8 Usage {} -> Vec<TargetUsage>;
    /// Verifies chunks of a target after `after`, at most `limit`; damaged ones are repaired from another replica where there is one.
    /// Returns the last chunk looked at (none: the end) and the chunks that could not be repaired.
    9 Scrub { route: ChainRoute, after: Option<ChunkId>, limit: u32 } -> ScrubStep;
}

/// Answer to `Scrub`.
#[derive(Clone, PartialEq, Debug)]
pub struct ScrubStep {
    /// Last chunk looked at; none: the target's end is reached.
    pub last: Option<ChunkId>,
    /// Chunks looked at.
    pub checked: u64,
    /// Damaged chunks that were mended.
    pub repaired: u64,
    /// Damaged chunks that no replica could mend.
    pub lost: Vec<ChunkId>,
}
wire_fields!(ScrubStep {
    last,
    checked,
    repaired,
    lost
});
