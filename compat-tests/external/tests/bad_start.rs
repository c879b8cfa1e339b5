//! What the command line does when it is used wrongly or finds the machine in a wrong state: an error that says what to
//! do, the promised exit code, and nothing lost.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use janusfs_external::{
    MountedNode, ONE_TARGET, TestNode, binary, janusfs,
    s3::{get, put, root},
    wait_until,
};

/// Port 0 everywhere: a command that starts by mistake must not meet another test's node.
const ANYWHERE: [&str; 6] = [
    "--s3",
    "127.0.0.1:0",
    "--admin",
    "127.0.0.1:0",
    "--rpc",
    "127.0.0.1:0",
];

#[track_caller]
fn refused(output: &Output, exit: i32, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{error}");
    for word in words {
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

fn run(args: &[&str]) -> Output {
    janusfs(args).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn wrong_usage_exits_2_and_says_what_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = text(&data);
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["Usage", "up", "mount"]),
        (&["nonsense"], &["nonsense", "--help"]),
        (&["statsu"], &["status"]),
        (&["up"], &["--data"]),
        (&["up", "--data", data, "--s3", "nowhere"], &["--s3"]),
        (
            &["up", "--data", data, "--s3", "127.0.0.1:99999"],
            &["--s3"],
        ),
        (
            &["up", "--data", data, "--targets", "0"],
            &["--targets", "1..=64"],
        ),
        (&["up", "--data", data, "--targets", "many"], &["--targets"]),
        (
            &["up", "--data", data, "--replicas", "17"],
            &["--replicas", "1..=16"],
        ),
        (
            &["up", "--data", data, "--targets", "4", "--replicas", "3"],
            &["--targets", "multiple of --replicas"],
        ),
        (
            &["up", "--data", data, "--replicas", "2"],
            &["--targets", "multiple of --replicas"],
        ),
        (&["mount"], &["ENDPOINT"]),
        (&["mount", "127.0.0.1:1"], &["MOUNTPOINT"]),
        (
            &["mount", "127.0.0.1:1", "/mnt", "-o", "rw,fast"],
            &["fast", "ro, rw, sync, threads=N"],
        ),
        (
            &["mount", "127.0.0.1:1", "/mnt", "-o", "threads=0"],
            &["threads=0", "1 to 64"],
        ),
        (&["status", "--output", "xml"], &["xml", "table", "json"]),
        (&["user", "create"], &["NAME"]),
        (
            &["user", "create", "x", "--access-key", "K"],
            &["--secret-key"],
        ),
        (&["user", "create", "x", "--uid", "many"], &["--uid"]),
        (&["bucket"], &["create", "list", "delete"]),
    ];
    for (args, words) in cases {
        refused(&run(args), 2, words);
    }
    assert!(!Path::new(data).exists(), "a usage error touches nothing");
}

#[test]
fn commands_without_a_node_say_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = text(dir.path());
    for args in [
        &["status", "--data", nowhere][..],
        &["user", "list", "--data", nowhere],
        &["user", "create", "x", "--data", nowhere],
        &["key", "create", "x", "--data", nowhere],
        &["bucket", "list", "--data", nowhere],
    ] {
        refused(&run(args), 1, &["no JanusFS runs on", "janusfs up --data"]);
    }
    refused(
        &run(&["fsck", "--data", "/nonexistent/data"]),
        1,
        &["no data directory", "--data"],
    );
    refused(
        &run(&["fsck", "--data", nowhere]),
        1,
        &["is no JanusFS data directory"],
    );
    refused(&run(&["umount", nowhere]), 1, &["nothing is mounted on"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_taken_or_absent_are_named() {
    let node = TestNode::start::<&str>(&[]).unwrap();
    let s3 = root(&node);
    s3.create_bucket().bucket("full").send().await.unwrap();
    put(&s3, "full", "key", b"x".to_vec()).await.unwrap();
    let data = text(node.data());
    let made = run(&["user", "create", "twice", "--data", data]);
    assert!(made.status.success());
    let cases: &[(&[&str], &[&str])] = &[
        (&["user", "create", "twice"], &["`twice`", "exists already"]),
        (
            &["user", "delete", "nobody"],
            &["there is no user `nobody`"],
        ),
        (&["user", "delete", "root"], &["the root user stays"]),
        (&["key", "create", "nobody"], &["there is no user `nobody`"]),
        (
            &["key", "delete", "AKIDABSENT"],
            &["there is no access key `AKIDABSENT`"],
        ),
        (&["bucket", "create", "full"], &["`full`", "already"]),
        (
            &["bucket", "create", "NO"],
            &["`NO` is no bucket name", "3 to 63 lower-case"],
        ),
        (
            &["bucket", "create", "mine", "--owner", "nobody"],
            &["there is no user `nobody`", "janusfs user create"],
        ),
        (
            &["bucket", "delete", "absent"],
            &["there is no bucket `absent`"],
        ),
        (
            &["bucket", "delete", "full"],
            &["`full` is not empty", "delete its objects"],
        ),
    ];
    for (args, words) in cases {
        let args = [*args, &["--data", data]].concat();
        refused(&run(&args), 1, words);
    }
    assert_eq!(get(&s3, "full", "key").await.unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_or_a_data_directory_in_use_is_left_alone() {
    let mut node = TestNode::start::<&str>(&[]).unwrap();
    let s3 = root(&node);
    s3.create_bucket().bucket("kept").send().await.unwrap();
    put(&s3, "kept", "key", b"kept".to_vec()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fresh = dir.path().join("fresh");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for flag in ["--s3", "--admin", "--rpc"] {
        let mut args = vec!["up", "--data", text(&fresh)];
        for pair in ANYWHERE.chunks(2) {
            args.extend([
                pair[0],
                if pair[0] == flag {
                    taken.as_str()
                } else {
                    pair[1]
                },
            ]);
        }
        refused(&run(&args), 1, &[&taken, "in use", flag]);
        assert!(
            !fresh.exists(),
            "nothing is touched before the ports are there"
        );
    }
    let data = node.data().to_owned();
    let up = [&["up", "--data", text(&data)][..], &ANYWHERE].concat();
    refused(
        &run(&up),
        1,
        &["in use by another janusfs process", "--data"],
    );
    // The node that was there serves on; a check of its data goes through it.
    assert_eq!(get(&s3, "kept", "key").await.unwrap(), b"kept");
    let fsck = run(&["fsck", "--data", text(node.data())]);
    assert!(
        fsck.status.success(),
        "{}",
        String::from_utf8_lossy(&fsck.stderr)
    );

    // A directory of a newer JanusFS is refused before anything in it changes.
    assert!(node.terminate().unwrap().success());
    let format = node.data().join("FORMAT");
    let ours = fs::read(&format).unwrap();
    fs::write(&format, r#"{"version":2,"targets":1,"replicas":1}"#).unwrap();
    refused(
        &run(&up),
        1,
        &["format 2", "run the newer janusfs", "nothing was changed"],
    );
    fs::write(&format, "damaged").unwrap();
    refused(&run(&up), 1, &["FORMAT is damaged"]);
    fs::write(&format, ours).unwrap();
    // So is the storage of one, deeper down.
    let engine = node.data().join("targets/1/FORMAT");
    let ours = fs::read(&engine).unwrap();
    fs::write(&engine, "janusfs-chunk-store 2\n").unwrap();
    refused(
        &run(&up),
        1,
        &["cannot open the storage targets", "format 2"],
    );
    fs::write(&engine, ours).unwrap();
    // Another topology than it was made with.
    let other = [&up[..], &["--targets", "2", "--replicas", "2"]].concat();
    refused(
        &run(&other),
        1,
        &["was made with --targets", "another --data"],
    );
    // A file where the directory should be.
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let up_file = [&["up", "--data", text(&file)][..], &ANYWHERE].concat();
    refused(
        &run(&up_file),
        1,
        &["cannot make the data directory", text(&file)],
    );

    node.restart().unwrap();
    assert_eq!(get(&root(&node), "kept", "key").await.unwrap(), b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_wrong_or_exposed_opens_nothing() {
    let node = TestNode::start::<&str>(&[]).unwrap();
    let s3 = root(&node);
    s3.create_bucket().bucket("kept").send().await.unwrap();
    put(&s3, "kept", "key", b"kept".to_vec()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let secret = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let right = fs::read_to_string(node.data().join("cluster.key")).unwrap();
    let wrong = secret("wrong", &"0123456789abcdef".repeat(4), 0o600);
    let exposed = secret("exposed", &right, 0o644);
    let malformed = secret("malformed", "abc\n", 0o600);
    let missing = dir.path().join("missing");
    let rpc = node.endpoints().rpc.as_str();
    let cases = [
        (&wrong, &["secret", "cluster.key"][..]),
        (&exposed, &["can be read by other users", "chmod 600"]),
        (
            &malformed,
            &["does not hold a cluster secret", "copy it again"],
        ),
        (&missing, &["no cluster secret", "--secret-file"]),
    ];
    for (file, words) in cases {
        let file = text(file);
        refused(
            &run(&["mount", "--secret-file", file, rpc, text(&mountpoint)]),
            1,
            words,
        );
        refused(
            &run(&["s3", "--secret-file", file, "--listen", "127.0.0.1:0", rpc]),
            1,
            words,
        );
    }
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let good = secret("good", &right, 0o600);
    let unreachable = run(&[
        "mount",
        "--secret-file",
        text(&good),
        &closed,
        text(&mountpoint),
    ]);
    refused(&unreachable, 1, &["cannot reach JanusFS at", &closed]);
    // An exposed secret stops the node itself, too, and mending it is enough.
    let mut node = node;
    assert!(node.terminate().unwrap().success());
    let own = node.data().join("cluster.key");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o640)).unwrap();
    let data = node.data().to_owned();
    let up = [&["up", "--data", text(&data)][..], &ANYWHERE].concat();
    refused(&run(&up), 1, &["can be read by other users", "chmod 600"]);
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
    node.restart().unwrap();
    assert_eq!(get(&root(&node), "kept", "key").await.unwrap(), b"kept");
    let half = Command::new(binary().unwrap())
        .args(["up", "--data", text(&dir.path().join("half"))])
        .args(ANYWHERE)
        .env("JANUSFS_ROOT_ACCESS_KEY", "K")
        .env_remove("JANUSFS_ROOT_SECRET_KEY")
        .output()
        .unwrap();
    refused(&half, 1, &["set both", "or neither"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_point_that_cannot_be_used_is_named() {
    let mounted = MountedNode::start(&ONE_TARGET).unwrap();
    let node = &mounted.node;
    fs::write(mounted.path().join("file"), "kept").unwrap();
    let key = node.data().join("cluster.key");
    let dir = tempfile::tempdir().unwrap();
    let rpc = node.endpoints().rpc.as_str();
    let mount = |path: &Path| run(&["mount", "--secret-file", text(&key), rpc, text(path)]);
    refused(
        &mount(&dir.path().join("absent")),
        1,
        &["does not exist", "mkdir -p"],
    );
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(&mount(&file), 1, &["is not a directory"]);
    // A node that cannot mount ends in order, with the one error.
    let own = dir.path().join("own");
    let up = ["up", "--data", text(&own), "--mount", text(&file)];
    let output = run(&[&up[..], &ANYWHERE].concat());
    refused(&output, 1, &["is not a directory"]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(words.lines().count(), 1, "{words}");
    refused(
        &mount(mounted.path()),
        1,
        &["is already a mount point", "unmount it first"],
    );
    assert_eq!(
        fs::read_to_string(mounted.path().join("file")).unwrap(),
        "kept"
    );

    // A directory that is not empty is hidden while mounted on, with a warning, and comes back.
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("own"), "own").unwrap();
    let mut second = Command::new(binary().unwrap())
        .args(["mount", "--secret-file", text(&key), rpc, text(&full)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the second mount", || Ok(full.join("file").exists())).unwrap();
    assert!(!full.join("own").exists());
    // In use: it stays until it is let go.
    let open = fs::File::open(full.join("file")).unwrap();
    refused(&run(&["umount", text(&full)]), 1, &["is in use", "fuser"]);
    drop(open);
    // A process that another test is starting may hold a copy of the descriptor for a moment.
    wait_until("the mount to be let go", || {
        Ok(run(&["umount", text(&full)]).status.success())
    })
    .unwrap();
    assert!(second.wait().unwrap().success());
    let mut words = String::new();
    std::io::Read::read_to_string(&mut second.stderr.take().unwrap(), &mut words).unwrap();
    assert!(words.contains("is not empty"), "{words}");
    assert_eq!(fs::read_to_string(full.join("own")).unwrap(), "own");
    assert_eq!(
        fs::read_to_string(mounted.path().join("file")).unwrap(),
        "kept"
    );
}
