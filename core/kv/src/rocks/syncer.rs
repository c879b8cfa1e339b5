//! Syncs of the write-ahead log, shared by all who wait for one.
//!
//! Owns which version is on stable storage. Invariants: at most one sync runs; whoever waits for a version is served by
//! the first sync that began after that version was written; after a failed sync nothing is ever called synced again,
//! since the kernel may have dropped the pages it could not write. Absent: any wait on a runtime worker; callers hop.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use janusfs_env::metrics::KV_SYNCS;
use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct State {
    synced: u64,
    leading: bool,
    failed: Option<String>,
    stopped: bool,
}

/// The meeting point of committers and the sync.
#[derive(Default)]
pub(super) struct Syncer {
    /// The last version in the log. Set by the sequencer after its write.
    written: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    stop: Condvar,
}

impl Syncer {
    /// Tells that `version` is in the log and visible.
    pub(super) fn publish(&self, version: u64) {
        self.written.store(version, Ordering::Release);
    }

    /// Returns the last version in the log.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Waits until `version` is on stable storage; one of the waiters runs `sync` for all.
    pub(super) fn wait(
        &self,
        version: u64,
        sync: impl Fn() -> Result<(), rocksdb::Error>,
    ) -> Result<(), String> {
        let mut state = self.state.lock();
        loop {
            if let Some(reason) = &state.failed {
                return Err(reason.clone());
            }
            if state.synced >= version {
                return Ok(());
            }
            if state.leading {
                self.changed.wait(&mut state);
                continue;
            }
            state.leading = true;
            drop(state);
            let covers = self.written();
            let done = sync();
            KV_SYNCS.add(1);
            state = self.state.lock();
            state.leading = false;
            match done {
                Ok(()) => state.synced = state.synced.max(covers),
                Err(error) => {
                    tracing::error!(%error, "sync of the metadata log failed, the store is read-only");
                    state.failed = Some(format!("sync of the write-ahead log failed: {error}"));
                }
            }
            self.changed.notify_all();
        }
    }

    /// Waits for `interval`; false once the store is closing.
    pub(super) fn pause(&self, interval: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.stopped {
            self.stop.wait_for(&mut state, interval);
        }
        !state.stopped
    }

    /// Ends [`Syncer::pause`] for good.
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.stop.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Barrier, atomic::AtomicUsize};

    use janusfs_env::tasks;

    #[test]
    fn waiters_share_syncs() {
        let syncer = Arc::new(Syncer::default());
        let syncs = Arc::new(AtomicUsize::new(0));
        let together = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (syncer, syncs, together) = (syncer.clone(), syncs.clone(), together.clone());
                tasks::spawn_thread("waiter", move || {
                    syncer.publish(1);
                    together.wait();
                    syncer.wait(1, || {
                        syncs.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    })
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
        assert_eq!(syncs.load(Ordering::Relaxed), 1);
    }
}
