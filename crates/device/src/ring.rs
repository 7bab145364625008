//! The device's side of a split virtqueue (virtio 1.3, 2.7): heads out, used elements in.
//!
//! It knows the ring and nothing of threads, notifications' transport or requests. Own code rather than `virtio-queue`,
//! because used elements are published by the batch, and because a chain that ends must be told from one that is broken
//! (`chain.rs`).

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_zbd_spec::ring;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where a queue lies in guest memory and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The descriptor table, aligned to 16 bytes.
    pub descriptor_table: GuestAddress,
    /// The available ring, aligned to 2 bytes.
    pub avail_ring: GuestAddress,
    /// The used ring, aligned to 4 bytes.
    pub used_ring: GuestAddress,
    /// Index of the first available entry that was not taken yet.
    pub next_avail: u16,
    /// EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// Why a ring can't be used, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum RingError {
    #[error("the queue has {size} entries; it must be a power of two from 1 to {max}", max = ring::QUEUE_SIZE_MAX)]
    Size { size: u16 },
    #[error("the {part} at {addr:#x} is not aligned to {align_bytes} bytes")]
    Unaligned { part: &'static str, addr: u64, align_bytes: u64 },
    #[error("the {part}, {len_bytes} bytes at {addr:#x}, does not lie in guest memory")]
    Outside { part: &'static str, addr: u64, len_bytes: u64 },
    #[error("the driver's available index went from {from} to {to}, further than the queue is long ({size})")]
    AvailIndexJump { from: u16, to: u16, size: u16 },
}

/// The device's side of one split virtqueue.
///
/// The ring's own place was checked when it was made, so an access to it can't fail; what the driver
/// writes into it is checked as it is read.
#[derive(Debug)]
pub(crate) struct SplitRing {
    memory: Arc<GuestMemoryMmap>,
    config: RingConfig,
    next_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
    published_used: Wrapping<u16>,
}

impl SplitRing {
    pub(crate) fn new(memory: Arc<GuestMemoryMmap>, config: RingConfig) -> Result<Self, RingError> {
        let size = config.size;
        if !size.is_power_of_two() || size > ring::QUEUE_SIZE_MAX {
            return Err(RingError::Size { size });
        }
        for (part, at, align_bytes, len_bytes) in [
            (
                "descriptor table",
                config.descriptor_table,
                ring::DESCRIPTOR_TABLE_ALIGN_BYTES,
                ring::descriptor_table_len_bytes(size),
            ),
            (
                "available ring",
                config.avail_ring,
                ring::AVAIL_RING_ALIGN_BYTES,
                ring::avail_ring_len_bytes(size),
            ),
            ("used ring", config.used_ring, ring::USED_RING_ALIGN_BYTES, ring::used_ring_len_bytes(size)),
        ] {
            let addr = at.0;
            if !addr.is_multiple_of(align_bytes) {
                return Err(RingError::Unaligned { part, addr, align_bytes });
            }
            // In one region: a ring that straddles two would need a copy at the seam.
            let whole = usize::try_from(len_bytes).ok().is_some_and(|len| memory.get_slice(at, len).is_ok());
            if !whole {
                return Err(RingError::Outside { part, addr, len_bytes });
            }
        }
        let mut this = Self {
            memory,
            config,
            next_avail: Wrapping(config.next_avail),
            next_used: Wrapping(0),
            published_used: Wrapping(0),
        };
        // The used index is nowhere but in the ring itself: a queue that is taken up again goes on there.
        this.next_used =
            Wrapping(this.load(config.used_ring, ring::USED_IDX_OFFSET_BYTES, Ordering::Relaxed));
        this.published_used = this.next_used;
        Ok(this)
    }

    pub(crate) fn size(&self) -> u16 {
        self.config.size
    }

    pub(crate) fn descriptor_table(&self) -> GuestAddress {
        self.config.descriptor_table
    }

    /// Where the ring stands, to be taken up again from.
    pub(crate) fn next_avail(&self) -> u16 {
        self.next_avail.0
    }

    /// The head of the next available chain. `None`: the driver has given no more.
    ///
    /// The head may be any number: the chain's walk checks it.
    pub(crate) fn pop(&mut self) -> Result<Option<u16>, RingError> {
        let avail = self.config.avail_ring;
        // Acquire: the entries and descriptors were written before the index.
        let idx = Wrapping(self.load(avail, ring::AVAIL_IDX_OFFSET_BYTES, Ordering::Acquire));
        let pending = idx - self.next_avail;
        if pending.0 == 0 {
            return Ok(None);
        }
        if pending.0 > self.config.size {
            return Err(RingError::AvailIndexJump {
                from: self.next_avail.0,
                to: idx.0,
                size: self.config.size,
            });
        }
        let slot = u64::from(self.next_avail.0 % self.config.size);
        let head = self.load(avail, ring::AVAIL_ENTRIES_OFFSET_BYTES + 2 * slot, Ordering::Relaxed);
        self.next_avail += 1;
        Ok(Some(head))
    }

    /// Puts a used element into the ring. The driver sees it after [`publish`](Self::publish).
    pub(crate) fn push_used(&mut self, head: u16, written_bytes: u32) {
        let slot = u64::from(self.next_used.0 % self.config.size);
        let at = ring::USED_ENTRIES_OFFSET_BYTES + 8 * slot;
        self.store(self.config.used_ring, at, u32::from(head).to_le());
        self.store(self.config.used_ring, at + 4, written_bytes.to_le());
        self.next_used += 1;
    }

    /// Whether there are used elements that the driver can't see yet.
    pub(crate) fn has_unpublished(&self) -> bool {
        self.published_used != self.next_used
    }

    /// The used ring's index, as the driver sees it.
    pub(crate) fn used_idx(&self) -> u16 {
        self.published_used.0
    }

    /// Shows the driver all used elements since the last time. Returns whether it wants a notification for them.
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return false;
        }
        let used = self.config.used_ring;
        let at = addr(used, ring::USED_IDX_OFFSET_BYTES);
        // Release: the elements and the data are written before the index.
        let stored = self.memory.store(new.0.to_le(), at, Ordering::Release);
        debug_assert!(stored.is_ok(), "the used ring was checked");
        self.published_used = new;
        // The index must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let avail = self.config.avail_ring;
        if self.config.event_idx {
            let at = ring::used_event_offset_bytes(self.config.size);
            let used_event = Wrapping(self.load(avail, at, Ordering::Relaxed));
            // The driver wants to hear when the index passes used_event (2.7.7.2).
            (new - used_event - Wrapping(1)).0 < (new - old).0
        } else {
            let flags = self.load(avail, ring::AVAIL_FLAGS_OFFSET_BYTES, Ordering::Relaxed);
            flags & ring::AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to notify: the ring is being looked at anyway.
    pub(crate) fn disable_kicks(&mut self) {
        // With EVENT_IDX the old avail_event lies behind already: nothing to do.
        if !self.config.event_idx {
            self.store(self.config.used_ring, ring::USED_FLAGS_OFFSET_BYTES, ring::USED_F_NO_NOTIFY.to_le());
        }
    }

    /// Asks the driver to notify again. Returns whether something came in between, which must be looked at first.
    pub(crate) fn enable_kicks(&mut self) -> bool {
        let used = self.config.used_ring;
        if self.config.event_idx {
            let at = ring::avail_event_offset_bytes(self.config.size);
            self.store(used, at, self.next_avail.0.to_le());
        } else {
            self.store(used, ring::USED_FLAGS_OFFSET_BYTES, 0u16);
        }
        // The wish must be visible before the index is read again.
        fence(Ordering::SeqCst);
        let idx = self.load(self.config.avail_ring, ring::AVAIL_IDX_OFFSET_BYTES, Ordering::Acquire);
        idx != self.next_avail.0
    }

    fn load(&self, base: GuestAddress, offset: u64, order: Ordering) -> u16 {
        let value: Result<u16, _> = self.memory.load(addr(base, offset), order);
        debug_assert!(value.is_ok(), "the rings were checked");
        u16::from_le(value.unwrap_or_default())
    }

    fn store<T: vm_memory::AtomicAccess>(&self, base: GuestAddress, offset: u64, value: T) {
        let stored = self.memory.store(value, addr(base, offset), Ordering::Relaxed);
        debug_assert!(stored.is_ok(), "the rings were checked");
    }
}

/// An address inside a ring, whose end was checked not to overflow.
fn addr(base: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(base.0.wrapping_add(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 8;
    const DESCRIPTORS: GuestAddress = GuestAddress(0x1000);
    const AVAIL: GuestAddress = GuestAddress(0x2000);
    const USED: GuestAddress = GuestAddress(0x3000);

    /// A ring and the memory it is in; both sides start at `base`.
    fn ring_at(base: u16, event_idx: bool) -> (SplitRing, Arc<GuestMemoryMmap>) {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        set(&memory, AVAIL, ring::AVAIL_IDX_OFFSET_BYTES, base);
        set(&memory, USED, ring::USED_IDX_OFFSET_BYTES, base);
        let ring = SplitRing::new(Arc::clone(&memory), config(base, event_idx)).unwrap();
        (ring, memory)
    }

    fn config(next_avail: u16, event_idx: bool) -> RingConfig {
        RingConfig {
            size: SIZE,
            descriptor_table: DESCRIPTORS,
            avail_ring: AVAIL,
            used_ring: USED,
            next_avail,
            event_idx,
        }
    }

    fn set(memory: &GuestMemoryMmap, area: GuestAddress, offset: u64, value: u16) {
        memory.write_slice(&value.to_le_bytes(), GuestAddress(area.0 + offset)).unwrap();
    }

    fn get(memory: &GuestMemoryMmap, area: GuestAddress, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        memory.read_slice(&mut bytes, GuestAddress(area.0 + offset)).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn used_idx(memory: &GuestMemoryMmap) -> u16 {
        get(memory, USED, ring::USED_IDX_OFFSET_BYTES)
    }

    /// The element that stands at `index`: id and length.
    fn used_at(memory: &GuestMemoryMmap, index: u16) -> (u32, u32) {
        let mut bytes = [0; 8];
        let at = ring::USED_ENTRIES_OFFSET_BYTES + 8 * u64::from(index % SIZE);
        memory.read_slice(&mut bytes, GuestAddress(USED.0 + at)).unwrap();
        let [a, b, c, d, e, f, g, h] = bytes;
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    /// The driver gives `heads`, from index `at` on.
    fn give(memory: &GuestMemoryMmap, at: u16, heads: &[u16]) {
        let mut idx = at;
        for &head in heads {
            let offset = ring::AVAIL_ENTRIES_OFFSET_BYTES + 2 * u64::from(idx % SIZE);
            set(memory, AVAIL, offset, head);
            idx = idx.wrapping_add(1);
        }
        set(memory, AVAIL, ring::AVAIL_IDX_OFFSET_BYTES, idx);
    }

    #[test]
    fn heads_come_in_order_and_the_index_wraps() {
        for base in [0, 5, 65_530, 65_535] {
            let (mut ring, memory) = ring_at(base, false);
            assert_eq!(ring.pop(), Ok(None));
            let mut at = base;
            for round in 0..40u16 {
                // Any number may be a head.
                let heads: Vec<u16> =
                    (0..round % 9).map(|i| round.wrapping_mul(7001).wrapping_add(i)).collect();
                give(&memory, at, &heads);
                for &head in &heads {
                    assert_eq!(ring.pop(), Ok(Some(head)));
                }
                at = at.wrapping_add(round % 9);
                assert_eq!((ring.pop(), ring.next_avail()), (Ok(None), at));
            }
        }
    }

    #[test]
    fn an_index_further_than_the_queue_is_long_is_no_index() {
        for base in [0, 100, 65_533] {
            for ahead in [9, 10, 1000, 32_768, 65_535] {
                let (mut ring, memory) = ring_at(base, false);
                let to = base.wrapping_add(ahead);
                set(&memory, AVAIL, ring::AVAIL_IDX_OFFSET_BYTES, to);
                let jump = RingError::AvailIndexJump { from: base, to, size: SIZE };
                assert_eq!(ring.pop(), Err(jump));
                assert_eq!(ring.next_avail(), base, "nothing was taken");
            }
            let (mut ring, memory) = ring_at(base, false);
            give(&memory, base, &[1; 8]);
            for _ in 0..8 {
                assert_eq!(ring.pop(), Ok(Some(1)));
            }
            assert_eq!(ring.pop(), Ok(None));
        }
    }

    #[test]
    fn used_elements_are_shown_by_the_batch() {
        for base in [0, 65_532, 65_535] {
            let (mut ring, memory) = ring_at(base, false);
            let mut shown = base;
            for round in 0..30u16 {
                let batch = round % 8;
                for i in 0..batch {
                    ring.push_used(round * 8 + i, u32::from(i) + 1_000_000);
                    assert_eq!(used_idx(&memory), shown, "not before publish");
                }
                ring.publish();
                for i in 0..batch {
                    let element = (u32::from(round * 8 + i), u32::from(i) + 1_000_000);
                    assert_eq!(used_at(&memory, shown.wrapping_add(i)), element);
                }
                shown = shown.wrapping_add(batch);
                assert_eq!(used_idx(&memory), shown);
            }
        }
    }

    #[test]
    fn a_queue_that_is_taken_up_again_goes_on_in_the_used_ring() {
        let (mut ring, memory) = ring_at(65_535, false);
        give(&memory, 65_535, &[3, 4]);
        ring.pop().unwrap();
        ring.push_used(3, 1);
        ring.publish();
        let mut again = SplitRing::new(Arc::clone(&memory), config(ring.next_avail(), false)).unwrap();
        assert_eq!((again.next_avail(), again.pop()), (0, Ok(Some(4))));
        again.push_used(4, 2);
        again.publish();
        assert_eq!((used_at(&memory, 65_535), used_at(&memory, 0), used_idx(&memory)), ((3, 1), (4, 2), 1));
    }

    #[test]
    fn the_driver_is_notified_when_the_index_passes_its_event() {
        // Every batch length and every event near it, where the indices wrap and where they don't.
        for old in [0u16, 1, 7, 300, 32_767, 65_527, 65_528, 65_534, 65_535] {
            for batch in 0..=SIZE {
                for ahead in 0..40u16 {
                    let event = old.wrapping_sub(20).wrapping_add(ahead);
                    let (mut ring, memory) = ring_at(old, true);
                    set(&memory, AVAIL, ring::used_event_offset_bytes(SIZE), event);
                    for _ in 0..batch {
                        ring.push_used(0, 0);
                    }
                    // The driver wants to hear of the element with this very index.
                    let expected = (0..batch).any(|i| old.wrapping_add(i) == event);
                    assert_eq!(ring.publish(), expected, "from {old}, {batch} used, event {event}");
                    assert!(!ring.publish(), "nothing new");
                }
            }
        }
    }

    #[test]
    fn without_events_the_driver_says_whether_it_wants_notifications() {
        let (mut ring, memory) = ring_at(0, false);
        for flags in [0, ring::AVAIL_F_NO_INTERRUPT, 0xfffe, 0xffff] {
            assert!(!ring.publish(), "nothing new");
            set(&memory, AVAIL, ring::AVAIL_FLAGS_OFFSET_BYTES, flags);
            ring.push_used(0, 0);
            assert_eq!(ring.publish(), flags & 1 == 0);
        }
    }

    #[test]
    fn kicks_are_asked_for_when_there_is_nothing_left() {
        for base in [0, 65_534, 65_535] {
            let (mut ring, memory) = ring_at(base, true);
            let event = || get(&memory, USED, ring::avail_event_offset_bytes(SIZE));
            assert!(!ring.enable_kicks());
            assert_eq!(event(), base);
            give(&memory, base, &[1, 2]);
            assert!(ring.enable_kicks(), "something came in between");
            ring.pop().unwrap();
            ring.disable_kicks();
            assert!(ring.enable_kicks(), "one is left");
            ring.pop().unwrap();
            assert!(!ring.enable_kicks());
            assert_eq!(event(), base.wrapping_add(2));
            // The flags are not used with EVENT_IDX.
            assert_eq!(get(&memory, USED, ring::USED_FLAGS_OFFSET_BYTES), 0);

            let (mut ring, memory) = ring_at(base, false);
            let flags = || get(&memory, USED, ring::USED_FLAGS_OFFSET_BYTES);
            ring.disable_kicks();
            assert_eq!(flags(), ring::USED_F_NO_NOTIFY);
            give(&memory, base, &[1]);
            assert!(ring.enable_kicks());
            assert_eq!(flags(), 0);
            ring.pop().unwrap();
            assert!(!ring.enable_kicks());
            assert_eq!(get(&memory, USED, ring::avail_event_offset_bytes(SIZE)), 0);
        }
    }

    #[test]
    fn a_ring_lies_in_guest_memory_and_is_aligned() {
        let regions =
            [(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000), (GuestAddress(0x8000), 0x1000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let good = RingConfig {
            descriptor_table: GuestAddress(0),
            avail_ring: GuestAddress(0x800),
            used_ring: GuestAddress(0x1000),
            ..config(0, true)
        };
        let check = |config| SplitRing::new(Arc::clone(&memory), config).map(drop);
        assert_eq!(check(good), Ok(()));
        for size in [0, 3, 6, 9, 32_769, 65_535] {
            assert_eq!(check(RingConfig { size, ..good }), Err(RingError::Size { size }));
        }
        let table = |at| check(RingConfig { descriptor_table: GuestAddress(at), ..good });
        let avail = |at| check(RingConfig { avail_ring: GuestAddress(at), ..good });
        let used = |at| check(RingConfig { used_ring: GuestAddress(at), ..good });
        // 16, 2 and 4 bytes; with EVENT_IDX's words at the end they are 128, 22 and 70 bytes long.
        assert_eq!((table(0x1f80), avail(0x1fea), used(0x1fb8)), (Ok(()), Ok(()), Ok(())));
        assert_eq!((table(0x2f80), avail(0x2fea), used(0x2fb8)), (Ok(()), Ok(()), Ok(())));
        let unaligned = |part, addr, align_bytes| Err(RingError::Unaligned { part, addr, align_bytes });
        assert_eq!(table(0x108), unaligned("descriptor table", 0x108, 16));
        assert_eq!(avail(0x801), unaligned("available ring", 0x801, 2));
        assert_eq!(used(0x1002), unaligned("used ring", 0x1002, 4));
        let outside = |part, addr, len_bytes| Err(RingError::Outside { part, addr, len_bytes });
        // Across two regions, into a hole, past the end, around the address space.
        for at in [0x1f90, 0x2f90, 0x7ff0, 0x8f90, 0x9000, u64::MAX - 15] {
            assert_eq!(table(at), outside("descriptor table", at, 128));
        }
        for at in [0x1fec, 0x2fec, 0x8fec, u64::MAX - 1] {
            assert_eq!(avail(at), outside("available ring", at, 22));
        }
        for at in [0x1fbc, 0x2fbc, 0x8fbc, u64::MAX - 3] {
            assert_eq!(used(at), outside("used ring", at, 70));
        }
    }
}
