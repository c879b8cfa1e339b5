//! What is wrong with an image: everything counted again from the rows alone.
//!
//! Absent: reading, and so anything that could differ from one moment to the next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
};

use janusfs_types::{BlobId, FileKind, InodeId};

use crate::{
    fsck::image::Image,
    store::{orphan::Orphan, usage::Usage},
};

/// Most findings of a report.
pub(super) const FINDINGS_MAX: usize = 1000;

/// Something wrong.
pub(super) enum Wrong {
    Said(String),
    /// With an entry: its parent, the hash of its name, and what.
    Entry(InodeId, u64, String),
}

impl Wrong {
    /// Returns what to tell a person, who knows entries by name.
    pub(super) fn text(self, names: &HashMap<(InodeId, u64), String>) -> String {
        match self {
            Self::Said(text) => text,
            Self::Entry(parent, hash, what) => match names.get(&(parent, hash)) {
                Some(name) => format!("entry {name:?} {what}"),
                None => format!("an entry that is gone by now {what}"),
            },
        }
    }
}

/// What was found.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) inodes: u64,
    pub(super) entries: u64,
    pub(super) blobs: u64,
    pub(super) wrong: Vec<Wrong>,
    hasher: RandomState,
}

impl Verdict {
    /// Returns the directories of entries that something is wrong with.
    pub(super) fn parents(&self) -> Vec<InodeId> {
        let parents: BTreeSet<InodeId> = self
            .wrong
            .iter()
            .filter_map(|wrong| match wrong {
                Wrong::Entry(parent, _, _) => Some(*parent),
                Wrong::Said(_) => None,
            })
            .collect();
        parents.into_iter().collect()
    }

    /// Returns the hash by which an entry's name is known here.
    pub(super) fn hash(&self, stored: &[u8]) -> u64 {
        self.hasher.hash_one(stored)
    }

    /// Tells whether the name of an entry is needed.
    pub(super) fn asks_for(&self, parent: InodeId, hash: u64) -> bool {
        self.wrong
            .iter()
            .any(|wrong| matches!(wrong, Wrong::Entry(p, h, _) if (*p, *h) == (parent, hash)))
    }

    fn report(&mut self, wrong: Wrong) {
        if self.wrong.len() < FINDINGS_MAX {
            self.wrong.push(wrong);
        }
    }

    fn say(&mut self, text: String) {
        self.report(Wrong::Said(text));
    }
}

/// Judges an image; `stored` are the figures of accounting roots.
pub(super) fn judge(mut image: Image, stored: &BTreeMap<InodeId, Usage>) -> Verdict {
    let count = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
    let mut verdict = Verdict {
        inodes: count(image.inodes.len()),
        entries: count(image.entries.len()),
        hasher: image.hasher.clone(),
        ..Verdict::default()
    };
    let orphans: HashSet<InodeId> = image
        .orphans
        .values()
        .filter_map(|orphan| match orphan {
            Orphan::Inode(id) => Some(*id),
            Orphan::Blob(..) => None,
        })
        .collect();
    entries(&mut image, &mut verdict);
    inodes(&image, &orphans, &mut verdict);
    reachable(&image, &orphans, &mut verdict);
    blobs(&image, &mut verdict);
    usage(&image, stored, &mut verdict);
    verdict
}

/// Entries lead to inodes of their kind, a directory's to one that has it as its parent, and are in something that exists.
fn entries(image: &mut Image, verdict: &mut Verdict) {
    for ((parent, hash), child) in &image.entries {
        let mut report = |what: String| verdict.report(Wrong::Entry(*parent, *hash, what));
        if let Some(dir) = image.dirs.get_mut(parent) {
            dir.found += 1;
        } else if !image.inodes.contains_key(parent) {
            report(format!("is in {parent}, which does not exist"));
        }
        let id = child.inode;
        let Some(node) = image.inodes.get_mut(&id) else {
            report(format!("in {parent} leads to nothing: {id}"));
            continue;
        };
        node.names = node.names.saturating_add(1);
        let directory = node.kind == FileKind::Directory;
        if node.kind != child.kind || child.directory != directory {
            report(format!("in {parent} has another kind than {id}"));
        }
        if let Some(dir) = image.dirs.get(&id)
            && dir.parent != *parent
        {
            let other = dir.parent;
            verdict.say(format!(
                "{id} is in {parent} and says its parent is {other}"
            ));
        }
    }
}

/// Link, entry and extent row counts are right; a directory has one name; what has no name is an orphan, and no other.
fn inodes(image: &Image, orphans: &HashSet<InodeId>, verdict: &mut Verdict) {
    for (id, node) in &image.inodes {
        let (nlink, found) = (node.nlink, node.names);
        let right = match node.kind {
            FileKind::Directory if *id == InodeId::ROOT => nlink == 2 && found == 0,
            FileKind::Directory => found <= 1 && nlink == 2 * found,
            _ => nlink == found,
        };
        if !right {
            verdict.say(format!("{id} has {nlink} links and {found} names"));
        }
        if nlink == 0 && !orphans.contains(id) {
            verdict.say(format!("{id} has no name and is no orphan"));
        }
        let rows = image.extent_rows.get(id).copied().unwrap_or(0);
        if rows != node.extent_rows {
            let expected = node.extent_rows;
            verdict.say(format!("{id} has {rows} extent rows, not {expected}"));
        }
    }
    for id in image.extent_rows.keys() {
        if !image.inodes.contains_key(id) {
            verdict.say(format!("{id} has extent rows and does not exist"));
        }
    }
    for id in orphans {
        if image.inodes.get(id).is_none_or(|node| node.nlink > 0) {
            verdict.say(format!("{id} is filed as an orphan and is none"));
        }
    }
    for (id, dir) in &image.dirs {
        let (count, found) = (dir.entries, dir.found);
        if found != count {
            verdict.say(format!("{id} counts {count} entries and has {found}"));
        }
    }
}

/// Every directory is below the root or an orphan. One that is in a cycle has a name and a parent, yet is not.
fn reachable(image: &Image, orphans: &HashSet<InodeId>, verdict: &mut Verdict) {
    let mut children: HashMap<InodeId, Vec<InodeId>> = HashMap::new();
    for ((parent, _), child) in &image.entries {
        if child.kind == FileKind::Directory {
            children.entry(*parent).or_default().push(child.inode);
        }
    }
    let mut reached = HashSet::new();
    let mut queue: Vec<InodeId> = orphans.iter().copied().collect();
    queue.push(InodeId::ROOT);
    while let Some(id) = queue.pop() {
        if reached.insert(id) {
            queue.extend(children.get(&id).into_iter().flatten().copied());
        }
    }
    for id in image.dirs.keys().filter(|id| !reached.contains(*id)) {
        verdict.say(format!("directory {id} is not reachable from the root"));
    }
    if !image.inodes.contains_key(&InodeId::ROOT) {
        verdict.say("the root directory does not exist".into());
    }
}

/// Reference counts are right, and nothing refers to a dead blob.
fn blobs(image: &Image, verdict: &mut Verdict) {
    // Without the one reference that an ordinary file has to its own blob: most blobs have no other.
    let mut others: HashMap<BlobId, u64> = HashMap::new();
    for (id, refs) in image.held.values().chain(image.parts.values()).flatten() {
        *others.entry(*id).or_default() += refs;
    }
    for orphan in image.orphans.values() {
        if let Orphan::Blob(id, released) = orphan {
            *others.entry(*id).or_default() += released.refs;
        }
    }
    let own = |id: BlobId| {
        let node = image.inodes.get(&InodeId(id.0));
        u64::from(node.is_some_and(|node| node.own))
    };
    // A blob without a count has one reference, its namesake's: perhaps as the one of its kind in a list of extents.
    let namesake = |id: BlobId| {
        let held = image.held.get(&InodeId(id.0));
        own(id) > 0 || held.is_some_and(|held| held.iter().any(|(blob, _)| *blob == id))
    };
    for (id, refs) in &others {
        let refs = refs + own(*id);
        match image.counts.get(id) {
            Some(count) if *count != refs => {
                verdict.say(format!("{id} has {refs} references, its count is {count}"));
            }
            None if refs != 1 || !namesake(*id) => {
                verdict.say(format!("{id} has {refs} references and no count"));
            }
            Some(_) | None => {}
        }
    }
    for (id, count) in &image.counts {
        let refs = own(*id);
        if others.contains_key(id) {
            continue;
        }
        if refs == 0 {
            verdict.say(format!("{id} has a reference count and no reference"));
        } else if *count != refs {
            verdict.say(format!("{id} has {refs} references, its count is {count}"));
        }
    }
    for id in &image.dead {
        if others.contains_key(id) || own(*id) > 0 {
            verdict.say(format!("{id} is marked dead and referred to"));
        }
    }
    let ordinary = image
        .inodes
        .iter()
        .filter(|(id, node)| node.own && !others.contains_key(&id.own_blob()));
    let count = others.len() + ordinary.count();
    verdict.blobs = u64::try_from(count).unwrap_or(u64::MAX);
}

/// The figures of accounting roots are what is below them.
fn usage(image: &Image, stored: &BTreeMap<InodeId, Usage>, verdict: &mut Verdict) {
    let mut below: BTreeMap<InodeId, Usage> = BTreeMap::new();
    for (id, node) in &image.inodes {
        if node.nlink > 0 && node.root != *id {
            let usage = below.entry(node.root).or_default();
            usage.bytes += node.bytes;
            usage.entries += 1;
        }
    }
    let roots: BTreeSet<InodeId> = below.keys().chain(stored.keys()).copied().collect();
    for root in roots {
        let of = |map: &BTreeMap<InodeId, Usage>| map.get(&root).copied().unwrap_or_default();
        let (counted, stored) = (of(&below), of(stored));
        if counted != stored {
            verdict.say(format!(
                "root {root} holds {counted:?}, its figures say {stored:?}"
            ));
        }
    }
}
