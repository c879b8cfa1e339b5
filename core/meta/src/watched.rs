//! The store as the service uses it: every transaction tells the leases (`watch`) what it saw and what it changed.
//!
//! Invariant: no operation can forget to: what counts is read off the keys of its transaction. Rows that no client
//! caches (attributes of objects, extents, sessions, buckets, ...) do not count. In the same way a check (`fsck`)
//! is told of every row that it looks at.

use std::{cell::Cell, future::Future, sync::Arc};

use bytes::Bytes;
use janusfs_env::tasks;
use janusfs_kv::{Durability, Kv, KvError, Txn};
use janusfs_rpc::Caller;
use janusfs_types::{BlobId, InodeId};
use tokio::runtime::Handle;

use crate::{
    journal::Row,
    s3::PART_KIND,
    store::{blob, dentry, dir_stat, inode, orphan},
    watch::{Account, Fact, Watches},
};

tokio::task_local! {
    static CALL: Call;
}

/// One request, as its transactions see it.
struct Call {
    caller: Option<Caller>,
    /// Whether every transaction so far got its lease; `None` before the first.
    granted: Cell<Option<bool>>,
}

/// Runs a request in the name of its caller; tells whether the caller may believe the answer.
pub(crate) async fn in_name_of<T>(
    caller: Option<Caller>,
    request: impl Future<Output = T>,
) -> (T, bool) {
    let call = Call {
        caller,
        granted: Cell::new(None),
    };
    let request = async {
        let answer = request.await;
        (answer, CALL.with(|call| call.granted.get() == Some(true)))
    };
    CALL.scope(call, request).await
}

/// A store whose transactions are watched.
pub(crate) struct WatchedKv<K> {
    inner: Arc<K>,
    watches: Arc<Watches>,
}

impl<K: Kv> WatchedKv<K> {
    pub(crate) fn new(inner: Arc<K>, watches: Arc<Watches>) -> Self {
        Self { inner, watches }
    }
}

impl<K: Kv> Kv for WatchedKv<K> {
    type Txn = WatchedTxn<K::Txn>;

    fn begin(&self) -> Self::Txn {
        // A transaction outside of a request (reclamation) has no caller.
        let caller = CALL.try_with(|call| call.caller).ok().flatten();
        WatchedTxn {
            since: self.watches.begin(),
            inner: self.inner.begin(),
            watches: Arc::clone(&self.watches),
            // With nobody who caches, what is read does not matter.
            tells: self.watches.are_held(),
            caller,
            seen: Vec::new(),
            changed: Vec::new(),
            checked: Vec::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.inner.has_room()
    }

    fn sync(&self) -> impl Future<Output = Result<(), KvError>> + Send {
        self.inner.sync()
    }
}

/// One watched transaction.
pub(crate) struct WatchedTxn<T> {
    inner: T,
    watches: Arc<Watches>,
    caller: Option<Caller>,
    tells: bool,
    since: u64,
    seen: Vec<u64>,
    changed: Vec<Fact>,
    /// What it changed, as a check looks at it.
    checked: Vec<Row>,
}

/// Returns what a check looks at of a row. Extents change with their inode.
fn checked(key: &[u8]) -> Option<Row> {
    let (kind, rest) = key.split_first_chunk::<4>()?;
    if let orphan::KIND | orphan::DEAD_KIND | PART_KIND = kind {
        return Some(Row::Plain(Bytes::copy_from_slice(key)));
    }
    let (id, name) = rest.split_first_chunk::<8>()?;
    match kind {
        inode::KIND => Some(Row::Inode(InodeId(u64::from_le_bytes(*id)))),
        dir_stat::KIND => Some(Row::Inode(InodeId(u64::from_be_bytes(*id)))),
        dentry::KIND => Some(Row::Entry(
            InodeId(u64::from_be_bytes(*id)),
            Bytes::copy_from_slice(name),
        )),
        blob::KIND => Some(Row::Blob(BlobId(u64::from_be_bytes(*id)))),
        _ => None,
    }
}

/// Returns the fact that a row, or a range that begins at `key`, is about.
fn fact(key: &[u8]) -> Option<Fact> {
    let (kind, rest) = key.split_first_chunk::<4>()?;
    let (id, name) = rest.split_first_chunk::<8>()?;
    match kind {
        inode::KIND => Some(Fact::Attr(InodeId(u64::from_le_bytes(*id)))),
        dir_stat::KIND => Some(Fact::DirStat(InodeId(u64::from_be_bytes(*id)))),
        dentry::KIND => Some(Fact::Name(
            InodeId(u64::from_be_bytes(*id)),
            Bytes::copy_from_slice(name.strip_suffix(b"/").unwrap_or(name)),
        )),
        _ => None,
    }
}

impl<T> WatchedTxn<T> {
    fn saw(&mut self, key: &[u8]) {
        if self.tells {
            self.seen.extend(fact(key).map(|fact| fact.mark()));
        }
    }

    fn saw_range(&mut self, start: &[u8], rows: &[(Bytes, Bytes)]) {
        if !self.tells {
            return;
        }
        if start.starts_with(dentry::KIND) {
            // No client believes that a directory has no other names, only the names that it was given.
            for (key, _) in rows {
                self.saw(key);
            }
        } else {
            self.saw(start);
        }
    }

    fn changes(&mut self, key: &[u8]) {
        let fact = fact(key);
        if fact.is_some() && self.changed.last() != fact.as_ref() {
            self.changed.extend(fact);
        }
        let row = checked(key);
        if row.is_some() && self.checked.last() != row.as_ref() {
            self.checked.extend(row);
        }
    }
}

impl<T: Txn + 'static> Txn for WatchedTxn<T> {
    fn get(&mut self, key: &[u8]) -> impl Future<Output = Result<Option<Bytes>, KvError>> + Send {
        self.saw(key);
        self.inner.get(key)
    }
    fn get_snapshot(
        &mut self,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<Bytes>, KvError>> + Send {
        self.saw(key);
        self.inner.get_snapshot(key)
    }
    fn get_many_snapshot(
        &mut self,
        keys: &[Vec<u8>],
    ) -> impl Future<Output = Result<Vec<Option<Bytes>>, KvError>> + Send {
        for key in keys {
            self.saw(key);
        }
        self.inner.get_many_snapshot(keys)
    }
    async fn range(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let rows = self.inner.range(start, end, limit).await?;
        self.saw_range(start, &rows);
        Ok(rows)
    }
    async fn range_snapshot(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let rows = self.inner.range_snapshot(start, end, limit).await?;
        self.saw_range(start, &rows);
        Ok(rows)
    }
    fn add_read_conflict(&mut self, key: &[u8]) {
        self.inner.add_read_conflict(key);
    }
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.changes(key);
        self.inner.set(key, value);
    }
    fn clear(&mut self, key: &[u8]) {
        self.changes(key);
        self.inner.clear(key);
    }
    fn clear_range(&mut self, start: &[u8], end: &[u8]) {
        debug_assert!(
            !start.starts_with(dentry::KIND),
            "names are removed one by one, so that each is told of"
        );
        if start.starts_with(PART_KIND) {
            let range = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
            self.checked.push(Row::Range(range.0, range.1));
        } else {
            self.changes(start);
        }
        self.inner.clear_range(start, end);
    }
    fn atomic_add(&mut self, key: &[u8], amount: i64) {
        self.changes(key);
        self.inner.atomic_add(key, amount);
    }
    fn atomic_max(&mut self, key: &[u8], value: u64) {
        self.changes(key);
        self.inner.atomic_max(key, value);
    }
    async fn commit(self, durability: Durability) -> Result<(), KvError> {
        let call = CALL.try_with(|call| call.caller).ok();
        let commit = self.commit_and_settle(durability);
        // A caller that gives up must not keep a commit that is under way from being told of.
        let (done, granted) = if tasks::may_block() || Handle::try_current().is_err() {
            commit.await
        } else {
            match tasks::spawn(commit).await {
                Ok(done) => done,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime is shutting down: whether the commit got through is for recovery to say.
                Err(error) => return Err(KvError::CommitUnknown(error.to_string())),
            }
        };
        if call.is_some() {
            let _ = CALL.try_with(|call| {
                let before = call.granted.get().unwrap_or(true);
                call.granted.set(Some(before && granted));
            });
        }
        done
    }
}

impl<T: Txn> WatchedTxn<T> {
    /// Commits; tells whether the caller may believe the answer.
    async fn commit_and_settle(self, durability: Durability) -> (Result<(), KvError>, bool) {
        let (watches, checked) = (self.watches, self.checked);
        let landing = (!checked.is_empty()).then(|| watches.journal.landing(|| checked.into()));
        let account = Account {
            caller: self.caller,
            since: self.since,
            tells: self.tells,
            seen: self.seen,
            changed: self.changed,
        };
        let tells = !account.seen.is_empty() || !account.changed.is_empty();
        let committing = tells.then(|| watches.committing(account));
        let done = self.inner.commit(durability).await;
        if let Some(landing) = landing
            && !matches!(done, Err(KvError::CommitUnknown(_)))
        {
            landing.ended();
        }
        let Some(committing) = committing else {
            return (done, false);
        };
        let granted = match &done {
            Ok(()) => committing.committed(true).await,
            Err(KvError::CommitUnknown(_)) => committing.committed(false).await,
            Err(
                KvError::Conflict
                | KvError::TooLarge(_)
                | KvError::TooOld
                | KvError::Unavailable(_),
            ) => false,
        };
        (done, granted)
    }
}
