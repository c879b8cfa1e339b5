//! The S3 door as the AWS SDK for Rust sees it: a real process, real signatures, real sockets.

use std::collections::HashSet;

use anyhow::{Context as _, ensure};
use aws_sdk_s3::{
    Client,
    operation::RequestId as _,
    primitives::ByteStream,
    types::{
        ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart, Delete,
        MetadataDirective, ObjectAttributes, ObjectIdentifier,
    },
};
use janusfs_external::{
    TestNode,
    s3::{client, code, get, root, status},
};

const PART_BYTES: usize = 5 << 20;

fn start() -> anyhow::Result<TestNode> {
    TestNode::start::<&str>(&[])
}

/// Bytes that no two offsets share for long, so that a misplaced chunk shows.
fn pattern(len: usize) -> Vec<u8> {
    let words = (0u64..).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

async fn put(client: &Client, bucket: &str, key: &str, body: Vec<u8>) -> anyhow::Result<String> {
    let put = client
        .put_object()
        .bucket(bucket)
        .key(key)
        .body(ByteStream::from(body));
    let output = put.send().await.with_context(|| format!("PUT {key}"))?;
    output.e_tag().map(str::to_owned).context("an ETag")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_every_size_come_back_and_survive_a_crash() -> anyhow::Result<()> {
    let mut node = start()?;
    let s3 = root(&node);
    s3.create_bucket().bucket("sizes").send().await?;
    let sizes = [0, 1, 4096, 4097, 1 << 20, (4 << 20) + 1, (9 << 20) + 12_345];
    for size in sizes {
        put(&s3, "sizes", &format!("object-{size}"), pattern(size)).await?;
    }
    let range = s3
        .get_object()
        .bucket("sizes")
        .key(format!("object-{}", sizes[6]));
    let range = range.range("bytes=4194300-4194310").send().await?;
    ensure!(range.content_range() == Some("bytes 4194300-4194310/9449529"));
    ensure!(range.body.collect().await?.to_vec() == pattern(sizes[6])[4_194_300..=4_194_310]);
    let beyond = s3
        .get_object()
        .bucket("sizes")
        .key("object-1")
        .range("bytes=1-")
        .send()
        .await;
    ensure!(status(beyond) == Some(416));

    node.kill9()?;
    node.restart()?;
    let s3 = root(&node);
    for size in sizes {
        let bytes = get(&s3, "sizes", &format!("object-{size}")).await?;
        ensure!(
            bytes == pattern(size),
            "object-{size} differs after a crash"
        );
    }
    ensure!(node.terminate()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_and_errors_have_their_names() -> anyhow::Result<()> {
    let node = start()?;
    let s3 = root(&node);
    s3.create_bucket().bucket("first").send().await?;
    let again = s3.create_bucket().bucket("first").send().await;
    ensure!(code(again).as_deref() == Some("BucketAlreadyOwnedByYou"));
    let listed = s3.list_buckets().send().await?;
    ensure!(
        listed
            .buckets()
            .iter()
            .any(|bucket| bucket.name() == Some("first"))
    );
    ensure!(
        s3.head_bucket()
            .bucket("first")
            .send()
            .await?
            .request_id()
            .is_some()
    );
    ensure!(status(s3.head_bucket().bucket("absent").send().await) == Some(404));

    let key = s3.get_object().bucket("first").key("absent").send().await;
    ensure!(code(key).as_deref() == Some("NoSuchKey"));
    let body = ByteStream::from_static(b"body");
    let bucket = s3
        .put_object()
        .bucket("absent")
        .key("key")
        .body(body)
        .send()
        .await;
    ensure!(code(bucket).as_deref() == Some("NoSuchBucket"));
    let upload = s3
        .list_parts()
        .bucket("first")
        .key("key")
        .upload_id("absent")
        .send()
        .await;
    ensure!(code(upload).as_deref() == Some("NoSuchUpload"));
    let long = s3
        .get_object()
        .bucket("first")
        .key("k".repeat(1025))
        .send()
        .await;
    ensure!(code(long).as_deref() == Some("KeyTooLongError"));
    let tagged = s3.put_object().bucket("first").key("key").tagging("a=b");
    let tagged = tagged.body(ByteStream::from_static(b"body")).send().await;
    ensure!(code(tagged).as_deref() == Some("NotImplemented"));
    ensure!(
        code(s3.get_bucket_acl().bucket("first").send().await).as_deref() == Some("NotImplemented")
    );

    let (access_key, _) = node.credentials();
    let forged = client(&node, access_key, "wrong-secret")
        .list_buckets()
        .send()
        .await;
    ensure!(code(forged).as_deref() == Some("SignatureDoesNotMatch"));
    let unknown = client(&node, "AKIDABSENT", "secret")
        .list_buckets()
        .send()
        .await;
    ensure!(code(unknown).as_deref() == Some("InvalidAccessKeyId"));

    put(&s3, "first", "deep/er/key", b"x".to_vec()).await?;
    let full = s3.delete_bucket().bucket("first").send().await;
    ensure!(code(full).as_deref() == Some("BucketNotEmpty"));
    s3.delete_object()
        .bucket("first")
        .key("deep/er/key")
        .send()
        .await?;
    s3.delete_object()
        .bucket("first")
        .key("deep/er/key")
        .send()
        .await?;
    s3.delete_bucket().bucket("first").send().await?;
    ensure!(status(s3.head_bucket().bucket("first").send().await) == Some(404));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_checksums_and_conditions_hold() -> anyhow::Result<()> {
    let node = start()?;
    let s3 = root(&node);
    s3.create_bucket().bucket("meta").send().await?;
    let body = pattern(100_000);
    let output = s3
        .put_object()
        .bucket("meta")
        .key("object")
        .content_type("text/plain");
    let output = output.cache_control("max-age=7").metadata("colour", "blue");
    let output = output.checksum_algorithm(ChecksumAlgorithm::Sha256);
    let output = output.body(ByteStream::from(body.clone())).send().await?;
    ensure!(output.checksum_sha256().is_some());
    let etag = output.e_tag().context("an ETag")?.to_owned();
    ensure!(
        etag.len() == 34 && !etag.contains('-'),
        "not a quoted MD5: {etag}"
    );

    let head = s3.head_object().bucket("meta").key("object");
    let head = head.checksum_mode(ChecksumMode::Enabled).send().await?;
    ensure!(head.content_type() == Some("text/plain"));
    ensure!(head.cache_control() == Some("max-age=7"));
    ensure!(head.content_length() == Some(100_000));
    ensure!(
        head.metadata()
            .and_then(|metadata| metadata.get("colour"))
            .is_some()
    );
    ensure!(head.checksum_sha256() == output.checksum_sha256());

    let wrong = s3
        .put_object()
        .bucket("meta")
        .key("object")
        .content_md5("AAAAAAAAAAAAAAAAAAAAAA==");
    let wrong = wrong.body(ByteStream::from_static(b"other")).send().await;
    ensure!(code(wrong).as_deref() == Some("BadDigest"));
    ensure!(
        get(&s3, "meta", "object").await? == body,
        "a refused PUT left a trace"
    );

    let unchanged = s3
        .get_object()
        .bucket("meta")
        .key("object")
        .if_none_match(&etag)
        .send()
        .await;
    ensure!(status(unchanged) == Some(304));
    let other = s3
        .get_object()
        .bucket("meta")
        .key("object")
        .if_match("\"other\"")
        .send()
        .await;
    ensure!(code(other).as_deref() == Some("PreconditionFailed"));
    let exists = s3
        .put_object()
        .bucket("meta")
        .key("object")
        .if_none_match("*");
    let exists = exists.body(ByteStream::from_static(b"new")).send().await;
    ensure!(code(exists).as_deref() == Some("PreconditionFailed"));
    let swap = s3.put_object().bucket("meta").key("object").if_match(&etag);
    swap.body(ByteStream::from_static(b"new")).send().await?;
    let stale = s3.put_object().bucket("meta").key("object").if_match(&etag);
    let stale = stale.body(ByteStream::from_static(b"newer")).send().await;
    ensure!(code(stale).as_deref() == Some("PreconditionFailed"));
    let absent = s3.put_object().bucket("meta").key("absent").if_match(&etag);
    let absent = absent.body(ByteStream::from_static(b"new")).send().await;
    ensure!(code(absent).as_deref() == Some("NoSuchKey"));

    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..8u8 {
        let put = s3
            .put_object()
            .bucket("meta")
            .key("race")
            .if_none_match("*");
        racers.spawn(put.body(ByteStream::from(vec![racer; 9])).send());
    }
    let mut winners = 0;
    while let Some(result) = racers.join_next().await {
        winners += u32::from(result?.is_ok());
    }
    ensure!(
        winners == 1,
        "{winners} conditional PUTs of one key succeeded"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_are_in_key_order_whatever_the_keys() -> anyhow::Result<()> {
    let node = start()?;
    let s3 = root(&node);
    s3.create_bucket().bucket("list").send().await?;
    let mut keys = [
        "a",
        "a-b",
        "a//b",
        "a/",
        "a/b",
        "a/./c",
        "a/../d",
        "a0",
        "b/c/d",
        "é",
        " space+plus%",
    ];
    for key in keys {
        put(&s3, "list", key, key.as_bytes().to_vec()).await?;
    }
    keys.sort_unstable();
    for key in keys {
        ensure!(
            get(&s3, "list", key).await? == key.as_bytes(),
            "{key} holds another key's bytes"
        );
    }
    for page in [1, 3, 1000] {
        let (mut seen, mut token) = (Vec::new(), None);
        loop {
            let list = s3.list_objects_v2().bucket("list").max_keys(page);
            let output = list.set_continuation_token(token).send().await?;
            seen.extend(
                output
                    .contents()
                    .iter()
                    .filter_map(|row| row.key().map(str::to_owned)),
            );
            token = output.next_continuation_token().map(str::to_owned);
            if output.is_truncated() != Some(true) {
                break;
            }
        }
        ensure!(seen == keys, "pages of {page}: {seen:?}");
    }
    let top = s3
        .list_objects_v2()
        .bucket("list")
        .delimiter("/")
        .send()
        .await?;
    let prefixes: Vec<_> = top
        .common_prefixes()
        .iter()
        .filter_map(|row| row.prefix())
        .collect();
    ensure!(prefixes == ["a/", "b/"], "{prefixes:?}");
    ensure!(top.key_count() == Some(7));
    let below = s3
        .list_objects()
        .bucket("list")
        .prefix("a/")
        .marker("a/./c")
        .send()
        .await?;
    let below: Vec<_> = below
        .contents()
        .iter()
        .filter_map(|row| row.key())
        .collect();
    ensure!(below == ["a//b", "a/b"], "{below:?}");
    let versions = s3.list_object_versions().bucket("list").send().await?;
    ensure!(versions.versions().len() == keys.len());
    ensure!(
        versions
            .versions()
            .iter()
            .all(|row| row.version_id() == Some("null"))
    );

    let objects = keys
        .iter()
        .map(|key| ObjectIdentifier::builder().key(*key).build());
    let delete = Delete::builder()
        .set_objects(Some(objects.collect::<Result<_, _>>()?))
        .build()?;
    let deleted = s3
        .delete_objects()
        .bucket("list")
        .delete(delete)
        .send()
        .await?;
    ensure!(deleted.errors().is_empty());
    let names: HashSet<_> = deleted
        .deleted()
        .iter()
        .filter_map(|row| row.key())
        .collect();
    ensure!(names == keys.into_iter().collect());
    ensure!(
        s3.list_objects_v2()
            .bucket("list")
            .send()
            .await?
            .key_count()
            == Some(0)
    );
    s3.delete_bucket().bucket("list").send().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_and_multipart_uploads_hold_their_bytes() -> anyhow::Result<()> {
    let node = start()?;
    let s3 = root(&node);
    s3.create_bucket().bucket("parts").send().await?;
    let body = pattern(2 * PART_BYTES + 777);
    let created = s3
        .create_multipart_upload()
        .bucket("parts")
        .key("big")
        .metadata("k", "v");
    let created = created
        .checksum_algorithm(ChecksumAlgorithm::Crc32)
        .send()
        .await?;
    let upload = created.upload_id().context("an upload id")?.to_owned();
    let mut parts = Vec::new();
    for (number, bytes) in (1..).zip(body.chunks(PART_BYTES)) {
        let part = s3
            .upload_part()
            .bucket("parts")
            .key("big")
            .upload_id(&upload);
        let part = part
            .part_number(number)
            .checksum_algorithm(ChecksumAlgorithm::Crc32);
        let part = part.body(ByteStream::from(bytes.to_vec())).send().await?;
        let done = CompletedPart::builder().part_number(number);
        let done = done.set_e_tag(part.e_tag().map(str::to_owned));
        parts.push(
            done.set_checksum_crc32(part.checksum_crc32().map(str::to_owned))
                .build(),
        );
    }
    let listed = s3
        .list_parts()
        .bucket("parts")
        .key("big")
        .upload_id(&upload)
        .send()
        .await?;
    ensure!(listed.parts().len() == 3);
    let uploads = s3.list_multipart_uploads().bucket("parts").send().await?;
    ensure!(
        uploads
            .uploads()
            .iter()
            .any(|row| row.upload_id() == Some(upload.as_str()))
    );
    let swapped: Vec<_> = parts.iter().rev().cloned().collect();
    let complete = |parts| {
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        s3.complete_multipart_upload()
            .bucket("parts")
            .key("big")
            .upload_id(&upload)
            .multipart_upload(parts)
            .send()
    };
    ensure!(code(complete(swapped).await).as_deref() == Some("InvalidPartOrder"));
    let done = complete(parts.clone()).await?;
    let etag = done.e_tag().context("an ETag")?.to_owned();
    ensure!(done.checksum_crc32().is_some());
    let again = complete(parts).await?;
    ensure!(
        again.e_tag() == done.e_tag(),
        "a repetition is answered alike"
    );
    ensure!(again.checksum_crc32() == done.checksum_crc32());
    ensure!(again.checksum_type() == done.checksum_type());
    ensure!(etag.ends_with("-3\""), "{etag}");
    ensure!(get(&s3, "parts", "big").await? == body);
    let second = s3
        .get_object()
        .bucket("parts")
        .key("big")
        .part_number(2)
        .send()
        .await?;
    ensure!(second.parts_count() == Some(3));
    ensure!(second.body.collect().await?.to_vec() == body[PART_BYTES..2 * PART_BYTES]);
    let attributes = s3.get_object_attributes().bucket("parts").key("big");
    let attributes = attributes.object_attributes(ObjectAttributes::ObjectSize);
    let attributes = attributes
        .object_attributes(ObjectAttributes::Checksum)
        .send()
        .await?;
    ensure!(attributes.object_size() == i64::try_from(body.len()).ok());
    ensure!(
        attributes
            .checksum()
            .and_then(|sum| sum.checksum_crc32())
            .is_some()
    );

    let copy = s3
        .copy_object()
        .bucket("parts")
        .key("copy/of/big")
        .copy_source("parts/big");
    copy.send().await?;
    let replaced = s3
        .copy_object()
        .bucket("parts")
        .key("big")
        .copy_source("parts/big");
    let replaced = replaced
        .metadata_directive(MetadataDirective::Replace)
        .metadata("k", "w");
    replaced.send().await?;
    let head = s3.head_object().bucket("parts").key("big").send().await?;
    ensure!(
        head.metadata()
            .and_then(|metadata| metadata.get("k"))
            .is_some_and(|v| v == "w")
    );
    let refused = s3
        .copy_object()
        .bucket("parts")
        .key("never")
        .copy_source("parts/big");
    let refused = refused.copy_source_if_match("\"other\"").send().await;
    ensure!(code(refused).as_deref() == Some("PreconditionFailed"));

    ensure!(
        get(&s3, "parts", "copy/of/big").await? == body,
        "the copy differs"
    );
    let created = s3
        .create_multipart_upload()
        .bucket("parts")
        .key("joined")
        .send()
        .await?;
    let upload = created.upload_id().context("an upload id")?.to_owned();
    let range = format!("bytes=0-{}", PART_BYTES - 1);
    let part = s3
        .upload_part_copy()
        .bucket("parts")
        .key("joined")
        .upload_id(&upload);
    let part = part
        .part_number(1)
        .copy_source("parts/copy%2Fof%2Fbig")
        .copy_source_range(range);
    let copied = part.send().await?;
    let etag = copied
        .copy_part_result()
        .and_then(|part| part.e_tag())
        .context("an ETag")?;
    let first = CompletedPart::builder().part_number(1).e_tag(etag).build();
    let part = s3
        .upload_part()
        .bucket("parts")
        .key("joined")
        .upload_id(&upload)
        .part_number(2);
    let part = part.body(ByteStream::from_static(b"tail")).send().await?;
    let second = CompletedPart::builder().part_number(2);
    let second = second.set_e_tag(part.e_tag().map(str::to_owned)).build();
    let joined = CompletedMultipartUpload::builder()
        .parts(first)
        .parts(second)
        .build();
    let done = s3
        .complete_multipart_upload()
        .bucket("parts")
        .key("joined")
        .upload_id(&upload);
    done.multipart_upload(joined).send().await?;
    s3.delete_object()
        .bucket("parts")
        .key("copy/of/big")
        .send()
        .await?;
    s3.delete_object().bucket("parts").key("big").send().await?;
    let bytes = get(&s3, "parts", "joined").await?;
    ensure!(bytes[..PART_BYTES] == body[..PART_BYTES] && &bytes[PART_BYTES..] == b"tail");

    let created = s3
        .create_multipart_upload()
        .bucket("parts")
        .key("dropped")
        .send()
        .await?;
    let upload = created.upload_id().context("an upload id")?.to_owned();
    let abort = s3.abort_multipart_upload().bucket("parts").key("dropped");
    abort.upload_id(&upload).send().await?;
    let gone = s3
        .list_parts()
        .bucket("parts")
        .key("dropped")
        .upload_id(&upload)
        .send()
        .await;
    ensure!(code(gone).as_deref() == Some("NoSuchUpload"));

    // An upload in progress does not keep a bucket that holds no key.
    s3.create_bucket().bucket("left").send().await?;
    let left = s3.create_multipart_upload().bucket("left").key("never");
    let left = left.send().await?.upload_id().map(str::to_owned);
    s3.delete_bucket().bucket("left").send().await?;
    s3.create_bucket().bucket("left").send().await?;
    let gone = s3.list_parts().bucket("left").key("never");
    let gone = gone.set_upload_id(left).send().await;
    ensure!(code(gone).as_deref() == Some("NoSuchUpload"));
    Ok(())
}
