//! The HTTP server: accepts connections up to a limit, serves HTTP/1.1, drains on shutdown.
//!
//! Invariant: a request is one connection's only request, so the connection limit also bounds requests in flight.
//! Absent: TLS (a proxy in front of it), HTTP/2.

use std::{
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{
    HeaderValue, Request, StatusCode,
    header::{CONNECTION, SERVER},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use janusfs_client::Client;
use janusfs_env::{clock, metrics, rng, tasks};
use s3s::{
    HttpError, HttpResponse,
    config::{S3Config, StaticConfigProvider},
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use crate::{
    auth::{Access, Auth, KeyCache},
    namespace::Gateway,
    service::Service,
    unread::{Lingering, watched},
};

/// Open connections, and so requests in flight; further ones wait in the listen queue.
const CONNECTIONS_MAX: u32 = 1024;
/// Time for a request's header to arrive, and for which an idle connection is kept, in seconds.
const HEADER_TIMEOUT_SECONDS: u64 = 60;
/// Time that running requests get to finish after the shutdown signal, in seconds.
const DRAIN_TIMEOUT_SECONDS: u64 = 10;
/// Wait after a failed accept (typically no file descriptor is free), in milliseconds.
const ACCEPT_RETRY_MS: u64 = 50;
/// Largest XML request body in bytes: 10,000 parts or 1,000 keys with every field fit.
const XML_BODY_MAX_BYTES: usize = 8 << 20;

/// Where the door listens and what it says about itself.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Address of the HTTP listener.
    pub listen: SocketAddr,
    /// Region that requests must be signed for; any when absent.
    pub region: Option<String>,
}

/// Binds `config.listen` and serves until `shutdown` completes.
///
/// # Errors
/// When the address cannot be bound or the region is no region name.
pub async fn run(
    client: Client,
    config: GatewayConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(config.listen).await?;
    serve_region(client, listener, config.region, shutdown).await
}

/// Serves S3 on `listener` until `shutdown` completes, then lets running requests finish for a while.
///
/// # Errors
/// None today; a failed accept is logged and tried again.
pub async fn serve(
    client: Client,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    serve_region(client, listener, None, shutdown).await
}

async fn serve_region(
    client: Client,
    listener: TcpListener,
    region: Option<String>,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let service = build(client, region)?;
    let permits = Arc::new(Semaphore::new(
        usize::try_from(CONNECTIONS_MAX).unwrap_or(usize::MAX),
    ));
    let (close, closing) = watch::channel(false);
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = &mut shutdown => break,
        };
        let Ok(permit) = permit else { break };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(stream, peer, service.clone(), closing.clone());
                tasks::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an S3 connection could not be accepted");
                clock::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
            }
        }
    }
    drop(listener);
    close.send_replace(true);
    let drained = permits.acquire_many(CONNECTIONS_MAX);
    if clock::timeout(Duration::from_secs(DRAIN_TIMEOUT_SECONDS), drained)
        .await
        .is_err()
    {
        tracing::warn!("S3 requests still running at the end of the drain time are cut off");
    }
    Ok(())
}

fn build(client: Client, region: Option<String>) -> std::io::Result<S3Service> {
    let expected_region = match &region {
        None => None,
        Some(name) => {
            Some(s3s::region::Region::new(name.clone().into()).map_err(std::io::Error::other)?)
        }
    };
    let mut config = S3Config::default();
    config.xml_max_body_size = XML_BODY_MAX_BYTES;
    config.put_object_max_size = Some(janusfs_types::limits::PUT_SIZE_MAX_BYTES);
    config.expected_region = expected_region;
    let keys = Arc::new(KeyCache::new(client.clone()));
    let mut builder = S3ServiceBuilder::new(Service::new(Gateway::new(client, region)));
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_auth(Auth(keys.clone()));
    builder.set_access(Access(keys));
    Ok(builder.build())
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: S3Service,
    mut closing: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY could not be set");
    }
    let unread = Arc::new(AtomicBool::new(false));
    let stream = Lingering::new(stream, Arc::clone(&unread));
    let handler = service_fn(move |request| answer(service.clone(), Arc::clone(&unread), request));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(HEADER_TIMEOUT_SECONDS))
            .serve_connection(TokioIo::new(stream), handler)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "an S3 connection ended with an error");
    }
}

/// Waits for the shutdown. Apart, because the guard that the channel answers must not be held while waiting further.
async fn closed(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|closing| *closing).await);
}

async fn answer(
    service: S3Service,
    unread: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<HttpResponse, HttpError> {
    let id = format!("{:016X}", rng::random_u64());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (head, body) = request.into_parts();
    let (body, ended) = watched(body);
    let mut response = service.call(Request::from_parts(head, body)).await?;
    metrics::S3_REQUESTS.add(1);
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        metrics::S3_ERRORS.add(1);
    }
    if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
        tracing::warn!(request = %id, %method, path, %status, "an S3 request failed");
    } else {
        tracing::debug!(request = %id, %method, path, %status, "an S3 request was answered");
    }
    // A good answer to a request whose body means nothing: hyper passes over the little that there is.
    let refused = status.is_client_error() || status.is_server_error();
    let cut_short = refused && !ended.load(Ordering::Relaxed);
    unread.store(cut_short, Ordering::Relaxed);
    let headers = response.headers_mut();
    if cut_short {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert("x-amz-request-id", value);
    }
    headers.insert(SERVER, HeaderValue::from_static("JanusFS"));
    Ok(response)
}
