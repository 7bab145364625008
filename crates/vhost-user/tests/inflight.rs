//! INFLIGHT_SHMFD: what a back-end leaves undone is done by the next one, once. rust-vmm's front-end says the messages, byte by byte is
//! looked at what it does not show.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use self::common::guest::{Driver, Guest, MEMORY_BYTES, RING_SIZE};
use self::common::peer::*;
use self::common::toy::{Event, Toy, VERSION_1};
use self::common::{Harness, eventually};

/// The front-end wants vmm-sys-util's `EventFd`, which cannot be named here: its type is inferred.
#[allow(unsafe_code)]
fn event_fd<T: FromRawFd>(fd: impl AsFd) -> T {
    let fd = rustix::io::dup(fd).unwrap().into_raw_fd();
    // SAFETY: `fd` was just made and is owned by nobody else.
    unsafe { T::from_raw_fd(fd) }
}

fn toy() -> Toy {
    Toy { inflight: true, ..Toy::new() }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// rust-vmm's front-end with a guest's memory.
fn connect(harness: &Harness, guest: &Guest) -> Frontend {
    let mut frontend = Frontend::connect(harness.path(), 16).unwrap();
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(Protocol::INFLIGHT_SHMFD));
    frontend.set_protocol_features(offered - Protocol::STATUS).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: guest.guest,
        memory_size: MEMORY_BYTES,
        userspace_addr: guest.user,
        mmap_offset: guest.offset,
        mmap_handle: guest.file.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    frontend
}

fn start(frontend: &mut Frontend, driver: &Driver<'_>, index: usize, base: u16, call: &OwnedFd) {
    let [desc_table_addr, avail_ring_addr, used_ring_addr] = driver.user_addresses();
    let place = VringConfigData {
        queue_max_size: 256,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr,
        used_ring_addr,
        avail_ring_addr,
        log_addr: None,
    };
    frontend.set_vring_num(index, RING_SIZE).unwrap();
    frontend.set_vring_addr(index, &place).unwrap();
    frontend.set_vring_base(index, base).unwrap();
    frontend.set_vring_call(index, &event_fd(call)).unwrap();
    frontend.set_vring_kick(index, &event_fd(&driver.kick)).unwrap();
    frontend.set_vring_enable(index, true).unwrap();
}

/// The buffer as the front-end keeps it.
fn get(frontend: &mut Frontend) -> (VhostUserInflight, File) {
    frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 4, RING_SIZE)).unwrap()
}

#[test]
fn what_one_back_end_has_taken_the_next_one_answers() {
    let guest = Guest::new(0x8000_0000, 0x7f00_0000_0000, 0);
    let (mut first, mut second) = (Driver::new(&guest, 0), Driver::new(&guest, 3));
    let calls = [event(), event()];
    let mut buffer = None;
    let mut base = [0, 0];
    for round in 0..40_u8 {
        let harness = Harness::start(toy());
        let mut frontend = connect(&harness, &guest);
        let (shape, file) = buffer.get_or_insert_with(|| get(&mut frontend));
        frontend.set_inflight_fd(shape, file.as_raw_fd()).unwrap();
        // QEMU's base after a connection was lost: the used ring's index.
        start(&mut frontend, &first, 0, base[0], &calls[0]);
        start(&mut frontend, &second, 3, base[1], &calls[1]);
        for (n, (driver, call)) in [&mut first, &mut second].into_iter().zip(&calls).enumerate() {
            // What the last round has left is answered, and nothing else.
            let next = driver.next_avail();
            eventually("all requests are answered", || driver.used_index() == next);
            driver.put(b"seen");
            driver.kick();
            driver.wait(call.as_fd(), b"seen");
            // Some are taken, some are not even that when the back-end ends; queue 3 has always one more.
            let left = u32::from(round % 3) + u32::try_from(n).unwrap();
            let used = driver.used_index();
            harness.toy.swallow.store(left, Ordering::SeqCst);
            for _ in 0..left {
                driver.put(&[round, 7, 7]);
            }
            driver.kick();
            eventually("requests were taken", || harness.toy.swallow.load(Ordering::SeqCst) == 0);
            assert_eq!(driver.used_index(), used);
            base[n] = used;
        }
        drop(frontend);
        harness.stop();
    }
}

/// The front-end's word for the base counts only for a buffer that knows nothing.
#[test]
fn a_new_buffer_goes_on_where_the_front_end_says() {
    let harness = Harness::start(Toy { echo: false, ..toy() });
    let guest = Guest::new(0, 0x7f00_0000_0000, 0);
    let mut frontend = connect(&harness, &guest);
    let driver = Driver::new(&guest, 0);
    let (shape, file) = get(&mut frontend);
    frontend.set_inflight_fd(&shape, file.as_raw_fd()).unwrap();
    start(&mut frontend, &driver, 0, 4711, &event());
    assert_eq!(harness.toy.running()[&0].next_avail, 4711);
    frontend.get_vring_base(0).unwrap();
    start(&mut frontend, &driver, 0, 5000, &event());
    assert_eq!(harness.toy.running()[&0].next_avail, 0, "the used ring's index");
    // After a reset the rings are set up anew, and nothing is known.
    frontend.reset_device().unwrap();
    frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    start(&mut frontend, &driver, 0, 6000, &event());
    assert_eq!(harness.toy.running()[&0].next_avail, 6000);
    harness.stop();
}

/// A buffer may be given at any time: running queues are handed over again with their part of it.
#[test]
fn a_buffer_comes_and_changes_under_running_queues() {
    let harness = Harness::start(toy());
    let guest = Guest::new(0, 0x7f00_0000_0000, 0);
    let mut frontend = connect(&harness, &guest);
    let mut driver = Driver::new(&guest, 1);
    let call = event();
    start(&mut frontend, &driver, 1, 0, &call);
    assert!(harness.toy.running()[&1].inflight.is_none());
    harness.toy.take_events();
    for n in 0..3 {
        driver.put(&[n]);
        driver.kick();
        driver.wait(call.as_fd(), &[n]);
        let (shape, file) = get(&mut frontend);
        frontend.set_inflight_fd(&shape, file.as_raw_fd()).unwrap();
        let expected = [Event::Stop(1), Event::Inflight(4, RING_SIZE), Event::Start(1)];
        assert_eq!(harness.toy.take_events(), expected);
        assert!(harness.toy.running()[&1].inflight.is_some());
    }
    driver.put(b"last");
    driver.kick();
    driver.wait(call.as_fd(), b"last");
    harness.stop();
}

#[test]
fn it_is_offered_where_the_device_keeps_its_part() {
    let harness = Harness::start(Toy::new());
    let peer = harness.connect();
    assert_eq!(peer.get(GET_PROTOCOL_FEATURES), ALL_OFFERED);
    peer.send(SET_PROTOCOL_FEATURES, 0, &longs(&[ALL_OFFERED | INFLIGHT_SHMFD]), &[]);
    peer.assert_closed();
    harness.stop();

    let harness = Harness::start(toy());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.get(GET_PROTOCOL_FEATURES), ALL_OFFERED | INFLIGHT_SHMFD);
    let file = File::from(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(0x1_0000).unwrap();
    assert_eq!(peer.ask(SET_INFLIGHT_FD, &inflight(0x1_0000, 0, 4, 8), &[file.as_fd()]), 1);
    // Not negotiated, and the answer would have to be a buffer.
    peer.send(GET_INFLIGHT_FD, 0, &inflight(0, 0, 4, 8), &[]);
    peer.assert_closed();
    harness.stop();
}

#[test]
fn the_answer_is_as_long_as_the_question() {
    let harness = Harness::start(toy());
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED | INFLIGHT_SHMFD);
    for length in [20, 24] {
        let asked = inflight(77, 99, 2, 64);
        peer.send(GET_INFLIGHT_FD, NEED_REPLY, &asked[..length], &[]);
        let (payload, fds) = peer.recv_fds(GET_INFLIGHT_FD);
        // Two regions of 64 + 16 · 64 bytes, 8 words, 2 · 64 notes of 16 bytes.
        let size = 2 * (64 + 16 * 64) + 64 + 2 * 64 * 16;
        assert_eq!(payload, inflight(size, 0, 2, 64)[..length]);
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        let file = File::from(fd);
        assert_eq!(file.metadata().unwrap().size(), size);
        let mut bytes = vec![1; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(peer.ask(SET_INFLIGHT_FD, &payload, &[file.as_fd()]), 0);
        assert_eq!(harness.toy.take_events().pop(), Some(Event::Inflight(2, 64)));
        // Wrong ones change nothing.
        for wrong in [
            inflight(size, 0, 5, 64),
            inflight(size, 0, 0, 64),
            inflight(size, 4096, 2, 64),
            inflight(64, 0, 2, 64),
        ] {
            assert_eq!(peer.ask(SET_INFLIGHT_FD, &wrong, &[file.as_fd()]), 1);
        }
        assert_eq!(harness.toy.take_events(), []);
    }
    harness.stop();
}
