//! How the sources look: headers, names, files that nobody includes, promises with tests.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

const SKIPPED: &[&str] = &["target", ".git", "janusfs-data", "node_modules"];

fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from("../..")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else if name.ends_with(ending) {
                found.push(entry.path());
            }
        }
    }
    assert!(
        !found.is_empty(),
        "no {ending} files found: the test runs in the wrong folder"
    );
    found
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn every_module_opens_with_its_purpose() {
    let bare: Vec<_> = files(".rs")
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name != "tests.rs"))
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//!"))
        .collect();
    assert!(bare.is_empty(), "modules without a header: {bare:#?}");
}

#[test]
fn every_source_file_is_part_of_a_crate() {
    let dead: Vec<_> = files(".rs")
        .into_iter()
        .filter(|path| !is_included(path))
        .collect();
    assert!(dead.is_empty(), "files that no `mod` names: {dead:#?}");
}

fn is_included(path: &Path) -> bool {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    if matches!(stem, "lib" | "main" | "build") || path.parent().unwrap().ends_with("tests") {
        return true;
    }
    if path.parent().unwrap().ends_with("benches") || path.parent().unwrap().ends_with("bin") {
        return true;
    }
    let dir = path.parent().unwrap();
    let parents = [
        dir.join("lib.rs"),
        dir.join("main.rs"),
        dir.join("mod.rs"),
        dir.with_extension("rs"),
    ];
    let line = format!("mod {stem};");
    parents
        .iter()
        .any(|parent| fs::read_to_string(parent).is_ok_and(|text| text.contains(&line)))
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    let this = Path::new(file!()).file_name().unwrap();
    for path in files(".rs") {
        if path.file_name() == Some(this) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in ["#[ignore", "TODO:", "FIXME", "unimplemented!(", "todo!("] {
            assert!(!text.contains(word), "{} contains {word}", path.display());
        }
    }
}

#[test]
fn tests_wait_on_a_state_not_on_a_clock() {
    for path in files(".rs").into_iter().filter(|path| is_test(path)) {
        if path.file_name() == Path::new(file!()).file_name() {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("thread::sleep("),
            "{} sleeps",
            path.display()
        );
    }
}

#[test]
fn every_crate_and_folder_says_what_it_is() {
    for folder in [
        "core",
        "chain",
        "gateway-s3",
        "fuse-mount",
        "usrbio",
        "admin-web",
        "compat-tests",
        "helm",
        "cli",
    ] {
        let readme = Path::new("../..").join(folder).join("README.md");
        assert!(readme.exists(), "{} is missing", readme.display());
    }
}
