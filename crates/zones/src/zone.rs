//! One zone: its condition, its write pointer, and the writes that are under way in it.

use alloc::vec::Vec;
use core::ops::Range;

use crate::answers::{Begun, Ticket};
use crate::state::{Condition, ZoneState};

/// A zone. All positions are in sectors from the zone's start.
#[derive(Debug)]
pub(crate) struct Zone {
    /// How much of it can be written: more, once, where it was the last one of a disk that has grown.
    pub(crate) capacity_sectors: u32,
    pub(crate) condition: Condition,
    /// Where the next write goes: the end of everything that was admitted.
    wp: u32,
    /// End of the furthest write that is done: as far as a restart must find data.
    done: u32,
    /// The condition before the implicit open, as long as no write has succeeded since: what a failure goes back to.
    pub(crate) opened_from: Option<Condition>,
    /// When the zone was opened implicitly: its key in the list of zones that may be closed to make room.
    pub(crate) implicit_stamp: u64,
    /// Set while a reset or finish is being made durable: the condition that it would go back to, whose resources are
    /// still held.
    pub(crate) settling_from: Option<Condition>,
    /// A write has failed on the device that keeps the zone: only that device knows how far the zone is written and in which condition it is.
    pub(crate) in_doubt: bool,
    /// Whether what the zone held before its last reset may still be on the medium, behind its write pointer.
    pub(crate) unswept: bool,
    /// End of what was found here when the table was made and is here still: a reset takes it away. Writes of this table lie behind it.
    found: u32,
    /// What has been admitted and is not behind us yet, in order of position. Without holes, but for what was
    /// [taken in](Self::take_in) below the write pointer.
    in_flight: Vec<InFlight>,
    /// How many writes are under way that reserved no place: in a preferred zone only.
    anywhere: u32,
    /// Requests that wait for the zone to be free.
    pub(crate) waiting: Vec<Ticket>,
}

#[derive(Debug)]
struct InFlight {
    range: Range<u32>,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Pending,
    /// Pending, and nobody is there who would say how it ends.
    Left,
    Done,
    Failed,
}

impl Zone {
    pub(crate) fn new(state: ZoneState, capacity_sectors: u32) -> Self {
        Self {
            capacity_sectors,
            condition: state.condition,
            wp: state.wp_sectors,
            done: state.wp_sectors,
            opened_from: None,
            implicit_stamp: 0,
            settling_from: None,
            in_doubt: false,
            unswept: false,
            found: state.wp_sectors,
            in_flight: Vec::new(),
            anywhere: 0,
            waiting: Vec::new(),
        }
    }

    /// What a store must keep of the zone.
    pub(crate) fn state(&self) -> ZoneState {
        ZoneState { condition: self.condition, wp_sectors: self.done }
    }

    /// Where the next write goes, in sectors from the zone's start.
    pub(crate) fn wp(&self) -> u32 {
        self.wp
    }

    /// Whether nothing is under way: no write, no reset, no finish, no look at the device.
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_writes() && self.settling_from.is_none() && !self.in_doubt
    }

    /// Whether a write is under way.
    pub(crate) fn has_writes(&self) -> bool {
        !self.in_flight.is_empty() || self.anywhere != 0
    }

    /// Whether a new write or transition must wait: for a reset or finish under way, for the device's word, or behind others that wait already.
    pub(crate) fn must_wait(&self) -> bool {
        self.settling_from.is_some() || self.in_doubt || !self.waiting.is_empty()
    }

    /// Makes the zone busy in the condition that it is in, until the end of what is begun.
    pub(crate) fn settle_as(&mut self, zone: u32, before: ZoneState) -> Begun {
        self.settling_from = Some(self.condition);
        Begun { zone, before, room: None }
    }

    /// The device is to be asked as soon as nothing is under way in a zone in doubt: now, or at the end of the last write.
    pub(crate) fn begin_reread(&mut self, zone: u32) -> Option<Begun> {
        let now = self.in_doubt && !self.has_writes() && self.settling_from.is_none();
        now.then(|| self.settle_as(zone, self.state()))
    }

    /// Reserves `sectors` at the write pointer. The caller has checked that they fit.
    pub(crate) fn reserve(&mut self, sectors: u32) -> Range<u32> {
        let range = self.wp..self.wp + sectors;
        self.wp = range.end;
        self.in_flight.push(InFlight { range: range.clone(), outcome: Outcome::Pending });
        range
    }

    /// Takes in how the write at `range` ended.
    ///
    /// A failed write at the tail gives its place back. A failed write with data behind it can't: its range becomes a gap, which
    /// counts as written and reads as zeros.
    pub(crate) fn resolve(&mut self, range: &Range<u32>, ok: bool) {
        if !self.turn(range, Outcome::Pending, if ok { Outcome::Done } else { Outcome::Failed }) {
            return;
        }
        if ok {
            self.done = self.done.max(range.end);
            self.opened_from = None;
        }
        let done = self.done;
        let gives_back = |last: &mut InFlight| last.outcome == Outcome::Failed && last.range.end > done;
        while let Some(last) = self.in_flight.pop_if(gives_back) {
            self.wp = last.range.start;
        }
        let over = |e: &InFlight| match e.outcome {
            Outcome::Pending | Outcome::Left => false,
            Outcome::Done => true,
            Outcome::Failed => e.range.end <= done,
        };
        let finished = self.in_flight.iter().take_while(|e| over(e)).count();
        self.in_flight.drain(..finished);
    }

    /// A write of so many sectors begins that goes wherever the driver says.
    pub(crate) fn begin_anywhere(&mut self, sectors: u32) {
        self.anywhere += u32::from(sectors != 0);
    }

    /// One of them has ended: well, and in this zone here, or not. What a failure has left is below the write pointer or never shows.
    pub(crate) fn end_anywhere(&mut self, done: Option<u32>) {
        self.anywhere = self.anywhere.saturating_sub(1);
        if let Some(end) = done {
            self.done = self.done.max(end);
            self.wp = self.wp.max(self.done);
            self.opened_from = None;
        }
    }

    /// Whether `range` lies in what was found when the table was made, and is there still.
    pub(crate) fn is_kept(&self, range: &Range<u32>) -> bool {
        range.end <= self.found
    }

    /// Takes in a write that was under way below the write pointer when the last table went, for somebody to [adopt](Self::adopt). False: its place
    /// is not where it could be, or not free.
    pub(crate) fn take_in(&mut self, range: Range<u32>) -> bool {
        let at = self.in_flight.partition_point(|e| e.range.end <= range.start);
        let is_free = self.in_flight.get(at).is_none_or(|next| range.end <= next.range.start);
        let restored = is_free && !range.is_empty() && self.is_kept(&range) && self.settling_from.is_none();
        if restored {
            self.in_flight.insert(at, InFlight { range, outcome: Outcome::Left });
        }
        restored
    }

    /// Whether there is nobody who would say how the write at `range` ends.
    pub(crate) fn is_left(&self, range: &Range<u32>) -> bool {
        self.in_flight.iter().any(|e| e.range == *range && e.outcome == Outcome::Left)
    }

    /// Somebody will say how the write at `range` ends that was taken in. False: there is none.
    pub(crate) fn adopt(&mut self, range: &Range<u32>) -> bool {
        self.turn(range, Outcome::Left, Outcome::Pending)
    }

    fn turn(&mut self, range: &Range<u32>, from: Outcome, to: Outcome) -> bool {
        let entry = self.in_flight.iter_mut().find(|e| e.range == *range && e.outcome == from);
        entry.map(|entry| entry.outcome = to).is_some()
    }

    /// Makes the zone what a reset leaves: nothing written.
    pub(crate) fn clear(&mut self) {
        self.condition = Condition::Empty;
        self.wp = 0;
        self.done = 0;
        self.found = 0;
        self.opened_from = None;
    }

    /// Makes the zone what somebody else says that it is.
    pub(crate) fn take_over(&mut self, state: ZoneState) {
        self.restore(state);
        self.found = self.found.min(state.wp_sectors);
        self.opened_from = None;
        self.in_doubt = false;
        self.unswept = false;
    }

    /// Puts back what [`clear`](Self::clear) or a finish changed.
    pub(crate) fn restore(&mut self, state: ZoneState) {
        self.condition = state.condition;
        self.wp = state.wp_sectors;
        self.done = state.wp_sectors;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        Zone::new(ZoneState::EMPTY, 64)
    }

    #[test]
    fn writes_that_end_out_of_order_leave_no_gap() {
        let mut z = zone();
        let (a, b) = (z.reserve(8), z.reserve(8));
        z.resolve(&b, true);
        assert_eq!((z.wp(), z.state().wp_sectors), (16, 16));
        assert!(z.has_writes(), "the first is still under way");
        z.resolve(&a, true);
        assert!(!z.has_writes());
    }

    #[test]
    fn a_failure_at_the_tail_gives_its_place_back() {
        let mut z = zone();
        let (a, b) = (z.reserve(8), z.reserve(8));
        z.resolve(&b, false);
        assert_eq!(z.wp(), 8);
        z.resolve(&a, true);
        assert_eq!((z.wp(), z.state().wp_sectors), (8, 8));
        assert!(!z.has_writes());
    }

    #[test]
    fn a_failure_before_data_becomes_a_gap_whichever_ends_first() {
        for failure_first in [true, false] {
            let mut z = zone();
            let (a, b) = (z.reserve(8), z.reserve(8));
            let ends = if failure_first { [(&a, false), (&b, true)] } else { [(&b, true), (&a, false)] };
            for (range, ok) in ends {
                z.resolve(range, ok);
            }
            assert_eq!((z.wp(), z.state().wp_sectors, z.has_writes()), (16, 16, false));
        }
    }

    #[test]
    fn failures_one_after_the_other_roll_back_to_the_first() {
        let mut z = zone();
        let (a, b, c) = (z.reserve(8), z.reserve(8), z.reserve(8));
        z.resolve(&b, false);
        z.resolve(&a, false);
        assert_eq!(z.wp(), 24, "the tail is still under way");
        z.resolve(&c, false);
        assert_eq!((z.wp(), z.has_writes()), (0, false));
    }

    #[test]
    fn what_was_under_way_below_the_write_pointer_is_taken_up_again() {
        let found = ZoneState { condition: Condition::Closed, wp_sectors: 32 };
        let mut z = Zone::new(found, 64);
        assert!(z.take_in(16..24) && z.take_in(0..8), "in any order");
        for taken in [16..24, 12..17, 23..32, 0..8, 7..9] {
            assert!(!z.take_in(taken.clone()), "{taken:?} is not free");
        }
        for never in [32..40, 24..33, 8..8] {
            assert!(!z.take_in(never.clone()), "{never:?} was not there");
        }
        let new = z.reserve(8);
        assert!(!z.adopt(&new) && !z.adopt(&(0..4)) && z.adopt(&(0..8)) && !z.adopt(&(0..8)));
        // Neither a failure nor a success below the write pointer moves it.
        z.resolve(&(0..8), false);
        z.resolve(&new, true);
        assert_eq!((z.wp(), z.state().wp_sectors, z.has_writes()), (40, 40, true));
        assert!(z.adopt(&(16..24)));
        z.resolve(&(16..24), true);
        assert_eq!((z.wp(), z.state().wp_sectors, z.has_writes()), (40, 40, false));

        // The failure that is the last one under way.
        assert!(z.take_in(24..32) && z.adopt(&(24..32)));
        z.resolve(&(24..32), false);
        assert_eq!((z.wp(), z.state().wp_sectors, z.has_writes()), (40, 40, false));
        z.clear();
        assert!(!z.take_in(0..8), "it was reset");
    }

    #[test]
    fn what_is_not_under_way_has_no_end() {
        let mut z = Zone::new(ZoneState { condition: Condition::Closed, wp_sectors: 16 }, 64);
        assert!(z.take_in(0..8));
        for nobody_s in [0..8, 8..16, 16..24] {
            z.resolve(&nobody_s, true);
            assert_eq!((z.wp(), z.state().wp_sectors, z.has_writes()), (16, 16, true));
        }
    }

    #[test]
    fn a_place_that_was_given_back_is_used_again() {
        let mut z = zone();
        let (a, b) = (z.reserve(8), z.reserve(8));
        z.resolve(&b, false);
        let again = z.reserve(16);
        assert_eq!(again, 8..24);
        z.resolve(&again, true);
        z.resolve(&a, true);
        assert_eq!(z.state().wp_sectors, 24);
    }
}
