//! TCP: a server that answers frames with a handler, and a peer that keeps a few connections.
//!
//! Invariants: a connection carries many requests at once, at most `RPC_INFLIGHT_MAX`; a reply finds its caller by request id;
//! whatever ends a connection fails every call on it with `Unavailable` (maybe applied), never silently. One task reads a
//! connection; whoever has a frame to send takes the write permit and writes it whole.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use janusfs_env::{clock, metrics, tasks};
use janusfs_rpc::{Caller, Handler, Reply, Request, Transport};
use janusfs_types::{ClientId, FsError, limits};
use janusfs_wire::{ServiceId, Wire};
use parking_lot::Mutex;
use tokio::{
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, oneshot, watch},
};

use crate::{
    frame::{self, Frame, Kind},
    handshake,
    secret::ClusterSecret,
};

/// Connections one peer keeps to another: bulk on one does not delay small calls on the next.
const CONNECTIONS_PER_PEER: usize = 2;
/// Time for TCP connect and handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections a server keeps open at once; the next ones are refused.
const SERVER_CONNECTIONS_MAX: usize = 1024;

/// The sending half of a connection: frames are written whole, one at a time.
struct FrameSink {
    permit: Semaphore,
    half: Mutex<Option<OwnedWriteHalf>>,
}

impl FrameSink {
    fn new(half: OwnedWriteHalf) -> Self {
        Self {
            permit: Semaphore::new(1),
            half: Mutex::new(Some(half)),
        }
    }

    /// Writes a frame. A caller that is dropped half way leaves no sender behind: the connection is then dead, as it must be.
    async fn send(&self, frame: &Frame) -> std::io::Result<()> {
        let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let _permit = self.permit.acquire().await.map_err(|_| closed())?;
        let mut half = self.half.lock().take().ok_or_else(closed)?;
        let result = frame::write(&mut half, frame).await;
        if result.is_ok() {
            *self.half.lock() = Some(half);
        }
        result
    }
}

/// Accepts cluster connections and answers their requests.
pub struct TcpServer;

impl TcpServer {
    /// Serves until `stop` turns true. Requests in progress then end without an answer: their callers see `Unavailable`.
    ///
    /// # Errors
    /// Only if the listener fails for good.
    pub async fn serve(
        listener: TcpListener,
        secret: ClusterSecret,
        handler: Arc<dyn Handler>,
        mut stop: watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        let connections = Arc::new(Semaphore::new(SERVER_CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a connection that died in the queue: the listener itself is well.
                    tracing::warn!(%error, "accept failed");
                    clock::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = connections.clone().try_acquire_owned() else {
                metrics::RPC_REJECTED.add(1);
                tracing::warn!(%address, limit = SERVER_CONNECTIONS_MAX, "too many cluster connections");
                continue;
            };
            let (secret, handler) = (secret.clone(), handler.clone());
            let mut stop = stop.clone();
            tasks::spawn(async move {
                tokio::select! {
                    () = serve_connection(stream, address, secret, handler) => {}
                    _ = stop.wait_for(|stop| *stop) => {}
                }
                drop(permit);
            });
        }
    }
}

async fn serve_connection(
    mut stream: TcpStream,
    address: SocketAddr,
    secret: ClusterSecret,
    handler: Arc<dyn Handler>,
) {
    let _ = stream.set_nodelay(true);
    match clock::timeout(CONNECT_TIMEOUT, handshake::accept(&mut stream, &secret)).await {
        Ok(Ok(())) => metrics::RPC_CONNECTIONS.add(1),
        Ok(Err(error)) => {
            metrics::RPC_REJECTED.add(1);
            tracing::warn!(%address, %error, "cluster connection refused");
            return;
        }
        Err(_) => {
            metrics::RPC_REJECTED.add(1);
            return;
        }
    }
    let (mut input, output) = stream.into_split();
    let sink = Arc::new(FrameSink::new(output));
    // Dropping the set ends the answers in progress: a stopped server closes its sockets at once.
    let mut answers = tokio::task::JoinSet::new();
    let inflight = Arc::new(Semaphore::new(limits::RPC_INFLIGHT_MAX));
    loop {
        // Not reading on while too much is in flight stalls the sender: that is the back-pressure.
        let Ok(permit) = inflight.clone().acquire_owned().await else {
            return;
        };
        let Ok(frame) = frame::read(&mut input).await else {
            break;
        };
        while answers.try_join_next().is_some() {}
        let (handler, sink) = (handler.clone(), sink.clone());
        answers.spawn(async move {
            let reply = answer(&*handler, frame).await;
            if let Err(error) = sink.send(&reply).await {
                tracing::debug!(%address, %error, "reply not sent");
            }
            drop(permit);
        });
    }
    // The peer sends no more, but may still read: what it asked for is finished.
    while answers.join_next().await.is_some() {}
}

async fn answer(handler: &dyn Handler, frame: Frame) -> Frame {
    let Frame {
        service,
        method,
        request,
        time_ms,
        client,
        wants_lease,
        head,
        body,
        kind: _,
    } = frame;
    let timeout = Duration::from_millis(time_ms.into());
    let caller = (client != 0).then_some(Caller {
        client: ClientId(client),
        wants_lease,
        remote: true,
    });
    let result = match ServiceId::from_code(service) {
        Some(service) => {
            let call = handler.handle(Request {
                caller,
                service,
                method,
                timeout,
                head,
                body,
            });
            clock::timeout(timeout, call).await.unwrap_or_else(|_| {
                Err(FsError::Unavailable(
                    "the deadline passed on the server".into(),
                ))
            })
        }
        None => Err(FsError::Unsupported(format!("service {service}"))),
    };
    let (kind, head, body, time_ms) = match result {
        Ok(reply) => (Kind::Reply, reply.head, reply.body, reply.lease_ms),
        Err(error) => (Kind::Error, error.to_wire(), Vec::new(), 0),
    };
    Frame {
        kind,
        service,
        method,
        request,
        time_ms,
        client,
        wants_lease: false,
        head,
        body,
    }
}

type Waiting = HashMap<u64, oneshot::Sender<Result<Reply, FsError>>>;

/// One authenticated connection and the calls that wait on it.
struct Connection {
    sink: FrameSink,
    /// `None` once the connection has ended: nobody may wait on it any more.
    waiting: Mutex<Option<Waiting>>,
    inflight: Semaphore,
}

impl Connection {
    fn fail_all(&self, text: &str) {
        let waiting = self.waiting.lock().take();
        for (_, sender) in waiting.into_iter().flatten() {
            // A caller that gave up does not mind.
            let _ = sender.send(Err(FsError::Unavailable(text.into())));
        }
    }

    fn is_open(&self) -> bool {
        self.waiting.lock().is_some()
    }
}

async fn read_replies(mut input: OwnedReadHalf, connection: Weak<Connection>) {
    loop {
        let result = frame::read(&mut input).await;
        let Some(connection) = connection.upgrade() else {
            return;
        };
        let frame = match result {
            Ok(frame) => frame,
            Err(error) => return connection.fail_all(&format!("connection lost: {error}")),
        };
        let sender = connection
            .waiting
            .lock()
            .as_mut()
            .and_then(|waiting| waiting.remove(&frame.request));
        let Some(sender) = sender else { continue }; // the caller's deadline passed
        let result = match frame.kind {
            Kind::Reply => Ok(Reply {
                head: frame.head,
                body: frame.body,
                lease_ms: frame.time_ms,
            }),
            Kind::Error => Err(FsError::from_wire(&frame.head).unwrap_or_else(|error| {
                FsError::Io(format!("error reply not understood: {error}"))
            })),
            Kind::Request => return connection.fail_all("the peer sent a request as a reply"),
        };
        // A caller that gave up does not mind.
        let _ = sender.send(result);
    }
}

/// Takes a call off the waiting list when its caller goes away.
struct Forget<'a>(&'a Connection, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.0.waiting.lock().as_mut() {
            waiting.remove(&self.1);
        }
    }
}

/// A peer reached over TCP. Connects when first used and again after a loss.
pub struct TcpPeer {
    address: String,
    secret: ClusterSecret,
    runtime: tokio::runtime::Handle,
    slots: [Slot; CONNECTIONS_PER_PEER],
    next_slot: AtomicUsize,
    next_request: AtomicU64,
}

struct Slot {
    connecting: Semaphore,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl TcpPeer {
    /// Names a peer at `address` (`host:port`); `runtime` runs the connection's reader.
    #[must_use]
    pub fn new(address: &str, secret: ClusterSecret, runtime: tokio::runtime::Handle) -> Self {
        Self {
            address: address.into(),
            secret,
            runtime,
            slots: std::array::from_fn(|_| Slot {
                connecting: Semaphore::new(1),
                connection: Mutex::new(None),
            }),
            next_slot: AtomicUsize::new(0),
            next_request: AtomicU64::new(1),
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, FsError> {
        let index = self.next_slot.fetch_add(1, Ordering::Relaxed) % CONNECTIONS_PER_PEER;
        let slot = &self.slots[index];
        let open = || {
            slot.connection
                .lock()
                .clone()
                .filter(|connection| connection.is_open())
        };
        if let Some(connection) = open() {
            return Ok(connection);
        }
        let _permit = slot
            .connecting
            .acquire()
            .await
            .map_err(|_| FsError::Unavailable("closing".into()))?;
        if let Some(connection) = open() {
            return Ok(connection);
        }
        let connection = clock::timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .unwrap_or_else(|_| {
                Err(FsError::Unavailable(format!(
                    "{} does not answer",
                    self.address
                )))
            })?;
        *slot.connection.lock() = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<Arc<Connection>, FsError> {
        let mut stream = TcpStream::connect(&self.address).await.map_err(|error| {
            FsError::Unavailable(format!("cannot connect to {}: {error}", self.address))
        })?;
        let _ = stream.set_nodelay(true);
        handshake::connect(&mut stream, &self.secret)
            .await
            .map_err(|error| match error {
                handshake::HandshakeError::Io(_) => {
                    FsError::Unavailable(format!("{}: {error}", self.address))
                }
                _ => FsError::Invalid(format!("{}: {error}", self.address)),
            })?;
        let (input, output) = stream.into_split();
        let connection = Arc::new(Connection {
            sink: FrameSink::new(output),
            waiting: Mutex::new(Some(HashMap::new())),
            inflight: Semaphore::new(limits::RPC_INFLIGHT_MAX),
        });
        let _context = self.runtime.enter();
        tasks::spawn(read_replies(input, Arc::downgrade(&connection)));
        Ok(connection)
    }

    async fn exchange(&self, request: Request) -> Result<Reply, FsError> {
        let connection = self.connection().await?;
        let _permit = connection
            .inflight
            .acquire()
            .await
            .map_err(|_| FsError::Unavailable("closing".into()))?;
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match connection.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(FsError::Unavailable("connection lost".into())),
        };
        let _forget = Forget(&connection, id);
        let frame = Frame {
            kind: Kind::Request,
            service: request.service.code(),
            method: request.method,
            request: id,
            time_ms: u32::try_from(request.timeout.as_millis()).unwrap_or(u32::MAX),
            client: request.caller.map_or(0, |caller| caller.client.0),
            wants_lease: request.caller.is_some_and(|caller| caller.wants_lease),
            head: request.head,
            body: request.body,
        };
        if let Err(error) = connection.sink.send(&frame).await {
            connection.fail_all(&format!("connection lost: {error}"));
            return Err(FsError::Unavailable(format!("{}: {error}", self.address)));
        }
        receiver
            .await
            .unwrap_or_else(|_| Err(FsError::Unavailable("connection lost".into())))
    }
}

impl Transport for TcpPeer {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>> {
        let timeout = request.timeout;
        async move {
            clock::timeout(timeout, self.exchange(request))
                .await
                .unwrap_or_else(|_| {
                    Err(FsError::Unavailable(format!(
                        "{}: the deadline passed",
                        self.address
                    )))
                })
        }
        .boxed()
    }
}
