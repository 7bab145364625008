//! A disk's zones as plainly as the rules tell them: every request one after the other, counts made when they are asked for.

use alloc::vec::Vec;

use virtio_zbd_driver::{DeviceError, Zone, ZoneState, Zoned};

use crate::peer::MakesRoom;
use crate::zoned::in_state;

/// Some zones of a disk; all others are empty.
pub(super) struct Model {
    pub(super) zones: Vec<Modelled>,
    open_max: u32,
    active_max: u32,
    makes_room: MakesRoom,
    openings: u64,
}

/// A sequential zone.
pub(super) struct Modelled {
    /// As it is when it is empty.
    pub(super) zone: Zone,
    pub(super) state: ZoneState,
    /// How far it is written, also when it was finished.
    pub(super) written_sectors: u64,
    /// Which opening opened it.
    opened: u64,
}

impl Modelled {
    /// Where the next write goes.
    pub(super) fn next_sector(&self) -> u64 {
        self.zone.start_sector + self.written_sectors
    }

    pub(super) fn remaining_sectors(&self) -> u64 {
        self.zone.capacity_sectors - self.written_sectors
    }

    /// As a report must show it.
    pub(super) fn reported(&self) -> Zone {
        in_state(&self.zone, self.state, self.written_sectors)
    }

    fn is_open(&self) -> bool {
        matches!(self.state, ZoneState::ImplicitOpen | ZoneState::ExplicitOpen)
    }

    fn is_active(&self) -> bool {
        self.is_open() || self.state == ZoneState::Closed
    }
}

impl Model {
    pub(super) fn new(zones: &[Zone], zoned: &Zoned, makes_room: MakesRoom) -> Self {
        let modelled =
            |zone: &Zone| Modelled { zone: *zone, state: zone.state, written_sectors: 0, opened: 0 };
        Self {
            zones: zones.iter().map(modelled).collect(),
            open_max: zoned.open_max,
            active_max: zoned.active_max,
            makes_room,
            openings: 0,
        }
    }

    /// A write or an append of `sectors`, a number of grains, inside the zone's length. Gives the zone that was closed for it.
    pub(super) fn write(
        &mut self,
        index: usize,
        at_wp: bool,
        sectors: u64,
    ) -> Result<Option<usize>, DeviceError> {
        let zone = &self.zones[index];
        if zone.state == ZoneState::Full {
            return Err(DeviceError::InvalidCommand);
        }
        if !at_wp {
            return Err(DeviceError::UnalignedWritePointer); // V26
        }
        if sectors > zone.remaining_sectors() {
            return Err(DeviceError::InvalidCommand); // V22
        }
        let closed = if zone.is_open() { None } else { self.make_room(index)? };
        if !self.zones[index].is_open() {
            self.set_open(index, ZoneState::ImplicitOpen); // V20
        }
        let zone = &mut self.zones[index];
        zone.written_sectors += sectors;
        if zone.remaining_sectors() == 0 {
            zone.state = ZoneState::Full;
        }
        Ok(closed)
    }

    pub(super) fn open(&mut self, index: usize) -> Result<Option<usize>, DeviceError> {
        let closed = match self.zones[index].state {
            ZoneState::ExplicitOpen => return Ok(None),
            ZoneState::ImplicitOpen => None,
            ZoneState::Empty | ZoneState::Closed => self.make_room(index)?,
            _ => return Err(DeviceError::InvalidCommand), // V15
        };
        self.set_open(index, ZoneState::ExplicitOpen);
        Ok(closed)
    }

    pub(super) fn close(&mut self, index: usize) -> Result<Option<usize>, DeviceError> {
        let zone = &mut self.zones[index];
        zone.state = match zone.state {
            ZoneState::Closed => ZoneState::Closed,
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen if zone.written_sectors == 0 => {
                ZoneState::Empty
            }
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => ZoneState::Closed,
            _ => return Err(DeviceError::InvalidCommand), // V16, G2
        };
        Ok(None)
    }

    pub(super) fn finish(&mut self, index: usize) -> Result<Option<usize>, DeviceError> {
        let closed = match self.zones[index].state {
            ZoneState::Empty | ZoneState::Closed => self.make_room(index)?, // G1
            _ => None,
        };
        self.zones[index].state = ZoneState::Full;
        Ok(closed)
    }

    pub(super) fn reset(&mut self, index: usize) {
        let zone = &mut self.zones[index];
        (zone.state, zone.written_sectors) = (ZoneState::Empty, 0);
    }

    fn set_open(&mut self, index: usize, state: ZoneState) {
        self.openings += 1;
        (self.zones[index].state, self.zones[index].opened) = (state, self.openings);
    }

    /// Whether one more zone may be open (V15, V27).
    fn make_room(&mut self, index: usize) -> Result<Option<usize>, DeviceError> {
        let count = |is: fn(&Modelled) -> bool| self.zones.iter().filter(|zone| is(zone)).count() as u64;
        let (open, active) = (count(Modelled::is_open), count(Modelled::is_active));
        if !self.zones[index].is_active() && self.active_max != 0 && active >= self.active_max.into() {
            return Err(DeviceError::ActiveResource);
        }
        if self.open_max == 0 || open < self.open_max.into() {
            return Ok(None);
        }
        let implicit = |zone: &(usize, &Modelled)| zone.1.state == ZoneState::ImplicitOpen;
        let oldest = self.zones.iter().enumerate().filter(implicit).min_by_key(|(_, zone)| zone.opened);
        match (self.makes_room, oldest) {
            (MakesRoom::Oldest, Some((oldest, _))) => {
                self.close(oldest)?;
                Ok(Some(oldest))
            }
            // With `MakesRoom::Some` there are never so many zones in a model.
            _ => Err(DeviceError::OpenResource),
        }
    }
}
