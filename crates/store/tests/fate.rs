//! Zones that are taken out of use, and back, by hand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use virtio_zbd_store::{
    CheckOptions, CreateOptions, ImageStore, LastUse, OpenOptions, Severity, Store, StoreError, ZoneFate,
};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};

const ZONE: u32 = 128;
const BOOTS: [[u8; 16]; 2] = [[1; 16], [2; 16]];

fn geometry(max_active_zones: u32) -> Geometry {
    Geometry::new(GeometryConfig {
        capacity_sectors: 1000 * u64::from(ZONE),
        zone_sectors: ZONE,
        zone_capacity_sectors: 96,
        conventional_zones: 2,
        max_open_zones: 0,
        max_active_zones,
        max_append_sectors: 8,
        write_granularity_bytes: 4096,
    })
    .unwrap()
}

fn open(path: &Path, boot: usize) -> ImageStore {
    ImageStore::open(path, OpenOptions { read_only: false, boot_id: Some(BOOTS[boot]) }).unwrap()
}

fn state(condition: Condition, wp_sectors: u32) -> ZoneState {
    ZoneState { condition, wp_sectors }
}

/// A closed image with zone 2 closed, 3 full by writing, 4 finished half-way, and all others empty.
fn used(path: &Path, max_active_zones: u32) {
    ImageStore::create(path, geometry(max_active_zones), CreateOptions::default()).unwrap();
    let store = open(path, 0);
    for (zone, to) in
        [(2, state(Condition::Closed, 40)), (3, state(Condition::Full, 96)), (4, state(Condition::Full, 48))]
    {
        store.publish(zone, to);
    }
    store.close().unwrap();
}

fn states(path: &Path) -> Vec<ZoneState> {
    ImageStore::inspect(path).unwrap().states
}

#[track_caller]
fn assert_clean(path: &Path) {
    let report = ImageStore::check(path, CheckOptions::default()).unwrap();
    let bad: Vec<_> = report.findings.iter().filter(|found| found.severity > Severity::Note).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_zone_goes_out_of_use_and_comes_back_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.zbd");
    used(&path, 0);
    for (fate, condition) in
        [(ZoneFate::ReadOnly, Condition::ReadOnly), (ZoneFate::Offline, Condition::Offline)]
    {
        let store = open(&path, 0);
        store.set_zones(&[2, 3, 4, 5, 999], fate).unwrap();
        store.close().unwrap();
        drop(store);
        let found = states(&path);
        let kept = [(2, 40), (3, 96), (4, 48), (5, 0), (999, 0)];
        for (zone, wp_sectors) in kept {
            assert_eq!(found[zone], state(condition, wp_sectors), "zone {zone}");
        }
        assert_clean(&path);
    }
    let store = open(&path, 0);
    store.set_zones(&[2, 3, 4, 5, 6, 999], ZoneFate::Good).unwrap();
    store.close().unwrap();
    drop(store);
    let found = states(&path);
    assert_eq!(found[2], state(Condition::Closed, 40));
    assert_eq!(found[3], state(Condition::Full, 96));
    assert_eq!(found[4], state(Condition::Closed, 48), "that it was finished is forgotten");
    assert_eq!([found[5], found[6], found[999]], [ZoneState::EMPTY; 3]);
    assert_clean(&path);
}

#[test]
fn it_is_durable_when_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.zbd");
    used(&path, 0);
    let store = open(&path, 0);
    store.set_zones(&[2, 700], ZoneFate::Offline).unwrap();
    // Neither closed nor found in the same boot: only what was made durable counts.
    drop(store);
    let store = open(&path, 1);
    assert_eq!(store.info().unwrap().last_use, LastUse::PowerLost);
    let found = store.initial_states();
    assert_eq!([found[2], found[700]], [state(Condition::Offline, 40), state(Condition::Offline, 0)]);
    store.set_zones(&[2], ZoneFate::Good).unwrap();
    drop(store);
    assert_eq!(open(&path, 0).initial_states()[2], state(Condition::Closed, 40));
}

#[test]
fn what_was_there_before_a_reset_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.zbd");
    used(&path, 0);
    let store = open(&path, 0);
    store.set_zones(&[2, 5], ZoneFate::Offline).unwrap();
    store.close().unwrap();
    drop(store);
    // As a reset leaves a zone whose medium is bad: its old data is still there.
    let data_offset = ImageStore::inspect(&path).unwrap().data_offset_bytes;
    let at = |zone: u64, sector: u64| data_offset + (zone * u64::from(ZONE) + sector) * 512;
    let file = File::options().read(true).write(true).open(&path).unwrap();
    for place in [at(2, 8), at(2, 40), at(2, 127), at(5, 0), at(6, 0) - 1] {
        file.write_all_at(b"x", place).unwrap();
    }
    assert_clean(&path);
    let store = open(&path, 0);
    store.set_zones(&[2, 5], ZoneFate::Good).unwrap();
    store.close().unwrap();
    drop(store);
    let mut bytes = vec![0; 4 * 128 * 512];
    file.read_exact_at(&mut bytes, at(2, 0)).unwrap();
    let left: Vec<_> = (0..bytes.len()).filter(|&byte| bytes[byte] != 0).collect();
    assert_eq!(left, [8 * 512], "only what lies below a write pointer is kept");
    assert_clean(&path);
}

#[test]
fn all_zones_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.zbd");
    used(&path, 1);
    let before = states(&path);
    let store = open(&path, 0);
    let conventional = store.set_zones(&[5, 1], ZoneFate::Offline);
    assert!(matches!(conventional, Err(StoreError::Conventional { zone: 1, .. })), "{conventional:?}");
    let missing = store.set_zones(&[5, 1000], ZoneFate::ReadOnly);
    assert!(matches!(missing, Err(StoreError::NoSuchZone { zone: 1000, .. })), "{missing:?}");
    store.set_zones(&[4], ZoneFate::ReadOnly).unwrap();
    // Zones 2 and 4 would be closed.
    let many = store.set_zones(&[4, 5], ZoneFate::Good);
    assert!(matches!(many, Err(StoreError::TooManyActive { active: 2, .. })), "{many:?}");
    store.set_zones(&[2], ZoneFate::ReadOnly).unwrap();
    store.set_zones(&[4], ZoneFate::Good).unwrap();
    store.close().unwrap();
    drop(store);
    let found = states(&path);
    assert_eq!([found[2], found[4]], [state(Condition::ReadOnly, 40), state(Condition::Closed, 48)]);
    assert_eq!((found[3], found[5]), (before[3], before[5]));
    let closed = fs::read(&path).unwrap();
    let only_read = ImageStore::open(&path, OpenOptions { read_only: true, boot_id: None }).unwrap();
    assert!(only_read.set_zones(&[3], ZoneFate::Offline).is_err());
    drop(only_read);
    assert_eq!(fs::read(&path).unwrap(), closed);
}
