//! Images as bytes, what they hold, and ways to damage them, by docs/format.md and not by the code.

use std::sync::Arc;

use virtio_zbd_store::{Commit, EngineChoice, ImageStore, Medium, OpenOptions, Store};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};

use super::LaneExt;
use super::sim::SimMedium;

pub const BOOT: [u8; 16] = [1; 16];
pub const LATER_BOOT: [u8; 16] = [2; 16];
pub const SEQUENCE: usize = 16;
pub const UUID: usize = 24;
pub const LIVE_BOOT_ID: usize = 40;
pub const RO_COMPAT: usize = 64;
pub const INCOMPAT: usize = 72;
pub const SUM: usize = 168;
pub const PAGES: usize = 8192;
pub const ENTRIES: usize = 64;
pub const LIVE: usize = 65536;
pub const DATA: usize = 1 << 20;

/// An image, and what whoever opens it in [`BOOT`] must find.
#[derive(Clone)]
pub struct Oracle {
    pub geometry: Geometry,
    pub bytes: Vec<u8>,
    pub states: Vec<ZoneState>,
}

/// `zones` zones of four sectors, three of them usable, two conventional ones.
pub fn small_geometry(zones: u32) -> Geometry {
    Geometry::new(GeometryConfig {
        capacity_sectors: u64::from(zones) * 4,
        zone_sectors: 4,
        zone_capacity_sectors: 3,
        conventional_zones: 2,
        max_open_zones: 4,
        max_active_zones: 6,
        max_append_sectors: 2,
        write_granularity_bytes: 512,
    })
    .unwrap()
}

impl Oracle {
    /// An image with a history: opened and closed a few times, zones written, flushed, finished and reset. All zones that
    /// are used are among the first and the last few.
    pub fn new(rng: &mut fastrand::Rng, zones: u32, close: bool) -> Self {
        let geometry = small_geometry(zones);
        let medium = SimMedium::new(rng.u64(..));
        ImageStore::create_on(&*medium, geometry.clone()).unwrap();
        let mut states: Vec<ZoneState> = (0..zones).map(|zone| ZoneState::new(&geometry, zone)).collect();
        let lives = rng.u32(1..4);
        for life in 1..=lives {
            let store = ImageStore::open_on(medium.clone(), options(BOOT, false)).unwrap();
            for (zone, state) in (0..).zip(&mut states) {
                *state = state.after_restart(&geometry, zone);
            }
            let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
            for _ in 0..rng.u32(4..40) {
                let zone = if rng.bool() { rng.u32(..12) } else { zones - 1 - rng.u32(..12) };
                let state = &mut states[zone as usize];
                let at = u64::from(zone) * 4 * 512;
                let active = |state: &ZoneState| state.condition.is_active();
                match (state.condition, rng.u8(..8)) {
                    (Condition::NotWp, _) => {
                        lane.write_now(at + rng.u64(..4) * 512, &[rng.u8(..); 512]).unwrap();
                    }
                    (_, 0) => store.commit(&Commit { flush: true, ..Commit::default() }).durable.unwrap(),
                    (Condition::Full, 1..4) => {
                        *state = ZoneState::EMPTY;
                        store.publish(zone, *state);
                        let outcome = store.commit(&Commit { reset: &[zone], ..Commit::default() });
                        outcome.durable.unwrap();
                    }
                    (Condition::Full, _) => {}
                    (Condition::Closed | Condition::ImplicitOpen, 1) => {
                        state.condition = Condition::Full;
                        store.publish(zone, *state);
                        store.commit(&Commit { finished: &[zone], ..Commit::default() }).durable.unwrap();
                    }
                    _ => {
                        let next = ZoneState {
                            condition: Condition::ImplicitOpen,
                            wp_sectors: state.wp_sectors + 1,
                        };
                        let next = match next.wp_sectors {
                            3 => ZoneState { condition: Condition::Full, ..next },
                            _ => next,
                        };
                        let is_active = active(state);
                        if !is_active
                            && next.condition != Condition::Full
                            && states.iter().filter(|s| active(s)).count() == 6
                        {
                            continue;
                        }
                        let state = &mut states[zone as usize];
                        lane.write_now(at + u64::from(state.wp_sectors) * 512, &[rng.u8(1..); 512]).unwrap();
                        *state = next;
                        store.publish(zone, next);
                    }
                }
            }
            if life < lives || close {
                store.close().unwrap();
            }
        }
        for (zone, state) in (0..).zip(&mut states) {
            *state = state.after_restart(&geometry, zone);
        }
        Self { geometry, bytes: medium.bytes(), states }
    }

    pub fn medium(&self) -> Arc<SimMedium> {
        medium_of(&self.bytes)
    }

    pub fn pages(&self) -> usize {
        self.states.len().div_ceil(504)
    }

    /// Where a slot is.
    pub fn slot(&self, page: usize, slot: usize) -> usize {
        PAGES + (slot * self.pages() + page) * 4096
    }

    /// The slot of a page that counts.
    pub fn newest_slot(&self, page: usize) -> usize {
        let sequence = |slot| u64_at(&self.bytes, self.slot(page, slot) + SEQUENCE);
        usize::from(sequence(1) > sequence(0))
    }

    /// Where a zone begins in the file.
    pub fn zone(&self, zone: usize) -> usize {
        DATA + zone * 4 * 512
    }

    /// Whether the medium opens for writing and holds what it must.
    pub fn holds(&self, medium: &Arc<SimMedium>, boot: [u8; 16]) -> Result<(), String> {
        let store =
            ImageStore::open_on(medium.clone(), options(boot, false)).map_err(|error| error.to_string())?;
        let bytes = medium.bytes();
        for (zone, (expected, found)) in self.states.iter().zip(store.initial_states()).enumerate() {
            if *expected != found {
                return Err(format!("zone {zone} is {found:?}, not {expected:?}"));
            }
            let len = match expected.condition {
                Condition::NotWp => 4 * 512,
                _ => expected.wp_sectors as usize * 512,
            };
            let at = self.zone(zone);
            if bytes[at..at + len] != self.bytes[at..at + len] {
                return Err(format!("zone {zone} has other data"));
            }
        }
        Ok(())
    }
}

pub fn options(boot_id: [u8; 16], read_only: bool) -> OpenOptions {
    OpenOptions { read_only, boot_id: Some(boot_id) }
}

/// A medium with these bytes on it.
pub fn medium_of(bytes: &[u8]) -> Arc<SimMedium> {
    let medium = SimMedium::new(1);
    medium.set_len(bytes.len() as u64).unwrap();
    medium.damage(0, |to| to.copy_from_slice(bytes));
    medium
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn put(bytes: &mut [u8], at: usize, value: impl AsRef<[u8]>) {
    bytes[at..at + value.as_ref().len()].copy_from_slice(value.as_ref());
}

/// CRC32C, one bit at a time: an oracle for the one in the code.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// Gives the block at `at` the checksum of what it holds now.
pub fn seal(bytes: &mut [u8], at: usize) {
    let block = &mut bytes[at..at + 4096];
    block[12..16].fill(0);
    let crc = crc32c(block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
}
