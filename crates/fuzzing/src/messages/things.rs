//! What a front-end may have to give: memory, and descriptors of every kind.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

/// Length of the guest's memory: a slot of 64 KiB for each of the queues, and as much again.
pub(super) const MAIN_LEN: u64 = 0x4_0000;
/// Length of a file that is too short for most regions, and no whole number of pages.
pub(super) const SMALL_LEN: u64 = 0x1800;

/// A descriptor's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thing {
    /// The guest's memory.
    Main,
    /// A little of it.
    Small,
    /// The guest's memory, opened for reading.
    ReadOnly,
    Event(u8),
    PipeRead,
    PipeWrite,
    Socket,
    /// Its other end is closed.
    DeadSocket,
    Null,
    Epoll,
    /// The buffer for requests under way that the server has made last, and its length.
    Buffer(u32),
}

impl Thing {
    /// One of them; a buffer there is only if the server has made one.
    pub(super) fn numbered(number: u8, buffer: Option<u32>) -> Self {
        match number % 16 {
            0..3 => Self::Main,
            3 => Self::Small,
            4 => Self::ReadOnly,
            n @ 5..9 => Self::Event(n - 5),
            9 => Self::PipeRead,
            10 => Self::PipeWrite,
            11 => Self::Socket,
            12 => Self::DeadSocket,
            13 => Self::Null,
            14 => Self::Epoll,
            _ => buffer.map_or(Self::Main, Self::Buffer),
        }
    }

    /// Whether it may carry events: an eventfd, a pipe, a socket. Another anonymous inode can't be told from an eventfd.
    pub(super) fn carries_events(self) -> bool {
        !matches!(self, Self::Main | Self::Small | Self::ReadOnly | Self::Null | Self::Buffer(_))
    }

    /// Whether it may carry messages: a pipe or a socket.
    pub(super) fn carries_messages(self) -> bool {
        matches!(self, Self::PipeRead | Self::PipeWrite | Self::Socket | Self::DeadSocket)
    }

    /// How much memory it is, if that can be mapped for writing.
    pub(super) fn memory_len(self) -> Option<u64> {
        match self {
            Self::Main => Some(MAIN_LEN),
            Self::Small => Some(SMALL_LEN),
            Self::Buffer(len) => Some(len.into()),
            _ => None,
        }
    }
}

/// One of each.
pub(super) struct Things {
    pub(super) main: File,
    small: OwnedFd,
    read_only: File,
    events: [OwnedFd; 4],
    pipe: (OwnedFd, OwnedFd),
    socket: (OwnedFd, OwnedFd),
    dead: OwnedFd,
    null: File,
    epoll: OwnedFd,
    /// With its length.
    buffer: Option<(OwnedFd, u32)>,
}

impl Things {
    pub(super) fn new() -> Self {
        let memory = |len: u64| {
            let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&fd, len).unwrap();
            fd
        };
        let sockets =
            || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let main = File::from(memory(MAIN_LEN));
        let event = |_: usize| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Self {
            small: memory(SMALL_LEN),
            read_only: File::open(format!("/proc/self/fd/{}", main.as_raw_fd())).unwrap(),
            main,
            events: std::array::from_fn(event),
            pipe: pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap(),
            socket: sockets(),
            dead: sockets().0,
            null: File::open("/dev/null").unwrap(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            buffer: None,
        }
    }

    /// The length of the buffer that the server has made last.
    pub(super) fn buffer(&self) -> Option<u32> {
        self.buffer.as_ref().map(|(_, len)| *len)
    }

    pub(super) fn keep_buffer(&mut self, fd: OwnedFd, len: u32) {
        assert_eq!(fstat(&fd).unwrap().st_size, i64::from(len), "the buffer's length");
        self.buffer = Some((fd, len));
    }

    pub(super) fn fd(&self, thing: Thing) -> BorrowedFd<'_> {
        match thing {
            Thing::Main => self.main.as_fd(),
            Thing::Small => self.small.as_fd(),
            Thing::ReadOnly => self.read_only.as_fd(),
            Thing::Event(n) => self.events[usize::from(n)].as_fd(),
            Thing::PipeRead => self.pipe.0.as_fd(),
            Thing::PipeWrite => self.pipe.1.as_fd(),
            Thing::Socket => self.socket.0.as_fd(),
            Thing::DeadSocket => self.dead.as_fd(),
            Thing::Null => self.null.as_fd(),
            Thing::Epoll => self.epoll.as_fd(),
            Thing::Buffer(_) => self.buffer.as_ref().unwrap().0.as_fd(),
        }
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.main.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(super) fn word(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset, 2).try_into().unwrap())
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        self.main.write_all_at(bytes, offset).unwrap();
    }
}
