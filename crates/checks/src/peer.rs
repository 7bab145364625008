//! What is expected of the other end, as data.

use virtio_zbd_driver::{DeviceError, RequestType};

/// What kind of other end the disk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, as [`Peer::from_name`] takes it.
    pub name: &'static str,
    /// Whether the disk must have zones.
    pub expected: Expected,
    /// What it answers to what it refuses.
    pub refusals: Refusals,
    /// What discarded sectors read as.
    pub discarded: Discarded,
    /// What unwritten sectors of sequential zones read as (V31).
    pub unwritten: Unwritten,
    /// Whether WRITE_ZEROES is offered on a host-managed disk (G3: no; Q4: yes).
    pub write_zeroes_on_zones: bool,
    /// Whether a read that crosses the border of two sequential zones is served, which V25 forbids.
    pub reads_across_zones: bool,
    /// Whether an append to a finished zone goes to the beginning of the next one, if that is empty: the write pointer that QEMU
    /// keeps of a finished zone is the zone's end, and it writes there.
    pub appends_behind_full_zones: bool,
    /// What it does when a zone must be opened, the open limit is reached, and a zone is implicitly open (V27).
    pub makes_room: MakesRoom,
}

/// What the disk must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Host-managed.
    HostManaged,
    /// Without zones.
    Regular,
}

/// How room is made for one more open zone (V27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MakesRoom {
    /// By closing the zone that has been implicitly open longest.
    Oldest,
    /// By closing one of the implicitly open zones.
    Some,
    /// Not at all: the request is refused.
    Never,
}

/// How a peer's refusals relate to those of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// Each status is the one that the rules V12 to V32 name.
    AsSpecified,
    /// QEMU's (Q3): a write that is not possible is IOERR, any other zone request INVALID_CMD; never a resource status.
    Qemu,
}

/// What discarded sectors read as; the specification leaves it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// Zeros.
    Zeros,
    /// Each what it was, or zeros.
    KeptOrZeros,
}

/// What unwritten sectors of sequential zones read as; the specification leaves the pattern open (V31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// Zeros.
    Zeros,
    /// Each sector zeros, or ones: Linux' null_blk, behind QEMU's device, has ones beyond the write pointer and zeros in
    /// what a finish has skipped.
    ZerosOrOnes,
}

impl Peer {
    /// Our device with zones: every status is the rules'.
    pub const EXACT: Self = Self {
        name: "exact",
        expected: Expected::HostManaged,
        refusals: Refusals::AsSpecified,
        discarded: Discarded::Zeros,
        unwritten: Unwritten::Zeros,
        write_zeroes_on_zones: false,
        reads_across_zones: false,
        appends_behind_full_zones: false,
        makes_room: MakesRoom::Oldest,
    };

    /// Our device without zones.
    pub const EXACT_PLAIN: Self = Self { name: "exact-plain", expected: Expected::Regular, ..Self::EXACT };

    /// QEMU's device on a zoned disk of its host (Q1 to Q5).
    pub const QEMU: Self = Self {
        name: "qemu",
        expected: Expected::HostManaged,
        refusals: Refusals::Qemu,
        discarded: Discarded::KeptOrZeros,
        unwritten: Unwritten::ZerosOrOnes,
        write_zeroes_on_zones: true,
        reads_across_zones: true,
        appends_behind_full_zones: true,
        makes_room: MakesRoom::Some,
    };

    /// Any disk without zones.
    pub const PLAIN: Self =
        Self { name: "plain", expected: Expected::Regular, discarded: Discarded::KeptOrZeros, ..Self::EXACT };

    /// All that there are.
    pub const ALL: [Self; 4] = [Self::EXACT, Self::EXACT_PLAIN, Self::QEMU, Self::PLAIN];

    /// The peer with this name: `exact`, `exact-plain`, `qemu` or `plain`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name == name)
    }

    /// What it answers where the rules ask for `status`.
    pub(crate) fn status(&self, request: RequestType, status: DeviceError) -> DeviceError {
        match (self.refusals, request) {
            (Refusals::AsSpecified, _) => status,
            (Refusals::Qemu, RequestType::Out) => DeviceError::IoError,
            (Refusals::Qemu, _) => DeviceError::InvalidCommand,
        }
    }

    /// A word for lines in which refusals were expected other than the rules want them.
    pub(crate) fn about_refusals(&self) -> &'static str {
        match self.refusals {
            Refusals::AsSpecified => "",
            Refusals::Qemu => "Q3: IOERR for writes, INVALID_CMD for all else",
        }
    }
}
