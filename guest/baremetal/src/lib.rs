//! What a kernel for x86-64 needs to get to a virtio disk, and no more: the way from QEMU's `-kernel` to Rust, memory, the
//! serial line, exceptions, and the devices of QEMU's microvm and q35 machines. One processor, no interrupts.
//!
//! A program of this package is a kernel. It names its main function with [`entry!`], and says things with [`say!`]:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! use virtio_zbd_baremetal::{Machine, Outcome, entry, say};
//!
//! entry!(main);
//!
//! fn main(machine: &Machine) -> Outcome {
//!     say!("{} disks", machine.disks().len());
//!     Outcome::Passed
//! }
//! ```
//!
//! It is linked by `build.rs` and `link.ld`, for the compiler's host target: no bare-metal one has to be installed. There is a
//! heap, so `alloc` can be used; a panic is said and ends the machine.
#![no_std]
// The functions in `runtime` must not be compiled into calls of themselves.
#![no_builtins]

extern crate alloc;

mod boot;
mod disks;
mod exceptions;
mod exit;
mod heap;
mod machine;
mod port;
mod runtime;
mod serial;

pub use disks::{ConfigurationPorts, Found, pci_root};
pub use exit::{Outcome, exit};
pub use heap::Identity;
pub use machine::Machine;
pub use port::halt;
#[doc(hidden)]
pub use serial::print_line;

/// Names the kernel's main function, a `fn(&Machine) -> Outcome`. It runs once, on a stack of 1 MiB.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn baremetal_main(machine: &$crate::Machine) -> $crate::Outcome {
            let main: fn(&$crate::Machine) -> $crate::Outcome = $main;
            main(machine)
        }
    };
}

/// Prints a line on the first serial line; the words are those of `format!`.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => { $crate::print_line(format_args!($($words)*)) };
}
