//! Buckets: create, head, list, delete, and the questions about them that have one answer.

use janusfs_types::FsError;
use janusfs_wire::meta::{CreateBucket, DeleteBucket, ListBuckets};
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        Bucket, BucketLocationConstraint, CreateBucketInput, CreateBucketOutput, DeleteBucketInput,
        DeleteBucketOutput, GetBucketLocationInput, GetBucketLocationOutput,
        GetBucketVersioningInput, GetBucketVersioningOutput, HeadBucketInput, HeadBucketOutput,
        ListBucketsInput, ListBucketsOutput,
    },
};

use super::{answer, bucket_of, check_acl, list, owner, refuse};
use crate::{
    auth::identity,
    error::{Subject, not_implemented, s3_error as from_fs},
    etag::timestamp,
    namespace::{Gateway, may_use},
};

/// The region that clients assume when none is told.
const DEFAULT_REGION: &str = "us-east-1";
/// Most buckets of one page (S3 API reference).
const BUCKETS_PAGE_MAX: usize = 10_000;

pub(crate) async fn create(
    gateway: &Gateway,
    request: S3Request<CreateBucketInput>,
) -> S3Result<S3Response<CreateBucketOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    refuse!(input;
        grant_full_control: "an ACL grant",
        grant_read: "an ACL grant",
        grant_read_acp: "an ACL grant",
        grant_write: "an ACL grant",
        grant_write_acp: "an ACL grant",
    );
    if input.object_lock_enabled_for_bucket == Some(true) {
        return Err(not_implemented("object lock"));
    }
    check_acl(input.acl.as_ref().map(|acl| acl.as_str()))?;
    if let Some(configuration) = &input.create_bucket_configuration {
        refuse!(configuration; bucket: "a directory bucket", location: "a directory bucket");
        if configuration
            .tags
            .as_ref()
            .is_some_and(|tags| !tags.is_empty())
        {
            return Err(not_implemented("bucket tagging"));
        }
        if let (Some(asked), Some(region)) = (&configuration.location_constraint, &gateway.region)
            && asked.as_str() != region
        {
            return Err(S3Error::new(
                S3ErrorCode::IllegalLocationConstraintException,
            ));
        }
    }
    let message = CreateBucket {
        name: input.bucket.clone(),
        path: String::new(),
        owner: identity.name.clone(),
        who: identity.who.clone(),
    };
    let location = Some(format!("/{}", input.bucket));
    match gateway.client.call(&message).await {
        Ok(_) => answer(CreateBucketOutput {
            location,
            ..Default::default()
        }),
        Err(FsError::Exists) => {
            let bucket = gateway.fresh(&input.bucket).await?;
            Err(S3Error::new(if bucket.owner == identity.name {
                S3ErrorCode::BucketAlreadyOwnedByYou
            } else {
                S3ErrorCode::BucketAlreadyExists
            }))
        }
        Err(error) => Err(from_fs(error, Subject::Bucket)),
    }
}

pub(crate) async fn head(
    gateway: &Gateway,
    request: S3Request<HeadBucketInput>,
) -> S3Result<S3Response<HeadBucketOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    gateway.forget(&input.bucket);
    bucket_of!(gateway, identity, input)?;
    let bucket_region = Some(
        gateway
            .region
            .clone()
            .unwrap_or_else(|| DEFAULT_REGION.to_owned()),
    );
    answer(HeadBucketOutput {
        bucket_region,
        ..Default::default()
    })
}

pub(crate) async fn list(
    gateway: &Gateway,
    request: S3Request<ListBucketsInput>,
) -> S3Result<S3Response<ListBucketsOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    let after = input
        .continuation_token
        .as_deref()
        .map(list::decode_token)
        .transpose()?;
    let limit = match input.max_buckets.map(usize::try_from) {
        None => BUCKETS_PAGE_MAX,
        Some(Ok(limit)) if (1..=BUCKETS_PAGE_MAX).contains(&limit) => limit,
        Some(_) => {
            return Err(s3s::s3_error!(
                InvalidArgument,
                "max-buckets is from 1 to 10,000"
            ));
        }
    };
    let all = gateway.client.call(&ListBuckets {}).await;
    let all = all.map_err(|error| from_fs(error, Subject::Bucket))?;
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let mut matching = all
        .into_iter()
        .filter(|bucket| may_use(&identity, bucket))
        .filter(|bucket| bucket.name.starts_with(prefix))
        .filter(|bucket| after.as_ref().is_none_or(|after| bucket.name > *after));
    let buckets: Vec<Bucket> = matching
        .by_ref()
        .take(limit)
        .map(|bucket| Bucket {
            creation_date: Some(timestamp(bucket.created_ns)),
            name: Some(bucket.name),
            bucket_region: gateway.region.clone(),
            ..Default::default()
        })
        .collect();
    let more = matching.next().is_some();
    let last = buckets.last().and_then(|bucket| bucket.name.as_deref());
    answer(ListBucketsOutput {
        continuation_token: if more {
            last.map(list::encode_token)
        } else {
            None
        },
        buckets: Some(buckets),
        owner: Some(owner(&identity.name)),
        prefix: input.prefix,
    })
}

pub(crate) async fn delete(
    gateway: &Gateway,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    bucket_of!(gateway, identity, input)?;
    let message = DeleteBucket { name: input.bucket };
    let result = gateway.client.call(&message).await;
    gateway.forget(&message.name);
    result.map_err(|error| from_fs(error, Subject::Bucket))?;
    answer(DeleteBucketOutput::default())
}

pub(crate) async fn location(
    gateway: &Gateway,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    bucket_of!(gateway, identity, input)?;
    // The default region is told by an empty answer.
    let region = gateway
        .region
        .clone()
        .filter(|region| region != DEFAULT_REGION);
    answer(GetBucketLocationOutput {
        location_constraint: region.map(BucketLocationConstraint::from),
    })
}

/// Answers that versioning was never enabled.
pub(crate) async fn versioning(
    gateway: &Gateway,
    request: S3Request<GetBucketVersioningInput>,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    let identity = identity(&request)?;
    let input = request.input;
    bucket_of!(gateway, identity, input)?;
    answer(GetBucketVersioningOutput::default())
}
