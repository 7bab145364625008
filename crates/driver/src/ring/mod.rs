//! A split virtqueue (2.7), the driver's side.
//!
//! `virtio-drivers` has one, too. This driver has its own because that one can't do what is owed here: its size is part of
//! its type; it cuts used ids down to 16 bits before it compares them; it can't take memory back after a reset, so that
//! what was in flight stays mapped for the device; between the available index and the device's notification word it has
//! no barrier, and it compares the latter without wrapping, so that a notification can get lost; and it allocates for each
//! request. The transport and the host's memory are `virtio-drivers`' all the same.

mod memory;
mod split;

use alloc::vec::Vec;

use virtio_drivers::transport::Transport;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use virtio_zbd_spec::{DescriptorFlags, Features, OutHeader, RequestType};
use zerocopy::IntoBytes;

use crate::command::{Buffer, Header};
use crate::error::{Error, ProbeError, Wrong};
use memory::Loan;

pub(crate) use memory::Area;
pub(crate) use split::{DESCRIPTOR_LEN_BYTES, Piece, Split, descriptor};

/// The shallowest queue that carries a request: header, one segment of data, in-header.
const DEPTH_MIN: u16 = 4;
/// The deepest queue that this driver sets up.
const DEPTH_MAX: u16 = 1024;

/// Each request has a slot in memory shared with the device: a short indirect table, then header, range and in-header.
const SLOT_LEN_BYTES: usize = 128;
const HEADER_OFFSET: usize = SLOT_DESCRIPTORS * DESCRIPTOR_LEN_BYTES;
const RANGE_OFFSET: usize = HEADER_OFFSET + size_of::<OutHeader>();
const IN_HEADER_OFFSET: usize = RANGE_OFFSET + RANGE_LEN_BYTES;
/// How many descriptors a slot's table has: enough for data in one or two segments.
const SLOT_DESCRIPTORS: usize = 4;
const RANGE_LEN_BYTES: usize = 16;
/// The longest in-header: an append's sector and the status.
const IN_HEADER_LEN_BYTES: usize = 9;
const _: () = assert!(IN_HEADER_OFFSET + IN_HEADER_LEN_BYTES <= SLOT_LEN_BYTES);

/// The deepest queue of at most `wanted` descriptors that a device with room for `device_max` takes.
pub(crate) fn depth(queue: u16, wanted: u16, device_max: u32) -> Result<u16, ProbeError> {
    let wanted = wanted.clamp(DEPTH_MIN, DEPTH_MAX);
    let depth = u16::try_from(device_max).unwrap_or(u16::MAX).min(wanted);
    if depth < DEPTH_MIN {
        return Err(ProbeError::QueueTooSmall { queue, found: device_max, expected: DEPTH_MIN });
    }
    Ok(1 << depth.ilog2())
}

/// A request that the device is done with.
pub(crate) struct Landed<B> {
    pub(crate) serial: u64,
    pub(crate) kind: RequestType,
    pub(crate) sector: u64,
    pub(crate) buffer: Option<B>,
    /// The status byte, 255 where the device wrote none.
    pub(crate) status: u8,
    /// The sector in an append's in-header (R11: valid after OK only).
    pub(crate) append_sector: u64,
    /// How many bytes the device says it wrote, in-header included.
    pub(crate) found_bytes: u32,
    /// How many it could write.
    pub(crate) room_bytes: u64,
}

/// What is in flight under one head of a descriptor chain.
struct Flight<H: Hal, B: Buffer> {
    serial: u64,
    kind: RequestType,
    sector: u64,
    loan: Option<Loan<H, B>>,
    /// How many of the ring's own descriptors it takes.
    descriptors: u16,
    /// How many bytes the device may write.
    room_bytes: u64,
}

/// One queue and what it has lent to the device.
///
/// To be dropped, or emptied with [`Ring::take_back`], only after the device was reset: until then it may write.
pub(crate) struct Ring<H: Hal, B: Buffer> {
    split: Split<H>,
    indirect: bool,
    segment_len_bytes: usize,
    slots: Area<H>,
    /// Longer indirect tables, by head, kept for the next request that needs one.
    tables: Vec<Option<Area<H>>>,
    /// By head of the descriptor chain.
    flights: Vec<Option<Flight<H, B>>>,
    /// Lists of segments to be used again, by head.
    segments: Vec<Vec<PhysAddr>>,
    in_flight: u16,
}

impl<H: Hal, B: Buffer> Ring<H, B> {
    /// Sets up queue `index` with `depth` descriptors, a power of two.
    pub(crate) fn new<T: Transport>(
        transport: &mut T,
        index: u16,
        depth: u16,
        features: Features,
        segment_len_bytes: usize,
    ) -> Result<Self, Error> {
        // Before the device is told where the rings are: they would have to stay there until its reset.
        let slots = Area::new(usize::from(depth) * SLOT_LEN_BYTES, BufferDirection::Both);
        let slots = slots.ok_or(Error::NoMemory)?;
        Ok(Self {
            split: Split::new(transport, index, depth, features)?,
            indirect: features.contains(Features::INDIRECT_DESC),
            segment_len_bytes: segment_len_bytes.max(1),
            slots,
            tables: (0..depth).map(|_| None).collect(),
            flights: (0..depth).map(|_| None).collect(),
            segments: (0..depth).map(|_| Vec::new()).collect(),
            in_flight: 0,
        })
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.into()
    }

    /// From now on data is split into segments of at most this length.
    pub(crate) fn set_segment_len_bytes(&mut self, segment_len_bytes: usize) {
        self.segment_len_bytes = segment_len_bytes.max(1);
    }

    /// Lends a request's memory to the device, or gives the buffer back with the reason.
    pub(crate) fn push(
        &mut self,
        serial: u64,
        header: Header,
        buffer: Option<B>,
    ) -> Result<(), (Error, Option<B>)> {
        let data = buffer.as_ref().map_or(0, |buffer| buffer.len().div_ceil(self.segment_len_bytes));
        let chain = 2 + usize::from(header.range.is_some()) + data;
        let descriptors = match u16::try_from(chain) {
            // 2.7.5.3.1: an indirect table is no longer than the queue, either.
            Ok(chain) if chain <= self.split.depth() => {
                if self.indirect {
                    1
                } else {
                    chain
                }
            }
            _ => return Err((Error::QueueFull, buffer)),
        };
        if descriptors > self.split.free() {
            return Err((Error::QueueFull, buffer));
        }
        let head = self.split.free_head();
        if self.indirect && !self.table_for(head, chain) {
            return Err((Error::NoMemory, buffer));
        }
        let direction = direction(header.kind);
        let loan = buffer.map(|buffer| {
            let segments = core::mem::take(&mut self.segments[usize::from(head)]);
            Loan::new(buffer, self.segment_len_bytes, direction, segments)
        });
        self.write_slot(head, header);
        self.write_chain(head, chain, header, loan.as_ref());
        let data_bytes = loan.as_ref().map_or(0, |loan| loan.segments().map(|(_, len)| len as u64).sum());
        let data_bytes = if direction == BufferDirection::DeviceToDriver { data_bytes } else { 0 };
        self.flights[usize::from(head)] = Some(Flight {
            serial,
            kind: header.kind,
            sector: header.sector,
            loan,
            descriptors,
            room_bytes: data_bytes + header.kind.in_header_len_bytes() as u64,
        });
        self.in_flight += 1;
        Ok(())
    }

    /// Takes back the memory of the next request that the device is done with.
    pub(crate) fn pop(&mut self) -> Result<Option<Landed<B>>, Error> {
        let Some(used) = self.split.peek(self.in_flight)? else { return Ok(None) };
        let head = u16::try_from(used.id).ok().filter(|head| *head < self.split.depth());
        let room_bytes = head.and_then(|head| Some(self.flights[usize::from(head)].as_ref()?.room_bytes));
        let (Some(head), Some(room_bytes)) = (head, room_bytes) else {
            return Err(Wrong::UsedId { queue: self.split.index(), id: used.id }.into());
        };
        if u64::from(used.len_bytes) > room_bytes {
            return Err(Wrong::UsedLen { found_bytes: used.len_bytes, room_bytes }.into());
        }
        self.split.pop();
        Ok(self.land(head, used.len_bytes))
    }

    /// Whether there is something to pop. Where there is nothing, the device was asked to interrupt.
    pub(crate) fn can_pop(&mut self) -> bool {
        self.split.can_pop()
    }

    /// Whether the device wants to hear of what was pushed since this was last asked.
    pub(crate) fn wants_notification(&mut self) -> bool {
        self.split.wants_notification()
    }

    /// Says whether the device should interrupt when it is done with a request.
    pub(crate) fn set_interrupts(&mut self, wanted: bool) {
        self.split.set_interrupts(wanted);
    }

    /// Takes back everything that is lent. Only after the device was reset: nothing can be in flight after that.
    pub(crate) fn take_back(&mut self) -> Vec<Landed<B>> {
        (0..self.split.depth()).filter_map(|head| self.land(head, 0)).collect()
    }

    /// Ends the flight under `head` and frees its descriptors.
    fn land(&mut self, head: u16, found_bytes: u32) -> Option<Landed<B>> {
        let flight = self.flights[usize::from(head)].take()?;
        let buffer = flight.loan.map(|loan| {
            let (mut buffer, segments) = loan.end();
            self.segments[usize::from(head)] = segments;
            if direction(flight.kind) == BufferDirection::DeviceToDriver {
                // What the device did not write may be anything where memory is copied (2.7.8.2).
                let written_bytes = usize::try_from(found_bytes).unwrap_or(usize::MAX);
                if let Some(unwritten) = buffer.get_mut(written_bytes..) {
                    unwritten.fill(0);
                }
            }
            buffer
        });
        let in_header: [u8; IN_HEADER_LEN_BYTES] =
            self.slots.read(usize::from(head) * SLOT_LEN_BYTES + IN_HEADER_OFFSET);
        let [sector @ .., _] = in_header;
        self.split.release(head, flight.descriptors);
        self.in_flight -= 1;
        Some(Landed {
            serial: flight.serial,
            kind: flight.kind,
            sector: flight.sector,
            buffer,
            status: in_header[flight.kind.in_header_len_bytes() - 1],
            append_sector: u64::from_le_bytes(sector),
            found_bytes,
            room_bytes: flight.room_bytes,
        })
    }

    /// Makes sure that there is an indirect table of `chain` descriptors for `head`.
    fn table_for(&mut self, head: u16, chain: usize) -> bool {
        let len_bytes = chain * DESCRIPTOR_LEN_BYTES;
        let table = &mut self.tables[usize::from(head)];
        if chain > SLOT_DESCRIPTORS && table.as_ref().is_none_or(|table| table.len_bytes() < len_bytes) {
            *table = Area::new(len_bytes, BufferDirection::DriverToDevice);
            return table.is_some();
        }
        true
    }

    fn write_slot(&mut self, head: u16, header: Header) {
        let slot = usize::from(head) * SLOT_LEN_BYTES;
        let out = OutHeader {
            request_type: u32::from(header.kind).into(),
            reserved: 0.into(),
            sector: header.sector.into(),
        };
        self.slots.write(slot + HEADER_OFFSET, out.as_bytes());
        if let Some(range) = header.range {
            self.slots.write(slot + RANGE_OFFSET, &range);
        }
        // No status is 255: what the device does not write is seen.
        self.slots.write(slot + IN_HEADER_OFFSET, &[u8::MAX; IN_HEADER_LEN_BYTES]);
    }

    /// Writes the descriptors of a request, into the ring's table or into an indirect one, and shows it to the device.
    fn write_chain(&mut self, head: u16, chain: usize, header: Header, loan: Option<&Loan<H, B>>) {
        let slot = usize::from(head) * SLOT_LEN_BYTES;
        let parts =
            |slots: &Area<H>, offset: usize, len_bytes: usize| (slots.paddr(slot + offset), len_bytes);
        let read = DescriptorFlags::empty();
        let data = if direction(header.kind) == BufferDirection::DeviceToDriver {
            DescriptorFlags::WRITE
        } else {
            read
        };
        let out_header = parts(&self.slots, HEADER_OFFSET, size_of::<OutHeader>());
        let range = header.range.map(|_| parts(&self.slots, RANGE_OFFSET, RANGE_LEN_BYTES));
        let in_header = parts(&self.slots, IN_HEADER_OFFSET, header.kind.in_header_len_bytes());
        let pieces = core::iter::once((out_header, read))
            .chain(range.map(|range| (range, read)))
            .chain(loan.into_iter().flat_map(Loan::segments).map(|segment| (segment, data)))
            .chain(core::iter::once((in_header, DescriptorFlags::WRITE)))
            .map(|((paddr, len_bytes), flags)| (paddr, len_bytes, flags));
        if !self.indirect {
            self.split.push(chain, pieces);
            return;
        }
        let mut table = self.tables[usize::from(head)].as_mut().filter(|_| chain > SLOT_DESCRIPTORS);
        for (number, (paddr, len_bytes, flags)) in pieces.enumerate() {
            let next = u16::try_from(number + 1).ok().filter(|next| usize::from(*next) < chain);
            let descriptor = descriptor(paddr, len_bytes, flags, next);
            let offset = number * DESCRIPTOR_LEN_BYTES;
            match &mut table {
                Some(table) => table.write(offset, descriptor.as_bytes()),
                None => self.slots.write(slot + offset, descriptor.as_bytes()),
            }
        }
        let paddr = table.map_or(self.slots.paddr(slot), |table| table.paddr(0));
        let table: Piece = (paddr, chain * DESCRIPTOR_LEN_BYTES, DescriptorFlags::INDIRECT);
        self.split.push(1, core::iter::once(table));
    }
}

impl<H: Hal, B: Buffer> Drop for Ring<H, B> {
    fn drop(&mut self) {
        // The device was reset; what it had is unshared before the areas go.
        self.take_back();
    }
}

/// Which way a request's data goes.
fn direction(kind: RequestType) -> BufferDirection {
    match kind {
        RequestType::In | RequestType::GetId | RequestType::ZoneReport => BufferDirection::DeviceToDriver,
        _ => BufferDirection::DriverToDevice,
    }
}
