//! Zones: reports, management, writes, resources.

use virtio_zbd_spec::{Features, ReportHeader, RequestType, Status, ZoneDescriptor, ZoneState, ZoneType};
use zerocopy::IntoBytes;

use super::serve::{Answer, INVALID, IOERR, no};
use super::{Break, Naive};

const DONE: Answer = Ok(0);

/// Reports.
impl Naive {
    pub(super) fn report(&self, sector: u64, room: &mut [u8]) -> Answer {
        let too_short = room.len() < if self.is(Break::HeaderAloneRefused) { 128 } else { 64 };
        if too_short {
            return if self.is(Break::ReportWithoutRoom) { DONE } else { INVALID };
        }
        if sector >= self.shape.capacity_sectors {
            return if self.is(Break::ReportPastTheEnd) { DONE } else { INVALID };
        }
        let inside = !sector.is_multiple_of(self.shape.zone_sectors);
        let first = self.zone_of(sector) + usize::from(inside && self.is(Break::ReportFromNextZone));
        let fitting = (room.len() - 64) / 64;
        let last = self.zones.len() - usize::from(self.is(Break::ReportEndsEarly));
        let left = last.saturating_sub(first);
        let count = fitting.min(left);
        let partial = !room.len().is_multiple_of(64) && left > count;
        let said = match self.broken {
            Some(Break::CountsRoom) => fitting,
            Some(Break::CountsPartialDescriptors) if partial => count + 1,
            _ => count,
        };
        room.fill(0);
        let mut header = ReportHeader::new(said as u64);
        header.reserved[3] = u8::from(self.is(Break::ReservedInHeader));
        room[..64].copy_from_slice(header.as_bytes());
        for (index, place) in (first..first + count).zip(room[64..].chunks_exact_mut(64)) {
            place.copy_from_slice(self.descriptor(index, count > 1).as_bytes());
        }
        DONE
    }

    fn descriptor(&self, index: usize, long: bool) -> ZoneDescriptor {
        let zone = &self.zones[index];
        let granule = u64::from(self.shape.granularity) / 512;
        let mut seen = ZoneDescriptor::new(zone.kind, zone.state, zone.start, zone.capacity, zone.wp);
        let ended = matches!(zone.state, ZoneState::Full | ZoneState::ReadOnly | ZoneState::Offline);
        if ended && !self.is(Break::FullShowsData) {
            seen.z_wp = (zone.start + zone.len).into();
        }
        let empty = zone.state == ZoneState::Empty;
        let conventional = zone.kind == ZoneType::Conventional;
        match self.broken {
            Some(Break::PreferredOnHostManaged) if !conventional => seen.z_type = 3,
            Some(Break::UnknownType) => seen.z_type = 9,
            Some(Break::UnknownState) if empty => seen.z_state = 7,
            Some(Break::ConventionalIsEmpty) if conventional => seen.z_state = 1,
            Some(Break::ZonesWithGaps) if index > 0 => seen.z_start = (zone.start + 1).into(),
            Some(Break::LastCapacityBeyondDisk) => seen.z_cap = self.shape.zone_sectors.into(),
            Some(Break::CapacityBeyondZone) => seen.z_cap = (self.shape.zone_sectors + 1).into(),
            Some(Break::CapacityShrinks) if is_active(zone.state) => {
                seen.z_cap = (zone.start + zone.capacity - zone.wp).into();
            }
            Some(Break::LongReportsAreStale) if long => seen.z_wp = (zone.wp + 1).into(),
            Some(Break::ReservedInDescriptor) => seen.reserved[37] = 1,
            Some(Break::EmptyPointsToZero) if empty => seen.z_wp = 0.into(),
            Some(Break::WritePointerBehind) if is_active(zone.state) => {
                seen.z_wp = zone.wp.saturating_sub(granule).into();
            }
            _ => {}
        }
        seen
    }
}

/// Management.
impl Naive {
    pub(super) fn manage(&mut self, kind: RequestType, sector: u64) -> Answer {
        if self.shape.features.contains(Features::RO) && !self.is(Break::ReadOnlyDiskManages) {
            return IOERR;
        }
        if kind == RequestType::ZoneResetAll {
            return self.reset_all(sector);
        }
        if sector >= self.shape.capacity_sectors {
            return if self.is(Break::ManagesPastTheEnd) { DONE } else { INVALID };
        }
        let index = self.zone_of(sector);
        if sector != self.zones[index].start && !self.is(Break::ManagesFromInside) {
            return INVALID;
        }
        if self.is_dead(index) {
            return IOERR;
        }
        let leave = match (self.zones[index].kind, self.zones[index].state) {
            (ZoneType::Conventional, _) => Some(Break::ManagesConventional),
            (_, ZoneState::Offline) => Some(Break::ServesOffline),
            (_, ZoneState::ReadOnly) => Some(Break::ManagesReadOnly),
            _ => None,
        };
        if let Some(broken) = leave {
            return if self.is(broken) { DONE } else { INVALID };
        }
        match kind {
            RequestType::ZoneOpen => self.open(index),
            RequestType::ZoneClose => self.close(index),
            RequestType::ZoneFinish => self.finish(index),
            _ => self.reset(index),
        }
    }

    fn open(&mut self, index: usize) -> Answer {
        if self.is(Break::OpenDoesNothing) {
            return DONE;
        }
        match self.zones[index].state {
            ZoneState::Full if self.is(Break::OpensFull) => {}
            ZoneState::Full => return INVALID,
            ZoneState::ExplicitOpen if self.is(Break::OpenOfOpenFails) => return INVALID,
            ZoneState::ExplicitOpen | ZoneState::ImplicitOpen => {
                self.leak(Break::OpenCountsTwice, 1);
                self.turn(index, ZoneState::ExplicitOpen);
            }
            _ => self.take(index, true)?,
        }
        DONE
    }

    fn close(&mut self, index: usize) -> Answer {
        if self.is(Break::CloseDoesNothing) {
            return DONE;
        }
        let zone = &self.zones[index];
        let state = if zone.wp == zone.start { ZoneState::Empty } else { ZoneState::Closed };
        match zone.state {
            ZoneState::Empty | ZoneState::Full if self.is(Break::CloseOfAnything) => {}
            ZoneState::Empty | ZoneState::Full => return INVALID,
            ZoneState::Closed if self.is(Break::CloseOfClosedFails) => return INVALID,
            ZoneState::Closed => self.leak(Break::CloseFreesTwice, -1),
            _ => {
                self.leak(Break::CloseLeaks, 1);
                self.turn(index, state);
            }
        }
        DONE
    }

    fn finish(&mut self, index: usize) -> Answer {
        let state = self.zones[index].state;
        if self.is(Break::FinishDoesNothing) {
            return DONE;
        }
        match state {
            ZoneState::Full if self.is(Break::FinishOfFullFails) => return INVALID,
            ZoneState::Empty | ZoneState::Closed if self.is(Break::FinishOfOpenOnly) => return INVALID,
            ZoneState::Empty | ZoneState::Closed if !self.is(Break::FinishNeedsNothing) => {
                self.take(index, false)?;
            }
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => self.leak(Break::FinishLeaks, 1),
            _ => {}
        }
        self.turn(index, ZoneState::Full);
        DONE
    }

    fn reset(&mut self, index: usize) -> Answer {
        let state = self.zones[index].state;
        if self.is(Break::ResetDoesNothing) {
            return DONE;
        }
        if state == ZoneState::Empty && self.is(Break::ResetOfEmptyFails) {
            return INVALID;
        }
        if is_active(state) {
            self.leak(Break::ResetLeaks, 1);
        }
        self.empty(index);
        if self.is(Break::ResetLeavesHole) {
            let granule = self.shape.granularity as usize;
            let zone = &mut self.zones[index];
            zone.wp += granule as u64 / 512;
            zone.data_end = zone.wp;
            let start = zone.start;
            self.store(start, &vec![0; granule]);
        }
        let before = index.wrapping_sub(1);
        if self.is(Break::ManagementReachesNeighbour)
            && self.zones.get(before).is_some_and(|zone| zone.kind != ZoneType::Conventional)
        {
            self.empty(before);
        }
        DONE
    }

    fn reset_all(&mut self, sector: u64) -> Answer {
        if sector != 0 && self.is(Break::ResetAllWantsSectorZero) {
            return INVALID;
        }
        if self.is(Break::ResetAllDoesNothing) {
            return DONE;
        }
        for index in 0..self.zones.len() {
            let (kind, state) = (self.zones[index].kind, self.zones[index].state);
            let worn = matches!(state, ZoneState::ReadOnly | ZoneState::Offline);
            if kind == ZoneType::Conventional {
                if self.is(Break::ResetAllTakesConventional) {
                    let zone = self.zones[index].clone();
                    self.store(zone.start, &vec![0; usize::try_from(zone.len * 512).unwrap()]);
                }
            } else if !worn || self.is(Break::ResetAllTakesWorn) {
                if is_open(state) {
                    self.leak(Break::ResetAllLeaks, 1);
                }
                self.empty(index);
            }
        }
        DONE
    }

    fn empty(&mut self, index: usize) {
        self.turn(index, ZoneState::Empty);
        let zone = &mut self.zones[index];
        (zone.wp, zone.data_end) = (zone.start, zone.start);
        let zone = zone.clone();
        if zone.kind == ZoneType::SequentialPreferred {
            self.store(zone.start, &vec![0; usize::try_from(zone.len * 512).unwrap()]);
        }
    }

    fn is_dead(&self, index: usize) -> bool {
        let zone = &self.zones[index];
        match self.broken {
            Some(Break::ShortZoneDead) => zone.len < self.shape.zone_sectors,
            Some(Break::FirstZoneDead) => {
                self.zones[..index].iter().all(|before| before.kind == ZoneType::Conventional)
                    && zone.kind != ZoneType::Conventional
            }
            Some(Break::LastZoneDead) => index + 1 == self.zones.len(),
            _ => false,
        }
    }
}

/// Resources.
impl Naive {
    /// Opens a zone that is empty or closed.
    fn take(&mut self, index: usize, explicit: bool) -> Result<(), u8> {
        let (open, active) = self.counts();
        let (max_open, max_active) = self.limits();
        let no_open = max_open.is_some_and(|max| open >= max);
        let no_active =
            self.zones[index].state == ZoneState::Empty && max_active.is_some_and(|max| active >= max);
        let room = if no_open { self.room_for(explicit) } else { None };
        let refused = match (no_active, no_open && room.is_none()) {
            (true, true) if self.is(Break::BothIsOpen) => Some(Status::ZoneOpenResource),
            (true, _) => Some(Status::ZoneActiveResource),
            (false, true) => Some(Status::ZoneOpenResource),
            (false, false) => None,
        };
        if let Some(status) = refused {
            self.leak(Break::RefusalLeaks, 1);
            return Err(status.into());
        }
        if let Some(other) = room {
            self.turn(other, ZoneState::Closed);
            if self.is(Break::RoomLosesData) {
                self.zones[other].wp = self.zones[other].start;
            }
        }
        let explicit = explicit || self.is(Break::WriteOpensExplicitly);
        self.turn(index, if explicit { ZoneState::ExplicitOpen } else { ZoneState::ImplicitOpen });
        Ok(())
    }

    /// The zone that is closed to make room.
    fn room_for(&self, explicit: bool) -> Option<usize> {
        let refuses = if explicit { Break::NoRoomForOpen } else { Break::NoRoomForWrites };
        if self.is(refuses) {
            return None;
        }
        let explicit = self.zones.iter().position(|zone| zone.state == ZoneState::ExplicitOpen);
        if self.is(Break::RoomFromExplicit) && explicit.is_some() {
            return explicit;
        }
        self.implicit.first().copied()
    }

    fn counts(&self) -> (i64, i64) {
        let count = |uses: fn(ZoneState) -> bool| self.zones.iter().filter(|zone| uses(zone.state)).count();
        let count = |uses| i64::try_from(count(uses)).unwrap();
        (count(is_open) + self.leaked.0, count(is_active) + self.leaked.1)
    }

    fn limits(&self) -> (Option<i64>, Option<i64>) {
        let limit = |max: u32, none: Break, less: Break| match max {
            _ if self.is(none) => None,
            0 => self.is(Break::HiddenLimit).then_some(2),
            max => Some(i64::from(max) - i64::from(self.is(less))),
        };
        (
            limit(self.shape.max_open, Break::NoOpenLimit, Break::OneOpenLess),
            limit(self.shape.max_active, Break::NoActiveLimit, Break::OneActiveLess),
        )
    }

    fn leak(&mut self, broken: Break, count: i64) {
        if self.is(broken) {
            self.leaked.0 += count;
            self.leaked.1 += count;
        }
    }

    fn turn(&mut self, index: usize, state: ZoneState) {
        self.implicit.retain(|&other| other != index);
        if state == ZoneState::ImplicitOpen {
            self.implicit.push(index);
        }
        self.zones[index].state = state;
    }
}

/// Writes.
impl Naive {
    pub(super) fn write(&mut self, sector: u64, data: &[u8]) -> Answer {
        if self.shape.features.contains(Features::RO) && !self.is(Break::ReadOnlyDiskWrites) {
            return IOERR;
        }
        if !data.len().is_multiple_of(512) {
            return if self.is(Break::PartialSectorsAreOk) { DONE } else { IOERR };
        }
        let Some(end) = self.end(sector, data.len()) else {
            return if self.is(Break::PastTheEndIsOk) { DONE } else { IOERR };
        };
        if !self.whole_blocks(sector, data.len()) {
            return IOERR;
        }
        if !self.zoned() {
            self.store(sector, data);
            return DONE;
        }
        let (first, last) = (self.zone_of(sector), self.zone_of(end.max(sector + 1) - 1));
        if self.is_dead(first) {
            return IOERR;
        }
        match self.zones[first].kind {
            ZoneType::Conventional => self.write_conventional(first, last, sector, data),
            ZoneType::SequentialPreferred if !self.is(Break::PreferredIsRequired) => {
                self.write_preferred(first, sector, data)
            }
            _ => self.write_at(first, sector, data, false),
        }
    }

    fn write_conventional(&mut self, first: usize, last: usize, sector: u64, data: &[u8]) -> Answer {
        let crosses = first != last;
        if crosses && self.is(Break::ConventionalNotCrossed) {
            return IOERR;
        }
        if crosses
            && self.zones[last].kind == ZoneType::SequentialRequired
            && !self.is(Break::CrossingFromConventional)
        {
            return INVALID;
        }
        let in_order = self.is(Break::ConventionalInOrder);
        let opens = self.is(Break::ConventionalOpens);
        let zone = &mut self.zones[first];
        if in_order && sector < zone.wp {
            return IOERR;
        }
        if in_order {
            zone.wp = sector + 1;
        }
        if opens {
            zone.state = ZoneState::ImplicitOpen;
        }
        self.store(sector, data);
        DONE
    }

    fn write_preferred(&mut self, index: usize, sector: u64, data: &[u8]) -> Answer {
        let state = self.zones[index].state;
        if data.is_empty() {
            return DONE;
        }
        if matches!(state, ZoneState::Empty | ZoneState::Closed) {
            self.take(index, false)?;
        }
        self.store(sector, data);
        let zone = &mut self.zones[index];
        zone.wp = zone.wp.max(sector + data.len() as u64 / 512).min(zone.start + zone.len);
        zone.data_end = zone.wp;
        if zone.wp >= zone.start + zone.capacity {
            self.turn(index, ZoneState::Full);
        }
        DONE
    }

    pub(super) fn append(&mut self, sector: u64, data: &[u8]) -> Answer {
        if self.shape.features.contains(Features::RO) && !self.is(Break::ReadOnlyDiskWrites) {
            return IOERR;
        }
        let max = u64::from(self.shape.max_append) * 512;
        let len = data.len() as u64;
        if max == 0 {
            return if self.is(Break::NoAppendIsInvalid) { INVALID } else { no(Status::Unsupp) };
        }
        if (len > max && !self.is(Break::AppendLimitIgnored))
            || (len == max && self.is(Break::LongestAppendRefused))
            || sector >= self.shape.capacity_sectors
        {
            return INVALID;
        }
        let index = self.zone_of(sector);
        if self.is_dead(index) {
            return IOERR;
        }
        let other = match self.zones[index].kind {
            ZoneType::Conventional => Some(Break::AppendToConventional),
            ZoneType::SequentialPreferred => Some(Break::AppendToPreferred),
            ZoneType::SequentialRequired => None,
        };
        if let Some(broken) = other {
            return if self.is(broken) { DONE } else { INVALID };
        }
        if sector != self.zones[index].start && !self.is(Break::AppendAnywhere) {
            return INVALID;
        }
        let wp = self.zones[index].wp;
        self.write_at(index, wp, data, true)?;
        Ok(if self.is(Break::AppendTellsEnd) { self.zones[index].wp } else { wp })
    }

    /// A write to a zone that wants it at its write pointer.
    fn write_at(&mut self, index: usize, sector: u64, data: &[u8], append: bool) -> Answer {
        let zone = self.zones[index].clone();
        let granule = u64::from(self.shape.granularity) / 512;
        let capacity_end = zone.start + zone.capacity;
        let end = sector + data.len() as u64 / 512;
        let cuts = self.is(if append { Break::LongAppendsAreCut } else { Break::LongWritesAreCut });
        let serves = match zone.state {
            ZoneState::Offline => Some(Break::ServesOffline),
            ZoneState::ReadOnly => Some(Break::WritesReadOnlyZones),
            ZoneState::Full => Some(Break::WritesFull),
            _ if end > zone.start + zone.len && !cuts => Some(Break::CrossingWrites),
            _ if !append && sector >= capacity_end && self.is(Break::GapIsWritable) => {
                Some(Break::GapIsWritable)
            }
            _ => None,
        };
        if let Some(broken) = serves {
            return if self.is(broken) { DONE } else { INVALID };
        }
        let misplaced =
            no(if self.is(Break::MisplacedIsIoErr) { Status::IoErr } else { Status::ZoneUnalignedWp });
        if sector < zone.wp && self.is(Break::OverwritesBehind) {
            self.store(sector, data);
            return DONE;
        }
        if sector != zone.wp && !(sector > zone.wp && self.is(Break::SkipsAhead)) {
            return misplaced;
        }
        let partial = if append { Break::PartialAppends } else { Break::PartialGranules };
        if !data.len().is_multiple_of(self.shape.granularity as usize) && !self.is(partial) {
            return misplaced;
        }
        if end > capacity_end && !cuts {
            return INVALID;
        }
        let end = end.min(capacity_end);
        let data = &data[..usize::try_from((end - sector) * 512).unwrap()];
        if data.is_empty() && !self.is(Break::NoDataOpens) {
            return DONE;
        }
        if matches!(zone.state, ZoneState::Empty | ZoneState::Closed) {
            self.take(index, false)?;
        } else if zone.state == ZoneState::ExplicitOpen && self.is(Break::WriteToExplicitMakesImplicit) {
            self.turn(index, ZoneState::ImplicitOpen);
        }
        self.store(sector, data);
        let wp = if self.is(Break::MovesByOneGranule) { end.min(sector + granule) } else { end };
        (self.zones[index].wp, self.zones[index].data_end) = (wp, end);
        let early = if self.is(Break::FullTooEarly) { granule } else { 0 };
        if wp + early >= capacity_end && !self.is(Break::NeverFull) {
            self.leak(Break::FullLeaks, 1);
            self.turn(index, ZoneState::Full);
        }
        DONE
    }
}

const fn is_open(state: ZoneState) -> bool {
    matches!(state, ZoneState::ImplicitOpen | ZoneState::ExplicitOpen)
}

const fn is_active(state: ZoneState) -> bool {
    is_open(state) || matches!(state, ZoneState::Closed)
}
