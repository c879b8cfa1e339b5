use super::*;

const OWNER: Owner = Owner {
    mode: 0o700,
    uid: 0,
    gid: 0,
};

fn disk() -> Disk {
    Disk::new(OWNER)
}

fn file(disk: &mut Disk, name: &str) -> u64 {
    disk.create(ROOT, OsStr::new(name), OWNER, false).unwrap()
}

/// A file whose name, and these bytes, are durable.
fn synced(disk: &mut Disk, name: &str, bytes: &[u8]) -> u64 {
    let inode = file(disk, name);
    disk.write(inode, 0, bytes).unwrap();
    disk.sync_file(inode).unwrap();
    disk.sync_dir(ROOT).unwrap();
    inode
}

fn read(disk: &mut Disk, name: &str) -> Option<Vec<u8>> {
    let inode = disk.lookup(ROOT, OsStr::new(name)).ok()?;
    let size = disk.status(inode).unwrap().size;
    Some(disk.read(inode, 0, usize::try_from(size).unwrap()).unwrap())
}

/// Runs `prepare` and a power cut with many seeds and returns what `name` held afterwards.
fn outcomes(name: &str, prepare: impl Fn(&mut Disk)) -> BTreeSet<Option<Vec<u8>>> {
    let run = |seed| {
        let mut disk = disk();
        prepare(&mut disk);
        disk.cut(&mut Seeded::new(seed));
        read(&mut disk, name)
    };
    (0..64).map(run).collect()
}

#[test]
fn what_is_synced_stays_whatever_the_seed() {
    let bytes: Vec<u8> = (0..20_000_u32).map(|at| at.to_le_bytes()[0] | 1).collect();
    let found = outcomes("a", |disk| {
        synced(disk, "a", &bytes);
    });
    assert_eq!(found, BTreeSet::from([Some(bytes)]));
}

#[test]
fn an_unsynced_name_may_be_lost_even_if_the_file_was_synced() {
    let found = outcomes("a", |disk| {
        let inode = file(disk, "a");
        disk.write(inode, 0, b"x").unwrap();
        disk.sync_file(inode).unwrap();
    });
    assert_eq!(found, BTreeSet::from([None, Some(b"x".to_vec())]));
}

#[test]
fn unsynced_bytes_may_be_lost_kept_or_torn_at_sectors() {
    let found = outcomes("a", |disk| {
        let inode = synced(disk, "a", &[1; PAGE_BYTES]);
        disk.write(inode, 0, &[2; PAGE_BYTES]).unwrap();
    });
    let found: Vec<Vec<u8>> = found.into_iter().flatten().collect();
    assert!(found.contains(&vec![1; PAGE_BYTES]));
    assert!(found.contains(&vec![2; PAGE_BYTES]));
    assert!(found.len() > 2, "some are torn");
    for bytes in found {
        for sector in bytes.chunks(SECTOR_BYTES) {
            assert!(sector == [1; SECTOR_BYTES] || sector == [2; SECTOR_BYTES]);
        }
    }
}

#[test]
fn pages_of_one_write_are_decided_apart() {
    let found = outcomes("a", |disk| {
        let inode = synced(disk, "a", &[1; 2 * PAGE_BYTES]);
        disk.write(inode, 0, &[2; 2 * PAGE_BYTES]).unwrap();
    });
    let expected = [vec![1; PAGE_BYTES], vec![2; PAGE_BYTES]].concat();
    assert!(
        found.contains(&Some(expected)),
        "a later page without the earlier one's change is missing"
    );
}

#[test]
fn a_size_may_reach_the_disk_without_the_bytes_and_the_other_way_round() {
    let found = outcomes("a", |disk| {
        let inode = synced(disk, "a", b"");
        disk.write(inode, 0, b"xyz").unwrap();
    });
    let expected = [&b""[..], b"xyz", b"\0\0\0"].map(|bytes| Some(bytes.to_vec()));
    assert_eq!(found, BTreeSet::from(expected));
}

#[test]
fn a_truncation_is_volatile_until_it_is_synced() {
    let found = outcomes("a", |disk| {
        let inode = synced(disk, "a", b"xyz");
        disk.truncate(inode, 1).unwrap();
    });
    assert!(found.contains(&Some(b"xyz".to_vec())));
    assert!(found.contains(&Some(b"x".to_vec())));
    let found = outcomes("a", |disk| {
        let inode = synced(disk, "a", b"xyz");
        disk.truncate(inode, 1).unwrap();
        disk.grow(inode, 3).unwrap();
        disk.sync_file(inode).unwrap();
    });
    assert_eq!(found, BTreeSet::from([Some(b"x\0\0".to_vec())]));
}

#[test]
fn a_hole_is_volatile_until_it_is_synced() {
    let punched = |disk: &mut Disk| {
        let inode = synced(disk, "a", &[7; 3 * PAGE_BYTES]);
        disk.zero(inode, 10, 2 * PAGE_BYTES as u64).unwrap();
        inode
    };
    let mut expected = vec![7; 3 * PAGE_BYTES];
    expected[10..10 + 2 * PAGE_BYTES].fill(0);
    let mut now = disk();
    punched(&mut now);
    assert_eq!(read(&mut now, "a").unwrap(), expected);
    let found = outcomes("a", |disk| {
        punched(disk);
    });
    assert!(found.contains(&Some(vec![7; 3 * PAGE_BYTES])));
    let found = outcomes("a", |disk| {
        let inode = punched(disk);
        disk.sync_file(inode).unwrap();
    });
    assert_eq!(found, BTreeSet::from([Some(expected)]));
}

fn replaced(disk: &mut Disk) {
    synced(disk, "a", b"old");
    synced(disk, "b", b"new");
    disk.rename((ROOT, OsStr::new("b")), (ROOT, OsStr::new("a")), true)
        .unwrap();
}

#[test]
fn an_unsynced_rename_may_be_undone_and_happens_whole() {
    let found = outcomes("a", replaced);
    let (old, new) = (Some(b"old".to_vec()), Some(b"new".to_vec()));
    assert_eq!(found, BTreeSet::from([old, new.clone()]));
    assert_eq!(outcomes("b", replaced), BTreeSet::from([None, new.clone()]));
    let synced = outcomes("a", |disk| {
        replaced(disk);
        disk.sync_dir(ROOT).unwrap();
    });
    assert_eq!(synced, BTreeSet::from([new]));
}

#[test]
fn an_unsynced_removal_may_be_undone() {
    let remove = |disk: &mut Disk| {
        synced(disk, "a", b"old");
        disk.remove(ROOT, OsStr::new("a"), false).unwrap();
        assert!(disk.lookup(ROOT, OsStr::new("a")).is_err());
    };
    assert_eq!(
        outcomes("a", remove),
        BTreeSet::from([None, Some(b"old".to_vec())])
    );
    let found = outcomes("a", |disk| {
        remove(disk);
        disk.sync_dir(ROOT).unwrap();
    });
    assert_eq!(found, BTreeSet::from([None]));
}

#[test]
fn unsynced_names_survive_in_the_order_they_were_made() {
    for seed in 0..64 {
        let mut disk = disk();
        for name in ["a", "b", "c"] {
            file(&mut disk, name);
        }
        disk.cut(&mut Seeded::new(seed));
        let left: Vec<_> = disk
            .list(ROOT)
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(
            ["a", "b", "c"].map(OsString::from).starts_with(&left),
            "{left:?}"
        );
    }
}

#[test]
fn a_synced_directory_takes_along_what_a_rename_ties_it_to_and_nothing_else() {
    let mut disk = disk();
    let made =
        ["x", "y", "z"].map(|name| disk.create(ROOT, OsStr::new(name), OWNER, true).unwrap());
    disk.sync_dir(ROOT).unwrap();
    let [x, y, z] = made;
    disk.create(x, OsStr::new("f"), OWNER, false).unwrap();
    disk.create(z, OsStr::new("g"), OWNER, false).unwrap();
    disk.rename((x, OsStr::new("f")), (y, OsStr::new("f")), true)
        .unwrap();
    disk.sync_dir(y).unwrap();
    assert_eq!(disk.journal.len(), 1, "z is on its own");
    assert!(disk.dir(y).unwrap().durable.contains_key(OsStr::new("f")));
    assert!(disk.dir(x).unwrap().durable.is_empty());
}

#[test]
fn one_seed_is_one_outcome() {
    let run = |seed| {
        let mut disk = disk();
        for number in 0..20_u8 {
            let inode = file(&mut disk, &format!("{number}"));
            disk.write(inode, 0, &[number; 3 * PAGE_BYTES]).unwrap();
        }
        disk.cut(&mut Seeded::new(seed))
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
