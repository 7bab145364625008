//! The driver's side of a split virtqueue, honest or not (virtio 1.3, 2.7).

use std::sync::atomic::{Ordering, fence};

use virtio_zbd_spec::ring::{
    AVAIL_ENTRIES_OFFSET_BYTES, AVAIL_F_NO_INTERRUPT, AVAIL_FLAGS_OFFSET_BYTES, AVAIL_IDX_OFFSET_BYTES,
    AVAIL_RING_ALIGN_BYTES, DESCRIPTOR_TABLE_ALIGN_BYTES, QUEUE_SIZE_MAX, USED_ENTRIES_OFFSET_BYTES,
    USED_F_NO_NOTIFY, USED_FLAGS_OFFSET_BYTES, USED_IDX_OFFSET_BYTES, USED_RING_ALIGN_BYTES,
    avail_event_offset_bytes, avail_ring_len_bytes, descriptor_table_len_bytes, used_event_offset_bytes,
    used_ring_len_bytes,
};
use virtio_zbd_spec::{Descriptor, DescriptorFlags, UsedElem};
use vm_memory::GuestAddress;

use crate::error::{Error, Result};
use crate::ram::GuestRam;

/// A split virtqueue as its driver sees it.
///
/// There are two ways to use it, and they mix:
/// - the honest one: [`add_chain`](Self::add_chain), [`publish`](Self::publish), [`poll_used`](Self::poll_used), with
///   descriptors taken and given back by the ring;
/// - by hand: [`take_descs`](Self::take_descs), [`set_desc`](Self::set_desc), [`push_avail`](Self::push_avail) and the
///   setters of each word, for what an honest driver would never write.
///
/// Nothing that the device can write is trusted or read back, but the used ring.
pub struct DriverRing {
    ram: GuestRam,
    size: u16,
    event_idx: bool,
    base: u16,
    desc_table: GuestAddress,
    avail_ring: GuestAddress,
    used_ring: GuestAddress,
    /// Where the next head goes; runs ahead of `published_idx` until it is published.
    avail_idx: u16,
    published_idx: u16,
    last_used_idx: u16,
    free: Vec<u16>,
    /// By head: what `add_chain` gave to the device.
    chains: Vec<Option<Chain>>,
    /// By head: how often `push_avail` gave it to the device.
    by_hand: Vec<u16>,
}

struct Chain {
    descs: Vec<u16>,
    table: Option<GuestAddress>,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    /// Where it is; any number, an honest driver's lie in [`GuestRam`].
    pub addr: GuestAddress,
    /// How long it is in bytes.
    pub len: u32,
    /// Whether the device writes it; else it reads it.
    pub device_writable: bool,
}

impl Buf {
    /// A buffer that the device reads.
    #[must_use]
    pub const fn readable(addr: GuestAddress, len: u32) -> Self {
        Self { addr, len, device_writable: false }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub const fn writable(addr: GuestAddress, len: u32) -> Self {
        Self { addr, len, device_writable: true }
    }
}

/// Where the descriptors of a chain are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// All in the queue's own table (2.7.5).
    Direct,
    /// All in a table of their own, behind one descriptor (2.7.5.3).
    Indirect,
    /// This many in the queue's table, the rest in a table of their own behind the last one: unusual but allowed
    /// (2.7.5.3.2).
    Tail(usize),
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's head, as the device wrote it.
    pub id: u32,
    /// How many bytes the device says to have written.
    pub len: u32,
    /// Whose chain it was.
    pub origin: Origin,
}

/// How the device came to a chain that it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Through [`DriverRing::add_chain`]; its descriptors are free again.
    Chain,
    /// Through [`DriverRing::push_avail`].
    ByHand,
    /// Not at all: nothing with this head is outstanding. The device is wrong.
    Nowhere,
}

impl DriverRing {
    /// A zeroed ring of `size` entries in `ram`.
    ///
    /// Its three areas get the least alignment that the specification asks for (2.7). With `event_idx` the index words
    /// decide on notifications, else the flags. `base` is the index that both sides start with, 0 in real life.
    ///
    /// Panics if `size` is not in 1 to 32768 or memory is used up.
    #[track_caller]
    #[must_use]
    pub fn new(ram: &GuestRam, size: u16, event_idx: bool, base: u16) -> Self {
        assert!((1..=QUEUE_SIZE_MAX).contains(&size), "no queue has {size} entries");
        let area = |len_bytes: u64, align_bytes: u64| {
            let (len, align) = (as_usize(len_bytes), as_usize(align_bytes));
            let addr = GuestAddress(ram.alloc(len + align, 2 * align).0 + align_bytes);
            ram.fill(addr, len, 0);
            addr
        };
        let ring = Self {
            ram: ram.clone(),
            size,
            event_idx,
            base,
            desc_table: area(descriptor_table_len_bytes(size), DESCRIPTOR_TABLE_ALIGN_BYTES),
            avail_ring: area(avail_ring_len_bytes(size), AVAIL_RING_ALIGN_BYTES),
            used_ring: area(used_ring_len_bytes(size), USED_RING_ALIGN_BYTES),
            avail_idx: base,
            published_idx: base,
            last_used_idx: base,
            free: (0..size).rev().collect(),
            chains: (0..size).map(|_| None).collect(),
            by_hand: vec![0; usize::from(size)],
        };
        ring.set_avail_idx(base);
        ring.store(ring.used_ring, USED_IDX_OFFSET_BYTES, base);
        ring
    }

    /// Gives a chain of `bufs` to the device, with the next [`publish`](Self::publish). Returns its head.
    ///
    /// Fails with [`Error::QueueFull`] when there are not enough free descriptors. Panics without a buffer.
    #[track_caller]
    pub fn add_chain(&mut self, bufs: &[Buf], table: Table) -> Result<u16> {
        assert!(!bufs.is_empty(), "a chain has at least one buffer");
        let direct = match table {
            Table::Direct => bufs.len(),
            Table::Indirect => 0,
            Table::Tail(direct) => direct.min(bufs.len()),
        };
        let (bufs, in_table) = bufs.split_at(direct);
        let needed = bufs.len() + usize::from(!in_table.is_empty());
        if needed > self.free.len() {
            return Err(Error::QueueFull { needed, free: self.free.len() });
        }
        let descs = self.take_descs(needed);
        let mut last = None;
        let indirect = (!in_table.is_empty()).then(|| self.write_table(in_table));
        if let Some((addr, len)) = indirect {
            last = Some((addr, len, DescriptorFlags::INDIRECT));
        }
        let entries = bufs.iter().map(|buf| (buf.addr, buf.len, write_flag(buf))).chain(last);
        for (i, (addr, len, flags)) in entries.enumerate() {
            let next = descs.get(i + 1).copied();
            let flags = if next.is_some() { flags | DescriptorFlags::NEXT } else { flags };
            self.set_desc(descs[i], addr.0, len, flags, next.unwrap_or(0));
        }
        let head = descs[0];
        self.push(head);
        self.chains[usize::from(head)] = Some(Chain { descs, table: indirect.map(|(addr, _)| addr) });
        Ok(head)
    }

    /// Writes the table of an indirect chain; returns where it is and its length in bytes.
    fn write_table(&self, bufs: &[Buf]) -> (GuestAddress, u32) {
        let len_bytes = size_of::<Descriptor>() * bufs.len();
        let table = self.ram.alloc(len_bytes, size_of::<Descriptor>());
        for (i, buf) in bufs.iter().enumerate() {
            let last = i + 1 == bufs.len();
            let flags = if last { write_flag(buf) } else { write_flag(buf) | DescriptorFlags::NEXT };
            let next = if last { 0 } else { as_u16(i + 1) };
            let at = table.0 + crate::ram::as_u64(i * size_of::<Descriptor>());
            let desc = descriptor(buf.addr.0, buf.len, flags, next);
            self.ram.write_obj(GuestAddress(at), &desc);
        }
        (table, u32::try_from(len_bytes).unwrap())
    }

    /// Lets the device see what was added or pushed since the last time. Returns whether the device wants a kick for it.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let old = self.published_idx;
        self.published_idx = self.avail_idx;
        self.set_avail_idx(self.avail_idx);
        // The index must be visible before the device's wish is read, or both sides could go to sleep (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if old == self.avail_idx {
            return false;
        }
        if self.event_idx {
            passes(self.avail_event(), self.avail_idx, old)
        } else {
            self.used_flags() & USED_F_NO_NOTIFY == 0
        }
    }

    /// Takes the next entry from the used ring, if there is one, and frees the descriptors of its chain.
    pub fn poll_used(&mut self) -> Option<Used> {
        if self.used_idx() == self.last_used_idx {
            return None;
        }
        let slot = u64::from(self.last_used_idx % self.size);
        let at = self.used_ring.0 + USED_ENTRIES_OFFSET_BYTES + 8 * slot;
        let elem: UsedElem = self.ram.read_obj(GuestAddress(at));
        self.last_used_idx = self.last_used_idx.wrapping_add(1);
        let (id, len) = (elem.id.get(), elem.len.get());
        Some(Used { id, len, origin: self.recycle(id) })
    }

    fn recycle(&mut self, id: u32) -> Origin {
        let Ok(head) = usize::try_from(id) else { return Origin::Nowhere };
        if let Some(chain) = self.chains.get_mut(head).and_then(Option::take) {
            self.free.extend(&chain.descs);
            if let Some(table) = chain.table {
                self.ram.free(table);
            }
            return Origin::Chain;
        }
        match self.by_hand.get_mut(head) {
            Some(count) if *count > 0 => {
                *count -= 1;
                Origin::ByHand
            }
            _ => Origin::Nowhere,
        }
    }

    /// Asks for a notification as soon as `chains` more (1 or more) are used than were polled. Returns whether that is
    /// so already: then no notification may come, and the ring is to be polled.
    #[must_use]
    pub fn arm(&mut self, chains: u16) -> bool {
        if self.event_idx {
            self.set_used_event(self.last_used_idx.wrapping_add(chains.wrapping_sub(1)));
        } else {
            self.set_avail_flags(0);
        }
        // As in `publish`: first the wish, then the look (2.7.7.1).
        fence(Ordering::SeqCst);
        self.used_pending() >= chains
    }

    /// Asks for no notifications. With EVENT_IDX that holds for 65535 chains.
    pub fn disarm(&mut self) {
        if self.event_idx {
            self.set_used_event(self.last_used_idx.wrapping_sub(1));
        } else {
            self.set_avail_flags(AVAIL_F_NO_INTERRUPT);
        }
    }

    /// How many entries of the used ring were not polled yet.
    #[must_use]
    pub fn used_pending(&self) -> u16 {
        self.used_idx().wrapping_sub(self.last_used_idx)
    }

    /// How many descriptors are free.
    #[must_use]
    pub fn free_descs(&self) -> usize {
        self.free.len()
    }

    /// How many chains of [`add_chain`](Self::add_chain) the device has.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.chains.iter().flatten().count()
    }
}

/// By hand.
impl DriverRing {
    /// Takes `count` descriptors away from the honest side, to be used with [`set_desc`](Self::set_desc). Panics when
    /// fewer are free.
    #[track_caller]
    #[must_use]
    pub fn take_descs(&mut self, count: usize) -> Vec<u16> {
        assert!(count <= self.free.len(), "{count} descriptors wanted, {} free", self.free.len());
        let mut descs = self.free.split_off(self.free.len() - count);
        descs.reverse();
        descs
    }

    /// Gives descriptors back that were taken with [`take_descs`](Self::take_descs).
    pub fn give_descs(&mut self, descs: &[u16]) {
        self.free.extend(descs);
    }

    /// Writes descriptor `index`, whatever it says. Panics if the table has no such entry.
    #[track_caller]
    pub fn set_desc(&self, index: u16, addr: u64, len: u32, flags: DescriptorFlags, next: u16) {
        assert!(index < self.size, "no descriptor {index} in a queue of {}", self.size);
        let at = self.desc_table.0 + 16 * u64::from(index);
        self.ram.write_obj(GuestAddress(at), &descriptor(addr, len, flags, next));
    }

    /// Puts `head`, any number, into the next entry of the available ring, for the next [`publish`](Self::publish).
    pub fn push_avail(&mut self, head: u16) {
        self.push(head);
        if let Some(count) = self.by_hand.get_mut(usize::from(head)) {
            *count += 1;
        }
    }

    fn push(&mut self, head: u16) {
        let slot = self.avail_idx % self.size;
        self.set_avail_entry(slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Writes an entry of the available ring.
    #[track_caller]
    pub fn set_avail_entry(&self, slot: u16, head: u16) {
        assert!(slot < self.size, "no entry {slot} in a queue of {}", self.size);
        self.store(self.avail_ring, AVAIL_ENTRIES_OFFSET_BYTES + 2 * u64::from(slot), head);
    }

    /// Writes `idx` of the available ring; the next [`publish`](Self::publish) writes the honest one again.
    pub fn set_avail_idx(&self, idx: u16) {
        self.store(self.avail_ring, AVAIL_IDX_OFFSET_BYTES, idx);
    }

    /// Writes `flags` of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.avail_ring, AVAIL_FLAGS_OFFSET_BYTES, flags);
    }

    /// Writes `used_event`.
    pub fn set_used_event(&self, idx: u16) {
        self.store(self.avail_ring, used_event_offset_bytes(self.size), idx);
    }

    /// Reads `idx` of the available ring, as it was last published.
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        self.load(self.avail_ring, AVAIL_IDX_OFFSET_BYTES)
    }

    /// Reads `idx` of the used ring.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.load(self.used_ring, USED_IDX_OFFSET_BYTES)
    }

    /// Reads `flags` of the used ring.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.load(self.used_ring, USED_FLAGS_OFFSET_BYTES)
    }

    /// Reads `avail_event`.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.load(self.used_ring, avail_event_offset_bytes(self.size))
    }

    fn load(&self, area: GuestAddress, offset_bytes: u64) -> u16 {
        u16::from_le(self.ram.load(GuestAddress(area.0 + offset_bytes), Ordering::Acquire))
    }

    fn store(&self, area: GuestAddress, offset_bytes: u64, value: u16) {
        self.ram.store(value.to_le(), GuestAddress(area.0 + offset_bytes), Ordering::Release);
    }
}

/// What the device is told about the ring.
impl DriverRing {
    /// The number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the index words decide on notifications (EVENT_IDX).
    #[must_use]
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// The index that the ring started with.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.base
    }

    /// Where the descriptor table is.
    #[must_use]
    pub fn desc_table(&self) -> GuestAddress {
        self.desc_table
    }

    /// Where the available ring is.
    #[must_use]
    pub fn avail_ring(&self) -> GuestAddress {
        self.avail_ring
    }

    /// Where the used ring is.
    #[must_use]
    pub fn used_ring(&self) -> GuestAddress {
        self.used_ring
    }

    /// The memory that the ring is in.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

/// Whether going from `old` to `new` passes the index at which the other side wants to hear of it (2.7.7.1, 2.7.10.1).
fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn write_flag(buf: &Buf) -> DescriptorFlags {
    if buf.device_writable { DescriptorFlags::WRITE } else { DescriptorFlags::empty() }
}

fn descriptor(addr: u64, len: u32, flags: DescriptorFlags, next: u16) -> Descriptor {
    Descriptor { addr: addr.into(), len: len.into(), flags: flags.bits().into(), next: next.into() }
}

fn as_usize(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

fn as_u16(value: usize) -> u16 {
    u16::try_from(value).unwrap()
}
