//! Our driver without an operating system on zoned disks: QEMU's own device with a zoned null_blk of a real Linux behind it (in a
//! User-mode Linux guest, for the host may have none), and our device. `CHECKS_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::path::Path;

use common::machine::{assert_list_was_run, list_machine, pass_list, run, test_machine};
use common::{OrFail, guest, text};
use virtio_zbd_guest::{DiskTarget, Geometry, Machine, ServedDisk, Status, TestMachine, Verdict, cache};

/// 256 zones of 4 MiB: checks that fill a zone take their time on an emulated processor in a User-mode Linux.
const NULL_BLK: [&str; 5] = ["nr_devices=1", "zoned=1", "gb=1", "zone_size=4", "memory_backed=1"];

/// Runs a machine with QEMU's device, which passes a zoned null_blk on, in a Linux guest. Gives back the verdict and what the
/// kernel printed.
fn run_on_null_blk(machine: TestMachine, null_blk: &[&str]) -> (Verdict, String) {
    let machine = machine.block_node(Path::new("/dev/nullb0"), "").virtio_blk("");
    let null_blk = NULL_BLK.iter().chain(null_blk);
    let guest = null_blk.fold(guest(), |guest, arg| guest.kernel_arg(format!("null_blk.{arg}")));
    let _turn = cache::take_turn().or_fail("no turn");
    let output = guest.run(machine.argv()).or_fail("run QEMU in a guest");
    let console = text(&output.stdout) + &text(&output.stderr);
    match output.status {
        Status::Exited(code) => (Verdict::from_code(code), console),
        status => panic!("QEMU: {status:?}\n{console}"),
    }
}

fn the_list_on_null_blk(machine: Machine, null_blk: &[&str]) -> String {
    let (verdict, console) = run_on_null_blk(list_machine(machine, "qemu"), null_blk);
    assert_eq!(verdict, Verdict::Passed, "{console}");
    assert_list_was_run(&console);
    console
}

#[test]
fn the_list_on_qemus_zoned_disk_over_virtio_mmio() {
    let console = the_list_on_null_blk(
        Machine::Microvm,
        &["zone_nr_conv=4", "zone_max_open=4", "zone_max_active=6", "zone_capacity=3"],
    );
    assert!(console.contains(": 256 zones of 8192 sectors, at most 4 open, 6 active, append"), "{console}");
}

#[test]
fn the_list_on_qemus_zoned_disk_over_pci() {
    let console = the_list_on_null_blk(Machine::Q35, &[]);
    assert!(console.contains(": 256 zones of 8192 sectors, at most 0 open, 0 active, append"), "{console}");
}

#[test]
fn a_zoned_disk_is_refused_where_zones_are_not_wanted() {
    let (verdict, console) = run_on_null_blk(test_machine(Machine::Q35).word("zones=no"), &[]);
    assert_eq!(verdict, Verdict::Failed, "{console}");
    assert!(console.contains("host-managed"), "{console}");

    let mut disk = ServedDisk::ram(&geometry()).or_fail("no disk");
    let report = run(&test_machine(Machine::Q35).word("zones=no").vhost_user(disk.socket(), 1));
    assert_eq!(report.verdict, Verdict::Failed, "{}", report.console);
    assert!(report.console.contains("host-managed"), "{}", report.console);
    disk.stop().or_fail("stop");
}

/// 64 zones of 16 MiB, 12 MiB writable, 4 conventional; 6 may be open, 8 active.
fn geometry() -> Geometry {
    Geometry::new("1G", "16M").zone_capacity("12M").conventional(4).max_open(6).max_active(8)
}

fn the_list_on_our_device(machine: Machine, peer: &str, geometry: &Geometry) -> String {
    let mut disk = ServedDisk::serve(DiskTarget::Ram(geometry.clone()), ["--queues", "2"]).or_fail("no disk");
    let console = pass_list(&list_machine(machine, peer).vhost_user(disk.socket(), 2));
    assert!(console.contains(", 2 queues of 128\n"), "{console}");
    disk.stop().or_fail("stop");
    console
}

#[test]
fn the_list_on_our_zoned_disk_over_virtio_mmio() {
    let console = the_list_on_our_device(Machine::Microvm, "exact", &geometry());
    assert!(console.contains(": 64 zones of 32768 sectors, at most 6 open, 8 active, append"), "{console}");
}

#[test]
fn the_list_on_our_zoned_disk_over_pci() {
    let console = the_list_on_our_device(Machine::Q35, "exact", &Geometry::new("1G", "16M"));
    assert!(console.contains(": 64 zones of 32768 sectors, at most "), "{console}");
}

#[test]
fn the_list_on_our_regular_disk() {
    let console = the_list_on_our_device(Machine::Q35, "exact-plain", &Geometry::regular("64M"));
    assert!(console.contains(": regular, 131072 sectors in blocks of "), "{console}");
}
