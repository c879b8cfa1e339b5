//! Child processes of a run: `janusfs up` and the floors, this same executable.
//!
//! Invariants: each child is in a process group of its own, so that Ctrl-C reaches this process alone, which then takes
//! them down in order. A child is asked to end, waited for, and killed if it does not; a mount it leaves is detached.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use janusfs_env::{clock, tasks};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::measure::Stop;

/// Time that a child has to become ready.
const START_MAX: Duration = Duration::from_secs(60);
/// Time that a child has to end in order.
const END_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at a child.
const POLL: Duration = Duration::from_millis(10);

/// A process that is ended when this goes away.
struct Process {
    child: Child,
    what: &'static str,
    mount: Option<PathBuf>,
}

impl Process {
    fn start(command: &mut Command, what: &'static str, mount: Option<PathBuf>) -> Result<Self> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        Ok(Self { child, what, mount })
    }

    fn fail_if_ended(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("{} ended with {status}", self.what),
            Err(error) => Err(error).with_context(|| format!("cannot wait for {}", self.what)),
        }
    }

    fn end(&mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), pid) {
            // It may have ended just now.
            let _ = kill_process(pid, Signal::TERM);
        }
        let start = clock::now();
        while self.child.try_wait()?.is_none() {
            if clock::now().duration_since(start) > END_MAX {
                eprintln!("warning: {} does not end: killing it", self.what);
                self.child.kill()?;
                self.child.wait()?;
                break;
            }
            std::thread::sleep(POLL);
        }
        if let Some(mount) = &self.mount {
            detach(mount);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("warning: {}: {error}", self.what);
        }
    }
}

/// Takes away a mount whose process is gone, so that nothing is removed through it.
fn detach(mount: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = mount.to_string_lossy();
    if !table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path.as_ref()))
    {
        return;
    }
    let lazily = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
    if lazily.is_err() {
        let helped = Command::new("fusermount3")
            .args(["-u", "-z", "--"])
            .arg(mount)
            .status();
        if !helped.is_ok_and(|status| status.success()) {
            eprintln!("warning: {} stays mounted", mount.display());
        }
    }
}

fn executable() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this executable")
}

/// A `janusfs up` of its own.
pub(crate) struct Up {
    process: Process,
    /// Address of its S3 door.
    pub(crate) s3: String,
    /// The root user's access key.
    pub(crate) access_key: String,
    /// Its secret.
    pub(crate) secret_key: String,
    /// Its data directory.
    pub(crate) data: PathBuf,
}

#[derive(Deserialize)]
struct Endpoints {
    s3: String,
}

impl Up {
    /// Starts it on free ports over a fresh data directory and waits until it serves. Its complaints are kept in
    /// `data.log` and shown when it does not come up.
    pub(crate) fn start(data: PathBuf, mount: Option<PathBuf>, stop: &Stop) -> Result<Self> {
        let log = data.with_extension("log");
        let complaints = std::fs::File::create(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(executable()?);
        command.arg("up").arg("--data").arg(&data);
        for door in ["--s3", "--admin", "--rpc"] {
            command.args([door, "127.0.0.1:0"]);
        }
        if let Some(mount) = &mount {
            command.arg("--mount").arg(mount);
        }
        command
            .env_remove("JANUSFS_ROOT_ACCESS_KEY")
            .env_remove("JANUSFS_ROOT_SECRET_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(complaints);
        let mut process = Process::start(&mut command, "`janusfs up`", mount)?;
        let start = clock::now();
        let endpoints = data.join("endpoints.json");
        let endpoints: Endpoints = loop {
            stop.check()?;
            process
                .fail_if_ended()
                .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
            if let Ok(text) = std::fs::read(&endpoints) {
                break serde_json::from_slice(&text).context("its endpoints.json is damaged")?;
            }
            if clock::now().duration_since(start) > START_MAX {
                bail!("`janusfs up` is not ready after {START_MAX:?}");
            }
            std::thread::sleep(POLL);
        };
        let keys = std::fs::read_to_string(data.join("credentials"))
            .context("cannot read the credentials of `janusfs up`")?;
        let key = |name: &str| {
            let value = keys
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value
                .map(str::to_owned)
                .with_context(|| format!("no {name} in its credentials"))
        };
        Ok(Self {
            process,
            s3: endpoints.s3,
            access_key: key("JANUSFS_ROOT_ACCESS_KEY")?,
            secret_key: key("JANUSFS_ROOT_SECRET_KEY")?,
            data,
        })
    }

    /// Forgets the peak of the server's resident memory. Best effort: without it the peak is that of its whole life.
    pub(crate) fn reset_peak(&self) {
        // 5 stands for "peak resident set size" in proc(5).
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.process.child.id()), "5");
    }

    /// Returns the peak since then in bytes; `None` where the system does not tell.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        let status = format!("/proc/{}/status", self.process.child.id());
        let status = std::fs::read_to_string(status).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }
}

/// A floor: the executable's hidden subcommand. It ends when its standard input does, so it does not outlive a killed run.
pub(crate) struct Floor {
    // In this order: the pipe closes, then the process is waited for.
    _input: ChildStdin,
    _process: Process,
    /// What it said when it was ready: the address it serves, or nothing.
    pub(crate) ready: String,
}

impl Floor {
    /// Starts `janusfs bench-floor ARGS` and waits for its first line.
    pub(crate) fn start(
        args: &[&std::ffi::OsStr],
        what: &'static str,
        mount: Option<PathBuf>,
    ) -> Result<Self> {
        let mut command = Command::new(executable()?);
        command
            .arg("bench-floor")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start(&mut command, what, mount)?;
        let input = process.child.stdin.take().context("its standard input")?;
        let output = process.child.stdout.take().context("its standard output")?;
        let mut ready = String::new();
        let length = BufReader::new(output)
            .read_line(&mut ready)
            .with_context(|| format!("cannot read from {what}"))?;
        if length == 0 {
            bail!("{what} did not start");
        }
        Ok(Self {
            _input: input,
            _process: process,
            ready: ready.trim().to_owned(),
        })
    }
}

/// In a floor's process: waits until whoever started it closes its standard input, ends, or sends SIGTERM.
pub(crate) async fn asked_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let (ended, input) = oneshot::channel();
    drop(tasks::spawn_thread("input", move || {
        // Nothing is ever sent: this returns at the end, or fails, which is an end too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        // Nobody waits any more when the signal was first.
        let _ = ended.send(());
    }));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = input => {}
    }
    Ok(())
}
