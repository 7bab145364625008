//! The limit of open files: what cannot be taken ends one connection, or makes the next one wait, and no
//! more. A test for itself, since the limit is the process's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::common::Harness;
use self::common::guest::is_readable_now;
use self::common::peer::*;
use self::common::toy::Toy;

#[test]
fn the_limit_of_open_files_is_survived() {
    let harness = Harness::start(Toy::new());
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    let open = fs::read_dir("/proc/self/fd").unwrap().count();

    // Made before, connected later: that takes no descriptor.
    let client = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();

    let whole = getrlimit(Resource::Nofile);
    let limit = u64::try_from(open).unwrap() + 20;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..whole }).unwrap();
    let mut filling: Vec<OwnedFd> = Vec::new();
    let mut fill = || filling.extend(std::iter::from_fn(|| rustix::io::dup(&event).ok()));
    fill();
    // There is no place for the descriptor, so the message is not what the front-end sent.
    peer.send(SET_VRING_CALL, NEED_REPLY, &longs(&[0]), &[event.as_fd()]);
    peer.assert_closed();

    fill();
    connect(&client, &SocketAddrUnix::new(harness.path()).unwrap()).unwrap();
    let next = Peer::over(client.into());
    next.send(GET_QUEUE_NUM, 0, &[], &[]);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!is_readable_now(next.stream.as_fd()), "it was accepted without a descriptor");
    filling.clear();
    assert_eq!(next.recv_u64(GET_QUEUE_NUM), 4);
    setrlimit(Resource::Nofile, whole).unwrap();
    drop(next);
    harness.stop();
}
