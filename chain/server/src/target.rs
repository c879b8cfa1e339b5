//! One target: its engine, its place in its chain, and the replica state that decides its writes.
//!
//! The replica lives behind a short mutex instead of in a task of its own: a decision takes under a microsecond, a
//! hop to another task tens of them. The rule that replaces the single owner: decide under the lock, perform outside
//! it; the lock is never held across an await or an engine call. Outputs for another write are put into its mailbox
//! under the same lock, so each write sees its outputs in the order they were decided.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, atomic::AtomicU64},
};

use janusfs_chain_engine::Engine;
use janusfs_chain_protocol::{Input, Membership, Output, Rejected, Replica, WriteId};
use janusfs_types::{ChainInfo, ChunkId, TargetId};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::limits::MAILBOX_MAX;

pub(crate) struct Target {
    pub(crate) id: TargetId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) chain: ChainInfo,
    pub(crate) position: usize,
    /// Whether the predecessor runs in this process, so that chain-internal requests come from here only.
    pub(crate) predecessor_is_local: bool,
    pub(crate) corruptions: AtomicU64,
    pub(crate) repairs: AtomicU64,
    /// Chunks found damaged and not mended since; `corruptions` counts them once.
    pub(crate) damaged: Mutex<HashSet<ChunkId>>,
    /// Chunks that a background repair is under way for.
    pub(crate) mending: Mutex<HashSet<ChunkId>>,
    state: Mutex<State>,
}

struct State {
    replica: Replica,
    mailboxes: HashMap<WriteId, mpsc::Sender<Output>>,
    next_write: u64,
}

/// One write's outputs: those decided on its own thread, and those that others leave for it.
pub(crate) struct Inbox {
    pub(crate) write: WriteId,
    near: VecDeque<Output>,
    far: mpsc::Receiver<Output>,
}

impl Target {
    pub(crate) fn new(
        id: TargetId,
        engine: Engine,
        chain: ChainInfo,
        position: usize,
        predecessor_is_local: bool,
    ) -> Self {
        let membership = Membership {
            chain: chain.chain,
            version: chain.version,
            is_head: position == 0,
            is_tail: position + 1 == chain.targets.len(),
        };
        let state = State {
            replica: Replica::new(membership),
            mailboxes: HashMap::new(),
            next_write: 0,
        };
        Self {
            id,
            engine: Arc::new(engine),
            chain,
            position,
            predecessor_is_local,
            corruptions: AtomicU64::new(0),
            repairs: AtomicU64::new(0),
            damaged: Mutex::new(HashSet::new()),
            mending: Mutex::new(HashSet::new()),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn is_head(&self) -> bool {
        self.position == 0
    }

    pub(crate) fn successor(&self) -> Option<TargetId> {
        self.chain.targets.get(self.position + 1).copied()
    }

    /// The tail, unless that is this target.
    pub(crate) fn other_tail(&self) -> Option<TargetId> {
        self.chain
            .targets
            .last()
            .copied()
            .filter(|tail| *tail != self.id)
    }

    pub(crate) fn must_ask_tail(&self, chunk: ChunkId) -> bool {
        self.state.lock().replica.must_ask_tail(chunk)
    }

    /// Enters a write; `input` makes the event from the write's new name.
    pub(crate) fn enter(&self, input: impl FnOnce(WriteId) -> Input) -> Result<Inbox, Rejected> {
        let mut state = self.state.lock();
        let write = WriteId(state.next_write);
        state.next_write += 1;
        let mut out = Vec::with_capacity(2);
        state.replica.handle(input(write), &mut out)?;
        let (sender, far) = mpsc::channel(MAILBOX_MAX);
        state.mailboxes.insert(write, sender);
        let mut inbox = Inbox {
            write,
            near: VecDeque::new(),
            far,
        };
        state.deliver(out, &mut inbox);
        Ok(inbox)
    }

    /// Reports what became of outputs.
    pub(crate) fn complete(&self, inputs: impl Iterator<Item = Input>, inbox: &mut Inbox) {
        let mut state = self.state.lock();
        let mut out = Vec::with_capacity(2);
        for input in inputs {
            state
                .replica
                .handle(input, &mut out)
                .expect("only entering work is ever rejected");
        }
        state.deliver(out, inbox);
    }
}

impl State {
    fn deliver(&mut self, outputs: Vec<Output>, inbox: &mut Inbox) {
        for output in outputs {
            let write = output.write();
            let is_last = matches!(output, Output::Reply { .. } | Output::Fail { .. });
            if write == inbox.write {
                inbox.near.push_back(output);
            } else if let Some(mailbox) = self.mailboxes.get(&write) {
                // A mailbox holds all that one write can be told at once; its reader is gone only when the
                // runtime ends.
                let _ = mailbox.try_send(output);
            }
            if is_last {
                self.mailboxes.remove(&write);
            }
        }
    }
}

impl Inbox {
    /// Waits for outputs and returns all there are; none when the process shuts down.
    pub(crate) async fn next(&mut self) -> Vec<Output> {
        if self.near.is_empty() {
            self.near.extend(self.far.recv().await);
        }
        while let Ok(output) = self.far.try_recv() {
            self.near.push_back(output);
        }
        self.near.drain(..).collect()
    }
}
