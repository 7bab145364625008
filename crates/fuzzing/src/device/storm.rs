//! The bytes are the memory: rings anywhere, descriptors of any kind, many heads at once.
//!
//! Where nothing that the device may write lies over what it reads, it is foretold which bytes may change, which heads come back,
//! and that the queue lives. Where the driver has the device write over its own rings, what comes of it is the driver's affair: but
//! nothing outside of guest memory is touched, the queue stops, and the disk is a good one afterwards.

use std::time::Duration;

use virtio_zbd_spec::{Features, Status, ZoneState};
use virtio_zbd_testkit::Request;

use super::memory::{ADDRESSES, Memory};
use super::walk::{self, Walked, overlap};
use super::world::{Rings, World};
use crate::input::Input;

/// How many moments are waited for at most where the answer is foretold.
const PATIENCE: u32 = 100_000;

/// And where nothing is.
const WILD_PATIENCE: u32 = 10;

pub(super) fn run(world: &mut World, input: &mut Input<'_>) {
    let good = world.rings;
    world.memory.put(good.desc, &[0; 0x1100]);
    place_rings(world, input);
    write_memory(world, input);
    let rings = world.rings;
    let expected = rings_fit(&world.memory, &rings);
    let base = world.next_avail;
    if expected {
        world.memory.put_word(rings.avail + 2, base);
        world.memory.put_word(rings.used + 2, base);
    }
    let started = world.start();
    assert_eq!(started.is_ok(), expected, "{rings:x?}: {started:?}");
    if expected {
        let mut alive = true;
        for _ in 0..8 {
            if input.is_empty() || !alive {
                break;
            }
            alive = round(world, input);
        }
        let stopped = world.stop().unwrap();
        if alive {
            assert_eq!(stopped, world.next_avail, "where the queue goes on");
        }
        world.memory.adopt_all();
    }
    world.memory.check(&[]);
    world.forget_broken();
    afterwards(world, good);
}

/// Mostly a place that can be.
fn place_rings(world: &mut World, input: &mut Input<'_>) {
    let how = input.u8();
    let rings = &mut world.rings;
    if how & 1 != 0 {
        rings.size = if how & 2 != 0 { input.u16() } else { 1 << input.below(10) };
    }
    if how & 4 != 0 {
        let at = |input: &mut Input<'_>, align: u64| {
            let at = ADDRESSES.start + 4 * u64::from(input.u16());
            if input.one_in(8) { at + u64::from(input.u8()) } else { at.next_multiple_of(align) }
        };
        rings.desc = at(input, 16);
        rings.avail = at(input, 2);
        rings.used = at(input, 4);
    }
    if how & 0x18 == 0x18 {
        rings.desc = input.u64();
    }
    world.next_avail = if how & 0x20 != 0 { input.u16() } else { 0 };
}

/// Pieces of the input become pieces of memory.
fn write_memory(world: &mut World, input: &mut Input<'_>) {
    for _ in 0..input.u8() % 8 {
        let rings = world.rings;
        let near = input.u8();
        let base = match near % 4 {
            0 => rings.desc,
            1 => rings.avail,
            2 => 0x1_1100,
            _ => ADDRESSES.start + 4 * u64::from(input.u16()),
        };
        let at = base.wrapping_add(u64::from(near >> 2) * 16);
        let len = usize::from(input.u16() % 1024);
        let bytes = input.bytes(len);
        world.memory.put(at, bytes);
    }
}

/// Size, alignment and place, each in one region, room for EVENT_IDX's words included (2.7).
fn rings_fit(memory: &Memory, rings: &Rings) -> bool {
    let size = u64::from(rings.size);
    rings.size.is_power_of_two()
        && rings.size <= 32768
        && [(rings.desc, 16, 16 * size), (rings.avail, 2, 6 + 2 * size), (rings.used, 4, 6 + 8 * size)]
            .into_iter()
            .all(|(at, align, len)| at % align == 0 && memory.holds_in_one(at, len))
}

/// Some heads at once. Returns whether both sides still agree on the rings.
fn round(world: &mut World, input: &mut Input<'_>) -> bool {
    let rings = world.rings;
    let (size, before) = (rings.size, world.next_avail);
    let ahead = if input.one_in(16) { input.u16() } else { u16::from(input.u8()) % (size.min(64) + 1) };
    // Some of them are named here; for the others stands whatever is in memory.
    for i in 0..u64::from(input.u8() % 8).min(ahead.into()) {
        let slot = (u64::from(before) + i) % u64::from(size);
        let head = input.u8();
        world.memory.put_word(rings.avail + 4 + 2 * slot, u16::from(head));
    }
    // As it wants to be called, or not.
    let flags = u16::from(input.u8() & 1);
    world.memory.put_word(rings.avail, flags);
    let jump = ahead > size;
    let after = before.wrapping_add(ahead);
    // A worker that has just started looks without being kicked.
    let used_before = world.memory.load(rings.used + 2);
    world.memory.put_word(rings.avail + 2, after);
    let heads: Vec<u16> = (0..if jump { 0 } else { ahead })
        .map(|i| {
            let slot = u64::from(before.wrapping_add(i) % size);
            let word = world.memory.get(rings.avail + 4 + 2 * slot, 2).unwrap();
            u16::from_le_bytes([word[0], word[1]])
        })
        .collect();
    let chains = chains(world, &heads);
    let tame = is_tame(&rings, &chains);
    world.kick();
    if jump {
        let gone = wait(PATIENCE, || world.broken() == 1);
        assert!(gone, "the index goes {ahead} ahead in a queue of {size}, and the queue is not given up");
        world.memory.check(&rings.wishes());
        return false;
    }
    let used_after = used_before.wrapping_add(ahead);
    let done = wait(if tame { PATIENCE } else { WILD_PATIENCE }, || {
        world.memory.load(rings.used + 2) == used_after || !tame && world.broken() > 0
    });
    if !tame {
        return false;
    }
    assert!(
        done,
        "of {ahead} chains {} are used",
        world.memory.load(rings.used + 2).wrapping_sub(used_before)
    );
    world.next_avail = after;
    let (used, len) = rings.areas()[1];
    world.memory.adopt(used, len);
    let mut back: Vec<u16> = Vec::new();
    for i in 0..ahead {
        let slot = u64::from(used_before.wrapping_add(i) % size);
        let element = world.memory.get(used + 4 + 8 * slot, 8).unwrap();
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        let head = u16::try_from(word(0)).unwrap();
        let most = chains.iter().filter(|(named, _)| *named == head).map(|(_, chain)| room(chain)).max();
        assert!(most.is_some_and(|most| u64::from(word(4)) <= most), "head {head}, {} bytes used", word(4));
        back.push(head);
    }
    let mut heads = heads;
    heads.sort_unstable();
    back.sort_unstable();
    assert_eq!(heads, back, "the heads that came back");
    for (at, len) in chains.iter().filter(|(_, chain)| chain.ended).flat_map(|(_, chain)| &chain.writable) {
        world.memory.adopt(*at, (*len).into());
    }
    world.memory.check(&rings.wishes());
    assert_eq!(world.broken(), 0, "the queue is given up");
    true
}

/// Each head with its chain, where that has an end.
fn chains(world: &World, heads: &[u16]) -> Vec<(u16, Walked)> {
    let indirect = world.oracle.features.is_some_and(|features| features.contains(Features::INDIRECT_DESC));
    let Rings { desc, size, .. } = world.rings;
    heads.iter().map(|&head| (head, walk::walk(&world.memory, desc, size, head, indirect))).collect()
}

/// How much the device may say to have written.
fn room(chain: &Walked) -> u64 {
    if chain.ended { walk::len(&chain.writable) } else { 0 }
}

/// Nothing that may be written lies over anything that is read to find out what to do.
fn is_tame(rings: &Rings, chains: &[(u16, Walked)]) -> bool {
    let wide = |piece: &walk::Piece| (piece.0, u64::from(piece.1));
    let [avail, used] = rings.areas();
    let mut written = vec![used];
    let mut read = vec![avail, (rings.desc, 16 * u64::from(rings.size))];
    for (_, chain) in chains {
        written.extend(chain.writable.iter().map(wide));
        read.extend(chain.tables.iter().map(wide));
    }
    let over_used = written[1..].iter().any(|piece| overlap(*piece, used));
    !over_used && !written.iter().any(|written| read.iter().any(|read| overlap(*written, *read)))
}

/// Waits for it: so many times a moment, since on a busy machine time alone says nothing of the other thread.
fn wait(moments: u32, done: impl Fn() -> bool) -> bool {
    for _ in 0..200 {
        if done() {
            return true;
        }
        std::thread::yield_now();
    }
    for _ in 0..moments {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    done()
}

/// The disk is a good one, whatever was done to it: a new driver finds each zone in a state that can be, and can use it.
fn afterwards(world: &mut World, good: Rings) {
    world.rings = good;
    world.next_avail = 0;
    world.memory.put(good.desc, &[0; 0x1100]);
    world.start().unwrap();
    let Some(features) = world.oracle.features else { return };
    if world.rings.size == 1 && !features.contains(Features::INDIRECT_DESC) {
        return;
    }
    let zones = world.oracle.naive.zones.clone();
    let mut driver = Plain { world, used: 0 };
    if driver.world.oracle.zoned {
        let (status, report) = driver.call(&Request::zone_report(0, 64 + 64 * zones.len()));
        assert_eq!(status, Status::Ok as u8);
        let (mut open, mut active) = (0, 0);
        for (zone, found) in zones.iter().zip(report[64..].chunks(64)) {
            let word = |at: usize| u64::from_le_bytes(found[at..at + 8].try_into().unwrap());
            let (capacity, start, wp) = (word(0), word(8), word(16));
            assert_eq!((capacity, start), (zone.capacity, zone.start));
            let state = ZoneState::try_from(found[25]).unwrap();
            let inside = start..=start + capacity;
            match state {
                ZoneState::Empty => assert_eq!(wp, start),
                ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => {
                    open += 1;
                    active += 1;
                    assert!(inside.contains(&wp));
                }
                ZoneState::Closed => {
                    active += 1;
                    assert!(inside.contains(&wp) && wp > start);
                }
                _ => assert_eq!(wp, zone.start + zone.len),
            }
            let conventional = zone.state == ZoneState::NotWp;
            assert_eq!(state == ZoneState::NotWp, conventional);
        }
        assert_eq!(driver.world.disk.open_and_active(), (open, active));
        driver.world.within_limits(open, active);
        assert_eq!(driver.call(&Request::zone_reset_all()).0, Status::Ok as u8);
        assert_eq!(driver.world.disk.open_and_active(), (0, 0));
    }
    // What was reset is gone; a zone takes data and gives it back.
    let raw = driver.world.raw_bytes();
    for zone in &zones {
        let [start, end] =
            [zone.start, zone.start + zone.len].map(|sector| usize::try_from(sector * 512).unwrap());
        let conventional = zone.state == ZoneState::NotWp;
        let zeros = vec![0; end - start];
        // Who knows no zones resets none.
        let conventional = conventional || !driver.world.oracle.zoned;
        assert!(conventional || raw[start..end] == zeros, "a reset zone has bytes");
        let block = driver.world.block_bytes();
        let data = vec![0x77; block];
        assert_eq!(driver.call(&Request::write(zone.start, &data)).0, Status::Ok as u8);
        let (status, found) = driver.call(&Request::read(zone.start, block));
        assert_eq!((status, found), (Status::Ok as u8, data));
        if !conventional {
            assert_eq!(driver.call(&Request::zone_reset(zone.start)).0, Status::Ok as u8);
        }
    }
    assert_eq!(driver.call(&Request::flush()).0, Status::Ok as u8);
    driver.world.stop();
    driver.world.memory.adopt_all();
    driver.world.memory.check(&good.wishes());
}

/// An honest driver without ambitions.
struct Plain<'a> {
    world: &'a mut World,
    used: u16,
}

impl Plain<'_> {
    fn call(&mut self, request: &Request) -> (u8, Vec<u8>) {
        const OUT: u64 = 0x1_1100;
        const IN: u64 = 0x4_0000;
        let rings = self.world.rings;
        let mut out_bytes = request.header.clone();
        out_bytes.extend_from_slice(&request.out_data);
        let in_len = request.in_data_len + request.in_header_len;
        let desc = |addr: u64, len: usize, flags: u16| {
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(u32::try_from(len).unwrap().to_le_bytes());
            bytes.extend([flags, 1].map(u16::to_le_bytes).concat());
            bytes
        };
        let table = [desc(OUT, out_bytes.len(), 1), desc(IN, in_len, 2)].concat();
        self.world.memory.put(OUT, &out_bytes);
        // A queue of one entry has an indirect table, if any.
        if rings.size == 1 {
            self.world.memory.put(0x1_8000, &table);
            self.world.memory.put(rings.desc, &desc(0x1_8000, 32, 4));
        } else {
            self.world.memory.put(rings.desc, &table);
        }
        let slot = u64::from(self.used % rings.size);
        self.world.memory.put_word(rings.avail + 4 + 2 * slot, 0);
        self.used = self.used.wrapping_add(1);
        self.world.next_avail = self.used;
        self.world.memory.put_word(rings.avail + 2, self.used);
        self.world.kick();
        let used = self.used;
        let world = &mut *self.world;
        assert!(
            wait(PATIENCE, || world.memory.load(rings.used + 2) == used),
            "an honest request is not answered"
        );
        world.memory.adopt(IN, in_len as u64);
        let mut answer = world.memory.get(IN, in_len).unwrap();
        (answer.pop().unwrap(), answer)
    }
}
