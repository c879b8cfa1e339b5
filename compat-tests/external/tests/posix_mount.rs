//! The mount's promises (`fuse-mount/SEMANTICS.md`), each held by a test here against a running node, through nothing
//! but system calls.
//!
//! Needs /dev/fuse and the right to mount. Tests share one node and mount; each works in a directory of its own.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, also in what tests share"
)]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    ops::Deref,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
        io::AsRawFd,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, Weak},
};

use janusfs_external::TestNode;
use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, RenameFlags, SeekFrom as Whence, Timespec, Timestamps,
        XattrFlags,
    },
    io::Errno,
};

/// A node with a mount; both end with the last test that uses them.
struct Mounted {
    directory: PathBuf,
    node: TestNode,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.node.terminate().unwrap();
        // Fails if the mount is still there, and with it the test.
        fs::remove_dir(&self.directory).unwrap();
    }
}

/// A fresh directory in the shared mount.
struct Workdir {
    path: PathBuf,
    _mounted: Arc<Mounted>,
}

impl Deref for Workdir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

fn workdir(name: &str) -> Workdir {
    static SHARED: Mutex<Weak<Mounted>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap();
    let mounted = shared.upgrade().unwrap_or_else(|| {
        let directory = tempfile::tempdir().unwrap().keep();
        let node = TestNode::start(&[OsStr::new("--mount"), directory.as_os_str()]).unwrap();
        Arc::new(Mounted { directory, node })
    });
    *shared = Arc::downgrade(&mounted);
    let path = mounted.directory.join(name);
    fs::create_dir(&path).unwrap();
    Workdir {
        path,
        _mounted: mounted,
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at / 7 + at * 31) % 251).unwrap() ^ seed)
        .collect()
}

fn names(path: &Path) -> BTreeSet<String> {
    fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn what_is_written_is_read_at_every_size() {
    let dir = workdir("sizes");
    // Around the inline limit, the chunk size, and unaligned.
    for len in [
        0,
        1,
        4095,
        4096,
        4097,
        131_073,
        (4 << 20) - 1,
        4 << 20,
        (9 << 20) + 13,
    ] {
        let path = dir.join(format!("{len}"));
        let bytes = pattern(len, 3);
        fs::write(&path, &bytes).unwrap();
        assert!(fs::read(&path).unwrap() == bytes, "{len} bytes");
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), len as u64);
        assert_eq!(metadata.blocks(), (len as u64).div_ceil(512));
    }
}

#[test]
fn positioned_reads_and_overwrites() {
    let dir = workdir("positioned");
    let path = dir.join("file");
    let mut expected = pattern(6 << 20, 9);
    fs::write(&path, &expected).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    for (at, len, seed) in [
        (0, 10, 1),
        (4095, 2, 2),
        ((4 << 20) - 5, 10, 3),
        (5_000_001, 70_000, 4),
    ] {
        let patch = pattern(len, seed);
        file.write_all_at(&patch, at as u64).unwrap();
        expected[at..at + len].copy_from_slice(&patch);
    }
    let mut piece = vec![0; 200_000];
    file.read_exact_at(&mut piece, 4_100_000).unwrap();
    assert!(
        piece == expected[4_100_000..4_300_000],
        "own writes are read before they are flushed"
    );
    drop(file);
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn appends_land_at_the_end() {
    let dir = workdir("append");
    let path = dir.join("log");
    let open = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap()
    };
    let (mut first, mut second) = (open(), open());
    for line in 0..50 {
        writeln!(first, "first {line}").unwrap();
        writeln!(second, "second {line}").unwrap();
    }
    drop((first, second));
    let text = fs::read_to_string(&path).unwrap();
    let expected: String = (0..50)
        .map(|line| format!("first {line}\nsecond {line}\n"))
        .collect();
    assert_eq!(text, expected);
}

#[test]
fn truncation_cuts_and_grows_with_zeros() {
    let dir = workdir("truncate");
    let path = dir.join("file");
    fs::write(&path, pattern(5 << 20, 1)).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.set_len(1000).unwrap();
    file.set_len(5 << 20).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 5 << 20);
    assert!(bytes[..1000] == pattern(5 << 20, 1)[..1000]);
    assert!(
        bytes[1000..].iter().all(|byte| *byte == 0),
        "what was cut off does not come back"
    );
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0, "O_TRUNC");
}

#[test]
fn holes_read_as_zeros() {
    let dir = workdir("sparse");
    let path = dir.join("file");
    let mut file = File::create_new(&path).unwrap();
    file.seek(SeekFrom::Start(20 << 20)).unwrap();
    file.write_all(b"end").unwrap();
    drop(file);
    let mut file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (20 << 20) + 3);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes[..20 << 20].iter().all(|byte| *byte == 0));
    assert_eq!(&bytes[20 << 20..], b"end");
    assert_eq!(
        rustix::fs::seek(&file, Whence::Data(5)).unwrap(),
        5,
        "holes are told as data"
    );
    assert_eq!(
        rustix::fs::seek(&file, Whence::Hole(5)).unwrap(),
        (20 << 20) + 3
    );
    assert_eq!(
        rustix::fs::seek(&file, Whence::Data((20 << 20) + 3)),
        Err(Errno::NXIO)
    );
}

#[test]
fn rename_replaces_refuses_and_exchanges() {
    let dir = workdir("rename");
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    let with = |flags| rustix::fs::renameat_with(CWD, &a, CWD, &b, flags);
    assert_eq!(with(RenameFlags::NOREPLACE), Err(Errno::EXIST));
    with(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(
        (fs::read(&a).unwrap(), fs::read(&b).unwrap()),
        (b"b".to_vec(), b"a".to_vec())
    );
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    assert_eq!(fs::metadata(&a).unwrap_err().kind(), ErrorKind::NotFound);

    let (full, other) = (dir.join("full"), dir.join("other"));
    fs::create_dir_all(full.join("inner")).unwrap();
    fs::create_dir(&other).unwrap();
    let error = fs::rename(&other, &full).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
    let error = fs::rename(&full, full.join("inner/below")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    fs::rename(&full, &other).unwrap();
    assert_eq!(names(&other), BTreeSet::from(["inner".into()]));
}

#[test]
fn links_share_one_inode() {
    let dir = workdir("links");
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "one").unwrap();
    fs::hard_link(&a, &b).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    assert_eq!(
        fs::metadata(&a).unwrap().ino(),
        fs::metadata(&b).unwrap().ino()
    );
    OpenOptions::new()
        .append(true)
        .open(&b)
        .unwrap()
        .write_all(b" two")
        .unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"one two");
    fs::remove_file(&a).unwrap();
    assert_eq!(fs::metadata(&b).unwrap().nlink(), 1);
    assert_eq!(fs::read(&b).unwrap(), b"one two");
}

#[test]
fn symlinks_keep_their_text() {
    let dir = workdir("symlinks");
    fs::write(dir.join("target"), "text").unwrap();
    symlink("target", dir.join("link")).unwrap();
    assert_eq!(fs::read(dir.join("link")).unwrap(), b"text");
    assert_eq!(
        fs::read_link(dir.join("link")).unwrap(),
        Path::new("target")
    );
    let far = "x/".repeat(1000);
    symlink(&far, dir.join("far")).unwrap();
    assert_eq!(fs::read_link(dir.join("far")).unwrap(), Path::new(&far));
    assert!(
        fs::symlink_metadata(dir.join("far"))
            .unwrap()
            .file_type()
            .is_symlink()
    );
}

#[test]
fn a_large_directory_is_listed_whole() {
    let dir = workdir("large");
    let expected: BTreeSet<_> = (0..3000)
        .map(|number| format!("file-{number:05}"))
        .collect();
    for name in &expected {
        File::create_new(dir.join(name)).unwrap();
    }
    let seen: Vec<_> = fs::read_dir(&*dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(seen.len(), 3000, "no name comes twice");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn deleting_while_listing_misses_nothing() {
    let dir = workdir("deleting");
    for number in 0..1500 {
        File::create_new(dir.join(format!("{number}"))).unwrap();
    }
    let mut removed = 0;
    for entry in fs::read_dir(&*dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, 1500);
    fs::remove_dir(&*dir).unwrap();
}

#[test]
fn rewinding_lists_the_directory_as_it_is_now() {
    let path = workdir("rewind");
    fs::write(path.join("old"), "").unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let handle = rustix::fs::open(&*path, flags, Mode::empty()).unwrap();
    let mut stream = rustix::fs::Dir::read_from(&handle).unwrap();
    let list = |stream: &mut rustix::fs::Dir| -> BTreeSet<String> {
        let entries = std::iter::from_fn(|| stream.read());
        entries
            .map(|e| e.unwrap().file_name().to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        list(&mut stream),
        BTreeSet::from([".".into(), "..".into(), "old".into()])
    );
    fs::write(path.join("new"), "").unwrap();
    fs::remove_file(path.join("old")).unwrap();
    stream.rewind();
    assert_eq!(
        list(&mut stream),
        BTreeSet::from([".".into(), "..".into(), "new".into()])
    );
}

#[test]
fn a_deleted_file_lives_while_it_is_open() {
    let dir = workdir("deleted");
    let path = dir.join("file");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all(&pattern(100_000, 5)).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(File::open(&path).is_err());
    file.write_all(b"more").unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_004);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == [pattern(100_000, 5), b"more".to_vec()].concat());
}

/// Who has a deleted file open can open it once more through `/proc`, and that asks the service what the file holds: the bytes
/// of a small file must be there as long as its inode is.
#[test]
fn a_deleted_small_file_can_be_opened_again_by_who_has_it_open() {
    let dir = workdir("deleted-small");
    let path = dir.join("file");
    fs::write(&path, pattern(4000, 6)).unwrap();
    let mut file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    // What the kernel has cached would hide what the service answers.
    let forget = || {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    };
    forget();
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    assert!(fs::read(again).unwrap() == pattern(4000, 6));
    forget();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == pattern(4000, 6));
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

/// A mapping of a file; unmapped when dropped.
struct Mapping {
    start: *mut std::ffi::c_void,
    len: usize,
}

impl Mapping {
    #[expect(unsafe_code, reason = "mmap has no safe form")]
    fn new(file: &File, len: usize, writable: bool) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: the address is the kernel's choice, so nothing is mapped over; the mapping is removed on drop.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        Self {
            start: start.unwrap(),
            len,
        }
    }

    #[expect(unsafe_code, reason = "mmap has no safe form")]
    fn bytes(&self) -> &[u8] {
        // SAFETY: `new` mapped `len` readable bytes, and they stay mapped while `self` lives. The test alone changes
        // the file, and not while the slice is in use.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }

    #[expect(unsafe_code, reason = "mmap has no safe form")]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the mapping was made writable by the callers of this function, and is borrowed
        // exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len) }
    }

    #[expect(unsafe_code, reason = "mmap has no safe form")]
    fn sync(&self) {
        // SAFETY: the range is this mapping.
        unsafe { rustix::mm::msync(self.start, self.len, rustix::mm::MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "mmap has no safe form")]
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and no slice of it outlives `self`.
        unsafe { rustix::mm::munmap(self.start, self.len) }.unwrap();
    }
}

#[test]
fn mapped_files_read_and_write() {
    let dir = workdir("mapped");
    let path = dir.join("file");
    let mut expected = pattern((5 << 20) + 77, 6);
    fs::write(&path, &expected).unwrap();
    let map = Mapping::new(&File::open(&path).unwrap(), expected.len(), false);
    assert!(map.bytes() == expected);
    drop(map);

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut map = Mapping::new(&file, expected.len(), true);
    map.bytes_mut()[10..20].copy_from_slice(b"0123456789");
    map.bytes_mut()[(4 << 20) - 2..(4 << 20) + 2].copy_from_slice(b"edge");
    map.sync();
    expected[10..20].copy_from_slice(b"0123456789");
    expected[(4 << 20) - 2..(4 << 20) + 2].copy_from_slice(b"edge");
    assert!(fs::read(&path).unwrap() == expected, "after msync");
    map.bytes_mut()[0] = b'!';
    drop((map, file));
    expected[0] = b'!';
    assert!(
        fs::read(&path).unwrap() == expected,
        "after unmapping, of the same size"
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), expected.len() as u64);
}

#[test]
fn xattrs_are_kept_listed_and_removed() {
    let dir = workdir("xattrs");
    let path = dir.join("file");
    fs::write(&path, "").unwrap();
    let get = |name: &str| {
        let mut value = vec![0; 1000];
        let len = rustix::fs::getxattr(&path, name, &mut value[..])?;
        value.truncate(len);
        Ok::<_, Errno>(value)
    };
    let set = |value: &[u8], flags| rustix::fs::setxattr(&path, "user.note", value, flags);
    assert_eq!(get("user.note"), Err(Errno::NODATA));
    assert_eq!(set(b"x", XattrFlags::REPLACE), Err(Errno::NODATA));
    set(b"first", XattrFlags::CREATE).unwrap();
    assert_eq!(set(b"x", XattrFlags::CREATE), Err(Errno::EXIST));
    set(b"second\0", XattrFlags::empty()).unwrap();
    assert_eq!(get("user.note").unwrap(), b"second\0");
    let mut short = [0; 3];
    assert_eq!(
        rustix::fs::getxattr(&path, "user.note", &mut short[..]),
        Err(Errno::RANGE)
    );
    let mut list = vec![0; 1000];
    let len = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    assert_eq!(&list[..len], b"user.note\0");
    rustix::fs::removexattr(&path, "user.note").unwrap();
    assert_eq!(
        rustix::fs::removexattr(&path, "user.note"),
        Err(Errno::NODATA)
    );
    // Version 2; owner rw-, group r--, others r--: valid, or the kernel would refuse it by itself.
    let entry = |tag: u8, bits: u8| [tag, 0, bits, 0, 255, 255, 255, 255];
    let acl = [&[2, 0, 0, 0][..], &entry(1, 6), &entry(4, 4), &entry(32, 4)].concat();
    let acl = rustix::fs::setxattr(&path, "system.posix_acl_access", &acl, XattrFlags::empty());
    assert_eq!(acl, Err(Errno::OPNOTSUPP));
}

#[test]
fn exclusive_creation_has_one_winner() {
    let dir = workdir("exclusive");
    let path = dir.join("lock");
    let winners: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| usize::from(File::create_new(&path).is_ok())))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(winners, 1);
}

#[test]
fn names_are_held_to_their_length_and_not_reserved() {
    let dir = workdir("names");
    File::create_new(dir.join("n".repeat(255))).unwrap();
    let error = File::create_new(dir.join("n".repeat(256))).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
    let error = File::create_new(dir.join(".janusfs-s3:a")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()));
    let bytes = OsStr::from_bytes(b"not \xff utf-8");
    File::create_new(dir.join(bytes)).unwrap();
    assert!(
        fs::read_dir(&*dir)
            .unwrap()
            .any(|entry| entry.unwrap().file_name() == bytes)
    );
}

#[test]
fn mode_bits_are_kept_and_obeyed() {
    let dir = workdir("modes");
    let path = dir.join("file");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(&path)
        .unwrap();
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o640);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(mode(), 0o4711);
    if !rustix::process::geteuid().is_root() {
        return; // The rest needs another user to be refused.
    }
    rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(12345)), None).unwrap();
    assert_eq!(mode(), 0o711, "a change of owner drops the set-user-id bit");
    assert_eq!(fs::metadata(&path).unwrap().uid(), 12345);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // The mount's directory lies below a private one; the other user starts inside.
    let as_other = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=54321",
            "--regid=54321",
            "--clear-groups",
            "sh",
            "-c",
            script,
        ]);
        command.current_dir(&*dir).output().unwrap()
    };
    assert!(!as_other("cat file").status.success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let output = as_other("echo text > file && cat file");
    assert_eq!(
        output.stdout,
        b"text\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        mode(),
        0o777,
        "a write by someone else drops set-user-id and set-group-id"
    );
    assert!(
        !as_other("rm file").status.success(),
        "the directory is not theirs"
    );
}

#[test]
fn a_setgid_directory_passes_its_group_on() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = workdir("setgid");
    rustix::fs::chown(&*dir, None, Some(rustix::fs::Gid::from_raw(777))).unwrap();
    fs::set_permissions(&*dir, fs::Permissions::from_mode(0o2755)).unwrap();
    fs::create_dir(dir.join("inner")).unwrap();
    File::create_new(dir.join("file")).unwrap();
    let inner = fs::metadata(dir.join("inner")).unwrap();
    assert_eq!((inner.gid(), inner.mode() & 0o2000), (777, 0o2000));
    assert_eq!(fs::metadata(dir.join("file")).unwrap().gid(), 777);
}

#[test]
fn times_are_set_kept_and_moved_by_writes() {
    let dir = workdir("times");
    let path = dir.join("file");
    let mut file = File::create_new(&path).unwrap();
    file.write_all(b"buffered").unwrap();
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(-5, 1),
        last_modification: time(1_000_000_000, 123_456_789),
    };
    rustix::fs::futimens(&file, &times).unwrap();
    drop(file);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_000_000_000, 123_456_789),
        "as cp -p needs"
    );
    assert_eq!((metadata.atime(), metadata.atime_nsec()), (-5, 1));
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all(b"B")
        .unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.mtime() > 1_000_000_000);
    assert!((metadata.ctime(), metadata.ctime_nsec()) >= changed);
}

#[test]
fn special_files_are_kept() {
    let dir = workdir("special");
    let fifo = dir.join("fifo");
    rustix::fs::mknodat(
        CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    let socket = dir.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
    if rustix::process::geteuid().is_root() {
        let (device, number) = (dir.join("null"), rustix::fs::makedev(1, 3));
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, &device, kind, Mode::from_raw_mode(0o666), number).unwrap();
        let metadata = fs::metadata(&device).unwrap();
        assert!(metadata.file_type().is_char_device());
        assert_eq!(metadata.rdev(), number);
    }
}

#[test]
fn direct_io_goes_past_the_cache() {
    let dir = workdir("direct");
    let path = dir.join("file");
    fs::write(&path, pattern(64 << 10, 1)).unwrap();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed());
    let file = options.open(&path).unwrap();
    file.write_all_at(&pattern(8192, 2), 4096).unwrap();
    let mut piece = vec![0; 8192];
    file.read_exact_at(&mut piece, 4096).unwrap();
    assert!(piece == pattern(8192, 2));
    drop(file);
    assert!(
        fs::read(&path).unwrap()[4096..12_288] == pattern(8192, 2),
        "no stale page is left"
    );
}

#[test]
fn rewriting_in_place_is_seen_by_the_next_open() {
    let dir = workdir("rewrite");
    let path = dir.join("file");
    for round in 0..5 {
        let bytes = pattern(300_000, round);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        drop(file);
        assert!(fs::read(&path).unwrap() == bytes, "round {round}");
    }
}

#[test]
fn what_is_not_supported_says_so() {
    let dir = workdir("unsupported");
    let file = File::create_new(dir.join("file")).unwrap();
    let result = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 4096);
    assert_eq!(result, Err(Errno::OPNOTSUPP));
    assert_eq!(file.metadata().unwrap().len(), 0);
    // `fs::copy` asks for copy_file_range first, and the kernel copies instead.
    fs::write(dir.join("from"), pattern(200_000, 8)).unwrap();
    fs::copy(dir.join("from"), dir.join("to")).unwrap();
    assert!(fs::read(dir.join("to")).unwrap() == pattern(200_000, 8));
}

#[test]
fn statfs_tells_room_and_limits() {
    let dir = workdir("statfs");
    let stats = rustix::fs::statvfs(&*dir).unwrap();
    assert!(stats.f_blocks > 0 && stats.f_bavail > 0 && stats.f_bavail <= stats.f_blocks);
    assert_eq!(stats.f_namemax, 255);
    assert!(stats.f_files > 0);
    let link = dir.join("dangling");
    symlink("nowhere", &link).unwrap();
    let info = rustix::fs::statat(CWD, &link, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!(info.st_size, 7);
}
