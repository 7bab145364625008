//! A virtio-blk driver that knows zoned disks: `no_std`, on any transport of `virtio-drivers`.
//!
//! [`VirtioBlk`] takes a block device into use. On a host-managed zoned disk it reports, opens, closes, finishes and
//! resets zones and appends to them; on any other disk it is a block driver like others. It does what Linux' driver does
//! since zones came to virtio-blk, without that one's known faults; `docs/driver.md` in the repository is the list,
//! each line with its test.
//!
//! - **Synchronous**: [`read`](VirtioBlk::read), [`write`](VirtioBlk::write), [`append`](VirtioBlk::append),
//!   [`zones`](VirtioBlk::zones), … How the time is passed until the device answers is the caller's [`Wait`].
//! - **Asynchronous**: [`submit`](VirtioBlk::submit) and [`complete`](VirtioBlk::complete) on as many queues as the device
//!   has. A request owns its [`Buffer`] while the device has it.
//! - **Nothing that a device says is trusted.** What can't be is [`Error::Wrong`]; a device that breaks the ring's
//!   rules or does not answer is reset, and from then on every call is [`Error::Broken`].
//!
//! ```no_run
//! use virtio_zbd_driver::{Error, Hal, Options, Transport, VirtioBlk};
//!
//! fn first_zone<H: Hal, T: Transport>(transport: T) -> Result<(), Error> {
//!     let mut disk = VirtioBlk::<H, T>::new(transport, Options::default())?;
//!     let Some(zoned) = disk.zoned().copied() else { return Ok(()) };
//!     log::info!("{} zones of {} sectors", zoned.zones, zoned.zone_sectors);
//!     disk.reset_zone(0)?;
//!     let sector = disk.append(0, &[7; 4096])?;
//!     let zone = disk.zone(sector)?;
//!     log::info!("written at {sector}, the write pointer is now {:?}", zone.write_pointer_sector);
//!     disk.flush()
//! }
//! ```
//!
//! Sectors are always 512 bytes. Numbers such as R4, L9 or B1 are those of the table in `docs/driver.md`; section numbers
//! are those of the virtio specification, version 1.3.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod command;
mod config;
mod disk;
mod error;
mod life;
mod limits;
mod probe;
pub mod raw;
mod report;
mod ring;
mod sync;
mod wait;
mod zone;

pub use command::{Buffer, Command, Completion, Done, Rejected, Token};
pub use disk::{Options, VirtioBlk};
pub use error::{DeviceError, Error, Invalid, ProbeError, Wrong};
pub use life::{Change, Interrupt, Removal};
pub use limits::{Limits, RangeLimits, ZoneSupport, Zoned};
pub use report::Zones;
pub use sync::DeviceId;
pub use virtio_drivers::transport::Transport;
pub use virtio_drivers::{BufferDirection, Hal, PhysAddr};
pub use virtio_zbd_spec::{Features, Model, RequestType, ZoneState, ZoneType};
pub use wait::{Spin, Wait, Waited};
pub use zone::Zone;
