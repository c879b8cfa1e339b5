//! Bytes between processes: the codec, the status table, and the messages of each service.
//!
//! Owns: how a value looks on the wire. Absent: sockets and deadlines (`core/rpc`), meaning (`core/meta`,
//! `chain/protocol`). Encoding is big-endian, field after field in the order written in this crate; a list or byte
//! string is its u32 length and its items. Decoding never panics and never allocates more than the input's length
//! justifies: a peer's bytes are input, not truth.
//!
//! Fields of a request are explained in its own text.
//!
//! A change of any message is a change of [`PROTOCOL_VERSION`]: peers of another version are refused with a clear
//! error in the handshake.
#![forbid(unsafe_code)]

mod codec;
mod domain;
pub mod meta;
mod status;
pub mod storage;

pub use codec::{DecodeError, Decoder, Encoder, Wire};

/// Version of all messages in this crate together.
pub const PROTOCOL_VERSION: u16 = 3;

/// Which service of a node a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ServiceId {
    /// The metadata service: `meta` messages.
    Meta,
    /// The storage role: `storage` messages.
    Storage,
}

impl ServiceId {
    /// Returns the number that stands for the service in a frame.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Meta => 1,
            Self::Storage => 2,
        }
    }

    /// Reads a frame's service number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Meta, Self::Storage]
            .into_iter()
            .find(|service| service.code() == code)
    }
}

/// A request type: its method number within its service, and its reply type.
pub trait Method: Wire {
    /// The service it belongs to.
    const SERVICE: ServiceId;
    /// Its number within the service; never reused.
    const ID: u16;
    /// Its name in logs and metrics.
    const NAME: &'static str;
    /// What comes back.
    type Reply: Wire;
}
