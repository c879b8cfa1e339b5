//! Buckets: the `BUCK` rows and the calls on them. A bucket is a name for a directory.
//!
//! Invariants: a bucket's directory is explicit, so it never vanishes with its last key. One that is empty when it becomes
//! a bucket's is an accounting root of its own from then on; one that already has entries stays counted where it is, and
//! the bucket shows no figures. Everyone who changes something in a bucket has read its row, so it conflicts with the
//! bucket's removal. Absent: what a bucket's policy allows (the gateway).

use janusfs_env::clock;
use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{Credentials, DentryName, FileKind, FsError, InodeId, limits};
use janusfs_wire::{
    meta::{AbortUpload, Bucket, CreateBucket, DeleteBucket, GetBucket, ListUploads},
    wire_fields,
};

use super::{
    record::{self, Record},
    upload,
    walk::bucket_holds_key,
};
use crate::{
    Meta, MetaError,
    store::{
        dentry,
        inode::{self, InodeRecord},
        prefix_end, usage,
    },
    tree::{self, NewInode},
};

/// Umask of new buckets: what others may not write.
const UMASK: u32 = 0o022;
/// Length of a bucket's name in bytes (S3 User Guide, "Bucket naming rules").
const NAME_BYTES: std::ops::RangeInclusive<usize> = 3..=63;
/// Longest path of a bucket's directory in bytes (`PATH_MAX`).
const PATH_MAX_BYTES: usize = 4096;
/// Most leftover directories that go with a bucket's directory; with more it stays.
const LEFTOVERS_MAX: usize = 1000;

/// Value of `BUCK` name.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct BucketRecord {
    /// Its directory.
    pub(super) root: InodeId,
    path: String,
    owner: String,
    created_ns: i64,
    /// Mode bits removed from what a PUT creates.
    pub(super) umask: u32,
}
wire_fields!(BucketRecord {
    root,
    path,
    owner,
    created_ns,
    umask
});

impl Record for BucketRecord {
    const NAME: &'static str = "BUCK";
}

fn bucket_key(name: &str) -> Vec<u8> {
    [b"BUCK", name.as_bytes()].concat()
}

/// Finds a bucket.
///
/// # Errors
/// [`FsError::NotFound`].
pub(super) async fn find(txn: &mut impl Txn, name: &str) -> Result<BucketRecord, MetaError> {
    if name.len() > *NAME_BYTES.end() {
        return Err(FsError::NotFound.into());
    }
    Ok(record::get(txn, &bucket_key(name))
        .await?
        .ok_or(FsError::NotFound)?)
}

fn check_name(name: &str) -> Result<(), FsError> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| alphanumeric(*byte));
    let bytes = name.as_bytes();
    let good = NAME_BYTES.contains(&bytes.len())
        && bytes
            .iter()
            .all(|&byte| alphanumeric(byte) || matches!(byte, b'.' | b'-'))
        && ends(bytes.first())
        && ends(bytes.last())
        && !name.contains("..")
        && name.parse::<std::net::Ipv4Addr>().is_err();
    if good {
        Ok(())
    } else {
        Err(FsError::Invalid("InvalidBucketName".into()))
    }
}

/// Takes a path apart into names of directories.
fn split_path(path: &str) -> Result<Vec<DentryName>, FsError> {
    if path.len() > PATH_MAX_BYTES {
        return Err(FsError::NameTooLong);
    }
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(|part| {
            if matches!(part, "." | "..") {
                return Err(FsError::Invalid(
                    "a bucket's path has no '.' or '..'".into(),
                ));
            }
            if part.starts_with(super::key::RESERVED) {
                return Err(FsError::NameReserved);
            }
            if part.len() > limits::POSIX_NAME_MAX_BYTES {
                return Err(FsError::NameTooLong);
            }
            Ok(DentryName::directory(part.as_bytes())?)
        })
        .collect()
}

impl BucketRecord {
    async fn shown(self, txn: &mut impl Txn, name: String) -> Result<Bucket, MetaError> {
        let usage = usage::read(txn, self.root).await?;
        let Self {
            root,
            path,
            owner,
            created_ns,
            umask,
        } = self;
        Ok(Bucket {
            name,
            root,
            path,
            owner,
            created_ns,
            umask,
            used_bytes: usage.bytes,
            entries: usage.entries,
        })
    }
}

impl<K: Kv> Meta<K> {
    /// Makes a bucket.
    pub(crate) async fn create_bucket(&self, call: CreateBucket) -> Result<Bucket, MetaError> {
        check_name(&call.name)?;
        let path = if call.path.is_empty() {
            format!("/{}", call.name)
        } else {
            call.path.clone()
        };
        let names = split_path(&path)?;
        let (call, path, names, now_ns) = (&call, &path, &names, clock::now_ns());
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let key = bucket_key(&call.name);
                if txn.get(&key).await?.is_some() {
                    return Err(FsError::Exists.into());
                }
                let all = txn
                    .range_snapshot(b"BUCK", b"BUCL", limits::BUCKET_COUNT_MAX)
                    .await?;
                if u32::try_from(all.len()).is_ok_and(|count| count >= limits::BUCKET_COUNT_MAX) {
                    let text = format!("at most {} buckets", limits::BUCKET_COUNT_MAX);
                    return Err(FsError::Invalid(text).into());
                }
                let root = self.bucket_directory(txn, names, &call.who, now_ns).await?;
                let bucket = BucketRecord {
                    root,
                    path: path.clone(),
                    owner: call.owner.clone(),
                    created_ns: now_ns,
                    umask: UMASK,
                };
                record::set(txn, &key, &bucket);
                bucket.shown(txn, call.name.clone()).await
            })
        })
        .await
    }

    /// Finds the directory of a new bucket, makes what is missing, and makes it an accounting root where it may be one.
    async fn bucket_directory(
        &self,
        txn: &mut impl Txn,
        names: &[DentryName],
        who: &Credentials,
        now_ns: i64,
    ) -> Result<InodeId, MetaError> {
        let mut directory = tree::directory(txn, InodeId::ROOT).await?;
        for (index, name) in names.iter().enumerate() {
            let parent = directory.attr.inode;
            if let Some(entry) = dentry::get(txn, parent, name).await? {
                directory = tree::directory(txn, entry.inode).await?;
                continue;
            }
            if dentry::get(txn, parent, &DentryName::file(name.bytes())?)
                .await?
                .is_some()
            {
                return Err(FsError::NotDirectory.into());
            }
            let id = self.new_id().await?;
            let last = index + 1 == names.len();
            directory = tree::new_inode(NewInode {
                id,
                kind: FileKind::Directory,
                mode: 0o777 & !UMASK,
                uid: who.uid,
                gid: who.gid,
                root: if last { id } else { directory.root },
                now_ns,
            });
            directory.explicit = true;
            tree::publish(txn, parent, name, &mut directory, now_ns);
        }
        let id = directory.attr.inode;
        let fresh_root = directory.root != id && dentry::is_empty(txn, id).await?;
        if fresh_root {
            tree::account(txn, &directory, -1);
            directory.root = id;
        }
        if fresh_root || !directory.explicit {
            directory.explicit = true;
            inode::store_attr(txn, &directory);
        }
        Ok(id)
    }

    /// Finds a bucket.
    pub(crate) async fn get_bucket(&self, call: GetBucket) -> Result<Bucket, MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let bucket = find(txn, &call.name).await?;
                bucket.shown(txn, call.name.clone()).await
            })
        })
        .await
    }

    /// Lists buckets by name.
    pub(crate) async fn list_buckets(&self) -> Result<Vec<Bucket>, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let mut buckets = Vec::new();
                for (name, bucket) in all(txn).await? {
                    buckets.push(bucket.shown(txn, name).await?);
                }
                Ok(buckets)
            })
        })
        .await
    }

    /// Removes a bucket without keys. Uploads in progress do not keep it: they are aborted first, as S3 does.
    pub(crate) async fn delete_bucket(&self, call: DeleteBucket) -> Result<(), MetaError> {
        if self.holds_uploads_only(&call.name).await? {
            self.abort_uploads(&call.name).await?;
        }
        let (call, now_ns) = (&call, clock::now_ns());
        run(&*self.kv, Durability::Now, |txn| {
            Box::pin(async move {
                let bucket = find(txn, &call.name).await?;
                let uploads = upload::uploads_of(bucket.root);
                let shared = all(txn)
                    .await?
                    .into_iter()
                    .any(|(name, other)| other.root == bucket.root && name != call.name);
                // Another name of the same directory keeps what is in it.
                if !shared
                    && (bucket_holds_key(txn, bucket.root).await?
                        || !txn
                            .range(&uploads, &prefix_end(&uploads), 1)
                            .await?
                            .is_empty())
                {
                    return Err(FsError::NotEmpty.into());
                }
                txn.clear(&bucket_key(&call.name));
                if !shared && bucket.path == format!("/{}", call.name) {
                    remove_directory(txn, &call.name, bucket.root, now_ns).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Tells whether uploads, and no key, are all that keeps a bucket from being removed.
    async fn holds_uploads_only(&self, name: &str) -> Result<bool, MetaError> {
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let root = find(txn, name).await?.root;
                let uploads = upload::uploads_of(root);
                let none = txn
                    .range(&uploads, &prefix_end(&uploads), 1)
                    .await?
                    .is_empty();
                let others = all(txn).await?;
                let shared = others
                    .iter()
                    .any(|(other, bucket)| bucket.root == root && other != name);
                Ok(!none && !shared && !bucket_holds_key(txn, root).await?)
            })
        })
        .await
    }

    /// Aborts every upload of a bucket, each in its own transaction: its parts may be ten thousand.
    async fn abort_uploads(&self, name: &str) -> Result<(), MetaError> {
        loop {
            let page = ListUploads {
                bucket: name.to_owned(),
                prefix: String::new(),
                after_key: String::new(),
                after_upload: String::new(),
                limit: limits::LIST_PAGE_MAX,
            };
            let page = self.list_uploads(page).await?;
            if page.is_empty() {
                return Ok(());
            }
            for upload in page {
                let abort = AbortUpload {
                    bucket: name.to_owned(),
                    key: upload.key,
                    upload_id: upload.upload_id,
                };
                match self.abort_upload(abort).await.map_err(MetaError::into_fs) {
                    // Somebody completed or aborted it meanwhile.
                    Ok(()) | Err(FsError::NotFound) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

async fn all(txn: &mut impl Txn) -> Result<Vec<(String, BucketRecord)>, MetaError> {
    record::scan::<BucketRecord>(txn, b"BUCK", b"BUCK", limits::BUCKET_COUNT_MAX)
        .await?
        .into_iter()
        .map(|(name, bucket)| {
            let name = String::from_utf8(name.to_vec())
                .map_err(|_| FsError::Corrupt("a bucket's name is not UTF-8".into()))?;
            Ok((name, bucket))
        })
        .collect()
}

/// Removes the directory `/NAME` and what empty directories are below it. It stays when it holds anything else: a symlink
/// is no key, but somebody's all the same.
async fn remove_directory(
    txn: &mut impl Txn,
    name: &str,
    root: InodeId,
    now_ns: i64,
) -> Result<(), MetaError> {
    let name = DentryName::directory(name.as_bytes())?;
    let named = dentry::get(txn, InodeId::ROOT, &name).await?;
    if named.is_none_or(|entry| entry.inode != root) {
        // Somebody renamed it: it is no longer the bucket's own.
        return Ok(());
    }
    let mut found = vec![(InodeId::ROOT, name, root)];
    let mut next = 0;
    while let Some((_, _, directory)) = found.get(next) {
        let directory = *directory;
        next += 1;
        let limit = u32::try_from(LEFTOVERS_MAX + 1).unwrap_or(u32::MAX);
        for (name, entry) in dentry::scan(txn, directory, None, limit, false).await? {
            if entry.kind != FileKind::Directory || found.len() > LEFTOVERS_MAX {
                return Ok(());
            }
            found.push((directory, name, entry.inode));
        }
    }
    for (parent, name, id) in found.into_iter().rev() {
        let mut directory: InodeRecord = inode::load(txn, id).await?;
        tree::unlink_entry(txn, parent, &name, now_ns);
        tree::drop_link(txn, &mut directory, now_ns).await?;
        if directory.root == id {
            usage::remove(txn, id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::record::there_and_back, *};
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_rules_of_s3() {
        for good in ["abc", "a.b-c", "0ab", "192.168.5", &"x".repeat(63)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "ab",
            "Abc",
            "a_b",
            "-ab",
            "ab-",
            "ab.",
            "a..b",
            "a/b",
            "192.168.5.4",
            &"x".repeat(64),
        ] {
            assert_eq!(
                check_name(bad),
                Err(FsError::Invalid("InvalidBucketName".into())),
                "{bad}"
            );
        }
    }

    #[test]
    fn paths_are_plain_names() {
        let stored = |path| -> Result<Vec<Vec<u8>>, FsError> {
            Ok(split_path(path)?
                .iter()
                .map(|name| name.stored().to_vec())
                .collect())
        };
        assert_eq!(
            stored("/data//sets/"),
            Ok(vec![b"data/".to_vec(), b"sets/".to_vec()])
        );
        assert!(matches!(stored("/a/../b"), Err(FsError::Invalid(_))));
        assert_eq!(stored("/.janusfs-s3:%ff"), Err(FsError::NameReserved));
        assert_eq!(
            stored(&format!("/{}", "x".repeat(256))),
            Err(FsError::NameTooLong)
        );
    }

    proptest! {
        #[test]
        fn records_round_trip(root: u64, path in ".{0,20}", owner in ".{0,9}", created_ns: i64, umask: u32) {
            let bucket = BucketRecord { root: InodeId(root), path, owner, created_ns, umask };
            prop_assert_eq!(there_and_back(&bucket), bucket);
        }
    }
}
