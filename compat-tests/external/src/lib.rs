//! Runs the `janusfs` binary for tests that look at it from outside, as its users do.
//!
//! Owns: starting, killing and restarting a node, finding its endpoints and credentials. Waits are for a state (a file, a
//! port), with a bound; the process is killed by its id at the end, whatever the test did. Absent: any knowledge of how
//! the node works.
//!
//! `JANUSFS_TEST_TOPOLOGY=TxR` runs every test with T targets and R replicas, unless the test names its own.
#![forbid(unsafe_code)]

pub mod crash;
mod mounted;
pub mod power_cut;
pub mod raw_s3;
pub mod s3;
mod seeded;

pub use mounted::MountedNode;

use std::{
    ffi::{OsStr, OsString},
    net::{TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

pub use seeded::Seeded;

/// Time between two looks at a state that is waited for, in milliseconds.
const POLL_MS: u64 = 20;
/// Looks before a wait fails: a minute, for a machine that builds at the same time.
const POLLS_MAX: u32 = 3000;
/// Names the storage topology of nodes whose test does not: `3x3` is three targets and three replicas.
const TOPOLOGY_VARIABLE: &str = "JANUSFS_TEST_TOPOLOGY";

/// One replica of each chunk.
pub const ONE_TARGET: [&str; 4] = ["--targets", "1", "--replicas", "1"];
/// Three replicas of each chunk.
pub const THREE_REPLICAS: [&str; 4] = ["--targets", "3", "--replicas", "3"];

/// Where a running node listens and how to sign in.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// `host:port` of the S3 door.
    pub s3: String,
    /// `host:port` of the admin door.
    pub admin: String,
    /// `host:port` of the cluster's own wire.
    pub rpc: String,
}

/// A `janusfs up` process with a data directory of its own.
pub struct TestNode {
    child: Option<Child>,
    data: PathBuf,
    /// Removes the data directory at the end when it is the node's own.
    _owned: Option<tempfile::TempDir>,
    args: Vec<OsString>,
    endpoints: Endpoints,
    access_key: String,
    secret_key: String,
}

impl TestNode {
    /// Starts a node on free ports of the loopback interface, with further arguments, and waits until it answers.
    ///
    /// # Errors
    /// When the binary is missing, ends, or does not answer in time.
    pub fn start<A: AsRef<OsStr>>(args: &[A]) -> anyhow::Result<Self> {
        let owned = tempfile::tempdir().context("a data directory")?;
        Self::new(owned.path().to_owned(), Some(owned), args)
    }

    /// As [`TestNode::start`], on a data directory of the caller's.
    ///
    /// # Errors
    /// As [`TestNode::start`].
    pub fn start_on<A: AsRef<OsStr>>(data: &Path, args: &[A]) -> anyhow::Result<Self> {
        Self::new(data.to_owned(), None, args)
    }

    fn new<A: AsRef<OsStr>>(
        data: PathBuf,
        owned: Option<tempfile::TempDir>,
        args: &[A],
    ) -> anyhow::Result<Self> {
        let mut args: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        if !args.iter().any(|arg| arg == "--targets") {
            args.extend(topology()?);
        }
        let mut node = Self {
            child: None,
            data,
            _owned: owned,
            args,
            endpoints: Endpoints {
                s3: String::new(),
                admin: String::new(),
                rpc: String::new(),
            },
            access_key: String::new(),
            secret_key: String::new(),
        };
        node.launch()?;
        Ok(node)
    }

    /// Kills the process at once, as a crash would (SIGKILL).
    ///
    /// # Errors
    /// When it cannot be killed or waited for.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("SIGKILL")?;
            child.wait().context("waiting for the killed node")?;
        }
        Ok(())
    }

    /// Asks the process to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().context("the node is not running")?;
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id")?;
        kill_process(pid, Signal::TERM).context("SIGTERM")?;
        let mut status = None;
        wait_until("the node's end", || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })?;
        self.child = None;
        status.context("an exit status")
    }

    /// Starts the process again on the same data; kills it first when it runs. The ports may change.
    ///
    /// # Errors
    /// As [`TestNode::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill9()?;
        self.launch()
    }

    /// Returns the URL of the S3 door.
    #[must_use]
    pub fn s3_endpoint(&self) -> String {
        format!("http://{}", self.endpoints.s3)
    }

    /// Returns where the node listens.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Returns the root user's access key and secret key.
    #[must_use]
    pub fn credentials(&self) -> (&str, &str) {
        (&self.access_key, &self.secret_key)
    }

    /// Returns the data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Runs another `janusfs` command on the node's data directory.
    ///
    /// # Errors
    /// When the binary cannot be run; not when it fails.
    pub fn janusfs(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(binary()?);
        command.args(args).arg("--data").arg(&self.data);
        command.output().context("running janusfs")
    }

    /// Returns the process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Returns what the node has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let endpoints = self.data.join("endpoints.json");
        // A file of the run before would name ports that nobody listens on.
        if endpoints.exists() {
            std::fs::remove_file(&endpoints).context("removing the old endpoints file")?;
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let binary = binary()?;
        let mut command = Command::new(&binary);
        command.arg("up").arg("--data").arg(&self.data);
        for address in ["--s3", "--admin", "--rpc"] {
            if !self.args.iter().any(|arg| arg == address) {
                command.args([address, "127.0.0.1:0"]);
            }
        }
        let child = command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let child = self.child.insert(child);
        let mut found = None;
        let ready = wait_until("the node's endpoints", || {
            if let Some(status) = child.try_wait()? {
                bail!("the node ended with {status}");
            }
            found = read_endpoints(&endpoints);
            Ok(found.as_ref().is_some_and(|found| connects(&found.s3)))
        });
        ready.with_context(|| self.log())?;
        self.endpoints = found.context("endpoints")?;
        let text = std::fs::read_to_string(self.data.join("credentials"))
            .context("the credentials file")?;
        self.access_key = value(&text, "JANUSFS_ROOT_ACCESS_KEY")?;
        self.secret_key = value(&text, "JANUSFS_ROOT_SECRET_KEY")?;
        Ok(())
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Err(error) = self.kill9() {
            eprintln!("the node could not be killed: {error:#}");
        }
        if std::thread::panicking() {
            eprintln!("--- log of the node ---\n{}", self.log());
        }
        if let Err(error) = std::fs::remove_file(self.log_path()) {
            eprintln!("the log could not be removed: {error}");
        }
    }
}

/// Looks at a state until it holds.
///
/// # Errors
/// When it does not hold within a minute, or looking fails.
pub fn wait_until(
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    for _ in 0..POLLS_MAX {
        if holds().with_context(|| format!("waiting for {what}"))? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    bail!("waited too long for {what}")
}

/// Reads the topology that the tests are run with.
fn topology() -> anyhow::Result<Vec<OsString>> {
    let Some(topology) = std::env::var_os(TOPOLOGY_VARIABLE).filter(|value| !value.is_empty())
    else {
        return Ok(Vec::new());
    };
    let pair = topology.to_str().and_then(|text| text.split_once('x'));
    let (targets, replicas) =
        pair.with_context(|| format!("{TOPOLOGY_VARIABLE} is not of the form 3x3"))?;
    Ok(["--targets", targets, "--replicas", replicas]
        .map(OsString::from)
        .into())
}

/// Runs `janusfs` with arguments to its end.
///
/// # Errors
/// When it cannot be started.
pub fn janusfs<A: AsRef<OsStr>>(args: &[A]) -> anyhow::Result<Output> {
    let binary = binary()?;
    Command::new(&binary)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", binary.display()))
}

/// Finds the binary: `JANUSFS_BIN`, or `janusfs` in the profile directory that the test was built into.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("JANUSFS_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("the test's own path")?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("the build's directory")?;
    let path = profile.join("janusfs");
    ensure!(
        path.exists(),
        "{} is missing: build it or set JANUSFS_BIN",
        path.display()
    );
    Ok(path)
}

fn read_endpoints(path: &Path) -> Option<Endpoints> {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let field = |name: &str| Some(json.get(name)?.as_str()?.to_owned());
    Some(Endpoints {
        s3: field("s3")?,
        admin: field("admin")?,
        rpc: field("rpc")?,
    })
}

fn connects(address: &str) -> bool {
    let address = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next());
    address
        .is_some_and(|address| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
}

fn value(text: &str, name: &str) -> anyhow::Result<String> {
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Ok(found
        .with_context(|| format!("{name} in the credentials file"))?
        .trim()
        .to_owned())
}
