//! Somebody who is told of every change that a lane makes to its disk.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::buffer::IoBuffer;

/// Is told of changes: before each begins, and when it has ended.
pub(crate) trait Tap: Send + Sync {
    /// A change is about to begin. Returns what to call it at its end; `None`: it must not be made, and its end will never be
    /// reported to anybody.
    fn begin(&self, change: &Change<'_>) -> Option<u64>;

    /// A change has ended. Its lane's owner does not know yet.
    fn end(&self, id: u64, ok: bool);

    /// Nobody will hear of this change's end: its lane is gone. The medium is done with it.
    fn forget(&self, id: u64);

    /// Whether the lane must not report anything any more.
    fn is_over(&self) -> bool;
}

/// What a lane does to its disk. Offsets count from the disk's start.
pub(crate) enum Change<'a> {
    /// All of the buffer goes there.
    Write { offset_bytes: u64, buffer: &'a IoBuffer },
    /// The range reads as zeros.
    Zero { offset_bytes: u64, len_bytes: u64 },
}

/// A lane's disk has lost its power, on purpose: whoever waits on the lane ends without a word to anybody.
#[derive(Debug, Error)]
#[error("the disk's power was cut, as was asked for")]
pub struct PowerIsCut;

impl PowerIsCut {
    /// Whether this is why a lane can't be waited for.
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// A change whose end a tap waits for.
pub(super) struct Tapped {
    tap: Arc<dyn Tap>,
    id: u64,
    ended: bool,
}

impl Tapped {
    pub(super) fn new(tap: Arc<dyn Tap>, id: u64) -> Self {
        Self { tap, id, ended: false }
    }

    pub(super) fn end(mut self, ok: bool) {
        self.ended = true;
        self.tap.end(self.id, ok);
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        if !self.ended {
            self.tap.forget(self.id);
        }
    }
}
