//! The operations on chunks, each with its attempts.

use std::{
    collections::HashSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future;
use janusfs_rpc::{Peer, call, call_bulk};
use janusfs_types::{
    Advice, BlobId, ChainInfo, ChainTable, ChunkId, ChunkVersion, ClientId, FsError, Layout,
    RequestId, TargetId, limits,
};
use janusfs_wire::storage::{
    ChunkStatus, List, Read, Remove, Scrub, ScrubStep, Sync, TargetUsage, Usage, Write, WriteDone,
    WriteOp, WriteTag,
};
use parking_lot::RwLock;

use crate::{
    Backoff,
    crc::crc32c,
    routing::{Peers, Routing, head, route},
};

const DEADLINE: Duration = Duration::from_millis(limits::CHUNK_DEADLINE_MS);
/// A replica that has not answered a read for this long is passed over while there is another one.
const REPLICA_PATIENCE: Duration = Duration::from_secs(3);
/// Rounds over all replicas before damage is believed: one more than the first, for bytes damaged on the way.
const CORRUPT_ROUNDS: u32 = 2;

/// Reads and writes chunks of one cluster as one client.
pub struct ChainClient {
    client: ClientId,
    peers: Peers,
    routing: RwLock<Arc<Routing>>,
    next_request: AtomicU64,
}

impl ChainClient {
    /// Makes a client of the chains in `table`; `peers` gives the way to an address ("" is in process).
    ///
    /// # Errors
    /// [`FsError::Unavailable`] when the table names no serving target.
    pub fn new(
        client: ClientId,
        table: ChainTable,
        peers: Arc<dyn Fn(&str) -> Peer + Send + std::marker::Sync>,
    ) -> Result<Self, FsError> {
        let routing = RwLock::new(Arc::new(Routing::new(table, &peers)?));
        Ok(Self {
            client,
            peers,
            routing,
            next_request: AtomicU64::new(1),
        })
    }

    /// Returns the chain table in use.
    #[must_use]
    pub fn table(&self) -> ChainTable {
        self.routing().table.clone()
    }

    /// Routes by a newer table from the next attempt on, also of operations under way.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] when the table names no serving target; the old one stays.
    pub fn set_table(&self, table: ChainTable) -> Result<(), FsError> {
        if self.routing.read().table == table {
            return Ok(());
        }
        let routing = Arc::new(Routing::new(table, &self.peers)?);
        *self.routing.write() = routing;
        Ok(())
    }

    /// Reads committed bytes of a chunk; fewer than asked when the chunk ends there, none when it does not exist.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when no replica had good bytes; [`FsError::Unavailable`], [`FsError::Busy`] or
    /// [`FsError::StaleChain`] at the deadline.
    pub async fn read(
        &self,
        chunk: ChunkId,
        layout: &Layout,
        offset: u32,
        len_bytes: u32,
    ) -> Result<(ChunkVersion, Bytes), FsError> {
        let mut backoff = Backoff::new(DEADLINE);
        let mut corrupt_rounds = 0;
        loop {
            let routing = self.routing();
            let chain = routing.chain(layout, chunk.index);
            let count = chain.targets.len();
            let first = if count == 1 {
                0
            } else {
                rotation(chunk) % count
            };
            let mut failure = FsError::StaleChain;
            for turn in 0..count {
                let target = chain.targets[(first + turn) % count];
                let mut timeout = backoff.remaining();
                if turn + 1 < count {
                    timeout = timeout.min(REPLICA_PATIENCE);
                }
                let message = Read {
                    route: route(chain, target),
                    chunk,
                    offset,
                    len_bytes,
                    relaxed: false,
                };
                match read_replica(&routing, target, &message, timeout).await {
                    Ok(answer) => return Ok(answer),
                    Err(error @ FsError::Corrupt(_)) => failure = error,
                    // Damage seen in this round outweighs a replica that merely did not answer.
                    Err(error) if passes(&error) => {
                        if !matches!(failure, FsError::Corrupt(_)) {
                            failure = error;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            if matches!(failure, FsError::Corrupt(_)) {
                corrupt_rounds += 1;
                if corrupt_rounds == CORRUPT_ROUNDS {
                    return Err(failure);
                }
            }
            if !backoff.pause().await {
                return Err(failure);
            }
        }
    }

    /// Writes to a chunk through its chain. When it returns, every serving replica has the bytes in hand; [`Self::sync`]
    /// makes them stable.
    ///
    /// # Errors
    /// [`FsError::Exists`] for `Create` of a chunk that exists; [`FsError::NoSpace`]; [`FsError::Unavailable`] at the
    /// deadline: it may have been applied.
    pub async fn write(
        &self,
        chunk: ChunkId,
        layout: &Layout,
        op: WriteOp,
        pieces: Vec<Bytes>,
    ) -> Result<WriteDone, FsError> {
        self.write_growing(chunk, layout, op, pieces, 0).await
    }

    /// As [`Self::write`], to a chunk that is expected to reach a length: more writes follow, and it need not move for them.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_growing(
        &self,
        chunk: ChunkId,
        layout: &Layout,
        op: WriteOp,
        pieces: Vec<Bytes>,
        expected_len_bytes: u32,
    ) -> Result<WriteDone, FsError> {
        let crc = crc32c(&pieces);
        let request = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let tag = WriteTag {
            client: self.client,
            request,
        };
        let mut backoff = Backoff::new(DEADLINE);
        loop {
            let routing = self.routing();
            let route = head(routing.chain(layout, chunk.index));
            let message = Write {
                route,
                chunk,
                op,
                crc,
                tag,
                expected_len_bytes,
            };
            let peer = routing.peer(route.target)?;
            match call_bulk(&**peer, &message, pieces.clone(), backoff.remaining()).await {
                Ok((done, _)) => return Ok(done),
                Err(error) if passes(&error) => {
                    if !backoff.pause().await {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns when everything acknowledged before on the chains of `layout` is on stable storage of every serving
    /// replica.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] at the deadline, or what a replica's disk said.
    pub async fn sync(&self, layout: &Layout) -> Result<(), FsError> {
        self.each_chain(layout, |routing, chain| async move {
            let route = head(&chain);
            let peer = routing.peer(route.target)?;
            call(&**peer, &Sync { route }, DEADLINE).await
        })
        .await
    }

    /// Removes the chunks of a blob from `from_index` on. Only for blobs nobody can reach, or past a file's end.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] at the deadline; some chunks may be gone.
    pub async fn remove(
        &self,
        blob: BlobId,
        layout: &Layout,
        from_index: u32,
    ) -> Result<(), FsError> {
        self.each_chain(layout, |routing, chain| async move {
            let route = head(&chain);
            let peer = routing.peer(route.target)?;
            while call(
                &**peer,
                &Remove {
                    route,
                    blob,
                    from_index,
                },
                DEADLINE,
            )
            .await?
                > 0
            {}
            Ok(())
        })
        .await
    }

    /// Returns the figures of every target of the table.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] when a node does not answer.
    pub async fn usage(&self) -> Result<Vec<TargetUsage>, FsError> {
        let routing = self.routing();
        let mut asked = HashSet::new();
        let mut figures: Vec<TargetUsage> = Vec::new();
        for info in routing
            .table
            .targets
            .iter()
            .filter(|info| asked.insert(&info.address))
        {
            let peer = routing.peer(info.target)?;
            figures.extend(call(&**peer, &Usage {}, DEADLINE).await?);
        }
        figures.sort_by_key(|figure| figure.target);
        figures.dedup_by_key(|figure| figure.target);
        Ok(figures)
    }

    /// Verifies up to `limit` chunks of a target after `after`; damaged ones are mended from another replica.
    ///
    /// # Errors
    /// [`FsError::NotFound`] for a target that is in no chain; [`FsError::Unavailable`].
    pub async fn scrub(
        &self,
        target: TargetId,
        after: Option<ChunkId>,
        limit: u32,
    ) -> Result<ScrubStep, FsError> {
        let routing = self.routing();
        let route = route(routing.chain_of(target)?, target);
        call(
            &**routing.peer(target)?,
            &Scrub {
                route,
                after,
                limit,
            },
            DEADLINE,
        )
        .await
    }

    /// Lists up to `limit` chunks of a target after `after`, in order.
    ///
    /// # Errors
    /// As [`Self::scrub`].
    pub async fn list(
        &self,
        target: TargetId,
        after: Option<ChunkId>,
        limit: u32,
    ) -> Result<Vec<ChunkStatus>, FsError> {
        let routing = self.routing();
        let route = route(routing.chain_of(target)?, target);
        call(
            &**routing.peer(target)?,
            &List {
                route,
                after,
                limit,
            },
            DEADLINE,
        )
        .await
    }

    /// Runs an idempotent operation on every chain of the layout, at the same time, again while it may yet succeed.
    async fn each_chain<F, R>(&self, layout: &Layout, run: F) -> Result<(), FsError>
    where
        F: Fn(Arc<Routing>, ChainInfo) -> R,
        R: Future<Output = Result<(), FsError>>,
    {
        let mut backoff = Backoff::new(DEADLINE);
        loop {
            let routing = self.routing();
            let chains = routing.chains(layout);
            let result = match chains.as_slice() {
                [chain] => run(Arc::clone(&routing), (*chain).clone()).await,
                chains => {
                    let runs = chains
                        .iter()
                        .map(|chain| run(Arc::clone(&routing), (*chain).clone()));
                    future::try_join_all(runs).await.map(|_| ())
                }
            };
            match result {
                Err(error) if passes(&error) => {
                    if !backoff.pause().await {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    fn routing(&self) -> Arc<Routing> {
        Arc::clone(&self.routing.read())
    }
}

/// Tells whether another attempt may succeed.
fn passes(error: &FsError) -> bool {
    // A full disk or quota does not empty itself within a deadline: the caller hears of it at once.
    matches!(error, FsError::Busy) || matches!(error.advice(), Advice::Refresh | Advice::Unknown)
}

/// Spreads the reads of a blob's chunks over the replicas of their chains.
fn rotation(chunk: ChunkId) -> usize {
    let mixed = (chunk.blob.0 ^ u64::from(chunk.index)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    usize::try_from(mixed).unwrap_or_default()
}

async fn read_replica(
    routing: &Routing,
    target: TargetId,
    message: &Read,
    timeout: Duration,
) -> Result<(ChunkVersion, Bytes), FsError> {
    let peer = routing.peer(target)?;
    let (done, body) = call_bulk(&**peer, message, Vec::new(), timeout).await?;
    let got: usize = body.iter().map(Bytes::len).sum();
    if u32::try_from(got).is_ok_and(|got| got <= message.len_bytes) && crc32c(&body) == done.crc {
        return Ok((done.version, joined(body)));
    }
    tracing::warn!(%target, chunk = %message.chunk, "reply does not match its checksum");
    Err(FsError::Corrupt(format!(
        "reply of {target} for {}",
        message.chunk
    )))
}

/// Returns the payload as one run; a payload of one piece, the usual one, is not copied.
fn joined(mut body: Vec<Bytes>) -> Bytes {
    match body.len() {
        0 => Bytes::new(),
        1 => body.remove(0),
        _ => body.concat().into(),
    }
}
