//! One zone of a report, checked (L9).

use virtio_zbd_spec::{ZoneDescriptor, ZoneState, ZoneType};

use crate::error::Wrong;
use crate::limits::Zoned;

/// A zone as the device reported it, and as it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Where the zone begins, in sectors.
    pub start_sector: u64,
    /// How long it is: the disk's zone size, less for a last zone that the capacity cuts short.
    pub len_sectors: u64,
    /// How much of it can be written, at most its length.
    pub capacity_sectors: u64,
    /// Conventional or sequential.
    pub kind: ZoneType,
    /// Its state.
    pub state: ZoneState,
    /// Where the next write goes, as an address on the disk. `None` where there is no valid write pointer: conventional,
    /// read-only and offline zones. A full zone's is the zone's end.
    pub write_pointer_sector: Option<u64>,
}

impl Zone {
    /// Checks the descriptor of the zone that must begin at `start_sector`, on a disk of `capacity_sectors`.
    pub(crate) fn new(
        descriptor: &ZoneDescriptor,
        start_sector: u64,
        zoned: &Zoned,
        capacity_sectors: u64,
    ) -> Result<Self, Wrong> {
        let found_sector = descriptor.z_start.get();
        if found_sector != start_sector {
            return Err(Wrong::ZoneStart { expected_sector: start_sector, found_sector });
        }
        // A runt's length is what the capacity leaves of it.
        let len_sectors = u64::from(zoned.zone_sectors).min(capacity_sectors.saturating_sub(start_sector));
        let kind = ZoneType::try_from(descriptor.z_type)
            .map_err(|_| Wrong::ZoneType { start_sector, found: descriptor.z_type })?;
        let state = ZoneState::try_from(descriptor.z_state)
            .map_err(|_| Wrong::ZoneState { start_sector, found: descriptor.z_state })?;
        let conventional = kind == ZoneType::Conventional;
        if conventional != (state == ZoneState::NotWp) {
            return Err(Wrong::ZoneStateOfType { start_sector, kind, state });
        }
        let found_sectors = descriptor.z_cap.get();
        let dead = matches!(state, ZoneState::ReadOnly | ZoneState::Offline);
        let possible = match found_sectors {
            0 => dead,
            _ if conventional => found_sectors == len_sectors,
            _ => found_sectors <= len_sectors,
        };
        if !possible {
            return Err(Wrong::ZoneCapacity { start_sector, len_sectors, found_sectors });
        }
        let wp_sector = descriptor.z_wp.get();
        let write_pointer_sector = match state {
            ZoneState::NotWp | ZoneState::ReadOnly | ZoneState::Offline => None,
            // What a device gives for a full zone differs from one to the next.
            ZoneState::Full => Some(start_sector + len_sectors),
            ZoneState::Empty if wp_sector == start_sector => Some(wp_sector),
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen | ZoneState::Closed
                if (start_sector..=start_sector + found_sectors).contains(&wp_sector) =>
            {
                Some(wp_sector)
            }
            _ => return Err(Wrong::ZoneWritePointer { start_sector, state, found_sector: wp_sector }),
        };
        Ok(Self {
            start_sector,
            len_sectors,
            capacity_sectors: found_sectors,
            kind,
            state,
            write_pointer_sector,
        })
    }

    /// The first sector after the zone.
    #[must_use]
    pub fn end_sector(&self) -> u64 {
        self.start_sector + self.len_sectors
    }

    /// How many sectors can still be written, 0 where the write pointer is not valid.
    #[must_use]
    pub fn remaining_sectors(&self) -> u64 {
        let end_sector = self.start_sector + self.capacity_sectors;
        self.write_pointer_sector.map_or(0, |wp| end_sector.saturating_sub(wp))
    }
}
