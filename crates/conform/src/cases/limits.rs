//! How many zones can be open and active: V7, V8, V15, V20 and V27, and that resources come back.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{RequestType, SECTOR_LEN_BYTES, Status, ZoneState};

use crate::bench::{Bench, Request, Stop, Verdict, Zone, Zoned, skip, status_name};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    Case::required(
        "V7-a",
        "as many zones as max_open_zones can be open",
        "`max_open_zones` is how many zones can be open (5.2.5.2).",
        |bench| {
            let limit = open_limit(bench)?;
            open_all(bench, limit).map(drop)
        },
    ),
    Case::required(
        "V7-b",
        "never more than max_open_zones are open",
        "`max_open_zones` is how many zones can be open, implicitly opened ones included (5.2.5.2, 5.2.6).",
        never_too_many_open,
    ),
    Case::required(
        "V7-c",
        "max_open_zones 0: no limit",
        "0 means that there is no limit on how many zones are open (5.2.5.2).",
        |bench| {
            let (_, zoned) = bench.writable()?;
            if zoned.max_open != 0 {
                return skip(format!("max_open_zones is {}", zoned.max_open));
            }
            let many = without_limit(bench, zoned.max_active)?;
            open_all(bench, many).map(drop)
        },
    ),
    Case::required(
        "V8-a",
        "as many zones as max_active_zones can be active",
        "`max_active_zones` is how many zones can be open or closed (5.2.5.2).",
        |bench| {
            let limit = active_limit(bench)?;
            close_all(bench, limit).map(drop)
        },
    ),
    Case::required(
        "V8-c",
        "max_active_zones 0: no limit",
        "0 means that there is no limit on how many zones are active (5.2.5.2).",
        |bench| {
            let (_, zoned) = bench.writable()?;
            if zoned.max_active != 0 {
                return skip(format!("max_active_zones is {}", zoned.max_active));
            }
            let many = without_limit(bench, 0)?;
            close_all(bench, many).map(drop)
        },
    ),
    crowded_open("V15-f", "OPEN with all open resources in use", |bench| {
        crowded(bench, Crowding::Open, |start, _| Request::open(start))
    }),
    crowded_open("V15-g", "OPEN of a CLOSED zone with all open resources in use", |bench| {
        crowded(bench, Crowding::OpenForClosed, |start, _| Request::open(start))
    }),
    crowded_open("V15-h", "OPEN with all active resources in use", |bench| {
        crowded(bench, Crowding::Active, |start, _| Request::open(start))
    }),
    crowded_open("V15-i", "OPEN with both limits reached", |bench| {
        crowded(bench, Crowding::Both, |start, _| Request::open(start))
    }),
    crowded_write("V20-e", "OUT to an EMPTY zone with all open resources in use", |bench| {
        crowded(bench, Crowding::Open, Request::write)
    }),
    crowded_write("V20-f", "OUT to a CLOSED zone with all open resources in use", |bench| {
        crowded(bench, Crowding::OpenForClosed, Request::write)
    }),
    crowded_write("V20-g", "OUT to an EMPTY zone with all active resources in use", |bench| {
        crowded(bench, Crowding::Active, Request::write)
    }),
    crowded_write("V20-h", "OUT to an EMPTY zone with both limits reached", |bench| {
        crowded(bench, Crowding::Both, Request::write)
    }),
    crowded_write("V20-i", "ZONE_APPEND to an EMPTY zone with all open resources in use", |bench| {
        append_crowded(bench, Crowding::Open)
    }),
    crowded_write("V20-j", "ZONE_APPEND to a CLOSED zone with all open resources in use", |bench| {
        append_crowded(bench, Crowding::OpenForClosed)
    }),
    crowded_write("V20-k", "ZONE_APPEND to an EMPTY zone with all active resources in use", |bench| {
        append_crowded(bench, Crowding::Active)
    }),
    crowded_write("V20-l", "ZONE_APPEND to an EMPTY zone with both limits reached", |bench| {
        append_crowded(bench, Crowding::Both)
    }),
    Case::required(
        "V27-a",
        "a zone that is closed to make room keeps its data",
        "The device may bring an IOPEN zone to CLOSED to open another; nothing else happens to it (5.2.6, 5.2.6.2).",
        |bench| make_room(bench).map(drop),
    ),
    Case::required(
        "V27-b",
        "no EOPEN zone is closed to make room",
        "Only IOPEN zones may be closed by the device (5.2.6, 5.2.6.2).",
        explicitly_open_stays,
    ),
    Case::ours(
        "V27-c",
        "an IOPEN zone makes room for a write",
        "The device may close one, so that the write does not fail for want of resources (5.2.6.2).",
        |bench| {
            let refused = make_room(bench)?;
            bench.check(refused == 0, "OK for each first write", format!("{refused} were refused"))
        },
    ),
    Case::ours(
        "V27-d",
        "an IOPEN zone makes room for OPEN",
        "An IOPEN zone is closed when another one becomes open and the limit is reached (5.2.6).",
        room_for_open,
    ),
    frees("S11-a", "CLOSE frees an open resource", closing_frees),
    frees("S11-b", "CLOSE of a zone with nothing written frees both resources", |bench| {
        freed_by(bench, Request::close)
    }),
    frees("S11-c", "RESET frees both resources", |bench| freed_by(bench, Request::reset)),
    frees("S11-d", "FINISH frees both resources", |bench| freed_by(bench, Request::finish)),
    frees("S11-e", "RESET_ALL frees all resources", reset_all_frees),
    frees("S11-f", "a zone that becomes full frees both resources", filling_frees),
    frees("S11-g", "a refused request holds no resource", refusals_hold_nothing),
    frees("S11-h", "a zone's way through all states leaves nothing counted", nothing_is_counted_twice),
    frees("S11-i", "what is free already is not freed again", nothing_is_freed_twice),
    Case::ours("G1-c", "FINISH of an EMPTY zone with all active resources in use", FINISH_NEEDS, |bench| {
        crowded(bench, Crowding::Active, |start, _| Request::finish(start))
    }),
    Case::ours("G1-d", "FINISH of a CLOSED zone with all open resources in use", FINISH_NEEDS, |bench| {
        crowded(bench, Crowding::OpenForClosed, |start, _| Request::finish(start))
    }),
];

const FINISH_NEEDS: &str = "The specification does not say; devices that this extension is made for open the zone for the \
                            moment, so there has to be room for that (5.2.6).";

const fn crowded_open(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "Without resources the zone does not change, and the status is ZONE_OPEN_RESOURCE or ZONE_ACTIVE_RESOURCE by \
                the limit that would be exceeded; ACTIVE where both would be (5.2.6, 5.2.6.2).";
    Case::required(id, title, asks, run)
}

const fn crowded_write(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "A write to an EMPTY or CLOSED zone opens it first; without resources it fails with ZONE_OPEN_RESOURCE or \
                ZONE_ACTIVE_RESOURCE by the limit that would be exceeded; ACTIVE where both would be (5.2.6, 5.2.6.2).";
    Case::required(id, title, asks, run)
}

const fn frees(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "A zone that comes into a state that uses a resource is counted, one that leaves it is counted no more (5.2.4).";
    Case::required(id, title, asks, run)
}

/// What there is none of any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Crowding {
    /// Open resources; the zone is EMPTY, and may become active.
    Open,
    /// Open resources; the zone is CLOSED.
    OpenForClosed,
    /// Active resources; the zone is EMPTY, none is open.
    Active,
    /// Both; the zone is EMPTY.
    Both,
}

/// With resources used up, a request for one zone more is refused and changes nothing.
fn crowded(bench: &mut Bench<'_>, crowding: Crowding, request: fn(u64, Vec<u8>) -> Request) -> Verdict {
    let (target, crowd) = crowd(bench, crowding)?;
    if target.is_written_by(&request) && !target.zone.must_be_sequential() {
        return skip("of sequential write preferred zones it is not asked that a write opens them");
    }
    let sector = target.next_for(&request);
    let data = bench.granule()?;
    let status = match crowding {
        Crowding::Open | Crowding::OpenForClosed => Status::ZoneOpenResource,
        Crowding::Active | Crowding::Both => Status::ZoneActiveResource,
    };
    bench.refuses(&request(sector, data), &[status])?;
    for (zone, state) in crowd {
        let seen = bench.see(&zone)?;
        bench.check(
            seen.is(state),
            "no change of other zones",
            format!("{} at sector {}", seen.text(), zone.start),
        )?;
    }
    Ok(())
}

fn append_crowded(bench: &mut Bench<'_>, crowding: Crowding) -> Verdict {
    super::append::needs_append(bench)?;
    crowded(bench, crowding, Request::append)
}

/// The zone that there is no room for, and where its data ends.
struct Target {
    zone: Zone,
    wp: u64,
}

impl Target {
    /// The sector for a request: a write's is the write pointer, all others name the zone.
    fn next_for(&self, request: &fn(u64, Vec<u8>) -> Request) -> u64 {
        if self.is_written_by(request) { self.wp } else { self.zone.start }
    }

    fn is_written_by(&self, request: &fn(u64, Vec<u8>) -> Request) -> bool {
        request(self.wp, Vec::new()).is(RequestType::Out)
    }
}

/// Zones and the states that they are in.
type Crowd = Vec<(Zone, ZoneState)>;

/// Uses up resources. Returns a zone that there is no room for, and those that use them.
fn crowd(bench: &mut Bench<'_>, crowding: Crowding) -> Result<(Target, Crowd), Stop> {
    let (_, zoned) = bench.writable()?;
    let (max_open, max_active) = (u64::from(zoned.max_open), u64::from(zoned.max_active));
    let (open, closed) = match crowding {
        Crowding::Open if max_open == 0 => return skip("max_open_zones is 0: no limit"),
        Crowding::Open if max_active != 0 && max_active <= max_open => {
            return skip("max_active_zones is reached together with max_open_zones");
        }
        Crowding::Open => (max_open, 0),
        Crowding::OpenForClosed if max_open == 0 => return skip("max_open_zones is 0: no limit"),
        Crowding::OpenForClosed if max_active != 0 && max_active <= max_open => {
            return skip("with max_open_zones open, max_active_zones leaves no room for a closed one");
        }
        Crowding::OpenForClosed => (max_open, 1),
        Crowding::Active if max_active == 0 => return skip("max_active_zones is 0: no limit"),
        Crowding::Active => (0, max_active),
        Crowding::Both if max_open == 0 || max_active == 0 => return skip("one of the limits is 0"),
        Crowding::Both if max_open > max_active => {
            return skip("max_open_zones is above max_active_zones (V8-b)");
        }
        Crowding::Both => (max_open, max_active - max_open),
    };
    let spare = u64::from(crowding != Crowding::OpenForClosed);
    let zones = zones(bench, open + closed + spare)?;
    let (closed_zones, rest) = zones.split_at(usize::try_from(closed).unwrap_or(0));
    let (open_zones, spare) = rest.split_at(usize::try_from(open).unwrap_or(0));
    let mut crowd = Crowd::new();
    let mut wp = 0;
    for zone in closed_zones {
        let data = bench.bring(zone, ZoneState::Closed)?;
        wp = zone.start + data.len() as u64 / SECTOR_LEN_BYTES;
        crowd.push((*zone, ZoneState::Closed));
    }
    for zone in open_zones {
        bench.bring_open(zone)?;
        crowd.push((*zone, ZoneState::ExplicitOpen));
    }
    match (spare.first(), closed_zones.last()) {
        (Some(zone), _) => {
            bench.bring(zone, ZoneState::Empty)?;
            Ok((Target { zone: *zone, wp: zone.start }, crowd))
        }
        (None, Some(zone)) => Ok((Target { zone: *zone, wp }, crowd)),
        (None, None) => skip("no zone is left"),
    }
}

/// `count` zones, sequential write required ones if there are any: only those must keep the limits for writes.
fn zones(bench: &mut Bench<'_>, count: u64) -> Result<Vec<Zone>, Stop> {
    let (_, zoned) = bench.writable()?;
    let max = u64::from(bench.options().limit_max_zones);
    if count > max + 1 {
        return skip(format!("{count} zones would be needed, the run uses at most {max}"));
    }
    let fits = if zoned.is_host_managed() { Zone::must_be_sequential } else { Zone::is_sequential };
    bench.several(usize::try_from(count).unwrap_or(usize::MAX), fits)
}

/// How many zones can be open at a time, if that is limited.
fn open_limit(bench: &mut Bench<'_>) -> Result<u64, Stop> {
    let (_, zoned) = bench.writable()?;
    both_limits(&zoned).map_or_else(|| skip("max_open_zones and max_active_zones are 0: no limit"), Ok)
}

/// How many zones can be active at a time, if that is limited.
fn active_limit(bench: &mut Bench<'_>) -> Result<u64, Stop> {
    match bench.writable()?.1.max_active {
        0 => skip("max_active_zones is 0: no limit"),
        max => Ok(max.into()),
    }
}

fn both_limits(zoned: &Zoned) -> Option<u64> {
    [zoned.max_open, zoned.max_active].into_iter().filter(|&max| max != 0).min().map(u64::from)
}

/// How many zones are used to show that there is no limit: what there are, up to 64, and up to another limit.
fn without_limit(bench: &mut Bench<'_>, other: u32) -> Result<u64, Stop> {
    let granule = bench.writable()?.1.granule();
    let zones = bench.survey()?.sequential.iter().filter(|zone| zone.capacity >= 3 * granule).count();
    let max = if other == 0 { 64 } else { other.min(64) };
    match u64::try_from(zones).unwrap_or(0).min(max.into()) {
        0 | 1 => skip("one zone says nothing of limits"),
        many => Ok(many),
    }
}

/// Opens so many zones explicitly.
fn open_all(bench: &mut Bench<'_>, count: u64) -> Result<Vec<Zone>, Stop> {
    let zones = zones(bench, count)?;
    for zone in &zones {
        bench.ok(&Request::open(zone.start))?;
    }
    for zone in &zones {
        bench.is(zone, ZoneState::ExplicitOpen, zone.start)?;
    }
    Ok(zones)
}

/// Writes to so many zones, and closes each.
fn close_all(bench: &mut Bench<'_>, count: u64) -> Result<Vec<Zone>, Stop> {
    let zones = zones(bench, count)?;
    for zone in &zones {
        let data = bench.granule()?;
        bench.ok(&Request::write(zone.start, data))?;
        bench.ok(&Request::close(zone.start))?;
    }
    for zone in &zones {
        let seen = bench.see(zone)?;
        bench.check(seen.is(ZoneState::Closed), "CLOSED", seen.text())?;
    }
    Ok(zones)
}

/// Zones that are open and active in a list.
fn count(bench: &mut Bench<'_>, zones: &[Zone]) -> Result<(usize, usize), Stop> {
    let mut counts = (0, 0);
    for zone in zones {
        let seen = bench.see(zone)?;
        counts.0 += usize::from(seen.is_open());
        counts.1 += usize::from(seen.is_active());
    }
    Ok(counts)
}

fn never_too_many_open(bench: &mut Bench<'_>) -> Verdict {
    let limit = open_limit(bench)?;
    let (_, zoned) = bench.writable()?;
    let zones = zones(bench, limit + 1)?;
    for zone in &zones {
        let data = bench.granule()?;
        bench.send(&Request::write(zone.start, data))?;
    }
    let (open, active) = count(bench, &zones)?;
    let fits = |count: usize, max: u32| max == 0 || count as u64 <= max.into();
    let expected = format!("at most {} open and {} active", zoned.max_open, zoned.max_active);
    let holds = fits(open, zoned.max_open) && fits(active, zoned.max_active);
    bench.check(holds, expected, format!("{open} open, {active} active"))
}

/// Writes to one zone more than may be open, where it would still be active. Returns how many writes were refused.
fn make_room(bench: &mut Bench<'_>) -> Result<usize, Stop> {
    let (_, zoned) = bench.writable()?;
    if zoned.max_open == 0 {
        return skip("max_open_zones is 0: no limit");
    }
    if zoned.max_active != 0 && zoned.max_active <= zoned.max_open {
        return skip("max_active_zones is reached together with max_open_zones");
    }
    let zones = zones(bench, u64::from(zoned.max_open) + 1)?;
    let mut written = Vec::new();
    let mut refused = 0;
    for zone in &zones {
        let data = bench.granule()?;
        let reply = bench
            .answers(&Request::write(zone.start, data.clone()), &[Status::Ok, Status::ZoneOpenResource])?;
        if reply.is_ok() {
            written.push((*zone, data));
        } else {
            refused += 1;
        }
    }
    for (zone, data) in written {
        let seen = bench.see(&zone)?;
        let wp = zone.start + data.len() as u64 / SECTOR_LEN_BYTES;
        let holds = (seen.is(ZoneState::ImplicitOpen) || seen.is(ZoneState::Closed)) && seen.wp == wp;
        bench.check(holds, format!("IOPEN or CLOSED, write pointer {wp}"), seen.text())?;
        bench.holds(zone.start, &data)?;
    }
    Ok(refused)
}

fn explicitly_open_stays(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.writable()?;
    if zoned.max_open < 2 {
        return skip(format!("max_open_zones is {}", zoned.max_open));
    }
    let zones = zones(bench, u64::from(zoned.max_open) + 1)?;
    bench.bring_open(&zones[0])?;
    for zone in &zones[1..] {
        let data = bench.granule()?;
        bench.send(&Request::write(zone.start, data))?;
    }
    bench.is(&zones[0], ZoneState::ExplicitOpen, zones[0].start)
}

fn room_for_open(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.writable()?;
    if zoned.max_open == 0 {
        return skip("max_open_zones is 0: no limit");
    }
    if zoned.max_active != 0 && zoned.max_active <= zoned.max_open {
        return skip("max_active_zones is reached together with max_open_zones");
    }
    let zones = zones(bench, u64::from(zoned.max_open) + 1)?;
    let (last, others) = zones.split_last().map_or((&zones[0], &zones[..]), |split| split);
    for zone in others {
        let data = bench.granule()?;
        bench.prepare(&Request::write(zone.start, data))?;
    }
    bench.ok(&Request::open(last.start))?;
    bench.is(last, ZoneState::ExplicitOpen, last.start)?;
    let (open, _) = count(bench, &zones)?;
    bench.check(
        open as u64 <= zoned.max_open.into(),
        format!("{} open zones", zoned.max_open),
        format!("{open}"),
    )
}

/// With as many zones open as can be, one with data is closed, and another can be opened.
fn closing_frees(bench: &mut Bench<'_>) -> Verdict {
    let (target, crowd) = crowd(bench, Crowding::Open)?;
    let (first, _) = crowd[0];
    let data = bench.granule()?;
    bench.prepare(&Request::write(first.start, data))?;
    bench.prepare(&Request::close(first.start))?;
    bench.ok(&Request::open(target.zone.start))?;
    bench.is(&target.zone, ZoneState::ExplicitOpen, target.zone.start)
}

/// Opens as many zones as can be open, and one more after `request` for the first of them.
fn freed_by(bench: &mut Bench<'_>, request: fn(u64) -> Request) -> Verdict {
    let limit = open_limit(bench)?;
    let zones = zones(bench, limit + 1)?;
    let (spare, held) = zones.split_last().map_or((&zones[0], &zones[..]), |split| split);
    for zone in held {
        bench.prepare(&Request::open(zone.start))?;
    }
    bench.prepare(&request(held[0].start))?;
    bench.ok(&Request::open(spare.start))?;
    bench.is(spare, ZoneState::ExplicitOpen, spare.start)
}

fn reset_all_frees(bench: &mut Bench<'_>) -> Verdict {
    let limit = open_limit(bench)?;
    open_all(bench, limit)?;
    bench.prepare(&Request::reset_all())?;
    open_all(bench, limit).map(drop)
}

fn filling_frees(bench: &mut Bench<'_>) -> Verdict {
    let limit = open_limit(bench)?;
    let filled = bench.fillable(1)?;
    bench.fill(&filled, 0)?;
    let seen = bench.see(&filled)?;
    if !seen.is(ZoneState::Full) {
        return Err(Stop::Unready(format!("a filled zone is {}", seen.text())));
    }
    let zones: Vec<Zone> = zones(bench, limit + 1)?.into_iter().filter(|zone| *zone != filled).collect();
    for zone in zones.iter().take(usize::try_from(limit).unwrap_or(0)) {
        bench.ok(&Request::open(zone.start))?;
    }
    Ok(())
}

fn refusals_hold_nothing(bench: &mut Bench<'_>) -> Verdict {
    let limit = open_limit(bench)?;
    let zones = zones(bench, limit + 1)?;
    let (spare, held) = zones.split_last().map_or((&zones[0], &zones[..]), |split| split);
    for zone in held {
        bench.prepare(&Request::open(zone.start))?;
    }
    for _ in 0..limit + 1 {
        let data = bench.granule()?;
        bench.send(&Request::open(spare.start))?;
        bench.send(&Request::write(spare.start, data))?;
    }
    bench.prepare(&Request::reset(spare.start))?;
    for zone in held {
        bench.prepare(&Request::reset(zone.start))?;
    }
    open_all(bench, limit).map(drop)
}

fn nothing_is_counted_twice(bench: &mut Bench<'_>) -> Verdict {
    let limit = open_limit(bench)?;
    let zone = zones(bench, limit)?[0];
    for _ in 0..=limit {
        let data = bench.granule()?;
        bench.ok(&Request::write(zone.start, data.clone()))?;
        bench.ok(&Request::open(zone.start))?;
        bench.ok(&Request::open(zone.start))?;
        bench.prepare(&Request::close(zone.start))?;
        bench.ok(&Request::write(zone.start + data.len() as u64 / SECTOR_LEN_BYTES, data))?;
        bench.prepare(&Request::finish(zone.start))?;
        bench.prepare(&Request::reset(zone.start))?;
    }
    open_all(bench, limit).map(drop)
}

fn nothing_is_freed_twice(bench: &mut Bench<'_>) -> Verdict {
    let limit = open_limit(bench)?;
    let zones = zones(bench, limit + 1)?;
    for _ in 0..2 {
        bench.bring(&zones[0], ZoneState::Closed)?;
        bench.prepare(&Request::close(zones[0].start))?;
        bench.bring(&zones[0], ZoneState::Full)?;
        bench.prepare(&Request::finish(zones[0].start))?;
        bench.prepare(&Request::reset(zones[0].start))?;
        bench.prepare(&Request::reset(zones[0].start))?;
    }
    let (spare, held) = zones.split_last().map_or((&zones[0], &zones[..]), |split| split);
    for zone in held {
        bench.prepare(&Request::open(zone.start))?;
    }
    let reply = bench.send(&Request::open(spare.start))?;
    let refused = reply.is(Status::ZoneOpenResource) || reply.is(Status::ZoneActiveResource);
    bench.check(refused, "ZONE_OPEN_RESOURCE or ZONE_ACTIVE_RESOURCE", status_name(reply.status))
}
