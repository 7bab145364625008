//! I/O that fails: what is answered, what the zone is afterwards, and that nothing of a failed write is ever read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::{Backing, Call, FaultyMedium, How, Probe, Rig, SECTOR, SHAPE, Zone, blocks, sectors, start_of};
use rustix::io::Errno;
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::{Request, Token};

use ZoneState::{
    Closed as CLOSED, Empty as EMPTY, ExplicitOpen as EOPEN, Full as FULL, ImplicitOpen as IOPEN,
    Offline as OFFLINE,
};

const BLOCK: u64 = 8;
const END: u64 = 128;

/// All sectors of a zone.
fn all_of(zone: u64) -> Range<u64> {
    start_of(zone)..start_of(zone + 1)
}

fn zeros(count: usize) -> Vec<u8> {
    vec![0; count * SECTOR]
}

/// A disk on a medium that can fail, with so many queues.
fn faulty(queues: u16) -> (Rig, Arc<FaultyMedium>) {
    let (medium, store) = FaultyMedium::zoned(SHAPE);
    (Rig::over(store, How { queues, ..Default::default() }), medium)
}

/// Submits a request on one queue.
#[track_caller]
fn submit(rig: &mut Rig, queue: usize, request: Request) -> Token {
    rig.queues[queue].queue.submit(request).unwrap()
}

/// Waits for the only request on a queue.
#[track_caller]
fn end(rig: &mut Rig, queue: usize, status: Status) -> Option<u64> {
    let timeout = rig.queues[queue].queue.timeout;
    let (_, done) = rig.queues[queue].queue.complete(timeout).unwrap();
    done.expect(status).append_sector
}

/// Makes a RESET, FINISH or RESET_ALL of these zones that can't be made durable: all is as it was, but that an implicitly open zone is
/// closed, as it may be at any time (V27).
#[track_caller]
fn refuse_undone(rig: &mut Rig, request: Request, zones: impl IntoIterator<Item = usize>) {
    let mut expected = rig.state();
    rig.refuse_quickly(request, Status::IoErr);
    for zone in zones {
        let zone = &mut expected.zones[zone];
        if zone.z_state == IOPEN as u8 {
            zone.z_state = CLOSED as u8;
            expected.open_and_active.0 -= 1;
        }
    }
    expected.assert_same(&rig.state());
}

const CONDITIONS: [(ZoneState, bool); 5] =
    [(EMPTY, false), (IOPEN, true), (EOPEN, false), (EOPEN, true), (CLOSED, true)];

#[test]
fn a_failed_write_moves_nothing() {
    for (from, written) in CONDITIONS {
        for append in [false, true] {
            for torn in [false, true] {
                let (mut rig, medium) = faulty(1);
                rig.bring(2, from, written);
                let before = rig.state();
                let wp = if written { BLOCK } else { 0 };
                match torn {
                    true => medium.tear(all_of(2)),
                    false => medium.fail(Call::Write, all_of(2)),
                }
                let request = match append {
                    true => Request::zone_append(start_of(2), &blocks(9, 4)),
                    false => Request::write(start_of(2) + wp, &blocks(9, 4)),
                };
                for _ in 0..2 {
                    rig.refuse_quickly(request.clone(), Status::IoErr);
                }
                // Not even beyond the write pointer, where nobody could read it.
                before.assert_same(&rig.state());
                let old = if written { blocks(2, 1) } else { vec![] };
                assert_eq!(rig.read(start_of(2) + wp, 96), zeros(96));

                // The place is not lost.
                medium.heal();
                assert_eq!(rig.append(start_of(2), &blocks(10, 1)), start_of(2) + wp);
                assert_eq!(rig.read(start_of(2), 24), {
                    let mut expected = [old, blocks(10, 1)].concat();
                    expected.resize(24 * SECTOR, 0);
                    expected
                });
                rig.accept(Request::zone_finish(start_of(2)));
                assert_eq!(rig.read(start_of(2) + wp + 8, 64), zeros(64));
            }
        }
    }
}

#[test]
fn a_failed_write_to_a_conventional_zone_is_told() {
    let (mut rig, medium) = faulty(1);
    rig.accept(Request::write(0, &sectors(1, 16)));
    medium.fail(Call::Write, 4..5);
    rig.refuse(Request::write(0, &sectors(2, 16)), Status::IoErr);
    rig.accept(Request::write(5, &sectors(2, 16)));
    medium.heal();
    rig.accept(Request::write(0, &sectors(3, 16)));
    assert_eq!(rig.read(0, 16), sectors(3, 16));
}

#[test]
fn a_failed_read_is_told() {
    let (mut rig, medium) = faulty(1);
    rig.accept(Request::write(start_of(2), &blocks(2, 4)));
    let before = rig.state();
    medium.fail(Call::Read, start_of(2) + 8..start_of(2) + 16);
    let done = rig.call(Request::read(start_of(2), 32 * SECTOR)).expect(Status::IoErr);
    assert_eq!(done.used_len, 0);
    assert_eq!(rig.read(start_of(2), 8), blocks(2, 4)[..4096]);
    // What was never written is not read from the medium.
    medium.fail(Call::Read, start_of(2) + 32..start_of(2) + 128);
    assert_eq!(rig.read(start_of(2) + 16, 112), [&blocks(2, 4)[2 * 4096..], &zeros(96)].concat());
    medium.heal();
    before.assert_same(&rig.state());
}

#[test]
fn a_failed_append_in_the_middle_leaves_a_gap_of_zeros() {
    // Whichever ends first.
    for failure_first in [true, false] {
        for torn in [false, true] {
            let (mut rig, medium) = faulty(3);
            rig.accept(Request::write(start_of(2), &blocks(1, 1)));
            let first = medium.hold(Call::Write, start_of(2) + 8..start_of(2) + 9);
            let second = medium.hold(Call::Write, start_of(2) + 24..start_of(2) + 25);
            submit(&mut rig, 1, Request::zone_append(start_of(2), &blocks(2, 2)));
            first.wait_for(1);
            submit(&mut rig, 2, Request::zone_append(start_of(2), &blocks(3, 3)));
            second.wait_for(1);
            // The write pointer is behind both while they are under way.
            assert_eq!(rig.zone(2), Zone(IOPEN, 48));
            match torn {
                true => medium.tear(start_of(2) + 8..start_of(2) + 9),
                false => medium.fail(Call::Write, start_of(2) + 8..start_of(2) + 9),
            }
            if failure_first {
                first.open();
                end(&mut rig, 1, Status::IoErr);
                second.open();
                assert_eq!(end(&mut rig, 2, Status::Ok), Some(start_of(2) + 24));
            } else {
                second.open();
                assert_eq!(end(&mut rig, 2, Status::Ok), Some(start_of(2) + 24));
                first.open();
                end(&mut rig, 1, Status::IoErr);
            }
            assert_eq!(rig.zone(2), Zone(IOPEN, 48));
            let expected = [blocks(1, 1), zeros(16), blocks(3, 3), zeros(80)].concat();
            assert_eq!(rig.read(start_of(2), 128), expected);
            let at = usize::try_from(start_of(2)).unwrap() * SECTOR;
            assert_eq!(rig.state().bytes[at..at + 128 * SECTOR], expected);
            medium.heal();
            assert_eq!(rig.append(start_of(2), &blocks(4, 1)), start_of(2) + 48);
        }
    }
}

#[test]
fn a_failed_append_at_the_end_gives_its_place_back() {
    for failure_first in [true, false] {
        let (mut rig, medium) = faulty(3);
        let first = medium.hold(Call::Write, start_of(2)..start_of(2) + 1);
        let second = medium.hold(Call::Write, start_of(2) + 16..start_of(2) + 17);
        submit(&mut rig, 1, Request::zone_append(start_of(2), &blocks(2, 2)));
        first.wait_for(1);
        submit(&mut rig, 2, Request::zone_append(start_of(2), &blocks(3, 3)));
        second.wait_for(1);
        medium.tear(start_of(2) + 16..start_of(2) + 17);
        let mut ends = [(&second, 2, Status::IoErr), (&first, 1, Status::Ok)];
        if !failure_first {
            ends.reverse();
        }
        for (gate, queue, status) in ends {
            gate.open();
            end(&mut rig, queue, status);
        }
        assert_eq!(rig.zone(2), Zone(IOPEN, 16));
        assert_eq!(rig.read(start_of(2), 128), [blocks(2, 2), zeros(112)].concat());
        medium.heal();
        assert_eq!(rig.append(start_of(2), &blocks(4, 1)), start_of(2) + 16);
        assert_eq!(rig.read(start_of(2), 128), [blocks(2, 2), blocks(4, 1), zeros(104)].concat());
    }
}

#[test]
fn a_gap_that_can_not_be_zeroed_holds_nothing_up() {
    let (mut rig, medium) = faulty(3);
    let first = medium.hold(Call::Write, start_of(2)..start_of(2) + 1);
    let second = medium.hold(Call::Write, start_of(2) + 16..start_of(2) + 17);
    submit(&mut rig, 1, Request::zone_append(start_of(2), &blocks(2, 2)));
    first.wait_for(1);
    submit(&mut rig, 2, Request::zone_append(start_of(2), &blocks(3, 3)));
    second.wait_for(1);
    medium.tear(start_of(2)..start_of(2) + 1);
    medium.fail(Call::Punch, all_of(2));
    first.open();
    end(&mut rig, 1, Status::IoErr);
    second.open();
    assert_eq!(end(&mut rig, 2, Status::Ok), Some(start_of(2) + 16));
    // The write that failed was told so, and what it has left is its own: never what was there before a reset.
    assert_eq!(rig.read(start_of(2) + 8, 32), [zeros(8), blocks(3, 3)].concat());
    medium.heal();
    rig.accept(Request::zone_reset(start_of(2)));
    assert_eq!(rig.zone(2), Zone(EMPTY, 0));
    assert_eq!(rig.read(start_of(2), 128), zeros(128));
}

#[test]
fn without_the_write_back_cache_a_failed_commit_is_the_writes_failure() {
    for zoned in [false, true] {
        let probe = Arc::new(if zoned { Probe::zoned(SHAPE) } else { Probe::plain(1 << 20) });
        let mut rig = Rig::over(probe.clone(), How::default());
        rig.negotiated.write_config(32, &[0]).unwrap();
        probe.fail_commits(true);
        rig.refuse_quickly(Request::write(0, &sectors(1, 8)), Status::IoErr);
        if zoned {
            rig.refuse_quickly(Request::write(start_of(2), &blocks(2, 1)), Status::IoErr);
            rig.refuse_quickly(Request::zone_append(start_of(2), &blocks(3, 1)), Status::IoErr);
            // The data is there, and so is the write pointer: what failed is the promise.
            assert_eq!(rig.zone(2), Zone(IOPEN, 16));
        } else {
            rig.refuse_quickly(Request::discard(&[(0, 8)]), Status::IoErr);
            rig.refuse_quickly(Request::write_zeroes(&[(0, 8)], false), Status::IoErr);
        }
        probe.fail_commits(false);
        rig.accept(Request::write(0, &sectors(1, 8)));
    }
}

#[test]
fn a_failed_flush_is_told() {
    let probe = Arc::new(Probe::zoned(SHAPE));
    let mut rig = Rig::over(probe.clone(), How::default());
    rig.accept(Request::write(start_of(2), &blocks(2, 1)));
    probe.fail_commits(true);
    rig.refuse(Request::flush(), Status::IoErr);
    rig.refuse(Request::flush(), Status::IoErr);
    probe.fail_commits(false);
    rig.accept(Request::flush());
}

#[test]
fn a_failed_reset_or_finish_leaves_the_zone_as_it_was() {
    let mut conditions = CONDITIONS.to_vec();
    conditions.extend([(FULL, false), (FULL, true)]);
    for (from, written) in conditions {
        let probe = Arc::new(Probe::zoned(SHAPE));
        let mut rig = Rig::over(probe.clone(), How::default());
        rig.bring(2, from, written);
        rig.bring(3, IOPEN, true);
        probe.fail_commits(true);
        // A zone that is empty is so durably.
        if from == EMPTY {
            rig.accept(Request::zone_reset(start_of(2)));
        } else {
            refuse_undone(&mut rig, Request::zone_reset(start_of(2)), [2]);
        }
        // A full zone, too: nobody has made durable that it was written full (D3).
        refuse_undone(&mut rig, Request::zone_finish(start_of(2)), [2]);
        refuse_undone(&mut rig, Request::zone_reset_all(), 0..9);
        if written {
            assert_eq!(rig.read(start_of(2), 16), [blocks(2, 1), zeros(8)].concat());
        }
        // It is not stuck in between.
        if from != FULL {
            rig.accept(Request::write(start_of(2) + BLOCK * u64::from(written), &blocks(9, 1)));
        }
        probe.fail_commits(false);
        rig.accept(Request::zone_finish(start_of(2)));
        assert_eq!(rig.zone(2), Zone(FULL, END));
        rig.accept(Request::zone_reset(start_of(2)));
        assert_eq!((rig.zone(2), rig.disk.open_and_active()), (Zone(EMPTY, 0), (0, 1)));
        rig.accept(Request::zone_reset_all());
        assert_eq!(rig.disk.open_and_active(), (0, 0));
    }
}

#[test]
fn a_failed_reset_keeps_its_zones_resources() {
    let probe = Arc::new(Probe::zoned(SHAPE));
    let mut rig = Rig::over(probe.clone(), How { queues: 2, ..Default::default() });
    for zone in [2, 3, 4] {
        rig.bring(zone, EOPEN, true);
    }
    // While the reset is under way nobody may take what it might need back.
    for (request, fails) in [
        (Request::zone_reset(start_of(2)), true),
        (Request::zone_finish(start_of(2)), true),
        (Request::zone_reset(start_of(2)), false),
    ] {
        probe.fail_commits(fails);
        probe.commit_gate.close();
        submit(&mut rig, 1, request);
        probe.commit_gate.wait_for(1);
        rig.refuse_quickly(Request::zone_open(start_of(5)), Status::ZoneOpenResource);
        assert_eq!(rig.disk.open_and_active(), (3, 3));
        probe.commit_gate.open();
        end(&mut rig, 1, if fails { Status::IoErr } else { Status::Ok });
    }
    rig.accept(Request::zone_open(start_of(5)));
    assert_eq!((rig.zone(2), rig.disk.open_and_active()), (Zone(EMPTY, 0), (3, 3)));
}

#[test]
fn a_zone_whose_data_can_not_be_taken_away_goes_offline() {
    let probe = Arc::new(Probe::zoned(SHAPE));
    let mut rig = Rig::over(probe.clone(), How::default());
    for zone in [2, 3, 4] {
        rig.bring(zone, EOPEN, true);
    }
    probe.fail_holes(&[2, 6], Errno::IO);
    rig.refuse_quickly(Request::zone_reset(start_of(2)), Status::IoErr);
    assert_eq!((rig.zone(2), rig.disk.open_and_active()), (Zone(OFFLINE, END), (2, 2)));
    for request in [
        Request::read(start_of(2), 512),
        Request::write(start_of(2), &blocks(9, 1)),
        Request::zone_append(start_of(2), &blocks(9, 1)),
        Request::zone_reset(start_of(2)),
        Request::zone_open(start_of(2)),
    ] {
        rig.refuse(request, Status::ZoneInvalidCmd);
    }
    // Of several zones only that one; the request has failed all the same.
    rig.bring(6, FULL, true);
    rig.refuse_quickly(Request::zone_reset_all(), Status::IoErr);
    let expected = [(2, OFFLINE), (3, EMPTY), (4, EMPTY), (5, EMPTY), (6, OFFLINE)];
    for (zone, condition) in expected {
        assert_eq!(rig.zone(zone).0, condition, "zone {zone}");
    }
    probe.fail_holes(&[], Errno::IO);
    rig.accept(Request::zone_reset_all());
    assert_eq!((rig.zone(2).0, rig.zone(6).0), (OFFLINE, OFFLINE));
}

#[test]
fn after_a_failed_sync_an_image_promises_nothing_more() {
    let (mut rig, medium) = faulty(1);
    rig.bring(2, IOPEN, true);
    medium.fail_syncs();
    rig.refuse(Request::flush(), Status::IoErr);
    refuse_undone(&mut rig, Request::zone_finish(start_of(2)), [2]);
    medium.heal();
    // Linux forgets what it could not write: a sync that succeeds now would prove nothing.
    rig.refuse(Request::flush(), Status::IoErr);
    rig.refuse(Request::zone_finish(start_of(2)), Status::IoErr);
    rig.refuse(Request::zone_reset(start_of(2)), Status::IoErr);
    // What it has can be read, to be saved elsewhere.
    assert_eq!(rig.read(start_of(2), 8), blocks(2, 1));
}

#[test]
fn io_past_the_end_of_what_the_store_has_moves_nothing() {
    // A store that is shorter than it says: from the middle of zone 4 on every write fails.
    let probe = Arc::new(Probe::bad_from(SHAPE, start_of(4) + 16));
    let mut rig = Rig::over(probe, How::default());
    rig.accept(Request::write(start_of(4), &blocks(4, 2)));
    rig.refuse_quickly(Request::zone_append(start_of(4), &blocks(9, 1)), Status::IoErr);
    rig.refuse_quickly(Request::write(start_of(5), &blocks(9, 1)), Status::IoErr);
    assert_eq!((rig.zone(4), rig.zone(5)), (Zone(IOPEN, 16), Zone(EMPTY, 0)));
    assert_eq!(rig.disk.open_and_active(), (1, 1));
    assert_eq!(rig.read(start_of(5), 8), zeros(8));
    rig.accept(Request::write(start_of(3), &blocks(3, 1)));
}

#[test]
fn a_disk_on_an_image_that_was_closed_refuses_all_changes() {
    let (store, _place) = Backing::FileSync.zoned(SHAPE);
    let mut rig = Rig::over(store.clone(), How::default());
    rig.bring(2, IOPEN, true);
    store.close().unwrap();
    rig.refuse(Request::write(start_of(2) + BLOCK, &blocks(9, 1)), Status::IoErr);
    refuse_undone(&mut rig, Request::zone_reset(start_of(2)), [2]);
    assert_eq!(rig.read(start_of(2), 8), blocks(2, 1));
}

#[test]
fn what_is_left_of_a_failed_write_is_gone_before_its_zone_is_reset() {
    // Two appends side by side, of which the first fails; a reset waits for both. If it did not wait for the zeros, too, they would be
    // written over what comes after the reset.
    for failure_first in [true, false] {
        let (mut rig, medium) = faulty(4);
        let start = start_of(2);
        let first = medium.hold(Call::Write, start..start + 1);
        let second = medium.hold(Call::Write, start + 16..start + 17);
        submit(&mut rig, 1, Request::zone_append(start, &blocks(2, 2)));
        first.wait_for(1);
        submit(&mut rig, 2, Request::zone_append(start, &blocks(3, 3)));
        second.wait_for(1);
        submit(&mut rig, 3, Request::zone_reset(start));
        medium.tear(start..start + 1);
        let zeroing = medium.hold_inside(Call::Punch, start..start + 16);
        if failure_first {
            first.open();
            zeroing.wait_for(1);
            second.open();
            end(&mut rig, 2, Status::Ok);
        } else {
            second.open();
            end(&mut rig, 2, Status::Ok);
            first.open();
            zeroing.wait_for(1);
        }
        // The reset's worker has looked at it once more when it has answered what came behind it.
        for _ in 0..3 {
            let read = rig.queues[3].queue.call(Request::read(0, SECTOR)).unwrap();
            let _ = read.expect(Status::Ok);
        }
        assert_eq!(rig.zone(2), Zone(IOPEN, 40), "the zone is not reset while zeros are on their way");
        medium.heal();
        zeroing.open();
        end(&mut rig, 1, Status::IoErr);
        end(&mut rig, 3, Status::Ok);
        assert_eq!(rig.zone(2), Zone(EMPTY, 0));
        rig.accept(Request::write(start, &blocks(9, 4)));
        assert_eq!(rig.read(start, 32), blocks(9, 4));
    }
}
