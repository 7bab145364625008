//! What a driver asks of a whole zone, open, close, finish, reset; and a zone that is taken out of use.

use lock_api::RawMutex;

use crate::answers::{Begun, Refusal, ResetEnd, Retirement, Settled, Ticket};
use crate::resources::Resources;
use crate::state::{Condition, ZoneState};
use crate::table::{Observer, ZoneTable, wake};
use crate::zone::Zone;

impl<R: RawMutex, O: Observer> ZoneTable<R, O> {
    /// Opens a zone explicitly.
    ///
    /// # Errors
    /// Not a zone's start, conventional (V13), not possible in its condition or out of resources (V15).
    pub fn open(&self, sector: u64, ticket: Ticket) -> Result<(), Refusal> {
        self.transition(sector, ticket, |resources, zone, z| {
            match z.condition {
                Condition::ExplicitOpen => return Ok(()),
                Condition::Empty | Condition::ImplicitOpen | Condition::Closed => {}
                _ => return Err(Refusal::InvalidCommand.into()),
            }
            self.make_room(resources, z.condition, ticket)?;
            self.change(resources, zone, z, Condition::ExplicitOpen);
            Ok(())
        })
    }

    /// Closes a zone; one that has nothing written in it becomes empty.
    ///
    /// # Errors
    /// Not a zone's start, conventional (V13), not possible in its condition (V16, G2).
    pub fn close(&self, sector: u64, ticket: Ticket) -> Result<(), Refusal> {
        self.transition(sector, ticket, |resources, zone, z| {
            let to = match z.condition {
                Condition::Closed => return Ok(()),
                // In a preferred zone the write pointer is behind what is done only.
                Condition::ImplicitOpen | Condition::ExplicitOpen if z.wp() == 0 && !z.has_writes() => {
                    Condition::Empty
                }
                Condition::ImplicitOpen | Condition::ExplicitOpen => Condition::Closed,
                _ => return Err(Refusal::InvalidCommand.into()),
            };
            self.change(resources, zone, z, to);
            Ok(())
        })
    }

    /// Begins to finish a zone: it is full from now on, and busy until [`end`](Self::end). `None`: it is full already.
    ///
    /// # Errors
    /// Not a zone's start, conventional (V13), not possible in its condition (V17), out of resources where it must be
    /// opened for the moment (G1); busy while writes are under way.
    pub fn begin_finish(&self, sector: u64, ticket: Ticket) -> Result<Option<Begun>, Refusal> {
        self.transition(sector, ticket, |resources, zone, z| {
            match z.condition {
                Condition::Full => return Ok(None),
                Condition::Empty | Condition::ImplicitOpen | Condition::ExplicitOpen | Condition::Closed => {}
                _ => return Err(Refusal::InvalidCommand.into()),
            }
            if z.has_writes() {
                return Err(Refusal::Busy.into());
            }
            let room = self.make_room(resources, z.condition, ticket)?;
            if !self.device_keeps {
                return Ok(Some(self.begin(resources, zone, z, room, |z| z.condition = Condition::Full)));
            }
            let before = z.state();
            if !z.condition.is_open() {
                // The device needs it for the moment (G1), so it is nobody else's; who wants it waits for this zone.
                self.change(resources, zone, z, Condition::ImplicitOpen);
            }
            let begun = self.begin(resources, zone, z, room, |z| z.condition = Condition::Full);
            Ok(Some(Begun { before, ..begun }))
        })
    }

    /// Begins to reset a zone: it is empty from now on, and busy until [`end`](Self::end). `None`: it is empty already, and nothing
    /// of what it held is left.
    ///
    /// # Errors
    /// Not a zone's start, conventional (V13), not possible in its condition (V18); busy while writes are under way.
    pub fn begin_reset(&self, sector: u64, ticket: Ticket) -> Result<Option<Begun>, Refusal> {
        self.transition(sector, ticket, |resources, zone, z| match z.condition {
            Condition::Empty if !z.unswept => Ok(None),
            Condition::ReadOnly | Condition::Offline | Condition::NotWp => {
                Err(Refusal::InvalidCommand.into())
            }
            _ if z.has_writes() => Err(Refusal::Busy.into()),
            _ => Ok(Some(self.begin(resources, zone, z, None, Zone::clear))),
        })
    }

    /// As [`begin_reset`](Self::begin_reset), for the part that RESET_ALL has in `zone`: `None` too for a zone that it
    /// leaves alone, whatever the reason (V19).
    ///
    /// # Errors
    /// Only [`Refusal::Busy`].
    pub fn begin_reset_all(&self, zone: u32, ticket: Ticket) -> Result<Option<Begun>, Refusal> {
        match self.begin_reset(self.geometry.zone_start(zone), ticket) {
            Err(Refusal::Busy) => Err(Refusal::Busy),
            Err(_) => Ok(None),
            begun => begun,
        }
    }

    /// Ends a reset or a finish.
    pub fn end(&self, begun: Begun, end: ResetEnd) -> Settled {
        let zone = begun.zone;
        let mut resources = self.resources.lock();
        let Ok(mut z) = self.lock_zone(zone) else {
            return Settled::default();
        };
        let before = z.state();
        let Some(held) = z.settling_from.take() else {
            return Settled::default();
        };
        resources.give_back(held);
        match end {
            ResetEnd::Told(state) => self.take_over(zone, &mut z, state),
            // Nobody could say what it is.
            _ if z.in_doubt => self.take_over(zone, &mut z, ZoneState::OFFLINE),
            // A finish takes nothing away.
            ResetEnd::Done if z.condition == Condition::Empty => z.unswept = false,
            ResetEnd::Done => {}
            ResetEnd::Undone => z.restore(begun.before),
            ResetEnd::Unswept => z.unswept = true,
            ResetEnd::Lost => {
                z.clear();
                z.condition = Condition::Offline;
            }
        }
        resources.take(z.condition);
        match (z.condition, z.implicit_stamp) {
            (Condition::ImplicitOpen, 0) => z.implicit_stamp = resources.list_implicit(zone),
            (Condition::ImplicitOpen, _) => {}
            (_, stamp) => {
                resources.unlist_implicit(stamp);
                z.implicit_stamp = 0;
            }
        }
        self.tell(zone, &z, before);
        Settled { woken: wake(&mut z), reread: None }
    }

    /// Takes `zone` out of use because its medium has failed, and gives its resources back. What is under way in it ends as ever:
    /// data that arrives counts as written, a failure gives its place back.
    ///
    /// Returns whether anything has changed. Conventional zones have no such condition; a zone that is being reset or finished is
    /// left to that; an offline one stays so.
    pub fn retire(&self, zone: u32, to: Retirement) -> bool {
        let to = match to {
            Retirement::ReadOnly => Condition::ReadOnly,
            Retirement::Offline => Condition::Offline,
        };
        let mut resources = self.resources.lock();
        let Ok(mut z) = self.lock_zone(zone) else { return false };
        let stays = matches!(z.condition, Condition::NotWp | Condition::Offline) || z.condition == to;
        if stays || z.settling_from.is_some() {
            return false;
        }
        let before = z.state();
        self.change(&mut resources, zone, &mut z, to);
        z.opened_from = None;
        self.tell(zone, &z, before);
        true
    }

    /// Marks a zone as settling, with what `act` makes of it. Its resources are held until the end, so that it can go back; but an
    /// implicitly open one goes back to closed, so that its open resource is free for others, as it would be without this (V27). Where
    /// a device keeps the zones it is not free yet: who needs it waits for this zone.
    fn begin(
        &self,
        resources: &mut Resources,
        zone: u32,
        z: &mut Zone,
        room: Option<Begun>,
        act: impl FnOnce(&mut Zone),
    ) -> Begun {
        if z.condition == Condition::ImplicitOpen && !self.device_keeps {
            self.change(resources, zone, z, Condition::Closed);
        }
        let begun = z.settle_as(zone, z.state());
        act(z);
        Begun { room: room.map(|room| (room.zone, room.before)), ..begun }
    }
}
