//! The disk as the kernel sees it: requests in, answers out.
//!
//! The kernel's page cache is written through, so every write is here when the system call returns. Locks (`flock`,
//! `fcntl`) are left to the kernel. File handles carry nothing: an inode stays until the next cut.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::{
    fs::{FallocateFlags, OFlags},
    io::Errno,
};

use super::disk::{Disk, Owner, Status};

/// Nothing changes behind the kernel's back while the disk is mounted.
const TTL: Duration = Duration::from_secs(3600);
const GENERATION: Generation = Generation(0);
const BLOCK_BYTES: u32 = 4096;
/// Size and free space that the disk claims to have, in blocks: 256 GiB.
const BLOCKS: u64 = 64 << 20;
const NAME_MAX_BYTES: u32 = 255;

/// Answers for a disk.
pub(super) struct Layer {
    disk: Arc<Mutex<Disk>>,
}

impl Layer {
    pub(super) fn new(disk: Arc<Mutex<Disk>>) -> Self {
        Self { disk }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

fn attr(status: Status) -> FileAttr {
    FileAttr {
        ino: INodeNo(status.inode),
        size: status.size,
        blocks: status.pages * u64::from(BLOCK_BYTES / 512),
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(status),
        perm: u16::try_from(status.owner.mode & 0o7777).unwrap_or(0),
        nlink: 1,
        uid: status.owner.uid,
        gid: status.owner.gid,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn kind(status: Status) -> FileType {
    if status.is_dir {
        FileType::Directory
    } else {
        FileType::RegularFile
    }
}

fn owner(request: &Request, mode: u32) -> Owner {
    Owner {
        mode,
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn entry(reply: ReplyEntry, found: Result<Status, Errno>) {
    match found {
        Ok(status) => reply.entry(&TTL, &attr(status), GENERATION),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for Layer {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        entry(
            reply,
            disk.lookup(parent.0, name)
                .and_then(|inode| disk.status(inode)),
        );
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.disk().status(inode.0) {
            Ok(status) => reply.attr(&TTL, &attr(status)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk();
        let result = disk.status(inode.0).and_then(|status| {
            let Owner {
                mode: old_mode,
                uid: old_uid,
                gid: old_gid,
            } = status.owner;
            let owner = Owner {
                mode: mode.unwrap_or(old_mode),
                uid: uid.unwrap_or(old_uid),
                gid: gid.unwrap_or(old_gid),
            };
            disk.set_owner(inode.0, owner)?;
            if let Some(size) = size {
                disk.truncate(inode.0, size)?;
            }
            disk.status(inode.0)
        });
        match result {
            Ok(status) => reply.attr(&TTL, &attr(status)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mut disk = self.disk();
        let made = disk.create(parent.0, name, owner(request, mode & !umask), true);
        entry(reply, made.and_then(|inode| disk.status(inode)));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut disk = self.disk();
        let made = disk.create(parent.0, name, owner(request, mode & !umask), false);
        match made.and_then(|inode| disk.status(inode)) {
            Ok(status) => reply.created(
                &TTL,
                &attr(status),
                GENERATION,
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.disk().remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.disk().remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = flags.is_empty();
        if !replace && flags != RenameFlags::RENAME_NOREPLACE {
            return reply.error(errno(Errno::INVAL));
        }
        let (from, to) = ((parent.0, name), (new_parent.0, new_name));
        answer(reply, self.disk().rename(from, to, replace));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk().read(inode.0, offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let flags = OFlags::from_bits_retain(flags.0.cast_unsigned());
        let mut disk = self.disk();
        let result = disk.write(inode.0, offset, data).and_then(|()| {
            // O_SYNC contains the bit of O_DSYNC.
            if flags.intersects(OFlags::DSYNC) {
                disk.sync_file(inode.0)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("the kernel counts in u32")),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing a file promises nothing.
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.disk().sync_file(inode.0));
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.disk().sync_dir(inode.0));
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let names = match self.disk().list(inode.0) {
            Ok(names) => names,
            Err(error) => return reply.error(errno(error)),
        };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((name, status), next) in names.into_iter().skip(skip).zip(offset + 1..) {
            if reply.add(INodeNo(status.inode), next, kind(status), name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(
            BLOCKS,
            BLOCKS,
            BLOCKS,
            BLOCKS,
            BLOCKS,
            BLOCK_BYTES,
            NAME_MAX_BYTES,
            BLOCK_BYTES,
        );
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let mut disk = self.disk();
        let result = if mode.is_empty() {
            disk.grow(inode.0, offset.saturating_add(len))
        } else if mode == FallocateFlags::KEEP_SIZE {
            Ok(())
        } else if mode == FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE {
            disk.zero(inode.0, offset, len)
        } else {
            Err(Errno::OPNOTSUPP)
        };
        answer(reply, result);
    }
}
