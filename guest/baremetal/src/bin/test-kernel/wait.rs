//! Waiting for a device without interrupts: polling, with an end.
#![allow(unsafe_code)]

use core::arch::x86_64::_rdtsc;

use virtio_drivers::transport::Transport;
use virtio_zbd_driver::{Wait, Waited};

/// How long a request may take, in ticks of the processor's time stamp counter: half a minute at 2 GHz, and at most two whatever
/// the machine. A device that forgot a request is then a failed check and not a test that hangs.
const TICKS_MAX: u64 = 1 << 36;

/// Where it is known that some requests are forgotten: a few seconds.
const TICKS_SHORT: u64 = 1 << 33;

/// Polls until the device has had its time.
pub(crate) struct Patience {
    since: u64,
    ticks_max: u64,
}

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience { since: 0, ticks_max: TICKS_MAX }
    }

    /// For the conformance suite: a device that does not answer what it should not have been sent is among what is looked for.
    pub(crate) fn short() -> Patience {
        Patience { since: 0, ticks_max: TICKS_SHORT }
    }
}

impl<T: Transport> Wait<T> for Patience {
    fn wait(&mut self, _: &mut T, _: u16, turn: u64) -> Waited {
        // SAFETY: reading the counter changes nothing, and each x86-64 processor has it.
        let now = unsafe { _rdtsc() };
        if turn == 0 {
            self.since = now;
        }
        core::hint::spin_loop();
        if now.wrapping_sub(self.since) < self.ticks_max { Waited::Again } else { Waited::GiveUp }
    }
}
