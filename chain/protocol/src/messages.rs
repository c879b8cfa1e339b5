//! What goes into a replica and what comes out.
//!
//! Every output but the two answers has one completion: `Load` → `Loaded`; `Stage`, `StageAndCommit` → `Staged` or
//! `StageFailed`; `Forward` → `SuccessorAcked` or `SuccessorFailed`; `Commit` → `Committed` or `CommitFailed`;
//! `Discard` → `Discarded`; `Repair` → `Repaired` or `RepairFailed`. Payload stays with the driver, by [`WriteId`].

use core::fmt;

use janusfs_types::{ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, RequestId};

/// The driver's name for one piece of work on one replica; never reused while the replica knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId(pub u64);

/// Identity of a client's write: a retry carries the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag {
    /// Who.
    pub client: ClientId,
    /// Which of its writes.
    pub request: RequestId,
}

/// A replica's place in its chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Membership {
    /// The chain.
    pub chain: ChainId,
    /// The version of the chain this place belongs to.
    pub version: ChainVersion,
    /// No predecessor: orders writes.
    pub is_head: bool,
    /// No successor: decides what is committed.
    pub is_tail: bool,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// A client asks the head for a write.
    ClientWrite {
        /// The work's name.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The client's identity for it.
        tag: Tag,
        /// The chain version the client knows.
        chain_version: ChainVersion,
    },
    /// The predecessor passes a write on.
    Forwarded {
        /// The work's name.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The client's identity for it.
        tag: Tag,
        /// The chain version the predecessor knows.
        chain_version: ChainVersion,
        /// The version the head gave it.
        version: ChunkVersion,
    },
    /// The driver found the chunk damaged, or behind: copy it from another replica when its turn comes.
    Mend {
        /// The work's name.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// What the engine holds of the chunk.
    Loaded {
        /// The work it was loaded for.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The committed version; 0: none.
        committed: ChunkVersion,
        /// Who wrote that version.
        last: Option<Tag>,
        /// A staged version of unknown fate, left by an earlier life.
        pending: Option<ChunkVersion>,
    },
    /// The version is staged (at the tail: and committed).
    Staged {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// Nothing was staged.
    StageFailed {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The successor and everyone after it committed the version. Duplicates and late ones are ignored.
    SuccessorAcked {
        /// The work that was forwarded.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// The successor did not take the write.
    SuccessorFailed {
        /// The work that was forwarded.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// Refused before any effect, on the first attempt. False: nobody knows, a copy may still arrive.
        refused: bool,
        /// The successor's committed state contradicts ours: copy it.
        diverged: bool,
    },
    /// The version is committed here.
    Committed {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The engine could not commit.
    CommitFailed {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The staged version is gone.
    Discarded {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The engine holds another replica's committed chunk now.
    Repaired {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The committed version.
        committed: ChunkVersion,
        /// Who wrote that version.
        last: Option<Tag>,
    },
    /// No other replica could give the chunk.
    RepairFailed {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
}

/// What the driver shall do for a piece of work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Output {
    /// Read the chunk's committed state from the engine.
    Load {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// Keep the write's payload as the chunk's pending version, over any pending one.
    Stage {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Tail: stage and commit in one step.
    StageAndCommit {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Pass the write on to the successor.
    Forward {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Make the pending version the committed one.
    Commit {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Forget the pending version.
    Discard {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// Copy the newest committed version of the chunk from another replica and forget the pending one. Safe, because
    /// a pending version whose fate is unknown is also kept in mind here (`Replica::must_ask_tail`).
    Repair {
        /// The work.
        write: WriteId,
        /// The chunk.
        chunk: ChunkId,
        /// A version known to be committed; an older copy is no repair.
        at_least: ChunkVersion,
    },
    /// Answer the client or the predecessor: committed here and on everyone after.
    Reply {
        /// The work; it is over.
        write: WriteId,
        /// The chunk's version after the write.
        version: ChunkVersion,
    },
    /// Answer with an error.
    Fail {
        /// The work; it is over.
        write: WriteId,
        /// Why.
        reason: Reason,
    },
}

impl Output {
    /// Returns the work the output belongs to.
    #[must_use]
    pub fn write(&self) -> WriteId {
        match *self {
            Self::Load { write, .. }
            | Self::Stage { write, .. }
            | Self::StageAndCommit { write, .. }
            | Self::Forward { write, .. }
            | Self::Commit { write, .. }
            | Self::Discard { write, .. }
            | Self::Repair { write, .. }
            | Self::Reply { write, .. }
            | Self::Fail { write, .. } => write,
        }
    }
}

/// Why a piece of work failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// The local engine refused it; it has no effect anywhere.
    Stage,
    /// The successor refused it; it has no effect anywhere.
    Successor,
    /// It may have been applied at the tail: retry with the same tag.
    Unknown,
    /// A forwarded version that is older than the committed one: a late duplicate, without effect.
    Old,
    /// A forwarded version is committed here with another write: the predecessor is behind.
    Diverged,
    /// A forwarded version is not the next one: this replica is behind and must be mended.
    Gap,
    /// The chunk could not be mended.
    Repair,
}

/// Why an input was refused at once, without effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejected {
    /// The sender knows another version of the chain.
    StaleChain,
    /// A client's write for the head, or a forward for anyone but the head, came to the wrong place.
    WrongPlace,
    /// Too many chunks or too many writes of this chunk are in flight (`limits`).
    Busy,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StaleChain => "the chain has another version",
            Self::WrongPlace => "the write went to the wrong replica",
            Self::Busy => "too many writes in flight",
        })
    }
}

impl core::error::Error for Rejected {}
