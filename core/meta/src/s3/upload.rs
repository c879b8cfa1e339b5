//! The rows of multipart uploads: `UPLD`, `PART` and, for completed ones, `IDEM`.
//!
//! | Key | Holds |
//! |---|---|
//! | `UPLD` bucket directory (big-endian), key, 0, upload id | [`UploadRecord`]; ordered as S3 lists uploads |
//! | `PART` upload id, 0, number (big-endian) | [`PartRecord`] |
//! | `IDEM` `up`, upload id | [`DoneRecord`]; ids begin with their time, so the oldest come first |

use janusfs_types::{Content, InodeId};
use janusfs_wire::{
    meta::{ObjectAttrs, Pairs, Part, Upload},
    wire_fields,
};

use super::record::Record;

/// Length of an upload id in characters: 16 of the time, 32 random ones.
const UPLOAD_ID_LEN: usize = 48;

/// Value of an `UPLD` row.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct UploadRecord {
    /// Start.
    pub(super) created_ns: i64,
    /// User who started it.
    pub(super) initiator: String,
    /// Attributes that the object will get.
    pub(super) attrs: ObjectAttrs,
}
wire_fields!(UploadRecord {
    created_ns,
    initiator,
    attrs
});

impl Record for UploadRecord {
    const NAME: &'static str = "UPLD";
}

impl UploadRecord {
    /// Returns the upload as callers see it.
    pub(super) fn named(self, key: String, upload_id: String) -> Upload {
        let Self {
            created_ns,
            initiator,
            attrs,
        } = self;
        Upload {
            key,
            upload_id,
            created_ns,
            initiator,
            attrs,
        }
    }
}

/// Value of a `PART` row.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct PartRecord {
    /// Where the bytes are: in a blob that the part owns, inline, or in shared blobs that it holds references to.
    pub(super) content: Content,
    /// Length in bytes.
    pub(super) size: u64,
    /// MD5 in hex.
    pub(super) etag: String,
    /// Algorithm and base64 value.
    pub(super) checksums: Pairs,
    /// Upload time.
    pub(super) modified_ns: i64,
}
wire_fields!(PartRecord {
    content,
    size,
    etag,
    checksums,
    modified_ns
});

impl Record for PartRecord {
    const NAME: &'static str = "PART";
}

impl PartRecord {
    /// Returns the part as callers see it.
    pub(super) fn numbered(self, number: u32) -> Part {
        let Self {
            content: _,
            size,
            etag,
            checksums,
            modified_ns,
        } = self;
        Part {
            number,
            size,
            etag,
            checksums,
            modified_ns,
        }
    }
}

/// Value of an `IDEM` row: what a completed upload became.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct DoneRecord {
    /// The bucket's directory.
    pub(super) root: InodeId,
    /// The key.
    pub(super) key: String,
    /// The object's inode.
    pub(super) inode: InodeId,
    /// Its ETag.
    pub(super) etag: String,
    /// Its modification time, which is that of the completion.
    pub(super) modified_ns: i64,
}
wire_fields!(DoneRecord {
    root,
    key,
    inode,
    etag,
    modified_ns
});

impl Record for DoneRecord {
    const NAME: &'static str = "IDEM";
}

/// Makes an upload id.
pub(super) fn new_upload_id(created_ns: i64, random: u128) -> String {
    format!("{created_ns:016x}{random:032x}")
}

/// Tells whether an id could be one of ours; others name no upload.
pub(super) fn is_upload_id(id: &str) -> bool {
    id.len() == UPLOAD_ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the start of the `UPLD` rows of a bucket.
pub(super) fn uploads_of(root: InodeId) -> Vec<u8> {
    [b"UPLD" as &[u8], &root.0.to_be_bytes()].concat()
}

/// Returns the key of an `UPLD` row.
pub(super) fn upload_key(root: InodeId, key: &str, upload_id: &str) -> Vec<u8> {
    [
        &uploads_of(root),
        key.as_bytes(),
        &[0],
        upload_id.as_bytes(),
    ]
    .concat()
}

/// Reads the object's key and the upload id back from what follows [`uploads_of`].
pub(super) fn split_upload_key(rest: &[u8]) -> Option<(String, String)> {
    let zero = rest.iter().position(|&byte| byte == 0)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some((text(&rest[..zero])?, text(&rest[zero + 1..])?))
}

/// Kind of the rows of parts.
pub(crate) const PART_KIND: &[u8; 4] = b"PART";

/// Returns the start of the `PART` rows of an upload.
pub(super) fn parts_of(upload_id: &str) -> Vec<u8> {
    [PART_KIND as &[u8], upload_id.as_bytes(), &[0]].concat()
}

/// Returns the key of a `PART` row.
pub(super) fn part_key(upload_id: &str, number: u32) -> Vec<u8> {
    [&parts_of(upload_id) as &[u8], &number.to_be_bytes()].concat()
}

/// Start of the `IDEM` rows of completed uploads.
pub(super) const DONE: &[u8] = b"IDEMup";

/// Returns the key of an `IDEM` row.
pub(super) fn done_key(upload_id: &str) -> Vec<u8> {
    [DONE, upload_id.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::{super::record::there_and_back, *};
    use janusfs_types::{BlobId, Extent, Layout};
    use proptest::prelude::*;

    fn content() -> impl Strategy<Value = Content> {
        let layout = (any::<u8>(), any::<u32>(), any::<u16>(), any::<u32>()).prop_map(
            |(chunk_size_log2, chain_table, stripe, seed)| Layout {
                chunk_size_log2,
                chain_table,
                stripe,
                seed,
            },
        );
        let extent = (
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            layout.clone(),
        )
            .prop_map(
                |(file_offset, len_bytes, blob, blob_offset, layout)| Extent {
                    file_offset,
                    len_bytes,
                    blob: BlobId(blob),
                    blob_offset,
                    layout,
                },
            );
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(Content::Inline),
            (any::<u64>(), layout).prop_map(|(blob, layout)| Content::Blob {
                blob: BlobId(blob),
                layout
            }),
            proptest::collection::vec(extent, 0..4).prop_map(Content::Extents),
        ]
    }

    proptest! {
        #[test]
        fn records_round_trip(
            content in content(), size: u64, etag in "[0-9a-f]{0,32}", modified_ns: i64, name in ".{0,9}",
        ) {
            let checksums = vec![(name.clone(), etag.clone())];
            let attrs = ObjectAttrs { etag: etag.clone(), headers: checksums.clone(), ..ObjectAttrs::default() };
            let upload = UploadRecord { created_ns: modified_ns, initiator: name.clone(), attrs };
            prop_assert_eq!(there_and_back(&upload), upload);
            let part = PartRecord { content, size, etag: etag.clone(), checksums, modified_ns };
            prop_assert_eq!(there_and_back(&part), part);
            let done = DoneRecord { root: InodeId(size), key: name, inode: InodeId(9), etag, modified_ns };
            prop_assert_eq!(there_and_back(&done), done);
        }

        #[test]
        fn upload_rows_sort_by_key_then_id(a in "[a-c/]{1,5}", b in "[a-c/]{1,5}", x: u128, y: u128, t in 0..i64::MAX) {
            let (x, y) = (new_upload_id(t, x), new_upload_id(t, y));
            prop_assert!(is_upload_id(&x));
            let rows = (upload_key(InodeId(7), &a, &x), upload_key(InodeId(7), &b, &y));
            prop_assert_eq!(rows.0.cmp(&rows.1), (&a, &x).cmp(&(&b, &y)));
            prop_assert_eq!(split_upload_key(&rows.0[uploads_of(InodeId(7)).len()..]), Some((a, x)));
        }
    }
}
