//! The machine, as a kernel's main function gets it.

use alloc::vec::Vec;
use core::ops::Range;

use log::LevelFilter;

use crate::disks::{self, Found};
use crate::serial;

/// What the loader said, and the way to the devices.
#[derive(Debug)]
pub struct Machine {
    command_line: &'static str,
    heap: Range<usize>,
}

impl Machine {
    pub(crate) fn new(command_line: &'static str, heap: Range<usize>) -> Machine {
        Machine { command_line, heap }
    }

    /// The kernel's command line (QEMU's `-append`).
    #[must_use]
    pub fn command_line(&self) -> &'static str {
        self.command_line
    }

    /// The value of a word `name=value` on the command line; the last one counts.
    #[must_use]
    pub fn word(&self, name: &str) -> Option<&'static str> {
        let words = self.command_line.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        words.filter(|(found, _)| *found == name).map(|(_, value)| value).next_back()
    }

    /// How large the heap is.
    #[must_use]
    pub fn heap_len_bytes(&self) -> usize {
        self.heap.len()
    }

    /// All of the machine's virtio disks: on PCI, and by the words `virtio_mmio.device=SIZE@ADDRESS:INTERRUPT` that QEMU's
    /// microvm puts on the command line (with `acpi=off`).
    ///
    /// Call it once: two transports of one device would disturb each other.
    ///
    /// # Panics
    /// The command line names a device in a way that can't be read.
    #[must_use]
    pub fn disks(&self) -> Vec<Found> {
        disks::find(self.command_line)
    }

    /// From now on shows what libraries log, from `level` on.
    pub fn log_from(&self, level: LevelFilter) {
        serial::log_from(level);
    }
}
