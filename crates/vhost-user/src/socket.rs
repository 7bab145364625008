//! Messages over a Unix stream socket: framing, and the file descriptors that come along.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::message::{FDS_MAX, Header, PAYLOAD_BYTES_MAX};

/// A connection to a front-end, and the descriptor that ends all waiting on it.
#[derive(Debug)]
pub(crate) struct Channel<'stop> {
    socket: OwnedFd,
    stop: BorrowedFd<'stop>,
}

/// A message as it came: its payload is as long as its header says, and not yet understood.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) request: u32,
    pub(crate) need_reply: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why no further message can be had from a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("the server was told to stop")]
    Stopped,
    #[error("the front-end closed the connection")]
    Closed,
    #[error("the connection ended in the middle of a message")]
    Truncated,
    #[error("message {request} has protocol version {found}, 1 is expected")]
    Version { request: u32, found: u32 },
    #[error("message {0} is marked as a reply, but nothing was asked")]
    Reply(u32),
    #[error("message {request} has a payload of {found} bytes, at most {PAYLOAD_BYTES_MAX} are expected")]
    TooLong { request: u32, found: u32 },
    #[error(
        "more file descriptors came than could be taken: a message has at most {FDS_MAX}, or the limit of open files is reached"
    )]
    TooManyFds,
    #[error("the socket failed: {0}")]
    Io(#[from] Errno),
}

impl<'stop> Channel<'stop> {
    /// Talks over `socket`, a connected stream socket, until `stop` becomes readable.
    pub(crate) fn new(socket: OwnedFd, stop: BorrowedFd<'stop>) -> Self {
        Self { socket, stop }
    }

    /// Waits for a whole message.
    pub(crate) fn recv(&self) -> Result<Frame, ChannelError> {
        let mut fds = Vec::new();
        let mut header = [0; size_of::<Header>()];
        match self.fill(&mut header, &mut fds)? {
            0 => return Err(ChannelError::Closed),
            length if length < header.len() => return Err(ChannelError::Truncated),
            _ => {}
        }
        let header = Header::read_from_bytes(&header).map_err(|_| ChannelError::Truncated)?;
        let request = header.request;

        let version = header.flags & Header::VERSION_MASK;
        if version != Header::VERSION {
            return Err(ChannelError::Version { request, found: version });
        }
        if header.flags & Header::REPLY != 0 {
            return Err(ChannelError::Reply(request));
        }
        let length = usize::try_from(header.size_bytes)
            .ok()
            .filter(|length| *length <= PAYLOAD_BYTES_MAX)
            .ok_or(ChannelError::TooLong { request, found: header.size_bytes })?;

        let mut payload = vec![0; length];
        if self.fill(&mut payload, &mut fds)? < length {
            return Err(ChannelError::Truncated);
        }
        let need_reply = header.flags & Header::NEED_REPLY != 0;
        Ok(Frame { request, need_reply, payload, fds })
    }

    /// Sends the answer to a message, with a file descriptor where one is asked for.
    pub(crate) fn reply(
        &self,
        request: u32,
        payload: &[u8],
        mut fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), ChannelError> {
        let header = Header {
            request,
            flags: Header::VERSION | Header::REPLY,
            size_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        };
        let message = [header.as_bytes(), payload].concat();
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            match send_with_fd(self.socket.as_fd(), rest, fd) {
                Ok(length) => {
                    rest = rest.get(length..).unwrap_or_default();
                    fd = None;
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ChannelError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Reads until `buffer` is full or the connection ends; returns how many bytes came. File descriptors are
    /// added to `fds`.
    fn fill(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, ChannelError> {
        let mut length = 0;
        while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
            self.wait(PollFlags::IN)?;
            match receive(self.socket.as_fd(), rest, fds) {
                Ok(0) => break,
                Ok(more) => length += more,
                // Closing a socket that still has unread replies resets it.
                Err(ChannelError::Io(Errno::CONNRESET)) => break,
                Err(ChannelError::Io(Errno::AGAIN | Errno::INTR)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(length)
    }

    fn wait(&self, events: PollFlags) -> Result<(), ChannelError> {
        if wait_or_stop(self.socket.as_fd(), events, self.stop)? {
            Ok(())
        } else {
            Err(ChannelError::Stopped)
        }
    }
}

/// Sends what fits now. The file descriptor goes with the first byte.
fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

/// Takes what a socket has now: bytes, and file descriptors, which are added to `fds`. Never waits.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, ChannelError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    // What is left in it is closed when it is dropped.
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_MAX {
        return Err(ChannelError::TooManyFds);
    }
    Ok(received.bytes)
}

/// Waits until `fd` is ready (or broken): true. Or until `stop` is: false, even if both are.
pub(crate) fn wait_or_stop(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    stop: BorrowedFd<'_>,
) -> Result<bool, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(fd, events), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let [_, stop] = &fds;
    Ok(stop.revents().is_empty())
}
