//! The client on our own server: what each side sees of the other when all goes well.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::thread;
use std::time::Duration;

use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_zbd_vhost_user::client::{
    ArenaBuffer, ArenaHal, ConnectError, ConnectOptions, Lost, VhostUserTransport,
};

use self::common::toy::{Event, MQ, Toy, VERSION_1, ZONED};
use self::common::{Harness, PATIENCE, eventually, seed};

const SIZE: usize = 16;

type Queue = VirtQueue<ArenaHal, SIZE>;

fn connect(harness: &Harness) -> VhostUserTransport {
    let options = ConnectOptions { timeout: PATIENCE, queue_size_max: 256, ..ConnectOptions::default() };
    VhostUserTransport::connect(harness.path(), &options).unwrap()
}

/// Everything up to DRIVER_OK, with the first `queues` queues.
fn attach(transport: &mut VhostUserTransport, features: u64, queues: u16) -> Vec<Queue> {
    let status = negotiate(transport, features);
    assert!(status.contains(DeviceStatus::FEATURES_OK), "{status:?}");
    let queues = (0..queues).map(|index| Queue::new(transport, index, false, false).unwrap()).collect();
    transport.finish_init();
    queues
}

/// Everything up to FEATURES_OK; gives back what the device says to that.
fn negotiate(transport: &mut VhostUserTransport, features: u64) -> DeviceStatus {
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(begun);
    transport.write_driver_features(features);
    transport.set_status(begun | DeviceStatus::FEATURES_OK);
    transport.get_status()
}

/// Has the toy invert `input` into `output`, asleep while it does.
#[allow(unsafe_code)]
fn echo(transport: &mut VhostUserTransport, queue: &mut Queue, index: u16, input: &[u8], output: &mut [u8]) {
    // SAFETY: both buffers are borrowed until the request is popped below.
    let token = unsafe { queue.add(&[input], &mut [output]) }.unwrap();
    if queue.should_notify() {
        transport.notify(index);
    }
    while !queue.can_pop() {
        assert!(transport.wait_used(index, PATIENCE).unwrap(), "the device does not call");
    }
    // SAFETY: the same buffers as above.
    let written = unsafe { queue.pop_used(token, &[input], &mut [output]) }.unwrap();
    assert_eq!(usize::try_from(written).unwrap(), output.len());
}

#[test]
fn requests_on_several_queues_with_buffers_of_both_kinds() {
    let harness = Harness::start(Toy::new());
    let mut transport = connect(&harness);
    assert_eq!((transport.queue_count(), transport.device_type()), (4, DeviceType::Block));
    assert_eq!((transport.max_queue_size(3), transport.max_queue_size(4)), (256, 0));
    assert_eq!(transport.read_device_features(), VERSION_1 | ZONED | MQ);
    assert!(!transport.requires_legacy_layout());
    let mut random = fastrand::Rng::with_seed(seed());

    for round in 0..3 {
        let mut queues = attach(&mut transport, VERSION_1 | MQ, 3);
        assert_eq!(harness.toy.running().len(), 3);
        assert!(transport.queue_used(2) && !transport.queue_used(3) && !transport.queue_used(4));
        for n in 0..200 {
            let index = random.u16(..3);
            let queue = &mut queues[usize::from(index)];
            let length = random.usize(1..=4096);
            let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            let expected: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
            if n % 2 == 0 {
                let mut output = vec![0xaa; length];
                echo(&mut transport, queue, index, &bytes, &mut output);
                assert_eq!(output, expected);
            } else {
                let mut input = ArenaBuffer::zeroed(length).unwrap();
                let mut output = ArenaBuffer::zeroed(length).unwrap();
                input.copy_from_slice(&bytes);
                echo(&mut transport, queue, index, &input, &mut output);
                assert_eq!(*output, expected);
            }
        }
        assert!(transport.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT));
        let status = transport.get_status();
        assert_eq!(status.bits(), 15, "{status:?}");
        if round < 2 {
            transport.set_status(DeviceStatus::empty());
            assert_eq!(transport.get_status(), DeviceStatus::empty());
            assert_eq!(harness.toy.running().len(), 0);
            assert!(!transport.queue_used(2));
        }
    }
    assert_eq!(transport.monitor().lost(), None);
    drop(transport);
    eventually("the end of the connection", || harness.toy.running().is_empty());
    let start = |round: usize| {
        let reset = (round > 0).then_some([Event::Stop(0), Event::Stop(1), Event::Stop(2), Event::Reset]);
        let begin = [Event::Accept(VERSION_1 | MQ), Event::Start(0), Event::Start(1), Event::Start(2)];
        // A driver begins with status 0, whatever was before.
        [reset.into_iter().flatten().collect(), vec![Event::Reset], begin.to_vec()].concat()
    };
    let stop = [Event::Stop(0), Event::Stop(1), Event::Stop(2), Event::Reset, Event::Disconnect];
    let expected = [vec![Event::Connect], start(0), start(1), start(2), stop.to_vec()].concat();
    let mut events = Vec::new();
    eventually("the end of the session", || {
        events.extend(harness.toy.take_events());
        events.last() == Some(&Event::Disconnect)
    });
    assert_eq!(events, expected);
    assert_eq!(ArenaHal::quarantined_bytes(), 0);
    harness.stop();
}

#[test]
fn features_that_the_device_refuses_show_in_the_status() {
    let mut toy = Toy::new();
    toy.wanted = ZONED;
    let harness = Harness::start(toy);
    let mut transport = connect(&harness);
    // What was never offered is refused.
    let status = negotiate(&mut transport, VERSION_1 | ZONED | 1 << 5);
    assert_eq!(status, DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    // V4: without ZONED, FEATURES_OK must not stand.
    let status = negotiate(&mut transport, VERSION_1);
    assert_eq!(status, DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    // A driver that does not look gets no queue.
    let queue = Queue::new(&mut transport, 0, false, false).unwrap();
    transport.finish_init();
    assert!(!transport.get_status().contains(DeviceStatus::FEATURES_OK));
    assert!(harness.toy.running().is_empty());
    transport.set_status(DeviceStatus::FAILED);
    assert_eq!(transport.monitor().lost(), None);
    drop(queue);

    let mut queues = attach(&mut transport, VERSION_1 | ZONED, 1);
    let mut output = [0; 3];
    echo(&mut transport, &mut queues[0], 0, &[1, 2, 3], &mut output);
    assert_eq!(output, [0xfe, 0xfd, 0xfc]);
    drop(transport);
    harness.stop();
}

#[test]
fn the_configuration_space_is_read_and_written() {
    let harness = Harness::start(Toy::new());
    let mut transport = connect(&harness);
    negotiate(&mut transport, VERSION_1);
    // Byte n is n.
    let bytes: [u8; 96] = std::array::from_fn(|n| u8::try_from(n).unwrap());
    assert_eq!(transport.read_config_space::<[u8; 96]>(0), Ok(bytes));
    assert_eq!(transport.read_config_space::<u64>(3), Ok(u64::from_le_bytes([3, 4, 5, 6, 7, 8, 9, 10])));
    assert_eq!(transport.read_config_space::<u8>(95), Ok(95));
    for offset in [95, 96, usize::MAX] {
        assert_eq!(transport.read_config_space::<u16>(offset), Err(Error::ConfigSpaceTooSmall));
        assert_eq!(transport.write_config_space(offset, 0_u16), Err(Error::ConfigSpaceTooSmall));
    }
    let generation = transport.read_config_generation();
    assert_eq!(transport.read_config_generation(), generation);

    transport.write_config_space(32, 0xaa_u8).unwrap();
    assert_eq!(transport.read_config_space::<u8>(32), Ok(0xaa));
    assert_eq!(transport.write_config_space(33, 0xaa_u8), Err(Error::Unsupported));
    assert_eq!(transport.monitor().lost(), None);
    let events = harness.toy.take_events();
    assert_eq!(events.last(), Some(&Event::WriteConfig(32, vec![0xaa])));
    drop(transport);
    harness.stop();
}

#[test]
fn a_changed_configuration_interrupts_and_changes_the_generation() {
    let harness = Harness::start(Toy::new());
    let mut transport = connect(&harness);
    let queues = attach(&mut transport, VERSION_1, 1);
    let config = InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT;
    transport.ack_interrupt();
    let before = transport.read_config_generation();

    harness.toy.set_config(0, 200);
    assert!(harness.toy.frontend().config_changed());
    // It is not what a wait for a queue is about, but it is not lost in one.
    assert_eq!(transport.wait_used(0, Duration::from_millis(1)), Ok(false));
    assert!(transport.ack_interrupt().contains(config));
    assert!(!transport.ack_interrupt().contains(config));
    assert_eq!(transport.read_config_space::<u8>(0), Ok(200));
    let after = transport.read_config_generation();
    assert_ne!(after, before);
    assert_eq!(transport.read_config_generation(), after);

    // Without a message: a reader who asks for the generation sees it; one who does not has the snapshot.
    harness.toy.set_config(0, 201);
    assert_eq!(transport.read_config_space::<u8>(0), Ok(200));
    assert_ne!(transport.read_config_generation(), after);
    assert_eq!(transport.read_config_space::<u8>(0), Ok(201));
    assert_eq!(transport.read_consistent(|| transport.read_config_space::<u8>(0)), Ok(201));
    drop((transport, queues));
    harness.stop();
}

#[test]
fn waiting_ends_with_the_time() {
    let harness = Harness::start(Toy::new());
    let mut transport = connect(&harness);
    let queues = attach(&mut transport, VERSION_1, 1);
    assert_eq!(transport.wait_used(0, Duration::from_millis(1)), Ok(false));
    assert_eq!(transport.wait_used(0, Duration::ZERO), Ok(false));
    // A queue that does not run calls nobody.
    assert_eq!(transport.wait_used(3, Duration::from_millis(1)), Ok(false));
    assert_eq!(transport.wait_used(99, Duration::from_millis(1)), Ok(false));
    transport.notify(3);
    transport.notify(99);
    drop((transport, queues));
    harness.stop();
}

#[test]
fn an_interrupt_acknowledged_by_one_wakes_the_other() {
    let harness = Harness::start(Toy::new());
    let mut transport = connect(&harness);
    let mut queues = attach(&mut transport, VERSION_1, 2);
    let (mut first, mut second) = ([0; 1], [0; 1]);
    let token = add(&mut queues[1], &[5], &mut second);
    transport.notify(1);
    eventually("queue 1's completion", || queues[1].can_pop());
    // All calls are taken: who waits for queue 1 afterwards must not sleep.
    eventually("the call", || transport.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT));
    echo(&mut transport, &mut queues[0], 0, &[6], &mut first);
    assert_eq!(transport.wait_used(1, PATIENCE), Ok(true));
    assert_eq!(transport.wait_used(1, Duration::ZERO), Ok(false));
    pop(&mut queues[1], token, &[5], &mut second);
    assert_eq!((first, second), ([!6], [!5]));
    drop((transport, queues));
    harness.stop();
}

#[allow(unsafe_code)]
fn add(queue: &mut Queue, input: &[u8], output: &mut [u8]) -> u16 {
    // SAFETY: the test pops the request with the same buffers, which live until then.
    unsafe { queue.add(&[input], &mut [output]) }.unwrap()
}

#[allow(unsafe_code)]
fn pop(queue: &mut Queue, token: u16, input: &[u8], output: &mut [u8]) {
    // SAFETY: as for `add`.
    unsafe { queue.pop_used(token, &[input], &mut [output]) }.unwrap();
}

#[test]
fn a_single_queue_is_unset_and_set_again() {
    let harness = Harness::start(Toy::new());
    let mut transport = connect(&harness);
    let mut queues = attach(&mut transport, VERSION_1, 2);
    transport.queue_unset(0);
    assert_eq!(harness.toy.running().keys().copied().collect::<Vec<_>>(), [1]);
    assert!(!transport.queue_used(0) && transport.queue_used(1));
    // After DRIVER_OK a queue is started when it is set.
    queues[0] = Queue::new(&mut transport, 0, false, false).unwrap();
    assert_eq!(harness.toy.running().len(), 2);
    assert_eq!(Queue::new(&mut transport, 0, false, false).err(), Some(Error::AlreadyUsed));
    let mut output = [0; 2];
    echo(&mut transport, &mut queues[0], 0, &[1, 2], &mut output);
    assert_eq!(output, [0xfe, 0xfd]);
    drop((transport, queues));
    harness.stop();
}

#[test]
fn two_connections_of_one_process_share_the_arena() {
    let harnesses = [Harness::start(Toy::new()), Harness::start(Toy::new())];
    let mut sides: Vec<_> = harnesses
        .iter()
        .map(|harness| {
            let mut transport = connect(harness);
            let queues = attach(&mut transport, VERSION_1, 1);
            (transport, queues)
        })
        .collect();
    thread::scope(|scope| {
        for (n, (transport, queues)) in (0_u8..).zip(&mut sides) {
            scope.spawn(move || {
                for round in 0..100 {
                    let mut output = [0; 600];
                    echo(transport, &mut queues[0], 0, &[round ^ n; 600], &mut output);
                    assert_eq!(output, [!(round ^ n); 600]);
                }
            });
        }
    });
    drop(sides);
    harnesses.into_iter().for_each(Harness::stop);
}

#[test]
fn a_ring_that_is_not_in_the_arena_is_refused_and_a_reset_repairs_it() {
    let harness = Harness::start(Toy::new());
    let mut transport = connect(&harness);
    negotiate(&mut transport, VERSION_1);
    transport.queue_set(0, 16, 0x1000, 0x2000, 0x3000);
    transport.finish_init();
    let lost = transport.monitor().lost();
    assert!(matches!(lost, Some(Lost::QueueUnusable { queue: 0, .. })), "{lost:?}");
    assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));

    let mut queues = attach(&mut transport, VERSION_1, 1);
    assert_eq!(transport.monitor().lost(), None);
    let mut output = [0; 1];
    echo(&mut transport, &mut queues[0], 0, &[9], &mut output);
    assert_eq!(output, [!9]);
    drop((transport, queues));
    harness.stop();
}

#[test]
fn without_a_back_end_the_path_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nobody");
    let error = VhostUserTransport::connect(&path, &ConnectOptions::default()).unwrap_err();
    let ConnectError::Socket { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(error.to_string(), format!("{}: cannot connect: {source}", path.display()));
    let long = dir.path().join("x".repeat(200));
    let error = VhostUserTransport::connect(&long, &ConnectOptions::default()).unwrap_err();
    assert!(matches!(error, ConnectError::Socket { .. }), "{error}");
}

#[test]
fn a_transport_goes_to_another_thread() {
    fn assert_send_and_sync<T: Send + Sync>() {}
    assert_send_and_sync::<VhostUserTransport>();
    assert_send_and_sync::<ArenaBuffer>();
    assert_send_and_sync::<virtio_zbd_vhost_user::client::Monitor>();
}
