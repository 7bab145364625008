//! How a synchronous call passes the time until the device has answered.

use virtio_drivers::transport::Transport;

/// Passes the time until a device may have answered.
///
/// A kernel waits for the interrupt here, a process for its eventfd; [`Spin`] polls. Any
/// `FnMut(&mut T, u16, u64) -> Waited` is a `Wait`, too.
pub trait Wait<T: Transport>: Send {
    /// Called each time a call found nothing on `queue`. `turn` counts from 0 since the call began to wait, so that a
    /// deadline can be kept: what never says [`Waited::GiveUp`] waits for ever on a device that never answers.
    fn wait(&mut self, transport: &mut T, queue: u16, turn: u64) -> Waited;
}

/// What came of a [`Wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Look again.
    Again,
    /// The device had its time: the call ends with [`Error::TimedOut`](crate::Error::TimedOut) and the device is reset.
    GiveUp,
    /// The device is gone: the call ends with [`Error::Removed`](crate::Error::Removed).
    Gone,
}

impl<T: Transport, F: FnMut(&mut T, u16, u64) -> Waited + Send> Wait<T> for F {
    fn wait(&mut self, transport: &mut T, queue: u16, turn: u64) -> Waited {
        self(transport, queue, turn)
    }
}

/// Polls, and gives up after `turns_max` looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spin {
    /// How often to look.
    pub turns_max: u64,
}

impl Default for Spin {
    /// 2^36 looks: minutes on any machine. A kernel with a clock does better with a `Wait` of its own.
    fn default() -> Self {
        Self { turns_max: 1 << 36 }
    }
}

impl<T: Transport> Wait<T> for Spin {
    fn wait(&mut self, _: &mut T, _: u16, turn: u64) -> Waited {
        if turn >= self.turns_max {
            return Waited::GiveUp;
        }
        core::hint::spin_loop();
        Waited::Again
    }
}
