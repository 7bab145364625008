//! The first serial line: all that a kernel says.

use core::fmt::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

use crate::{port, say};

/// COM1, a 16550.
const BASE: u16 = 0x3f8;
const DATA: u16 = BASE;
const INTERRUPTS: u16 = BASE + 1;
const FIFO: u16 = BASE + 2;
const LINE: u16 = BASE + 3;
const MODEM: u16 = BASE + 4;
const STATUS: u16 = BASE + 5;
const STATUS_EMPTY: u8 = 1 << 5;

/// 115200 baud, 8 bits, no parity; no interrupts.
pub(crate) fn set_up() {
    const DIVISOR_ACCESS: u8 = 1 << 7;
    const EIGHT_BITS: u8 = 3;
    port::write_u8(INTERRUPTS, 0);
    port::write_u8(LINE, DIVISOR_ACCESS);
    port::write_u8(DATA, 1);
    port::write_u8(INTERRUPTS, 0);
    port::write_u8(LINE, EIGHT_BITS);
    port::write_u8(FIFO, 0b111);
    port::write_u8(MODEM, 0b11);
}

/// Passes on what libraries log, from `level` on.
pub(crate) fn log_from(level: LevelFilter) {
    if log::set_logger(&Serial).is_ok() {
        log::set_max_level(level);
    }
}

/// What [`say!`] calls.
pub fn print_line(words: fmt::Arguments<'_>) {
    // Printing to a serial line does not fail, but a value's own `Display` may say that it did: the line is short then.
    let _ = Serial.write_fmt(words);
    let _ = Serial.write_str("\n");
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while port::read_u8(STATUS) & STATUS_EMPTY == 0 {
                core::hint::spin_loop();
            }
            port::write_u8(DATA, byte);
        }
        Ok(())
    }
}

impl Log for Serial {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        say!("{:5} {}: {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}
