//! Waiting without a ring: `poll(2)`.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read};

use super::Event;

/// The watched descriptors of a lane that has no ring.
#[derive(Default)]
pub(super) struct PollSet {
    watches: Vec<Watch>,
}

struct Watch {
    fd: OwnedFd,
    source: u32,
}

impl PollSet {
    pub(super) fn watch(&mut self, fd: OwnedFd, source: u32) {
        self.watches.push(Watch { fd, source });
    }

    pub(super) fn unwatch(&mut self, source: Option<u32>) {
        self.watches.retain(|watch| source.is_some_and(|source| source != watch.source));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Blocks until a descriptor is readable or the time is over; consumes 8 bytes of each that is.
    pub(super) fn turn(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let mut fds: Vec<_> =
            self.watches.iter().map(|watch| PollFd::new(&watch.fd, PollFlags::IN)).collect();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        self.watches.retain(|watch| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            match consume(&watch.fd) {
                Ok(0) => {
                    log::debug!("source {}: the other end is closed", watch.source);
                    events.push(Event::Wake(watch.source));
                    false
                }
                Ok(_) => {
                    events.push(Event::Wake(watch.source));
                    true
                }
                // Somebody else was faster.
                Err(Errno::AGAIN | Errno::INTR) => true,
                Err(error) => {
                    log::warn!("source {}: can't be read and is no longer watched: {error}", watch.source);
                    events.push(Event::Wake(watch.source));
                    false
                }
            }
        });
        Ok(())
    }
}

/// Reads 8 bytes, without blocking where the kernel can do that for this kind of descriptor.
fn consume(fd: impl AsFd) -> rustix::io::Result<usize> {
    let mut bytes = [0; 8];
    // An offset of -1 means: the current position, as streams have none other.
    match preadv2(&fd, &mut [IoSliceMut::new(&mut bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE | Errno::INVAL) => read(&fd, &mut bytes),
        other => other,
    }
}
