//! Queues: several at once, notifications, stop and start again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::collections::BTreeSet;
use std::thread;

use common::{Backing, How, Rig, SECTOR, on_every_store, ring_config, sectors, start_queue};
use virtio_zbd_device::{RingConfig, RingError, StartError};
use virtio_zbd_spec::Status;
use virtio_zbd_testkit::{Framing, InProcess, Notify, QueueOptions, Request};
use vm_memory::GuestAddress;

/// Length of the disk in sectors.
const LEN: u64 = 4096;

on_every_store!(
    queues_work_side_by_side,
    a_flush_on_one_queue_is_for_all,
    every_kind_of_notification_works,
    every_queue_size_works_and_indices_wrap,
    a_stopped_queue_goes_on_where_it_stopped,
    a_stop_waits_for_what_was_taken,
);

fn rig(on: Backing, queues: u16, options: QueueOptions) -> Rig {
    Rig::plain_with(on, LEN * 512, How { queues, options, ..Default::default() })
}

fn queues_work_side_by_side(on: Backing) {
    const QUEUES: u64 = 4;
    const PART: u64 = LEN / QUEUES;
    let mut rig = rig(on, 4, QueueOptions::default());
    thread::scope(|scope| {
        for (part, served) in (0..).zip(&mut rig.queues) {
            scope.spawn(move || {
                for round in 0..8u64 {
                    let tag = |i: u64| part * 1000 + round * 100 + i;
                    let writes = (0..32).map(|i| Request::write(part * PART + i * 8, &sectors(tag(i), 8)));
                    served.queue.submit_batch(writes).unwrap();
                    for (_, done) in served.queue.complete_all().unwrap() {
                        assert_eq!(done.expect(Status::Ok).used_len, 1);
                    }
                    for i in 0..32 {
                        let read = served.queue.call(Request::read(part * PART + i * 8, 8 * SECTOR));
                        assert_eq!(read.unwrap().expect(Status::Ok).data, sectors(tag(i), 8));
                    }
                }
            });
        }
    });
    // Each queue sees what the others wrote.
    for part in 0..QUEUES {
        let other = &mut rig.queues[usize::try_from((part + 1) % QUEUES).unwrap()].queue;
        for i in 0..32 {
            let read = other.call(Request::read(part * PART + i * 8, 8 * SECTOR)).unwrap();
            assert_eq!(read.expect(Status::Ok).data, sectors(part * 1000 + 700 + i, 8));
        }
    }
}

fn a_flush_on_one_queue_is_for_all(on: Backing) {
    let mut rig = rig(on, 2, QueueOptions::default());
    for _ in 0..50 {
        for served in &mut rig.queues {
            served.queue.submit_batch((0..8).map(|_| Request::flush())).unwrap();
        }
        for served in &mut rig.queues {
            for (_, done) in served.queue.complete_all().unwrap() {
                assert_eq!(done.expect(Status::Ok).used_len, 1);
            }
        }
    }
}

fn every_kind_of_notification_works(on: Backing) {
    for notify in [Notify::Eventfd, Notify::BlockingEventfd, Notify::CallPipe] {
        for event_idx in [false, true] {
            let mut rig = rig(on, 1, QueueOptions { notify, event_idx, ..Default::default() });
            for round in 0..40 {
                let batch = (0..round % 7 + 1).map(|i| Request::write(i * 8, &sectors(round + i, 8)));
                rig.queue().submit_batch(batch).unwrap();
                for (_, done) in rig.queue().complete_all().unwrap() {
                    assert_eq!(done.expect(Status::Ok).used_len, 1);
                }
                assert_eq!(rig.read(0, 8), sectors(round, 8));
            }
        }
    }
}

fn every_queue_size_works_and_indices_wrap(on: Backing) {
    for (size, base) in
        [(1, 65_530), (2, 65_530), (4, 65_000), (256, 65_400), (1024, 65_300), (32_768, 65_500)]
    {
        for event_idx in [false, true] {
            let options =
                QueueOptions { size, base, event_idx, framing: Framing::Indirect, ..Default::default() };
            let mut rig = rig(on, 1, options);
            let rounds = 700u64;
            let depth = u64::from(size.min(20));
            let mut sent = 0;
            while sent < rounds {
                let batch = (sent..sent + depth).map(|i| Request::write(i % LEN, &sectors(i, 1)));
                rig.queue().submit_batch(batch).unwrap();
                for (_, done) in rig.queue().complete_all().unwrap() {
                    assert_eq!(done.expect(Status::Ok).used_len, 1);
                }
                sent += depth;
            }
            for i in 0..sent {
                let last = (i..sent).step_by(usize::try_from(LEN).unwrap()).last().unwrap();
                if i % 37 == 0 {
                    assert_eq!(rig.read(i % LEN, 1), sectors(last, 1));
                }
            }
            let answered = sent + (0..sent).filter(|i| i % 37 == 0).count() as u64;
            let expected = base.wrapping_add(u16::try_from(answered % 65_536).unwrap());
            assert_eq!(rig.queues[0].stop(), Some(expected), "size {size}");
            assert_eq!(rig.queue().ring.used_idx(), expected);
        }
    }
}

fn a_stopped_queue_goes_on_where_it_stopped(on: Backing) {
    let mut rig = rig(on, 1, QueueOptions { base: 65_500, ..Default::default() });
    let (disk, negotiated) = (rig.disk.clone(), rig.negotiated.clone());
    let mut expected = 65_500u16;
    for round in 0..20u64 {
        // What is given while nobody serves the queue is found by the next worker, without a kick.
        let before = (0..5).map(|i| Request::write(i, &sectors(round * 10 + i, 1)));
        if round % 2 == 0 {
            rig.stop_all();
            rig.queue().submit_batch(before).unwrap();
            rig.queues[0].start(&disk, &negotiated);
        } else {
            rig.queue().submit_batch(before).unwrap();
        }
        for (_, done) in rig.queue().complete_all().unwrap() {
            let _ = done.expect(Status::Ok);
        }
        for i in 0..5 {
            assert_eq!(rig.read(i, 1), sectors(round * 10 + i, 1));
        }
        expected = expected.wrapping_add(10);
        assert_eq!(rig.queues[0].stop(), Some(expected));
        rig.queues[0].start(&disk, &negotiated);
    }
}

fn a_stop_waits_for_what_was_taken(on: Backing) {
    let mut rig = rig(on, 2, QueueOptions::default());
    let (disk, negotiated) = (rig.disk.clone(), rig.negotiated.clone());
    for round in 0..60u64 {
        let served = &mut rig.queues[0];
        let base = served.queue.ring.avail_idx();
        let batch = (0..40).map(|i| match i % 8 {
            7 => Request::flush(),
            _ => Request::write(i, &sectors(round * 40 + i, 1)),
        });
        let tokens = served.queue.submit_batch(batch).unwrap();
        let next = served.stop().unwrap();
        // All that was taken is answered, nothing else is, and nobody works on it any more.
        let taken = usize::from(next.wrapping_sub(base));
        assert_eq!(served.queue.ring.used_idx(), next);
        let mut answered = BTreeSet::new();
        while let Some((token, done)) = served.queue.try_complete().unwrap() {
            let _ = done.expect(Status::Ok);
            answered.insert(token);
        }
        assert_eq!(answered, tokens[..taken].iter().copied().collect());
        served.start(&disk, &negotiated);
        let rest = served.queue.complete_all().unwrap();
        assert_eq!(rest.len(), 40 - taken);
        for i in (0..40).filter(|i| i % 8 != 7) {
            assert_eq!(rig.read(i, 1), sectors(round * 40 + i, 1));
        }
    }
}

#[test]
fn a_queue_may_be_dropped_and_another_started_many_times() {
    let mut rig = rig(Backing::Ram, 3, QueueOptions::default());
    let (disk, negotiated) = (rig.disk.clone(), rig.negotiated.clone());
    for round in 0..100u64 {
        for served in &mut rig.queues {
            served.stop();
        }
        for (i, served) in (0..).zip(&mut rig.queues) {
            served.start(&disk, &negotiated);
            let done = served.queue.call(Request::write(i, &sectors(round + i, 1))).unwrap();
            let _ = done.expect(Status::Ok);
            // A request that goes through the committer's mail finds this worker, not the one before it.
            let _ = served.queue.call(Request::flush()).unwrap().expect(Status::Ok);
        }
    }
}

#[test]
fn a_ring_that_is_not_in_guest_memory_is_not_served() {
    let mut rig = rig(Backing::Ram, 1, QueueOptions::default());
    rig.stop_all();
    let good = ring_config(&rig.queue().in_process().unwrap());
    let end = rig.ram.end().0;
    let start = |rig: &mut Rig, ring: RingConfig| {
        let here = rig.queue().in_process().unwrap();
        start_queue(&rig.disk, &rig.negotiated, 0, ring, here, || panic!("it was never started"))
    };
    for size in [0, 3, 100, 32_769, 65_535] {
        let error = start(&mut rig, RingConfig { size, ..good }).unwrap_err();
        assert!(
            matches!(error, StartError::Ring(RingError::Size { size: found }) if found == size),
            "{error}"
        );
    }
    for (address, align) in [(good.descriptor_table, 16), (good.avail_ring, 2), (good.used_ring, 4)] {
        for at in [GuestAddress(0), GuestAddress(end), GuestAddress(end - align), GuestAddress(u64::MAX - 63)]
        {
            let error = start(&mut rig, moved(good, address, at)).unwrap_err();
            assert!(
                matches!(error, StartError::Ring(RingError::Outside { addr, .. }) if addr == at.0),
                "{error}"
            );
        }
        let at = GuestAddress(address.0 + align / 2);
        let error = start(&mut rig, moved(good, address, at)).unwrap_err();
        assert!(
            matches!(error, StartError::Ring(RingError::Unaligned { addr, .. }) if addr == at.0),
            "{error}"
        );
    }
    start(&mut rig, good).unwrap().stop();
}

/// `ring` with the part that is at `from` moved.
fn moved(ring: RingConfig, from: GuestAddress, to: GuestAddress) -> RingConfig {
    let place = |at| if at == from { to } else { at };
    RingConfig {
        descriptor_table: place(ring.descriptor_table),
        avail_ring: place(ring.avail_ring),
        used_ring: place(ring.used_ring),
        ..ring
    }
}

#[test]
fn a_worker_ends_without_a_stop_when_its_queue_is_dropped() {
    let mut rig = rig(Backing::Ram, 1, QueueOptions::default());
    rig.stop_all();
    let here: InProcess = rig.queue().in_process().unwrap();
    let worker = start_queue(&rig.disk, &rig.negotiated, 0, ring_config(&here), here, || ()).unwrap();
    rig.accept(Request::flush());
    drop(worker);
    // The thread is gone: what is given now stays where it is.
    rig.queue().submit(Request::flush()).unwrap();
    assert_eq!(rig.queue().try_complete().unwrap(), None);
}
