//! One chain after the other, good and bad ones: every byte of guest memory, every used element and the disk are foretold.

use virtio_zbd_spec::RequestType;
use virtio_zbd_testkit::Request;

use super::memory::ADDRESSES;
use super::walk::overlap;
use super::world::World;
use crate::input::Input;

/// No input takes longer than this many steps.
const STEPS: usize = 64;

/// Where buffers begin: behind the rings.
const DATA: u64 = 0x1_1100;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A descriptor as the driver writes it.
#[derive(Clone, Copy, Debug)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.addr.to_le_bytes().to_vec();
        bytes.extend(self.len.to_le_bytes());
        bytes.extend([self.flags, self.next].map(u16::to_le_bytes).concat());
        bytes
    }
}

pub(super) fn run(world: &mut World, input: &mut Input<'_>) {
    let base = if input.one_in(3) { input.u16() } else { 0 };
    world.next_avail = base;
    // Nothing of the rings is looked at but what is written there.
    world.memory.put(world.rings.desc, &[0; 0x1100]);
    world.memory.put_word(world.rings.avail + 2, base);
    world.memory.put_word(world.rings.used + 2, base);
    let mut driver = Driver { world, used_idx: base, alive: true };
    driver.wake_me();
    driver.world.start().unwrap();
    for _ in 0..STEPS {
        if input.is_empty() || !driver.alive {
            break;
        }
        match input.u8() % 32 {
            0..20 => driver.request(input, 0),
            20..24 => {
                let damage = 1 + input.u8() % 3;
                driver.request(input, damage);
            }
            24 => driver.scribble(input),
            25 => {
                let head = input.u16();
                driver.give(head);
            }
            26 => driver.restart(input),
            27 => driver.world.compare_disks(),
            28 => driver.read_config(input),
            29 => driver.write_config(input),
            30 => driver.jump(input),
            _ => driver.take_up_again(),
        }
    }
    driver.end();
}

struct Driver<'a> {
    world: &'a mut World,
    /// What the used ring's index must be.
    used_idx: u16,
    /// The rings are still what both sides agree on.
    alive: bool,
}

impl Driver<'_> {
    /// Asks for a call after the next used element.
    fn wake_me(&mut self) {
        let rings = self.world.rings;
        self.world.memory.put_word(rings.avail, 0);
        if rings.event_idx {
            self.world.memory.put_word(rings.avail + 4 + 2 * u64::from(rings.size), self.used_idx);
        }
    }

    /// A request that means something more often than not, with so many things wrong with its descriptors.
    fn request(&mut self, input: &mut Input<'_>, damage: u8) {
        let request = self.wish(input);
        let how = input.u8();
        let cuts = |input: &mut Input<'_>, len: usize, seam: usize, many: u8| {
            let mut cuts = vec![0, seam, len];
            cuts.extend((0..many).map(|_| usize::from(input.u8()) * len / 256));
            cuts.sort_unstable();
            cuts.dedup();
            cuts
        };
        let mut out_bytes = request.header.clone();
        out_bytes.extend_from_slice(&request.out_data);
        let in_len = request.in_data_len + request.in_header_len;
        let out_cuts = cuts(input, out_bytes.len(), request.header.len().min(out_bytes.len()), how & 3);
        let in_cuts = cuts(input, in_len, request.in_data_len, how >> 2 & 3);
        let mut next_free = DATA;
        let mut chain = Vec::new();
        for (cuts, writable) in [(&out_cuts, false), (&in_cuts, true)] {
            for pair in cuts.windows(2) {
                let addr = self.place(input, pair[1] - pair[0], how & 0x80 != 0, &mut next_free);
                let flags = if writable { WRITE } else { 0 };
                chain.push(Desc { addr, len: u32::try_from(pair[1] - pair[0]).unwrap(), flags, next: 0 });
                if !writable {
                    self.put(addr, &out_bytes[pair[0]..pair[1]]);
                }
            }
        }
        // How many of them stand in the queue's table; the others in an indirect one.
        let direct = match how >> 4 & 7 {
            0..4 => chain.len(),
            4 | 5 => 0,
            _ => usize::from(input.u8()) % (chain.len() + 1),
        };
        let size = self.world.rings.size;
        let (start, step) =
            if damage == 0 { (0, 1) } else { (input.u16() % size, 1 + 2 * (input.u16() % 4)) };
        let slot = |i: usize| (start + step * u16::try_from(i).unwrap()) % size;
        let mut inner = chain.split_off(direct);
        if !inner.is_empty() {
            for (i, desc) in inner.iter_mut().enumerate() {
                desc.next = u16::try_from(i).unwrap() + 1;
                desc.flags |= NEXT;
            }
            inner.last_mut().unwrap().flags &= !NEXT;
            let len = inner.len() * 16;
            let addr = self.place(input, len, false, &mut next_free);
            chain.push(Desc { addr, len: u32::try_from(len).unwrap(), flags: INDIRECT, next: 0 });
        }
        for (i, desc) in chain.iter_mut().enumerate() {
            desc.next = slot(i + 1);
            desc.flags |= NEXT;
        }
        chain.last_mut().unwrap().flags &= !NEXT;
        for _ in 0..damage {
            let table = if inner.is_empty() || input.u8() & 1 == 0 { &mut chain } else { &mut inner };
            let which = usize::from(input.u8()) % table.len();
            self.damage(input, &mut table[which]);
        }
        if !inner.is_empty() {
            let table = chain.last().unwrap().addr;
            let bytes: Vec<u8> = inner.iter().flat_map(Desc::bytes).collect();
            self.put(table, &bytes);
        }
        for (i, desc) in chain.iter().enumerate() {
            let at = self.world.rings.desc + 16 * u64::from(slot(i));
            self.world.memory.put(at, &desc.bytes());
        }
        self.give(slot(0));
    }

    /// The driver writes, but not over the rings, which the device may look at.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let span = (at, bytes.len() as u64);
        if !self.world.rings.areas().into_iter().any(|area| overlap(area, span)) {
            self.world.memory.put(at, bytes);
        }
    }

    /// A place for `len` bytes: behind the others, or wherever the bytes say.
    fn place(&self, input: &mut Input<'_>, len: usize, anywhere: bool, next_free: &mut u64) -> u64 {
        let choice = input.u8();
        if anywhere && choice >= 0xc0 {
            return address(input);
        }
        let align = 1 << (choice % 10);
        let mut at = next_free.next_multiple_of(align);
        if !self.world.memory.holds(at, len as u64) {
            at = if self.world.memory.holds(0x4_0000, len as u64) && at < 0x4_0000 { 0x4_0000 } else { DATA };
        }
        *next_free = at + len as u64;
        at
    }

    fn damage(&self, input: &mut Input<'_>, desc: &mut Desc) {
        match input.u8() % 8 {
            0 => desc.addr = address(input),
            1 => desc.addr = input.u64(),
            2 => desc.len = input.u32(),
            3 => desc.len = u32::from(input.u16()),
            4 => desc.len = 0,
            5 => desc.flags ^= 1 << (input.u8() % 3),
            6 => desc.flags = input.u16(),
            _ => desc.next = input.u16(),
        }
    }

    fn wish(&mut self, input: &mut Input<'_>) -> Request {
        let naive = &self.world.oracle.naive;
        let zone = &naive.zones[usize::from(input.u8()) % naive.zones.len()];
        let sector = match input.u8() % 12 {
            0 => zone.start,
            1 => zone.start + u64::from(input.u8()) % zone.len,
            2 => zone.wp() + u64::from(input.u8() % 16),
            3 => zone.wp().saturating_sub(u64::from(input.u8() % 16)),
            4 => zone.start + zone.capacity,
            5 => naive.sectors().saturating_sub(u64::from(input.u8() % 4)),
            6 => u64::from(input.u16()),
            7 => input.u64(),
            _ if zone.wp() == zone.start + zone.len => zone.start,
            _ => zone.wp(),
        };
        let rest = (zone.start + zone.capacity).saturating_sub(sector).min(200);
        let sectors = match input.u8() % 8 {
            0 => 0,
            1 => rest,
            2 => u64::from(input.u8()),
            3 => rest + 1,
            other => u64::from(other - 3) * 8,
        };
        let odd = if input.one_in(16) { usize::from(input.u16() % 512) } else { 0 };
        let len = usize::try_from(sectors * 512).unwrap() + odd;
        let start = if input.one_in(8) { sector } else { zone.start };
        let seed = input.u8();
        let data = || -> Vec<u8> { (0..len).map(|i| pattern(seed, i)).collect() };
        use RequestType as T;
        let mut request = match input.u8() % 32 {
            0..6 => Request::write(sector, &data()),
            6..10 => Request::zone_append(start, &data()),
            10..14 => Request::read(sector, len),
            14 => Request::flush(),
            15 => Request::raw(T::GetId.into(), 0, &[], usize::from(input.u8())),
            16 => Request::zone_report(sector, usize::from(input.u16() % 1200)),
            17 => Request::zone_report(start, 64 + 64 * usize::from(input.u8() % 10)),
            18 | 19 => Request::zone_open(start),
            20 | 21 => Request::zone_close(start),
            22 | 23 => Request::zone_finish(start),
            24 | 25 => Request::zone_reset(start),
            26 => Request::zone_reset_all(),
            27 | 28 => {
                let kind = if input.u8() & 1 == 0 { T::Discard } else { T::WriteZeroes };
                Request::raw(kind.into(), sector, &self.ranges(input), 0)
            }
            29 => Request::raw(input.u8().into(), sector, &data(), 0),
            30 => Request::raw(input.u8().into(), start, &data(), usize::from(input.u16() % 2048)),
            _ => Request::raw(input.u32(), sector, &[], usize::from(input.u8())),
        };
        match input.u8() {
            0xf0..0xf4 => request.in_header_len = usize::from(input.u8() % 12),
            0xf4..0xf8 => request.in_data_len = usize::from(input.u16() % 2048),
            0xf8..0xfb => request.header.truncate(usize::from(input.u8() % 16)),
            0xfb => request.out_data.push(0),
            _ => {}
        }
        request
    }

    fn ranges(&self, input: &mut Input<'_>) -> Vec<u8> {
        let sectors = self.world.oracle.naive.sectors();
        let mut bytes = Vec::new();
        for _ in 0..input.u8() % 36 {
            let how = input.u8();
            let sector = if how == 0xff { input.u64() } else { u64::from(input.u8()) % (sectors + 2) };
            let count = if how == 0xfe { input.u32() } else { u32::from(how) % 40 };
            let flags = if how == 0xfd { input.u32() } else { 0 };
            bytes.extend(sector.to_le_bytes());
            bytes.extend([count, flags].map(u32::to_le_bytes).concat());
        }
        bytes
    }

    /// Gives the device a head, and compares what it makes of it.
    fn give(&mut self, head: u16) {
        self.wake_me();
        let world = &mut *self.world;
        let rings = world.rings;
        let slot = u64::from(world.next_avail % rings.size);
        let used_slot = u64::from(self.used_idx % rings.size);
        world.next_avail = world.next_avail.wrapping_add(1);
        self.used_idx = self.used_idx.wrapping_add(1);
        world.memory.put_word(rings.avail + 4 + 2 * slot, head);
        // A chain may have the device read its own ring, as it will be then.
        let next_avail = world.next_avail;
        world.memory.foretell(rings.avail + 2, &next_avail.to_le_bytes());
        let foretold = world.oracle.take(&world.memory, &rings, head);
        world.memory.put_word(rings.avail + 2, next_avail);
        world.kick();
        let Some(foretold) = foretold else {
            // The driver has the device write over its rings, or read what it says in them at any time: what comes of it is the
            // driver's affair.
            self.alive = false;
            return;
        };
        world.wait_for_call();
        for (at, bytes) in &foretold.writes {
            world.memory.foretell(*at, bytes);
        }
        if foretold.any_order {
            for (at, bytes) in &foretold.writes {
                world.memory.adopt(*at, bytes.len() as u64);
            }
            // The status comes last.
            let (at, status) = foretold.writes.last().unwrap();
            world.memory.foretell(*at, status);
        }
        let element = [u32::from(head), foretold.used_len].map(u32::to_le_bytes).concat();
        world.memory.foretell(rings.used + 4 + 8 * used_slot, &element);
        world.memory.foretell(rings.used + 2, &self.used_idx.to_le_bytes());
        world.memory.check(&rings.wishes());
        assert!(!world.was_called(), "one call for one used element");
        assert_eq!(world.broken(), 0, "the queue is given up");
    }

    /// Writes anything anywhere, but not into the rings.
    fn scribble(&mut self, input: &mut Input<'_>) {
        let at = address(input);
        let len = usize::from(input.u8());
        let bytes = input.bytes(len);
        self.put(at, bytes);
    }

    /// The program ends, in order or killed, and comes back.
    fn restart(&mut self, input: &mut Input<'_>) {
        assert_eq!(self.world.stop(), Some(self.world.next_avail), "where the queue goes on");
        self.world.restart(input.u8() & 1 == 1);
        self.world.compare_disks();
        self.start_again();
    }

    fn take_up_again(&mut self) {
        assert_eq!(self.world.stop(), Some(self.world.next_avail), "where the queue goes on");
        self.start_again();
    }

    fn start_again(&mut self) {
        let rings = self.world.rings;
        self.world.memory.check(&rings.wishes());
        self.wake_me();
        self.world.start().unwrap();
    }

    /// An available index that can't be: the queue is given up, once, and can be taken up again.
    fn jump(&mut self, input: &mut Input<'_>) {
        let rings = self.world.rings;
        let ahead = input.u16();
        if ahead <= rings.size {
            return;
        }
        let before = self.world.next_avail;
        self.world.memory.put_word(rings.avail + 2, before.wrapping_add(ahead));
        self.world.kick();
        let mut turns = 0u32;
        while self.world.broken() == 0 {
            turns += 1;
            assert!(turns < 1_000_000, "the queue is not given up");
            if turns > 100 {
                std::thread::sleep(std::time::Duration::from_micros(20));
            } else {
                std::thread::yield_now();
            }
        }
        assert_eq!(self.world.stop(), Some(before), "nothing was taken");
        assert_eq!(self.world.broken(), 1, "how often the queue was given up");
        self.world.forget_broken();
        self.world.memory.put_word(rings.avail + 2, before);
        self.start_again();
    }

    fn read_config(&mut self, input: &mut Input<'_>) {
        let (offset, len) = (u32::from(input.u8()), usize::from(input.u8()));
        let offset = if input.one_in(16) { input.u32() } else { offset };
        let mut found = vec![FILLED; len];
        self.world.disk.read_config(&self.world.negotiated, offset, &mut found);
        assert_eq!(found, self.world.space.at(offset, len), "{len} bytes of configuration space at {offset}");
    }

    fn write_config(&mut self, input: &mut Input<'_>) {
        const WRITEBACK: u32 = 32;
        let offset = if input.u8() & 1 == 0 { WRITEBACK } else { u32::from(input.u8()) };
        let len = if input.u8() & 1 == 0 { 1 } else { usize::from(input.u8() % 100) };
        let before = self.world.space.at(offset, len);
        let mut data = before.clone();
        for _ in 0..input.u8() % 3 {
            let value = input.u8() % 4;
            let at = usize::from(input.u8());
            if let Some(byte) = data.get_mut(at % len.max(1)) {
                *byte = value;
            }
        }
        let allowed = self.world.space.write(offset, &data);
        let taken = self.world.disk.write_config(&self.world.negotiated, offset, &data);
        assert_eq!(
            taken.is_ok(),
            allowed,
            "{data:x?} at {offset} of the configuration space, before {before:x?}"
        );
    }

    fn end(self) {
        let world = self.world;
        let next_avail = world.next_avail;
        let stopped = world.stop();
        if self.alive {
            assert_eq!(stopped, Some(next_avail), "where the queue goes on");
            world.compare_disks();
        } else {
            world.memory.adopt_all();
        }
        let rings = world.rings;
        world.memory.check(&rings.wishes());
    }
}

/// What a buffer is filled with that must be overwritten.
const FILLED: u8 = 0x5a;

/// Data that tells its place and its write.
fn pattern(seed: u8, i: usize) -> u8 {
    let [a, b, ..] = (i / 7).to_le_bytes();
    seed.wrapping_mul(31).wrapping_add(a).wrapping_add(b.wrapping_mul(3)) | 1
}

/// Somewhere in guest memory, or just outside.
fn address(input: &mut Input<'_>) -> u64 {
    let at = u64::from(input.u16()) << 2 | u64::from(input.u8() & 3);
    ADDRESSES.start + at % (ADDRESSES.end - ADDRESSES.start)
}
