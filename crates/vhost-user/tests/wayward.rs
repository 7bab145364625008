//! Front-ends that take away what they shared, stop in the middle, or never begin: they are cut off or wait
//! beside, and the next one is served.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{fcntl_getfl, ftruncate};
use rustix::net::SendFlags;
use virtio_zbd_vhost_user::{Error, Server};

use self::common::Harness;
use self::common::guest::{Driver, Guest};
use self::common::peer::*;
use self::common::toy::{Event, Toy, VERSION_1};

/// A front-end whose queue 0 runs and has echoed once.
struct Running<'g> {
    peer: Peer,
    driver: Driver<'g>,
}

impl<'g> Running<'g> {
    fn start(harness: &Harness, guest: &'g Guest) -> Self {
        Self::start_over(Peer::negotiated(harness.path(), ALL_OFFERED), guest)
    }

    fn start_over(peer: Peer, guest: &'g Guest) -> Self {
        assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1), 0);
        assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
        let mut driver = Driver::new(guest, 0);
        let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        assert_eq!(peer.ask(SET_VRING_CALL, &longs(&[0]), &[call.as_fd()]), 0);
        assert_eq!(peer.ask_vring(SET_VRING_NUM, 0, 8), 0);
        assert_eq!(peer.ask(SET_VRING_ADDR, &driver.addr(), &[]), 0);
        assert_eq!(peer.ask(SET_VRING_KICK, &longs(&[0]), &[driver.kick.as_fd()]), 0);
        driver.put(b"work");
        driver.kick();
        driver.wait(call.as_fd(), b"work");
        Self { peer, driver }
    }
}

#[test]
fn memory_that_is_truncated_ends_the_connection() {
    let harness = Harness::start(Toy::new());
    // All of it, the rings alone, the buffers alone.
    for left_bytes in [0, 0x1000, 0x8_0000] {
        let guest = Guest::new(0, 0, 0);
        let mut running = Running::start(&harness, &guest);
        running.driver.put(b"more");
        // From here on this process must not touch the memory either.
        ftruncate(&guest.file, left_bytes).unwrap();
        running.driver.kick();
        running.peer.assert_closed();
        let expected =
            [Event::Connect, Event::Accept(VERSION_1), Event::Start(0), Event::Stop(0), Event::Disconnect];
        common::eventually("the end", || harness.toy.running().is_empty());
        // The next one has its own memory, whole.
        let guest = Guest::new(0, 0, 0);
        let next = Running::start(&harness, &guest);
        assert_eq!(next.peer.get(GET_QUEUE_NUM), 4);
        let events = harness.toy.take_events();
        assert_eq!(events[..expected.len()], expected);
        drop(next);
        common::eventually("its end", || harness.toy.take_events().contains(&Event::Disconnect));
    }
    harness.stop();
}

#[test]
fn memory_that_nothing_touches_may_go() {
    let harness = Harness::start(Toy::new());
    let (used, spare) = (Guest::new(0, 0, 0), Guest::new(1 << 30, 1 << 30, 0));
    let running = Running::start(&harness, &used);
    let region = [longs(&[0]), spare.region()].concat();
    assert_eq!(running.peer.ask(ADD_MEM_REG, &region, &[spare.fd()]), 0);
    ftruncate(&spare.file, 0).unwrap();
    assert_eq!(running.peer.get(GET_QUEUE_NUM), 4);
    assert_eq!(running.peer.ask(REM_MEM_REG, &region, &[]), 0);
    assert_eq!(running.peer.get(GET_QUEUE_NUM), 4);
    drop(running);
    harness.stop();
}

#[test]
fn an_inflight_buffer_that_is_truncated_ends_the_connection() {
    let harness = Harness::start(Toy { inflight: true, ..Toy::new() });
    for _ in 0..2 {
        let (guest, buffer) = (Guest::new(0, 0, 0), Guest::new(0, 0, 0));
        let peer = Peer::negotiated(harness.path(), ALL_OFFERED | INFLIGHT_SHMFD);
        let region = [longs(&[0x4000, 0]), vec![1, 0, 8, 0, 0, 0, 0, 0]].concat();
        assert_eq!(peer.ask(SET_INFLIGHT_FD, &region, &[buffer.fd()]), 0);
        let mut running = Running::start_over(peer, &guest);
        running.driver.put(b"more");
        ftruncate(&buffer.file, 0).unwrap();
        running.driver.kick();
        running.peer.assert_closed();
    }
    harness.stop();
}

/// A server with little patience.
fn impatient() -> Harness {
    Harness::start_with(Toy::new(), |server| server.with_message_timeout(Duration::from_millis(100)))
}

#[test]
fn half_a_message_is_waited_for_only_so_long() {
    let harness = impatient();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let whole = message(SET_VRING_CALL, VERSION, &longs(&[0]));
    for cut in 1..whole.len() {
        let peer = harness.connect();
        // Whatever was said before, and however often a byte more comes.
        assert_eq!(peer.get(GET_QUEUE_NUM), 4);
        assert!(peer.try_send(&whole[..cut], &[event.as_fd()]));
        // The next one waits for its turn, and has it.
        let next = harness.connect();
        assert_eq!(next.get(GET_QUEUE_NUM), 4);
        peer.assert_closed();
    }
    harness.stop();
}

#[test]
fn a_trickle_is_not_a_message() {
    let harness = impatient();
    let peer = harness.connect();
    let message = message(SET_CONFIG, VERSION, &[0; 268]);
    let trickled = message.iter().all(|byte| {
        std::thread::sleep(Duration::from_millis(10));
        peer.try_send(&[*byte], &[])
    });
    assert!(!trickled, "280 bytes came in 28 times the time");
    harness.stop();
}

#[test]
fn between_messages_a_front_end_may_be_silent() {
    let harness = impatient();
    let peer = harness.connect();
    for _ in 0..3 {
        assert_eq!(peer.get(GET_QUEUE_NUM), 4);
        std::thread::sleep(Duration::from_millis(300));
    }
    harness.stop();
}

#[test]
fn replies_that_nobody_reads_are_kept_only_so_long() {
    let harness = impatient();
    let peer = harness.connect();
    let ask = message(GET_FEATURES, VERSION, &[]);
    // Blocks while the server does, until it has had enough.
    while rustix::net::send(&peer.stream, &ask, SendFlags::NOSIGNAL).is_ok() {}
    assert_eq!(harness.connect().get(GET_QUEUE_NUM), 4);
    harness.stop();
}

#[test]
fn who_says_nothing_holds_up_nobody_and_keeps_its_place() {
    let harness = Harness::start(Toy::new());
    let silent = harness.connect();
    for _ in 0..3 {
        assert_eq!(harness.connect().get(GET_QUEUE_NUM), 4);
    }
    assert_eq!(silent.get(GET_QUEUE_NUM), 4);
    let kinds = [Event::Connect, Event::Disconnect];
    drop(silent);
    common::eventually("four ends", || {
        harness.toy.take_events().iter().rfind(|event| kinds.contains(event)) == Some(&Event::Disconnect)
    });
    harness.stop();
}

#[test]
fn too_many_who_say_nothing_are_too_many() {
    let harness = Harness::start(Toy::new());
    let mut silent: Vec<Peer> = (0..65).map(|_| harness.connect()).collect();
    silent.remove(0).assert_closed();
    // All the others still may have their turn.
    for peer in silent {
        assert_eq!(peer.get(GET_QUEUE_NUM), 4);
    }
    harness.stop();
}

#[test]
fn a_listener_may_come_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener: OwnedFd = UnixListener::bind(&path).unwrap().into();
    let server = Server::from_listener(listener.try_clone().unwrap()).unwrap();
    assert_eq!(server.path(), path);
    let harness = Harness::over(server, &path);
    assert_eq!(harness.connect().get(GET_QUEUE_NUM), 4);
    harness.stop_but_leave_the_file();
    // It is not ours: the next one goes on with it, and with who has come meanwhile.
    let early = Peer::connect(&path);
    let number = std::os::fd::AsRawFd::as_raw_fd(&listener);
    let harness = Harness::over(Server::inherit(number).unwrap(), &path);
    assert_eq!(early.get(GET_QUEUE_NUM), 4);
    drop(early);
    harness.stop_but_leave_the_file();
    assert!(fcntl_getfl(&listener).is_ok(), "the descriptor that was lent is closed");
}

#[test]
fn what_is_no_listener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::bind(dir.path().join("d")).unwrap();
    let file = std::fs::File::create(dir.path().join("f")).unwrap();
    for (fd, expected) in [
        (OwnedFd::from(tcp), "a socket of another family"),
        (OwnedFd::from(datagram), "a Unix socket of another type"),
        (OwnedFd::from(stream), "a Unix stream socket that does not listen"),
        (OwnedFd::from(file), "no socket ("),
    ] {
        let error = Server::from_listener(fd).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("a listening Unix stream socket is expected"), "{error}");
    }
    for number in [-1, 987_654, i32::MIN] {
        assert!(matches!(Server::inherit(number), Err(Error::NotInherited { .. })));
    }
}
