//! Calls over any transport: what a request is, who answers it, and the typed call on top.
//!
//! Owns: deadlines, dispatch by service, the typed call. Absent: sockets (`chain/transport`), meaning.
//! A request is a small encoded head and a bulk body beside it; the body is never copied into the head.
//!
//! Invariant: a [`Handler`] that needs no disk and no network finishes without suspending, so a call through the
//! in-process transport runs to completion on the calling thread. A thread hop costs more than most answers here.
#![forbid(unsafe_code)]

mod router;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use janusfs_types::{ClientId, FsError};
use janusfs_wire::{Method, ServiceId, Wire};

pub use router::Router;

/// Who asks, for services that keep account of their clients' caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The client. Its own changes do not invalidate what it holds.
    pub client: ClientId,
    /// Whether it wants to believe the answer for a while ([`Reply::lease_ms`]).
    pub wants_lease: bool,
    /// Whether it is in another process, which may outlive the service's.
    pub remote: bool,
}

impl Caller {
    /// Returns what a client says of itself; a transport that takes it to another process marks it as remote.
    #[must_use]
    pub fn new(client: ClientId, wants_lease: bool) -> Self {
        Self {
            client,
            wants_lease,
            remote: false,
        }
    }
}

/// A request on its way to a service.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks; `None` for callers that hold nothing.
    pub caller: Option<Caller>,
    /// The service.
    pub service: ServiceId,
    /// The method's number in it.
    pub method: u16,
    /// How long the caller still waits; travels with the request and shrinks at each hop.
    pub timeout: Duration,
    /// The encoded message.
    pub head: Bytes,
    /// Bulk payload, in order; empty for most methods.
    pub body: Vec<Bytes>,
}

/// What comes back from a call that was understood.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The encoded message.
    pub head: Bytes,
    /// Bulk payload, in order.
    pub body: Vec<Bytes>,
    /// For how long after it asked the caller may believe the answer unless it is told otherwise, in milliseconds; 0 if
    /// it may not.
    pub lease_ms: u32,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Performs one request.
    fn handle(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>>;
}

/// A way to one peer: in process, over TCP, later over RDMA.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request and waits for its reply, at most `request.timeout`.
    ///
    /// # Errors
    /// What the peer answered, or [`FsError::Unavailable`] when it did not: the request may have been applied.
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>>;
}

/// A shared way to a peer.
pub type Peer = Arc<dyn Transport>;

/// Calls `message` on `peer` without bulk payload either way.
///
/// # Errors
/// As [`Transport::call`]; [`FsError::Io`] when the reply cannot be decoded.
pub async fn call<M: Method>(
    peer: &dyn Transport,
    message: &M,
    timeout: Duration,
) -> Result<M::Reply, FsError> {
    call_bulk(peer, message, Vec::new(), timeout)
        .await
        .map(|(reply, _)| reply)
}

/// Calls `message` in the name of a client; returns the reply's lease too ([`Reply::lease_ms`]).
///
/// # Errors
/// As [`call`].
pub async fn call_as<M: Method>(
    peer: &dyn Transport,
    caller: Caller,
    message: &M,
    timeout: Duration,
) -> Result<(M::Reply, u32), FsError> {
    let request = request(Some(caller), message, Vec::new(), timeout);
    let reply = peer.call(request).await?;
    Ok((decode_reply::<M>(&reply.head)?, reply.lease_ms))
}

/// Calls `message` with a bulk payload and returns the reply's payload too.
///
/// # Errors
/// As [`call`].
pub async fn call_bulk<M: Method>(
    peer: &dyn Transport,
    message: &M,
    body: Vec<Bytes>,
    timeout: Duration,
) -> Result<(M::Reply, Vec<Bytes>), FsError> {
    let reply = peer.call(request(None, message, body, timeout)).await?;
    Ok((decode_reply::<M>(&reply.head)?, reply.body))
}

fn request<M: Method>(
    caller: Option<Caller>,
    message: &M,
    body: Vec<Bytes>,
    timeout: Duration,
) -> Request {
    Request {
        caller,
        service: M::SERVICE,
        method: M::ID,
        timeout,
        head: message.to_wire(),
        body,
    }
}

fn decode_reply<M: Method>(head: &[u8]) -> Result<M::Reply, FsError> {
    M::Reply::from_wire(head)
        .map_err(|error| FsError::Io(format!("reply to {} not understood: {error}", M::NAME)))
}

/// Decodes a request's head on the serving side.
///
/// # Errors
/// [`FsError::Invalid`].
pub fn decode<M: Method>(head: &[u8]) -> Result<M, FsError> {
    M::from_wire(head).map_err(|error| FsError::Invalid(format!("request {}: {error}", M::NAME)))
}
