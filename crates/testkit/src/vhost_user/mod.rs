//! A vhost-user frontend for tests, on rust-vmm's: an independent peer for our server.

mod client;
mod handshake;
mod lend;
mod raw;

pub use client::{Client, ClientOptions};
pub use handshake::{Handshake, PROTOCOL_FEATURES_BIT};
pub use raw::RawReply;
