//! The mount under load, against a FUSE filesystem in memory, tmpfs and the disk, with the same system calls on each.
//!
//! What the page cache holds decides what a cell measures. `cold` drops the file's pages on the mount and, since the server
//! keeps its data in files of its own, the pages of those; neither needs root. `warm` reads what was just read. The 4 KiB
//! random reads go past the page cache of the mount and find the data in that of the server.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{Advice, fadvise};
use tokio::runtime::Handle;

use crate::{
    child::{Floor, Up},
    disk::{self, Aligned, DiskWrite, MIB, open_direct, wide},
    floor_fs::{FIRST, FIRST_FILES, first_name},
    measure::{Bench, Done, Slice, side},
    noise::{next, noise},
    report::{Aim, Spec, Unit},
    s3,
    scratch::Scratch,
};

const BLOCK: usize = 4096;
/// The file of the random reads.
const SMALL_BYTES: u64 = 64 << 20;
/// The file of the sequential reads.
const LARGE_BYTES: u64 = 256 << 20;
/// Files of 4 KiB that the reading cells use, and entries of a listed directory.
const FILES: u64 = 1000;
/// Most files that one slice of a making or removing cell uses.
const FILES_MAX: u64 = 20_000;

const fn spec(name: &'static str, unit: Unit, aim: Option<Aim>, space_mib: u64) -> Spec {
    Spec {
        name,
        unit,
        aim,
        space_bytes: space_mib << 20,
    }
}

/// Every cell of the mount.
pub(crate) const CELLS: &[Spec] = {
    use Unit::{MibPerSecond, OpsPerSecond};
    &[
        spec(
            "random-read-4k-x1",
            OpsPerSecond,
            Some(Aim::Ratio(0.6)),
            128,
        ),
        spec(
            "random-read-4k-x8",
            OpsPerSecond,
            Some(Aim::Ratio(0.6)),
            128,
        ),
        spec("read-1m-cold", MibPerSecond, Some(Aim::Ratio(0.6)), 768),
        spec("read-1m-warm", MibPerSecond, Some(Aim::Ratio(0.9)), 512),
        spec("write-1m-fsync", MibPerSecond, None, 3072),
        spec("write-4k-fdatasync", OpsPerSecond, None, 64),
        spec(
            "create-write-close",
            OpsPerSecond,
            Some(Aim::Ratio(0.15)),
            256,
        ),
        spec("open-read-close", OpsPerSecond, Some(Aim::Ratio(0.5)), 64),
        spec("stat-first", OpsPerSecond, None, 64),
        spec("stat-again", OpsPerSecond, None, 64),
        spec("readdir-stat", OpsPerSecond, None, 64),
        spec("rename", OpsPerSecond, None, 64),
        spec("unlink", OpsPerSecond, None, 256),
        spec("mkdir", OpsPerSecond, None, 256),
    ]
};

fn cell(name: &str) -> &'static Spec {
    CELLS
        .iter()
        .find(|spec| spec.name == name)
        .expect("the cell is in the table")
}

/// Fails early where no mount can be made.
fn check_device() -> Result<()> {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "/dev/fuse is missing: load the module (modprobe fuse), or give the container the device \
             (--device /dev/fuse --cap-add SYS_ADMIN)"
        ),
        Err(error) => Err(error).context("cannot open /dev/fuse"),
    }
}

/// Measures the cells that were asked for.
pub(crate) fn measure(bench: &mut Bench, scratch: &Scratch, handle: &Handle) -> Result<()> {
    check_device()?;
    bench.say("mounting");
    let mount = scratch.folder("mount")?;
    let up = Up::start(scratch.join("fs"), Some(mount.clone()), &bench.stop)?;
    let floor_mount = scratch.folder("floor-mount")?;
    let args = ["fs".as_ref(), floor_mount.as_os_str()];
    let _floor = Floor::start(&args, "the floor filesystem", Some(floor_mount.clone()))?;
    let memory = Shared::make()?;
    let all = Places {
        ours: Place::new(&mount, "work")?,
        fuse: Place::new(&floor_mount, "work")?,
        tmpfs: Place::new(memory.0.path(), "work")?,
        disk: Place::new(&scratch.folder("disk")?, "work")?,
    };
    all.data(bench, &up, scratch)?;
    all.names(bench, &up)?;
    first(bench, &up, &mount, &floor_mount, handle)
}

/// A scratch directory in memory.
struct Shared(tempfile::TempDir);

impl Shared {
    fn make() -> Result<Self> {
        tempfile::Builder::new()
            .prefix("janusfs-bench-")
            .tempdir_in("/dev/shm")
            .map(Self)
            .context("cannot make a scratch directory in /dev/shm, the floor of warm reads")
    }
}

/// The same directory on each filesystem.
struct Places {
    ours: Place,
    fuse: Place,
    tmpfs: Place,
    disk: Place,
}

/// A directory of this run on one filesystem.
struct Place {
    root: PathBuf,
}

impl Places {
    fn data(&self, bench: &mut Bench, up: &Up, scratch: &Scratch) -> Result<()> {
        for threads in [1, 8] {
            let spec = cell(&format!("random-read-4k-x{threads}"));
            let floor = side("fuse-memory", |slice: &Slice| {
                self.fuse.random_read(slice, threads)
            });
            let ours = side("ours", |slice: &Slice| {
                self.ours.random_read(slice, threads)
            });
            bench.cell(spec, Some(up), vec![floor], ours)?;
        }
        let floors = vec![
            side("disk", |slice: &Slice| self.disk.read_direct(slice)),
            side("tcp", disk::tcp),
        ];
        let ours = side("ours", |slice: &Slice| self.ours.read_cold(slice, &up.data));
        bench.cell(cell("read-1m-cold"), Some(up), floors, ours)?;
        let floors = vec![side("tmpfs", |slice: &Slice| self.tmpfs.read_warm(slice))];
        let ours = side("ours", |slice: &Slice| self.ours.read_warm(slice));
        bench.cell(cell("read-1m-warm"), Some(up), floors, ours)?;
        let disk = DiskWrite::new(scratch.join("disk-floor"));
        let floors = vec![side("disk", |slice: &Slice| disk.run(slice))];
        let ours = side("ours", |slice: &Slice| self.ours.write(slice));
        bench.cell(cell("write-1m-fsync"), Some(up), floors, ours)?;
        let floors = vec![side("disk", |slice: &Slice| self.disk.write_synced(slice))];
        let ours = side("ours", |slice: &Slice| self.ours.write_synced(slice));
        bench.cell(cell("write-4k-fdatasync"), Some(up), floors, ours)
    }

    fn names(&self, bench: &mut Bench, up: &Up) -> Result<()> {
        type Load = fn(&Place, &Slice) -> Result<Done>;
        let loads: [(&str, Load); 7] = [
            ("create-write-close", Place::create),
            ("open-read-close", Place::open_read),
            ("stat-again", Place::stat),
            ("readdir-stat", Place::list),
            ("rename", Place::rename),
            ("unlink", Place::unlink),
            ("mkdir", Place::mkdir),
        ];
        for (name, load) in loads {
            let floor = side("fuse-memory", |slice: &Slice| load(&self.fuse, slice));
            let ours = side("ours", |slice: &Slice| load(&self.ours, slice));
            bench.cell(cell(name), Some(up), vec![floor], ours)?;
        }
        Ok(())
    }
}

/// The first `stat` of names that this kernel has never seen: on ours they come in through the S3 door.
fn first(bench: &mut Bench, up: &Up, mount: &Path, floor: &Path, handle: &Handle) -> Result<()> {
    let spec = cell("stat-first");
    if !bench.wants(spec.name) {
        return Ok(());
    }
    bench.say("storing names through the S3 door");
    let names: Vec<String> = (0..FIRST_FILES).map(first_name).collect();
    s3::store_empty(&up.account(), handle, FIRST, &names, &bench.stop)?;
    let stat = |root: PathBuf| {
        let mut at = 0;
        move |slice: &Slice| {
            let share = FIRST_FILES / 3;
            slice.repeat(|done| {
                if done == share || at == FIRST_FILES {
                    return Ok(None);
                }
                let path = root.join(first_name(at));
                at += 1;
                fs::metadata(&path).with_context(|| format!("cannot stat {}", path.display()))?;
                Ok(Some(0))
            })
        }
    };
    let floors = vec![side("fuse-memory", stat(floor.join(FIRST)))];
    bench.cell(
        spec,
        Some(up),
        floors,
        side("ours", stat(mount.join(FIRST))),
    )
}

impl Place {
    fn new(parent: &Path, name: &str) -> Result<Self> {
        let root = parent.join(name);
        fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root })
    }

    /// Returns a file of noise, made by the first who asks.
    fn file(&self, name: &str, len: u64) -> Result<PathBuf> {
        let path = self.root.join(name);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.size() == len) {
            return Ok(path);
        }
        let data = noise(MIB + BLOCK);
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            let mut left = len;
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(MIB).min(MIB);
                // Another start for each MiB, so that they differ.
                let start = usize::try_from(left / wide(MIB)).unwrap_or(0) * 13 % BLOCK;
                file.write_all(&data[start..start + part])?;
                left -= wide(part);
            }
            file.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Returns a directory of 4 KiB files, made by the first who asks.
    fn files(&self, name: &str, count: u64) -> Result<PathBuf> {
        let folder = self.root.join(name);
        if folder.is_dir() {
            return Ok(folder);
        }
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let data = noise(BLOCK);
        for number in 0..count {
            let path = folder.join(number.to_string());
            fs::write(&path, &data).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(folder)
    }

    fn random_read(&self, slice: &Slice, threads: usize) -> Result<Done> {
        let path = self.file("small", SMALL_BYTES)?;
        slice.repeat_on(threads, |thread| {
            let file = open_direct(&path, false)?;
            let mut buffer = Aligned::new(BLOCK);
            let mut state = 0x1234_5678 + wide(thread);
            Ok(move |_| {
                let block = next(&mut state) % (SMALL_BYTES / wide(BLOCK));
                file.read_exact_at(buffer.bytes_mut(), block * wide(BLOCK))
                    .context("cannot read")?;
                Ok(Some(wide(BLOCK)))
            })
        })
    }

    /// Reads the file from its begin past the page cache, again and again.
    fn read_direct(&self, slice: &Slice) -> Result<Done> {
        let path = self.file("large", LARGE_BYTES)?;
        let file = open_direct(&path, false)?;
        let mut buffer = Aligned::new(MIB);
        slice.repeat(|done| {
            let at = done * wide(MIB) % LARGE_BYTES;
            file.read_exact_at(buffer.bytes_mut(), at)
                .context("cannot read")?;
            Ok(Some(wide(MIB)))
        })
    }

    /// Reads the file once through, with nothing of it in memory; the clock runs for the reading alone.
    fn read_cold(&self, slice: &Slice, data: &Path) -> Result<Done> {
        let path = self.file("large", LARGE_BYTES)?;
        let mut total = Done::default();
        while total.ops == 0 || total.seconds < slice.duration.as_secs_f64() {
            drop_pages(&path)?;
            drop_tree(data)?;
            let done = read_through(slice, &path, false)?;
            total.ops += done.ops;
            total.bytes += done.bytes;
            total.seconds += done.seconds;
        }
        Ok(total)
    }

    fn read_warm(&self, slice: &Slice) -> Result<Done> {
        let path = self.file("large", LARGE_BYTES)?;
        // Brings in what a cold cell dropped.
        read_through(slice, &path, false)?;
        read_through(slice, &path, true)
    }

    fn write(&self, slice: &Slice) -> Result<Done> {
        const MOST_BYTES: u64 = 1 << 30;
        let path = self.root.join("written");
        let data = noise(MIB);
        let mut file = File::create(&path).context("cannot create a file")?;
        let running = slice.start();
        let (mut ops, mut bytes) = (0, 0);
        while ops == 0 || (running.goes_on() && bytes < MOST_BYTES) {
            file.write_all(&data).context("cannot write")?;
            ops += 1;
            bytes += wide(MIB);
        }
        file.sync_all().context("cannot sync")?;
        let done = running.done(ops, bytes)?;
        drop(file);
        fs::remove_file(&path).context("cannot remove a file")?;
        Ok(done)
    }

    fn write_synced(&self, slice: &Slice) -> Result<Done> {
        let path = self.file("synced", 16 << 20)?;
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .context("cannot open a file")?;
        let data = noise(BLOCK);
        slice.repeat(|done| {
            let at = done * wide(BLOCK) % (16 << 20);
            file.write_all_at(&data, at).context("cannot write")?;
            file.sync_data().context("cannot sync")?;
            Ok(Some(wide(BLOCK)))
        })
    }

    fn create(&self, slice: &Slice) -> Result<Done> {
        let folder = self.empty_folder("created")?;
        let data = noise(BLOCK);
        let done = slice.repeat(|done| {
            if done == FILES_MAX {
                return Ok(None);
            }
            let mut file =
                File::create_new(folder.join(done.to_string())).context("cannot create")?;
            file.write_all(&data).context("cannot write")?;
            Ok(Some(wide(BLOCK)))
        })?;
        fs::remove_dir_all(&folder).context("cannot clear away")?;
        Ok(done)
    }

    fn open_read(&self, slice: &Slice) -> Result<Done> {
        let folder = self.files("files", FILES)?;
        let mut buffer = vec![0; BLOCK];
        slice.repeat(|done| {
            let mut file =
                File::open(folder.join((done % FILES).to_string())).context("cannot open")?;
            file.read_exact(&mut buffer).context("cannot read")?;
            Ok(Some(wide(BLOCK)))
        })
    }

    fn stat(&self, slice: &Slice) -> Result<Done> {
        let folder = self.files("files", FILES)?;
        let look =
            |number: u64| fs::metadata(folder.join(number.to_string())).context("cannot stat");
        for number in 0..FILES {
            look(number)?;
        }
        slice.repeat(|done| look(done % FILES).map(|_| Some(0)))
    }

    /// Lists a directory and looks at each entry, as `ls -l` does; an operation is one entry.
    fn list(&self, slice: &Slice) -> Result<Done> {
        let folder = self.files("files", FILES)?;
        let mut done = slice.repeat(|_| {
            let mut entries = 0;
            for entry in fs::read_dir(&folder).context("cannot list")? {
                entry
                    .and_then(|entry| entry.metadata())
                    .context("cannot stat an entry")?;
                entries += 1;
            }
            ensure!(entries == FILES, "{entries} entries instead of {FILES}");
            Ok(Some(0))
        })?;
        done.ops *= FILES;
        Ok(done)
    }

    fn rename(&self, slice: &Slice) -> Result<Done> {
        let folder = self.empty_folder("renamed")?;
        let name = |number: u64| folder.join(number.to_string());
        fs::write(name(0), b"x").context("cannot write")?;
        let done = slice.repeat(|done| {
            fs::rename(name(done), name(done + 1)).context("cannot rename")?;
            Ok(Some(0))
        })?;
        fs::remove_dir_all(&folder).context("cannot clear away")?;
        Ok(done)
    }

    fn unlink(&self, slice: &Slice) -> Result<Done> {
        let count = slice.supply(4000.0, 4000);
        let folder = self.files("unlinked", count)?;
        let done = slice.repeat(|done| {
            if done == count {
                return Ok(None);
            }
            fs::remove_file(folder.join(done.to_string())).context("cannot unlink")?;
            Ok(Some(0))
        })?;
        fs::remove_dir_all(&folder).context("cannot clear away")?;
        Ok(done)
    }

    fn mkdir(&self, slice: &Slice) -> Result<Done> {
        let folder = self.empty_folder("directories")?;
        let done = slice.repeat(|done| {
            if done == FILES_MAX {
                return Ok(None);
            }
            fs::create_dir(folder.join(done.to_string())).context("cannot make a directory")?;
            Ok(Some(0))
        })?;
        fs::remove_dir_all(&folder).context("cannot clear away")?;
        Ok(done)
    }

    fn empty_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}

/// Reads a file from begin to end, 1 MiB at a time; `again`: over and over until time is up.
fn read_through(slice: &Slice, path: &Path, again: bool) -> Result<Done> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![0; MIB];
    let running = slice.start();
    let mut bytes = 0;
    let mut ops = 0;
    loop {
        let len = file
            .read_at(&mut buffer, bytes % LARGE_BYTES)
            .context("cannot read")?;
        ensure!(len > 0, "{} is shorter than it was made", path.display());
        bytes += wide(len);
        ops += 1;
        let whole = bytes % LARGE_BYTES == 0;
        if (whole && !again) || (again && !running.goes_on()) {
            return running.done(ops, bytes);
        }
    }
}

/// Writes out and drops a file's pages.
fn drop_pages(path: &Path) -> Result<()> {
    let drop = || -> std::io::Result<()> {
        let file = File::open(path)?;
        file.sync_data()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(())
    };
    drop().with_context(|| format!("cannot drop the pages of {}", path.display()))
}

/// Drops the pages of every file below a directory of a running server: files may come and go.
fn drop_tree(folder: &Path) -> Result<()> {
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let Ok(entry) = entry else { continue };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() && entry.path().exists() => drop_pages(&entry.path())?,
                _ => {}
            }
        }
    }
    Ok(())
}
