//! A full disk: both doors say so, what was acknowledged stays readable, deleting makes room again, nothing needs mending.
//!
//! The data directory is on a small tmpfs. Mounting one takes root; without it these tests say on standard error that they
//! were skipped, and pass.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use aws_sdk_s3::{Client, primitives::ByteStream};
use janusfs_external::{
    MountedNode, janusfs,
    raw_s3::Request,
    s3::{code, get, pattern, put, root},
    wait_until,
};
use rustix::io::Errno;

const BUCKET: &str = "full";
const MIB: usize = 1 << 20;
/// Free space that a target keeps for metadata and deletes: `TARGET_FREE_MIN_BYTES`.
const RESERVE: usize = 256 * MIB;

/// A tmpfs of its own; unmounted at the end.
struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    fn new(mebibytes: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            // Past the capture of the test harness: a skip must be seen.
            let _ = writeln!(
                io::stderr(),
                "SKIPPED: a small disk needs root to mount a tmpfs"
            );
            return None;
        }
        let directory = tempfile::tempdir().unwrap().keep();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mebibytes}m"),
                "janusfs-test",
            ])
            .arg(&directory)
            .status();
        assert!(mounted.unwrap().success());
        Some(Self { directory })
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn free(&self) -> usize {
        let stat = rustix::fs::statvfs(&self.directory).unwrap();
        usize::try_from(stat.f_bavail * stat.f_frsize).unwrap()
    }

    /// Takes up space until only `left` bytes are free. Something else than JanusFS fills disks, too.
    fn take(&self, left: usize) -> PathBuf {
        let path = self.directory.join("ballast");
        let file = File::create(&path).unwrap();
        let mut len = self.free().saturating_sub(left);
        let none = rustix::fs::FallocateFlags::empty();
        // The node writes, too: what was free a moment ago may be gone.
        while let Err(error) = rustix::fs::fallocate(&file, none, 0, u64::try_from(len).unwrap()) {
            assert_eq!(error, Errno::NOSPC);
            len -= 64 << 10;
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg("-l")
            .arg(&self.directory)
            .status();
        let removed = fs::remove_dir(&self.directory);
        if !std::thread::panicking() {
            assert!(unmounted.unwrap().success());
            removed.unwrap();
        }
    }
}

#[track_caller]
fn is_full(result: io::Result<()>) {
    let error = result.unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(Errno::NOSPC.raw_os_error()),
        "{error}"
    );
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

async fn check(s3: &Client, mount: &Path, stored: &BTreeMap<String, Vec<u8>>) {
    for (key, bytes) in stored {
        assert!(
            get(s3, BUCKET, key).await.unwrap() == *bytes,
            "{key} over S3"
        );
        assert!(
            fs::read(mount.join(BUCKET).join(key)).unwrap() == *bytes,
            "{key} on the mount"
        );
    }
}

fn fsck_is_clean(data: &Path) {
    let mut text = String::new();
    let clean = wait_until("a check that finishes", || {
        let output = janusfs(&["fsck", "--data", data.to_str().unwrap()])?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        text = String::from_utf8_lossy(&output.stdout).into_owned() + &error;
        // On a slow machine the metadata is not read within the life of a transaction.
        Ok(!error.contains("busy"))
    });
    assert!(
        clean.is_ok() && text.contains("0 repaired, 0 lost\nclean"),
        "{text}"
    );
}

/// PUTs until the door refuses; returns the number of objects stored.
async fn fill(s3: &Client, len: usize, stored: &mut BTreeMap<String, Vec<u8>>) -> usize {
    for number in 0..100_000 {
        let key = format!("fill-{len}-{number:05}");
        let bytes = pattern(len, number);
        let put = s3
            .put_object()
            .bucket(BUCKET)
            .key(&key)
            .body(ByteStream::from(bytes.clone()));
        match put.send().await {
            Ok(_) => drop(stored.insert(key, bytes)),
            Err(error) => {
                assert_eq!(
                    error.raw_response().map(|raw| raw.status().as_u16()),
                    Some(507)
                );
                assert_eq!(
                    code::<(), _, _>(Err(error)).as_deref(),
                    Some("XJanusFSStorageFull")
                );
                return usize::try_from(number).unwrap();
            }
        }
    }
    panic!("the disk never filled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_deleting_makes_room() {
    let Some(disk) = SmallDisk::new(768) else {
        return;
    };
    let mut mounted = MountedNode::start_on::<&str>(&disk.data(), &[]).unwrap();
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let top = mounted.path().join(BUCKET);
    let mut stored = BTreeMap::new();
    let objects = fill(&s3, 6 * MIB, &mut stored).await;
    assert!(objects >= 10, "only {objects} objects fitted");
    is_full(write_synced(&top.join("large"), &pattern(20 * MIB, 7)));
    fs::remove_file(top.join("large")).unwrap();
    // A client that is in the middle of a large body hears it too: one that reads while it sends, and one that does not.
    let large = pattern(64 * MIB, 11);
    let put_large = s3.put_object().bucket(BUCKET).key("large");
    let put_large = put_large.body(ByteStream::from(large.clone())).send().await;
    assert_eq!(code(put_large).as_deref(), Some("XJanusFSStorageFull"));
    let address = &mounted.node.endpoints().s3;
    let answer = Request::new("PUT", &format!("/{BUCKET}/large"))
        .body(large)
        .sign(address, mounted.node.credentials())
        .send_to_the_end(address)
        .unwrap();
    assert_eq!(answer.status, 507, "{answer:?}");
    assert_eq!(answer.code(), "XJanusFSStorageFull");
    // An upload in parts is refused alike, and what it holds goes with it.
    let upload = s3
        .create_multipart_upload()
        .bucket(BUCKET)
        .key("parts")
        .send()
        .await
        .unwrap();
    let upload = upload.upload_id().unwrap();
    let part = s3
        .upload_part()
        .bucket(BUCKET)
        .key("parts")
        .upload_id(upload)
        .part_number(1);
    let part = part
        .body(ByteStream::from(pattern(8 * MIB, 8)))
        .send()
        .await;
    assert_eq!(code(part).as_deref(), Some("XJanusFSStorageFull"));
    s3.abort_multipart_upload()
        .bucket(BUCKET)
        .key("parts")
        .upload_id(upload)
        .send()
        .await
        .unwrap();
    // Names and small files still have room: the reserve is for them.
    put(&s3, BUCKET, "small", b"small".to_vec()).await.unwrap();
    stored.insert("small".into(), b"small".to_vec());
    fs::create_dir(top.join("directory")).unwrap();
    check(&s3, mounted.path(), &stored).await;

    // Room made through one door is room for the other.
    let keys: Vec<String> = stored
        .keys()
        .filter(|key| key.starts_with("fill"))
        .cloned()
        .collect();
    let (first, second) = (&keys[..4], &keys[4..8]);
    for key in first {
        s3.delete_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await
            .unwrap();
        stored.remove(key);
    }
    let again = top.join("again");
    wait_until("room after DeleteObject", || {
        Ok(write_synced(&again, &pattern(6 * MIB, 9)).is_ok())
    })
    .unwrap();
    stored.insert("again".into(), pattern(6 * MIB, 9));
    for key in second {
        fs::remove_file(top.join(key)).unwrap();
        stored.remove(key);
    }
    let s3_again = || async {
        let put = s3.put_object().bucket(BUCKET).key("again-s3");
        put.body(ByteStream::from(pattern(6 * MIB, 10)))
            .send()
            .await
            .is_ok()
    };
    let runtime = tokio::runtime::Handle::current();
    wait_until("room after unlink", || {
        Ok(tokio::task::block_in_place(|| runtime.block_on(s3_again())))
    })
    .unwrap();
    stored.insert("again-s3".into(), pattern(6 * MIB, 10));
    check(&s3, mounted.path(), &stored).await;

    fill(&s3, 4 * MIB, &mut stored).await;
    assert!(mounted.node.terminate().unwrap().success());
    fsck_is_clean(&disk.data());
    mounted.node.restart().unwrap();
    check(&root(&mounted.node), mounted.path(), &stored).await;
    mounted.node.restart().unwrap();
    check(&root(&mounted.node), mounted.path(), &stored).await;
    fsck_is_clean(&disk.data());
}

/// Files that live inside their inodes fill the metadata store: it must refuse while it can still delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_full_of_small_files_can_be_cleared() {
    let Some(disk) = SmallDisk::new(448) else {
        return;
    };
    let mut mounted = MountedNode::start_on::<&str>(&disk.data(), &[]).unwrap();
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let top = mounted.path().join(BUCKET);
    let ballast = disk.take(RESERVE);
    let mut names = Vec::new();
    loop {
        let number = u64::try_from(names.len()).unwrap();
        assert!(number < 100_000, "the disk never filled");
        let path = top.join(format!("small-{number:05}"));
        let Err(full) = fs::write(&path, pattern(4096, number)) else {
            names.push(path);
            continue;
        };
        assert_eq!(
            full.raw_os_error(),
            Some(Errno::NOSPC.raw_os_error()),
            "{full}"
        );
        // `fs::write` does not look at what `close` answers: the last file may be the one whose bytes did not fit.
        if let Some(last) = names.pop() {
            fs::remove_file(last).unwrap();
        }
        // Full is it once both doors refuse: a log that is being rewritten takes room for a moment.
        let put = s3.put_object().bucket(BUCKET).key("one-more");
        let put = put.body(ByteStream::from(pattern(4096, 1))).send().await;
        if put.is_err() {
            assert_eq!(code(put).as_deref(), Some("XJanusFSStorageFull"));
            break;
        }
    }
    assert!(names.len() > 1000, "only {} files fitted", names.len());
    for (path, number) in names.iter().zip(0..) {
        assert!(
            fs::read(path).unwrap() == pattern(4096, number),
            "{}",
            path.display()
        );
    }
    // Deleting works while the disk is full, by both doors.
    let (by_mount, by_s3) = names.split_at(names.len() / 2);
    for path in by_mount {
        fs::remove_file(path).unwrap();
    }
    for path in by_s3.iter().take(100) {
        let key = path.file_name().unwrap().to_str().unwrap();
        s3.delete_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await
            .unwrap();
    }
    fs::remove_file(ballast).unwrap();
    let mut refused = None;
    let room = wait_until("room", || {
        refused = fs::write(top.join("after"), pattern(4096, 2)).err();
        Ok(refused.is_none())
    });
    assert!(room.is_ok(), "{refused:?} with {} bytes free", disk.free());
    put_retrying(&s3).await;
    assert!(mounted.node.terminate().unwrap().success());
    fsck_is_clean(&disk.data());
    mounted.node.restart().unwrap();
    assert!(fs::read(top.join("after")).unwrap() == pattern(4096, 2));
    for (path, number) in names.iter().zip(0..).skip(by_mount.len() + 100) {
        assert!(
            fs::read(path).unwrap() == pattern(4096, number),
            "{}",
            path.display()
        );
    }
}

async fn put_retrying(s3: &Client) {
    put(s3, BUCKET, "after-s3", pattern(100_000, 3))
        .await
        .unwrap();
    assert!(get(s3, BUCKET, "after-s3").await.unwrap() == pattern(100_000, 3));
}

/// Something else takes the last byte: the node answers with errors, serves what it has, and is whole after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_filled_by_others_costs_nothing_that_was_acknowledged() {
    let Some(disk) = SmallDisk::new(448) else {
        return;
    };
    let mut mounted = MountedNode::start_on::<&str>(&disk.data(), &[]).unwrap();
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let top = mounted.path().join(BUCKET);
    let mut stored = BTreeMap::new();
    for number in 0..8 {
        let key = format!("before-{number}");
        put(&s3, BUCKET, &key, pattern(MIB, number)).await.unwrap();
        stored.insert(key, pattern(MIB, number));
    }
    let ballast = disk.take(0);
    let mut refused = 0;
    for number in 0..200 {
        let key = format!("during-{number:03}");
        let put = s3.put_object().bucket(BUCKET).key(&key);
        // Small ones go into the metadata store, the others to the targets.
        let bytes = pattern(if number % 2 == 0 { 3000 } else { 100_000 }, number);
        match put.body(ByteStream::from(bytes.clone())).send().await {
            Ok(_) => drop(stored.insert(key, bytes)),
            Err(error) => {
                refused += 1;
                let status = error.raw_response().map(|raw| raw.status().as_u16());
                assert!(matches!(status, Some(500 | 503 | 507)), "{status:?}");
            }
        }
        let path = top.join(format!("mount-{number:03}"));
        if let Err(error) = write_synced(&path, b"mount") {
            let errno = error.raw_os_error().map(Errno::from_raw_os_error);
            assert!(matches!(errno, Some(Errno::NOSPC | Errno::IO)), "{error}");
        } else {
            stored.insert(format!("mount-{number:03}"), b"mount".to_vec());
        }
    }
    assert!(refused > 0, "a full disk refused nothing");
    check(&s3, mounted.path(), &stored).await;
    fs::remove_file(ballast).unwrap();
    mounted.node.restart().unwrap();
    let s3 = root(&mounted.node);
    check(&s3, mounted.path(), &stored).await;
    put_retrying(&s3).await;
    write_synced(&top.join("after"), &pattern(MIB, 4)).unwrap();
    assert!(mounted.node.terminate().unwrap().success());
    fsck_is_clean(&disk.data());
}
