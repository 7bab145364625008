//! Somebody who is told of every change that a lane makes to its disk.

use std::sync::Arc;

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
