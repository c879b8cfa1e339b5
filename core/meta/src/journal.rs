//! Which rows are being changed: what lets a check that reads for minutes know what it must read again.
//!
//! Owns, while a check runs, the rows of every commit that is under way and of those that ended since it last asked.
//!
//! Invariants: a commit is noted before it begins and moved when it has ended, so one whose effect a snapshot shows is in
//! what [`Journal::take`] gives after that snapshot. One whose caller went away meanwhile may still land: it counts as
//! under way until the check ends. Costs two atomic additions per commit while no check runs.
//!
//! Absent: commits of other processes. A store with several services needs the journal to be a part of the store.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use janusfs_env::clock;
use janusfs_types::{BlobId, FsError, InodeId};
use parking_lot::Mutex;

/// Most rows that wait to be read again, about 100 bytes each. A check whose client has gone must not fill memory.
const ROWS_MAX: usize = 1 << 20;
/// How long a check waits for commits that began before it, in milliseconds.
const SETTLE_MS: u32 = 5_000;

/// Something stored that a check looks at as one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Row {
    /// An inode with its extents and its figures as a directory.
    Inode(InodeId),
    /// An entry: its parent and stored name.
    Entry(InodeId, Bytes),
    /// The count of a blob.
    Blob(BlobId),
    /// A row that is looked at alone: its key.
    Plain(Bytes),
    /// As `Plain`, all rows of a range that was cleared.
    Range(Bytes, Bytes),
}

#[derive(Default)]
struct Kept {
    next: u64,
    /// Commits under way, and whether their caller went away.
    landing: HashMap<u64, (Arc<[Row]>, bool)>,
    landed: Vec<Arc<[Row]>>,
    landed_rows: usize,
    overflowed: bool,
}

/// The rows that commits change.
#[derive(Default)]
pub(crate) struct Journal {
    active: AtomicBool,
    /// Commits under way that began while no check ran, and so are not noted.
    unnoted: AtomicUsize,
    kept: Mutex<Kept>,
}

/// A commit under way.
pub(crate) struct Landing<'a> {
    journal: &'a Journal,
    token: Option<u64>,
    ended: bool,
}

impl Journal {
    /// Notes a commit that is about to begin.
    pub(crate) fn landing(&self, rows: impl FnOnce() -> Arc<[Row]>) -> Landing<'_> {
        // In this order, as `start` has it the other way round: one of the two sees the other.
        self.unnoted.fetch_add(1, Ordering::SeqCst);
        let mut token = None;
        if self.active.load(Ordering::SeqCst) {
            let rows = rows();
            let mut kept = self.kept.lock();
            kept.next += 1;
            let next = kept.next;
            kept.landing.insert(next, (rows, false));
            token = Some(next);
            self.unnoted.fetch_sub(1, Ordering::SeqCst);
        }
        Landing {
            journal: self,
            token,
            ended: false,
        }
    }

    /// Begins to note commits; returns once those that are not noted have ended.
    ///
    /// # Errors
    /// `Busy` when one of them does not end.
    pub(crate) async fn start(&self) -> Result<(), FsError> {
        {
            let mut kept = self.kept.lock();
            kept.landed.clear();
            kept.landed_rows = 0;
            kept.overflowed = false;
        }
        self.active.store(true, Ordering::SeqCst);
        for _ in 0..SETTLE_MS {
            if self.unnoted.load(Ordering::SeqCst) == 0 {
                return Ok(());
            }
            clock::sleep(Duration::from_millis(1)).await;
        }
        self.stop();
        Err(FsError::Busy)
    }

    /// Ends the noting.
    pub(crate) fn stop(&self) {
        self.active.store(false, Ordering::SeqCst);
        let mut kept = self.kept.lock();
        kept.landing.retain(|_, (_, abandoned)| !*abandoned);
        kept.landed = Vec::new();
        kept.landed_rows = 0;
    }

    /// Returns the rows of commits that ended since the last time, and of those under way; `None` when there were too many.
    pub(crate) fn take(&self) -> Option<Vec<Row>> {
        let mut kept = self.kept.lock();
        if kept.overflowed {
            return None;
        }
        kept.landed_rows = 0;
        let mut rows: Vec<Row> = Vec::new();
        for landed in std::mem::take(&mut kept.landed) {
            rows.extend_from_slice(&landed);
        }
        for (landing, _) in kept.landing.values() {
            rows.extend_from_slice(landing);
        }
        Some(rows)
    }
}

impl Landing<'_> {
    /// Says that the commit has had its effect, or will have none. Not for one whose outcome is unknown.
    pub(crate) fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let journal = self.journal;
        let Some(token) = self.token else {
            journal.unnoted.fetch_sub(1, Ordering::SeqCst);
            return;
        };
        let mut kept = journal.kept.lock();
        let active = journal.active.load(Ordering::SeqCst);
        if active && !self.ended {
            if let Some((_, abandoned)) = kept.landing.get_mut(&token) {
                *abandoned = true;
            }
            return;
        }
        let Some((rows, _)) = kept.landing.remove(&token) else {
            return;
        };
        if !active {
            return;
        }
        kept.landed_rows += rows.len();
        if kept.landed_rows > ROWS_MAX {
            kept.overflowed = true;
            kept.landed = Vec::new();
        } else {
            kept.landed.push(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::block_on;

    fn rows(id: u64) -> Arc<[Row]> {
        Arc::new([Row::Inode(InodeId(id))])
    }

    #[test]
    fn a_commit_is_told_of_while_it_lands_and_once_after() {
        block_on(async {
            let journal = Journal::default();
            journal.landing(|| rows(1)).ended();
            journal.start().await.unwrap();
            assert_eq!(journal.take(), Some(vec![]));
            let landing = journal.landing(|| rows(2));
            assert_eq!(journal.take(), Some(rows(2).to_vec()));
            landing.ended();
            assert_eq!(journal.take(), Some(rows(2).to_vec()));
            assert_eq!(journal.take(), Some(vec![]));
        });
    }

    #[test]
    fn an_abandoned_commit_may_land_until_the_check_ends() {
        block_on(async {
            let journal = Journal::default();
            journal.start().await.unwrap();
            drop(journal.landing(|| rows(3)));
            assert_eq!(journal.take(), Some(rows(3).to_vec()));
            assert_eq!(journal.take(), Some(rows(3).to_vec()));
            journal.stop();
            journal.start().await.unwrap();
            assert_eq!(journal.take(), Some(vec![]));
        });
    }

    #[test]
    fn too_many_rows_end_the_check_and_free_the_memory() {
        block_on(async {
            let journal = Journal::default();
            journal.start().await.unwrap();
            let many: Arc<[Row]> = vec![Row::Inode(InodeId(1)); ROWS_MAX / 2 + 1].into();
            journal.landing(|| many.clone()).ended();
            assert!(journal.take().is_some());
            journal.landing(|| many.clone()).ended();
            journal.landing(|| many.clone()).ended();
            assert_eq!(journal.take(), None);
        });
    }
}
