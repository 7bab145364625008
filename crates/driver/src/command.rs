//! What can be asked of a disk, and what comes back.

use core::ops::DerefMut;

use stable_deref_trait::StableDeref;
use virtio_zbd_spec::{DiscardWriteZeroes, RequestType, SECTOR_LEN_BYTES, SegmentFlags};
use zerocopy::IntoBytes;

use crate::error::{Error, Invalid};
use crate::limits::{Geometry, RangeLimits};

/// Memory that a request owns while the device has it. Its bytes stay where they are when the value moves.
///
/// `Vec<u8>` and `Box<[u8]>` are such buffers, and so is whatever else derefs stably to bytes. An empty one is refused
/// where data is needed.
pub trait Buffer: StableDeref<Target = [u8]> + DerefMut + Send + 'static {}

impl<B: StableDeref<Target = [u8]> + DerefMut + Send + 'static> Buffer for B {}

/// A request to submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<B> {
    /// Reads as many bytes as the buffer has.
    Read {
        /// First sector.
        sector: u64,
        /// Comes back full.
        buffer: B,
    },
    /// Writes the buffer: anywhere on a regular disk and in conventional zones, at the write pointer elsewhere (R12).
    Write {
        /// First sector.
        sector: u64,
        /// The data.
        buffer: B,
    },
    /// Writes the buffer wherever the zone's write pointer is, and says where that was (R10, R11).
    Append {
        /// The zone's first sector.
        zone_start_sector: u64,
        /// The data: a multiple of the write granularity, at most the disk's largest append.
        buffer: B,
    },
    /// Makes durable what was answered before. Only where the disk has a cache ([`Limits::flush`](crate::Limits::flush)).
    Flush,
    /// Tells the device that these sectors are no longer needed.
    Discard {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// Makes these sectors read as zeros.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Whether the device may give the space back.
        unmap: bool,
    },
    /// Erases these sectors beyond recovery; on a zoned disk whole zones, which are reset by it (V32).
    SecureErase {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// Opens a zone explicitly.
    OpenZone {
        /// The zone's first sector.
        start_sector: u64,
    },
    /// Closes a zone.
    CloseZone {
        /// The zone's first sector.
        start_sector: u64,
    },
    /// Makes a zone full.
    FinishZone {
        /// The zone's first sector.
        start_sector: u64,
    },
    /// Makes a zone empty. What was in it is gone.
    ResetZone {
        /// The zone's first sector.
        start_sector: u64,
    },
    /// Makes every open, closed and full zone empty (V19).
    ResetAllZones,
}

/// Names a submitted request; no two requests of one disk have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub(crate) u64);

/// A request that the device is done with.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Completion<B> {
    /// Which one.
    pub token: Token,
    /// Its buffer, where it had one.
    pub buffer: Option<B>,
    /// What came of it.
    pub result: Result<Done, Error>,
}

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// What it says.
    Plain,
    /// An append landed.
    Appended {
        /// The first sector of what was written.
        sector: u64,
    },
}

/// A request that was not submitted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not submitted: {error}")]
pub struct Rejected<B> {
    /// Why.
    pub error: Error,
    /// Its buffer, where it had one.
    pub buffer: Option<B>,
}

impl<B> From<Rejected<B>> for Error {
    /// The buffer is dropped.
    fn from(rejected: Rejected<B>) -> Self {
        rejected.error
    }
}

/// A command that this disk takes, as it goes over the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: RequestType,
    pub(crate) sector: u64,
    pub(crate) range: Option<[u8; 16]>,
}

impl<B: Buffer> Command<B> {
    /// Checks the command against what the disk is: all lengths and places, here and nowhere else.
    pub(crate) fn header(&self, disk: &Geometry) -> Result<Header, Invalid> {
        use RequestType::{
            Discard, Flush, In, Out, SecureErase, WriteZeroes, ZoneAppend, ZoneClose, ZoneFinish, ZoneOpen,
            ZoneReset, ZoneResetAll,
        };
        let plain = |kind, sector| Header { kind, sector, range: None };
        match self {
            Self::Read { sector, buffer } => {
                data(disk, *sector, buffer.len())?;
                Ok(plain(In, *sector))
            }
            Self::Write { sector, buffer } => {
                writable(disk)?;
                data(disk, *sector, buffer.len())?;
                Ok(plain(Out, *sector))
            }
            Self::Append { zone_start_sector, buffer } => {
                check_append(disk, *zone_start_sector, buffer.len())?;
                Ok(plain(ZoneAppend, *zone_start_sector))
            }
            Self::Flush if disk.limits.flush => Ok(plain(Flush, 0)),
            Self::Flush => Err(Invalid::NotOffered(Flush)),
            Self::Discard { sector, sectors } => {
                ranged(disk, Discard, disk.limits.discard, *sector, *sectors, false)
            }
            Self::WriteZeroes { sector, sectors, unmap } => {
                ranged(disk, WriteZeroes, disk.limits.write_zeroes, *sector, *sectors, *unmap)
            }
            Self::SecureErase { sector, sectors } => {
                ranged(disk, SecureErase, disk.limits.secure_erase, *sector, *sectors, false)
            }
            Self::OpenZone { start_sector } => management(disk, ZoneOpen, *start_sector),
            Self::CloseZone { start_sector } => management(disk, ZoneClose, *start_sector),
            Self::FinishZone { start_sector } => management(disk, ZoneFinish, *start_sector),
            Self::ResetZone { start_sector } => management(disk, ZoneReset, *start_sector),
            Self::ResetAllZones => {
                disk.zoned.ok_or(Invalid::NotZoned)?;
                writable(disk)?;
                Ok(plain(ZoneResetAll, 0)) // R9
            }
        }
    }

    /// The buffer, where there is one.
    pub(crate) fn into_buffer(self) -> Option<B> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } | Self::Append { buffer, .. } => {
                Some(buffer)
            }
            _ => None,
        }
    }
}

/// Whether `sectors` from `sector` on lie on the disk.
pub(crate) fn in_range(disk: &Geometry, sector: u64, sectors: u64) -> Result<(), Invalid> {
    let capacity_sectors = disk.capacity_sectors;
    match sector.checked_add(sectors) {
        _ if sectors == 0 => Err(Invalid::Empty { sector }),
        Some(end_sector) if end_sector <= capacity_sectors => Ok(()),
        _ => Err(Invalid::OutOfRange { sector, sectors, capacity_sectors }),
    }
}

/// Whether a range may begin at `sector` and be `len_bytes` long: whole units, on the disk. Gives its sectors.
pub(crate) fn aligned(disk: &Geometry, sector: u64, len_bytes: u64, unit_bytes: u32) -> Result<u64, Invalid> {
    let unit_sectors = u64::from(unit_bytes) / SECTOR_LEN_BYTES;
    if !sector.is_multiple_of(unit_sectors) || !len_bytes.is_multiple_of(u64::from(unit_bytes)) {
        return Err(Invalid::Misaligned { sector, len_bytes, unit_bytes });
    }
    let sectors = len_bytes / SECTOR_LEN_BYTES;
    in_range(disk, sector, sectors)?;
    Ok(sectors)
}

fn data(disk: &Geometry, sector: u64, len_bytes: usize) -> Result<(), Invalid> {
    let max_bytes = disk.limits.transfer_len_bytes_max as u64;
    let len_bytes = len_bytes as u64;
    aligned(disk, sector, len_bytes, disk.block_len_bytes)?;
    if len_bytes > max_bytes { Err(Invalid::TooLong { len_bytes, max_bytes }) } else { Ok(()) }
}

/// Whether that much may be appended to that zone (R10).
pub(crate) fn check_append(disk: &Geometry, zone_start_sector: u64, len_bytes: usize) -> Result<(), Invalid> {
    let zoned = disk.zoned.ok_or(Invalid::NotZoned)?;
    if zoned.append_sectors_max == 0 {
        return Err(Invalid::NotOffered(RequestType::ZoneAppend));
    }
    zone_start(disk, zone_start_sector)?;
    let len_bytes = len_bytes as u64;
    let unit_bytes = zoned.write_granularity_bytes;
    if len_bytes == 0 {
        return Err(Invalid::Empty { sector: zone_start_sector });
    }
    if !len_bytes.is_multiple_of(u64::from(unit_bytes)) {
        return Err(Invalid::Misaligned { sector: zone_start_sector, len_bytes, unit_bytes });
    }
    let append_bytes_max = u64::from(zoned.append_sectors_max) * SECTOR_LEN_BYTES;
    let max_bytes = append_bytes_max.min(disk.limits.transfer_len_bytes_max as u64);
    if len_bytes > max_bytes {
        return Err(Invalid::TooLong { len_bytes, max_bytes });
    }
    writable(disk)
}

fn management(disk: &Geometry, kind: RequestType, start_sector: u64) -> Result<Header, Invalid> {
    zone_start(disk, start_sector)?;
    writable(disk)?;
    Ok(Header { kind, sector: start_sector, range: None })
}

/// Whether a zone begins at `start_sector` (R8, R10).
fn zone_start(disk: &Geometry, start_sector: u64) -> Result<(), Invalid> {
    let zoned = disk.zoned.ok_or(Invalid::NotZoned)?;
    in_range(disk, start_sector, 1)?;
    if zoned.zone_start_sector(start_sector) != start_sector {
        return Err(Invalid::NotZoneStart { sector: start_sector, zone_sectors: zoned.zone_sectors });
    }
    Ok(())
}

fn ranged(
    disk: &Geometry,
    kind: RequestType,
    limits: Option<RangeLimits>,
    sector: u64,
    sectors: u32,
    unmap: bool,
) -> Result<Header, Invalid> {
    writable(disk)?;
    let limits = limits.ok_or(Invalid::NotOffered(kind))?;
    aligned(disk, sector, u64::from(sectors) * SECTOR_LEN_BYTES, disk.block_len_bytes)?;
    if sectors > limits.sectors_max {
        let max_bytes = u64::from(limits.sectors_max) * SECTOR_LEN_BYTES;
        return Err(Invalid::TooLong { len_bytes: u64::from(sectors) * SECTOR_LEN_BYTES, max_bytes });
    }
    let flags = if unmap { SegmentFlags::UNMAP } else { SegmentFlags::empty() };
    let segment =
        DiscardWriteZeroes { sector: sector.into(), num_sectors: sectors.into(), flags: flags.bits().into() };
    let mut range = [0; 16];
    range.copy_from_slice(segment.as_bytes());
    // The ranges say where; the header's sector means nothing here (5.2.6.1).
    Ok(Header { kind, sector: 0, range: Some(range) })
}

fn writable(disk: &Geometry) -> Result<(), Invalid> {
    if disk.read_only { Err(Invalid::ReadOnly) } else { Ok(()) }
}
