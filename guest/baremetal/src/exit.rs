//! The end: QEMU's `isa-debug-exit` makes its status of a byte of ours.

use core::fmt;

use crate::{port, say};

/// `-device isa-debug-exit,iobase=0xf4,iosize=0x04`; QEMU's status is then twice the value and one.
const DEBUG_EXIT: u16 = 0xf4;

/// How a kernel's run went. (The guest crate, in `baremetal.rs`, knows these numbers, too.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// QEMU's status is 33.
    Passed = 0x10,
    /// QEMU's status is 35.
    Failed = 0x11,
    /// A panic or an exception. QEMU's status is 37.
    Crashed = 0x12,
}

/// Says how it went and ends the machine; without the device it stops here.
pub fn exit(outcome: Outcome) -> ! {
    say!("{outcome}");
    port::write_u32(DEBUG_EXIT, outcome as u32);
    port::halt()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Passed => "baremetal: passed",
            Outcome::Failed => "baremetal: FAILED",
            Outcome::Crashed => "baremetal: CRASHED",
        })
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("{info}");
    exit(Outcome::Crashed)
}
