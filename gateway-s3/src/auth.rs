//! Who signs a request: access keys from the metadata service, briefly cached, and the identity passed to operations.
//!
//! Invariant: an operation runs only with an [`Identity`] in its extensions; [`Access`] refuses the anonymous. A removed
//! or changed key stops working within [`KEY_TTL_SECONDS`]. Absent: policies; a bucket is for its owner and admins.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use janusfs_client::Client;
use janusfs_env::clock;
use janusfs_types::{Credentials, FsError};
use janusfs_wire::meta::{AccessKey, GetKey};
use parking_lot::Mutex;
use s3s::{
    S3Request, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    s3_error,
};

use crate::error::{Subject, s3_error as from_fs};

/// For how long a key is believed without asking again, in seconds.
const KEY_TTL_SECONDS: u64 = 5;
/// Keys remembered at once; more push the cache out.
const KEYS_MAX: usize = 1024;

/// The user behind a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// Name of the S3 user.
    pub(crate) name: String,
    /// POSIX identity of what the user creates.
    pub(crate) who: Credentials,
    /// Whether the user may use every bucket.
    pub(crate) admin: bool,
}

/// Returns the user behind an operation.
pub(crate) fn identity<T>(request: &S3Request<T>) -> S3Result<Identity> {
    match request.extensions.get::<Identity>() {
        Some(identity) => Ok(identity.clone()),
        None => Err(s3_error!(AccessDenied, "a signed request is required")),
    }
}

/// Access keys by id, as of at most [`KEY_TTL_SECONDS`] ago.
pub(crate) struct KeyCache {
    client: Client,
    keys: Mutex<HashMap<String, (Instant, Arc<AccessKey>)>>,
}

impl KeyCache {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            keys: Mutex::new(HashMap::new()),
        }
    }

    async fn get(&self, access_key: &str) -> S3Result<Arc<AccessKey>> {
        let ttl = Duration::from_secs(KEY_TTL_SECONDS);
        let asked = clock::now();
        if let Some((since, key)) = self.keys.lock().get(access_key)
            && asked.saturating_duration_since(*since) < ttl
        {
            return Ok(key.clone());
        }
        let request = GetKey {
            access_key: access_key.to_owned(),
        };
        let key = match self.client.call(&request).await {
            Ok(key) => Arc::new(key),
            Err(error) => {
                self.keys.lock().remove(access_key);
                return Err(match error {
                    FsError::NotFound => s3_error!(InvalidAccessKeyId),
                    other => from_fs(other, Subject::Service),
                });
            }
        };
        let mut keys = self.keys.lock();
        if keys.len() >= KEYS_MAX {
            keys.retain(|_, (since, _)| asked.saturating_duration_since(*since) < ttl);
        }
        if keys.len() >= KEYS_MAX {
            keys.clear();
        }
        keys.insert(access_key.to_owned(), (asked, key.clone()));
        Ok(key)
    }
}

/// Gives `s3s` the secret that a signature is checked with.
pub(crate) struct Auth(pub(crate) Arc<KeyCache>);

impl S3Auth for Auth {
    fn get_secret_key<'life0, 'life1, 'async_trait>(
        &'life0 self,
        access_key: &'life1 str,
    ) -> Pin<Box<dyn Future<Output = S3Result<SecretKey>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let key = self.0.get(access_key).await?;
            Ok(SecretKey::from(key.secret_key.as_str()))
        })
    }
}

/// Refuses anonymous requests and notes who signed the others.
pub(crate) struct Access(pub(crate) Arc<KeyCache>);

impl S3Access for Access {
    fn check<'life0, 'life1, 'life2, 'async_trait>(
        &'life0 self,
        context: &'life1 mut S3AccessContext<'life2>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let Some(credentials) = context.credentials() else {
                return Err(s3_error!(AccessDenied, "a signed request is required"));
            };
            let key = self.0.get(&credentials.access_key).await?;
            let user = &key.user;
            let identity = Identity {
                name: user.name.clone(),
                who: Credentials {
                    uid: user.uid,
                    gid: user.gid,
                },
                admin: user.admin,
            };
            context.extensions_mut().insert(identity);
            Ok(())
        })
    }
}
