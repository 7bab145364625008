//! Hostile peers, made of bytes: what the fuzz targets of `fuzz/` do, in a library, so that `cargo test` does the same with
//! the committed corpora and with random bytes.
//!
//! | Target | The bytes are | The oracle is |
//! |---|---|---|
//! | [`device`] | a driver: guest memory, rings, chains, requests | the naive disk of the device's tests, and a naive walk of chains: every byte of guest memory is foretold |
//! | [`messages`] | a front-end: vhost-user messages and their file descriptors, in any order, cut anywhere | a naive model of the connection: every reply, and whether it lives |
//! | [`image`] | a file: an image with a past, damaged anywhere | a naive reader of the format: whether it opens, and with what |
//!
//! A target panics where something is wrong, on whatever thread that is found.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is test code in a crate of its own: what is wrong is said by a panic"
)]

mod device;
mod image;
mod input;
mod medium;
mod messages;
mod space;
mod watch;

#[allow(dead_code, reason = "the device's tests use all of it")]
#[path = "../../device/tests/naive/mod.rs"]
mod naive;

pub use device::device;
pub use image::image;
pub use messages::messages;

/// A target: its name, which is that of its corpus and its program too, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 3] = [("device", device), ("messages", messages), ("image", image)];
