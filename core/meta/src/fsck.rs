//! The check of every metadata invariant as of one moment, at any size and while others write (DESIGN.md, "fsck").
//!
//! Owns the steps: walk every row in pages, each a transaction of its own, into an image; read again what changed meanwhile, as
//! `journal` tells, until the last of it fits one transaction; judge the image, which is then exact as of that transaction.
//!
//! Invariants: a step is short, and a step that is cut off can be done again: what it has read replaces what was there. Memory is
//! some 100 bytes per file ([`image`]). Absent: repair; a finding is a defect to be understood first.

mod image;
mod judge;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use janusfs_env::{clock, tasks};
use janusfs_kv::{Kv, KvError, Txn};
use janusfs_types::{FsError, InodeId};
use janusfs_wire::meta::{Finding, Fsck, FsckReport};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    Meta, MetaError,
    fsck::{
        image::{Image, KINDS},
        judge::{FINDINGS_MAX, Verdict},
    },
    journal::{Journal, Row},
    store::{SCAN_PAGE, dentry, key_after, prefix_end, usage},
};

/// How long a step goes on: well below `limits::META_DEADLINE_MS`, long against the call.
const STEP: Duration = if cfg!(test) {
    // One page, however fast the machine is.
    Duration::ZERO
} else {
    Duration::from_millis(300)
};
/// How long a step waits for the verdict, which is computed elsewhere.
const VERDICT_WAIT: Duration = Duration::from_millis(300);
/// A page that takes longer is followed by a smaller one: a transaction lives for seconds only.
const PAGE_TIME_MAX: Duration = Duration::from_millis(500);
/// Most rows that the last transaction reads again: about a tenth of a second.
const LAST_ROWS_MAX: usize = 10_000;
/// Times that what changed is read again. Each round has what changed during the one before, so a store whose changes can be
/// caught up with is settled after a few.
const ROUNDS_MAX: u32 = 50;
/// A check whose caller has not come back for this long makes way for another: its caller was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(5);
/// A check whose caller has not come back for this long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The check that is under way.
pub(crate) enum CheckSlot {
    None,
    /// A step of it is.
    Busy,
    Waiting(Box<Check>),
}

/// What comes next.
enum Phase {
    /// Rows of a kind from a key on.
    Walk(usize, Vec<u8>),
    Settle,
    Judge(oneshot::Receiver<Verdict>),
    /// Directories in which names of findings are to be found, and after which stored name.
    Name(Vec<InodeId>, Option<Bytes>),
}

/// A check.
pub(crate) struct Check {
    run: u64,
    touched: Instant,
    phase: Phase,
    image: Image,
    /// Changed, and not read again yet.
    pending: HashSet<Row>,
    page_rows: u32,
    rounds: u32,
    report: FsckReport,
    verdict: Verdict,
    names: HashMap<(InodeId, u64), String>,
}

impl Check {
    fn new(run: u64) -> Self {
        Self {
            run,
            touched: clock::now(),
            phase: Phase::Walk(0, KINDS[0].to_vec()),
            image: Image::default(),
            pending: HashSet::new(),
            page_rows: SCAN_PAGE,
            rounds: 0,
            report: FsckReport {
                done: false,
                rows: 0,
                rows_expected: 0,
                inodes: 0,
                entries: 0,
                blobs: 0,
                changing: 0,
                findings: Vec::new(),
            },
            verdict: Verdict::default(),
            names: HashMap::new(),
        }
    }

    /// Adds to what is to be read again; false: too much.
    fn note_changes(&mut self, journal: &Journal) -> bool {
        match journal.take() {
            Some(rows) => {
                self.pending.extend(rows);
                true
            }
            None => false,
        }
    }

    fn give_up(&mut self) {
        self.report.changing = u64::try_from(self.pending.len()).unwrap_or(u64::MAX).max(1);
        self.report.done = true;
    }

    fn finish(&mut self) {
        let names = &self.names;
        let said = self.verdict.wrong.drain(..).map(|wrong| Finding {
            text: wrong.text(names),
        });
        self.report.findings = said.collect();
        self.report.findings.sort_by(|a, b| a.text.cmp(&b.text));
        self.report.done = true;
    }
}

/// Puts the check back when the step ends, also when the step is cut off.
struct Step<'a> {
    slot: &'a Mutex<CheckSlot>,
    journal: &'a Journal,
    check: Option<Box<Check>>,
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let check = self.check.take().filter(|check| !check.report.done);
        if check.is_none() {
            self.journal.stop();
        }
        *self.slot.lock() = check.map_or(CheckSlot::None, CheckSlot::Waiting);
    }
}

impl<K: Kv> Meta<K> {
    pub(crate) async fn fsck(&self, m: Fsck) -> Result<FsckReport, MetaError> {
        let journal = &self.watches.journal;
        let before = {
            let mut slot = self.check.lock();
            match std::mem::replace(&mut *slot, CheckSlot::Busy) {
                CheckSlot::None => None,
                CheckSlot::Waiting(check) if check.run == m.run => Some(check),
                CheckSlot::Waiting(check) if check.touched.elapsed() > ABANDONED_AFTER => None,
                other => {
                    *slot = other;
                    return Err(FsError::Busy.into());
                }
            }
        };
        let mut step = Step {
            slot: &self.check,
            journal,
            check: before,
        };
        if step.check.is_none() {
            journal.start().await?;
            let mut check = Box::new(Check::new(m.run));
            let roots = usage::all(&mut self.kv.begin()).await?;
            let inodes = 1 + roots.iter().map(|(_, usage)| usage.entries).sum::<u64>();
            check.report.rows_expected = 2 * inodes;
            step.check = Some(check);
        }
        let check = step.check.as_mut().expect("it was there or was made");
        check.touched = clock::now();
        let until = clock::now() + STEP;
        while !check.report.done {
            if let Err(error) = self.go_on(check).await {
                if !matches!(error, MetaError::Kv(_)) {
                    // A row that does not decode will not the next time.
                    step.check = None;
                }
                return Err(error);
            }
            if clock::now() >= until {
                break;
            }
        }
        check.touched = clock::now();
        Ok(check.report.clone())
    }

    /// Forgets a check whose caller is gone.
    pub(crate) fn forget_idle_check(&self, now: Instant) {
        let mut slot = self.check.lock();
        if let CheckSlot::Waiting(check) = &*slot
            && now.saturating_duration_since(check.touched) > IDLE_MAX
        {
            *slot = CheckSlot::None;
            self.watches.journal.stop();
        }
    }

    /// Does a little of what comes next.
    async fn go_on(&self, check: &mut Check) -> Result<(), MetaError> {
        match &mut check.phase {
            Phase::Walk(kind, from) => {
                let (kind, from) = (*kind, std::mem::take(from));
                // Kept for a step that is cut off.
                check.phase = Phase::Walk(kind, from.clone());
                check.phase = match self.walk_page(check, kind, &from).await? {
                    Some(next) => Phase::Walk(kind, next),
                    None if kind + 1 < KINDS.len() => {
                        Phase::Walk(kind + 1, KINDS[kind + 1].to_vec())
                    }
                    None => Phase::Settle,
                };
                // On the way, so that the journal stays short.
                self.read_again(check).await
            }
            Phase::Settle => self.settle(check).await,
            Phase::Judge(verdict) => {
                if let Ok(verdict) = clock::timeout(VERDICT_WAIT, verdict).await {
                    let verdict = verdict.map_err(|_| FsError::Busy)?;
                    check.report.inodes = verdict.inodes;
                    check.report.entries = verdict.entries;
                    check.report.blobs = verdict.blobs;
                    check.phase = Phase::Name(verdict.parents(), None);
                    check.verdict = verdict;
                }
                Ok(())
            }
            Phase::Name(parents, after) => {
                let Some(parent) = parents.last().copied() else {
                    check.finish();
                    return Ok(());
                };
                let mut txn = self.kv.begin();
                let page = dentry::scan(&mut txn, parent, after.as_deref(), SCAN_PAGE, true);
                let page = page.await?;
                *after = page
                    .last()
                    .map(|(name, _)| Bytes::copy_from_slice(name.stored()));
                if page.is_empty() {
                    parents.pop();
                }
                for (name, _) in page {
                    let hash = check.verdict.hash(name.stored());
                    if check.verdict.asks_for(parent, hash) {
                        let shown = String::from_utf8_lossy(name.stored()).into_owned();
                        check.names.insert((parent, hash), shown);
                    }
                }
                Ok(())
            }
        }
    }

    /// Reads a page of the rows of a kind; returns where the next one begins.
    async fn walk_page(
        &self,
        check: &mut Check,
        kind: usize,
        from: &[u8],
    ) -> Result<Option<Vec<u8>>, MetaError> {
        let began = clock::now();
        let end = prefix_end(KINDS[kind]);
        let mut txn = self.kv.begin();
        let page = async {
            let rows = txn.range_snapshot(from, &end, check.page_rows).await?;
            for (key, value) in &rows {
                check.image.add(&mut txn, key, value).await?;
            }
            Ok((rows.len(), rows.last().map(|(key, _)| key_after(key))))
        };
        let (count, next) = match page.await {
            Err(MetaError::Kv(KvError::TooOld)) if check.page_rows > 1 => {
                check.page_rows = (check.page_rows / 8).max(1);
                return Ok(Some(from.to_vec()));
            }
            page => page?,
        };
        check.report.rows += u64::try_from(count).unwrap_or(0);
        let more = count == usize::try_from(check.page_rows).unwrap_or(usize::MAX);
        if clock::now().saturating_duration_since(began) > PAGE_TIME_MAX {
            check.page_rows = (check.page_rows / 2).max(1);
        }
        Ok(next.filter(|_| more))
    }

    /// Reads again what changed, until there is not much of it.
    async fn read_again(&self, check: &mut Check) -> Result<(), MetaError> {
        if !check.note_changes(&self.watches.journal) {
            check.give_up();
            return Ok(());
        }
        let most = usize::try_from(check.page_rows).unwrap_or(usize::MAX);
        while !check.pending.is_empty() {
            let some: Vec<Row> = check.pending.iter().take(most).cloned().collect();
            let mut txn = self.kv.begin();
            for row in some {
                match check.image.renew(&mut txn, &row).await {
                    // What is left is for the next transaction.
                    Err(MetaError::Kv(KvError::TooOld)) => break,
                    done => done?,
                }
                check.pending.remove(&row);
            }
        }
        Ok(())
    }

    /// Tries to make the image that of one moment, and has it judged.
    async fn settle(&self, check: &mut Check) -> Result<(), MetaError> {
        let mut txn = self.kv.begin();
        // This read takes the snapshot; what is asked for after it has every change that the snapshot shows.
        let stored: BTreeMap<_, _> = usage::all(&mut txn).await?.into_iter().collect();
        if !check.note_changes(&self.watches.journal) || check.rounds == ROUNDS_MAX {
            check.give_up();
            return Ok(());
        }
        check.rounds += 1;
        if check.pending.len() > LAST_ROWS_MAX {
            return self.read_again(check).await;
        }
        let rows: Vec<Row> = check.pending.iter().cloned().collect();
        for row in &rows {
            match check.image.renew(&mut txn, row).await {
                Err(MetaError::Kv(KvError::TooOld)) => return self.read_again(check).await,
                done => done?,
            }
        }
        check.pending = HashSet::new();
        self.watches.journal.stop();
        let image = std::mem::take(&mut check.image);
        let (told, verdict) = oneshot::channel();
        // A thread: seconds of work for many millions of files, and nothing to wait for.
        drop(tasks::spawn_thread("fsck", move || {
            // An error: the check was forgotten meanwhile.
            let _ = told.send(judge::judge(image, &stored));
        }));
        check.phase = Phase::Judge(verdict);
        Ok(())
    }
}

const _: () = assert!(FINDINGS_MAX <= 1_000, "a report fits a message");
