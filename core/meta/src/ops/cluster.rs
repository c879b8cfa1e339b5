//! Messages about clients and the whole namespace: leases, numbers, totals, sync.

use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, run};
use janusfs_types::Epoch;
use janusfs_wire::meta::{AllocIds, FsStats, Heartbeat, Hello, Pulse, StatFs, SyncMeta, Welcome};

use crate::{
    Meta, MetaError,
    store::{epoch, usage},
};

impl<K: Kv> Meta<K> {
    pub(crate) async fn hello(&self, m: Hello) -> Result<Welcome, MetaError> {
        let epoch = self.epoch().await?;
        self.leases.lock().hello(m.client, epoch, clock::now());
        let config = &self.config;
        Ok(Welcome {
            table: config.table.clone(),
            layout: config.layout,
            epoch,
        })
    }

    pub(crate) async fn heartbeat(&self, m: Heartbeat) -> Result<Pulse, MetaError> {
        let epoch = self.epoch().await?;
        let mut leases = self.leases.lock();
        let alive = leases.heard(m.client, m.oldest_epoch, m.oldest_blob, epoch, clock::now());
        Ok(Pulse { alive, epoch })
    }

    pub(crate) async fn alloc_ids(&self, m: AllocIds) -> Result<u64, MetaError> {
        let first = self.allocate(m.count).await?;
        self.leases.lock().allocated(m.client, first);
        Ok(first)
    }

    pub(crate) async fn stat_fs(&self, _: StatFs) -> Result<FsStats, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut stats = FsStats {
                    used_bytes: 0,
                    inodes: 1,
                };
                for (_, usage) in usage::all(txn).await? {
                    stats.used_bytes += usage.bytes;
                    stats.inodes += usage.entries;
                }
                Ok(stats)
            })
        })
        .await
    }

    pub(crate) async fn sync_meta(&self, _: SyncMeta) -> Result<(), MetaError> {
        Ok(self.kv.sync().await?)
    }

    pub(crate) async fn epoch(&self) -> Result<Epoch, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(epoch::current_snapshot(txn))
        })
        .await
    }
}
