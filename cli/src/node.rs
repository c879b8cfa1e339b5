//! Every role in one process: opens the stores, wires the services together, and takes them down in order.
//!
//! Order of the way down: doors first (by the caller), then reclamation, then storage and metadata are synced and closed.

use std::sync::Arc;

use anyhow::{Context, Result};
use janusfs_chain_client::ChainClient;
use janusfs_chain_server::{Barriers, StorageConfig, StorageRole};
use janusfs_client::Client;
use janusfs_kv::{Kv, RocksKv, RocksKvOptions};
use janusfs_meta::{Meta, MetaConfig};
use janusfs_rpc::{Peer, Router};
use janusfs_server::Reclamation;
use janusfs_types::{
    ChainId, ChainInfo, ChainTable, ChainVersion, ClientId, Credentials, Layout, NodeId, TargetId,
    TargetInfo, limits,
};
use janusfs_wire::ServiceId;
use tokio::runtime::Handle;

use crate::data_dir::{DataDir, Format};

/// The address that stands for "in this process" in a chain table.
const IN_PROCESS: &str = "";

/// Returns whose a new namespace and its root user's files are: who runs the node can work on what is mounted.
pub(crate) fn process_owner() -> Credentials {
    Credentials {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

/// The roles of one process.
pub(crate) struct Node {
    kv: Arc<RocksKv>,
    storage: Arc<StorageRole>,
    barriers: Barriers,
    reclamation: Reclamation,
    /// Every service; also the in-process transport.
    pub(crate) router: Arc<Router>,
    /// A client of this node.
    pub(crate) client: Client,
    /// Its chunk-level client.
    pub(crate) chains: Arc<ChainClient>,
}

impl Node {
    /// Opens the stores in `dir` and starts the roles. After a crash this includes recovery.
    pub(crate) async fn start(dir: &DataDir) -> Result<Self> {
        let table = chain_table(dir.format);
        let targets = table.targets.iter().map(|info| info.target);
        let engine_dirs = targets
            .map(|target| (target, dir.join("targets").join(target.0.to_string())))
            .collect();
        let storage_config = StorageConfig {
            table: table.clone(),
            engine_dirs,
            inflight_max_bytes: limits::STORAGE_INFLIGHT_MAX_BYTES,
        };
        // Every target of this process is reached through the role itself: no other address occurs in the table.
        let nobody: Arc<dyn Fn(&str) -> Peer + Send + Sync> = Arc::new(|_| Arc::new(Router::new()));
        let storage = StorageRole::open(storage_config, nobody)
            .await
            .context("cannot open the storage targets")?;
        let barriers = Barriers::start(storage.clone());
        let meta_dir = dir.join("meta");
        let kv = janusfs_env::tasks::blocking(move || {
            RocksKv::open(&meta_dir, RocksKvOptions::default())
        })
        .await
        .context("cannot open the metadata store")?;
        let kv = Arc::new(kv);
        let layout = default_layout(&table);
        let config = MetaConfig {
            layout,
            table,
            owner: process_owner(),
        };
        let meta = Meta::open(kv.clone(), config)
            .await
            .context("cannot open the metadata")?;
        let meta = Arc::new(meta);
        let router = Router::new()
            .with(ServiceId::Meta, meta.clone())
            .with(ServiceId::Storage, storage.clone());
        let router = Arc::new(router);
        let client = client_of(&router).await?;
        let chains = ChainClient::new(
            ClientId(janusfs_env::rng::random_u64()),
            client.chain_table(),
            peers(&router),
        )
        .context("cannot reach the storage targets")?;
        let chains = Arc::new(chains);
        let reclamation = Reclamation::start(meta, chains.clone(), layout);
        Ok(Self {
            kv,
            storage,
            barriers,
            reclamation,
            router,
            client,
            chains,
        })
    }

    /// Makes a further client of this node. The mount has its own: what the S3 door changes is news to the kernel, what
    /// the mount changes is not.
    pub(crate) async fn new_client(&self) -> Result<Client> {
        client_of(&self.router).await
    }

    /// Syncs and closes everything. The doors must be closed already.
    pub(crate) async fn stop(self) -> Result<()> {
        self.reclamation.stop().await;
        self.barriers.stop().await;
        self.storage.shutdown().await;
        self.kv
            .sync()
            .await
            .context("cannot sync the metadata store")?;
        Ok(())
    }
}

fn peers(router: &Arc<Router>) -> Arc<dyn Fn(&str) -> Peer + Send + Sync> {
    let peer: Peer = router.clone();
    Arc::new(move |_| peer.clone())
}

async fn client_of(router: &Arc<Router>) -> Result<Client> {
    Client::connect(router.clone(), peers(router), Handle::current())
        .await
        .context("cannot start the client")
}

/// Chains of `replicas` targets each, in order of their numbers.
fn chain_table(format: Format) -> ChainTable {
    let targets: Vec<TargetId> = (1..=format.targets).map(TargetId).collect();
    let per_chain = usize::try_from(format.replicas).expect("a u32 fits");
    let chains = targets
        .chunks(per_chain)
        .zip(1..)
        .map(|(targets, number)| ChainInfo {
            chain: ChainId(number),
            version: ChainVersion(1),
            targets: targets.to_vec(),
        })
        .collect();
    let targets = targets
        .into_iter()
        .map(|target| TargetInfo {
            target,
            node: NodeId(1),
            address: IN_PROCESS.into(),
        })
        .collect();
    ChainTable {
        version: 1,
        chains,
        targets,
    }
}

fn default_layout(table: &ChainTable) -> Layout {
    Layout {
        chunk_size_log2: limits::CHUNK_SIZE_LOG2_DEFAULT,
        chain_table: table.version,
        stripe: u16::try_from(table.chains.len()).unwrap_or(u16::MAX),
        seed: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_targets_in_threes_make_two_chains() {
        let dir = tempfile::tempdir().unwrap();
        let dir = DataDir::open(dir.path(), Some((6, 3))).unwrap();
        let table = chain_table(dir.format);
        let members: Vec<Vec<u32>> = table
            .chains
            .iter()
            .map(|chain| chain.targets.iter().map(|target| target.0).collect())
            .collect();
        assert_eq!(members, [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(default_layout(&table).stripe, 2);
    }
}
