//! Power cuts: every state in which one may leave an image is opened and held against an exact oracle.
//!
//! `docs/reliability.md` says what is gone through and what was found. Variables: `ZBD_POWER_STATES=1000000` makes it the
//! full run, `ZBD_POWER_LEN` is the length of the short histories, `SEED` repeats one long history.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    dead_code,
    unreachable_pub,
    reason = "tests may"
)]

mod bite;
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod explore;
mod history;
mod medium;
mod mutation;
mod oracle;
mod random;
mod setups;

use std::str::FromStr;
use std::time::Instant;

use disk::UNREADABLE;
use explore::{Explorer, Limits};
use history::{Finding, Setup};
use mutation::Mutation;
use oracle::Oracle;
use setups::{
    bad_zones, every_history, failing_growth, failing_syncs, few_ops, full_host, growing, no_holes, one_page,
    two_pages,
};

const ALL: Limits =
    Limits { recovery_cuts: 1, cuts_per_moment: 1 << 20, cuts_per_recovery: 1 << 20, kills: true };

fn exhaust(setup: &Setup, len: usize, mutation: Mutation) -> (Explorer, Result<u64, Finding>) {
    let mut explorer = Explorer::new(&setup.world(), mutation, ALL);
    let begun = Instant::now();
    let histories = every_history(setup, len, &mut explorer);
    if mutation == Mutation::None {
        println!(
            "{}, length {len}: {histories:?} histories, {:?}, {:?}",
            setup.name,
            explorer.counts,
            begun.elapsed()
        );
    }
    (explorer, histories)
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many different states the full run shall open; `None`: a short run.
fn full_states() -> Option<u64> {
    variable("ZBD_POWER_STATES")
}

/// Goes through all histories up to a length, which is larger in the full run.
fn every_short_history(setup: &Setup, short_len: usize, full_len: usize) {
    let len = variable("ZBD_POWER_LEN").unwrap_or(full_states().map_or(short_len, |_| full_len));
    let (explorer, histories) = exhaust(setup, len, Mutation::None);
    histories.unwrap();
    // All of them, and no selection.
    assert_eq!(explorer.counts.sampled, 0);
}

#[test]
fn every_short_history_on_one_page() {
    every_short_history(&one_page(), 3, 5);
}

#[test]
fn every_short_history_of_few_operations() {
    every_short_history(&few_ops(), 3, 7);
}

#[test]
fn every_short_history_on_two_pages() {
    every_short_history(&two_pages(), 4, 7);
}

#[test]
fn every_short_history_with_bad_zones() {
    every_short_history(&bad_zones(), 3, 5);
}

#[test]
fn every_short_history_without_holes() {
    every_short_history(&no_holes(), 3, 5);
}

#[test]
fn every_short_history_on_a_full_host() {
    every_short_history(&full_host(), 3, 6);
}

#[test]
fn every_short_history_with_failing_syncs() {
    every_short_history(&failing_syncs(), 3, 5);
}

#[test]
fn every_short_history_of_growth() {
    every_short_history(&growing(), 2, 3);
}

#[test]
fn every_short_history_of_growth_that_fails() {
    every_short_history(&failing_growth(), 2, 3);
}

/// Seeds that have found something once, or are here so that there always are some.
const SEEDS: [u64; 4] = [0, 1, 2, 3];

#[test]
fn long_histories() {
    // About two states in three come from here in the full run.
    let wanted = full_states().map_or(6_000, |states| states / 3);
    long(false, wanted);
}

#[test]
fn long_histories_with_failing_syncs() {
    let wanted = full_states().map_or(3_000, |states| states / 6);
    long(true, wanted);
}

/// Long histories from [`SEEDS`] and from new ones, until there are that many states.
fn long(failing_syncs: bool, wanted: u64) {
    let setup = random::large(failing_syncs);
    let mut explorer = Explorer::new(&setup.world(), Mutation::None, ALL);
    let begun = Instant::now();
    let mut histories = 0;
    let mut new_seeds = fastrand::Rng::new();
    let one = variable("SEED");
    let mut seeds: Vec<u64> = one.map_or(SEEDS.to_vec(), |seed| vec![seed]);
    while let Some(seed) = seeds.pop() {
        random::long_history(&setup, seed, &mut explorer).unwrap();
        explorer.forget();
        histories += 1;
        if one.is_none() && seeds.is_empty() && explorer.counts.states < wanted {
            seeds.push(new_seeds.u64(..));
        }
    }
    let how = if failing_syncs { ", some syncs fail" } else { "" };
    println!("{histories} long histories{how}: {:?}, {:?}", explorer.counts, begun.elapsed());
}

/// A closed image of which one block is damaged later: opening puts that in order, and may be cut off.
#[test]
fn a_damaged_block_of_a_closed_image() {
    for setup in [one_page(), two_pages()] {
        let world = setup.world();
        let allowed = Oracle::new(setup.geometry.clone(), &setup.zones, &setup.sectors);
        let new = setup.new_disk(&world);
        let newer_slots = 16..16 + world.slot_sectors();
        let blocks = (0..newer_slots.end + world.slot_sectors()).step_by(8);
        for block in blocks.filter(|block| !newer_slots.contains(block)) {
            let mut damaged = new.clone();
            damaged.durable[block + 7] = UNREADABLE;
            let mut explorer = Explorer::new(&world, Mutation::None, Limits { recovery_cuts: 2, ..ALL });
            explorer.cut_at(&damaged, &allowed).map_err(|why| format!("sector {block}: {why}")).unwrap();
            assert!(explorer.counts.states > 10);
        }
    }
}
