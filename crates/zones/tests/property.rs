//! The zone table against the naive disk of `model`: random operations on random disks, everything compared after each.
//!
//! `ZONES_SEED` repeats a run (a failure prints the seed of the disk it happened on), `ZONES_OPS` sets how many operations each test
//! does.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says loudly what is wrong"
)]

mod hooked;
mod model;
mod rig;

use rig::{Pace, Rig, Seen};

/// Each of the two tests does this many, if `ZONES_OPS` does not say otherwise: a few seconds.
const OPERATIONS: u64 = 2_500_000;

/// After this many operations there is a new disk: zones that went offline never come back.
const OPERATIONS_PER_DISK: u64 = 800;

#[test]
fn one_request_after_the_other() {
    let seen = run(Pace::OneAfterTheOther);
    seen.assert_common();
    assert_eq!(seen.busy, 0, "nothing is under way when the next request comes");
    assert_eq!(seen.gaps, 0, "no failed write has data behind it");
}

#[test]
fn many_requests_under_way() {
    let seen = run(Pace::ManyUnderWay);
    seen.assert_common();
    for (count, what) in [
        (seen.busy, "request had to wait"),
        (seen.woken, "ticket came back"),
        (seen.gaps, "failed write had data behind it"),
        (seen.held_by_leftovers, "reset or finish had to wait for zeros over a failed write"),
        (seen.restarts_under_way, "restart found a request under way"),
    ] {
        assert!(count > 0 || !seen.is_enough(), "no {what}: the test shows nothing");
    }
}

fn run(pace: Pace) -> Seen {
    let operations = from_env("ZONES_OPS").unwrap_or(OPERATIONS);
    let seed = from_env("ZONES_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{pace:?}: {operations} operations, ZONES_SEED={seed}");
    let mut seen = Seen::default();
    for disk in 0.. {
        let left = operations.saturating_sub(disk * OPERATIONS_PER_DISK);
        if left == 0 {
            break;
        }
        let mut rig = Rig::new(seed.wrapping_add(disk), pace);
        for _ in 0..left.min(OPERATIONS_PER_DISK) {
            rig.step();
        }
        seen.add(&rig.finish());
    }
    eprintln!("{pace:?}: {seen:?}");
    seen
}

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number was expected")))
}
