//! Multipart uploads: create, upload and copy parts, complete, abort, list.
//!
//! Invariants: a part is a blob of its own, so completing moves no byte; an upload has one checksum algorithm, chosen when it
//! starts (CRC64NVME over the whole object unless the client chose). Absent: checksums of parts copied by reference when
//! their source has none for that range; such an object has no checksum.

use std::collections::HashMap;

use janusfs_types::{FsError, limits};
use janusfs_wire::meta::{
    self, AbortUpload, CompleteUpload, CopyPart, CreateUpload, GetUpload, ListUploads, NewContent,
    ObjectAttrs, Pairs, PutPart, Upload,
};
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, CommonPrefix,
        CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, CopyPartResult,
        CreateMultipartUploadInput, CreateMultipartUploadOutput, Initiator,
        ListMultipartUploadsInput, ListMultipartUploadsOutput, ListPartsInput, ListPartsOutput,
        MultipartUpload, Part, StorageClass, UploadPartCopyInput, UploadPartCopyOutput,
        UploadPartInput, UploadPartOutput,
    },
    s3_error,
};

use super::{
    answer, bucket_of, check_key, content_headers, copy, get,
    list::Encoding,
    metadata_pairs, owner, page_count, page_limit,
    put::{BodyFacts, drain, receive, settle},
    refuse, refuse_write_options, signed, to_the_end,
};
use crate::{
    auth::identity,
    checksum::{self, Algorithm, FULL_OBJECT, Given, given, mismatch, set_checksums},
    error::{Subject, invalid_range, not_implemented, s3_error as from_fs},
    etag::{self, ReadConditions, timestamp, typed},
    namespace::Gateway,
};

/// Pages of uploads looked through for one answer with a delimiter.
const UPLOAD_PAGES_MAX: usize = 16;
/// Sorts after every upload id: goes on with the next key.
const PAST_EVERY_UPLOAD: &str = "\u{10ffff}";

pub(crate) async fn create(
    gateway: &Gateway,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse_write_options!(input);
    check_key(&input.key)?;
    let asked = input
        .checksum_algorithm
        .as_ref()
        .map(|algorithm| algorithm.as_str());
    let asked = asked.map(Algorithm::parse).transpose()?;
    let algorithm = asked.unwrap_or(Algorithm::Crc64Nvme);
    let asked_type = input.checksum_type.as_ref().map(|name| name.as_str());
    if asked.is_none() && asked_type.is_some() {
        return Err(s3_error!(
            InvalidRequest,
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
        ));
    }
    let checksum_type = algorithm.multipart_type(asked_type)?;
    bucket_of!(gateway, identity, input)?;
    let message = CreateUpload {
        bucket: input.bucket.clone(),
        key: input.key.clone(),
        attrs: ObjectAttrs {
            headers: content_headers!(input),
            metadata: metadata_pairs(input.metadata.as_ref())?,
            checksums: vec![(algorithm.stored().to_owned(), String::new())],
            checksum_type: checksum_type.to_owned(),
            ..Default::default()
        },
        initiator: identity.name,
    };
    let upload_id = gateway.client.call(&message).await;
    let upload_id = upload_id.map_err(|error| from_fs(error, Subject::Bucket))?;
    answer(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(upload_id),
        checksum_algorithm: asked.map(|algorithm| algorithm.api().into()),
        checksum_type: asked.map(|_| checksum_type.to_owned().into()),
        ..Default::default()
    })
}

/// Returns an upload's checksum algorithm.
fn algorithm(upload: &Upload) -> Option<Algorithm> {
    upload
        .attrs
        .checksums
        .first()
        .and_then(|(name, _)| Algorithm::parse(name).ok())
}

fn part_number(number: i32) -> S3Result<u32> {
    let number = u32::try_from(number).unwrap_or(0);
    if (1..=limits::PART_COUNT_MAX).contains(&number) {
        Ok(number)
    } else {
        Err(s3_error!(
            InvalidArgument,
            "Part number must be an integer between 1 and 10000, inclusive"
        ))
    }
}

async fn find(gateway: &Gateway, bucket: &str, key: &str, upload_id: &str) -> S3Result<Upload> {
    let message = GetUpload {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        upload_id: upload_id.to_owned(),
    };
    gateway
        .client
        .call(&message)
        .await
        .map_err(|error| from_fs(error, Subject::Upload))
}

pub(crate) async fn part(
    gateway: &Gateway,
    mut request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let body = request.input.body.take();
    let len = request.input.content_length;
    let (number, facts) = match prepare_part(gateway, &request).await {
        Ok(prepared) => prepared,
        Err(error) => {
            drain(body, len).await;
            return Err(error);
        }
    };
    let writer = gateway.client.object_writer_blob();
    let (written, digests) = receive(gateway, writer, body, facts).await?;
    let input = request.input;
    let message = PutPart {
        bucket: input.bucket,
        key: input.key,
        upload_id: input.upload_id,
        number,
        content: NewContent::clone(&written.content),
        etag: hex::encode(digests.md5),
        checksums: digests.checksums.clone(),
    };
    let client = gateway.client.clone();
    let part = to_the_end(async move {
        let result = client.call(&message).await;
        settle(&client, written, result, Subject::Upload).await
    })
    .await?;
    let mut output = UploadPartOutput {
        e_tag: Some(typed(&part.etag)),
        ..Default::default()
    };
    set_checksums!(output, &digests.checksums);
    answer(output)
}

async fn prepare_part(
    gateway: &Gateway,
    request: &S3Request<UploadPartInput>,
) -> S3Result<(u32, BodyFacts)> {
    let identity = identity(request)?;
    let input = &request.input;
    refuse!(input;
        sse_customer_algorithm: "server-side encryption",
        sse_customer_key: "server-side encryption",
    );
    let number = part_number(input.part_number)?;
    bucket_of!(gateway, identity, input)?;
    let upload = find(gateway, &input.bucket, &input.key, &input.upload_id).await?;
    let always: Vec<Algorithm> = algorithm(&upload).into_iter().collect();
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
        &always,
    )?;
    Ok((number, facts))
}

/// Reads `bytes=A-B`, which for a copied part must lie inside the source.
fn copy_range(header: Option<&str>, size: u64) -> S3Result<(u64, u64)> {
    let Some(header) = header else {
        return Ok((0, size));
    };
    let bounds = header
        .strip_prefix("bytes=")
        .and_then(|bounds| bounds.split_once('-'));
    let bounds = bounds
        .and_then(|(first, last)| Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?)));
    match bounds {
        Some((first, last)) if first <= last && last < size => Ok((first, last - first + 1)),
        Some((first, last)) if first <= last => Err(invalid_range(size)),
        _ => Err(s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last"
        )),
    }
}

pub(crate) async fn part_copy(
    gateway: &Gateway,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse!(input;
        sse_customer_algorithm: "server-side encryption",
        sse_customer_key: "server-side encryption",
        copy_source_sse_customer_algorithm: "server-side encryption",
        copy_source_sse_customer_key: "server-side encryption",
    );
    let number = part_number(input.part_number)?;
    let (source_bucket, source_key) = copy::source(&input.copy_source)?;
    bucket_of!(gateway, identity, input)?;
    let owner = input.expected_source_bucket_owner.as_deref();
    gateway.bucket(&identity, source_bucket, owner).await?;
    let object = get::resolve(gateway, source_bucket, source_key).await?;
    let conditions = ReadConditions {
        if_match: input.copy_source_if_match.as_ref(),
        if_none_match: input.copy_source_if_none_match.as_ref(),
        if_modified_since: input.copy_source_if_modified_since.as_ref(),
        if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
    };
    copy::check_source(&conditions, &object)?;
    let size = object.file.attr.size;
    let (offset, len_bytes) = copy_range(input.copy_source_range.as_deref(), size)?;
    if len_bytes > limits::PUT_SIZE_MAX_BYTES {
        return Err(S3Error::new(S3ErrorCode::EntityTooLarge));
    }
    let message = CopyPart {
        bucket: input.bucket.clone(),
        key: input.key.clone(),
        upload_id: input.upload_id.clone(),
        number,
        source_bucket: source_bucket.to_owned(),
        source_key: source_key.to_owned(),
        source_etag: object.attrs.etag,
        offset,
        len_bytes,
    };
    let part = gateway.client.call(&message).await;
    let part = part.map_err(|error| from_fs(error, Subject::Upload))?;
    let mut result = CopyPartResult {
        e_tag: Some(typed(&part.etag)),
        last_modified: Some(timestamp(part.modified_ns)),
        ..Default::default()
    };
    set_checksums!(result, &part.checksums);
    answer(UploadPartCopyOutput {
        copy_part_result: Some(result),
        ..Default::default()
    })
}

/// Reads every stored part of an upload; `None` when there is no such upload.
async fn all_parts(
    gateway: &Gateway,
    bucket: &str,
    key: &str,
    upload_id: &str,
) -> S3Result<Option<(Upload, HashMap<u32, meta::Part>)>> {
    let (mut found, mut after) = (HashMap::new(), 0);
    loop {
        let message = meta::ListParts {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            upload_id: upload_id.to_owned(),
            after,
            limit: limits::LIST_PAGE_MAX,
        };
        let page = match gateway.client.call(&message).await {
            Ok(page) => page,
            Err(FsError::NotFound) => return Ok(None),
            Err(error) => return Err(from_fs(error, Subject::Upload)),
        };
        let last = page.parts.last().map(|part| part.number);
        found.extend(page.parts.into_iter().map(|part| (part.number, part)));
        match last {
            Some(last) if page.truncated => after = last,
            _ => return Ok(Some((page.upload, found))),
        }
    }
}

/// Returns the object's checksum out of its parts', when every part has one.
fn object_checksum(
    algorithm: Algorithm,
    checksum_type: &str,
    parts: &[&meta::Part],
) -> Option<String> {
    let mut sums = Vec::with_capacity(parts.len());
    for part in parts {
        let (_, sum) = part
            .checksums
            .iter()
            .find(|(name, _)| name == algorithm.stored())?;
        sums.push((sum.as_str(), part.size));
    }
    if checksum_type == FULL_OBJECT {
        checksum::combine(algorithm, &sums)
    } else {
        let sums: Vec<&str> = sums.into_iter().map(|(sum, _)| sum).collect();
        checksum::composite(algorithm, &sums)
    }
}

/// Compares the checksum that came with the request to the computed one. A composite may come without its count.
fn check_object_checksum(
    given: &Given,
    algorithm: Option<Algorithm>,
    computed: Option<&str>,
) -> S3Result<()> {
    for (theirs, value) in &given.0 {
        match (algorithm, computed) {
            (Some(ours), Some(computed)) if ours == *theirs => {
                let bare = computed.split_once('-').map_or(computed, |(bare, _)| bare);
                if value != computed && value != bare {
                    return Err(mismatch(ours));
                }
            }
            (Some(ours), None) if ours == *theirs => {
                return Err(not_implemented(
                    "a checksum over parts that were copied by reference",
                ));
            }
            _ => {
                return Err(s3_error!(
                    InvalidRequest,
                    "the checksum's algorithm is not the one that the upload was created with"
                ));
            }
        }
    }
    Ok(())
}

/// Compares the checksums that came with a part of the list to what is stored.
fn check_part_checksums(listed: &CompletedPart, stored: &meta::Part) -> S3Result<()> {
    for (algorithm, value) in given!(listed)?.0 {
        let kept = stored
            .checksums
            .iter()
            .find(|(name, _)| name == algorithm.stored());
        if kept.is_none_or(|(_, kept)| *kept != value) {
            return Err(S3Error::new(S3ErrorCode::InvalidPart));
        }
    }
    Ok(())
}

pub(crate) async fn complete(
    gateway: &Gateway,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let identity = identity(&request)?;
    let host = request
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let location = format!(
        "http://{host}/{}/{}",
        request.input.bucket, request.input.key
    );
    let input = request.input;
    refuse!(input;
        sse_customer_algorithm: "server-side encryption",
        sse_customer_key: "server-side encryption",
    );
    let given = given!(input)?;
    let listed = input
        .multipart_upload
        .and_then(|upload| upload.parts)
        .unwrap_or_default();
    let max = usize::try_from(limits::PART_COUNT_MAX).unwrap_or(usize::MAX);
    if listed.is_empty() || listed.len() > max {
        return Err(S3Error::new(S3ErrorCode::MalformedXML));
    }
    let mut parts = Vec::with_capacity(listed.len());
    for part in &listed {
        let number = part
            .part_number
            .ok_or_else(|| S3Error::new(S3ErrorCode::MalformedXML))?;
        let etag = part
            .e_tag
            .as_ref()
            .ok_or_else(|| S3Error::new(S3ErrorCode::MalformedXML))?;
        parts.push((part_number(number)?, etag.value().to_owned()));
    }
    let conditions = etag::write_conditions(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    bucket_of!(gateway, identity, input)?;
    let mut checksums = Pairs::new();
    let mut checksum_type = String::new();
    // Without the upload this may be the repetition of a completion that succeeded: the transaction knows.
    let open = all_parts(gateway, &input.bucket, &input.key, &input.upload_id).await?;
    let repeated = open.is_none();
    if let Some((upload, stored)) = open {
        let mut used = Vec::with_capacity(parts.len());
        for (listed, (number, _)) in listed.iter().zip(&parts) {
            let part = stored
                .get(number)
                .ok_or_else(|| S3Error::new(S3ErrorCode::InvalidPart))?;
            check_part_checksums(listed, part)?;
            used.push(part);
        }
        if let Some(size) = input.mpu_object_size
            && size != signed(used.iter().map(|part| part.size).sum())
        {
            return Err(s3_error!(
                InvalidRequest,
                "The provided 'x-amz-mp-object-size' header value does not match what was computed"
            ));
        }
        let algorithm = algorithm(&upload);
        let kind = upload.attrs.checksum_type;
        if input
            .checksum_type
            .as_ref()
            .is_some_and(|asked| asked.as_str() != kind)
        {
            return Err(s3_error!(
                InvalidRequest,
                "the checksum type is not the one that the upload was created with"
            ));
        }
        let computed = algorithm.and_then(|algorithm| object_checksum(algorithm, &kind, &used));
        check_object_checksum(&given, algorithm, computed.as_deref())?;
        if let (Some(algorithm), Some(computed)) = (algorithm, computed) {
            checksums.push((algorithm.stored().to_owned(), computed));
            checksum_type = kind;
        }
    }
    let etag = etag::of_parts(parts.iter().map(|(_, etag)| etag.as_str()));
    let subject = if conditions.if_match.is_empty() {
        Subject::Upload
    } else {
        Subject::Key
    };
    let id = gateway
        .client
        .alloc_id()
        .await
        .map_err(|error| from_fs(error, Subject::Upload))?;
    let message = CompleteUpload {
        bucket: input.bucket.clone(),
        key: input.key.clone(),
        upload_id: input.upload_id,
        inode: id.inode(),
        parts,
        etag,
        checksums: checksums.clone(),
        checksum_type: checksum_type.clone(),
        conditions,
        who: identity.who,
    };
    let client = gateway.client.clone();
    let published = to_the_end(async move {
        let result = client.call(&message).await;
        drop(id);
        result.map_err(|error| from_fs(error, subject))
    })
    .await?;
    if repeated {
        let object = get::resolve(gateway, &input.bucket, &input.key).await?;
        // Another object may be there by now; then only the ETag is known.
        if object.attrs.etag == published.etag {
            checksums = object.attrs.checksums;
            checksum_type = object.attrs.checksum_type;
        }
    }
    let mut output = CompleteMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        location: Some(location),
        e_tag: Some(typed(&published.etag)),
        ..Default::default()
    };
    if !checksums.is_empty() {
        set_checksums!(output, &checksums);
        output.checksum_type = Some(checksum_type.into());
    }
    answer(output)
}

pub(crate) async fn abort(
    gateway: &Gateway,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse!(input; if_match_initiated_time: "aborting under a condition on the time");
    bucket_of!(gateway, identity, input)?;
    let message = AbortUpload {
        bucket: input.bucket,
        key: input.key,
        upload_id: input.upload_id,
    };
    let result = gateway.client.call(&message).await;
    result.map_err(|error| from_fs(error, Subject::Upload))?;
    answer(AbortMultipartUploadOutput::default())
}

fn initiator(name: &str) -> Initiator {
    Initiator {
        display_name: Some(name.to_owned()),
        id: Some(name.to_owned()),
    }
}

pub(crate) async fn list_parts(
    gateway: &Gateway,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    let limit = page_limit(input.max_parts, "max-parts")?;
    let marker = input.part_number_marker.unwrap_or(0);
    let after = u32::try_from(marker);
    let after = after.map_err(|_| s3_error!(InvalidArgument, "a marker must not be negative"))?;
    let bucket = bucket_of!(gateway, identity, input)?;
    let message = meta::ListParts {
        bucket: input.bucket.clone(),
        key: input.key.clone(),
        upload_id: input.upload_id.clone(),
        after,
        limit,
    };
    let page = gateway.client.call(&message).await;
    let page = page.map_err(|error| from_fs(error, Subject::Upload))?;
    let last = page.parts.last().map(|part| part.number);
    let parts = page.parts.into_iter().map(|stored| {
        let mut part = Part {
            e_tag: Some(typed(&stored.etag)),
            last_modified: Some(timestamp(stored.modified_ns)),
            part_number: i32::try_from(stored.number).ok(),
            size: Some(signed(stored.size)),
            ..Default::default()
        };
        set_checksums!(part, &stored.checksums);
        part
    });
    let algorithm = algorithm(&page.upload);
    answer(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        parts: Some(parts.collect()),
        is_truncated: Some(page.truncated),
        max_parts: Some(page_count(usize::try_from(limit).unwrap_or(usize::MAX))),
        part_number_marker: Some(marker),
        next_part_number_marker: last.and_then(|last| i32::try_from(last).ok()),
        initiator: Some(initiator(&page.upload.initiator)),
        owner: Some(owner(&bucket.owner)),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        checksum_algorithm: algorithm.map(|algorithm| ChecksumAlgorithm::from(algorithm.api())),
        checksum_type: algorithm.map(|_| page.upload.attrs.checksum_type.into()),
        ..Default::default()
    })
}

/// One row of a listing of uploads.
#[derive(PartialEq, Debug)]
enum UploadRow {
    Upload(Box<Upload>),
    Prefix(String),
}

/// Returns the common prefix that a key falls under.
fn common_prefix<'a>(key: &'a str, prefix: &str, delimiter: &str) -> Option<&'a str> {
    if delimiter.is_empty() {
        return None;
    }
    let rest = key.get(prefix.len()..)?;
    let at = rest.find(delimiter)?;
    key.get(..prefix.len() + at + delimiter.len())
}

pub(crate) async fn list_uploads(
    gateway: &Gateway,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let limit = usize::try_from(page_limit(input.max_uploads, "max-uploads")?).unwrap_or(1000);
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = input.delimiter.unwrap_or_default();
    let key_marker = input.key_marker.unwrap_or_default();
    // As S3: an upload marker without a key marker means nothing.
    let upload_marker = input.upload_id_marker.filter(|_| !key_marker.is_empty());
    let bucket = bucket_of!(gateway, identity, input)?;
    let skipped = common_prefix(&key_marker, &prefix, &delimiter)
        .filter(|skipped| *skipped == key_marker)
        .map(str::to_owned);
    let mut after = match (&upload_marker, key_marker.is_empty()) {
        (Some(upload), _) => (key_marker.clone(), upload.clone()),
        (None, true) => (String::new(), String::new()),
        (None, false) => (key_marker.clone(), PAST_EVERY_UPLOAD.to_owned()),
    };
    let mut rows: Vec<UploadRow> = Vec::new();
    let mut truncated = false;
    let pages = if limit == 0 { 0 } else { UPLOAD_PAGES_MAX };
    'pages: for number in 1..=pages {
        let message = ListUploads {
            bucket: input.bucket.clone(),
            prefix: prefix.clone(),
            after_key: after.0.clone(),
            after_upload: after.1.clone(),
            limit: limits::LIST_PAGE_MAX,
        };
        let page = gateway.client.call(&message).await;
        let page = page.map_err(|error| from_fs(error, Subject::Bucket))?;
        let full = page.len() >= usize::try_from(limits::LIST_PAGE_MAX).unwrap_or(usize::MAX);
        for upload in page {
            let place = (upload.key.clone(), upload.upload_id.clone());
            let row = match common_prefix(&upload.key, &prefix, &delimiter) {
                Some(common) if skipped.as_deref() == Some(common) => {
                    after = place;
                    continue;
                }
                Some(common) => UploadRow::Prefix(common.to_owned()),
                None => UploadRow::Upload(Box::new(upload)),
            };
            if rows.last() != Some(&row) {
                if rows.len() == limit {
                    truncated = true;
                    break 'pages;
                }
                rows.push(row);
            }
            after = place;
        }
        if !full {
            break;
        }
        truncated = number == pages;
    }
    let next = truncated.then(|| match rows.last() {
        Some(UploadRow::Prefix(prefix)) => (prefix.clone(), None),
        _ => (after.0, Some(after.1)),
    });
    let (mut uploads, mut prefixes) = (Vec::new(), Vec::new());
    for row in rows {
        match row {
            UploadRow::Prefix(prefix) => {
                prefixes.push(CommonPrefix {
                    prefix: Some(encoding.text(prefix)),
                });
            }
            UploadRow::Upload(upload) => {
                let upload = *upload;
                let algorithm = algorithm(&upload);
                uploads.push(MultipartUpload {
                    checksum_algorithm: algorithm
                        .map(|algorithm| ChecksumAlgorithm::from(algorithm.api())),
                    checksum_type: algorithm.map(|_| upload.attrs.checksum_type.into()),
                    initiated: Some(timestamp(upload.created_ns)),
                    initiator: Some(initiator(&upload.initiator)),
                    key: Some(encoding.text(upload.key)),
                    owner: Some(owner(&bucket.owner)),
                    storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
                    upload_id: Some(upload.upload_id),
                });
            }
        }
    }
    let (next_key, next_upload) = next.map_or((None, None), |(key, upload)| (Some(key), upload));
    answer(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        common_prefixes: Some(prefixes),
        delimiter: (!delimiter.is_empty()).then(|| encoding.text(delimiter)),
        encoding_type: input.encoding_type,
        is_truncated: Some(truncated),
        key_marker: Some(encoding.text(key_marker)),
        max_uploads: Some(page_count(limit)),
        next_key_marker: encoding.opt(next_key),
        next_upload_id_marker: next_upload,
        prefix: Some(encoding.text(prefix)),
        upload_id_marker: upload_marker,
        uploads: Some(uploads),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(number: u32, data: &[u8], algorithm: Algorithm) -> meta::Part {
        let sums = match algorithm {
            Algorithm::Crc32 => vec![("crc32".to_owned(), crc32(data))],
            _ => Vec::new(),
        };
        meta::Part {
            number,
            size: data.len() as u64,
            etag: String::new(),
            checksums: sums,
            modified_ns: 0,
        }
    }

    fn crc32(data: &[u8]) -> String {
        use base64::Engine as _;
        use s3s::crypto::{Checksum as _, Crc32};
        base64::engine::general_purpose::STANDARD.encode(Crc32::checksum(data))
    }

    #[test]
    fn object_checksums_come_from_the_parts() {
        let (a, b) = (
            stored(1, b"hello ", Algorithm::Crc32),
            stored(2, b"world", Algorithm::Crc32),
        );
        let whole = object_checksum(Algorithm::Crc32, FULL_OBJECT, &[&a, &b]);
        assert_eq!(whole, Some(crc32(b"hello world")));
        let composite = object_checksum(Algorithm::Crc32, checksum::COMPOSITE, &[&a, &b]).unwrap();
        assert!(composite.ends_with("-2"), "{composite}");
        let by_reference = stored(3, b"!", Algorithm::Sha1);
        assert_eq!(
            object_checksum(Algorithm::Crc32, FULL_OBJECT, &[&a, &by_reference]),
            None
        );
    }

    #[test]
    fn a_given_object_checksum_is_compared() {
        let given = |value: &str| Given(vec![(Algorithm::Crc32, value.to_owned())]);
        let check = |given: &Given, computed| {
            check_object_checksum(given, Some(Algorithm::Crc32), computed)
        };
        assert!(check(&given("AAAAAA==-2"), Some("AAAAAA==-2")).is_ok());
        assert!(check(&given("AAAAAA=="), Some("AAAAAA==-2")).is_ok());
        let wrong = check(&given("BBBBBB=="), Some("AAAAAA==")).unwrap_err();
        assert_eq!(*wrong.code(), S3ErrorCode::BadDigest);
        let unknown = check(&given("AAAAAA=="), None).unwrap_err();
        assert_eq!(*unknown.code(), S3ErrorCode::NotImplemented);
        let other = Given(vec![(Algorithm::Sha1, String::new())]);
        assert_eq!(
            *check(&other, Some("AAAAAA==")).unwrap_err().code(),
            S3ErrorCode::InvalidRequest
        );
    }

    #[test]
    fn copied_ranges_must_lie_inside() {
        assert_eq!(copy_range(None, 7).unwrap(), (0, 7));
        assert_eq!(copy_range(Some("bytes=2-6"), 7).unwrap(), (2, 5));
        let code = |range: &str| copy_range(Some(range), 7).unwrap_err().code().clone();
        assert_eq!(code("bytes=2-7"), S3ErrorCode::InvalidRange);
        for nonsense in ["2-6", "bytes=-3", "bytes=3-", "bytes=3-2", "bytes=a-b"] {
            assert_eq!(code(nonsense), S3ErrorCode::InvalidArgument, "{nonsense}");
        }
    }

    #[test]
    fn uploads_roll_up_under_any_delimiter() {
        assert_eq!(common_prefix("a/b/c", "", "/"), Some("a/"));
        assert_eq!(common_prefix("a/b/c", "a/", "/"), Some("a/b/"));
        assert_eq!(common_prefix("a/b", "a/", "/"), None);
        assert_eq!(common_prefix("xxyyz", "", "yy"), Some("xxyy"));
        assert_eq!(common_prefix("a/b", "", ""), None);
        assert_eq!(common_prefix("", "longer", "/"), None);
    }

    #[test]
    fn part_numbers_have_bounds() {
        assert_eq!(part_number(1).unwrap(), 1);
        assert_eq!(part_number(10_000).unwrap(), 10_000);
        for bad in [-1, 0, 10_001] {
            assert!(part_number(bad).is_err());
        }
    }
}
