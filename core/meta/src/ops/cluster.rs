//! Messages about clients and the whole namespace: leases, numbers, totals, sync.

use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, run};
use janusfs_types::{Epoch, FsError};
use janusfs_wire::meta::{
    AllocIds, Forget, FsStats, Heartbeat, Hello, NameIn, Pulse, StatFs, SyncMeta, Watch, Welcome,
};

use crate::{
    Meta, MetaError, posix_name,
    store::{epoch, usage},
    watch::Fact,
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

    /// `remote`: the client is in another process, and the store is told of its leases before it gets any.
    pub(crate) async fn watch(&self, m: Watch, remote: bool) -> Result<Forget, MetaError> {
        if remote && self.watches.remote_is_unknown() {
            self.note_remote_leases(true).await?;
        }
        let (batch, facts) = self.watches.next(m.client, m.acked, remote).await;
        let mut forget = Forget {
            batch,
            inodes: Vec::new(),
            names: Vec::new(),
        };
        for fact in facts {
            match fact {
                Fact::Attr(inode) | Fact::DirStat(inode) => forget.inodes.push(inode),
                Fact::Name(parent, stored) => {
                    let names = posix_name::all_visible(&stored).into_iter();
                    forget.names.extend(names.map(|name| NameIn {
                        parent,
                        name: name.into(),
                    }));
                }
            }
        }
        Ok(forget)
    }

    /// Lets the store forget about leases in other processes once there are none.
    pub(crate) async fn end_remote_leases(&self) -> Result<(), MetaError> {
        if self.watches.remote_ended(clock::now()) {
            self.note_remote_leases(false).await?;
        }
        Ok(())
    }

    async fn note_remote_leases(&self, held: bool) -> Result<(), MetaError> {
        // One after the other, or a late "none" would follow an early "some".
        let _order = self
            .remote_noted
            .acquire()
            .await
            .map_err(|_| FsError::Stale)?;
        let held = held || !self.watches.remote_is_unknown();
        let noted: Result<(), MetaError> = run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                epoch::set_remote_leases(txn, held);
                Ok(())
            })
        })
        .await;
        noted?;
        if held {
            self.watches.remote_is_known();
        }
        Ok(())
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
