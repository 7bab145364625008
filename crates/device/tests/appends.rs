//! Many requests in flight to one zone: appends side by side, and what a RESET or FINISH among them waits for.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use common::{
    Backing, Call, FaultyMedium, How, Probe, Rig, SECTOR, SHAPE, Zone, blocks, on_every_store, start_of,
};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::{Completion, QueueOptions, Request, Token};
use virtio_zbd_zones::GeometryConfig;

on_every_store!(
    sixty_four_appends_over_two_queues_land_side_by_side,
    appends_of_all_lengths_to_several_zones,
    appends_until_the_zone_is_full,
    appends_among_resets_and_finishes,
    reset_all_on_two_queues_at_once,
);

/// Zones long enough for a few hundred blocks.
const LONG: GeometryConfig = GeometryConfig {
    capacity_sectors: 6 * 4096,
    zone_sectors: 4096,
    zone_capacity_sectors: 4000,
    conventional_zones: 1,
    max_open_zones: 4,
    max_active_zones: 5,
    max_append_sectors: 64,
    write_granularity_bytes: 4096,
};

const ZONE: u64 = 4096;

fn long(on: Backing) -> Rig {
    let options = QueueOptions { size: 256, ..Default::default() };
    Rig::zoned_with(on, LONG, How { queues: 2, options, ..Default::default() })
}

/// Submits a batch on each of the two queues, so that all of it is in flight together.
fn submit(rig: &mut Rig, batches: [Vec<Request>; 2]) -> [Vec<Token>; 2] {
    let mut tokens = [Vec::new(), Vec::new()];
    for (i, batch) in batches.into_iter().enumerate() {
        tokens[i] = batch.into_iter().map(|request| rig.queues[i].queue.enqueue(request).unwrap()).collect();
    }
    for served in &mut rig.queues {
        served.queue.publish().unwrap();
    }
    tokens
}

/// Waits for all of it. The answers are in the order of the tokens.
fn complete(rig: &mut Rig, tokens: [Vec<Token>; 2]) -> [Vec<Completion>; 2] {
    let mut answers = [Vec::new(), Vec::new()];
    for (i, tokens) in tokens.into_iter().enumerate() {
        let mut done: BTreeMap<Token, Completion> =
            rig.queues[i].queue.complete_all().unwrap().into_iter().collect();
        answers[i] = tokens.iter().map(|token| done.remove(token).unwrap()).collect();
        assert!(done.is_empty());
    }
    answers
}

fn seeded() -> fastrand::Rng {
    let seed = match std::env::var("DEVICE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("DEVICE_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

fn sixty_four_appends_over_two_queues_land_side_by_side(on: Backing) {
    for round in 0..8 {
        let mut rig = long(on);
        let start = 2 * ZONE;
        // 32 on each queue, given before a worker has begun.
        rig.stop_all();
        let appends = |queue: u64| {
            (0..32).map(|i| Request::zone_append(start, &blocks(queue * 32 + i, 1))).collect::<Vec<_>>()
        };
        let tokens = submit(&mut rig, [appends(0), appends(1)]);
        let (disk, negotiated) = (rig.disk.clone(), rig.negotiated.clone());
        thread::scope(|scope| {
            for served in &mut rig.queues {
                scope.spawn(|| served.start(&disk, &negotiated));
            }
        });
        let mut placed = BTreeMap::new();
        for (queue, answers) in (0..).zip(complete(&mut rig, tokens)) {
            for (i, done) in (0..).zip(answers) {
                let done = done.expect(Status::Ok);
                assert_eq!(done.used_len, 9);
                let sector = done.append_sector.unwrap();
                assert_eq!(placed.insert(sector, queue * 32 + i), None, "two appends at one sector");
            }
        }
        // Distinct and contiguous, from the start of the zone on.
        let expected: Vec<u64> = (0..64).map(|i| start + i * 8).collect();
        assert_eq!(placed.keys().copied().collect::<Vec<_>>(), expected, "round {round}");
        for (&sector, &tag) in &placed {
            assert_eq!(rig.read(sector, 8), blocks(tag, 1), "sector {sector}");
        }
        assert_eq!(rig.zone(2), Zone(ZoneState::ImplicitOpen, 512));
    }
}

fn appends_of_all_lengths_to_several_zones(on: Backing) {
    let mut rng = seeded();
    let mut rig = long(on);
    for _ in 0..12 {
        let zones = [1, 2, 3, 4];
        let mut sent: [Vec<(u64, u64, usize)>; 2] = [Vec::new(), Vec::new()];
        let batches = [0, 1].map(|queue| {
            (0..40)
                .map(|i| {
                    let (zone, tag, count) = (rng.choice(zones).unwrap(), rng.u64(..), rng.usize(1..=8));
                    let _ = i;
                    sent[queue].push((zone, tag, count));
                    Request::zone_append(zone * ZONE, &blocks(tag, count))
                })
                .collect::<Vec<_>>()
        });
        let tokens = submit(&mut rig, batches);
        let mut placed: BTreeMap<u64, (u64, u64, usize)> = BTreeMap::new();
        for (sent, answers) in sent.into_iter().zip(complete(&mut rig, tokens)) {
            let mut last = BTreeMap::new();
            for (append, done) in sent.into_iter().zip(answers) {
                let sector = done.expect(Status::Ok).append_sector.unwrap();
                assert_eq!(placed.insert(sector, append), None);
                // Of one queue in the order in which they were given.
                assert!(last.insert(append.0, sector).is_none_or(|before| before < sector));
            }
        }
        let mut wp: BTreeMap<u64, u64> = zones.iter().map(|&zone| (zone, zone * ZONE)).collect();
        for (&sector, &(zone, tag, count)) in &placed {
            assert_eq!(sector, wp[&zone], "no hole and no overlap");
            *wp.get_mut(&zone).unwrap() += count as u64 * 8;
            assert_eq!(rig.read(sector, count * 8), blocks(tag, count));
        }
        for (zone, wp) in wp {
            let expected = if wp == zone * ZONE { ZoneState::Empty } else { ZoneState::ImplicitOpen };
            assert_eq!(rig.zone(zone), Zone(expected, wp - zone * ZONE));
        }
        rig.accept(Request::zone_reset_all());
    }
}

fn appends_until_the_zone_is_full(on: Backing) {
    let mut rig = Rig::zoned_with(on, SHAPE, How { queues: 2, ..Default::default() });
    for round in 0..10 {
        // 12 blocks fit; 20 are sent.
        let appends = |queue: u64| {
            (0..10).map(|i| Request::zone_append(start_of(3), &blocks(queue * 10 + i, 1))).collect::<Vec<_>>()
        };
        let tokens = submit(&mut rig, [appends(0), appends(1)]);
        let mut placed = BTreeMap::new();
        for (queue, answers) in (0..).zip(complete(&mut rig, tokens)) {
            for (i, done) in (0..).zip(answers) {
                match done.outcome().unwrap() {
                    Status::Ok => drop(placed.insert(done.append_sector.unwrap(), queue * 10 + i)),
                    Status::ZoneInvalidCmd => {}
                    other => panic!("round {round}: {other:?}"),
                }
            }
        }
        assert_eq!(
            placed.keys().copied().collect::<Vec<_>>(),
            (0..12).map(|i| start_of(3) + i * 8).collect::<Vec<_>>()
        );
        for (&sector, &tag) in &placed {
            assert_eq!(rig.read(sector, 8), blocks(tag, 1));
        }
        assert_eq!((rig.zone(3), rig.disk.open_and_active()), (Zone(ZoneState::Full, 128), (0, 0)));
        rig.accept(Request::zone_reset(start_of(3)));
    }
}

fn appends_among_resets_and_finishes(on: Backing) {
    let mut rng = seeded();
    let mut rig = long(on);
    for _ in 0..40 {
        let start = rng.u64(1..6) * ZONE;
        let finish = rng.bool();
        let mut tags = [Vec::new(), Vec::new()];
        let batches = [0, 1].map(|queue| {
            let mut batch: Vec<Request> = (0..24)
                .map(|_| {
                    tags[queue].push(rng.u64(..));
                    Request::zone_append(start, &blocks(tags[queue][tags[queue].len() - 1], 1))
                })
                .collect();
            if queue == 0 {
                let at = rng.usize(0..24);
                batch[at] = if finish { Request::zone_finish(start) } else { Request::zone_reset(start) };
            }
            batch
        });
        let tokens = submit(&mut rig, batches);
        // What was done before the reset is gone, what came behind it begins at the start again: a place may be given twice. After a
        // finish nothing is appended any more.
        let mut placed: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut refused = 0;
        for (tags, answers) in tags.iter().zip(complete(&mut rig, tokens)) {
            for (&tag, done) in tags.iter().zip(answers) {
                match (done.outcome().unwrap(), done.append_sector) {
                    (Status::Ok, Some(sector)) => placed.entry(sector).or_default().push(tag),
                    (Status::Ok, None) => {}
                    (Status::ZoneInvalidCmd, _) if finish => refused += 1,
                    (other, _) => panic!("{other:?}"),
                }
            }
        }
        let zone = rig.zone(start / ZONE);
        let wp = if finish { placed.keys().last().map_or(0, |last| last + 8 - start) } else { zone.1 };
        if finish {
            assert_eq!(zone, Zone(ZoneState::Full, ZONE));
            assert_eq!(placed.len() + refused, 47);
        } else {
            let expected = if wp == 0 { ZoneState::Empty } else { ZoneState::ImplicitOpen };
            assert_eq!(zone.0, expected);
            assert_eq!(placed.values().map(Vec::len).sum::<usize>(), 47);
        }
        assert_eq!(
            placed.keys().copied().collect::<Vec<_>>(),
            (0..placed.len() as u64).map(|i| start + i * 8).collect::<Vec<_>>()
        );
        for (&sector, tags) in &placed {
            assert!(tags.len() <= if finish { 1 } else { 2 }, "one reset, so at most two lives");
            let read = rig.read(sector, 8);
            if sector < start + wp {
                assert!(tags.iter().any(|&tag| read == blocks(tag, 1)), "sector {sector}");
            } else {
                assert_eq!(read, vec![0; 8 * SECTOR], "sector {sector} was reset");
            }
        }
        rig.accept(Request::zone_reset(start));
        assert_eq!(rig.disk.open_and_active(), (0, 0));
    }
}

fn reset_all_on_two_queues_at_once(on: Backing) {
    let mut rig = long(on);
    for round in 0..30u64 {
        let batch = |queue: u64| {
            let mut batch = vec![Request::zone_reset_all()];
            for zone in 1..5 {
                batch.push(Request::zone_append(zone * ZONE, &blocks(round + queue + zone, 1)));
                batch.push(Request::zone_reset_all());
                if zone % 2 == queue {
                    batch.push(Request::zone_finish(zone * ZONE));
                    batch.push(Request::zone_reset((5 - zone) * ZONE));
                }
            }
            batch
        };
        let tokens = submit(&mut rig, [batch(0), batch(1)]);
        for done in complete(&mut rig, tokens).concat() {
            let status = done.outcome().unwrap();
            let at_most =
                [Status::Ok, Status::ZoneInvalidCmd, Status::ZoneOpenResource, Status::ZoneActiveResource];
            assert!(at_most.contains(&status), "{status:?}");
        }
        rig.accept(Request::zone_reset_all());
        let state = rig.state();
        assert_eq!(state.open_and_active, (0, 0));
        assert!((1..6).all(|zone| state.zone(zone) == Zone(ZoneState::Empty, 0)));
        assert!(state.bytes.iter().all(|&byte| byte == 0));
    }
}

/// A disk whose writes can be held up.
fn held(queues: u16) -> (Rig, Arc<FaultyMedium>) {
    let (medium, store) = FaultyMedium::zoned(SHAPE);
    (Rig::over(store, How { queues, ..Default::default() }), medium)
}

#[track_caller]
fn end(rig: &mut Rig, queue: usize) -> Completion {
    let timeout = rig.queues[queue].queue.timeout;
    rig.queues[queue].queue.complete(timeout).unwrap().1
}

/// Waits until a queue's worker has looked at everything it was given, by a request behind it.
#[track_caller]
fn nothing_ends(rig: &mut Rig, queue: usize) {
    let queue = &mut rig.queues[queue].queue;
    let outstanding = queue.in_flight();
    let _ = queue.call(Request::read(0, SECTOR)).unwrap().expect(Status::Ok);
    assert_eq!((queue.in_flight(), queue.try_complete().unwrap()), (outstanding, None));
}

#[test]
fn a_reset_or_finish_waits_for_what_is_in_flight() {
    let start = start_of(2);
    for (request, after) in [
        (Request::zone_reset(start), Zone(ZoneState::Empty, 0)),
        (Request::zone_finish(start), Zone(ZoneState::Full, 128)),
        (Request::zone_reset_all(), Zone(ZoneState::Empty, 0)),
    ] {
        let (mut rig, medium) = held(3);
        rig.accept(Request::write(start, &blocks(1, 1)));
        let gate = medium.hold(Call::Write, start + 8..start + 16);
        rig.queues[1].queue.submit(Request::zone_append(start, &blocks(2, 1))).unwrap();
        gate.wait_for(1);
        rig.queues[2].queue.submit(request).unwrap();
        nothing_ends(&mut rig, 2);
        assert_eq!(rig.zone(2), Zone(ZoneState::ImplicitOpen, 16), "the write is under way");
        // What comes behind it must wait, too: or it would never have its turn.
        rig.queue().submit(Request::zone_append(start, &blocks(3, 1))).unwrap();
        nothing_ends(&mut rig, 0);
        // Other zones are not concerned.
        let other = rig.queues[2].queue.call(Request::write(start_of(3), &blocks(4, 1))).unwrap();
        let _ = other.expect(Status::Ok);

        gate.open();
        assert_eq!(end(&mut rig, 1).expect(Status::Ok).append_sector, Some(start + 8));
        let _ = end(&mut rig, 2).expect(Status::Ok);
        let last = end(&mut rig, 0);
        // Both waited, and the zone is given to whichever worker comes first: the append is in front of it or behind it.
        let in_front = last.append_sector == Some(start + 16);
        let zeros = |blocks: usize| vec![0; blocks * 4096];
        let (zone, data) = match (after.0, in_front) {
            (ZoneState::Full, true) => (after, [blocks(1, 1), blocks(2, 1), blocks(3, 1)].concat()),
            (ZoneState::Full, false) => (after, [blocks(1, 1), blocks(2, 1), zeros(1)].concat()),
            (_, true) => (after, zeros(3)),
            (_, false) => (Zone(ZoneState::ImplicitOpen, 8), [blocks(3, 1), zeros(2)].concat()),
        };
        match (after.0, in_front) {
            (ZoneState::Full, false) => drop(last.expect(Status::ZoneInvalidCmd)),
            (_, true) => drop(last.expect(Status::Ok)),
            (_, false) => assert_eq!(last.expect(Status::Ok).append_sector, Some(start)),
        }
        assert_eq!((rig.zone(2), rig.read(start, 24)), (zone, data));
    }
}

#[test]
fn open_and_close_do_not_wait_for_what_is_in_flight() {
    let (mut rig, medium) = held(2);
    let start = start_of(2);
    let gate = medium.hold(Call::Write, start..start + 8);
    rig.queues[1].queue.submit(Request::write(start, &blocks(2, 1))).unwrap();
    gate.wait_for(1);
    rig.accept(Request::zone_open(start));
    assert_eq!(rig.zone(2), Zone(ZoneState::ExplicitOpen, 8));
    rig.accept(Request::zone_close(start));
    assert_eq!(rig.zone(2), Zone(ZoneState::Closed, 8));
    gate.open();
    let _ = end(&mut rig, 1).expect(Status::Ok);
    assert_eq!(rig.zone(2), Zone(ZoneState::Closed, 8));
    assert_eq!(rig.read(start, 8), blocks(2, 1));
}

#[test]
fn everything_to_a_zone_waits_while_it_is_reset_or_finished() {
    let start = start_of(2);
    for finish in [false, true] {
        for next in [
            Request::write(start, &blocks(5, 1)),
            Request::zone_append(start, &blocks(5, 1)),
            Request::zone_open(start),
            Request::zone_close(start),
            Request::zone_finish(start),
            Request::zone_reset(start),
            Request::zone_reset_all(),
        ] {
            let probe = Arc::new(Probe::zoned(SHAPE));
            let mut rig = Rig::over(probe.clone(), How { queues: 3, ..Default::default() });
            rig.accept(Request::write(start, &blocks(1, 2)));
            probe.commit_gate.close();
            let first = if finish { Request::zone_finish(start) } else { Request::zone_reset(start) };
            rig.queues[1].queue.submit(first).unwrap();
            probe.commit_gate.wait_for(1);
            rig.queues[2].queue.submit(next.clone()).unwrap();
            nothing_ends(&mut rig, 2);
            // Reads and reports go on.
            rig.read(start, 128);
            rig.zone(2);
            rig.accept(Request::write(start_of(4), &blocks(4, 1)));
            probe.commit_gate.open();
            let _ = end(&mut rig, 1).expect(Status::Ok);
            let status = end(&mut rig, 2).outcome().unwrap();
            // As if it had come after: by the number on the wire, from full or from empty.
            let expected = match (finish, next.header[0]) {
                (true, 1 | 15 | 18 | 20) => Status::ZoneInvalidCmd,
                (false, 20) => Status::ZoneInvalidCmd,
                _ => Status::Ok,
            };
            assert_eq!(status, expected, "finish: {finish}, then type {}", next.header[0]);
        }
    }
}

#[test]
fn reset_alls_that_meet_half_way_both_end() {
    // One waits in the middle, for a write; the other begins; a reset of a zone that the first one has already taken comes, too.
    let (mut rig, medium) = held(4);
    for zone in [2, 3, 5] {
        rig.accept(Request::write(start_of(zone), &blocks(zone, 1)));
    }
    let gate = medium.hold(Call::Write, start_of(4)..start_of(5));
    rig.queues[1].queue.submit(Request::write(start_of(4), &blocks(4, 1))).unwrap();
    gate.wait_for(1);
    rig.queues[2].queue.submit(Request::zone_reset_all()).unwrap();
    nothing_ends(&mut rig, 2);
    rig.queues[3].queue.submit(Request::zone_reset_all()).unwrap();
    nothing_ends(&mut rig, 3);
    rig.queue().submit(Request::zone_finish(start_of(2))).unwrap();
    nothing_ends(&mut rig, 0);
    rig.queue().submit(Request::zone_finish(start_of(5))).unwrap();
    gate.open();
    let _ = end(&mut rig, 1).expect(Status::Ok);
    let _ = end(&mut rig, 2).expect(Status::Ok);
    let _ = end(&mut rig, 3).expect(Status::Ok);
    let _ = end(&mut rig, 0).expect(Status::Ok);
    let _ = end(&mut rig, 0).expect(Status::Ok);
    rig.accept(Request::zone_reset_all());
    assert_eq!(rig.disk.open_and_active(), (0, 0));
}

#[test]
fn a_queue_that_stops_waits_for_its_requests_that_wait() {
    let (mut rig, medium) = held(3);
    let start = start_of(2);
    let gate = medium.hold(Call::Write, start..start + 8);
    rig.queues[1].queue.submit(Request::write(start, &blocks(2, 1))).unwrap();
    gate.wait_for(1);
    rig.queues[2].queue.submit(Request::zone_reset(start)).unwrap();
    nothing_ends(&mut rig, 2);
    let mut second = rig.queues.pop().unwrap();
    let stopping = thread::spawn(move || {
        second.stop();
        second
    });
    rig.zone(2);
    gate.open();
    let mut second = stopping.join().unwrap();
    let (_, done) = second.queue.try_complete().unwrap().expect("it was answered before the queue stopped");
    let _ = done.expect(Status::Ok);
    let _ = end(&mut rig, 1).expect(Status::Ok);
    assert_eq!(rig.zone(2), Zone(ZoneState::Empty, 0));
}
