//! Zoned disks for virtual machines, and for processes: what the program `vzbd` is made of.
//!
//! [`DiskBackend`] joins the device with the vhost-user server; [`ServedDisk`] does that in a thread of this process,
//! so that a test, an example or a tool has a disk on a socket without a daemon.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_zbd_store::RamStore;
//! use vzbd::{ServeOptions, ServedDisk};
//!
//! let place = tempfile::tempdir()?;
//! let store = Arc::new(RamStore::plain(1 << 20)?);
//! let disk = ServedDisk::start(store, ServeOptions::default(), &place.path().join("disk.sock"))?;
//! // Any vhost-user-blk front-end may connect to `disk.socket()` now, one after another.
//! disk.stop()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod backend;
pub mod control;
mod frontends;
mod served;

pub use backend::{DiskBackend, DiskQueue, DiskSession};
pub use served::{ServeError, ServeOptions, ServedDisk};
