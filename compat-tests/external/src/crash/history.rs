//! What may be found under one key after a crash.
//!
//! A key has one writer, so its states follow one another. Each state belongs to a *file*: replacing, removing or truncating
//! to nothing begins another one, writing in place and appending do not. The oldest state that must have survived, and any
//! after it, may be found whole; of states of one file also a mixture byte by byte, since writes in place are not atomic.
//! Never a mixture of two files, nor a byte that none of these states has at its place.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::value::{Value, explain};

/// Within this time a close or a change of names reaches stable storage. The promise is 500 ms (`SYNC_INTERVAL_MS`); the rest
/// is for a machine that does other things as well.
const STABLE_AFTER: Duration = Duration::from_millis(1500);

/// What a state's writer was told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ack {
    /// Nothing yet.
    Pending,
    /// `close` or a change of names returned at that time.
    Visible(Instant),
    /// A 2xx, or `fsync` returned.
    Stable,
}

#[derive(Clone, Debug)]
struct State {
    file: u32,
    value: Option<Value>,
    ack: Ack,
}

/// What survives a crash.
pub(super) enum Survivor {
    /// Everything acknowledged.
    Visible,
    /// What was stable when the power was cut, and what was visible for long enough.
    Stable(Instant),
}

/// Why what was found is a fault.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is older than the last state that must have survived.
    Lost(String),
    /// Nobody wrote this there.
    Wrong(String),
}

/// The states of a key, oldest first; none of them is older than the last one that is certain.
#[derive(Clone, Debug)]
pub(super) struct History {
    states: Vec<State>,
    /// States that were certain once, to tell what is lost from what is wrong.
    past: Vec<Option<Value>>,
}

impl Default for History {
    fn default() -> Self {
        let absent = State {
            file: 0,
            value: None,
            ack: Ack::Stable,
        };
        Self {
            states: vec![absent],
            past: Vec::new(),
        }
    }
}

impl History {
    fn last(&self) -> &State {
        self.states.last().expect("a key always has a state")
    }

    /// Returns the current value, as the key's writer knows it.
    pub(super) fn current(&self) -> Option<&Value> {
        self.last().value.as_ref()
    }

    /// Notes that an operation begins which replaces the file, or removes it.
    pub(super) fn replace(&mut self, value: Option<Value>) {
        let file = self.last().file + 1;
        self.begin(file, value);
    }

    /// Notes that an operation begins which changes the file in place.
    pub(super) fn change(&mut self, value: Value) {
        let file = self.last().file;
        self.begin(file, Some(value));
    }

    fn begin(&mut self, file: u32, value: Option<Value>) {
        let ack = Ack::Pending;
        self.states.push(State { file, value, ack });
    }

    /// Notes that the last operation was acknowledged.
    pub(super) fn acknowledge(&mut self, ack: Ack) {
        if matches!(ack, Ack::Stable) {
            let last = self.states.len() - 1;
            self.past
                .extend(self.states.drain(..last).map(|state| state.value));
        }
        self.states
            .last_mut()
            .expect("a key always has a state")
            .ack = ack;
    }

    /// Notes that the last operation was refused before it had any effect.
    pub(super) fn withdraw(&mut self) {
        self.states.pop();
    }

    /// Tells whether what was found may be there.
    pub(super) fn judge(&self, survivor: &Survivor, found: Option<&[u8]>) -> Result<(), Fault> {
        let certain = |state: &State| match (state.ack, survivor) {
            (Ack::Pending, _) => false,
            (Ack::Stable, _) | (Ack::Visible(_), Survivor::Visible) => true,
            (Ack::Visible(at), Survivor::Stable(crashed)) => {
                crashed.saturating_duration_since(at) >= STABLE_AFTER
            }
        };
        let oldest = self.states.iter().rposition(certain).unwrap_or(0);
        let (gone, allowed) = self.states.split_at(oldest);
        if is_allowed(allowed, found) {
            return Ok(());
        }
        let older = gone.iter().map(|state| &state.value).chain(&self.past);
        let was_there = older
            .map(|value| value.as_ref().map(Value::bytes))
            .any(|bytes| bytes.as_deref() == found);
        let crashed = match survivor {
            Survivor::Visible => super::now(),
            Survivor::Stable(crashed) => *crashed,
        };
        let text = format!(
            "found {}; allowed: {}",
            explain(found),
            list(allowed, crashed)
        );
        Err(if was_there || found.is_none() {
            Fault::Lost(text)
        } else {
            Fault::Wrong(text)
        })
    }

    /// Takes what was found after a crash, and judged, as the one certain state.
    pub(super) fn settle(&mut self, found: Option<&[u8]>) {
        let known = self
            .states
            .iter()
            .rev()
            .find(|state| state.value.as_ref().map(Value::bytes).as_deref() == found);
        let last = self.last();
        let value = match known {
            Some(state) => state.value.clone(),
            // A mixture has no value of its own: the next round starts from a replaced file, and until then any mixture will do.
            None => return,
        };
        let file = last.file + 1;
        self.past.clear();
        self.states = vec![State {
            file,
            value,
            ack: Ack::Stable,
        }];
    }
}

fn list(states: &[State], crashed: Instant) -> String {
    let texts: Vec<String> = states
        .iter()
        .map(|State { file, value, ack }| {
            let ack = match ack {
                Ack::Pending => "in flight".into(),
                Ack::Visible(at) => {
                    let age = crashed.saturating_duration_since(*at);
                    format!("closed {} ms before", age.as_millis())
                }
                Ack::Stable => "stable".to_owned(),
            };
            format!("[file {file}, {ack}, {value:?}]")
        })
        .collect();
    texts.join(" ")
}

fn is_allowed(states: &[State], found: Option<&[u8]>) -> bool {
    let Some(found) = found else {
        return states.iter().any(|state| state.value.is_none());
    };
    let files: BTreeSet<u32> = states.iter().map(|state| state.file).collect();
    files.into_iter().any(|file| {
        let of_file = states.iter().filter(|state| state.file == file);
        let values: Vec<Vec<u8>> = of_file
            .filter_map(|state| state.value.as_ref().map(Value::bytes))
            .collect();
        values.iter().any(|value| value == found) || is_mixture(&values, found)
    })
}

/// Whether the length, and each byte, are those of some of the values.
fn is_mixture(values: &[Vec<u8>], found: &[u8]) -> bool {
    values.len() > 1
        && values.iter().any(|value| value.len() == found.len())
        && found
            .iter()
            .enumerate()
            .all(|(at, byte)| values.iter().any(|value| value.get(at) == Some(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(write: u64) -> Option<Value> {
        Some(Value::new(write, 1000))
    }

    fn bytes(write: u64) -> Vec<u8> {
        Value::new(write, 1000).bytes()
    }

    fn stable(write: u64) -> History {
        let mut history = History::default();
        history.replace(value(write));
        history.acknowledge(Ack::Stable);
        history
    }

    #[test]
    fn an_acknowledged_state_must_be_there_and_a_pending_one_may_be() {
        let mut history = stable(1);
        history.replace(value(2));
        let judge =
            |history: &History, write| history.judge(&Survivor::Visible, Some(&bytes(write)));
        assert!(judge(&history, 1).is_ok() && judge(&history, 2).is_ok());
        assert!(matches!(judge(&history, 3), Err(Fault::Wrong(_))));
        history.acknowledge(Ack::Stable);
        assert!(judge(&history, 2).is_ok());
        assert!(matches!(judge(&history, 1), Err(Fault::Lost(_))));
        assert!(matches!(
            history.judge(&Survivor::Visible, None),
            Err(Fault::Lost(_))
        ));
    }

    #[test]
    fn a_close_binds_after_a_kill_at_once_and_after_a_power_cut_in_time() {
        let closed = super::super::now();
        let mut history = stable(1);
        history.replace(value(2));
        history.acknowledge(Ack::Visible(closed));
        let old = bytes(1);
        assert!(history.judge(&Survivor::Visible, Some(&old)).is_err());
        assert!(history.judge(&Survivor::Stable(closed), Some(&old)).is_ok());
        let later = Survivor::Stable(closed + STABLE_AFTER);
        assert!(matches!(
            history.judge(&later, Some(&old)),
            Err(Fault::Lost(_))
        ));
    }

    #[test]
    fn bytes_mix_within_a_file_and_not_across_files() {
        let mixture = [&bytes(1)[..500], &bytes(2)[500..]].concat();
        let mut history = stable(1);
        history.change(Value::new(2, 1000));
        assert!(history.judge(&Survivor::Visible, Some(&mixture)).is_ok());
        let mut zeroed = mixture.clone();
        zeroed[600..700].fill(0);
        assert!(history.judge(&Survivor::Visible, Some(&zeroed)).is_err());
        let mut history = stable(1);
        history.replace(value(2));
        assert!(matches!(
            history.judge(&Survivor::Visible, Some(&mixture)),
            Err(Fault::Wrong(_))
        ));
    }

    #[test]
    fn what_was_found_is_certain_from_then_on() {
        let mut history = stable(1);
        history.replace(value(2));
        history.settle(Some(&bytes(1)));
        assert!(history.judge(&Survivor::Visible, Some(&bytes(2))).is_err());
        assert!(history.judge(&Survivor::Visible, Some(&bytes(1))).is_ok());
    }
}
