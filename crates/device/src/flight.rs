//! The requests that a worker has taken and not answered yet.

use std::time::Instant;

use virtio_zbd_spec::Status;
use virtio_zbd_store::IoBuffer;
use virtio_zbd_zones::{Begun, Grant};

use crate::request::{InHeader, Request};

/// A request under way.
#[derive(Debug)]
pub(crate) struct Flight {
    /// The chain's head, for the used ring.
    pub(crate) head: u16,
    /// Where the answer goes.
    pub(crate) in_header: InHeader,
    /// What it waits for.
    pub(crate) step: Step,
    /// When it was taken from the ring; only where requests are traced.
    pub(crate) taken: Option<Instant>,
}

/// What a request waits for.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing yet: it is being started.
    Starting,
    /// A busy zone: it is made again when the zone is free.
    Waiting(Request),
    /// A busy zone on the way through all zones.
    WaitingToResetAll(ResetAll),
    /// The store's read from this sector on.
    Reading { sector: u64 },
    /// The store's reads of this many stretches more; the status is OK as long as none has failed.
    ReadingStretches { left: u32, status: Status },
    /// A look at other places of a zone where a read has failed.
    Probing(Probe),
    /// The store's write; of a zoned disk, the place it goes to. An append returns its sector.
    Writing { grant: Option<Grant>, sectors: u32, append: bool },
    /// Zeros over what a failed write has left in its sequential zone, before the zone is told; and whether the zone is to be
    /// written no more then.
    Clearing { grant: Grant, medium_is_bad: bool },
    /// Zeros for this many ranges more; the status is OK as long as none has failed.
    Zeroing { left: u32, status: Status },
    /// A flush, before this answer.
    Flushing { answer: Answer },
    /// A finish or reset being made durable, or any change that the store makes; and the zone that is closed to make room for it.
    Ending { begun: Begun, room: Option<Begun> },
    /// Another zone being closed, to make room for this write.
    MakingRoom { room: Begun, grant: Grant, sectors: u32, append: bool, buffer: IoBuffer },
    /// A zone in doubt, of which the store is asked before this answer.
    Rereading { begun: Begun, answer: Answer },
    /// All resets being made durable.
    EndingAll(Vec<Begun>),
}

impl Step {
    /// Whether the lane has something to do for the request.
    pub(crate) fn is_in_the_lane(&self) -> bool {
        match self {
            Self::Reading { .. }
            | Self::ReadingStretches { .. }
            | Self::Probing(_)
            | Self::Writing { .. }
            | Self::Clearing { .. }
            | Self::Zeroing { .. } => true,
            Self::Starting
            | Self::Waiting(_)
            | Self::WaitingToResetAll(_)
            | Self::Flushing { .. }
            | Self::Ending { .. }
            | Self::MakingRoom { .. }
            | Self::Rereading { .. }
            | Self::EndingAll(_) => false,
        }
    }
}

/// A RESET_ALL on its way through the zones.
#[derive(Debug, Default)]
pub(crate) struct ResetAll {
    pub(crate) next_zone: u32,
    pub(crate) begun: Vec<Begun>,
}

/// Whether a zone can be read at all: block after block is tried until one can.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) zone: u32,
    /// First sectors of the blocks that are still to be tried.
    pub(crate) left: Vec<u64>,
}

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    /// Of a successful append: where the data went.
    pub(crate) append_sector: Option<u64>,
    /// Whether the device filled all of the data that it may write.
    pub(crate) data_filled: bool,
}

impl Answer {
    pub(crate) fn status(status: Status) -> Self {
        Self { status, append_sector: None, data_filled: false }
    }

    pub(crate) const OK: Self = Self { status: Status::Ok, append_sector: None, data_filled: false };
    pub(crate) const FILLED: Self = Self { status: Status::Ok, append_sector: None, data_filled: true };
}

/// The requests of one worker, each in a slot of its own.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
    len: usize,
}

impl Flights {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes in a request. Returns its slot.
    pub(crate) fn insert(&mut self, flight: Flight) -> u32 {
        self.len += 1;
        if let Some(slot) = self.free.pop() {
            if let Some(place) = self.slots.get_mut(index(slot)) {
                *place = Some(flight);
            }
            return slot;
        }
        self.slots.push(Some(flight));
        // No more slots than descriptors in a queue.
        u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
    }

    /// The slots of all requests.
    pub(crate) fn slots(&self) -> Vec<u32> {
        (0..).zip(&self.slots).filter_map(|(slot, flight)| flight.as_ref().map(|_| slot)).collect()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Flight> {
        self.slots.get_mut(index(slot))?.as_mut()
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Flight> {
        let flight = self.slots.get_mut(index(slot))?.take()?;
        self.free.push(slot);
        self.len -= 1;
        Some(flight)
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}
