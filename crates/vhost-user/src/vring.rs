//! A ring as it is handed to a device.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{InflightQueue, Notifier};

/// A split virtqueue, ready to be worked on (virtio 1.x, 2.7).
///
/// The server has checked it: `size` is a power of two and at most
/// [`Backend::queue_size_max`](crate::Backend::queue_size_max); the three areas lie in `memory` as a whole
/// and are aligned to 16, 2 and 4 bytes. Nothing *in* the areas has been checked: they are the driver's to
/// write at any time.
#[derive(Clone, Debug)]
pub struct Vring {
    /// The guest's memory, as it is while this queue runs. It stays mapped for as long as this is held.
    ///
    /// If the front-end truncates the file behind it while the queue runs, it reads as zeros (a system call
    /// on it fails with EFAULT before), and the connection is about to end. Once the queue has been handed
    /// back nothing guards it any more.
    pub memory: Arc<GuestMemoryMmap>,
    /// How many entries the queue has.
    pub size: u16,
    /// Where the descriptor table is.
    pub desc: GuestAddress,
    /// Where the available ring is.
    pub avail: GuestAddress,
    /// Where the used ring is. The device goes on from the index that it finds there.
    pub used: GuestAddress,
    /// The first index of the available ring that has not been taken yet.
    pub next_avail: u16,
    /// The virtio features that the driver accepted, without bit 30.
    pub features: u64,
    /// Becomes readable when the driver has made entries available: an eventfd, a pipe or a socket.
    ///
    /// The queue's worker reads it. It is in non-blocking mode, so that no front-end can hold a reader: wait
    /// for it with poll (in an io_uring, too: a read there would not wait), then read; EAGAIN means that
    /// somebody else was faster. A read of 0 bytes means that the front-end has closed its end of a pipe or
    /// socket: no kick will come.
    pub kick: Arc<OwnedFd>,
    /// Where to tell the driver of used entries. Without it the driver polls.
    pub call: Option<Notifier>,
    /// Where to tell the front-end that the queue is broken and has been given up.
    pub err: Option<Notifier>,
    /// Where to keep what is under way, so that it outlives this process; and what an earlier one left
    /// ([`InflightQueue::resubmit`]). `None`: the front-end keeps no buffer for that. What a stopped queue gives back here is not
    /// looked at.
    pub inflight: Option<InflightQueue>,
}
