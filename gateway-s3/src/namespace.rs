//! The gateway's view of the namespace: buckets and who may use them, and limits shared by all requests.
//!
//! Invariant: every operation on a bucket passes through [`Gateway::bucket`], which decides access. What it remembers of a
//! bucket is at most [`BUCKET_TTL_MS`] old and only saves a look-up: the transaction that follows looks again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use janusfs_client::Client;
use janusfs_env::clock;
use janusfs_wire::meta::{Bucket, GetBucket};
use parking_lot::Mutex;
use s3s::{S3Result, s3_error};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    auth::Identity,
    error::{Subject, s3_error as from_fs},
    hashing::Hashing,
};

/// For how long a bucket is believed without asking again, in milliseconds.
const BUCKET_TTL_MS: u64 = 1000;
/// Buckets remembered at once; more push the cache out.
const BUCKETS_MAX: usize = 1024;
/// Bodies received at once: each holds a few chunks and hash batches, about 20 MiB.
const UPLOADS_MAX: usize = 64;
/// How long a body waits for one of [`UPLOADS_MAX`] places, in seconds.
const UPLOAD_WAIT_SECONDS: u64 = 20;
/// Bodies up to this size do not count as uploads: they are held in one piece, in bytes.
const SMALL_BODY_BYTES: u64 = 1 << 20;

/// What operations work with.
pub(crate) struct Gateway {
    /// The way to metadata and bytes.
    pub(crate) client: Client,
    /// The region told to clients.
    pub(crate) region: Option<String>,
    buckets: Mutex<HashMap<String, (Instant, Bucket)>>,
    uploads: Semaphore,
    /// Hashes the bodies of uploads.
    pub(crate) hashing: Arc<Hashing>,
}

impl Gateway {
    pub(crate) fn new(client: Client, region: Option<String>) -> Self {
        Self {
            client,
            region,
            buckets: Mutex::new(HashMap::new()),
            uploads: Semaphore::new(UPLOADS_MAX),
            hashing: Hashing::new(),
        }
    }

    /// Finds a bucket that the user may use. `expected_owner` is the request's guard against the wrong bucket.
    pub(crate) async fn bucket(
        &self,
        identity: &Identity,
        name: &str,
        expected_owner: Option<&str>,
    ) -> S3Result<Bucket> {
        let bucket = match self.remembered(name) {
            Some(bucket) => bucket,
            None => self.fresh(name).await?,
        };
        let expected = expected_owner.is_none_or(|owner| owner == bucket.owner);
        if may_use(identity, &bucket) && expected {
            Ok(bucket)
        } else {
            Err(s3_error!(AccessDenied))
        }
    }

    /// Drops what is remembered of a bucket.
    pub(crate) fn forget(&self, name: &str) {
        self.buckets.lock().remove(name);
    }

    /// Asks for a bucket and remembers the answer.
    pub(crate) async fn fresh(&self, name: &str) -> S3Result<Bucket> {
        let asked = clock::now();
        let bucket = match self
            .client
            .call(&GetBucket {
                name: name.to_owned(),
            })
            .await
        {
            Ok(bucket) => bucket,
            Err(error) => {
                self.forget(name);
                return Err(from_fs(error, Subject::Bucket));
            }
        };
        let mut buckets = self.buckets.lock();
        if buckets.len() >= BUCKETS_MAX {
            buckets.clear();
        }
        buckets.insert(name.to_owned(), (asked, bucket.clone()));
        Ok(bucket)
    }

    fn remembered(&self, name: &str) -> Option<Bucket> {
        let buckets = self.buckets.lock();
        let (since, bucket) = buckets.get(name)?;
        let age = clock::now().saturating_duration_since(*since);
        (age < Duration::from_millis(BUCKET_TTL_MS)).then(|| bucket.clone())
    }

    /// Waits for a place to receive a body; `len` is its length where known.
    pub(crate) async fn upload_place(
        &self,
        len: Option<u64>,
    ) -> S3Result<Option<SemaphorePermit<'_>>> {
        if len.is_some_and(|len| len <= SMALL_BODY_BYTES) {
            return Ok(None);
        }
        let wait = Duration::from_secs(UPLOAD_WAIT_SECONDS);
        match clock::timeout(wait, self.uploads.acquire()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            _ => Err(s3_error!(SlowDown, "too many uploads at once: try again")),
        }
    }
}

/// Decides who may use a bucket: its owner, and admins.
pub(crate) fn may_use(identity: &Identity, bucket: &Bucket) -> bool {
    identity.admin || identity.name == bucket.owner
}
