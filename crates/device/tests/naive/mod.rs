//! A disk told as plainly as the rules tell it, to compare the real one with: it takes a request's bytes and gives the whole answer.
//!
//! It has one user, does one request after the other, and keeps nothing that can be worked out: where a zone's write pointer is, it
//! finds from the data that the zone has; how many zones are open, it counts.

use virtio_zbd_spec::{RequestType, Status, ZoneState, ZoneType};
use virtio_zbd_testkit::{Completion, Request, UNTOUCHED};
use virtio_zbd_zones::GeometryConfig;

const SECTOR: u64 = 512;

/// A disk, zoned or plain.
#[derive(Clone)]
pub(crate) struct NaiveDisk {
    /// `None`: a plain disk, which is one conventional zone here.
    shape: Option<GeometryConfig>,
    /// The driver knows no zones, and uses a host-aware disk as a regular one.
    pub(crate) regular: bool,
    serial: [u8; 20],
    pub(crate) zones: Vec<NaiveZone>,
    /// The implicitly open zones, the one that was opened first at the front.
    implicit: Vec<usize>,
}

/// A zone. Positions are in sectors from the disk's start.
#[derive(Clone)]
pub(crate) struct NaiveZone {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) capacity: u64,
    pub(crate) kind: ZoneType,
    pub(crate) state: ZoneState,
    /// All that was written since the last reset; all of a conventional zone.
    data: Vec<u8>,
}

/// What a request is answered with, if not the status alone.
enum Answer {
    /// This fills the room for data.
    Data(Vec<u8>),
    Appended(u64),
    Done,
}

impl NaiveZone {
    fn is_conventional(&self) -> bool {
        self.state == ZoneState::NotWp
    }

    fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Where the next write goes.
    pub(crate) fn wp(&self) -> u64 {
        self.start + self.data.len() as u64 / SECTOR
    }

    /// The 64 bytes that describe it in a report.
    fn description(&self) -> Vec<u8> {
        let wp = match self.state {
            ZoneState::Empty | ZoneState::ImplicitOpen | ZoneState::ExplicitOpen | ZoneState::Closed => {
                self.wp()
            }
            _ => self.end(),
        };
        let mut bytes = [self.capacity, self.start, wp].map(u64::to_le_bytes).concat();
        bytes.extend([self.kind as u8, self.state as u8]);
        bytes.resize(64, 0);
        bytes
    }

    /// All of its sectors, those that were never written as zeros.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.data.clone();
        bytes.resize(index(self.len * SECTOR), 0);
        bytes
    }
}

impl NaiveDisk {
    pub(crate) fn zoned(shape: GeometryConfig, serial: [u8; 20]) -> Self {
        let first = shape.conventional_zones;
        let zones = (0..).map(|zone| match zone < first {
            true => (ZoneType::Conventional, shape.zone_sectors),
            false => (ZoneType::SequentialRequired, shape.zone_capacity_sectors),
        });
        Self::of_zones(shape, zones, serial)
    }

    /// A disk whose zones are of these kinds and capacities.
    pub(crate) fn of_zones(
        shape: GeometryConfig,
        each: impl IntoIterator<Item = (ZoneType, u32)>,
        serial: [u8; 20],
    ) -> Self {
        let mut zones = Vec::new();
        let mut start = 0;
        for (kind, capacity) in each {
            if start == shape.capacity_sectors {
                break;
            }
            let len = u64::from(shape.zone_sectors).min(shape.capacity_sectors - start);
            let zone = if kind == ZoneType::Conventional {
                let data = vec![0; index(len * SECTOR)];
                NaiveZone { start, len, capacity: len, kind, state: ZoneState::NotWp, data }
            } else {
                let capacity = len.min(capacity.into());
                NaiveZone { start, len, capacity, kind, state: ZoneState::Empty, data: Vec::new() }
            };
            zones.push(zone);
            start += len;
        }
        Self { shape: Some(shape), regular: false, serial, zones, implicit: Vec::new() }
    }

    pub(crate) fn plain(sectors: u64, serial: [u8; 20]) -> Self {
        let data = vec![0; index(sectors * SECTOR)];
        let kind = ZoneType::Conventional;
        let zone =
            NaiveZone { start: 0, len: sectors, capacity: sectors, kind, state: ZoneState::NotWp, data };
        Self { shape: None, regular: true, serial, zones: vec![zone], implicit: Vec::new() }
    }

    pub(crate) fn sectors(&self) -> u64 {
        self.zones.last().unwrap().end()
    }

    /// All sectors as a driver reads them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.zones.iter().flat_map(NaiveZone::bytes).collect()
    }

    /// Open and active zones.
    pub(crate) fn open_and_active(&self) -> (u32, u32) {
        let count =
            |states: &[ZoneState]| self.zones.iter().filter(|zone| states.contains(&zone.state)).count();
        let open = count(&[ZoneState::ImplicitOpen, ZoneState::ExplicitOpen]);
        let active = open + count(&[ZoneState::Closed]);
        (u32::try_from(open).unwrap(), u32::try_from(active).unwrap())
    }

    /// G6: what was open is closed, or empty where nothing was written.
    pub(crate) fn restart(&mut self) {
        self.implicit.clear();
        for zone in &mut self.zones {
            if matches!(zone.state, ZoneState::ImplicitOpen | ZoneState::ExplicitOpen) {
                zone.state = if zone.data.is_empty() { ZoneState::Empty } else { ZoneState::Closed };
            }
        }
    }

    /// Does a request. Returns all that the driver may see of the answer.
    pub(crate) fn call(&mut self, request: &Request) -> Completion {
        let kind = u32::from_le_bytes(request.header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(request.header[8..16].try_into().unwrap());
        let answer = match RequestType::try_from(kind) {
            Ok(kind) => self.answer(kind, sector, request),
            Err(_) => Err(Status::Unsupp),
        };
        let untouched = vec![UNTOUCHED; request.in_data_len];
        let (status, mut data, mut filled, appended) = match answer {
            Ok(Answer::Data(data)) => (Status::Ok, data, true, 0),
            Ok(Answer::Appended(sector)) => (Status::Ok, untouched, false, sector),
            Ok(Answer::Done) => (Status::Ok, untouched, false, 0),
            Err(status) => (status, untouched, false, 0),
        };
        let mut append_sector = (request.in_header_len == 9).then_some(0);
        let room = request.in_data_len + request.in_header_len;
        if kind == u32::from(RequestType::ZoneAppend) && room >= 9 {
            // All of it is in-header: the sector first, the status last, zeros between.
            let mut bytes = appended.to_le_bytes().to_vec();
            bytes.resize(room - 1, 0);
            let header = bytes.split_off(request.in_data_len);
            data = bytes;
            append_sector = header.first_chunk::<8>().map(|sector| u64::from_le_bytes(*sector));
            filled = true;
        }
        let counted = if filled || data.is_empty() { room } else { 0 };
        Completion { status: status as u8, data, append_sector, used_len: u32::try_from(counted).unwrap() }
    }

    fn answer(&mut self, kind: RequestType, sector: u64, request: &Request) -> Result<Answer, Status> {
        use RequestType as T;
        let out_len = request.out_data.len() as u64;
        let in_len = request.in_data_len as u64;
        // V12
        if kind.is_zoned() && self.regular {
            return Err(Status::Unsupp);
        }
        match kind {
            T::In => self.read(sector, whole(in_len)?).map(Answer::Data),
            T::Out => {
                whole(out_len)?;
                self.write(sector, &request.out_data).map(|()| Answer::Done)
            }
            T::ZoneAppend => {
                whole(out_len)?;
                self.append(sector, &request.out_data).map(Answer::Appended)
            }
            T::Flush => Ok(Answer::Done),
            T::GetId if in_len == 0 => Err(Status::IoErr),
            T::GetId => {
                let mut id = self.serial.to_vec();
                id.resize(request.in_data_len, 0);
                Ok(Answer::Data(id))
            }
            T::Discard | T::WriteZeroes if self.shape.is_none() => {
                self.zero(&request.out_data, kind == T::WriteZeroes).map(|()| Answer::Done)
            }
            T::Discard | T::WriteZeroes | T::SecureErase | T::GetLifetime => Err(Status::Unsupp),
            T::ZoneReport => self.report(sector, request.in_data_len).map(Answer::Data),
            T::ZoneOpen => self.open(sector).map(|()| Answer::Done),
            T::ZoneClose => self.close(sector).map(|()| Answer::Done),
            T::ZoneFinish => self.finish(sector).map(|()| Answer::Done),
            T::ZoneReset => self.reset(sector).map(|()| Answer::Done),
            T::ZoneResetAll => {
                for zone in 0..self.zones.len() {
                    if !self.zones[zone].is_conventional() {
                        self.empty(zone);
                    }
                }
                Ok(Answer::Done)
            }
        }
    }

    fn read(&self, sector: u64, sectors: u64) -> Result<Vec<u8>, Status> {
        let (first, last) = self.touched(sector, sectors)?;
        let bytes: Vec<u8> = self.zones[first..=last].iter().flat_map(NaiveZone::bytes).collect();
        let at = index((sector - self.zones[first].start) * SECTOR);
        Ok(bytes[at..at + index(sectors * SECTOR)].to_vec())
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Status> {
        let (first, last) = self.touched(sector, data.len() as u64 / SECTOR)?;
        if self.zones[first].kind == ZoneType::SequentialRequired {
            return self.write_sequential(first, Some(sector), data).map(drop);
        }
        self.put(sector, data);
        for zone in first..=last {
            let z = &self.zones[zone];
            if data.is_empty() || z.is_conventional() {
                continue;
            }
            let is_full = z.wp() == z.end();
            match z.state {
                ZoneState::Full => {}
                _ if is_full => self.set(zone, ZoneState::Full),
                ZoneState::Empty | ZoneState::Closed => self.set(zone, ZoneState::ImplicitOpen),
                _ => {}
            }
        }
        Ok(())
    }

    fn append(&mut self, sector: u64, data: &[u8]) -> Result<u64, Status> {
        let most = self.shape.map_or(0, |shape| u64::from(shape.max_append_sectors));
        if most == 0 {
            // V24
            return Err(Status::Unsupp);
        }
        let zone = self.starting_at(sector)?;
        // V14 and V24
        if self.zones[zone].kind != ZoneType::SequentialRequired || data.len() as u64 / SECTOR > most {
            return Err(Status::ZoneInvalidCmd);
        }
        self.write_sequential(zone, None, data)
    }

    /// Writes at `at`, or where the write pointer is. Returns where that was.
    fn write_sequential(&mut self, zone: usize, at: Option<u64>, data: &[u8]) -> Result<u64, Status> {
        let z = &self.zones[zone];
        let wp = z.wp();
        if !matches!(
            z.state,
            ZoneState::Empty | ZoneState::ImplicitOpen | ZoneState::ExplicitOpen | ZoneState::Closed
        ) {
            return Err(Status::ZoneInvalidCmd);
        }
        let granularity = self.shape.map_or(512, |shape| u64::from(shape.write_granularity_bytes));
        let end_bytes = wp * SECTOR + data.len() as u64;
        if at.is_some_and(|at| at != wp) || !end_bytes.is_multiple_of(granularity) {
            return Err(Status::ZoneUnalignedWp);
        }
        if wp + data.len() as u64 / SECTOR > z.start + z.capacity {
            return Err(Status::ZoneInvalidCmd);
        }
        if data.is_empty() {
            return Ok(wp);
        }
        if matches!(z.state, ZoneState::Empty | ZoneState::Closed) {
            self.make_room(zone)?;
            self.set(zone, ZoneState::ImplicitOpen);
        }
        self.zones[zone].data.extend_from_slice(data);
        if self.zones[zone].wp() == self.zones[zone].start + self.zones[zone].capacity {
            self.set(zone, ZoneState::Full);
        }
        Ok(wp)
    }

    /// Writes to zones that are written in any order, which may be several.
    fn put(&mut self, sector: u64, data: &[u8]) {
        let base = index(sector * SECTOR);
        for (i, &byte) in data.iter().enumerate() {
            let at = (base + i) as u64;
            let zone = self.zones.iter_mut().find(|zone| zone.end() * SECTOR > at).unwrap();
            let inside = index(at - zone.start * SECTOR);
            if zone.data.len() <= inside {
                // What is left out was never written.
                zone.data.resize(inside + 1, 0);
            }
            zone.data[inside] = byte;
        }
    }

    fn zero(&mut self, segments: &[u8], may_unmap: bool) -> Result<(), Status> {
        let count = segments.len() / 16;
        if !segments.len().is_multiple_of(16) || !(1..=32).contains(&count) {
            return Err(Status::IoErr);
        }
        let ranges = segments.chunks(16).map(|segment| {
            let sector = u64::from_le_bytes(segment[..8].try_into().unwrap());
            let sectors = u32::from_le_bytes(segment[8..12].try_into().unwrap());
            let flags = u32::from_le_bytes(segment[12..].try_into().unwrap());
            (sector, u64::from(sectors), flags)
        });
        let ranges: Vec<_> = ranges.collect();
        let known = u32::from(may_unmap);
        if ranges.iter().any(|(_, _, flags)| flags & !known != 0) {
            return Err(Status::Unsupp);
        }
        let fits = |&(sector, sectors, _): &(u64, u64, u32)| {
            u128::from(sector) + u128::from(sectors) <= u128::from(self.sectors()) && sectors <= 1 << 22
        };
        if !ranges.iter().all(fits) {
            return Err(Status::IoErr);
        }
        for (sector, sectors, _) in ranges {
            self.put(sector, &vec![0; index(sectors * SECTOR)]);
        }
        Ok(())
    }

    fn report(&self, sector: u64, room: usize) -> Result<Vec<u8>, Status> {
        let first = self.zones.iter().position(|zone| (zone.start..zone.end()).contains(&sector));
        let first = first.ok_or(Status::ZoneInvalidCmd)?;
        if room < 64 {
            return Err(Status::ZoneInvalidCmd);
        }
        let zones: Vec<_> = self.zones[first..].iter().take((room - 64) / 64).collect();
        let mut report = (zones.len() as u64).to_le_bytes().to_vec();
        report.resize(64, 0);
        report.extend(zones.into_iter().flat_map(NaiveZone::description));
        report.resize(room, 0);
        Ok(report)
    }

    fn open(&mut self, sector: u64) -> Result<(), Status> {
        let zone = self.starting_at(sector)?;
        match self.zones[zone].state {
            ZoneState::ExplicitOpen => {}
            ZoneState::Empty | ZoneState::Closed => {
                self.make_room(zone)?;
                self.set(zone, ZoneState::ExplicitOpen);
            }
            ZoneState::ImplicitOpen => self.set(zone, ZoneState::ExplicitOpen),
            _ => return Err(Status::ZoneInvalidCmd),
        }
        Ok(())
    }

    fn close(&mut self, sector: u64) -> Result<(), Status> {
        let zone = self.starting_at(sector)?;
        let empty = self.zones[zone].data.is_empty();
        match self.zones[zone].state {
            ZoneState::Closed => {}
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen if empty => self.set(zone, ZoneState::Empty),
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => self.set(zone, ZoneState::Closed),
            _ => return Err(Status::ZoneInvalidCmd),
        }
        Ok(())
    }

    fn finish(&mut self, sector: u64) -> Result<(), Status> {
        let zone = self.starting_at(sector)?;
        match self.zones[zone].state {
            ZoneState::Full => {}
            ZoneState::Empty | ZoneState::Closed => {
                // G1: open for the moment.
                self.make_room(zone)?;
                self.set(zone, ZoneState::Full);
            }
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => self.set(zone, ZoneState::Full),
            _ => return Err(Status::ZoneInvalidCmd),
        }
        Ok(())
    }

    fn reset(&mut self, sector: u64) -> Result<(), Status> {
        let zone = self.starting_at(sector)?;
        self.empty(zone);
        Ok(())
    }

    fn empty(&mut self, zone: usize) {
        self.zones[zone].data.clear();
        self.set(zone, ZoneState::Empty);
    }

    /// The zones that a range has sectors in: the first and the last one.
    fn touched(&self, sector: u64, sectors: u64) -> Result<(usize, usize), Status> {
        let end = u128::from(sector) + u128::from(sectors);
        // A plain disk has a place for nothing at its very end.
        let nothing_at_the_end = self.shape.is_none() && sectors == 0 && sector == self.sectors();
        if nothing_at_the_end {
            return Ok((0, 0));
        }
        if sector >= self.sectors() || end > u128::from(self.sectors()) {
            return Err(Status::IoErr);
        }
        let with = |sector| self.zones.iter().position(|zone| sector < zone.end()).unwrap();
        let (first, last) = (with(sector), with(sector + sectors.max(1) - 1));
        // V25
        let required = |zone: &NaiveZone| zone.kind == ZoneType::SequentialRequired;
        if first != last && self.zones[first..=last].iter().any(required) {
            return Err(Status::ZoneInvalidCmd);
        }
        Ok((first, last))
    }

    /// The sequential zone that begins here.
    fn starting_at(&self, sector: u64) -> Result<usize, Status> {
        let zone = self.zones.iter().position(|zone| zone.start == sector && !zone.is_conventional());
        zone.ok_or(Status::ZoneInvalidCmd)
    }

    /// Sees to it that `zone`, which is not open, can be.
    fn make_room(&mut self, zone: usize) -> Result<(), Status> {
        let Some(shape) = self.shape else { return Ok(()) };
        let (open, active) = self.open_and_active();
        let becomes_active = self.zones[zone].state == ZoneState::Empty;
        if becomes_active && shape.max_active_zones != 0 && active == shape.max_active_zones {
            return Err(Status::ZoneActiveResource);
        }
        if shape.max_open_zones == 0 || open < shape.max_open_zones {
            return Ok(());
        }
        // V27: the one that has been open longest.
        let victim = *self.implicit.first().ok_or(Status::ZoneOpenResource)?;
        self.set(victim, ZoneState::Closed);
        Ok(())
    }

    fn set(&mut self, zone: usize, state: ZoneState) {
        self.implicit.retain(|&other| other != zone);
        if state == ZoneState::ImplicitOpen {
            self.implicit.push(zone);
        }
        self.zones[zone].state = state;
    }
}

/// A length in whole sectors.
fn whole(len_bytes: u64) -> Result<u64, Status> {
    if len_bytes.is_multiple_of(SECTOR) { Ok(len_bytes / SECTOR) } else { Err(Status::IoErr) }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap()
}
