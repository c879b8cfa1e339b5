//! DeleteObject and DeleteObjects.
//!
//! Invariant: each key is its own transaction; an absent key counts as deleted. `x-amz-bypass-governance-retention` is
//! accepted: nothing is ever locked, so there is nothing to bypass.

use janusfs_types::limits;
use janusfs_wire::meta::{Conditions, DeleteObjects};
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
        DeletedObject, Error,
    },
};

use super::{answer, bucket_of, check_key, check_version, refuse};
use crate::{
    auth::identity,
    error::{Subject, not_implemented, s3_error as from_fs},
    etag::write_conditions,
    namespace::Gateway,
};

pub(crate) async fn one(
    gateway: &Gateway,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse!(input;
        mfa: "MFA delete",
        if_match_last_modified_time: "deleting under a condition on the time",
        if_match_size: "deleting under a condition on the size",
    );
    check_version(input.version_id.as_deref())?;
    check_key(&input.key)?;
    let conditions = write_conditions(input.if_match.as_ref(), None)?;
    bucket_of!(gateway, identity, input)?;
    let subject = if conditions.if_match.is_empty() {
        Subject::Bucket
    } else {
        Subject::Key
    };
    let message = DeleteObjects {
        bucket: input.bucket,
        keys: vec![input.key],
        conditions,
    };
    let deleted = gateway
        .client
        .call(&message)
        .await
        .map_err(|error| from_fs(error, subject))?;
    match deleted.into_iter().find_map(|deleted| deleted.error) {
        None => answer(DeleteObjectOutput::default()),
        Some(error) => Err(from_fs(error, Subject::Key)),
    }
}

pub(crate) async fn many(
    gateway: &Gateway,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse!(input; mfa: "MFA delete");
    let objects = input.delete.objects;
    let max = usize::try_from(limits::LIST_PAGE_MAX).unwrap_or(usize::MAX);
    if objects.is_empty() || objects.len() > max {
        return Err(S3Error::new(S3ErrorCode::MalformedXML));
    }
    bucket_of!(gateway, identity, input)?;
    let (mut keys, mut errors) = (Vec::with_capacity(objects.len()), Vec::new());
    for object in objects {
        let conditional =
            object.e_tag.is_some() || object.last_modified_time.is_some() || object.size.is_some();
        let checked = if conditional {
            Err(not_implemented("a condition inside DeleteObjects"))
        } else {
            check_version(object.version_id.as_deref()).and_then(|()| check_key(&object.key))
        };
        match checked {
            Ok(()) => keys.push(object.key),
            Err(error) => errors.push(why_not(&error, object.key, object.version_id)),
        }
    }
    let quiet = input.delete.quiet == Some(true);
    let mut deleted = Vec::new();
    if !keys.is_empty() {
        let conditions = Conditions::default();
        let message = DeleteObjects {
            bucket: input.bucket,
            keys,
            conditions,
        };
        let results = gateway.client.call(&message).await;
        for result in results.map_err(|error| from_fs(error, Subject::Bucket))? {
            match result.error {
                None => deleted.push(DeletedObject {
                    key: Some(result.key),
                    ..Default::default()
                }),
                Some(error) => {
                    let error = from_fs(error, Subject::Key);
                    errors.push(why_not(&error, result.key, None));
                }
            }
        }
    }
    answer(DeleteObjectsOutput {
        deleted: (!quiet).then_some(deleted),
        errors: (!errors.is_empty()).then_some(errors),
        ..Default::default()
    })
}

fn why_not(error: &S3Error, key: String, version_id: Option<String>) -> Error {
    Error {
        code: Some(error.code().as_str().to_owned()),
        message: error.message().map(str::to_owned),
        key: Some(key),
        version_id,
    }
}
