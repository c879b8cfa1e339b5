//! The floor of the mount: the least a FUSE filesystem can do. Everything is in memory, names and attributes are believed by
//! the kernel for a minute, pages are kept, a thread for each core with a connection of its own.
//!
//! It is no filesystem to use: no permissions, links, limits or times worth having. A directory `first` of
//! [`FIRST_FILES`] empty files is there from the start, so that names can be looked up that the kernel has never seen.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    io,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use janusfs_env::tasks;

use crate::{child, run::cores};

const TTL: Duration = Duration::from_secs(60);
const GENERATION: Generation = Generation(0);
const ROOT: u64 = 1;
const BLOCK_BYTES: u32 = 4096;
/// Requests that the kernel sends ahead of their use.
const BACKGROUND_MAX: u16 = 64;
/// Files of the directory `first`, named by [`first_name`].
pub(crate) const FIRST_FILES: u64 = 6000;
/// The directory of files that nobody has looked up yet.
pub(crate) const FIRST: &str = "first";

/// Returns the name of a file in [`FIRST`].
pub(crate) fn first_name(number: u64) -> String {
    format!("{number:07}")
}

/// Serves on `mountpoint` until standard input ends; prints a line when it is mounted.
///
/// # Errors
/// When it cannot be mounted.
pub async fn serve(mountpoint: &Path) -> Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("janusfs-bench-floor".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    config.n_threads = Some(cores());
    config.clone_fd = true;
    let session = fuser::spawn_mount(Memory::new(), mountpoint, &config)
        .with_context(|| format!("cannot mount the floor on {}", mountpoint.display()))?;
    println!("mounted");
    let ended = child::asked_to_end().await;
    tasks::blocking(move || session.umount_and_join())
        .await
        .context("cannot unmount the floor")?;
    ended
}

/// What an inode holds.
enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<OsString, u64>),
}

struct Inode {
    number: u64,
    content: RwLock<Content>,
}

struct Memory {
    inodes: RwLock<HashMap<u64, Arc<Inode>>>,
    next: AtomicU64,
    born: SystemTime,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    fn new() -> Self {
        let memory = Self {
            inodes: RwLock::default(),
            next: AtomicU64::new(ROOT),
            born: UNIX_EPOCH,
        };
        let root = memory.add(FileType::Directory);
        let first = memory.add(FileType::Directory);
        for number in 0..FIRST_FILES {
            let file = memory.add(FileType::RegularFile);
            let _ = first.enter(OsStr::new(&first_name(number)), file.number);
        }
        let _ = root.enter(OsStr::new(FIRST), first.number);
        memory
    }

    fn add(&self, kind: FileType) -> Arc<Inode> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let content = RwLock::new(match kind {
            FileType::Directory => Content::Directory(BTreeMap::new()),
            _ => Content::File(Vec::new()),
        });
        let inode = Arc::new(Inode { number, content });
        write(&self.inodes).insert(number, inode.clone());
        inode
    }

    fn inode(&self, number: INodeNo) -> Result<Arc<Inode>, Errno> {
        read(&self.inodes)
            .get(&number.0)
            .cloned()
            .ok_or(Errno::ENOENT)
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Arc<Inode>, Errno> {
        let number = self.inode(parent)?.child(name)?;
        self.inode(INodeNo(number))
    }

    fn make(&self, parent: INodeNo, name: &OsStr, kind: FileType) -> Result<FileAttr, Errno> {
        let parent = self.inode(parent)?;
        let inode = self.add(kind);
        if let Err(errno) = parent.enter(name, inode.number) {
            write(&self.inodes).remove(&inode.number);
            return Err(errno);
        }
        Ok(self.attr(&inode))
    }

    fn remove(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let number = self
            .inode(parent)?
            .with_names(|names| names.remove(name).ok_or(Errno::ENOENT))??;
        write(&self.inodes).remove(&number);
        Ok(())
    }

    fn attr(&self, inode: &Inode) -> FileAttr {
        let (kind, size) = match &*read(&inode.content) {
            Content::File(bytes) => (
                FileType::RegularFile,
                u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            ),
            Content::Directory(_) => (FileType::Directory, 0),
        };
        FileAttr {
            ino: INodeNo(inode.number),
            size,
            blocks: size.div_ceil(512),
            atime: self.born,
            mtime: self.born,
            ctime: self.born,
            crtime: self.born,
            kind,
            perm: 0o777,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    /// Feeds a directory to `add` until it says that the reply is full. The snapshot of the names is taken anew for each
    /// reply, which is enough for directories that do not change while they are read.
    fn read_directory(
        &self,
        number: INodeNo,
        offset: u64,
        mut add: impl FnMut(u64, &OsStr, &FileAttr) -> bool,
    ) -> Result<(), Errno> {
        let directory = self.inode(number)?;
        let names: Vec<_> = {
            let content = read(&directory.content);
            let Content::Directory(names) = &*content else {
                return Err(Errno::ENOTDIR);
            };
            let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
            let rest = names.iter().skip(skipped);
            rest.map(|(name, number)| (name.clone(), *number))
                .take(512)
                .collect()
        };
        for (after, (name, number)) in (offset + 1..).zip(names) {
            let Ok(inode) = self.inode(INodeNo(number)) else {
                continue;
            };
            if add(after, &name, &self.attr(&inode)) {
                break;
            }
        }
        Ok(())
    }
}

impl Inode {
    fn with_names<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<OsString, u64>) -> T,
    ) -> Result<T, Errno> {
        match &mut *write(&self.content) {
            Content::Directory(names) => Ok(change(names)),
            Content::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn child(&self, name: &OsStr) -> Result<u64, Errno> {
        match &*read(&self.content) {
            Content::Directory(names) => names.get(name).copied().ok_or(Errno::ENOENT),
            Content::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn enter(&self, name: &OsStr, number: u64) -> Result<(), Errno> {
        self.with_names(|names| {
            if names.contains_key(name) {
                return Err(Errno::EEXIST);
            }
            names.insert(name.to_owned(), number);
            Ok(())
        })?
    }

    fn resize(&self, size: u64) -> Result<(), Errno> {
        match &mut *write(&self.content) {
            Content::File(bytes) => {
                bytes.resize(usize::try_from(size).map_err(|_| Errno::EFBIG)?, 0);
                Ok(())
            }
            Content::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn put(&self, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        match &mut *write(&self.content) {
            Content::File(bytes) => {
                let end = start + data.len();
                if start == bytes.len() {
                    bytes.extend_from_slice(data);
                } else {
                    if bytes.len() < end {
                        bytes.resize(end, 0);
                    }
                    bytes[start..end].copy_from_slice(data);
                }
                u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
            }
            Content::Directory(_) => Err(Errno::EISDIR),
        }
    }
}

fn entry(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

fn empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Memory {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        if let Err(missing) = config.add_capabilities(wanted) {
            let _ = config.add_capabilities(wanted & !missing);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(
            self.find(parent, name).map(|inode| self.attr(&inode)),
            reply,
        );
    }

    fn forget(&self, _request: &Request, _inode: INodeNo, _lookups: u64) {}

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.inode(inode) {
            Ok(inode) => reply.attr(&TTL, &self.attr(&inode)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _checked: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let result = self.inode(inode).and_then(|inode| {
            size.map_or(Ok(()), |size| inode.resize(size))?;
            Ok(self.attr(&inode))
        });
        match result {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        entry(self.make(parent, name, FileType::Directory), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.remove(parent, name), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.remove(parent, name), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = || {
            let (from, to) = (self.inode(parent)?, self.inode(new_parent)?);
            let number = from.with_names(|names| names.remove(name).ok_or(Errno::ENOENT))??;
            to.with_names(|names| names.insert(new_name.to_owned(), number))?;
            Ok(())
        };
        empty(renamed(), reply);
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncates = flags.0 & i32::try_from(rustix::fs::OFlags::TRUNC.bits()).unwrap_or(0) != 0;
        let opened = self
            .inode(inode)
            .and_then(|inode| if truncates { inode.resize(0) } else { Ok(()) });
        match opened {
            Ok(()) => reply.opened(FileHandle(0), open_flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(parent, name, FileType::RegularFile) {
            Ok(attr) => reply.created(&TTL, &attr, GENERATION, FileHandle(0), open_flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inode = match self.inode(inode) {
            Ok(inode) => inode,
            Err(errno) => return reply.error(errno),
        };
        match &*read(&inode.content) {
            Content::File(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let len = usize::try_from(size).unwrap_or(usize::MAX);
                let end = start.saturating_add(len).min(bytes.len());
                reply.data(&bytes[start..end]);
            }
            Content::Directory(_) => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.inode(inode).and_then(|inode| inode.put(offset, data)) {
            Ok(len) => reply.written(len),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn getxattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let fed = self.read_directory(inode, offset, |after, name, attr| {
            reply.add(attr.ino, after, attr.kind, name)
        });
        match fed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fed = self.read_directory(inode, offset, |after, name, attr| {
            reply.add(attr.ino, after, name, &TTL, attr, GENERATION)
        });
        match fed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        reply.statfs(
            1 << 20,
            1 << 20,
            1 << 20,
            1 << 20,
            1 << 20,
            BLOCK_BYTES,
            255,
            BLOCK_BYTES,
        );
    }
}

fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
}
