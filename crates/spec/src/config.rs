//! The device configuration space (5.2.4).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::wire_enum;

/// `struct virtio_blk_config`: the configuration space of the block device, 96 bytes (5.2.4).
///
/// Only `capacity` is always there; each other field counts when the feature that it names was negotiated.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BlkConfig {
    /// The disk's size in sectors.
    pub capacity: U64,
    /// The longest segment of a request in bytes (SIZE_MAX).
    pub size_max: U32,
    /// The most segments of a request (SEG_MAX).
    pub seg_max: U32,
    /// Cylinders, heads and sectors (GEOMETRY).
    pub geometry: Geometry,
    /// The block size in bytes (BLK_SIZE).
    pub blk_size: U32,
    /// Which alignment and which lengths are best (TOPOLOGY).
    pub topology: Topology,
    /// 0: write-through, 1: write-back (CONFIG_WCE). The only field that a driver may write.
    pub writeback: u8,
    /// Zero (5.2.5.2).
    pub unused0: u8,
    /// The number of request queues (MQ).
    pub num_queues: U16,
    /// The most sectors of one DISCARD segment (DISCARD).
    pub max_discard_sectors: U32,
    /// The most segments of one DISCARD (DISCARD).
    pub max_discard_seg: U32,
    /// The alignment in sectors that suits DISCARD (DISCARD).
    pub discard_sector_alignment: U32,
    /// The most sectors of one WRITE_ZEROES segment (WRITE_ZEROES).
    pub max_write_zeroes_sectors: U32,
    /// The most segments of one WRITE_ZEROES (WRITE_ZEROES).
    pub max_write_zeroes_seg: U32,
    /// 0 when WRITE_ZEROES never gives space back, else 1 (WRITE_ZEROES).
    pub write_zeroes_may_unmap: u8,
    /// Zero (5.2.5.2).
    pub unused1: [u8; 3],
    /// The most sectors of one SECURE_ERASE segment (SECURE_ERASE).
    pub max_secure_erase_sectors: U32,
    /// The most segments of one SECURE_ERASE (SECURE_ERASE).
    pub max_secure_erase_seg: U32,
    /// The alignment in sectors that suits SECURE_ERASE (SECURE_ERASE); a multiple of the zone size with ZONED.
    pub secure_erase_sector_alignment: U32,
    /// The zones and their limits (ZONED).
    pub zoned: ZonedCharacteristics,
}

/// `struct virtio_blk_geometry`: the shape of a disk with cylinders, 4 bytes (5.2.4).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Geometry {
    /// The number of cylinders.
    pub cylinders: U16,
    /// The number of heads.
    pub heads: u8,
    /// The number of sectors of a track.
    pub sectors: u8,
}

/// `struct virtio_blk_topology`: what alignment and lengths are best, 8 bytes (5.2.4).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Topology {
    /// A physical block is 2 to the power of this many logical blocks.
    pub physical_block_exp: u8,
    /// The first logical block that is aligned to a physical one.
    pub alignment_offset: u8,
    /// The shortest good transfer in logical blocks.
    pub min_io_size: U16,
    /// The longest good transfer in logical blocks.
    pub opt_io_size: U32,
}

/// `struct virtio_blk_zoned_characteristics`: the zones and their limits, 24 bytes (5.2.4, V5 to V11).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ZonedCharacteristics {
    /// A zone's size in sectors; the last zone may be smaller.
    pub zone_sectors: U32,
    /// The most zones open at a time; 0: no limit.
    pub max_open_zones: U32,
    /// The most zones active (open or closed) at a time; 0: no limit.
    pub max_active_zones: U32,
    /// The longest ZONE_APPEND in sectors; 0: no append.
    pub max_append_sectors: U32,
    /// What position and length of writes to sequential zones are multiples of, in bytes.
    pub write_granularity: U32,
    /// A [`Model`].
    pub model: u8,
    /// Zero (5.2.5.2).
    pub unused2: [u8; 3],
}

wire_enum! {
    /// The zoned model of a disk: `model` in [`ZonedCharacteristics`] (5.2.4).
    pub enum Model: u8 as "zoned model" {
        /// `VIRTIO_BLK_Z_NONE`: a regular disk to the driver, whatever it is inside.
        None = 0,
        /// `VIRTIO_BLK_Z_HM`: sequential zones must be written at their write pointer.
        HostManaged = 1,
        /// `VIRTIO_BLK_Z_HA`: sequential zones should be written at their write pointer.
        HostAware = 2,
    }
}

const _: () = {
    assert!(size_of::<BlkConfig>() == 96);
    assert!(size_of::<Geometry>() == 4);
    assert!(size_of::<Topology>() == 8);
    assert!(size_of::<ZonedCharacteristics>() == 24);

    assert!(offset_of!(BlkConfig, capacity) == 0);
    assert!(offset_of!(BlkConfig, size_max) == 8);
    assert!(offset_of!(BlkConfig, seg_max) == 12);
    assert!(offset_of!(BlkConfig, geometry) == 16);
    assert!(offset_of!(BlkConfig, geometry.cylinders) == 16);
    assert!(offset_of!(BlkConfig, geometry.heads) == 18);
    assert!(offset_of!(BlkConfig, geometry.sectors) == 19);
    assert!(offset_of!(BlkConfig, blk_size) == 20);
    assert!(offset_of!(BlkConfig, topology) == 24);
    assert!(offset_of!(BlkConfig, topology.physical_block_exp) == 24);
    assert!(offset_of!(BlkConfig, topology.alignment_offset) == 25);
    assert!(offset_of!(BlkConfig, topology.min_io_size) == 26);
    assert!(offset_of!(BlkConfig, topology.opt_io_size) == 28);
    assert!(offset_of!(BlkConfig, writeback) == 32);
    assert!(offset_of!(BlkConfig, unused0) == 33);
    assert!(offset_of!(BlkConfig, num_queues) == 34);
    assert!(offset_of!(BlkConfig, max_discard_sectors) == 36);
    assert!(offset_of!(BlkConfig, max_discard_seg) == 40);
    assert!(offset_of!(BlkConfig, discard_sector_alignment) == 44);
    assert!(offset_of!(BlkConfig, max_write_zeroes_sectors) == 48);
    assert!(offset_of!(BlkConfig, max_write_zeroes_seg) == 52);
    assert!(offset_of!(BlkConfig, write_zeroes_may_unmap) == 56);
    assert!(offset_of!(BlkConfig, unused1) == 57);
    assert!(offset_of!(BlkConfig, max_secure_erase_sectors) == 60);
    assert!(offset_of!(BlkConfig, max_secure_erase_seg) == 64);
    assert!(offset_of!(BlkConfig, secure_erase_sector_alignment) == 68);
    assert!(offset_of!(BlkConfig, zoned) == 72);
    assert!(offset_of!(BlkConfig, zoned.zone_sectors) == 72);
    assert!(offset_of!(BlkConfig, zoned.max_open_zones) == 76);
    assert!(offset_of!(BlkConfig, zoned.max_active_zones) == 80);
    assert!(offset_of!(BlkConfig, zoned.max_append_sectors) == 84);
    assert!(offset_of!(BlkConfig, zoned.write_granularity) == 88);
    assert!(offset_of!(BlkConfig, zoned.model) == 92);
    assert!(offset_of!(BlkConfig, zoned.unused2) == 93);
};
