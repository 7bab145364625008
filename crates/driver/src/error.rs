//! What can go wrong, kept apart by who said it: the device's status, the device's lies, the caller, the probe.

use virtio_drivers::transport::DeviceType;
use virtio_zbd_spec::{Features, RequestType, Status, ZoneState, ZoneType};

/// Why a call did not do what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device took the request and answered with a status other than OK (5.2.6.1).
    #[error("{request:?} at sector {sector}: {status}")]
    Device {
        /// What was asked.
        request: RequestType,
        /// The sector in its header.
        sector: u64,
        /// What the device said.
        status: DeviceError,
    },
    /// What the device said can't be: the command was right, the device's data is wrong (L9).
    #[error("the device's data is wrong: {0}")]
    Wrong(#[from] Wrong),
    /// The call can't be made on this disk; nothing was sent.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// The disk can't be taken into use.
    #[error("the disk can't be used: {0}")]
    Probe(#[from] ProbeError),
    /// As many requests are in flight as the queue holds; take completions, then try again (L13).
    #[error("the queue is full: take completions first")]
    QueueFull,
    /// No memory for a buffer (L13).
    #[error("no memory for a buffer")]
    NoMemory,
    /// The device is gone: unplugged, or its connection was lost (L8).
    #[error("the device is gone")]
    Removed,
    /// The device did not answer while the caller's patience lasted; it was reset.
    #[error("the device did not answer in time")]
    TimedOut,
    /// The device asked for a reset (DEVICE_NEEDS_RESET, 2.1.2); it was reset.
    #[error("the device says that it needs a reset")]
    NeedsReset,
    /// The device broke the ring's rules, did not answer or asked for a reset before; probe it anew.
    #[error("the device failed before and was reset: probe it anew")]
    Broken,
    /// The transport or the host's memory failed (L13).
    #[error("the transport failed: {0}")]
    Transport(virtio_drivers::Error),
}

/// A status other than OK, as the device gave it (L10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// IOERR: the medium failed, or the device does not say more.
    #[error("I/O error")]
    IoError,
    /// UNSUPP: the device does not know this request.
    #[error("not supported by the device")]
    Unsupported,
    /// ZONE_INVALID_CMD: not possible for this zone in its state, or beyond its capacity.
    #[error("not possible for this zone now (INVALID_CMD)")]
    InvalidCommand,
    /// ZONE_UNALIGNED_WP: a write that was not at the write pointer.
    #[error("not at the zone's write pointer (UNALIGNED_WP)")]
    UnalignedWritePointer,
    /// ZONE_OPEN_RESOURCE: as many zones are open as the device can hold.
    #[error("too many open zones (OPEN_RESOURCE)")]
    OpenResource,
    /// ZONE_ACTIVE_RESOURCE: as many zones are active as the device can hold.
    #[error("too many active zones (ACTIVE_RESOURCE)")]
    ActiveResource,
}

impl DeviceError {
    /// The error of a status byte; `None` when it is OK.
    pub(crate) fn from_status(status: u8) -> Result<Option<Self>, Wrong> {
        Ok(match Status::try_from(status).map_err(|_| Wrong::Status(status))? {
            Status::Ok => None,
            Status::IoErr => Some(Self::IoError),
            Status::Unsupp => Some(Self::Unsupported),
            Status::ZoneInvalidCmd => Some(Self::InvalidCommand),
            Status::ZoneUnalignedWp => Some(Self::UnalignedWritePointer),
            Status::ZoneOpenResource => Some(Self::OpenResource),
            Status::ZoneActiveResource => Some(Self::ActiveResource),
        })
    }
}

/// What a device said that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// A used ring entry names a descriptor chain that is not in flight.
    #[error("used id {id} on queue {queue} is not in flight")]
    UsedId {
        /// The queue.
        queue: u16,
        /// The id in the used ring.
        id: u32,
    },
    /// The used ring's index ran ahead of what is in flight.
    #[error("queue {queue} is said to be done with {done} requests, {in_flight} are in flight")]
    UsedIdx {
        /// The queue.
        queue: u16,
        /// How many the device says it is done with.
        done: u16,
        /// How many it has.
        in_flight: u16,
    },
    /// A used ring entry says that more was written than there was room for.
    #[error("{found_bytes} bytes were written into a request with room for {room_bytes}")]
    UsedLen {
        /// What the device says it wrote.
        found_bytes: u32,
        /// What it could write at most.
        room_bytes: u64,
    },
    /// The device wrote into what it may only read, or into nothing that it was lent. Only a [raw](crate::raw) device is looked at
    /// that closely.
    #[error("the device wrote beside the writable pieces of a request on queue {queue}")]
    WrittenBeside {
        /// The queue.
        queue: u16,
    },
    /// A read is said to be done, and less was written than was asked for.
    #[error("a request is said to be done with {found_bytes} bytes written, expected {expected_bytes}")]
    UsedShort {
        /// What the device says it wrote.
        found_bytes: u32,
        /// What it had to write.
        expected_bytes: u64,
    },
    /// The status byte is none of the specification's, or was never written (255).
    #[error("status {0} is not a known one")]
    Status(u8),
    /// An append's sector lies outside the zone, or is not aligned, or leaves no room for what was written (R11).
    #[error(
        "an append to the zone at sector {zone_start_sector} is said to have landed at sector {found_sector}"
    )]
    AppendSector {
        /// The zone appended to.
        zone_start_sector: u64,
        /// Where the device says that the data is.
        found_sector: u64,
    },
    /// More zones are reported than there is room for in the report's buffer (B1).
    #[error("{nr_zones} zones are reported in a buffer with room for {room}")]
    ReportOverrun {
        /// The device's count.
        nr_zones: u64,
        /// How many descriptors fit.
        room: usize,
    },
    /// More zones are reported than the disk has from there on.
    #[error("{nr_zones} zones are reported from sector {sector} on, where the disk has {left}")]
    ReportBeyondEnd {
        /// The device's count.
        nr_zones: u64,
        /// Where the report began.
        sector: u64,
        /// How many zones are left.
        left: u64,
    },
    /// No zone is reported although the disk goes on (L8).
    #[error("no zone is reported from sector {sector} on, and the disk goes on")]
    ReportEmpty {
        /// Where the report began.
        sector: u64,
    },
    /// A zone does not begin where the one before it ended: gap, overlap, repetition or disorder.
    #[error("a zone begins at sector {found_sector}, expected at {expected_sector}")]
    ZoneStart {
        /// Where the zone had to begin.
        expected_sector: u64,
        /// Where the device says it begins.
        found_sector: u64,
    },
    /// A zone's type is none of the specification's.
    #[error("the zone at sector {start_sector} has the unknown type {found}")]
    ZoneType {
        /// The zone.
        start_sector: u64,
        /// The type's number.
        found: u8,
    },
    /// A zone's state is none of the specification's.
    #[error("the zone at sector {start_sector} has the unknown state {found}")]
    ZoneState {
        /// The zone.
        start_sector: u64,
        /// The state's number.
        found: u8,
    },
    /// A zone's state can't be one of its type: a conventional zone has no write pointer, another one has.
    #[error("the zone at sector {start_sector} is {kind:?} and in state {state:?}")]
    ZoneStateOfType {
        /// The zone.
        start_sector: u64,
        /// Its type.
        kind: ZoneType,
        /// Its state.
        state: ZoneState,
    },
    /// A zone's capacity is larger than the zone, or not a conventional zone's whole length, or 0.
    #[error(
        "the zone at sector {start_sector}, {len_sectors} sectors long, has a capacity of {found_sectors}"
    )]
    ZoneCapacity {
        /// The zone.
        start_sector: u64,
        /// Its length.
        len_sectors: u64,
        /// The capacity that the device gives.
        found_sectors: u64,
    },
    /// A zone's write pointer lies outside its capacity, or not at the start of an empty zone.
    #[error(
        "the zone at sector {start_sector} in state {state:?} has its write pointer at sector {found_sector}"
    )]
    ZoneWritePointer {
        /// The zone.
        start_sector: u64,
        /// Its state.
        state: ZoneState,
        /// The write pointer that the device gives.
        found_sector: u64,
    },
}

/// Why a call can't be made on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The range reaches past the end of the disk.
    #[error("{sectors} sectors from sector {sector} on reach past the end of the disk at {capacity_sectors}")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u64,
        /// The disk's size.
        capacity_sectors: u64,
    },
    /// Nothing to do: an empty range.
    #[error("the range at sector {sector} is empty")]
    Empty {
        /// First sector.
        sector: u64,
    },
    /// A place or a length is not a multiple of what the disk asks for: its block, or for an append its write
    /// granularity (R10).
    #[error("sector {sector} and {len_bytes} bytes: both must be multiples of {unit_bytes} bytes")]
    Misaligned {
        /// First sector.
        sector: u64,
        /// Length of the data.
        len_bytes: u64,
        /// What both must be multiples of.
        unit_bytes: u32,
    },
    /// One request can't carry that much; [`Limits`](crate::Limits) says how much.
    #[error("{len_bytes} bytes are more than one request may carry ({max_bytes})")]
    TooLong {
        /// Length of the data.
        len_bytes: u64,
        /// The most that one request carries.
        max_bytes: u64,
    },
    /// The disk is read-only (RO).
    #[error("the disk is read-only")]
    ReadOnly,
    /// The disk has no zones.
    #[error("the disk has no zones")]
    NotZoned,
    /// The device did not offer this kind of request, or it must not be used on a zoned disk.
    #[error("the device does not offer {0:?}")]
    NotOffered(RequestType),
    /// Zone commands carry the zone's first sector (R8, R10).
    #[error("sector {sector} is not the start of a zone (zones are {zone_sectors} sectors long)")]
    NotZoneStart {
        /// The sector given.
        sector: u64,
        /// The zones' length.
        zone_sectors: u32,
    },
    /// The device does not let its cache be switched (CONFIG_WCE).
    #[error("the device does not let its cache be switched")]
    CacheModeFixed,
    /// The disk has no such queue.
    #[error("there is no queue {queue}: the disk runs with {queues}")]
    NoSuchQueue {
        /// The queue asked for.
        queue: u16,
        /// How many there are.
        queues: u16,
    },
}

/// Why a disk can't be taken into use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// It is another device.
    #[error("it is a {0:?} device, not a block device")]
    NotABlockDevice(DeviceType),
    /// The device's status never became 0 after a reset (2.4.1).
    #[error("the device does not come out of its reset")]
    NoReset,
    /// The device does not offer VERSION_1: only virtio 1.x is spoken.
    #[error("it speaks only the legacy protocol (no VERSION_1)")]
    NoVersion1,
    /// FEATURES_OK did not stand: the device refuses what was chosen (3.1.1, V4). FAILED was set (R4).
    #[error("the device refuses the features {0:?}")]
    FeaturesRefused(Features),
    /// A host-managed disk, and the caller said that it can't cope with zones (L3).
    #[error("it is host-managed zoned, and zones are not wanted")]
    ZonesNotWanted,
    /// The zoned model is none of the specification's.
    #[error("the zoned model {0} is unknown")]
    UnknownModel(u8),
    /// The configuration space ends before a field that the features say is there.
    #[error("the configuration space ends before byte {end_bytes}, which the features {features:?} ask for")]
    ConfigTooSmall {
        /// Where the field ends.
        end_bytes: usize,
        /// What was negotiated.
        features: Features,
    },
    /// The configuration changed at each of many attempts to read it (2.5.1).
    #[error("the configuration never stands still")]
    ConfigUnstable,
    /// The capacity is beyond what byte addresses can name.
    #[error("a capacity of {0} sectors is beyond all addresses")]
    Capacity(u64),
    /// The block size is not a power of two from 512 bytes to 16 MiB.
    #[error("the block size {0} is not a power of two from 512 on")]
    BlockLen(u32),
    /// seg_max and size_max leave no room for one block.
    #[error(
        "seg_max {segments_max} and size_max {segment_len_bytes_max} leave no room for {unit_bytes} bytes"
    )]
    TransferTooSmall {
        /// How many segments a request may have.
        segments_max: u32,
        /// How long a segment may be.
        segment_len_bytes_max: u32,
        /// What must fit.
        unit_bytes: u64,
    },
    /// A host-managed disk with a zone size of 0 (L5).
    #[error("the zone size is 0")]
    ZoneSize,
    /// More zones than 32 bits count.
    #[error("{0} zones are more than any disk has")]
    TooManyZones(u64),
    /// The write granularity is 0 (L4) or no multiple of a sector (R6).
    #[error("the write granularity {0} is not a multiple of 512")]
    WriteGranularity(u32),
    /// Zones can't be written because they are no multiple of the write granularity or the block.
    #[error("zones of {zone_sectors} sectors are no multiple of {unit_bytes} bytes")]
    ZoneNotAligned {
        /// The zones' length.
        zone_sectors: u32,
        /// The granularity or the block.
        unit_bytes: u32,
    },
    /// The largest append is smaller than the smallest write (L7, B4).
    #[error(
        "max_append_sectors {append_sectors_max} is less than the write granularity of {write_granularity_bytes} bytes"
    )]
    AppendBelowGranularity {
        /// The device's largest append.
        append_sectors_max: u32,
        /// The device's smallest write.
        write_granularity_bytes: u32,
    },
    /// A queue is missing or too small for a single request.
    #[error("queue {queue} has room for {found} descriptors, at least {expected} are needed")]
    QueueTooSmall {
        /// Which queue.
        queue: u16,
        /// What the device has.
        found: u32,
        /// What is needed.
        expected: u16,
    },
}
