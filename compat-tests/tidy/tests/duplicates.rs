//! Crates that are built in two versions, each with the reason why that is so.
//!
//! A second version costs build time and, at run time, a second copy. A new one fails here: align the versions, or add a
//! line with the reason. A line whose crate has one version again fails, too.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::{BTreeMap, BTreeSet};

/// Crate, and who asks for its older version.
const KNOWN: &[(&str, &str)] = &[
    ("crypto-common", "crc-fast still uses digest 0.10"),
    (
        "digest",
        "crc-fast still uses digest 0.10; the hashes are on 0.11",
    ),
    (
        "getrandom",
        "stateright's ahash and rand 0.9 (tests only), and janusfs-env with them; tempfile and rand 0.10 are on 0.4",
    ),
    ("hashbrown", "stateright's dashmap (tests only)"),
    ("nom", "bindgen's cexpr (build time only)"),
    ("r-efi", "getrandom for UEFI: never built on Linux"),
    ("rand", "stateright (tests only)"),
    ("rand_core", "stateright (tests only)"),
    ("shlex", "bindgen (build time only)"),
    (
        "syn",
        "derive macros move to syn 3 one by one (build time only)",
    ),
];

#[test]
fn no_crate_is_built_twice_without_a_reason() {
    let lock = std::fs::read_to_string("../../Cargo.lock").unwrap();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(text) = line.strip_prefix("name = ") {
            name = text.trim_matches('"');
        } else if let Some(text) = line.strip_prefix("version = ")
            && !name.is_empty()
        {
            versions
                .entry(name)
                .or_default()
                .insert(text.trim_matches('"'));
        }
    }
    assert!(versions.len() > 100, "the lock file is not read right");
    let twice: BTreeSet<&str> = versions
        .iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, _)| *name)
        .collect();
    let known: BTreeSet<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
    let unknown: Vec<_> = twice
        .difference(&known)
        .map(|name| (name, &versions[name]))
        .collect();
    assert!(
        unknown.is_empty(),
        "built twice, without a reason here: {unknown:#?}"
    );
    let stale: Vec<_> = known.difference(&twice).collect();
    assert!(stale.is_empty(), "no longer built twice: {stale:?}");
}
