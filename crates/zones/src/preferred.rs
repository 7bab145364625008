//! Zones that should be written sequentially but take every write, and ranges that cross zones.
//!
//! A write to such zones reserves no place: it goes where the driver says, as in a conventional zone, and several may be under way for the same
//! sectors. When one has ended well the write pointer is behind it, unless it was further already: so nothing that
//! counts lies beyond a write pointer, and what lies below it is data, or zeros where nothing was ever written.

use alloc::vec::Vec;
use core::ops::Range;

use lock_api::RawMutex;

use crate::answers::{Grant, ReadPlan, Refusal, Settled, Ticket};
use crate::layout::ZoneKind;
use crate::state::Condition;
use crate::table::{Observer, ZoneTable};
use crate::zone::Zone;

impl<R: RawMutex, O: Observer> ZoneTable<R, O> {
    /// Admission of a write that crosses no zone that must be written sequentially.
    pub(crate) fn admit_anywhere(
        &self,
        zones: Range<u32>,
        sector: u64,
        sectors: u32,
        ticket: Ticket,
    ) -> Result<Grant, Refusal> {
        let grant =
            Grant { zone: zones.start, start: sector, reserved: None, anywhere_sectors: sectors, room: None };
        let preferred = || zones.clone().filter(|zone| self.is_preferred(*zone));
        if preferred().next().is_none() {
            return Ok(Grant { anywhere_sectors: 0, ..grant });
        }
        if zones.len() == 1 {
            let mut z = self.lock_zone(zones.start)?;
            check_write(&mut z, ticket)?;
            // Only data opens a zone; and a full one takes data, too.
            if sectors == 0 || z.condition.is_open() || z.condition == Condition::Full {
                z.begin_anywhere(sectors);
                return Ok(grant);
            }
        }
        // All of them, or none: who holds the resources may hold any number of zones.
        let mut resources = self.resources.lock();
        let mut locked = Vec::new();
        for zone in preferred() {
            let mut z = self.lock_zone(zone)?;
            check_write(&mut z, ticket)?;
            locked.push((zone, z));
        }
        for (zone, z) in &mut locked {
            if matches!(z.condition, Condition::Empty | Condition::Closed) {
                let before = z.state();
                let from = z.condition;
                // There is room: a disk with such zones has no limits.
                self.change(&mut resources, *zone, z, Condition::ImplicitOpen);
                z.opened_from = Some(from);
                self.tell(*zone, z, before);
            }
            z.begin_anywhere(sectors);
        }
        Ok(grant)
    }

    /// Takes in how a write has ended that reserved no place.
    pub(crate) fn settle_anywhere(&self, grant: &Grant, ok: bool) -> Settled {
        let mut settled = Settled::default();
        let end = grant.start + u64::from(grant.anywhere_sectors);
        let last = self.geometry().zone_of(end.saturating_sub(1)).filter(|_| grant.anywhere_sectors != 0);
        let zones = last.map_or(0..0, |last| grant.zone..last + 1);
        for zone in zones.filter(|zone| self.is_preferred(*zone)) {
            let Ok(mut z) = self.lock_zone(zone) else { continue };
            let in_zone = end - self.geometry().zone_start(zone);
            let len = self.geometry().zone_len_sectors(zone);
            let before = z.state();
            z.end_anywhere(ok.then(|| u32::try_from(in_zone).unwrap_or(len).min(len)));
            self.tell(zone, &z, before);
            settled.woken.extend(self.come_to_rest(zone, z).woken);
        }
        settled
    }

    /// As [`admit_read`](Self::admit_read), of zones that may be crossed.
    pub(crate) fn plan_read(
        &self,
        zones: Range<u32>,
        sector: u64,
        sectors: u64,
    ) -> Result<ReadPlan, Refusal> {
        let mut plan = ReadPlan { stored_sectors: 0, zero_sectors: sectors, more: Vec::new() };
        for zone in zones {
            let z = self.lock_zone(zone)?;
            let start = self.geometry().zone_start(zone);
            let from = start.max(sector);
            let to = (start + u64::from(self.geometry().zone_len_sectors(zone))).min(sector + sectors);
            let stored_to = match z.condition {
                Condition::Offline => return Err(Refusal::InvalidCommand),
                Condition::NotWp => to,
                _ => to.min(start + u64::from(z.wp())),
            };
            if from < stored_to {
                plan.add(from - sector..stored_to - sector);
            }
        }
        Ok(plan)
    }

    fn is_preferred(&self, zone: u32) -> bool {
        self.geometry().kind(zone) == ZoneKind::SequentialPreferred
    }
}

impl ReadPlan {
    /// Adds a stretch behind those that are there.
    fn add(&mut self, stored: Range<u64>) {
        self.zero_sectors -= stored.end - stored.start;
        match self.more.last_mut() {
            Some(last) if last.end == stored.start => last.end = stored.end,
            None if self.stored_sectors == stored.start => self.stored_sectors = stored.end,
            _ => self.more.push(stored),
        }
    }
}

fn check_write(z: &mut Zone, ticket: Ticket) -> Result<(), Refusal> {
    if z.must_wait() {
        z.waiting.push(ticket);
        return Err(Refusal::Busy);
    }
    match z.condition {
        Condition::ReadOnly | Condition::Offline => Err(Refusal::InvalidCommand),
        _ if z.unswept => Err(Refusal::Unswept),
        _ => Ok(()),
    }
}
