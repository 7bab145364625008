//! What must be found after a crash: exactly, sector by sector.

use virtio_zbd_zones::{Condition, Geometry, ZoneState};

use crate::disk::{Id, UNREADABLE, ZEROS};

/// What an opening has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub capacity_sectors: u64,
    pub states: Vec<ZoneState>,
    /// What each sector of the disk holds.
    pub data: Vec<Id>,
}

impl Found {
    /// The first place at which `other` is not the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.capacity_sectors != other.capacity_sectors {
            let (expected, found) = (self.capacity_sectors, other.capacity_sectors);
            return Some(format!("the disk has {found} sectors where {expected} must be"));
        }
        let zone = (0..self.states.len()).find(|&zone| self.states[zone] != other.states[zone]);
        if let Some(zone) = zone {
            let (expected, found) = (self.states[zone], other.states[zone]);
            return Some(format!("zone {zone} is {found:?} where {expected:?} must be"));
        }
        let sector = (0..self.data.len()).find(|&sector| self.data[sector] != other.data[sector])?;
        let (expected, found) = (self.data[sector], other.data[sector]);
        Some(format!("sector {sector} holds {found} where {expected} must be"))
    }
}

/// What a zone holds: its state, and each sector below the end of its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub state: ZoneState,
    pub data: Vec<Id>,
}

impl Content {
    pub fn empty() -> Self {
        Self { state: ZoneState::EMPTY, data: Vec::new() }
    }
}

/// A sequential zone that a history uses.
#[derive(Clone)]
pub struct Zone {
    pub index: u32,
    /// What was published last.
    pub now: Content,
    /// What a power cut may leave: what was promised last, and what is being brought to the medium.
    pub allowed: Vec<Content>,
}

/// A conventional sector that a history uses.
#[derive(Clone)]
pub struct Sector {
    pub index: usize,
    pub now: Id,
    pub allowed: Vec<Id>,
}

/// The disk as it should be.
#[derive(Clone)]
pub struct Oracle {
    pub geometry: Geometry,
    /// The shapes that the disk may be found in: more than one while it grows.
    pub shapes: Vec<Geometry>,
    pub zones: Vec<Zone>,
    pub sectors: Vec<Sector>,
}

impl Oracle {
    pub fn new(geometry: Geometry, zones: &[u32], sectors: &[usize]) -> Self {
        let empty = Content::empty();
        let zone = |&index| Zone { index, now: empty.clone(), allowed: vec![empty.clone()] };
        let sector = |&index| Sector { index, now: ZEROS, allowed: vec![ZEROS] };
        Self {
            shapes: vec![geometry.clone()],
            geometry,
            zones: zones.iter().map(zone).collect(),
            sectors: sectors.iter().map(sector).collect(),
        }
    }

    pub fn active(&self) -> usize {
        self.zones.iter().filter(|zone| zone.now.state.condition.is_active()).count()
    }

    /// Whether one more zone may become active.
    pub fn has_room(&self) -> bool {
        let most = self.geometry.max_active_zones() as usize;
        most == 0 || self.active() < most
    }

    /// How many sectors can be written to a zone now.
    pub fn room(&self, zone: usize) -> u32 {
        let Zone { index, now, .. } = &self.zones[zone];
        if *index >= self.geometry.zone_count() {
            return 0;
        }
        let room = self.geometry.zone_capacity_sectors(*index) - now.state.wp_sectors;
        match now.state.condition {
            Condition::Empty if self.has_room() => room,
            condition if condition.is_active() => room,
            _ => 0,
        }
    }

    /// The disk is longer now.
    pub fn grow(&mut self, geometry: Geometry) {
        self.shapes = vec![geometry.clone()];
        self.geometry = geometry;
    }

    /// What is published now is on its way to the medium: that of all zones, or of these.
    pub fn allow_now(&mut self, named: impl Fn(u32) -> bool) {
        for zone in self.zones.iter_mut().filter(|zone| named(zone.index)) {
            let content = after_restart(&zone.now, &self.geometry, zone.index);
            if !zone.allowed.contains(&content) {
                zone.allowed.push(content);
            }
        }
    }

    /// What was published of these zones is promised, and nothing else may be found any more.
    pub fn promise(&mut self, named: impl Fn(u32) -> bool) {
        for zone in self.zones.iter_mut().filter(|zone| named(zone.index)) {
            zone.allowed = vec![after_restart(&zone.now, &self.geometry, zone.index)];
        }
    }

    /// Every sector that was written is promised.
    pub fn promise_sectors(&mut self) {
        for sector in &mut self.sectors {
            sector.allowed = vec![sector.now];
        }
    }

    /// A conventional sector is written: it may be found old, new or unreadable until it is flushed.
    pub fn write_sector(&mut self, sector: usize, id: Id) {
        let sector = &mut self.sectors[sector];
        sector.now = id;
        for id in [id, UNREADABLE] {
            if !sector.allowed.contains(&id) {
                sector.allowed.push(id);
            }
        }
    }

    /// Open zones are closed (D4).
    pub fn restart(&mut self) {
        for zone in &mut self.zones {
            zone.now = after_restart(&zone.now, &self.geometry, zone.index);
        }
    }

    /// What a kill may leave between `self` and `after`: no more and no less than what was published (D5).
    pub fn killed(&self, after: &Self) -> Self {
        let mut killed = self.clone();
        killed.shapes.push(after.geometry.clone());
        for (zone, after) in killed.zones.iter_mut().zip(&after.zones) {
            zone.allowed = [&zone.now, &after.now]
                .map(|content| after_restart(content, &self.geometry, zone.index))
                .to_vec();
        }
        for (sector, after) in killed.sectors.iter_mut().zip(&after.sectors) {
            sector.allowed = vec![sector.now, after.now];
        }
        killed
    }

    /// What either of the two allows.
    pub fn or(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.shapes.extend_from_slice(&other.shapes);
        for (zone, other) in both.zones.iter_mut().zip(&other.zones) {
            zone.allowed.extend_from_slice(&other.allowed);
        }
        for (sector, other) in both.sectors.iter_mut().zip(&other.sectors) {
            sector.allowed.extend_from_slice(&other.allowed);
        }
        both
    }

    /// Goes on from what was found.
    pub fn adopt(&mut self, found: &Found) {
        let shape = self.shapes.iter().find(|shape| shape.capacity_sectors() == found.capacity_sectors);
        self.grow(shape.unwrap().clone());
        for zone in &mut self.zones {
            zone.now = content_of(found, &self.geometry, zone.index);
            zone.allowed = vec![zone.now.clone()];
        }
        for sector in &mut self.sectors {
            sector.now = found.data[sector.index];
            sector.allowed = vec![sector.now];
        }
    }

    /// Holds what was found against what is allowed: D1 to D4 (and D5, if that is what is allowed).
    ///
    /// # Errors
    /// What is wrong where.
    pub fn check(&self, found: &Found) -> Result<(), String> {
        let shape = self.shapes.iter().find(|shape| shape.capacity_sectors() == found.capacity_sectors);
        let Some(geometry) = shape.filter(|shape| shape.zone_count() as usize == found.states.len()) else {
            return Err(format!(
                "a disk of {} sectors and {} zones",
                found.capacity_sectors,
                found.states.len()
            ));
        };
        let mut used = vec![false; found.data.len()];
        for zone in self.zones.iter().filter(|zone| zone.index < geometry.zone_count()) {
            let content = content_of(found, geometry, zone.index);
            if !zone.allowed.contains(&content) {
                return Err(format!("zone {}: {content:?} is none of {:?}", zone.index, zone.allowed));
            }
            let start = usize::try_from(geometry.zone_start(zone.index)).unwrap();
            used[start..start + content.data.len()].fill(true);
        }
        for sector in &self.sectors {
            let id = found.data[sector.index];
            if !sector.allowed.contains(&id) {
                return Err(format!("sector {}: {id} is none of {:?}", sector.index, sector.allowed));
            }
            used[sector.index] = true;
        }
        // Behind the zones' data, and in zones that were never used, there is nothing.
        if let Some(sector) = (0..used.len()).find(|&sector| !used[sector] && found.data[sector] != ZEROS) {
            return Err(format!("sector {sector} is no zone's data but holds {}", found.data[sector]));
        }
        for (index, state) in (0..).zip(&found.states) {
            let fresh = ZoneState::new(geometry, index);
            if *state != fresh && !self.zones.iter().any(|zone| zone.index == index) {
                return Err(format!("zone {index} was never used but is {state:?}"));
            }
        }
        Ok(())
    }
}

fn after_restart(content: &Content, geometry: &Geometry, zone: u32) -> Content {
    if zone >= geometry.zone_count() {
        return Content::empty();
    }
    Content { state: content.state.after_restart(geometry, zone), data: content.data.clone() }
}

fn content_of(found: &Found, geometry: &Geometry, zone: u32) -> Content {
    let Some(&state) = found.states.get(zone as usize) else { return Content::empty() };
    let start = usize::try_from(geometry.zone_start(zone)).unwrap();
    Content { state, data: found.data[start..start + state.wp_sectors as usize].to_vec() }
}
