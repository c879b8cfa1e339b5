//! Mounting and unmounting, with errors that say what to do.
//!
//! Root mounts by `mount(2)`; anyone else through `fusermount3`. A mount left behind by a process that died answers
//! `ENOTCONN` to everyone: it is detached first, since nobody can be using it.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use janusfs_client::Client;
use janusfs_env::tasks;
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};
use tokio::sync::watch;

use crate::{MountConfig, adapter::Session, vfs::Vfs};

const FUSE_DEVICE: &str = "/dev/fuse";
const MOUNT_TABLE: &str = "/proc/self/mountinfo";
/// Readahead of a mount in KiB: one largest request. The kernel's default of 128 makes a scan eight times as many
/// requests; it adapts downwards by itself for random reads.
const READ_AHEAD_KIB: u32 = 1024;

/// Why a mount or unmount failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point does not exist.
    #[error("{} does not exist: create it first (mkdir -p {})", .0.display(), .0.display())]
    Missing(PathBuf),
    /// The mount point is no directory.
    #[error("{} is not a directory: give a directory to mount on", .0.display())]
    NotDirectory(PathBuf),
    /// Something is mounted there.
    #[error(
        "{} is already a mount point ({kind} from {source_name}): unmount it first (umount {}) or choose another directory",
        path.display(),
        path.display()
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Type of the filesystem there.
        kind: String,
        /// Its source.
        source_name: String,
    },
    /// The kernel offers no FUSE device.
    #[error(
        "/dev/fuse is missing: load the module (modprobe fuse), or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN)"
    )]
    NoDevice,
    /// The FUSE device may not be opened.
    #[error(
        "/dev/fuse may not be opened: run as root, or give the container the device (--device /dev/fuse)"
    )]
    DeviceDenied,
    /// No setuid helper, and the caller is not root.
    #[error(
        "fusermount3 is missing: install it (apt install fuse3, dnf install fuse3) or run as root"
    )]
    NoHelper,
    /// The caller may not let other users in.
    #[error(
        "only root may let other users in: add user_allow_other to /etc/fuse.conf, or mount without allow_other"
    )]
    AllowOtherDenied,
    /// Nothing is mounted there.
    #[error("nothing is mounted on {}", .0.display())]
    NotMounted(PathBuf),
    /// Files or working directories are still open.
    #[error(
        "{} is in use: close what is open there (fuser -vm {} lists it), then unmount again",
        .0.display(),
        .0.display()
    )]
    InUse(PathBuf),
    /// The caller may not unmount this.
    #[error("{} may not be unmounted by this user: use the one who mounted it, or root", .0.display())]
    NotPermitted(PathBuf),
    /// The system refused for another reason.
    #[error("{step} {} failed", path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// The directory.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

/// A mounted filesystem. Dropping it unmounts.
pub struct Mount {
    vfs: Arc<Vfs>,
    mountpoint: PathBuf,
    session: Option<Session>,
    ended: watch::Receiver<bool>,
}

/// Mounts the namespace of `client`. Returns when the mount answers. Blocks for the mount system call only.
///
/// # Errors
/// [`MountError`]; nothing stays mounted.
pub fn mount(client: Client, config: MountConfig) -> Result<Mount, MountError> {
    let mountpoint = prepare(&config.mountpoint)?;
    check_device()?;
    if !rustix::process::geteuid().is_root() && find_helper().is_none() {
        return Err(MountError::NoHelper);
    }
    let vfs = Arc::new(Vfs::new(client, config.sync));
    let (sender, ended) = watch::channel(false);
    let session = Session::start(Arc::clone(&vfs), &config, &mountpoint, sender)
        .map_err(|source| start_error(&mountpoint, source))?;
    set_read_ahead(&mountpoint);
    tracing::info!(mountpoint = %mountpoint.display(), read_only = config.read_only, "mounted");
    Ok(Mount {
        vfs,
        mountpoint,
        session: Some(session),
        ended,
    })
}

impl Mount {
    /// Returns the directory, as an absolute path.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts: publishes what open files buffer and waits for the last request. While files are open there, the
    /// mount is detached: it disappears from the tree, and those files work until they are closed or the process ends.
    ///
    /// # Errors
    /// [`MountError`] when the system refuses both.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.stop()
    }

    /// Waits until the mount is gone, by [`umount`] or anyone else. Blocks the thread.
    pub fn wait(&self) {
        tasks::block_on(self.vfs.client().runtime(), self.ended());
    }

    /// Waits until the mount is gone, by [`umount`] or anyone else.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the sender is gone: the session has ended either way.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    fn stop(&mut self) -> Result<(), MountError> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        if *self.ended.borrow() {
            session.abandon();
            return Ok(());
        }
        let path = &self.mountpoint;
        let Err(source) = session.unmount() else {
            tracing::info!(mountpoint = %path.display(), "unmounted");
            return Ok(());
        };
        if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) {
            return Ok(()); // Somebody else was faster.
        }
        if source.raw_os_error() != Some(Errno::BUSY.raw_os_error()) {
            return Err(MountError::System {
                step: "unmounting",
                path: path.clone(),
                source,
            });
        }
        tracing::warn!(mountpoint = %path.display(), "in use: detached; open files work until closed");
        tasks::block_on(self.vfs.client().runtime(), self.vfs.publish_all());
        detach(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(mountpoint = %self.mountpoint.display(), %error, "unmounting failed");
        }
    }
}

/// Unmounts the filesystem on `path`, whoever serves it.
///
/// # Errors
/// [`MountError::NotMounted`], [`MountError::InUse`], [`MountError::NotPermitted`] and others as they say.
pub fn umount(path: &Path) -> Result<(), MountError> {
    let mountpoint = absolute(path)?;
    if mounted_on(&mountpoint)?.is_none() {
        return Err(MountError::NotMounted(mountpoint));
    }
    match unmount(&mountpoint, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(MountError::InUse(mountpoint)),
        Err(Errno::INVAL | Errno::NOENT) => Err(MountError::NotMounted(mountpoint)),
        Err(Errno::PERM) => unmount_by_helper(mountpoint),
        Err(errno) => Err(system("unmounting", &mountpoint, errno.into())),
    }
}

fn unmount_by_helper(mountpoint: PathBuf) -> Result<(), MountError> {
    let helper = find_helper().ok_or(MountError::NoHelper)?;
    let output = Command::new(helper)
        .args(["-u", "--"])
        .arg(&mountpoint)
        .output()
        .map_err(|source| system("running fusermount3 for", &mountpoint, source))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.contains("busy") {
        Err(MountError::InUse(mountpoint))
    } else if words.contains("not permitted") || words.contains("not found in") {
        Err(MountError::NotPermitted(mountpoint))
    } else {
        Err(system("unmounting", &mountpoint, io::Error::other(words)))
    }
}

/// Checks the mount point and clears a dead mount off it; returns its absolute path.
fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    let mountpoint = absolute(path)?;
    // Not `stat`, which the kernel answers from its cache for a while after the process has died.
    if matches!(rustix::fs::statfs(&mountpoint), Err(Errno::NOTCONN)) {
        tracing::info!(mountpoint = %mountpoint.display(), "detaching a mount whose process is gone");
        detach(&mountpoint)?;
    }
    match fs::metadata(&mountpoint) {
        Ok(metadata) if !metadata.is_dir() => return Err(MountError::NotDirectory(mountpoint)),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Missing(mountpoint));
        }
        Err(source) => return Err(system("looking at", &mountpoint, source)),
    }
    match mounted_on(&mountpoint)? {
        None => Ok(mountpoint),
        Some(Mounted {
            kind, source_name, ..
        }) => Err(MountError::Busy {
            path: mountpoint,
            kind,
            source_name,
        }),
    }
}

/// Resolves all but the last component: a dead mount there cannot be resolved.
fn absolute(path: &Path) -> Result<PathBuf, MountError> {
    if let Ok(resolved) = path.canonicalize() {
        return Ok(resolved);
    }
    let full = std::path::absolute(path).map_err(|source| system("looking at", path, source))?;
    let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
        return Ok(full);
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::Missing(full)),
        Err(source) => Err(system("looking at", &full, source)),
    }
}

fn check_device() -> Result<(), MountError> {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(FUSE_DEVICE)
    {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Err(MountError::NoDevice),
            io::ErrorKind::PermissionDenied => Err(MountError::DeviceDenied),
            // ENODEV: the node is there, the module is not.
            _ if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
                Err(MountError::NoDevice)
            }
            _ => Err(system(
                "opening /dev/fuse for",
                Path::new(FUSE_DEVICE),
                error,
            )),
        },
    }
}

fn start_error(mountpoint: &Path, source: io::Error) -> MountError {
    let words = source.to_string();
    if words.contains("user_allow_other") {
        MountError::AllowOtherDenied
    } else if words.contains("fusermount3") && source.kind() == io::ErrorKind::NotFound {
        MountError::NoHelper
    } else {
        system("mounting on", mountpoint, source)
    }
}

fn detach(mountpoint: &Path) -> Result<(), MountError> {
    match unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) => {
            let helper = find_helper().ok_or(MountError::NoHelper)?;
            let status = Command::new(helper)
                .args(["-u", "-z", "--"])
                .arg(mountpoint)
                .status();
            match status {
                Ok(status) if status.success() => Ok(()),
                Ok(_) => Err(MountError::NotPermitted(mountpoint.to_path_buf())),
                Err(source) => Err(system("running fusermount3 for", mountpoint, source)),
            }
        }
        Err(errno) => Err(system("detaching", mountpoint, errno.into())),
    }
}

fn find_helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/bin", "/sbin"].map(PathBuf::from));
    let names = ["fusermount3", "fusermount"];
    let candidates: Vec<_> = folders.collect();
    names
        .iter()
        .flat_map(|name| candidates.iter().map(move |f| f.join(name)))
        .find(|p| p.is_file())
}

/// Raises the mount's readahead. Best effort: it takes root and sysfs, and the default only costs speed.
fn set_read_ahead(mountpoint: &Path) {
    if let Ok(Some(mounted)) = mounted_on(mountpoint) {
        let knob = format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device);
        if let Err(error) = fs::write(&knob, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(knob, %error, "readahead stays at the kernel's default");
        }
    }
}

fn system(step: &'static str, path: &Path, source: io::Error) -> MountError {
    MountError::System {
        step,
        path: path.to_path_buf(),
        source,
    }
}

/// A row of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mounted {
    /// `major:minor`.
    device: String,
    kind: String,
    source_name: String,
}

fn mounted_on(mountpoint: &Path) -> Result<Option<Mounted>, MountError> {
    let table = fs::read(MOUNT_TABLE)
        .map_err(|source| system("reading mountinfo for", mountpoint, source))?;
    Ok(find_mount(&table, mountpoint))
}

/// Finds the topmost mount on exactly this path (`proc_pid_mountinfo(5)`).
fn find_mount(table: &[u8], mountpoint: &Path) -> Option<Mounted> {
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    table.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let place = fields.nth(1)?;
        if OsString::from_vec(unescape(place)).as_bytes() != mountpoint.as_os_str().as_bytes() {
            return None;
        }
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, source_name) = (rest.next()?, rest.next().unwrap_or_default());
        Some(Mounted {
            device: text(device),
            kind: text(kind),
            source_name: text(source_name),
        })
    })
}

/// Undoes the table's octal escapes (space, tab, newline, backslash).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let code = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &rest[4..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        40 22 0:35 / /mnt/a\\040b rw,nosuid - fuse.janusfs janusfs rw,user_id=0\n\
        41 22 0:36 / /mnt/a\\134b rw master:3 propagate_from:2 - tmpfs none rw\n\
        42 22 0:37 / /mnt/x rw - tmpfs first rw\n\
        43 42 0:38 / /mnt/x rw - fuse.janusfs second rw\n";

    fn source_of(path: &str) -> Option<String> {
        find_mount(TABLE, Path::new(path)).map(|mounted| mounted.source_name)
    }

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        let mounted = find_mount(TABLE, Path::new("/mnt/a b")).unwrap();
        assert_eq!((&*mounted.device, &*mounted.kind), ("0:35", "fuse.janusfs"));
        assert_eq!(source_of("/mnt/a\\b").as_deref(), Some("none"));
        assert_eq!(
            source_of("/mnt/x").as_deref(),
            Some("second"),
            "the topmost counts"
        );
        assert_eq!(source_of("/mnt"), None);
        assert_eq!(source_of("/mnt/a"), None);
    }

    #[test]
    fn a_mount_point_must_be_a_free_directory() {
        let missing = prepare(Path::new("/nonexistent-parent/dir")).unwrap_err();
        assert!(
            missing
                .to_string()
                .contains("mkdir -p /nonexistent-parent/dir"),
            "{missing}"
        );
        let file = std::env::current_exe().unwrap();
        assert!(matches!(prepare(&file), Err(MountError::NotDirectory(_))));
        assert!(
            matches!(prepare(Path::new("/proc")), Err(MountError::Busy { kind, .. }) if kind == "proc")
        );
        let folder = file.parent().unwrap();
        assert_eq!(prepare(folder).unwrap(), folder.canonicalize().unwrap());
    }

    #[test]
    fn what_is_not_mounted_cannot_be_unmounted() {
        let folder = std::env::current_exe()
            .unwrap()
            .parent()
            .unwrap()
            .to_path_buf();
        assert!(matches!(umount(&folder), Err(MountError::NotMounted(_))));
    }
}
