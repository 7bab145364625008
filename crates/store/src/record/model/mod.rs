//! What a disk with a write-back cache has after a power cut: the model behind replay and cut.
//!
//! # The rules
//! A change (a write, or zeros) has begun, has ended well, or has ended badly. A flush makes durable what had ended well when it
//! began. Then a power cut leaves:
//!
//! - *Conventional sectors*, and those of a disk without zones: what the last flush made durable, or any later version, each
//!   block by itself.
//! - *A sequential zone*: its write pointer on any block from where the last flush, or its finish, has seen it, up to the end of
//!   what was written, and below it what was written there. A block whose write has not ended well, or was under way when
//!   the flush began that saw data behind it, is there or zeros: a gap. Zones go independently of each other, except that
//!   never more of them are active than may be.
//! - *A reset or finish* that is under way: there or not. One that was answered is there.
//! - Open zones are closed.

mod pick;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use virtio_zbd_zones::{Condition, Geometry, SECTOR_LEN_BYTES, ZoneState};

pub use pick::Keep;
pub(super) use pick::{Cut, Piece};

/// Where bytes that were written can be found.
pub(super) trait Content: Clone + PartialEq {
    /// The same, from so many bytes further on.
    fn at(&self, skip_bytes: u64) -> Self;
}

/// What the model remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// All content, to make a disk from nothing.
    Everything,
    /// Only what a cut could still change, to change a disk that has the rest.
    Doubtful,
}

/// The disk as far as a power cut is concerned.
pub(super) struct Model<V> {
    shape: Shape,
    memory: Memory,
    /// Counts what was heard.
    clock: u64,
    /// Sequential zones that something is known of.
    zones: BTreeMap<u32, Zone<V>>,
    /// Sectors that can be written anywhere, and what may be in each, in the order in which the writes began.
    sectors: BTreeMap<u64, Vec<Version<V>>>,
    /// Those of them that have more than one version.
    doubtful: BTreeSet<u64>,
    /// Changes under way.
    changes: HashMap<u64, Underway>,
    /// Commits under way.
    commits: HashMap<u64, Committing>,
    /// Blocks of sequential zones whose write a flush has caught under way: zone, block, change.
    caught: Vec<(u32, u32, u64)>,
    next_life: u64,
}

/// The disk's shape and where it started from.
pub(super) struct Shape {
    pub(super) capacity_bytes: u64,
    pub(super) geometry: Option<Geometry>,
    /// The state of each zone at the beginning; none for a disk without zones.
    pub(super) states: Vec<ZoneState>,
}

impl Shape {
    fn state(&self, zone: u32) -> ZoneState {
        let state = usize::try_from(zone).ok().and_then(|zone| self.states.get(zone));
        state.copied().unwrap_or(ZoneState::EMPTY)
    }

    /// Sectors that can be written anywhere come before this one.
    pub(super) fn free_end(&self) -> u64 {
        let capacity = self.capacity_bytes / SECTOR;
        let Some(geometry) = &self.geometry else { return capacity };
        geometry.zone_start(geometry.config().conventional_zones).min(capacity)
    }

    /// Length of a block in sectors: what is written in one piece.
    pub(super) fn block_sectors(&self) -> u32 {
        self.geometry.as_ref().map_or(1, Geometry::granularity_sectors)
    }

    /// Where a change falls. `None`: nowhere that a device would put it.
    pub(super) fn place(&self, offset_bytes: u64, len_bytes: u64) -> Option<Place> {
        let end_bytes = offset_bytes.checked_add(len_bytes).filter(|&end| end <= self.capacity_bytes)?;
        if len_bytes == 0 || !offset_bytes.is_multiple_of(SECTOR) || !len_bytes.is_multiple_of(SECTOR) {
            return None;
        }
        let sectors = offset_bytes / SECTOR..end_bytes / SECTOR;
        let Some(geometry) = self.geometry.as_ref().filter(|_| sectors.end > self.free_end()) else {
            return Some(Place::Free(sectors));
        };
        let zone = geometry.zone_of(sectors.start)?;
        let start = geometry.zone_start(zone);
        let (first, end) = (sectors.start - start, sectors.end - start);
        let block = u64::from(self.block_sectors());
        let fits = !geometry.is_conventional(zone)
            && end <= geometry.zone_capacity_sectors(zone).into()
            && first.is_multiple_of(block)
            && end.is_multiple_of(block);
        let number = |sectors: u64| u32::try_from(sectors / block).ok();
        fits.then(|| Some(Place::Zone { zone, blocks: number(first)?..number(end)? }))?
    }
}

const SECTOR: u64 = SECTOR_LEN_BYTES as u64;

/// Where a change falls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Sectors that can be written anywhere.
    Free(Range<u64>),
    /// Blocks of one sequential zone, counted from its start.
    Zone { zone: u32, blocks: Range<u32> },
}

struct Underway {
    place: Place,
    /// Zeros over what a failed write has left, where it is in a sequential zone.
    clears: bool,
}

/// What may be in a sector.
struct Version<V> {
    /// `None`: zeros.
    content: Option<V>,
    change: u64,
    begun: u64,
    ended: Option<u64>,
    ok: bool,
}

struct Zone<V> {
    now: Life<V>,
    /// What it was before a reset that is under way.
    before: Option<Life<V>>,
}

/// A zone between two resets.
struct Life<V> {
    number: u64,
    published: ZoneState,
    durable: ZoneState,
    /// End of what was written well, in sectors.
    written_sectors: u32,
    /// Blocks from the zone's start. One that is missing was never written; or, where only doubts are remembered, is there.
    cells: BTreeMap<u32, Cell<V>>,
}

/// A block of a sequential zone.
struct Cell<V> {
    /// `None`: zeros.
    content: Option<V>,
    change: u64,
    ended: Option<u64>,
    ok: bool,
    /// A flush began while its write was under way, and none has after it.
    caught: bool,
}

impl<V> Cell<V> {
    fn is_sure(&self) -> bool {
        self.ended.is_some() && self.ok && !self.caught
    }
}

struct Committing {
    begun: u64,
    flush: bool,
    /// What becomes durable: zone, life, state.
    states: Vec<(u32, u64, ZoneState)>,
    finished: Vec<u32>,
    reset: Vec<u32>,
}

impl<V: Content> Model<V> {
    pub(super) fn new(shape: Shape, memory: Memory) -> Self {
        Self {
            shape,
            memory,
            clock: 0,
            zones: BTreeMap::new(),
            sectors: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            changes: HashMap::new(),
            commits: HashMap::new(),
            caught: Vec::new(),
            next_life: 1,
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What was on the disk at the beginning: durable.
    pub(super) fn base(&mut self, offset_bytes: u64, len_bytes: u64, content: &V) {
        match self.shape.place(offset_bytes, len_bytes) {
            Some(Place::Free(sectors)) => {
                for (skip, sector) in (0..).zip(sectors) {
                    self.sectors.insert(sector, vec![Version::first(Some(content.at(skip * SECTOR)))]);
                }
            }
            Some(Place::Zone { zone, blocks }) => {
                let block_bytes = u64::from(self.shape.block_sectors()) * SECTOR;
                let life = &mut self.zone(zone).now;
                for (skip, block) in (0..).zip(blocks) {
                    let content = Some(content.at(skip * block_bytes));
                    let cell = Cell { content, change: 0, ended: Some(0), ok: true, caught: false };
                    life.cells.insert(block, cell);
                }
            }
            None => {}
        }
    }

    /// Change `id` begins. `content` is what it writes; `None`: zeros. `old` is asked for what is in a sector of which nothing is
    /// known.
    pub(super) fn begin(
        &mut self,
        id: u64,
        offset_bytes: u64,
        len_bytes: u64,
        content: Option<&V>,
        mut old: impl FnMut(u64) -> Option<V>,
    ) {
        self.clock += 1;
        let begun = self.clock;
        let Some(place) = self.shape.place(offset_bytes, len_bytes) else { return };
        let mut clears = false;
        match &place {
            // Zeros over what is zero change nothing, and their range may be as long as the disk.
            Place::Free(sectors) if content.is_none() && self.memory == Memory::Everything => {
                for (&sector, versions) in self.sectors.range_mut(sectors.clone()) {
                    versions.push(Version { content: None, change: id, begun, ended: None, ok: false });
                    self.doubtful.insert(sector);
                }
            }
            Place::Free(sectors) => {
                for (skip, sector) in (0..).zip(sectors.clone()) {
                    let versions =
                        self.sectors.entry(sector).or_insert_with(|| vec![Version::first(old(sector))]);
                    let content = content.map(|content| content.at(skip * SECTOR));
                    versions.push(Version { content, change: id, begun, ended: None, ok: false });
                    self.doubtful.insert(sector);
                }
            }
            Place::Zone { zone, blocks } => match content {
                Some(content) => {
                    let block_bytes = u64::from(self.shape.block_sectors()) * SECTOR;
                    let life = &mut self.zone(*zone).now;
                    for (skip, block) in (0..).zip(blocks.clone()) {
                        let content = Some(content.at(skip * block_bytes));
                        let cell = Cell { content, change: id, ended: None, ok: false, caught: false };
                        life.cells.insert(block, cell);
                    }
                }
                None => clears = true,
            },
        }
        self.changes.insert(id, Underway { place, clears });
    }

    /// Change `id` has ended.
    pub(super) fn end(&mut self, id: u64, ok: bool) {
        self.clock += 1;
        let now = self.clock;
        let Some(Underway { place, clears }) = self.changes.remove(&id) else { return };
        let (remember, block_sectors) = (self.memory == Memory::Everything, self.shape.block_sectors());
        match place {
            Place::Free(sectors) => {
                let versions = self.sectors.range_mut(sectors).flat_map(|(_, versions)| versions);
                for version in versions.filter(|version| version.change == id) {
                    (version.ended, version.ok) = (Some(now), ok);
                }
            }
            Place::Zone { zone, blocks } => {
                let life = &mut self.zone(zone).now;
                if ok && !clears {
                    life.written_sectors = life.written_sectors.max(blocks.end * block_sectors);
                }
                for block in blocks {
                    if clears && ok {
                        let cell =
                            Cell { content: None, change: id, ended: Some(now), ok: true, caught: false };
                        life.cells.insert(block, cell);
                    }
                    let Some(cell) = life.cells.get_mut(&block).filter(|cell| cell.change == id) else {
                        continue;
                    };
                    (cell.ended, cell.ok) = (Some(now), ok);
                    if cell.is_sure() && !remember {
                        life.cells.remove(&block);
                    }
                }
            }
        }
    }

    /// `zone` is in `state` now.
    pub(super) fn publish(&mut self, zone: u32, state: ZoneState) {
        self.clock += 1;
        let conventional = self.shape.geometry.as_ref().is_none_or(|geometry| geometry.is_conventional(zone));
        if conventional {
            return;
        }
        self.next_life += 1;
        let number = self.next_life;
        let zone = self.zone(zone);
        let used = zone.now.published.condition == Condition::Full || zone.now.published.wp_sectors != 0;
        if state == ZoneState::EMPTY && used && zone.before.is_none() {
            let life = std::mem::replace(&mut zone.now, Life::new(number, ZoneState::EMPTY));
            zone.before = Some(life);
        } else if state != ZoneState::EMPTY
            && let Some(before) = zone.before.take()
        {
            // The reset could not be made durable: it was none.
            zone.now = Life { published: state, ..before };
        } else {
            zone.now.published = state;
        }
    }

    /// Commit `id` begins.
    pub(super) fn commit_begin(&mut self, id: u64, flush: bool, finished: &[u32], reset: &[u32]) {
        self.clock += 1;
        let mut states = Vec::new();
        if flush {
            for (&zone, Zone { now, before }) in &self.zones {
                states.push((zone, now.number, now.published));
                states.extend(before.as_ref().map(|before| (zone, before.number, before.published)));
            }
            for (&id, underway) in &self.changes {
                let Place::Zone { zone, blocks } = &underway.place else { continue };
                let Some(life) = self.zones.get_mut(zone).map(|zone| &mut zone.now) else { continue };
                for block in blocks.clone() {
                    if let Some(cell) = life.cells.get_mut(&block).filter(|cell| cell.change == id) {
                        cell.caught = true;
                        self.caught.push((*zone, block, id));
                    }
                }
            }
        }
        for &zone in finished {
            let life = &self.zone(zone).now;
            let state = (zone, life.number, life.published);
            states.push(state);
        }
        let (finished, reset) = (finished.to_vec(), reset.to_vec());
        self.commits.insert(id, Committing { begun: self.clock, flush, states, finished, reset });
    }

    /// Commit `id` has ended.
    pub(super) fn commit_end(&mut self, id: u64, ok: bool) {
        self.clock += 1;
        let Some(commit) = self.commits.remove(&id).filter(|_| ok) else { return };
        for (zone, number, state) in commit.states {
            let Some(state) =
                self.shape.geometry.as_ref().map(|geometry| state.after_restart(geometry, zone))
            else {
                break;
            };
            let zone_of = self.zone(zone);
            let lives = [Some(&mut zone_of.now), zone_of.before.as_mut()];
            if let Some(life) = lives.into_iter().flatten().find(|life| life.number == number) {
                life.durable = state;
            }
        }
        for zone in commit.reset {
            let zone = self.zone(zone);
            zone.before = None;
            zone.now.durable = ZoneState::EMPTY;
            zone.now.written_sectors = 0;
            zone.now.cells.clear();
        }
        self.settle_caught(commit.begun, |zone| commit.flush || commit.finished.contains(&zone));
        if commit.flush {
            self.settle_sectors(commit.begun);
        }
    }

    /// A flush of these zones that began at `begun` has made durable what had ended before it.
    fn settle_caught(&mut self, begun: u64, is_flushed: impl Fn(u32) -> bool) {
        let remember = self.memory == Memory::Everything;
        let zones = &mut self.zones;
        self.caught.retain(|&(zone, block, change)| {
            if !is_flushed(zone) {
                return true;
            }
            let Some(zone) = zones.get_mut(&zone) else { return false };
            let life = match &mut zone.before {
                Some(before) if before.cells.get(&block).is_some_and(|cell| cell.change == change) => before,
                _ => &mut zone.now,
            };
            let Some(cell) = life.cells.get_mut(&block).filter(|cell| cell.change == change) else {
                return false;
            };
            if cell.ended.is_none_or(|ended| ended > begun) {
                return true;
            }
            cell.caught = false;
            if cell.is_sure() && !remember {
                life.cells.remove(&block);
            }
            false
        });
    }

    fn settle_sectors(&mut self, begun: u64) {
        let remember = self.memory == Memory::Everything;
        let sectors = &mut self.sectors;
        self.doubtful.retain(|sector| {
            let Some(versions) = sectors.get_mut(sector) else { return false };
            let durable = versions.iter().filter(|v| v.ok && v.ended.is_some_and(|ended| ended < begun));
            let newest = durable.map(|version| version.begun).max().unwrap_or(0);
            // Of two that were under way at once either may have come last.
            versions.retain(|version| version.ended.is_none_or(|ended| ended >= newest));
            let doubtful = versions.len() > 1;
            if !doubtful && !remember {
                sectors.remove(sector);
            }
            doubtful
        });
    }

    fn zone(&mut self, zone: u32) -> &mut Zone<V> {
        let shape = &self.shape;
        self.zones.entry(zone).or_insert_with(|| Zone { now: Life::new(0, shape.state(zone)), before: None })
    }
}

impl<V> Version<V> {
    fn first(content: Option<V>) -> Self {
        Self { content, change: 0, begun: 0, ended: Some(0), ok: true }
    }
}

impl<V> Life<V> {
    fn new(number: u64, state: ZoneState) -> Self {
        let (written_sectors, cells) = (state.wp_sectors, BTreeMap::new());
        Self { number, published: state, durable: state, written_sectors, cells }
    }
}
