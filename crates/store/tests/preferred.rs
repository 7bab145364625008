//! D1–D5 for sequential-write-preferred zones: random writes anywhere in them, kills and power cuts, against a naive oracle.
//!
//! `SEED` repeats a run, `PREFERRED_LIVES` sets how many lives of a disk there are.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::sync::Arc;

use common::sim::SimMedium;
use common::{LaneExt, seeded};
use virtio_zbd_store::{Commit, EngineChoice, ImageStore, LastUse, OpenOptions, Store};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, Model, ZoneLayout, ZoneRun, ZoneState};

const ZONE: u32 = 16;
const ZONES: u32 = 4;
const SECTOR: u64 = 512;

fn geometry() -> Geometry {
    let config = GeometryConfig {
        capacity_sectors: u64::from(ZONES * ZONE),
        zone_sectors: ZONE,
        zone_capacity_sectors: 0,
        conventional_zones: 0,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 0,
        write_granularity_bytes: 4096,
    };
    let cycle = vec![ZoneRun::preferred(1, ZONE)];
    Geometry::with_layout(config, ZoneLayout { model: Model::HostAware, head: Vec::new(), cycle }).unwrap()
}

/// What a zone is, and may be after a power cut.
#[derive(Clone)]
struct Zone {
    now: ZoneState,
    durable: ZoneState,
    /// What each sector holds.
    tags: Vec<u8>,
    /// What each sector may hold after a power cut: what was flushed, and all that was written since.
    possible: Vec<Vec<u8>>,
}

impl Zone {
    fn new() -> Self {
        let len = usize::try_from(ZONE).unwrap();
        Self {
            now: ZoneState::EMPTY,
            durable: ZoneState::EMPTY,
            tags: vec![0; len],
            possible: vec![vec![0]; len],
        }
    }

    fn flushed(&mut self, with_data: bool) {
        self.durable = self.now;
        if with_data {
            self.possible = self.tags.iter().map(|tag| vec![*tag]).collect();
        }
    }
}

fn open(medium: &Arc<SimMedium>, boot: u8) -> ImageStore {
    let options = OpenOptions { read_only: false, boot_id: Some([boot; 16]) };
    ImageStore::open_on(Arc::clone(medium) as _, options).unwrap()
}

fn step(store: &ImageStore, zones: &mut [Zone], rng: &mut fastrand::Rng) {
    let index = rng.u32(..ZONES);
    let at = usize::try_from(index).unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    match rng.u8(..20) {
        0..14 => {
            let first = rng.u32(..ZONE);
            let len = rng.u32(1..=ZONE - first);
            let tag = rng.u8(1..);
            let sector = u64::from(index * ZONE + first);
            let bytes = vec![tag; usize::try_from(len).unwrap() * 512];
            lane.write_now(sector * SECTOR, &bytes).unwrap();
            let zone = &mut zones[at];
            for sector in first..first + len {
                let sector = usize::try_from(sector).unwrap();
                zone.tags[sector] = tag;
                zone.possible[sector].push(tag);
            }
            // As the zone table tells it.
            let wp_sectors = zone.now.wp_sectors.max(first + len);
            let condition = match zone.now.condition {
                Condition::Full => Condition::Full,
                _ if wp_sectors == ZONE => Condition::Full,
                _ => Condition::ImplicitOpen,
            };
            zone.now = ZoneState { condition, wp_sectors };
            store.publish(index, zone.now);
        }
        14..17 => {
            store.commit(&Commit { flush: true, ..Commit::default() }).durable.unwrap();
            zones.iter_mut().for_each(|zone| zone.flushed(true));
        }
        17 => {
            zones[at].now.condition = Condition::Full;
            store.publish(index, zones[at].now);
            store.commit(&Commit { finished: &[index], ..Commit::default() }).durable.unwrap();
            zones[at].flushed(true);
        }
        _ => {
            store.publish(index, ZoneState::EMPTY);
            store.commit(&Commit { reset: &[index], ..Commit::default() }).durable.unwrap();
            zones[at] = Zone::new();
        }
    }
}

/// What is found is what may be; it is what is from now on.
fn compare(store: &ImageStore, geometry: &Geometry, zones: &mut [Zone], cut: bool) {
    let states = store.initial_states();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    for (index, zone) in (0u32..).zip(zones) {
        let expected = if cut { zone.durable } else { zone.now };
        let state = states[usize::try_from(index).unwrap()];
        assert_eq!(state, expected.after_restart(geometry, index), "zone {index}, cut {cut}");
        let offset = u64::from(index * ZONE) * SECTOR;
        let bytes = lane.read_now(offset, usize::try_from(ZONE).unwrap() * 512).unwrap();
        let wp = usize::try_from(state.wp_sectors).unwrap();
        for (sector, found) in bytes.chunks(512).enumerate() {
            let tag = found[0];
            assert!(found.iter().all(|byte| *byte == tag), "a sector is whole");
            match (sector < wp, cut) {
                (false, _) => assert_eq!(tag, 0, "zone {index} has something behind its write pointer, {wp}"),
                (true, false) => assert_eq!(tag, zone.tags[sector], "zone {index}, sector {sector}"),
                (true, true) => {
                    let possible = &zone.possible[sector];
                    assert!(
                        possible.contains(&tag),
                        "zone {index}, sector {sector}: {tag}, not of {possible:?}"
                    );
                }
            }
            zone.tags[sector] = tag;
        }
        zone.now = state;
        // An opening makes durable what counts.
        zone.flushed(true);
    }
}

#[test]
fn preferred_zones_keep_what_is_promised() {
    let mut rng = seeded("preferred_zones_keep_what_is_promised");
    let lives = std::env::var("PREFERRED_LIVES").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let geometry = geometry();
    let (mut cuts, mut disks) = (0, 0);
    let mut left = lives;
    while left > 0 {
        disks += 1;
        let medium = SimMedium::new(rng.u64(..));
        ImageStore::create_on(&*medium, geometry.clone()).unwrap();
        let mut zones = vec![Zone::new(); usize::try_from(ZONES).unwrap()];
        let mut boot = 1;
        for _ in 0..10 {
            left -= 1;
            let store = open(&medium, boot);
            for _ in 0..rng.u32(..40) {
                step(&store, &mut zones, &mut rng);
            }
            let cut = match rng.u8(..3) {
                0 => {
                    store.close().unwrap();
                    zones.iter_mut().for_each(|zone| zone.flushed(true));
                    false
                }
                1 => false,
                _ => true,
            };
            drop(store);
            if cut {
                medium.cut_power();
                boot += 1;
                cuts += 1;
            }
            let store = open(&medium, boot);
            let found = store.info().unwrap().last_use;
            assert_eq!(found == LastUse::PowerLost, cut, "{found:?}");
            compare(&store, &geometry, &mut zones, cut);
            store.close().unwrap();
        }
    }
    println!("{lives} lives on {disks} disks, {cuts} power cuts");
    assert!(cuts > lives / 5);
}
