//! Back-ends that answer wrongly, late or not at all: each is told apart, nothing hangs, nothing panics.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_zbd_vhost_user::client::{ArenaHal, ConnectError, ConnectOptions, Lost, VhostUserTransport};

use self::common::backend::{Answer, Script, Scripted, reply};
use self::common::peer::*;
use self::common::{PATIENCE, seed};

/// Every message that a front-end sends in its life, in the order of its first appearance, and the size of
/// its answer.
const EXCHANGES: [(u32, &str, usize); 19] = [
    (GET_FEATURES, "GET_FEATURES", 8),
    (GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", 8),
    (SET_OWNER, "SET_OWNER", 8),
    (GET_QUEUE_NUM, "GET_QUEUE_NUM", 8),
    (SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD", 8),
    (SET_STATUS, "SET_STATUS", 8),
    (GET_CONFIG, "GET_CONFIG", 108),
    (SET_FEATURES, "SET_FEATURES", 8),
    (GET_STATUS, "GET_STATUS", 8),
    (SET_MEM_TABLE, "SET_MEM_TABLE", 8),
    (SET_VRING_NUM, "SET_VRING_NUM", 8),
    (SET_VRING_BASE, "SET_VRING_BASE", 8),
    (SET_VRING_ADDR, "SET_VRING_ADDR", 8),
    (SET_VRING_ERR, "SET_VRING_ERR", 8),
    (SET_VRING_CALL, "SET_VRING_CALL", 8),
    (SET_VRING_KICK, "SET_VRING_KICK", 8),
    (SET_VRING_ENABLE, "SET_VRING_ENABLE", 8),
    (SET_CONFIG, "SET_CONFIG", 8),
    (GET_VRING_BASE, "GET_VRING_BASE", 8),
];

/// A driver's life, from the connection to the status 0 at its end; and why the connection was lost, if it was.
fn live(path: &Path, timeout: Duration) -> Option<Lost> {
    let options = ConnectOptions { timeout, queue_size_max: 16, ..ConnectOptions::default() };
    let mut transport = match VhostUserTransport::connect(path, &options) {
        Ok(transport) => transport,
        Err(ConnectError::Lost { lost, .. }) => return Some(lost),
        Err(error) => panic!("{error}"),
    };
    let monitor = transport.monitor();
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(begun);
    let features = transport.read_device_features();
    transport.write_driver_features(features);
    transport.set_status(begun | DeviceStatus::FEATURES_OK);
    let queue = VirtQueue::<ArenaHal, 16>::new(&mut transport, 0, false, false).unwrap();
    transport.finish_init();
    let _ = transport.read_consistent(|| transport.read_config_space::<u64>(0));
    let _ = transport.write_config_space(32, 1_u8);
    transport.notify(0);
    let _ = transport.wait_used(0, Duration::ZERO);
    transport.ack_interrupt();
    let is_well = !transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET);
    assert_eq!(is_well, monitor.lost().is_none());
    transport.set_status(DeviceStatus::empty());
    let lost = monitor.lost();
    if lost.is_some() {
        assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
        assert_eq!(transport.wait_used(0, PATIENCE).err(), lost);
        assert_eq!(transport.read_config_space::<u8>(0), Err(Error::IoError));
        assert_eq!(transport.read_device_features(), 0);
    }
    drop(transport);
    assert_eq!(monitor.lost(), lost);
    drop(queue);
    lost
}

/// What becomes of a connection whose back-end gives such an answer to each message `request`, within the
/// time that a test may take.
fn meet(request: u32, timeout: Duration, answer: impl Fn() -> Answer + Send + 'static) -> Option<Lost> {
    let backend =
        Scripted::start(
            Script::default(),
            move |received| {
                if received.request == request { answer() } else { Answer::Good }
            },
        );
    let path = backend.path();
    let (sender, done) = channel();
    thread::spawn(move || sender.send(live(&path, timeout)));
    done.recv_timeout(2 * PATIENCE).expect("the front-end hangs or panics")
}

#[test]
fn a_good_back_end_sees_these_messages_in_this_order() {
    let backend = Scripted::good(Script::default());
    assert_eq!(live(&backend.path(), PATIENCE), None);
    let mut seen = Vec::new();
    for request in backend.requests() {
        if !seen.contains(&request) {
            seen.push(request);
        }
    }
    // SET_PROTOCOL_FEATURES has no answer: acknowledgements are not agreed upon yet.
    let mut expected: Vec<u32> = EXCHANGES.iter().map(|(request, ..)| *request).collect();
    expected.insert(2, SET_PROTOCOL_FEATURES);
    assert_eq!(seen, expected);
}

#[test]
fn answers_of_the_wrong_shape_end_the_connection() {
    for (request, name, size) in EXCHANGES {
        let good_size = u32::try_from(size).unwrap();
        let meet =
            |bytes: Vec<u8>, fds| meet(request, PATIENCE, move || Answer::Raw(bytes.clone(), fds)).unwrap();
        let header = |found, flags, size| words(&[found, flags, size]);

        // Another message's answer, no answer but a request, another version.
        for (found, flags) in [(99, 5), (request + 1, 5), (request, 1), (request, 6), (request, 4)] {
            let lost = meet([header(found, flags, good_size), vec![0; size]].concat(), 0);
            assert_eq!(lost, Lost::NotTheReply { request: name, found, flags });
        }
        for found in [good_size + 1, u32::MAX] {
            let lost = meet(header(request, 5, found), 0);
            assert_eq!(lost, Lost::ReplySize { request: name, expected: size, found });
        }
        let short = vec![0; size - 1];
        let lost = meet(reply(request, &short), 0);
        assert_eq!(lost, Lost::ReplySize { request: name, expected: size, found: good_size - 1 });
        for fds in [1, 3, 40] {
            let lost = meet(reply(request, &vec![0; size]), fds);
            assert_eq!(lost, Lost::FileDescriptors { request: name }, "{fds} file descriptors");
        }
    }
}

#[test]
fn back_ends_that_close_the_connection_are_gone() {
    for (request, name, size) in EXCHANGES {
        for length in [0, 5, 12, 15] {
            let bytes = reply(request, &vec![0; size])[..length].to_vec();
            let lost = meet(request, PATIENCE, move || Answer::Last(bytes.clone()));
            assert_eq!(lost, Some(Lost::Closed { request: Some(name) }));
        }
    }
}

#[test]
fn back_ends_that_say_nothing_are_not_waited_for() {
    // All at once: each takes its time.
    let timeout = Duration::from_millis(1500);
    let slow = [GET_FEATURES, GET_CONFIG, GET_STATUS, SET_FEATURES, SET_VRING_KICK, GET_VRING_BASE];
    let threads: Vec<_> = EXCHANGES
        .into_iter()
        .filter(|(request, ..)| slow.contains(request))
        .flat_map(|(request, name, _)| [(request, name, 0), (request, name, 7), (request, name, 14)])
        .map(|(request, name, length)| {
            thread::spawn(move || {
                let bytes = reply(request, &[0; 8])[..length].to_vec();
                let lost = meet(request, timeout, move || Answer::Raw(bytes.clone(), 0));
                assert_eq!(lost, Some(Lost::TimedOut { request: name, timeout }), "after {length} bytes");
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn refusals_of_what_cannot_be_refused_end_the_connection() {
    for (request, name, _) in EXCHANGES {
        if name.starts_with("GET_") {
            continue;
        }
        let lost = meet(request, PATIENCE, move || Answer::Raw(reply(request, &longs(&[7])), 0));
        let queue = name.starts_with("SET_VRING").then_some(0);
        // The driver's own choice of features, and what it writes to the configuration, may be refused.
        let may_be = [SET_FEATURES, SET_CONFIG].contains(&request);
        assert_eq!(lost, (!may_be).then_some(Lost::Refused { request: name, queue, code: 7 }));
    }
}

#[test]
fn impossible_values_end_the_connection() {
    let config = |offset: u32, size: u32| [words(&[offset, size, 0]), vec![0; 96]].concat();
    let cases: [(u32, Vec<u8>, Lost); 5] = [
        (
            GET_STATUS,
            longs(&[0x100]),
            Lost::ReplyValue { request: "GET_STATUS", expected: "a byte", found: 0x100 },
        ),
        (
            GET_VRING_BASE,
            words(&[1, 0]),
            Lost::ReplyValue { request: "GET_VRING_BASE", expected: "the index of the queue", found: 1 },
        ),
        (
            GET_VRING_BASE,
            words(&[0, 0x1_0000]),
            Lost::ReplyValue {
                request: "GET_VRING_BASE",
                expected: "an index of the available ring",
                found: 0x1_0000,
            },
        ),
        (
            GET_CONFIG,
            config(8, 96),
            Lost::ReplyValue { request: "GET_CONFIG", expected: "offset 0", found: 8 },
        ),
        (GET_CONFIG, config(0, 95), Lost::ReplySize { request: "GET_CONFIG", expected: 108, found: 108 }),
    ];
    for (request, payload, expected) in cases {
        let lost = meet(request, PATIENCE, move || Answer::Raw(reply(request, &payload), 0));
        assert_eq!(lost, Some(expected));
    }
}

#[test]
fn the_number_of_queues_is_not_believed() {
    for (number, expected) in [(1, 1), (256, 256), (257, 256), (u64::MAX, 256)] {
        let backend = Scripted::good(Script { queues: number, ..Script::default() });
        let transport = VhostUserTransport::connect(&backend.path(), &ConnectOptions::default()).unwrap();
        assert_eq!(transport.queue_count(), expected);
    }
    let backend = Scripted::good(Script { queues: 0, ..Script::default() });
    let error = VhostUserTransport::connect(&backend.path(), &ConnectOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}: the back-end says that it has no queues", backend.path().display())
    );
}

#[test]
fn random_answers_never_hang_or_panic() {
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..300 {
        let (request, ..) = EXCHANGES[random.usize(..EXCHANGES.len())];
        let length = random.usize(1..200);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        // Half of them with a header that is right but for its size.
        if random.bool() && length >= 12 {
            bytes[..8].copy_from_slice(&words(&[request, 5]));
            let size = random.u32(..120);
            bytes[8..12].copy_from_slice(&size.to_ne_bytes());
        }
        let fds = random.usize(..3);
        let raw = random.bool();
        let lost = meet(request, Duration::from_millis(100), move || {
            if raw { Answer::Raw(bytes.clone(), fds) } else { Answer::Last(bytes.clone()) }
        });
        println!("{request}: {lost:?}");
    }
}
