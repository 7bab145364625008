//! How far long work is, on standard error where that is a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use crate::size::Size;

/// Work that ends before this says nothing.
const QUIET: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(200);

/// A line that is rewritten now and then, and goes with the value.
pub(crate) struct Progress {
    total: Option<u64>,
    done: u64,
    unit: Unit,
    next: Instant,
    /// There is a line to take away.
    shown: bool,
    terminal: bool,
}

#[derive(Clone, Copy)]
enum Unit {
    Bytes,
    Zones,
    Requests,
    Images,
}

impl Progress {
    pub(crate) fn of_bytes(total: Option<u64>) -> Self {
        Self::new(total, Unit::Bytes)
    }

    pub(crate) fn of_zones(total: Option<usize>) -> Self {
        Self::new(total.and_then(|total| u64::try_from(total).ok()), Unit::Zones)
    }

    pub(crate) fn of_images(total: Option<usize>) -> Self {
        Self::new(total.and_then(|total| u64::try_from(total).ok()), Unit::Images)
    }

    pub(crate) fn of_requests(total: Option<u64>) -> Self {
        Self::new(total, Unit::Requests)
    }

    fn new(total: Option<u64>, unit: Unit) -> Self {
        let next = Instant::now() + QUIET;
        Self { total, done: 0, unit, next, shown: false, terminal: stderr().is_terminal() }
    }

    /// So much more is done.
    pub(crate) fn advance(&mut self, done: u64) {
        self.done += done;
        if !self.terminal || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + INTERVAL;
        self.shown = true;
        // Who can't be told is not told.
        let _ = write!(stderr(), "\r\x1b[K{}", self.line());
    }

    fn line(&self) -> String {
        let amount = |count: u64| match self.unit {
            // Whole MiB: a number that changes in every digit can't be read.
            Unit::Bytes => Size::from(count & !0xf_ffff).to_string(),
            Unit::Zones | Unit::Requests | Unit::Images => count.to_string(),
        };
        let unit = match self.unit {
            Unit::Bytes => "",
            Unit::Zones => " zones",
            Unit::Requests => " requests",
            Unit::Images => " images",
        };
        match self.total.filter(|total| *total > 0) {
            Some(total) => {
                let percent = u128::from(self.done) * 100 / u128::from(total);
                format!("{} of {}{unit} ({percent} %)", amount(self.done), amount(total))
            }
            None => format!("{}{unit}", amount(self.done)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
