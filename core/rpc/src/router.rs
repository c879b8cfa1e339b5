//! Sends each request to the handler of its service.

use std::sync::Arc;

use futures::future::{self, BoxFuture, FutureExt};
use janusfs_types::FsError;
use janusfs_wire::ServiceId;

use crate::{Handler, Reply, Request, Transport};

/// The services of one node. Also the in-process transport: calling it runs the handler on the calling thread, with
/// the same encoded messages that travel between machines.
#[derive(Clone, Default)]
pub struct Router {
    meta: Option<Arc<dyn Handler>>,
    storage: Option<Arc<dyn Handler>>,
}

impl Router {
    /// Returns a router that refuses everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a service.
    #[must_use]
    pub fn with(mut self, service: ServiceId, handler: Arc<dyn Handler>) -> Self {
        match service {
            ServiceId::Meta => self.meta = Some(handler),
            ServiceId::Storage => self.storage = Some(handler),
        }
        self
    }
}

impl Handler for Router {
    fn handle(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>> {
        let handler = match request.service {
            ServiceId::Meta => &self.meta,
            ServiceId::Storage => &self.storage,
        };
        match handler {
            Some(handler) => handler.handle(request),
            None => {
                let text = format!("this node has no {:?} service", request.service);
                future::ready(Err(FsError::Unavailable(text))).boxed()
            }
        }
    }
}

impl Transport for Router {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>> {
        self.handle(request)
    }
}
