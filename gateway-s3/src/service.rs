//! The table of operations. What is not in it is answered `NotImplemented` by `s3s`.

use std::{future::Future, pin::Pin, sync::Arc};

use s3s::{S3, S3Request, S3Response, S3Result, dto::*};

use crate::{namespace::Gateway, ops};

/// The implementation of S3 that `s3s` calls.
pub(crate) struct Service(Arc<Gateway>);

impl Service {
    pub(crate) fn new(gateway: Gateway) -> Self {
        Self(Arc::new(gateway))
    }
}

macro_rules! operations {
    ($($name:ident: $input:ident -> $output:ident = $body:path;)*) => {
        impl S3 for Service {
            $(
                fn $name<'life0, 'async_trait>(
                    &'life0 self,
                    request: S3Request<$input>,
                ) -> Pin<Box<dyn Future<Output = S3Result<S3Response<$output>>> + Send + 'async_trait>>
                where
                    'life0: 'async_trait,
                    Self: 'async_trait,
                {
                    Box::pin($body(&self.0, request))
                }
            )*
        }
    };
}

operations! {
    create_bucket: CreateBucketInput -> CreateBucketOutput = ops::bucket::create;
    head_bucket: HeadBucketInput -> HeadBucketOutput = ops::bucket::head;
    list_buckets: ListBucketsInput -> ListBucketsOutput = ops::bucket::list;
    delete_bucket: DeleteBucketInput -> DeleteBucketOutput = ops::bucket::delete;
    get_bucket_location: GetBucketLocationInput -> GetBucketLocationOutput = ops::bucket::location;
    get_bucket_versioning: GetBucketVersioningInput -> GetBucketVersioningOutput = ops::bucket::versioning;
    put_object: PutObjectInput -> PutObjectOutput = ops::put::object;
    post_object: PostObjectInput -> PostObjectOutput = ops::put::form;
    get_object: GetObjectInput -> GetObjectOutput = ops::get::object;
    head_object: HeadObjectInput -> HeadObjectOutput = ops::get::head;
    get_object_attributes: GetObjectAttributesInput -> GetObjectAttributesOutput = ops::get::attributes;
    delete_object: DeleteObjectInput -> DeleteObjectOutput = ops::delete::one;
    delete_objects: DeleteObjectsInput -> DeleteObjectsOutput = ops::delete::many;
    copy_object: CopyObjectInput -> CopyObjectOutput = ops::copy::object;
    list_objects: ListObjectsInput -> ListObjectsOutput = ops::list::v1;
    list_objects_v2: ListObjectsV2Input -> ListObjectsV2Output = ops::list::v2;
    list_object_versions: ListObjectVersionsInput -> ListObjectVersionsOutput = ops::list::versions;
    create_multipart_upload: CreateMultipartUploadInput -> CreateMultipartUploadOutput = ops::multipart::create;
    upload_part: UploadPartInput -> UploadPartOutput = ops::multipart::part;
    upload_part_copy: UploadPartCopyInput -> UploadPartCopyOutput = ops::multipart::part_copy;
    complete_multipart_upload: CompleteMultipartUploadInput -> CompleteMultipartUploadOutput = ops::multipart::complete;
    abort_multipart_upload: AbortMultipartUploadInput -> AbortMultipartUploadOutput = ops::multipart::abort;
    list_parts: ListPartsInput -> ListPartsOutput = ops::multipart::list_parts;
    list_multipart_uploads: ListMultipartUploadsInput -> ListMultipartUploadsOutput = ops::multipart::list_uploads;
}
