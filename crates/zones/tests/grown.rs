//! A table that has grown, beside the one that it comes from: both are used at once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

use parking_lot::RawMutex;
use virtio_zbd_zones::{
    Condition, Geometry, GeometryConfig, GeometryError, Refusal, Ticket, ZoneState, ZoneTable,
};

type Table = ZoneTable<RawMutex, ()>;

const NOBODY: Ticket = Ticket(0);

/// Three zones of 16 sectors, 12 of them usable, and a last one of 8; two may be open, three active.
fn table() -> Table {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 3 * 16 + 8,
        zone_sectors: 16,
        zone_capacity_sectors: 12,
        conventional_zones: 0,
        max_open_zones: 2,
        max_active_zones: 3,
        max_append_sectors: 8,
        write_granularity_bytes: 512,
    })
    .unwrap();
    ZoneTable::new(geometry, &[ZoneState::EMPTY; 4], ()).unwrap()
}

fn append(table: &Table, zone: u64, sectors: u32) -> Result<u64, Refusal> {
    let grant = table.admit_append(zone * 16, sectors, NOBODY)?;
    let sector = grant.sector();
    let _ = table.settle(grant, true);
    Ok(sector)
}

fn condition(table: &Table, zone: u32) -> Condition {
    table.report(zone).unwrap().condition
}

#[test]
fn both_tables_have_the_same_zones_and_count_the_same_resources() {
    let old = table();
    assert_eq!(append(&old, 0, 4), Ok(0));
    let new = old.grown(6 * 16).unwrap();
    assert_eq!((old.geometry().zone_count(), new.geometry().zone_count()), (4, 6));
    // What one does the other sees.
    assert_eq!((append(&new, 0, 4), append(&old, 0, 4)), (Ok(4), Ok(8)));
    assert_eq!((condition(&old, 0), condition(&new, 0)), (Condition::Full, Condition::Full));
    new.open(4 * 16, NOBODY).unwrap();
    new.open(5 * 16, NOBODY).unwrap();
    assert_eq!((old.open_and_active(), new.open_and_active()), ((2, 2), (2, 2)));
    assert_eq!(append(&old, 1, 1), Err(Refusal::OpenResource));
    new.close(4 * 16, NOBODY).unwrap();
    assert_eq!(append(&old, 1, 1), Ok(16));
    // The old one closes an implicitly open zone to make room, and that is also the new one's.
    assert_eq!(append(&new, 4, 1), Ok(64));
    assert_eq!(condition(&new, 1), Condition::Closed);
    assert_eq!(append(&old, 2, 1), Err(Refusal::ActiveResource));
    // What is new is beyond the old one's end.
    assert!(old.report(4).is_none() && old.admit_read(4 * 16, 1).is_err());
    assert_eq!(append(&old, 4, 1), Err(Refusal::InvalidCommand));
}

#[test]
fn a_shorter_last_zone_has_its_full_length() {
    let old = table();
    let placed = old.admit_append(3 * 16, 6, NOBODY).unwrap();
    let new = old.grown(4 * 16).unwrap();
    let report = new.report(3).unwrap();
    assert_eq!((report.len, report.capacity, report.wp), (16, 12, 3 * 16 + 6));
    // Whoever still uses the old table is no danger: the zone itself knows how much it takes.
    assert_eq!(append(&new, 3, 4), Ok(3 * 16 + 6));
    assert_eq!(append(&old, 3, 3), Err(Refusal::InvalidCommand));
    let _ = old.settle(placed, true);
    assert_eq!(condition(&new, 3), Condition::ImplicitOpen, "it was not full when the disk had grown");
    assert_eq!(append(&old, 3, 2), Ok(3 * 16 + 10));
    assert_eq!(condition(&new, 3), Condition::Full);
}

#[test]
fn a_full_last_zone_stays_full_until_it_is_reset() {
    let old = table();
    assert_eq!(append(&old, 3, 8), Ok(3 * 16));
    let new = old.grown(5 * 16).unwrap();
    assert_eq!(condition(&new, 3), Condition::Full);
    assert_eq!(append(&new, 3, 1), Err(Refusal::InvalidCommand));
    let plan = new.admit_read(3 * 16, 16).unwrap();
    assert_eq!((plan.stored_sectors, plan.zero_sectors), (8, 8));
    let begun = new.begin_reset(3 * 16, NOBODY).unwrap().unwrap();
    let _ = new.end(begun, virtio_zbd_zones::ResetEnd::Done);
    assert_eq!(append(&new, 3, 8), Ok(3 * 16));
    assert_eq!(append(&new, 3, 4), Ok(3 * 16 + 8));
    assert_eq!(condition(&new, 3), Condition::Full);
}

#[test]
fn again_and_again_and_never_shorter() {
    let first = table();
    let mut tables = vec![first];
    for zones in 5..60u64 {
        let next = tables.last().unwrap().grown(zones * 16 + 8).unwrap();
        assert_eq!(append(&next, zones, 8), Ok(zones * 16), "the last one, which is short");
        tables.push(next);
    }
    let last = tables.last().unwrap();
    assert!((5..60).all(|zone| condition(last, zone) == Condition::Full));
    assert!(matches!(last.grown(16), Err(GeometryError::Shorter { .. })));
    assert!(matches!(last.grown(u64::MAX), Err(GeometryError::TooManyZones { .. })));
}
