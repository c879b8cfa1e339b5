//! MD5 (RFC 1321) of several bodies at once.
//!
//! MD5 is one long chain of dependent steps: a core spends most of its time waiting for the last one. Bodies that arrive at
//! the same time are therefore hashed in lanes, one body in each lane of a vector, for little more than the time of one.
//! The lanes are plain arrays, which the compiler turns into vector code; no instruction is named here.
//!
//! Invariant: what a lane computes depends on its own bytes only. Absent: who hashes when (`checksum`).

use std::slice;

use bytes::Bytes;

/// Bodies hashed together: the 32-bit lanes of the vectors that every x86-64 and ARMv8 machine has.
pub(crate) const LANES: usize = 4;

const BLOCK_BYTES: usize = 64;
const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
const SHIFTS: [[u32; 4]; 4] = [
    [7, 12, 17, 22],
    [5, 9, 14, 20],
    [4, 11, 16, 23],
    [6, 10, 15, 21],
];
/// 2^32 times the absolute sine of 1 to 64.
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

/// The MD5 of a body so far.
#[derive(Clone, Debug)]
pub(crate) struct Md5 {
    state: [u32; 4],
    /// Bytes taken, also those in `tail`.
    len: u64,
    /// The start of the next block, as far as it has come.
    tail: [u8; BLOCK_BYTES],
}

impl Default for Md5 {
    fn default() -> Self {
        Self {
            state: START,
            len: 0,
            tail: [0; BLOCK_BYTES],
        }
    }
}

impl Md5 {
    /// Takes the next bytes of each of several bodies, any number of them.
    pub(crate) fn update_all(bodies: &mut [(&mut Self, &[Bytes])]) {
        for group in bodies.chunks_mut(LANES) {
            let mut lanes: Vec<Lane<'_>> = group
                .iter_mut()
                .map(|(md5, bytes)| Lane::new(md5, bytes))
                .collect();
            hash_lanes(&mut lanes);
        }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[Bytes]) {
        hash_lanes(&mut [Lane::new(self, bytes)]);
    }

    /// Returns the digest of everything taken.
    pub(crate) fn finish(mut self) -> [u8; 16] {
        let len_bits = self.len.wrapping_mul(8);
        let used = self.tail_len();
        let zeros = (2 * BLOCK_BYTES - 1 - 8 - used) % BLOCK_BYTES;
        let mut end = vec![0; 1 + zeros + 8];
        end[0] = 0x80;
        end[1 + zeros..].copy_from_slice(&len_bits.to_le_bytes());
        self.update(&[Bytes::from(end)]);
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    fn tail_len(&self) -> usize {
        usize::try_from(self.len % 64).expect("less than a block")
    }
}

/// A body on its way through the vectors.
struct Lane<'a> {
    md5: &'a mut Md5,
    later: slice::Iter<'a, Bytes>,
    /// Bytes that are next, all of one buffer.
    now: &'a [u8],
    /// Whether `md5.tail` is full and to be hashed before `now`.
    tail_is_full: bool,
}

impl<'a> Lane<'a> {
    fn new(md5: &'a mut Md5, bytes: &'a [Bytes]) -> Self {
        let mut lane = Self {
            md5,
            later: bytes.iter(),
            now: &[],
            tail_is_full: false,
        };
        lane.settle();
        lane
    }

    /// Moves on to the next whole block: in `now`, or put together in the tail where buffers meet.
    fn settle(&mut self) {
        while !self.tail_is_full {
            let used = self.md5.tail_len();
            if used == 0 && self.now.len() >= BLOCK_BYTES {
                return;
            }
            if self.now.is_empty() {
                match self.later.next() {
                    Some(bytes) => self.now = bytes,
                    None => return,
                }
                continue;
            }
            let step = self.now.len().min(BLOCK_BYTES - used);
            let (part, rest) = self.now.split_at(step);
            self.md5.tail[used..used + step].copy_from_slice(part);
            self.md5.len += step as u64;
            self.now = rest;
            self.tail_is_full = used + step == BLOCK_BYTES;
        }
    }

    /// Returns the whole blocks that lie ready in one run; none at the end.
    fn ready(&self) -> &[u8] {
        if self.tail_is_full {
            &self.md5.tail
        } else {
            &self.now[..self.now.len() / BLOCK_BYTES * BLOCK_BYTES]
        }
    }

    /// Passes over bytes of [`Self::ready`] that were hashed.
    fn advance(&mut self, len: usize) {
        if self.tail_is_full {
            self.tail_is_full = false;
        } else {
            self.now = &self.now[len..];
            self.md5.len += len as u64;
        }
        self.settle();
    }
}

fn hash_lanes(lanes: &mut [Lane<'_>]) {
    loop {
        lanes.sort_unstable_by_key(|lane| lane.ready().is_empty());
        let busy = lanes.partition_point(|lane| !lane.ready().is_empty());
        let len = match &mut lanes[..busy] {
            [] => return,
            [lane] => {
                let run = lane.ready();
                let len = run.len();
                let mut state = lane.md5.state.map(|word| [word]);
                compress(&mut state, [run]);
                lane.md5.state = state.map(|[word]| word);
                len
            }
            lanes => {
                let len = lanes.iter().map(|lane| lane.ready().len()).min();
                let len = len.expect("two or more");
                // A lane without a body repeats the first one; its result is dropped.
                let member = |lane: usize| if lane < lanes.len() { lane } else { 0 };
                let runs = std::array::from_fn(|lane| &lanes[member(lane)].ready()[..len]);
                let mut state: [[u32; LANES]; 4] = std::array::from_fn(|word| {
                    std::array::from_fn(|lane| lanes[member(lane)].md5.state[word])
                });
                compress(&mut state, runs);
                for (number, lane) in lanes.iter_mut().enumerate() {
                    lane.md5.state = state.map(|words| words[number]);
                }
                len
            }
        };
        lanes[..busy].iter_mut().for_each(|lane| lane.advance(len));
    }
}

/// Hashes runs of whole blocks, all of one length, into the states of their lanes.
fn compress<const L: usize>(state: &mut [[u32; L]; 4], runs: [&[u8]; L]) {
    for block in 0..runs[0].len() / BLOCK_BYTES {
        let mut words = [[0; L]; 16];
        for (lane, run) in runs.iter().enumerate() {
            let bytes = &run[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES];
            for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
                word[lane] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        let mut next = *state;
        round(&mut next, 0, &words, |i| i, |b, c, d| d ^ (b & (c ^ d)));
        // The two terms never share a bit: their sum is their union, and the second is ready early.
        let second = |b: u32, c: u32, d: u32| (d & b).wrapping_add(!d & c);
        round(&mut next, 1, &words, |i| (5 * i + 1) % 16, second);
        round(
            &mut next,
            2,
            &words,
            |i| (3 * i + 5) % 16,
            |b, c, d| b ^ c ^ d,
        );
        round(
            &mut next,
            3,
            &words,
            |i| (7 * i) % 16,
            |b, c, d| c ^ (b | !d),
        );
        for (words, more) in state.iter_mut().zip(next) {
            for (word, more) in words.iter_mut().zip(more) {
                *word = word.wrapping_add(more);
            }
        }
    }
}

#[inline(always)]
fn round<const L: usize>(
    state: &mut [[u32; L]; 4],
    number: usize,
    words: &[[u32; L]; 16],
    order: impl Fn(usize) -> usize,
    mix: impl Fn(u32, u32, u32) -> u32 + Copy,
) {
    let [mut a, mut b, mut c, mut d] = *state;
    let step = |a, b, c, d, i: usize| {
        let constant = SINES[16 * number + i];
        step(
            mix,
            [a, b, c, d],
            &words[order(i)],
            constant,
            SHIFTS[number][i % 4],
        )
    };
    for i in (0..16).step_by(4) {
        a = step(a, b, c, d, i);
        d = step(d, a, b, c, i + 1);
        c = step(c, d, a, b, i + 2);
        b = step(b, c, d, a, i + 3);
    }
    *state = [a, b, c, d];
}

#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "five arrays side by side: this form becomes vector code"
)]
fn step<const L: usize>(
    mix: impl Fn(u32, u32, u32) -> u32,
    [a, b, c, d]: [[u32; L]; 4],
    words: &[u32; L],
    constant: u32,
    shift: u32,
) -> [u32; L] {
    let mut out = [0; L];
    for lane in 0..L {
        out[lane] = a[lane]
            .wrapping_add(words[lane].wrapping_add(constant))
            .wrapping_add(mix(b[lane], c[lane], d[lane]))
            .rotate_left(shift)
            .wrapping_add(b[lane]);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use s3s::crypto::{Checksum as _, Md5 as Oracle};

    use super::*;

    fn hex_of(text: &[u8]) -> String {
        let mut md5 = Md5::default();
        md5.update(&[Bytes::copy_from_slice(text)]);
        hex::encode(md5.finish())
    }

    #[test]
    fn test_suite_of_the_rfc() {
        let suite: [(&[u8], &str); 4] = [
            (b"", "d41d8cd98f00b204e9800998ecf8427e"),
            (b"abc", "900150983cd24fb0d6963f7d28e17f72"),
            (b"message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            (
                b"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ];
        for (text, digest) in suite {
            assert_eq!(hex_of(text), digest);
        }
    }

    proptest! {
        /// Bodies of any number and length, in buffers cut anywhere, over several batches: each as if it were alone.
        #[test]
        fn lanes_do_not_touch_each_other(
            bodies in proptest::collection::vec(
                proptest::collection::vec(
                    proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..4),
                    3,
                ),
                1..LANES + 3,
            ),
        ) {
            let batches: Vec<Vec<Vec<Bytes>>> = bodies
                .iter()
                .map(|body| body.iter().map(|batch| batch.iter().cloned().map(Bytes::from).collect()).collect())
                .collect();
            let mut hashers = vec![Md5::default(); bodies.len()];
            for turn in 0..3 {
                let mut together: Vec<(&mut Md5, &[Bytes])> = hashers
                    .iter_mut()
                    .zip(&batches)
                    .map(|(hasher, body)| (hasher, &body[turn][..]))
                    .collect();
                Md5::update_all(&mut together);
            }
            for (hasher, body) in hashers.into_iter().zip(&bodies) {
                let whole: Vec<u8> = body.iter().flatten().flatten().copied().collect();
                prop_assert_eq!(hasher.finish(), Oracle::checksum(&whole));
            }
        }
    }
}
