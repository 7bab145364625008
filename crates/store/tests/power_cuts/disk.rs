//! What lies on a disk, sector by sector, and what a power cut may leave of it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use virtio_zbd_zones::Geometry;

pub const SECTOR_LEN: usize = 512;
const BLOCK_SECTORS: usize = 8;
/// Zones in one zone-state page (docs/format.md).
const PAGE_ZONES: usize = 504;

/// What a sector holds, by its number in [`Contents`].
pub type Id = u32;
pub const ZEROS: Id = 0;
/// The power failed while it was written: reading it fails until it is written again.
pub const UNREADABLE: Id = Id::MAX;

/// Every content that a sector ever had, once. So a whole medium is a short list of numbers.
pub struct Contents {
    bytes: Vec<[u8; SECTOR_LEN]>,
    ids: HashMap<[u8; SECTOR_LEN], Id, BuildHasherDefault<Fold>>,
}

impl Contents {
    fn new() -> Self {
        let zeros = [0; SECTOR_LEN];
        Self { bytes: vec![zeros], ids: [(zeros, ZEROS)].into_iter().collect() }
    }

    pub fn id(&mut self, bytes: &[u8; SECTOR_LEN]) -> Id {
        if let Some(&id) = self.ids.get(bytes) {
            return id;
        }
        let id = Id::try_from(self.bytes.len()).unwrap();
        self.bytes.push(*bytes);
        self.ids.insert(*bytes, id);
        id
    }

    pub fn bytes(&self, id: Id) -> &[u8; SECTOR_LEN] {
        &self.bytes[id as usize]
    }
}

/// A quick hash; what is hashed is no secret and no attack.
#[derive(Default)]
pub struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for &byte in rest {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// Where the areas of an image are, and how its sectors are numbered here: without the gaps between the areas.
pub struct World {
    /// The largest disk.
    pub geometry: Geometry,
    grows: bool,
    /// First sector in the file, how many, first number.
    areas: [(usize, usize, usize); 3],
    pub host: Host,
    contents: Mutex<Contents>,
}

/// What the file system and the medium can do.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// A sector that is written with what it holds already stays readable if the power fails.
    pub repeats_are_safe: bool,
    /// Holes can be punched. Where not, the store writes zeros, which may end in unreadable sectors.
    pub punches: bool,
}

/// What a sector belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    Superblock,
    Pages,
    Live,
    Data,
}

impl World {
    /// A world for disks up to `geometry`. If they grow to that, the pages may be anywhere before the live area.
    pub fn new(geometry: Geometry, grows: bool, host: Host) -> Self {
        let zones = geometry.zone_count() as usize;
        let superblock_and_pages = 2 * BLOCK_SECTORS * (1 + zones.div_ceil(PAGE_ZONES));
        let live_start = (superblock_and_pages * SECTOR_LEN).next_multiple_of(64 << 10) / SECTOR_LEN;
        let superblock_and_pages = if grows { live_start } else { superblock_and_pages };
        let live = (zones * 8).next_multiple_of(64 << 10) / SECTOR_LEN;
        let data_start = ((live_start + live) * SECTOR_LEN).next_multiple_of(1 << 20) / SECTOR_LEN;
        let data = usize::try_from(geometry.capacity_sectors()).unwrap();
        let areas = [
            (0, superblock_and_pages, 0),
            (live_start, live, superblock_and_pages),
            (data_start, data, superblock_and_pages + live),
        ];
        Self { geometry, grows, areas, host, contents: Mutex::new(Contents::new()) }
    }

    pub fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }

    /// How many sectors there are outside the gaps.
    pub fn len(&self) -> usize {
        let (_, len, first) = self.areas[2];
        first + len
    }

    pub fn len_bytes(&self) -> u64 {
        let (start, len, _) = self.areas[2];
        ((start + len) * SECTOR_LEN) as u64
    }

    /// The number of a sector of the file; `None` in a gap.
    pub fn number(&self, sector: usize) -> Option<usize> {
        let area = self.areas.iter().find(|(start, len, _)| (*start..start + len).contains(&sector));
        area.map(|(start, _, first)| first + sector - start)
    }

    /// What of these sectors of the file is in one of the areas.
    pub fn parts(&self, sectors: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let parts =
            self.areas.map(|(start, len, _)| start.max(sectors.start)..(start + len).min(sectors.end));
        parts.into_iter().filter(|part| !part.is_empty())
    }

    /// The sector of the file with this number.
    pub fn sector(&self, number: usize) -> usize {
        let area = self.areas.iter().rfind(|(_, _, first)| *first <= number).unwrap();
        area.0 + number - area.2
    }

    pub fn area(&self, number: usize) -> Area {
        match number {
            0..16 => Area::Superblock,
            number if number < self.areas[1].2 => Area::Pages,
            number if number < self.areas[2].2 => Area::Live,
            _ => Area::Data,
        }
    }

    pub fn live_start(&self) -> usize {
        self.areas[1].2
    }

    pub fn data(&self) -> Range<usize> {
        self.areas[2].2..self.len()
    }

    /// How many sectors the first slots of all pages take.
    pub fn slot_sectors(&self) -> usize {
        (self.areas[0].1 - 2 * BLOCK_SECTORS) / 2
    }
}

/// All sectors of a medium at rest.
pub type Medium = Vec<Id>;

/// Tells one medium from another: a sum over its sectors, so that a change of one changes it quickly.
pub fn fingerprint(medium: &[Id]) -> u128 {
    medium.iter().enumerate().fold(0, |sum, (number, &id)| sum.wrapping_add(part(number, id)))
}

/// A sector's part of the fingerprint.
fn part(number: usize, id: Id) -> u128 {
    let mix = |word: u64| {
        let word = (word ^ word >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let word = (word ^ word >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word ^ word >> 32
    };
    let word = (number as u64 + 1) << 32 | u64::from(id);
    u128::from(mix(word)) << 64 | u128::from(mix(word ^ 0x9e37_79b9_7f4a_7c15))
}

/// How a sector came to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By a write: it may be unreadable if the power fails under it.
    Write,
    /// By a hole: the file system leaves the old or the new.
    Punch,
}

#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub number: usize,
    pub id: Id,
    pub how: How,
}

/// A disk in use.
#[derive(Clone)]
pub struct Disk {
    /// What surely is on the medium.
    pub durable: Medium,
    /// What every reader sees: the page cache.
    pub cache: Medium,
    /// What was done since the last sync that succeeded, in order.
    pub pending: Vec<Change>,
    /// What was to be synced by a sync that failed: on the medium or not, and no later sync brings it there.
    pub doubtful: Vec<Change>,
}

impl Disk {
    pub fn new(medium: Medium) -> Self {
        Self { cache: medium.clone(), durable: medium, pending: Vec::new(), doubtful: Vec::new() }
    }

    pub fn change(&mut self, number: usize, id: Id, how: How) {
        self.cache[number] = id;
        self.pending.push(Change { number, id, how });
    }

    /// Everything written so far is on the medium now, if it belongs to one of `areas`.
    pub fn sync(&mut self, world: &World, areas: impl Fn(Area) -> bool) {
        let synced: Vec<Change> =
            self.pending.extract_if(.., |change| areas(world.area(change.number))).collect();
        for change in synced {
            self.durable[change.number] = change.id;
            self.doubtful.retain(|other| other.number != change.number);
        }
    }

    /// A sync fails, and what was to be written is forgotten. Holes are in the file system's journal: it does
    /// not forget them.
    pub fn fail_sync(&mut self) {
        self.doubtful.extend(self.pending.extract_if(.., |change| change.how == How::Write));
    }
}

/// The states in which a power cut may leave a disk: every sector that was changed since the last sync has its
/// old content or one of the new ones, whatever the others have. This is the same as any subset of the changes
/// in any order, torn at any sector.
///
/// A sector that was being written may also be unreadable. A superblock copy and a slot of a page are read as
/// one block of 4 KiB, and nothing is read of the live area after a power cut; so there one sector stands for
/// all: the first that was written, the others new, or the last, the others old.
pub struct Cuts<'a> {
    durable: &'a [Id],
    /// Of the medium if nothing gets through.
    fingerprint: u128,
    units: Vec<Unit>,
}

struct Unit {
    sectors: Vec<(usize, Vec<Id>)>,
    /// A block, from the first sector that was written to the last.
    block: Option<(usize, usize)>,
}

impl Unit {
    /// A page that is written to a new place is many sectors: only the first one, which has the checksum, is there or not. Without it the
    /// others are told from a whole page as well as in part.
    fn tear_at_the_head(&mut self) {
        for (_, versions) in self.sectors.iter_mut().skip(1) {
            if versions[0] == ZEROS {
                versions.drain(..versions.len() - 1);
            }
        }
    }

    fn wholes(&self) -> u64 {
        self.sectors.iter().map(|(_, versions)| versions.len() as u64).product()
    }

    fn count(&self) -> u64 {
        self.wholes() + if self.block.is_some() { 2 } else { 0 }
    }

    /// Tells `put` each sector that this choice changes, and what it holds then.
    fn each(&self, choice: u64, mut put: impl FnMut(usize, Id)) {
        let wholes = self.wholes();
        let mut rest = choice;
        for (number, versions) in &self.sectors {
            let len = versions.len() as u64;
            let id = match (choice.checked_sub(wholes), self.block) {
                (Some(0), Some((first, _))) if first == *number => UNREADABLE,
                (Some(1..), Some((_, last))) if last == *number => UNREADABLE,
                (None, _) => versions[usize::try_from(rest % len).unwrap()],
                (Some(0), _) => versions[versions.len() - 1],
                (Some(_), _) => versions[0],
            };
            put(*number, id);
            rest /= len;
        }
    }
}

impl<'a> Cuts<'a> {
    pub fn of(disk: &'a Disk, world: &World) -> Self {
        let mut changes: Vec<Change> = disk.doubtful.iter().chain(&disk.pending).copied().collect();
        // Stable: the versions of a sector stay in their order.
        changes.sort_by_key(|change| change.number);
        let mut units: Vec<Unit> = Vec::new();
        let mut last_block = None;
        for of_sector in changes.chunk_by(|a, b| a.number == b.number) {
            let number = of_sector[0].number;
            let mut versions = vec![disk.durable[number]];
            for change in of_sector {
                if !versions.contains(&change.id) {
                    versions.push(change.id);
                }
            }
            if versions.len() == 1 && world.host.repeats_are_safe {
                continue;
            }
            let written = of_sector.iter().any(|change| change.how == How::Write);
            if world.area(number) == Area::Data {
                if written && !versions.contains(&UNREADABLE) {
                    versions.push(UNREADABLE);
                }
                units.push(Unit { sectors: vec![(number, versions)], block: None });
                continue;
            }
            let block = match world.area(number) {
                // The other worlds have shown that nothing is read of it; here it is long.
                Area::Live if world.grows => continue,
                Area::Live => usize::MAX,
                _ => world.sector(number) / BLOCK_SECTORS,
            };
            if last_block != Some(block) {
                last_block = Some(block);
                units.push(Unit { sectors: Vec::new(), block: Some((number, number)) });
            }
            let unit = units.last_mut().unwrap();
            unit.block = unit.block.map(|(first, _)| (first, number));
            if versions.len() > 1 {
                unit.sectors.push((number, versions));
            }
        }
        for unit in units.iter_mut().filter(|unit| world.grows && unit.block.is_some()) {
            unit.tear_at_the_head();
        }
        for unit in &mut units {
            // These two may become unreadable even if they are written with what they hold.
            if let Some((first, last)) = unit.block {
                for number in [first, last] {
                    if !unit.sectors.iter().any(|(other, _)| *other == number) {
                        unit.sectors.push((number, vec![disk.durable[number]]));
                    }
                }
            }
        }
        Self { durable: &disk.durable, fingerprint: fingerprint(&disk.durable), units }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.units.iter().fold(1, |count, unit| count.saturating_mul(unit.count()))
    }

    /// The `index`-th of them, as a choice for each unit.
    fn choices(&self, index: u64) -> impl Iterator<Item = (&Unit, u64)> {
        let mut rest = index;
        self.units.iter().map(move |unit| {
            let choice = rest % unit.count();
            rest /= unit.count();
            (unit, choice)
        })
    }

    /// The `index`-th of them.
    pub fn get(&self, index: u64) -> Cut<'_> {
        self.cut(self.choices(index))
    }

    /// One of them. Some cuts lose nearly everything and some nearly nothing.
    pub fn random(&self, rng: &mut fastrand::Rng) -> Cut<'_> {
        let old = [0.0, 0.1, 0.5, 0.5, 0.9, 1.0][rng.usize(..6)];
        let torn = [0.0, 0.0, 0.2, 1.0][rng.usize(..4)];
        self.cut(self.units.iter().map(|unit| {
            let choice = match () {
                () if rng.f64() < torn => rng.u64(..unit.count()),
                () if rng.f64() < old => 0,
                () => unit.wholes() - 1,
            };
            (unit, choice)
        }))
    }

    fn cut<'b>(&'b self, choices: impl Iterator<Item = (&'b Unit, u64)>) -> Cut<'b> {
        let mut cut = Cut { durable: self.durable, fingerprint: self.fingerprint, changes: Vec::new() };
        for (unit, choice) in choices {
            unit.each(choice, |number, id| {
                let old = self.durable[number];
                if old != id {
                    let sum = cut.fingerprint.wrapping_sub(part(number, old));
                    cut.fingerprint = sum.wrapping_add(part(number, id));
                    cut.changes.push((number, id));
                }
            });
        }
        cut
    }
}

/// One state in which a power cut may leave a disk.
pub struct Cut<'a> {
    durable: &'a [Id],
    /// As [`fingerprint`] has it of [`medium`](Self::medium).
    pub fingerprint: u128,
    changes: Vec<(usize, Id)>,
}

impl Cut<'_> {
    pub fn medium(&self) -> Medium {
        let mut medium = self.durable.to_vec();
        for &(number, id) in &self.changes {
            medium[number] = id;
        }
        medium
    }
}
