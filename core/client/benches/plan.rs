//! From a file range to the pieces that make it up.

use std::hint::black_box;

use criterion::Criterion;
use janusfs_types::{BlobId, Content, Extent, Layout};

// The module itself: it is no part of the client's interface, and need not become one to be measured.
#[path = "../src/plan.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "a part of it is measured, and its tests run elsewhere"
)]
mod plan;

const LAYOUT: Layout = Layout {
    chunk_size_log2: 22,
    chain_table: 1,
    stripe: 8,
    seed: 7,
};
const EXTENT_BYTES: u64 = 8 << 20;
/// Extents of a file as the largest multipart upload makes it.
const EXTENTS: u64 = 10_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let blob = Content::Blob {
        blob: BlobId(0x1000),
        layout: LAYOUT,
    };
    let extents = (0..EXTENTS).map(|number| Extent {
        file_offset: number * EXTENT_BYTES,
        len_bytes: EXTENT_BYTES,
        blob: BlobId(0x1000 + number),
        blob_offset: 0,
        layout: LAYOUT,
    });
    let extents = Content::Extents(extents.collect());
    let middle = EXTENTS / 2 * EXTENT_BYTES + 12345;
    let cases = [
        ("4 KiB of a blob", &blob, 4 << 10),
        ("64 MiB of a blob", &blob, 64 << 20),
        ("4 KiB of 10,000 extents", &extents, 4 << 10),
        ("64 MiB of 10,000 extents", &extents, 64 << 20),
    ];
    for (name, content, len) in cases {
        criterion.bench_function(&format!("plan/{name}"), |bencher| {
            bencher.iter(|| plan::plan(black_box(content), middle, len));
        });
    }
    criterion.final_summary();
}
