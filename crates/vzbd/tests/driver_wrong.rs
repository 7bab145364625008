//! The list itself: on a disk that is not what it should be it must fail, and say where.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod driver;

use std::sync::Arc;

use driver::{failed, list};
use virtio_zbd_checks::{Discarded, MakesRoom, Peer, Refusals};
use virtio_zbd_driver::Options;
use virtio_zbd_store::{RamStore, Store};
use virtio_zbd_zones::{Geometry, GeometryConfig};
use vzbd::{ServeOptions, ServedDisk};

const SHAPE: GeometryConfig = GeometryConfig {
    capacity_sectors: 16 * 512,
    zone_sectors: 512,
    zone_capacity_sectors: 256,
    conventional_zones: 2,
    max_open_zones: 3,
    max_active_zones: 5,
    max_append_sectors: 64,
    write_granularity_bytes: 4096,
};

fn failures(store: Arc<dyn Store>, peer: &Peer) -> Vec<&'static str> {
    let place = tempfile::tempdir().unwrap();
    let disk = ServedDisk::start(store, ServeOptions::default(), &place.path().join("disk.sock")).unwrap();
    let failed = failed(&list(disk.socket(), Options::default(), peer));
    disk.stop().unwrap();
    failed
}

fn zoned(shape: GeometryConfig) -> Arc<dyn Store> {
    Arc::new(RamStore::new(Geometry::new(shape).unwrap()).unwrap())
}

#[test]
fn a_disk_of_the_other_kind() {
    const KIND: [&str; 1] = ["plain: the disk is what it should be"];
    assert_eq!(failures(zoned(SHAPE), &Peer { expected: Peer::PLAIN.expected, ..Peer::EXACT }), KIND);
    let plain = Arc::new(RamStore::plain(16 << 20).unwrap());
    assert_eq!(failures(plain, &Peer { discarded: Discarded::Zeros, ..Peer::EXACT }), KIND);
}

/// QEMU's refusals are not ours: every check that meets one says so.
#[test]
fn a_disk_with_other_refusals() {
    let found = failures(zoned(SHAPE), &Peer { refusals: Refusals::Qemu, ..Peer::EXACT });
    let expected = [
        "zoned: a write in every state (V20)",
        "zoned: writes beside the write pointer (V26)",
        "zoned: a zone written full, and beyond its capacity (V22)",
        "zoned: the last zone, a runt or not",
        "zoned: the open limit, explicitly (V7, V15)",
        "zoned: the active limit (V8, V15)",
        "random: requests beside a model",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_disk_that_makes_room_in_another_way() {
    let found = failures(zoned(SHAPE), &Peer { makes_room: MakesRoom::Never, ..Peer::EXACT });
    assert_eq!(found, ["zoned: the open limit, implicitly (V27)", "random: requests beside a model"]);
}

#[test]
fn other_known_differences_than_those_that_are_there() {
    let peer = Peer { write_zeroes_on_zones: true, ..Peer::EXACT };
    assert_eq!(failures(zoned(SHAPE), &peer), ["plain: the disk is what it should be"]);
    let peer = Peer { reads_across_zones: true, ..Peer::EXACT };
    let expected = [
        "zoned: reads across two zones (V25)",
        "zoned: from the last conventional zone into a sequential one (V25)",
    ];
    assert_eq!(failures(zoned(SHAPE), &peer), expected);
    let peer = Peer { appends_behind_full_zones: true, ..Peer::EXACT };
    let expected = ["zoned: an append to a finished zone"];
    assert_eq!(failures(zoned(SHAPE), &peer), expected);
}
