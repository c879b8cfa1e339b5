//! Keys that POSIX cannot name and names that S3 cannot spell, through both doors (the design, "Keys and names").
//!
//! Each scenario runs on one target and on three replicas: names are metadata, but what they lead to is not.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use aws_sdk_s3::{
    Client,
    types::{Delete, EncodingType, ObjectIdentifier},
};
use janusfs_external::{
    MountedNode, ONE_TARGET, THREE_REPLICAS,
    s3::{get, keys, put, root, status},
};
use rustix::io::Errno;

const BUCKET: &str = "odd";

/// Each printable byte that a part of a key can hold, and text beyond ASCII.
fn printable() -> String {
    let ascii = (b' '..=b'~').filter(|byte| *byte != b'/');
    ascii.map(char::from).chain("é漢字🎉".chars()).collect()
}

fn long() -> String {
    "long-".chars().cycle().take(900).collect()
}

/// Every key of the scenario, and where the mount shows it below the bucket's directory.
fn odd_keys() -> BTreeMap<String, Vec<String>> {
    let long = long();
    let cut = format!(".janusfs-s3:{}%~", &long[..180]);
    let shadowed = ".janusfs-s3:a";
    let rows: [(&str, &[&str]); 14] = [
        ("a", &[shadowed]),
        ("a-b", &["a-b"]),
        ("a/b", &["a", "b"]),
        ("a/", &["a", ".janusfs-s3:"]),
        ("a//c", &["a", ".janusfs-s3:%2F", "c"]),
        ("a0", &["a0"]),
        ("./x", &[".janusfs-s3:.%2F", "x"]),
        ("../y", &[".janusfs-s3:..%2F", "y"]),
        ("dots/.", &["dots", ".janusfs-s3:."]),
        ("dots/..", &["dots", ".janusfs-s3:.."]),
        ("/leading", &[".janusfs-s3:%2F", "leading"]),
        (".janusfs-s3:a", &[".janusfs-s3:.janusfs-s3%3Aa"]),
        (&printable(), &[&printable()]),
        (&long, &[&cut]),
    ];
    let owned = |path: &[&str]| path.iter().map(|part| (*part).to_owned()).collect();
    rows.iter()
        .map(|(key, path)| ((*key).to_owned(), owned(path)))
        .collect()
}

/// Finds where the mount shows a key: the name of a long one ends in a hash, of which only the start is known.
fn path_of(top: &Path, parts: &[String]) -> PathBuf {
    parts.iter().fold(top.to_owned(), |dir, part| {
        if !part.ends_with("%~") {
            return dir.join(part);
        }
        let mut alike = names(&dir)
            .into_iter()
            .filter(|name| name.starts_with(part));
        let name = alike.next().unwrap();
        assert!(name.len() <= 255 && name.len() == part.len() + 16, "{name}");
        assert_eq!(alike.next(), None);
        dir.join(name)
    })
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn body(key: &str) -> Vec<u8> {
    // Long ones leave the inode and go through chunks.
    key.bytes().cycle().take(key.len() * 1000).collect()
}

fn shell(dir: &Path, script: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A row of a listing: a key, or a common prefix.
type Row = (String, bool);

/// What S3 answers, computed the slow way.
fn expected_rows(keys: &BTreeMap<String, Vec<String>>, prefix: &str, delimiter: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for key in keys.keys().filter(|key| key.starts_with(prefix)) {
        let cut = key[prefix.len()..]
            .find(delimiter)
            .filter(|_| !delimiter.is_empty());
        let row = match cut {
            Some(at) => (key[..prefix.len() + at + delimiter.len()].to_owned(), true),
            None => (key.clone(), false),
        };
        if rows.last() != Some(&row) {
            rows.push(row);
        }
    }
    rows
}

async fn rows_v2(s3: &Client, prefix: &str, delimiter: &str, page: i32) -> Vec<Row> {
    let (mut rows, mut token) = (Vec::new(), None);
    loop {
        let list = s3
            .list_objects_v2()
            .bucket(BUCKET)
            .max_keys(page)
            .prefix(prefix);
        let list = list.set_delimiter((!delimiter.is_empty()).then(|| delimiter.to_owned()));
        let answer = list.set_continuation_token(token).send().await.unwrap();
        let keys = answer
            .contents()
            .iter()
            .map(|row| (row.key().unwrap().to_owned(), false));
        let prefixes = answer.common_prefixes().iter();
        let prefixes = prefixes.map(|row| (row.prefix().unwrap().to_owned(), true));
        let mut found: Vec<Row> = keys.chain(prefixes).collect();
        found.sort();
        assert_eq!(answer.key_count(), i32::try_from(found.len()).ok());
        assert!(found.len() <= usize::try_from(page).unwrap());
        rows.extend(found);
        token = answer.next_continuation_token().map(str::to_owned);
        assert_eq!(answer.is_truncated(), Some(token.is_some()));
        if token.is_none() {
            return rows;
        }
    }
}

async fn rows_v1(s3: &Client, prefix: &str, delimiter: &str, page: i32) -> Vec<Row> {
    let (mut rows, mut marker): (Vec<Row>, _) = (Vec::new(), None);
    loop {
        let list = s3
            .list_objects()
            .bucket(BUCKET)
            .max_keys(page)
            .prefix(prefix);
        let list = list.set_delimiter((!delimiter.is_empty()).then(|| delimiter.to_owned()));
        let answer = list.set_marker(marker).send().await.unwrap();
        let keys = answer
            .contents()
            .iter()
            .map(|row| (row.key().unwrap().to_owned(), false));
        let prefixes = answer.common_prefixes().iter();
        let prefixes = prefixes.map(|row| (row.prefix().unwrap().to_owned(), true));
        let mut found: Vec<Row> = keys.chain(prefixes).collect();
        found.sort();
        assert!(found.len() <= usize::try_from(page).unwrap());
        rows.extend(found);
        if answer.is_truncated() != Some(true) {
            return rows;
        }
        // Without a delimiter there is no NextMarker: the last key is it.
        let next = answer.next_marker().map(str::to_owned);
        assert_eq!(next.is_some(), !delimiter.is_empty());
        marker = Some(next.unwrap_or_else(|| rows.last().unwrap().0.clone()));
    }
}

async fn check_listings(s3: &Client, keys: &BTreeMap<String, Vec<String>>) {
    for prefix in ["", "a", "a/", "a//", "./", "..", "/", "long-", " !", "none"] {
        for delimiter in ["", "/", "-", "//"] {
            let expected = expected_rows(keys, prefix, delimiter);
            for page in [1, 2, 1000] {
                let context =
                    format!("prefix {prefix:?}, delimiter {delimiter:?}, pages of {page}");
                assert_eq!(
                    rows_v2(s3, prefix, delimiter, page).await,
                    expected,
                    "V2, {context}"
                );
                assert_eq!(
                    rows_v1(s3, prefix, delimiter, page).await,
                    expected,
                    "V1, {context}"
                );
            }
        }
    }
}

async fn odd_keys_go_through_both_doors(topology: &[&str]) {
    let mounted = MountedNode::start(topology).unwrap();
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let top = mounted.path().join(BUCKET);
    let mut rows = odd_keys();
    for key in rows.keys() {
        put(&s3, BUCKET, key, body(key)).await.unwrap();
    }
    check_listings(&s3, &rows).await;
    for (key, parts) in &rows {
        assert!(
            get(&s3, BUCKET, key).await.unwrap() == body(key),
            "{key:?} over S3"
        );
        let path = path_of(&top, parts);
        assert!(
            fs::read(&path).unwrap() == body(key),
            "{key:?} at {}",
            path.display()
        );
    }

    // The tools that people point at a tree.
    let listed = shell(&top, "ls -a");
    let listed: BTreeSet<&str> = listed.lines().collect();
    let mut expected = names(&top);
    expected.extend([".".to_owned(), "..".to_owned()]);
    assert_eq!(listed, expected.iter().map(String::as_str).collect());
    let copy = tempfile::tempdir().unwrap();
    let target = copy.path().join("copy");
    shell(&top, &format!("cp -r . {}", target.display()));
    for (key, parts) in &rows {
        assert!(
            fs::read(path_of(&target, parts)).unwrap() == body(key),
            "the copy of {key:?}"
        );
    }
    let count = shell(&top, "find . -type f | wc -l");
    assert_eq!(count.trim(), rows.len().to_string());

    // What the mount changes, S3 sees: bytes, and a name that a rename makes plain.
    let shadowed = top.join(".janusfs-s3:a");
    fs::write(&shadowed, b"rewritten").unwrap();
    assert_eq!(get(&s3, BUCKET, "a").await.unwrap(), b"rewritten");
    let dots = top.join(".janusfs-s3:.%2F");
    fs::write(dots.join("new"), b"made on the mount").unwrap();
    assert_eq!(
        get(&s3, BUCKET, "./new").await.unwrap(),
        b"made on the mount"
    );
    fs::rename(&shadowed, top.join("plain")).unwrap();
    assert_eq!(get(&s3, BUCKET, "plain").await.unwrap(), b"rewritten");
    let gone = s3.get_object().bucket(BUCKET).key("a").send().await;
    assert_eq!(status(gone), Some(404));
    fs::remove_file(dots.join("new")).unwrap();
    fs::remove_file(top.join("plain")).unwrap();
    rows.remove("a");

    refuses_reserved_names(&top);

    // Half of the keys go by unlink, half by DeleteObject.
    for (turn, key) in odd_keys().keys().filter(|key| *key != "a").enumerate() {
        let parts = rows.remove(key).unwrap();
        let path = path_of(&top, &parts);
        if turn % 2 == 0 {
            fs::remove_file(&path).unwrap();
        } else {
            s3.delete_object()
                .bucket(BUCKET)
                .key(key)
                .send()
                .await
                .unwrap();
        }
        let error = fs::symlink_metadata(&path).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(Errno::NOENT.raw_os_error()),
            "{key:?}"
        );
        let gone = s3.head_object().bucket(BUCKET).key(key).send().await;
        assert_eq!(status(gone), Some(404), "{key:?}");
        let left: Vec<_> = rows.keys().cloned().collect();
        assert_eq!(
            files_of(&keys(&s3, BUCKET).await.unwrap()),
            left,
            "after {key:?}"
        );
    }
    // A directory that keys made goes with its last key over S3; `unlink` leaves it, as POSIX says, but it is no key.
    let left: BTreeSet<_> = ["a", ".janusfs-s3:%2F", ".janusfs-s3:.%2F"]
        .map(str::to_owned)
        .into();
    assert_eq!(names(&top), left);
    assert_eq!(keys(&s3, BUCKET).await.unwrap(), Vec::<String>::new());

    // And all at once, as an operator does.
    for key in odd_keys().keys() {
        put(&s3, BUCKET, key, body(key)).await.unwrap();
    }
    shell(&top, "rm -r ./* ./.[!.]*");
    assert_eq!(names(&top), BTreeSet::new());
    assert_eq!(keys(&s3, BUCKET).await.unwrap(), Vec::<String>::new());
    put(&s3, BUCKET, "left/over", b"x".to_vec()).await.unwrap();
    fs::remove_file(top.join("left/over")).unwrap();
    s3.delete_bucket().bucket(BUCKET).send().await.unwrap();
}

/// Leaves out keys that stand for an empty directory.
fn files_of(keys: &[String]) -> Vec<String> {
    let odd = odd_keys();
    keys.iter()
        .filter(|key| odd.contains_key(*key))
        .cloned()
        .collect()
}

fn refuses_reserved_names(top: &Path) {
    let before = names(top);
    fs::write(top.join("source"), b"x").unwrap();
    let refused = |result: std::io::Result<()>, what: &str| {
        let errno = result.unwrap_err().raw_os_error();
        assert_eq!(errno, Some(Errno::PERM.raw_os_error()), "{what}");
    };
    for name in [
        ".janusfs-s3:",
        ".janusfs-s3:new",
        ".janusfs-s3:new%2F",
        ".janusfs-s3:%zz",
    ] {
        let path = top.join(name);
        refused(File::create_new(&path).map(drop), "create");
        refused(fs::create_dir(&path), "mkdir");
        refused(std::os::unix::fs::symlink("to", &path), "symlink");
        refused(fs::hard_link(top.join("source"), &path), "link");
        refused(fs::rename(top.join("source"), &path), "rename");
    }
    fs::remove_file(top.join("source")).unwrap();
    assert_eq!(names(top), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_keys_on_one_target() {
    odd_keys_go_through_both_doors(&ONE_TARGET).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_keys_on_three_replicas() {
    odd_keys_go_through_both_doors(&THREE_REPLICAS).await;
}

async fn names_that_are_no_text(topology: &[&str]) {
    let mounted = MountedNode::start(topology).unwrap();
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let top = mounted.path().join(BUCKET);
    let raw = |bytes: &[u8]| top.join(OsStr::from_bytes(bytes));
    fs::write(raw(b"caf\xe9 100%"), body("latin")).unwrap();
    fs::create_dir(raw(b"dir\xff")).unwrap();
    fs::write(raw(b"dir\xff").join("inner"), b"inner").unwrap();
    fs::write(raw(b"dir\xff").join(OsStr::from_bytes(b"\x80")), b"deep").unwrap();
    let shown = [
        ".janusfs-s3:caf%e9%20100%25",
        ".janusfs-s3:dir%ff/inner",
        ".janusfs-s3:dir%ff/.janusfs-s3:%80",
    ];
    let mut listed = keys(&s3, BUCKET).await.unwrap();
    listed.sort();
    let mut expected = shown.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(get(&s3, BUCKET, shown[0]).await.unwrap(), body("latin"));
    assert_eq!(get(&s3, BUCKET, shown[1]).await.unwrap(), b"inner");
    assert_eq!(get(&s3, BUCKET, shown[2]).await.unwrap(), b"deep");
    let below = s3
        .list_objects_v2()
        .bucket(BUCKET)
        .prefix(".janusfs-s3:dir%ff/")
        .delimiter("/");
    let below = below.send().await.unwrap();
    let below: Vec<_> = below
        .contents()
        .iter()
        .filter_map(|row| row.key())
        .collect();
    assert_eq!(below.len(), 2, "{below:?}");

    // Written through S3 under the shown name, it is the same file.
    put(&s3, BUCKET, shown[0], b"by S3".to_vec()).await.unwrap();
    assert_eq!(fs::read(raw(b"caf\xe9 100%")).unwrap(), b"by S3");
    for key in shown {
        s3.delete_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await
            .unwrap();
    }
    let left: Vec<_> = fs::read_dir(&top)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_vec())
        .collect();
    // The directory was made by mkdir and stays; its files are gone.
    assert_eq!(left, [b"dir\xff".to_vec()]);
    assert_eq!(fs::read_dir(raw(b"dir\xff")).unwrap().count(), 0);
    assert_eq!(keys(&s3, BUCKET).await.unwrap(), [".janusfs-s3:dir%ff/"]);
    fs::remove_dir(raw(b"dir\xff")).unwrap();
    assert_eq!(keys(&s3, BUCKET).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_no_text_on_one_target() {
    names_that_are_no_text(&ONE_TARGET).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_no_text_on_three_replicas() {
    names_that_are_no_text(&THREE_REPLICAS).await;
}

/// S3 sees through symlinks that stay in the bucket; a PUT replaces one and follows none. Special files are no objects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_symlink_is_what_it_leads_to_and_special_files_are_no_objects() {
    let mounted = MountedNode::start(&ONE_TARGET).unwrap();
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let top = mounted.path().join(BUCKET);
    let large = body("large").repeat(10);
    fs::write(top.join("file"), b"file").unwrap();
    fs::create_dir(top.join("blobs")).unwrap();
    fs::write(top.join("blobs/large"), &large).unwrap();
    shell(
        &top,
        "mkfifo fifo; ln file twice; mkdir empty; ln -s file link; ln -s . loop; ln -s ../outside out
        ln -s \"$PWD/file\" absolute; mkdir -p snapshots/v1; ln -s ../../blobs/large snapshots/v1/weights; ln -s v1 snapshots/main
        echo outside >../outside",
    );
    let expected = [
        "blobs/large",
        "empty/",
        "file",
        "link",
        "snapshots/main/weights",
        "snapshots/v1/weights",
        "twice",
    ];
    assert_eq!(keys(&s3, BUCKET).await.unwrap(), expected);
    for key in ["fifo", "loop", "loop/file", "out", "absolute"] {
        let found = s3.head_object().bucket(BUCKET).key(key).send().await;
        assert_eq!(status(found), Some(404), "{key}");
    }
    assert_eq!(get(&s3, BUCKET, "link").await.unwrap(), b"file");
    for key in ["snapshots/main/weights", "snapshots/v1/weights"] {
        assert!(get(&s3, BUCKET, key).await.unwrap() == large, "{key}");
    }
    // A change through the mount is the change of what the link leads to.
    fs::write(top.join("snapshots/main/weights"), b"new").unwrap();
    assert_eq!(get(&s3, BUCKET, "blobs/large").await.unwrap(), b"new");
    put(&s3, BUCKET, "snapshots/main/more", b"more".to_vec())
        .await
        .unwrap();
    assert_eq!(fs::read(top.join("snapshots/v1/more")).unwrap(), b"more");

    // A tool that cleans up what it takes for a copy is told, one key at a time or many.
    let copy = s3.delete_object().bucket(BUCKET).key("snapshots/main/more");
    assert_eq!(status(copy.send().await), Some(400));
    let keys_of = |keys: &[&str]| {
        let ids = keys
            .iter()
            .map(|key| ObjectIdentifier::builder().key(*key).build().unwrap());
        Delete::builder()
            .set_objects(Some(ids.collect()))
            .build()
            .unwrap()
    };
    let many = s3.delete_objects().bucket(BUCKET);
    let many = many.delete(keys_of(&["snapshots/main/more", "twice"]));
    let outcome = many.send().await.unwrap();
    assert_eq!(outcome.deleted().len(), 1);
    assert_eq!(outcome.errors()[0].code(), Some("InvalidRequest"));
    assert!(outcome.errors()[0].message().unwrap().contains("symlink"));
    assert_eq!(fs::read(top.join("snapshots/v1/more")).unwrap(), b"more");

    put(&s3, BUCKET, "link", b"object".to_vec()).await.unwrap();
    assert_eq!(fs::read(top.join("file")).unwrap(), b"file");
    assert!(top.join("link").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(top.join("link")).unwrap(), b"object");
}

/// XML has no way to spell most control characters: `encoding-type=url` is how S3 lists them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_characters_are_listed_url_encoded() {
    let mounted = MountedNode::start::<&str>(&[]).unwrap();
    let s3 = root(&mounted.node);
    s3.create_bucket().bucket(BUCKET).send().await.unwrap();
    let odd = [
        "\u{1}start",
        "bell\u{7}",
        "tab\t",
        "line\nend\r\n",
        "del\u{7f}",
    ];
    for key in odd {
        put(&s3, BUCKET, key, key.as_bytes().to_vec())
            .await
            .unwrap();
    }
    let mut expected = odd.map(str::to_owned);
    expected.sort();
    let list = s3
        .list_objects_v2()
        .bucket(BUCKET)
        .encoding_type(EncodingType::Url);
    let list = list.send().await.unwrap();
    let listed: Vec<String> = list
        .contents()
        .iter()
        .map(|row| decode(row.key().unwrap()))
        .collect();
    assert_eq!(listed, expected);
    let on_mount: BTreeSet<String> = names(&mounted.path().join(BUCKET));
    assert_eq!(on_mount, expected.iter().cloned().collect());
    for key in odd {
        assert_eq!(get(&s3, BUCKET, key).await.unwrap(), key.as_bytes());
    }
    // Those that XML can spell come back as they are, white space included.
    for key in ["\u{1}start", "bell\u{7}"] {
        fs::remove_file(mounted.path().join(BUCKET).join(key)).unwrap();
    }
    assert_eq!(
        keys(&s3, BUCKET).await.unwrap(),
        ["del\u{7f}", "line\nend\r\n", "tab\t"]
    );
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(&after[..2]).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap()
}
