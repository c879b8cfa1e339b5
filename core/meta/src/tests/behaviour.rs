//! Single behaviours: reserved names, content and truncation, orphans and epochs, durability of numbers, the check itself.

use std::sync::Arc;

use bytes::Bytes;
use janusfs_kv::{Durability, Kv, MemKv, Txn};
use janusfs_rpc::{Handler, Request};
use janusfs_types::{
    BlobId, ClientId, Content, Credentials, DentryName, FileKind, FsError, InodeId, SessionId,
    limits,
};
use janusfs_wire::{
    Method, ServiceId, Wire,
    meta::{
        AllocIds, Close, CommitWrite, Create, GetAttr, GetXattr, Heartbeat, Hello, Link, ListXattr,
        Open, ReadLink, RemoveXattr, Rename, RenameMode, Rmdir, SetAttr, SetXattr, Spill, StatFs,
        Symlink, Trimmed, Truncate, Unlink, Unshare, WriteInline,
    },
};

use super::{block_on, config, fresh, layout};
use crate::{
    Meta, MetaConfig, MetaError,
    store::{dentry, inode},
    tree,
};

const ROOT: InodeId = InodeId::ROOT;

fn error<T: std::fmt::Debug>(result: Result<T, MetaError>) -> FsError {
    result.unwrap_err().into_fs()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Puts a file into a slot that no POSIX call could, as the S3 door does.
async fn plant(meta: &Meta<MemKv>, parent: InodeId, name: &DentryName) -> InodeId {
    let id = meta.new_id().await.unwrap();
    let mut txn = meta.kv.begin();
    let mut record = tree::new_inode(tree::NewInode {
        id,
        kind: if name.is_directory() {
            FileKind::Directory
        } else {
            FileKind::Regular
        },
        mode: 0o644,
        uid: 0,
        gid: 0,
        root: ROOT,
        now_ns: 1,
    });
    tree::publish(&mut txn, parent, name, &mut record, 1);
    txn.commit(Durability::Soon).await.unwrap();
    id
}

#[test]
fn rows_that_posix_cannot_name_are_reached_by_reserved_names() {
    block_on(async {
        let meta = fresh().await;
        let long = "x".repeat(300);
        let twin = format!("{long}y");
        let mut planted = Vec::new();
        for name in [
            "",
            ".",
            "..",
            ".janusfs-s3:a",
            &long,
            &twin,
            "both",
            "plain",
        ] {
            planted.push(plant(&meta, ROOT, &DentryName::file(name.as_bytes()).unwrap()).await);
        }
        for name in ["", "..", "both", &long] {
            planted.push(
                plant(
                    &meta,
                    ROOT,
                    &DentryName::directory(name.as_bytes()).unwrap(),
                )
                .await,
            );
        }
        let listed = meta.list(ROOT).await;
        assert_eq!(listed.len(), planted.len());
        for (name, attr) in &listed {
            assert!(name.len() <= limits::POSIX_NAME_MAX_BYTES);
            let name = std::str::from_utf8(name).unwrap();
            assert_eq!(
                meta.at(ROOT, name).await.unwrap().inode,
                attr.inode,
                "{name}"
            );
        }
        assert_eq!(
            meta.at(ROOT, "both").await.unwrap().kind,
            FileKind::Directory
        );
        assert_eq!(
            meta.at(ROOT, ".janusfs-s3:both").await.unwrap().kind,
            FileKind::Regular
        );
        assert_eq!(
            meta.at(ROOT, ".janusfs-s3:").await.unwrap().kind,
            FileKind::Regular
        );
        assert_eq!(
            meta.at(ROOT, ".janusfs-s3:%2F").await.unwrap().kind,
            FileKind::Directory
        );
        assert_eq!(
            meta.at(ROOT, ".janusfs-s3:%zz").await,
            Err(FsError::NotFound)
        );
        assert_eq!(meta.at(ROOT, "").await, Err(FsError::NotFound));
        assert_eq!(meta.at(ROOT, &long).await, Err(FsError::NameTooLong));

        // `rm -r` works: every listed name can be removed by it.
        for (name, attr) in listed {
            let (parent, name) = (ROOT, Bytes::from(name));
            match attr.kind {
                FileKind::Directory => meta.rmdir(Rmdir { parent, name }).await.unwrap(),
                _ => meta.unlink(Unlink { parent, name }).await.unwrap(),
            }
        }
        assert_eq!(meta.list(ROOT).await, []);
        meta.assert_clean().await;
    });
}

#[test]
fn reserved_names_are_not_made_and_either_slot_is_taken() {
    block_on(async {
        let meta = fresh().await;
        let reserved = ".janusfs-s3:a";
        let file = meta.file(ROOT, "a").await;
        for kind in [FileKind::Regular, FileKind::Directory, FileKind::Fifo] {
            assert_eq!(
                meta.make(ROOT, reserved, kind).await,
                Err(FsError::NameReserved)
            );
            assert_eq!(meta.make(ROOT, "a", kind).await, Err(FsError::Exists));
        }
        let link = Link {
            inode: file,
            parent: ROOT,
            name: bytes(reserved),
        };
        assert_eq!(error(meta.link(link).await), FsError::NameReserved);
        let rename = Rename {
            parent: ROOT,
            name: bytes("a"),
            new_parent: ROOT,
            new_name: bytes(reserved),
            mode: RenameMode::Replace,
        };
        assert_eq!(error(meta.rename(rename).await), FsError::NameReserved);

        // A shadowed file can be renamed away from its reserved name.
        plant(&meta, ROOT, &DentryName::directory(b"a").unwrap()).await;
        let rename = Rename {
            parent: ROOT,
            name: bytes(reserved),
            new_parent: ROOT,
            new_name: bytes("b"),
            mode: RenameMode::NoReplace,
        };
        meta.rename(rename).await.unwrap();
        assert_eq!(meta.at(ROOT, "b").await.unwrap().inode, file);
        assert_eq!(meta.at(ROOT, "a").await.unwrap().kind, FileKind::Directory);
        meta.assert_clean().await;
    });
}

#[test]
fn create_returns_an_existing_file_unless_exclusive() {
    block_on(async {
        let meta = fresh().await;
        let file = meta.file(ROOT, "a").await;
        meta.write(file, b"text").await;
        let dir = meta.dir(ROOT, "d").await;
        let create = |name: &str, exclusive| Create {
            parent: ROOT,
            name: bytes(name),
            kind: FileKind::Regular,
            mode: 0o600,
            rdev: 0,
            who: janusfs_types::Credentials::default(),
            exclusive,
        };
        let opened = meta.create(create("a", false)).await.unwrap();
        assert_eq!(opened.content, Content::Inline(b"text".to_vec()));
        assert_eq!(opened.attr.mode, 0o640);
        assert_eq!(error(meta.create(create("a", true)).await), FsError::Exists);
        assert_eq!(
            error(meta.create(create("d", false)).await),
            FsError::IsDirectory
        );
        meta.rmdir(Rmdir {
            parent: ROOT,
            name: bytes("d"),
        })
        .await
        .unwrap();
        assert_eq!(
            meta.make(dir, "x", FileKind::Regular).await,
            Err(FsError::NotFound)
        );
        assert_eq!(meta.head(dir).await.nlink, 0);
    });
}

#[test]
fn an_inline_file_spills_grows_shrinks_and_is_trimmed() {
    block_on(async {
        let meta = fresh().await;
        let inode = meta.file(ROOT, "a").await;
        let version = meta.write(inode, b"0123456789").await.data_version;
        let blob = BlobId(meta.allocate(1).await.unwrap());
        let layout = layout();
        let stale = Spill {
            inode,
            expected: version.next(),
            blob,
            layout,
        };
        assert_eq!(error(meta.spill(stale).await), FsError::PreconditionFailed);
        let spilled = meta
            .spill(Spill {
                inode,
                expected: version,
                blob,
                layout,
            })
            .await
            .unwrap();
        assert_eq!(
            (spilled.attr.data_version, spilled.attr.size),
            (version, 10)
        );
        assert!(meta.is_live_blob(blob).await.unwrap());

        let commit = |end| CommitWrite {
            inode,
            end,
            durable: true,
        };
        assert_eq!(
            meta.commit_write(commit(5000)).await.unwrap().attr.size,
            5000
        );
        assert_eq!(meta.commit_write(commit(9)).await.unwrap().attr.size, 5000);

        // Growing over leftovers that nobody trimmed leaves them out.
        let cut = meta.truncate(Truncate { inode, size: 100 }).await.unwrap();
        assert!(cut.trim);
        let grown = meta.truncate(Truncate { inode, size: 300 }).await.unwrap();
        assert!(!grown.trim);
        let Content::Extents(extents) = grown.file.content else {
            panic!("no extents")
        };
        assert_eq!(
            (extents.len(), extents[0].len_bytes, extents[0].blob),
            (1, 100, blob)
        );
        meta.assert_clean().await;

        let own = BlobId(meta.allocate(1).await.unwrap());
        let expected = grown.file.attr.data_version;
        meta.unshare(Unshare {
            inode,
            expected,
            blob: own,
            layout,
        })
        .await
        .unwrap();
        assert!(
            meta.is_live_blob(blob).await.unwrap(),
            "a reader may still use it"
        );
        meta.assert_clean().await;
        assert_eq!(meta.reclaim_now().await, [blob]);
        assert!(!meta.is_live_blob(blob).await.unwrap());

        // A trim that is reported for another version changes nothing.
        let cut = meta.truncate(Truncate { inode, size: 50 }).await.unwrap();
        let version = cut.file.attr.data_version;
        meta.trimmed(Trimmed {
            inode,
            version: version.next(),
        })
        .await
        .unwrap();
        assert!(
            meta.truncate(Truncate { inode, size: 50 })
                .await
                .unwrap()
                .trim
        );
        meta.trimmed(Trimmed { inode, version }).await.unwrap();
        assert!(
            !meta
                .truncate(Truncate { inode, size: 50 })
                .await
                .unwrap()
                .trim
        );

        let emptied = meta.truncate(Truncate { inode, size: 0 }).await.unwrap();
        assert_eq!(
            (emptied.file.content, emptied.trim),
            (Content::empty(), false)
        );
        assert_eq!(meta.stat_fs(StatFs {}).await.unwrap().used_bytes, 0);
        meta.assert_clean().await;
        let past = Truncate {
            inode,
            size: limits::FILE_SIZE_MAX_BYTES + 1,
        };
        assert_eq!(error(meta.truncate(past).await), FsError::FileTooLarge);
    });
}

/// A blob file of `size` bytes with a name; returns its inode and blob.
async fn blob_file(meta: &Meta<MemKv>, name: &str, size: u64) -> (InodeId, BlobId) {
    let opened = meta.make(ROOT, name, FileKind::Regular).await.unwrap();
    let inode = opened.attr.inode;
    let blob = BlobId(meta.allocate(1).await.unwrap());
    let expected = opened.attr.data_version;
    meta.spill(Spill {
        inode,
        expected,
        blob,
        layout: layout(),
    })
    .await
    .unwrap();
    meta.commit_write(CommitWrite {
        inode,
        end: size,
        durable: false,
    })
    .await
    .unwrap();
    (inode, blob)
}

#[test]
fn an_orphan_waits_for_the_readers_of_its_epoch() {
    block_on(async {
        let meta = fresh().await;
        let client = ClientId(5);
        let welcome = meta.hello(Hello { client }).await.unwrap();
        let (inode, blob) = blob_file(&meta, "a", 77).await;
        let open = Open {
            inode,
            client,
            session: None,
        };
        let epoch = meta.open_inode(open).await.unwrap().epoch;
        assert_eq!(epoch, welcome.epoch);
        meta.unlink(Unlink {
            parent: ROOT,
            name: bytes("a"),
        })
        .await
        .unwrap();
        assert_eq!(meta.stat_fs(StatFs {}).await.unwrap().used_bytes, 0);
        meta.assert_clean().await;

        let beat = |oldest_epoch| Heartbeat {
            client,
            oldest_epoch,
            oldest_blob: None,
        };
        for _ in 0..4 {
            meta.heartbeat(beat(Some(epoch))).await.unwrap();
            assert_eq!(meta.reclaim_now().await, []);
            assert_eq!(meta.head(inode).await.nlink, 0);
        }
        meta.heartbeat(beat(None)).await.unwrap();
        assert_eq!(meta.reclaim_now().await, [blob]);
        assert_eq!(
            error(meta.get_attr(GetAttr { inode }).await),
            FsError::NotFound
        );
        assert_eq!(meta.reclaim_now().await, [], "it was reported done");
        meta.assert_clean().await;
    });
}

#[test]
fn a_write_open_of_a_live_client_holds_its_inode() {
    block_on(async {
        let meta = fresh().await;
        let client = ClientId(5);
        meta.hello(Hello { client }).await.unwrap();
        let (inode, blob) = blob_file(&meta, "a", 9).await;
        let session = SessionId(3);
        meta.open_inode(Open {
            inode,
            client,
            session: Some(session),
        })
        .await
        .unwrap();
        let (dead, other) = (ClientId(6), blob_file(&meta, "b", 9).await);
        meta.open_inode(Open {
            inode: other.0,
            client: dead,
            session: Some(session),
        })
        .await
        .unwrap();
        for name in ["a", "b"] {
            meta.unlink(Unlink {
                parent: ROOT,
                name: bytes(name),
            })
            .await
            .unwrap();
        }
        meta.advance_epoch().await.unwrap();
        meta.advance_epoch().await.unwrap();
        let beat = Heartbeat {
            client,
            oldest_epoch: None,
            oldest_blob: None,
        };
        meta.heartbeat(beat).await.unwrap();
        assert_eq!(meta.reclaim_now().await, [other.1]);
        meta.commit_write(CommitWrite {
            inode,
            end: 20,
            durable: false,
        })
        .await
        .unwrap();
        meta.close(Close {
            inode,
            client,
            session,
        })
        .await
        .unwrap();
        assert_eq!(meta.reclaim_now().await, [blob]);
        meta.assert_clean().await;
    });
}

#[test]
fn a_shared_blob_dies_with_its_last_reference() {
    block_on(async {
        let meta = fresh().await;
        let (inode, blob) = blob_file(&meta, "a", 40).await;
        let copy = meta.file(ROOT, "b").await;
        let mut txn = meta.kv.begin();
        let source = inode::load(&mut txn, inode).await.unwrap();
        let mut record = inode::load(&mut txn, copy).await.unwrap();
        let whole = tree::references(&source.content, 40)[0];
        let half = janusfs_types::Extent {
            len_bytes: 20,
            ..whole
        };
        let rest = janusfs_types::Extent {
            file_offset: 20,
            blob_offset: 20,
            ..half
        };
        tree::share_blob(&mut txn, blob, whole.layout, 40, 2)
            .await
            .unwrap();
        record.content = Content::Extents(vec![half, rest]);
        inode::store(&mut txn, &record);
        txn.commit(Durability::Soon).await.unwrap();
        meta.truncate(Truncate {
            inode: copy,
            size: 40,
        })
        .await
        .unwrap();
        meta.assert_clean().await;

        meta.unlink(Unlink {
            parent: ROOT,
            name: bytes("a"),
        })
        .await
        .unwrap();
        assert_eq!(meta.reclaim_now().await, []);
        meta.truncate(Truncate {
            inode: copy,
            size: 20,
        })
        .await
        .unwrap();
        meta.assert_clean().await;
        assert_eq!(meta.reclaim_now().await, []);
        assert_eq!(meta.live_blobs().await, [(blob, layout(), 20)]);
        assert!(meta.is_live_blob(blob).await.unwrap());
        meta.unlink(Unlink {
            parent: ROOT,
            name: bytes("b"),
        })
        .await
        .unwrap();
        assert_eq!(meta.reclaim_now().await, [blob]);
        meta.assert_clean().await;
    });
}

#[test]
fn files_of_many_extents_keep_them_in_rows_of_their_own() {
    block_on(async {
        let meta = fresh().await;
        let inode = meta.file(ROOT, "a").await;
        let count = 1201;
        let mut txn = meta.kv.begin();
        let mut record = inode::load(&mut txn, inode).await.unwrap();
        let extents: Vec<_> = (0..count)
            .map(|index| janusfs_types::Extent {
                file_offset: index * 10,
                len_bytes: 10,
                blob: BlobId(1 << 40 | index),
                blob_offset: 0,
                layout: layout(),
            })
            .collect();
        for extent in &extents {
            tree::claim_blob(&mut txn, extent.blob, extent.layout, 10);
        }
        record.content = Content::Extents(extents.clone());
        inode::store(&mut txn, &record);
        txn.commit(Durability::Soon).await.unwrap();
        let grown = meta
            .truncate(Truncate {
                inode,
                size: count * 10,
            })
            .await
            .unwrap();
        assert_eq!(grown.file.content, Content::Extents(extents.clone()));
        meta.set_attr(SetAttr {
            inode,
            change: Default::default(),
        })
        .await
        .unwrap();
        meta.assert_clean().await;
        let cut = meta.truncate(Truncate { inode, size: 4995 }).await.unwrap();
        let Content::Extents(left) = cut.file.content else {
            panic!("no extents")
        };
        assert_eq!((left.len(), left[499].len_bytes), (500, 5));
        meta.assert_clean().await;
        let mut freed = Vec::new();
        for _ in 0..9 {
            freed.extend(meta.reclaim_now().await);
        }
        let dropped: Vec<_> = extents[500..].iter().map(|extent| extent.blob).collect();
        assert_eq!(freed, dropped);
        meta.assert_clean().await;
    });
}

#[test]
fn numbers_never_come_twice() {
    block_on(async {
        let kv = MemKv::default();
        let meta = super::open(kv.clone()).await;
        let client = ClientId(1);
        let first = meta
            .alloc_ids(AllocIds {
                client,
                count: 1000,
            })
            .await
            .unwrap();
        let second = meta
            .alloc_ids(AllocIds {
                client,
                count: 1 << 20,
            })
            .await
            .unwrap();
        assert!(second >= first + 1000);
        let again = super::open(kv).await;
        let third = again
            .alloc_ids(AllocIds { client, count: 1 })
            .await
            .unwrap();
        assert!(third >= second + (1 << 20));
        let none = AllocIds { client, count: 0 };
        assert!(matches!(
            error(again.alloc_ids(none).await),
            FsError::Invalid(_)
        ));
        assert_eq!(again.allocation_watermark(), 0, "in the grace period");
    });
}

#[test]
fn a_newer_format_is_refused() {
    block_on(async {
        let kv = MemKv::default();
        drop(super::open(kv.clone()).await);
        let mut txn = kv.begin();
        crate::store::epoch::set_format(&mut txn, 2);
        txn.commit(Durability::Now).await.unwrap();
        let opened = Meta::open(std::sync::Arc::new(kv), config()).await;
        assert!(matches!(
            opened.err().unwrap().into_fs(),
            FsError::Unsupported(_)
        ));
    });
}

#[test]
fn xattrs_symlinks_and_times() {
    block_on(async {
        let meta = fresh().await;
        let inode = meta.file(ROOT, "a").await;
        let set = |name: &str, create, replace| SetXattr {
            inode,
            name: bytes(name),
            value: bytes(name),
            create,
            replace,
        };
        assert_eq!(
            error(meta.set_xattr(set("user.a", false, true)).await),
            FsError::NoXattr
        );
        meta.set_xattr(set("user.a", true, false)).await.unwrap();
        assert_eq!(
            error(meta.set_xattr(set("user.a", true, false)).await),
            FsError::Exists
        );
        meta.set_xattr(set("user.b", false, false)).await.unwrap();
        let names = meta.list_xattr(ListXattr { inode }).await.unwrap();
        assert_eq!(names, [bytes("user.a"), bytes("user.b")]);
        let get = GetXattr {
            inode,
            name: bytes("user.b"),
        };
        assert_eq!(meta.get_xattr(get.clone()).await.unwrap(), bytes("user.b"));
        meta.remove_xattr(RemoveXattr {
            inode,
            name: bytes("user.b"),
        })
        .await
        .unwrap();
        assert_eq!(error(meta.get_xattr(get).await), FsError::NoXattr);

        let who = janusfs_types::Credentials { uid: 1, gid: 2 };
        let symlink = Symlink {
            parent: ROOT,
            name: bytes("l"),
            target: bytes("../x"),
            who,
        };
        let link = meta.symlink(symlink).await.unwrap().attr;
        assert_eq!((link.kind, link.size, link.uid), (FileKind::Symlink, 4, 1));
        let target = meta
            .read_link(ReadLink { inode: link.inode })
            .await
            .unwrap();
        assert_eq!(target, bytes("../x"));

        let before = meta.head(ROOT).await;
        let change = janusfs_wire::meta::AttrChange {
            modified_ns: Some(Some(-5)),
            ..Default::default()
        };
        let root = meta
            .set_attr(SetAttr {
                inode: ROOT,
                change,
            })
            .await
            .unwrap()
            .attr;
        assert_eq!((root.times.modified_ns, root.size, root.nlink), (-5, 2, 2));
        assert!(root.times.changed_ns >= before.times.changed_ns);
        meta.file(ROOT, "b").await;
        let after = meta.head(ROOT).await;
        assert!(after.times.modified_ns >= before.times.modified_ns);
        assert_eq!(after.size, 3);
        meta.unlink(Unlink {
            parent: ROOT,
            name: bytes("a"),
        })
        .await
        .unwrap();
        meta.reclaim_now().await;
        meta.assert_clean().await;
    });
}

#[test]
fn accounting_roots_keep_their_directories_and_files_take_their_bytes_along() {
    block_on(async {
        let meta = fresh().await;
        let bucket = meta.dir(ROOT, "bucket").await;
        let mut txn = meta.kv.begin();
        let mut record = inode::load(&mut txn, bucket).await.unwrap();
        tree::account(&mut txn, &record, -1);
        record.root = bucket;
        inode::store_attr(&mut txn, &record);
        txn.commit(Durability::Soon).await.unwrap();
        let file = meta.file(bucket, "f").await;
        meta.write(file, b"123").await;
        meta.dir(bucket, "d").await;
        meta.assert_clean().await;
        let rename = |parent, name: &str, new_parent| Rename {
            parent,
            name: bytes(name),
            new_parent,
            new_name: bytes(name),
            mode: RenameMode::Replace,
        };
        assert_eq!(
            error(meta.rename(rename(bucket, "d", ROOT)).await),
            FsError::CrossDevice
        );
        meta.rename(rename(bucket, "f", ROOT)).await.unwrap();
        meta.assert_clean().await;
        meta.rmdir(Rmdir {
            parent: bucket,
            name: bytes("d"),
        })
        .await
        .unwrap();
        let removed = meta
            .rmdir(Rmdir {
                parent: ROOT,
                name: bytes("bucket"),
            })
            .await;
        assert_eq!(error(removed), FsError::NotPermitted);
        meta.assert_clean().await;
    });
}

#[test]
fn the_check_notices_what_is_wrong() {
    block_on(async {
        let meta = fresh().await;
        let inode = meta.file(ROOT, "a").await;
        let mut txn = meta.kv.begin();
        dentry::remove(&mut txn, ROOT, &DentryName::file(b"a").unwrap());
        let lost = dentry::Dentry {
            inode: InodeId(1 << 50),
            kind: FileKind::Regular,
        };
        dentry::put(&mut txn, ROOT, &DentryName::file(b"b").unwrap(), lost);
        crate::store::usage::add(&mut txn, ROOT, 5, 0);
        tree::claim_blob(&mut txn, BlobId(1 << 51), layout(), 1);
        txn.commit(Durability::Soon).await.unwrap();
        let report = meta.checked().await;
        let texts: Vec<&str> = report
            .findings
            .iter()
            .map(|found| found.text.as_str())
            .collect();
        let has = |text: &str| texts.iter().any(|found| found.contains(text));
        assert!(has("leads to nothing"), "{texts:?}");
        assert!(
            has(&format!("{inode} has 1 links and 0 names")),
            "{texts:?}"
        );
        assert!(has("reference count and no reference"), "{texts:?}");
        assert!(has("its figures say"), "{texts:?}");
        assert_eq!(texts.len(), 4);
    });
}

#[test]
fn a_new_namespace_is_its_makers_and_stays_so() {
    block_on(async {
        let kv = Arc::new(MemKv::default());
        for (asked, is) in [(5, 5), (9, 5)] {
            let config = MetaConfig {
                owner: Credentials { uid: asked, gid: 7 },
                ..config()
            };
            let meta = Meta::open(Arc::clone(&kv), config).await.unwrap();
            let root = meta.get_attr(GetAttr { inode: ROOT }).await.unwrap().attr;
            assert_eq!((root.uid, root.gid), (is, 7));
        }
    });
}

#[test]
fn a_data_version_that_a_power_cut_took_does_not_come_again() {
    block_on(async {
        let kv = Arc::new(MemKv::default());
        let meta = Meta::open(Arc::clone(&kv), config()).await.unwrap();
        let inode = meta.file(ROOT, "file").await;
        let write = async |meta: &Meta<MemKv>, expected, text: &str| {
            let write = WriteInline {
                inode,
                expected,
                bytes: bytes(text),
                size: text.len() as u64,
                durable: false,
            };
            meta.write_inline(write).await
        };
        let stable = inode::load(&mut kv.begin(), inode).await.unwrap();
        let mut seen = vec![stable.attr.data_version];
        for text in ["lost", "lost as well"] {
            let found = write(&meta, seen[seen.len() - 1], text).await.unwrap();
            seen.push(found.attr.data_version);
        }
        for restart in ["kept", "kept again"] {
            // The rows are what they were before those writes.
            let mut txn = kv.begin();
            inode::store(&mut txn, &stable);
            txn.commit(Durability::Now).await.unwrap();
            let meta = Meta::open(Arc::clone(&kv), config()).await.unwrap();
            let found = write(&meta, seen[0], restart).await.unwrap();
            assert!(!seen.contains(&found.attr.data_version), "{seen:?}");
            // Who saw what was lost does not write over what came after.
            for lost in &seen {
                let stale = write(&meta, *lost, "stale").await;
                assert_eq!(error(stale), FsError::PreconditionFailed);
            }
            seen.push(found.attr.data_version);
            // From there on it is one step at a time, by which a mount knows its own changes.
            let next = write(&meta, found.attr.data_version, "next").await.unwrap();
            assert_eq!(next.attr.data_version, found.attr.data_version.next());
            seen.push(next.attr.data_version);
        }
        let young = meta.file(ROOT, "young").await;
        let young = meta.get_attr(GetAttr { inode: young }).await.unwrap();
        assert_eq!(young.attr.data_version.0, 1);
    });
}

#[test]
fn requests_are_answered_by_number() {
    block_on(async {
        let meta = fresh().await;
        let request = |method, head| Request {
            caller: None,
            service: ServiceId::Meta,
            method,
            timeout: std::time::Duration::from_secs(1),
            head,
            body: Vec::new(),
        };
        let attr = GetAttr { inode: ROOT };
        let reply = meta
            .handle(request(GetAttr::ID, attr.to_wire()))
            .await
            .unwrap();
        let found = <GetAttr as Method>::Reply::from_wire(&reply.head).unwrap();
        assert_eq!(found.attr.inode, ROOT);
        let unknown = meta.handle(request(999, Bytes::new())).await;
        assert!(matches!(unknown, Err(FsError::Unsupported(_))));
        let garbled = meta
            .handle(request(GetAttr::ID, Bytes::from_static(b"x")))
            .await;
        assert!(matches!(garbled, Err(FsError::Invalid(_))));
    });
}

#[test]
fn regression_a_directory_does_not_replace_its_parent() {
    block_on(async {
        let meta = fresh().await;
        let parent = meta.dir(ROOT, "p").await;
        meta.dir(parent, "c").await;
        let rename = Rename {
            parent,
            name: bytes("c"),
            new_parent: ROOT,
            new_name: bytes("p"),
            mode: RenameMode::Replace,
        };
        assert_eq!(error(meta.rename(rename).await), FsError::NotEmpty);
        assert_eq!(meta.at(ROOT, "p").await.unwrap().inode, parent);
        meta.assert_clean().await;
    });
}

#[test]
fn write_opens_of_dead_clients_are_forgotten() {
    block_on(async {
        let meta = fresh().await;
        let inode = meta.file(ROOT, "a").await;
        let (live, dead, session) = (ClientId(1), ClientId(2), SessionId(3));
        meta.hello(Hello { client: live }).await.unwrap();
        for client in [live, dead] {
            let open = Open {
                inode,
                client,
                session: Some(session),
            };
            meta.open_inode(open).await.unwrap();
        }
        meta.expire_sessions().await.unwrap();
        let mut txn = meta.kv.begin();
        let left = crate::store::session::of_inode(&mut txn, inode)
            .await
            .unwrap();
        assert_eq!(left, [(live, session)]);
    });
}
