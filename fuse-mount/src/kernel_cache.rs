//! The kernel's cache of names and attributes, as something that can be told to forget (`fuse(4)`, notifications).
//!
//! A name is expired, not dropped: the kernel asks again, finds the same inode, and what is mounted below it stays
//! (`FUSE_EXPIRE_ONLY`, Linux 6.2; an older kernel drops the name). Expiring takes the directory's lock in the kernel,
//! which an operation of this mount on that directory may hold until it is answered: hence a thread of its own.
//! fuser 0.18 cannot send that flag, so both messages are written here.
//!
//! File data is not this module's: pages are kept or dropped when a file is opened (`page_cache`).

use std::os::fd::OwnedFd;

use janusfs_client::ForgetfulCache;
use janusfs_wire::meta::Forget;
use rustix::io::Errno;

const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
const EXPIRE_ONLY: u32 = 1;
/// `struct fuse_out_header`: length u32, code i32, unique u64 (0 for a notification).
const HEADER_LEN_BYTES: usize = 16;
/// An offset that means "no pages".
const NO_PAGES: i64 = -1;

/// The cache behind one mount.
pub(crate) struct KernelCache {
    /// The mount's `/dev/fuse`.
    device: OwnedFd,
}

impl KernelCache {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self { device }
    }

    fn notify(&self, message: &[u8]) -> bool {
        loop {
            return match rustix::io::write(&self.device, message) {
                // The kernel holds no such thing, or the mount is gone.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::NOTCONN) => true,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "the kernel did not forget");
                    false
                }
            };
        }
    }
}

impl ForgetfulCache for KernelCache {
    fn forget(&self, what: &Forget) -> bool {
        let mut forgotten = true;
        for inode in &what.inodes {
            forgotten &= self.notify(&inode_message(inode.0));
        }
        for name in &what.names {
            // What is longer was never a name to the kernel.
            if let Some(message) = entry_message(name.parent.0, &name.name) {
                forgotten &= self.notify(&message);
            }
        }
        forgotten
    }
}

fn message(code: i32, parts: &[&[u8]]) -> Vec<u8> {
    let len = HEADER_LEN_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut message = Vec::with_capacity(len);
    let len = u32::try_from(len).expect("a notification is short");
    message.extend_from_slice(&len.to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    parts
        .iter()
        .for_each(|part| message.extend_from_slice(part));
    message
}

/// `struct fuse_notify_inval_inode_out`: inode u64, offset i64, length i64.
fn inode_message(inode: u64) -> Vec<u8> {
    let (inode, offset, len) = (inode.to_ne_bytes(), NO_PAGES.to_ne_bytes(), [0; 8]);
    message(NOTIFY_INVAL_INODE, &[&inode, &offset, &len])
}

/// `struct fuse_notify_inval_entry_out`: parent u64, name length u32, flags u32; then the name and a zero byte.
fn entry_message(parent: u64, name: &[u8]) -> Option<Vec<u8>> {
    const NAME_MAX: usize = 255;
    if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
        return None;
    }
    let len = u32::try_from(name.len()).ok()?.to_ne_bytes();
    let (parent, flags) = (parent.to_ne_bytes(), EXPIRE_ONLY.to_ne_bytes());
    Some(message(
        NOTIFY_INVAL_ENTRY,
        &[&parent, &len, &flags, name, &[0]],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let inode = inode_message(7);
        assert_eq!(inode.len(), 40);
        assert_eq!(inode[..4], 40u32.to_ne_bytes());
        assert_eq!(inode[4..8], NOTIFY_INVAL_INODE.to_ne_bytes());
        assert_eq!(inode[16..24], 7u64.to_ne_bytes());
        assert_eq!(inode[24..32], (-1i64).to_ne_bytes());
        let entry = entry_message(1, b"name").unwrap();
        assert_eq!(entry.len(), 16 + 16 + 5);
        assert_eq!(entry[24..28], 4u32.to_ne_bytes());
        assert_eq!(entry[28..32], 1u32.to_ne_bytes());
        assert_eq!(entry[32..], *b"name\0");
    }

    #[test]
    fn what_is_no_name_is_not_sent() {
        for name in [&b""[..], &[b'x'; 256], b"a\0b"] {
            assert_eq!(entry_message(1, name), None);
        }
    }
}
