//! Four threads on one table: nothing overlaps, no limit is exceeded, what was written is there, every ticket comes back, nobody stands
//! still.
//!
//! `ZONES_SEED` sets what each thread asks for; in which order the threads come is not ours to repeat.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says loudly what is wrong"
)]

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use parking_lot::{Mutex, RawMutex};
use virtio_zbd_zones::{
    Begun, Condition, Geometry, GeometryConfig, Grant, Observer, Refusal, ResetEnd, Settled, Ticket,
    ZoneState, ZoneTable,
};

const THREADS: u64 = 4;

/// Each thread makes this many requests.
const REQUESTS: u64 = 500_000;

/// No request of any thread is answered for so long only if the threads wait for each other in a circle.
const STANDSTILL: Duration = Duration::from_secs(20);

/// A thread that has more writes than this under way ends one before it asks for more.
const MOST_WRITES: usize = 4;

#[test]
fn few_open_and_few_active_zones() {
    hammer(GeometryConfig { max_open_zones: 2, max_active_zones: 3, ..config() });
}

#[test]
fn one_open_zone() {
    hammer(GeometryConfig { max_open_zones: 1, max_active_zones: 0, ..config() });
}

#[test]
fn no_limits() {
    hammer(GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..config() });
}

#[test]
fn as_many_open_as_active() {
    hammer(GeometryConfig { max_open_zones: 3, max_active_zones: 3, zone_capacity_sectors: 16, ..config() });
}

/// Every place of a zone is handed out once, without a hole, whoever asks.
#[test]
fn appends_of_all_threads_fill_a_zone_without_holes() {
    let geometry = Geometry::new(config()).unwrap();
    for seed in 0..200 {
        let table: ZoneTable<RawMutex, ()> =
            ZoneTable::new(geometry.clone(), &[ZoneState::EMPTY; 5], ()).unwrap();
        let (zone, appends_each) = (2, 3);
        let start = geometry.zone_start(zone);
        let mut places: Vec<u64> = thread::scope(|scope| {
            let appenders: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let table = &table;
                    scope.spawn(move || {
                        let mut grants: Vec<Grant> = (0..appends_each)
                            .map(|_| table.admit_append(start, 4, Ticket(0)).unwrap())
                            .collect();
                        let places: Vec<u64> = grants.iter().map(Grant::sector).collect();
                        Rng::with_seed(seed * THREADS + thread).shuffle(&mut grants);
                        for grant in grants {
                            assert_eq!(table.settle(grant, true), Settled::default());
                        }
                        places
                    })
                })
                .collect();
            appenders.into_iter().flat_map(|appender| appender.join().unwrap()).collect()
        });
        places.sort_unstable();
        let want: Vec<u64> = (0..THREADS * appends_each).map(|n| start + 4 * n).collect();
        assert_eq!(places, want);
        assert_eq!(table.report(zone).unwrap().condition, Condition::Full);
        assert_eq!(table.open_and_active(), (0, 0));
    }
}

/// Five sequential zones for four threads: they meet all the time.
fn config() -> GeometryConfig {
    GeometryConfig {
        capacity_sectors: 5 * 64,
        zone_sectors: 64,
        zone_capacity_sectors: 48,
        conventional_zones: 0,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 16,
        write_granularity_bytes: 2048,
    }
}

/// Lets all threads loose and looks at what they have left behind.
fn hammer(config: GeometryConfig) {
    let seed = std::env::var("ZONES_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    eprintln!("ZONES_SEED={seed}");
    let shared = Arc::new(Shared::new(config));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let worker = Worker::new(shared.clone(), Rng::with_seed(seed.wrapping_add(thread)));
            thread::spawn(move || worker.run())
        })
        .collect();
    let (mut tickets, mut since) = (0, Instant::now());
    while !threads.iter().all(thread::JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(5));
        let now = shared.next_ticket.load(SeqCst);
        if now != tickets {
            (tickets, since) = (now, Instant::now());
        }
        assert!(
            since.elapsed() < STANDSTILL,
            "the threads stand still: is there a deadlock? ZONES_SEED={seed}"
        );
    }
    let mut done = Done::default();
    for thread in threads {
        match thread.join() {
            Ok(part) => done.add(&part),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    eprintln!("{done:?}");
    assert!(
        done.writes > 1000 && done.resets > 100 && done.finishes > 100 && done.gap_sectors > 10,
        "{done:?}"
    );
    assert!(done.woken > 100, "nobody had to wait: {done:?}");
    shared.check_at_rest();
}

/// What the threads have in common.
struct Shared {
    geometry: Geometry,
    table: ZoneTable<RawMutex, Teller>,
    watch: Arc<Watch>,
    /// Who has each sector: the ticket of the write that it was given to, 0 for nobody.
    owners: Vec<AtomicU64>,
    /// What the store holds in each sector: the ticket of the write that put it there, 0 for zeros.
    medium: Vec<AtomicU64>,
    /// The life of its zone in which a write to each sector has failed last.
    failed_in: Vec<AtomicU64>,
    /// Which life each zone is in: a reset begins another.
    lives: Vec<AtomicU64>,
    /// How many writes of each zone are not settled.
    unsettled: Vec<AtomicU64>,
    /// Requests that wait, or that are just being made.
    waiting: Mutex<HashMap<Ticket, Request>>,
    next_ticket: AtomicU64,
}

impl Shared {
    fn new(config: GeometryConfig) -> Self {
        let geometry = Geometry::new(config).unwrap();
        let states = vec![ZoneState::EMPTY; index(geometry.zone_count().into())];
        let watch = Arc::new(Watch {
            config,
            states: Mutex::new(states.iter().map(|&state| [state; 2]).collect()),
            undoing: states.iter().map(|_| AtomicBool::new(false)).collect(),
        });
        let for_each_sector = || (0..config.capacity_sectors).map(|_| AtomicU64::new(0)).collect();
        let for_each_zone = |number| states.iter().map(|_| AtomicU64::new(number)).collect();
        Self {
            geometry: geometry.clone(),
            lives: for_each_zone(1),
            unsettled: for_each_zone(0),
            table: ZoneTable::new(geometry.clone(), &states, Teller(watch.clone())).unwrap(),
            watch,
            owners: for_each_sector(),
            medium: for_each_sector(),
            failed_in: for_each_sector(),
            waiting: Mutex::new(HashMap::new()),
            next_ticket: AtomicU64::new(1),
        }
    }

    fn zone_of(&self, sector: u64) -> usize {
        index(self.geometry.zone_of(sector).unwrap().into())
    }

    fn sectors_of(&self, zone: u32) -> Range<usize> {
        let (start, len) = (self.geometry.zone_start(zone), self.geometry.zone_len_sectors(zone));
        index(start)..index(start + u64::from(len))
    }

    /// While nothing is written to `zone`: the store holds what successful writes have put there, and zeros elsewhere. Where there
    /// are zeros before data, a write has failed in this life.
    fn check_content(&self, zone: u32) -> Content {
        let sectors = self.sectors_of(zone);
        let life = self.lives[index(zone.into())].load(SeqCst);
        let owner = |sector: usize| self.owners[sector].load(SeqCst);
        let data_end = sectors.clone().rev().find(|&s| owner(s) != 0).map_or(sectors.start, |last| last + 1);
        let mut gap_sectors = 0;
        for sector in sectors.clone() {
            assert_eq!(self.medium[sector].load(SeqCst), owner(sector), "what lies in sector {sector}");
            if sector < data_end && owner(sector) == 0 {
                assert_eq!(self.failed_in[sector].load(SeqCst), life, "sector {sector} was left out");
                gap_sectors += 1;
            }
        }
        Content { written_sectors: data_end - sectors.start, gap_sectors }
    }

    /// All threads are gone: what they have left fits together.
    fn check_at_rest(&self) {
        assert_eq!(self.waiting.lock().len(), 0, "tickets never came back");
        let (mut open, mut active) = (0, 0);
        for zone in 0..self.geometry.zone_count() {
            let report = self.table.report(zone).unwrap();
            let plan = self.table.admit_read(report.start, report.len).unwrap();
            let [_, observed] = self.watch.states.lock()[index(zone.into())];
            assert_eq!(observed.condition, report.condition, "zone {zone}");
            assert_eq!(u64::from(observed.wp_sectors), plan.stored_sectors, "zone {zone}");
            open += u32::from(report.condition.is_open());
            active += u32::from(report.condition.is_active());
            if report.condition.is_active() {
                assert_eq!(report.wp, report.start + plan.stored_sectors, "zone {zone}: {report:?}");
                assert_ne!(plan.stored_sectors, report.capacity, "all written and not full: {report:?}");
            }
            if matches!(report.condition, Condition::Closed | Condition::ImplicitOpen) {
                assert_ne!(plan.stored_sectors, 0, "nothing written and not empty: {report:?}");
            }
            let content = self.check_content(zone);
            assert_eq!(content.written_sectors, index(plan.stored_sectors), "{report:?}");
        }
        assert_eq!(self.table.open_and_active(), (open, active));
    }
}

/// What lies in a zone.
struct Content {
    /// Up to the end of its last data.
    written_sectors: usize,
    /// Zeros before that.
    gap_sectors: u64,
}

/// Sees every change of every zone, in order, and that none is against the rules.
struct Watch {
    config: GeometryConfig,
    /// Of each zone the last state, and the one before it in front.
    states: Mutex<Vec<[ZoneState; 2]>>,
    /// The zones whose next change undoes a reset or finish.
    undoing: Vec<AtomicBool>,
}

struct Teller(Arc<Watch>);

impl Observer for Teller {
    fn zone_changed(&self, zone: u32, state: ZoneState) {
        self.0.check(index(zone.into()), state);
    }
}

impl Watch {
    fn check(&self, zone: usize, to: ZoneState) {
        let mut states = self.states.lock();
        let [before, from] = states[zone];
        states[zone] = [from, to];
        if self.undoing[zone].swap(false, SeqCst) {
            assert_eq!(to, self.undone(before), "zone {zone}: {before:?} to {from:?} and back");
        } else {
            assert!(may_follow(from.condition, to.condition), "zone {zone}: {from:?} to {to:?}");
            let falls = to.wp_sectors < from.wp_sectors;
            assert!(!falls || to == ZoneState::EMPTY, "zone {zone}: {from:?} to {to:?}");
        }
        let count = |uses: fn(Condition) -> bool| {
            states.iter().filter(|[_, now]| uses(now.condition)).count().try_into().unwrap_or(u32::MAX)
        };
        let (open, active) = (count(Condition::is_open), count(Condition::is_active));
        let GeometryConfig { max_open_zones, max_active_zones, .. } = self.config;
        assert!(max_open_zones == 0 || open <= max_open_zones, "{open} zones are open: {states:?}");
        assert!(max_active_zones == 0 || active <= max_active_zones, "{active} zones are active: {states:?}");
    }

    /// What an undone reset or finish goes back to where it found `state`, which the end of the last write may have left to it to
    /// bring to rest. An implicitly open zone comes back closed.
    fn undone(&self, state: ZoneState) -> ZoneState {
        let condition = match state.condition {
            active if active.is_active() && state.wp_sectors == self.config.zone_capacity_sectors => {
                Condition::Full
            }
            Condition::ImplicitOpen | Condition::Closed if state.wp_sectors == 0 => Condition::Empty,
            Condition::ImplicitOpen => Condition::Closed,
            other => other,
        };
        ZoneState { condition, ..state }
    }
}

/// The transitions of the specification (5.2.6.3), and FINISH of an empty or closed zone (G1). Going on without a change of the
/// condition is the write pointer's way.
fn may_follow(from: Condition, to: Condition) -> bool {
    use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen};
    from == to
        || match from {
            Empty => matches!(to, ImplicitOpen | ExplicitOpen | Full),
            ImplicitOpen => matches!(to, Empty | ExplicitOpen | Closed | Full),
            ExplicitOpen => matches!(to, Empty | Closed | Full),
            Closed => matches!(to, Empty | ImplicitOpen | ExplicitOpen | Full),
            Full => to == Empty,
            _ => false,
        }
}

/// What a thread asks for.
#[derive(Clone, Copy, Debug)]
enum Request {
    WriteAtReportedWp { zone: u32, sectors: u32 },
    Append { zone: u32, sectors: u32 },
    Open { zone: u32 },
    Close { zone: u32 },
    Finish { zone: u32 },
    Reset { zone: u32 },
    ResetAll { zone: u32 },
    Read { zone: u32 },
}

/// What a thread has done.
#[derive(Debug, Default)]
struct Done {
    writes: u64,
    resets: u64,
    finishes: u64,
    /// Seen when a zone was reset or finished.
    gap_sectors: u64,
    woken: u64,
    busy: u64,
    open_resource: u64,
    active_resource: u64,
}

impl Done {
    fn add(&mut self, part: &Self) {
        self.writes += part.writes;
        self.resets += part.resets;
        self.finishes += part.finishes;
        self.gap_sectors += part.gap_sectors;
        self.woken += part.woken;
        self.busy += part.busy;
        self.open_resource += part.open_resource;
        self.active_resource += part.active_resource;
    }
}

struct Write {
    grant: Grant,
    sectors: Range<usize>,
    ticket: Ticket,
    has_failed: bool,
}

struct Worker {
    shared: Arc<Shared>,
    rng: Rng,
    writes: Vec<Write>,
    /// Resets (`true`) and finishes that were begun.
    begun: Vec<(Begun, bool)>,
    to_retry: VecDeque<Request>,
    done: Done,
}

impl Worker {
    fn new(shared: Arc<Shared>, rng: Rng) -> Self {
        Self {
            shared,
            rng,
            writes: Vec::new(),
            begun: Vec::new(),
            to_retry: VecDeque::new(),
            done: Done::default(),
        }
    }

    fn run(mut self) -> Done {
        for _ in 0..REQUESTS {
            if self.writes.len() > MOST_WRITES || self.rng.u8(..) < 80 {
                self.settle_one();
            }
            if self.rng.u8(..) < 100 {
                self.end_one();
            }
            let request = self.to_retry.pop_front().unwrap_or_else(|| self.random_request());
            self.request(request);
        }
        while !self.writes.is_empty() {
            self.settle_one();
        }
        while !self.begun.is_empty() {
            self.end_one();
        }
        self.done
    }

    fn random_request(&mut self) -> Request {
        let zone = self.rng.u32(..self.shared.geometry.zone_count());
        let sectors = self.shared.geometry.granularity_sectors() * self.rng.u32(1..=3);
        match self.rng.u8(..100) {
            0..40 => Request::Append { zone, sectors },
            40..65 => Request::WriteAtReportedWp { zone, sectors },
            65..72 => Request::Open { zone },
            72..79 => Request::Close { zone },
            79..83 => Request::Finish { zone },
            83..93 => Request::Reset { zone },
            93..95 => Request::ResetAll { zone },
            _ => Request::Read { zone },
        }
    }

    /// Makes a request. Its ticket is known before the table is asked: it may come back to another thread before this one
    /// hears that it has to wait.
    fn request(&mut self, request: Request) {
        let ticket = Ticket(self.shared.next_ticket.fetch_add(1, SeqCst));
        self.shared.waiting.lock().insert(ticket, request);
        let refusal = self.ask(request, ticket).err();
        match refusal {
            Some(Refusal::Busy) => {
                self.done.busy += 1;
                return;
            }
            Some(Refusal::OpenResource) => self.done.open_resource += 1,
            Some(Refusal::ActiveResource) => self.done.active_resource += 1,
            Some(Refusal::InvalidCommand | Refusal::UnalignedWritePointer) | None => {}
            Some(refusal @ (Refusal::Unsupported | Refusal::OutOfRange | Refusal::Unswept)) => {
                panic!("{request:?}: {refusal}")
            }
        }
        let known = self.shared.waiting.lock().remove(&ticket);
        assert!(
            known.is_some(),
            "the ticket of {request:?} came back, but the request did not wait: {refusal:?}"
        );
    }

    fn ask(&mut self, request: Request, ticket: Ticket) -> Result<(), Refusal> {
        let shared = self.shared.clone();
        let start = |zone| shared.geometry.zone_start(zone);
        match request {
            Request::WriteAtReportedWp { zone, sectors } => {
                let wp = shared.table.report(zone).unwrap().wp;
                // A full zone's write pointer is its end, where the next zone begins or the disk ends.
                if wp < start(zone) + u64::from(shared.geometry.zone_capacity_sectors(zone)) {
                    let grant = shared.table.admit_write(wp, sectors, ticket)?;
                    assert_eq!(grant.sector(), wp, "a write goes where it was sent");
                    self.claim(grant, sectors, ticket);
                }
            }
            Request::Append { zone, sectors } => {
                let grant = shared.table.admit_append(start(zone), sectors, ticket)?;
                self.claim(grant, sectors, ticket);
            }
            Request::Open { zone } => shared.table.open(start(zone), ticket)?,
            Request::Close { zone } => shared.table.close(start(zone), ticket)?,
            Request::Finish { zone } => {
                self.begin(shared.table.begin_finish(start(zone), ticket)?, false);
            }
            Request::Reset { zone } => {
                self.begin(shared.table.begin_reset(start(zone), ticket)?, true);
            }
            Request::ResetAll { zone } => {
                self.begin(shared.table.begin_reset_all(zone, ticket)?, true);
            }
            Request::Read { zone } => {
                let len = u64::from(shared.geometry.zone_len_sectors(zone));
                let plan = shared.table.admit_read(start(zone), len)?;
                assert_eq!(plan.stored_sectors + plan.zero_sectors, len);
                assert!(plan.stored_sectors <= shared.geometry.zone_capacity_sectors(zone).into());
            }
        }
        Ok(())
    }

    /// Each sector of a place belongs to nobody else in this life of the zone.
    fn claim(&mut self, grant: Grant, sectors: u32, ticket: Ticket) {
        let sectors = index(grant.sector())..index(grant.sector() + u64::from(sectors));
        self.shared.unsettled[self.shared.zone_of(grant.sector())].fetch_add(1, SeqCst);
        for sector in sectors.clone() {
            let owner = self.shared.owners[sector].swap(ticket.0, SeqCst);
            assert_eq!(owner, 0, "sector {sector} was given to {ticket:?} and to ticket {owner}");
        }
        self.done.writes += 1;
        self.writes.push(Write { grant, sectors, ticket, has_failed: false });
    }

    /// Goes on with one of the writes: it succeeds, or fails, or what a failure has left is put right.
    fn settle_one(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let chosen = self.rng.usize(..self.writes.len());
        let write = &mut self.writes[chosen];
        if !write.has_failed && self.rng.u8(..) < 56 {
            write.has_failed = true;
            for sector in write.sectors.clone() {
                self.shared.medium[sector].store(u64::MAX, SeqCst);
            }
            return;
        }
        let Write { grant, sectors, ticket, has_failed } = self.writes.swap_remove(chosen);
        let zone = self.shared.zone_of(grant.sector());
        for sector in sectors {
            let mut owner = ticket.0;
            if has_failed {
                // From the call on the place may be somebody else's.
                owner = 0;
                let life = self.shared.lives[zone].load(SeqCst);
                self.shared.failed_in[sector].store(life, SeqCst);
            }
            self.shared.medium[sector].store(owner, SeqCst);
            let before = self.shared.owners[sector].swap(owner, SeqCst);
            assert_eq!(before, ticket.0, "sector {sector} is no longer the one that {ticket:?} got");
        }
        self.shared.unsettled[zone].fetch_sub(1, SeqCst);
        let Settled { woken, reread: None } = self.shared.table.settle(grant, !has_failed) else {
            unreachable!("no device keeps these zones")
        };
        self.wake(woken);
    }

    fn begin(&mut self, begun: Option<Begun>, is_reset: bool) {
        let Some(begun) = begun else { return };
        self.assert_settled(&begun);
        self.done.gap_sectors += self.shared.check_content(begun.zone()).gap_sectors;
        self.begun.push((begun, is_reset));
    }

    /// Nobody else has a place in the zone, and nobody gets one before the end.
    fn assert_settled(&self, begun: &Begun) {
        let unsettled = self.shared.unsettled[index(begun.zone().into())].load(SeqCst);
        assert_eq!(unsettled, 0, "writes under way in zone {} at its reset or finish", begun.zone());
    }

    fn end_one(&mut self) {
        let Some((begun, is_reset)) = self.begun.pop() else {
            return;
        };
        self.assert_settled(&begun);
        let zone = begun.zone();
        let undo = self.rng.u8(..) < 64;
        if is_reset {
            self.done.resets += 1;
        } else {
            self.done.finishes += 1;
        }
        if is_reset && !undo {
            for sector in self.shared.sectors_of(zone) {
                self.shared.owners[sector].store(0, SeqCst);
                self.shared.medium[sector].store(0, SeqCst);
            }
            self.shared.lives[index(zone.into())].fetch_add(1, SeqCst);
        }
        // Nobody else changes the zone before this end does.
        self.shared.watch.undoing[index(zone.into())].store(undo, SeqCst);
        let end = if undo { ResetEnd::Undone } else { ResetEnd::Done };
        let Settled { woken, reread: None } = self.shared.table.end(begun, end) else {
            unreachable!("no device keeps these zones")
        };
        self.wake(woken);
    }

    fn wake(&mut self, woken: Vec<Ticket>) {
        for ticket in woken {
            self.done.woken += 1;
            let request = self.shared.waiting.lock().remove(&ticket);
            let Some(request) = request else {
                panic!("{ticket:?} came back, but nobody waits under this number");
            };
            self.to_retry.push_back(request);
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}
