//! Images of disks whose zones are of several kinds and capacities.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use virtio_zbd_store::{
    CheckOptions, CreateOptions, ImageFault, ImageStore, OpenOptions, Opens, Severity, Store, StoreError,
};
use virtio_zbd_zones::{
    Condition, Geometry, GeometryConfig, GeometryError, Model, ZoneKind, ZoneLayout, ZoneRun, ZoneState,
};

const ZONE: u32 = 128;

fn config(zones: u64) -> GeometryConfig {
    GeometryConfig {
        capacity_sectors: zones * u64::from(ZONE) - 40,
        zone_sectors: ZONE,
        zone_capacity_sectors: ZONE,
        conventional_zones: 0,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 8,
        write_granularity_bytes: 4096,
    }
}

fn geometry(model: Model, head: &[ZoneRun], cycle: &[ZoneRun]) -> Geometry {
    let layout = ZoneLayout { model, head: head.to_vec(), cycle: cycle.to_vec() };
    Geometry::with_layout(config(1000), layout).unwrap()
}

fn mixed() -> Geometry {
    let head = [ZoneRun::required(2, 64), ZoneRun::conventional(3), ZoneRun::preferred(1, ZONE)];
    let cycle = [ZoneRun::required(1, 48), ZoneRun::required(2, ZONE), ZoneRun::conventional(1)];
    geometry(Model::HostManaged, &head, &cycle)
}

fn aware() -> Geometry {
    geometry(Model::HostAware, &[ZoneRun::conventional(1)], &[ZoneRun::preferred(1, ZONE)])
}

fn make(path: &Path, geometry: &Geometry) {
    ImageStore::create(path, geometry.clone(), CreateOptions { overwrite: true, ..CreateOptions::default() })
        .unwrap();
}

fn open(path: &Path) -> Result<ImageStore, StoreError> {
    ImageStore::open(path, OpenOptions::default())
}

/// Changes bytes of both superblock copies and puts their checksums right.
fn patch(path: &Path, at: usize, bytes: &[u8]) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    for copy in [0, 4096] {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, copy).unwrap();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        block[12..16].fill(0);
        let sum = crc32c::crc32c(&block);
        block[12..16].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&block, copy).unwrap();
    }
}

#[test]
fn an_image_comes_back_with_each_zone_as_it_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.zbd");
    for geometry in [mixed(), aware()] {
        make(&path, &geometry);
        let info = ImageStore::inspect(&path).unwrap();
        assert_eq!(info.geometry, geometry);
        assert_eq!(info.features_incompat, 1, "an older program must leave it alone");
        let store = open(&path).unwrap();
        for (zone, state) in (0..).zip(store.initial_states()) {
            assert_eq!(state.condition == Condition::NotWp, geometry.kind(zone) == ZoneKind::Conventional);
        }
        let preferred = geometry.runs().find(|(_, kind, _)| *kind == ZoneKind::SequentialPreferred).unwrap();
        let zone = preferred.0.start;
        // No whole number of blocks: such a zone takes any write.
        let written = ZoneState { condition: Condition::Closed, wp_sectors: 77 };
        store.publish(zone, written);
        store.close().unwrap();
        drop(store);
        let info = ImageStore::inspect(&path).unwrap();
        assert_eq!(info.states[zone as usize], written);
        let report = ImageStore::check(&path, CheckOptions::default()).unwrap();
        let worst =
            report.findings.iter().filter(|found| found.severity > Severity::Note).collect::<Vec<_>>();
        assert!(worst.is_empty() && report.opens == Opens::Yes, "{worst:?}");
    }
}

#[test]
fn a_uniform_disk_needs_no_feature() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.zbd");
    let head = [ZoneRun::conventional(1), ZoneRun::conventional(1)];
    make(&path, &geometry(Model::HostManaged, &head, &[ZoneRun::required(3, 64)]));
    let info = ImageStore::inspect(&path).unwrap();
    assert_eq!(info.features_incompat, 0);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[184..4096].iter().all(|&byte| byte == 0), "as ever");
    let uniform = GeometryConfig { conventional_zones: 2, zone_capacity_sectors: 64, ..config(1000) };
    assert_eq!(info.geometry, Geometry::new(uniform).unwrap());
}

#[test]
fn a_layout_that_can_not_be_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.zbd");
    let geometry = mixed();
    let refused = |at: usize, word: u32| {
        make(&path, &geometry);
        patch(&path, at, &word.to_le_bytes());
        let before = fs::read(&path).unwrap();
        let report = ImageStore::check(&path, CheckOptions::default()).unwrap();
        assert!(matches!(report.opens, Opens::No(_)), "{at}: {:?}", report.opens);
        assert!(report.findings.iter().any(|found| found.severity == Severity::Fatal), "{at}");
        let Err(StoreError::Image { fault, .. }) = open(&path) else { panic!("{at} = {word} is taken") };
        assert_eq!(fs::read(&path).unwrap(), before, "a refused image is left alone");
        fault
    };
    assert_eq!(refused(184, 2), ImageFault::LayoutModel { found: 2 });
    assert_eq!(refused(184, 1), ImageFault::Geometry(GeometryError::HostAwareRequired));
    assert_eq!(refused(188, 254), ImageFault::LayoutRuns { head: 254, cycle: 3, most: 256 });
    assert_eq!(refused(192, u32::MAX), ImageFault::LayoutRuns { head: 3, cycle: u32::MAX, most: 256 });
    assert_eq!(refused(192, 0), ImageFault::Geometry(GeometryError::LayoutEmpty { what: "cycle" }));
    assert_eq!(refused(1024 + 4, 4), ImageFault::LayoutKind { number: 0, found: 4 });
    assert_eq!(refused(1024 + 12 + 4, 0), ImageFault::LayoutKind { number: 1, found: 0 });
    assert_eq!(
        refused(1024, 2000),
        ImageFault::Geometry(GeometryError::LayoutTooLong { layout_zones: 2004, zone_count: 1000 })
    );
    assert!(matches!(refused(1024 + 8, 136), ImageFault::Geometry(GeometryError::ZoneCapacity { .. })));
    assert!(matches!(refused(1024 + 8, 9), ImageFault::Geometry(GeometryError::Unaligned { .. })));
    // What the older fields say must fit.
    assert!(matches!(refused(96, 1), ImageFault::Value { expected: 0, found: 1, .. }));
    assert!(matches!(refused(92, 64), ImageFault::Value { expected: 128, found: 64, .. }));
    // An older program knows no feature, and we no other one.
    assert_eq!(refused(72, 5), ImageFault::Features { unknown: 4 });
    // Without the feature it is a uniform disk, and the states of zones 2 to 4 are not those of one.
    assert!(matches!(refused(72, 0), ImageFault::ZoneState { .. }));
}

#[test]
fn one_damaged_copy_is_repaired_from_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.zbd");
    make(&path, &mixed());
    let good = fs::read(&path).unwrap();
    for (copy, at) in [(0, 1024), (4096, 1036), (0, 188), (4096, 184)] {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0x5a], copy + at).unwrap();
        assert_eq!(ImageStore::inspect(&path).unwrap().geometry, mixed());
        open(&path).unwrap().close().unwrap();
        let mended = fs::read(&path).unwrap();
        assert_eq!(mended[184..4096], good[184..4096]);
        assert_eq!(mended[4096 + 184..8192], good[184..4096]);
    }
}

#[test]
fn more_runs_than_there_is_room_for_make_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.zbd");
    let run = |zone: u32| ZoneRun::required(1, 8 + 8 * (zone % 2));
    let head: Vec<_> = (0..256).map(run).collect();
    let cycle = [ZoneRun::required(1, ZONE)];
    make(&path, &geometry(Model::HostManaged, &head[..255], &cycle));
    fs::remove_file(&path).unwrap();
    let refused =
        ImageStore::create(&path, geometry(Model::HostManaged, &head, &cycle), CreateOptions::default());
    let Err(StoreError::Image { fault, .. }) = refused else { panic!("it was made") };
    assert_eq!(fault, ImageFault::TooManyRuns { runs: 257, most: 256 });
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}
