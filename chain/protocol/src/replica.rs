//! One target's membership in one chain, as a state machine over chunks with work in flight.
//!
//! Rules. The head gives a write the version committed + 1. A chunk has one write in flight; later ones wait in
//! order. A replica stages and forwards at once; it commits when its own stage is done *and* the successor acked;
//! the tail commits by staging. So the tail decides: what is committed anywhere is committed there.
//!
//! Because forwarding does not wait for staging, the tail may commit before a predecessor has anything on disk.
//! [`Replica::must_ask_tail`] is therefore true from the moment a write enters until its fate is known here, and a
//! read has to look at it *before* it reads the engine.
//!
//! When a forward's fate is unknown the chunk stays *unresolved*: its pending version is kept, reads go on to ask the
//! tail, and the next write tries the same version again. If the tail took the lost write, it refuses the new one as
//! diverged and this replica copies the tail's version. Nothing is ever decided from a time-out.
//!
//! Absent: payloads, retries (client and driver), resync of whole targets.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use janusfs_types::{ChunkId, ChunkVersion};

use crate::{
    Input, Membership, Output, Reason, Rejected, Tag, WriteId,
    limits::{CHUNKS_IN_FLIGHT_MAX, QUEUE_PER_CHUNK_MAX},
};

/// The CRAQ state machine of one replica.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    membership: Membership,
    slots: BTreeMap<ChunkId, Slot>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Slot {
    /// The engine's committed state; loaded by the first work of the slot and kept up while the slot lives.
    committed: Option<Known>,
    /// A version that the tail may have committed while we cannot tell.
    unresolved: Option<ChunkVersion>,
    current: Option<Work>,
    queue: VecDeque<Job>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Known {
    version: ChunkVersion,
    last: Option<Tag>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Job {
    write: WriteId,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Client(Tag),
    Forwarded(Tag, ChunkVersion),
    Mend,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Work {
    job: Job,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Loading,
    Writing(Write),
    /// Everyone after us has it.
    Committing(Write),
    /// Nobody after us has it.
    Discarding,
    Repairing {
        /// A write that everyone after us has committed: answered by the repair.
        write: Option<Write>,
        /// How the work ends otherwise.
        reason: Reason,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Write {
    version: ChunkVersion,
    tag: Tag,
    stage: Step,
    forward: Step,
    diverged: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    Open,
    Done,
    Failed,
    Unknown,
}

impl Replica {
    /// Starts with nothing in flight.
    #[must_use]
    pub fn new(membership: Membership) -> Self {
        Self {
            membership,
            slots: BTreeMap::new(),
        }
    }

    /// Returns the replica's place in its chain.
    #[must_use]
    pub fn membership(&self) -> Membership {
        self.membership
    }

    /// Tells whether the tail may hold a newer committed version of the chunk than the engine here. A linearizable
    /// read asks this first, then the engine (whose `pending` flag counts too).
    #[must_use]
    pub fn must_ask_tail(&self, chunk: ChunkId) -> bool {
        !self.membership.is_tail && self.slots.contains_key(&chunk)
    }

    /// Returns the number of chunks with work in flight.
    #[must_use]
    pub fn chunks_in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Takes one event and appends what to do about it.
    ///
    /// # Errors
    /// [`Rejected`]: the input had no effect and no output will come for its work.
    ///
    /// # Panics
    /// When the driver reports a completion that it was not asked for.
    pub fn handle(&mut self, input: Input, out: &mut Vec<Output>) -> Result<(), Rejected> {
        match input {
            Input::ClientWrite {
                write,
                chunk,
                tag,
                chain_version,
            } => {
                self.check_route(chain_version, self.membership.is_head)?;
                self.enqueue(
                    chunk,
                    Job {
                        write,
                        kind: Kind::Client(tag),
                    },
                    out,
                )?;
            }
            Input::Forwarded {
                write,
                chunk,
                tag,
                chain_version,
                version,
            } => {
                self.check_route(chain_version, !self.membership.is_head)?;
                self.enqueue(
                    chunk,
                    Job {
                        write,
                        kind: Kind::Forwarded(tag, version),
                    },
                    out,
                )?;
            }
            Input::Mend { write, chunk } => {
                self.enqueue(
                    chunk,
                    Job {
                        write,
                        kind: Kind::Mend,
                    },
                    out,
                )?;
            }
            Input::SuccessorAcked {
                write,
                chunk,
                version,
            } => {
                if let Some(step) = self.open_forward(write, chunk, version) {
                    *step = Step::Done;
                    self.settle_write(chunk, out);
                }
            }
            Input::SuccessorFailed {
                write,
                chunk,
                version,
                refused,
                diverged,
            } => {
                if let Some(step) = self.open_forward(write, chunk, version) {
                    *step = if refused || diverged {
                        Step::Failed
                    } else {
                        Step::Unknown
                    };
                    self.writing(write, chunk).diverged = diverged;
                    self.settle_write(chunk, out);
                }
            }
            Input::Loaded {
                write,
                chunk,
                committed,
                last,
                pending,
            } => {
                let slot = self.slot(write, chunk);
                slot.expect_phase(|phase| matches!(phase, Phase::Loading));
                slot.committed = Some(Known {
                    version: committed,
                    last,
                });
                slot.unresolved = slot
                    .unresolved
                    .max(pending.filter(|version| *version > committed));
                self.decide(chunk, out);
            }
            Input::Staged { write, chunk } => {
                self.writing(write, chunk).stage = Step::Done;
                self.settle_write(chunk, out);
            }
            Input::StageFailed { write, chunk } => {
                self.writing(write, chunk).stage = Step::Failed;
                self.settle_write(chunk, out);
            }
            Input::Committed { write, chunk } => {
                let done = self.slot(write, chunk).committing();
                self.complete(chunk, done, out);
            }
            Input::CommitFailed { write, chunk } => {
                let done = self.slot(write, chunk).committing();
                self.repair(chunk, Some(done), Reason::Unknown, out);
            }
            Input::Discarded { write, chunk } => {
                let slot = self.slot(write, chunk);
                slot.expect_phase(|phase| matches!(phase, Phase::Discarding));
                self.fail(chunk, Reason::Successor, out);
            }
            Input::Repaired {
                write,
                chunk,
                committed,
                last,
            } => {
                self.on_repaired(
                    write,
                    chunk,
                    Known {
                        version: committed,
                        last,
                    },
                    out,
                );
            }
            Input::RepairFailed { write, chunk } => {
                let (_, reason) = self.slot(write, chunk).repairing();
                self.fail(chunk, reason, out);
            }
        }
        self.assert_invariants();
        Ok(())
    }

    fn check_route(
        &self,
        chain_version: janusfs_types::ChainVersion,
        right_place: bool,
    ) -> Result<(), Rejected> {
        if chain_version != self.membership.version {
            Err(Rejected::StaleChain)
        } else if right_place {
            Ok(())
        } else {
            Err(Rejected::WrongPlace)
        }
    }

    fn enqueue(&mut self, chunk: ChunkId, job: Job, out: &mut Vec<Output>) -> Result<(), Rejected> {
        let full = self.slots.len() >= CHUNKS_IN_FLIGHT_MAX;
        let slot = match self.slots.get_mut(&chunk) {
            Some(slot) => slot,
            None if full => return Err(Rejected::Busy),
            None => self.slots.entry(chunk).or_insert_with(Slot::empty),
        };
        if slot.queue.len() >= QUEUE_PER_CHUNK_MAX {
            return Err(Rejected::Busy);
        }
        slot.queue.push_back(job);
        if slot.current.is_none() {
            self.next(chunk, out);
        }
        Ok(())
    }

    /// Starts the next job of a chunk, or forgets the chunk when there is none and nothing is unresolved.
    fn next(&mut self, chunk: ChunkId, out: &mut Vec<Output>) {
        let Some(slot) = self.slots.get_mut(&chunk) else {
            return;
        };
        let Some(job) = slot.queue.pop_front() else {
            slot.current = None;
            // Chunks may be removed while nothing is in flight: the next work loads afresh.
            slot.committed = None;
            if slot.unresolved.is_none() {
                self.slots.remove(&chunk);
            }
            return;
        };
        slot.current = Some(Work {
            job,
            phase: Phase::Loading,
        });
        if slot.committed.is_some() {
            self.decide(chunk, out);
        } else {
            out.push(Output::Load {
                write: job.write,
                chunk,
            });
        }
    }

    /// The committed state is known: what does the current job mean?
    fn decide(&mut self, chunk: ChunkId, out: &mut Vec<Output>) {
        let (job, known) = {
            let slot = self.slots.get(&chunk).expect("the chunk has work");
            let work = slot.current.expect("the chunk has work");
            (work.job, slot.committed.expect("decided after loading"))
        };
        match job.kind {
            Kind::Mend => self.repair(chunk, None, Reason::Repair, out),
            Kind::Client(tag) if known.last == Some(tag) => self.reply(chunk, known.version, out),
            Kind::Client(tag) => self.begin(chunk, known.version.next(), tag, out),
            Kind::Forwarded(tag, version) => {
                if version == known.version.next() {
                    self.begin(chunk, version, tag, out);
                } else if version > known.version {
                    self.fail(chunk, Reason::Gap, out);
                } else if version < known.version {
                    self.fail(chunk, Reason::Old, out);
                } else if known.last == Some(tag) {
                    self.reply(chunk, version, out);
                } else {
                    self.fail(chunk, Reason::Diverged, out);
                }
            }
        }
    }

    fn begin(&mut self, chunk: ChunkId, version: ChunkVersion, tag: Tag, out: &mut Vec<Output>) {
        let is_tail = self.membership.is_tail;
        let work = self.work(chunk);
        let write = work.job.write;
        let forward = if is_tail { Step::Done } else { Step::Open };
        work.phase = Phase::Writing(Write {
            version,
            tag,
            stage: Step::Open,
            forward,
            diverged: false,
        });
        if is_tail {
            out.push(Output::StageAndCommit {
                write,
                chunk,
                version,
            });
        } else {
            out.push(Output::Stage {
                write,
                chunk,
                version,
            });
            out.push(Output::Forward {
                write,
                chunk,
                version,
            });
        }
    }

    /// A step of the current write ended: go on once both have.
    fn settle_write(&mut self, chunk: ChunkId, out: &mut Vec<Output>) {
        let is_tail = self.membership.is_tail;
        let unresolved = self.slots.get(&chunk).and_then(|slot| slot.unresolved);
        let work = self.work(chunk);
        let (write, Phase::Writing(state)) = (work.job.write, work.phase) else {
            return;
        };
        let version = state.version;
        match (state.stage, state.forward) {
            (Step::Open, _) | (_, Step::Open) => {}
            (Step::Done, Step::Done) if is_tail => self.complete(chunk, state, out),
            (Step::Done, Step::Done) => {
                work.phase = Phase::Committing(state);
                out.push(Output::Commit {
                    write,
                    chunk,
                    version,
                });
            }
            (_, Step::Done) if is_tail => self.fail(chunk, Reason::Stage, out),
            // Everyone after us has it and we do not: take it from them.
            (_, Step::Done) => self.repair(chunk, Some(state), Reason::Unknown, out),
            (_, Step::Unknown) => {
                self.slots
                    .get_mut(&chunk)
                    .expect("the chunk has work")
                    .unresolved = Some(version);
                self.fail(chunk, Reason::Unknown, out);
            }
            (_, Step::Failed) if state.diverged => {
                self.repair(chunk, None, Reason::Successor, out);
            }
            // An older attempt at this version may sit at the tail: the pending mark has to stay.
            (_, Step::Failed) if unresolved.is_some() => self.fail(chunk, Reason::Successor, out),
            (Step::Done, Step::Failed) => {
                work.phase = Phase::Discarding;
                out.push(Output::Discard { write, chunk });
            }
            (_, Step::Failed) => self.fail(chunk, Reason::Stage, out),
        }
    }

    /// The write is committed here and on everyone after.
    fn complete(&mut self, chunk: ChunkId, done: Write, out: &mut Vec<Output>) {
        let slot = self.slots.get_mut(&chunk).expect("the chunk has work");
        assert!(
            slot.committed
                .is_none_or(|known| known.version.next() == done.version),
            "versions are committed one by one"
        );
        slot.learn(Known {
            version: done.version,
            last: Some(done.tag),
        });
        self.reply(chunk, done.version, out);
    }

    fn repair(
        &mut self,
        chunk: ChunkId,
        write: Option<Write>,
        reason: Reason,
        out: &mut Vec<Output>,
    ) {
        let slot = self.slots.get_mut(&chunk).expect("the chunk has work");
        let known = slot
            .committed
            .map_or(ChunkVersion(0), |known| known.version);
        let at_least = write.map_or(known, |write| write.version);
        if let Some(write) = write {
            slot.unresolved = slot.unresolved.max(Some(write.version));
        }
        let work = self.work(chunk);
        work.phase = Phase::Repairing { write, reason };
        out.push(Output::Repair {
            write: work.job.write,
            chunk,
            at_least,
        });
    }

    fn on_repaired(&mut self, id: WriteId, chunk: ChunkId, known: Known, out: &mut Vec<Output>) {
        let slot = self.slot(id, chunk);
        let (write, reason) = slot.repairing();
        let job = slot.current.expect("the chunk has work").job;
        let news = slot
            .committed
            .is_none_or(|before| known.version > before.version);
        slot.learn(known);
        match (job.kind, write) {
            (Kind::Mend, _) => self.reply(chunk, known.version, out),
            (_, Some(write)) if known.version >= write.version => {
                self.reply(chunk, write.version, out);
            }
            // The copy was newer than we knew: the write may be that very one, or comes after it.
            (_, None) if news => self.decide(chunk, out),
            _ => self.fail(chunk, reason, out),
        }
    }

    fn reply(&mut self, chunk: ChunkId, version: ChunkVersion, out: &mut Vec<Output>) {
        let write = self.work(chunk).job.write;
        out.push(Output::Reply { write, version });
        self.next(chunk, out);
    }

    fn fail(&mut self, chunk: ChunkId, reason: Reason, out: &mut Vec<Output>) {
        let write = self.work(chunk).job.write;
        out.push(Output::Fail { write, reason });
        self.next(chunk, out);
    }

    fn slot(&mut self, write: WriteId, chunk: ChunkId) -> &mut Slot {
        let slot = self
            .slots
            .get_mut(&chunk)
            .expect("a completion belongs to work in flight");
        let current = slot
            .current
            .expect("a completion belongs to work in flight");
        assert_eq!(
            current.job.write, write,
            "a completion belongs to the work in flight"
        );
        slot
    }

    fn work(&mut self, chunk: ChunkId) -> &mut Work {
        let slot = self.slots.get_mut(&chunk).expect("the chunk has work");
        slot.current.as_mut().expect("the chunk has work")
    }

    fn writing(&mut self, write: WriteId, chunk: ChunkId) -> &mut Write {
        match &mut self
            .slot(write, chunk)
            .current
            .as_mut()
            .expect("checked by slot")
            .phase
        {
            Phase::Writing(state) => state,
            phase => panic!("a stage ended in {phase:?}"),
        }
    }

    /// The forward step of this very write and version, if it still waits; an answer to anything else is old.
    fn open_forward(
        &mut self,
        write: WriteId,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Option<&mut Step> {
        let work = self.slots.get_mut(&chunk)?.current.as_mut()?;
        match &mut work.phase {
            Phase::Writing(state)
                if work.job.write == write
                    && state.version == version
                    && state.forward == Step::Open =>
            {
                Some(&mut state.forward)
            }
            _ => None,
        }
    }

    fn assert_invariants(&self) {
        assert!(
            self.slots.len() <= CHUNKS_IN_FLIGHT_MAX,
            "chunks in flight are bounded"
        );
        for slot in self.slots.values() {
            assert!(
                slot.queue.len() <= QUEUE_PER_CHUNK_MAX,
                "a chunk's queue is bounded"
            );
            assert!(
                slot.current.is_some() || slot.queue.is_empty(),
                "nobody waits for an idle chunk"
            );
            assert!(
                slot.current.is_some() || slot.unresolved.is_some(),
                "an idle chunk is remembered only while it is unresolved"
            );
        }
    }
}

impl Slot {
    fn empty() -> Self {
        Self {
            committed: None,
            unresolved: None,
            current: None,
            queue: VecDeque::new(),
        }
    }

    /// The engine's committed version has grown to `known`, which settles older doubts.
    fn learn(&mut self, known: Known) {
        self.committed = Some(known);
        self.unresolved = self.unresolved.filter(|version| *version > known.version);
    }

    fn expect_phase(&self, right: impl Fn(&Phase) -> bool) {
        let phase = &self.current.as_ref().expect("the chunk has work").phase;
        assert!(
            right(phase),
            "a completion that nobody asked for in {phase:?}"
        );
    }

    fn committing(&self) -> Write {
        match self.current.as_ref().expect("the chunk has work").phase {
            Phase::Committing(state) => state,
            phase => panic!("a commit ended in {phase:?}"),
        }
    }

    fn repairing(&self) -> (Option<Write>, Reason) {
        match self.current.as_ref().expect("the chunk has work").phase {
            Phase::Repairing { write, reason } => (write, reason),
            phase => panic!("a repair ended in {phase:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
