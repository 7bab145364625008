//! The device's side of a split ring (2.7), in the guest's memory.
//!
//! The driver is kept to the rules: a chain that breaks one of them panics.

use virtio_zbd_spec::ring::{
    AVAIL_ENTRIES_OFFSET_BYTES, AVAIL_F_NO_INTERRUPT, AVAIL_FLAGS_OFFSET_BYTES, AVAIL_IDX_OFFSET_BYTES,
    USED_ENTRIES_OFFSET_BYTES, USED_F_NO_NOTIFY, USED_FLAGS_OFFSET_BYTES, USED_IDX_OFFSET_BYTES,
    avail_event_offset_bytes, avail_ring_len_bytes, descriptor_table_len_bytes, used_event_offset_bytes,
    used_ring_len_bytes,
};
use virtio_zbd_spec::{Descriptor, DescriptorFlags, UsedElem};
use zerocopy::IntoBytes;

use super::memory;

/// A queue that the driver has set up.
#[derive(Debug)]
pub struct Ring {
    size: u16,
    table: u64,
    avail: u64,
    used: u64,
    event_idx: bool,
    next_avail: u16,
    used_idx: u16,
}

/// A chain that the device holds.
#[derive(Debug)]
pub struct Chain {
    /// The index of its first descriptor.
    pub head: u16,
    /// What the device may read.
    pub readable: Vec<Piece>,
    /// What the device may write.
    pub writable: Vec<Piece>,
    indirect_table: Option<Piece>,
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub addr: u64,
    /// Its length in bytes.
    pub len: usize,
}

impl Ring {
    /// A queue of `size` entries at these addresses, all of which the device holds from now on.
    pub fn new(size: u16, table: u64, avail: u64, used: u64, event_idx: bool) -> Self {
        let ring = Self { size, table, avail, used, event_idx, next_avail: 0, used_idx: 0 };
        for piece in ring.areas() {
            memory::hold(piece.addr, piece.len);
        }
        ring
    }

    /// Gives the queue's memory back.
    pub fn let_go(self) {
        for piece in self.areas() {
            memory::let_go(piece.addr, piece.len);
        }
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The next chain that the driver has made available. Where there is none, the driver is asked to notify.
    pub fn pop(&mut self, indirect_allowed: bool) -> Option<Chain> {
        let idx = self.read_u16(self.avail + AVAIL_IDX_OFFSET_BYTES);
        if idx == self.next_avail {
            self.set_avail_event(self.next_avail);
            return None;
        }
        let ahead = idx.wrapping_sub(self.next_avail);
        assert!(ahead <= self.size, "the available index is {ahead} ahead in a queue of {}", self.size);
        let head = self.next_head();
        let chain = self.follow(head, indirect_allowed);
        for piece in chain.pieces() {
            memory::hold(piece.addr, piece.len);
        }
        Some(chain)
    }

    /// As [`Self::pop`], without following the chain: for a device that has lied, to which the driver owes nothing any more.
    pub fn pop_blindly(&mut self) -> Option<Chain> {
        let idx = self.read_u16(self.avail + AVAIL_IDX_OFFSET_BYTES);
        if idx == self.next_avail {
            self.set_avail_event(self.next_avail);
            return None;
        }
        let head = self.next_head();
        Some(Chain { head, readable: Vec::new(), writable: Vec::new(), indirect_table: None })
    }

    fn next_head(&mut self) -> u16 {
        let slot = u64::from(self.next_avail % self.size);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.read_u16(self.avail + AVAIL_ENTRIES_OFFSET_BYTES + 2 * slot)
    }

    /// Puts one element into the used ring and publishes it. Says whether the driver wants to be interrupted (2.7.7).
    pub fn push(&mut self, id: u32, len: u32) -> bool {
        self.set_next_used(id, len);
        self.advance(1);
        if self.event_idx {
            let event = self.read_u16(self.avail + used_event_offset_bytes(self.size));
            event == self.used_idx.wrapping_sub(1)
        } else {
            self.read_u16(self.avail + AVAIL_FLAGS_OFFSET_BYTES) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Writes the next element of the used ring without publishing it.
    pub fn set_next_used(&mut self, id: u32, len: u32) {
        let slot = u64::from(self.used_idx % self.size);
        let element = UsedElem { id: id.into(), len: len.into() };
        memory::write(self.used + USED_ENTRIES_OFFSET_BYTES + 8 * slot, element.as_bytes());
    }

    /// Moves the used index on, whether the elements below it were written or not.
    pub fn advance(&mut self, by: u16) {
        self.used_idx = self.used_idx.wrapping_add(by);
        memory::write(self.used + USED_IDX_OFFSET_BYTES, &self.used_idx.to_le_bytes());
    }

    /// The id in the used element that is published as the `ahead`-th from now on: of old, if nothing was written there since.
    pub fn id_ahead(&self, ahead: u16) -> u32 {
        let slot = u64::from(self.used_idx.wrapping_add(ahead) % self.size);
        u32::from_le_bytes(memory::read_array(self.used + USED_ENTRIES_OFFSET_BYTES + 8 * slot))
    }

    /// Asks the driver for notifications, or to save them.
    pub fn set_no_notify(&mut self, no_notify: bool) {
        let flags = if no_notify { USED_F_NO_NOTIFY } else { 0 };
        memory::write(self.used + USED_FLAGS_OFFSET_BYTES, &flags.to_le_bytes());
    }

    /// Asks to be notified when the available index passes this one (2.7.10).
    pub fn set_avail_event(&mut self, event: u16) {
        if self.event_idx {
            memory::write(self.used + avail_event_offset_bytes(self.size), &event.to_le_bytes());
        }
    }

    fn areas(&self) -> [Piece; 3] {
        let piece = |addr, len| Piece { addr, len: usize::try_from(len).expect("a ring fits") };
        [
            piece(self.table, descriptor_table_len_bytes(self.size)),
            piece(self.avail, avail_ring_len_bytes(self.size)),
            piece(self.used, used_ring_len_bytes(self.size)),
        ]
    }

    fn read_u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(memory::read_array(addr))
    }

    fn follow(&self, head: u16, indirect_allowed: bool) -> Chain {
        let first = descriptor(self.table, usize::from(self.size), head);
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new(), indirect_table: None };
        if !flags(&first).contains(DescriptorFlags::INDIRECT) {
            chain.collect(self.table, usize::from(self.size), head, usize::from(self.size));
            return chain;
        }
        assert!(indirect_allowed, "an indirect descriptor without INDIRECT_DESC");
        assert_eq!(flags(&first), DescriptorFlags::INDIRECT, "an indirect descriptor has no other flag");
        let len = first.len.get() as usize;
        assert!(len > 0 && len.is_multiple_of(16), "an indirect table of {len} bytes");
        chain.indirect_table = Some(Piece { addr: first.addr.get(), len });
        chain.collect(first.addr.get(), len / 16, 0, usize::from(self.size));
        chain
    }
}

impl Chain {
    /// The readable bytes, in order.
    pub fn read(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.readable {
            bytes.extend_from_slice(&memory::read(piece.addr, piece.len));
        }
        bytes
    }

    /// How many bytes the device may write.
    pub fn writable_len(&self) -> usize {
        self.writable.iter().map(|piece| piece.len).sum()
    }

    /// Writes from `offset` of the writable bytes on; what does not fit is an error of the test.
    pub fn write(&self, offset: usize, mut bytes: &[u8]) {
        let mut skip = offset;
        for piece in &self.writable {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let now = bytes.len().min(piece.len - skip);
            memory::write(piece.addr + skip as u64, &bytes[..now]);
            bytes = &bytes[now..];
            skip = 0;
        }
        assert!(bytes.is_empty(), "{} bytes do not fit into the chain", bytes.len());
    }

    /// The device has given the chain back.
    pub fn let_go(&mut self) {
        for piece in self.pieces() {
            memory::let_go(piece.addr, piece.len);
        }
        (self.readable, self.writable, self.indirect_table) = (Vec::new(), Vec::new(), None);
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.readable.iter().chain(&self.writable).chain(&self.indirect_table)
    }

    fn collect(&mut self, table: u64, entries: usize, head: u16, longest: usize) {
        let mut next = Some(head);
        let mut count = 0;
        while let Some(index) = next {
            count += 1;
            assert!(count <= longest, "a chain of more than {longest} descriptors (2.7.5.3.1)");
            let found = descriptor(table, entries, index);
            let flags = flags(&found);
            assert!(!flags.contains(DescriptorFlags::INDIRECT), "an indirect descriptor inside a chain");
            let piece = Piece { addr: found.addr.get(), len: found.len.get() as usize };
            assert_ne!(piece.len, 0, "an empty descriptor");
            if flags.contains(DescriptorFlags::WRITE) {
                self.writable.push(piece);
            } else {
                assert!(self.writable.is_empty(), "a readable descriptor behind a writable one (2.7.4.2)");
                self.readable.push(piece);
            }
            next = flags.contains(DescriptorFlags::NEXT).then_some(found.next.get());
        }
    }
}

fn flags(descriptor: &Descriptor) -> DescriptorFlags {
    DescriptorFlags::from_bits(descriptor.flags.get()).expect("known descriptor flags")
}

fn descriptor(table: u64, entries: usize, index: u16) -> Descriptor {
    assert!(usize::from(index) < entries, "descriptor {index} of a table of {entries}");
    let bytes: [u8; 16] = memory::read_array(table + 16 * u64::from(index));
    zerocopy::transmute!(bytes)
}
