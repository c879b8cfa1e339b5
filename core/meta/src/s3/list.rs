//! `ListObjects`: one ordered walk with seeks, straight off the rows (the design, section 5).
//!
//! What is listed: regular files under their key; symlinks under what that makes the keys of what they lead to (`link`); a
//! directory that `mkdir` made and that has no row as `dir/`, not through a symlink. Not listed: symlinks that lead nowhere,
//! special files, implicit directories without a key. A page costs its rows, the way of each symlink, an inode read for each
//! object, an attribute read for each run of objects that were made one after the other, and one read for each common
//! prefix, whatever is around or below them. A page is one snapshot.

use janusfs_kv::{Durability, Kv, Txn, run};
use janusfs_types::{Attr, FileKind, FsError, InodeId, limits};
use janusfs_wire::meta::{ListObjects, ListPage, Listed, ListedObject, ObjectAttrs};

use super::{
    attrs, bucket,
    key::{encode_part, stored_form, successor},
    walk::{Row, Walk, is_explicit},
};
use crate::{
    Meta, MetaError,
    store::{inode, object},
    tree,
};

/// Fewest rows that a listing reads at a time.
const PAGE_ROWS_MIN: u32 = 16;
/// Inode numbers between two objects of a page whose attributes are read together: a row passed over costs a fraction of
/// a look-up.
const RUN_GAP_MAX: u64 = 4;

struct Listing<'c> {
    call: &'c ListObjects,
    prefix: Vec<u8>,
    limit: usize,
    page: ListPage,
    last_group: String,
    /// Objects of the page that are not described yet: what they are and their rows.
    bare: Vec<(InodeId, usize)>,
}

impl<K: Kv> Meta<K> {
    /// Lists keys.
    pub(crate) async fn list_objects(&self, call: ListObjects) -> Result<ListPage, MetaError> {
        let call = &call;
        run(&*self.kv, Durability::Soon, |txn| {
            Box::pin(async move {
                let root = bucket::find(txn, &call.bucket).await?.root;
                let limit = call.limit.min(limits::LIST_PAGE_MAX);
                if limit == 0 {
                    return Ok(ListPage {
                        rows: Vec::new(),
                        truncated: false,
                    });
                }
                let prefix = stored_form(&call.prefix);
                let Some(from) = seek_position(call) else {
                    return Ok(ListPage {
                        rows: Vec::new(),
                        truncated: false,
                    });
                };
                let page_rows = (limit + 1).max(PAGE_ROWS_MIN);
                let mut walk = Walk::new(root, prefix.clone(), from, page_rows);
                let mut listing = Listing {
                    call,
                    prefix,
                    limit: usize::try_from(limit).unwrap_or(usize::MAX),
                    page: ListPage {
                        rows: Vec::new(),
                        truncated: false,
                    },
                    last_group: String::new(),
                    bare: Vec::new(),
                };
                while let Some(row) = walk.next(txn).await? {
                    listing.visit(txn, &mut walk, &row).await?;
                    if listing.page.truncated {
                        break;
                    }
                }
                listing.describe(txn).await?;
                Ok(listing.page)
            })
        })
        .await
    }
}

/// Returns where the walk begins; `None` when nothing can follow.
fn seek_position(call: &ListObjects) -> Option<Vec<u8>> {
    if call.after.is_empty() {
        return Some(Vec::new());
    }
    let mut from = stored_form(&call.after);
    if group(&call.after, call).is_some_and(|group| group.len() == call.after.len()) {
        return successor(&from);
    }
    from.push(0);
    Some(from)
}

/// Returns the common prefix that a key belongs to.
fn group<'k>(key: &'k str, call: &ListObjects) -> Option<&'k str> {
    if call.delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(call.prefix.as_str())?;
    let at = rest.find(call.delimiter.as_str())?;
    Some(&key[..call.prefix.len() + at + call.delimiter.len()])
}

/// Returns the key of a row as S3 shows it.
fn shown(stored: &[u8]) -> String {
    if let Ok(text) = str::from_utf8(stored) {
        return text.to_owned();
    }
    let mut key = String::with_capacity(stored.len());
    for (index, part) in stored.split(|&byte| byte == b'/').enumerate() {
        if index > 0 {
            key.push('/');
        }
        encode_part(part, &mut key);
    }
    key
}

impl Listing<'_> {
    async fn visit(
        &mut self,
        txn: &mut impl Txn,
        walk: &mut Walk,
        row: &Row,
    ) -> Result<(), MetaError> {
        if !row.is_directory() {
            if row.kind == FileKind::Regular {
                self.visit_object(txn, walk, row).await?;
            }
            return Ok(());
        }
        if !row.partial && row.key.starts_with(&self.prefix) {
            let key = shown(&row.key);
            if let Some(group) = group(&key, self.call) {
                if group != self.last_group && walk.holds_key(txn, row).await? {
                    self.add_group(walk, row, group);
                }
                return Ok(());
            }
        }
        let empty = walk.enter(txn, row).await?;
        let shown_itself = empty && !row.linked && row.key.starts_with(&self.prefix);
        if shown_itself && is_explicit(txn, row.child).await? {
            self.add_object(txn, row, shown(&row.key)).await?;
        }
        Ok(())
    }

    async fn visit_object(
        &mut self,
        txn: &mut impl Txn,
        walk: &mut Walk,
        row: &Row,
    ) -> Result<(), MetaError> {
        let key = shown(&row.key);
        if !key.starts_with(&self.call.prefix) {
            // A name that is not UTF-8 can have the prefix while its shown form has not.
            return Ok(());
        }
        match group(&key, self.call) {
            Some(group) => {
                if group != self.last_group {
                    self.add_group(walk, row, group);
                }
                Ok(())
            }
            None => self.add_object(txn, row, key).await,
        }
    }

    /// Tells whether another row fits; if not, the page ends here and more follow.
    fn has_room(&mut self) -> bool {
        self.page.truncated = self.page.rows.len() >= self.limit;
        !self.page.truncated
    }

    fn add_group(&mut self, walk: &mut Walk, row: &Row, group: &str) {
        if !self.has_room() {
            return;
        }
        self.page.rows.push(Listed::Prefix {
            prefix: group.to_owned(),
        });
        group.clone_into(&mut self.last_group);
        // A shown form need not sort as the stored one does; then the rows of the group are passed one by one.
        let stored = stored_form(group);
        if row.key.starts_with(&stored)
            && let Some(from) = successor(&stored)
        {
            walk.seek(from);
        }
    }

    async fn add_object(
        &mut self,
        txn: &mut impl Txn,
        row: &Row,
        key: String,
    ) -> Result<(), MetaError> {
        if !self.has_room() {
            return Ok(());
        }
        let mut object = ListedObject {
            key,
            size: 0,
            modified_ns: 0,
            etag: String::new(),
            checksum_algorithms: Vec::new(),
            checksum_type: String::new(),
        };
        if row.is_directory() {
            let attr = inode::attr_snapshot(txn, row.child).await?;
            let attr = tree::attr_of(txn, attr.ok_or_else(|| no_row(row.child))?).await?;
            let attrs = attrs::of_directory(attr.data_version);
            describe(&mut object, &Attr { size: 0, ..attr }, attrs);
        } else {
            self.bare.push((row.child, self.page.rows.len()));
        }
        self.page.rows.push(Listed::Object { object });
        Ok(())
    }

    /// Fills in what the rows of objects do not say themselves.
    async fn describe(&mut self, txn: &mut impl Txn) -> Result<(), MetaError> {
        self.bare.sort_unstable();
        let mut described = Vec::with_capacity(self.bare.len());
        for run in self
            .bare
            .chunk_by(|(one, _), (next, _)| next.0 - one.0 <= RUN_GAP_MAX)
        {
            let ends = (run[0].0, run[run.len() - 1].0);
            let mut stored = object::scan_snapshot(txn, ends.0, ends.1)
                .await?
                .into_iter()
                .peekable();
            for (at, (id, row)) in run.iter().enumerate() {
                while stored.next_if(|(other, _)| other < id).is_some() {}
                // A file of two names is here twice.
                let again = run.get(at + 1).is_some_and(|(next, _)| next == id);
                let attrs = if again {
                    stored.peek().filter(|(other, _)| other == id).cloned()
                } else {
                    stored.next_if(|(other, _)| other == id)
                };
                described.push((*id, *row, attrs.map(|(_, attrs)| attrs)));
            }
        }
        // In the order of their rows, so that each look-up begins where the last one ended.
        described.sort_unstable_by_key(|(id, _, _)| id.0.swap_bytes());
        let attrs = inode::attrs_snapshot(txn, described.iter().map(|(id, _, _)| *id)).await?;
        for ((id, row, stored), attr) in described.into_iter().zip(attrs) {
            let attr = attr.ok_or_else(|| no_row(id))?;
            if let Listed::Object { object } = &mut self.page.rows[row] {
                describe(object, &attr, attrs::current(&attr, stored));
            }
        }
        Ok(())
    }
}

fn no_row(id: InodeId) -> FsError {
    FsError::Corrupt(format!("{id} has an entry but no row"))
}

fn describe(object: &mut ListedObject, attr: &Attr, attrs: ObjectAttrs) {
    object.size = attr.size;
    object.modified_ns = attr.times.modified_ns;
    object.etag = attrs.etag;
    object.checksum_algorithms = attrs.checksums.into_iter().map(|(name, _)| name).collect();
    object.checksum_type = attrs.checksum_type;
}
