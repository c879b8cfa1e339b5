//! Chains and the table that layouts refer to.

use alloc::{string::String, vec::Vec};

use crate::{ChainId, ChainVersion, NodeId, TargetId};

/// Where a target can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetInfo {
    /// The target.
    pub target: TargetId,
    /// The node that hosts it.
    pub node: NodeId,
    /// `host:port` of that node's cluster address; empty when only reachable in process.
    pub address: String,
}

/// The serving members of a chain, head first, tail last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChainInfo {
    /// The chain.
    pub chain: ChainId,
    /// Grows with each change of the members.
    pub version: ChainVersion,
    /// Serving targets in chain order, never empty.
    pub targets: Vec<TargetId>,
}

/// The chains that layouts of one table version map to, by slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChainTable {
    /// What [`crate::Layout::chain_table`] names.
    pub version: u32,
    /// Chains by slot, never empty.
    pub chains: Vec<ChainInfo>,
    /// Every target named in `chains`.
    pub targets: Vec<TargetInfo>,
}
