//! Streams the bytes of a new object: inline while small, else into the chunks of a fresh blob while they arrive.
//!
//! Invariants: bytes are never copied, only cut. Writes of one chunk follow one another; at most [`CHUNKS_IN_FLIGHT`]
//! chunks are under way, each with a bounded queue, so a slow disk stalls the sender.

use std::{collections::VecDeque, fmt};

use bytes::Bytes;
use janusfs_types::{ChunkId, Content, FsError, Layout, limits};
use janusfs_wire::{meta::NewContent, storage::WriteOp};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{AllocatedId, Client, dirty::length};

const CHUNKS_IN_FLIGHT: usize = 4;
/// Bytes of one chunk write: hashing the next piece overlaps with writing this one.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces that wait for their chunk's turn, beside the one being written.
const PIECES_WAITING: usize = 2;

/// A finished object that has no name yet.
#[derive(Debug)]
pub struct WrittenObject {
    /// The number of the inode, and of its blob. Keep it until the object is published.
    pub id: AllocatedId,
    /// Where the bytes are; a blob is on stable storage.
    pub content: NewContent,
}

/// Takes an object's bytes. Dropped without [`ObjectWriter::finish`], it removes what it wrote in the background.
pub struct ObjectWriter {
    client: Client,
    always_blob: bool,
    size: u64,
    expected_size: Option<u64>,
    /// Received and not yet handed to a chunk.
    pending: VecDeque<Bytes>,
    pending_bytes: u64,
    upload: Option<Upload>,
    /// Whether every byte taken is on stable storage.
    stable: bool,
}

struct Upload {
    id: AllocatedId,
    layout: Layout,
    /// Bytes handed to chunks.
    at: u64,
    current: Option<ChunkTask>,
    /// Chunks whose last piece is handed over, oldest first.
    closing: VecDeque<JoinHandle<Result<(), FsError>>>,
}

struct ChunkTask {
    pieces: mpsc::Sender<(u32, Vec<Bytes>)>,
    handle: JoinHandle<Result<(), FsError>>,
}

impl ObjectWriter {
    pub(crate) fn new(client: Client, always_blob: bool) -> Self {
        let pending = VecDeque::new();
        Self {
            client,
            always_blob,
            size: 0,
            expected_size: None,
            pending,
            pending_bytes: 0,
            upload: None,
            stable: false,
        }
    }

    /// Tells how long the object is expected to be, before its first byte. A hint: its chunks are placed by it.
    pub fn expect(&mut self, size: u64) {
        self.expected_size = Some(size);
    }

    /// Takes the next bytes; waits while too much is under way.
    ///
    /// # Errors
    /// What writing an earlier piece met, [`FsError::FileTooLarge`]. The object cannot be finished then.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), FsError> {
        let len = length(bytes.len());
        if len == 0 {
            return Ok(());
        }
        self.size += len;
        self.stable = false;
        if self.size > limits::FILE_SIZE_MAX_BYTES {
            return Err(FsError::FileTooLarge);
        }
        self.pending.push_back(bytes);
        self.pending_bytes += len;
        if self.is_inline() {
            return Ok(());
        }
        loop {
            let piece = self.upload().await?.next_piece();
            if self.pending_bytes < piece {
                return Ok(());
            }
            self.hand_over(piece).await?;
        }
    }

    /// Waits until every byte taken so far is written and on stable storage; bytes that go inline wait for
    /// [`Self::finish`]. For the end of an object: a caller who has to judge the bytes first does it meanwhile.
    ///
    /// # Errors
    /// What writing met. The object cannot be finished then.
    pub async fn flush(&mut self) -> Result<(), FsError> {
        if self.stable || self.is_inline() {
            return Ok(());
        }
        self.upload().await?;
        while self.pending_bytes > 0 {
            let piece = self.upload().await?.next_piece().min(self.pending_bytes);
            let upload = self.upload().await?;
            // The last bytes of a small object are written from here: a task would only add a hop.
            if upload.current.is_none() && self.pending_bytes == piece {
                self.write_here(piece).await?;
            } else {
                self.hand_over(piece).await?;
            }
        }
        let upload = self.upload().await?;
        if let Some(task) = upload.current.take() {
            upload.closing.push_back(task.handle);
        }
        while let Some(result) = upload.wait_oldest().await {
            result?;
        }
        let layout = upload.layout;
        if self.size > 0 {
            self.client.inner.chains.sync(&layout).await?;
        }
        self.stable = true;
        Ok(())
    }

    /// Waits until every chunk is written and on stable storage. The returned number must live until the object is
    /// published.
    ///
    /// # Errors
    /// What writing met; what was written is then removed in the background.
    pub async fn finish(mut self) -> Result<WrittenObject, FsError> {
        if self.is_inline() {
            let id = self.client.alloc_id().await?;
            let bytes = self.take(self.pending_bytes).concat();
            let content = NewContent {
                content: Content::Inline(bytes),
                size: self.size,
            };
            return Ok(WrittenObject { id, content });
        }
        self.flush().await?;
        let Upload { id, layout, .. } = self.upload.take().expect("taken only here and on drop");
        let content = Content::Blob {
            blob: id.blob(),
            layout,
        };
        Ok(WrittenObject {
            id,
            content: NewContent {
                content,
                size: self.size,
            },
        })
    }

    fn is_inline(&self) -> bool {
        let fits = usize::try_from(self.size).is_ok_and(|size| size <= limits::INLINE_MAX_BYTES);
        fits && self.upload.is_none() && !self.always_blob
    }

    async fn upload(&mut self) -> Result<&mut Upload, FsError> {
        if self.upload.is_none() {
            let id = self.client.alloc_id().await?;
            let layout = self.client.inner.layout_for(id.blob());
            let closing = VecDeque::new();
            self.upload = Some(Upload {
                id,
                layout,
                at: 0,
                current: None,
                closing,
            });
        }
        Ok(self.upload.as_mut().expect("just made"))
    }

    /// Passes the next `len` bytes to their chunk's task, starting it where it is the chunk's first piece.
    async fn hand_over(&mut self, len: u64) -> Result<(), FsError> {
        let Self {
            client,
            pending,
            pending_bytes,
            upload: Some(upload),
            expected_size,
            ..
        } = self
        else {
            return Err(FsError::Io("the object was given up after an error".into()));
        };
        let (chunk, offset) = upload.place();
        if upload.current.is_none() {
            while upload.closing.len() >= CHUNKS_IN_FLIGHT {
                if let Some(result) = upload.wait_oldest().await {
                    result?;
                }
            }
            let expected_len = upload.expected_len(*expected_size, len);
            upload.current = Some(start_chunk(client, chunk, upload.layout, expected_len));
        }
        let task = upload.current.as_mut().expect("started above");
        let Ok(slot) = task.pieces.reserve().await else {
            // The task ends before its queue only by an error; ask it which.
            let error = finished((&mut task.handle).await).err();
            upload.current = None;
            return Err(error.unwrap_or_else(|| FsError::Io("a chunk write ended early".into())));
        };
        slot.send((offset, cut(pending, len)));
        *pending_bytes -= len;
        upload.advance(len);
        Ok(())
    }

    async fn write_here(&mut self, len: u64) -> Result<(), FsError> {
        let pieces = self.take(len);
        let client = self.client.clone();
        let upload = self.upload().await?;
        let (chunk, offset) = upload.place();
        upload.at += len;
        client
            .inner
            .chains
            .write(chunk, &upload.layout, WriteOp::Write { offset }, pieces)
            .await?;
        Ok(())
    }

    fn take(&mut self, len: u64) -> Vec<Bytes> {
        self.pending_bytes -= len;
        cut(&mut self.pending, len)
    }
}

impl Upload {
    /// Counts bytes as handed over; at the end of a chunk its task gets no more.
    fn advance(&mut self, len: u64) {
        self.at += len;
        if self.at.is_multiple_of(self.layout.chunk_size_bytes())
            && let Some(task) = self.current.take()
        {
            self.closing.push_back(task.handle);
        }
    }

    /// Length of the next piece, up to the end of its chunk.
    fn next_piece(&self) -> u64 {
        let size = self.layout.chunk_size_bytes();
        PIECE_BYTES.min(size - self.at % size)
    }

    /// Returns the length that the chunk at hand will probably reach, whose first piece has `first` bytes.
    fn expected_len(&self, size: Option<u64>, first: u64) -> u32 {
        let chunk_size = self.layout.chunk_size_bytes();
        let expected = match size {
            Some(size) => size.saturating_sub(self.at).min(chunk_size),
            // A shorter piece is the object's last one.
            None if first < PIECE_BYTES => first,
            None => chunk_size,
        };
        u32::try_from(expected).expect("a chunk is at most 64 MiB")
    }

    fn place(&self) -> (ChunkId, u32) {
        let size = self.layout.chunk_size_bytes();
        let index = u32::try_from(self.at / size).expect("the file size limit bounds the index");
        let offset = u32::try_from(self.at % size).expect("a chunk is at most 64 MiB");
        (
            ChunkId {
                blob: self.id.blob(),
                index,
            },
            offset,
        )
    }

    /// Waits for the chunk that was closed first. Cancel-safe: it stays in the queue until it has ended.
    async fn wait_oldest(&mut self) -> Option<Result<(), FsError>> {
        let result = finished(self.closing.front_mut()?.await);
        self.closing.pop_front();
        Some(result)
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        if upload.at == 0 && upload.current.is_none() {
            return;
        }
        let client = self.client.clone();
        let inner = std::sync::Arc::clone(&client.inner);
        inner.spawn(async move {
            if let Some(task) = upload.current.take() {
                upload.closing.push_back(task.handle);
            }
            // Their results do not matter any more, but a write after the removal would leave garbage.
            while upload.wait_oldest().await.is_some() {}
            let blob = upload.id.blob();
            if let Err(error) = client.remove_blob(blob, upload.layout).await {
                tracing::info!(%blob, %error, "an abandoned blob is left to reclamation");
            }
        });
    }
}

impl fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

fn start_chunk(client: &Client, chunk: ChunkId, layout: Layout, expected_len: u32) -> ChunkTask {
    let (pieces, mut queue) = mpsc::channel::<(u32, Vec<Bytes>)>(PIECES_WAITING);
    let inner = std::sync::Arc::clone(&client.inner);
    let handle = client.inner.spawn(async move {
        while let Some((offset, pieces)) = queue.recv().await {
            inner
                .chains
                .write_growing(
                    chunk,
                    &layout,
                    WriteOp::Write { offset },
                    pieces,
                    expected_len,
                )
                .await?;
        }
        Ok(())
    });
    ChunkTask { pieces, handle }
}

/// Flattens a task's end into its result.
pub(crate) fn finished(
    ended: Result<Result<(), FsError>, tokio::task::JoinError>,
) -> Result<(), FsError> {
    ended.unwrap_or_else(|error| Err(FsError::Io(format!("a chunk write did not end: {error}"))))
}

/// Cuts the first `len` bytes off a list.
fn cut(list: &mut VecDeque<Bytes>, mut len: u64) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while len > 0
        && let Some(mut first) = list.pop_front()
    {
        let step = usize::try_from(len).unwrap_or(usize::MAX).min(first.len());
        let piece = first.split_to(step);
        if !first.is_empty() {
            list.push_front(first);
        }
        len -= length(step);
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_keeps_every_byte_in_order() {
        let mut list: VecDeque<Bytes> = [b"abc" as &[u8], b"defg", b"h"]
            .map(Bytes::from_static)
            .into();
        assert_eq!(cut(&mut list, 4), [&b"abc"[..], b"d"]);
        assert_eq!(cut(&mut list, 3), [&b"efg"[..]]);
        assert_eq!(cut(&mut list, 9), [&b"h"[..]]);
        assert!(list.is_empty());
    }
}
