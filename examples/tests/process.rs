//! The example for a process does what it says, on a disk that is served here.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;
use std::sync::Arc;

use virtio_zbd_store::RamStore;
use virtio_zbd_zones::{Geometry, GeometryConfig};
use vzbd::{ServeOptions, ServedDisk};

#[test]
fn appends_reads_back_and_resets() {
    let place = tempfile::tempdir().unwrap();
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 8 * 2048,
        zone_sectors: 2048,
        zone_capacity_sectors: 1536,
        conventional_zones: 1,
        max_open_zones: 3,
        max_active_zones: 4,
        max_append_sectors: 128,
        write_granularity_bytes: 4096,
    });
    let store = Arc::new(RamStore::new(geometry.unwrap()).unwrap());
    let disk = ServedDisk::start(store, ServeOptions::default(), &place.path().join("disk.sock")).unwrap();

    let output = Command::new(env!("CARGO_BIN_EXE_process")).arg(disk.socket()).output().unwrap();
    let (said, failed) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{said}{failed}");

    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("8 zones of 2048 sectors"));
    assert_eq!(lines.next(), Some("zone at 0: Conventional, NotWp"));
    assert_eq!(lines.next(), Some("appended at sector 2048"));
    // The four come in any order, and land in any order.
    let mut appended: Vec<&str> = lines.by_ref().take(4).collect();
    appended.sort_unstable();
    let letters: Vec<&str> = appended.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let mut sectors: Vec<&str> = appended.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
    sectors.sort_unstable();
    assert_eq!(letters, ["b", "c", "d", "e"]);
    assert_eq!(sectors, ["2056", "2064", "2072", "2080"]);
    assert_eq!(lines.next(), Some("read back: a"));
    assert_eq!(lines.next(), Some("the write pointer is at sector Some(2088)"));
    assert_eq!(lines.next(), None);
    disk.stop().unwrap();
}
