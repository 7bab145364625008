//! OPEN, CLOSE, FINISH, RESET and RESET_ALL: V13, V15 to V19, G1, G2, and their part of V28 and V29.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{SECTOR_LEN_BYTES, Status, ZoneState};

use crate::bench::{Bench, Request, Verdict, Zone, skip};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    conventional("V13-a", "OPEN of a conventional zone", |bench| on_conventional(bench, Request::open)),
    conventional("V13-b", "CLOSE of a conventional zone", |bench| on_conventional(bench, Request::close)),
    conventional("V13-c", "FINISH of a conventional zone", |bench| on_conventional(bench, Request::finish)),
    conventional("V13-d", "RESET of a conventional zone", |bench| on_conventional(bench, Request::reset)),
    Case::required("V15-a", "OPEN of an EMPTY zone", TO_EOPEN, |bench| {
        moves(bench, ZoneState::Empty, Request::open, ZoneState::ExplicitOpen)
    }),
    Case::required("V15-b", "OPEN of an IOPEN zone", TO_EOPEN, |bench| {
        moves(bench, ZoneState::ImplicitOpen, Request::open, ZoneState::ExplicitOpen)
    }),
    Case::required("V15-c", "OPEN of a CLOSED zone", TO_EOPEN, |bench| {
        moves(bench, ZoneState::Closed, Request::open, ZoneState::ExplicitOpen)
    }),
    Case::required("V15-d", "OPEN of a FULL zone", NO_WAY, |bench| {
        refused(bench, ZoneState::Full, Request::open)
    }),
    Case::required("V15-e", "OPEN of a RDONLY zone", NO_WAY, |bench| read_only(bench, Request::open)),
    Case::required("S6-a", "OPEN of an EOPEN zone", NOTHING_TO_DO, |bench| {
        moves(bench, ZoneState::ExplicitOpen, Request::open, ZoneState::ExplicitOpen)
    }),
    Case::required("V16-a", "CLOSE of an IOPEN zone", TO_CLOSED, |bench| {
        moves(bench, ZoneState::ImplicitOpen, Request::close, ZoneState::Closed)
    }),
    Case::required("V16-b", "CLOSE of an EOPEN zone", TO_CLOSED, |bench| {
        moves(bench, ZoneState::ExplicitOpen, Request::close, ZoneState::Closed)
    }),
    Case::required(
        "V16-c",
        "CLOSE of an EOPEN zone with nothing written",
        "Where the write pointer is at the zone's start, CLOSE brings the zone to EMPTY (5.2.6).",
        close_with_nothing_written,
    ),
    Case::required("V16-d", "CLOSE of a RDONLY zone", NO_WAY, |bench| read_only(bench, Request::close)),
    Case::required("S6-b", "CLOSE of a CLOSED zone", NOTHING_TO_DO, |bench| {
        moves(bench, ZoneState::Closed, Request::close, ZoneState::Closed)
    }),
    Case::required("V17-a", "FINISH of an IOPEN zone", TO_FULL, |bench| {
        moves(bench, ZoneState::ImplicitOpen, Request::finish, ZoneState::Full)
    }),
    Case::required("V17-b", "FINISH of an EOPEN zone", TO_FULL, |bench| {
        moves(bench, ZoneState::ExplicitOpen, Request::finish, ZoneState::Full)
    }),
    Case::required("V17-c", "FINISH of an EOPEN zone with nothing written", TO_FULL, |bench| {
        let zone = bench.sequential(3)?;
        bench.bring_open(&zone)?;
        bench.ok(&Request::finish(zone.start))?;
        bench.is(&zone, ZoneState::Full, zone.start)
    }),
    Case::required("V17-d", "FINISH of a RDONLY zone", NO_WAY, |bench| read_only(bench, Request::finish)),
    Case::required("S6-c", "FINISH of a FULL zone", NOTHING_TO_DO, |bench| {
        moves(bench, ZoneState::Full, Request::finish, ZoneState::Full)
    }),
    Case::required("V18-a", "RESET of an IOPEN zone", TO_EMPTY, |bench| {
        moves(bench, ZoneState::ImplicitOpen, Request::reset, ZoneState::Empty)
    }),
    Case::required("V18-b", "RESET of an EOPEN zone", TO_EMPTY, |bench| {
        moves(bench, ZoneState::ExplicitOpen, Request::reset, ZoneState::Empty)
    }),
    Case::required("V18-c", "RESET of a CLOSED zone", TO_EMPTY, |bench| {
        moves(bench, ZoneState::Closed, Request::reset, ZoneState::Empty)
    }),
    Case::required("V18-d", "RESET of a FULL zone", TO_EMPTY, |bench| {
        moves(bench, ZoneState::Full, Request::reset, ZoneState::Empty)
    }),
    Case::required("V18-e", "RESET of a RDONLY zone", NO_WAY, |bench| read_only(bench, Request::reset)),
    Case::required(
        "V18-f",
        "a zone is written again from its start after RESET",
        "An empty zone has its whole capacity for writing, and its write pointer at the start (5.2.6).",
        written_again_after_reset,
    ),
    Case::required("S6-d", "RESET of an EMPTY zone", NOTHING_TO_DO, |bench| {
        moves(bench, ZoneState::Empty, Request::reset, ZoneState::Empty)
    }),
    Case::required("V19-a", "RESET_ALL empties IOPEN", ALL_TO_EMPTY, |bench| {
        all_from(bench, ZoneState::ImplicitOpen)
    }),
    Case::required("V19-b", "RESET_ALL empties EOPEN", ALL_TO_EMPTY, |bench| {
        all_from(bench, ZoneState::ExplicitOpen)
    }),
    Case::required("V19-c", "RESET_ALL empties CLOSED", ALL_TO_EMPTY, |bench| {
        all_from(bench, ZoneState::Closed)
    }),
    Case::required("V19-d", "RESET_ALL empties FULL", ALL_TO_EMPTY, |bench| all_from(bench, ZoneState::Full)),
    Case::required("V19-e", "RESET_ALL empties every zone", ALL_TO_EMPTY, many_at_once),
    Case::required(
        "V19-f",
        "RESET_ALL leaves conventional zones alone",
        "RESET_ALL acts on sequential zones; any block of a conventional zone keeps what was written (5.2.6, 5.2.6.2).",
        conventional_data_survives,
    ),
    Case::required(
        "V19-g",
        "RESET_ALL leaves RDONLY and OFFLINE zones alone",
        "RESET_ALL acts on zones in IOPEN, EOPEN, CLOSED and FULL (5.2.6.2).",
        worn_zones_stay,
    ),
    Case::ours(
        "R9-a",
        "RESET_ALL with a sector",
        "`sector` is not used for RESET_ALL; drivers have to set it to 0 (5.2.6, 5.2.6.1).",
        reset_all_with_a_sector,
    ),
    Case::required("R8-a", "OPEN from inside a zone", AT_THE_START, |bench| {
        inside(bench, ZoneState::Empty, Request::open)
    }),
    Case::required("R8-b", "CLOSE from inside a zone", AT_THE_START, |bench| {
        inside(bench, ZoneState::ExplicitOpen, Request::close)
    }),
    Case::required("R8-c", "FINISH from inside a zone", AT_THE_START, |bench| {
        inside(bench, ZoneState::ImplicitOpen, Request::finish)
    }),
    Case::required("R8-d", "RESET from inside a zone", AT_THE_START, |bench| {
        inside(bench, ZoneState::Full, Request::reset)
    }),
    Case::ours("R8-e", "management of a zone past the disk", PAST_THE_END, past_the_end),
    offline("V29-a", "IN from an OFFLINE zone", |bench| {
        of_offline(bench, |start, granule| Request::read(start, granule.len() as u64 / SECTOR_LEN_BYTES))
    }),
    offline("V29-b", "OUT to an OFFLINE zone", |bench| of_offline(bench, Request::write)),
    offline("V29-c", "ZONE_APPEND to an OFFLINE zone", |bench| {
        super::append::needs_append(bench)?;
        of_offline(bench, Request::append)
    }),
    offline("V29-d", "OPEN of an OFFLINE zone", |bench| of_offline(bench, |start, _| Request::open(start))),
    offline("V29-e", "CLOSE of an OFFLINE zone", |bench| of_offline(bench, |start, _| Request::close(start))),
    offline("V29-f", "FINISH of an OFFLINE zone", |bench| {
        of_offline(bench, |start, _| Request::finish(start))
    }),
    offline("V29-g", "RESET of an OFFLINE zone", |bench| of_offline(bench, |start, _| Request::reset(start))),
    Case::ours("G1-a", "FINISH of an EMPTY zone", FINISH_FROM, |bench| {
        moves(bench, ZoneState::Empty, Request::finish, ZoneState::Full)
    }),
    Case::ours("G1-b", "FINISH of a CLOSED zone", FINISH_FROM, |bench| {
        moves(bench, ZoneState::Closed, Request::finish, ZoneState::Full)
    }),
    Case::ours("G2-a", "CLOSE of an EMPTY zone", CLOSE_OF, |bench| {
        refused(bench, ZoneState::Empty, Request::close)
    }),
    Case::ours("G2-b", "CLOSE of a FULL zone", CLOSE_OF, |bench| {
        refused(bench, ZoneState::Full, Request::close)
    }),
];

const TO_EOPEN: &str = "OPEN brings EMPTY, IOPEN and CLOSED zones to EOPEN (5.2.6, 5.2.6.2).";
const TO_CLOSED: &str = "CLOSE brings an open zone with data to CLOSED (5.2.6, 5.2.6.2).";
const TO_FULL: &str = "FINISH brings an open zone to FULL (5.2.6, 5.2.6.2).";
const TO_EMPTY: &str = "RESET brings IOPEN, EOPEN, CLOSED and FULL zones to EMPTY (5.2.6, 5.2.6.2).";
const ALL_TO_EMPTY: &str = "RESET_ALL brings IOPEN, EOPEN, CLOSED and FULL zones to EMPTY (5.2.6.2).";
const NOTHING_TO_DO: &str =
    "A zone that is in the wanted state already stays in it, and the request succeeds (5.2.6).";
const NO_WAY: &str = "Where there is no way from the zone's state to the wanted one, ZONE_INVALID_CMD and no change (5.2.6.2).";
const AT_THE_START: &str = "The request acts on the zone that has `sector` as its address, its first sector; all other errors \
                            that concern zones are ZONE_INVALID_CMD (5.2.6, 5.2.6.1).";
const PAST_THE_END: &str =
    "The specification does not say; ZONE_INVALID_CMD is for all other errors that concern zones (5.2.6).";
const FINISH_FROM: &str = "The list of transitions has none from EMPTY and CLOSED to FULL, and nothing forbids them; devices \
                           that this extension is made for have them (5.2.6).";
const CLOSE_OF: &str = "The list of transitions has none from EMPTY and FULL to CLOSED, so none can be performed (5.2.6, 5.2.6.2).";

const fn conventional(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks =
        "OPEN, CLOSE, FINISH and RESET of a conventional zone are answered with ZONE_INVALID_CMD (5.2.6.2).";
    Case::required(id, title, asks, run)
}

const fn offline(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    Case::required(
        id,
        title,
        "All requests to an OFFLINE zone are answered with ZONE_INVALID_CMD (5.2.6.2).",
        run,
    )
}

/// A request that brings a zone from one state to another, or leaves it there, and its data with it.
fn moves(bench: &mut Bench<'_>, from: ZoneState, request: fn(u64) -> Request, to: ZoneState) -> Verdict {
    let zone = bench.sequential(3)?;
    let data = bench.bring(&zone, from)?;
    bench.ok(&request(zone.start))?;
    if to == ZoneState::Empty {
        return bench.is(&zone, to, zone.start);
    }
    bench.is(&zone, to, zone.start + data.len() as u64 / SECTOR_LEN_BYTES)?;
    bench.holds(zone.start, &data)
}

fn refused(bench: &mut Bench<'_>, state: ZoneState, request: fn(u64) -> Request) -> Verdict {
    let zone = bench.sequential(3)?;
    bench.bring(&zone, state)?;
    bench.refuses(&request(zone.start), &[Status::ZoneInvalidCmd])
}

fn on_conventional(bench: &mut Bench<'_>, request: fn(u64) -> Request) -> Verdict {
    let zone = bench.conventional()?;
    let data = bench.blocks(1)?;
    bench.prepare(&Request::write(zone.start, data))?;
    bench.refuses(&request(zone.start), &[Status::ZoneInvalidCmd])
}

fn read_only(bench: &mut Bench<'_>, request: fn(u64) -> Request) -> Verdict {
    let zone = bench.read_only_zone()?;
    bench.refuses(&request(zone.start), &[Status::ZoneInvalidCmd])
}

fn of_offline(bench: &mut Bench<'_>, request: fn(u64, Vec<u8>) -> Request) -> Verdict {
    let zone = bench.offline_zone()?;
    let granule = bench.granule()?;
    bench.refuses(&request(zone.start, granule), &[Status::ZoneInvalidCmd])
}

fn close_with_nothing_written(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.sequential(1)?;
    bench.bring_open(&zone)?;
    bench.ok(&Request::close(zone.start))?;
    bench.is(&zone, ZoneState::Empty, zone.start)
}

fn written_again_after_reset(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.sequential(3)?;
    bench.bring(&zone, ZoneState::Full)?;
    bench.ok(&Request::reset(zone.start))?;
    let granule = bench.granule()?;
    bench.ok(&Request::write(zone.start, granule.clone()))?;
    bench.is(&zone, ZoneState::ImplicitOpen, zone.start + granule.len() as u64 / SECTOR_LEN_BYTES)?;
    bench.holds(zone.start, &granule)
}

fn all_from(bench: &mut Bench<'_>, state: ZoneState) -> Verdict {
    let zone = bench.sequential(3)?;
    bench.bring(&zone, state)?;
    bench.ok(&Request::reset_all())?;
    bench.is(&zone, ZoneState::Empty, zone.start)
}

/// The first and the last zones of the disk, finished: these use no resources.
fn many_at_once(bench: &mut Bench<'_>) -> Verdict {
    bench.sequential(3)?;
    let granule = bench.writable()?.1.granule();
    let all = &bench.survey()?.sequential;
    let ends = all.iter().take(8).chain(all.iter().skip(8).rev().take(8));
    let zones: Vec<Zone> = ends.filter(|zone| zone.capacity >= granule).copied().collect();
    if zones.len() < 2 {
        return skip("the disk has one sequential zone");
    }
    for zone in &zones {
        bench.prepare(&Request::reset(zone.start))?;
        let granule = bench.granule()?;
        bench.prepare(&Request::write(zone.start, granule))?;
        bench.prepare(&Request::finish(zone.start))?;
    }
    bench.ok(&Request::reset_all())?;
    for zone in &zones {
        bench.is(zone, ZoneState::Empty, zone.start)?;
    }
    Ok(())
}

fn conventional_data_survives(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.conventional()?;
    let data = bench.blocks(1)?;
    bench.prepare(&Request::write(zone.start, data.clone()))?;
    bench.ok(&Request::reset_all())?;
    bench.is(&zone, ZoneState::NotWp, 0)?;
    bench.holds(zone.start, &data)
}

/// Zones that the run has found worn are so after a RESET_ALL; those that could be read may have gone offline by themselves.
fn worn_zones_stay(bench: &mut Bench<'_>) -> Verdict {
    bench.writable()?;
    let survey = bench.survey()?;
    let (read_only, offline) = (survey.read_only.clone(), survey.offline.clone());
    if read_only.is_empty() && offline.is_empty() {
        return skip("no zone is read-only or offline");
    }
    bench.ok(&Request::reset_all())?;
    for zone in read_only {
        let now = bench.see(&zone)?;
        bench.check(now.is(ZoneState::ReadOnly) || now.is(ZoneState::Offline), "RDONLY", now.text())?;
    }
    for zone in offline {
        bench.is(&zone, ZoneState::Offline, 0)?;
    }
    Ok(())
}

fn reset_all_with_a_sector(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.sequential(3)?;
    bench.bring(&zone, ZoneState::Full)?;
    bench.ok(&Request { sector: zone.start + 1, ..Request::reset_all() })?;
    bench.is(&zone, ZoneState::Empty, zone.start)
}

/// A request to a zone in a state in which it is possible, but not at the zone's start.
fn inside(bench: &mut Bench<'_>, state: ZoneState, request: fn(u64) -> Request) -> Verdict {
    let zone = bench.sequential(3)?;
    for sector in [zone.start + 1, zone.end() - 1] {
        bench.bring(&zone, state)?;
        bench.refuses(&request(sector), &[Status::ZoneInvalidCmd])?;
    }
    Ok(())
}

fn past_the_end(bench: &mut Bench<'_>) -> Verdict {
    let (disk, zoned) = bench.writable()?;
    let end = zoned.zone_count(&disk) * zoned.zone_sectors;
    for sector in [end, u64::MAX - u64::MAX % zoned.zone_sectors] {
        for request in [Request::open, Request::close, Request::finish, Request::reset] {
            let request = request(sector);
            let reply = bench.send(&request)?;
            let found = crate::bench::status_name(reply.status);
            bench.check(
                reply.is(Status::ZoneInvalidCmd),
                "ZONE_INVALID_CMD",
                format!("{found} for {request}"),
            )?;
        }
    }
    Ok(())
}
