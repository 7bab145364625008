//! Front-ends that send what nobody should: the server survives each, the next connection works, nothing
//! leaks.
//!
//! What the server hands on is checked by the toy device: only offered features, queues that exist and lie in
//! memory, nothing started twice, nothing running at a reset or at the end. One test, since it counts the
//! process's file descriptors and threads.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};

use self::common::guest::{Driver, Guest, MEMORY_BYTES};
use self::common::peer::*;
use self::common::toy::{Toy, VERSION_1, ZONED};
use self::common::{Harness, eventually, seed};

const ROUNDS: usize = 1500;

/// A message to send: its bytes, and which of the file descriptors go along.
#[derive(Clone)]
struct Draft {
    bytes: Vec<u8>,
    fds: Vec<usize>,
}

#[test]
fn no_front_end_brings_the_server_down() {
    let mut rng = Rng::with_seed(seed());
    let harness = Harness::start(Toy { wanted: ZONED, inflight: true, ..Toy::new() });
    work_well(&harness);
    let before = {
        let _peer = Peer::negotiated(harness.path(), ALL_OFFERED);
        resources()
    };
    let mut requests = 0;
    for round in 0..ROUNDS {
        requests += misbehave(&harness, &mut rng);
        if round % 25 == 0 {
            work_well(&harness);
        }
    }
    println!("{requests} messages");
    work_well(&harness);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    // A thread that has been joined may take a moment to go from the list.
    eventually("all file descriptors, mappings and threads given back", || resources() == before);
    drop(peer);
    harness.stop();
}

/// File descriptors, mappings of guest memory, and threads of this process.
fn resources() -> (usize, usize, usize) {
    let count = |dir: &str| fs::read_dir(dir).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps.lines().filter(|line| line.contains("memfd:")).count();
    (count("/proc/self/fd"), mappings, count("/proc/self/task"))
}

/// A front-end as it should be.
fn work_well(harness: &Harness) {
    let guest = Guest::new(0, 0x7f00_0000_0000, 0);
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    assert_eq!(peer.ask_u64(SET_FEATURES, VERSION_1 | ZONED | PROTOCOL_FEATURES), 0);
    assert_eq!(peer.ask(SET_MEM_TABLE, &guest.mem_table(), &[guest.fd()]), 0);
    let mut driver = Driver::new(&guest, 0);
    let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    assert_eq!(peer.ask(SET_VRING_CALL, &longs(&[0]), &[call.as_fd()]), 0);
    assert_eq!(peer.ask_vring(SET_VRING_NUM, 0, 8), 0);
    assert_eq!(peer.ask(SET_VRING_ADDR, &driver.addr(), &[]), 0);
    assert_eq!(peer.ask(SET_VRING_KICK, &longs(&[0]), &[driver.kick.as_fd()]), 0);
    assert_eq!(peer.ask_vring(SET_VRING_ENABLE, 0, 1), 0);
    driver.put(b"well");
    driver.kick();
    driver.wait(call.as_fd(), b"well");
    assert_eq!(peer.get_vring_base(0), 1);
}

/// A conversation that has gone wrong, in one of many ways. Gives back how many messages were sent.
fn misbehave(harness: &Harness, rng: &mut Rng) -> usize {
    let guest = Guest::new(0x1000 * rng.u64(0..4), 0x7f00_0000_0000, 0x1000 * rng.u64(0..4));
    let files = files(&guest);
    let mut drafts = conversation(&guest);
    for _ in 0..rng.usize(1..8) {
        spoil(&mut drafts, rng, files.len());
    }
    let peer = harness.connect();
    let mut sent = 0;
    for Draft { bytes, fds } in &drafts {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|&n| files[n].as_fd()).collect();
        if !peer.try_send(bytes, &fds) {
            break;
        }
        sent += 1;
    }
    // Some wait for the server to have read it all, some leave at once.
    if rng.bool() {
        peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
        while matches!(std::io::Read::read(&mut &peer.stream, &mut [0; 4096]), Ok(1..)) {}
    }
    sent
}

/// The guest's memory first, then what may and what may not be a kick or a call.
fn files(guest: &Guest) -> Vec<OwnedFd> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    vec![
        guest.file.try_clone().unwrap(),
        eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
        reader,
        writer,
        UnixStream::pair().unwrap().0.into(),
        File::open("/dev/null").unwrap().into(),
        File::open("/").unwrap().into(),
    ]
}

/// What a front-end with two queues says in its life.
fn conversation(guest: &Guest) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let mut say = |request: u32, payload: Vec<u8>, fds: &[usize]| {
        // About half of them want a reply.
        let flags = if request.is_multiple_of(2) { VERSION | NEED_REPLY } else { VERSION };
        drafts.push(Draft { bytes: message(request, flags, &payload), fds: fds.to_vec() });
    };
    say(SET_OWNER, vec![], &[]);
    say(GET_FEATURES, vec![], &[]);
    say(GET_PROTOCOL_FEATURES, vec![], &[]);
    say(SET_PROTOCOL_FEATURES, longs(&[ALL_OFFERED | INFLIGHT_SHMFD]), &[]);
    say(SET_BACKEND_REQ_FD, vec![], &[4]);
    say(GET_CONFIG, [words(&[0, 96, 0]), vec![0; 96]].concat(), &[]);
    say(SET_CONFIG, [words(&[32, 1, 0]), vec![1]].concat(), &[]);
    say(SET_STATUS, longs(&[3]), &[]);
    say(SET_FEATURES, longs(&[VERSION_1 | ZONED | PROTOCOL_FEATURES]), &[]);
    say(SET_STATUS, longs(&[11]), &[]);
    // In the guest's own memory, where everything changes all the time.
    say(SET_INFLIGHT_FD, inflight(0x1000, 0x4000, 2, 8), &[0]);
    say(SET_MEM_TABLE, [guest.mem_table(), vec![0; 32]].concat(), &[0]);
    for index in 0..2_u16 {
        let driver = Driver::new(guest, index);
        let wide = u32::from(index);
        say(SET_VRING_CALL, longs(&[index.into()]), &[4]);
        say(SET_VRING_ERR, longs(&[index.into()]), &[2]);
        say(SET_VRING_NUM, words(&[wide, 8]), &[]);
        say(SET_VRING_BASE, words(&[wide, 0]), &[]);
        say(SET_VRING_ADDR, driver.addr(), &[]);
        say(SET_VRING_KICK, longs(&[index.into()]), &[1]);
        say(SET_VRING_ENABLE, words(&[wide, 1]), &[]);
    }
    say(GET_INFLIGHT_FD, inflight(0, 0, 2, 8), &[]);
    say(SET_INFLIGHT_FD, inflight(0x1000, 0x8_0000, 2, 8), &[0]);
    let more = longs(&[0, 0x1_0000_0000, MEMORY_BYTES, 0x1_0000_0000, 0]);
    say(ADD_MEM_REG, more.clone(), &[0]);
    say(GET_MAX_MEM_SLOTS, vec![], &[]);
    say(SET_VRING_CALL, longs(&[1]), &[1]);
    say(REM_MEM_REG, more, &[]);
    say(GET_QUEUE_NUM, vec![], &[]);
    say(SET_VRING_ENABLE, words(&[1, 0]), &[]);
    say(GET_VRING_BASE, words(&[0, 0]), &[]);
    say(SET_STATUS, longs(&[0]), &[]);
    say(RESET_OWNER, vec![], &[]);
    say(RESET_DEVICE, vec![], &[]);
    drafts
}

/// Does one thing wrong.
fn spoil(drafts: &mut Vec<Draft>, rng: &mut Rng, file_count: usize) {
    if drafts.is_empty() {
        return;
    }
    let at = rng.usize(0..drafts.len());
    let other = rng.usize(0..drafts.len());
    match rng.u32(0..12) {
        0 => drafts.swap(at, other),
        1 => drop(drafts.remove(at)),
        2 => {
            let copy = drafts[at].clone();
            drafts.insert(other, copy);
        }
        // Anything at all.
        3 => {
            let payload: Vec<u8> = (0..rng.usize(0..200)).map(|_| rng.u8(..)).collect();
            let flags = VERSION | if rng.bool() { NEED_REPLY } else { 0 };
            let bytes = message(rng.u32(0..50), flags, &payload);
            drafts.insert(at, Draft { bytes, fds: pick_fds(rng, file_count) });
        }
        // One byte, in the header or in the payload.
        4 => {
            let bytes = &mut drafts[at].bytes;
            let byte = rng.usize(0..bytes.len());
            bytes[byte] ^= 1 << rng.u32(0..8);
        }
        // The message ends too early, or goes on for too long.
        5 => {
            let bytes = &mut drafts[at].bytes;
            bytes.truncate(rng.usize(1..bytes.len().max(2)));
        }
        6 => drafts[at].bytes.extend((0..rng.usize(1..64)).map(|_| rng.u8(..))),
        7 => drafts[at].fds = pick_fds(rng, file_count),
        // A number that is often an edge, in its place. Twice as often as other things.
        _ => {
            let bytes = &mut drafts[at].bytes;
            let words = bytes.len().saturating_sub(12) / 4;
            if words > 0 {
                let word = 12 + 4 * rng.usize(0..words);
                let value = interesting(rng).to_ne_bytes();
                let length = (bytes.len() - word).min(if rng.bool() { 4 } else { 8 });
                bytes[word..word + length].copy_from_slice(&value[..length]);
            }
        }
    }
}

fn pick_fds(rng: &mut Rng, file_count: usize) -> Vec<usize> {
    let count = *rng.choice(&[0, 1, 1, 2, 8, 32, 33, 60]).unwrap();
    (0..count).map(|_| rng.usize(0..file_count)).collect()
}

fn interesting(rng: &mut Rng) -> u64 {
    let edges = [
        0,
        1,
        4096,
        65535,
        65536,
        MEMORY_BYTES,
        1 << 31,
        u64::from(u32::MAX),
        1 << 32,
        0x7f00_0000_0000,
        0x7f00_0000_0000 + MEMORY_BYTES,
        1 << 63,
        u64::MAX,
    ];
    match rng.u32(0..4) {
        0 => rng.u64(0..300),
        1 => rng.u64(..),
        2 => rng.choice(edges).unwrap().wrapping_add(rng.u64(0..33)).wrapping_sub(16),
        _ => rng.choice(edges).unwrap(),
    }
}
