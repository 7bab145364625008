//! What a driver has said of a queue, and the event file descriptors of one that runs.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};

use super::Lost;
use crate::Notifier;

/// One queue of a device.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Where its ring is, once the driver has said so.
    pub(super) place: Option<Place>,
    /// It was started, and has not been stopped since.
    pub(super) running: Option<Events>,
    /// The device has called, and nobody who waits has been told yet.
    pub(super) called: bool,
}

/// A ring, in guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) size: u32,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// The file descriptors that a running queue shares with the back-end.
#[derive(Debug)]
pub(super) struct Events {
    /// We tell the device.
    pub(super) kick: Notifier,
    /// The device tells us.
    pub(super) call: OwnedFd,
    /// The back-end has given the queue up.
    pub(super) err: OwnedFd,
}

impl Events {
    pub(super) fn new() -> Result<Self, Lost> {
        let event = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|errno| Lost::System { action: "make an eventfd", errno })
        };
        Ok(Self { kick: Notifier::wary(event()?), call: event()?, err: event()? })
    }
}

/// True if an event has been signalled since this was asked last.
///
/// Never waits, whatever mode the other side has set on the eventfd that it shares with us.
pub(super) fn take_event(event: impl AsFd) -> bool {
    let mut count = [0; 8];
    // An offset of all ones: an eventfd has no position.
    let read =
        || preadv2(event.as_fd(), &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT);
    match retry_on_intr(read) {
        Ok(_) => true,
        Err(Errno::AGAIN) => false,
        Err(errno) => {
            log::warn!("an eventfd cannot be read: {errno}");
            false
        }
    }
}
