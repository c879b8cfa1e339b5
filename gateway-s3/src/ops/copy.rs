//! CopyObject: by reference, no byte moves.
//!
//! Invariant: the conditions on the source hold for the bytes that are copied, because the transaction copies only the
//! ETag they were checked against.

use janusfs_wire::meta::{CopyObject, Object, ObjectAttrs};
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource},
    s3_error,
};

use super::{
    NULL_VERSION, answer, bucket_of, check_key, check_version, content_headers, get,
    metadata_pairs, refuse, refuse_write_options, to_the_end,
};
use crate::{
    auth::identity,
    checksum::{Algorithm, set_checksums},
    error::{Subject, not_implemented, s3_error as from_fs},
    etag::{ReadConditions, Verdict, timestamp, typed, write_conditions},
    namespace::Gateway,
};

/// Returns bucket and key of a copy source.
pub(crate) fn source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket {
            bucket,
            key,
            version_id,
        } => {
            check_version(version_id.as_deref())?;
            Ok((bucket, key))
        }
        _ => Err(not_implemented("an access point as copy source")),
    }
}

/// Checks the copy-source conditions: unlike for a read, "not modified" fails.
pub(crate) fn check_source(conditions: &ReadConditions<'_>, object: &Object) -> S3Result<()> {
    match conditions.verdict(&object.attrs.etag, object.file.attr.times.modified_ns) {
        Verdict::Proceed => Ok(()),
        Verdict::NotModified | Verdict::PreconditionFailed => {
            Err(S3Error::new(S3ErrorCode::PreconditionFailed))
        }
    }
}

/// Tells whether a directive says REPLACE.
fn replaces(directive: Option<&str>, name: &str) -> S3Result<bool> {
    match directive {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => Err(s3_error!(InvalidArgument, "Unknown {name} directive.")),
    }
}

pub(crate) async fn object(
    gateway: &Gateway,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse_write_options!(input);
    refuse!(input;
        copy_source_sse_customer_algorithm: "server-side encryption",
        copy_source_sse_customer_key: "server-side encryption",
        annotation_directive: "annotations",
    );
    let directive = input
        .metadata_directive
        .as_ref()
        .map(|directive| directive.as_str());
    let replace = replaces(directive, "metadata")?;
    let tagging = input
        .tagging_directive
        .as_ref()
        .map(|directive| directive.as_str());
    if replaces(tagging, "tagging")? {
        return Err(not_implemented("tagging"));
    }
    check_key(&input.key)?;
    let (source_bucket, source_key) = source(&input.copy_source)?;
    if !replace && source_bucket == input.bucket && source_key == input.key {
        return Err(s3_error!(
            InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself \
             without changing the object's metadata."
        ));
    }
    let conditions = write_conditions(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    bucket_of!(gateway, identity, input)?;
    let owner = input.expected_source_bucket_owner.as_deref();
    gateway.bucket(&identity, source_bucket, owner).await?;
    let object = get::resolve(gateway, source_bucket, source_key).await?;
    let source_conditions = ReadConditions {
        if_match: input.copy_source_if_match.as_ref(),
        if_none_match: input.copy_source_if_none_match.as_ref(),
        if_modified_since: input.copy_source_if_modified_since.as_ref(),
        if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
    };
    check_source(&source_conditions, &object)?;
    if let Some(asked) = &input.checksum_algorithm {
        let asked = Algorithm::parse(asked.as_str())?;
        let has = object
            .attrs
            .checksums
            .iter()
            .any(|(name, _)| name == asked.stored());
        if !has {
            return Err(not_implemented(
                "another checksum algorithm than the source's on a copy",
            ));
        }
    }
    let attrs = if replace {
        Some(ObjectAttrs {
            headers: content_headers!(input),
            metadata: metadata_pairs(input.metadata.as_ref())?,
            ..object.attrs.clone()
        })
    } else {
        None
    };
    let id = gateway
        .client
        .alloc_id()
        .await
        .map_err(|error| from_fs(error, Subject::Key))?;
    let message = CopyObject {
        source_bucket: source_bucket.to_owned(),
        source_key: source_key.to_owned(),
        source_etag: object.attrs.etag.clone(),
        bucket: input.bucket,
        key: input.key,
        inode: id.inode(),
        attrs,
        conditions,
        who: identity.who,
    };
    let client = gateway.client.clone();
    let published = to_the_end(async move {
        let result = client.call(&message).await;
        drop(id);
        result.map_err(|error| from_fs(error, Subject::Key))
    })
    .await?;
    let mut result = CopyObjectResult {
        e_tag: Some(typed(&published.etag)),
        last_modified: Some(timestamp(published.modified_ns)),
        ..Default::default()
    };
    if !object.attrs.checksums.is_empty() {
        set_checksums!(result, &object.attrs.checksums);
        result.checksum_type = Some(object.attrs.checksum_type.into());
    }
    let version = match &input.copy_source {
        CopySource::Bucket {
            version_id: Some(_),
            ..
        } => Some(NULL_VERSION.to_owned()),
        _ => None,
    };
    answer(CopyObjectOutput {
        copy_object_result: Some(result),
        copy_source_version_id: version,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &str) -> CopySource {
        CopySource::parse(header).unwrap()
    }

    #[test]
    fn copy_sources_reach_us_verbatim() {
        assert_eq!(
            source(&parse("bucket/a%20b/../c")).unwrap(),
            ("bucket", "a b/../c")
        );
        assert_eq!(source(&parse("/bucket/dir/")).unwrap(), ("bucket", "dir/"));
        assert_eq!(
            source(&parse("bucket/k?versionId=null")).unwrap(),
            ("bucket", "k")
        );
    }

    #[test]
    fn versions_and_access_points_are_refused() {
        let code = |header: &str| source(&parse(header)).unwrap_err().code().clone();
        assert_eq!(code("bucket/k?versionId=abc"), S3ErrorCode::NotImplemented);
        assert_eq!(
            code("arn:aws:s3:us-west-2:123456789012:accesspoint/my-point/object/k"),
            S3ErrorCode::NotImplemented
        );
    }

    #[test]
    fn directives_are_copy_or_replace() {
        assert!(!replaces(None, "metadata").unwrap());
        assert!(replaces(Some("REPLACE"), "metadata").unwrap());
        assert!(replaces(Some("MERGE"), "metadata").is_err());
    }
}
