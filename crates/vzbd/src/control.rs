//! A way to tell a disk that is being served what to do: lines of JSON on a Unix socket.
//!
//! Each line is a request, an object with `command` and what that takes; each is answered by one line, `{"ok": …}` or `{"error": "…"}`. More commands
//! may come; one that is not known is an error, and so is a field that is not.
//!
//! ```text
//! → {"command":"resize","size_bytes":8589934592}
//! ← {"ok":{"size_bytes":8589934592,"size_bytes_before":4294967296,"zones":128,"zones_before":64,"frontends_told":1}}
//! → {"command":"info"}
//! ← {"ok":{"size_bytes":8589934592,"zones":128}}
//! ```
//!
//! One connection is served at a time, the others wait. A line may have 4096 bytes; who says nothing for ten seconds, or does not take the
//! answer, is disconnected.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};
use virtio_zbd_vhost_user::{Error as ServerError, Server};

use crate::DiskBackend;

/// The longest line.
const LINE_LEN_MAX: usize = 4096;
/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Length of a sector in bytes.
const SECTOR_LEN_BYTES: u64 = 512;

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Make the disk longer.
    Resize {
        /// Its new length, a multiple of 512.
        size_bytes: u64,
    },
    /// How long is the disk?
    Info {},
}

/// The answer to [`Request::Resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// Length of the disk now.
    pub size_bytes: u64,
    /// Its length before.
    pub size_bytes_before: u64,
    /// How many zones it has now; 0: it has no zones.
    pub zones: u32,
    /// How many it had before.
    pub zones_before: u32,
    /// How many front-ends were told. One that has no channel for such messages was not.
    pub frontends_told: usize,
}

/// The answer to [`Request::Info`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Length of the disk.
    pub size_bytes: u64,
    /// How many zones it has; 0: it has no zones.
    pub zones: u32,
}

/// A line that answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer<T> {
    Ok(T),
    Error(String),
}

/// A control socket that listens.
#[derive(Debug)]
pub struct Control {
    server: Server,
    /// Made at the beginning: a server that has entered its sandbox can't make one.
    stop: (UnixStream, UnixStream),
}

/// The thread that serves it. Dropping this ends it.
#[derive(Debug)]
pub struct Controlling {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens at `path`, for this user only (mode 0600). A stale socket is replaced. The file is removed at the end.
    ///
    /// # Errors
    /// Somebody listens there, or the file can't be made.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let server = Server::bind(path)?;
        let failed = |source| ServerError::Io { action: "make a socket pair", path: path.to_owned(), source };
        Ok(Self { server, stop: UnixStream::pair().map_err(failed)? })
    }

    /// Serves clients from now on, in a thread of its own.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(self, backend: DiskBackend) -> io::Result<Controlling> {
        let Self { server, stop: (stop, stopped) } = self;
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || serve(&server, &backend, &stopped))?;
        Ok(Controlling { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Controlling {
    fn drop(&mut self) {
        // A closed peer is readable.
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of the control socket has panicked: a fault in this program");
        }
    }
}

fn serve(server: &Server, backend: &DiskBackend, stop: &UnixStream) {
    loop {
        match readable(server, stop, None) {
            Ok(Ready::Client) => {}
            Ok(_) => return,
            Err(error) => return log::error!("the control socket is not served any more: {error}"),
        }
        let client = match accept_with(server, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => client,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => continue,
            Err(error) => return log::error!("the control socket is not served any more: {error}"),
        };
        if let Err(error) = serve_client(backend, client, stop) {
            log::warn!("a client of the control socket is disconnected: {error}");
        }
    }
}

/// Answers one client's lines until it has no more, or is too slow.
fn serve_client(backend: &DiskBackend, client: OwnedFd, stop: &UnixStream) -> io::Result<()> {
    let mut client = UnixStream::from(client);
    let mut unread = Vec::new();
    loop {
        let deadline = Instant::now() + PATIENCE;
        let line = loop {
            if let Some(end) = unread.iter().position(|&byte| byte == b'\n') {
                break unread.drain(..=end).collect::<Vec<u8>>();
            }
            if unread.len() >= LINE_LEN_MAX {
                let said = serde_json::to_vec(&Answer::<()>::Error(format!(
                    "the line has more than {LINE_LEN_MAX} bytes"
                )))?;
                return send(&mut client, said, stop);
            }
            match readable(&client, stop, Some(deadline))? {
                Ready::Client => {}
                Ready::Stop => return Ok(()),
                Ready::Nothing => return Err(io::ErrorKind::TimedOut.into()),
            }
            let mut bytes = [0; 512];
            match client.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(len) => unread.extend_from_slice(bytes.get(..len).unwrap_or_default()),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        };
        let said = answer(backend, &line)?;
        send(&mut client, said, stop)?;
    }
}

fn answer(backend: &DiskBackend, line: &[u8]) -> serde_json::Result<Vec<u8>> {
    let refused = |why: String| serde_json::to_vec(&Answer::<()>::Error(why));
    match serde_json::from_slice(line) {
        Err(error) => refused(format!(
            "this is no request: {error}; a request is a line as {{\"command\":\"resize\",\"size_bytes\":8589934592}}"
        )),
        Ok(Request::Info {}) => {
            let disk = backend.disk();
            serde_json::to_vec(&Answer::Ok(Info {
                size_bytes: disk.capacity_sectors().saturating_mul(SECTOR_LEN_BYTES),
                zones: disk.zone_count(),
            }))
        }
        Ok(Request::Resize { size_bytes }) if !size_bytes.is_multiple_of(SECTOR_LEN_BYTES) => {
            refused(format!("a disk of {size_bytes} bytes is no whole number of sectors of 512 bytes"))
        }
        Ok(Request::Resize { size_bytes }) => match backend.grow(size_bytes / SECTOR_LEN_BYTES) {
            Err(error) => {
                log::warn!("the disk does not grow to {size_bytes} bytes: {error}");
                refused(error.to_string())
            }
            Ok((growth, frontends_told)) => {
                let resized = Resized {
                    size_bytes: growth.capacity_sectors.saturating_mul(SECTOR_LEN_BYTES),
                    size_bytes_before: growth.capacity_sectors_before.saturating_mul(SECTOR_LEN_BYTES),
                    zones: growth.zones,
                    zones_before: growth.zones_before,
                    frontends_told,
                };
                log::info!("the disk has grown: {resized:?}");
                serde_json::to_vec(&Answer::Ok(resized))
            }
        },
    }
}

/// Sends a line to a client that may not take it.
fn send(client: &mut UnixStream, mut line: Vec<u8>, stop: &UnixStream) -> io::Result<()> {
    line.push(b'\n');
    let deadline = Instant::now() + PATIENCE;
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        match client.write(rest) {
            Ok(len) => rest = rest.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(client, PollFlags::OUT)];
                if !wait(&mut fds, Some(deadline))? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if !fds[0].revents().is_empty() {
                    return Ok(());
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

enum Ready {
    Stop,
    Client,
    Nothing,
}

fn readable(client: &impl AsFd, stop: &UnixStream, deadline: Option<Instant>) -> io::Result<Ready> {
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(client, PollFlags::IN)];
    let ready = wait(&mut fds, deadline)?;
    Ok(match ready {
        false => Ready::Nothing,
        true if !fds[0].revents().is_empty() => Ready::Stop,
        true => Ready::Client,
    })
}

/// Whether one of them is ready before the time is over.
fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match poll(fds, rest.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Why a client has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error("nobody listens there: {0}")]
    Unreachable(#[source] io::Error),
    /// The connection failed, or took too long.
    #[error("there is no answer: {0}")]
    Io(#[source] io::Error),
    /// It is no control socket.
    #[error("what answers is not a control socket: {0}")]
    NotControl(String),
    /// The disk said no.
    #[error("{0}")]
    Refused(String),
}

/// Asks the disk behind the control socket at `path` to become `size_bytes` long. It may take `timeout` to answer.
///
/// # Errors
/// It can't be reached, or it says no, and why.
pub fn resize(path: &Path, size_bytes: u64, timeout: Duration) -> Result<Resized, ControlError> {
    ask(path, Request::Resize { size_bytes }, timeout)
}

/// Asks how long the disk behind the control socket at `path` is.
///
/// # Errors
/// As [`resize`].
pub fn info(path: &Path, timeout: Duration) -> Result<Info, ControlError> {
    ask(path, Request::Info {}, timeout)
}

fn ask<T: for<'a> Deserialize<'a>>(
    path: &Path,
    request: Request,
    timeout: Duration,
) -> Result<T, ControlError> {
    let mut socket = UnixStream::connect(path).map_err(ControlError::Unreachable)?;
    let asked = (|| {
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        socket.write_all(&line)?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") && answer.len() < LINE_LEN_MAX {
            let mut bytes = [0; 512];
            match socket.read(&mut bytes)? {
                0 => break,
                len => answer.extend_from_slice(bytes.get(..len).unwrap_or_default()),
            }
        }
        Ok(answer)
    })();
    let answer = asked.map_err(|error: io::Error| match error.kind() {
        // A vhost-user back-end hangs up on what is none of its messages.
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            ControlError::NotControl("it hung up".into())
        }
        _ => ControlError::Io(error),
    })?;
    match serde_json::from_slice(&answer) {
        Ok(Answer::Ok(answer)) => Ok(answer),
        Ok(Answer::Error(why)) => Err(ControlError::Refused(why)),
        Err(_) if answer.is_empty() => Err(ControlError::NotControl("it hung up".into())),
        Err(error) => Err(ControlError::NotControl(error.to_string())),
    }
}
