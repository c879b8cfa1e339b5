//! Names and attributes: each call is one metadata message, but for the few that must coordinate with open files.

use std::{collections::HashMap, sync::atomic::Ordering};

use bytes::Bytes;
use janusfs_client::CacheLease;
use janusfs_types::{Attr, ChainTable, Credentials, FileKind, InodeId, TargetId};
use janusfs_wire::{
    meta::{
        AttrChange, Create, GetAttr, Link, Lookup, ReadLink, Rename, RenameMode, Rmdir, SetAttr,
        StatFs, Symlink, SyncMeta, Unlink,
    },
    storage::TargetUsage,
};

use super::{Leased, RESERVED_PREFIX, Vfs, VfsError, by_inode, check_name, without_privileges};

/// What `setattr` changes. A time of `None` inside `Some` means now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AttrUpdate {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed_ns: Option<Option<i64>>,
    pub(crate) modified_ns: Option<Option<i64>>,
}

/// What `statfs` tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Capacity {
    /// Bytes of user data that the chains could hold.
    pub(crate) total_bytes: u64,
    /// Bytes of user data that still fit.
    pub(crate) free_bytes: u64,
    /// Files and directories.
    pub(crate) inodes: u64,
}

impl Vfs {
    /// Finds a name; that it is absent is an answer too.
    pub(crate) async fn lookup(
        &self,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Leased<Option<Attr>>, VfsError> {
        check_name(name)?;
        let message = Lookup {
            parent,
            name: Bytes::copy_from_slice(name),
        };
        let (found, lease) = self.client.call_leased(&message).await?;
        let value = found.map(|found| self.client.overlay(found.attr));
        // A reserved name that stands for none of the rows there now may stand for one that comes.
        let lease = if value.is_none() && name.starts_with(RESERVED_PREFIX) {
            CacheLease::none()
        } else {
            lease
        };
        Ok(Leased { value, lease })
    }

    /// The kernel dropped the inode and with it its pages.
    pub(crate) fn forget(&self, inode: InodeId) {
        self.cached.forget(inode);
    }

    pub(crate) async fn attr(&self, inode: InodeId) -> Result<Leased<Attr>, VfsError> {
        let (found, lease) = by_inode(self.client.call_leased(&GetAttr { inode }).await)?;
        Ok(self.leased(found.attr, lease))
    }

    fn leased(&self, attr: Attr, lease: CacheLease) -> Leased<Attr> {
        let value = self.client.overlay(attr);
        Leased { value, lease }
    }

    pub(crate) async fn set_attr(
        &self,
        inode: InodeId,
        update: AttrUpdate,
        caller: &Credentials,
    ) -> Result<Leased<Attr>, VfsError> {
        self.changed();
        let mut change = AttrChange {
            mode: update.mode,
            uid: update.uid,
            gid: update.gid,
            accessed_ns: update.accessed_ns,
            modified_ns: update.modified_ns,
        };
        let mut truncated = None;
        if let Some(size) = update.size {
            let attr = by_inode(self.client.truncate(inode, size).await)?;
            self.cached.published(inode, attr.data_version);
            if change.mode.is_none() && caller.uid != 0 {
                change.mode = without_privileges(attr.kind, attr.mode);
            }
            truncated = Some(attr);
        }
        // `chown(path, -1, -1)` arrives as an update of nothing, and drops the bits like any other.
        let chowns =
            update.uid.is_some() || update.gid.is_some() || update == AttrUpdate::default();
        if chowns && change.mode.is_none() {
            let attr = self.attr(inode).await?.value;
            change.mode = without_privileges(attr.kind, attr.mode);
        }
        if update.modified_ns.is_some() {
            // Else the buffered bytes would be published later and move the time that is set here.
            by_inode(self.client.flush_inode(inode).await)?;
        }
        let privileged = change.mode.is_some_and(|mode| mode & 0o6000 != 0);
        let (attr, lease) = match truncated {
            Some(attr) if change == AttrChange::default() => (attr, CacheLease::none()),
            _ => {
                let message = SetAttr { inode, change };
                let (found, lease) = by_inode(self.client.call_leased(&message).await)?;
                (found.attr, lease)
            }
        };
        if privileged {
            self.privileged.fetch_add(1, Ordering::Release);
        }
        self.settle().await?;
        self.changed();
        Ok(self.leased(attr, lease))
    }

    pub(crate) async fn read_link(&self, inode: InodeId) -> Result<Bytes, VfsError> {
        Ok(by_inode(self.client.call(&ReadLink { inode }).await)?)
    }

    /// Makes a directory, special file or closed regular file; the name must be free.
    pub(crate) async fn make(
        &self,
        parent: InodeId,
        name: &[u8],
        kind: FileKind,
        mode: u32,
        rdev: u32,
        who: Credentials,
    ) -> Result<Leased<Attr>, VfsError> {
        check_name(name)?;
        let name = Bytes::copy_from_slice(name);
        let mode = mode & 0o7777;
        let create = Create {
            parent,
            name,
            kind,
            mode,
            rdev,
            who,
            exclusive: true,
        };
        let (opened, lease) = self.client.call_leased(&create).await?;
        self.changed();
        self.settle().await?;
        Ok(self.leased(opened.attr, lease))
    }

    pub(crate) async fn symlink(
        &self,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        who: Credentials,
    ) -> Result<Leased<Attr>, VfsError> {
        check_name(name)?;
        let (name, target) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(target));
        let message = Symlink {
            parent,
            name,
            target,
            who,
        };
        let (found, lease) = self.client.call_leased(&message).await?;
        self.changed();
        self.settle().await?;
        Ok(self.leased(found.attr, lease))
    }

    pub(crate) async fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<(), VfsError> {
        check_name(name)?;
        self.client
            .call(&Unlink {
                parent,
                name: Bytes::copy_from_slice(name),
            })
            .await?;
        self.changed();
        self.settle().await
    }

    pub(crate) async fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<(), VfsError> {
        check_name(name)?;
        self.client
            .call(&Rmdir {
                parent,
                name: Bytes::copy_from_slice(name),
            })
            .await?;
        self.changed();
        self.settle().await
    }

    pub(crate) async fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), VfsError> {
        check_name(name)?;
        check_name(new_name)?;
        let (name, new_name) = (
            Bytes::copy_from_slice(name),
            Bytes::copy_from_slice(new_name),
        );
        let message = Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        };
        // With a lease: what the kernel believes of the old name, it believes of the new one from now on.
        self.client.call_leased(&message).await?;
        if let Some(kernel) = self.kernel() {
            kernel.hands_over_name(message.new_parent, &message.new_name);
            kernel.hands_over_name(message.parent, &message.name);
        }
        self.changed();
        self.settle().await
    }

    pub(crate) async fn link(
        &self,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Leased<Attr>, VfsError> {
        check_name(name)?;
        let message = Link {
            inode,
            parent,
            name: Bytes::copy_from_slice(name),
        };
        let (found, lease) = self.client.call_leased(&message).await?;
        self.changed();
        self.settle().await?;
        Ok(self.leased(found.attr, lease))
    }

    pub(crate) async fn capacity(&self) -> Result<Capacity, VfsError> {
        let stats = self.client.call(&StatFs {}).await?;
        let usage = self.client.usage().await?;
        let (total_bytes, free_bytes) = usable_bytes(&self.client.chain_table(), &usage);
        Ok(Capacity {
            total_bytes,
            free_bytes,
            inodes: stats.inodes,
        })
    }

    /// With `-o sync`, waits until what was just done is on stable storage.
    pub(super) async fn settle(&self) -> Result<(), VfsError> {
        if self.sync {
            self.client.call(&SyncMeta {}).await?;
        }
        Ok(())
    }
}

/// Sums what the chains can hold: total and free. Chains are filled evenly, so a target's bytes are divided among the
/// chains it serves, and a chain holds what its smallest member's share does, once, however many replicas it has.
fn usable_bytes(table: &ChainTable, usage: &[TargetUsage]) -> (u64, u64) {
    let usage: HashMap<_, _> = usage.iter().map(|usage| (usage.target, usage)).collect();
    let mut served: HashMap<TargetId, u64> = HashMap::new();
    for target in table.chains.iter().flat_map(|chain| &chain.targets) {
        *served.entry(*target).or_default() += 1;
    }
    let share = |target: &TargetId, bytes: fn(&TargetUsage) -> u64| {
        usage
            .get(&target.0)
            .map_or(0, |usage| bytes(usage) / served[target])
    };
    let sum = |bytes: fn(&TargetUsage) -> u64| {
        let chains = table.chains.iter();
        chains
            .filter_map(|chain| {
                chain
                    .targets
                    .iter()
                    .map(|target| share(target, bytes))
                    .min()
            })
            .sum()
    };
    (
        sum(|usage| usage.capacity_bytes),
        sum(|usage| usage.free_bytes),
    )
}

#[cfg(test)]
mod tests {
    use janusfs_types::{ChainId, ChainInfo, ChainVersion};

    use super::*;

    fn table(chains: &[&[u32]]) -> ChainTable {
        let chain = |(number, targets): (usize, &&[u32])| ChainInfo {
            chain: ChainId(u32::try_from(number).unwrap()),
            version: ChainVersion(1),
            targets: targets.iter().copied().map(TargetId).collect(),
        };
        ChainTable {
            version: 1,
            chains: chains.iter().enumerate().map(chain).collect(),
            targets: Vec::new(),
        }
    }

    fn usage(target: u32, capacity_bytes: u64, free_bytes: u64) -> TargetUsage {
        TargetUsage {
            target,
            capacity_bytes,
            free_bytes,
            used_bytes: 0,
            chunks: 0,
            corruptions: 0,
            repairs: 0,
        }
    }

    #[test]
    fn replicas_count_once_and_the_smallest_member_decides() {
        let usage = [usage(1, 100, 60), usage(2, 80, 70), usage(3, 100, 100)];
        assert_eq!(usable_bytes(&table(&[&[1]]), &usage), (100, 60));
        assert_eq!(usable_bytes(&table(&[&[1, 2]]), &usage), (80, 60));
        assert_eq!(
            usable_bytes(&table(&[&[1, 2], &[2, 3], &[3, 1]]), &usage),
            (40 + 40 + 50, 30 + 35 + 30)
        );
        assert_eq!(
            usable_bytes(&table(&[&[9]]), &usage),
            (0, 0),
            "a target that does not answer"
        );
    }
}
