//! The front-end side: a plain process drives a device behind a vhost-user socket.
//!
//! [`VhostUserTransport`] is a [`Transport`](virtio_drivers::transport::Transport) for the drivers that stand
//! on the `virtio-drivers` crate; their memory comes from [`ArenaHal`], and buffers in an [`ArenaBuffer`] are
//! not copied.
//!
//! ```no_run
//! use std::path::Path;
//! use virtio_drivers::transport::{DeviceStatus, Transport};
//! use virtio_zbd_vhost_user::client::{ConnectOptions, VhostUserTransport};
//!
//! let mut transport = VhostUserTransport::connect(Path::new("disk.sock"), &ConnectOptions::default())?;
//! transport.set_status(DeviceStatus::ACKNOWLEDGE);
//! let features = transport.read_device_features();
//! # Ok::<(), virtio_zbd_vhost_user::client::ConnectError>(())
//! ```
//!
//! # What is asked of a back-end
//!
//! Split rings, and no more: MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE and STATUS are used as
//! far as they are offered. Without MQ there is one queue; without CONFIG there is no configuration space; without STATUS
//! the answer to SET_FEATURES says whether features are accepted, and without REPLY_ACK they always are.
//!
//! What it says is not trusted: sizes, numbers and file descriptors of every message are checked, each
//! exchange is bounded in time, and what is wrong ends the connection with a [`Lost`] that says why.
//!
//! # A back-end that dies
//!
//! With [`ConnectOptions::reconnect`] the connection outlives it: when the socket is closed, the transport connects to the
//! same path again, tells the new back-end all that the old one knew, and hands it the region in which the old one
//! kept its requests in flight (INFLIGHT_SHMFD). These are completed by the new one, in the same ring; a driver
//! sees nothing of it but the time. It happens inside of whatever method finds the connection closed, which takes
//! as long as it takes. Whoever waits for completions must therefore do so by this transport
//! ([`wait_used`](VhostUserTransport::wait_used) or [`ack_interrupt`](virtio_drivers::transport::Transport::ack_interrupt)),
//! not by looking into the ring alone.
//!
//! The back-end that closes the connection must be dead, or at least be done with the memory: two of them on one
//! ring would answer everything twice. Whatever was in use at its death is not used for anything else afterwards.

mod arena;
mod back;
mod channel;
mod config;
mod dial;
mod inflight;
mod link;
mod lost;
mod queue;
mod recover;
mod session;
mod transport;

pub use self::arena::{ArenaBuffer, ArenaError, ArenaHal};
pub use self::lost::{ConnectError, Lost, Monitor};
pub use self::transport::{ConnectOptions, VhostUserTransport};
