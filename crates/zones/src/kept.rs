//! A table over a device that keeps the zones itself, as a zoned device of the host does.
//!
//! Such a device must make every change of a condition, too, and in an order that keeps its zones as the table has them. So each change that the
//! table makes is begun, made by the device, and ended; until then its zone is busy. And where a write has failed,
//! only the device knows what has become of the zone: the table asks.

use alloc::vec::Vec;

use lock_api::RawMutex;

use crate::answers::{Begun, Grant, Refusal, Settled, Ticket};
use crate::state::{Condition, ZoneState};
use crate::table::{Observer, ZoneTable};
use crate::zone::Zone;

impl<R: RawMutex, O: Observer> ZoneTable<R, O> {
    /// The same table over a device that keeps the zones, too.
    ///
    /// From now on [`begin_open`](Self::begin_open) and [`begin_close`](Self::begin_close) are to be used, a zone that is closed to make room
    /// (V27) comes with the grant or with what was begun, and a write that has failed is given to [`fail`](Self::fail).
    #[must_use]
    pub fn kept_by_device(mut self) -> Self {
        self.device_keeps = true;
        self
    }

    /// As [`open`](Self::open), for the device to make it so, too: the zone is open from now on and busy until [`end`](Self::end). `None`: there is
    /// nothing to be made.
    ///
    /// # Errors
    /// As [`open`](Self::open), and: busy while writes are under way.
    pub fn begin_open(&self, sector: u64, ticket: Ticket) -> Result<Option<Begun>, Refusal> {
        if !self.device_keeps {
            return self.open(sector, ticket).map(|()| None);
        }
        self.transition(sector, ticket, |resources, zone, z| {
            match z.condition {
                Condition::ExplicitOpen => return Ok(None),
                Condition::Empty | Condition::ImplicitOpen | Condition::Closed => {}
                _ => return Err(Refusal::InvalidCommand.into()),
            }
            if z.has_writes() {
                return Err(Refusal::Busy.into());
            }
            let room = self.make_room(resources, z.condition, ticket)?;
            let before = z.state();
            self.change(resources, zone, z, Condition::ExplicitOpen);
            let begun = z.settle_as(zone, before);
            Ok(Some(Begun { room: room.map(|room| (room.zone, room.before)), ..begun }))
        })
    }

    /// As [`close`](Self::close), for the device to make it so, too: the zone is closed from now on and busy until [`end`](Self::end), and holds its
    /// open resource until then. `None`: there is nothing to be made.
    ///
    /// # Errors
    /// As [`close`](Self::close), and: busy while writes are under way.
    pub fn begin_close(&self, sector: u64, ticket: Ticket) -> Result<Option<Begun>, Refusal> {
        if !self.device_keeps {
            return self.close(sector, ticket).map(|()| None);
        }
        self.transition(sector, ticket, |_, zone, z| {
            let to = match z.condition {
                Condition::Closed => return Ok(None),
                Condition::ImplicitOpen | Condition::ExplicitOpen if z.has_writes() => {
                    return Err(Refusal::Busy.into());
                }
                Condition::ImplicitOpen | Condition::ExplicitOpen if z.wp() == 0 => Condition::Empty,
                Condition::ImplicitOpen | Condition::ExplicitOpen => Condition::Closed,
                _ => return Err(Refusal::InvalidCommand.into()),
            };
            let begun = z.settle_as(zone, z.state());
            z.condition = to;
            Ok(Some(begun))
        })
    }

    /// Takes in that an admitted write has failed on the device, which alone knows what has become of its zone. The zone admits nothing more
    /// until the device was asked: by whoever ends the last write that is under way in it, and finds [`Settled::reread`].
    pub fn fail(&self, grant: Grant) -> Settled {
        let Some(range) = grant.reserved else { return self.settle_anywhere(&grant, false) };
        let Ok(mut z) = self.lock_zone(grant.zone) else { return Settled::default() };
        z.in_doubt = true;
        let before = z.state();
        z.resolve(&range, false);
        self.tell(grant.zone, &z, before);
        Settled { woken: Vec::new(), reread: z.begin_reread(grant.zone) }
    }

    /// Something else than a write has failed at `sector` as if the device had taken its zone out of use: as [`fail`](Self::fail), returns the zone if the device is to
    /// be asked now. A conventional zone has no condition to be asked for.
    pub fn doubt(&self, sector: u64) -> Option<Begun> {
        let zone = self.geometry().zone_of(sector).filter(|zone| !self.geometry().is_conventional(*zone))?;
        let mut z = self.lock_zone(zone).ok()?;
        // What is settling there will tell.
        (z.settling_from.is_none()).then(|| z.in_doubt = true)?;
        z.begin_reread(zone)
    }

    /// Whether a write that was under way at this place when the last process died has come to the device. The write pointer that was found there has moved past
    /// it, and the zone was not reset since.
    pub fn was_written(&self, sector: u64, sectors: u32) -> bool {
        // A read-only zone has no write pointer that would say so.
        let says = |zone| self.lock_zone(zone).is_ok_and(|z| z.condition != Condition::ReadOnly);
        self.is_kept(sector, sectors) && self.geometry().zone_of(sector).is_some_and(says)
    }

    /// Takes in what the device says of a zone in which nothing is under way.
    pub(crate) fn take_over(&self, zone: u32, z: &mut Zone, told: ZoneState) {
        let geometry = self.geometry();
        let can_be = told.check(geometry, zone).is_ok();
        z.take_over(if can_be { told } else { ZoneState::OFFLINE });
    }
}
