//! Checksums of chunks: over bytes, and combined from those of pieces.
#![allow(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use std::hint::black_box;

use criterion::{Criterion, Throughput};

// The module itself: it is no part of the engine's interface, and need not become one to be measured.
#[path = "../src/crc.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "a part of it is measured, and its tests run elsewhere"
)]
mod crc;

/// Bytes of one piece of a chunk, and of the default chunk.
const PIECE: usize = 16 << 10;
const CHUNK: usize = 4 << 20;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let bytes: Vec<u8> = (0..CHUNK)
        .map(|at| (at * 31 % 251).to_le_bytes()[0])
        .collect();
    let mut group = criterion.benchmark_group("crc32c");
    for (name, len) in [("4 KiB", 4 << 10), ("16 KiB", PIECE), ("1 MiB", 1 << 20)] {
        group.throughput(Throughput::Bytes(u64::try_from(len).unwrap()));
        group.bench_function(name, |bencher| {
            bencher.iter(|| crc::crc32c(black_box(&bytes[..len])));
        });
    }
    group.finish();
    let pieces: Vec<u32> = bytes.chunks(PIECE).map(crc::crc32c).collect();
    criterion.bench_function("crc32c/combine a chunk's pieces", |bencher| {
        bencher.iter(|| {
            let shift = crc::Shift::by(PIECE);
            let pieces = black_box(&pieces).iter();
            pieces.fold(0, |crc, piece| shift.combine(crc, *piece))
        });
    });
    criterion.final_summary();
}
