//! Back-ends that die, or give up, while a driver works; what a driver then sees, and what becomes of the
//! memory. And back-ends that lack what most have.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ArenaHal, ConnectOptions, Lost, VhostUserTransport};

use self::common::PATIENCE;
use self::common::backend::{Answer, Script, Scripted, reply};
use self::common::guest::wait_readable;
use self::common::peer::*;
use self::common::toy::VERSION_1;

type Queue = VirtQueue<ArenaHal, 16>;

const PAGE_BYTES: usize = 4096;

/// The arena is the process's: tests that count its bytes take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attach(backend: &Scripted, timeout: Duration) -> (VhostUserTransport, Queue) {
    let options = ConnectOptions { timeout, ..ConnectOptions::default() };
    let mut transport = VhostUserTransport::connect(&backend.path(), &options).unwrap();
    let queue = initialise(&mut transport);
    assert!(transport.get_status().contains(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK));
    (transport, queue)
}

fn initialise(transport: &mut VhostUserTransport) -> Queue {
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(begun);
    transport.write_driver_features(VERSION_1);
    transport.set_status(begun | DeviceStatus::FEATURES_OK);
    let queue = Queue::new(transport, 0, false, false).unwrap();
    transport.finish_init();
    queue
}

#[allow(unsafe_code)]
fn add(queue: &mut Queue, input: &[u8], output: &mut [u8]) {
    // SAFETY: both buffers outlive the queue, or at least its use.
    unsafe { queue.add(&[input], &mut [output]) }.unwrap();
}

#[test]
fn a_back_end_that_dies_over_a_request_is_noticed_and_its_memory_is_not_used_again() {
    let _alone = alone();
    let before = ArenaHal::quarantined_bytes();
    let backend = Scripted::good(Script::default());
    let (mut transport, mut queue) = attach(&backend, PATIENCE);
    let (input, mut output) = (ArenaBuffer::zeroed(512).unwrap(), ArenaBuffer::zeroed(10_000).unwrap());
    let places = [input.as_ptr().addr(), output.as_ptr().addr()];
    add(&mut queue, &input, &mut output);
    transport.notify(0);
    wait_readable(backend.kept.lock().unwrap().kick[0].as_ref().unwrap().as_fd());
    assert_eq!(transport.monitor().lost(), None);
    backend.hang_up();

    let monitor = transport.monitor();
    assert_eq!(transport.wait_used(0, PATIENCE), Err(Lost::Closed { request: None }));
    assert_eq!(monitor.lost(), Some(Lost::Closed { request: None }));
    assert_eq!(monitor.lost().unwrap().to_string(), "the back-end closed the connection");
    let status = transport.get_status();
    assert!(status.contains(DeviceStatus::DEVICE_NEEDS_RESET | DeviceStatus::DRIVER_OK), "{status:?}");
    // All that a driver may still do does nothing.
    transport.notify(0);
    assert!(transport.ack_interrupt().is_empty());
    assert_eq!(transport.read_device_features(), 0);
    let generation = transport.read_config_generation();
    assert_eq!(transport.read_config_generation(), generation);
    assert_eq!(transport.read_config_space::<u64>(0), Err(Error::IoError));
    assert_eq!(transport.write_config_space(32, 1_u8), Err(Error::IoError));
    transport.set_status(DeviceStatus::empty());
    assert_eq!(transport.get_status(), DeviceStatus::DEVICE_NEEDS_RESET);
    assert!(!transport.queue_used(0));
    drop(transport);

    // Two pages of rings, a block of 512 bytes, three pages.
    assert_eq!(ArenaHal::quarantined_bytes(), before);
    drop((queue, input, output));
    let lost_bytes = 2 * PAGE_BYTES + 512 + 3 * PAGE_BYTES;
    assert_eq!(ArenaHal::quarantined_bytes(), before + lost_bytes);
    let others: Vec<_> = (0..200).map(|_| ArenaBuffer::zeroed(512).unwrap()).collect();
    assert!(others.iter().all(|buffer| !places.contains(&buffer.as_ptr().addr())));
    drop(others);
    assert_eq!(ArenaHal::quarantined_bytes(), before + lost_bytes, "what came later is not concerned");
}

#[test]
fn a_completion_before_the_death_is_still_seen() {
    let _alone = alone();
    let backend = Scripted::good(Script::default());
    let (mut transport, queue) = attach(&backend, PATIENCE);
    rustix::io::write(backend.kept.lock().unwrap().call[0].as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
    backend.hang_up();
    assert_eq!(transport.wait_used(0, PATIENCE), Ok(true));
    assert_eq!(transport.wait_used(0, PATIENCE), Err(Lost::Closed { request: None }));
    assert!(transport.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT));
    drop((transport, queue));
}

/// The one that died may not be as dead as it seems.
#[test]
fn what_a_back_end_had_is_not_used_again_even_if_another_one_came_in_its_place() {
    let _alone = alone();
    let before = ArenaHal::quarantined_bytes();
    let backend = Scripted::good(Script::default());
    let options = ConnectOptions { reconnect: Some(PATIENCE), ..ConnectOptions::default() };
    let mut transport = VhostUserTransport::connect(&backend.path(), &options).unwrap();
    let queue = initialise(&mut transport);
    let had = ArenaBuffer::zeroed(512).unwrap();
    let backend = backend.replace(Script::default(), |_| Answer::Good);
    assert!(!transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    let later = ArenaBuffer::zeroed(512).unwrap();
    drop((transport, queue, had, later, backend));
    assert_eq!(ArenaHal::quarantined_bytes(), before + 2 * PAGE_BYTES + 512);
}

#[test]
fn a_death_shows_in_the_status_too() {
    let _alone = alone();
    let backend = Scripted::good(Script::default());
    let (transport, queue) = attach(&backend, PATIENCE);
    backend.hang_up();
    assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    assert_eq!(transport.monitor().lost(), Some(Lost::Closed { request: None }));
    drop((transport, queue));
}

#[test]
fn words_out_of_turn_end_the_connection() {
    let _alone = alone();
    let backend = Scripted::good(Script::default());
    let (mut transport, queue) = attach(&backend, PATIENCE);
    backend.blurt(&reply(GET_STATUS, &longs(&[15])));
    assert_eq!(transport.wait_used(0, PATIENCE), Err(Lost::Unrequested));
    drop((transport, queue));
}

#[test]
fn a_connection_that_ends_in_order_costs_no_memory() {
    let _alone = alone();
    let before = ArenaHal::quarantined_bytes();
    for by_reset in [true, false] {
        let backend = Scripted::good(Script::default());
        let (mut transport, queue) = attach(&backend, PATIENCE);
        if by_reset {
            transport.set_status(DeviceStatus::empty());
        }
        drop(transport);
        drop(queue);
        assert!(backend.requests().contains(&GET_VRING_BASE));
    }
    // A loss after the stop, or before the start, concerns no memory.
    let backend = Scripted::good(Script::default());
    let (mut transport, queue) = attach(&backend, PATIENCE);
    transport.set_status(DeviceStatus::empty());
    backend.hang_up();
    assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    drop((transport, queue));
    assert_eq!(ArenaHal::quarantined_bytes(), before);
}

#[test]
fn a_stop_that_is_not_answered_is_a_loss() {
    let _alone = alone();
    let before = ArenaHal::quarantined_bytes();
    let backend = Scripted::start(Script::default(), |received| {
        if received.request == GET_VRING_BASE { Answer::Silence } else { Answer::Good }
    });
    let timeout = Duration::from_millis(500);
    let (transport, queue) = attach(&backend, timeout);
    let monitor = transport.monitor();
    drop(transport);
    drop(queue);
    let lost = Lost::TimedOut { request: "GET_VRING_BASE", timeout };
    assert_eq!(monitor.lost(), Some(lost));
    assert_eq!(ArenaHal::quarantined_bytes(), before + 2 * PAGE_BYTES);
}

#[test]
fn a_stop_with_requests_in_flight_waits_for_them_and_then_gives_the_memory_up() {
    let _alone = alone();
    let before = ArenaHal::quarantined_bytes();
    let one_taken = || {
        Scripted::start(Script::default(), |received| {
            // One entry of the available ring was taken.
            let answer = || Answer::Raw(reply(GET_VRING_BASE, &words(&[0, 1])), 0);
            if received.request == GET_VRING_BASE { answer() } else { Answer::Good }
        })
    };
    let backend = one_taken();
    let (mut transport, queue) = attach(&backend, Duration::from_millis(300));
    transport.set_status(DeviceStatus::empty());
    // The connection is as good as before, but the request may still be worked on.
    assert_eq!(transport.monitor().lost(), None);
    drop((transport, queue));
    assert_eq!(ArenaHal::quarantined_bytes(), before + 2 * PAGE_BYTES);

    // The back-end completes it a little later: nothing is given up.
    let backend = one_taken();
    let (mut transport, queue) = attach(&backend, PATIENCE);
    let (memory, used_offset, avail_offset) = {
        let kept = backend.kept.lock().unwrap();
        let nth = |wanted| kept.requests.iter().rposition(|request| *request == wanted).unwrap();
        let long =
            |nth: usize, at: usize| u64::from_ne_bytes(kept.payloads[nth][at..at + 8].try_into().unwrap());
        let user_base = long(nth(SET_MEM_TABLE), 24);
        let place = nth(SET_VRING_ADDR);
        let memory = kept.memory.as_ref().unwrap().try_clone().unwrap();
        (memory, long(place, 16) - user_base, long(place, 24) - user_base)
    };
    let avail_flags = || {
        let mut flags = [0; 2];
        rustix::io::pread(&memory, &mut flags, avail_offset).unwrap();
        u16::from_ne_bytes(flags)
    };
    assert_eq!(avail_flags(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            common::eventually("the stop", || backend.requests().contains(&GET_VRING_BASE));
            assert_eq!(avail_flags(), 1, "calls are still wanted");
            rustix::io::pwrite(&memory, &1_u16.to_ne_bytes(), used_offset + 2).unwrap();
        });
        transport.set_status(DeviceStatus::empty());
    });
    drop((transport, queue));
    assert_eq!(ArenaHal::quarantined_bytes(), before + 2 * PAGE_BYTES);
}

#[test]
fn a_queue_that_the_back_end_gives_up_is_repaired_by_a_reset() {
    let _alone = alone();
    let before = ArenaHal::quarantined_bytes();
    let backend = Scripted::good(Script::default());
    let (mut transport, queue) = attach(&backend, PATIENCE);
    rustix::io::write(backend.kept.lock().unwrap().err[0].as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(transport.wait_used(0, PATIENCE), Err(Lost::QueueFailed { queue: 0 }));
    assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    transport.set_status(DeviceStatus::empty());
    drop(queue);
    assert_eq!(transport.get_status(), DeviceStatus::empty());
    assert_eq!(transport.monitor().lost(), None);
    let queue = initialise(&mut transport);
    assert_eq!(transport.wait_used(0, Duration::from_millis(1)), Ok(false));

    // The same, noticed by the status, and stopped by unsetting the queue.
    rustix::io::write(backend.kept.lock().unwrap().err[0].as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
    assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    transport.queue_unset(0);
    drop(queue);
    drop(transport);
    let stops = backend.requests().into_iter().filter(|request| *request == GET_VRING_BASE).count();
    assert_eq!((stops, ArenaHal::quarantined_bytes()), (2, before));
}

#[test]
fn what_the_back_end_says_on_its_own_is_answered_or_checked() {
    let _alone = alone();
    const CONFIG_CHANGE: u32 = 2;
    let config = InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT;
    let backend = Scripted::good(Script::default());
    let (mut transport, queue) = attach(&backend, PATIENCE);
    let back = backend.kept.lock().unwrap().back.as_ref().unwrap().try_clone().unwrap();
    transport.ack_interrupt();
    let generation = transport.read_config_generation();
    let answer = |request: u32| {
        let mut found = [0; 20];
        assert_eq!(rustix::io::read(&back, &mut found).unwrap(), 20);
        assert_eq!(found[..12], words(&[request, VERSION | REPLY, 8]));
        u64::from_ne_bytes(found[12..].try_into().unwrap())
    };
    // In two pieces, with an answer wanted; the bytes are the same, but the back-end says that they changed.
    let change = message(CONFIG_CHANGE, VERSION | NEED_REPLY, &[]);
    rustix::io::write(&back, &change[..5]).unwrap();
    assert!(transport.ack_interrupt().is_empty());
    rustix::io::write(&back, &change[5..]).unwrap();
    assert!(transport.ack_interrupt() == config);
    assert_eq!(answer(CONFIG_CHANGE), 0);
    assert_eq!(transport.read_config_generation(), generation + 1);
    // Something that this front-end does not do, with a payload, among others.
    let others = [
        message(CONFIG_CHANGE, VERSION, &[]),
        message(5, VERSION | NEED_REPLY, &[1; 32]),
        message(6, VERSION, &[]),
        message(CONFIG_CHANGE, VERSION, &[]),
    ];
    rustix::io::write(&back, &others.concat()).unwrap();
    assert!(transport.ack_interrupt() == config);
    assert_eq!(answer(5), 1);
    assert!(transport.ack_interrupt().is_empty());
    // More than is taken at a time.
    let many = message(CONFIG_CHANGE, VERSION, &[]).repeat(2000);
    assert_eq!(rustix::io::write(&back, &many).unwrap(), many.len());
    assert!(transport.ack_interrupt() == config);
    assert_eq!(transport.wait_used(0, Duration::from_millis(1)), Ok(false));
    transport.ack_interrupt();

    for (flags, size_bytes) in [(2, 0), (VERSION | REPLY, 0), (VERSION, 5000), (VERSION, u32::MAX)] {
        let backend = Scripted::good(Script::default());
        let (mut transport, queue) = attach(&backend, PATIENCE);
        let back = backend.kept.lock().unwrap().back.as_ref().unwrap().try_clone().unwrap();
        rustix::io::write(&back, &words(&[CONFIG_CHANGE, flags, size_bytes])).unwrap();
        let lost = Lost::BackChannel { request: CONFIG_CHANGE, flags, size_bytes };
        assert_eq!(transport.wait_used(0, PATIENCE), Err(lost));
        drop((transport, queue));
    }
    // A back-end that closes its end has nothing more to say, and works on.
    drop(back);
    backend.kept.lock().unwrap().back = None;
    let cpu_time = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(now).unwrap()
    };
    let before = cpu_time();
    assert_eq!(transport.wait_used(0, Duration::from_millis(300)), Ok(false));
    assert!(cpu_time() - before < Duration::from_millis(100), "it does not sleep");
    assert_eq!(transport.monitor().lost(), None);
    drop((transport, queue));
}

#[test]
fn a_back_end_that_never_stops_talking_holds_nobody() {
    let _alone = alone();
    let backend = Scripted::good(Script::default());
    let (mut transport, queue) = attach(&backend, PATIENCE);
    let back = backend.kept.lock().unwrap().back.as_ref().unwrap().try_clone().unwrap();
    // So few that the kernel keeps them together when several threads send.
    let many = message(2, VERSION, &[]).repeat(300);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Until the front-end is gone.
            scope.spawn(
                || {
                    while rustix::net::send(&back, &many, rustix::net::SendFlags::NOSIGNAL).is_ok() {}
                },
            );
        }
        assert_eq!(transport.wait_used(0, Duration::from_millis(100)), Ok(false));
        assert!(transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT));
        drop((transport, queue));
    });
}

#[test]
fn who_waits_behind_another_front_end_is_told() {
    let _alone = alone();
    let backend = Scripted::start(Script::default(), |_| Answer::Silence);
    let options = ConnectOptions { timeout: Duration::from_millis(200), ..ConnectOptions::default() };
    let error = VhostUserTransport::connect(&backend.path(), &options).unwrap_err();
    let expected = format!(
        "{}: the back-end did not answer GET_FEATURES within 200ms; is another front-end connected to it?",
        backend.path().display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn refused_features_show_without_the_status_feature_too() {
    let _alone = alone();
    let script = Script { protocol: REPLY_ACK, ..Script::default() };
    let backend = Scripted::start(script, |received| {
        let without_zoned = received.payload.first_chunk().map(|word| u64::from_ne_bytes(*word) & 1 << 17);
        match received.request {
            // V4: a host-managed disk, and a driver that does not take ZONED.
            SET_FEATURES if without_zoned == Some(0) => Answer::Raw(reply(SET_FEATURES, &longs(&[1])), 0),
            _ => Answer::Good,
        }
    });
    let mut transport = VhostUserTransport::connect(&backend.path(), &ConnectOptions::default()).unwrap();
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    for (features, expected) in
        [(VERSION_1, begun), (VERSION_1 | 1 << 17, begun | DeviceStatus::FEATURES_OK), (VERSION_1, begun)]
    {
        transport.set_status(DeviceStatus::empty());
        transport.set_status(begun);
        transport.write_driver_features(features);
        transport.set_status(begun | DeviceStatus::FEATURES_OK);
        assert_eq!(transport.get_status(), expected, "features {features:#x}");
    }
    assert_eq!(transport.monitor().lost(), None);
    assert!(!backend.requests().contains(&SET_STATUS));
}

#[test]
fn back_ends_that_lack_protocol_features_are_taken_as_they_are() {
    let _alone = alone();
    // No protocol features at all: one queue, enabled from the start, no configuration space.
    let backend = Scripted::good(Script { features: VERSION_1, ..Script::default() });
    let (mut transport, queue) = attach(&backend, PATIENCE);
    assert_eq!(transport.queue_count(), 1);
    assert_eq!(transport.read_config_space::<u8>(0), Err(Error::ConfigSpaceMissing));
    assert_eq!(transport.write_config_space(0, 0_u8), Err(Error::ConfigSpaceMissing));
    transport.set_status(DeviceStatus::empty());
    drop((transport, queue));
    let expected = [
        &[GET_FEATURES, SET_OWNER][..],
        // Each change of the status is settled by a question that is answered.
        &[GET_FEATURES, GET_FEATURES],
        &[SET_FEATURES, SET_MEM_TABLE, GET_FEATURES],
        &[SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR, SET_VRING_ERR, SET_VRING_CALL, SET_VRING_KICK],
        &[GET_FEATURES],
        &[GET_VRING_BASE, GET_FEATURES],
    ];
    assert_eq!(backend.requests(), expected.concat());

    // Everything but STATUS: RESET_DEVICE resets.
    let backend = Scripted::good(Script { protocol: ALL_OFFERED & !STATUS, ..Script::default() });
    let (mut transport, queue) = attach(&backend, PATIENCE);
    transport.set_status(DeviceStatus::empty());
    drop((transport, queue));
    assert_eq!(backend.requests()[backend.requests().len() - 2..], [GET_VRING_BASE, RESET_DEVICE]);
    // Bits that nobody knows are not taken.
    let backend = Scripted::good(Script { protocol: u64::MAX, ..Script::default() });
    drop(attach(&backend, PATIENCE));
    let kept = backend.kept.lock().unwrap();
    let nth = kept.requests.iter().position(|request| *request == SET_PROTOCOL_FEATURES).unwrap();
    // MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, STATUS.
    assert_eq!(kept.payloads[nth], longs(&[1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 16]));
}

#[test]
fn a_shorter_configuration_space_is_found_out() {
    let _alone = alone();
    for length in [0, 1, 24, 60, 95, 96] {
        let config: Vec<u8> = (0..length).map(|n| 255 - n).collect();
        let backend = Scripted::good(Script { config, ..Script::default() });
        let (mut transport, queue) = attach(&backend, PATIENCE);
        let length = usize::from(length);
        if length == 0 {
            assert_eq!(transport.read_config_space::<u8>(0), Err(Error::ConfigSpaceMissing));
        } else {
            let last = 255 - u8::try_from(length - 1).unwrap();
            assert_eq!(transport.read_config_space::<u8>(length - 1), Ok(last));
            assert_eq!(transport.read_config_space::<u8>(length), Err(Error::ConfigSpaceTooSmall));
            let asked = backend.requests().into_iter().filter(|request| *request == GET_CONFIG).count();
            transport.read_config_generation();
            let now = backend.requests().into_iter().filter(|request| *request == GET_CONFIG).count();
            assert_eq!(now, asked + 1, "the length is not looked for again");
        }
        assert_eq!(transport.monitor().lost(), None);
        transport.set_status(DeviceStatus::empty());
        drop((transport, queue));
    }
}

#[test]
fn a_configuration_that_changes_with_every_look_is_given_up() {
    let _alone = alone();
    let mut number = 0_u64;
    let backend = Scripted::start(Script::default(), move |received| {
        if received.request != GET_CONFIG {
            return Answer::Good;
        }
        number += 1;
        let config = [longs(&[number]), vec![0; 88]].concat();
        Answer::Raw(reply(GET_CONFIG, &[&received.payload[..12], &config].concat()), 0)
    });
    let (transport, queue) = attach(&backend, PATIENCE);
    // A loop without an end, if the transport had none.
    let found = transport.read_consistent(|| transport.read_config_space::<u64>(0));
    assert_eq!(found, Err(Error::IoError));
    let lost = transport.monitor().lost();
    assert!(matches!(lost, Some(Lost::ConfigUnsteady { reads: 1001 })), "{lost:?}");
    drop((transport, queue));
}
