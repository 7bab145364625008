//! A request from its bytes to its bytes.

use virtio_zbd_spec::{DiscardWriteZeroes, Features, RequestType, Status, ZoneState, ZoneType};
use zerocopy::FromBytes;

use super::{Break, Naive};

/// The sector of an append, or a status.
pub(super) type Answer = Result<u64, u8>;

pub(super) const fn no(status: Status) -> Answer {
    Err(status as u8)
}

pub(super) const IOERR: Answer = no(Status::IoErr);
pub(super) const INVALID: Answer = no(Status::ZoneInvalidCmd);
const DONE: Answer = Ok(0);

impl Naive {
    /// Serves a chain: `lens` are the pieces of `room`. `None`: the device says nothing any more.
    pub(super) fn answer(&mut self, readable: &[&[u8]], lens: &[usize], room: &mut [u8]) -> Option<u32> {
        if self.hangs {
            return None;
        }
        let sent = readable.concat();
        if sent.len() < 16 || room.is_empty() {
            self.hangs = self.is(Break::MalformedHangs);
            if let Some(status) = room.last_mut() {
                *status = Status::IoErr.into();
            }
            return (!self.hangs).then_some(0);
        }
        let kind = u32::from_le_bytes(sent[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(sent[8..16].try_into().unwrap());
        let is_append = kind == u32::from(RequestType::ZoneAppend);
        let header_len = if is_append { 9 } else { 1 };
        if room.len() < header_len {
            let ok = self.is(Break::AppendWithoutRoom);
            *room.last_mut().unwrap() = if ok { 0 } else { 1 };
            return Some(0);
        }
        let (data, in_header) = room.split_at_mut(room.len() - header_len);
        let answer = if self.misframed(kind, readable, lens) {
            IOERR
        } else {
            self.serve(kind, sector, &sent[16..], data)
        };
        let status = answer.err().unwrap_or(0);
        if is_append {
            let place = answer.unwrap_or(0).to_le_bytes();
            if self.is(Break::AppendStatusFirst) {
                in_header[0] = status;
                in_header[1..].copy_from_slice(&place);
            } else {
                in_header[..8].copy_from_slice(&place);
                in_header[8] = status;
            }
        } else {
            in_header[0] = status;
        }
        if kind == u32::from(RequestType::In) && self.is(Break::StatusFirst) {
            room.rotate_right(1);
        }
        let used = u32::try_from(room.len()).unwrap();
        Some(if self.is(Break::UsedTooLong) { used + 1 } else { used })
    }

    /// What a device that counts on a certain framing does not take.
    fn misframed(&self, kind: u32, readable: &[&[u8]], lens: &[usize]) -> bool {
        let is = |wanted: RequestType| kind == u32::from(wanted);
        let (last, before) = lens.split_last().unwrap();
        match self.broken {
            Some(Break::HeaderAlone) => readable[0].len() != 16,
            Some(Break::DataInSectors) => readable[1..].iter().any(|piece| piece.len() % 512 != 0),
            Some(Break::StatusAlone) => !is(RequestType::ZoneAppend) && *last != 1,
            Some(Break::RoomInSectors) => before.iter().any(|len| len % 64 != 0),
            Some(Break::InHeaderWhole) => is(RequestType::ZoneAppend) && *last != 9,
            _ => false,
        }
    }

    fn serve(&mut self, kind: u32, sector: u64, data: &[u8], room: &mut [u8]) -> Answer {
        let Ok(kind) = RequestType::try_from(kind) else {
            return if self.is(Break::UnknownTypeIsOk) { DONE } else { no(Status::Unsupp) };
        };
        if kind.is_zoned() && !self.zoned() {
            return if self.is(Break::ZonesWithoutZoned) { DONE } else { no(Status::Unsupp) };
        }
        match kind {
            RequestType::In => self.read(sector, room),
            RequestType::Out => self.write(sector, data),
            RequestType::Flush => {
                if self.is(Break::FlushFails) {
                    IOERR
                } else {
                    DONE
                }
            }
            RequestType::GetId => {
                let garbage = self.is(Break::IdOfGarbage);
                for (index, byte) in room.iter_mut().enumerate() {
                    *byte = if garbage { 0xff } else { b"naive".get(index).copied().unwrap_or(0) };
                }
                DONE
            }
            RequestType::GetLifetime if self.accepted.contains(Features::LIFETIME) => {
                room.fill(0);
                room[0] = if self.is(Break::LifetimeReserved) { 4 } else { 1 };
                DONE
            }
            RequestType::GetLifetime => no(Status::Unsupp),
            RequestType::Discard | RequestType::WriteZeroes | RequestType::SecureErase => {
                self.ranges(kind, data)
            }
            RequestType::ZoneReport => self.report(sector, room),
            RequestType::ZoneAppend => self.append(sector, data),
            _ => self.manage(kind, sector),
        }
    }

    fn read(&mut self, sector: u64, room: &mut [u8]) -> Answer {
        if !room.len().is_multiple_of(512) {
            return if self.is(Break::PartialSectorsAreOk) { DONE } else { IOERR };
        }
        let Some(end) = self.end(sector, room.len()) else {
            return if self.is(Break::PastTheEndIsOk) { DONE } else { IOERR };
        };
        if !self.whole_blocks(sector, room.len()) {
            return IOERR;
        }
        if self.is(Break::LastSectorDead) && end == self.shape.capacity_sectors {
            return IOERR;
        }
        if self.zoned() {
            self.readable(sector, end)?;
        }
        let mut unwritten = false;
        for (sector, bytes) in (sector..).zip(room.chunks_exact_mut(512)) {
            if self.is_written(sector) {
                let at = usize::try_from(sector * 512).unwrap();
                bytes.copy_from_slice(&self.data[at..at + 512]);
            } else {
                unwritten = true;
                self.reads = self.reads.wrapping_add(1);
                bytes.fill(match self.broken {
                    Some(Break::UnwrittenIsUnknown) => return Err(200),
                    Some(Break::UnwrittenFails) => return IOERR,
                    Some(Break::PatternChanges) => self.reads,
                    Some(Break::PatternOfOnes) => 0xff,
                    _ => 0,
                });
            }
        }
        if unwritten && self.is(Break::UnwrittenHidesWritten) {
            room.fill(0);
        }
        if self.is(Break::ReadsWrongData)
            && let Some(byte) = room.first_mut()
        {
            *byte ^= 1;
        }
        DONE
    }

    /// Whether a range of a disk with zones can be read.
    fn readable(&mut self, sector: u64, end: u64) -> Answer {
        let (first, last) = (self.zone_of(sector), self.zone_of(end.max(sector + 1) - 1));
        if self.zones[first..=last].iter().any(|zone| zone.state == ZoneState::Offline) {
            return if self.is(Break::ServesOffline) { DONE } else { INVALID };
        }
        let kinds = (self.zones[first].kind, self.zones[last].kind);
        let crossing = first != last
            && match kinds {
                (ZoneType::SequentialRequired, _) => !self.is(Break::CrossingReads),
                (_, ZoneType::SequentialRequired) => !self.is(Break::CrossingFromConventional),
                _ => false,
            };
        if crossing || (self.is(Break::ReadOnlyUnreadable) && self.zones[first].state == ZoneState::ReadOnly)
        {
            return INVALID;
        }
        let granule = u64::from(self.shape.granularity) / 512;
        let moves = self.is(Break::ReadMovesWritePointer);
        let zone = &mut self.zones[first];
        if moves && zone.wp > zone.start + granule {
            zone.wp -= granule;
        }
        DONE
    }

    fn is_written(&self, sector: u64) -> bool {
        if self.zones.is_empty() || self.is(Break::OldDataShows) {
            return true;
        }
        let zone = &self.zones[self.zone_of(sector)];
        zone.kind == ZoneType::Conventional || sector < zone.data_end
    }

    fn ranges(&mut self, kind: RequestType, data: &[u8]) -> Answer {
        let needed = match kind {
            RequestType::Discard => Features::DISCARD,
            RequestType::WriteZeroes => Features::WRITE_ZEROES,
            _ => Features::SECURE_ERASE,
        };
        if !self.accepted.contains(needed) {
            return no(Status::Unsupp);
        }
        for range in data.chunks_exact(16) {
            let range = DiscardWriteZeroes::read_from_bytes(range).unwrap();
            let flags = range.flags.get();
            let unmaps = kind == RequestType::Discard && flags & 1 != 0 && !self.is(Break::DiscardUnmaps);
            if unmaps || (flags > 1 && !self.is(Break::UnknownFlagsIgnored)) {
                return no(Status::Unsupp);
            }
            let (sector, sectors) = (range.sector.get(), u64::from(range.num_sectors.get()));
            if kind == RequestType::SecureErase {
                self.erase(sector, sectors)?;
                continue;
            }
            let Some(end) = self.end(sector, usize::try_from(sectors * 512).unwrap()) else { return IOERR };
            if !self.is(Break::ZeroesNothing) {
                let at = |sector: u64| usize::try_from(sector * 512).unwrap();
                self.data[at(sector)..at(end)].fill(0);
            }
        }
        DONE
    }

    fn erase(&mut self, sector: u64, sectors: u64) -> Answer {
        let length = self.shape.zone_sectors;
        if self.is(Break::EraseDoesNothing) {
            return DONE;
        }
        let whole = sector.is_multiple_of(length) && sectors.is_multiple_of(length);
        if !whole && !self.is(Break::ErasesParts) {
            return IOERR;
        }
        for zone in (sector..sector + sectors).step_by(usize::try_from(length).unwrap()) {
            let conventional = zone < self.shape.capacity_sectors
                && self.zones[self.zone_of(zone)].kind == ZoneType::Conventional;
            if !(conventional && self.is(Break::ErasesConventional)) {
                self.manage(RequestType::ZoneReset, zone)?;
            }
        }
        DONE
    }

    /// Whether a range is one that a device may want which serves whole blocks only.
    pub(super) fn whole_blocks(&self, sector: u64, len_bytes: usize) -> bool {
        let block = usize::try_from(self.shape.block).unwrap();
        !self.is(Break::WholeBlocksOnly)
            || (sector.is_multiple_of(block as u64 / 512) && len_bytes.is_multiple_of(block))
    }

    /// The sector behind a range, if the range is on the disk.
    pub(super) fn end(&self, sector: u64, len_bytes: usize) -> Option<u64> {
        sector.checked_add(len_bytes as u64 / 512).filter(|end| *end <= self.shape.capacity_sectors)
    }

    pub(super) fn zone_of(&self, sector: u64) -> usize {
        usize::try_from(sector / self.shape.zone_sectors).unwrap().min(self.zones.len() - 1)
    }

    pub(super) fn store(&mut self, sector: u64, data: &[u8]) {
        let at = usize::try_from(sector * 512).unwrap();
        self.data[at..at + data.len()].copy_from_slice(data);
    }
}
