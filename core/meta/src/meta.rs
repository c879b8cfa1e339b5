//! The service's state: the store, the configuration, and what lives in memory only.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, run};
use janusfs_types::{
    Attr, ChainTable, Credentials, DataVersion, Epoch, FileKind, FsError, InodeId, Layout,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::{
    MetaError,
    fsck::CheckSlot,
    ids::Ids,
    lease::Leases,
    store::{epoch, inode},
    tree::{self, NewInode},
    watch::Watches,
    watched::WatchedKv,
};

/// Permission bits of the root directory of a new namespace.
const ROOT_MODE: u32 = 0o755;

/// Bits of a data version that count changes; those above count starts of the service.
const CHANGE_BITS: u32 = 40;

/// The data versions that this start of the service gives.
///
/// Invariant: an inode never gets a version twice. A publication that is not durable yet is seen by clients and may be lost with
/// the power; what comes after the restart must not look like it to a page cache, a conditional write or an `If-None-Match`.
/// So an inode from before the start goes on above every version that an earlier start can have given.
pub(crate) struct Versions {
    start: DataVersion,
    /// Inodes from here on are younger than the start.
    first_new: InodeId,
}

impl Versions {
    /// Returns the version that follows on a change.
    pub(crate) fn after(&self, attr: &Attr) -> DataVersion {
        let next = attr.data_version.next();
        if attr.inode < self.first_new {
            next.max(self.start)
        } else {
            next
        }
    }
}

/// What a metadata service is told at its start.
#[derive(Clone, Debug)]
pub struct MetaConfig {
    /// Chains and targets, as clients get them.
    pub table: ChainTable,
    /// Layout for new blobs.
    pub layout: Layout,
    /// Whose the root directory of a new namespace is.
    pub owner: Credentials,
}

/// The metadata service over one store.
pub struct Meta<K: Kv> {
    pub(crate) kv: Arc<WatchedKv<K>>,
    pub(crate) watches: Arc<Watches>,
    pub(crate) config: MetaConfig,
    pub(crate) ids: Ids,
    pub(crate) versions: Versions,
    pub(crate) leases: Mutex<Leases>,
    /// When the epoch last advanced; never yet since the start: `None`.
    pub(crate) advanced: Mutex<Option<Instant>>,
    /// Lets one at a time tell the store of leases in other processes.
    pub(crate) remote_noted: Semaphore,
    /// Where the walk over write-opens of dead clients goes on; `None`: at the start.
    pub(crate) sessions_after: Mutex<Option<Bytes>>,
    /// The check that is under way.
    pub(crate) check: Mutex<CheckSlot>,
}

impl<K: Kv> Meta<K> {
    /// Opens the namespace in `kv`; in an empty store, makes it: a root directory and the format's version.
    ///
    /// # Errors
    /// `Unsupported` when a newer build wrote the store; the store's errors.
    pub async fn open(kv: Arc<K>, config: MetaConfig) -> Result<Self, MetaError> {
        let watches = Arc::new(Watches::new());
        let kv = Arc::new(WatchedKv::new(kv, Arc::clone(&watches)));
        let owner = &config.owner;
        let made: Result<u64, MetaError> = run(&*kv, Durability::Now, |txn| {
            Box::pin(async move {
                match epoch::format(txn).await? {
                    Some(epoch::FORMAT) => return epoch::count_start(txn).await,
                    Some(format) => {
                        let text =
                            format!("metadata format {format}, this build has {}", epoch::FORMAT);
                        return Err(FsError::Unsupported(text).into());
                    }
                    None => {}
                }
                epoch::set_format(txn, epoch::FORMAT);
                epoch::set(txn, Epoch(1));
                let mut root = tree::new_inode(NewInode {
                    id: InodeId::ROOT,
                    kind: FileKind::Directory,
                    mode: ROOT_MODE,
                    uid: owner.uid,
                    gid: owner.gid,
                    root: InodeId::ROOT,
                    now_ns: clock::now_ns(),
                });
                root.parent = InodeId::ROOT;
                root.explicit = true;
                inode::store(txn, &root);
                epoch::count_start(txn).await
            })
        })
        .await;
        let starts = made?;
        let remote: Result<bool, MetaError> = run(&*kv, Durability::Soon, |txn| {
            Box::pin(epoch::remote_leases(txn))
        })
        .await;
        if remote? {
            watches.remember(clock::now());
        }
        let mut meta = Self {
            kv,
            watches,
            config,
            ids: Ids::default(),
            versions: Versions {
                start: DataVersion(starts << CHANGE_BITS),
                first_new: InodeId(0),
            },
            leases: Mutex::new(Leases::new(clock::now())),
            advanced: Mutex::new(None),
            remote_noted: Semaphore::new(1),
            sessions_after: Mutex::new(None),
            check: Mutex::new(CheckSlot::None),
        };
        // So that the watermark is right before the first allocation.
        meta.versions.first_new = InodeId(meta.allocate(1).await?);
        Ok(meta)
    }
}
