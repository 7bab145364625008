//! What concerns memory and file descriptors that others have their hands on.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::fcntl_dupfd_cloexec;
use virtio_zbd_mapguard::{Alarm, MapGuard};
use vm_memory::MmapRegion;

/// A mapping whose file may be truncated at any moment: it then becomes zeros, and an alarm is raised.
#[derive(Debug)]
pub(crate) struct Guarded<M> {
    /// Dropped before the mapping.
    _guard: MapGuard,
    mapping: Arc<M>,
}

impl<M: Deref<Target = MmapRegion>> Guarded<M> {
    /// Guards a mapping for as long as this is held.
    pub(crate) fn new(mapping: M, alarm: &Alarm) -> io::Result<Self> {
        // SAFETY: a whole mapping, which is held longer than the guard; all accesses that vm-memory gives out
        // are volatile or atomic.
        let guard = unsafe { MapGuard::watch_with(mapping.as_ptr(), mapping.size(), alarm) }?;
        Ok(Self { _guard: guard, mapping: Arc::new(mapping) })
    }

    pub(crate) fn mapping(&self) -> &Arc<M> {
        &self.mapping
    }
}

/// A descriptor of our own for what a parent process left open under a number.
///
/// # Errors
///
/// Nothing is open there, or there are no file descriptors left.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: not -1. It is borrowed for this call, which only looks whether it is open.
    let theirs = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(fcntl_dupfd_cloexec(theirs, 3)?)
}
