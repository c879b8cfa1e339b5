//! Model check of the production [`Replica`]: chains of two and three replicas, two writers of one chunk, messages
//! that are lost, late, repeated and reordered, a stage that fails, a forward whose fate nobody learns.
//!
//! The model is the driver: it performs each output against a naive engine. Each safety property has a mutant of
//! that driver which must violate it.

use std::collections::{BTreeMap, BTreeSet};

use janusfs_chain_protocol::{Input, Membership, Output, Replica, Tag, WriteId};
use janusfs_types::{BlobId, ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, RequestId};
use stateright::{Checker, Model, Property};

const CHUNK: ChunkId = ChunkId {
    blob: BlobId(1),
    index: 0,
};
const CHAIN: ChainVersion = ChainVersion(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    /// The production protocol.
    None,
    /// Commits without waiting for the successor.
    CommitBeforeAck,
    /// Serves reads from the engine alone.
    NeverAskTheTail,
    /// Takes a lost forward for a refused one.
    UnknownIsRefused,
}

#[derive(Clone)]
struct Chain {
    replicas: usize,
    faults: u8,
    mutant: Mutant,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Engine {
    /// Writer of each committed version, from version 1 on.
    history: Vec<Tag>,
    pending: Option<(ChunkVersion, Tag)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Message {
    Write {
        tag: Tag,
    },
    Forward {
        to: usize,
        from: WriteId,
        version: ChunkVersion,
        tag: Tag,
    },
    Answer {
        to: usize,
        write: WriteId,
        version: ChunkVersion,
        verdict: Verdict,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Verdict {
    Acked,
    Refused,
    Diverged,
    Lost,
}

/// The predecessor's work and the version it forwarded.
type Sender = (WriteId, ChunkVersion);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    replicas: Vec<Replica>,
    engines: Vec<Engine>,
    /// Deliveries left by message; a message that is never delivered is a lost one.
    network: BTreeMap<Message, u8>,
    /// Stages that run on a disk.
    disk: BTreeSet<(usize, Output)>,
    /// Who waits for a piece of work: its tag and, for a forward, the predecessor's work and version.
    work: BTreeMap<(usize, WriteId), (Tag, Option<Sender>)>,
    /// Work whose forward was sent twice.
    resent: BTreeSet<(usize, WriteId)>,
    next_write: Vec<u64>,
    acked: BTreeSet<(ChunkVersion, Tag)>,
    faults_left: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Deliver(Message),
    /// The sender of a forward gives up on it; the message itself may still arrive.
    GiveUp(Message),
    /// The sender sends the same forward again.
    Resend(Message),
    Staged(usize, Output),
    StageFails(usize, Output),
}

fn tag(request: u64) -> Tag {
    Tag {
        client: ClientId(request),
        request: RequestId(request),
    }
}

fn number(len: usize) -> ChunkVersion {
    ChunkVersion(u64::try_from(len).expect("histories are short here"))
}

impl Engine {
    fn committed(&self) -> ChunkVersion {
        number(self.history.len())
    }

    fn commit(&mut self, version: ChunkVersion) {
        let (pending, tag) = self.pending.take().expect("something is staged");
        assert_eq!(pending, version, "the staged version is the one to commit");
        assert_eq!(
            self.committed().next(),
            version,
            "versions are committed one by one"
        );
        self.history.push(tag);
    }
}

impl Chain {
    fn feed(&self, state: &mut State, at: usize, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            if state.replicas[at].handle(input, &mut out).is_err() {
                continue;
            }
            // Completions are fed in the order of their outputs.
            let mut completions = Vec::new();
            for output in out {
                self.perform(state, at, output, &mut completions);
            }
            inputs.extend(completions.into_iter().rev());
        }
    }

    fn perform(&self, state: &mut State, at: usize, output: Output, inputs: &mut Vec<Input>) {
        let engine = &mut state.engines[at];
        match output {
            Output::Load { write, chunk } => inputs.push(Input::Loaded {
                write,
                chunk,
                committed: engine.committed(),
                last: engine.history.last().copied(),
                pending: engine.pending.map(|(version, _)| version),
            }),
            Output::Stage { .. } | Output::StageAndCommit { .. } => {
                state.disk.insert((at, output));
            }
            Output::Forward {
                write,
                chunk,
                version,
            } => {
                let (tag, _) = state.work[&(at, write)];
                let message = Message::Forward {
                    to: at + 1,
                    from: write,
                    version,
                    tag,
                };
                state.network.insert(message, 1);
                if self.mutant == Mutant::CommitBeforeAck {
                    inputs.push(Input::SuccessorAcked {
                        write,
                        chunk,
                        version,
                    });
                }
            }
            Output::Commit {
                write,
                chunk,
                version,
            } => {
                engine.commit(version);
                inputs.push(Input::Committed { write, chunk });
            }
            Output::Discard { write, chunk } => {
                engine.pending = None;
                inputs.push(Input::Discarded { write, chunk });
            }
            Output::Repair {
                write,
                chunk,
                at_least,
            } => {
                let tail = state
                    .engines
                    .last()
                    .expect("a chain has a tail")
                    .history
                    .clone();
                let engine = &mut state.engines[at];
                if number(tail.len()) < at_least {
                    inputs.push(Input::RepairFailed { write, chunk });
                    return;
                }
                engine.history = tail;
                let committed = engine.committed();
                engine.pending = None;
                let last = engine.history.last().copied();
                inputs.push(Input::Repaired {
                    write,
                    chunk,
                    committed,
                    last,
                });
            }
            Output::Reply { write, version } => {
                let (tag, from) = state
                    .work
                    .remove(&(at, write))
                    .expect("work is answered once");
                match from {
                    None => {
                        state.acked.insert((version, tag));
                    }
                    Some(from) => self.answer(state, at, from, Verdict::Acked),
                }
            }
            Output::Fail { write, reason } => {
                use janusfs_chain_protocol::Reason;
                let (_, from) = state
                    .work
                    .remove(&(at, write))
                    .expect("work is answered once");
                let verdict = match reason {
                    Reason::Stage | Reason::Successor | Reason::Gap | Reason::Old => {
                        Verdict::Refused
                    }
                    Reason::Diverged => Verdict::Diverged,
                    Reason::Unknown | Reason::Repair => Verdict::Lost,
                };
                if let Some(from) = from {
                    self.answer(state, at, from, verdict);
                }
            }
        }
    }

    fn answer(&self, state: &mut State, at: usize, (write, version): Sender, verdict: Verdict) {
        state.network.insert(
            Message::Answer {
                to: at - 1,
                write,
                version,
                verdict,
            },
            2,
        );
    }

    fn deliver(&self, state: &mut State, message: Message) {
        match message {
            Message::Write { tag } => {
                let write = self.new_work(state, 0, tag, None);
                let input = Input::ClientWrite {
                    write,
                    chunk: CHUNK,
                    tag,
                    chain_version: CHAIN,
                };
                self.feed(state, 0, input);
            }
            Message::Forward {
                to,
                from,
                version,
                tag,
            } => {
                let write = self.new_work(state, to, tag, Some((from, version)));
                let chain_version = CHAIN;
                let input = Input::Forwarded {
                    write,
                    chunk: CHUNK,
                    tag,
                    chain_version,
                    version,
                };
                self.feed(state, to, input);
            }
            Message::Answer {
                to,
                write,
                version,
                verdict,
            } => {
                // A refusal of one copy says nothing about the other.
                let doubtful = verdict == Verdict::Refused && state.resent.contains(&(to, write));
                let verdict = if doubtful { Verdict::Lost } else { verdict };
                self.feed(state, to, completion(write, version, verdict));
            }
        }
    }

    fn new_work(&self, state: &mut State, at: usize, tag: Tag, from: Option<Sender>) -> WriteId {
        let write = WriteId(state.next_write[at]);
        state.next_write[at] += 1;
        state.work.insert((at, write), (tag, from));
        write
    }
}

fn completion(write: WriteId, version: ChunkVersion, verdict: Verdict) -> Input {
    if verdict == Verdict::Acked {
        return Input::SuccessorAcked {
            write,
            chunk: CHUNK,
            version,
        };
    }
    let diverged = verdict == Verdict::Diverged;
    let refused = verdict == Verdict::Refused;
    Input::SuccessorFailed {
        write,
        chunk: CHUNK,
        version,
        refused,
        diverged,
    }
}

impl Model for Chain {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let place = |at| Membership {
            chain: ChainId(1),
            version: CHAIN,
            is_head: at == 0,
            is_tail: at + 1 == self.replicas,
        };
        vec![State {
            replicas: (0..self.replicas)
                .map(|at| Replica::new(place(at)))
                .collect(),
            engines: vec![Engine::default(); self.replicas],
            // The first writer sends a retry; the second writes once.
            network: [
                (Message::Write { tag: tag(1) }, 2),
                (Message::Write { tag: tag(2) }, 1),
            ]
            .into(),
            disk: BTreeSet::new(),
            work: BTreeMap::new(),
            resent: BTreeSet::new(),
            next_write: vec![0; self.replicas],
            acked: BTreeSet::new(),
            faults_left: self.faults,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (message, left) in &state.network {
            if *left > 0 {
                actions.push(Action::Deliver(*message));
            }
            if state.faults_left > 0 && matches!(message, Message::Forward { .. }) {
                actions.push(Action::GiveUp(*message));
                actions.push(Action::Resend(*message));
            }
        }
        for (at, output) in &state.disk {
            actions.push(Action::Staged(*at, *output));
            if state.faults_left > 0 {
                actions.push(Action::StageFails(*at, *output));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Deliver(message) => {
                *state
                    .network
                    .get_mut(&message)
                    .expect("the message is there") -= 1;
                self.deliver(&mut state, message);
            }
            Action::GiveUp(message) => {
                let Message::Forward {
                    to, from, version, ..
                } = message
                else {
                    return None;
                };
                state.faults_left -= 1;
                let verdict = if self.mutant == Mutant::UnknownIsRefused {
                    Verdict::Refused
                } else {
                    Verdict::Lost
                };
                self.feed(&mut state, to - 1, completion(from, version, verdict));
            }
            Action::Resend(message) => {
                let Message::Forward {
                    to, from, version, ..
                } = message
                else {
                    return None;
                };
                // Only while the sender waits: nothing came back for this version yet.
                let answered = state.network.iter().any(|(sent, left)| match sent {
                    Message::Answer {
                        to: at,
                        write,
                        version: of,
                        ..
                    } => (*at, *write, *of) == (to - 1, from, version) && *left < 2,
                    _ => false,
                });
                if answered || !state.work.contains_key(&(to - 1, from)) {
                    return None;
                }
                state.faults_left -= 1;
                state.resent.insert((to - 1, from));
                *state
                    .network
                    .get_mut(&message)
                    .expect("the message is there") += 1;
            }
            Action::Staged(at, output) => {
                state.disk.remove(&(at, output));
                let (write, chunk, version) = match output {
                    Output::Stage {
                        write,
                        chunk,
                        version,
                    }
                    | Output::StageAndCommit {
                        write,
                        chunk,
                        version,
                    } => (write, chunk, version),
                    _ => return None,
                };
                let (tag, _) = state.work[&(at, write)];
                state.engines[at].pending = Some((version, tag));
                if matches!(output, Output::StageAndCommit { .. }) {
                    state.engines[at].commit(version);
                }
                self.feed(&mut state, at, Input::Staged { write, chunk });
            }
            Action::StageFails(at, output) => {
                state.disk.remove(&(at, output));
                state.faults_left -= 1;
                let write = output.write();
                self.feed(
                    &mut state,
                    at,
                    Input::StageFailed {
                        write,
                        chunk: CHUNK,
                    },
                );
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one value per version", |_, state: &State| {
                let tail = &state.engines.last().expect("a chain has a tail").history;
                state
                    .engines
                    .iter()
                    .all(|engine| tail.starts_with(&engine.history))
            }),
            Property::always("acked is committed everywhere", |_, state: &State| {
                state.acked.iter().all(|(version, tag)| {
                    let index = usize::try_from(version.0 - 1).expect("versions are small here");
                    state
                        .engines
                        .iter()
                        .all(|engine| engine.history.get(index) == Some(tag))
                })
            }),
            // What the tail committed and another replica did not is staged or in flight there, so no read that this
            // replica answers alone misses it.
            Property::always(
                "a read without the tail is current",
                |model: &Self, state: &State| {
                    let tail = state
                        .engines
                        .last()
                        .expect("a chain has a tail")
                        .committed();
                    state
                        .replicas
                        .iter()
                        .zip(&state.engines)
                        .all(|(replica, engine)| {
                            let asks = replica.must_ask_tail(CHUNK) || engine.pending.is_some();
                            (asks && model.mutant != Mutant::NeverAskTheTail)
                                || engine.committed() == tail
                        })
                },
            ),
            Property::always("a retry in a row applies once", |_, state: &State| {
                state
                    .engines
                    .iter()
                    .all(|engine| engine.history.windows(2).all(|two| two[0] != two[1]))
            }),
            Property::sometimes("all writes commit", |_, state: &State| {
                state
                    .acked
                    .iter()
                    .map(|(_, tag)| tag)
                    .collect::<BTreeSet<_>>()
                    .len()
                    == 2
            }),
            Property::sometimes("the work ends", |_, state: &State| {
                state.work.is_empty()
                    && state
                        .replicas
                        .iter()
                        .all(|replica| replica.chunks_in_flight() == 0)
                    && state.acked.len() == 2
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.next_write.iter().all(|count| *count <= 6)
    }
}

fn check(chain: Chain) -> impl Checker<Chain> {
    let checker = chain.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker
}

#[test]
fn two_replicas_with_faults_hold_every_property() {
    check(Chain {
        replicas: 2,
        faults: 2,
        mutant: Mutant::None,
    })
    .assert_properties();
}

#[test]
fn three_replicas_hold_every_property() {
    check(Chain {
        replicas: 3,
        faults: 0,
        mutant: Mutant::None,
    })
    .assert_properties();
}

#[test]
fn three_replicas_with_a_fault_hold_every_property() {
    check(Chain {
        replicas: 3,
        faults: 1,
        mutant: Mutant::None,
    })
    .assert_properties();
}

#[test]
fn a_commit_before_the_ack_is_caught() {
    let checker = check(Chain {
        replicas: 2,
        faults: 0,
        mutant: Mutant::CommitBeforeAck,
    });
    assert!(checker.discovery("acked is committed everywhere").is_some());
}

#[test]
fn a_read_that_never_asks_the_tail_is_caught() {
    let checker = check(Chain {
        replicas: 2,
        faults: 0,
        mutant: Mutant::NeverAskTheTail,
    });
    assert!(
        checker
            .discovery("a read without the tail is current")
            .is_some()
    );
}

#[test]
fn an_unknown_forward_taken_for_refused_is_caught() {
    let checker = check(Chain {
        replicas: 2,
        faults: 1,
        mutant: Mutant::UnknownIsRefused,
    });
    assert!(
        checker
            .discovery("a read without the tail is current")
            .is_some()
    );
}
