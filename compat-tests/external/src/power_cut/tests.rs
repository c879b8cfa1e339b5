use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::*;

struct Mounted {
    layer: PowerCut,
    dir: tempfile::TempDir,
}

fn mounted() -> Mounted {
    let dir = tempfile::tempdir().unwrap();
    let layer = PowerCut::mount(dir.path()).unwrap();
    Mounted { layer, dir }
}

#[test]
fn programs_see_an_ordinary_file_system_and_a_cut_takes_what_was_not_synced() {
    let mut disk = mounted();
    let dir = disk.dir.path().to_owned();
    let kept = vec![3; 300_001];
    fs::write(dir.join("kept.new"), &kept).unwrap();
    File::open(dir.join("kept.new"))
        .unwrap()
        .sync_data()
        .unwrap();
    fs::rename(dir.join("kept.new"), dir.join("kept")).unwrap();
    File::open(&dir).unwrap().sync_all().unwrap();
    let (mut lost, mut torn) = (0, 0);
    for seed in 0..16 {
        let file = OpenOptions::new()
            .write(true)
            .open(dir.join("kept"))
            .unwrap();
        file.write_all_at(&[4; 100_000], 0).unwrap();
        assert_eq!(fs::read(dir.join("kept")).unwrap()[..100_000], [4; 100_000]);
        file.sync_all().unwrap();
        file.write_all_at(&[5; 100_000], 0).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/new"), b"new").unwrap();
        drop(file);
        let loss = disk.layer.cut(seed).unwrap();
        lost += loss.pages_lost;
        torn += loss.pages_torn;
        let bytes = fs::read(dir.join("kept")).unwrap();
        assert_eq!(bytes.len(), kept.len());
        assert!(bytes[..100_000].iter().all(|byte| matches!(byte, 4 | 5)));
        assert_eq!(bytes[100_000..], kept[100_000..]);
        if dir.join("sub").exists() {
            fs::remove_dir_all(dir.join("sub")).unwrap();
            File::open(&dir).unwrap().sync_all().unwrap();
        }
    }
    assert!(lost > 0 && torn > 0);
}

#[test]
fn a_synchronous_write_needs_no_fsync() {
    let mut disk = mounted();
    let path = disk.dir.path().join("log");
    for flag in [OFlags::SYNC, OFlags::DSYNC] {
        let flag = i32::try_from(flag.bits()).unwrap();
        let mut options = OpenOptions::new();
        let mut file = options
            .append(true)
            .create(true)
            .custom_flags(flag)
            .open(&path)
            .unwrap();
        File::open(disk.dir.path()).unwrap().sync_all().unwrap();
        for line in 0..10 {
            writeln!(file, "{line}").unwrap();
        }
        drop(file);
    }
    disk.layer.cut(1).unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n".repeat(2)
    );
}

#[test]
fn direct_writes_are_volatile_until_a_sync() {
    let mut disk = mounted();
    let path = disk.dir.path().join("raw");
    let flag = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .custom_flags(flag);
    let block = |byte| vec![byte; 1 << 16];
    let file = options.open(&path).unwrap();
    file.write_all_at(&block(1), 0).unwrap();
    file.sync_data().unwrap();
    File::open(disk.dir.path()).unwrap().sync_all().unwrap();
    file.write_all_at(&block(2), 0).unwrap();
    let mut found = block(0);
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, block(2));
    drop(file);
    let loss = disk.layer.cut(2).unwrap();
    assert_eq!(loss.pages_kept + loss.pages_lost + loss.pages_torn, 16);
    let found = fs::read(&path).unwrap();
    assert!(found.iter().all(|byte| matches!(byte, 1 | 2)));
    assert!(found != block(1) && found != block(2));
}

#[test]
fn locks_preallocation_and_holes_work() {
    let disk = mounted();
    let path = disk.dir.path().join("file");
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap()
    };
    let (first, second) = (open(), open());
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&first, exclusive).unwrap();
    assert!(rustix::fs::flock(&second, exclusive).is_err());
    first.write_all_at(&[9; 10_000], 0).unwrap();
    rustix::fs::fallocate(&first, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(first.metadata().unwrap().len(), 10_000);
    rustix::fs::fallocate(&first, FallocateFlags::empty(), 0, 20_000).unwrap();
    assert_eq!(first.metadata().unwrap().len(), 20_000);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&first, punch, 100, 8000).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(
        bytes[..100] == [9; 100]
            && bytes[100..8100] == [0; 8000]
            && bytes[8100..10_000] == [9; 1900]
    );
    let names: Vec<_> = fs::read_dir(disk.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["file"]);
}
