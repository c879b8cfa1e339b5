//! From a layout and a chunk index to the chain and the peers that hold it.

use std::{collections::HashMap, sync::Arc};

use janusfs_rpc::Peer;
use janusfs_types::{ChainInfo, ChainTable, FsError, Layout, TargetId};
use janusfs_wire::storage::ChainRoute;

/// By address ("" is in process), the way to a node.
pub(crate) type Peers = Arc<dyn Fn(&str) -> Peer + Send + Sync>;

/// One chain table with the way to each of its targets. Immutable; a newer table makes a new one.
pub(crate) struct Routing {
    pub(crate) table: ChainTable,
    peers: HashMap<TargetId, Peer>,
}

impl Routing {
    pub(crate) fn new(table: ChainTable, peers: &Peers) -> Result<Self, FsError> {
        if table.chains.is_empty() || table.chains.iter().any(|chain| chain.targets.is_empty()) {
            return Err(FsError::Unavailable(
                "the chain table has no serving target".into(),
            ));
        }
        let peers = table
            .targets
            .iter()
            .map(|info| (info.target, peers(&info.address)))
            .collect();
        Ok(Self { table, peers })
    }

    /// Returns the chain that holds chunk `index` of a blob of this layout.
    pub(crate) fn chain(&self, layout: &Layout, index: u32) -> &ChainInfo {
        let count = u32::try_from(self.table.chains.len()).unwrap_or(u32::MAX);
        let slot = layout.chain_slot(index, count);
        &self.table.chains[usize::try_from(slot).expect("a slot fits a usize")]
    }

    /// Returns every chain that a blob of this layout can touch, each once.
    pub(crate) fn chains(&self, layout: &Layout) -> Vec<&ChainInfo> {
        let count = self
            .table
            .chains
            .len()
            .min(usize::from(layout.stripe.max(1)));
        let count = u32::try_from(count).expect("a stripe fits a u32");
        (0..count).map(|index| self.chain(layout, index)).collect()
    }

    /// Returns the chain a target serves in.
    pub(crate) fn chain_of(&self, target: TargetId) -> Result<&ChainInfo, FsError> {
        let serves = |chain: &&ChainInfo| chain.targets.contains(&target);
        self.table
            .chains
            .iter()
            .find(serves)
            .ok_or(FsError::NotFound)
    }

    pub(crate) fn peer(&self, target: TargetId) -> Result<&Peer, FsError> {
        self.peers
            .get(&target)
            .ok_or_else(|| FsError::Unavailable(format!("{target} has no known address")))
    }
}

pub(crate) fn head(chain: &ChainInfo) -> ChainRoute {
    route(chain, chain.targets[0])
}

pub(crate) fn route(chain: &ChainInfo, target: TargetId) -> ChainRoute {
    ChainRoute {
        chain: chain.chain,
        version: chain.version,
        target,
    }
}

#[cfg(test)]
mod tests {
    use janusfs_types::{ChainId, ChainVersion};

    use super::*;

    #[test]
    fn a_layout_touches_the_chains_of_its_chunks_and_no_other() {
        let chains = (0..5).map(|number| ChainInfo {
            chain: ChainId(number),
            version: ChainVersion(1),
            targets: vec![TargetId(number)],
        });
        let table = ChainTable {
            version: 1,
            chains: chains.collect(),
            targets: Vec::new(),
        };
        let routing = Routing {
            table,
            peers: HashMap::new(),
        };
        for (stripe, expected) in [(0, 1), (1, 1), (3, 3), (5, 5), (64, 5)] {
            for seed in 0..20 {
                let layout = Layout {
                    chunk_size_log2: 20,
                    chain_table: 1,
                    stripe,
                    seed,
                };
                let mut touched: Vec<u32> = (0..200)
                    .map(|index| routing.chain(&layout, index).chain.0)
                    .collect();
                touched.sort_unstable();
                touched.dedup();
                let mut chains: Vec<u32> = routing
                    .chains(&layout)
                    .iter()
                    .map(|chain| chain.chain.0)
                    .collect();
                chains.sort_unstable();
                assert_eq!(chains, touched);
                assert_eq!(chains.len(), expected);
            }
        }
    }
}
