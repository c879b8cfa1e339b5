//! The scratch directory of a run: on the disk to be measured, gone at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::report::Spec;

/// Room that the stores themselves take (logs, tables, preallocated data files), in bytes.
const BASE_BYTES: u64 = 768 << 20;

/// A directory that is removed when this goes away.
pub(crate) struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// Makes it in `parent`, else in the current directory.
    pub(crate) fn make(parent: Option<&Path>) -> Result<Self> {
        let parent = parent.unwrap_or(Path::new("."));
        let parent = parent.canonicalize().with_context(|| {
            format!(
                "{}: give an existing directory on the disk to be measured (--dir)",
                parent.display()
            )
        })?;
        let dir = tempfile::Builder::new()
            .prefix("janusfs-bench-")
            .tempdir_in(&parent)
            .with_context(|| {
                format!(
                    "cannot make a scratch directory in {}: give another one (--dir)",
                    parent.display()
                )
            })?;
        Ok(Self { dir })
    }

    /// Returns a path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory in it.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Fails when the disk lacks room for these cells at `seconds` a side.
    pub(crate) fn require(&self, cells: &[Spec], seconds: f64) -> Result<()> {
        let path = self.dir.path();
        let stat = rustix::fs::statvfs(path)
            .with_context(|| format!("cannot ask for the room on {}", path.display()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed = needed_bytes(cells, seconds);
        if free < needed {
            bail!(
                "{} has {} MiB free and these cells may need {} MiB: give another directory (--dir), fewer cells (--cell) \
                 or less time (--seconds)",
                path.display(),
                free >> 20,
                needed >> 20
            );
        }
        Ok(())
    }
}

/// Room that the cells may take: their caps, less when there is less time to fill them.
fn needed_bytes(cells: &[Spec], seconds: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part between 0 and 1 of a percentage"
    )]
    let percent = (seconds / 3.0 * 100.0).clamp(5.0, 100.0) as u64;
    let cells: u64 = cells.iter().map(|spec| spec.space_bytes).sum();
    BASE_BYTES + cells / 100 * percent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Unit;

    #[test]
    fn the_directory_goes_away_and_room_is_checked() {
        let scratch = Scratch::make(Some(&std::env::temp_dir())).unwrap();
        let inside = scratch.folder("a").unwrap();
        assert!(inside.is_dir());
        let endless = Spec {
            name: "x",
            unit: Unit::OpsPerSecond,
            aim: None,
            space_bytes: 1 << 60,
        };
        let error = scratch.require(&[endless], 3.0).unwrap_err().to_string();
        assert!(error.contains("--dir"), "{error}");
        drop(scratch);
        assert!(!inside.exists());
        assert!(Scratch::make(Some(Path::new("/nonexistent"))).is_err());
    }
}
