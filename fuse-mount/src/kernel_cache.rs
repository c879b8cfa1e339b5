//! The kernel's cache of names and attributes, as something that can be told to forget.
//!
//! Attributes are forgotten by a notification (`FUSE_NOTIFY_INVAL_INODE` without pages, `fuse(4)`), which takes no lock in
//! the kernel. Names are waited out: they are handed over for [`NAME_TTL`] at a time. The notification for a name takes the
//! directory's lock, which an operation that waits for this very process may hold; a process that is killed while it waits
//! there never goes away, and its mount hangs everyone who touches it. Dropping every name at once
//! (`FUSE_NOTIFY_INC_EPOCH`) would take whatever is mounted below with it.
//!
//! A reply that was written may not have been taken in yet by the thread that waits for it. So attributes that were handed
//! over a moment ago are forgotten twice, and names are waited out for a little longer than they live.
//!
//! File data is not this module's: pages are kept or dropped when a file is opened (`page_cache`).

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use janusfs_client::ForgetfulCache;
use janusfs_env::clock;
use janusfs_types::InodeId;
use janusfs_wire::meta::Forget;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

const NOTIFY_INVAL_INODE: i32 = 2;
/// `struct fuse_out_header`: length u32, code i32, unique u64 (0 for a notification).
const HEADER_LEN_BYTES: usize = 16;
/// An offset that means "no pages".
const NO_PAGES: i64 = -1;
/// For how long the kernel may believe a name without asking: long enough for a walk through a tree to ask for each
/// directory a few times, and what a change of a name just looked at waits.
pub(crate) const NAME_TTL: Duration = Duration::from_millis(100);
/// What a name is waited out for on top: the kernel counts from when the thread that asked takes the reply in, which on a
/// busy machine is some time slices later, in ticks of up to 10 ms.
const NAME_SLACK: Duration = Duration::from_millis(100);
/// Time within which the thread that waited for a reply has taken it in, unless the machine is overloaded.
const TAKEN_IN: Duration = Duration::from_millis(5);
/// Answers handed over that are remembered; with more at a time, everything counts as handed over just now.
const HANDED_OVER_MAX: usize = 1 << 14;

/// What was handed over lately, oldest first.
#[derive(Default)]
struct Recent(Mutex<VecDeque<(Instant, u64)>>);

impl Recent {
    fn add(&self, what: u64) {
        let mut recent = self.0.lock();
        if recent.len() == HANDED_OVER_MAX {
            recent.pop_front();
        }
        recent.push_back((clock::now(), what));
    }

    /// Returns how much of `within` is left since any of these was added.
    fn left(&self, within: Duration, is_meant: impl Fn(u64) -> bool) -> Duration {
        let recent = self.0.lock();
        let now = clock::now();
        let left = |at: Instant| (at + within).saturating_duration_since(now);
        if recent.len() == HANDED_OVER_MAX
            && let Some((oldest, _)) = recent.front()
            && !left(*oldest).is_zero()
        {
            return within;
        }
        let newest = recent.iter().rev();
        let mut young = newest.take_while(|(at, _)| !left(*at).is_zero());
        let found = young.find(|(_, what)| is_meant(*what));
        found.map_or(Duration::ZERO, |(at, _)| left(*at))
    }
}

/// The cache behind one mount.
pub(crate) struct KernelCache {
    /// The mount's `/dev/fuse`.
    device: OwnedFd,
    attrs: Recent,
    names: Recent,
}

impl KernelCache {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self {
            device,
            attrs: Recent::default(),
            names: Recent::default(),
        }
    }

    /// Forgets attributes that this mount changed in a way that the kernel does not know of.
    pub(crate) fn forget_attr(&self, inode: InodeId) {
        self.notify(&inode_message(inode));
    }

    /// Notes that the kernel is being handed attributes to believe.
    pub(crate) fn hands_over_attr(&self, inode: InodeId) {
        self.attrs.add(inode.0);
    }

    /// Notes that the kernel is being handed a name to believe, or moves what it believes there.
    pub(crate) fn hands_over_name(&self, parent: InodeId, name: &[u8]) {
        self.names.add(mark(parent, name));
    }

    fn notify(&self, message: &[u8]) -> bool {
        loop {
            return match rustix::io::write(&self.device, message) {
                // The kernel holds no such thing, or the mount is gone.
                Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN) => true,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "the kernel did not forget");
                    false
                }
            };
        }
    }

    fn forget_attrs(&self, inodes: &[InodeId]) -> bool {
        let mut forgotten = true;
        for inode in inodes {
            forgotten &= self.notify(&inode_message(*inode));
        }
        forgotten
    }
}

impl ForgetfulCache for KernelCache {
    fn forget(&self, what: &Forget) -> bool {
        let mut forgotten = self.forget_attrs(&what.inodes);
        let inodes: Vec<u64> = what.inodes.iter().map(|inode| inode.0).collect();
        let names: Vec<u64> = what
            .names
            .iter()
            .map(|name| mark(name.parent, &name.name))
            .collect();
        let taken_in = self.attrs.left(TAKEN_IN, |inode| inodes.contains(&inode));
        let lived = self
            .names
            .left(NAME_TTL + NAME_SLACK, |name| names.contains(&name));
        let wait = taken_in.max(lived);
        if !wait.is_zero() {
            let (lock, never) = (Mutex::new(()), Condvar::new());
            never.wait_for(&mut lock.lock(), wait);
            forgotten &= self.forget_attrs(&what.inodes);
        }
        forgotten
    }
}

fn mark(parent: InodeId, name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent.0, name).hash(&mut hasher);
    hasher.finish()
}

/// `struct fuse_notify_inval_inode_out`: inode u64, offset i64, length i64; after the header.
fn inode_message(inode: InodeId) -> [u8; 40] {
    let mut message = [0; 40];
    message[..4].copy_from_slice(&40u32.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    message[HEADER_LEN_BYTES..24].copy_from_slice(&inode.0.to_ne_bytes());
    message[24..32].copy_from_slice(&NO_PAGES.to_ne_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let inode = inode_message(InodeId(7));
        assert_eq!(inode[..4], 40u32.to_ne_bytes());
        assert_eq!(inode[4..8], NOTIFY_INVAL_INODE.to_ne_bytes());
        assert_eq!(inode[8..16], [0; 8]);
        assert_eq!(inode[16..24], 7u64.to_ne_bytes());
        assert_eq!(inode[24..32], (-1i64).to_ne_bytes());
    }

    #[test]
    fn what_was_handed_over_lately_is_waited_for() {
        let recent = Recent::default();
        recent.add(1);
        let hour = Duration::from_secs(3600);
        assert!(recent.left(hour, |what| what == 1) > hour / 2);
        assert!(recent.left(hour, |what| what == 2).is_zero());
        assert!(recent.left(Duration::ZERO, |_| true).is_zero());
    }

    #[test]
    fn too_much_to_remember_counts_as_all_of_it() {
        let recent = Recent::default();
        for what in 0..=HANDED_OVER_MAX as u64 {
            recent.add(what);
        }
        let hour = Duration::from_secs(3600);
        assert_eq!(recent.left(hour, |_| false), hour);
    }
}
