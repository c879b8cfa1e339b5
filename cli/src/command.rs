//! One function for each command.

mod bench;
mod bucket;
mod fsck;
mod status;
mod user;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use janusfs_fuse_mount::MountConfig;
use tokio::sync::watch;

use crate::{
    args::{Args, BucketCommand, Command, KeyCommand, Mount, S3, UserCommand},
    connect,
    output::UsageError,
    up,
};

/// Runs the command on a fresh runtime.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        // On a task of its own: the thread that entered the runtime is no worker and would take longer ways.
        janusfs_env::tasks::spawn(dispatch(args.command))
            .await
            .context("the command panicked")?
    })
}

async fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(up) => up::run(up).await,
        Command::Mount(mount) => run_mount(mount).await,
        Command::Umount { mountpoint } => {
            janusfs_fuse_mount::umount(&mountpoint)
                .with_context(|| format!("cannot unmount {}", mountpoint.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::S3(s3) => run_s3(s3).await,
        Command::Status { target, output } => status::run(&target, output).await,
        Command::User(command) => match command {
            UserCommand::Create {
                name,
                access_key,
                secret_key,
                uid,
                gid,
                admin,
                target,
            } => {
                user::create(
                    &target,
                    &name,
                    access_key.zip(secret_key),
                    (uid, gid),
                    admin,
                )
                .await
            }
            UserCommand::List { target, output } => user::list(&target, output).await,
            UserCommand::Delete { name, target } => user::delete(&target, &name).await,
        },
        Command::Key(command) => match command {
            KeyCommand::Create { user, target } => user::create_key(&target, &user).await,
            KeyCommand::Delete { access_key, target } => {
                user::delete_key(&target, &access_key).await
            }
        },
        Command::Bucket(command) => match command {
            BucketCommand::Create {
                name,
                path,
                owner,
                target,
            } => bucket::create(&target, &name, path, &owner).await,
            BucketCommand::List { target, output } => bucket::list(&target, output).await,
            BucketCommand::Delete { name, target } => bucket::delete(&target, &name).await,
        },
        Command::Fsck {
            target,
            metadata_only,
            output,
        } => fsck::run(&target, metadata_only, output).await,
        Command::Bench(args) => bench::run(args).await,
        Command::BenchFloor(floor) => bench::run_floor(floor).await,
    }
}

async fn run_mount(mount: Mount) -> Result<ExitCode> {
    let mut config = MountConfig::new(mount.mountpoint.clone());
    for option in &mount.options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => config.read_only = true,
            ("rw" | "defaults", "") => {}
            ("sync", "") => config.sync = true,
            ("threads", count) => {
                let threads = count.parse().ok().filter(|count| (1..=64).contains(count));
                config.threads = threads.ok_or_else(|| {
                    UsageError(format!("threads={count}: give a number from 1 to 64"))
                })?;
            }
            _ => bail!(UsageError(format!(
                "unknown mount option `{option}`: there are ro, rw, sync, threads=N"
            ))),
        }
    }
    let connected = connect::to_remote(&mount.remote).await?;
    up::run_mount(connected.client, config).await
}

async fn run_s3(s3: S3) -> Result<ExitCode> {
    let mut signals = up::Signals::new()?;
    let listener = up::bind(s3.listen, "S3 API", "--listen").await?;
    let connected = connect::to_remote(&s3.remote).await?;
    println!("S3 API on http://{}", listener.local_addr()?);
    let (stop, stopped) = watch::channel(false);
    let serving = janusfs_env::tasks::spawn(janusfs_gateway_s3::serve(
        connected.client,
        listener,
        up::until(stopped),
    ));
    signals.wait().await;
    // Nobody listens any more when the server has ended: that is what this says.
    let _ = stop.send(true);
    serving.await.context("the server failed")??;
    Ok(ExitCode::SUCCESS)
}
