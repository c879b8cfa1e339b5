//! Open handles.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use janusfs_types::{Attr, FsError, SessionId};
use janusfs_wire::meta::Close;

use crate::{
    dirty::{cover, lay_over},
    read,
    write_back::OpenInode,
};

/// An open file. Writes are buffered and seen by every handle of the inode in this client; [`File::flush`] publishes
/// them. Dropped without [`File::close`], it publishes in the background.
pub struct File {
    open: Arc<OpenInode>,
    write: bool,
    /// None for a handle that was opened to read, or came with the creation.
    session: Option<SessionId>,
    closed: AtomicBool,
}

impl File {
    pub(crate) fn new(open: Arc<OpenInode>, write: bool, session: Option<SessionId>) -> Self {
        Self {
            open,
            write,
            session,
            closed: AtomicBool::new(false),
        }
    }

    /// Returns the attributes as this client last saw them, with its own unpublished writes.
    #[must_use]
    pub fn attr(&self) -> Attr {
        self.open.attr()
    }

    /// Reads up to `len` bytes from `offset`; fewer at the end of the file. Sees what was written and not yet flushed.
    ///
    /// # Errors
    /// [`FsError::Stale`] after a lost lease; as [`crate::Client::read`].
    pub async fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, FsError> {
        let open = &self.open;
        open.check()?;
        let view = open.view(offset, len);
        let end = view.end;
        if offset >= end {
            return Ok(Vec::new());
        }
        if cover(&view.dirty, offset, end) {
            return Ok(view.dirty.into_iter().map(|(_, bytes)| bytes).collect());
        }
        let base = read::read(open.client(), &view.content, end, offset, end - offset).await?;
        open.check()?;
        Ok(lay_over(
            lay_over(base, offset, view.in_flight),
            offset,
            view.dirty,
        ))
    }

    /// Writes at `offset`; bytes between the old end and `offset` read as zeros. Buffered: an error of an earlier
    /// write-out may show here, and `data` is then not taken or will be tried again.
    ///
    /// # Errors
    /// [`FsError::FileTooLarge`], [`FsError::Stale`], or what writing out met.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), FsError> {
        self.check_writable()?;
        self.open.write(Some(offset), data).await.map(|_| ())
    }

    /// Writes at the end of the file as this client knows it, and returns the new end.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn append(&self, data: &[u8]) -> Result<u64, FsError> {
        self.check_writable()?;
        self.open.write(None, data).await
    }

    /// Publishes: when it returns, every byte written is in the hands of every serving replica, and other clients see
    /// it, with its size and time.
    ///
    /// # Errors
    /// What writing or publishing met; the bytes stay dirty and the next flush tries again.
    pub async fn flush(&self) -> Result<(), FsError> {
        if self.write {
            self.open.flush(false).await
        } else {
            self.open.check()
        }
    }

    /// As [`Self::flush`]; returns after data, then metadata, are on stable storage.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn fsync(&self) -> Result<(), FsError> {
        self.open.flush(true).await
    }

    /// Publishes and ends the handle's session. A second call does nothing.
    ///
    /// # Errors
    /// As [`Self::flush`]; the handle is closed all the same, and with the inode's last one its dirty bytes are gone.
    pub async fn close(&self) -> Result<(), FsError> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        finish(&self.open, self.write, self.session).await
    }

    fn check_writable(&self) -> Result<(), FsError> {
        if self.write {
            return Ok(());
        }
        Err(FsError::Invalid("the file is open for reading only".into()))
    }
}

async fn finish(open: &OpenInode, write: bool, session: Option<SessionId>) -> Result<(), FsError> {
    if !write {
        return Ok(());
    }
    let result = open.flush(false).await;
    if let Some(session) = session {
        let client = open.client();
        let close = Close {
            inode: open.inode(),
            client: client.id,
            session,
        };
        if let Err(error) = client.call(&close).await {
            // The session ends with the client's lease at the latest; the bytes are published or not regardless.
            tracing::info!(inode = %open.inode(), %session, %error, "a session was not ended");
        }
    }
    result
}

impl Drop for File {
    fn drop(&mut self) {
        if !self.write || *self.closed.get_mut() {
            return;
        }
        let (open, session) = (Arc::clone(&self.open), self.session);
        self.open.client().spawn(async move {
            if let Err(error) = finish(&open, true, session).await {
                tracing::error!(inode = %open.inode(), %error, "a dropped file was not published");
            }
        });
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("inode", &self.open.inode())
            .finish_non_exhaustive()
    }
}
