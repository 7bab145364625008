//! What every store is to the disk on top of it.

use std::fmt;
use std::io;

use virtio_zbd_zones::{Geometry, ZoneState};

use crate::error::StoreError;
use crate::lane::{EngineChoice, Lane};

/// One disk's sectors and zone states; shared by all queues.
///
/// # Who owes what
/// The caller (a device) publishes every change of a zone under that zone's lock, once the data below the new
/// write pointer has arrived (the lane has said so). It publishes that a zone is empty or full before another
/// zone may take the freed resource, and sends nothing to a zone that is being reset until
/// [`commit`](Self::commit) has returned. The store makes durable what it is told to, in an order that leaves
/// a good disk whenever the process or the machine stops, and never panics on what it finds on its medium.
pub trait Store: Send + Sync {
    /// Length of the disk at the moment: see [`grow`](Self::grow).
    fn capacity_bytes(&self) -> u64;

    /// The zones at the moment; `None`: a plain disk without zones.
    fn geometry(&self) -> Option<Geometry>;

    /// What the disk calls itself.
    fn identity(&self) -> Identity;

    /// A number that changes when the store goes back to what was flushed: states that were published, and the data below their
    /// write pointers, may be gone. As long as it stays the same, everything published is there, in however many processes
    /// (D5).
    fn history(&self) -> u64 {
        0
    }

    /// The state of each zone as a restart finds it (D4); empty for a plain disk. Meant to be asked once,
    /// before the first [`publish`](Self::publish).
    fn initial_states(&self) -> Vec<ZoneState>;

    /// `zone` is now in `state`. One aligned 8-byte store and a mark: never blocks, never fails. The state
    /// outlives the process from now on (D5), the machine only after a commit. A zone that the disk does not
    /// have is ignored.
    fn publish(&self, zone: u32, state: ZoneState);

    /// Whether the store keeps the zones' conditions itself, as a zoned device of the host does. It must be told of every change, by
    /// [`commit`](Self::commit), before anything that rests on it comes to the store; and after a failed write it alone knows what the zone is.
    fn keeps_conditions(&self) -> bool {
        false
    }

    /// Makes durable what `work` asks for. Blocking; calls from several threads wait for one another.
    ///
    /// With [`Commit::flush`], all that was published and written before the call (D1). Of each finished zone
    /// the data, then its state. Of each reset zone that it is empty, and after that its old data is given
    /// back (D3). Everything that may be answered after this call is in [`CommitOutcome::durable`].
    fn commit(&self, work: &Commit<'_>) -> CommitOutcome;

    /// A way to the sectors for one queue's worker. The lane may be made on one thread and used on another.
    ///
    /// # Errors
    /// No more file descriptors or memory; [`EngineChoice::IoUring`] where it is forbidden.
    fn open_lane(&self, engine: EngineChoice) -> io::Result<Lane>;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The last flush; marks the disk as closed cleanly. The lanes must be idle. Further calls do nothing and
    /// succeed; commits and writes after it fail. A store that is dropped without it is found as after a
    /// kill, and loses nothing (D5).
    ///
    /// # Errors
    /// The flush failed: the disk is left as after a kill.
    fn close(&self) -> Result<(), StoreError>;

    /// Makes the disk `capacity_sectors` long: zones are added at its end, and a last zone that is shorter than the others grows
    /// first. Durable when it returns; whenever the process or the machine stops in between, the next opening finds the disk
    /// as it was or as it is to be, whole. Lanes that are open reach the new sectors, too.
    ///
    /// May be called while queues run. The new zones are as on a disk that was never used, every other one keeps its state, and
    /// nothing is [published](Self::publish) of a new zone before this has returned. Calls wait for one another and for commits.
    ///
    /// # Errors
    /// The disk would become shorter, or can't grow that far or at all; the medium's. It is as before, unless nothing can be made durable any
    /// more: then the next opening finds one of the two.
    fn grow(&self, capacity_sectors: u64) -> Result<(), StoreError> {
        let _ = capacity_sectors;
        Err(StoreError::NoGrowth {
            name: self.identity().description,
            why: "disks of its kind can't".to_owned(),
        })
    }

    /// Ends the store as a power cut would that leaves the zones in `states`, one for each, as a restart finds them, and the
    /// sectors as they are. The lanes must be gone. Whoever opens it next finds that the machine was stopped. What lies
    /// behind the zones' data goes then, at the latest.
    ///
    /// # Errors
    /// Not every store can be ended so; the medium's.
    fn cut_power(&self, states: &[ZoneState]) -> Result<(), StoreError> {
        let _ = states;
        Err(StoreError::NoPowerCut { name: self.identity().description })
    }
}

/// What to make durable.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commit<'a> {
    /// Everything that was written and published before the call.
    pub flush: bool,
    /// Zones that were published as full, read-only or offline, so that their finish or their failure can be answered: of
    /// each the data, then the state.
    pub finished: &'a [u32],
    /// Zones that were published as empty and whose reset shall be answered.
    pub reset: &'a [u32],
    /// Zones that are to be closed. Like the two below, only where the store [keeps conditions](Store::keeps_conditions).
    pub closed: &'a [u32],
    /// Zones that are to be opened explicitly, when others are closed.
    pub opened: &'a [u32],
    /// Zones in which nothing is under way and of which the store shall say what they are.
    pub reread: &'a [u32],
}

/// How a commit ended.
#[derive(Debug)]
#[must_use]
pub struct CommitOutcome {
    /// Whether all that was asked for is durable. If not, nothing of the batch may be answered as done.
    pub durable: Result<(), StoreError>,
    /// Reset zones that are durably empty but whose old data could not be removed. Such a zone must not be
    /// written before a commit has reset it without this failure: a gap in it could show what was there. Whether
    /// it is worth another try is in the error ([`StoreError::medium_is_bad`]).
    pub hole_failures: Vec<(u32, StoreError)>,
    /// Only where the store [keeps conditions](Store::keeps_conditions): zones that were asked for, and those that the store could not change as it was
    /// told. What they are now; their requests have failed.
    pub told: Vec<(u32, ZoneState)>,
}

impl CommitOutcome {
    pub(crate) fn done() -> Self {
        Self { durable: Ok(()), hole_failures: Vec::new(), told: Vec::new() }
    }

    pub(crate) fn failed(error: StoreError) -> Self {
        Self { durable: Err(error), hole_failures: Vec::new(), told: Vec::new() }
    }
}

/// What a disk calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The answer to GET_ID: ASCII, padded with zeros at the end (virtio 1.3, 5.2.6).
    pub serial: [u8; 20],
    /// For logs: what it is and where.
    pub description: String,
}

impl Identity {
    /// The first 20 of `text`'s bytes that are printable ASCII become the serial.
    pub(crate) fn new(text: &str, description: String) -> Self {
        let mut serial = [0; 20];
        for (to, from) in serial.iter_mut().zip(text.bytes().filter(u8::is_ascii_graphic)) {
            *to = from;
        }
        Self { serial, description }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}
