//! The other side of the ring, for tests and benches: what a guest and its VMM do, written independently of any device
//! code, and able to lie.
//!
//! | Layer | What it is |
//! |---|---|
//! | [`GuestRam`] | guest memory in a memfd, with an allocator |
//! | [`DriverRing`] | the driver's side of a split virtqueue, honest or by hand |
//! | [`Request`], [`Framing`], [`Completion`] | block requests as bytes in descriptor chains, in any framing |
//! | [`Queue`] | a ring with its eventfds and its requests in flight |
//! | [`InProcess`] | what a device's worker in the same process needs to serve a [`Queue`] |
//! | [`Client`], [`Handshake`] | a vhost-user frontend (rust-vmm's), whole or step by step |
//!
//! What the device does wrong is an [`Error`]; what the test does wrong panics in the test's line.
//!
//! ```no_run
//! use virtio_zbd_spec::Status;
//! use virtio_zbd_testkit::{Client, ClientOptions, Request};
//!
//! # fn main() -> virtio_zbd_testkit::Result<()> {
//! let mut client = Client::connect("disk.sock", ClientOptions::default())?;
//! client.call(0, Request::write(0x8000, &[7; 4096]))?.expect(Status::Ok);
//! assert_eq!(client.call(0, Request::read(0x8000, 4096))?.expect(Status::Ok).data, [7; 4096]);
//! let zones = client.zone_report_all()?;
//! assert_eq!(zones[0].z_start.get(), 0);
//! # Ok(())
//! # }
//! ```

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is test code in a crate of its own: a test's mistake stops the test"
)]

mod blk;
mod error;
mod framing;
mod queue;
mod ram;
mod ring;
mod vhost_user;

pub use blk::{Completion, Request, UNTOUCHED};
pub use error::{Error, Result};
pub use framing::{Framing, Placed};
pub use queue::{InProcess, Notify, Queue, QueueOptions, Token};
pub use ram::{GUEST_BASE, GuestRam, Mark};
pub use ring::{Buf, DriverRing, Origin, Table, Used};
pub use vhost;
pub use vhost::vhost_user::VhostUserProtocolFeatures as ProtocolFeatures;
pub use vhost_user::{Client, ClientOptions, Handshake, PROTOCOL_FEATURES_BIT, RawReply};
