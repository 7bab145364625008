//! The wire format: headers, payloads, identifiers, bits. Nothing here decides anything.
//!
//! All numbers are in the machine's own byte order ("Message Specification" of vhost-user.rst).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many bytes of payload a message may have. The largest that is needed is a memory table: 8 + 32 · 32.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 4096;

/// How many file descriptors a message may carry. The specification's memory table has 8, rust-vmm's
/// front-end sends up to 32.
pub(crate) const FDS_MAX: usize = 32;

/// How much of the configuration space one message may carry (QEMU's bound).
pub(crate) const CONFIG_BYTES_MAX: u32 = 256;

/// How many memory regions a front-end may have mapped at a time, as told to it by GET_MAX_MEM_SLOTS.
///
/// KVM's classical number of slots, and libvhost-user's: no front-end needs more.
pub const MEMORY_SLOTS_MAX: usize = 509;

/// The virtio feature bit that stands for "protocol features can be negotiated"
/// (VHOST_USER_F_PROTOCOL_FEATURES).
pub(crate) const FEATURE_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Feature bits that this server cannot keep: VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM,
/// VIRTIO_F_RING_PACKED.
pub(crate) const FEATURES_NEVER_OFFERED: u64 = 1 << 26 | 1 << 33 | 1 << 34;

/// FEATURES_OK in the device status (virtio 1.x, 2.1).
pub(crate) const STATUS_FEATURES_OK: u8 = 8;

/// The index bits of the payload of SET_VRING_KICK, CALL and ERR.
pub(crate) const VRING_INDEX_MASK: u64 = 0xff;

/// "No file descriptor comes with this" in the payload of SET_VRING_KICK, CALL and ERR.
pub(crate) const VRING_NO_FD: u64 = 0x100;

/// The back-end request that says that the configuration space has changed
/// (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG).
pub(crate) const BACKEND_CONFIG_CHANGE: u32 = 2;

/// The header of every message, in both directions.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) size_bytes: u32,
}

impl Header {
    /// The two lowest bits of the flags: the version of the protocol.
    pub(crate) const VERSION_MASK: u32 = 3;
    /// The only version there is.
    pub(crate) const VERSION: u32 = 1;
    /// This is a reply.
    pub(crate) const REPLY: u32 = 1 << 2;
    /// The sender wants to know how it went (protocol feature REPLY_ACK).
    pub(crate) const NEED_REPLY: u32 = 1 << 3;
}

/// A queue's index and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct VringState {
    pub(crate) index: u32,
    pub(crate) num: u32,
}

/// Where a queue's three areas are, in user addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct VringAddr {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
    pub(crate) log: u64,
}

/// What comes before the regions of a memory table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MemTableHead {
    pub(crate) regions: u32,
    pub(crate) padding: u32,
}

/// A piece of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MemRegion {
    pub(crate) guest_addr: u64,
    pub(crate) size_bytes: u64,
    pub(crate) user_addr: u64,
    pub(crate) mmap_offset_bytes: u64,
}

/// The payload of ADD_MEM_REG and REM_MEM_REG.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SingleMemRegion {
    pub(crate) padding: u64,
    pub(crate) region: MemRegion,
}

/// What comes before the bytes of a piece of the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ConfigHead {
    pub(crate) offset_bytes: u32,
    pub(crate) size_bytes: u32,
    pub(crate) flags: u32,
}

/// The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD: where in the file the region is, and for what it has room.
///
/// The specification ends it after the queue size; QEMU, and everybody after it, sends the C struct with its
/// padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct InflightRegion {
    pub(crate) mmap_size_bytes: u64,
    pub(crate) mmap_offset_bytes: u64,
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
    pub(crate) padding: u32,
}

const _: () = assert!(size_of::<Header>() == 12);
const _: () = assert!(size_of::<VringState>() == 8);
const _: () = assert!(size_of::<VringAddr>() == 40);
const _: () = assert!(size_of::<MemTableHead>() == 8);
const _: () = assert!(size_of::<MemRegion>() == 32);
const _: () = assert!(size_of::<SingleMemRegion>() == 40);
const _: () = assert!(size_of::<ConfigHead>() == 12);
const _: () = assert!(size_of::<InflightRegion>() == 24);

bitflags::bitflags! {
    /// Protocol features ("Protocol features" of vhost-user.rst), as far as one of our two ends knows them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct ProtocolFeatures: u64 {
        const MQ = 1 << 0;
        const REPLY_ACK = 1 << 3;
        const BACKEND_REQ = 1 << 5;
        const CONFIG = 1 << 9;
        const INFLIGHT_SHMFD = 1 << 12;
        const RESET_DEVICE = 1 << 13;
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        const STATUS = 1 << 16;
    }
}

/// Makes a constant of each message's identifier, and their names for the log.
macro_rules! requests {
    ($($name:ident = $id:literal,)*) => {
        /// The identifiers of what a front-end may send.
        #[allow(dead_code, reason = "the list is the specification's; some are known by name only")]
        pub(crate) mod id {
            $(pub(crate) const $name: u32 = $id;)*
        }

        /// The specification's name of a message, if it has one.
        pub(crate) fn request_name(id: u32) -> Option<&'static str> {
            match id {
                $($id => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

requests! {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    SET_VRING_ENDIAN = 23,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33,
    RESET_DEVICE = 34,
    VRING_KICK = 35,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
    GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
    GET_SHMEM_CONFIG = 44,
}
