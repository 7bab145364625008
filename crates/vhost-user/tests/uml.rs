//! The messages of Linux's virtio_uml, in its order and with its peculiarities
//! (`arch/um/drivers/virtio_uml.c` of 6.12).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::pipe::{PipeFlags, pipe_with};

use self::common::guest::{Driver, Guest, MEMORY_BYTES, is_readable_now, wait_readable};
use self::common::peer::*;
use self::common::toy::{Event, Toy, VERSION_1, ZONED};
use self::common::{Harness, PATIENCE, eventually};

/// REPLY_ACK, BACKEND_REQ, CONFIG: what virtio_uml takes of our offer (and in-band notifications, which we do
/// not offer).
const UML_PROTOCOL: u64 = 1 << 3 | 1 << 5 | 1 << 9;

/// A kernel that is up: its connection, and what it keeps of its queue.
struct Uml {
    peer: Peer,
    requests: OwnedFd,
}

impl Uml {
    /// `vhost_user_init` and what the virtio core asks before queues are set up.
    fn probe(harness: &Harness) -> Self {
        let peer = harness.connect();
        // Not negotiated yet: no reply to SET_OWNER.
        peer.send(SET_OWNER, 0, &[], &[]);
        let features = peer.get(GET_FEATURES);
        assert_eq!(features & (ZONED | VERSION_1 | PROTOCOL_FEATURES), ZONED | VERSION_1 | PROTOCOL_FEATURES);
        let protocol = peer.get(GET_PROTOCOL_FEATURES) & (UML_PROTOCOL | 1 << 14);
        assert_eq!(protocol, UML_PROTOCOL);
        // REPLY_ACK counts from this message on.
        assert_eq!(peer.ask_u64(SET_PROTOCOL_FEATURES, protocol), 0);
        let (requests, theirs) = os_pipe();
        assert_eq!(peer.ask(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), 0);

        // It asks for the whole space up to what it wants.
        for size in [16, 24, 80, 93, 96] {
            let expected: Vec<u8> = (0..u8::try_from(size).unwrap()).collect();
            assert_eq!(peer.get_config(0, size), expected);
        }
        assert_eq!(peer.ask_u64(SET_FEATURES, features & !(1 << 12)), 0);
        Self { peer, requests }
    }

    /// `vhost_user_set_mem_table`: one region, room for two.
    fn set_mem_table(&self, guest: &Guest) {
        let payload = [longs(&[1]), guest.region(), longs(&[0; 4])].concat();
        assert_eq!(payload.len(), 8 + 2 * 32);
        assert_eq!(self.peer.ask(SET_MEM_TABLE, &payload, &[guest.fd()]), 0);
    }

    /// `vu_find_vqs`, with a call that is a socket. Gives back the reading end.
    fn find_vqs(&self, guest: &Guest, driver: &Driver<'_>, kick: BorrowedFd<'_>) -> OwnedFd {
        self.find_vqs_with(guest, driver, kick, os_pipe())
    }

    fn find_vqs_with(
        &self,
        guest: &Guest,
        driver: &Driver<'_>,
        kick: BorrowedFd<'_>,
        (call, theirs): (OwnedFd, OwnedFd),
    ) -> OwnedFd {
        let peer = &self.peer;
        self.set_mem_table(guest);
        assert_eq!(peer.ask(SET_VRING_CALL, &longs(&[0]), &[theirs.as_fd()]), 0);
        assert_eq!(peer.ask_vring(SET_VRING_NUM, 0, 8), 0);
        assert_eq!(peer.ask_vring(SET_VRING_BASE, 0, 0), 0);
        assert_eq!(peer.ask(SET_VRING_ADDR, &driver.addr(), &[]), 0);
        assert_eq!(peer.ask(SET_VRING_KICK, &longs(&[0]), &[kick]), 0);
        assert_eq!(peer.ask_vring(SET_VRING_ENABLE, 0, 1), 0);
        call
    }

    /// `vu_del_vqs`: GET_FEATURES is the barrier after which the queue's memory is freed.
    fn del_vqs(&self) {
        assert_eq!(self.peer.ask_vring(SET_VRING_ENABLE, 0, 0), 0);
        self.peer.get(GET_FEATURES);
    }
}

/// What user-mode Linux calls a pipe: a pair of stream sockets. It reads from the first and gives away the
/// second.
fn os_pipe() -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (ours.into(), theirs.into())
}

/// Its memory begins behind the kernel's own; user and guest addresses are the same, the file has no gap.
fn uml_guest() -> Guest {
    let reserved = 0x60_3000;
    Guest::new(reserved, reserved, reserved)
}

fn kick_fd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

#[test]
fn a_kernel_attaches_works_and_lets_go() {
    let harness = Harness::start(Toy::new());
    let guest = uml_guest();
    let uml = Uml::probe(&harness);
    for round in 0..3 {
        let mut driver = Driver::new(&guest, 0);
        driver.kick = kick_fd();
        let call = uml.find_vqs(&guest, &driver, driver.kick.as_fd());
        let running = harness.toy.running();
        assert_eq!(running.len(), 1);
        // The kernel's kick blocks; a worker's does not.
        assert!(fcntl_getfl(&running[&0].kick).unwrap().contains(OFlags::NONBLOCK));
        drop(running);
        for n in 0..20_u8 {
            let bytes = [round, n, 0xab];
            driver.put(&bytes);
            driver.kick();
            driver.wait(call.as_fd(), &bytes);
        }
        uml.del_vqs();
        assert!(harness.toy.running().is_empty(), "the queue still runs after the barrier");
    }
    let features = VERSION_1 | ZONED;
    let mut expected = vec![Event::Connect, Event::Accept(features)];
    for _ in 0..3 {
        expected.extend([Event::Start(0), Event::Stop(0)]);
    }
    assert_eq!(harness.toy.take_events(), expected);
    harness.stop();
}

#[test]
fn a_queue_starts_with_what_was_put_before_it_was_kicked() {
    let harness = Harness::start(Toy::new());
    let guest = uml_guest();
    let uml = Uml::probe(&harness);
    let mut driver = Driver::new(&guest, 0);
    driver.put(b"early");
    let call = uml.find_vqs(&guest, &driver, kick_fd().as_fd());
    driver.wait(call.as_fd(), b"early");
    harness.stop();
}

#[test]
fn a_kernel_with_highmem_has_two_regions() {
    let harness = Harness::start(Toy::new());
    let (low, high) = (uml_guest(), Guest::new(0x4000_0000, 0x4000_0000, 0));
    let uml = Uml::probe(&harness);
    let payload = [longs(&[2]), low.region(), high.region()].concat();
    assert_eq!(uml.peer.ask(SET_MEM_TABLE, &payload, &[low.fd(), high.fd()]), 0);
    for guest in [&low, &high] {
        let driver = Driver::new(guest, 0);
        assert_eq!(uml.peer.ask_vring(SET_VRING_NUM, 0, 8), 0);
        assert_eq!(uml.peer.ask(SET_VRING_ADDR, &driver.addr(), &[]), 0);
    }
    let past_low = low.user + MEMORY_BYTES;
    let addr = vring_addr(0, past_low, low.user, low.user);
    assert_eq!(uml.peer.ask(SET_VRING_ADDR, &addr, &[]), 1);
    harness.stop();
}

#[test]
fn a_full_or_closed_call_holds_nobody() {
    let harness = Harness::start(Toy::new());
    let guest = uml_guest();
    for ends in [os_pipe(), pipe_with(PipeFlags::CLOEXEC).unwrap()] {
        let uml = Uml::probe(&harness);
        let mut driver = Driver::new(&guest, 0);
        let call = uml.find_vqs_with(&guest, &driver, driver.kick.as_fd(), ends);
        let mut work = |bytes: &[u8]| {
            driver.put(bytes);
            driver.kick();
            while driver.used_index() != driver.next_avail() {
                std::thread::yield_now();
            }
            driver.check(bytes);
        };
        // Nobody reads them: a pipe takes 8,192 signals, a socket fewer.
        for n in 0..9_000_u32 {
            work(&n.to_ne_bytes());
        }
        drop(call);
        work(b"closed");
        work(b"still");
        uml.del_vqs();
    }
    harness.stop();
}

#[test]
fn a_change_of_the_config_space_comes_through_the_channel() {
    let harness = Harness::start(Toy::new());
    let uml = Uml::probe(&harness);
    assert!(!is_readable_now(uml.requests.as_fd()));
    assert!(harness.toy.frontend().config_changed());
    wait_readable(uml.requests.as_fd());
    let mut message = [0; 64];
    assert_eq!(rustix::io::read(&uml.requests, &mut message).unwrap(), 12);
    // CONFIG_CHANGE_MSG, without a wish for a reply.
    assert_eq!(message[..12], words(&[2, VERSION, 0]));

    let frontend = harness.toy.frontend();
    drop(uml.peer);
    eventually("the end of the connection", || !frontend.config_changed());
    // The server's end is closed, behind what was said while it was open.
    while rustix::io::read(&uml.requests, &mut message).unwrap() > 0 {}
    harness.stop();
}
