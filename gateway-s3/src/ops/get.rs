//! GetObject, HeadObject, GetObjectAttributes.
//!
//! Invariant: an object is resolved once; its bytes are then read at the version that was resolved, held by a pin of the
//! epoch for as long as the body streams, whatever happens to the key meanwhile.

use std::{
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use janusfs_client::Client;
use janusfs_types::FsError;
use janusfs_wire::meta::{GetObject, Object, Opened, Pairs};
use parking_lot::Mutex;
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result, StdError,
    dto::{
        self, Checksum, ChecksumMode, GetObjectAttributesInput, GetObjectAttributesOutput,
        GetObjectAttributesParts, GetObjectInput, GetObjectOutput, HeadObjectInput,
        HeadObjectOutput, ObjectAttributes, ObjectPart, StorageClass, StreamingBlob, Timestamp,
        TimestampFormat,
    },
    s3_error,
    stream::{ByteStream, RemainingLength},
};

use super::{answer, bucket_of, check_key, check_version, page_count, page_limit, refuse, signed};
use crate::{
    auth::identity,
    checksum::set_checksums,
    error::{Subject, invalid_range, s3_error as from_fs},
    etag::{ReadConditions, Verdict, timestamp, typed},
    namespace::Gateway,
};

/// Bytes of one piece of a streamed body.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces read at once: the one being sent and the one after it.
const READ_AHEAD_PIECES: usize = 2;
/// What an object without a content type is said to be (S3 API reference).
const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";

/// Which bytes of an object a read is about.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Selection {
    bytes: Range<u64>,
    /// Whether the answer is 206 with a `Content-Range`.
    partial: bool,
    /// Parts of the object, when a part was asked for.
    parts_count: Option<i32>,
}

impl Selection {
    fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    fn content_range(&self, size: u64) -> Option<String> {
        let Range { start, end } = self.bytes;
        (self.partial && end > start).then(|| format!("bytes {start}-{}/{size}", end - 1))
    }
}

/// Decides which bytes are asked for. `parts` are the sizes of a multipart object's parts, else empty.
fn select(
    size: u64,
    parts: &[u64],
    range: Option<dto::Range>,
    part_number: Option<i32>,
) -> S3Result<Selection> {
    match (range, part_number) {
        (None, None) => Ok(Selection {
            bytes: 0..size,
            partial: false,
            parts_count: None,
        }),
        (Some(_), Some(_)) => Err(s3_error!(
            InvalidRequest,
            "Cannot specify both Range header and partNumber query parameter"
        )),
        (Some(range), None) => {
            if size == 0 {
                return Err(invalid_range(size));
            }
            let bytes = range.check(size).map_err(|_| invalid_range(size))?;
            Ok(Selection {
                bytes,
                partial: true,
                parts_count: None,
            })
        }
        (None, Some(number)) => {
            let index = usize::try_from(number)
                .ok()
                .and_then(|number| number.checked_sub(1));
            let index = index
                .ok_or_else(|| s3_error!(InvalidArgument, "a part number is from 1 to 10,000"))?;
            if parts.is_empty() && index == 0 {
                return Ok(Selection {
                    bytes: 0..size,
                    partial: size > 0,
                    parts_count: None,
                });
            }
            let Some(len) = parts.get(index) else {
                return Err(invalid_part_number());
            };
            let start: u64 = parts.iter().take(index).sum();
            let end = (start + len).min(size);
            let count = Some(page_count(parts.len()));
            Ok(Selection {
                bytes: start.min(end)..end,
                partial: end > start,
                parts_count: count,
            })
        }
    }
}

fn invalid_part_number() -> S3Error {
    let code = S3ErrorCode::Custom("InvalidPartNumber".into());
    let mut error = S3Error::with_message(code, "The requested partnumber is not satisfiable");
    error.set_status_code(StatusCode::RANGE_NOT_SATISFIABLE);
    error
}

/// Answers 304 or 412 when the conditions say so.
fn check(conditions: &ReadConditions<'_>, object: &Object) -> S3Result<()> {
    let modified_ns = object.file.attr.times.modified_ns;
    match conditions.verdict(&object.attrs.etag, modified_ns) {
        Verdict::Proceed => Ok(()),
        Verdict::PreconditionFailed => Err(S3Error::new(S3ErrorCode::PreconditionFailed)),
        Verdict::NotModified => {
            let mut error = S3Error::new(S3ErrorCode::NotModified);
            let mut headers = HeaderMap::new();
            if let Ok(etag) = typed(&object.attrs.etag).to_http_header() {
                headers.insert(header::ETAG, etag);
            }
            let mut date = Vec::new();
            let format = timestamp(modified_ns).format(TimestampFormat::HttpDate, &mut date);
            if let (Ok(()), Ok(value)) = (format, HeaderValue::from_bytes(&date)) {
                headers.insert(header::LAST_MODIFIED, value);
            }
            error.set_headers(headers);
            Err(error)
        }
    }
}

/// Resolves a key whose bucket the user may use.
pub(crate) async fn resolve(gateway: &Gateway, bucket: &str, key: &str) -> S3Result<Object> {
    check_key(key)?;
    let message = GetObject {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
    };
    gateway
        .client
        .call(&message)
        .await
        .map_err(|error| from_fs(error, Subject::Key))
}

macro_rules! refuse_read_options {
    ($input:expr) => {
        refuse!($input;
            sse_customer_algorithm: "server-side encryption",
            sse_customer_key: "server-side encryption",
        );
        check_version($input.version_id.as_deref())?;
    };
}

/// Resolves, checks and selects for both GET and HEAD.
macro_rules! look_up {
    ($gateway:expr, $identity:expr, $input:expr) => {{
        refuse_read_options!($input);
        bucket_of!($gateway, $identity, $input)?;
        let object = resolve($gateway, &$input.bucket, &$input.key).await?;
        let conditions = ReadConditions {
            if_match: $input.if_match.as_ref(),
            if_none_match: $input.if_none_match.as_ref(),
            if_modified_since: $input.if_modified_since.as_ref(),
            if_unmodified_since: $input.if_unmodified_since.as_ref(),
        };
        check(&conditions, &object)?;
        let size = object.file.attr.size;
        let selection = select(size, &object.attrs.parts, $input.range, $input.part_number)?;
        (object, selection)
    }};
}

/// Fills what GET and HEAD answer alike.
macro_rules! describe {
    ($output:expr, $object:expr, $selection:expr, $with_checksums:expr) => {{
        let Object { file, attrs } = &$object;
        $output.accept_ranges = Some("bytes".to_owned());
        $output.content_length = Some(signed($selection.len()));
        $output.content_range = $selection.content_range(file.attr.size);
        $output.e_tag = Some(typed(&attrs.etag));
        $output.last_modified = Some(timestamp(file.attr.times.modified_ns));
        $output.parts_count = $selection.parts_count;
        $output.cache_control = stored(&attrs.headers, "cache-control");
        $output.content_disposition = stored(&attrs.headers, "content-disposition");
        $output.content_encoding = stored(&attrs.headers, "content-encoding");
        $output.content_language = stored(&attrs.headers, "content-language");
        $output.content_type = stored(&attrs.headers, "content-type")
            .or_else(|| Some(DEFAULT_CONTENT_TYPE.to_owned()));
        $output.expires = stored(&attrs.headers, "expires");
        $output.metadata = Some(attrs.metadata.iter().cloned().collect());
        if $with_checksums && !attrs.checksums.is_empty() {
            set_checksums!($output, &attrs.checksums);
            $output.checksum_type = Some(attrs.checksum_type.clone().into());
        }
    }};
}

fn stored(headers: &Pairs, name: &str) -> Option<String> {
    headers
        .iter()
        .find(|(stored, _)| stored == name)
        .map(|(_, value)| value.clone())
}

/// Tells whether the client wants checksums; those of the whole object say nothing about a range of it.
fn with_checksums(mode: Option<&ChecksumMode>, selection: &Selection, size: u64) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED) && selection.len() == size
}

pub(crate) async fn object(
    gateway: &Gateway,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    let (object, selection) = look_up!(gateway, identity, input);
    let size = object.file.attr.size;
    let checksums = with_checksums(input.checksum_mode.as_ref(), &selection, size);
    let mut output = GetObjectOutput::default();
    describe!(output, object, selection, checksums);
    output.body = Some(body(gateway.client.clone(), object.file, selection.bytes).await?);
    // `s3s` answers 206 when there is a content range, and applies the response-* parameters.
    answer(output)
}

pub(crate) async fn head(
    gateway: &Gateway,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    let (object, selection) = look_up!(gateway, identity, input);
    let size = object.file.attr.size;
    let checksums = with_checksums(input.checksum_mode.as_ref(), &selection, size);
    let mut output = HeadObjectOutput::default();
    describe!(output, object, selection, checksums);
    let overrides = [
        (input.response_cache_control, &mut output.cache_control),
        (
            input.response_content_disposition,
            &mut output.content_disposition,
        ),
        (
            input.response_content_encoding,
            &mut output.content_encoding,
        ),
        (
            input.response_content_language,
            &mut output.content_language,
        ),
        (input.response_content_type, &mut output.content_type),
        (
            input.response_expires.as_ref().and_then(http_date),
            &mut output.expires,
        ),
    ];
    for (asked, field) in overrides {
        if asked.is_some() {
            *field = asked;
        }
    }
    let status = if selection.partial {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    Ok(S3Response::with_status(output, status))
}

fn http_date(time: &Timestamp) -> Option<String> {
    let mut text = Vec::new();
    time.format(TimestampFormat::HttpDate, &mut text).ok()?;
    String::from_utf8(text).ok()
}

/// What `GetObjectAttributes` can be asked for.
const ATTRIBUTES: [&str; 5] = [
    ObjectAttributes::ETAG,
    ObjectAttributes::CHECKSUM,
    ObjectAttributes::OBJECT_PARTS,
    ObjectAttributes::STORAGE_CLASS,
    ObjectAttributes::OBJECT_SIZE,
];

/// Takes `x-amz-object-attributes` apart: one header with commas (boto3) or one for each (RFC 9110, 5.3; the other SDKs).
fn asked_attributes(headers: &[ObjectAttributes]) -> S3Result<Vec<&str>> {
    let names = headers.iter().flat_map(|header| header.as_str().split(','));
    names
        .map(|name| {
            let name = name.trim();
            if ATTRIBUTES.contains(&name) {
                return Ok(name);
            }
            Err(s3_error!(
                InvalidArgument,
                "x-amz-object-attributes names {name:?}: give any of {}",
                ATTRIBUTES.join(", ")
            ))
        })
        .collect()
}

pub(crate) async fn attributes(
    gateway: &Gateway,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<S3Response<GetObjectAttributesOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse_read_options!(input);
    bucket_of!(gateway, identity, input)?;
    let Object { file, attrs } = resolve(gateway, &input.bucket, &input.key).await?;
    let asked = asked_attributes(&input.object_attributes)?;
    let wanted = |name: &str| asked.contains(&name);
    let mut output = GetObjectAttributesOutput {
        last_modified: Some(timestamp(file.attr.times.modified_ns)),
        ..Default::default()
    };
    if wanted(ObjectAttributes::ETAG) {
        output.e_tag = Some(typed(&attrs.etag));
    }
    if wanted(ObjectAttributes::OBJECT_SIZE) {
        output.object_size = Some(signed(file.attr.size));
    }
    if wanted(ObjectAttributes::STORAGE_CLASS) {
        output.storage_class = Some(StorageClass::from_static(StorageClass::STANDARD));
    }
    if wanted(ObjectAttributes::CHECKSUM) && !attrs.checksums.is_empty() {
        let mut checksum = Checksum {
            checksum_type: Some(attrs.checksum_type.clone().into()),
            ..Default::default()
        };
        set_checksums!(checksum, &attrs.checksums);
        output.checksum = Some(checksum);
    }
    if wanted(ObjectAttributes::OBJECT_PARTS) && !attrs.parts.is_empty() {
        let limit = usize::try_from(page_limit(input.max_parts, "max-parts")?).unwrap_or(1000);
        let after = usize::try_from(input.part_number_marker.unwrap_or(0)).unwrap_or(0);
        let numbered = attrs.parts.iter().enumerate().skip(after).take(limit);
        let parts: Vec<ObjectPart> = numbered
            .map(|(index, size)| ObjectPart {
                part_number: Some(page_count(index + 1)),
                size: Some(signed(*size)),
                ..Default::default()
            })
            .collect();
        let end = after.saturating_add(parts.len());
        output.object_parts = Some(GetObjectAttributesParts {
            is_truncated: Some(end < attrs.parts.len()),
            max_parts: Some(page_count(limit)),
            next_part_number_marker: Some(page_count(end)),
            part_number_marker: Some(page_count(after)),
            parts: Some(parts),
            total_parts_count: Some(page_count(attrs.parts.len())),
        });
    }
    answer(output)
}

/// Starts reading a range. The first piece is read before the answer begins, so that its failure is an error answer.
async fn body(client: Client, file: Opened, range: Range<u64>) -> S3Result<StreamingBlob> {
    let pin = client.pin(file.epoch);
    let len = range.end - range.start;
    let first_end = range.end.min(range.start + PIECE_BYTES);
    let size = file.attr.size;
    let content = Arc::new(file.content);
    let first = client
        .read(&content, size, range.start, first_end - range.start)
        .await;
    let first = first.map_err(|error| from_fs(error, Subject::Key))?;
    if first_end == range.end {
        return Ok(StreamingBlob::from_bytes(join(first)));
    }
    let starts = (first_end..range.end).step_by(usize::try_from(PIECE_BYTES).unwrap_or(1 << 20));
    let rest = stream::iter(starts)
        .map(move |start| {
            let (client, content) = (client.clone(), content.clone());
            let end = range.end.min(start + PIECE_BYTES);
            async move { client.read(&content, size, start, end - start).await }
        })
        .buffered(READ_AHEAD_PIECES);
    let pieces = stream::iter([Ok(first)])
        .chain(rest)
        .flat_map(move |piece| {
            // The pin lives as long as the stream.
            let _held = &pin;
            let items: Vec<Result<Bytes, FsError>> = match piece {
                Ok(pieces) => pieces.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            stream::iter(items)
        });
    Ok(StreamingBlob::new(ObjectStream {
        pieces: Mutex::new(Box::pin(pieces)),
        remaining: len,
    }))
}

fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if let (1, Some(only)) = (pieces.len(), pieces.first_mut()) {
        return std::mem::take(only);
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        whole.extend_from_slice(&piece);
    }
    whole.freeze()
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, FsError>> + Send>>;

/// The bytes of an object with their known length. The mutex is never locked: it only makes the stream `Sync`,
/// which `s3s` asks for.
struct ObjectStream {
    pieces: Mutex<Pieces>,
    remaining: u64,
}

impl Stream for ObjectStream {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.pieces.get_mut().as_mut().poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(bytes))) => {
                let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                self.remaining = self.remaining.saturating_sub(len);
                Poll::Ready(Some(Ok(bytes)))
            }
            Poll::Ready(Some(Err(error))) => {
                // The status is sent already: breaking off is the only way left to say it.
                tracing::error!(%error, "reading an object failed while it was being sent");
                Poll::Ready(Some(Err(Box::new(error))))
            }
        }
    }
}

impl ByteStream for ObjectStream {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.remaining)
            .map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Option<dto::Range> {
        Some(dto::Range::parse(text).unwrap())
    }

    #[test]
    fn attributes_are_asked_for_in_one_header_or_several() {
        let headers = |values: &[&str]| -> Vec<ObjectAttributes> {
            let values = values.iter();
            values.map(|value| (*value).to_owned().into()).collect()
        };
        let one = headers(&["ETag,Checksum, ObjectSize"]);
        let expected = ["ETag", "Checksum", "ObjectSize"];
        assert_eq!(asked_attributes(&one).unwrap(), expected);
        let several = headers(&["ETag", "Checksum", "ObjectSize"]);
        assert_eq!(asked_attributes(&several).unwrap(), expected);
        for wrong in ["", "Etag", "ETag,"] {
            let error = asked_attributes(&headers(&[wrong])).unwrap_err();
            assert_eq!(*error.code(), S3ErrorCode::InvalidArgument, "{wrong:?}");
        }
    }

    #[test]
    fn ranges_select_bytes_and_say_so() {
        let whole = select(10, &[], None, None).unwrap();
        assert_eq!(
            (whole.bytes.clone(), whole.content_range(10)),
            (0..10, None)
        );
        let middle = select(10, &[], range("bytes=2-4"), None).unwrap();
        assert_eq!(middle.bytes, 2..5);
        assert_eq!(middle.content_range(10), Some("bytes 2-4/10".into()));
        assert_eq!(
            select(10, &[], range("bytes=-3"), None).unwrap().bytes,
            7..10
        );
        assert_eq!(
            select(10, &[], range("bytes=8-99"), None).unwrap().bytes,
            8..10
        );
        let code = |result: S3Result<Selection>| result.unwrap_err().code().clone();
        assert_eq!(
            code(select(10, &[], range("bytes=10-"), None)),
            S3ErrorCode::InvalidRange
        );
        assert_eq!(
            code(select(0, &[], range("bytes=-1"), None)),
            S3ErrorCode::InvalidRange
        );
        assert_eq!(
            code(select(10, &[], range("bytes=0-"), Some(1))),
            S3ErrorCode::InvalidRequest
        );
    }

    #[test]
    fn part_numbers_select_parts() {
        let second = select(12, &[5, 5, 2], None, Some(2)).unwrap();
        assert_eq!(second.bytes, 5..10);
        assert_eq!(second.content_range(12), Some("bytes 5-9/12".into()));
        assert_eq!(second.parts_count, Some(3));
        assert_eq!(select(12, &[5, 5, 2], None, Some(3)).unwrap().bytes, 10..12);
        assert!(select(12, &[5, 5, 2], None, Some(4)).is_err());
        assert!(select(12, &[], None, Some(0)).is_err());
        let only = select(12, &[], None, Some(1)).unwrap();
        assert_eq!(
            (only.bytes, only.partial, only.parts_count),
            (0..12, true, None)
        );
        assert!(select(12, &[], None, Some(2)).is_err());
        assert!(!select(0, &[], None, Some(1)).unwrap().partial);
    }
}
