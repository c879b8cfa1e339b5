//! The S3 half: buckets, objects, listings, multipart uploads, users and keys, on the records of `store`.
//!
//! Owns: how a key maps to the tree, through links too, what is an object, conditions, the order of listings, and the rows `BUCK`, `USER`,
//! `AKEY`, `UPLD`, `PART` and `IDEM`. Absent: HTTP, signatures, policies and digests (the gateway), and who frees a blob
//! (`reclaim`).
//!
//! Reading order: `key`, `link`, `place`, `object`, `walk`, `list`, `share`, `multipart`, `bucket`, `user`.

mod attrs;
mod bucket;
mod dispatch;
mod key;
mod link;
mod list;
mod multipart;
mod object;
mod place;
mod record;
mod share;
#[cfg(test)]
mod tests;
mod upload;
mod user;
mod walk;

pub(crate) use dispatch::dispatch;
pub(crate) use upload::PART_KIND;
