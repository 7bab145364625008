//! Our driver without an operating system, on QEMU's own virtio-blk device with a plain file behind it. `CHECKS_SEED` repeats a
//! run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::fs::File;

use common::machine::{list_machine, pass_list, run, test_machine};
use virtio_zbd_guest::{Machine, TestMachine, Verdict};

const DISK_LEN_BYTES: u64 = 64 << 20;

/// Runs the list on a disk; `options` are the block node's, `properties` the device's.
fn the_list_on(machine: Machine, options: &str, properties: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    // A read-only disk leaves the least that is possible.
    let passed_min = if options.contains("read-only") { 8 } else { 15 };
    pass_list(&with_disk(list_machine(machine, "plain"), dir.path(), options, properties), passed_min)
}

fn with_disk(machine: TestMachine, dir: &std::path::Path, options: &str, properties: &str) -> TestMachine {
    let file = dir.join("disk");
    File::create(&file).unwrap().set_len(DISK_LEN_BYTES).unwrap();
    machine.block_node(&file, options).virtio_blk(properties)
}

/// What was negotiated, of all that the kernel printed.
fn features(console: &str) -> &str {
    console.lines().find(|line| line.contains(": features ")).unwrap_or_else(|| panic!("{console}"))
}

#[test]
fn the_list_over_virtio_mmio() {
    let console = the_list_on(Machine::Microvm, "", ",num-queues=2");
    assert!(
        console.contains(": regular, 131072 sectors in blocks of 512 bytes, 2 queues of 128\n"),
        "{console}"
    );
}

#[test]
fn the_list_over_pci() {
    let console = the_list_on(Machine::Q35, "", ",num-queues=2");
    assert!(
        console.contains(": regular, 131072 sectors in blocks of 512 bytes, 2 queues of 128\n"),
        "{console}"
    );
}

#[test]
fn large_blocks() {
    let properties = ",logical_block_size=4096,physical_block_size=4096";
    let console = the_list_on(Machine::Q35, "", properties);
    assert!(console.contains(" in blocks of 4096 bytes"), "{console}");
}

#[test]
fn a_short_queue_without_indirect_descriptors() {
    let properties = ",queue-size=16,seg-max-adjust=on,event_idx=off,indirect_desc=off";
    let console = the_list_on(Machine::Q35, "", properties);
    assert!(console.contains(" 1 queues of 16\n"), "{console}");
    let features = features(&console);
    assert!(!features.contains("INDIRECT_DESC") && !features.contains("EVENT_IDX"), "{features}");
}

#[test]
fn without_a_cache_and_without_ranges() {
    let console =
        the_list_on(Machine::Q35, "", ",write-cache=off,config-wce=off,discard=off,write-zeroes=off");
    let features = features(&console);
    for feature in ["CONFIG_WCE", "FLUSH", "DISCARD", "WRITE_ZEROES"] {
        assert!(!features.contains(feature), "{features}");
    }
}

#[test]
fn a_read_only_disk() {
    let console = the_list_on(Machine::Q35, ",read-only=on", "");
    assert!(console.contains(": read-only, 131072 sectors"), "{console}");
}

#[test]
fn a_disk_that_wants_addresses_of_the_platform() {
    let console = the_list_on(Machine::Q35, "", ",disable-legacy=on,iommu_platform=on");
    assert!(features(&console).contains("ACCESS_PLATFORM"), "{console}");
}

#[test]
fn what_the_driver_can_not_use_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let legacy_pci = ",disable-modern=on,disable-legacy=off";
    let legacy_mmio = ["-global", "virtio-mmio.force-legacy=true"];
    for (machine, args, properties, reason) in [
        (Machine::Q35, [""; 0].as_slice(), legacy_pci, "VIRTIO_PCI_CAP_COMMON_CFG"),
        (Machine::Microvm, &legacy_mmio, "", "it speaks only the legacy protocol (no VERSION_1)"),
    ] {
        let machine = with_disk(test_machine(machine).args(args), dir.path(), "", properties);
        let report = run(&machine);
        assert_eq!(report.verdict, Verdict::Failed, "{:?}\n{}", machine.argv(), report.console);
        assert!(report.console.contains(reason), "{:?}\n{}", machine.argv(), report.console);
    }
}
