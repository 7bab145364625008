//! A small disk for the tests of the rules, and short ways to use it.

use std::cell::RefCell;

use Condition::{Empty, Offline};
use parking_lot::RawMutex;
use virtio_zbd_zones::{
    Begun, Condition, Geometry, GeometryConfig, Grant, Observer, ReadPlan, Refusal, ResetEnd, Settled,
    Ticket, ZoneState, ZoneTable,
};

/// Zones 0 and 1 are conventional, 2 to 6 sequential with 48 of 64 sectors writable, 7 is only 40 long. A block is 8 sectors.
pub(crate) fn config() -> GeometryConfig {
    GeometryConfig {
        capacity_sectors: 7 * 64 + 40,
        zone_sectors: 64,
        zone_capacity_sectors: 48,
        conventional_zones: 2,
        max_open_zones: 3,
        max_active_zones: 4,
        max_append_sectors: 16,
        write_granularity_bytes: 4096,
    }
}

pub(crate) fn new_disk() -> Disk {
    Disk::new(config())
}

/// Both limits are reached: zones 2, 3 and 4 are explicitly open, zone 5 is closed; all have a block of data. 6 and 7 are empty.
pub(crate) fn disk_with_all_active() -> Disk {
    let disk = new_disk();
    disk.write(5 * 64, 8).unwrap();
    disk.close(5).unwrap();
    for zone in 2..5 {
        disk.open(zone).unwrap();
        disk.write(u64::from(zone) * 64, 8).unwrap();
    }
    disk
}

pub(crate) fn plan(stored_sectors: u64, zero_sectors: u64) -> ReadPlan {
    ReadPlan { stored_sectors, zero_sectors, more: Vec::new() }
}

/// The last state of each zone that the table has told.
pub(crate) struct Told(RefCell<Vec<ZoneState>>);

impl Observer for Told {
    fn zone_changed(&self, zone: u32, state: ZoneState) {
        self.0.borrow_mut()[usize::try_from(zone).unwrap()] = state;
    }
}

impl Observer for &'static Told {
    fn zone_changed(&self, zone: u32, state: ZoneState) {
        (**self).zone_changed(zone, state);
    }
}

/// A table, and short ways to use it.
pub(crate) struct Disk {
    pub(crate) table: ZoneTable<RawMutex, &'static Told>,
    told: &'static Told,
}

impl Disk {
    pub(crate) fn new(config: GeometryConfig) -> Self {
        Self::of(Geometry::new(config).unwrap())
    }

    pub(crate) fn of(geometry: Geometry) -> Self {
        let states: Vec<_> = (0..geometry.zone_count()).map(|zone| ZoneState::new(&geometry, zone)).collect();
        Self::of_in_states(geometry, &states)
    }

    pub(crate) fn in_states(config: GeometryConfig, states: &[ZoneState]) -> Self {
        Self::of_in_states(Geometry::new(config).unwrap(), states)
    }

    fn of_in_states(geometry: Geometry, states: &[ZoneState]) -> Self {
        let told: &'static Told = Box::leak(Box::new(Told(RefCell::new(states.to_vec()))));
        let table = ZoneTable::new(geometry, states, told).unwrap();
        Self { table, told }
    }

    /// A disk whose zone 2 is in `condition`, with a block of data where that goes with it.
    pub(crate) fn with(condition: Condition) -> Self {
        let geometry = Geometry::new(config()).unwrap();
        let mut states: Vec<_> = (0..8).map(|zone| ZoneState::new(&geometry, zone)).collect();
        let wp_sectors = if matches!(condition, Empty | Offline) { 0 } else { 8 };
        states[2] = ZoneState { condition, wp_sectors };
        Self::in_states(config(), &states)
    }

    /// The disk after the program has died and was started again.
    pub(crate) fn restarted(&self) -> Self {
        let geometry = self.table.geometry();
        let states: Vec<_> =
            (0..).zip(&*self.told.0.borrow()).map(|(zone, s)| s.after_restart(geometry, zone)).collect();
        Self::of_in_states(geometry.clone(), &states)
    }

    /// Admits a write that must be right, and leaves it under way.
    pub(crate) fn admit(&self, sector: u64, sectors: u32) -> Grant {
        let grant = self.table.admit_write(sector, sectors, Ticket(0)).unwrap();
        assert_eq!(grant.sector(), sector);
        grant
    }

    pub(crate) fn write(&self, sector: u64, sectors: u32) -> Result<u64, Refusal> {
        self.table.admit_write(sector, sectors, Ticket(0)).map(|grant| self.succeed(grant))
    }

    pub(crate) fn append(&self, sector: u64, sectors: u32) -> Result<u64, Refusal> {
        self.table.admit_append(sector, sectors, Ticket(0)).map(|grant| self.succeed(grant))
    }

    pub(crate) fn succeed(&self, grant: Grant) -> u64 {
        let sector = grant.sector();
        assert_eq!(self.table.settle(grant, true), Settled::default());
        sector
    }

    pub(crate) fn read(&self, sector: u64, sectors: u64) -> Result<ReadPlan, Refusal> {
        self.table.admit_read(sector, sectors)
    }

    pub(crate) fn open(&self, zone: u32) -> Result<(), Refusal> {
        self.table.open(self.table.geometry().zone_start(zone), Ticket(0))
    }

    pub(crate) fn close(&self, zone: u32) -> Result<(), Refusal> {
        self.table.close(self.table.geometry().zone_start(zone), Ticket(0))
    }

    pub(crate) fn begin_finish(&self, zone: u32, ticket: Ticket) -> Result<Option<Begun>, Refusal> {
        self.table.begin_finish(self.table.geometry().zone_start(zone), ticket)
    }

    pub(crate) fn begin_reset(&self, zone: u32, ticket: Ticket) -> Result<Option<Begun>, Refusal> {
        self.table.begin_reset(self.table.geometry().zone_start(zone), ticket)
    }

    pub(crate) fn finish(&self, zone: u32) -> Result<(), Refusal> {
        self.begin_finish(zone, Ticket(0)).map(|begun| self.done(begun))
    }

    pub(crate) fn reset(&self, zone: u32) -> Result<(), Refusal> {
        self.begin_reset(zone, Ticket(0)).map(|begun| self.done(begun))
    }

    pub(crate) fn done(&self, begun: Option<Begun>) {
        if let Some(begun) = begun {
            assert_eq!(self.table.end(begun, ResetEnd::Done), Settled::default());
        }
    }

    pub(crate) fn condition(&self, zone: u32) -> Condition {
        self.table.report(zone).unwrap().condition
    }

    /// The reported write pointer, from the zone's start.
    pub(crate) fn wp(&self, zone: u32) -> u64 {
        let report = self.table.report(zone).unwrap();
        report.wp - report.start
    }

    pub(crate) fn observed(&self, zone: u32) -> ZoneState {
        self.told.0.borrow()[usize::try_from(zone).unwrap()]
    }

    pub(crate) fn assert_every_management_is_invalid(&self, zone: u32) {
        assert_eq!(self.open(zone), Err(Refusal::InvalidCommand));
        assert_eq!(self.close(zone), Err(Refusal::InvalidCommand));
        assert_eq!(self.finish(zone), Err(Refusal::InvalidCommand));
        assert_eq!(self.reset(zone), Err(Refusal::InvalidCommand));
    }
}
