//! The zone report (5.2.6): a [`ReportHeader`], then [`ZoneDescriptor`]s.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::wire_enum;

/// `struct virtio_blk_zone_report`: what a zone report begins with, 64 bytes (5.2.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReportHeader {
    /// The number of whole descriptors that follow in the buffer.
    pub nr_zones: U64,
    /// Zero.
    pub reserved: [u8; 56],
}

impl ReportHeader {
    /// The header of a report of `nr_zones` descriptors.
    #[must_use]
    pub const fn new(nr_zones: u64) -> Self {
        Self { nr_zones: U64::new(nr_zones), reserved: [0; 56] }
    }
}

/// `struct virtio_blk_zone_descriptor`: one zone of a report, 64 bytes (5.2.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ZoneDescriptor {
    /// How many sectors can be written from empty to full; not more than the zone's size.
    pub z_cap: U64,
    /// The zone's first sector.
    pub z_start: U64,
    /// The sector of the next write; without meaning for conventional, read-only, full and offline zones.
    pub z_wp: U64,
    /// A [`ZoneType`].
    pub z_type: u8,
    /// A [`ZoneState`].
    pub z_state: u8,
    /// Zero.
    pub reserved: [u8; 38],
}

impl ZoneDescriptor {
    /// A zone at `start`, with `capacity` and write pointer `wp`, all three in sectors.
    #[must_use]
    pub const fn new(kind: ZoneType, state: ZoneState, start: u64, capacity: u64, wp: u64) -> Self {
        Self {
            z_cap: U64::new(capacity),
            z_start: U64::new(start),
            z_wp: U64::new(wp),
            z_type: kind as u8,
            z_state: state as u8,
            reserved: [0; 38],
        }
    }
}

wire_enum! {
    /// How a zone may be written: `z_type` in [`ZoneDescriptor`] (5.2.6).
    pub enum ZoneType: u8 as "zone type" {
        /// `VIRTIO_BLK_ZT_CONV`: anywhere, like a regular disk.
        Conventional = 1,
        /// `VIRTIO_BLK_ZT_SWR`: at the write pointer only.
        SequentialRequired = 2,
        /// `VIRTIO_BLK_ZT_SWP`: at the write pointer for preference.
        SequentialPreferred = 3,
    }
}

wire_enum! {
    /// The state that a zone is in: `z_state` in [`ZoneDescriptor`] (5.2.6).
    pub enum ZoneState: u8 as "zone state" {
        /// `VIRTIO_BLK_ZS_NOT_WP`: a conventional zone, which has no write pointer.
        NotWp = 0,
        /// `VIRTIO_BLK_ZS_EMPTY`: nothing is written.
        Empty = 1,
        /// `VIRTIO_BLK_ZS_IOPEN`: opened by a write.
        ImplicitOpen = 2,
        /// `VIRTIO_BLK_ZS_EOPEN`: opened by ZONE_OPEN.
        ExplicitOpen = 3,
        /// `VIRTIO_BLK_ZS_CLOSED`: partly written, not open.
        Closed = 4,
        /// `VIRTIO_BLK_ZS_RDONLY`: can only be read; worn out.
        ReadOnly = 13,
        /// `VIRTIO_BLK_ZS_FULL`: takes no more writes until it is reset.
        Full = 14,
        /// `VIRTIO_BLK_ZS_OFFLINE`: can't be read or written; broken.
        Offline = 15,
    }
}

const _: () = {
    assert!(size_of::<ReportHeader>() == 64);
    assert!(offset_of!(ReportHeader, nr_zones) == 0);
    assert!(offset_of!(ReportHeader, reserved) == 8);

    assert!(size_of::<ZoneDescriptor>() == 64);
    assert!(offset_of!(ZoneDescriptor, z_cap) == 0);
    assert!(offset_of!(ZoneDescriptor, z_start) == 8);
    assert!(offset_of!(ZoneDescriptor, z_wp) == 16);
    assert!(offset_of!(ZoneDescriptor, z_type) == 24);
    assert!(offset_of!(ZoneDescriptor, z_state) == 25);
    assert!(offset_of!(ZoneDescriptor, reserved) == 26);
};
