//! Random histories on the service and on a naive tree in memory, compared after every step.
//!
//! Operations name existing directories and inodes by index, so that most of them hit something.

use std::collections::BTreeMap;

use bytes::Bytes;
use janusfs_kv::{Kv, RocksKv, RocksKvOptions};
use janusfs_types::{Content, Credentials, FileKind, FsError, InodeId};
use janusfs_wire::meta::{
    Create, Link, Open, ReadLink, Rename, RenameMode, Rmdir, Symlink, Truncate, Unlink, WriteInline,
};
use proptest::prelude::*;

use super::{block_on, fresh, open};
use crate::{Meta, MetaError};

/// Names with stored orders that differ from their plain ones.
const NAMES: [&str; 5] = ["a", "a-", "a0", "b", "\u{e9}"];

#[derive(Clone, Debug)]
enum Op {
    Create {
        dir: usize,
        name: usize,
        kind: FileKind,
        exclusive: bool,
    },
    Symlink {
        dir: usize,
        name: usize,
        target: String,
    },
    Link {
        inode: usize,
        dir: usize,
        name: usize,
    },
    Unlink {
        dir: usize,
        name: usize,
    },
    Rmdir {
        dir: usize,
        name: usize,
    },
    Rename {
        dir: usize,
        name: usize,
        new_dir: usize,
        new_name: usize,
        mode: RenameMode,
    },
    Write {
        inode: usize,
        bytes: Vec<u8>,
        hole: u64,
        stale: bool,
    },
    Truncate {
        inode: usize,
        size: u64,
    },
    Reclaim,
}

fn op() -> impl Strategy<Value = Op> {
    let dir = 0usize..64;
    let name = 0..NAMES.len();
    let kind = prop_oneof![
        3 => Just(FileKind::Regular),
        4 => Just(FileKind::Directory),
        1 => Just(FileKind::Fifo),
    ];
    let mode = prop_oneof![
        3 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange),
    ];
    let at = (dir.clone(), name.clone());
    prop_oneof![
        6 => (at.clone(), kind, any::<bool>())
            .prop_map(|((dir, name), kind, exclusive)| Op::Create { dir, name, kind, exclusive }),
        1 => (at.clone(), "[a-z]{0,9}")
            .prop_map(|((dir, name), target)| Op::Symlink { dir, name, target }),
        2 => (0usize..64, at.clone())
            .prop_map(|(inode, (dir, name))| Op::Link { inode, dir, name }),
        2 => at.clone().prop_map(|(dir, name)| Op::Unlink { dir, name }),
        2 => at.clone().prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        6 => (at.clone(), at, mode).prop_map(|((dir, name), (new_dir, new_name), mode)| {
            Op::Rename { dir, name, new_dir, new_name, mode }
        }),
        2 => (0usize..64, proptest::collection::vec(any::<u8>(), 0..30), 0u64..9, any::<bool>())
            .prop_map(|(inode, bytes, hole, stale)| Op::Write { inode, bytes, hole, stale }),
        2 => (0usize..64, 0u64..50).prop_map(|(inode, size)| Op::Truncate { inode, size }),
        1 => Just(Op::Reclaim),
    ]
}

/// An inode of the naive tree.
#[derive(Clone, Debug)]
struct Node {
    kind: FileKind,
    nlink: u32,
    /// Bytes of a regular file, target of a symlink.
    bytes: Vec<u8>,
    children: BTreeMap<String, usize>,
    /// Its number in the service.
    id: InodeId,
}

/// The naive tree: inodes that were ever made; 0 is the root.
struct Tree {
    nodes: Vec<Node>,
}

type Outcome = Result<(), FsError>;

impl Tree {
    fn new() -> Self {
        let kind = FileKind::Directory;
        let root = Node {
            kind,
            nlink: 2,
            bytes: Vec::new(),
            children: BTreeMap::new(),
            id: InodeId::ROOT,
        };
        Self { nodes: vec![root] }
    }

    fn is_directory(&self, node: usize) -> bool {
        self.nodes[node].kind == FileKind::Directory
    }

    /// Picks a directory that still has its name.
    fn directory(&self, index: usize) -> usize {
        let live: Vec<usize> = (0..self.nodes.len())
            .filter(|&node| self.is_directory(node) && self.nodes[node].nlink > 0)
            .collect();
        live[index % live.len()]
    }

    fn child(&self, dir: usize, name: &str) -> Option<usize> {
        self.nodes[dir].children.get(name).copied()
    }

    /// Adds a node under a free name; its number is filled in when the service gave it.
    fn add(&mut self, dir: usize, name: &str, kind: FileKind, bytes: &[u8]) -> usize {
        let node = self.nodes.len();
        let nlink = if kind == FileKind::Directory { 2 } else { 1 };
        let bytes = bytes.to_vec();
        self.nodes.push(Node {
            kind,
            nlink,
            bytes,
            children: BTreeMap::new(),
            id: InodeId(0),
        });
        self.nodes[dir].children.insert(name.into(), node);
        node
    }

    fn drop_link(&mut self, node: usize) {
        let links = if self.is_directory(node) { 2 } else { 1 };
        self.nodes[node].nlink -= links;
    }

    fn unlink(&mut self, dir: usize, name: &str) -> Outcome {
        let node = self.child(dir, name).ok_or(FsError::NotFound)?;
        if self.is_directory(node) {
            return Err(FsError::IsDirectory);
        }
        self.nodes[dir].children.remove(name);
        self.drop_link(node);
        Ok(())
    }

    fn rmdir(&mut self, dir: usize, name: &str) -> Outcome {
        let node = self.child(dir, name).ok_or(FsError::NotFound)?;
        if !self.is_directory(node) {
            return Err(FsError::NotDirectory);
        }
        if !self.nodes[node].children.is_empty() {
            return Err(FsError::NotEmpty);
        }
        self.nodes[dir].children.remove(name);
        self.drop_link(node);
        Ok(())
    }

    /// Tells whether `below` is `top` or somewhere under it.
    fn holds(&self, top: usize, below: usize) -> bool {
        top == below
            || self.nodes[top]
                .children
                .values()
                .any(|&child| self.holds(child, below))
    }

    fn rename(&mut self, from: (usize, &str), to: (usize, &str), mode: RenameMode) -> Outcome {
        let source = self.child(from.0, from.1).ok_or(FsError::NotFound)?;
        let target = self.child(to.0, to.1);
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(FsError::Exists),
            (None, RenameMode::Exchange) => return Err(FsError::NotFound),
            (Some(target), _) if target == source => return Ok(()),
            _ => {}
        }
        if self.is_directory(source) && self.holds(source, to.0) {
            return Err(FsError::Invalid(String::new()));
        }
        match target {
            Some(target) if mode == RenameMode::Exchange => {
                if self.is_directory(target) && self.holds(target, from.0) {
                    return Err(FsError::Invalid(String::new()));
                }
                self.nodes[from.0].children.insert(from.1.into(), target);
                self.nodes[to.0].children.insert(to.1.into(), source);
                return Ok(());
            }
            Some(_) if self.is_directory(source) => self.rmdir(to.0, to.1)?,
            Some(_) => self.unlink(to.0, to.1)?,
            None => {}
        }
        self.nodes[from.0].children.remove(from.1);
        self.nodes[to.0].children.insert(to.1.into(), source);
        Ok(())
    }
}

/// Both sides of a comparison.
struct Pair<K: Kv> {
    meta: Meta<K>,
    tree: Tree,
}

fn outcome<T>(result: Result<T, MetaError>) -> Result<T, FsError> {
    result.map_err(|error| match error.into_fs() {
        FsError::Invalid(_) => FsError::Invalid(String::new()),
        other => other,
    })
}

impl<K: Kv> Pair<K> {
    async fn apply(&mut self, op: &Op) {
        let who = Credentials { uid: 1, gid: 2 };
        let name_of = |name: usize| Bytes::from_static(NAMES[name].as_bytes());
        match op.clone() {
            Op::Create {
                dir,
                name,
                kind,
                exclusive,
            } => {
                let dir = self.tree.directory(dir);
                let expected = match self.tree.child(dir, NAMES[name]) {
                    None => Ok(self.tree.add(dir, NAMES[name], kind, b"")),
                    Some(_) if exclusive || kind != FileKind::Regular => Err(FsError::Exists),
                    Some(node) => match self.tree.nodes[node].kind {
                        FileKind::Regular => Ok(node),
                        FileKind::Directory => Err(FsError::IsDirectory),
                        _ => Err(FsError::Exists),
                    },
                };
                let parent = self.tree.nodes[dir].id;
                let name = name_of(name);
                let create = Create {
                    parent,
                    name,
                    kind,
                    mode: 0o644,
                    rdev: 0,
                    who,
                    exclusive,
                };
                let made = outcome(self.meta.create(create).await);
                self.note(expected, made.map(|opened| opened.attr.inode));
            }
            Op::Symlink { dir, name, target } => {
                let dir = self.tree.directory(dir);
                let expected = match self.tree.child(dir, NAMES[name]) {
                    _ if target.is_empty() => Err(FsError::NotFound),
                    Some(_) => Err(FsError::Exists),
                    None => {
                        let bytes = target.as_bytes();
                        Ok(self.tree.add(dir, NAMES[name], FileKind::Symlink, bytes))
                    }
                };
                let parent = self.tree.nodes[dir].id;
                let symlink = Symlink {
                    parent,
                    name: name_of(name),
                    target: target.into(),
                    who,
                };
                let made = outcome(self.meta.symlink(symlink).await);
                self.note(expected, made.map(|found| found.attr.inode));
            }
            Op::Link { inode, dir, name } => {
                let node = inode % self.tree.nodes.len();
                let dir = self.tree.directory(dir);
                let expected = if self.tree.is_directory(node) && self.tree.nodes[node].nlink > 0 {
                    Err(FsError::NotPermitted)
                } else if self.tree.nodes[node].nlink == 0 {
                    // Gone, or waiting to be: a removed directory may answer either way.
                    return;
                } else if self.tree.child(dir, NAMES[name]).is_some() {
                    Err(FsError::Exists)
                } else {
                    self.tree.nodes[node].nlink += 1;
                    self.tree.nodes[dir]
                        .children
                        .insert(NAMES[name].into(), node);
                    Ok(node)
                };
                let (inode, parent) = (self.tree.nodes[node].id, self.tree.nodes[dir].id);
                let made = self
                    .meta
                    .link(Link {
                        inode,
                        parent,
                        name: name_of(name),
                    })
                    .await;
                self.note(expected, outcome(made).map(|found| found.attr.inode));
            }
            Op::Unlink { dir, name } => {
                let dir = self.tree.directory(dir);
                let parent = self.tree.nodes[dir].id;
                let expected = self.tree.unlink(dir, NAMES[name]);
                let done = self
                    .meta
                    .unlink(Unlink {
                        parent,
                        name: name_of(name),
                    })
                    .await;
                assert_eq!(outcome(done), expected);
            }
            Op::Rmdir { dir, name } => {
                let dir = self.tree.directory(dir);
                let parent = self.tree.nodes[dir].id;
                let expected = self.tree.rmdir(dir, NAMES[name]);
                let done = self
                    .meta
                    .rmdir(Rmdir {
                        parent,
                        name: name_of(name),
                    })
                    .await;
                assert_eq!(outcome(done), expected);
            }
            Op::Rename {
                dir,
                name,
                new_dir,
                new_name,
                mode,
            } => {
                let (dir, new_dir) = (self.tree.directory(dir), self.tree.directory(new_dir));
                let rename = Rename {
                    parent: self.tree.nodes[dir].id,
                    name: name_of(name),
                    new_parent: self.tree.nodes[new_dir].id,
                    new_name: name_of(new_name),
                    mode,
                };
                let (from, to) = ((dir, NAMES[name]), (new_dir, NAMES[new_name]));
                let expected = self.tree.rename(from, to, mode);
                assert_eq!(outcome(self.meta.rename(rename).await), expected);
            }
            Op::Write {
                inode,
                bytes,
                hole,
                stale,
            } => {
                let node = inode % self.tree.nodes.len();
                if self.tree.nodes[node].nlink == 0 {
                    return;
                }
                let inode = self.tree.nodes[node].id;
                let size = bytes.len() as u64 + hole;
                let now = self.meta.head(inode).await.data_version;
                let expected = if stale { now.next() } else { now };
                let write = WriteInline {
                    inode,
                    expected,
                    bytes: bytes.clone().into(),
                    size,
                    durable: stale,
                };
                let done = outcome(self.meta.write_inline(write).await);
                let expected = match self.tree.nodes[node].kind {
                    FileKind::Directory => Err(FsError::IsDirectory),
                    FileKind::Regular if stale => Err(FsError::PreconditionFailed),
                    FileKind::Regular => {
                        let whole = &mut self.tree.nodes[node].bytes;
                        *whole = bytes;
                        whole.resize(usize::try_from(size).unwrap(), 0);
                        Ok(())
                    }
                    _ => Err(FsError::Invalid(String::new())),
                };
                assert_eq!(done.map(|_| ()), expected);
            }
            Op::Truncate { inode, size } => {
                let node = inode % self.tree.nodes.len();
                if self.tree.nodes[node].nlink == 0 {
                    return;
                }
                let inode = self.tree.nodes[node].id;
                let done = outcome(self.meta.truncate(Truncate { inode, size }).await);
                let expected = match self.tree.nodes[node].kind {
                    FileKind::Directory => Err(FsError::IsDirectory),
                    FileKind::Regular => {
                        self.tree.nodes[node]
                            .bytes
                            .resize(usize::try_from(size).unwrap(), 0);
                        Ok(())
                    }
                    _ => Err(FsError::Invalid(String::new())),
                };
                assert_eq!(done.map(|_| ()), expected);
            }
            Op::Reclaim => {
                self.meta.reclaim_now().await;
            }
        }
    }

    /// Compares what both sides made, and learns the number of a new inode.
    fn note(&mut self, expected: Result<usize, FsError>, made: Result<InodeId, FsError>) {
        match (expected, made) {
            (Ok(node), Ok(id)) => {
                if self.tree.nodes[node].id == InodeId(0) {
                    self.tree.nodes[node].id = id;
                }
                assert_eq!(self.tree.nodes[node].id, id);
            }
            (expected, made) => assert_eq!(made.map(|_| ()), expected.map(|_| ())),
        }
    }

    /// Compares a directory and all below it.
    async fn compare(&self, top: usize) {
        let mut queue = vec![top];
        while let Some(dir) = queue.pop() {
            let node = &self.tree.nodes[dir];
            let listed = self.meta.list(node.id).await;
            assert_eq!(listed.len(), node.children.len(), "entries of {}", node.id);
            for (name, attr) in listed {
                let name = String::from_utf8(name).unwrap();
                let child = node.children[&name];
                let expected = &self.tree.nodes[child];
                assert_eq!(
                    (attr.inode, attr.kind),
                    (expected.id, expected.kind),
                    "{name}"
                );
                assert_eq!(attr.nlink, expected.nlink, "links of {name}");
                assert_eq!(self.meta.at(node.id, &name).await.unwrap(), attr);
                let inode = attr.inode;
                match attr.kind {
                    FileKind::Directory => {
                        assert_eq!(attr.size, expected.children.len() as u64);
                        queue.push(child);
                    }
                    FileKind::Regular => {
                        let open = Open {
                            inode,
                            client: Default::default(),
                            session: None,
                        };
                        let opened = self.meta.open_inode(open).await.unwrap();
                        let Content::Inline(mut bytes) = opened.content else {
                            panic!("inline")
                        };
                        bytes.resize(usize::try_from(opened.attr.size).unwrap(), 0);
                        assert_eq!(bytes, expected.bytes, "bytes of {name}");
                    }
                    FileKind::Symlink => {
                        let target = self.meta.read_link(ReadLink { inode }).await.unwrap();
                        assert_eq!(target, expected.bytes);
                    }
                    _ => {}
                }
            }
        }
    }
}

async fn check<K: Kv>(meta: Meta<K>, ops: &[Op]) {
    let mut pair = Pair {
        meta,
        tree: Tree::new(),
    };
    for op in ops {
        pair.apply(op).await;
        pair.compare(0).await;
    }
    pair.meta.assert_clean().await;
    pair.meta.reclaim_now().await;
    pair.meta.assert_clean().await;
    pair.compare(0).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn histories_match_the_naive_tree(ops in proptest::collection::vec(op(), 1..60)) {
        block_on(async { check(fresh().await, &ops).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn histories_match_the_naive_tree_over_rocksdb(ops in proptest::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let kv = RocksKv::open(dir.path(), RocksKvOptions::default()).unwrap();
        block_on(async { check(open(kv).await, &ops).await });
    }
}
