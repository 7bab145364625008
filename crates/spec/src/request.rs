//! Requests: header, types, status, payloads (5.2.6).
//!
//! A request is device-readable [`OutHeader`] and data, then device-writable data and in-header. The in-header is one
//! [`Status`] byte, for ZONE_APPEND an [`AppendInHeader`]; the status is always the last byte. How these parts are
//! spread over descriptors is free (2.7.4).

use core::mem::{offset_of, size_of};

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::wire_enum;

/// The unit of every `sector` and `sectors` on the wire, in bytes (5.2.4, 5.2.6).
pub const SECTOR_LEN_BYTES: u64 = 512;

/// The length of what GET_ID returns, padded with NUL, in bytes (5.2.6).
pub const ID_LEN_BYTES: usize = 20;

/// What every request begins with, device-readable, 16 bytes: the first fields of `struct virtio_blk_req` (5.2.6).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OutHeader {
    /// A [`RequestType`].
    pub request_type: U32,
    /// Once a priority; without meaning now.
    pub reserved: U32,
    /// Where to, in sectors; 0 for requests that go nowhere.
    pub sector: U64,
}

wire_enum! {
    /// What a request wants: `type` in [`OutHeader`] (5.2.6).
    pub enum RequestType: u32 as "request type" {
        /// `VIRTIO_BLK_T_IN`: read.
        In = 0,
        /// `VIRTIO_BLK_T_OUT`: write.
        Out = 1,
        /// `VIRTIO_BLK_T_FLUSH`: make what was written durable.
        Flush = 4,
        /// `VIRTIO_BLK_T_GET_ID`: the disk's serial, [`ID_LEN_BYTES`] bytes.
        GetId = 8,
        /// `VIRTIO_BLK_T_GET_LIFETIME`: the medium's wear, a [`Lifetime`].
        GetLifetime = 10,
        /// `VIRTIO_BLK_T_DISCARD`: the ranges' contents are no longer needed.
        Discard = 11,
        /// `VIRTIO_BLK_T_WRITE_ZEROES`: the ranges read as zeros from now on.
        WriteZeroes = 13,
        /// `VIRTIO_BLK_T_SECURE_ERASE`: the ranges' contents are destroyed.
        SecureErase = 14,
        /// `VIRTIO_BLK_T_ZONE_APPEND`: write at the write pointer, tell where that was.
        ZoneAppend = 15,
        /// `VIRTIO_BLK_T_ZONE_REPORT`: describe zones from the one that holds `sector` on.
        ZoneReport = 16,
        /// `VIRTIO_BLK_T_ZONE_OPEN`: open a zone explicitly.
        ZoneOpen = 18,
        /// `VIRTIO_BLK_T_ZONE_CLOSE`: close a zone.
        ZoneClose = 20,
        /// `VIRTIO_BLK_T_ZONE_FINISH`: make a zone full.
        ZoneFinish = 22,
        /// `VIRTIO_BLK_T_ZONE_RESET`: make a zone empty.
        ZoneReset = 24,
        /// `VIRTIO_BLK_T_ZONE_RESET_ALL`: make every sequential zone empty that can be.
        ZoneResetAll = 26,
    }
}

impl RequestType {
    /// Whether this is one of the seven requests that came with zones, and that are answered with UNSUPP where ZONED was
    /// not negotiated (5.2.6.2, V12).
    #[must_use]
    pub const fn is_zoned(self) -> bool {
        matches!(
            self,
            Self::ZoneAppend
                | Self::ZoneReport
                | Self::ZoneOpen
                | Self::ZoneClose
                | Self::ZoneFinish
                | Self::ZoneReset
                | Self::ZoneResetAll
        )
    }

    /// The length of the in-header in bytes: 9 for ZONE_APPEND, 1 for all others (5.2.6).
    #[must_use]
    pub const fn in_header_len_bytes(self) -> usize {
        match self {
            Self::ZoneAppend => size_of::<AppendInHeader>(),
            _ => size_of::<Status>(),
        }
    }
}

wire_enum! {
    /// How a request went: the last byte that the device writes (5.2.6).
    pub enum Status: u8 as "request status" {
        /// `VIRTIO_BLK_S_OK`: done.
        Ok = 0,
        /// `VIRTIO_BLK_S_IOERR`: an error of the device or of the driver.
        IoErr = 1,
        /// `VIRTIO_BLK_S_UNSUPP`: the device does not support this request.
        Unsupp = 2,
        /// `VIRTIO_BLK_S_ZONE_INVALID_CMD`: the zone does not allow it.
        ZoneInvalidCmd = 3,
        /// `VIRTIO_BLK_S_ZONE_UNALIGNED_WP`: the write is not at the zone's write pointer.
        ZoneUnalignedWp = 4,
        /// `VIRTIO_BLK_S_ZONE_OPEN_RESOURCE`: too many zones would be open.
        ZoneOpenResource = 5,
        /// `VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE`: too many zones would be active.
        ZoneActiveResource = 6,
    }
}

/// The in-header of ZONE_APPEND, device-writable, 9 bytes: the last fields of `struct virtio_blk_req_za` (5.2.6).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct AppendInHeader {
    /// The first sector of the data in the zone; counts with [`Status::Ok`] only (5.2.6.2, V23).
    pub append_sector: U64,
    /// A [`Status`].
    pub status: u8,
}

/// `struct virtio_blk_discard_write_zeroes`: one range of a DISCARD, WRITE_ZEROES or SECURE_ERASE, 16 bytes (5.2.6).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DiscardWriteZeroes {
    /// The range's first sector.
    pub sector: U64,
    /// The range's length in sectors.
    pub num_sectors: U32,
    /// [`SegmentFlags`]; an unknown bit makes the request unsupported (5.2.6.2).
    pub flags: U32,
}

bitflags! {
    /// `flags` in [`DiscardWriteZeroes`] (5.2.6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct SegmentFlags: u32 {
        /// `unmap`: WRITE_ZEROES may give the range's space back. Never set for DISCARD (5.2.6.1).
        const UNMAP = 1;
    }
}

/// `struct virtio_blk_lifetime`: what GET_LIFETIME returns, 6 bytes (5.2.6).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Lifetime {
    /// A [`PreEolInfo`].
    pub pre_eol_info: U16,
    /// Wear of SLC cells in steps of 10 %: 0 unknown, 1 up to 10 %, ..., [`LIFETIME_EXCEEDED`] past the end.
    pub device_lifetime_est_typ_a: U16,
    /// Wear of MLC cells, in the same steps.
    pub device_lifetime_est_typ_b: U16,
}

/// The highest estimate in [`Lifetime`]: the expected lifetime is exceeded (5.2.6).
pub const LIFETIME_EXCEEDED: u16 = 11;

wire_enum! {
    /// How many of the reserved blocks are consumed: `pre_eol_info` in [`Lifetime`] (5.2.6).
    pub enum PreEolInfo: u16 as "pre-EOL information" {
        /// `VIRTIO_BLK_PRE_EOL_INFO_UNDEFINED`: not known.
        Undefined = 0,
        /// `VIRTIO_BLK_PRE_EOL_INFO_NORMAL`: less than 80 %.
        Normal = 1,
        /// `VIRTIO_BLK_PRE_EOL_INFO_WARNING`: 80 %.
        Warning = 2,
        /// `VIRTIO_BLK_PRE_EOL_INFO_URGENT`: 90 %.
        Urgent = 3,
    }
}

const _: () = {
    assert!(size_of::<OutHeader>() == 16);
    assert!(offset_of!(OutHeader, request_type) == 0);
    assert!(offset_of!(OutHeader, reserved) == 4);
    assert!(offset_of!(OutHeader, sector) == 8);

    assert!(size_of::<Status>() == 1);
    assert!(size_of::<AppendInHeader>() == 9);
    assert!(offset_of!(AppendInHeader, append_sector) == 0);
    assert!(offset_of!(AppendInHeader, status) == 8);

    assert!(size_of::<DiscardWriteZeroes>() == 16);
    assert!(offset_of!(DiscardWriteZeroes, sector) == 0);
    assert!(offset_of!(DiscardWriteZeroes, num_sectors) == 8);
    assert!(offset_of!(DiscardWriteZeroes, flags) == 12);

    assert!(size_of::<Lifetime>() == 6);
    assert!(offset_of!(Lifetime, pre_eol_info) == 0);
    assert!(offset_of!(Lifetime, device_lifetime_est_typ_a) == 2);
    assert!(offset_of!(Lifetime, device_lifetime_est_typ_b) == 4);
};
