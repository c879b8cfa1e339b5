//! A disk whose power can be cut: a file system in memory that forgets what was not synced.
//!
//! [`PowerCut`] mounts it, and a node keeps its data directory there. [`PowerCut::cut`] decides, by a seed, what of the
//! unsynced state reached the disk, forgets the rest, and mounts again, so that no page cache survives. The model is at
//! least as harsh as ext4, XFS or POSIX where those differ:
//!
//! - *Bytes* are volatile until `fsync` or `fdatasync` of the file, or a write with `O_SYNC` or `O_DSYNC`. At the cut each
//!   unsynced page of 4 KiB is kept (3 in 8), lost (3 in 8) or torn (1 in 4: each sector of 512 bytes is the old or the new
//!   one), apart from every other page, so a later write may survive an earlier one.
//! - *The size* (writes past the end, truncation, `fallocate`) is volatile as well, and apart from the bytes: a file may have
//!   grown without them (they are zeros), or not have grown.
//! - *Names* (create, remove, rename, mkdir) are volatile until `fsync` of the directory. `fsync` of a file does not save its
//!   name, which is POSIX, while ext4 and XFS do more. `fsync` of one directory does not save the names of another, unless
//!   renames tie them together. Of the other operations a prefix in the order they were made survives, as a journal has it;
//!   each happens whole: a rename over a name leaves the old or the new file, and never waits for its bytes.
//! - *`sync_file_range`* promises nothing.
//!
//! Absent: mode, owner and times as something to lose (nothing here depends on them), hard links, symbolic links, extended
//! attributes, lost or misdirected *synced* writes (`chain/engine` has a simulated disk for those).

mod disk;
mod filesystem;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use fuser::{BackgroundSession, MountOption};

use crate::Seeded;
use disk::{Disk, Owner};
use filesystem::Layer;

/// Threads that answer the kernel.
const THREADS: usize = 4;

/// What became of unsynced state at a cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Loss {
    /// Pages that reached the disk whole.
    pub pages_kept: u64,
    /// Pages that did not reach it.
    pub pages_lost: u64,
    /// Pages of which some sectors did.
    pub pages_torn: u64,
    /// Operations on names that reached it.
    pub names_kept: u64,
    /// Operations on names that were undone.
    pub names_lost: u64,
}

/// A mounted disk; unmounted when dropped.
pub struct PowerCut {
    disk: Arc<Mutex<Disk>>,
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
}

impl PowerCut {
    /// Mounts an empty disk on a directory.
    ///
    /// # Errors
    /// When mounting fails: it needs `/dev/fuse` and the right to mount.
    pub fn mount(mountpoint: &Path) -> anyhow::Result<Self> {
        let owner = Owner {
            mode: 0o700,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let mut layer = Self {
            disk: Arc::new(Mutex::new(Disk::new(owner))),
            mountpoint: mountpoint.to_owned(),
            session: None,
        };
        layer.start()?;
        Ok(layer)
    }

    /// Cuts the power and switches it on again: afterwards the directory holds what reached the disk. Nobody may have a
    /// file of it open.
    ///
    /// # Errors
    /// When unmounting or mounting fails.
    pub fn cut(&mut self, seed: u64) -> anyhow::Result<Loss> {
        self.stop()?;
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let loss = disk.cut(&mut Seeded::new(seed));
        drop(disk);
        self.start()?;
        Ok(loss)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            MountOption::FSName("janusfs-power-cut".into()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
        ];
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let layer = Layer::new(Arc::clone(&self.disk));
        let session = fuser::spawn_mount(layer, &self.mountpoint, &config);
        let session =
            session.with_context(|| format!("mounting a disk on {}", self.mountpoint.display()))?;
        self.session = Some(session);
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        match self.session.take() {
            Some(session) => session
                .umount_and_join()
                .with_context(|| format!("unmounting {}", self.mountpoint.display())),
            None => Ok(()),
        }
    }
}

impl Drop for PowerCut {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests;
