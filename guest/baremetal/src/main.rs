//! A kernel that does one thing: it finds the machine's virtio disks and runs the driver's test list on each. Its output is on
//! the first serial line, its verdict in QEMU's exit status (`exit.rs`).
//!
//! Words on its command line:
//! - `peer=exact|exact-plain|qemu|plain`: run the list and expect what this kind of disk does (`virtio_zbd_checks::Peer`).
//!   Without it each disk is only taken into use and described.
//! - `seed=NUMBER`: for the list's random parts.
//! - `random=NUMBER`: only the random part of the list, with so many requests.
//! - `queues=NUMBER`, `depth=NUMBER`, `zones=no`: the driver's `Options`; all queues, its default and zones if not given.
//! - `log=error|warn|info|debug|trace`: from which level on the libraries' log lines are shown; `warn` if not given.
//! - `crash=…`: see `crash.rs`.
//! - `virtio_mmio.device=SIZE@ADDRESS:INTERRUPT`: where a virtio-mmio device is. QEMU's microvm adds them itself.
#![no_std]
#![no_main]
// The functions in `runtime.rs` must not be compiled into calls of themselves.
#![no_builtins]

extern crate alloc;

mod boot;
mod checks;
mod crash;
mod disks;
mod exceptions;
mod exit;
mod heap;
mod port;
mod runtime;
mod serial;
mod wait;

use log::LevelFilter;

use boot::Boot;
use checks::Wishes;
use exit::{Outcome, exit};
use serial::say;

fn main(boot: &Boot) -> ! {
    let Boot { command_line, heap } = boot;
    say!("baremetal: {} MiB of heap, command line: {command_line}", heap.len() >> 20);
    serial::log_from(log_level(command_line));
    if let Some(how) = word(command_line, "crash") {
        crash::crash(how);
    }

    let disks = disks::find(command_line);
    if disks.is_empty() {
        say!(
            "no virtio disk: neither on PCI nor as virtio_mmio.device= on the command line (microvm,acpi=off adds that)"
        );
        exit(Outcome::Failed);
    }
    let wishes = Wishes::parse(command_line);
    let mut outcome = Outcome::Passed;
    for disk in disks {
        if !checks::run(disk, &wishes) {
            outcome = Outcome::Failed;
        }
    }
    exit(outcome)
}

fn log_level(command_line: &str) -> LevelFilter {
    let level = word(command_line, "log").unwrap_or("warn");
    level.parse().unwrap_or_else(|_| panic!("log={level}: not a level"))
}

/// The value of a word `name=value` on the command line; the last one counts.
fn word<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    let words = command_line.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    words.filter(|(found, _)| *found == name).map(|(_, value)| value).next_back()
}
