//! Which crate may depend on which, and under which licences the dependencies come.
//!
//! The table is the architecture: a new line in it is a decision and is reviewed as one.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Crate (without the `janusfs-` prefix) and what it may depend on of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("env", &["types"]),
    ("wire", &["types"]),
    ("rpc", &["wire", "env", "types"]),
    ("kv", &["env", "types"]),
    ("meta", &["kv", "wire", "rpc", "env", "types"]),
    ("client", &["chain-client", "rpc", "wire", "env", "types"]),
    (
        "server",
        &["meta", "kv", "rpc", "wire", "chain-client", "env", "types"],
    ),
    ("chain-protocol", &["types"]),
    ("chain-engine", &["types"]),
    ("chain-transport", &["rpc", "wire", "env", "types"]),
    ("chain-client", &["rpc", "wire", "env", "types"]),
    (
        "chain-server",
        &[
            "chain-protocol",
            "chain-engine",
            "chain-transport",
            "rpc",
            "wire",
            "env",
            "types",
        ],
    ),
    ("gateway-s3", &["client", "wire", "env", "types"]),
    ("fuse-mount", &["client", "wire", "env", "types"]),
    (
        "bench",
        &[
            "meta",
            "kv",
            "chain-server",
            "chain-client",
            "rpc",
            "wire",
            "env",
            "types",
        ],
    ),
    (
        "cli",
        &[
            "bench",
            "gateway-s3",
            "fuse-mount",
            "server",
            "client",
            "meta",
            "kv",
            "chain-server",
            "chain-engine",
            "chain-client",
            "chain-transport",
            "rpc",
            "wire",
            "env",
            "types",
        ],
    ),
    ("tidy", &[]),
    ("external", &[]),
];

/// Crates that must build without an operating system under them.
const PURE: &[&str] = &["janusfs-types", "janusfs-chain-protocol"];
/// Crates in which tokio must not appear, not even through others of ours.
const NO_TOKIO: &[&str] = &[
    "janusfs-types",
    "janusfs-wire",
    "janusfs-chain-protocol",
    "janusfs-chain-engine",
];

/// Licences that an Apache-2.0 program may ship with.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "0BSD",
    "Unlicense",
    "CC0-1.0",
    "BSL-1.0",
    "MIT-0",
    "Apache-2.0 WITH LLVM-exception",
    "CDLA-Permissive-2.0",
];

/// Asked for once: it may fetch crates of other systems.
fn metadata() -> &'static Metadata {
    static METADATA: LazyLock<Metadata> = LazyLock::new(|| {
        MetadataCommand::new()
            .manifest_path("../../Cargo.toml")
            .other_options(["--locked".to_owned()])
            .exec()
            .unwrap()
    });
    &METADATA
}

#[test]
fn dependencies_follow_the_arrows() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ARROWS
        .iter()
        .map(|(name, to)| (*name, to.iter().copied().collect()))
        .collect();
    let mut wrong = Vec::new();
    for package in metadata().workspace_packages() {
        let name = package.name.strip_prefix("janusfs-").unwrap();
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(to) = dependency.name.strip_prefix("janusfs-") else {
                continue;
            };
            if dependency.kind == DependencyKind::Normal && !allowed.contains(to) {
                wrong.push(format!("{name} -> {to}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that the table does not have: {wrong:#?}"
    );
}

#[test]
fn pure_crates_are_no_std_and_have_no_dependency_but_ours() {
    for package in metadata()
        .workspace_packages()
        .iter()
        .filter(|p| PURE.contains(&p.name.as_str()))
    {
        let root = package
            .targets
            .iter()
            .find(|target| target.is_lib())
            .unwrap();
        let text = std::fs::read_to_string(&root.src_path).unwrap();
        assert!(
            text.contains("#![no_std]"),
            "{} is not no_std",
            package.name
        );
        for dependency in package
            .dependencies
            .iter()
            .filter(|d| d.kind == DependencyKind::Normal)
        {
            assert!(
                dependency.name.starts_with("janusfs-"),
                "{} -> {}",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn tokio_stays_out_of_the_synchronous_crates() {
    let metadata = metadata();
    let of = |name: &str| {
        metadata
            .packages
            .iter()
            .find(|package| package.name.as_str() == name)
    };
    for name in NO_TOKIO {
        let mut seen = BTreeSet::new();
        let mut open = vec![(*name).to_owned()];
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            assert_ne!(next, "tokio", "{name} reaches tokio");
            if !next.starts_with("janusfs-") {
                continue;
            }
            let normal = of(&next).unwrap().dependencies.iter();
            open.extend(
                normal
                    .filter(|d| d.kind == DependencyKind::Normal && !d.optional)
                    .map(|d| d.name.clone()),
            );
        }
    }
}

/// An `OR` needs one good side, an `AND` all of them.
fn licence_is_fine(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    expression.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|licence| LICENCES.contains(&licence.trim()))
    })
}

#[test]
fn licences_are_allowed() {
    assert!(licence_is_fine("MIT OR GPL-3.0") && !licence_is_fine("GPL-3.0"));
    let wrong: Vec<String> = metadata()
        .packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(licence_is_fine))
        .map(|package| {
            format!(
                "{} {}: {:?}",
                package.name, package.version, package.license
            )
        })
        .collect();
    assert!(wrong.is_empty(), "licences to look at: {wrong:#?}");
}

#[test]
fn every_package_inherits_the_lints() {
    for package in metadata().workspace_packages() {
        let text = std::fs::read_to_string(&package.manifest_path).unwrap();
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{} does not inherit the lints",
            package.name
        );
    }
}
