//! What a zone is at one moment, and what of it a restart keeps.

use thiserror::Error;

use crate::{Geometry, ZoneKind};

/// The condition of a zone. The numbers are those of the wire (`VIRTIO_BLK_ZS_*`, virtio 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Condition {
    /// Conventional: there is no write pointer.
    NotWp = 0,
    /// Nothing written; the write pointer is at the zone's start.
    Empty = 1,
    /// Opened by a write; the device may close it to make room (V27).
    ImplicitOpen = 2,
    /// Opened by the driver; only the driver closes it.
    ExplicitOpen = 3,
    /// Partly written, no open resource in use.
    Closed = 4,
    /// Readable, never writable again.
    ReadOnly = 13,
    /// Written up to its capacity, or finished before that.
    Full = 14,
    /// Neither readable nor writable.
    Offline = 15,
}

impl Condition {
    /// Whether a zone in this condition uses one of the open resources.
    pub fn is_open(self) -> bool {
        matches!(self, Self::ImplicitOpen | Self::ExplicitOpen)
    }

    /// Whether a zone in this condition uses one of the active resources.
    pub fn is_active(self) -> bool {
        self.is_open() || self == Self::Closed
    }

    /// The condition with this number on the wire.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::NotWp,
            1 => Self::Empty,
            2 => Self::ImplicitOpen,
            3 => Self::ExplicitOpen,
            4 => Self::Closed,
            13 => Self::ReadOnly,
            14 => Self::Full,
            15 => Self::Offline,
            _ => return None,
        })
    }
}

/// What a store keeps of a zone: its condition, and how far its data reaches.
///
/// It packs into one `u64`, so that it can be put into shared memory by a single aligned store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneState {
    /// The zone's condition.
    pub condition: Condition,
    /// Sectors from the zone's start to the end of its data. It is the write pointer of a zone that has one; a full zone keeps
    /// here how far it was really written, so that what a FINISH skipped still reads as unwritten (V30).
    pub wp_sectors: u32,
}

impl ZoneState {
    /// A conventional zone.
    pub const CONVENTIONAL: Self = Self { condition: Condition::NotWp, wp_sectors: 0 };
    /// A sequential zone with nothing in it.
    pub const EMPTY: Self = Self { condition: Condition::Empty, wp_sectors: 0 };
    /// A sequential zone of which nothing is left.
    pub const OFFLINE: Self = Self { condition: Condition::Offline, wp_sectors: 0 };

    /// The state of `zone` on a disk that was never used.
    pub fn new(geometry: &Geometry, zone: u32) -> Self {
        if geometry.is_conventional(zone) { Self::CONVENTIONAL } else { Self::EMPTY }
    }

    /// The state in one word: the condition's code in the top byte, the sectors in the low four, zeros between.
    pub fn to_bits(self) -> u64 {
        u64::from(self.condition as u8) << 56 | u64::from(self.wp_sectors)
    }

    /// The reverse of [`to_bits`](Self::to_bits); `None` for a word it never makes.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let [code, pad @ .., a, b, c, d] = bits.to_be_bytes();
        if pad != [0; 3] {
            return None;
        }
        Some(Self { condition: Condition::from_code(code)?, wp_sectors: u32::from_be_bytes([a, b, c, d]) })
    }

    /// What a restart of the disk makes of this state of `zone`: open zones come back closed, or empty if nothing was written
    /// (G6, D4). An active zone that is written to its capacity comes back full: the device died between the write's end and
    /// the transition.
    pub fn after_restart(self, geometry: &Geometry, zone: u32) -> Self {
        let condition = match self.condition {
            active if !active.is_active() => active,
            _ if self.wp_sectors == 0 => Condition::Empty,
            _ if self.wp_sectors == geometry.zone_capacity_sectors(zone) => Condition::Full,
            _ => Condition::Closed,
        };
        Self { condition, ..self }
    }

    /// Whether `zone` of a disk of this geometry can be in this state.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn check(self, geometry: &Geometry, zone: u32) -> Result<(), StateError> {
        let capacity_sectors = geometry.zone_capacity_sectors(zone);
        let conventional = geometry.is_conventional(zone);
        if conventional != (self.condition == Condition::NotWp) {
            return Err(StateError::Kind { zone, conventional, condition: self.condition });
        }
        if self.wp_sectors > capacity_sectors {
            return Err(StateError::BeyondCapacity { zone, wp_sectors: self.wp_sectors, capacity_sectors });
        }
        if matches!(self.condition, Condition::NotWp | Condition::Empty) && self.wp_sectors != 0 {
            return Err(StateError::WritePointer {
                zone,
                condition: self.condition,
                wp_sectors: self.wp_sectors,
            });
        }
        // A preferred zone takes any write, as a conventional one does.
        let any = geometry.kind(zone) == ZoneKind::SequentialPreferred;
        if !any && !self.wp_sectors.is_multiple_of(geometry.granularity_sectors()) {
            return Err(StateError::Unaligned { zone, wp_sectors: self.wp_sectors });
        }
        Ok(())
    }
}

/// A [`ZoneState`] that its zone can't be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum StateError {
    #[error("zone {zone}: condition {condition:?} where the zone is conventional = {conventional}")]
    Kind { zone: u32, conventional: bool, condition: Condition },
    #[error("zone {zone}: {wp_sectors} sectors written where {capacity_sectors} is the capacity")]
    BeyondCapacity { zone: u32, wp_sectors: u32, capacity_sectors: u32 },
    #[error("zone {zone}: condition {condition:?} does not go with {wp_sectors} sectors written")]
    WritePointer { zone: u32, condition: Condition, wp_sectors: u32 },
    #[error("zone {zone}: {wp_sectors} sectors written, which is no whole number of blocks")]
    Unaligned { zone: u32, wp_sectors: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_from_its_bits() {
        for code in 0..=255u8 {
            let Some(condition) = Condition::from_code(code) else {
                continue;
            };
            assert_eq!(condition as u8, code);
            for wp_sectors in [0, 1, 0x1234_5678, u32::MAX] {
                let state = ZoneState { condition, wp_sectors };
                assert_eq!(ZoneState::from_bits(state.to_bits()), Some(state));
            }
        }
        assert_eq!(ZoneState::from_bits(5 << 56), None, "no condition has the number 5");
        assert_eq!(ZoneState::from_bits(1 << 56 | 1 << 32), None, "the middle bytes are zero");
        assert_eq!(ZoneState::from_bits(u64::MAX), None);
    }

    #[test]
    fn a_restart_closes_what_was_open() {
        use Condition::*;
        let geometry = Geometry::new(crate::GeometryConfig {
            capacity_sectors: 1024,
            zone_sectors: 128,
            zone_capacity_sectors: 64,
            conventional_zones: 1,
            max_open_zones: 0,
            max_active_zones: 0,
            max_append_sectors: 0,
            write_granularity_bytes: 512,
        })
        .unwrap();
        let after = |condition, wp_sectors| ZoneState { condition, wp_sectors }.after_restart(&geometry, 1);
        for active in [ImplicitOpen, ExplicitOpen, Closed] {
            assert_eq!(after(active, 0), ZoneState::EMPTY);
            assert_eq!(after(active, 8), ZoneState { condition: Closed, wp_sectors: 8 });
            assert_eq!(after(active, 64), ZoneState { condition: Full, wp_sectors: 64 });
        }
        for condition in [Full, ReadOnly, Offline] {
            assert_eq!(after(condition, 8), ZoneState { condition, wp_sectors: 8 });
        }
        assert_eq!(ZoneState::CONVENTIONAL.after_restart(&geometry, 0), ZoneState::CONVENTIONAL);
    }
}
