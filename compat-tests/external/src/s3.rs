//! The AWS SDK pointed at a node, and what tests do most with it.

use anyhow::Context as _;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig, http::HttpResponse,
        retry::RetryConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};

use crate::TestNode;

/// Returns a client that signs with a key pair and never tries twice.
#[must_use]
pub fn client(node: &TestNode, access_key: &str, secret_key: &str) -> Client {
    client_at(&node.s3_endpoint(), access_key, secret_key)
}

/// As [`client`], for an endpoint by URL.
#[must_use]
pub fn client_at(endpoint: &str, access_key: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        // A disk that writes back for seconds is slow, not broken.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build();
    Client::from_conf(config)
}

/// Returns a client of the root user.
#[must_use]
pub fn root(node: &TestNode) -> Client {
    let (access_key, secret_key) = node.credentials();
    client(node, access_key, secret_key)
}

/// Returns the error code of a failed request.
pub fn code<T, E: ProvideErrorMetadata, R>(result: Result<T, SdkError<E, R>>) -> Option<String> {
    let error = result.err()?;
    error.code().map(str::to_owned)
}

/// Returns the HTTP status of a failed request.
pub fn status<T, E>(result: Result<T, SdkError<E, HttpResponse>>) -> Option<u16> {
    let error = result.err()?;
    error.raw_response().map(|raw| raw.status().as_u16())
}

/// Puts an object.
///
/// # Errors
/// When the door refuses it.
pub async fn put(client: &Client, bucket: &str, key: &str, body: Vec<u8>) -> anyhow::Result<()> {
    let put = client.put_object().bucket(bucket).key(key);
    let sent = put.body(ByteStream::from(body)).send().await;
    sent.with_context(|| format!("PUT {key:?}"))?;
    Ok(())
}

/// Reads an object whole.
///
/// # Errors
/// When the door refuses, or the body breaks off.
pub async fn get(client: &Client, bucket: &str, key: &str) -> anyhow::Result<Vec<u8>> {
    let output = client.get_object().bucket(bucket).key(key).send().await;
    let output = output.with_context(|| format!("GET {key:?}"))?;
    let body = output.body.collect().await;
    Ok(body
        .with_context(|| format!("the body of {key:?}"))?
        .to_vec())
}

/// Lists every key of a bucket, in the order of the answer.
///
/// # Errors
/// When the door refuses.
pub async fn keys(client: &Client, bucket: &str) -> anyhow::Result<Vec<String>> {
    let (mut keys, mut token) = (Vec::new(), None);
    loop {
        let list = client.list_objects_v2().bucket(bucket);
        let page = list.set_continuation_token(token).send().await?;
        let rows = page.contents().iter();
        keys.extend(rows.filter_map(|row| row.key().map(str::to_owned)));
        token = page.next_continuation_token().map(str::to_owned);
        if token.is_none() {
            return Ok(keys);
        }
    }
}

/// Returns bytes that no two offsets share for long, so that a misplaced chunk shows.
#[must_use]
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let words = (1u64..).map(|i| {
        (i ^ (seed << 40))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23)
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}
