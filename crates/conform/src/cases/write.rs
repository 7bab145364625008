//! OUT: V20, V22, V25, V26 and V28, conventional and sequential write preferred zones, and read-only disks.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{SECTOR_LEN_BYTES, Status, ZoneState};

use super::append::needs_append;
use crate::bench::{Bench, Request, Stop, Verdict, Zone, skip, status_name};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    Case::required("V20-a", "OUT to an EMPTY zone opens it", OPENS, |bench| {
        written(bench, ZoneState::Empty, ZoneState::ImplicitOpen)
    }),
    Case::required("V20-b", "OUT to a CLOSED zone opens it", OPENS, |bench| {
        written(bench, ZoneState::Closed, ZoneState::ImplicitOpen)
    }),
    Case::required("S19-a", "OUT to an IOPEN zone", MOVES, |bench| {
        written(bench, ZoneState::ImplicitOpen, ZoneState::ImplicitOpen)
    }),
    Case::required("S19-b", "OUT to an EOPEN zone leaves it EOPEN", MOVES, |bench| {
        let zone = bench.sequential(3)?;
        bench.bring_open(&zone)?;
        let data = bench.granule()?;
        bench.ok(&Request::write(zone.start, data.clone()))?;
        bench.is(&zone, ZoneState::ExplicitOpen, zone.start + sectors(&data))?;
        bench.holds(zone.start, &data)
    }),
    Case::required("S19-c", "writes of different lengths", MOVES, different_lengths),
    Case::required(
        "S19-d",
        "OUT without data opens no zone",
        "A zone comes from EMPTY to IOPEN by a write with a data size that is not 0 (5.2.6).",
        |bench| without_data(bench, |start| Request::write(start, Vec::new())),
    ),
    Case::ours(
        "S19-e",
        "writes in a row, all under way at once",
        "Requests may be served in another order than they were made available; a queue that keeps the order lets a driver \
         write with more than one request (5.2.6).",
        queued_in_a_row,
    ),
    misplaced("V26-a", "OUT behind the write pointer", |bench| {
        out_at(bench, ZoneState::ImplicitOpen, |zone, _, _| zone.start)
    }),
    misplaced("V26-b", "OUT ahead of the write pointer", |bench| {
        out_at(bench, ZoneState::ImplicitOpen, |_, wp, granule| wp + granule)
    }),
    misplaced("V26-c", "OUT to an EMPTY zone, not at its start", |bench| {
        out_at(bench, ZoneState::Empty, |zone, _, granule| zone.start + granule)
    }),
    misplaced("V26-d", "OUT to a CLOSED zone, not at its write pointer", |bench| {
        out_at(bench, ZoneState::Closed, |zone, _, _| zone.start)
    }),
    misplaced("V26-e", "OUT to an EOPEN zone, not at its write pointer", |bench| {
        out_at(bench, ZoneState::ExplicitOpen, |_, wp, granule| wp + granule)
    }),
    misplaced("V26-f", "OUT one block behind the write pointer", |bench| {
        let block = bench.block()?;
        let zone = bench.required(5)?;
        let wp = zone.start + sectors(&bench.bring(&zone, ZoneState::ImplicitOpen)?);
        let data = bench.granule()?;
        bench.refuses(&Request::write(wp.saturating_sub(block), data), &[Status::ZoneUnalignedWp])
    }),
    misplaced("V26-g", "OUT of no whole number of granules", |bench| {
        partial_granule(bench, u64::MAX, Request::write)
    }),
    Case::recommended(
        "V26-h",
        "ZONE_APPEND of no whole number of granules",
        "Appends are writes, and a write whose end is no multiple of `write_granularity` is answered with \
         ZONE_UNALIGNED_WP; drivers may not send one, and the status was made for OUT (5.2.6, 5.2.6.1).",
        |bench| {
            needs_append(bench)?;
            let (_, zoned) = bench.writable()?;
            partial_granule(bench, zoned.max_append_sectors, Request::append)
        },
    ),
    misplaced("V26-i", "of two writes to the same place, one", two_to_one_place),
    too_long("V22-a", "OUT longer than what is left, inside the zone", |bench| {
        let zone = with_gap(bench)?;
        longer_than_left(bench, &zone)
    }),
    too_long("V22-b", "OUT longer than what is left, to the zone's end", |bench| {
        let (zone, _) = adjoining(bench)?;
        longer_than_left(bench, &zone)
    }),
    too_long("V22-c", "OUT to a FULL zone", |bench| {
        let zone = bench.required(3)?;
        bench.bring(&zone, ZoneState::Full)?;
        let data = bench.granule()?;
        bench.refuses(&Request::write(zone.start, data), &[Status::ZoneInvalidCmd])
    }),
    too_long("V22-d", "OUT between the capacity and the zone's end", |bench| {
        let zone = with_gap(bench)?;
        let data = bench.granule()?;
        bench.bring(&zone, ZoneState::Empty)?;
        bench.refuses(&Request::write(zone.capacity_end(), data), WRONG_PLACE)
    }),
    Case::required("S20-a", "OUT of all that is left", BECOMES_FULL, |bench| {
        fills_up(bench, ZoneState::ImplicitOpen)
    }),
    Case::required("S20-b", "OUT of all that is left to an EOPEN zone", BECOMES_FULL, |bench| {
        fills_up(bench, ZoneState::ExplicitOpen)
    }),
    Case::required("S20-c", "OUT of all that is left to a CLOSED zone", BECOMES_FULL, |bench| {
        fills_up(bench, ZoneState::Closed)
    }),
    Case::required("S20-d", "a whole zone in one OUT", BECOMES_FULL, whole_zone),
    across("V25-a", "OUT across two zones, from the write pointer", |bench| {
        let (first, second) = adjoining(bench)?;
        bench.bring(&second, ZoneState::Empty)?;
        let (wp, left) = nearly_full(bench, &first)?;
        let data = bench.granules(left + 1)?;
        bench.refuses(&Request::write(wp, data), &[Status::ZoneInvalidCmd])
    }),
    across("V25-b", "OUT across two zones, both EMPTY", |bench| {
        let (first, second) = required_neighbours(bench)?;
        bench.bring(&first, ZoneState::Empty)?;
        bench.bring(&second, ZoneState::Empty)?;
        let data = bench.granules(2)?;
        let sector = second.start.saturating_sub(data.len() as u64 / SECTOR_LEN_BYTES / 2);
        bench.refuses(&Request::write(sector, data), WRONG_PLACE)
    }),
    across("V25-c", "OUT from a sequential to a conventional zone", |bench| {
        let (first, second) = bench.neighbours(
            Zone::must_be_sequential,
            Zone::is_conventional,
            "conventional zone behind a sequential one",
        )?;
        bench.bring(&first, ZoneState::Empty)?;
        let data = bench.granules(2)?;
        let sector = second.start.saturating_sub(data.len() as u64 / SECTOR_LEN_BYTES / 2);
        bench.refuses(&Request::write(sector, data), WRONG_PLACE)
    }),
    Case::ours("V25-g", "OUT from a conventional to a sequential zone", FROM_CONVENTIONAL, |bench| {
        let (first, second) = bench.neighbours(
            Zone::is_conventional,
            Zone::must_be_sequential,
            "sequential zone behind a conventional one",
        )?;
        bench.bring(&second, ZoneState::Empty)?;
        let data = bench.granules(2)?;
        let sector = second.start.saturating_sub(data.len() as u64 / SECTOR_LEN_BYTES / 2);
        bench.refuses(&Request::write(sector.max(first.start), data), &[Status::ZoneInvalidCmd])
    }),
    read_only("V28-a", "OUT to a RDONLY zone", |bench| {
        let zone = bench.read_only_zone()?;
        let seen = bench.see(&zone)?;
        let data = bench.granule()?;
        let inside = (zone.start..zone.capacity_end()).contains(&seen.wp);
        let at = if inside { seen.wp } else { zone.start };
        bench.refuses(&Request::write(at, data), &[Status::ZoneInvalidCmd])
    }),
    read_only("V28-b", "ZONE_APPEND to a RDONLY zone", |bench| {
        needs_append(bench)?;
        let zone = bench.read_only_zone()?;
        let data = bench.granule()?;
        bench.refuses(&Request::append(zone.start, data), &[Status::ZoneInvalidCmd])
    }),
    Case::required("S12-a", "a conventional zone is written in any order", ANY_ORDER, any_order),
    Case::required("S12-b", "OUT and IN across two conventional zones", ANY_ORDER, across_conventional),
    Case::required("S12-c", "the last block of a conventional zone", ANY_ORDER, |bench| {
        let zone = bench.conventional()?;
        let data = bench.blocks(1)?;
        let sector = zone.end().saturating_sub(sectors(&data));
        bench.ok(&Request::write(sector, data.clone()))?;
        bench.holds(sector, &data)
    }),
    Case::required(
        "S12-d",
        "a conventional zone that is written stays NOT_WP",
        "Conventional zones are always reported as NOT_WP (5.2.6).",
        |bench| {
            let zone = bench.conventional()?;
            let data = bench.granule()?;
            bench.prepare(&Request::write(zone.start, data))?;
            bench.is(&zone, ZoneState::NotWp, 0)
        },
    ),
    Case::required("S13-a", "OUT ahead of the write pointer of a preferred zone", RANDOM_WRITES, |bench| {
        preferred_at(bench, |zone, wp, granule| (wp + granule).min(zone.capacity_end() - granule))
    }),
    Case::required("S13-b", "OUT behind the write pointer of a preferred zone", RANDOM_WRITES, |bench| {
        preferred_at(bench, |zone, _, _| zone.start)
    }),
    Case::required(
        "S18-a",
        "OUT to a read-only disk",
        "Where RO is offered, a write is answered with IOERR, and no data is written (5.2.6.2).",
        read_only_disk,
    ),
    Case::required(
        "S18-b",
        "ZONE_APPEND to a read-only disk",
        "Appends are writes, and where RO is offered a write is answered with IOERR (5.2.6, 5.2.6.2).",
        append_to_read_only_disk,
    ),
    Case::ours("S21-a", "OUT past the disk", PAST_THE_END, |bench| {
        let (disk, _) = bench.writable()?;
        let data = bench.granule()?;
        not_served(bench, &Request::write(disk.capacity_sectors, data))
    }),
    Case::ours("S21-b", "IN past the disk", PAST_THE_END, |bench| {
        let (disk, _) = bench.zones()?;
        not_served(bench, &Request::read(disk.capacity_sectors, 1))
    }),
    Case::ours("S21-c", "IN across the disk's end", PAST_THE_END, |bench| {
        let (disk, _) = bench.zones()?;
        not_served(bench, &Request::read(disk.capacity_sectors - 1, 2))
    }),
    Case::ours("S21-d", "OUT and IN at a sector that overflows", PAST_THE_END, |bench| {
        bench.writable()?;
        not_served(bench, &Request::read(u64::MAX, 2))?;
        let data = bench.granule()?;
        not_served(bench, &Request::write(u64::MAX / 512 + 1, data))
    }),
];

const OPENS: &str =
    "OUT to a zone in EMPTY or CLOSED brings it to IOPEN before the data is written (5.2.6, 5.2.6.2).";
const MOVES: &str = "With every write the write pointer moves by the number of sectors written (5.2.6).";
const BECOMES_FULL: &str = "A zone becomes FULL by the write that reaches its capacity (5.2.6).";
const ANY_ORDER: &str = "Any block of a conventional zone can be read and written at any time and in any order, as of a regular disk (5.2.6).";
const RANDOM_WRITES: &str =
    "Sequential write preferred zones take writes that do not begin at the write pointer (5.2.6).";
const FROM_CONVENTIONAL: &str = "The specification speaks of requests issued to sequential zones; one that begins in a \
                                 conventional zone and ends in a sequential one it leaves open (5.2.6.2).";
const PAST_THE_END: &str = "A driver must not do it; what the device answers is not said, but there is nothing to serve \
                            (5.2.6.1).";

/// Where two rules are broken at once, the specification does not say which counts.
const WRONG_PLACE: &[Status] = &[Status::ZoneInvalidCmd, Status::ZoneUnalignedWp];

const fn misplaced(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "A write to a sequential write required zone that does not begin at the write pointer, or does not end at a \
                multiple of `write_granularity`, is answered with ZONE_UNALIGNED_WP (5.2.6, 5.2.6.2).";
    Case::required(id, title, asks, run)
}

const fn too_long(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "OUT or ZONE_APPEND beyond what is left of a zone's capacity is answered with ZONE_INVALID_CMD (5.2.6.2).";
    Case::required(id, title, asks, run)
}

const fn across(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "IN, OUT or ZONE_APPEND to a sequential write required zone with sectors in more than one zone is answered \
                with ZONE_INVALID_CMD (5.2.6.2).";
    Case::required(id, title, asks, run)
}

const fn read_only(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    Case::required(
        id,
        title,
        "OUT and ZONE_APPEND to a RDONLY zone are answered with ZONE_INVALID_CMD (5.2.6.2).",
        run,
    )
}

/// Writes a granule at the write pointer of a zone in one state, which brings it to another.
fn written(bench: &mut Bench<'_>, from: ZoneState, to: ZoneState) -> Verdict {
    let zone = bench.sequential(4)?;
    let before = bench.bring(&zone, from)?;
    let wp = zone.start + sectors(&before);
    let data = bench.granule()?;
    bench.ok(&Request::write(wp, data.clone()))?;
    bench.is(&zone, to, wp + sectors(&data))?;
    bench.holds(zone.start, &before)?;
    bench.holds(wp, &data)
}

fn different_lengths(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.sequential(8)?;
    bench.bring(&zone, ZoneState::Empty)?;
    let mut wp = zone.start;
    for granules in [1, 3, 2, 1] {
        let data = bench.granules(granules)?;
        bench.ok(&Request::write(wp, data.clone()))?;
        bench.holds(wp, &data)?;
        wp += sectors(&data);
        let state = if wp == zone.capacity_end() { ZoneState::Full } else { ZoneState::ImplicitOpen };
        bench.is(&zone, state, wp)?;
    }
    Ok(())
}

/// A request without data, whatever it is answered, leaves an empty zone empty.
pub(super) fn without_data(bench: &mut Bench<'_>, request: fn(u64) -> Request) -> Verdict {
    let zone = bench.sequential(1)?;
    bench.bring(&zone, ZoneState::Empty)?;
    bench.send(&request(zone.start))?;
    bench.is(&zone, ZoneState::Empty, zone.start)
}

fn queued_in_a_row(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.sequential(8)?;
    bench.bring(&zone, ZoneState::Empty)?;
    let mut wp = zone.start;
    let mut requests = Vec::new();
    for _ in 0..bench.batch_max().min(8) {
        let data = bench.granule()?;
        wp += sectors(&data);
        requests.push(Request::write(wp - sectors(&data), data));
    }
    for (request, reply) in requests.iter().zip(bench.send_all(&requests, false)?) {
        bench.check(reply.is_ok(), "OK for each", format!("{} for {request}", status_name(reply.status)))?;
    }
    for request in &requests {
        bench.holds(request.sector, &request.data)?;
    }
    Ok(())
}

/// Writes a granule to another place than the write pointer.
fn out_at(bench: &mut Bench<'_>, state: ZoneState, place: fn(&Zone, u64, u64) -> u64) -> Verdict {
    let zone = bench.required(5)?;
    let wp = zone.start + sectors(&bench.bring(&zone, state)?);
    let data = bench.granule()?;
    let sector = place(&zone, wp, sectors(&data));
    bench.refuses(&Request::write(sector, data), &[Status::ZoneUnalignedWp])
}

fn partial_granule(bench: &mut Bench<'_>, max_sectors: u64, request: fn(u64, Vec<u8>) -> Request) -> Verdict {
    let (_, zoned) = bench.writable()?;
    if zoned.granule() < 2 {
        return skip("write_granularity is 512: every sector is a granule");
    }
    let zone = bench.required(3)?;
    for sectors in [1, zoned.granule() - 1, zoned.granule() + 1] {
        if sectors > max_sectors {
            continue;
        }
        bench.bring(&zone, ZoneState::Empty)?;
        let data = bench.random.bytes(usize::try_from(sectors * SECTOR_LEN_BYTES).unwrap_or(512));
        bench.refuses(&request(zone.start, data), &[Status::ZoneUnalignedWp])?;
    }
    Ok(())
}

/// Two writes at the write pointer at once: whichever comes first has the place.
fn two_to_one_place(bench: &mut Bench<'_>) -> Verdict {
    if bench.batch_max() < 2 {
        return skip("the queue is too short for two requests at once");
    }
    let zone = bench.required(4)?;
    let wp = zone.start + sectors(&bench.bring(&zone, ZoneState::ImplicitOpen)?);
    let first = bench.granule()?;
    let second = bench.granule()?;
    let both = [Request::write(wp, first.clone()), Request::write(wp, second.clone())];
    let replies = bench.send_all(&both, true)?;
    let statuses = [replies[0].status, replies[1].status].map(status_name);
    let data = match (replies[0].is_ok(), replies[1].is_ok()) {
        (true, false) if replies[1].is(Status::ZoneUnalignedWp) => first,
        (false, true) if replies[0].is(Status::ZoneUnalignedWp) => second,
        _ => return bench.fail("one OK and one ZONE_UNALIGNED_WP", statuses.join(" and ")),
    };
    let seen = bench.see(&zone)?;
    let end = wp + sectors(&data);
    bench.check(seen.wp == end || !seen.has_write_pointer(), format!("write pointer {end}"), seen.text())?;
    bench.holds(wp, &data)
}

/// A zone that can be filled, with sectors behind its capacity.
fn with_gap(bench: &mut Bench<'_>) -> Result<Zone, Stop> {
    let fits = |zone: &Zone, granule| zone.must_be_sequential() && zone.capacity + granule <= zone.len;
    bench.fillable_that(3, fits, "capacity is less than its length")
}

/// Fills a zone so that one granule is left of its capacity. Returns the write pointer and how many granules are left.
fn nearly_full(bench: &mut Bench<'_>, zone: &Zone) -> Result<(u64, u64), Stop> {
    let granule = bench.writable()?.1.granule();
    bench.fill(zone, granule)?;
    Ok((zone.capacity_end() - granule, 1))
}

fn longer_than_left(bench: &mut Bench<'_>, zone: &Zone) -> Verdict {
    let (wp, left) = nearly_full(bench, zone)?;
    let data = bench.granules(left + 1)?;
    bench.refuses(&Request::write(wp, data), &[Status::ZoneInvalidCmd])
}

/// Writes the last granule of a zone in that state.
fn fills_up(bench: &mut Bench<'_>, state: ZoneState) -> Verdict {
    let zone = bench.fillable(2)?;
    let (wp, left) = nearly_full(bench, &zone)?;
    match state {
        ZoneState::ExplicitOpen => bench.prepare(&Request::open(zone.start)).map(drop)?,
        ZoneState::Closed => bench.prepare(&Request::close(zone.start)).map(drop)?,
        _ => {}
    }
    let data = bench.granules(left)?;
    bench.ok(&Request::write(wp, data.clone()))?;
    bench.is(&zone, ZoneState::Full, 0)?;
    bench.holds(wp, &data)
}

fn whole_zone(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.writable()?;
    let zone = bench.fillable(1)?;
    if zone.capacity > bench.write_max_sectors(zoned.granule()) {
        return skip("the smallest zone is longer than a request");
    }
    bench.bring(&zone, ZoneState::Empty)?;
    let data = bench.granules(zone.capacity / zoned.granule())?;
    bench.ok(&Request::write(zone.start, data.clone()))?;
    bench.is(&zone, ZoneState::Full, 0)?;
    bench.holds(zone.start, &data)
}

fn required_neighbours(bench: &mut Bench<'_>) -> Result<(Zone, Zone), Stop> {
    bench.neighbours(
        Zone::must_be_sequential,
        Zone::must_be_sequential,
        "two sequential write required zones in a row",
    )
}

/// Two sequential zones of which the first can be written up to the second.
pub(super) fn adjoining(bench: &mut Bench<'_>) -> Result<(Zone, Zone), Stop> {
    let to_the_brim = |zone: &Zone| zone.must_be_sequential() && zone.capacity == zone.len;
    let what = "sequential write required zone with a capacity up to the next one";
    let (first, second) = bench.neighbours(to_the_brim, Zone::must_be_sequential, what)?;
    if !first.capacity.is_multiple_of(bench.writable()?.1.granule()) {
        return skip("the zone's capacity is no number of whole granules");
    }
    if first.capacity > bench.options().fill_max_sectors {
        return skip(format!("the run fills at most {} sectors", bench.options().fill_max_sectors));
    }
    Ok((first, second))
}

fn any_order(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.conventional()?;
    let block = bench.block()?;
    if zone.len < 4 * block {
        return skip("the conventional zone has less than four blocks");
    }
    let mut written: Vec<(u64, Vec<u8>)> = Vec::new();
    // Downwards, then one of them again.
    for sector in [3, 2, 1, 0, 2].map(|part| zone.start + part * (zone.len / 4 / block * block)) {
        let data = bench.blocks(1)?;
        bench.ok(&Request::write(sector, data.clone()))?;
        written.retain(|(other, _)| *other != sector);
        written.push((sector, data));
    }
    for (sector, data) in written {
        bench.holds(sector, &data)?;
    }
    Ok(())
}

fn across_conventional(bench: &mut Bench<'_>) -> Verdict {
    let (_, second) =
        bench.neighbours(Zone::is_conventional, Zone::is_conventional, "two conventional zones in a row")?;
    let data = bench.blocks(2)?;
    let sector = second.start.saturating_sub(sectors(&data) / 2);
    bench.ok(&Request::write(sector, data.clone()))?;
    bench.holds(sector, &data)
}

fn preferred_at(bench: &mut Bench<'_>, place: fn(&Zone, u64, u64) -> u64) -> Verdict {
    let zone = bench.preferred(5)?;
    let wp = zone.start + sectors(&bench.bring(&zone, ZoneState::ImplicitOpen)?);
    let data = bench.granule()?;
    let sector = place(&zone, wp, sectors(&data));
    bench.ok(&Request::write(sector, data.clone()))?;
    bench.holds(sector, &data)
}

fn read_only_disk(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    if !disk.read_only {
        return skip("the disk can be written");
    }
    let first = Request::read(0, disk.block());
    let before = bench.send(&first)?;
    let data = bench.random.bytes(before.data.len());
    bench.answers(&Request::write(0, data), &[Status::IoErr])?;
    let after = bench.send(&first)?;
    bench.check(after.data == before.data, "no change of the data", "other data")
}

fn append_to_read_only_disk(bench: &mut Bench<'_>) -> Verdict {
    let (disk, zoned) = bench.zones()?;
    if !disk.read_only {
        return skip("the disk can be written");
    }
    if zoned.max_append_sectors < zoned.granule() {
        return skip(format!("max_append_sectors is {}", zoned.max_append_sectors));
    }
    let zone = bench.survey()?.sequential.iter().copied().find(Zone::must_be_sequential);
    let Some(zone) = zone else { return skip("no sequential write required zone") };
    let before = bench.see(&zone)?;
    let data = bench.granule()?;
    bench.answers(&Request::append(zone.start, data), &[Status::IoErr])?;
    let now = bench.see(&zone)?;
    bench.check(now == before, before.text(), now.text())
}

/// A request that can't be served is answered with some error.
fn not_served(bench: &mut Bench<'_>, request: &Request) -> Verdict {
    let reply = bench.send(request)?;
    let known = Status::try_from(reply.status).is_ok_and(|status| status != Status::Ok);
    bench.check(known, "an error", status_name(reply.status))
}

fn sectors(data: &[u8]) -> u64 {
    data.len() as u64 / SECTOR_LEN_BYTES
}
