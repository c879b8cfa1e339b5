//! Who believes what: the leases on answers that clients' caches hold, and how a change ends them.
//!
//! A client that keeps a `Watch` call open may believe what it read for `CACHE_LEASE_MS` (leases after Gray and Cheriton,
//! SOSP 1989; with a call-back, and the wait after the commit instead of before). A change is acknowledged to its maker only when every other client that may believe the
//! old answer has said that it forgot it, or its lease has run out (promise P2: visible to every client).
//!
//! Invariants:
//! - What was read is leased only if nothing of it was changed since the transaction began. So a change is in the answer,
//!   or finds the lease.
//! - What a client changes itself is leased to it before the commit, whether it gets to believe the answer or not: its
//!   kernel moves what it believes of one name to another with a rename.
//! - A lease ends by the client's clock, counted from before it asked, no later than by this service's, counted from after.
//! - The maker of a change keeps its own leases: its kernel makes the change with it, and what the kernel does not see the
//!   mount tells it.
//! - While a change waits, nobody who holds no lease is given an answer that rests on it.
//! - Leases that another process may still hold from before a restart run out before the first change is acknowledged.
//!
//! What waits to be forgotten is bounded by the requests in flight: each change waits for its own batch.
//! Absent: the store (`watched` reads off a transaction what it saw and changed), and any row per lease.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use janusfs_env::{clock, metrics};
use janusfs_rpc::Caller;
use janusfs_types::{ClientId, InodeId, limits};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::journal::Journal;

const LEASE: Duration = Duration::from_millis(limits::CACHE_LEASE_MS as u64);
/// Longest time that a `Watch` call waits.
const POLL: Duration = Duration::from_millis(1_000);
/// A client whose last `Watch` call came longer ago gets no leases.
const SILENT: Duration = Duration::from_millis(3_000);
/// Changes remembered for transactions that are under way. One that began before the oldest gets no lease.
const LOG_MAX: usize = 4096;

/// Something that an answer can rest on and that a client can hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Fact {
    /// The attributes of an inode.
    Attr(InodeId),
    /// A directory's times and count, which change with its entries.
    DirStat(InodeId),
    /// Where a name of a directory leads, in either slot: a file's is seen otherwise beside a directory's.
    Name(InodeId, Bytes),
}

impl Fact {
    /// Two facts that share a mark end each other's leases, which costs a question more and harms nobody.
    pub(crate) fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// A transaction, before and after its commit.
pub(crate) struct Account {
    /// Who asked.
    pub(crate) caller: Option<Caller>,
    /// [`Watches::begin`] before its first read.
    pub(crate) since: u64,
    /// Whether `seen` is complete.
    pub(crate) tells: bool,
    /// Marks of what it read.
    pub(crate) seen: Vec<u64>,
    /// What it changed, perhaps.
    pub(crate) changed: Vec<Fact>,
}

/// A transaction between [`Watches::committing`] and its settlement. Dropping it withdraws it.
pub(crate) struct Committing {
    watches: Arc<Watches>,
    account: Account,
    /// Whether the caller holds leases on what it changes.
    granted: bool,
    /// Marks that this transaction has in [`Inner::unsettled`].
    unsettled: Vec<u64>,
}

/// A client that must forget something, and until when it matters.
struct Wait {
    client: ClientId,
    acked: watch::Receiver<u64>,
    batch: u64,
    until: Instant,
}

struct Watcher {
    remote: bool,
    polled: Instant,
    /// Marks of what it may believe: of the current period of one lease, and of the one before.
    recent: HashSet<u64>,
    older: HashSet<u64>,
    period: Instant,
    /// When it last got a lease.
    granted: Instant,
    /// To be forgotten: not handed out yet, and handed out as `batch` but not acknowledged.
    pending: Vec<Fact>,
    sent: Vec<Fact>,
    batch: u64,
    acked: watch::Sender<u64>,
    wake: Arc<Notify>,
}

impl Watcher {
    fn new(batch: u64, remote: bool, now: Instant) -> Self {
        Self {
            remote,
            polled: now,
            recent: HashSet::new(),
            older: HashSet::new(),
            period: now,
            granted: now,
            pending: Vec::new(),
            sent: Vec::new(),
            batch,
            acked: watch::Sender::new(batch),
            wake: Arc::new(Notify::new()),
        }
    }

    fn believes(&self, mark: u64) -> bool {
        self.recent.contains(&mark) || self.older.contains(&mark)
    }

    fn turn(&mut self, now: Instant) {
        let past = now.saturating_duration_since(self.period);
        if past >= LEASE {
            self.older = std::mem::take(&mut self.recent);
            if past >= 2 * LEASE {
                self.older.clear();
            }
            self.period = now;
        }
    }
}

#[derive(Default)]
struct Inner {
    watchers: HashMap<ClientId, Watcher>,
    /// Recent changes, oldest first: when (in changes) and which.
    log: VecDeque<(u64, u64)>,
    /// The latest change that is no longer in `log`.
    dropped: u64,
    /// Marks of what is being changed while somebody may believe otherwise, and by how many transactions.
    unsettled: HashMap<u64, u32>,
    /// Whether the store tells that clients in other processes may hold leases, and when one was last given.
    remote_known: bool,
    remote_given: Option<Instant>,
}

/// All leases.
pub(crate) struct Watches {
    /// The same changes, as a check wants to know them.
    pub(crate) journal: Journal,
    inner: Mutex<Inner>,
    /// Clients in `inner`.
    watchers: AtomicUsize,
    /// Changes so far.
    changes: AtomicU64,
    /// Counts settlements, for who waits for one.
    settlements: watch::Sender<u64>,
    /// Until then somebody may believe answers of an earlier run.
    settles_at: Mutex<Option<Instant>>,
}

impl Watches {
    /// Starts without a lease. [`Self::remember`] comes before the first change.
    pub(crate) fn new() -> Self {
        Self {
            journal: Journal::default(),
            inner: Mutex::new(Inner::default()),
            watchers: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            settlements: watch::Sender::new(0),
            settles_at: Mutex::new(None),
        }
    }

    /// Takes over from a run whose clients may still hold leases.
    pub(crate) fn remember(&self, now: Instant) {
        let mut inner = self.inner.lock();
        inner.remote_known = true;
        inner.remote_given = Some(now);
        *self.settles_at.lock() = Some(now + LEASE);
    }

    /// Notes how far changes had come when a transaction began.
    pub(crate) fn begin(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Tells whether anybody may hold leases, so that transactions have to tell what they read.
    pub(crate) fn are_held(&self) -> bool {
        self.watchers.load(Ordering::Acquire) > 0
    }

    /// Accounts for a transaction that is about to be committed.
    pub(crate) fn committing(self: &Arc<Self>, mut account: Account) -> Committing {
        account.changed.sort_unstable();
        account.changed.dedup();
        let mut committing = Committing {
            watches: Arc::clone(self),
            account,
            granted: true,
            unsettled: Vec::new(),
        };
        let account = &committing.account;
        if account.changed.is_empty() || !self.are_held() {
            return committing;
        }
        let client = account.caller.map(|caller| caller.client);
        let mut inner = self.inner.lock();
        if inner
            .watchers
            .keys()
            .any(|watcher| Some(*watcher) != client)
        {
            // Times and counts of directories change with every name: readers of those do not wait.
            let names = account.changed.iter();
            let names = names.filter(|fact| !matches!(fact, Fact::DirStat(_)));
            committing.unsettled = names.map(Fact::mark).collect();
            for mark in &committing.unsettled {
                *inner.unsettled.entry(*mark).or_default() += 1;
            }
        }
        if let Some(caller) = account.caller.filter(|caller| caller.wants_lease) {
            let marks = account.changed.iter().map(Fact::mark).collect();
            committing.granted = inner.grant(caller, marks, clock::now());
        }
        drop(inner);
        committing
    }

    fn account(&self, done: &Account, now: Instant) -> (bool, Vec<Wait>) {
        let changed: Vec<u64> = done.changed.iter().map(Fact::mark).collect();
        let client = done.caller.map(|caller| caller.client);
        let mut inner = self.inner.lock();
        let granted = match done.caller {
            Some(caller) if caller.wants_lease && done.tells => {
                let mut marks = done.seen.clone();
                marks.sort_unstable();
                inner.holds_since(done.since, &marks) && inner.grant(caller, marks, now)
            }
            _ => false,
        };
        let mut waits = Vec::new();
        if !changed.is_empty() {
            let change = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
            inner.log.extend(changed.iter().map(|&mark| (change, mark)));
            while inner.log.len() > LOG_MAX {
                let dropped = inner.log.pop_front().map_or(0, |(change, _)| change);
                inner.dropped = dropped;
            }
            for (&other, watcher) in &mut inner.watchers {
                if Some(other) != client {
                    waits.extend(watcher.end_leases(other, &done.changed, &changed, now));
                }
            }
        }
        (granted, waits)
    }

    /// Waits until nothing of what was read is being changed while somebody still believes otherwise: an answer that
    /// rests on a change may not come before the change's own (promise P1). A holder of leases does not wait: what it
    /// asks may be what its forgetting waits for.
    async fn settle(&self, marks: &[u64]) {
        let until = clock::now() + 2 * LEASE;
        let mut settlements = self.settlements.subscribe();
        loop {
            settlements.borrow_and_update();
            let unsettled = {
                let inner = self.inner.lock();
                !inner.unsettled.is_empty()
                    && marks.iter().any(|mark| inner.unsettled.contains_key(mark))
            };
            let left = until.saturating_duration_since(clock::now());
            if !unsettled || clock::timeout(left, settlements.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Waits until there is something for `client` to forget, for [`POLL`] at most; `acked` is what it has forgotten.
    /// Returns the batch's number and what is in it.
    pub(crate) async fn next(
        &self,
        client: ClientId,
        acked: u64,
        remote: bool,
    ) -> (u64, Vec<Fact>) {
        let wake = {
            let mut inner = self.inner.lock();
            let now = clock::now();
            inner
                .watchers
                .retain(|_, watcher| now.saturating_duration_since(watcher.polled) < 4 * SILENT);
            let watcher = inner
                .watchers
                .entry(client)
                .or_insert_with(|| Watcher::new(acked, remote, now));
            watcher.polled = now;
            if acked >= watcher.batch {
                // More than was handed out: numbers of an earlier run.
                watcher.batch = acked;
                watcher.sent.clear();
                watcher.acked.send_replace(acked);
            }
            let wake = Arc::clone(&watcher.wake);
            self.watchers.store(inner.watchers.len(), Ordering::Release);
            wake
        };
        let until = clock::now() + POLL;
        loop {
            // A wake-up between the look and the wait is kept by the notifier.
            if let Some(batch) = self.take(client) {
                return batch;
            }
            let left = until.saturating_duration_since(clock::now());
            if clock::timeout(left, wake.notified()).await.is_err() {
                // An earlier call of the same client, given up there, may have had the wake-up.
                return self.take(client).unwrap_or((acked, Vec::new()));
            }
        }
    }

    fn take(&self, client: ClientId) -> Option<(u64, Vec<Fact>)> {
        let mut inner = self.inner.lock();
        let watcher = inner.watchers.get_mut(&client)?;
        watcher.polled = clock::now();
        if !watcher.pending.is_empty() {
            let pending = std::mem::take(&mut watcher.pending);
            watcher.sent.extend(pending);
            watcher.batch += 1;
        }
        (!watcher.sent.is_empty()).then(|| (watcher.batch, watcher.sent.clone()))
    }

    /// Tells whether the store must be told that clients in other processes hold leases.
    pub(crate) fn remote_is_unknown(&self) -> bool {
        !self.inner.lock().remote_known
    }

    /// Notes that the store tells of leases in other processes; from now on they are given.
    pub(crate) fn remote_is_known(&self) {
        self.inner.lock().remote_known = true;
    }

    /// Stops giving leases to other processes, if none can be held there; then the store may forget about them.
    pub(crate) fn remote_ended(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        let watched = inner.watchers.values().any(|watcher| {
            watcher.remote && now.saturating_duration_since(watcher.polled) < SILENT
        });
        let held = inner
            .remote_given
            .is_some_and(|given| now.saturating_duration_since(given) < 2 * LEASE);
        let ended = inner.remote_known && !watched && !held;
        if ended {
            inner.remote_known = false;
        }
        ended
    }
}

impl Committing {
    /// Accounts for the commit, or what was perhaps one (not `ok`; then its maker's kernel does not know of it). Tells
    /// whether the caller may believe the answer; returns when nobody else believes what was changed.
    pub(crate) async fn committed(mut self, ok: bool) -> bool {
        if !ok {
            self.account.caller = None;
        }
        let watches = Arc::clone(&self.watches);
        let changed = !self.account.changed.is_empty();
        let (granted, waits) = watches.account(&self.account, clock::now());
        for mut wait in waits {
            let left = wait.until.saturating_duration_since(clock::now());
            let forgot = clock::timeout(left, wait.acked.wait_for(|acked| *acked >= wait.batch));
            // An error of the channel: the client is gone from the table, and with it its leases.
            if forgot.await.is_err() {
                metrics::META_LEASES_WAITED_OUT.add(1);
                tracing::debug!(client = %wait.client, "waited out the leases of a silent client");
            }
        }
        let settles_at = *watches.settles_at.lock();
        if let Some(settles_at) = settles_at.filter(|_| changed) {
            clock::sleep(settles_at.saturating_duration_since(clock::now())).await;
            *watches.settles_at.lock() = None;
        }
        let granted = granted && self.granted && ok;
        let reader = !self.account.caller.is_some_and(|caller| caller.wants_lease);
        let seen = std::mem::take(&mut self.account.seen);
        drop(self);
        if reader && !seen.is_empty() {
            watches.settle(&seen).await;
        }
        granted
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        if self.unsettled.is_empty() {
            return;
        }
        let mut inner = self.watches.inner.lock();
        for mark in &self.unsettled {
            if let Some(count) = inner.unsettled.get_mut(mark) {
                *count -= 1;
                if *count == 0 {
                    inner.unsettled.remove(mark);
                }
            }
        }
        drop(inner);
        self.watches.settlements.send_modify(|count| *count += 1);
    }
}

impl Inner {
    /// Tells whether none of the sorted marks was changed after `since`.
    fn holds_since(&self, since: u64, marks: &[u64]) -> bool {
        let mut new = self
            .log
            .iter()
            .rev()
            .take_while(|(change, _)| *change > since);
        since >= self.dropped && new.all(|(_, mark)| marks.binary_search(mark).is_err())
    }

    fn grant(&mut self, caller: Caller, marks: Vec<u64>, now: Instant) -> bool {
        if caller.remote && !self.remote_known {
            return false;
        }
        let Some(watcher) = self.watchers.get_mut(&caller.client) else {
            return false;
        };
        watcher.turn(now);
        let full = watcher.recent.len() + marks.len() > limits::CACHE_LEASES_MAX;
        if full || now.saturating_duration_since(watcher.polled) > SILENT {
            return false;
        }
        watcher.recent.extend(marks);
        watcher.granted = now;
        if caller.remote {
            self.remote_given = Some(now);
        }
        true
    }
}

impl Watcher {
    /// Ends the leases on what changed; returns what to wait for if there was one.
    fn end_leases(
        &mut self,
        client: ClientId,
        changed: &[Fact],
        marks: &[u64],
        now: Instant,
    ) -> Option<Wait> {
        self.turn(now);
        let before = self.pending.len();
        for (fact, mark) in changed.iter().zip(marks) {
            if self.believes(*mark) {
                self.pending.push(fact.clone());
                self.recent.remove(mark);
                self.older.remove(mark);
            }
        }
        if self.pending.len() == before {
            // Forgetting what another change has just asked for may still be under way.
            let asked = |facts: &[Fact]| changed.iter().any(|fact| facts.contains(fact));
            let batch = if asked(&self.pending) {
                self.batch + 1
            } else if asked(&self.sent) {
                self.batch
            } else {
                return None;
            };
            return Some(self.wait(client, batch));
        }
        metrics::META_LEASES_ENDED.add(u64::try_from(self.pending.len() - before).unwrap_or(0));
        self.wake.notify_one();
        Some(self.wait(client, self.batch + 1))
    }

    fn wait(&self, client: ClientId, batch: u64) -> Wait {
        Wait {
            client,
            acked: self.acked.subscribe(),
            batch,
            until: self.granted + LEASE,
        }
    }
}

#[cfg(test)]
mod tests;
