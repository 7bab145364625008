//! The random part: disks, the states that they start in, operations and ranges.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use fastrand::Rng;
use virtio_zbd_zones::{
    Condition, Geometry, GeometryConfig, Model, ResetEnd, Retirement, ZoneKind, ZoneLayout, ZoneRun,
    ZoneState, ZoneTable,
};

use super::{Op, Pace, Rig, Seen, Teller, Told, Write};
use crate::model::{NaiveDisk, at};

/// More writes than this are not under way at once, or no zone would ever be free.
const MOST_WRITES: usize = 12;

/// The number under which the sectors are known that are written when a disk is made.
const FIRST_ID: u32 = 1;

impl Rig {
    /// A random disk. The same seed makes the same disk and the same operations on it.
    pub(crate) fn new(seed: u64, pace: Pace) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (geometry, zones) = random_geometry(&mut rng);
        let config = *geometry.config();
        let states = random_states(&mut rng, &geometry);
        let told = Rc::new(RefCell::new(Told { states: states.clone(), calls: 0, idle_call: None }));
        let table = ZoneTable::new(geometry.clone(), &states, Teller(told.clone())).unwrap();
        let model = NaiveDisk::new(config, &zones, &states, FIRST_ID);
        let mut medium = vec![0; at(config.capacity_sectors)];
        for (zone, state) in (0..).zip(&states) {
            let start = at(geometry.zone_start(zone));
            medium[start..start + at(state.wp_sectors.into())].fill(FIRST_ID);
        }
        Self {
            seed,
            pace,
            rng,
            geometry,
            told,
            table,
            model,
            medium,
            writes: Vec::new(),
            begun: Vec::new(),
            waiting: BTreeMap::new(),
            to_retry: VecDeque::new(),
            next_id: FIRST_ID + 1,
            next_ticket: 1,
            last: VecDeque::new(),
            seen: Seen::default(),
        }
    }

    pub(super) fn random_op(&mut self) -> Op {
        if self.pace == Pace::ManyUnderWay {
            if !self.writes.is_empty() && self.rng.usize(..MOST_WRITES) < self.writes.len() {
                let &Write { id, has_failed, .. } = &self.writes[self.rng.usize(..self.writes.len())];
                return match has_failed {
                    true => Op::Settle { id, ok: false },
                    false if self.rng.u8(..) < 66 => Op::Fail { id },
                    false => Op::Settle { id, ok: true },
                };
            }
            if !self.begun.is_empty() && self.rng.u8(..) < 80 {
                let zone = self.begun[self.rng.usize(..self.begun.len())].0.zone();
                return Op::End { zone, end: self.random_end() };
            }
        }
        let zone = self.random_zone();
        let start = self.geometry.zone_start(zone);
        let sector = match self.rng.u8(..) {
            0..240 => start,
            240..250 => start + self.rng.u64(..u64::from(self.geometry.zone_len_sectors(zone))),
            _ => self.random_sector(),
        };
        match self.rng.u16(..1000) {
            0..450 => {
                let (sector, sectors) = self.random_write(zone);
                Op::Write { sector, sectors }
            }
            450..680 => Op::Append { sector, sectors: self.random_length(zone) },
            680..740 => Op::Open { sector },
            740..800 => Op::Close { sector },
            800..860 => Op::Finish { sector },
            860..960 => Op::Reset { sector },
            960..993 => Op::ResetAll { zone: if self.rng.u8(..) == 0 { self.rng.u32(..) } else { zone } },
            993..995 => {
                let to = if self.rng.bool() { Retirement::ReadOnly } else { Retirement::Offline };
                Op::Retire { zone, to }
            }
            _ => Op::Restart,
        }
    }

    pub(super) fn random_end(&mut self) -> ResetEnd {
        match self.rng.u8(..) {
            0..200 => ResetEnd::Done,
            200..240 => ResetEnd::Undone,
            240..254 => ResetEnd::Unswept,
            _ => ResetEnd::Lost,
        }
    }

    /// Mostly one of the first sequential zones, so that some fill up.
    fn random_zone(&mut self) -> u32 {
        let zones = self.geometry.zone_count();
        if self.rng.bool() {
            let first = self.geometry.config().conventional_zones;
            return (first + self.rng.u32(..3)).min(zones - 1);
        }
        self.rng.u32(..zones)
    }

    /// Mostly what may succeed: whole blocks at the write pointer.
    fn random_write(&mut self, zone: u32) -> (u64, u32) {
        let sectors = self.random_length(zone);
        let report = self.table.report(zone).unwrap();
        let wp = match self.geometry.kind(zone) {
            ZoneKind::Conventional => report.start + self.rng.u64(..report.len),
            ZoneKind::SequentialPreferred if self.rng.bool() => report.start + self.rng.u64(..report.len),
            _ => report.wp,
        };
        let sector = match self.rng.u8(..) {
            0..230 => wp,
            230..240 => wp.saturating_sub(self.geometry.granularity_sectors().into()),
            240..250 => wp + u64::from(self.geometry.granularity_sectors()),
            _ => self.random_sector(),
        };
        (sector, sectors)
    }

    fn random_length(&mut self, zone: u32) -> u32 {
        let block = self.geometry.granularity_sectors();
        let len = self.geometry.zone_len_sectors(zone);
        let report = self.table.report(zone).unwrap();
        match self.rng.u8(..) {
            0..150 => block,
            150..200 => block * self.rng.u32(1..=4),
            // Just to the capacity.
            200..225 => u32::try_from((report.start + report.capacity).saturating_sub(report.wp)).unwrap(),
            225..235 => self.rng.u32(0..=len),
            235..245 => self.geometry.zone_capacity_sectors(zone),
            245..252 => 0,
            252..254 => self.geometry.max_append_sectors() + block,
            _ => self.rng.u32(..),
        }
    }

    fn random_sector(&mut self) -> u64 {
        let capacity = self.geometry.capacity_sectors();
        match self.rng.u8(..) {
            0..220 => self.rng.u64(..capacity),
            220..230 => capacity,
            230..240 => capacity + self.rng.u64(..64),
            240..250 => u64::MAX - self.rng.u64(..64),
            _ => self.rng.u64(..),
        }
    }

    /// A range to read: a whole zone, a few sectors, more than a zone, or nonsense.
    pub(super) fn random_range(&mut self) -> (u64, u64) {
        let zone = self.random_zone();
        let start = self.geometry.zone_start(zone);
        let len = u64::from(self.geometry.zone_len_sectors(zone));
        match self.rng.u8(..) {
            0..120 => (start, len),
            120..200 => {
                let offset = self.rng.u64(..len);
                (start + offset, self.rng.u64(0..=len - offset))
            }
            200..240 => (start + self.rng.u64(..len), self.rng.u64(..2 * len)),
            240..250 => (self.random_sector(), self.rng.u64(..2 * len)),
            _ => (self.random_sector(), self.rng.u64(..)),
        }
    }
}

/// A random disk, and what each of its zones is, one by one. Half of them are uniform.
fn random_geometry(rng: &mut Rng) -> (Geometry, Vec<(ZoneKind, u32)>) {
    let mut config = random_config(rng);
    let count = usize::try_from(config.capacity_sectors.div_ceil(config.zone_sectors.into())).unwrap();
    if rng.bool() {
        let first = usize::try_from(config.conventional_zones).unwrap();
        let kind = |zone| if zone < first { ZoneKind::Conventional } else { ZoneKind::SequentialRequired };
        let zones = (0..count).map(|zone| (kind(zone), config.zone_capacity_sectors)).collect();
        return (Geometry::new(config).unwrap(), zones);
    }
    let model = if rng.bool() { Model::HostManaged } else { Model::HostAware };
    let has_preferred = model == Model::HostAware || rng.bool();
    if has_preferred {
        (config.max_open_zones, config.max_active_zones) = (0, 0);
    }
    let granularity = config.write_granularity_bytes / 512;
    let mut random_zone = || match rng.u8(..4) {
        0 => ZoneRun::conventional(1),
        1 if has_preferred => ZoneRun::preferred(1, config.zone_sectors),
        _ if model == Model::HostAware => ZoneRun::preferred(1, config.zone_sectors),
        _ => ZoneRun::required(1, granularity * rng.u32(1..=config.zone_sectors / granularity)),
    };
    let head: Vec<_> = (0..count / 2).map(|_| random_zone()).collect();
    let cycle: Vec<_> = (0..3).map(|_| random_zone()).collect();
    let all = head.iter().chain(cycle.iter().cycle()).take(count);
    let zones = all.map(|run| (run.kind, run.capacity_sectors)).collect();
    (Geometry::with_layout(config, ZoneLayout { model, head, cycle }).unwrap(), zones)
}

fn random_config(rng: &mut Rng) -> GeometryConfig {
    let granularity_sectors = 1 << rng.u32(0..=3);
    let blocks_per_zone = rng.u32(1..=(48 / granularity_sectors).min(16));
    let zone_sectors = granularity_sectors * blocks_per_zone;
    let zone_capacity_sectors =
        if rng.bool() { zone_sectors } else { granularity_sectors * rng.u32(1..=blocks_per_zone) };
    let zones = rng.u32(4..=12);
    let runt_sectors = if rng.bool() { 0 } else { granularity_sectors * rng.u32(..blocks_per_zone) };
    let capacity_sectors = u64::from(zones * zone_sectors - runt_sectors);
    let conventional_zones = match rng.u8(..) {
        0..100 => 0,
        100..250 => rng.u32(1..=3),
        _ => zones,
    };
    let max_active_zones = match rng.u8(..) {
        0..80 => 0,
        80..220 => rng.u32(1..=4),
        _ => rng.u32(1..=zones),
    };
    let max_open_zones = match (rng.u8(..), max_active_zones) {
        (0..70, _) => 0,
        (_, 0) => rng.u32(1..=4),
        _ => rng.u32(1..=max_active_zones),
    };
    let max_append_sectors = match rng.u8(..) {
        0..40 => 0,
        40..140 => granularity_sectors * rng.u32(1..=3),
        _ => granularity_sectors * 1000,
    };
    GeometryConfig {
        capacity_sectors,
        zone_sectors,
        zone_capacity_sectors,
        conventional_zones,
        max_open_zones,
        max_active_zones,
        max_append_sectors,
        write_granularity_bytes: granularity_sectors * 512,
    }
}

/// States that the zones can be in, without more open or active zones than allowed. Often a disk that was never used.
fn random_states(rng: &mut Rng, geometry: &Geometry) -> Vec<ZoneState> {
    let new_disk = rng.bool();
    let (max_open, max_active) = (geometry.max_open_zones(), geometry.max_active_zones());
    let (mut open, mut active) = (0, 0);
    let mut states = Vec::new();
    for zone in 0..geometry.zone_count() {
        let blocks = geometry.zone_capacity_sectors(zone) / geometry.granularity_sectors();
        let condition = match rng.u8(..8) {
            _ if new_disk => Condition::Empty,
            0 => Condition::ImplicitOpen,
            1 => Condition::ExplicitOpen,
            2 | 3 => Condition::Closed,
            4 => Condition::Full,
            5 if rng.bool() => Condition::ReadOnly,
            6 if rng.bool() => Condition::Offline,
            _ => Condition::Empty,
        };
        let written_blocks = match condition {
            Condition::ImplicitOpen | Condition::Closed if blocks > 1 => rng.u32(1..blocks),
            Condition::ExplicitOpen => rng.u32(..blocks),
            Condition::Full | Condition::ReadOnly => rng.u32(0..=blocks),
            _ => 0,
        };
        let no_room = condition.is_open() && max_open != 0 && open == max_open
            || condition.is_active() && max_active != 0 && active == max_active
            // One block is written or not: nothing between.
            || matches!(condition, Condition::ImplicitOpen | Condition::Closed) && blocks == 1;
        if geometry.is_conventional(zone) || no_room {
            states.push(ZoneState::new(geometry, zone));
            continue;
        }
        open += u32::from(condition.is_open());
        active += u32::from(condition.is_active());
        states.push(ZoneState { condition, wp_sectors: written_blocks * geometry.granularity_sectors() });
    }
    states
}
