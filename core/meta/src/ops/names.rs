//! Looking up, listing, making and removing names.

use std::collections::HashSet;

use bytes::Bytes;
use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{
    Credentials, DentryName, FileKind, FsError, InodeId,
    limits::{LINK_MAX, READDIR_PAGE_MAX, SYMLINK_MAX_BYTES},
};
use janusfs_wire::meta::{
    Create, DirEntry, DirPage, Found, Link, Lookup, Opened, ReadDir, Rmdir, Symlink, Unlink,
};

use super::{found, invalid, opened};
use crate::{
    Meta, MetaError, posix_name,
    store::{
        dentry::{self, Dentry},
        inode::{self, InodeRecord},
    },
    tree::{self, NewInode},
};

const SETGID: u32 = 0o2000;

impl<K: Kv> Meta<K> {
    pub(crate) async fn lookup(&self, m: Lookup) -> Result<Option<Found>, MetaError> {
        let m = &m;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                tree::directory(txn, m.parent).await?;
                let Some((_, dentry)) = posix_name::find(txn, m.parent, &m.name).await? else {
                    return Ok(None);
                };
                let record = inode::load_head(txn, dentry.inode).await?;
                found(txn, &record).await.map(Some)
            })
        })
        .await
    }

    pub(crate) async fn read_dir(&self, m: ReadDir) -> Result<DirPage, MetaError> {
        let m = &m;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let directory = inode::load_head(txn, m.inode).await?;
                if directory.attr.kind != FileKind::Directory {
                    return Err(FsError::NotDirectory.into());
                }
                let limit = m.limit.clamp(1, READDIR_PAGE_MAX);
                // The cursor begins with a byte, so that the file with the empty name has one too.
                let after = m.after.strip_prefix(CURSOR);
                if !m.after.is_empty() && after.is_none() {
                    return Err(invalid("directory cursor"));
                }
                let rows = dentry::scan(txn, m.inode, after, limit, true).await?;
                let end = rows.len() < usize::try_from(limit).unwrap_or(usize::MAX);
                let shadowed = shadowed(txn, m.inode, &rows, end).await?;
                let ids = rows.iter().map(|(_, dentry)| dentry.inode);
                let attrs = inode::attrs_snapshot(txn, ids).await?;
                let mut entries = Vec::with_capacity(rows.len());
                for ((name, dentry), attr) in rows.into_iter().zip(attrs) {
                    let Some(attr) = attr else {
                        tracing::error!(parent = %m.inode, inode = %dentry.inode, "entry without inode");
                        continue;
                    };
                    let visible = posix_name::visible(&name, shadowed.contains(&name));
                    entries.push(DirEntry {
                        name: visible.into(),
                        attr: tree::attr_of(txn, attr).await?,
                        cursor: [CURSOR, name.stored()].concat().into(),
                    });
                }
                Ok(DirPage { entries, end })
            })
        })
        .await
    }

    pub(crate) async fn create(&self, m: Create) -> Result<Opened, MetaError> {
        posix_name::check_creatable(&m.name)?;
        if m.kind == FileKind::Symlink {
            return Err(invalid("a symlink has its own call"));
        }
        let id = self.new_id().await?;
        let m = &m;
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let parent = tree::directory(txn, m.parent).await?;
                if let Some((_, dentry)) = posix_name::find(txn, m.parent, &m.name).await? {
                    return existing(txn, m, dentry).await;
                }
                let mut record = child(&parent, id, m.kind, m.mode, &m.who, now_ns);
                record.attr.rdev = m.rdev;
                let name = posix_name::slot(&m.name, m.kind)?;
                tree::publish(txn, m.parent, &name, &mut record, now_ns);
                opened(txn, record).await
            })
        })
        .await
    }

    pub(crate) async fn symlink(&self, m: Symlink) -> Result<Found, MetaError> {
        posix_name::check_creatable(&m.name)?;
        if m.target.is_empty() {
            return Err(FsError::NotFound.into());
        }
        if m.target.len() > SYMLINK_MAX_BYTES {
            return Err(FsError::NameTooLong.into());
        }
        let id = self.new_id().await?;
        let m = &m;
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let parent = tree::directory(txn, m.parent).await?;
                must_be_free(txn, m.parent, &m.name).await?;
                let mut record = child(&parent, id, FileKind::Symlink, 0o777, &m.who, now_ns);
                record.attr.size = u64::try_from(m.target.len()).unwrap_or(u64::MAX);
                record.symlink = m.target.to_vec();
                tree::publish(
                    txn,
                    m.parent,
                    &DentryName::file(&m.name)?,
                    &mut record,
                    now_ns,
                );
                found(txn, &record).await
            })
        })
        .await
    }

    pub(crate) async fn link(&self, m: Link) -> Result<Found, MetaError> {
        posix_name::check_creatable(&m.name)?;
        let m = &m;
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                tree::directory(txn, m.parent).await?;
                let mut record = inode::load(txn, m.inode).await?;
                if record.attr.kind == FileKind::Directory {
                    return Err(FsError::NotPermitted.into());
                }
                if record.attr.nlink == 0 {
                    return Err(FsError::NotFound.into());
                }
                must_be_free(txn, m.parent, &m.name).await?;
                if record.attr.nlink >= LINK_MAX {
                    return Err(FsError::TooManyLinks.into());
                }
                record.attr.nlink += 1;
                record.attr.times.changed_ns = now_ns;
                inode::store_attr(txn, &record);
                let name = DentryName::file(&m.name)?;
                tree::link_entry(txn, m.parent, &name, m.inode, record.attr.kind, now_ns);
                found(txn, &record).await
            })
        })
        .await
    }

    pub(crate) async fn unlink(&self, m: Unlink) -> Result<(), MetaError> {
        self.remove_name(m.parent, m.name, false).await
    }

    pub(crate) async fn rmdir(&self, m: Rmdir) -> Result<(), MetaError> {
        self.remove_name(m.parent, m.name, true).await
    }

    async fn remove_name(
        &self,
        parent: InodeId,
        name: Bytes,
        directory: bool,
    ) -> Result<(), MetaError> {
        let name = &name;
        let now_ns = clock::now_ns();
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                tree::directory(txn, parent).await?;
                let (slot, dentry) = posix_name::find_kind(txn, parent, name, directory).await?;
                let mut record = inode::load(txn, dentry.inode).await?;
                if directory {
                    check_removable(txn, &record).await?;
                }
                tree::unlink_entry(txn, parent, &slot, now_ns);
                tree::drop_link(txn, &mut record, now_ns).await
            })
        })
        .await
    }
}

/// What a directory cursor begins with.
const CURSOR: &[u8] = b"+";

/// Checks that a directory may be removed or replaced: it is empty, and no bucket names it.
///
/// # Errors
/// `NotEmpty`, `NotPermitted`.
pub(super) async fn check_removable(
    txn: &mut impl Txn,
    record: &InodeRecord,
) -> Result<(), MetaError> {
    if record.root == record.attr.inode {
        return Err(FsError::NotPermitted.into());
    }
    if !dentry::is_empty(txn, record.attr.inode).await? {
        return Err(FsError::NotEmpty.into());
    }
    Ok(())
}

/// Checks that neither slot of a name is taken.
async fn must_be_free(txn: &mut impl Txn, parent: InodeId, name: &[u8]) -> Result<(), MetaError> {
    match posix_name::find(txn, parent, name).await? {
        Some(_) => Err(FsError::Exists.into()),
        None => Ok(()),
    }
}

/// Answers a creation whose name is taken.
async fn existing(txn: &mut impl Txn, m: &Create, dentry: Dentry) -> Result<Opened, MetaError> {
    match dentry.kind {
        _ if m.exclusive || m.kind != FileKind::Regular => Err(FsError::Exists.into()),
        FileKind::Regular => {
            let record = inode::load(txn, dentry.inode).await?;
            opened(txn, record).await
        }
        FileKind::Directory => Err(FsError::IsDirectory.into()),
        _ => Err(FsError::Exists.into()),
    }
}

/// Returns a fresh inode for a POSIX caller; a setgid directory passes its group on, and to directories the bit.
fn child(
    parent: &InodeRecord,
    id: InodeId,
    kind: FileKind,
    mode: u32,
    who: &Credentials,
    now_ns: i64,
) -> InodeRecord {
    let setgid = parent.attr.mode & SETGID != 0;
    let directory = kind == FileKind::Directory;
    let mut record = tree::new_inode(NewInode {
        id,
        kind,
        mode: if setgid && directory {
            mode | SETGID
        } else {
            mode
        },
        uid: who.uid,
        gid: if setgid { parent.attr.gid } else { who.gid },
        root: parent.root,
        now_ns,
    });
    record.explicit = directory;
    record
}

/// Returns the files of a page that a directory of the same name hides. `end`: nothing follows the page.
///
/// A directory's row comes after its namesake file's, with others between; only what lies past the page is asked for.
async fn shadowed(
    txn: &mut impl Txn,
    parent: InodeId,
    rows: &[(DentryName, Dentry)],
    end: bool,
) -> Result<HashSet<DentryName>, MetaError> {
    let directories: HashSet<&[u8]> = rows
        .iter()
        .filter(|(name, _)| name.is_directory())
        .map(|(name, _)| name.bytes())
        .collect();
    let last = rows.last().map(|(name, _)| name);
    let mut shadowed = HashSet::new();
    for (name, _) in rows.iter().filter(|(name, _)| !name.is_directory()) {
        let directory = DentryName::directory(name.bytes())?;
        let hidden = if end || last.is_some_and(|last| directory <= *last) {
            directories.contains(name.bytes())
        } else {
            dentry::exists_snapshot(txn, parent, &directory).await?
        };
        if hidden {
            shadowed.insert(name.clone());
        }
    }
    Ok(shadowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setgid_directories_pass_their_group_on() {
        let directory = |mode| {
            tree::new_inode(NewInode {
                id: InodeId(5),
                kind: FileKind::Directory,
                mode,
                uid: 1,
                gid: 77,
                root: InodeId::ROOT,
                now_ns: 3,
            })
        };
        let who = Credentials { uid: 9, gid: 10 };
        let made = |mode, kind| child(&directory(mode), InodeId(6), kind, 0o755, &who, 4).attr;
        assert_eq!(made(0o755, FileKind::Regular).gid, 10);
        assert_eq!(made(0o2755, FileKind::Regular).gid, 77);
        assert_eq!(made(0o2755, FileKind::Regular).mode, 0o755);
        assert_eq!(made(0o2755, FileKind::Directory).mode, 0o2755);
    }
}
