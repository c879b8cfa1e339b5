//! The S3 door: S3 requests in, metadata messages and chunk reads and writes out.
//!
//! Owns: the HTTP server and its limits, SigV4 sign-in and who may use which bucket, the meaning of each S3
//! operation, ETags, checksums, and the S3 code of every error. Absent: HTTP parsing and signatures (the `s3s`
//! crate), the namespace (`core/meta`), bytes (`core/client`).
//!
//! Invariants: an object gets its name in one metadata transaction, after its whole body has arrived and every digest
//! the client gave agreed; a request that asks for something absent is answered `NotImplemented`, never served without it.
//!
//! Reading order: `server`, `unread`, `service`, `auth`, `namespace`, `ops/`, `hashing`, then the pure parts `error`, `etag`,
//! `checksum`, `md5`.
#![forbid(unsafe_code)]

mod auth;
mod checksum;
mod error;
mod etag;
mod hashing;
mod md5;
mod namespace;
mod ops;
mod server;
mod service;
mod unread;

pub use server::{GatewayConfig, run, serve};
