//! What every split virtqueue is, whatever goes over it: two areas shared with the device, indexes, and descriptors that
//! are free or not. Who uses it keeps what the descriptors lend.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_drivers::transport::Transport;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use virtio_zbd_spec::ring as layout;
use virtio_zbd_spec::{Descriptor, DescriptorFlags, Features};
use zerocopy::IntoBytes;

use super::memory::Area;
use crate::error::{Error, Wrong};

pub(crate) const DESCRIPTOR_LEN_BYTES: usize = size_of::<Descriptor>();

/// One piece of a chain: where the device finds it, how long it is, and WRITE or nothing.
pub(crate) type Piece = (PhysAddr, usize, DescriptorFlags);

/// A queue's rings.
///
/// To be dropped only after the device was reset: until then it may write.
pub(crate) struct Split<H: Hal> {
    index: u16,
    depth: u16,
    event_idx: bool,
    /// Whether the device is to interrupt.
    interrupts: bool,
    /// Descriptor table and available ring.
    driver_area: Area<H>,
    avail_offset: usize,
    /// Used ring.
    device_area: Area<H>,
    /// The chain of free descriptors, and of those in a direct chain. Never read from where the device can write.
    next: Vec<u16>,
    free_head: u16,
    free: u16,
    avail_idx: u16,
    /// The available index when the device was last told, or was found not to want to be.
    told_idx: u16,
    used_idx: u16,
    /// Where the device was last asked to interrupt.
    used_event: Option<u16>,
}

/// An entry of the used ring, as the device wrote it: nothing of it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) id: u32,
    pub(crate) len_bytes: u32,
}

impl<H: Hal> Split<H> {
    /// Sets up queue `index` with `depth` descriptors, a power of two.
    pub(crate) fn new<T: Transport>(
        transport: &mut T,
        index: u16,
        depth: u16,
        features: Features,
    ) -> Result<Self, Error> {
        if transport.queue_used(index) {
            return Err(Error::Transport(virtio_drivers::Error::AlreadyUsed));
        }
        let avail_offset = bytes(layout::descriptor_table_len_bytes(depth));
        let driver_len_bytes = avail_offset + bytes(layout::avail_ring_len_bytes(depth));
        let area = |len_bytes, direction| Area::new(len_bytes, direction).ok_or(Error::NoMemory);
        let driver_area = area(driver_len_bytes, BufferDirection::DriverToDevice)?;
        let device_area = area(bytes(layout::used_ring_len_bytes(depth)), BufferDirection::DeviceToDriver)?;
        transport.queue_set(
            index,
            depth.into(),
            driver_area.paddr(0),
            driver_area.paddr(avail_offset),
            device_area.paddr(0),
        );
        Ok(Self {
            index,
            depth,
            event_idx: features.contains(Features::EVENT_IDX),
            interrupts: true,
            driver_area,
            avail_offset,
            device_area,
            next: (1..=depth).collect(),
            free_head: 0,
            free: depth,
            avail_idx: 0,
            told_idx: 0,
            used_idx: 0,
            used_event: None,
        })
    }

    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    pub(crate) fn depth(&self) -> u16 {
        self.depth
    }

    /// How many descriptors are free.
    pub(crate) fn free(&self) -> u16 {
        self.free
    }

    /// The head that the next chain will have.
    pub(crate) fn free_head(&self) -> u16 {
        self.free_head
    }

    /// Writes a chain of `count` pieces, at most as many as descriptors are [`free`](Self::free), and shows it to the device.
    pub(crate) fn push(&mut self, count: usize, pieces: impl Iterator<Item = Piece>) {
        let head = self.free_head;
        for (number, (paddr, len_bytes, flags)) in pieces.enumerate() {
            let last = number + 1 == count;
            let at = self.free_head;
            let next = self.next[usize::from(at)];
            let descriptor = descriptor(paddr, len_bytes, flags, if last { None } else { Some(next) });
            self.driver_area.write(usize::from(at) * DESCRIPTOR_LEN_BYTES, descriptor.as_bytes());
            self.free_head = next;
            self.free -= 1;
        }
        self.publish(head);
    }

    /// Shows a chain to the device (2.7.13.1–2.7.13.3).
    fn publish(&mut self, head: u16) {
        let entry = usize::from(self.avail_idx % self.depth) * size_of::<u16>();
        let offset = self.avail_offset + bytes(layout::AVAIL_ENTRIES_OFFSET_BYTES) + entry;
        self.driver_area.word(offset).store(head.to_le(), Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        // Release: whoever sees the index sees what it stands for.
        let idx = self.driver_area.word(self.avail_offset + bytes(layout::AVAIL_IDX_OFFSET_BYTES));
        idx.store(self.avail_idx.to_le(), Ordering::Release);
    }

    /// The next entry of the used ring, where `in_flight` chains are with the device. It stays the next one until
    /// [`pop`](Self::pop).
    pub(crate) fn peek(&mut self, in_flight: u16) -> Result<Option<Used>, Error> {
        if !self.can_pop() {
            return Ok(None);
        }
        // Read once more, and from here on not again: the index is the device's, which may change its mind.
        let (queue, done) = (self.index, self.done());
        if done == 0 {
            return Ok(None);
        }
        if done > in_flight {
            return Err(Wrong::UsedIdx { queue, done, in_flight }.into());
        }
        let entry = usize::from(self.used_idx % self.depth) * 8 + bytes(layout::USED_ENTRIES_OFFSET_BYTES);
        let id = u32::from_le_bytes(self.device_area.read(entry));
        let len_bytes = u32::from_le_bytes(self.device_area.read(entry + 4));
        Ok(Some(Used { id, len_bytes }))
    }

    /// Passes over the entry that was peeked at.
    pub(crate) fn pop(&mut self) {
        self.used_idx = self.used_idx.wrapping_add(1);
    }

    /// Frees the chain of `descriptors` that begins at `head`. The device is done with it, or was reset.
    pub(crate) fn release(&mut self, head: u16, descriptors: u16) {
        let mut last = head;
        for _ in 1..descriptors {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.free_head;
        self.free_head = head;
        self.free += descriptors;
    }

    /// Whether there is something to pop. Where there is nothing, the device was asked to interrupt.
    pub(crate) fn can_pop(&mut self) -> bool {
        self.done() != 0 || (self.asks_anew_for_interrupt() && self.done() != 0)
    }

    /// Whether the device wants to hear of what was pushed since this was last asked (2.7.13.4.1, 2.7.10).
    pub(crate) fn wants_notification(&mut self) -> bool {
        // The index must be seen before the device's word is read, or both sides fall asleep.
        fence(Ordering::SeqCst);
        let pushed = self.avail_idx.wrapping_sub(self.told_idx);
        self.told_idx = self.avail_idx;
        if self.event_idx {
            let event =
                self.device_word(layout::avail_event_offset_bytes(self.depth)).load(Ordering::Relaxed);
            // The device asked for the moment when the index passes `event`.
            self.avail_idx.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < pushed
        } else {
            let flags = self.device_word(layout::USED_FLAGS_OFFSET_BYTES).load(Ordering::Relaxed);
            pushed != 0 && u16::from_le(flags) & layout::USED_F_NO_NOTIFY == 0
        }
    }

    /// Says whether the device should interrupt when it is done with a request.
    pub(crate) fn set_interrupts(&mut self, wanted: bool) {
        self.interrupts = wanted;
        if !self.event_idx {
            self.set_avail_flags(if wanted { 0 } else { layout::AVAIL_F_NO_INTERRUPT });
        }
        // With EVENT_IDX the word is moved by `peek` alone. Once passed, it is not met again for 65,535 requests.
    }

    /// How many requests the device says it is done with that were not popped.
    fn done(&self) -> u16 {
        let used_idx = self.device_word(layout::USED_IDX_OFFSET_BYTES).load(Ordering::Acquire);
        u16::from_le(used_idx).wrapping_sub(self.used_idx)
    }

    /// Has the device interrupt at the next request that it is done with (2.7.7), before its driver goes to sleep. True
    /// where one more look is needed: what was done before the device saw the word does not interrupt.
    fn asks_anew_for_interrupt(&mut self) -> bool {
        if !self.interrupts || !self.event_idx || self.used_event == Some(self.used_idx) {
            return false;
        }
        self.used_event = Some(self.used_idx);
        let offset = self.avail_offset + bytes(layout::used_event_offset_bytes(self.depth));
        self.driver_area.word(offset).store(self.used_idx.to_le(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        true
    }

    fn set_avail_flags(&mut self, flags: u16) {
        let offset = self.avail_offset + bytes(layout::AVAIL_FLAGS_OFFSET_BYTES);
        self.driver_area.word(offset).store(flags.to_le(), Ordering::Relaxed);
        // The look for completions that follows must not overtake this.
        fence(Ordering::SeqCst);
    }

    fn device_word(&self, offset: u64) -> &AtomicU16 {
        self.device_area.word(bytes(offset))
    }
}

/// A descriptor; with `next`, the chain goes on there.
pub(crate) fn descriptor(
    paddr: PhysAddr,
    len_bytes: usize,
    flags: DescriptorFlags,
    next: Option<u16>,
) -> Descriptor {
    let flags = if next.is_some() { flags | DescriptorFlags::NEXT } else { flags };
    Descriptor {
        addr: paddr.into(),
        // A segment is at most 1 GiB (`Limits`), a table at most 16 KiB; a raw chain is shorter than 4 GiB.
        len: u32::try_from(len_bytes).unwrap_or(u32::MAX).into(),
        flags: flags.bits().into(),
        next: next.unwrap_or(0).into(),
    }
}

/// A length from the specification's formulas, which are in `u64`.
fn bytes(len_bytes: u64) -> usize {
    usize::try_from(len_bytes).unwrap_or(usize::MAX)
}
