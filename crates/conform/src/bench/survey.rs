//! A walk through the whole zone report: what zones there are, and what is wrong with what the report says of them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use virtio_zbd_spec::{ReportHeader, ZoneDescriptor, ZoneState, ZoneType};
use zerocopy::FromBytes;

use super::{Bench, Disk, Reply, Request, Seen, Stop, Zone, Zoned, status_name};

/// How many zones are asked for at once.
const REPORT_ZONES: usize = 511;
/// How many zones of a kind are remembered, beside the last one.
const REMEMBERED: usize = 64;

/// What the report says of the disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    /// Zones with a write pointer that can be written, from the first on: as many as a run may open and some more.
    pub(crate) sequential: Vec<Zone>,
    pub(crate) conventional: Vec<Zone>,
    pub(crate) read_only: Vec<Zone>,
    pub(crate) offline: Vec<Zone>,
    /// One sequential zone for each capacity that there is, the first few.
    pub(crate) capacities: BTreeMap<u64, Zone>,
    /// Neighbours; the first pair of each two types, and the last.
    pub(crate) neighbours: Vec<(Zone, Zone)>,
    pub(crate) last: Option<Zone>,
    /// How many zones were reported.
    pub(crate) zones: u64,
    /// Whether the disk has more than the run looks at.
    pub(crate) cut_short: bool,
    /// The first of each thing that is wrong.
    faults: BTreeMap<Fault, String>,
}

/// What can be wrong with a report, judged zone by zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// It is refused, or does not go on to the disk's end.
    Incomplete,
    /// A zone does not begin where the one before it ends.
    Place,
    /// The capacity is 0, or longer than the zone.
    Capacity,
    /// The last zone's capacity is longer than what is left of the disk.
    LastCapacity,
    /// The type is none.
    Type,
    /// The state is none.
    State,
    /// A conventional zone has a state, or a sequential one has none.
    StateOfType,
    /// The type is not one of the disk's model.
    TypeOfModel,
    /// The write pointer can't be there in that state.
    WritePointer,
    /// Reserved bytes are not 0.
    Reserved,
}

impl Bench<'_> {
    /// What the disk's zones are like.
    pub(crate) fn survey(&mut self) -> Result<&Survey, Stop> {
        self.zones()?;
        self.survey.as_ref().map_or_else(|| Err(Stop::Unready("no survey".into())), Ok)
    }

    /// Looks at all zones as the run finds them.
    pub(super) fn take_survey(&mut self, disk: &Disk, zoned: &Zoned) -> Result<Survey, Stop> {
        let mut survey = Survey::default();
        let limit = usize::try_from(self.options.limit_max_zones).unwrap_or(REMEMBERED);
        let end = self.walk(disk, zoned, &mut |zone, seen, wrong| {
            survey.take(zone, seen, limit.saturating_add(REMEMBERED));
            for (fault, text) in wrong {
                survey.faults.entry(fault).or_insert(text);
            }
        })?;
        survey.end(end, disk, zoned);
        Ok(survey)
    }

    /// Fails if the report has this fault.
    pub(crate) fn report_is_without(&mut self, fault: Fault, expected: &str) -> Result<(), Stop> {
        let found = self.survey()?.faults.get(&fault).cloned();
        self.last_sent = "reports of all zones".into();
        found.map_or(Ok(()), |found| self.fail(expected, found))
    }

    /// Reads a report of as many zones as fit `room` bytes, to see what a request before has done.
    pub(crate) fn report(&mut self, sector: u64, room: usize) -> Result<(Reply, Vec<ZoneDescriptor>), Stop> {
        let sent = core::mem::take(&mut self.last_sent);
        let reply = self.send(&Request::report(sector, room));
        self.last_sent = sent;
        let reply = reply?;
        let zones = if reply.is_ok() { descriptors(&reply) } else { Vec::new() };
        Ok((reply, zones))
    }

    /// Goes through all zones in order, as they are now.
    pub(super) fn walk(
        &mut self,
        disk: &Disk,
        zoned: &Zoned,
        visit: &mut Visit<'_>,
    ) -> Result<WalkEnd, Stop> {
        let room = usize::try_from(self.request_max_bytes()).unwrap_or(usize::MAX);
        let room = room.min(64 * (1 + REPORT_ZONES)) / 64 * 64;
        let max = self.options.survey_max_zones.min(zoned.zone_count(disk));
        let mut seen = 0;
        let mut next = 0;
        while seen < max {
            let (reply, zones) = self.report(next, room)?;
            if !reply.is_ok() {
                return Ok(WalkEnd::Wrong(format!(
                    "{} for the report at sector {next}",
                    status_name(reply.status)
                )));
            }
            if zones.is_empty() {
                return Ok(WalkEnd::Wrong(format!("no zones in the report at sector {next}")));
            }
            for descriptor in &zones {
                if seen >= max {
                    return Ok(WalkEnd::Wrong(format!("more than {max} zones")));
                }
                let view = Seen::new(descriptor);
                let len = zoned.zone_len(disk, next);
                visit(Zone::new(next, len, &view), &view, wrong(descriptor, &view, next, len, disk, zoned));
                seen += 1;
                next = next.saturating_add(zoned.zone_sectors);
            }
        }
        Ok(if next >= disk.capacity_sectors { WalkEnd::Complete } else { WalkEnd::CutShort })
    }
}

/// Told of each zone, and what is wrong with it.
pub(super) type Visit<'v> = dyn FnMut(Zone, &Seen, Vec<(Fault, String)>) + 'v;

/// How a walk ended.
pub(super) enum WalkEnd {
    Complete,
    CutShort,
    Wrong(String),
}

impl Survey {
    fn take(&mut self, zone: Zone, seen: &Seen, limit: usize) {
        let (list, max) = match (zone.kind, ZoneState::try_from(seen.state)) {
            (_, Ok(ZoneState::Offline)) => (&mut self.offline, REMEMBERED),
            (_, Ok(ZoneState::ReadOnly)) => (&mut self.read_only, REMEMBERED),
            (Some(ZoneType::Conventional), _) => (&mut self.conventional, REMEMBERED),
            _ => (&mut self.sequential, limit),
        };
        if list.len() < max {
            list.push(zone);
        }
        let usable = !matches!(ZoneState::try_from(seen.state), Ok(ZoneState::Offline | ZoneState::ReadOnly));
        if usable && zone.is_sequential() && self.capacities.len() < REMEMBERED {
            self.capacities.entry(zone.capacity).or_insert(zone);
        }
        if usable {
            if let Some(before) = self.last.filter(|last| last.end() == zone.start) {
                let kinds = (before.kind, zone.kind);
                if self.neighbours.iter().filter(|(a, b)| (a.kind, b.kind) == kinds).count() < 4 {
                    self.neighbours.push((before, zone));
                }
            }
            self.last = Some(zone);
        }
        self.zones += 1;
    }

    fn end(&mut self, end: WalkEnd, disk: &Disk, zoned: &Zoned) {
        match end {
            WalkEnd::Complete => {}
            WalkEnd::CutShort => self.cut_short = true,
            WalkEnd::Wrong(what) => {
                let found = format!("{what}, after {} of {} zones", self.zones, zoned.zone_count(disk));
                self.faults.insert(Fault::Incomplete, found);
            }
        }
    }
}

/// The descriptors that a report says it has; no more than there is room for.
fn descriptors(reply: &Reply) -> Vec<ZoneDescriptor> {
    let Ok((header, rest)) = ReportHeader::read_from_prefix(&reply.data) else { return Vec::new() };
    let count = usize::try_from(header.nr_zones.get()).unwrap_or(usize::MAX);
    rest.chunks_exact(64)
        .take(count)
        .filter_map(|chunk| ZoneDescriptor::read_from_bytes(chunk).ok())
        .collect()
}

/// What is wrong with the descriptor of the zone that should begin at `start`.
fn wrong(
    descriptor: &ZoneDescriptor,
    seen: &Seen,
    start: u64,
    len: u64,
    disk: &Disk,
    zoned: &Zoned,
) -> Vec<(Fault, String)> {
    let mut faults = Vec::new();
    let mut fault = |fault, what: String| faults.push((fault, format!("zone at sector {start}: {what}")));
    if seen.start != start {
        fault(Fault::Place, format!("z_start is {}", seen.start));
    }
    if seen.capacity == 0 || seen.capacity > zoned.zone_sectors {
        fault(Fault::Capacity, format!("z_cap is {}", seen.capacity));
    } else if start.saturating_add(seen.capacity) > disk.capacity_sectors {
        fault(Fault::LastCapacity, format!("z_cap is {}, of the disk {len} sectors are left", seen.capacity));
    }
    let kind = ZoneType::try_from(seen.kind);
    let state = ZoneState::try_from(seen.state);
    let conventional = kind == Ok(ZoneType::Conventional);
    match kind {
        Err(_) => fault(Fault::Type, format!("z_type is {}", seen.kind)),
        Ok(ZoneType::SequentialRequired) if !zoned.is_host_managed() => {
            fault(Fault::TypeOfModel, "a sequential write required zone on a host-aware disk".into());
        }
        Ok(ZoneType::SequentialPreferred) if zoned.is_host_managed() => {
            fault(Fault::TypeOfModel, "a sequential write preferred zone on a host-managed disk".into());
        }
        Ok(_) => {}
    }
    match state {
        Err(_) => fault(Fault::State, format!("z_state is {}", seen.state)),
        Ok(ZoneState::ReadOnly | ZoneState::Offline) => {}
        Ok(state) if kind.is_ok() && conventional != (state == ZoneState::NotWp) => {
            fault(Fault::StateOfType, format!("{} with z_type {}", seen.state_name(), seen.kind));
        }
        Ok(_) => {}
    }
    let written = seen.wp.wrapping_sub(start);
    let possible = match state {
        Ok(ZoneState::Empty) => written == 0,
        Ok(ZoneState::ImplicitOpen | ZoneState::Closed) => written > 0 && written < seen.capacity,
        Ok(ZoneState::ExplicitOpen) => written < seen.capacity,
        _ => true,
    };
    if !possible {
        fault(Fault::WritePointer, format!("{}, z_wp is {}", seen.state_name(), seen.wp));
    }
    if descriptor.reserved.iter().any(|&byte| byte != 0) {
        fault(Fault::Reserved, "a reserved byte is not 0".into());
    }
    faults
}
