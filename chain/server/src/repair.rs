//! Copies a chunk from another replica over a damaged or outdated one, and scrubs.
//!
//! A repair takes its turn among the writes of its chunk (`Input::Mend`), so it never races one on this replica. The
//! source may move on meanwhile: version and CRC of its row and of the bytes read must agree, or it starts again.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use janusfs_chain_engine::EngineError;
use janusfs_chain_protocol::Input;
use janusfs_env::{clock, metrics, tasks};
use janusfs_types::{ChunkId, ChunkVersion, FsError, TargetId};
use janusfs_wire::storage::{ChainRoute, ChunkStatus, Query, Read, Scrub, ScrubStep};

use crate::{
    limits::{
        DAMAGED_MAX, MENDS_MAX, PAGE_MAX, REPAIR_ATTEMPTS_MAX, REPAIR_DEADLINE, SCRUB_TIME_MAX,
    },
    role::StorageRole,
    target::Target,
    unbroken::Unbroken,
    write::{Job, Payload, to_engine_tag},
};

impl StorageRole {
    pub(crate) fn note_corruption(&self, target: &Target, chunk: ChunkId) {
        // Every reader meets the damage until it is mended; it counts once.
        let mut damaged = target.damaged.lock();
        if damaged.len() < DAMAGED_MAX && !damaged.insert(chunk) {
            return;
        }
        drop(damaged);
        tracing::error!(%chunk, target = %target.id, "stored bytes do not match their checksum");
        target.corruptions.fetch_add(1, Ordering::Relaxed);
        metrics::CHUNK_CORRUPTIONS.add(1);
    }

    /// Starts a repair in the background, unless one is under way or too many are.
    pub(crate) fn mend_later(role: &Arc<Self>, target: &Arc<Target>, chunk: ChunkId) {
        if target.chain.targets.len() == 1 {
            return;
        }
        {
            let mut mending = target.mending.lock();
            if mending.len() >= MENDS_MAX || !mending.insert(chunk) {
                return;
            }
        }
        let (role, target) = (role.clone(), target.clone());
        drop(tasks::spawn(async move {
            if let Err(error) = Self::mend(&role, &target, chunk).await {
                tracing::error!(%chunk, target = %target.id, %error, "the chunk was not mended");
            }
            target.mending.lock().remove(&chunk);
        }));
    }

    /// Repairs a chunk when its turn comes.
    async fn mend(role: &Arc<Self>, target: &Arc<Target>, chunk: ChunkId) -> Result<(), FsError> {
        let ticket = role.start_job()?;
        let inbox = target
            .enter(|write| Input::Mend { write, chunk })
            .map_err(|_| FsError::Busy)?;
        let job = Job::new(role.clone(), target.clone(), chunk, Payload::empty());
        Unbroken::new(async move {
            let _ticket = ticket;
            job.run(inbox).await.map(|_| ())
        })
        .await
    }

    /// Copies the newest committed version of the chunk that another replica holds, at least `at_least`.
    pub(crate) async fn repair(
        role: &Arc<Self>,
        target: &Arc<Target>,
        chunk: ChunkId,
        at_least: ChunkVersion,
    ) -> Result<ChunkStatus, FsError> {
        let mut failure = FsError::NotFound;
        for _ in 0..REPAIR_ATTEMPTS_MAX {
            let mut sources = Vec::new();
            for other in target
                .chain
                .targets
                .iter()
                .copied()
                .filter(|other| *other != target.id)
            {
                match role.query_other(target, other, chunk).await {
                    Ok(Some(status)) if status.version >= at_least => sources.push((status, other)),
                    Ok(_) => {}
                    Err(error) => failure = error,
                }
            }
            sources.sort_by_key(|(status, _)| std::cmp::Reverse(status.version));
            let mut moved = false;
            for (status, other) in sources {
                match role.fetch(target, other, status).await {
                    Ok(Some(data)) => return Self::replace(target, status, data).await,
                    Ok(None) => moved = true,
                    Err(error) => failure = error,
                }
            }
            if !moved {
                break;
            }
        }
        Err(failure)
    }

    async fn replace(
        target: &Target,
        status: ChunkStatus,
        data: Vec<Bytes>,
    ) -> Result<ChunkStatus, FsError> {
        let engine = target.engine.clone();
        tasks::blocking(move || {
            let ChunkStatus {
                chunk,
                version,
                crc,
                last,
                ..
            } = status;
            engine.replace(chunk, version, &data, crc, last.map(to_engine_tag))
        })
        .await?;
        if target.damaged.lock().remove(&status.chunk) {
            target.repairs.fetch_add(1, Ordering::Relaxed);
        }
        metrics::CHUNK_REPAIRS.add(1);
        tracing::info!(chunk = %status.chunk, target = %target.id, version = %status.version, "chunk repaired");
        Ok(status)
    }

    async fn query_other(
        &self,
        target: &Target,
        other: TargetId,
        chunk: ChunkId,
    ) -> Result<Option<ChunkStatus>, FsError> {
        let peer = self.peer(other)?;
        janusfs_rpc::call(
            &*peer,
            &Query {
                route: route(target, other),
                chunk,
            },
            REPAIR_DEADLINE,
        )
        .await
    }

    /// Reads a whole chunk from another replica's own disk; none when it is not what `status` says any more.
    async fn fetch(
        &self,
        target: &Target,
        other: TargetId,
        status: ChunkStatus,
    ) -> Result<Option<Vec<Bytes>>, FsError> {
        let read = Read {
            route: route(target, other),
            chunk: status.chunk,
            offset: 0,
            len_bytes: status.len_bytes,
            relaxed: true,
        };
        let peer = self.peer(other)?;
        let (done, data) =
            janusfs_rpc::call_bulk(&*peer, &read, Vec::new(), REPAIR_DEADLINE).await?;
        let same = done.version == status.version && done.crc == status.crc;
        Ok(same.then_some(data))
    }

    pub(crate) async fn scrub(&self, message: Scrub) -> Result<ScrubStep, FsError> {
        let target = self.target(message.route)?;
        let role = self.arc()?;
        let limit = message.limit.clamp(1, PAGE_MAX);
        let engine = target.engine.clone();
        let page = tasks::blocking(move || engine.list(message.after, limit)).await?;
        let until = clock::now() + SCRUB_TIME_MAX;
        let mut step = ScrubStep {
            last: None,
            checked: 0,
            repaired: 0,
            lost: Vec::new(),
        };
        for row in page {
            step.last = Some(row.chunk);
            step.checked += 1;
            let engine = target.engine.clone();
            match tasks::blocking(move || engine.verify(row.chunk)).await {
                // Removed meanwhile.
                Ok(()) | Err(EngineError::NotFound) => {}
                Err(EngineError::Corrupt { .. }) => {
                    self.note_corruption(&target, row.chunk);
                    match Self::mend(&role, &target, row.chunk).await {
                        Ok(()) => step.repaired += 1,
                        Err(error) => {
                            tracing::error!(chunk = %row.chunk, %error, "no replica could mend");
                            step.lost.push(row.chunk);
                        }
                    }
                }
                Err(error) => return Err(error.into()),
            }
            if clock::now() >= until {
                break;
            }
        }
        Ok(step)
    }
}

fn route(target: &Target, other: TargetId) -> ChainRoute {
    ChainRoute {
        chain: target.chain.chain,
        version: target.chain.version,
        target: other,
    }
}
