//! The list on the driver's own test device: an honest disk passes, in whatever order it answers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

#[path = "../../driver/tests/common/mod.rs"]
mod common;

use common::{Bounce, FakeDevice, FakeTransport, Identity, Shape, Watch};
use virtio_zbd_checks::{Line, MakesRoom, Peer, Verdict};
use virtio_zbd_driver::{Hal, Options, VirtioBlk, Waited};

const SEED: u64 = 7;

/// The fake device keeps the rules, but closes no zone to make room for another.
const FAKE: Peer = Peer { makes_room: MakesRoom::Never, ..Peer::EXACT };

/// Zones with room for more than a few writes.
fn zoned() -> Shape {
    Shape {
        capacity_sectors: 20 * 256 + 40,
        zone_sectors: 256,
        zone_capacity_sectors: 200,
        append_sectors_max: 64,
        seg_max: Some(64),
        ..Shape::default()
    }
}

#[track_caller]
fn passes<H: Hal>(disk: &mut VirtioBlk<H, FakeTransport>, peer: &Peer, not_here: &[&str]) {
    let mut lines: Vec<Line> = Vec::new();
    let summary = virtio_zbd_checks::run(disk, peer, SEED, &mut |line| {
        println!("{line}");
        lines.push(line.clone());
    });
    println!("{summary}");
    let failed: Vec<_> = lines.iter().filter(|line| matches!(line.verdict, Verdict::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let skipped = lines.iter().filter(|line| matches!(line.verdict, Verdict::NotHere(_)));
    let skipped: Vec<_> = skipped.map(|line| line.check).collect();
    assert_eq!(skipped, not_here);
}

fn attach<H: Hal>(device: &FakeDevice) -> VirtioBlk<H, FakeTransport> {
    VirtioBlk::new(device.transport(), Options { queues: 4, ..Options::default() }).unwrap()
}

fn regular_disks<H: Hal>() {
    let shapes = [
        Shape::regular(),
        Shape { queues: Some(3), size_max: Some(8192), ..Shape::regular() },
        Shape { block_bytes: 4096, queue_size: 16, ..Shape::regular() },
    ];
    for shape in shapes {
        let _watch = Watch::begin();
        let device = FakeDevice::new(shape.clone());
        let mut not_here = vec!["plain: the cache's mode", "plain: a read-only disk"];
        if shape.size_max.is_none() {
            not_here.push("plain: requests that are too long");
        }
        not_here.extend(["plain: requests that the disk does not offer", "zoned: everything"]);
        passes(&mut attach::<H>(&device), &Peer::EXACT_PLAIN, &not_here);
    }
}

#[test]
fn honest_regular_disks() {
    regular_disks::<Identity>();
    regular_disks::<Bounce>();
}

/// What the fake zoned disk can't be asked.
const ZONED_NOT_HERE: [&str; 9] = [
    "plain: the cache's mode",
    "plain: a read-only disk",
    "plain: discard",
    "plain: write zeroes",
    "plain: write zeroes and unmap",
    "plain: secure erase",
    "plain: requests that are too long",
    "plain: zone commands on a disk without zones",
    "zoned: secure erase resets whole zones (V32)",
];

#[test]
fn an_honest_zoned_disk() {
    let _watch = Watch::begin();
    passes(&mut attach::<Identity>(&FakeDevice::new(zoned())), &FAKE, &ZONED_NOT_HERE);
    passes(&mut attach::<Bounce>(&FakeDevice::new(zoned())), &FAKE, &ZONED_NOT_HERE);
}

/// V32 is not offered by our device; the fake one has it.
#[test]
fn a_zoned_disk_with_secure_erase() {
    use virtio_zbd_spec::Features;
    let _watch = Watch::begin();
    let more = zoned().more | Features::SECURE_ERASE;
    let device = FakeDevice::new(Shape { more, ..zoned() });
    passes(&mut attach::<Identity>(&device), &FAKE, &ZONED_NOT_HERE[..8]);
}

/// Answers come late, and in any order.
#[test]
fn completions_out_of_order() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape { queues: Some(2), ..zoned() });
    device.face(|face| face.holds_answers = true);
    let mut random = fastrand::Rng::with_seed(SEED);
    let wait = move |transport: &mut FakeTransport, queue: u16, _| {
        let waiting = transport.device().waiting(queue);
        if waiting == 0 {
            return Waited::GiveUp;
        }
        transport.device().deliver(queue, random.usize(0..waiting));
        Waited::Again
    };
    let options = Options { queues: 2, ..Options::default() };
    let allocate = |len_bytes| Some(vec![0; len_bytes]);
    let mut disk = VirtioBlk::<Identity, _>::with(device.transport(), options, wait, allocate).unwrap();
    passes(&mut disk, &FAKE, &ZONED_NOT_HERE);
}
