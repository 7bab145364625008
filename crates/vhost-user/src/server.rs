//! The socket, and one front-end after another.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

use crate::Backend;
use crate::connection::{self, End};
use crate::socket::wait_or_stop;

/// How many front-ends may wait for their turn.
const BACKLOG: i32 = 16;

/// A listening vhost-user socket.
///
/// Its file is removed when the server is dropped, unless another one has taken its place by then.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    path: PathBuf,
    file: FileId,
}

/// Why a server cannot listen, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is a file of another kind.
    #[error("{}: there is a file that is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// Another server is listening.
    #[error("{}: another server is listening there; stop it or choose another path", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The system said no.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Server {
    /// Listens on a Unix socket at `path`, readable and writable by this user only.
    ///
    /// A socket file that a dead server left behind is replaced. Two servers that do this in the same moment
    /// may both believe that they have the path; the later one has it.
    ///
    /// # Errors
    ///
    /// Another server is listening there, there is a file that is no socket, the path is too long for a
    /// socket (107 bytes), or the file cannot be made.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |action| move |source: io::Error| Error::Io { action, path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path)
            .map_err(io::Error::from)
            .map_err(failed("use this path for a socket"))?;
        make_way(path, &address)?;

        let listener = stream_socket().map_err(failed("make a socket"))?;
        // On Linux the file gets the mode of the socket: there is no moment in which others could connect.
        fchmod(&listener, Mode::RUSR | Mode::WUSR)
            .map_err(io::Error::from)
            .map_err(failed("set the socket's mode"))?;
        match bind(&listener, &address) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => return Err(Error::InUse { path: path.to_owned() }),
            Err(errno) => return Err(failed("make the socket file")(errno.into())),
        }
        let file = fs::symlink_metadata(path).map_err(failed("look at the socket file"))?;
        let server = Self { listener, path: path.to_owned(), file: FileId::of(&file) };
        listen(&server.listener, BACKLOG).map_err(io::Error::from).map_err(failed("listen on the socket"))?;
        Ok(server)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves front-ends one after another, until `stop` becomes readable; then the queues are stopped
    /// (drained) and this returns.
    ///
    /// While one front-end is connected, others wait. A front-end that misbehaves loses its connection, which
    /// is logged. `stop` is not read: it stays as it is.
    ///
    /// # Errors
    ///
    /// The socket does not give new connections any more.
    pub fn serve<B: Backend>(&self, backend: &B, stop: impl AsFd) -> Result<(), Error> {
        let stop = stop.as_fd();
        let failed = |errno: Errno| Error::Io {
            action: "accept connections",
            path: self.path.clone(),
            source: errno.into(),
        };
        while wait_or_stop(self.listener.as_fd(), PollFlags::IN, stop).map_err(failed)? {
            let socket = match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => socket,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    log::warn!("a connection cannot be accepted for now: {errno}");
                    pause(stop);
                    continue;
                }
                Err(errno) => return Err(failed(errno)),
            };
            log::info!("a front-end connected to {}", self.path.display());
            match connection::serve(backend, socket, stop) {
                End::Stopped => break,
                End::Closed => log::info!("the front-end disconnected"),
                End::Broken(reason) => log::error!("the front-end is disconnected: {reason}"),
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| FileId::of(&file) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{}: the socket file stays: {error}", self.path.display());
        }
    }
}

/// What tells a file from another one that later has the same path, perhaps even the same inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    mtime: (i64, i64),
}

impl FileId {
    fn of(file: &Metadata) -> Self {
        let mtime = (file.mtime(), file.mtime_nsec());
        Self { device: file.dev(), inode: file.ino(), mtime }
    }
}

/// Removes a socket file on which nobody listens.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<(), Error> {
    let failed = |action| move |source: io::Error| Error::Io { action, path: path.to_owned(), source };
    let before = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look for a socket")(error)),
    };
    if !before.file_type().is_socket() {
        return Err(Error::NotASocket { path: path.to_owned() });
    }
    let probe = stream_socket().map_err(failed("make a socket"))?;
    match connect(&probe, address) {
        // A full backlog is somebody's, too.
        Ok(()) | Err(Errno::AGAIN) => return Err(Error::InUse { path: path.to_owned() }),
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => {
            return Err(failed("find out whether another server is listening")(errno.into()));
        }
    }
    // Unless somebody else has replaced it in the meantime.
    let now = fs::symlink_metadata(path).map_err(failed("look at the stale socket"))?;
    if FileId::of(&now) != FileId::of(&before) {
        return Err(Error::InUse { path: path.to_owned() });
    }
    log::info!("{}: a stale socket file is replaced", path.display());
    fs::remove_file(path).map_err(failed("remove the stale socket"))
}

/// A Unix stream socket that does not wait.
pub(crate) fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// A tenth of a second, or until `stop`.
fn pause(stop: BorrowedFd<'_>) {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let _ = poll(&mut fds, Some(&timeout));
}
