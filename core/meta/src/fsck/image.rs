//! The metadata as a check holds it: of every row only what the checks need, findable so that one row can be replaced.
//!
//! Invariant: [`Image::add`] and [`Image::renew`] replace what was known of a row by what the transaction shows, so that the
//! order and number of readings do not matter, only that the last is late enough.
//!
//! Memory: an inode 40 bytes and an entry 32 in tables that are between 44 and 88 % full: 85 to 170 bytes for a file of one
//! name, whatever its name's length and content. Names are hashes of 64 bits under a random key: in a directory of a million names
//! two collide, and give a false finding, once in 40 million checks.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
};

use bytes::Bytes;
use janusfs_kv::Txn;
use janusfs_types::{BlobId, Content, FileKind, InodeId};
use janusfs_wire::{DecodeError, Decoder, Wire};

use crate::{
    MetaError,
    error::corrupt,
    journal::Row,
    s3::PART_KIND,
    store::{
        blob,
        dentry::{self, Dentry},
        dir_stat,
        inode::{self, InodeRecord},
        key, key_u64,
        orphan::{self, Orphan},
        scan_all,
    },
    tree,
};

/// The kinds of rows that are walked.
pub(super) const KINDS: [&[u8; 4]; 7] = [
    inode::KIND,
    inode::EXTENTS_KIND,
    PART_KIND,
    dentry::KIND,
    blob::KIND,
    orphan::KIND,
    orphan::DEAD_KIND,
];

/// References to blobs: how many to which.
type Held = Box<[(BlobId, u64)]>;

/// What the checks need of an inode.
#[derive(Clone, Copy)]
pub(super) struct Node {
    pub(super) root: InodeId,
    pub(super) bytes: u64,
    pub(super) nlink: u32,
    pub(super) extent_rows: u32,
    /// Names found, for the judge.
    pub(super) names: u32,
    pub(super) kind: FileKind,
    /// Its one reference is to the blob of its number, as an ordinary file's is.
    pub(super) own: bool,
}

/// What the checks need of a directory beside.
#[derive(Clone, Copy)]
pub(super) struct Dir {
    pub(super) parent: InodeId,
    pub(super) entries: u64,
    /// Entries found, for the judge.
    pub(super) found: u64,
}

/// Where a name leads.
#[derive(Clone, Copy)]
pub(super) struct Child {
    pub(super) inode: InodeId,
    pub(super) kind: FileKind,
    /// Whether the name is a directory's.
    pub(super) directory: bool,
}

/// Everything.
#[derive(Default)]
pub(super) struct Image {
    pub(super) hasher: RandomState,
    pub(super) inodes: HashMap<InodeId, Node>,
    pub(super) dirs: HashMap<InodeId, Dir>,
    /// By parent and hash of the stored name.
    pub(super) entries: HashMap<(InodeId, u64), Child>,
    /// Inodes with other references than one to their own blob.
    pub(super) held: HashMap<InodeId, Held>,
    pub(super) extent_rows: HashMap<InodeId, u32>,
    pub(super) parts: BTreeMap<Bytes, Held>,
    pub(super) counts: HashMap<BlobId, u64>,
    pub(super) orphans: BTreeMap<Bytes, Orphan>,
    pub(super) dead: HashSet<BlobId>,
}

impl Image {
    /// Takes in a row of a walk.
    pub(super) async fn add(
        &mut self,
        txn: &mut impl Txn,
        row_key: &Bytes,
        value: &Bytes,
    ) -> Result<(), MetaError> {
        match row_key.first_chunk() {
            Some(inode::KIND) => {
                let (mut record, spilled) = inode::from_row(value)?;
                if spilled.is_some() {
                    let extents = inode::extents_of(txn, record.attr.inode).await?;
                    record.content = Content::Extents(extents);
                }
                self.put_inode(txn, &record).await?;
            }
            Some(inode::EXTENTS_KIND) => {
                let id = InodeId(key_u64("EXTN", row_key, 4)?);
                if !self.extent_rows.contains_key(&id) {
                    self.count_extent_rows(txn, id).await?;
                }
            }
            Some(dentry::KIND) => {
                let (parent, name, dentry) = dentry::from_row(row_key, value)?;
                self.put_entry(parent, name.stored(), dentry);
            }
            Some(blob::KIND) => {
                let (id, record) = blob::from_row(row_key, value)?;
                self.counts.insert(id, record.refs);
            }
            _ => self.put_plain(row_key, Some(value))?,
        }
        Ok(())
    }

    /// Reads a row again.
    pub(super) async fn renew(&mut self, txn: &mut impl Txn, row: &Row) -> Result<(), MetaError> {
        match row {
            Row::Inode(id) => {
                self.count_extent_rows(txn, *id).await?;
                match inode::load_opt(txn, *id).await? {
                    Some(record) => self.put_inode(txn, &record).await?,
                    None => self.remove_inode(*id),
                }
            }
            Row::Entry(parent, stored) => {
                let found = txn.get_snapshot(&dentry::key(*parent, stored)).await?;
                match found {
                    Some(value) => self.put_entry(*parent, stored, dentry::decode(&value)?),
                    None => {
                        let hash = self.hasher.hash_one(&stored[..]);
                        self.entries.remove(&(*parent, hash));
                    }
                }
            }
            Row::Blob(id) => match blob::load(txn, *id).await? {
                Some(record) => {
                    self.counts.insert(*id, record.refs);
                }
                None => {
                    self.counts.remove(id);
                }
            },
            Row::Plain(row_key) => {
                let value = txn.get_snapshot(row_key).await?;
                self.put_plain(row_key, value.as_ref())?;
            }
            Row::Range(start, end) => {
                // Only parts of uploads are cleared so: at most `PART_COUNT_MAX` rows.
                let rows = txn.range_snapshot(start, end, u32::MAX).await?;
                self.parts.retain(|key, _| key < start || key >= end);
                for (row_key, value) in rows {
                    self.put_plain(&row_key, Some(&value))?;
                }
            }
        }
        Ok(())
    }

    async fn put_inode(
        &mut self,
        txn: &mut impl Txn,
        record: &InodeRecord,
    ) -> Result<(), MetaError> {
        let id = record.attr.inode;
        let directory = record.attr.kind == FileKind::Directory;
        let stat = if directory {
            Some(dir_stat::read(txn, id).await?)
        } else {
            None
        };
        let held = references(&record.content, record.attr.size);
        let own = *held == [(id.own_blob(), 1)];
        let node = Node {
            root: record.root,
            bytes: tree::counted_bytes(record),
            nlink: record.attr.nlink,
            extent_rows: record.extent_rows,
            names: 0,
            kind: record.attr.kind,
            own,
        };
        self.remove_inode(id);
        self.inodes.insert(id, node);
        if !own && !held.is_empty() {
            self.held.insert(id, held);
        }
        if let Some(stat) = stat {
            let dir = Dir {
                parent: record.parent,
                entries: stat.entries,
                found: 0,
            };
            self.dirs.insert(id, dir);
        }
        Ok(())
    }

    fn remove_inode(&mut self, id: InodeId) {
        self.inodes.remove(&id);
        self.dirs.remove(&id);
        self.held.remove(&id);
    }

    async fn count_extent_rows(
        &mut self,
        txn: &mut impl Txn,
        id: InodeId,
    ) -> Result<(), MetaError> {
        let prefix = key(inode::EXTENTS_KIND, &[&id.0.to_be_bytes()]);
        let rows = scan_all(txn, &prefix).await?.len();
        if rows == 0 {
            self.extent_rows.remove(&id);
        } else {
            self.extent_rows
                .insert(id, u32::try_from(rows).unwrap_or(u32::MAX));
        }
        Ok(())
    }

    fn put_entry(&mut self, parent: InodeId, stored: &[u8], dentry: Dentry) {
        let child = Child {
            inode: dentry.inode,
            kind: dentry.kind,
            directory: stored.last() == Some(&b'/'),
        };
        let hash = self.hasher.hash_one(stored);
        self.entries.insert((parent, hash), child);
    }

    /// Takes in a row that stands alone, or that it is gone.
    fn put_plain(&mut self, row_key: &Bytes, value: Option<&Bytes>) -> Result<(), MetaError> {
        match (row_key.first_chunk(), value) {
            (Some(PART_KIND), Some(value)) => {
                self.parts.insert(row_key.clone(), part(value)?);
            }
            (Some(PART_KIND), None) => {
                self.parts.remove(row_key);
            }
            (Some(orphan::KIND), Some(value)) => {
                let (_, orphan) = orphan::from_row(row_key, value)?;
                self.orphans.insert(row_key.clone(), orphan);
            }
            (Some(orphan::KIND), None) => {
                self.orphans.remove(row_key);
            }
            (_, Some(_)) => {
                self.dead.insert(BlobId(key_u64("DEAD", row_key, 4)?));
            }
            (_, None) => {
                self.dead.remove(&BlobId(key_u64("DEAD", row_key, 4)?));
            }
        }
        Ok(())
    }
}

/// Returns what a content refers to, each blob once.
fn references(content: &Content, size: u64) -> Held {
    let mut held: BTreeMap<BlobId, u64> = BTreeMap::new();
    for extent in tree::references(content, size) {
        *held.entry(extent.blob).or_default() += 1;
    }
    held.into_iter().collect()
}

/// Returns what a part of an unfinished upload refers to: a `PART` row begins with its version, content and size (`s3`).
fn part(value: &[u8]) -> Result<Held, MetaError> {
    let decode = || -> Result<(Content, u64), DecodeError> {
        let mut input = Decoder::new(value);
        u8::get(&mut input)?;
        Ok((Content::get(&mut input)?, u64::get(&mut input)?))
    };
    let (content, size) = decode().map_err(|error| corrupt("PART", error))?;
    Ok(references(&content, size))
}
