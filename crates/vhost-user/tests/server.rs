//! The socket file, stopping, and waiting for one's turn.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::event::{EventfdFlags, eventfd};
use virtio_zbd_vhost_user::{Error, Server};

use self::common::guest::{Driver, Guest};
use self::common::peer::*;
use self::common::toy::{Event, Toy, VERSION_1};
use self::common::{Harness, eventually};

#[test]
fn the_socket_is_ours_alone_and_goes_with_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = Server::bind(&path).unwrap();
    assert_eq!(server.path(), path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    // std leaves the file where it is.
    drop(UnixListener::bind(&path).unwrap());
    let before = fs::metadata(&path).unwrap();
    let server = Server::bind(&path).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_ne!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    UnixStream::connect(&path).unwrap();
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_live_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = Server::bind(&path).unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
    // Even if nobody is accepted any more: the backlog is full.
    let mut waiting = Vec::new();
    for _ in 0..64 {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        let result = rustix::net::connect(&socket, &address);
        waiting.push(socket);
        if result.is_err() {
            break;
        }
    }
    assert!(waiting.len() < 64, "the backlog has no end");
    assert!(matches!(Server::bind(&path), Err(Error::InUse { .. })));
    drop(server);
    assert!(!path.exists());
}

#[test]
fn other_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.zbd");
    fs::write(&path, b"precious").unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, Error::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert!(matches!(Server::bind(dir.path()), Err(Error::NotASocket { .. })));

    // A symbolic link to a stale socket is no socket either.
    let (target, link) = (dir.path().join("target"), dir.path().join("link"));
    drop(UnixListener::bind(&target).unwrap());
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(matches!(Server::bind(&link), Err(Error::NotASocket { .. })));

    // Somebody's socket of another kind.
    let datagram = dir.path().join("datagram");
    let _receiver = UnixDatagram::bind(&datagram).unwrap();
    assert!(matches!(Server::bind(&datagram), Err(Error::Io { .. })));
    assert!(datagram.exists());

    let long = dir.path().join("x".repeat(200));
    assert!(matches!(Server::bind(long), Err(Error::Io { .. })));
    assert!(matches!(Server::bind(dir.path().join("no/such/place")), Err(Error::Io { .. })));
}

#[test]
fn another_s_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = Server::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    UnixStream::connect(&path).unwrap();
    drop(other);
    // And one whose file is gone does not mind.
    fs::remove_file(&path).unwrap();
    let server = Server::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    drop(server);
}

#[test]
fn a_server_stops_while_it_waits() {
    Harness::start(Toy::new()).stop();
}

#[test]
fn a_server_stops_in_the_middle_of_everything() {
    let harness = Harness::start(Toy::new());
    let guest = Guest::new(0, 0, 0);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1), 0);
    assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
    let mut driver = Driver::new(&guest, 0);
    let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    assert_eq!(peer.ask(SET_VRING_CALL, &longs(&[0]), &[call.as_fd()]), 0);
    assert_eq!(peer.ask_vring(SET_VRING_NUM, 0, 8), 0);
    assert_eq!(peer.ask(SET_VRING_ADDR, &driver.addr(), &[]), 0);
    assert_eq!(peer.ask(SET_VRING_KICK, &longs(&[0]), &[driver.kick.as_fd()]), 0);
    driver.put(b"work");
    driver.kick();
    driver.wait(call.as_fd(), b"work");
    // Half a message is under way, too.
    assert!(peer.try_send(&message(GET_FEATURES, VERSION, &[])[..7], &[]));

    let toy = std::sync::Arc::clone(&harness.toy);
    harness.stop();
    assert!(toy.running().is_empty());
    let expected =
        [Event::Connect, Event::Accept(VERSION_1), Event::Start(0), Event::Stop(0), Event::Disconnect];
    assert_eq!(toy.take_events(), expected);
    peer.assert_closed();
}

#[test]
fn a_server_stops_although_nobody_reads_its_replies() {
    let harness = Harness::start(Toy::new());
    let peer = harness.connect();
    peer.stream.set_nonblocking(true).unwrap();
    // Until the reply does not fit any more, and then no more messages fit either.
    let ask = message(GET_FEATURES, VERSION, &[]);
    let mut sent = 0;
    loop {
        match rustix::net::send(&peer.stream, &ask, rustix::net::SendFlags::NOSIGNAL) {
            Ok(_) => sent += 1,
            Err(rustix::io::Errno::AGAIN) => {
                std::thread::sleep(std::time::Duration::from_millis(20));
                if rustix::net::send(&peer.stream, &ask, rustix::net::SendFlags::NOSIGNAL).is_err() {
                    break;
                }
            }
            Err(errno) => panic!("{errno}"),
        }
    }
    assert!(sent > 100, "only {sent} messages");
    harness.stop();
}

#[test]
fn the_next_front_end_waits_for_its_turn() {
    let harness = Harness::start(Toy::new());
    let first = harness.connect();
    assert_eq!(first.get(GET_QUEUE_NUM), 4);
    let second = harness.connect();
    second.send(GET_QUEUE_NUM, 0, &[], &[]);
    assert_eq!(first.get(GET_QUEUE_NUM), 4);
    assert_eq!(harness.toy.take_events(), [Event::Connect]);
    drop(first);
    assert_eq!(second.recv_u64(GET_QUEUE_NUM), 4);
    assert_eq!(harness.toy.take_events(), [Event::Disconnect, Event::Connect]);
    // One that came and went before its turn.
    drop(harness.connect());
    drop(second);
    eventually("two more ends", || {
        let events = harness.toy.take_events();
        events.is_empty() || events.last() == Some(&Event::Disconnect)
    });
    assert_eq!(harness.connect().get(GET_QUEUE_NUM), 4);
    harness.stop();
}
