//! One directory handle's way through its directory.
//!
//! The kernel names a position by a number that programs may keep (`telldir`), the metadata service by a cursor that
//! survives any change of the directory. The stream keeps the cursor after each entry handed out, so a number always
//! leads back to the same place: an entry that is there throughout is seen exactly once, whatever is created or deleted
//! around it. Positions count entries from 0, without `.` and `..`.
//!
//! Absent: the calls themselves (`vfs::dir`). The memory held is the cursors of one read-through and one page.

use std::sync::Arc;

use bytes::Bytes;
use janusfs_wire::meta::{DirEntry, DirPage};

/// What to do for a position.
#[derive(Debug)]
pub(crate) enum Next<S> {
    /// Hand these entries out, from the index on; they have this stamp.
    Serve(Arc<Vec<DirEntry>>, usize, S),
    /// The directory ends here.
    End,
    /// Fetch the page after this cursor, then ask again.
    Fetch(Bytes),
}

/// The state of the stream.
#[derive(Debug, Default)]
pub(crate) struct DirectoryStream<S> {
    /// The cursor after the entry at each position.
    cursors: Vec<Bytes>,
    /// The page last fetched, the position of its first entry, and its stamp.
    page: Option<Page<S>>,
}

#[derive(Debug)]
struct Page<S> {
    first: usize,
    entries: Arc<Vec<DirEntry>>,
    end: bool,
    stamp: S,
}

impl<S: Copy> DirectoryStream<S> {
    pub(crate) fn new() -> Self {
        Self {
            cursors: Vec::new(),
            page: None,
        }
    }

    /// Forgets everything: `rewinddir` promises the directory as it is now.
    pub(crate) fn rewind(&mut self) {
        self.cursors.clear();
        self.page = None;
    }

    /// Says how to go on at `position`, with the held page only if `usable` agrees to its stamp.
    pub(crate) fn next(&self, position: usize, usable: impl Fn(&S) -> bool) -> Next<S> {
        if let Some(page) = self.page.as_ref().filter(|page| usable(&page.stamp))
            && let Some(index) = position.checked_sub(page.first)
        {
            if index < page.entries.len() {
                return Next::Serve(Arc::clone(&page.entries), index, page.stamp);
            }
            if index == page.entries.len() && page.end {
                return Next::End;
            }
        }
        match position.checked_sub(1) {
            None => Next::Fetch(Bytes::new()),
            Some(before) => self
                .cursors
                .get(before)
                .cloned()
                .map_or(Next::End, Next::Fetch),
        }
    }

    /// Takes in the page that was fetched for `position`. Positions after it are counted anew.
    pub(crate) fn accept(&mut self, position: usize, page: DirPage, stamp: S) {
        if position > self.cursors.len() {
            return; // Another thread rewound the handle meanwhile.
        }
        self.cursors.truncate(position);
        self.cursors
            .extend(page.entries.iter().map(|entry| entry.cursor.clone()));
        self.page = Some(Page {
            first: position,
            entries: Arc::new(page.entries),
            end: page.end,
            stamp,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use janusfs_types::{Attr, DataVersion, FileKind, InodeId, Times};
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str) -> DirEntry {
        let attr = Attr {
            inode: InodeId(0x100),
            kind: FileKind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            rdev: 0,
            times: Times::default(),
            data_version: DataVersion(1),
        };
        DirEntry {
            name: name.to_owned().into(),
            attr,
            cursor: name.to_owned().into(),
        }
    }

    /// A directory that answers pages as the service does: names after the cursor, in order.
    fn page(names: &BTreeSet<String>, after: &Bytes, limit: usize) -> DirPage {
        let after = std::str::from_utf8(after).unwrap();
        let mut rest = names.iter().filter(|name| name.as_str() > after);
        let entries: Vec<_> = rest.by_ref().take(limit).map(|name| entry(name)).collect();
        DirPage {
            entries,
            end: rest.next().is_none(),
        }
    }

    fn read(
        stream: &mut DirectoryStream<()>,
        names: &BTreeSet<String>,
        position: usize,
        take: usize,
    ) -> Vec<String> {
        loop {
            match stream.next(position, |()| true) {
                Next::End => return Vec::new(),
                Next::Fetch(after) => stream.accept(position, page(names, &after, 4), ()),
                Next::Serve(entries, from, ()) => {
                    let served = entries[from..].iter().take(take);
                    return served
                        .map(|e| String::from_utf8(e.name.to_vec()).unwrap())
                        .collect();
                }
            }
        }
    }

    fn numbered(count: usize) -> BTreeSet<String> {
        (0..count).map(|number| format!("{number:03}")).collect()
    }

    #[test]
    fn removing_everything_read_so_far_skips_nothing() {
        let (mut names, mut stream) = (numbered(25), DirectoryStream::new());
        let (mut seen, mut position) = (Vec::new(), 0);
        loop {
            let batch = read(&mut stream, &names, position, 3);
            if batch.is_empty() {
                break;
            }
            position += batch.len();
            for name in batch {
                names.remove(&name);
                seen.push(name);
            }
        }
        assert_eq!(seen, numbered(25).into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_told_position_leads_back_and_an_unknown_one_ends() {
        let (names, mut stream) = (numbered(12), DirectoryStream::new());
        let first: Vec<_> = (0..12)
            .map(|at| read(&mut stream, &names, at, 1)[0].clone())
            .collect();
        assert_eq!(read(&mut stream, &names, 5, 1), [first[5].clone()]);
        assert_eq!(read(&mut stream, &names, 2, 1), [first[2].clone()]);
        assert!(matches!(stream.next(500, |()| true), Next::End));
        assert!(matches!(
            stream.next(12, |()| true),
            Next::End | Next::Fetch(_)
        ));
    }

    #[test]
    fn rewinding_sees_new_names_and_an_unusable_page_is_fetched_again() {
        let (mut names, mut stream) = (numbered(2), DirectoryStream::new());
        assert_eq!(read(&mut stream, &names, 0, 9), ["000", "001"]);
        names.insert("0005".into());
        assert_eq!(
            read(&mut stream, &names, 0, 9),
            ["000", "001"],
            "the page is held"
        );
        assert!(matches!(stream.next(1, |()| false), Next::Fetch(after) if after == "000"));
        stream.rewind();
        assert_eq!(read(&mut stream, &names, 0, 9), ["000", "0005", "001"]);
    }

    proptest! {
        /// Names that stay are seen exactly once, whatever comes and goes between the reads.
        #[test]
        fn what_stays_is_seen_once(
            churn in proptest::collection::vec((0usize..40, any::<bool>()), 0..60),
            take in 1usize..5,
        ) {
            let stays: BTreeSet<_> = numbered(40).into_iter().step_by(2).collect();
            let (mut names, mut stream) = (stays.clone(), DirectoryStream::new());
            let (mut seen, mut position, mut churn) = (Vec::new(), 0, churn.into_iter());
            loop {
                let batch = read(&mut stream, &names, position, take);
                if batch.is_empty() {
                    break;
                }
                position += batch.len();
                seen.extend(batch);
                for (number, create) in churn.by_ref().take(3) {
                    let name = format!("{:03}", number | 1);
                    if create { names.insert(name); } else { names.remove(&name); }
                }
            }
            let kept: Vec<_> = seen.iter().filter(|name| stays.contains(*name)).cloned().collect();
            prop_assert_eq!(kept, stays.into_iter().collect::<Vec<_>>());
        }
    }
}
