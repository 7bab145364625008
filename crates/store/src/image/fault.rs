//! What can be wrong with an image.

use std::fmt;
use std::ops::RangeInclusive;

use thiserror::Error;
use virtio_zbd_zones::{GeometryError, StateError};

/// Why a file was not opened as an image. It was left as it was, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum ImageFault {
    #[error("it is {found}, not a regular file; an image is a regular file")]
    NotAFile { found: &'static str },
    #[error(
        "it is not a vzbd image: neither at byte 0 nor at byte 4096 is there the magic number \"VZBDIMG\"; \
         it begins with {found}"
    )]
    NotAnImage { found: String },
    #[error(
        "the file has {found_bytes} bytes where the image needs {expected_bytes}; it was cut off, perhaps \
         while it was copied"
    )]
    TooShort { expected_bytes: u64, found_bytes: u64 },
    #[error(
        "both copies of the superblock are damaged: the one at byte 0 {first}, the one at byte 4096 \
         {second}. If there is a copy of this image, use that"
    )]
    Superblock { first: String, second: String },
    #[error("the two copies of the superblock belong to different images ({first} and {second})")]
    TwoImages { first: String, second: String },
    #[error("it has format version {found}, and this program knows version {supported}; use a newer program")]
    Version { found: u32, supported: u32 },
    #[error(
        "it uses features that this program does not know (incompat word {unknown:#x}); use a newer program"
    )]
    Features { unknown: u64 },
    #[error(
        "it uses features with which this program may only read it (ro_compat word {unknown:#x}); open it \
         read-only, or use a newer program"
    )]
    ReadOnlyFeatures { unknown: u64 },
    #[error("the superblock describes a disk that can't be: {0}")]
    Geometry(#[from] GeometryError),
    #[error(
        "the superblock is wrong: its layout is of model {found}; it must be 0 (host-managed) or 1 (host-aware)"
    )]
    LayoutModel { found: u32 },
    #[error(
        "the superblock is wrong: its layout has {head} runs and {cycle} that are repeated; together there may be {most}"
    )]
    LayoutRuns { head: u32, cycle: u32, most: usize },
    #[error(
        "the superblock is wrong: run {number} of its layout has zones of kind {found}; it must be 1 (conventional), 2 (sequential-write-required) \
         or 3 (sequential-write-preferred)"
    )]
    LayoutKind { number: usize, found: u32 },
    #[error(
        "the disk has {runs} runs of zones that are alike before its pattern is repeated; an image can keep {most}. Put its conventional zones at the \
         start, or choose capacities that are repeated sooner"
    )]
    TooManyRuns { runs: usize, most: usize },
    #[error("the superblock is wrong: {what} is {found}, but the disk's geometry gives {expected}")]
    Value { what: &'static str, expected: u64, found: u64 },
    #[error(
        "the superblock is wrong: the {what} is at byte {offset_bytes}; it must be at {lowest_offset_bytes} \
         or later, at a multiple of {align_bytes}, and end where a file can"
    )]
    Place { what: &'static str, offset_bytes: u64, lowest_offset_bytes: u64, align_bytes: u64 },
    #[error(
        "the states of {zones} are lost: both places where they are kept are damaged (first: the one at \
         byte {first_offset_bytes} {first}, the one at byte {second_offset_bytes} {second}). If there is a \
         copy of this image, use that"
    )]
    Pages {
        zones: ZoneRanges,
        first_offset_bytes: u64,
        first: String,
        second_offset_bytes: u64,
        second: String,
    },
    #[error(
        "the image was closed cleanly, but of the states of {zones} the newest version is gone: the pages' \
         sequence numbers sum up to {found} where {expected} was noted. The older version would make zones \
         lose data. If there is a copy of this image, use that"
    )]
    StalePages { zones: ZoneRanges, expected: u64, found: u64 },
    #[error("zone {zone} has the impossible state {bits:#018x} at byte {offset_bytes} ({area}): {reason}")]
    ZoneState { zone: u32, area: &'static str, offset_bytes: u64, bits: u64, reason: String },
    #[error("{found} zones are active, but the disk allows only {max_active_zones}")]
    TooManyActive { found: u32, max_active_zones: u32 },
    #[error("its file would be longer than a file can be ({capacity_sectors} sectors of 512 bytes)")]
    TooLong { capacity_sectors: u64 },
}

impl ImageFault {
    pub(super) fn zone_state(
        zone: u32,
        area: &'static str,
        offset_bytes: u64,
        bits: u64,
        why: Option<StateError>,
    ) -> Self {
        let reason = why.map_or_else(|| "no state has this code".to_owned(), |why| why.to_string());
        Self::ZoneState { zone, area, offset_bytes, bits, reason }
    }
}

/// Ranges of zones, for a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneRanges(pub Vec<RangeInclusive<u32>>);

impl fmt::Display for ZoneRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        f.write_str("zones ")?;
        for (n, range) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{}–{}", range.start(), range.end())?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, " and {more} more ranges"),
            _ => Ok(()),
        }
    }
}
