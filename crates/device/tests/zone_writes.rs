//! Where OUT and ZONE_APPEND may go on a zoned disk: V14, V21 to V26, and what is refused before a zone is asked.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::{Backing, ODD_SHAPE, Rig, SECTOR, SHAPE, Zone, blocks, on_every_store, sectors, start_of};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::{Request, UNTOUCHED};
use virtio_zbd_zones::GeometryConfig;

on_every_store!(
    conventional_zones_are_written_anywhere,
    v14_no_append_to_a_conventional_zone,
    v21_an_append_names_its_zone_by_the_first_sector,
    v22_nothing_goes_beyond_the_capacity,
    v22_a_full_zone_takes_nothing,
    v23_an_append_says_where_its_data_went,
    v24_an_append_has_a_longest_length,
    v24_a_disk_may_have_no_append,
    v25_no_write_crosses_zones,
    v26_a_write_begins_at_the_write_pointer,
    v26_a_write_ends_on_a_block,
    a_runt_zone_is_written_to_its_end,
    zones_need_not_be_a_power_of_two,
    no_data_changes_nothing,
    data_comes_in_whole_sectors,
    nothing_reaches_past_the_end,
    an_append_needs_room_for_its_answer,
);

const BLOCK: u64 = 8;
const END: u64 = 128;

fn rig(on: Backing) -> Rig {
    Rig::zoned(on, SHAPE)
}

/// A disk with two blocks in each of two zones: 2 implicitly open, 3 explicitly.
fn started(on: Backing) -> Rig {
    let mut rig = rig(on);
    rig.accept(Request::zone_open(start_of(3)));
    for zone in [2, 3] {
        rig.accept(Request::write(start_of(zone), &blocks(zone, 2)));
    }
    rig
}

fn conventional_zones_are_written_anywhere(on: Backing) {
    let mut rig = rig(on);
    let mut expected = vec![0; 256 * SECTOR];
    // No block, no order, across the border of the two.
    for (tag, sector, count) in [(1, 255, 1), (2, 0, 3), (3, 100, 60), (4, 127, 2), (5, 1, 255), (6, 13, 5)] {
        let data = sectors(tag, count);
        rig.accept(Request::write(sector as u64, &data));
        expected[sector * SECTOR..(sector + count) * SECTOR].copy_from_slice(&data);
        assert_eq!(rig.read(0, 256), expected);
    }
    let state = rig.state();
    assert_eq!([state.zone(0), state.zone(1)], [Zone(ZoneState::NotWp, END); 2]);
    assert_eq!(state.open_and_active, (0, 0));
    assert_eq!(state.bytes[..256 * SECTOR], expected);
}

fn v14_no_append_to_a_conventional_zone(on: Backing) {
    let mut rig = started(on);
    rig.accept(Request::write(0, &sectors(1, 256)));
    for sector in [0, 1, 8, start_of(1), start_of(1) + 8] {
        rig.refuse(Request::zone_append(sector, &blocks(9, 1)), Status::ZoneInvalidCmd);
    }
}

fn v21_an_append_names_its_zone_by_the_first_sector(on: Backing) {
    let mut rig = started(on);
    let end = SHAPE.capacity_sectors;
    for sector in [
        start_of(2) + 1,
        start_of(2) + BLOCK,
        start_of(2) + 16,
        start_of(4) + 1,
        end - 1,
        end,
        1 << 40,
        u64::MAX,
    ] {
        rig.refuse(Request::zone_append(sector, &blocks(9, 1)), Status::ZoneInvalidCmd);
    }
}

fn v22_nothing_goes_beyond_the_capacity(on: Backing) {
    // The capacity is 12 blocks; an append may have 4.
    let mut rig = rig(on);
    rig.refuse(Request::write(start_of(2), &blocks(9, 13)), Status::ZoneInvalidCmd);
    rig.accept(Request::write(start_of(2), &blocks(2, 10)));
    rig.refuse(Request::write(start_of(2) + 80, &blocks(9, 3)), Status::ZoneInvalidCmd);
    rig.refuse(Request::zone_append(start_of(2), &blocks(9, 3)), Status::ZoneInvalidCmd);
    rig.refuse(Request::zone_append(start_of(2), &blocks(9, 4)), Status::ZoneInvalidCmd);
    // What fits fits, and then the zone is full and uses nothing.
    rig.accept(Request::write(start_of(2) + 80, &blocks(3, 1)));
    assert_eq!(rig.append(start_of(2), &blocks(4, 1)), start_of(2) + 88);
    assert_eq!((rig.zone(2), rig.disk.open_and_active()), (Zone(ZoneState::Full, END), (0, 0)));
    assert_eq!(rig.read(start_of(2), 96), [blocks(2, 10), blocks(3, 1), blocks(4, 1)].concat());
}

fn v22_a_full_zone_takes_nothing(on: Backing) {
    let mut rig = rig(on);
    rig.accept(Request::write(start_of(2), &blocks(2, 12)));
    rig.accept(Request::write(start_of(3), &blocks(3, 1)));
    rig.accept(Request::zone_finish(start_of(3)));
    for zone in [2, 3] {
        assert_eq!(rig.zone(zone), Zone(ZoneState::Full, END));
        for sector in [0, 8, 88, 96, 104, 120] {
            rig.refuse(Request::write(start_of(zone) + sector, &blocks(9, 1)), Status::ZoneInvalidCmd);
        }
        rig.refuse(Request::zone_append(start_of(zone), &blocks(9, 1)), Status::ZoneInvalidCmd);
    }
}

fn v23_an_append_says_where_its_data_went(on: Backing) {
    let mut rig = started(on);
    let mut wp = 16;
    for (tag, count) in [(10, 1), (11, 4), (12, 2), (13, 1)] {
        for zone in [2, 3] {
            assert_eq!(rig.append(start_of(zone), &blocks(tag + zone, count)), start_of(zone) + wp);
            assert_eq!(rig.read(start_of(zone) + wp, count * 8), blocks(tag + zone, count));
        }
        wp += BLOCK * count as u64;
        assert_eq!(
            (rig.zone(2), rig.zone(3)),
            (Zone(ZoneState::ImplicitOpen, wp), Zone(ZoneState::ExplicitOpen, wp))
        );
    }
    // V26 for the next write: behind the appends.
    rig.refuse(Request::write(start_of(2) + 16, &blocks(9, 1)), Status::ZoneUnalignedWp);
    rig.accept(Request::write(start_of(2) + wp, &blocks(9, 1)));
}

fn v24_an_append_has_a_longest_length(on: Backing) {
    let mut rig = started(on);
    for count in [5, 6, 10, 12] {
        rig.refuse(Request::zone_append(start_of(2), &blocks(9, count)), Status::ZoneInvalidCmd);
        rig.refuse(Request::zone_append(start_of(4), &blocks(9, count)), Status::ZoneInvalidCmd);
    }
    rig.refuse(Request::zone_append(start_of(4), &sectors(9, 33)), Status::ZoneInvalidCmd);
    assert_eq!(rig.append(start_of(4), &blocks(9, 4)), start_of(4));
    // A write is not an append.
    rig.accept(Request::write(start_of(2) + 16, &blocks(9, 10)));
}

fn v24_a_disk_may_have_no_append(on: Backing) {
    let mut rig = Rig::zoned(on, GeometryConfig { max_append_sectors: 0, ..SHAPE });
    rig.accept(Request::write(start_of(2), &blocks(2, 1)));
    for sector in [start_of(2), start_of(4), 0, start_of(2) + 1, SHAPE.capacity_sectors] {
        for count in [1, 4, 12, 13] {
            rig.refuse(Request::zone_append(sector, &blocks(9, count)), Status::Unsupp);
        }
    }
    rig.accept(Request::write(start_of(2) + 8, &blocks(2, 1)));
}

fn v25_no_write_crosses_zones(on: Backing) {
    // Capacity is length here, so that only the border can be what stops a write.
    let shape = GeometryConfig { zone_capacity_sectors: 128, ..SHAPE };
    let mut rig = Rig::zoned(on, shape);
    rig.accept(Request::write(start_of(2), &blocks(2, 15)));
    rig.refuse(Request::write(start_of(2) + 120, &blocks(9, 2)), Status::ZoneInvalidCmd);
    rig.refuse(Request::zone_append(start_of(2), &blocks(9, 2)), Status::ZoneInvalidCmd);
    rig.refuse(Request::write(start_of(4), &blocks(9, 40)), Status::ZoneInvalidCmd);
    // Not at the write pointer either: the border says it first.
    rig.refuse(Request::write(start_of(3) + 120, &blocks(9, 2)), Status::ZoneInvalidCmd);
    // From a conventional zone into a sequential one.
    rig.refuse(Request::write(start_of(2) - 1, &sectors(9, 2)), Status::ZoneInvalidCmd);
    rig.refuse(Request::write(0, &sectors(9, 257)), Status::ZoneInvalidCmd);
    rig.accept(Request::write(start_of(2) + 120, &blocks(2, 1)));
    assert_eq!(rig.zone(2), Zone(ZoneState::Full, END));
}

fn v26_a_write_begins_at_the_write_pointer(on: Backing) {
    let mut rig = started(on);
    for zone in [2, 3, 4] {
        let wp = if zone == 4 { 0 } else { 16 };
        for sector in [0, 1, 8, 15, 17, 24, 88, 95, 96, 120] {
            if sector != wp {
                let status = Status::ZoneUnalignedWp;
                rig.refuse(Request::write(start_of(zone) + sector, &blocks(9, 1)), status);
            }
        }
    }
}

fn v26_a_write_ends_on_a_block(on: Backing) {
    let mut rig = started(on);
    for (zone, wp) in [(2, 16), (3, 16), (4, 0)] {
        for count in [1, 7, 9, 15, 31] {
            rig.refuse(Request::write(start_of(zone) + wp, &sectors(9, count)), Status::ZoneUnalignedWp);
            rig.refuse(Request::zone_append(start_of(zone), &sectors(9, count)), Status::ZoneUnalignedWp);
        }
    }
    // Of one sector each where that is the granularity.
    let mut rig = Rig::zoned(on, GeometryConfig { write_granularity_bytes: 512, ..SHAPE });
    for i in 0..5 {
        rig.accept(Request::write(start_of(2) + i, &sectors(i, 1)));
        assert_eq!(rig.read(start_of(2) + i, 1), sectors(i, 1));
    }
    assert_eq!(rig.append(start_of(2), &sectors(5, 3)), start_of(2) + 5);
    assert_eq!(rig.zone(2), Zone(ZoneState::ImplicitOpen, 8));
}

fn a_runt_zone_is_written_to_its_end(on: Backing) {
    let mut rig = rig(on);
    let start = start_of(8);
    rig.refuse(Request::write(start, &blocks(9, 9)), Status::IoErr);
    rig.accept(Request::write(start, &blocks(8, 7)));
    rig.refuse(Request::zone_append(start, &blocks(9, 2)), Status::ZoneInvalidCmd);
    assert_eq!(rig.append(start, &blocks(9, 1)), start + 56);
    assert_eq!(rig.zone(8), Zone(ZoneState::Full, 64));
    assert_eq!(rig.read(start, 64), [blocks(8, 7), blocks(9, 1)].concat());
    rig.accept(Request::zone_reset(start));
    assert_eq!(rig.zone(8), Zone(ZoneState::Empty, 0));
}

fn zones_need_not_be_a_power_of_two(on: Backing) {
    let mut rig = Rig::zoned(on, ODD_SHAPE);
    let mut expected = vec![0; 1000 * SECTOR];
    let zones = rig.state().zones;
    assert_eq!(zones.len(), 9);
    for (i, zone) in zones.iter().enumerate() {
        let start = zone.z_start.get();
        assert_eq!(start, 120 * i as u64);
        let data = sectors(i as u64, usize::try_from(zone.z_cap.get()).unwrap());
        rig.accept(Request::write(start, &data));
        let at = i * 120 * SECTOR;
        expected[at..at + data.len()].copy_from_slice(&data);
        if i >= 2 {
            assert_eq!(Zone::new(&rig.state().zones[i]).0, ZoneState::Full, "zone {i}");
            rig.refuse(Request::write(start + 8, &blocks(9, 1)), Status::ZoneInvalidCmd);
        }
    }
    assert_eq!(rig.state().bytes, expected);
    rig.accept(Request::zone_reset(3 * 120));
    expected[3 * 120 * SECTOR..4 * 120 * SECTOR].fill(0);
    assert_eq!(rig.state().bytes, expected);
}

fn no_data_changes_nothing(on: Backing) {
    let mut rig = started(on);
    rig.accept(Request::write(start_of(5), &blocks(5, 1)));
    rig.accept(Request::zone_close(start_of(5)));
    rig.accept(Request::zone_finish(start_of(6)));
    let before = rig.state();
    // Only data opens a zone, so nothing does not.
    for (zone, wp) in [(2, 16), (3, 16), (4, 0), (5, 8)] {
        rig.accept(Request::write(start_of(zone) + wp, &[]));
        assert_eq!(rig.append(start_of(zone), &[]), start_of(zone) + wp);
        rig.refuse(Request::write(start_of(zone) + wp + 8, &[]), Status::ZoneUnalignedWp);
    }
    rig.refuse(Request::write(start_of(6), &[]), Status::ZoneInvalidCmd);
    rig.refuse(Request::zone_append(start_of(6), &[]), Status::ZoneInvalidCmd);
    rig.refuse(Request::write(SHAPE.capacity_sectors, &[]), Status::IoErr);
    rig.accept(Request::write(7, &[]));
    before.assert_same(&rig.state());
}

fn data_comes_in_whole_sectors(on: Backing) {
    let mut rig = started(on);
    for len in [1, 511, 513, 4095, 4097] {
        rig.refuse(Request::write(0, &blocks(9, 2)[..len]), Status::IoErr);
        rig.refuse(Request::write(start_of(2) + 16, &blocks(9, 2)[..len]), Status::IoErr);
        rig.refuse(Request::zone_append(start_of(2), &blocks(9, 2)[..len]), Status::IoErr);
        rig.refuse(Request::read(start_of(2), len), Status::IoErr);
    }
}

fn nothing_reaches_past_the_end(on: Backing) {
    let mut rig = started(on);
    let end = SHAPE.capacity_sectors;
    for sector in [end - 8, end - 1, end, end + 8, 1 << 55, u64::MAX / 512 + 1, u64::MAX - 15, u64::MAX] {
        rig.refuse(Request::write(sector, &blocks(9, 2)), Status::IoErr);
        rig.refuse(Request::read(sector, 16 * SECTOR), Status::IoErr);
    }
}

fn an_append_needs_room_for_its_answer(on: Backing) {
    let mut rig = started(on);
    let append =
        |in_header_len| Request { in_header_len, ..Request::zone_append(start_of(2), &blocks(9, 1)) };
    for in_header_len in 1..9 {
        let before = rig.state();
        let done = rig.call(append(in_header_len)).expect(Status::IoErr);
        assert_eq!(done.used_len, u32::from(in_header_len == 1));
        before.assert_same(&rig.state());
    }
    // Not even a status: the chain comes back, and that is all.
    let before = rig.state();
    let done = rig.call(append(0));
    assert_eq!((done.status, done.used_len), (UNTOUCHED, 0));
    before.assert_same(&rig.state());
    // Linux' virtio_blk pads its in-header to 16 bytes: the sector comes first, the status last. A guest with other padding would be
    // served as well.
    for padding in [7, 1, 100] {
        let wp = start_of(2) + rig.zone(2).1;
        let request = Request { in_data_len: 8 + padding, in_header_len: 1, ..append(9) };
        let done = rig.call(request).expect(Status::Ok);
        let (sector, rest) = done.data.split_at(8);
        assert_eq!(sector, wp.to_le_bytes());
        assert_eq!(rest, vec![0; padding]);
        assert_eq!(done.used_len as usize, 8 + padding + 1);
    }
}
