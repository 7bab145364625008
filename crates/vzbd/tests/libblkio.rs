//! libblkio's driver on our disk: somebody else's idea of virtio-blk and of vhost-user.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/peer.rs"]
mod peer;

use std::path::Path;

use common::{Daemon, Place, pattern};
use peer::Peer;
use virtio_zbd_spec::Features;

const EIO: i32 = -5;

/// What libblkio asks for.
fn features() -> u64 {
    let f = Features::INDIRECT_DESC
        | Features::EVENT_IDX
        | Features::FLUSH
        | Features::DISCARD
        | Features::WRITE_ZEROES;
    f.bits()
}

#[test]
fn a_plain_disk() {
    let place = Place::new();
    let raw = place.path("raw.img");
    common::vzbd_ok(&["create", raw.to_str().unwrap(), "--zoned", "none", "--size", "8M"]);
    for target in [raw.as_path(), Path::new("ram")] {
        let size = if target == Path::new("ram") { &["--size", "8M"][..] } else { &[] };
        let options = [&["--zoned", "none"], size].concat();
        let daemon = Daemon::start(target, &place.path("sock"), &options);
        let mut peer = Peer::connect(&place.path("sock"), 4, 64 << 10, features()).unwrap();

        peer.fill(0, &pattern(1, 64 << 10));
        peer.write(0, 1 << 20, 64 << 10);
        assert_eq!(peer.finish(), 0);
        peer.queue().flush(9).unwrap();
        assert_eq!(peer.finish(), 0);
        peer.read(1, 1 << 20, 64 << 10);
        assert_eq!(peer.finish(), 0);
        assert!(peer.bytes(1, 64 << 10) == pattern(1, 64 << 10));

        peer.queue().write_zeroes((1 << 20) + 4096, 8192, true, 9).unwrap();
        assert_eq!(peer.finish(), 0);
        peer.queue().discard((1 << 20) + (32 << 10), 4096, 9).unwrap();
        assert_eq!(peer.finish(), 0);
        peer.read(2, 1 << 20, 32 << 10);
        assert_eq!(peer.finish(), 0);
        let mut expected = pattern(1, 32 << 10);
        expected[4096..12288].fill(0);
        assert!(peer.bytes(2, 32 << 10) == expected);

        // The last sector, and the first one behind it.
        peer.read(3, (8 << 20) - 512, 512);
        assert_eq!(peer.finish(), 0);
        peer.read(3, 8 << 20, 512);
        assert_eq!(peer.finish(), EIO);
        drop(peer);
        assert!(daemon.stop().0.success());
    }
}

#[test]
fn many_at_once_on_a_zoned_disk() {
    let place = Place::new();
    let image = place.small_image();
    let _daemon = Daemon::start(&image, &place.path("sock"), &[]);
    let mut peer = Peer::connect(&place.path("sock"), 96, 4096, features() | Features::ZONED.bits()).unwrap();
    let zone = 3 << 20;
    // In order in the ring, so each at the write pointer that the one before it leaves.
    for i in 0..96 {
        peer.fill(i, &pattern(i as u64, 4096));
        peer.write(i, zone + i as u64 * 4096, 4096);
        if i % 32 == 31 {
            peer.kick();
            let mut left = 32;
            while left > 0 {
                for (_, errno) in peer.wait() {
                    assert_eq!(errno, 0);
                    left -= 1;
                }
            }
        }
    }
    for i in 0..96 {
        peer.read(0, zone + i * 4096, 4096);
        assert_eq!(peer.finish(), 0);
        assert!(peer.bytes(0, 4096) == pattern(i, 4096), "block {i}");
    }
    // Not at the write pointer: an error for a driver that knows no zones' statuses.
    peer.write(0, zone, 4096);
    assert!(peer.finish() < 0);
}
