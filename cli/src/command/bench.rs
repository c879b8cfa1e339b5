//! `janusfs bench`: hands the request to `janusfs-bench` and prints what it found.
//!
//! A missed aim is a finding, not a failure: the exit code is 0.

use std::process::ExitCode;

use anyhow::Result;
use janusfs_bench::{Noun, Options, Report};
use serde_json::json;

use crate::{
    args::{Bench, BenchFloor, BenchNoun, Format},
    output,
};

pub(crate) async fn run(args: Bench) -> Result<ExitCode> {
    let options = Options {
        noun: match args.noun {
            BenchNoun::S3 => Noun::S3,
            BenchNoun::Fs => Noun::Fs,
            BenchNoun::Chunk => Noun::Chunk,
            BenchNoun::Meta => Noun::Meta,
            BenchNoun::All => Noun::All,
        },
        dir: args.dir,
        seconds: args.seconds,
        cells: args.cells,
    };
    let report = janusfs_bench::run(options).await?;
    match args.output {
        Format::Json => output::print_json(&json!(report)),
        Format::Table => {
            output::print_table(&Report::HEADER, &report.table());
            println!("{}", report.summary());
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn run_floor(floor: BenchFloor) -> Result<ExitCode> {
    match floor {
        BenchFloor::S3 => janusfs_bench::floor_s3().await?,
        BenchFloor::Fs { mountpoint } => janusfs_bench::floor_fs(&mountpoint).await?,
    }
    Ok(ExitCode::SUCCESS)
}
