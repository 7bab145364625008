//! The example of a kernel that uses the driver does what it says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use common::OrFail;
use common::machine::{example_machine, run};
use virtio_zbd_guest::{Geometry, Report, ServedDisk, TestMachine, Verdict};

fn lines(machine: &TestMachine) -> (Verdict, Vec<String>) {
    let Report { verdict, console } = run(machine);
    (verdict, console.lines().map(str::to_owned).collect())
}

#[test]
fn appends_reads_back_and_resets_on_a_zoned_disk() {
    let mut disk = ServedDisk::ram(&Geometry::new("64M", "4M").conventional(1)).or_fail("no disk");
    let expected = [
        "16 zones of 8192 sectors",
        "zone at 8192: SequentialRequired, Empty",
        "appended at sector 8192, read back: a",
        "written again: not at the zone's write pointer (UNALIGNED_WP)",
        "zone at 8192: ImplicitOpen, write pointer Some(8200)",
        "reset: Empty",
        "baremetal: passed",
    ];
    // Twice: the second one begins where the first one began.
    for _ in 0..2 {
        let (verdict, lines) = lines(&example_machine().vhost_user(disk.socket(), 1));
        assert_eq!(lines, expected);
        assert_eq!(verdict, Verdict::Passed);
    }
    disk.stop().or_fail("stop");
}

#[test]
fn says_what_a_disk_without_zones_is() {
    let mut disk = ServedDisk::ram(&Geometry::regular("64M")).or_fail("no disk");
    let (verdict, lines) = lines(&example_machine().vhost_user(disk.socket(), 1));
    assert_eq!(lines, ["the disk has no zones: it has 131072 sectors", "baremetal: passed"]);
    assert_eq!(verdict, Verdict::Passed);
    disk.stop().or_fail("stop");
}

#[test]
fn a_machine_without_a_disk_is_a_panic_that_says_so() {
    let (verdict, lines) = lines(&example_machine());
    assert!(lines[0].starts_with("panicked at ") && lines[0].contains("examples/kernel.rs:"), "{lines:?}");
    assert_eq!(lines[1..], ["no virtio disk on the first PCI bus", "baremetal: CRASHED"]);
    assert_eq!(verdict, Verdict::Crashed);
}
