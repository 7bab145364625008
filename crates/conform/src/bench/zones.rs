//! Zones: found on the disk, brought into a state, and looked at.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use virtio_zbd_spec::{RequestType, SECTOR_LEN_BYTES, Status, ZoneDescriptor, ZoneState, ZoneType};

use super::request::bytes;
use super::{Bench, Disk, Reply, Request, Stop, Verdict, Zoned, skip};

/// A zone's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) start: u64,
    /// Its length in sectors.
    pub(crate) len: u64,
    /// How many sectors can be written, as reported.
    pub(crate) capacity: u64,
    /// `None`: the device reports a type that there is not.
    pub(crate) kind: Option<ZoneType>,
}

/// A zone as a report shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) start: u64,
    pub(crate) capacity: u64,
    pub(crate) wp: u64,
    pub(crate) kind: u8,
    pub(crate) state: u8,
}

/// How much [`Bench::bring`] writes to a zone, in granules.
pub(crate) const CONTENT_GRANULES: u64 = 2;

impl Zone {
    pub(crate) fn new(start: u64, len: u64, seen: &Seen) -> Self {
        Self { start, len, capacity: seen.capacity.min(len), kind: ZoneType::try_from(seen.kind).ok() }
    }

    pub(crate) const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// The first sector that can't be written.
    pub(crate) const fn capacity_end(&self) -> u64 {
        self.start.saturating_add(self.capacity)
    }

    pub(crate) fn is_sequential(&self) -> bool {
        matches!(self.kind, Some(ZoneType::SequentialRequired | ZoneType::SequentialPreferred))
    }

    pub(crate) fn must_be_sequential(&self) -> bool {
        self.kind == Some(ZoneType::SequentialRequired)
    }

    pub(crate) fn is_conventional(&self) -> bool {
        self.kind == Some(ZoneType::Conventional)
    }
}

impl Seen {
    pub(crate) fn new(descriptor: &ZoneDescriptor) -> Self {
        Self {
            start: descriptor.z_start.get(),
            capacity: descriptor.z_cap.get(),
            wp: descriptor.z_wp.get(),
            kind: descriptor.z_type,
            state: descriptor.z_state,
        }
    }

    pub(crate) fn is(&self, state: ZoneState) -> bool {
        self.state == u8::from(state)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is(ZoneState::ImplicitOpen) || self.is(ZoneState::ExplicitOpen)
    }

    pub(crate) fn is_active(&self) -> bool {
        self.is_open() || self.is(ZoneState::Closed)
    }

    pub(crate) fn has_write_pointer(&self) -> bool {
        self.is_active() || self.is(ZoneState::Empty)
    }

    pub(crate) fn state_name(&self) -> Cow<'static, str> {
        ZoneState::try_from(self.state)
            .map_or_else(|_| format!("state {}", self.state).into(), |state| state_name(state).into())
    }

    /// State and write pointer in words.
    pub(crate) fn text(&self) -> String {
        if self.has_write_pointer() {
            format!("{}, write pointer {}", self.state_name(), self.wp)
        } else {
            self.state_name().into_owned()
        }
    }

    /// What counts of it: the write pointer only where it has a meaning.
    fn essence(&self) -> (u64, u64, u8, u8, Option<u64>) {
        (self.start, self.capacity, self.kind, self.state, self.has_write_pointer().then_some(self.wp))
    }
}

/// A state for people.
pub(crate) const fn state_name(state: ZoneState) -> &'static str {
    match state {
        ZoneState::NotWp => "NOT_WP",
        ZoneState::Empty => "EMPTY",
        ZoneState::ImplicitOpen => "IOPEN",
        ZoneState::ExplicitOpen => "EOPEN",
        ZoneState::Closed => "CLOSED",
        ZoneState::ReadOnly => "RDONLY",
        ZoneState::Full => "FULL",
        ZoneState::Offline => "OFFLINE",
    }
}

/// A zone before something that must not change it.
pub(crate) struct Before {
    zone: Zone,
    seen: Seen,
    /// What is read from it, and where.
    parts: Vec<(u64, u64, Reply)>,
}

/// Finding zones.
impl Bench<'_> {
    /// A sequential zone with room for at least `granules`.
    pub(crate) fn sequential(&mut self, granules: u64) -> Result<Zone, Stop> {
        self.choose(granules, Zone::is_sequential, "sequential zone")
    }

    /// A sequential write required zone with room for at least `granules`.
    pub(crate) fn required(&mut self, granules: u64) -> Result<Zone, Stop> {
        self.choose(granules, Zone::must_be_sequential, "sequential write required zone")
    }

    /// A sequential write preferred zone with room for at least `granules`.
    pub(crate) fn preferred(&mut self, granules: u64) -> Result<Zone, Stop> {
        let swp = |zone: &Zone| zone.kind == Some(ZoneType::SequentialPreferred);
        self.choose(granules, swp, "sequential write preferred zone")
    }

    fn choose(&mut self, granules: u64, fits: fn(&Zone) -> bool, what: &str) -> Result<Zone, Stop> {
        let (_, zoned) = self.writable()?;
        let sectors = granules.saturating_mul(zoned.granule());
        let of_type: Vec<Zone> = self.survey()?.sequential.iter().copied().filter(fits).collect();
        if of_type.is_empty() {
            return skip(format!("no {what}"));
        }
        let large: Vec<Zone> = of_type.into_iter().filter(|zone| zone.capacity >= sectors).collect();
        match self.random.pick(&large) {
            Some(zone) => Ok(*zone),
            None => skip(format!("no {what} with room for {granules} granules")),
        }
    }

    /// `count` different sequential zones, ascending, each with room for a content and more.
    pub(crate) fn several(&mut self, count: usize, fits: fn(&Zone) -> bool) -> Result<Vec<Zone>, Stop> {
        let (_, zoned) = self.writable()?;
        let sectors = (CONTENT_GRANULES + 1) * zoned.granule();
        let zones: Vec<Zone> = (self.survey()?.sequential.iter().copied())
            .filter(|zone| zone.capacity >= sectors && fits(zone))
            .take(count)
            .collect();
        if zones.len() < count {
            return skip(format!("only {} zones of {count} that are needed", zones.len()));
        }
        Ok(zones)
    }

    pub(crate) fn conventional(&mut self) -> Result<Zone, Stop> {
        self.writable()?;
        let zones = self.survey()?.conventional.clone();
        self.random.pick(&zones).copied().map_or_else(|| skip("no conventional zone"), Ok)
    }

    pub(crate) fn read_only_zone(&mut self) -> Result<Zone, Stop> {
        self.writable()?;
        let zones = self.survey()?.read_only.clone();
        self.random.pick(&zones).copied().map_or_else(|| skip("no zone is read-only"), Ok)
    }

    pub(crate) fn offline_zone(&mut self) -> Result<Zone, Stop> {
        self.writable()?;
        let zones = self.survey()?.offline.clone();
        self.random.pick(&zones).copied().map_or_else(|| skip("no zone is offline"), Ok)
    }

    /// Two zones in a row of these kinds.
    pub(crate) fn neighbours(
        &mut self,
        first_is: fn(&Zone) -> bool,
        second_is: fn(&Zone) -> bool,
        what: &str,
    ) -> Result<(Zone, Zone), Stop> {
        self.writable()?;
        let pairs: Vec<_> = (self.survey()?.neighbours.iter().copied())
            .filter(|(first, second)| first_is(first) && second_is(second))
            .collect();
        self.random.pick(&pairs).copied().map_or_else(|| skip(format!("no {what}")), Ok)
    }

    /// The sequential zone that is filled most quickly, if the run's bound allows it, with room for `granules`.
    pub(crate) fn fillable(&mut self, granules: u64) -> Result<Zone, Stop> {
        self.fillable_that(granules, |_, _| true, "capacity is a number of whole granules")
    }

    /// The same, of those that are as wanted, told the granule.
    pub(crate) fn fillable_that(
        &mut self,
        granules: u64,
        fits: fn(&Zone, u64) -> bool,
        what: &str,
    ) -> Result<Zone, Stop> {
        let (_, zoned) = self.writable()?;
        let granule = zoned.granule();
        let max = self.options.fill_max_sectors;
        let survey = self.survey()?;
        if survey.sequential.is_empty() {
            return skip("no sequential zone");
        }
        let whole =
            |zone: &Zone| zone.capacity >= granules * granule && zone.capacity.is_multiple_of(granule);
        let zone = survey.capacities.values().copied().find(|zone| whole(zone) && fits(zone, granule));
        match zone {
            None => skip(format!("no zone's {what}, with room for {granules} granules")),
            Some(zone) if zone.capacity > max => {
                skip(format!("the smallest zone has {} sectors, the run fills at most {max}", zone.capacity))
            }
            Some(zone) => Ok(zone),
        }
    }
}

/// Bringing zones into a state.
impl Bench<'_> {
    /// Brings a zone into a state, with two granules of data where it is not EMPTY. Returns the data.
    pub(crate) fn bring(&mut self, zone: &Zone, state: ZoneState) -> Result<Vec<u8>, Stop> {
        let granule = self.writable()?.1.granule();
        self.make_empty(zone)?;
        if state == ZoneState::Empty {
            return Ok(Vec::new());
        }
        let data = self.random.bytes(bytes(CONTENT_GRANULES * granule));
        if state == ZoneState::ExplicitOpen {
            self.prepare(&Request::open(zone.start))?;
        }
        self.put(zone.start, &data)?;
        match state {
            ZoneState::Closed => self.prepare(&Request::close(zone.start)).map(drop)?,
            ZoneState::Full => self.prepare(&Request::finish(zone.start)).map(drop)?,
            _ => {}
        }
        self.stands(zone, state)?;
        Ok(data)
    }

    /// Brings a zone into EOPEN with nothing written.
    pub(crate) fn bring_open(&mut self, zone: &Zone) -> Verdict {
        self.make_empty(zone)?;
        self.prepare(&Request::open(zone.start))?;
        self.stands(zone, ZoneState::ExplicitOpen)
    }

    /// Resets a zone that is not empty.
    fn make_empty(&mut self, zone: &Zone) -> Verdict {
        if !self.see(zone)?.is(ZoneState::Empty) {
            self.prepare(&Request::reset(zone.start))?;
        }
        Ok(())
    }

    /// Writes to an empty zone until `left` sectors of its capacity are left. Returns the data of the last granule.
    pub(crate) fn fill(&mut self, zone: &Zone, left: u64) -> Result<Vec<u8>, Stop> {
        let granule = self.writable()?.1.granule();
        let max = self.write_max_sectors(granule);
        let end = zone.capacity_end().saturating_sub(left);
        self.make_empty(zone)?;
        let mut next = zone.start;
        let mut data = Vec::new();
        while next < end {
            let sectors = max.min(end - next);
            data = self.random.bytes(bytes(sectors));
            self.prepare(&Request::write(next, data.clone()))?;
            next += sectors;
        }
        Ok(data.split_off(data.len().saturating_sub(bytes(granule))))
    }

    /// Writes data that must get there before a case begins, in as many requests as it takes.
    pub(crate) fn put(&mut self, sector: u64, data: &[u8]) -> Verdict {
        let granule = self.zones()?.1.granule();
        let max = self.write_max_sectors(granule);
        let mut next = sector;
        for chunk in data.chunks(bytes(max)) {
            self.prepare(&Request::write(next, chunk.to_vec()))?;
            next += chunk.len() as u64 / SECTOR_LEN_BYTES;
        }
        Ok(())
    }

    /// Before the case begins: the zone is in that state.
    fn stands(&mut self, zone: &Zone, state: ZoneState) -> Verdict {
        let seen = self.see(zone)?;
        if seen.is(state) {
            return Ok(());
        }
        let wanted = state_name(state);
        Err(Stop::Unready(format!(
            "the zone at sector {} is {} instead of {wanted}",
            zone.start,
            seen.state_name()
        )))
    }
}

/// Data.
impl Bench<'_> {
    /// Data of `granules` times the write granularity.
    pub(crate) fn granules(&mut self, granules: u64) -> Result<Vec<u8>, Stop> {
        let granule = self.zones()?.1.granule();
        Ok(self.random.bytes(bytes(granules * granule)))
    }

    /// The disk's block in sectors.
    pub(crate) fn block(&mut self) -> Result<u64, Stop> {
        Ok(self.disk()?.block())
    }

    /// Data of `blocks` times the disk's block.
    pub(crate) fn blocks(&mut self, blocks: u64) -> Result<Vec<u8>, Stop> {
        let block = self.block()?;
        Ok(self.random.bytes(bytes(blocks * block)))
    }

    /// Data of the least length that can be written to a sequential zone.
    pub(crate) fn granule(&mut self) -> Result<Vec<u8>, Stop> {
        self.granules(1)
    }
}

/// Looking at zones.
impl Bench<'_> {
    /// The zone as a report shows it now.
    pub(crate) fn see(&mut self, zone: &Zone) -> Result<Seen, Stop> {
        let (reply, zones) = self.report(zone.start, 128)?;
        match zones.first().map(Seen::new) {
            Some(seen) if seen.start == zone.start => Ok(seen),
            _ => {
                let status = super::status_name(reply.status);
                Err(Stop::Unready(format!(
                    "the report of the zone at sector {} shows none ({status})",
                    zone.start
                )))
            }
        }
    }

    /// Fails unless the zone is in that state, with that write pointer where the state has one.
    pub(crate) fn is(&mut self, zone: &Zone, state: ZoneState, wp: u64) -> Verdict {
        let seen = self.see(zone)?;
        let expected =
            Seen { wp, state: state.into(), start: zone.start, capacity: zone.capacity, kind: seen.kind };
        let holds = seen.is(state) && (!seen.has_write_pointer() || seen.wp == wp);
        self.check(holds, expected.text(), seen.text())
    }

    /// Fails unless `data` is read at `sector`.
    pub(crate) fn holds(&mut self, sector: u64, data: &[u8]) -> Verdict {
        let max = usize::try_from(self.request_max_bytes()).unwrap_or(usize::MAX);
        let mut next = sector;
        for chunk in data.chunks(max) {
            let sectors = chunk.len() as u64 / SECTOR_LEN_BYTES;
            let reply = self.ok(&Request::read(next, sectors))?;
            if let Some(index) = (0..chunk.len()).find(|&index| reply.data.get(index) != chunk.get(index)) {
                let at = next.saturating_add(index as u64 / SECTOR_LEN_BYTES);
                return self.fail("the data that was written", format!("other data in sector {at}"));
            }
            next = next.saturating_add(sectors);
        }
        Ok(())
    }

    /// Sends a request that has to be refused with one of `statuses`, and must change nothing in the zones that it names:
    /// state, write pointer, data.
    pub(crate) fn refuses(&mut self, request: &Request, statuses: &[Status]) -> Verdict {
        let before = self.remember(request)?;
        let reply = self.send(request)?;
        self.judge_status(&reply, statuses)?;
        self.unchanged(&before)
    }

    /// The zones that a request names, as they are now.
    pub(crate) fn remember(&mut self, request: &Request) -> Result<Vec<Before>, Stop> {
        let (disk, zoned) = self.zones()?;
        let last = request.sector.saturating_add(request.sectors() - 1);
        let mut starts: Vec<u64> = [request.sector, last].map(|at| at - at % zoned.zone_sectors).into();
        starts.dedup();
        starts.retain(|&start| start < disk.capacity_sectors);
        starts.into_iter().map(|start| self.look_at(start, request, &disk, &zoned)).collect()
    }

    fn look_at(&mut self, start: u64, request: &Request, disk: &Disk, zoned: &Zoned) -> Result<Before, Stop> {
        let len = zoned.zone_len(disk, start);
        let place = Zone { start, len, capacity: len, kind: None };
        let seen = self.see(&place)?;
        let zone = Zone::new(start, len, &seen);
        let granule = zoned.granule();
        let ranges: Vec<(u64, u64)> = if zone.is_conventional() {
            let first = request.sector.max(start);
            Vec::from([(first, request.sectors().min(zone.end() - first).min(256))])
        } else if seen.is(ZoneState::Full) {
            Vec::from([(start, granule.min(zone.capacity))])
        } else if seen.is_active() && seen.wp > start && seen.wp <= zone.end() {
            let written = seen.wp - start;
            let head = written.min(256);
            let tail = granule.min(written);
            Vec::from([(start, head), (seen.wp - tail, tail)])
        } else {
            Vec::new()
        };
        let mut parts = Vec::new();
        for (sector, sectors) in ranges {
            let reply = self.send(&Request::read(sector, sectors))?;
            parts.push((sector, sectors, reply));
        }
        Ok(Before { zone, seen, parts })
    }

    /// Fails unless the zones are as they were.
    pub(crate) fn unchanged(&mut self, before: &[Before]) -> Verdict {
        let sent = self.last_sent.clone();
        for Before { zone, seen, parts } in before {
            let now = self.see(zone)?;
            if now.essence() != seen.essence() {
                return self.fail(format!("no change: {}", seen.text()), now.text());
            }
            for (sector, sectors, was) in parts {
                let is = self.send(&Request::read(*sector, *sectors))?;
                self.last_sent.clone_from(&sent);
                if (is.status, &is.data) != (was.status, &was.data) {
                    let what = format!("other data in the {sectors} sectors at sector {sector}");
                    return self.fail("no change of the data", what);
                }
            }
        }
        Ok(())
    }
}

/// Tidying up.
impl Bench<'_> {
    /// Resets the zones that a case has touched.
    pub(super) fn tidy(&mut self) -> Verdict {
        if self.touched.is_empty() {
            return Ok(());
        }
        let Ok((disk, _)) = self.zoned() else {
            self.touched.clear();
            return Ok(());
        };
        for start in core::mem::take(&mut self.touched) {
            if start < disk.capacity_sectors {
                self.send(&Request::reset(start))?;
            }
        }
        self.touched.clear();
        Ok(())
    }

    /// Resets all zones, each by itself if they can't be reset together.
    pub(super) fn wipe(&mut self) -> Verdict {
        self.wiped = true;
        let (disk, zoned) = self.zoned()?;
        self.send(&Request::reset_all())?;
        let mut left = Vec::new();
        self.walk(&disk, &zoned, &mut |zone, seen, _| {
            if (seen.is_active() || seen.is(ZoneState::Full)) && left.len() < 4096 {
                left.push(zone.start);
            }
        })?;
        for start in left {
            self.send(&Request::op(RequestType::ZoneReset, start))?;
        }
        self.touched.clear();
        Ok(())
    }
}
