//! Opens every state that a crash may leave, cuts the opening off again, and keeps what came of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use virtio_zbd_store::{CheckOptions, Commit, EngineChoice, ImageStore, LastUse, OpenOptions, Opens, Store};
use virtio_zbd_zones::{Condition, ZoneState};

use crate::common::LaneExt;
use crate::disk::{Cut, Cuts, Disk, Medium, SECTOR_LEN, World, fingerprint};
use crate::medium::{PowerMedium, Watch};
use crate::mutation::{Mutation, Phase};
use crate::oracle::{Found, Oracle};

/// How far one goes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How often in a row the power may fail while the image is being opened.
    pub recovery_cuts: u8,
    /// Of a moment with more cuts than this, so many are chosen at random.
    pub cuts_per_moment: u64,
    /// The same for an opening that is cut off.
    pub cuts_per_recovery: u64,
    /// Whether the process is also killed at each call.
    pub kills: bool,
}

/// How far one has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Moments at which the power was cut.
    pub moments: u64,
    /// Moments that had more cuts than were tried.
    pub sampled: u64,
    /// Cuts, as many as were tried.
    pub cuts: u64,
    /// Different media after a power cut that were opened.
    pub states: u64,
    /// Of these, how many a power cut in an opening has left.
    pub recovery_states: u64,
    /// Different disks after a kill that were opened.
    pub kills: u64,
    /// Different disks, ready again, on which the work went on.
    pub worked_on: u64,
}

pub struct Explorer {
    pub world: Arc<World>,
    pub mutation: Mutation,
    pub limits: Limits,
    pub counts: Counts,
    /// The boot in which the history runs; those after power cuts come behind it.
    pub boot: u8,
    /// Every medium ever opened after a power cut.
    distinct: HashSet<u128>,
    /// What comes of a medium after a power cut, with so many cut-off openings before the one that succeeds.
    cuts: HashMap<u128, (u8, Ends)>,
    kills: HashMap<u128, (Ends, Ends)>,
    worked: HashSet<u128>,
    outcomes: Vec<Outcome>,
    outcome_ids: HashMap<u64, Vec<u32>>,
}

/// How openings have ended.
type Outcome = Result<Found, String>;
type Ends = Arc<BTreeSet<u32>>;

impl Explorer {
    pub fn new(world: &Arc<World>, mutation: Mutation, limits: Limits) -> Self {
        Self {
            world: Arc::clone(world),
            mutation,
            limits,
            counts: Counts::default(),
            boot: 1,
            distinct: HashSet::new(),
            cuts: HashMap::new(),
            kills: HashMap::new(),
            worked: HashSet::new(),
            outcomes: Vec::new(),
            outcome_ids: HashMap::new(),
        }
    }

    /// Forgets what came of which medium, not how many there were.
    pub fn forget(&mut self) {
        self.cuts.clear();
        self.kills.clear();
        self.worked.clear();
        self.outcomes.clear();
        self.outcome_ids.clear();
    }

    /// The power fails at this moment, in every way.
    ///
    /// # Errors
    /// What was found is not what must be.
    pub fn cut_at(&mut self, disk: &Disk, allowed: &Oracle) -> Result<(), String> {
        self.counts.moments += 1;
        let mut checked = BTreeSet::new();
        let world = Arc::clone(&self.world);
        self.each_cut(&Cuts::of(disk, &world), self.limits.cuts_per_moment, |explorer, cut| {
            let ends = explorer.open_cut(cut, 0);
            explorer.check(&ends, allowed, &mut checked).map_err(|why| format!("power cut: {why}"))
        })
    }

    /// The process is killed at this moment. Its successor may be cut off by a power cut, which leaves what
    /// `cut_allowed` says.
    ///
    /// # Errors
    /// What was found is not what must be.
    pub fn kill_at(&mut self, disk: &Disk, allowed: &Oracle, cut_allowed: &Oracle) -> Result<(), String> {
        let (ends, cut_ends) = self.open_killed(disk, 1);
        self.check(&ends, allowed, &mut BTreeSet::new()).map_err(|why| format!("kill: {why}"))?;
        self.check(&cut_ends, cut_allowed, &mut BTreeSet::new())
            .map_err(|why| format!("kill, then power cut while opening: {why}"))
    }

    fn check(&self, ends: &Ends, allowed: &Oracle, checked: &mut BTreeSet<u32>) -> Result<(), String> {
        for &end in ends.iter() {
            if checked.insert(end) {
                self.outcomes[end as usize]
                    .as_ref()
                    .map_err(String::clone)
                    .and_then(|found| allowed.check(found))?;
            }
        }
        Ok(())
    }

    fn each_cut(
        &mut self,
        cuts: &Cuts<'_>,
        most: u64,
        mut each: impl FnMut(&mut Self, &Cut<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let count = cuts.count();
        self.counts.cuts += count.min(most);
        if count <= most {
            for index in 0..count {
                each(self, &cuts.get(index))?;
            }
        } else {
            self.counts.sampled += 1;
            let mut rng = fastrand::Rng::with_seed(self.counts.cuts);
            for _ in 0..most {
                each(self, &cuts.random(&mut rng))?;
            }
        }
        Ok(())
    }

    /// What may be found after this power cut, if the opening is cut off now and then.
    fn open_cut(&mut self, cut: &Cut<'_>, depth: u8) -> Ends {
        let key = cut.fingerprint;
        let deeper = self.limits.recovery_cuts.saturating_sub(depth);
        if let Some((known, ends)) = self.cuts.get(&key)
            && *known >= deeper
        {
            return Arc::clone(ends);
        }
        let medium = cut.medium();
        debug_assert_eq!(fingerprint(&medium), key);
        if self.distinct.insert(key) {
            self.counts.states += 1;
            self.counts.recovery_states += u64::from(depth > 0);
        }
        let boot = match self.mutation {
            Mutation::LiveTrusted => self.boot,
            _ => self.boot + 1 + depth,
        };
        let looked = key.is_multiple_of(8).then(|| look_only(&self.world, &medium, boot, self.mutation));
        let opened = self.open(Disk::new(medium), boot, Watch { cuts: deeper > 0, kills: false });
        let mut ends = BTreeSet::from([opened.end]);
        if let Some(looked) = looked
            && let Err(why) = looked.and_then(|states| self.agrees(&states, opened.end))
        {
            ends.insert(self.end(Err(why)));
        }
        for disk in opened.cuts {
            let world = Arc::clone(&self.world);
            let most = self.limits.cuts_per_recovery;
            let done = self.each_cut(&Cuts::of(&disk, &world), most, |explorer, cut| {
                ends.extend(explorer.open_cut(cut, depth + 1).iter());
                Ok(())
            });
            debug_assert!(done.is_ok());
        }
        let ends = Arc::new(ends);
        self.cuts.insert(key, (deeper, Arc::clone(&ends)));
        ends
    }

    /// What may be found on this disk after a kill, by an opening that succeeds in this boot, and by one that
    /// comes after a power cut.
    fn open_killed(&mut self, disk: &Disk, deeper: u8) -> (Ends, Ends) {
        let pending: Vec<u32> = disk
            .pending
            .iter()
            .flat_map(|change| [u32::try_from(change.number).unwrap(), change.id])
            .collect();
        let key = [&disk.cache, &disk.durable, &pending]
            .map(|list| fingerprint(list))
            .into_iter()
            .fold(u128::from(deeper), |key, part| key.rotate_left(17) ^ part);
        if let Some(ends) = self.kills.get(&key) {
            return ends.clone();
        }
        self.counts.kills += 1;
        let boot = if self.mutation == Mutation::LiveForgotten { self.boot + 1 } else { self.boot };
        let opened = self.open(disk.clone(), boot, Watch { cuts: true, kills: deeper > 0 });
        let (mut ends, mut cut_ends) = (BTreeSet::from([opened.end]), BTreeSet::new());
        for disk in opened.kills {
            let (more, more_cut) = self.open_killed(&disk, deeper - 1);
            ends.extend(more.iter());
            cut_ends.extend(more_cut.iter());
        }
        for disk in opened.cuts {
            let world = Arc::clone(&self.world);
            let most = self.limits.cuts_per_recovery;
            let done = self.each_cut(&Cuts::of(&disk, &world), most, |explorer, cut| {
                cut_ends.extend(explorer.open_cut(cut, 0).iter());
                Ok(())
            });
            debug_assert!(done.is_ok());
        }
        let ends = (Arc::new(ends), Arc::new(cut_ends));
        self.kills.insert(key, ends.clone());
        ends
    }

    /// Opens a disk and works on it.
    fn open(&mut self, disk: Disk, boot: u8, watch: Watch) -> Opened {
        let medium = PowerMedium::new(&self.world, disk, self.mutation);
        medium.watch(watch);
        let store = match open_store(&medium, boot) {
            Ok(store) => store,
            Err(error) => {
                let end = self.end(Err(format!("the image can't be opened: {error}")));
                return Opened { end, cuts: Vec::new(), kills: Vec::new() };
            }
        };
        let found = found_in(&store, &medium);
        let mut moments = medium.take_moments();
        medium.watch(Watch::default());
        let disk = medium.disk();
        let key = fingerprint(&disk.cache) ^ fingerprint(&disk.durable).rotate_left(64);
        if watch.cuts {
            moments.cuts.push(disk);
        }
        let mut outcome = Ok(found);
        if self.worked.insert(key) {
            self.counts.worked_on += 1;
            if let Ok(found) = &outcome
                && let Err(why) = work_on(&self.world, &medium, store, found.clone(), boot, self.mutation)
            {
                outcome = Err(format!("after an opening: {why}"));
            }
        }
        Opened { end: self.end(outcome), cuts: moments.cuts, kills: moments.kills }
    }

    /// Whether who only looks sees what who opens finds.
    fn agrees(&self, states: &[ZoneState], end: u32) -> Result<(), String> {
        match &self.outcomes[end as usize] {
            Ok(found) if found.states != states => {
                Err("opened for reading, the image has other states than opened for writing".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, outcome: Outcome) -> u32 {
        let key = match &outcome {
            Ok(found) => {
                let states = found.states.iter().flat_map(|state| {
                    let bits = state.to_bits();
                    [bits, bits >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap())
                });
                let capacity = u32::try_from(found.capacity_sectors).unwrap();
                let all = states.chain(found.data.iter().copied()).chain([capacity]);
                fingerprint(&all.collect::<Vec<_>>())
            }
            Err(why) => fingerprint(&why.bytes().map(u32::from).collect::<Vec<_>>()),
        };
        let ids = self.outcome_ids.entry(u64::try_from(key & u128::from(u64::MAX)).unwrap()).or_default();
        if let Some(&id) = ids.iter().find(|&&id| self.outcomes[id as usize] == outcome) {
            return id;
        }
        let id = u32::try_from(self.outcomes.len()).unwrap();
        ids.push(id);
        self.outcomes.push(outcome);
        id
    }
}

struct Opened {
    end: u32,
    cuts: Vec<Disk>,
    kills: Vec<Disk>,
}

pub fn found_in(store: &ImageStore, medium: &PowerMedium) -> Found {
    let capacity_sectors = store.capacity_bytes() / SECTOR_LEN as u64;
    Found { capacity_sectors, states: store.initial_states(), data: medium.data() }
}

pub fn open_store(medium: &Arc<PowerMedium>, boot: u8) -> Result<ImageStore, String> {
    medium.begin(Phase::Open);
    let options = OpenOptions { read_only: false, boot_id: Some([boot; 16]) };
    let opened = ImageStore::open_on(Arc::clone(medium) as _, options).map_err(|error| error.to_string());
    medium.end();
    opened
}

/// Opens the image for reading, and checks it: neither changes anything.
fn look_only(
    world: &Arc<World>,
    medium: &Medium,
    boot: u8,
    mutation: Mutation,
) -> Result<Vec<ZoneState>, String> {
    let (medium, before) = (PowerMedium::new(world, Disk::new(medium.clone()), mutation), medium);
    let boot_id = Some([boot; 16]);
    let opened = ImageStore::open_on(Arc::clone(&medium) as _, OpenOptions { read_only: true, boot_id });
    let store = opened.map_err(|error| format!("the image can't be opened for reading: {error}"))?;
    let states = store.initial_states();
    let report = ImageStore::check_on(&*medium, CheckOptions { boot_id, ..CheckOptions::default() });
    let report = report.map_err(|error| format!("the image can't be checked: {error}"))?;
    if report.opens != Opens::Yes {
        return Err(format!("the image can be opened, but a check says {:?}", report.findings));
    }
    let disk = medium.disk();
    if disk.cache != *before || !disk.pending.is_empty() {
        return Err("looking has changed the image".to_owned());
    }
    Ok(states)
}

/// The store that has come back takes writes, a flush and a reset, keeps them over a power cut, and can be
/// closed. `found` is what it has.
fn work_on(
    world: &Arc<World>,
    medium: &Arc<PowerMedium>,
    store: ImageStore,
    mut found: Found,
    boot: u8,
    mutation: Mutation,
) -> Result<(), String> {
    let geometry = store.geometry().unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    let most = geometry.max_active_zones() as usize;
    let mut active = found.states.iter().filter(|state| state.condition.is_active()).count();
    // The zones at the pages' ends, and all that have something in them.
    let zones: Vec<usize> = (0..found.states.len())
        .filter(|&zone| found.states[zone] != ZoneState::EMPTY || zone < 3 || zone + 2 > found.states.len())
        .collect();
    let bytes = [0x5a; SECTOR_LEN];
    let id = world.contents().id(&bytes);
    medium.begin(Phase::Write);
    for &zone in &zones {
        let state = &mut found.states[zone];
        let index = u32::try_from(zone).unwrap();
        let starts = state.condition == Condition::Empty;
        if state.condition != Condition::NotWp {
            if !state.condition.is_active() && !(starts && (most == 0 || active < most)) {
                continue;
            }
            active += usize::from(starts);
        }
        let sector = geometry.zone_start(index) + u64::from(state.wp_sectors);
        lane.write_now(sector * SECTOR_LEN as u64, &bytes).map_err(|error| format!("a write: {error}"))?;
        found.data[usize::try_from(sector).unwrap()] = id;
        if state.condition != Condition::NotWp {
            *state = ZoneState { condition: Condition::ImplicitOpen, wp_sectors: state.wp_sectors + 1 };
            store.publish(index, *state);
        }
    }
    medium.begin(Phase::Flush);
    let flushed = store.commit(&Commit { flush: true, ..Commit::default() }).durable;
    medium.end();
    flushed.map_err(|error| format!("a flush: {error}"))?;
    // Open zones stay open here and are closed over there.
    keeps(world, medium, &found, boot + 1, "a flush", mutation)?;
    if let Some(zone) = (0..found.states.len()).find(|&zone| is_resettable(found.states[zone])) {
        let index = u32::try_from(zone).unwrap();
        found.states[zone] = ZoneState::EMPTY;
        let start = usize::try_from(geometry.zone_start(index)).unwrap();
        found.data[start..start + geometry.zone_len_sectors(index) as usize].fill(0);
        store.publish(index, ZoneState::EMPTY);
        medium.begin(Phase::Reset);
        let outcome = store.commit(&Commit { reset: &[index], ..Commit::default() });
        medium.end();
        outcome.durable.map_err(|error| format!("a reset: {error}"))?;
        keeps(world, medium, &found, boot + 1, "a reset", mutation)?;
    }
    medium.begin(Phase::Close);
    let closed = store.close();
    medium.end();
    closed.map_err(|error| format!("closing: {error}"))?;
    let last_use = keeps(world, medium, &found, boot, "closing", mutation)?;
    if last_use != LastUse::Closed {
        return Err(format!("it was closed and is found as {last_use:?}"));
    }
    Ok(())
}

fn is_resettable(state: ZoneState) -> bool {
    state.condition.is_active() || state.condition == Condition::Full
}

/// The power fails and takes all that was not synced: this must be there.
fn keeps(
    world: &Arc<World>,
    medium: &PowerMedium,
    expected: &Found,
    boot: u8,
    after: &str,
    mutation: Mutation,
) -> Result<LastUse, String> {
    let medium = PowerMedium::new(world, Disk::new(medium.disk().durable), mutation);
    let store = open_store(&medium, boot)
        .map_err(|error| format!("after {after} the image can't be opened: {error}"))?;
    let (found, geometry) = (found_in(&store, &medium), store.geometry().unwrap());
    let states = (0..).zip(&expected.states).map(|(zone, state)| state.after_restart(&geometry, zone));
    let expected = Found { states: states.collect(), ..expected.clone() };
    if let Some(difference) = expected.difference(&found) {
        return Err(format!("after {after}, {difference}"));
    }
    Ok(store.info().map_err(|error| error.to_string())?.last_use)
}
