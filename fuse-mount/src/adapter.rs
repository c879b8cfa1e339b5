//! FUSE messages to `vfs` calls and back; the only file that knows fuser.
//!
//! A message is answered on the thread that read it: an answer from memory costs no thread hop, and a call that waits for
//! the network blocks its thread, within the client's deadlines. What fuser 0.18 cannot do is refused, not half done:
//! locks stay in the kernel, `fallocate`, `copy_file_range` and `lseek` answer `ENOSYS`, which makes the kernel fall back
//! (`EOPNOTSUPP`, copying, "all data") and never ask again.
//!
//! The kernel believes attributes for as long as the answer's lease lasts, and is told when they change through another
//! door; names (absent ones too) it believes for a moment, which such a change waits out (`kernel_cache`). Pages of files
//! stay until an open finds that the file changed elsewhere (`page_cache`).

use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle,
    FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, MountOption, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL,
    TimeOrNow, WriteFlags,
};
use janusfs_client::CacheLease;
use janusfs_env::{metrics, tasks};
use janusfs_types::{Attr, Credentials, FileKind, InodeId, limits};
use janusfs_wire::meta::RenameMode;
use tokio::sync::watch;

use crate::{
    MountConfig,
    kernel_cache::{KernelCache, NAME_TTL},
    vfs::{
        AttrUpdate, CreateRequest, Entries, Leased, OpenFlags, OpenReply, Vfs, VfsError,
        WriteOrigin,
    },
};

const GENERATION: Generation = Generation(0);
/// `st_blksize`: what `cp` and stdio read and write at once, one full readahead window.
const BLOCK_SIZE_BYTES: u32 = 128 << 10;
/// Unit of `statfs` counts.
const STATFS_UNIT_BYTES: u32 = 4096;
/// Requests that the kernel sends ahead of their use (readahead, asynchronous direct I/O) at a time.
const BACKGROUND_MAX: u16 = 64;
/// What `..` is called where its inode is not known without asking; `libfuse` says the same.
const UNKNOWN_INODE: u64 = 0xffff_ffff;

/// A running session.
pub(crate) struct Session(BackgroundSession);

impl Session {
    /// Mounts and starts to answer. `ended` turns true when the mount is gone and every file closed.
    pub(crate) fn start(
        vfs: Arc<Vfs>,
        config: &MountConfig,
        mountpoint: &Path,
        ended: watch::Sender<bool>,
    ) -> io::Result<Self> {
        let filesystem = Adapter {
            vfs: Arc::clone(&vfs),
            ended,
        };
        let session = fuser::Session::new(filesystem, mountpoint, &session_config(config))?;
        let device = session.as_fd().try_clone_to_owned()?;
        let kernel = Arc::new(KernelCache::new(device));
        vfs.mounted(Arc::clone(&kernel));
        vfs.client().serve_cache(kernel);
        session.spawn().map(Self)
    }

    /// Unmounts and waits for the threads; fails while files are open.
    pub(crate) fn unmount(self) -> io::Result<()> {
        self.0.umount_and_join()
    }

    /// Lets go of a session whose mount is gone. fuser would unmount once more, and take away whatever has been mounted
    /// there since; what is leaked is a closed connection's descriptor.
    pub(crate) fn abandon(self) {
        std::mem::forget(self.0);
    }
}

fn session_config(config: &MountConfig) -> Config {
    let mut session = Config::default();
    session.mount_options = vec![
        MountOption::FSName(config.fsname.clone()),
        // As text: fuser hands its own subtype option to `fusermount3` only.
        MountOption::CUSTOM("subtype=janusfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        if config.read_only {
            MountOption::RO
        } else {
            MountOption::RW
        },
    ];
    session.acl = if config.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    session.n_threads = Some(config.threads.max(1));
    session.clone_fd = true;
    session
}

struct Adapter {
    vfs: Arc<Vfs>,
    ended: watch::Sender<bool>,
}

impl Adapter {
    /// Runs a call to its end on this thread. A failure is logged here and nowhere else.
    fn run<T>(
        &self,
        operation: &'static str,
        inode: INodeNo,
        call: impl Future<Output = Result<T, VfsError>>,
    ) -> Result<T, Errno> {
        metrics::FUSE_OPS.add(1);
        let runtime = self.vfs.client().runtime();
        // A panic ends one request, not the thread: a mount that has lost its threads hangs everyone who touches it.
        let outcome = catch_unwind(AssertUnwindSafe(|| tasks::block_on(runtime, call)));
        let Ok(result) = outcome else {
            tracing::error!(operation, inode = %InodeId(inode.0), "the request panicked");
            return Err(Errno::EIO);
        };
        result.map_err(|error| {
            if !error.is_everyday() {
                tracing::debug!(operation, inode = %InodeId(inode.0), %error, "request failed");
            }
            Errno::from_i32(error.errno())
        })
    }

    /// Hands attributes to the kernel, and the name that led to them; `answer` gets their times to live.
    fn hand_over<T>(
        &self,
        lease: CacheLease,
        name: Option<(INodeNo, &OsStr)>,
        attr: Option<&Attr>,
        answer: impl FnOnce(Duration, Duration) -> T,
    ) -> T {
        self.vfs.client().hand_over(lease, |ttl| {
            let Some(kernel) = self.vfs.kernel().filter(|_| !ttl.is_zero()) else {
                return answer(Duration::ZERO, Duration::ZERO);
            };
            if let Some(attr) = attr {
                kernel.hands_over_attr(attr.inode);
            }
            if let Some((parent, name)) = name {
                kernel.hands_over_name(InodeId(parent.0), name.as_bytes());
            }
            answer(ttl, ttl.min(NAME_TTL))
        })
    }

    fn reply_entry(
        &self,
        name: (INodeNo, &OsStr),
        result: Result<Leased<Attr>, Errno>,
        reply: ReplyEntry,
    ) {
        match result {
            Ok(found) => {
                let attr = &found.value;
                self.hand_over(found.lease, Some(name), Some(attr), |attr_ttl, name_ttl| {
                    reply.entry_with_ttls(&attr_ttl, &name_ttl, &file_attr(attr), GENERATION);
                });
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn reply_attr(&self, result: Result<Leased<Attr>, Errno>, reply: ReplyAttr) {
        match result {
            Ok(found) => self.hand_over(found.lease, None, Some(&found.value), |ttl, _| {
                reply.attr(&ttl, &file_attr(&found.value));
            }),
            Err(errno) => reply.error(errno),
        }
    }
}

fn reply_empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn reply_xattr(result: Result<&[u8], Errno>, size: u32, reply: ReplyXattr) {
    let value = match result {
        Ok(value) => value,
        Err(errno) => return reply.error(errno),
    };
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // AUTO_INVAL_DATA stays off: it would ask for attributes before each cached read and drop the cache after each
        // own write. HANDLE_KILLPRIV_V2 makes set-user-id bits ours and spares an xattr look-up before each write.
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        if let Err(missing) = config.add_capabilities(wanted) {
            tracing::info!(
                ?missing,
                "the kernel lacks FUSE capabilities; going on without them"
            );
            let _ = config.add_capabilities(wanted & !missing);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn destroy(&mut self) {
        tasks::block_on(self.vfs.client().runtime(), self.vfs.close_all());
        self.ended.send_replace(true);
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let call = self.vfs.lookup(InodeId(parent.0), name.as_bytes());
        match self.run("lookup", parent, call) {
            Ok(found) => {
                let attr = found.value.as_ref();
                self.hand_over(
                    found.lease,
                    Some((parent, name)),
                    attr,
                    |attr_ttl, name_ttl| {
                        match attr {
                            Some(attr) => {
                                let attr = file_attr(attr);
                                reply.entry_with_ttls(&attr_ttl, &name_ttl, &attr, GENERATION);
                            }
                            None if name_ttl.is_zero() => reply.error(Errno::ENOENT),
                            // Inode 0 is an absent name that the kernel may remember.
                            None => {
                                let absent = bare_attr(INodeNo(0), FileType::RegularFile);
                                reply.entry(&name_ttl, &absent, GENERATION);
                            }
                        }
                    },
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, inode: INodeNo, _lookups: u64) {
        self.vfs.forget(InodeId(inode.0));
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let call = self.vfs.attr(InodeId(inode.0));
        self.reply_attr(self.run("getattr", inode, call), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _checked: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let update = AttrUpdate {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            accessed_ns: accessed.map(time_ns),
            modified_ns: modified.map(time_ns),
        };
        let caller = credentials(request);
        let call = self.vfs.set_attr(InodeId(inode.0), update, &caller);
        self.reply_attr(self.run("setattr", inode, call), reply);
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.run("readlink", inode, self.vfs.read_link(InodeId(inode.0))) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else {
            return reply.error(Errno::EINVAL);
        };
        let who = credentials(request);
        let call = self
            .vfs
            .make(InodeId(parent.0), name.as_bytes(), kind, mode, rdev, who);
        self.reply_entry((parent, name), self.run("mknod", parent, call), reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let who = credentials(request);
        let kind = FileKind::Directory;
        let call = self
            .vfs
            .make(InodeId(parent.0), name.as_bytes(), kind, mode, 0, who);
        self.reply_entry((parent, name), self.run("mkdir", parent, call), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = self.vfs.unlink(InodeId(parent.0), name.as_bytes());
        reply_empty(self.run("unlink", parent, call), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = self.vfs.rmdir(InodeId(parent.0), name.as_bytes());
        reply_empty(self.run("rmdir", parent, call), reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let who = credentials(request);
        let call = self
            .vfs
            .symlink(InodeId(parent.0), name.as_bytes(), target, who);
        self.reply_entry((parent, name), self.run("symlink", parent, call), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = rename_mode(flags) else {
            return reply.error(Errno::EINVAL);
        };
        let (from, to) = (name.as_bytes(), new_name.as_bytes());
        let call = self
            .vfs
            .rename(InodeId(parent.0), from, InodeId(new_parent.0), to, mode);
        reply_empty(self.run("rename", parent, call), reply);
    }

    fn link(
        &self,
        _request: &Request,
        inode: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let call = self
            .vfs
            .link(InodeId(inode.0), InodeId(new_parent.0), new_name.as_bytes());
        self.reply_entry((new_parent, new_name), self.run("link", inode, call), reply);
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        let caller = credentials(request);
        let call = self
            .vfs
            .open(InodeId(inode.0), OpenFlags::from_raw(flags.0), &caller);
        match self.run("open", inode, call) {
            Ok(open) => reply.opened(FileHandle(open.handle), open_flags(open)),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let create = CreateRequest {
            parent: InodeId(parent.0),
            name: name.as_bytes(),
            mode,
            flags: OpenFlags::from_raw(flags),
            who: credentials(request),
        };
        match self.run("create", parent, self.vfs.create(create)) {
            Ok((made, open)) => {
                let attr = &made.value;
                self.hand_over(
                    made.lease,
                    Some((parent, name)),
                    Some(attr),
                    |_, name_ttl| {
                        let (attr, handle) = (file_attr(attr), FileHandle(open.handle));
                        // fuser has one time to live for both here.
                        reply.created(&name_ttl, &attr, GENERATION, handle, open_flags(open));
                    },
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            /// Joins a reply of several pieces, which fuser takes as one slice; grows to the largest read, 1 MiB.
            static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        match self.run("read", inode, self.vfs.read(handle.0, offset, size)) {
            Ok(pieces) => match pieces.as_slice() {
                [] => reply.data(&[]),
                [piece] => reply.data(piece),
                pieces => JOINED.with_borrow_mut(|joined| {
                    joined.clear();
                    pieces
                        .iter()
                        .for_each(|piece| joined.extend_from_slice(piece));
                    reply.data(joined);
                }),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let origin = WriteOrigin {
            page_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            drops_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        match self.run(
            "write",
            inode,
            self.vfs.write(handle.0, offset, data, origin),
        ) {
            Ok(len) => reply.written(len),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.run("flush", inode, self.vfs.flush(handle.0)), reply);
    }

    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.run("fsync", inode, self.vfs.fsync(handle.0)), reply);
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(
            self.run("release", inode, self.vfs.release(handle.0)),
            reply,
        );
    }

    fn opendir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _flags: fuser::OpenFlags,
        reply: ReplyOpen,
    ) {
        let call = async { self.vfs.open_directory(InodeId(inode.0)) };
        match self.run("opendir", inode, call) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let call = read_directory(&self.vfs, handle, offset, false);
        match self.run("readdir", inode, call) {
            Ok(entries) => {
                fill(
                    &self.vfs,
                    inode,
                    offset,
                    entries,
                    |ino, at, kind, name, _| reply.add(ino, at, kind, OsStr::from_bytes(name)),
                );
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let call = read_directory(&self.vfs, handle, offset, true);
        let entries = match self.run("readdirplus", inode, call) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let lease = entries
            .as_ref()
            .map_or_else(CacheLease::none, Entries::lease);
        self.hand_over(lease, None, None, |_, name_ttl| {
            fill(
                &self.vfs,
                inode,
                offset,
                entries,
                |ino, at, kind, name, attr| {
                    let (attr, ttl) = match attr {
                        Some(attr) => (file_attr(&attr), name_ttl),
                        None => (bare_attr(ino, kind), Duration::ZERO),
                    };
                    if let Some(kernel) = self.vfs.kernel().filter(|_| !ttl.is_zero()) {
                        kernel.hands_over_attr(InodeId(ino.0));
                        kernel.hands_over_name(InodeId(inode.0), name);
                    }
                    reply.add(ino, at, OsStr::from_bytes(name), &ttl, &attr, GENERATION)
                },
            );
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        reply: ReplyEmpty,
    ) {
        let call = async { self.vfs.release_directory(handle.0) };
        reply_empty(self.run("releasedir", inode, call), reply);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(
            self.run("fsyncdir", inode, self.vfs.sync_directory()),
            reply,
        );
    }

    fn statfs(&self, _request: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let capacity = match self.run("statfs", inode, self.vfs.capacity()) {
            Ok(capacity) => capacity,
            Err(errno) => return reply.error(errno),
        };
        let unit = u64::from(STATFS_UNIT_BYTES);
        let (total, free) = (capacity.total_bytes / unit, capacity.free_bytes / unit);
        // Inodes have no limit of their own: as many as there is room for the smallest.
        let (nodes, free_nodes) = (capacity.inodes.saturating_add(free), free);
        let name_max = u32::try_from(limits::POSIX_NAME_MAX_BYTES).expect("255");
        let (unit, fragment) = (STATFS_UNIT_BYTES, STATFS_UNIT_BYTES);
        reply.statfs(
            total, free, free, nodes, free_nodes, unit, name_max, fragment,
        );
    }

    fn setxattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let call = self
            .vfs
            .set_xattr(InodeId(inode.0), name.as_bytes(), value, flags);
        reply_empty(self.run("setxattr", inode, call), reply);
    }

    fn getxattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let call = self.vfs.xattr(InodeId(inode.0), name.as_bytes());
        let value = self.run("getxattr", inode, call);
        reply_xattr(value.as_deref().map_err(|errno| *errno), size, reply);
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let call = self.vfs.list_xattrs(InodeId(inode.0), request.uid());
        let list = self.run("listxattr", inode, call);
        reply_xattr(list.as_deref().map_err(|errno| *errno), size, reply);
    }

    fn removexattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = self.vfs.remove_xattr(InodeId(inode.0), name.as_bytes());
        reply_empty(self.run("removexattr", inode, call), reply);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _len: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _inode_in: INodeNo,
        _handle_in: FileHandle,
        _offset_in: u64,
        _inode_out: INodeNo,
        _handle_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

/// Reads what comes at an offset: `.` and `..` are at 0 and 1, then the entries.
async fn read_directory(
    vfs: &Vfs,
    handle: FileHandle,
    offset: u64,
    plus: bool,
) -> Result<Option<Entries>, VfsError> {
    if offset == 0 {
        vfs.rewind_directory(handle.0)?;
    }
    vfs.read_directory(handle.0, offset.saturating_sub(2), plus)
        .await
}

/// Feeds what comes at an offset to `add` until it says that the reply is full. An entry's position is given as the one
/// after it, which the kernel asks for next.
fn fill(
    vfs: &Vfs,
    inode: INodeNo,
    offset: u64,
    entries: Option<Entries>,
    mut add: impl FnMut(INodeNo, u64, FileType, &[u8], Option<Attr>) -> bool,
) {
    if offset == 0 && add(inode, 1, FileType::Directory, b".", None) {
        return;
    }
    if offset <= 1 {
        let root = InodeId::ROOT.0;
        let parent = if inode.0 == root { root } else { UNKNOWN_INODE };
        if add(INodeNo(parent), 2, FileType::Directory, b"..", None) {
            return;
        }
    }
    let Some(entries) = entries else { return };
    let position = offset.saturating_sub(2);
    for (after, (name, attr)) in (position + 3..).zip(entries.iter(vfs)) {
        let kind = file_type(attr.kind);
        if add(INodeNo(attr.inode.0), after, kind, name, Some(attr)) {
            return;
        }
    }
}

fn credentials(request: &Request) -> Credentials {
    Credentials {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn open_flags(open: OpenReply) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, open.direct);
    flags.set(
        FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        open.parallel_writes,
    );
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, open.keep_cache);
    flags.set(FopenFlags::FOPEN_NOFLUSH, open.no_flush);
    flags
}

/// `None` for a mode that the kernel knows and we do not (`RENAME_WHITEOUT`), or for two at once.
fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

/// Reads the type bits of `mknod(2)`'s mode; none mean a regular file.
fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & 0o170_000 {
        0 | 0o100_000 => FileKind::Regular,
        0o010_000 => FileKind::Fifo,
        0o020_000 => FileKind::CharDevice,
        0o060_000 => FileKind::BlockDevice,
        0o140_000 => FileKind::Socket,
        _ => return None,
    })
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Socket => FileType::Socket,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode.0),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: system_time(attr.times.accessed_ns),
        mtime: system_time(attr.times.modified_ns),
        ctime: system_time(attr.times.changed_ns),
        crtime: system_time(attr.times.born_ns),
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).expect("twelve bits"),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE_BYTES,
        flags: 0,
    }
}

/// What a `READDIRPLUS` row of `.` and `..` needs; the kernel takes nothing but number and type from them.
fn bare_attr(inode: INodeNo, kind: FileType) -> FileAttr {
    FileAttr {
        ino: inode,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE_BYTES,
        flags: 0,
    }
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

/// Times outside what 64 bits of nanoseconds hold (the years 1677 to 2262) become the nearest.
///
/// Before 1970 the kernel sends negative seconds and *positive* nanoseconds; fuser 0.18 takes both away from the epoch,
/// which is put right here.
fn time_ns(time: TimeOrNow) -> Option<i64> {
    let TimeOrNow::SpecificTime(time) = time else {
        return None;
    };
    Some(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            let nanoseconds = i64::from(before.subsec_nanos());
            (-seconds)
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser makes of the kernel's seconds and nanoseconds.
    fn from_kernel(seconds: i64, nanoseconds: u32) -> TimeOrNow {
        let distance = Duration::new(seconds.unsigned_abs(), nanoseconds);
        let before = seconds < 0;
        TimeOrNow::SpecificTime(if before {
            UNIX_EPOCH - distance
        } else {
            UNIX_EPOCH + distance
        })
    }

    #[test]
    fn times_keep_their_nanoseconds_also_before_1970() {
        assert_eq!(
            time_ns(from_kernel(1_700_000_000, 123)),
            Some(1_700_000_000_000_000_123)
        );
        assert_eq!(time_ns(from_kernel(0, 1)), Some(1));
        assert_eq!(time_ns(from_kernel(-1, 999_999_999)), Some(-1));
        assert_eq!(time_ns(from_kernel(-5, 0)), Some(-5_000_000_000));
        assert_eq!(time_ns(from_kernel(1 << 40, 0)), Some(i64::MAX));
        assert_eq!(time_ns(from_kernel(-(1 << 40), 0)), Some(i64::MIN));
        assert_eq!(time_ns(TimeOrNow::Now), None);
        assert_eq!(system_time(-1), UNIX_EPOCH - Duration::from_nanos(1));
        assert_eq!(system_time(7), UNIX_EPOCH + Duration::from_nanos(7));
    }

    #[test]
    fn renames_we_do_not_know_are_refused() {
        assert_eq!(rename_mode(RenameFlags::empty()), Some(RenameMode::Replace));
        assert_eq!(
            rename_mode(RenameFlags::RENAME_NOREPLACE),
            Some(RenameMode::NoReplace)
        );
        assert_eq!(
            rename_mode(RenameFlags::RENAME_EXCHANGE),
            Some(RenameMode::Exchange)
        );
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), None);
        assert_eq!(
            rename_mode(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE),
            None
        );
    }

    #[test]
    fn mknod_knows_its_kinds() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(0o100_644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(0o010_600), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(0o020_600), Some(FileKind::CharDevice));
        assert_eq!(kind_of_mode(0o060_600), Some(FileKind::BlockDevice));
        assert_eq!(kind_of_mode(0o140_600), Some(FileKind::Socket));
        assert_eq!(
            kind_of_mode(0o040_755),
            None,
            "a directory has its own call"
        );
    }

    #[test]
    fn open_replies_become_flags() {
        let open = OpenReply {
            handle: 1,
            direct: false,
            parallel_writes: false,
            keep_cache: true,
            no_flush: true,
        };
        assert_eq!(
            open_flags(open),
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
        );
        let direct = OpenReply {
            direct: true,
            keep_cache: false,
            no_flush: false,
            ..open
        };
        assert_eq!(open_flags(direct), FopenFlags::FOPEN_DIRECT_IO);
    }
}
