//! The S3 code of every filesystem error: one total match, told apart by what the request was about.

use http::StatusCode;
use janusfs_types::FsError;
use s3s::{S3Error, S3ErrorCode};

/// What the failed call was about; decides what "not found" and "exists" mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    /// A bucket.
    Bucket,
    /// A key in a bucket that exists.
    Key,
    /// A multipart upload.
    Upload,
    /// Nothing in the namespace.
    Service,
}

/// Turns a filesystem error into the S3 error that clients know.
pub(crate) fn s3_error(error: FsError, subject: Subject) -> S3Error {
    use S3ErrorCode as Code;
    let text = error.to_string();
    match error {
        FsError::NotFound => S3Error::new(match subject {
            Subject::Bucket => Code::NoSuchBucket,
            Subject::Key | Subject::Service => Code::NoSuchKey,
            Subject::Upload => Code::NoSuchUpload,
        }),
        FsError::Exists => match subject {
            Subject::Bucket => S3Error::new(Code::BucketAlreadyExists),
            _ => S3Error::with_message(Code::OperationAborted, text),
        },
        FsError::NotEmpty => S3Error::new(Code::BucketNotEmpty),
        FsError::AccessDenied | FsError::NotPermitted => S3Error::new(Code::AccessDenied),
        FsError::PreconditionFailed => S3Error::new(Code::PreconditionFailed),
        FsError::NameTooLong => S3Error::new(Code::KeyTooLongError),
        FsError::FileTooLarge | FsError::TooBig => S3Error::new(Code::EntityTooLarge),
        FsError::Invalid(what) => match what.as_str() {
            "InvalidPart" => S3Error::new(Code::InvalidPart),
            "InvalidPartOrder" => S3Error::new(Code::InvalidPartOrder),
            "EntityTooSmall" => S3Error::new(Code::EntityTooSmall),
            _ if subject == Subject::Bucket => S3Error::with_message(Code::InvalidBucketName, what),
            _ => S3Error::with_message(Code::InvalidArgument, what),
        },
        FsError::NotDirectory
        | FsError::IsDirectory
        | FsError::NameReserved
        | FsError::TooManyLinks
        | FsError::CrossDevice
        | FsError::ThroughSymlink
        | FsError::NoXattr => S3Error::with_message(Code::InvalidRequest, text),
        FsError::Busy | FsError::StaleChain | FsError::Stale => {
            S3Error::with_message(Code::SlowDown, "the service is busy: try again")
        }
        FsError::NoSpace => storage_full("the storage is full: delete something or add storage"),
        FsError::QuotaExceeded => storage_full("the quota is used up"),
        FsError::Unavailable(_) => {
            tracing::warn!(%text, "a request found its service not available");
            S3Error::with_message(Code::ServiceUnavailable, text)
        }
        FsError::Unsupported(_) => S3Error::with_message(Code::NotImplemented, text),
        FsError::Corrupt(_) | FsError::Io(_) => {
            tracing::error!(%text, "a request failed inside the store");
            S3Error::with_message(
                Code::InternalError,
                "the store could not read or write the bytes",
            )
        }
    }
}

/// 507, under a code of our own: S3 has none, and `SlowDown` would make clients retry for ever.
fn storage_full(text: &'static str) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom("XJanusFSStorageFull".into()), text);
    error.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
    error
}

/// Says what is absent.
pub(crate) fn not_implemented(what: &str) -> S3Error {
    S3Error::with_message(
        S3ErrorCode::NotImplemented,
        format!("{what} is not supported"),
    )
}

/// Answers 416 with the length that a range must fit.
pub(crate) fn invalid_range(size: u64) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::InvalidRange);
    if let Ok(value) = http::HeaderValue::from_str(&format!("bytes */{size}")) {
        error.set_headers([(http::header::CONTENT_RANGE, value)].into_iter().collect());
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: FsError, subject: Subject) -> S3ErrorCode {
        s3_error(error, subject).code().clone()
    }

    #[test]
    fn not_found_depends_on_the_subject() {
        assert_eq!(
            code(FsError::NotFound, Subject::Bucket),
            S3ErrorCode::NoSuchBucket
        );
        assert_eq!(
            code(FsError::NotFound, Subject::Key),
            S3ErrorCode::NoSuchKey
        );
        assert_eq!(
            code(FsError::NotFound, Subject::Upload),
            S3ErrorCode::NoSuchUpload
        );
    }

    #[test]
    fn part_errors_keep_their_names() {
        let invalid = |text: &str| code(FsError::Invalid(text.into()), Subject::Upload);
        assert_eq!(invalid("InvalidPart"), S3ErrorCode::InvalidPart);
        assert_eq!(invalid("InvalidPartOrder"), S3ErrorCode::InvalidPartOrder);
        assert_eq!(invalid("EntityTooSmall"), S3ErrorCode::EntityTooSmall);
        assert_eq!(invalid("other"), S3ErrorCode::InvalidArgument);
    }

    #[test]
    fn a_full_store_is_507_and_an_odd_range_is_416() {
        let full = s3_error(FsError::NoSpace, Subject::Key);
        assert_eq!(full.status_code(), Some(StatusCode::INSUFFICIENT_STORAGE));
        let range = invalid_range(7);
        assert_eq!(range.status_code(), Some(StatusCode::RANGE_NOT_SATISFIABLE));
        assert_eq!(range.headers().unwrap()["content-range"], "bytes */7");
    }
}
