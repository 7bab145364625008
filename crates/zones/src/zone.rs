//! One zone: its condition, its write pointer, and the writes that are under way in it.

use alloc::vec::Vec;
use core::ops::Range;

use crate::answers::Ticket;
use crate::state::{Condition, ZoneState};

/// A zone. All positions are in sectors from the zone's start.
#[derive(Debug)]
pub(crate) struct Zone {
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
    /// Whether what the zone held before its last reset may still be on the medium, behind its write pointer.
    pub(crate) unswept: bool,
    /// What has been admitted and is not behind us yet, in order of position, without holes.
    in_flight: Vec<InFlight>,
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
    Done,
    Failed,
}

impl Zone {
    pub(crate) fn new(state: ZoneState) -> Self {
        Self {
            condition: state.condition,
            wp: state.wp_sectors,
            done: state.wp_sectors,
            opened_from: None,
            implicit_stamp: 0,
            settling_from: None,
            unswept: false,
            in_flight: Vec::new(),
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

    /// Whether nothing is under way: no write, no reset, no finish.
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_writes() && self.settling_from.is_none()
    }

    /// Whether a write is under way.
    pub(crate) fn has_writes(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether a new write or transition must wait: for a reset or finish under way, or behind others that wait already.
    pub(crate) fn must_wait(&self) -> bool {
        self.settling_from.is_some() || !self.waiting.is_empty()
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
        if let Some(entry) =
            self.in_flight.iter_mut().find(|e| e.range == *range && e.outcome == Outcome::Pending)
        {
            entry.outcome = if ok { Outcome::Done } else { Outcome::Failed };
        }
        if ok {
            self.done = self.done.max(range.end);
            self.opened_from = None;
        }
        while let Some(last) = self.in_flight.pop_if(|last| last.outcome == Outcome::Failed) {
            self.wp = last.range.start;
        }
        let done = self.done;
        let over = |e: &InFlight| match e.outcome {
            Outcome::Pending => false,
            Outcome::Done => true,
            Outcome::Failed => e.range.end <= done,
        };
        let finished = self.in_flight.iter().take_while(|e| over(e)).count();
        self.in_flight.drain(..finished);
    }

    /// Makes the zone what a reset leaves: nothing written.
    pub(crate) fn clear(&mut self) {
        self.condition = Condition::Empty;
        self.wp = 0;
        self.done = 0;
        self.opened_from = None;
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
        Zone::new(ZoneState::EMPTY)
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
