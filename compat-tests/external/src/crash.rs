//! The crash proof: writers at both doors, a crash at a random moment, a restart, and a look at every key.
//!
//! Two kinds of crash. [`CrashKind::Kill`] is SIGKILL: the system keeps its page cache, so everything acknowledged must be there.
//! [`CrashKind::PowerCut`] adds a [`PowerCut`] under the data directory: what a 2xx or an `fsync` acknowledged must be there, and
//! what a `close` or a change of names did, if it is older than the promised time. `DESIGN.md` has the rules of the checker.
//! Writers and moments follow from a seed; the interleaving with the node does not.

mod history;
mod value;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aws_sdk_s3::{Client, error::SdkError, operation::get_object::GetObjectError};
use tokio::runtime::Runtime;

use crate::{Seeded, TestNode, power_cut::PowerCut, s3::root, wait_until};
use history::{History, Survivor};
use writer::Writer;

/// Writers, each with keys of its own.
const WRITERS: u64 = 4;
/// The bucket, and the directory in the mount.
const BUCKET: &str = "crash";
/// The shortest and the longest usual round, in milliseconds.
const ROUND_MS: (u64, u64) = (200, 1500);
/// One round in this many is long enough for the promise about `close` to bind.
const LONG_ROUND_ONE_IN: u64 = 6;
/// How often a sleeping test looks whether the machine stood still.
const NAP: Duration = Duration::from_millis(20);
/// By how much a nap is late when it did.
const STALL: Duration = Duration::from_millis(200);
/// What the node is given then: a sync interval (`SYNC_INTERVAL_MS`) and the sync.
const AFTER_STALL: Duration = Duration::from_millis(700);
/// What a long round adds, in milliseconds.
const LONG_ROUND_MS: u64 = 2500;

/// How the node goes down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashKind {
    /// SIGKILL.
    Kill,
    /// SIGKILL, and the disk forgets what was not synced.
    PowerCut,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct CrashPlan {
    /// A word for the summary.
    pub name: &'static str,
    /// How the node goes down.
    pub kind: CrashKind,
    /// Further arguments of `janusfs up`.
    pub node_args: &'static [&'static str],
    /// How often.
    pub rounds: u64,
    /// Where the writers' choices, the moments and the coins of the disk come from.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct CrashReport {
    /// Rounds run; fewer than planned after a round with losses.
    pub rounds: u64,
    /// Keys looked at, all rounds together.
    pub keys_checked: u64,
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Keys whose acknowledged state is gone, each with what was found instead.
    pub lost: Vec<String>,
    /// Keys, listings and checks with something that nobody wrote there.
    pub wrong: Vec<String>,
    /// The longest time from starting the process to both doors answering.
    pub slowest_start: Duration,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds, {} keys checked, {} writes acknowledged, {} lost, {} wrong, slowest start {:.2} s",
            self.rounds,
            self.keys_checked,
            self.acknowledged,
            self.lost.len(),
            self.wrong.len(),
            self.slowest_start.as_secs_f64()
        )
    }
}

/// Runs a plan; prints one line at the end. Stops after the first round in which something is lost or wrong.
///
/// # Errors
/// When the node does not start, or an operation fails while it runs. Losses are in the report, not here.
pub fn run(plan: &CrashPlan) -> anyhow::Result<CrashReport> {
    let seed = plan.seed;
    let repeat = || format!("repeat with JANUSFS_SEED={seed}");
    let mut site = Site::new(plan).with_context(repeat)?;
    let mut report = CrashReport::default();
    for _ in 0..plan.rounds {
        site.round(&mut report).with_context(repeat)?;
        if !(report.lost.is_empty() && report.wrong.is_empty()) {
            break;
        }
    }
    println!("{}: {report} (JANUSFS_SEED={seed})", plan.name);
    for (what, keys) in [("lost", &report.lost), ("wrong", &report.wrong)] {
        for key in keys {
            println!("{what}: {key}");
        }
    }
    site.node.terminate()?;
    Ok(report)
}

/// A node, its mount and its disk. Fields are dropped in order: the node first, the directory last.
struct Site {
    node: TestNode,
    mount: Mountpoint,
    disk: Option<PowerCut>,
    runtime: Runtime,
    chance: Seeded,
    /// The keys of each writer.
    keys: Vec<BTreeMap<String, History>>,
    _dir: tempfile::TempDir,
}

/// Where the node mounts; a mount that a dead node left goes when this is dropped.
struct Mountpoint(PathBuf);

impl Drop for Mountpoint {
    fn drop(&mut self) {
        // A node that ended in order has unmounted already, and this fails.
        let mut unmount = Command::new("fusermount3");
        let _ = unmount.args(["-u", "-z", "-q"]).arg(&self.0).output();
    }
}

impl Site {
    fn new(plan: &CrashPlan) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("a directory")?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data)?;
        let mount = Mountpoint(dir.path().join("mnt"));
        let disk = match plan.kind {
            CrashKind::Kill => None,
            CrashKind::PowerCut => Some(PowerCut::mount(&data)?),
        };
        let mut args = vec!["--mount".into(), mount.0.clone().into_os_string()];
        args.extend(plan.node_args.iter().map(Into::into));
        let node = TestNode::start_on(&data, &args)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let s3 = root(&node);
        runtime.block_on(s3.create_bucket().bucket(BUCKET).send())?;
        Ok(Self {
            node,
            mount,
            disk,
            runtime,
            chance: Seeded::new(plan.seed),
            keys: (0..WRITERS).map(|_| BTreeMap::new()).collect(),
            _dir: dir,
        })
    }

    fn directory(&self) -> PathBuf {
        self.mount.0.join(BUCKET)
    }

    fn round(&mut self, report: &mut CrashReport) -> anyhow::Result<()> {
        report.rounds += 1;
        let crashed = self.write_until_crash(report)?;
        let survivor = match &mut self.disk {
            None => Survivor::Visible,
            Some(disk) => {
                disk.cut(self.chance.number())?;
                Survivor::Stable(crashed)
            }
        };
        let starting = now();
        self.node
            .restart()
            .context("the node does not start after a crash")?;
        report.slowest_start = report.slowest_start.max(starting.elapsed());
        self.check(&survivor, report)
    }

    /// Lets the writers run, kills the node under them, and returns the moment.
    fn write_until_crash(&mut self, report: &mut CrashReport) -> anyhow::Result<Instant> {
        let mut length = ROUND_MS.0 + self.chance.below(ROUND_MS.1 - ROUND_MS.0);
        if self.chance.one_in(LONG_ROUND_ONE_IN) {
            length += LONG_ROUND_MS;
        }
        let s3 = root(&self.node);
        let directory = self.directory();
        let (dying, acknowledged) = (&AtomicBool::new(false), &AtomicU64::new(0));
        let started = Barrier::new(self.keys.len() + 1);
        let (runtime, node, started) = (&self.runtime, &mut self.node, &started);
        let writers: Vec<Writer<'_>> = self
            .keys
            .iter_mut()
            .zip(0..)
            .map(|(keys, number)| Writer {
                number,
                keys,
                s3: &s3,
                runtime: runtime.handle(),
                directory: &directory,
                chance: self.chance.branch(number + 1),
                acknowledged,
            })
            .collect();
        // The branches above do not move the sequence; the next round's must differ.
        self.chance.number();
        std::thread::scope(|scope| {
            let threads: Vec<_> = writers
                .into_iter()
                .map(|mut writer| {
                    scope.spawn(move || {
                        started.wait();
                        let error = writer.run_until_error();
                        // An error is the end of a writer; it is fine only when the node was being killed.
                        let expected = dying.load(Ordering::SeqCst);
                        if expected { Ok(()) } else { Err(error) }
                    })
                })
                .collect();
            started.wait();
            sleep_awake(Duration::from_millis(length));
            // A crash before the first acknowledgement proves nothing.
            let proof = wait_until("an acknowledgement", || {
                let over = threads.iter().all(|thread| thread.is_finished());
                Ok(over || acknowledged.load(Ordering::Relaxed) > 0)
            });
            let crashed = now();
            dying.store(true, Ordering::SeqCst);
            node.kill9()?;
            for thread in threads {
                let result = thread.join().expect("a writer panicked");
                result.context("an operation failed while the node ran")?;
            }
            proof?;
            report.acknowledged += acknowledged.load(Ordering::Relaxed);
            Ok(crashed)
        })
    }

    /// Looks at every key through both doors, at the listings, and runs fsck.
    fn check(&mut self, survivor: &Survivor, report: &mut CrashReport) -> anyhow::Result<()> {
        let s3 = root(&self.node);
        let directory = self.directory();
        let mut present = BTreeSet::new();
        for (key, history) in self.keys.iter_mut().flatten() {
            report.keys_checked += 1;
            let by_s3 = self.runtime.block_on(get(&s3, key));
            let by_mount = read(&directory.join(key)).with_context(|| format!("reading {key}"))?;
            let by_s3 = match by_s3 {
                Ok(found) => found,
                // The SDK compares the bytes with the checksum that came with them.
                Err(error) => {
                    let judged = history.judge(survivor, by_mount.as_deref());
                    let fault = format!("{key}: GET fails: {error:#}; the mount: {judged:?}");
                    report.wrong.push(fault);
                    continue;
                }
            };
            if by_s3 != by_mount {
                let (by_s3, by_mount) = (
                    value::explain(by_s3.as_deref()),
                    value::explain(by_mount.as_deref()),
                );
                report
                    .wrong
                    .push(format!("{key}: S3 has {by_s3}, the mount {by_mount}"));
                continue;
            }
            if by_s3.is_some() {
                present.insert(key.clone());
            }
            match history.judge(survivor, by_s3.as_deref()) {
                Ok(()) => history.settle(by_s3.as_deref()),
                Err(history::Fault::Lost(text)) => report.lost.push(format!("{key}: {text}")),
                Err(history::Fault::Wrong(text)) => report.wrong.push(format!("{key}: {text}")),
            }
        }
        let listed = self.runtime.block_on(list(&s3))?;
        let named = names(&directory)?;
        for (door, found) in [("S3", listed), ("the mount", named)] {
            if found != present {
                let extra: Vec<_> = found.symmetric_difference(&present).collect();
                report
                    .wrong
                    .push(format!("{door} lists otherwise than it reads: {extra:?}"));
            }
        }
        let fsck = self.node.janusfs(&["fsck", "-o", "json"])?;
        if !fsck.status.success() {
            let text = String::from_utf8_lossy(&fsck.stdout).into_owned();
            report.wrong.push(format!("fsck is not clean: {text}"));
        }
        Ok(())
    }
}

/// Sleeps; starts the last part again after a time in which the whole machine stood still, so that the node is not killed
/// before it had its chance to keep a promise about time.
fn sleep_awake(length: Duration) {
    let mut left = length;
    while !left.is_zero() {
        let before = now();
        std::thread::sleep(NAP);
        left = left.saturating_sub(NAP);
        if before.elapsed() > NAP + STALL {
            left = left.max(AFTER_STALL);
        }
    }
}

/// The clock of the promises about time.
#[expect(
    clippy::disallowed_methods,
    reason = "what is measured is the outside world; nothing here runs on virtual time"
)]
fn now() -> Instant {
    Instant::now()
}

async fn get(s3: &Client, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
    match s3.get_object().bucket(BUCKET).key(key).send().await {
        Ok(found) => Ok(Some(found.body.collect().await?.to_vec())),
        Err(SdkError::ServiceError(error))
            if matches!(error.err(), GetObjectError::NoSuchKey(_)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn list(s3: &Client) -> anyhow::Result<BTreeSet<String>> {
    let page = s3.list_objects_v2().bucket(BUCKET).send().await?;
    ensure!(page.is_truncated() != Some(true), "the keys fit one page");
    let keys = page.contents().iter().filter_map(|object| object.key());
    Ok(keys.filter(|key| is_key(key)).map(str::to_owned).collect())
}

fn names(directory: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.retain(|name| is_key(name));
    Ok(names)
}

/// Whether a name is a key, not a writer's temporary file.
fn is_key(name: &str) -> bool {
    !name.ends_with(writer::TEMPORARY)
}
