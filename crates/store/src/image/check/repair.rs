//! What a repair changes: a list, made by the check, done by nobody else.

use std::ops::Range;

/// The changes that can't lose anything. Each is right by itself, so any of them may be done without the others, in any part.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
}

/// One change of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A block is written over one that is damaged.
    Write { offset_bytes: u64, block: Vec<u8> },
    /// What is there goes.
    Clear(Range<u64>),
    /// The file gets its length back; what is new is a hole.
    SetLen(u64),
}

impl Plan {
    pub(super) fn write(&mut self, offset_bytes: u64, block: &[u8]) {
        self.changes.push(Change::Write { offset_bytes, block: block.to_vec() });
    }

    pub(super) fn clear(&mut self, bytes: Range<u64>) {
        self.changes.push(Change::Clear(bytes));
    }

    pub(super) fn set_len(&mut self, len_bytes: u64) {
        self.changes.push(Change::SetLen(len_bytes));
    }

    pub(super) fn changed_bytes(&self) -> u64 {
        let changed = |change: &Change| match change {
            Change::Write { block, .. } => block.len() as u64,
            Change::Clear(bytes) => bytes.end - bytes.start,
            Change::SetLen(_) => 0,
        };
        self.changes.iter().map(changed).sum()
    }
}
