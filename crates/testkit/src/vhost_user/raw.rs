//! Messages by hand, for what rust-vmm's frontend does not send: unknown, malformed, or of newer protocols.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::{Error, Result};

/// A message from the backend, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    /// The request's number.
    pub code: u32,
    /// Bits 0 and 1: version (1); bit 2: reply; bit 3: a reply is wanted.
    pub flags: u32,
    /// All behind the 12 bytes of the header. File descriptors that came along are closed.
    pub payload: Vec<u8>,
}

impl RawReply {
    /// The payload as a number, if it is 8 bytes long.
    #[must_use]
    pub fn value(&self) -> Option<u64> {
        self.payload.as_slice().try_into().ok().map(u64::from_ne_bytes)
    }
}

/// The most file descriptors that go with one message; one more than any message may have.
const FDS_MAX: usize = 33;

/// Sends `bytes` in one piece, with `fds`.
pub(super) fn send(mut socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(fds));
        assert!(fits, "a message has at most {FDS_MAX} file descriptors");
    }
    let failed = |source| Error::Raw { message: "sending a raw message", source };
    let sent = sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(|errno| failed(io::Error::from(errno)))?;
    socket.write_all(&bytes[sent..]).map_err(failed)
}

/// A message: header (numbers in the host's order, as the protocol has it) and payload.
pub(super) fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let header = [code, flags, len].map(u32::to_ne_bytes).concat();
    [header.as_slice(), payload].concat()
}

/// Receives a message, waiting at most `timeout` for each part of it.
pub(super) fn receive(mut socket: &UnixStream, timeout: Duration) -> Result<RawReply> {
    let failed = |source| Error::Raw { message: "receiving a raw message", source };
    let mut header = [0; 12];
    let mut receive = || {
        socket.set_read_timeout(Some(timeout))?;
        socket.read_exact(&mut header)?;
        let [code, flags, len] = [0, 4, 8]
            .map(|at| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
        let mut payload = Vec::new();
        let received = socket.take(len.into()).read_to_end(&mut payload)?;
        if received < usize::try_from(len).unwrap() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(RawReply { code, flags, payload })
    };
    let reply = receive().map_err(failed);
    // rust-vmm's frontend would spin on a socket with a timeout.
    socket.set_read_timeout(None).map_err(failed)?;
    reply
}
