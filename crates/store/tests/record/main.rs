//! Recordings against a naive reading of the rules: random load on several queues, and every image that replay makes looked at
//! block by block.
//!
//! `SEED` repeats a run, `RECORD_ROUNDS` sets how many there are.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "tests may"
)]

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod device;
mod history;

use std::collections::{BTreeMap, BTreeSet};

use common::sim::SimMedium;
use common::{LaneExt, seeded};
use device::Device;
use history::{Found, History, Key};
use virtio_zbd_store::record::{Keep, PowerCut, Replay};
use virtio_zbd_store::{EngineChoice, ImageStore, LastUse, OpenOptions, Store};
use virtio_zbd_zones::{Geometry, GeometryConfig, Ticket};

const BLOCK: u64 = 1024;
const ZONE_BLOCKS: u64 = 8;
const CAPACITY_BLOCKS: u64 = 6;
const CONVENTIONAL: u32 = 1;
const ZONES: u32 = 6;

fn geometry(max_active_zones: u32) -> Geometry {
    let sectors = |blocks: u64| u32::try_from(blocks * BLOCK / 512).unwrap();
    Geometry::new(GeometryConfig {
        capacity_sectors: u64::from(ZONES) * u64::from(sectors(ZONE_BLOCKS)),
        zone_sectors: sectors(ZONE_BLOCKS),
        zone_capacity_sectors: sectors(CAPACITY_BLOCKS),
        conventional_zones: CONVENTIONAL,
        max_open_zones: max_active_zones,
        max_active_zones,
        max_append_sectors: sectors(4),
        write_granularity_bytes: u32::try_from(BLOCK).unwrap(),
    })
    .unwrap()
}

/// `blocks` blocks full of a tag.
fn bytes(tag: u64, blocks: u64) -> Vec<u8> {
    tag.to_le_bytes().repeat(usize::try_from(blocks * BLOCK / 8).unwrap())
}

/// What an image has: each zone, and each conventional block.
fn look(store: &ImageStore, geometry: &Geometry) -> (Vec<Found>, Vec<u64>) {
    assert_eq!(store.info().unwrap().last_use, LastUse::PowerLost);
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    let mut tag = |block: u64| {
        let found = lane.read_now(block * BLOCK, BLOCK as usize).unwrap();
        let (words, _) = found.as_chunks::<8>();
        assert!(words.iter().all(|word| *word == words[0]), "block {block} is torn");
        u64::from_le_bytes(words[0])
    };
    let blocks = (0..u64::from(CONVENTIONAL) * ZONE_BLOCKS).map(&mut tag).collect();
    let zones = (0..).zip(store.initial_states()).map(|(zone, state)| {
        let start = geometry.zone_start(zone) * 512 / BLOCK;
        let count = u64::from(state.wp_sectors) * 512 / BLOCK;
        (state, (start..start + count).map(&mut tag).collect())
    });
    (zones.collect(), blocks)
}

const READ_ONLY: OpenOptions = OpenOptions { read_only: true, boot_id: None };

fn cut(replay: &Replay<'_>, keep: Keep, geometry: &Geometry) -> (Vec<Found>, Vec<u64>) {
    let medium = SimMedium::new(1);
    replay.write_image_on(keep, None, medium.clone()).unwrap();
    look(&ImageStore::open_on(medium, READ_ONLY).unwrap(), geometry)
}

/// What the rules allow of each zone and each block.
struct Allowed {
    zones: Vec<BTreeSet<Key>>,
    blocks: Vec<BTreeSet<u64>>,
    max_active: usize,
}

impl Allowed {
    fn new(
        history: &History,
        moment: usize,
        geometry: &Geometry,
        first: &[Found],
        first_blocks: &[u64],
    ) -> Self {
        let zones = (CONVENTIONAL..ZONES)
            .map(|zone| history.allowed_zone(moment, zone, &first[zone as usize], geometry));
        let blocks = (0..).zip(first_blocks).map(|(block, base)| history.allowed_block(moment, block, *base));
        let max_active = match geometry.max_active_zones() {
            0 => usize::MAX,
            limit => limit as usize,
        };
        Self { zones: zones.collect(), blocks: blocks.collect(), max_active }
    }

    #[track_caller]
    fn check(&self, (zones, blocks): &(Vec<Found>, Vec<u64>), what: &str, history: &History, moment: usize) {
        let active = zones.iter().filter(|zone| zone.0.condition.is_active()).count();
        assert!(active <= self.max_active, "{what}: {active} zones are active");
        let told = || format!("{:#?}", &history.done[..moment]);
        for ((zone, (state, tags)), allowed) in (0..).zip(zones).skip(CONVENTIONAL as usize).zip(&self.zones)
        {
            let there = allowed.contains(&(state.to_bits(), tags.clone()));
            assert!(
                there,
                "{what}: zone {zone} is {state:?} with {tags:?}; allowed: {allowed:?}\n{}",
                told()
            );
        }
        for (block, (allowed, tag)) in self.blocks.iter().zip(blocks).enumerate() {
            assert!(
                allowed.contains(tag),
                "{what}: block {block} has {tag}; allowed: {allowed:?}\n{}",
                told()
            );
        }
    }
}

/// Each image is allowed by the rules; all zones and blocks are where `all` and `none` want them.
#[test]
fn every_replayed_image_is_allowed() {
    let rounds = std::env::var("RECORD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut rng = seeded("every_replayed_image_is_allowed");
    let (mut images, mut moments) = (0, 0);
    for round in 0..rounds {
        let dir = place();
        let max_active = if round % 3 == 0 { 0 } else { 2 };
        let mut device = Device::new(dir.path(), max_active, 3, round % 2 == 1);
        let geometry = device.geometry.clone();
        for _ in 0..rng.usize(20..120) {
            device.step(&mut rng);
        }
        let (recording, history, first, first_blocks) = device.recording(dir.path());
        assert_eq!(recording.end(), history.done.len() as u64, "an event each");
        let mut replay = recording.replay();
        for moment in 0..=history.done.len() {
            if rng.u32(..4) > 0 && moment < history.done.len() {
                continue;
            }
            moments += 1;
            replay.advance_to(moment as u64);
            let allowed = Allowed::new(&history, moment, &geometry, &first, &first_blocks);
            let mut keeps = vec![Keep::All, Keep::None];
            keeps.extend((0..6).map(|_| Keep::Random(rng.u64(..))));
            for keep in keeps {
                images += 1;
                let found = cut(&replay, keep, &geometry);
                allowed.check(&found, &format!("moment {moment}, {keep:?}"), &history, moment);
                for (zone, (state, _)) in (0..).zip(&found.0).filter(|_| keep == Keep::All) {
                    let now = history.published(moment, zone, first[zone as usize].0).0;
                    assert_eq!(*state, now.after_restart(&geometry, zone), "moment {moment}: zone {zone}");
                }
            }
        }
    }
    println!("{images} images of {moments} moments of {rounds} recordings");
}

/// Over many seeds each allowed state of each zone and block comes up, and no other.
#[test]
fn every_allowed_state_is_reached() {
    let dir = place();
    let mut device = Device::new(dir.path(), 0, 2, true);
    let geometry = device.geometry.clone();
    // Flushed: block 0, zone 1 up to 1, zone 3.
    assert!(device.begin(0, 0, 0, 1) && device.begin(0, 1, 0, 1) && device.begin(0, 3, 0, 2));
    device.end_all(0);
    device.commit(true, &[], &[]);
    // The next flush sees a gap in zone 4; and block 5, written while it is under way, is not flushed by it.
    assert!(device.begin(0, 4, 0, 2) && device.begin(1, 4, 0, 1));
    device.end_all(1);
    assert!(device.begin(1, 0, 5, 1));
    device.commit_during(true, &[], &[], |device| device.end_all(1));
    device.end_all(0);
    // Not flushed: two versions of block 0 and of block 1, three more blocks of zone 1, one of them under way.
    assert!(device.begin(0, 0, 0, 2) && device.begin(0, 1, 0, 2));
    device.end_all(0);
    assert!(device.begin(0, 0, 0, 1) && device.begin(0, 0, 1, 1) && device.begin(1, 1, 0, 1));
    device.end_all(0);
    // A reset and a finish begin.
    let reset = device.table.begin_reset(geometry.zone_start(2), Ticket(0)).unwrap().unwrap();
    let finish = device.table.begin_finish(geometry.zone_start(3), Ticket(0)).unwrap().unwrap();
    drop((reset, finish));
    let (recording, history, first, first_blocks) = device.recording(dir.path());
    let moment = history.done.len();
    let mut replay = recording.replay();
    replay.advance_to(moment as u64);
    let mut reached: BTreeMap<u32, BTreeSet<Key>> = BTreeMap::new();
    let mut reached_blocks: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for seed in 0..600 {
        let (zones, blocks) = cut(&replay, Keep::Random(seed), &geometry);
        for (zone, (state, tags)) in (0..).zip(zones) {
            reached.entry(zone).or_default().insert((state.to_bits(), tags));
        }
        for (block, tag) in (0..).zip(blocks) {
            reached_blocks.entry(block).or_default().insert(tag);
        }
    }
    let mut states = 0;
    for zone in CONVENTIONAL..ZONES {
        let allowed = history.allowed_zone(moment, zone, &first[zone as usize], &geometry);
        states += allowed.len();
        assert_eq!(reached[&zone], allowed, "zone {zone}");
    }
    for (block, base) in (0..).zip(&first_blocks) {
        let allowed = history.allowed_block(moment, block, *base);
        states += allowed.len();
        assert_eq!(reached_blocks[&block], allowed, "block {block}");
    }
    println!("{states} states of {} zones and {} blocks, all reached", ZONES - 1, first_blocks.len());
    assert!(states > 25, "the history must leave something open");
}

/// A disk whose power is cut under random load is in an allowed state, is found as after a power cut, and has nothing behind its
/// write pointers once it was opened.
#[test]
fn a_cut_disk_is_in_an_allowed_state() {
    let rounds = std::env::var("RECORD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut rng = seeded("a_cut_disk_is_in_an_allowed_state");
    let mut set_back = 0;
    for round in 0..rounds {
        let dir = place();
        let max_active = if round % 3 == 0 { 0 } else { 2 };
        let keep = match round % 10 {
            0 => Keep::All,
            1 => Keep::None,
            _ => Keep::Random(rng.u64(..)),
        };
        let cut = PowerCut { after: rng.u64(1..25), keep };
        let mut device = Device::with(dir.path(), max_active, 3, round % 2 == 1, Some(cut));
        let geometry = device.geometry.clone();
        while !device.is_cut() {
            device.step(&mut rng);
        }
        let (report, history, first, first_blocks) = device.lose_power();
        set_back += report.zones_set_back;
        let image = dir.path().join("disk.zbd");
        let found = look(&ImageStore::open(&image, READ_ONLY).unwrap(), &geometry);
        let moment = history.done.len();
        let allowed = Allowed::new(&history, moment, &geometry, &first, &first_blocks);
        allowed.check(&found, &format!("round {round}, {cut:?}"), &history, moment);
        let store = ImageStore::open(&image, OpenOptions::default()).unwrap();
        let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
        for (zone, (state, _)) in (0..).zip(&found.0).skip(CONVENTIONAL as usize) {
            let start = geometry.zone_start(zone) * 512 + u64::from(state.wp_sectors) * 512;
            let rest = (u64::from(zone) + 1) * ZONE_BLOCKS * BLOCK - start;
            let bytes = lane.read_now(start, rest as usize).unwrap();
            assert!(
                bytes.iter().all(|&byte| byte == 0),
                "zone {zone} has something behind its write pointer"
            );
        }
    }
    println!("{rounds} cuts, {set_back} write pointers set back");
}

/// The same small history, cut at the same change, with many seeds: all that is allowed comes up.
#[test]
fn every_allowed_state_of_a_cut_is_reached() {
    let mut reached: BTreeMap<u32, BTreeSet<Key>> = BTreeMap::new();
    let mut reached_blocks: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut allowed = None;
    for seed in 0..150 {
        let dir = place();
        let cut = PowerCut { after: 7, keep: Keep::Random(seed) };
        let mut device = Device::with(dir.path(), 0, 2, true, Some(cut));
        let geometry = device.geometry.clone();
        assert!(device.begin(0, 0, 0, 1) && device.begin(0, 1, 0, 1));
        device.end_all(0);
        device.commit(true, &[], &[]);
        assert!(device.begin(0, 0, 0, 2) && device.begin(0, 1, 0, 2) && device.begin(1, 1, 0, 1));
        device.end_all(0);
        assert!(device.begin(0, 0, 0, 1));
        let reset = device.table.begin_reset(geometry.zone_start(2), Ticket(0)).unwrap().unwrap();
        device.commit(false, &[], &[2]);
        drop(reset);
        let (_, history, first, first_blocks) = device.lose_power();
        let store = ImageStore::open(&dir.path().join("disk.zbd"), READ_ONLY).unwrap();
        let (zones, blocks) = look(&store, &geometry);
        for (zone, (state, tags)) in (CONVENTIONAL..).zip(zones.into_iter().skip(CONVENTIONAL as usize)) {
            reached.entry(zone).or_default().insert((state.to_bits(), tags));
        }
        for (block, tag) in (0..).zip(blocks) {
            reached_blocks.entry(block).or_default().insert(tag);
        }
        let moment = history.done.len();
        allowed.get_or_insert_with(|| Allowed::new(&history, moment, &geometry, &first, &first_blocks));
    }
    let allowed = allowed.unwrap();
    assert_eq!(reached.into_values().collect::<Vec<_>>(), allowed.zones);
    assert_eq!(reached_blocks.into_values().collect::<Vec<_>>(), allowed.blocks);
    let states: usize =
        allowed.zones.iter().map(BTreeSet::len).chain(allowed.blocks.iter().map(BTreeSet::len)).sum();
    assert!(states > ZONES as usize + first_count() + 6, "the history must leave something open: {states}");
}

/// A directory in memory where there is one: hundreds of images are made, each with its syncs.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn first_count() -> usize {
    CONVENTIONAL as usize * ZONE_BLOCKS as usize
}
