//! Disks of odd shapes under Linux: those that it takes, and those that it refuses, each with its words. One guest for all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use common::{OrFail, guest, run, text};
use virtio_zbd_guest::{Geometry, ServedDisk};

/// What Linux makes of a disk.
enum Linux {
    /// A disk with zones.
    Zoned,
    /// A disk without.
    Regular,
    /// None, and this in the kernel's log.
    Refuses(&'static str),
}

#[test]
fn what_linux_takes_and_what_it_refuses() {
    let zones = |size: &'static str, zone: &'static str| Geometry::new(size, zone).max_open(4).max_active(6);
    // Each of another size, by which it is found.
    let cases = [
        // A runt, a capacity below the size, conventional zones in the middle, one zone open at a time.
        (
            zones("65M", "4M").zone_capacity("3M").set("--conventional", "0,5..7").max_open(1).max_active(1),
            133_120,
            Linux::Zoned,
        ),
        (zones("66M", "3M"), 135_168, Linux::Refuses("zoned device with non power of two zone size")),
        (
            zones("68M", "4M").zone_capacity("4M,2M"),
            139_264,
            Linux::Refuses("vdb: Invalid variable zone capacity"),
        ),
        (zones("72M", "4M").max_append("0"), 147_456, Linux::Refuses("zero max_append_sectors reported")),
        (
            Geometry::new("76M", "4M").set("--preferred", "3..5").set("--max-append", "512K"),
            155_648,
            Linux::Refuses("Invalid zone type 0x3 at sectors 24576"),
        ),
        (Geometry::new("80M", "4M").set("--zoned", "host-aware"), 163_840, Linux::Regular),
        (zones("84M", "4M").block_size(512), 172_032, Linux::Zoned),
        // Longer than a page of memory: newer kernels may take that.
        (
            zones("96M", "4M").block_size(65536).max_append("64K"),
            196_608,
            Linux::Refuses("Invalid logical block size (65536)"),
        ),
    ];
    let disks: Vec<ServedDisk> =
        cases.iter().map(|(geometry, ..)| ServedDisk::ram(geometry).or_fail("no disk")).collect();
    let guest = disks.iter().fold(guest(), |guest, disk| guest.disk(disk.socket())).allow_missing_disks();
    let script = r#"
        for disk in /sys/block/vd*; do
            echo "$(cat $disk/size) $(cat $disk/queue/zoned) $(basename $disk)"
        done
        # The first one is used: up to a capacity, and in its runt.
        set -e
        dd if=/dev/zero of=/dev/vda bs=1M count=3 seek=4 oflag=direct conv=notrunc status=none
        dd if=/dev/zero of=/dev/vda bs=1M count=1 seek=64 oflag=direct conv=notrunc status=none
        blkzone report /dev/vda
    "#;
    let output = run(&guest, script).or_fail("the guest");
    let (seen, log) = (text(&output.stdout), &output.kernel_log);
    assert!(output.status.success(), "{seen}\n{}\n{log}", text(&output.stderr));
    for (_, sectors, expected) in &cases {
        let found =
            seen.lines().find_map(|line| line.strip_prefix(&format!("{sectors} "))?.split(' ').next());
        match expected {
            Linux::Zoned => assert_eq!(found, Some("host-managed"), "{sectors}"),
            Linux::Regular => assert_eq!(found, Some("none"), "{sectors}"),
            Linux::Refuses(why) => {
                assert!(found.is_none() || found == Some("none"), "{sectors}: {found:?}");
                assert!(log.contains(why), "{sectors}: not {why:?} in\n{log}");
            }
        }
    }
    let full = seen.lines().filter(|line| line.contains("(fu)")).count();
    assert_eq!(full, 2, "the zone at 4 MiB and the runt are full: {seen}");
}
