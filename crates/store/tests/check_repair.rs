//! A repair gives back exactly what was there, or leaves things alone; undone, every byte is what it was.
//!
//! `CHECK_FLIPS=1` flips every byte of the structures instead of
//! one byte in 97; `CHECK_RUNS=100000` does so many random damages instead of 120.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests may"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use common::image::{
    BOOT, DATA, LATER_BOOT, LIVE, LIVE_BOOT_ID, Oracle, PAGES, UUID, medium_of, options, put, seal,
};
use common::sim::SimMedium;
use common::{LaneExt, geometry, seeded};
use virtio_zbd_store::{
    CheckOptions, CheckReport, CreateOptions, EngineChoice, FindingKind, ImageStore, Medium, Opens, Repaired,
    Store, StoreError, UndoFault,
};
use virtio_zbd_zones::Condition;

fn with_boot(boot_id: [u8; 16]) -> CheckOptions {
    CheckOptions { boot_id: Some(boot_id), clear_behind: true, ..CheckOptions::default() }
}

fn repair(medium: &Arc<SimMedium>, kept: &Arc<SimMedium>) -> Repaired {
    ImageStore::repair_on(&**medium, with_boot(BOOT), &**kept).unwrap()
}

fn text(report: &CheckReport) -> String {
    report.findings.iter().map(|finding| format!("{:?} {finding}\n", finding.severity)).collect()
}

fn runs(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|runs| runs.parse().ok()).unwrap_or(default)
}

/// Repairs damaged bytes, and holds the outcome against the oracle.
fn repaired_or_left_alone(oracle: &Oracle, damaged: &[u8]) -> Repaired {
    // Without being told to, a repair changes nothing from the first zone on, whatever is damaged.
    let untouched = medium_of(damaged);
    let options = CheckOptions { clear_behind: false, ..with_boot(BOOT) };
    ImageStore::repair_on(&*untouched, options, &*SimMedium::new(1)).unwrap();
    let from = DATA.min(damaged.len());
    assert!(untouched.bytes()[from..damaged.len()] == damaged[from..]);

    let (medium, kept) = (medium_of(damaged), SimMedium::new(1));
    let repaired = repair(&medium, &kept);
    let (before, bytes) = (&repaired.before, medium.bytes());
    assert!(before.is_clean() <= (bytes == damaged), "what is clean is not repaired");
    let Some(after) = &repaired.after else {
        assert!(bytes == damaged, "something was changed and not told");
        assert!(kept.bytes().is_empty());
        assert_eq!(before.repairable(), 0, "{}", text(before));
        if before.is_clean() {
            assert_eq!(before.opens, Opens::Yes);
            oracle.holds(&medium, BOOT).unwrap_or_else(|why| panic!("{why}\n{}", text(before)));
        }
        return repaired;
    };
    assert_eq!(after.repairable(), 0, "{}---\n{}", text(before), text(after));
    assert!(
        after.problems() <= before.problems() - before.repairable(),
        "{}---\n{}",
        text(before),
        text(after)
    );
    if before.repairable() == before.problems() {
        assert!(after.is_clean(), "{}---\n{}", text(before), text(after));
    }
    if after.is_clean() {
        assert_eq!(after.opens, Opens::Yes);
    }
    // A second repair finds nothing to do.
    assert!(repair(&medium, &SimMedium::new(1)).after.is_none());
    let undone = medium_of(&bytes);
    if after.opens == Opens::Yes {
        oracle
            .holds(&medium, BOOT)
            .unwrap_or_else(|why| panic!("{why}\n{}---\n{}", text(before), text(after)));
        // It was opened since: what was there before must not come back.
        let refused = ImageStore::undo_repair_on(&*medium, &*kept);
        assert!(
            matches!(refused, Err(StoreError::Undo { fault: UndoFault::Changed { .. }, .. })),
            "{refused:?}"
        );
    }
    for _ in 0..2 {
        ImageStore::undo_repair_on(&*undone, &*kept).unwrap();
        assert!(undone.bytes() == damaged, "not what it was before the repair");
    }
    repaired
}

#[test]
fn each_flipped_byte_is_repaired_or_left_alone() {
    let mut rng = seeded("each_flipped_byte_is_repaired_or_left_alone");
    let step = if runs("CHECK_FLIPS", 0) == 0 { 97 } else { 1 };
    let oracle = Oracle::new(&mut rng, 30, true);
    let newest = oracle.slot(0, oracle.newest_slot(0));
    let (mut mended, mut left) = (0, 0);
    for at in [0, 4096, PAGES, PAGES + 4096] {
        for place in (at + rng.usize(..step)..at + 4096).step_by(step) {
            let flip = rng.u8(1..);
            let mut bytes = oracle.bytes.clone();
            bytes[place] ^= flip;
            let repaired = repaired_or_left_alone(&oracle, &bytes);
            // Of the place that counts a single bit comes back, by the checksum and the sum; of others all do.
            let repairable = at != newest || flip.count_ones() == 1;
            assert_eq!(
                repaired.after.is_some_and(|after| after.is_clean()),
                repairable,
                "byte {place}, {flip:#x}"
            );
            if repairable {
                mended += 1;
            } else {
                left += 1;
            }
        }
        // One bit, in each of them.
        let mut bytes = oracle.bytes.clone();
        bytes[at + rng.usize(..4096)] ^= 1 << rng.u8(..8);
        assert!(repaired_or_left_alone(&oracle, &bytes).after.unwrap().is_clean());
    }
    println!("{mended} flips repaired, {left} left alone");
    assert!(mended > 100 && left > 20);
}

/// Damages an image at random places, but nothing that its zones hold.
fn damage(rng: &mut fastrand::Rng, oracle: &Oracle, other: &Oracle) -> Vec<u8> {
    let mut bytes = oracle.bytes.clone();
    let blocks: Vec<usize> = (0..2 + 2 * oracle.pages()).map(|block| block * 4096).collect();
    let sequential: Vec<usize> = (2..oracle.states.len()).collect();
    let behind = |zone: usize| {
        oracle.zone(zone) + oracle.states[zone].wp_sectors as usize * 512..oracle.zone(zone) + 2048
    };
    for _ in 0..rng.usize(1..5) {
        let block = blocks[rng.usize(..blocks.len())];
        match rng.u8(..12) {
            0..=3 => {
                for _ in 0..rng.usize(1..4) {
                    bytes[block + rng.usize(..4096)] ^= rng.u8(1..);
                }
            }
            4 => bytes[block + rng.usize(..4096)] ^= 1 << rng.u8(..8),
            5 => bytes[block..block + 4096].fill(0),
            6 => {
                let from = rng.usize(..4096);
                rng.fill(&mut bytes[block + from..block + 4096]);
            }
            // A misplaced write: of this image, or of another one.
            7 => {
                let from = blocks[rng.usize(..blocks.len())];
                bytes.copy_within(from..from + 4096, block);
            }
            8 if block >= PAGES => {
                bytes[block..block + 4096].copy_from_slice(&other.bytes[block..block + 4096])
            }
            8 => bytes[block..block + 4096].copy_from_slice(&other.bytes[block..block + 4096]),
            9..=10 => {
                let range = behind(sequential[rng.usize(..sequential.len())]);
                if !range.is_empty() {
                    let from = rng.usize(range.clone());
                    let to = rng.usize(from..=range.end);
                    rng.fill(&mut bytes[from..to]);
                }
            }
            _ => {
                let at = [LIVE + rng.usize(..65536), LIVE + 65536 + rng.usize(..1000)][rng.usize(..2)];
                bytes[at] ^= rng.u8(1..);
            }
        }
    }
    if rng.u8(..6) == 0 {
        bytes.truncate(rng.usize(DATA + 4096..bytes.len()));
    }
    bytes
}

#[test]
fn random_damage_is_repaired_exactly_or_left_alone() {
    let mut rng = seeded("random_damage_is_repaired_exactly_or_left_alone");
    let runs = runs("CHECK_RUNS", 120);
    let (mut clean, mut whole, mut part, mut nothing) = (0, 0, 0, 0);
    let mut oracles = Vec::new();
    for run in 0..runs {
        if run % 50 == 0 {
            let zones = [30, 30, 504, 1100][rng.usize(..4)];
            oracles = vec![Oracle::new(&mut rng, zones, true), Oracle::new(&mut rng, zones, true)];
        }
        let damaged = damage(&mut rng, &oracles[0], &oracles[1]);
        let ours = |copy: usize| damaged[copy + UUID..copy + UUID + 16] == oracles[0].bytes[UUID..UUID + 16];
        if !ours(0) && !ours(4096) && damaged[UUID..UUID + 16] == damaged[4096 + UUID..4096 + UUID + 16] {
            // Both superblocks are another image's: nothing says any more that this is not that one.
            continue;
        }
        let repaired = repaired_or_left_alone(&oracles[0], &damaged);
        match &repaired.after {
            None if repaired.before.is_clean() => clean += 1,
            None => nothing += 1,
            Some(after) if after.is_clean() => whole += 1,
            Some(_) => part += 1,
        }
    }
    println!("{clean} clean, {whole} repaired, {part} in part, {nothing} not");
    assert!(whole > runs / 10 && nothing > runs / 50);
}

/// An image with all that can be repaired at once, and what it was.
fn much_damaged(rng: &mut fastrand::Rng) -> (Oracle, Vec<u8>) {
    let oracle = Oracle::new(rng, 1100, true);
    let mut bytes = oracle.bytes.clone();
    rng.fill(&mut bytes[4096 + 50..8000]);
    bytes[oracle.slot(0, oracle.newest_slot(0)) + 99] ^= 4;
    let older = oracle.slot(1, 1 - oracle.newest_slot(1));
    rng.fill(&mut bytes[older..older + 4096]);
    for zone in [500, 501, 700] {
        let at = oracle.zone(zone);
        rng.fill(&mut bytes[at + 100..at + 2000]);
    }
    let used = (0..1100).rfind(|&zone| oracle.states[zone].condition != Condition::Empty).unwrap();
    bytes.truncate(oracle.zone(used + 1).min(bytes.len() - 100));
    (oracle, bytes)
}

#[test]
fn a_repair_may_be_killed_and_the_power_may_fail_at_any_moment() {
    let mut rng = seeded("a_repair_may_be_killed_and_the_power_may_fail_at_any_moment");
    for cut in [false, true] {
        let (oracle, damaged) = much_damaged(&mut rng);
        // While the copy is written.
        for calls in 1.. {
            let (medium, kept) = (medium_of(&damaged), SimMedium::new(rng.u64(..)));
            kept.die_after(calls);
            if ImageStore::repair_on(&*medium, with_boot(BOOT), &*kept).is_ok() {
                assert!(calls > 3, "there was hardly anything to be interrupted");
                break;
            }
            kept.revive();
            if cut {
                kept.cut_power();
            }
            assert!(medium.bytes() == damaged, "the image was changed before its copy was safe");
            let _ = ImageStore::undo_repair_on(&*medium, &*kept);
            assert!(medium.bytes() == damaged);
        }
        // While the image is.
        for calls in 1.. {
            let (medium, kept) = (medium_of(&damaged), SimMedium::new(rng.u64(..)));
            medium.die_after(calls);
            let done = ImageStore::repair_on(&*medium, with_boot(BOOT), &*kept).is_ok();
            // The copy was safe before the first change.
            kept.cut_power();
            survived(&oracle, &damaged, &medium, &kept, cut);
            if done {
                assert!(calls > 3, "there was hardly anything to be interrupted");
                break;
            }
        }
    }
}

/// After a repair that was stopped: both it and its undoing can be done to the end.
fn survived(oracle: &Oracle, damaged: &[u8], medium: &Arc<SimMedium>, kept: &Arc<SimMedium>, cut: bool) {
    medium.revive();
    if cut {
        medium.cut_power();
    }
    let bytes = medium.bytes();
    let undone = medium_of(&bytes);
    ImageStore::undo_repair_on(&*undone, &**kept).unwrap();
    assert!(undone.bytes() == damaged, "not what it was before the repair");
    let second = SimMedium::new(2);
    let repaired = repair(medium, &second);
    let last = repaired.after.as_ref().unwrap_or(&repaired.before);
    assert!(last.is_clean(), "{}", text(last));
    // Two repairs, undone one after the other.
    let undone = medium_of(&medium.bytes());
    if repaired.after.is_some() {
        ImageStore::undo_repair_on(&*undone, &*second).unwrap();
        assert!(undone.bytes() == bytes);
    }
    ImageStore::undo_repair_on(&*undone, &**kept).unwrap();
    assert!(undone.bytes() == damaged);
    oracle.holds(medium, BOOT).unwrap();
}

#[test]
fn an_undoing_may_be_stopped_at_any_moment() {
    let mut rng = seeded("an_undoing_may_be_stopped_at_any_moment");
    let (_, damaged) = much_damaged(&mut rng);
    let (medium, kept) = (medium_of(&damaged), SimMedium::new(1));
    assert!(repair(&medium, &kept).after.unwrap().is_clean());
    let repaired = medium.bytes();
    for calls in 1.. {
        let medium = medium_of(&repaired);
        medium.die_after(calls);
        let done = ImageStore::undo_repair_on(&*medium, &*kept).is_ok();
        medium.revive();
        if calls % 2 == 0 {
            medium.cut_power();
        }
        ImageStore::undo_repair_on(&*medium, &*kept).unwrap();
        assert!(medium.bytes() == damaged);
        if done {
            break;
        }
    }
}

#[test]
fn after_a_kill_the_live_area_gives_lost_pages_back() {
    let mut rng = seeded("after_a_kill_the_live_area_gives_lost_pages_back");
    for _ in 0..10 {
        let oracle = Oracle::new(&mut rng, 600, false);
        let mut bytes = oracle.bytes.clone();
        let page = rng.usize(..2);
        for slot in [0, 1] {
            let at = oracle.slot(page, slot);
            rng.fill(&mut bytes[at + 20..at + 4096]);
        }
        let repaired = repaired_or_left_alone(&oracle, &bytes);
        assert!(repaired.after.unwrap().is_clean());
        // In another boot the live area does not count.
        let other =
            ImageStore::repair_on(&*medium_of(&bytes), with_boot(LATER_BOOT), &*SimMedium::new(1)).unwrap();
        assert!(other.after.is_none() && matches!(other.before.opens, Opens::No(_)));
    }
}

#[test]
fn nothing_is_repaired_where_two_images_are_mixed() {
    let mut rng = seeded("nothing_is_repaired_where_two_images_are_mixed");
    for _ in 0..10 {
        let [oracle, other] = [(); 2].map(|()| Oracle::new(&mut rng, 30, true));
        // Another image's superblock and page were written here, and what is left of ours is damaged: all that counts is
        // the other's, and it would open.
        let mut bytes = oracle.bytes.clone();
        bytes[..4096].copy_from_slice(&other.bytes[..4096]);
        let page = other.slot(0, other.newest_slot(0));
        bytes[page..page + 4096].copy_from_slice(&other.bytes[page..page + 4096]);
        bytes[4096 + 300..4096 + 310].fill(0x5a);
        let medium = medium_of(&bytes);
        let repaired = repair(&medium, &SimMedium::new(1));
        assert!(repaired.after.is_none() && repaired.before.repairable() == 0, "{}", text(&repaired.before));
        assert!(repaired.before.problems() >= 2);
        assert!(medium.bytes() == bytes);
    }
}

#[test]
fn nothing_is_repaired_in_an_image_of_a_newer_program() {
    let mut rng = seeded("nothing_is_repaired_in_an_image_of_a_newer_program");
    let oracle = Oracle::new(&mut rng, 30, true);
    for (at, value) in [(8, 2u64), (64, 1), (72, 1)] {
        let mut bytes = oracle.bytes.clone();
        for copy in [0, 4096] {
            put(&mut bytes, copy + at, &value.to_le_bytes()[..if at == 8 { 4 } else { 8 }]);
            seal(&mut bytes, copy);
        }
        bytes[oracle.slot(0, 1 - oracle.newest_slot(0))] ^= 1;
        bytes[oracle.zone(29)] = 1;
        bytes[4096 + 200] = 1;
        let medium = medium_of(&bytes);
        assert!(repair(&medium, &SimMedium::new(1)).after.is_none());
        assert!(medium.bytes() == bytes);
    }
}

#[test]
fn a_file_is_repaired_and_its_repair_undone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let path = at("disk.zbd");
    ImageStore::create(&path, geometry(), CreateOptions::default()).unwrap();
    {
        let store = ImageStore::open(&path, options(BOOT, false)).unwrap();
        let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
        lane.write_now(0, &[1; 4096]).unwrap();
        lane.write_now(2 * 512 * 512, &[7; 8192]).unwrap();
        store.publish(2, common::closed(16));
        store.close().unwrap();
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let good = fs::read(&path).unwrap();
    let options = CheckOptions { clear_behind: true, ..CheckOptions::default() };
    assert!(ImageStore::repair(&path, options).unwrap().kept.is_none());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing to repair, nothing to keep");
    // A damaged superblock, something behind a write pointer, and the file's last zones gone.
    let mut bytes = good.clone();
    bytes[33] ^= 0xf;
    bytes[DATA + 2 * 512 * 512 + 8192 + 5] = 9;
    bytes.truncate(DATA + 10 * 512 * 512 + 77);
    fs::write(&path, &bytes).unwrap();
    let reader = fs::File::open(&path).unwrap();
    rustix::fs::flock(&reader, rustix::fs::FlockOperation::LockShared).unwrap();
    assert!(matches!(ImageStore::repair(&path, options), Err(StoreError::InUse { .. })));
    assert!(fs::read(&path).unwrap() == bytes);
    drop(reader);
    let repaired = ImageStore::repair(&path, options).unwrap();
    assert_eq!(
        (repaired.before.problems(), repaired.before.repairable()),
        (3, 3),
        "{}",
        text(&repaired.before)
    );
    assert!(repaired.after.unwrap().is_clean());
    let kept = repaired.kept.unwrap();
    assert_eq!(kept, at("disk.zbd.repair-1"));
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read(&path).unwrap() == good);
    // A later damage and its repair: a file of its own.
    let mut worse = good.clone();
    worse[4096 + 33] ^= 0xf;
    fs::write(&path, &worse).unwrap();
    let second = ImageStore::repair(&path, options).unwrap().kept.unwrap();
    assert_eq!(second, at("disk.zbd.repair-2"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    ImageStore::undo_repair(&path, &second).unwrap();
    assert!(fs::read(&path).unwrap() == worse);
    ImageStore::repair(&path, options).unwrap();
    ImageStore::undo_repair(&path, &kept).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    // What can't be undone, and why.
    let fault = |path: &std::path::Path, kept: &std::path::Path| match ImageStore::undo_repair(path, kept) {
        Err(StoreError::Undo { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(&path, &path), UndoFault::NotKept);
    let other = at("other.zbd");
    ImageStore::create(&other, geometry(), CreateOptions::default()).unwrap();
    assert!(matches!(
        fault(&other, &kept),
        UndoFault::ImageLength { .. } | UndoFault::OtherImage { .. } | UndoFault::Changed { .. }
    ));
    let keeper = fs::read(&kept).unwrap();
    let bad = at("bad");
    fs::write(&bad, &keeper[..keeper.len() - 1]).unwrap();
    assert!(matches!(fault(&path, &bad), UndoFault::Length { .. }));
    for place in [1, 20, 100, 4096, 4100, 4200, keeper.len() - 1] {
        let mut bytes = keeper.clone();
        bytes[place] ^= 1;
        fs::write(&bad, bytes).unwrap();
        let found = fault(&path, &bad);
        assert!(matches!(found, UndoFault::Damaged { .. } | UndoFault::NotKept), "{place}: {found}");
    }
    assert!(fs::read(&path).unwrap() == bytes, "none of these has changed anything");
    // Opened since.
    ImageStore::repair(&path, options).unwrap();
    ImageStore::open(&path, common::image::options(BOOT, false)).unwrap().close().unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(fault(&path, &kept), UndoFault::Changed { .. }));
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn a_repair_that_finds_no_room_for_its_copy_changes_nothing() {
    let mut rng = seeded("a_repair_that_finds_no_room_for_its_copy_changes_nothing");
    let (_, damaged) = much_damaged(&mut rng);
    for writes in 0..8 {
        let (medium, kept) = (medium_of(&damaged), SimMedium::new(1));
        kept.fail_write_after(Some(writes));
        let failed = ImageStore::repair_on(&*medium, with_boot(BOOT), &*kept);
        if failed.is_ok() {
            continue;
        }
        assert!(matches!(failed, Err(StoreError::Io { .. })));
        assert!(medium.bytes() == damaged);
    }
    // A medium that fails under the repair: it says where the copy is.
    let (medium, kept) = (medium_of(&damaged), SimMedium::new(1));
    medium.fail_write_after(Some(1));
    let failed = ImageStore::repair_on(&*medium, with_boot(BOOT), &*kept).unwrap_err();
    assert!(matches!(failed, StoreError::Repair { .. }), "{failed}");
    medium.fail_write_after(None);
    ImageStore::undo_repair_on(&*medium, &*kept).unwrap();
    assert!(medium.bytes() == damaged);
}

#[test]
fn an_image_in_doubt_stays_so() {
    let mut rng = seeded("an_image_in_doubt_stays_so");
    let oracle = Oracle::new(&mut rng, 30, true);
    let mut bytes = oracle.bytes.clone();
    for copy in [0, 4096] {
        put(&mut bytes, copy + LIVE_BOOT_ID, [0xff; 16]);
        seal(&mut bytes, copy);
    }
    bytes[5] ^= 1;
    let medium = medium_of(&bytes);
    let repaired = repair(&medium, &SimMedium::new(1));
    assert_eq!(repaired.before.findings[0].kind, FindingKind::SuperblockDamaged);
    assert!(repaired.after.unwrap().is_clean());
    assert_eq!(medium.bytes()[LIVE_BOOT_ID..LIVE_BOOT_ID + 16], [0xff; 16]);
    assert!(medium.len_bytes().unwrap() == bytes.len() as u64);
}
