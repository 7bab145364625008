//! A medium that is bad or full: which zones go out of use, what stays as it was, and that both outlive the program and the power.
//! What is answered to the request that has met it is always IOERR.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::{Call, FaultyMedium, How, Probe, Rig, SECTOR, SHAPE, Zone, blocks, sectors, start_of};
use rustix::io::Errno;
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::Request;

use ZoneState::{
    Closed as CLOSED, Empty as EMPTY, ExplicitOpen as EOPEN, Full as FULL, ImplicitOpen as IOPEN,
    Offline as OFFLINE, ReadOnly as READ_ONLY,
};

/// Where a report says the write pointer of a zone is that has none.
const END: u64 = 128;

/// Errors that say that the medium is bad.
const BAD: [Errno; 5] = [Errno::IO, Errno::REMOTEIO, Errno::NODATA, Errno::BADMSG, Errno::NXIO];
/// Errors that may pass.
const PASSING: [Errno; 3] = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];

fn all_of(zone: u64) -> Range<u64> {
    start_of(zone)..start_of(zone + 1)
}

fn zeros(count: usize) -> Vec<u8> {
    vec![0; count * SECTOR]
}

fn faulty(queues: u16) -> (Rig, Arc<FaultyMedium>) {
    let (medium, store) = FaultyMedium::zoned(SHAPE);
    (Rig::over(store, How { queues, ..Default::default() }), medium)
}

/// The disk as it is found after a kill, and after a power cut.
fn restarts(mut rig: Rig, medium: &Arc<FaultyMedium>) -> [Rig; 2] {
    rig.stop_all();
    medium.heal();
    let killed = Rig::over(rig.store.clone(), How::default());
    // The two have one file, of which only one may be written. That is the one that is opened last, and the
    // other one is only looked at before it is written.
    let cut = Rig::over(medium.after_a_power_cut(), How::default());
    [killed, cut]
}

/// Every change is refused, and a read finds what was written.
#[track_caller]
fn check_read_only(rig: &mut Rig, zone: u64, data: &[u8]) {
    assert_eq!(rig.zone(zone), Zone(READ_ONLY, END));
    for request in changes(zone) {
        rig.refuse(request, Status::ZoneInvalidCmd);
    }
    let mut expected = data.to_vec();
    expected.resize(128 * SECTOR, 0);
    assert_eq!(rig.read(start_of(zone), 128), expected);
}

/// Nothing but a report works.
#[track_caller]
fn check_offline(rig: &mut Rig, zone: u64) {
    for request in changes(zone) {
        rig.refuse_quickly(request, Status::ZoneInvalidCmd);
    }
    rig.refuse_quickly(Request::read(start_of(zone), SECTOR), Status::ZoneInvalidCmd);
    assert_eq!(rig.zone(zone), Zone(OFFLINE, END));
}

fn changes(zone: u64) -> [Request; 6] {
    let start = start_of(zone);
    [
        Request::write(start, &blocks(9, 1)),
        Request::zone_append(start, &blocks(9, 1)),
        Request::zone_open(start),
        Request::zone_close(start),
        Request::zone_finish(start),
        Request::zone_reset(start),
    ]
}

#[test]
fn v28_a_zone_that_can_not_be_written_is_read_only_for_good() {
    for errno in BAD {
        for (from, written) in [(EMPTY, false), (IOPEN, true), (EOPEN, false), (EOPEN, true), (CLOSED, true)]
        {
            let (mut rig, medium) = faulty(1);
            rig.bring(2, from, written);
            rig.bring(3, EOPEN, true);
            let wp = if written { 8 } else { 0 };
            let data = if written { blocks(2, 1) } else { vec![] };
            medium.fail_with(Call::Write, all_of(2), errno);
            rig.refuse_quickly(Request::write(start_of(2) + wp, &blocks(9, 4)), Status::IoErr);
            assert_eq!(rig.disk.open_and_active(), (1, 1), "{errno} {from:?}");
            check_read_only(&mut rig, 2, &data);
            // The medium may get better, the zone does not: nobody knows what else is wrong with it.
            medium.heal();
            check_read_only(&mut rig, 2, &data);
            // The others go on.
            assert_eq!(rig.append(start_of(3), &blocks(3, 1)), start_of(3) + 8);
            rig.accept(Request::zone_reset_all());
            check_read_only(&mut rig, 2, &data);
            for mut rig in restarts(rig, &medium) {
                assert_eq!((rig.zone(3), rig.disk.open_and_active()), (Zone(EMPTY, 0), (0, 0)));
                check_read_only(&mut rig, 2, &data);
            }
        }
    }
}

#[test]
fn a_full_host_is_told_and_nothing_else_happens() {
    for errno in PASSING {
        let (mut rig, medium) = faulty(1);
        rig.bring(2, IOPEN, true);
        rig.bring(3, EMPTY, false);
        let before = rig.state();
        medium.fail_with(Call::Write, start_of(2)..start_of(4), errno);
        for _ in 0..2 {
            rig.refuse_quickly(Request::write(start_of(2) + 8, &blocks(9, 1)), Status::IoErr);
            rig.refuse_quickly(Request::zone_append(start_of(3), &blocks(9, 1)), Status::IoErr);
            before.assert_same(&rig.state());
        }
        medium.heal();
        assert_eq!(rig.append(start_of(2), &blocks(9, 1)), start_of(2) + 8);
        assert_eq!(rig.append(start_of(3), &blocks(9, 1)), start_of(3));
    }
}

#[test]
fn what_can_not_be_taken_away_after_a_failed_write_never_shows() {
    for errno in [Errno::IO, Errno::NOSPC] {
        let (mut rig, medium) = faulty(1);
        rig.bring(2, IOPEN, true);
        // The half of it is there.
        medium.tear(all_of(2));
        medium.fail_with(Call::Punch, all_of(2), errno);
        rig.refuse_quickly(Request::write(start_of(2) + 8, &blocks(9, 4)), Status::IoErr);
        if errno == Errno::IO {
            check_read_only(&mut rig, 2, &blocks(2, 1));
            medium.heal();
            for mut rig in restarts(rig, &medium) {
                check_read_only(&mut rig, 2, &blocks(2, 1));
            }
        } else {
            assert_eq!(rig.zone(2), Zone(IOPEN, 8));
            assert_eq!(rig.read(start_of(2), 64), [blocks(2, 1), zeros(56)].concat());
            medium.heal();
            assert_eq!(rig.append(start_of(2), &blocks(4, 1)), start_of(2) + 8);
            assert_eq!(rig.read(start_of(2), 64), [blocks(2, 1), blocks(4, 1), zeros(48)].concat());
        }
    }
}

#[test]
fn a_failure_in_the_middle_leaves_a_gap_in_a_read_only_zone() {
    for failure_first in [true, false] {
        let (mut rig, medium) = faulty(4);
        rig.bring(2, IOPEN, true);
        let first = medium.hold(Call::Write, start_of(2) + 8..start_of(2) + 9);
        let second = medium.hold(Call::Write, start_of(2) + 24..start_of(2) + 25);
        let submit = |rig: &mut Rig, queue: usize, request| rig.queues[queue].queue.submit(request).unwrap();
        let end = |rig: &mut Rig, queue: usize, status| {
            let timeout = rig.queues[queue].queue.timeout;
            rig.queues[queue].queue.complete(timeout).unwrap().1.expect(status).append_sector
        };
        submit(&mut rig, 1, Request::zone_append(start_of(2), &blocks(3, 2)));
        first.wait_for(1);
        submit(&mut rig, 2, Request::zone_append(start_of(2), &blocks(4, 3)));
        second.wait_for(1);
        // It waits for both, and then finds that there is nothing to reset any more.
        submit(&mut rig, 3, Request::zone_reset(start_of(2)));
        medium.fail_with(Call::Write, start_of(2) + 8..start_of(2) + 9, Errno::IO);
        let ends: [&dyn Fn(&mut Rig); 2] = [
            &|rig| {
                first.open();
                assert_eq!(end(rig, 1, Status::IoErr), Some(0));
            },
            &|rig| {
                second.open();
                assert_eq!(end(rig, 2, Status::Ok), Some(start_of(2) + 24));
            },
        ];
        let order = if failure_first { [0, 1] } else { [1, 0] };
        for index in order {
            ends[index](&mut rig);
        }
        end(&mut rig, 3, Status::ZoneInvalidCmd);
        let data = [blocks(2, 1), zeros(16), blocks(4, 3)].concat();
        check_read_only(&mut rig, 2, &data);
        rig.accept(Request::flush());
        for mut rig in restarts(rig, &medium) {
            check_read_only(&mut rig, 2, &data);
        }
    }
}

#[test]
fn v29_a_zone_that_can_not_be_read_is_offline_for_good() {
    for (from, errno) in [IOPEN, EOPEN, CLOSED, FULL].into_iter().zip(BAD) {
        let (mut rig, medium) = faulty(1);
        rig.bring(2, from, true);
        medium.fail_with(Call::Read, all_of(2), errno);
        // What lies behind the write pointer does not come from the medium.
        assert_eq!(rig.read(start_of(2) + 8, 16), zeros(16));
        let done = rig.call(Request::read(start_of(2), 16 * SECTOR)).expect(Status::IoErr);
        assert_eq!((done.used_len, rig.disk.open_and_active()), (0, (0, 0)), "{errno} {from:?}");
        check_offline(&mut rig, 2);
        medium.heal();
        rig.accept(Request::zone_reset_all());
        check_offline(&mut rig, 2);
        rig.accept(Request::write(start_of(3), &blocks(3, 1)));
        for mut rig in restarts(rig, &medium) {
            check_offline(&mut rig, 2);
        }
    }
}

#[test]
fn a_place_that_can_not_be_read_costs_no_more_than_itself() {
    for good in [0, 5, 11] {
        let (mut rig, medium) = faulty(1);
        rig.accept(Request::write(start_of(2), &blocks(2, 12)));
        let before = rig.state();
        for bad in (0..12).filter(|block| *block != good) {
            let bad = start_of(2) + bad * 8;
            medium.fail_with(Call::Read, bad..bad + 8, Errno::IO);
        }
        let at = start_of(2) + 8 * (u64::from(good == 0));
        for _ in 0..2 {
            let _ = rig.call(Request::read(at, 8 * SECTOR)).expect(Status::IoErr);
        }
        let from = usize::try_from(good).unwrap() * 4096;
        assert_eq!(rig.read(start_of(2) + good * 8, 8), blocks(2, 12)[from..from + 4096]);
        medium.heal();
        before.assert_same(&rig.state());
    }
    // Nor does a fault that may pass.
    let (mut rig, medium) = faulty(1);
    rig.bring(2, IOPEN, true);
    medium.fail_with(Call::Read, all_of(2), Errno::NOMEM);
    let _ = rig.call(Request::read(start_of(2), 8 * SECTOR)).expect(Status::IoErr);
    assert_eq!(rig.zone(2), Zone(IOPEN, 8));
}

#[test]
fn a_read_only_zone_that_can_not_be_read_either_is_offline() {
    let (mut rig, medium) = faulty(1);
    rig.bring(2, IOPEN, true);
    medium.fail_with(Call::Write, all_of(2), Errno::IO);
    rig.refuse_quickly(Request::write(start_of(2) + 8, &blocks(9, 1)), Status::IoErr);
    check_read_only(&mut rig, 2, &blocks(2, 1));
    medium.fail_with(Call::Read, all_of(2), Errno::IO);
    let _ = rig.call(Request::read(start_of(2), SECTOR)).expect(Status::IoErr);
    check_offline(&mut rig, 2);
    for mut rig in restarts(rig, &medium) {
        check_offline(&mut rig, 2);
    }
}

#[test]
fn a_conventional_zone_fails_where_it_fails() {
    let (mut rig, medium) = faulty(1);
    rig.accept(Request::write(0, &sectors(1, 16)));
    medium.fail_with(Call::Write, 4..5, Errno::IO);
    medium.fail_with(Call::Read, 0..128, Errno::IO);
    let before = rig.zone(0);
    rig.refuse_quickly(Request::write(0, &sectors(2, 16)), Status::IoErr);
    let _ = rig.call(Request::read(0, SECTOR)).expect(Status::IoErr);
    medium.heal();
    assert_eq!((rig.zone(0), rig.read(0, 16)), (before, sectors(1, 16)));
    rig.accept(Request::write(0, &sectors(3, 16)));
}

#[test]
fn a_reset_whose_hole_can_not_be_punched_takes_the_zone_offline_for_good() {
    let (mut rig, medium) = faulty(1);
    for zone in [2, 3, 4] {
        rig.bring(zone, EOPEN, true);
    }
    medium.fail_with(Call::Punch, all_of(3), Errno::IO);
    rig.refuse_quickly(Request::zone_reset_all(), Status::IoErr);
    let after = [2, 3, 4].map(|zone| rig.zone(zone));
    assert_eq!(
        (after, rig.disk.open_and_active()),
        ([Zone(EMPTY, 0), Zone(OFFLINE, END), Zone(EMPTY, 0)], (0, 0))
    );
    check_offline(&mut rig, 3);
    for mut rig in restarts(rig, &medium) {
        check_offline(&mut rig, 3);
        assert_eq!(rig.zone(2), Zone(EMPTY, 0));
    }
}

#[test]
fn a_full_host_during_a_reset_leaves_an_empty_zone_that_takes_nothing_until_it_is_reset_again() {
    for errno in PASSING {
        let (mut rig, medium) = faulty(1);
        rig.bring(2, EOPEN, true);
        rig.bring(3, FULL, true);
        // Neither a hole nor zeros over what is there.
        medium.fail_with(Call::Punch, start_of(2)..start_of(4), errno);
        medium.fail_with(Call::Write, start_of(2)..start_of(4), errno);
        for request in
            [Request::zone_reset(start_of(2)), Request::zone_reset_all(), Request::zone_reset(start_of(2))]
        {
            rig.refuse_quickly(request, Status::IoErr);
        }
        assert_eq!(
            (rig.zone(2), rig.zone(3), rig.disk.open_and_active()),
            (Zone(EMPTY, 0), Zone(EMPTY, 0), (0, 0))
        );
        for zone in [2, 3] {
            assert_eq!(rig.read(start_of(zone), 128), zeros(128));
        }
        medium.heal();
        // A gap could show what is still there.
        rig.refuse(Request::write(start_of(2), &blocks(9, 1)), Status::IoErr);
        rig.refuse(Request::zone_append(start_of(3), &blocks(9, 1)), Status::IoErr);
        rig.accept(Request::zone_reset(start_of(2)));
        assert_eq!(rig.append(start_of(2), &blocks(9, 1)), start_of(2));
        // Nothing is to be remembered over a restart: whoever opens the image takes the rest away.
        rig.stop_all();
        rig.store.close().unwrap();
        let mut rig = Rig::over(medium.after_a_power_cut(), How::default());
        assert_eq!(rig.append(start_of(3), &blocks(9, 1)), start_of(3));
        let expected = [blocks(9, 1), zeros(120)].concat();
        let at = usize::try_from(start_of(3)).unwrap() * SECTOR;
        assert!(rig.state().bytes[at..at + 128 * SECTOR] == expected, "old data is left");
    }
}

#[test]
fn a_full_host_that_takes_zeros_is_no_failure() {
    let (mut rig, medium) = faulty(1);
    rig.bring(2, EOPEN, true);
    medium.fail_with(Call::Punch, all_of(2), Errno::NOSPC);
    rig.accept(Request::zone_reset(start_of(2)));
    let at = usize::try_from(start_of(2)).unwrap() * SECTOR;
    assert!(rig.state().bytes[at..at + 128 * SECTOR] == zeros(128), "old data is left");
    rig.accept(Request::write(start_of(2), &blocks(9, 1)));
}

#[test]
fn a_zone_that_can_not_be_swept_does_not_keep_an_image_from_being_opened() {
    for (from, then) in [(EMPTY, Zone(READ_ONLY, END)), (CLOSED, Zone(READ_ONLY, END))] {
        let (mut rig, medium) = faulty(1);
        rig.bring(2, from, from == CLOSED);
        rig.accept(Request::flush());
        // On the medium, and in no write pointer that a power cut leaves.
        rig.accept(Request::zone_append(start_of(2), &blocks(9, 1)));
        rig.stop_all();
        medium.fail_with(Call::Punch, all_of(2), Errno::IO);
        let mut rig = Rig::over(medium.after_a_power_cut(), How::default());
        medium.heal();
        let data = if from == CLOSED { blocks(2, 1) } else { vec![] };
        assert_eq!(rig.zone(2), then);
        check_read_only(&mut rig, 2, &data);
        for mut rig in restarts(rig, &medium) {
            check_read_only(&mut rig, 2, &data);
        }
    }
}

#[test]
fn one_reset_that_fails_does_not_fail_who_commits_beside_it() {
    let probe = Arc::new(Probe::zoned(SHAPE));
    let mut rig = Rig::over(probe.clone(), How { queues: 4, ..Default::default() });
    rig.bring(2, CLOSED, true);
    rig.bring(3, CLOSED, true);
    probe.commit_gate.close();
    let submit = |rig: &mut Rig, queue: usize, request| rig.queues[queue].queue.submit(request).unwrap();
    submit(&mut rig, 0, Request::flush());
    probe.commit_gate.wait_for(1);
    // These go into one commit, which can't be made for one of them.
    probe.fail_commits_of(2);
    submit(&mut rig, 1, Request::zone_reset(start_of(2)));
    submit(&mut rig, 2, Request::zone_finish(start_of(3)));
    submit(&mut rig, 3, Request::flush());
    for queue in 1..4 {
        // It has been handed on when what came behind it is answered.
        let _ = rig.queues[queue].queue.call(Request::read(0, SECTOR)).unwrap().expect(Status::Ok);
    }
    probe.commit_gate.open();
    for (queue, status) in [Status::Ok, Status::IoErr, Status::Ok, Status::Ok].into_iter().enumerate() {
        let timeout = rig.queues[queue].queue.timeout;
        let (_, done) = rig.queues[queue].queue.complete(timeout).unwrap();
        let _ = done.expect(status);
    }
    assert_eq!((rig.zone(2), rig.zone(3)), (Zone(CLOSED, 8), Zone(FULL, END)));
}
