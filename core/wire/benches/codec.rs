//! Encoding and decoding: a small message, and a full page of a directory.

use std::hint::black_box;

use bytes::Bytes;
use criterion::Criterion;
use janusfs_types::{Attr, DataVersion, FileKind, InodeId, Times};
use janusfs_wire::{
    Wire,
    meta::{DirEntry, DirPage, Lookup},
};

fn attr(number: u64) -> Attr {
    Attr {
        inode: InodeId(number),
        kind: FileKind::Regular,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        nlink: 1,
        size: 4096,
        rdev: 0,
        times: Times::default(),
        data_version: DataVersion(7),
    }
}

fn page() -> DirPage {
    let entries = (0..1000).map(|number: u64| {
        let name = Bytes::from(format!("sample-{number:06}.npy"));
        DirEntry {
            name: name.clone(),
            attr: attr(number),
            cursor: name,
        }
    });
    DirPage {
        entries: entries.collect(),
        end: true,
    }
}

fn both<M: Wire>(criterion: &mut Criterion, name: &str, message: &M) {
    criterion.bench_function(&format!("encode/{name}"), |bencher| {
        bencher.iter(|| black_box(message).to_wire());
    });
    let bytes = message.to_wire();
    criterion.bench_function(&format!("decode/{name}"), |bencher| {
        bencher.iter(|| M::from_wire(black_box(&bytes)));
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let lookup = Lookup {
        parent: InodeId(0x1234),
        name: Bytes::from_static(b"sample-000001.npy"),
    };
    both(&mut criterion, "lookup", &lookup);
    both(&mut criterion, "directory page of 1000", &page());
    criterion.final_summary();
}
