//! A call that lets go of its locks and takes others may find the world changed. Here another call comes in at each such moment, one
//! pair of calls after the other: the outcome must be that of one call after the other, in either order.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says loudly what is wrong"
)]

mod hooked;

use std::cell::RefCell;
use std::fmt::{self, Debug};
use std::rc::Rc;

use hooked::HookedMutex;
use virtio_zbd_zones::{
    Begun, Condition, Geometry, GeometryConfig, Grant, Observer, Refusal, ResetEnd, Retirement, Settled,
    Ticket, ZoneReport, ZoneState, ZoneTable,
};

#[test]
fn another_call_comes_in_between() {
    let mut moments = 0;
    for limits in [(0, 0), (1, 0), (1, 1), (2, 2), (2, 3)] {
        for start in starts() {
            for outer in outer_calls() {
                for inner in inner_calls() {
                    moments += check(limits, start, outer, inner);
                }
            }
        }
    }
    eprintln!("{moments} moments between two locks were used");
    assert!(moments > 10_000, "{moments}: there was hardly a moment to come in");
}

/// The conditions that zones 0 and 1 start with, and what is under way in zone 0.
#[derive(Clone, Copy, Debug)]
struct Start {
    conditions: [Condition; 2],
    under_way: Option<UnderWay>,
}

/// A write, and what came after it.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    sectors: u32,
    /// So much was written behind it and is done: if the write fails, it leaves a gap.
    done_behind: u32,
    /// Whether the zone was closed then.
    closed: bool,
    /// Whether a reset waits for the write.
    reset_waits: bool,
}

fn starts() -> Vec<Start> {
    use Condition::{Closed, Empty, ExplicitOpen, ImplicitOpen};
    let mut starts = Vec::new();
    for first in [Empty, ImplicitOpen, ExplicitOpen, Closed] {
        for second in [Empty, ImplicitOpen, Closed] {
            let capacity = if first == Empty || first == ExplicitOpen { 8 } else { 6 };
            let conditions = [first, second];
            starts.push(Start { conditions, under_way: None });
            for (sectors, done_behind) in [(2, 0), (capacity, 0), (2, 2), (2, capacity - 2)] {
                for (closed, reset_waits) in [(false, false), (true, false), (false, true), (true, true)] {
                    let under_way = Some(UnderWay { sectors, done_behind, closed, reset_waits });
                    starts.push(Start { conditions, under_way });
                }
            }
        }
    }
    starts
}

/// The calls that take no lock but their own come first, then those that may have a moment.
#[derive(Clone, Copy, Debug)]
enum Call {
    /// Ends the write that is under way from the start.
    Settle {
        ok: bool,
    },
    Write {
        zone: u32,
        ends: Ends,
    },
    Append {
        zone: u32,
        ends: Ends,
    },
    Open {
        zone: u32,
    },
    Close {
        zone: u32,
    },
    Finish {
        zone: u32,
        end: ResetEnd,
    },
    Reset {
        zone: u32,
        end: ResetEnd,
    },
    Retire {
        zone: u32,
        to: Retirement,
    },
}

/// When the write ends that a call begins.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Well,
    Badly,
    Later,
}

fn outer_calls() -> Vec<Call> {
    let ends = Ends::Later;
    vec![
        Call::Settle { ok: true },
        Call::Settle { ok: false },
        Call::Write { zone: 0, ends },
        Call::Append { zone: 0, ends },
        Call::Open { zone: 0 },
        Call::Close { zone: 0 },
    ]
}

fn inner_calls() -> Vec<Call> {
    let mut calls = vec![Call::Settle { ok: true }, Call::Settle { ok: false }];
    for zone in [0, 1] {
        for ends in [Ends::Well, Ends::Badly, Ends::Later] {
            calls.extend([Call::Write { zone, ends }, Call::Append { zone, ends }]);
        }
        calls.extend([Call::Open { zone }, Call::Close { zone }]);
        let retire = |to| Call::Retire { zone, to };
        calls.extend([Retirement::ReadOnly, Retirement::Offline].map(retire));
        for end in [ResetEnd::Done, ResetEnd::Undone, ResetEnd::Unswept, ResetEnd::Lost] {
            calls.extend([Call::Finish { zone, end }, Call::Reset { zone, end }]);
        }
    }
    calls
}

/// When the inner call comes.
#[derive(Clone, Copy, Debug)]
enum When {
    Before,
    After,
    /// At this moment of the outer call, the first one being 1.
    Between(u32),
}

/// All that can be seen afterwards.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    outer: String,
    inner: String,
    at_once: Zones,
    /// When the writes that were still under way have ended, too.
    in_the_end: Zones,
}

#[derive(Debug, PartialEq, Eq)]
struct Zones {
    reports: Vec<ZoneReport>,
    stored_sectors: Vec<Option<u64>>,
    open_and_active: (u32, u32),
    observed: Vec<ZoneState>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  the outer call: {}\n  the inner call: {}", self.outer, self.inner)?;
        for (when, zones) in [("then", &self.at_once), ("in the end", &self.in_the_end)] {
            writeln!(f, "  {when}: (open, active) = {:?}", zones.open_and_active)?;
            for (zone, report) in zones.reports.iter().enumerate() {
                let (condition, wp) = (report.condition, report.wp - report.start);
                let (stored, observed) = (zones.stored_sectors[zone], zones.observed[zone]);
                writeln!(f, "    zone {zone}: {condition:?}, wp {wp}, stored {stored:?}, {observed:?}")?;
            }
        }
        Ok(())
    }
}

/// Tries all moments of one pair of calls. Returns how many there were before the outer call's end, which is the last one.
fn check(limits: (u32, u32), start: Start, outer: Call, inner: Call) -> u32 {
    let Some(before) = Scene::play(limits, start, outer, inner, When::Before) else {
        return 0;
    };
    let after = Scene::play(limits, start, outer, inner, When::After).unwrap();
    for moment in 1.. {
        let Some(between) = Scene::play(limits, start, outer, inner, When::Between(moment)) else {
            return moment.saturating_sub(2);
        };
        assert!(
            between == before || between == after,
            "{inner:?} came in at moment {moment} of {outer:?}; (max open, max active) = {limits:?}, {start:?}\nbefore \
             it:\n{before}after it:\n{after}between:\n{between}"
        );
    }
    unreachable!("the moments of a call come to an end")
}

/// The last state of each zone that the table has told.
#[derive(Clone)]
struct Told(Rc<RefCell<Vec<ZoneState>>>);

impl Observer for Told {
    fn zone_changed(&self, zone: u32, state: ZoneState) {
        self.0.borrow_mut()[usize::try_from(zone).unwrap()] = state;
    }
}

/// A table with two zones of 8 sectors, where a block is 2 sectors.
struct Scene {
    table: ZoneTable<HookedMutex, Told>,
    told: Told,
    under_way: RefCell<Option<Grant>>,
    later: RefCell<Vec<Grant>>,
}

impl Scene {
    /// `None`: the limits don't allow the start, there is no write to settle, or no such moment.
    fn play(limits: (u32, u32), start: Start, outer: Call, inner: Call, when: When) -> Option<Outcome> {
        let settles = [outer, inner].iter().filter(|call| matches!(call, Call::Settle { .. })).count();
        if settles > usize::from(start.under_way.is_some()) {
            return None;
        }
        let scene = Rc::new(Self::new(limits, start)?);
        let (outer, inner) = match when {
            When::Before => {
                let inner = scene.call(inner, Ticket(2));
                (scene.call(outer, Ticket(1)), inner)
            }
            When::After => {
                let outer = scene.call(outer, Ticket(1));
                (outer, scene.call(inner, Ticket(2)))
            }
            When::Between(moment) => {
                let answer = Rc::new(RefCell::new(None));
                let (scene_there, answer_there) = (scene.clone(), answer.clone());
                hooked::at_moment(moment, move || {
                    let inner = scene_there.call(inner, Ticket(2));
                    *answer_there.borrow_mut() = Some(inner);
                });
                let outer = scene.call(outer, Ticket(1));
                hooked::forget();
                let inner = answer.borrow_mut().take()?;
                (outer, inner)
            }
        };
        let at_once = scene.zones();
        let rest = scene.under_way.take().into_iter().chain(scene.later.take());
        for grant in rest {
            let _ = scene.table.settle(grant, true);
        }
        Some(Outcome { outer, inner, at_once, in_the_end: scene.zones() })
    }

    fn new((max_open_zones, max_active_zones): (u32, u32), start: Start) -> Option<Self> {
        let geometry = Geometry::new(GeometryConfig {
            capacity_sectors: 16,
            zone_sectors: 8,
            zone_capacity_sectors: 8,
            conventional_zones: 0,
            max_open_zones,
            max_active_zones,
            max_append_sectors: 8,
            write_granularity_bytes: 1024,
        })
        .unwrap();
        let states = start.conditions.map(|condition| {
            let with_data = matches!(condition, Condition::ImplicitOpen | Condition::Closed);
            ZoneState { condition, wp_sectors: if with_data { 2 } else { 0 } }
        });
        let told = Told(Rc::new(RefCell::new(states.to_vec())));
        let table = ZoneTable::new(geometry, &states, told.clone()).ok()?;
        let mut grant = None;
        if let Some(under_way) = start.under_way {
            grant = Some(table.admit_append(0, under_way.sectors, Ticket(0)).ok()?);
            if under_way.done_behind > 0 {
                let behind = table.admit_append(0, under_way.done_behind, Ticket(0)).unwrap();
                assert_eq!(table.settle(behind, true), Settled::default());
            }
            if under_way.closed {
                table.close(0, Ticket(0)).unwrap();
            }
            if under_way.reset_waits {
                assert_eq!(table.begin_reset(0, Ticket(3)), Err(Refusal::Busy));
            }
        }
        Some(Self { table, told, under_way: RefCell::new(grant), later: RefCell::default() })
    }

    /// Makes a call and tells all that was answered.
    fn call(&self, call: Call, ticket: Ticket) -> String {
        let start = |zone| self.table.geometry().zone_start(zone);
        match call {
            Call::Settle { ok } => {
                let grant = self.under_way.take().unwrap();
                text(self.table.settle(grant, ok))
            }
            // Always behind the first two sectors: right for some starts and wrong for others.
            Call::Write { zone, ends } => {
                self.write(self.table.admit_write(start(zone) + 2, 2, ticket), ends)
            }
            Call::Append { zone, ends } => self.write(self.table.admit_append(start(zone), 2, ticket), ends),
            Call::Open { zone } => text(self.table.open(start(zone), ticket)),
            Call::Close { zone } => text(self.table.close(start(zone), ticket)),
            Call::Finish { zone, end } => self.end(self.table.begin_finish(start(zone), ticket), end),
            Call::Reset { zone, end } => self.end(self.table.begin_reset(start(zone), ticket), end),
            Call::Retire { zone, to } => text(self.table.retire(zone, to)),
        }
    }

    fn write(&self, answer: Result<Grant, Refusal>, ends: Ends) -> String {
        let grant = match answer {
            Ok(grant) => grant,
            Err(refusal) => return text(refusal),
        };
        let sector = grant.sector();
        match ends {
            Ends::Well => text((sector, self.table.settle(grant, true))),
            Ends::Badly => text((sector, self.table.settle(grant, false))),
            Ends::Later => {
                self.later.borrow_mut().push(grant);
                text(sector)
            }
        }
    }

    fn end(&self, answer: Result<Option<Begun>, Refusal>, end: ResetEnd) -> String {
        match answer {
            Ok(Some(begun)) => text((end, self.table.end(begun, end))),
            // The driver can't tell it from one that was begun and is done.
            Ok(None) => text((ResetEnd::Done, Settled::default())),
            Err(refusal) => text(refusal),
        }
    }

    fn zones(&self) -> Zones {
        let read = |zone| self.table.admit_read(self.table.geometry().zone_start(zone), 8);
        Zones {
            reports: [0, 1].map(|zone| self.table.report(zone).unwrap()).into(),
            stored_sectors: [0, 1].map(|zone| read(zone).ok().map(|plan| plan.stored_sectors)).into(),
            open_and_active: self.table.open_and_active(),
            observed: self.told.0.borrow().clone(),
        }
    }
}

fn text(answer: impl Debug) -> String {
    format!("{answer:?}")
}
