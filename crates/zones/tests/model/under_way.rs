//! What requests that take time add to the naive disk: writes that end in any order, resets and finishes that may not become
//! durable, requests that wait for them, and a restart in the middle of it all.

use virtio_zbd_zones::{Condition, Refusal, ResetEnd, Retirement, Ticket, ZoneKind};

use super::{Before, NaiveDisk, Sector};

impl NaiveDisk {
    /// The write with the number `id` has ended. Where nothing was reserved, `range` says where it went.
    /// Answers which tickets come back.
    pub(crate) fn settle(&mut self, id: u32, range: (u64, u32), ok: bool) -> Vec<Ticket> {
        let outcome = if ok { Sector::Written(id) } else { Sector::Failed };
        let Some(zone) = self.zones.iter().position(|z| z.sectors.contains(&Sector::Pending(id))) else {
            return self.settle_anywhere(id, range, ok);
        };
        let z = &mut self.zones[zone];
        for sector in &mut z.sectors {
            if *sector == Sector::Pending(id) {
                *sector = outcome;
            }
        }
        z.wrote_since_open |= ok;
        // Failures that nothing comes behind give their place back.
        for sector in z.sectors.iter_mut().rev() {
            match sector {
                Sector::Unwritten => {}
                Sector::Failed => *sector = Sector::Unwritten,
                _ => break,
            }
        }
        // Failures that data comes behind stay below the write pointer for good.
        for index in 0..z.sectors.len() {
            let data_behind = z.sectors[index..].iter().any(|s| matches!(s, Sector::Written(_)));
            if z.sectors[index] == Sector::Failed && data_behind {
                z.sectors[index] = Sector::Gap;
                self.gaps += 1;
            }
        }
        self.come_to_rest(zone);
        self.wake(zone)
    }

    fn settle_anywhere(&mut self, id: u32, (sector, sectors): (u64, u32), ok: bool) -> Vec<Ticket> {
        let wps: Vec<u64> = self.zones.iter().map(super::NaiveZone::wp).collect();
        for position in sector..sector + u64::from(sectors) {
            let zone = self.zone_with(position).unwrap();
            let z = &mut self.zones[zone];
            assert!(z.kind != ZoneKind::SequentialRequired, "a write of sectors there has them reserved");
            z.sectors[super::at(position - z.start)] = match ok {
                true => Sector::Written(id),
                // It may have left anything.
                false if z.conventional() || position < z.start + wps[zone] => Sector::Unknown,
                false => Sector::Rubbish,
            };
        }
        let mut woken = Vec::new();
        for zone in 0..self.zones.len() {
            let z = &mut self.zones[zone];
            if let Some(index) = z.anywhere.iter().position(|&other| other == id) {
                z.anywhere.remove(index);
                z.wrote_since_open |= ok;
                self.come_to_rest(zone);
                woken.extend(self.wake(zone));
            }
        }
        woken
    }

    /// What a zone becomes by itself when nothing is under way in it any more: full when its capacity is used, and what it was
    /// before where it was opened for writes that have all failed. A zone with nothing in it is never closed: it is empty.
    fn come_to_rest(&mut self, zone: usize) {
        let z = &self.zones[zone];
        if !z.is_idle() {
            return;
        }
        let opened_in_vain = z.condition == Condition::ImplicitOpen && !z.wrote_since_open;
        let nothing_written = z.wp() == 0;
        let to = match z.condition {
            active if active.is_active() && z.wp() == z.capacity => Condition::Full,
            Condition::Closed if nothing_written => Condition::Empty,
            Condition::ImplicitOpen if opened_in_vain && nothing_written => Condition::Empty,
            Condition::ImplicitOpen if opened_in_vain => Condition::Closed,
            same => same,
        };
        if to != z.condition {
            self.set_condition(zone, to);
        }
    }

    /// RESET (V13, V18). `Ok(false)`: there is nothing to do.
    pub(crate) fn begin_reset(&mut self, sector: u64, ticket: Ticket) -> Result<bool, Refusal> {
        let zone = self.sequential_zone_starting_at(sector)?;
        self.wait_if_blocked(zone, ticket)?;
        match self.zones[zone].condition {
            Condition::Empty if !self.zones[zone].unswept => Ok(false),
            Condition::Empty
            | Condition::ImplicitOpen
            | Condition::ExplicitOpen
            | Condition::Closed
            | Condition::Full => {
                self.wait_for_writes(zone, ticket)?;
                self.begin(zone, Condition::Empty);
                self.zones[zone].forget_sectors();
                Ok(true)
            }
            Condition::NotWp | Condition::ReadOnly | Condition::Offline => Err(Refusal::InvalidCommand),
        }
    }

    /// The part of RESET_ALL (V19) in one zone. `Ok(false)`: it leaves the zone alone.
    pub(crate) fn begin_reset_all(&mut self, zone: usize, ticket: Ticket) -> Result<bool, Refusal> {
        let Some(z) = self.zones.get(zone) else {
            return Ok(false);
        };
        let start = z.start;
        match z.condition {
            Condition::NotWp => Ok(false),
            Condition::ReadOnly | Condition::Offline => self.wait_if_blocked(zone, ticket).map(|()| false),
            _ => self.begin_reset(start, ticket),
        }
    }

    /// FINISH (V13, V17, G1). `Ok(false)`: there is nothing to do.
    pub(crate) fn begin_finish(&mut self, sector: u64, ticket: Ticket) -> Result<bool, Refusal> {
        let zone = self.sequential_zone_starting_at(sector)?;
        self.wait_if_blocked(zone, ticket)?;
        match self.zones[zone].condition {
            Condition::Full => Ok(false),
            Condition::Empty | Condition::ImplicitOpen | Condition::ExplicitOpen | Condition::Closed => {
                self.wait_for_writes(zone, ticket)?;
                self.make_room(zone)?;
                self.begin(zone, Condition::Full);
                Ok(true)
            }
            Condition::NotWp | Condition::ReadOnly | Condition::Offline => Err(Refusal::InvalidCommand),
        }
    }

    /// The reset or finish of `zone` has ended. Answers which tickets come back.
    pub(crate) fn end(&mut self, zone: usize, end: ResetEnd) -> Vec<Ticket> {
        let before = self.zones[zone].settling.take().unwrap();
        match end {
            ResetEnd::Done if self.zones[zone].condition == Condition::Empty => {
                self.zones[zone].unswept = false
            }
            ResetEnd::Done => {}
            ResetEnd::Unswept => self.zones[zone].unswept = true,
            ResetEnd::Undone => {
                self.zones[zone].sectors = before.sectors;
                self.set_condition(zone, before.condition);
            }
            ResetEnd::Lost => {
                self.zones[zone].forget_sectors();
                self.set_condition(zone, Condition::Offline);
            }
            ResetEnd::Told(_) => unreachable!("no device keeps these zones"),
        }
        self.wake(zone)
    }

    /// The medium under `zone` has failed (V28, V29). Answers whether anything has changed.
    pub(crate) fn retire(&mut self, zone: usize, to: Retirement) -> bool {
        let from = self.zones[zone].condition;
        let to = match to {
            _ if self.zones[zone].is_settling() => return false,
            Retirement::ReadOnly => Condition::ReadOnly,
            Retirement::Offline => Condition::Offline,
        };
        let possible = match from {
            Condition::NotWp | Condition::Offline => false,
            Condition::ReadOnly => to == Condition::Offline,
            _ => true,
        };
        if possible {
            self.set_condition(zone, to);
        }
        possible
    }

    /// The program dies and the disk is opened again (G6). Nothing that was under way was answered.
    pub(crate) fn restart(&mut self) {
        for zone in 0..self.zones.len() {
            let z = &mut self.zones[zone];
            z.settling = None;
            // The store sees to it when it is opened.
            z.unswept = false;
            z.waiting.clear();
            z.wrote_since_open = true;
            z.anywhere.clear();
            if z.conventional() {
                continue;
            }
            let mut data_behind = false;
            for sector in z.sectors.iter_mut().rev() {
                match sector {
                    Sector::Written(_) | Sector::Gap | Sector::Unknown => data_behind = true,
                    Sector::Failed if data_behind => *sector = Sector::Gap,
                    Sector::Pending(_) | Sector::Rubbish if data_behind => *sector = Sector::Unknown,
                    _ => *sector = Sector::Unwritten,
                }
            }
            let (wp, capacity) = (z.wp(), z.capacity);
            let to = match z.condition {
                Condition::ImplicitOpen | Condition::ExplicitOpen | Condition::Closed => match wp {
                    0 => Condition::Empty,
                    _ if wp == capacity => Condition::Full,
                    _ => Condition::Closed,
                },
                same => same,
            };
            self.set_condition(zone, to);
        }
    }

    /// A zone that is being reset or finished, or that somebody waits for already, takes no request but queues it.
    pub(super) fn wait_if_blocked(&mut self, zone: usize, ticket: Ticket) -> Result<(), Refusal> {
        let z = &mut self.zones[zone];
        if z.is_settling() || !z.waiting.is_empty() {
            z.waiting.push(ticket);
            return Err(Refusal::Busy);
        }
        Ok(())
    }

    fn wait_for_writes(&mut self, zone: usize, ticket: Ticket) -> Result<(), Refusal> {
        let z = &mut self.zones[zone];
        if z.has_writes() {
            z.waiting.push(ticket);
            return Err(Refusal::Busy);
        }
        Ok(())
    }

    fn begin(&mut self, zone: usize, to: Condition) {
        let z = &mut self.zones[zone];
        let condition = match z.condition {
            // The device may close it at any time (V27), so it does it now, and the open resource is free.
            Condition::ImplicitOpen => Condition::Closed,
            other => other,
        };
        z.settling = Some(Before { condition, sectors: z.sectors.clone() });
        self.set_condition(zone, to);
    }

    fn wake(&mut self, zone: usize) -> Vec<Ticket> {
        let z = &mut self.zones[zone];
        if z.is_idle() { std::mem::take(&mut z.waiting) } else { Vec::new() }
    }
}
