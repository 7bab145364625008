//! Connecting to a socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, connect};

use super::ConnectError;
use super::channel::Deadline;
use crate::server::stream_socket;

/// How often a socket is tried again at which nobody is ready.
pub(super) const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// Connects to the back-end that listens at `path`. If its backlog is full, waits at most `timeout`.
pub(super) fn connect_socket(path: &Path, timeout: Duration) -> Result<OwnedFd, ConnectError> {
    let failed = |action, source| ConnectError::Socket { path: path.to_owned(), action, source };
    let address =
        SocketAddrUnix::new(path).map_err(|errno| failed("use this path for a socket", errno.into()))?;
    let socket = stream_socket().map_err(|source| failed("make a socket", source))?;
    let deadline = Deadline::after(timeout);
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !deadline.is_over() => thread::sleep(CONNECT_PAUSE),
            Err(errno) => return Err(failed("connect", io::Error::from(errno))),
        }
    }
}
