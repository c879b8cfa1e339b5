//! `MemKv`: the store in memory, for tests and simulation.
//!
//! Owns a map from key to its versions and the window of recent commits, under one lock that is never held across an
//! await. Invariants: a version is kept as long as a live snapshot can see it; version numbers only grow. Absent:
//! durability, so both durabilities are the same.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Included},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use janusfs_env::{
    clock,
    metrics::{KV_COMMITS, KV_CONFLICTS},
};
use parking_lot::Mutex;

use crate::{
    kv::{Durability, Kv, KvError, Txn},
    window::{TRANSACTION_LIFE_MAX, Window},
    writes::{Atomic, Overlay, Pair, Reads, Writes, check_key},
};

/// A store in memory. Clones share the store.
#[derive(Clone, Default)]
pub struct MemKv {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Every key's versions, oldest first; `None` is a removal.
    keys: BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>,
    version: u64,
    window: Window,
    /// Live snapshots and how many transactions hold each.
    snapshots: BTreeMap<u64, usize>,
    /// Keys to look through once no snapshot is below the version that wrote them.
    superseded: VecDeque<(u64, Bytes)>,
}

impl State {
    fn read(&self, key: &[u8], version: u64) -> Option<Bytes> {
        visible(self.keys.get(key)?, version)
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        let versions = self.keys.entry(key.clone()).or_default();
        match versions.last_mut() {
            Some(last) if last.0 == self.version => last.1 = value,
            None if value.is_none() => {
                self.keys.remove(&key);
                return;
            }
            _ => versions.push((self.version, value)),
        }
        self.superseded.push_back((self.version, key));
    }

    /// Drops versions that no snapshot can see any more.
    fn prune(&mut self) {
        let oldest = self
            .snapshots
            .keys()
            .next()
            .copied()
            .unwrap_or(self.version);
        while let Some((version, _)) = self.superseded.front() {
            if *version > oldest {
                break;
            }
            let Some((_, key)) = self.superseded.pop_front() else {
                break;
            };
            let Some(versions) = self.keys.get_mut(&key) else {
                continue;
            };
            let below = versions.partition_point(|(version, _)| *version <= oldest);
            versions.drain(..below.saturating_sub(1));
            if let [(version, None)] = versions[..]
                && version <= oldest
            {
                self.keys.remove(&key);
            }
        }
    }
}

fn visible(versions: &[(u64, Option<Bytes>)], version: u64) -> Option<Bytes> {
    let seen = versions.partition_point(|(at, _)| *at <= version);
    versions[..seen].last().and_then(|(_, value)| value.clone())
}

impl Kv for MemKv {
    type Txn = MemTxn;

    fn has_room(&self) -> bool {
        true
    }

    fn begin(&self) -> MemTxn {
        MemTxn {
            state: self.state.clone(),
            snapshot: None,
            writes: Writes::default(),
            reads: Reads::default(),
        }
    }

    async fn sync(&self) -> Result<(), KvError> {
        Ok(())
    }
}

/// A transaction of [`MemKv`].
pub struct MemTxn {
    state: Arc<Mutex<State>>,
    snapshot: Option<(u64, Instant)>,
    writes: Writes,
    reads: Reads,
}

impl MemTxn {
    fn snapshot(&mut self) -> Result<u64, KvError> {
        if let Some((version, at)) = self.snapshot {
            return if at.elapsed() > TRANSACTION_LIFE_MAX {
                Err(KvError::TooOld)
            } else {
                Ok(version)
            };
        }
        let mut state = self.state.lock();
        let version = state.version;
        *state.snapshots.entry(version).or_default() += 1;
        self.snapshot = Some((version, clock::now()));
        Ok(version)
    }

    fn read(&mut self, key: &[u8], conflicting: bool) -> Result<Option<Bytes>, KvError> {
        check_key(key)?;
        if let Overlay::Known(value) = self.writes.overlay(key) {
            return Ok(value);
        }
        let version = self.snapshot()?;
        if conflicting {
            self.reads.add_key(key);
        }
        let base = self.state.lock().read(key, version);
        Ok(match self.writes.overlay(key) {
            Overlay::Known(value) => value,
            Overlay::Untouched => base,
            Overlay::Changed(changes) => apply_all(changes, base),
        })
    }

    fn scan(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
        conflicting: bool,
    ) -> Result<Vec<Pair>, KvError> {
        if start >= end || limit == 0 {
            return Ok(Vec::new());
        }
        check_key(start).and_then(|()| check_key(end))?;
        let version = self.snapshot()?;
        let state = self.state.lock();
        let mut base = state
            .keys
            .range::<[u8], _>((Included(start), Excluded(end)))
            .filter_map(|(key, versions)| Some((key.clone(), visible(versions, version)?)));
        let (pairs, seen_end) = self
            .writes
            .merge(start, end, limit, || Ok::<_, KvError>(base.next()))?;
        if conflicting {
            self.reads.add_range(start, seen_end);
        }
        Ok(pairs)
    }

    fn apply(&mut self) -> Result<(), KvError> {
        self.writes.check()?;
        if self.writes.is_empty() {
            return Ok(());
        }
        let snapshot = if self.reads.is_empty() {
            None
        } else {
            Some(self.snapshot()?)
        };
        let mut state = self.state.lock();
        if let Some(version) = snapshot {
            state.window.check(&self.reads, version)?;
        }
        let before = state.version;
        state.version += 1;
        let state = &mut *state;
        for (start, end) in self.writes.cleared() {
            let inside: Vec<Bytes> = state
                .keys
                .range(start.clone()..end.clone())
                .map(|(key, _)| key.clone())
                .collect();
            for key in inside {
                state.write(key, None);
            }
        }
        let mut changed = Vec::new();
        self.writes.resolve(
            |key| Ok::<_, KvError>(state.read(key, before)),
            |key, value| changed.push((key.clone(), value)),
        )?;
        for (key, value) in changed {
            state.write(key, value);
        }
        state.window.push(state.version, clock::now(), &self.writes);
        state.prune();
        KV_COMMITS.add(1);
        Ok(())
    }
}

/// Applies atomic changes to the value under them.
pub(crate) fn apply_all(changes: &[Atomic], base: Option<Bytes>) -> Option<Bytes> {
    changes
        .iter()
        .fold(base, |value, change| Some(change.apply(value.as_deref())))
}

impl Drop for MemTxn {
    fn drop(&mut self) {
        let Some((version, _)) = self.snapshot else {
            return;
        };
        let mut state = self.state.lock();
        if let Some(holders) = state.snapshots.get_mut(&version) {
            *holders -= 1;
            if *holders == 0 {
                state.snapshots.remove(&version);
            }
        }
    }
}

impl Txn for MemTxn {
    async fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.read(key, true)
    }

    async fn get_snapshot(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.read(key, false)
    }

    async fn get_many_snapshot(&mut self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, KvError> {
        keys.iter().map(|key| self.read(key, false)).collect()
    }

    async fn range(&mut self, start: &[u8], end: &[u8], limit: u32) -> Result<Vec<Pair>, KvError> {
        self.scan(start, end, limit, true)
    }

    async fn range_snapshot(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> Result<Vec<Pair>, KvError> {
        self.scan(start, end, limit, false)
    }

    fn add_read_conflict(&mut self, key: &[u8]) {
        // A transaction that is too old is told so by its commit.
        let _ = self.snapshot();
        self.reads.add_key(key);
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.writes.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.writes.clear(key);
    }

    fn clear_range(&mut self, start: &[u8], end: &[u8]) {
        self.writes.clear_range(start, end);
    }

    fn atomic_add(&mut self, key: &[u8], amount: i64) {
        self.writes.atomic(key, Atomic::Add(amount));
    }

    fn atomic_max(&mut self, key: &[u8], value: u64) {
        self.writes.atomic(key, Atomic::Max(value));
    }

    async fn commit(mut self, _durability: Durability) -> Result<(), KvError> {
        let done = self.apply();
        if matches!(done, Err(KvError::Conflict)) {
            KV_CONFLICTS.add(1);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn conforms() {
        conformance::all(MemKv::default).await;
    }

    #[tokio::test]
    async fn versions_that_no_snapshot_sees_are_dropped() {
        let kv = MemKv::default();
        let mut old = kv.begin();
        assert_eq!(old.get(b"a").await.unwrap(), None);
        for round in 0..10u8 {
            let mut txn = kv.begin();
            txn.set(b"a", &[round]);
            txn.commit(Durability::Soon).await.unwrap();
        }
        assert_eq!(kv.state.lock().keys[&b"a"[..]].len(), 10);
        drop(old);
        let mut txn = kv.begin();
        txn.clear_range(b"a", b"b");
        txn.commit(Durability::Soon).await.unwrap();
        assert!(kv.state.lock().keys.is_empty() && kv.state.lock().superseded.is_empty());
    }
}
