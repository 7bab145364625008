//! The calls by which Linux is asked about a zoned block device and told what to do with its zones (`linux/blkzoned.h`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The numbers of the calls; the same on every architecture that this program is for.
pub(crate) mod number {
    pub(crate) const DISK_LEN_BYTES: u32 = 0x8008_1272;
    pub(crate) const REPORT: u32 = 0xc010_1282;
    pub(crate) const RESET: u32 = 0x4010_1283;
    pub(crate) const ZONE_SECTORS: u32 = 0x8004_1284;
    pub(crate) const ZONE_COUNT: u32 = 0x8004_1285;
    pub(crate) const OPEN: u32 = 0x4010_1286;
    pub(crate) const CLOSE: u32 = 0x4010_1287;
    pub(crate) const FINISH: u32 = 0x4010_1288;
    /// Since Linux 6.19. Without a flag it asks the device itself, as the first one does.
    pub(crate) const REPORT_V2: u32 = 0xc010_128e;
}

/// All that is called once a disk is served: what a sandbox has to let through.
pub(crate) const WHILE_SERVED: [u32; 6] =
    [number::REPORT, number::REPORT_V2, number::RESET, number::OPEN, number::CLOSE, number::FINISH];

/// How many zones are asked for at once: 256 KiB of answer.
const ZONES_A_CALL: u32 = 4096;

/// In a report's flags: the zones' capacities are valid (since Linux 5.9).
const HAS_CAPACITY: u32 = 1;

/// A zone as the kernel reports it; in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(crate) struct RawZone {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) wp: u64,
    pub(crate) kind: u8,
    pub(crate) condition: u8,
    pub(super) non_seq: u8,
    pub(super) reset: u8,
    pub(super) pad: [u8; 4],
    pub(crate) capacity: u64,
    pub(super) reserved: [u8; 24],
}

const ZONE_LEN_BYTES: usize = size_of::<RawZone>();

#[derive(FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct ReportHeader {
    sector: u64,
    zone_count: u32,
    flags: u32,
}

#[repr(C)]
struct SectorRange {
    sector: u64,
    sectors: u64,
}

/// What is done to zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manage {
    Reset,
    Open,
    Close,
    Finish,
}

impl Manage {
    fn number(self) -> u32 {
        match self {
            Self::Reset => number::RESET,
            Self::Open => number::OPEN,
            Self::Close => number::CLOSE,
            Self::Finish => number::FINISH,
        }
    }
}

/// A zoned block device and its calls.
#[derive(Debug)]
pub(crate) struct ZonedFile {
    pub(crate) file: File,
    /// The kernel does not know the second form of the report.
    is_old: AtomicBool,
}

impl ZonedFile {
    pub(crate) fn new(file: File) -> Self {
        Self { file, is_old: AtomicBool::new(false) }
    }

    pub(crate) fn len_bytes(&self) -> io::Result<u64> {
        let mut value = 0u64;
        // SAFETY: the call writes 8 bytes to where it is told, which are ours.
        unsafe { self.call(number::DISK_LEN_BYTES, (&raw mut value).cast()) }.map(|()| value)
    }

    pub(crate) fn zone_sectors(&self) -> io::Result<u32> {
        let mut value = 0u32;
        // SAFETY: as above, 4 bytes.
        unsafe { self.call(number::ZONE_SECTORS, (&raw mut value).cast()) }.map(|()| value)
    }

    pub(crate) fn zone_count(&self) -> io::Result<u32> {
        let mut value = 0u32;
        // SAFETY: as above, 4 bytes.
        unsafe { self.call(number::ZONE_COUNT, (&raw mut value).cast()) }.map(|()| value)
    }

    /// Does something to the zones in a range, which begins and ends with zones.
    pub(crate) fn manage(&self, what: Manage, sector: u64, sectors: u64) -> io::Result<()> {
        let mut range = SectorRange { sector, sectors };
        // SAFETY: the call reads 16 bytes, which are ours.
        unsafe { self.call(what.number(), (&raw mut range).cast()) }
    }

    /// The zones from `sector` on, at most `most` of them, as the device says that they are now.
    pub(crate) fn report(&self, sector: u64, most: u32) -> io::Result<Vec<RawZone>> {
        let mut zones = Vec::new();
        let mut sector = sector;
        while let Ok(rest) = u32::try_from(zones.len()).map(|have| most.saturating_sub(have))
            && rest > 0
        {
            let part = self.report_once(sector, rest.min(ZONES_A_CALL))?;
            let Some(last) = part.last() else { break };
            // A kernel that does not get on would keep us for ever.
            let next = last.start.checked_add(last.len).filter(|next| *next > sector);
            sector = next.ok_or_else(|| io::Error::other("the zones in its report do not go on"))?;
            zones.extend(part);
        }
        Ok(zones)
    }

    fn report_once(&self, sector: u64, most: u32) -> io::Result<Vec<RawZone>> {
        if !self.is_old.load(Ordering::Relaxed) {
            match self.report_by(number::REPORT_V2, sector, most) {
                Ok(zones) => return Ok(zones),
                // What an unknown call is answered with depends on the driver.
                Err(error) => {
                    let zones = self.report_by(number::REPORT, sector, most).map_err(|_| error)?;
                    self.is_old.store(true, Ordering::Relaxed);
                    return Ok(zones);
                }
            }
        }
        self.report_by(number::REPORT, sector, most)
    }

    fn report_by(&self, number: u32, sector: u64, most: u32) -> io::Result<Vec<RawZone>> {
        let room = usize::try_from(most).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut bytes = vec![0u8; size_of::<ReportHeader>() + room * ZONE_LEN_BYTES];
        let header = ReportHeader { sector, zone_count: most, flags: 0 };
        bytes[..size_of::<ReportHeader>()].copy_from_slice(header.as_bytes());
        // SAFETY: the call writes a header and as many zones as the header has room for, which all lie in `bytes`.
        unsafe { self.call(number, bytes.as_mut_ptr().cast()) }?;
        let (head, zones) = bytes.split_at(size_of::<ReportHeader>());
        let header = ReportHeader::read_from_bytes(head).unwrap_or_else(|_| ReportHeader::new_zeroed());
        // Not more than there was room for.
        let count = usize::try_from(header.zone_count).unwrap_or(usize::MAX).min(room);
        let zones = zones.chunks_exact(ZONE_LEN_BYTES).take(count);
        let mut zones: Vec<RawZone> = zones.filter_map(|zone| RawZone::read_from_bytes(zone).ok()).collect();
        if header.flags & HAS_CAPACITY == 0 {
            zones.iter_mut().for_each(|zone| zone.capacity = zone.len);
        }
        Ok(zones)
    }

    /// # Safety
    /// `argument` points to what the call reads and writes, and to as much of it.
    unsafe fn call(&self, number: u32, argument: *mut libc::c_void) -> io::Result<()> {
        loop {
            // SAFETY: the caller answers for the argument; the descriptor is open.
            let result = unsafe { libc::ioctl(self.file.as_raw_fd(), number.into(), argument) };
            if result >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        // `_IOC` of asm-generic/ioctl.h: direction, length of the argument, 0x12, number.
        let number = |direction: u32, len: usize, nr: u32| {
            direction << 30 | u32::try_from(len).unwrap() << 16 | 0x12 << 8 | nr
        };
        let (write, read) = (1, 2);
        assert_eq!(number::DISK_LEN_BYTES, number(read, 8, 114));
        assert_eq!(number::REPORT, number(read | write, size_of::<ReportHeader>(), 130));
        assert_eq!(number::RESET, number(write, size_of::<SectorRange>(), 131));
        assert_eq!(number::ZONE_SECTORS, number(read, 4, 132));
        assert_eq!(number::ZONE_COUNT, number(read, 4, 133));
        assert_eq!(number::OPEN, number(write, size_of::<SectorRange>(), 134));
        assert_eq!(number::CLOSE, number(write, size_of::<SectorRange>(), 135));
        assert_eq!(number::FINISH, number(write, size_of::<SectorRange>(), 136));
        assert_eq!(number::REPORT_V2, number(read | write, size_of::<ReportHeader>(), 142));
        assert_eq!(ZONE_LEN_BYTES, 64);
    }
}
