//! The zone table and the naive disk side by side: every operation is done on both, and everything that can be seen of the table is
//! compared with the disk.

mod disks;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use fastrand::Rng;
use virtio_zbd_zones::{
    Begun, Geometry, Grant, Observer, Refusal, ResetEnd, Retirement, Ticket, ZoneKind, ZoneState, ZoneTable,
};

use crate::hooked::HookedMutex;
use crate::model::{NaiveDisk, Sector, at};

/// Whether requests overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Each request has ended before the next is made.
    OneAfterTheOther,
    /// Writes, resets and finishes end whenever it pleases them.
    ManyUnderWay,
}

/// What was met, so that a test can tell that it was not idle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) operations: u64,
    pub(crate) done: u64,
    pub(crate) invalid: u64,
    pub(crate) unaligned: u64,
    pub(crate) open_resource: u64,
    pub(crate) active_resource: u64,
    pub(crate) unsupported: u64,
    pub(crate) out_of_range: u64,
    pub(crate) busy: u64,
    pub(crate) woken: u64,
    pub(crate) victims: u64,
    pub(crate) failed_writes: u64,
    pub(crate) gaps: u64,
    /// Resets and finishes that nothing was in the way of but what failed writes have left.
    pub(crate) held_by_leftovers: u64,
    pub(crate) undone: u64,
    pub(crate) unswept: u64,
    pub(crate) lost: u64,
    pub(crate) retired: u64,
    /// Writes that were refused because of what was in their zone before a reset.
    pub(crate) refused_unswept: u64,
    pub(crate) restarts: u64,
    pub(crate) restarts_under_way: u64,
    pub(crate) observed: u64,
}

impl Seen {
    fn fields(&mut self) -> [&mut u64; 22] {
        [
            &mut self.operations,
            &mut self.done,
            &mut self.invalid,
            &mut self.unaligned,
            &mut self.open_resource,
            &mut self.active_resource,
            &mut self.unsupported,
            &mut self.out_of_range,
            &mut self.busy,
            &mut self.woken,
            &mut self.victims,
            &mut self.failed_writes,
            &mut self.gaps,
            &mut self.held_by_leftovers,
            &mut self.undone,
            &mut self.unswept,
            &mut self.lost,
            &mut self.retired,
            &mut self.refused_unswept,
            &mut self.restarts,
            &mut self.restarts_under_way,
            &mut self.observed,
        ]
    }

    /// Adds another disk's numbers.
    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        for (sum, number) in self.fields().into_iter().zip(other.fields()) {
            *sum += *number;
        }
    }

    /// Whether there were so many operations that everything must have been met.
    pub(crate) fn is_enough(&self) -> bool {
        self.operations >= 100_000
    }

    /// Everything that must be met at any pace was met.
    pub(crate) fn assert_common(&self) {
        for (count, what) in [
            (self.done, "request was done"),
            (self.invalid, "command was invalid"),
            (self.unaligned, "write was off the write pointer"),
            (self.open_resource, "zone too many was open"),
            (self.active_resource, "zone too many was active"),
            (self.unsupported, "append was unsupported"),
            (self.out_of_range, "range lay beyond the disk"),
            (self.victims, "zone was closed to make room"),
            (self.failed_writes, "write failed"),
            (self.undone, "reset or finish was undone"),
            (self.unswept, "reset left old data behind"),
            (self.refused_unswept, "write was refused because of it"),
            (self.lost, "zone was lost"),
            (self.retired, "zone was taken out of use"),
            (self.restarts, "disk was opened again"),
            (self.observed, "state was observed"),
        ] {
            assert!(count > 0 || !self.is_enough(), "no {what}: the test shows nothing");
        }
    }
}

/// One operation, so that it can be made again and shown.
#[derive(Clone, Copy, Debug)]
enum Op {
    Write {
        sector: u64,
        sectors: u32,
    },
    Append {
        sector: u64,
        sectors: u32,
    },
    Open {
        sector: u64,
    },
    Close {
        sector: u64,
    },
    Finish {
        sector: u64,
    },
    Reset {
        sector: u64,
    },
    ResetAll {
        zone: u32,
    },
    /// The write fails, and leaves what it leaves. Before that can be settled, its place is made to read as zeros.
    Fail {
        id: u32,
    },
    Settle {
        id: u32,
        ok: bool,
    },
    End {
        zone: u32,
        end: ResetEnd,
    },
    Retire {
        zone: u32,
        to: Retirement,
    },
    Restart,
}

/// Keeps the last state that it was told of each zone, as a store would.
#[derive(Debug)]
struct Told {
    states: Vec<ZoneState>,
    calls: u64,
    /// A call that told nothing new.
    idle_call: Option<(u32, ZoneState)>,
}

#[derive(Clone)]
struct Teller(Rc<RefCell<Told>>);

impl Observer for Teller {
    fn zone_changed(&self, zone: u32, state: ZoneState) {
        let mut told = self.0.borrow_mut();
        let before = std::mem::replace(&mut told.states[usize::try_from(zone).unwrap()], state);
        told.calls += 1;
        if before == state {
            told.idle_call = Some((zone, state));
        }
    }
}

struct Write {
    grant: Grant,
    id: u32,
    sector: u64,
    sectors: u32,
    has_failed: bool,
}

impl Write {
    fn range(&self) -> Range<u64> {
        self.sector..self.sector + u64::from(self.sectors)
    }
}

/// Both sides, and the store between them that holds one number for each sector.
pub(crate) struct Rig {
    seed: u64,
    pace: Pace,
    rng: Rng,
    geometry: Geometry,
    told: Rc<RefCell<Told>>,
    table: ZoneTable<HookedMutex, Teller>,
    model: NaiveDisk,
    /// What the store holds: 0 are zeros, any other number is the write that put it there.
    medium: Vec<u32>,
    writes: Vec<Write>,
    /// Resets (`true`) and finishes that were begun.
    begun: Vec<(Begun, bool)>,
    waiting: BTreeMap<Ticket, Op>,
    to_retry: VecDeque<Op>,
    next_id: u32,
    next_ticket: u64,
    last: VecDeque<(Op, &'static str)>,
    seen: Seen,
}

impl Rig {
    /// Takes the next random operation and compares.
    pub(crate) fn step(&mut self) {
        let op = match self.to_retry.pop_front() {
            Some(op) if self.rng.u8(..) < 200 => op,
            _ => self.random_op(),
        };
        self.seen.operations += 1;
        self.perform(op);
        if self.pace == Pace::OneAfterTheOther {
            self.end_everything();
        }
        self.compare();
    }

    /// Ends what is under way, and sees that nobody waits any more.
    pub(crate) fn finish(mut self) -> Seen {
        self.to_retry.clear();
        self.end_everything();
        self.compare();
        self.same(format_args!("the tickets that never came back"), self.waiting.len(), 0);
        // Nothing is under way, so each zone is something that a table can start with.
        drop(self.table_of_told());
        self.seen.victims += self.model.victims;
        self.seen.gaps += self.model.gaps;
        self.seen.observed += self.told.borrow().calls;
        self.seen
    }

    fn end_everything(&mut self) {
        while let Some(write) = self.writes.last() {
            let op = match write.has_failed {
                true => Op::Settle { id: write.id, ok: false },
                false if self.rng.u8(..) < 26 => Op::Fail { id: write.id },
                false => Op::Settle { id: write.id, ok: true },
            };
            self.perform(op);
        }
        while let Some((begun, _)) = self.begun.last() {
            let op = Op::End { zone: begun.zone(), end: self.random_end() };
            self.perform(op);
        }
    }

    fn perform(&mut self, op: Op) {
        if self.last.len() == 60 {
            self.last.pop_front();
        }
        self.last.push_back((op, ""));
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        match op {
            Op::Write { sector, sectors } => self.write(op, ticket, sector, sectors),
            Op::Append { sector, sectors } => self.write(op, ticket, sector, sectors),
            Op::Open { sector } => {
                let (got, want) = (self.table.open(sector, ticket), self.model.open(sector, ticket));
                self.same_answer(op, ticket, got, want);
            }
            Op::Close { sector } => {
                let (got, want) = (self.table.close(sector, ticket), self.model.close(sector, ticket));
                self.same_answer(op, ticket, got, want);
            }
            Op::Finish { sector } => {
                let got = self.table.begin_finish(sector, ticket);
                let want = self.model.begin_finish(sector, ticket);
                self.begin(op, ticket, got, want, false);
            }
            Op::Reset { sector } => {
                let got = self.table.begin_reset(sector, ticket);
                let want = self.model.begin_reset(sector, ticket);
                self.begin(op, ticket, got, want, true);
            }
            Op::ResetAll { zone } => {
                let got = self.table.begin_reset_all(zone, ticket);
                let want = self.model.begin_reset_all(usize::try_from(zone).unwrap(), ticket);
                self.begin(op, ticket, got, want, true);
            }
            Op::Fail { id } => self.fail_write(id),
            Op::Settle { id, ok } => self.settle(id, ok),
            Op::End { zone, end } => self.end(zone, end),
            Op::Retire { zone, to } => {
                let got = self.table.retire(zone, to);
                let want = self.model.retire(usize::try_from(zone).unwrap(), to);
                self.same(format_args!("whether {op:?} changes anything"), got, want);
                self.seen.retired += u64::from(got);
            }
            Op::Restart => self.restart(),
        }
    }

    fn write(&mut self, op: Op, ticket: Ticket, sector: u64, sectors: u32) {
        let id = self.next_id;
        self.next_id += 1;
        let (got, want) = if matches!(op, Op::Append { .. }) {
            (self.table.admit_append(sector, sectors, ticket), self.model.append(sector, sectors, ticket, id))
        } else {
            (self.table.admit_write(sector, sectors, ticket), self.model.write(sector, sectors, ticket, id))
        };
        self.same_answer(op, ticket, got.as_ref().map(Grant::sector).map_err(|&r| r), want);
        if let Ok(grant) = got {
            let sector = grant.sector();
            self.writes.push(Write { grant, id, sector, sectors, has_failed: false });
        }
    }

    fn begin(
        &mut self,
        op: Op,
        ticket: Ticket,
        got: Result<Option<Begun>, Refusal>,
        want: Result<bool, Refusal>,
        is_reset: bool,
    ) {
        self.same_answer(op, ticket, got.as_ref().map(Option::is_some).map_err(|&r| r), want);
        match got {
            Ok(Some(begun)) => {
                let writes = self.writes_in(begun.zone()).count();
                self.same(format_args!("the unsettled writes in a zone at {op:?}"), writes, 0);
                self.begun.push((begun, is_reset));
            }
            Err(Refusal::Busy) => {
                let held = (0..).zip(&self.model.zones).any(|(zone, z)| {
                    z.waiting == [ticket] && !z.is_settling() && self.writes_in(zone).all(|w| w.has_failed)
                });
                self.seen.held_by_leftovers += u64::from(held);
            }
            _ => {}
        }
    }

    /// The writes with a place in `zone` that have not been settled.
    fn writes_in(&self, zone: u32) -> impl Iterator<Item = &Write> {
        let start = self.geometry.zone_start(zone);
        let end = start + u64::from(self.geometry.zone_len_sectors(zone));
        let is_there = move |w: &&Write| w.sectors > 0 && w.range().start < end && w.range().end > start;
        self.writes.iter().filter(is_there)
    }

    /// A request's answer; and if it has to wait, it is kept until its ticket comes back.
    fn same_answer<T: PartialEq + fmt::Debug>(
        &mut self,
        op: Op,
        ticket: Ticket,
        got: Result<T, Refusal>,
        want: Result<T, Refusal>,
    ) {
        let (counter, name) = match &got {
            Ok(_) => (&mut self.seen.done, "done"),
            Err(Refusal::InvalidCommand) => (&mut self.seen.invalid, "invalid"),
            Err(Refusal::UnalignedWritePointer) => (&mut self.seen.unaligned, "unaligned"),
            Err(Refusal::OpenResource) => (&mut self.seen.open_resource, "open resource"),
            Err(Refusal::ActiveResource) => (&mut self.seen.active_resource, "active resource"),
            Err(Refusal::Unsupported) => (&mut self.seen.unsupported, "unsupported"),
            Err(Refusal::OutOfRange) => (&mut self.seen.out_of_range, "out of range"),
            Err(Refusal::Unswept) => (&mut self.seen.refused_unswept, "unswept"),
            Err(Refusal::Busy) => (&mut self.seen.busy, "busy"),
        };
        *counter += 1;
        if let Some((_, answer)) = self.last.back_mut() {
            *answer = name;
        }
        if matches!(got, Err(Refusal::Busy)) {
            self.waiting.insert(ticket, op);
        }
        self.same(format_args!("the answer to {op:?}"), got, want);
    }

    /// What the write should have put there may be on the medium all the same, or some of it, or what nobody knows.
    fn fail_write(&mut self, id: u32) {
        self.seen.failed_writes += 1;
        let write = self.writes.iter_mut().find(|w| w.id == id).unwrap();
        write.has_failed = true;
        let mut left = write.range();
        if !self.is_required(left.start) {
            // Others may have written to the same place: what it has left comes when it is settled.
            return;
        }
        if self.rng.bool() {
            left.end = self.rng.u64(left.start..=left.end);
        }
        self.medium[at(left.start)..at(left.end)].fill(if self.rng.bool() { id } else { u32::MAX });
    }

    fn is_required(&self, sector: u64) -> bool {
        let kind = self.geometry.zone_of(sector).map(|zone| self.geometry.kind(zone));
        kind == Some(ZoneKind::SequentialRequired)
    }

    fn settle(&mut self, id: u32, ok: bool) {
        let index = self.writes.iter().position(|w| w.id == id).unwrap();
        let write = self.writes.swap_remove(index);
        let range = write.range();
        let is_required = self.is_required(write.sector);
        if is_required {
            // Whatever happened since it was admitted, its data, or the zeros that a failure owes, fall on its own place.
            for sector in range.clone() {
                let what = format_args!("whom sector {sector} is kept for");
                self.same(what, Sector::Pending(id), self.model.sector(sector));
            }
        }
        match ok {
            true => self.medium[at(range.start)..at(range.end)].fill(id),
            false if is_required => self.medium[at(range.start)..at(range.end)].fill(0),
            // Any part of it.
            false => {
                let end = self.rng.u64(range.start..=range.end);
                self.medium[at(range.start)..at(end)].fill(id);
            }
        }
        let got = self.table.settle(write.grant, ok);
        let want = self.model.settle(id, (write.sector, write.sectors), ok);
        self.wake(got.woken, want);
    }

    fn end(&mut self, zone: u32, end: ResetEnd) {
        let index = self.begun.iter().position(|(b, _)| b.zone() == zone).unwrap();
        let (begun, is_reset) = self.begun.swap_remove(index);
        // A finish leaves nothing behind.
        let end = if end == ResetEnd::Unswept && !is_reset { ResetEnd::Done } else { end };
        match end {
            ResetEnd::Done if is_reset => self.punch(zone),
            ResetEnd::Done => {}
            ResetEnd::Undone => self.seen.undone += 1,
            ResetEnd::Unswept => self.seen.unswept += 1,
            ResetEnd::Lost => self.seen.lost += 1,
            ResetEnd::Told(_) => unreachable!("no device keeps these zones"),
        }
        let got = self.table.end(begun, end);
        let want = self.model.end(usize::try_from(zone).unwrap(), end);
        self.wake(got.woken, want);
    }

    /// The store makes a whole zone read as zeros.
    fn punch(&mut self, zone: u32) {
        let start = self.geometry.zone_start(zone);
        let end = start + u64::from(self.geometry.zone_len_sectors(zone));
        self.medium[at(start)..at(end)].fill(0);
    }

    /// Each ticket comes back once, and its request is made again at some time or never.
    fn wake(&mut self, got: Vec<Ticket>, want: Vec<Ticket>) {
        self.same(format_args!("the tickets that come back"), &got, &want);
        for ticket in got {
            self.seen.woken += 1;
            let Some(op) = self.waiting.remove(&ticket) else {
                self.fail(format_args!("{ticket:?} came back, but nobody waits under this number"));
            };
            if self.rng.u8(..) < 230 {
                self.to_retry.push_back(op);
            }
        }
    }

    /// The program dies: what is under way is lost, with the tickets; what was observed makes a new table.
    fn restart(&mut self) {
        self.seen.restarts += 1;
        self.seen.restarts_under_way += u64::from(!self.writes.is_empty() || !self.begun.is_empty());
        self.writes.clear();
        self.begun.clear();
        self.waiting.clear();
        self.to_retry.clear();
        let states: Vec<_> = (0..)
            .zip(&self.told.borrow().states)
            .map(|(zone, state)| state.after_restart(&self.geometry, zone))
            .collect();
        // A store sees to it that there is nothing behind the zones' data.
        for (zone, state) in (0..).zip(&states) {
            if !self.geometry.is_conventional(zone) {
                let start = self.geometry.zone_start(zone);
                let end = start + u64::from(self.geometry.zone_len_sectors(zone));
                self.medium[at(start + u64::from(state.wp_sectors))..at(end)].fill(0);
            }
        }
        self.told.borrow_mut().states.clone_from(&states);
        self.table = self.table_of_told();
        self.model.restart();
    }

    fn table_of_told(&self) -> ZoneTable<HookedMutex, Teller> {
        match ZoneTable::new(self.geometry.clone(), &self.told.borrow().states, Teller(self.told.clone())) {
            Ok(table) => table,
            Err(error) => self.fail(format_args!("what was observed makes no table: {error}")),
        }
    }

    /// Everything that can be seen of the table is what the model says.
    fn compare(&mut self) {
        for (index, zone) in (0..self.model.zones.len()).zip(0..) {
            self.same(
                format_args!("the report of zone {zone}"),
                self.table.report(zone),
                Some(self.model.report(index)),
            );
            self.same(
                format_args!("the observed state of zone {zone}"),
                self.told.borrow().states[index],
                self.model.kept(index),
            );
        }
        self.same(
            format_args!("a report past the last zone"),
            self.table.report(self.geometry.zone_count()),
            None,
        );
        self.same(
            format_args!("the open and active zones"),
            self.table.open_and_active(),
            self.model.open_and_active(),
        );
        self.same(
            format_args!("a call of the observer with nothing new"),
            self.told.borrow().idle_call,
            None,
        );
        let (sector, sectors) = self.random_range();
        self.compare_read(sector, sectors);
    }

    /// The plan of a read; and what is read by it is what was written, or zeros.
    fn compare_read(&self, sector: u64, sectors: u64) {
        let got = self.table.admit_read(sector, sectors);
        self.same(
            format_args!("the plan of a read of {sectors} at {sector}"),
            got,
            self.model.read_plan(sector, sectors),
        );
        let Ok(plan) = self.table.admit_read(sector, sectors) else {
            return;
        };
        for offset in 0..sectors {
            let position = sector + offset;
            let is_stored =
                offset < plan.stored_sectors || plan.more.iter().any(|stretch| stretch.contains(&offset));
            let read = if is_stored { self.medium[at(position)] } else { 0 };
            let want = match self.model.sector(position) {
                Sector::Written(id) => id,
                Sector::Unwritten | Sector::Failed | Sector::Gap => 0,
                // Beyond the write pointer nothing is read.
                Sector::Rubbish if !is_stored => 0,
                Sector::Pending(_) | Sector::Unknown | Sector::Rubbish => continue,
            };
            self.same(format_args!("what is read at {position}"), read, want);
        }
    }

    fn same<T: PartialEq + fmt::Debug>(&self, what: fmt::Arguments<'_>, got: T, want: T) {
        if got != want {
            self.fail(format_args!("{what}\n  the table says {got:?}\n  the model says {want:?}"));
        }
    }

    fn fail(&self, what: fmt::Arguments<'_>) -> ! {
        let mut zones = String::new();
        for (zone, z) in self.model.zones.iter().enumerate() {
            zones += &format!(
                "  zone {zone}: {:?} at {}, capacity {}, wp {}, settling {}, waiting {:?}\n",
                z.condition,
                z.start,
                z.capacity,
                z.wp(),
                z.is_settling(),
                z.waiting
            );
        }
        let mut last = String::new();
        for (op, answer) in &self.last {
            last += &format!("  {op:?} {answer}\n");
        }
        panic!(
            "{what}\nrepeat with ZONES_SEED={} (operation {} on this disk, {:?})\n{:#?}\nthe model:\n{zones}the last \
             operations, each with what it was answered:\n{last}",
            self.seed, self.seen.operations, self.pace, self.geometry,
        );
    }
}
