//! What Linux 6.12 does on top of a zoned disk, where a program can see it.
//!
//! - A write beyond the device is cut at its end; one that begins there is ENOSPC. What is no whole number of logical blocks is
//!   EINVAL. A read there is cut, too.
//! - Reads and writes are cut at zone boundaries (V25 can't be met); all pieces are made, and the error is that of the last
//!   piece that failed. So it is with management of a range of zones.
//! - OPEN_RESOURCE is ETOOMANYREFS, ACTIVE_RESOURCE EOVERFLOW, INVALID_CMD and UNALIGNED_WP are EIO (L10).
//! - Each sequential zone that is written has a *write plug*, which expects the next write at the end of the last one. It is
//!   made by a first write, wherever that is, and it goes when the zone is reset, finished or written to its capacity, by
//!   success or not. A write elsewhere, or at the capacity and beyond, is EIO without having been sent.
//! - After a failed write the plug is *stale*: every write is EIO until the zone has been reported, reset or finished.
//! - The last piece of a cut write takes over the error of a piece before it: then its zone's plug is stale although it was
//!   written. So it is with a range of zones that is reset or finished: behind a zone that can't be, the plugs stay what they were
//!   although their zones were reset or finished, and a write where the zone now begins is EIO.
//! - A write of io_uring's (which does not wait) is put into the plug's list and judged when its turn comes. If it is then
//!   refused by the plug itself, the plug is not stale; so a zone without a plug that is written at its capacity or beyond by
//!   io_uring first takes no write any more, until it is reset or finished, or a write that waits has failed and it is reported.
//! - When a write that was sent fails, all that wait in the list behind it are EIO.

use libc::{EINVAL, EIO, ENOSPC, EOPNOTSUPP, EOVERFLOW, ETOOMANYREFS};

use super::ioctl::{Manage, Reported};
use super::zones::{Condition, Disk, Failure, Zone};

/// The errno of a refusal.
pub(crate) type Errno = i32;

/// A disk under Linux.
#[derive(Clone, Debug)]
pub(crate) struct Linux {
    pub(crate) disk: Disk,
    /// For each zone.
    pub(crate) plugs: Vec<Option<Plug>>,
    /// Of the whole disk.
    pub(crate) sectors: u64,
    /// Of all zones but the last.
    pub(crate) zone_len: u64,
    /// Logical, in bytes.
    pub(crate) block: u64,
}

/// A zone's write plug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plug {
    /// In sectors from the zone's start.
    expected: u64,
    stale: bool,
}

const CONVENTIONAL: u8 = 1;
const SEQUENTIAL: u8 = 2;

impl Linux {
    /// A zone whose plug takes no write before it has been reported.
    pub(crate) fn is_stale(&self, zone: usize) -> bool {
        self.plugs[zone].is_some_and(|plug| plug.stale)
    }

    /// Whether a zone's plug, if it has one, waits for the write at the write pointer.
    pub(crate) fn takes_the_next(&self, zone: usize) -> bool {
        let wp = self.disk.zones[zone].wp;
        self.plugs[zone].is_none_or(|plug| !plug.stale && plug.expected == wp)
    }

    /// A direct write of bytes at a byte, by a call that waits.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let len = self.checked(offset, bytes.len(), ENOSPC)?;
        let mut failed = None;
        let pieces = self.pieces(offset, len);
        for (number, (sector, at, piece)) in pieces.iter().copied().enumerate() {
            match self.write_piece(sector, &bytes[at..at + piece]) {
                Err(errno) => failed = Some(errno),
                Ok(()) if failed.is_some() && number + 1 == pieces.len() => self.make_stale(sector),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(len), Err)
    }

    /// A direct read; what is not below a write pointer is zeros (V31).
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let len = match self.checked(offset, len, 0) {
            Err(0) => return Ok(Vec::new()),
            checked => checked?,
        };
        let mut bytes = Vec::with_capacity(len);
        for (sector, _, piece) in self.pieces(offset, len) {
            let zone = &self.disk.zones[self.disk.zone_of(sector).ok_or(EIO)?];
            let at = usize::try_from((sector - zone.start) * 512).map_err(|_| EIO)?;
            bytes.extend_from_slice(&zone.bytes[at..at + piece]);
        }
        Ok(bytes)
    }

    /// Writes of io_uring's to one sequential zone, given all at once and each inside the zone. Answers each one's outcome.
    pub(crate) fn write_listed(
        &mut self,
        zone: usize,
        writes: &[(u64, Vec<u8>)],
    ) -> Vec<Result<usize, Errno>> {
        let mut outcomes = Vec::new();
        for (number, (sector, bytes)) in writes.iter().enumerate() {
            let Zone { start, capacity, .. } = self.disk.zones[zone];
            let sectors = bytes.len() as u64 / 512;
            let plug = self.plugs[zone].get_or_insert(Plug { expected: sector - start, stale: false });
            if plug.stale || plug.expected >= capacity || plug.expected != sector - start {
                outcomes.push(Err(EIO));
                continue;
            }
            plug.expected += sectors;
            let filled = plug.expected >= capacity;
            let outcome = self.disk.write(*sector, bytes);
            if outcome.is_err() {
                plug.stale = true;
            }
            if filled && (number + 1 == writes.len() || outcome.is_err()) {
                self.plugs[zone] = None;
            }
            match outcome {
                Ok(()) => outcomes.push(Ok(bytes.len())),
                Err(failure) => {
                    outcomes.push(Err(errno(failure)));
                    outcomes.resize(writes.len(), Err(EIO));
                    break;
                }
            }
        }
        outcomes
    }

    /// BLKRESETZONE and the like, on a range of sectors.
    pub(crate) fn manage(&mut self, what: Manage, sector: u64, sectors: u64) -> Result<(), Errno> {
        let end =
            sector.checked_add(sectors).filter(|end| *end > sector && *end <= self.sectors).ok_or(EINVAL)?;
        let is_start = |sector: u64| sector.is_multiple_of(self.zone_len);
        if !is_start(sector) || (!is_start(sectors) && end != self.sectors) {
            return Err(EINVAL);
        }
        let all = what == Manage::Reset && sector == 0 && end == self.sectors;
        let mut failed = None;
        for zone in 0..self.disk.zones.len() {
            if !(sector..end).contains(&self.disk.zones[zone].start) {
                continue;
            }
            let outcome = match what {
                // RESET_ALL leaves them alone (V19).
                Manage::Reset if all && self.disk.zones[zone].is_conventional() => continue,
                Manage::Reset => self.disk.reset(zone),
                Manage::Open => self.disk.open(zone),
                Manage::Close => self.disk.close(zone),
                Manage::Finish => self.disk.finish(zone),
            };
            match outcome {
                Ok(()) if matches!(what, Manage::Reset | Manage::Finish) && failed.is_none() => {
                    self.plugs[zone] = None;
                }
                Ok(()) => {}
                Err(failure) => failed = Some(errno(failure)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// BLKREPORTZONE. It brings stale plugs to where the zone is.
    pub(crate) fn report(&mut self, sector: u64, count: usize) -> Result<Vec<Reported>, Errno> {
        if count == 0 {
            return Err(EINVAL);
        }
        let Some(first) = self.disk.zone_of(sector) else { return Ok(Vec::new()) };
        let zones = first..self.disk.zones.len().min(first + count);
        Ok(zones.map(|zone| self.report_zone(zone)).collect())
    }

    fn report_zone(&mut self, at: usize) -> Reported {
        let zone = &self.disk.zones[at];
        let end = zone.start + zone.len;
        if let Some(plug) = &mut self.plugs[at]
            && plug.stale
        {
            let expected = if zone.condition == Condition::Full { zone.len } else { zone.wp };
            *plug = Plug { expected, stale: false };
            if expected == 0 || expected >= zone.capacity {
                self.plugs[at] = None;
            }
        }
        Reported {
            start: zone.start,
            len: zone.len,
            wp: match zone.condition {
                Condition::NotWp | Condition::Full => end,
                _ => zone.start + zone.wp,
            },
            kind: if zone.is_conventional() { CONVENTIONAL } else { SEQUENTIAL },
            condition: zone.condition as u8,
            capacity: zone.capacity,
        }
    }

    /// BLKDISCARD: a host-managed disk has none.
    pub(crate) fn discard() -> Result<(), Errno> {
        Err(EOPNOTSUPP)
    }

    fn make_stale(&mut self, sector: u64) {
        if let Some(plug) = self.disk.zone_of(sector).and_then(|zone| self.plugs[zone].as_mut()) {
            plug.stale = true;
        }
    }

    fn write_piece(&mut self, sector: u64, bytes: &[u8]) -> Result<(), Errno> {
        let zone = self.disk.zone_of(sector).ok_or(EIO)?;
        let Zone { start, capacity, .. } = self.disk.zones[zone];
        if self.disk.zones[zone].is_conventional() {
            return self.disk.write(sector, bytes).map_err(errno);
        }
        let plug = self.plugs[zone].get_or_insert(Plug { expected: sector - start, stale: false });
        if plug.stale || plug.expected >= capacity || plug.expected != sector - start {
            plug.stale = true;
            return Err(EIO);
        }
        plug.expected += bytes.len() as u64 / 512;
        let filled = plug.expected >= capacity;
        let outcome = self.disk.write(sector, bytes);
        plug.stale = outcome.is_err();
        if filled {
            self.plugs[zone] = None;
        }
        outcome.map_err(errno)
    }

    /// How much of a transfer is made.
    fn checked(&self, offset: u64, len: usize, at_the_end: Errno) -> Result<usize, Errno> {
        if len == 0 {
            return Ok(0);
        }
        let left = (self.sectors * 512).saturating_sub(offset);
        if left == 0 {
            return Err(at_the_end);
        }
        let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        let whole = offset.is_multiple_of(self.block) && (len as u64).is_multiple_of(self.block);
        if whole { Ok(len) } else { Err(EINVAL) }
    }

    /// Cut at zone boundaries: the sector, where it is in the transfer, the length.
    fn pieces(&self, offset: u64, len: usize) -> Vec<(u64, usize, usize)> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < len {
            let sector = (offset + at as u64) / 512;
            let left = self.disk.zone_of(sector).map_or(1, |zone| {
                let zone = &self.disk.zones[zone];
                zone.start + zone.len - sector
            });
            let piece = (len - at).min(usize::try_from(left * 512).unwrap_or(usize::MAX));
            pieces.push((sector, at, piece));
            at += piece;
        }
        pieces
    }
}

fn errno(failure: Failure) -> Errno {
    match failure {
        Failure::Invalid => EIO,
        Failure::OpenResource => ETOOMANYREFS,
        Failure::ActiveResource => EOVERFLOW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two conventional zones, four sequential ones; 8 sectors each, 6 writable; one may be open.
    fn linux() -> Linux {
        let zone = |number: u64| Zone {
            start: number * 8,
            len: 8,
            capacity: if number < 2 { 8 } else { 6 },
            condition: if number < 2 { Condition::NotWp } else { Condition::Empty },
            wp: 0,
            bytes: vec![0; 4096],
        };
        let zones = (0..6).map(zone).collect();
        let disk = Disk { zones, max_open: 1, max_active: 0, granularity: 512, implicit: Vec::new() };
        Linux { disk, plugs: vec![None; 6], sectors: 48, zone_len: 8, block: 512 }
    }

    fn write(linux: &mut Linux, sector: u64, sectors: usize) -> Result<usize, Errno> {
        linux.write(sector * 512, &vec![7; sectors * 512])
    }

    #[test]
    fn after_a_failed_write_a_zone_takes_none_until_it_was_reported() {
        let mut linux = linux();
        assert_eq!(write(&mut linux, 17, 1), Err(EIO));
        assert_eq!(write(&mut linux, 16, 1), Err(EIO));
        assert_eq!(linux.report(16, 1).unwrap()[0].wp, 16);
        assert_eq!(write(&mut linux, 16, 1), Ok(512));
        assert_eq!(linux.manage(Manage::Open, 24, 8), Ok(()));
        assert_eq!(linux.disk.zones[2].condition, Condition::Closed);
        assert_eq!(write(&mut linux, 32, 1), Err(ETOOMANYREFS));
    }

    #[test]
    fn a_write_by_the_ring_behind_the_capacity_leaves_a_zone_that_no_report_frees() {
        let mut linux = linux();
        assert_eq!(linux.write_listed(2, &[(22, vec![0; 512])]), [Err(EIO)]);
        linux.report(16, 1).unwrap();
        assert_eq!(linux.write_listed(2, &[(16, vec![0; 512])]), [Err(EIO)]);
        linux.manage(Manage::Reset, 16, 8).unwrap();
        assert_eq!(linux.write_listed(2, &[(16, vec![0; 512])]), [Ok(512)]);
    }

    #[test]
    fn one_error_in_a_range_leaves_the_plugs_behind_it_as_they_were() {
        let mut linux = linux();
        write(&mut linux, 16, 2).unwrap();
        assert_eq!(linux.manage(Manage::Reset, 8, 16), Err(EIO));
        assert_eq!(linux.disk.zones[2].condition, Condition::Empty);
        assert_eq!(write(&mut linux, 16, 1), Err(EIO));
        linux.report(16, 1).unwrap();
        assert_eq!(write(&mut linux, 16, 1), Ok(512));
        // From a place where nothing can be written into an empty zone.
        assert_eq!(write(&mut linux, 23, 2), Err(EIO));
        assert_eq!(linux.disk.zones[3].wp, 1);
        assert_eq!(write(&mut linux, 25, 1), Err(EIO));
    }
}
