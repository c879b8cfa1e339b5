//! A walk over the rows below a bucket's directory in the order of their keys, from a seek position on.
//!
//! The byte order of stored names is the order of keys (`DentryName`), so the walk is a stack of directories, each with
//! one page of its rows: no sorting, no row read twice. Invariants: a row that is returned is not below the seek
//! position and may still lead to keys with the prefix; the walk never goes back. Keys here are in stored form.
//!
//! A symlink comes as what it leads to (`link`), in the order of the keys that this makes: one to a file in its own place, one
//! to a directory where a directory of its name would be. Until the walk gets there it waits in [`Level::ahead`].
//! Absent: delimiters and what a row means to S3 (`list`).

use std::collections::{BTreeMap, VecDeque};

use janusfs_kv::Txn;
use janusfs_types::{DentryName, FileKind, InodeId};

use super::link::{self, Target};
use crate::{
    MetaError,
    store::{
        dentry::{self, Dentry},
        inode, key_after,
    },
};

/// Rows that a look for any key reads at a time: the first one nearly always is a key.
const PROBE_ROWS: u32 = 8;

/// Whether a read makes a later change of what it saw a conflict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reads {
    /// It does.
    Conflicting,
    /// It does not.
    Snapshot,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its stored name when read, its whole key when returned by the walk.
    pub(super) key: Vec<u8>,
    /// What it names or leads to.
    pub(super) child: InodeId,
    /// Of which kind. A symlink leads nowhere; others come as what they lead to.
    pub(super) kind: FileKind,
    /// Whether it is a symlink that leads to a directory.
    pub(super) linked: bool,
    /// Whether the seek position is below this directory, so that not all of it is part of the walk.
    pub(super) partial: bool,
}

impl Row {
    /// Tells whether it is a directory's slot.
    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

struct Level {
    directory: InodeId,
    /// Whether a symlink led here.
    linked: bool,
    /// Length of the key of the directory itself.
    key_len: usize,
    rows: VecDeque<Row>,
    /// Symlinks to directories that the walk has read and not come to yet, by the directory's name.
    ahead: BTreeMap<Vec<u8>, Row>,
    /// Where the next page begins.
    start: Vec<u8>,
    /// What the names of interest begin with.
    within: Vec<u8>,
    begun: bool,
    done: bool,
}

/// The walk.
pub(super) struct Walk {
    root: InodeId,
    /// Key of the directory on top of the stack.
    path: Vec<u8>,
    /// The directories from the bucket's on; never empty before the end.
    stack: Vec<Level>,
    prefix: Vec<u8>,
    from: Vec<u8>,
    page_rows: u32,
}

impl Walk {
    /// Starts a walk over keys with `prefix` from `from` (inclusive) on, which reads `page_rows` rows at a time.
    pub(super) fn new(root: InodeId, prefix: Vec<u8>, from: Vec<u8>, page_rows: u32) -> Self {
        let from = from.max(prefix.clone());
        let mut walk = Self {
            root,
            path: Vec::new(),
            stack: Vec::new(),
            prefix,
            from,
            page_rows,
        };
        walk.push(root, false);
        walk
    }

    fn push(&mut self, directory: InodeId, linked: bool) {
        let below = |key: &[u8]| key.strip_prefix(&*self.path).map(first_name);
        let start = below(&self.from).unwrap_or_default();
        let within = below(&self.prefix).unwrap_or_default();
        self.stack.push(Level {
            key_len: self.path.len(),
            start,
            within,
            ..Level::new(directory, linked)
        });
    }

    async fn fill(&mut self, txn: &mut impl Txn) -> Result<(), MetaError> {
        let (links, limit) = (Some(self.root), self.page_rows);
        fill(txn, links, &mut self.stack, limit, Reads::Snapshot).await
    }

    /// Returns the next row; a directory comes before what is below it, which follows only after [`Self::enter`].
    pub(super) async fn next(&mut self, txn: &mut impl Txn) -> Result<Option<Row>, MetaError> {
        loop {
            self.fill(txn).await?;
            let Some(level) = self.stack.last_mut() else {
                return Ok(None);
            };
            self.path.truncate(level.key_len);
            let Some(mut row) = level.pop() else {
                self.stack.pop();
                continue;
            };
            row.key.splice(0..0, self.path.iter().copied());
            row.partial = self.from.len() > row.key.len() && self.from.starts_with(&row.key);
            return Ok(Some(row));
        }
    }

    /// Goes into the directory that [`Self::next`] returned last. Tells whether it has no row at all; `false` when the
    /// seek position or the prefix is below it.
    pub(super) async fn enter(&mut self, txn: &mut impl Txn, row: &Row) -> Result<bool, MetaError> {
        self.path.clone_from(&row.key);
        self.push(row.child, row.linked);
        self.fill(txn).await?;
        let whole = |level: &Level| level.is_used_up() && level.within.is_empty();
        Ok(self.stack.last().is_some_and(whole) && !row.partial)
    }

    /// Tells whether a key is that of the directory that [`Self::next`] returned last, or below it.
    pub(super) async fn holds_key(
        &mut self,
        txn: &mut impl Txn,
        row: &Row,
    ) -> Result<bool, MetaError> {
        let depth = self.stack.len();
        self.stack.push(Level::new(row.child, row.linked));
        let links = Some(self.root);
        let found = probe(txn, links, &mut self.stack, depth, Reads::Snapshot).await;
        self.stack.truncate(depth);
        found
    }

    /// Skips everything below `from`.
    pub(super) fn seek(&mut self, from: Vec<u8>) {
        self.from = from;
        while let Some(level) = self.stack.last_mut() {
            self.path.truncate(level.key_len);
            if let Some(rest) = self.from.strip_prefix(&*self.path) {
                level.seek(&first_name(rest));
                return;
            }
            if self.path > self.from {
                return;
            }
            self.stack.pop();
        }
    }
}

impl Level {
    /// Returns a directory to be read from its first row to its last.
    fn new(directory: InodeId, linked: bool) -> Self {
        Self {
            directory,
            linked,
            key_len: 0,
            rows: VecDeque::new(),
            ahead: BTreeMap::new(),
            start: Vec::new(),
            within: Vec::new(),
            begun: false,
            done: false,
        }
    }

    /// Tells whether what was read says which row is the next one: those not read yet come behind where they begin.
    fn has_next(&self) -> bool {
        let waiting = self.ahead.first_key_value();
        !self.rows.is_empty() || waiting.is_some_and(|(name, _)| *name < self.start)
    }

    fn is_used_up(&self) -> bool {
        self.rows.is_empty() && self.ahead.is_empty()
    }

    /// Returns the next row that was read.
    fn pop(&mut self) -> Option<Row> {
        while let (Some((name, _)), Some(row)) = (self.ahead.first_key_value(), self.rows.front()) {
            if row.key < *name {
                return self.rows.pop_front();
            }
            if row.key > *name {
                break;
            }
            // A directory has the name: nobody gets past it to the symlink.
            self.ahead.pop_first();
        }
        match self.ahead.pop_first() {
            Some((_, row)) => Some(row),
            None => self.rows.pop_front(),
        }
    }

    /// Takes in a symlink that leads to a directory, unless that one contains it, or too many led here; tells whether it did.
    fn lead_on(&mut self, above: &[Self], link: &[u8], directory: InodeId) -> bool {
        let way = || above.iter().chain([&*self]);
        let links = way().filter(|level| level.linked).count();
        if !link::may_pass(way().map(|level| level.directory), links, directory) {
            return false;
        }
        let key = directory_name(link);
        let row = Row {
            key: key.clone(),
            child: directory,
            kind: FileKind::Directory,
            linked: true,
            partial: false,
        };
        self.ahead.insert(key, row);
        true
    }

    /// Returns the names of the symlinks that may be before the position where the directory is to be read from, while what is
    /// below them, should they lead to a directory, is not: `a` when that is `a-b` or `a/`.
    fn passed_links(&self) -> Vec<DentryName> {
        let start = (&self.start).max(&self.within);
        let passed = |at: &usize| {
            let below = directory_name(&start[..*at]);
            below >= *start && below.starts_with(&self.within)
        };
        let names = (0..start.len()).filter(passed);
        // A position that a client made up need not begin with a name.
        names
            .filter_map(|at| DentryName::file(&start[..at]).ok())
            .collect()
    }

    /// Skips the names below `name`. No symlink among those not read yet leads to `name` or above: what is skipped is all that
    /// begins alike, and what it leads to begins so too.
    fn seek(&mut self, name: &[u8]) {
        while self.rows.front().is_some_and(|row| *row.key < *name) {
            self.rows.pop_front();
        }
        self.ahead = self.ahead.split_off(name);
        if self.rows.is_empty() && *self.start < *name {
            self.start = name.to_vec();
        }
    }
}

/// Reads on in the directory on top of a stack until its next row is known, if it has one. `links`: the bucket's directory,
/// when symlinks are followed.
async fn fill(
    txn: &mut impl Txn,
    links: Option<InodeId>,
    stack: &mut [Level],
    limit: u32,
    reads: Reads,
) -> Result<(), MetaError> {
    let Some((level, above)) = stack.split_last_mut() else {
        return Ok(());
    };
    if let (false, Some(root)) = (level.begun, links) {
        for name in level.passed_links() {
            if let Some(id) = link::directory_at(txn, root, level.directory, &name).await? {
                level.lead_on(above, name.stored(), id);
            }
        }
    }
    level.begun = true;
    while !level.has_next() && !level.done {
        let page = read(
            txn,
            level.directory,
            &level.start,
            &level.within,
            limit,
            reads,
        )
        .await?;
        level.done = page.len() < usize::try_from(limit).unwrap_or(usize::MAX);
        if let Some(last) = page.last() {
            level.start = key_after(&last.key);
        }
        for mut row in page {
            if let (FileKind::Symlink, Some(root)) = (row.kind, links) {
                match link::follow(txn, root, level.directory, row.child).await? {
                    Some(Target::File(id)) => (row.child, row.kind) = (id, FileKind::Regular),
                    Some(Target::Directory(id)) if level.lead_on(above, &row.key, id) => continue,
                    Some(Target::Directory(_)) | None => {}
                }
            }
            level.rows.push_back(row);
        }
    }
    Ok(())
}

/// Returns the stored name at the start of a key: up to and with the first `/`, or all of it.
fn first_name(key: &[u8]) -> Vec<u8> {
    match key.iter().position(|&byte| byte == b'/') {
        Some(slash) => key[..=slash].to_vec(),
        None => key.to_vec(),
    }
}

/// Returns the stored name of a directory that is called as a file of this stored name is.
fn directory_name(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

/// Reads at most `limit` rows of a directory from the stored name `from` on, of those that begin with `within`.
async fn read(
    txn: &mut impl Txn,
    directory: InodeId,
    from: &[u8],
    within: &[u8],
    limit: u32,
    reads: Reads,
) -> Result<Vec<Row>, MetaError> {
    if from > within && !from.starts_with(within) {
        return Ok(Vec::new());
    }
    let from = from.max(within);
    let rows = dentry::scan_from(
        txn,
        directory,
        from,
        within,
        limit,
        reads == Reads::Snapshot,
    )
    .await?;
    let row = |(name, entry): (DentryName, Dentry)| Row {
        key: name.stored().to_vec(),
        child: entry.inode,
        kind: entry.kind,
        linked: false,
        partial: false,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Tells whether a key is below a bucket's directory.
pub(super) async fn bucket_holds_key(txn: &mut impl Txn, root: InodeId) -> Result<bool, MetaError> {
    // Symlinks lead to no others than are below it anyway. It counts for itself as little as what a symlink leads to.
    let mut stack = vec![Level::new(root, true)];
    probe(txn, None, &mut stack, 0, Reads::Conflicting).await
}

/// Tells whether a key is below the directory on top of a stack: a regular file, or a directory without a row that `mkdir`
/// made; also when it is such a directory itself. The stack is used up down to `depth`.
async fn probe(
    txn: &mut impl Txn,
    links: Option<InodeId>,
    stack: &mut Vec<Level>,
    depth: usize,
    reads: Reads,
) -> Result<bool, MetaError> {
    while stack.len() > depth {
        let begun = stack.last().is_some_and(|top| top.begun);
        fill(txn, links, stack, PROBE_ROWS, reads).await?;
        let Some(top) = stack.last_mut() else {
            break;
        };
        match top.pop() {
            Some(row) if row.is_directory() => stack.push(Level::new(row.child, row.linked)),
            Some(row) if row.kind == FileKind::Regular => return Ok(true),
            Some(_) => {}
            None => {
                if !begun && !top.linked && is_explicit(txn, top.directory).await? {
                    return Ok(true);
                }
                stack.pop();
            }
        }
    }
    Ok(false)
}

/// Tells whether a directory was made by `mkdir` or the like, so that it stays when it is empty.
pub(super) async fn is_explicit(txn: &mut impl Txn, directory: InodeId) -> Result<bool, MetaError> {
    Ok(inode::get_snapshot(txn, directory)
        .await?
        .is_some_and(|record| record.explicit))
}
