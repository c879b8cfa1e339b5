//! The chunk path below the doors: client, chain protocol and engine of one target in this process, against the same
//! system calls on a plain file of the same disk, and against `memcpy`.
//!
//! Writes are at random places of a blob that exists, so every one of them is a copy-on-write of the engine; the plain file
//! is overwritten in place and has no checksums.

use std::{fs::File, hint::black_box, os::unix::fs::FileExt as _, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use janusfs_chain_client::ChainClient;
use janusfs_chain_server::{Barriers, PeerSource, StorageConfig, StorageRole};
use janusfs_env::{rng, tasks};
use janusfs_rpc::{Peer, Router};
use janusfs_types::{
    BlobId, ChainId, ChainInfo, ChainTable, ChainVersion, ChunkId, ClientId, Layout, NodeId,
    TargetId, TargetInfo, limits,
};
use janusfs_wire::{ServiceId, storage::WriteOp};
use tokio::runtime::Handle;

use crate::{
    disk::{MIB, wide},
    measure::{Bench, Done, Slice, side},
    noise::{Noise, next, noise},
    report::{Spec, Unit},
    scratch::Scratch,
};

const BLOB: BlobId = BlobId(0x1000);
/// The blob, and the plain file: whole chunks.
const BLOB_BYTES: u64 = 64 << 20;

/// A read, a write, or a write and a barrier.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    SyncedWrite,
}

const fn spec(name: &'static str, unit: Unit) -> Spec {
    Spec {
        name,
        unit,
        aim: None,
        space_bytes: 128 << 20,
    }
}

/// Every cell of the chunk path.
pub(crate) const CELLS: &[Spec] = {
    use Unit::{MibPerSecond, OpsPerSecond};
    &[
        spec("chunk-read-4k", OpsPerSecond),
        spec("chunk-read-64k", OpsPerSecond),
        spec("chunk-read-1m", MibPerSecond),
        spec("chunk-write-4k", OpsPerSecond),
        spec("chunk-write-64k", OpsPerSecond),
        spec("chunk-write-1m", MibPerSecond),
        spec("chunk-write-4k-sync", OpsPerSecond),
        spec("chunk-write-64k-sync", OpsPerSecond),
        spec("chunk-write-1m-sync", MibPerSecond),
    ]
};

/// Measures the cells that were asked for.
pub(crate) fn measure(bench: &mut Bench, scratch: &Scratch, handle: &Handle) -> Result<()> {
    bench.say("opening a target");
    let dir = scratch.folder("target")?;
    let chunks = tasks::block_on(handle, Chunks::open(handle.clone(), dir))?;
    let plain = Plain::make(scratch)?;
    let measured = cells(bench, &chunks, &plain);
    let closed = tasks::block_on(handle, chunks.close());
    measured.and(closed)
}

fn cells(bench: &mut Bench, chunks: &Chunks, plain: &Plain) -> Result<()> {
    chunks.fill()?;
    let kinds = [
        ("read", "", Kind::Read),
        ("write", "", Kind::Write),
        ("write", "-sync", Kind::SyncedWrite),
    ];
    for (verb, ending, kind) in kinds {
        for (label, size) in [("4k", 4 << 10), ("64k", 64 << 10), ("1m", MIB)] {
            let name = format!("chunk-{verb}-{label}{ending}");
            let spec = CELLS
                .iter()
                .find(|spec| spec.name == name)
                .expect("the cell is in the table");
            let floors = vec![
                side("file", move |slice: &Slice| plain.run(slice, kind, size)),
                side("memcpy", move |slice: &Slice| copy(slice, size)),
            ];
            let ours = side("ours", move |slice: &Slice| chunks.run(slice, kind, size));
            bench.cell(spec, None, floors, ours)?;
        }
    }
    Ok(())
}

/// Successive random places of `size` bytes in the blob, aligned to their size.
fn places(size: usize) -> impl FnMut() -> u64 {
    let mut state = 0x9876_5432;
    let count = BLOB_BYTES / wide(size);
    move || next(&mut state) % count * wide(size)
}

/// Copies between two places of a buffer that no cache holds.
fn copy(slice: &Slice, size: usize) -> Result<Done> {
    let len = usize::try_from(BLOB_BYTES)?;
    let from = noise(len);
    let mut to = vec![0; size];
    let mut place = places(size);
    slice.repeat(|_| {
        let at = usize::try_from(place())?;
        to.copy_from_slice(black_box(&from[at..at + size]));
        black_box(&to);
        Ok(Some(wide(size)))
    })
}

/// The plain file.
struct Plain {
    file: File,
    noise: Noise,
}

impl Plain {
    fn make(scratch: &Scratch) -> Result<Self> {
        let path = scratch.join("plain");
        let noise = Noise::new(MIB);
        let make = || -> std::io::Result<File> {
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            for number in 0..BLOB_BYTES / wide(MIB) {
                file.write_all_at(&noise.cut(number, MIB), number * wide(MIB))?;
            }
            file.sync_all()?;
            Ok(file)
        };
        let file = make().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, noise })
    }

    fn run(&self, slice: &Slice, kind: Kind, size: usize) -> Result<Done> {
        let mut place = places(size);
        let mut buffer = vec![0; size];
        slice.repeat(|done| {
            let at = place();
            match kind {
                Kind::Read => self.file.read_exact_at(&mut buffer, at)?,
                Kind::Write | Kind::SyncedWrite => {
                    self.file.write_all_at(&self.noise.cut(done, size), at)?;
                }
            }
            if kind == Kind::SyncedWrite {
                self.file.sync_data()?;
            }
            Ok(Some(wide(size)))
        })
    }
}

/// One target with a client, in this process.
struct Chunks {
    role: Arc<StorageRole>,
    barriers: Barriers,
    client: ChainClient,
    layout: Layout,
    handle: Handle,
    noise: Noise,
}

impl Chunks {
    async fn open(handle: Handle, dir: std::path::PathBuf) -> Result<Self> {
        let target = TargetId(1);
        let table = one_target(target);
        let layout = Layout {
            chunk_size_log2: limits::CHUNK_SIZE_LOG2_DEFAULT,
            chain_table: table.version,
            stripe: 1,
            seed: 0,
        };
        let nobody: PeerSource = Arc::new(|_| Arc::new(Router::new()));
        let config = StorageConfig {
            table: table.clone(),
            engine_dirs: vec![(target, dir)],
            inflight_max_bytes: limits::STORAGE_INFLIGHT_MAX_BYTES,
        };
        let role = StorageRole::open(config, nobody)
            .await
            .context("cannot open a storage target")?;
        let peer: Peer = Arc::new(Router::new().with(ServiceId::Storage, role.clone()));
        let client = ChainClient::new(
            ClientId(rng::random_u64()),
            table,
            Arc::new(move |_| peer.clone()),
        )
        .context("cannot reach the storage target")?;
        Ok(Self {
            barriers: Barriers::start(role.clone()),
            role,
            client,
            layout,
            handle,
            noise: Noise::new(MIB),
        })
    }

    async fn close(self) -> Result<()> {
        self.barriers.stop().await;
        self.role.shutdown().await;
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        tasks::block_on(&self.handle, async {
            for number in 0..BLOB_BYTES / wide(MIB) {
                self.write(number * wide(MIB), self.noise.cut(number, MIB))
                    .await?;
            }
            self.client.sync(&self.layout).await.context("cannot sync")
        })
    }

    /// Finds a place of the blob; ranges are aligned to their size, so each is within one chunk.
    fn locate(&self, at: u64) -> Result<(ChunkId, u32)> {
        let size = self.layout.chunk_size_bytes();
        let index = u32::try_from(at / size)?;
        let chunk = ChunkId { blob: BLOB, index };
        Ok((chunk, u32::try_from(at % size)?))
    }

    async fn write(&self, at: u64, data: Bytes) -> Result<()> {
        let (chunk, offset) = self.locate(at)?;
        let op = WriteOp::Write { offset };
        self.client
            .write(chunk, &self.layout, op, vec![data])
            .await
            .context("cannot write a chunk")?;
        Ok(())
    }

    fn run(&self, slice: &Slice, kind: Kind, size: usize) -> Result<Done> {
        let mut place = places(size);
        let len = u32::try_from(size)?;
        slice.repeat(|done| {
            let at = place();
            tasks::block_on(&self.handle, async {
                if kind == Kind::Read {
                    let (chunk, offset) = self.locate(at)?;
                    let read = self.client.read(chunk, &self.layout, offset, len).await;
                    let (_, bytes) = read.context("cannot read a chunk")?;
                    ensure!(bytes.len() == size, "a read gave {} bytes", bytes.len());
                    black_box(&bytes);
                    return Ok(());
                }
                self.write(at, self.noise.cut(done, size)).await?;
                if kind == Kind::SyncedWrite {
                    self.client
                        .sync(&self.layout)
                        .await
                        .context("cannot sync")?;
                }
                Ok(())
            })?;
            Ok(Some(wide(size)))
        })
    }
}

/// A table of one chain with one target, in process.
pub(crate) fn one_target(target: TargetId) -> ChainTable {
    ChainTable {
        version: 1,
        chains: vec![ChainInfo {
            chain: ChainId(1),
            version: ChainVersion(1),
            targets: vec![target],
        }],
        targets: vec![TargetInfo {
            target,
            node: NodeId(1),
            address: String::new(),
        }],
    }
}
