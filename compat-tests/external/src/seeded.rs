//! Numbers that follow from a seed alone, so that a failed run can be repeated (SplitMix64, Steele et al., OOPSLA '14).

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// Starts a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts another sequence that depends on this one's seed and a label, without moving this one.
    #[must_use]
    pub fn branch(&self, label: u64) -> Self {
        let mut fresh = Self(self.0 ^ label.wrapping_mul(0xd134_2543_de82_ef95));
        Self(fresh.number())
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// Returns true once in `count` times.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}
