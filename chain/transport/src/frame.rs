//! The frame: a fixed header with its own CRC32C, the message head, the bulk body.
//!
//! Header, 45 bytes, big-endian: magic u32, kind u8 (1 request, 2 reply, 3 error), service u8, method u16, request id u64,
//! time u32 (ms: a request's timeout, a reply's lease), head length u32, body length u32, CRC32C of the head u32, client u64
//! (0: none), flags u8 (1: the client wants a lease), CRC32C of the header so far u32.
//! The body carries its own checksum in the message (it covers the bytes from the client's buffer on, promise P5).
//! A header that does not check out ends the connection: after it nothing can be trusted to be a boundary.

use std::io;

use bytes::Bytes;
use crc_fast::crc32_iscsi as crc32c;
use janusfs_types::limits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(crate) const HEADER_LEN_BYTES: usize = 45;
const SUM_AT: usize = HEADER_LEN_BYTES - 4;
const WANTS_LEASE: u8 = 1;
const MAGIC: u32 = 0x4a46_5331; // "JFS1"

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Request,
    Reply,
    Error,
}

/// A frame without its transport.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) service: u8,
    pub(crate) method: u16,
    pub(crate) request: u64,
    /// A request's timeout, a reply's lease.
    pub(crate) time_ms: u32,
    /// 0 for none.
    pub(crate) client: u64,
    pub(crate) wants_lease: bool,
    pub(crate) head: Bytes,
    pub(crate) body: Vec<Bytes>,
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Writes a frame: header and head in one piece, the body's pieces as they are.
///
/// # Errors
/// The socket's, or `InvalidData` when the frame is over a limit.
pub(crate) async fn write<W: AsyncWrite + Unpin>(out: &mut W, frame: &Frame) -> io::Result<()> {
    let body_len: usize = frame.body.iter().map(Bytes::len).sum();
    if frame.head.len() > limits::RPC_HEAD_MAX_BYTES || body_len > limits::RPC_BODY_MAX_BYTES {
        return Err(bad("the message is over the frame's limit"));
    }
    let mut start = Vec::with_capacity(HEADER_LEN_BYTES + frame.head.len());
    let kind = match frame.kind {
        Kind::Request => 1,
        Kind::Reply => 2,
        Kind::Error => 3,
    };
    let len = |len: usize| u32::try_from(len).map_err(|_| bad("length"));
    start.extend_from_slice(&MAGIC.to_be_bytes());
    start.extend_from_slice(&[kind, frame.service]);
    start.extend_from_slice(&frame.method.to_be_bytes());
    start.extend_from_slice(&frame.request.to_be_bytes());
    start.extend_from_slice(&frame.time_ms.to_be_bytes());
    start.extend_from_slice(&len(frame.head.len())?.to_be_bytes());
    start.extend_from_slice(&len(body_len)?.to_be_bytes());
    start.extend_from_slice(&crc32c(&frame.head).to_be_bytes());
    start.extend_from_slice(&frame.client.to_be_bytes());
    start.push(u8::from(frame.wants_lease));
    let sum = crc32c(&start);
    start.extend_from_slice(&sum.to_be_bytes());
    start.extend_from_slice(&frame.head);
    out.write_all(&start).await?;
    for piece in &frame.body {
        out.write_all(piece).await?;
    }
    out.flush().await
}

/// Reads a frame. The body arrives in one fresh buffer.
///
/// # Cancel safety
/// Not cancel-safe: a dropped read leaves the connection in the middle of a frame.
///
/// # Errors
/// The socket's; `InvalidData` for bytes that are no frame or over a limit; `UnexpectedEof` at the end.
pub(crate) async fn read<R: AsyncRead + Unpin>(input: &mut R) -> io::Result<Frame> {
    let mut header = [0; HEADER_LEN_BYTES];
    input.read_exact(&mut header).await?;
    let parsed = parse(&header)?;
    let mut head = vec![0; parsed.head_len];
    input.read_exact(&mut head).await?;
    if crc32c(&head) != parsed.head_crc {
        return Err(bad("the message head does not match its checksum"));
    }
    let mut body = Vec::with_capacity(parsed.body_len);
    let mut limited = input.take(u64::try_from(parsed.body_len).map_err(|_| bad("length"))?);
    while body.len() < parsed.body_len {
        if limited.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Frame {
        head: head.into(),
        body: if body.is_empty() {
            Vec::new()
        } else {
            vec![body.into()]
        },
        ..parsed.frame
    })
}

struct Parsed {
    frame: Frame,
    head_len: usize,
    body_len: usize,
    head_crc: u32,
}

fn parse(header: &[u8; HEADER_LEN_BYTES]) -> io::Result<Parsed> {
    let u32_at = |at: usize| {
        let bytes = header
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(bytes.expect("offsets are inside the header"))
    };
    let u64_at = |at: usize| (u64::from(u32_at(at)) << 32) | u64::from(u32_at(at + 4));
    if u32_at(SUM_AT) != crc32c(&header[..SUM_AT]) || u32_at(0) != MAGIC {
        return Err(bad("not a JanusFS frame"));
    }
    if header[40] & !WANTS_LEASE != 0 {
        return Err(bad("unknown flags of a frame"));
    }
    let kind = match header[4] {
        1 => Kind::Request,
        2 => Kind::Reply,
        3 => Kind::Error,
        _ => return Err(bad("unknown kind of frame")),
    };
    let head_len = usize::try_from(u32_at(20)).map_err(|_| bad("length"))?;
    let body_len = usize::try_from(u32_at(24)).map_err(|_| bad("length"))?;
    if head_len > limits::RPC_HEAD_MAX_BYTES || body_len > limits::RPC_BODY_MAX_BYTES {
        return Err(bad("the frame is over its limit"));
    }
    Ok(Parsed {
        frame: Frame {
            kind,
            service: header[5],
            method: u16::from_be_bytes([header[6], header[7]]),
            request: u64_at(8),
            time_ms: u32_at(16),
            client: u64_at(32),
            wants_lease: header[40] & WANTS_LEASE != 0,
            head: Bytes::new(),
            body: Vec::new(),
        },
        head_len,
        body_len,
        head_crc: u32_at(28),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame {
            kind: Kind::Request,
            service: 2,
            method: 0x1234,
            request: 0x0102_0304_0506_0708,
            time_ms: 99,
            client: 0x1122_3344_5566_7788,
            wants_lease: true,
            head: Bytes::from_static(b"head"),
            body: vec![Bytes::from_static(b"bo"), Bytes::from_static(b"dy")],
        }
    }

    async fn encoded() -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, &frame()).await.unwrap();
        out
    }

    #[tokio::test]
    async fn a_frame_comes_back_as_it_was() {
        let bytes = encoded().await;
        let back = read(&mut bytes.as_slice()).await.unwrap();
        let sent = frame();
        assert_eq!(
            (back.kind, back.service, back.method),
            (sent.kind, sent.service, sent.method)
        );
        assert_eq!((back.request, back.time_ms), (sent.request, sent.time_ms));
        assert_eq!(
            (back.client, back.wants_lease),
            (sent.client, sent.wants_lease)
        );
        assert_eq!(back.head, sent.head);
        assert_eq!(back.body.concat(), b"body");
    }

    #[tokio::test]
    async fn every_flipped_bit_of_header_and_head_is_noticed() {
        let good = encoded().await;
        for bit in 0..8 * (HEADER_LEN_BYTES + 4) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut bytes.as_slice()).await.is_err(), "bit {bit}");
        }
    }

    #[tokio::test]
    async fn a_cut_frame_is_an_end_not_a_message() {
        let good = encoded().await;
        for len in 0..good.len() {
            assert!(read(&mut &good[..len]).await.is_err(), "{len} bytes");
        }
    }
}
