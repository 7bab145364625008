//! Random histories with kills and power cuts, at any call, on hosts that are full or fail, against a naive oracle
//! (D1–D5). `power_cuts` goes through what a power cut may leave one by one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;

use common::sim::SimMedium;
use common::{LaneExt, closed, full, open, seeded};
use virtio_zbd_store::{Commit, EngineChoice, ImageStore, LastUse, OpenOptions, Store, StoreError};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};

const ZONE_SECTORS: u32 = 8;
const CAPACITY_SECTORS: u32 = 6;
const MAX_ACTIVE: usize = 3;
const CONVENTIONAL: [u32; 2] = [0, 1];
/// Zones of all three pages, some of them neighbours, also across pages and at the end.
const SEQUENTIAL: [u32; 11] = [2, 3, 4, 503, 504, 505, 700, 1007, 1008, 1009, 1099];

fn geometry() -> Geometry {
    Geometry::new(GeometryConfig {
        capacity_sectors: 1100 * u64::from(ZONE_SECTORS),
        zone_sectors: ZONE_SECTORS,
        zone_capacity_sectors: CAPACITY_SECTORS,
        conventional_zones: 2,
        max_open_zones: 3,
        max_active_zones: 3,
        max_append_sectors: 4,
        write_granularity_bytes: 512,
    })
    .unwrap()
}

/// What a zone holds: its state, and what was written to each sector below its write pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    state: ZoneState,
    tags: Vec<u64>,
}

impl Content {
    fn empty() -> Self {
        Self { state: ZoneState::EMPTY, tags: Vec::new() }
    }

    fn after_restart(&self, zone: u32) -> Self {
        Self { state: self.state.after_restart(&geometry(), zone), ..self.clone() }
    }
}

/// A sequential zone.
struct Zone {
    index: u32,
    /// What was published.
    now: Content,
    /// What a power cut may leave: the last that was promised, and what was on its way to the medium.
    allowed: Vec<Content>,
}

/// A sector of a conventional zone.
struct Sector {
    index: u64,
    now: u64,
    /// What a power cut may leave.
    allowed: Vec<u64>,
    /// What a write that the process did not survive was to put there.
    dying: Option<u64>,
}

struct History {
    rng: fastrand::Rng,
    medium: Arc<SimMedium>,
    boot: u8,
    store: Option<ImageStore>,
    zones: Vec<Zone>,
    sectors: Vec<Sector>,
    next_tag: u64,
    /// A sync has failed: what was published since is not believed by the next opening.
    failed: bool,
    /// One will fail.
    failing: bool,
    /// The store takes nothing more.
    over: bool,
    cuts: u32,
    kills: u32,
}

impl History {
    fn new(seed: u64) -> Self {
        let medium = SimMedium::new(!seed);
        ImageStore::create_on(&*medium, geometry()).unwrap();
        let zone = |&index| Zone { index, now: Content::empty(), allowed: vec![Content::empty()] };
        let sectors = CONVENTIONAL.len() as u64 * u64::from(ZONE_SECTORS);
        let sector = |index| Sector { index, now: 0, allowed: vec![0], dying: None };
        let mut history = Self {
            rng: fastrand::Rng::with_seed(seed),
            medium,
            boot: 1,
            store: None,
            zones: SEQUENTIAL.iter().map(zone).collect(),
            sectors: (0..sectors).map(sector).collect(),
            next_tag: 1,
            failed: false,
            failing: false,
            over: false,
            cuts: 0,
            kills: 0,
        };
        history.store = Some(history.try_open().unwrap());
        history
    }

    fn try_open(&self) -> Option<ImageStore> {
        let options = OpenOptions { read_only: false, boot_id: Some([self.boot; 16]) };
        match ImageStore::open_on(self.medium.clone(), options) {
            Ok(store) => Some(store),
            Err(error) => {
                assert!(self.medium.is_dead(), "the image can't be opened: {error}");
                None
            }
        }
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            // One fault at a time: a medium that fails while its process dies may tell lies.
            match self.rng.u8(..60) {
                0..=4 if !self.failing => self.medium.die_after(self.rng.u64(1..12)),
                5 => {
                    self.medium.revive();
                    self.medium.fail_sync_after(self.rng.u64(..3));
                    self.failing = true;
                }
                _ => {}
            }
            self.step();
            if self.medium.is_dead() || self.over || self.rng.u8(..25) == 0 {
                self.crash();
            }
        }
        self.crash();
    }

    fn step(&mut self) {
        match self.rng.u8(..16) {
            0..=5 => self.write(),
            6 => self.close_zone(),
            7..=8 => self.write_conventional(),
            9..=10 => self.commit(true, false, false),
            11 => self.commit(false, true, false),
            12..=13 => self.commit(false, false, true),
            14 => self.commit(self.rng.clone().bool(), true, true),
            _ => self.close(),
        }
    }

    fn store(&self) -> &ImageStore {
        self.store.as_ref().unwrap()
    }

    fn write_tags(&mut self, sector: u64, tags: &[u64]) -> bool {
        let bytes: Vec<u8> = tags.iter().flat_map(|tag| tag.to_le_bytes().repeat(64)).collect();
        let mut lane = self.store().open_lane(EngineChoice::Sync).unwrap();
        let result = lane.write_now(sector * 512, &bytes);
        let refused = matches!(&result, Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem);
        assert!(result.is_ok() || self.medium.is_dead() || refused && self.failed);
        self.over |= refused;
        result.is_ok() && !self.medium.is_dead()
    }

    fn new_tags(&mut self, count: u32) -> Vec<u64> {
        let first = self.next_tag;
        self.next_tag += u64::from(count);
        (first..self.next_tag).collect()
    }

    fn write(&mut self) {
        let active = self.zones.iter().filter(|zone| zone.now.state.condition.is_active()).count();
        let pick = self.rng.usize(..self.zones.len());
        let Content { state, .. } = self.zones[pick].now;
        let room = CAPACITY_SECTORS - state.wp_sectors;
        let may = match state.condition {
            Condition::Empty => active < MAX_ACTIVE,
            condition => condition.is_active() && room > 0,
        };
        if !may {
            return;
        }
        let count = self.rng.u32(1..=room);
        let mut tags = self.new_tags(count);
        let at = u64::from(self.zones[pick].index * ZONE_SECTORS + state.wp_sectors);
        if self.rng.u8(..6) == 0 {
            // A write that failed and that later ones have overtaken: nothing was written, the write pointer
            // is past it.
            tags.fill(0);
        } else if !self.write_tags(at, &tags) {
            return;
        }
        let zone = &mut self.zones[pick];
        zone.now.tags.extend(tags);
        let wp_sectors = state.wp_sectors + count;
        let is_full = wp_sectors == CAPACITY_SECTORS && self.rng.bool();
        zone.now.state = if is_full { full(wp_sectors) } else { open(wp_sectors) };
        let (index, state) = (zone.index, zone.now.state);
        println!("  zone {index}: {state:?}");
        self.store().publish(index, state);
    }

    fn close_zone(&mut self) {
        let pick = self.rng.usize(..self.zones.len());
        let zone = &mut self.zones[pick];
        if zone.now.state.condition.is_open() {
            zone.now.state = closed(zone.now.state.wp_sectors);
            let (index, state) = (zone.index, zone.now.state);
            self.store().publish(index, state);
        }
    }

    fn write_conventional(&mut self) {
        let start = self.rng.usize(..self.sectors.len());
        let count = self.rng.usize(1..=(self.sectors.len() - start).min(5));
        let tags = self.new_tags(u32::try_from(count).unwrap());
        let done = self.write_tags(start as u64, &tags);
        for (sector, tag) in self.sectors[start..].iter_mut().zip(tags) {
            sector.allowed.push(tag);
            if done { sector.now = tag } else { sector.dying = Some(tag) }
        }
    }

    fn commit(&mut self, flush: bool, finish: bool, reset: bool) {
        let (mut finished, mut emptied) = (Vec::new(), Vec::new());
        let before: Vec<Content> = self.zones.iter().map(|zone| zone.now.clone()).collect();
        for pick in 0..self.zones.len() {
            let active = self.zones.iter().filter(|zone| zone.now.state.condition.is_active()).count();
            let chosen = self.rng.u8(..4) == 0;
            let zone = &mut self.zones[pick];
            let condition = zone.now.state.condition;
            if finish
                && chosen
                && (condition.is_active() || condition == Condition::Empty && active < MAX_ACTIVE)
            {
                zone.now.state = full(zone.now.state.wp_sectors);
                finished.push(zone.index);
            } else if reset && chosen && condition != Condition::Empty {
                zone.now = Content::empty();
                emptied.push(zone.index);
            } else {
                continue;
            }
            let (index, state) = (zone.index, zone.now.state);
            self.store().publish(index, state);
        }
        self.rng.shuffle(&mut emptied);
        // Now and then the host is full.
        let full_host = !self.failing && self.rng.u8(..6) == 0;
        self.medium.fail_write_after(full_host.then(|| self.rng.u64(..3)));
        let outcome =
            self.store().commit(&Commit { flush, finished: &finished, reset: &emptied, ..Commit::default() });
        println!("  commit flush {flush} finished {finished:?} reset {emptied:?}: {outcome:?}");
        self.medium.fail_write_after(None);
        let named = |zone: u32| flush || finished.contains(&zone) || emptied.contains(&zone);
        let answered = outcome.durable.is_ok() && outcome.hole_failures.is_empty() && !self.medium.is_dead();
        self.committed(answered, named);
        if !self.medium.is_dead() && outcome.durable.is_err() {
            let halted = matches!(&outcome.durable, Err(StoreError::Io { source, .. }) if source.raw_os_error() == Some(5));
            self.failed |= halted;
            // Nothing of it was answered as done: the device takes it back.
            for (zone, before) in self.zones.iter_mut().zip(before) {
                if zone.now != before {
                    zone.now = before;
                    self.store.as_ref().unwrap().publish(zone.index, zone.now.state);
                }
            }
        }
        if answered && flush {
            self.sectors_flushed();
        }
    }

    /// A commit of these zones was answered, or it was under way when everything stopped.
    fn committed(&mut self, answered: bool, named: impl Fn(u32) -> bool) {
        let refused = self.failed;
        for zone in self.zones.iter_mut().filter(|zone| named(zone.index)) {
            let content = zone.now.after_restart(zone.index);
            if answered {
                zone.allowed = vec![content];
            } else if !refused {
                zone.allowed.push(content);
            }
        }
    }

    fn sectors_flushed(&mut self) {
        for sector in &mut self.sectors {
            sector.allowed = vec![sector.now];
        }
    }

    /// Closes the image, and opens it again if it has come through.
    fn close(&mut self) {
        let closed = self.store().close().is_ok();
        println!("  close: {closed}");
        self.committed(closed && !self.medium.is_dead(), |_| true);
        if self.medium.is_dead() {
            return;
        }
        if !closed {
            self.failed = true;
            return;
        }
        self.sectors_flushed();
        for zone in &mut self.zones {
            zone.now = zone.now.after_restart(zone.index);
        }
        self.store = None;
        if let Some(store) = self.try_open() {
            assert_eq!(store.info().unwrap().last_use, LastUse::Closed);
            self.store = Some(store);
            self.check(false);
        }
    }

    /// The process stops, or the machine; and so may the next opening, and the one after that.
    fn crash(&mut self) {
        if self.store.is_some() && !self.medium.is_dead() && self.rng.bool() {
            // A last write that nobody answers.
            let pick = self.rng.usize(..self.zones.len());
            let Content { state, .. } = self.zones[pick].now;
            let tags = self.new_tags(CAPACITY_SECTORS - state.wp_sectors);
            self.write_tags(u64::from(self.zones[pick].index * ZONE_SECTORS + state.wp_sectors), &tags);
        }
        self.store = None;
        let mut cut = false;
        let store = loop {
            if self.rng.bool() {
                self.medium.cut_power();
                self.boot += 1;
                self.cuts += 1;
                cut = true;
            } else {
                self.medium.revive();
                self.kills += 1;
            }
            if self.rng.u8(..3) == 0 {
                self.medium.die_after(self.rng.u64(1..20));
            }
            let opened = self.try_open();
            println!(
                "  crash: cut {cut}, opened: {:?}",
                opened.as_ref().map(|store| store.info().unwrap().last_use)
            );
            if let Some(store) = opened
                && !self.medium.is_dead()
            {
                break store;
            }
            // An opening after a kill has begun to make durable what it found.
            if !cut && !self.failed {
                self.committed(false, |_| true);
            }
        };
        self.medium.revive();
        self.store = Some(store);
        self.check(cut);
        self.failed = false;
        self.failing = false;
        self.over = false;
    }

    /// The image holds what it owes, and nothing else.
    fn check(&mut self, cut: bool) {
        let store = self.store.take().unwrap();
        let info = store.info().unwrap();
        let bytes = self.medium.bytes();
        let data = &bytes[usize::try_from(info.data_offset_bytes).unwrap()..];
        let tag_of = |sector: u64| {
            let sector = &data[usize::try_from(sector).unwrap() * 512..][..512];
            let tag = u64::from_le_bytes(sector[..8].try_into().unwrap());
            assert!(sector.chunks(8).all(|part| part == tag.to_le_bytes()), "a sector is torn");
            tag
        };
        let states = store.initial_states();
        let exact = !cut && !self.failed;
        for zone in &mut self.zones {
            let start = u64::from(zone.index * ZONE_SECTORS);
            let state = states[zone.index as usize];
            let tags = (0..u64::from(state.wp_sectors)).map(|n| tag_of(start + n)).collect();
            let found = Content { state, tags };
            if exact {
                assert_eq!(found, zone.now.after_restart(zone.index), "zone {}: after a kill", zone.index);
            }
            assert!(
                exact || zone.allowed.contains(&found),
                "zone {}: {found:?} is none of {:?} (cut: {cut}, failed: {})",
                zone.index,
                zone.allowed,
                self.failed
            );
            for n in u64::from(state.wp_sectors)..u64::from(ZONE_SECTORS) {
                assert_eq!(tag_of(start + n), 0, "zone {}: sector {n} behind {state:?}", zone.index);
            }
            zone.now = found.clone();
            zone.allowed = vec![found];
        }
        for sector in &mut self.sectors {
            let found = tag_of(sector.index);
            let possible = if cut { sector.allowed.clone() } else { vec![sector.now] };
            assert!(
                possible.contains(&found) || sector.dying == Some(found),
                "sector {}: {found} is none of {possible:?}",
                sector.index
            );
            sector.now = found;
            sector.allowed = vec![found];
            sector.dying = None;
        }
        // Nothing was ever written to any other zone.
        let used: Vec<u32> = SEQUENTIAL.into_iter().chain(CONVENTIONAL).collect();
        for (zone, content) in (0..).zip(data.chunks(ZONE_SECTORS as usize * 512)) {
            assert!(
                used.contains(&zone) || content.iter().all(|&byte| byte == 0),
                "zone {zone} was written to"
            );
        }
        self.store = Some(store);
    }
}

#[test]
fn histories_with_kills_and_power_cuts() {
    let mut seeds = seeded("histories_with_kills_and_power_cuts");
    let (mut cuts, mut kills) = (0, 0);
    for _ in 0..40 {
        let seed = seeds.u64(..);
        println!("history {seed}");
        let mut history = History::new(seed);
        history.run(60);
        cuts += history.cuts;
        kills += history.kills;
    }
    println!("{cuts} power cuts, {kills} kills");
    assert!(cuts > 100 && kills > 100);
}

/// A zone of one page becomes full, which lets a zone of another page become active, after a flush of which some
/// pages were written and not synced, because the host was full at the next one: what they said then may still be
/// what a power cut leaves. It must not find more zones active than there may be.
#[test]
fn a_flush_that_failed_half_way_keeps_the_active_limit() {
    for seed in 0..100 {
        let medium = SimMedium::new(seed);
        ImageStore::create_on(&*medium, geometry()).unwrap();
        let options = |boot| OpenOptions { read_only: false, boot_id: Some([boot; 16]) };
        let store = ImageStore::open_on(medium.clone(), options(1)).unwrap();
        let flush = || store.commit(&Commit { flush: true, ..Commit::default() }).durable;
        for zone in [2, 3, 4] {
            store.publish(zone, open(1));
        }
        flush().unwrap();
        for (ended, begun) in [(2, 504), (3, 1008)] {
            store.publish(ended, full(1));
            store.publish(begun, open(1));
        }
        // The first page, which loses two, is synced; the second is written; the third is not.
        medium.fail_write_after(Some(2));
        flush().unwrap_err();
        for (ended, begun) in [(504, 5), (1008, 6)] {
            store.publish(ended, full(1));
            store.publish(begun, open(1));
        }
        medium.die_after(2 + seed % 6);
        let _ = flush();
        medium.cut_power();
        ImageStore::open_on(medium, options(2)).unwrap();
    }
}
