//! What a zone report says, and how it is asked for: R7, G4, and the parts of V5 and V6 that only a report shows.

use alloc::format;
use alloc::vec::Vec;

use virtio_zbd_spec::{ReportHeader, Status, ZoneState};
use zerocopy::FromBytes;

use crate::bench::{Bench, Disk, Fault, Reply, Request, Seen, Stop, Verdict, Zone, Zoned, skip, status_name};
use crate::case::Case;

pub(super) const CASES: &[Case] = &[
    Case::required(
        "V5-b",
        "zone types are those of the model",
        "A host-managed disk has sequential write required zones, a host-aware one sequential write preferred zones \
         (5.2.4).",
        |bench| bench.report_is_without(Fault::TypeOfModel, "zone types of the disk's model"),
    ),
    Case::required(
        "V6-b",
        "zones follow each other at zone_sectors",
        "All zones have the size `zone_sectors`; the last one may be smaller. So each begins at a multiple of it (5.2.5.2).",
        |bench| bench.report_is_without(Fault::Place, "each zone where the one before it ends"),
    ),
    Case::required(
        "V6-c",
        "the last zone's capacity is inside the disk",
        "The last zone is what is left of the disk's capacity; it can't be written beyond that (5.2.5.2).",
        |bench| bench.report_is_without(Fault::LastCapacity, "a capacity that ends with the disk"),
    ),
    Case::required("S7-a", "zone types are known", "A zone is CONV, SWR or SWP (5.2.6).", |bench| {
        bench.report_is_without(Fault::Type, "z_type 1, 2 or 3")
    }),
    Case::required("S7-b", "zone states are known", "A zone's state is one of the eight (5.2.6).", |bench| {
        bench.report_is_without(Fault::State, "z_state 0 to 4 or 13 to 15")
    }),
    Case::required(
        "S7-c",
        "conventional zones are NOT_WP, others are not",
        "Conventional zones are always reported as NOT_WP; sequential ones never come into that state (5.2.6).",
        |bench| {
            bench.report_is_without(Fault::StateOfType, "NOT_WP for conventional zones and for no others")
        },
    ),
    Case::required(
        "S8-a",
        "the report goes to the disk's end",
        "A report tells of zones from the one that is asked for; all can be asked for: (capacity + zone_sectors - 1) / \
         zone_sectors of them (5.2.5.2, 5.2.6).",
        |bench| bench.report_is_without(Fault::Incomplete, "every zone of the disk"),
    ),
    Case::required(
        "S8-b",
        "nr_zones counts whole descriptors",
        "`nr_zones` is the number of descriptors that were transferred completely (5.2.6).",
        half_a_descriptor_does_not_count,
    ),
    Case::ours(
        "S8-c",
        "room for the header only",
        "The header is followed by zero or more descriptors, so nr_zones is 0 where there is room for none; whether such a report \
         is answered is not said (5.2.6).",
        room_for_the_header_only,
    ),
    Case::required(
        "S8-d",
        "no zones behind the last one",
        "`nr_zones` counts what was transferred, not what there was room for (5.2.6).",
        nothing_behind_the_last_zone,
    ),
    Case::required(
        "S8-e",
        "one zone at a time says the same as many",
        "A report begins with the zone that was asked for, and goes on from there (5.2.6).",
        one_at_a_time,
    ),
    Case::ours(
        "S8-f",
        "reserved bytes of descriptors are 0",
        "The specification names them reserved and says nothing more (5.2.6).",
        |bench| bench.report_is_without(Fault::Reserved, "38 bytes of 0"),
    ),
    Case::ours(
        "S8-g",
        "reserved bytes of the header are 0",
        "The specification names them reserved and says nothing more (5.2.6).",
        reserved_header_bytes,
    ),
    Case::required(
        "S9-a",
        "EMPTY: the write pointer is at the zone's start",
        "An empty zone's write pointer is the zone's first sector (5.2.6).",
        |bench| {
            bench.report_is_without(Fault::WritePointer, "write pointers that their states allow")?;
            write_pointer(bench, ZoneState::Empty)
        },
    ),
    Case::required(
        "S9-b",
        "IOPEN: the write pointer is where the next write goes",
        "`z_wp` is the sector where the next write should be issued (5.2.6).",
        |bench| write_pointer(bench, ZoneState::ImplicitOpen),
    ),
    Case::required(
        "S9-c",
        "EOPEN: the write pointer is where the next write goes",
        "`z_wp` is the sector where the next write should be issued (5.2.6).",
        |bench| write_pointer(bench, ZoneState::ExplicitOpen),
    ),
    Case::required(
        "S9-d",
        "CLOSED: the write pointer is where the next write goes",
        "`z_wp` is the sector where the next write should be issued (5.2.6).",
        |bench| write_pointer(bench, ZoneState::Closed),
    ),
    Case::ours("S9-e", "FULL: the write pointer is the zone's end", NO_WRITE_POINTER, |bench| {
        let zone = bench.sequential(3)?;
        bench.bring(&zone, ZoneState::Full)?;
        points_to_the_end(bench, &zone)
    }),
    Case::ours(
        "S9-f",
        "RDONLY and OFFLINE: the write pointer is the zone's end",
        NO_WRITE_POINTER,
        |bench| {
            bench.zones()?;
            let survey = bench.survey()?;
            let worn: Vec<Zone> = survey.read_only.iter().chain(&survey.offline).copied().collect();
            if worn.is_empty() {
                return skip("no zone is read-only or offline");
            }
            worn.iter().try_for_each(|zone| points_to_the_end(bench, zone))
        },
    ),
    Case::required(
        "S10-a",
        "capacities are inside their zones",
        "`z_cap` is no more than `zone_sectors`; a zone that can be written has some (5.2.6).",
        |bench| bench.report_is_without(Fault::Capacity, "a capacity of 1 to zone_sectors"),
    ),
    Case::required(
        "S10-b",
        "the capacity is the same in all states",
        "`z_cap` is what can be written when the zone is empty, also while it is not (5.2.6).",
        capacity_in_all_states,
    ),
    Case::required(
        "R7-a",
        "a report from inside a zone",
        "The report begins with the zone that holds `sector`, which may be any sector of it (5.2.6, 5.2.6.1).",
        |bench| {
            begins_with_the_zone_of(bench, |disk, zoned, random| {
                let zone = random % zoned.zone_count(disk);
                zone * zoned.zone_sectors + 1 % zoned.zone_len(disk, zone * zoned.zone_sectors)
            })
        },
    ),
    Case::required(
        "R7-b",
        "a report from the last sector of a zone",
        "The report begins with the zone that holds `sector`, which may be any sector of it (5.2.6, 5.2.6.1).",
        |bench| begins_with_the_zone_of(bench, |_, zoned, _| zoned.zone_sectors - 1),
    ),
    Case::required(
        "R7-c",
        "a report from the last sector of the disk",
        "The report begins with the zone that holds `sector`, which may be any sector of it (5.2.6, 5.2.6.1).",
        |bench| begins_with_the_zone_of(bench, |disk, _, _| disk.capacity_sectors - 1),
    ),
    Case::ours(
        "G4-a",
        "a report from the first sector past the disk",
        "The specification does not say; ZONE_INVALID_CMD is for all other errors that concern zones (5.2.6).",
        |bench| past_the_end(bench, |disk| disk.capacity_sectors),
    ),
    Case::ours(
        "G4-b",
        "a report from far past the disk",
        "The specification does not say; ZONE_INVALID_CMD is for all other errors that concern zones (5.2.6).",
        |bench| past_the_end(bench, |_| u64::MAX),
    ),
    Case::ours(
        "G4-c",
        "a report without room for its header",
        "The specification does not say; there is nothing right that could be told in less than 64 bytes (5.2.6).",
        |bench| {
            bench.zones()?;
            bench.answers(&Request::report(0, 63), &[Status::ZoneInvalidCmd]).map(drop)
        },
    ),
];

const NO_WRITE_POINTER: &str = "`z_wp` is not valid in FULL, RDONLY and OFFLINE zones: what a device shows there is its own affair (5.2.6).";

/// `nr_zones` of a report that was answered with OK.
fn nr_zones(bench: &Bench<'_>, reply: &Reply) -> Result<u64, Stop> {
    bench.check(reply.is_ok(), "OK", status_name(reply.status))?;
    ReportHeader::read_from_prefix(&reply.data)
        .map_or_else(|_| bench.fail("a header", "none"), |(header, _)| Ok(header.nr_zones.get()))
}

/// Reports with `room` bytes, and checks how many zones are said to be in it.
fn reports(bench: &mut Bench<'_>, sector: u64, room: usize, zones: u64) -> Result<Reply, Stop> {
    let request = Request::report(sector, room);
    let reply = bench.send(&request)?;
    let found = nr_zones(bench, &reply)?;
    bench.check(found == zones, format!("nr_zones {zones}"), format!("{found}"))?;
    Ok(reply)
}

fn half_a_descriptor_does_not_count(bench: &mut Bench<'_>) -> Verdict {
    let (disk, zoned) = bench.zones()?;
    let count = zoned.zone_count(&disk).min(4);
    if count < 2 {
        return skip("the disk has one zone");
    }
    // Room for all but one, and for a part of that one.
    let whole = 64 + len_bytes_of(count - 1);
    for part in [1, 32, 63] {
        reports(bench, 0, whole + part, count - 1)?;
    }
    reports(bench, 0, whole, count - 1).map(drop)
}

fn room_for_the_header_only(bench: &mut Bench<'_>) -> Verdict {
    bench.zones()?;
    reports(bench, 0, 64, 0)?;
    reports(bench, 0, 127, 0).map(drop)
}

fn nothing_behind_the_last_zone(bench: &mut Bench<'_>) -> Verdict {
    let (disk, zoned) = bench.zones()?;
    let count = zoned.zone_count(&disk);
    let last = count.min(3);
    reports(bench, (count - last) * zoned.zone_sectors, 64 * 9, last).map(drop)
}

fn one_at_a_time(bench: &mut Bench<'_>) -> Verdict {
    let (disk, zoned) = bench.zones()?;
    let count = zoned.zone_count(&disk).min(16);
    let (_, many) = bench.report(0, 64 + len_bytes_of(count))?;
    for (index, together) in (0..).zip(&many) {
        let (_, one) = bench.report(index * zoned.zone_sectors, 128)?;
        let same = one.first().is_some_and(|alone| Seen::new(alone) == Seen::new(together));
        let found = one.first().map_or("nothing".into(), |zone| format!("{:?}", Seen::new(zone)));
        bench.check(same, format!("{:?} as in the long report", Seen::new(together)), found)?;
    }
    bench.check(many.len() as u64 == count, format!("{count} zones in one report"), format!("{}", many.len()))
}

fn reserved_header_bytes(bench: &mut Bench<'_>) -> Verdict {
    bench.zones()?;
    let (reply, _) = bench.report(0, 128)?;
    let reserved: Vec<u8> = reply.data.iter().copied().skip(8).take(56).collect();
    bench.check(reserved.iter().all(|&byte| byte == 0), "56 bytes of 0", format!("{reserved:?}"))
}

fn write_pointer(bench: &mut Bench<'_>, state: ZoneState) -> Verdict {
    let zone = bench.sequential(3)?;
    // From somewhere else, so that an empty zone has been written before.
    bench.bring(&zone, ZoneState::ImplicitOpen)?;
    let data = bench.bring(&zone, state)?;
    bench.is(&zone, state, zone.start + sectors_of(&data))
}

fn points_to_the_end(bench: &mut Bench<'_>, zone: &Zone) -> Verdict {
    let seen = bench.see(zone)?;
    let found = format!("z_wp {} of {} at sector {}", seen.wp, seen.state_name(), zone.start);
    bench.check(seen.wp == zone.end(), format!("z_wp {}", zone.end()), found)
}

fn capacity_in_all_states(bench: &mut Bench<'_>) -> Verdict {
    let zone = bench.sequential(3)?;
    for state in [ZoneState::ImplicitOpen, ZoneState::ExplicitOpen, ZoneState::Closed, ZoneState::Full] {
        bench.bring(&zone, state)?;
        let seen = bench.see(&zone)?;
        let expected = format!("z_cap {} in {}", zone.capacity, seen.state_name());
        bench.check(seen.capacity == zone.capacity, expected, format!("{}", seen.capacity))?;
    }
    Ok(())
}

fn begins_with_the_zone_of(bench: &mut Bench<'_>, choose: fn(&Disk, &Zoned, u64) -> u64) -> Verdict {
    let (disk, zoned) = bench.zones()?;
    let sector = choose(&disk, &zoned, bench.random.next()).min(disk.capacity_sectors - 1);
    if sector.is_multiple_of(zoned.zone_sectors) {
        return skip("the zone has one sector");
    }
    let reply = bench.send(&Request::report(sector, 128))?;
    let zones = nr_zones(bench, &reply)?;
    let start = reply.data.get(72..80).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let expected = sector - sector % zoned.zone_sectors;
    let found = format!("{zones} zones, the first at sector {start:?}");
    bench.check(zones == 1 && start == Some(expected), format!("one zone, at sector {expected}"), found)
}

fn past_the_end(bench: &mut Bench<'_>, choose: fn(&Disk) -> u64) -> Verdict {
    let (disk, _) = bench.zones()?;
    bench.answers(&Request::report(choose(&disk), 128), &[Status::ZoneInvalidCmd]).map(drop)
}

fn len_bytes_of(zones: u64) -> usize {
    usize::try_from(zones).unwrap_or(0) * 64
}

fn sectors_of(data: &[u8]) -> u64 {
    data.len() as u64 / 512
}
