//! From a method number of the S3 half to its call.

use bytes::Bytes;
use futures::future::BoxFuture;
use janusfs_kv::Kv;
use janusfs_types::FsError;
use janusfs_wire::{Method, Wire, meta};

use crate::{Meta, MetaError};

/// Answers a request with its encoded reply; `None` when the method is not one of these.
pub(crate) fn dispatch<K: Kv>(
    meta: &Meta<K>,
    method: u16,
    head: Bytes,
) -> Option<BoxFuture<'_, Result<Bytes, MetaError>>> {
    macro_rules! route {
        ($($request:ident($call:pat) => $answer:expr;)*) => {
            match method {
                $(meta::$request::ID => Some(Box::pin(async move {
                    let $call = meta::$request::from_wire(&head)
                        .map_err(|error| FsError::Invalid(format!("request: {error}")))?;
                    let reply: <meta::$request as Method>::Reply = $answer.await?;
                    Ok(reply.to_wire())
                })),)*
                _ => None,
            }
        };
    }
    route! {
        CreateBucket(call) => meta.create_bucket(call);
        GetBucket(call) => meta.get_bucket(call);
        DeleteBucket(call) => meta.delete_bucket(call);
        ListBuckets(_) => meta.list_buckets();
        PutObject(call) => meta.put_object(call);
        GetObject(call) => meta.get_object(call);
        DeleteObjects(call) => meta.delete_objects(call);
        CopyObject(call) => meta.copy_object(call);
        ListObjects(call) => meta.list_objects(call);
        CreateUpload(call) => meta.create_upload(call);
        PutPart(call) => meta.put_part(call);
        CopyPart(call) => meta.copy_part(call);
        ListParts(call) => meta.list_parts(call);
        ListUploads(call) => meta.list_uploads(call);
        CompleteUpload(call) => meta.complete_upload(call);
        AbortUpload(call) => meta.abort_upload(call);
        GetUpload(call) => meta.get_upload(call);
        CreateUser(call) => meta.create_user(call);
        ListUsers(_) => meta.list_users();
        DeleteUser(call) => meta.delete_user(call);
        CreateKey(call) => meta.create_key(call);
        DeleteKey(call) => meta.delete_key(call);
        GetKey(call) => meta.get_key(call);
    }
}
