//! A table that has more zones than the one that it comes from, and shares all others with it.

use alloc::sync::Arc;
use alloc::vec::Vec;

use lock_api::{Mutex, RawMutex};

use crate::geometry::GeometryError;
use crate::state::ZoneState;
use crate::table::{Observer, ZoneTable};
use crate::zone::Zone;

impl<R: RawMutex, O: Observer> ZoneTable<R, O> {
    /// The table of the same disk when it is `capacity_sectors` long. New zones are as on a disk that was never used; a last zone that was shorter
    /// than the others has its full length, and its condition: one that is full stays so until it is reset.
    ///
    /// The two share their zones, resources and observer. The old one stays right for who is still using it: it does not know of what is new, and
    /// refuses it as beyond the disk's end. So queues may take up the new one one after the other, each when it likes, with what they have
    /// under way.
    ///
    /// # Errors
    /// As [`Geometry::grown`](crate::Geometry::grown).
    pub fn grown(&self, capacity_sectors: u64) -> Result<Self, GeometryError> {
        let geometry = self.geometry.grown(capacity_sectors)?;
        let known = self.geometry.zone_count();
        let new = |zone| {
            Mutex::new(Zone::new(ZoneState::new(&geometry, zone), geometry.zone_capacity_sectors(zone)))
        };
        let zones = self.zones.with((known..geometry.zone_count()).map(new).collect());
        let last = known - 1;
        if let Ok(mut z) = self.lock_zone(last) {
            z.capacity_sectors = geometry.zone_capacity_sectors(last);
        }
        Ok(Self {
            geometry,
            resources: Arc::clone(&self.resources),
            zones,
            observer: Arc::clone(&self.observer),
            device_keeps: self.device_keeps,
        })
    }
}

/// Zones that tables share.
type Part<R> = Arc<[Mutex<R, Zone>]>;

/// Zones in order, in parts.
pub(crate) struct ZoneList<R> {
    first: Part<R>,
    /// Each with the number of its last zone and one.
    more: Vec<(usize, Part<R>)>,
}

impl<R: RawMutex> ZoneList<R> {
    pub(crate) fn new(zones: Vec<Mutex<R, Zone>>) -> Self {
        Self { first: zones.into(), more: Vec::new() }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Mutex<R, Zone>> {
        if let Some(zone) = self.first.get(index) {
            return Some(zone);
        }
        let part = self.more.partition_point(|(end, _)| *end <= index);
        let (end, zones) = self.more.get(part)?;
        zones.get(index - (end - zones.len()))
    }

    /// The same zones and these behind them.
    fn with(&self, zones: Vec<Mutex<R, Zone>>) -> Self {
        let (first, mut more) = (Arc::clone(&self.first), self.more.clone());
        let known = more.last().map_or(first.len(), |(end, _)| *end);
        if !zones.is_empty() {
            more.push((known + zones.len(), zones.into()));
        }
        Self { first, more }
    }
}
