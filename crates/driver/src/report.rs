//! Reports of zones: requests of bounded size, until the disk's end (L8, L9).

use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;
use virtio_zbd_spec::{ReportHeader, RequestType, ZoneDescriptor};
use zerocopy::FromBytes;

use crate::command::{Buffer, Header, in_range};
use crate::disk::VirtioBlk;
use crate::error::{Error, Invalid, Wrong};
use crate::limits::Zoned;
use crate::zone::Zone;

/// The most zones that one report asks for: 256 KiB of descriptors.
const ZONES_PER_REPORT_MAX: u64 = 4095;

const HEADER_LEN_BYTES: usize = size_of::<ReportHeader>();
const DESCRIPTOR_LEN_BYTES: usize = size_of::<ZoneDescriptor>();

impl<H: Hal, T: Transport, B: Buffer> VirtioBlk<H, T, B> {
    /// The zones from the one that holds `from_sector` (R7) to the disk's end, reported as the iterator goes. Ends with
    /// its first error.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] on a disk without zones or beyond its end.
    pub fn zones(&mut self, from_sector: u64) -> Result<Zones<'_, H, T, B>, Error> {
        self.zones_at_most(from_sector, ZONES_PER_REPORT_MAX)
    }

    /// The zone that holds `sector`, as it is now. After a failed write it tells where the write pointer is.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] on a disk without zones or beyond its end; the device's word; [`Error::Wrong`].
    pub fn zone(&mut self, sector: u64) -> Result<Zone, Error> {
        self.zones_at_most(sector, 1)?.next().unwrap_or(Err(Wrong::ReportEmpty { sector }.into()))
    }

    fn zones_at_most(&mut self, from_sector: u64, per_report: u64) -> Result<Zones<'_, H, T, B>, Error> {
        self.usable()?;
        let zoned = self.geometry.zoned.ok_or(Invalid::NotZoned)?;
        in_range(&self.geometry, from_sector, 1)?;
        Ok(Zones {
            next_sector: zoned.zone_start_sector(from_sector),
            disk: self,
            zoned,
            per_report,
            buffer: None,
            reported: 0,
            taken: 0,
            failed: false,
        })
    }

    /// Goes through all zones once; an error where one can't be right (L12, B3).
    pub(crate) fn check_zones(&mut self) -> Result<(), Error> {
        if self.geometry.zoned.is_none() || self.geometry.capacity_sectors == 0 {
            return Ok(());
        }
        self.zones(0)?.try_for_each(|zone| zone.map(drop))
    }
}

/// The zones of a disk, each checked. From [`VirtioBlk::zones`].
#[must_use = "nothing is reported before the iterator is asked"]
pub struct Zones<'a, H: Hal, T: Transport, B: Buffer> {
    disk: &'a mut VirtioBlk<H, T, B>,
    zoned: Zoned,
    /// Where the next zone must begin.
    next_sector: u64,
    per_report: u64,
    /// The latest report, used again for the next one.
    buffer: Option<B>,
    /// How many descriptors of it count.
    reported: usize,
    taken: usize,
    failed: bool,
}

impl<H: Hal, T: Transport, B: Buffer> Iterator for Zones<'_, H, T, B> {
    type Item = Result<Zone, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.next_sector >= self.disk.geometry.capacity_sectors {
            return None;
        }
        let zone = self.next_zone();
        match &zone {
            Ok(zone) => self.next_sector = zone.end_sector(),
            Err(_) => self.failed = true,
        }
        Some(zone)
    }
}

impl<H: Hal, T: Transport, B: Buffer> core::iter::FusedIterator for Zones<'_, H, T, B> {}

impl<H: Hal, T: Transport, B: Buffer> Zones<'_, H, T, B> {
    fn next_zone(&mut self) -> Result<Zone, Error> {
        if self.taken == self.reported {
            self.report()?;
        }
        let at = HEADER_LEN_BYTES + self.taken * DESCRIPTOR_LEN_BYTES;
        let descriptor = self
            .buffer
            .as_ref()
            .and_then(|buffer| ZoneDescriptor::read_from_prefix(buffer.get(at..)?).ok())
            .ok_or(Error::NoMemory)?
            .0;
        self.taken += 1;
        Ok(Zone::new(&descriptor, self.next_sector, &self.zoned, self.disk.geometry.capacity_sectors)?)
    }

    /// Asks for the zones from `next_sector` on; at least one comes, or an error: the loop always goes forward.
    fn report(&mut self) -> Result<(), Error> {
        let sector = self.next_sector;
        let left =
            (self.disk.geometry.capacity_sectors - sector).div_ceil(u64::from(self.zoned.zone_sectors));
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => self.allocate(left)?,
        };
        // What the device leaves unwritten must not pass for an older report.
        buffer.fill(0);
        let room = (buffer.len() - HEADER_LEN_BYTES) / DESCRIPTOR_LEN_BYTES;
        let header = Header { kind: RequestType::ZoneReport, sector, range: None };
        let (_, buffer) = self.disk.call_raw(header, Some(buffer))?;
        let buffer = buffer.ok_or(Error::NoMemory)?;
        let nr_zones = ReportHeader::read_from_prefix(&buffer).map_or(0, |(header, _)| header.nr_zones.get());
        // B1: the device's count is held against the buffer before anything is read.
        let reported = usize::try_from(nr_zones).ok().filter(|reported| *reported <= room);
        let reported = reported.ok_or(Wrong::ReportOverrun { nr_zones, room })?;
        if nr_zones > left {
            return Err(Wrong::ReportBeyondEnd { nr_zones, sector, left }.into());
        }
        if reported == 0 {
            return Err(Wrong::ReportEmpty { sector }.into());
        }
        (self.buffer, self.reported, self.taken) = (Some(buffer), reported, 0);
        Ok(())
    }

    /// A buffer for as many of `left` zones as one request can carry; for half as many each time memory is short.
    fn allocate(&self, left: u64) -> Result<B, Error> {
        let max_bytes = self.disk.geometry.limits.transfer_len_bytes_max;
        let fit = max_bytes.saturating_sub(HEADER_LEN_BYTES) / DESCRIPTOR_LEN_BYTES;
        let mut zones = usize::try_from(left.min(self.per_report)).unwrap_or(usize::MAX).clamp(1, fit.max(1));
        loop {
            match self.disk.buffer(HEADER_LEN_BYTES + zones * DESCRIPTOR_LEN_BYTES) {
                Err(Error::NoMemory) if zones > 1 => zones /= 2,
                other => return other,
            }
        }
    }
}
