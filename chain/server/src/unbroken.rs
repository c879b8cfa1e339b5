//! A future that runs to its end even when its caller goes away.
//!
//! It is polled in place, because a hop to another thread costs more than most writes; only when it is dropped
//! half-way does it become a task of the runtime.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use janusfs_env::tasks;
use tokio::runtime::Handle;

pub(crate) struct Unbroken<T: Send + 'static> {
    rest: Option<BoxFuture<'static, T>>,
    runtime: Option<Handle>,
}

impl<T: Send + 'static> Unbroken<T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            rest: Some(Box::pin(future)),
            runtime: Handle::try_current().ok(),
        }
    }
}

impl<T: Send + 'static> Future for Unbroken<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let rest = self.rest.as_mut().expect("not polled after it is ready");
        let poll = rest.as_mut().poll(context);
        if poll.is_ready() {
            self.rest = None;
        }
        poll
    }
}

impl<T: Send + 'static> Drop for Unbroken<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let (Some(rest), Some(runtime)) = (self.rest.take(), &self.runtime) {
            let _context = runtime.enter();
            drop(tasks::spawn(rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_dropped_caller_does_not_cut_the_work_in_half() {
        let (go, gate) = oneshot::channel::<()>();
        let (done, ended) = oneshot::channel();
        let mut work = Unbroken::new(async move {
            gate.await.unwrap();
            done.send(7).unwrap();
        });
        assert!(futures::poll!(&mut work).is_pending());
        drop(work);
        go.send(()).unwrap();
        assert_eq!(ended.await, Ok(7));
    }
}
