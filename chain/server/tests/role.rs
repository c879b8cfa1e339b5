//! The storage role from outside: requests in, replies out, and what the engines hold afterwards.
#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use janusfs_chain_engine::{ChunkInfo, Engine, EngineOp, EngineOptions, StageWrite};
use janusfs_chain_server::{StorageConfig, StorageRole};
use janusfs_env::{clock, tasks};
use janusfs_rpc::{Peer, Router, call, call_bulk};
use janusfs_types::{
    BlobId, ChainId, ChainInfo, ChainTable, ChainVersion, ChunkId, ChunkVersion, ClientId, FsError,
    NodeId, RequestId, TargetId, TargetInfo,
};
use janusfs_wire::{
    ServiceId,
    storage::{
        ChainRoute, Forward, List, Query, Read, Remove, Scrub, Sync, Usage, Write, WriteDone,
        WriteOp, WriteTag,
    },
};

const DEADLINE: Duration = Duration::from_secs(20);
const WRITE: WriteOp = WriteOp::Write { offset: 0 };

/// A role over one chain, its directories, and a way to it.
struct Node {
    role: Arc<StorageRole>,
    peer: Peer,
}

fn crc(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

fn chunk(index: u32) -> ChunkId {
    ChunkId {
        blob: BlobId(77),
        index,
    }
}

fn tag(client: u64, request: u64) -> WriteTag {
    WriteTag {
        client: ClientId(client),
        request: RequestId(request),
    }
}

fn route(target: u32) -> ChainRoute {
    ChainRoute {
        chain: ChainId(1),
        version: ChainVersion(1),
        target: TargetId(target),
    }
}

fn target_dir(dir: &Path, target: u32) -> PathBuf {
    dir.join(format!("target-{target}"))
}

impl Node {
    /// Opens targets 1 to `replicas`, head first.
    async fn open(dir: &Path, replicas: u32) -> Self {
        Self::open_part(dir, replicas, 1..=replicas).await
    }

    async fn open_part(dir: &Path, replicas: u32, mine: std::ops::RangeInclusive<u32>) -> Self {
        let targets = 1..=replicas;
        let address = |target| {
            if mine.contains(&target) {
                String::new()
            } else {
                "far:1".into()
            }
        };
        let table = ChainTable {
            version: 1,
            chains: vec![ChainInfo {
                chain: ChainId(1),
                version: ChainVersion(1),
                targets: targets.clone().map(TargetId).collect(),
            }],
            targets: targets
                .map(|target| TargetInfo {
                    target: TargetId(target),
                    node: NodeId(1),
                    address: address(target),
                })
                .collect(),
        };
        let engine_dirs = mine
            .map(|target| (TargetId(target), target_dir(dir, target)))
            .collect();
        let config = StorageConfig {
            table,
            engine_dirs,
            inflight_max_bytes: 1 << 20,
        };
        // Nobody answers at the far address: a router without services.
        let far: Peer = Arc::new(Router::new());
        let role = StorageRole::open(config, Arc::new(move |_| far.clone()))
            .await
            .unwrap();
        let peer = Arc::new(Router::new().with(ServiceId::Storage, role.clone()));
        Self { role, peer }
    }

    async fn close(self) {
        self.role.shutdown().await;
    }

    async fn write(
        &self,
        chunk: ChunkId,
        op: WriteOp,
        tag: WriteTag,
        data: &[u8],
    ) -> Result<WriteDone, FsError> {
        let message = Write {
            route: route(1),
            chunk,
            op,
            crc: crc(data),
            tag,
            expected_len_bytes: 0,
        };
        let body = vec![Bytes::copy_from_slice(data)];
        call_bulk(&*self.peer, &message, body, DEADLINE)
            .await
            .map(|(done, _)| done)
    }

    async fn read(&self, target: u32, chunk: ChunkId) -> Result<(ChunkVersion, Vec<u8>), FsError> {
        let message = Read {
            route: route(target),
            chunk,
            offset: 0,
            len_bytes: 1 << 20,
            relaxed: false,
        };
        let (done, body) = call_bulk(&*self.peer, &message, Vec::new(), DEADLINE).await?;
        let data = body.concat();
        assert_eq!(
            done.crc,
            crc(&data),
            "the answer carries the checksum of its bytes"
        );
        Ok((done.version, data))
    }
}

/// What an engine holds, read without the role.
fn rows(dir: &Path, target: u32) -> Vec<ChunkInfo> {
    let engine = Engine::open(&target_dir(dir, target), EngineOptions::default()).unwrap();
    let rows = engine.list(None, 10_000).unwrap();
    for row in &rows {
        engine.verify(row.chunk).unwrap();
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_target_writes_creates_truncates_and_removes() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 1).await;
    let c = chunk(0);
    assert_eq!(node.read(1, c).await, Ok((ChunkVersion(0), Vec::new())));
    let done = node
        .write(c, WRITE, tag(1, 1), b"hello world")
        .await
        .unwrap();
    assert_eq!(
        done,
        WriteDone {
            version: ChunkVersion(1),
            len_bytes: 11
        }
    );
    let done = node
        .write(c, WriteOp::Write { offset: 6 }, tag(1, 2), b"there")
        .await
        .unwrap();
    assert_eq!(done.version, ChunkVersion(2));
    assert_eq!(node.read(1, c).await.unwrap().1, b"hello there");
    let exists = node.write(c, WriteOp::Create, tag(1, 3), b"new").await;
    assert_eq!(exists, Err(FsError::Exists));
    assert_eq!(
        node.write(chunk(1), WriteOp::Create, tag(1, 4), b"new")
            .await
            .unwrap()
            .len_bytes,
        3
    );
    let cut = WriteOp::Truncate { len_bytes: 5 };
    assert_eq!(
        node.write(c, cut, tag(1, 5), b"").await.unwrap().len_bytes,
        5
    );
    assert_eq!(
        node.read(1, c).await.unwrap(),
        (ChunkVersion(3), b"hello".to_vec())
    );

    let remove = Remove {
        route: route(1),
        blob: BlobId(77),
        from_index: 1,
    };
    assert_eq!(call(&*node.peer, &remove, DEADLINE).await, Ok(1));
    assert_eq!(call(&*node.peer, &remove, DEADLINE).await, Ok(0));
    let list = List {
        route: route(1),
        after: None,
        limit: 10,
    };
    let listed = call(&*node.peer, &list, DEADLINE).await.unwrap();
    assert_eq!(listed.iter().map(|row| row.chunk).collect::<Vec<_>>(), [c]);
    let query = Query {
        route: route(1),
        chunk: c,
    };
    assert_eq!(
        call(&*node.peer, &query, DEADLINE).await.unwrap(),
        Some(listed[0])
    );
    assert_eq!(listed[0].last, Some(tag(1, 5)));
    call(&*node.peer, &Sync { route: route(1) }, DEADLINE)
        .await
        .unwrap();
    assert_eq!(
        call(&*node.peer, &Usage {}, DEADLINE).await.unwrap()[0].chunks,
        1
    );
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_payload_checksum_is_refused_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 3).await;
    let message = Write {
        route: route(1),
        chunk: chunk(0),
        op: WRITE,
        crc: 1,
        tag: tag(1, 1),
        expected_len_bytes: 0,
    };
    let body = vec![Bytes::from_static(b"damaged on the way")];
    let refused = call_bulk(&*node.peer, &message, body, DEADLINE)
        .await
        .unwrap_err();
    assert!(matches!(refused, FsError::Corrupt(_)), "{refused:?}");
    assert_eq!(node.read(1, chunk(0)).await.unwrap().0, ChunkVersion(0));
    assert_eq!(
        node.write(chunk(0), WRITE, tag(1, 2), b"good")
            .await
            .unwrap()
            .version
            .0,
        1
    );
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_the_wrong_place_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 2).await;
    let stale = Err(FsError::StaleChain);
    let old = ChainRoute {
        version: ChainVersion(9),
        ..route(1)
    };
    for wrong in [
        old,
        route(2),
        route(7),
        ChainRoute {
            chain: ChainId(2),
            ..route(1)
        },
    ] {
        let write = Write {
            route: wrong,
            chunk: chunk(0),
            op: WRITE,
            crc: 0,
            tag: tag(1, 1),
            expected_len_bytes: 0,
        };
        assert_eq!(
            call(&*node.peer, &write, DEADLINE).await.map(|_| ()),
            stale,
            "{wrong:?}"
        );
        assert_eq!(
            call(&*node.peer, &Sync { route: wrong }, DEADLINE).await,
            stale
        );
        let remove = Remove {
            route: wrong,
            blob: BlobId(77),
            from_index: 0,
        };
        assert_eq!(
            call(&*node.peer, &remove, DEADLINE).await.map(|_| ()),
            stale
        );
    }
    // A client cannot pose as a predecessor.
    let forward = Forward {
        route: route(2),
        chunk: chunk(0),
        op: WRITE,
        crc: 0,
        tag: tag(1, 1),
        version: ChunkVersion(1),
        expected_len_bytes: 0,
    };
    assert_eq!(
        call(&*node.peer, &forward, DEADLINE).await.map(|_| ()),
        stale
    );
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_equal_after_concurrent_writes_and_reads_never_go_back() {
    const CHUNKS: u32 = 8;
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(Node::open(dir.path(), 3).await);
    let mut writers = Vec::new();
    for client in 1..=4u64 {
        let node = node.clone();
        writers.push(tasks::spawn(async move {
            let mut written = Vec::new();
            for request in 1..=50u64 {
                let mut random = client * 1000 + request;
                random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                let c = chunk(u32::try_from(random).unwrap() % CHUNKS);
                let data = format!("client {client} request {request} ").repeat(300);
                let cut = data.len() - usize::try_from(random % 5).unwrap();
                let data = data.as_bytes()[..cut].to_vec();
                // Whole-chunk values: truncate and write are two steps, so write from 0 and compare prefixes.
                let done = node
                    .write(c, WRITE, tag(client, request), &data)
                    .await
                    .unwrap();
                written.push((c, done.version, data));
            }
            written
        }));
    }
    let mut readers = Vec::new();
    for start in 0..2u32 {
        let node = node.clone();
        readers.push(tasks::spawn(async move {
            let mut seen = BTreeMap::new();
            for step in start..start + 400 {
                let c = chunk(step % CHUNKS);
                let (version, _) = node.read(1 + step / CHUNKS % 3, c).await.unwrap();
                let last = seen.insert(c, version).unwrap_or_default();
                assert!(
                    version >= last,
                    "a read of {c} went back from {last} to {version}"
                );
            }
        }));
    }
    let mut written = BTreeMap::new();
    for writer in writers {
        for (c, version, data) in writer.await.unwrap() {
            assert!(
                written.insert((c, version), data).is_none(),
                "two writes made {c} {version}"
            );
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
    for index in 0..CHUNKS {
        let c = chunk(index);
        let Some(((_, last), data)) = written
            .range((c, ChunkVersion(0))..=(c, ChunkVersion(u64::MAX)))
            .next_back()
        else {
            continue;
        };
        for target in 1..=3 {
            let (version, read) = node.read(target, c).await.unwrap();
            assert_eq!(version, *last);
            assert!(
                read.starts_with(data),
                "the last acknowledged write is what is read"
            );
        }
    }
    Arc::into_inner(node).unwrap().close().await;
    let head = rows(dir.path(), 1);
    assert_eq!(head.iter().map(|row| row.committed.0).sum::<u64>(), 200);
    assert!(head.iter().all(|row| row.pending.is_none()));
    assert_eq!(rows(dir.path(), 2), head);
    assert_eq!(rows(dir.path(), 3), head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_applies_once_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 3).await;
    let c = chunk(3);
    let first = node.write(c, WRITE, tag(5, 1), b"once").await.unwrap();
    assert_eq!(
        node.write(c, WRITE, tag(5, 1), b"once").await.unwrap(),
        first
    );
    node.close().await;
    let node = Node::open(dir.path(), 3).await;
    assert_eq!(
        node.write(c, WRITE, tag(5, 1), b"once").await.unwrap(),
        first
    );
    for target in 1..=3 {
        assert_eq!(
            node.read(target, c).await.unwrap(),
            (ChunkVersion(1), b"once".to_vec())
        );
    }
    assert_eq!(
        node.write(c, WRITE, tag(5, 2), b"twice")
            .await
            .unwrap()
            .version
            .0,
        2
    );
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shut_down_role_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 1).await;
    node.role.shutdown().await;
    let refused = node
        .write(chunk(0), WRITE, tag(1, 1), b"late")
        .await
        .unwrap_err();
    assert!(matches!(refused, FsError::Unavailable(_)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_dropped_by_its_caller_still_ends() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 3).await;
    let c = chunk(1);
    {
        let mut write = Box::pin(node.write(c, WRITE, tag(1, 1), b"dropped"));
        assert!(futures::poll!(&mut write).is_pending());
    }
    // It waits its turn behind the dropped one.
    assert_eq!(
        node.write(c, WRITE, tag(1, 2), b"next")
            .await
            .unwrap()
            .version,
        ChunkVersion(2)
    );
    node.close().await;
    assert_eq!(rows(dir.path(), 1), rows(dir.path(), 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writes_wait_for_a_small_budget() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(Node::open(dir.path(), 2).await);
    let data = Arc::new(vec![7u8; 600 << 10]);
    let mut writers = Vec::new();
    for client in 1..=8u64 {
        let (node, data) = (node.clone(), data.clone());
        writers.push(tasks::spawn(async move {
            let c = chunk(u32::try_from(client % 2).unwrap());
            node.write(c, WRITE, tag(client, 1), &data).await.unwrap()
        }));
    }
    let mut versions = Vec::new();
    for writer in writers {
        versions.push(writer.await.unwrap().version.0);
    }
    versions.sort_unstable();
    assert_eq!(versions, [1, 1, 2, 2, 3, 3, 4, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_tail_is_unknown_and_reads_do_not_guess() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open_part(dir.path(), 2, 1..=1).await;
    let c = chunk(0);
    let unknown = node
        .write(c, WRITE, tag(1, 1), b"perhaps")
        .await
        .unwrap_err();
    assert!(matches!(unknown, FsError::Unavailable(_)), "{unknown:?}");
    let read = node.read(1, c).await.unwrap_err();
    assert!(matches!(read, FsError::Unavailable(_)), "{read:?}");
    assert_eq!(node.read(1, chunk(9)).await.unwrap().0, ChunkVersion(0));
    node.close().await;
}

fn write_directly(engine: &Engine, index: u32, version: u64, data: &'static [u8], commit: bool) {
    let write = StageWrite {
        chunk: chunk(index),
        version: ChunkVersion(version),
        op: EngineOp::Write { offset: 0 },
        data: &[Bytes::from_static(data)],
        crc: crc(data),
        tag: None,
        expected_len_bytes: 0,
    };
    engine.stage(&write).unwrap();
    if commit {
        engine.commit(write.chunk, write.version).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_makes_replicas_equal_and_drops_pending_versions() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 3).await;
    for index in 0..4 {
        node.write(chunk(index), WRITE, tag(1, u64::from(index)), b"same")
            .await
            .unwrap();
    }
    node.close().await;
    {
        // The tail committed two more writes, one to a new chunk; the head has a pending version of its own.
        let tail = Engine::open(&target_dir(dir.path(), 3), EngineOptions::default()).unwrap();
        write_directly(&tail, 1, 2, b"only at the tail", true);
        write_directly(&tail, 8, 1, b"new at the tail", true);
        let head = Engine::open(&target_dir(dir.path(), 1), EngineOptions::default()).unwrap();
        write_directly(&head, 1, 2, b"only at the tail", false);
        write_directly(&head, 2, 2, b"never acknowledged", false);
        write_directly(&head, 9, 1, b"never acknowledged either", false);
    }
    let node = Node::open(dir.path(), 3).await;
    for target in 1..=3 {
        assert_eq!(
            node.read(target, chunk(1)).await.unwrap().1,
            b"only at the tail"
        );
        assert_eq!(
            node.read(target, chunk(8)).await.unwrap().1,
            b"new at the tail"
        );
        assert_eq!(node.read(target, chunk(2)).await.unwrap().1, b"same");
        assert_eq!(
            node.read(target, chunk(9)).await.unwrap().0,
            ChunkVersion(0)
        );
    }
    node.close().await;
    let head = rows(dir.path(), 1);
    assert_eq!(head.len(), 5);
    assert!(head.iter().all(|row| row.pending.is_none()));
    assert_eq!(rows(dir.path(), 2), head);
    assert_eq!(rows(dir.path(), 3), head);
}

/// Flips one bit of the stored copy of `pattern` below `dir`.
fn flip_bit(dir: &Path, pattern: &[u8]) {
    use std::os::unix::fs::FileExt;
    let mut open = vec![dir.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes
            .windows(pattern.len())
            .position(|window| window == pattern)
        {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[at] ^ 4], u64::try_from(at).unwrap())
                .unwrap();
            return;
        }
    }
    panic!("the pattern is stored below {}", dir.display());
}

/// Waits until the role has repaired as many chunks on the target.
async fn repaired(node: &Node, target: usize, repairs: u64) {
    let wait = async {
        while node.role.usage()[target - 1].repairs < repairs {
            tokio::task::yield_now().await;
        }
    };
    clock::timeout(DEADLINE, wait)
        .await
        .expect("the chunk is repaired in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_answered_as_corrupt_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 3).await;
    let data = b"a pattern that nothing else in the store has".repeat(50);
    let done = node.write(chunk(0), WRITE, tag(1, 1), &data).await.unwrap();
    for target in [2u32, 3, 1] {
        flip_bit(&target_dir(dir.path(), target), &data[..44]);
        let read = node.read(target, chunk(0)).await;
        assert!(matches!(read, Err(FsError::Corrupt(_))), "{read:?}");
        let index = usize::try_from(target).unwrap();
        repaired(&node, index, 1).await;
        let usage = node.role.usage()[index - 1].clone();
        assert!(usage.corruptions >= 1);
        assert_eq!(
            node.read(target, chunk(0)).await.unwrap(),
            (done.version, data.clone())
        );
    }
    // A retry is still known after its chunk was repaired.
    assert_eq!(
        node.write(chunk(0), WRITE, tag(1, 1), &data).await.unwrap(),
        done
    );
    node.close().await;
    assert_eq!(rows(dir.path(), 1), rows(dir.path(), 2));
    assert_eq!(rows(dir.path(), 1), rows(dir.path(), 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scrub_mends_what_it_can_and_names_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 2).await;
    let mendable = b"0123456789 mendable in one replica".repeat(20);
    let lost = b"9876543210 damaged in both replicas".repeat(20);
    node.write(chunk(0), WRITE, tag(1, 1), &mendable)
        .await
        .unwrap();
    node.write(chunk(1), WRITE, tag(1, 2), &lost).await.unwrap();
    node.write(chunk(2), WRITE, tag(1, 3), b"whole")
        .await
        .unwrap();
    flip_bit(&target_dir(dir.path(), 1), &mendable[..30]);
    flip_bit(&target_dir(dir.path(), 1), &lost[..30]);
    flip_bit(&target_dir(dir.path(), 2), &lost[..30]);
    let scrub = Scrub {
        route: route(1),
        after: None,
        limit: 100,
    };
    let step = call(&*node.peer, &scrub, DEADLINE).await.unwrap();
    assert_eq!(
        (step.checked, step.repaired, step.last),
        (3, 1, Some(chunk(2)))
    );
    assert_eq!(step.lost, [chunk(1)]);
    assert_eq!(node.read(1, chunk(0)).await.unwrap().1, mendable);
    let end = Scrub {
        after: step.last,
        ..scrub
    };
    assert_eq!(call(&*node.peer, &end, DEADLINE).await.unwrap().last, None);
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_over_a_damaged_head_mends_it_and_succeeds_on_retry() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 2).await;
    let data = b"some bytes that a later write leaves alone".repeat(20);
    node.write(chunk(0), WRITE, tag(1, 1), &data).await.unwrap();
    flip_bit(&target_dir(dir.path(), 1), &data[..40]);
    let op = WriteOp::Write { offset: 10 };
    let wait = async {
        loop {
            match node.write(chunk(0), op, tag(1, 2), b"XYZ").await {
                Ok(done) => return done,
                Err(FsError::Busy) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let done = clock::timeout(DEADLINE, wait)
        .await
        .expect("the head is mended in time");
    assert_eq!(done.version, ChunkVersion(2));
    for target in 1..=2 {
        let (version, read) = node.read(target, chunk(0)).await.unwrap();
        assert_eq!(version, ChunkVersion(2));
        assert_eq!(
            (&read[..10], &read[10..13], &read[13..]),
            (&data[..10], &b"XYZ"[..], &data[13..])
        );
    }
    node.close().await;
}
