//! Data files in a directory, through the page cache.
//!
//! Cached reads use `preadv2` with `RWF_NOWAIT` (Linux 4.14). A file system that does not know the flag answers
//! every cached read with "would wait", and the caller's blocking path serves it.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use rustix::{
    fs::FallocateFlags,
    io::{Errno, ReadWriteFlags},
};

use super::{Disk, DiskFile, Space};

/// A directory on a local file system.
pub(crate) struct FileDisk {
    dir: PathBuf,
}

impl FileDisk {
    /// Takes an existing directory.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

impl Disk for FileDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.dir.join(name);
        let created = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        if created {
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(Box::new(OpenFile { file }))
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(Space {
            capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

struct OpenFile {
    file: File,
}

impl DiskFile for OpenFile {
    fn pread(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn pread_cached(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let wanted = buf.len();
        let mut slices = [IoSliceMut::new(buf)];
        match rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(count == wanted),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn pwrite(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            // Only space is at stake where holes are unknown.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
