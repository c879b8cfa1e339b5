//! Multipart uploads: parts are blobs (or references), and completing one joins their extents in one transaction.
//!
//! Invariants: a part's blob has a reference that the part holds, until the object takes it over or the part is given up.
//! Whoever adds a part has read the upload's row, so it conflicts with the upload's completion and abort. A completed
//! upload is remembered for [`DONE_KEPT_NS`], so that a repeated call gets the same answer.

use janusfs_env::{clock, rng};
use janusfs_kv::{Durability, Kv, Txn, run, run_idempotent};
use janusfs_types::{Content, FsError, limits};
use janusfs_wire::meta::{
    AbortUpload, CompleteUpload, CopyPart, CreateUpload, GetUpload, ListParts, ListUploads,
    NewContent, ObjectAttrs, Part, PartPage, Published, PutPart, Upload,
};

use super::{
    attrs, bucket,
    bucket::BucketRecord,
    key,
    object::{check_new_content, find_source},
    place::{NewObject, Place, published_before},
    record, share,
    upload::{
        self, DONE, DoneRecord, PartRecord, UploadRecord, done_key, is_upload_id, part_key,
        parts_of, upload_key, uploads_of,
    },
};
use crate::{
    Meta, MetaError,
    store::{SCAN_PAGE, key_after, prefix_end},
    tree,
};

/// How long a completed upload is remembered: a day, far longer than any client retries.
const DONE_KEPT_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Expired memories that each completion removes: more than it adds, so that they do not pile up.
const DONE_EXPIRED_AT_ONCE: u32 = 4;

async fn find_upload(
    txn: &mut impl Txn,
    bucket: &str,
    key: &str,
    upload_id: &str,
) -> Result<(BucketRecord, UploadRecord), MetaError> {
    let bucket = bucket::find(txn, bucket).await?;
    if !is_upload_id(upload_id) {
        return Err(FsError::NotFound.into());
    }
    let row = upload_key(bucket.root, key, upload_id);
    let upload = record::get(txn, &row).await?.ok_or(FsError::NotFound)?;
    Ok((bucket, upload))
}

fn check_number(number: u32) -> Result<(), FsError> {
    if (1..=limits::PART_COUNT_MAX).contains(&number) {
        return Ok(());
    }
    Err(FsError::Invalid(format!(
        "a part's number is 1 to {}",
        limits::PART_COUNT_MAX
    )))
}

/// Writes a part and gives up the one that it replaces. References of the new one are the caller's.
async fn store_part(
    txn: &mut impl Txn,
    upload_id: &str,
    number: u32,
    part: PartRecord,
) -> Result<Part, MetaError> {
    let row = part_key(upload_id, number);
    if let Some(old) = record::get::<PartRecord>(txn, &row).await? {
        tree::release_content(txn, &old.content, old.size).await?;
    }
    record::set(txn, &row, &part);
    Ok(part.numbered(number))
}

/// Reads every part of an upload.
async fn parts(txn: &mut impl Txn, upload_id: &str) -> Result<Vec<(u32, PartRecord)>, MetaError> {
    let prefix = parts_of(upload_id);
    let end = prefix_end(&prefix);
    let mut start = prefix.clone();
    let mut parts = Vec::new();
    loop {
        let page = txn.range(&start, &end, SCAN_PAGE).await?;
        let Some((last, _)) = page.last() else {
            return Ok(parts);
        };
        start = key_after(last);
        for (row, value) in page {
            let part = crate::store::decode("PART", &value)?;
            parts.push((number_of(&row[prefix.len()..])?, part));
        }
    }
}

fn number_of(rest: &[u8]) -> Result<u32, FsError> {
    let raw = rest
        .try_into()
        .map_err(|_| FsError::Corrupt("a part's key is too short".into()))?;
    Ok(u32::from_be_bytes(raw))
}

impl<K: Kv> Meta<K> {
    /// Starts an upload.
    pub(crate) async fn create_upload(&self, call: CreateUpload) -> Result<String, MetaError> {
        key::split(&call.key)?;
        let created_ns = clock::now_ns();
        let id = upload::new_upload_id(created_ns, u128::from_le_bytes(rng::random_bytes()));
        let (call, id) = (&call, &id);
        run_idempotent(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let root = bucket::find(txn, &call.bucket).await?.root;
                let upload = UploadRecord {
                    created_ns,
                    initiator: call.initiator.clone(),
                    attrs: call.attrs.clone(),
                };
                record::set(txn, &upload_key(root, &call.key, id), &upload);
                Ok(id.clone())
            })
        })
        .await
    }

    /// Stores a part.
    pub(crate) async fn put_part(&self, call: PutPart) -> Result<Part, MetaError> {
        check_number(call.number)?;
        check_new_content(&call.content)?;
        let (call, modified_ns) = (&call, clock::now_ns());
        run_idempotent(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                find_upload(txn, &call.bucket, &call.key, &call.upload_id).await?;
                let NewContent { content, size } = call.content.clone();
                let row = part_key(&call.upload_id, call.number);
                let before = record::get::<PartRecord>(txn, &row).await?;
                let repeated = before.filter(|before| {
                    before.content == content && matches!(content, Content::Blob { .. })
                });
                if let Some(before) = repeated {
                    return Ok(before.numbered(call.number));
                }
                if let Content::Blob { blob, layout } = content {
                    tree::claim_blob(txn, blob, layout, size);
                }
                let (etag, checksums) = (call.etag.clone(), call.checksums.clone());
                let part = PartRecord {
                    content,
                    size,
                    etag,
                    checksums,
                    modified_ns,
                };
                store_part(txn, &call.upload_id, call.number, part).await
            })
        })
        .await
    }

    /// Stores a part by reference. Its ETag is the source's when that is an MD5 and all of it was copied; else it is as
    /// good as random, since nobody reads the bytes.
    pub(crate) async fn copy_part(&self, call: CopyPart) -> Result<Part, MetaError> {
        check_number(call.number)?;
        let source_path = key::split(&call.source_key)?;
        let opaque = format!("{:032x}", u128::from_le_bytes(rng::random_bytes()));
        let (call, source_path, opaque) = (&call, &source_path, &opaque);
        let modified_ns = clock::now_ns();
        run_idempotent(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                find_upload(txn, &call.bucket, &call.key, &call.upload_id).await?;
                let (_, mut source) =
                    find_source(txn, &call.source_bucket, source_path, &call.source_etag).await?;
                let end = call.offset.checked_add(call.len_bytes);
                if end.is_none_or(|end| end > source.size()) {
                    return Err(FsError::Invalid("InvalidRange".into()).into());
                }
                if call.len_bytes > limits::PUT_SIZE_MAX_BYTES {
                    return Err(FsError::FileTooLarge.into());
                }
                let whole = call.len_bytes == source.size();
                let etag = if whole && !source.attrs.etag.contains('-') {
                    source.attrs.etag.clone()
                } else {
                    opaque.clone()
                };
                let (offset, size) = (call.offset, call.len_bytes);
                let content = share::share_range(txn, &mut source.record, offset, size).await?;
                let checksums = Vec::new();
                let part = PartRecord {
                    content,
                    size,
                    etag,
                    checksums,
                    modified_ns,
                };
                store_part(txn, &call.upload_id, call.number, part).await
            })
        })
        .await
    }

    /// Lists parts.
    pub(crate) async fn list_parts(&self, call: ListParts) -> Result<PartPage, MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let (_, upload) =
                    find_upload(txn, &call.bucket, &call.key, &call.upload_id).await?;
                let limit = call.limit.min(limits::LIST_PAGE_MAX);
                let prefix = parts_of(&call.upload_id);
                let start = key_after(&part_key(&call.upload_id, call.after));
                let rows = record::scan::<PartRecord>(txn, &prefix, &start, limit + 1).await?;
                let mut parts = rows
                    .into_iter()
                    .map(|(rest, part)| Ok(part.numbered(number_of(&rest)?)))
                    .collect::<Result<Vec<_>, FsError>>()?;
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                let truncated = parts.len() > limit && limit > 0;
                parts.truncate(limit);
                let upload = upload.named(call.key.clone(), call.upload_id.clone());
                Ok(PartPage {
                    upload,
                    parts,
                    truncated,
                })
            })
        })
        .await
    }

    /// Lists uploads.
    pub(crate) async fn list_uploads(&self, call: ListUploads) -> Result<Vec<Upload>, MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let root = bucket::find(txn, &call.bucket).await?.root;
                let base = uploads_of(root);
                let prefix = [&*base, call.prefix.as_bytes()].concat();
                let start = match (&*call.after_key, &*call.after_upload) {
                    ("", _) => prefix.clone(),
                    // After all uploads of the key: ids follow a zero byte.
                    (key, "") => [&*base, key.as_bytes(), &[1]].concat(),
                    (key, id) => key_after(&upload_key(root, key, id)),
                };
                // One more than a page, so that the caller can tell whether there is a next one.
                let limit = call.limit.min(limits::LIST_PAGE_MAX + 1);
                if start >= prefix_end(&prefix) {
                    return Ok(Vec::new());
                }
                record::scan::<UploadRecord>(txn, &prefix, &start, limit)
                    .await?
                    .into_iter()
                    .map(|(rest, upload)| {
                        let rest = [call.prefix.as_bytes(), &*rest].concat();
                        let (key, id) = upload::split_upload_key(&rest)
                            .ok_or_else(|| FsError::Corrupt("the key of an upload's row".into()))?;
                        Ok(upload.named(key, id))
                    })
                    .collect()
            })
        })
        .await
    }

    /// Finds an upload.
    pub(crate) async fn get_upload(&self, call: GetUpload) -> Result<Upload, MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let (_, upload) =
                    find_upload(txn, &call.bucket, &call.key, &call.upload_id).await?;
                Ok(upload.named(call.key.clone(), call.upload_id.clone()))
            })
        })
        .await
    }

    /// Drops an upload and its parts.
    pub(crate) async fn abort_upload(&self, call: AbortUpload) -> Result<(), MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let (bucket, _) =
                    find_upload(txn, &call.bucket, &call.key, &call.upload_id).await?;
                for (_, part) in parts(txn, &call.upload_id).await? {
                    tree::release_content(txn, &part.content, part.size).await?;
                }
                clear_upload(txn, &bucket, &call.key, &call.upload_id);
                Ok(())
            })
        })
        .await
    }

    /// Publishes the object over the parts.
    pub(crate) async fn complete_upload(
        &self,
        call: CompleteUpload,
    ) -> Result<Published, MetaError> {
        let path = key::split(&call.key)?;
        let (call, path, now_ns) = (&call, &path, clock::now_ns());
        run_idempotent(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let bucket = bucket::find(txn, &call.bucket).await?;
                if let Some(done) = completed_before(txn, &bucket, call).await? {
                    return Ok(done);
                }
                let (_, upload) =
                    find_upload(txn, &call.bucket, &call.key, &call.upload_id).await?;
                if published_before(txn, call.inode).await?.is_some() {
                    return Err(FsError::Invalid(format!("{} is in use", call.inode)).into());
                }
                let place = Place::find(txn, bucket.root, path).await?;
                place.check(txn, path, &call.conditions).await?;

                let stored = parts(txn, &call.upload_id).await?;
                let (chosen, left) = choose(&call.parts, stored)?;
                // A part without a byte has no extent that could take its reference over.
                for part in left
                    .iter()
                    .chain(chosen.iter().filter(|part| part.size == 0))
                {
                    tree::release_content(txn, &part.content, part.size).await?;
                }
                let sizes = chosen.iter().map(|part| part.size).collect();
                let contents = chosen
                    .into_iter()
                    .map(|part| (part.content, part.size))
                    .collect();
                let (content, size) = share::concatenate(contents)?;
                let attrs = ObjectAttrs {
                    etag: call.etag.clone(),
                    checksums: call.checksums.clone(),
                    checksum_type: call.checksum_type.clone(),
                    parts: sizes,
                    ..attrs::without_bytes(upload.attrs)
                };
                let new = NewObject {
                    inode: call.inode,
                    content,
                    size,
                    attrs,
                    now_ns,
                };
                let done = self
                    .publish_object(txn, &bucket, path, place, new, &call.who)
                    .await?;
                clear_upload(txn, &bucket, &call.key, &call.upload_id);
                remember(txn, &bucket, call, &done).await?;
                Ok(done)
            })
        })
        .await
    }
}

fn clear_upload(txn: &mut impl Txn, bucket: &BucketRecord, key: &str, upload_id: &str) {
    let prefix = parts_of(upload_id);
    txn.clear_range(&prefix, &prefix_end(&prefix));
    txn.clear(&upload_key(bucket.root, key, upload_id));
}

/// Takes the parts that the object is made of out of the stored ones; the others are left over.
fn choose(
    wanted: &[(u32, String)],
    stored: Vec<(u32, PartRecord)>,
) -> Result<(Vec<PartRecord>, Vec<PartRecord>), FsError> {
    let invalid = |code: &str| FsError::Invalid(code.into());
    if wanted.is_empty() {
        return Err(invalid("InvalidPart"));
    }
    if !wanted.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(invalid("InvalidPartOrder"));
    }
    let (mut chosen, mut left) = (Vec::with_capacity(wanted.len()), Vec::new());
    let mut next = wanted.iter().peekable();
    for (number, part) in stored {
        match next.peek() {
            Some((wanted, etag)) if *wanted == number && *etag == part.etag => {
                next.next();
                chosen.push(part);
            }
            Some((wanted, _)) if *wanted <= number => return Err(invalid("InvalidPart")),
            _ => left.push(part),
        }
    }
    if next.peek().is_some() {
        return Err(invalid("InvalidPart"));
    }
    let all_but_last = &chosen[..chosen.len() - 1];
    if all_but_last
        .iter()
        .any(|part| part.size < limits::PART_SIZE_MIN_BYTES)
    {
        return Err(invalid("EntityTooSmall"));
    }
    Ok((chosen, left))
}

async fn completed_before(
    txn: &mut impl Txn,
    bucket: &BucketRecord,
    call: &CompleteUpload,
) -> Result<Option<Published>, MetaError> {
    if !is_upload_id(&call.upload_id) {
        return Ok(None);
    }
    let done = record::get::<DoneRecord>(txn, &done_key(&call.upload_id)).await?;
    Ok(done
        .filter(|done| done.root == bucket.root && done.key == call.key)
        .map(|done| Published {
            inode: done.inode,
            etag: done.etag,
            modified_ns: done.modified_ns,
        }))
}

async fn remember(
    txn: &mut impl Txn,
    bucket: &BucketRecord,
    call: &CompleteUpload,
    done: &Published,
) -> Result<(), MetaError> {
    let oldest = record::scan::<DoneRecord>(txn, DONE, DONE, DONE_EXPIRED_AT_ONCE).await?;
    for (rest, old) in oldest {
        if old.modified_ns.saturating_add(DONE_KEPT_NS) < done.modified_ns {
            txn.clear(&[DONE, &*rest].concat());
        }
    }
    let record = DoneRecord {
        root: bucket.root,
        key: call.key.clone(),
        inode: done.inode,
        etag: done.etag.clone(),
        modified_ns: done.modified_ns,
    };
    record::set(txn, &done_key(&call.upload_id), &record);
    Ok(())
}
