//! Reclamation: what lost its last name or reference goes, once no reader can still be using it (DESIGN.md, section 6).
//!
//! The server drives it: it asks for a step, removes the chunks of the blobs returned, and reports them done. A blob is
//! returned again and again until then. Order of death: name, orphan, `DEAD` row, chunks, nothing; each on stable storage
//! before the next, so that a power cut brings back no name whose chunks are gone.

use std::{collections::BTreeMap, time::Duration};

use janusfs_env::{clock, metrics};
use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{BlobId, Epoch, FileKind, InodeId, Layout};

use crate::{
    Meta, MetaError,
    store::{
        blob, dentry, dir_stat, epoch, inode, object,
        orphan::{self, Orphan},
        session, xattr,
    },
    tree,
};

/// Shortest life of an epoch. A reply on its way to a client must not see two of them end (see `lease`).
const EPOCH_MIN: Duration = Duration::from_secs(1);
/// Orphans and blobs of one step, and children that one step takes out of an orphaned directory.
const STEP_MAX: u32 = 256;

/// A blob that nothing refers to any more: remove its chunks, then report it done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReclaimBlob {
    /// The blob.
    pub blob: BlobId,
    /// Where its chunks are.
    pub layout: Layout,
}

impl<K: Kv> Meta<K> {
    /// Does a bounded step of reclamation and returns blobs whose chunks are to be removed now; empty: nothing to do yet.
    ///
    /// # Errors
    /// The store's; the step can be repeated.
    pub async fn reclaim_step(&self) -> Result<Vec<ReclaimBlob>, MetaError> {
        let now = clock::now();
        let due = {
            let mut advanced = self.advanced.lock();
            let due = advanced.is_none_or(|at| now.saturating_duration_since(at) >= EPOCH_MIN);
            if due {
                *advanced = Some(now);
            }
            due
        };
        let current = if due {
            self.advance_epoch().await?
        } else {
            self.epoch().await?
        };
        self.end_remote_leases().await?;
        self.forget_idle_check(now);
        let grace = {
            let mut leases = self.leases.lock();
            leases.expire(now);
            leases.in_grace(now)
        };
        // In the grace period nobody knows who reads; what is dead already has no readers.
        if !grace {
            self.reclaim_orphans(current).await?;
            if due {
                self.expire_sessions().await?;
            }
        }
        let dead = run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(orphan::dead(txn, STEP_MAX))
        });
        let dead = dead.await?;
        if !dead.is_empty() {
            self.kv.sync().await?;
        }
        Ok(dead
            .into_iter()
            .map(|(blob, layout)| ReclaimBlob { blob, layout })
            .collect())
    }

    /// Reports that the chunks of blobs are gone.
    ///
    /// # Errors
    /// The store's; the blobs come again.
    pub async fn reclaim_done(&self, blobs: &[ReclaimBlob]) -> Result<(), MetaError> {
        let done: Result<(), MetaError> = run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                for blob in blobs {
                    orphan::remove_dead(txn, blob.blob);
                }
                Ok(())
            })
        })
        .await;
        done?;
        metrics::META_RECLAIMED.add(u64::try_from(blobs.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Tells whether metadata refers to a blob, or a reader may still do. Chunks of one that is not live and whose number is
    /// below [`Self::allocation_watermark`], taken *before* asking, belong to nobody.
    ///
    /// # Errors
    /// The store's.
    pub async fn is_live_blob(&self, id: BlobId) -> Result<bool, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                if blob::load(txn, id).await?.is_some() {
                    return Ok(true);
                }
                let namesake = inode::load_opt(txn, InodeId(id.0)).await?;
                Ok(namesake.is_some_and(|record| {
                    let references = tree::references(&record.content, record.attr.size);
                    references.iter().any(|extent| extent.blob == id)
                }))
            })
        })
        .await
    }

    /// Returns the number below which every blob is either published or abandoned; 0 while that is unknown.
    pub fn allocation_watermark(&self) -> u64 {
        // Before the leases: a batch handed out in between is above it.
        let next = self.ids.next();
        let now = clock::now();
        let leases = self.leases.lock();
        if leases.in_grace(now) {
            return 0;
        }
        leases.lowest_blob().map_or(next, |lowest| lowest.min(next))
    }

    /// Begins a new epoch and returns it.
    pub(crate) async fn advance_epoch(&self) -> Result<Epoch, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let next = epoch::current(txn).await?.next();
                epoch::set(txn, next);
                Ok(next)
            })
        })
        .await
    }

    /// Reclaims orphans of epochs that every live client has left, a bounded number.
    pub(crate) async fn reclaim_orphans(&self, current: Epoch) -> Result<(), MetaError> {
        let passed = self.leases.lock().passed_by_all();
        let before = passed.map_or(current, |passed| passed.min(current));
        let mut after = None;
        let mut left = STEP_MAX;
        while left > 0 {
            let from = after.as_deref();
            let (page, last) = run(&*self.kv, Durability::Soon, |txn| {
                Box::pin(orphan::scan(txn, before, from, STEP_MAX))
            })
            .await?;
            if last.is_none() {
                return Ok(());
            }
            for (epoch, orphan) in page {
                if left > 0 && self.reclaim_orphan(epoch, orphan).await? {
                    left -= 1;
                }
            }
            after = last;
        }
        Ok(())
    }

    /// Forgets the write-opens of clients that are dead, of one page of all: they would keep files from being shared.
    pub(crate) async fn expire_sessions(&self) -> Result<(), MetaError> {
        let after = self.sessions_after.lock().take();
        let after = after.as_deref();
        let page = run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(session::page(txn, after))
        });
        let page: Vec<_> = page.await?;
        let dead: Vec<&[u8]> = {
            let leases = self.leases.lock();
            let dead = page.iter().filter(|(_, client)| !leases.knows(*client));
            dead.map(|(key, _)| &key[..]).collect()
        };
        let dead = &dead;
        let done: Result<(), MetaError> = run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                for key in dead {
                    session::remove_row(txn, key);
                }
                Ok(())
            })
        })
        .await;
        done?;
        *self.sessions_after.lock() = page.last().map(|(key, _)| key.clone());
        Ok(())
    }

    /// Reclaims one orphan; returns false when a write-open holds it.
    async fn reclaim_orphan(&self, epoch: Epoch, orphan: Orphan) -> Result<bool, MetaError> {
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                if !orphan::waits(txn, epoch, orphan).await? {
                    return Ok(true);
                }
                let id = match orphan {
                    Orphan::Blob(id, released) => {
                        tree::drop_references(txn, id, released.layout, released.refs).await?;
                        orphan::remove(txn, epoch, orphan);
                        return Ok(true);
                    }
                    Orphan::Inode(id) => id,
                };
                if self.is_held(txn, id).await? {
                    return Ok(false);
                }
                if empty_directory(txn, id, now_ns).await? {
                    reclaim_inode(txn, id).await?;
                    orphan::remove(txn, epoch, orphan);
                }
                Ok(true)
            })
        })
        .await
    }

    /// Tells whether a live client has an inode open for writing; forgets the write-opens of dead ones.
    async fn is_held(&self, txn: &mut impl Txn, id: InodeId) -> Result<bool, MetaError> {
        for (client, session) in session::of_inode(txn, id).await? {
            if self.leases.lock().knows(client) {
                return Ok(true);
            }
            session::remove(txn, id, client, session);
        }
        Ok(false)
    }
}

/// Takes entries out of an orphaned directory, a bounded number; returns whether it has none left. Others have none.
async fn empty_directory(txn: &mut impl Txn, id: InodeId, now_ns: i64) -> Result<bool, MetaError> {
    let children = dentry::scan(txn, id, None, STEP_MAX, false).await?;
    for (name, child) in &children {
        let mut record = inode::load(txn, child.inode).await?;
        tree::unlink_entry(txn, id, name, now_ns);
        tree::drop_link(txn, &mut record, now_ns).await?;
    }
    Ok(children.len() < usize::try_from(STEP_MAX).unwrap_or(usize::MAX))
}

/// Removes an orphaned inode's rows and drops its references.
async fn reclaim_inode(txn: &mut impl Txn, id: InodeId) -> Result<(), MetaError> {
    let Some(record) = inode::load_opt(txn, id).await? else {
        return Ok(());
    };
    if record.attr.nlink > 0 {
        tracing::error!(inode = %id, "an orphan has a name: kept");
        return Ok(());
    }
    let mut blobs: BTreeMap<BlobId, (Layout, u64)> = BTreeMap::new();
    for extent in tree::references(&record.content, record.attr.size) {
        blobs.entry(extent.blob).or_insert((extent.layout, 0)).1 += 1;
    }
    for (blob, (layout, refs)) in blobs {
        tree::drop_references(txn, blob, layout, refs).await?;
    }
    if record.attr.kind == FileKind::Directory {
        dir_stat::remove(txn, id);
    }
    object::remove(txn, id);
    xattr::remove_all(txn, id).await?;
    inode::remove(txn, &record);
    Ok(())
}
