//! A node whose namespace is mounted too, for tests that look through both doors.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::TestNode;

/// A `janusfs up` process with a mount. Ends with SIGTERM, so that the mount goes first.
pub struct MountedNode {
    /// The process.
    pub node: TestNode,
    mountpoint: PathBuf,
}

impl MountedNode {
    /// Starts a node with further arguments and a mount on a fresh directory.
    ///
    /// # Errors
    /// As [`TestNode::start`].
    pub fn start<A: AsRef<OsStr>>(args: &[A]) -> anyhow::Result<Self> {
        Self::with(args, TestNode::start)
    }

    /// As [`MountedNode::start`], on a data directory of the caller's.
    ///
    /// # Errors
    /// As [`TestNode::start`].
    pub fn start_on<A: AsRef<OsStr>>(data: &Path, args: &[A]) -> anyhow::Result<Self> {
        Self::with(args, |args| TestNode::start_on(data, args))
    }

    fn with<A: AsRef<OsStr>>(
        args: &[A],
        start: impl FnOnce(&[OsString]) -> anyhow::Result<TestNode>,
    ) -> anyhow::Result<Self> {
        let mountpoint = tempfile::tempdir().context("a mount point")?.keep();
        let mut all: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        all.extend(["--mount".into(), mountpoint.clone().into()]);
        Ok(Self {
            node: start(&all)?,
            mountpoint,
        })
    }

    /// Returns the mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for MountedNode {
    fn drop(&mut self) {
        if self.node.pid().is_some()
            && let Err(error) = self.node.terminate()
        {
            eprintln!("the node did not end in order: {error:#}");
            let detached = Command::new("umount")
                .arg("-l")
                .arg(&self.mountpoint)
                .status();
            eprintln!("its mount was detached: {detached:?}");
        }
        // Fails if the mount is still there.
        if let Err(error) = std::fs::remove_dir(&self.mountpoint) {
            eprintln!(
                "the mount point {} stays: {error}",
                self.mountpoint.display()
            );
        }
    }
}
