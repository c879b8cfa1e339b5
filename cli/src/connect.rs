//! The way from a command to a running JanusFS: its cluster address and its secret.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use janusfs_chain_client::ChainClient;
use janusfs_chain_transport::{ClusterSecret, TcpPeer};
use janusfs_client::Client;
use janusfs_rpc::Peer;
use janusfs_types::ClientId;
use tokio::runtime::Handle;

use crate::{
    args::{Remote, Target},
    data_dir,
};

/// A connected client and its chunk-level client.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) chains: Arc<ChainClient>,
}

/// Connects to the process that runs on a data directory.
pub(crate) async fn to_target(target: &Target) -> Result<Connected> {
    let endpoints = data_dir::endpoints(&target.data)?;
    to_endpoint(&endpoints.rpc, &target.data.join("cluster.key")).await
}

/// Connects to a cluster address given on the command line.
pub(crate) async fn to_remote(remote: &Remote) -> Result<Connected> {
    to_endpoint(&remote.endpoint, &remote.secret_file).await
}

async fn to_endpoint(endpoint: &str, secret_file: &Path) -> Result<Connected> {
    let secret = ClusterSecret::load(secret_file)
        .context("no cluster secret: give --secret-file, a copy of cluster.key in the data directory of `janusfs up`")?;
    let peer: Peer = Arc::new(TcpPeer::new(endpoint, secret.clone(), Handle::current()));
    let node = peer.clone();
    // An empty address in the chain table is a target in the process that gave the table: the endpoint itself.
    let peers: Arc<dyn Fn(&str) -> Peer + Send + Sync> = Arc::new(move |address| match address {
        "" => node.clone(),
        other => Arc::new(TcpPeer::new(other, secret.clone(), Handle::current())),
    });
    let client = Client::connect(peer, peers.clone(), Handle::current())
        .await
        .with_context(|| format!("cannot reach JanusFS at {endpoint}"))?;
    let chains = ChainClient::new(
        ClientId(janusfs_env::rng::random_u64()),
        client.chain_table(),
        peers,
    )
    .context("cannot reach the storage targets")?;
    Ok(Connected {
        client,
        chains: Arc::new(chains),
    })
}
