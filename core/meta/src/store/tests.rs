//! Round trips of every record: what is stored reads back as it was, and bytes that are no record are refused.

use janusfs_kv::{Kv, MemKv};
use janusfs_types::{
    Attr, BlobId, Content, DataVersion, DentryName, Epoch, Extent, FileKind, InodeId, Layout, Times,
};
use janusfs_wire::meta::ObjectAttrs;
use proptest::prelude::*;

use super::{
    blob::{self, BlobRecord},
    dentry::{self, Dentry},
    dir_stat, epoch,
    inode::{self, InodeRecord},
    object,
    orphan::{self, Orphan, Released},
    session, usage, xattr,
};
use crate::tests::block_on;

fn kind() -> impl Strategy<Value = FileKind> {
    proptest::sample::select(vec![
        FileKind::Regular,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::CharDevice,
        FileKind::BlockDevice,
        FileKind::Socket,
    ])
}

fn layout() -> impl Strategy<Value = Layout> {
    (16u8..=26, any::<u32>(), 1u16.., any::<u32>()).prop_map(
        |(chunk_size_log2, chain_table, stripe, seed)| Layout {
            chunk_size_log2,
            chain_table,
            stripe,
            seed,
        },
    )
}

fn content() -> impl Strategy<Value = Content> {
    let extents =
        (layout(), prop_oneof![0u64..4, 499..502u64, 1000..1500u64]).prop_map(|(layout, count)| {
            let extent = |index| Extent {
                file_offset: index * 300,
                len_bytes: 300,
                blob: BlobId(index % 7),
                blob_offset: index,
                layout,
            };
            Content::Extents((0..count).map(extent).collect())
        });
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..4096).prop_map(Content::Inline),
        (any::<u64>(), layout()).prop_map(|(blob, layout)| Content::Blob {
            blob: BlobId(blob),
            layout
        }),
        extents,
    ]
}

fn record() -> impl Strategy<Value = InodeRecord> {
    let numbers = (
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
        any::<u64>(),
        any::<i64>(),
    );
    let rest = (
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..99),
        any::<Option<u64>>(),
    );
    (numbers, kind(), content(), rest).prop_map(
        |((id, a, b, c, time), kind, content, (explicit, symlink, trim_from))| InodeRecord {
            attr: Attr {
                inode: InodeId(id),
                kind,
                mode: a,
                uid: b,
                gid: a ^ b,
                nlink: b,
                size: c,
                rdev: a,
                times: Times {
                    accessed_ns: time,
                    modified_ns: time ^ 1,
                    changed_ns: time ^ 2,
                    born_ns: time ^ 3,
                },
                data_version: DataVersion(c),
            },
            content,
            root: InodeId(c),
            parent: InodeId(c ^ 1),
            explicit,
            symlink,
            trim_from,
            extent_rows: 0,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn inodes_round_trip_also_when_their_extents_move(first in record(), second in content()) {
        block_on(async {
            let mut txn = MemKv::default().begin();
            let mut record = first;
            for content in [record.content.clone(), second] {
                record.content = content;
                inode::store(&mut txn, &record);
                let loaded = inode::load(&mut txn, record.attr.inode).await.unwrap();
                record.extent_rows = loaded.extent_rows;
                assert_eq!(loaded, record);
            }
            inode::remove(&mut txn, &record);
            assert_eq!(inode::load_opt(&mut txn, record.attr.inode).await.unwrap(), None);
            let left = super::scan_all(&mut txn, inode::EXTENTS_KIND).await.unwrap();
            assert!(left.is_empty());
        });
    }

    #[test]
    fn entries_round_trip_in_order(
        parent: u64,
        id: u64,
        kind in kind(),
        names in proptest::collection::btree_set("[a-c.\\-]{0,5}/?", 0..9),
    ) {
        block_on(async {
            let mut txn = MemKv::default().begin();
            let parent = InodeId(parent);
            let dentry = Dentry { inode: InodeId(id), kind };
            for name in &names {
                let name = DentryName::from_stored(name.as_bytes()).unwrap();
                dentry::put(&mut txn, parent, &name, dentry);
                assert_eq!(dentry::get(&mut txn, parent, &name).await.unwrap(), Some(dentry));
            }
            let all = dentry::scan(&mut txn, parent, None, 99, false).await.unwrap();
            let stored: Vec<&[u8]> = all.iter().map(|(name, _)| name.stored()).collect();
            let expected: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
            assert_eq!(stored, expected);
            for (index, name) in expected.iter().enumerate() {
                let rest = dentry::scan(&mut txn, parent, Some(name), 99, true).await.unwrap();
                assert_eq!(rest, all[index + 1..]);
            }
            assert_eq!(dentry::is_empty(&mut txn, parent).await.unwrap(), names.is_empty());
        });
    }

    #[test]
    fn small_records_round_trip(id: u64, layout in layout(), number in 0u64..1 << 62, etag in ".{0,9}") {
        block_on(async {
            let mut txn = MemKv::default().begin();
            let (inode, blob) = (InodeId(id), BlobId(id));
            let record = BlobRecord { layout, len_bytes: number, refs: id };
            blob::store(&mut txn, blob, &record);
            assert_eq!(blob::load(&mut txn, blob).await.unwrap(), Some(record));

            let attrs = ObjectAttrs { etag: etag.clone(), parts: vec![id], ..Default::default() };
            object::store(&mut txn, inode, &attrs);
            assert_eq!(object::load(&mut txn, inode).await.unwrap(), Some(attrs));

            let value = etag.into_bytes().into();
            xattr::set(&mut txn, inode, b"user.x", &value);
            assert_eq!(xattr::get(&mut txn, inode, b"user.x").await.unwrap(), Some(value));
            assert_eq!(xattr::names(&mut txn, inode).await.unwrap(), [&b"user.x"[..]]);

            let epoch = Epoch(number);
            orphan::put_inode(&mut txn, epoch, inode);
            orphan::add_blob(&mut txn, epoch, blob, layout, 2).await.unwrap();
            orphan::add_blob(&mut txn, epoch, blob, layout, 3).await.unwrap();
            let released = Released { layout, refs: 5 };
            let (waiting, _) = orphan::scan(&mut txn, epoch.next(), None, 9).await.unwrap();
            let expected = [Orphan::Blob(blob, released), Orphan::Inode(inode)];
            assert_eq!(waiting, expected.map(|orphan| (epoch, orphan)));
            assert_eq!(orphan::scan(&mut txn, epoch, None, 9).await.unwrap().0, []);

            let (client, open) = (janusfs_types::ClientId(number), janusfs_types::SessionId(id));
            session::put(&mut txn, inode, client, open);
            let sessions = session::of_inode(&mut txn, inode).await.unwrap();
            assert_eq!(sessions, [(client, open)]);

            usage::add(&mut txn, inode, usage::delta(5, number), 2);
            usage::add(&mut txn, inode, 5, -1);
            let counted = usage::Usage { bytes: number, entries: 1 };
            assert_eq!(usage::read(&mut txn, inode).await.unwrap(), counted);
            assert_eq!(usage::all(&mut txn).await.unwrap(), [(inode, counted)]);

            epoch::set(&mut txn, epoch);
            assert_eq!(epoch::current(&mut txn).await.unwrap(), epoch);
        });
    }

    #[test]
    fn directory_times_only_rise_until_they_are_set(a: i64, b: i64) {
        block_on(async {
            let mut txn = MemKv::default().begin();
            let id = InodeId(9);
            dir_stat::touch(&mut txn, id, 2, a);
            dir_stat::touch(&mut txn, id, -1, b);
            let stat = dir_stat::read(&mut txn, id).await.unwrap();
            let latest = Some(a.max(b).max(i64::MIN + 1));
            assert_eq!((stat.modified_ns, stat.changed_ns, stat.entries), (latest, latest, 1));
            dir_stat::set_modified(&mut txn, id, a.max(i64::MIN + 1).min(b.max(i64::MIN + 1)));
            let stat = dir_stat::read(&mut txn, id).await.unwrap();
            assert_eq!(stat.modified_ns, Some(a.min(b).max(i64::MIN + 1)));
        });
    }

    #[test]
    fn garbage_is_refused_not_believed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // What decodes must be what would have been stored.
        if let Ok((record, _)) = inode::from_row(&bytes) {
            prop_assert!(!matches!(record.content, Content::Extents(ref list) if list.len() > 500));
        }
        if let Ok(dentry) = dentry::decode(&bytes) {
            prop_assert_eq!(super::encode(&dentry), bytes);
        }
    }
}
