//! The cluster secret: 32 random bytes in a file that only its owner can read.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Why a secret file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Reading or writing failed.
    #[error("cannot use the cluster secret {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not 64 hexadecimal digits.
    #[error(
        "{0} does not hold a cluster secret (64 hexadecimal digits): copy it again from the data directory of `janusfs up`"
    )]
    Malformed(PathBuf),
    /// Others can read the file.
    #[error("{0} can be read by other users: run `chmod 600 {0}`")]
    Exposed(PathBuf),
}

/// What the members of a cluster share. Never printed.
#[derive(Clone)]
pub struct ClusterSecret([u8; Self::LEN_BYTES]);

impl ClusterSecret {
    const LEN_BYTES: usize = 32;

    /// Wraps bytes.
    #[must_use]
    pub fn new(bytes: [u8; Self::LEN_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads the secret at `path`.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let io = |source| SecretError::Io {
            path: path.into(),
            source,
        };
        let mode = fs::metadata(path).map_err(io)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed(path.into()));
        }
        let text = fs::read_to_string(path).map_err(io)?;
        let bytes = parse(text.trim()).ok_or_else(|| SecretError::Malformed(path.into()))?;
        Ok(Self(bytes))
    }

    /// Reads the secret at `path`, or makes one there (mode 0600, synced) if there is no file.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn load_or_create(path: &Path) -> Result<Self, SecretError> {
        if path.exists() {
            return Self::load(path);
        }
        let bytes: [u8; Self::LEN_BYTES] = janusfs_env::rng::random_bytes();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let write = || {
            let fresh = path.with_extension("new");
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            fs::rename(&fresh, path)
        };
        write().map_err(|source| SecretError::Io {
            path: path.into(),
            source,
        })?;
        Ok(Self(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

fn parse(text: &str) -> Option<[u8; ClusterSecret::LEN_BYTES]> {
    if text.len() != 2 * ClusterSecret::LEN_BYTES || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; ClusterSecret::LEN_BYTES];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_secret_is_read_back_and_an_exposed_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        let made = ClusterSecret::load_or_create(&path).unwrap();
        assert_eq!(made.bytes(), ClusterSecret::load(&path).unwrap().bytes());
        assert!(!format!("{made:?}").contains("0x"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            ClusterSecret::load(&path),
            Err(SecretError::Exposed(_))
        ));
    }

    #[test]
    fn a_short_file_is_malformed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        fs::write(&path, "abc\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            ClusterSecret::load(&path),
            Err(SecretError::Malformed(_))
        ));
    }
}
