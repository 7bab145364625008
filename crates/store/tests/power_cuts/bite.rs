//! The simulator bites: each thing that is done wrong on purpose is caught, and this says so by name.

use std::fmt::Write;

use crate::explore::Explorer;
use crate::history::Setup;
use crate::mutation::Mutation::{self, *};
use crate::mutation::Phase::*;
use crate::mutation::SyncKind::*;
use crate::random::{large, long_history};
use crate::setups::{failing_syncs, few_ops, growing, in_place_of_another, one_page};
use crate::{ALL, exhaust, full_states};

/// What it is called, what is done wrong, the disk on which the shortest history shows it, and how long that is.
type Case = (&'static str, Mutation, fn() -> Setup, usize);

const MUTATIONS: [Case; 32] = [
    ("the page before the data", PageBeforeData, one_page, 2),
    ("the hole before the page", HoleBeforePage, few_ops, 3),
    ("no hole", NoHole, one_page, 1),
    ("growth: the new pages are not synced", NoSync(Grow, Pages(1)), growing, 1),
    ("growth: the superblock is not synced", NoSyncOfMark(Grow), growing, 1),
    ("a page written over the version that counts", PageInPlace, one_page, 2),
    ("one slot for each page", OneSlot, one_page, 2),
    ("one copy of the superblock", OneSuperblock, one_page, 1),
    ("no checksums", NoChecksum, few_ops, 3),
    ("a reset takes all zones' states along", ResetTakesAll, few_ops, 3),
    ("pages that lose active zones together with those that gain some", PagesAtOnce, in_place_of_another, 5),
    ("flush: the data is not synced", NoSync(Flush, Data), one_page, 2),
    ("flush: the pages are not synced", NoSync(Flush, Pages(1)), one_page, 2),
    ("flush: the pages that gain are not synced", NoSync(Flush, Pages(2)), in_place_of_another, 5),
    ("finish: the data is not synced", NoSync(Finish, Data), one_page, 2),
    ("finish: the page is not synced", NoSync(Finish, Pages(1)), one_page, 1),
    ("reset: the page is not synced", NoSync(Reset, Pages(1)), one_page, 3),
    ("opening: no sync at the beginning", NoSync(Open, Data), one_page, 1),
    ("opening: the pages are not synced", NoSync(Open, Pages(1)), few_ops, 3),
    ("opening: the first superblock copy is not synced", NoSync(Open, Superblock(1)), one_page, 1),
    ("opening: the second superblock copy is not synced", NoSync(Open, Superblock(2)), failing_syncs, 3),
    ("opening: neither superblock copy is synced", NoSyncOfMark(Open), one_page, 1),
    ("opening: no sweep", NoSweep, one_page, 1),
    ("opening: the sweep before the pages", SweepBeforePages, few_ops, 3),
    ("opening: the mark before the live area", MarkBeforeLive, one_page, 2),
    ("closing: the data is not synced", NoSync(Close, Data), one_page, 2),
    ("closing: the pages are not synced", NoSync(Close, Pages(1)), one_page, 2),
    ("closing: the first superblock copy is not synced", NoSync(Close, Superblock(1)), one_page, 1),
    ("closing: neither superblock copy is synced", NoSyncOfMark(Close), one_page, 1),
    ("closing: the mark before the pages", MarkBeforePages, one_page, 2),
    ("the live area is believed after a power cut", LiveTrusted, one_page, 2),
    ("the live area is not believed after a kill", LiveForgotten, one_page, 2),
];

#[test]
fn each_mutation_is_caught() {
    let mut told = String::new();
    let mut missed = Vec::new();
    for (name, mutation, setup, len) in MUTATIONS {
        let (explorer, end) = exhaust(&setup(), len, mutation);
        let states = explorer.counts.states + explorer.counts.kills;
        match end {
            Err(why) => {
                writeln!(
                    told,
                    "{name}: caught after {states} states: {}",
                    why.chars().take(230).collect::<String>()
                )
                .unwrap();
            }
            Ok(_) => missed.push(format!("{name} ({states} states)")),
        }
    }
    println!("{told}");
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// The one step that no history needs. The copy that is synced before it is enough for whoever opens the image,
/// and opening begins with a sync of its own. It is there so that a write error of the second copy is told to
/// whoever closes the image, and so that a closed image has two good copies against later damage.
#[test]
fn the_last_sync_of_closing_is_for_errors_only() {
    let (_, end) = exhaust(&one_page(), 2, NoSync(Close, Superblock(2)));
    end.unwrap();
}

/// What long histories catch soon. The others take some thousand states, and the full run has them all.
const SOON: [&str; 4] = [
    "the hole before the page",
    "finish: the data is not synced",
    "opening: no sync at the beginning",
    "closing: the first superblock copy is not synced",
];

#[test]
fn long_histories_catch_each_mutation() {
    let mut missed = Vec::new();
    for (name, mutation, _, _) in MUTATIONS {
        if full_states().is_none() && !SOON.contains(&name) {
            continue;
        }
        let setup = large(mutation == NoSync(Open, Superblock(2)));
        let mut explorer = Explorer::new(&setup.world(), mutation, ALL);
        let caught = (0..200).any(|seed| {
            explorer.forget();
            long_history(&setup, seed, &mut explorer).is_err()
        });
        let states = explorer.counts.states + explorer.counts.kills;
        println!("{name}: caught by long histories after {states} states");
        if !caught {
            missed.push(name);
        }
    }
    assert!(missed.is_empty(), "not caught by long histories: {missed:?}");
}
