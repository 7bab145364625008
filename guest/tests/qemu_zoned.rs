//! Our driver without an operating system on zoned disks: QEMU's own device with a zoned null_blk of a real Linux behind it (in a
//! User-mode Linux guest, for the host may have none) or our own disk, and our device alone. `CHECKS_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::path::Path;

use common::machine::{KERNEL_TIMEOUT, assert_list_passed, list_machine, pass_list, run, test_machine};
use common::{OrFail, guest, text};
use virtio_zbd_guest::{
    DiskTarget, Geometry, Guest, Machine, ServedDisk, Status, TestMachine, Verdict, cache,
};

/// Runs a machine with QEMU's device, behind which is the guest's zoned disk `path`. Gives back the verdict and what the kernel
/// printed.
fn run_in_guest(guest: &Guest, path: &str, machine: TestMachine) -> (Verdict, String) {
    let machine = machine.block_node(Path::new(path), "").virtio_blk("");
    let _turn = cache::take_turn().or_fail("no turn");
    let output = guest.clone().timeout(KERNEL_TIMEOUT).run(machine.argv()).or_fail("run QEMU in a guest");
    let console = text(&output.stdout) + &text(&output.stderr);
    match output.status {
        Status::Exited(code) => (Verdict::from_code(code), console),
        status => panic!("QEMU: {status:?}\n{console}"),
    }
}

fn the_list_in_guest(guest: &Guest, path: &str, machine: Machine, passed_min: u32) -> String {
    let (verdict, console) = run_in_guest(guest, path, list_machine(machine, "qemu"));
    assert_list_passed(verdict, &console, passed_min);
    console
}

/// A guest with a zoned null_blk of 256 zones of 4 MiB: checks that fill a zone take their time on an emulated processor in a
/// User-mode Linux.
fn with_null_blk(more: &[&str]) -> Guest {
    let args = ["nr_devices=1", "zoned=1", "gb=1", "zone_size=4", "memory_backed=1"];
    args.iter().chain(more).fold(guest(), |guest, arg| guest.kernel_arg(format!("null_blk.{arg}")))
}

const NULL_BLK: &str = "/dev/nullb0";

#[test]
fn the_list_on_qemus_zoned_disk_over_virtio_mmio() {
    let limits = ["zone_nr_conv=4", "zone_max_open=4", "zone_max_active=6", "zone_capacity=3"];
    let console = the_list_in_guest(&with_null_blk(&limits), NULL_BLK, Machine::Microvm, 45);
    assert!(console.contains(": 256 zones of 8192 sectors, at most 4 open, 6 active, append"), "{console}");
}

#[test]
fn the_list_on_qemus_zoned_disk_over_pci() {
    // Without a limit Linux would name one that null_blk does not keep.
    let console = the_list_in_guest(&with_null_blk(&["zone_max_active=6"]), NULL_BLK, Machine::Q35, 30);
    assert!(console.contains(": 256 zones of 8192 sectors, at most 0 open, 6 active, append"), "{console}");
}

/// Our driver, QEMU's device, Linux' driver, our device.
#[test]
fn the_list_on_qemus_zoned_disk_with_ours_behind_it() {
    let geometry = Geometry::new("1G", "4M").zone_capacity("3M").conventional(4).max_open(4).max_active(6);
    let mut disk = ServedDisk::ram(&geometry).or_fail("no disk");
    let console = the_list_in_guest(&guest().disk(disk.socket()), "/dev/vda", Machine::Q35, 45);
    assert!(console.contains(": 256 zones of 8192 sectors, at most 4 open, 6 active, append"), "{console}");
    disk.stop().or_fail("stop");
}

#[test]
fn a_zoned_disk_is_refused_where_zones_are_not_wanted() {
    let machine = test_machine(Machine::Q35).word("zones=no");
    let (verdict, console) = run_in_guest(&with_null_blk(&[]), NULL_BLK, machine);
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

fn the_list_on_our_device(machine: Machine, peer: &str, geometry: &Geometry, passed_min: u32) -> String {
    let mut disk = ServedDisk::serve(DiskTarget::Ram(geometry.clone()), ["--queues", "2"]).or_fail("no disk");
    let console = pass_list(&list_machine(machine, peer).vhost_user(disk.socket(), 2), passed_min);
    assert!(console.contains(", 2 queues of 128\n"), "{console}");
    disk.stop().or_fail("stop");
    console
}

#[test]
fn the_list_on_our_zoned_disk_over_virtio_mmio() {
    let console = the_list_on_our_device(Machine::Microvm, "exact", &geometry(), 45);
    assert!(console.contains(": 64 zones of 32768 sectors, at most 6 open, 8 active, append"), "{console}");
}

#[test]
fn the_list_on_our_zoned_disk_over_pci() {
    let console = the_list_on_our_device(Machine::Q35, "exact", &Geometry::new("1G", "16M"), 30);
    assert!(console.contains(": 64 zones of 32768 sectors, at most "), "{console}");
}

#[test]
fn the_list_on_our_regular_disk() {
    let console = the_list_on_our_device(Machine::Q35, "exact-plain", &Geometry::regular("64M"), 18);
    assert!(console.contains(": regular, 131072 sectors in blocks of "), "{console}");
}
