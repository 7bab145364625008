//! What a disk keeps over restarts of guests and daemons, and what it gives back to the host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::{OrFail, exec_in_guest, guest, succeed, text};
use virtio_zbd_guest::{DiskTarget, Geometry, ServedDisk, programs};

/// 64 zones: 4 conventional, 60 of which 48 MiB each can be written.
const ZONE_SECTORS: u64 = 0x20000;
const CAPACITY_SECTORS: u64 = 0x18000;
const CONVENTIONAL: u64 = 4;
const ZONES: u64 = 64;

fn geometry() -> Geometry {
    Geometry::new("4G", "64M").zone_capacity("48M").conventional(4).max_open(6).max_active(8)
}

fn disk() -> ServedDisk {
    ServedDisk::create(&geometry()).or_fail("a disk")
}

/// A line of `blkzone report`, as the guest's util-linux writes it.
fn line(zone: u64, wptr_sectors: u64, condition: &str) -> String {
    let start = zone * ZONE_SECTORS;
    let (capacity, kind) = match zone < CONVENTIONAL {
        true => (ZONE_SECTORS, "1(CONVENTIONAL)"),
        false => (CAPACITY_SECTORS, "2(SEQ_WRITE_REQUIRED)"),
    };
    format!(
        "  start: 0x{start:09x}, len 0x{ZONE_SECTORS:06x}, cap 0x{capacity:06x}, wptr 0x{wptr_sectors:06x} \
         reset:0 non-seq:0, zcond:{condition} [type: {kind}]"
    )
}

/// The whole report of a disk of which only `changed` zones (write pointer in sectors, condition) are not empty.
fn report(changed: &[(u64, u64, &str)]) -> String {
    let lines = (0..ZONES).map(|zone| match changed.iter().find(|(other, ..)| *other == zone) {
        Some((_, wptr_sectors, condition)) => line(zone, *wptr_sectors, condition),
        None if zone < CONVENTIONAL => line(zone, 0, NOT_WP),
        None => line(zone, 0, EMPTY),
    });
    lines.map(|line| line + "\n").collect()
}

const NOT_WP: &str = " 0(nw)";
const EMPTY: &str = " 1(em)";
const IMPLICIT_OPEN: &str = " 2(oi)";
const EXPLICIT_OPEN: &str = " 3(oe)";
const CLOSED: &str = " 4(cl)";
const FULL: &str = "14(fu)";

/// The zones of an image that nobody serves, as `vzbd` itself sees them.
fn vzbd_report(image: &Path) -> String {
    let vzbd = programs::vzbd().or_fail("vzbd");
    let output = Command::new(vzbd).args(["report", "--format", "blkzone"]).arg(image).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Shell functions for zones by number.
const ZONE_FUNCTIONS: &str = r#"
    set -e
    zone() { echo $(($1 * 0x20000)); }
    # FIRST COUNT
    open() { blkzone open -o $(zone $1) -c $2 /dev/vda; }
    close() { blkzone close -o $(zone $1) -c $2 /dev/vda; }
    finish() { blkzone finish -o $(zone $1) -c $2 /dev/vda; }
    reset() { blkzone reset -o $(zone $1) -c $2 /dev/vda; }
    # ZONE BLOCK COUNT: blocks of 4 KiB
    fill() { dd if=/dev/urandom of=/dev/vda bs=4k seek=$(($1 * 0x4000 + $2)) count=$3 oflag=direct status=none; }
    report() { blkzone report /dev/vda; echo --; }
"#;

fn script(rest: &str) -> String {
    format!("{ZONE_FUNCTIONS}\n{rest}")
}

#[test]
fn a_restart_closes_open_zones_and_changes_nothing_else() {
    let mut disk = disk();
    let image = disk.image_path().unwrap().to_path_buf();
    let before = "fill 4 0 5; open 5 1; fill 6 0 7; close 6 1; finish 7 1; fill 8 0 12288; open 9 1; fill 9 0 2; report";
    let seen = exec_in_guest(disk.socket(), &script(before));
    let full = ZONE_SECTORS;
    let expected = report(&[
        (4, 40, IMPLICIT_OPEN),
        (5, 0, EXPLICIT_OPEN),
        (6, 56, CLOSED),
        (7, full, FULL),
        (8, full, FULL),
        (9, 16, EXPLICIT_OPEN),
    ]);
    assert_eq!(seen, format!("{expected}--\n"));

    // The guest's own restart is none of the disk's.
    assert_eq!(exec_in_guest(disk.socket(), &script("report")), format!("{expected}--\n"));

    let after =
        report(&[(4, 40, CLOSED), (6, 56, CLOSED), (7, full, FULL), (8, full, FULL), (9, 16, CLOSED)]);
    disk.stop().or_fail("stop");
    assert_eq!(vzbd_report(&image), after);
    disk.restart().or_fail("restart");
    assert_eq!(exec_in_guest(disk.socket(), &script("report; fill 4 5 1")), format!("{after}--\n"));

    // What was answered outlives the daemon's death, flushed or not (D5).
    disk.kill();
    disk.restart().or_fail("restart after a kill");
    let after_kill =
        report(&[(4, 48, CLOSED), (6, 56, CLOSED), (7, full, FULL), (8, full, FULL), (9, 16, CLOSED)]);
    assert_eq!(exec_in_guest(disk.socket(), &script("report")), format!("{after_kill}--\n"));
}

#[test]
fn a_reset_gives_the_hosts_space_back() {
    let disk = disk();
    let image = disk.image_path().unwrap();
    let allocated_bytes = || image.metadata().unwrap().blocks() * 512;
    let fresh = allocated_bytes();
    exec_in_guest(disk.socket(), &script("fill 4 0 8192; fill 5 0 8192; sync"));
    let filled = allocated_bytes();
    assert!(filled >= fresh + (64 << 20), "{fresh} bytes, then {filled}");
    exec_in_guest(disk.socket(), &script("reset 4 1"));
    let reset = allocated_bytes();
    assert!(reset <= filled - (32 << 20) && reset >= fresh + (32 << 20), "{filled} bytes, then {reset}");
    exec_in_guest(disk.socket(), "blkzone reset /dev/vda");
    assert!(allocated_bytes() < fresh + (1 << 20), "{} bytes of {fresh}", allocated_bytes());
}

#[test]
fn a_read_only_disk_can_be_read_and_nothing_else() {
    let mut first = disk();
    exec_in_guest(first.socket(), &script("fill 4 0 1"));
    first.stop().or_fail("stop");
    let image = first.image_path().unwrap().to_path_buf();
    let target = DiskTarget::Image(image);
    let disk = ServedDisk::serve(target, ["--read-only"]).or_fail("serve read-only");
    let output = succeed(
        &guest().disk(disk.socket()),
        &script("cat /sys/block/vda/ro; ! fill 4 1 1 2>/dev/null; ! reset 4 1 2>/dev/null; report"),
    );
    assert_eq!(output, format!("1\n{}--\n", report(&[(4, 8, CLOSED)])));
}

#[test]
fn two_disks_are_told_apart() {
    let (first, second) = (disk(), ServedDisk::ram(&Geometry::new("1G", "32M")).or_fail("a disk in memory"));
    let guest = guest().disk(first.socket()).disk(second.socket());
    let output = succeed(
        &guest,
        "cat /sys/block/vd[ab]/queue/nr_zones; dd if=/dev/zero of=/dev/vdb bs=4k count=2 oflag=direct status=none; blkzone report -c 1 /dev/vdb; blkzone report /dev/vda",
    );
    let second_line = "  start: 0x000000000, len 0x010000, cap 0x010000, wptr 0x000010 reset:0 non-seq:0, zcond: 2(oi) [type: 2(SEQ_WRITE_REQUIRED)]\n";
    assert_eq!(output, format!("64\n32\n{second_line}{}", report(&[])));
}
