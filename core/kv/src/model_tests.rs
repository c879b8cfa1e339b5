//! Random transactions, one after another, against a plain map: both backends must agree with it at every step.

use std::collections::BTreeMap;

use bytes::Bytes;
use janusfs_env::tasks;
use proptest::{collection::vec, prelude::*};

use crate::{Durability, Kv, MemKv, RocksKv, RocksKvOptions, Txn, writes::Atomic};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug)]
enum Step {
    Get(Vec<u8>),
    Range(Vec<u8>, Vec<u8>, u32),
    Set(Vec<u8>, Vec<u8>),
    Clear(Vec<u8>),
    ClearRange(Vec<u8>, Vec<u8>),
    Add(Vec<u8>, i64),
    Max(Vec<u8>, u64),
    Commit,
    Drop,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    vec(b'a'..b'd', 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => key().prop_map(Step::Get),
        4 => (key(), key(), 0..12u32).prop_map(|(start, end, limit)| Step::Range(start, end, limit)),
        6 => (key(), vec(any::<u8>(), 0..10)).prop_map(|(key, value)| Step::Set(key, value)),
        2 => key().prop_map(Step::Clear),
        2 => (key(), key()).prop_map(|(start, end)| Step::ClearRange(start, end)),
        2 => (key(), any::<i64>()).prop_map(|(key, amount)| Step::Add(key, amount)),
        2 => (key(), any::<u64>()).prop_map(|(key, value)| Step::Max(key, value)),
        3 => Just(Step::Commit),
        1 => Just(Step::Drop),
    ]
}

fn change(map: &mut Map, key: Vec<u8>, change: Atomic) {
    let after = change.apply(map.get(&key).map(Vec::as_slice));
    map.insert(key, after.to_vec());
}

fn slice(map: &Map, start: &[u8], end: &[u8], limit: u32) -> Vec<(Bytes, Bytes)> {
    map.iter()
        .filter(|(key, _)| start <= &key[..] && &key[..] < end)
        .take(limit as usize)
        .map(|(key, value)| (Bytes::from(key.clone()), Bytes::from(value.clone())))
        .collect()
}

async fn agree<K: Kv>(kv: &K, steps: Vec<Step>) {
    let mut committed = Map::new();
    let mut map = committed.clone();
    let mut txn = kv.begin();
    for step in steps {
        match step {
            Step::Get(key) => {
                let value = map.get(&key).map(|value| Bytes::from(value.clone()));
                assert_eq!(txn.get(&key).await.unwrap(), value, "{key:?}");
            }
            Step::Range(start, end, limit) => {
                let expected = slice(&map, &start, &end, limit);
                assert_eq!(txn.range(&start, &end, limit).await.unwrap(), expected);
                assert_eq!(
                    txn.range_snapshot(&start, &end, limit).await.unwrap(),
                    expected
                );
            }
            Step::Set(key, value) => {
                txn.set(&key, &value);
                map.insert(key, value);
            }
            Step::Clear(key) => {
                txn.clear(&key);
                map.remove(&key);
            }
            Step::ClearRange(start, end) => {
                txn.clear_range(&start, &end);
                map.retain(|key, _| *key < start || *key >= end);
            }
            Step::Add(key, amount) => {
                txn.atomic_add(&key, amount);
                change(&mut map, key, Atomic::Add(amount));
            }
            Step::Max(key, value) => {
                txn.atomic_max(&key, value);
                change(&mut map, key, Atomic::Max(value));
            }
            Step::Commit => {
                txn.commit(Durability::Soon).await.unwrap();
                committed.clone_from(&map);
                txn = kv.begin();
            }
            Step::Drop => {
                map.clone_from(&committed);
                txn = kv.begin();
            }
        }
    }
    let all = kv.begin().range(b"", b"z", u32::MAX).await.unwrap();
    assert_eq!(all, slice(&committed, b"", b"z", u32::MAX));
}

/// Runs where blocking is allowed. No clock or socket is waited for, so any runtime will do.
fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    tasks::block_on(runtime.handle(), future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn mem_agrees_with_a_map(steps in vec(step(), 1..60)) {
        block_on(agree(&MemKv::default(), steps));
    }
}

#[test]
fn rocks_agrees_with_a_map() {
    let dir = tempfile::tempdir().unwrap();
    let kv = RocksKv::open(dir.path(), RocksKvOptions::default()).unwrap();
    let config = ProptestConfig {
        cases: 400,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in vec(step(), 1..60))| {
        // One store for all cases: it is emptied, which leaves tombstones for the reads to get past.
        let mut txn = kv.begin();
        txn.clear_range(b"", b"z");
        block_on(txn.commit(Durability::Soon)).unwrap();
        block_on(agree(&kv, steps));
    });
}
