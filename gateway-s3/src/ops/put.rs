//! PutObject, and receiving a body for it and for UploadPart.
//!
//! Invariant: nothing is published before the body's stream has ended well, its length is the one declared, and
//! every digest the client gave agrees. What was written for a failed request is removed.

use std::time::Duration;

use futures::StreamExt as _;
use http::{HeaderMap, StatusCode};
use janusfs_client::{Client, ObjectWriter, WrittenObject};
use janusfs_env::clock;
use janusfs_types::{Advice, Content, FsError, limits};
use janusfs_wire::meta::{NewContent, ObjectAttrs, PutObject};
use s3s::{
    BodySizeLimitExceeded, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, StdError,
    TrailingHeaders,
    dto::{PostObjectInput, PostObjectOutput, PutObjectInput, PutObjectOutput, StreamingBlob},
    s3_error,
    stream::{aws_chunked_stream::AwsChunkedStreamError, upload_stream::UploadStreamError},
};

use super::{
    answer, bucket_of, check_key, content_headers, metadata_pairs, refuse, refuse_write_options,
    signed, to_the_end,
};
use crate::{
    auth::identity,
    checksum::{
        Algorithm, Digests, FULL_OBJECT, Given, announced, given, parse_content_md5, set_checksums,
    },
    error::{Subject, not_implemented, s3_error as from_fs},
    etag,
    hashing::BodyHasher,
    namespace::Gateway,
};

/// Time without a byte of the body after which the request is given up, in seconds.
const BODY_IDLE_SECONDS: u64 = 60;
/// Bodies of refused requests that are read to their end, so that the client sees the answer, in bytes.
const DRAIN_MAX_BYTES: u64 = 1 << 20;

pub(crate) async fn object(
    gateway: &Gateway,
    mut request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    let body = request.input.body.take();
    let len = request.input.content_length;
    let prepared = match prepare(gateway, &request).await {
        Ok(prepared) => prepared,
        Err(error) => {
            drain(body, len).await;
            return Err(error);
        }
    };
    let Prepared {
        mut publish,
        facts,
        conditional_on_existing,
    } = prepared;
    let writer = gateway.client.object_writer();
    let (written, digests) = receive(gateway, writer, body, facts).await?;
    let size = written.content.size;
    publish.attrs.etag = hex::encode(digests.md5);
    publish.attrs.checksums.clone_from(&digests.checksums);
    publish.inode = written.id.inode();
    publish.content = written.content.clone();
    let client = gateway.client.clone();
    let published = to_the_end(async move {
        let result = client.call(&publish).await;
        let subject = if conditional_on_existing {
            Subject::Key
        } else {
            Subject::Bucket
        };
        settle(&client, written, result, subject).await
    })
    .await?;
    let mut output = PutObjectOutput {
        e_tag: Some(etag::typed(&published.etag)),
        checksum_type: Some(FULL_OBJECT.to_owned().into()),
        ..Default::default()
    };
    tracing::debug!(inode = %published.inode, size = signed(size), "an object was published");
    set_checksums!(output, &digests.checksums);
    answer(output)
}

/// Browser form uploads are absent.
pub(crate) async fn form(
    _gateway: &Gateway,
    _request: S3Request<PostObjectInput>,
) -> S3Result<S3Response<PostObjectOutput>> {
    Err(not_implemented("POST of an object by a form"))
}

struct Prepared {
    publish: PutObject,
    facts: BodyFacts,
    conditional_on_existing: bool,
}

async fn prepare(gateway: &Gateway, request: &S3Request<PutObjectInput>) -> S3Result<Prepared> {
    let identity = identity(request)?;
    let input = &request.input;
    refuse_write_options!(input);
    refuse!(input; write_offset_bytes: "appending to an object");
    check_key(&input.key)?;
    let conditions = etag::write_conditions(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let attrs = ObjectAttrs {
        headers: content_headers!(input),
        metadata: metadata_pairs(input.metadata.as_ref())?,
        checksum_type: FULL_OBJECT.to_owned(),
        ..Default::default()
    };
    let facts = BodyFacts::new(
        &request.headers,
        request.trailing_headers.clone(),
        input.content_length,
        input.content_md5.as_deref(),
        input
            .checksum_algorithm
            .as_ref()
            .map(|algorithm| algorithm.as_str()),
        given!(input)?,
        &[],
    )?;
    bucket_of!(gateway, identity, input)?;
    Ok(Prepared {
        conditional_on_existing: !conditions.if_match.is_empty(),
        publish: PutObject {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            inode: janusfs_types::InodeId::default(),
            content: NewContent {
                content: Content::empty(),
                size: 0,
            },
            attrs,
            conditions,
            who: identity.who,
        },
        facts,
    })
}

/// Keeps what was written when it is published; removes it when it certainly is not.
pub(crate) async fn settle<T>(
    client: &Client,
    written: WrittenObject,
    result: Result<T, FsError>,
    subject: Subject,
) -> S3Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(error) => {
            // An unknown outcome may be a published object: its bytes stay for the reclaimer to decide on.
            if error.advice() != Advice::Unknown
                && let Content::Blob { blob, layout } = &written.content.content
                && let Err(error) = client.remove_blob(*blob, *layout).await
            {
                tracing::debug!(%blob, %error, "an unpublished blob is left to the reclaimer");
            }
            Err(from_fs(error, subject))
        }
    }
}

/// What a request says about its body.
pub(crate) struct BodyFacts {
    len: Option<u64>,
    md5: Option<[u8; 16]>,
    given: Given,
    trailing: Option<TrailingHeaders>,
    announced: Option<Algorithm>,
    compute: Vec<Algorithm>,
}

impl BodyFacts {
    /// `always` are algorithms to compute whatever the client sends.
    pub(crate) fn new(
        headers: &HeaderMap,
        trailing: Option<TrailingHeaders>,
        content_length: Option<i64>,
        content_md5: Option<&str>,
        asked: Option<&str>,
        given: Given,
        always: &[Algorithm],
    ) -> S3Result<Self> {
        let len = content_length.map(u64::try_from).transpose();
        let len = len.map_err(|_| s3_error!(InvalidArgument, "a length must not be negative"))?;
        if len.is_some_and(|len| len > limits::PUT_SIZE_MAX_BYTES) {
            return Err(S3Error::new(S3ErrorCode::EntityTooLarge));
        }
        if given.0.len() > 1 {
            return Err(s3_error!(
                InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
            ));
        }
        let announced = announced(headers)?;
        let mut compute = always.to_vec();
        let wanted = given
            .0
            .iter()
            .map(|(algorithm, _)| *algorithm)
            .chain(announced);
        let asked = asked.map(Algorithm::parse).transpose()?;
        for algorithm in wanted.chain(asked) {
            if !compute.contains(&algorithm) {
                compute.push(algorithm);
            }
        }
        if compute.is_empty() {
            compute.push(Algorithm::Crc64Nvme);
        }
        let md5 = content_md5.map(parse_content_md5).transpose()?;
        Ok(Self {
            len,
            md5,
            given,
            trailing,
            announced,
            compute,
        })
    }
}

/// Receives a body into `writer`, hashing it on the way, and checks it against what the request says.
pub(crate) async fn receive(
    gateway: &Gateway,
    mut writer: ObjectWriter,
    body: Option<StreamingBlob>,
    mut facts: BodyFacts,
) -> S3Result<(WrittenObject, Digests)> {
    let _place = gateway.upload_place(facts.len).await?;
    if let Some(len) = facts.len {
        writer.expect(len);
    }
    let mut hasher = BodyHasher::new(&gateway.hashing, &facts.compute);
    let mut received = 0u64;
    if let Some(mut body) = body {
        while let Some(bytes) = next(&mut body).await? {
            received += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if received > limits::PUT_SIZE_MAX_BYTES {
                return Err(S3Error::new(S3ErrorCode::EntityTooLarge));
            }
            hasher.push(bytes.clone()).await;
            writer
                .push(bytes)
                .await
                .map_err(|error| from_fs(error, Subject::Key))?;
        }
    }
    if facts.len.is_some_and(|len| len != received) {
        return Err(S3Error::new(S3ErrorCode::IncompleteBody));
    }
    // The disk syncs while the last bytes are hashed. A body that is wrong is removed with its writer.
    let (flushed, digests) = futures::future::join(writer.flush(), hasher.finish()).await;
    flushed.map_err(|error| from_fs(error, Subject::Key))?;
    if facts.md5.is_some_and(|md5| md5 != digests.md5) {
        return Err(S3Error::new(S3ErrorCode::BadDigest));
    }
    if let Some(algorithm) = facts.announced {
        let trailer = facts.trailing.as_ref().and_then(TrailingHeaders::take);
        facts.given.add_trailer(&trailer.unwrap_or_default());
        if facts.given.value(algorithm).is_none() {
            return Err(s3_error!(
                InvalidRequest,
                "the announced trailer x-amz-checksum-{} did not come",
                algorithm.stored()
            ));
        }
    }
    facts.given.verify(&digests.checksums)?;
    let written = writer
        .finish()
        .await
        .map_err(|error| from_fs(error, Subject::Key))?;
    Ok((written, digests))
}

async fn next(body: &mut StreamingBlob) -> S3Result<Option<bytes::Bytes>> {
    match clock::timeout(Duration::from_secs(BODY_IDLE_SECONDS), body.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
        Ok(Some(Err(error))) => Err(body_error(&error)),
        Err(_) => Err(S3Error::new(S3ErrorCode::RequestTimeout)),
    }
}

/// Finds what a failed body stream means: `s3s` wraps its own errors in each other.
fn body_error(error: &StdError) -> S3Error {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<UploadStreamError>()
            && !matches!(error, UploadStreamError::Underlying(_))
        {
            let code = match error {
                // S3's own name for it; `BadDigest` is for the digests of the object.
                UploadStreamError::Sha256Mismatch => {
                    S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into())
                }
                other => other.to_s3_error_code(),
            };
            let mut answer = S3Error::with_message(code, error.to_string());
            // A code that `s3s` does not know has no status of its own.
            answer.set_status_code(StatusCode::BAD_REQUEST);
            return answer;
        }
        if let Some(error) = error.downcast_ref::<AwsChunkedStreamError>()
            && !matches!(error, AwsChunkedStreamError::Underlying(_))
        {
            return S3Error::with_message(error.to_s3_error_code(), error.to_string());
        }
        if error.downcast_ref::<BodySizeLimitExceeded>().is_some() {
            return S3Error::new(S3ErrorCode::EntityTooLarge);
        }
        next = error.source();
    }
    S3Error::with_message(
        S3ErrorCode::IncompleteBody,
        format!("the body broke off: {error}"),
    )
}

/// Reads a small body of a refused request to its end, so that closing the connection does not hide the answer.
pub(crate) async fn drain(body: Option<StreamingBlob>, len: Option<i64>) {
    let small = len.is_some_and(|len| u64::try_from(len).is_ok_and(|len| len <= DRAIN_MAX_BYTES));
    if let (true, Some(mut body)) = (small, body) {
        while let Ok(Some(_)) = next(&mut body).await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(given: Given, headers: &HeaderMap, always: &[Algorithm]) -> S3Result<BodyFacts> {
        BodyFacts::new(headers, None, Some(3), None, None, given, always)
    }

    #[test]
    fn crc64nvme_is_computed_unless_the_client_chose() {
        let none = facts(Given::default(), &HeaderMap::new(), &[]).unwrap();
        assert_eq!(none.compute, [Algorithm::Crc64Nvme]);
        let given = Given(vec![(Algorithm::Sha256, String::new())]);
        assert_eq!(
            facts(given, &HeaderMap::new(), &[]).unwrap().compute,
            [Algorithm::Sha256]
        );
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-trailer", "x-amz-checksum-crc32".parse().unwrap());
        let trailer = facts(Given::default(), &headers, &[Algorithm::Crc32c]).unwrap();
        assert_eq!(trailer.compute, [Algorithm::Crc32c, Algorithm::Crc32]);
    }

    #[test]
    fn too_large_and_double_checksums_are_refused() {
        let len = Some(signed(limits::PUT_SIZE_MAX_BYTES + 1));
        let error = BodyFacts::new(
            &HeaderMap::new(),
            None,
            len,
            None,
            None,
            Given::default(),
            &[],
        )
        .err();
        assert_eq!(*error.unwrap().code(), S3ErrorCode::EntityTooLarge);
        let two = Given(vec![
            (Algorithm::Crc32, String::new()),
            (Algorithm::Sha1, String::new()),
        ]);
        let error = facts(two, &HeaderMap::new(), &[]).err().unwrap();
        assert_eq!(*error.code(), S3ErrorCode::InvalidRequest);
    }

    #[test]
    fn body_errors_are_found_under_their_wrapping() {
        let mismatch: StdError = Box::new(AwsChunkedStreamError::Underlying(Box::new(
            UploadStreamError::Sha256Mismatch,
        )));
        let error = body_error(&mismatch);
        assert_eq!(error.code().as_str(), "XAmzContentSHA256Mismatch");
        assert_eq!(error.status_code(), Some(StatusCode::BAD_REQUEST));
        let broken: StdError = Box::new(std::io::Error::other("connection reset"));
        assert_eq!(*body_error(&broken).code(), S3ErrorCode::IncompleteBody);
    }
}
