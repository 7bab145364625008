//! Disks that grow: what they have then, what they keep, and who is refused. What a crash leaves in between is in `power_cuts`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{LaneExt, closed, full, geometry, open};
use virtio_zbd_store::{
    CheckOptions, Commit, CreateOptions, EngineChoice, ImageStore, LastUse, OpenOptions, Opens, RamStore,
    RawStore, Severity, Store, StoreError,
};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};

const ZONE_BYTES: u64 = 512 * 512;

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn image(geometry: Geometry) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zbd");
    ImageStore::create(&path, geometry, CreateOptions::default()).unwrap();
    Place { _dir: dir, path }
}

fn open_image(path: &Path) -> ImageStore {
    ImageStore::open(path, OpenOptions::default()).unwrap()
}

fn flush(store: &dyn Store) {
    store.commit(&Commit { flush: true, ..Commit::default() }).durable.unwrap();
}

/// Nothing is wrong with the image, and nothing is where nothing should be.
fn is_clean(path: &Path) {
    let report = ImageStore::check(path, CheckOptions::default()).unwrap();
    let findings: Vec<_> =
        report.findings.iter().filter(|finding| finding.severity != Severity::Note).collect();
    assert!(report.opens == Opens::Yes && findings.is_empty(), "{findings:?}");
    let undescribed = report.findings.iter().find(|finding| format!("{:?}", finding.kind) == "Undescribed");
    assert!(undescribed.is_none(), "{undescribed:?}");
}

/// 20 zones, the last a runt of half a zone; it grows to so many.
fn sectors(zones: u64) -> u64 {
    zones * 512
}

#[test]
fn an_image_has_more_zones_and_keeps_the_others() {
    let place = image(geometry());
    let store = open_image(&place.path);
    let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
    lane.write_now(2 * ZONE_BYTES, &[2; 8192]).unwrap();
    store.publish(2, open(16));
    lane.write_now(0, &[1; 4096]).unwrap();
    // The runt, to its end.
    lane.write_now(19 * ZONE_BYTES, &[3; 256 * 512]).unwrap();
    store.publish(19, full(256));
    assert!(lane.write_now(20 * ZONE_BYTES, &[4; 4096]).is_err(), "there is no such zone yet");

    store.grow(sectors(30)).unwrap();
    assert_eq!((store.capacity_bytes(), store.geometry().unwrap().zone_count()), (30 * ZONE_BYTES, 30));
    // What was open before reaches the new sectors.
    assert_eq!(lane.read_now(20 * ZONE_BYTES, 4096).unwrap(), [0; 4096]);
    lane.write_now(29 * ZONE_BYTES, &[4; 4096]).unwrap();
    store.publish(29, open(8));
    flush(&store);
    let info = store.info().unwrap();
    assert_eq!(info.states.len(), 30);
    drop((lane, store));

    for life in [LastUse::Killed, LastUse::Closed] {
        let store = open_image(&place.path);
        let info = store.info().unwrap();
        assert_eq!((info.last_use, info.geometry.zone_count()), (life, 30));
        for (zone, state) in (0..).zip(store.initial_states()) {
            let expected = match zone {
                0 | 1 => ZoneState::CONVENTIONAL,
                2 => closed(16),
                // It stays full, short of its new capacity.
                19 => full(256),
                29 => closed(8),
                _ => ZoneState::EMPTY,
            };
            assert_eq!(state, expected, "zone {zone}");
        }
        let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
        assert_eq!(lane.read_now(0, 4096).unwrap(), [1; 4096]);
        assert_eq!(lane.read_now(2 * ZONE_BYTES, 8192).unwrap(), [2; 8192]);
        assert_eq!(lane.read_now(19 * ZONE_BYTES, 256 * 512).unwrap(), vec![3; 256 * 512]);
        assert_eq!(lane.read_now(19 * ZONE_BYTES + 256 * 512, 256 * 512).unwrap(), vec![0; 256 * 512]);
        assert_eq!(lane.read_now(29 * ZONE_BYTES, 4096).unwrap(), [4; 4096]);
        store.close().unwrap();
    }
    is_clean(&place.path);
}

#[test]
fn a_runt_that_was_partly_written_goes_on() {
    let place = image(geometry());
    let store = open_image(&place.path);
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    lane.write_now(19 * ZONE_BYTES, &[1; 4096]).unwrap();
    store.publish(19, open(8));
    store.grow(sectors(20)).unwrap();
    assert_eq!(store.geometry().unwrap().zone_capacity_sectors(19), 384);
    lane.write_now(19 * ZONE_BYTES + 4096, &[2; 304 * 512]).unwrap();
    store.publish(19, open(312));
    drop((lane, store));
    let store = open_image(&place.path);
    assert_eq!(store.initial_states()[19], closed(312));
    store.close().unwrap();
    drop(store);
    is_clean(&place.path);
}

#[test]
fn growing_again_and_again_ends_where_the_room_ends() {
    // One sector a block: the file stays small.
    let shape = |zones: u64| GeometryConfig {
        capacity_sectors: zones * 8,
        zone_sectors: 8,
        zone_capacity_sectors: 8,
        conventional_zones: 1,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 8,
        write_granularity_bytes: 512,
    };
    let place = image(Geometry::new(shape(700)).unwrap());
    let mut store = open_image(&place.path);
    // How far it may go depends on the steps taken, too.
    let mut most = store.info().unwrap().zones_max;
    assert!(most >= 30_000);
    let mut zones = 700u32;
    let mut rng = common::seeded("growing again and again");
    let mut written = Vec::new();
    while zones < most {
        assert!(most >= 700 * 8);
        zones = (zones + rng.u32(1..6_000)).min(most);
        store.grow(u64::from(zones) * 8).unwrap();
        // The last zone that there is now.
        let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
        lane.write_now(u64::from(zones - 1) * 4096, &[u8::try_from(zones % 251).unwrap(); 512]).unwrap();
        store.publish(zones - 1, open(1));
        written.push(zones - 1);
        drop(lane);
        most = store.info().unwrap().zones_max;
        match rng.u8(..4) {
            0 => store = reopened(store, &place.path, false),
            1 => store = reopened(store, &place.path, true),
            2 => flush(&store),
            _ => {}
        }
    }
    let error = store.grow(u64::from(most + 1) * 8).unwrap_err().to_string();
    assert!(error.contains(&format!("room for the states of {most} zones")), "{error}");
    store = reopened(store, &place.path, true);
    let states = store.initial_states();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    for (zone, state) in (0..).zip(&states) {
        let expected = match zone {
            0 => ZoneState::CONVENTIONAL,
            zone if written.contains(&zone) => closed(1),
            _ => ZoneState::EMPTY,
        };
        assert_eq!(*state, expected, "zone {zone}");
    }
    for &zone in &written {
        let byte = u8::try_from((zone + 1) % 251).unwrap();
        assert_eq!(lane.read_now(u64::from(zone) * 4096, 512).unwrap(), [byte; 512], "zone {zone}");
    }
    drop((lane, store));
    is_clean(&place.path);
}

fn reopened(store: ImageStore, path: &Path, close: bool) -> ImageStore {
    if close {
        store.close().unwrap();
    }
    drop(store);
    if close {
        is_clean(path);
    }
    open_image(path)
}

#[test]
fn room_can_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zbd");
    let options = |zones: u64| CreateOptions { overwrite: true, grow_to_sectors: Some(zones * 512) };
    let most = |zones| ImageStore::create(&path, geometry(), options(zones)).unwrap().zones_max;
    assert!(most(0) > 30_000, "there is room in the first MiB");
    assert!((200_000..500_000).contains(&most(200_000)));
    let info = ImageStore::inspect(&path).unwrap();
    assert!(info.allocated_bytes < 1 << 20, "room takes no space: {}", info.allocated_bytes);
    let store = open_image(&path);
    store.grow(sectors(200_000)).unwrap();
    store.close().unwrap();
    drop(store);
    assert_eq!(ImageStore::inspect(&path).unwrap().states.len(), 200_000);
}

#[test]
fn who_publishes_meanwhile_loses_nothing() {
    let place = image(geometry());
    let store = Arc::new(open_image(&place.path));
    let end = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (store, end) = (Arc::clone(&store), Arc::clone(&end));
        std::thread::spawn(move || {
            let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
            let mut wp = 0;
            while !end.load(Ordering::SeqCst) {
                if wp == 384 {
                    store.publish(2, ZoneState::EMPTY);
                    store.commit(&Commit { reset: &[2], ..Commit::default() }).durable.unwrap();
                    wp = 0;
                }
                lane.write_now(2 * ZONE_BYTES + u64::from(wp) * 512, &[u8::try_from(wp / 8).unwrap(); 4096])
                    .unwrap();
                wp += 8;
                let now = if wp == 384 { full(wp) } else { open(wp) };
                store.publish(2, now);
            }
            wp
        })
    };
    for zones in 20..80 {
        store.grow(sectors(zones * 20)).unwrap();
        flush(&*store);
    }
    end.store(true, Ordering::SeqCst);
    let wp = publisher.join().unwrap();
    drop(store);
    // Killed: every word that was published is there.
    let store = open_image(&place.path);
    let expected = if wp == 384 { full(wp) } else { closed(wp) };
    assert_eq!((store.initial_states()[2], store.initial_states().len()), (expected, 79 * 20));
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    for block in 0..wp / 8 {
        let found = lane.read_now(2 * ZONE_BYTES + u64::from(block) * 4096, 4096).unwrap();
        assert_eq!(found, [u8::try_from(block).unwrap(); 4096]);
    }
}

#[test]
fn what_lies_behind_the_end_does_not_show() {
    let place = image(geometry());
    let len = fs::metadata(&place.path).unwrap().len();
    let file = File::options().write(true).open(&place.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 300_000], len).unwrap();
    drop(file);
    let store = open_image(&place.path);
    store.grow(sectors(20) + 8).unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    assert_eq!(lane.read_now(19 * ZONE_BYTES, 512 * 512).unwrap(), vec![0; 512 * 512]);
    assert_eq!(lane.read_now(20 * ZONE_BYTES, 4096).unwrap(), [0; 4096]);
}

#[test]
fn what_can_not_be_is_refused_and_changes_nothing() {
    let place = image(geometry());
    let before = fs::read(&place.path).unwrap();
    let read_only = ImageStore::open(&place.path, OpenOptions { read_only: true, boot_id: None }).unwrap();
    assert!(matches!(read_only.grow(sectors(30)), Err(StoreError::ReadOnly { .. })));
    drop(read_only);
    assert_eq!(fs::read(&place.path).unwrap(), before);

    let store = open_image(&place.path);
    let before = fs::read(&place.path).unwrap();
    let shorter = store.grow(sectors(19)).unwrap_err();
    assert!(
        matches!(shorter, StoreError::Shrunk { capacity_sectors: 9984, wanted_sectors: 9728, .. }),
        "{shorter}"
    );
    for (wanted, why) in
        [(sectors(30) + 1, "block size"), (u64::MAX / 8 * 8, "zones"), (512 << 24, "room for the states")]
    {
        let error = store.grow(wanted).unwrap_err();
        assert!(matches!(&error, StoreError::NoGrowth { .. }) && error.to_string().contains(why), "{error}");
    }
    store.grow(store.capacity_bytes() / 512).unwrap();
    assert_eq!(fs::read(&place.path).unwrap(), before);

    // A file that was cut off is not made longer again.
    File::options().write(true).open(&place.path).unwrap().set_len((1 << 20) + 4096).unwrap();
    assert!(matches!(store.grow(sectors(30)), Err(StoreError::CutOff { .. })));
    assert_eq!(fs::metadata(&place.path).unwrap().len(), (1 << 20) + 4096);
    drop(store);

    let place = image(geometry());
    let store = open_image(&place.path);
    store.close().unwrap();
    assert!(matches!(store.grow(sectors(30)), Err(StoreError::Closed { .. })));
}

#[test]
fn memory_grows() {
    let store = RamStore::new(geometry()).unwrap();
    let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
    lane.write_now(19 * ZONE_BYTES, &[1; 256 * 512]).unwrap();
    for zones in [20, 21, 40] {
        store.grow(sectors(zones) + 8).unwrap();
        assert_eq!(store.capacity_bytes(), (sectors(zones) + 8) * 512);
        let states = store.initial_states();
        assert_eq!(states.len(), usize::try_from(zones + 1).unwrap());
        assert!(states[2..].iter().all(|state| state.condition == Condition::Empty));
    }
    // Across what was made at two times.
    let bytes: Vec<u8> = (0..512 * 512u32).map(|byte| u8::try_from(byte % 249).unwrap()).collect();
    lane.write_now(20 * ZONE_BYTES, &bytes).unwrap();
    assert_eq!(lane.read_now(20 * ZONE_BYTES, bytes.len()).unwrap(), bytes);
    assert_eq!(lane.read_now(19 * ZONE_BYTES, 256 * 512).unwrap(), vec![1; 256 * 512]);
    store.publish(40, open(8));
    // The last zone has one block.
    assert_eq!(store.initial_states()[40], full(8));
    store.publish(20, ZoneState::EMPTY);
    assert!(store.commit(&Commit { reset: &[20], ..Commit::default() }).hole_failures.is_empty());
    assert_eq!(lane.read_now(20 * ZONE_BYTES, bytes.len()).unwrap(), vec![0; bytes.len()]);
    assert!(matches!(store.grow(sectors(20)), Err(StoreError::Shrunk { .. })));

    let store = RamStore::plain(4096).unwrap();
    let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
    lane.write_now(0, &[7; 4096]).unwrap();
    let grown = (2..100).map(|n| store.grow(n * 8)).take_while(Result::is_ok).count();
    assert_eq!((grown, store.capacity_bytes()), (63, 64 * 4096));
    lane.write_now(4096, &[8; 63 * 4096]).unwrap();
    assert_eq!(lane.read_now(0, 8192).unwrap(), [[7; 4096], [8; 4096]].concat());
    assert!(lane.write_now(64 * 4096, &[1; 512]).is_err());
}

#[test]
fn a_plain_file_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    fs::write(&path, [5; 8192]).unwrap();
    let store = RawStore::open(&path, false).unwrap();
    let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
    assert!(lane.write_now(8192, &[6; 512]).is_err());
    store.grow(64).unwrap();
    assert_eq!((store.capacity_bytes(), fs::metadata(&path).unwrap().len()), (32768, 32768));
    lane.write_now(32768 - 512, &[6; 512]).unwrap();
    flush(&store);
    assert!(matches!(store.grow(16), Err(StoreError::Shrunk { .. })));
    drop((lane, store));
    let store = RawStore::open(&path, true).unwrap();
    assert_eq!(store.capacity_bytes(), 32768);
    assert!(matches!(store.grow(128), Err(StoreError::ReadOnly { .. })));
}
