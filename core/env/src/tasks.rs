//! Tasks and threads, and the two ways between blocking and async code.
//!
//! Invariant: a thread is either a runtime worker, which never blocks on a disk, or it may block: [`may_block`] tells
//! which. Code that can answer from memory runs at once on both; code that needs the disk asks [`may_block`] and hops to
//! the blocking pool only on a worker.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the one place that may spawn"
)]

use std::{
    cell::Cell,
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use tokio::{runtime::Handle, task::JoinHandle};

thread_local! {
    static IN_BLOCK_ON: Cell<bool> = const { Cell::new(false) };
}

/// Spawns a task on the current runtime. The caller keeps the handle or lets the task end by itself on shutdown.
///
/// # Panics
/// Outside a tokio context.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Starts a named thread.
///
/// # Panics
/// If the system cannot start one.
pub fn spawn_thread<F, T>(name: &str, body: F) -> std::thread::JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .expect("the system starts a thread")
}

/// Tells whether this thread may wait for a disk: it is no runtime worker, or is inside [`block_on`].
#[must_use]
pub fn may_block() -> bool {
    IN_BLOCK_ON.get() || Handle::try_current().is_err()
}

/// Runs blocking work: in place where [`may_block`], else on the blocking pool.
///
/// # Panics
/// Passes on a panic of `work`.
pub async fn blocking<T, F>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if may_block() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => panic!("the blocking pool is gone: {error}"),
    }
}

/// Runs a future where it [`may_block`]: in place, or else on one thread of the blocking pool, so that each of its many
/// short waits for a disk costs no hop.
///
/// # Panics
/// Passes on a panic of the future.
pub async fn where_blocking<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if may_block() {
        return future.await;
    }
    let handle = Handle::current();
    blocking(move || block_on(&handle, future)).await
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` on this thread, with `handle` as its context for timers and sockets. Unlike the runtime's own
/// `block_on`, polls in place first, so an answer from memory costs no hop, and counts as [`may_block`].
pub fn block_on<F: Future>(handle: &Handle, future: F) -> F::Output {
    struct Leave(bool);
    impl Drop for Leave {
        fn drop(&mut self) {
            IN_BLOCK_ON.set(self.0);
        }
    }
    let _context = handle.enter();
    let _leave = Leave(IN_BLOCK_ON.replace(true));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_on_may_block_and_a_worker_may_not() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        assert!(may_block());
        assert!(block_on(runtime.handle(), async { may_block() }));
        let on_worker = runtime.block_on(async { spawn(async { may_block() }).await.unwrap() });
        assert!(!on_worker);
        let moved =
            runtime.block_on(async { spawn(where_blocking(async { may_block() })).await.unwrap() });
        assert!(moved);
        let name = runtime.block_on(async {
            spawn(blocking(|| std::thread::current().id()))
                .await
                .unwrap()
        });
        assert_ne!(name, std::thread::current().id());
    }

    #[test]
    fn block_on_waits_for_a_task_of_the_runtime() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (send, receive) = tokio::sync::oneshot::channel();
        runtime.spawn(async move { send.send(7).unwrap() });
        assert_eq!(block_on(runtime.handle(), receive), Ok(7));
    }
}
