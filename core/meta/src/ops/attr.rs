//! Attributes, symlink targets, and opening.

use bytes::Bytes;
use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, run};
use janusfs_types::{FileKind, FsError};
use janusfs_wire::meta::{Close, Found, GetAttr, Open, Opened, ReadLink, SetAttr};

use super::{found, invalid, opened};
use crate::{
    Meta, MetaError,
    store::{dir_stat, inode, object, session},
};

impl<K: Kv> Meta<K> {
    pub(crate) async fn get_attr(&self, m: GetAttr) -> Result<Found, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let record = inode::load_head(txn, m.inode).await?;
                found(txn, &record).await
            })
        })
        .await
    }

    pub(crate) async fn set_attr(&self, m: SetAttr) -> Result<Found, MetaError> {
        let now_ns = clock::now_ns();
        let change = &m.change;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut record = inode::load(txn, m.inode).await?;
                let attr = &mut record.attr;
                attr.mode = change.mode.map_or(attr.mode, |mode| mode & 0o7777);
                attr.uid = change.uid.unwrap_or(attr.uid);
                attr.gid = change.gid.unwrap_or(attr.gid);
                if let Some(time) = change.accessed_ns {
                    attr.times.accessed_ns = time.unwrap_or(now_ns);
                }
                if let Some(time) = change.modified_ns {
                    attr.times.modified_ns = time.unwrap_or(now_ns);
                    if attr.kind == FileKind::Directory {
                        dir_stat::set_modified(txn, m.inode, attr.times.modified_ns);
                    }
                }
                attr.times.changed_ns = now_ns;
                inode::store_attr(txn, &record);
                found(txn, &record).await
            })
        })
        .await
    }

    pub(crate) async fn read_link(&self, m: ReadLink) -> Result<Bytes, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let record = inode::load_head(txn, m.inode).await?;
                if record.attr.kind != FileKind::Symlink {
                    return Err(invalid("not a symlink"));
                }
                Ok(Bytes::from(record.symlink))
            })
        })
        .await
    }

    /// Opens; for writing, with a session. The writer's bytes reach the chunks before it publishes them, so what S3 stored
    /// about the bytes (ETag, checksums) ends here: after a crash in between it would be wrong.
    pub(crate) async fn open_inode(&self, m: Open) -> Result<Opened, MetaError> {
        let versions = &self.versions;
        let done: Result<_, MetaError> = run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut record = inode::load(txn, m.inode).await?;
                let mut ended = false;
                if let Some(session) = m.session {
                    if record.attr.kind == FileKind::Directory {
                        return Err(FsError::IsDirectory.into());
                    }
                    session::put(txn, m.inode, m.client, session);
                    let stored = object::load(txn, m.inode).await?;
                    let version = record.attr.data_version;
                    ended = stored.is_some_and(|attrs| attrs.data_version == version);
                }
                if ended {
                    record.attr.data_version = versions.after(&record.attr);
                    inode::store(txn, &record);
                }
                Ok((opened(txn, record).await?, ended))
            })
        })
        .await;
        let (opened, ended) = done?;
        if ended {
            // Stable before the first byte can be.
            self.kv.sync().await?;
        }
        Ok(opened)
    }

    pub(crate) async fn close(&self, m: Close) -> Result<(), MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                session::remove(txn, m.inode, m.client, m.session);
                Ok(())
            })
        })
        .await
    }
}
