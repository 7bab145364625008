//! The bytes of a recording. No I/O here, and no decision.
//!
//! All numbers are little-endian. A header of 128 bytes, then records without gaps. Each record has a head of 32 bytes and a
//! payload. Records are numbered from 0 on.
//!
//! | Kind | Payload |
//! |---|---|
//! | 1 states | of each zone the state at the beginning, a word each, as in an image |
//! | 2 base | u64 offset in bytes from the disk's start, then what was there at the beginning |
//! | 3 start | nothing; all that follows are events |
//! | 16 write begins | u64 change, u64 offset, then the bytes |
//! | 17 zeros begin | u64 change, u64 offset, u64 length |
//! | 18 change ends | u64 change, u64 1: well, 0: not |
//! | 19 zone | u64 zone, u64 its new state |
//! | 20 commit begins | u64 commit, u32 1: with a flush, u32 how many zones are finished, u32 how many are reset, u32 0, then these zones, a u32 each |
//! | 21 commit ends | u64 commit, u64 1: durable, 0: not |

use std::mem::size_of;

use virtio_zbd_zones::{Geometry, GeometryConfig};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of a recording.
pub(super) const MAGIC: [u8; 8] = *b"VZBDREC\x1a";
/// The version that this code writes, and the only one that it reads.
pub(super) const VERSION: u32 = 1;
/// The longest payload: longer than any request of virtio-blk.
pub(super) const PAYLOAD_MAX_BYTES: u32 = 1 << 28;

/// The beginning of a recording.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    /// Over the header, with this field as zero.
    crc32c: U32,
    pub(super) capacity_bytes: U64,
    /// 0: a disk without zones.
    pub(super) zone_sectors: U32,
    zone_capacity_sectors: U32,
    conventional_zones: U32,
    max_open_zones: U32,
    max_active_zones: U32,
    max_append_sectors: U32,
    write_granularity_bytes: U32,
    reserved: [u8; 76],
}

/// The beginning of a record.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RecordHead {
    pub(super) kind: U32,
    pub(super) payload_bytes: U32,
    pub(super) number: U64,
    pub(super) payload_crc32c: U32,
    /// Over the head, with this field as zero.
    head_crc32c: U32,
    reserved: [u8; 8],
}

pub(super) const HEADER_LEN: usize = size_of::<Header>();
pub(super) const HEAD_LEN: usize = size_of::<RecordHead>();

const _: () = assert!(HEADER_LEN == 128 && HEAD_LEN == 32);

pub(super) mod kind {
    pub(crate) const STATES: u32 = 1;
    pub(crate) const BASE: u32 = 2;
    pub(crate) const START: u32 = 3;
    pub(crate) const WRITE_BEGIN: u32 = 16;
    pub(crate) const ZERO_BEGIN: u32 = 17;
    pub(crate) const CHANGE_END: u32 = 18;
    pub(crate) const ZONE: u32 = 19;
    pub(crate) const COMMIT_BEGIN: u32 = 20;
    pub(crate) const COMMIT_END: u32 = 21;
}

impl Header {
    pub(super) fn new(capacity_bytes: u64, geometry: Option<&Geometry>) -> Self {
        let zoned = |field: fn(&GeometryConfig) -> u32| {
            geometry.map_or(0, |geometry| field(geometry.config())).into()
        };
        let mut header = Self {
            magic: MAGIC,
            version: VERSION.into(),
            crc32c: 0.into(),
            capacity_bytes: capacity_bytes.into(),
            zone_sectors: zoned(|config| config.zone_sectors),
            zone_capacity_sectors: zoned(|config| config.zone_capacity_sectors),
            conventional_zones: zoned(|config| config.conventional_zones),
            max_open_zones: zoned(|config| config.max_open_zones),
            max_active_zones: zoned(|config| config.max_active_zones),
            max_append_sectors: zoned(|config| config.max_append_sectors),
            write_granularity_bytes: zoned(|config| config.write_granularity_bytes),
            reserved: [0; 76],
        };
        header.crc32c = header.sum().into();
        header
    }

    pub(super) fn is_whole(&self) -> bool {
        self.crc32c.get() == self.sum()
    }

    /// The wish for a geometry; `None` for a disk without zones.
    pub(super) fn geometry_config(&self) -> Option<GeometryConfig> {
        (self.zone_sectors.get() != 0).then(|| GeometryConfig {
            capacity_sectors: self.capacity_bytes.get() / 512,
            zone_sectors: self.zone_sectors.get(),
            zone_capacity_sectors: self.zone_capacity_sectors.get(),
            conventional_zones: self.conventional_zones.get(),
            max_open_zones: self.max_open_zones.get(),
            max_active_zones: self.max_active_zones.get(),
            max_append_sectors: self.max_append_sectors.get(),
            write_granularity_bytes: self.write_granularity_bytes.get(),
        })
    }

    fn sum(&self) -> u32 {
        crc32c::crc32c(Self { crc32c: 0.into(), ..self.clone() }.as_bytes())
    }
}

impl RecordHead {
    pub(super) fn new(kind: u32, payload_bytes: u32, payload_crc32c: u32, number: u64) -> Self {
        let mut head = Self {
            kind: kind.into(),
            payload_bytes: payload_bytes.into(),
            number: number.into(),
            payload_crc32c: payload_crc32c.into(),
            head_crc32c: 0.into(),
            reserved: [0; 8],
        };
        head.head_crc32c = head.sum().into();
        head
    }

    pub(super) fn is_whole(&self) -> bool {
        self.head_crc32c.get() == self.sum()
    }

    fn sum(&self) -> u32 {
        crc32c::crc32c(Self { head_crc32c: 0.into(), ..self.clone() }.as_bytes())
    }
}

/// A record on its way into the log: room for its head, then its payload.
pub(super) struct Record {
    kind: u32,
    bytes: Vec<u8>,
}

impl Record {
    pub(super) fn new(kind: u32, payload_capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_LEN + payload_capacity);
        bytes.resize(HEAD_LEN, 0);
        Self { kind, bytes }
    }

    pub(super) fn numbers(kind: u32, numbers: &[u64]) -> Self {
        numbers.iter().fold(Self::new(kind, numbers.len() * 8), |record, &number| record.u64(number))
    }

    pub(super) fn u64(mut self, number: u64) -> Self {
        self.bytes.extend(number.to_le_bytes());
        self
    }

    pub(super) fn u32(mut self, number: u32) -> Self {
        self.bytes.extend(number.to_le_bytes());
        self
    }

    /// Adds `len` bytes; returns the place for them.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        &mut self.bytes[start..]
    }

    /// What only the number is missing from.
    pub(super) fn seal(self) -> Option<Sealed> {
        let payload = &self.bytes[HEAD_LEN..];
        let payload_bytes = u32::try_from(payload.len()).ok().filter(|&len| len <= PAYLOAD_MAX_BYTES)?;
        let payload_crc32c = crc32c::crc32c(payload);
        Some(Sealed { kind: self.kind, payload_bytes, payload_crc32c, bytes: self.bytes })
    }
}

/// A record whose payload is summed up: the slow part, done before the log is locked.
pub(super) struct Sealed {
    kind: u32,
    payload_bytes: u32,
    payload_crc32c: u32,
    bytes: Vec<u8>,
}

impl Sealed {
    pub(super) fn number(&mut self, number: u64) -> &[u8] {
        let head = RecordHead::new(self.kind, self.payload_bytes, self.payload_crc32c, number);
        self.bytes[..HEAD_LEN].copy_from_slice(head.as_bytes());
        &self.bytes
    }
}
