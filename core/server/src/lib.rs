//! The metadata role's background work: reclamation.
//!
//! Owns: when reclamation runs and in which order (chunks first, then the rows that name them, so that a crash repeats the work
//! and never forgets it). Absent: what is reclaimable (`core/meta`), how a chunk is removed (`chain/client`).
#![forbid(unsafe_code)]

mod reclamation;

pub use reclamation::Reclamation;
