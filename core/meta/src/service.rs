//! The service's face: decodes a request, runs its operation, encodes the answer. Total over the message numbers.

use futures::future::{BoxFuture, FutureExt};
use janusfs_env::metrics;
use janusfs_kv::Kv;
use janusfs_rpc::{Handler, Reply, Request, decode};
use janusfs_types::{FsError, limits};
use janusfs_wire::{
    Method, Wire,
    meta::{
        AllocIds, Close, CommitWrite, Create, Fsck, GetAttr, GetXattr, Heartbeat, Hello, Link,
        ListXattr, Lookup, Open, ReadDir, ReadLink, RemoveXattr, Rename, Rmdir, SetAttr, SetXattr,
        Spill, StatFs, Symlink, SyncMeta, Trimmed, Truncate, Unlink, Unshare, Watch, WriteInline,
    },
};

use crate::{Meta, room, s3, watched::in_name_of};

macro_rules! answer {
    ($meta:ident, $request:ident, { $($Message:ident => $op:ident,)* }, $other:expr) => {
        match $request.method {
            $($Message::ID => {
                let message: $Message = decode(&$request.head)?;
                let answer = $meta.$op(message).await?;
                Ok(answer.to_wire())
            })*
            _ => $other,
        }
    };
}

impl<K: Kv> Handler for Meta<K> {
    fn handle(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>> {
        metrics::META_OPS.add(1);
        let caller = request.caller;
        let remote = caller.is_some_and(|caller| caller.remote);
        let answer = async move {
            room::check(&*self.kv, request.method)?;
            answer!(self, request, {
                Hello => hello,
                Heartbeat => heartbeat,
                AllocIds => alloc_ids,
                StatFs => stat_fs,
                SyncMeta => sync_meta,
                Fsck => fsck,
                Lookup => lookup,
                GetAttr => get_attr,
                SetAttr => set_attr,
                ReadDir => read_dir,
                Create => create,
                Symlink => symlink,
                ReadLink => read_link,
                Link => link,
                Unlink => unlink,
                Rmdir => rmdir,
                Rename => rename,
                Open => open_inode,
                Close => close,
                WriteInline => write_inline,
                Spill => spill,
                CommitWrite => commit_write,
                Truncate => truncate,
                Trimmed => trimmed,
                Unshare => unshare,
                SetXattr => set_xattr,
                GetXattr => get_xattr,
                ListXattr => list_xattr,
                RemoveXattr => remove_xattr,
            }, match s3::dispatch(self, request.method, request.head.clone()) {
                Some(answer) => Ok(answer.await?),
                None if request.method == Watch::ID => {
                    Ok(self.watch(decode(&request.head)?, remote).await?.to_wire())
                }
                None => {
                    let text = format!("metadata method {}", request.method);
                    Err(FsError::Unsupported(text))
                }
            })
        };
        async move {
            let (head, granted) = in_name_of(caller, answer).await;
            Ok(Reply {
                head: head?,
                lease_ms: if granted { limits::CACHE_LEASE_MS } else { 0 },
                ..Reply::default()
            })
        }
        .boxed()
    }
}
