//! Promise P2 under crashes: what was acknowledged is there and right, and fsck is clean.
//!
//! `make soak` runs the same with `JANUSFS_CRASH_ROUNDS` and a fresh `JANUSFS_SEED`.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use janusfs_external::crash::{CrashKind, CrashPlan, run};

/// Rounds of a test unless `JANUSFS_CRASH_ROUNDS` says otherwise.
const ROUNDS: u64 = 3;
/// The seed unless `JANUSFS_SEED` says otherwise.
const SEED: u64 = 1;
/// Nodes that lose power in their first round.
const FRESH_NODES: u64 = 4;
const REPLICATED: &[&str] = &["--targets", "3", "--replicas", "3"];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn check(name: &'static str, kind: CrashKind, node_args: &'static [&'static str]) {
    check_plan(&CrashPlan {
        name,
        kind,
        node_args,
        rounds: number("JANUSFS_CRASH_ROUNDS", ROUNDS),
        seed: number("JANUSFS_SEED", SEED),
    });
}

fn check_plan(plan: &CrashPlan) {
    let report = run(plan).unwrap();
    assert_eq!(report.rounds, plan.rounds, "{report}");
    assert!(
        report.acknowledged > 0 && report.keys_checked > 0,
        "{report}"
    );
    assert!(
        report.lost.is_empty() && report.wrong.is_empty(),
        "{report}"
    );
}

#[test]
fn a_killed_node_loses_nothing() {
    check("kill -9, 1 target", CrashKind::Kill, &[]);
}

#[test]
fn a_killed_node_with_replicas_loses_nothing() {
    check(
        "kill -9, 3 targets, 3 replicas",
        CrashKind::Kill,
        REPLICATED,
    );
}

#[test]
fn a_power_cut_takes_nothing_that_was_stable() {
    check("power cut, 1 target", CrashKind::PowerCut, &[]);
}

#[test]
fn a_power_cut_takes_nothing_that_was_stable_on_replicas() {
    check(
        "power cut, 3 targets, 3 replicas",
        CrashKind::PowerCut,
        REPLICATED,
    );
}

#[test]
fn a_power_cut_in_the_first_second_of_a_node_takes_nothing_that_was_stable() {
    for seed in 0..FRESH_NODES {
        check_plan(&CrashPlan {
            name: "power cut, fresh node",
            kind: CrashKind::PowerCut,
            node_args: &[],
            rounds: 1,
            seed: number("JANUSFS_SEED", SEED) + seed,
        });
    }
}
