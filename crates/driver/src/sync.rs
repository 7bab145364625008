//! Synchronous calls: each submits, notifies and waits.

use alloc::string::String;
use core::fmt;

use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_zbd_spec::{ID_LEN_BYTES, RequestType, SECTOR_LEN_BYTES};

use crate::command::{Buffer, Command, Completion, Done, Header, Token, aligned, check_append};
use crate::disk::VirtioBlk;
use crate::error::{Error, Invalid};
use crate::limits::RangeLimits;
use crate::wait::Waited;

/// The queue of synchronous calls.
const QUEUE: u16 = 0;

/// The most bytes that a synchronous call carries in one request: longer ones are split, their memory stays small.
const CHUNK_LEN_BYTES_MAX: usize = 1 << 20;

/// A disk's serial number: up to 20 bytes, by convention ASCII.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId([u8; ID_LEN_BYTES]);

impl DeviceId {
    /// The bytes before the first NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let len_bytes = self.0.iter().position(|byte| *byte == 0).unwrap_or(ID_LEN_BYTES);
        self.0.get(..len_bytes).unwrap_or_default()
    }
}

impl fmt::Display for DeviceId {
    /// Bytes that are no text show as replacement characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({:?})", String::from_utf8_lossy(self.as_bytes()))
    }
}

impl<H: Hal, T: Transport, B: Buffer> VirtioBlk<H, T, B> {
    /// Fills `data` from `sector` on. A long read is several requests, which end at zones' ends (V25).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word, naming the request that failed.
    pub fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), Error> {
        self.usable()?;
        self.check_data(sector, data.len())?;
        let mut at_sector = sector;
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, others) = rest.split_at_mut(self.chunk_len_bytes(at_sector, rest.len()));
            let buffer = self.buffer(piece.len())?;
            let (_, buffer) = self.call(Command::Read { sector: at_sector, buffer })?;
            if let Some(read) = buffer.as_ref().and_then(|buffer| buffer.get(..piece.len())) {
                piece.copy_from_slice(read);
            }
            at_sector += piece.len() as u64 / SECTOR_LEN_BYTES;
            rest = others;
        }
        Ok(())
    }

    /// Writes `data` from `sector` on. A long write is several requests, one after the other, which end at zones' ends
    /// (V25). In a sequential zone `sector` is the write pointer (R12); after an error [`zone`](Self::zone) says
    /// where that is now.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word, naming the request that failed: those before it
    /// are written.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Error> {
        self.usable()?;
        self.check_data(sector, data.len())?;
        let mut at_sector = sector;
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(self.chunk_len_bytes(at_sector, rest.len()));
            let buffer = self.filled(piece)?;
            self.call(Command::Write { sector: at_sector, buffer })?;
            at_sector += piece.len() as u64 / SECTOR_LEN_BYTES;
            rest = others;
        }
        Ok(())
    }

    /// Writes `data` where the zone's write pointer is; gives the first sector written (R10, R11). One request: what is
    /// longer than the disk's largest append is refused, since another writer could come between two.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn append(&mut self, zone_start_sector: u64, data: &[u8]) -> Result<u64, Error> {
        self.usable()?;
        // Checked before memory is taken: what is refused may be of any length.
        check_append(&self.geometry, zone_start_sector, data.len())?;
        let buffer = self.filled(data)?;
        match self.call(Command::Append { zone_start_sector, buffer })? {
            (Done::Appended { sector }, _) => Ok(sector),
            (Done::Plain, _) => Ok(zone_start_sector),
        }
    }

    /// Makes durable what was answered before. On a disk without a cache there is nothing to do, and nothing is sent.
    ///
    /// # Errors
    ///
    /// The device's word.
    pub fn flush(&mut self) -> Result<(), Error> {
        if !self.geometry.limits.flush {
            return self.usable();
        }
        self.call(Command::Flush).map(drop)
    }

    /// The disk's serial number.
    ///
    /// # Errors
    ///
    /// The device's word; [`crate::DeviceError::Unsupported`] from a device without one.
    pub fn id(&mut self) -> Result<DeviceId, Error> {
        let buffer = self.buffer(ID_LEN_BYTES)?;
        let header = Header { kind: RequestType::GetId, sector: 0, range: None };
        let (_, buffer) = self.call_raw(header, Some(buffer))?;
        let mut id = [0; ID_LEN_BYTES];
        if let Some(bytes) = buffer.as_ref().and_then(|buffer| buffer.get(..ID_LEN_BYTES)) {
            id.copy_from_slice(bytes);
        }
        Ok(DeviceId(id))
    }

    /// Tells the device that `sectors` from `sector` on are no longer needed. Never on a host-managed disk (R2).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn discard(&mut self, sector: u64, sectors: u64) -> Result<(), Error> {
        let limits = self.geometry.limits.discard.ok_or(Invalid::NotOffered(RequestType::Discard))?;
        self.for_ranges(limits, sector, sectors, |sector, sectors| Command::Discard { sector, sectors })
    }

    /// Makes `sectors` from `sector` on read as zeros; with `unmap` the device may give their space back.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn write_zeroes(&mut self, sector: u64, sectors: u64, unmap: bool) -> Result<(), Error> {
        let limits =
            self.geometry.limits.write_zeroes.ok_or(Invalid::NotOffered(RequestType::WriteZeroes))?;
        self.for_ranges(limits, sector, sectors, |sector, sectors| Command::WriteZeroes {
            sector,
            sectors,
            unmap,
        })
    }

    /// Erases `sectors` from `sector` on beyond recovery; on a zoned disk whole zones, which it resets (V32).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn secure_erase(&mut self, sector: u64, sectors: u64) -> Result<(), Error> {
        let limits =
            self.geometry.limits.secure_erase.ok_or(Invalid::NotOffered(RequestType::SecureErase))?;
        // V32: a zone is erased whole, or not at all.
        let alignment_sectors =
            self.geometry.zoned.map_or(limits.alignment_sectors, |zoned| zoned.zone_sectors);
        let limits = RangeLimits { alignment_sectors, ..limits };
        self.for_ranges(limits, sector, sectors, |sector, sectors| Command::SecureErase { sector, sectors })
    }

    /// Opens the zone at `start_sector` explicitly: it stays open until it is closed, finished, reset or full.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word: [`crate::DeviceError::OpenResource`] or
    /// [`crate::DeviceError::ActiveResource`] where it has no room for one more (V15).
    pub fn open_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.call(Command::OpenZone { start_sector }).map(drop)
    }

    /// Closes the zone at `start_sector` (V16).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn close_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.call(Command::CloseZone { start_sector }).map(drop)
    }

    /// Makes the zone at `start_sector` full (V17).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn finish_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.call(Command::FinishZone { start_sector }).map(drop)
    }

    /// Makes the zone at `start_sector` empty; what was in it is gone (V18).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn reset_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.call(Command::ResetZone { start_sector }).map(drop)
    }

    /// Makes every open, closed and full zone empty (V19).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] before anything is sent; the device's word.
    pub fn reset_all_zones(&mut self) -> Result<(), Error> {
        self.call(Command::ResetAllZones).map(drop)
    }

    /// Makes one request and waits for it.
    fn call(&mut self, command: Command<B>) -> Result<(Done, Option<B>), Error> {
        self.usable()?;
        let header = command.header(&self.geometry)?;
        self.call_raw(header, command.into_buffer())
    }

    /// As `call`, for a header that is known to be right.
    pub(crate) fn call_raw(&mut self, header: Header, buffer: Option<B>) -> Result<(Done, Option<B>), Error> {
        self.usable()?;
        let token = self.push_waiting(header, buffer)?;
        let completion = self.wait_for(token);
        if completion.is_err()
            && let Some(queue) = self.queues.first_mut()
        {
            // The device was reset, and the request came back with those that were submitted: its caller is here.
            queue.landed.retain(|landed| landed.token != token);
        }
        let Completion { result, buffer, .. } = completion?;
        result.map(|done| (done, buffer))
    }

    fn wait_for(&mut self, token: Token) -> Result<Completion<B>, Error> {
        self.notify(QUEUE)?;
        let mut turn = 0;
        loop {
            while let Some(completion) = self.land(QUEUE)? {
                if completion.token == token {
                    return Ok(completion);
                }
                self.set_aside(completion);
            }
            self.wait_turn(QUEUE, &mut turn)?;
        }
    }

    /// Puts a request into the queue as soon as there is room: others' requests may fill it.
    fn push_waiting(&mut self, header: Header, buffer: Option<B>) -> Result<Token, Error> {
        let mut buffer = buffer;
        let mut turn = 0;
        loop {
            match self.push(QUEUE, header, buffer) {
                Ok(token) => return Ok(token),
                // Nothing in flight, and still no room: waiting would not help.
                Err(rejected) if rejected.error == Error::QueueFull && self.in_flight_on_ring() > 0 => {
                    buffer = rejected.buffer;
                }
                Err(rejected) => return Err(rejected.error),
            }
            // What fills the queue may never have been shown to the device.
            self.notify(QUEUE)?;
            match self.land(QUEUE)? {
                Some(completion) => self.set_aside(completion),
                None => self.wait_turn(QUEUE, &mut turn)?,
            }
        }
    }

    fn in_flight_on_ring(&self) -> usize {
        self.queues.first().map_or(0, |queue| queue.ring.in_flight())
    }

    /// Keeps a submitted request's completion for [`complete`](Self::complete).
    fn set_aside(&mut self, completion: Completion<B>) {
        if let Some(queue) = self.queues.first_mut() {
            queue.landed.push_back(completion);
        }
    }

    /// Passes some time; an error where there is no sense in waiting on.
    pub(crate) fn wait_turn(&mut self, queue: u16, turn: &mut u64) -> Result<(), Error> {
        let Some(transport) = &mut self.transport else { return Err(Error::Broken) };
        match self.wait.wait(transport, queue, *turn) {
            Waited::Again => {}
            Waited::GiveUp => return self.give_up_with(Error::TimedOut),
            Waited::Gone => {
                self.removal().remove();
                return self.usable();
            }
        }
        *turn += 1;
        if is_time_to_look(*turn) && transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return self.give_up_with(Error::NeedsReset);
        }
        self.usable()
    }

    fn give_up_with(&mut self, error: Error) -> Result<(), Error> {
        self.give_up();
        Err(error)
    }

    /// Whether data of this length may be read or written at `sector`, in as many requests as it takes.
    fn check_data(&self, sector: u64, len_bytes: usize) -> Result<(), Error> {
        aligned(&self.geometry, sector, len_bytes as u64, self.geometry.block_len_bytes)?;
        Ok(())
    }

    /// How much of `len_bytes` at `sector` goes into one request: whole units, up to the zone's end.
    fn chunk_len_bytes(&self, sector: u64, len_bytes: usize) -> usize {
        // The transfer's limit is a multiple of the unit already, and at least one.
        let unit_bytes = usize::try_from(self.geometry.unit_bytes).unwrap_or(usize::MAX);
        let chunk_len_bytes_max = (CHUNK_LEN_BYTES_MAX - CHUNK_LEN_BYTES_MAX % unit_bytes).max(unit_bytes);
        let chunk_len_bytes_max = self.geometry.limits.transfer_len_bytes_max.min(chunk_len_bytes_max);
        let to_zone_end_bytes = self.geometry.zoned.map_or(usize::MAX, |zoned| {
            let end_sector = zoned.zone_start_sector(sector) + u64::from(zoned.zone_sectors);
            usize::try_from((end_sector - sector) * SECTOR_LEN_BYTES).unwrap_or(usize::MAX)
        });
        len_bytes.min(chunk_len_bytes_max).min(to_zone_end_bytes)
    }

    /// Makes requests on ranges, none longer than the device takes, split where the device likes it.
    fn for_ranges(
        &mut self,
        limits: RangeLimits,
        sector: u64,
        sectors: u64,
        command: impl Fn(u64, u32) -> Command<B>,
    ) -> Result<(), Error> {
        self.usable()?;
        let capacity_sectors = self.geometry.capacity_sectors;
        let out_of_range = Invalid::OutOfRange { sector, sectors, capacity_sectors };
        let len_bytes = sectors.checked_mul(SECTOR_LEN_BYTES).ok_or(out_of_range)?;
        aligned(&self.geometry, sector, len_bytes, self.geometry.block_len_bytes)?;
        let end_sector = sector + sectors;
        let mut at_sector = sector;
        while at_sector < end_sector {
            let piece_sectors = limits.piece_sectors(at_sector, end_sector);
            self.call(command(at_sector, piece_sectors))?;
            at_sector += u64::from(piece_sectors);
        }
        Ok(())
    }

    fn filled(&self, data: &[u8]) -> Result<B, Error> {
        let mut buffer = self.buffer(data.len())?;
        buffer.copy_from_slice(data);
        Ok(buffer)
    }
}

/// Whether the device's status is looked at after this many waits. A look costs an exit to the VMM: seldom while an answer
/// is likely to come, then regularly.
pub(crate) fn is_time_to_look(turn: u64) -> bool {
    (turn >= 64 && turn.is_power_of_two() && turn.ilog2().is_multiple_of(3)) || turn.is_multiple_of(1 << 16)
}
