//! Write-back of open files: what is dirty, how it reaches chunks, and how it is published.
//!
//! One [`OpenInode`] per inode is shared by all its handles in a client. Its *gate* admits one writer, publisher or
//! truncation at a time and is held across calls; its *state* lock is never held across an await, so readers only ever
//! wait for memory. Lock order: gate, state. Gates of two inodes are never held together.
//!
//! Invariants, with the gate free:
//! - `end` is some exactly while something written is not published.
//! - Dirty bytes are newer than those in flight, which are newer than the chunks.
//! - Bytes leave memory only when every serving replica has them, or when they are cut off by a truncation to zero.
//! - A size is published only when the bytes below it are on stable storage, and bytes are cut off only when the smaller size
//!   is: whatever of the metadata a power cut leaves, its bytes are there.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use janusfs_env::clock;
use janusfs_types::{
    Attr, BlobId, ChunkId, Content, DataVersion, FsError, InodeId, Layout, limits,
};
use janusfs_wire::{
    meta::{CommitWrite, Open, Opened, Spill, SyncMeta, Truncate, Unshare, WriteInline},
    storage::WriteOp,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    EpochPin,
    client::Inner,
    dirty::{Dirty, length},
    object_writer::finished,
    write_out::{abandon, copy, trim, write_ranges},
};

/// Dirty bytes of one inode from which on they are written out in the background.
const WRITE_OUT_BYTES: u64 = 4 << 20;
/// Tries against other clients that change the same file at the same time.
const RACES_MAX: u32 = 16;
/// Age at which dirty bytes of a file that nobody closes are published.
const AGE: Duration = Duration::from_secs(5);

/// Ranges on their way to chunks.
struct Flight {
    ranges: Arc<Vec<(u64, Bytes)>>,
    len_bytes: u64,
    done: Shared<BoxFuture<'static, Result<(), FsError>>>,
}

struct State {
    /// As the service last told.
    attr: Attr,
    content: Arc<Content>,
    dirty: Dirty,
    flight: Option<Flight>,
    /// End of what was written and is not published.
    end: Option<u64>,
    /// Time of the last unpublished write.
    modified_ns: i64,
    /// When the oldest unpublished write was.
    since: Option<Instant>,
}

impl State {
    fn size(&self) -> u64 {
        self.attr.size.max(self.end.unwrap_or(0))
    }

    fn published(&mut self, attr: Attr) {
        self.attr = attr;
        self.end = None;
        self.since = None;
    }
}

/// What a read needs, taken in one moment.
pub(crate) struct View {
    pub(crate) content: Arc<Content>,
    /// Where the read ends, clipped at the size.
    pub(crate) end: u64,
    pub(crate) in_flight: Vec<(u64, Bytes)>,
    pub(crate) dirty: Vec<(u64, Bytes)>,
}

/// An inode that this client has open.
pub(crate) struct OpenInode {
    client: Arc<Inner>,
    inode: InodeId,
    /// Of the lease it was opened under.
    generation: u64,
    gate: Semaphore,
    state: Mutex<State>,
    _pin: EpochPin,
}

impl OpenInode {
    pub(crate) fn new(client: Arc<Inner>, opened: Opened, generation: u64) -> Self {
        let pin = client.lease.pin(opened.epoch);
        let state = State {
            attr: opened.attr,
            content: Arc::new(opened.content),
            dirty: Dirty::default(),
            flight: None,
            end: None,
            modified_ns: 0,
            since: None,
        };
        Self {
            inode: opened.attr.inode,
            client,
            generation,
            gate: Semaphore::new(1),
            state: Mutex::new(state),
            _pin: pin,
        }
    }

    pub(crate) fn inode(&self) -> InodeId {
        self.inode
    }

    pub(crate) fn client(&self) -> &Inner {
        &self.client
    }

    /// Fails when the lease that this inode was opened under is lost.
    pub(crate) fn check(&self) -> Result<(), FsError> {
        if self.generation == self.client.lease.generation() {
            Ok(())
        } else {
            Err(FsError::Stale)
        }
    }

    /// Waits for the gate.
    pub(crate) async fn enter(&self) -> Result<SemaphorePermit<'_>, FsError> {
        let permit = self.gate.acquire().await.map_err(|_| FsError::Stale)?;
        self.check()?;
        Ok(permit)
    }

    pub(crate) fn attr(&self) -> Attr {
        let mut attr = self.state.lock().attr;
        self.overlay(&mut attr);
        attr
    }

    pub(crate) fn overlay(&self, attr: &mut Attr) {
        let state = self.state.lock();
        if let Some(end) = state.end {
            attr.size = attr.size.max(end);
            attr.times.modified_ns = state.modified_ns;
            attr.times.changed_ns = state.modified_ns;
        }
    }

    pub(crate) fn view(&self, offset: u64, len: u32) -> View {
        let state = self.state.lock();
        let end = offset.saturating_add(u64::from(len)).min(state.size());
        let content = Arc::clone(&state.content);
        let in_flight = match &state.flight {
            Some(flight) => patches(&flight.ranges, offset, end),
            None => Vec::new(),
        };
        let dirty = if offset < end {
            state.dirty.patches(offset, end)
        } else {
            Vec::new()
        };
        View {
            content,
            end,
            in_flight,
            dirty,
        }
    }

    /// Takes over what the service says the file is now. Gate held.
    pub(crate) fn adopt(&self, opened: Opened) {
        let mut state = self.state.lock();
        state.attr = opened.attr;
        state.content = Arc::new(opened.content);
    }

    /// Asks the service what the file is now. Gate held.
    pub(crate) async fn reopen(&self) -> Result<(), FsError> {
        let message = Open {
            inode: self.inode,
            client: self.client.id,
            session: None,
        };
        let opened = self.client.call(&message).await?;
        self.adopt(opened);
        Ok(())
    }

    /// Buffers a write, at the end for no offset; returns the end of what was written.
    pub(crate) async fn write(&self, offset: Option<u64>, data: &[u8]) -> Result<u64, FsError> {
        self.client.files.relieve(length(data.len())).await?;
        let _permit = self.enter().await?;
        if self.state.lock().dirty.len_bytes() >= WRITE_OUT_BYTES {
            // An earlier write-out failed: nothing more is taken until one works.
            self.start_write_out().await?;
        }
        let (end, full) = self.buffer(offset, data)?;
        if full {
            self.start_write_out().await?;
        }
        Ok(end)
    }

    /// Publishes what is dirty; `durable`: all of the file is then on stable storage.
    pub(crate) async fn flush(&self, durable: bool) -> Result<(), FsError> {
        let _permit = self.enter().await?;
        self.publish(durable).await
    }

    /// Sets the size and trims chunks past it.
    pub(crate) async fn truncate(&self, size: u64) -> Result<Attr, FsError> {
        let _permit = self.enter().await?;
        // When the blob goes with all its bytes, what was written need not be published first. A blob of published
        // size 0 stays, so what lies in it must count before it can be cut off.
        let drop_all = size == 0 && {
            let state = self.state.lock();
            state.attr.size > 0 || matches!(&*state.content, Content::Inline(_))
        };
        if drop_all {
            // A failure does not matter: its ranges are dirty again. But nothing may arrive afterwards.
            let _ = self.settle().await;
        } else {
            self.publish(false).await?;
        }
        let truncated = self
            .client
            .call(&Truncate {
                inode: self.inode,
                size,
            })
            .await?;
        let attr = truncated.file.attr;
        if drop_all {
            self.discard();
        }
        self.adopt(truncated.file.clone());
        if truncated.trim {
            trim(&self.client, &truncated.file).await?;
        }
        Ok(attr)
    }

    pub(crate) fn has_aged(&self) -> bool {
        let since = self.state.lock().since;
        since.is_some_and(|since| clock::now().saturating_duration_since(since) > AGE)
    }

    /// Publishes unless somebody is at it.
    pub(crate) async fn publish_aged(&self) {
        let Ok(_permit) = self.gate.try_acquire() else {
            return;
        };
        if self.check().is_err() || !self.has_aged() {
            return;
        }
        if let Err(error) = self.publish(false).await {
            tracing::warn!(inode = %self.inode, %error, "dirty bytes wait in memory");
        }
    }

    fn buffer(&self, offset: Option<u64>, data: &[u8]) -> Result<(u64, bool), FsError> {
        let mut state = self.state.lock();
        let offset = offset.unwrap_or_else(|| state.size());
        let end = offset.saturating_add(length(data.len()));
        if end > limits::FILE_SIZE_MAX_BYTES {
            return Err(FsError::FileTooLarge);
        }
        if data.is_empty() {
            return Ok((end, false));
        }
        let before = state.dirty.len_bytes();
        state.dirty.write(offset, data);
        let held = state.dirty.len_bytes();
        self.client.files.held(held - before);
        state.end = Some(state.end.unwrap_or(0).max(end));
        state.modified_ns = clock::now_ns();
        state.since.get_or_insert_with(clock::now);
        Ok((end, held >= WRITE_OUT_BYTES))
    }

    /// Forgets everything unpublished. Gate held, nothing in flight.
    fn discard(&self) {
        let mut state = self.state.lock();
        self.client.files.released(state.dirty.len_bytes());
        state.dirty = Dirty::default();
        state.end = None;
        state.since = None;
    }

    /// Sends everything dirty to its chunks in the background, after the write-out before it. Gate held.
    async fn start_write_out(&self) -> Result<(), FsError> {
        let (blob, layout) = self.owned_blob().await?;
        self.settle().await?;
        self.launch(blob, layout, true);
        Ok(())
    }

    /// Puts dirty ranges into flight; in the background they move by themselves, else with [`Self::settle`]. Gate held,
    /// nothing in flight.
    fn launch(&self, blob: BlobId, layout: Layout, background: bool) {
        let mut state = self.state.lock();
        let len_bytes = state.dirty.len_bytes();
        if len_bytes == 0 {
            return;
        }
        let ranges = Arc::new(state.dirty.take());
        let work = write_ranges(Arc::clone(&self.client), blob, layout, Arc::clone(&ranges));
        let done = if background {
            let task = self.client.spawn(work);
            async move { finished(task.await) }.boxed().shared()
        } else {
            work.boxed().shared()
        };
        state.flight = Some(Flight {
            ranges,
            len_bytes,
            done,
        });
    }

    /// Waits for the write-out under way. If it failed, its ranges are dirty again, below newer ones. Gate held.
    async fn settle(&self) -> Result<(), FsError> {
        let Some(done) = self
            .state
            .lock()
            .flight
            .as_ref()
            .map(|flight| flight.done.clone())
        else {
            return Ok(());
        };
        let result = done.await;
        let mut state = self.state.lock();
        if let Some(flight) = state.flight.take() {
            let before = state.dirty.len_bytes() + flight.len_bytes;
            if result.is_err() {
                state.dirty.put_back(&flight.ranges);
            }
            self.client.files.released(before - state.dirty.len_bytes());
        }
        result
    }

    /// Gate held.
    async fn publish(&self, durable: bool) -> Result<(), FsError> {
        for _ in 0..RACES_MAX {
            // What a write-out in the background failed on is dirty again, and tried again below: that one counts.
            let _ = self.settle().await;
            let (content, attr, end) = {
                let state = self.state.lock();
                (Arc::clone(&state.content), state.attr, state.end)
            };
            let Some(end) = end else {
                return if durable {
                    self.harden(&content).await
                } else {
                    Ok(())
                };
            };
            let size = attr.size.max(end);
            let done = match &*content {
                Content::Inline(bytes) if size <= length(limits::INLINE_MAX_BYTES) => {
                    self.publish_inline(bytes, attr.data_version, size, durable)
                        .await?
                }
                Content::Blob { blob, layout } => {
                    self.publish_blob(*blob, *layout, &attr, end, durable)
                        .await?
                }
                Content::Inline(_) | Content::Extents(_) => {
                    self.owned_blob().await?;
                    false
                }
            };
            if done {
                return Ok(());
            }
        }
        Err(FsError::Busy)
    }

    /// Makes a file without unpublished writes durable, whoever wrote it: data first, then metadata.
    async fn harden(&self, content: &Content) -> Result<(), FsError> {
        if let Content::Blob { layout, .. } = content {
            self.client.chains.sync(layout).await?;
        }
        self.client.call(&SyncMeta {}).await
    }

    /// Replaces the inline bytes. False: another client was faster, look again.
    async fn publish_inline(
        &self,
        old: &[u8],
        expected: DataVersion,
        size: u64,
        durable: bool,
    ) -> Result<bool, FsError> {
        let mut bytes = old.to_vec();
        for (offset, patch) in self.state.lock().dirty.patches(0, size) {
            let offset = usize::try_from(offset).expect("inline content fits in memory");
            let end = offset + patch.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset..end].copy_from_slice(&patch);
        }
        let payload = Bytes::from(bytes.clone());
        let message = WriteInline {
            inode: self.inode,
            expected,
            bytes: payload,
            size,
            durable,
        };
        match self.client.call(&message).await {
            Ok(found) => {
                let mut state = self.state.lock();
                self.client.files.released(state.dirty.len_bytes());
                state.dirty = Dirty::default();
                state.content = Arc::new(Content::Inline(bytes));
                state.published(found.attr);
                Ok(true)
            }
            Err(FsError::PreconditionFailed) => {
                self.reopen().await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes out what is dirty and publishes size, times and version. False: the content is another one now.
    async fn publish_blob(
        &self,
        blob: BlobId,
        layout: Layout,
        attr: &Attr,
        end: u64,
        durable: bool,
    ) -> Result<bool, FsError> {
        self.launch(blob, layout, false);
        self.settle().await?;
        // The commit may become stable at any time, and a size without its bytes would read as zeros after a power cut.
        self.client.chains.sync(&layout).await?;
        let message = CommitWrite {
            inode: self.inode,
            end,
            durable,
        };
        match self.client.call(&message).await {
            Ok(found) => {
                let foreign = found.attr.data_version != attr.data_version.next();
                self.state.lock().published(found.attr);
                if foreign {
                    self.reopen().await?;
                }
                Ok(true)
            }
            Err(FsError::PreconditionFailed | FsError::Invalid(_)) => {
                // Another client truncated to zero: these writes came before that, and went with the old blob.
                self.reopen().await?;
                let mut state = self.state.lock();
                if !matches!(&*state.content, Content::Blob { blob: now, .. } if *now == blob) {
                    state.end = None;
                    state.since = None;
                    return Ok(!durable);
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the blob that this inode owns alone, making it first where the bytes are inline or shared. Gate held.
    async fn owned_blob(&self) -> Result<(BlobId, Layout), FsError> {
        for _ in 0..RACES_MAX {
            let (content, attr) = {
                let state = self.state.lock();
                (Arc::clone(&state.content), state.attr)
            };
            match &*content {
                Content::Blob { blob, layout } => return Ok((*blob, *layout)),
                Content::Inline(bytes) => self.spill(bytes, attr.data_version).await?,
                Content::Extents(_) => self.unshare(&content, &attr).await?,
            }
        }
        Err(FsError::Busy)
    }

    /// Moves inline bytes to a blob; on a lost race only looks again.
    async fn spill(&self, bytes: &[u8], expected: DataVersion) -> Result<(), FsError> {
        let client = &self.client;
        let id = client.ids.alloc(&client.meta, client.id).await?;
        let (blob, layout) = (id.blob(), client.layout_for(id.blob()));
        if !bytes.is_empty() {
            let chunk = ChunkId { blob, index: 0 };
            let payload = vec![Bytes::copy_from_slice(bytes)];
            match client
                .chains
                .write(chunk, &layout, WriteOp::Create, payload)
                .await
            {
                Ok(_) | Err(FsError::Exists) => {}
                Err(error) => return Err(error),
            }
            // The move may become durable at any time, and with it the inline bytes go.
            client.chains.sync(&layout).await?;
        }
        let message = Spill {
            inode: self.inode,
            expected,
            blob,
            layout,
        };
        let result = client.call(&message).await;
        self.replaced(result, blob, layout).await
    }

    /// Copies shared bytes to a blob of this inode's own; on a lost race only looks again.
    async fn unshare(&self, content: &Content, attr: &Attr) -> Result<(), FsError> {
        let client = &self.client;
        let id = client.ids.alloc(&client.meta, client.id).await?;
        let (blob, layout) = (id.blob(), client.layout_for(id.blob()));
        if let Err(error) = copy(client, content, attr.size, blob, layout).await {
            abandon(client, blob, layout).await;
            return Err(error);
        }
        client.chains.sync(&layout).await?;
        let message = Unshare {
            inode: self.inode,
            expected: attr.data_version,
            blob,
            layout,
        };
        let result = client.call(&message).await;
        self.replaced(result, blob, layout).await
    }

    /// Takes over the outcome of giving the inode a new blob.
    async fn replaced(
        &self,
        result: Result<Opened, FsError>,
        blob: BlobId,
        layout: Layout,
    ) -> Result<(), FsError> {
        match result {
            Ok(opened) => {
                self.adopt(opened);
                Ok(())
            }
            Err(FsError::PreconditionFailed) => {
                abandon(&self.client, blob, layout).await;
                self.reopen().await
            }
            // The outcome may be unknown: the blob is left to the inode or to reclamation.
            Err(error) => Err(error),
        }
    }
}

impl Drop for OpenInode {
    fn drop(&mut self) {
        self.client.files.forget(self.inode);
        let state = self.state.get_mut();
        let in_flight = state.flight.as_ref().map_or(0, |flight| flight.len_bytes);
        let lost = state.dirty.len_bytes() + in_flight;
        if lost > 0 {
            self.client.files.released(lost);
            tracing::error!(inode = %self.inode, lost_bytes = lost, "closed with unwritten bytes");
        }
    }
}

/// The open inodes of a client, and the bytes they hold.
#[derive(Default)]
pub(crate) struct Files {
    by_inode: Mutex<HashMap<InodeId, Weak<OpenInode>>>,
    held_bytes: AtomicU64,
}

impl Files {
    /// Returns the open inode, unless its lease is lost.
    pub(crate) fn find(&self, inode: InodeId) -> Option<Arc<OpenInode>> {
        let open = self.by_inode.lock().get(&inode).and_then(Weak::upgrade)?;
        open.check().is_ok().then_some(open)
    }

    /// Returns the open inode that handles shall share: the one there is, else `fresh`.
    pub(crate) fn attach(&self, fresh: &Arc<OpenInode>) -> Arc<OpenInode> {
        let mut by_inode = self.by_inode.lock();
        let known = by_inode.get(&fresh.inode).and_then(Weak::upgrade);
        let reusable = known.as_ref().is_some_and(|open| open.check().is_ok());
        if !reusable {
            by_inode.insert(fresh.inode, Arc::downgrade(fresh));
        }
        // Dropping the last reference takes this lock again.
        drop(by_inode);
        known
            .filter(|_| reusable)
            .unwrap_or_else(|| Arc::clone(fresh))
    }

    /// Returns every open inode.
    pub(crate) fn all(&self) -> Vec<Arc<OpenInode>> {
        self.by_inode
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Waits until `more` bytes may be held, publishing files where they may not. No gate held.
    async fn relieve(&self, more: u64) -> Result<(), FsError> {
        let over = || {
            self.held_bytes.load(Ordering::Relaxed).saturating_add(more)
                > limits::CLIENT_DIRTY_MAX_BYTES
        };
        if !over() {
            return Ok(());
        }
        let mut failure = None;
        for open in self.all() {
            // Bytes under a lost lease cannot leave; they go with their handles.
            if open.check().is_err() {
                continue;
            }
            match open.flush(false).await {
                Ok(()) if !over() => return Ok(()),
                Ok(()) => {}
                Err(error) => failure = Some(error),
            }
        }
        // Others may have written meanwhile; what holds this one back for good is only bytes that cannot leave.
        match failure {
            Some(error) if over() => Err(error),
            _ => Ok(()),
        }
    }

    fn held(&self, bytes: u64) {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn released(&self, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Drops the entry of an inode that nobody has open any more.
    fn forget(&self, inode: InodeId) {
        let mut by_inode = self.by_inode.lock();
        if by_inode
            .get(&inode)
            .is_some_and(|open| open.strong_count() == 0)
        {
            by_inode.remove(&inode);
        }
    }
}

/// Returns the parts of ordered ranges inside `[offset, end)`.
fn patches(ranges: &[(u64, Bytes)], offset: u64, end: u64) -> Vec<(u64, Bytes)> {
    let cut = |(start, bytes): &(u64, Bytes)| {
        let (from, to) = ((*start).max(offset), (start + length(bytes.len())).min(end));
        let within = |at: u64| usize::try_from(at - start).expect("a range in memory fits a usize");
        (from < to).then(|| (from, bytes.slice(within(from)..within(to))))
    };
    ranges.iter().filter_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_cut_to_the_range() {
        let ranges = [
            (0, Bytes::from_static(b"abcd")),
            (10, Bytes::from_static(b"efgh")),
        ];
        let cut = patches(&ranges, 2, 12);
        assert_eq!(
            cut,
            [
                (2, Bytes::from_static(b"cd")),
                (10, Bytes::from_static(b"ef"))
            ]
        );
        assert!(patches(&ranges, 4, 10).is_empty());
    }
}
