//! What one transaction has written and read so far: the overlay over its snapshot, and its conflict set.
//!
//! Invariants: the cleared ranges are disjoint; a key in `keys` was written after every range that covers it was cleared,
//! so "ranges first, then keys" is the order of application. Absent: any store; both backends bring theirs as closures.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
};

use bytes::Bytes;
use janusfs_types::limits::{KV_KEY_MAX_BYTES, KV_TRANSACTION_MAX_BYTES, KV_VALUE_MAX_BYTES};

use crate::{key::key_after, kv::KvError};

/// A key and its value.
pub(crate) type Pair = (Bytes, Bytes);

/// A change that needs the value before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Atomic {
    Add(i64),
    Max(u64),
}

impl Atomic {
    /// Returns the value after the change. As in FoundationDB, a shorter value is taken as padded with zeros, a longer
    /// one as cut, and the sum wraps.
    pub(crate) fn apply(self, before: Option<&[u8]>) -> Bytes {
        let mut word = [0; 8];
        let before = before.unwrap_or_default();
        let len = before.len().min(word.len());
        word[..len].copy_from_slice(&before[..len]);
        let after = match self {
            Atomic::Add(amount) => i64::from_le_bytes(word).wrapping_add(amount).to_le_bytes(),
            Atomic::Max(value) => u64::from_le_bytes(word).max(value).to_le_bytes(),
        };
        Bytes::copy_from_slice(&after)
    }
}

/// The last state this transaction gave a key.
#[derive(Clone, Debug)]
enum Own {
    Set(Bytes),
    Cleared,
    /// Atomic changes over the value that the store has at commit.
    Atomics(Vec<Atomic>),
}

impl Own {
    fn over(&self, base: Option<Bytes>) -> Option<Bytes> {
        match self {
            Own::Set(value) => Some(value.clone()),
            Own::Cleared => None,
            Own::Atomics(changes) => changes
                .iter()
                .fold(base, |value, change| Some(change.apply(value.as_deref()))),
        }
    }
}

/// What the overlay knows of a key.
pub(crate) enum Overlay<'a> {
    /// The snapshot decides.
    Untouched,
    /// The transaction itself decided: no read of the store is needed.
    Known(Option<Bytes>),
    /// The snapshot's value, then these changes.
    Changed(&'a [Atomic]),
}

/// The writes of one transaction.
#[derive(Clone, Default, Debug)]
pub(crate) struct Writes {
    keys: BTreeMap<Bytes, Own>,
    cleared: BTreeMap<Bytes, Bytes>,
    size_bytes: usize,
    refused: Option<String>,
}

impl Writes {
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) {
        if value.len() > KV_VALUE_MAX_BYTES {
            self.refuse(format!(
                "a value of {} bytes, at most {KV_VALUE_MAX_BYTES}",
                value.len()
            ));
        } else if self.account(key, value.len()) {
            self.keys.insert(
                Bytes::copy_from_slice(key),
                Own::Set(Bytes::copy_from_slice(value)),
            );
        }
    }

    pub(crate) fn clear(&mut self, key: &[u8]) {
        if self.account(key, 0) {
            self.keys.insert(Bytes::copy_from_slice(key), Own::Cleared);
        }
    }

    pub(crate) fn clear_range(&mut self, start: &[u8], end: &[u8]) {
        if start >= end || !self.account(start, end.len()) {
            return;
        }
        let inside: Vec<Bytes> = self
            .keys
            .range::<[u8], _>((Included(start), Excluded(end)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in inside {
            self.keys.remove(&key);
        }
        let mut merged = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        // Every cleared range that touches the new one becomes part of it; the ranges are disjoint, so those are the
        // last ones that begin at or before its end.
        while let Some((other_start, other_end)) = self
            .cleared
            .range::<[u8], _>((Unbounded, Included(&merged.1[..])))
            .next_back()
        {
            if *other_end < merged.0 {
                break;
            }
            let (other_start, other_end) = (other_start.clone(), other_end.clone());
            self.cleared.remove(&other_start);
            merged = (merged.0.min(other_start), merged.1.max(other_end));
        }
        self.cleared.insert(merged.0, merged.1);
    }

    pub(crate) fn atomic(&mut self, key: &[u8], change: Atomic) {
        if !self.account(key, 8) {
            return;
        }
        match self.keys.get_mut(key) {
            Some(Own::Set(value)) => *value = change.apply(Some(value)),
            Some(own @ Own::Cleared) => *own = Own::Set(change.apply(None)),
            Some(Own::Atomics(changes)) => match (changes.last_mut(), change) {
                (Some(Atomic::Add(sum)), Atomic::Add(amount)) => *sum = sum.wrapping_add(amount),
                (Some(Atomic::Max(most)), Atomic::Max(value)) => *most = value.max(*most),
                _ => changes.push(change),
            },
            None => {
                let own = if self.covers(key) {
                    Own::Set(change.apply(None))
                } else {
                    Own::Atomics(vec![change])
                };
                self.keys.insert(Bytes::copy_from_slice(key), own);
            }
        }
    }

    pub(crate) fn overlay(&self, key: &[u8]) -> Overlay<'_> {
        match self.keys.get(key) {
            Some(Own::Set(value)) => Overlay::Known(Some(value.clone())),
            Some(Own::Cleared) => Overlay::Known(None),
            Some(Own::Atomics(changes)) => Overlay::Changed(changes),
            None if self.covers(key) => Overlay::Known(None),
            None => Overlay::Untouched,
        }
    }

    /// Merges a range of the snapshot, given by `next` in key order, with the own writes. Returns at most `limit` pairs
    /// and the end of the part that decided them.
    pub(crate) fn merge<E>(
        &self,
        start: &[u8],
        end: &[u8],
        limit: u32,
        mut next: impl FnMut() -> Result<Option<Pair>, E>,
    ) -> Result<(Vec<Pair>, Bytes), E> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut pairs = Vec::new();
        let mut own = self
            .keys
            .range::<[u8], _>((Included(start), Excluded(end)))
            .peekable();
        let mut base = next()?;
        while pairs.len() < limit {
            let own_first = match (&base, own.peek()) {
                (None, None) => return Ok((pairs, Bytes::copy_from_slice(end))),
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((base_key, _)), Some((own_key, _))) => *own_key <= base_key,
            };
            if own_first {
                let (key, state) = own.next().expect("an own key was seen");
                let under = match &base {
                    Some((base_key, value)) if base_key == key => {
                        let value = value.clone();
                        base = next()?;
                        Some(value)
                    }
                    _ => None,
                };
                pairs.extend(state.over(under).map(|value| (key.clone(), value)));
            } else if let Some((key, value)) = base.take() {
                if !self.covers(&key) {
                    pairs.push((key, value));
                }
                if pairs.len() < limit {
                    base = next()?;
                }
            }
        }
        let seen_end = pairs
            .last()
            .map_or_else(|| Bytes::copy_from_slice(start), |(key, _)| key_after(key));
        Ok((pairs, seen_end))
    }

    /// Refuses a transaction that is over a limit.
    pub(crate) fn check(&self) -> Result<(), KvError> {
        match &self.refused {
            Some(reason) => Err(KvError::TooLarge(reason.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.cleared.is_empty()
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The cleared ranges, to be applied before the keys.
    pub(crate) fn cleared(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.cleared.iter()
    }

    /// Every key written, whatever was done to it.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.keys()
    }

    /// Calls `apply` with every key and its new value (`None`: cleared). `current` gives the committed value that an
    /// atomic change goes on from.
    pub(crate) fn resolve<E>(
        &self,
        mut current: impl FnMut(&[u8]) -> Result<Option<Bytes>, E>,
        mut apply: impl FnMut(&Bytes, Option<Bytes>),
    ) -> Result<(), E> {
        for (key, own) in &self.keys {
            let base = match own {
                Own::Atomics(_) => current(key)?,
                Own::Set(_) | Own::Cleared => None,
            };
            apply(key, own.over(base));
        }
        Ok(())
    }

    fn covers(&self, key: &[u8]) -> bool {
        self.cleared
            .range::<[u8], _>((Unbounded, Included(key)))
            .next_back()
            .is_some_and(|(_, end)| &end[..] > key)
    }

    fn refuse(&mut self, reason: String) {
        self.refused.get_or_insert(reason);
    }

    /// Counts a write; false when it is over a limit, and then it is not kept: memory stays bounded.
    fn account(&mut self, key: &[u8], more_bytes: usize) -> bool {
        if let Err(KvError::TooLarge(reason)) = check_key(key) {
            self.refuse(reason);
            return false;
        }
        self.size_bytes += key.len() + more_bytes;
        if self.size_bytes > KV_TRANSACTION_MAX_BYTES {
            self.refuse(format!(
                "a transaction of more than {KV_TRANSACTION_MAX_BYTES} bytes"
            ));
            return false;
        }
        true
    }
}

/// Refuses a key over its limit.
pub(crate) fn check_key(key: &[u8]) -> Result<(), KvError> {
    if key.len() > KV_KEY_MAX_BYTES {
        let len = key.len();
        return Err(KvError::TooLarge(format!(
            "a key of {len} bytes, at most {KV_KEY_MAX_BYTES}"
        )));
    }
    Ok(())
}

/// What one transaction has read: a change of any of it since the snapshot is a conflict.
#[derive(Default, Debug)]
pub(crate) struct Reads {
    pub(crate) keys: Vec<Bytes>,
    pub(crate) ranges: Vec<Pair>,
}

impl Reads {
    pub(crate) fn add_key(&mut self, key: &[u8]) {
        self.keys.push(Bytes::copy_from_slice(key));
    }

    pub(crate) fn add_range(&mut self, start: &[u8], end: Bytes) {
        if start < &end[..] {
            self.ranges.push((Bytes::copy_from_slice(start), end));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleared_ranges_stay_disjoint() {
        let mut writes = Writes::default();
        for (start, end) in [
            ("b", "d"),
            ("f", "h"),
            ("k", "m"),
            ("c", "f"),
            ("a", "z"),
            ("c", "d"),
        ] {
            writes.clear_range(start.as_bytes(), end.as_bytes());
        }
        let ranges: Vec<_> = writes.cleared().collect();
        assert_eq!(ranges, [(&Bytes::from("a"), &Bytes::from("z"))]);
        assert!(writes.covers(b"a") && !writes.covers(b"z"));
    }

    #[test]
    fn atomics_wrap_pad_and_cut() {
        assert_eq!(
            Atomic::Add(1).apply(Some(&i64::MAX.to_le_bytes()))[..],
            i64::MIN.to_le_bytes()
        );
        assert_eq!(Atomic::Add(1).apply(Some(&[1]))[..], 2i64.to_le_bytes());
        assert_eq!(Atomic::Max(3).apply(Some(&[9; 12]))[..], [9; 8]);
        assert_eq!(Atomic::Add(-2).apply(None)[..], (-2i64).to_le_bytes());
    }
}
