//! The split virtqueue (2.7) and the device status (2.1).
//!
//! A queue of N entries is three areas in guest memory: the descriptor table, the available ring (written by the driver)
//! and the used ring (written by the device). Their sizes and the offsets in them are given here in bytes as functions of
//! N, always with the event index word at the end, which is reserved even where EVENT_IDX is not negotiated.

use core::mem::{offset_of, size_of};

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most entries of a queue; a queue size is a power of two (2.7).
pub const QUEUE_SIZE_MAX: u16 = 32768;

/// What the address of the descriptor table is a multiple of, in bytes (2.7).
pub const DESCRIPTOR_TABLE_ALIGN_BYTES: u64 = 16;
/// What the address of the available ring is a multiple of, in bytes (2.7).
pub const AVAIL_RING_ALIGN_BYTES: u64 = 2;
/// What the address of the used ring is a multiple of, in bytes (2.7).
pub const USED_RING_ALIGN_BYTES: u64 = 4;

/// `struct virtq_desc`: one buffer of a chain, 16 bytes (2.7.5).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Descriptor {
    /// The buffer's guest physical address.
    pub addr: U64,
    /// The buffer's length in bytes.
    pub len: U32,
    /// [`DescriptorFlags`].
    pub flags: U16,
    /// The next descriptor of the chain, with [`DescriptorFlags::NEXT`].
    pub next: U16,
}

bitflags! {
    /// `flags` in [`Descriptor`] (2.7.5).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DescriptorFlags: u16 {
        /// `VIRTQ_DESC_F_NEXT`: the chain goes on at `next`.
        const NEXT = 1;
        /// `VIRTQ_DESC_F_WRITE`: the device writes the buffer; else it reads it.
        const WRITE = 2;
        /// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors (2.7.5.3).
        const INDIRECT = 4;
    }
}

/// The offset of `flags` in the available ring, in bytes (2.7.6).
pub const AVAIL_FLAGS_OFFSET_BYTES: u64 = 0;
/// The offset of `idx` in the available ring, in bytes (2.7.6).
pub const AVAIL_IDX_OFFSET_BYTES: u64 = 2;
/// The offset of the first entry in the available ring, in bytes; an entry is a `u16` (2.7.6).
pub const AVAIL_ENTRIES_OFFSET_BYTES: u64 = 4;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` in the available ring's `flags`: the driver wants no notifications (2.7.6).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// The offset of `flags` in the used ring, in bytes (2.7.8).
pub const USED_FLAGS_OFFSET_BYTES: u64 = 0;
/// The offset of `idx` in the used ring, in bytes (2.7.8).
pub const USED_IDX_OFFSET_BYTES: u64 = 2;
/// The offset of the first entry in the used ring, in bytes; an entry is a [`UsedElem`] (2.7.8).
pub const USED_ENTRIES_OFFSET_BYTES: u64 = 4;
/// `VIRTQ_USED_F_NO_NOTIFY` in the used ring's `flags`: the device wants no notifications (2.7.8).
pub const USED_F_NO_NOTIFY: u16 = 1;

/// `struct virtq_used_elem`: one chain that the device is done with, 8 bytes (2.7.8).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct UsedElem {
    /// The index of the chain's first descriptor.
    pub id: U32,
    /// How many bytes of the chain's device-writable part were written.
    pub len: U32,
}

/// The size of the descriptor table in bytes (2.7).
#[must_use]
pub const fn descriptor_table_len_bytes(queue_size: u16) -> u64 {
    size_of::<Descriptor>() as u64 * queue_size as u64
}

/// The size of the available ring in bytes, `used_event` included (2.7.6).
#[must_use]
pub const fn avail_ring_len_bytes(queue_size: u16) -> u64 {
    used_event_offset_bytes(queue_size) + size_of::<u16>() as u64
}

/// The offset in the available ring of `used_event`, where the driver wants the next notification (2.7.6, 2.7.7).
#[must_use]
pub const fn used_event_offset_bytes(queue_size: u16) -> u64 {
    AVAIL_ENTRIES_OFFSET_BYTES + size_of::<u16>() as u64 * queue_size as u64
}

/// The size of the used ring in bytes, `avail_event` included (2.7.8).
#[must_use]
pub const fn used_ring_len_bytes(queue_size: u16) -> u64 {
    avail_event_offset_bytes(queue_size) + size_of::<u16>() as u64
}

/// The offset in the used ring of `avail_event`, where the device wants the next notification (2.7.8, 2.7.10).
#[must_use]
pub const fn avail_event_offset_bytes(queue_size: u16) -> u64 {
    USED_ENTRIES_OFFSET_BYTES + size_of::<UsedElem>() as u64 * queue_size as u64
}

bitflags! {
    /// How far driver and device have come with each other: the device status (2.1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DeviceStatus: u8 {
        /// `ACKNOWLEDGE`: the guest has seen the device.
        const ACKNOWLEDGE = 1;
        /// `DRIVER`: the guest has a driver for it.
        const DRIVER = 2;
        /// `DRIVER_OK`: the driver is set up.
        const DRIVER_OK = 4;
        /// `FEATURES_OK`: both sides agree on the features. Stays clear when the device does not (2.2, V4).
        const FEATURES_OK = 8;
        /// `DEVICE_NEEDS_RESET`: the device met an error that it can't recover from.
        const NEEDS_RESET = 64;
        /// `FAILED`: the driver has given up.
        const FAILED = 128;
    }
}

const _: () = {
    assert!(size_of::<Descriptor>() == 16);
    assert!(offset_of!(Descriptor, addr) == 0);
    assert!(offset_of!(Descriptor, len) == 8);
    assert!(offset_of!(Descriptor, flags) == 12);
    assert!(offset_of!(Descriptor, next) == 14);

    assert!(size_of::<UsedElem>() == 8);
    assert!(offset_of!(UsedElem, id) == 0);
    assert!(offset_of!(UsedElem, len) == 4);

    // The table of sizes in 2.7: 16·N, 6 + 2·N, 6 + 8·N.
    assert!(descriptor_table_len_bytes(QUEUE_SIZE_MAX) == 16 * 32768);
    assert!(avail_ring_len_bytes(QUEUE_SIZE_MAX) == 6 + 2 * 32768);
    assert!(used_ring_len_bytes(QUEUE_SIZE_MAX) == 6 + 8 * 32768);
};
