//! The `FORMAT` file: which layout a store directory has.
//!
//! Owns its text, `janusfs-kv <version>` and a line feed. Invariant: it is on stable storage before the first byte of the
//! store is. Absent: migrations; version 1 is the first.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use super::OpenError;

/// The layout that this program writes.
pub(super) const FORMAT_VERSION: u32 = 1;
const FILE_NAME: &str = "FORMAT";
const MAGIC: &str = "janusfs-kv ";

/// Checks the format of the store in `dir`, or writes it if `dir` is fresh.
pub(super) fn check_or_create(dir: &Path, fresh: bool) -> Result<(), OpenError> {
    let path = dir.join(FILE_NAME);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && fresh => {
            return create(dir).map_err(|source| OpenError::Io { path, source });
        }
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    let found = text
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.trim_end().parse::<u32>().ok())
        .ok_or(OpenError::NotAStore { path })?;
    if found > FORMAT_VERSION {
        return Err(OpenError::NewerFormat {
            found,
            supported: FORMAT_VERSION,
        });
    }
    Ok(())
}

fn create(dir: &Path) -> io::Result<()> {
    let fresh = dir.join("FORMAT.new");
    let mut file = File::create(&fresh)?;
    writeln!(file, "{MAGIC}{FORMAT_VERSION}")?;
    file.sync_all()?;
    std::fs::rename(&fresh, dir.join(FILE_NAME))?;
    File::open(dir)?.sync_all()
}
