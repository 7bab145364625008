//! What the specification leaves open: G3, G5, and requests that no driver may make.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use virtio_zbd_spec::{Features, RequestType, Status, ZoneState};

use crate::bench::{Bench, Request, Stop, Verdict, feature_names, skip, status_name};
use crate::case::Case;
use crate::link::LinkError;

pub(super) const CASES: &[Case] = &[
    Case::ours(
        "G3-a",
        "WRITE_ZEROES is not offered by a host-managed disk",
        "The specification does not say what WRITE_ZEROES does to a sequential zone (5.2.6).",
        |bench| not_offered(bench, Features::WRITE_ZEROES),
    ),
    Case::ours(
        "G3-b",
        "DISCARD is not offered by a host-managed disk",
        "Drivers may not accept DISCARD of a host-managed disk, so nothing is gained by offering it (5.2.5.1).",
        |bench| not_offered(bench, Features::DISCARD),
    ),
    Case::ours(
        "G5-a",
        "zone management of a read-only disk",
        "The specification speaks of writes; management changes zones all the same, and is answered with IOERR (5.2.6.2).",
        read_only_disk,
    ),
    Case::ours("G7-a", "a header that is too short", GOES_ON, |bench| {
        bench.disk()?;
        let mut status = [0xee];
        goes_on(bench, "8 bytes of a header", &[&[0; 8]], &mut [&mut status])
    }),
    Case::ours("G7-b", "a chain without room for a status", GOES_ON, |bench| {
        bench.disk()?;
        let header = Request::read(0, 1).header();
        goes_on(bench, "a header and nothing to write to", &[&header], &mut [])
    }),
    Case::ours("G7-c", "ZONE_APPEND with room for a status only", GOES_ON, |bench| {
        super::append::needs_append(bench)?;
        let zone = bench.required(1)?;
        bench.bring(&zone, ZoneState::Empty)?;
        bench.touch_zone(&zone);
        let data = bench.granule()?;
        let header = Request::append(zone.start, Vec::new()).header();
        let mut status = [0xee];
        goes_on(bench, "an append with one byte of in-header", &[&header, &data], &mut [&mut status])?;
        bench.check(status[0] != u8::from(Status::Ok), "no OK", "OK, and nobody knows where")
    }),
    Case::ours(
        "G7-d",
        "data of no whole number of sectors",
        "Drivers may not send it; there is nothing right that the device could do (5.2.6.1).",
        partial_sectors,
    ),
];

const GOES_ON: &str = "The specification does not say what becomes of a request that is none; the next good one is served (5.2.6).";

fn not_offered(bench: &mut Bench<'_>, feature: Features) -> Verdict {
    let disk = bench.disk()?;
    if !disk.zoned.is_some_and(|zoned| zoned.is_host_managed()) {
        return skip(format!("the zoned model is {}", disk.model_name()));
    }
    bench.config()?;
    bench.check(
        !disk.offered.contains(feature),
        format!("no {}", feature_names(feature)),
        feature_names(disk.offered),
    )
}

fn read_only_disk(bench: &mut Bench<'_>) -> Verdict {
    let (disk, _) = bench.zones()?;
    if !disk.read_only {
        return skip("the disk can be written");
    }
    let sequential = bench.survey()?.sequential.first().copied();
    let Some(zone) = sequential else { return skip("no sequential zone") };
    let before = bench.see(&zone)?;
    for request in [Request::open, Request::close, Request::finish, Request::reset, |_| Request::reset_all()]
    {
        bench.answers(&request(zone.start), &[Status::IoErr])?;
        let now = bench.see(&zone)?;
        bench.check(now == before, before.text(), now.text())?;
    }
    Ok(())
}

/// Sends a chain that is no request, then a good one.
fn goes_on(bench: &mut Bench<'_>, what: &str, readable: &[&[u8]], writable: &mut [&mut [u8]]) -> Verdict {
    match bench.send_raw(what, readable, writable) {
        Ok(_) => {}
        Err(Stop::Link(LinkError::TimedOut | LinkError::Lost(_))) => {
            bench.forget_session();
            return bench.fail("the chain back, and the next request served", "no answer any more");
        }
        Err(stop) => return Err(stop),
    }
    let reply = bench.send(&Request::op(RequestType::GetId, 0).with_room(20))?;
    bench.check(reply.is_ok(), "OK for the next request", status_name(reply.status))
}

fn partial_sectors(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    let read = Request { room: 100, ..Request::read(0, 1) };
    let mut requests = vec![read];
    if !disk.read_only {
        requests.push(Request::write(0, vec![1; 100]));
        requests.push(Request::write(0, vec![1; 513]));
    }
    for request in requests {
        let reply = bench.send(&request)?;
        let found = format!("{} for {request}", status_name(reply.status));
        bench.check(!reply.is_ok() && Status::try_from(reply.status).is_ok(), "an error", found)?;
    }
    Ok(())
}
