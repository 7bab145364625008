//! V6–V10 and what the specification says of zones in passing; the states that a table may start with.

use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, NotWp, Offline, ReadOnly};
use parking_lot::RawMutex;
use virtio_zbd_zones::{
    Condition, Geometry, GeometryConfig, InitialStateError, Refusal, Settled, StateError, ZoneKind,
    ZoneReport, ZoneState, ZoneTable,
};

use crate::disk::{Disk, config, new_disk, plan};

#[test]
fn v6_the_last_zone_may_be_shorter() {
    let disk = new_disk();
    assert_eq!(
        disk.table.report(7).unwrap(),
        ZoneReport {
            kind: ZoneKind::SequentialRequired,
            condition: Empty,
            start: 448,
            len: 40,
            capacity: 40,
            wp: 448
        }
    );
    assert_eq!(disk.write(448, 40), Ok(448));
    assert_eq!(disk.condition(7), Full);
    assert_eq!(disk.read(448, 40), Ok(plan(40, 0)));
    assert_eq!(disk.read(448, 41), Err(Refusal::OutOfRange), "the disk ends with the short zone");
    assert_eq!(disk.table.report(8), None);
}

#[test]
fn v7_v8_a_limit_of_0_is_no_limit() {
    let disk = Disk::new(GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..config() });
    for zone in 2..8 {
        disk.open(zone).unwrap();
    }
    assert_eq!(disk.table.open_and_active(), (6, 6));
}

#[test]
fn v10_a_sequential_write_is_a_whole_number_of_blocks() {
    let disk = new_disk();
    assert_eq!(disk.write(128, 4), Err(Refusal::UnalignedWritePointer));
    assert_eq!(disk.append(128, 12), Err(Refusal::UnalignedWritePointer));
    assert_eq!(disk.condition(2), Empty, "what is refused opens nothing");
}

#[test]
fn a_conventional_zone_is_always_not_wp() {
    let disk = new_disk();
    disk.write(0, 64).unwrap();
    assert_eq!(
        disk.table.report(0).unwrap(),
        ZoneReport {
            kind: ZoneKind::Conventional,
            condition: NotWp,
            start: 0,
            len: 64,
            capacity: 64,
            wp: 64
        }
    );
    assert_eq!(disk.write(3, 1), Ok(3), "any sector, any length");
    assert_eq!(disk.table.open_and_active(), (0, 0));
}

#[test]
fn the_reported_write_pointer_is_the_zones_end_where_there_is_none() {
    for condition in [Full, ReadOnly, Offline] {
        assert_eq!(Disk::with(condition).table.report(2).unwrap().wp, 192, "{condition:?}");
    }
}

#[test]
fn a_zone_is_full_when_its_capacity_is_written() {
    for from in [Empty, ImplicitOpen, ExplicitOpen, Closed] {
        let disk = Disk::with(from);
        let wp = u32::try_from(disk.wp(2)).unwrap();
        disk.write(128 + u64::from(wp), 48 - wp).unwrap();
        assert_eq!((disk.condition(2), disk.table.open_and_active()), (Full, (0, 0)), "{from:?}");
        assert_eq!(disk.observed(2), ZoneState { condition: Full, wp_sectors: 48 }, "{from:?}");
        assert_eq!(disk.append(128, 8), Err(Refusal::InvalidCommand), "{from:?}");
    }
}

#[test]
fn a_zone_is_full_only_when_all_of_it_is_done() {
    let disk = new_disk();
    let (first, last) = (disk.admit(128, 40), disk.admit(168, 8));
    assert_eq!(disk.table.settle(last, true), Settled::default());
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 48));
    assert_eq!(disk.table.settle(first, true), Settled::default());
    assert_eq!(disk.condition(2), Full);
}

#[test]
fn open_and_closed_zones_use_resources_and_the_others_do_not() {
    for (condition, uses) in [
        (Empty, (0, 0)),
        (ImplicitOpen, (1, 1)),
        (ExplicitOpen, (1, 1)),
        (Closed, (0, 1)),
        (Full, (0, 0)),
        (ReadOnly, (0, 0)),
        (Offline, (0, 0)),
    ] {
        assert_eq!(Disk::with(condition).table.open_and_active(), uses, "{condition:?}");
    }
}

#[test]
fn a_range_beyond_the_disk_is_out_of_range() {
    let disk = new_disk();
    for (sector, sectors) in [(488, 8), (480, 16), (u64::MAX, 8), (u64::MAX - 7, 8), (1 << 32, 8)] {
        assert_eq!(disk.write(sector, sectors), Err(Refusal::OutOfRange), "{sector}");
        assert_eq!(disk.read(sector, sectors.into()), Err(Refusal::OutOfRange), "{sector}");
    }
    assert_eq!(disk.read(0, u64::MAX), Err(Refusal::OutOfRange));
    assert_eq!(disk.write(128, u32::MAX), Err(Refusal::OutOfRange));
}

#[test]
fn a_table_refuses_states_that_can_not_be() {
    let geometry = Geometry::new(config()).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<ZoneState>)| {
        let mut states: Vec<_> = (0..8).map(|zone| ZoneState::new(&geometry, zone)).collect();
        change(&mut states);
        ZoneTable::<RawMutex, ()>::new(geometry.clone(), &states, ()).err().unwrap()
    };
    let state = |condition, wp_sectors| ZoneState { condition, wp_sectors };
    assert_eq!(refused(&|s| s.truncate(7)), InitialStateError::Count { found: 7, expected: 8 });
    assert_eq!(
        refused(&|s| s[0] = ZoneState::EMPTY),
        StateError::Kind { zone: 0, conventional: true, condition: Empty }.into()
    );
    assert_eq!(
        refused(&|s| s[2] = ZoneState::CONVENTIONAL),
        StateError::Kind { zone: 2, conventional: false, condition: NotWp }.into()
    );
    assert_eq!(
        refused(&|s| s[2] = state(Closed, 56)),
        StateError::BeyondCapacity { zone: 2, wp_sectors: 56, capacity_sectors: 48 }.into()
    );
    assert_eq!(
        refused(&|s| s[7] = state(Full, 48)),
        StateError::BeyondCapacity { zone: 7, wp_sectors: 48, capacity_sectors: 40 }.into()
    );
    assert_eq!(
        refused(&|s| s[2] = state(Empty, 8)),
        StateError::WritePointer { zone: 2, condition: Empty, wp_sectors: 8 }.into()
    );
    assert_eq!(
        refused(&|s| s[2] = state(Closed, 9)),
        StateError::Unaligned { zone: 2, wp_sectors: 9 }.into()
    );
    assert_eq!(
        refused(&|s| s[2] = state(Closed, 48)),
        InitialStateError::NotAtRest { zone: 2, condition: Closed, wp_sectors: 48 }
    );
    assert_eq!(
        refused(&|s| s[7] = state(ExplicitOpen, 40)),
        InitialStateError::NotAtRest { zone: 7, condition: ExplicitOpen, wp_sectors: 40 }
    );
    assert_eq!(
        refused(&|s| s[2..6].fill(state(ImplicitOpen, 8))),
        InitialStateError::TooManyOpen { open: 4, max_open_zones: 3 }
    );
    assert_eq!(
        refused(&|s| s[2..7].fill(state(Closed, 8))),
        InitialStateError::TooManyActive { active: 5, max_active_zones: 4 }
    );
}

/// What a zone is only while something is under way in it: written to its capacity and not full, or without data and neither empty nor
/// explicitly open. The word that a store keeps may say so; after a restart it is something else.
#[test]
fn a_table_starts_with_zones_at_rest() {
    let geometry = Geometry::new(config()).unwrap();
    for (zone, capacity) in [(2, 48), (7, 40)] {
        for condition in [Empty, ImplicitOpen, ExplicitOpen, Closed, ReadOnly, Full, Offline] {
            for wp_sectors in (0..=capacity).step_by(8) {
                let state = ZoneState { condition, wp_sectors };
                let can_be = condition != Empty || wp_sectors == 0;
                let at_rest = match condition {
                    Empty => wp_sectors == 0,
                    ImplicitOpen | Closed => 0 < wp_sectors && wp_sectors < capacity,
                    ExplicitOpen => wp_sectors < capacity,
                    _ => true,
                };
                assert_eq!(state.check(&geometry, zone).is_ok(), can_be, "{zone} {state:?}");
                let table_with = |state| {
                    let mut states: Vec<_> = (0..8).map(|zone| ZoneState::new(&geometry, zone)).collect();
                    states[usize::try_from(zone).unwrap()] = state;
                    ZoneTable::<RawMutex, ()>::new(geometry.clone(), &states, ())
                };
                let refusal = table_with(state).err();
                let not_at_rest = InitialStateError::NotAtRest { zone, condition, wp_sectors };
                assert_eq!(refusal == Some(not_at_rest), can_be && !at_rest, "{zone} {state:?}");
                assert_eq!(refusal.is_none(), at_rest, "{zone} {state:?}");
                if can_be {
                    assert_eq!(
                        table_with(state.after_restart(&geometry, zone)).err(),
                        None,
                        "{zone} {state:?}"
                    );
                }
            }
        }
    }
}
