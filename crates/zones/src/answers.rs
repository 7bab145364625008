//! What the table is asked with and what it answers.

use alloc::vec::Vec;
use core::ops::Range;

use thiserror::Error;

use crate::layout::ZoneKind;
use crate::state::{Condition, StateError, ZoneState};

/// A caller's name for a request that may have to wait for a zone. The table only hands it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Why a request can't be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not possible for this zone, in this condition, or with this range.
    #[error("the zone, its condition or the range does not allow this request")]
    InvalidCommand,
    /// A write that does not start at the write pointer, or does not end on the write granularity (V26).
    #[error("the write does not start at the write pointer or does not end on a block")]
    UnalignedWritePointer,
    /// One more open zone than max_open_zones, and none that could be closed.
    #[error("too many open zones")]
    OpenResource,
    /// One more active zone than max_active_zones.
    #[error("too many active zones")]
    ActiveResource,
    /// The disk has no zone append (V24).
    #[error("the disk has no zone append")]
    Unsupported,
    /// Beyond the end of the disk.
    #[error("the range lies beyond the end of the disk")]
    OutOfRange,
    /// The zone is empty, but what it had before its reset could not be taken away yet: it must be reset again first.
    #[error("the zone still has what it held before its reset")]
    Unswept,
    /// Not now: the ticket is kept, and handed back by the call that frees the zone. The request is to be made again then.
    #[error("the zone is busy")]
    Busy,
}

/// How much of a read lies in written sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPlan {
    /// This many sectors from the read's start are to be read from the store.
    pub stored_sectors: u64,
    /// This many of the others were never written and read as zeros (V30, V31).
    pub zero_sectors: u64,
    /// Further stretches that are to be read from the store, in sectors from the read's start: where it crosses zones of which one is not written
    /// to its end. In order, and none touches another.
    pub more: Vec<Range<u64>>,
}

/// A place for a write, reserved. It must be given to [`ZoneTable::settle`](crate::ZoneTable::settle) when the write has ended.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an unsettled write keeps its zone from being reset for ever"]
pub struct Grant {
    pub(crate) zone: u32,
    pub(crate) start: u64,
    /// Relative to the zone's start; `None` where nothing is reserved: in zones that are written in any order, and for no sectors at all.
    pub(crate) reserved: Option<Range<u32>>,
    /// Where nothing is reserved, but a preferred zone has to know when the write ends: its length.
    pub(crate) anywhere_sectors: u32,
    pub(crate) room: Option<Begun>,
}

impl Grant {
    /// The zone that it is in, or begins in.
    pub fn zone(&self) -> u32 {
        self.zone
    }

    /// Whether a place is reserved at a write pointer: not in conventional and preferred zones, and not for no sectors at all.
    pub fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    /// The first sector to write to.
    pub fn sector(&self) -> u64 {
        self.start
    }

    /// The zone that was closed to make room for this write (V27), where a device keeps the zones: the device must have closed it before the
    /// write comes to it. Given out once.
    pub fn take_room(&mut self) -> Option<Begun> {
        self.room.take()
    }
}

/// What followed from the end of a write, a reset or a finish.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "tickets that are dropped wait for ever"]
pub struct Settled {
    /// The requests that waited for this zone: to be made again, in this order.
    pub woken: Vec<Ticket>,
    /// Where a device keeps the zones: this zone is to be asked for there, now that nothing is under way in it any more. To be ended
    /// with [`ResetEnd::Told`].
    pub reread: Option<Begun>,
}

/// A reset or a finish that was begun, or any change that a device below must make, too: the zone admits nothing until it is ended.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the zone stays busy until this is ended"]
pub struct Begun {
    pub(crate) zone: u32,
    pub(crate) before: ZoneState,
    /// A zone that was closed to make room for this one, and what it was before.
    pub(crate) room: Option<(u32, ZoneState)>,
}

impl Begun {
    /// The zone's index.
    pub fn zone(&self) -> u32 {
        self.zone
    }

    /// The zone that was closed to make room for this one (V27), where a device keeps the zones: it is to be closed there first, and
    /// ended like this one. Given out once.
    pub fn take_room(&mut self) -> Option<Begun> {
        let (zone, before) = self.room.take()?;
        Some(Begun { zone, before, room: None })
    }
}

/// How a reset or finish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetEnd {
    /// It is durable.
    Done,
    /// It could not be made durable and nothing was changed: the zone is as it was, but for an implicitly open one, which is
    /// closed.
    Undone,
    /// It is durable, but the zone's old data could not be taken away for now: the zone is empty, reads as zeros, and takes no
    /// write before another reset has ended with [`Done`](Self::Done). A gap in it could show what was there.
    Unswept,
    /// The medium under the zone is bad, and its old data can't be taken away: the zone goes offline.
    Lost,
    /// This is what the device says that the zone is now, whatever was asked of it. A state that the zone can't be in makes it offline.
    Told(ZoneState),
}

/// What becomes of a zone whose medium has failed. There is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retirement {
    /// It can't be written any more (V28).
    ReadOnly,
    /// It can't even be read (V29).
    Offline,
}

/// One zone, as a report shows it. Lengths and positions in 512-byte sectors from the disk's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneReport {
    /// What may be done with it.
    pub kind: ZoneKind,
    /// The zone's condition.
    pub condition: Condition,
    /// First sector.
    pub start: u64,
    /// Length.
    pub len: u64,
    /// Writable sectors.
    pub capacity: u64,
    /// Where the next write goes; the zone's end for conditions without a valid write pointer (full, read-only, offline,
    /// conventional).
    pub wp: u64,
}

/// The states that a table was to start with can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum InitialStateError {
    #[error("{found} zone states were given for a disk of {expected} zones")]
    Count { found: usize, expected: u32 },
    #[error(transparent)]
    State(#[from] StateError),
    #[error(
        "zone {zone} is {condition:?} with {wp_sectors} sectors written, which no zone is when nothing is under way"
    )]
    NotAtRest { zone: u32, condition: Condition, wp_sectors: u32 },
    #[error("{active} zones are active where the disk allows {max_active_zones}")]
    TooManyActive { active: u32, max_active_zones: u32 },
    #[error("{open} zones are open where the disk allows {max_open_zones}")]
    TooManyOpen { open: u32, max_open_zones: u32 },
}
