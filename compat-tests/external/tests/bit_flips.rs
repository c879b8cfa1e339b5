//! Bits that flip on a disk: noticed by whoever reads, never returned, mended from another replica, counted.
//!
//! The test finds an object's bytes in the data files of a stopped node by looking for them, and changes a few.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use aws_sdk_s3::Client;
use janusfs_external::{
    MountedNode, ONE_TARGET, THREE_REPLICAS, TestNode, janusfs,
    raw_s3::Request,
    s3::{get, pattern, put, root, status},
    wait_until,
};
use rustix::io::Errno;

const BUCKET: &str = "bits";
/// Default chunk size.
const CHUNK: usize = 4 << 20;

/// What is stored: several chunks, one part of a chunk, and a file written through the mount.
fn contents() -> [(&'static str, Vec<u8>); 3] {
    [
        ("large", pattern(2 * CHUNK + 12_345, 1)),
        ("medium", pattern(100_000, 2)),
        ("mounted", pattern(CHUNK + 777, 3)),
    ]
}

async fn store(mounted: &MountedNode) -> Client {
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let [large, medium, file] = contents();
    put(&s3, BUCKET, large.0, large.1).await.unwrap();
    put(&s3, BUCKET, medium.0, medium.1).await.unwrap();
    fs::write(mounted.path().join(BUCKET).join(file.0), file.1).unwrap();
    s3
}

fn data_files(data: &Path, target: u32) -> Vec<PathBuf> {
    let dir = data.join("targets").join(target.to_string()).join("data");
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Finds where a target keeps some bytes: slots are aligned to 64 KiB.
fn find(data: &Path, target: u32, chunk: &[u8]) -> Option<(PathBuf, u64)> {
    data_files(data, target).into_iter().find_map(|path| {
        let bytes = fs::read(&path).unwrap();
        let at = (0..bytes.len())
            .step_by(64 << 10)
            .find(|at| bytes[*at..].starts_with(chunk))?;
        Some((path, u64::try_from(at).unwrap()))
    })
}

/// Flips one bit at each of three places of every chunk of an object.
fn flip(data: &Path, target: u32, content: &[u8]) {
    for chunk in content.chunks(CHUNK) {
        let (path, at) = find(data, target, chunk).unwrap();
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        for place in [0, chunk.len() / 2, chunk.len() - 1] {
            let at = at + u64::try_from(place).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
        file.sync_all().unwrap();
        assert_eq!(find(data, target, chunk), None);
    }
}

fn metric(node: &TestNode, name: &str) -> u64 {
    let answer = Request::new("GET", "/metrics")
        .send(&node.endpoints().admin)
        .unwrap();
    let line = answer
        .body
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().trim().parse().unwrap()
}

fn damaged(node: &TestNode) -> (u64, u64) {
    let found = metric(node, "janusfs_chunk_corruptions_total");
    (found, metric(node, "janusfs_chunk_repairs_total"))
}

fn fsck(data: &Path) -> (Option<i32>, serde_json::Value) {
    let output = janusfs(&["fsck", "--output", "json", "--data", data.to_str().unwrap()]).unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

async fn read_by_both_doors(mounted: &MountedNode, s3: &Client) {
    for (name, bytes) in contents() {
        assert!(
            get(s3, BUCKET, name).await.unwrap() == bytes,
            "{name} over S3"
        );
        let path = mounted.path().join(BUCKET).join(name);
        assert!(fs::read(path).unwrap() == bytes, "{name} on the mount");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_is_noticed_and_mended() {
    let mut mounted = MountedNode::start(&THREE_REPLICAS).unwrap();
    store(&mounted).await;
    let data = mounted.node.data().to_owned();
    let mut noticed_by_readers = 0;
    for target in 1..=3 {
        assert!(mounted.node.terminate().unwrap().success());
        for (_, bytes) in contents() {
            flip(&data, target, &bytes);
        }
        mounted.node.restart().unwrap();
        let s3 = root(&mounted.node);
        assert_eq!(damaged(&mounted.node), (0, 0));
        for _ in 0..4 {
            read_by_both_doors(&mounted, &s3).await;
        }
        wait_until("repairs of what readers noticed", || {
            let (found, repaired) = damaged(&mounted.node);
            Ok(found == 0 || repaired > 0)
        })
        .unwrap();
        noticed_by_readers += damaged(&mounted.node).0;
        // The check reads every replica: what no reader met is mended now, and nothing is left the second time.
        let (exit, _) = fsck(&data);
        assert_eq!(exit, Some(0));
        let (found, repaired) = damaged(&mounted.node);
        // Six chunks, and each may be noticed by several readers before it is mended.
        assert!(
            found >= 6 && repaired >= 6,
            "{found} found, {repaired} repaired"
        );
        let (exit, report) = fsck(&data);
        assert_eq!(
            (exit, &report["repaired"]),
            (Some(0), &0.into()),
            "{report}"
        );
        let status = janusfs(&["status", "--data", data.to_str().unwrap()]).unwrap();
        let words = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(
            status.status.success() && words.starts_with("healthy"),
            "{words}"
        );
        read_by_both_doors(&mounted, &s3).await;

        assert!(mounted.node.terminate().unwrap().success());
        for (name, bytes) in contents() {
            for chunk in bytes.chunks(CHUNK) {
                let found = find(&data, target, chunk);
                assert!(found.is_some(), "{name} is not whole on target {target}");
            }
        }
        let (exit, report) = fsck(&data);
        let clean = (&report["repaired"], &report["lost"]) == (&0.into(), &serde_json::json!([]));
        assert!(exit == Some(0) && clean, "{report}");
        mounted.node.restart().unwrap();
    }
    assert!(noticed_by_readers > 0, "no reader met a damaged replica");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_another_replica_damage_is_an_error_and_never_wrong_bytes() {
    let mut mounted = MountedNode::start(&ONE_TARGET).unwrap();
    store(&mounted).await;
    let data = mounted.node.data().to_owned();
    assert!(mounted.node.terminate().unwrap().success());
    let [large, medium, _] = contents();
    flip(&data, 1, &medium.1);
    // Of the large one, only the second chunk.
    flip(&data, 1, &large.1[CHUNK..2 * CHUNK]);
    mounted.node.restart().unwrap();
    let s3 = root(&mounted.node);
    let top = mounted.path().join(BUCKET);

    let refused = s3.get_object().bucket(BUCKET).key(medium.0).send().await;
    assert_eq!(status(refused), Some(500));
    let error = fs::read(top.join(medium.0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    // The start of the large one is sound and has been sent when the damage is met: the body breaks off.
    assert!(get(&s3, BUCKET, large.0).await.is_err());
    let file = File::open(top.join(large.0)).unwrap();
    let mut chunk = vec![0; CHUNK];
    file.read_exact_at(&mut chunk, 0).unwrap();
    assert!(chunk == large.1[..CHUNK]);
    let at = u64::try_from(CHUNK).unwrap();
    let error = file.read_exact_at(&mut chunk, at).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    let mut rest = vec![0; 12_345];
    file.read_exact_at(&mut rest, 2 * at).unwrap();
    assert!(rest == large.1[2 * CHUNK..]);
    let range = format!("bytes={}-", 2 * CHUNK);
    let range = s3
        .get_object()
        .bucket(BUCKET)
        .key(large.0)
        .range(range)
        .send()
        .await
        .unwrap();
    assert!(range.body.collect().await.unwrap().to_vec() == large.1[2 * CHUNK..]);
    let bad = format!("bytes={CHUNK}-{}", CHUNK + 100);
    let bad = s3
        .get_object()
        .bucket(BUCKET)
        .key(large.0)
        .range(bad)
        .send()
        .await;
    assert_eq!(status(bad), Some(500));

    let (found, repaired) = damaged(&mounted.node);
    assert!(
        found >= 2 && repaired == 0,
        "{found} found, {repaired} repaired"
    );
    let (exit, report) = fsck(&data);
    assert_eq!(exit, Some(3));
    assert_eq!(report["lost"].as_array().unwrap().len(), 2, "{report}");
    let shown = janusfs(&["status", "--data", data.to_str().unwrap()]).unwrap();
    assert_eq!(
        shown.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&shown.stdout)
    );

    // Writing them anew is all it takes, once nobody has the old bytes open.
    drop(file);
    put(&s3, BUCKET, medium.0, medium.1).await.unwrap();
    fs::write(top.join(large.0), &large.1).unwrap();
    read_by_both_doors(&mounted, &s3).await;
    wait_until("the damaged chunks' reclamation", || {
        Ok(fsck(&data).0 == Some(0))
    })
    .unwrap();
}
