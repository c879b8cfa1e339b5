//! The floors without a server: the disk past the page cache, a core's MD5, loopback TCP, memory.
//!
//! The disk is read and written with `O_DIRECT` in a plain loop, one request at a time, as `fio` would with its defaults.

use std::{
    fs::{File, OpenOptions},
    hint::black_box,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use md5::{Digest as _, Md5};
use rustix::fs::OFlags;

use crate::{
    measure::{Done, Slice},
    noise::noise,
};

/// One sequential request.
pub(crate) const MIB: usize = 1 << 20;
/// What `O_DIRECT` buffers and offsets are aligned to: enough for every disk.
const ALIGNMENT: usize = 4096;
/// Most that a sequential write slice writes.
const WRITE_MAX_BYTES: u64 = 1 << 30;

/// A buffer that `O_DIRECT` takes.
pub(crate) struct Aligned {
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Makes one of noise.
    pub(crate) fn new(len: usize) -> Self {
        let store = noise(len + ALIGNMENT);
        let start = store.as_ptr().align_offset(ALIGNMENT);
        Self { store, start, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }
}

/// Opens a file past the page cache.
pub(crate) fn open_direct(path: &Path, write: bool) -> Result<File> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).expect("open flags fit");
    OpenOptions::new()
        .read(true)
        .write(write)
        .create(write)
        .custom_flags(flags)
        .open(path)
        .with_context(|| {
            format!(
                "cannot open {} with O_DIRECT: give a directory on a disk (--dir)",
                path.display()
            )
        })
}

/// Converts a length to a file offset.
pub(crate) fn wide(len: usize) -> u64 {
    u64::try_from(len).expect("a usize fits in a u64")
}

/// The disk's sequential write: 1 MiB at a time into a preallocated file, one `fdatasync` at the end.
pub(crate) struct DiskWrite {
    path: PathBuf,
    buffer: Aligned,
}

impl DiskWrite {
    /// Will write to `path`.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            buffer: Aligned::new(MIB),
        }
    }

    /// Measures.
    pub(crate) fn run(&self, slice: &Slice) -> Result<Done> {
        let file = open_direct(&self.path, true)?;
        let running = slice.start();
        let (mut ops, mut bytes) = (0, 0);
        while ops == 0 || (running.goes_on() && bytes < WRITE_MAX_BYTES) {
            file.write_all_at(self.buffer.bytes(), bytes)
                .with_context(|| format!("cannot write {}", self.path.display()))?;
            ops += 1;
            bytes += wide(MIB);
        }
        file.sync_data()
            .with_context(|| format!("cannot sync {}", self.path.display()))?;
        let done = running.done(ops, bytes);
        drop(file);
        // The room is needed; the next slice makes the file anew.
        std::fs::remove_file(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))?;
        done
    }
}

/// MD5 on `threads` cores at once.
pub(crate) fn md5(slice: &Slice, threads: usize) -> Result<Done> {
    let data = noise(MIB);
    slice.repeat_on(threads, |_| {
        let data = &data;
        let mut hash = Md5::new();
        Ok(move |_| {
            hash.update(black_box(data));
            Ok(Some(wide(data.len())))
        })
    })
}

/// One stream of 1 MiB writes over the loopback interface.
pub(crate) fn tcp(slice: &Slice) -> Result<Done> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on 127.0.0.1")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(address)?;
            let data = noise(MIB);
            loop {
                match stream.write_all(&data) {
                    Ok(()) => {}
                    // The reader has had enough.
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                        ) =>
                    {
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                }
            }
        });
        let (mut stream, _) = listener.accept().context("cannot accept")?;
        let mut buffer = vec![0; MIB];
        let done = slice.repeat(|_| {
            stream.read_exact(&mut buffer).context("cannot receive")?;
            Ok(Some(wide(MIB)))
        });
        drop(stream);
        sender
            .join()
            .expect("the sender does not panic")
            .context("cannot send")?;
        done
    })
}
