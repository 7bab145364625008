//! The one place with `unsafe`: lends memory to the device through `virtio-drivers`' ring, and takes it back.
//!
//! `VirtQueue::add` and `VirtQueue::pop_used` ask two things of their caller: what was lent stays where it is and is not
//! touched until it is popped, and popping names the same memory again. Both hold here because a request's memory is
//! *owned* by its [`Flight`] while the device has it: no one else can reach it, and its bytes do not move when the
//! flight does ([`StableDeref`](stable_deref_trait::StableDeref)).
#![allow(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_zbd_spec::RequestType;

use crate::command::Buffer;
use crate::error::{Error, ProbeError, Wrong};

/// The shallowest queue that carries a request: header, one segment of data, in-header.
pub(crate) const DEPTH_MIN: u16 = 4;
/// The deepest queue that this driver sets up.
pub(crate) const DEPTH_MAX: u16 = 1024;

const HEADER_LEN_BYTES: usize = 16;
const RANGE_LEN_BYTES: usize = 16;
/// The longest in-header: an append's sector and the status.
const IN_HEADER_LEN_BYTES: usize = 9;
const PARTS_LEN_BYTES: usize = HEADER_LEN_BYTES + RANGE_LEN_BYTES + IN_HEADER_LEN_BYTES;

/// What is lent to the device for one request.
pub(crate) struct Flight<B> {
    /// Names the request to its caller.
    pub(crate) serial: u64,
    pub(crate) kind: RequestType,
    pub(crate) sector: u64,
    pub(crate) buffer: Option<B>,
    /// Header, range and in-header. A vector, because its bytes stay where they are when it moves.
    parts: Vec<u8>,
    has_range: bool,
}

impl<B: Buffer> Flight<B> {
    pub(crate) fn new(
        serial: u64,
        kind: RequestType,
        sector: u64,
        range: Option<[u8; 16]>,
        buffer: Option<B>,
    ) -> Self {
        let mut parts = vec![0; PARTS_LEN_BYTES];
        parts[..4].copy_from_slice(&u32::from(kind).to_le_bytes());
        parts[8..HEADER_LEN_BYTES].copy_from_slice(&sector.to_le_bytes());
        if let Some(range) = range {
            parts[HEADER_LEN_BYTES..HEADER_LEN_BYTES + RANGE_LEN_BYTES].copy_from_slice(&range);
        }
        // No status is 255: what the device does not write is seen.
        parts[PARTS_LEN_BYTES - IN_HEADER_LEN_BYTES..].fill(u8::MAX);
        Self { serial, kind, sector, buffer, parts, has_range: range.is_some() }
    }

    /// The status byte, of a request that the device is done with.
    pub(crate) fn status(&self) -> u8 {
        self.in_header()[self.kind.in_header_len_bytes() - 1]
    }

    /// An append's sector, of one that the device is done with (R11: only after OK).
    pub(crate) fn append_sector(&self) -> u64 {
        let mut sector = [0; 8];
        sector.copy_from_slice(&self.in_header()[..8]);
        u64::from_le_bytes(sector)
    }

    fn in_header(&self) -> &[u8] {
        &self.parts[PARTS_LEN_BYTES - IN_HEADER_LEN_BYTES..]
    }

    /// How many descriptors the request takes with segments of at most `segment_len_bytes`.
    fn descriptors(&self, segment_len_bytes: usize) -> usize {
        let data = self.buffer.as_ref().map_or(0, |buffer| buffer.len().div_ceil(segment_len_bytes));
        2 + usize::from(self.has_range) + data
    }

    /// How many bytes the device may write.
    fn room_bytes(&self) -> usize {
        let data =
            if writes_into_buffer(self.kind) { self.buffer.as_ref().map_or(0, |b| b.len()) } else { 0 };
        data + self.kind.in_header_len_bytes()
    }

    /// Calls `f` with what the device reads and what it writes, the same each time.
    fn with_memory<R>(&mut self, segment_len_bytes: usize, f: impl for<'a> FnOnce(Memory<'a>) -> R) -> R {
        let (head, in_header) = self.parts.split_at_mut(PARTS_LEN_BYTES - IN_HEADER_LEN_BYTES);
        let (header, range) = head.split_at(HEADER_LEN_BYTES);
        let in_header = &mut in_header[..self.kind.in_header_len_bytes()];
        let mut inputs: Vec<&[u8]> = vec![header];
        let mut outputs: Vec<&mut [u8]> = Vec::new();
        if self.has_range {
            inputs.push(range);
        }
        if let Some(buffer) = &mut self.buffer {
            if writes_into_buffer(self.kind) {
                outputs.extend(buffer.chunks_mut(segment_len_bytes));
            } else {
                inputs.extend(buffer.chunks(segment_len_bytes));
            }
        }
        outputs.push(in_header);
        f(Memory { inputs: &inputs, outputs: &mut outputs })
    }
}

/// Whether the device writes a request's data.
fn writes_into_buffer(kind: RequestType) -> bool {
    matches!(kind, RequestType::In | RequestType::GetId | RequestType::ZoneReport | RequestType::GetLifetime)
}

struct Memory<'a> {
    inputs: &'a [&'a [u8]],
    outputs: &'a mut [&'a mut [u8]],
}

/// One queue and what it has lent to the device.
///
/// To be dropped, or emptied with [`Ring::take_back`], only after the device was reset: until then it may write.
pub(crate) struct Ring<H: Hal, B> {
    queue: AnyQueue<H>,
    index: u16,
    segment_len_bytes: usize,
    /// By the head of the descriptor chain, which is `VirtQueue`'s token.
    flights: Vec<Option<Flight<B>>>,
    in_flight: usize,
    /// The request whose used length was a lie: the ring is given up, its owner still gets the buffer back.
    overrun: Option<Flight<B>>,
}

impl<H: Hal, B: Buffer> Ring<H, B> {
    /// Sets up queue `index` with at most `depth` descriptors, as many as the device has at most.
    pub(crate) fn new<T: Transport>(
        transport: &mut T,
        index: u16,
        depth: u16,
        indirect: bool,
        segment_len_bytes: usize,
    ) -> Result<Self, Error> {
        let queue = AnyQueue::new(transport, index, depth, indirect).map_err(Error::Transport)?;
        let flights = (0..depth).map(|_| None).collect();
        Ok(Self {
            queue,
            index,
            segment_len_bytes: segment_len_bytes.max(1),
            flights,
            in_flight: 0,
            overrun: None,
        })
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// From now on data is split into segments of at most this length. Only while nothing is in flight.
    pub(crate) fn set_segment_len_bytes(&mut self, segment_len_bytes: usize) {
        debug_assert_eq!(self.in_flight, 0, "popping must split as pushing did");
        self.segment_len_bytes = segment_len_bytes.max(1);
    }

    /// Lends a request's memory to the device, or gives it back with the reason.
    pub(crate) fn push(&mut self, mut flight: Flight<B>) -> Result<(), (Error, Flight<B>)> {
        if self.queue.available() < flight.descriptors(self.segment_len_bytes) {
            return Err((Error::QueueFull, flight));
        }
        let queue = &mut self.queue;
        let added = flight.with_memory(self.segment_len_bytes, |memory| {
            // SAFETY: the memory is owned by `flight`, which is kept in `flights`, where nothing touches it, until
            // `pop` got this token from `pop_used`, or until the device was reset (`take_back`, drop). Moving the
            // flight there does not move the bytes: both the buffer and the parts are `StableDeref`.
            unsafe { queue.add(memory) }
        });
        match added {
            Ok(head) => {
                self.flights[usize::from(head)] = Some(flight);
                self.in_flight += 1;
                Ok(())
            }
            Err(virtio_drivers::Error::QueueFull) => Err((Error::QueueFull, flight)),
            Err(error) => Err((Error::Transport(error), flight)),
        }
    }

    /// Takes back the memory of the next request that the device is done with.
    pub(crate) fn pop(&mut self) -> Result<Option<Flight<B>>, Error> {
        let Some(id) = self.queue.peek_used() else { return Ok(None) };
        let slot = self.flights.get_mut(usize::from(id));
        let Some(mut flight) = slot.and_then(Option::take) else {
            return Err(Wrong::UsedId { queue: self.index, id }.into());
        };
        let queue = &mut self.queue;
        let popped = flight.with_memory(self.segment_len_bytes, |memory| {
            // SAFETY: this is the flight that was added when `add` gave this token, and `with_memory` gives the same
            // slices as it did then: neither buffer, parts nor segment length changed in between.
            unsafe { queue.pop_used(id, memory) }
        });
        let found_bytes = match popped {
            Ok(found_bytes) => found_bytes,
            Err(error) => {
                // The device changed its mind about the id between two reads: the memory is still lent.
                if let Some(slot) = self.flights.get_mut(usize::from(id)) {
                    *slot = Some(flight);
                }
                return match error {
                    virtio_drivers::Error::WrongToken => Err(Wrong::UsedId { queue: self.index, id }.into()),
                    other => Err(Error::Transport(other)),
                };
            }
        };
        self.in_flight -= 1;
        let room_bytes = flight.room_bytes();
        if usize::try_from(found_bytes).is_ok_and(|found| found <= room_bytes) {
            Ok(Some(flight))
        } else {
            self.overrun = Some(flight);
            Err(Wrong::UsedLen { found_bytes, room_bytes }.into())
        }
    }

    /// Whether the device wants to hear of what was pushed.
    pub(crate) fn wants_notification(&self) -> bool {
        // The index must be seen before the flag is read (2.7.13.4.1), or both sides fall asleep.
        // `VirtQueue::should_notify` alone has no barrier there.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.queue.should_notify()
    }

    /// Says whether the device should interrupt when it used a buffer.
    pub(crate) fn set_interrupts(&mut self, wanted: bool) {
        self.queue.set_dev_notify(wanted);
        // What was used before the device saw the flag is found by the look that follows, not by an interrupt.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// Takes back everything that is lent. Only after the device was reset.
    pub(crate) fn take_back(&mut self) -> impl Iterator<Item = Flight<B>> + '_ {
        self.in_flight = 0;
        self.overrun.take().into_iter().chain(self.flights.iter_mut().filter_map(Option::take))
    }
}

/// `VirtQueue` has its size in its type; the size of a disk's queues is known at run time.
enum AnyQueue<H: Hal> {
    Of4(Box<VirtQueue<H, 4>>),
    Of8(Box<VirtQueue<H, 8>>),
    Of16(Box<VirtQueue<H, 16>>),
    Of32(Box<VirtQueue<H, 32>>),
    Of64(Box<VirtQueue<H, 64>>),
    Of128(Box<VirtQueue<H, 128>>),
    Of256(Box<VirtQueue<H, 256>>),
    Of512(Box<VirtQueue<H, 512>>),
    Of1024(Box<VirtQueue<H, 1024>>),
}

macro_rules! each {
    ($self:expr, $queue:ident => $body:expr) => {
        match $self {
            AnyQueue::Of4($queue) => $body,
            AnyQueue::Of8($queue) => $body,
            AnyQueue::Of16($queue) => $body,
            AnyQueue::Of32($queue) => $body,
            AnyQueue::Of64($queue) => $body,
            AnyQueue::Of128($queue) => $body,
            AnyQueue::Of256($queue) => $body,
            AnyQueue::Of512($queue) => $body,
            AnyQueue::Of1024($queue) => $body,
        }
    };
}

impl<H: Hal> AnyQueue<H> {
    fn new<T: Transport>(
        transport: &mut T,
        index: u16,
        depth: u16,
        indirect: bool,
    ) -> Result<Self, virtio_drivers::Error> {
        Ok(match depth {
            4 => Self::Of4(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            8 => Self::Of8(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            16 => Self::Of16(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            32 => Self::Of32(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            64 => Self::Of64(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            128 => Self::Of128(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            256 => Self::Of256(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            512 => Self::Of512(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            1024 => Self::Of1024(Box::new(VirtQueue::new(transport, index, indirect, false)?)),
            _ => return Err(virtio_drivers::Error::InvalidParam),
        })
    }

    /// # Safety
    ///
    /// As for `VirtQueue::add`: the memory stays valid and untouched until `pop_used` gave its token.
    unsafe fn add(&mut self, memory: Memory<'_>) -> Result<u16, virtio_drivers::Error> {
        // SAFETY: passed on to the caller.
        each!(self, queue => unsafe { queue.add(memory.inputs, memory.outputs) })
    }

    /// # Safety
    ///
    /// As for `VirtQueue::pop_used`: the memory is what was added when `add` gave this token.
    unsafe fn pop_used(&mut self, token: u16, memory: Memory<'_>) -> Result<u32, virtio_drivers::Error> {
        // SAFETY: passed on to the caller.
        each!(self, queue => unsafe { queue.pop_used(token, memory.inputs, memory.outputs) })
    }

    fn peek_used(&self) -> Option<u16> {
        each!(self, queue => queue.peek_used())
    }

    fn available(&self) -> usize {
        each!(self, queue => queue.available_desc())
    }

    fn should_notify(&self) -> bool {
        each!(self, queue => queue.should_notify())
    }

    fn set_dev_notify(&mut self, wanted: bool) {
        each!(self, queue => queue.set_dev_notify(wanted));
    }
}

/// The deepest queue of at most `wanted` descriptors that a device with room for `device_max` takes.
pub(crate) fn depth(queue: u16, wanted: u16, device_max: u32) -> Result<u16, ProbeError> {
    let wanted = wanted.clamp(DEPTH_MIN, DEPTH_MAX);
    let depth = u16::try_from(device_max).unwrap_or(u16::MAX).min(wanted);
    if depth < DEPTH_MIN {
        return Err(ProbeError::QueueTooSmall { queue, found: device_max, expected: DEPTH_MIN });
    }
    Ok(1 << depth.ilog2())
}
