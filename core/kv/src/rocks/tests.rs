use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::conformance;

fn open(dir: &Path) -> RocksKv {
    RocksKv::open(dir, RocksKvOptions::default()).unwrap()
}

async fn put(kv: &RocksKv, key: &[u8], value: &[u8], durability: Durability) {
    let mut txn = kv.begin();
    txn.set(key, value);
    txn.commit(durability).await.unwrap();
}

#[test]
fn conforms_where_blocking_is_allowed() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let root = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    let make = || {
        open(
            &root
                .path()
                .join(count.fetch_add(1, Ordering::Relaxed).to_string()),
        )
    };
    tasks::block_on(runtime.unwrap().handle(), conformance::all(make));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_workers() {
    let root = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    conformance::all(|| {
        open(
            &root
                .path()
                .join(count.fetch_add(1, Ordering::Relaxed).to_string()),
        )
    })
    .await;
}

#[tokio::test]
async fn reads_of_what_is_not_cached_reach_the_disk_from_a_worker() {
    let dir = tempfile::tempdir().unwrap();
    {
        let kv = open(dir.path());
        for number in 0..1000u32 {
            put(&kv, &number.to_be_bytes(), &[7; 100], Durability::Soon).await;
        }
        kv.store.db.flush().unwrap();
    }
    let kv = open(dir.path());
    assert!(!tasks::may_block());
    let view = kv.begin().view().unwrap();
    let cached = view.read(&500u32.to_be_bytes(), ReadTier::BlockCache);
    assert_eq!(
        cached.unwrap_err().kind(),
        ErrorKind::Incomplete,
        "the block is not in memory yet"
    );
    drop(view);
    let keys: Vec<Vec<u8>> = (0..1100u32)
        .map(|number| number.to_be_bytes().into())
        .collect();
    let many = kv.begin().get_many_snapshot(&keys).await.unwrap();
    let expected = (0..1100).map(|number| (number < 1000).then_some(&[7; 100][..]));
    assert!(many.iter().map(|value| value.as_deref()).eq(expected));
    drop(kv);
    let kv = open(dir.path());
    let view = kv.begin().view().unwrap();
    let mut txn = kv.begin();
    assert_eq!(txn.range(&[0], &[1], 2000).await.unwrap().len(), 1000);
    let value = txn.get(&500u32.to_be_bytes()).await.unwrap();
    assert_eq!(value.as_deref(), Some(&[7; 100][..]));
    let cached = view.read(&500u32.to_be_bytes(), ReadTier::BlockCache);
    assert!(cached.unwrap().is_some(), "the block is in memory now");
}

#[tokio::test]
async fn a_reopened_store_has_every_commit() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u32 {
        let kv = open(dir.path());
        for number in 0..50u32 {
            put(
                &kv,
                format!("{round}/{number}").as_bytes(),
                b"x",
                Durability::Soon,
            )
            .await;
        }
    }
    let kv = open(dir.path());
    assert_eq!(kv.begin().range(b"0", b"9", 1000).await.unwrap().len(), 150);
}

#[tokio::test]
async fn a_durable_commit_syncs_once_for_all_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let kv = open(dir.path());
    put(&kv, b"a", b"", Durability::Soon).await;
    put(&kv, b"b", b"", Durability::Now).await;
    // Served without another sync: this one would fail.
    let unreachable = || -> Result<(), rocksdb::Error> { panic!("already on stable storage") };
    kv.store.syncer.wait(2, unreachable).unwrap();
}

#[test]
fn a_second_opener_is_told_that_the_store_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let _kv = open(dir.path());
    let second = RocksKv::open(dir.path(), RocksKvOptions::default());
    assert!(
        matches!(second, Err(OpenError::Locked { .. })),
        "{:?}",
        second.err()
    );
}

#[test]
fn a_newer_or_foreign_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let format = dir.path().join("FORMAT");
    assert_eq!(std::fs::read_to_string(&format).unwrap(), "janusfs-kv 1\n");
    std::fs::write(&format, "janusfs-kv 2\n").unwrap();
    let newer = RocksKv::open(dir.path(), RocksKvOptions::default()).err();
    assert!(
        matches!(
            newer,
            Some(OpenError::NewerFormat {
                found: 2,
                supported: 1
            })
        ),
        "{newer:?}"
    );
    std::fs::write(&format, "something else").unwrap();
    let foreign = RocksKv::open(dir.path(), RocksKvOptions::default()).err();
    assert!(
        matches!(foreign, Some(OpenError::NotAStore { .. })),
        "{foreign:?}"
    );
    std::fs::remove_file(&format).unwrap();
    let absent = RocksKv::open(dir.path(), RocksKvOptions::default()).err();
    assert!(matches!(absent, Some(OpenError::Io { .. })), "{absent:?}");
}

#[tokio::test]
async fn after_a_failed_sync_the_store_reads_but_does_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let kv = open(dir.path());
    put(&kv, b"a", b"1", Durability::Now).await;
    put(&kv, b"b", b"1", Durability::Soon).await;
    let failure = DB::open(&Options::default(), dir.path().join("FORMAT/db")).unwrap_err();
    // The log's sync, failing once the way a broken disk makes it fail; nothing can be called synced afterwards.
    let _ = kv.store.syncer.wait(u64::MAX, || Err(failure.clone()));
    let mut txn = kv.begin();
    txn.set(b"c", b"1");
    let now = txn.commit(Durability::Now).await;
    assert!(
        matches!(
            now,
            Err(KvError::CommitUnknown(_) | KvError::Unavailable(_))
        ),
        "{now:?}"
    );
    let mut txn = kv.begin();
    txn.set(b"d", b"1");
    let later = txn.commit(Durability::Soon).await;
    assert!(
        matches!(&later, Err(KvError::Unavailable(reason)) if reason.contains("sync")),
        "{later:?}"
    );
    assert!(matches!(kv.sync().await, Err(KvError::Unavailable(_))));
    assert_eq!(
        kv.begin().get(b"a").await.unwrap().as_deref(),
        Some(&b"1"[..])
    );
}

#[tokio::test]
async fn a_transaction_that_outlives_the_store_cannot_commit() {
    let dir = tempfile::tempdir().unwrap();
    let kv = open(dir.path());
    put(&kv, b"a", b"1", Durability::Soon).await;
    let mut txn = kv.begin();
    txn.set(b"b", b"1");
    drop(kv);
    assert_eq!(txn.get(b"a").await.unwrap().as_deref(), Some(&b"1"[..]));
    let done = txn.commit(Durability::Soon).await;
    assert!(matches!(done, Err(KvError::Unavailable(_))), "{done:?}");
}

#[test]
fn a_disk_below_the_reserve_has_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let kv = RocksKv::open(dir.path(), RocksKvOptions::default()).unwrap();
    assert!(kv.has_room());
    drop(kv);
    let options = RocksKvOptions {
        free_min_bytes: u64::MAX,
        ..RocksKvOptions::default()
    };
    let kv = RocksKv::open(dir.path(), options).unwrap();
    assert!(!kv.has_room());
}
