//! The processor's input and output ports, and its rest.
#![allow(unsafe_code)]

use core::arch::asm;

/// Reads a byte.
pub(crate) fn read_u8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: a port is no memory; what a read does to the device behind it is the caller's concern and no harm to us.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads four bytes.
pub(crate) fn read_u32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as in `read_u8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte.
pub(crate) fn write_u8(port: u16, value: u8) {
    // SAFETY: the ports this kernel writes to are those of a serial line, of PCI's configuration and of the debug exit: none
    // of them changes memory. Bus mastering, which PCI's configuration can turn on, is used by devices that we drive only.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Writes four bytes.
pub(crate) fn write_u32(port: u16, value: u32) {
    // SAFETY: as in `write_u8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Stops the processor: interrupts are off, so for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: it changes nothing.
        unsafe { asm!("hlt", options(nomem, nostack, preserves_flags)) };
    }
}
