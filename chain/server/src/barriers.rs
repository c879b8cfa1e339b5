//! The periodic barrier: what was acknowledged without `Sync` reaches stable storage within the time of promise P2.
//!
//! It also lets the engines use freed slots again, which they do only behind a barrier. An engine without changes since the
//! last one does nothing, so an idle node writes nothing.

use std::{sync::Arc, time::Duration};

use janusfs_env::{clock, tasks};
use janusfs_types::limits;
use tokio::{sync::watch, task::JoinHandle};

use crate::StorageRole;

/// Half the promised time, so that the wait and the sync itself fit in it.
const PAUSE: Duration = Duration::from_millis(limits::SYNC_INTERVAL_MS / 2);

/// The running task. It keeps the role open until [`Self::stop`].
pub struct Barriers {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Barriers {
    /// Starts it.
    ///
    /// # Panics
    /// Outside a tokio context.
    #[must_use]
    pub fn start(role: Arc<StorageRole>) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tasks::spawn(async move {
            // The pause ending is the ordinary case; the wait ending, also by a lost sender, is the end.
            while clock::timeout(PAUSE, stopped.wait_for(|stop| *stop))
                .await
                .is_err()
            {
                role.sync_targets().await;
            }
        });
        Self { stop, task }
    }

    /// Ends it after the barrier in progress.
    pub async fn stop(self) {
        // The task listens until it ends.
        let _ = self.stop.send(true);
        // A panic in it was reported where it happened.
        let _ = self.task.await;
    }
}
