//! The order of writes to one zone: one after the other, each at the end of the one before.

use std::collections::VecDeque;
use std::mem;

/// What a zone's writes wait for. Positions are in bytes from the disk's start.
///
/// Places are given out above, in order, to several queues at once; here they arrive in any order. The device takes a write only at its
/// write pointer. So one write (or several that follow one another, joined) is under way at a time: whoever makes it
/// *has the turn*, and sees to the ones that have arrived meanwhile.
#[derive(Debug)]
pub(crate) struct Sequence<T> {
    /// Where the next write goes.
    next: u64,
    /// Counts the new beginnings: who had the turn before one has it no more.
    epoch: u32,
    turn: Turn,
    /// In order of their places.
    waiting: VecDeque<Placed<T>>,
}

/// A write and its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placed<T> {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) write: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing is under way.
    Free,
    Taken,
    /// A write has failed: nothing goes on before the zone begins anew.
    Failed,
}

/// What becomes of a write that has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival<T> {
    /// It is to be made now: its maker has the turn of this epoch.
    Go(Placed<T>, u32),
    /// Whoever has the turn will see to it.
    Waits,
    /// One before it has failed: it can't be made.
    Fails(Placed<T>),
}

impl<T> Sequence<T> {
    /// Of a zone whose next write goes to `next`.
    pub(crate) fn new(next: u64) -> Self {
        Self { next, epoch: 0, turn: Turn::Free, waiting: VecDeque::new() }
    }

    /// A write has arrived.
    pub(crate) fn arrive(&mut self, placed: Placed<T>) -> Arrival<T> {
        // Nobody is given a place that is written already.
        if self.turn == Turn::Failed || placed.start < self.next {
            return Arrival::Fails(placed);
        }
        if self.turn == Turn::Free && placed.start == self.next {
            self.turn = Turn::Taken;
            return Arrival::Go(placed, self.epoch);
        }
        let at = self.waiting.partition_point(|other| other.start < placed.start);
        self.waiting.insert(at, placed);
        Arrival::Waits
    }

    /// What had the turn is written up to `end`. Returns whether there is more to be made by whoever has the turn; if not, it has it no more.
    pub(crate) fn written(&mut self, epoch: u32, end: u64) -> bool {
        if !self.has_turn(epoch) {
            return false;
        }
        self.next = end;
        self.go_on()
    }

    /// The writes that are to be made next, as long as each follows the one before and `joins` says so of the ones before and the next. Empty: the
    /// turn is over.
    pub(crate) fn take(
        &mut self,
        epoch: u32,
        mut joins: impl FnMut(&[Placed<T>], &Placed<T>) -> bool,
    ) -> Vec<Placed<T>> {
        let mut taken: Vec<Placed<T>> = Vec::new();
        if !self.has_turn(epoch) || !self.go_on() {
            return taken;
        }
        let mut end = self.next;
        while let Some(first) = self.waiting.front()
            && first.start == end
            && (taken.is_empty() || joins(&taken, first))
        {
            end += first.len;
            taken.extend(self.waiting.pop_front());
        }
        taken
    }

    /// Who has the turn can't go on: who is first in line?
    pub(crate) fn first_in_line(&mut self, epoch: u32) -> Option<&T> {
        let goes_on = self.has_turn(epoch) && self.go_on();
        self.waiting.front().filter(|_| goes_on).map(|placed| &placed.write)
    }

    /// A write has failed. Returns all that can't be made any more.
    pub(crate) fn fail(&mut self, epoch: u32) -> Vec<Placed<T>> {
        if self.epoch != epoch {
            return Vec::new();
        }
        self.turn = Turn::Failed;
        mem::take(&mut self.waiting).into()
    }

    /// Where something waits that `is_gone`: it will not be made, nor what is behind it. Returns all that can't be made any more.
    pub(crate) fn withdraw(&mut self, is_gone: impl Fn(&T) -> bool) -> Vec<Placed<T>> {
        let epoch = self.epoch;
        match self.waiting.iter().any(|placed| is_gone(&placed.write)) {
            true => self.fail(epoch),
            false => Vec::new(),
        }
    }

    /// The zone begins anew: nothing is under way in it, and its next write goes to `next`.
    pub(crate) fn restart(&mut self, next: u64) {
        debug_assert!(self.waiting.is_empty() && self.turn != Turn::Taken, "nothing is under way");
        self.next = next;
        self.epoch = self.epoch.wrapping_add(1);
        self.turn = Turn::Free;
    }

    fn has_turn(&self, epoch: u32) -> bool {
        self.turn == Turn::Taken && self.epoch == epoch
    }

    /// Whether the next write is there; if not, the turn is free.
    fn go_on(&mut self) -> bool {
        let more = self.waiting.front().is_some_and(|first| first.start == self.next);
        if !more {
            self.turn = Turn::Free;
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(start: u64) -> Placed<u64> {
        Placed { start, len: 8, write: start }
    }

    fn starts(placed: &[Placed<u64>]) -> Vec<u64> {
        placed.iter().map(|placed| placed.start).collect()
    }

    #[test]
    fn what_arrives_in_any_order_goes_in_the_order_of_its_places() {
        let mut zone = Sequence::new(0);
        assert_eq!(zone.arrive(placed(16)), Arrival::Waits);
        assert_eq!(zone.arrive(placed(8)), Arrival::Waits);
        let Arrival::Go(first, epoch) = zone.arrive(placed(0)) else { panic!("it is the next one") };
        assert_eq!(first.start, 0);
        assert_eq!(zone.arrive(placed(32)), Arrival::Waits);
        assert!(zone.written(epoch, 8));
        assert_eq!(starts(&zone.take(epoch, |_, _| true)), [8, 16], "32 does not follow");
        assert!(!zone.written(epoch, 24), "the turn is over");
        assert!(matches!(zone.arrive(placed(24)), Arrival::Go(..)));
        assert!(zone.written(epoch, 32));
        assert_eq!(starts(&zone.take(epoch, |_, _| false)), [32]);
    }

    #[test]
    fn one_at_a_time_where_nothing_joins() {
        let mut zone = Sequence::new(0);
        let Arrival::Go(_, epoch) = zone.arrive(placed(0)) else { panic!() };
        for start in [8, 16, 24] {
            assert_eq!(zone.arrive(placed(start)), Arrival::Waits);
        }
        for end in [8, 16, 24] {
            assert!(zone.written(epoch, end));
            assert_eq!(starts(&zone.take(epoch, |_, _| false)), [end]);
        }
        assert!(!zone.written(epoch, 32));
    }

    #[test]
    fn a_failure_ends_what_is_behind_it_until_the_zone_begins_anew() {
        let mut zone = Sequence::new(0);
        let Arrival::Go(_, epoch) = zone.arrive(placed(0)) else { panic!() };
        assert_eq!(zone.arrive(placed(8)), Arrival::Waits);
        assert_eq!(starts(&zone.fail(epoch)), [8]);
        assert!(matches!(zone.arrive(placed(16)), Arrival::Fails(_)), "it was given its place before");
        assert!(!zone.written(epoch, 8) && zone.take(epoch, |_, _| true).is_empty());
        zone.restart(4);
        let Arrival::Go(_, next) = zone.arrive(placed(4)) else { panic!("it goes on where the device is") };
        assert!(!zone.written(epoch, 12) && zone.take(epoch, |_, _| true).is_empty(), "an old turn");
        assert!(zone.fail(epoch).is_empty());
        assert!(!zone.written(next, 12));
    }

    #[test]
    fn who_leaves_takes_those_behind_along() {
        let mut zone = Sequence::new(0);
        let Arrival::Go(_, epoch) = zone.arrive(placed(0)) else { panic!() };
        assert!(matches!(
            (zone.arrive(placed(8)), zone.arrive(placed(16))),
            (Arrival::Waits, Arrival::Waits)
        ));
        assert!(zone.withdraw(|write| *write == 32).is_empty());
        assert!(zone.written(epoch, 8));
        assert_eq!(zone.first_in_line(epoch), Some(&8));
        assert_eq!(starts(&zone.withdraw(|write| *write == 16)), [8, 16]);
        assert_eq!(zone.first_in_line(epoch), None);
    }
}
