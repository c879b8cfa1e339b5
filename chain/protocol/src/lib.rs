//! CRAQ, decided: what one replica of a chain does with a write, a completion or an acknowledgement.
//!
//! Pure (`no_std` + `alloc`): no clock, disk, socket, lock or payload byte. A driver (`chain/server`) feeds
//! [`Input`]s to a [`Replica`] and performs the [`Output`]s; committed state lives in the engine and comes back
//! as [`Input::Loaded`]. Source: Terrace and Freedman, "Object Storage on CRAQ", USENIX ATC '09.
//!
//! Reading order: `messages`, `replica`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod limits;
mod messages;
mod replica;

pub use messages::{Input, Membership, Output, Reason, Rejected, Tag, WriteId};
pub use replica::Replica;
