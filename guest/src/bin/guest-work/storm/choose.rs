//! What is done next: right things that bring zones on, and wrong ones of every kind. What the model can't foretell is left out.

use std::fmt;

use fastrand::Rng;

use super::ioctl::Manage;
use super::linux::Linux;
use super::zones::{Condition, Zone};

/// The longest write: it has to be one request however its memory lies (126 segments, and a page for each).
const WRITE_BYTES_MAX: u64 = 256 << 10;

/// How many zones get most of the attention, and for how long.
const FAVOURITES: usize = 7;
const FAVOUR: usize = 300;

/// Writes to one zone: each one's sector and its bytes.
pub(crate) type List = Vec<(u64, Vec<u8>)>;

/// One operation; bytes and sectors of the disk.
#[derive(Debug)]
pub(crate) enum Op {
    Write {
        offset: u64,
        bytes: Vec<u8>,
        synced: bool,
    },
    Read {
        offset: u64,
        len: usize,
    },
    Manage {
        what: Manage,
        sector: u64,
        sectors: u64,
    },
    Report {
        sector: u64,
        count: usize,
    },
    Sync,
    Discard {
        offset: u64,
        len: u64,
    },
    /// By io_uring: writes to sequential zones by their number, and reads elsewhere.
    Together {
        writes: Vec<(usize, List)>,
        reads: Vec<(u64, usize)>,
    },
}

/// Chooses for one thread.
#[derive(Debug)]
pub(crate) struct Chooser {
    /// The kernel puts requests in another order and joins them: what depends on it is left out.
    merging: bool,
    /// Others work on other zones: nothing may depend on a limit.
    crowded: bool,
    favourites: Vec<usize>,
    favour: usize,
}

impl Chooser {
    pub(crate) fn new(merging: bool, linux: &Linux, random: &mut Rng) -> Chooser {
        let mut chooser = Chooser { merging, crowded: false, favourites: Vec::new(), favour: 0 };
        chooser.favour_others(linux, random);
        chooser
    }

    /// For a thread among others.
    pub(crate) fn crowded(linux: &Linux, random: &mut Rng) -> Chooser {
        Chooser { crowded: true, ..Chooser::new(true, linux, random) }
    }

    pub(crate) fn next(&mut self, random: &mut Rng, linux: &Linux) -> Op {
        self.favour -= 1;
        if self.favour == 0 {
            self.favour_others(linux, random);
        }
        loop {
            let op = self.any(random, linux);
            if self.can_be_foretold(&op, linux) {
                return op;
            }
        }
    }

    fn favour_others(&mut self, linux: &Linux, random: &mut Rng) {
        self.favour = FAVOUR;
        self.favourites = (0..FAVOURITES).map(|_| random.usize(..linux.disk.zones.len())).collect();
    }

    fn any(&self, random: &mut Rng, linux: &Linux) -> Op {
        let zones = &linux.disk.zones;
        let at = match random.u32(..10) {
            0..8 => self.favourites[random.usize(..self.favourites.len())],
            _ => random.usize(..zones.len()),
        };
        let zone = &zones[at];
        let sectors = linux.sectors;
        match random.u32(..100) {
            // What is full is not written much.
            0..40 if zone.condition == Condition::Full && random.u32(..4) > 0 => {
                Op::Manage { what: Manage::Reset, sector: zone.start, sectors: zone.len }
            }
            0..40 => self.write(random, linux, zone),
            40..52 => {
                let offset = zone.start * 512 + self.place(random, linux, zone.len * 512);
                Op::Read { offset, len: usize::try_from(some_len(random, linux.block)).unwrap_or(0) }
            }
            52..54 if !self.crowded => read_at_the_edge(random, linux),
            54..70 => {
                // Most of the time something is to be opened: the limits are met often.
                let what = if random.u32(..3) == 0 { Manage::Open } else { Manage::ALL[random.usize(..4)] };
                Op::Manage { what, sector: zone.start, sectors: zone.len }
            }
            70..74 if !self.crowded => {
                let what = Manage::ALL[random.usize(..4)];
                let first = random.usize(..zones.len());
                let last = (first + random.usize(1..6)).min(zones.len() - 1);
                let end = zones[last].start + zones[last].len;
                Op::Manage { what, sector: zones[first].start, sectors: end - zones[first].start }
            }
            74 if !self.crowded && random.u32(..10) == 0 => {
                Op::Manage { what: Manage::Reset, sector: 0, sectors }
            }
            75 => {
                let what = Manage::ALL[random.usize(..4)];
                let (sector, len) = [
                    (zone.start + 8, zone.len),
                    (zone.start, zone.len - 8),
                    (zone.start, 0),
                    (sectors, zone.len),
                    (zone.start, (u64::MAX - zone.start).wrapping_add(1)),
                    (zone.start, sectors.next_multiple_of(linux.zone_len) + linux.zone_len),
                ][random.usize(..6)];
                // The last zone's end is the disk's: that would be right.
                if zone.start.wrapping_add(len) == sectors {
                    Op::Sync
                } else {
                    Op::Manage { what, sector, sectors: len }
                }
            }
            76..86 => {
                // Those first whose plug waits for it.
                let stale = (0..zones.len()).find(|&zone| linux.is_stale(zone));
                let first = stale.filter(|_| random.u32(..4) > 0).unwrap_or(at);
                let sector = zones[first].start + random.u64(..zones[first].len);
                Op::Report { sector, count: random.usize(1..=4).min(zones.len() - first) }
            }
            86 if !self.crowded => {
                [Op::Report { sector: 0, count: 0 }, Op::Report { sector: sectors, count: 3 }]
                    .into_iter()
                    .nth(random.usize(..2))
                    .unwrap_or(Op::Sync)
            }
            87 => Op::Sync,
            88 => Op::Discard { offset: zone.start * 512, len: zone.len * 512 },
            _ => self.together(random, linux),
        }
    }

    fn write(&self, random: &mut Rng, linux: &Linux, zone: &Zone) -> Op {
        let Linux { block, .. } = *linux;
        let step = block / 512;
        let len = some_len(random, block) / 512;
        let (sector, sectors) = if zone.is_conventional() {
            (zone.start + self.place(random, linux, zone.len * 512) / 512, len)
        } else {
            let wp = zone.start + zone.wp;
            let capacity = zone.start + zone.capacity;
            let end = zone.start + zone.len;
            match random.u32(..100) {
                0..62 => (wp, len.min(capacity - wp)),
                62..70 => (wp, capacity - wp),
                70..74 => (wp, capacity - wp + step * random.u64(1..4)),
                74..80 => (zone.start + random.u64(..zone.len / step) * step, len),
                80..84 => (wp.saturating_sub(step).max(zone.start), len),
                84..87 => (wp + step, len),
                87..91 => (capacity + random.u64(..=(end - capacity) / step) * step, step),
                _ => (end - random.u64(1..9) * step, len.min(8 * step)),
            }
        };
        let (mut offset, mut bytes) = (sector * 512, (sectors * 512).min(WRITE_BYTES_MAX));
        match random.u32(..60) {
            0 => offset += 512 % block,
            1 => offset += 100,
            2 => bytes = bytes.saturating_sub(24),
            3 if !self.crowded => offset = linux.sectors * 512 - block,
            4 if !self.crowded => offset = linux.sectors * 512 + random.u64(..3) * block,
            _ => {}
        }
        let mut bytes = vec![0; usize::try_from(bytes).unwrap_or(0)];
        random.fill(&mut bytes);
        Op::Write { offset, bytes, synced: random.u32(..12) == 0 }
    }

    /// Several at once: writes to one zone or some, and reads of zones that are not written.
    fn together(&self, random: &mut Rng, linux: &Linux) -> Op {
        let zones = &linux.disk.zones;
        let mut writes: Vec<(usize, List)> = Vec::new();
        let mut count = 0;
        for _ in 0..random.usize(1..5) {
            let at = self.favourites[random.usize(..self.favourites.len())];
            if zones[at].is_conventional() || writes.iter().any(|(other, _)| *other == at) {
                continue;
            }
            let one = self.list(random, linux, at);
            count += one.len();
            if !one.is_empty() && count <= 48 {
                writes.push((at, one));
            }
        }
        let mut reads = Vec::new();
        for _ in 0..random.usize(..8) {
            let at = random.usize(..zones.len());
            if writes.iter().all(|(other, _)| *other != at) {
                let zone = &zones[at];
                let at = self.place(random, linux, zone.len * 512);
                let len = some_len(random, linux.block).min(zone.len * 512 - at);
                reads.push((zone.start * 512 + at, usize::try_from(len).unwrap_or(0)));
            }
        }
        if writes.is_empty() && reads.is_empty() { Op::Sync } else { Op::Together { writes, reads } }
    }

    /// Writes to one zone, one behind the other; with something wrong among them where that can be foretold.
    fn list(&self, random: &mut Rng, linux: &Linux, at: usize) -> List {
        let zone = &linux.disk.zones[at];
        let step = linux.block / 512;
        let end = zone.start + if self.merging { zone.capacity } else { zone.len };
        let mut sector = zone.start + zone.wp;
        let mut writes = Vec::new();
        if self.merging && (!linux.takes_the_next(at) || zone.condition == Condition::Full) {
            return writes;
        }
        let wrong = if self.merging { 0 } else { random.u64(..3) };
        for _ in 0..random.usize(1..=16) {
            if wrong == 1 && random.u32(..8) == 0 {
                let inside = random.u64(..zone.len / step) * step;
                sector = zone.start + inside;
            }
            let len = (random.u64(1..=8) * step).min(end.saturating_sub(sector));
            if len == 0 {
                break;
            }
            let mut bytes = vec![0; usize::try_from(len * 512).unwrap_or(0)];
            random.fill(&mut bytes);
            writes.push((sector, bytes));
            sector += len;
            // Whether what comes behind finds the plug or makes another one is a matter of time.
            if sector >= zone.start + zone.capacity {
                break;
            }
        }
        writes
    }

    /// A block of a zone, in bytes from its start.
    #[expect(clippy::unused_self, reason = "reads as what is chosen")]
    fn place(&self, random: &mut Rng, linux: &Linux, zone_bytes: u64) -> u64 {
        random.u64(..zone_bytes / linux.block) * linux.block
    }

    /// Whether the outcome does not hang on an order that nobody promises: that of pieces and of requests given together, and
    /// whether one is done before the next is looked at.
    fn can_be_foretold(&self, op: &Op, linux: &Linux) -> bool {
        let disk = &linux.disk;
        let need = |zones: &mut dyn Iterator<Item = usize>| {
            let (mut opened, mut new) = (0, 0);
            for at in zones {
                let condition = disk.zones[at].condition;
                opened += usize::from(matches!(condition, Condition::Empty | Condition::Closed));
                new += usize::from(condition == Condition::Empty);
            }
            (opened, new)
        };
        match op {
            Op::Write { offset, bytes, .. } => {
                let first = disk.zone_of(offset / 512);
                let last = disk.zone_of((offset + bytes.len().max(1) as u64 - 1) / 512);
                let (first, last) = match (first, last) {
                    (Some(first), Some(last)) => (first, last),
                    // Into zones of others.
                    _ if self.crowded => return false,
                    (Some(first), None) => (first, disk.zones.len() - 1),
                    (None, _) => return true,
                };
                let (opened, new) = need(&mut (first..=last));
                match first == last {
                    true if !self.crowded => true,
                    _ => opened <= 1 && last - first <= 1 && disk.has_room(opened, new),
                }
            }
            Op::Manage { what: Manage::Open | Manage::Finish, sector, sectors } => {
                let end = sector.saturating_add(*sectors);
                let zones = || {
                    (0..disk.zones.len()).filter(move |&at| (*sector..end).contains(&disk.zones[at].start))
                };
                let (opened, new) = need(&mut zones());
                let several = zones().count() > 1;
                match op {
                    _ if self.crowded => disk.has_room(opened, new),
                    // None of them keeps what it needs for the moment, but those that were open may keep theirs.
                    Op::Manage { what: Manage::Finish, .. } => {
                        !several || disk.has_room(opened.min(1), new.min(1))
                    }
                    _ => !several || !self.merging || disk.has_room(opened, new),
                }
            }
            Op::Read { offset, len } => {
                !self.crowded || disk.zone_of((offset + (*len).max(1) as u64 - 1) / 512).is_some()
            }
            Op::Together { writes, .. } => {
                let (opened, new) = need(&mut writes.iter().map(|(at, _)| *at));
                // The errors of one zone's list are known, whatever happens.
                (writes.len() <= 1 && !self.merging) || (opened <= 1 && disk.has_room(opened, new))
            }
            _ => true,
        }
    }
}

fn read_at_the_edge(random: &mut Rng, linux: &Linux) -> Op {
    let end = linux.sectors * 512;
    let len = 3 * linux.block;
    let (offset, len) = [
        (end - linux.block, len),
        (end, len),
        (end + linux.block, len),
        (linux.block, 0),
        (100, len),
        (linux.block, len - 24),
    ][random.usize(..6)];
    Op::Read { offset, len: usize::try_from(len).unwrap_or(0) }
}

/// Whole blocks; often few.
fn some_len(random: &mut Rng, block: u64) -> u64 {
    let blocks = [2, 8, WRITE_BYTES_MAX / block / 4, WRITE_BYTES_MAX / block][random.usize(..4)].max(1);
    (random.u64(1..=blocks) * block).min(64 << 10).max(block)
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Write { offset, bytes, synced } => {
                let synced = if *synced { ", synced" } else { "" };
                write!(f, "write of {} bytes at {offset} (sector {}){synced}", bytes.len(), offset / 512)
            }
            Op::Together { writes, reads } => {
                write!(f, "together:")?;
                for (zone, writes) in writes {
                    let places: Vec<_> =
                        writes.iter().map(|(sector, bytes)| (sector, bytes.len() / 512)).collect();
                    write!(f, " writes to zone {zone} (sector, sectors) {places:?};")?;
                }
                write!(f, " reads (byte, bytes) {reads:?}")
            }
            other => write!(f, "{other:?}"),
        }
    }
}
