//! The engine against a reference model, against power cuts, and on a real directory.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use janusfs_types::{BlobId, ChunkId, ChunkVersion, ClientId, FsError, RequestId};
use proptest::prelude::*;

use super::{Engine, recover::open_on};
use crate::{
    EngineError, EngineOp, EngineOptions, ReadMode, StageWrite, Tag,
    crc::crc32c,
    disk::sim::{Dice, Power, SimDisk},
    meta::mem::MemMeta,
    slots::{Placed, Slot},
};

const CHUNK: ChunkId = ChunkId {
    blob: BlobId(7),
    index: 3,
};

/// A store on a simulated disk that can be opened again and again.
struct Lab {
    power: Arc<Power>,
    disk: SimDisk,
    meta: MemMeta,
}

impl Lab {
    fn new() -> Self {
        let power = Power::endless();
        Self {
            disk: SimDisk::new(Arc::clone(&power)),
            meta: MemMeta::new(Arc::clone(&power)),
            power,
        }
    }

    fn try_open(&self) -> Result<Engine, EngineError> {
        let disk = Arc::new(self.disk.clone());
        let meta = Box::new(self.meta.clone());
        open_on(Path::new("lab"), EngineOptions::default(), disk, meta, None)
    }

    fn open(&self) -> Engine {
        self.try_open().unwrap()
    }

    fn power_cut(&self, seed: u64) {
        self.disk.power_cut(seed);
        self.meta.power_cut(seed.wrapping_mul(31));
        self.power.set(u64::MAX);
    }
}

/// Bytes that differ from each other and from zeros.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.roll(u64::MAX).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What an operation makes of bytes: the reference.
fn reference(base: &[u8], op: EngineOp, data: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    let mut put = |offset: usize| {
        if !data.is_empty() {
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        }
    };
    match op {
        EngineOp::Write { offset } => put(offset as usize),
        EngineOp::Create => put(0),
        EngineOp::Truncate { len_bytes } => bytes.truncate(len_bytes as usize),
    }
    bytes
}

/// A write in two buffers, cut somewhere, as the network delivers it.
struct Payload {
    buffers: Vec<Bytes>,
    crc: u32,
}

impl Payload {
    fn new(data: &[u8]) -> Self {
        let (a, b) = data.split_at(data.len() / 3);
        let buffers = vec![Bytes::copy_from_slice(a), Bytes::copy_from_slice(b)];
        Self {
            buffers,
            crc: crc32c(data),
        }
    }

    fn write(&self, chunk: ChunkId, version: u64, op: EngineOp) -> StageWrite<'_> {
        let tag = Tag {
            client: ClientId(version),
            request: RequestId(9),
        };
        StageWrite {
            chunk,
            version: ChunkVersion(version),
            op,
            data: &self.buffers,
            crc: self.crc,
            tag: Some(tag),
            expected_len_bytes: 0,
        }
    }
}

/// Some writers know what comes, some are wrong about it, some say nothing.
fn foretold(version: u64) -> u32 {
    (version % 3) as u32 * 150_000
}

fn put(engine: &Engine, version: u64, op: EngineOp, data: &[u8]) -> Result<(), EngineError> {
    engine
        .stage_and_commit(&Payload::new(data).write(CHUNK, version, op))
        .map(|_| ())
}

fn read_all(engine: &Engine, chunk: ChunkId) -> (u64, Vec<u8>) {
    let read = engine
        .read(chunk, 0, u32::MAX, ReadMode::Blocking)
        .unwrap()
        .unwrap();
    assert_eq!(read.crc, crc32c(&read.data));
    (read.version.0, read.data.to_vec())
}

/// Allocated slots are exactly those that rows name or that wait for a barrier, each with one owner.
fn assert_allocator_consistent(engine: &Engine) {
    let mut owned: HashSet<Slot> = HashSet::new();
    for shard in &engine.shards {
        for row in shard.lock().values() {
            let slots: HashSet<Slot> = row
                .images()
                .filter_map(|image| image.body.as_ref())
                .flat_map(|body| body.slots().map(Placed::slot))
                .collect();
            for slot in slots {
                assert!(owned.insert(slot), "two chunks own {slot:?}");
            }
        }
    }
    let (waiting, allocated) = engine.slots.census();
    for slot in waiting {
        assert!(owned.insert(slot), "{slot:?} is owned and freed");
    }
    let bytes: u64 = allocated
        .iter()
        .map(|slot| u64::from(slot.class.size()))
        .sum();
    assert_eq!(owned, allocated.into_iter().collect());
    assert_eq!(engine.usage().used_bytes, bytes);
}

/// How many stretches of the committed version of a chunk lie in patches.
fn patch_count(engine: &Engine, chunk: ChunkId) -> usize {
    let committed = engine.row(chunk).and_then(|row| row.committed);
    let body = committed.as_ref().and_then(|image| image.body.as_ref());
    body.map_or(0, |body| body.patches.len())
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        chunk: u32,
        offset: u32,
        len: u32,
        commit: Commit,
    },
    /// Somewhere within what is there.
    Overwrite {
        chunk: u32,
        at: prop::sample::Index,
        len: u32,
        commit: Commit,
    },
    Truncate {
        chunk: u32,
        len: u32,
        commit: Commit,
    },
    Create {
        chunk: u32,
        len: u32,
    },
    CommitPending {
        chunk: u32,
    },
    Discard {
        chunk: u32,
    },
    Replace {
        chunk: u32,
        len: u32,
    },
    Remove {
        from: u32,
    },
    Read {
        chunk: u32,
        offset: u32,
        len: u32,
    },
    Sync,
    Reopen,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Commit {
    No,
    Later,
    AtOnce,
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..5000, 2 => 0u32..70_000, 1 => 0u32..300_000, 1 => (0u32..5).prop_map(|n| n * 16_384)]
}

fn step() -> impl Strategy<Value = Step> {
    let chunk = || 0u32..3;
    let commit = || prop_oneof![Just(Commit::No), Just(Commit::Later), Just(Commit::AtOnce)];
    prop_oneof![
        8 => (chunk(), length(), length(), commit())
            .prop_map(|(chunk, offset, len, commit)| Step::Write { chunk, offset, len, commit }),
        8 => (chunk(), any::<prop::sample::Index>(), length(), commit())
            .prop_map(|(chunk, at, len, commit)| Step::Overwrite { chunk, at, len, commit }),
        2 => (chunk(), length(), commit())
            .prop_map(|(chunk, len, commit)| Step::Truncate { chunk, len, commit }),
        1 => (chunk(), length()).prop_map(|(chunk, len)| Step::Create { chunk, len }),
        1 => chunk().prop_map(|chunk| Step::CommitPending { chunk }),
        1 => chunk().prop_map(|chunk| Step::Discard { chunk }),
        2 => (chunk(), prop_oneof![length(), 150_000u32..600_000])
            .prop_map(|(chunk, len)| Step::Replace { chunk, len }),
        1 => (0u32..4).prop_map(|from| Step::Remove { from }),
        4 => (chunk(), length(), length())
            .prop_map(|(chunk, offset, len)| Step::Read { chunk, offset, len }),
        2 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone, Default, Debug, PartialEq)]
struct Expected {
    version: u64,
    bytes: Vec<u8>,
    pending: Option<Vec<u8>>,
}

/// The store as it should be: chunks by index.
#[derive(Default)]
struct Model {
    chunks: BTreeMap<u32, Expected>,
}

fn id(index: u32) -> ChunkId {
    ChunkId {
        blob: BlobId(1),
        index,
    }
}

impl Model {
    fn stage(
        &mut self,
        engine: &Engine,
        chunk: u32,
        op: EngineOp,
        data: &[u8],
        commit: Commit,
    ) -> Result<(), EngineError> {
        let known = self.chunks.get(&chunk).cloned().unwrap_or_default();
        let payload = Payload::new(data);
        let write = StageWrite {
            expected_len_bytes: foretold(known.version),
            ..payload.write(id(chunk), known.version + 1, op)
        };
        let bytes = reference(&known.bytes, op, data);
        match commit {
            Commit::AtOnce => {
                let info = engine.stage_and_commit(&write)?;
                assert_eq!(
                    (info.len_bytes, info.crc),
                    (bytes.len() as u32, crc32c(&bytes))
                );
                assert_eq!(info.last, write.tag);
                let version = known.version + 1;
                self.chunks.insert(
                    chunk,
                    Expected {
                        version,
                        bytes,
                        pending: None,
                    },
                );
            }
            Commit::No | Commit::Later => {
                let staged = engine.stage(&write)?;
                assert_eq!(
                    (staged.len_bytes, staged.crc),
                    (bytes.len() as u32, crc32c(&bytes))
                );
                self.chunks.insert(
                    chunk,
                    Expected {
                        pending: Some(bytes),
                        ..known
                    },
                );
                if commit == Commit::Later {
                    self.commit(engine, chunk)?;
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self, engine: &Engine, chunk: u32) -> Result<(), EngineError> {
        let Some(known) = self.chunks.get_mut(&chunk) else {
            assert!(matches!(
                engine.commit(id(chunk), ChunkVersion(1)),
                Err(EngineError::NotFound)
            ));
            return Ok(());
        };
        let next = ChunkVersion(known.version + 1);
        let result = engine.commit(id(chunk), next);
        match known.pending.take() {
            Some(bytes) => {
                result?;
                *known = Expected {
                    version: next.0,
                    bytes,
                    pending: None,
                };
                assert_eq!(
                    engine.commit(id(chunk), next)?.committed,
                    next,
                    "idempotent"
                );
            }
            None => assert!(matches!(result, Err(EngineError::VersionMismatch { .. }))),
        }
        Ok(())
    }

    fn check(&self, engine: &Engine) {
        let infos = engine.list(None, 100).unwrap();
        let listed: Vec<u32> = infos.iter().map(|info| info.chunk.index).collect();
        assert_eq!(listed, self.chunks.keys().copied().collect::<Vec<_>>());
        for info in infos {
            let known = &self.chunks[&info.chunk.index];
            assert_eq!(info.committed.0, known.version);
            assert_eq!(
                (info.len_bytes as usize, info.crc),
                (known.bytes.len(), crc32c(&known.bytes))
            );
            let pending = known
                .pending
                .as_ref()
                .map(|_| ChunkVersion(known.version + 1));
            assert_eq!(info.pending, pending);
            assert_eq!(Some(info), engine.query(info.chunk));
            assert!(read_all(engine, info.chunk) == (known.version, known.bytes.clone()));
            engine.verify(info.chunk).unwrap();
        }
        assert_eq!(engine.usage().chunks, self.chunks.len() as u64);
        assert_allocator_consistent(engine);
    }
}

fn run_step(model: &mut Model, engine: &mut Option<Engine>, lab: &Lab, step: Step, seed: u64) {
    let store = engine.as_ref().unwrap();
    match step {
        Step::Write {
            chunk,
            offset,
            len,
            commit,
        } => {
            let op = EngineOp::Write { offset };
            model
                .stage(store, chunk, op, &noise(seed, len as usize), commit)
                .unwrap();
        }
        Step::Overwrite {
            chunk,
            at,
            len,
            commit,
        } => {
            let known = model
                .chunks
                .get(&chunk)
                .map_or(0, |known| known.bytes.len());
            let offset = at.index(known + 1) as u32;
            let op = EngineOp::Write { offset };
            model
                .stage(store, chunk, op, &noise(seed, len as usize), commit)
                .unwrap();
        }
        Step::Truncate { chunk, len, commit } => {
            let op = EngineOp::Truncate { len_bytes: len };
            model.stage(store, chunk, op, &[], commit).unwrap();
        }
        Step::Create { chunk, len } => {
            let exists = model
                .chunks
                .get(&chunk)
                .is_some_and(|known| known.version > 0);
            let data = noise(seed, len as usize);
            let result = model.stage(store, chunk, EngineOp::Create, &data, Commit::AtOnce);
            assert_eq!(matches!(result, Err(EngineError::Exists)), exists);
        }
        Step::CommitPending { chunk } => model.commit(store, chunk).unwrap(),
        Step::Discard { chunk } => {
            store.discard_pending(id(chunk)).unwrap();
            if let Some(known) = model.chunks.get_mut(&chunk) {
                known.pending = None;
                if known.version == 0 {
                    model.chunks.remove(&chunk);
                }
            }
        }
        Step::Replace { chunk, len } => {
            let bytes = noise(seed, len as usize);
            let version = 1 + seed % 50;
            let payload = Payload::new(&bytes);
            store
                .replace(
                    id(chunk),
                    ChunkVersion(version),
                    &payload.buffers,
                    payload.crc,
                    None,
                )
                .unwrap();
            model.chunks.insert(
                chunk,
                Expected {
                    version,
                    bytes,
                    pending: None,
                },
            );
        }
        Step::Remove { from } => {
            let removed = store.remove_blob(BlobId(1), from, 100).unwrap();
            assert_eq!(removed as usize, model.chunks.split_off(&from).len());
        }
        Step::Read { chunk, offset, len } => {
            let known = model.chunks.get(&chunk).cloned().unwrap_or_default();
            let end = known.bytes.len().min((offset + len) as usize);
            let expected = known.bytes.get(offset as usize..end).unwrap_or(&[]);
            for mode in [ReadMode::Blocking, ReadMode::Cached] {
                let read = store.read(id(chunk), offset, len, mode).unwrap();
                assert!(read.is_some() || mode == ReadMode::Cached);
                let Some(read) = read else { continue };
                assert!(read.data == expected && read.crc == crc32c(expected));
                assert_eq!(read.version.0, known.version);
                assert_eq!(read.pending, known.pending.is_some());
            }
        }
        Step::Sync => store.sync().unwrap(),
        Step::Reopen => {
            drop(engine.take());
            *engine = Some(lab.open());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_store_agrees_with_the_reference(
        steps in proptest::collection::vec(step(), 1..40), seed in any::<u64>(),
    ) {
        let lab = Lab::new();
        let mut engine = Some(lab.open());
        let mut model = Model::default();
        for (step, seed) in steps.into_iter().zip(seed..=u64::MAX) {
            run_step(&mut model, &mut engine, &lab, step, seed);
            model.check(engine.as_ref().unwrap());
        }
    }
}

/// What a chunk may be after a power cut: `None` is absent.
type State = Option<(u64, Vec<u8>)>;

#[derive(Default)]
struct History {
    /// States since the last completed barrier, the stable one first.
    states: BTreeMap<u32, Vec<State>>,
    /// Everything ever staged, by chunk and version.
    staged: HashMap<(u32, u64), Vec<Vec<u8>>>,
    /// Pending versions that a completed barrier covers and nothing has touched since.
    stable_pending: HashMap<u32, u64>,
    live_pending: HashMap<u32, u64>,
    /// How often a write patched a chunk, and how often one ended with a whole chunk again.
    patched: usize,
    made_whole: usize,
}

impl History {
    fn latest(&self, chunk: u32) -> State {
        self.states
            .get(&chunk)
            .and_then(|states| states.last().cloned())
            .flatten()
    }

    fn push(&mut self, chunk: u32, state: State) {
        self.states
            .entry(chunk)
            .or_insert_with(|| vec![None])
            .push(state);
    }

    fn touch(&mut self, chunk: u32) {
        self.stable_pending.remove(&chunk);
        self.live_pending.remove(&chunk);
    }

    fn completed_sync(&mut self) {
        for states in self.states.values_mut() {
            states.drain(..states.len() - 1);
        }
        self.stable_pending = self.live_pending.clone();
    }

    /// Runs one random operation. An error is fine: the power went, and the operation may or may not count.
    fn step(&mut self, engine: &Engine, dice: &mut Dice) -> Result<(), EngineError> {
        let chunk = dice.roll(4) as u32;
        let known = self.latest(chunk);
        let (version, base) = known.clone().unwrap_or_default();
        let kind = dice.roll(20);
        match kind {
            0..=11 => {
                let tail = base.len() as u32;
                let large = tail == 0 && dice.roll(2) == 0;
                let op = match dice.roll(12) {
                    _ if large => EngineOp::Write { offset: 0 },
                    0..=2 => EngineOp::Write { offset: tail },
                    6..=11 => EngineOp::Write {
                        offset: dice.roll(u64::from(tail) + 1) as u32,
                    },
                    3 => EngineOp::Write {
                        offset: dice.roll(70_000) as u32,
                    },
                    4 => EngineOp::Write { offset: 0 },
                    _ => EngineOp::Truncate {
                        len_bytes: dice.roll(u64::from(tail) + 1) as u32,
                    },
                };
                let len = match dice.roll(3) {
                    _ if large => 330_000,
                    kind => [600, 5000, 40_000][kind as usize],
                };
                let data = noise(dice.roll(u64::MAX), dice.roll(len) as usize);
                let data = if matches!(op, EngineOp::Truncate { .. }) {
                    vec![]
                } else {
                    data
                };
                let bytes = reference(&base, op, &data);
                let payload = Payload::new(&data);
                let write = StageWrite {
                    expected_len_bytes: foretold(version),
                    ..payload.write(id(chunk), version + 1, op)
                };
                self.touch(chunk);
                let patches = patch_count(engine, id(chunk));
                self.staged
                    .entry((chunk, version + 1))
                    .or_default()
                    .push(bytes.clone());
                if kind < 4 {
                    // Left pending for a while.
                    engine.stage(&write)?;
                    self.live_pending.insert(chunk, version + 1);
                } else if kind < 8 {
                    engine.stage(&write)?;
                    self.push(chunk, Some((version + 1, bytes)));
                    engine.commit(id(chunk), ChunkVersion(version + 1))?;
                } else {
                    self.push(chunk, Some((version + 1, bytes)));
                    engine.stage_and_commit(&write)?;
                }
                if kind >= 4 {
                    let now = patch_count(engine, id(chunk));
                    self.patched += usize::from(now > patches);
                    let cut = matches!(op, EngineOp::Truncate { .. });
                    self.made_whole += usize::from(now == 0 && patches > 0 && !cut);
                }
            }
            12 | 13 => {
                if let Some(pending) = self.live_pending.get(&chunk).copied() {
                    let bytes = self.staged[&(chunk, pending)].last().unwrap().clone();
                    self.touch(chunk);
                    self.push(chunk, Some((pending, bytes)));
                    engine.commit(id(chunk), ChunkVersion(pending))?;
                }
            }
            14 => {
                self.touch(chunk);
                engine.discard_pending(id(chunk))?;
            }
            15 => {
                self.touch(chunk);
                self.push(chunk, None);
                let range = engine.list(None, 100)?;
                if range.iter().any(|info| info.chunk == id(chunk)) {
                    // Only this one: later ones stay.
                    let last = range.iter().all(|info| info.chunk.index <= chunk);
                    let limit = if last { 100 } else { 1 };
                    engine.remove_blob(BlobId(1), chunk, limit)?;
                }
            }
            _ => {
                engine.sync()?;
                self.completed_sync();
            }
        }
        Ok(())
    }

    /// Holds a reopened store against what it may be, then takes what it is as the new truth.
    fn check_after_cut(&mut self, engine: &Engine) {
        assert_allocator_consistent(engine);
        for (chunk, states) in &mut self.states {
            let info = engine.query(id(*chunk));
            let (version, bytes) = read_all(engine, id(*chunk));
            let found = (version > 0).then_some((version, bytes));
            assert!(
                states.contains(&found),
                "chunk {chunk} at {version} is no state it ever had"
            );
            *states = vec![found];
            let pending = info.and_then(|info| info.pending);
            if let Some(stable) = self.stable_pending.get(chunk) {
                assert_eq!(
                    pending,
                    Some(ChunkVersion(*stable)),
                    "a synced pending version is gone"
                );
            }
            self.live_pending.remove(chunk);
            if let Some(pending) = pending {
                assert_eq!(pending.0, version + 1);
                engine.commit(id(*chunk), pending).unwrap();
                let (version, bytes) = read_all(engine, id(*chunk));
                assert!(
                    self.staged[&(*chunk, version)].contains(&bytes),
                    "pending was damaged"
                );
                states.push(Some((version, bytes)));
            }
        }
        self.stable_pending.clear();
        engine.sync().unwrap();
        self.completed_sync();
    }
}

#[test]
fn a_power_cut_anywhere_loses_nothing_synced_and_gives_no_wrong_bytes() {
    let (mut failed_opens, mut patched, mut made_whole) = (0, 0, 0);
    for seed in 0..250u64 {
        let mut dice = Dice(seed);
        let lab = Lab::new();
        let mut history = History::default();
        for chunk in 0..4 {
            history.states.insert(chunk, vec![None]);
        }
        for round in 0..6 {
            // The power may also go while a store recovers from the last cut.
            lab.power.set(dice.roll(12));
            if lab.try_open().is_err() {
                failed_opens += 1;
                lab.power_cut(dice.roll(u64::MAX));
            }
            lab.power.set(u64::MAX);
            let engine = lab.open();
            history.check_after_cut(&engine);
            lab.power.set(5 + dice.roll(150));
            let gone = (0..300).any(|_| history.step(&engine, &mut dice).is_err());
            assert!(
                gone,
                "seed {seed} round {round}: the power must go within the steps"
            );
            drop(engine);
            lab.power_cut(dice.roll(u64::MAX));
        }
        patched += history.patched;
        made_whole += history.made_whole;
    }
    assert!(failed_opens > 100, "recovery was cut as well");
    assert!(
        patched > 1000 && made_whole > 100,
        "patched {patched} times, made whole {made_whole} times"
    );
}

/// What version `version` does to a chunk: mostly appends, some overwrites and cuts.
fn scripted(version: u64) -> (EngineOp, u64, usize) {
    match version % 7 {
        3 => (EngineOp::Write { offset: 100 }, version, 900),
        5 => (EngineOp::Truncate { len_bytes: 500 }, version, 0),
        _ => (EngineOp::Write { offset: 1500 }, version, 700),
    }
}

/// Writes version after version and syncs now and then; returns the last version that a completed barrier covers.
fn write_until_dark(engine: &Engine, index: u32) -> u64 {
    let mut floor = 0;
    for version in 1.. {
        let (op, seed, len) = scripted(version);
        let payload = Payload::new(&noise(seed, len));
        if engine
            .stage_and_commit(&payload.write(id(index), version, op))
            .is_err()
        {
            break;
        }
        if version % (3 + u64::from(index)) == 0 {
            if engine.sync().is_err() {
                break;
            }
            floor = version;
        }
    }
    floor
}

#[test]
fn barriers_hold_what_they_cover_while_writers_go_on() {
    let mut synced_versions = 0;
    for seed in 0..300u64 {
        let lab = Lab::new();
        let engine = lab.open();
        lab.power.set(20 + Dice(seed).roll(200));
        let floors = std::thread::scope(|scope| {
            let writers = [0, 1].map(|index| {
                let engine = &engine;
                scope.spawn(move || write_until_dark(engine, index))
            });
            writers.map(|writer| writer.join().unwrap())
        });
        drop(engine);
        lab.power_cut(seed);
        let engine = lab.open();
        for (index, floor) in (0..).zip(floors) {
            let (version, bytes) = read_all(&engine, id(index));
            assert!(
                version >= floor,
                "seed {seed}: synced at {floor}, found {version}"
            );
            let expected = (1..=version).fold(Vec::new(), |bytes, version| {
                let (op, seed, len) = scripted(version);
                reference(&bytes, op, &noise(seed, len))
            });
            assert!(bytes == expected, "seed {seed}: wrong bytes at {version}");
            synced_versions += floor;
        }
        assert_allocator_consistent(&engine);
    }
    assert!(
        synced_versions > 1000,
        "barriers covered writes: {synced_versions}"
    );
}

#[test]
fn a_killed_process_loses_nothing_even_if_the_power_goes_later() {
    let lab = Lab::new();
    let first = noise(1, 9000);
    let engine = lab.open();
    put(&engine, 1, EngineOp::Create, &first).unwrap();
    drop(engine);
    // Opening ends with a barrier.
    let engine = lab.open();
    drop(engine);
    for seed in 0..20 {
        lab.power_cut(seed);
        assert!(read_all(&lab.open(), CHUNK) == (1, first.clone()));
    }
}

#[test]
fn a_flipped_bit_is_noticed_where_it_lies_and_is_not_copied() {
    let lab = Lab::new();
    let engine = lab.open();
    let bytes = noise(1, 50_000);
    put(&engine, 1, EngineOp::Create, &bytes).unwrap();
    lab.disk.flip_bit("64k.0", 20_000);
    let read = |offset, len| engine.read(CHUNK, offset, len, ReadMode::Blocking);
    assert!(matches!(
        read(20_000, 1),
        Err(EngineError::Corrupt { chunk: CHUNK })
    ));
    assert!(
        matches!(read(16_384, 1), Err(EngineError::Corrupt { .. })),
        "same piece"
    );
    assert_eq!(read(0, 16_384).unwrap().unwrap().data, bytes[..16_384]);
    assert_eq!(
        read(32_768, 100).unwrap().unwrap().data,
        bytes[32_768..32_868]
    );
    assert!(matches!(
        engine.verify(CHUNK),
        Err(EngineError::Corrupt { .. })
    ));
    let overwrite = put(&engine, 2, EngineOp::Write { offset: 0 }, b"x");
    assert!(matches!(overwrite, Err(EngineError::Corrupt { .. })));
    let cut = put(&engine, 2, EngineOp::Truncate { len_bytes: 20_001 }, b"");
    assert!(matches!(cut, Err(EngineError::Corrupt { .. })));
    // An append does not touch the damage and does not hide it.
    put(&engine, 2, EngineOp::Write { offset: 50_000 }, b"tail").unwrap();
    assert!(matches!(read(20_000, 1), Err(EngineError::Corrupt { .. })));
    // A good replica's bytes mend it.
    let payload = Payload::new(&bytes);
    engine
        .replace(CHUNK, ChunkVersion(2), &payload.buffers, payload.crc, None)
        .unwrap();
    engine.verify(CHUNK).unwrap();
    assert!(read_all(&engine, CHUNK) == (2, bytes));
}

#[test]
fn a_chunk_whose_length_was_foretold_does_not_move_while_it_grows() {
    let engine = Lab::new().open();
    let (first, rest) = (noise(1, 70_000), noise(2, 180_000));
    let slot = || {
        let image = engine.row(CHUNK).unwrap().committed.unwrap();
        image.body.as_ref().unwrap().slot.slot()
    };
    for (version, expected_len_bytes) in [(1, 250_000), (4, 0)] {
        let payload = Payload::new(&first);
        let write = StageWrite {
            expected_len_bytes,
            ..payload.write(CHUNK, version, EngineOp::Write { offset: 0 })
        };
        engine.stage_and_commit(&write).unwrap();
        let before = slot();
        put(
            &engine,
            version + 1,
            EngineOp::Write { offset: 70_000 },
            &rest,
        )
        .unwrap();
        assert_eq!(slot() == before, expected_len_bytes > 0);
        assert_eq!(read_all(&engine, CHUNK).1, [&first[..], &rest].concat());
        // The next turn begins with a short chunk again.
        put(
            &engine,
            version + 2,
            EngineOp::Truncate { len_bytes: 0 },
            b"",
        )
        .unwrap();
    }
}

#[test]
fn a_payload_that_does_not_match_its_checksum_changes_nothing() {
    let engine = Lab::new().open();
    put(&engine, 1, EngineOp::Create, b"good").unwrap();
    let payload = Payload {
        crc: 1,
        ..Payload::new(b"bad")
    };
    let write = payload.write(CHUNK, 2, EngineOp::Write { offset: 4 });
    let error = engine.stage(&write).unwrap_err();
    assert!(matches!(error, EngineError::Corrupt { .. }));
    assert!(matches!(FsError::from(error), FsError::Corrupt(_)));
    let replaced = engine.replace(CHUNK, ChunkVersion(9), &payload.buffers, 1, None);
    assert!(matches!(replaced, Err(EngineError::Corrupt { .. })));
    assert_eq!(read_all(&engine, CHUNK), (1, b"good".to_vec()));
    assert_eq!(engine.query(CHUNK).unwrap().pending, None);
}

#[test]
fn versions_must_follow_and_chunks_have_a_largest_size() {
    let engine = Lab::new().open();
    for version in [0, 2, u64::MAX] {
        let error = put(&engine, version, EngineOp::Write { offset: 0 }, b"x").unwrap_err();
        assert_eq!(FsError::from(error), FsError::Busy);
    }
    let most = 64 << 20;
    let past = put(&engine, 1, EngineOp::Write { offset: most }, b"x");
    assert!(matches!(past, Err(EngineError::TooLarge { .. })));
    let past = put(&engine, 1, EngineOp::Write { offset: u32::MAX }, b"xy");
    assert!(matches!(past, Err(EngineError::TooLarge { .. })));
    assert_eq!(engine.query(CHUNK), None);
}

#[test]
fn a_full_disk_refuses_new_bytes_and_still_cuts() {
    let lab = Lab::new();
    let engine = lab.open();
    put(&engine, 1, EngineOp::Create, &noise(1, 1000)).unwrap();
    let limit = EngineOptions::default().free_min_bytes;
    lab.disk.free_bytes.store(limit + 100, Ordering::SeqCst);
    let full = put(&engine, 2, EngineOp::Write { offset: 1000 }, &noise(2, 101));
    assert!(matches!(full, Err(EngineError::NoSpace)));
    let full = put(&engine, 2, EngineOp::Write { offset: 0 }, b"x");
    assert!(matches!(full, Err(EngineError::NoSpace)));
    put(&engine, 2, EngineOp::Truncate { len_bytes: 10 }, b"").unwrap();
    assert_eq!(engine.remove_blob(CHUNK.blob, 0, 10).unwrap(), 1);
    assert_allocator_consistent(&engine);
}

#[test]
fn freed_slots_come_back_after_a_barrier_and_not_before() {
    let engine = Lab::new().open();
    put(&engine, 1, EngineOp::Create, b"a").unwrap();
    engine.sync().unwrap();
    put(&engine, 2, EngineOp::Write { offset: 0 }, b"b").unwrap();
    assert_eq!(
        engine.usage().used_bytes,
        2 << 16,
        "the stable version is kept"
    );
    // The first barrier lets the old version go, the second one its slot.
    engine.sync().unwrap();
    engine.sync().unwrap();
    assert_eq!(engine.usage().used_bytes, 1 << 16);
    engine.remove_blob(CHUNK.blob, 0, 1).unwrap();
    assert_eq!(engine.usage().used_bytes, 1 << 16);
    engine.sync().unwrap();
    assert_eq!(engine.usage().used_bytes, 0);
}

#[test]
fn a_failed_barrier_stops_changes_and_leaves_reads() {
    let lab = Lab::new();
    let engine = lab.open();
    put(&engine, 1, EngineOp::Create, b"a").unwrap();
    lab.power.set(0);
    assert!(matches!(engine.sync(), Err(EngineError::Io { .. })));
    lab.power.set(u64::MAX);
    assert!(matches!(engine.sync(), Err(EngineError::Io { .. })));
    assert!(put(&engine, 2, EngineOp::Write { offset: 1 }, b"b").is_err());
    assert_eq!(read_all(&engine, CHUNK), (1, b"a".to_vec()));
    drop(engine);
    put(&lab.open(), 2, EngineOp::Write { offset: 1 }, b"b").unwrap();
}

fn options() -> EngineOptions {
    EngineOptions {
        free_min_bytes: 0,
        ..EngineOptions::default()
    }
}

#[test]
fn a_real_directory_keeps_everything_without_sync() {
    let dir = tempfile::tempdir().unwrap();
    let large = noise(5, 3 << 20);
    {
        let engine = Engine::open(dir.path(), options()).unwrap();
        assert!(matches!(
            Engine::open(dir.path(), options()),
            Err(EngineError::Locked)
        ));
        put(&engine, 1, EngineOp::Create, &large).unwrap();
        let payload = Payload::new(b"staged");
        let offset = large.len() as u32;
        engine
            .stage(&payload.write(CHUNK, 2, EngineOp::Write { offset }))
            .unwrap();
    }
    let engine = Engine::open(dir.path(), options()).unwrap();
    let info = engine.query(CHUNK).unwrap();
    assert_eq!(
        (info.committed, info.pending),
        (ChunkVersion(1), Some(ChunkVersion(2)))
    );
    assert_eq!(info.last.unwrap().client, ClientId(1));
    assert!(read_all(&engine, CHUNK) == (1, large.clone()));
    engine.commit(CHUNK, ChunkVersion(2)).unwrap();
    engine.sync().unwrap();
    let cached = engine.read(CHUNK, 3 << 20, 100, ReadMode::Cached).unwrap();
    assert!(
        cached.is_none_or(|read| read.data == b"staged"[..]),
        "a cached read may only decline"
    );
    let usage = engine.usage();
    assert_eq!((usage.used_bytes, usage.chunks), (4 << 20, 1));
    assert!(usage.capacity_bytes >= usage.free_bytes && usage.free_bytes > 0);
    assert_allocator_consistent(&engine);
}

#[test]
fn a_newer_or_foreign_directory_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let format = dir.path().join("FORMAT");
    std::fs::write(&format, "janusfs-chunk-store 2\n").unwrap();
    let newer = Engine::open(dir.path(), options());
    assert!(matches!(
        newer,
        Err(EngineError::NewerFormat {
            found: 2,
            supported: 1
        })
    ));
    std::fs::write(&format, "something else\n").unwrap();
    assert!(matches!(
        Engine::open(dir.path(), options()),
        Err(EngineError::Io { .. })
    ));
    assert!(!dir.path().join("meta").exists());
}

/// Readers against a writer that overwrites `[offset, offset + count)` of a chunk of `len` bytes with one value a version.
fn read_while_overwritten(len: usize, offset: usize, count: usize, used_bytes: u64) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), options()).unwrap();
    let fill = |version: u64| vec![(version % 251) as u8; count];
    let ground = noise(3, len);
    let op = EngineOp::Write {
        offset: offset as u32,
    };
    let expected = |version| reference(&ground, op, &fill(version));
    put(&engine, 1, EngineOp::Create, &expected(1)).unwrap();
    let last = 1500u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in 2..=last {
                put(&engine, version, op, &fill(version)).unwrap();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = 0;
                while seen < last {
                    let (version, bytes) = read_all(&engine, CHUNK);
                    assert!(version >= seen && bytes == expected(version));
                    seen = version;
                }
            });
        }
        scope.spawn(|| {
            while engine.query(CHUNK).unwrap().committed.0 < last {
                engine.sync().unwrap();
            }
        });
    });
    engine.sync().unwrap();
    engine.sync().unwrap();
    assert_eq!(engine.usage().used_bytes, used_bytes);
    assert_allocator_consistent(&engine);
}

#[test]
fn readers_never_see_a_mixed_version_while_slots_are_reused() {
    read_while_overwritten(40_000, 0, 40_000, 1 << 16);
}

#[test]
fn readers_never_see_a_mixed_version_while_patches_are_reused() {
    // Over the edge of two stretches.
    read_while_overwritten(250_000, 60_000, 9_000, (4 + 2) << 16);
}

#[test]
fn an_overwrite_copies_its_stretch_until_half_the_chunk_is_patched() {
    const STRETCH: u32 = 64 << 10;
    let lab = Lab::new();
    let engine = lab.open();
    let mut bytes = noise(1, 500_000);
    put(&engine, 1, EngineOp::Create, &bytes).unwrap();
    engine.sync().unwrap();
    let base = || {
        let image = engine.row(CHUNK).unwrap().committed.unwrap();
        image.body.as_ref().unwrap().slot.slot()
    };
    let first = base();
    let mut version = 1;
    let mut overwrite = |bytes: &mut Vec<u8>, offset: u32, len: usize| {
        version += 1;
        let op = EngineOp::Write { offset };
        let data = noise(version, len);
        put(&engine, version, op, &data).unwrap();
        *bytes = reference(bytes, op, &data);
        assert!(read_all(&engine, CHUNK) == (version, bytes.clone()));
        assert_eq!(engine.query(CHUNK).unwrap().crc, crc32c(bytes));
        engine.verify(CHUNK).unwrap();
        assert_allocator_consistent(&engine);
        patch_count(&engine, CHUNK)
    };
    assert_eq!(overwrite(&mut bytes, 5000, 4096), 1);
    assert_eq!(overwrite(&mut bytes, 100, 4096), 1, "the same stretch");
    assert_eq!(
        overwrite(&mut bytes, 2 * STRETCH - 10, 20),
        3,
        "two stretches"
    );
    engine.sync().unwrap();
    engine.sync().unwrap();
    let used = u64::from(8 * STRETCH + 3 * STRETCH);
    assert_eq!(engine.usage().used_bytes, used, "replaced patches are free");
    assert_eq!(
        overwrite(&mut bytes, 3 * STRETCH, 65536),
        4,
        "half of eight"
    );
    assert_eq!(overwrite(&mut bytes, 1000, 300_000), 0, "a large one");
    assert_ne!(base(), first);
    for number in [0, 2, 4, 7] {
        overwrite(&mut bytes, number * STRETCH + 9, 100);
    }
    let whole = base();
    // The last stretch is patched: what is appended lies there, and then in the chunk's slot.
    assert_eq!(overwrite(&mut bytes, 500_000, 1000), 4, "an append");
    assert_eq!(overwrite(&mut bytes, 500_500, 20_000), 4, "over the end");
    assert_eq!(base(), whole);
    assert_eq!(overwrite(&mut bytes, 6 * STRETCH, 10), 0, "one too many");
    engine.sync().unwrap();
    engine.sync().unwrap();
    assert_eq!(engine.usage().used_bytes, u64::from(8 * STRETCH));
    drop(engine);
    assert!(read_all(&lab.open(), CHUNK).1 == bytes);
}

#[test]
fn an_append_after_a_patched_end_goes_on_in_place_and_after_a_cut_does_not() {
    let lab = Lab::new();
    let mut engine = lab.open();
    let mut bytes = noise(1, 450_000);
    let at = |offset| EngineOp::Write { offset };
    put(&engine, 1, EngineOp::Create, &bytes[..400_000]).unwrap();
    // Seven stretches; the second and the last are patched.
    put(&engine, 2, at(70_000), &bytes[70_000..70_001]).unwrap();
    put(&engine, 3, at(399_000), &bytes[399_000..400_000]).unwrap();
    let slots = |engine: &Engine| -> HashSet<Slot> {
        let image = engine.row(CHUNK).unwrap().committed.unwrap();
        let body = image.body.as_ref().unwrap();
        body.slots().map(Placed::slot).collect()
    };
    let before = slots(&engine);
    assert_eq!(before.len(), 3);
    put(&engine, 4, at(400_000), &bytes[400_000..420_000]).unwrap();
    assert!(read_all(&engine, CHUNK).1 == bytes[..420_000]);
    assert_eq!(slots(&engine), before);
    let cut = EngineOp::Truncate { len_bytes: 300_000 };
    put(&engine, 5, cut, b"").unwrap();
    assert_eq!(patch_count(&engine, CHUNK), 1, "a patch past the end goes");
    drop(engine);
    engine = lab.open();
    assert!(read_all(&engine, CHUNK).1 == bytes[..300_000]);
    put(&engine, 6, at(5), b"patched").unwrap();
    bytes[5..12].copy_from_slice(b"patched");
    assert_eq!(patch_count(&engine, CHUNK), 2);
    // Older versions may need what lies past the end.
    put(&engine, 7, at(300_000), &bytes[300_000..]).unwrap();
    assert!(slots(&engine).is_disjoint(&before));
    assert!(read_all(&engine, CHUNK) == (7, bytes));
    assert_allocator_consistent(&engine);
}

#[test]
fn stretches_of_the_largest_chunks_are_whole_pieces() {
    let engine = Lab::new().open();
    let mut bytes = noise(1, (32 << 20) + 5);
    put(&engine, 1, EngineOp::Create, &bytes).unwrap();
    let edge = 5 * (256 << 10);
    put(&engine, 2, EngineOp::Write { offset: edge - 3 }, b"sixbyt").unwrap();
    let at = edge as usize;
    bytes[at - 3..at + 3].copy_from_slice(b"sixbyt");
    assert_eq!(patch_count(&engine, CHUNK), 2);
    assert_eq!(engine.usage().used_bytes, (64 << 20) + 2 * (256 << 10));
    assert!(read_all(&engine, CHUNK) == (2, bytes));
    engine.verify(CHUNK).unwrap();
}

#[test]
fn a_flipped_bit_in_a_patch_is_noticed_and_one_under_it_does_not_matter() {
    let lab = Lab::new();
    let engine = lab.open();
    let bytes = noise(1, 250_000);
    put(&engine, 1, EngineOp::Create, &bytes).unwrap();
    put(
        &engine,
        2,
        EngineOp::Write { offset: 70_000 },
        &bytes[70_000..70_001],
    )
    .unwrap();
    lab.disk.flip_bit("256k.0", 80_000);
    assert!(read_all(&engine, CHUNK) == (2, bytes));
    lab.disk.flip_bit("64k.0", 30_000);
    let read = |offset| engine.read(CHUNK, offset, 1, ReadMode::Blocking);
    assert!(matches!(
        read(65_536 + 30_000),
        Err(EngineError::Corrupt { .. })
    ));
    read(65_536 + 40_000).unwrap().unwrap();
    assert!(matches!(
        engine.verify(CHUNK),
        Err(EngineError::Corrupt { .. })
    ));
    let overwrite = put(&engine, 3, EngineOp::Write { offset: 70_000 }, b"x");
    assert!(matches!(overwrite, Err(EngineError::Corrupt { .. })));
    put(&engine, 3, EngineOp::Write { offset: 9 }, b"x").unwrap();
    assert_allocator_consistent(&engine);
}

#[test]
fn a_full_disk_refuses_a_patch_and_keeps_the_chunk() {
    let lab = Lab::new();
    let engine = lab.open();
    let bytes = noise(1, 250_000);
    put(&engine, 1, EngineOp::Create, &bytes).unwrap();
    let limit = EngineOptions::default().free_min_bytes;
    lab.disk
        .free_bytes
        .store(limit + (1 << 17) - 1, Ordering::SeqCst);
    let edge = EngineOp::Write { offset: 65_530 };
    let full = put(&engine, 2, edge, &noise(2, 10));
    assert!(matches!(full, Err(EngineError::NoSpace)));
    assert!(read_all(&engine, CHUNK) == (1, bytes));
    put(&engine, 2, EngineOp::Write { offset: 9 }, b"x").unwrap();
    let removed = engine.remove_blob(CHUNK.blob, 0, 10).unwrap();
    assert_eq!(removed, 1);
    engine.sync().unwrap();
    assert_eq!(engine.usage().used_bytes, 0);
    assert_allocator_consistent(&engine);
}

/// A chunk of five stretches, patched, patched again, made whole, cut and grown, with a second chunk that takes what
/// is freed; `true` is a barrier after it.
const SCRIPT: &[(u32, EngineOp, usize, bool)] = {
    const fn at(offset: u32) -> EngineOp {
        EngineOp::Write { offset }
    }
    &[
        (0, at(0), 300_000, true),
        (0, at(70_000), 4096, true),
        (0, at(70_100), 4096, false),
        (0, at(70_200), 4096, false),
        (1, at(0), 60_000, false),
        (1, at(5), 60_000, true),
        (1, at(9), 50_000, false),
        (0, at(65_000), 1000, true),
        (1, at(3), 50_000, false),
        (0, at(200_000), 100, false),
        (1, at(0), 65_000, true),
        (1, at(0), 65_000, true),
        (0, at(299_990), 10_000, false),
        (0, at(309_990), 30_000, true),
        (0, EngineOp::Truncate { len_bytes: 270_000 }, 0, false),
        (0, at(100), 10, true),
        (0, at(270_000), 500, false),
        (1, at(1), 10, true),
    ]
};

#[test]
fn a_power_cut_at_each_step_of_overwrites_leaves_a_state_that_was() {
    let mut completed = 0;
    for (cut, seed) in (0..90).flat_map(|cut| (0..12).map(move |seed| (cut, seed))) {
        let lab = Lab::new();
        let engine = lab.open();
        lab.power.set(cut);
        let mut states: [Vec<State>; 2] = [vec![None], vec![None]];
        let mut run = || -> Result<(), EngineError> {
            for (number, (chunk, op, len, barrier)) in (0u64..).zip(SCRIPT) {
                let known = &mut states[*chunk as usize];
                let (version, bytes) = known.last().cloned().flatten().unwrap_or_default();
                let data = noise(number, *len);
                known.push(Some((version + 1, reference(&bytes, *op, &data))));
                let payload = Payload::new(&data);
                engine.stage_and_commit(&payload.write(id(*chunk), version + 1, *op))?;
                if *barrier {
                    engine.sync()?;
                    for known in &mut states {
                        known.drain(..known.len() - 1);
                    }
                }
            }
            Ok(())
        };
        completed += usize::from(run().is_ok());
        drop(engine);
        lab.power_cut(cut * 100 + seed);
        let engine = lab.open();
        for (chunk, states) in (0..).zip(&states) {
            let (version, bytes) = read_all(&engine, id(chunk));
            let found = (version > 0).then_some((version, bytes));
            assert!(
                states.contains(&found),
                "cut {cut}, seed {seed}: chunk {chunk} at {version}"
            );
        }
        assert_allocator_consistent(&engine);
    }
    assert!(completed > 0, "the cuts reach past the end of the script");
}
