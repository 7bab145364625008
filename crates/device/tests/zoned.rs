//! The rules V13 to V29 and G1 to G6, each through requests: what is answered, what moves, and that a refusal leaves no trace.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::sync::Arc;

use common::{Backing, How, Probe, Rig, SECTOR, SHAPE, Zone, blocks, on_every_store, sectors, start_of};
use virtio_zbd_spec::{RequestType, Status, ZoneState, ZoneType};
use virtio_zbd_testkit::{Request, UNTOUCHED};
use virtio_zbd_zones::{Condition, GeometryConfig, ZoneState as StoredState};

on_every_store!(
    a_new_disk_is_empty,
    v13_conventional_zones_are_not_managed,
    r8_management_names_a_zone_by_its_first_sector,
    v15_open,
    v15_open_without_resources,
    v16_g2_close,
    v17_g1_finish,
    g1_finish_without_resources,
    v18_reset,
    v19_reset_all,
    v20_a_write_opens_its_zone,
    v20_a_write_without_resources,
    v27_an_implicitly_open_zone_makes_room,
    no_limit_is_no_limit,
    g3_ranges_are_not_zeroed_on_a_zoned_disk,
    g6_a_restart_closes_open_zones,
);

use ZoneState::{
    Closed as CLOSED, Empty as EMPTY, ExplicitOpen as EOPEN, Full as FULL, ImplicitOpen as IOPEN,
    NotWp as NOT_WP, Offline as OFFLINE, ReadOnly as RDONLY,
};

/// A block, in sectors.
const BLOCK: u64 = 8;
/// Where the write pointer of a full zone is reported: at the zone's end.
const END: u64 = 128;

fn rig(on: Backing) -> Rig {
    Rig::zoned(on, SHAPE)
}

/// The requests that manage one zone.
fn management(sector: u64) -> [Request; 4] {
    [
        Request::zone_open(sector),
        Request::zone_close(sector),
        Request::zone_finish(sector),
        Request::zone_reset(sector),
    ]
}

/// All conditions that a driver can bring a zone into, with or without data.
const CONDITIONS: [(ZoneState, bool); 7] = [
    (EMPTY, false),
    (IOPEN, true),
    (EOPEN, false),
    (EOPEN, true),
    (CLOSED, true),
    (FULL, false),
    (FULL, true),
];

/// What one request does to a zone in each of [`CONDITIONS`]: the condition and write pointer after it, or the refusal.
#[track_caller]
fn transitions(on: Backing, request: fn(u64) -> Request, after: [Result<Zone, Status>; 7]) {
    for ((from, written), after) in CONDITIONS.into_iter().zip(after) {
        for zone in [2, 7] {
            let mut rig = rig(on);
            rig.bring(zone, from, written);
            // A neighbour that must not be touched.
            rig.bring(4, IOPEN, true);
            let before = rig.state();
            match after {
                Ok(expected) => {
                    rig.accept(request(start_of(zone)));
                    assert_eq!(rig.zone(zone), expected, "zone {zone} from {from:?}, written: {written}");
                }
                Err(status) => rig.refuse(request(start_of(zone)), status),
            }
            let mut now = rig.state();
            let at = usize::try_from(zone).unwrap();
            now.zones[at] = before.zones[at];
            now.open_and_active = before.open_and_active;
            let bytes = at * 128 * SECTOR..(at + 1) * 128 * SECTOR;
            if rig.zone(zone).0 == EMPTY {
                assert!(
                    now.bytes[bytes.clone()].iter().all(|&byte| byte == 0),
                    "an empty zone's data is gone"
                );
                now.bytes[bytes.clone()].copy_from_slice(&before.bytes[bytes]);
            }
            before.assert_same(&now);
        }
    }
}

fn a_new_disk_is_empty(on: Backing) {
    let mut rig = rig(on);
    let state = rig.state();
    assert_eq!(state.zones.len(), 9);
    for (i, zone) in (0..).zip(&state.zones) {
        let conventional = i < 2;
        let (len, capacity) = match i {
            0..2 => (128, 128),
            8 => (64, 64),
            _ => (128, 96),
        };
        assert_eq!((zone.z_start.get(), zone.z_cap.get()), (start_of(i), capacity), "zone {i}");
        let kind = if conventional { ZoneType::Conventional } else { ZoneType::SequentialRequired };
        assert_eq!(zone.z_type, kind as u8, "zone {i}");
        let expected = if conventional { Zone(NOT_WP, len) } else { Zone(EMPTY, 0) };
        assert_eq!(Zone::new(zone), expected, "zone {i}");
        assert_eq!(zone.reserved, [0; 38], "V11");
    }
    assert!(state.bytes.iter().all(|&byte| byte == 0));
    assert_eq!(state.open_and_active, (0, 0));
}

fn v13_conventional_zones_are_not_managed(on: Backing) {
    let mut rig = rig(on);
    rig.accept(Request::write(0, &sectors(1, 256)));
    for request in [start_of(0), start_of(1)].into_iter().flat_map(management) {
        rig.refuse(request, Status::ZoneInvalidCmd);
    }
}

fn r8_management_names_a_zone_by_its_first_sector(on: Backing) {
    let mut rig = rig(on);
    rig.bring(2, IOPEN, true);
    let end = SHAPE.capacity_sectors;
    for sector in
        [start_of(2) + 1, start_of(2) + 8, start_of(3) - 1, end - 1, end, end + 64, 1 << 40, u64::MAX]
    {
        for request in management(sector) {
            rig.refuse(request, Status::ZoneInvalidCmd);
        }
    }
}

fn v15_open(on: Backing) {
    let refused = Err(Status::ZoneInvalidCmd);
    let written = Ok(Zone(EOPEN, BLOCK));
    let unwritten = Ok(Zone(EOPEN, 0));
    transitions(on, Request::zone_open, [unwritten, written, unwritten, written, written, refused, refused]);
}

fn v15_open_without_resources(on: Backing) {
    let mut rig = rig(on);
    for zone in [2, 3, 4] {
        rig.bring(zone, EOPEN, true);
    }
    // Three of three are open, three of four active.
    rig.refuse(Request::zone_open(start_of(5)), Status::ZoneOpenResource);
    rig.accept(Request::zone_close(start_of(4)));
    rig.bring(5, EOPEN, true);
    // Four of four are active, three of them open: with both exceeded, ACTIVE it is.
    assert_eq!(rig.disk.open_and_active(), (3, 4));
    rig.refuse(Request::zone_open(start_of(6)), Status::ZoneActiveResource);
    // One that is active already lacks an open resource only.
    rig.refuse(Request::zone_open(start_of(4)), Status::ZoneOpenResource);
    rig.accept(Request::zone_close(start_of(5)));
    rig.refuse(Request::zone_open(start_of(6)), Status::ZoneActiveResource);
    rig.accept(Request::zone_open(start_of(4)));
    assert_eq!((rig.zone(4), rig.disk.open_and_active()), (Zone(EOPEN, BLOCK), (3, 4)));
    // Opening an open one takes nothing.
    rig.accept(Request::zone_open(start_of(2)));
    rig.accept(Request::zone_reset(start_of(5)));
    rig.accept(Request::zone_finish(start_of(4)));
    assert_eq!(rig.disk.open_and_active(), (2, 2));
    rig.accept(Request::zone_open(start_of(6)));
    assert_eq!((rig.zone(6), rig.disk.open_and_active()), (Zone(EOPEN, 0), (3, 3)));
}

fn v16_g2_close(on: Backing) {
    let refused = Err(Status::ZoneInvalidCmd);
    let closed = Ok(Zone(CLOSED, BLOCK));
    transitions(
        on,
        Request::zone_close,
        [refused, closed, Ok(Zone(EMPTY, 0)), closed, closed, refused, refused],
    );
}

fn v17_g1_finish(on: Backing) {
    transitions(on, Request::zone_finish, [Ok(Zone(FULL, END)); 7]);
    // The runt's end is nearer.
    let mut rig = rig(on);
    rig.accept(Request::zone_finish(start_of(8)));
    assert_eq!(rig.zone(8), Zone(FULL, 64));
}

fn g1_finish_without_resources(on: Backing) {
    let mut rig = rig(on);
    for zone in [2, 3, 4] {
        rig.bring(zone, EOPEN, true);
    }
    rig.refuse(Request::zone_finish(start_of(5)), Status::ZoneOpenResource);
    rig.accept(Request::zone_close(start_of(4)));
    rig.bring(5, EOPEN, true);
    rig.refuse(Request::zone_finish(start_of(6)), Status::ZoneActiveResource);
    rig.refuse(Request::zone_finish(start_of(4)), Status::ZoneOpenResource);
    // An open one and a full one need nothing.
    rig.accept(Request::zone_finish(start_of(2)));
    rig.accept(Request::zone_finish(start_of(2)));
    assert_eq!((rig.zone(2), rig.disk.open_and_active()), (Zone(FULL, END), (2, 3)));
    rig.accept(Request::zone_finish(start_of(4)));
    rig.accept(Request::zone_finish(start_of(6)));
    assert_eq!(rig.disk.open_and_active(), (2, 2));
}

fn v18_reset(on: Backing) {
    transitions(on, Request::zone_reset, [Ok(Zone(EMPTY, 0)); 7]);
    // And again from the start.
    let mut rig = rig(on);
    for tag in 0..5 {
        rig.accept(Request::write(start_of(3), &blocks(tag, 12)));
        assert_eq!(rig.zone(3), Zone(FULL, END));
        assert_eq!(rig.read(start_of(3), 96), blocks(tag, 12));
        rig.accept(Request::zone_reset(start_of(3)));
        assert_eq!((rig.zone(3), rig.disk.open_and_active()), (Zone(EMPTY, 0), (0, 0)));
    }
}

fn v19_reset_all(on: Backing) {
    // The sector has no meaning here.
    for sector in [0, 1, start_of(3), u64::MAX] {
        let mut rig = rig(on);
        let conventional = sectors(1, 256);
        rig.accept(Request::write(0, &conventional));
        rig.accept(Request::write(start_of(8), &blocks(8, 8)));
        rig.bring(5, FULL, true);
        rig.bring(4, CLOSED, true);
        rig.bring(2, IOPEN, true);
        rig.bring(3, EOPEN, true);
        rig.bring(6, EOPEN, false);
        assert_eq!((rig.zone(8), rig.disk.open_and_active()), (Zone(FULL, 64), (3, 4)));
        rig.accept(Request::raw(RequestType::ZoneResetAll.into(), sector, &[], 0));
        let state = rig.state();
        for zone in 0..9 {
            let expected = if zone < 2 { Zone(NOT_WP, END) } else { Zone(EMPTY, 0) };
            assert_eq!(state.zone(zone), expected, "zone {zone}");
        }
        assert_eq!(state.open_and_active, (0, 0));
        assert_eq!(state.bytes[..256 * SECTOR], conventional);
        assert!(state.bytes[256 * SECTOR..].iter().all(|&byte| byte == 0));
        // Once more, with nothing to do.
        rig.accept(Request::zone_reset_all());
        state.assert_same(&rig.state());
    }
}

fn v20_a_write_opens_its_zone(on: Backing) {
    let append: fn(u64) -> Request = |start| Request::zone_append(start, &blocks(9, 1));
    let first: fn(u64) -> Request = |start| Request::write(start, &blocks(9, 1));
    let second: fn(u64) -> Request = |start| Request::write(start + BLOCK, &blocks(9, 1));
    for (from, written, to) in [
        (EMPTY, false, IOPEN),
        (CLOSED, true, IOPEN),
        (IOPEN, true, IOPEN),
        (EOPEN, false, EOPEN),
        (EOPEN, true, EOPEN),
    ] {
        let write = if written { second } else { first };
        for request in [append, write] {
            let mut rig = rig(on);
            rig.bring(5, from, written);
            rig.accept(request(start_of(5)));
            let wp = BLOCK * (1 + u64::from(written));
            assert_eq!(rig.zone(5), Zone(to, wp), "from {from:?}");
            assert_eq!(rig.disk.open_and_active(), (1, 1));
            assert_eq!(rig.read(start_of(5) + wp - BLOCK, 8), blocks(9, 1));
        }
    }
}

fn v20_a_write_without_resources(on: Backing) {
    let mut rig = rig(on);
    for zone in [2, 3, 4] {
        rig.bring(zone, EOPEN, true);
    }
    rig.refuse(Request::write(start_of(5), &blocks(9, 1)), Status::ZoneOpenResource);
    rig.refuse(Request::zone_append(start_of(5), &blocks(9, 1)), Status::ZoneOpenResource);
    rig.accept(Request::zone_close(start_of(4)));
    rig.bring(5, EOPEN, true);
    rig.refuse(Request::write(start_of(6), &blocks(9, 1)), Status::ZoneActiveResource);
    rig.refuse(Request::zone_append(start_of(6), &blocks(9, 1)), Status::ZoneActiveResource);
    rig.refuse(Request::write(start_of(4) + BLOCK, &blocks(9, 1)), Status::ZoneOpenResource);
    rig.refuse(Request::zone_append(start_of(4), &blocks(9, 1)), Status::ZoneOpenResource);
    // What is wrong for another reason is said to be so.
    rig.refuse(Request::write(start_of(6) + BLOCK, &blocks(9, 1)), Status::ZoneUnalignedWp);
    rig.refuse(Request::write(start_of(6), &blocks(9, 13)), Status::ZoneInvalidCmd);
    // Open zones and conventional ones are written as ever.
    rig.accept(Request::write(start_of(2) + BLOCK, &blocks(9, 1)));
    rig.accept(Request::write(0, &blocks(9, 1)));
}

fn v27_an_implicitly_open_zone_makes_room(on: Backing) {
    let mut rig = rig(on);
    for zone in [2, 3, 4, 5] {
        rig.bring(zone, IOPEN, true);
    }
    // The one that was opened first is closed; nothing of it is lost.
    assert_eq!((rig.zone(2), rig.disk.open_and_active()), (Zone(CLOSED, BLOCK), (3, 4)));
    assert_eq!(rig.read(start_of(2), 8), blocks(2, 1));
    rig.refuse(Request::write(start_of(6), &blocks(6, 1)), Status::ZoneActiveResource);
    // It comes back by a write, and another one goes.
    rig.accept(Request::write(start_of(2) + BLOCK, &blocks(22, 1)));
    assert_eq!((rig.zone(2), rig.zone(3)), (Zone(IOPEN, 16), Zone(CLOSED, BLOCK)));
    // OPEN makes room in the same way, FINISH of a closed zone too.
    rig.accept(Request::zone_open(start_of(3)));
    assert_eq!((rig.zone(3), rig.zone(4)), (Zone(EOPEN, BLOCK), Zone(CLOSED, BLOCK)));
    rig.accept(Request::zone_finish(start_of(4)));
    assert_eq!((rig.zone(4), rig.zone(5)), (Zone(FULL, END), Zone(CLOSED, BLOCK)));
    // An explicitly open zone is never closed by the device.
    rig.accept(Request::zone_open(start_of(2)));
    rig.accept(Request::zone_open(start_of(5)));
    let open = [Zone(EOPEN, 16), Zone(EOPEN, BLOCK), Zone(EOPEN, BLOCK)];
    assert_eq!([2, 3, 5].map(|zone| rig.zone(zone)), open);
    rig.refuse(Request::write(start_of(6), &blocks(6, 1)), Status::ZoneOpenResource);
}

fn no_limit_is_no_limit(on: Backing) {
    let shape = GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..SHAPE };
    let mut rig = Rig::zoned(on, shape);
    for zone in 2..8 {
        rig.bring(zone, if zone % 2 == 0 { EOPEN } else { IOPEN }, true);
    }
    rig.accept(Request::zone_open(start_of(8)));
    assert_eq!(rig.disk.open_and_active(), (7, 7));
    for zone in 2..8 {
        let expected = if zone % 2 == 0 { EOPEN } else { IOPEN };
        assert_eq!(rig.zone(zone), Zone(expected, BLOCK));
    }
}

fn g3_ranges_are_not_zeroed_on_a_zoned_disk(on: Backing) {
    let mut rig = rig(on);
    rig.accept(Request::write(0, &sectors(1, 16)));
    rig.bring(2, IOPEN, true);
    for sector in [0, start_of(2), start_of(2) + BLOCK] {
        rig.refuse(Request::discard(&[(sector, 8)]), Status::Unsupp);
        rig.refuse(Request::write_zeroes(&[(sector, 8)], false), Status::Unsupp);
        rig.refuse(Request::write_zeroes(&[(sector, 8)], true), Status::Unsupp);
        rig.refuse(Request::secure_erase(&[(sector, 128)]), Status::Unsupp);
    }
    rig.refuse(Request::get_lifetime(), Status::Unsupp);
}

fn g6_a_restart_closes_open_zones(on: Backing) {
    let mut rig = rig(on);
    let conventional = sectors(1, 256);
    rig.accept(Request::write(0, &conventional));
    rig.bring(5, FULL, true);
    rig.bring(4, CLOSED, true);
    rig.bring(3, EOPEN, true);
    rig.bring(6, EOPEN, false);
    rig.bring(2, IOPEN, true);
    rig.accept(Request::flush());
    let before = rig.state();
    rig.restart();
    let after = rig.state();
    for (zone, expected) in [
        (2, Zone(CLOSED, BLOCK)),
        (3, Zone(CLOSED, BLOCK)),
        (4, Zone(CLOSED, BLOCK)),
        (5, Zone(FULL, END)),
        (6, Zone(EMPTY, 0)),
        (7, Zone(EMPTY, 0)),
    ] {
        assert_eq!(after.zone(zone), expected, "zone {zone}");
    }
    assert_eq!(after.open_and_active, (0, 3));
    assert_eq!(after.bytes, before.bytes);
    // V30 is kept, too: what FINISH skipped is still unwritten.
    assert_eq!(rig.read(start_of(5), 96), [blocks(5, 1), vec![0; 88 * SECTOR]].concat());
    rig.accept(Request::write(start_of(2) + BLOCK, &blocks(9, 1)));
    assert_eq!(rig.zone(2), Zone(IOPEN, 16));
}

/// A disk with zones that no driver can bring into their condition: 2 is read-only, 3 offline, both with 16 sectors written; 4 is
/// read-only and full.
fn worn_disk() -> Rig {
    let data: Vec<u8> = [2, 3, 4]
        .into_iter()
        .flat_map(|zone| {
            let mut data = blocks(zone, 2);
            data.resize(128 * SECTOR, 0xee);
            data
        })
        .collect();
    let inner = Backing::Ram.zoned(SHAPE).0;
    let mut lane = inner.open_lane(virtio_zbd_store::EngineChoice::Sync).unwrap();
    lane.write(0, virtio_zbd_store::IoBuffer::owned(data), start_of(2) * 512);
    lane.wait(None, &mut Vec::new()).unwrap();
    let probe = Probe::new(inner).found_in(|zone| match zone {
        2 => Some(StoredState { condition: Condition::ReadOnly, wp_sectors: 16 }),
        3 => Some(StoredState { condition: Condition::Offline, wp_sectors: 16 }),
        4 => Some(StoredState { condition: Condition::ReadOnly, wp_sectors: 96 }),
        _ => None,
    });
    Rig::over(Arc::new(probe), How::default())
}

#[test]
fn v28_a_read_only_zone_is_only_read() {
    let mut rig = worn_disk();
    assert_eq!(rig.zone(2), Zone(RDONLY, END));
    assert_eq!(rig.read(start_of(2), 24), [blocks(2, 2), vec![0; 8 * SECTOR]].concat());
    assert_eq!(rig.read(start_of(4), 16), blocks(4, 2));
    for zone in [2, 4] {
        for sector in [0, 8, 16, 96, 127] {
            rig.refuse(Request::write(start_of(zone) + sector, &sectors(9, 1)), Status::ZoneInvalidCmd);
            if sector < 96 {
                rig.refuse(Request::write(start_of(zone) + sector, &blocks(9, 1)), Status::ZoneInvalidCmd);
            }
        }
        rig.refuse(Request::zone_append(start_of(zone), &blocks(9, 1)), Status::ZoneInvalidCmd);
        // V15 to V18: no way out of this condition.
        for request in management(start_of(zone)) {
            rig.refuse(request, Status::ZoneInvalidCmd);
        }
    }
}

#[test]
fn v29_an_offline_zone_refuses_everything() {
    let mut rig = worn_disk();
    assert_eq!(rig.zone(3), Zone(OFFLINE, END));
    for sector in [0, 8, 16, 64] {
        rig.refuse(Request::read(start_of(3) + sector, 512), Status::ZoneInvalidCmd);
        rig.refuse(Request::write(start_of(3) + sector, &blocks(9, 1)), Status::ZoneInvalidCmd);
        rig.refuse(Request::write(start_of(3) + sector, &sectors(9, 1)), Status::ZoneInvalidCmd);
    }
    rig.refuse(Request::zone_append(start_of(3), &blocks(9, 1)), Status::ZoneInvalidCmd);
    for request in management(start_of(3)) {
        rig.refuse(request, Status::ZoneInvalidCmd);
    }
}

#[test]
fn v19_reset_all_leaves_read_only_and_offline_zones_alone() {
    let mut rig = worn_disk();
    rig.bring(5, IOPEN, true);
    rig.bring(6, FULL, true);
    let before = rig.state();
    rig.accept(Request::zone_reset_all());
    let after = rig.state();
    assert_eq!((after.zone(5), after.zone(6)), (Zone(EMPTY, 0), Zone(EMPTY, 0)));
    for zone in [0, 1, 2, 3, 4, 7, 8] {
        assert_eq!(before.zones[zone], after.zones[zone]);
    }
    let end = usize::try_from(start_of(5)).unwrap() * SECTOR;
    assert_eq!(before.bytes[..end], after.bytes[..end]);
}

#[test]
fn g5_a_read_only_disk_is_not_managed() {
    let inner = Backing::Ram.zoned(SHAPE).0;
    {
        let mut rig = Rig::over(inner.clone(), How::default());
        rig.bring(2, IOPEN, true);
        rig.bring(3, FULL, true);
    }
    let mut rig = Rig::over(Arc::new(Probe::new(inner).read_only()), How::default());
    assert_eq!(rig.read(start_of(2), 16), [blocks(2, 1), vec![0; 8 * SECTOR]].concat());
    for sector in [0, start_of(2), start_of(2) + 1, start_of(4), SHAPE.capacity_sectors, u64::MAX] {
        for request in management(sector) {
            rig.refuse(request, Status::IoErr);
        }
        rig.refuse(Request::zone_append(sector, &blocks(9, 1)), Status::IoErr);
        rig.refuse(Request::write(sector, &blocks(9, 1)), Status::IoErr);
    }
    rig.refuse(Request::zone_reset_all(), Status::IoErr);
    rig.accept(Request::flush());
}

#[test]
fn v4_a_driver_without_zones_does_not_reach_a_zoned_disk() {
    let mut rig = Rig::never_negotiated(Backing::Ram.zoned(SHAPE).0);
    let requests = management(start_of(2)).into_iter().chain([
        Request::read(0, 512),
        Request::write(0, &sectors(1, 1)),
        Request::write(start_of(2), &blocks(1, 1)),
        Request::zone_append(start_of(2), &blocks(1, 1)),
        Request::zone_report(0, 1024),
        Request::zone_reset_all(),
        Request::flush(),
        Request::get_id(),
        Request::raw(77, 0, &[], 0),
    ]);
    let before = common::raw_bytes(&*rig.store);
    for request in requests {
        // Even an append's in-header is not known for what it is: the last byte is the status, and nothing else is written.
        let room = request.in_data_len + request.in_header_len;
        let done = rig.call(request).expect(Status::IoErr);
        assert_eq!(done.used_len, u32::from(room == 1));
        assert!(done.data.iter().all(|&byte| byte == UNTOUCHED));
    }
    assert_eq!(common::raw_bytes(&*rig.store), before);
    assert_eq!(rig.disk.open_and_active(), (0, 0));
}
