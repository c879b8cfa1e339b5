//! ListObjects, ListObjectsV2, ListObjectVersions: pages straight from the key range.
//!
//! Invariant: a page is resumed after its last row, key or common prefix; a continuation token is that row's text,
//! made opaque. Versions are those of an unversioned bucket: one each, named `null`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use janusfs_wire::meta::{ListObjects, ListPage, Listed, ListedObject};
use s3s::{
    S3Request, S3Response, S3Result,
    dto::{
        ChecksumAlgorithm, CommonPrefix, EncodingType, ListObjectVersionsInput,
        ListObjectVersionsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
        ListObjectsV2Output, Object, ObjectStorageClass, ObjectVersion, ObjectVersionStorageClass,
        Owner,
    },
    s3_error,
};

use super::{NULL_VERSION, answer, bucket_of, owner, page_count, page_limit, signed};
use crate::{
    auth::identity,
    checksum::Algorithm,
    error::{Subject, not_implemented, s3_error as from_fs},
    etag::{timestamp, typed},
    namespace::Gateway,
};

/// First byte of a continuation token: its format.
const TOKEN_FORMAT: u8 = b'1';

/// Makes a row's text an opaque token.
pub(crate) fn encode_token(last: &str) -> String {
    let mut raw = vec![TOKEN_FORMAT];
    raw.extend_from_slice(last.as_bytes());
    URL_SAFE_NO_PAD.encode(raw)
}

/// Reads a token back.
pub(crate) fn decode_token(token: &str) -> S3Result<String> {
    let raw = URL_SAFE_NO_PAD.decode(token).ok();
    let text = raw
        .as_deref()
        .and_then(|raw| raw.strip_prefix(&[TOKEN_FORMAT]));
    text.and_then(|text| String::from_utf8(text.to_vec()).ok())
        .ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "The continuation token provided is incorrect"
            )
        })
}

/// Encodes a key for an answer in `encoding-type=url`: all but unreserved characters and `/`.
pub(crate) fn url_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// How keys are written in the answer.
#[derive(Clone, Copy)]
pub(crate) struct Encoding(bool);

impl Encoding {
    pub(crate) fn of(asked: Option<&EncodingType>) -> S3Result<Self> {
        match asked.map(EncodingType::as_str) {
            None => Ok(Self(false)),
            Some(EncodingType::URL) => Ok(Self(true)),
            Some(_) => Err(s3_error!(
                InvalidArgument,
                "Invalid Encoding Method specified in Request"
            )),
        }
    }

    pub(crate) fn text(self, text: String) -> String {
        if self.0 { url_encode(&text) } else { text }
    }

    pub(crate) fn opt(self, text: Option<String>) -> Option<String> {
        text.map(|text| self.text(text))
    }
}

/// What all listings ask.
struct Asked {
    prefix: Option<String>,
    delimiter: Option<String>,
    limit: u32,
    encoding: Encoding,
}

/// Reads the fields that all listings have.
macro_rules! asked {
    ($input:expr) => {
        Asked {
            prefix: $input.prefix,
            // An empty delimiter is none.
            delimiter: $input.delimiter.filter(|delimiter| !delimiter.is_empty()),
            limit: page_limit($input.max_keys, "max-keys")?,
            encoding: Encoding::of($input.encoding_type.as_ref())?,
        }
    };
}

/// Rows of a page, apart, and where it ends.
struct Rows {
    objects: Vec<ListedObject>,
    prefixes: Vec<CommonPrefix>,
    last: Option<String>,
    truncated: bool,
}

impl Asked {
    /// Asks for the page after a row.
    async fn page(&self, gateway: &Gateway, bucket: &str, after: String) -> S3Result<Rows> {
        let page = if self.limit == 0 {
            // S3 answers an empty page that claims to be complete.
            ListPage {
                rows: Vec::new(),
                truncated: false,
            }
        } else {
            let message = ListObjects {
                bucket: bucket.to_owned(),
                prefix: self.prefix.clone().unwrap_or_default(),
                after,
                delimiter: self.delimiter.clone().unwrap_or_default(),
                limit: self.limit,
            };
            let page = gateway.client.call(&message).await;
            page.map_err(|error| from_fs(error, Subject::Bucket))?
        };
        let last = page.rows.last().map(|row| match row {
            Listed::Object { object } => object.key.clone(),
            Listed::Prefix { prefix } => prefix.clone(),
        });
        let (mut objects, mut prefixes) = (Vec::with_capacity(page.rows.len()), Vec::new());
        for row in page.rows {
            match row {
                Listed::Object { object } => objects.push(object),
                Listed::Prefix { prefix } => {
                    prefixes.push(CommonPrefix {
                        prefix: Some(self.encoding.text(prefix)),
                    });
                }
            }
        }
        Ok(Rows {
            objects,
            prefixes,
            last,
            truncated: page.truncated,
        })
    }
}

/// Returns the page limit as answers repeat it.
fn max_keys(limit: u32) -> i32 {
    page_count(usize::try_from(limit).unwrap_or(usize::MAX))
}

fn checksum_algorithms(names: &[String]) -> Option<Vec<ChecksumAlgorithm>> {
    let known = names.iter().filter_map(|name| Algorithm::parse(name).ok());
    let list: Vec<_> = known
        .map(|algorithm| ChecksumAlgorithm::from(algorithm.api()))
        .collect();
    (!list.is_empty()).then_some(list)
}

fn listed(object: ListedObject, encoding: Encoding, owner: Option<&Owner>) -> Object {
    let checksums = checksum_algorithms(&object.checksum_algorithms);
    Object {
        checksum_type: checksums.is_some().then(|| object.checksum_type.into()),
        checksum_algorithm: checksums,
        e_tag: Some(typed(&object.etag)),
        key: Some(encoding.text(object.key)),
        last_modified: Some(timestamp(object.modified_ns)),
        owner: owner.cloned(),
        size: Some(signed(object.size)),
        storage_class: Some(ObjectStorageClass::from_static(
            ObjectStorageClass::STANDARD,
        )),
        ..Default::default()
    }
}

pub(crate) async fn v1(
    gateway: &Gateway,
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    let asked = asked!(input);
    let bucket = bucket_of!(gateway, identity, input)?;
    let after = input.marker.clone().unwrap_or_default();
    let rows = asked.page(gateway, &input.bucket, after).await?;
    let encoding = asked.encoding;
    let owner = owner(&bucket.owner);
    // As S3: without a delimiter, clients go on after the last key.
    let next = if rows.truncated && asked.delimiter.is_some() {
        rows.last
    } else {
        None
    };
    answer(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.text(asked.prefix.unwrap_or_default())),
        marker: Some(encoding.text(input.marker.unwrap_or_default())),
        max_keys: Some(max_keys(asked.limit)),
        is_truncated: Some(rows.truncated),
        contents: Some(
            rows.objects
                .into_iter()
                .map(|row| listed(row, encoding, Some(&owner)))
                .collect(),
        ),
        common_prefixes: Some(rows.prefixes),
        delimiter: encoding.opt(asked.delimiter),
        next_marker: encoding.opt(next),
        encoding_type: input.encoding_type,
        request_charged: None,
    })
}

pub(crate) async fn v2(
    gateway: &Gateway,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let identity = identity(&request)?;
    let input = request.input;
    let asked = asked!(input);
    // A token goes before start-after: it is where a page after that one ended.
    let after = match input.continuation_token.as_deref() {
        Some(token) if !token.is_empty() => decode_token(token)?,
        _ => input.start_after.clone().unwrap_or_default(),
    };
    let bucket = bucket_of!(gateway, identity, input)?;
    let rows = asked.page(gateway, &input.bucket, after).await?;
    let encoding = asked.encoding;
    let owner = (input.fetch_owner == Some(true)).then(|| owner(&bucket.owner));
    let count = page_count(rows.objects.len() + rows.prefixes.len());
    let next = if rows.truncated {
        rows.last.as_deref().map(encode_token)
    } else {
        None
    };
    answer(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encoding.text(asked.prefix.unwrap_or_default())),
        max_keys: Some(max_keys(asked.limit)),
        key_count: Some(count),
        continuation_token: input.continuation_token,
        is_truncated: Some(rows.truncated),
        next_continuation_token: next,
        contents: Some(
            rows.objects
                .into_iter()
                .map(|row| listed(row, encoding, owner.as_ref()))
                .collect(),
        ),
        common_prefixes: Some(rows.prefixes),
        delimiter: encoding.opt(asked.delimiter),
        encoding_type: input.encoding_type,
        start_after: encoding.opt(input.start_after),
        request_charged: None,
    })
}

pub(crate) async fn versions(
    gateway: &Gateway,
    request: S3Request<ListObjectVersionsInput>,
) -> S3Result<S3Response<ListObjectVersionsOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    let asked = asked!(input);
    match input.version_id_marker.as_deref() {
        None | Some("" | NULL_VERSION) => {}
        Some(_) => return Err(not_implemented("versioning")),
    }
    let bucket = bucket_of!(gateway, identity, input)?;
    let after = input.key_marker.clone().unwrap_or_default();
    let rows = asked.page(gateway, &input.bucket, after).await?;
    let encoding = asked.encoding;
    let owner = owner(&bucket.owner);
    let next = if rows.truncated { rows.last } else { None };
    let storage_class = ObjectVersionStorageClass::STANDARD;
    let versions = rows.objects.into_iter().map(|row| {
        let checksums = checksum_algorithms(&row.checksum_algorithms);
        ObjectVersion {
            checksum_type: checksums.is_some().then(|| row.checksum_type.into()),
            checksum_algorithm: checksums,
            e_tag: Some(typed(&row.etag)),
            is_latest: Some(true),
            key: Some(encoding.text(row.key)),
            last_modified: Some(timestamp(row.modified_ns)),
            owner: Some(owner.clone()),
            size: Some(signed(row.size)),
            storage_class: Some(ObjectVersionStorageClass::from_static(storage_class)),
            version_id: Some(NULL_VERSION.to_owned()),
            ..Default::default()
        }
    });
    answer(ListObjectVersionsOutput {
        versions: Some(versions.collect()),
        common_prefixes: Some(rows.prefixes),
        delimiter: encoding.opt(asked.delimiter),
        encoding_type: input.encoding_type,
        is_truncated: Some(rows.truncated),
        key_marker: Some(encoding.text(input.key_marker.unwrap_or_default())),
        max_keys: Some(max_keys(asked.limit)),
        name: Some(input.bucket),
        next_version_id_marker: next.as_ref().map(|_| NULL_VERSION.to_owned()),
        next_key_marker: encoding.opt(next),
        prefix: Some(encoding.text(asked.prefix.unwrap_or_default())),
        version_id_marker: input.version_id_marker,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use s3s::S3ErrorCode;

    use super::*;

    #[test]
    fn tokens_survive_any_key_and_refuse_nonsense() {
        for key in ["a", "", "dir/", "a//b/../ü+ %", "\u{10ffff}"] {
            assert_eq!(decode_token(&encode_token(key)).unwrap(), key);
        }
        for nonsense in [
            "",
            "!",
            "AAAA",
            &URL_SAFE_NO_PAD.encode([TOKEN_FORMAT, 0xff]),
        ] {
            let error = decode_token(nonsense).unwrap_err();
            assert_eq!(*error.code(), S3ErrorCode::InvalidArgument);
        }
    }

    #[test]
    fn url_encoding_keeps_slashes_and_nothing_else_that_is_reserved() {
        assert_eq!(url_encode("a b+c/d%é\n~"), "a%20b%2Bc/d%25%C3%A9%0A~");
    }

    #[test]
    fn an_unknown_encoding_is_refused() {
        let asked = EncodingType::from("base64".to_owned());
        assert!(Encoding::of(Some(&asked)).is_err());
        let url = Encoding::of(Some(&EncodingType::from_static(EncodingType::URL))).unwrap();
        assert_eq!(url.text("a b".into()), "a%20b");
        assert_eq!(Encoding::of(None).unwrap().text("a b".into()), "a b");
    }
}
