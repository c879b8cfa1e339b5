//! Written bytes that no chunk has yet: non-overlapping ranges in memory. Pure.
//!
//! Invariant: ranges are non-empty and do not overlap; a later write replaces what it covers.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A range grows by appends up to this length; then the next one starts. Bounds what growing a buffer can copy.
const RANGE_MAX_BYTES: usize = 1 << 20;

#[derive(Debug)]
enum Run {
    /// May grow and be written in place.
    Open(Vec<u8>),
    /// Shared with a write-out.
    Sealed(Bytes),
}

impl Run {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Open(bytes) => bytes,
            Self::Sealed(bytes) => bytes,
        }
    }

    fn slice(&self, from: usize, to: usize) -> Bytes {
        match self {
            Self::Open(bytes) => Bytes::copy_from_slice(&bytes[from..to]),
            Self::Sealed(bytes) => bytes.slice(from..to),
        }
    }
}

/// Dirty ranges of one file by offset.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    runs: BTreeMap<u64, Run>,
    len_bytes: u64,
}

impl Dirty {
    /// Puts `data` at `offset`.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = offset + length(data.len());
        if let Some((&start, Run::Open(bytes))) = self.runs.range_mut(..=offset).next_back() {
            let run_end = start + length(bytes.len());
            if end <= run_end {
                let from = distance(start, offset);
                bytes[from..from + data.len()].copy_from_slice(data);
                return;
            }
            let room = bytes.len() + data.len() <= RANGE_MAX_BYTES;
            if offset == run_end && room && self.runs.range(offset..end).next().is_none() {
                let Some((_, Run::Open(bytes))) = self.runs.range_mut(..=offset).next_back() else {
                    return;
                };
                bytes.extend_from_slice(data);
                self.len_bytes += length(data.len());
                return;
            }
        }
        self.clear_range(offset, end);
        self.insert(offset, Run::Open(data.to_vec()));
    }

    /// Puts back ranges that could not be written out, below what was written since.
    pub(crate) fn put_back(&mut self, ranges: &[(u64, Bytes)]) {
        let newer = std::mem::take(self);
        for (offset, bytes) in ranges {
            self.insert(*offset, Run::Sealed(bytes.clone()));
        }
        for (offset, run) in newer.runs {
            let end = offset + length(run.bytes().len());
            self.clear_range(offset, end);
            self.insert(offset, run);
        }
    }

    /// Takes every range out, in order.
    pub(crate) fn take(&mut self) -> Vec<(u64, Bytes)> {
        self.len_bytes = 0;
        let seal = |run| match run {
            Run::Open(bytes) => Bytes::from(bytes),
            Run::Sealed(bytes) => bytes,
        };
        std::mem::take(&mut self.runs)
            .into_iter()
            .map(|(offset, run)| (offset, seal(run)))
            .collect()
    }

    /// Returns the dirty parts of `[offset, end)`, in order.
    pub(crate) fn patches(&self, offset: u64, end: u64) -> Vec<(u64, Bytes)> {
        let before = self.runs.range(..offset).next_back();
        let cut = |(&start, run): (&u64, &Run)| {
            let run_end = start + length(run.bytes().len());
            let (from, to) = (start.max(offset), run_end.min(end));
            (from < to).then(|| (from, run.slice(distance(start, from), distance(start, to))))
        };
        before
            .into_iter()
            .chain(self.runs.range(offset..end))
            .filter_map(cut)
            .collect()
    }

    /// Returns the bytes held.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn insert(&mut self, offset: u64, run: Run) {
        self.len_bytes += length(run.bytes().len());
        self.runs.insert(offset, run);
    }

    /// Forgets `[offset, end)`, keeping the parts of runs that reach out of it.
    fn clear_range(&mut self, offset: u64, end: u64) {
        let before = self
            .runs
            .range(..offset)
            .next_back()
            .map(|(&start, _)| start);
        let within = self.runs.range(offset..end).map(|(&start, _)| start);
        let touched: Vec<u64> = before.into_iter().chain(within).collect();
        for start in touched {
            let Some(run) = self.runs.get(&start) else {
                continue;
            };
            let run_end = start + length(run.bytes().len());
            if run_end <= offset {
                continue;
            }
            let len = run.bytes().len();
            let left = (start < offset).then(|| run.slice(0, distance(start, offset)));
            let right = (end < run_end).then(|| run.slice(distance(start, end), len));
            self.runs.remove(&start);
            self.len_bytes -= length(len);
            if let Some(bytes) = left {
                self.insert(start, Run::Sealed(bytes));
            }
            if let Some(bytes) = right {
                self.insert(end, Run::Sealed(bytes));
            }
        }
    }
}

/// Lays `patches` (ordered, inside the range) over `base`, which starts at `offset`.
pub(crate) fn lay_over(base: Vec<Bytes>, offset: u64, patches: Vec<(u64, Bytes)>) -> Vec<Bytes> {
    if patches.is_empty() {
        return base;
    }
    let mut rest = base.into_iter();
    let mut current = Bytes::new();
    let mut out = Vec::new();
    let mut at = offset;
    let mut advance = |mut len: u64, mut keep: Option<&mut Vec<Bytes>>| {
        while len > 0 {
            if current.is_empty() {
                match rest.next() {
                    Some(next) => current = next,
                    None => return,
                }
            }
            let step = usize::try_from(len)
                .unwrap_or(usize::MAX)
                .min(current.len());
            let head = current.split_to(step);
            len -= length(step);
            if let Some(out) = keep.as_deref_mut()
                && !head.is_empty()
            {
                out.push(head);
            }
        }
    };
    for (start, bytes) in patches {
        advance(start - at, Some(&mut out));
        let len = length(bytes.len());
        advance(len, None);
        out.push(bytes);
        at = start + len;
    }
    advance(u64::MAX, Some(&mut out));
    out
}

/// Tells whether ordered patches cover `[offset, end)` without a gap.
pub(crate) fn cover(patches: &[(u64, Bytes)], offset: u64, end: u64) -> bool {
    let reach = patches.iter().try_fold(offset, |at, (start, bytes)| {
        (*start == at).then(|| at + length(bytes.len()))
    });
    reach == Some(end)
}

/// Length of a buffer as file offsets count.
pub(crate) fn length(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits a u64")
}

fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).expect("a range in memory fits a usize")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: usize = 512;

    fn check(dirty: &Dirty, model: &[Option<u8>]) -> Result<(), TestCaseError> {
        let held = model.iter().filter(|byte| byte.is_some()).count();
        prop_assert_eq!(dirty.len_bytes(), held as u64);
        prop_assert_eq!(dirty.runs.is_empty(), held == 0);
        for (from, to) in [(0, LEN), (100, 200), (7, 8)] {
            let patches = dirty.patches(from as u64, to as u64);
            let base: Vec<u8> = vec![0xff; to - from];
            let halves = base.chunks(33).map(Bytes::copy_from_slice).collect();
            let expected: Vec<u8> = model[from..to]
                .iter()
                .map(|byte| byte.unwrap_or(0xff))
                .collect();
            let whole = cover(&patches, from as u64, to as u64);
            prop_assert!(!whole || model[from..to].iter().all(Option::is_some));
            prop_assert_eq!(lay_over(halves, from as u64, patches).concat(), expected);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn later_writes_win(
            writes in proptest::collection::vec((0usize..400, 1usize..100, any::<u8>(), 0u8..8), 1..40),
        ) {
            let mut dirty = Dirty::default();
            let mut model = vec![None; LEN];
            let mut flight: Vec<(u64, Bytes)> = Vec::new();
            let mut end = 0;
            for (offset, len, value, action) in writes {
                // Most files are written by appends.
                let offset = if action < 3 && end + len < LEN { end } else { offset };
                dirty.write(offset as u64, &vec![value; len]);
                model[offset..offset + len].fill(Some(value));
                end = offset + len;
                if action == 7 {
                    dirty.put_back(&flight);
                    flight = dirty.take();
                    prop_assert!(flight.is_sorted_by(|a, b| a.0 + length(a.1.len()) <= b.0));
                }
            }
            dirty.put_back(&flight);
            check(&dirty, &model)?;
        }
    }

    #[test]
    fn appends_share_a_range_up_to_its_limit() {
        let mut dirty = Dirty::default();
        let step = vec![1; RANGE_MAX_BYTES / 4];
        for number in 0..8 {
            dirty.write(number * length(step.len()), &step);
        }
        assert_eq!(dirty.take().len(), 2);
        assert_eq!(dirty.len_bytes(), 0);
    }
}
