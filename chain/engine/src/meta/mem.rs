//! A metadata store in memory that models the durable prefix: a power cut keeps everything up to the last barrier and
//! some prefix of the writes since.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::{MetaStore, Visit};
use crate::{
    EngineError,
    disk::sim::{Dice, Power},
};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct State {
    current: Rows,
    durable: Rows,
    log: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn apply(rows: &mut Rows, key: Vec<u8>, value: Option<Vec<u8>>) {
    match value {
        Some(value) => rows.insert(key, value),
        None => rows.remove(&key),
    };
}

/// A simulated metadata store; clones are the same store.
#[derive(Clone)]
pub(crate) struct MemMeta {
    state: Arc<Mutex<State>>,
    power: Arc<Power>,
}

impl MemMeta {
    pub(crate) fn new(power: Arc<Power>) -> Self {
        Self {
            state: Arc::default(),
            power,
        }
    }

    /// Forgets a suffix of the writes since the last barrier.
    pub(crate) fn power_cut(&self, seed: u64) {
        let mut state = self.state.lock();
        let count = state.log.len();
        // All and nothing are the interesting ends.
        let keep = match Dice(seed).roll(3) {
            0 => count,
            1 => 0,
            _ => Dice(seed ^ 1).roll(count as u64 + 1) as usize,
        };
        let log = std::mem::take(&mut state.log);
        for (key, value) in log.into_iter().take(keep) {
            apply(&mut state.durable, key, value);
        }
        state.current = state.durable.clone();
    }

    fn write(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), EngineError> {
        // A write that fails may have arrived all the same.
        let mut state = self.state.lock();
        let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
        state.log.push((key.clone(), value.clone()));
        apply(&mut state.current, key, value);
        self.power.spend().map_err(|e| EngineError::io("meta", e))
    }
}

impl MetaStore for MemMeta {
    fn load(&self, visit: Visit<'_>) -> Result<(), EngineError> {
        self.state
            .lock()
            .current
            .iter()
            .try_for_each(|(key, value)| visit(key, value))
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.write(key, Some(value))
    }

    fn delete(&self, key: &[u8]) -> Result<(), EngineError> {
        self.write(key, None)
    }

    fn put_durable(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.write(key, Some(value))?;
        let mut state = self.state.lock();
        state.log.clear();
        state.durable = state.current.clone();
        Ok(())
    }
}
