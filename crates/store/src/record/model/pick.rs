//! One of the states that a power cut may leave.

use fastrand::Rng;
use virtio_zbd_zones::{Condition, ZoneState};

use super::{Content, Life, Model, Place, SECTOR, Version, Zone};

/// What a power cut leaves of what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All that was answered, as after a kill.
    All,
    /// Nothing: what was flushed, and finishes and resets that were answered.
    None,
    /// What this seed says. Every allowed state has a seed.
    Random(u64),
}

/// A disk after a power cut.
#[derive(Debug, PartialEq)]
pub(in crate::record) struct Cut<V> {
    /// The state of each zone; none for a disk without zones.
    pub(in crate::record) states: Vec<ZoneState>,
    /// What lies where, in ascending order. What is in no piece is zero; or, where the model remembers doubts only, as it is.
    pub(in crate::record) pieces: Vec<Piece<V>>,
}

/// A stretch of the disk.
#[derive(Debug, PartialEq)]
pub(in crate::record) struct Piece<V> {
    pub(in crate::record) offset_bytes: u64,
    pub(in crate::record) len_bytes: u64,
    /// `None`: zeros.
    pub(in crate::record) content: Option<V>,
}

/// The zones can't be brought into a state that the disk allows: what was heard of it can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::record) struct TooManyActive {
    pub(in crate::record) active: usize,
}

/// What a zone may be after a cut.
struct Choices {
    /// The lowest and the highest write pointer, in sectors.
    wp_sectors: (u32, u32),
    /// A state that is not told by its write pointer alone: finished, given up.
    other: Option<ZoneState>,
    /// The write pointer says nothing: only `other`.
    only_other: bool,
}

/// What a zone is after a cut.
#[derive(Clone, Copy)]
struct Choice {
    state: ZoneState,
    /// A reset under way is not there.
    before: bool,
}

impl<V: Content> Model<V> {
    /// A state that a power cut now may leave. Blocks of `block_sectors` are whole, in zones at least as many sectors as the
    /// zones' own blocks have.
    pub(in crate::record) fn pick(&self, keep: Keep, block_sectors: u32) -> Result<Cut<V>, TooManyActive> {
        let mut dice = Dice::new(keep);
        let mut states = self.shape.states.clone();
        let mut pieces = Pieces(Vec::new());
        self.pick_sectors(&mut dice, block_sectors.max(1).into(), &mut pieces);
        let chosen = self.pick_zones(&mut dice)?;
        for (&index, choice) in self.zones.keys().zip(&chosen) {
            if let Some(state) = usize::try_from(index).ok().and_then(|index| states.get_mut(index)) {
                *state = choice.state;
            }
            self.pick_blocks(index, *choice, &mut dice, &mut pieces);
        }
        Ok(Cut { states, pieces: pieces.0 })
    }

    fn pick_sectors(&self, dice: &mut Dice, block_sectors: u64, pieces: &mut Pieces<V>) {
        // Sectors of one block that were written by the same changes stay together.
        let mut block = u64::MAX;
        let mut picked: Vec<(Vec<u64>, usize)> = Vec::new();
        for (&sector, versions) in &self.sectors {
            if sector / block_sectors != block {
                block = sector / block_sectors;
                picked.clear();
            }
            let index = match versions.len() {
                1 => 0,
                _ => {
                    let changes: Vec<u64> = versions.iter().map(|version| version.change).collect();
                    match picked.iter().find(|(others, _)| *others == changes) {
                        Some((_, index)) => *index,
                        None => {
                            let index = dice.version(versions);
                            picked.push((changes, index));
                            index
                        }
                    }
                }
            };
            if let Some(version) = versions.get(index) {
                pieces.push(sector * SECTOR, SECTOR, version.content.clone());
            }
        }
    }

    /// A choice for each zone of `self.zones`, together within what the disk allows.
    fn pick_zones(&self, dice: &mut Dice) -> Result<Vec<Choice>, TooManyActive> {
        let Some(geometry) = &self.shape.geometry else { return Ok(Vec::new()) };
        let mut chosen: Vec<Choice> =
            self.zones.iter().map(|(&index, zone)| self.pick_zone(index, zone, dice)).collect();
        let limit = match geometry.max_active_zones() {
            0 => return Ok(chosen),
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        // Zones that nothing was heard of are what they were.
        let is_active = |state: &ZoneState| state.condition.is_active();
        let untouched = (0..).zip(&self.shape.states).filter(|(index, _)| !self.zones.contains_key(index));
        let untouched = untouched.filter(|(_, state)| is_active(state)).count();
        let mut active = untouched + chosen.iter().filter(|choice| is_active(&choice.state)).count();
        // One zone was closed for another to be opened, and the first is back where it was. As many as need be are taken as they
        // were at the end, where the limit was kept.
        let mut order: Vec<usize> = (0..chosen.len()).collect();
        dice.shuffle(&mut order);
        for index in order {
            if active <= limit {
                break;
            }
            let Some((choice, (zone_index, zone))) = chosen.get_mut(index).zip(self.zones.iter().nth(index))
            else {
                continue;
            };
            active -= usize::from(is_active(&choice.state));
            let state = zone.now.published.after_restart(geometry, *zone_index);
            *choice = Choice { state, before: false };
            active += usize::from(is_active(&choice.state));
        }
        if active <= limit { Ok(chosen) } else { Err(TooManyActive { active }) }
    }

    fn pick_zone(&self, index: u32, zone: &Zone<V>, dice: &mut Dice) -> Choice {
        let before = zone.before.is_some() && dice.old();
        let life = if before { zone.before.as_ref().unwrap_or(&zone.now) } else { &zone.now };
        let choices = self.choices(index, life);
        let (low, high) = choices.wp_sectors;
        let state = match choices.other {
            // A kill leaves what was published.
            _ if dice.keep == Keep::All => life.published,
            Some(other) if choices.only_other && other == life.durable => other,
            Some(_) if choices.only_other && dice.old() => life.durable,
            Some(other) if choices.only_other => other,
            Some(other) if dice.new_state() => other,
            _ => {
                let blocks = (high - low) / self.shape.block_sectors();
                let wp_sectors = low + dice.below_or_at(blocks) * self.shape.block_sectors();
                ZoneState { condition: Condition::Closed, wp_sectors }
            }
        };
        let state =
            self.shape.geometry.as_ref().map_or(state, |geometry| state.after_restart(geometry, index));
        Choice { state, before }
    }

    fn choices(&self, index: u32, life: &Life<V>) -> Choices {
        let special = |state: ZoneState| {
            matches!(state.condition, Condition::Full | Condition::ReadOnly | Condition::Offline)
        };
        let capacity =
            self.shape.geometry.as_ref().map_or(0, |geometry| geometry.zone_capacity_sectors(index));
        let low = life.durable.wp_sectors.min(capacity);
        if special(life.durable) {
            let other = if special(life.published) { life.published } else { life.durable };
            return Choices { wp_sectors: (low, low), other: Some(other), only_other: true };
        }
        let high = life.published.wp_sectors.max(life.written_sectors).max(self.reach(index, life));
        let full = life.published.condition == Condition::Full && life.published.wp_sectors == capacity;
        let other = Some(life.published).filter(|&state| special(state) && !full);
        Choices { wp_sectors: (low, high.clamp(low, capacity)), other, only_other: false }
    }

    /// How far writes under way reach in a zone.
    fn reach(&self, index: u32, life: &Life<V>) -> u32 {
        let ends = self.changes.iter().filter_map(|(id, underway)| match &underway.place {
            Place::Zone { zone, blocks } if *zone == index && !underway.clears => {
                let there = life.cells.get(&blocks.start).is_some_and(|cell| cell.change == *id);
                there.then_some(blocks.end * self.shape.block_sectors())
            }
            _ => None,
        });
        ends.max().unwrap_or(0)
    }

    fn pick_blocks(&self, index: u32, choice: Choice, dice: &mut Dice, pieces: &mut Pieces<V>) {
        let (Some(geometry), Some(zone)) = (&self.shape.geometry, self.zones.get(&index)) else { return };
        let life = if choice.before { zone.before.as_ref().unwrap_or(&zone.now) } else { &zone.now };
        let block_sectors = self.shape.block_sectors();
        let start = geometry.zone_start(index);
        for (&block, cell) in life.cells.range(..choice.state.wp_sectors.div_ceil(block_sectors)) {
            let there = cell.is_sure() || dice.block_there(cell.ended.is_some() && cell.ok);
            let content = cell.content.clone().filter(|_| there);
            let offset = (start + u64::from(block) * u64::from(block_sectors)) * SECTOR;
            pieces.push(offset, u64::from(block_sectors) * SECTOR, content);
        }
    }
}

/// Pieces in a row, neighbours joined.
struct Pieces<V>(Vec<Piece<V>>);

impl<V: Content> Pieces<V> {
    fn push(&mut self, offset_bytes: u64, len_bytes: u64, content: Option<V>) {
        if let Some(last) = self.0.last_mut()
            && last.offset_bytes + last.len_bytes == offset_bytes
            && last.content.as_ref().map(|last_content| last_content.at(last.len_bytes)) == content
        {
            last.len_bytes += len_bytes;
            return;
        }
        self.0.push(Piece { offset_bytes, len_bytes, content });
    }
}

/// Chance, or none.
struct Dice {
    keep: Keep,
    rng: Rng,
    /// How much the whole cut leans to what is new: sixteenths. Without it each large write would be torn in every cut.
    lean: u32,
}

impl Dice {
    fn new(keep: Keep) -> Self {
        let mut rng = Rng::with_seed(match keep {
            Keep::Random(seed) => seed,
            Keep::All | Keep::None => 0,
        });
        let lean = [0, 1, 8, 8, 15, 16][rng.usize(..6)];
        Self { keep, rng, lean }
    }

    fn leans_to_new(&mut self) -> bool {
        self.rng.u32(..16) < self.lean
    }

    /// Which of the versions, in the order in which they began.
    fn version<V>(&mut self, versions: &[Version<V>]) -> usize {
        let newest =
            || versions.iter().rposition(|version| version.ended.is_some() && version.ok).unwrap_or(0);
        match self.keep {
            Keep::All => newest(),
            Keep::None => 0,
            Keep::Random(_) => match self.rng.u8(..4) {
                0 | 1 if self.leans_to_new() => versions.len() - 1,
                0 | 1 => 0,
                _ => self.rng.usize(..versions.len()),
            },
        }
    }

    /// Whether a reset under way is not there.
    fn old(&mut self) -> bool {
        match self.keep {
            Keep::All => false,
            Keep::None => true,
            Keep::Random(_) => self.rng.bool(),
        }
    }

    /// Whether a finish under way is there.
    fn new_state(&mut self) -> bool {
        match self.keep {
            Keep::All => true,
            Keep::None => false,
            Keep::Random(_) => self.rng.bool(),
        }
    }

    fn below_or_at(&mut self, most: u32) -> u32 {
        match self.keep {
            Keep::All => most,
            Keep::None => 0,
            Keep::Random(_) => match self.rng.u8(..4) {
                0 | 1 if self.leans_to_new() => most,
                0 | 1 => 0,
                _ => self.rng.u32(..=most),
            },
        }
    }

    /// Whether a block is there that may be a gap.
    fn block_there(&mut self, answered: bool) -> bool {
        match self.keep {
            Keep::All => answered,
            Keep::None => false,
            Keep::Random(_) => self.rng.bool(),
        }
    }

    fn shuffle(&mut self, order: &mut [usize]) {
        self.rng.shuffle(order);
    }
}
