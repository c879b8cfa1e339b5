//! The POSIX door: a FUSE mount of the namespace.
//!
//! Owns: which FUSE message becomes which client call, open handles, when the kernel may keep its page cache, and
//! mounting itself. What a mount promises is in `SEMANTICS.md`. Absent: permission checks (the kernel does them from
//! mode bits, `default_permissions`), advisory locks (the kernel keeps them, per host), a cache of names or attributes
//! beside the kernel's, and any byte of file data: buffers belong to `core/client`.
//!
//! Reading order: `config`, `mount`, `adapter`, `vfs`.

mod config;
mod mount;

mod adapter;
mod vfs;

mod dir_cache;
mod handles;
mod kernel_cache;
mod page_cache;

pub use config::MountConfig;
pub use mount::{Mount, MountError, mount, umount};
