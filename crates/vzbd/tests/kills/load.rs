//! Random requests on several queues at once, whose outcome is known exactly.
//!
//! At a time a sequential zone is either written to, in order and on one queue, or appended to on all queues, or managed; so what
//! must come out of each is certain, kills or not. Where the requests in flight leave something open (which append comes first),
//! what is answered decides, and must then be found.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;

use virtio_zbd_driver::{Command, DeviceError, Done, Error, Token, Zone, ZoneState};
use virtio_zbd_vhost_user::client::ArenaBuffer;

use crate::Shared;
use crate::driver::Driver;
use crate::model::{BLOCK_BYTES, BLOCK_SECTORS, Held, Tag, describe};

/// How many requests are in flight at most, on all queues together: more than one for each zone.
const IN_FLIGHT_MAX: usize = 48;

/// Only so many zones are opened explicitly: there is always one that can be closed for another to be opened implicitly (V27).
const EXPLICIT_MAX: usize = 5;

/// A request's blocks at most.
const BLOCKS_MAX: u64 = 8;

/// How much is read at a time when the whole disk is compared.
const COMPARE_BLOCKS: u64 = 64;

/// The load: the disk, what it must hold, and what is under way.
pub(crate) struct Load {
    pub(crate) disk: Driver,
    state: State,
    pub(crate) counts: Counts,
}

/// A load without its disk.
pub(crate) struct Detached {
    state: State,
    counts: Counts,
}

struct State {
    random: fastrand::Rng,
    /// The whole disk, block by block.
    held: Vec<Held>,
    /// Blocks that a request under way reads or writes.
    busy: Vec<bool>,
    /// The sequential zones.
    zones: Vec<Sequential>,
    /// Where blocks can be written in any order.
    anywhere: std::ops::Range<u64>,
    under_way: HashMap<Token, UnderWay>,
    next_serial: u64,
}

/// A sequential zone.
#[derive(Debug)]
struct Sequential {
    start_block: u64,
    capacity_blocks: u64,
    len_blocks: u64,
    /// How many blocks of it are written or being written.
    reserved_blocks: u64,
    is_full: bool,
    mode: Mode,
    /// How many requests that write to it, or manage it, are under way.
    changing: u32,
    reading: u32,
    /// Opened explicitly while nothing was in it, when so many kills had been: it may be empty again.
    opened_at_kill: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// In order, on this queue.
    Writes(u16),
    Appends,
    /// One request to the zone itself.
    Managed,
}

/// A request that was not answered yet.
#[derive(Debug)]
struct UnderWay {
    kind: Kind,
    queue: u16,
    serial: u64,
    first_block: u64,
    blocks: u64,
    /// Which of the sequential zones.
    zone: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Append,
    Zeroes,
    Flush,
    Reset,
    Finish,
    Open,
    Close,
}

const KINDS: [Kind; 9] = [
    Kind::Read,
    Kind::Write,
    Kind::Append,
    Kind::Zeroes,
    Kind::Flush,
    Kind::Reset,
    Kind::Finish,
    Kind::Open,
    Kind::Close,
];

/// What was answered.
#[derive(Default)]
pub(crate) struct Counts {
    answered: HashMap<&'static str, u64>,
    /// How often the whole disk was compared.
    scans: u64,
    /// How many requests were in flight when a kill was first waited over, all kills together.
    over_kills: u64,
    kills_seen: u64,
}

impl Load {
    pub(crate) fn new(mut disk: Driver, seed: u64) -> Self {
        let blocks = disk.capacity_sectors() / BLOCK_SECTORS;
        let zones: Vec<Zone> = match disk.zoned() {
            Some(_) => disk.zones(0).unwrap().map(Result::unwrap).collect(),
            None => Vec::new(),
        };
        let sequential: Vec<_> = zones.iter().filter(|zone| zone.state != ZoneState::NotWp).collect();
        let anywhere = 0..sequential.first().map_or(blocks, |zone| zone.start_sector / BLOCK_SECTORS);
        let zones = sequential.iter().map(|zone| Sequential {
            start_block: zone.start_sector / BLOCK_SECTORS,
            capacity_blocks: zone.capacity_sectors / BLOCK_SECTORS,
            len_blocks: zone.len_sectors / BLOCK_SECTORS,
            reserved_blocks: 0,
            is_full: false,
            mode: Mode::Appends,
            changing: 0,
            reading: 0,
            opened_at_kill: None,
        });
        let state = State {
            random: fastrand::Rng::with_seed(seed),
            held: vec![Held::Zeros; blocks as usize],
            busy: vec![false; blocks as usize],
            zones: zones.collect(),
            anywhere,
            under_way: HashMap::new(),
            next_serial: 1,
        };
        Self { disk, state, counts: Counts::default() }
    }

    /// Lets go of the disk. Nothing is under way.
    pub(crate) fn detach(self) -> Detached {
        assert!(self.state.under_way.is_empty());
        Detached { state: self.state, counts: self.counts }
    }

    /// Adds some requests, as far as there is room, and takes what is answered.
    pub(crate) fn step(&mut self, shared: &Shared) {
        let kills = shared.killed.load(Ordering::Acquire);
        // So that one notification stands for several.
        for _ in 0..self.state.random.u8(1..=16) {
            let queue = self.state.random.u16(0..self.disk.queue_count());
            let has_room = self.disk.in_flight(queue) < self.disk.queue_depth().into();
            if has_room && self.state.under_way.len() < IN_FLIGHT_MAX {
                self.submit(queue, kills);
            }
        }
        (0..self.disk.queue_count()).for_each(|queue| self.disk.notify(queue).unwrap());
        if self.state.under_way.len() > self.state.random.usize(IN_FLIGHT_MAX / 2..IN_FLIGHT_MAX) {
            self.wait(shared);
        }
        self.take_answers(shared);
    }

    /// Waits until everything is answered.
    pub(crate) fn drain(&mut self, shared: &Shared) {
        while !self.state.under_way.is_empty() {
            (0..self.disk.queue_count()).for_each(|queue| self.disk.notify(queue).unwrap());
            self.wait(shared);
            self.take_answers(shared);
        }
    }

    fn wait(&mut self, shared: &Shared) {
        // Of all queues this one has an answer soonest, in all likelihood.
        let queues = 0..self.disk.queue_count();
        let Some(queue) = queues.max_by_key(|queue| self.disk.in_flight(*queue)) else { return };
        let in_flight = self.state.under_way.len() as u64;
        self.disk.wait(queue).unwrap_or_else(|error| {
            panic!("{error} while waiting for queue {queue} of {:#?}", self.state.under_way.values())
        });
        let kills = shared.killed.load(Ordering::Acquire);
        if kills != self.counts.kills_seen {
            self.counts.kills_seen = kills;
            self.counts.over_kills += in_flight;
        }
    }

    fn submit(&mut self, queue: u16, kills: u64) {
        let Some((command, mut request)) = self.state.choose(queue, kills, &self.disk) else { return };
        request.queue = queue;
        let token =
            self.disk.submit(queue, command).unwrap_or_else(|rejected| panic!("{rejected}: {request:?}"));
        self.state.begin(&request);
        self.state.under_way.insert(token, request);
    }

    fn take_answers(&mut self, shared: &Shared) {
        for queue in 0..self.disk.queue_count() {
            while let Some(completion) = self.disk.complete(queue).unwrap() {
                let request = self.state.under_way.remove(&completion.token);
                let request = request.expect("each request is answered once");
                assert_eq!(request.queue, queue);
                self.state.end(
                    &request,
                    completion.result,
                    completion.buffer,
                    shared.killed.load(Ordering::Acquire),
                );
                shared.answered.fetch_add(1, Ordering::Relaxed);
                *self.counts.answered.entry(request.kind.name()).or_default() += 1;
            }
        }
    }

    /// Nothing is under way: the whole disk is what was answered, and so are the zones' conditions and write pointers.
    pub(crate) fn compare_everything(&mut self) {
        assert!(self.state.under_way.is_empty());
        let blocks = self.state.held.len() as u64;
        let zoned = self.disk.zoned().is_some();
        let found: Vec<Zone> = match zoned {
            true => self.disk.zones(0).unwrap().map(Result::unwrap).collect(),
            false => Vec::new(),
        };
        for zone in &self.state.zones {
            let found = found
                .iter()
                .find(|found| found.start_sector / BLOCK_SECTORS == zone.start_block)
                .unwrap_or_else(|| panic!("no zone at block {}", zone.start_block));
            let full = zone.is_full || zone.reserved_blocks == zone.capacity_blocks;
            let states: &[ZoneState] = match zone.reserved_blocks {
                _ if full => &[ZoneState::Full],
                0 => &[ZoneState::Empty, ZoneState::ExplicitOpen],
                _ => &[ZoneState::ImplicitOpen, ZoneState::ExplicitOpen, ZoneState::Closed],
            };
            assert!(states.contains(&found.state), "{found:?}, but {zone:?}");
            if !full {
                let expected = (zone.start_block + zone.reserved_blocks) * BLOCK_SECTORS;
                assert_eq!(found.write_pointer_sector, Some(expected), "{found:?}, but {zone:?}");
            }
        }
        let mut data = vec![0; COMPARE_BLOCKS as usize * BLOCK_BYTES];
        for first in (0..blocks).step_by(COMPARE_BLOCKS as usize) {
            let count = COMPARE_BLOCKS.min(blocks - first);
            let data = &mut data[..count as usize * BLOCK_BYTES];
            self.disk.read(first * BLOCK_SECTORS, data).unwrap();
            self.state.compare(first, data);
        }
        self.counts.scans += 1;
    }
}

impl Detached {
    pub(crate) fn attach(self, disk: Driver) -> Load {
        Load { disk, state: self.state, counts: self.counts }
    }
}

/// What to ask next.
impl State {
    fn choose(&mut self, queue: u16, kills: u64, disk: &Driver) -> Option<(Command<ArenaBuffer>, UnderWay)> {
        let zoned = !self.zones.is_empty();
        for _ in 0..4 {
            let kind = match self.random.u8(0..100) {
                0..30 => Kind::Read,
                30..33 => Kind::Flush,
                33..36 => Kind::Zeroes,
                36..50 if zoned => Kind::Write,
                50..75 if zoned => Kind::Append,
                75..79 if zoned => Kind::Reset,
                79..81 if zoned => Kind::Finish,
                81..84 if zoned => Kind::Open,
                84..87 if zoned => Kind::Close,
                _ => {
                    if let Some(chosen) = self.write_anywhere(disk) {
                        return Some(chosen);
                    }
                    continue;
                }
            };
            let chosen = match kind {
                Kind::Read => self.read(disk),
                Kind::Flush => Some((Command::Flush, self.request(kind, 0, 0, None))),
                Kind::Zeroes => self.zeroes(zoned),
                Kind::Write | Kind::Append => self.extend(kind, queue, disk),
                _ => self.manage(kind, kills),
            };
            if chosen.is_some() {
                return chosen;
            }
        }
        None
    }

    fn request(&mut self, kind: Kind, first_block: u64, blocks: u64, zone: Option<usize>) -> UnderWay {
        let serial = self.next_serial;
        self.next_serial += 1;
        UnderWay { kind, queue: 0, serial, first_block, blocks, zone }
    }

    /// So many blocks at most in a range, of which none is busy.
    fn idle_blocks(&mut self, range: std::ops::Range<u64>) -> Option<(u64, u64)> {
        let first = self.random.u64(range.clone());
        let wanted = self.random.u64(1..=BLOCKS_MAX).min(range.end - first);
        let idle = (first..first + wanted).all(|block| !self.busy[block as usize]);
        idle.then_some((first, wanted))
    }

    fn write_anywhere(&mut self, disk: &Driver) -> Option<(Command<ArenaBuffer>, UnderWay)> {
        let (first, blocks) = self.idle_blocks(self.anywhere.clone())?;
        let request = self.request(Kind::Write, first, blocks, None);
        let buffer = request.data(disk);
        Some((Command::Write { sector: first * BLOCK_SECTORS, buffer }, request))
    }

    fn zeroes(&mut self, zoned: bool) -> Option<(Command<ArenaBuffer>, UnderWay)> {
        if zoned {
            // Not offered there (G3).
            return None;
        }
        let (first, blocks) = self.idle_blocks(self.anywhere.clone())?;
        let (sector, sectors) = (first * BLOCK_SECTORS, (blocks * BLOCK_SECTORS) as u32);
        let unmap = self.random.bool();
        Some((
            Command::WriteZeroes { sector, sectors, unmap },
            self.request(Kind::Zeroes, first, blocks, None),
        ))
    }

    fn read(&mut self, disk: &Driver) -> Option<(Command<ArenaBuffer>, UnderWay)> {
        let all = self.held.len() as u64;
        let mut range = self.anywhere.clone();
        let mut zone = None;
        if !self.zones.is_empty() && self.random.u8(0..4) > 0 {
            let index = self.random.usize(0..self.zones.len());
            let Sequential { start_block, len_blocks, mode, changing, .. } = self.zones[index];
            if mode == Mode::Managed && changing > 0 {
                return None;
            }
            range = start_block..(start_block + len_blocks).min(all);
            zone = Some(index);
        }
        let (first, blocks) = self.idle_blocks(range)?;
        if let Some(index) = zone {
            let Sequential { start_block, reserved_blocks, changing, .. } = self.zones[index];
            // Where an append will land is not known.
            if changing > 0 && first + blocks > start_block + self.settled_blocks(index).min(reserved_blocks)
            {
                return None;
            }
        }
        let buffer = disk.buffer(blocks as usize * BLOCK_BYTES).unwrap();
        let request = self.request(Kind::Read, first, blocks, zone);
        Some((Command::Read { sector: first * BLOCK_SECTORS, buffer }, request))
    }

    /// How many blocks from the zone's start on have been answered without a gap.
    fn settled_blocks(&self, index: usize) -> u64 {
        let zone = &self.zones[index];
        let blocks = &self.held[zone.start_block as usize..][..zone.capacity_blocks as usize];
        blocks.iter().take_while(|held| **held != Held::Zeros).count() as u64
    }

    /// A write or an append.
    fn extend(&mut self, kind: Kind, queue: u16, disk: &Driver) -> Option<(Command<ArenaBuffer>, UnderWay)> {
        let wanted = if kind == Kind::Append { Mode::Appends } else { Mode::Writes(queue) };
        let index = self.random.usize(0..self.zones.len());
        let blocks_max = self.random.u64(1..=BLOCKS_MAX);
        let zone = &mut self.zones[index];
        let fits = zone.changing == 0 || zone.mode == wanted;
        let blocks = blocks_max.min(zone.capacity_blocks - zone.reserved_blocks);
        if !fits || zone.is_full || blocks == 0 || zone.reads_beyond() {
            return None;
        }
        let first = zone.start_block + zone.reserved_blocks;
        let zone_start_sector = zone.start_block * BLOCK_SECTORS;
        zone.mode = wanted;
        let request = self.request(kind, first, blocks, Some(index));
        let buffer = request.data(disk);
        let command = match kind {
            Kind::Append => Command::Append { zone_start_sector, buffer },
            _ => Command::Write { sector: first * BLOCK_SECTORS, buffer },
        };
        Some((command, request))
    }

    fn manage(&mut self, kind: Kind, kills: u64) -> Option<(Command<ArenaBuffer>, UnderWay)> {
        let index = self.random.usize(0..self.zones.len());
        let zone = &mut self.zones[index];
        let has_data = zone.reserved_blocks > 0;
        let full = zone.is_full || zone.reserved_blocks == zone.capacity_blocks;
        let allowed = match kind {
            Kind::Open => !full && index < EXPLICIT_MAX,
            // Not one that is empty or full (G2), unless it was opened.
            Kind::Close => !full && (has_data || zone.opened_at_kill.is_some()),
            _ => true,
        };
        // Much is written before it is thrown away.
        let worth = kind != Kind::Reset || full || self.random.u8(0..4) == 0;
        if zone.changing > 0 || zone.reading > 0 || !allowed || !worth {
            return None;
        }
        zone.mode = Mode::Managed;
        if kind == Kind::Open && !has_data {
            zone.opened_at_kill.get_or_insert(kills);
        }
        let start_sector = zone.start_block * BLOCK_SECTORS;
        let (start_block, blocks) = (zone.start_block, zone.len_blocks);
        let command = match kind {
            Kind::Reset => Command::ResetZone { start_sector },
            Kind::Finish => Command::FinishZone { start_sector },
            Kind::Open => Command::OpenZone { start_sector },
            _ => Command::CloseZone { start_sector },
        };
        Some((command, self.request(kind, start_block, blocks, Some(index))))
    }
}

/// What becomes of it.
impl State {
    fn begin(&mut self, request: &UnderWay) {
        match (request.kind, request.zone.map(|zone| &mut self.zones[zone])) {
            (Kind::Read, Some(zone)) => zone.reading += 1,
            (Kind::Write | Kind::Append, Some(zone)) => {
                zone.changing += 1;
                zone.reserved_blocks += request.blocks;
            }
            (_, Some(zone)) => zone.changing += 1,
            _ => {}
        }
        if matches!(request.kind, Kind::Read | Kind::Write | Kind::Zeroes) {
            self.mark(request, true);
        }
    }

    fn mark(&mut self, request: &UnderWay, busy: bool) {
        let blocks = &mut self.busy[request.first_block as usize..][..request.blocks as usize];
        assert!(blocks.iter().all(|was| *was != busy), "{request:?}");
        blocks.fill(busy);
    }

    fn end(
        &mut self,
        request: &UnderWay,
        result: Result<Done, Error>,
        buffer: Option<ArenaBuffer>,
        kills: u64,
    ) {
        let UnderWay { kind, serial, first_block, blocks, zone, .. } = *request;
        let done = match result {
            Ok(done) => done,
            // A restart closes open zones, and one with nothing in it is empty then (D4), which can't be closed (G2).
            Err(Error::Device { status: DeviceError::InvalidCommand, .. })
                if kind == Kind::Close
                    && zone.is_some_and(|zone| self.zones[zone].may_be_empty_again(kills)) =>
            {
                Done::Plain
            }
            Err(error) => panic!("{error}: {request:?}, {:?}", zone.map(|zone| &self.zones[zone])),
        };
        if matches!(kind, Kind::Read | Kind::Write | Kind::Zeroes) {
            self.mark(request, false);
        }
        match (kind, zone) {
            (Kind::Read, _) => {
                let data = buffer.unwrap();
                self.compare(first_block, &data);
                if let Some(zone) = zone {
                    self.zones[zone].reading -= 1;
                }
                return;
            }
            (Kind::Write, _) => self.hold(first_block, serial, blocks, zone.is_some()),
            (Kind::Append, Some(index)) => {
                let Done::Appended { sector } = done else { panic!("{done:?}: {request:?}") };
                let (zone, found) = (&self.zones[index], sector / BLOCK_SECTORS);
                let end = zone.start_block + zone.reserved_blocks;
                let inside =
                    sector % BLOCK_SECTORS == 0 && found >= zone.start_block && found + blocks <= end;
                assert!(inside, "{request:?} landed at sector {sector}, but {zone:?}");
                self.hold(found, serial, blocks, true);
            }
            (Kind::Zeroes, _) => {
                self.held[first_block as usize..][..blocks as usize].fill(Held::Zeros);
            }
            (Kind::Reset, Some(index)) => {
                self.held[first_block as usize..][..blocks as usize].fill(Held::Zeros);
                let zone = &mut self.zones[index];
                (zone.reserved_blocks, zone.is_full, zone.opened_at_kill) = (0, false, None);
            }
            (Kind::Finish, Some(index)) => {
                (self.zones[index].is_full, self.zones[index].opened_at_kill) = (true, None);
            }
            (Kind::Close, Some(index)) => self.zones[index].opened_at_kill = None,
            _ => {}
        }
        if let Some(index) = zone {
            let zone = &mut self.zones[index];
            zone.changing -= 1;
            if zone.reserved_blocks > 0 {
                zone.opened_at_kill = None;
            }
            if zone.changing == 0 && zone.mode == Mode::Appends {
                // All that was appended is there, once each.
                assert_eq!(self.settled_blocks(index), self.zones[index].reserved_blocks);
            }
        }
    }

    /// A request's blocks are there from now on. In a sequential zone nothing was there before.
    fn hold(&mut self, first_block: u64, serial: u64, blocks: u64, new: bool) {
        for block in 0..blocks {
            let held = &mut self.held[(first_block + block) as usize];
            let tag = Tag { serial, block };
            assert!(!new || *held == Held::Zeros, "{tag:?} is said to be where {held:?} is");
            *held = Held::Data(tag);
        }
    }

    fn compare(&self, first_block: u64, data: &[u8]) {
        for (block, found) in (first_block..).zip(data.chunks_exact(BLOCK_BYTES)) {
            let held = self.held[block as usize];
            assert!(held.is_in(found), "block {block} must have {held:?}, it has {}", describe(found));
        }
    }
}

impl Sequential {
    /// What lies beyond the write pointer is being read, and must stay zeros for as long.
    fn reads_beyond(&self) -> bool {
        self.reading > 0 && self.changing == 0
    }

    fn may_be_empty_again(&self, kills: u64) -> bool {
        self.reserved_blocks == 0 && self.opened_at_kill.is_some_and(|then| then != kills)
    }
}

impl UnderWay {
    /// What it writes.
    fn data(&self, disk: &Driver) -> ArenaBuffer {
        let mut buffer = disk.buffer(self.blocks as usize * BLOCK_BYTES).unwrap();
        for (block, bytes) in (0..).zip(buffer.chunks_exact_mut(BLOCK_BYTES)) {
            Tag { serial: self.serial, block }.fill(bytes);
        }
        buffer
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Append => "append",
            Kind::Zeroes => "write zeroes",
            Kind::Flush => "flush",
            Kind::Reset => "reset",
            Kind::Finish => "finish",
            Kind::Open => "open",
            Kind::Close => "close",
        }
    }
}

impl Counts {
    /// A run in which hardly anything happened shows nothing.
    pub(crate) fn assert_enough(&self, kills: u64) {
        let answered: u64 = self.answered.values().sum();
        assert!(answered > 20 * kills && self.over_kills > kills, "{self}");
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u64 = self.answered.values().sum();
        write!(f, "{total} requests answered (")?;
        let kinds = KINDS.iter().filter_map(|kind| Some((kind.name(), self.answered.get(kind.name())?)));
        for (n, (name, count)) in kinds.enumerate() {
            write!(f, "{}{count} {name}", if n == 0 { "" } else { ", " })?;
        }
        write!(
            f,
            "), {} in flight over the kills, the whole disk compared {} times",
            self.over_kills, self.scans
        )
    }
}
