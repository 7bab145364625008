//! What is known of a queue: what the front-end has said of it, and whether the device has it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::memory::MemoryTable;
use crate::{Notifier, RunningQueue};

/// One queue of a connection.
#[derive(Debug)]
pub(crate) struct Ring<Q> {
    /// How many entries it has, once the front-end has said so.
    pub(crate) size: Option<u16>,
    /// Where it is in user addresses, once the front-end has said so.
    pub(crate) place: Option<Place>,
    /// The first index of the available ring that the device has not taken.
    pub(crate) next_avail: u16,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    pub(crate) call: Option<Notifier>,
    pub(crate) err: Option<Notifier>,
    /// What SET_VRING_ENABLE said last, if anything.
    pub(crate) enabled: Option<bool>,
    /// The device has it.
    pub(crate) running: Option<Q>,
}

impl<Q: RunningQueue> Ring<Q> {
    /// A queue of which nothing is known.
    pub(crate) fn new() -> Self {
        Self {
            size: None,
            place: None,
            next_avail: 0,
            kick: None,
            call: None,
            err: None,
            enabled: None,
            running: None,
        }
    }

    /// Takes the queue back from the device, drained, if the device has it.
    pub(crate) fn stop(&mut self) {
        if let Some(queue) = self.running.take() {
            self.next_avail = queue.stop().next_avail;
        }
    }

    /// Stops it and forgets what the driver has said. Where to signal errors is the front-end's, and stays.
    pub(crate) fn reset(&mut self) {
        self.stop();
        let err = self.err.take();
        *self = Self { err, ..Self::new() };
    }
}

/// The three areas of a queue in user addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

/// The three areas of a queue in guest addresses: wholly in guest memory, aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Areas {
    pub(crate) desc: GuestAddress,
    pub(crate) avail: GuestAddress,
    pub(crate) used: GuestAddress,
}

/// Why a queue cannot be where it is said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(
        "the {area} at user address {user_addr:#x} with {size_bytes} bytes is not within a memory region"
    )]
    Outside { area: &'static str, user_addr: u64, size_bytes: u64 },
    #[error("the {area} is at guest address {guest_addr:#x}, a multiple of {align_bytes} is expected")]
    Alignment { area: &'static str, guest_addr: u64, align_bytes: u64 },
}

impl Place {
    /// Finds the areas of a queue of `size` entries in memory (virtio 1.x, 2.7: sizes and alignments of a
    /// split virtqueue).
    pub(crate) fn find(&self, memory: &MemoryTable, size: u16) -> Result<Areas, PlaceError> {
        let size = u64::from(size);
        let find = |area, user_addr, size_bytes, align_bytes| {
            let guest = memory.translate(user_addr, size_bytes).ok_or(PlaceError::Outside {
                area,
                user_addr,
                size_bytes,
            })?;
            if guest.0 % align_bytes != 0 {
                return Err(PlaceError::Alignment { area, guest_addr: guest.0, align_bytes });
            }
            Ok(guest)
        };
        Ok(Areas {
            desc: find("descriptor table", self.desc, 16 * size, 16)?,
            avail: find("available ring", self.avail, 6 + 2 * size, 2)?,
            used: find("used ring", self.used, 6 + 8 * size, 4)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use virtio_zbd_mapguard::Alarm;

    use super::*;
    use crate::message::MemRegion;

    #[test]
    fn areas_lie_in_memory_to_their_last_byte() {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 0x1_0000).unwrap();
        let region = MemRegion {
            guest_addr: 0x10_0000,
            size_bytes: 0x1_0000,
            user_addr: 0x4000_0000,
            mmap_offset_bytes: 0,
        };
        let memory = MemoryTable::of(vec![(region, fd)], &Alarm::new().unwrap()).unwrap();
        let good = Place { desc: 0x4000_f000, avail: 0x4000_0002, used: 0x4000_1004 };
        let areas = good.find(&memory, 256).unwrap();
        assert_eq!(areas.desc, GuestAddress(0x10_f000));
        assert_eq!(areas.avail, GuestAddress(0x10_0002));
        assert_eq!(areas.used, GuestAddress(0x10_1004));

        // One byte past the end, for each of the areas: 16 · 256, 6 + 2 · 256, 6 + 8 · 256.
        type Edge = fn(u64) -> Place;
        let edges: [(&str, u64, u64, Edge); 3] = [
            ("descriptor table", 4096, 16, |at| Place { desc: at, ..GOOD }),
            ("available ring", 518, 2, |at| Place { avail: at, ..GOOD }),
            ("used ring", 2054, 4, |at| Place { used: at, ..GOOD }),
        ];
        let end = 0x4001_0000;
        for (area, size_bytes, align, edge) in edges {
            let last = (end - size_bytes) / align * align;
            assert!(edge(last).find(&memory, 256).is_ok(), "{area}");
            let user_addr = last + align;
            let expected = PlaceError::Outside { area, user_addr, size_bytes };
            assert_eq!(edge(user_addr).find(&memory, 256), Err(expected));
            let off = edge(last - align / 2).find(&memory, 256);
            let guest_addr = last - align / 2 - 0x4000_0000 + 0x10_0000;
            assert_eq!(off, Err(PlaceError::Alignment { area, guest_addr, align_bytes: align }));
        }
    }

    const GOOD: Place = Place { desc: 0x4000_0000, avail: 0x4000_0000, used: 0x4000_0000 };
}
