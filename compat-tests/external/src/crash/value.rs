//! Values that tell whose they are: every 16 bytes name the write they come from and their place in the file.

use std::fmt::Write as _;

/// Bytes that carry one mark: a write's number and a place, eight bytes each.
const UNIT_BYTES: usize = 16;
/// Runs that a description lists.
const RUNS_MAX: usize = 12;

/// The bytes of a file: runs, each by one write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Value {
    /// Length and write of each run.
    runs: Vec<(u64, u64)>,
}

impl Value {
    /// Returns `len` bytes by one write.
    pub(crate) fn new(write: u64, len: u64) -> Self {
        Self::default().append(write, len)
    }

    pub(crate) fn len(&self) -> u64 {
        self.runs.iter().map(|(len, _)| len).sum()
    }

    /// Returns the value with bytes of a write at its end.
    pub(crate) fn append(&self, write: u64, len: u64) -> Self {
        let mut runs = self.runs.clone();
        runs.push((len, write));
        Self { runs }
    }

    /// Returns the value cut to a length.
    pub(crate) fn truncate(&self, len: u64) -> Self {
        let (mut runs, mut left) = (Vec::new(), len);
        for (length, write) in &self.runs {
            runs.push((left.min(*length), *write));
            left -= left.min(*length);
        }
        runs.retain(|(length, _)| *length > 0);
        Self { runs }
    }

    /// Returns the value with bytes of a write at an offset in it.
    pub(crate) fn overwrite(&self, write: u64, offset: u64, len: u64) -> Self {
        let mut patched = self.truncate(offset).append(write, len);
        let (mut skip, mut rest) = (offset + len, Vec::new());
        for (length, write) in &self.runs {
            let gone = skip.min(*length);
            skip -= gone;
            rest.push((length - gone, *write));
        }
        rest.retain(|(length, _)| *length > 0);
        patched.runs.extend(rest);
        patched
    }

    /// Returns the bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.len()).unwrap_or(0));
        for (len, write) in &self.runs {
            stretch(&mut bytes, *write, *len);
        }
        bytes
    }
}

/// Returns what a write puts at an offset.
pub(crate) fn patch(write: u64, offset: u64, len: u64) -> Vec<u8> {
    let whole = Value::new(write, offset + len).bytes();
    whole[usize::try_from(offset).expect("values fit in memory")..].to_vec()
}

fn unit(write: u64, place: usize) -> [u8; UNIT_BYTES] {
    let mut unit = [0; UNIT_BYTES];
    unit[..8].copy_from_slice(&write.to_le_bytes());
    unit[8..].copy_from_slice(&(place as u64).to_le_bytes());
    unit
}

/// Adds bytes of a write at the end, each as its place demands.
fn stretch(bytes: &mut Vec<u8>, write: u64, len: u64) {
    let end = bytes.len() + usize::try_from(len).expect("values fit in memory");
    while bytes.len() < end {
        let (place, within) = (bytes.len() / UNIT_BYTES, bytes.len() % UNIT_BYTES);
        let take = (UNIT_BYTES - within).min(end - bytes.len());
        bytes.extend_from_slice(&unit(write, place)[within..within + take]);
    }
}

/// Describes bytes by the marks in them.
pub(crate) fn explain(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else {
        return "nothing".into();
    };
    let mut text = format!("{} bytes:", bytes.len());
    let mut runs: Vec<(usize, String)> = Vec::new();
    for (place, found) in bytes.chunks(UNIT_BYTES).enumerate() {
        let mark = describe(place, found);
        if runs.last().is_none_or(|(_, last)| *last != mark) {
            runs.push((place * UNIT_BYTES, mark));
        }
    }
    for (at, mark) in runs.iter().take(RUNS_MAX) {
        // Writing to a string does not fail.
        let _ = write!(text, " from {at} {mark},");
    }
    if runs.len() > RUNS_MAX {
        let _ = write!(text, " {} more runs", runs.len() - RUNS_MAX);
    }
    text
}

fn describe(place: usize, found: &[u8]) -> String {
    if found.iter().all(|byte| *byte == 0) {
        return "zeros".into();
    }
    let Ok(whole) = <[u8; UNIT_BYTES]>::try_from(found) else {
        return "an end".into();
    };
    let (write, at) = whole.split_at(8);
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte))
    };
    let (write, at) = (number(write), number(at));
    if at == place as u64 {
        format!("write {write}")
    } else {
        "a seam or foreign bytes".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_make_the_bytes_that_the_operations_make() {
        let value = Value::new(1, 100).append(2, 50);
        let mut bytes = patch(1, 0, 100);
        bytes.extend(patch(2, 100, 50));
        assert_eq!(value.bytes(), bytes);
        for (offset, len) in [(0, 10), (95, 10), (3, 97), (149, 1), (0, 150)] {
            let mut expected = bytes.clone();
            let (from, until) = (
                usize::try_from(offset).unwrap(),
                usize::try_from(offset + len).unwrap(),
            );
            expected[from..until].copy_from_slice(&patch(3, offset, len));
            assert_eq!(value.overwrite(3, offset, len).bytes(), expected);
        }
        assert_eq!(value.truncate(120).bytes(), bytes[..120]);
        assert_eq!(value.truncate(0), Value::default());
    }

    #[test]
    fn a_description_names_writes_zeros_and_misplaced_bytes() {
        let mut bytes = Value::new(7, 64).bytes();
        bytes[16..32].fill(0);
        bytes.copy_within(0..16, 48);
        let text = explain(Some(&bytes));
        assert_eq!(
            text,
            "64 bytes: from 0 write 7, from 16 zeros, from 32 write 7, from 48 a seam or foreign bytes,"
        );
        assert_eq!(explain(None), "nothing");
    }
}
