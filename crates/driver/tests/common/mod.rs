//! A virtio block device in this process that does what a test tells it to, and keeps the driver to its own duties.
//!
//! | Module | What it holds |
//! |---|---|
//! | [`memory`] | the guest's memory: a `Hal` that knows at any time what the device may reach |
//! | [`ring`] | the device's side of a split ring in that memory |
//! | [`disk`] | an honest disk, zoned or regular, as plain as the rules tell it |
//! | [`reply`] | a request as the device sees it, and what it answers |
//! | [`transport`] | a `Transport` that joins these, and the places where a test makes it lie |
//! | [`rig`] | the driver on all of it |
//! | [`fuzz`] | what a fuzzer does with it |
//!
//! The device works inside `notify`, on the driver's thread: no time, no thread, no system call, so that all of it runs under Miri.
//! What the *driver* does wrong (a buffer that is not shared, a queue set up too early, memory taken back while the device holds it)
//! panics at once, whatever the test is about.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "each test program uses a part of it, and says loudly what is wrong"
)]

pub mod disk;
pub mod fuzz;
pub mod memory;
pub mod reply;
pub mod rig;
pub mod ring;
pub mod transport;

pub use disk::{Disk, Shape, Zone as DiskZone};
pub use memory::{Bounce, FakeHal, Identity, Watch};
pub use reply::{Logged, Reply, Request};
pub(crate) use rig::on_both_hals;
pub use ring::Ring;
pub use transport::{FakeDevice, FakeTransport, Generation};

/// Length of a sector in bytes.
pub const SECTOR: usize = 512;
