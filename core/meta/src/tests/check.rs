//! The check while others write: it must not take what it saw at different moments for a defect, and must see a real one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use janusfs_env::{clock, tasks};
use janusfs_kv::{Durability, Kv, MemKv, RocksKv, RocksKvOptions, Txn};
use janusfs_types::{DentryName, FileKind, FsError, InodeId};
use janusfs_wire::meta::{Fsck, Link, Rename, RenameMode, Rmdir, Spill, Truncate, Unlink};

use super::{layout, open};
use crate::{
    Meta, MetaError,
    fsck::CheckSlot,
    store::{dentry, usage},
};

const WRITERS: u64 = 3;
/// Files that are there before the writers come: several pages of each kind of row.
const FILES: u64 = 5_000;
/// Files of [`under_writes`] that no writer touches: what a check may not overlook.
const STILL: u64 = 2_000;
/// Checks under writes.
const CHECKS: u64 = 8;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// One change of a random kind in a random place. Writers meet, so what one expects may be gone.
async fn change<K: Kv>(meta: &Meta<K>, dirs: &[InodeId], random: &mut u64) {
    let mut draw = |below: u64| {
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*random >> 33) % below
    };
    let dir = |number: u64| dirs[usize::try_from(number).unwrap() % dirs.len()];
    let (parent, name) = (dir(draw(64)), format!("f{}", draw(FILES / 8)));
    let (new_parent, new_name) = (dir(draw(64)), format!("f{}", draw(FILES / 8)));
    let name_bytes = bytes(&name);
    match draw(8) {
        0 => {
            let _ = meta.make(parent, &name, FileKind::Regular).await;
        }
        1 | 2 => {
            let rename = Rename {
                parent,
                name: name_bytes,
                new_parent,
                new_name: bytes(&new_name),
                mode: RenameMode::Replace,
            };
            let _ = meta.rename(rename).await;
        }
        3 => {
            let unlink = Unlink {
                parent,
                name: name_bytes,
            };
            let _ = meta.unlink(unlink).await;
        }
        4 => {
            if let Ok(attr) = meta.at(parent, &name).await {
                let link = Link {
                    inode: attr.inode,
                    parent: new_parent,
                    name: bytes(&new_name),
                };
                let _ = meta.link(link).await;
            }
        }
        5 => {
            if let Ok(attr) = meta.at(parent, &name).await {
                let truncate = Truncate {
                    inode: attr.inode,
                    size: draw(10_000),
                };
                let _ = meta.truncate(truncate).await;
            }
        }
        6 => {
            let name = format!("d{}", draw(4));
            if meta.make(parent, &name, FileKind::Directory).await.is_err() {
                let name = bytes(&name);
                let _ = meta.rmdir(Rmdir { parent, name }).await;
            }
        }
        _ => {
            if let Ok(attr) = meta.at(parent, &name).await {
                let spill = Spill {
                    inode: attr.inode,
                    expected: attr.data_version,
                    blob: attr.inode.own_blob(),
                    layout: layout(),
                };
                let _ = meta.spill(spill).await;
            }
        }
    }
}

async fn filled<K: Kv>(kv: K) -> (Arc<Meta<K>>, Arc<Vec<InodeId>>) {
    let meta = Arc::new(open(kv).await);
    let mut dirs = vec![InodeId::ROOT];
    for number in 0..7 {
        dirs.push(meta.dir(InodeId::ROOT, &format!("dir{number}")).await);
    }
    for number in 0..FILES {
        let parent = dirs[usize::try_from(number).unwrap() % dirs.len()];
        meta.file(parent, &format!("f{}", number / 8)).await;
    }
    (meta, Arc::new(dirs))
}

async fn under_writes<K: Kv>(kv: K) {
    let (meta, dirs) = filled(kv).await;
    let still = meta.dir(InodeId::ROOT, "still").await;
    for number in 0..STILL {
        meta.file(still, &number.to_string()).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (meta, dirs) = (Arc::clone(&meta), Arc::clone(&dirs));
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        writers.push(tasks::spawn(async move {
            let mut random = writer + 1;
            while !stop.load(Ordering::Relaxed) {
                change(&meta, &dirs, &mut random).await;
                let changes = done.fetch_add(1, Ordering::Relaxed);
                if writer == 0 && changes % 64 == 0 {
                    meta.reclaim_now().await;
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    for run in 0..CHECKS {
        let report = loop {
            // Every step meets other writes, however the threads are scheduled.
            let before = done.load(Ordering::Relaxed);
            while done.load(Ordering::Relaxed) == before {
                tokio::task::yield_now().await;
            }
            let report = meta.fsck(Fsck { run }).await.unwrap();
            if report.done {
                break report;
            }
        };
        assert_eq!(report.changing, 0);
        assert_eq!(report.findings, []);
        assert!(report.inodes > STILL);
    }
    // A defect is found under the same writes: on what no writer touches, and in a figure that all of them change.
    let mut txn = meta.kv.begin();
    let lost = dentry::Dentry {
        inode: InodeId(1 << 50),
        kind: FileKind::Regular,
    };
    dentry::put(
        &mut txn,
        InodeId::ROOT,
        &DentryName::file(b"lost").unwrap(),
        lost,
    );
    usage::add(&mut txn, InodeId::ROOT, 5, 0);
    txn.commit(Durability::Soon).await.unwrap();
    let texts: Vec<String> = meta
        .checked()
        .await
        .findings
        .into_iter()
        .map(|found| found.text)
        .collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].starts_with("entry \"lost\" in "), "{texts:?}");
    assert!(texts[1].contains(" entries and has "), "{texts:?}");
    assert!(texts[2].contains("its figures say"), "{texts:?}");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_changes_in_memory_has_no_false_finding() {
    under_writes(MemKv::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_changes_in_rocksdb_has_no_false_finding() {
    let dir = tempfile::tempdir().unwrap();
    under_writes(RocksKv::open(dir.path(), RocksKvOptions::default()).unwrap()).await;
}

#[tokio::test]
async fn one_check_at_a_time_and_a_step_may_be_cut_off() {
    let (meta, _) = filled(MemKv::default()).await;
    assert!(!meta.fsck(Fsck { run: 1 }).await.unwrap().done);
    let other = meta.fsck(Fsck { run: 2 }).await;
    assert!(matches!(
        other.map_err(MetaError::into_fs),
        Err(FsError::Busy)
    ));
    let report = loop {
        // `None`: cut off at a wait, as by a caller that goes away. The next step goes on.
        match meta.fsck(Fsck { run: 1 }).now_or_never() {
            Some(report) if !report.as_ref().unwrap().done => {}
            Some(report) => break report.unwrap(),
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(report.findings, []);
    assert_eq!(report.inodes, FILES + 8);
    assert_eq!(report.entries, FILES + 7);
}

#[tokio::test]
async fn a_check_whose_caller_stays_away_is_forgotten() {
    let (meta, _) = filled(MemKv::default()).await;
    assert!(!meta.fsck(Fsck { run: 1 }).await.unwrap().done);
    meta.forget_idle_check(clock::now());
    assert!(!matches!(*meta.check.lock(), CheckSlot::None));
    meta.forget_idle_check(clock::now() + Duration::from_secs(3600));
    assert!(matches!(*meta.check.lock(), CheckSlot::None));
    meta.assert_clean().await;
}
