//! Messages over a Unix stream socket: framing, and the file descriptors that come along.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use virtio_zbd_mapguard::Alarm;
use zerocopy::{FromBytes, IntoBytes};

use crate::message::{FDS_MAX, Header, PAYLOAD_BYTES_MAX};

/// A connection to a front-end, and what ends all waiting on it.
#[derive(Debug)]
pub(crate) struct Channel<'stop> {
    /// Readable when the server is to stop.
    stop: BorrowedFd<'stop>,
    /// Raised when memory that the front-end shares is lost.
    lost: Alarm,
    message_timeout: Duration,
    /// Closed last: to a front-end that sees its end the server is done with it.
    socket: OwnedFd,
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
    #[error("the front-end truncated the file of memory that it shares")]
    MemoryLost,
    #[error("the front-end stalled for {0:?} in the middle of a message")]
    Stalled(Duration),
    #[error("the front-end has not taken a reply for {0:?}")]
    Deaf(Duration),
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
    /// Talks over `socket`, a connected stream socket, until `stop` becomes readable or `lost` is raised. From its
    /// first byte on a message has `message_timeout` to come, as has a reply to be taken; between messages a
    /// front-end may be silent for as long as it likes.
    pub(crate) fn new(
        socket: OwnedFd,
        stop: BorrowedFd<'stop>,
        lost: Alarm,
        message_timeout: Duration,
    ) -> Self {
        Self { stop, lost, message_timeout, socket }
    }

    /// Waits for a whole message.
    pub(crate) fn recv(&self) -> Result<Frame, ChannelError> {
        let mut fds = Vec::new();
        let mut header = [0; size_of::<Header>()];
        let mut deadline = None;
        match self.fill(&mut header, &mut fds, &mut deadline)? {
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
        if self.fill(&mut payload, &mut fds, &mut deadline)? < length {
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
        let deadline = self.deadline();
        while !rest.is_empty() {
            match send_with_fd(self.socket.as_fd(), rest, fd) {
                Ok(length) => {
                    rest = rest.get(length..).unwrap_or_default();
                    fd = None;
                }
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::OUT, deadline)? {
                        return Err(ChannelError::Deaf(self.message_timeout));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ChannelError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Reads until `buffer` is full or the connection ends; returns how many bytes came. File descriptors are
    /// added to `fds`. Without a deadline the first byte sets one.
    fn fill(
        &self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: &mut Option<Instant>,
    ) -> Result<usize, ChannelError> {
        let mut length = 0;
        while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
            if !self.wait(PollFlags::IN, *deadline)? {
                return Err(ChannelError::Stalled(self.message_timeout));
            }
            match receive(self.socket.as_fd(), rest, fds) {
                Ok(0) => break,
                Ok(more) => {
                    length += more;
                    *deadline = deadline.or_else(|| self.deadline());
                }
                // Closing a socket that still has unread replies resets it.
                Err(ChannelError::Io(Errno::CONNRESET)) => break,
                Err(ChannelError::Io(Errno::AGAIN | Errno::INTR)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(length)
    }

    /// When a message that begins now must be over.
    fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.message_timeout)
    }

    /// Waits until the socket is ready (or broken); false if the time is over before.
    fn wait(&self, events: PollFlags, deadline: Option<Instant>) -> Result<bool, ChannelError> {
        let mut fds = [
            PollFd::new(&self.socket, events),
            PollFd::from_borrowed_fd(self.stop, PollFlags::IN),
            PollFd::new(&self.lost, PollFlags::IN),
        ];
        let ready = poll_until(&mut fds, deadline)?;
        let [_, stop, lost] = &fds;
        if !stop.revents().is_empty() {
            return Err(ChannelError::Stopped);
        }
        if !lost.revents().is_empty() {
            return Err(ChannelError::MemoryLost);
        }
        Ok(ready)
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

/// Waits until one of `fds` is ready; false if the time is over before.
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // More than poll can wait for is no limit.
        let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match poll(fds, rest.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
