//! Both ends of vhost-user, for any virtio device.
//!
//! This crate knows the protocol, guest memory and rings' addresses; it knows nothing of what a device does
//! with a ring.
//!
//! # The server: the back-end side
//!
//! A device implements [`Backend`], [`Session`] and [`RunningQueue`]; [`Server`] does the rest:
//!
//! - [`Server::bind`] makes the socket, [`Server::serve`] takes one front-end after another (a guest reboots,
//!   another VMM comes) until a file descriptor says stop.
//! - [`serve_connection`] serves one socket that is connected already, for programs that get theirs from elsewhere.
//! - A queue is handed to the device as a [`Vring`] when the front-end has started it, and handed back,
//!   drained, before anything about it changes. What is in a [`Vring`] has been checked: its rings lie in
//!   guest memory and are aligned.
//! - What a front-end sends is never trusted. A message that is wrong is answered with an error where the
//!   protocol has room for one, otherwise the connection ends; the server goes on to the next.
//!
//! The protocol is that of QEMU's `docs/interop/vhost-user.rst`. Offered protocol features: MQ, REPLY_ACK,
//! BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS and STATUS; INFLIGHT_SHMFD where the device keeps
//! its part of it ([`Backend::keeps_inflight`]). Split rings only, no IOMMU, no dirty
//! log.
//!
//! Front-ends that this crate is made for and tried with: rust-vmm's `vhost` crate, libblkio's `virtio-driver`, and
//! Linux's own `virtio_uml`, whose call and back-end request channels are socket pairs, and whose memory table has
//! room for more regions than it names.
//!
//! # The client: the front-end side
//!
//! In [`client`]: a transport and memory for the drivers that stand on the `virtio-drivers` crate, so that a plain
//! process drives any vhost-user back-end. Back-ends that it is tried with: this crate's server and QEMU's
//! storage daemon.

// Mapping the client's memory and guarding a front-end's need some: two modules allow it for themselves.
#![deny(unsafe_code)]

pub mod client;

mod backend;
mod connection;
mod fault;
mod frontend;
mod guarded;
mod inflight;
mod memory;
mod message;
mod notifier;
mod request;
mod ring;
mod server;
mod socket;
mod state;
mod vring;

pub use backend::{Backend, ConfigRefused, FeaturesRefused, RunningQueue, Session, StartError};
pub use connection::{End as ConnectionEnd, serve_connection};
pub use frontend::FrontendNotifier;
pub use inflight::{INFLIGHT_MARKS, Inflight, InflightQueue};
pub use message::MEMORY_SLOTS_MAX;
pub use notifier::{NotAnEvent, Notifier};
pub use server::{Error, Server};
pub use vring::Vring;
