//! What becomes of a request's body that nobody read to its end: an early refusal must reach the client all the same.
//!
//! A socket that is closed while bytes arrive, or lie unread, answers with a reset, and a reset throws away what the other side has not
//! read yet: the client sees "connection closed" in place of the error. So the answer says `Connection: close` and goes out, the
//! sending side is closed, and what still arrives is read and thrown away until the client closes too ("lingering close": RFC 9112,
//! section 9.6), within limits.
//!
//! A client that asked with `Expect: 100-continue` is not told to go on, because nobody reads its body; it sends none and
//! closes, which ends the wait at once.
//!
//! Invariant: a connection whose requests were all read to their end is closed without a wait.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use janusfs_env::clock;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Most that is read and thrown away of one connection, in bytes: nearly all objects that are not sent in parts.
const LINGER_MAX_BYTES: u64 = 1 << 30;
/// Time without a byte after which the client is taken for gone, in seconds.
const LINGER_IDLE_SECONDS: u64 = 5;
/// Longest time in all, in times of `LINGER_IDLE_SECONDS`.
const LINGER_IDLES_MAX: u32 = 12;
const DISCARD_BYTES: usize = 64 << 10;

/// A request's body that tells whether it was read to its end.
pub(crate) struct Watched {
    inner: Incoming,
    ended: Arc<AtomicBool>,
}

/// Wraps a body, with the mark of its end. A request without a body is at its end already.
pub(crate) fn watched(body: Incoming) -> (s3s::Body, Arc<AtomicBool>) {
    let ended = Arc::new(AtomicBool::new(body.is_end_stream()));
    if body.is_end_stream() {
        return (body.into(), ended);
    }
    let watched = Watched {
        inner: body,
        ended: Arc::clone(&ended),
    };
    (s3s::Body::http_body(watched), ended)
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if frame.is_none() || self.inner.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A socket that, when marked, is closed only after the client closed it, or after a limit.
pub(crate) struct Lingering {
    stream: TcpStream,
    unread: Arc<AtomicBool>,
    discard: Option<Discard>,
}

struct Discard {
    buffer: Box<[u8]>,
    left_bytes: u64,
    idle: Pin<Box<dyn Future<Output = ()> + Send>>,
    idles: u32,
    heard: bool,
}

fn idle() -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(clock::sleep(Duration::from_secs(LINGER_IDLE_SECONDS)))
}

impl Discard {
    fn new() -> Self {
        Self {
            buffer: vec![0; DISCARD_BYTES].into(),
            left_bytes: LINGER_MAX_BYTES,
            idle: idle(),
            idles: 0,
            heard: false,
        }
    }

    /// Ready when the client has closed, or is not worth a further wait.
    fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        while self.left_bytes > 0 {
            while self.idle.as_mut().poll(cx).is_ready() {
                self.idles += 1;
                if !self.heard || self.idles == LINGER_IDLES_MAX {
                    return Poll::Ready(());
                }
                self.heard = false;
                self.idle = idle();
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            let len = u64::try_from(buffer.filled().len()).unwrap_or(u64::MAX);
            if read.is_err() || len == 0 {
                return Poll::Ready(());
            }
            self.heard = true;
            self.left_bytes = self.left_bytes.saturating_sub(len);
        }
        Poll::Ready(())
    }
}

impl Lingering {
    /// Wraps a socket. While `unread` is set, part of a request lies unread or is on its way.
    pub(crate) fn new(stream: TcpStream, unread: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            unread,
            discard: None,
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.discard.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let discard = this.discard.get_or_insert_with(Discard::new);
        discard.poll(&mut this.stream, cx).map(Ok)
    }
}
