//! One task that takes what `Meta` says is dead and removes its chunks.
//!
//! Also the sweep: a gateway that dies between writing a blob and publishing it leaves chunks that no row names. One walk over
//! all chunks after start-up finds them: they are older than every allocation a live client holds, and no row knows them.

use std::{sync::Arc, time::Duration};

use janusfs_chain_client::ChainClient;
use janusfs_env::{clock, metrics, tasks};
use janusfs_kv::Kv;
use janusfs_meta::{Meta, ReclaimBlob};
use janusfs_types::{BlobId, ChunkId, FsError, Layout, TargetId, limits};
use tokio::{sync::watch, task::JoinHandle};

/// Pause between two looks when nothing is dead.
const IDLE: Duration = Duration::from_secs(1);

/// The running task.
pub struct Reclamation {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Reclamation {
    /// Starts it. `layout` is the layout of new blobs: what a blob without a row was written with.
    #[must_use]
    pub fn start<K: Kv>(meta: Arc<Meta<K>>, chains: Arc<ChainClient>, layout: Layout) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tasks::spawn(run(meta, chains, layout, stopped));
        Self { stop, task }
    }

    /// Ends it after the step in progress.
    pub async fn stop(self) {
        // The task listens until it ends.
        let _ = self.stop.send(true);
        // A panic in it was reported where it happened.
        let _ = self.task.await;
    }
}

async fn run<K: Kv>(
    meta: Arc<Meta<K>>,
    chains: Arc<ChainClient>,
    layout: Layout,
    mut stop: watch::Receiver<bool>,
) {
    let mut sweep = Some(clock::now() + Duration::from_millis(3 * limits::CLIENT_LEASE_MS));
    loop {
        let worked = match step(&meta, &chains).await {
            Ok(worked) => worked,
            Err(error) => {
                tracing::warn!(%error, "reclamation step failed; it will be repeated");
                false
            }
        };
        if sweep.is_some_and(|due| clock::now() >= due) {
            sweep = None;
            if let Err(error) = sweep_unnamed(&meta, &chains, layout).await {
                tracing::warn!(%error, "the sweep for unnamed blobs failed; the next start repeats it");
            }
        }
        let stopped = if worked {
            *stop.borrow()
        } else {
            // Told to, or nobody is left to tell it.
            clock::timeout(IDLE, stop.wait_for(|stop| *stop))
                .await
                .is_ok()
        };
        if stopped {
            return;
        }
    }
}

/// Returns whether there was anything to do.
async fn step<K: Kv>(meta: &Meta<K>, chains: &ChainClient) -> Result<bool, FsError> {
    let dead = meta.reclaim_step().await?;
    let mut gone: Vec<ReclaimBlob> = Vec::with_capacity(dead.len());
    for blob in &dead {
        match chains.remove(blob.blob, &blob.layout, 0).await {
            Ok(()) => gone.push(*blob),
            // The others go on; this one is returned again by a later step.
            Err(error) => tracing::warn!(blob = %blob.blob, %error, "chunks not removed yet"),
        }
    }
    if !gone.is_empty() {
        meta.reclaim_done(&gone).await?;
        metrics::META_RECLAIMED.add(u64::try_from(gone.len()).unwrap_or(0));
    }
    Ok(!gone.is_empty())
}

async fn sweep_unnamed<K: Kv>(
    meta: &Meta<K>,
    chains: &ChainClient,
    layout: Layout,
) -> Result<(), FsError> {
    let table = chains.table();
    for chain in &table.chains {
        let Some(head) = chain.targets.first() else {
            continue;
        };
        let mut after = None;
        while let Some(blob) = next_blob(chains, *head, &mut after).await? {
            // Read anew each time: allocation goes on meanwhile.
            if blob.0 < meta.allocation_watermark() && !meta.is_live_blob(blob).await? {
                tracing::info!(%blob, "removing chunks of a blob that was never published");
                chains.remove(blob, &layout, 0).await?;
            }
        }
    }
    Ok(())
}

/// Returns the next blob after the cursor on a target, and moves the cursor past all its chunks.
async fn next_blob(
    chains: &ChainClient,
    target: TargetId,
    after: &mut Option<ChunkId>,
) -> Result<Option<BlobId>, FsError> {
    let page = chains.list(target, *after, 1).await?;
    let Some(first) = page.first() else {
        return Ok(None);
    };
    *after = Some(ChunkId {
        blob: first.chunk.blob,
        index: u32::MAX,
    });
    Ok(Some(first.chunk.blob))
}
