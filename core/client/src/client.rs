//! The client as the doors hold it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use janusfs_chain_client::ChainClient;
use janusfs_env::{clock, rng, tasks};
use janusfs_rpc::{Caller, Peer};
use janusfs_types::{
    Attr, BlobId, ChainTable, ChunkId, ClientId, Content, Epoch, FsError, InodeId, Layout,
    SessionId, TargetId,
};
use janusfs_wire::{
    Method,
    meta::{Hello, Open, Opened, Truncate},
    storage::{ChunkStatus, ScrubStep, TargetUsage},
};
use parking_lot::Mutex;
use tokio::{runtime::Handle, task::JoinHandle};

use crate::{
    AllocatedId, CacheLease, EpochPin, File, ForgetfulCache, ObjectWriter,
    cache_lease::{self, CacheLeases},
    ids::Ids,
    lease::{self, Lease},
    read, retry,
    write_back::{Files, OpenInode},
    write_out::trim,
};

/// One client of a cluster: a mount, a gateway, a tool. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) id: ClientId,
    pub(crate) meta: Peer,
    pub(crate) chains: ChainClient,
    pub(crate) ids: Arc<Ids>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) files: Files,
    pub(crate) cache_leases: CacheLeases,
    handle: Handle,
    /// For new blobs; the seed is each blob's own.
    layout: Layout,
    next_session: AtomicU64,
    /// What keeps the lease and watches for changes.
    background: Mutex<Vec<JoinHandle<()>>>,
}

impl Inner {
    pub(crate) async fn call<M: Method>(&self, message: &M) -> Result<M::Reply, FsError> {
        let (reply, _) = self.call_leased(message, false).await?;
        Ok(reply)
    }

    async fn call_leased<M: Method>(
        &self,
        message: &M,
        wants_lease: bool,
    ) -> Result<(M::Reply, CacheLease), FsError> {
        let caller = Caller::new(self.id, wants_lease);
        self.cache_leases.call(&self.meta, caller, message).await
    }

    /// Returns the layout for a new blob. Its seed follows the number, so that blobs spread over the chains.
    pub(crate) fn layout_for(&self, blob: BlobId) -> Layout {
        let seed = u32::try_from(blob.0 & u64::from(u32::MAX)).expect("masked to 32 bits");
        Layout {
            seed,
            ..self.layout
        }
    }

    /// Starts a task on the client's runtime, from whatever thread.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _context = self.handle.enter();
        tasks::spawn(future)
    }
}

/// Calls in the name of a client, for which the service keeps account of leases.
pub(crate) async fn call<M: Method>(
    meta: &Peer,
    client: ClientId,
    message: &M,
) -> Result<M::Reply, FsError> {
    let (reply, _) = retry::call_as(meta, Caller::new(client, false), message).await?;
    Ok(reply)
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.background.get_mut() {
            task.abort();
        }
    }
}

impl Client {
    /// Introduces a new client to the cluster and starts its heartbeat on the runtime of `handle`. `meta` is the way to
    /// the metadata service, `storage` gives the way to a target's address ("" is in process).
    ///
    /// # Errors
    /// [`FsError::Unavailable`] when the metadata service does not answer or knows no serving target.
    pub async fn connect(
        meta: Peer,
        storage: Arc<dyn Fn(&str) -> Peer + Send + Sync>,
        handle: Handle,
    ) -> Result<Self, FsError> {
        let id = ClientId(rng::random_u64());
        let asked = clock::now();
        let welcome = call(&meta, id, &Hello { client: id }).await?;
        let inner = Arc::new(Inner {
            id,
            meta,
            chains: ChainClient::new(id, welcome.table, storage)?,
            ids: Ids::new(),
            lease: Lease::new(asked, welcome.epoch),
            files: Files::default(),
            cache_leases: CacheLeases::default(),
            handle,
            layout: welcome.layout,
            next_session: AtomicU64::new(1),
            background: Mutex::new(Vec::new()),
        });
        let heartbeat = inner.spawn(lease::keep(Arc::downgrade(&inner)));
        inner.background.lock().push(heartbeat);
        Ok(Self { inner })
    }

    /// Returns the client's random number.
    #[must_use]
    pub fn id(&self) -> ClientId {
        self.inner.id
    }

    /// Returns the runtime that the client's own tasks run on.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.inner.handle
    }

    /// Calls the metadata service. Busy is retried within the deadline, an unknown outcome only where repeating is
    /// harmless.
    ///
    /// # Errors
    /// What the service answered; [`FsError::Unavailable`] when it did not: a change may have been applied.
    pub async fn call<M: Method>(&self, message: &M) -> Result<M::Reply, FsError> {
        self.inner.call(message).await
    }

    /// As [`Self::call`], with the lease under which a cache may believe the answer. There is none until
    /// [`Self::serve_cache`].
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_leased<M: Method>(
        &self,
        message: &M,
    ) -> Result<(M::Reply, CacheLease), FsError> {
        self.inner.call_leased(message, true).await
    }

    /// Tells `cache`, until the client is gone, what to forget before its lease ends.
    pub fn serve_cache(&self, cache: Arc<dyn ForgetfulCache>) {
        let inner = &self.inner;
        let (id, meta) = (inner.id, Arc::clone(&inner.meta));
        let watch = cache_lease::keep_watching(id, meta, Arc::downgrade(inner), cache);
        let watch = inner.spawn(watch);
        inner.background.lock().push(watch);
    }

    /// Runs `hand_over` with the time for which the answers of a lease may still be believed; zero: not at all. They must
    /// be on their way to the cache when it returns, before anything that it is told to forget later.
    pub fn hand_over<T>(&self, lease: CacheLease, hand_over: impl FnOnce(Duration) -> T) -> T {
        self.inner.cache_leases.hand_over(lease, hand_over)
    }

    /// Hands out a fresh number for an inode and its blob.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn alloc_id(&self) -> Result<AllocatedId, FsError> {
        self.inner.ids.alloc(&self.inner.meta, self.inner.id).await
    }

    /// Holds back the reclamation of what was read in `epoch`, while the pin lives.
    #[must_use]
    pub fn pin(&self, epoch: Epoch) -> EpochPin {
        self.inner.lease.pin(epoch)
    }

    /// Reads `[offset, offset + len)` of a file of `size` bytes, clipped at its size. Holes give zeros; every byte is
    /// verified. Chunks are read in parallel; the whole answer is in memory at once.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when no replica had good bytes, [`FsError::Unavailable`], or [`FsError::Stale`] when the
    /// client lost its lease meanwhile.
    pub async fn read(
        &self,
        content: &Content,
        size: u64,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Bytes>, FsError> {
        read::read(&self.inner, content, size, offset, len).await
    }

    /// Starts a new object: inline if it stays small, else a fresh blob.
    #[must_use]
    pub fn object_writer(&self) -> ObjectWriter {
        ObjectWriter::new(self.clone(), false)
    }

    /// As [`Self::object_writer`], but always a blob, whatever the size: for parts of a multipart upload.
    #[must_use]
    pub fn object_writer_blob(&self) -> ObjectWriter {
        ObjectWriter::new(self.clone(), true)
    }

    /// Removes every chunk of a blob that was never published.
    ///
    /// # Errors
    /// [`FsError::Unavailable`]; what is left is reclaimed as garbage.
    pub async fn remove_blob(&self, blob: BlobId, layout: Layout) -> Result<(), FsError> {
        self.inner.chains.remove(blob, &layout, 0).await
    }

    /// Returns the figures of every storage target.
    ///
    /// # Errors
    /// [`FsError::Unavailable`].
    pub async fn usage(&self) -> Result<Vec<TargetUsage>, FsError> {
        self.inner.chains.usage().await
    }

    /// Verifies up to `limit` chunks of a target after `after` and mends what another replica can.
    ///
    /// # Errors
    /// [`FsError::NotFound`] for an unknown target, [`FsError::Unavailable`].
    pub async fn scrub(
        &self,
        target: TargetId,
        after: Option<ChunkId>,
        limit: u32,
    ) -> Result<ScrubStep, FsError> {
        self.inner.chains.scrub(target, after, limit).await
    }

    /// Lists up to `limit` chunks of a target after `after`.
    ///
    /// # Errors
    /// As [`Self::scrub`].
    pub async fn list_chunks(
        &self,
        target: TargetId,
        after: Option<ChunkId>,
        limit: u32,
    ) -> Result<Vec<ChunkStatus>, FsError> {
        self.inner.chains.list(target, after, limit).await
    }

    /// Returns the chain table in use.
    #[must_use]
    pub fn chain_table(&self) -> ChainTable {
        self.inner.chains.table()
    }

    /// Opens a file. Handles of one inode in one client share their write-back state and see each other's writes.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; others as [`Self::call`].
    pub async fn open(&self, inode: InodeId, write: bool) -> Result<File, FsError> {
        let session =
            write.then(|| SessionId(self.inner.next_session.fetch_add(1, Ordering::Relaxed)));
        let generation = self.inner.lease.generation();
        let message = Open {
            inode,
            client: self.inner.id,
            session,
        };
        if let Some(open) = self.inner.files.find(inode) {
            let permit = open.enter().await?;
            let opened = self.call(&message).await?;
            open.adopt(opened);
            drop(permit);
            return Ok(File::new(open, write, session));
        }
        let opened = self.call(&message).await?;
        self.attach(opened, generation, write, session).await
    }

    /// Opens the file that a `Create` answered with, without another metadata call. Such a handle has no session of its
    /// own: the pinned epoch keeps the file.
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub async fn open_created(&self, opened: Opened, write: bool) -> Result<File, FsError> {
        self.attach(opened, self.inner.lease.generation(), write, None)
            .await
    }

    /// Lays this client's unpublished size and modification time over attributes of the service.
    #[must_use]
    pub fn overlay(&self, mut attr: Attr) -> Attr {
        if let Some(open) = self.inner.files.find(attr.inode) {
            open.overlay(&mut attr);
        }
        attr
    }

    /// Publishes what this client holds dirty of an inode, if anything.
    ///
    /// # Errors
    /// What writing or publishing met; the bytes stay dirty.
    pub async fn flush_inode(&self, inode: InodeId) -> Result<(), FsError> {
        match self.inner.files.find(inode) {
            Some(open) => open.flush(false).await,
            None => Ok(()),
        }
    }

    /// Sets the size of a file, in step with its open handles, and trims the chunks past it.
    ///
    /// # Errors
    /// [`FsError::FileTooLarge`], and as [`Self::call`].
    pub async fn truncate(&self, inode: InodeId, size: u64) -> Result<Attr, FsError> {
        if let Some(open) = self.inner.files.find(inode) {
            return open.truncate(size).await;
        }
        let truncated = self.call(&Truncate { inode, size }).await?;
        if truncated.trim {
            trim(&self.inner, &truncated.file).await?;
        }
        Ok(truncated.file.attr)
    }

    async fn attach(
        &self,
        opened: Opened,
        generation: u64,
        write: bool,
        session: Option<SessionId>,
    ) -> Result<File, FsError> {
        let fresh = Arc::new(OpenInode::new(Arc::clone(&self.inner), opened, generation));
        let open = self.inner.files.attach(&fresh);
        if !Arc::ptr_eq(&open, &fresh) {
            // Another handle came first and may have moved on since this answer was given.
            let permit = open.enter().await?;
            open.reopen().await?;
            drop(permit);
        }
        Ok(File::new(open, write, session))
    }
}
