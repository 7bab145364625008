//! Zones taken out of use by hand, and back: for those who want to see what others do about it.

use std::ops::Range;

use virtio_zbd_zones::{Condition, Geometry, SECTOR_LEN_BYTES, ZoneState};

use super::ImageStore;
use crate::error::StoreError;
use crate::medium::clear;
use crate::store::{Commit, Store};

/// What becomes of a zone by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneFate {
    /// It can be written and read again. What was below its write pointer when it went out of use is there; it is empty, closed, or full where that is
    /// all that it can hold.
    Good,
    /// It can't be written any more (V28).
    ReadOnly,
    /// It can't even be read (V29).
    Offline,
}

impl ImageStore {
    /// Takes zones out of use, or back into use. It is durable when this returns. The image must be open for writing, and nobody may use its
    /// zones meanwhile: a [zone table](virtio_zbd_zones::ZoneTable) over it would know nothing of it.
    ///
    /// Zones that are as they should be already are left alone. Either all zones are changed or, where one can't be, none.
    ///
    /// # Errors
    /// No such zone, or a conventional one, which has no such condition; more active zones than the disk allows; the medium's.
    pub fn set_zones(&self, zones: &[u32], fate: ZoneFate) -> Result<(), StoreError> {
        let shape = self.shape();
        let geometry = &shape.geometry;
        let mut states = self.initial_states();
        let mut changed = Vec::new();
        for &zone in zones {
            let index = usize::try_from(zone).unwrap_or(usize::MAX);
            let Some(state) = states.get_mut(index) else {
                let (name, zone_count) = (self.name(), geometry.zone_count());
                return Err(StoreError::NoSuchZone { name, zone, zone_count });
            };
            if state.condition == Condition::NotWp {
                return Err(StoreError::Conventional { name: self.name(), zone });
            }
            let to = after(*state, fate, geometry, zone);
            if to != *state {
                *state = to;
                changed.push((zone, to));
            }
        }
        let active = states.iter().filter(|state| state.condition.is_active()).count();
        let active = u32::try_from(active).unwrap_or(u32::MAX);
        let max_active_zones = geometry.max_active_zones();
        if max_active_zones != 0 && active > max_active_zones {
            return Err(StoreError::TooManyActive { name: self.name(), active, max_active_zones });
        }
        if fate == ZoneFate::Good {
            // Behind the data of a zone that was out of use there may be what it held before a reset. It goes first: until the zone's
            // new condition is durable nobody sees either.
            for (zone, state) in &changed {
                let bytes = shape.layout.zone_bytes(geometry, *zone);
                let kept = u64::from(state.wp_sectors) * u64::from(SECTOR_LEN_BYTES);
                self.clear_behind(bytes.start + kept..bytes.end)?;
            }
        }
        for (zone, state) in &changed {
            self.publish(*zone, *state);
        }
        // Named as finished zones are: their states become durable, and before them the sectors.
        let finished: Vec<u32> = changed.iter().map(|(zone, _)| *zone).collect();
        self.commit(&Commit { finished: &finished, ..Commit::default() }).durable
    }

    fn clear_behind(&self, bytes: Range<u64>) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        clear(&*self.medium, bytes)
            .map_err(StoreError::io(self.name(), "removing what lies behind a zone's data"))
    }
}

fn after(state: ZoneState, fate: ZoneFate, geometry: &Geometry, zone: u32) -> ZoneState {
    let out = matches!(state.condition, Condition::ReadOnly | Condition::Offline);
    let condition = match fate {
        ZoneFate::ReadOnly => Condition::ReadOnly,
        ZoneFate::Offline => Condition::Offline,
        ZoneFate::Good if !out => state.condition,
        // As after a restart that finds it so.
        ZoneFate::Good => {
            let closed = ZoneState { condition: Condition::Closed, ..state };
            return closed.after_restart(geometry, zone);
        }
    };
    ZoneState { condition, ..state }
}
