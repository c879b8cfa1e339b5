//! Keys, reads and commits of both stores. Commits are of one key of an inode record's size, not synced: what a metadata
//! call does at least.
#![allow(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use std::hint::black_box;

use criterion::Criterion;
use janusfs_env::tasks;
use janusfs_kv::{Durability, KeyBuilder, Kv, MemKv, RocksKv, RocksKvOptions, Txn as _};
use tokio::runtime::Runtime;

const VALUE: [u8; 120] = [7; 120];
/// Keys that are written over and over.
const KEYS: u64 = 10_000;

fn key(number: u64) -> bytes::Bytes {
    KeyBuilder::new(b"INOD").u64(number).build()
}

fn store<K: Kv>(criterion: &mut Criterion, runtime: &Runtime, name: &str, kv: &K) {
    let mut number = 0;
    criterion.bench_function(&format!("commit/{name}"), |bencher| {
        bencher.iter(|| {
            number = (number + 1) % KEYS;
            let mut txn = kv.begin();
            txn.set(&key(number), &VALUE);
            tasks::block_on(runtime.handle(), txn.commit(Durability::Soon)).unwrap();
        });
    });
    criterion.bench_function(&format!("read and commit/{name}"), |bencher| {
        bencher.iter(|| {
            number = (number + 1) % KEYS;
            tasks::block_on(runtime.handle(), async {
                let mut txn = kv.begin();
                black_box(txn.get(&key(number)).await.unwrap());
                txn.set(&key(number), &VALUE);
                txn.commit(Durability::Soon).await.unwrap();
            });
        });
    });
    criterion.bench_function(&format!("get/{name}"), |bencher| {
        bencher.iter(|| {
            number = (number + 1) % KEYS;
            let mut txn = kv.begin();
            tasks::block_on(runtime.handle(), txn.get(&key(number))).unwrap()
        });
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("key/dentry", |bencher| {
        bencher.iter(|| {
            let key = KeyBuilder::new(b"DENT").u64(black_box(0x1234));
            key.bytes(black_box(b"sample-000001.npy")).build()
        });
    });
    let runtime = Runtime::new().unwrap();
    store(&mut criterion, &runtime, "mem", &MemKv::default());
    let dir = tempfile::tempdir().unwrap();
    let rocks = RocksKv::open(dir.path(), RocksKvOptions::default()).unwrap();
    store(&mut criterion, &runtime, "rocks", &rocks);
    drop(rocks);
    criterion.final_summary();
}
