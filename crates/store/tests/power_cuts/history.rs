//! What a disk goes through, one operation after the other, with the oracle beside it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_zbd_store::{Commit, EngineChoice, ImageStore, Lane, LastUse, Store};
use virtio_zbd_zones::{Condition, Geometry, ZoneState};

use crate::common::{LaneExt, full, open};
use crate::disk::{Cuts, Disk, Host, Id, SECTOR_LEN, World, ZEROS};
use crate::explore::{Explorer, found_in, open_store};
use crate::medium::{Moments, PowerMedium, Watch};
use crate::mutation::{Mutation, Phase};
use crate::oracle::{Content, Oracle};

/// A kind of disk, which parts of it are used, and what may happen to them.
pub struct Setup {
    pub name: &'static str,
    pub geometry: Geometry,
    /// The sequential zones. Operations name them by their place here.
    pub zones: Vec<u32>,
    /// The conventional sectors, likewise.
    pub sectors: Vec<usize>,
    pub ops: Vec<Op>,
    /// How long it may become.
    pub grows_to: Option<u64>,
    pub host: Host,
}

/// One thing that happens to a disk.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// A write at the write pointer.
    Write { zone: usize, sectors: u32 },
    /// Of two writes under way the first fails: it leaves a gap below the write pointer.
    Gap { zone: usize },
    /// A write to conventional sectors.
    WriteConventional { sector: usize, sectors: usize },
    /// A commit, and what other lanes do while it runs.
    Commit { flush: bool, finish: Vec<usize>, reset: Vec<usize>, meanwhile: Vec<Meanwhile> },
    /// Its medium is bad: a zone goes out of use for good, read-only or offline.
    Retire { zone: usize, offline: bool },
    /// Closed and opened again.
    Reopen,
    /// Killed and opened again.
    Kill,
    /// A flush that finds the host full at its n-th page, and fails; the disk goes on.
    FullHost { page: u32 },
    /// A flush of which the n-th sync fails; killed and opened again.
    FailingFlush { sync: u32 },
    /// The disk becomes this long, and other lanes write meanwhile.
    Grow { sectors: u64, meanwhile: Vec<Meanwhile> },
    /// The same, and the host is full at the n-th page: the disk goes on as it was.
    FullHostGrow { sectors: u64, page: u32 },
    /// The same, and the n-th sync fails; killed and opened again.
    FailingGrow { sectors: u64, sync: u32 },
}

/// One sector is written before the commit's n-th call that changes something (0: the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meanwhile {
    pub call: u32,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the write pointer of an active zone that has room and is not named in the commit.
    Zone(usize),
    Conventional(usize),
}

impl Op {
    pub fn flush() -> Self {
        Self::commit(true, &[], &[])
    }

    pub fn finish(zone: usize) -> Self {
        Self::commit(false, &[zone], &[])
    }

    pub fn grow(sectors: u64) -> Self {
        Self::Grow { sectors, meanwhile: Vec::new() }
    }

    pub fn reset(zones: &[usize]) -> Self {
        Self::commit(false, &[], zones)
    }

    pub fn commit(flush: bool, finish: &[usize], reset: &[usize]) -> Self {
        Self::Commit { flush, finish: finish.to_vec(), reset: reset.to_vec(), meanwhile: Vec::new() }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { zone, sectors } => write!(f, "write {sectors} to {zone}"),
            Self::Gap { zone } => write!(f, "gap in {zone}"),
            Self::WriteConventional { sector, sectors } => {
                write!(f, "write {sectors} at conventional {sector}")
            }
            Self::Commit { flush, finish, reset, meanwhile } => {
                let parts = [
                    flush.then(|| "flush".to_owned()),
                    (!finish.is_empty()).then(|| format!("finish {finish:?}")),
                    (!reset.is_empty()).then(|| format!("reset {reset:?}")),
                    (!meanwhile.is_empty()).then(|| format!("meanwhile {meanwhile:?}")),
                ];
                f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(" and "))
            }
            Self::Retire { zone, offline } => {
                write!(f, "{zone} goes {}", if *offline { "offline" } else { "read-only" })
            }
            Self::Reopen => f.write_str("close and open"),
            Self::Kill => f.write_str("kill and open"),
            Self::FullHost { page } => write!(f, "flush with the host full at page {page}"),
            Self::FailingFlush { sync } => write!(f, "flush of which sync {sync} fails, kill and open"),
            Self::Grow { sectors, meanwhile } => write!(f, "grow to {sectors} and meanwhile {meanwhile:?}"),
            Self::FullHostGrow { sectors, page } => {
                write!(f, "grow to {sectors} with the host full at page {page}")
            }
            Self::FailingGrow { sectors, sync } => {
                write!(f, "grow to {sectors}, of which sync {sync} fails, kill and open")
            }
        }
    }
}

/// A disk in use.
pub struct History {
    world: Arc<World>,
    mutation: Mutation,
    pub medium: Arc<PowerMedium>,
    pub boot: u8,
    store: Option<Arc<ImageStore>>,
    lane: Option<Lane>,
    pub oracle: Oracle,
    /// What a sector is written with depends on how often it was, so that equal histories give equal media.
    written: Vec<u32>,
}

/// What is wrong, and after which operation.
pub type Finding = String;

/// A write of another lane.
struct Other {
    call: u32,
    place: Place,
    zone: u32,
    state: ZoneState,
    sector: usize,
    id: Id,
    bytes: [u8; SECTOR_LEN],
    done: AtomicBool,
}

impl Other {
    fn act(&self, store: &ImageStore) {
        let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
        lane.write_now((self.sector * SECTOR_LEN) as u64, &self.bytes).unwrap();
        if let Place::Zone(_) = self.place {
            store.publish(self.zone, self.state);
        }
        self.done.store(true, Ordering::SeqCst);
    }
}

impl Setup {
    pub fn world(&self) -> Arc<World> {
        let largest = match self.grows_to {
            Some(sectors) => self.geometry.grown(sectors).unwrap(),
            None => self.geometry.clone(),
        };
        Arc::new(World::new(largest, self.grows_to.is_some(), self.host))
    }

    /// A new image, never opened.
    pub fn new_disk(&self, world: &Arc<World>) -> Disk {
        let medium = PowerMedium::new(world, Disk::new(vec![ZEROS; world.len()]), Mutation::None);
        medium.begin(Phase::Write);
        ImageStore::create_on(&*medium, self.geometry.clone()).unwrap();
        Disk::new(medium.disk().cache)
    }
}

impl History {
    /// A history that begins with the opening of a new image; that opening is looked at if there is a `probe`.
    pub fn begin(
        setup: &Setup,
        world: &Arc<World>,
        disk: Disk,
        probe: Option<&mut Explorer>,
        mutation: Mutation,
    ) -> Result<Self, Finding> {
        let mut history = Self {
            world: Arc::clone(world),
            mutation,
            medium: PowerMedium::new(world, disk, mutation),
            boot: 1,
            store: None,
            lane: None,
            oracle: Oracle::new(setup.geometry.clone(), &setup.zones, &setup.sectors),
            written: vec![0; usize::try_from(world.geometry.capacity_sectors()).unwrap()],
        };
        history.watch(&probe);
        history.open(LastUse::Closed)?;
        let oracle = history.oracle.clone();
        history.look(probe, &oracle, &oracle)?;
        Ok(history)
    }

    /// Does `op`, and looks at each of its moments through `probe`. `false`: it can't be done now.
    pub fn run(&mut self, op: &Op, mut probe: Option<&mut Explorer>) -> Result<bool, Finding> {
        if !self.is_possible(op) {
            return Ok(false);
        }
        self.watch(&probe);
        let before = self.oracle.clone();
        match op {
            Op::Write { zone, sectors } => self.write(*zone, *sectors, false)?,
            Op::Gap { zone } => self.write(*zone, 2, true)?,
            Op::WriteConventional { sector, sectors } => self.write_conventional(*sector, *sectors)?,
            Op::Commit { flush, finish, reset, meanwhile } => {
                let (during, outcome) = self.commit(*flush, finish, reset, meanwhile);
                outcome?;
                return self.look(probe, &before, &during).map(|()| true);
            }
            Op::Retire { zone, offline } => {
                let condition = if *offline { Condition::Offline } else { Condition::ReadOnly };
                self.oracle.zones[*zone].now.state.condition = condition;
                let (during, outcome) = self.publish_and_commit(false, &[*zone], &[], &[]);
                outcome?;
                return self.look(probe, &before, &during).map(|()| true);
            }
            Op::Reopen => {
                self.close()?;
                let mut during = before.clone();
                during.allow_now(|_| true);
                self.look(probe.as_deref_mut(), &before, &during)?;
                self.watch(&probe);
                self.open(LastUse::Closed)?;
                let oracle = self.oracle.clone();
                return self.look(probe, &oracle, &oracle).map(|()| true);
            }
            Op::Kill => {
                self.kill()?;
                let mut during = before.clone();
                during.allow_now(|_| true);
                return self.look(probe, &before, &during).map(|()| true);
            }
            Op::FullHost { page } => {
                self.medium.fail_page_after(Some(*page));
                let (during, outcome) = self.commit(true, &[], &[], &[]);
                self.medium.fail_page_after(None);
                if outcome.is_err() {
                    // Some pages may be on their way still.
                    self.oracle = during.clone();
                }
                return self.look(probe, &before, &during).map(|()| true);
            }
            Op::Grow { sectors, meanwhile } => {
                let (during, outcome) = self.grow(*sectors, meanwhile);
                outcome?;
                return self.look(probe, &before, &during).map(|()| true);
            }
            Op::FullHostGrow { sectors, page } => {
                self.medium.fail_page_after(Some(*page));
                let (during, outcome) = self.grow(*sectors, &[]);
                self.medium.fail_page_after(None);
                // Nobody has seen the longer one, and no power cut leaves it.
                let during = if outcome.is_err() { before.clone() } else { during };
                return self.look(probe, &before, &during).map(|()| true);
            }
            Op::FailingGrow { sectors, sync } => {
                self.medium.fail_sync_after(Some(*sync));
                let (during, outcome) = self.grow(*sectors, &[]);
                let during = self.after_failing_sync(during, outcome)?;
                return self.look_at_cuts(probe, &during).map(|()| true);
            }
            Op::FailingFlush { sync } => {
                self.medium.fail_sync_after(Some(*sync));
                let (during, outcome) = self.commit(true, &[], &[], &[]);
                let during = self.after_failing_sync(during, outcome)?;
                return self.look_at_cuts(probe, &during).map(|()| true);
            }
        }
        let during = self.oracle.clone();
        self.look(probe, &before, &during)?;
        Ok(true)
    }

    /// The power fails now, and the history goes on from what is left.
    pub fn crash(&mut self, rng: &mut fastrand::Rng) -> Result<(), Finding> {
        let disk = self.medium.disk();
        let medium = Cuts::of(&disk, &self.world).random(rng).medium();
        (self.store, self.lane) = (None, None);
        self.medium = PowerMedium::new(&self.world, Disk::new(medium), self.mutation);
        self.boot += 4;
        let store = Arc::new(open_store(&self.medium, self.boot)?);
        let found = found_in(&store, &self.medium);
        self.oracle.check(&found)?;
        self.oracle.adopt(&found);
        self.lane = Some(store.open_lane(EngineChoice::Sync).unwrap());
        self.store = Some(store);
        Ok(())
    }

    fn is_possible(&self, op: &Op) -> bool {
        let condition = |zone: usize| self.oracle.zones[zone].now.state.condition;
        match op {
            Op::Retire { zone, .. } => self.oracle.zones[*zone].index < self.oracle.geometry.zone_count(),
            Op::Write { zone, sectors } => self.oracle.room(*zone) >= *sectors,
            Op::Gap { zone } => self.oracle.room(*zone) >= 2,
            Op::Commit { finish, reset, meanwhile, .. } => {
                let may_be_written = |other: &Meanwhile| match other.place {
                    Place::Zone(zone) => {
                        condition(zone).is_active() && !finish.contains(&zone) && !reset.contains(&zone)
                    }
                    Place::Conventional(_) => true,
                };
                meanwhile.iter().all(may_be_written)
                    && finish.iter().all(|&zone| {
                        condition(zone).is_active()
                            || condition(zone) == Condition::Empty
                                && self.oracle.has_room()
                                && self.oracle.room(zone) > 0
                    })
                    && reset.iter().all(|&zone| condition(zone) != Condition::Empty)
            }
            Op::Grow { sectors, meanwhile } => {
                let may_be_written = |other: &Meanwhile| match other.place {
                    Place::Zone(zone) => condition(zone).is_active(),
                    Place::Conventional(_) => true,
                };
                *sectors > self.oracle.geometry.capacity_sectors() && meanwhile.iter().all(may_be_written)
            }
            Op::FullHostGrow { sectors, .. } | Op::FailingGrow { sectors, .. } => {
                *sectors > self.oracle.geometry.capacity_sectors()
            }
            _ => true,
        }
    }

    fn store(&self) -> &ImageStore {
        self.store.as_ref().unwrap()
    }

    fn watch(&self, probe: &Option<&mut Explorer>) {
        let watch = probe
            .as_ref()
            .map_or_else(Watch::default, |probe| Watch { cuts: true, kills: probe.limits.kills });
        self.medium.watch(watch);
    }

    /// Looks at the moments of what was just done, between `before` and now.
    fn look(
        &mut self,
        probe: Option<&mut Explorer>,
        before: &Oracle,
        during: &Oracle,
    ) -> Result<(), Finding> {
        let Some(explorer) = probe else { return Ok(()) };
        let Moments { cuts, kills } = self.medium.take_moments();
        self.medium.watch(Watch::default());
        explorer.boot = self.boot;
        for disk in cuts {
            explorer.cut_at(&disk, during)?;
        }
        if explorer.limits.kills {
            let killed = before.killed(&self.oracle);
            let cut_allowed = during.or(&killed);
            for disk in kills {
                explorer.kill_at(&disk, &killed, &cut_allowed)?;
            }
        }
        let disk = self.medium.disk();
        explorer.cut_at(&disk, &self.oracle)?;
        if explorer.limits.kills && self.store.is_some() {
            let killed = self.oracle.killed(&self.oracle);
            let cut_allowed = self.oracle.or(&killed);
            explorer.kill_at(&disk, &killed, &cut_allowed)?;
        }
        Ok(())
    }

    fn look_at_cuts(&mut self, probe: Option<&mut Explorer>, during: &Oracle) -> Result<(), Finding> {
        let Some(explorer) = probe else { return Ok(()) };
        explorer.boot = self.boot;
        let Moments { cuts, .. } = self.medium.take_moments();
        self.medium.watch(Watch::default());
        for disk in cuts {
            explorer.cut_at(&disk, during)?;
        }
        explorer.cut_at(&self.medium.disk(), &self.oracle)
    }

    /// New content for a sector of the disk.
    fn content(&mut self, sector: usize) -> (Id, [u8; SECTOR_LEN]) {
        self.written[sector] += 1;
        let tag = (sector as u64 + 1) << 32 | u64::from(self.written[sector]);
        let mut bytes = [0; SECTOR_LEN];
        for part in bytes.as_chunks_mut::<8>().0 {
            *part = tag.to_le_bytes();
        }
        (self.world.contents().id(&bytes), bytes)
    }

    fn write_sectors(&mut self, first: usize, sectors: usize) -> Result<Vec<Id>, Finding> {
        let (mut ids, mut all) = (Vec::new(), Vec::new());
        for sector in first..first + sectors {
            let (id, bytes) = self.content(sector);
            ids.push(id);
            all.extend_from_slice(&bytes);
        }
        let written = self.lane.as_mut().unwrap().write_now((first * SECTOR_LEN) as u64, &all);
        written.map_err(|error| format!("a write: {error}"))?;
        Ok(ids)
    }

    fn write(&mut self, zone: usize, sectors: u32, gap: bool) -> Result<(), Finding> {
        self.medium.begin(Phase::Write);
        let Content { state, .. } = self.oracle.zones[zone].now;
        let index = self.oracle.zones[zone].index;
        let start =
            usize::try_from(self.oracle.geometry.zone_start(index)).unwrap() + state.wp_sectors as usize;
        let skipped = usize::from(gap);
        let ids = self.write_sectors(start + skipped, sectors as usize - skipped)?;
        let now = &mut self.oracle.zones[zone].now;
        now.data.extend(std::iter::repeat_n(ZEROS, skipped).chain(ids));
        let state = self.state_at(index, state.wp_sectors + sectors);
        self.oracle.zones[zone].now.state = state;
        self.store().publish(index, state);
        Ok(())
    }

    fn write_conventional(&mut self, sector: usize, sectors: usize) -> Result<(), Finding> {
        self.medium.begin(Phase::Write);
        let first = self.oracle.sectors[sector].index;
        let ids = self.write_sectors(first, sectors)?;
        for (sector, id) in (sector..).zip(ids) {
            self.oracle.write_sector(sector, id);
        }
        Ok(())
    }

    /// What may be found while it runs, and how it ended.
    fn commit(
        &mut self,
        flush: bool,
        finish: &[usize],
        reset: &[usize],
        meanwhile: &[Meanwhile],
    ) -> (Oracle, Result<(), Finding>) {
        for &zone in finish {
            let state = &mut self.oracle.zones[zone].now.state;
            *state = full(state.wp_sectors);
        }
        for &zone in reset {
            self.oracle.zones[zone].now = Content::empty();
        }
        self.publish_and_commit(flush, finish, reset, meanwhile)
    }

    /// As [`commit`](Self::commit), of zones whose states the oracle has already.
    fn publish_and_commit(
        &mut self,
        flush: bool,
        finish: &[usize],
        reset: &[usize],
        meanwhile: &[Meanwhile],
    ) -> (Oracle, Result<(), Finding>) {
        let [finished, emptied] = [finish, reset]
            .map(|zones| zones.iter().map(|&zone| self.oracle.zones[zone].index).collect::<Vec<_>>());
        for &zone in finish.iter().chain(reset) {
            let zone = &self.oracle.zones[zone];
            self.store().publish(zone.index, zone.now.state);
        }
        let named = |zone: u32| flush || finished.contains(&zone) || emptied.contains(&zone);
        let mut during = self.oracle.clone();
        during.allow_now(named);
        let others = self.start_others(meanwhile);
        self.medium.begin(match (flush, finish, reset) {
            (true, ..) => Phase::Flush,
            (_, [], _) => Phase::Reset,
            _ => Phase::Finish,
        });
        let all = self.mutation == Mutation::ResetTakesAll && !reset.is_empty();
        let outcome = self.store().commit(&Commit {
            flush: flush || all,
            finished: &finished,
            reset: &emptied,
            ..Commit::default()
        });
        self.medium.end();
        self.medium.interleave(None);
        let done = match (outcome.durable, outcome.hole_failures.is_empty()) {
            (Ok(()), true) => Ok(()),
            other => Err(format!("a commit: {other:?}")),
        };
        if done.is_ok() {
            self.oracle.promise(named);
            if flush {
                self.oracle.promise_sectors();
            }
        }
        self.take_in(&others, &mut during);
        (during, done)
    }

    /// What came meanwhile is not promised.
    fn take_in(&mut self, others: &[Arc<Other>], during: &mut Oracle) {
        for other in others.iter().filter(|other| other.done.load(Ordering::SeqCst)) {
            match other.place {
                Place::Zone(zone) => {
                    let now = &mut self.oracle.zones[zone].now;
                    now.data.push(other.id);
                    now.state = other.state;
                }
                Place::Conventional(sector) => {
                    self.oracle.write_sector(sector, other.id);
                    during.write_sector(sector, other.id);
                }
            }
        }
    }

    /// Other lanes, which come in between the calls of the commit that follows.
    fn start_others(&mut self, meanwhile: &[Meanwhile]) -> Vec<Arc<Other>> {
        let mut others = Vec::new();
        for &Meanwhile { call, place } in meanwhile {
            let (sector, state) = match place {
                Place::Zone(zone) => {
                    let zone = &self.oracle.zones[zone];
                    let wp = zone.now.state.wp_sectors;
                    let start = usize::try_from(self.oracle.geometry.zone_start(zone.index)).unwrap();
                    (start + wp as usize, self.state_at(zone.index, wp + 1))
                }
                Place::Conventional(sector) => (self.oracle.sectors[sector].index, ZoneState::CONVENTIONAL),
            };
            let (id, bytes) = self.content(sector);
            let zone = self.oracle.geometry.zone_of(sector as u64).unwrap();
            others.push(Arc::new(Other {
                call,
                place,
                zone,
                state,
                sector,
                id,
                bytes,
                done: AtomicBool::new(false),
            }));
        }
        if !others.is_empty() {
            let (store, others) = (Arc::clone(self.store.as_ref().unwrap()), others.clone());
            let mut calls = 0..;
            self.medium.interleave(Some(Box::new(move || {
                let call = calls.next();
                others.iter().filter(|other| Some(other.call) == call).for_each(|other| other.act(&store));
            })));
        }
        others
    }

    /// The state of a zone that is written up to here.
    fn state_at(&self, zone: u32, wp_sectors: u32) -> ZoneState {
        let is_full = wp_sectors == self.oracle.geometry.zone_capacity_sectors(zone);
        if is_full { full(wp_sectors) } else { open(wp_sectors) }
    }

    fn close(&mut self) -> Result<(), Finding> {
        self.medium.begin(Phase::Close);
        let closed = self.store().close();
        self.medium.end();
        closed.map_err(|error| format!("closing: {error}"))?;
        (self.store, self.lane) = (None, None);
        self.oracle.restart();
        self.oracle.promise(|_| true);
        self.oracle.promise_sectors();
        Ok(())
    }

    fn kill(&mut self) -> Result<(), Finding> {
        (self.store, self.lane) = (None, None);
        self.oracle.restart();
        self.open(LastUse::Killed)?;
        self.oracle.promise(|_| true);
        self.oracle.promise_sectors();
        Ok(())
    }

    /// What may be found while it grows, and how that ended.
    fn grow(&mut self, sectors: u64, meanwhile: &[Meanwhile]) -> (Oracle, Result<(), Finding>) {
        let geometry = self.oracle.geometry.grown(sectors).unwrap();
        let mut during = self.oracle.clone();
        during.shapes.push(geometry.clone());
        let others = self.start_others(meanwhile);
        self.medium.begin(Phase::Grow);
        let grown = self.store().grow(sectors);
        self.medium.end();
        self.medium.interleave(None);
        if grown.is_ok() {
            self.oracle.grow(geometry);
        }
        self.take_in(&others, &mut during);
        (during, grown.map_err(|error| format!("growing: {error}")))
    }

    fn after_failing_sync(
        &mut self,
        during: Oracle,
        outcome: Result<(), Finding>,
    ) -> Result<Oracle, Finding> {
        self.medium.fail_sync_after(None);
        (self.store, self.lane) = (None, None);
        if outcome.is_ok() {
            // It had no such sync.
            return self.kill().map(|()| during);
        }
        let store = Arc::new(open_store(&self.medium, self.boot)?);
        let found = found_in(&store, &self.medium);
        during.check(&found).map_err(|why| format!("after a sync that failed: {why}"))?;
        self.oracle.shapes.clone_from(&during.shapes);
        self.oracle.adopt(&found);
        self.lane = Some(store.open_lane(EngineChoice::Sync).unwrap());
        self.store = Some(store);
        Ok(during)
    }

    /// Opens the image, which must hold exactly what it should.
    fn open(&mut self, last_use: LastUse) -> Result<(), Finding> {
        let boot = match (self.mutation, last_use) {
            (Mutation::LiveForgotten, LastUse::Killed) => self.boot + 1,
            _ => self.boot,
        };
        let store = open_store(&self.medium, boot)?;
        let found = found_in(&store, &self.medium);
        let exact = self.oracle.killed(&self.oracle);
        exact.check(&found).map_err(|why| format!("after {last_use:?}: {why}"))?;
        let how = store.info().map_err(|error| error.to_string())?.last_use;
        if how != last_use && self.mutation == Mutation::None {
            return Err(format!("it was left {last_use:?} and is found {how:?}"));
        }
        let store = Arc::new(store);
        self.lane = Some(store.open_lane(EngineChoice::Sync).unwrap());
        self.store = Some(store);
        Ok(())
    }
}
