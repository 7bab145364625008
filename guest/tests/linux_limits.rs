//! What Linux makes of disks that the specification allows and it does not like: docs/interop.md, "Guest-side limits". The same in a
//! User-mode Linux and in Debian's newer kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use common::{OrFail, guest, qemu_guest, succeed};
use virtio_zbd_guest::{Geometry, Guest, ServedDisk};

/// Boots a guest with all of the disks. Gives back the lines of the kernel's log about disks, and for each disk that came up its
/// name, zones and size in sectors.
fn look_at(guest: Guest, disks: &[ServedDisk]) -> (String, Vec<String>) {
    let guest = disks.iter().fold(guest, |guest, disk| guest.disk(disk.socket())).allow_missing_disks();
    let seen = succeed(
        &guest,
        r#"dmesg | grep -E 'virtio_blk|vd[a-z]: ' || true
        echo disks
        cd /sys/block
        for disk in vd?; do
            [ -e $disk ] || continue
            echo $(cat $disk/queue/zoned $disk/queue/nr_zones $disk/size)
        done"#,
    );
    let (log, disks) = seen.split_once("disks\n").unwrap();
    (log.to_owned(), disks.lines().map(str::to_owned).collect())
}

fn serve(geometry: &Geometry) -> ServedDisk {
    ServedDisk::ram(geometry).or_fail("no disk")
}

/// L4, L5, L7: disks that Linux does not take, with its words, and one beside them that it does.
#[test]
fn what_linux_refuses() {
    let disks = [
        serve(&Geometry::new("96M", "3M")),
        serve(&Geometry::new("1G", "16M").max_append("0")),
        // Blocks that are longer than a page are new to Linux.
        serve(&Geometry::new("1G", "16M").block_size(65536)),
        serve(&Geometry::new("1G", "16M").block_size(512).max_append("32K")),
        serve(&Geometry::new("1G", "16M").zone_capacity("12M,16M")),
        // To Linux a regular disk (L2).
        serve(&Geometry::new("1G", "16M").set("--zoned", "host-aware").max_open(0).max_active(0)),
    ];
    for (guest, taken) in [(guest(), 1), (qemu_guest(), 2)] {
        let (log, found) = look_at(guest, &disks);
        assert!(log.contains(": zoned device with non power of two zone size 6144"), "{log}");
        assert!(log.contains(": zero max_append_sectors reported"), "{log}");
        assert!(log.contains(": Invalid variable zone capacity"), "{log}");
        let mut expected = vec!["host-managed 64 2097152"; taken];
        expected.push("none 0 2097152");
        assert_eq!(found, expected, "{log}");
        assert_eq!(log.contains("probe with driver virtio_blk failed with error -22"), taken == 1, "{log}");
    }
}

/// What it takes: a last zone that is shorter than the others, limits of 1, zones of 1 MiB and of 1 GiB.
#[test]
fn what_linux_takes() {
    let disks = [
        serve(&Geometry::new("1000M", "64M")),
        serve(&Geometry::new("1000M", "64M").zone_capacity("48M").max_open(1).max_active(1)),
        serve(&Geometry::new("64M", "1M").block_size(512)),
        serve(&Geometry::new("8G", "1G").conventional(1)),
    ];
    let expected = [
        "host-managed 16 2048000",
        "host-managed 16 2048000",
        "host-managed 64 131072",
        "host-managed 8 16777216",
    ];
    for guest in [guest(), qemu_guest()] {
        let (log, found) = look_at(guest, &disks);
        assert_eq!(found, expected, "{log}");
    }
}
