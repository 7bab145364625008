//! IN, and what is unwritten: V25, V30, V31.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{SECTOR_LEN_BYTES, Status, ZoneState};

use crate::bench::{Bench, Reply, Request, Stop, Verdict, Zone, skip, status_name};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    Case::required("S14-a", "reading what is written, in every state", AT_RANDOM, |bench| {
        let zone = bench.sequential(3)?;
        for state in [ZoneState::ImplicitOpen, ZoneState::ExplicitOpen, ZoneState::Closed, ZoneState::Full] {
            let data = bench.bring(&zone, state)?;
            bench.holds(zone.start, &data)?;
        }
        Ok(())
    }),
    Case::required("S14-b", "single blocks, in any order", AT_RANDOM, single_blocks),
    Case::required(
        "S14-c",
        "reading a RDONLY zone",
        "What was written can be read from a RDONLY zone (5.2.6).",
        |bench| {
            let zone = bench.read_only_zone()?;
            let block = bench.block()?;
            let reply = bench.send(&Request::read(zone.start, block))?;
            // Where nothing is written the device may refuse (V31); what it says then is not of the zone's state.
            bench.check(
                reply.is_ok() || !matches!(reply.status, 3..=6),
                "OK, or IOERR for unwritten data",
                status_name(reply.status),
            )
        },
    ),
    Case::required("S14-d", "IN does not move the write pointer", AT_RANDOM, |bench| {
        let zone = bench.sequential(3)?;
        let data = bench.bring(&zone, ZoneState::Closed)?;
        bench.holds(zone.start, &data)?;
        bench.is(&zone, ZoneState::Closed, zone.start + sectors(&data))
    }),
    Case::ours("S14-e", "IN of single sectors where the block is larger", BELOW_BLOCK, |bench| {
        below_block(bench)?;
        blocks_of(bench, 1)
    }),
    Case::ours(
        "S14-f",
        "OUT of single sectors to a conventional zone where the block is larger",
        BELOW_BLOCK,
        |bench| {
            below_block(bench)?;
            let zone = bench.conventional()?;
            let data = bench.random.bytes(512);
            bench.ok(&Request::write(zone.start + 1, data.clone()))?;
            bench.holds(zone.start + 1, &data)
        },
    ),
    Case::required("V25-e", "IN across two sequential zones", ACROSS, |bench| {
        in_across(bench, Zone::must_be_sequential, "two sequential write required zones in a row")
    }),
    Case::required("V25-f", "IN from a sequential to a conventional zone", ACROSS, |bench| {
        in_across(bench, Zone::is_conventional, "conventional zone behind a sequential one")
    }),
    Case::ours(
        "V25-h",
        "IN from a conventional to a sequential zone",
        "The specification speaks of requests issued to sequential zones; one that begins in a conventional zone and ends in \
         a sequential one it leaves open (5.2.6.2).",
        |bench| {
            let what = "sequential zone behind a conventional one";
            let (_, second) = bench.neighbours(Zone::is_conventional, Zone::must_be_sequential, what)?;
            let block = bench.block()?;
            let sector = second.start.saturating_sub(block);
            bench.answers(&Request::read(sector, 2 * block), &[Status::ZoneInvalidCmd]).map(drop)
        },
    ),
    Case::required("V30-a", "what a RESET has taken is gone", UNWRITTEN, |bench| {
        gone_after(bench, |bench, zone| bench.prepare(&Request::reset(zone.start)).map(drop))
    }),
    Case::required("V30-b", "what a RESET_ALL has taken is gone", UNWRITTEN, |bench| {
        gone_after(bench, |bench, _| bench.prepare(&Request::reset_all()).map(drop))
    }),
    Case::required("V30-c", "what lies beyond the write pointer is gone", UNWRITTEN, |bench| {
        gone_after(bench, |bench, zone| {
            bench.prepare(&Request::reset(zone.start))?;
            let data = bench.granule()?;
            bench.put(zone.start, &data)
        })
    }),
    Case::required("V30-d", "what a FINISH has skipped is unwritten", UNWRITTEN, |bench| {
        gone_after(bench, |bench, zone| {
            bench.prepare(&Request::reset(zone.start))?;
            let data = bench.granule()?;
            bench.put(zone.start, &data)?;
            bench.prepare(&Request::finish(zone.start)).map(drop)
        })
    }),
    Case::required(
        "V31-a",
        "reading an EMPTY zone",
        "Unwritten data is a pattern, or the request fails; either way the zone stays as it is (5.2.6.2).",
        |bench| {
            let zone = bench.sequential(1)?;
            bench.bring(&zone, ZoneState::Empty)?;
            let block = bench.block()?;
            pattern_or_failure(bench, &Request::read(zone.start, block))?;
            pattern_or_failure(bench, &Request::read(zone.end().saturating_sub(block), block))?;
            bench.is(&zone, ZoneState::Empty, zone.start)
        },
    ),
    Case::required(
        "V31-b",
        "a read that begins in what is written",
        "Unwritten data is a pattern, or the request fails; what is written beside it is read as it is (5.2.6.2).",
        |bench| {
            let (reply, data) = across_write_pointer(bench)?;
            if !reply.is_ok() {
                return Ok(());
            }
            let same = reply.data.get(..data.len()) == Some(&data[..]);
            bench.check(same, "the data before the write pointer", "other data")
        },
    ),
    Case::required(
        "V31-c",
        "reading between the capacity and the zone's end",
        "All from the write pointer to the zone's last sector is unwritten: a pattern, or the request fails (5.2.6.2).",
        |bench| {
            let fits = |zone: &Zone, _| zone.capacity < zone.len;
            let zone = bench.fillable_that(1, fits, "capacity is less than its length")?;
            bench.fill(&zone, 0)?;
            let sectors = (zone.len - zone.capacity).min(bench.request_max_bytes() / SECTOR_LEN_BYTES);
            pattern_or_failure(bench, &Request::read(zone.capacity_end(), sectors))?;
            let block = bench.block()?;
            pattern_or_failure(bench, &Request::read(zone.end().saturating_sub(block), block)).map(drop)
        },
    ),
    Case::recommended(
        "V31-d",
        "reading unwritten data succeeds",
        "A pattern is the preferred answer; a failure may keep drivers from using the disk (5.2.6.2).",
        |bench| {
            let zone = bench.sequential(1)?;
            bench.bring(&zone, ZoneState::Empty)?;
            let block = bench.block()?;
            bench.ok(&Request::read(zone.start, block))?;
            let (reply, _) = across_write_pointer(bench)?;
            bench.check(reply.is_ok(), "OK", status_name(reply.status))
        },
    ),
    Case::recommended(
        "V31-e",
        "unwritten data is the same each time",
        "What fills unwritten data is a pattern of the device (5.2.6.2).",
        |bench| {
            let zone = bench.sequential(3)?;
            bench.bring(&zone, ZoneState::ImplicitOpen)?;
            let block = bench.block()?;
            let read = Request::read(zone.capacity_end().saturating_sub(block), block);
            let first = pattern_or_failure(bench, &read)?;
            let second = pattern_or_failure(bench, &read)?;
            bench.check(first == second, "the same bytes", "other bytes")
        },
    ),
    Case::ours(
        "V31-f",
        "unwritten data is zeros",
        "Which pattern fills unwritten data is the device's to choose (5.2.6.2).",
        |bench| {
            let zone = bench.sequential(3)?;
            bench.bring(&zone, ZoneState::ImplicitOpen)?;
            let block = bench.block()?;
            let reply = bench.ok(&Request::read(zone.capacity_end().saturating_sub(block), block))?;
            bench.check(reply.data.iter().all(|&byte| byte == 0), "zeros", "something else")
        },
    ),
];

const AT_RANDOM: &str = "Zones can be read at any place and in any order, in multiples of 512 bytes (5.2.6).";
const BELOW_BLOCK: &str = "`blk_size` is what suits a disk best and does not change the units of the protocol, which are 512 bytes; \
                           drivers keep to whole blocks (5.2.5).";
const ACROSS: &str = "IN from a sequential write required zone with sectors in more than one zone is answered with ZONE_INVALID_CMD (5.2.6.2).";
const UNWRITTEN: &str = "What lies between the write pointer and the zone's end counts as unwritten, also after FINISH: it is \
                         read as a pattern or not at all (5.2.6.2).";

fn below_block(bench: &mut Bench<'_>) -> Verdict {
    if bench.block()? < 2 {
        return skip("blk_size is not offered, or 512");
    }
    Ok(())
}

fn single_blocks(bench: &mut Bench<'_>) -> Verdict {
    let block = bench.block()?;
    blocks_of(bench, block)
}

/// Writes, and reads a few pieces of so many sectors in another order.
fn blocks_of(bench: &mut Bench<'_>, unit: u64) -> Verdict {
    let zone = bench.sequential(3)?;
    let data = bench.bring(&zone, ZoneState::ImplicitOpen)?;
    let count = sectors(&data) / unit;
    if count == 0 {
        return skip("two granules are less than a block");
    }
    let somewhere = bench.random.below(count);
    for index in [count - 1, 0, somewhere, count / 2] {
        let bytes = |units: u64| usize::try_from(units * unit * SECTOR_LEN_BYTES).unwrap_or(0);
        bench.holds(zone.start + index * unit, &data[bytes(index)..bytes(index + 1)])?;
    }
    Ok(())
}

fn in_across(bench: &mut Bench<'_>, second_is: fn(&Zone) -> bool, what: &str) -> Verdict {
    let (first, second) = bench.neighbours(Zone::must_be_sequential, second_is, what)?;
    bench.bring(&first, ZoneState::Empty)?;
    let block = bench.block()?;
    bench.refuses(&Request::read(second.start.saturating_sub(block), 2 * block), &[Status::ZoneInvalidCmd])
}

/// Writes two granules, takes them away, and looks whether any of the second one is still there.
fn gone_after(bench: &mut Bench<'_>, take_away: fn(&mut Bench<'_>, &Zone) -> Verdict) -> Verdict {
    let zone = bench.sequential(4)?;
    let old = bench.bring(&zone, ZoneState::ImplicitOpen)?;
    take_away(bench, &zone)?;
    let (_, second) = old.split_at(old.len() / 2);
    let read = Request::read(zone.start + sectors(second), sectors(second));
    let Some(bytes) = pattern_or_failure(bench, &read)? else { return Ok(()) };
    let left = (bytes.chunks(512).zip(second.chunks(512))).filter(|(is, was)| is == was).count();
    bench.check(left == 0, "none of the old data", format!("{left} sectors of it"))
}

/// The data of a read that may fail, if it is answered at all.
fn pattern_or_failure(bench: &mut Bench<'_>, request: &Request) -> Result<Option<Vec<u8>>, Stop> {
    let reply = bench.send(request)?;
    let known = Status::try_from(reply.status).is_ok();
    bench.check(known, "OK, or an error", status_name(reply.status))?;
    let untouched = reply.is_ok() && !reply.data.is_empty() && reply.data.iter().all(|&byte| byte == 0xee);
    bench.check(!untouched, "a pattern", "OK, and nothing was written to the buffer")?;
    Ok(reply.is_ok().then_some(reply.data))
}

/// Reads the last written granule of a zone and the one behind it. Returns what was written, too.
fn across_write_pointer(bench: &mut Bench<'_>) -> Result<(Reply, Vec<u8>), Stop> {
    let zone = bench.sequential(3)?;
    let data = bench.bring(&zone, ZoneState::ImplicitOpen)?;
    let last = data[data.len() / 2..].to_vec();
    let count = sectors(&last);
    if zone.len < 3 * count {
        return skip("no unwritten data is in the zone");
    }
    let reply = bench.send(&Request::read(zone.start + count, 2 * count))?;
    Ok((reply, last))
}

fn sectors(data: &[u8]) -> u64 {
    data.len() as u64 / SECTOR_LEN_BYTES
}
