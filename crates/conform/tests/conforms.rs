//! A device without fault passes every case, on disks that are chosen to hurt, and no case is skipped on all of them.
//!
//! `CONFORM_SEED=n` repeats a run.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr, reason = "tests")]

mod naive;

use std::collections::BTreeSet;
use std::env;

use naive::{Naive, Shape, shape};
use virtio_zbd_conform::{Outcome, RunOptions, Summary, cases, run};

#[test]
fn a_device_without_fault_passes_on_all_disks() {
    let seed = env::var("CONFORM_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut never: BTreeSet<&str> = cases().iter().map(|case| case.id).collect();
    for shape in shape::all() {
        println!("CONFORM_SEED={seed}, {}", shape.name);
        let (summary, skipped) = judge(shape.clone(), seed);
        assert_eq!(summary.total(), cases().len());
        assert_eq!(summary.failed_required + summary.failed_recommended + summary.failed_ours, 0);
        never.retain(|id| skipped.contains(id));
    }
    assert!(never.is_empty(), "skipped on all disks: {never:?}");
}

/// Runs all cases, and fails with the first that fails. Returns what was skipped.
fn judge(shape: Shape, seed: u64) -> (Summary, BTreeSet<&'static str>) {
    let options = RunOptions { seed, ..RunOptions::default() };
    let mut skipped = BTreeSet::new();
    let name = shape.name;
    let summary = run(&mut Naive::new(shape, None), &options, &mut |result| match &result.outcome {
        Outcome::Passed => {}
        Outcome::Skipped(reason) => {
            assert!(!reason.starts_with("could not be prepared"), "{name}: {}: {reason}", result.case.id);
            skipped.insert(result.case.id);
        }
        Outcome::Failed(finding) => {
            for step in &result.exchange {
                println!("{} -> {}", step.sent, step.came);
            }
            panic!("{name}: {}: {finding}", result.case.id)
        }
    });
    println!("{name}: {} passed, {} skipped", summary.passed, summary.skipped);
    (summary, skipped)
}
