//! `janusfs status`: one screen.

use std::process::ExitCode;

use anyhow::Result;
use janusfs_wire::meta::{ListBuckets, StatFs};
use serde_json::json;

use crate::{
    args::{Format, Target},
    connect, data_dir, output,
};

pub(crate) async fn run(target: &Target, format: Format) -> Result<ExitCode> {
    let endpoints = data_dir::endpoints(&target.data)?;
    let client = connect::to_target(target).await?.client;
    let stats = client.call(&StatFs {}).await?;
    let buckets = client.call(&ListBuckets {}).await?;
    let table = client.chain_table();
    let targets = client.usage().await?;
    let damaged = targets
        .iter()
        .any(|usage| usage.corruptions > usage.repairs);
    let missing = targets.len() < table.targets.len();
    let health = if damaged || missing {
        "degraded"
    } else {
        "healthy"
    };
    match format {
        Format::Json => {
            let targets: Vec<_> = targets
                .iter()
                .map(|usage| {
                    json!({
                        "target": usage.target, "capacity_bytes": usage.capacity_bytes,
                        "free_bytes": usage.free_bytes, "used_bytes": usage.used_bytes,
                        "chunks": usage.chunks, "corruptions": usage.corruptions, "repairs": usage.repairs,
                    })
                })
                .collect();
            output::print_json(&json!({
                "health": health, "s3": endpoints.s3, "admin": endpoints.admin, "cluster": endpoints.rpc,
                "inodes": stats.inodes, "used_bytes": stats.used_bytes, "buckets": buckets.len(),
                "chains": table.chains.len(), "targets": targets,
            }));
        }
        Format::Table => {
            println!(
                "{health}: {} chain(s), {} target(s)",
                table.chains.len(),
                table.targets.len()
            );
            println!(
                "S3 http://{}   admin http://{}   cluster {}",
                endpoints.s3, endpoints.admin, endpoints.rpc
            );
            println!(
                "{} files and directories, {}, {} bucket(s)\n",
                stats.inodes,
                output::human_bytes(stats.used_bytes),
                buckets.len()
            );
            let rows: Vec<_> = targets
                .iter()
                .map(|usage| {
                    vec![
                        usage.target.to_string(),
                        usage.chunks.to_string(),
                        output::human_bytes(usage.used_bytes),
                        output::human_bytes(usage.free_bytes),
                        format!("{} / {}", usage.corruptions, usage.repairs),
                    ]
                })
                .collect();
            output::print_table(
                &["TARGET", "CHUNKS", "USED", "FREE", "DAMAGED / REPAIRED"],
                &rows,
            );
        }
    }
    Ok(ExitCode::from(if health == "healthy" { 0 } else { 3 }))
}
