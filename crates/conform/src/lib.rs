//! The conformance suite for virtio-blk devices with zones.
//!
//! A [`Case`] for every rule of the specification (virtio 1.3, 5.2), each with what it asks, told by [`Level`]. They run over
//! a [`Link`], which a program implements for its way to a disk: a vhost-user socket, a PCI device in a bare-metal kernel,
//! a model in memory. All that a case needs to know it reads from the disk's configuration and reports, so it runs at any
//! geometry, and is skipped with a reason where the disk can't show it.
//!
//! ```no_run
//! use virtio_zbd_conform::{Link, Outcome, RunOptions, run};
//!
//! fn judge(link: &mut dyn Link) -> bool {
//!     let summary = run(link, &RunOptions::default(), &mut |result| {
//!         if let Outcome::Failed(finding) = &result.outcome {
//!             println!("{} ({}): {finding}\n{}", result.case.id, result.case.level, result.case.asks);
//!         }
//!     });
//!     summary.conforms()
//! }
//! ```
//!
//! The suite imports only `virtio-zbd-spec`, the wire format: it shares nothing with the device that it was written for, nor
//! with the driver, because it has to send what a good driver never sends.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bench;
mod case;
mod cases;
#[cfg(feature = "driver")]
pub mod driver;
mod link;
mod run;

pub use case::{Case, CaseResult, Exchange, Finding, Level, Outcome};
pub use cases::cases;
pub use link::{CONFIG_LEN_BYTES, Chain, Link, LinkError, Started};
pub use run::{RunOptions, Summary, run};
