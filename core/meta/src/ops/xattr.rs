//! Extended attributes.

use bytes::Bytes;
use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{
    FsError, InodeId,
    limits::{XATTR_MAX_BYTES, XATTR_NAME_MAX_BYTES},
};
use janusfs_wire::meta::{GetXattr, ListXattr, RemoveXattr, SetXattr};

use super::invalid;
use crate::{
    Meta, MetaError,
    store::{inode, xattr},
};

impl<K: Kv> Meta<K> {
    pub(crate) async fn set_xattr(&self, m: SetXattr) -> Result<(), MetaError> {
        if m.name.is_empty() || m.name.contains(&0) {
            return Err(invalid("xattr name"));
        }
        if m.name.len() > XATTR_NAME_MAX_BYTES || m.value.len() > XATTR_MAX_BYTES {
            return Err(FsError::TooBig.into());
        }
        let m = &m;
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                // Every change writes the inode, which makes two of them conflict: the sum of the names holds.
                touch(txn, m.inode, now_ns).await?;
                match xattr::get(txn, m.inode, &m.name).await? {
                    Some(_) if m.create => return Err(FsError::Exists.into()),
                    None if m.replace => return Err(FsError::NoXattr.into()),
                    Some(_) => {}
                    None => {
                        let names = xattr::names(txn, m.inode).await?;
                        let sum: usize = names.iter().map(|name| name.len() + 1).sum();
                        if sum + m.name.len() + 1 > XATTR_MAX_BYTES {
                            return Err(FsError::NoSpace.into());
                        }
                    }
                }
                xattr::set(txn, m.inode, &m.name, &m.value);
                Ok(())
            })
        })
        .await
    }

    pub(crate) async fn get_xattr(&self, m: GetXattr) -> Result<Bytes, MetaError> {
        let m = &m;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                inode::load_head(txn, m.inode).await?;
                let value = xattr::get(txn, m.inode, &m.name).await?;
                Ok(value.ok_or(FsError::NoXattr)?)
            })
        })
        .await
    }

    pub(crate) async fn list_xattr(&self, m: ListXattr) -> Result<Vec<Bytes>, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                inode::load_head(txn, m.inode).await?;
                xattr::names(txn, m.inode).await
            })
        })
        .await
    }

    pub(crate) async fn remove_xattr(&self, m: RemoveXattr) -> Result<(), MetaError> {
        let m = &m;
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                touch(txn, m.inode, now_ns).await?;
                xattr::get(txn, m.inode, &m.name)
                    .await?
                    .ok_or(FsError::NoXattr)?;
                xattr::remove(txn, m.inode, &m.name);
                Ok(())
            })
        })
        .await
    }
}

async fn touch(txn: &mut impl Txn, id: InodeId, now_ns: i64) -> Result<(), MetaError> {
    let mut record = inode::load(txn, id).await?;
    record.attr.times.changed_ns = now_ns;
    inode::store_attr(txn, &record);
    Ok(())
}
