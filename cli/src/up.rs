//! `janusfs up`: every role, every door, until a signal.

use std::{net::SocketAddr, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};
use janusfs_chain_transport::{ClusterSecret, TcpServer};
use janusfs_client::Client;
use janusfs_env::tasks;
use janusfs_fuse_mount::{Mount, MountConfig};
use janusfs_types::FsError;
use janusfs_wire::meta::{CreateKey, CreateUser, GetKey};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    admin_http,
    args::Up,
    data_dir::{Credentials, DataDir, Endpoints, check_layout},
    node::{Node, process_owner},
    output,
};

/// Runs until SIGTERM or SIGINT, then drains.
pub(crate) async fn run(up: Up) -> Result<ExitCode> {
    check_layout(up.targets, up.replicas)?;
    let mut signals = Signals::new()?;
    // Ports first: nothing on disk is touched when one is taken.
    let s3 = bind(up.s3, "S3 API", "--s3").await?;
    let admin = bind(up.admin, "admin", "--admin").await?;
    let rpc = bind(up.rpc, "cluster", "--rpc").await?;
    let dir = DataDir::open(&up.data, Some((up.targets, up.replicas)))?;
    let doors = Doors {
        s3,
        admin,
        rpc,
        credentials: dir.credentials()?,
        secret: ClusterSecret::load_or_create(&dir.join("cluster.key"))?,
    };
    let node = Node::start(&dir).await?;
    let served = serve(&up, &dir, &node, doors, &mut signals).await;
    // Also when a door did not open: the stores are closed in order.
    let stopped = node.stop().await;
    served.and(stopped)?;
    Ok(ExitCode::SUCCESS)
}

/// Where the doors of a node listen, and who may come in.
struct Doors {
    s3: TcpListener,
    admin: TcpListener,
    rpc: TcpListener,
    credentials: Credentials,
    secret: ClusterSecret,
}

/// Opens every door of a node, and closes them after a signal.
async fn serve(
    up: &Up,
    dir: &DataDir,
    node: &Node,
    doors: Doors,
    signals: &mut Signals,
) -> Result<()> {
    let Doors {
        s3,
        admin,
        rpc,
        credentials,
        secret,
    } = doors;
    ensure_root_user(&node.client, &credentials).await?;
    let endpoints = Endpoints {
        s3: s3.local_addr()?.to_string(),
        admin: admin.local_addr()?.to_string(),
        rpc: rpc.local_addr()?.to_string(),
    };
    let mount = match &up.mount {
        Some(path) => Some(mount(node.new_client().await?, path).await?),
        None => None,
    };
    let (stop, stopped) = watch::channel(false);
    let rpc = tasks::spawn(TcpServer::serve(
        rpc,
        secret,
        node.router.clone(),
        stopped.clone(),
    ));
    let admin = tasks::spawn(admin_http::serve(
        admin,
        node.client.clone(),
        stopped.clone(),
    ));
    let s3 = tasks::spawn(janusfs_gateway_s3::serve(
        node.client.clone(),
        s3,
        until(stopped.clone()),
    ));
    dir.publish(&endpoints)?;
    print_banner(up, dir, &endpoints);
    signals.wait().await;
    output::note("stopping");
    dir.withdraw();
    if let Some(mount) = mount {
        // A mount that will not go must not keep the stores from being closed in order.
        if let Err(error) = tasks::blocking(move || mount.unmount()).await {
            output::note(&format!("warning: {error}"));
        }
    }
    // Nobody listens any more when every server has ended: that is what this says.
    let _ = stop.send(true);
    for task in [s3, admin, rpc] {
        task.await.context("a server failed")??;
    }
    Ok(())
}

/// Ends when `stop` turns true.
pub(crate) async fn until(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone: stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Binds a listener, or says which flag to change.
pub(crate) async fn bind(address: SocketAddr, what: &str, flag: &str) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "{address} ({what}) is in use: stop what listens there, or give another {flag} HOST:PORT"
            )
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot listen on {address} ({what}, {flag})"))
        }
    }
}

/// Mounts on a thread that may block.
async fn mount(client: Client, path: &Path) -> Result<Mount> {
    std::fs::create_dir_all(path)
        .or_else(|error| match error.kind() {
            // A dead mount answers like this; mounting takes it away first.
            std::io::ErrorKind::NotConnected | std::io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })
        .with_context(|| format!("cannot make the mount point {}", path.display()))?;
    warn_of_hidden_files(path);
    let config = MountConfig::new(path.to_owned());
    tasks::blocking(move || janusfs_fuse_mount::mount(client, config))
        .await
        .with_context(|| format!("cannot mount on {}", path.display()))
}

/// Mounting over files is allowed, as everywhere on Linux, but seldom meant.
fn warn_of_hidden_files(path: &Path) {
    let not_empty = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if not_empty {
        output::note(&format!(
            "warning: {} is not empty: what is in it is hidden until it is unmounted",
            path.display()
        ));
    }
}

/// Makes sure that the root user can sign in with the keys in the data directory.
async fn ensure_root_user(client: &Client, credentials: &Credentials) -> Result<()> {
    let access_key = credentials.access_key.clone();
    match client
        .call(&GetKey {
            access_key: access_key.clone(),
        })
        .await
    {
        Ok(_) => return Ok(()),
        Err(FsError::NotFound) => {}
        Err(error) => return Err(error).context("cannot read the root user's key"),
    }
    let owner = process_owner();
    let create = CreateUser {
        name: "root".into(),
        uid: owner.uid,
        gid: owner.gid,
        admin: true,
        policy: String::new(),
        access_key: access_key.clone(),
        secret_key: credentials.secret_key.clone(),
    };
    match client.call(&create).await {
        Ok(_) => Ok(()),
        // The keys in the file were changed by hand: they are added to the user.
        Err(FsError::Exists) => client
            .call(&CreateKey {
                user: "root".into(),
                access_key,
                secret_key: credentials.secret_key.clone(),
            })
            .await
            .context("cannot add the root user's key"),
        Err(error) => Err(error).context("cannot make the root user"),
    }
}

fn print_banner(up: &Up, dir: &DataDir, endpoints: &Endpoints) {
    let Endpoints { s3, admin, rpc } = endpoints;
    let credentials = dir.join("credentials");
    let key = dir.join("cluster.key");
    // The other shell may be anywhere.
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mounted = up.mount.as_deref().map(absolute);
    let mounted = mounted.map(|path| path.display().to_string());
    println!(
        "JanusFS is up: {} target(s), {} replica(s)",
        dir.format.targets, dir.format.replicas
    );
    println!("  S3           http://{s3}");
    println!("  admin        http://{admin}/healthz  http://{admin}/metrics");
    println!("  cluster      {rpc}");
    println!(
        "  mount        {}",
        mounted.as_deref().unwrap_or("none (give --mount DIR)")
    );
    println!("  credentials  {}", credentials.display());
    println!();
    println!("Try it in another shell:");
    println!("  . {}", credentials.display());
    println!(
        "  export AWS_ACCESS_KEY_ID=$JANUSFS_ROOT_ACCESS_KEY AWS_SECRET_ACCESS_KEY=$JANUSFS_ROOT_SECRET_KEY AWS_DEFAULT_REGION=us-east-1"
    );
    println!("  aws --endpoint-url http://{s3} s3 mb s3://demo");
    println!("  aws --endpoint-url http://{s3} s3 cp /etc/os-release s3://demo/hello");
    match mounted {
        Some(path) => println!("  cat {path}/demo/hello"),
        None => println!(
            "  janusfs mount --secret-file {} {rpc} /mnt && cat /mnt/demo/hello",
            key.display()
        ),
    }
    println!("Stop it with Ctrl-C.");
}

/// Runs `janusfs mount` until it is unmounted or a signal comes.
pub(crate) async fn run_mount(client: Client, config: MountConfig) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let path = config.mountpoint.clone();
    warn_of_hidden_files(&path);
    let mount = tasks::blocking(move || janusfs_fuse_mount::mount(client, config))
        .await
        .with_context(|| format!("cannot mount on {}", path.display()))?;
    println!("mounted on {}", path.display());
    tokio::select! {
        () = mount.ended() => {}
        () = signals.wait() => {
            let unmounted = tasks::blocking(move || mount.unmount()).await;
            unmounted.with_context(|| format!("cannot unmount {}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
