//! The disk: what it is, and requests in and out of its queues.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_zbd_spec::{Features, Model, RequestType, SECTOR_LEN_BYTES};

use crate::command::{Buffer, Command, Completion, Done, Header, Rejected, Token};
use crate::error::{DeviceError, Error, Invalid, Wrong};
use crate::limits::{Geometry, Limits, ZoneSupport, Zoned};
use crate::ring::{Landed, Ring};
use crate::wait::{Spin, Wait};

/// What the caller wants of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many queues to use, at most as many as the device has. 1 by default.
    pub queues: u16,
    /// How many descriptors a queue has, 4 to 1024, rounded down to a power of two and to what the device has. 128 by
    /// default. With indirect descriptors that is how many requests a queue holds.
    pub queue_depth: u16,
    /// Whether the caller can cope with zones.
    pub zones: ZoneSupport,
}

impl Default for Options {
    fn default() -> Self {
        Self { queues: 1, queue_depth: 128, zones: ZoneSupport::Yes }
    }
}

/// A virtio block device in use, zoned or not.
///
/// One owner at a time: an OS puts its own lock around it. Memory for synchronous calls is `B`, made by the `allocate`
/// function of [`with`](VirtioBlk::with); where `H` need not copy it, nothing is copied but from and to the caller.
///
/// Dropping it resets the device. A device that does not come out of its reset may go on writing to what it was
/// lent: then that memory, and the transport, are leaked.
pub struct VirtioBlk<H: Hal, T: Transport, B: Buffer = Vec<u8>> {
    /// `None` once it was given back, or leaked.
    pub(crate) transport: Option<T>,
    pub(crate) queues: Vec<Queue<H, B>>,
    pub(crate) geometry: Geometry,
    pub(crate) features: Features,
    pub(crate) support: ZoneSupport,
    pub(crate) queue_depth: u16,
    pub(crate) wait: Box<dyn Wait<T>>,
    pub(crate) allocate: fn(usize) -> Option<B>,
    pub(crate) removed: Arc<AtomicBool>,
    /// The device failed and was reset.
    pub(crate) broken: bool,
    pub(crate) next_serial: u64,
}

/// A ring, and completions that a synchronous call found there and did not wait for.
pub(crate) struct Queue<H: Hal, B: Buffer> {
    pub(crate) ring: Ring<H, B>,
    pub(crate) landed: VecDeque<Completion<B>>,
}

impl<H: Hal, T: Transport> VirtioBlk<H, T> {
    /// Takes the device into use. Synchronous calls poll ([`Spin`]); memory comes from the global allocator.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] where the device can't be used, [`Error::Wrong`] where its zones can't be right.
    pub fn new(transport: T, options: Options) -> Result<Self, Error> {
        Self::with(transport, options, Spin::default(), zeroed)
    }
}

/// A zeroed vector, or `None` where there is no memory for it.
fn zeroed(len_bytes: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len_bytes).ok()?;
    bytes.resize(len_bytes, 0);
    Some(bytes)
}

impl<H: Hal, T: Transport, B: Buffer> VirtioBlk<H, T, B> {
    /// Takes the device into use, with the caller's way to wait and to allocate.
    ///
    /// `allocate` gives a zeroed buffer of exactly that many bytes, or `None` where memory is short.
    ///
    /// # Errors
    ///
    /// As [`new`](VirtioBlk::new).
    pub fn with(
        transport: T,
        options: Options,
        wait: impl Wait<T> + 'static,
        allocate: fn(usize) -> Option<B>,
    ) -> Result<Self, Error> {
        crate::probe::probe(transport, options, Box::new(wait), allocate)
    }

    /// The disk's size.
    #[must_use]
    pub fn capacity_sectors(&self) -> u64 {
        self.geometry.capacity_sectors
    }

    /// What places and lengths of reads and writes are multiples of, in bytes.
    #[must_use]
    pub fn block_len_bytes(&self) -> u32 {
        self.geometry.block_len_bytes
    }

    /// The smallest write that the medium does in one piece: the block, on a zoned disk the write granularity (L4).
    #[must_use]
    pub fn physical_block_len_bytes(&self) -> u32 {
        let granularity_bytes = self.geometry.zoned.map_or(0, |zoned| zoned.write_granularity_bytes);
        self.geometry.block_len_bytes.max(granularity_bytes)
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.geometry.read_only
    }

    /// What a request may be.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.geometry.limits
    }

    /// The model that the device names. A host-aware disk is used as a regular one (R5).
    #[must_use]
    pub fn model(&self) -> Model {
        self.geometry.model
    }

    /// The zones; `None` on a disk that is not host-managed.
    #[must_use]
    pub fn zoned(&self) -> Option<&Zoned> {
        self.geometry.zoned.as_ref()
    }

    /// How many queues are in use, at least 1.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// How many descriptors each queue has.
    #[must_use]
    pub fn queue_depth(&self) -> u16 {
        self.queue_depth
    }

    /// What was negotiated.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// A zeroed buffer for a request, from the disk's `allocate` function.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn buffer(&self, len_bytes: usize) -> Result<B, Error> {
        (self.allocate)(len_bytes).filter(|buffer| buffer.len() == len_bytes).ok_or(Error::NoMemory)
    }

    /// Puts a request into a queue. The device may not look before [`notify`](Self::notify).
    ///
    /// # Errors
    ///
    /// The buffer comes back with [`Error::Invalid`] if the disk can't take the request, [`Error::QueueFull`] if the
    /// queue can't now, [`Error::Removed`] or [`Error::Broken`] if the device is gone or failed.
    pub fn submit(&mut self, queue: u16, command: Command<B>) -> Result<Token, Rejected<B>> {
        let header = self.usable().and_then(|()| {
            self.queue_at(queue)?;
            Ok(command.header(&self.geometry)?)
        });
        match header {
            Ok(header) => self.push(queue, header, command.into_buffer()),
            Err(error) => Err(Rejected { error, buffer: command.into_buffer() }),
        }
    }

    /// Tells the device that there are requests in a queue, if it wants to know.
    ///
    /// # Errors
    ///
    /// [`Error::Removed`], [`Error::Broken`], or [`Error::Invalid`] where there is no such queue.
    pub fn notify(&mut self, queue: u16) -> Result<(), Error> {
        self.usable()?;
        let wanted = self.queue_at(queue)?.ring.wants_notification();
        if let (true, Some(transport)) = (wanted, &mut self.transport) {
            transport.notify(queue);
        }
        Ok(())
    }

    /// Takes a request that the device is done with; `None` where there is none yet. Completions come in the device's
    /// order, which need not be the order of submission. Who waits for an interrupt waits after a `None`, not before:
    /// only then was the device asked for the next one.
    ///
    /// # Errors
    ///
    /// [`Error::Wrong`] where the device broke the ring's rules; it is reset then. The requests that were in flight
    /// come out of the next calls, each with [`Error::Broken`], and after them every call is that error.
    pub fn complete(&mut self, queue: u16) -> Result<Option<Completion<B>>, Error> {
        if let Some(completion) = self.queue_at(queue)?.landed.pop_front() {
            return Ok(Some(completion));
        }
        self.usable()?;
        self.land(queue)
    }

    /// Passes time, with the disk's [`Wait`], until [`complete`](Self::complete) has something or nothing is in flight.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`], [`Error::NeedsReset`] or [`Error::Removed`] as a synchronous call has them.
    pub fn wait(&mut self, queue: u16) -> Result<(), Error> {
        let mut turn = 0;
        loop {
            let Queue { ring, landed } = self.queue_at(queue)?;
            if !landed.is_empty() {
                return Ok(());
            }
            if ring.in_flight() == 0 || ring.can_pop() {
                return self.usable();
            }
            self.wait_turn(queue, &mut turn)?;
        }
    }

    /// How many requests of a queue are submitted and not taken out again.
    #[must_use]
    pub fn in_flight(&self, queue: u16) -> usize {
        self.queues.get(usize::from(queue)).map_or(0, |queue| queue.ring.in_flight() + queue.landed.len())
    }

    /// Says whether the device should interrupt when it is done with requests of a queue. Without, poll
    /// [`complete`](Self::complete).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where there is no such queue.
    pub fn set_interrupts(&mut self, queue: u16, wanted: bool) -> Result<(), Error> {
        self.queue_at(queue)?.ring.set_interrupts(wanted);
        Ok(())
    }

    /// An error where the device must not be talked to any more.
    pub(crate) fn usable(&mut self) -> Result<(), Error> {
        if self.removed.load(Ordering::Acquire) {
            self.give_up();
        }
        if self.broken { Err(self.end()) } else { Ok(()) }
    }

    /// What every call is after the end.
    fn end(&self) -> Error {
        if self.removed.load(Ordering::Acquire) { Error::Removed } else { Error::Broken }
    }

    pub(crate) fn queue_at(&mut self, queue: u16) -> Result<&mut Queue<H, B>, Error> {
        let queues = self.queue_count();
        // A disk has a queue at least, unless it was leaked to a device that did not come out of its reset.
        let missing = if queues == 0 { self.end() } else { Invalid::NoSuchQueue { queue, queues }.into() };
        self.queues.get_mut(usize::from(queue)).ok_or(missing)
    }

    /// Puts a checked request into a queue.
    pub(crate) fn push(
        &mut self,
        queue: u16,
        header: Header,
        buffer: Option<B>,
    ) -> Result<Token, Rejected<B>> {
        let serial = self.next_serial;
        let Some(queue) = self.queues.get_mut(usize::from(queue)) else {
            return Err(Rejected { error: Error::Broken, buffer });
        };
        match queue.ring.push(serial, header, buffer) {
            Ok(()) => {
                self.next_serial += 1;
                Ok(Token(serial))
            }
            Err((error, buffer)) => Err(Rejected { error, buffer }),
        }
    }

    /// The next request that the device is done with, from the ring itself.
    pub(crate) fn land(&mut self, queue: u16) -> Result<Option<Completion<B>>, Error> {
        match self.queue_at(queue)?.ring.pop() {
            Ok(None) => Ok(None),
            Ok(Some(landed)) => {
                let (len_bytes, token) =
                    (landed.buffer.as_ref().map_or(0, |buffer| buffer.len()), Token(landed.serial));
                let result = self.outcome(&landed, len_bytes as u64);
                Ok(Some(Completion { token, buffer: landed.buffer, result }))
            }
            Err(error) => {
                self.give_up();
                Err(error)
            }
        }
    }

    fn outcome(&self, landed: &Landed<B>, len_bytes: u64) -> Result<Done, Error> {
        let (request, sector) = (landed.kind, landed.sector);
        if let Some(status) = DeviceError::from_status(landed.status)? {
            return Err(Error::Device { request, sector, status });
        }
        if request == RequestType::In && u64::from(landed.found_bytes) < landed.room_bytes {
            let expected_bytes = landed.room_bytes;
            return Err(Wrong::UsedShort { found_bytes: landed.found_bytes, expected_bytes }.into());
        }
        match self.geometry.zoned {
            // R11: the sector is valid now, and still only the device's word.
            Some(zoned) if request == RequestType::ZoneAppend => {
                appended(&zoned, sector, landed.append_sector, len_bytes, self.geometry.capacity_sectors)
            }
            _ => Ok(Done::Plain),
        }
    }

    /// Resets the device and takes back what it was lent; from now on it is [`Error::Broken`].
    pub(crate) fn give_up(&mut self) {
        if self.broken {
            return;
        }
        self.broken = true;
        if self.reset() {
            for queue in &mut self.queues {
                for flight in queue.ring.take_back() {
                    let result = Err(Error::Broken);
                    queue.landed.push_back(Completion {
                        token: Token(flight.serial),
                        buffer: flight.buffer,
                        result,
                    });
                }
            }
        } else {
            self.leak();
        }
    }

    /// Whether the device came out of a reset: only then does it no longer touch memory.
    fn reset(&mut self) -> bool {
        self.transport.as_mut().is_none_or(reset)
    }

    /// Leaves to the device what it may still write to, and to itself a transport whose drop may wait for ever.
    fn leak(&mut self) {
        core::mem::forget(core::mem::take(&mut self.queues));
        core::mem::forget(self.transport.take());
    }
}

impl<H: Hal, T: Transport, B: Buffer> fmt::Debug for VirtioBlk<H, T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { geometry, features, queue_depth, broken, .. } = self;
        f.debug_struct("VirtioBlk")
            .field("geometry", geometry)
            .field("features", features)
            .field("queues", &self.queues.len())
            .field("queue_depth", queue_depth)
            .field("broken", broken)
            .finish_non_exhaustive()
    }
}

impl<H: Hal, T: Transport, B: Buffer> Drop for VirtioBlk<H, T, B> {
    fn drop(&mut self) {
        if !self.broken && !self.reset() {
            self.leak();
        }
    }
}

/// Where an append landed, if it can have landed there: in its zone, aligned, with room for its data.
fn appended(
    zoned: &Zoned,
    zone_start_sector: u64,
    found_sector: u64,
    len_bytes: u64,
    capacity_sectors: u64,
) -> Result<Done, Error> {
    let end_sector = (zone_start_sector + u64::from(zoned.zone_sectors)).min(capacity_sectors);
    let granularity_sectors = u64::from(zoned.write_granularity_bytes) / SECTOR_LEN_BYTES;
    let fits = found_sector >= zone_start_sector
        && found_sector.checked_add(len_bytes / SECTOR_LEN_BYTES).is_some_and(|end| end <= end_sector);
    if fits && (found_sector - zone_start_sector).is_multiple_of(granularity_sectors) {
        Ok(Done::Appended { sector: found_sector })
    } else {
        Err(Wrong::AppendSector { zone_start_sector, found_sector }.into())
    }
}

/// Looks at the status for this long after a reset, in looks. Devices are done at once, some within milliseconds.
const RESET_LOOKS: u32 = 1 << 20;

/// Resets the device (2.4); false where it does not come out of it.
pub(crate) fn reset<T: Transport>(transport: &mut T) -> bool {
    transport.set_status(DeviceStatus::empty());
    (0..RESET_LOOKS).any(|_| {
        core::hint::spin_loop();
        transport.get_status().is_empty()
    })
}
