//! `INOD` inode → attributes, content, accounting root; and `EXTN` inode, file offset → extents of long files.
//!
//! Invariant: the extents of a file are in its `INOD` row up to [`EXTENTS_IN_ROW_MAX`], above that in `EXTN` rows of as
//! many each, because a value has a limit. [`load`] and [`store`] hide which. A directory's mtime, ctime and size in the
//! row are those of its creation or last `SetAttr`: what counts is in `dir_stat`.

use janusfs_kv::Txn;
use janusfs_types::{Attr, Content, Extent, FsError, InodeId};
use janusfs_wire::{DecodeError, Decoder, Encoder, Wire};

use super::{decode, decode_start, encode, key, prefix_end, scan_all};
use crate::MetaError;

/// Most extents in one row: 500 take about 20 kB, a fifth of a value's limit.
pub(crate) const EXTENTS_IN_ROW_MAX: usize = 500;

/// An inode.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct InodeRecord {
    /// Attributes.
    pub(crate) attr: Attr,
    /// Where the bytes are; empty inline for what is no regular file.
    pub(crate) content: Content,
    /// The accounting root that the inode is counted in. A directory that *is* an accounting root names itself.
    pub(crate) root: InodeId,
    /// Directories: the parent, for `..` and to refuse cycles. Others: 0, they may have several.
    pub(crate) parent: InodeId,
    /// Directories: made on purpose, so that an empty one stays.
    pub(crate) explicit: bool,
    /// Symlinks: the target.
    pub(crate) symlink: Vec<u8>,
    /// Blob files: bytes from here on are leftovers of a truncation, not trimmed yet.
    pub(crate) trim_from: Option<u64>,
    /// `EXTN` rows that the stored form has, as of [`load`]; 0 for a new inode. Tells [`store`] what to clear.
    pub(crate) extent_rows: u32,
}

/// The part of a record that is always in the `INOD` row.
struct Row {
    record: InodeRecord,
    /// Set when the extents are in `EXTN` rows.
    extents: Option<u32>,
}

impl Wire for Row {
    fn put(&self, out: &mut Encoder) {
        let record = &self.record;
        record.attr.put(out);
        match &record.content {
            Content::Extents(_) if self.extents.is_some() => Content::Extents(Vec::new()).put(out),
            content => content.put(out),
        }
        self.extents.put(out);
        record.root.put(out);
        record.parent.put(out);
        record.explicit.put(out);
        out.put_bytes(&record.symlink);
        record.trim_from.put(out);
    }

    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let attr = Attr::get(input)?;
        let content = Content::get(input)?;
        let extents = Option::get(input)?;
        let record = InodeRecord {
            attr,
            content,
            root: InodeId::get(input)?,
            parent: InodeId::get(input)?,
            explicit: bool::get(input)?,
            symlink: input.take_bytes()?.to_vec(),
            trim_from: Option::get(input)?,
            extent_rows: extents.unwrap_or(0),
        };
        Ok(Self { record, extents })
    }
}

pub(crate) const KIND: &[u8; 4] = b"INOD";
pub(crate) const EXTENTS_KIND: &[u8; 4] = b"EXTN";

fn row_key(id: InodeId) -> Vec<u8> {
    key(KIND, &[&id.0.to_le_bytes()])
}

fn extents_prefix(id: InodeId) -> Vec<u8> {
    key(EXTENTS_KIND, &[&id.0.to_be_bytes()])
}

/// Reads an inode with its whole content.
///
/// # Errors
/// `NotFound` when there is none.
pub(crate) async fn load(txn: &mut impl Txn, id: InodeId) -> Result<InodeRecord, MetaError> {
    load_opt(txn, id)
        .await?
        .ok_or(MetaError::Fs(FsError::NotFound))
}

/// Reads an inode with its whole content, if there is one.
pub(crate) async fn load_opt(
    txn: &mut impl Txn,
    id: InodeId,
) -> Result<Option<InodeRecord>, MetaError> {
    let Some(value) = txn.get(&row_key(id)).await? else {
        return Ok(None);
    };
    let mut row: Row = decode("INOD", &value)?;
    if row.extents.is_some() {
        // The row itself conflicts, and every change of the extents writes it too.
        row.record.content = Content::Extents(load_extents(txn, id).await?);
    }
    Ok(Some(row.record))
}

async fn load_extents(txn: &mut impl Txn, id: InodeId) -> Result<Vec<Extent>, MetaError> {
    let mut extents = Vec::new();
    for (_, value) in scan_all(txn, &extents_prefix(id)).await? {
        extents.extend(decode::<Vec<Extent>>("EXTN", &value)?);
    }
    Ok(extents)
}

/// Reads an inode without the extents of a long file: for its attributes, not to be stored again.
pub(crate) async fn load_head(txn: &mut impl Txn, id: InodeId) -> Result<InodeRecord, MetaError> {
    let value = txn.get(&row_key(id)).await?.ok_or(FsError::NotFound)?;
    Ok(decode::<Row>("INOD", &value)?.record)
}

/// Reads an inode without conflicting and without the extents of a long file: not to be stored again.
pub(crate) async fn get_snapshot(
    txn: &mut impl Txn,
    id: InodeId,
) -> Result<Option<InodeRecord>, MetaError> {
    let value = txn.get_snapshot(&row_key(id)).await?;
    Ok(value
        .map(|value| decode::<Row>("INOD", &value))
        .transpose()?
        .map(|row| row.record))
}

/// Reads the attributes of an inode alone, without conflicting.
pub(crate) async fn attr_snapshot(
    txn: &mut impl Txn,
    id: InodeId,
) -> Result<Option<Attr>, MetaError> {
    let value = txn.get_snapshot(&row_key(id)).await?;
    // A row begins with them; the rest, perhaps a page of inline bytes, is not looked at.
    value.map(|value| decode_start("INOD", &value)).transpose()
}

/// Reads the attributes of many inodes alone, each where its inode is, without conflicting.
pub(crate) async fn attrs_snapshot(
    txn: &mut impl Txn,
    ids: impl Iterator<Item = InodeId>,
) -> Result<Vec<Option<Attr>>, MetaError> {
    let keys: Vec<Vec<u8>> = ids.map(row_key).collect();
    let rows = txn.get_many_snapshot(&keys).await?.into_iter();
    rows.map(|row| row.map(|row| decode_start("INOD", &row)).transpose())
        .collect()
}

/// Reads back an `INOD` row of a scan; the extents of a long file are not with it, their row count is.
pub(crate) fn from_row(value: &[u8]) -> Result<(InodeRecord, Option<u32>), MetaError> {
    let row: Row = decode("INOD", value)?;
    Ok((row.record, row.extents))
}

/// Reads the extents of a long file without conflicting.
pub(crate) async fn extents_of(txn: &mut impl Txn, id: InodeId) -> Result<Vec<Extent>, MetaError> {
    load_extents(txn, id).await
}

/// Writes an inode with its whole content. Once per transaction and inode: `extent_rows` is as of the load.
pub(crate) fn store(txn: &mut impl Txn, record: &InodeRecord) {
    clear_extents(txn, record);
    if let (Some(_), Content::Extents(extents)) = (spilled(record), &record.content) {
        for run in extents.chunks(EXTENTS_IN_ROW_MAX) {
            let offset = run[0].file_offset.to_be_bytes();
            let key = key(EXTENTS_KIND, &[&record.attr.inode.0.to_be_bytes(), &offset]);
            txn.set(&key, &encode(&run.to_vec()));
        }
    }
    store_attr(txn, record);
}

/// Writes an inode whose extents did not change since they were loaded. Cheap for files of many extents.
pub(crate) fn store_attr(txn: &mut impl Txn, record: &InodeRecord) {
    let row = Row {
        record: record.clone(),
        extents: spilled(record),
    };
    txn.set(&row_key(record.attr.inode), &encode(&row));
}

/// Removes an inode's rows, its extents with them.
pub(crate) fn remove(txn: &mut impl Txn, record: &InodeRecord) {
    txn.clear(&row_key(record.attr.inode));
    clear_extents(txn, record);
}

fn spilled(record: &InodeRecord) -> Option<u32> {
    match &record.content {
        Content::Extents(extents) if extents.len() > EXTENTS_IN_ROW_MAX => {
            u32::try_from(extents.len().div_ceil(EXTENTS_IN_ROW_MAX)).ok()
        }
        _ => None,
    }
}

/// Clears the extent rows, only where there are some: a range of tombstones per written inode would slow reads.
fn clear_extents(txn: &mut impl Txn, record: &InodeRecord) {
    if record.extent_rows > 0 {
        let prefix = extents_prefix(record.attr.inode);
        txn.clear_range(&prefix, &prefix_end(&prefix));
    }
}
