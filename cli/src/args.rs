//! The command line as a type.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// JanusFS: one namespace, two doors. A parallel filesystem with a POSIX mount and an S3 API.
#[derive(Parser, Debug)]
#[command(name = "janusfs", version, max_term_width = 100)]
pub(crate) struct Args {
    /// What to log, as in `RUST_LOG` (for example `info` or `janusfs_meta=debug`).
    #[arg(long, global = true, env = "JANUSFS_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Runs every role in this process: metadata, storage, S3, the admin address, and a mount if asked for.
    Up(Up),
    /// Mounts the namespace of a running JanusFS.
    Mount(Mount),
    /// Unmounts.
    Umount {
        /// The mount point.
        mountpoint: PathBuf,
    },
    /// Runs another S3 gateway for a running JanusFS.
    S3(S3),
    /// Shows whether JanusFS is well, and its figures. Exit code 3 if it is not.
    Status {
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// S3 users.
    #[command(subcommand)]
    User(UserCommand),
    /// Access keys of S3 users.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Buckets: names for directories.
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// Checks the metadata and every chunk's checksum; damaged chunks are mended from another replica. Exit code 3 if
    /// something stays wrong.
    Fsck {
        #[command(flatten)]
        target: Target,
        /// Skips reading the data: checks the metadata only.
        #[arg(long)]
        metadata_only: bool,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Measures speed against what this machine could do at best, in one run, as ratios.
    Bench(Bench),
    /// A floor of `bench`, its child process.
    #[command(hide = true, subcommand)]
    BenchFloor(BenchFloor),
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(ClapArgs, Debug)]
pub(crate) struct Up {
    /// Where everything is kept. Made if missing.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Address of the S3 API.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "HOST:PORT")]
    pub(crate) s3: SocketAddr,
    /// Address of `/healthz` and `/metrics`.
    #[arg(long, default_value = "127.0.0.1:9001", value_name = "HOST:PORT")]
    pub(crate) admin: SocketAddr,
    /// Address for `janusfs mount`, further gateways and the other commands (mutually authenticated).
    #[arg(long, default_value = "127.0.0.1:9002", value_name = "HOST:PORT")]
    pub(crate) rpc: SocketAddr,
    /// Also mounts the namespace here.
    #[arg(long, value_name = "DIR")]
    pub(crate) mount: Option<PathBuf>,
    /// Storage targets; fixed when the data directory is made.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) targets: u32,
    /// Replicas of each chunk; divides the number of targets; fixed when the data directory is made.
    #[arg(long, default_value_t = 1, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) replicas: u32,
}

/// Which running JanusFS a command speaks to.
#[derive(ClapArgs, Debug, Clone)]
pub(crate) struct Target {
    /// Data directory of `janusfs up` on this machine: tells the address and the secret.
    #[arg(
        long,
        env = "JANUSFS_DATA",
        default_value = "janusfs-data",
        value_name = "DIR"
    )]
    pub(crate) data: PathBuf,
}

#[derive(ClapArgs, Debug)]
pub(crate) struct Remote {
    /// Cluster address of the running JanusFS (what `janusfs up` prints as `cluster`).
    #[arg(value_name = "ENDPOINT")]
    pub(crate) endpoint: String,
    /// The cluster secret: `cluster.key` of that data directory.
    #[arg(
        long,
        env = "JANUSFS_SECRET_FILE",
        default_value = "janusfs-data/cluster.key",
        value_name = "FILE"
    )]
    pub(crate) secret_file: PathBuf,
}

#[derive(ClapArgs, Debug)]
pub(crate) struct Mount {
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Where to mount.
    pub(crate) mountpoint: PathBuf,
    /// Mount options: `ro`, `sync`, `threads=N`.
    #[arg(short = 'o', value_delimiter = ',', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
}

#[derive(ClapArgs, Debug)]
pub(crate) struct S3 {
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Address of the S3 API.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
}

#[derive(ClapArgs, Debug)]
pub(crate) struct Bench {
    /// What to measure.
    #[arg(value_enum, value_name = "WHAT")]
    pub(crate) noun: BenchNoun,
    /// A directory on the disk to be measured; scratch files are made in it and removed. Default: the current one.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How long each side of a cell is measured, in seconds, over three rounds.
    #[arg(long, default_value_t = 3.0, value_name = "N")]
    pub(crate) seconds: f64,
    /// Measures only these cells.
    #[arg(long = "cell", num_args = 1.., value_name = "NAME")]
    pub(crate) cells: Vec<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// What `bench` measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum BenchNoun {
    /// The S3 door of a JanusFS of its own.
    S3,
    /// The mount of a JanusFS of its own.
    Fs,
    /// Chunk reads and writes below the doors.
    Chunk,
    /// Metadata operations below the doors.
    Meta,
    /// Everything.
    All,
}

/// Floors that run as processes.
#[derive(Subcommand, Debug)]
pub(crate) enum BenchFloor {
    /// An HTTP server that discards what it gets and serves memory.
    S3,
    /// A FUSE filesystem in memory.
    Fs {
        /// Where to mount.
        mountpoint: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum UserCommand {
    /// Makes a user; without keys given, makes a pair and prints it once.
    Create {
        /// Unique name.
        name: String,
        /// Access key.
        #[arg(long, requires = "secret_key", value_name = "K")]
        access_key: Option<String>,
        /// Secret key.
        #[arg(
            long,
            requires = "access_key",
            env = "JANUSFS_SECRET_KEY",
            hide_env_values = true,
            value_name = "S"
        )]
        secret_key: Option<String>,
        /// Owner of what the user creates.
        #[arg(long, default_value_t = 0)]
        uid: u32,
        /// Group of what the user creates.
        #[arg(long, default_value_t = 0)]
        gid: u32,
        /// May use every bucket.
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Lists users.
    List {
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Removes a user and its keys. Its buckets and files stay.
    Delete {
        /// The user.
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum KeyCommand {
    /// Makes an access key for a user and prints it once.
    Create {
        /// The user.
        user: String,
        #[command(flatten)]
        target: Target,
    },
    /// Removes an access key.
    Delete {
        /// The access key.
        access_key: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum BucketCommand {
    /// Makes a bucket.
    Create {
        /// Its name.
        name: String,
        /// The directory it names (default: `/NAME`).
        #[arg(long, value_name = "PATH")]
        path: Option<String>,
        /// The S3 user who owns it.
        #[arg(long, default_value = "root")]
        owner: String,
        #[command(flatten)]
        target: Target,
    },
    /// Lists buckets.
    List {
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Removes an empty bucket.
    Delete {
        /// The bucket.
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn bench_takes_its_options_in_any_order() {
        let line = "janusfs bench --seconds 0.5 s3 --cell head-x1 get-64k-x8 --dir /d -o json";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let Command::Bench(bench) = args.command else {
            panic!("{args:?}");
        };
        assert_eq!(bench.noun, BenchNoun::S3);
        assert_eq!(bench.cells, ["head-x1", "get-64k-x8"]);
        assert_eq!((bench.seconds, bench.output), (0.5, Format::Json));
        assert!(Args::try_parse_from(["janusfs", "bench"]).is_err());
        assert!(Args::try_parse_from(["janusfs", "bench", "nothing"]).is_err());
    }
}
