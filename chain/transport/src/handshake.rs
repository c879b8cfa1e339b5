//! Mutual authentication by the cluster secret: challenge and response, both ways, before any frame.
//!
//! Client → server: magic, protocol version, nonce C. Server → client: magic, version, nonce S, HMAC(secret, "server" C S).
//! Client → server: HMAC(secret, "client" C S). Server → client: one byte, 1 (0: refused). HMAC-SHA256 (RFC 2104), compared in constant
//! time. A replay fails because each side's answer covers the other side's fresh nonce; the two labels keep an answer from
//! being reflected. A wrong version is told apart from a wrong secret.

use std::io;

use hmac::{Hmac, KeyInit, Mac};
use janusfs_wire::PROTOCOL_VERSION;
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::secret::ClusterSecret;

const MAGIC: [u8; 6] = *b"JanusF";
const NONCE_LEN_BYTES: usize = 32;
const MAC_LEN_BYTES: usize = 32;

/// Why two ends did not come together.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed or the other end hung up.
    #[error("the connection ended during the handshake")]
    Io(#[source] io::Error),
    /// Something else listens there.
    #[error("the other end is not a JanusFS cluster address")]
    NotJanusFs,
    /// Another version of the messages.
    #[error(
        "the other end speaks protocol version {theirs}, this one {ours}: upgrade the older one"
    )]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// The secrets differ.
    #[error("the cluster secrets differ: use the cluster.key of that cluster's data directory")]
    WrongSecret,
}

impl From<io::Error> for HandshakeError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

fn mac(secret: &ClusterSecret, label: &[u8], client: &[u8], server: &[u8]) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.bytes()).expect("HMAC takes keys of any length");
    mac.update(label);
    mac.update(client);
    mac.update(server);
    mac
}

async fn hello<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<[u8; NONCE_LEN_BYTES]> {
    let nonce = janusfs_env::rng::random_bytes();
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&PROTOCOL_VERSION.to_be_bytes());
    out.extend_from_slice(&nonce);
    stream.write_all(&out).await?;
    Ok(nonce)
}

async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<[u8; NONCE_LEN_BYTES], HandshakeError> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(HandshakeError::NotJanusFs);
    }
    let theirs = stream.read_u16().await?;
    let mut nonce = [0; NONCE_LEN_BYTES];
    stream.read_exact(&mut nonce).await?;
    if theirs != PROTOCOL_VERSION {
        return Err(HandshakeError::Version {
            ours: PROTOCOL_VERSION,
            theirs,
        });
    }
    Ok(nonce)
}

/// Runs the connecting side.
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use afterwards.
pub(crate) async fn connect<S>(stream: &mut S, secret: &ClusterSecret) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ours = hello(stream).await?;
    let theirs = read_hello(stream).await?;
    let mut proof = [0; MAC_LEN_BYTES];
    stream.read_exact(&mut proof).await?;
    mac(secret, b"server", &ours, &theirs)
        .verify_slice(&proof)
        .map_err(|_| HandshakeError::WrongSecret)?;
    let answer = mac(secret, b"client", &ours, &theirs)
        .finalize()
        .into_bytes();
    stream.write_all(&answer).await?;
    match stream.read_u8().await {
        Ok(1) => Ok(()),
        Ok(_) => Err(HandshakeError::WrongSecret),
        Err(error) => Err(error.into()),
    }
}

/// Runs the accepting side.
///
/// # Errors
/// [`HandshakeError`]; hang up.
pub(crate) async fn accept<S>(stream: &mut S, secret: &ClusterSecret) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let theirs = read_hello(stream).await;
    let ours = hello(stream).await?;
    let theirs = theirs?;
    let proof = mac(secret, b"server", &theirs, &ours)
        .finalize()
        .into_bytes();
    stream.write_all(&proof).await?;
    let mut answer = [0; MAC_LEN_BYTES];
    stream.read_exact(&mut answer).await?;
    let verdict = mac(secret, b"client", &theirs, &ours).verify_slice(&answer);
    stream.write_u8(verdict.is_ok().into()).await?;
    verdict.map_err(|_| HandshakeError::WrongSecret)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(
        client: [u8; 32],
        server: [u8; 32],
    ) -> (Result<(), HandshakeError>, Result<(), HandshakeError>) {
        let (mut a, mut b) = tokio::io::duplex(4096);
        let server_side = async move {
            let result = accept(&mut b, &ClusterSecret::new(server)).await;
            drop(b);
            result
        };
        let client_side = async move {
            let result = connect(&mut a, &ClusterSecret::new(client)).await;
            drop(a);
            result
        };
        futures::join!(client_side, server_side)
    }

    #[tokio::test]
    async fn equal_secrets_meet() {
        let (client, server) = run([7; 32], [7; 32]).await;
        assert!(client.is_ok() && server.is_ok());
    }

    #[tokio::test]
    async fn different_secrets_do_not_and_the_client_is_told_why() {
        let (client, server) = run([7; 32], [8; 32]).await;
        assert!(matches!(client, Err(HandshakeError::WrongSecret)));
        assert!(server.is_err());
    }

    #[tokio::test]
    async fn another_protocol_is_no_janusfs() {
        let (mut a, mut b) = tokio::io::duplex(4096);
        a.write_all(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n")
            .await
            .unwrap();
        let result = accept(&mut b, &ClusterSecret::new([1; 32])).await;
        assert!(matches!(result, Err(HandshakeError::NotJanusFs)));
    }
}
