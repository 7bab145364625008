//! The medium under a store: it records what a power cut could leave at each moment, and can be made to do
//! things wrong on purpose.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_zbd_store::{LiveWords, Medium};

use crate::disk::{Area, Disk, How, Id, SECTOR_LEN, UNREADABLE, World, ZEROS};
use crate::mutation::{Mutation, Phase, SyncKind};

/// A medium that outlives the stores that are opened on it, as a file outlives a process.
pub struct PowerMedium {
    world: Arc<World>,
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
}

/// Runs before each call that changes something: another thread comes in between.
pub type Hook = Box<dyn FnMut() + Send>;

struct State {
    disk: Disk,
    live: Option<Live>,
    watch: Watch,
    moments: Moments,
    mutation: Mutation,
    phase: Phase,
    /// Since the phase began, and since the last sync.
    written: Written,
    /// What a mutation holds back.
    held: Vec<Held>,
    /// A mutation holds the live words back as well.
    words_held: bool,
    /// A sync that a mutation has left out is made up for at the end of the phase.
    sync_late: bool,
    /// How many syncs succeed before one fails.
    syncs_left: Option<u32>,
    /// How many pages can be written before the host is full for a moment.
    pages_left: Option<u32>,
}

struct Live {
    words: Arc<[AtomicU64]>,
    seen: Vec<u64>,
}

/// What is recorded.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Watch {
    /// The disk before each sync.
    pub cuts: bool,
    /// The disk after each change of a sector.
    pub kills: bool,
}

/// What was recorded.
#[derive(Default)]
pub struct Moments {
    /// Before each sync. What a power cut may leave at any moment since the sync before is among what it may
    /// leave here.
    pub cuts: Vec<Disk>,
    /// After each change.
    pub kills: Vec<Disk>,
}

#[derive(Clone, Copy, Default)]
struct Written {
    page: bool,
    superblock: bool,
    page_syncs: u32,
    superblock_syncs: u32,
}

enum Held {
    Write { at: usize, bytes: Vec<u8> },
    Sync,
}

impl PowerMedium {
    pub fn new(world: &Arc<World>, disk: Disk, mutation: Mutation) -> Arc<Self> {
        let state = State {
            disk,
            live: None,
            watch: Watch::default(),
            moments: Moments::default(),
            mutation,
            phase: Phase::Open,
            written: Written::default(),
            held: Vec::new(),
            words_held: false,
            sync_late: false,
            syncs_left: None,
            pages_left: None,
        };
        Arc::new(Self { world: Arc::clone(world), state: Mutex::new(state), hook: Mutex::new(None) })
    }

    /// What the store does next. Mutations depend on it.
    pub fn begin(&self, phase: Phase) {
        let mut state = self.state();
        state.phase = phase;
        state.words_held = state.mutation.holds(phase, Area::Live);
        state.written = Written::default();
    }

    /// The phase is over.
    pub fn end(&self) {
        let mut state = self.state();
        state.words_held = false;
        state.release(&self.world);
        if std::mem::take(&mut state.sync_late) {
            state.sync(&self.world).unwrap();
        }
    }

    pub fn watch(&self, watch: Watch) {
        self.state().watch = watch;
    }

    pub fn take_moments(&self) -> Moments {
        std::mem::take(&mut self.state().moments)
    }

    pub fn interleave(&self, hook: Option<Hook>) {
        *self.hook.lock().unwrap() = hook;
    }

    pub fn fail_sync_after(&self, syncs: Option<u32>) {
        self.state().syncs_left = syncs;
    }

    /// After so many more pages the host is full, for one write that gets half way.
    pub fn fail_page_after(&self, pages: Option<u32>) {
        self.state().pages_left = pages;
    }

    /// The disk at this moment.
    pub fn disk(&self) -> Disk {
        let mut state = self.state();
        state.fold_live(&self.world);
        state.disk.clone()
    }

    /// What the sectors of the disk hold, as a reader sees them.
    pub fn data(&self) -> Vec<Id> {
        self.state().disk.cache[self.world.data()].to_vec()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn hook(&self) {
        // Taken out while it runs: what it does comes through here, too.
        let hook = self.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook();
            self.hook.lock().unwrap().get_or_insert(hook);
        }
    }
}

impl State {
    fn write(&mut self, world: &World, at: usize, bytes: &[u8]) {
        self.fold_live(world);
        let mut contents = world.contents();
        let mut done = 0;
        while done < bytes.len() {
            let (sector, within) = ((at + done) / SECTOR_LEN, (at + done) % SECTOR_LEN);
            let part = (SECTOR_LEN - within).min(bytes.len() - done);
            let number = world.number(sector).unwrap();
            let old = self.disk.cache[number];
            let (from, whole) = (&bytes[done..done + part], part == SECTOR_LEN);
            done += part;
            let same = old != UNREADABLE && contents.bytes(old)[within..within + part] == *from;
            let live_area = world.area(number) == Area::Live;
            if same && live_area && self.disk.durable[number] == old {
                // Most of the live area is zeros upon zeros: nobody would see a difference.
                continue;
            }
            let mut content = match old {
                UNREADABLE => [0; SECTOR_LEN],
                _ if whole => [0; SECTOR_LEN],
                id => *contents.bytes(id),
            };
            content[within..within + part].copy_from_slice(from);
            let id = if same { old } else { contents.id(&content) };
            self.disk.change(number, id, How::Write);
            if let Some(live) = &mut self.live
                && live_area
            {
                live.overwrite((number - world.live_start()) * 64, &content);
            }
            self.changed(old != id);
        }
    }

    fn punch(&mut self, world: &World, range: Range<u64>) {
        self.fold_live(world);
        let bounds = [range.start, range.end].map(|at| usize::try_from(at).unwrap() / SECTOR_LEN);
        for sector in bounds[0]..bounds[1] {
            let number = world.number(sector).unwrap();
            if self.disk.cache[number] != ZEROS || self.disk.durable[number] != ZEROS {
                self.disk.change(number, ZEROS, How::Punch);
                self.changed(true);
            }
        }
    }

    fn sync(&mut self, world: &World) -> io::Result<()> {
        self.fold_live(world);
        if self.watch.cuts {
            self.moments.cuts.push(self.disk.clone());
        }
        match &mut self.syncs_left {
            Some(0) => {
                self.syncs_left = None;
                self.disk.fail_sync();
                self.changed(true);
                return Err(io::Error::from_raw_os_error(5));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        if self.mutation == Mutation::PageBeforeData && self.sync_kind() == SyncKind::Pages(1) {
            self.disk.sync(world, |area| area != Area::Data);
            if self.watch.cuts {
                self.moments.cuts.push(self.disk.clone());
            }
        }
        self.disk.sync(world, |_| true);
        self.changed(true);
        Ok(())
    }

    fn changed(&mut self, really: bool) {
        if self.watch.kills && really {
            self.moments.kills.push(self.disk.clone());
        }
    }

    /// Brings the cache up to what the live words say.
    fn fold_live(&mut self, world: &World) {
        let Some(live) = self.live.as_mut().filter(|_| !self.words_held) else { return };
        let mut contents = None;
        for (number, words) in (world.live_start()..).zip(live.words.chunks(64)) {
            let start = (number - world.live_start()) * 64;
            let mut content = [0; SECTOR_LEN];
            let mut differs = false;
            let seen = &mut live.seen[start..start + words.len()];
            for ((bytes, word), seen) in content.as_chunks_mut::<8>().0.iter_mut().zip(words).zip(seen) {
                let now = word.load(Ordering::Relaxed);
                differs |= now != *seen;
                *seen = now;
                *bytes = now.to_ne_bytes();
            }
            if differs {
                let id = contents.get_or_insert_with(|| world.contents()).id(&content);
                self.disk.change(number, id, How::Write);
            }
        }
    }

    /// What the next sync is for.
    fn sync_kind(&self) -> SyncKind {
        match self.written {
            Written { superblock: true, superblock_syncs, .. } => SyncKind::Superblock(superblock_syncs + 1),
            Written { page: true, page_syncs, .. } => SyncKind::Pages(page_syncs + 1),
            _ => SyncKind::Data,
        }
    }

    fn synced(&mut self) {
        self.written.superblock_syncs += u32::from(self.written.superblock);
        self.written.page_syncs += u32::from(self.written.page && !self.written.superblock);
        self.written.superblock = false;
        self.written.page = false;
    }

    /// Does what was held back.
    fn release(&mut self, world: &World) {
        for held in std::mem::take(&mut self.held) {
            match held {
                Held::Write { at, bytes } => self.write(world, at, &bytes),
                Held::Sync => self.sync(world).unwrap(),
            }
        }
    }
}

impl Live {
    fn overwrite(&mut self, first: usize, content: &[u8; SECTOR_LEN]) {
        for (index, bytes) in (first..).zip(content.as_chunks::<8>().0) {
            if let Some(word) = self.words.get(index) {
                let bits = u64::from_ne_bytes(*bytes);
                word.store(bits, Ordering::Relaxed);
                self.seen[index] = bits;
            }
        }
    }
}

impl Medium for PowerMedium {
    fn name(&self) -> &str {
        "simulated medium"
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.world.len_bytes())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.world.len_bytes())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        assert!(len_bytes <= self.world.len_bytes(), "this world is laid out as docs/format.md has it");
        Ok(())
    }

    fn allocate(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.fold_live(&self.world);
        let mutation = state.mutation;
        let contents = self.world.contents();
        let first = usize::try_from(offset_bytes).unwrap() / SECTOR_LEN;
        assert!(offset_bytes.is_multiple_of(SECTOR_LEN as u64));
        for (sector, part) in (first..).zip(into.chunks_mut(SECTOR_LEN)) {
            let sector = mutation.place_read(sector, &self.world);
            let id = sector
                .and_then(|sector| self.world.number(sector))
                .map_or(ZEROS, |number| state.disk.cache[number]);
            if id == UNREADABLE {
                return Err(io::Error::from_raw_os_error(5));
            }
            part.copy_from_slice(&contents.bytes(id)[..part.len()]);
        }
        if mutation == Mutation::NoChecksum {
            for block in into.chunks_exact_mut(4096).filter(|block| block.starts_with(b"VZBD")) {
                let (head, tail) = block.split_at(16);
                let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), &[0; 4]);
                let crc = crc32c::crc32c_append(crc, tail);
                block[12..16].copy_from_slice(&crc.to_le_bytes());
            }
        }
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.hook();
        let mut state = self.state();
        let at = usize::try_from(offset_bytes).unwrap();
        let area = self.world.area(self.world.number(at / SECTOR_LEN).unwrap());
        state.written.page |= area == Area::Pages;
        state.written.superblock |= area == Area::Superblock;
        if state.mutation.releases(state.phase, area) {
            state.release(&self.world);
        }
        let Some(sector) = state.mutation.place_write(at / SECTOR_LEN, &self.world) else { return Ok(()) };
        let at = sector * SECTOR_LEN + at % SECTOR_LEN;
        if state.mutation == Mutation::OneSlot && area == Area::Pages {
            // The one place keeps the newer version: only repairs are older.
            let number = self.world.number(sector).unwrap();
            let there = state.disk.cache[number];
            let sequence = |bytes: &[u8]| u64::from_le_bytes(bytes[16..24].try_into().unwrap());
            if there != UNREADABLE && sequence(from) < sequence(self.world.contents().bytes(there)) {
                return Ok(());
            }
        }
        if state.mutation.holds(state.phase, area) {
            state.held.push(Held::Write { at, bytes: from.to_vec() });
            return Ok(());
        }
        if area == Area::Pages
            && let Some(left) = state.pages_left
        {
            state.pages_left = left.checked_sub(1);
            if left == 0 {
                state.write(&self.world, at, &from[..from.len() / 2]);
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        state.write(&self.world, at, from);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.hook();
        let mut state = self.state();
        let kind = state.sync_kind();
        let mut result = Ok(());
        if !state.held.is_empty() && matches!(kind, SyncKind::Pages(_)) {
            state.held.push(Held::Sync);
        } else if !state.mutation.drops_sync(state.phase, kind) {
            result = state.sync(&self.world);
            state.sync_late = false;
        } else if state.mutation == Mutation::PagesAtOnce {
            state.sync_late = true;
        }
        state.synced();
        result
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        if !self.world.host.punches {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.hook();
        let mut state = self.state();
        if !state.mutation.drops_punch(state.phase) {
            state.punch(&self.world, range);
        }
        if state.mutation == Mutation::HoleBeforePage {
            state.release(&self.world);
        }
        Ok(())
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let state = self.state();
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap() / SECTOR_LEN);
        for part in self.world.parts(start..end) {
            let first = self.world.number(part.start).unwrap();
            let cache = &state.disk.cache[first..first + part.len()];
            let Some(hole) = cache.iter().position(|&id| id != ZEROS) else { continue };
            let len = cache[hole..].iter().position(|&id| id == ZEROS).unwrap_or(part.len() - hole);
            let byte = |sector: usize| (sector * SECTOR_LEN) as u64;
            return Ok(Some(byte(part.start + hole)..byte(part.start + hole + len)));
        }
        Ok(None)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn map_words(&self, offset_bytes: u64, count: usize) -> io::Result<LiveWords> {
        let mut state = self.state();
        if state.mutation.releases(state.phase, Area::Live) {
            state.release(&self.world);
        }
        let first = self.world.number(usize::try_from(offset_bytes).unwrap() / SECTOR_LEN).unwrap();
        assert_eq!(first, self.world.live_start());
        let contents = self.world.contents();
        // Not more than the largest disk of this world has: nobody would see the others.
        let count = count.min(self.world.geometry.zone_count() as usize);
        let sectors = &state.disk.cache[first..first + count.div_ceil(64)];
        if sectors.contains(&UNREADABLE) {
            // With a file, the first touch would end the process.
            return Err(io::Error::from_raw_os_error(5));
        }
        let word = |index: usize| contents.bytes(sectors[index / 64]).as_chunks::<8>().0[index % 64];
        let seen: Vec<u64> = (0..count).map(|index| u64::from_ne_bytes(word(index))).collect();
        drop(contents);
        let words: Arc<[AtomicU64]> = seen.iter().map(|&word| AtomicU64::new(word)).collect();
        state.live = Some(Live { words: Arc::clone(&words), seen });
        Ok(LiveWords::shared(words))
    }
}
