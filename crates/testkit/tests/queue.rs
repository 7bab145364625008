//! Ring and queue against the mini device: honest in every framing, lying, and with a device that misbehaves.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests, too")]

mod common;

use std::time::Duration;

use common::{MiniDevice, Misbehave, Running};
use virtio_zbd_spec::{DescriptorFlags, Status};
use virtio_zbd_testkit::{
    Buf, DriverRing, Error, Framing, GuestRam, Notify, Origin, Queue, QueueOptions, Request, Table,
};

const MIB: usize = 1 << 20;

fn queue(options: QueueOptions) -> (Queue, MiniDevice) {
    let ram = GuestRam::new(8 * MIB);
    let queue = Queue::new(&ram, &options).unwrap();
    let device = MiniDevice::new(queue.in_process().unwrap());
    (queue, device)
}

#[test]
fn every_framing_means_the_same() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let framings = [
        Framing::Classic,
        Framing::Indirect,
        Framing::TailIndirect,
        Framing::Joined,
        Framing::Every(100),
        Framing::Random(seed),
        Framing::IndirectRandom(seed),
    ];
    for event_idx in [false, true] {
        let (mut queue, device) = queue(QueueOptions { event_idx, ..Default::default() });
        let descs = queue.ring.free_descs();
        let running = Running::start(device);
        let rings = queue.ram().used_bytes();
        let mut disk = vec![0; common::DISK_LEN];
        for i in 0..210 {
            queue.framing = framings[i % framings.len()];
            let (sector, sectors) = (rng.usize(0..2040), rng.usize(1..9));
            let (at, len) = (sector * 512, sectors * 512);
            let mut data = vec![0; len];
            rng.fill(&mut data);
            let sector = u64::try_from(sector).unwrap();
            let wrote = queue.call(Request::write(sector, &data)).unwrap().expect(Status::Ok);
            assert_eq!((wrote.used_len, wrote.data), (1, vec![]));
            disk[at..at + len].copy_from_slice(&data);
            let read = queue.call(Request::read(sector, len)).unwrap().expect(Status::Ok);
            assert_eq!(read.data, disk[at..at + len]);
            assert_eq!(usize::try_from(read.used_len).unwrap(), len + 1);
            assert_eq!(read.append_sector, None);
        }
        assert_eq!(running.stop().disk, disk);
        assert_eq!(queue.ring.free_descs(), descs);
        assert_eq!(queue.ram().used_bytes(), rings);
    }
}

#[test]
fn appends_in_flight_return_their_sectors() {
    let (mut queue, mut device) = queue(QueueOptions::default());
    queue.framing = Framing::Random(1);
    device.reverse = true;
    let appends = (0..8).map(|i| Request::zone_append(256, &[i; 1024]));
    let tokens = queue.submit_batch(appends).unwrap();
    assert_eq!(queue.in_flight(), 8);
    let running = Running::start(device);
    let mut done = queue.complete_all().unwrap();
    // The device took them from the back to the front.
    let order: Vec<_> = done.iter().map(|(token, _)| *token).collect();
    assert_eq!(order, tokens.iter().rev().copied().collect::<Vec<_>>());
    done.sort_by_key(|(token, _)| *token);
    let sectors: Vec<_> = done
        .into_iter()
        .map(|(_, completion)| completion.expect(Status::Ok).append_sector.unwrap())
        .collect();
    assert_eq!(sectors, [270, 268, 266, 264, 262, 260, 258, 256]);
    let disk = running.stop().disk;
    for (i, sector) in sectors.into_iter().enumerate() {
        let at = usize::try_from(sector).unwrap() * 512;
        assert_eq!(disk[at..at + 1024], [u8::try_from(i).unwrap(); 1024]);
    }
}

#[test]
fn indices_wrap_and_every_queue_size_works() {
    for (size, base, event_idx) in
        [(4, 65_530, true), (4, 65_530, false), (256, 65_400, true), (32_768, 32_760, true)]
    {
        let options = QueueOptions { size, base, event_idx, ..Default::default() };
        let (mut queue, device) = queue(options);
        let running = Running::start(device);
        for i in 0..300 {
            let completion = queue.call(Request::write(i, &[7; 512])).unwrap();
            assert_eq!(completion.expect(Status::Ok).used_len, 1);
        }
        assert_eq!(queue.ring.used_idx(), base.wrapping_add(300));
        assert_eq!(running.stop().served, 300);
    }
    // One entry: room for an indirect chain only.
    let (mut queue, device) = queue(QueueOptions { size: 1, ..Default::default() });
    let _running = Running::start(device);
    let error = queue.submit(Request::flush()).unwrap_err();
    assert!(matches!(error, Error::QueueFull { needed: 2, free: 1 }), "{error}");
    queue.framing = Framing::Indirect;
    queue.call(Request::flush()).unwrap().expect(Status::Ok);
}

#[test]
fn a_full_queue_is_an_error_and_goes_on_after_completions() {
    let (mut queue, device) = queue(QueueOptions { size: 8, ..Default::default() });
    for _ in 0..4 {
        queue.submit(Request::flush()).unwrap();
    }
    let used = queue.ram().used_bytes();
    let error = queue.submit(Request::flush()).unwrap_err();
    assert!(matches!(error, Error::QueueFull { needed: 2, free: 0 }), "{error}");
    assert_eq!(queue.ram().used_bytes(), used);
    let _running = Running::start(device);
    assert_eq!(queue.complete_all().unwrap().len(), 4);
    queue.call(Request::flush()).unwrap().expect(Status::Ok);
    let error = queue.complete(Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::NothingOutstanding), "{error}");
}

#[test]
fn kicks_are_sent_when_the_device_wants_them_and_only_then() {
    for event_idx in [false, true] {
        let (mut queue, mut device) = queue(QueueOptions { event_idx, ..Default::default() });
        for no_kicks in [false, true, true] {
            device.no_kicks = no_kicks;
            device.serve();
            queue.enqueue(Request::flush()).unwrap();
            queue.enqueue(Request::flush()).unwrap();
            let kicked = queue.publish().unwrap();
            assert_eq!(kicked, !no_kicks, "event_idx {event_idx}");
            assert_eq!(common::readable(&device.queue.kick, 0), kicked);
            if kicked {
                device.drain_kick();
            }
            // Nothing new to see: no kick, whatever the device wants.
            assert!(!queue.publish().unwrap());
            assert!(device.serve());
            assert_eq!(queue.complete_all().unwrap().len(), 2);
        }
    }
}

#[test]
fn calls_are_asked_for_and_can_be_turned_off() {
    for event_idx in [false, true] {
        let (mut queue, mut device) = queue(QueueOptions { event_idx, ..Default::default() });
        let call = rustix::io::dup(queue.call_fd()).unwrap();
        let mut rounds = |device: &mut MiniDevice, asks: fn(&mut DriverRing), called: bool| {
            asks(&mut queue.ring);
            for _ in 0..3 {
                queue.submit(Request::flush()).unwrap();
            }
            device.serve();
            assert_eq!(common::readable(&call, 0), called, "event_idx {event_idx}");
            if called {
                rustix::io::read(&call, &mut [0; 8]).unwrap();
            }
            assert_eq!(queue.complete_all().unwrap().len(), 3);
        };
        rounds(&mut device, DriverRing::disarm, false);
        rounds(&mut device, |ring| assert!(!ring.arm(3)), true);
        rounds(&mut device, DriverRing::disarm, false);
        // Four are wanted: with flags alone that can't be said.
        rounds(&mut device, |ring| assert!(!ring.arm(4)), !event_idx);
    }
}

#[test]
fn every_kind_of_notification_works() {
    for notify in [Notify::Eventfd, Notify::BlockingEventfd, Notify::CallPipe] {
        let (mut queue, device) = queue(QueueOptions { notify, ..Default::default() });
        let _running = Running::start(device);
        for _ in 0..50 {
            queue.call(Request::flush()).unwrap().expect(Status::Ok);
        }
    }
}

#[test]
fn a_misbehaving_device_is_found_out() {
    let outcome = |misbehave| {
        let timeout = Duration::from_millis(100);
        let (mut queue, mut device) = queue(QueueOptions { timeout, ..Default::default() });
        device.misbehave = misbehave;
        let running = Running::start(device);
        let first = queue.call(Request::flush());
        let second = queue.call(Request::flush());
        drop(running);
        (first, second)
    };
    let (first, _) = outcome(Misbehave::NoCall);
    let error = first.unwrap_err();
    assert!(matches!(error, Error::NoNotification { used_idx: 1, .. }), "{error}");

    let (first, _) = outcome(Misbehave::UseTwice);
    let error = first.unwrap_err();
    assert!(matches!(error, Error::NotOutstanding { .. }), "{error}");

    let (first, second) = outcome(Misbehave::NoStatus);
    assert_eq!(first.unwrap().status, virtio_zbd_testkit::UNTOUCHED);
    assert_eq!(second.unwrap().used_len, 0);

    let (first, _) = outcome(Misbehave::Overrun);
    let error = first.unwrap_err();
    assert!(matches!(error, Error::Trespass { .. }), "{error}");

    let (first, second) = outcome(Misbehave::Hang);
    let error = first.unwrap_err();
    assert!(matches!(error, Error::NoCompletion { outstanding: 1, .. }), "{error}");
    let error = second.unwrap_err();
    assert!(matches!(error, Error::NoCompletion { outstanding: 2, .. }), "{error}");
}

#[test]
fn chains_by_hand_go_beside_honest_ones() {
    let (mut queue, device) = queue(QueueOptions::default());
    let _running = Running::start(device);
    let ram = queue.ram().clone();
    let header = ram.alloc(16, 1);
    let status = ram.alloc(1, 1);
    ram.write(header, &Request::get_id().header);
    ram.write(header, &[4]);
    let descs = queue.ring.take_descs(2);
    assert_eq!(queue.ring.free_descs(), 126);
    let (next, write) = (DescriptorFlags::NEXT, DescriptorFlags::WRITE);
    queue.ring.set_desc(descs[0], header.0, 16, next, descs[1]);
    queue.ring.set_desc(descs[1], status.0, 1, write, 0);
    for _ in 0..3 {
        ram.write(status, &[9]);
        queue.ring.push_avail(descs[0]);
        queue.publish().unwrap();
        let used = queue.complete_by_hand().unwrap();
        assert_eq!((used.id, used.len, used.origin), (descs[0].into(), 1, Origin::ByHand));
        assert_eq!(ram.read(status, 1), [0]);
        queue.call(Request::flush()).unwrap().expect(Status::Ok);
    }
    queue.ring.give_descs(&descs);
    assert_eq!(queue.ring.free_descs(), 128);

    // A chain of one's own buffers, honest otherwise.
    let bufs = [Buf::readable(header, 16), Buf::writable(status, 1)];
    let head = queue.ring.add_chain(&bufs, Table::Tail(1)).unwrap();
    queue.publish().unwrap();
    let used = queue.complete_by_hand().unwrap();
    assert_eq!((used.id, used.origin), (head.into(), Origin::Chain));
    assert_eq!(queue.ring.outstanding(), 0);
    assert_eq!(queue.take_by_hand().unwrap(), []);
}

#[test]
fn a_chain_pushed_by_hand_comes_back_once() {
    let (mut queue, mut device) = queue(QueueOptions::default());
    device.misbehave = Misbehave::UseTwice;
    let ram = queue.ram().clone();
    let (header, status) = (ram.alloc(16, 1), ram.alloc(1, 1));
    ram.write(header, &Request::flush().header);
    let descs = queue.ring.take_descs(2);
    queue.ring.set_desc(descs[0], header.0, 16, DescriptorFlags::NEXT, descs[1]);
    queue.ring.set_desc(descs[1], status.0, 1, DescriptorFlags::WRITE, 0);
    queue.ring.push_avail(descs[0]);
    assert!(queue.publish().unwrap());
    device.serve();
    let error = queue.take_by_hand().unwrap_err();
    assert!(matches!(error, Error::NotOutstanding { .. }), "{error}");
}

#[test]
fn lies_reach_the_ring_as_told() {
    let ram = GuestRam::new(MIB);
    let mut ring = DriverRing::new(&ram, 4, true, 7);
    assert_eq!((ring.avail_idx(), ring.used_idx()), (7, 7));
    let (desc, avail, used) = (ring.desc_table(), ring.avail_ring(), ring.used_ring());
    assert_eq!((desc.0 % 32, avail.0 % 4, used.0 % 8), (16, 2, 4));

    ring.set_desc(3, u64::MAX, 0x0102_0304, DescriptorFlags::from_bits_retain(0xffff), 0x8001);
    let expected = [vec![0xff; 8], vec![4, 3, 2, 1, 0xff, 0xff, 1, 0x80]].concat();
    assert_eq!(ram.read(desc, 64)[48..], expected);

    ring.push_avail(0xfffe);
    let entries = ram.read(avail, 14);
    assert_eq!(entries[4..12], [0, 0, 0, 0, 0, 0, 0xfe, 0xff]);
    assert_eq!(ring.avail_idx(), 7);
    // The device wants to hear from entry 0 on, which is far away from 7.
    assert!(!ring.publish());
    assert_eq!(ring.avail_idx(), 8);
    ring.set_avail_idx(1000);
    ring.set_avail_flags(0x55aa);
    ring.set_used_event(0x1234);
    ring.set_avail_entry(0, 0xabcd);
    let expected = [0xaa, 0x55, 0xe8, 3, 0xcd, 0xab, 0, 0, 0, 0, 0xfe, 0xff, 0x34, 0x12];
    assert_eq!(ram.read(avail, 14), expected);
    assert!(ring.poll_used().is_none());
}

#[test]
fn all_zones_are_reported_over_several_requests() {
    use virtio_zbd_spec::{BlkConfig, ZoneState};
    let (mut queue, device) = queue(QueueOptions::default());
    let _running = Running::start(device);
    queue.call(Request::zone_append(512, &[1; 512])).unwrap().expect(Status::Ok);
    let mut config = BlkConfig { capacity: 2048.into(), ..BlkConfig::default() };
    config.zoned.zone_sectors = 256.into();
    let zones = queue.zone_report_all(&config).unwrap();
    let starts: Vec<_> = zones.iter().map(|zone| zone.z_start.get()).collect();
    assert_eq!(starts, [0, 256, 512, 768, 1024, 1280, 1536, 1792]);
    assert_eq!(zones[2].z_wp, 513);
    assert_eq!(zones[2].z_state, u8::from(ZoneState::ImplicitOpen));

    // The disk says that its zones are larger than those it reports.
    config.zoned.zone_sectors = 512.into();
    let error = queue.zone_report_all(&config).unwrap_err().to_string();
    assert_eq!(error, "bad zone report from sector 0: zone 1 begins at sector 256");
}
