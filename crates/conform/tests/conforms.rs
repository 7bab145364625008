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

#[test]
fn every_rule_has_a_case_and_the_table_is_in_order() {
    let rules: BTreeSet<&str> = cases().iter().map(|case| case.rule).collect();
    let wanted =
        (1..=32).map(|number| format!("V{number}")).chain((1..=6).map(|number| format!("G{number}")));
    let missing: Vec<String> = wanted.filter(|rule| !rules.contains(&rule[..])).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");

    let key = |id: &str| {
        let (rule, letter) = id[1..].split_once('-').unwrap();
        ("VSRG".find(&id[..1]).unwrap(), rule.parse::<u32>().unwrap(), letter.to_string())
    };
    for pair in cases().windows(2) {
        assert!(key(pair[0].id) < key(pair[1].id), "{} before {}", pair[0].id, pair[1].id);
        assert!(pair[0].id.starts_with(pair[0].rule));
    }
    for case in cases() {
        assert!(case.asks.contains("(2.") || case.asks.contains("(5.2"), "{} names no section", case.id);
        assert!(!case.title.is_empty());
    }
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
