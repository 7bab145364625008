//! The socket, and one front-end after another.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    getsockname, listen, recv, socket_with,
};

use crate::Backend;
use crate::connection::{self, End, MESSAGE_TIMEOUT};
use crate::guarded::inherited;
use crate::notifier::set_nonblocking;
use crate::socket::poll_until;

/// How many front-ends may wait for their turn to be accepted.
const BACKLOG: i32 = 16;
/// How many accepted front-ends may be silent from the start.
const SILENT_MAX: usize = 64;

/// A listening vhost-user socket.
///
/// The file of a socket that it made is removed when the server is dropped, unless another one has taken its
/// place by then.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    path: PathBuf,
    /// The socket's file, if it is ours to remove.
    file: Option<FileId>,
    message_timeout: Duration,
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
    /// What was given to listen on is nothing to listen on.
    #[error("the given file descriptor is {found}, a listening Unix stream socket is expected")]
    NotAListener {
        /// What it is.
        found: String,
    },
    /// Nothing was given under this number.
    #[error("no file descriptor {number} can be taken over: {source}")]
    NotInherited {
        /// The number.
        number: RawFd,
        /// What the system said.
        source: io::Error,
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
        let mut server = Self::over(listener, path.to_owned());
        server.file = Some(FileId::of(&file));
        listen(&server.listener, BACKLOG).map_err(io::Error::from).map_err(failed("listen on the socket"))?;
        Ok(server)
    }

    /// Serves on a socket that somebody else has made, bound and put to listening, such as a supervisor.
    ///
    /// It becomes non-blocking, for whoever shares it, too. Its file, if it has one, stays when the server is
    /// dropped: it belongs to whom it came from, as does its mode.
    ///
    /// # Errors
    ///
    /// It is not a listening Unix stream socket.
    pub fn from_listener(listener: OwnedFd) -> Result<Self, Error> {
        let path = check_listener(&listener).map_err(|found| Error::NotAListener { found })?;
        set_nonblocking(&listener).map_err(|errno| Error::Io {
            action: "make the socket non-blocking",
            path: path.clone(),
            source: errno.into(),
        })?;
        Ok(Self::over(listener, path))
    }

    /// Serves on the socket that a parent process has left open under this number.
    ///
    /// # Errors
    ///
    /// Nothing is open there, or it is not a listening Unix stream socket.
    pub fn inherit(number: RawFd) -> Result<Self, Error> {
        let listener = inherited(number).map_err(|source| Error::NotInherited { number, source })?;
        Self::from_listener(listener)
    }

    fn over(listener: OwnedFd, path: PathBuf) -> Self {
        Self { listener, path, file: None, message_timeout: MESSAGE_TIMEOUT }
    }

    /// The same server, with another limit to how long a front-end may take for the rest of a message that it
    /// has begun, or leave a reply where it is: 10 seconds otherwise. Between messages there is no limit.
    #[must_use]
    pub fn with_message_timeout(mut self, message_timeout: Duration) -> Self {
        self.message_timeout = message_timeout;
        self
    }

    /// Where it listens; an abstract address begins with @, and a socket without any is `(unnamed)`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves front-ends one after another, until `stop` becomes readable; then the queues are stopped
    /// (drained) and this returns.
    ///
    /// A front-end has its turn when it has sent something; those that say nothing from the start wait beside
    /// and hold up nobody. Once it has spoken, it has the device until it disconnects, and the others wait. One
    /// that misbehaves loses its connection, which is logged: a message that stays unfinished
    /// ([`with_message_timeout`](Self::with_message_timeout)) and shared memory whose file is truncated
    /// are misbehaviour, too. `stop` is not read: it stays as it is.
    ///
    /// # Errors
    ///
    /// The socket does not give new connections any more.
    pub fn serve<B: Backend>(&self, backend: &B, stop: impl AsFd) -> Result<(), Error> {
        let stop = stop.as_fd();
        let mut silent = VecDeque::new();
        while let Some(socket) = self.next(&mut silent, stop)? {
            match connection::serve(backend, socket, stop, self.message_timeout) {
                End::Stopped => break,
                End::Closed => log::info!("the front-end disconnected"),
                End::Broken(reason) => log::error!("the front-end is disconnected: {reason}"),
            }
        }
        Ok(())
    }

    /// The next front-end that has something to say, first come, first served. None: to be stopped.
    fn next(&self, silent: &mut VecDeque<OwnedFd>, stop: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
        let failed =
            |action| move |errno: Errno| Error::Io { action, path: self.path.clone(), source: errno.into() };
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            fds.extend(silent.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
            poll_until(&mut fds, None).map_err(failed("wait for connections"))?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let [stopped, connecting, speaking @ ..] = ready.as_slice() else { return Ok(None) };
            if *stopped {
                return Ok(None);
            }
            if let Some(socket) =
                speaking.iter().position(|ready| *ready).and_then(|first| silent.remove(first))
            {
                if has_ended(&socket) {
                    log::info!("a front-end disconnected without a word");
                    continue;
                }
                return Ok(Some(socket));
            }
            if *connecting {
                self.accept(silent, stop).map_err(failed("accept connections"))?;
            }
        }
    }

    fn accept(&self, silent: &mut VecDeque<OwnedFd>, stop: BorrowedFd<'_>) -> Result<(), Errno> {
        match accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                log::info!("a front-end connected to {}", self.path.display());
                silent.push_back(socket);
                if silent.len() > SILENT_MAX {
                    log::warn!("{SILENT_MAX} front-ends say nothing: the first of them is disconnected");
                    silent.pop_front();
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                if silent.pop_front().is_some() {
                    log::warn!("{errno}: the front-end that has been silent longest is disconnected");
                } else {
                    log::warn!("a connection cannot be accepted for now: {errno}");
                    pause(stop);
                }
            }
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

/// The listening socket, for who accepts from it and speaks another protocol.
impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(ours) = self.file else { return };
        let there = fs::symlink_metadata(&self.path).is_ok_and(|file| FileId::of(&file) == ours);
        if there && let Err(error) = fs::remove_file(&self.path) {
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

/// Where a socket listens; what it is if it does not.
fn check_listener(socket: &OwnedFd) -> Result<PathBuf, String> {
    let unknown = |errno: Errno| format!("no socket ({errno})");
    if socket_domain(socket).map_err(unknown)? != AddressFamily::UNIX {
        return Err("a socket of another family".into());
    }
    if socket_type(socket).map_err(unknown)? != SocketType::STREAM {
        return Err("a Unix socket of another type".into());
    }
    if !socket_acceptconn(socket).map_err(unknown)? {
        return Err("a Unix stream socket that does not listen".into());
    }
    let address = getsockname(socket).map_err(unknown)?;
    let address = SocketAddrUnix::try_from(address).map_err(unknown)?;
    if let Some(name) = address.abstract_name() {
        return Ok(PathBuf::from(format!("@{}", String::from_utf8_lossy(name))));
    }
    let path = address.path_bytes().map(|path| PathBuf::from(OsStr::from_bytes(path)));
    Ok(path.unwrap_or_else(|| PathBuf::from("(unnamed)")))
}

/// Whether a readable socket has nothing but its end.
fn has_ended(socket: &OwnedFd) -> bool {
    match recv(socket, &mut [0_u8], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, length)) => length == 0,
        Err(errno) => !matches!(errno, Errno::AGAIN | Errno::INTR),
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
    let mut fds = [PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    let _ = poll_until(&mut fds, Instant::now().checked_add(Duration::from_millis(100)));
}
