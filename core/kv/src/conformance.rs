//! What every backend must do, as one suite: [`all`].
//!
//! Owns the executable form of the contract in the crate's docs. Invariant: every check starts from a fresh store and
//! panics with what it saw. Absent: durability across a restart, which only a backend can arrange.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use janusfs_env::{clock, tasks};
use janusfs_types::limits::{KV_KEY_MAX_BYTES, KV_TRANSACTION_MAX_BYTES, KV_VALUE_MAX_BYTES};

use crate::{ATTEMPTS_MAX, Durability, Kv, KvError, RETRY_TIME_MAX, RetryClass, Txn, run};

/// Runs the whole suite over stores from `make`, each of them fresh and empty. Needs a tokio runtime; with several
/// workers the concurrent checks mean more.
///
/// # Panics
/// At the first broken promise.
pub async fn all<K: Kv>(make: impl Fn() -> K) {
    read_your_writes(&make()).await;
    ranges_are_ordered_and_cut(&make()).await;
    ranges_merge_own_writes(&make()).await;
    snapshot_stays(&make()).await;
    many_keys_at_once(&make()).await;
    blind_writes_do_not_conflict(&make()).await;
    reads_conflict(&make()).await;
    phantoms_conflict(&make()).await;
    cut_range_conflicts_on_the_seen_part(&make()).await;
    snapshot_reads_do_not_conflict(&make()).await;
    added_conflicts_conflict(&make()).await;
    clears_conflict(&make()).await;
    large_clear_range(&make()).await;
    atomics(&make()).await;
    atomics_do_not_conflict(Arc::new(make())).await;
    limits(&make()).await;
    write_skew_is_prevented(&make()).await;
    transfers_keep_the_sum(Arc::new(make())).await;
    run_retries_conflicts(&make()).await;
    run_stops(&make()).await;
    sync_returns(&make()).await;
}

async fn put<K: Kv>(kv: &K, pairs: &[(&str, &str)]) {
    let mut txn = kv.begin();
    for (key, value) in pairs {
        txn.set(key.as_bytes(), value.as_bytes());
    }
    txn.commit(Durability::Soon)
        .await
        .expect("a blind write commits");
}

async fn get<T: Txn>(txn: &mut T, key: &str) -> Option<String> {
    let value = txn.get(key.as_bytes()).await.expect("a key is read");
    value.map(|value| text(&value))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn texts(pairs: Vec<(Bytes, Bytes)>) -> String {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(k, v)| format!("{}={}", text(k), text(v)))
        .collect();
    pairs.join(" ")
}

async fn range<T: Txn>(txn: &mut T, start: &str, end: &str, limit: u32) -> String {
    texts(
        txn.range(start.as_bytes(), end.as_bytes(), limit)
            .await
            .expect("a range is read"),
    )
}

async fn commit<T: Txn>(txn: T) {
    txn.commit(Durability::Soon)
        .await
        .expect("the transaction commits");
}

async fn conflicts<T: Txn>(mut txn: T) {
    txn.set(b"only-writers-are-checked", b"");
    let done = txn.commit(Durability::Soon).await;
    assert!(
        matches!(done, Err(KvError::Conflict)),
        "expected a conflict, got {done:?}"
    );
}

async fn does_not_conflict<T: Txn>(mut txn: T) {
    txn.set(b"only-writers-are-checked", b"");
    commit(txn).await;
}

async fn read_your_writes<K: Kv>(kv: &K) {
    put(kv, &[("a", "1"), ("b", "2"), ("c", "3")]).await;
    let mut txn = kv.begin();
    txn.set(b"a", b"new");
    txn.clear(b"b");
    assert_eq!(get(&mut txn, "a").await.as_deref(), Some("new"));
    assert_eq!(get(&mut txn, "b").await, None);
    assert_eq!(get(&mut txn, "c").await.as_deref(), Some("3"));
    txn.clear_range(b"a", b"d");
    assert_eq!(get(&mut txn, "c").await, None);
    txn.set(b"c", b"again");
    assert_eq!(get(&mut txn, "c").await.as_deref(), Some("again"));
    let mut other = kv.begin();
    assert_eq!(
        range(&mut other, "a", "d", 9).await,
        "a=1 b=2 c=3",
        "nothing shows before commit"
    );
    commit(txn).await;
    assert_eq!(range(&mut kv.begin(), "a", "d", 9).await, "c=again");
    drop(kv.begin());
    let mut dropped = kv.begin();
    dropped.set(b"a", b"never");
    drop(dropped);
    assert_eq!(
        get(&mut kv.begin(), "a").await,
        None,
        "a dropped transaction writes nothing"
    );
}

async fn ranges_are_ordered_and_cut<K: Kv>(kv: &K) {
    put(
        kv,
        &[("b", "2"), ("a\0", "1"), ("a", "0"), ("d", "4"), ("c", "3")],
    )
    .await;
    let txn = &mut kv.begin();
    assert_eq!(range(txn, "a", "z", 99).await, "a=0 a\0=1 b=2 c=3 d=4");
    assert_eq!(
        range(txn, "a", "d", 99).await,
        "a=0 a\0=1 b=2 c=3",
        "the end is out"
    );
    assert_eq!(
        range(txn, "a\0", "z", 2).await,
        "a\0=1 b=2",
        "the start is in"
    );
    assert_eq!(range(txn, "a", "z", 0).await, "");
    assert_eq!(
        range(txn, "d", "a", 9).await,
        "",
        "an upside-down range is empty"
    );
    assert_eq!(range(txn, "x", "z", 9).await, "");
}

async fn ranges_merge_own_writes<K: Kv>(kv: &K) {
    put(
        kv,
        &[("a", "1"), ("c", "3"), ("e", "5"), ("g", "7"), ("i", "9")],
    )
    .await;
    let txn = &mut kv.begin();
    txn.clear_range(b"e", b"h");
    txn.set(b"b", b"own");
    txn.set(b"c", b"own");
    txn.set(b"f", b"own");
    txn.clear(b"a");
    txn.set(b"z", b"own");
    assert_eq!(
        range(txn, "a", "zz", 99).await,
        "b=own c=own f=own i=9 z=own"
    );
    assert_eq!(range(txn, "a", "zz", 3).await, "b=own c=own f=own");
    assert_eq!(range(txn, "d", "zz", 2).await, "f=own i=9");
    let snapshot = txn
        .range_snapshot(b"a", b"zz", 99)
        .await
        .expect("a range is read");
    assert_eq!(texts(snapshot), "b=own c=own f=own i=9 z=own");
}

async fn snapshot_stays<K: Kv>(kv: &K) {
    put(kv, &[("a", "1"), ("b", "1")]).await;
    let mut txn = kv.begin();
    assert_eq!(get(&mut txn, "a").await.as_deref(), Some("1"));
    put(kv, &[("a", "2"), ("b", "2"), ("c", "2")]).await;
    assert_eq!(range(&mut txn, "a", "z", 9).await, "a=1 b=1");
    assert_eq!(get(&mut txn, "b").await.as_deref(), Some("1"));
    commit(txn).await;
    assert_eq!(range(&mut kv.begin(), "a", "z", 9).await, "a=2 b=2 c=2");
}

async fn many_keys_at_once<K: Kv>(kv: &K) {
    let pairs: Vec<(String, String)> = (0..200)
        .map(|number| (format!("k{number:03}"), format!("v{number}")))
        .collect();
    let lent: Vec<(&str, &str)> = pairs
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect();
    put(kv, &lent).await;
    let mut txn = kv.begin();
    assert_eq!(get(&mut txn, "k000").await.as_deref(), Some("v0"));
    put(kv, &[("k001", "later"), ("k500", "later")]).await;
    txn.set(b"k002", b"own");
    txn.clear(b"k003");
    txn.atomic_add(b"new", 1);
    // In order and out of it, twice, present and absent.
    let sorted = ["absent", "k001", "k002", "k003", "k150", "k500", "new"];
    let one = 1_i64.to_le_bytes();
    let values: [Option<&[u8]>; 7] = [
        None,
        Some(b"v1"),
        Some(b"own"),
        None,
        Some(b"v150"),
        None,
        Some(&one),
    ];
    for order in [
        [0, 1, 2, 3, 4, 5, 6],
        [4, 6, 2, 2, 0, 5, 1],
        [6, 5, 4, 3, 2, 1, 0],
    ] {
        let keys: Vec<Vec<u8>> = order.iter().map(|&at: &usize| sorted[at].into()).collect();
        let read = txn.get_many_snapshot(&keys).await.expect("keys are read");
        let expected: Vec<_> = order.iter().map(|&at| values[at]).collect();
        let read: Vec<_> = read.iter().map(|value| value.as_deref()).collect();
        assert_eq!(read, expected);
    }
    let all: Vec<Vec<u8>> = pairs
        .iter()
        .map(|(key, _)| key.clone().into_bytes())
        .collect();
    let mut other = kv.begin();
    let read = other.get_many_snapshot(&all).await.expect("keys are read");
    assert!(read.iter().all(Option::is_some));
    assert_eq!(read[1].as_deref(), Some(&b"later"[..]));
    assert_eq!(other.get_many_snapshot(&[]).await.expect("no keys"), []);
    // What was read so does not conflict.
    other.set(b"x", b"1");
    put(kv, &[("k001", "last")]).await;
    does_not_conflict(other).await;
}

async fn blind_writes_do_not_conflict<K: Kv>(kv: &K) {
    let (mut first, mut second) = (kv.begin(), kv.begin());
    first.set(b"a", b"first");
    second.set(b"a", b"second");
    second.clear_range(b"x", b"y");
    first.set(b"x", b"first");
    commit(second).await;
    commit(first).await;
    assert_eq!(range(&mut kv.begin(), "a", "z", 9).await, "a=first x=first");
}

async fn reads_conflict<K: Kv>(kv: &K) {
    let (mut present, mut other) = (kv.begin(), kv.begin());
    get(&mut present, "a").await;
    get(&mut other, "b").await;
    put(kv, &[("a", "1")]).await;
    conflicts(present).await;
    does_not_conflict(other).await;
    // Nothing of the loser was applied, not even what it wrote elsewhere.
    let mut loser = kv.begin();
    get(&mut loser, "a").await;
    loser.set(b"loser", b"1");
    put(kv, &[("a", "2")]).await;
    conflicts(loser).await;
    assert_eq!(get(&mut kv.begin(), "loser").await, None);
    // Who only reads is served from one snapshot and needs no check.
    let mut reader = kv.begin();
    get(&mut reader, "a").await;
    put(kv, &[("a", "3")]).await;
    commit(reader).await;
}

async fn phantoms_conflict<K: Kv>(kv: &K) {
    put(kv, &[("a", "1"), ("c", "1")]).await;
    let (mut inside, mut outside) = (kv.begin(), kv.begin());
    range(&mut inside, "a", "d", 9).await;
    range(&mut outside, "c", "d", 9).await;
    put(kv, &[("b", "new")]).await;
    conflicts(inside).await;
    does_not_conflict(outside).await;
    let mut removed = kv.begin();
    range(&mut removed, "a", "d", 9).await;
    let mut txn = kv.begin();
    txn.clear(b"c");
    commit(txn).await;
    conflicts(removed).await;
}

async fn cut_range_conflicts_on_the_seen_part<K: Kv>(kv: &K) {
    put(kv, &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]).await;
    let (mut last_seen, mut unseen) = (kv.begin(), kv.begin());
    assert_eq!(range(&mut last_seen, "a", "z", 2).await, "a=1 b=2");
    assert_eq!(range(&mut unseen, "a", "z", 2).await, "a=1 b=2");
    put(kv, &[("c", "changed"), ("b\0", "new")]).await;
    does_not_conflict(unseen).await;
    put(kv, &[("b", "changed")]).await;
    conflicts(last_seen).await;
    // With the limit not reached, all of the range was seen.
    let mut whole = kv.begin();
    range(&mut whole, "a", "z", 99).await;
    put(kv, &[("y", "new")]).await;
    conflicts(whole).await;
}

async fn snapshot_reads_do_not_conflict<K: Kv>(kv: &K) {
    put(kv, &[("a", "1")]).await;
    let mut txn = kv.begin();
    let value = txn.get_snapshot(b"a").await.expect("a key is read");
    assert_eq!(value.as_deref(), Some(&b"1"[..]));
    txn.range_snapshot(b"a", b"z", 9)
        .await
        .expect("a range is read");
    put(kv, &[("a", "2"), ("b", "new")]).await;
    does_not_conflict(txn).await;
}

async fn added_conflicts_conflict<K: Kv>(kv: &K) {
    let mut txn = kv.begin();
    txn.add_read_conflict(b"a");
    put(kv, &[("a", "1")]).await;
    conflicts(txn).await;
    let mut txn = kv.begin();
    txn.add_read_conflict(b"a");
    put(kv, &[("b", "1")]).await;
    does_not_conflict(txn).await;
}

async fn clears_conflict<K: Kv>(kv: &K) {
    put(kv, &[("a", "1"), ("b", "2"), ("c", "3")]).await;
    let (mut key, mut part, mut beside) = (kv.begin(), kv.begin(), kv.begin());
    get(&mut key, "b").await;
    range(&mut part, "a", "b\0", 9).await;
    range(&mut beside, "c", "d", 9).await;
    let mut txn = kv.begin();
    txn.clear_range(b"b", b"c");
    commit(txn).await;
    conflicts(key).await;
    conflicts(part).await;
    does_not_conflict(beside).await;
    assert_eq!(range(&mut kv.begin(), "a", "d", 9).await, "a=1 c=3");
}

async fn large_clear_range<K: Kv>(kv: &K) {
    let mut txn = kv.begin();
    for number in 0..1000 {
        txn.set(format!("k{number:04}").as_bytes(), b"x");
    }
    commit(txn).await;
    let mut txn = kv.begin();
    txn.clear_range(b"k0001", b"k0999");
    txn.set(b"k0500", b"kept");
    commit(txn).await;
    assert_eq!(
        range(&mut kv.begin(), "k", "l", 9).await,
        "k0000=x k0500=kept k0999=x"
    );
    put(kv, &[("k0002", "later")]).await;
    assert_eq!(
        get(&mut kv.begin(), "k0002").await.as_deref(),
        Some("later")
    );
}

async fn number<T: Txn>(txn: &mut T, key: &[u8]) -> Option<i64> {
    let value = txn.get(key).await.expect("a key is read")?;
    Some(i64::from_le_bytes(
        value[..].try_into().expect("a counter has 8 bytes"),
    ))
}

async fn atomics<K: Kv>(kv: &K) {
    let mut txn = kv.begin();
    txn.atomic_add(b"sum", 5);
    txn.atomic_add(b"sum", -7);
    txn.atomic_max(b"max", 3);
    assert_eq!(
        number(&mut txn, b"sum").await,
        Some(-2),
        "own changes are read"
    );
    commit(txn).await;
    let mut txn = kv.begin();
    txn.atomic_add(b"sum", 10);
    txn.atomic_max(b"max", 2);
    let pairs = txn.range(b"a", b"z", 9).await.expect("a range is read");
    let values: Vec<_> = pairs.iter().map(|(_, value)| value[0]).collect();
    assert_eq!(values, [3, 8], "a range holds own changes");
    commit(txn).await;
    let txn = &mut kv.begin();
    assert_eq!(
        (number(txn, b"sum").await, number(txn, b"max").await),
        (Some(8), Some(3))
    );
    // After a set or clear of its own, an atomic change goes on from that.
    let mut txn = kv.begin();
    txn.clear_range(b"a", b"z");
    txn.atomic_add(b"sum", 1);
    txn.clear(b"max");
    txn.atomic_max(b"max", 1);
    commit(txn).await;
    let txn = &mut kv.begin();
    assert_eq!(
        (number(txn, b"sum").await, number(txn, b"max").await),
        (Some(1), Some(1))
    );
    // Who read the key conflicts with who changes it.
    let mut reader = kv.begin();
    number(&mut reader, b"sum").await;
    let mut adder = kv.begin();
    adder.atomic_add(b"sum", 1);
    commit(adder).await;
    conflicts(reader).await;
}

async fn atomics_do_not_conflict<K: Kv>(kv: Arc<K>) {
    const TASKS: u64 = 8;
    const ROUNDS: u64 = 50;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let kv = kv.clone();
            tasks::spawn(async move {
                for round in 0..ROUNDS {
                    let mut txn = kv.begin();
                    txn.atomic_add(b"sum", 3);
                    txn.atomic_max(b"max", task * ROUNDS + round);
                    commit(txn).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("the task ends");
    }
    let txn = &mut kv.begin();
    assert_eq!(number(txn, b"sum").await, Some(3 * 8 * 50));
    assert_eq!(number(txn, b"max").await, Some(8 * 50 - 1));
}

async fn limits<K: Kv>(kv: &K) {
    async fn refused<T: Txn>(what: &str, txn: T) {
        let done = txn.commit(Durability::Soon).await;
        assert!(
            matches!(done, Err(KvError::TooLarge(_))),
            "{what}: {done:?}"
        );
    }
    let key = vec![b'k'; KV_KEY_MAX_BYTES + 1];
    let value = vec![b'v'; KV_VALUE_MAX_BYTES + 1];
    let mut txn = kv.begin();
    txn.set(&key, b"");
    txn.set(b"a", b"");
    refused("key", txn).await;
    let mut txn = kv.begin();
    txn.set(b"a", &value);
    refused("value", txn).await;
    let mut txn = kv.begin();
    txn.clear(&key);
    refused("cleared key", txn).await;
    let mut txn = kv.begin();
    txn.atomic_add(&key, 1);
    refused("changed key", txn).await;
    let mut txn = kv.begin();
    for number in 0..=KV_TRANSACTION_MAX_BYTES / KV_VALUE_MAX_BYTES {
        txn.set(format!("b{number:04}").as_bytes(), &value[1..]);
    }
    refused("transaction", txn).await;
    assert_eq!(
        range(&mut kv.begin(), "a", "z", 9).await,
        "",
        "a refused transaction writes nothing"
    );
    let read = kv.begin().get(&key).await;
    assert!(
        matches!(read, Err(KvError::TooLarge(_))),
        "read key: {read:?}"
    );
    let mut txn = kv.begin();
    txn.set(&key[1..], &value[1..]);
    commit(txn).await;
    let read = kv.begin().get(&key[1..]).await.expect("a key is read");
    assert_eq!(
        read.as_deref(),
        Some(&value[1..]),
        "the limits themselves are allowed"
    );
}

async fn write_skew_is_prevented<K: Kv>(kv: &K) {
    put(kv, &[("on-call/a", "1"), ("on-call/b", "1")]).await;
    let (mut a, mut b) = (kv.begin(), kv.begin());
    assert_eq!(
        range(&mut a, "on-call/", "on-call0", 9).await,
        "on-call/a=1 on-call/b=1"
    );
    assert_eq!(
        range(&mut b, "on-call/", "on-call0", 9).await,
        "on-call/a=1 on-call/b=1"
    );
    a.clear(b"on-call/a");
    b.clear(b"on-call/b");
    commit(a).await;
    conflicts(b).await;
}

/// A small generator (xorshift64*), so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

const ACCOUNTS: u64 = 6;
const BALANCE: i64 = 100;

fn account(number: u64) -> Vec<u8> {
    format!("account/{number}").into_bytes()
}

/// Moves money, reading either the two accounts or all of them. Never below zero.
async fn transfer<T: Txn>(txn: &mut T, random: &mut Random) -> Result<(), KvError> {
    let (from, to) = (random.below(ACCOUNTS), random.below(ACCOUNTS));
    let amount = i64::try_from(random.below(60)).expect("a small number");
    if random.below(4) == 0 {
        let pairs = txn.range(b"account/", b"account0", 99).await?;
        let sum: i64 = pairs.iter().map(|(_, value)| balance(Some(value))).sum();
        assert_eq!(
            sum,
            BALANCE * ACCOUNTS.cast_signed(),
            "a transaction sees one snapshot"
        );
    }
    let have = balance(txn.get(&account(from)).await?.as_ref());
    if have < amount || from == to {
        return Ok(());
    }
    let other = balance(txn.get(&account(to)).await?.as_ref());
    // An empty account is removed, so that phantoms take part.
    match have - amount {
        0 => txn.clear(&account(from)),
        left => txn.set(&account(from), &left.to_le_bytes()),
    }
    txn.set(&account(to), &(other + amount).to_le_bytes());
    Ok(())
}

fn balance(value: Option<&Bytes>) -> i64 {
    value.map_or(0, |value| {
        i64::from_le_bytes(value[..].try_into().expect("8 bytes"))
    })
}

async fn transfers_keep_the_sum<K: Kv>(kv: Arc<K>) {
    let mut txn = kv.begin();
    for number in 0..ACCOUNTS {
        txn.set(&account(number), &BALANCE.to_le_bytes());
    }
    commit(txn).await;
    let tasks: Vec<_> = (1..=6u64)
        .map(|seed| {
            let kv = kv.clone();
            tasks::spawn(async move {
                let mut random = Random(seed);
                for _ in 0..60 {
                    let seed = random.below(1 << 30) + 1;
                    let done: Result<(), KvError> = run(&*kv, Durability::Soon, |txn| {
                        Box::pin(async move { transfer(txn, &mut Random(seed)).await })
                    })
                    .await;
                    done.expect("a transfer commits");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("the task ends");
    }
    let pairs = kv
        .begin()
        .range(b"account/", b"account0", 99)
        .await
        .expect("a range is read");
    let balances: Vec<i64> = pairs
        .iter()
        .map(|(_, value)| balance(Some(value)))
        .collect();
    assert_eq!(
        balances.iter().sum::<i64>(),
        BALANCE * ACCOUNTS.cast_signed()
    );
    assert!(balances.iter().all(|&balance| balance > 0), "{balances:?}");
}

async fn run_retries_conflicts<K: Kv>(kv: &K) {
    let attempts = AtomicU32::new(0);
    let name = String::from("a");
    let seen: Result<_, KvError> = run(kv, Durability::Now, |txn| {
        let (attempts, name) = (&attempts, name.as_bytes());
        Box::pin(async move {
            let seen = txn.get(name).await?;
            if attempts.fetch_add(1, Ordering::Relaxed) < 5 {
                put(kv, &[("a", "other")]).await;
            }
            txn.set(name, b"mine");
            Ok(seen)
        })
    })
    .await;
    assert_eq!(
        seen.expect("the sixth attempt commits").as_deref(),
        Some(&b"other"[..])
    );
    assert_eq!(attempts.into_inner(), 6);
    assert_eq!(get(&mut kv.begin(), "a").await.as_deref(), Some("mine"));
}

#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error("the body's own")]
    Own,
}

impl RetryClass for BodyError {
    fn kv(&self) -> Option<&KvError> {
        match self {
            BodyError::Kv(error) => Some(error),
            BodyError::Own => None,
        }
    }
}

async fn run_stops<K: Kv>(kv: &K) {
    let attempts = AtomicU32::new(0);
    let started = clock::now();
    let hot: Result<(), KvError> = run(kv, Durability::Soon, |txn| {
        let attempts = &attempts;
        Box::pin(async move {
            txn.get(b"hot").await?;
            attempts.fetch_add(1, Ordering::Relaxed);
            put(kv, &[("hot", "")]).await;
            txn.set(b"hot", b"mine");
            Ok(())
        })
    })
    .await;
    assert!(matches!(hot, Err(KvError::Conflict)), "{hot:?}");
    let attempts = attempts.into_inner();
    assert!(
        attempts == ATTEMPTS_MAX || started.elapsed() >= RETRY_TIME_MAX,
        "stopped after {attempts} attempts"
    );
    let attempts = AtomicU32::new(0);
    let own: Result<(), BodyError> = run(kv, Durability::Soon, |txn| {
        attempts.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            txn.set(b"never", b"");
            Err(BodyError::Own)
        })
    })
    .await;
    assert!(matches!(own, Err(BodyError::Own)), "{own:?}");
    assert_eq!(
        attempts.into_inner(),
        1,
        "an error of the body ends the loop"
    );
    assert_eq!(get(&mut kv.begin(), "never").await, None);
}

async fn sync_returns<K: Kv>(kv: &K) {
    kv.sync().await.expect("an empty store syncs");
    put(kv, &[("a", "1")]).await;
    kv.sync().await.expect("a store syncs");
    let mut txn = kv.begin();
    txn.set(b"b", b"2");
    txn.commit(Durability::Now).await.expect("a durable commit");
    assert_eq!(range(&mut kv.begin(), "a", "z", 9).await, "a=1 b=2");
}
