//! A front-end that sends what it is told, byte by byte.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::PATIENCE;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const RESET_OWNER: u32 = 4;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_STATUS: u32 = 39;
pub const GET_STATUS: u32 = 40;

pub const VERSION: u32 = 1;
pub const REPLY: u32 = 4;
pub const NEED_REPLY: u32 = 8;

/// Virtio feature bit 30: there are protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS.
pub const ALL_OFFERED: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16;
pub const REPLY_ACK: u64 = 1 << 3;
/// Offered by a device that keeps its requests under way.
pub const INFLIGHT_SHMFD: u64 = 1 << 12;
pub const STATUS: u64 = 1 << 16;

pub struct Peer {
    pub stream: UnixStream,
}

impl Peer {
    pub fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    /// Connects and negotiates these protocol features; they are in effect when this returns.
    pub fn negotiated(path: &Path, protocol: u64) -> Self {
        let peer = Self::connect(path);
        peer.send(SET_PROTOCOL_FEATURES, 0, &protocol.to_ne_bytes(), &[]);
        peer.get(GET_FEATURES);
        peer
    }

    /// Sends a whole message. `flags` are added to the version.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(self.try_send(&message(request, VERSION | flags, payload), fds), "the server is gone");
    }

    /// Sends bytes and file descriptors as they are. False if the server has closed the connection.
    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => {
                assert_eq!(sent, bytes.len());
                true
            }
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => false,
            Err(errno) => panic!("cannot send: {errno}"),
        }
    }

    /// The payload of the reply to a message.
    pub fn recv(&self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).unwrap();
        let word = |n: usize| u32::from_ne_bytes(header[4 * n..4 * n + 4].try_into().unwrap());
        assert_eq!(word(0), request, "a reply to another message");
        assert_eq!(word(1), VERSION | REPLY);
        let mut payload = vec![0; usize::try_from(word(2)).unwrap()];
        (&self.stream).read_exact(&mut payload).unwrap();
        payload
    }

    /// The payload of the reply to a message, and the file descriptors that came with it.
    pub fn recv_fds(&self, request: u32) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&self.stream, &mut [IoSliceMut::new(&mut header)], &mut control, flags).unwrap();
        assert_eq!(received.bytes, 12);
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let word = |n: usize| u32::from_ne_bytes(header[4 * n..4 * n + 4].try_into().unwrap());
        assert_eq!((word(0), word(1)), (request, VERSION | REPLY));
        let mut payload = vec![0; usize::try_from(word(2)).unwrap()];
        (&self.stream).read_exact(&mut payload).unwrap();
        (payload, fds)
    }

    pub fn recv_u64(&self, request: u32) -> u64 {
        u64::from_ne_bytes(self.recv(request).try_into().unwrap())
    }

    /// Asks for a number.
    pub fn get(&self, request: u32) -> u64 {
        self.send(request, 0, &[], &[]);
        self.recv_u64(request)
    }

    /// Sends a message and gives back what it is answered: 0 is done.
    pub fn ask(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        self.send(request, NEED_REPLY, payload, fds);
        self.recv_u64(request)
    }

    pub fn ask_u64(&self, request: u32, value: u64) -> u64 {
        self.ask(request, &value.to_ne_bytes(), &[])
    }

    pub fn ask_vring(&self, request: u32, index: u32, num: u32) -> u64 {
        self.ask(request, &words(&[index, num]), &[])
    }

    pub fn get_vring_base(&self, index: u32) -> u32 {
        self.send(GET_VRING_BASE, 0, &words(&[index, 0]), &[]);
        let reply = self.recv(GET_VRING_BASE);
        assert_eq!(reply[..4], index.to_ne_bytes());
        u32::from_ne_bytes(reply[4..].try_into().unwrap())
    }

    /// What GET_CONFIG is answered for `size` bytes at `offset`, after checking the head.
    pub fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut payload = words(&[offset, size, 0]);
        payload.resize(12 + usize::try_from(size).unwrap(), 0);
        self.send(GET_CONFIG, 0, &payload, &[]);
        let reply = self.recv(GET_CONFIG);
        assert_eq!(reply.len(), payload.len());
        assert_eq!(reply[..12], payload[..12]);
        reply[12..].to_vec()
    }

    /// Waits for the server to close the connection; nothing else may come.
    pub fn assert_closed(&self) {
        match (&self.stream).read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("the connection is not closed: {other:?}"),
        }
    }
}

/// A message in bytes.
pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    [words(&[request, flags, size]), payload.to_vec()].concat()
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// The payload of SET_VRING_ADDR: user addresses.
pub fn vring_addr(index: u32, desc: u64, avail: u64, used: u64) -> Vec<u8> {
    [words(&[index, 0]), longs(&[desc, used, avail, u64::MAX])].concat()
}

/// The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD, as long as QEMU's.
pub fn inflight(mmap_size: u64, mmap_offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let counts = [queues.to_ne_bytes(), queue_size.to_ne_bytes(), [0; 2], [0; 2]].concat();
    [longs(&[mmap_size, mmap_offset]), counts].concat()
}
