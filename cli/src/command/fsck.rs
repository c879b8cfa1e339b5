//! `janusfs fsck`: metadata invariants as of one moment, then every chunk of every target.
//!
//! Works on a running JanusFS through its cluster address, and on a stopped one by starting its roles without doors.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use janusfs_chain_client::ChainClient;
use janusfs_client::Client;
use janusfs_env::rng;
use janusfs_types::{ChunkId, FsError};
use janusfs_wire::meta::{Fsck, FsckReport};
use serde_json::json;

use crate::{
    args::{Format, Target},
    connect, data_dir,
    data_dir::DataDir,
    node::Node,
    output,
};

/// Chunks checked in one call.
const STEP_CHUNKS: u32 = 16;

#[derive(Default)]
struct DataReport {
    checked: u64,
    repaired: u64,
    lost: Vec<ChunkId>,
}

pub(crate) async fn run(target: &Target, metadata_only: bool, format: Format) -> Result<ExitCode> {
    if data_dir::endpoints(&target.data).is_ok()
        && let Ok(connected) = connect::to_target(target).await
    {
        return check(&connected.client, &connected.chains, metadata_only, format).await;
    }
    let dir = DataDir::open(&target.data, None)?;
    let node = Node::start(&dir).await?;
    let code = check(&node.client, &node.chains, metadata_only, format).await;
    node.stop().await?;
    code
}

async fn check(
    client: &Client,
    chains: &Arc<ChainClient>,
    metadata_only: bool,
    format: Format,
) -> Result<ExitCode> {
    let report = check_metadata(client)
        .await
        .context("cannot check the metadata")?;
    let data = if metadata_only {
        DataReport::default()
    } else {
        scrub(client, chains).await?
    };
    let clean = report.findings.is_empty() && report.changing == 0 && data.lost.is_empty();
    match format {
        Format::Json => print_json(clean, &report, &data),
        Format::Table => print_text(clean, &report, &data, metadata_only),
    }
    Ok(ExitCode::from(if clean { 0 } else { 3 }))
}

/// Calls step after step: each is short, the whole is as long as the namespace is large.
async fn check_metadata(client: &Client) -> Result<FsckReport, FsError> {
    let run = rng::random_u64();
    let bar = progress("rows");
    loop {
        let report = client.call(&Fsck { run }).await?;
        bar.set_length(report.rows_expected.max(report.rows));
        bar.set_position(report.rows);
        if report.done {
            bar.finish_and_clear();
            return Ok(report);
        }
    }
}

/// Returns a bar that shows on a terminal only.
fn progress(what: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.set_style(
        ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what}  {{eta}}"))
            .expect("the template is right"),
    );
    bar
}

async fn scrub(client: &Client, chains: &ChainClient) -> Result<DataReport> {
    let total: u64 = client.usage().await?.iter().map(|usage| usage.chunks).sum();
    let bar = progress("chunks");
    bar.set_length(total);
    let mut report = DataReport::default();
    for chain in &client.chain_table().chains {
        for target in &chain.targets {
            let mut after = None;
            loop {
                let step = chains.scrub(*target, after, STEP_CHUNKS).await?;
                bar.inc(step.checked);
                report.checked += step.checked;
                report.repaired += step.repaired;
                report.lost.extend(step.lost);
                match step.last {
                    Some(last) => after = Some(last),
                    None => break,
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

fn print_json(clean: bool, report: &FsckReport, data: &DataReport) {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| &finding.text)
        .collect();
    let lost: Vec<_> = data.lost.iter().map(ToString::to_string).collect();
    output::print_json(&json!({
        "clean": clean, "inodes": report.inodes, "entries": report.entries, "findings": findings,
        "changing": report.changing,
        "chunks": data.checked, "repaired": data.repaired, "lost": lost,
    }));
}

fn print_text(clean: bool, report: &FsckReport, data: &DataReport, metadata_only: bool) {
    println!(
        "metadata: {} inodes, {} entries, {} findings",
        report.inodes,
        report.entries,
        report.findings.len()
    );
    for finding in &report.findings {
        println!("  {}", finding.text);
    }
    if report.changing > 0 {
        println!(
            "  not checked: changing faster than it can be read, {} rows at the end; try again when there is less to do",
            report.changing
        );
    }
    if !metadata_only {
        println!(
            "data: {} chunks, {} repaired, {} lost",
            data.checked,
            data.repaired,
            data.lost.len()
        );
        for chunk in &data.lost {
            println!("  {chunk} is damaged on every replica");
        }
    }
    println!("{}", if clean { "clean" } else { "NOT clean" });
}
