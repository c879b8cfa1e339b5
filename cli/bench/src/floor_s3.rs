//! The floor of the S3 door: the same HTTP stack as ours, with nothing behind it. PUT bodies are discarded, GETs are served
//! from one buffer in memory; no signature is checked.
//!
//! The third part of a path (`/bucket/SIZE/...`) is the object's size, so that nothing has to be remembered.

use std::convert::Infallible;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use janusfs_env::tasks;
use tokio::net::TcpListener;

use crate::{child, noise::noise};

/// Largest object.
pub(crate) const OBJECT_MAX_BYTES: usize = 64 << 20;

/// Serves on a free loopback port, whose address it prints, until standard input ends.
///
/// # Errors
/// When it cannot listen.
pub async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("cannot listen on 127.0.0.1")?;
    let memory = Bytes::from(noise(OBJECT_MAX_BYTES));
    println!("{}", listener.local_addr()?);
    let accept = async {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let _ = stream.set_nodelay(true);
            let memory = memory.clone();
            let service = service_fn(move |request| answer(memory.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Its end, also a broken one, is the client's business.
            drop(tasks::spawn(connection));
        }
    };
    tokio::select! {
        () = accept => {}
        ended = child::asked_to_end() => ended?,
    }
    Ok(())
}

async fn answer(
    memory: Bytes,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let size = size_of(request.uri().path()).min(memory.len());
    let method = request.method().clone();
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let mut response = Response::new(match method {
        Method::GET => Full::new(memory.slice(..size)),
        _ => Full::new(Bytes::new()),
    });
    let headers = response.headers_mut();
    headers.insert(
        header::ETAG,
        HeaderValue::from_static("\"00000000000000000000000000000000\""),
    );
    if method == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, size.into());
    }
    Ok(response)
}

fn size_of(path: &str) -> usize {
    path.split('/')
        .nth(2)
        .and_then(|part| part.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::size_of;

    #[test]
    fn the_size_is_in_the_path() {
        assert_eq!(size_of("/bench/65536/get/1"), 65536);
        assert_eq!(size_of("/bench"), 0);
        assert_eq!(size_of("/bench/x/1"), 0);
    }
}
