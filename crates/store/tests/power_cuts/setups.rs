//! The disks whose short histories are all gone through, and the walk through them.

use std::sync::Arc;

use virtio_zbd_zones::{Geometry, GeometryConfig};

use crate::disk::Host;
use crate::explore::Explorer;
use crate::history::{Finding, History, Meanwhile, Op, Place, Setup};

/// Every write may leave a sector unreadable.
pub const STRICT: Host = Host { repeats_are_safe: false, punches: true };

/// One conventional zone, and two sequential ones that are used: their states are in different sectors of one page.
pub fn one_page() -> Setup {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 61 * 4,
        zone_sectors: 4,
        zone_capacity_sectors: 3,
        conventional_zones: 1,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 3,
        write_granularity_bytes: 512,
    });
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        Op::Write { zone: 1, sectors: 2 },
        Op::Gap { zone: 0 },
        Op::WriteConventional { sector: 0, sectors: 1 },
        Op::flush(),
        Op::finish(0),
        Op::reset(&[0]),
        Op::reset(&[0, 1]),
        Op::Reopen,
        Op::Kill,
    ];
    Setup {
        name: "one page",
        geometry: geometry.unwrap(),
        zones: vec![1, 60],
        sectors: vec![1],
        ops,
        grows_to: None,
        host: STRICT,
    }
}

/// As [`one_page`], with fewer things that happen: longer histories are gone through in the same time.
pub fn few_ops() -> Setup {
    let ops = vec![
        Op::Write { zone: 1, sectors: 2 },
        Op::Write { zone: 0, sectors: 1 },
        Op::flush(),
        Op::reset(&[0]),
    ];
    Setup { name: "few operations", ops, ..one_page() }
}

/// Two zones in different pages, of which only one may be active.
pub fn two_pages() -> Setup {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 505 * 2,
        zone_sectors: 2,
        zone_capacity_sectors: 2,
        conventional_zones: 0,
        max_open_zones: 1,
        max_active_zones: 1,
        max_append_sectors: 2,
        write_granularity_bytes: 512,
    });
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        Op::Write { zone: 1, sectors: 1 },
        Op::flush(),
        Op::commit(true, &[0], &[]),
        Op::reset(&[1]),
    ];
    Setup {
        name: "two pages",
        geometry: geometry.unwrap(),
        zones: vec![1, 504],
        sectors: vec![],
        ops,
        grows_to: None,
        host: STRICT,
    }
}

/// As [`two_pages`], with no more than it takes for one zone to become active in another one's place.
pub fn in_place_of_another() -> Setup {
    let ops = vec![Op::Write { zone: 0, sectors: 1 }, Op::Write { zone: 1, sectors: 1 }, Op::flush()];
    Setup { name: "two pages, few operations", ops, ..two_pages() }
}

/// As [`two_pages`], and the host is full now and then while pages are written.
pub fn full_host() -> Setup {
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        Op::Write { zone: 1, sectors: 1 },
        Op::flush(),
        Op::FullHost { page: 0 },
        Op::FullHost { page: 1 },
        Op::reset(&[0]),
    ];
    Setup { name: "full host", ops, ..two_pages() }
}

/// As [`one_page`], with syncs that fail: the opening after that goes back to what the medium may have.
pub fn failing_syncs() -> Setup {
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        Op::WriteConventional { sector: 0, sectors: 1 },
        Op::flush(),
        Op::FailingFlush { sync: 0 },
        Op::FailingFlush { sync: 1 },
        Op::reset(&[0]),
    ];
    Setup { name: "failing syncs", ops, host: Host { repeats_are_safe: true, ..STRICT }, ..one_page() }
}

/// As [`one_page`], and zones go out of use.
pub fn bad_zones() -> Setup {
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        Op::Write { zone: 1, sectors: 2 },
        Op::flush(),
        Op::Retire { zone: 0, offline: false },
        Op::Retire { zone: 0, offline: true },
        Op::Reopen,
    ];
    Setup { name: "bad zones", ops, ..one_page() }
}

/// As [`one_page`], on a host that can't punch holes.
pub fn no_holes() -> Setup {
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        Op::Gap { zone: 0 },
        Op::flush(),
        Op::reset(&[0]),
        Op::Reopen,
    ];
    Setup { name: "no holes", ops, host: Host { punches: false, ..STRICT }, ..one_page() }
}

/// A disk that grows: its last zone, which is shorter than the others, and by more zones. (In long histories it grows into more pages.)
pub fn growing() -> Setup {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 61 * 4 + 2,
        zone_sectors: 4,
        zone_capacity_sectors: 3,
        conventional_zones: 1,
        max_open_zones: 2,
        max_active_zones: 2,
        max_append_sectors: 3,
        write_granularity_bytes: 512,
    });
    let meanwhile = vec![
        Meanwhile { call: 1, place: Place::Conventional(0) },
        Meanwhile { call: 4, place: Place::Zone(0) },
    ];
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        // To its end: it is full.
        Op::Write { zone: 1, sectors: 2 },
        Op::Write { zone: 2, sectors: 2 },
        Op::flush(),
        Op::grow(62 * 4),
        Op::Grow { sectors: LONG, meanwhile },
        Op::reset(&[1]),
        Op::Kill,
    ];
    Setup {
        name: "growing",
        geometry: geometry.unwrap(),
        zones: vec![1, 61, 63],
        sectors: vec![1],
        ops,
        grows_to: Some(LONG),
        host: STRICT,
    }
}

/// As far as it grows.
const LONG: u64 = 64 * 4 + 1;

/// As [`growing`], and the host is full, or fails, while it grows.
pub fn failing_growth() -> Setup {
    let ops = vec![
        Op::Write { zone: 0, sectors: 1 },
        Op::flush(),
        Op::FullHostGrow { sectors: LONG, page: 2 },
        Op::FailingGrow { sectors: LONG, sync: 0 },
        Op::FailingGrow { sectors: LONG, sync: 1 },
        Op::FailingGrow { sectors: LONG, sync: 2 },
        Op::grow(62 * 4),
    ];
    Setup { name: "failing growth", ops, host: Host { repeats_are_safe: true, ..STRICT }, ..growing() }
}

/// Goes through every history of at most `len` operations, and looks at every moment of each. Returns how
/// many there are.
///
/// # Errors
/// The first that ends badly: the shortest.
pub fn every_history(setup: &Setup, len: usize, explorer: &mut Explorer) -> Result<u64, Finding> {
    let (world, mutation) = (Arc::clone(&explorer.world), explorer.mutation);
    let new = setup.new_disk(&world);
    History::begin(setup, &world, new.clone(), Some(explorer), mutation)?;
    let mut histories = 1;
    let mut paths: Vec<Vec<&Op>> = vec![Vec::new()];
    for _ in 0..len {
        let mut longer = Vec::new();
        for path in &paths {
            for op in &setup.ops {
                let told = |why| format!("{}, {path:?} and then {op:?}: {why}", setup.name);
                let mut history = History::begin(setup, &world, new.clone(), None, mutation).map_err(told)?;
                for op in path {
                    history.run(op, None).map_err(told)?;
                }
                if history.run(op, Some(explorer)).map_err(told)? {
                    histories += 1;
                    longer.push(path.iter().copied().chain([op]).collect());
                }
            }
        }
        paths = longer;
    }
    Ok(histories)
}
