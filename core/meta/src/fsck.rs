//! The check of every metadata invariant on one snapshot, by counting everything again from the rows alone.
//!
//! Keeps the whole namespace in memory while it runs, and one transaction open: for namespaces that a transaction's life
//! suffices to read. Absent: repair; a finding is a defect to be understood first.

use std::collections::{BTreeMap, BTreeSet};

use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{BlobId, Content, DentryName, FileKind, InodeId, Layout};
use janusfs_wire::{
    DecodeError, Decoder, Wire,
    meta::{Finding, Fsck, FsckReport},
};

use crate::{
    Meta, MetaError,
    error::corrupt,
    store::{
        blob::{self, BlobRecord},
        dentry::{self, Dentry},
        dir_stat,
        inode::{self, InodeRecord},
        key, key_u64,
        orphan::{self, Orphan},
        scan_all,
        usage::{self, Usage},
    },
    tree,
};

/// Most findings of a report.
const FINDINGS_MAX: usize = 1000;

/// References to a blob found by counting.
#[derive(Clone, Copy)]
struct Counted {
    layout: Layout,
    refs: u64,
    len_bytes: u64,
    /// Whether the inode of the same number is one of those who refer to it.
    namesake: bool,
}

/// Everything, as read from one snapshot.
struct Snapshot {
    inodes: BTreeMap<InodeId, InodeRecord>,
    entries: Vec<(InodeId, DentryName, Dentry)>,
    counts: BTreeMap<InodeId, u64>,
    blobs: BTreeMap<BlobId, BlobRecord>,
    counted: BTreeMap<BlobId, Counted>,
    orphans: BTreeSet<InodeId>,
    dead: BTreeMap<BlobId, Layout>,
    usage: BTreeMap<InodeId, Usage>,
    extent_rows: BTreeMap<InodeId, u32>,
}

impl<K: Kv> Meta<K> {
    pub(crate) async fn fsck(&self, _: Fsck) -> Result<FsckReport, MetaError> {
        let snapshot = self.snapshot().await?;
        let mut findings = Vec::new();
        let mut report = |text: String| {
            if findings.len() < FINDINGS_MAX {
                findings.push(Finding { text });
            }
        };
        check_entries(&snapshot, &mut report);
        check_reachable(&snapshot, &mut report);
        check_blobs(&snapshot, &mut report);
        check_usage(&snapshot, &mut report);
        let count = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
        Ok(FsckReport {
            inodes: count(snapshot.inodes.len()),
            entries: count(snapshot.entries.len()),
            blobs: count(snapshot.counted.len()),
            findings,
        })
    }

    /// Returns every blob that metadata refers to, with its layout and its length in bytes as metadata knows it.
    ///
    /// # Errors
    /// The store's; `Corrupt` for a row that does not decode.
    pub async fn live_blobs(&self) -> Result<Vec<(BlobId, Layout, u64)>, MetaError> {
        let snapshot = self.snapshot().await?;
        let counted = snapshot.counted.into_iter();
        Ok(counted
            .map(|(id, counted)| (id, counted.layout, counted.len_bytes))
            .collect())
    }

    async fn snapshot(&self) -> Result<Snapshot, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| Box::pin(read(txn))).await
    }
}

async fn read(txn: &mut impl Txn) -> Result<Snapshot, MetaError> {
    let mut snapshot = Snapshot {
        inodes: BTreeMap::new(),
        entries: Vec::new(),
        counts: BTreeMap::new(),
        blobs: BTreeMap::new(),
        counted: BTreeMap::new(),
        orphans: BTreeSet::new(),
        dead: orphan::dead(txn, u32::MAX).await?.into_iter().collect(),
        usage: usage::all(txn).await?.into_iter().collect(),
        extent_rows: BTreeMap::new(),
    };
    for (_, value) in scan_all(txn, &key(inode::KIND, &[])).await? {
        let (mut record, spilled) = inode::from_row(&value)?;
        if spilled.is_some() {
            record.content = Content::Extents(inode::extents_of(txn, record.attr.inode).await?);
        }
        let namesake = record.attr.inode.own_blob();
        snapshot.count(&record.content, record.attr.size, Some(namesake));
        if record.attr.kind == FileKind::Directory {
            let stat = dir_stat::read(txn, record.attr.inode).await?;
            snapshot.counts.insert(record.attr.inode, stat.entries);
        }
        snapshot.inodes.insert(record.attr.inode, record);
    }
    for (content, size) in part_contents(txn).await? {
        snapshot.count(&content, size, None);
    }
    for (row_key, value) in scan_all(txn, &key(dentry::KIND, &[])).await? {
        snapshot.entries.push(dentry::from_row(&row_key, &value)?);
    }
    for (row_key, _) in scan_all(txn, &key(inode::EXTENTS_KIND, &[])).await? {
        *snapshot
            .extent_rows
            .entry(InodeId(key_u64("EXTN", &row_key, 4)?))
            .or_default() += 1;
    }
    for (row_key, value) in scan_all(txn, &key(blob::KIND, &[])).await? {
        let (id, record) = blob::from_row(&row_key, &value)?;
        snapshot.blobs.insert(id, record);
    }
    for (row_key, value) in scan_all(txn, &key(orphan::KIND, &[])).await? {
        match orphan::from_row(&row_key, &value)?.1 {
            Orphan::Inode(id) => {
                snapshot.orphans.insert(id);
            }
            Orphan::Blob(id, released) => {
                snapshot.add(id, released.layout, released.refs, 0, false);
            }
        }
    }
    Ok(snapshot)
}

/// Returns what parts of unfinished uploads hold: a `PART` row begins with its version, content and size (`s3`).
async fn part_contents(txn: &mut impl Txn) -> Result<Vec<(Content, u64)>, MetaError> {
    let rows = scan_all(txn, b"PART").await?;
    let decode = |value: &[u8]| -> Result<(Content, u64), DecodeError> {
        let mut input = Decoder::new(value);
        u8::get(&mut input)?;
        Ok((Content::get(&mut input)?, u64::get(&mut input)?))
    };
    rows.iter()
        .map(|(_, value)| decode(value).map_err(|error| corrupt("PART", error)))
        .collect()
}

impl Snapshot {
    fn count(&mut self, content: &Content, size: u64, namesake: Option<BlobId>) {
        for extent in tree::references(content, size) {
            let end = extent.blob_offset + extent.len_bytes;
            self.add(
                extent.blob,
                extent.layout,
                1,
                end,
                namesake == Some(extent.blob),
            );
        }
    }

    fn add(&mut self, id: BlobId, layout: Layout, refs: u64, len_bytes: u64, namesake: bool) {
        let counted = self.counted.entry(id).or_insert(Counted {
            layout,
            refs: 0,
            len_bytes,
            namesake,
        });
        counted.refs += refs;
        counted.len_bytes = counted.len_bytes.max(len_bytes);
        counted.namesake |= namesake;
    }
}

/// Entries lead to inodes of their kind; link and entry counts are right; a directory has one name, and its parent is there.
fn check_entries(snapshot: &Snapshot, report: &mut impl FnMut(String)) {
    let mut links: BTreeMap<InodeId, u32> = BTreeMap::new();
    let mut entries: BTreeMap<InodeId, u64> = BTreeMap::new();
    for (parent, name, dentry) in &snapshot.entries {
        let shown = String::from_utf8_lossy(name.stored());
        *entries.entry(*parent).or_default() += 1;
        *links.entry(dentry.inode).or_default() += 1;
        if !snapshot.inodes.contains_key(parent) {
            report(format!(
                "entry {shown:?} is in {parent}, which does not exist"
            ));
        }
        let Some(child) = snapshot.inodes.get(&dentry.inode) else {
            report(format!(
                "entry {shown:?} in {parent} leads to nothing: {}",
                dentry.inode
            ));
            continue;
        };
        let directory = child.attr.kind == FileKind::Directory;
        if child.attr.kind != dentry.kind || name.is_directory() != directory {
            report(format!(
                "entry {shown:?} in {parent} has another kind than {}",
                dentry.inode
            ));
        }
        if directory && child.parent != *parent {
            let other = child.parent;
            report(format!(
                "{} is in {parent} and says its parent is {other}",
                dentry.inode
            ));
        }
    }
    for (id, record) in &snapshot.inodes {
        let found = links.get(id).copied().unwrap_or(0);
        let nlink = record.attr.nlink;
        let right = match record.attr.kind {
            FileKind::Directory if *id == InodeId::ROOT => nlink == 2 && found == 0,
            FileKind::Directory => nlink == 2 * found && found <= 1,
            _ => nlink == found,
        };
        if !right {
            report(format!("{id} has {nlink} links and {found} names"));
        }
        if nlink == 0 && !snapshot.orphans.contains(id) {
            report(format!("{id} has no name and is no orphan"));
        }
        let rows = snapshot.extent_rows.get(id).copied().unwrap_or(0);
        if rows != record.extent_rows {
            report(format!(
                "{id} has {rows} extent rows, not {}",
                record.extent_rows
            ));
        }
    }
    for id in snapshot
        .extent_rows
        .keys()
        .filter(|id| !snapshot.inodes.contains_key(id))
    {
        report(format!("{id} has extent rows and does not exist"));
    }
    for id in &snapshot.orphans {
        if snapshot
            .inodes
            .get(id)
            .is_none_or(|record| record.attr.nlink > 0)
        {
            report(format!("{id} is filed as an orphan and is none"));
        }
    }
    for (id, count) in &snapshot.counts {
        let found = entries.get(id).copied().unwrap_or(0);
        if found != *count {
            report(format!("{id} counts {count} entries and has {found}"));
        }
    }
}

/// Every directory is below the root or an orphan. One that is in a cycle has a name and a parent, yet is not.
fn check_reachable(snapshot: &Snapshot, report: &mut impl FnMut(String)) {
    let mut children: BTreeMap<InodeId, Vec<InodeId>> = BTreeMap::new();
    for (parent, _, dentry) in &snapshot.entries {
        if dentry.kind == FileKind::Directory {
            children.entry(*parent).or_default().push(dentry.inode);
        }
    }
    let mut reached = BTreeSet::new();
    let mut queue: Vec<InodeId> = snapshot.orphans.iter().copied().collect();
    queue.push(InodeId::ROOT);
    while let Some(id) = queue.pop() {
        if reached.insert(id) {
            queue.extend(children.get(&id).into_iter().flatten().copied());
        }
    }
    for id in snapshot.counts.keys().filter(|id| !reached.contains(id)) {
        report(format!("directory {id} is not reachable from the root"));
    }
    if !snapshot.inodes.contains_key(&InodeId::ROOT) {
        report("the root directory does not exist".into());
    }
}

/// Reference counts are right, and nothing refers to a dead blob.
fn check_blobs(snapshot: &Snapshot, report: &mut impl FnMut(String)) {
    for (id, counted) in &snapshot.counted {
        let refs = counted.refs;
        match snapshot.blobs.get(id) {
            Some(record) if record.refs != refs => {
                report(format!(
                    "{id} has {refs} references, its count is {}",
                    record.refs
                ));
            }
            None if refs != 1 || !counted.namesake => {
                report(format!("{id} has {refs} references and no count"));
            }
            Some(_) | None => {}
        }
        if snapshot.dead.contains_key(id) {
            report(format!("{id} is marked dead and referred to"));
        }
    }
    for id in snapshot
        .blobs
        .keys()
        .filter(|id| !snapshot.counted.contains_key(id))
    {
        report(format!("{id} has a reference count and no reference"));
    }
}

/// The figures of accounting roots are what is below them.
fn check_usage(snapshot: &Snapshot, report: &mut impl FnMut(String)) {
    let mut below: BTreeMap<InodeId, Usage> = BTreeMap::new();
    for (id, record) in &snapshot.inodes {
        if record.attr.nlink > 0 && record.root != *id {
            let usage = below.entry(record.root).or_default();
            usage.bytes += tree::counted_bytes(record);
            usage.entries += 1;
        }
    }
    let roots: BTreeSet<InodeId> = below.keys().chain(snapshot.usage.keys()).copied().collect();
    for root in roots {
        let of = |map: &BTreeMap<InodeId, Usage>| map.get(&root).copied().unwrap_or_default();
        let (counted, stored) = (of(&below), of(&snapshot.usage));
        if counted != stored {
            report(format!(
                "root {root} holds {counted:?}, its figures say {stored:?}"
            ));
        }
    }
}
