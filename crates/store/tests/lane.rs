//! Lanes: every engine on every store, against plain bytes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{LaneExt, geometry, seeded};
use virtio_zbd_store::{
    Commit, CreateOptions, EngineChoice, Event, ImageStore, IoBuffer, Lane, OpenOptions, RamStore, RawStore,
    Store, Zeroing,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ENGINES: [EngineChoice; 2] = [EngineChoice::IoUring, EngineChoice::Sync];

/// The disk's length; no zones are looked at here.
const CAPACITY: u64 = 4 << 20;

fn stores(directory: &Path) -> Vec<(&'static str, Box<dyn Store>)> {
    let raw = directory.join("raw");
    File::create(&raw).unwrap().set_len(CAPACITY).unwrap();
    let image = directory.join("image.zbd");
    ImageStore::create(&image, geometry(), CreateOptions::default()).unwrap();
    vec![
        ("raw", Box::new(RawStore::open(&raw, false).unwrap())),
        ("image", Box::new(ImageStore::open(&image, OpenOptions::default()).unwrap())),
        ("ram", Box::new(RamStore::plain(CAPACITY).unwrap())),
    ]
}

fn on_all(test: impl Fn(&str, &dyn Store, &mut Lane)) {
    for engine in ENGINES {
        let directory = tempfile::tempdir().unwrap();
        for (name, store) in stores(directory.path()) {
            let mut lane = store.open_lane(engine).unwrap();
            test(&format!("{name} on {}", lane.engine_name()), &*store, &mut lane);
        }
    }
}

fn is_send<T: Send>() {}

#[test]
fn lanes_and_buffers_can_move_to_a_worker() {
    is_send::<Lane>();
    is_send::<IoBuffer>();
    is_send::<Event>();
}

#[test]
fn engines_are_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    for (name, store) in stores(directory.path()) {
        let name_of = |engine| store.open_lane(engine).unwrap().engine_name();
        let expected = if name == "ram" { ["memory"; 3] } else { ["io_uring", "pread/pwrite", "io_uring"] };
        assert_eq!([EngineChoice::IoUring, EngineChoice::Sync, EngineChoice::Auto].map(name_of), expected);
    }
}

/// Guest memory with a seam in the middle: ranges may lie across it.
fn guest() -> Arc<GuestMemoryMmap> {
    Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)])
            .unwrap(),
    )
}

/// Cuts `len` bytes into random guest ranges inside the slot of memory that operation `n` has for itself.
fn ranges(rng: &mut fastrand::Rng, slot: u64, len: usize) -> Vec<(GuestAddress, u32)> {
    let mut ranges = Vec::new();
    let (mut at, mut rest) = (slot, len);
    while rest > 0 {
        let part = match rng.u8(..4) {
            0 => rng.usize(1..=rest.min(7)),
            1 => rng.usize(1..=rest.min(600)),
            _ => rng.usize(1..=rest),
        };
        ranges.push((GuestAddress(at), u32::try_from(part).unwrap()));
        if rng.u8(..8) == 0 {
            ranges.push((GuestAddress(at), 0));
        }
        at += part as u64;
        rest -= part;
    }
    ranges
}

#[test]
fn random_operations_match_plain_bytes() {
    const SLOT: u64 = 256 << 10;
    const SLOTS: u64 = 8;
    let mut seeds = seeded("random_operations_match_plain_bytes");
    on_all(|name, store, lane| {
        let mut rng = fastrand::Rng::with_seed(seeds_next(&seeds, name));
        let memory = guest();
        let capacity = store.capacity_bytes();
        let mut oracle = vec![0u8; usize::try_from(capacity).unwrap()];
        let mut events = Vec::new();
        for _ in 0..60 {
            // A batch of operations on disjoint ranges of the disk, all in flight at once.
            let stripe = capacity / SLOTS / 512 * 512;
            let mut expected = Vec::new();
            for slot in 0..SLOTS {
                let len = rng.u64(1..=(SLOT / 512).min(stripe / 512)) * 512;
                let len = if rng.u8(..3) == 0 { 4096.min(len) } else { len };
                let offset = slot * stripe + rng.u64(0..=(stripe - len) / 512) * 512;
                let place = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
                let ranges = ranges(&mut rng, slot * SLOT, place.len());
                match rng.u8(..8) {
                    0..=2 => {
                        let bytes: Vec<u8> =
                            std::iter::repeat_with(|| rng.u8(..)).take(place.len()).collect();
                        let mut buffer = IoBuffer::guest(memory.clone(), &ranges).unwrap();
                        buffer.copy_from_slice(0, &bytes).unwrap();
                        oracle[place].copy_from_slice(&bytes);
                        lane.write(slot, buffer, offset);
                        expected.push(None);
                    }
                    3..=6 => {
                        let shorter = if rng.bool() { place.len() } else { rng.usize(..=place.len()) };
                        let mut buffer = IoBuffer::guest(memory.clone(), &ranges).unwrap();
                        buffer.copy_from_slice(0, &vec![0xaa; place.len()]).unwrap();
                        lane.read(slot, buffer, shorter, offset);
                        let mut bytes = oracle[place.clone()].to_vec();
                        bytes[shorter..].fill(0xaa);
                        expected.push(Some(bytes));
                    }
                    _ => {
                        let how = if rng.bool() { Zeroing::Deallocate } else { Zeroing::KeepAllocated };
                        lane.zero(slot, offset, len, how);
                        oracle[place].fill(0);
                        expected.push(None);
                    }
                }
            }
            assert_eq!(lane.in_flight(), expected.len());
            while lane.in_flight() > 0 {
                lane.wait(Some(Duration::from_secs(30)), &mut events).unwrap();
            }
            assert_eq!(events.len(), expected.len(), "{name}");
            for event in events.drain(..) {
                let Event::Done { token, buffer, result } = event else { panic!("{event:?}") };
                result.unwrap();
                if let Some(bytes) = &expected[usize::try_from(token).unwrap()] {
                    let mut found = vec![0; bytes.len()];
                    buffer.unwrap().copy_to_slice(0, &mut found).unwrap();
                    assert!(&found == bytes, "{name}: a read of {} bytes differs", bytes.len());
                }
            }
        }
        assert!(lane.read_now(0, oracle.len()).unwrap() == oracle, "{name}: the disk differs at the end");
    });
    seeds.u64(..);
}

/// A seed for each combination, from the test's own.
fn seeds_next(seeds: &fastrand::Rng, name: &str) -> u64 {
    let salt = name.bytes().fold(0u64, |salt, byte| salt.wrapping_mul(31).wrapping_add(byte.into()));
    seeds.clone().u64(..) ^ salt
}

#[test]
fn more_ranges_than_one_call_takes() {
    on_all(|name, _, lane| {
        let memory = guest();
        let bytes: Vec<u8> = (0..3000u32 * 512).map(|i| u8::try_from(i / 7 % 251).unwrap()).collect();
        memory.write_slice(&bytes[..1 << 20], GuestAddress(0)).unwrap();
        let ranges: Vec<_> = (0..2048).map(|i| (GuestAddress(i * 512), 512u32)).collect();
        let buffer = IoBuffer::guest(memory.clone(), &ranges).unwrap();
        lane.write(1, buffer, 512);
        let Event::Done { token: 1, buffer: Some(buffer), result: Ok(()) } = lane.next_event() else {
            panic!("{name}")
        };
        // The buffer has come back whole: it can be used again as it is.
        memory.write_slice(&vec![0; 1 << 20], GuestAddress(0)).unwrap();
        lane.read(2, buffer, 1 << 20, 512);
        let Event::Done { token: 2, result: Ok(()), .. } = lane.next_event() else { panic!("{name}") };
        let mut found = vec![0; 1 << 20];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert!(found == bytes[..1 << 20], "{name}");
    });
}

#[test]
fn more_operations_than_the_ring_holds() {
    on_all(|name, _, lane| {
        for token in 0..2000u64 {
            lane.write(token, IoBuffer::owned(token.to_le_bytes().repeat(64)), token * 512);
        }
        let mut events = Vec::new();
        while lane.in_flight() > 0 {
            lane.wait(None, &mut events).unwrap();
        }
        let mut tokens: Vec<u64> = events
            .into_iter()
            .map(|event| match event {
                Event::Done { token, result: Ok(()), .. } => token,
                other => panic!("{name}: {other:?}"),
            })
            .collect();
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(0..2000), "{name}");
        for token in [0u64, 255, 256, 1999] {
            assert_eq!(lane.read_now(token * 512, 8).unwrap(), token.to_le_bytes(), "{name}");
        }
    });
}

#[test]
fn nothing_reaches_beyond_the_disk_or_the_buffer() {
    on_all(|name, store, lane| {
        let end = store.capacity_bytes();
        for (offset, len) in [(end, 512usize), (end - 512, 1024), (u64::MAX, 512), (u64::MAX - 511, 512)] {
            let read = lane.read_now(offset, len).unwrap_err();
            let write = lane.write_now(offset, &vec![1; len]).unwrap_err();
            let zero = lane.zero_now(offset, len as u64, Zeroing::Deallocate).unwrap_err();
            assert_eq!(
                [read, write, zero].map(|e| e.kind()),
                [io::ErrorKind::InvalidInput; 3],
                "{name} {offset}"
            );
        }
        lane.zero(1, 0, u64::MAX, Zeroing::KeepAllocated);
        assert!(matches!(lane.next_event(), Event::Done { token: 1, result: Err(_), .. }));
        lane.read(2, IoBuffer::owned(vec![0; 512]), 513, 0);
        assert!(matches!(lane.next_event(), Event::Done { token: 2, result: Err(_), buffer: Some(_) }));
        assert_eq!(lane.read_now(end, 0).unwrap(), b"", "{name}: nothing at the end is something");
        lane.write_now(end - 512, &[3; 512]).unwrap();
        assert_eq!(lane.read_now(end - 512, 512).unwrap(), [3; 512]);
    });
}

#[test]
fn a_truncated_file_is_an_error_and_what_is_there_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let path = directory.path().join("raw");
        std::fs::write(&path, vec![5; 8192]).unwrap();
        let store = RawStore::open(&path, false).unwrap();
        let mut lane = store.open_lane(engine).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(6000).unwrap();
        let error = lane.read_now(4096, 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        assert_eq!(lane.read_now(4096, 1024).unwrap(), [5; 1024]);
    }
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raw");
    std::fs::write(&path, vec![5; 8192]).unwrap();
    for engine in ENGINES {
        let store = RawStore::open(&path, true).unwrap();
        assert!(store.read_only());
        let mut lane = store.open_lane(engine).unwrap();
        let write = lane.write_now(0, &[1; 512]).unwrap_err();
        let zero = lane.zero_now(0, 512, Zeroing::Deallocate).unwrap_err();
        assert_eq!([write, zero].map(|e| e.kind()), [io::ErrorKind::ReadOnlyFilesystem; 2]);
        store.commit(&Commit { flush: true, ..Commit::default() }).durable.unwrap();
        store.close().unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), vec![5; 8192]);
}

#[test]
fn zeroing_gives_space_back_or_keeps_it() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let path = directory.path().join("raw");
        std::fs::write(&path, vec![5; 1 << 20]).unwrap();
        let store = RawStore::open(&path, false).unwrap();
        let mut lane = store.open_lane(engine).unwrap();
        store.commit(&Commit { flush: true, ..Commit::default() }).durable.unwrap();
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let before = blocks();
        lane.zero_now(0, 512 << 10, Zeroing::KeepAllocated).unwrap();
        assert_eq!(blocks(), before);
        lane.zero_now(512 << 10, 512 << 10, Zeroing::Deallocate).unwrap();
        assert_eq!(blocks(), before / 2);
        assert!(lane.read_now(0, 1 << 20).unwrap().iter().all(|&byte| byte == 0));
    }
}

fn eventfd(flags: rustix::event::EventfdFlags) -> (OwnedFd, File) {
    let fd = rustix::event::eventfd(0, flags).unwrap();
    let other = File::from(fd.try_clone().unwrap());
    (fd, other)
}

#[test]
fn watched_descriptors_wake_the_worker_each_time() {
    use rustix::event::EventfdFlags;
    on_all(|name, _, lane| {
        let (blocking, mut kick_blocking) = eventfd(EventfdFlags::empty());
        let (nonblocking, mut kick_nonblocking) = eventfd(EventfdFlags::NONBLOCK);
        let (pipe, kick_pipe) = rustix::pipe::pipe().unwrap();
        let mut kick_pipe = File::from(kick_pipe);
        lane.watch(blocking, 10).unwrap();
        lane.watch(nonblocking, 11).unwrap();
        lane.watch(pipe, 12).unwrap();
        for _ in 0..5 {
            for (source, kick) in
                [(10, &mut kick_blocking), (11, &mut kick_nonblocking), (12, &mut kick_pipe)]
            {
                kick.write_all(&1u64.to_ne_bytes()).unwrap();
                assert!(matches!(lane.next_event(), Event::Wake(found) if found == source), "{name}");
            }
        }
        let mut events = Vec::new();
        lane.wait(Some(Duration::from_millis(5)), &mut events).unwrap();
        assert!(events.is_empty(), "{name}: {events:?}");

        // I/O and wakes arrive in one place.
        kick_nonblocking.write_all(&1u64.to_ne_bytes()).unwrap();
        lane.write(77, IoBuffer::owned(vec![1; 4096]), 0);
        let (mut woken, mut done) = (false, false);
        while !(woken && done) {
            lane.wait(None, &mut events).unwrap();
            for event in events.drain(..) {
                match event {
                    Event::Wake(11) if !woken => woken = true,
                    Event::Done { token: 77, result: Ok(()), .. } if !done => done = true,
                    other => panic!("{name}: {other:?}"),
                }
            }
        }

        // One source is watched no more, the others are.
        lane.unwatch(11).unwrap();
        kick_nonblocking.write_all(&1u64.to_ne_bytes()).unwrap();
        kick_blocking.write_all(&1u64.to_ne_bytes()).unwrap();
        assert!(matches!(lane.next_event(), Event::Wake(10)), "{name}");

        // The other end goes away: one last wake.
        drop(kick_pipe);
        assert!(matches!(lane.next_event(), Event::Wake(12)), "{name}");
        lane.wait(Some(Duration::from_millis(5)), &mut events).unwrap();
        assert!(events.is_empty(), "{name}: {events:?}");
        lane.unwatch_all().unwrap();
        let endless = lane.wait(None, &mut events).unwrap_err();
        assert_eq!(endless.kind(), io::ErrorKind::Deadlock);
    });
}

#[test]
fn waiting_takes_no_processor_time() {
    use rustix::time::{ClockId, clock_gettime};
    let used_ns = || {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        used.tv_sec * 1_000_000_000 + used.tv_nsec
    };
    on_all(|name, _, lane| {
        for flags in [rustix::event::EventfdFlags::empty(), rustix::event::EventfdFlags::NONBLOCK] {
            let (fd, _kick) = eventfd(flags);
            lane.watch(fd, 1).unwrap();
            let before = used_ns();
            let mut events = Vec::new();
            lane.wait(Some(Duration::from_millis(200)), &mut events).unwrap();
            let used = used_ns() - before;
            // Not a matter of speed: who spins uses all of it, whatever else the machine does.
            assert!(events.is_empty() && used < 50_000_000, "{name}, {flags:?}: {used} ns, {events:?}");
            lane.unwatch_all().unwrap();
        }
    });
}

#[test]
fn a_wake_comes_from_another_thread() {
    on_all(|name, _, lane| {
        let (fd, mut kick) = eventfd(rustix::event::EventfdFlags::NONBLOCK);
        lane.watch(fd, 3).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                kick.write_all(&1u64.to_ne_bytes()).unwrap();
            });
            let mut events = Vec::new();
            lane.wait(None, &mut events).unwrap();
            assert!(matches!(events[..], [Event::Wake(3)]), "{name}: {events:?}");
        });
    });
}

#[test]
fn a_descriptor_that_can_not_be_read_ends_its_watch() {
    on_all(|name, _, lane| {
        let (_read, write) = rustix::pipe::pipe().unwrap();
        lane.watch(write, 4).unwrap();
        // The writing end is never readable: an error or silence, but no endless stream of wakes.
        let mut events = Vec::new();
        for _ in 0..3 {
            lane.wait(Some(Duration::from_millis(5)), &mut events).unwrap();
        }
        assert!(events.len() <= 1, "{name}: {events:?}");
    });
}

#[test]
fn dropping_a_lane_waits_for_its_operations() {
    on_all(|name, store, _| {
        let memory = guest();
        for round in 0..20u8 {
            let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
            let (fd, _kick) = eventfd(rustix::event::EventfdFlags::empty());
            lane.watch(fd, 1).unwrap();
            memory.write_slice(&[round; 64 << 10], GuestAddress(0)).unwrap();
            for n in 0..16 {
                let buffer = IoBuffer::guest(memory.clone(), &[(GuestAddress(0), 64 << 10)]).unwrap();
                lane.write(n, buffer, n * (64 << 10));
            }
            // Submitted, results not fetched.
            let mut events = Vec::new();
            lane.wait(Some(Duration::ZERO), &mut events).unwrap();
            drop(events);
            drop(lane);
            assert_eq!(Arc::strong_count(&memory), 1, "{name}: a buffer is still held");
            let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
            for n in 0..16 {
                assert!(
                    lane.read_now(n * (64 << 10), 64 << 10).unwrap().iter().all(|&b| b == round),
                    "{name}"
                );
            }
        }
    });
}
