//! Objects: put, get, delete and copy, each one transaction per key.

use std::sync::Arc;

use janusfs_env::{clock, tasks};
use janusfs_kv::{Durability, Kv, Txn, run, run_idempotent};
use janusfs_types::{BlobId, Content, FsError, InodeId, limits};
use janusfs_wire::meta::{
    Conditions, CopyObject, DeleteObjects, Deleted, GetObject, NewContent, Object as WireObject,
    ObjectAttrs, Opened, Published, PutObject,
};

use super::{
    bucket,
    key::{self, KeyPath},
    place::{NewObject, Object, Place, carried_over, published_before, remove_object},
    share,
};
use crate::{
    Meta, MetaError,
    store::{epoch, inode, object},
    tree,
};

/// Checks bytes that a gateway brings.
///
/// # Errors
/// [`FsError::Invalid`], [`FsError::FileTooLarge`].
pub(super) fn check_new_content(new: &NewContent) -> Result<(), FsError> {
    if new.size > limits::PUT_SIZE_MAX_BYTES {
        return Err(FsError::FileTooLarge);
    }
    match &new.content {
        Content::Inline(bytes) => {
            let same = u64::try_from(bytes.len()).is_ok_and(|len| len == new.size);
            if same && bytes.len() <= limits::INLINE_MAX_BYTES {
                return Ok(());
            }
            Err(FsError::Invalid(
                "inline content of another size, or over the limit".into(),
            ))
        }
        Content::Blob { blob, .. } if *blob >= BlobId(InodeId::FIRST_FREE.0) => Ok(()),
        Content::Blob { .. } => Err(FsError::Invalid("a reserved blob".into())),
        Content::Extents(_) => Err(FsError::Invalid("new content is inline or one blob".into())),
    }
}

/// Finds the source of a copy, whose ETag must hold when one is given.
pub(super) async fn find_source(
    txn: &mut impl Txn,
    bucket: &str,
    path: &KeyPath,
    etag: &str,
) -> Result<(Place, Object), MetaError> {
    let root = bucket::find(txn, bucket).await?.root;
    let place = Place::find(txn, root, path).await?;
    let source = place.object(txn, path).await?.ok_or(FsError::NotFound)?;
    if !etag.is_empty() && source.attrs.etag != etag {
        return Err(FsError::PreconditionFailed.into());
    }
    Ok((place, source))
}

impl<K: Kv> Meta<K> {
    /// Publishes an object.
    pub(crate) async fn put_object(&self, call: PutObject) -> Result<Published, MetaError> {
        let path = key::split(&call.key)?;
        check_new_content(&call.content)?;
        let (call, path, now_ns) = (&call, &path, clock::now_ns());
        run_idempotent(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let bucket = bucket::find(txn, &call.bucket).await?;
                if let Some(published) = published_before(txn, call.inode).await? {
                    return Ok(published);
                }
                let place = Place::find(txn, bucket.root, path).await?;
                place.check(txn, path, &call.conditions).await?;
                let NewContent { content, size } = call.content.clone();
                if let Content::Blob { blob, layout } = content
                    && blob != call.inode.own_blob()
                {
                    tree::claim_blob(txn, blob, layout, size);
                }
                let attrs = call.attrs.clone();
                let new = NewObject {
                    inode: call.inode,
                    content,
                    size,
                    attrs,
                    now_ns,
                };
                self.publish_object(txn, &bucket, path, place, new, &call.who)
                    .await
            })
        })
        .await
    }

    /// Resolves a key.
    pub(crate) async fn get_object(&self, call: GetObject) -> Result<WireObject, MetaError> {
        let path = key::split(&call.key)?;
        let (call, path) = (&call, &path);
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let (_, found) = find_source(txn, &call.bucket, path, "").await?;
                let mut attr = tree::attr_of(txn, found.record.attr).await?;
                attr.size = found.size();
                let epoch = epoch::current_snapshot(txn).await?;
                let file = Opened {
                    attr,
                    content: found.record.content,
                    epoch,
                };
                Ok(WireObject {
                    file,
                    attrs: found.attrs,
                })
            })
        })
        .await
    }

    /// Deletes keys.
    pub(crate) async fn delete_objects(
        &self,
        call: DeleteObjects,
    ) -> Result<Vec<Deleted>, MetaError> {
        let DeleteObjects {
            bucket,
            keys,
            conditions,
        } = call;
        if keys.len() > usize::try_from(limits::LIST_PAGE_MAX).unwrap_or(usize::MAX) {
            return Err(FsError::Invalid("too many keys in one request".into()).into());
        }
        if let [key] = &*keys {
            delete_object(&*self.kv, &bucket, key, &conditions, Durability::Now).await?;
            return Ok(vec![Deleted {
                key: key.clone(),
                error: None,
            }]);
        }
        let kv = Arc::clone(&self.kv);
        // A thousand short commits: on one thread that may wait, not a thousand hops to one.
        tasks::where_blocking(async move {
            let mut outcomes = Vec::with_capacity(keys.len());
            for key in keys {
                // One sync for all of them, below.
                let outcome =
                    delete_object(&*kv, &bucket, &key, &conditions, Durability::Soon).await;
                let error = match outcome {
                    Ok(()) => None,
                    Err(MetaError::Fs(error)) => Some(error),
                    Err(error @ MetaError::Kv(_)) => return Err(error),
                };
                outcomes.push(Deleted { key, error });
            }
            kv.sync().await?;
            Ok(outcomes)
        })
        .await
    }

    /// Copies by reference.
    pub(crate) async fn copy_object(&self, call: CopyObject) -> Result<Published, MetaError> {
        let source_path = key::split(&call.source_key)?;
        let path = key::split(&call.key)?;
        let (call, source_path, path, now_ns) = (&call, &source_path, &path, clock::now_ns());
        run_idempotent(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let bucket = bucket::find(txn, &call.bucket).await?;
                if let Some(published) = published_before(txn, call.inode).await? {
                    return Ok(published);
                }
                let (source_place, mut source) =
                    find_source(txn, &call.source_bucket, source_path, &call.source_etag).await?;
                let attrs = copied_attrs(txn, &source, call.attrs.as_ref()).await?;
                let place = Place::find(txn, bucket.root, path).await?;
                place.check(txn, path, &call.conditions).await?;
                let onto_itself =
                    place.shares_directory(&source_place) && path.file == source_path.file;
                let same_key = call.bucket == call.source_bucket && call.key == call.source_key;
                if onto_itself && !same_key {
                    // Who copies to move would delete the only entry afterwards.
                    return Err(FsError::ThroughSymlink.into());
                }
                // Of a symlink: what it leads to stays as it is.
                if onto_itself && place.holds_file() {
                    return copy_onto_itself(txn, source, attrs, now_ns).await;
                }
                let size = source.size();
                let content = share::share_range(txn, &mut source.record, 0, size).await?;
                let new = NewObject {
                    inode: call.inode,
                    content,
                    size,
                    attrs,
                    now_ns,
                };
                self.publish_object(txn, &bucket, path, place, new, &call.who)
                    .await
            })
        })
        .await
    }
}

/// Deletes one key.
async fn delete_object<K: Kv>(
    kv: &K,
    bucket: &str,
    key: &str,
    conditions: &Conditions,
    durability: Durability,
) -> Result<(), MetaError> {
    let path = key::split(key)?;
    let (path, now_ns) = (&path, clock::now_ns());
    run(kv, durability, |txn| {
        Box::pin(async move {
            let root = bucket::find(txn, bucket).await?.root;
            let place = Place::find(txn, root, path).await?;
            place.check(txn, path, conditions).await?;
            remove_object(txn, path, &place, now_ns).await?;
            Ok(())
        })
    })
    .await
}

/// Returns what a copy is described by: the bytes' description is the source's, the rest as asked.
async fn copied_attrs(
    txn: &mut impl Txn,
    source: &Object,
    replaced: Option<&ObjectAttrs>,
) -> Result<ObjectAttrs, MetaError> {
    let id = source.record.attr.inode;
    let holds = source.is_directory()
        || object::load(txn, id)
            .await?
            .is_some_and(|stored| stored.etag == source.attrs.etag);
    let kept = carried_over(source, holds);
    let Some(asked) = replaced else {
        return Ok(kept);
    };
    let mut attrs = ObjectAttrs {
        headers: asked.headers.clone(),
        metadata: asked.metadata.clone(),
        ..kept
    };
    if !asked.etag.is_empty() {
        attrs.etag.clone_from(&asked.etag);
    }
    if !asked.checksums.is_empty() {
        attrs.checksums.clone_from(&asked.checksums);
        attrs.checksum_type.clone_from(&asked.checksum_type);
    }
    Ok(attrs)
}

/// Replaces the attributes of an object; its bytes stay.
async fn copy_onto_itself(
    txn: &mut impl Txn,
    source: Object,
    attrs: ObjectAttrs,
    now_ns: i64,
) -> Result<Published, MetaError> {
    let Object {
        mut record,
        attrs: current,
    } = source;
    let id = record.attr.inode;
    let etag = if attrs.etag.is_empty() {
        current.etag
    } else {
        attrs.etag.clone()
    };
    if record.attr.kind == janusfs_types::FileKind::Regular {
        let data_version = record.attr.data_version;
        object::store(
            txn,
            id,
            &ObjectAttrs {
                data_version,
                ..attrs
            },
        );
        record.attr.times.modified_ns = now_ns;
        record.attr.times.changed_ns = now_ns;
        inode::store_attr(txn, &record);
    }
    Ok(Published {
        inode: id,
        etag,
        modified_ns: now_ns,
    })
}
