//! How a request lies in its descriptors: anywhere (2.7.4.1), and what comes back in them.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{SECTOR_LEN_BYTES, ZoneState};

use super::append::needs_append;
use crate::bench::{Bench, Reply, Request, Stop, Verdict, skip, status_name};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    framed("S15-a", "OUT: the header cut in two", |bench| out(bench, |_| cuts([3, 16]))),
    framed("S15-b", "OUT: the header byte by byte", |bench| out(bench, |_| (1..=16).collect())),
    framed("S15-c", "OUT: header and data in one descriptor", |bench| out(bench, |_| cuts([]))),
    framed("S15-d", "OUT: header and some data in one descriptor", |bench| {
        out(bench, |len| cuts([17, 16 + len / 2 + 1]))
    }),
    framed("S15-e", "OUT: the data cut at odd places", |bench| {
        out(bench, |len| cuts([16, 17, 16 + len / 2, 15 + len]))
    }),
    framed("S15-f", "IN: data and status in one descriptor", |bench| read(bench, |_| cuts([]))),
    framed("S15-g", "IN: the data cut at odd places", |bench| {
        read(bench, |len| cuts([1, len / 2 + 1, len - 1, len]))
    }),
    framed("S15-h", "IN: some data and status in one descriptor", |bench| read(bench, |len| cuts([len - 1]))),
    framed("S15-i", "ZONE_APPEND: header and data in one descriptor", |bench| {
        append(bench, |_| cuts([]), || cuts([]))
    }),
    framed("S15-j", "ZONE_APPEND: sector and status apart", |bench| {
        append(bench, |_| cuts([16]), || cuts([8]))
    }),
    framed("S15-k", "ZONE_APPEND: the in-header byte by byte", |bench| {
        append(bench, |_| cuts([16]), || (1..=8).collect())
    }),
    framed("S15-l", "ZONE_APPEND: the in-header cut inside the sector", |bench| {
        append(bench, |len| cuts([5, 16, 16 + len - 3]), || cuts([3]))
    }),
    framed("S15-m", "ZONE_REPORT: report and status in one descriptor", |bench| report(bench, |_| cuts([]))),
    framed("S15-n", "ZONE_REPORT: the report cut at odd places", |bench| {
        report(bench, |len| cuts([7, 64, 64 + 25, len - 1]))
    }),
    framed("S15-o", "ZONE_OPEN: the header byte by byte", |bench| {
        let zone = bench.sequential(1)?;
        bench.bring(&zone, ZoneState::Empty)?;
        fits(bench, 17)?;
        let reply = bench.send_cut(&Request::open(zone.start), &(1..=16).collect::<Vec<_>>(), &[])?;
        bench.check(reply.is_ok(), "OK", status_name(reply.status))?;
        bench.is(&zone, ZoneState::ExplicitOpen, zone.start)
    }),
    Case::required(
        "S16-a",
        "the status is the last byte of a read",
        "The status is the last byte that the device may write, behind the data (5.2.6).",
        |bench| {
            let (zone, data) = readable(bench)?;
            let reply = bench.send(&Request::read(zone, sectors(&data)))?;
            bench.check(reply.is_ok(), "OK in the last byte", status_name(reply.status))?;
            bench.check(reply.data == data, "the data before it", "other data")
        },
    ),
    Case::required(
        "S16-b",
        "an append's status follows its sector",
        "The in-header of ZONE_APPEND is 8 bytes of `append_sector`, then the status, without padding (5.2.6).",
        |bench| {
            needs_append(bench)?;
            let zone = bench.required(2)?;
            bench.bring(&zone, ZoneState::Empty)?;
            let data = bench.granule()?;
            let reply = bench.send_cut(&Request::append(zone.start, data), &[16], &[])?;
            bench.check(reply.is_ok(), "OK in the ninth byte", status_name(reply.status))?;
            let found = format!("{}", reply.append_sector);
            bench.check(
                reply.append_sector == zone.start,
                format!("{} in the first eight", zone.start),
                found,
            )
        },
    ),
    Case::required(
        "S16-c",
        "the used length is no more than there is room for",
        "The used length is how many bytes were written to the chain (2.7.8.2).",
        used_length,
    ),
];

const fn framed(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "The device makes no assumption about how a request is laid out in descriptors (2.7.4.1).";
    Case::required(id, title, asks, run)
}

/// Places to cut at, in ascending order.
fn cuts<const N: usize>(at: [usize; N]) -> Vec<usize> {
    at.into()
}

/// Skips if a queue or a request can't have so many descriptors.
fn fits(bench: &mut Bench<'_>, descriptors: usize) -> Verdict {
    let disk = bench.disk()?;
    let max = u64::from(bench.queue_size()).min(disk.segments_max().saturating_add(2));
    if descriptors as u64 > max {
        return skip(format!("{descriptors} descriptors would be needed, there can be {max}"));
    }
    Ok(())
}

/// Writes a granule with header and data cut as told.
fn out(bench: &mut Bench<'_>, cuts: fn(usize) -> Vec<usize>) -> Verdict {
    let (zone, data) = writable(bench)?;
    let cuts = cuts(data.len());
    fits(bench, cuts.len() + 2)?;
    let reply = bench.send_cut(&Request::write(zone, data.clone()), &cuts, &[])?;
    bench.check(reply.is_ok(), "OK", status_name(reply.status))?;
    bench.holds(zone, &data)
}

/// Reads two granules with the room cut as told.
fn read(bench: &mut Bench<'_>, cuts: fn(usize) -> Vec<usize>) -> Verdict {
    let (sector, data) = readable(bench)?;
    let cuts = cuts(data.len());
    fits(bench, cuts.len() + 2)?;
    let reply = bench.send_cut(&Request::read(sector, sectors(&data)), &[16], &cuts)?;
    bench.check(reply.is_ok(), "OK", status_name(reply.status))?;
    bench.check(reply.data == data, "the data that was written", "other data")
}

fn append(bench: &mut Bench<'_>, readable: fn(usize) -> Vec<usize>, writable: fn() -> Vec<usize>) -> Verdict {
    needs_append(bench)?;
    let zone = bench.required(4)?;
    let wp = zone.start + sectors(&bench.bring(&zone, ZoneState::ImplicitOpen)?);
    let data = bench.granule()?;
    let (readable, writable) = (readable(data.len()), writable());
    fits(bench, readable.len() + writable.len() + 2)?;
    let reply = bench.send_cut(&Request::append(zone.start, data.clone()), &readable, &writable)?;
    bench.check(reply.is_ok(), "OK", status_name(reply.status))?;
    let found = format!("append_sector {}", reply.append_sector);
    bench.check(reply.append_sector == wp, format!("append_sector {wp}"), found)?;
    bench.holds(wp, &data)
}

fn report(bench: &mut Bench<'_>, cuts: fn(usize) -> Vec<usize>) -> Verdict {
    bench.zones()?;
    let request = Request::report(0, 128);
    let cuts = cuts(request.room);
    fits(bench, cuts.len() + 2)?;
    let whole = bench.ok(&request)?;
    let reply = bench.send_cut(&request, &[16], &cuts)?;
    bench.check(reply.is_ok(), "OK", status_name(reply.status))?;
    bench.check(reply.data == whole.data, "the same report as in whole descriptors", "another one")
}

/// A place that can be written, and data for it: in a conventional or plain disk anywhere, else at a write pointer.
fn writable(bench: &mut Bench<'_>) -> Result<(u64, Vec<u8>), Stop> {
    let disk = bench.disk()?;
    if disk.read_only {
        return skip("the disk is read-only");
    }
    if disk.zoned.is_none_or(|zoned| !zoned.has_zones()) {
        let data = bench.blocks(8)?;
        return Ok((0, data));
    }
    let zone = match bench.sequential(1) {
        Err(Stop::Skip(_)) => return Ok((bench.conventional()?.start, bench.blocks(1)?)),
        zone => zone?,
    };
    bench.bring(&zone, ZoneState::Empty)?;
    Ok((zone.start, bench.granule()?))
}

/// Data on the disk, and where.
fn readable(bench: &mut Bench<'_>) -> Result<(u64, Vec<u8>), Stop> {
    let (sector, data) = writable(bench)?;
    bench.prepare(&Request::write(sector, data.clone()))?;
    Ok((sector, data))
}

fn used_length(bench: &mut Bench<'_>) -> Verdict {
    let within = |bench: &Bench<'_>, request: &Request, reply: &Reply| {
        let room = request.room + request.in_header_len_bytes();
        let found = format!("{} for {request}", reply.used_len);
        bench.check(reply.used_len as usize <= room, format!("at most {room}"), found)
    };
    let (sector, data) = readable(bench)?;
    let read = Request::read(sector, sectors(&data));
    let reply = bench.ok(&read)?;
    within(bench, &read, &reply)?;
    if bench.disk()?.zoned.is_some_and(|zoned| zoned.has_zones()) {
        let report = Request::report(0, 64 * 5);
        let reply = bench.ok(&report)?;
        within(bench, &report, &reply)?;
        let reset = Request::reset_all();
        let reply = bench.ok(&reset)?;
        within(bench, &reset, &reply)?;
    }
    Ok(())
}

fn sectors(data: &[u8]) -> u64 {
    data.len() as u64 / SECTOR_LEN_BYTES
}
