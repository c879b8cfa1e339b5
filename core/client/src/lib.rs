//! The one data path: what the doors (S3 gateway, FUSE mount) use to reach metadata and bytes.
//!
//! Owns: planning file ranges onto chunks, streaming new objects, write-back of open files, the client's lease and its
//! reserved numbers, and the only retry policy of metadata calls. Absent: protocols of the doors, permission checks,
//! caching of clean data (the kernel's page cache does that), the chain protocol (`chain/`).
//!
//! Invariants:
//! - Bytes are in the hands of every serving replica before metadata that refers to them is published, and on stable
//!   storage before such metadata is made durable.
//! - Bytes that could not be written out stay dirty: a failure is met again at the next flush, never lost.
//! - Reading clean data takes no lock across an await and spawns nothing.
//! - A handle whose lease was lost answers `Stale`: what it refers to may have been reclaimed.
//!
//! Reading order: `client`, `plan`, `read`, `object_writer`, `file`, `write_back`, `write_out`, `dirty`, `lease`, `cache_lease`, `ids`, `retry`.
#![forbid(unsafe_code)]

mod cache_lease;
mod client;
mod dirty;
mod file;
mod ids;
mod lease;
mod object_writer;
mod plan;
mod read;
mod retry;
mod write_back;
mod write_out;

pub use cache_lease::{CacheLease, ForgetfulCache};
pub use client::Client;
pub use file::File;
pub use ids::AllocatedId;
pub use lease::EpochPin;
pub use object_writer::{ObjectWriter, WrittenObject};

#[cfg(test)]
mod tests {
    use std::future::Future;

    use bytes::Bytes;
    use janusfs_types::{Content, InodeId};
    use janusfs_wire::meta::GetAttr;

    use super::*;

    /// Doors run these on a runtime of several threads: that this compiles is the test.
    #[expect(dead_code, reason = "compiled, not run")]
    fn futures_are_send(client: &'static Client, file: &'static File, mut writer: ObjectWriter) {
        fn check(_: impl Future + Send) {}
        check(client.call(&GetAttr {
            inode: InodeId::ROOT,
        }));
        check(client.read(&Content::Inline(Vec::new()), 0, 0, 0));
        check(client.open(InodeId::ROOT, true));
        check(client.truncate(InodeId::ROOT, 0));
        check(file.read(0, 1));
        check(file.write(0, b""));
        check(file.fsync());
        check(file.close());
        check(async move {
            writer.push(Bytes::new()).await?;
            writer.finish().await
        });
    }
}
