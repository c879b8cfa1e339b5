//! A walk over the rows below a bucket's directory in the order of their keys, from a seek position on.
//!
//! The byte order of stored names is the order of keys (`DentryName`), so the walk is a stack of directories, each with
//! one page of its rows: no sorting, no row read twice. Invariants: a row that is returned is not below the seek
//! position and may still lead to keys with the prefix; the walk never goes back. Keys here are in stored form.
//! Absent: delimiters and what a row means to S3 (`list`).

use std::collections::VecDeque;

use janusfs_kv::Txn;
use janusfs_types::{DentryName, FileKind, InodeId};

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
    /// What it names.
    pub(super) child: InodeId,
    /// Of which kind.
    pub(super) kind: FileKind,
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
    /// Length of the key of the directory itself.
    key_len: usize,
    rows: VecDeque<Row>,
    /// Where the next page begins.
    start: Vec<u8>,
    /// What the names of interest begin with.
    within: Vec<u8>,
    done: bool,
}

/// The walk.
pub(super) struct Walk {
    /// Key of the directory on top of the stack.
    path: Vec<u8>,
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
            path: Vec::new(),
            stack: Vec::new(),
            prefix,
            from,
            page_rows,
        };
        walk.push(root);
        walk
    }

    fn push(&mut self, directory: InodeId) {
        let start = self
            .from
            .strip_prefix(&*self.path)
            .map(first_name)
            .unwrap_or_default();
        let within = self
            .prefix
            .strip_prefix(&*self.path)
            .map(first_name)
            .unwrap_or_default();
        self.stack
            .push(Level::new(directory, self.path.len(), start, within));
    }

    /// Returns the next row; a directory comes before what is below it, which follows only after [`Self::enter`].
    pub(super) async fn next(&mut self, txn: &mut impl Txn) -> Result<Option<Row>, MetaError> {
        loop {
            let Some(level) = self.stack.last_mut() else {
                return Ok(None);
            };
            self.path.truncate(level.key_len);
            level.fill(txn, self.page_rows, Reads::Snapshot).await?;
            let Some(mut row) = level.rows.pop_front() else {
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
        self.push(row.child);
        let Some(level) = self.stack.last_mut() else {
            return Ok(false);
        };
        level.fill(txn, self.page_rows, Reads::Snapshot).await?;
        Ok(level.rows.is_empty() && !row.partial && level.within.is_empty())
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
    fn new(directory: InodeId, key_len: usize, start: Vec<u8>, within: Vec<u8>) -> Self {
        Self {
            directory,
            key_len,
            rows: VecDeque::new(),
            start,
            within,
            done: false,
        }
    }

    /// Reads the next page, if the last one is used up and there is one.
    async fn fill(
        &mut self,
        txn: &mut impl Txn,
        limit: u32,
        reads: Reads,
    ) -> Result<(), MetaError> {
        if !self.rows.is_empty() || self.done {
            return Ok(());
        }
        let rows = read(txn, self.directory, &self.start, &self.within, limit, reads).await?;
        self.done = rows.len() < usize::try_from(limit).unwrap_or(usize::MAX);
        if let Some(last) = rows.back() {
            self.start = key_after(&last.key);
        }
        self.rows = rows;
        Ok(())
    }

    fn seek(&mut self, name: &[u8]) {
        while self.rows.front().is_some_and(|row| *row.key < *name) {
            self.rows.pop_front();
        }
        if self.rows.is_empty() && *self.start < *name {
            self.start = name.to_vec();
        }
    }
}

/// Returns the stored name at the start of a key: up to and with the first `/`, or all of it.
fn first_name(key: &[u8]) -> Vec<u8> {
    match key.iter().position(|&byte| byte == b'/') {
        Some(slash) => key[..=slash].to_vec(),
        None => key.to_vec(),
    }
}

/// Reads at most `limit` rows of a directory from the stored name `from` on, of those that begin with `within`.
async fn read(
    txn: &mut impl Txn,
    directory: InodeId,
    from: &[u8],
    within: &[u8],
    limit: u32,
    reads: Reads,
) -> Result<VecDeque<Row>, MetaError> {
    if from > within && !from.starts_with(within) {
        return Ok(VecDeque::new());
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
    let row = |(name, dentry): (DentryName, Dentry)| Row {
        key: name.stored().to_vec(),
        child: dentry.inode,
        kind: dentry.kind,
        partial: false,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Tells whether a key is below `directory`: a regular file, or a directory without a row that `mkdir` made.
/// `with_itself`: also when it is such a directory itself.
pub(super) async fn holds_key(
    txn: &mut impl Txn,
    directory: InodeId,
    with_itself: bool,
    reads: Reads,
) -> Result<bool, MetaError> {
    let mut stack: Vec<Level> = Vec::new();
    let mut next = Some(directory);
    loop {
        if let Some(directory) = next.take() {
            let mut level = Level::new(directory, 0, Vec::new(), Vec::new());
            level.fill(txn, PROBE_ROWS, reads).await?;
            let counts = with_itself || !stack.is_empty();
            if level.rows.is_empty() && counts && is_explicit(txn, directory).await? {
                return Ok(true);
            }
            stack.push(level);
        }
        let Some(top) = stack.last_mut() else {
            return Ok(false);
        };
        top.fill(txn, PROBE_ROWS, reads).await?;
        match top.rows.pop_front() {
            Some(row) if row.is_directory() => next = Some(row.child),
            Some(row) if row.kind == FileKind::Regular => return Ok(true),
            Some(_) => {}
            None => {
                stack.pop();
            }
        }
    }
}

/// Tells whether a directory was made by `mkdir` or the like, so that it stays when it is empty.
pub(super) async fn is_explicit(txn: &mut impl Txn, directory: InodeId) -> Result<bool, MetaError> {
    Ok(inode::get_snapshot(txn, directory)
        .await?
        .is_some_and(|record| record.explicit))
}
