//! Back-ends that die, and others that come in their place: what the new one is told, and when there is no way on.
//! (With real requests and a real disk: `kills.rs` of the program vzbd.)

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::fstat;
use rustix::io::Errno;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ArenaHal, ConnectOptions, Lost, VhostUserTransport};

use self::common::PATIENCE;
use self::common::backend::{Answer, Kept, Received, Script, Scripted, reply};
use self::common::guest::wait_readable;
use self::common::peer::*;
use self::common::toy::VERSION_1;

type Queue = VirtQueue<ArenaHal, 16>;

const REGION_BYTES: u64 = 12_345;

fn tracking() -> Script {
    Script { protocol: ALL_OFFERED | INFLIGHT_SHMFD, ..Script::default() }
}

/// Good, and gives a region: its own socket, for what it is matters only to the next one.
fn with_region(received: &Received) -> Answer {
    match received.request {
        GET_INFLIGHT_FD => {
            let payload = [longs(&[REGION_BYTES, 64]), received.payload[16..].to_vec()].concat();
            Answer::Raw(reply(GET_INFLIGHT_FD, &payload), 1)
        }
        _ => Answer::Good,
    }
}

fn attach(backend: &Scripted, reconnect: Duration) -> (VhostUserTransport, Queue) {
    let options =
        ConnectOptions { timeout: PATIENCE, reconnect: Some(reconnect), ..ConnectOptions::default() };
    let mut transport = VhostUserTransport::connect(&backend.path(), &options).unwrap();
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(begun);
    transport.write_driver_features(VERSION_1);
    transport.set_status(begun | DeviceStatus::FEATURES_OK);
    let queue = Queue::new(&mut transport, 0, false, false).unwrap();
    transport.finish_init();
    assert!(transport.get_status().contains(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK));
    (transport, queue)
}

#[allow(unsafe_code)]
fn add(queue: &mut Queue, input: &[u8], output: &mut [u8]) -> u16 {
    // SAFETY: both buffers outlive the queue, or at least its use.
    unsafe { queue.add(&[input], &mut [output]) }.unwrap()
}

/// What a back-end has of the ring: the memory, and where the used ring is.
fn used_ring(kept: &Kept) -> (File, u64) {
    let payload = |wanted| {
        let nth = kept.requests.iter().rposition(|request| *request == wanted).unwrap();
        &kept.payloads[nth]
    };
    let long = |payload: &[u8], at: usize| u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap());
    let used = long(payload(SET_VRING_ADDR), 16) - long(payload(SET_MEM_TABLE), 24);
    (File::from(kept.memory.as_ref().unwrap().try_clone().unwrap()), used)
}

/// Answers the request with this head, as a back-end does.
fn complete(kept: &Kept, number: u16, head: u16) {
    let (memory, used) = used_ring(kept);
    let at = used + 4 + 8 * u64::from(number % 16);
    memory.write_all_at(&words(&[head.into(), 0]), at).unwrap();
    memory.write_all_at(&(number + 1).to_ne_bytes(), used + 2).unwrap();
}

fn has(kept: &Kept, wanted: u32) -> usize {
    kept.requests.iter().filter(|request| **request == wanted).count()
}

fn payload(kept: &Kept, wanted: u32) -> Vec<u8> {
    kept.payloads[kept.requests.iter().rposition(|request| *request == wanted).unwrap()].clone()
}

#[test]
fn a_new_back_end_is_told_what_the_old_one_knew_and_gets_its_region() {
    let backend = Scripted::start(tracking(), with_region);
    let (mut transport, mut queue) = attach(&backend, PATIENCE);
    let inode = |fd: &OwnedFd| fstat(fd).unwrap().st_ino;
    let (region, region_inode) = {
        let kept = backend.kept.lock().unwrap();
        // For all queues that it has, of the length that was said to be the longest: the driver may start more later.
        let wanted = payload(&kept, GET_INFLIGHT_FD);
        assert_eq!(wanted[16..20], [2_u16.to_ne_bytes(), 1024_u16.to_ne_bytes()].concat());
        let region = payload(&kept, SET_INFLIGHT_FD);
        assert_eq!(region[..20], [longs(&[REGION_BYTES, 64]), wanted[16..20].to_vec()].concat());
        assert_eq!((has(&kept, GET_INFLIGHT_FD), has(&kept, SET_INFLIGHT_FD)), (1, 1));
        (region, inode(kept.inflight.as_ref().unwrap()))
    };
    // The last byte of each place counts.
    for byte in [1_u8, 0] {
        transport.write_config_space(32, byte).unwrap();
    }
    // One request is answered, two are not.
    let mut buffers: Vec<_> =
        (0..3).map(|_| (ArenaBuffer::zeroed(512).unwrap(), ArenaBuffer::zeroed(512).unwrap())).collect();
    let heads: Vec<_> = buffers.iter_mut().map(|(input, output)| add(&mut queue, input, output)).collect();
    complete(&backend.kept.lock().unwrap(), 0, heads[0]);
    transport.notify(0);
    wait_readable(backend.kept.lock().unwrap().kick[0].as_ref().unwrap().as_fd());

    let backend = backend.replace(tracking(), |_| Answer::Good);
    // It counts as a call: what was answered just before the death may not have been called for.
    assert_eq!(transport.wait_used(0, PATIENCE), Ok(true));
    assert_eq!(queue.peek_used(), Some(heads[0]));
    let expected = [
        [GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER].as_slice(),
        &[GET_QUEUE_NUM, SET_BACKEND_REQ_FD],
        &[GET_FEATURES, SET_FEATURES, SET_STATUS, GET_STATUS, SET_MEM_TABLE],
        &[SET_CONFIG, GET_CONFIG, SET_INFLIGHT_FD],
        &[SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR, SET_VRING_ERR, SET_VRING_CALL, SET_VRING_KICK],
        &[SET_VRING_ENABLE, SET_STATUS],
    ];
    assert_eq!(backend.requests(), expected.concat());
    {
        let kept = backend.kept.lock().unwrap();
        assert_eq!(payload(&kept, SET_FEATURES), longs(&[VERSION_1 | PROTOCOL_FEATURES]));
        assert_eq!(payload(&kept, SET_CONFIG), [words(&[32, 1, 0]), vec![0]].concat());
        assert_eq!(payload(&kept, SET_INFLIGHT_FD), region);
        assert_eq!(inode(kept.inflight.as_ref().unwrap()), region_inode);
        assert_eq!(payload(&kept, SET_VRING_BASE), words(&[0, 1]), "the used index");
        assert_eq!(payload(&kept, SET_STATUS), longs(&[15]));
        let statuses =
            kept.requests.iter().zip(&kept.payloads).filter(|(request, _)| **request == SET_STATUS);
        assert_eq!(statuses.map(|(_, payload)| payload[0]).collect::<Vec<_>>(), [11, 15]);
        // It is told to look.
        wait_readable(kept.kick[0].as_ref().unwrap().as_fd());
        complete(&kept, 1, heads[2]);
        rustix::io::write(kept.call[0].as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
    }
    assert!(transport.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT));
    assert_eq!(transport.wait_used(0, PATIENCE), Ok(true));
    assert!(!transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT));
    assert_eq!(transport.monitor().lost(), None);

    // And once more, found by the status; then an orderly end. The region is one until the rings stop.
    let backend = backend.replace(tracking(), |received| match received.request {
        GET_VRING_BASE => Answer::Raw(reply(GET_VRING_BASE, &words(&[0, 2])), 0),
        _ => with_region(received),
    });
    assert!(!transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    assert_eq!(payload(&backend.kept.lock().unwrap(), SET_VRING_BASE), words(&[0, 2]));
    transport.set_status(DeviceStatus::empty());
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(begun);
    transport.set_status(begun | DeviceStatus::FEATURES_OK);
    let other = Queue::new(&mut transport, 1, false, false).unwrap();
    transport.finish_init();
    {
        let kept = backend.kept.lock().unwrap();
        assert_eq!((has(&kept, GET_INFLIGHT_FD), has(&kept, SET_INFLIGHT_FD)), (1, 2));
        assert_eq!(payload(&kept, SET_VRING_BASE), words(&[1, 0]));
    }
    drop((transport, queue, other, buffers));
}

#[test]
fn a_back_end_may_die_at_any_message() {
    // The first dies at its nth message, the next one at the one after, ... and each time the driver gets what it wants.
    let messages = {
        let backend = Scripted::start(tracking(), with_region);
        drop(attach(&backend, PATIENCE));
        backend.requests().len()
    };
    // Those of `connect` itself are an error of that.
    let first = 7;
    assert!(messages > first + 12, "{messages} messages");
    for nth in first..messages - 1 {
        let mut count = 0;
        let dies = move |received: &Received| {
            count += 1;
            if count > nth { Answer::Last(Vec::new()) } else { with_region(received) }
        };
        let backend = Scripted::start(tracking(), dies);
        let path = backend.path();
        let (asked, next) = channel();
        let helper = thread::spawn(move || {
            // Its thread ends with the connection.
            common::eventually("the death", || backend.is_over());
            let backend = backend.replace(tracking(), with_region);
            asked.send(()).unwrap();
            backend
        });
        let options =
            ConnectOptions { timeout: PATIENCE, reconnect: Some(PATIENCE), ..ConnectOptions::default() };
        let mut transport = VhostUserTransport::connect(&path, &options).unwrap();
        let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(begun);
        transport.write_driver_features(VERSION_1);
        transport.set_status(begun | DeviceStatus::FEATURES_OK);
        let queue = Queue::new(&mut transport, 0, false, false).unwrap();
        transport.finish_init();
        assert_eq!(transport.get_status(), begun | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        transport.set_status(DeviceStatus::empty());
        assert_eq!(transport.monitor().lost(), None, "message {nth}");
        next.recv().unwrap();
        let backend = helper.join().unwrap();
        let kept = backend.kept.lock().unwrap();
        // Died before the start, it is started once; after, twice; at the stop, all the same.
        assert!(has(&kept, SET_VRING_ENABLE) <= 1 && has(&kept, GET_VRING_BASE) <= 1, "{:?}", kept.requests);
        drop((transport, queue));
    }
}

#[test]
fn a_back_end_with_less_to_offer_does_not_do() {
    let cases = [
        (
            Script { features: PROTOCOL_FEATURES, ..tracking() },
            Lost::Replaced { what: "features", expected: VERSION_1, found: 0 },
        ),
        (
            Script { queues: 1, ..tracking() },
            Lost::Replaced { what: "a number of queues", expected: 2, found: 1 },
        ),
        (
            Script { protocol: ALL_OFFERED, ..tracking() },
            Lost::Replaced {
                what: "protocol features",
                expected: 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 16,
                found: 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 16,
            },
        ),
    ];
    for (script, expected) in cases {
        let backend = Scripted::start(tracking(), with_region);
        let (mut transport, queue) = attach(&backend, PATIENCE);
        let backend = backend.replace(script, |_| Answer::Good);
        assert_eq!(transport.wait_used(0, PATIENCE), Err(expected.clone()));
        assert_eq!(transport.monitor().lost(), Some(expected));
        assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
        drop((transport, queue, backend));
    }
    let text = Lost::Replaced { what: "features", expected: 5, found: 4 }.to_string();
    assert!(text.ends_with("has other features: 0x5 was agreed upon, 0x4 is offered"), "{text}");
}

#[test]
fn features_that_are_refused_do_not_do_either() {
    let backend = Scripted::start(tracking(), with_region);
    let (mut transport, queue) = attach(&backend, PATIENCE);
    let backend = backend.replace(tracking(), |received| match received.request {
        SET_FEATURES => Answer::Raw(reply(SET_FEATURES, &longs(&[1])), 0),
        _ => Answer::Good,
    });
    let lost = Lost::Replaced { what: "features", expected: VERSION_1, found: VERSION_1 };
    assert_eq!(transport.wait_used(0, PATIENCE), Err(lost));
    drop((transport, queue, backend));
}

#[test]
fn a_back_end_that_does_not_track_can_be_replaced_while_it_has_nothing() {
    for region in [false, true] {
        // Not offered; or offered, and then there is no memory for it.
        let protocol = if region { ALL_OFFERED | INFLIGHT_SHMFD } else { ALL_OFFERED };
        let script = move || Script { protocol, ..Script::default() };
        let none = |received: &Received| match received.request {
            GET_INFLIGHT_FD => Answer::Raw(reply(GET_INFLIGHT_FD, &[0; 24]), 0),
            _ => Answer::Good,
        };
        let backend = Scripted::start(script(), none);
        let (mut transport, mut queue) = attach(&backend, PATIENCE);
        let mut buffers = [ArenaBuffer::zeroed(512).unwrap(), ArenaBuffer::zeroed(512).unwrap()];
        let [input, output] = &mut buffers;
        let head = add(&mut queue, input, output);
        complete(&backend.kept.lock().unwrap(), 0, head);
        let backend = backend.replace(script(), none);
        assert_eq!(transport.wait_used(0, PATIENCE), Ok(true));
        assert_eq!(payload(&backend.kept.lock().unwrap(), SET_VRING_BASE), words(&[0, 1]));
        assert_eq!(has(&backend.kept.lock().unwrap(), SET_INFLIGHT_FD), 0);

        let mut more = [ArenaBuffer::zeroed(512).unwrap(), ArenaBuffer::zeroed(512).unwrap()];
        let [input, output] = &mut more;
        add(&mut queue, input, output);
        let dir = backend.remove();
        let lost = Lost::Untracked { requests: 1 };
        assert_eq!(transport.wait_used(0, PATIENCE), Err(lost.clone()));
        assert_eq!(transport.monitor().lost(), Some(lost));
        drop((transport, queue, buffers, more, dir));
    }
}

#[test]
fn nobody_comes() {
    let patience = Duration::from_millis(200);
    let backend = Scripted::start(tracking(), with_region);
    let (mut transport, queue) = attach(&backend, patience);
    let _dir = backend.remove();
    let lost = Lost::NotReplaced { waited: patience, errno: Errno::NOENT };
    assert_eq!(transport.wait_used(0, Duration::ZERO), Err(lost));
    drop((transport, queue));

    // Who leaves does not wait, nor who resets the device; only who wants something of it.
    let backend = Scripted::start(tracking(), with_region);
    let (mut transport, queue) = attach(&backend, Duration::from_secs(1000));
    let dir = backend.remove();
    transport.set_status(DeviceStatus::empty());
    assert_eq!(transport.get_status(), DeviceStatus::empty());
    assert_eq!(transport.monitor().lost(), None);
    drop(queue);
    let backend = Scripted::start_in(dir, tracking(), with_region);
    assert_eq!(transport.read_device_features(), VERSION_1);
    assert_eq!(backend.requests()[0], GET_FEATURES);
    drop((transport, backend));

    let backend = Scripted::start(tracking(), with_region);
    let (transport, queue) = attach(&backend, Duration::from_secs(1000));
    let monitor = transport.monitor();
    let _dir = backend.remove();
    drop((transport, queue));
    assert!(matches!(monitor.lost(), Some(Lost::Closed { .. })), "{:?}", monitor.lost());
}

#[test]
fn a_back_end_that_dies_again_and_again_is_given_up() {
    // Each one comes up to the status, and dies of that. Nothing was answered in between.
    let patience = Duration::from_millis(300);
    let backend = Scripted::start(tracking(), with_region);
    let (transport, queue) = attach(&backend, patience);
    let dir = backend.remove();
    let (stop, stopped) = channel::<()>();
    let others = thread::spawn(move || {
        let mut dead = 0;
        while stopped.try_recv().is_err() {
            let backend = Scripted::start_in(std::sync::Arc::clone(&dir), tracking(), {
                let mut started = false;
                move |received| {
                    started |= received.request == SET_VRING_ENABLE;
                    if started && received.request == GET_STATUS {
                        Answer::Last(Vec::new())
                    } else {
                        with_region(received)
                    }
                }
            });
            let deadline = Instant::now() + patience;
            while !backend.is_over() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            dead += 1;
            std::fs::remove_file(backend.path()).unwrap_or_default();
        }
        dead
    });
    assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    let lost = transport.monitor().lost();
    assert!(matches!(lost, Some(Lost::NotReplaced { .. })), "{lost:?}");
    stop.send(()).unwrap();
    assert!(others.join().unwrap() > 1);
    drop((transport, queue));
}

#[test]
fn another_configuration_is_a_change_of_it() {
    let backend = Scripted::start(tracking(), with_region);
    let (mut transport, queue) = attach(&backend, PATIENCE);
    assert_eq!(transport.read_config_space::<u8>(0), Ok(0));
    let generation = transport.read_config_generation();
    let config = (0..96).map(|n| n + 1).collect();
    let backend = backend.replace(Script { config, ..tracking() }, |_| Answer::Good);
    assert!(transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT));
    assert_eq!(transport.read_config_space::<u8>(0), Ok(1));
    assert_ne!(transport.read_config_generation(), generation);
    drop((transport, queue, backend));
}

#[test]
fn an_answer_about_the_region_that_cannot_be_is_refused() {
    type Case = (Vec<u8>, usize, fn(&Lost) -> bool);
    let whole = |size: u64| [longs(&[size, 0]), words(&[0, 0])].concat();
    let fds = |lost: &Lost| matches!(lost, Lost::FileDescriptors { request: "GET_INFLIGHT_FD" });
    let size = |lost: &Lost| matches!(lost, Lost::ReplySize { request: "GET_INFLIGHT_FD", .. });
    let cases: [Case; 6] = [
        (whole(4096), 0, fds),
        (whole(4096), 2, fds),
        (whole(0), 1, fds),
        (whole(4096)[..19].to_vec(), 1, size),
        ([whole(4096), vec![0]].concat(), 1, size),
        (Vec::new(), 0, size),
    ];
    for (bytes, count, expected) in cases {
        let backend = Scripted::start(tracking(), move |received| match received.request {
            GET_INFLIGHT_FD => Answer::Raw(reply(GET_INFLIGHT_FD, &bytes), count),
            _ => Answer::Good,
        });
        let options = ConnectOptions { reconnect: Some(PATIENCE), ..ConnectOptions::default() };
        let mut transport = VhostUserTransport::connect(&backend.path(), &options).unwrap();
        let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(begun);
        transport.write_driver_features(VERSION_1);
        transport.set_status(begun | DeviceStatus::FEATURES_OK);
        let queue = Queue::new(&mut transport, 0, false, false).unwrap();
        transport.finish_init();
        let lost = transport.monitor().lost();
        assert!(lost.as_ref().is_some_and(expected), "{lost:?}");
        drop((transport, queue));
    }
}
