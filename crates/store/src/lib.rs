//! Where the sectors of a disk live, and the way to them.
//!
//! A [`Store`] keeps one disk's sectors and the states of its zones: in an image file ([`ImageStore`]), in
//! memory ([`RamStore`]), or, for a plain disk, in a file or device as it is ([`RawStore`]). Each queue's
//! worker opens a [`Lane`] to it: reads and writes go straight between the medium and the guest's own memory
//! ([`IoBuffer`]), and everything that the worker waits for arrives in one place.
//!
//! What a store promises:
//!
//! - D1 When a flush has been committed, everything that was written and published before it survives: data,
//!   write pointers, conditions.
//! - D2 After any crash the data below a zone's write pointer is what was written there since the zone's last
//!   reset, or zeros in a gap left by a write that was never answered. Never a byte from before the reset;
//!   never a write pointer past data that is not there.
//! - D3 Resets and finishes are durable when they are committed. A write pointer never falls below where the
//!   last flush saw it unless the zone was reset.
//! - D4 A restart closes open zones. Nothing else changes.
//! - D5 Killing the process loses nothing that was published, flushed or not; only a power cut may take what
//!   was not flushed.
//!
//! How the image keeps them is in `docs/format.md`.

mod buffer;
mod error;
mod host;
mod image;
mod inject;
mod lane;
mod lock;
mod medium;
mod parts;
mod ram;
mod raw;
pub mod record;
mod store;
mod words;

pub use buffer::{IoBuffer, OutOfBuffer, OutOfGuestMemory, Segments};
pub use error::{StoreError, medium_is_bad};
pub use host::{HostFault, HostStore};
pub use image::{
    CheckOptions, CheckReport, CheckedImage, CreateOptions, Finding, FindingKind, ImageFault, ImageInfo,
    ImageStore, LastUse, NextOpening, Omitted, OpenOptions, Opens, Remedy, Repaired, Severity, UndoFault,
    ZoneCounts, ZoneFate, ZoneRanges,
};
pub use inject::{FaultRule, FaultRuleError, Faults};
pub use lane::{EngineChoice, Event, Lane, NotMade, Zeroing, reserve_rings};
pub use medium::{FileMedium, Medium};
pub use ram::RamStore;
pub use raw::RawStore;
pub use store::{Commit, CommitOutcome, Identity, Store};
pub use words::LiveWords;
