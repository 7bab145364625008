//! What can go wrong with a recording.

use std::io;

use thiserror::Error;
use virtio_zbd_zones::{GeometryError, StateError};

use crate::error::StoreError;

/// Why a disk can't be recorded, a recording not be read, or a power cut not be played.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum RecordError {
    /// The system said no.
    #[error("{name}: {what}: {source}")]
    Io { name: String, what: &'static str, r#source: io::Error },
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A recording is never written over.
    #[error("{name} exists already; choose another name for the recording, or remove it")]
    Exists { name: String },
    /// Nothing can happen to it.
    #[error("{name} is open for reading only: there is nothing to record and nothing to lose")]
    ReadOnly { name: String },
    /// The format says what a uniform disk is.
    #[error(
        "{name} has zones of several kinds or capacities, which a recording can't say; record a disk whose sequential zones are all alike"
    )]
    NotUniform { name: String },
    /// It is no recording.
    #[error("{name} is no recording of a disk: it begins with {found}, not with \"VZBDREC\"")]
    NotARecording { name: String, found: String },
    /// It was written by a later program.
    #[error("{name} is a recording of version {found}; this program reads version {supported}")]
    Version { name: String, found: u32, supported: u32 },
    /// Its first bytes are damaged.
    #[error("{name}: the header (bytes 0 to 127) is damaged: {what}")]
    Header { name: String, what: String },
    /// A record that can't be read has others behind it: it was not torn at the end but damaged later.
    #[error("{name}: record {record} at byte {at_bytes} is damaged ({what}), and {rest_bytes} bytes follow")]
    Damaged { name: String, record: u64, at_bytes: u64, rest_bytes: u64, what: &'static str },
    /// A record is whole but says what can't be.
    #[error("{name}: record {record} at byte {at_bytes} says what can't be: {what}")]
    Impossible { name: String, record: u64, at_bytes: u64, what: String },
    /// The recording ends before the disk was served.
    #[error("{name} ends before the first event: the program that wrote it was stopped while it began")]
    NoStart { name: String },
    /// There is no such moment.
    #[error("{name} has {events} events and {flushes} flushes; there is no {wanted}")]
    NoSuchMoment { name: String, events: u64, flushes: usize, wanted: String },
    /// An image is for a disk with zones.
    #[error("{name} is of a disk without zones, and an image of ours has zones")]
    NoZones { name: String },
    /// The events can't come from a disk that keeps its limits.
    #[error(
        "{name}: after event {event} {active} zones are active where {limit} may be: the recording is not one of a disk of ours"
    )]
    TooManyActive { name: String, event: u64, active: usize, limit: u32 },
    /// A part of a block can't be whole while the rest is not.
    #[error(
        "a torn block of {block_bytes} bytes can't be: it must be a power of two from 512 to {most_bytes}, the disk's block size"
    )]
    Block { block_bytes: u64, most_bytes: u64 },
}

impl RecordError {
    pub(super) fn io(name: impl Into<String>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let name = name.into();
        move |source| Self::Io { name, what, source }
    }

    pub(super) fn header(name: &str) -> impl FnOnce(GeometryError) -> Self {
        let name = name.to_owned();
        move |error| Self::Header { name, what: error.to_string() }
    }
}

/// What is wrong with a record that is whole.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub(super) enum Nonsense {
    #[error("its kind is {kind}, which has no meaning here")]
    Kind { kind: u32 },
    #[error("its payload has {found} bytes")]
    Length { found: u32 },
    #[error("{found} zone states where the disk has {expected} zones")]
    States { found: u64, expected: u32 },
    #[error("the word {word:#018x} is no state of zone {zone}")]
    State { zone: u64, word: u64 },
    #[error("{0}")]
    BadState(#[from] StateError),
    #[error("zone {zone} does not exist")]
    Zone { zone: u64 },
    #[error("{len_bytes} bytes at byte {offset_bytes} of the disk are no range that a device writes")]
    Range { offset_bytes: u64, len_bytes: u64 },
    #[error("number {id} begins twice")]
    Twice { id: u64 },
    #[error("number {id} ends and has not begun")]
    NotBegun { id: u64 },
}
