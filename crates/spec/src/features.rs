//! Feature bits: of the block device (5.2.3) and those kept for queues and transports (6).

use bitflags::bitflags;

bitflags! {
    /// A word of feature bits, as offered by a device or accepted by a driver (2.2).
    ///
    /// Bits that are not named here can be carried along with [`Features::from_bits_retain`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// `VIRTIO_BLK_F_SIZE_MAX`: the longest segment is in `size_max` (5.2.3).
        const SIZE_MAX = 1 << 1;
        /// `VIRTIO_BLK_F_SEG_MAX`: the most segments of a request are in `seg_max` (5.2.3).
        const SEG_MAX = 1 << 2;
        /// `VIRTIO_BLK_F_GEOMETRY`: cylinders, heads and sectors are in `geometry` (5.2.3).
        const GEOMETRY = 1 << 4;
        /// `VIRTIO_BLK_F_RO`: the disk is read-only (5.2.3).
        const RO = 1 << 5;
        /// `VIRTIO_BLK_F_BLK_SIZE`: the block size is in `blk_size` (5.2.3).
        const BLK_SIZE = 1 << 6;
        /// `VIRTIO_BLK_F_FLUSH`: there is a cache that can be flushed (5.2.3).
        const FLUSH = 1 << 9;
        /// `VIRTIO_BLK_F_TOPOLOGY`: what alignment is best is in `topology` (5.2.3).
        const TOPOLOGY = 1 << 10;
        /// `VIRTIO_BLK_F_CONFIG_WCE`: `writeback` switches the cache (5.2.3).
        const CONFIG_WCE = 1 << 11;
        /// `VIRTIO_BLK_F_MQ`: the number of queues is in `num_queues` (5.2.3).
        const MQ = 1 << 12;
        /// `VIRTIO_BLK_F_DISCARD`: DISCARD is understood (5.2.3).
        const DISCARD = 1 << 13;
        /// `VIRTIO_BLK_F_WRITE_ZEROES`: WRITE_ZEROES is understood (5.2.3).
        const WRITE_ZEROES = 1 << 14;
        /// `VIRTIO_BLK_F_LIFETIME`: GET_LIFETIME is understood (5.2.3).
        const LIFETIME = 1 << 15;
        /// `VIRTIO_BLK_F_SECURE_ERASE`: SECURE_ERASE is understood (5.2.3).
        const SECURE_ERASE = 1 << 16;
        /// `VIRTIO_BLK_F_ZONED`: the disk is a zoned block device (5.2.3).
        const ZONED = 1 << 17;

        /// `VIRTIO_F_INDIRECT_DESC`: a descriptor may point at a table of descriptors (6, 2.7.5.3).
        const INDIRECT_DESC = 1 << 28;
        /// `VIRTIO_F_EVENT_IDX`: notifications are asked for by index (6, 2.7.7, 2.7.10).
        const EVENT_IDX = 1 << 29;
        /// `VIRTIO_F_VERSION_1`: virtio 1.x, not the legacy interface (6).
        const VERSION_1 = 1 << 32;
        /// `VIRTIO_F_ACCESS_PLATFORM`: the platform may limit or translate the device's memory accesses (6).
        const ACCESS_PLATFORM = 1 << 33;
        /// `VIRTIO_F_RING_PACKED`: the packed virtqueue layout (6, 2.8).
        const RING_PACKED = 1 << 34;
        /// `VIRTIO_F_IN_ORDER`: buffers are used in the order in which they were made available (6).
        const IN_ORDER = 1 << 35;
        /// `VIRTIO_F_RING_RESET`: a queue can be reset alone (6, 2.6.1).
        const RING_RESET = 1 << 40;
    }
}
