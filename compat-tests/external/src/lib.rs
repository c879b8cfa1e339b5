//! Runs the `janusfs` binary for tests that look at it from outside, as its users do.
//!
//! Owns: starting, killing and restarting a node, finding its endpoints and credentials. Waits are for a state (a file, a
//! port), with a bound; the process is killed by its id at the end, whatever the test did. Absent: any knowledge of how
//! the node works.
#![forbid(unsafe_code)]

use std::{
    ffi::{OsStr, OsString},
    net::{TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Time between two looks at a state that is waited for, in milliseconds.
const POLL_MS: u64 = 20;
/// Looks before a wait fails: a minute, for a machine that builds at the same time.
const POLLS_MAX: u32 = 3000;

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
    data: tempfile::TempDir,
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
        let data = tempfile::tempdir().context("a data directory")?;
        let mut node = Self {
            child: None,
            data,
            args: args.iter().map(|arg| arg.as_ref().to_owned()).collect(),
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
        self.data.path()
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
        self.data.path().with_extension("log")
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let endpoints = self.data.path().join("endpoints.json");
        // A file of the run before would name ports that nobody listens on.
        if endpoints.exists() {
            std::fs::remove_file(&endpoints).context("removing the old endpoints file")?;
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let binary = binary()?;
        let child = Command::new(&binary)
            .arg("up")
            .arg("--data")
            .arg(self.data.path())
            .args([
                "--s3",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--rpc",
                "127.0.0.1:0",
            ])
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
        let text = std::fs::read_to_string(self.data.path().join("credentials"))
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

/// Finds the binary: `JANUSFS_BIN`, or `janusfs` in the profile directory that the test was built into.
fn binary() -> anyhow::Result<PathBuf> {
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
