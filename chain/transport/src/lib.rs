//! Ways between machines: TCP today, RDMA later.
//!
//! Owns: the frame, the mutual authentication of the two ends, connection reuse. Absent: what a request means.
//! Both ends prove that they know the cluster secret before anything else is read (promise P7); the bytes that follow are
//! checked by CRC32C but not encrypted, so a cluster network must be trusted or tunnelled.
#![forbid(unsafe_code)]

mod frame;
mod handshake;
mod secret;
mod tcp;

pub use handshake::HandshakeError;
pub use secret::{ClusterSecret, SecretError};
pub use tcp::{TcpPeer, TcpServer};
