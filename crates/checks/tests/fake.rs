//! The list on the driver's own test device: an honest disk passes, and each kind of wrong disk is noticed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

#[path = "../../driver/tests/common/mod.rs"]
mod common;

use common::{FakeDevice, Identity, Shape, Watch};
use virtio_zbd_checks::{Line, MakesRoom, Peer, Summary, Verdict};
use virtio_zbd_driver::{Options, VirtioBlk};

const SEED: u64 = 7;

/// The fake device keeps the rules, but closes no zone to make room for another.
const FAKE: Peer = Peer { makes_room: MakesRoom::Never, ..Peer::EXACT };

fn run(device: &FakeDevice, peer: &Peer) -> (Summary, Vec<Line>) {
    let options = Options { queues: 4, ..Options::default() };
    let mut disk = VirtioBlk::<Identity, _>::new(device.transport(), options).unwrap();
    let mut lines = Vec::new();
    let summary = virtio_zbd_checks::run(&mut disk, peer, SEED, &mut |line| {
        println!("{line}");
        lines.push(line.clone());
    });
    println!("{summary}");
    (summary, lines)
}

fn passes(shape: Shape, peer: &Peer) {
    let _watch = Watch::begin();
    let (_, lines) = run(&FakeDevice::new(shape), peer);
    let failed: Vec<_> = lines.iter().filter(|line| matches!(line.verdict, Verdict::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn an_honest_regular_disk() {
    passes(Shape::regular(), &Peer::EXACT_PLAIN);
    passes(Shape { queues: Some(3), size_max: Some(8192), ..Shape::regular() }, &Peer::EXACT_PLAIN);
    passes(Shape { block_bytes: 4096, queue_size: 16, ..Shape::regular() }, &Peer::EXACT_PLAIN);
}

#[test]
fn an_honest_zoned_disk() {
    passes(Shape::default(), &FAKE);
}
