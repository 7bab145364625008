//! A kernel that does one thing: it finds the machine's virtio disks and runs the driver's test list, or the conformance suite, on
//! each. Its output is on the first serial line, its verdict in QEMU's exit status (`exit.rs`).
//!
//! Words on its command line:
//! - `peer=exact|exact-plain|qemu|plain`: run the list and expect what this kind of disk does (`virtio_zbd_checks::Peer`).
//!   Without it each disk is only taken into use and described.
//! - `seed=NUMBER`: for the list's random parts.
//! - `conform=all`, or cases and rules, `conform=V26,V4-a`: run the conformance suite instead of the list; `except=…`: without
//!   these; `fill_max_sectors=NUMBER`: see `virtio_zbd_conform::RunOptions`.
//! - `random=NUMBER`: only the random part of the list, with so many requests.
//! - `queues=NUMBER`, `depth=NUMBER`, `zones=no`: the driver's `Options`; all queues, its default and zones if not given.
//! - `log=error|warn|info|debug|trace`: from which level on the libraries' log lines are shown; `warn` if not given.
//! - `crash=…`: see `crash.rs`.
//! - `virtio_mmio.device=SIZE@ADDRESS:INTERRUPT`: where a virtio-mmio device is. QEMU's microvm adds them itself.
#![no_std]
#![no_main]

extern crate alloc;

mod checks;
mod conform;
mod crash;
mod wait;

use checks::Wishes;
use virtio_zbd_baremetal::{Machine, Outcome, entry, say};

entry!(main);

fn main(machine: &Machine) -> Outcome {
    say!(
        "baremetal: {} MiB of heap, command line: {}",
        machine.heap_len_bytes() >> 20,
        machine.command_line()
    );
    let level = machine.word("log").unwrap_or("warn");
    machine.log_from(level.parse().unwrap_or_else(|_| panic!("log={level}: not a level")));
    if let Some(how) = machine.word("crash") {
        crash::crash(how);
    }

    let wishes = Wishes::of(machine);
    let cases = conform::options(machine);
    let disks = machine.disks();
    if disks.is_empty() {
        say!(
            "no virtio disk: neither on PCI nor as virtio_mmio.device= on the command line (microvm,acpi=off adds that)"
        );
        return Outcome::Failed;
    }
    let mut outcome = Outcome::Passed;
    for disk in disks {
        let passed = match &cases {
            Some(options) => conform::run(disk, options),
            None => checks::run(disk, &wishes),
        };
        if !passed {
            outcome = Outcome::Failed;
        }
    }
    outcome
}
