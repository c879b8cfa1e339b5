//! Hashing of bodies beside their writing: batches of all bodies in one queue, hashed together on few threads.
//!
//! Invariants: a body's bytes are hashed in order, one batch at a time, while the next one arrives; at most half of the
//! cores hash, so that bytes keep moving. The queue is bounded by the bodies, which have one batch each in it. While a
//! worker is free a batch is hashed at once; when none is, those that wait share the lanes of the next one
//! (`md5`), so hashing becomes cheaper as it becomes scarce.

use std::{collections::VecDeque, num::NonZero, sync::Arc};

use bytes::Bytes;
use janusfs_env::tasks;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    checksum::{Algorithm, Digests, Sums},
    md5::LANES,
};

/// Bytes hashed in one go by a worker; also the largest tail hashed in place.
const BATCH_BYTES: usize = 1 << 20;

/// The queue and its workers.
pub(crate) struct Hashing {
    workers_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    workers: usize,
}

struct Job {
    sums: Sums,
    batch: Vec<Bytes>,
    done: oneshot::Sender<Sums>,
}

impl Hashing {
    pub(crate) fn new() -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Arc::new(Self {
            workers_max: cores.div_ceil(2),
            state: Mutex::default(),
        })
    }

    fn submit(self: &Arc<Self>, job: Job) {
        {
            let mut state = self.state.lock();
            state.waiting.push_back(job);
            if state.workers == self.workers_max {
                return;
            }
            state.workers += 1;
        }
        let worker = Worker {
            hashing: Arc::clone(self),
            counted: true,
        };
        tasks::spawn(tasks::blocking(move || worker.run()));
    }
}

/// A thread that hashes until nothing waits.
struct Worker {
    hashing: Arc<Hashing>,
    counted: bool,
}

impl Worker {
    fn run(mut self) {
        loop {
            let mut jobs: Vec<Job> = {
                let mut state = self.hashing.state.lock();
                if state.waiting.is_empty() {
                    // Under the lock of the look: what comes later finds a place for a worker of its own.
                    state.workers -= 1;
                    self.counted = false;
                    return;
                }
                let count = state.waiting.len().min(LANES);
                state.waiting.drain(..count).collect()
            };
            let mut batches: Vec<(&mut Sums, &[Bytes])> = jobs
                .iter_mut()
                .map(|job| (&mut job.sums, &job.batch[..]))
                .collect();
            Sums::update_all(&mut batches);
            for job in jobs {
                // A body that was given up does not wait for its sums.
                let _ = job.done.send(job.sums);
            }
        }
    }
}

impl Drop for Worker {
    /// Ends a worker that panicked, or that a stopping runtime never ran: whoever waits for it is told.
    fn drop(&mut self) {
        if self.counted {
            let mut state = self.hashing.state.lock();
            state.workers -= 1;
            state.waiting.clear();
        }
    }
}

/// Hashes a body as it streams by.
pub(crate) struct BodyHasher {
    hashing: Arc<Hashing>,
    // Exactly one of the two holds the state.
    idle: Option<Sums>,
    running: Option<oneshot::Receiver<Sums>>,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl BodyHasher {
    pub(crate) fn new(hashing: &Arc<Hashing>, algorithms: &[Algorithm]) -> Self {
        Self {
            hashing: Arc::clone(hashing),
            idle: Some(Sums::new(algorithms)),
            running: None,
            batch: Vec::new(),
            batch_bytes: 0,
        }
    }

    /// Takes the next bytes; waits while the batch before the last one is still being hashed.
    pub(crate) async fn push(&mut self, bytes: Bytes) {
        self.batch_bytes += bytes.len();
        self.batch.push(bytes);
        if self.batch_bytes < BATCH_BYTES {
            return;
        }
        let sums = self.settle().await;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let (done, running) = oneshot::channel();
        self.running = Some(running);
        self.hashing.submit(Job { sums, batch, done });
    }

    async fn settle(&mut self) -> Sums {
        match self.running.take() {
            None => self.idle.take().expect("idle or running"),
            Some(running) => running
                .await
                .expect("a worker hashes what it takes, unless the runtime ends"),
        }
    }

    /// Hashes the tail in place (less than a batch) and returns the digests.
    pub(crate) async fn finish(mut self) -> Digests {
        let mut sums = self.settle().await;
        sums.update(&self.batch);
        sums.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_hashed_at_the_same_time_hash_as_if_alone() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .unwrap();
        let hashing = Hashing::new();
        let bodies: Vec<Bytes> = (0..2 * LANES)
            .map(|body| {
                let byte = |i: usize| u8::try_from((i * (body + 1)) % 253).unwrap();
                (0..3_500_000 + body * 1001).map(byte).collect()
            })
            .collect();
        let hash = |body: Bytes| {
            let hashing = Arc::clone(&hashing);
            async move {
                let mut hasher = BodyHasher::new(&hashing, &[Algorithm::Crc64Nvme]);
                for start in (0..body.len()).step_by(300_000) {
                    let end = body.len().min(start + 300_000);
                    hasher.push(body.slice(start..end)).await;
                }
                hasher.finish().await
            }
        };
        let hashed = runtime.block_on(async {
            let tasks: Vec<_> = bodies
                .iter()
                .map(|body| tasks::spawn(hash(body.clone())))
                .collect();
            futures::future::try_join_all(tasks).await.unwrap()
        });
        for (digests, body) in hashed.into_iter().zip(&bodies) {
            let mut alone = Sums::new(&[Algorithm::Crc64Nvme]);
            alone.update(std::slice::from_ref(body));
            assert_eq!(digests, alone.finish());
        }
        // Waits for workers that have answered and not ended yet.
        drop(runtime);
        assert_eq!(hashing.state.lock().workers, 0);
    }
}
