//! The zone model of a zoned disk, host-managed or host-aware.
//!
//! What a zone is, in which condition it may be, how it comes from one condition to another, how many may be
//! open or active at once, and where the next write must go. No I/O, no threads, no `std`: the caller moves the data
//! and tells the model how that ended.
//!
//! The way in is [`ZoneTable`]: [`ZoneTable::admit_write`] says whether a write is allowed now and reserves its place,
//! [`ZoneTable::settle`] advances what was done or undoes what failed. Reset and finish are two steps as well, because
//! both must be made durable between the decision and the answer.
//!
//! The rules are those of virtio 1.3, section 5.2.6 (block device, zoned part). Comments cite them as `V1`–`V32`
//! (the device's duties), and `G1`–`G6` where the specification is silent and we decided; `docs/zones.md` lists them.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod answers;
mod geometry;
mod grown;
mod kept;
mod layout;
mod management;
mod preferred;
mod resources;
mod state;
mod table;
mod zone;

pub use answers::{
    Begun, Grant, InitialStateError, ReadPlan, Refusal, ResetEnd, Retirement, Settled, Ticket, ZoneReport,
};
pub use geometry::{Geometry, GeometryConfig, GeometryError, Model, SECTOR_LEN_BYTES};
pub use layout::{ZoneKind, ZoneLayout, ZoneRun};
pub use state::{Condition, StateError, ZoneState};
pub use table::{Observer, ZoneTable};
