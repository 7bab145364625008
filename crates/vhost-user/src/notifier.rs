//! Event file descriptors of a front-end: told apart, and signalled without ever waiting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::net::{SendFlags, send};

/// A file descriptor by which the other side learns that something has happened: an eventfd, the writing end
/// of a pipe, or a socket.
///
/// Clones signal the same descriptor. Writing to a pipe whose reader is gone raises SIGPIPE, which Rust
/// programs ignore from the start; a program in another language has to do so itself.
#[derive(Clone, Debug)]
pub struct Notifier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    way: Way,
    /// Set when a failure has been logged: one line is enough.
    failed: AtomicBool,
}

/// How to signal without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A write does not wait.
    Write,
    /// A write could wait if nobody reads: look first.
    LookAndWrite,
    /// A socket is told not to wait each time.
    Send,
}

/// A file descriptor that was given for events is none of the kinds that carry them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEvent {
    /// It is something else.
    #[error("the file descriptor is a {0}, an eventfd, a pipe or a socket is expected")]
    Kind(&'static str),
    /// It could not be looked at, or not be made non-blocking.
    #[error("the file descriptor cannot be used for events: {0}")]
    Io(#[from] Errno),
}

/// What may carry events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    EventFd,
    Pipe,
    Socket,
}

impl Notifier {
    /// Takes a descriptor to signal.
    ///
    /// A pipe is made non-blocking. An eventfd is left as it is: its mode is shared with the side that reads
    /// it.
    ///
    /// # Errors
    ///
    /// It is neither an eventfd nor a pipe nor a socket.
    pub fn new(fd: OwnedFd) -> Result<Self, NotAnEvent> {
        let way = match event_kind(&fd)? {
            EventKind::Pipe => {
                set_nonblocking(&fd)?;
                Way::Write
            }
            EventKind::EventFd if fcntl_getfl(&fd)?.contains(OFlags::NONBLOCK) => Way::Write,
            EventKind::EventFd => Way::LookAndWrite,
            EventKind::Socket => Way::Send,
        };
        Ok(Self { inner: Arc::new(Inner { fd, way, failed: AtomicBool::new(false) }) })
    }

    /// Takes an eventfd of our own, whose mode the side that reads it may change at any time.
    pub(crate) fn wary(eventfd: OwnedFd) -> Self {
        Self {
            inner: Arc::new(Inner { fd: eventfd, way: Way::LookAndWrite, failed: AtomicBool::new(false) }),
        }
    }

    /// What is signalled.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }

    /// Signals. Never waits and never fails: what cannot be delivered is dropped.
    ///
    /// Where the other side has not read for so long that the descriptor is full, it has a signal waiting
    /// already. Where it has closed its end, nobody wants to know (logged once).
    pub fn notify(&self) {
        let Inner { fd, way, failed } = &*self.inner;
        let one = 1_u64.to_ne_bytes();
        let result = retry_on_intr(|| match way {
            Way::LookAndWrite if !is_writable(fd) => Err(Errno::AGAIN),
            Way::Write | Way::LookAndWrite => write(fd, &one),
            Way::Send => send(fd, &one, SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
        });
        match result {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) if failed.swap(true, Ordering::Relaxed) => {
                log::trace!("a notification could not be delivered: {errno}");
            }
            Err(errno) => {
                log::warn!("a notification could not be delivered to the other side: {errno}");
            }
        }
    }
}

/// Tells an eventfd, a pipe and a socket from each other, and from anything else.
///
/// Regular files, devices and the like are turned down: writing to one may wait, or harm.
pub(crate) fn event_kind(fd: &OwnedFd) -> Result<EventKind, NotAnEvent> {
    match FileType::from_raw_mode(fstat(fd)?.st_mode) {
        FileType::Fifo => Ok(EventKind::Pipe),
        FileType::Socket => Ok(EventKind::Socket),
        // Anonymous inodes have no type.
        FileType::Unknown => Ok(EventKind::EventFd),
        other => Err(NotAnEvent::Kind(type_name(other))),
    }
}

/// Sets O_NONBLOCK on the open file description.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

/// A file type in words.
pub(crate) fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "file without a type",
    }
}

/// True if a write would not wait now. An eventfd is not writable when its counter is at its end.
fn is_writable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&at_once)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{dup, read};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn an_eventfd_counts_and_keeps_its_mode() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
            let fd = eventfd(0, flags).unwrap();
            let notifier = Notifier::new(dup(&fd).unwrap()).unwrap();
            notifier.notify();
            notifier.clone().notify();
            let mut count = [0; 8];
            assert_eq!(read(&fd, &mut count).unwrap(), 8);
            assert_eq!(u64::from_ne_bytes(count), 2);
            let nonblocking = fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK);
            assert_eq!(nonblocking, flags.contains(EventfdFlags::NONBLOCK));
        }
    }

    #[test]
    fn a_full_eventfd_does_not_hold_us() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
            let fd = eventfd(0, flags).unwrap();
            let full = u64::MAX - 1;
            write(&fd, &full.to_ne_bytes()).unwrap();
            Notifier::new(dup(&fd).unwrap()).unwrap().notify();
            let mut count = [0; 8];
            read(&fd, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), full);
        }
    }

    #[test]
    fn pipes_and_sockets_take_eight_bytes_until_they_are_full_and_may_be_closed() {
        let (socket, peer) = UnixStream::pair().unwrap();
        for (reader, writer) in [pipe_with(PipeFlags::CLOEXEC).unwrap(), (socket.into(), peer.into())] {
            let notifier = Notifier::new(writer).unwrap();
            notifier.notify();
            let mut bytes = [0; 16];
            assert_eq!(read(&reader, &mut bytes).unwrap(), 8);
            assert_eq!(bytes[..8], 1_u64.to_ne_bytes());

            // Far more than fit.
            for _ in 0..100_000 {
                notifier.notify();
            }
            assert!(!notifier.inner.failed.load(Ordering::Relaxed));
            drop(reader);
            notifier.notify();
            notifier.notify();
            assert!(notifier.inner.failed.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn other_files_are_turned_down() {
        let null = File::options().write(true).open("/dev/null").unwrap();
        assert_eq!(Notifier::new(null.into()).unwrap_err(), NotAnEvent::Kind("character device"));
        let directory = File::open("/").unwrap();
        assert_eq!(event_kind(&directory.into()), Err(NotAnEvent::Kind("directory")));
        let regular = tempfile::tempfile().unwrap();
        assert_eq!(event_kind(&regular.into()), Err(NotAnEvent::Kind("regular file")));
    }
}
