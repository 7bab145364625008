//! Power cuts: every state in which one may leave an image is opened and held against an exact oracle.
//!
//! `docs/reliability.md` says what is gone through and what was found.
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
mod setups;

use std::time::Instant;

use disk::UNREADABLE;
use explore::{Explorer, Limits};
use history::{Finding, Setup};
use mutation::Mutation;
use oracle::Oracle;
use setups::{every_history, failing_syncs, one_page, two_pages};

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

/// `usual`, or as the environment has it.
fn len(usual: usize) -> usize {
    std::env::var("ZBD_LEN").ok().and_then(|len| len.parse().ok()).unwrap_or(usual)
}

#[test]
fn every_short_history_on_one_page() {
    let (explorer, histories) = exhaust(&one_page(), len(3), Mutation::None);
    histories.unwrap();
    assert_eq!(explorer.counts.sampled, 0);
}

#[test]
fn every_short_history_on_two_pages() {
    let (explorer, histories) = exhaust(&two_pages(), len(5), Mutation::None);
    histories.unwrap();
    assert_eq!(explorer.counts.sampled, 0);
}

#[test]
fn every_short_history_with_failing_syncs() {
    let (explorer, histories) = exhaust(&failing_syncs(), len(3), Mutation::None);
    histories.unwrap();
    assert_eq!(explorer.counts.sampled, 0);
}

/// A closed image of which one block is damaged later: opening puts that in order, and may be cut off.
#[test]
fn a_damaged_block_of_a_closed_image() {
    for setup in [one_page(), two_pages()] {
        let world = setup.world();
        let allowed = Oracle::new(setup.geometry, &setup.zones, &setup.sectors);
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
