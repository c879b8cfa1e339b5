//! Tests of the whole service over real stores: single behaviours, and random histories against a naive tree.

mod behaviour;
mod check;
mod model;

use std::sync::Arc;

use bytes::Bytes;
use janusfs_kv::{Kv, MemKv};
use janusfs_types::{
    Attr, BlobId, ChainId, ChainInfo, ChainTable, ChainVersion, Credentials, FileKind, FsError,
    InodeId, Layout, NodeId, TargetId, TargetInfo,
};
use janusfs_wire::meta::{Create, Fsck, FsckReport, Lookup, Opened, ReadDir, WriteInline};

use crate::{
    Meta, MetaConfig, MetaError,
    store::{
        inode,
        orphan::{self, Orphan},
        scan_all,
    },
    tree,
};

/// Runs a future to its end on a runtime of its own.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    janusfs_env::tasks::block_on(runtime.handle(), future)
}

/// Opens a namespace over a store.
pub(crate) async fn open<K: Kv>(kv: K) -> Meta<K> {
    Meta::open(Arc::new(kv), config()).await.unwrap()
}

pub(crate) async fn fresh() -> Meta<MemKv> {
    open(MemKv::default()).await
}

pub(crate) fn layout() -> Layout {
    Layout {
        chunk_size_log2: 20,
        chain_table: 1,
        stripe: 1,
        seed: 7,
    }
}

pub(crate) fn config() -> MetaConfig {
    let target = TargetInfo {
        target: TargetId(1),
        node: NodeId(1),
        address: String::new(),
    };
    let chain = ChainInfo {
        chain: ChainId(1),
        version: ChainVersion(1),
        targets: vec![target.target],
    };
    let table = ChainTable {
        version: 1,
        chains: vec![chain],
        targets: vec![target],
    };
    MetaConfig {
        table,
        layout: layout(),
        owner: Credentials::default(),
    }
}

impl<K: Kv> Meta<K> {
    pub(crate) async fn make(
        &self,
        parent: InodeId,
        name: &str,
        kind: FileKind,
    ) -> Result<Opened, FsError> {
        let create = Create {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            kind,
            mode: 0o640,
            rdev: 0,
            who: Credentials { uid: 3, gid: 4 },
            exclusive: true,
        };
        self.create(create).await.map_err(MetaError::into_fs)
    }

    pub(crate) async fn file(&self, parent: InodeId, name: &str) -> InodeId {
        self.make(parent, name, FileKind::Regular)
            .await
            .unwrap()
            .attr
            .inode
    }

    pub(crate) async fn dir(&self, parent: InodeId, name: &str) -> InodeId {
        self.make(parent, name, FileKind::Directory)
            .await
            .unwrap()
            .attr
            .inode
    }

    pub(crate) async fn at(&self, parent: InodeId, name: &str) -> Result<Attr, FsError> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let found = self.lookup(Lookup { parent, name }).await;
        let found = found.and_then(|found| found.ok_or_else(|| FsError::NotFound.into()));
        found.map(|found| found.attr).map_err(MetaError::into_fs)
    }

    pub(crate) async fn write(&self, inode: InodeId, bytes: &[u8]) -> Attr {
        let expected = self.head(inode).await.data_version;
        let bytes = Bytes::copy_from_slice(bytes);
        let size = bytes.len() as u64;
        let write = WriteInline {
            inode,
            expected,
            bytes,
            size,
            durable: false,
        };
        self.write_inline(write).await.unwrap().attr
    }

    pub(crate) async fn head(&self, inode: InodeId) -> Attr {
        self.get_attr(janusfs_wire::meta::GetAttr { inode })
            .await
            .unwrap()
            .attr
    }

    /// Lists a directory, a few entries a page.
    pub(crate) async fn list(&self, inode: InodeId) -> Vec<(Vec<u8>, Attr)> {
        let mut rows = Vec::new();
        let mut after = Bytes::new();
        loop {
            let page = self
                .read_dir(ReadDir {
                    inode,
                    after,
                    limit: 3,
                })
                .await
                .unwrap();
            after = page
                .entries
                .last()
                .map(|entry| entry.cursor.clone())
                .unwrap_or_default();
            rows.extend(
                page.entries
                    .into_iter()
                    .map(|entry| (entry.name.to_vec(), entry.attr)),
            );
            if page.end {
                return rows;
            }
        }
    }

    /// Ends the current epoch and reclaims what its readers have left, without waiting for clocks.
    pub(crate) async fn reclaim_now(&self) -> Vec<BlobId> {
        let current = self.advance_epoch().await.unwrap();
        self.reclaim_orphans(current).await.unwrap();
        *self.advanced.lock() = Some(janusfs_env::clock::now());
        let dead = self.reclaim_step().await.unwrap();
        self.reclaim_done(&dead).await.unwrap();
        dead.into_iter().map(|dead| dead.blob).collect()
    }

    /// Checks the metadata, all steps.
    pub(crate) async fn checked(&self) -> FsckReport {
        let run = janusfs_env::rng::random_u64();
        loop {
            let report = self.fsck(Fsck { run }).await.unwrap();
            if report.done {
                assert_eq!(report.changing, 0);
                return report;
            }
        }
    }

    /// Returns every blob that metadata refers to, with its layout and its length in bytes.
    pub(crate) async fn live_blobs(&self) -> Vec<(BlobId, Layout, u64)> {
        let mut txn = self.kv.begin();
        let mut live = std::collections::BTreeMap::new();
        for (_, row) in scan_all(&mut txn, inode::KIND).await.unwrap() {
            let id = inode::from_row(&row).unwrap().0.attr.inode;
            let record = inode::load(&mut txn, id).await.unwrap();
            for extent in tree::references(&record.content, record.attr.size) {
                let end = extent.blob_offset + extent.len_bytes;
                let known = live.entry(extent.blob).or_insert((extent.layout, 0));
                known.1 = end.max(known.1);
            }
        }
        for (key, row) in scan_all(&mut txn, orphan::KIND).await.unwrap() {
            if let Orphan::Blob(id, released) = orphan::from_row(&key, &row).unwrap().1 {
                live.entry(id).or_insert((released.layout, 0));
            }
        }
        let live = live.into_iter();
        live.map(|(id, (layout, len))| (id, layout, len)).collect()
    }

    /// Fails with the findings when the check has any.
    pub(crate) async fn assert_clean(&self) {
        let report = self.checked().await;
        assert_eq!(report.findings, [], "{} inodes", report.inodes);
    }
}
