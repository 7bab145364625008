//! What the tests of this crate share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod image;
pub mod sim;

use std::time::Duration;

use virtio_zbd_store::{Event, IoBuffer, Lane, Zeroing};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};

/// Prints the seed of a random test, so that a failure can be repeated: `SEED=… cargo test …`.
pub fn seeded(name: &str) -> fastrand::Rng {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("{name}: SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// 20 zones of 256 KiB, 192 KiB of each usable, the last one half as long; 2 conventional ones.
pub fn geometry() -> Geometry {
    Geometry::new(GeometryConfig {
        capacity_sectors: 19 * 512 + 256,
        zone_sectors: 512,
        zone_capacity_sectors: 384,
        conventional_zones: 2,
        max_open_zones: 4,
        max_active_zones: 6,
        max_append_sectors: 256,
        write_granularity_bytes: 4096,
    })
    .unwrap()
}

pub fn closed(wp_sectors: u32) -> ZoneState {
    ZoneState { condition: Condition::Closed, wp_sectors }
}

pub fn open(wp_sectors: u32) -> ZoneState {
    ZoneState { condition: Condition::ImplicitOpen, wp_sectors }
}

pub fn full(wp_sectors: u32) -> ZoneState {
    ZoneState { condition: Condition::Full, wp_sectors }
}

/// One operation at a time on a lane.
pub trait LaneExt {
    fn write_now(&mut self, offset_bytes: u64, bytes: &[u8]) -> std::io::Result<()>;
    fn read_now(&mut self, offset_bytes: u64, len: usize) -> std::io::Result<Vec<u8>>;
    fn zero_now(&mut self, offset_bytes: u64, len_bytes: u64, how: Zeroing) -> std::io::Result<()>;
    fn next_event(&mut self) -> Event;
}

impl LaneExt for Lane {
    fn write_now(&mut self, offset_bytes: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.write(7, IoBuffer::owned(bytes.to_vec()), offset_bytes);
        match self.next_event() {
            Event::Done { token: 7, result, buffer: Some(_) } => result,
            other => panic!("{other:?}"),
        }
    }

    fn read_now(&mut self, offset_bytes: u64, len: usize) -> std::io::Result<Vec<u8>> {
        self.read(8, IoBuffer::owned(vec![0xee; len]), len, offset_bytes);
        match self.next_event() {
            Event::Done { token: 8, result, buffer: Some(buffer) } => {
                result.map(|()| buffer.into_owned().unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    fn zero_now(&mut self, offset_bytes: u64, len_bytes: u64, how: Zeroing) -> std::io::Result<()> {
        self.zero(9, offset_bytes, len_bytes, how);
        match self.next_event() {
            Event::Done { token: 9, result, buffer: None } => result,
            other => panic!("{other:?}"),
        }
    }

    fn next_event(&mut self) -> Event {
        let mut events = Vec::new();
        self.wait(Some(Duration::from_secs(30)), &mut events).unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }
}
