//! Long histories on a larger disk: zones of two pages, neighbours among them, lanes that write while a commit
//! runs, syncs that fail, and a part of the ways in which the power can fail at each moment.

use std::sync::Arc;

use virtio_zbd_zones::{Condition, Geometry, GeometryConfig};

use crate::disk::Host;
use crate::explore::{Explorer, Limits};
use crate::history::{Finding, History, Meanwhile, Op, Place, Setup};
use crate::setups::STRICT;

/// Seven zones in two pages: neighbours in one page and across pages, and the last one, which is shorter.
///
/// With `failing_syncs`, syncs fail now and then; then a sector that is written with what it holds already is
/// taken to stay readable.
pub fn large(failing_syncs: bool) -> Setup {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 506 * 4 + 2,
        zone_sectors: 4,
        zone_capacity_sectors: 3,
        conventional_zones: 2,
        max_open_zones: 3,
        max_active_zones: 3,
        max_append_sectors: 3,
        write_granularity_bytes: 512,
    });
    Setup {
        name: "large",
        geometry: geometry.unwrap(),
        zones: vec![2, 3, 4, 503, 504, 505, 506, 507, 1008],
        sectors: (0..8).collect(),
        ops: Vec::new(),
        grows_to: Some(LARGEST),
        host: Host { repeats_are_safe: failing_syncs, ..STRICT },
    }
}

/// The disk's length in the end, if it grows that far: a third page.
const LARGEST: u64 = 1009 * 4 + 1;

/// One history from a seed.
///
/// # Errors
/// What was found, and after which operations.
pub fn long_history(setup: &Setup, seed: u64, explorer: &mut Explorer) -> Result<(), Finding> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut told = Vec::new();
    run(setup, &mut rng, explorer, &mut told).map_err(|why| format!("SEED={seed}, {told:?}: {why}"))
}

fn run(
    setup: &Setup,
    rng: &mut fastrand::Rng,
    explorer: &mut Explorer,
    told: &mut Vec<String>,
) -> Result<(), Finding> {
    let world = Arc::clone(&explorer.world);
    let new = setup.new_disk(&world);
    let mut history = History::begin(setup, &world, new, None, explorer.mutation)?;
    for _ in 0..rng.usize(10..60) {
        let op = operation(setup, &history, rng);
        explorer.limits = Limits {
            recovery_cuts: rng.u8(..3),
            cuts_per_moment: 24,
            cuts_per_recovery: 4,
            kills: rng.u8(..8) == 0,
        };
        let probe = (rng.u8(..3) > 0).then_some(&mut *explorer);
        told.push(format!("{op:?}"));
        if !history.run(&op, probe)? {
            told.pop();
        }
        if rng.u8(..20) == 0 {
            told.push("power cut".to_owned());
            history.crash(rng)?;
        }
    }
    Ok(())
}

fn operation(setup: &Setup, history: &History, rng: &mut fastrand::Rng) -> Op {
    let zone = rng.usize(..setup.zones.len());
    let room = history.oracle.room(zone);
    match rng.u8(..20) {
        0..7 => Op::Write { zone, sectors: rng.u32(1..=room.max(1)) },
        7 => Op::Gap { zone },
        8..10 => {
            let sector = rng.usize(..setup.sectors.len());
            Op::WriteConventional { sector, sectors: rng.usize(1..=(setup.sectors.len() - sector).min(3)) }
        }
        10..18 => commit(setup, history, rng),
        18 if setup.host.repeats_are_safe && rng.u8(..3) == 0 => Op::FailingFlush { sync: rng.u32(..3) },
        18 if rng.u8(..8) == 0 => Op::Retire { zone, offline: rng.bool() },
        18 if rng.u8(..3) == 0 => Op::FullHost { page: rng.u32(..2) },
        18 => Op::Kill,
        _ if rng.u8(..3) == 0 => grow(setup, history, rng),
        _ => Op::Reopen,
    }
}

/// Becomes longer, by a few sectors or by pages of zones.
fn grow(setup: &Setup, history: &History, rng: &mut fastrand::Rng) -> Op {
    let now = history.oracle.geometry.capacity_sectors();
    let most = if rng.bool() { LARGEST } else { (now + 12).min(LARGEST) };
    let sectors = rng.u64(now..=most);
    let mut meanwhile = Vec::new();
    for zone in 0..setup.zones.len() {
        if history.oracle.zones[zone].now.state.condition.is_active() && rng.bool() {
            meanwhile.push(Meanwhile { call: rng.u32(..12), place: Place::Zone(zone) });
        }
    }
    match rng.u8(..6) {
        0 if setup.host.repeats_are_safe => Op::FailingGrow { sectors, sync: rng.u32(..3) },
        1 => Op::FullHostGrow { sectors, page: rng.u32(..4) },
        _ => Op::Grow { sectors, meanwhile },
    }
}

fn commit(setup: &Setup, history: &History, rng: &mut fastrand::Rng) -> Op {
    let kind = rng.u8(..8);
    let (mut finish, mut reset, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for zone in 0..setup.zones.len() {
        let condition = history.oracle.zones[zone].now.state.condition;
        match rng.u8(..8) {
            0..2 if kind >= 2 && condition.is_active() => finish.push(zone),
            2..5 if kind >= 4 && (condition.is_active() || condition == Condition::Full) => reset.push(zone),
            _ if condition.is_active() && rng.bool() => {
                others.push(Meanwhile { call: rng.u32(..6), place: Place::Zone(zone) });
            }
            _ => {}
        }
    }
    for sector in 0..setup.sectors.len() {
        if rng.u8(..8) == 0 {
            others.push(Meanwhile { call: rng.u32(..6), place: Place::Conventional(sector) });
        }
    }
    let flush = kind < 2 || rng.bool() || finish.is_empty() && reset.is_empty();
    rng.shuffle(&mut reset);
    let meanwhile = if rng.bool() { others } else { Vec::new() };
    Op::Commit { flush, finish, reset, meanwhile }
}
