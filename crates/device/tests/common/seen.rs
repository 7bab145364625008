//! What can be seen of a disk, to be compared.

use std::fmt;

use virtio_zbd_spec::{ZoneDescriptor, ZoneState};
use virtio_zbd_store::{EngineChoice, Event, IoBuffer, Store};

use super::SECTOR;

/// A zone in a report: its condition, and its write pointer from the zone's start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zone(pub(crate) ZoneState, pub(crate) u64);

impl Zone {
    #[track_caller]
    pub(crate) fn new(zone: &ZoneDescriptor) -> Self {
        Self(zone.z_state.try_into().unwrap(), zone.z_wp.get() - zone.z_start.get())
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.0, self.1)
    }
}

/// Everything about a disk's zones and sectors.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct DiskState {
    pub(crate) zones: Vec<ZoneDescriptor>,
    /// What the store has, read past the device: what lies beyond a write pointer, too.
    pub(crate) bytes: Vec<u8>,
    pub(crate) open_and_active: (u32, u32),
}

impl DiskState {
    /// The zone's condition and write pointer.
    #[track_caller]
    pub(crate) fn zone(&self, zone: usize) -> Zone {
        Zone::new(&self.zones[zone])
    }

    /// Panics, with the first difference, where `other` is not the same.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Self) {
        assert_eq!(self.zones.len(), other.zones.len());
        for (i, (before, after)) in self.zones.iter().zip(&other.zones).enumerate() {
            assert_eq!(before, after, "zone {i} has changed");
        }
        assert_eq!(self.open_and_active, other.open_and_active, "open and active zones");
        assert_same_bytes(&self.bytes, &other.bytes, "the disk");
    }
}

/// Panics, with the first difference, where two byte strings are not the same.
#[track_caller]
pub(crate) fn assert_same_bytes(before: &[u8], after: &[u8], what: &str) {
    assert_eq!(before.len(), after.len(), "length of {what}");
    if let Some(at) = before.iter().zip(after).position(|(a, b)| a != b) {
        panic!("{what}: byte {at:#x} (sector {}) was {:#x}, is {:#x}", at / SECTOR, before[at], after[at]);
    }
}

/// All sectors of a store, through a lane of its own.
pub(crate) fn raw_bytes(store: &dyn Store) -> Vec<u8> {
    let len = usize::try_from(store.capacity_bytes()).unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    lane.read(0, IoBuffer::owned(vec![0; len]), len, 0);
    let mut events = Vec::new();
    lane.wait(None, &mut events).unwrap();
    match events.pop() {
        Some(Event::Done { buffer: Some(buffer), result: Ok(()), .. }) => buffer.into_owned().unwrap(),
        other => panic!("reading the store: {other:?}"),
    }
}

/// Data of so many sectors, none like another, none like those of another tag.
pub(crate) fn sectors(tag: u64, count: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(tag ^ 0x5eed);
    let mut data = vec![0; count * SECTOR];
    rng.fill(&mut data);
    data
}

/// As [`sectors`], in blocks of 4096 bytes.
pub(crate) fn blocks(tag: u64, count: usize) -> Vec<u8> {
    sectors(tag, count * 8)
}
