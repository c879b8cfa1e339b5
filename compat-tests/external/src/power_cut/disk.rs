//! What is on the disk and what is only in memory: the state of the layer, without any FUSE.
//!
//! Invariants: the volatile side is what a running system sees; the durable side changes only by a sync and by
//! [`Disk::cut`], after which both are the same. A page of a file is dirty exactly while its two sides may differ.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    sync::Arc,
};

use rustix::io::Errno;

use crate::Seeded;

use super::Loss;

/// Number of the root directory.
pub(super) const ROOT: u64 = 1;
/// The unit of the page cache.
const PAGE_BYTES: usize = 4096;
/// The unit that a disk writes whole.
const SECTOR_BYTES: usize = 512;

type Page = Arc<[u8; PAGE_BYTES]>;

/// Owner and mode; durable with the inode, as nothing here depends on them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What `stat` tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) inode: u64,
    pub(super) is_dir: bool,
    pub(super) size: u64,
    pub(super) pages: u64,
    pub(super) owner: Owner,
}

/// The whole disk.
pub(super) struct Disk {
    nodes: HashMap<u64, Node>,
    /// Changes of names that are not durable yet, oldest first.
    journal: Vec<Renaming>,
    next: u64,
}

struct Node {
    owner: Owner,
    body: Body,
}

enum Body {
    File(File),
    Dir(Dir),
}

/// Bytes; pages that are not there are zeros. None is kept past the size, and the last one is zero past it.
#[derive(Clone, Default)]
struct Bytes {
    size: u64,
    pages: BTreeMap<u64, Page>,
}

#[derive(Default)]
struct File {
    volatile: Bytes,
    durable: Bytes,
    dirty: BTreeSet<u64>,
}

#[derive(Default)]
struct Dir {
    volatile: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
}

/// One namespace operation: what some names stand for afterwards. It happens whole or not at all.
struct Renaming(Vec<(u64, OsString, Option<u64>)>);

fn page_of(offset: u64) -> u64 {
    offset / PAGE_BYTES as u64
}

fn within(offset: u64) -> usize {
    usize::try_from(offset % PAGE_BYTES as u64).expect("less than a page")
}

impl Bytes {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len as u64).min(self.size);
        let mut found = Vec::new();
        let mut at = offset;
        while at < end {
            let room = (PAGE_BYTES - within(at)) as u64;
            let take = usize::try_from(room.min(end - at)).expect("less than a page");
            match self.pages.get(&page_of(at)) {
                Some(page) => found.extend_from_slice(&page[within(at)..within(at) + take]),
                None => found.resize(found.len() + take, 0),
            }
            at += take as u64;
        }
        found
    }

    /// Sets the size and forgets what is past it.
    fn resize(&mut self, size: u64) {
        self.size = size;
        drop(self.pages.split_off(&size.div_ceil(PAGE_BYTES as u64)));
        if within(size) > 0
            && let Some(page) = self.pages.get_mut(&page_of(size))
        {
            Arc::make_mut(page)[within(size)..].fill(0);
        }
    }
}

impl File {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (start, number) = (within(at), page_of(at));
            let (part, later) = rest.split_at(rest.len().min(PAGE_BYTES - start));
            if let Ok(whole) = <[u8; PAGE_BYTES]>::try_from(part) {
                self.volatile.pages.insert(number, Arc::new(whole));
            } else {
                let page = self.volatile.pages.entry(number);
                let page = page.or_insert_with(|| Arc::new([0; PAGE_BYTES]));
                Arc::make_mut(page)[start..start + part.len()].copy_from_slice(part);
            }
            self.dirty.insert(number);
            (at, rest) = (at + part.len() as u64, later);
        }
        self.volatile.size = self.volatile.size.max(at);
    }

    fn truncate(&mut self, size: u64) {
        let first = page_of(size);
        self.dirty
            .extend(self.volatile.pages.range(first..).map(|(number, _)| number));
        self.volatile.resize(size);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.volatile.size);
        let touched: Vec<u64> = self
            .volatile
            .pages
            .range(page_of(offset)..)
            .map(|(n, _)| *n)
            .collect();
        for number in touched {
            let start = number * PAGE_BYTES as u64;
            if start >= end {
                break;
            }
            self.dirty.insert(number);
            let from = usize::try_from(offset.saturating_sub(start)).expect("less than a page");
            let until =
                usize::try_from((end - start).min(PAGE_BYTES as u64)).expect("at most a page");
            if (from, until) == (0, PAGE_BYTES) {
                self.volatile.pages.remove(&number);
            } else if let Some(page) = self.volatile.pages.get_mut(&number) {
                Arc::make_mut(page)[from..until].fill(0);
            }
        }
    }

    fn sync(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            match self.volatile.pages.get(&number) {
                Some(page) => self.durable.pages.insert(number, Arc::clone(page)),
                None => self.durable.pages.remove(&number),
            };
        }
        self.durable.resize(self.volatile.size);
    }

    /// Decides for each dirty page, and for the size, what reached the disk.
    fn cut(&mut self, chance: &mut Seeded, loss: &mut Loss) {
        let size = if chance.one_in(2) {
            self.volatile.size
        } else {
            self.durable.size
        };
        for number in std::mem::take(&mut self.dirty) {
            let fresh = self.volatile.pages.get(&number);
            let settled = match chance.below(8) {
                0..=2 => {
                    loss.pages_kept += 1;
                    fresh.cloned()
                }
                3..=5 => {
                    loss.pages_lost += 1;
                    continue;
                }
                _ => {
                    loss.pages_torn += 1;
                    Some(torn(self.durable.pages.get(&number), fresh, chance))
                }
            };
            match settled {
                Some(page) => self.durable.pages.insert(number, page),
                None => self.durable.pages.remove(&number),
            };
        }
        self.durable.resize(size);
        self.volatile = self.durable.clone();
    }
}

/// Takes each sector from one of two pages.
fn torn(old: Option<&Page>, new: Option<&Page>, chance: &mut Seeded) -> Page {
    let mut page = old.map_or([0; PAGE_BYTES], |page| **page);
    for start in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
        let sector = start..start + SECTOR_BYTES;
        if chance.one_in(2) {
            match new {
                Some(new) => page[sector.clone()].copy_from_slice(&new[sector]),
                None => page[sector].fill(0),
            }
        }
    }
    Arc::new(page)
}

impl Disk {
    pub(super) fn new(owner: Owner) -> Self {
        let body = Body::Dir(Dir::default());
        Self {
            nodes: HashMap::from([(ROOT, Node { owner, body })]),
            journal: Vec::new(),
            next: ROOT + 1,
        }
    }

    fn node(&self, inode: u64) -> Result<&Node, Errno> {
        self.nodes.get(&inode).ok_or(Errno::NOENT)
    }

    fn file(&mut self, inode: u64) -> Result<&mut File, Errno> {
        match &mut self.nodes.get_mut(&inode).ok_or(Errno::NOENT)?.body {
            Body::File(file) => Ok(file),
            Body::Dir(_) => Err(Errno::ISDIR),
        }
    }

    fn dir(&self, inode: u64) -> Result<&Dir, Errno> {
        match &self.node(inode)?.body {
            Body::Dir(dir) => Ok(dir),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn lookup(&self, dir: u64, name: &OsStr) -> Result<u64, Errno> {
        self.dir(dir)?
            .volatile
            .get(name)
            .copied()
            .ok_or(Errno::NOENT)
    }

    pub(super) fn status(&self, inode: u64) -> Result<Status, Errno> {
        let node = self.node(inode)?;
        let (is_dir, size, pages) = match &node.body {
            Body::File(file) => (false, file.volatile.size, file.volatile.pages.len() as u64),
            Body::Dir(_) => (true, 0, 0),
        };
        Ok(Status {
            inode,
            is_dir,
            size,
            pages,
            owner: node.owner,
        })
    }

    pub(super) fn set_owner(&mut self, inode: u64, owner: Owner) -> Result<(), Errno> {
        self.nodes.get_mut(&inode).ok_or(Errno::NOENT)?.owner = owner;
        Ok(())
    }

    /// Returns the names of a directory, in order, with what they stand for.
    pub(super) fn list(&self, dir: u64) -> Result<Vec<(OsString, Status)>, Errno> {
        let names = self.dir(dir)?.volatile.iter();
        names
            .map(|(name, inode)| Ok((name.clone(), self.status(*inode)?)))
            .collect()
    }

    pub(super) fn create(
        &mut self,
        dir: u64,
        name: &OsStr,
        owner: Owner,
        is_dir: bool,
    ) -> Result<u64, Errno> {
        if self.dir(dir)?.volatile.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let inode = self.next;
        self.next += 1;
        let body = if is_dir {
            Body::Dir(Dir::default())
        } else {
            Body::File(File::default())
        };
        self.nodes.insert(inode, Node { owner, body });
        self.change(Renaming(vec![(dir, name.to_owned(), Some(inode))]));
        Ok(inode)
    }

    pub(super) fn remove(&mut self, dir: u64, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        let inode = self.lookup(dir, name)?;
        match &self.node(inode)?.body {
            Body::File(_) if is_dir => return Err(Errno::NOTDIR),
            Body::Dir(_) if !is_dir => return Err(Errno::ISDIR),
            Body::Dir(found) if !found.volatile.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        // The node stays: the name may come back, and someone may have it open.
        self.change(Renaming(vec![(dir, name.to_owned(), None)]));
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        (dir, name): (u64, &OsStr),
        (new_dir, new_name): (u64, &OsStr),
        replace: bool,
    ) -> Result<(), Errno> {
        let inode = self.lookup(dir, name)?;
        match self.lookup(new_dir, new_name) {
            Ok(_) if !replace => return Err(Errno::EXIST),
            Ok(there) if there == inode => return Ok(()),
            Ok(there) => match (&self.node(inode)?.body, &self.node(there)?.body) {
                (Body::File(_), Body::File(_)) => {}
                (Body::File(_), Body::Dir(_)) => return Err(Errno::ISDIR),
                (Body::Dir(_), Body::File(_)) => return Err(Errno::NOTDIR),
                (Body::Dir(_), Body::Dir(found)) if found.volatile.is_empty() => {}
                (Body::Dir(_), Body::Dir(_)) => return Err(Errno::NOTEMPTY),
            },
            Err(_) => {}
        }
        self.change(Renaming(vec![
            (dir, name.to_owned(), None),
            (new_dir, new_name.to_owned(), Some(inode)),
        ]));
        Ok(())
    }

    fn change(&mut self, renaming: Renaming) {
        self.apply(&renaming, |dir| &mut dir.volatile);
        self.journal.push(renaming);
    }

    fn apply(
        &mut self,
        Renaming(changes): &Renaming,
        side: impl Fn(&mut Dir) -> &mut BTreeMap<OsString, u64>,
    ) {
        for (dir, name, inode) in changes {
            let Some(Node {
                body: Body::Dir(dir),
                ..
            }) = self.nodes.get_mut(dir)
            else {
                continue;
            };
            match inode {
                Some(inode) => side(dir).insert(name.clone(), *inode),
                None => side(dir).remove(name),
            };
        }
    }

    pub(super) fn read(&mut self, inode: u64, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        Ok(self.file(inode)?.volatile.read(offset, len))
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.file(inode)?.write(offset, data);
        Ok(())
    }

    pub(super) fn truncate(&mut self, inode: u64, size: u64) -> Result<(), Errno> {
        self.file(inode)?.truncate(size);
        Ok(())
    }

    /// Grows the file to `size` with zeros, if it is shorter.
    pub(super) fn grow(&mut self, inode: u64, size: u64) -> Result<(), Errno> {
        let file = self.file(inode)?;
        file.volatile.size = file.volatile.size.max(size);
        Ok(())
    }

    pub(super) fn zero(&mut self, inode: u64, offset: u64, len: u64) -> Result<(), Errno> {
        self.file(inode)?.zero(offset, len);
        Ok(())
    }

    /// Makes a file's bytes and size durable; not its name.
    pub(super) fn sync_file(&mut self, inode: u64) -> Result<(), Errno> {
        self.file(inode)?.sync();
        Ok(())
    }

    /// Makes a directory's names durable, and what they hang together with: operations on two directories take earlier
    /// ones of the other along.
    pub(super) fn sync_dir(&mut self, inode: u64) -> Result<(), Errno> {
        self.dir(inode)?;
        let mut dirs = BTreeSet::from([inode]);
        let mut settled = Vec::new();
        let mut kept = Vec::new();
        for renaming in std::mem::take(&mut self.journal).into_iter().rev() {
            if renaming.0.iter().any(|(dir, ..)| dirs.contains(dir)) {
                dirs.extend(renaming.0.iter().map(|(dir, ..)| dir));
                settled.push(renaming);
            } else {
                kept.push(renaming);
            }
        }
        kept.reverse();
        self.journal = kept;
        for renaming in settled.iter().rev() {
            self.apply(renaming, |dir| &mut dir.durable);
        }
        Ok(())
    }

    /// Cuts the power: decides what of the volatile side reached the disk and forgets the rest.
    pub(super) fn cut(&mut self, chance: &mut Seeded) -> Loss {
        let mut loss = Loss::default();
        let journal = std::mem::take(&mut self.journal);
        let survive =
            usize::try_from(chance.below(journal.len() as u64 + 1)).expect("at most a length");
        for renaming in &journal[..survive] {
            self.apply(renaming, |dir| &mut dir.durable);
        }
        loss.names_kept = survive as u64;
        loss.names_lost = (journal.len() - survive) as u64;
        let mut inodes: Vec<u64> = self.nodes.keys().copied().collect();
        // The order of a map is not repeatable, and the coins must be.
        inodes.sort_unstable();
        for inode in inodes {
            match self.nodes.get_mut(&inode).map(|node| &mut node.body) {
                Some(Body::File(file)) => file.cut(chance, &mut loss),
                Some(Body::Dir(dir)) => dir.volatile.clone_from(&dir.durable),
                None => {}
            }
        }
        self.drop_unreachable();
        loss
    }

    fn drop_unreachable(&mut self) {
        let mut reached = BTreeSet::new();
        let mut open = vec![ROOT];
        while let Some(inode) = open.pop() {
            if reached.insert(inode)
                && let Ok(dir) = self.dir(inode)
            {
                open.extend(dir.durable.values());
            }
        }
        self.nodes.retain(|inode, _| reached.contains(inode));
    }
}

#[cfg(test)]
mod tests;
