//! Our driver on our device, in this process: the whole test list on disks of all shapes.
//!
//! `DRIVER_SEED=n` repeats the random parts of a run, which print it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod driver;

use std::path::Path;
use std::sync::Arc;

use driver::{assert_passed, attach, list, seed};
use virtio_zbd_checks::{Peer, Verdict};
use virtio_zbd_driver::Options;
use virtio_zbd_store::{CreateOptions, EngineChoice, ImageStore, OpenOptions, RamStore, RawStore, Store};
use virtio_zbd_zones::{Geometry, GeometryConfig};
use vzbd::{ServeOptions, ServedDisk};

/// 17 zones of 1 MiB, the last a runt; 768 KiB capacity, 2 conventional, 4 open, 6 active, 4 KiB blocks.
const SHAPE: GeometryConfig = GeometryConfig {
    capacity_sectors: 16 * 2048 + 512,
    zone_sectors: 2048,
    zone_capacity_sectors: 1536,
    conventional_zones: 2,
    max_open_zones: 4,
    max_active_zones: 6,
    max_append_sectors: 256,
    write_granularity_bytes: 4096,
};

/// What a queue of 128 entries makes longer than these disks.
const TOO_LONG: &str = "plain: requests that are too long";

/// What no zoned disk of ours can be asked.
const ZONED: [&str; 9] = [
    "plain: a read-only disk",
    "plain: discard",
    TOO_LONG,
    "plain: write zeroes",
    "plain: write zeroes and unmap",
    "plain: secure erase",
    "plain: zone commands on a disk without zones",
    "zoned: writes of less than the granularity (V26)",
    "zoned: secure erase resets whole zones (V32)",
];

/// What needs conventional zones.
const CONVENTIONAL: [&str; 7] = [
    "plain: reads and writes of all sizes",
    "plain: reads and writes at random places",
    "plain: long transfers",
    "plain: many requests on all queues",
    "plain: calls between requests in flight",
    "zoned: conventional zones are not managed (V13, V14)",
    "zoned: from the last conventional zone into a sequential one (V25)",
];

/// What needs APPEND.
const APPEND: [&str; 7] = [
    "zoned: an append in every state (V20)",
    "zoned: an append to a finished zone",
    "zoned: appends one by one (V23)",
    "zoned: many appends in flight on all queues (V23)",
    "zoned: appends to several zones at a time",
    "zoned: appends in flight among reads and flushes",
    "zoned: an append beyond the capacity (V22)",
];

fn serve(store: Arc<dyn Store>, queues: u16, engine: EngineChoice, with: impl FnOnce(&Path)) {
    let place = tempfile::tempdir().unwrap();
    let options = ServeOptions { queues, engine, ..ServeOptions::default() };
    let disk = ServedDisk::start(store, options, &place.path().join("disk.sock")).unwrap();
    with(disk.socket());
    disk.stop().unwrap();
}

fn options(queues: u16) -> Options {
    Options { queues, ..Options::default() }
}

/// The list on a disk in RAM of this shape.
#[track_caller]
fn ram(shape: GeometryConfig, queues: u16, not_here: &[&[&str]]) {
    let store = Arc::new(RamStore::new(Geometry::new(shape).unwrap()).unwrap());
    serve(store, queues, EngineChoice::Auto, |socket| {
        assert_passed(&list(socket, options(queues), &Peer::EXACT), &not_here.concat());
    });
}

/// The list on an image of this shape.
#[track_caller]
fn image(shape: GeometryConfig, queues: u16, engine: EngineChoice, not_here: &[&[&str]]) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.zbd");
    ImageStore::create(&path, Geometry::new(shape).unwrap(), CreateOptions::default()).unwrap();
    let store = Arc::new(ImageStore::open(&path, OpenOptions::default()).unwrap());
    serve(store, queues, engine, |socket| {
        assert_passed(&list(socket, options(queues), &Peer::EXACT), &not_here.concat());
    });
}

#[test]
fn a_disk_in_ram() {
    ram(SHAPE, 1, &[&ZONED]);
    ram(SHAPE, 4, &[&ZONED]);
}

#[test]
fn an_image_with_io_uring_where_it_is_allowed() {
    image(SHAPE, 4, EngineChoice::Auto, &[&ZONED]);
}

#[test]
fn an_image_with_pread_and_pwrite() {
    image(SHAPE, 1, EngineChoice::Sync, &[&ZONED]);
}

#[test]
fn without_conventional_zones() {
    ram(GeometryConfig { conventional_zones: 0, ..SHAPE }, 2, &[&ZONED, &CONVENTIONAL]);
}

#[test]
fn a_capacity_of_the_whole_zone() {
    ram(GeometryConfig { zone_capacity_sectors: 2048, ..SHAPE }, 2, &[&ZONED]);
}

#[test]
fn a_zone_size_that_is_no_power_of_two() {
    let shape = GeometryConfig {
        capacity_sectors: 14 * 1208 + 40,
        zone_sectors: 1208,
        zone_capacity_sectors: 1000,
        ..SHAPE
    };
    ram(shape, 2, &[&ZONED]);
    image(shape, 2, EngineChoice::Auto, &[&ZONED]);
}

#[test]
fn no_runt() {
    ram(GeometryConfig { capacity_sectors: 16 * 2048, ..SHAPE }, 2, &[&ZONED]);
}

#[test]
fn small_limits() {
    let appends_to_several = ["zoned: appends to several zones at a time"];
    for (max_open_zones, max_active_zones) in [(1, 1), (1, 2), (2, 2), (3, 0)] {
        let shape = GeometryConfig { max_open_zones, max_active_zones, ..SHAPE };
        let mut not_here = ZONED.to_vec();
        if max_open_zones == 1 {
            not_here.extend(appends_to_several);
        }
        if max_active_zones == 0 {
            not_here.push("zoned: the active limit (V8, V15)");
        }
        ram(shape, 2, &[&not_here]);
    }
}

#[test]
fn no_limits() {
    let shape = GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..SHAPE };
    let limits = [
        "zoned: the open limit, explicitly (V7, V15)",
        "zoned: the open limit, implicitly (V27)",
        "zoned: the active limit (V8, V15)",
    ];
    ram(shape, 2, &[&ZONED, &limits]);
}

#[test]
fn b5_no_append() {
    ram(GeometryConfig { max_append_sectors: 0, ..SHAPE }, 2, &[&ZONED, &APPEND]);
}

#[test]
fn blocks_of_512_bytes() {
    ram(GeometryConfig { write_granularity_bytes: 512, max_append_sectors: 7, ..SHAPE }, 2, &[&ZONED]);
}

#[test]
fn a_shallow_queue() {
    let store = Arc::new(RamStore::new(Geometry::new(SHAPE).unwrap()).unwrap());
    serve(store, 3, EngineChoice::Auto, |socket| {
        let options = Options { queues: 3, queue_depth: 8, ..Options::default() };
        let not_here: Vec<_> = ZONED.into_iter().filter(|check| *check != TOO_LONG).collect();
        assert_passed(&list(socket, options, &Peer::EXACT), &not_here);
    });
}

#[test]
fn a_read_only_disk() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.zbd");
    ImageStore::create(&path, Geometry::new(SHAPE).unwrap(), CreateOptions::default()).unwrap();
    let store = ImageStore::open(&path, OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    serve(Arc::new(store), 2, EngineChoice::Auto, |socket| {
        let lines = list(socket, options(2), &Peer::EXACT);
        let passed = lines.iter().filter(|line| matches!(line.verdict, Verdict::Passed(_)));
        let passed: Vec<_> = passed.map(|line| line.check).collect();
        assert!(driver::failed(&lines).is_empty());
        for check in [
            "plain: the disk is what it should be",
            "plain: id",
            "plain: flush",
            "plain: a read-only disk",
            "plain: the disk's last block",
            "plain: ranges beyond the disk",
            "plain: empty and misaligned transfers",
            "plain: queues filled to the brim",
            "zoned: a report of all zones",
            "zoned: reports from the middle, the last zone, beyond the disk",
        ] {
            assert!(passed.contains(&check), "{check}: {passed:#?}");
        }
    });
}

/// What no plain disk of ours can be asked.
const PLAIN: [&str; 4] = ["plain: a read-only disk", TOO_LONG, "plain: secure erase", "zoned: everything"];

#[test]
fn a_plain_disk() {
    let store = Arc::new(RamStore::plain(24 << 20).unwrap());
    serve(store, 4, EngineChoice::Auto, |socket| {
        let lines = list(socket, options(4), &Peer::EXACT_PLAIN);
        assert_passed(&lines, &PLAIN);
    });
}

#[test]
fn a_plain_file() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(24 << 20).unwrap();
    for engine in [EngineChoice::Auto, EngineChoice::Sync] {
        let store = Arc::new(RawStore::open(&path, false).unwrap());
        serve(store, 2, engine, |socket| {
            assert_passed(&list(socket, options(2), &Peer::EXACT_PLAIN), &PLAIN);
        });
    }
}

#[test]
fn a_plain_disk_with_blocks_of_4_kib() {
    let place = tempfile::tempdir().unwrap();
    let store = Arc::new(RamStore::plain(24 << 20).unwrap());
    let serve = ServeOptions { queues: 2, block_len_bytes: 4096, ..ServeOptions::default() };
    let disk = ServedDisk::start(store, serve, &place.path().join("disk.sock")).unwrap();
    assert_passed(&list(disk.socket(), options(2), &Peer::EXACT_PLAIN), &PLAIN);
    disk.stop().unwrap();
}

#[test]
fn a_read_only_plain_file() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(24 << 20).unwrap();
    serve(Arc::new(RawStore::open(&path, true).unwrap()), 2, EngineChoice::Auto, |socket| {
        let lines = list(socket, options(2), &Peer::EXACT_PLAIN);
        assert!(driver::failed(&lines).is_empty());
        assert!(lines.iter().any(|line| {
            line.check == "plain: a read-only disk" && matches!(line.verdict, Verdict::Passed(_))
        }));
    });
}

/// More zones than one request reports.
#[test]
fn many_zones() {
    let shape = GeometryConfig {
        capacity_sectors: 9000 * 128 + 8,
        zone_sectors: 128,
        zone_capacity_sectors: 120,
        conventional_zones: 100,
        max_append_sectors: 32,
        write_granularity_bytes: 512,
        ..SHAPE
    };
    ram(shape, 2, &[&ZONED]);
}

/// Disks that nobody thought of. `DRIVER_SHAPES=n` tries more of them.
#[test]
fn random_shapes() {
    let count = std::env::var("DRIVER_SHAPES").map_or(6, |count| count.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..count {
        let shape = random_shape(&mut random);
        let queues = random.u16(1..=4);
        let options = Options { queues, queue_depth: 1 << random.u16(2..=8), ..Options::default() };
        println!("{shape:?}, {options:?}");
        let store = Arc::new(RamStore::new(Geometry::new(shape).unwrap()).unwrap());
        serve(store, queues, EngineChoice::Auto, |socket| {
            let lines = driver::list_with_seed(socket, options, &Peer::EXACT, random.u64(..));
            assert_eq!(driver::failed(&lines), [""; 0]);
        });
    }
}

fn random_shape(random: &mut fastrand::Rng) -> GeometryConfig {
    let grain = 1 << random.u32(0..=4);
    let zone_sectors = grain * random.u32(1..=300);
    let zone_capacity_sectors = grain * random.u32(1..=zone_sectors / grain);
    let zones = random.u64(1..=40);
    let runt_sectors = u64::from(grain * random.u32(0..zone_sectors / grain));
    let max_open_zones = if random.bool() { random.u32(1..=8) } else { 0 };
    let max_active_zones = if random.bool() { max_open_zones + random.u32(0..=6) } else { 0 };
    GeometryConfig {
        capacity_sectors: u64::from(zone_sectors) * zones + runt_sectors,
        zone_sectors,
        zone_capacity_sectors,
        conventional_zones: random.u32(0..=u32::try_from(zones / 2).unwrap()),
        max_open_zones: if max_active_zones == 0 {
            max_open_zones
        } else {
            max_open_zones.min(max_active_zones)
        },
        max_active_zones,
        max_append_sectors: grain * random.u32(0..=zone_capacity_sectors / grain),
        write_granularity_bytes: grain * 512,
    }
}

/// `DRIVER_STEPS=n` makes it as long as wanted.
#[test]
fn many_random_requests() {
    let steps = std::env::var("DRIVER_STEPS").map_or(4000, |steps| steps.parse().unwrap());
    let store = Arc::new(RamStore::new(Geometry::new(SHAPE).unwrap()).unwrap());
    serve(store, 4, EngineChoice::Auto, |socket| {
        let mut disk = attach(socket, options(4)).unwrap();
        let seed = seed();
        let summary = virtio_zbd_checks::run_random(&mut disk, &Peer::EXACT, seed, steps, &mut |line| {
            println!("{line}")
        });
        assert_eq!((summary.passed, summary.failed), (1, 0));
    });
}
