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
