//! Open handles: the number that the kernel carries, and what it stands for.
//!
//! Invariants: a number is never reused within a mount, and the table holds at most [`HANDLES_MAX`]. Sharded by number
//! so that threads serving different files do not meet on one lock; a read holds its lock only to clone an `Arc`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;

/// Most handles of one kind and mount: Linux' `fs.nr_open` default, what one process may hold. A handle is a few
/// hundred bytes.
pub(crate) const HANDLES_MAX: usize = 1 << 20;
const SHARDS: usize = 16;

/// The handles of one kind, by number.
pub(crate) struct HandleTable<T> {
    next: AtomicU64,
    count: AtomicUsize,
    count_max: usize,
    shards: [RwLock<HashMap<u64, Arc<T>>>; SHARDS],
}

impl<T> HandleTable<T> {
    pub(crate) fn new(count_max: usize) -> Self {
        Self {
            next: AtomicU64::new(1),
            count: AtomicUsize::new(0),
            count_max,
            shards: std::array::from_fn(|_| RwLock::default()),
        }
    }

    /// Takes a place, or `None` when the table is full. Taken before the file is opened, so that an opened file always
    /// finds one.
    pub(crate) fn reserve(&self) -> Option<Place<'_, T>> {
        let taken = self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < self.count_max).then_some(count + 1)
            });
        taken.is_ok().then(|| Place { table: self })
    }

    pub(crate) fn get(&self, handle: u64) -> Option<Arc<T>> {
        self.shard(handle).read().get(&handle).cloned()
    }

    pub(crate) fn remove(&self, handle: u64) -> Option<Arc<T>> {
        let removed = self.shard(handle).write().remove(&handle);
        if removed.is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    /// Returns every handle's value, for publishing at unmount.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Empties the table.
    pub(crate) fn drain(&self) -> Vec<Arc<T>> {
        let mut values = Vec::new();
        for shard in &self.shards {
            values.extend(shard.write().drain().map(|(_, value)| value));
        }
        self.count.fetch_sub(values.len(), Ordering::Relaxed);
        values
    }

    fn shard(&self, handle: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        let index = usize::try_from(handle % 16).expect("below 16");
        &self.shards[index]
    }
}

/// A reserved place; given back when dropped unfilled.
pub(crate) struct Place<'t, T> {
    table: &'t HandleTable<T>,
}

impl<T> Place<'_, T> {
    pub(crate) fn fill(self, value: T) -> u64 {
        let handle = self.table.next.fetch_add(1, Ordering::Relaxed);
        self.table
            .shard(handle)
            .write()
            .insert(handle, Arc::new(value));
        std::mem::forget(self);
        handle
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.table.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_refuses_and_removal_makes_room() {
        let table = HandleTable::new(2);
        let first = table.reserve().unwrap().fill("first");
        let second = table.reserve().unwrap().fill("second");
        assert_ne!(first, second);
        assert!(table.reserve().is_none());
        assert_eq!(table.remove(first).as_deref(), Some(&"first"));
        assert!(table.get(first).is_none());
        assert!(
            table.remove(first).is_none(),
            "a second removal frees no second place"
        );
        let third = table.reserve().unwrap().fill("third");
        assert!(![first, second].contains(&third), "numbers are not reused");
        assert!(table.reserve().is_none());
    }

    #[test]
    fn a_place_that_is_not_filled_is_given_back() {
        let table = HandleTable::<()>::new(1);
        drop(table.reserve().unwrap());
        assert!(table.reserve().is_some());
    }

    #[test]
    fn drain_frees_every_place() {
        let table = HandleTable::new(40);
        while let Some(place) = table.reserve() {
            place.fill(());
        }
        assert_eq!(
            (table.all().len(), table.drain().len(), table.all().len()),
            (40, 40, 0)
        );
        assert!(table.reserve().is_some());
    }
}
