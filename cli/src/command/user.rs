//! `janusfs user` and `janusfs key`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use janusfs_types::FsError;
use janusfs_wire::meta::{CreateKey, CreateUser, DeleteKey, DeleteUser, ListUsers};
use serde_json::json;

use crate::{
    args::{Format, Target},
    connect, data_dir, output,
};

pub(crate) async fn create(
    target: &Target,
    name: &str,
    keys: Option<(String, String)>,
    (uid, gid): (u32, u32),
    admin: bool,
) -> Result<ExitCode> {
    let client = connect::to_target(target).await?.client;
    let given = keys.is_some();
    let (access_key, secret_key) = keys.unwrap_or_else(data_dir::fresh_key);
    let request = CreateUser {
        name: name.into(),
        uid,
        gid,
        admin,
        policy: String::new(),
        access_key: access_key.clone(),
        secret_key: secret_key.clone(),
    };
    match client.call(&request).await {
        Ok(_) => {}
        Err(FsError::Exists) => bail!("user `{name}` or that access key exists already"),
        Err(error) => return Err(error).with_context(|| format!("cannot make user `{name}`")),
    }
    println!("user {name} (uid {uid}, gid {gid})");
    if !given {
        print_key(&access_key, &secret_key);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(target: &Target, format: Format) -> Result<ExitCode> {
    let client = connect::to_target(target).await?.client;
    let users = client.call(&ListUsers {}).await?;
    match format {
        Format::Json => {
            let rows: Vec<_> = users
                .iter()
                .map(|user| {
                    json!({
                        "name": user.name, "uid": user.uid, "gid": user.gid, "admin": user.admin,
                        "access_keys": user.access_keys, "created_ns": user.created_ns,
                    })
                })
                .collect();
            output::print_json(&rows.into());
        }
        Format::Table => {
            let rows: Vec<_> = users
                .into_iter()
                .map(|user| {
                    let role = if user.admin { "admin" } else { "user" };
                    let ids = format!("{}:{}", user.uid, user.gid);
                    vec![user.name, ids, role.into(), user.access_keys.join(",")]
                })
                .collect();
            output::print_table(&["NAME", "UID:GID", "ROLE", "ACCESS KEYS"], &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn delete(target: &Target, name: &str) -> Result<ExitCode> {
    if name == "root" {
        bail!("the root user stays: its keys are in the data directory");
    }
    let client = connect::to_target(target).await?.client;
    match client.call(&DeleteUser { name: name.into() }).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(FsError::NotFound) => bail!("there is no user `{name}`"),
        Err(error) => Err(error).with_context(|| format!("cannot delete user `{name}`")),
    }
}

pub(crate) async fn create_key(target: &Target, user: &str) -> Result<ExitCode> {
    let client = connect::to_target(target).await?.client;
    let (access_key, secret_key) = data_dir::fresh_key();
    let request = CreateKey {
        user: user.into(),
        access_key: access_key.clone(),
        secret_key: secret_key.clone(),
    };
    match client.call(&request).await {
        Ok(()) => {}
        Err(FsError::NotFound) => bail!("there is no user `{user}`"),
        Err(error) => return Err(error).with_context(|| format!("cannot make a key for `{user}`")),
    }
    print_key(&access_key, &secret_key);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn delete_key(target: &Target, access_key: &str) -> Result<ExitCode> {
    let client = connect::to_target(target).await?.client;
    match client
        .call(&DeleteKey {
            access_key: access_key.into(),
        })
        .await
    {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(FsError::NotFound) => bail!("there is no access key `{access_key}`"),
        Err(error) => Err(error).context("cannot delete the key"),
    }
}

/// The only time a secret is shown.
fn print_key(access_key: &str, secret_key: &str) {
    println!("AWS_ACCESS_KEY_ID={access_key}");
    println!("AWS_SECRET_ACCESS_KEY={secret_key}");
}
