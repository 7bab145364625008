//! A disk on a socket, served by a thread of this process.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use virtio_zbd_device::{Disk, DiskConfig, DiskError};
use virtio_zbd_store::{EngineChoice, Store, StoreError};
use virtio_zbd_vhost_user::{Error as ServerError, Server};

use crate::DiskBackend;

/// How a disk is offered.
#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    /// How many queues a front-end may use, at least 1. 1 by default.
    pub queues: u16,
    /// Block size of a disk without zones in bytes, 512 by default; a zoned disk has its write granularity.
    pub block_len_bytes: u32,
    /// How the queues' workers do their I/O.
    pub engine: EngineChoice,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { queues: 1, block_len_bytes: 512, engine: EngineChoice::Auto }
    }
}

/// A disk that a thread of this process offers to one vhost-user front-end after another.
///
/// Dropping it ends the thread and closes the store, as [`stop`](Self::stop) does; what goes wrong then is logged.
pub struct ServedDisk {
    backend: DiskBackend,
    socket: PathBuf,
    /// Readable for the thread once this end is closed; None once it was stopped.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// Why a disk can't be served, or could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no disk to be made over the store.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The socket can't be listened on, or not any more.
    #[error(transparent)]
    Socket(#[from] ServerError),
    /// What was written and not flushed may not be durable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No thread, or no way to end it.
    #[error("the serving thread can't be started: {0}")]
    Thread(#[source] io::Error),
    /// It is a bug if you see this.
    #[error("the serving thread panicked")]
    Panicked,
}

impl ServedDisk {
    /// Serves `store` on a socket at `socket`. It listens when this returns.
    ///
    /// # Errors
    ///
    /// The store can't be a disk, or the socket can't be listened on.
    pub fn start(store: Arc<dyn Store>, options: ServeOptions, socket: &Path) -> Result<Self, ServeError> {
        let ServeOptions { queues, block_len_bytes, engine } = options;
        let disk = Disk::new(store, DiskConfig { queues, block_len_bytes, engine })?;
        let server = Server::bind(socket)?;
        let (stop, stopped) = UnixStream::pair().map_err(ServeError::Thread)?;
        let backend = DiskBackend::new(disk);
        let served = backend.clone();
        let thread = thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || server.serve(&served, &stopped))
            .map_err(ServeError::Thread)?;
        Ok(Self { backend, socket: socket.to_owned(), stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The disk itself.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        self.backend.disk()
    }

    /// What its front-ends are connected to: it can [grow](DiskBackend::grow).
    #[must_use]
    pub fn backend(&self) -> &DiskBackend {
        &self.backend
    }

    /// Ends the serving in order: what was taken is answered, the socket's file goes, the store is flushed and closed.
    ///
    /// # Errors
    ///
    /// The serving had ended before with an error, or the store could not be closed cleanly.
    pub fn stop(mut self) -> Result<(), ServeError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ServeError> {
        // A closed peer is readable.
        self.stop = None;
        let served = self.thread.take().map_or(Ok(Ok(())), JoinHandle::join);
        // Also after an error: the queues are stopped, and what they wrote is made to last.
        let closed = self.disk().close();
        served.map_err(|_| ServeError::Panicked)??;
        Ok(closed?)
    }
}

impl Drop for ServedDisk {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        if let Err(error) = self.end() {
            log::error!("{}: the disk is not closed in order: {error}", self.socket.display());
        }
    }
}
