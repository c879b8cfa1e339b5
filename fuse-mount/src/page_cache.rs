//! Which version of a file's bytes the kernel's page cache holds, so that an open keeps the cache exactly when the file
//! has not changed elsewhere since.
//!
//! Invariant: where a version is remembered for an inode, every cached page of it holds that version's bytes, with this
//! mount's own writes on top. Forgetting is always safe: the next open drops the pages.

use std::collections::HashMap;

use janusfs_types::{DataVersion, InodeId};
use parking_lot::Mutex;

/// Most inodes remembered; past it all are forgotten, which costs one re-read of each.
const INODES_MAX: usize = 1 << 17;

/// Remembered versions by inode.
#[derive(Default)]
pub(crate) struct CachedVersions {
    versions: Mutex<HashMap<InodeId, DataVersion>>,
}

impl CachedVersions {
    /// Notes an open that saw `version`; tells whether the cached pages are still right.
    pub(crate) fn opened(&self, inode: InodeId, version: DataVersion) -> bool {
        let mut versions = self.versions.lock();
        if versions.len() >= INODES_MAX && !versions.contains_key(&inode) {
            versions.clear();
        }
        versions.insert(inode, version) == Some(version)
    }

    /// Notes that this mount published a change and the file is at `version` now. Each publication is one step: a
    /// larger one means that somebody else's change lies between, and the cache may hold neither.
    pub(crate) fn published(&self, inode: InodeId, version: DataVersion) {
        let mut versions = self.versions.lock();
        if let Some(known) = versions.get_mut(&inode) {
            if *known == version {
                return;
            }
            if known.next() == version {
                *known = version;
            } else {
                versions.remove(&inode);
            }
        }
    }

    /// Drops what is known about an inode.
    pub(crate) fn forget(&self, inode: InodeId) {
        self.versions.lock().remove(&inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(0x100);

    #[test]
    fn the_cache_is_kept_while_the_version_stays() {
        let cached = CachedVersions::default();
        assert!(
            !cached.opened(FILE, DataVersion(1)),
            "nothing is known at first"
        );
        assert!(cached.opened(FILE, DataVersion(1)));
        assert!(!cached.opened(FILE, DataVersion(2)), "somebody wrote");
        assert!(cached.opened(FILE, DataVersion(2)));
        cached.forget(FILE);
        assert!(!cached.opened(FILE, DataVersion(2)));
    }

    #[test]
    fn own_publications_keep_it_but_not_with_a_stranger_between() {
        let cached = CachedVersions::default();
        cached.opened(FILE, DataVersion(5));
        cached.published(FILE, DataVersion(6));
        cached.published(FILE, DataVersion(6));
        assert!(cached.opened(FILE, DataVersion(6)));
        cached.published(FILE, DataVersion(8));
        assert!(!cached.opened(FILE, DataVersion(8)));
    }

    #[test]
    fn the_table_is_bounded() {
        let cached = CachedVersions::default();
        for number in 0..=INODES_MAX as u64 {
            cached.opened(InodeId(number), DataVersion(1));
        }
        assert_eq!(cached.versions.lock().len(), 1);
    }
}
