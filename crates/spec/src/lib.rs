//! The wire format of a virtio block device with zones, and nothing else.
//!
//! Every structure is plain little-endian bytes (`zerocopy`, alignment 1), every constant names its section of the
//! virtio specification, version 1.3 ("5.2.6" stands for that section there). There is no logic here and no legacy
//! interface: only virtio 1.x.
//!
//! | Module | What it holds |
//! |---|---|
//! | [`features`] | the feature bits of the block device, the ring and the transport |
//! | [`config`] | the configuration space, zoned characteristics included |
//! | [`request`] | request header, request types, status bytes, payloads |
//! | [`zone`] | the zone report: header, descriptors, zone types and states |
//! | [`ring`] | the split virtqueue and the device status bits |
//!
//! Sectors are always [`SECTOR_LEN_BYTES`] (512) bytes, whatever the block size of the disk is.
//!
//! Structures from a peer are read with `zerocopy`'s traits; the numbers in them stay untrusted until they went through
//! one of the `TryFrom`s here and through the checks of the crate that uses them:
//!
//! ```
//! use virtio_zbd_spec::{OutHeader, RequestType};
//! use zerocopy::FromBytes;
//!
//! let bytes = [15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0];
//! let header = OutHeader::read_from_bytes(&bytes).unwrap();
//! assert_eq!(RequestType::try_from(header.request_type.get()), Ok(RequestType::ZoneAppend));
//! assert_eq!(header.sector.get(), 0x2_0000);
//! ```

#![no_std]
#![forbid(unsafe_code)]

pub mod config;
pub mod features;
pub mod request;
pub mod ring;
pub mod zone;

mod wire;

pub use config::{BlkConfig, Geometry, Model, Topology, ZonedCharacteristics};
pub use features::Features;
pub use request::{
    AppendInHeader, DiscardWriteZeroes, ID_LEN_BYTES, Lifetime, OutHeader, RequestType, SECTOR_LEN_BYTES,
    SegmentFlags, Status,
};
pub use ring::{Descriptor, DescriptorFlags, DeviceStatus, UsedElem};
pub use wire::UnknownValue;
pub use zone::{ReportHeader, ZoneDescriptor, ZoneState, ZoneType};

/// The virtio device ID of a block device (5.2.1).
pub const DEVICE_ID: u32 = 2;
