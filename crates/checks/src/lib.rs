//! The driver's test list: what a disk must do, tried through `virtio-zbd-driver` on whatever transport and host it has.
//!
//! The same list runs in a plain process on a vhost-user socket and in a kernel without an operating system; it needs memory
//! (a few MiB), no clock and no floating point. Each check is one [`Line`]: passed, failed with what was
//! expected and what was found, or not here with the reason. The oracle of every read is exact: each sector that is written
//! gets bytes that no other one has.
//!
//! What the other end must do is data, a [`Peer`]: our device keeps every rule to the letter, others are known to differ, and
//! then exactly that difference is expected.
//!
//! **The list destroys the contents of the disk**: it writes, discards and resets zones, all of them.
//!
//! | Part | What it tries |
//! |---|---|
//! | plain | any disk: reads, writes, flush, id, ranges, refusals, many requests on all queues |
//! | zoned | host-managed disks: reports, every command in every state, the write pointer, appends, limits |
//! | random | a long run of random requests beside a naive model of the disk |
//!
//! R, V, G and Q numbers in the names and the messages are those of `docs/driver.md` and `docs/device.md`.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod data;
mod disk;
mod line;
mod peer;
mod plain;
mod random;
mod rig;
mod workload;
mod zoned;

use virtio_zbd_driver::{Buffer, Hal, Transport, VirtioBlk};

pub use line::{Line, Summary, Verdict};
pub use peer::{Discarded, Expected, MakesRoom, Peer, Refusals, Unwritten};

use disk::Real;
use rig::Rig;

/// How many random requests [`run`] makes.
const RANDOM_STEPS: u32 = 400;

const RANDOM: &str = "random: requests beside a model";

/// Runs the whole list on `disk`, whose contents are **destroyed**. `report` gets a line after each check.
///
/// `seed` makes the random parts repeatable. How long a device may take to answer is the disk's own
/// [`Wait`](virtio_zbd_driver::Wait)'s matter.
pub fn run<H: Hal, T: Transport, B: Buffer>(
    disk: &mut VirtioBlk<H, T, B>,
    peer: &Peer,
    seed: u64,
    report: &mut dyn FnMut(&Line),
) -> Summary {
    let mut disk = Real { disk };
    let mut rig = Rig::new(&mut disk, peer, seed);
    let mut summary = Summary::default();
    for check in plain::CHECKS {
        summary.count(&rig.line(check), report);
    }
    if rig.disk.zoned().is_some() {
        for check in zoned::CHECKS {
            summary.count(&rig.line(check), report);
        }
    } else {
        summary.count(&rig.line_of("zoned: everything", |rig| rig.zoned().map(drop)), report);
    }
    summary.count(&rig.line_of(RANDOM, |rig| workload::run(rig, RANDOM_STEPS)), report);
    summary
}

/// Runs the random part alone, with as many requests as wanted. As [`run`] otherwise: the disk's contents are **destroyed**.
pub fn run_random<H: Hal, T: Transport, B: Buffer>(
    disk: &mut VirtioBlk<H, T, B>,
    peer: &Peer,
    seed: u64,
    steps: u32,
    report: &mut dyn FnMut(&Line),
) -> Summary {
    let mut disk = Real { disk };
    let mut rig = Rig::new(&mut disk, peer, seed);
    let mut summary = Summary::default();
    summary.count(&rig.line_of(RANDOM, |rig| workload::run(rig, steps)), report);
    summary
}
