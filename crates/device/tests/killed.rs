//! The process dies at any step, and the next one takes up what was under way: none that was answered is missing, none is done twice.
//!
//! Two queues of a guest that outlives the disk; each life of the disk ends at a step drawn by lot, one that leaves something behind: a
//! store to the front-end's buffer, (half of) a write to the image, a hole, a sync; while the image is opened and the buffer taken up,
//! too. Then all requests are answered once, and the zones hold exactly what was answered.
//!
//! `DEVICE_SEED=n` repeats a run; `ZBD_KILLS=n` sets how many kills there are (300 without it).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests may"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};
use virtio_zbd_device::{Disk, DiskConfig, QueueConfig, RingConfig};
use virtio_zbd_spec::{Features, Status};
use virtio_zbd_store::{EngineChoice, FileMedium, ImageStore, OpenOptions, Store};
use virtio_zbd_testkit::{Completion, GuestRam, Queue, QueueOptions, Request, Token};
use virtio_zbd_zones::{Geometry, GeometryConfig};

use common::mortal::{Death, Kept, MortalMedium, Shown, new_file};
use common::{SECTOR, ring_config};

const SHAPE: GeometryConfig = GeometryConfig {
    capacity_sectors: 6 * 128,
    zone_sectors: 128,
    zone_capacity_sectors: 120,
    conventional_zones: 1,
    max_open_zones: 0,
    max_active_zones: 0,
    max_append_sectors: 64,
    write_granularity_bytes: 4096,
};

const QUEUES: u16 = 2;
const QUEUE_SIZE: u16 = 64;
/// What a life has at most under way on each queue.
const DEPTH: usize = 8;
const BLOCK: u32 = 8;
const CAPACITY: u32 = SHAPE.zone_capacity_sectors;
const BOOT: [u8; 16] = [7; 16];

/// The conventional zone.
const PLAIN: u64 = 0;
/// Appended to; reset and finished only when nothing is under way in it. Some writes to the second one fail.
const ORDERLY: [u64; 2] = [1, 2];
const FAILING: u64 = ORDERLY[1];
/// Appended to and reset at the same time.
const WILD: u64 = 3;
/// Written at the write pointer, several at a time, all by queue 0.
const WRITTEN: u64 = 4;
/// Opened and closed, with a little data or none.
const OPENED: u64 = 5;

/// A request and what became of it. Times are numbers of events.
#[derive(Debug)]
struct Made {
    what: What,
    zone: u64,
    sectors: u32,
    /// First sector of a write.
    sector: u64,
    submitted: u64,
    answered: Option<u64>,
    /// It was answered with an error.
    failed: bool,
    /// Of an append that has ended well: where it went.
    told: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Append,
    Write,
    Reset,
    Finish,
    Open,
    Close,
    Flush,
    Report,
    Read,
}

/// The guest: its memory, its rings, and what it knows. It lives as long as the test.
struct Guest {
    queues: Vec<Queue>,
    kept: Kept,
    rng: Rng,
    now: u64,
    /// By number, which is also what the data consists of.
    made: BTreeMap<u32, Made>,
    tokens: BTreeMap<(usize, Token), u32>,
    next: u32,
}

/// The disk's process.
struct Life {
    death: Arc<Death>,
    disk: Arc<Disk>,
    queues: Vec<Running>,
}

struct Running {
    worker: virtio_zbd_device::Queue,
    kick: OwnedFd,
    /// The worker holds the other end.
    lives: Arc<()>,
}

#[test]
fn none_is_lost_and_none_is_done_twice() {
    let seed = std::env::var("DEVICE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("DEVICE_SEED={seed}");
    let kills: usize = std::env::var("ZBD_KILLS").map_or(300, |kills| kills.parse().unwrap());
    let mut rng = Rng::with_seed(seed);
    let (mut killed, mut again, mut requests) = (0, 0, 0);
    while killed < kills {
        let file = new_file();
        ImageStore::create_on(&*file, Geometry::new(SHAPE).unwrap()).unwrap();
        let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
        let start = ImageStore::open_on(file.clone(), read_only).unwrap().info().unwrap().data_offset_bytes;
        let byte = |zone| start + start_of(zone) * SECTOR as u64;
        let file = (file, byte(FAILING)..byte(FAILING + 1));
        let mut guest = Guest::new(rng.u64(..));
        // With and without a cache that writes back.
        let without = if rng.u8(..4) == 0 { Features::FLUSH } else { Features::empty() };
        for _ in 0..10 {
            for _ in 0..rng.usize(1..8) {
                killed += 1;
                let steps = match rng.u8(..4) {
                    0 => rng.i64(1..60),
                    1 => rng.i64(1..1500),
                    _ => rng.i64(1..300),
                };
                let death = Death::after(steps, rng.u64(..));
                if let Some((life, resubmitted)) = Life::begin(&file, &guest, death, without) {
                    again += resubmitted;
                    guest.work(&life);
                    life.end(&guest);
                }
            }
            let death = Death::after(i64::MAX, rng.u64(..));
            let (life, resubmitted) = Life::begin(&file, &guest, death, without).unwrap();
            again += resubmitted;
            guest.settle(&life);
            guest.check(&life);
            life.death.kill();
            life.end(&guest);
        }
        requests += guest.made.len();
    }
    println!("{killed} kills, {requests} requests, {again} of them made again");
    assert!(again > killed / 4, "hardly anything was under way");
}

impl Life {
    /// A process opens the image, takes up the buffer and serves the queues; and how many requests it finds under way. `None`: it died
    /// before.
    fn begin(
        (file, failing): &(Arc<FileMedium>, Range<u64>),
        guest: &Guest,
        death: Arc<Death>,
        without: Features,
    ) -> Option<(Self, usize)> {
        let disk = catch_unwind(AssertUnwindSafe(|| {
            let (inner, failing) = (Arc::clone(file), failing.clone());
            let medium = MortalMedium { inner, death: Arc::clone(&death), failing };
            let options = OpenOptions { boot_id: Some(BOOT), ..OpenOptions::default() };
            let store: Arc<dyn Store> = Arc::new(ImageStore::open_on(Arc::new(medium), options).unwrap());
            let config = DiskConfig { queues: QUEUES, block_len_bytes: 512, engine: EngineChoice::Sync };
            let disk = Disk::new(store, config).unwrap();
            disk.use_inflight(&Shown(guest.kept.clone(), Arc::clone(&death)));
            disk
        }));
        let disk = disk.ok()?;
        let negotiated = disk.negotiate(disk.features() & !without.bits()).unwrap();
        let mut resubmitted = 0;
        let queues = (0..QUEUES).zip(&guest.queues).map(|(index, queue)| {
            let here = queue.in_process().unwrap();
            let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
            let log = guest.kept.log(index, queue.ring.used_idx(), &death);
            let under_way = u16::try_from(log.resubmitted()).unwrap();
            resubmitted += log.resubmitted();
            let next_avail = queue.ring.used_idx().wrapping_add(under_way);
            let lives = Arc::new(());
            let (call, token, dies) =
                (here.call.try_clone().unwrap(), Arc::clone(&lives), Arc::clone(&death));
            let config = QueueConfig {
                ring: RingConfig { next_avail, ..ring_config(&here) },
                memory: here.memory,
                kick: kick.try_clone().unwrap(),
                call: Box::new(move || {
                    let _ = (&token, rustix::io::write(&call, &1u64.to_ne_bytes()));
                }),
                broken: Box::new(move || dies.step()),
                inflight: Some(Box::new(log)),
            };
            let worker = disk.start_queue(index, Arc::clone(&negotiated), config).unwrap();
            Running { worker, kick, lives }
        });
        let queues = queues.collect();
        Some((Self { death, disk, queues }, resubmitted))
    }

    fn kick(&self, queue: usize) {
        rustix::io::write(&self.queues[queue].kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// All threads end. One that waits is called to its ring, where it finds what no ring can hold, and ends there.
    fn end(self, guest: &Guest) {
        self.death.kill();
        let avail: Vec<u16> = guest.queues.iter().map(|queue| queue.ring.avail_idx()).collect();
        for (queue, idx) in guest.queues.iter().zip(&avail) {
            queue.ring.set_avail_idx(idx.wrapping_add(1000));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        for (n, running) in self.queues.iter().enumerate() {
            while Arc::strong_count(&running.lives) > 1 {
                assert!(Instant::now() < deadline, "a worker does not end");
                self.kick(n);
                std::thread::yield_now();
            }
        }
        for (queue, idx) in guest.queues.iter().zip(avail) {
            queue.ring.set_avail_idx(idx);
        }
        self.queues.into_iter().for_each(|running| drop(running.worker));
        drop(self.disk);
    }
}

impl Guest {
    fn new(seed: u64) -> Self {
        let ram = GuestRam::new(8 << 20);
        let mut rng = Rng::with_seed(seed);
        let base = *rng.choice(&[0, 65_500]).unwrap();
        let options =
            QueueOptions { size: QUEUE_SIZE, base, event_idx: rng.bool(), ..QueueOptions::default() };
        let queues = (0..QUEUES).map(|_| Queue::new(&ram, &options).unwrap()).collect();
        let kept = Kept::new(QUEUES, QUEUE_SIZE);
        Self { queues, kept, rng, now: 0, made: BTreeMap::new(), tokens: BTreeMap::new(), next: 1 }
    }

    /// Makes requests and takes answers until the disk is dead.
    fn work(&mut self, life: &Life) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut idle = 0;
        while !life.death.is_dead() {
            assert!(Instant::now() < deadline, "the disk neither works nor dies");
            let queue = self.rng.usize(..self.queues.len());
            if self.rng.bool() && self.queues[queue].in_flight() < DEPTH && self.submit(queue) {
                life.kick(queue);
                idle = 0;
            } else if self.take_answers() == 0 {
                idle += 1;
                std::thread::yield_now();
            }
            // Whatever is asked for, this life does not come to its end.
            if idle > 20_000 {
                break;
            }
        }
    }

    /// Waits for all answers.
    fn settle(&mut self, life: &Life) {
        for n in 0..self.queues.len() {
            life.kick(n);
            for (token, completion) in self.queues[n].complete_all().unwrap() {
                self.answered(n, token, &completion);
            }
        }
        assert_eq!(self.tokens, BTreeMap::new());
    }

    fn take_answers(&mut self) -> usize {
        let mut count = 0;
        for n in 0..self.queues.len() {
            while let Some((token, completion)) = self.queues[n].try_complete().unwrap() {
                self.answered(n, token, &completion);
                count += 1;
            }
        }
        count
    }

    fn answered(&mut self, queue: usize, token: Token, completion: &Completion) {
        let number = self.tokens.remove(&(queue, token)).expect("answered once");
        self.now += 1;
        let made = self.made.get_mut(&number).unwrap();
        made.answered = Some(self.now);
        let status = completion.outcome().unwrap();
        match made.what {
            // An empty zone can't be closed (V16), a full one not be opened (V15).
            What::Open | What::Close => {
                assert!(matches!(status, Status::Ok | Status::ZoneInvalidCmd), "{status:?}: {made:?}")
            }
            What::Append if made.zone == FAILING && status == Status::IoErr => made.failed = true,
            _ => assert_eq!(status, Status::Ok, "{number}: {made:?}"),
        }
        match made.what {
            What::Append if !made.failed => made.told = Some(completion.append_sector.unwrap()),
            What::Read => {
                let written = u32::try_from(made.sector).unwrap();
                let sectors = usize::try_from(made.sectors).unwrap();
                assert_eq!(completion.data, pattern(written, sectors), "{number} reads {written}");
            }
            _ => {}
        }
    }

    /// Makes a request that must end well. False: the one that was drawn can't be made now.
    fn submit(&mut self, queue: usize) -> bool {
        let sectors = BLOCK * self.rng.u32(1..4);
        match self.rng.u8(..20) {
            0..8 => {
                let zone = *self.rng.choice(&[ORDERLY[0], ORDERLY[0], ORDERLY[1], WILD, OPENED]).unwrap();
                let orderly = zone != WILD;
                if orderly && self.is_closed_to_appends(zone) || self.reach(zone) + sectors > CAPACITY {
                    return zone != WILD && self.reset_if_quiet(queue, zone);
                }
                self.make(queue, What::Append, zone, sectors, start_of(zone))
            }
            8..12 if queue == 0 => {
                if self.is_closed_to_appends(WRITTEN) || self.reach(WRITTEN) + sectors > CAPACITY {
                    return self.reset_if_quiet(queue, WRITTEN);
                }
                let at = start_of(WRITTEN) + u64::from(self.reach(WRITTEN));
                self.make(queue, What::Write, WRITTEN, sectors, at)
            }
            8..14 => {
                // One block of the conventional zone after the other, again and again.
                let at = u64::from(self.rng.u32(..16) * BLOCK);
                let busy = self.open_requests().any(|made| made.zone == PLAIN && made.sector == at);
                !busy && self.make(queue, What::Write, PLAIN, BLOCK, at)
            }
            14 => self.make(queue, What::Reset, WILD, 0, start_of(WILD)),
            15 => {
                let zone = *self.rng.choice(&ORDERLY).unwrap();
                match self.rng.u8(..3) {
                    0 if self.is_quiet(zone) => self.make(queue, What::Finish, zone, 0, start_of(zone)),
                    1 => self.reset_if_quiet(queue, zone),
                    _ => false,
                }
            }
            16 => {
                let what = if self.rng.bool() { What::Open } else { What::Close };
                self.make(queue, what, OPENED, 0, start_of(OPENED))
            }
            17 => self.make(queue, What::Report, PLAIN, 0, 0),
            18 => self.read(queue),
            _ => self.make(queue, What::Flush, PLAIN, 0, 0),
        }
    }

    /// Reads what an append has written that was answered, in a zone that nobody resets meanwhile.
    fn read(&mut self, queue: usize) -> bool {
        let zone = ORDERLY[0];
        let since = self.last(zone, What::Reset);
        let busy = self.open_requests().any(|made| made.zone == zone && made.what == What::Reset);
        let candidates: Vec<(u32, u64, u32)> = self
            .made
            .iter()
            .filter(|(_, made)| made.zone == zone && made.submitted > since)
            .filter_map(|(&number, made)| Some((number, made.told?, made.sectors)))
            .collect();
        let (false, Some(&(number, at, sectors))) = (busy, self.rng.choice(&candidates)) else {
            return false;
        };
        let request = Request::read(at, usize::try_from(sectors).unwrap() * SECTOR);
        // While it is under way the zone is not quiet.
        self.enqueue(queue, What::Read, zone, sectors, number.into(), request)
    }

    fn reset_if_quiet(&mut self, queue: usize, zone: u64) -> bool {
        self.is_quiet(zone) && self.make(queue, What::Reset, zone, 0, start_of(zone))
    }

    fn make(&mut self, queue: usize, what: What, zone: u64, sectors: u32, sector: u64) -> bool {
        let data = pattern(self.next, usize::try_from(sectors).unwrap());
        let request = match what {
            What::Append => Request::zone_append(sector, &data),
            What::Write => Request::write(sector, &data),
            What::Reset => Request::zone_reset(sector),
            What::Finish => Request::zone_finish(sector),
            What::Open => Request::zone_open(sector),
            What::Close => Request::zone_close(sector),
            What::Flush => Request::flush(),
            What::Report => Request::zone_report(0, 512),
            What::Read => return false,
        };
        self.enqueue(queue, what, zone, sectors, sector, request)
    }

    fn enqueue(
        &mut self,
        queue: usize,
        what: What,
        zone: u64,
        sectors: u32,
        sector: u64,
        request: Request,
    ) -> bool {
        let Ok(token) = self.queues[queue].enqueue(request) else { return false };
        let _ = self.queues[queue].publish().unwrap();
        self.now += 1;
        let made = Made {
            what,
            zone,
            sectors,
            sector,
            submitted: self.now,
            answered: None,
            failed: false,
            told: None,
        };
        self.tokens.insert((queue, token), self.next);
        self.made.insert(self.next, made);
        self.next += 1;
        true
    }

    fn open_requests(&self) -> impl Iterator<Item = &Made> {
        self.tokens.values().map(|number| &self.made[number])
    }

    fn is_quiet(&self, zone: u64) -> bool {
        !self.open_requests().any(|made| made.zone == zone)
    }

    /// A reset or finish is under way, or the zone was finished.
    fn is_closed_to_appends(&self, zone: u64) -> bool {
        let ends = |made: &Made| matches!(made.what, What::Reset | What::Finish);
        self.open_requests().any(|made| made.zone == zone && ends(made))
            || self.last(zone, What::Finish) > self.last(zone, What::Reset)
    }

    /// When the last such request was answered; 0: never.
    fn last(&self, zone: u64, what: What) -> u64 {
        let ends = self.made.values().filter(|made| made.zone == zone && made.what == what);
        ends.filter_map(|made| made.answered).max().unwrap_or(0)
    }

    /// How far a zone can be written by now.
    fn reach(&self, zone: u64) -> u32 {
        // Of a wild one what was written before a reset that was answered is gone for sure if it was answered before the reset was given.
        let resets = self.made.values().filter(|made| made.zone == zone && made.what == What::Reset);
        let since =
            resets.filter(|made| made.answered.is_some()).map(|made| made.submitted).max().unwrap_or(0);
        let counts = |made: &&Made| {
            made.zone == zone
                && matches!(made.what, What::Append | What::Write)
                && made.answered.is_none_or(|answered| answered > since)
        };
        self.made.values().filter(counts).map(|made| made.sectors).sum()
    }

    /// The zones hold exactly what was answered.
    fn check(&mut self, life: &Life) {
        for zone in ORDERLY.into_iter().chain([WILD, WRITTEN, OPENED]) {
            let found = self.contents(life, zone);
            let resets: Vec<(u64, u64)> = self
                .made
                .values()
                .filter(|made| made.zone == zone && made.what == What::Reset)
                .map(|made| (made.submitted, made.answered.unwrap()))
                .collect();
            let mut missing = BTreeSet::new();
            for (&number, made) in self.made.iter().filter(|(_, made)| made.zone == zone && made.sectors > 0)
            {
                if made.what == What::Read {
                    continue;
                }
                let place = found.get(&number).copied();
                let at = made.told.unwrap_or(made.sector);
                let answered = made.answered.unwrap();
                if made.failed {
                    assert_eq!(place, None, "{number} has failed: {made:?}");
                } else if resets.iter().any(|reset| answered < reset.0) {
                    assert_eq!(place, None, "{number} was reset: {made:?}");
                } else if resets.iter().all(|reset| reset.1 < made.submitted) {
                    assert_eq!(place, Some((at, made.sectors)), "zone {zone}: {number} is missing: {made:?}");
                } else if place.is_some() {
                    assert_eq!(place, Some((at, made.sectors)), "{number}: {made:?}");
                } else {
                    missing.insert(number);
                }
            }
        }
        for block in 0..16 {
            let at = u64::from(block * BLOCK);
            let mut writes = self
                .made
                .iter()
                .filter(|(_, made)| made.zone == PLAIN && made.what == What::Write && made.sector == at);
            let expected = writes.next_back().map_or(0, |(&number, _)| number);
            let data = self.call(life, Request::read(at, 8 * SECTOR)).data;
            assert_eq!(
                data,
                if expected == 0 { vec![0; 8 * SECTOR] } else { pattern(expected, 8) },
                "block {block}"
            );
        }
        // What is answered and checked need not be looked through again.
        let keep = |made: &Made| made.zone != PLAIN || made.what == What::Write;
        self.made.retain(|_, made| keep(made));
    }

    /// What a zone holds up to its write pointer: each request's data once and as a whole, by number; with place and length.
    fn contents(&mut self, life: &Life, zone: u64) -> BTreeMap<u32, (u64, u32)> {
        let report = self.call(life, Request::zone_report(start_of(zone), 128)).zones().unwrap();
        let is_full = report[0].z_wp.get() == start_of(zone) + u64::from(SHAPE.zone_sectors);
        let bytes =
            self.call(life, Request::read(start_of(zone), usize::try_from(CAPACITY).unwrap() * SECTOR)).data;
        let stamps: Vec<(u32, u32)> = bytes.chunks_exact(SECTOR).map(stamp).collect();
        let mut found = BTreeMap::new();
        // Where the last one ends, and how much of what is before that is nobody's.
        let (mut end, mut gaps, mut at) = (0, 0, 0);
        while at < stamps.len() {
            let (number, nth) = stamps[at];
            if (number, nth) == (0, 0) {
                at += 1;
                continue;
            }
            let made = self.made.get(&number);
            let sectors = made.unwrap_or_else(|| panic!("zone {zone}, sector {at} is torn")).sectors;
            for n in 0..sectors {
                let place = at + usize::try_from(n).unwrap();
                assert_eq!(
                    stamps[place],
                    (number, n),
                    "zone {zone}, sector {place}: not the whole of {number}"
                );
            }
            let place = (start_of(zone) + u64::try_from(at).unwrap(), sectors);
            assert_eq!(found.insert(number, place), None, "zone {zone}: {number} is there twice");
            gaps += at - end;
            at += usize::try_from(sectors).unwrap();
            end = at;
        }
        let wp = usize::try_from(report[0].z_wp.get() - start_of(zone)).unwrap();
        let since = self.last(zone, What::Reset);
        let failed =
            self.made.values().filter(|made| made.zone == zone && made.failed && made.submitted > since);
        let failed: usize = failed.map(|made| usize::try_from(made.sectors).unwrap()).sum();
        assert!(gaps <= failed, "zone {zone}: {gaps} sectors are nobody's, {failed} have failed");
        assert!(is_full || wp == end, "zone {zone}: the write pointer is at {wp}, the data ends at {end}");
        found
    }

    fn call(&mut self, life: &Life, request: Request) -> Completion {
        let queue = &mut self.queues[0];
        let token = queue.submit(request).unwrap();
        life.kick(0);
        let (answered, completion) = queue.complete(queue.timeout).unwrap();
        assert_eq!(answered, token);
        completion.expect(Status::Ok)
    }
}

fn start_of(zone: u64) -> u64 {
    zone * u64::from(SHAPE.zone_sectors)
}

/// Sectors that say whose they are and which of them.
fn pattern(number: u32, sectors: usize) -> Vec<u8> {
    let stamp = |n: usize| [number.to_le_bytes(), u32::try_from(n).unwrap().to_le_bytes()].concat();
    (0..sectors).flat_map(|n| stamp(n).repeat(SECTOR / 8)).collect()
}

/// Whose a sector is; torn ones are nobody's.
fn stamp(sector: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().unwrap());
    let stamp = (word(0), word(4));
    let whole = sector.chunks_exact(8).all(|part| part == &sector[..8]);
    if whole { stamp } else { (u32::MAX, 0) }
}
