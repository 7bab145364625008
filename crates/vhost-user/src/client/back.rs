//! The channel on which the back-end speaks without being asked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use zerocopy::{FromBytes, IntoBytes};

use super::Lost;
use crate::message::{BACKEND_CONFIG_CHANGE, Header, PAYLOAD_BYTES_MAX};
use crate::socket::{ChannelError, receive};

/// So often is the socket read before something else gets its turn.
const READS_MAX: usize = 16;

/// Our end of it.
#[derive(Debug)]
pub(super) struct BackChannel {
    socket: OwnedFd,
    /// The beginning of a message whose end has not come yet.
    unread: Vec<u8>,
}

/// What the back-end has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) config_changed: bool,
    /// It has closed its end: nothing more will come.
    pub(super) closed: bool,
}

impl BackChannel {
    /// A channel, and the back-end's end of it.
    pub(super) fn pair() -> Result<(Self, OwnedFd), Lost> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Lost::System { action: "make a socket pair", errno })?;
        Ok((Self { socket: ours, unread: Vec::new() }, theirs))
    }

    /// Takes what has come. Never waits, and comes to an end however much comes.
    ///
    /// Of all that a back-end may say, a changed configuration is what concerns this front-end; the rest is
    /// refused, if an answer is wanted, and otherwise passed over.
    pub(super) fn hear(&mut self) -> Result<Heard, Lost> {
        let mut heard = Heard::default();
        for _ in 0..READS_MAX {
            let mut bytes = [0; 512];
            // Descriptors that come are closed when this is dropped.
            match receive(self.socket.as_fd(), &mut bytes, &mut Vec::new()) {
                Ok(length @ 1..) => self.unread.extend_from_slice(bytes.get(..length).unwrap_or_default()),
                Err(ChannelError::Io(Errno::AGAIN)) => break,
                Err(ChannelError::Io(Errno::INTR)) => {}
                Ok(0) | Err(_) => {
                    heard.closed = true;
                    break;
                }
            }
            while let Some(header) = self.take_message()? {
                let known = header.request == BACKEND_CONFIG_CHANGE;
                heard.config_changed |= known;
                if header.flags & Header::NEED_REPLY != 0 {
                    self.answer(header.request, u64::from(!known));
                }
            }
        }
        Ok(heard)
    }

    /// Takes the first message off what has come, if it is whole.
    fn take_message(&mut self) -> Result<Option<Header>, Lost> {
        let Ok((header, rest)) = Header::read_from_prefix(&self.unread) else {
            return Ok(None);
        };
        let Header { request, flags, size_bytes } = header;
        let version = flags & (Header::VERSION_MASK | Header::REPLY);
        let size = usize::try_from(size_bytes).ok().filter(|size| *size <= PAYLOAD_BYTES_MAX);
        let (Header::VERSION, Some(size)) = (version, size) else {
            return Err(Lost::BackChannel { request, flags, size_bytes });
        };
        if rest.len() < size {
            return Ok(None);
        }
        self.unread.drain(..size_of::<Header>() + size);
        Ok(Some(header))
    }

    fn answer(&self, request: u32, code: u64) {
        let flags = Header::VERSION | Header::REPLY;
        let header = Header { request, flags, size_bytes: 8 };
        let message = [header.as_bytes(), code.as_bytes()].concat();
        // A back-end that does not read its answers does not get them.
        if let Err(errno) = send(&self.socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            log::debug!("the back-end's request {request} could not be answered: {errno}");
        }
    }
}

impl AsFd for BackChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
