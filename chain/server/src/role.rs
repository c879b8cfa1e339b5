//! The storage role: opens the targets of a node, routes requests to them, answers.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    path::PathBuf,
    sync::{Arc, Weak, atomic::Ordering},
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use janusfs_chain_engine::{ChunkInfo, Engine, EngineError, EngineOptions, ReadMode};
use janusfs_chain_protocol::{Input, Rejected};
use janusfs_env::{clock, metrics, tasks};
use janusfs_rpc::{Handler, Peer, Reply, Request, Transport, decode};
use janusfs_types::{ChainTable, ChunkVersion, FsError, TargetId, limits};
use janusfs_wire::{
    Method, Wire,
    storage::{
        ChainRoute, ChunkStatus, Forward, List, Query, Read, ReadDone, Remove, Scrub, Sync,
        TargetUsage, Usage, Write, WriteDone, WriteOp,
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    limits::{ADMISSION_UNIT_BYTES, JOBS_MAX, PAGE_MAX},
    reconcile,
    target::Target,
    unbroken::Unbroken,
    write::{Job, Payload, from_engine_tag, protocol_tag},
};

/// Makes the way to a node from its address.
pub type PeerSource = Arc<dyn Fn(&str) -> Peer + Send + std::marker::Sync>;

/// What a storage role serves.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// The chains and where their targets are.
    pub table: ChainTable,
    /// The targets of this process and the directory of each.
    pub engine_dirs: Vec<(TargetId, PathBuf)>,
    /// Bytes of payload of writes in progress; more wait.
    pub inflight_max_bytes: u64,
}

/// All targets of one process.
pub struct StorageRole {
    me: Weak<StorageRole>,
    targets: BTreeMap<TargetId, Arc<Target>>,
    addresses: HashMap<TargetId, String>,
    peers: PeerSource,
    in_process: Peer,
    /// Units of payload that may still be admitted from clients.
    admission: Arc<Semaphore>,
    admission_units: u32,
    /// One permit for each job; [`StorageRole::shutdown`] takes them all.
    jobs: Arc<Semaphore>,
}

/// Who sent a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A client, or a node over the network.
    Outside,
    /// A target of this process.
    InProcess,
}

/// The role as its own peer, for a successor in the same process.
struct InProcess(Weak<StorageRole>);

impl Transport for InProcess {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>> {
        async move {
            let role = self.0.upgrade().ok_or_else(shutting_down)?;
            role.dispatch(request, Origin::InProcess).await
        }
        .boxed()
    }
}

impl Handler for StorageRole {
    fn handle(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>> {
        self.dispatch(request, Origin::Outside).boxed()
    }
}

fn shutting_down() -> FsError {
    FsError::Unavailable("the storage role is shutting down".into())
}

impl From<Rejection> for FsError {
    fn from(Rejection(rejected): Rejection) -> Self {
        match rejected {
            Rejected::StaleChain | Rejected::WrongPlace => Self::StaleChain,
            Rejected::Busy => Self::Busy,
        }
    }
}

/// A protocol rejection on its way to the caller.
struct Rejection(Rejected);

impl StorageRole {
    /// Opens every target, makes the replicas of this process equal, and is ready to serve.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for a configuration that does not fit its table, or what an engine answers.
    pub async fn open(config: StorageConfig, peers: PeerSource) -> Result<Arc<Self>, FsError> {
        let table = config.table;
        let dirs = config.engine_dirs;
        let targets = tasks::blocking(move || open_targets(&table, dirs).map(|open| (table, open)));
        let (table, targets) = targets.await?;
        let units = (config.inflight_max_bytes / ADMISSION_UNIT_BYTES)
            .max(1)
            .min(Semaphore::MAX_PERMITS as u64);
        let admission_units = u32::try_from(units).unwrap_or(u32::MAX);
        let addresses = table
            .targets
            .into_iter()
            .map(|target| (target.target, target.address))
            .collect();
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            targets,
            addresses,
            peers,
            in_process: Arc::new(InProcess(me.clone())),
            admission: Arc::new(Semaphore::new(admission_units as usize)),
            admission_units,
            jobs: Arc::new(Semaphore::new(JOBS_MAX as usize)),
        }))
    }

    /// Refuses new writes, waits for those in progress, and makes everything stable.
    pub async fn shutdown(&self) {
        // All permits: nothing is in progress. They are never given back.
        if let Ok(all) = self.jobs.acquire_many(JOBS_MAX).await {
            all.forget();
        }
        self.jobs.close();
        self.sync_targets().await;
    }

    /// Makes everything stable on every target of this process. A failure is logged: the engine then refuses changes itself.
    pub(crate) async fn sync_targets(&self) {
        for target in self.targets.values() {
            let engine = target.engine.clone();
            if let Err(error) = tasks::blocking(move || engine.sync()).await {
                tracing::error!(target = %target.id, %error, "the sync failed");
            }
        }
    }

    /// Returns the figures of every target. Asks the file system, so not for a runtime worker.
    #[must_use]
    pub fn usage(&self) -> Vec<TargetUsage> {
        self.targets
            .values()
            .map(|target| target_usage(target))
            .collect()
    }

    pub(crate) fn arc(&self) -> Result<Arc<Self>, FsError> {
        self.me.upgrade().ok_or_else(shutting_down)
    }

    /// Returns the way to another target.
    pub(crate) fn peer(&self, target: TargetId) -> Result<Peer, FsError> {
        if self.targets.contains_key(&target) {
            return Ok(self.in_process.clone());
        }
        match self.addresses.get(&target) {
            Some(address) if !address.is_empty() => Ok((self.peers)(address)),
            _ => Err(FsError::Unavailable(format!("{target} has no address"))),
        }
    }

    /// Admits one write or repair; it counts until the permit is dropped.
    pub(crate) fn start_job(&self) -> Result<OwnedSemaphorePermit, FsError> {
        self.jobs
            .clone()
            .try_acquire_owned()
            .map_err(|error| match error {
                tokio::sync::TryAcquireError::Closed => shutting_down(),
                tokio::sync::TryAcquireError::NoPermits => FsError::Busy,
            })
    }

    pub(crate) fn target(&self, route: ChainRoute) -> Result<Arc<Target>, FsError> {
        let target = self.targets.get(&route.target).ok_or(FsError::StaleChain)?;
        if (target.chain.chain, target.chain.version) != (route.chain, route.version) {
            return Err(FsError::StaleChain);
        }
        Ok(target.clone())
    }

    /// As [`Self::target`], for what enters a chain at its head and is passed on from there.
    fn chain_step(&self, route: ChainRoute, origin: Origin) -> Result<Arc<Target>, FsError> {
        let target = self.target(route)?;
        let from_chain = origin == Origin::InProcess || !target.predecessor_is_local;
        if target.is_head() || from_chain {
            Ok(target)
        } else {
            Err(FsError::StaleChain)
        }
    }

    async fn dispatch(&self, request: Request, origin: Origin) -> Result<Reply, FsError> {
        match request.method {
            Read::ID => self.read(decode(&request.head)?, &request).await,
            Write::ID => {
                let message: Write = decode(&request.head)?;
                reply(self.write(message, request).await?)
            }
            Forward::ID => {
                let message: Forward = decode(&request.head)?;
                self.chain_step(message.route, origin)?;
                reply(self.forwarded(message, request).await?)
            }
            Sync::ID => {
                let message: Sync = decode(&request.head)?;
                let target = self.chain_step(message.route, origin)?;
                reply(self.sync(&target, &request).await?)
            }
            Remove::ID => {
                let message: Remove = decode(&request.head)?;
                let target = self.chain_step(message.route, origin)?;
                reply(self.remove(&target, message, &request).await?)
            }
            Query::ID => {
                let message: Query = decode(&request.head)?;
                let row = self.target(message.route)?.engine.query(message.chunk);
                reply(row.and_then(status))
            }
            List::ID => reply(self.list(decode(&request.head)?).await?),
            Usage::ID => {
                let role = self.arc()?;
                reply(tasks::blocking(move || role.usage()).await)
            }
            Scrub::ID => reply(self.scrub(decode(&request.head)?).await?),
            method => Err(FsError::Unsupported(format!("storage method {method}"))),
        }
    }

    async fn read(&self, message: Read, request: &Request) -> Result<Reply, FsError> {
        let target = self.target(message.route)?;
        let Read {
            chunk,
            offset,
            len_bytes,
            relaxed,
            ..
        } = message;
        if u64::from(len_bytes) > limits::RPC_BODY_MAX_BYTES as u64 {
            return Err(FsError::Invalid("a read is at most one chunk".into()));
        }
        let tail = if relaxed { None } else { target.other_tail() };
        // First the replica, then the engine: a write that enters in between was not committed when we asked.
        if let Some(tail) = tail
            && target.must_ask_tail(chunk)
        {
            return self.read_from(tail, message, request).await;
        }
        let engine = target.engine.clone();
        let found = if tasks::may_block() {
            engine.read(chunk, offset, len_bytes, ReadMode::Blocking)
        } else {
            match engine.read(chunk, offset, len_bytes, ReadMode::Cached) {
                Ok(None) => {
                    let read = move || engine.read(chunk, offset, len_bytes, ReadMode::Blocking);
                    tasks::blocking(read).await
                }
                found => found,
            }
        };
        let found = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Err(FsError::Io(format!("chunk {chunk} could not be read"))),
            Err(error) => {
                if matches!(error, EngineError::Corrupt { .. }) {
                    self.note_corruption(&target, chunk);
                    Self::mend_later(&self.arc()?, &target, chunk);
                }
                return Err(error.into());
            }
        };
        if let Some(tail) = tail
            && found.pending
        {
            return self.read_from(tail, message, request).await;
        }
        metrics::CHUNK_READS.add(1);
        metrics::CHUNK_READ_BYTES.add(found.data.len() as u64);
        let done = ReadDone {
            version: found.version,
            crc: found.crc,
        };
        let body = if found.data.is_empty() {
            Vec::new()
        } else {
            vec![found.data]
        };
        Ok(Reply {
            head: done.to_wire(),
            body,
            ..Reply::default()
        })
    }

    /// Lets the tail answer, which knows what is committed.
    async fn read_from(
        &self,
        tail: TargetId,
        mut message: Read,
        request: &Request,
    ) -> Result<Reply, FsError> {
        message.route.target = tail;
        let peer = self.peer(tail)?;
        let (done, body) =
            janusfs_rpc::call_bulk(&*peer, &message, Vec::new(), request.timeout).await?;
        Ok(Reply {
            head: done.to_wire(),
            body,
            ..Reply::default()
        })
    }

    async fn write(&self, message: Write, request: Request) -> Result<WriteDone, FsError> {
        let target = self.target(message.route)?;
        if !target.is_head() {
            return Err(FsError::StaleChain);
        }
        let Write {
            route,
            chunk,
            op,
            crc,
            tag,
            expected_len_bytes,
        } = message;
        let payload = payload(op, crc, tag, expected_len_bytes, request)?;
        let len_bytes = body_len(&payload.data);
        let admitted = self.admit(len_bytes, &payload).await?;
        let ticket = self.start_job()?;
        let inbox = target
            .enter(|write| Input::ClientWrite {
                write,
                chunk,
                tag: protocol_tag(tag),
                chain_version: route.version,
            })
            .map_err(Rejection)?;
        let job = Job::new(self.arc()?, target, chunk, payload);
        let done = Unbroken::new(async move {
            let _held = (ticket, admitted);
            job.run(inbox).await
        })
        .await?;
        metrics::CHUNK_WRITES.add(1);
        metrics::CHUNK_WRITE_BYTES.add(len_bytes);
        Ok(done)
    }

    /// Not admitted by bytes again: the head's admission bounds what travels down its chain, and waiting here while
    /// predecessors hold theirs could close a circle of chains.
    async fn forwarded(&self, message: Forward, request: Request) -> Result<WriteDone, FsError> {
        let target = self.target(message.route)?;
        let Forward {
            route,
            chunk,
            op,
            crc,
            tag,
            version,
            expected_len_bytes,
        } = message;
        let payload = payload(op, crc, tag, expected_len_bytes, request)?;
        let ticket = self.start_job()?;
        let inbox = target
            .enter(|write| Input::Forwarded {
                write,
                chunk,
                tag: protocol_tag(tag),
                chain_version: route.version,
                version,
            })
            .map_err(Rejection)?;
        let job = Job::new(self.arc()?, target, chunk, payload);
        Unbroken::new(async move {
            let _held = ticket;
            job.run(inbox).await
        })
        .await
    }

    async fn admit(
        &self,
        len_bytes: u64,
        payload: &Payload,
    ) -> Result<OwnedSemaphorePermit, FsError> {
        let units = u32::try_from(len_bytes.div_ceil(ADMISSION_UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.clamp(1, self.admission_units);
        if let Ok(permit) = self.admission.clone().try_acquire_many_owned(units) {
            return Ok(permit);
        }
        match clock::timeout(
            payload.timeout,
            self.admission.clone().acquire_many_owned(units),
        )
        .await
        {
            Ok(permit) => permit.map_err(|_| shutting_down()),
            Err(_) => Err(FsError::Busy),
        }
    }

    async fn sync(&self, target: &Target, request: &Request) -> Result<(), FsError> {
        let engine = target.engine.clone();
        let own = async {
            metrics::CHUNK_SYNCS.add(1);
            tasks::blocking(move || engine.sync())
                .await
                .map_err(FsError::from)
        };
        let rest = self
            .pass_on(target, request, |route| Sync { route })
            .map(|rest| rest.map(|_| ()));
        let (own, rest) = futures::join!(own, rest);
        own.and(rest)
    }

    async fn remove(
        &self,
        target: &Target,
        message: Remove,
        request: &Request,
    ) -> Result<u32, FsError> {
        let engine = target.engine.clone();
        let Remove {
            blob, from_index, ..
        } = message;
        let own = async {
            let remove = move || engine.remove_blob(blob, from_index, PAGE_MAX);
            tasks::blocking(remove).await.map_err(FsError::from)
        };
        let rest = self.pass_on(target, request, |route| Remove {
            route,
            blob,
            from_index,
        });
        let (own, rest) = futures::join!(own, rest);
        // A replica that missed an earlier call may still have some: done is when nobody has any.
        Ok(own?.max(rest?.unwrap_or(0)))
    }

    /// Calls the successor with the same request; none at the tail.
    async fn pass_on<M: Method>(
        &self,
        target: &Target,
        request: &Request,
        message: impl FnOnce(ChainRoute) -> M,
    ) -> Result<Option<M::Reply>, FsError> {
        let Some(successor) = target.successor() else {
            return Ok(None);
        };
        let chain = &target.chain;
        let route = ChainRoute {
            chain: chain.chain,
            version: chain.version,
            target: successor,
        };
        let peer = self.peer(successor)?;
        janusfs_rpc::call(&*peer, &message(route), request.timeout)
            .await
            .map(Some)
    }

    fn list(&self, message: List) -> impl Future<Output = Result<Vec<ChunkStatus>, FsError>> {
        let target = self.target(message.route);
        async move {
            let engine = target?.engine.clone();
            let limit = message.limit.clamp(1, PAGE_MAX);
            let rows = tasks::blocking(move || engine.list(message.after, limit)).await?;
            Ok(rows.into_iter().filter_map(status).collect())
        }
    }
}

fn reply<T: Wire>(value: T) -> Result<Reply, FsError> {
    Ok(Reply {
        head: value.to_wire(),
        ..Reply::default()
    })
}

fn body_len(data: &[Bytes]) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

fn payload(
    op: WriteOp,
    crc: u32,
    tag: janusfs_wire::storage::WriteTag,
    expected_len_bytes: u32,
    request: Request,
) -> Result<Payload, FsError> {
    if body_len(&request.body) > limits::RPC_BODY_MAX_BYTES as u64 {
        return Err(FsError::Invalid("a write is at most one chunk".into()));
    }
    Ok(Payload {
        op,
        tag,
        crc,
        expected_len_bytes,
        data: request.body,
        timeout: request.timeout,
    })
}

/// A row as others see it: only what is committed.
fn status(row: ChunkInfo) -> Option<ChunkStatus> {
    (row.committed > ChunkVersion(0)).then(|| ChunkStatus {
        chunk: row.chunk,
        version: row.committed,
        len_bytes: row.len_bytes,
        crc: row.crc,
        last: row.last.map(from_engine_tag),
    })
}

fn target_usage(target: &Target) -> TargetUsage {
    let usage = target.engine.usage();
    TargetUsage {
        target: target.id.0,
        capacity_bytes: usage.capacity_bytes,
        free_bytes: usage.free_bytes,
        used_bytes: usage.used_bytes,
        chunks: usage.chunks,
        corruptions: target.corruptions.load(Ordering::Relaxed),
        repairs: target.repairs.load(Ordering::Relaxed),
    }
}

fn open_targets(
    table: &ChainTable,
    dirs: Vec<(TargetId, PathBuf)>,
) -> Result<BTreeMap<TargetId, Arc<Target>>, FsError> {
    let mut engines = HashMap::new();
    for (target, dir) in dirs {
        let engine = Engine::open(&dir, EngineOptions::default())?;
        if engines.insert(target, engine).is_some() {
            return Err(FsError::Invalid(format!("{target} is configured twice")));
        }
    }
    let mut targets = BTreeMap::new();
    for chain in &table.chains {
        let local: Vec<&Engine> = chain
            .targets
            .iter()
            .filter_map(|target| engines.get(target))
            .collect();
        if !local.is_empty() {
            let copies = reconcile::reconcile(&local, local.len() == chain.targets.len())?;
            if copies > 0 {
                tracing::info!(chain = %chain.chain, copies, "replicas differed and are equal now");
            }
        }
        let mut predecessor_is_local = false;
        for (position, id) in chain.targets.iter().enumerate() {
            let Some(engine) = engines.remove(id) else {
                if targets.contains_key(id) {
                    return Err(FsError::Invalid(format!("{id} is in two chains")));
                }
                predecessor_is_local = false;
                continue;
            };
            let target = Target::new(*id, engine, chain.clone(), position, predecessor_is_local);
            targets.insert(*id, Arc::new(target));
            predecessor_is_local = true;
        }
    }
    match engines.keys().next() {
        Some(target) => Err(FsError::Invalid(format!("{target} is in no chain"))),
        None => Ok(targets),
    }
}
