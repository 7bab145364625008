//! Message by message: what is answered, what is refused, what ends a connection.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, eventfd};
use virtio_zbd_vhost_user::MEMORY_SLOTS_MAX;

use self::common::Harness;
use self::common::guest::{Driver, Guest, MEMORY_BYTES, is_readable_now};
use self::common::peer::*;
use self::common::toy::{Event, MQ, Toy, VERSION_1, ZONED};

/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK of the device status.
const ACKNOWLEDGE_DRIVER: u64 = 3;
const FEATURES_OK: u64 = 8;
const DRIVER_OK: u64 = 4;

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Queue `index` of `guest`, all but enabled.
fn set_up(peer: &Peer, index: u32, driver: &Driver<'_>) {
    assert_eq!(peer.ask_vring(SET_VRING_NUM, index, 8), 0);
    assert_eq!(peer.ask_vring(SET_VRING_BASE, index, 0), 0);
    assert_eq!(peer.ask(SET_VRING_ADDR, &driver.addr(), &[]), 0);
    assert_eq!(peer.ask(SET_VRING_KICK, &longs(&[index.into()]), &[driver.kick.as_fd()]), 0);
}

#[test]
fn what_is_asked_is_answered() {
    let harness = Harness::start(Toy::new());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    // A reply of its own, once, whether an acknowledgement is asked for or not.
    for flags in [0, NEED_REPLY] {
        let answers = [
            (GET_FEATURES, VERSION_1 | ZONED | MQ | PROTOCOL_FEATURES),
            (GET_PROTOCOL_FEATURES, ALL_OFFERED),
            (GET_QUEUE_NUM, 4),
            (GET_MAX_MEM_SLOTS, u64::try_from(MEMORY_SLOTS_MAX).unwrap()),
            (GET_STATUS, 0),
        ];
        for (request, expected) in answers {
            peer.send(request, flags, &[], &[]);
            assert_eq!(peer.recv_u64(request), expected);
        }
    }
    harness.stop();
}

#[test]
fn feature_bits_that_cannot_be_kept_are_not_offered() {
    let harness = Harness::start(Toy { features: u64::MAX, ..Toy::new() });
    let peer = harness.connect();
    // Dirty log, IOMMU, packed rings.
    assert_eq!(peer.get(GET_FEATURES), !(1 << 26 | 1 << 33 | 1 << 34));
    harness.stop();
}

#[test]
fn without_reply_ack_nothing_is_acknowledged() {
    let harness = Harness::start(Toy::new());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED & !REPLY_ACK);
    peer.send(SET_OWNER, NEED_REPLY, &[], &[]);
    peer.send(SET_FEATURES, NEED_REPLY, &longs(&[VERSION_1]), &[]);
    // A message that nobody knows.
    peer.send(4711, NEED_REPLY, &[1, 2, 3], &[]);
    assert_eq!(peer.get(GET_QUEUE_NUM), 4);
    harness.stop();
}

#[test]
fn unknown_messages_are_refused_and_forgiven() {
    let harness = Harness::start(Toy::new());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    let fds = [event(), event()];
    for request in [0, 45, 4711, u32::MAX] {
        assert_eq!(peer.ask(request, &[0; 100], &[fds[0].as_fd(), fds[1].as_fd()]), 1);
        peer.send(request, 0, &[], &[]);
    }
    assert_eq!(peer.get(GET_QUEUE_NUM), 4);
    // Known, but not offered: a front-end that sends it unasked has not listened.
    assert_eq!(peer.ask(32, &[0; 24], &[fds[0].as_fd()]), 1);
    assert_eq!(peer.get(GET_QUEUE_NUM), 4);
    peer.send(GET_INFLIGHT_FD, 0, &[0; 24], &[]);
    peer.assert_closed();
    harness.stop();
}

#[test]
fn a_frame_may_come_in_pieces() {
    let harness = Harness::start(Toy::new());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    let guest = Guest::new(0, 0x7f00_0000_0000, 0);
    let table = message(SET_MEM_TABLE, VERSION | NEED_REPLY, &guest.mem_table());
    let pause = || std::thread::sleep(std::time::Duration::from_millis(1));
    // The file descriptor comes with the first byte, or with the header's end, or with the payload.
    for cut in [1, 11, 12, 13, table.len() - 1] {
        for fd_first in [true, false] {
            let fds = [guest.fd()];
            let (first, second): (&[BorrowedFd<'_>], &[BorrowedFd<'_>]) =
                if fd_first { (&fds, &[]) } else { (&[], &fds) };
            assert!(peer.try_send(&table[..cut], first));
            pause();
            assert!(peer.try_send(&table[cut..], second));
            assert_eq!(peer.recv_u64(SET_MEM_TABLE), 0, "cut at {cut}");
        }
    }
    // And several in one.
    let two = [message(GET_QUEUE_NUM, VERSION, &[]), message(GET_STATUS, VERSION, &[])].concat();
    assert!(peer.try_send(&two, &[]));
    assert_eq!(peer.recv_u64(GET_QUEUE_NUM), 4);
    assert_eq!(peer.recv_u64(GET_STATUS), 0);
    harness.stop();
}

/// V4 with the STATUS protocol feature: the messages are done, and FEATURES_OK tells.
#[test]
fn refusal_shows_in_the_status() {
    let harness = Harness::start(Toy { wanted: ZONED, ..Toy::new() });
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    let try_features = |features: u64| {
        assert_eq!(peer.ask_u64(SET_STATUS, 0), 0);
        assert_eq!(peer.ask_u64(SET_STATUS, ACKNOWLEDGE_DRIVER), 0);
        assert_eq!(peer.ask_u64(SET_FEATURES, features), 0);
        assert_eq!(peer.get(GET_STATUS), ACKNOWLEDGE_DRIVER);
        assert_eq!(peer.ask_u64(SET_STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK), 0);
        peer.get(GET_STATUS) & FEATURES_OK != 0
    };
    assert_eq!(harness.toy.take_events(), [Event::Connect]);
    // A firmware's driver that does not know zones.
    assert!(!try_features(VERSION_1 | PROTOCOL_FEATURES));
    assert_eq!(harness.toy.take_events(), [Event::Reset, Event::Refuse(VERSION_1)]);
    // One that accepts nothing at all is asked for when it says that it is done.
    assert!(!try_features(PROTOCOL_FEATURES));
    assert_eq!(harness.toy.take_events(), [Event::Reset, Event::Refuse(0)]);
    assert!(!try_features(0));
    assert_eq!(harness.toy.take_events(), [Event::Reset, Event::Refuse(0)]);
    // The kernel's.
    assert!(try_features(ZONED | VERSION_1 | PROTOCOL_FEATURES));
    assert_eq!(harness.toy.take_events(), [Event::Reset, Event::Accept(ZONED | VERSION_1)]);

    // A refusal takes FEATURES_OK back, even if the status is not reset before.
    let done = ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(peer.ask_u64(SET_STATUS, done), 0);
    assert_eq!(peer.get(GET_STATUS), done);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1), 0);
    assert_eq!(peer.get(GET_STATUS), done & !FEATURES_OK);
    assert_eq!(peer.ask_u64(SET_STATUS, done), 0);
    assert_eq!(peer.get(GET_STATUS), done & !FEATURES_OK);
    assert_eq!(peer.ask_u64(SET_STATUS, 0x100), 1);
    harness.stop();
}

/// V4 without STATUS: an error reply is what is left.
#[test]
fn refusal_is_an_error_without_status() {
    let harness = Harness::start(Toy { wanted: ZONED, ..Toy::new() });
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED & !STATUS);
    assert_eq!(peer.ask_u64(SET_FEATURES, PROTOCOL_FEATURES), 0);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES), 1);
    // And without a reply the connection stays all the same.
    peer.send(SET_FEATURES, 0, &longs(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1 | ZONED), 0);
    assert_eq!(peer.ask_u64(SET_STATUS, 0), 1, "STATUS has not been negotiated");
    let events = harness.toy.take_events();
    let refused = Event::Refuse(VERSION_1);
    assert_eq!(events, [Event::Connect, refused.clone(), refused, Event::Accept(VERSION_1 | ZONED)]);
    harness.stop();
}

#[test]
fn config_has_a_size() {
    let harness = Harness::start(Toy::new());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.get_config(94, 4), [94, 95, 0, 0]);
    assert_eq!(peer.get_config(u32::MAX, 256), [0; 256]);
    for size in [0, 257, 4000, u32::MAX] {
        peer.send(GET_CONFIG, 0, &words(&[0, size, 0]), &[]);
        assert_eq!(peer.recv(GET_CONFIG), [0; 0], "{size} bytes are answered with an empty payload");
    }
    let set = |offset: u32, flags: u32, data: &[u8]| {
        let size = u32::try_from(data.len()).unwrap();
        peer.ask(SET_CONFIG, &[words(&[offset, size, flags]), data.to_vec()].concat(), &[])
    };
    assert_eq!(set(32, 0, &[1]), 0);
    assert_eq!(set(32, 2, &[2]), 1);
    assert_eq!(set(33, 0, &[3]), 1);
    assert_eq!(set(32, 0, &[]), 1);
    assert_eq!(set(32, 0, &[4; 257]), 1);
    assert_eq!(harness.toy.take_events(), [Event::Connect, Event::WriteConfig(32, vec![1])]);
    harness.stop();
}

#[test]
fn a_change_of_the_config_space_comes_through_a_socket() {
    let harness = Harness::start(Toy::new());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert!(!harness.toy.frontend().config_changed(), "there is no channel yet");
    let (mut requests, theirs) = UnixStream::pair().unwrap();
    assert_eq!(peer.ask(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), 0);
    assert!(harness.toy.frontend().config_changed());
    let mut found = [0; 12];
    requests.read_exact(&mut found).unwrap();
    assert_eq!(found.to_vec(), words(&[2, VERSION, 0]));
    assert_eq!(peer.ask(SET_BACKEND_REQ_FD, &[], &[event().as_fd()]), 1, "no channel");
    harness.stop();
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let harness = Harness::start(Toy::new());
    let guest = Guest::new(0, 0, 0);
    let peer = Peer::negotiated(harness.path(), REPLY_ACK);
    let region = [longs(&[0]), guest.region()].concat();
    assert_eq!(peer.ask(ADD_MEM_REG, &region, &[guest.fd()]), 1);
    assert_eq!(peer.ask(REM_MEM_REG, &region, &[]), 1);
    assert_eq!(peer.ask(SET_CONFIG, &[words(&[32, 1, 0]), vec![1]].concat(), &[]), 1);
    assert_eq!(peer.ask(SET_BACKEND_REQ_FD, &[], &[event().as_fd()]), 1);
    assert_eq!(peer.ask_u64(SET_STATUS, 1), 1);
    drop(peer);
    for own_reply in [GET_STATUS, GET_MAX_MEM_SLOTS] {
        // There is no reply of this kind that would say no.
        for flags in [0, NEED_REPLY] {
            let peer = Peer::negotiated(harness.path(), REPLY_ACK);
            peer.send(own_reply, flags, &[], &[]);
            peer.assert_closed();
        }
    }
    harness.stop();
}

#[test]
fn rings_have_a_size_a_base_and_a_place() {
    let harness = Harness::start(Toy::new());
    let guest = Guest::new(0x10_0000, 0x7f00_0000_0000, 0);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    for (num, expected) in
        [(0, 1), (1, 0), (3, 1), (128, 0), (255, 1), (256, 0), (512, 1), (32768, 1), (65535, 1), (65536, 1)]
    {
        assert_eq!(peer.ask_vring(SET_VRING_NUM, 0, num), expected, "size {num}");
    }
    for (num, expected) in [(0, 0), (65535, 0), (65536, 1), (u32::MAX, 1)] {
        assert_eq!(peer.ask_vring(SET_VRING_BASE, 1, num), expected, "base {num}");
    }
    assert_eq!(peer.get_vring_base(1), 65535);
    for request in [SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE] {
        for index in [4, 255, 256, 65536, u32::MAX] {
            assert_eq!(peer.ask_vring(request, index, 1), 1, "queue {index}");
        }
    }
    for num in [2, u32::MAX] {
        assert_eq!(peer.ask_vring(SET_VRING_ENABLE, 0, num), 1);
    }

    let base = guest.user;
    assert_eq!(peer.ask(SET_VRING_ADDR, &vring_addr(0, base, base, base), &[]), 1, "no memory yet");
    assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
    let end = base + MEMORY_BYTES;
    let places = [
        (base, base, base, 0),
        (end - 4096, end - 518, end - 2056, 0),
        (end - 4080, base, base, 1),
        (base, end - 516, base, 1),
        (base, base, end - 2052, 1),
        (base + 8, base, base, 1),
        (base, base + 1, base, 1),
        (base, base, base + 2, 1),
        (0x10_0000, 0x10_0000, 0x10_0000, 1),
        (u64::MAX - 15, base, base, 1),
        (base, u64::MAX - 1, base, 1),
        (base, base, u64::MAX - 3, 1),
        (0, 0, 0, 1),
    ];
    for (desc, avail, used, expected) in places {
        let place = vring_addr(0, desc, avail, used);
        assert_eq!(peer.ask(SET_VRING_ADDR, &place, &[]), expected, "{desc:#x} {avail:#x} {used:#x}");
    }
    let mut logged = vring_addr(0, base, base, base);
    logged[4] = 1;
    assert_eq!(peer.ask(SET_VRING_ADDR, &logged, &[]), 1, "the log is not offered");
    assert_eq!(peer.ask(SET_VRING_ADDR, &vring_addr(4, base, base, base), &[]), 1);
    harness.stop();
}

#[test]
fn size_and_base_stay_while_a_queue_runs() {
    let harness = Harness::start(Toy::new());
    let guest = Guest::new(0, 0, 0);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1), 0);
    assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
    let driver = Driver::new(&guest, 0);
    // Bit 30 was not accepted: queues are enabled from the start.
    set_up(&peer, 0, &driver);
    assert_eq!(harness.toy.running().len(), 1);
    assert_eq!(peer.ask_vring(SET_VRING_NUM, 0, 4), 1);
    assert_eq!(peer.ask_vring(SET_VRING_BASE, 0, 4), 1);
    assert_eq!(peer.ask(SET_VRING_ADDR, &driver.addr(), &[]), 0);
    assert_eq!(harness.toy.running().len(), 1);
    assert_eq!(peer.get_vring_base(0), 0);
    assert_eq!(peer.ask_vring(SET_VRING_NUM, 0, 4), 0);
    harness.stop();
}

#[test]
fn polling_and_odd_fds_are_refused() {
    let harness = Harness::start(Toy::new());
    let guest = Guest::new(0, 0, 0);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1), 0);
    assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
    let no_fd = longs(&[0x100]);
    assert_eq!(peer.ask(SET_VRING_KICK, &no_fd, &[]), 1);
    // Legitimate, so it ends nothing where no reply is asked for.
    peer.send(SET_VRING_KICK, 0, &no_fd, &[]);
    for request in [SET_VRING_CALL, SET_VRING_ERR] {
        assert_eq!(peer.ask(request, &no_fd, &[]), 0, "the driver polls");
    }
    for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        assert_eq!(peer.ask(request, &longs(&[0]), &[guest.fd()]), 1, "a memfd is no event");
        assert_eq!(peer.ask(request, &longs(&[4]), &[event().as_fd()]), 1, "there is no queue 4");
    }
    let driver = Driver::new(&guest, 0);
    set_up(&peer, 0, &driver);
    assert!(harness.toy.running()[&0].call.is_none());
    harness.stop();
}

#[test]
fn a_queue_that_cannot_start_is_told_of_and_tried_again() {
    let toy = Toy::new();
    toy.broken.store(true, Ordering::Relaxed);
    let harness = Harness::start(toy);
    let guest = Guest::new(0, 0, 0);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES), 0);
    assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
    let driver = Driver::new(&guest, 0);
    set_up(&peer, 0, &driver);
    let err = event();
    assert_eq!(peer.ask(SET_VRING_ERR, &longs(&[0]), &[err.as_fd()]), 0);
    assert!(!is_readable_now(err.as_fd()));
    assert_eq!(peer.ask_vring(SET_VRING_ENABLE, 0, 1), 1);
    assert!(is_readable_now(err.as_fd()));
    assert_eq!(peer.ask_vring(SET_VRING_ENABLE, 0, 0), 0);
    assert_eq!(peer.ask_vring(SET_VRING_ENABLE, 0, 1), 1);
    assert_eq!(peer.get_vring_base(0), 0);
    harness.stop();
}

/// What cannot be answered with an error ends the connection; the server goes on.
#[test]
fn nonsense_without_a_reply_ends_the_connection() {
    let harness = Harness::start(Toy::new());
    let event = event();
    let many = vec![event.as_fd(); 33];
    let eight = longs(&[u64::MAX]);
    let none: &[BorrowedFd<'_>] = &[];
    let cases: &[(&str, Vec<u8>, &[BorrowedFd<'_>])] = &[
        ("version 0", message(GET_FEATURES, 0, &[]), none),
        ("version 2", message(GET_FEATURES, 2, &[]), none),
        ("a reply", message(GET_FEATURES, VERSION | REPLY, &[]), none),
        ("too long", words(&[GET_FEATURES, VERSION, 4097]), none),
        ("far too long", words(&[GET_FEATURES, VERSION | NEED_REPLY, u32::MAX]), none),
        ("too many fds", message(SET_OWNER, VERSION | NEED_REPLY, &[]), &many),
        ("features", message(SET_FEATURES, VERSION, &eight), none),
        ("protocol features", message(SET_PROTOCOL_FEATURES, VERSION, &eight), none),
        ("no payload", message(SET_FEATURES, VERSION, &[]), none),
        ("an fd", message(SET_OWNER, VERSION, &[]), &many[..1]),
        ("no fd", message(SET_VRING_CALL, VERSION, &longs(&[0])), none),
        ("no queue", message(GET_VRING_BASE, VERSION | NEED_REPLY, &eight), none),
        ("no region", message(SET_MEM_TABLE, VERSION, &longs(&[0])), none),
    ];
    for (what, bytes, fds) in cases {
        println!("{what}");
        let peer = harness.connect();
        assert!(peer.try_send(bytes, fds));
        peer.assert_closed();
    }
    // Half a message, then nothing.
    for cut in [1, 11, 12, 19] {
        let peer = harness.connect();
        assert!(peer.try_send(&message(SET_FEATURES, VERSION, &eight)[..cut], &[]));
        peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
        peer.assert_closed();
    }
    assert_eq!(harness.connect().get(GET_QUEUE_NUM), 4);
    harness.stop();
}

/// The same with a reply: an error, and nothing has changed.
#[test]
fn nonsense_with_a_reply_changes_nothing() {
    let harness = Harness::start(Toy { echo: false, ..Toy::new() });
    let guest = Guest::new(0x10_0000, 0x7f00_0000_0000, 0);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1), 0);
    assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
    let driver = Driver::new(&guest, 0);
    set_up(&peer, 0, &driver);
    harness.toy.take_events();

    let region =
        |guest_addr: u64, size: u64, user: u64, offset: u64| longs(&[1, guest_addr, size, user, offset]);
    let tables = [
        region(0, 0, 0, 0),
        region(0, MEMORY_BYTES + 1, 0, 0),
        region(0, 1, 0, MEMORY_BYTES),
        region(u64::MAX, 2, 0, 0),
        region(0, 2, u64::MAX, 0),
        region(0, 2, 0, u64::MAX),
        region(0, u64::MAX, 0, 0),
    ];
    for table in tables {
        assert_eq!(peer.ask(SET_MEM_TABLE, &table, &[guest.fd()]), 1);
    }
    let twice = |first: [u64; 4], second: [u64; 4]| [longs(&[2]), longs(&first), longs(&second)].concat();
    let overlaps = [
        twice([0, 8192, 0, 0], [4096, 8192, 1 << 30, 0]),
        twice([0, 8192, 0, 0], [1 << 30, 8192, 8191, 0]),
        twice([0, 8192, 0, 0], [0, 8192, 0, 0]),
    ];
    for table in overlaps {
        assert_eq!(peer.ask(SET_MEM_TABLE, &table, &[guest.fd(), guest.fd()]), 1);
    }
    let event = event();
    assert_eq!(peer.ask(SET_MEM_TABLE, &region(0, 4096, 0, 0), &[event.as_fd()]), 1);
    let single = [longs(&[0]), guest.region()].concat();
    assert_eq!(peer.ask(ADD_MEM_REG, &single, &[guest.fd()]), 1, "it is there already");
    let other = [longs(&[0]), longs(&[0, 4096, 0, 0])].concat();
    assert_eq!(peer.ask(REM_MEM_REG, &other, &[]), 1, "there is no such region");
    assert_eq!(peer.ask_u64(SET_FEATURES, 1 << 5), 1);
    assert_eq!(peer.ask_u64(SET_PROTOCOL_FEATURES, u64::MAX), 1);

    assert_eq!(harness.toy.take_events(), [], "the queue was not even stopped");
    assert_eq!(harness.toy.running().len(), 1);
    harness.stop();
}
