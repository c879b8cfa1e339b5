//! Drives one write through one replica: performs what the protocol decided, reports back, until it is answered.
//!
//! Staging and forwarding run side by side. The future is [`Unbroken`](crate::unbroken::Unbroken): a caller that goes
//! away does not leave a chunk with half a write. A forward is sent once; a retry is the client's, with its tag.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use janusfs_chain_engine::{EngineError, EngineOp, StageWrite};
use janusfs_chain_protocol::{Input, Output, Reason, Tag};
use janusfs_env::{clock, tasks};
use janusfs_types::{ChunkId, ChunkVersion, FsError, RequestId};
use janusfs_wire::storage::{ChainRoute, Forward, WriteDone, WriteOp, WriteTag};

use crate::{
    limits::FORWARD_DEADLINE_MIN,
    role::StorageRole,
    target::{Inbox, Target},
};

/// What a write carries.
#[derive(Clone)]
pub(crate) struct Payload {
    pub(crate) op: WriteOp,
    pub(crate) tag: WriteTag,
    pub(crate) crc: u32,
    pub(crate) expected_len_bytes: u32,
    pub(crate) data: Vec<Bytes>,
    pub(crate) timeout: Duration,
}

impl Payload {
    /// For a repair, which stages nothing of its own.
    pub(crate) fn empty() -> Self {
        let tag = WriteTag {
            client: janusfs_types::ClientId(0),
            request: RequestId(0),
        };
        let timeout = crate::limits::REPAIR_DEADLINE;
        Self {
            op: WriteOp::Create,
            tag,
            crc: 0,
            expected_len_bytes: 0,
            data: Vec::new(),
            timeout,
        }
    }
}

/// A write in progress on one replica.
pub(crate) struct Job {
    pub(crate) role: Arc<StorageRole>,
    pub(crate) target: Arc<Target>,
    pub(crate) chunk: ChunkId,
    pub(crate) payload: Payload,
    entered: Instant,
    /// Why the local engine or the successor refused.
    stage_error: Option<FsError>,
    successor_error: Option<FsError>,
    len_bytes: u32,
}

pub(crate) fn protocol_tag(tag: WriteTag) -> Tag {
    Tag {
        client: tag.client,
        request: tag.request,
    }
}

pub(crate) fn from_engine_tag(tag: janusfs_chain_engine::Tag) -> WriteTag {
    WriteTag {
        client: tag.client,
        request: tag.request,
    }
}

pub(crate) fn to_engine_tag(tag: WriteTag) -> janusfs_chain_engine::Tag {
    janusfs_chain_engine::Tag {
        client: tag.client,
        request: tag.request,
    }
}

impl Job {
    pub(crate) fn new(
        role: Arc<StorageRole>,
        target: Arc<Target>,
        chunk: ChunkId,
        payload: Payload,
    ) -> Self {
        Self {
            role,
            target,
            chunk,
            payload,
            entered: clock::now(),
            stage_error: None,
            successor_error: None,
            len_bytes: 0,
        }
    }

    pub(crate) async fn run(mut self, mut inbox: Inbox) -> Result<WriteDone, FsError> {
        loop {
            let outputs = inbox.next().await;
            if outputs.is_empty() {
                return Err(FsError::Unavailable(
                    "the storage role is shutting down".into(),
                ));
            }
            let mut local = None;
            let mut forward = None;
            for output in outputs {
                match output {
                    Output::Reply { version, .. } => {
                        return Ok(WriteDone {
                            version,
                            len_bytes: self.len_bytes,
                        });
                    }
                    Output::Fail { reason, .. } => return Err(self.failure(reason)),
                    Output::Forward { version, .. } => forward = Some(version),
                    Output::Load { .. }
                    | Output::Stage { .. }
                    | Output::StageAndCommit { .. }
                    | Output::Commit { .. }
                    | Output::Discard { .. }
                    | Output::Repair { .. } => local = Some(output),
                }
            }
            let passed_on = async {
                match forward {
                    Some(version) => Some((version, self.forward(version).await)),
                    None => None,
                }
            };
            let performed = async {
                match local {
                    Some(output) => Some(self.perform(output).await),
                    None => None,
                }
            };
            let (performed, passed_on) = futures::join!(performed, passed_on);
            let mut inputs = Vec::with_capacity(2);
            if let Some(performed) = performed {
                if let Some(len_bytes) = performed.len_bytes {
                    self.len_bytes = len_bytes;
                }
                if let Some(error) = performed.error {
                    self.stage_error = Some(error);
                }
                inputs.push(performed.input);
            }
            if let Some((version, result)) = passed_on {
                inputs.push(self.forwarded(&inbox, version, result));
            }
            self.target.complete(inputs.into_iter(), &mut inbox);
        }
    }

    async fn forward(&self, version: ChunkVersion) -> Result<WriteDone, FsError> {
        let successor = self
            .target
            .successor()
            .expect("only the tail has no successor");
        let message = Forward {
            route: ChainRoute {
                chain: self.target.chain.chain,
                version: self.target.chain.version,
                target: successor,
            },
            chunk: self.chunk,
            op: self.payload.op,
            crc: self.payload.crc,
            tag: self.payload.tag,
            version,
            expected_len_bytes: self.payload.expected_len_bytes,
        };
        let peer = self.role.peer(successor)?;
        let Payload { data, timeout, .. } = &self.payload;
        let timeout = timeout
            .saturating_sub(self.entered.elapsed())
            .max(FORWARD_DEADLINE_MIN);
        let (done, _) = janusfs_rpc::call_bulk(&*peer, &message, data.clone(), timeout).await?;
        Ok(done)
    }

    /// Reads the successor's answer. `Io` and `Unavailable` say nothing about what happened there.
    fn forwarded(
        &mut self,
        inbox: &Inbox,
        version: ChunkVersion,
        result: Result<WriteDone, FsError>,
    ) -> Input {
        let (write, chunk) = (inbox.write, self.chunk);
        match result {
            Ok(_) => Input::SuccessorAcked {
                write,
                chunk,
                version,
            },
            Err(error) => {
                let diverged = error == FsError::PreconditionFailed;
                let refused = !matches!(error, FsError::Unavailable(_) | FsError::Io(_));
                self.successor_error = Some(error);
                Input::SuccessorFailed {
                    write,
                    chunk,
                    version,
                    refused,
                    diverged,
                }
            }
        }
    }

    fn failure(&mut self, reason: Reason) -> FsError {
        match reason {
            Reason::Stage => self.stage_error.take().unwrap_or(FsError::Busy),
            Reason::Successor => match self.successor_error.take() {
                None | Some(FsError::PreconditionFailed) => FsError::Busy,
                Some(error) => error,
            },
            Reason::Unknown => {
                FsError::Unavailable(format!("the chain of chunk {} did not answer", self.chunk))
            }
            Reason::Old => FsError::Busy,
            // Only a predecessor sees this; its protocol knows it as `diverged`.
            Reason::Diverged => FsError::PreconditionFailed,
            Reason::Gap => {
                StorageRole::mend_later(&self.role, &self.target, self.chunk);
                FsError::Busy
            }
            Reason::Repair => {
                FsError::Corrupt(format!("chunk {}: no replica could mend it", self.chunk))
            }
        }
    }

    async fn perform(&self, output: Output) -> Performed {
        let engine = self.target.engine.clone();
        let (write, chunk) = (output.write(), self.chunk);
        match output {
            Output::Load { .. } => {
                // Rows are in the engine's memory: no disk, no hop.
                let row = engine.query(chunk);
                let input = Input::Loaded {
                    write,
                    chunk,
                    committed: row.map_or(ChunkVersion(0), |row| row.committed),
                    last: row
                        .and_then(|row| row.last)
                        .map(|tag| protocol_tag(from_engine_tag(tag))),
                    pending: row.and_then(|row| row.pending),
                };
                Performed {
                    len_bytes: row.map(|row| row.len_bytes),
                    ..Performed::ok(input)
                }
            }
            Output::Stage { version, .. } | Output::StageAndCommit { version, .. } => {
                let commit = matches!(output, Output::StageAndCommit { .. });
                let payload = self.payload.clone();
                let staged = tasks::blocking(move || {
                    let request = StageWrite {
                        chunk,
                        version,
                        op: engine_op(payload.op),
                        data: &payload.data,
                        crc: payload.crc,
                        tag: Some(to_engine_tag(payload.tag)),
                        expected_len_bytes: payload.expected_len_bytes,
                    };
                    if commit {
                        engine.stage_and_commit(&request).map(|row| row.len_bytes)
                    } else {
                        engine.stage(&request).map(|staged| staged.len_bytes)
                    }
                })
                .await;
                match staged {
                    Ok(len_bytes) => Performed {
                        len_bytes: Some(len_bytes),
                        ..Performed::ok(Input::Staged { write, chunk })
                    },
                    Err(error) => {
                        let error = self.stage_failure(error).await;
                        Performed::failed(Input::StageFailed { write, chunk }, error)
                    }
                }
            }
            Output::Commit { version, .. } => {
                match tasks::blocking(move || engine.commit(chunk, version)).await {
                    Ok(_) => Performed::ok(Input::Committed { write, chunk }),
                    Err(error) => {
                        tracing::error!(%chunk, %version, %error, "commit failed");
                        Performed::failed(Input::CommitFailed { write, chunk }, error.into())
                    }
                }
            }
            Output::Discard { .. } => {
                if let Err(error) = tasks::blocking(move || engine.discard_pending(chunk)).await {
                    // The pending version stays: reads ask the tail, the next write stages over it.
                    tracing::warn!(%chunk, %error, "a pending version could not be discarded");
                }
                Performed::ok(Input::Discarded { write, chunk })
            }
            Output::Repair { at_least, .. } => {
                match StorageRole::repair(&self.role, &self.target, chunk, at_least).await {
                    Ok(status) => Performed {
                        len_bytes: Some(status.len_bytes),
                        ..Performed::ok(Input::Repaired {
                            write,
                            chunk,
                            committed: status.version,
                            last: status.last.map(protocol_tag),
                        })
                    },
                    Err(error) => {
                        tracing::error!(%chunk, target = %self.target.id, %error, "repair failed");
                        Performed::failed(Input::RepairFailed { write, chunk }, error)
                    }
                }
            }
            Output::Forward { .. } | Output::Reply { .. } | Output::Fail { .. } => {
                unreachable!("sorted out by run")
            }
        }
    }

    /// Tells a damaged payload, which is the sender's to mend, from damaged stored bytes, which are ours.
    async fn stage_failure(&self, error: EngineError) -> FsError {
        let error = FsError::from(error);
        if !matches!(error, FsError::Corrupt(_)) {
            return error;
        }
        let (engine, chunk) = (self.target.engine.clone(), self.chunk);
        let stored = tasks::blocking(move || engine.verify(chunk)).await;
        if !matches!(stored, Err(EngineError::Corrupt { .. })) {
            return error;
        }
        self.role.note_corruption(&self.target, chunk);
        StorageRole::mend_later(&self.role, &self.target, chunk);
        if self.target.chain.targets.len() > 1 {
            FsError::Busy
        } else {
            error
        }
    }
}

struct Performed {
    input: Input,
    len_bytes: Option<u32>,
    error: Option<FsError>,
}

impl Performed {
    fn ok(input: Input) -> Self {
        Self {
            input,
            len_bytes: None,
            error: None,
        }
    }

    fn failed(input: Input, error: FsError) -> Self {
        Self {
            error: Some(error),
            ..Self::ok(input)
        }
    }
}

fn engine_op(op: WriteOp) -> EngineOp {
    match op {
        WriteOp::Write { offset } => EngineOp::Write { offset },
        WriteOp::Create => EngineOp::Create,
        WriteOp::Truncate { len_bytes } => EngineOp::Truncate { len_bytes },
    }
}
