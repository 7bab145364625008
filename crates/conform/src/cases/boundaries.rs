//! Edges: the first and last zone, a shorter last one, capacities that differ, a session that begins anew.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{SECTOR_LEN_BYTES, ZoneState};

use super::append::needs_append;
use crate::bench::{Bench, Request, Stop, Verdict, Zone, skip};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    Case::required("V6-d", "the last zone, if it is shorter, is filled", SHORTER, |bench| {
        let zone = runt(bench)?;
        filled(bench, &zone)
    }),
    Case::required("V6-e", "the last zone, if it is shorter, through all states", SHORTER, |bench| {
        let zone = runt(bench)?;
        through_all_states(bench, &zone)
    }),
    Case::required("V6-f", "the last zone, if it is shorter, is appended to", SHORTER, |bench| {
        needs_append(bench)?;
        let zone = runt(bench)?;
        if !zone.must_be_sequential() {
            return skip("the last zone is no sequential write required one");
        }
        bench.bring(&zone, ZoneState::Empty)?;
        let data = bench.granule()?;
        let reply = bench.ok(&Request::append(zone.start, data.clone()))?;
        let found = format!("append_sector {}", reply.append_sector);
        bench.check(reply.append_sector == zone.start, format!("append_sector {}", zone.start), found)?;
        bench.holds(zone.start, &data)
    }),
    Case::required(
        "S10-c",
        "each capacity that there is can be written, and no more",
        "`z_cap` is how many sectors of an empty zone can be written (5.2.6).",
        each_capacity,
    ),
    Case::required("S22-a", "the first zone, through all states", EVERY_ZONE, |bench| {
        edge(bench, |zones| zones.first().copied())
    }),
    Case::required("S22-b", "the last zone, through all states", EVERY_ZONE, |bench| {
        edge(bench, |zones| zones.last().copied())
    }),
    Case::required(
        "S22-c",
        "the last block of the disk is read",
        "The disk's sectors are those below `capacity` (5.2.4).",
        last_sector,
    ),
    Case::required(
        "S22-d",
        "a zone's write pointer is its own",
        "A request acts on the zone that it names (5.2.6).",
        neighbours_stay,
    ),
    Case::required(
        "S23-a",
        "data outlives a reset of the device",
        "A reset brings the device, not the medium, back to its initial state: what was written and flushed is there \
         (2.4, 5.2.6.2).",
        |bench| {
            let (zone, data) = restarted_with(bench, ZoneState::Closed)?;
            bench.holds(zone.start, &data)?;
            let seen = bench.see(&zone)?;
            let wp = zone.start + sectors(&data);
            bench.check(seen.wp == wp && seen.is_active(), format!("write pointer {wp}"), seen.text())
        },
    ),
    Case::required(
        "S23-b",
        "a FULL zone outlives a reset of the device",
        "A zone leaves FULL by RESET and RESET_ALL (5.2.6).",
        |bench| {
            let (zone, data) = restarted_with(bench, ZoneState::Full)?;
            bench.is(&zone, ZoneState::Full, 0)?;
            bench.holds(zone.start, &data)
        },
    ),
    Case::ours("G6-a", "an IOPEN zone after a reset of the device", AFTER_RESET, |bench| {
        still_there(bench, ZoneState::ImplicitOpen)
    }),
    Case::ours("G6-b", "an EOPEN zone after a reset of the device", AFTER_RESET, |bench| {
        still_there(bench, ZoneState::ExplicitOpen)
    }),
];

const SHORTER: &str = "The last zone may be smaller: what is left of the disk's capacity. It is a zone like all others (5.2.5.2).";
const EVERY_ZONE: &str = "All sequential zones have the same states and transitions (5.2.6).";
const AFTER_RESET: &str = "The specification does not say what becomes of open zones; they keep their data and write pointer, \
                           open or closed (2.4, 5.2.6).";

/// The last zone, if it is smaller than the others.
fn runt(bench: &mut Bench<'_>) -> Result<Zone, Stop> {
    let (disk, zoned) = bench.writable()?;
    let granule = zoned.granule();
    if bench.survey()?.cut_short {
        return skip("the disk has more zones than the run looks at");
    }
    match bench.survey()?.last {
        Some(zone) if zone.end() == disk.capacity_sectors && zone.len < zoned.zone_sectors => {
            if zone.is_conventional() {
                skip("the last zone is conventional")
            } else if zone.capacity < 3 * granule || !zone.capacity.is_multiple_of(granule) {
                skip(format!("the last zone has {} sectors, too few or no whole granules", zone.capacity))
            } else {
                Ok(zone)
            }
        }
        _ => skip("the last zone is as long as the others"),
    }
}

/// Fills a zone by writes, to the last sector.
fn filled(bench: &mut Bench<'_>, zone: &Zone) -> Verdict {
    let granule = bench.writable()?.1.granule();
    if zone.capacity > bench.options().fill_max_sectors {
        return skip(format!("the run fills at most {} sectors", bench.options().fill_max_sectors));
    }
    bench.fill(zone, granule)?;
    let seen = bench.see(zone)?;
    bench.check(!seen.is(ZoneState::Full), "not FULL before the last granule", seen.text())?;
    let data = bench.granule()?;
    bench.ok(&Request::write(zone.capacity_end() - granule, data.clone()))?;
    bench.is(zone, ZoneState::Full, 0)?;
    bench.holds(zone.capacity_end() - granule, &data)
}

fn through_all_states(bench: &mut Bench<'_>, zone: &Zone) -> Verdict {
    let data = bench.granule()?;
    let wp = zone.start + sectors(&data);
    bench.ok(&Request::reset(zone.start))?;
    bench.is(zone, ZoneState::Empty, zone.start)?;
    bench.ok(&Request::write(zone.start, data.clone()))?;
    bench.is(zone, ZoneState::ImplicitOpen, wp)?;
    bench.ok(&Request::open(zone.start))?;
    bench.is(zone, ZoneState::ExplicitOpen, wp)?;
    bench.ok(&Request::close(zone.start))?;
    bench.is(zone, ZoneState::Closed, wp)?;
    bench.ok(&Request::open(zone.start))?;
    bench.ok(&Request::finish(zone.start))?;
    bench.is(zone, ZoneState::Full, 0)?;
    bench.holds(zone.start, &data)?;
    bench.ok(&Request::reset(zone.start))?;
    bench.is(zone, ZoneState::Empty, zone.start)
}

fn each_capacity(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.writable()?;
    let max = bench.options().fill_max_sectors;
    let fits = |zone: &Zone| zone.capacity.is_multiple_of(zoned.granule()) && zone.capacity > zoned.granule();
    let mut left = max;
    let mut zones: Vec<Zone> = bench.survey()?.capacities.values().copied().filter(fits).collect();
    zones.retain(|zone| {
        let fits = zone.capacity <= left;
        left -= if fits { zone.capacity } else { 0 };
        fits
    });
    if zones.is_empty() {
        return skip(format!("no zone can be filled with at most {max} sectors"));
    }
    for zone in zones.iter().take(8) {
        filled(bench, zone)?;
    }
    Ok(())
}

/// One of the disk's sequential zones with room for what follows.
fn edge(bench: &mut Bench<'_>, choose: fn(&[Zone]) -> Option<Zone>) -> Verdict {
    let (_, zoned) = bench.writable()?;
    let granule = zoned.granule();
    let survey = bench.survey()?;
    let zones: Vec<Zone> = (survey.sequential.iter().copied())
        .chain(survey.last.filter(Zone::is_sequential))
        .filter(|zone| zone.capacity >= 2 * granule)
        .collect();
    match choose(&zones) {
        Some(zone) => through_all_states(bench, &zone),
        None => skip("no sequential zone"),
    }
}

fn last_sector(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    if disk.capacity_sectors == 0 {
        return skip("the disk has no sectors");
    }
    let block = disk.block();
    if !disk.capacity_sectors.is_multiple_of(block) {
        return skip("the disk does not end with a block");
    }
    let sector = disk.capacity_sectors - block;
    if !disk.read_only {
        let zoned = disk.zoned.is_some_and(|zoned| zoned.has_zones());
        let last = if zoned { bench.survey()?.last.filter(|zone| zone.end() > sector) } else { None };
        match last {
            Some(zone) if zone.is_sequential() => {
                if zone.capacity != zone.len || zone.capacity > bench.options().fill_max_sectors {
                    return skip("the last zone can't be written to its end");
                }
                bench.fill(&zone, 0)?;
            }
            None if zoned => return skip("the last zone can't be written"),
            _ => {
                let data = bench.blocks(1)?;
                bench.ok(&Request::write(sector, data.clone()))?;
                bench.holds(sector, &data)?;
            }
        }
    }
    bench.ok(&Request::read(sector, block)).map(drop)
}

/// What happens in one zone is not seen in those beside it.
fn neighbours_stay(bench: &mut Bench<'_>) -> Verdict {
    let (first, second) =
        bench.neighbours(Zone::is_sequential, Zone::is_sequential, "two sequential zones in a row")?;
    let granule = bench.writable()?.1.granule();
    if first.capacity < 3 * granule || second.capacity < 3 * granule {
        return skip("the zones have room for less than three granules");
    }
    bench.bring(&second, ZoneState::Empty)?;
    let data = bench.bring(&first, ZoneState::Closed)?;
    bench.is(&second, ZoneState::Empty, second.start)?;
    bench.ok(&Request::reset(second.start))?;
    bench.is(&first, ZoneState::Closed, first.start + sectors(&data))?;
    bench.holds(first.start, &data)?;
    // A full zone uses no resources, so the other one can be open beside it.
    let data = bench.bring(&first, ZoneState::Full)?;
    bench.ok(&Request::open(second.start))?;
    bench.is(&first, ZoneState::Full, 0)?;
    bench.holds(first.start, &data)
}

/// A zone and its data, after the device was reset and started again.
fn restarted_with(bench: &mut Bench<'_>, state: ZoneState) -> Result<(Zone, Vec<u8>), Stop> {
    let zone = bench.sequential(3)?;
    let data = bench.bring(&zone, state)?;
    bench.prepare(&Request::op(virtio_zbd_spec::RequestType::Flush, 0))?;
    let accepted = bench.disk()?.accepted;
    bench.start(accepted)?;
    bench.disk()?;
    Ok((zone, data))
}

fn still_there(bench: &mut Bench<'_>, state: ZoneState) -> Verdict {
    let (zone, data) = restarted_with(bench, state)?;
    let seen = bench.see(&zone)?;
    let wp = zone.start + sectors(&data);
    let kept = seen.is_active() && seen.wp == wp;
    bench.check(kept, format!("{state:?} or Closed, write pointer {wp}"), seen.text())?;
    bench.holds(zone.start, &data)
}

fn sectors(data: &[u8]) -> u64 {
    data.len() as u64 / SECTOR_LEN_BYTES
}
