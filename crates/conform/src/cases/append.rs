//! ZONE_APPEND: V14, V21, V23, V24, and its parts of V9, V20, V22 and V25.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{SECTOR_LEN_BYTES, Status, ZoneState};

use crate::bench::{Bench, Request, Stop, Verdict, Zone, skip, status_name};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    Case::required(
        "V9-b",
        "an append of max_append_sectors",
        "`max_append_sectors` is the longest append that can succeed (5.2.5.2).",
        longest,
    ),
    Case::required("V14-a", "ZONE_APPEND to a conventional zone", ONLY_REQUIRED, |bench| {
        needs_append(bench)?;
        let zone = bench.conventional()?;
        let data = bench.granule()?;
        bench.refuses(&Request::append(zone.start, data), &[Status::ZoneInvalidCmd])
    }),
    Case::required("V14-b", "ZONE_APPEND to a sequential write preferred zone", ONLY_REQUIRED, |bench| {
        needs_append(bench)?;
        let zone = bench.preferred(1)?;
        let data = bench.granule()?;
        bench.refuses(&Request::append(zone.start, data), &[Status::ZoneInvalidCmd])
    }),
    Case::required("V20-c", "ZONE_APPEND to an EMPTY zone opens it", OPENS, |bench| {
        appended(bench, ZoneState::Empty, ZoneState::ImplicitOpen)
    }),
    Case::required("V20-d", "ZONE_APPEND to a CLOSED zone opens it", OPENS, |bench| {
        appended(bench, ZoneState::Closed, ZoneState::ImplicitOpen)
    }),
    at_start("V21-a", "ZONE_APPEND at the write pointer", |bench| {
        named_by(bench, ZoneState::ImplicitOpen, |_, wp, _| wp)
    }),
    at_start("V21-b", "ZONE_APPEND from inside an EMPTY zone", |bench| {
        named_by(bench, ZoneState::Empty, |zone, _, granule| zone.start + granule)
    }),
    at_start("V21-c", "ZONE_APPEND at the last granule of a zone", |bench| {
        named_by(bench, ZoneState::Empty, |zone, _, granule| {
            zone.start.max(zone.end() - zone.len % granule - granule)
        })
    }),
    Case::required("V22-e", "ZONE_APPEND longer than what is left", TOO_LONG, |bench| {
        let zone = fillable(bench)?;
        let granule = bench.writable()?.1.granule();
        bench.fill(&zone, granule)?;
        let data = two_granules(bench)?;
        bench.refuses(&Request::append(zone.start, data), &[Status::ZoneInvalidCmd])
    }),
    Case::required("V22-f", "ZONE_APPEND to a FULL zone", TOO_LONG, |bench| {
        let zone = appendable(bench, 3)?;
        bench.bring(&zone, ZoneState::Full)?;
        let data = bench.granule()?;
        bench.refuses(&Request::append(zone.start, data), &[Status::ZoneInvalidCmd])
    }),
    Case::required(
        "S20-e",
        "ZONE_APPEND of all that is left",
        "A zone becomes FULL by the append that reaches its capacity (5.2.6).",
        fills_up,
    ),
    Case::required("V23-a", "append_sector of an append to an EMPTY zone", TELLS_WHERE, |bench| {
        tells_where(bench, ZoneState::Empty)
    }),
    Case::required("V23-b", "append_sector of an append to an IOPEN zone", TELLS_WHERE, |bench| {
        tells_where(bench, ZoneState::ImplicitOpen)
    }),
    Case::required("V23-c", "append_sector of an append to an EOPEN zone", TELLS_WHERE, |bench| {
        tells_where(bench, ZoneState::ExplicitOpen)
    }),
    Case::required("V23-d", "append_sector of an append to a CLOSED zone", TELLS_WHERE, |bench| {
        tells_where(bench, ZoneState::Closed)
    }),
    Case::required("V23-e", "appends and writes in turn", TELLS_WHERE, in_turn),
    Case::required("V23-f", "appends to one zone, all under way at once", TELLS_WHERE, |bench| {
        at_once(bench, 1, false, |_| 1)
    }),
    Case::required("V23-g", "appends of different lengths, all under way at once", TELLS_WHERE, |bench| {
        at_once(bench, 1, false, |index| 1 + index % 2)
    }),
    Case::required("V23-h", "appends to several zones, all under way at once", TELLS_WHERE, |bench| {
        at_once(bench, 3, false, |_| 1)
    }),
    Case::required("V23-i", "appends to one zone over all queues", TELLS_WHERE, |bench| {
        bench.writable()?;
        if bench.queue_count() < 2 {
            return skip("there is one queue");
        }
        at_once(bench, 1, true, |_| 1)
    }),
    Case::required("V23-j", "more appends at once than a zone has room for", TELLS_WHERE, over_the_end),
    Case::required(
        "V23-k",
        "appends and a RESET, all under way at once",
        "Requests are served in any order, but each as a whole: all below the write pointer was appended there since the RESET \
         (5.2.6, 5.2.6.2).",
        reset_among_appends,
    ),
    Case::required(
        "V24-a",
        "ZONE_APPEND where max_append_sectors is 0",
        "The request is answered with UNSUPP (5.2.6.2).",
        |bench| {
            let (_, zoned) = bench.writable()?;
            if zoned.max_append_sectors != 0 {
                return skip(format!("max_append_sectors is {}", zoned.max_append_sectors));
            }
            let zone = bench.required(1)?;
            bench.bring(&zone, ZoneState::Empty)?;
            let data = bench.granule()?;
            bench.refuses(&Request::append(zone.start, data), &[Status::Unsupp])
        },
    ),
    Case::required(
        "V24-b",
        "ZONE_APPEND longer than max_append_sectors",
        "The request is answered with ZONE_INVALID_CMD (5.2.6.2).",
        too_long,
    ),
    Case::required(
        "V25-d",
        "ZONE_APPEND across two zones",
        "ZONE_APPEND with sectors in more than one zone is answered with ZONE_INVALID_CMD (5.2.6.2).",
        across,
    ),
    Case::required(
        "S19-f",
        "ZONE_APPEND without data opens no zone",
        "A zone comes from EMPTY to IOPEN by an append with a data size that is not 0 (5.2.6).",
        |bench| {
            needs_append(bench)?;
            super::write::without_data(bench, |start| Request::append(start, Vec::new()))
        },
    ),
    Case::required(
        "S19-g",
        "ZONE_APPEND to an EOPEN zone leaves it EOPEN",
        "With every write the write pointer moves by the number of sectors written; OPEN is undone by CLOSE, FINISH, RESET \
         and a full zone only (5.2.6).",
        |bench| {
            let zone = appendable(bench, 3)?;
            bench.bring_open(&zone)?;
            let data = bench.granule()?;
            append_at(bench, &zone, zone.start, &data)?;
            bench.is(&zone, ZoneState::ExplicitOpen, zone.start + sectors(&data))
        },
    ),
];

const ONLY_REQUIRED: &str = "ZONE_APPEND to a zone that is no sequential write required one is answered with ZONE_INVALID_CMD (5.2.6.2).";
const OPENS: &str = "ZONE_APPEND to a zone in EMPTY or CLOSED brings it to IOPEN before the data is written (5.2.6, 5.2.6.2).";
const TOO_LONG: &str =
    "ZONE_APPEND beyond what is left of a zone's capacity is answered with ZONE_INVALID_CMD (5.2.6.2).";
const TELLS_WHERE: &str = "With OK, `append_sector` is the first sector of the data, which was written at the write pointer (5.2.6, 5.2.6.2).";

const fn at_start(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks =
        "ZONE_APPEND whose `sector` is not the lowest of a zone is answered with ZONE_INVALID_CMD (5.2.6.2).";
    Case::required(id, title, asks, run)
}

/// Skips disks that can't append at least one granule.
pub(super) fn needs_append(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.writable()?;
    if zoned.max_append_sectors < zoned.granule() {
        return skip(format!("max_append_sectors is {}", zoned.max_append_sectors));
    }
    Ok(())
}

/// A zone that takes appends.
fn appendable(bench: &mut Bench<'_>, granules: u64) -> Result<Zone, Stop> {
    needs_append(bench)?;
    bench.required(granules)
}

fn fillable(bench: &mut Bench<'_>) -> Result<Zone, Stop> {
    needs_append(bench)?;
    bench.fillable_that(3, |zone, _| zone.must_be_sequential(), "type is sequential write required")
}

fn two_granules(bench: &mut Bench<'_>) -> Result<Vec<u8>, Stop> {
    let (_, zoned) = bench.writable()?;
    if zoned.max_append_sectors < 2 * zoned.granule() {
        return skip("max_append_sectors is one granule");
    }
    bench.granules(2)
}

/// Appends a granule to a zone in one state, which brings it to another.
fn appended(bench: &mut Bench<'_>, from: ZoneState, to: ZoneState) -> Verdict {
    let zone = appendable(bench, 4)?;
    let wp = zone.start + sectors(&bench.bring(&zone, from)?);
    let data = bench.granule()?;
    bench.ok(&Request::append(zone.start, data.clone()))?;
    bench.is(&zone, to, wp + sectors(&data))?;
    bench.holds(wp, &data)
}

/// Names a zone by another sector than its first.
fn named_by(bench: &mut Bench<'_>, state: ZoneState, sector: fn(&Zone, u64, u64) -> u64) -> Verdict {
    let zone = appendable(bench, 4)?;
    let wp = zone.start + sectors(&bench.bring(&zone, state)?);
    let data = bench.granule()?;
    let sector = sector(&zone, wp, sectors(&data));
    if sector == zone.start {
        return skip("the zone has one sector");
    }
    bench.refuses(&Request::append(sector, data), &[Status::ZoneInvalidCmd])
}

/// Appends, and looks at where the device says that it went.
fn append_at(bench: &mut Bench<'_>, zone: &Zone, wp: u64, data: &[u8]) -> Verdict {
    let reply = bench.ok(&Request::append(zone.start, data.to_vec()))?;
    let found = format!("append_sector {}", reply.append_sector);
    bench.check(reply.append_sector == wp, format!("append_sector {wp}"), found)?;
    bench.holds(wp, data)
}

fn tells_where(bench: &mut Bench<'_>, state: ZoneState) -> Verdict {
    let zone = appendable(bench, 5)?;
    let wp = zone.start + sectors(&bench.bring(&zone, state)?);
    let first = bench.granule()?;
    append_at(bench, &zone, wp, &first)?;
    let second = bench.granule()?;
    append_at(bench, &zone, wp + sectors(&first), &second)?;
    bench.holds(wp, &first)
}

fn in_turn(bench: &mut Bench<'_>) -> Verdict {
    let zone = appendable(bench, 8)?;
    bench.bring(&zone, ZoneState::Empty)?;
    let mut wp = zone.start;
    for append in [true, false, false, true, true, false] {
        let data = bench.granule()?;
        if append {
            append_at(bench, &zone, wp, &data)?;
        } else {
            bench.ok(&Request::write(wp, data.clone()))?;
        }
        wp += sectors(&data);
    }
    bench.is(&zone, ZoneState::ImplicitOpen, wp)
}

/// Appends to `count` zones, made available together: each has a place of its own, without gaps between them, and its data
/// is there.
fn at_once(bench: &mut Bench<'_>, count: usize, spread: bool, granules: fn(u64) -> u64) -> Verdict {
    needs_append(bench)?;
    let (_, zoned) = bench.writable()?;
    if zoned.max_append_sectors < 2 * zoned.granule() && granules(1) > 1 {
        return skip("max_append_sectors is one granule");
    }
    let limits = [zoned.max_open, zoned.max_active].into_iter().filter(|&max| max != 0);
    if limits.min().is_some_and(|max| (max as usize) < count) {
        return skip(format!("{count} zones can't be open at a time"));
    }
    let zones = if count == 1 {
        Vec::from([bench.required(8)?])
    } else {
        bench.several(count, Zone::must_be_sequential)?
    };
    let mut requests = Vec::new();
    let mut room: Vec<u64> = zones.iter().map(|zone| zone.capacity).collect();
    let batch = bench.batch_max() * usize::from(if spread { bench.queue_count().min(4) } else { 1 });
    for index in 0..batch.min(64) {
        let data = bench.granules(granules(index as u64))?;
        let which = index % zones.len();
        // One sector stays free, so that the zone does not become full.
        if room[which] > sectors(&data) {
            room[which] -= sectors(&data);
            requests.push(Request::append(zones[which].start, data));
        }
    }
    if requests.len() <= count {
        return skip("the queue is too short for several requests at once");
    }
    let replies = bench.send_all(&requests, spread)?;
    for (request, reply) in requests.iter().zip(&replies) {
        bench.check(reply.is_ok(), "OK for each", format!("{} for {request}", status_name(reply.status)))?;
    }
    for zone in &zones {
        let mut places: Vec<(u64, &[u8])> = (requests.iter().zip(&replies))
            .filter(|(request, _)| request.sector == zone.start)
            .map(|(request, reply)| (reply.append_sector, &request.data[..]))
            .collect();
        places.sort_unstable_by_key(|(sector, _)| *sector);
        let mut next = zone.start;
        for (sector, data) in places {
            bench.check(
                sector == next,
                format!("appends one behind the other, the next at sector {next}"),
                format!("append_sector {sector}"),
            )?;
            bench.holds(sector, data)?;
            next += sectors(data);
        }
        bench.is(zone, ZoneState::ImplicitOpen, next)?;
    }
    Ok(())
}

/// Wherever the RESET came in the order of things: each granule below the write pointer is one that an append has put there.
fn reset_among_appends(bench: &mut Bench<'_>) -> Verdict {
    let zone = appendable(bench, 8)?;
    let batch = bench.batch_max().min(8);
    if batch < 3 {
        return skip("the queue is too short for several requests at once");
    }
    bench.bring(&zone, ZoneState::Empty)?;
    let mut requests = Vec::new();
    for index in 0..batch {
        let data = bench.granule()?;
        requests.push(if index == batch / 2 {
            Request::reset(zone.start)
        } else {
            Request::append(zone.start, data)
        });
    }
    let replies = bench.send_all(&requests, false)?;
    for (request, reply) in requests.iter().zip(&replies) {
        bench.check(reply.is_ok(), "OK for each", format!("{} for {request}", status_name(reply.status)))?;
    }
    let seen = bench.see(&zone)?;
    let granule = bench.writable()?.1.granule();
    let end = zone.start + granule * (batch as u64 - 1);
    let expected = format!("a write pointer of {} to {end}", zone.start);
    bench.check((zone.start..=end).contains(&seen.wp), expected, seen.text())?;
    for sector in (zone.start..seen.wp).step_by(usize::try_from(granule).unwrap_or(1)) {
        let is = bench.ok(&Request::read(sector, granule))?.data;
        let put = requests.iter().zip(&replies).any(|(request, reply)| {
            !request.data.is_empty() && reply.append_sector == sector && request.data == is
        });
        bench.check(put, format!("data that was appended at sector {sector}"), "other data")?;
    }
    Ok(())
}

/// Two granules are left, and four appends of one come: two have a place.
fn over_the_end(bench: &mut Bench<'_>) -> Verdict {
    let zone = fillable(bench)?;
    if bench.batch_max() < 4 {
        return skip("the queue is too short for four requests at once");
    }
    let granule = bench.writable()?.1.granule();
    bench.fill(&zone, 2 * granule)?;
    let mut requests = Vec::new();
    for _ in 0..4 {
        requests.push(Request::append(zone.start, bench.granule()?));
    }
    let replies = bench.send_all(&requests, false)?;
    let mut places: Vec<u64> = Vec::new();
    for (request, reply) in requests.iter().zip(&replies) {
        if reply.is_ok() {
            places.push(reply.append_sector);
            bench.holds(reply.append_sector, &request.data)?;
        } else {
            let found = status_name(reply.status);
            bench.check(reply.is(Status::ZoneInvalidCmd), "ZONE_INVALID_CMD for the others", found)?;
        }
    }
    places.sort_unstable();
    let wp = zone.capacity_end() - 2 * granule;
    let expected = [wp, wp + granule];
    bench.check(places == expected, format!("appends at {expected:?}"), format!("{places:?}"))?;
    bench.is(&zone, ZoneState::Full, 0)
}

fn fills_up(bench: &mut Bench<'_>) -> Verdict {
    let zone = fillable(bench)?;
    let granule = bench.writable()?.1.granule();
    bench.fill(&zone, granule)?;
    let data = bench.granule()?;
    append_at(bench, &zone, zone.capacity_end() - granule, &data)?;
    bench.is(&zone, ZoneState::Full, 0)
}

/// An empty zone with room for so many sectors in one request.
fn roomy(bench: &mut Bench<'_>, len_sectors: u64) -> Result<Zone, Stop> {
    let (_, zoned) = bench.writable()?;
    if len_sectors * SECTOR_LEN_BYTES > bench.request_max_bytes() {
        return skip(format!("an append of {len_sectors} sectors is longer than a request of this run"));
    }
    let zone = appendable(bench, len_sectors.div_ceil(zoned.granule()))?;
    bench.bring(&zone, ZoneState::Empty)?;
    Ok(zone)
}

fn longest(bench: &mut Bench<'_>) -> Verdict {
    needs_append(bench)?;
    let (_, zoned) = bench.writable()?;
    let granule = zoned.granule();
    let max = zoned.max_append_sectors - zoned.max_append_sectors % granule;
    let zone = roomy(bench, max)?;
    let data = bench.granules(max / granule)?;
    append_at(bench, &zone, zone.start, &data)
}

fn too_long(bench: &mut Bench<'_>) -> Verdict {
    needs_append(bench)?;
    let (_, zoned) = bench.writable()?;
    let granules = zoned.max_append_sectors / zoned.granule() + 1;
    let zone = roomy(bench, granules * zoned.granule())?;
    let data = bench.granules(granules)?;
    bench.refuses(&Request::append(zone.start, data), &[Status::ZoneInvalidCmd])
}

fn across(bench: &mut Bench<'_>) -> Verdict {
    needs_append(bench)?;
    let (first, second) = super::write::adjoining(bench)?;
    let granule = bench.writable()?.1.granule();
    bench.bring(&second, ZoneState::Empty)?;
    bench.fill(&first, granule)?;
    let data = two_granules(bench)?;
    bench.refuses(&Request::append(first.start, data), &[Status::ZoneInvalidCmd])
}

fn sectors(data: &[u8]) -> u64 {
    data.len() as u64 / SECTOR_LEN_BYTES
}
