//! What the caller of a mount decides. What nobody tunes is a constant where it is used.

use std::path::PathBuf;

/// Settings of one mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountConfig {
    /// The directory to mount on; it must exist. What is in it is hidden while mounted.
    pub mountpoint: PathBuf,
    /// Refuses every change with `EROFS`.
    pub read_only: bool,
    /// Makes every write, close and namespace operation durable before it returns (`-o sync`).
    pub sync: bool,
    /// Lets users other than the mounting one in, under the mode bits. A user other than root needs
    /// `user_allow_other` in `/etc/fuse.conf` for it.
    pub allow_other: bool,
    /// Threads that answer the kernel, at least 1. They wait for the network themselves, so this also bounds the
    /// number of requests in progress.
    pub threads: usize,
    /// The source that `mount` and `df` show.
    pub fsname: String,
}

impl MountConfig {
    /// Returns the usual settings for `mountpoint`: writable, asynchronous, private unless root mounts, two threads.
    #[must_use]
    pub fn new(mountpoint: PathBuf) -> Self {
        Self {
            mountpoint,
            read_only: false,
            sync: false,
            allow_other: rustix::process::geteuid().is_root(),
            threads: 2,
            fsname: "janusfs".into(),
        }
    }
}
