//! From a key to the tree, and the change of an entry that every publishing call shares.
//!
//! Invariant: whoever changes an entry has read every entry on the way to it, so a directory that goes in between is a
//! conflict; and whoever removes an empty directory has read that it is empty, so an entry that comes in between is
//! one too. Regular files are objects, symlinks that lead to one are too, and directories made on purpose are under their
//! key with a trailing `/`. A symlink to a directory of the bucket is passed like one where no directory has its name.

use janusfs_kv::{Kv, Txn};
use janusfs_types::{Content, Credentials, DataVersion, FileKind, FsError, InodeId};
use janusfs_wire::meta::{Conditions, ObjectAttrs, Published};

use super::{
    attrs,
    bucket::BucketRecord,
    key::KeyPath,
    link::{self, Target},
};
use crate::{
    Meta, MetaError,
    store::{
        dentry::{self, Dentry},
        inode::{self, InodeRecord},
        object,
    },
    tree::{self, NewInode},
};

/// Permission bits of a new file and directory before the bucket's umask.
const FILE_MODE: u32 = 0o666;
/// See [`FILE_MODE`].
const DIRECTORY_MODE: u32 = 0o777;

/// Where a key leads, as far as its directories exist.
pub(super) struct Place {
    /// The directories on the way, the bucket's first.
    pub(super) chain: Vec<InodeId>,
    /// What is in the file's slot.
    entry: Option<Dentry>,
    /// The file that the slot leads to: its entry, or what its symlink leads to.
    file: Option<InodeId>,
    /// How many directories of the key are passed until the last one that is a symlink.
    linked: usize,
    complete: bool,
}

/// What a key names.
pub(super) struct Object {
    /// The file, or the directory made on purpose.
    pub(super) record: InodeRecord,
    /// The attributes that hold now.
    pub(super) attrs: ObjectAttrs,
}

impl Object {
    /// Tells whether it is a directory shown as an object.
    pub(super) fn is_directory(&self) -> bool {
        self.record.attr.kind == FileKind::Directory
    }

    /// Returns how many bytes a reader gets.
    pub(super) fn size(&self) -> u64 {
        if self.is_directory() {
            0
        } else {
            self.record.attr.size
        }
    }
}

/// An object to publish.
pub(super) struct NewObject {
    pub(super) inode: InodeId,
    pub(super) content: Content,
    pub(super) size: u64,
    pub(super) attrs: ObjectAttrs,
    pub(super) now_ns: i64,
}

impl Place {
    /// Follows a key from the bucket's directory.
    pub(super) async fn find(
        txn: &mut impl Txn,
        root: InodeId,
        path: &KeyPath,
    ) -> Result<Self, MetaError> {
        let mut place = Self {
            chain: Vec::with_capacity(path.directories.len() + 1),
            entry: None,
            file: None,
            linked: 0,
            complete: false,
        };
        place.chain.push(root);
        let mut links = 0;
        for (passed, name) in path.directories.iter().enumerate() {
            let at = place.parent();
            if let Some(entry) = dentry::get(txn, at, name).await? {
                place.chain.push(entry.inode);
                continue;
            }
            let led = link::directory_at(txn, root, at, name).await?;
            let may_pass = |id: &InodeId| link::may_pass(place.chain.iter().copied(), links, *id);
            let Some(directory) = led.filter(may_pass) else {
                return Ok(place);
            };
            links += 1;
            place.chain.push(directory);
            place.linked = passed + 1;
        }
        let at = place.parent();
        place.complete = true;
        place.entry = dentry::get(txn, at, &path.file).await?;
        place.file = match place.entry {
            Some(entry) if entry.kind == FileKind::Regular => Some(entry.inode),
            Some(entry) if entry.kind == FileKind::Symlink => {
                match link::follow(txn, root, at, entry.inode).await? {
                    Some(Target::File(id)) => Some(id),
                    Some(Target::Directory(_)) | None => None,
                }
            }
            _ => None,
        };
        Ok(place)
    }

    /// Tells whether both keys end in the same directory. A chain that stops at a missing directory ends in none: its last
    /// member is only the nearest ancestor that exists.
    pub(super) fn shares_directory(&self, other: &Self) -> bool {
        self.complete && other.complete && self.chain.last() == other.chain.last()
    }

    /// Returns the directory that the chain ends with.
    pub(super) fn parent(&self) -> InodeId {
        *self
            .chain
            .last()
            .expect("a chain begins with the bucket's directory")
    }

    /// Tells whether the key's own slot holds the file, not a symlink to it.
    pub(super) fn holds_file(&self) -> bool {
        self.entry.map(|entry| entry.inode) == self.file
    }

    /// Reads the directory that a key with a trailing `/` names, when it was made on purpose.
    async fn directory(
        &self,
        txn: &mut impl Txn,
        path: &KeyPath,
    ) -> Result<Option<InodeRecord>, MetaError> {
        // What a symlink leads to is an object under its own key only.
        let unlinked = self.chain.len() - 1 > self.linked;
        if !self.complete || !unlinked || !path.file.bytes().is_empty() {
            return Ok(None);
        }
        Ok(inode::load_opt(txn, self.parent())
            .await?
            .filter(|record| record.explicit))
    }

    /// Reads the object that the key names.
    pub(super) async fn object(
        &self,
        txn: &mut impl Txn,
        path: &KeyPath,
    ) -> Result<Option<Object>, MetaError> {
        if let Some(id) = self.file {
            let record = inode::load(txn, id).await?;
            let attrs = attrs::current(&record.attr, object::load(txn, id).await?);
            return Ok(Some(Object { record, attrs }));
        }
        let directory = self.directory(txn, path).await?;
        Ok(directory.map(|record| {
            let attrs = attrs::of_directory(record.attr.data_version);
            Object { record, attrs }
        }))
    }

    /// Decides conditions on what the key names now.
    pub(super) async fn check(
        &self,
        txn: &mut impl Txn,
        path: &KeyPath,
        conditions: &Conditions,
    ) -> Result<(), MetaError> {
        if conditions.if_match.is_empty() && conditions.if_none_match.is_empty() {
            return Ok(());
        }
        let object = self.object(txn, path).await?;
        Ok(attrs::check(
            conditions,
            object.as_ref().map(|object| object.attrs.etag.as_str()),
        )?)
    }
}

/// Returns what an earlier attempt of the same request published: its inode exists already.
pub(super) async fn published_before(
    txn: &mut impl Txn,
    id: InodeId,
) -> Result<Option<Published>, MetaError> {
    if id < InodeId::FIRST_FREE {
        return Err(FsError::Invalid(format!("{id} is reserved")).into());
    }
    let Some(record) = inode::load_opt(txn, id).await? else {
        return Ok(None);
    };
    let attrs = attrs::current(&record.attr, object::load(txn, id).await?);
    let modified_ns = record.attr.times.modified_ns;
    Ok(Some(Published {
        inode: id,
        etag: attrs.etag,
        modified_ns,
    }))
}

impl<K: Kv> Meta<K> {
    /// Gives a new object its name, in place of what has it now. The caller has checked conditions, and accounts for the
    /// blobs that the content refers to.
    pub(super) async fn publish_object(
        &self,
        txn: &mut impl Txn,
        bucket: &BucketRecord,
        path: &KeyPath,
        mut place: Place,
        new: NewObject,
        who: &Credentials,
    ) -> Result<Published, MetaError> {
        let NewObject {
            inode: id,
            content,
            size,
            attrs,
            now_ns,
        } = new;
        let mut root = tree::directory(txn, place.parent()).await?.root;
        let made = |id, kind, mode: u32, root| NewInode {
            id,
            kind,
            mode: mode & !bucket.umask,
            uid: who.uid,
            gid: who.gid,
            root,
            now_ns,
        };
        while let Some(name) = path.directories.get(place.chain.len() - 1) {
            let id = self.new_id().await?;
            let mut record = tree::new_inode(made(id, FileKind::Directory, DIRECTORY_MODE, root));
            tree::publish(txn, place.parent(), name, &mut record, now_ns);
            root = record.root;
            place.chain.push(id);
        }
        let parent = place.parent();
        let mut record = tree::new_inode(made(id, FileKind::Regular, FILE_MODE, root));
        record.content = content;
        record.attr.size = size;
        match place.entry {
            None => tree::publish(txn, parent, &path.file, &mut record, now_ns),
            Some(entry) => {
                let mut old = inode::load(txn, entry.inode).await?;
                inode::store(txn, &record);
                tree::account(txn, &record, 1);
                tree::replace_entry(txn, parent, &path.file, id, FileKind::Regular, now_ns);
                tree::drop_link(txn, &mut old, now_ns).await?;
            }
        }
        let attrs = ObjectAttrs {
            data_version: record.attr.data_version,
            ..attrs
        };
        object::store(txn, id, &attrs);
        let etag = attrs::current(&record.attr, Some(attrs)).etag;
        Ok(Published {
            inode: id,
            etag,
            modified_ns: now_ns,
        })
    }
}

/// Removes what a key names (of a symlink: itself), and the implicit directories that this leaves empty. Tells whether there
/// was anything.
///
/// # Errors
/// `ThroughSymlink` below a symlink to a directory: who deletes there means the symlink's copy, and there is none.
pub(super) async fn remove_object(
    txn: &mut impl Txn,
    path: &KeyPath,
    place: &Place,
    now_ns: i64,
) -> Result<bool, MetaError> {
    let mut removed = false;
    if place.linked > 0 && place.object(txn, path).await?.is_some() {
        return Err(FsError::ThroughSymlink.into());
    }
    if let (Some(_), Some(entry)) = (place.file, place.entry) {
        let mut record = inode::load(txn, entry.inode).await?;
        tree::unlink_entry(txn, place.parent(), &path.file, now_ns);
        tree::drop_link(txn, &mut record, now_ns).await?;
        removed = true;
    }
    if let Some(mut directory) = place.directory(txn, path).await? {
        if directory.root != directory.attr.inode {
            // No longer kept for its own sake: it goes now if it is empty, else with its last key.
            directory.explicit = false;
            inode::store_attr(txn, &directory);
            removed = true;
        } else if !removed {
            // The directory of another bucket.
            return Err(FsError::AccessDenied.into());
        }
    }
    if removed {
        remove_empty_parents(txn, path, place, now_ns).await?;
    }
    Ok(removed)
}

async fn remove_empty_parents(
    txn: &mut impl Txn,
    path: &KeyPath,
    place: &Place,
    now_ns: i64,
) -> Result<(), MetaError> {
    let mut removed = &path.file;
    for (depth, name) in path.directories.iter().enumerate().rev() {
        let (parent, id) = (place.chain[depth], place.chain[depth + 1]);
        let mut directory = inode::load(txn, id).await?;
        if directory.explicit || !dentry::is_empty_without(txn, id, removed).await? {
            return Ok(());
        }
        removed = name;
        tree::unlink_entry(txn, parent, name, now_ns);
        tree::drop_link(txn, &mut directory, now_ns).await?;
    }
    Ok(())
}

/// Returns attributes for a new inode that were another's: void ones stay void.
pub(super) fn carried_over(source: &Object, stored_etag_holds: bool) -> ObjectAttrs {
    if stored_etag_holds {
        source.attrs.clone()
    } else {
        ObjectAttrs {
            data_version: DataVersion::default(),
            ..attrs::without_bytes(source.attrs.clone())
        }
    }
}
