//! An image's life: made, opened, closed, killed, locked, reset.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::sim::SimMedium;
use common::{LaneExt, closed, full, geometry, open};
use virtio_zbd_store::{
    Commit, CreateOptions, EngineChoice, ImageFault, ImageStore, Lane, LastUse, OpenOptions, RamStore,
    RawStore, Store, StoreError,
};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};

const BOOT: [u8; 16] = [1; 16];
const LATER_BOOT: [u8; 16] = [2; 16];
const ZONE: u64 = 512 * 512;
const ZONE_LEN: usize = 512 * 512;

struct Image {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn new() -> Self {
        Self::with(geometry())
    }

    fn with(geometry: Geometry) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.zbd");
        ImageStore::create(&path, geometry, CreateOptions::default()).unwrap();
        Self { _directory: directory, path }
    }

    fn open(&self, boot: [u8; 16]) -> ImageStore {
        ImageStore::open(&self.path, OpenOptions { read_only: false, boot_id: Some(boot) }).unwrap()
    }
}

fn lane(store: &dyn Store) -> Lane {
    store.open_lane(EngineChoice::Sync).unwrap()
}

fn flush(store: &dyn Store) {
    let outcome = store.commit(&Commit { flush: true, ..Commit::default() });
    outcome.durable.unwrap();
}

fn finish(store: &dyn Store, zone: u32, state: ZoneState) {
    store.publish(zone, state);
    store.commit(&Commit { finished: &[zone], ..Commit::default() }).durable.unwrap();
}

fn reset(store: &dyn Store, zones: &[u32]) {
    for &zone in zones {
        store.publish(zone, ZoneState::EMPTY);
    }
    let outcome = store.commit(&Commit { reset: zones, ..Commit::default() });
    outcome.durable.unwrap();
    assert!(outcome.hole_failures.is_empty());
}

/// Writes `blocks` of 4 KiB from the zone's start and says so.
fn fill(store: &dyn Store, zone: u32, blocks: u32, byte: u8) {
    let bytes = vec![byte; blocks as usize * 4096];
    lane(store).write_now(u64::from(zone) * ZONE, &bytes).unwrap();
    store.publish(zone, open(blocks * 8));
}

fn content(store: &dyn Store, zone: u32, len: usize) -> Vec<u8> {
    lane(store).read_now(u64::from(zone) * ZONE, len).unwrap()
}

fn state(store: &dyn Store, zone: u32) -> ZoneState {
    store.initial_states()[zone as usize]
}

#[test]
fn a_new_image_is_sparse_empty_and_says_what_it_is() {
    let image = Image::new();
    let info = ImageStore::inspect(&image.path).unwrap();
    assert_eq!(info.geometry, geometry());
    assert_eq!(info.last_use, LastUse::Closed);
    assert_eq!((info.open_zones, info.active_zones), (0, 0));
    assert_eq!((info.features_compat, info.features_ro_compat, info.features_incompat), (0, 0, 0));
    let capacity = geometry().capacity_sectors() * 512;
    assert_eq!(info.file_len_bytes, info.data_offset_bytes + capacity);
    assert_eq!(info.data_offset_bytes % (1 << 20), 0);
    assert!(info.allocated_bytes <= 256 << 10, "{} bytes are taken", info.allocated_bytes);
    let store = image.open(BOOT);
    assert_eq!(store.capacity_bytes(), capacity);
    let expected: Vec<_> = (0..20).map(|zone| ZoneState::new(&geometry(), zone)).collect();
    assert_eq!(store.initial_states(), expected);
    let serial = store.identity().serial;
    assert_eq!(serial[..], store.info().unwrap().uuid.simple().to_string().as_bytes()[..20]);
}

#[test]
fn what_was_closed_comes_back() {
    let image = Image::new();
    for round in 1..=5u8 {
        let store = image.open(if round % 2 == 0 { BOOT } else { LATER_BOOT });
        assert_eq!(store.info().unwrap().last_use, LastUse::Closed);
        if round > 1 {
            assert_eq!(state(&store, 3), closed(u32::from(round - 1) * 8));
            assert_eq!(
                content(&store, 3, 4096 * usize::from(round - 1)),
                vec![round - 1; 4096 * usize::from(round - 1)]
            );
            reset(&store, &[3]);
        }
        fill(&store, 3, u32::from(round), round);
        lane(&store).write_now(0, &[round; 512]).unwrap();
        finish(&store, 10 + u32::from(round), full(0));
        store.close().unwrap();
        store.close().unwrap();
        let refused = store.commit(&Commit { flush: true, ..Commit::default() }).durable.unwrap_err();
        assert!(matches!(refused, StoreError::Closed { .. }));
    }
    let store = image.open(BOOT);
    assert_eq!(content(&store, 0, 512), [5; 512]);
    assert_eq!(
        (10..16).map(|zone| state(&store, zone)).collect::<Vec<_>>(),
        [&[ZoneState::EMPTY][..], &[full(0); 5]].concat()
    );
}

#[test]
fn a_kill_loses_nothing_that_was_answered() {
    let image = Image::new();
    {
        let store = image.open(BOOT);
        fill(&store, 2, 5, 0xaa);
        fill(&store, 3, 48, 0xbb); // to its capacity, the transition to full not yet published
        store.publish(4, open(0));
        fill(&store, 5, 2, 0xcc);
        store.publish(5, full(16));
        // Written and never answered: behind the write pointer.
        lane(&store).write_now(2 * ZONE + 5 * 4096, &[0xdd; 8192]).unwrap();
    }
    let store = image.open(BOOT);
    let info = store.info().unwrap();
    assert_eq!(info.last_use, LastUse::Killed);
    assert_eq!((info.open_zones, info.active_zones), (0, 1));
    assert_eq!(
        (2..6).map(|zone| state(&store, zone)).collect::<Vec<_>>(),
        [closed(40), full(384), ZoneState::EMPTY, full(16)]
    );
    assert_eq!(content(&store, 2, 7 * 4096), [vec![0xaa; 5 * 4096], vec![0; 2 * 4096]].concat());
    assert_eq!(content(&store, 3, 48 * 4096), vec![0xbb; 48 * 4096]);
    assert_eq!(content(&store, 5, 3 * 4096), [vec![0xcc; 2 * 4096], vec![0; 4096]].concat());
    // What was found after the kill is durable once it has been opened.
    drop(store);
    let store = image.open(LATER_BOOT);
    assert_eq!(state(&store, 2), closed(40));
}

#[test]
fn a_power_cut_takes_what_was_not_flushed_and_shows_nothing_old() {
    let image = Image::new();
    {
        let store = image.open(BOOT);
        fill(&store, 2, 3, 1);
        fill(&store, 3, 3, 1);
        fill(&store, 4, 3, 1);
        flush(&store);
        fill(&store, 2, 6, 2); // (over the first blocks too, as no device does: they are then what was written last)
        reset(&store, &[3]);
        fill(&store, 3, 1, 3);
        finish(&store, 4, full(24));
    }
    let store = image.open(LATER_BOOT);
    assert_eq!(store.info().unwrap().last_use, LastUse::PowerLost);
    assert_eq!([2, 3, 4].map(|zone| state(&store, zone)), [closed(24), ZoneState::EMPTY, full(24)]);
    assert_eq!(content(&store, 2, 6 * 4096)[3 * 4096..], [0; 3 * 4096]);
    assert_eq!(content(&store, 3, 3 * 4096), [0; 3 * 4096]);
    assert_eq!(content(&store, 4, 3 * 4096), [1; 3 * 4096]);
}

#[test]
fn a_reset_gives_space_back() {
    let image = Image::new();
    let store = image.open(BOOT);
    let blocks = || fs::metadata(&image.path).unwrap().blocks() * 512;
    let empty = blocks();
    for zone in 2..10 {
        fill(&store, zone, 48, 7);
    }
    flush(&store);
    // The file system may need some for its own records.
    let taken = |zones: u64| zones * 48 * 4096..=zones * 48 * 4096 + (64 << 10);
    assert!(taken(8).contains(&(blocks() - empty)), "{}", blocks() - empty);
    assert_eq!(store.allocated_bytes().unwrap(), blocks());
    reset(&store, &[9, 4, 3]);
    assert!(taken(5).contains(&(blocks() - empty)), "{}", blocks() - empty);
    assert_eq!(content(&store, 4, ZONE_LEN), vec![0; ZONE_LEN]);
    reset(&store, &(2..20).collect::<Vec<_>>());
    assert!(taken(0).contains(&(blocks() - empty)), "{}", blocks() - empty);
}

#[test]
fn only_named_zones_are_committed_without_a_flush() {
    // Two zones share a page. The reset of one must not carry the other's write pointer: its data is not synced.
    let medium = SimMedium::new(3);
    ImageStore::create_on(&*medium, geometry()).unwrap();
    let options = |boot| OpenOptions { read_only: false, boot_id: Some(boot) };
    let store = ImageStore::open_on(medium.clone(), options(BOOT)).unwrap();
    for zone in 2..6 {
        fill(&store, zone, 1, 1);
    }
    flush(&store);
    fill(&store, 2, 9, 2);
    store.publish(5, full(8));
    let syncs = medium.syncs();
    reset(&store, &[4]);
    assert_eq!(medium.syncs() - syncs, 1, "a reset needs one sync, for its page");
    finish(&store, 3, full(8));
    assert_eq!(medium.syncs() - syncs, 3, "a finish needs one for the data and one for the page");
    let after = ImageStore::open_on(medium.synced_copy(), options(LATER_BOOT)).unwrap();
    assert_eq!(
        [2, 3, 4, 5].map(|zone| state(&after, zone)),
        [closed(8), full(8), ZoneState::EMPTY, closed(8)]
    );
}

#[test]
fn a_flush_syncs_no_more_than_it_must() {
    let medium = SimMedium::new(3);
    ImageStore::create_on(&*medium, geometry()).unwrap();
    let store =
        ImageStore::open_on(medium.clone(), OpenOptions { read_only: false, boot_id: Some(BOOT) }).unwrap();
    let syncs_of = |what: &dyn Fn()| {
        let before = medium.syncs();
        what();
        medium.syncs() - before
    };
    assert_eq!(syncs_of(&|| flush(&store)), 1, "nothing published: the data only");
    store.publish(2, open(0));
    assert_eq!(syncs_of(&|| flush(&store)), 1, "an open empty zone is empty to a restart");
    fill(&store, 2, 1, 1);
    assert_eq!(syncs_of(&|| flush(&store)), 2);
    assert_eq!(syncs_of(&|| flush(&store)), 1);
    store.publish(3, open(0));
    assert_eq!(syncs_of(&|| reset(&store, &[3])), 0, "the page says empty already");
    store.publish(4, ZoneState::EMPTY);
    store.publish(5, full(0));
    store.publish(2, ZoneState::EMPTY);
    let all = || {
        let work = Commit { flush: true, finished: &[5], reset: &[4, 2], ..Commit::default() };
        store.commit(&work).durable.unwrap();
    };
    assert_eq!(syncs_of(&all), 2, "one for the data, one for the pages");
    assert_eq!(syncs_of(&|| assert!(store.commit(&Commit::default()).durable.is_ok())), 0);
}

#[test]
fn bad_commits_are_refused_and_change_nothing() {
    let image = Image::new();
    let store = image.open(BOOT);
    fill(&store, 2, 1, 1);
    flush(&store);
    let refused = |finished: &[u32], reset: &[u32]| {
        store.commit(&Commit { finished, reset, ..Commit::default() }).durable.unwrap_err()
    };
    assert!(matches!(refused(&[], &[20]), StoreError::NoSuchZone { zone: 20, zone_count: 20, .. }));
    assert!(matches!(refused(&[u32::MAX], &[]), StoreError::NoSuchZone { zone: u32::MAX, .. }));
    assert!(matches!(refused(&[], &[2]), StoreError::NotEmpty { zone: 2, .. }));
    assert!(
        matches!(refused(&[], &[0]), StoreError::NotEmpty { zone: 0, .. }),
        "a conventional zone has no reset"
    );
    store.publish(20, open(8));
    store.publish(u32::MAX, open(8));
    flush(&store);
    assert_eq!(content(&store, 2, 4096), [1; 4096]);
    assert_eq!(state(&store, 2), closed(8));
}

#[test]
fn an_image_is_written_by_one_and_read_by_many() {
    let image = Image::new();
    let in_use = |result: Result<ImageStore, StoreError>| match result {
        Err(StoreError::InUse { name }) => assert_eq!(name, image.path.display().to_string()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened twice"),
    };
    let options = |read_only| OpenOptions { read_only, boot_id: Some(BOOT) };
    {
        let writer = image.open(BOOT);
        in_use(ImageStore::open(&image.path, options(false)));
        in_use(ImageStore::open(&image.path, options(true)));
        assert!(matches!(ImageStore::inspect(&image.path), Err(StoreError::InUse { .. })));
        let overwrite = CreateOptions { overwrite: true, ..CreateOptions::default() };
        assert!(matches!(
            ImageStore::create(&image.path, geometry(), overwrite),
            Err(StoreError::InUse { .. })
        ));
        // A lane keeps the lock: its writes may still be under way.
        let lane = lane(&writer);
        drop(writer);
        in_use(ImageStore::open(&image.path, options(false)));
        drop(lane);
    }
    let readers = [0, 1].map(|_| ImageStore::open(&image.path, options(true)).unwrap());
    in_use(ImageStore::open(&image.path, options(false)));
    ImageStore::inspect(&image.path).unwrap();
    drop(readers);
    image.open(BOOT);
}

#[test]
fn a_reader_changes_nothing_even_after_a_kill() {
    let image = Image::new();
    {
        let store = image.open(BOOT);
        fill(&store, 2, 5, 0xaa);
    }
    let before = fs::read(&image.path).unwrap();
    let mtime = fs::metadata(&image.path).unwrap().mtime_nsec();
    for (boot, expected) in [(BOOT, closed(40)), (LATER_BOOT, ZoneState::EMPTY)] {
        let store =
            ImageStore::open(&image.path, OpenOptions { read_only: true, boot_id: Some(boot) }).unwrap();
        assert!(store.read_only());
        assert_eq!(state(&store, 2), expected);
        store.publish(2, full(40));
        flush(&store);
        let refused = store.commit(&Commit { finished: &[2], ..Commit::default() }).durable.unwrap_err();
        assert!(matches!(refused, StoreError::ReadOnly { .. }));
        assert!(lane(&store).write_now(0, &[1; 512]).is_err());
        store.close().unwrap();
    }
    assert!(fs::read(&image.path).unwrap() == before);
    assert_eq!(fs::metadata(&image.path).unwrap().mtime_nsec(), mtime);
    let store = image.open(BOOT);
    assert_eq!((store.info().unwrap().last_use, state(&store, 2)), (LastUse::Killed, closed(40)));
}

#[test]
fn creating_refuses_what_exists_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let path = directory.path().join("disk.zbd");
    let create = |geometry, overwrite| {
        ImageStore::create(&path, geometry, CreateOptions { overwrite, ..CreateOptions::default() })
    };
    fs::write(&path, "something dear").unwrap();
    assert!(matches!(create(geometry(), false), Err(StoreError::Exists { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"something dear");
    let first = create(geometry(), true).unwrap();
    let second = create(geometry(), true).unwrap();
    assert_ne!(first.uuid, second.uuid);
    assert_eq!(ImageStore::inspect(&path).unwrap().uuid, second.uuid);
    assert_eq!(names(), ["disk.zbd"]);

    // Longer than a file can be: before and behind the limit of the file system.
    let long = |capacity_sectors| {
        Geometry::new(GeometryConfig {
            capacity_sectors,
            zone_sectors: 1 << 31,
            zone_capacity_sectors: 1 << 31,
            ..*geometry().config()
        })
        .unwrap()
    };
    assert!(create(long(1 << 53), true).is_err());
    assert!(matches!(
        create(long(1 << 55 >> 1), true),
        Err(StoreError::Image { fault: ImageFault::TooLong { .. }, .. })
    ));
    assert_eq!(ImageStore::inspect(&path).unwrap().uuid, second.uuid, "the old one is still there");
    assert_eq!(names(), ["disk.zbd"]);
    fs::remove_file(&path).unwrap();
    assert!(create(long(1 << 53), false).is_err());
    assert!(
        ImageStore::create(
            Path::new("/"),
            geometry(),
            CreateOptions { overwrite: true, ..CreateOptions::default() }
        )
        .is_err()
    );
    assert!(
        ImageStore::create(&directory.path().join("no/such"), geometry(), CreateOptions::default()).is_err()
    );
    assert!(names().is_empty());
}

#[test]
fn a_failed_sync_is_final_and_goes_back_to_the_last_flush() {
    let medium = SimMedium::new(9);
    ImageStore::create_on(&*medium, geometry()).unwrap();
    let open = || {
        ImageStore::open_on(medium.clone(), OpenOptions { read_only: false, boot_id: Some(BOOT) }).unwrap()
    };
    let store = open();
    fill(&store, 2, 1, 1);
    flush(&store);
    fill(&store, 2, 2, 1);
    medium.fail_sync_after(0);
    let commit = || store.commit(&Commit { flush: true, ..Commit::default() }).durable;
    assert!(matches!(commit(), Err(StoreError::Io { .. })));
    for _ in 0..2 {
        let later = commit().unwrap_err();
        assert!(matches!(later, StoreError::SyncFailed { .. }));
        assert!(later.to_string().contains("Input/output error"), "{later}");
    }
    assert!(store.close().is_err());
    assert_eq!(state(&store, 2), closed(16), "until then the disk goes on");
    drop(store);
    // The data of the second block may be gone: the live area is not believed although nothing has been booted.
    let store = open();
    assert_eq!(store.info().unwrap().last_use, LastUse::MediumFailed);
    assert_eq!(state(&store, 2), closed(8));
    assert_eq!(content(&store, 2, 8192), [vec![1; 4096], vec![0; 4096]].concat());
    fill(&store, 2, 3, 1);
    store.close().unwrap();
}

#[test]
fn a_host_that_can_not_punch_gets_zeros() {
    let medium = SimMedium::new(9);
    ImageStore::create_on(&*medium, geometry()).unwrap();
    medium.forbid_punching();
    let open = |boot| {
        ImageStore::open_on(medium.clone(), OpenOptions { read_only: false, boot_id: Some(boot) }).unwrap()
    };
    let store = open(BOOT);
    fill(&store, 2, 3, 1);
    fill(&store, 3, 3, 1);
    reset(&store, &[2]);
    assert_eq!(content(&store, 2, 3 * 4096), [0; 3 * 4096]);
    assert_eq!(content(&store, 3, 3 * 4096), [1; 3 * 4096]);
    drop(store);
    let store = open(LATER_BOOT);
    assert_eq!(content(&store, 3, 3 * 4096), [0; 3 * 4096]);
}

#[test]
fn many_zones_take_many_pages() {
    // 1,200 zones: three pages.
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 1200 * 8,
        zone_sectors: 8,
        zone_capacity_sectors: 8,
        conventional_zones: 0,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 0,
        write_granularity_bytes: 512,
    })
    .unwrap();
    let image = Image::with(geometry);
    let expected = |zone: u32| match zone % 3 {
        0 => ZoneState::EMPTY,
        1 => closed(1 + zone % 7),
        _ => full(zone % 8),
    };
    let store = image.open(BOOT);
    for zone in 0..1200 {
        store.publish(zone, expected(zone));
    }
    flush(&store);
    drop(store);
    let store = image.open(LATER_BOOT);
    assert_eq!(store.initial_states(), (0..1200).map(expected).collect::<Vec<_>>());
    let info = store.info().unwrap();
    assert_eq!((info.open_zones, info.active_zones), (0, 400));
    store.close().unwrap();
}

#[test]
fn a_zone_can_be_read_only_or_offline() {
    let image = Image::new();
    let states = [
        ZoneState { condition: Condition::ReadOnly, wp_sectors: 8 },
        ZoneState { condition: Condition::Offline, wp_sectors: 0 },
    ];
    let store = image.open(BOOT);
    fill(&store, 2, 1, 1);
    store.publish(2, states[0]);
    store.publish(3, states[1]);
    flush(&store);
    drop(store);
    let store = image.open(LATER_BOOT);
    assert_eq!([2, 3].map(|zone| state(&store, zone)), states);
    assert_eq!(content(&store, 2, 4096), [1; 4096]);
}

#[test]
fn raw_disks_are_plain_files_and_no_images() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raw");
    let open = || RawStore::open(&path, false);
    fs::write(&path, vec![1; 1024]).unwrap();
    {
        let store = open().unwrap();
        assert_eq!(
            (store.capacity_bytes(), store.geometry(), store.initial_states()),
            (1024, None, Vec::new())
        );
        assert!(store.identity().serial.iter().all(u8::is_ascii_hexdigit));
        assert!(matches!(open(), Err(StoreError::InUse { .. })));
        flush(&store);
        let refused = store.commit(&Commit { reset: &[0], ..Commit::default() }).durable.unwrap_err();
        assert!(matches!(refused, StoreError::NoSuchZone { zone: 0, zone_count: 0, .. }));
        store.publish(0, ZoneState::EMPTY);
        store.close().unwrap();
    }
    for len in [0usize, 511, 1025] {
        fs::write(&path, vec![1; len]).unwrap();
        assert!(matches!(open(), Err(StoreError::RawLength { len_bytes, .. }) if len_bytes == len as u64));
    }
    assert!(matches!(
        RawStore::open(directory.path(), true),
        Err(StoreError::RawKind { found: "a directory", .. })
    ));
    let image = Image::new();
    assert!(matches!(RawStore::open(&image.path, false), Err(StoreError::RawImage { .. })));
    let mut bytes = fs::read(&image.path).unwrap();
    bytes[..512].fill(0);
    fs::write(&image.path, &bytes).unwrap();
    assert!(
        matches!(RawStore::open(&image.path, true), Err(StoreError::RawImage { .. })),
        "its other superblock says so"
    );
}

#[test]
fn memory_forgets_what_is_reset() {
    let store = RamStore::new(geometry()).unwrap();
    assert_eq!(store.initial_states(), (0..20).map(|z| ZoneState::new(&geometry(), z)).collect::<Vec<_>>());
    for zone in 2..5 {
        fill(&store, zone, 48, 9);
    }
    finish(&store, 4, full(384));
    reset(&store, &[3]);
    assert_eq!(
        [2, 3, 4].map(|zone| state(&store, zone)),
        [closed(384).after_restart(&geometry(), 2), ZoneState::EMPTY, full(384)]
    );
    assert_eq!(content(&store, 2, 48 * 4096), vec![9; 48 * 4096]);
    assert_eq!(content(&store, 3, ZONE_LEN), vec![0; ZONE_LEN]);
    assert_eq!(content(&store, 4, 48 * 4096), vec![9; 48 * 4096]);
    store.close().unwrap();
    assert!(matches!(RamStore::plain(u64::MAX / 2), Err(StoreError::Memory { .. })));
}

#[test]
fn zones_in_memory_need_not_be_whole_pages() {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 10 * 13,
        zone_sectors: 13,
        zone_capacity_sectors: 13,
        conventional_zones: 0,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 0,
        write_granularity_bytes: 512,
    })
    .unwrap();
    let store = RamStore::new(geometry).unwrap();
    let mut lane = lane(&store);
    let all = 130 * 512;
    for zone in 0..10u32 {
        lane.write_now(0, &vec![7; all]).unwrap();
        reset(&store, &[zone]);
        let mut expected = vec![7; all];
        expected[zone as usize * 13 * 512..][..13 * 512].fill(0);
        assert!(lane.read_now(0, all).unwrap() == expected, "zone {zone}");
    }
}

#[test]
fn a_store_is_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<ImageStore>();
    shared::<RamStore>();
    shared::<RawStore>();
    shared::<Arc<dyn Store>>();
}
