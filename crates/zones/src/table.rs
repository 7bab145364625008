//! All zones of a disk, shared by the queues that use it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::answers::{Begun, Grant, InitialStateError, ReadPlan, Refusal, Settled, Ticket, ZoneReport};
use crate::geometry::Geometry;
use crate::grown::ZoneList;
use crate::layout::ZoneKind;
use crate::resources::{Resources, Room};
use crate::state::{Condition, ZoneState};
use crate::zone::Zone;
use lock_api::{Mutex, MutexGuard, RawMutex};

/// The zones of one disk.
///
/// All calls take `&self`: any number of queues may use the table at once. Each zone has a lock of its own, held while its state
/// changes; the counts of open and active zones have one more, taken only when a zone begins or ends to be
/// open or active. `R` is the lock, `O` is told of every state that a store must keep.
///
/// # Lock order
/// The resources first, then a zone. Who holds the resources may lock further zones while the first is held (the one that is
/// closed to make room; those that a write crosses); who does not holds one zone and waits for no other lock. So no circle can close.
pub struct ZoneTable<R, O> {
    pub(crate) geometry: Geometry,
    /// This and the next two are shared with the table that this one has grown from: see [`grown`](Self::grown).
    pub(crate) resources: Arc<Mutex<R, Resources>>,
    pub(crate) zones: ZoneList<R>,
    pub(crate) observer: Arc<O>,
    /// A device below keeps the zones, too: see [`kept_by_device`](Self::kept_by_device).
    pub(crate) device_keeps: bool,
}

/// Is told of each zone's state that a store must keep.
pub trait Observer {
    /// `zone` is now in `state`. Called under the zone's lock, so in the order of the changes: must be quick and must not call
    /// the table.
    fn zone_changed(&self, zone: u32, state: ZoneState);
}

impl Observer for () {
    fn zone_changed(&self, _: u32, _: ZoneState) {}
}

impl<R: RawMutex, O: Observer> ZoneTable<R, O> {
    /// A table over `states`, one for each zone of the disk in order.
    ///
    /// # Errors
    /// A state that its zone can't be in, or is in only while something is under way; more open or active zones than the
    /// geometry allows.
    pub fn new(geometry: Geometry, states: &[ZoneState], observer: O) -> Result<Self, InitialStateError> {
        if u32::try_from(states.len()) != Ok(geometry.zone_count()) {
            return Err(InitialStateError::Count { found: states.len(), expected: geometry.zone_count() });
        }
        let mut resources = Resources::new(&geometry);
        let mut zones = Vec::with_capacity(states.len());
        for (index, &state) in (0..).zip(states) {
            state.check(&geometry, index)?;
            let ZoneState { condition, wp_sectors } = state;
            let full = wp_sectors == geometry.zone_capacity_sectors(index);
            let unopened = wp_sectors == 0 && condition != Condition::ExplicitOpen;
            if condition.is_active() && (full || unopened) {
                return Err(InitialStateError::NotAtRest { zone: index, condition, wp_sectors });
            }
            let mut zone = Zone::new(state, geometry.zone_capacity_sectors(index));
            resources.take(state.condition);
            if state.condition == Condition::ImplicitOpen {
                zone.implicit_stamp = resources.list_implicit(index);
            }
            zones.push(Mutex::new(zone));
        }
        let (open, max_open_zones) = (resources.open(), geometry.max_open_zones());
        if max_open_zones != 0 && open > max_open_zones {
            return Err(InitialStateError::TooManyOpen { open, max_open_zones });
        }
        let (active, max_active_zones) = (resources.active(), geometry.max_active_zones());
        if max_active_zones != 0 && active > max_active_zones {
            return Err(InitialStateError::TooManyActive { active, max_active_zones });
        }
        Ok(Self {
            geometry,
            resources: Arc::new(Mutex::new(resources)),
            zones: ZoneList::new(zones),
            observer: Arc::new(observer),
            device_keeps: false,
        })
    }

    /// The disk's shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How many zones are open and how many are active.
    pub fn open_and_active(&self) -> (u32, u32) {
        let resources = self.resources.lock();
        (resources.open(), resources.active())
    }

    /// The zone's line in a report.
    ///
    /// `None` past the last zone.
    pub fn report(&self, zone: u32) -> Option<ZoneReport> {
        let z = self.zones.get(usize::try_from(zone).ok()?)?.lock();
        let start = self.geometry.zone_start(zone);
        let len = u64::from(self.geometry.zone_len_sectors(zone));
        let wp = match z.condition {
            Condition::NotWp | Condition::Full | Condition::ReadOnly | Condition::Offline => start + len,
            _ => start + u64::from(z.wp()),
        };
        let kind = self.geometry.kind(zone);
        let capacity = u64::from(self.geometry.zone_capacity_sectors(zone));
        Some(ZoneReport { kind, condition: z.condition, start, len, capacity, wp })
    }

    /// Whether a read is allowed, and how much of it was ever written.
    ///
    /// # Errors
    /// Past the disk's end; across zones where one of them must be written sequentially (V25); from an offline zone (V29).
    pub fn admit_read(&self, sector: u64, sectors: u64) -> Result<ReadPlan, Refusal> {
        let zones = self.zones_of(sector, sectors)?;
        self.plan_read(zones, sector, sectors)
    }

    /// Whether a write at `sector` is allowed now; reserves its place and opens the zone if need be (V20).
    ///
    /// # Errors
    /// Past the disk's end; across zones where one must be written sequentially (V25); there, not at the write pointer or not a whole
    /// number of blocks (V26), or beyond the zone's capacity (V22); a zone that can't be written (V28, V29); no resources
    /// (V20); a zone that must be reset again first ([`Refusal::Unswept`]).
    pub fn admit_write(&self, sector: u64, sectors: u32, ticket: Ticket) -> Result<Grant, Refusal> {
        self.place_write(sector, sectors, ticket, |_| {})
    }

    /// As [`admit_write`](Self::admit_write). `placed` is told the first sector of a place that is reserved, under the zone's lock: before
    /// anybody gets the place behind it. It must be quick and must not call the table.
    ///
    /// # Errors
    /// As [`admit_write`](Self::admit_write).
    pub fn place_write(
        &self,
        sector: u64,
        sectors: u32,
        ticket: Ticket,
        placed: impl FnOnce(u64),
    ) -> Result<Grant, Refusal> {
        let zones = self.zones_of(sector, sectors.into())?;
        match self.geometry.kind(zones.start) {
            ZoneKind::SequentialRequired => {
                self.admit(zones.start, sector, sectors, Placement::At, ticket, placed)
            }
            _ => self.admit_anywhere(zones, sector, sectors, ticket),
        }
    }

    /// Whether an append of `sectors` to the zone that starts at `sector` is allowed now; reserves its place at the write pointer.
    ///
    /// # Errors
    /// As [`admit_write`](Self::admit_write), and: no append on this disk, or too long (V24); a conventional or preferred zone (V14);
    /// `sector` is not the zone's start (V21).
    pub fn admit_append(&self, sector: u64, sectors: u32, ticket: Ticket) -> Result<Grant, Refusal> {
        self.place_append(sector, sectors, ticket, |_| {})
    }

    /// As [`admit_append`](Self::admit_append), with `placed` as in [`place_write`](Self::place_write).
    ///
    /// # Errors
    /// As [`admit_append`](Self::admit_append).
    pub fn place_append(
        &self,
        sector: u64,
        sectors: u32,
        ticket: Ticket,
        placed: impl FnOnce(u64),
    ) -> Result<Grant, Refusal> {
        let limit = self.geometry.max_append_sectors();
        if limit == 0 {
            return Err(Refusal::Unsupported);
        }
        let zone = self.sequential_zone_at(sector)?;
        if self.geometry.kind(zone) != ZoneKind::SequentialRequired || sectors > limit {
            return Err(Refusal::InvalidCommand);
        }
        self.admit(zone, sector, sectors, Placement::Append, ticket, placed)
    }

    /// Takes in how an admitted write ended.
    ///
    /// The range of a **failed** write must read as zeros *before* it is settled. With data behind it, it stays below the write
    /// pointer for good: a gap. And while the write is not settled its zone can't be reset, so that the zeros can't
    /// fall on what is written after a reset.
    pub fn settle(&self, grant: Grant, ok: bool) -> Settled {
        let Some(range) = grant.reserved else { return self.settle_anywhere(&grant, ok) };
        let zone = grant.zone;
        let Ok(mut z) = self.lock_zone(zone) else { return Settled::default() };
        let before = z.state();
        z.resolve(&range, ok);
        self.tell(zone, &z, before);
        if z.in_doubt {
            return Settled { woken: Vec::new(), reread: z.begin_reread(zone) };
        }
        self.come_to_rest(zone, z)
    }

    /// A write in `zone` has ended; it may have been the last one.
    pub(crate) fn come_to_rest<'a>(&'a self, zone: u32, mut z: MutexGuard<'a, R, Zone>) -> Settled {
        if self.condition_at_rest(&z) != z.condition {
            // The lock order wants the resources first. What happens in between is seen below, or by `transition`.
            drop(z);
            let mut resources = self.resources.lock();
            let Ok(again) = self.lock_zone(zone) else { return Settled::default() };
            z = again;
            let before = z.state();
            self.rest(&mut resources, zone, &mut z);
            self.tell(zone, &z, before);
        }
        Settled { woken: wake(&mut z), reread: None }
    }

    /// Whether the range lies in what its sequential zone had when this table was made, and is there still: below the write pointer
    /// that was found, in a zone that was not reset since. `sectors` is not 0.
    pub fn is_kept(&self, sector: u64, sectors: u32) -> bool {
        self.within_zone(sector, sectors, |z, range| z.is_kept(&range)).unwrap_or(false)
    }

    /// Takes in a write that was under way when the last process died, where a later one had moved the write pointer past it: what it
    /// was to leave there may be missing, and it is to be made again in its place. Until [`adopt`](Self::adopt) it is
    /// under way without anybody who makes it: a reset or finish waits.
    ///
    /// Returns whether it was taken in: its place must be [kept](Self::is_kept), and no other write's.
    pub fn restore(&self, sector: u64, sectors: u32) -> bool {
        let restored = self.within_zone(sector, sectors, |z, range| {
            !matches!(z.condition, Condition::NotWp | Condition::Offline) && z.take_in(range)
        });
        restored.unwrap_or(false)
    }

    /// Whether a write at this place is under way without anybody who makes it.
    pub fn is_left(&self, sector: u64, sectors: u32) -> bool {
        self.within_zone(sector, sectors, |z, range| z.is_left(&range)).unwrap_or(false)
    }

    /// Takes over a write that was [restored](Self::restore): from now on it is as any that was admitted.
    /// A failure below the write pointer does not move it. `None`: there is no such write.
    pub fn adopt(&self, sector: u64, sectors: u32) -> Option<Grant> {
        self.within_zone(sector, sectors, |z, range| {
            let zone = self.geometry.zone_of(sector)?;
            z.adopt(&range).then_some(Grant {
                zone,
                start: sector,
                reserved: Some(range),
                anywhere_sectors: 0,
                room: None,
            })
        })?
    }

    /// The zones that a range touches, checked: inside the disk, and more than one only where none must be written sequentially (V25).
    fn zones_of(&self, sector: u64, sectors: u64) -> Result<Range<u32>, Refusal> {
        let last = sector.checked_add(sectors.max(1) - 1).ok_or(Refusal::OutOfRange)?;
        let first_zone = self.geometry.zone_of(sector).ok_or(Refusal::OutOfRange)?;
        let last_zone = self.geometry.zone_of(last).ok_or(Refusal::OutOfRange)?;
        let required = |zone| self.geometry.kind(zone) == ZoneKind::SequentialRequired;
        if first_zone != last_zone && (first_zone..=last_zone).any(required) {
            return Err(Refusal::InvalidCommand);
        }
        Ok(first_zone..last_zone + 1)
    }

    /// Does something to the zone at whose write pointer one must write that a range of one sector or more lies in as a whole.
    fn within_zone<T>(
        &self,
        sector: u64,
        sectors: u32,
        act: impl FnOnce(&mut Zone, Range<u32>) -> T,
    ) -> Option<T> {
        let zone = self.geometry.zone_of(sector)?;
        let start = u32::try_from(sector - self.geometry.zone_start(zone)).ok()?;
        let end = start.checked_add(sectors)?;
        if sectors == 0
            || self.geometry.kind(zone) != ZoneKind::SequentialRequired
            || end > self.geometry.zone_capacity_sectors(zone)
        {
            return None;
        }
        Some(act(&mut *self.lock_zone(zone).ok()?, start..end))
    }

    /// The sequential zone that starts at `sector` (R8, V13, V14, V21).
    fn sequential_zone_at(&self, sector: u64) -> Result<u32, Refusal> {
        let zone = self.geometry.zone_of(sector).ok_or(Refusal::InvalidCommand)?;
        if self.geometry.zone_start(zone) != sector || self.geometry.is_conventional(zone) {
            return Err(Refusal::InvalidCommand);
        }
        Ok(zone)
    }

    pub(crate) fn lock_zone(&self, zone: u32) -> Result<MutexGuard<'_, R, Zone>, Refusal> {
        let index = usize::try_from(zone).map_err(|_| Refusal::OutOfRange)?;
        self.zones.get(index).map(Mutex::lock).ok_or(Refusal::OutOfRange)
    }

    /// Admission of a write to a sequential zone.
    fn admit(
        &self,
        zone: u32,
        sector: u64,
        sectors: u32,
        placement: Placement,
        ticket: Ticket,
        placed: impl FnOnce(u64),
    ) -> Result<Grant, Refusal> {
        let start = self.geometry.zone_start(zone);
        let grant = |range: Range<u32>, room| Grant {
            zone,
            start: start + u64::from(range.start),
            reserved: Some(range),
            anywhere_sectors: 0,
            room,
        };
        {
            let mut z = self.lock_zone(zone)?;
            self.check_write(zone, &mut z, sector, sectors, placement, ticket)?;
            if sectors == 0 {
                // Only data opens a zone.
                return Ok(Grant { reserved: None, ..grant(z.wp()..z.wp(), None) });
            }
            if z.condition.is_open() {
                placed(start + u64::from(z.wp()));
                return Ok(grant(z.reserve(sectors), None));
            }
        }
        // The zone must be opened first: resources, then the zone, and everything is looked at anew.
        let mut resources = self.resources.lock();
        let mut z = self.lock_zone(zone)?;
        self.check_write(zone, &mut z, sector, sectors, placement, ticket)?;
        let mut room = None;
        if !z.condition.is_open() {
            room = self.make_room(&mut resources, z.condition, ticket)?;
            let before = z.state();
            let from = z.condition;
            self.change(&mut resources, zone, &mut z, Condition::ImplicitOpen);
            z.opened_from = Some(from);
            self.tell(zone, &z, before);
        }
        placed(start + u64::from(z.wp()));
        Ok(grant(z.reserve(sectors), room))
    }

    fn check_write(
        &self,
        zone: u32,
        z: &mut Zone,
        sector: u64,
        sectors: u32,
        placement: Placement,
        ticket: Ticket,
    ) -> Result<(), Refusal> {
        if z.must_wait() {
            z.waiting.push(ticket);
            return Err(Refusal::Busy);
        }
        if !z.condition.is_active() && z.condition != Condition::Empty {
            return Err(Refusal::InvalidCommand);
        }
        if z.unswept {
            return Err(Refusal::Unswept);
        }
        let at_wp = sector == self.geometry.zone_start(zone) + u64::from(z.wp());
        if placement == Placement::At && !at_wp
            || !sectors.is_multiple_of(self.geometry.granularity_sectors())
        {
            return Err(Refusal::UnalignedWritePointer);
        }
        // The zone's own, not the geometry's: another queue may know of more already.
        if sectors > z.capacity_sectors - z.wp() {
            return Err(Refusal::InvalidCommand);
        }
        Ok(())
    }

    /// Gives a zone the condition that it has at rest.
    fn rest(&self, resources: &mut Resources, zone: u32, z: &mut Zone) {
        let rest = self.condition_at_rest(z);
        if rest != z.condition {
            self.change(resources, zone, z, rest);
        }
    }

    /// A change of one zone that the driver asked for, under both locks.
    pub(crate) fn transition<T>(
        &self,
        sector: u64,
        ticket: Ticket,
        act: impl FnOnce(&mut Resources, u32, &mut Zone) -> Result<T, Halt>,
    ) -> Result<T, Refusal> {
        let zone = self.sequential_zone_at(sector)?;
        let mut resources = self.resources.lock();
        let mut z = self.lock_zone(zone)?;
        let before = z.state();
        // The end of its last write may have left that to us: see `settle`.
        self.rest(&mut resources, zone, &mut z);
        let result =
            if z.must_wait() { Err(Refusal::Busy.into()) } else { act(&mut resources, zone, &mut z) };
        if matches!(result, Err(Halt::Refused(Refusal::Busy))) {
            z.waiting.push(ticket);
        }
        self.tell(zone, &z, before);
        Ok(result?)
    }

    /// Sees to it that one more zone can be open, closing an implicitly open one if need be (V27). Where a device keeps the zones that one
    /// must be idle, and is busy from now on: until the device has closed it, too.
    pub(crate) fn make_room(
        &self,
        resources: &mut Resources,
        from: Condition,
        ticket: Ticket,
    ) -> Result<Option<Begun>, Halt> {
        if resources.room_to_open(from)? == Room::Free {
            return Ok(None);
        }
        let idle = |&zone: &u32| self.lock_zone(zone).is_ok_and(|z| z.is_idle());
        let victim = resources.implicit_zones().find(idle).or_else(|| resources.implicit_zones().next());
        let victim = victim.ok_or(Refusal::OpenResource)?;
        let mut z = self.lock_zone(victim)?;
        if self.device_keeps && !z.is_idle() {
            z.waiting.push(ticket);
            return Err(Halt::Queued);
        }
        let before = z.state();
        self.change(resources, victim, &mut z, Condition::Closed);
        self.tell(victim, &z, before);
        Ok(self.device_keeps.then(|| z.settle_as(victim, before)))
    }

    /// Brings a zone into `to` and keeps the counts.
    pub(crate) fn change(&self, resources: &mut Resources, zone: u32, z: &mut Zone, to: Condition) {
        resources.unlist_implicit(core::mem::take(&mut z.implicit_stamp));
        resources.give_back(z.condition);
        resources.take(to);
        z.condition = to;
        if to == Condition::ImplicitOpen {
            z.implicit_stamp = resources.list_implicit(zone);
        }
    }

    /// The condition that a zone takes when nothing is under way in it: full at its capacity, and what it was before
    /// where the write that opened it has failed.
    fn condition_at_rest(&self, z: &Zone) -> Condition {
        if !z.is_idle() || !z.condition.is_active() {
            return z.condition;
        }
        if z.wp() == z.capacity_sectors {
            return Condition::Full;
        }
        match z.condition {
            Condition::ImplicitOpen if z.opened_from.is_none() => Condition::ImplicitOpen,
            Condition::ImplicitOpen | Condition::Closed if z.wp() == 0 => Condition::Empty,
            Condition::ImplicitOpen => z.opened_from.unwrap_or(Condition::ImplicitOpen),
            other => other,
        }
    }

    pub(crate) fn tell(&self, zone: u32, z: &Zone, before: ZoneState) {
        let now = z.state();
        if now != before {
            self.observer.zone_changed(zone, now);
        }
    }
}

/// Takes the waiting requests out of a zone that has become free.
pub(crate) fn wake(z: &mut Zone) -> Vec<Ticket> {
    if z.is_idle() { core::mem::take(&mut z.waiting) } else { Vec::new() }
}

/// Why a change of a zone is not made.
pub(crate) enum Halt {
    Refused(Refusal),
    /// The ticket waits for another zone already.
    Queued,
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Halt> for Refusal {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Refused(refusal) => refusal,
            Halt::Queued => Self::Busy,
        }
    }
}

/// Where a write to a sequential zone goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// The driver says where: it must be the write pointer.
    At,
    /// At the write pointer, wherever that is.
    Append,
}
