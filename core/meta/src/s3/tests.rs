//! The S3 half against a model of S3: what is put, listed, copied and deleted, and that nothing is left behind.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use janusfs_kv::{Kv, MemKv, RocksKv, RocksKvOptions};
use janusfs_types::{
    BlobId, ChainTable, ClientId, Content, Credentials, FileKind, FsError, InodeId, Layout,
    SessionId, limits,
};
use janusfs_wire::{
    Method, Wire,
    meta::{
        AbortUpload, CommitWrite, CompleteUpload, Conditions, CopyObject, CopyPart, Create,
        CreateBucket, CreateKey, CreateUpload, CreateUser, DeleteBucket, DeleteKey, DeleteObjects,
        DeleteUser, GetBucket, GetKey, GetObject, GetUpload, ListObjects, ListPage, ListParts,
        ListUploads, Listed, Lookup, NewContent, Object, ObjectAttrs, Open, Part, Published,
        PutObject, PutPart, Symlink, Unlink,
    },
};
use proptest::prelude::*;

use super::dispatch;
use crate::{Meta, MetaConfig, MetaError};

const LAYOUT: Layout = Layout {
    chunk_size_log2: 22,
    chain_table: 1,
    stripe: 1,
    seed: 0,
};
const BUCKET: &str = "bucket";
const MIB: u64 = 1 << 20;
const WHO: Credentials = Credentials { uid: 7, gid: 8 };

/// A service with one bucket, and calls with everything that does not matter filled in.
struct Site<K: Kv> {
    meta: Meta<K>,
}

fn fs<T: std::fmt::Debug>(result: Result<T, MetaError>) -> FsError {
    result.unwrap_err().into_fs()
}

async fn mem() -> Site<MemKv> {
    Site::open(MemKv::default()).await
}

impl<K: Kv> Site<K> {
    async fn open(kv: K) -> Self {
        let table = ChainTable {
            version: 1,
            chains: Vec::new(),
            targets: Vec::new(),
        };
        let meta = Meta::open(
            Arc::new(kv),
            MetaConfig {
                table,
                layout: LAYOUT,
                owner: WHO,
            },
        )
        .await
        .unwrap();
        let site = Self { meta };
        site.bucket(BUCKET, "").await.unwrap();
        site
    }

    async fn bucket(&self, name: &str, path: &str) -> Result<InodeId, MetaError> {
        let call = CreateBucket {
            name: name.into(),
            path: path.into(),
            owner: "root".into(),
            who: WHO,
        };
        Ok(self.meta.create_bucket(call).await?.root)
    }

    async fn put_new(
        &self,
        key: &str,
        content: NewContent,
        inode: InodeId,
        conditions: Conditions,
    ) -> Result<Published, MetaError> {
        let etag = format!("{:032x}", inode.0);
        let attrs = ObjectAttrs {
            etag,
            ..ObjectAttrs::default()
        };
        let (bucket, key) = (BUCKET.into(), key.into());
        let call = PutObject {
            bucket,
            key,
            inode,
            content,
            attrs,
            conditions,
            who: WHO,
        };
        self.meta.put_object(call).await
    }

    async fn put(&self, key: &str, body: &str) -> Published {
        let inode = self.meta.new_id().await.unwrap();
        self.put_new(key, inline(body), inode, Conditions::default())
            .await
            .unwrap()
    }

    async fn put_blob(&self, key: &str, size: u64) -> Published {
        let inode = self.meta.new_id().await.unwrap();
        let content = blob(inode.0, size);
        self.put_new(key, content, inode, Conditions::default())
            .await
            .unwrap()
    }

    async fn get(&self, key: &str) -> Result<Object, MetaError> {
        self.meta
            .get_object(GetObject {
                bucket: BUCKET.into(),
                key: key.into(),
            })
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), MetaError> {
        let (bucket, keys) = (BUCKET.into(), vec![key.into()]);
        let call = DeleteObjects {
            bucket,
            keys,
            conditions: Conditions::default(),
        };
        self.meta.delete_objects(call).await.map(|_| ())
    }

    async fn copy(
        &self,
        from: &str,
        to: &str,
        attrs: Option<ObjectAttrs>,
    ) -> Result<Published, MetaError> {
        let call = CopyObject {
            source_bucket: BUCKET.into(),
            source_key: from.into(),
            source_etag: String::new(),
            bucket: BUCKET.into(),
            key: to.into(),
            inode: self.meta.new_id().await.unwrap(),
            attrs,
            conditions: Conditions::default(),
            who: WHO,
        };
        self.meta.copy_object(call).await
    }

    async fn list(&self, prefix: &str, after: &str, delimiter: &str, limit: u32) -> ListPage {
        let call = ListObjects {
            bucket: BUCKET.into(),
            prefix: prefix.into(),
            after: after.into(),
            delimiter: delimiter.into(),
            limit,
        };
        self.meta.list_objects(call).await.unwrap()
    }

    async fn keys(&self) -> Vec<String> {
        rows(&self.list("", "", "", 1000).await)
    }

    async fn upload(&self, key: &str) -> String {
        let attrs = ObjectAttrs {
            headers: vec![("content-type".into(), "text/x".into())],
            ..ObjectAttrs::default()
        };
        let (bucket, key, initiator) = (BUCKET.into(), key.into(), "root".into());
        self.meta
            .create_upload(CreateUpload {
                bucket,
                key,
                attrs,
                initiator,
            })
            .await
            .unwrap()
    }

    async fn part(&self, key: &str, upload: &str, number: u32, content: NewContent) -> Part {
        let call = PutPart {
            bucket: BUCKET.into(),
            key: key.into(),
            upload_id: upload.into(),
            number,
            content,
            etag: format!("etag{number}"),
            checksums: Vec::new(),
        };
        self.meta.put_part(call).await.unwrap()
    }

    async fn blob_part(&self, key: &str, upload: &str, number: u32, size: u64) -> Part {
        let id = self.meta.new_id().await.unwrap().0;
        self.part(key, upload, number, blob(id, size)).await
    }

    async fn complete(
        &self,
        key: &str,
        upload: &str,
        parts: &[(u32, &str)],
    ) -> Result<Published, MetaError> {
        let call = CompleteUpload {
            bucket: BUCKET.into(),
            key: key.into(),
            upload_id: upload.into(),
            inode: self.meta.new_id().await.unwrap(),
            parts: parts
                .iter()
                .map(|(number, etag)| (*number, (*etag).into()))
                .collect(),
            etag: "abc-2".into(),
            checksums: Vec::new(),
            checksum_type: String::new(),
            conditions: Conditions::default(),
            who: WHO,
        };
        self.meta.complete_upload(call).await
    }

    async fn clean(&self) {
        assert_eq!(self.meta.checked().await.findings, []);
    }

    /// Checks that reclamation leaves the root, the bucket and no blob.
    async fn empty(&self) {
        self.clean().await;
        for _ in 0..4 {
            let epoch = self.meta.advance_epoch().await.unwrap();
            self.meta.reclaim_orphans(epoch).await.unwrap();
        }
        let report = self.meta.checked().await;
        assert_eq!(
            (report.findings, report.inodes, report.blobs),
            (vec![], 2, 0)
        );
        let bucket = self
            .meta
            .get_bucket(GetBucket {
                name: BUCKET.into(),
            })
            .await
            .unwrap();
        assert_eq!((bucket.used_bytes, bucket.entries), (0, 0));
    }

    async fn mkdir(&self, parent: InodeId, name: &str, kind: FileKind) -> InodeId {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let call = Create {
            parent,
            name,
            kind,
            mode: 0o755,
            rdev: 0,
            who: WHO,
            exclusive: true,
        };
        self.meta.create(call).await.unwrap().attr.inode
    }

    async fn symlink(
        &self,
        parent: InodeId,
        name: &str,
        target: &str,
    ) -> Result<InodeId, MetaError> {
        let call = Symlink {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            target: Bytes::copy_from_slice(target.as_bytes()),
            who: WHO,
        };
        Ok(self.meta.symlink(call).await?.attr.inode)
    }

    async fn root(&self) -> InodeId {
        self.meta
            .get_bucket(GetBucket {
                name: BUCKET.into(),
            })
            .await
            .unwrap()
            .root
    }
}

fn inline(body: &str) -> NewContent {
    NewContent {
        content: Content::Inline(body.into()),
        size: body.len() as u64,
    }
}

fn blob(id: u64, size: u64) -> NewContent {
    NewContent {
        content: Content::Blob {
            blob: BlobId(id),
            layout: LAYOUT,
        },
        size,
    }
}

fn rows(page: &ListPage) -> Vec<String> {
    page.rows
        .iter()
        .map(|row| match row {
            Listed::Object { object } => object.key.clone(),
            Listed::Prefix { prefix } => format!("{prefix} (prefix)"),
        })
        .collect()
}

/// What S3 says a listing is, from the sorted keys.
fn naive<'k>(
    keys: impl Iterator<Item = &'k String>,
    prefix: &str,
    after: &str,
    delimiter: &str,
    limit: usize,
) -> (Vec<String>, bool) {
    let mut rows: Vec<String> = Vec::new();
    for key in keys.filter(|key| key.starts_with(prefix) && key.as_str() > after) {
        let rest = &key[prefix.len()..];
        let group = rest.find(delimiter).filter(|_| !delimiter.is_empty());
        let group = group.map(|at| &key[..prefix.len() + at + delimiter.len()]);
        let row = match group {
            Some(group) if group == after => continue,
            Some(group) => format!("{group} (prefix)"),
            None => key.clone(),
        };
        if rows.last() == Some(&row) {
            continue;
        }
        if rows.len() == limit {
            return (rows, limit > 0);
        }
        rows.push(row);
    }
    (rows, false)
}

fn strange_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a", "a-b", "a/b", "a/", "a//c", "a0", "./x", "..", "../..", "/", "//", "é/ü", "x/y/z/w",
    ]
    .map(String::from)
    .to_vec();
    keys.push("n".repeat(900));
    keys.push(format!("{}/tail", "d".repeat(900)));
    for byte in b' '..=b'~' {
        keys.push(format!("byte{}", char::from(byte)));
        keys.push(format!("dir{}/x", char::from(byte)));
    }
    keys.sort();
    keys.dedup();
    keys
}

async fn strange_keys_live_and_go<K: Kv>(site: Site<K>) {
    let keys = strange_keys();
    for key in keys.iter().rev() {
        site.put(key, key).await;
    }
    assert_eq!(site.keys().await, keys);
    for key in &keys {
        let object = site.get(key).await.unwrap();
        assert_eq!(
            object.file.content,
            Content::Inline(key.clone().into_bytes()),
            "{key}"
        );
        assert_eq!((object.file.attr.mode, object.file.attr.uid), (0o644, 7));
    }
    site.clean().await;
    // Page by page, with every page size that cuts differently.
    for limit in [1, 2, 7] {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page = site.list("", &after, "", limit).await;
            all.extend(rows(&page));
            after = all.last().unwrap().clone();
            if !page.truncated {
                break;
            }
        }
        assert_eq!(all, keys);
    }
    let (half, rest) = keys.split_at(keys.len() / 2);
    for key in half {
        site.delete(key).await.unwrap();
    }
    assert_eq!(site.keys().await, rest);
    let call = DeleteObjects {
        bucket: BUCKET.into(),
        keys: keys.clone(),
        conditions: Conditions::default(),
    };
    let deleted = site.meta.delete_objects(call).await.unwrap();
    assert!(
        deleted.iter().all(|deleted| deleted.error.is_none()),
        "{deleted:?}"
    );
    assert_eq!(site.keys().await, [""; 0]);
    site.empty().await;
}

#[tokio::test]
async fn every_key_lives_and_goes_without_a_trace() {
    strange_keys_live_and_go(mem().await).await;
}

#[tokio::test]
async fn every_key_lives_and_goes_on_rocksdb() {
    let dir = tempfile::tempdir().unwrap();
    let kv = RocksKv::open(dir.path(), RocksKvOptions::default()).unwrap();
    strange_keys_live_and_go(Site::open(kv).await).await;
}

#[tokio::test]
async fn a_group_is_one_row_and_after_it_comes_the_next() {
    let site = mem().await;
    for key in ["a/1", "a/2", "a-x/1", "b", "c/d/1", "c/d/2", "c/e", "d"] {
        site.put(key, "").await;
    }
    let list = async |prefix, after| rows(&site.list(prefix, after, "/", 100).await);
    let top = ["a-x/ (prefix)", "a/ (prefix)", "b", "c/ (prefix)", "d"];
    assert_eq!(list("", "").await, top);
    assert_eq!(list("", "a-x/").await, top[1..]);
    assert_eq!(list("", "a/").await, top[2..]);
    assert_eq!(list("", "a/1").await, top[1..]);
    assert_eq!(list("", "a/2").await, top[2..]);
    assert_eq!(list("c/", "").await, ["c/d/ (prefix)", "c/e"]);
    assert_eq!(list("c", "").await, ["c/ (prefix)"]);
    assert_eq!(list("c/d", "c/d/").await, [""; 0]);
    let page = site.list("", "", "/", 2).await;
    assert!(page.truncated);
    let page = site.list("", "c/", "/", 1).await;
    assert_eq!((rows(&page), page.truncated), (vec!["d".to_owned()], false));
}

fn key_text() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        proptest::sample::select(vec!["a", "b", "-", "/", "0", "."]),
        1..7,
    )
    .prop_map(|parts| parts.concat())
}

fn maybe(text: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    prop_oneof![1 => Just(String::new()), 3 => text]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_listing_is_what_s3_says(
        puts in proptest::collection::vec(key_text(), 1..40),
        deletes in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
        lists in proptest::collection::vec(
            (maybe(key_text()), maybe(key_text()), prop_oneof![
                Just(""), Just("/"), Just("-"), Just("a/"), Just("//"), Just("ab")
            ], 0u32..12),
            20,
        ),
        all in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let site = mem().await;
            let mut model = BTreeMap::new();
            for key in &puts {
                let put = site.put(key, key).await;
                model.insert(key.clone(), put.etag);
            }
            for index in deletes {
                let key = index.get(&puts);
                site.delete(key).await.unwrap();
                model.remove(key);
            }
            for (prefix, after, delimiter, limit) in lists {
                let page = site.list(&prefix, &after, delimiter, limit).await;
                let limit = usize::try_from(limit).unwrap();
                let wanted = naive(model.keys(), &prefix, &after, delimiter, limit);
                prop_assert_eq!(
                    (rows(&page), page.truncated), wanted,
                    "prefix {:?} after {:?} delimiter {:?} limit {}", prefix, after, delimiter, limit
                );
                for row in page.rows {
                    if let Listed::Object { object } = row {
                        prop_assert_eq!(&model[&object.key], &object.etag);
                    }
                }
            }
            site.clean().await;
            if all {
                for key in model.keys() {
                    site.delete(key).await.unwrap();
                }
                site.empty().await;
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn directories_of_posix_show_only_when_explicit_and_empty() {
    let site = mem().await;
    let root = site.root().await;
    let dir = site.mkdir(root, "dir", FileKind::Directory).await;
    site.put("dir2/x", "").await;
    assert_eq!(site.keys().await, ["dir/", "dir2/x"]);
    let object = site.get("dir/").await.unwrap();
    assert_eq!(object.attrs.etag, "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(object.file.attr.size, 0);
    assert_eq!(
        rows(&site.list("", "", "/", 9).await),
        ["dir/ (prefix)", "dir2/ (prefix)"]
    );
    assert_eq!(rows(&site.list("dir/", "", "/", 9).await), ["dir/"]);
    assert_eq!(rows(&site.list("dir/", "dir/", "/", 9).await), [""; 0]);

    // What has a key below it is not listed itself, and stays when the key goes.
    site.put("dir/x", "").await;
    assert_eq!(site.keys().await, ["dir/x", "dir2/x"]);
    site.delete("dir/x").await.unwrap();
    assert_eq!(site.keys().await, ["dir/", "dir2/x"]);

    // One that holds only what is no key is no key either.
    site.symlink(dir, "link", "nowhere").await.unwrap();
    assert_eq!(site.keys().await, ["dir2/x"]);
    assert_eq!(rows(&site.list("", "", "/", 9).await), ["dir2/ (prefix)"]);
    assert_eq!(fs(site.get("dir/link").await), FsError::NotFound);

    // Deleting the directory's key gives it up: it goes with what is in it.
    site.delete("dir/").await.unwrap();
    assert_eq!(fs(site.get("dir/").await), FsError::NotFound);
    site.put("dir/y", "").await;
    let name = Bytes::from_static(b"link");
    site.meta
        .unlink(Unlink { parent: dir, name })
        .await
        .unwrap();
    site.delete("dir/y").await.unwrap();
    site.delete("dir2/x").await.unwrap();
    site.empty().await;
}

#[tokio::test]
async fn a_symlink_inside_the_bucket_is_what_it_leads_to() {
    let site = mem().await;
    let root = site.root().await;
    let file = site.put("v1/data/x", "one").await;
    site.put("v1/y", "two").await;
    let new = site.mkdir(root, "new", FileKind::Directory).await;
    let link = async |parent, name, target| site.symlink(parent, name, target).await.unwrap();
    link(root, "latest", "v1").await;
    link(root, "best", "./latest//data/x").await;
    link(root, "again", "best").await;
    link(new, "up", "../v1/data").await;
    link(new, "mine", "up/../y").await;
    let keys = [
        "again",
        "best",
        "latest/data/x",
        "latest/y",
        "new/mine",
        "new/up/x",
        "v1/data/x",
        "v1/y",
    ];
    assert_eq!(site.keys().await, keys);
    for key in ["again", "best", "latest/data/x", "new/up/x"] {
        let found = site.get(key).await.unwrap();
        assert_eq!(
            (found.file.attr.inode, &found.attrs.etag),
            (file.inode, &file.etag),
            "{key}"
        );
    }
    // An object through a link is not the link: a directory has its trailing slash under its own name only.
    site.mkdir(new, "empty", FileKind::Directory).await;
    link(root, "none", "new/empty").await;
    assert_eq!(fs(site.get("none/").await), FsError::NotFound);
    assert!(site.get("new/empty/").await.is_ok());
    assert_eq!(rows(&site.list("n", "", "/", 9).await), ["new/ (prefix)"]);

    // What is written to a link's key takes its place; what is written below it goes where it leads.
    let put = site.put("best", "three").await;
    site.put("latest/z", "four").await;
    assert_eq!(site.get("v1/data/x").await.unwrap().attrs.etag, file.etag);
    assert_eq!(site.get("again").await.unwrap().attrs.etag, put.etag);
    assert!(site.get("v1/z").await.is_ok());
    // And so it goes: a link's key with the link, a key below it only by what has it.
    site.delete("again").await.unwrap();
    for key in ["latest/data/x", "new/up/x", "latest/z"] {
        assert_eq!(fs(site.delete(key).await), FsError::ThroughSymlink, "{key}");
    }
    site.delete("none/").await.unwrap();
    site.delete("latest/absent").await.unwrap();
    site.delete("v1/data/x").await.unwrap();
    // `new/mine` led through the directory whose last key this was.
    let keys = ["best", "latest/y", "latest/z", "new/empty/", "v1/y", "v1/z"];
    assert_eq!(site.keys().await, keys);
    // The last key takes its directory along; the link to it leads nowhere then, and stands in nobody's way.
    site.delete("v1/y").await.unwrap();
    site.delete("v1/z").await.unwrap();
    assert_eq!(site.keys().await, ["best", "new/empty/"]);
    site.put("latest/b", "a directory beside a link that leads nowhere")
        .await;
    assert_eq!(site.keys().await, ["best", "latest/b", "new/empty/"]);
    site.clean().await;
}

#[tokio::test]
async fn a_move_between_two_keys_of_one_object_loses_nothing() {
    let site = mem().await;
    let root = site.root().await;
    let put = site.put("v1/x", "one").await;
    site.mkdir(root, "dir", FileKind::Directory).await;
    for (name, target) in [("latest", "v1"), ("link", "dir"), ("best", "v1/x")] {
        site.symlink(root, name, target).await.unwrap();
    }
    for (from, to) in [
        ("latest/x", "v1/x"),
        ("v1/x", "latest/x"),
        ("dir/", "link/"),
    ] {
        let copied = site.copy(from, to, None).await;
        assert_eq!(fs(copied), FsError::ThroughSymlink, "{from} {to}");
    }
    // A link to a file has an entry of its own, which a copy replaces.
    site.copy("best", "v1/x", None).await.unwrap();
    site.copy("best", "best", None).await.unwrap();
    site.delete("v1/x").await.unwrap();
    assert_eq!(site.get("best").await.unwrap().attrs.etag, put.etag);
    site.clean().await;
}

#[tokio::test]
async fn more_symlinks_to_directories_than_a_page_are_listed_page_by_page() {
    let site = mem().await;
    let root = site.root().await;
    site.put("pool/x", "").await;
    let links = site.mkdir(root, "links", FileKind::Directory).await;
    let mut expected = Vec::new();
    // Names that begin alike, so that each waits for those that sort before its slash.
    for name in ["a", "a-", "a--", "a.", "b"] {
        for number in 0..40 {
            let name = format!(
                "{name}{}{number:02}",
                if number % 2 == 0 { "" } else { "-" }
            );
            site.symlink(links, &name, "../pool").await.unwrap();
            expected.push(format!("links/{name}/x"));
        }
        site.symlink(links, name, "../pool").await.unwrap();
        expected.push(format!("links/{name}/x"));
    }
    expected.sort();
    for limit in [1, 7, 100] {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let after = keys.last().map_or("", String::as_str);
            let page = site.list("links/", after, "", limit).await;
            keys.extend(rows(&page));
            if !page.truncated {
                break;
            }
        }
        assert_eq!(keys, expected, "{limit}");
    }
    assert_eq!(
        rows(&site.list("", "", "/", 9).await),
        ["links/ (prefix)", "pool/ (prefix)"]
    );
}

#[tokio::test]
async fn no_symlink_leads_out_of_the_bucket_or_round_and_round() {
    let site = mem().await;
    let root = site.root().await;
    let other = site.bucket("other", "/bucket/sub").await.unwrap();
    site.put("sub/dir/in", "").await;
    site.put("out", "").await;
    let dir = site.mkdir(other, "d", FileKind::Directory).await;
    for (name, target) in [
        ("absolute", "/bucket/sub/dir/in"),
        ("above", "../../out"),
        ("round", "../../sub/dir/in"),
        ("dangling", "../dir/missing"),
        ("file-as-directory", "../dir/in/"),
        ("self", "self"),
        ("here", "."),
        ("parent", ".."),
        ("fifo-link", "fifo"),
    ] {
        site.symlink(dir, name, target).await.unwrap();
    }
    site.symlink(dir, "good", "../dir/in").await.unwrap();
    site.mkdir(dir, "fifo", FileKind::Fifo).await;
    let list = async |bucket: &str| {
        let call = ListObjects {
            bucket: bucket.into(),
            prefix: String::new(),
            after: String::new(),
            delimiter: String::new(),
            limit: 100,
        };
        rows(&site.meta.list_objects(call).await.unwrap())
    };
    assert_eq!(list("other").await, ["d/good", "dir/in"]);
    // The bucket around it reaches further, by the same links.
    assert_eq!(
        list(BUCKET).await,
        [
            "out",
            "sub/d/above",
            "sub/d/good",
            "sub/d/round",
            "sub/dir/in"
        ]
    );
    for key in [
        "sub/d/absolute",
        "sub/d/self",
        "sub/d/here/good",
        "sub/d/parent/dir/in",
    ] {
        assert_eq!(fs(site.get(key).await), FsError::NotFound, "{key}");
    }

    // As many links as the kernel follows, and one more; directories through as many links as a key may have.
    let mut last = "out".to_owned();
    for hop in 0..=limits::SYMLINK_HOPS_MAX {
        let name = format!("hop{hop}");
        site.symlink(root, &name, &last).await.unwrap();
        last = name;
    }
    assert!(
        site.get(&format!("hop{}", limits::SYMLINK_HOPS_MAX - 1))
            .await
            .is_ok()
    );
    assert_eq!(fs(site.get(&last).await), FsError::NotFound);
    assert!(!site.keys().await.contains(&last));
    for depth in 0..=limits::KEY_LINKED_DIRECTORIES_MAX {
        site.put(&format!("deep{depth}/x"), "").await;
    }
    let mut key = "deep0".to_owned();
    for depth in 1..=limits::KEY_LINKED_DIRECTORIES_MAX + 1 {
        let parent = site.meta.lookup(Lookup {
            parent: root,
            name: format!("deep{}", depth - 1).into(),
        });
        let parent = parent.await.unwrap().unwrap().attr.inode;
        site.symlink(parent, "l", &format!("../deep{depth}"))
            .await
            .unwrap();
        key.push_str("/l");
        let found = site.get(&format!("{key}/x")).await.is_ok();
        assert_eq!(found, depth <= limits::KEY_LINKED_DIRECTORIES_MAX, "{key}");
        assert_eq!(
            site.keys().await.contains(&format!("{key}/x")),
            found,
            "{key}"
        );
    }
    site.clean().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Listings and look-ups follow links by code of their own: they must agree on every key, and pages of listings on the
    /// order.
    #[test]
    fn a_listing_through_symlinks_is_what_look_ups_find(
        links in proptest::collection::vec((
            0usize..5,
            proptest::sample::select(vec!["a", "b", "-", "a-", "l", "l-", "ab"]),
            proptest::sample::select(vec![
                ".", "..", "a", "b", "l", "../a", "../b", "a/b", "b/../a", "a-b", "l/b", "../l", "/a", "../../a",
            ]),
        ), 1..7),
        puts in proptest::collection::vec(key_text(), 1..12),
        deletes in proptest::collection::vec(key_text(), 0..6),
        lists in proptest::collection::vec(
            (maybe(key_text()), maybe(key_text()), prop_oneof![
                Just(""), Just("/"), Just("-"), Just("a/"), Just("//"), Just("ab")
            ], 1usize..6),
            20,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let site = mem().await;
            let root = site.root().await;
            let mut directories = vec![root];
            for (parent, name) in [(0, "a"), (0, "b"), (0, "a-b"), (1, "b")] {
                directories.push(site.mkdir(directories[parent], name, FileKind::Directory).await);
            }
            for (directory, name, target) in links {
                // Where the name is taken, there is no such link.
                let _ = site.symlink(directories[directory], name, target).await;
            }
            for key in &puts {
                site.put(key, key).await;
            }
            for key in &deletes {
                let deleted = site.delete(key).await.map_err(MetaError::into_fs);
                prop_assert!(matches!(deleted, Ok(()) | Err(FsError::ThroughSymlink)));
            }
            let mut keys = Vec::new();
            loop {
                let page = site.list("", keys.last().map_or("", String::as_str), "", 1000).await;
                for row in &page.rows {
                    if let Listed::Object { object } = row {
                        prop_assert_eq!(&site.get(&object.key).await.unwrap().attrs.etag, &object.etag);
                    }
                }
                keys.extend(rows(&page));
                if !page.truncated {
                    break;
                }
            }
            prop_assert!(keys.is_sorted_by(|one, next| one < next), "{:?}", keys);
            let mut all = vec![String::new()];
            for _ in 0..5 {
                let longer = |key: &String| ["a", "b", "-", "/", "l"].map(|part| key.clone() + part);
                all.extend(all.clone().iter().flat_map(longer));
                all.sort();
                all.dedup();
            }
            for key in &all[1..] {
                let found = site.get(key).await.is_ok_and(|object| object.file.attr.kind == FileKind::Regular);
                if found || !key.ends_with('/') {
                    prop_assert_eq!(found, keys.binary_search(key).is_ok(), "{:?} among {:?}", key, &keys);
                }
            }
            for (prefix, after, delimiter, limit) in lists {
                let page = site.list(&prefix, &after, delimiter, u32::try_from(limit).unwrap()).await;
                let wanted = naive(keys.iter(), &prefix, &after, delimiter, limit);
                prop_assert_eq!(
                    (rows(&page), page.truncated), wanted,
                    "prefix {:?} after {:?} delimiter {:?} limit {} of {:?}", prefix, after, delimiter, limit, &keys
                );
            }
            site.clean().await;
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn names_that_are_not_utf8_are_listed_encoded_and_found() {
    let site = mem().await;
    let root = site.root().await;
    let name = Bytes::from_static(b"a\xff%");
    let kind = FileKind::Directory;
    let call = Create {
        parent: root,
        name,
        kind,
        mode: 0o755,
        rdev: 0,
        who: WHO,
        exclusive: true,
    };
    let dir = site.meta.create(call).await.unwrap().attr.inode;
    site.mkdir(dir, "x", FileKind::Regular).await;
    site.mkdir(dir, "y", FileKind::Regular).await;
    site.put("b", "").await;
    let shown = ".janusfs-s3:a%ff%25/";
    assert_eq!(
        site.keys().await,
        [format!("{shown}x"), format!("{shown}y"), "b".into()]
    );
    assert_eq!(
        rows(&site.list("", "", "/", 9).await),
        [format!("{shown} (prefix)"), "b".into()]
    );
    assert_eq!(rows(&site.list("", shown, "/", 9).await), ["b"]);
    assert_eq!(
        rows(&site.list("", &format!("{shown}x"), "", 9).await),
        [format!("{shown}y"), "b".into()]
    );
    assert_eq!(
        rows(&site.list(shown, "", "/", 9).await),
        [format!("{shown}x"), format!("{shown}y")]
    );
    assert!(site.get(&format!("{shown}x")).await.is_ok());
}

#[tokio::test]
async fn conditions_decide_in_the_transaction() {
    let site = mem().await;
    let put = async |conditions| {
        let inode = site.meta.new_id().await.unwrap();
        site.put_new("k/v", inline("x"), inode, conditions).await
    };
    let new = Conditions {
        if_none_match: vec!["*".into()],
        ..Conditions::default()
    };
    let of = |etag: &str| Conditions {
        if_match: vec![etag.into()],
        ..Conditions::default()
    };
    assert_eq!(fs(put(of("x")).await), FsError::NotFound);
    let first = put(new.clone()).await.unwrap();
    assert_eq!(fs(put(new).await), FsError::PreconditionFailed);
    let second = put(of(&first.etag)).await.unwrap();
    assert_eq!(fs(put(of(&first.etag)).await), FsError::PreconditionFailed);
    let delete = async |conditions| {
        let (bucket, keys) = (BUCKET.into(), vec!["k/v".into()]);
        site.meta
            .delete_objects(DeleteObjects {
                bucket,
                keys,
                conditions,
            })
            .await
    };
    assert_eq!(
        fs(delete(of(&first.etag)).await),
        FsError::PreconditionFailed
    );
    delete(of(&second.etag)).await.unwrap();
    assert_eq!(fs(delete(of(&second.etag)).await), FsError::NotFound);
    site.empty().await;
}

#[tokio::test]
async fn a_repeated_put_is_one_put() {
    let site = mem().await;
    let inode = site.meta.new_id().await.unwrap();
    let new = Conditions {
        if_none_match: vec!["*".into()],
        ..Conditions::default()
    };
    let first = site
        .put_new("k", blob(inode.0, 9), inode, new.clone())
        .await
        .unwrap();
    let second = site
        .put_new("k", blob(inode.0, 9), inode, new)
        .await
        .unwrap();
    assert_eq!(first, second);
    site.delete("k").await.unwrap();
    site.empty().await;
}

#[tokio::test]
async fn an_overwrite_swaps_the_inode_and_counts_it() {
    let site = mem().await;
    let first = site.put_blob("d/k", 5 * MIB).await;
    let second = site.put("d/k", "short").await;
    assert_ne!(first.inode, second.inode);
    let bucket = site
        .meta
        .get_bucket(GetBucket {
            name: BUCKET.into(),
        })
        .await
        .unwrap();
    assert_eq!((bucket.used_bytes, bucket.entries), (5, 2));
    site.delete("d/k").await.unwrap();
    site.empty().await;
}

#[tokio::test]
async fn a_posix_write_makes_the_etag_opaque_and_keeps_the_headers() {
    let site = mem().await;
    let put = site.put_blob("k", 9).await;
    let call = CommitWrite {
        inode: put.inode,
        end: 20,
        durable: false,
    };
    site.meta.commit_write(call).await.unwrap();
    let object = site.get("k").await.unwrap();
    assert!(object.attrs.etag.contains('-') && object.attrs.etag != put.etag);
    assert_eq!(object.file.attr.size, 20);
    let Listed::Object { object: listed } = site.list("", "", "", 1).await.rows.remove(0) else {
        panic!("an object");
    };
    assert_eq!(listed.etag, object.attrs.etag);
    // A copy of it has an opaque one of its own.
    let copy = site.copy("k", "l", None).await.unwrap();
    assert!(copy.etag.contains('-') && copy.etag != listed.etag);
    assert_eq!(site.get("l").await.unwrap().attrs.etag, copy.etag);
}

#[tokio::test]
async fn opening_to_write_makes_the_etag_opaque_before_the_first_byte_changes() {
    let site = mem().await;
    let put = site.put_blob("k", 9).await;
    let open = async |session| {
        let call = Open {
            inode: put.inode,
            client: ClientId(1),
            session,
        };
        let opened = site.meta.open_inode(call).await.unwrap();
        (
            opened.attr.data_version,
            site.get("k").await.unwrap().attrs.etag,
        )
    };
    let (version, etag) = open(None).await;
    assert_eq!(etag, put.etag, "a reader changes nothing");
    let (bumped, opaque) = open(Some(SessionId(1))).await;
    assert!(bumped > version && opaque.contains('-') && opaque != put.etag);
    assert_eq!(open(Some(SessionId(2))).await, (bumped, opaque));
}

#[tokio::test]
async fn copies_share_the_blob_until_the_last_goes() {
    let site = mem().await;
    let put = site.put_blob("a", 9 * MIB).await;
    let copy = site.copy("a", "b/c", None).await.unwrap();
    assert_eq!(copy.etag, put.etag);
    site.copy("b/c", "d", None).await.unwrap();
    let content = site.get("a").await.unwrap().file.content;
    assert!(matches!(&content, Content::Extents(extents) if extents.len() == 1));
    assert_eq!(site.get("d").await.unwrap().file.content, content);
    assert_eq!(site.get("a").await.unwrap().attrs.etag, put.etag);
    site.clean().await;
    site.copy("d", "b/c", None).await.unwrap();
    site.delete("a").await.unwrap();
    site.delete("d").await.unwrap();
    site.clean().await;
    assert_eq!(site.meta.live_blobs().await.len(), 1);
    site.delete("b/c").await.unwrap();
    site.empty().await;
}

/// A destination whose directories do not exist yet is not the source, though its nearest ancestor may be the source's.
#[tokio::test]
async fn regression_a_copy_of_the_same_name_into_a_new_directory_is_a_copy() {
    let site = mem().await;
    let put = site.put_blob("big", 9 * MIB).await;
    site.copy("big", "copy/of/big", None).await.unwrap();
    assert_eq!(site.get("copy/of/big").await.unwrap().attrs.etag, put.etag);
    site.delete("big").await.unwrap();
    site.delete("copy/of/big").await.unwrap();
    site.empty().await;
}

#[tokio::test]
async fn a_copy_onto_itself_replaces_attributes_only() {
    let site = mem().await;
    let put = site.put_blob("a", 9).await;
    let attrs = ObjectAttrs {
        metadata: vec![("k".into(), "v".into())],
        ..ObjectAttrs::default()
    };
    let copy = site.copy("a", "a", Some(attrs.clone())).await.unwrap();
    assert_eq!((copy.inode, &copy.etag), (put.inode, &put.etag));
    let object = site.get("a").await.unwrap();
    assert_eq!(
        (object.attrs.etag, object.attrs.metadata),
        (put.etag, attrs.metadata)
    );
    assert!(matches!(object.file.content, Content::Blob { .. }));
    site.clean().await;
}

#[tokio::test]
async fn a_file_open_for_writing_is_not_shared() {
    let site = mem().await;
    let put = site.put_blob("a", 9).await;
    let call = Open {
        inode: put.inode,
        client: ClientId(1),
        session: Some(SessionId(1)),
    };
    site.meta.open_inode(call).await.unwrap();
    assert!(matches!(
        fs(site.copy("a", "b", None).await),
        FsError::Unsupported(_)
    ));
    assert!(matches!(
        site.get("a").await.unwrap().file.content,
        Content::Blob { .. }
    ));
}

#[tokio::test]
async fn parts_of_any_size_become_one_object() {
    let site = mem().await;
    let upload = site.upload("d/k").await;
    site.blob_part("d/k", &upload, 7, 5 * MIB).await;
    site.blob_part("d/k", &upload, 7, 6 * MIB + 1).await;
    site.blob_part("d/k", &upload, 2, 5 * MIB).await;
    site.blob_part("d/k", &upload, 9, 3).await;
    site.blob_part("d/k", &upload, 5, 8 * MIB).await;
    site.clean().await;
    let call = ListParts {
        bucket: BUCKET.into(),
        key: "d/k".into(),
        upload_id: upload.clone(),
        after: 2,
        limit: 2,
    };
    let page = site.meta.list_parts(call).await.unwrap();
    let numbers: Vec<u32> = page.parts.iter().map(|part| part.number).collect();
    assert_eq!((numbers, page.truncated), (vec![5, 7], true));

    let complete = async |parts: &[(u32, &str)]| site.complete("d/k", &upload, parts).await;
    let invalid = |code: &str| FsError::Invalid(code.into());
    assert_eq!(fs(complete(&[]).await), invalid("InvalidPart"));
    assert_eq!(fs(complete(&[(2, "etag7")]).await), invalid("InvalidPart"));
    assert_eq!(fs(complete(&[(3, "etag3")]).await), invalid("InvalidPart"));
    assert_eq!(
        fs(complete(&[(2, "etag2"), (11, "etag11")]).await),
        invalid("InvalidPart")
    );
    let order = complete(&[(7, "etag7"), (2, "etag2")]).await;
    assert_eq!(fs(order), invalid("InvalidPartOrder"));
    site.blob_part("d/k", &upload, 10, 3).await;
    let small = complete(&[(9, "etag9"), (10, "etag10")]).await;
    assert_eq!(fs(small), invalid("EntityTooSmall"));

    let chosen = [(2, "etag2"), (7, "etag7"), (9, "etag9")];
    let done = complete(&chosen).await.unwrap();
    assert_eq!(complete(&chosen).await.unwrap(), done);
    let object = site.get("d/k").await.unwrap();
    assert_eq!(object.file.attr.size, 11 * MIB + 4);
    assert_eq!(object.attrs.parts, [5 * MIB, 6 * MIB + 1, 3]);
    assert_eq!(object.attrs.etag, "abc-2");
    assert_eq!(object.attrs.headers.len(), 1);
    let Content::Extents(extents) = object.file.content else {
        panic!("extents")
    };
    let offsets: Vec<u64> = extents.iter().map(|extent| extent.file_offset).collect();
    assert_eq!(offsets, [0, 5 * MIB, 11 * MIB + 1]);
    site.clean().await;
    site.delete("d/k").await.unwrap();
    site.empty().await;
}

#[tokio::test]
async fn ten_thousand_parts_fit() {
    let site = mem().await;
    let upload = site.upload("k").await;
    let etags: Vec<String> = (1..=10_000).map(|number| format!("etag{number}")).collect();
    for number in 1..=10_000 {
        site.blob_part("k", &upload, number, 5 * MIB).await;
    }
    let parts: Vec<(u32, &str)> = (1..).zip(etags.iter().map(String::as_str)).collect();
    site.complete("k", &upload, &parts).await.unwrap();
    site.copy("k", "l", None).await.unwrap();
    let object = site.get("l").await.unwrap();
    assert!(matches!(&object.file.content, Content::Extents(extents) if extents.len() == 10_000));
    site.clean().await;
}

#[tokio::test]
async fn an_upload_of_one_part_owns_its_blob_and_an_empty_one_has_none() {
    let site = mem().await;
    let upload = site.upload("k").await;
    site.blob_part("k", &upload, 1, 9).await;
    site.complete("k", &upload, &[(1, "etag1")]).await.unwrap();
    assert!(matches!(
        site.get("k").await.unwrap().file.content,
        Content::Blob { .. }
    ));
    let upload = site.upload("e").await;
    site.blob_part("e", &upload, 1, 0).await;
    site.complete("e", &upload, &[(1, "etag1")]).await.unwrap();
    assert_eq!(site.get("e").await.unwrap().file.content, Content::empty());
    let upload = site.upload("i").await;
    site.part("i", &upload, 1, inline("abc")).await;
    site.complete("i", &upload, &[(1, "etag1")]).await.unwrap();
    assert_eq!(
        site.get("i").await.unwrap().file.content,
        Content::Inline(b"abc".to_vec())
    );
    site.clean().await;
    for key in ["k", "e", "i"] {
        site.delete(key).await.unwrap();
    }
    site.empty().await;
}

#[tokio::test]
async fn a_part_by_reference_is_cut_out_of_the_source() {
    let site = mem().await;
    let source = site.put_blob("source", 12 * MIB).await;
    let upload = site.upload("k").await;
    let call = |offset, len_bytes, number| CopyPart {
        bucket: BUCKET.into(),
        key: "k".into(),
        upload_id: upload.clone(),
        number,
        source_bucket: BUCKET.into(),
        source_key: "source".into(),
        source_etag: source.etag.clone(),
        offset,
        len_bytes,
    };
    let first = site.meta.copy_part(call(3, 6 * MIB, 1)).await.unwrap();
    let second = site.meta.copy_part(call(0, 12 * MIB, 2)).await.unwrap();
    assert_eq!((first.etag.len(), &second.etag), (32, &source.etag));
    let outside = site.meta.copy_part(call(12 * MIB, 1, 3)).await;
    assert_eq!(fs(outside), FsError::Invalid("InvalidRange".into()));
    site.meta.copy_part(call(1, MIB, 3)).await.unwrap();
    site.clean().await;
    let parts = [(1, first.etag.as_str()), (2, second.etag.as_str())];
    site.complete("k", &upload, &parts).await.unwrap();
    let Content::Extents(extents) = site.get("k").await.unwrap().file.content else {
        panic!("extents")
    };
    let shape: Vec<_> = extents
        .iter()
        .map(|it| (it.file_offset, it.len_bytes, it.blob_offset))
        .collect();
    assert_eq!(shape, [(0, 6 * MIB, 3), (6 * MIB, 12 * MIB, 0)]);
    site.clean().await;
    site.delete("source").await.unwrap();
    site.delete("k").await.unwrap();
    site.empty().await;
}

#[tokio::test]
async fn uploads_are_listed_in_order_and_aborted() {
    let site = mem().await;
    let mut wanted = Vec::new();
    for key in ["a", "a", "a-b", "a/b", "b"] {
        wanted.push((key.to_owned(), site.upload(key).await));
    }
    wanted.sort();
    let list = async |prefix: &str, after: (&str, &str), limit| {
        let call = ListUploads {
            bucket: BUCKET.into(),
            prefix: prefix.into(),
            after_key: after.0.into(),
            after_upload: after.1.into(),
            limit,
        };
        let uploads = site.meta.list_uploads(call).await.unwrap();
        uploads
            .into_iter()
            .map(|upload| (upload.key, upload.upload_id))
            .collect::<Vec<_>>()
    };
    assert_eq!(list("", ("", ""), 100).await, wanted);
    assert_eq!(list("", ("", ""), 2).await, wanted[..2]);
    assert_eq!(list("", ("a", &wanted[0].1), 100).await, wanted[1..]);
    assert_eq!(list("", ("a", ""), 100).await, wanted[2..]);
    assert_eq!(list("a/", ("", ""), 100).await, wanted[3..4]);
    assert_eq!(list("a", ("a/b", ""), 100).await, []);
    assert_eq!(list("a", ("c", ""), 100).await, []);

    for (key, upload_id) in wanted {
        site.blob_part(&key, &upload_id, 1, 5 * MIB).await;
        let (bucket, key) = (BUCKET.to_owned(), key.clone());
        let get = GetUpload {
            bucket: bucket.clone(),
            key: key.clone(),
            upload_id: upload_id.clone(),
        };
        assert_eq!(
            site.meta.get_upload(get.clone()).await.unwrap().initiator,
            "root"
        );
        site.meta
            .abort_upload(AbortUpload {
                bucket,
                key,
                upload_id,
            })
            .await
            .unwrap();
        assert_eq!(fs(site.meta.get_upload(get).await), FsError::NotFound);
    }
    site.empty().await;
}

#[tokio::test]
async fn uploads_keep_a_bucket_only_beside_a_key() {
    let site = mem().await;
    let delete = async || {
        let name = BUCKET.into();
        site.meta.delete_bucket(DeleteBucket { name }).await
    };
    let upload = site.upload("up/load").await;
    site.blob_part("up/load", &upload, 1, 5 * MIB).await;
    site.put("key", "").await;
    assert_eq!(fs(delete().await), FsError::NotEmpty);
    let get = GetUpload {
        bucket: BUCKET.into(),
        key: "up/load".into(),
        upload_id: upload,
    };
    // A refused deletion costs nothing.
    site.meta.get_upload(get.clone()).await.unwrap();
    site.delete("key").await.unwrap();
    delete().await.unwrap();
    site.bucket(BUCKET, "").await.unwrap();
    assert_eq!(fs(site.meta.get_upload(get).await), FsError::NotFound);
    site.empty().await;
}

#[tokio::test]
async fn a_bucket_goes_only_when_empty_and_its_directory_with_it() {
    let site = mem().await;
    let delete = async |name: &str| {
        site.meta
            .delete_bucket(DeleteBucket { name: name.into() })
            .await
    };
    assert_eq!(fs(site.bucket(BUCKET, "").await), FsError::Exists);
    site.put("x/y", "").await;
    assert_eq!(fs(delete(BUCKET).await), FsError::NotEmpty);
    site.delete("x/y").await.unwrap();
    delete(BUCKET).await.unwrap();
    assert_eq!(fs(delete(BUCKET).await), FsError::NotFound);
    let lookup = async |name: &'static str| {
        let name = Bytes::from_static(name.as_bytes());
        site.meta
            .lookup(Lookup {
                parent: InodeId::ROOT,
                name,
            })
            .await
    };
    assert_eq!(lookup(BUCKET).await.unwrap(), None);
    site.clean().await;

    // An existing directory is taken over; one at another path stays when the bucket goes.
    let data = site.mkdir(InodeId::ROOT, "data", FileKind::Directory).await;
    assert_eq!(site.bucket("data", "").await.unwrap(), data);
    site.bucket("sets", "/data/sets").await.unwrap();
    site.clean().await;
    // Its directory is a key of the bucket around it, which may not take it away.
    let keys = vec!["sets/".to_owned()];
    let conditions = Conditions::default();
    let call = DeleteObjects {
        bucket: "data".into(),
        keys,
        conditions,
    };
    assert_eq!(
        fs(site.meta.delete_objects(call).await),
        FsError::AccessDenied
    );
    assert_eq!(fs(delete("data").await), FsError::NotEmpty);
    delete("sets").await.unwrap();
    assert_eq!(fs(delete("data").await), FsError::NotEmpty);
    assert!(lookup("data").await.is_ok());
    assert_eq!(site.meta.list_buckets().await.unwrap().len(), 1);

    // A file in the way is no directory.
    site.mkdir(InodeId::ROOT, "file", FileKind::Regular).await;
    assert_eq!(fs(site.bucket("file", "").await), FsError::NotDirectory);
    site.clean().await;
}

#[tokio::test]
async fn an_adopted_directory_with_entries_stays_counted_where_it_was() {
    let site = mem().await;
    let data = site.mkdir(InodeId::ROOT, "data", FileKind::Directory).await;
    site.mkdir(data, "f", FileKind::Regular).await;
    site.bucket("data", "").await.unwrap();
    site.clean().await;
    let call = ListObjects {
        bucket: "data".into(),
        prefix: String::new(),
        after: String::new(),
        delimiter: String::new(),
        limit: 9,
    };
    assert_eq!(rows(&site.meta.list_objects(call).await.unwrap()), ["f"]);
}

#[tokio::test]
async fn users_and_keys_come_and_go_together() {
    let site = mem().await;
    let user = |name: &str, access_key: &str| CreateUser {
        name: name.into(),
        uid: 1,
        gid: 2,
        admin: true,
        policy: "{}".into(),
        access_key: access_key.into(),
        secret_key: if access_key.is_empty() {
            ""
        } else {
            "secret-secret"
        }
        .into(),
    };
    let meta = &site.meta;
    meta.create_user(user("ann", "AKANN")).await.unwrap();
    assert_eq!(fs(meta.create_user(user("ann", "")).await), FsError::Exists);
    assert_eq!(
        fs(meta.create_user(user("bob", "AKANN")).await),
        FsError::Exists
    );
    assert!(matches!(
        fs(meta.create_user(user("b b", "")).await),
        FsError::Invalid(_)
    ));
    meta.create_user(user("bob", "")).await.unwrap();
    let key = |user: &str, key: &str| CreateKey {
        user: user.into(),
        access_key: key.into(),
        secret_key: "12345678".into(),
    };
    meta.create_key(key("bob", "AKBOB")).await.unwrap();
    meta.create_key(key("bob", "AKBOB2")).await.unwrap();
    assert_eq!(
        fs(meta.create_key(key("eve", "AKEVE")).await),
        FsError::NotFound
    );
    assert_eq!(
        fs(meta.create_key(key("bob", "AKANN")).await),
        FsError::Exists
    );
    let found = meta
        .get_key(GetKey {
            access_key: "AKBOB".into(),
        })
        .await
        .unwrap();
    assert_eq!(
        (found.secret_key.as_str(), found.user.name.as_str()),
        ("12345678", "bob")
    );
    meta.delete_key(DeleteKey {
        access_key: "AKBOB".into(),
    })
    .await
    .unwrap();
    assert_eq!(
        fs(meta
            .get_key(GetKey {
                access_key: "AKBOB".into()
            })
            .await),
        FsError::NotFound
    );
    let users = meta.list_users().await.unwrap();
    let keys: Vec<_> = users
        .iter()
        .map(|user| (&*user.name, &user.access_keys[..]))
        .collect();
    assert_eq!(
        keys,
        [
            ("ann", &["AKANN".to_owned()][..]),
            ("bob", &["AKBOB2".to_owned()])
        ]
    );
    meta.delete_user(DeleteUser { name: "bob".into() })
        .await
        .unwrap();
    assert_eq!(
        fs(meta
            .get_key(GetKey {
                access_key: "AKBOB2".into()
            })
            .await),
        FsError::NotFound
    );
    assert_eq!(
        fs(meta.delete_user(DeleteUser { name: "bob".into() }).await),
        FsError::NotFound
    );
}

#[tokio::test]
async fn a_request_is_decoded_answered_and_encoded() {
    let site = mem().await;
    let call = GetBucket {
        name: BUCKET.into(),
    };
    let reply = dispatch(&site.meta, GetBucket::ID, call.to_wire())
        .unwrap()
        .await
        .unwrap();
    let bucket = <GetBucket as Method>::Reply::from_wire(&reply).unwrap();
    assert_eq!(bucket.path, "/bucket");
    let bad = dispatch(&site.meta, GetBucket::ID, Bytes::from_static(b"x"))
        .unwrap()
        .await;
    assert!(matches!(fs(bad), FsError::Invalid(_)));
    assert!(dispatch(&site.meta, Lookup::ID, Bytes::new()).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn puts_and_deletes_at_once_leave_a_sound_tree() {
    let site = Arc::new(mem().await);
    let tasks = ["d/a", "d/b", "d/c"].map(|key| {
        let site = Arc::clone(&site);
        janusfs_env::tasks::spawn(async move {
            for _ in 0..60 {
                site.put(key, "x").await;
                site.delete(key).await.unwrap();
            }
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
    site.empty().await;
}
