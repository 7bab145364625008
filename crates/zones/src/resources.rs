//! How many zones are open and active, and which may be closed to make room.

use alloc::collections::BTreeMap;

use crate::answers::Refusal;
use crate::geometry::Geometry;
use crate::state::Condition;

/// The counts behind max_open_zones and max_active_zones (V7, V8).
#[derive(Debug)]
pub(crate) struct Resources {
    max_open: u32,
    max_active: u32,
    open: u32,
    active: u32,
    /// Implicitly open zones by the moment of their opening: the oldest is closed first (V27). Kept only where there is an open limit.
    implicit: BTreeMap<u64, u32>,
    next_stamp: u64,
}

impl Resources {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self {
            max_open: geometry.max_open_zones(),
            max_active: geometry.max_active_zones(),
            open: 0,
            active: 0,
            implicit: BTreeMap::new(),
            // 0 means "not in the list" in a zone.
            next_stamp: 1,
        }
    }

    pub(crate) fn open(&self) -> u32 {
        self.open
    }

    pub(crate) fn active(&self) -> u32 {
        self.active
    }

    /// Takes what a zone in `condition` uses, without a check.
    pub(crate) fn take(&mut self, condition: Condition) {
        self.open += u32::from(condition.is_open());
        self.active += u32::from(condition.is_active());
    }

    /// Gives back what a zone in `condition` uses.
    pub(crate) fn give_back(&mut self, condition: Condition) {
        self.open -= u32::from(condition.is_open());
        self.active -= u32::from(condition.is_active());
    }

    /// Whether a zone may go from `from` into an open condition.
    ///
    /// # Errors
    /// The active limit wins where both are exceeded (V15). An exceeded open limit is
    /// no error where an implicitly open zone can be closed: [`Room::AfterClosing`].
    pub(crate) fn room_to_open(&self, from: Condition) -> Result<Room, Refusal> {
        if !from.is_active() && self.max_active != 0 && self.active >= self.max_active {
            return Err(Refusal::ActiveResource);
        }
        if from.is_open() || self.max_open == 0 || self.open < self.max_open {
            return Ok(Room::Free);
        }
        if self.implicit.is_empty() { Err(Refusal::OpenResource) } else { Ok(Room::AfterClosing) }
    }

    /// Remembers that `zone` was opened implicitly. Returns its stamp.
    pub(crate) fn list_implicit(&mut self, zone: u32) -> u64 {
        if self.max_open == 0 {
            return 0;
        }
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.implicit.insert(stamp, zone);
        stamp
    }

    /// Forgets the implicitly open zone with this stamp.
    pub(crate) fn unlist_implicit(&mut self, stamp: u64) {
        self.implicit.remove(&stamp);
    }

    /// The implicitly open zones, oldest first.
    pub(crate) fn implicit_zones(&self) -> impl Iterator<Item = u32> + '_ {
        self.implicit.values().copied()
    }
}

/// What must happen before one more zone can be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    /// An implicitly open zone must be closed first.
    AfterClosing,
}
