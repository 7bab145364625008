//! A table over a device that keeps its zones itself. The device is here, naive: it has conditions, limits and write pointers of its own, takes what it is told in the
//! order in which it is told, and refuses what no such device takes. It closes zones of its own choice where there is no room, which must never be needed. Whatever was asked of
//! the table, the two are the same whenever nothing is under way.
//!
//! `ZONES_SEED=n` repeats a run, which prints it; `ZONES_STEPS=n` makes it longer.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails this way"
)]

use std::collections::BTreeMap;

use parking_lot::RawMutex;
use virtio_zbd_zones::Condition::{
    Closed, Empty, ExplicitOpen, Full, ImplicitOpen, NotWp, Offline, ReadOnly,
};
use virtio_zbd_zones::{
    Begun, Condition, Geometry, GeometryConfig, Grant, Refusal, ResetEnd, Settled, Ticket, ZoneState,
    ZoneTable,
};

const ZONES: u32 = 8;
const ZONE_SECTORS: u32 = 64;
const CAPACITY: u32 = 48;

fn geometry(max_open_zones: u32, max_active_zones: u32) -> Geometry {
    Geometry::new(GeometryConfig {
        capacity_sectors: u64::from(ZONES * ZONE_SECTORS),
        zone_sectors: ZONE_SECTORS,
        zone_capacity_sectors: CAPACITY,
        conventional_zones: 1,
        max_open_zones,
        max_active_zones,
        max_append_sectors: 16,
        write_granularity_bytes: 512,
    })
    .unwrap()
}

fn start(zone: u32) -> u64 {
    u64::from(zone * ZONE_SECTORS)
}

/// What a zoned drive is.
struct Device {
    zones: Vec<(Condition, u32)>,
    max_open: u32,
    max_active: u32,
    /// How many zones it has closed on its own.
    own_closes: u32,
}

impl Device {
    fn new(geometry: &Geometry) -> Self {
        let zones = (0..ZONES).map(|zone| if zone == 0 { (NotWp, 0) } else { (Empty, 0) }).collect();
        let (max_open, max_active) = (geometry.max_open_zones(), geometry.max_active_zones());
        Self { zones, max_open, max_active, own_closes: 0 }
    }

    fn count(&self, is: fn(Condition) -> bool) -> u32 {
        u32::try_from(self.zones.iter().filter(|zone| is(zone.0)).count()).unwrap()
    }

    fn room(&mut self, from: Condition) -> bool {
        if !from.is_active() && self.max_active != 0 && self.count(Condition::is_active) >= self.max_active {
            return false;
        }
        if from.is_open() || self.max_open == 0 || self.count(Condition::is_open) < self.max_open {
            return true;
        }
        let last = self.zones.iter().rposition(|zone| zone.0 == ImplicitOpen);
        self.own_closes += 1;
        last.is_some_and(|last| {
            self.zones[last].0 = Closed;
            true
        })
    }

    /// A write; `torn`: it stops half-way.
    fn write(&mut self, sector: u64, sectors: u32, torn: bool) -> bool {
        let zone = usize::try_from(sector / u64::from(ZONE_SECTORS)).unwrap();
        let at = u32::try_from(sector % u64::from(ZONE_SECTORS)).unwrap();
        let (condition, wp) = self.zones[zone];
        let fits = (condition.is_active() || condition == Empty) && at == wp && at + sectors <= CAPACITY;
        if !fits || !self.room(condition) {
            return false;
        }
        if !condition.is_open() {
            self.zones[zone].0 = ImplicitOpen;
        }
        self.zones[zone].1 += if torn { sectors / 2 } else { sectors };
        if self.zones[zone].1 == CAPACITY {
            self.zones[zone].0 = Full;
        }
        !torn
    }

    fn close(&mut self, zone: u32) -> bool {
        let zone = &mut self.zones[zone as usize];
        match zone.0 {
            ImplicitOpen | ExplicitOpen if zone.1 == 0 => zone.0 = Empty,
            ImplicitOpen | ExplicitOpen | Closed => zone.0 = Closed,
            _ => return false,
        }
        true
    }

    fn open(&mut self, zone: u32) -> bool {
        let (condition, _) = self.zones[zone as usize];
        let opens = condition.is_active() || condition == Empty;
        let opens = opens && self.room(condition);
        if opens {
            self.zones[zone as usize].0 = ExplicitOpen;
        }
        opens
    }

    fn finish(&mut self, zone: u32) -> bool {
        let (condition, _) = self.zones[zone as usize];
        let finishes = condition.is_active() || condition == Empty;
        let finishes = finishes && self.room(condition);
        if finishes {
            self.zones[zone as usize].0 = Full;
        }
        finishes
    }

    fn reset(&mut self, zone: u32) -> bool {
        let is_reset = !matches!(self.zones[zone as usize].0, NotWp | ReadOnly | Offline);
        if is_reset {
            self.zones[zone as usize] = (Empty, 0);
        }
        is_reset
    }

    /// What a report says.
    fn says(&self, zone: u32) -> ZoneState {
        let (condition, wp) = self.zones[zone as usize];
        let wp_sectors = match condition {
            Full | ReadOnly => CAPACITY,
            Offline => 0,
            _ => wp,
        };
        ZoneState { condition, wp_sectors }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Append(u32, u32),
    Open(u32),
    Close(u32),
    Finish(u32),
    Reset(u32),
}

/// What was let in and is not over.
enum UnderWay {
    /// Waits for a zone to be closed, then it is a write.
    MakingRoom(Begun, Grant, u32),
    Write(Grant, u32),
    /// A change that the device is to make; and first the zone that makes room for it.
    Change(Op, Begun, Option<Begun>),
    Reread(Begun),
}

struct World {
    table: ZoneTable<RawMutex, ()>,
    device: Device,
    under_way: Vec<UnderWay>,
    waiting: BTreeMap<u64, Op>,
    retries: Vec<Op>,
    next_ticket: u64,
    seen: Seen,
}

/// That a run was worth it.
#[derive(Debug, Default)]
struct Seen {
    rooms: u32,
    waited: u32,
    rereads: u32,
    torn: u32,
    behind: u32,
    taken_away: u32,
    refused: BTreeMap<String, u32>,
}

impl World {
    fn new(geometry: Geometry) -> Self {
        let states: Vec<_> = (0..ZONES).map(|zone| ZoneState::new(&geometry, zone)).collect();
        Self {
            device: Device::new(&geometry),
            table: ZoneTable::new(geometry, &states, ()).unwrap().kept_by_device(),
            under_way: Vec::new(),
            waiting: BTreeMap::new(),
            retries: Vec::new(),
            next_ticket: 0,
            seen: Seen::default(),
        }
    }

    fn ask(&mut self, op: Op) {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let table = &self.table;
        let refusal = match op {
            Op::Append(zone, sectors) => match table.admit_append(start(zone), sectors, ticket) {
                Ok(mut grant) => {
                    self.under_way.push(match grant.take_room() {
                        Some(room) => UnderWay::MakingRoom(room, grant, sectors),
                        None => UnderWay::Write(grant, sectors),
                    });
                    return;
                }
                Err(refusal) => refusal,
            },
            Op::Open(zone) | Op::Close(zone) | Op::Finish(zone) | Op::Reset(zone) => {
                let begun = match op {
                    Op::Open(_) => table.begin_open(start(zone), ticket),
                    Op::Close(_) => table.begin_close(start(zone), ticket),
                    Op::Finish(_) => table.begin_finish(start(zone), ticket),
                    _ => table.begin_reset(start(zone), ticket),
                };
                match begun {
                    Ok(None) => return,
                    Ok(Some(mut begun)) => {
                        let room = begun.take_room();
                        self.under_way.push(UnderWay::Change(op, begun, room));
                        return;
                    }
                    Err(refusal) => refusal,
                }
            }
        };
        if refusal == Refusal::Busy {
            self.seen.waited += 1;
            self.waiting.insert(ticket.0, op);
        } else {
            *self.seen.refused.entry(format!("{refusal:?}")).or_default() += 1;
        }
    }

    fn settled(&mut self, settled: Settled) {
        for ticket in settled.woken {
            let op = self.waiting.remove(&ticket.0);
            self.retries
                .push(op.unwrap_or_else(|| panic!("{ticket:?} has come back, and nobody waits under it")));
        }
        self.under_way.extend(settled.reread.map(UnderWay::Reread));
    }

    fn end(&mut self, begun: Begun, done: bool) {
        let told = ResetEnd::Told(self.device.says(begun.zone()));
        let settled = self.table.end(begun, if done { ResetEnd::Done } else { told });
        self.settled(settled);
    }

    /// The device does the next thing of those under way, or fails at it.
    fn go_on(&mut self, random: &mut fastrand::Rng) {
        let zone_of = |grant: &Grant| grant.zone();
        // Writes to one zone come to it in the order of their places.
        let mut which = random.usize(..self.under_way.len());
        if let UnderWay::Write(grant, _) | UnderWay::MakingRoom(_, grant, _) = &self.under_way[which] {
            let (zone, mut first) = (zone_of(grant), grant.sector());
            for (index, other) in self.under_way.iter().enumerate() {
                if let UnderWay::Write(other, _) | UnderWay::MakingRoom(_, other, _) = other
                    && zone_of(other) == zone
                    && other.sector() < first
                {
                    (which, first) = (index, other.sector());
                }
            }
        }
        match self.under_way.swap_remove(which) {
            UnderWay::MakingRoom(room, grant, sectors) => {
                self.seen.rooms += 1;
                let done = self.device.close(room.zone());
                self.end(room, done);
                self.under_way.push(UnderWay::Write(grant, sectors));
            }
            UnderWay::Write(grant, sectors) => self.write(grant, sectors, random),
            UnderWay::Change(op, begun, room) => {
                if let Some(room) = room {
                    self.seen.rooms += 1;
                    let done = self.device.close(room.zone());
                    self.end(room, done);
                }
                let done = match op {
                    Op::Open(zone) => self.device.open(zone),
                    Op::Close(zone) => self.device.close(zone),
                    Op::Finish(zone) => self.device.finish(zone),
                    Op::Reset(zone) => self.device.reset(zone),
                    Op::Append(..) => unreachable!(),
                };
                self.end(begun, done);
            }
            UnderWay::Reread(begun) => {
                self.seen.rereads += 1;
                self.end(begun, false);
            }
        }
    }

    fn write(&mut self, grant: Grant, sectors: u32, random: &mut fastrand::Rng) {
        let torn = random.u32(..20) == 0;
        let (zone, sector) = (grant.zone(), grant.sector());
        let ok = self.device.write(sector, sectors, torn);
        if ok {
            let settled = self.table.settle(grant, true);
            return self.settled(settled);
        }
        self.seen.torn += u32::from(torn);
        // What is behind it in its zone never comes to the device.
        let is_behind = |other: &mut UnderWay| match other {
            UnderWay::Write(other, _) | UnderWay::MakingRoom(_, other, _) => other.zone() == zone,
            _ => false,
        };
        let behind: Vec<_> = self.under_way.extract_if(.., is_behind).collect();
        let settled = self.table.fail(grant);
        self.settled(settled);
        for other in behind {
            self.seen.behind += 1;
            match other {
                UnderWay::Write(grant, _) => {
                    let settled = self.table.fail(grant);
                    self.settled(settled);
                }
                UnderWay::MakingRoom(room, grant, _) => {
                    let done = self.device.close(room.zone());
                    self.end(room, done);
                    let settled = self.table.fail(grant);
                    self.settled(settled);
                }
                _ => unreachable!(),
            }
        }
    }

    /// Nothing is under way: the two are the same.
    fn compare(&self) {
        assert!(self.waiting.is_empty(), "{:?} wait for ever", self.waiting);
        for zone in 0..ZONES {
            let report = self.table.report(zone).unwrap();
            let (condition, wp) = self.device.zones[zone as usize];
            assert_eq!(report.condition, condition, "zone {zone}");
            if condition.is_active() {
                assert_eq!(report.wp - start(zone), u64::from(wp), "zone {zone}");
            }
        }
        let counts = (self.device.count(Condition::is_open), self.device.count(Condition::is_active));
        assert_eq!(self.table.open_and_active(), counts);
        assert_eq!(self.device.own_closes, 0, "the device had to make room on its own");
    }
}

#[test]
fn the_table_and_the_device_stay_the_same() {
    let variable = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = variable("ZONES_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = variable("ZONES_STEPS").unwrap_or(40_000);
    eprintln!("ZONES_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut behind = 0;
    for (max_open, max_active) in [(0, 0), (1, 0), (1, 1), (2, 3), (3, 3), (3, 5), (0, 4)] {
        let mut world = World::new(geometry(max_open, max_active));
        for step in 0..steps / 7 {
            if random.u32(..3) == 0 && !world.under_way.is_empty() {
                world.go_on(&mut random);
            } else if let Some(op) = world.retries.pop() {
                world.ask(op);
            } else if world.under_way.len() < 12 {
                let zone = random.u32(1..ZONES);
                world.ask(match random.u32(..12) {
                    0 => Op::Open(zone),
                    1 => Op::Close(zone),
                    2 => Op::Finish(zone),
                    3 => Op::Reset(zone),
                    _ => Op::Append(zone, random.u32(1..=8) * 2),
                });
            }
            if step % 500 == 499 {
                while !world.under_way.is_empty() || !world.retries.is_empty() {
                    match world.retries.pop() {
                        Some(op) => world.ask(op),
                        None => world.go_on(&mut random),
                    }
                }
                world.compare();
                // The device takes a zone away, or gives one back by means of its own.
                let zone = random.usize(2..ZONES as usize);
                if random.bool() && !matches!(world.device.zones[zone].0, ReadOnly | Offline) {
                    world.seen.taken_away += 1;
                    world.device.zones[zone] = (if random.bool() { ReadOnly } else { Offline }, 0);
                    // Seen by whoever meets it: here by a read.
                    let doubted = world.table.doubt(start(u32::try_from(zone).unwrap()));
                    world.end(doubted.unwrap(), false);
                    world.compare();
                }
                if world.device.count(|condition| matches!(condition, ReadOnly | Offline)) > 3 {
                    let seen = std::mem::take(&mut world.seen);
                    world = World { seen, ..World::new(geometry(max_open, max_active)) };
                }
            }
        }
        eprintln!("open {max_open}, active {max_active}: {:?}", world.seen);
        let seen = &world.seen;
        assert!(seen.waited > 0 && seen.rereads > 0 && seen.torn > 0, "{seen:?}");
        behind += seen.behind;
        // Room is made by closing; a zone that is closed is active still.
        assert_eq!(seen.rooms > 0, max_open != 0 && (max_active == 0 || max_open < max_active), "{seen:?}");
    }
    assert!(behind > 0, "no write was behind one that has failed");
}

/// What is told of a zone that it can't be takes it out of use; so does silence.
#[test]
fn nonsense_is_offline() {
    for end in [
        ResetEnd::Told(ZoneState { condition: Closed, wp_sectors: CAPACITY + 1 }),
        ResetEnd::Told(ZoneState { condition: NotWp, wp_sectors: 0 }),
        ResetEnd::Undone,
        ResetEnd::Done,
    ] {
        let mut world = World::new(geometry(1, 1));
        world.ask(Op::Append(1, 8));
        let Some(UnderWay::Write(grant, _)) = world.under_way.pop() else { panic!() };
        let reread = world.table.fail(grant).reread.unwrap();
        assert_eq!(world.table.admit_append(start(1), 8, Ticket(99)), Err(Refusal::Busy));
        assert_eq!(world.table.end(reread, end).woken, [Ticket(99)]);
        assert_eq!(world.table.report(1).unwrap().condition, Offline);
        assert_eq!(world.table.open_and_active(), (0, 0));
    }
}
