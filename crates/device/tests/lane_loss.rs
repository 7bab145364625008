//! The engine of a queue's I/O fails, not one operation: its requests are answered, its zones are not stuck, others go on.
//!
//! `DEVICE_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Backing, How, Rig, SECTOR, SHAPE, Zone, start_of};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_store::{CreateOptions, FaultRule, Faults, ImageStore, OpenOptions, RamStore, Store};
use virtio_zbd_testkit::{Completion, QueueOptions, Request, Token};
use virtio_zbd_zones::Geometry;

const BLOCK_LEN: usize = 4096;

/// A disk with these faults; the directory goes with it.
fn store(on: Backing, rule: &str) -> (Arc<dyn Store>, Option<tempfile::TempDir>) {
    let rule: FaultRule = rule.parse().unwrap();
    let geometry = Geometry::new(SHAPE).unwrap();
    if on == Backing::Ram {
        let mut store = RamStore::new(geometry).unwrap();
        store.inject(Faults::new(&[rule], &store).unwrap());
        return (Arc::new(store), None);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    ImageStore::create(&path, geometry, CreateOptions::default()).unwrap();
    let mut store = ImageStore::open(&path, OpenOptions::default()).unwrap();
    store.inject(Faults::new(&[rule], &store).unwrap());
    (Arc::new(store), Some(dir))
}

/// Waits until all that is under way on a queue is answered, or the queue is given up and what was taken is.
fn settle<T>(rig: &mut Rig, queue: usize, under_way: &mut BTreeMap<Token, T>) -> Vec<(T, Completion)> {
    let mut answered = Vec::new();
    let start = Instant::now();
    while !under_way.is_empty() {
        // Asked before: what is answered then is all.
        let given_up = rig.queues[queue].broken() != 0;
        if given_up {
            rig.queues[queue].stop();
        }
        match rig.queues[queue].queue.complete(Duration::from_millis(if given_up { 0 } else { 50 })) {
            Ok((token, done)) => answered.push((under_way.remove(&token).unwrap(), done)),
            Err(_) if given_up => break,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
    }
    answered
}

/// The same until all of it is answered: a queue that was given up is started again, as often as it takes.
fn settle_all<T>(rig: &mut Rig, queue: usize, under_way: &mut BTreeMap<Token, T>) -> Vec<(T, Completion)> {
    let mut answered = Vec::new();
    loop {
        answered.extend(settle(rig, queue, under_way));
        if under_way.is_empty() {
            return answered;
        }
        let (disk, negotiated) = (Arc::clone(&rig.disk), Arc::clone(&rig.negotiated));
        rig.queues[queue].forget_broken();
        rig.queues[queue].start(&disk, &negotiated);
    }
}

/// Makes a request until no engine fails under it.
fn surely(rig: &mut Rig, request: Request) -> Completion {
    for _ in 0..20 {
        let token = rig.queue().submit(request.clone()).unwrap();
        let done = settle_all(rig, 0, &mut BTreeMap::from([(token, ())])).remove(0).1;
        if done.status != Status::IoErr as u8 {
            return done;
        }
    }
    panic!("{request:?} fails again and again")
}

fn block(number: u8) -> Vec<u8> {
    vec![number; BLOCK_LEN]
}

#[test]
fn one_failure_costs_what_was_under_way_and_nothing_else() {
    for on in [Backing::Ram, Backing::FileIoUring, Backing::FileSync] {
        let mut failed = 0;
        for after in 0..24 {
            let (store, _dir) = store(on, &format!("engine:eio@after={after},times=1"));
            let mut rig = Rig::over(store, How { engine: on.engine(), ..Default::default() });
            let mut expected = Vec::new();
            for number in 1..=10 {
                let done = rig.call(Request::zone_append(start_of(2), &block(number)));
                if done.status == Status::Ok as u8 {
                    let at = usize::try_from(done.append_sector.unwrap() - start_of(2)).unwrap() * SECTOR;
                    assert_eq!(at, expected.len(), "a failed append leaves nothing at the end");
                    expected.extend(block(number));
                } else {
                    assert_eq!(done.status, Status::IoErr as u8);
                    failed += 1;
                }
            }
            let sectors = expected.len() / SECTOR;
            let zone = rig.zone(2);
            assert_eq!(zone, Zone(ZoneState::ImplicitOpen, sectors as u64), "{on:?}, after {after}");
            expected.resize(96 * SECTOR, 0);
            // The failure may still come.
            let read = (0..3).map(|_| rig.call(Request::read(start_of(2), 96 * SECTOR)));
            let read = read.into_iter().find(|read| read.status == Status::Ok as u8).unwrap();
            assert!(read.data == expected, "{on:?}, after {after}");
            let _ = rig.call(Request::zone_reset(start_of(2)));
            rig.accept(Request::zone_reset(start_of(2)));
            assert_eq!((rig.zone(2), rig.queues[0].broken()), (Zone(ZoneState::Empty, 0), 0));
        }
        assert!((1..=24).contains(&failed), "{on:?}: {failed} of 24 have failed");
    }
}

#[test]
fn a_queue_that_is_given_up_leaves_no_zone_behind() {
    for on in [Backing::Ram, Backing::FileIoUring, Backing::FileSync] {
        let mut given_up = 0;
        for after in 0..12 {
            let (store, _dir) = store(on, &format!("engine:eio@after={after},times=2"));
            let mut rig = Rig::over(store, How { engine: on.engine(), ..Default::default() });
            // Everything that may wait for something: places, commits, zones that others reset.
            let mut under_way = BTreeMap::new();
            for _ in 0..3 {
                for zone in [2, 3] {
                    for request in [
                        Request::zone_append(start_of(zone), &block(7)),
                        Request::zone_append(start_of(zone), &block(8)),
                        Request::read(start_of(zone), BLOCK_LEN),
                        Request::zone_reset(start_of(zone)),
                        Request::flush(),
                        Request::zone_append(start_of(zone), &block(9)),
                    ] {
                        under_way.insert(rig.queue().submit(request).unwrap(), ());
                    }
                }
            }
            // What was taken is answered; what was not is in the ring, for whoever starts the queue again.
            let answered = settle(&mut rig, 0, &mut under_way);
            given_up += rig.queues[0].broken();
            if !under_way.is_empty() {
                let taken = rig.queues[0].next_avail().wrapping_sub(rig.queues[0].queue.ring.base());
                assert_eq!(usize::from(taken), answered.len(), "taken, and answered");
            }
            let answered = answered.into_iter().chain(settle_all(&mut rig, 0, &mut under_way));
            let known = [Status::Ok as u8, Status::IoErr as u8, Status::ZoneInvalidCmd as u8];
            for ((), done) in answered {
                assert!(known.contains(&done.status), "{done:?}");
            }
            // No zone waits for anybody.
            for zone in [2, 3] {
                let report = surely(&mut rig, Request::zone_report(start_of(zone), 128));
                let read_only = report.zones().unwrap()[0].z_state == ZoneState::ReadOnly as u8;
                let expected = if read_only { Status::ZoneInvalidCmd } else { Status::Ok };
                let _ = surely(&mut rig, Request::zone_reset(start_of(zone))).expect(expected);
            }
            let _ = surely(&mut rig, Request::zone_open(start_of(4))).expect(Status::Ok);
            assert_eq!(rig.disk.open_and_active(), (1, 1), "{on:?}, after {after}");
        }
        assert!(given_up > 0, "{on:?}: no queue was given up");
    }
}

#[test]
fn engines_fail_under_a_storm_on_four_queues() {
    let seed = std::env::var("DEVICE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("DEVICE_SEED={seed}");
    for on in [Backing::Ram, Backing::FileIoUring] {
        for run in 0..12 {
            let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(run));
            let rule = format!("engine:eio@after={},times={}", rng.u32(4..120), rng.u32(1..8));
            println!("{on:?} run {run}: {rule}");
            let (store, _dir) = store(on, &rule);
            let options = QueueOptions { size: 1024, ..Default::default() };
            let mut rig = Rig::over(store, How { queues: 4, options, ..Default::default() });
            // Where each block is that was answered with OK; each has its own number.
            let mut landed = BTreeMap::new();
            let mut under_way: [BTreeMap<Token, Option<u8>>; 4] = Default::default();
            let mut number = 0u8;
            for _ in 0..160 {
                let queue = rng.usize(..4);
                let zone = rng.u64(2..6);
                let (block, request) = match rng.u8(..10) {
                    0 => (None, Request::flush()),
                    1 => (None, Request::read(start_of(zone), 16 * SECTOR)),
                    // A zone that nobody looks into.
                    2 => (None, Request::zone_append(start_of(7), &block(255))),
                    3 => (None, Request::zone_reset(start_of(7))),
                    _ => {
                        number = number.wrapping_add(1).max(1);
                        (Some(number), Request::zone_append(start_of(zone), &block(number)))
                    }
                };
                let token = rig.queues[queue].queue.submit(request).unwrap();
                under_way[queue].insert(token, block);
            }
            for (queue, mut under_way) in under_way.into_iter().enumerate() {
                for (number, done) in settle_all(&mut rig, queue, &mut under_way) {
                    if let (Some(number), true) = (number, done.status == Status::Ok as u8) {
                        let before = landed.insert(done.append_sector.unwrap(), number);
                        assert_eq!(before, None, "two in one place");
                    }
                }
            }
            for zone in 2..6 {
                let report = surely(&mut rig, Request::zone_report(start_of(zone), 128));
                let read_only = report.zones().unwrap()[0].z_state == ZoneState::ReadOnly as u8;
                let data =
                    surely(&mut rig, Request::read(start_of(zone), 96 * SECTOR)).expect(Status::Ok).data;
                for (at, found) in (start_of(zone)..).step_by(8).zip(data.chunks(BLOCK_LEN)) {
                    match landed.get(&at) {
                        Some(number) => {
                            assert!(found.iter().all(|byte| byte == number), "block {number} is gone")
                        }
                        None => {
                            assert!(read_only || found.iter().all(|byte| *byte == 0), "a failed write shows")
                        }
                    }
                }
            }
        }
    }
}
