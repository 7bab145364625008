//! A zoned disk, told as plainly as the rules tell it, to compare the zone table with.
//!
//! It remembers what each single sector holds and nothing that could be worked out from that: the write pointer is found by
//! looking for the last sector in use, the open and active zones are counted one by one. It is slow and has one user.
//! This file has the rules for one request after the other; [`under_way`] has what is added by requests that take time.

mod under_way;

use std::ops::Range;

use virtio_zbd_zones::{
    Condition, GeometryConfig, ReadPlan, Refusal, Ticket, ZoneKind, ZoneReport, ZoneState,
};

/// What one sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sector {
    /// Nothing since the last reset.
    Unwritten,
    /// A write was admitted here and has not ended.
    Pending(u32),
    /// A write has failed here, and one behind it has not ended: nobody knows yet whether its place can be given back. Reads as
    /// zeros: they were put there before the failure was told.
    Failed,
    /// The data of the write with this number.
    Written(u32),
    /// A write has failed here and there is data behind it: zeros for good.
    Gap,
    /// Below the write pointer, and whatever a crash or a failure has left.
    Unknown,
    /// In a preferred zone: a write has failed here, beyond the write pointer. Does not count; but it shows what it has left when the
    /// write pointer is moved past it.
    Rubbish,
}

/// One zone. Sectors are counted from the zone's start.
#[derive(Clone, Debug)]
pub(crate) struct NaiveZone {
    pub(crate) kind: ZoneKind,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) capacity: u64,
    pub(crate) condition: Condition,
    pub(crate) sectors: Vec<Sector>,
    /// Whether a write has succeeded since the zone was last opened implicitly.
    wrote_since_open: bool,
    /// What the zone was before the reset or finish that is under way.
    settling: Option<Before>,
    /// Whether a reset could not take the old data away.
    unswept: bool,
    pub(crate) waiting: Vec<Ticket>,
    /// The writes under way in a preferred zone, where they reserve nothing.
    pub(crate) anywhere: Vec<u32>,
}

/// What a reset or finish goes back to when it can't be made durable. An implicitly open zone comes back closed.
#[derive(Clone, Debug)]
struct Before {
    condition: Condition,
    sectors: Vec<Sector>,
}

impl NaiveZone {
    pub(crate) fn conventional(&self) -> bool {
        self.kind == ZoneKind::Conventional
    }

    /// Where the next write goes: behind the last sector that is in use.
    pub(crate) fn wp(&self) -> u64 {
        length_up_to(&self.sectors, |s| !matches!(s, Sector::Unwritten | Sector::Rubbish))
    }

    /// How far the data reaches that a restart must find.
    fn done(&self) -> u64 {
        let counts = |s| matches!(s, Sector::Written(_) | Sector::Gap | Sector::Unknown);
        length_up_to(&self.sectors, counts)
    }

    fn has_writes(&self) -> bool {
        !self.anywhere.is_empty() || self.sectors.iter().any(|s| matches!(s, Sector::Pending(_)))
    }

    pub(crate) fn is_settling(&self) -> bool {
        self.settling.is_some()
    }

    fn is_idle(&self) -> bool {
        !self.has_writes() && !self.is_settling()
    }

    /// The condition whose resources the zone uses: a reset or finish keeps those that going back would need.
    fn paying_condition(&self) -> Condition {
        self.settling.as_ref().map_or(self.condition, |before| before.condition)
    }

    fn forget_sectors(&mut self) {
        self.sectors.fill(Sector::Unwritten);
    }
}

fn length_up_to(sectors: &[Sector], counts: impl Fn(Sector) -> bool) -> u64 {
    sectors.iter().rposition(|&s| counts(s)).map_or(0, |last| length(last + 1))
}

/// A whole disk.
#[derive(Clone, Debug)]
pub(crate) struct NaiveDisk {
    config: GeometryConfig,
    pub(crate) zones: Vec<NaiveZone>,
    /// The implicitly open zones, the one that was opened first at the front.
    implicit_order: Vec<usize>,
    /// How often a zone was closed to make room.
    pub(crate) victims: u64,
    /// How many sectors have become gaps.
    pub(crate) gaps: u64,
}

/// Where a write to a sequential zone goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    At(u64),
    Append,
}

impl NaiveDisk {
    /// A disk whose zones are of these kinds and capacities, and in `states`; what is written in them has the number `id`.
    pub(crate) fn new(
        config: GeometryConfig,
        zones: &[(ZoneKind, u32)],
        states: &[ZoneState],
        id: u32,
    ) -> Self {
        let mut disk = Self { config, zones: Vec::new(), implicit_order: Vec::new(), victims: 0, gaps: 0 };
        let mut start = 0;
        while start < config.capacity_sectors {
            let index = disk.zones.len();
            let state = states[index];
            let (kind, capacity) = zones[index];
            let conventional = kind == ZoneKind::Conventional;
            let len = u64::from(config.zone_sectors).min(config.capacity_sectors - start);
            let capacity = if conventional { len } else { u64::from(capacity).min(len) };
            let mut sectors = vec![Sector::Unwritten; at(len)];
            sectors[..at(state.wp_sectors.into())].fill(Sector::Written(id));
            if conventional {
                sectors.fill(Sector::Unknown);
            }
            if state.condition == Condition::ImplicitOpen {
                disk.implicit_order.push(index);
            }
            disk.zones.push(NaiveZone {
                kind,
                start,
                len,
                capacity,
                condition: state.condition,
                sectors,
                wrote_since_open: true,
                settling: None,
                unswept: false,
                waiting: Vec::new(),
                anywhere: Vec::new(),
            });
            start += len;
        }
        disk
    }

    /// Open and active zones, counted (virtio 1.3, 5.2.6: which conditions use which resources).
    pub(crate) fn open_and_active(&self) -> (u32, u32) {
        let (mut open, mut active) = (0, 0);
        for zone in &self.zones {
            match zone.paying_condition() {
                Condition::ImplicitOpen | Condition::ExplicitOpen => {
                    open += 1;
                    active += 1;
                }
                Condition::Closed => active += 1,
                _ => {}
            }
        }
        (open, active)
    }

    /// What a report must say of `zone`.
    pub(crate) fn report(&self, zone: usize) -> ZoneReport {
        let z = &self.zones[zone];
        let wp = match z.condition {
            Condition::Empty | Condition::ImplicitOpen | Condition::ExplicitOpen | Condition::Closed => {
                z.start + z.wp()
            }
            Condition::NotWp | Condition::ReadOnly | Condition::Full | Condition::Offline => z.start + z.len,
        };
        ZoneReport {
            kind: z.kind,
            condition: z.condition,
            start: z.start,
            len: z.len,
            capacity: z.capacity,
            wp,
        }
    }

    /// What a store must keep of `zone`.
    pub(crate) fn kept(&self, zone: usize) -> ZoneState {
        let z = &self.zones[zone];
        let wp_sectors = if z.conventional() { 0 } else { z.done() };
        ZoneState { condition: z.condition, wp_sectors: u32::try_from(wp_sectors).unwrap() }
    }

    /// How much of a read was ever written.
    pub(crate) fn read_plan(&self, sector: u64, sectors: u64) -> Result<ReadPlan, Refusal> {
        let touched = self.touched(sector, sectors)?;
        if touched.iter().any(|&zone| self.zones[zone].condition == Condition::Offline) {
            return Err(Refusal::InvalidCommand);
        }
        let is_stored = |position: &u64| {
            let z = &self.zones[self.zone_with(sector + position).unwrap()];
            z.conventional() || sector + position < z.start + z.wp()
        };
        let stored_sectors = length((0..sectors).take_while(is_stored).count());
        let zero_sectors = length((0..sectors).filter(|position| !is_stored(position)).count());
        let mut more: Vec<Range<u64>> = Vec::new();
        for position in (stored_sectors..sectors).filter(is_stored) {
            match more.last_mut() {
                Some(last) if last.end == position => last.end += 1,
                _ => more.push(position..position + 1),
            }
        }
        Ok(ReadPlan { stored_sectors, zero_sectors, more })
    }

    /// What `sector` holds.
    pub(crate) fn sector(&self, sector: u64) -> Sector {
        let z = &self.zones[self.zone_with(sector).unwrap()];
        z.sectors[at(sector - z.start)]
    }

    /// A write with the number `id`. Answers where its data goes.
    pub(crate) fn write(
        &mut self,
        sector: u64,
        sectors: u32,
        ticket: Ticket,
        id: u32,
    ) -> Result<u64, Refusal> {
        let touched = self.touched(sector, sectors.into())?;
        if self.zones[touched[0]].kind == ZoneKind::SequentialRequired {
            return self.write_sequential(touched[0], Place::At(sector), sectors, ticket, id);
        }
        self.write_anywhere(&touched, sectors, ticket, id).map(|()| sector)
    }

    /// A write that preferred zones take wherever it goes, all of them or none.
    fn write_anywhere(
        &mut self,
        touched: &[usize],
        sectors: u32,
        ticket: Ticket,
        id: u32,
    ) -> Result<(), Refusal> {
        let preferred = |zone: &usize, disk: &Self| disk.zones[*zone].kind == ZoneKind::SequentialPreferred;
        for zone in touched {
            if !preferred(zone, self) {
                continue;
            }
            self.wait_if_blocked(*zone, ticket)?;
            let z = &self.zones[*zone];
            if matches!(z.condition, Condition::ReadOnly | Condition::Offline) {
                return Err(Refusal::InvalidCommand);
            }
            if z.unswept {
                return Err(Refusal::Unswept);
            }
        }
        for zone in touched {
            if sectors == 0 || !preferred(zone, self) {
                continue;
            }
            if matches!(self.zones[*zone].condition, Condition::Empty | Condition::Closed) {
                self.set_condition(*zone, Condition::ImplicitOpen);
                self.zones[*zone].wrote_since_open = false;
            }
            self.zones[*zone].anywhere.push(id);
        }
        Ok(())
    }

    /// An append with the number `id`. Answers where its data goes (V23).
    pub(crate) fn append(
        &mut self,
        sector: u64,
        sectors: u32,
        ticket: Ticket,
        id: u32,
    ) -> Result<u64, Refusal> {
        if self.config.max_append_sectors == 0 {
            return Err(Refusal::Unsupported);
        }
        let zone = self.sequential_zone_starting_at(sector)?;
        if self.zones[zone].kind != ZoneKind::SequentialRequired || sectors > self.config.max_append_sectors {
            return Err(Refusal::InvalidCommand);
        }
        self.write_sequential(zone, Place::Append, sectors, ticket, id)
    }

    fn write_sequential(
        &mut self,
        zone: usize,
        place: Place,
        sectors: u32,
        ticket: Ticket,
        id: u32,
    ) -> Result<u64, Refusal> {
        self.wait_if_blocked(zone, ticket)?;
        let z = &self.zones[zone];
        let open = match z.condition {
            Condition::ImplicitOpen | Condition::ExplicitOpen => true,
            Condition::Empty | Condition::Closed => false,
            _ => return Err(Refusal::InvalidCommand),
        };
        if z.unswept {
            return Err(Refusal::Unswept);
        }
        let first = z.start + z.wp();
        let end = first + u64::from(sectors);
        let end_bytes = end * 512;
        if (place != Place::Append && place != Place::At(first))
            || !end_bytes.is_multiple_of(self.config.write_granularity_bytes.into())
        {
            return Err(Refusal::UnalignedWritePointer);
        }
        if end > z.start + z.capacity {
            return Err(Refusal::InvalidCommand);
        }
        if sectors == 0 {
            return Ok(first);
        }
        if !open {
            self.make_room(zone)?;
            self.set_condition(zone, Condition::ImplicitOpen);
            self.zones[zone].wrote_since_open = false;
        }
        let z = &mut self.zones[zone];
        z.sectors[at(first - z.start)..at(end - z.start)].fill(Sector::Pending(id));
        Ok(first)
    }

    /// OPEN (V13, V15).
    pub(crate) fn open(&mut self, sector: u64, ticket: Ticket) -> Result<(), Refusal> {
        let zone = self.sequential_zone_starting_at(sector)?;
        self.wait_if_blocked(zone, ticket)?;
        match self.zones[zone].condition {
            Condition::ExplicitOpen => Ok(()),
            Condition::Empty | Condition::ImplicitOpen | Condition::Closed => {
                self.make_room(zone)?;
                self.set_condition(zone, Condition::ExplicitOpen);
                Ok(())
            }
            _ => Err(Refusal::InvalidCommand),
        }
    }

    /// CLOSE (V13, V16, G2).
    pub(crate) fn close(&mut self, sector: u64, ticket: Ticket) -> Result<(), Refusal> {
        let zone = self.sequential_zone_starting_at(sector)?;
        self.wait_if_blocked(zone, ticket)?;
        match self.zones[zone].condition {
            Condition::Closed => Ok(()),
            Condition::ImplicitOpen | Condition::ExplicitOpen => {
                let nothing_written = self.zones[zone].wp() == 0 && !self.zones[zone].has_writes();
                self.set_condition(zone, if nothing_written { Condition::Empty } else { Condition::Closed });
                Ok(())
            }
            _ => Err(Refusal::InvalidCommand),
        }
    }

    /// The zones that a range has sectors in: all inside the disk, and one only if any must be written sequentially (V25).
    fn touched(&self, sector: u64, sectors: u64) -> Result<Vec<usize>, Refusal> {
        let end = u128::from(sector) + u128::from(sectors);
        if sector >= self.config.capacity_sectors || end > u128::from(self.config.capacity_sectors) {
            return Err(Refusal::OutOfRange);
        }
        let mut touched = vec![self.zone_with(sector).unwrap()];
        for position in 0..sectors {
            let zone = self.zone_with(sector + position).unwrap();
            if !touched.contains(&zone) {
                touched.push(zone);
            }
        }
        let required = |zone: &usize| self.zones[*zone].kind == ZoneKind::SequentialRequired;
        if touched.len() > 1 && touched.iter().any(required) {
            return Err(Refusal::InvalidCommand);
        }
        Ok(touched)
    }

    fn zone_with(&self, sector: u64) -> Option<usize> {
        self.zones.iter().position(|z| (z.start..z.start + z.len).contains(&sector))
    }

    fn sequential_zone_starting_at(&self, sector: u64) -> Result<usize, Refusal> {
        self.zones.iter().position(|z| z.start == sector && !z.conventional()).ok_or(Refusal::InvalidCommand)
    }

    /// Sees to it that `zone` may become open (V15, V20, V27).
    fn make_room(&mut self, zone: usize) -> Result<(), Refusal> {
        let from = self.zones[zone].condition;
        let (open, active) = self.open_and_active();
        let (max_open, max_active) = (self.config.max_open_zones, self.config.max_active_zones);
        if !from.is_active() && max_active != 0 && active == max_active {
            return Err(Refusal::ActiveResource);
        }
        if from.is_open() || max_open == 0 || open < max_open {
            return Ok(());
        }
        // Any implicitly open zone may be closed. This disk takes the one that has been open longest, of those that nothing is under
        // way in if there are any.
        let mut candidates = self.implicit_order.clone();
        if candidates.iter().any(|&c| self.zones[c].is_idle()) {
            candidates.retain(|&c| self.zones[c].is_idle());
        }
        let &victim = candidates.first().ok_or(Refusal::OpenResource)?;
        self.set_condition(victim, Condition::Closed);
        self.victims += 1;
        Ok(())
    }

    fn set_condition(&mut self, zone: usize, to: Condition) {
        self.implicit_order.retain(|&other| other != zone);
        if to == Condition::ImplicitOpen {
            self.implicit_order.push(zone);
        }
        self.zones[zone].condition = to;
    }
}

/// A number of sectors as an index.
pub(crate) fn at(sectors: u64) -> usize {
    usize::try_from(sectors).unwrap()
}

/// An index as a number of sectors.
pub(crate) fn length(index: usize) -> u64 {
    u64::try_from(index).unwrap()
}
