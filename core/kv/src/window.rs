//! The window of recent commits, against which the reads of a committing transaction are checked.
//!
//! Owns what each recent version wrote. Invariants: every version above `floor` is in the window; a snapshot below the
//! floor cannot be judged and is too old. Bounded by count, bytes and the life of a transaction. Absent: locks; each
//! backend keeps its window under its sequencer.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Included},
    time::{Duration, Instant},
};

use bytes::Bytes;
use janusfs_types::limits::KV_TRANSACTION_MAX_SECONDS;

use crate::{
    kv::KvError,
    writes::{Pair, Reads, Writes},
};

/// Most commits in the window: five seconds at 50,000 commits per second.
const WINDOW_COMMITS_MAX: usize = 250_000;
/// Most bytes of the window, so that large transactions do not fill memory.
const WINDOW_BYTES_MAX: usize = 32 << 20;
/// What a key in the window costs beside its bytes.
const KEY_OVERHEAD_BYTES: usize = 96;
/// Longest life of a transaction that has read; older commits can conflict with nobody.
pub(crate) const TRANSACTION_LIFE_MAX: Duration = Duration::from_secs(KV_TRANSACTION_MAX_SECONDS);

#[derive(Debug)]
struct Commit {
    version: u64,
    at: Instant,
    keys: Box<[Bytes]>,
    ranges: Box<[Pair]>,
    size_bytes: usize,
}

/// Recent commits.
#[derive(Debug, Default)]
pub(crate) struct Window {
    commits: VecDeque<Commit>,
    /// The last version that wrote each key of the window.
    last_writes: BTreeMap<Bytes, u64>,
    /// Versions that cleared ranges, oldest first.
    clears: VecDeque<(u64, Pair)>,
    size_bytes: usize,
    floor: u64,
}

impl Window {
    /// Judges a transaction that read `reads` at version `snapshot`.
    pub(crate) fn check(&self, reads: &Reads, snapshot: u64) -> Result<(), KvError> {
        if snapshot < self.floor {
            return Err(KvError::TooOld);
        }
        let newer = |version: Option<&u64>| version.is_some_and(|&version| version > snapshot);
        let written = reads
            .keys
            .iter()
            .any(|key| newer(self.last_writes.get(key)))
            || reads.ranges.iter().any(|(start, end)| {
                let inside = self
                    .last_writes
                    .range::<Bytes, _>((Included(start), Excluded(end)));
                inside.into_iter().any(|(_, version)| newer(Some(version)))
            });
        let recent = self
            .clears
            .iter()
            .rev()
            .take_while(|(version, _)| *version > snapshot);
        let cleared = || {
            recent.into_iter().any(|(_, (start, end))| {
                reads.keys.iter().any(|key| start <= key && key < end)
                    || reads
                        .ranges
                        .iter()
                        .any(|range| range.0 < *end && *start < range.1)
            })
        };
        if written || cleared() {
            Err(KvError::Conflict)
        } else {
            Ok(())
        }
    }

    /// Adds the writes of a commit.
    pub(crate) fn push(&mut self, version: u64, at: Instant, writes: &Writes) {
        let keys: Box<[Bytes]> = writes.keys().cloned().collect();
        let ranges: Box<[Pair]> = writes
            .cleared()
            .map(|(s, e)| (s.clone(), e.clone()))
            .collect();
        for key in &keys {
            self.last_writes.insert(key.clone(), version);
        }
        self.clears
            .extend(ranges.iter().map(|range| (version, range.clone())));
        let bytes = keys.iter().map(Bytes::len).sum::<usize>()
            + ranges
                .iter()
                .map(|(start, end)| start.len() + end.len())
                .sum::<usize>();
        let size_bytes = bytes + (keys.len() + 2 * ranges.len() + 1) * KEY_OVERHEAD_BYTES;
        self.size_bytes += size_bytes;
        self.commits.push_back(Commit {
            version,
            at,
            keys,
            ranges,
            size_bytes,
        });
        while let Some(oldest) = self.commits.front() {
            // Twice the life: a transaction may pass its own age check and then wait for the sequencer.
            let over = self.commits.len() > WINDOW_COMMITS_MAX
                || self.size_bytes > WINDOW_BYTES_MAX
                || at.saturating_duration_since(oldest.at) > TRANSACTION_LIFE_MAX * 2;
            if !over {
                break;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.commits.pop_front() else {
            return;
        };
        self.floor = oldest.version;
        self.size_bytes -= oldest.size_bytes;
        for key in &oldest.keys {
            if self.last_writes.get(key) == Some(&oldest.version) {
                self.last_writes.remove(key);
            }
        }
        self.clears.drain(..oldest.ranges.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use janusfs_env::clock;

    #[test]
    fn a_snapshot_below_the_floor_is_too_old() {
        let mut window = Window::default();
        let at = clock::now();
        let write = |key: &[u8]| {
            let mut writes = Writes::default();
            writes.set(key, b"");
            writes.clear_range(b"x", b"y");
            writes
        };
        window.push(1, at, &write(b"a"));
        window.push(2, at, &write(b"b"));
        let mut reads = Reads::default();
        reads.add_key(b"a");
        assert!(matches!(window.check(&reads, 0), Err(KvError::Conflict)));
        assert!(window.check(&reads, 1).is_ok());
        window.push(3, at + TRANSACTION_LIFE_MAX * 3, &write(b"c"));
        assert!(matches!(window.check(&reads, 1), Err(KvError::TooOld)));
        assert!(window.check(&reads, 2).is_ok());
        assert_eq!(window.last_writes.len(), 1);
        assert_eq!(window.clears.len(), 1);
    }
}
