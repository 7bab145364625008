//! What a device owes the server, and what the server owes a device.

use crate::{FrontendNotifier, Inflight, Vring};

/// A device that may be served to many front-ends, one after another.
///
/// It holds what outlives a connection; what belongs to one connection lives in its [`Session`].
pub trait Backend: Send + Sync {
    /// The state of one connection.
    type Session: Session;

    /// The virtio feature bits that the device offers.
    ///
    /// Bit 30 (vhost-user's own) is added by the server. Bits that the server cannot keep are taken out: 26
    /// (dirty log), 33 (IOMMU) and 34 (packed rings).
    fn features(&self) -> u64;

    /// How many queues a front-end may use. The protocol has room for 256; more are not reachable.
    fn queue_count(&self) -> u16;

    /// How many entries a queue may have at most: a power of two, at most 32,768 (virtio 1.x, 2.7).
    fn queue_size_max(&self) -> u16;

    /// Whether queues keep their requests under way in [`Vring::inflight`], and make those again that they find there.
    ///
    /// Without that the protocol feature INFLIGHT_SHMFD is not offered: a front-end would rely on it.
    fn keeps_inflight(&self) -> bool {
        false
    }

    /// A front-end has connected. `frontend` reaches it for as long as the connection lives; afterwards it
    /// does nothing.
    ///
    /// Dropping the session ends it. All of its queues have been stopped by then.
    fn connect(&self, frontend: FrontendNotifier) -> Self::Session;
}

/// One front-end's use of a device, from connection to disconnection.
///
/// All methods are called on the thread that serves the connection. They may block; the connection waits for
/// them.
pub trait Session {
    /// A queue that is being worked on.
    type Queue: RunningQueue;

    /// The driver accepted `features`, a subset of what was offered, without bit 30.
    ///
    /// May be called again, with or without a [`reset`](Self::reset) in between: each call is a new driver's
    /// try, and replaces what was accepted before. No queue is running while it is called. It is not called
    /// for a front-end that merely connects: only when a driver has spoken, or (with 0) when a driver goes on
    /// without having accepted anything.
    ///
    /// # Errors
    ///
    /// The device cannot be used with these features. The server leaves FEATURES_OK clear, or answers with an
    /// error if the front-end does not use the STATUS protocol feature; the connection stays, and a later
    /// call is a new try. Queues may still be started, by a front-end that does not look.
    fn accept_features(&mut self, features: u64) -> Result<(), FeaturesRefused>;

    /// Fills `out` with the bytes of the configuration space from `offset_bytes` on. Bytes past its end are
    /// zero.
    ///
    /// `out` has 1 to 256 bytes; `offset_bytes` may be anything.
    fn read_config(&self, offset_bytes: u32, out: &mut [u8]);

    /// The driver wrote `data` to the configuration space at `offset_bytes`. `data` has 1 to 256 bytes.
    ///
    /// # Errors
    ///
    /// Some of the bytes are not writable, or the value is not allowed. Nothing has been changed.
    fn write_config(&mut self, offset_bytes: u32, data: &[u8]) -> Result<(), ConfigRefused>;

    /// The front-end shows the buffer in which it keeps what is under way. It may be new, or come from another process that died; the
    /// queues that are started from now on have their part of it in [`Vring::inflight`]. No queue is running while this is called.
    ///
    /// Here a device looks at all queues' notes before it does anything for one of them.
    fn use_inflight(&mut self, _buffer: &Inflight) {}

    /// Hands queue `index` over to the device.
    ///
    /// `index` is below [`Backend::queue_count`] and not running. The device must look at the available ring
    /// at once, without waiting for a kick: kicks that came while the queue was stopped may be lost.
    /// `vring.features` is what the driver accepted, even where [`accept_features`](Self::accept_features)
    /// refused it: what to do with such a queue is the device's decision.
    ///
    /// # Errors
    ///
    /// The queue cannot be worked on. It stays stopped, the front-end is told, and it may try again.
    fn start_queue(&mut self, index: u16, vring: Vring) -> Result<Self::Queue, StartError>;

    /// The device is reset (status 0 or RESET_DEVICE): accepted features are forgotten. All queues have been
    /// stopped before.
    fn reset(&mut self);
}

/// A queue that a device works on.
pub trait RunningQueue {
    /// Takes the queue back from the device.
    ///
    /// Returns when it is drained: nothing of it is in flight, everything done is in the used ring, the
    /// driver has been notified, guest memory is no longer touched, and `next_avail` of the returned
    /// [`Vring`] is the first entry of the available ring that was not taken. The front-end may reuse the
    /// memory right after.
    fn stop(self) -> Vring;
}

/// Why a device cannot be used with the features that a driver accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct FeaturesRefused {
    reason: String,
}

/// Why a write to the configuration space was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConfigRefused {
    reason: String,
}

/// Why a queue could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct StartError {
    reason: String,
}

impl FeaturesRefused {
    /// A refusal for the log: what is missing or too much.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl ConfigRefused {
    /// A refusal for the log: which field, and why.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl StartError {
    /// An error for the log: what was tried and what failed.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}
