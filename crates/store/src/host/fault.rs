//! What can be wrong with a device of the host.

use thiserror::Error;
use virtio_zbd_zones::{GeometryError, StateError};

/// Why a device of the host can't be served as a zoned disk. Positions and lengths are in sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum HostFault {
    #[error("it is no block device")]
    NotADevice,
    #[error(
        "it is no host-managed zoned device (/sys/block/.../queue/zoned says so); --zoned none serves a regular one"
    )]
    NotZoned,
    #[error("it is mounted or otherwise in use; a zoned device is served alone")]
    InUse,
    #[error("its attribute queue/{attribute} says {found:?}, where a number is expected")]
    Attribute { attribute: &'static str, found: String },
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    #[error("{found} zones are reported where {expected} are expected")]
    Count { found: u64, expected: u32 },
    #[error(
        "zone {zone} begins at sector {start} and is {len} sectors long, where it should begin at {expected_start} and be \
         {expected_len} long"
    )]
    Place { zone: u32, start: u64, len: u64, expected_start: u64, expected_len: u64 },
    #[error(
        "zone {zone} is of kind {kind}; only conventional (1) and sequential write required (2) zones can be served"
    )]
    Kind { zone: u32, kind: u8 },
    #[error("zone {zone} has a capacity of {found} sectors, where it should have {expected}")]
    Capacity { zone: u32, found: u64, expected: u64 },
    #[error("zone {zone} is in condition {condition}, which does not exist")]
    Condition { zone: u32, condition: u8 },
    #[error("the write pointer of zone {zone} is at sector {wp}, outside it")]
    WritePointer { zone: u32, wp: u64 },
    #[error(transparent)]
    State(#[from] StateError),
}
