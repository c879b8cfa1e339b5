//! The one retry loop: run a transaction's body, commit, and run it again when another transaction was in the way.
//!
//! Invariants: the body is run again only when nothing of the earlier attempt was applied (conflict, too old), or when
//! the caller said that applying it twice is harmless ([`run_idempotent`]). Both the number of attempts and the time are
//! bounded. Absent: any retry of an unavailable store; its caller decides.

use std::{
    future::Future,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use janusfs_env::{clock, rng};

use crate::kv::{Durability, Kv, KvError, Txn};

/// Most attempts of one transaction. Optimistic transactions lose to another commit, so 64 losses in a row mean a key
/// that is too hot, not bad luck.
pub const ATTEMPTS_MAX: u32 = 64;
/// Longest time that attempts go on: the deadline of a metadata call.
pub const RETRY_TIME_MAX: Duration = Duration::from_secs(10);
/// Back-off is drawn from zero to this, doubled with every attempt.
const BACKOFF_FIRST: Duration = Duration::from_micros(200);
/// Bound of the doubling.
const BACKOFF_MAX: Duration = Duration::from_millis(50);
/// Attempts that follow at once: the first losses are usually to a transaction that is already over.
const ATTEMPTS_AT_ONCE: u32 = 2;

/// Lets the retry loop see the store's error inside the caller's.
pub trait RetryClass {
    /// Returns the store's error, if that is what this is.
    fn kv(&self) -> Option<&KvError>;
}

impl RetryClass for KvError {
    fn kv(&self) -> Option<&KvError> {
        Some(self)
    }
}

/// The transaction of one attempt, as the body sees it: it derefs to the transaction and is one.
///
/// `'env` is the life of what the body borrows from around it. That it is part of the argument's type is what lets the
/// compiler see that the borrowed things outlive the attempt.
#[derive(Debug)]
pub struct Attempt<'env, T> {
    txn: T,
    env: PhantomData<&'env ()>,
}

impl<T> Deref for Attempt<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.txn
    }
}

impl<T> DerefMut for Attempt<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.txn
    }
}

impl<T: Txn> Txn for Attempt<'_, T> {
    fn get(&mut self, key: &[u8]) -> impl Future<Output = Result<Option<Bytes>, KvError>> + Send {
        self.txn.get(key)
    }
    fn get_snapshot(
        &mut self,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<Bytes>, KvError>> + Send {
        self.txn.get_snapshot(key)
    }
    fn get_many_snapshot(
        &mut self,
        keys: &[Vec<u8>],
    ) -> impl Future<Output = Result<Vec<Option<Bytes>>, KvError>> + Send {
        self.txn.get_many_snapshot(keys)
    }
    fn range(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(Bytes, Bytes)>, KvError>> + Send {
        self.txn.range(start, end, limit)
    }
    fn range_snapshot(
        &mut self,
        start: &[u8],
        end: &[u8],
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(Bytes, Bytes)>, KvError>> + Send {
        self.txn.range_snapshot(start, end, limit)
    }
    fn add_read_conflict(&mut self, key: &[u8]) {
        self.txn.add_read_conflict(key);
    }
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.txn.set(key, value);
    }
    fn clear(&mut self, key: &[u8]) {
        self.txn.clear(key);
    }
    fn clear_range(&mut self, start: &[u8], end: &[u8]) {
        self.txn.clear_range(start, end);
    }
    fn atomic_add(&mut self, key: &[u8], amount: i64) {
        self.txn.atomic_add(key, amount);
    }
    fn atomic_max(&mut self, key: &[u8], value: u64) {
        self.txn.atomic_max(key, value);
    }
    fn commit(self, durability: Durability) -> impl Future<Output = Result<(), KvError>> + Send {
        self.txn.commit(durability)
    }
}

/// Runs `body` in a transaction and commits it, again after a conflict: at most [`ATTEMPTS_MAX`] times and for
/// [`RETRY_TIME_MAX`]. The body must have no effect outside its transaction. Needs a tokio context when it must wait.
///
/// An error of the body that is not the store's drops the transaction: nothing is applied. The body may borrow from
/// around it: `run(&kv, Durability::Soon, |txn| Box::pin(async move { txn.get(name).await }))`.
///
/// # Errors
/// The body's own, or the store's: the last conflict when attempts are used up, [`KvError::CommitUnknown`] at once.
pub async fn run<'env, K, T, E, F>(kv: &K, durability: Durability, body: F) -> Result<T, E>
where
    K: Kv,
    E: From<KvError> + RetryClass,
    F: for<'a> FnMut(&'a mut Attempt<'env, K::Txn>) -> BoxFuture<'a, Result<T, E>> + Send,
{
    attempt_all(kv, durability, false, body).await
}

/// As [`run`], for a body that may be applied twice without harm: an unknown outcome is run again too.
///
/// # Errors
/// As [`run`]; [`KvError::CommitUnknown`] only when attempts are used up.
pub async fn run_idempotent<'env, K, T, E, F>(
    kv: &K,
    durability: Durability,
    body: F,
) -> Result<T, E>
where
    K: Kv,
    E: From<KvError> + RetryClass,
    F: for<'a> FnMut(&'a mut Attempt<'env, K::Txn>) -> BoxFuture<'a, Result<T, E>> + Send,
{
    attempt_all(kv, durability, true, body).await
}

async fn attempt_all<'env, K, T, E, F>(
    kv: &K,
    durability: Durability,
    idempotent: bool,
    mut body: F,
) -> Result<T, E>
where
    K: Kv,
    E: From<KvError> + RetryClass,
    F: for<'a> FnMut(&'a mut Attempt<'env, K::Txn>) -> BoxFuture<'a, Result<T, E>> + Send,
{
    let started = clock::now();
    let mut attempts = 0;
    loop {
        let mut attempt = Attempt {
            txn: kv.begin(),
            env: PhantomData,
        };
        let done = match body(&mut attempt).await {
            Ok(value) => attempt
                .txn
                .commit(durability)
                .await
                .map(|()| value)
                .map_err(E::from),
            Err(error) => {
                // Gives the snapshot back before the wait.
                drop(attempt);
                Err(error)
            }
        };
        attempts += 1;
        let again = match done.as_ref().err().map(RetryClass::kv) {
            None => false,
            Some(Some(KvError::Conflict | KvError::TooOld)) => true,
            Some(Some(KvError::CommitUnknown(_))) => idempotent,
            Some(Some(KvError::TooLarge(_) | KvError::Unavailable(_)) | None) => false,
        };
        if !again || attempts >= ATTEMPTS_MAX || started.elapsed() >= RETRY_TIME_MAX {
            return done;
        }
        // The result may hold something that must not live across the wait.
        drop(done);
        if attempts > ATTEMPTS_AT_ONCE {
            clock::sleep(backoff(attempts - ATTEMPTS_AT_ONCE)).await;
        }
    }
}

/// Draws the wait before the next attempt: full jitter, so that losers do not meet again.
fn backoff(round: u32) -> Duration {
    let bound = BACKOFF_FIRST
        .saturating_mul(1 << round.min(16))
        .min(BACKOFF_MAX);
    let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(rng::random_u64() % bound_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::MemKv;

    #[derive(Debug, thiserror::Error)]
    enum LookupError {
        #[error(transparent)]
        Kv(#[from] KvError),
        #[error("absent")]
        Absent,
    }

    impl RetryClass for LookupError {
        fn kv(&self) -> Option<&KvError> {
            match self {
                LookupError::Kv(error) => Some(error),
                LookupError::Absent => None,
            }
        }
    }

    async fn lookup<T: Txn>(txn: &mut T, key: &[u8]) -> Result<Bytes, LookupError> {
        txn.get(key).await?.ok_or(LookupError::Absent)
    }

    /// A caller as the metadata service is one: generic, borrowing, boxed as a `Send` future.
    struct Caller<K> {
        kv: K,
    }

    impl<K: Kv> Caller<K> {
        fn copy<'a>(
            &'a self,
            from: &'a [u8],
            to: &'a [String],
        ) -> BoxFuture<'a, Result<u32, LookupError>> {
            Box::pin(async move {
                let mut attempts = 0;
                let done: Result<(), LookupError> = run(&self.kv, Durability::Soon, |txn| {
                    attempts += 1;
                    Box::pin(async move {
                        let value = lookup(txn, from).await?;
                        for key in to {
                            self.write(txn, key, &value).await?;
                        }
                        Ok(())
                    })
                })
                .await;
                done.map(|()| attempts)
            })
        }

        async fn write(
            &self,
            txn: &mut K::Txn,
            key: &str,
            value: &[u8],
        ) -> Result<(), LookupError> {
            txn.get(key.as_bytes()).await?;
            txn.set(key.as_bytes(), value);
            Ok(())
        }
    }

    fn detached<K: Kv>(kv: K) -> BoxFuture<'static, Result<u32, LookupError>> {
        Box::pin(async move {
            let caller = Caller { kv };
            let to = [String::from("b"), String::from("c")];
            caller.copy(b"a", &to).await
        })
    }

    #[tokio::test]
    async fn bodies_borrow_and_futures_are_send() {
        let kv = MemKv::default();
        assert!(matches!(
            detached(kv.clone()).await,
            Err(LookupError::Absent)
        ));
        let mut txn = kv.begin();
        txn.set(b"a", b"1");
        txn.commit(Durability::Soon).await.unwrap();
        assert_eq!(detached(kv.clone()).await.unwrap(), 1);
        assert_eq!(kv.begin().range(b"b", b"z", 9).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_run_again_only_when_idempotent() {
        let unknown = || KvError::CommitUnknown("lost".into());
        let mut attempts = 0;
        let done: Result<(), KvError> = run(&MemKv::default(), Durability::Soon, |_| {
            attempts += 1;
            Box::pin(async move { Err(unknown()) })
        })
        .await;
        assert!(matches!(done, Err(KvError::CommitUnknown(_))));
        assert_eq!(attempts, 1);
        let mut attempts = 0;
        let done: Result<(), KvError> = run_idempotent(&MemKv::default(), Durability::Soon, |_| {
            attempts += 1;
            let first = attempts == 1;
            Box::pin(async move { if first { Err(unknown()) } else { Ok(()) } })
        })
        .await;
        assert!(done.is_ok());
        assert_eq!(attempts, 2);
    }

    #[test]
    fn backoff_is_bounded() {
        assert!((0..200).all(|round| backoff(round) < BACKOFF_MAX));
    }
}
