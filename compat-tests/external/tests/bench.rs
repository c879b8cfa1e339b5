//! `janusfs bench`: both sides are measured, and nothing is left behind, also after Ctrl-C. How fast they are is not tested.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use janusfs_external::{binary, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn bench(dir: &Path, what: &str, seconds: &str, cell: &str) -> Command {
    let mut command = Command::new(binary().unwrap());
    command
        .args(["bench", what, "--seconds", seconds, "--cell", cell])
        .args(["-o", "json", "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Neither files nor mounts nor processes remember the directory.
fn assert_clean(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let name = dir.to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(name), "{mounts}");
    for process in std::fs::read_dir("/proc").unwrap() {
        let line = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        assert!(!text(&line).contains(name), "{}", text(&line));
    }
}

/// A directory on the build's disk: a cell takes more than a small `/tmp` in memory has.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs one cell and returns its row.
fn row(what: &str, cell: &str) -> Value {
    let dir = scratch();
    let Output {
        status,
        stdout,
        stderr,
    } = bench(dir.path(), what, "0.15", cell).output().unwrap();
    assert!(status.success(), "{}", text(&stderr));
    assert_clean(dir.path());
    let report: Value = serde_json::from_slice(&stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{report:#}");
    rows[0].clone()
}

fn assert_measured(row: &Value, cell: &str, floors: &[&str]) {
    assert_eq!(row["cell"], cell);
    let positive = |side: &Value| {
        assert!(side["median"].as_f64().unwrap() > 0.0, "{row:#}");
        assert_eq!(side["slices"].as_array().unwrap().len(), 3, "{row:#}");
    };
    positive(&row["ours"]);
    let measured: Vec<_> = row["floors"].as_array().unwrap().iter().collect();
    let names: Vec<_> = measured
        .iter()
        .map(|f| f["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, floors);
    measured.into_iter().for_each(positive);
    assert!(row["ratio"].as_f64().unwrap() > 0.0);
}

/// The memory of a server that was measured is told.
fn assert_server(row: &Value) {
    assert!(row["peak_rss_bytes"].as_u64().unwrap() > 1 << 20, "{row:#}");
}

#[test]
fn the_s3_door() {
    let row = row("s3", "put-1m-x8");
    assert_measured(&row, "put-1m-x8", &["server", "disk", "md5"]);
    assert_server(&row);
}

#[test]
fn deletions_have_something_to_delete() {
    let row = row("s3", "delete-x8");
    assert_measured(&row, "delete-x8", &["server"]);
    assert_server(&row);
}

#[test]
fn the_mount() {
    let row = row("fs", "create-write-close");
    assert_measured(&row, "create-write-close", &["fuse-memory"]);
    assert_server(&row);
    assert!(row["met"].is_boolean(), "{row:#}");
}

#[test]
fn names_that_the_kernel_has_never_seen() {
    let row = row("fs", "stat-first");
    assert_measured(&row, "stat-first", &["fuse-memory"]);
    assert_server(&row);
}

#[test]
fn chunks() {
    let row = row("chunk", "chunk-write-64k-sync");
    assert_measured(&row, "chunk-write-64k-sync", &["file", "memcpy"]);
    assert!(row["peak_rss_bytes"].is_null(), "no server: {row:#}");
}

#[test]
fn metadata_over_both_stores() {
    for cell in ["meta-rename-rocks", "meta-list-mem"] {
        assert_measured(&row("meta", cell), cell, &["store"]);
    }
}

#[test]
fn an_unknown_cell_is_an_error_that_names_the_others() {
    let dir = scratch();
    let output = bench(dir.path(), "all", "1", "nothing").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = text(&output.stderr);
    assert!(
        words.contains("get-64m-x8") && words.contains("meta-create-mem"),
        "{words}"
    );
    assert_clean(dir.path());
}

#[test]
fn a_missing_directory_is_an_error_that_says_what_to_give() {
    let output = bench(Path::new("/nonexistent"), "s3", "1", "head-x1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("--dir"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn ctrl_c_takes_everything_down() {
    let dir = scratch();
    // An hour: it ends by the signal or not at all.
    let mut child = bench(dir.path(), "fs", "3600", "stat-again")
        .spawn()
        .unwrap();
    wait_until("the mounts", || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        assert!(child.try_wait()?.is_none(), "it ended by itself");
        Ok(mounts.matches(dir.path().to_str().unwrap()).count() >= 2)
    })
    .unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("interrupted"),
        "{}",
        text(&output.stderr)
    );
    assert_clean(dir.path());
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}
