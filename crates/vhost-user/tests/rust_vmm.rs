//! rust-vmm's front-end, which cloud-hypervisor and others use: an independent reading of the protocol.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_zbd_vhost_user::MEMORY_SLOTS_MAX;

use self::common::Harness;
use self::common::guest::{Driver, Guest, MEMORY_BYTES, RING_SIZE, is_readable_now};
use self::common::peer::PROTOCOL_FEATURES;
use self::common::toy::{CONFIG_BYTES, Event, MQ, Toy, VERSION_1, ZONED};

/// The front-end wants vmm-sys-util's `EventFd`, which cannot be named here: its type is inferred.
#[allow(unsafe_code)]
fn event_fd<T: FromRawFd>(fd: impl AsFd) -> T {
    let fd = rustix::io::dup(fd).unwrap().into_raw_fd();
    // SAFETY: `fd` was just made and is owned by nobody else.
    unsafe { T::from_raw_fd(fd) }
}

/// A front-end that has negotiated all that it and we have, and waits for replies.
fn connect(harness: &Harness) -> Frontend {
    let mut frontend = Frontend::connect(harness.path(), 16).unwrap();
    frontend.set_owner().unwrap();
    assert_eq!(frontend.get_features().unwrap(), VERSION_1 | ZONED | MQ | PROTOCOL_FEATURES);
    let offered = frontend.get_protocol_features().unwrap();
    let expected = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::BACKEND_REQ
        | Protocol::CONFIG
        | Protocol::RESET_DEVICE
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::STATUS;
    assert_eq!(offered, expected);
    frontend.set_protocol_features(offered - Protocol::STATUS).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend
}

fn region(guest: &Guest) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest.guest,
        memory_size: MEMORY_BYTES,
        userspace_addr: guest.user,
        mmap_offset: guest.offset,
        mmap_handle: guest.file.as_raw_fd(),
    }
}

fn place(driver: &Driver<'_>) -> VringConfigData {
    let [desc_table_addr, avail_ring_addr, used_ring_addr] = driver.user_addresses();
    VringConfigData {
        queue_max_size: 256,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr,
        used_ring_addr,
        avail_ring_addr,
        log_addr: None,
    }
}

fn call_fd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn start(frontend: &mut Frontend, driver: &Driver<'_>, index: usize, base: u16, call: &OwnedFd) {
    frontend.set_vring_num(index, RING_SIZE).unwrap();
    frontend.set_vring_addr(index, &place(driver)).unwrap();
    frontend.set_vring_base(index, base).unwrap();
    frontend.set_vring_call(index, &event_fd(call)).unwrap();
    frontend.set_vring_err(index, &event_fd(call_fd())).unwrap();
    frontend.set_vring_kick(index, &event_fd(&driver.kick)).unwrap();
    frontend.set_vring_enable(index, true).unwrap();
}

#[test]
fn queues_start_echo_move_and_stop() {
    let harness = Harness::start(Toy::new());
    let mut frontend = connect(&harness);
    assert_eq!(frontend.get_queue_num().unwrap(), 4);
    frontend.set_features(VERSION_1 | ZONED | PROTOCOL_FEATURES).unwrap();
    let guest = Guest::new(0x8000_0000, 0x7f00_0000_0000, 0);
    frontend.set_mem_table(&[region(&guest)]).unwrap();

    let mut drivers: Vec<_> = (0..4).map(|index| Driver::new(&guest, index)).collect();
    let calls: Vec<_> = (0..4).map(|_| call_fd()).collect();
    for (index, driver) in drivers.iter().enumerate() {
        start(&mut frontend, driver, index, 0, &calls[index]);
    }
    assert_eq!(harness.toy.running().len(), 4);
    for (&index, vring) in &harness.toy.running() {
        let expected = drivers[usize::from(index)].guest_addresses();
        assert_eq!([vring.desc.0, vring.avail.0, vring.used.0], expected);
        assert_eq!((vring.size, vring.features), (RING_SIZE, VERSION_1 | ZONED));
        assert!(vring.call.is_some() && vring.err.is_some());
    }
    for n in 0..50_u8 {
        for (index, driver) in drivers.iter_mut().enumerate() {
            driver.put(&[n, 1, 2, 3]);
            driver.kick();
            driver.wait(calls[index].as_fd(), &[n, 1, 2, 3]);
        }
    }
    // A queue that is taken back says where it was, and goes on there.
    for (index, driver) in drivers.iter_mut().enumerate() {
        assert_eq!(frontend.get_vring_base(index).unwrap(), 50);
        assert_eq!(harness.toy.running().len(), 3);
        start(&mut frontend, driver, index, 50, &calls[index]);
        driver.put(b"again");
        driver.kick();
        driver.wait(calls[index].as_fd(), b"again");
    }
    drop(frontend);
    harness.stop();
}

#[test]
fn the_call_changes_while_the_queue_runs() {
    let harness = Harness::start(Toy::new());
    let mut frontend = connect(&harness);
    frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    let guest = Guest::new(0, 0x7f00_0000_0000, 0x3000);
    frontend.set_mem_table(&[region(&guest)]).unwrap();
    let mut driver = Driver::new(&guest, 0);
    let (masked, unmasked) = (call_fd(), call_fd());
    start(&mut frontend, &driver, 0, 0, &masked);
    driver.put(b"one");
    driver.kick();
    driver.wait(masked.as_fd(), b"one");

    // As QEMU unmasks an interrupt: what came before is signalled once more, so that nothing is missed.
    assert!(!is_readable_now(unmasked.as_fd()));
    frontend.set_vring_call(0, &event_fd(&unmasked)).unwrap();
    let mut count = [0; 8];
    rustix::io::read(&unmasked, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    // The old one had its signal, too, perhaps unread.
    let _ = rustix::io::read(&masked, &mut count);
    driver.put(b"two");
    driver.kick();
    driver.wait(unmasked.as_fd(), b"two");
    assert!(!is_readable_now(masked.as_fd()));
    assert_eq!(frontend.get_vring_base(0).unwrap(), 2);
    // A queue that is not running has nothing to signal.
    let other = call_fd();
    frontend.set_vring_call(0, &event_fd(&other)).unwrap();
    assert!(!is_readable_now(other.as_fd()));
    harness.stop();
}

#[test]
fn config_is_read_and_written() {
    let harness = Harness::start(Toy::new());
    let mut frontend = connect(&harness);
    for (offset, size) in [(0, 96), (0, 1), (72, 24), (90, 16), (200, 8), (0, 256)] {
        let buffer = vec![0; size];
        let length = u32::try_from(size).unwrap();
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, found) = frontend.get_config(offset, length, flags, &buffer).unwrap();
        let expected: Vec<u8> = (usize::try_from(offset).unwrap()..)
            .map(|at| if at < CONFIG_BYTES { u8::try_from(at).unwrap() } else { 0 })
            .take(size)
            .collect();
        assert_eq!(found, expected, "{size} bytes at {offset}");
    }
    frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[7]).unwrap();
    assert!(frontend.set_config(31, VhostUserConfigFlags::WRITABLE, &[7]).is_err());
    // These two are 1 and 2 in this crate, 0 and 1 in the specification: 2 means nothing.
    assert!(frontend.set_config(32, VhostUserConfigFlags::LIVE_MIGRATION, &[8]).is_err());
    let (_, found) = frontend.get_config(31, 2, VhostUserConfigFlags::WRITABLE, &[0; 2]).unwrap();
    assert_eq!(found, [31, 7]);
    harness.stop();
}

#[test]
fn memory_is_added_and_removed_under_a_running_queue() {
    let harness = Harness::start(Toy::new());
    let mut frontend = connect(&harness);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), u64::try_from(MEMORY_SLOTS_MAX).unwrap());
    frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    let (first, second) = (Guest::new(0, 0x7f00_0000_0000, 0), Guest::new(0x1_0000_0000, 0, 0));
    frontend.add_mem_region(&region(&first)).unwrap();
    assert!(frontend.add_mem_region(&region(&first)).is_err(), "twice the same");

    let mut driver = Driver::new(&first, 0);
    let call = call_fd();
    start(&mut frontend, &driver, 0, 0, &call);
    let mut work = |bytes: &[u8]| {
        driver.put(bytes);
        driver.kick();
        driver.wait(call.as_fd(), bytes);
    };
    work(b"one");
    frontend.add_mem_region(&region(&second)).unwrap();
    work(b"two");
    frontend.remove_mem_region(&region(&second)).unwrap();
    assert!(frontend.remove_mem_region(&region(&second)).is_err(), "twice the same");
    work(b"three");
    // QEMU changes a region by removing and adding it: the queue waits in between.
    frontend.remove_mem_region(&region(&first)).unwrap();
    assert!(harness.toy.running().is_empty());
    frontend.add_mem_region(&region(&first)).unwrap();
    work(b"four");
    assert_eq!(frontend.get_vring_base(0).unwrap(), 4);
    harness.stop();
}

/// V4: a driver that does not accept what the device insists on is refused, and the next one gets its try.
#[test]
fn features_are_refused_and_accepted_later() {
    let harness = Harness::start(Toy { wanted: ZONED, ..Toy::new() });
    let frontend = connect(&harness);
    // Only bit 30: no driver has spoken.
    frontend.set_features(PROTOCOL_FEATURES).unwrap();
    // A firmware's driver.
    assert!(frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).is_err());
    // The kernel's.
    frontend.set_features(VERSION_1 | ZONED | PROTOCOL_FEATURES).unwrap();
    let expected = [Event::Connect, Event::Refuse(VERSION_1), Event::Accept(VERSION_1 | ZONED)].to_vec();
    assert_eq!(harness.toy.take_events(), expected);
    harness.stop();
}

/// The same driver starts its queue although it was refused, as one does that does not look.
#[test]
fn a_refused_driver_s_queue_is_the_device_s_to_decide() {
    let harness = Harness::start(Toy { wanted: ZONED, ..Toy::new() });
    let mut frontend = connect(&harness);
    frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let guest = Guest::new(0, 0x7f00_0000_0000, 0);
    frontend.set_mem_table(&[region(&guest)]).unwrap();
    let mut driver = Driver::new(&guest, 0);
    let call = call_fd();
    start(&mut frontend, &driver, 0, 0, &call);
    assert_eq!(harness.toy.running()[&0].features, VERSION_1);
    driver.put(b"refused");
    driver.kick();
    driver.wait(call.as_fd(), b"refused");
    // The connection is there for the next driver.
    assert_eq!(frontend.get_vring_base(0).unwrap(), 1);
    frontend.set_features(VERSION_1 | ZONED | PROTOCOL_FEATURES).unwrap();
    harness.stop();
}

#[test]
fn a_reset_stops_everything_and_keeps_memory() {
    let harness = Harness::start(Toy::new());
    let mut frontend = connect(&harness);
    let guest = Guest::new(0, 0x7f00_0000_0000, 0);
    frontend.set_mem_table(&[region(&guest)]).unwrap();
    harness.toy.take_events();
    for _ in 0..2 {
        frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
        let driver = Driver::new(&guest, 1);
        start(&mut frontend, &driver, 1, 0, &call_fd());
        frontend.reset_device().unwrap();
        let expected = [Event::Accept(VERSION_1), Event::Start(1), Event::Stop(1), Event::Reset].to_vec();
        assert_eq!(harness.toy.take_events(), expected);
    }
    // Enabled again, but of the queue nothing is known any more.
    frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    frontend.set_vring_enable(1, true).unwrap();
    assert!(harness.toy.running().is_empty());
    assert_eq!(frontend.get_vring_base(1).unwrap(), 0);
    frontend.reset_owner().unwrap();
    harness.stop();
}

#[test]
fn front_ends_come_one_after_another() {
    let harness = Harness::start(Toy::new());
    for n in 0..5 {
        let mut frontend = connect(&harness);
        frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
        let guest = Guest::new(0x1000 * n, 0x7f00_0000_0000, 0);
        frontend.set_mem_table(&[region(&guest)]).unwrap();
        let mut driver = Driver::new(&guest, 0);
        let call = call_fd();
        start(&mut frontend, &driver, 0, 0, &call);
        driver.put(b"hello");
        driver.kick();
        driver.wait(call.as_fd(), b"hello");
        // Leaves without a word, its queue running.
    }
    harness.stop();
}
