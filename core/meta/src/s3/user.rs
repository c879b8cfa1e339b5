//! S3 users and their access keys: the `USER` and `AKEY` rows and the calls on them.
//!
//! Invariant: an `AKEY` row exists exactly for the keys that its user's row names. Secrets are stored as they are,
//! because SigV4 needs them, and never leave but through `GetKey`. Absent: what a policy means (the gateway).

use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::FsError;
use janusfs_wire::{
    meta::{AccessKey, CreateKey, CreateUser, DeleteKey, DeleteUser, GetKey, User},
    wire_fields,
};

use super::record::{self, Record};
use crate::{Meta, MetaError};

/// Most users; bounds `ListUsers`.
const USER_COUNT_MAX: u32 = 10_000;
/// Longest user name in bytes.
const USER_NAME_MAX_BYTES: usize = 64;
/// Most access keys of one user: enough to rotate, and the user's row stays small.
const KEY_COUNT_MAX: usize = 16;
/// Shortest and longest access key in bytes (3 is what other S3 servers take; the row key is bounded).
const ACCESS_KEY_BYTES: std::ops::RangeInclusive<usize> = 3..=128;
/// Shortest and longest secret in bytes.
const SECRET_KEY_BYTES: std::ops::RangeInclusive<usize> = 8..=128;
/// Longest policy in bytes (AWS allows 20 KiB for a bucket's).
const POLICY_MAX_BYTES: usize = 20 << 10;

/// Value of `USER` name.
#[derive(Clone, PartialEq, Debug)]
struct UserRecord {
    uid: u32,
    gid: u32,
    admin: bool,
    policy: String,
    access_keys: Vec<String>,
    created_ns: i64,
}
wire_fields!(UserRecord {
    uid,
    gid,
    admin,
    policy,
    access_keys,
    created_ns
});

impl Record for UserRecord {
    const NAME: &'static str = "USER";
}

impl UserRecord {
    fn named(self, name: String) -> User {
        let Self {
            uid,
            gid,
            admin,
            policy,
            access_keys,
            created_ns,
        } = self;
        User {
            name,
            uid,
            gid,
            admin,
            policy,
            access_keys,
            created_ns,
        }
    }
}

/// Value of `AKEY` access key.
#[derive(Clone, PartialEq)]
struct KeyRecord {
    user: String,
    secret_key: String,
}
wire_fields!(KeyRecord { user, secret_key });

impl Record for KeyRecord {
    const NAME: &'static str = "AKEY";
}

fn user_key(name: &str) -> Vec<u8> {
    [b"USER", name.as_bytes()].concat()
}

fn access_key_key(access_key: &str) -> Vec<u8> {
    [b"AKEY", access_key.as_bytes()].concat()
}

fn check_user_name(name: &str) -> Result<(), FsError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=USER_NAME_MAX_BYTES).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(FsError::Invalid(format!(
        "a user's name has 1 to {USER_NAME_MAX_BYTES} characters out of A-Z, a-z, 0-9, '.', '_' and '-'"
    )))
}

fn check_keys(access_key: &str, secret_key: &str) -> Result<(), FsError> {
    if !ACCESS_KEY_BYTES.contains(&access_key.len())
        || !access_key
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b',' | b'='))
    {
        return Err(FsError::Invalid(format!(
            "an access key has {} to {} printable ASCII characters other than space, '/', ',' and '='",
            ACCESS_KEY_BYTES.start(),
            ACCESS_KEY_BYTES.end()
        )));
    }
    if !SECRET_KEY_BYTES.contains(&secret_key.len())
        || !secret_key.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(FsError::Invalid(format!(
            "a secret key has {} to {} printable ASCII characters other than space",
            SECRET_KEY_BYTES.start(),
            SECRET_KEY_BYTES.end()
        )));
    }
    Ok(())
}

async fn add_key(
    txn: &mut impl Txn,
    name: &str,
    user: &mut UserRecord,
    access_key: &str,
    secret_key: &str,
) -> Result<(), MetaError> {
    if user.access_keys.len() >= KEY_COUNT_MAX {
        return Err(
            FsError::Invalid(format!("a user has at most {KEY_COUNT_MAX} access keys")).into(),
        );
    }
    let key = access_key_key(access_key);
    if txn.get(&key).await?.is_some() {
        return Err(FsError::Exists.into());
    }
    record::set(
        txn,
        &key,
        &KeyRecord {
            user: name.into(),
            secret_key: secret_key.into(),
        },
    );
    user.access_keys.push(access_key.into());
    record::set(txn, &user_key(name), user);
    Ok(())
}

async fn user(txn: &mut impl Txn, name: &str) -> Result<UserRecord, MetaError> {
    Ok(record::get(txn, &user_key(name))
        .await?
        .ok_or(FsError::NotFound)?)
}

impl<K: Kv> Meta<K> {
    /// Makes a user, with both key texts given also its first access key.
    pub(crate) async fn create_user(&self, call: CreateUser) -> Result<User, MetaError> {
        check_user_name(&call.name)?;
        if call.policy.len() > POLICY_MAX_BYTES {
            return Err(
                FsError::Invalid(format!("a policy has at most {POLICY_MAX_BYTES} bytes")).into(),
            );
        }
        let with_key = !call.access_key.is_empty() || !call.secret_key.is_empty();
        if with_key {
            check_keys(&call.access_key, &call.secret_key)?;
        }
        let (call, created_ns) = (&call, clock::now_ns());
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let key = user_key(&call.name);
                if txn.get(&key).await?.is_some() {
                    return Err(FsError::Exists.into());
                }
                if txn
                    .range_snapshot(b"USER", b"USES", USER_COUNT_MAX)
                    .await?
                    .len()
                    >= usize::try_from(USER_COUNT_MAX).unwrap_or(usize::MAX)
                {
                    return Err(FsError::Invalid(format!("at most {USER_COUNT_MAX} users")).into());
                }
                let mut user = UserRecord {
                    uid: call.uid,
                    gid: call.gid,
                    admin: call.admin,
                    policy: call.policy.clone(),
                    access_keys: Vec::new(),
                    created_ns,
                };
                record::set(txn, &key, &user);
                if with_key {
                    add_key(
                        txn,
                        &call.name,
                        &mut user,
                        &call.access_key,
                        &call.secret_key,
                    )
                    .await?;
                }
                Ok(user.named(call.name.clone()))
            })
        })
        .await
    }

    /// Lists users by name.
    pub(crate) async fn list_users(&self) -> Result<Vec<User>, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let rows =
                    record::scan::<UserRecord>(txn, b"USER", b"USER", USER_COUNT_MAX).await?;
                rows.into_iter()
                    .map(|(name, user)| Ok(user.named(text(&name)?)))
                    .collect()
            })
        })
        .await
    }

    /// Removes a user and its keys.
    pub(crate) async fn delete_user(&self, call: DeleteUser) -> Result<(), MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                for access_key in user(txn, &call.name).await?.access_keys {
                    txn.clear(&access_key_key(&access_key));
                }
                txn.clear(&user_key(&call.name));
                Ok(())
            })
        })
        .await
    }

    /// Adds an access key to a user.
    pub(crate) async fn create_key(&self, call: CreateKey) -> Result<(), MetaError> {
        check_keys(&call.access_key, &call.secret_key)?;
        let call = &call;
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let mut user = user(txn, &call.user).await?;
                add_key(
                    txn,
                    &call.user,
                    &mut user,
                    &call.access_key,
                    &call.secret_key,
                )
                .await
            })
        })
        .await
    }

    /// Removes an access key.
    pub(crate) async fn delete_key(&self, call: DeleteKey) -> Result<(), MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let key = access_key_key(&call.access_key);
                let stored: KeyRecord = record::get(txn, &key).await?.ok_or(FsError::NotFound)?;
                txn.clear(&key);
                let mut user = user(txn, &stored.user).await?;
                user.access_keys
                    .retain(|access_key| *access_key != call.access_key);
                record::set(txn, &user_key(&stored.user), &user);
                Ok(())
            })
        })
        .await
    }

    /// Finds a key with its secret.
    pub(crate) async fn get_key(&self, call: GetKey) -> Result<AccessKey, MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let key = access_key_key(&call.access_key);
                let stored: KeyRecord = record::get(txn, &key).await?.ok_or(FsError::NotFound)?;
                Ok(AccessKey {
                    access_key: call.access_key.clone(),
                    secret_key: stored.secret_key,
                    user: user(txn, &stored.user).await?.named(stored.user),
                })
            })
        })
        .await
    }
}

fn text(name: &[u8]) -> Result<String, FsError> {
    String::from_utf8(name.to_vec())
        .map_err(|_| FsError::Corrupt("a user's name is not UTF-8".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_keys_have_their_limits() {
        assert!(check_user_name("a.B_9-").is_ok());
        for bad in ["", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(check_user_name(bad).is_err(), "{bad}");
        }
        assert!(check_keys("abc", "12345678").is_ok());
        for (access_key, secret) in [("ab", "12345678"), ("abc", "1234567"), ("a/c", "12345678")] {
            assert!(check_keys(access_key, secret).is_err());
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(
            uid: u32, gid: u32, admin: bool, policy in ".{0,20}",
            access_keys in proptest::collection::vec("[a-z]{3,9}", 0..4), created_ns: i64,
        ) {
            let user = UserRecord { uid, gid, admin, policy: policy.clone(), access_keys, created_ns };
            prop_assert_eq!(record::there_and_back(&user), user);
            let key = KeyRecord { user: policy.clone(), secret_key: policy };
            prop_assert!(record::there_and_back(&key) == key);
        }
    }
}
