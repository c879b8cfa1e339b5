//! CRC32C: of bytes, of zeros, and of concatenations.
//!
//! `crc-fast` computes checksums; its `checksum_combine` squares matrices for each call (microseconds), which a
//! 256-piece chunk would pay 256 times. Here the shift by a length is one polynomial (zlib's `crc32_combine_gen`),
//! kept by whoever combines many equal pieces. The test holds both against each other.

pub(crate) use crc_fast::crc32_iscsi as crc32c;

/// Castagnoli's polynomial, bit-reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^(2^n) modulo the polynomial, for n = 0..32.
const POWERS: [u32; 32] = powers();

/// Returns the CRC32C of `len` zero bytes.
pub(crate) fn crc32c_zeros(mut len: usize) -> u32 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut crc = 0;
    while len > 0 {
        let part = len.min(ZEROS.len());
        crc = Shift::by(part).combine(crc, crc32c(&ZEROS[..part]));
        len -= part;
    }
    crc
}

/// Appending a known number of bytes, as an operator on checksums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shift(u32);

impl Shift {
    /// Returns the operator for `len` bytes.
    pub(crate) fn by(len: usize) -> Self {
        let mut rest = len;
        let mut power = 3; // 8 bits a byte
        let mut product = 1 << 31;
        while rest > 0 {
            if rest & 1 == 1 {
                product = multiply(POWERS[power & 31], product);
            }
            rest >>= 1;
            power += 1;
        }
        Self(product)
    }

    /// Returns the checksum of A followed by B, where B has this operator's length.
    pub(crate) fn combine(self, a: u32, b: u32) -> u32 {
        multiply(self.0, a) ^ b
    }
}

const fn powers() -> [u32; 32] {
    let mut table = [0; 32];
    let mut power = 1 << 30;
    let mut n = 0;
    while n < 32 {
        table[n] = power;
        power = multiply(power, power);
        n += 1;
    }
    table
}

/// Multiplies two polynomials modulo [`POLYNOMIAL`]; bit 31 is x^0.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if (a >> bit) & 1 == 1 {
            product ^= b;
        }
        b = (b >> 1) ^ (if b & 1 == 1 { POLYNOMIAL } else { 0 });
    }
    product
}

#[cfg(test)]
mod tests {
    use crc_fast::{CrcAlgorithm::Crc32Iscsi, checksum_combine};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_zeros(10_000), crc32c(&vec![0; 10_000]));
    }

    proptest! {
        #[test]
        fn combining_agrees_with_the_whole_and_with_crc_fast(
            bytes in proptest::collection::vec(any::<u8>(), 0..5000),
            cut in any::<prop::sample::Index>(),
        ) {
            let (a, b) = bytes.split_at(cut.index(bytes.len() + 1));
            let combined = Shift::by(b.len()).combine(crc32c(a), crc32c(b));
            prop_assert_eq!(combined, crc32c(&bytes));
            let oracle = checksum_combine(
                Crc32Iscsi, u64::from(crc32c(a)), u64::from(crc32c(b)), b.len() as u64);
            prop_assert_eq!(u64::from(combined), oracle);
        }
    }
}
