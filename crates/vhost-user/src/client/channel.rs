//! One message and its answer, within a time.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Lost;
use crate::message::{Header, request_name};
use crate::socket::{ChannelError, receive};

/// The connection to a back-end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    timeout: Duration,
}

/// Until when an exchange must be over; None: it may take forever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Option<Instant>);

/// A message to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) id: u32,
    pub(super) need_reply: bool,
    pub(super) payload: &'a [u8],
    pub(super) fd: Option<BorrowedFd<'a>>,
}

impl Channel {
    /// Talks over `socket`, a connected stream socket; each exchange takes at most `timeout`.
    pub(super) fn new(socket: OwnedFd, timeout: Duration) -> Self {
        Self { socket, timeout }
    }

    /// When an exchange that begins now must be over.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }

    /// Sends a message.
    pub(super) fn send(&self, message: Message<'_>, deadline: Deadline) -> Result<(), Lost> {
        let Message { id, need_reply, payload, fd } = message;
        let flags = if need_reply { Header::VERSION | Header::NEED_REPLY } else { Header::VERSION };
        let size_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { request: id, flags, size_bytes };
        let bytes = [header.as_bytes(), payload].concat();
        let mut rest = bytes.as_slice();
        let mut fd = fd;
        while !rest.is_empty() {
            match self.send_some(rest, fd) {
                Ok(length) => {
                    fd = None;
                    rest = rest.get(length..).unwrap_or_default();
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, id, deadline)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("send to the back-end", id, errno)),
            }
        }
        Ok(())
    }

    /// Waits for the reply to message `id`, whose payload may have at most `size_max` bytes.
    pub(super) fn reply(&self, id: u32, size_max: usize, deadline: Deadline) -> Result<Vec<u8>, Lost> {
        let (payload, fds) = self.reply_with_fds(id, size_max, deadline)?;
        // Descriptors that came are closed here.
        if fds.is_empty() { Ok(payload) } else { Err(Lost::FileDescriptors { request: name(id) }) }
    }

    /// Sends a message and waits for its reply, with which file descriptors may come.
    pub(super) fn exchange(
        &self,
        message: Message<'_>,
        size_max: usize,
        deadline: Deadline,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Lost> {
        self.send(message, deadline)?;
        self.reply_with_fds(message.id, size_max, deadline)
    }

    fn reply_with_fds(
        &self,
        id: u32,
        size_max: usize,
        deadline: Deadline,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Lost> {
        let mut fds = Vec::new();
        let request = name(id);
        let mut header = [0; size_of::<Header>()];
        self.fill(&mut header, &mut fds, id, deadline)?;
        let Ok(header) = Header::read_from_bytes(&header) else {
            return Err(Lost::Closed { request: Some(request) });
        };
        let Header { request: found, flags, size_bytes } = header;
        let expected = Header::VERSION | Header::REPLY;
        if found != id || flags & (Header::VERSION_MASK | Header::REPLY) != expected {
            return Err(Lost::NotTheReply { request, found, flags });
        }
        let size = usize::try_from(size_bytes).ok().filter(|size| *size <= size_max);
        let Some(size) = size else {
            return Err(Lost::ReplySize { request, expected: size_max, found: size_bytes });
        };
        let mut payload = vec![0; size];
        self.fill(&mut payload, &mut fds, id, deadline)?;
        Ok((payload, fds))
    }

    /// Waits for the reply to message `id`, which is a `T`.
    pub(super) fn reply_of<T: FromBytes + Immutable>(&self, id: u32, deadline: Deadline) -> Result<T, Lost> {
        let payload = self.reply(id, size_of::<T>(), deadline)?;
        T::read_from_bytes(&payload).map_err(|_| Lost::ReplySize {
            request: name(id),
            expected: size_of::<T>(),
            found: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        })
    }

    /// The socket is readable though nothing was asked: what does that mean?
    pub(super) fn why_readable(&self) -> Lost {
        match receive(self.socket.as_fd(), &mut [0], &mut Vec::new()) {
            Ok(0) | Err(ChannelError::Io(Errno::CONNRESET)) => Lost::Closed { request: None },
            Ok(_) | Err(_) => Lost::Unrequested,
        }
    }

    /// Ends the connection for both sides.
    pub(super) fn close(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    fn send_some(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.as_slice();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags)
    }

    fn fill(
        &self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        id: u32,
        deadline: Deadline,
    ) -> Result<(), Lost> {
        let request = name(id);
        let mut length = 0;
        while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match receive(self.socket.as_fd(), rest, fds) {
                Ok(0) => return Err(Lost::Closed { request: Some(request) }),
                Ok(more) => length += more,
                Err(ChannelError::Io(Errno::AGAIN)) => self.wait(PollFlags::IN, id, deadline)?,
                Err(ChannelError::Io(Errno::INTR)) => {}
                Err(ChannelError::Io(errno)) => {
                    return Err(self.failed("receive from the back-end", id, errno));
                }
                Err(_) => return Err(Lost::FileDescriptors { request }),
            }
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags, id: u32, deadline: Deadline) -> Result<(), Lost> {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), events)];
        match deadline.poll(&mut fds) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Lost::TimedOut { request: name(id), timeout: self.timeout }),
            Err(errno) => Err(Lost::System { action: "wait for the back-end", errno }),
        }
    }

    fn failed(&self, action: &'static str, id: u32, errno: Errno) -> Lost {
        match errno {
            Errno::PIPE | Errno::CONNRESET => Lost::Closed { request: Some(name(id)) },
            errno => Lost::System { action, errno },
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Deadline {
    /// So long from now.
    pub(super) fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// True if the time is over.
    pub(super) fn is_over(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }

    /// Waits until one of `fds` is ready: true. Or until the time is over: false.
    pub(super) fn poll(self, fds: &mut [PollFd<'_>]) -> Result<bool, Errno> {
        loop {
            // More than a Timespec can say is as good as forever.
            let left = self.0.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(fds, left.as_ref()) {
                Ok(0) if self.is_over() => return Ok(false),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// The specification's name of a message.
pub(super) fn name(id: u32) -> &'static str {
    request_name(id).unwrap_or("an unknown message")
}
