//! ZONE_REPORT: R7, V6, V11, G4, and what the specification says of the reply (virtio 1.3, 5.2.6).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::{Backing, How, ODD_SHAPE, Rig, SHAPE, Zone, blocks, on_every_store, start_of};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::{Framing, Request};
use virtio_zbd_zones::GeometryConfig;

on_every_store!(
    as_many_zones_as_the_buffer_holds,
    r7_a_report_begins_with_the_zone_around_the_sector,
    g4_there_is_no_report_past_the_end,
    a_buffer_without_room_for_the_header_is_refused,
    a_report_shows_what_has_changed,
    a_report_changes_nothing,
);

/// A disk with something to tell: zones in all conditions.
fn rig(on: Backing) -> Rig {
    let mut rig = Rig::zoned(on, SHAPE);
    rig.accept(Request::write(start_of(4), &blocks(4, 1)));
    rig.accept(Request::zone_close(start_of(4)));
    rig.accept(Request::write(start_of(2), &blocks(2, 2)));
    rig.accept(Request::zone_open(start_of(3)));
    rig.accept(Request::zone_finish(start_of(5)));
    rig
}

const EXPECTED: [Zone; 9] = [
    Zone(ZoneState::NotWp, 128),
    Zone(ZoneState::NotWp, 128),
    Zone(ZoneState::ImplicitOpen, 16),
    Zone(ZoneState::ExplicitOpen, 0),
    Zone(ZoneState::Closed, 8),
    Zone(ZoneState::Full, 128),
    Zone(ZoneState::Empty, 0),
    Zone(ZoneState::Empty, 0),
    Zone(ZoneState::Empty, 0),
];

fn as_many_zones_as_the_buffer_holds(on: Backing) {
    let mut rig = rig(on);
    for (len, count) in [
        (64, 0),
        (65, 0),
        (127, 0),
        (128, 1),
        (129, 1),
        (191, 1),
        (192, 2),
        (64 + 8 * 64, 8),
        (64 + 9 * 64 - 1, 8),
        (64 + 9 * 64, 9),
        (64 + 10 * 64, 9),
        (10_000, 9),
    ] {
        let done = rig.accept(Request::zone_report(0, len));
        let zones: Vec<Zone> = done.zones().unwrap().iter().map(Zone::new).collect();
        assert_eq!(zones, EXPECTED[..count], "{len} bytes");
        // All else is zero, to the buffer's end: nothing of this program's memory, and no hole in what counts as written.
        assert!(done.data[8..64].iter().all(|&byte| byte == 0), "V11: the header's reserved bytes");
        assert!(done.data[64 + 64 * count..].iter().all(|&byte| byte == 0), "behind the last zone");
        for zone in done.data[64..64 + 64 * count].chunks(64) {
            assert!(zone[26..].iter().all(|&byte| byte == 0), "V11: a zone's reserved bytes");
        }
    }
}

fn r7_a_report_begins_with_the_zone_around_the_sector(on: Backing) {
    let mut rig = rig(on);
    for zone in 0..9u64 {
        let len = if zone == 8 { 64 } else { 128 };
        for sector in [0, 1, 8, 63, len - 1] {
            let done = rig.accept(Request::zone_report(start_of(zone) + sector, 64 + 64 * 9));
            let zones = done.zones().unwrap();
            assert_eq!(zones[0].z_start.get(), start_of(zone), "sector {sector} of zone {zone}");
            let seen: Vec<Zone> = zones.iter().map(Zone::new).collect();
            assert_eq!(seen, EXPECTED[usize::try_from(zone).unwrap()..]);
        }
    }
    // V6: the runt's capacity is its length.
    let last = rig.accept(Request::zone_report(SHAPE.capacity_sectors - 1, 128)).zones().unwrap();
    assert_eq!((last[0].z_start.get(), last[0].z_cap.get()), (1024, 64));
}

fn g4_there_is_no_report_past_the_end(on: Backing) {
    let mut rig = rig(on);
    let end = SHAPE.capacity_sectors;
    for sector in [end, end + 1, end + 63, end + 64, 1 << 40, u64::MAX / 512 + 1, u64::MAX] {
        rig.refuse(Request::zone_report(sector, 4096), Status::ZoneInvalidCmd);
    }
}

fn a_buffer_without_room_for_the_header_is_refused(on: Backing) {
    let mut rig = rig(on);
    for len in [0, 1, 8, 63] {
        rig.refuse(Request::zone_report(0, len), Status::ZoneInvalidCmd);
        rig.refuse(Request::zone_report(start_of(3), len), Status::ZoneInvalidCmd);
    }
}

fn a_report_shows_what_has_changed(on: Backing) {
    let mut rig = Rig::zoned(on, SHAPE);
    for i in 0..12 {
        rig.accept(Request::write(start_of(7) + i * 8, &blocks(i, 1)));
        let expected = match i {
            11 => Zone(ZoneState::Full, 128),
            _ => Zone(ZoneState::ImplicitOpen, (i + 1) * 8),
        };
        assert_eq!(rig.zone(7), expected);
    }
    rig.accept(Request::zone_reset(start_of(7)));
    assert_eq!(rig.zone(7), Zone(ZoneState::Empty, 0));
}

fn a_report_changes_nothing(on: Backing) {
    let mut rig = rig(on);
    let before = rig.state();
    for sector in 0..SHAPE.capacity_sectors {
        rig.accept(Request::zone_report(sector, 128));
    }
    before.assert_same(&rig.state());
}

#[test]
fn a_report_of_many_zones_comes_whole() {
    let shape = GeometryConfig {
        capacity_sectors: 120 * 3000 + 40,
        max_open_zones: 0,
        max_active_zones: 0,
        ..ODD_SHAPE
    };
    let how = How { ram_len: 8 << 20, ..How::default() };
    let mut rig = Rig::zoned_with(Backing::Ram, shape, how);
    for zone in (2..3001).step_by(7) {
        rig.accept(Request::write(zone * 120, &blocks(1, 1)));
    }
    // In one buffer, in one that is cut to pieces, and in as many reports as a driver with little memory needs.
    for framing in [Framing::Classic, Framing::IndirectRandom(7), Framing::Indirect] {
        rig.queue().framing = framing;
        let done = rig.accept(Request::zone_report(0, 64 + 64 * 3001));
        let zones = done.zones().unwrap();
        assert_eq!(zones.len(), 3001);
        for (i, zone) in (0..).zip(&zones) {
            assert_eq!(zone.z_start.get(), i * 120);
            let expected = match i {
                0 | 1 => Zone(ZoneState::NotWp, 120),
                i if (i - 2) % 7 == 0 => Zone(ZoneState::ImplicitOpen, 8),
                _ => Zone(ZoneState::Empty, 0),
            };
            assert_eq!(Zone::new(zone), expected, "zone {i}");
        }
        assert_eq!(rig.state().zones, zones);
    }
}
