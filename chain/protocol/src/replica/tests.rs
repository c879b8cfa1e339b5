use alloc::{vec, vec::Vec};

use janusfs_types::{BlobId, ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, RequestId};

use super::*;

const CHUNK: ChunkId = ChunkId {
    blob: BlobId(7),
    index: 0,
};
const CHAIN: ChainVersion = ChainVersion(3);

fn replica(is_head: bool, is_tail: bool) -> Replica {
    Replica::new(Membership {
        chain: ChainId(1),
        version: CHAIN,
        is_head,
        is_tail,
    })
}

fn tag(request: u64) -> Tag {
    Tag {
        client: ClientId(1),
        request: RequestId(request),
    }
}

fn id(write: u64) -> WriteId {
    WriteId(write)
}

fn v(version: u64) -> ChunkVersion {
    ChunkVersion(version)
}

fn client(write: u64, request: u64) -> Input {
    Input::ClientWrite {
        write: id(write),
        chunk: CHUNK,
        tag: tag(request),
        chain_version: CHAIN,
    }
}

fn forwarded(write: u64, request: u64, version: u64) -> Input {
    Input::Forwarded {
        write: id(write),
        chunk: CHUNK,
        tag: tag(request),
        chain_version: CHAIN,
        version: v(version),
    }
}

fn loaded(write: u64, committed: u64, last: u64) -> Input {
    let last = (last > 0).then(|| tag(last));
    Input::Loaded {
        write: id(write),
        chunk: CHUNK,
        committed: v(committed),
        last,
        pending: None,
    }
}

fn failed(write: u64, version: u64, refused: bool, diverged: bool) -> Input {
    Input::SuccessorFailed {
        write: id(write),
        chunk: CHUNK,
        version: v(version),
        refused,
        diverged,
    }
}

fn acked(write: u64, version: u64) -> Input {
    Input::SuccessorAcked {
        write: id(write),
        chunk: CHUNK,
        version: v(version),
    }
}

fn staged(write: u64) -> Input {
    Input::Staged {
        write: id(write),
        chunk: CHUNK,
    }
}

fn stage_failed(write: u64) -> Input {
    Input::StageFailed {
        write: id(write),
        chunk: CHUNK,
    }
}

fn committed(write: u64) -> Input {
    Input::Committed {
        write: id(write),
        chunk: CHUNK,
    }
}

fn repaired(write: u64, version: u64, last: u64) -> Input {
    Input::Repaired {
        write: id(write),
        chunk: CHUNK,
        committed: v(version),
        last: Some(tag(last)),
    }
}

/// Feeds the inputs; returns the outputs of the last one.
fn run(replica: &mut Replica, inputs: &[Input]) -> Vec<Output> {
    let mut out = Vec::new();
    for input in inputs {
        out.clear();
        replica.handle(*input, &mut out).unwrap();
    }
    out
}

fn load(write: u64) -> Output {
    Output::Load {
        write: id(write),
        chunk: CHUNK,
    }
}
fn stage(write: u64, version: u64) -> Output {
    Output::Stage {
        write: id(write),
        chunk: CHUNK,
        version: v(version),
    }
}
fn forward(write: u64, version: u64) -> Output {
    Output::Forward {
        write: id(write),
        chunk: CHUNK,
        version: v(version),
    }
}
fn commit(write: u64, version: u64) -> Output {
    Output::Commit {
        write: id(write),
        chunk: CHUNK,
        version: v(version),
    }
}
fn repair(write: u64, at_least: u64) -> Output {
    Output::Repair {
        write: id(write),
        chunk: CHUNK,
        at_least: v(at_least),
    }
}
fn reply(write: u64, version: u64) -> Output {
    Output::Reply {
        write: id(write),
        version: v(version),
    }
}
fn fail(write: u64, reason: Reason) -> Output {
    Output::Fail {
        write: id(write),
        reason,
    }
}

#[test]
fn every_row_of_the_table() {
    let head = (true, false);
    let middle = (false, false);
    let tail = (false, true);
    let alone = (true, true);
    let stage_and_commit = Output::StageAndCommit {
        write: id(1),
        chunk: CHUNK,
        version: v(5),
    };
    let discard = Output::Discard {
        write: id(1),
        chunk: CHUNK,
    };
    // Place, inputs, outputs of the last input.
    let rows = vec![
        (head, vec![client(1, 9)], vec![load(1)]),
        (
            head,
            vec![client(1, 9), loaded(1, 4, 2)],
            vec![stage(1, 5), forward(1, 5)],
        ),
        (head, vec![client(1, 9), loaded(1, 4, 9)], vec![reply(1, 4)]),
        (head, vec![client(1, 9), loaded(1, 4, 2), staged(1)], vec![]),
        (
            head,
            vec![client(1, 9), loaded(1, 4, 2), acked(1, 5)],
            vec![],
        ),
        (
            head,
            vec![client(1, 9), loaded(1, 4, 2), staged(1), acked(1, 4)],
            vec![],
        ),
        (
            head,
            vec![client(1, 9), loaded(1, 4, 2), staged(1), acked(1, 5)],
            vec![commit(1, 5)],
        ),
        (
            head,
            vec![client(1, 9), loaded(1, 4, 2), acked(1, 5), staged(1)],
            vec![commit(1, 5)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                acked(1, 5),
                staged(1),
                committed(1),
            ],
            vec![reply(1, 5)],
        ),
        (
            head,
            vec![client(1, 9), loaded(1, 4, 2), acked(1, 5), stage_failed(1)],
            vec![repair(1, 5)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                acked(1, 5),
                stage_failed(1),
                repaired(1, 5, 9),
            ],
            vec![reply(1, 5)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                staged(1),
                failed(1, 5, true, false),
            ],
            vec![discard],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                stage_failed(1),
                failed(1, 5, true, false),
            ],
            vec![fail(1, Reason::Stage)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                staged(1),
                failed(1, 5, false, false),
            ],
            vec![fail(1, Reason::Unknown)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                staged(1),
                failed(1, 5, true, true),
            ],
            vec![repair(1, 4)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                staged(1),
                failed(1, 5, true, true),
                repaired(1, 5, 8),
            ],
            vec![stage(1, 6), forward(1, 6)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                staged(1),
                failed(1, 5, true, true),
                repaired(1, 5, 9),
            ],
            vec![reply(1, 5)],
        ),
        (
            head,
            vec![
                client(1, 9),
                loaded(1, 4, 2),
                staged(1),
                failed(1, 5, true, true),
                repaired(1, 4, 2),
            ],
            vec![fail(1, Reason::Successor)],
        ),
        (
            middle,
            vec![forwarded(1, 9, 5), loaded(1, 4, 2)],
            vec![stage(1, 5), forward(1, 5)],
        ),
        (
            tail,
            vec![forwarded(1, 9, 5), loaded(1, 4, 2)],
            vec![stage_and_commit],
        ),
        (
            tail,
            vec![forwarded(1, 9, 5), loaded(1, 4, 2), staged(1)],
            vec![reply(1, 5)],
        ),
        (
            tail,
            vec![forwarded(1, 9, 5), loaded(1, 4, 2), stage_failed(1)],
            vec![fail(1, Reason::Stage)],
        ),
        (
            tail,
            vec![forwarded(1, 9, 5), loaded(1, 5, 9)],
            vec![reply(1, 5)],
        ),
        (
            tail,
            vec![forwarded(1, 9, 5), loaded(1, 5, 8)],
            vec![fail(1, Reason::Diverged)],
        ),
        (
            tail,
            vec![forwarded(1, 9, 5), loaded(1, 6, 8)],
            vec![fail(1, Reason::Old)],
        ),
        (
            tail,
            vec![forwarded(1, 9, 5), loaded(1, 3, 8)],
            vec![fail(1, Reason::Gap)],
        ),
        (
            alone,
            vec![client(1, 9), loaded(1, 4, 2)],
            vec![stage_and_commit],
        ),
        (
            tail,
            vec![
                Input::Mend {
                    write: id(1),
                    chunk: CHUNK,
                },
                loaded(1, 3, 2),
            ],
            vec![repair(1, 3)],
        ),
    ];
    for (row, ((is_head, is_tail), inputs, expected)) in rows.into_iter().enumerate() {
        let mut replica = replica(is_head, is_tail);
        assert_eq!(
            run(&mut replica, &inputs),
            expected,
            "row {row}: {inputs:?}"
        );
    }
}

#[test]
fn writes_of_a_chunk_take_turns_in_order() {
    let mut head = replica(true, true);
    assert_eq!(
        run(&mut head, &[client(1, 1), client(2, 2), client(3, 2)]),
        []
    );
    let out = run(&mut head, &[loaded(1, 0, 0), staged(1)]);
    let second = Output::StageAndCommit {
        write: id(2),
        chunk: CHUNK,
        version: v(2),
    };
    assert_eq!(out, [reply(1, 1), second]);
    // The third is a retry of the second, which has just been committed.
    assert_eq!(run(&mut head, &[staged(2)]), [reply(2, 2), reply(3, 2)]);
    assert_eq!(head.chunks_in_flight(), 0);
}

#[test]
fn an_unknown_fate_keeps_readers_asking_until_it_is_settled() {
    let mut head = replica(true, false);
    run(
        &mut head,
        &[
            client(1, 1),
            loaded(1, 0, 0),
            staged(1),
            failed(1, 1, false, false),
        ],
    );
    assert!(head.must_ask_tail(CHUNK));
    // The next write is refused: the pending version may not be discarded, the first one may be at the tail.
    let out = run(
        &mut head,
        &[
            client(2, 2),
            loaded(2, 0, 0),
            staged(2),
            failed(2, 1, true, false),
        ],
    );
    assert_eq!(out, [fail(2, Reason::Successor)]);
    assert!(head.must_ask_tail(CHUNK));
    run(
        &mut head,
        &[
            client(3, 3),
            loaded(3, 0, 0),
            staged(3),
            acked(3, 1),
            committed(3),
        ],
    );
    assert!(!head.must_ask_tail(CHUNK));
}

#[test]
fn the_wrong_chain_version_or_place_is_refused() {
    let mut out = Vec::new();
    let mut head = replica(true, false);
    let stale = Input::ClientWrite {
        write: id(1),
        chunk: CHUNK,
        tag: tag(1),
        chain_version: ChainVersion(2),
    };
    assert_eq!(head.handle(stale, &mut out), Err(Rejected::StaleChain));
    assert_eq!(
        head.handle(forwarded(1, 1, 1), &mut out),
        Err(Rejected::WrongPlace)
    );
    assert_eq!(
        replica(false, true).handle(client(1, 1), &mut out),
        Err(Rejected::WrongPlace)
    );
    assert!(out.is_empty());
}

#[test]
fn both_limits_answer_busy() {
    let mut out = Vec::new();
    let mut head = replica(true, false);
    let waiting = u64::try_from(QUEUE_PER_CHUNK_MAX).unwrap();
    for write in 0..=waiting {
        head.handle(client(write, write), &mut out).unwrap();
    }
    assert_eq!(
        head.handle(client(waiting + 1, 0), &mut out),
        Err(Rejected::Busy)
    );

    let mut head = replica(true, false);
    let write_to = |index: usize| Input::ClientWrite {
        write: id(u64::try_from(index).unwrap()),
        chunk: ChunkId {
            blob: BlobId(1),
            index: u32::try_from(index).unwrap(),
        },
        tag: tag(1),
        chain_version: CHAIN,
    };
    for index in 0..CHUNKS_IN_FLIGHT_MAX {
        head.slots.insert(
            ChunkId {
                blob: BlobId(1),
                index: u32::try_from(index).unwrap(),
            },
            Slot {
                unresolved: Some(v(1)),
                ..Slot::empty()
            },
        );
    }
    assert_eq!(
        head.handle(write_to(CHUNKS_IN_FLIGHT_MAX), &mut out),
        Err(Rejected::Busy)
    );
}
