//! A plain disk: what every virtio block device does (virtio 1.3, 5.2.6), without a zone in sight.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::{Backing, Probe, Rig, SECTOR, on_every_store, sectors};
use std::sync::Arc;
use virtio_zbd_spec::{Features, RequestType, Status};
use virtio_zbd_testkit::Request;

/// Length of the disk in sectors.
const LEN: u64 = 2048;

on_every_store!(
    in_reads_what_out_wrote,
    the_last_sector_is_the_last,
    nothing_reaches_past_the_end,
    data_comes_in_whole_sectors,
    no_data_at_all_is_fine,
    flush_is_always_possible,
    get_id_fills_all_the_room_it_is_given,
    v12_zone_requests_are_unsupported,
    unknown_requests_are_unsupported,
    data_in_the_wrong_direction_is_left_alone,
);

fn rig(on: Backing) -> Rig {
    Rig::plain(on, LEN * 512)
}

/// Writes all of the disk. Returns what is on it.
fn filled(rig: &mut Rig) -> Vec<u8> {
    let data = sectors(1, 2048);
    rig.accept(Request::write(0, &data));
    data
}

fn in_reads_what_out_wrote(on: Backing) {
    let mut rig = rig(on);
    assert_eq!(rig.read(0, 2048), vec![0; 2048 * SECTOR], "a new disk");
    let mut expected = filled(&mut rig);
    for (tag, sector, count) in [(2, 0, 1), (3, 1, 7), (4, 8, 8), (5, 100, 129), (6, 2040, 8), (7, 5, 20)] {
        let data = sectors(tag, count);
        rig.accept(Request::write(sector as u64, &data));
        expected[sector * SECTOR..(sector + count) * SECTOR].copy_from_slice(&data);
        assert_eq!(rig.read(sector as u64, count), data);
    }
    assert_eq!(rig.read(0, 2048), expected);
    assert_eq!(rig.read(3, 100), expected[3 * SECTOR..103 * SECTOR]);
    assert_eq!(rig.state().bytes, expected);
}

fn the_last_sector_is_the_last(on: Backing) {
    let mut rig = rig(on);
    let data = sectors(1, 1);
    rig.accept(Request::write(LEN - 1, &data));
    assert_eq!(rig.read(LEN - 1, 1), data);
}

fn nothing_reaches_past_the_end(on: Backing) {
    let mut rig = rig(on);
    filled(&mut rig);
    for sector in [LEN - 1, LEN, LEN + 1, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 63, u64::MAX - 1, u64::MAX]
    {
        rig.refuse(Request::write(sector, &sectors(2, 2)), Status::IoErr);
        rig.refuse(Request::read(sector, 2 * SECTOR), Status::IoErr);
    }
}

fn data_comes_in_whole_sectors(on: Backing) {
    let mut rig = rig(on);
    filled(&mut rig);
    for len in [1, 511, 513, 1000, 4095, 4097] {
        rig.refuse(Request::write(8, &sectors(2, 16)[..len]), Status::IoErr);
        rig.refuse(Request::read(8, len), Status::IoErr);
    }
}

fn no_data_at_all_is_fine(on: Backing) {
    let mut rig = rig(on);
    filled(&mut rig);
    let before = rig.state();
    for sector in [0, 5, LEN] {
        rig.accept(Request::write(sector, &[]));
        rig.accept(Request::read(sector, 0));
    }
    before.assert_same(&rig.state());
    rig.refuse(Request::write(LEN + 1, &[]), Status::IoErr);
    rig.refuse(Request::read(u64::MAX, 0), Status::IoErr);
}

fn flush_is_always_possible(on: Backing) {
    for without in [Features::empty(), Features::FLUSH, Features::FLUSH | Features::CONFIG_WCE] {
        let how = common::How { without, ..Default::default() };
        let mut rig = Rig::plain_with(on, LEN * 512, how);
        rig.accept(Request::flush());
        // The sector should be 0 and has no meaning.
        rig.accept(Request::raw(RequestType::Flush.into(), u64::MAX, &[], 0));
    }
}

fn get_id_fills_all_the_room_it_is_given(on: Backing) {
    let mut rig = rig(on);
    let serial = rig.store.identity().serial;
    assert_eq!(rig.accept(Request::get_id()).data, serial);
    let get_id = |len| Request::raw(RequestType::GetId.into(), 0, &[], len);
    assert_eq!(rig.accept(get_id(1)).data, serial[..1]);
    assert_eq!(rig.accept(get_id(19)).data, serial[..19]);
    let mut padded = serial.to_vec();
    padded.resize(5000, 0);
    assert_eq!(rig.accept(get_id(21)).data, padded[..21]);
    assert_eq!(rig.accept(get_id(5000)).data, padded);
    rig.refuse(get_id(0), Status::IoErr);
}

fn v12_zone_requests_are_unsupported(on: Backing) {
    let mut rig = rig(on);
    filled(&mut rig);
    for request in [
        Request::zone_append(0, &sectors(2, 8)),
        Request::zone_report(0, 4096),
        Request::zone_open(0),
        Request::zone_close(0),
        Request::zone_finish(0),
        Request::zone_reset(0),
        Request::zone_reset_all(),
    ] {
        rig.refuse(request, Status::Unsupp);
    }
}

fn unknown_requests_are_unsupported(on: Backing) {
    let mut rig = rig(on);
    filled(&mut rig);
    // The gaps in the numbers, those of the legacy interface, GET_LIFETIME and SECURE_ERASE, which are not offered.
    let known = [0, 1, 4, 8, 11, 13, 15, 16, 18, 20, 22, 24, 26];
    let numbers = (0..64).filter(|number| !known.contains(number)).chain([
        256,
        0x0100_0000,
        0x8000_0000,
        0x8000_0001,
        u32::MAX,
    ]);
    for number in numbers {
        rig.refuse_quickly(Request::raw(number, 0, &[], 0), Status::Unsupp);
        rig.refuse_quickly(Request::raw(number, 0, &sectors(2, 1), 0), Status::Unsupp);
        rig.refuse(Request::raw(number, 0, &sectors(2, 1), 512), Status::Unsupp);
    }
}

fn data_in_the_wrong_direction_is_left_alone(on: Backing) {
    let mut rig = rig(on);
    let mut expected = filled(&mut rig);
    let data = sectors(2, 1);
    // An OUT with room behind it, an IN with data before it, a FLUSH with both.
    let done = rig.call(Request { in_data_len: 512, ..Request::write(3, &data) }).expect(Status::Ok);
    assert_eq!((done.data, done.used_len), (vec![virtio_zbd_testkit::UNTOUCHED; 512], 0));
    expected[3 * SECTOR..4 * SECTOR].copy_from_slice(&data);
    let done = rig.call(Request { out_data: sectors(3, 2), ..Request::read(3, 512) }).expect(Status::Ok);
    assert_eq!((done.data, done.used_len), (data.clone(), 513));
    let done = rig.call(Request::raw(RequestType::Flush.into(), 0, &data, 512)).expect(Status::Ok);
    assert_eq!((done.data, done.used_len), (vec![virtio_zbd_testkit::UNTOUCHED; 512], 0));
    assert_eq!(rig.state().bytes, expected);
}

#[test]
fn a_read_only_disk_is_read_and_nothing_else() {
    let bytes = sectors(1, 2048);
    let inner = Arc::new(virtio_zbd_store::RamStore::plain(LEN * 512).unwrap());
    Rig::over(inner.clone(), Default::default()).accept(Request::write(0, &bytes));
    let mut rig = Rig::over(Arc::new(Probe::new(inner).read_only()), Default::default());
    let offered = Features::from_bits_retain(rig.disk.features());
    assert!(offered.contains(Features::RO));
    assert!(!offered.intersects(Features::DISCARD | Features::WRITE_ZEROES));

    for request in [
        Request::write(0, &sectors(2, 1)),
        Request::write(LEN - 1, &sectors(2, 1)),
        Request::write(LEN, &sectors(2, 1)),
        Request::write(0, &[]),
        Request::write(0, &[1; 100]),
    ] {
        rig.refuse(request, Status::IoErr);
    }
    rig.refuse(Request::discard(&[(0, 8)]), Status::Unsupp);
    rig.refuse(Request::write_zeroes(&[(0, 8)], true), Status::Unsupp);
    assert_eq!(rig.read(0, 2048), bytes);
    rig.accept(Request::flush());
    let serial = rig.store.identity().serial;
    assert_eq!(rig.accept(Request::get_id()).data, serial);
}

#[test]
fn a_driver_that_agreed_on_nothing_gets_nothing() {
    let mut rig = Rig::never_negotiated(Arc::new(Probe::plain(LEN * 512)));
    for request in [
        Request::read(0, 512),
        Request::write(0, &sectors(1, 1)),
        Request::flush(),
        Request::get_id(),
        Request::discard(&[(0, 1)]),
        Request::write_zeroes(&[(0, 1)], false),
        Request::zone_report(0, 4096),
        Request::raw(99, 0, &[], 0),
    ] {
        rig.refuse(request, Status::IoErr);
    }
}
