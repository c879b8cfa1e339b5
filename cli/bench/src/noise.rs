//! Bytes that do not compress and do not repeat.

use bytes::Bytes;

/// Length of the pool beyond the largest object, so that objects of any size start at many different places.
const SLACK: usize = 1 << 20;
/// Distance between the starts of successive objects: odd, so that no two share aligned blocks for a long time.
const STEP: usize = 4099;

/// A pool of noise that objects are cut from without copying.
#[derive(Clone)]
pub(crate) struct Noise(Bytes);

impl Noise {
    /// Makes a pool for objects of up to `largest` bytes.
    pub(crate) fn new(largest: usize) -> Self {
        Self(noise(largest + SLACK).into())
    }

    /// Returns `len` bytes, different ones for successive numbers.
    ///
    /// # Panics
    /// If `len` is larger than the pool was made for.
    pub(crate) fn cut(&self, number: u64, len: usize) -> Bytes {
        let turn = usize::try_from(number % u64::try_from(SLACK).expect("a MiB")).expect("a MiB");
        let start = turn * STEP % SLACK;
        self.0.slice(start..start + len)
    }
}

/// Returns `len` bytes of noise (xorshift64*, Vigna 2016).
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next(&mut state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Steps the generator.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_differ_and_have_their_length() {
        let pool = Noise::new(4096);
        let cuts: std::collections::HashSet<Bytes> =
            (0..1000).map(|number| pool.cut(number, 4096)).collect();
        assert_eq!(cuts.len(), 1000);
        assert!(cuts.iter().all(|cut| cut.len() == 4096));
        let zeros = noise(1 << 16).iter().filter(|byte| **byte == 0).count();
        assert!((100..500).contains(&zeros), "{zeros}");
    }
}
