//! An S3 client that costs little: one connection a worker, kept alive, driven by the worker's own task.
//!
//! Absent: retries and redirects. A request that fails ends the run, since its figure would be worth nothing.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use janusfs_env::clock;
use tokio::net::TcpStream;

use crate::sign::{Signer, UNSIGNED};

/// Most of a failed reply's text that is shown.
const ERROR_SHOWN_BYTES: usize = 300;

/// Whom to speak to and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) address: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// What to do with a reply's body.
enum Body {
    Count,
    Keep,
}

/// One kept-alive connection.
pub(crate) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    connection: http1::Connection<TokioIo<TcpStream>, Full<Bytes>>,
    closed: bool,
    host: String,
    signer: Signer,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(account: &Account) -> Result<Self> {
        let host = account.address.clone();
        let stream = TcpStream::connect(&host)
            .await
            .with_context(|| format!("cannot connect to {host}"))?;
        stream.set_nodelay(true)?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let signer = Signer::new(&account.access_key, &account.secret_key, &host);
        Ok(Self {
            requests,
            connection,
            closed: false,
            host,
            signer,
        })
    }

    /// Stores an object.
    pub(crate) async fn put(&mut self, path: &str, body: Bytes) -> Result<u64> {
        let len = u64::try_from(body.len())?;
        self.send(Method::PUT, path, "", body, Body::Count).await?;
        Ok(len)
    }

    /// Reads an object and returns its length.
    pub(crate) async fn get(&mut self, path: &str) -> Result<u64> {
        let reply = self.send(Method::GET, path, "", Bytes::new(), Body::Count);
        reply.await.map(|(len, _)| len)
    }

    /// Asks for an object's attributes.
    pub(crate) async fn head(&mut self, path: &str) -> Result<()> {
        let reply = self.send(Method::HEAD, path, "", Bytes::new(), Body::Count);
        reply.await.map(|_| ())
    }

    /// Deletes an object.
    pub(crate) async fn delete(&mut self, path: &str) -> Result<()> {
        let reply = self.send(Method::DELETE, path, "", Bytes::new(), Body::Count);
        reply.await.map(|_| ())
    }

    /// Sends a document and returns the reply's.
    pub(crate) async fn post(&mut self, path: &str, query: &str, body: Bytes) -> Result<Bytes> {
        let reply = self.send(Method::POST, path, query, body, Body::Keep);
        reply.await.map(|(_, text)| text)
    }

    /// Asks for a document.
    pub(crate) async fn query(&mut self, path: &str, query: &str) -> Result<Bytes> {
        let reply = self.send(Method::GET, path, query, Bytes::new(), Body::Keep);
        reply.await.map(|(_, text)| text)
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        query: &str,
        body: Bytes,
        keep: Body,
    ) -> Result<(u64, Bytes)> {
        let signed = self
            .signer
            .sign(clock::now_ns(), method.as_str(), path, query);
        let uri = if query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{query}")
        };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .header(header::HOST, &self.host)
            .header("x-amz-date", signed.date)
            .header("x-amz-content-sha256", UNSIGNED)
            .header(header::AUTHORIZATION, signed.authorization);
        if method == Method::POST {
            use base64::Engine as _;
            use md5::Digest as _;
            let digest = md5::Md5::digest(&body);
            let digest = base64::engine::general_purpose::STANDARD.encode(digest);
            request = request.header("content-md5", digest);
        }
        let request = request.body(Full::new(body))?;
        let exchange = exchange(&mut self.requests, request, keep);
        let (status, len, text) = drive(&mut self.connection, &mut self.closed, exchange)
            .await
            .with_context(|| format!("{method} {path}"))?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&text[..text.len().min(ERROR_SHOWN_BYTES)]);
            bail!("{method} {path}: {status} {text}");
        }
        Ok((len, text))
    }
}

async fn exchange(
    requests: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    keep: Body,
) -> Result<(StatusCode, u64, Bytes)> {
    requests.ready().await?;
    let response = requests.send_request(request).await?;
    let status = response.status();
    let keep = matches!(keep, Body::Keep) || !status.is_success();
    let (len, text) = drain(response.into_body(), keep).await?;
    Ok((status, len, text))
}

async fn drain(mut body: Incoming, keep: bool) -> Result<(u64, Bytes)> {
    let mut len = 0;
    let mut kept = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            len += u64::try_from(data.len())?;
            if keep {
                kept.extend_from_slice(&data);
            }
        }
    }
    Ok((len, kept.freeze()))
}

/// Polls the connection on the task that waits for the exchange: no second task, no hop between threads.
async fn drive<T>(
    connection: &mut http1::Connection<TokioIo<TcpStream>, Full<Bytes>>,
    closed: &mut bool,
    exchange: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut exchange = pin!(exchange);
    poll_fn(|context| {
        loop {
            if let Poll::Ready(outcome) = exchange.as_mut().poll(context) {
                return Poll::Ready(outcome);
            }
            if *closed {
                return Poll::Ready(Err(anyhow::anyhow!("the server closed the connection")));
            }
            match Pin::new(&mut *connection).poll(context) {
                Poll::Pending => break,
                // The exchange is looked at once more: the reply may be complete.
                Poll::Ready(ended) => {
                    *closed = true;
                    ended?;
                }
            }
        }
        // The connection may have handed something over.
        exchange.as_mut().poll(context)
    })
    .await
}
