//! What was done to a disk, and the rules of what a power cut may leave of it, read naively.

use std::collections::BTreeSet;
use std::ops::Range;

use virtio_zbd_zones::{Condition, Geometry, ZoneState};

use crate::{BLOCK, ZONE_BLOCKS};

/// What was done, in the words of the test. The index in `History::done` is the time.
#[derive(Clone, Debug)]
pub enum Done {
    /// Blocks from the disk's start get this tag.
    Begin {
        blocks: Range<u64>,
        tag: u64,
    },
    End {
        tag: u64,
    },
    Publish {
        zone: u32,
        state: ZoneState,
    },
    CommitBegin {
        flush: bool,
        finished: Vec<u32>,
        reset: Vec<u32>,
    },
    CommitEnd {
        begin: usize,
    },
}

/// A zone's state as a restart finds it, and the tags of its blocks below the write pointer (0: zeros).
pub type Found = (ZoneState, Vec<u64>);

#[derive(Default)]
pub struct History {
    pub done: Vec<Done>,
}

/// A write, as the history has it.
pub struct Write {
    pub begin: usize,
    pub end: Option<usize>,
    pub blocks: Range<u64>,
    pub tag: u64,
}

/// The rules, read naively: everything is looked up in the whole history each time.
impl History {
    pub fn writes(&self, moment: usize) -> Vec<Write> {
        let mut writes = Vec::new();
        for (begin, done) in self.done[..moment].iter().enumerate() {
            let Done::Begin { blocks, tag } = done else { continue };
            let is_end = |done: &Done| matches!(done, Done::End { tag: other } if other == tag);
            let end = self.done[..moment].iter().position(is_end);
            writes.push(Write { begin, end, blocks: blocks.clone(), tag: *tag });
        }
        writes
    }

    /// Commits that have ended: when they began, and what they were.
    pub fn commits(&self, moment: usize) -> Vec<(usize, bool, Vec<u32>, Vec<u32>)> {
        let ended = self.done[..moment].iter().filter_map(|done| match done {
            Done::CommitEnd { begin } => Some(*begin),
            _ => None,
        });
        ended
            .map(|begin| match &self.done[begin] {
                Done::CommitBegin { flush, finished, reset } => {
                    (begin, *flush, finished.clone(), reset.clone())
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// What may be in a block that can be written anywhere.
    pub fn allowed_block(&self, moment: usize, block: u64, base: u64) -> BTreeSet<u64> {
        let writes: Vec<Write> =
            self.writes(moment).into_iter().filter(|write| write.blocks.contains(&block)).collect();
        let flushes: Vec<usize> =
            self.commits(moment).into_iter().filter(|commit| commit.1).map(|commit| commit.0).collect();
        // Gone is what was over before another began that was over before a flush began.
        let gone = |end: usize| {
            writes.iter().any(|newer| {
                newer.begin >= end && newer.end.is_some_and(|end| flushes.iter().any(|&flush| flush > end))
            })
        };
        let mut allowed: BTreeSet<u64> =
            writes.iter().filter(|write| !write.end.is_some_and(gone)).map(|write| write.tag).collect();
        if !gone(0) {
            allowed.insert(base);
        }
        allowed
    }

    /// The state of a zone at a time, and since when it is in its life: the time of the last reset's publishing.
    pub fn published(&self, moment: usize, zone: u32, first: ZoneState) -> (ZoneState, usize) {
        let (mut now, mut since) = (first, 0);
        for (at, done) in self.done[..moment].iter().enumerate() {
            if let Done::Publish { zone: other, state } = done
                && *other == zone
            {
                let written = now.wp_sectors != 0 || now.condition == Condition::Full;
                if *state == ZoneState::EMPTY && written {
                    since = at + 1;
                }
                now = *state;
            }
        }
        (now, since)
    }

    /// What a zone may be.
    pub fn allowed_zone(
        &self,
        moment: usize,
        zone: u32,
        first: &Found,
        geometry: &Geometry,
    ) -> BTreeSet<Key> {
        let (_, since) = self.published(moment, zone, first.0);
        let mut allowed = self.allowed_life(moment, zone, since, first, geometry);
        let reset_ended =
            self.commits(moment).iter().any(|commit| commit.0 >= since && commit.3.contains(&zone));
        if since > 0 && !reset_ended {
            // The life before, up to its reset; flushes count as long as they end.
            let (_, before) = self.published(since - 1, zone, first.0);
            let old = self.allowed_life_until(moment, since - 1, zone, before, first, geometry);
            allowed.extend(old);
        }
        allowed
    }

    pub fn allowed_life(
        &self,
        moment: usize,
        zone: u32,
        since: usize,
        first: &Found,
        geometry: &Geometry,
    ) -> BTreeSet<Key> {
        self.allowed_life_until(moment, moment, zone, since, first, geometry)
    }

    /// What a zone may be at `moment` if it is in the life that began at `since` and had its last news at `until`.
    pub fn allowed_life_until(
        &self,
        moment: usize,
        until: usize,
        zone: u32,
        since: usize,
        first: &Found,
        geometry: &Geometry,
    ) -> BTreeSet<Key> {
        let start = u64::from(zone) * ZONE_BLOCKS;
        let at = |time: usize| self.published(time.min(until), zone, first.0).0;
        let base = if since == 0 { first.clone() } else { (ZoneState::EMPTY, Vec::new()) };
        let mut durable = base.0;
        for (begin, flush, finished, _) in self.commits(moment) {
            if begin >= since && (flush || finished.contains(&zone)) {
                durable = at(begin).after_restart(geometry, zone);
            }
        }
        let writes: Vec<Write> = self
            .writes(moment)
            .into_iter()
            .filter(|write| write.begin >= since && write.begin < until)
            .filter(|write| write.blocks.start >= start && write.blocks.start < start + ZONE_BLOCKS)
            .collect();
        let now = at(moment);
        let sectors = u32::try_from(BLOCK / 512).unwrap();
        let blocks_of = |state: ZoneState| u64::from(state.wp_sectors / sectors);
        let special = |state: ZoneState| state.condition == Condition::Full;
        let mut states = Vec::new();
        if special(durable) {
            states.push(durable);
        } else {
            let reach = writes.iter().map(|write| write.blocks.end - start).max().unwrap_or(0);
            for blocks in blocks_of(durable)..=reach.max(blocks_of(now)).max(blocks_of(durable)) {
                let wp_sectors = u32::try_from(blocks).unwrap() * sectors;
                states.push(
                    ZoneState { condition: Condition::Closed, wp_sectors }.after_restart(geometry, zone),
                );
            }
            if special(now) {
                states.push(now);
            }
        }
        let commits = self.commits(moment);
        let mut allowed = BTreeSet::new();
        for state in states {
            let mut contents = vec![Vec::new()];
            for block in 0..blocks_of(state) {
                let write = writes.iter().rfind(|write| write.blocks.contains(&(start + block)));
                let tags = match write {
                    None => vec![base.1.get(usize::try_from(block).unwrap()).copied().unwrap_or(0)],
                    Some(write) => {
                        let sure = write.end.is_some_and(|end| {
                            // No flush began in it, or another one has after it.
                            let covers = |flush: bool, finished: &[u32]| flush || finished.contains(&zone);
                            let caught = (write.begin..end).any(|time| {
                                matches!(&self.done[time], Done::CommitBegin { flush: true, .. })
                            });
                            !caught
                                || commits.iter().any(|(begin, flush, finished, _)| {
                                    *begin > end && covers(*flush, finished)
                                })
                        });
                        if sure { vec![write.tag] } else { vec![0, write.tag] }
                    }
                };
                contents = contents
                    .into_iter()
                    .flat_map(|content: Vec<u64>| {
                        tags.iter().map(move |&tag| {
                            let mut longer = content.clone();
                            longer.push(tag);
                            longer
                        })
                    })
                    .collect();
            }
            allowed.extend(contents.into_iter().map(|content| (state.to_bits(), content)));
        }
        allowed
    }
}

/// A [`Found`] that can be put in order.
pub type Key = (u64, Vec<u64>);
