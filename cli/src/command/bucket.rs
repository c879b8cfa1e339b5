//! `janusfs bucket`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use janusfs_types::{Credentials, FsError};
use janusfs_wire::meta::{CreateBucket, DeleteBucket, ListBuckets, ListUsers};
use serde_json::json;

use crate::{
    args::{Format, Target},
    connect, output,
};

pub(crate) async fn create(
    target: &Target,
    name: &str,
    path: Option<String>,
    owner: &str,
) -> Result<ExitCode> {
    let client = connect::to_target(target).await?.client;
    let users = client.call(&ListUsers {}).await?;
    let Some(user) = users.iter().find(|user| user.name == owner) else {
        bail!("there is no user `{owner}`: make it with `janusfs user create {owner}`");
    };
    let request = CreateBucket {
        name: name.into(),
        path: path.unwrap_or_default(),
        owner: owner.into(),
        who: Credentials {
            uid: user.uid,
            gid: user.gid,
        },
    };
    let bucket = match client.call(&request).await {
        Ok(bucket) => bucket,
        Err(FsError::Exists) => bail!("there is a bucket `{name}` already"),
        Err(FsError::Invalid(_)) => bail!(
            "`{name}` is no bucket name: 3 to 63 lower-case letters, digits, '-' or '.', first and last a letter or digit"
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot make bucket `{name}`")),
    };
    println!("bucket {} names directory {}", bucket.name, bucket.path);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(target: &Target, format: Format) -> Result<ExitCode> {
    let client = connect::to_target(target).await?.client;
    let buckets = client.call(&ListBuckets {}).await?;
    match format {
        Format::Json => {
            let rows: Vec<_> = buckets
                .iter()
                .map(|bucket| {
                    json!({
                        "name": bucket.name, "path": bucket.path, "owner": bucket.owner,
                        "used_bytes": bucket.used_bytes, "entries": bucket.entries,
                        "created_ns": bucket.created_ns,
                    })
                })
                .collect();
            output::print_json(&rows.into());
        }
        Format::Table => {
            let rows: Vec<_> = buckets
                .into_iter()
                .map(|bucket| {
                    let used = output::human_bytes(bucket.used_bytes);
                    vec![
                        bucket.name,
                        bucket.path,
                        bucket.owner,
                        used,
                        bucket.entries.to_string(),
                    ]
                })
                .collect();
            output::print_table(&["NAME", "PATH", "OWNER", "USED", "ENTRIES"], &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn delete(target: &Target, name: &str) -> Result<ExitCode> {
    let client = connect::to_target(target).await?.client;
    match client.call(&DeleteBucket { name: name.into() }).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(FsError::NotFound) => bail!("there is no bucket `{name}`"),
        Err(FsError::NotEmpty) => {
            bail!("bucket `{name}` is not empty: delete its objects first")
        }
        Err(error) => Err(error).with_context(|| format!("cannot delete bucket `{name}`")),
    }
}
