//! The seam to the data disk: positioned reads and writes, barriers, holes.
//!
//! [`file::FileDisk`] is the real one; the tests' `sim::SimDisk` forgets and tears unsynced sectors. Caching,
//! retries and the layout of files are absent: the page cache and `slots` do those.

pub(crate) mod file;
#[cfg(test)]
pub(crate) mod sim;

use std::io;

/// Size and free bytes of the file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Space {
    pub(crate) capacity_bytes: u64,
    pub(crate) free_bytes: u64,
}

/// A directory of data files.
pub(crate) trait Disk: Send + Sync {
    /// Opens a data file, creating it if missing; its name is on stable storage when this returns.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Returns the space of the file system.
    fn space(&self) -> io::Result<Space>;
}

/// One data file.
pub(crate) trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn pread(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buf` if that needs no waiting, and tells whether it did.
    fn pread_cached(&self, buf: &mut [u8], offset: u64) -> io::Result<bool>;

    /// Writes all of `buf`; it is in the system's hands afterwards, not on stable storage.
    fn pwrite(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when everything written before is on stable storage.
    fn sync_data(&self) -> io::Result<()>;

    /// Gives the range's blocks back; it reads as zeros afterwards.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
}
