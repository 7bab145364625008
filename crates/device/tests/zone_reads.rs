//! What IN finds on a zoned disk: V25, V29 (see `zoned.rs`), V30, V31.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::{Backing, Rig, SECTOR, SHAPE, Zone, blocks, on_every_store, sectors, start_of};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::Request;
use virtio_zbd_zones::GeometryConfig;

on_every_store!(
    v31_unwritten_sectors_read_as_zeros,
    v30_what_finish_skipped_is_unwritten,
    v30_what_a_reset_took_away_is_unwritten,
    v30_no_byte_from_before_a_reset_comes_back,
    v25_no_read_crosses_sequential_zones,
    conventional_zones_are_read_in_one,
    every_part_of_a_zone_can_be_read,
);

fn zeros(count: usize) -> Vec<u8> {
    vec![0; count * SECTOR]
}

fn v31_unwritten_sectors_read_as_zeros(on: Backing) {
    let mut rig = Rig::zoned(on, SHAPE);
    assert_eq!(rig.read(start_of(2), 128), zeros(128), "an empty zone");
    rig.accept(Request::zone_open(start_of(2)));
    assert_eq!(rig.read(start_of(2), 128), zeros(128), "an open zone with nothing in it");
    rig.accept(Request::write(start_of(2), &blocks(2, 2)));
    let whole = [blocks(2, 2), zeros(112)].concat();
    assert_eq!(rig.read(start_of(2), 128), whole);
    for (from, count) in [(0, 16), (15, 1), (15, 2), (16, 1), (8, 16), (16, 112), (95, 2), (96, 32), (127, 1)]
    {
        let read = rig.read(start_of(2) + from as u64, count);
        assert_eq!(read, whole[from * SECTOR..(from + count) * SECTOR], "{count} from {from}");
    }
    rig.accept(Request::zone_close(start_of(2)));
    assert_eq!(rig.read(start_of(2), 128), whole);
    // The runt.
    rig.accept(Request::write(start_of(8), &blocks(8, 1)));
    assert_eq!(rig.read(start_of(8), 64), [blocks(8, 1), zeros(56)].concat());
}

fn v30_what_finish_skipped_is_unwritten(on: Backing) {
    let mut rig = Rig::zoned(on, SHAPE);
    rig.accept(Request::write(start_of(2), &blocks(2, 3)));
    for zone in [2, 3, 8] {
        rig.accept(Request::zone_finish(start_of(zone)));
        assert_eq!(rig.zone(zone).0, ZoneState::Full);
    }
    assert_eq!(rig.read(start_of(2), 128), [blocks(2, 3), zeros(104)].concat());
    assert_eq!(rig.read(start_of(2) + 24, 72), zeros(72));
    assert_eq!(rig.read(start_of(3), 128), zeros(128));
    assert_eq!(rig.read(start_of(8), 64), zeros(64));
    // Written to the capacity: what lies between that and the zone's end is unwritten as well.
    rig.accept(Request::write(start_of(4), &blocks(4, 12)));
    assert_eq!(rig.read(start_of(4), 128), [blocks(4, 12), zeros(32)].concat());
}

fn v30_what_a_reset_took_away_is_unwritten(on: Backing) {
    let mut rig = Rig::zoned(on, SHAPE);
    for zone in [2, 3, 8] {
        rig.accept(Request::write(start_of(zone), &blocks(zone, 5)));
    }
    rig.accept(Request::zone_reset(start_of(2)));
    assert_eq!(rig.read(start_of(2), 128), zeros(128));
    assert_eq!(rig.read(start_of(3), 40), blocks(3, 5));
    rig.accept(Request::zone_reset_all());
    for (zone, len) in [(2, 128), (3, 128), (8, 64)] {
        assert_eq!(rig.read(start_of(zone), len), zeros(len));
    }
}

fn v30_no_byte_from_before_a_reset_comes_back(on: Backing) {
    let mut rig = Rig::zoned(on, SHAPE);
    for round in 0..12u64 {
        let old = usize::try_from(12 - round).unwrap();
        rig.accept(Request::write(start_of(2), &blocks(round, old)));
        rig.accept(Request::zone_reset(start_of(2)));
        rig.accept(Request::write(start_of(2), &blocks(100 + round, 1)));
        if round % 2 == 0 {
            rig.accept(Request::zone_finish(start_of(2)));
        }
        assert_eq!(rig.read(start_of(2), 128), [blocks(100 + round, 1), zeros(120)].concat());
        // Nor does it lie anywhere on the disk.
        let state = rig.state();
        let zone = usize::try_from(start_of(2)).unwrap() * SECTOR;
        assert_eq!(state.bytes[zone + 8 * SECTOR..zone + 128 * SECTOR], zeros(120));
        rig.accept(Request::zone_reset(start_of(2)));
    }
}

fn v25_no_read_crosses_sequential_zones(on: Backing) {
    for zone_capacity_sectors in [96, 128] {
        let mut rig = Rig::zoned(on, GeometryConfig { zone_capacity_sectors, ..SHAPE });
        rig.accept(Request::write(start_of(2), &sectors(2, zone_capacity_sectors as usize)));
        rig.accept(Request::write(start_of(3), &blocks(3, 1)));
        for (sector, count) in [
            (start_of(3) - 1, 2),
            (start_of(2), 129),
            (start_of(2), 256),
            (start_of(5) - 8, 16),
            (start_of(8) - 1, 2),
            // From a conventional zone into a sequential one.
            (start_of(2) - 1, 2),
            (0, 257),
        ] {
            rig.refuse(Request::read(sector, count * SECTOR), Status::ZoneInvalidCmd);
        }
        assert_eq!(rig.read(start_of(3) - 1, 1).len(), SECTOR);
        assert_eq!(rig.zone(3), Zone(ZoneState::ImplicitOpen, 8));
    }
}

fn conventional_zones_are_read_in_one(on: Backing) {
    let mut rig = Rig::zoned(on, SHAPE);
    assert_eq!(rig.read(0, 256), zeros(256), "nothing was written yet");
    let data = sectors(1, 256);
    rig.accept(Request::write(0, &data));
    assert_eq!(rig.read(0, 256), data);
    assert_eq!(rig.read(127, 2), data[127 * SECTOR..129 * SECTOR]);
}

fn every_part_of_a_zone_can_be_read(on: Backing) {
    let mut rig = Rig::zoned(on, SHAPE);
    rig.accept(Request::write(start_of(5), &blocks(5, 2)));
    let whole = [blocks(5, 2), zeros(112)].concat();
    for from in (0..128).step_by(3) {
        for count in [1, 5, 11, 40] {
            let count = count.min(128 - from);
            let read = rig.read(start_of(5) + from as u64, count);
            assert_eq!(read, whole[from * SECTOR..(from + count) * SECTOR], "{count} from {from}");
        }
    }
    rig.accept(Request::read(start_of(5), 0));
    rig.accept(Request::read(start_of(5) + 127, 0));
}
