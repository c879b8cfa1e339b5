//! The operations, and what several of them share: refusing absent features, content headers, owners.

pub(crate) mod bucket;
pub(crate) mod copy;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod multipart;
pub(crate) mod put;

use std::future::Future;

use janusfs_env::tasks;
use janusfs_types::limits;
use janusfs_wire::meta::Pairs;
use s3s::{S3Error, S3ErrorCode, S3Response, S3Result, dto, s3_error};

use crate::error::not_implemented;

/// The version id of every object of an unversioned bucket.
pub(crate) const NULL_VERSION: &str = "null";

/// Finds the bucket that a request names and that its user may use; a request may guard itself against the wrong owner.
macro_rules! bucket_of {
    ($gateway:expr, $identity:expr, $input:expr) => {
        $gateway
            .bucket(
                &$identity,
                &$input.bucket,
                $input.expected_bucket_owner.as_deref(),
            )
            .await
    };
}
pub(crate) use bucket_of;

/// Refuses the named fields when they are set.
macro_rules! refuse {
    ($input:expr; $($field:ident: $what:literal),* $(,)?) => {
        $(if $input.$field.is_some() {
            return Err(crate::error::not_implemented($what));
        })*
    };
}
pub(crate) use refuse;

/// Refuses the options of a write that would change its meaning and that we do not have.
macro_rules! refuse_write_options {
    ($input:expr) => {
        crate::ops::refuse!($input;
            server_side_encryption: "server-side encryption",
            sse_customer_algorithm: "server-side encryption",
            sse_customer_key: "server-side encryption",
            ssekms_key_id: "server-side encryption",
            ssekms_encryption_context: "server-side encryption",
            bucket_key_enabled: "server-side encryption",
            object_lock_mode: "object lock",
            object_lock_retain_until_date: "object lock",
            object_lock_legal_hold_status: "object lock",
            tagging: "tagging",
            grant_full_control: "an ACL grant",
            grant_read: "an ACL grant",
            grant_read_acp: "an ACL grant",
            grant_write_acp: "an ACL grant",
            website_redirect_location: "website redirection",
        );
        crate::ops::check_acl($input.acl.as_ref().map(|acl| acl.as_str()))?;
        crate::ops::check_storage_class($input.storage_class.as_ref().map(|class| class.as_str()))?;
    };
}
pub(crate) use refuse_write_options;

/// Collects the content headers of a write as they are stored.
macro_rules! content_headers {
    ($input:expr) => {
        crate::ops::header_pairs([
            ("cache-control", &$input.cache_control),
            ("content-disposition", &$input.content_disposition),
            ("content-encoding", &$input.content_encoding),
            ("content-language", &$input.content_language),
            ("content-type", &$input.content_type),
            ("expires", &$input.expires),
        ])
    };
}
pub(crate) use content_headers;

/// Accepts the canned ACLs that say what is so anyway.
pub(crate) fn check_acl(acl: Option<&str>) -> S3Result<()> {
    match acl {
        None | Some("private" | "bucket-owner-full-control") => Ok(()),
        Some(other) => Err(not_implemented(&format!("the canned ACL {other}"))),
    }
}

/// Accepts the one storage class there is.
pub(crate) fn check_storage_class(class: Option<&str>) -> S3Result<()> {
    match class {
        None | Some("STANDARD") => Ok(()),
        Some(other) => Err(not_implemented(&format!("the storage class {other}"))),
    }
}

/// Accepts the one version an object has.
pub(crate) fn check_version(version: Option<&str>) -> S3Result<()> {
    match version {
        None | Some(NULL_VERSION) => Ok(()),
        Some(_) => Err(not_implemented("versioning")),
    }
}

/// Refuses keys over S3's limit, so that the body need not be read first.
pub(crate) fn check_key(key: &str) -> S3Result<()> {
    if key.len() > limits::KEY_MAX_BYTES {
        return Err(S3Error::new(S3ErrorCode::KeyTooLongError));
    }
    Ok(())
}

/// Returns the stored form of content headers; `aws-chunked` is the transfer's encoding, not the object's.
pub(crate) fn header_pairs(headers: [(&str, &Option<String>); 6]) -> Pairs {
    let mut pairs = Pairs::new();
    for (name, value) in headers {
        let Some(value) = value else { continue };
        if name != "content-encoding" {
            pairs.push((name.to_owned(), value.clone()));
            continue;
        }
        let kept: Vec<&str> = value
            .split(',')
            .map(str::trim)
            .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("aws-chunked"))
            .collect();
        if !kept.is_empty() {
            pairs.push((name.to_owned(), kept.join(", ")));
        }
    }
    pairs
}

/// Returns the stored form of user metadata.
pub(crate) fn metadata_pairs(metadata: Option<&dto::Metadata>) -> S3Result<Pairs> {
    let mut pairs: Pairs = metadata
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    pairs.sort();
    let bytes: usize = pairs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > limits::USER_METADATA_MAX_BYTES {
        return Err(S3Error::new(S3ErrorCode::MetadataTooLarge));
    }
    Ok(pairs)
}

/// Returns the `s3s` form of an owner.
pub(crate) fn owner(name: &str) -> dto::Owner {
    dto::Owner {
        display_name: Some(name.to_owned()),
        id: Some(name.to_owned()),
    }
}

/// Returns the `s3s` form of a size or count.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads a page limit: at most 1,000, which is also the default.
pub(crate) fn page_limit(asked: Option<i32>, name: &str) -> S3Result<u32> {
    match asked {
        None => Ok(limits::LIST_PAGE_MAX),
        Some(asked) => match u32::try_from(asked) {
            Ok(limit) => Ok(limit.min(limits::LIST_PAGE_MAX)),
            Err(_) => Err(s3_error!(InvalidArgument, "{name} must not be negative")),
        },
    }
}

/// Returns the `s3s` form of a page limit.
pub(crate) fn page_count(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Runs a publishing step to its end even when the client hangs up meanwhile: what it has allocated must not be
/// given up while the transaction that uses it is under way.
pub(crate) async fn to_the_end<T: Send + 'static>(
    step: impl Future<Output = S3Result<T>> + Send + 'static,
) -> S3Result<T> {
    match tasks::spawn(step).await {
        Ok(result) => result,
        Err(error) => Err(S3Error::internal_error(error)),
    }
}

/// Answers `output` without further headers.
pub(crate) fn answer<T>(output: T) -> S3Result<S3Response<T>> {
    Ok(S3Response::new(output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_chunked_is_not_stored() {
        let store = |encoding: &str| {
            let (none, encoding) = (None, Some(encoding.to_owned()));
            header_pairs([
                ("cache-control", &none),
                ("content-disposition", &none),
                ("content-encoding", &encoding),
                ("content-language", &none),
                ("content-type", &none),
                ("expires", &none),
            ])
        };
        assert_eq!(store("aws-chunked"), Pairs::new());
        assert_eq!(
            store("aws-chunked, gzip"),
            [("content-encoding".into(), "gzip".into())]
        );
        assert_eq!(
            store("gzip,aws-chunked"),
            [("content-encoding".into(), "gzip".into())]
        );
    }

    #[test]
    fn too_much_metadata_is_refused() {
        let metadata: dto::Metadata = [("k".to_owned(), "v".repeat(2048))].into_iter().collect();
        let error = metadata_pairs(Some(&metadata)).unwrap_err();
        assert_eq!(*error.code(), S3ErrorCode::MetadataTooLarge);
    }

    #[test]
    fn only_what_changes_nothing_is_accepted() {
        assert!(check_acl(Some("private")).is_ok());
        assert!(check_acl(Some("public-read")).is_err());
        assert!(check_storage_class(Some("GLACIER")).is_err());
        assert!(check_version(Some("null")).is_ok());
        assert!(check_version(Some("3sL4kqtJlcpXroDTDmJ")).is_err());
        assert_eq!(page_limit(Some(5000), "max-keys").unwrap(), 1000);
        assert!(page_limit(Some(-1), "max-keys").is_err());
    }
}
