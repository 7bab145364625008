//! The front-end's end of the socket: bytes and file descriptors as they are told.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// More than any message may carry.
pub(super) const FDS_MAX: usize = 40;

/// How long a reply is waited for, so many times.
const MOMENT: Duration = Duration::from_millis(500);
const MOMENTS: u32 = 30;

pub(super) struct Peer(OwnedFd);

/// What came back.
#[derive(Debug)]
pub(super) enum Came {
    Reply {
        request: u32,
        flags: u32,
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
    },
    /// The server has closed the connection.
    End,
}

impl Peer {
    pub(super) fn new(socket: OwnedFd) -> Self {
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(MOMENT)).unwrap();
        }
        Self(socket)
    }

    /// Sends a piece of a message. False if nobody is there any more.
    pub(super) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => {
                assert_eq!(sent, bytes.len());
                true
            }
            Err(Errno::PIPE | Errno::CONNRESET) => false,
            Err(errno) => panic!("cannot send {} bytes and {} fds: {errno}", bytes.len(), fds.len()),
        }
    }

    /// The next thing that the server says.
    pub(super) fn recv(&self) -> Came {
        let mut fds = Vec::new();
        let Some(header) = self.fill(12, &mut fds) else { return Came::End };
        let word = |n: usize| u32::from_ne_bytes(header[4 * n..4 * n + 4].try_into().unwrap());
        let len = usize::try_from(word(2)).unwrap();
        assert!(len <= 4096, "a reply of {len} bytes");
        let payload = self.fill(len, &mut fds).expect("a whole reply");
        Came::Reply { request: word(0), flags: word(1), payload, fds }
    }

    /// So many bytes; `None` if the connection has ended before the first.
    fn fill(&self, len: usize, fds: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let (mut done, mut waited) = (0, 0);
        while done < len {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let rest = &mut [IoSliceMut::new(&mut bytes[done..])];
            match recvmsg(&self.0, rest, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => {
                    assert_eq!(done, 0, "the connection ends in the middle of a reply");
                    return None;
                }
                Ok(received) => done += received.bytes,
                Err(Errno::CONNRESET) if done == 0 => return None,
                Err(Errno::AGAIN) => {
                    waited += 1;
                    assert!(waited < MOMENTS, "the server neither replies nor closes");
                }
                Err(Errno::INTR) => {}
                Err(errno) => panic!("cannot receive: {errno}"),
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
        }
        Some(bytes)
    }
}
