//! A change through one door is seen through every other when the call that makes it has returned (promise P2), whatever
//! the kernels behind the mounts have cached: the node's own mount, a mount in another process, and S3.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use aws_sdk_s3::Client;
use janusfs_external::{
    MountedNode, TestNode, binary,
    s3::{put, root},
    wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

const BUCKET: &str = "shared";
/// Times that each change is made: a cache that is right now and then is found out.
const ROUNDS: usize = 8;

/// A `janusfs mount` in a process of its own.
struct RemoteMount {
    child: Child,
    directory: PathBuf,
}

impl RemoteMount {
    fn start(node: &TestNode) -> Self {
        let directory = tempfile::tempdir().unwrap().keep();
        let outside = fs::metadata(&directory).unwrap().dev();
        let secret: OsString = node.data().join("cluster.key").into();
        let child = Command::new(binary().unwrap())
            .args(["mount".into(), "--secret-file".into(), secret])
            .arg(&node.endpoints().rpc)
            .arg(&directory)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mounted = || Ok(fs::metadata(&directory)?.dev() != outside);
        wait_until("the remote mount", mounted).unwrap();
        Self { child, directory }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.unwrap(), signal).unwrap();
    }
}

impl Drop for RemoteMount {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        self.child.wait().unwrap();
        if let Err(error) = fs::remove_dir(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

fn size(path: &Path) -> Option<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Some(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

async fn delete(s3: &Client, key: &str) {
    let delete = s3.delete_object().bucket(BUCKET).key(key);
    delete.send().await.unwrap();
}

async fn with_bucket(node: &TestNode) -> Client {
    let s3 = root(node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    s3
}

#[tokio::test(flavor = "multi_thread")]
async fn what_s3_changes_every_mount_sees_at_once() {
    let mounted = MountedNode::start::<&str>(&[]).unwrap();
    let s3 = with_bucket(&mounted.node).await;
    let remote = RemoteMount::start(&mounted.node);
    let mounts = [mounted.path(), &remote.directory].map(|mount| mount.join(BUCKET));
    let see = |name: &str| mounts.clone().map(|mount| size(&mount.join(name)));
    for round in 0..ROUNDS {
        assert_eq!(see("deep/er/file"), [None, None], "absence is cached");
        put(&s3, BUCKET, "deep/er/file", vec![1; 10]).await.unwrap();
        assert_eq!(see("deep/er/file"), [Some(10), Some(10)], "round {round}");
        put(&s3, BUCKET, "deep/er/file", vec![2; 20 + round])
            .await
            .unwrap();
        let new = Some(u64::try_from(20 + round).unwrap());
        assert_eq!(see("deep/er/file"), [new, new], "replaced, round {round}");
        for mount in &mounts {
            assert_eq!(fs::read(mount.join("deep/er/file")).unwrap()[0], 2);
            assert_eq!(fs::read_dir(mount.join("deep/er")).unwrap().count(), 1);
        }
        delete(&s3, "deep/er/file").await;
        // The directories were there for their key only.
        assert_eq!(see("deep/er/file"), [None, None], "deleted, round {round}");
        assert_eq!(see("deep"), [None, None], "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_mount_changes_the_other_sees_at_once() {
    let mounted = MountedNode::start::<&str>(&[]).unwrap();
    let remote = RemoteMount::start(&mounted.node);
    let here = mounted.path().join("d");
    let there = remote.directory.join("d");
    fs::create_dir(&here).unwrap();
    for round in 0..ROUNDS {
        // Both make changes in turn, so that each holds names that the other changes.
        let (maker, watcher) = if round % 2 == 0 {
            (&here, &there)
        } else {
            (&there, &here)
        };
        let (old, new) = (format!("old{}", round % 3), format!("new{}", round % 3));
        assert_eq!(size(&watcher.join(&old)), None);
        fs::write(maker.join(&old), vec![0; round]).unwrap();
        let expected = u64::try_from(round).unwrap();
        assert_eq!(size(&watcher.join(&old)), Some(expected), "round {round}");
        fs::set_permissions(maker.join(&old), fs::Permissions::from_mode(0o640)).unwrap();
        let mode = fs::metadata(watcher.join(&old)).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o640, "round {round}");
        fs::rename(maker.join(&old), maker.join(&new)).unwrap();
        assert_eq!(size(&watcher.join(&old)), None, "round {round}");
        assert_eq!(size(&watcher.join(&new)), Some(expected));
        fs::create_dir(maker.join("sub")).unwrap();
        assert!(fs::metadata(watcher.join("sub")).unwrap().is_dir());
        fs::remove_dir(maker.join("sub")).unwrap();
        assert_eq!(size(&watcher.join("sub")), None);
        fs::remove_file(maker.join(&new)).unwrap();
        assert_eq!(size(&watcher.join(&new)), None);
        assert_eq!(fs::read_dir(watcher).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_renamed_into_place_is_forgotten_too() {
    let mounted = MountedNode::start::<&str>(&[]).unwrap();
    let s3 = with_bucket(&mounted.node).await;
    let bucket = mounted.path().join(BUCKET);
    let done = AtomicBool::new(false);
    // Answers about a busy directory are overtaken now and then, and come without a lease.
    let keep_busy = |thread: u32| {
        for number in 0.. {
            if done.load(Ordering::Relaxed) {
                return;
            }
            let path = bucket.join(format!("busy{thread}-{number}"));
            fs::write(&path, "x").unwrap();
            fs::remove_file(&path).unwrap();
        }
    };
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|scope| {
        scope.spawn(|| keep_busy(1));
        scope.spawn(|| keep_busy(2));
        let rounds = scope.spawn(|| {
            for round in 0..ROUNDS * 3 {
                fs::write(bucket.join("temporary"), "old").unwrap();
                fs::rename(bucket.join("temporary"), bucket.join("key")).unwrap();
                let body = vec![0; 10 + round];
                runtime.block_on(put(&s3, BUCKET, "key", body)).unwrap();
                let seen = size(&bucket.join("key"));
                assert_eq!(
                    seen,
                    Some(u64::try_from(10 + round).unwrap()),
                    "round {round}"
                );
            }
        });
        let outcome = rounds.join();
        done.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}

#[test]
fn two_mounts_that_fill_one_directory_do_not_lose_a_name() {
    let mounted = MountedNode::start::<&str>(&[]).unwrap();
    let remote = RemoteMount::start(&mounted.node);
    let [here, there] = [mounted.path(), &remote.directory].map(|mount| mount.join("d"));
    fs::create_dir(&here).unwrap();
    let make = |own: &Path, prefix: &str| {
        for number in 0..100 {
            fs::write(own.join(format!("{prefix}{number}")), prefix).unwrap();
            // Looks at what the other makes now, or has not made yet.
            let _ = size(&own.join(format!("{}{number}", if prefix == "a" { "b" } else { "a" })));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| make(&here, "a"));
        make(&there, "b");
    });
    for mount in [&here, &there] {
        for number in 0..100 {
            assert_eq!(size(&mount.join(format!("a{number}"))), Some(1));
            assert_eq!(size(&mount.join(format!("b{number}"))), Some(1));
        }
        assert_eq!(fs::read_dir(mount).unwrap().count(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_mount_delays_a_change_but_does_not_hold_it_up() {
    let mounted = MountedNode::start::<&str>(&[]).unwrap();
    let s3 = with_bucket(&mounted.node).await;
    let remote = RemoteMount::start(&mounted.node);
    let file = remote.directory.join(BUCKET).join("key");
    put(&s3, BUCKET, "key", vec![1; 1]).await.unwrap();
    assert_eq!(size(&file), Some(1));
    remote.signal(Signal::STOP);
    // Returns once the kernel there has forgotten by itself.
    put(&s3, BUCKET, "key", vec![1; 2]).await.unwrap();
    remote.signal(Signal::CONT);
    assert_eq!(size(&file), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_outlives_the_service_and_still_believes_nothing_old() {
    // The mount finds the service again where it was.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let rpc = free.local_addr().unwrap().to_string();
    drop(free);
    let mut node = TestNode::start(&["--rpc", &rpc]).unwrap();
    let s3 = with_bucket(&node).await;
    let remote = RemoteMount::start(&node);
    let file = remote.directory.join(BUCKET).join("key");
    put(&s3, BUCKET, "key", vec![1; 1]).await.unwrap();
    assert_eq!(size(&file), Some(1));
    node.restart().unwrap();
    put(&root(&node), BUCKET, "key", vec![1; 2]).await.unwrap();
    assert_eq!(size(&file), Some(2), "what was believed before the restart");
}
