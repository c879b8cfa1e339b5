//! The data directory of `janusfs up`.
//!
//! ```text
//! FORMAT          version of this layout, and the number of targets and replicas
//! LOCK            held by the process that runs
//! cluster.key     the cluster secret (0600)
//! credentials     the root user's S3 keys (0600)
//! endpoints.json  addresses of the running process; absent when it has stopped in order
//! meta/           the metadata store
//! targets/N/      one chunk engine each
//! ```
//! Invariant: a directory of a newer format, or with other targets or replicas than asked for, is refused before anything in
//! it is touched.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::output::UsageError;

const FORMAT_VERSION: u32 = 1;

/// What `FORMAT` holds.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    version: u32,
    /// Storage targets.
    pub(crate) targets: u32,
    /// Replicas of each chunk.
    pub(crate) replicas: u32,
}

/// Addresses of a running process.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Endpoints {
    /// S3.
    pub(crate) s3: String,
    /// Health and metrics.
    pub(crate) admin: String,
    /// Cluster.
    pub(crate) rpc: String,
}

/// The root user's keys.
pub(crate) struct Credentials {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// A data directory this process holds.
pub(crate) struct DataDir {
    path: PathBuf,
    /// Storage targets and replicas.
    pub(crate) format: Format,
    _lock: fs::File,
}

/// Refuses numbers that make no chains.
pub(crate) fn check_layout(targets: u32, replicas: u32) -> Result<(), UsageError> {
    if targets.is_multiple_of(replicas) {
        return Ok(());
    }
    Err(UsageError(format!(
        "{targets} targets cannot be cut into chains of {replicas}: make --targets a multiple of --replicas"
    )))
}

impl DataDir {
    /// Opens or makes the directory, and locks it.
    pub(crate) fn open(path: &Path, wanted: Option<(u32, u32)>) -> Result<Self> {
        if wanted.is_some() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .with_context(|| format!("cannot make the data directory {}", path.display()))?;
        }
        let path = path.canonicalize().with_context(|| {
            format!(
                "no data directory at {}: give --data DIR of `janusfs up`",
                path.display()
            )
        })?;
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("LOCK"))
            .with_context(|| format!("cannot write to {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "{} is in use by another janusfs process: stop it first, or give another --data",
                path.display()
            );
        }
        let format = open_format(&path.join("FORMAT"), wanted)?;
        make_stable(&path).with_context(|| format!("cannot make {} stable", path.display()))?;
        Ok(Self {
            path,
            format,
            _lock: lock,
        })
    }

    /// Returns a path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the root user's keys: from the file, else from the environment, else fresh ones, kept in the file.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        let path = self.join("credentials");
        if path.exists() {
            return read_credentials(&path);
        }
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (access_key, secret_key) = match (
            given("JANUSFS_ROOT_ACCESS_KEY"),
            given("JANUSFS_ROOT_SECRET_KEY"),
        ) {
            (Some(access_key), Some(secret_key)) => (access_key, secret_key),
            (None, None) => fresh_key(),
            _ => bail!("set both JANUSFS_ROOT_ACCESS_KEY and JANUSFS_ROOT_SECRET_KEY, or neither"),
        };
        let text =
            format!("JANUSFS_ROOT_ACCESS_KEY={access_key}\nJANUSFS_ROOT_SECRET_KEY={secret_key}\n");
        write_private(&path, text.as_bytes())?;
        Ok(Credentials {
            access_key,
            secret_key,
        })
    }

    /// Tells other commands where this process can be reached.
    pub(crate) fn publish(&self, endpoints: &Endpoints) -> Result<()> {
        write_private(
            &self.join("endpoints.json"),
            &serde_json::to_vec_pretty(endpoints)?,
        )
    }

    /// Says that nobody can be reached any more.
    pub(crate) fn withdraw(&self) {
        // Absent is as good: the next start writes it anew.
        let _ = fs::remove_file(self.join("endpoints.json"));
    }
}

/// Reads the addresses of a running process from its data directory.
pub(crate) fn endpoints(data: &Path) -> Result<Endpoints> {
    let path = data.join("endpoints.json");
    let text = fs::read(&path).with_context(|| {
        format!(
            "no JanusFS runs on {}: start `janusfs up --data {0}`, or give --data",
            data.display()
        )
    })?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Makes an access key and a secret key.
pub(crate) fn fresh_key() -> (String, String) {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let letters = |bytes: &[u8]| -> String {
        bytes
            .iter()
            .map(|byte| char::from(LETTERS[usize::from(byte % 32)]))
            .collect()
    };
    let access = janusfs_env::rng::random_bytes::<20>();
    let secret = janusfs_env::rng::random_bytes::<40>();
    (letters(&access), letters(&secret))
}

fn read_credentials(path: &Path) -> Result<Credentials> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(str::to_owned)
            .with_context(|| format!("{} has no {name}", path.display()))
    };
    Ok(Credentials {
        access_key: field("JANUSFS_ROOT_ACCESS_KEY")?,
        secret_key: field("JANUSFS_ROOT_SECRET_KEY")?,
    })
}

/// Puts the name of the directory, and of the one that its targets are in, on stable storage: what is acknowledged later
/// lies below them.
fn make_stable(path: &Path) -> std::io::Result<()> {
    match fs::create_dir(path.join("targets")) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for dir in [Some(path), path.parent()].into_iter().flatten() {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn open_format(path: &Path, wanted: Option<(u32, u32)>) -> Result<Format> {
    if !path.exists() {
        let Some((targets, replicas)) = wanted else {
            bail!(
                "{} is no JanusFS data directory",
                path.parent().unwrap_or(path).display()
            );
        };
        let format = Format {
            version: FORMAT_VERSION,
            targets,
            replicas,
        };
        write_private(path, &serde_json::to_vec(&format)?)?;
        return Ok(format);
    }
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let version = value
        .get("version")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(0);
    if version > u64::from(FORMAT_VERSION) {
        bail!(
            "the data directory has format {version}, this janusfs knows up to {FORMAT_VERSION}: run the newer janusfs \
             that made it; nothing was changed"
        );
    }
    let format: Format =
        serde_json::from_value(value).with_context(|| format!("{} is damaged", path.display()))?;
    match wanted {
        // The defaults mean "as it is": a plain `janusfs up` starts any directory again.
        Some((targets, replicas))
            if (targets, replicas) != (1, 1)
                && (targets, replicas) != (format.targets, format.replicas) =>
        {
            bail!(
                "the data directory was made with --targets {} --replicas {}: give the same, or another --data",
                format.targets,
                format.replicas
            )
        }
        _ => Ok(format),
    }
}

/// Writes a file of mode 0600 so that a crash leaves the old one or the new one.
fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        let parent = path
            .parent()
            .expect("files of the data directory have a parent");
        fs::File::open(parent)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_locked_and_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path, Some((6, 3))).unwrap();
        let busy = DataDir::open(&path, Some((6, 3))).err().unwrap();
        assert!(busy.to_string().contains("in use"), "{busy}");
        let keys = first.credentials().unwrap();
        drop(first);
        let again = DataDir::open(&path, Some((1, 1))).unwrap();
        assert_eq!((again.format.targets, again.format.replicas), (6, 3));
        assert_eq!(again.credentials().unwrap().secret_key, keys.secret_key);
    }

    #[test]
    fn a_newer_format_and_other_targets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), Some((2, 2))).unwrap());
        let other = DataDir::open(dir.path(), Some((3, 3))).err().unwrap();
        assert!(
            other.to_string().contains("--targets 2 --replicas 2"),
            "{other}"
        );
        fs::write(dir.path().join("FORMAT"), r#"{"version":9,"new":true}"#).unwrap();
        let newer = DataDir::open(dir.path(), Some((2, 2))).err().unwrap();
        assert!(newer.to_string().contains("format 9"), "{newer}");
    }

    #[test]
    fn targets_must_fill_chains() {
        let error = check_layout(4, 3).unwrap_err();
        assert!(error.to_string().contains("multiple"), "{error}");
        check_layout(6, 3).unwrap();
    }
}
