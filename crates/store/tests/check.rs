//! A check says all that is wrong, agrees with an opening, and writes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests may"
)]

mod common;

use std::fs;
use std::sync::Arc;

use common::image::{
    BOOT, DATA, ENTRIES, INCOMPAT, LATER_BOOT, LIVE, LIVE_BOOT_ID, Oracle, PAGES, RO_COMPAT, SEQUENCE, SUM,
    UUID, medium_of, options, put, seal, u64_at,
};
use common::sim::SimMedium;
use common::{LaneExt, closed, full, geometry, seeded};
use virtio_zbd_store::{
    CheckOptions, CheckReport, Commit, CreateOptions, EngineChoice, Finding, FindingKind, ImageStore,
    LastUse, Opens, Remedy, Severity, Store, StoreError,
};
use virtio_zbd_zones::{Condition, ZoneState};

fn with_boot(boot_id: [u8; 16]) -> CheckOptions {
    CheckOptions { boot_id: Some(boot_id), ..CheckOptions::default() }
}

/// Checks a medium: nothing is written, and an opening is of the same opinion.
#[track_caller]
fn check_in(medium: &Arc<SimMedium>, boot: [u8; 16]) -> CheckReport {
    let before = medium.bytes();
    let report = ImageStore::check_on(&**medium, with_boot(boot)).unwrap();
    assert!(medium.bytes() == before, "a check has written");
    let opens = |read_only| {
        // Only a writer needs a copy.
        let medium = if read_only { Arc::clone(medium) } else { medium_of(&before) };
        ImageStore::open_on(medium, options(boot, read_only)).err().map(|error| error.to_string())
    };
    match (&report.opens, opens(true), opens(false)) {
        (Opens::Yes, None, None) => assert!(report.next_opening.is_some()),
        (Opens::ReadOnly(why), None, Some(refused)) => assert_eq!(*why, refused),
        (Opens::No(why), Some(refused), Some(_)) => assert_eq!(*why, refused),
        other => panic!("{other:?}"),
    }
    // What refuses is among the findings, by its own name.
    let fatal = report.findings.iter().any(|finding| finding.severity == Severity::Fatal);
    assert_eq!(fatal, report.opens != Opens::Yes, "{:?}: {}", report.opens, text(&report));
    assert!(report.findings.iter().all(|finding| finding.kind != FindingKind::Refused), "{}", text(&report));
    for finding in &report.findings {
        let said = finding.to_string();
        assert!(said.len() > 30 && !said.contains('{'), "{said}");
    }
    report
}

#[track_caller]
fn check(bytes: &[u8]) -> CheckReport {
    check_in(&medium_of(bytes), BOOT)
}

fn text(report: &CheckReport) -> String {
    report.findings.iter().map(|finding| format!("{:?} {finding}\n", finding.severity)).collect()
}

/// The findings, as kinds.
fn kinds(report: &CheckReport) -> Vec<FindingKind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

/// The one finding of this kind.
#[track_caller]
fn only(report: &CheckReport, kind: FindingKind) -> &Finding {
    let found: Vec<_> = report.findings.iter().filter(|finding| finding.kind == kind).collect();
    let [one] = found[..] else { panic!("{kind:?}: {}", text(report)) };
    one
}

fn used(close: bool) -> Oracle {
    Oracle::new(&mut fastrand::Rng::with_seed(7), 30, close)
}

/// An image of three zone-state pages.
fn large() -> Oracle {
    Oracle::new(&mut fastrand::Rng::with_seed(8), 1100, true)
}

#[test]
fn a_good_image_is_clean_and_nothing_is_said() {
    let mut rng = seeded("a_good_image_is_clean_and_nothing_is_said");
    for _ in 0..10 {
        let zones = [30, 504, 505, 1100][rng.usize(..4)];
        let oracle = Oracle::new(&mut rng, zones, true);
        oracle.holds(&oracle.medium(), BOOT).unwrap();
        let report = check(&oracle.bytes);
        assert!(report.findings.is_empty() && report.is_clean(), "{}", text(&report));
        let image = report.image.unwrap();
        assert_eq!((image.geometry, image.last_use), (Some(oracle.geometry), LastUse::Closed));
        let next = report.next_opening.unwrap();
        assert_eq!((next.swept_bytes, next.pages_written, next.unflushed_zones), (0, 0, 0));
        let counted =
            |condition| oracle.states.iter().filter(|state| state.condition == condition).count() as u32;
        assert_eq!(next.zones.conventional, 2);
        assert_eq!(next.zones.empty, counted(Condition::Empty));
        assert_eq!(next.zones.closed, counted(Condition::Closed));
        assert_eq!(next.zones.full, counted(Condition::Full));
    }
}

#[test]
fn a_file_is_checked_beside_readers_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.zbd");
    ImageStore::create(&path, geometry(), CreateOptions::default()).unwrap();
    let report = ImageStore::check(&path, CheckOptions::default()).unwrap();
    assert!(report.findings.is_empty(), "{}", text(&report));
    let store = ImageStore::open(&path, options(BOOT, false)).unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    lane.write_now(2 * 512 * 512, &[7; 8192]).unwrap();
    store.publish(2, closed(8));
    assert!(matches!(ImageStore::check(&path, CheckOptions::default()), Err(StoreError::InUse { .. })));
    // Killed: a sweep will take the 4096 bytes behind the write pointer.
    drop((store, lane));
    let before = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
    let reader = ImageStore::open(&path, options(BOOT, true)).unwrap();
    let report = ImageStore::check(&path, with_boot(BOOT)).unwrap();
    assert!(report.findings.is_empty(), "{}", text(&report));
    let next = report.next_opening.unwrap();
    assert!(next.live_area_counts);
    assert_eq!((next.swept_bytes, next.swept_zones, next.unflushed_zones), (4096, 1, 1));
    assert_eq!((next.zones.closed, next.pages_written), (1, 1));
    drop(reader);
    let later = ImageStore::check(&path, with_boot(LATER_BOOT)).unwrap();
    let next = later.next_opening.unwrap();
    assert!(later.is_clean() && !next.live_area_counts);
    assert_eq!((next.swept_bytes, next.swept_zones, next.unflushed_zones), (8192, 1, 0));
    assert_eq!(later.image.unwrap().last_use, LastUse::PowerLost);
    assert!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap()) == before);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    // A copy without holes has zeros behind the write pointers; one with zeros as holes has none below.
    ImageStore::open(&path, options(BOOT, false)).unwrap().close().unwrap();
    let copy = directory.path().join("copy.zbd");
    for (sparse, notes) in [("never", 0), ("always", 0)] {
        let status =
            std::process::Command::new("cp").arg(format!("--sparse={sparse}")).args([&path, &copy]).status();
        assert!(status.unwrap().success());
        let report = ImageStore::check(&copy, with_boot(BOOT)).unwrap();
        assert!(report.is_clean() && report.findings.len() == notes, "{sparse}: {}", text(&report));
    }
}

#[test]
fn each_flipped_byte_of_the_structures_is_found_where_it_is() {
    let mut rng = seeded("each_flipped_byte_of_the_structures_is_found_where_it_is");
    let oracle = used(true);
    let newest = oracle.slot(0, oracle.newest_slot(0));
    let medium = oracle.medium();
    for at in [0, 4096, PAGES, PAGES + 4096] {
        for place in (at..at + 4096).filter(|place| place % 4096 < 200 || place % 61 == 0) {
            let flip = rng.u8(1..);
            medium.damage(place, |bytes| bytes[0] ^= flip);
            let report = check_in(&medium, BOOT);
            let here: Vec<_> = report
                .findings
                .iter()
                .filter(|f| f.is_problem() && f.bytes.contains(&(place as u64)))
                .collect();
            assert!(!here.is_empty(), "byte {place}: {}", text(&report));
            assert_eq!(report.opens == Opens::Yes, at != newest, "byte {place}");
            if at != newest {
                assert_eq!(report.problems(), 1, "{}", text(&report));
                assert_eq!(here[0].remedy, Remedy::Repair);
            }
            medium.damage(place, |bytes| bytes[0] ^= flip);
        }
    }
    assert!(check_in(&medium, BOOT).findings.is_empty());
}

#[test]
fn a_superblock_copy_says_what_is_wrong_with_it() {
    let good = used(true).bytes;
    let damaged = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = good.clone();
        change(&mut bytes);
        check(&bytes)
    };
    let report = damaged(&|b| b[12] ^= 0xff);
    assert!(
        only(&report, FindingKind::SuperblockDamaged)
            .found
            .contains("all but the checksum is as in the other")
    );
    let report = damaged(&|b| b[4096 + 97] ^= 3);
    let found = only(&report, FindingKind::SuperblockDamaged);
    assert!(found.found.contains("conventional_zones") && found.found.contains("byte 97"), "{found}");
    assert_eq!(found.bytes, 4096..8192);
    // Older by one, as after a crash; by more; the same number on two contents.
    let behind = |by: u64, sum: u8| {
        damaged(&|b| {
            let sequence = u64_at(b, SEQUENCE) - by;
            put(b, SEQUENCE, sequence.to_le_bytes());
            b[SUM] ^= sum;
            seal(b, 0);
        })
    };
    assert_eq!(kinds(&behind(1, 0)), [FindingKind::SuperblockOlder]);
    assert!(behind(1, 0).is_clean());
    assert_eq!(kinds(&behind(2, 1)), [FindingKind::SuperblockStale]);
    let report = damaged(&|b| {
        b[4096 + 4000] = 1;
        seal(b, 4096);
    });
    assert_eq!(only(&report, FindingKind::SuperblocksDiffer).severity, Severity::Damage);
    // Both: beyond help, or with one bit each not.
    let report = damaged(&|b| {
        b[100..200].fill(9);
        b[4096 + 100..4096 + 200].fill(9);
    });
    assert_eq!(kinds(&report), [FindingKind::SuperblockDamaged; 2]);
    assert!(report.findings.iter().all(|finding| finding.remedy == Remedy::Copy));
    let report = damaged(&|b| {
        b[88] ^= 4;
        b[4096 + 1000] ^= 0x80;
    });
    assert!(report.findings.iter().all(|finding| finding.remedy == Remedy::Repair), "{}", text(&report));
    assert_eq!(report.image.unwrap().geometry, Some(used(true).geometry));
}

#[test]
fn files_that_are_no_images_and_those_of_newer_programs() {
    for bytes in
        [b"".to_vec(), b"#!/bin/sh\n".to_vec(), vec![0; 1 << 21], vec![0xff; 5000], b"VZBDIM".to_vec()]
    {
        assert_eq!(kinds(&check(&bytes)), [FindingKind::NotAnImage]);
    }
    let good = used(true).bytes;
    let mut bytes = good.clone();
    bytes[..8192].fill(0);
    let report = check(&bytes);
    let found = only(&report, FindingKind::NotAnImage);
    assert!(found.found.contains("it was an image") && found.remedy == Remedy::Copy, "{found}");
    let both = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        for copy in [0, 4096] {
            put(&mut bytes, copy + at, value);
            seal(&mut bytes, copy);
        }
        // Something else that is wrong, too.
        bytes[PAGES] ^= 1;
        check(&bytes)
    };
    assert_eq!(kinds(&both(8, &[2, 0, 0, 0])), [FindingKind::Version]);
    assert_eq!(kinds(&both(INCOMPAT, &[0, 0, 0, 0, 0, 0, 0, 0x80])), [FindingKind::Features]);
    // It may be read, so the rest is looked at, but not touched.
    let report = both(RO_COMPAT, &[1]);
    assert!(matches!(report.opens, Opens::ReadOnly(_) | Opens::No(_)));
    assert!(kinds(&report).contains(&FindingKind::Features) && report.findings.len() > 1);
    assert_eq!(report.repair_len_bytes(), 0);
    let report = both(56, &[1]);
    assert_eq!(only(&report, FindingKind::Features).severity, Severity::Note);
    // All values that can't be, not only the first.
    let report = both(116, &[9, 9, 9, 9]);
    assert_eq!(kinds(&report), [FindingKind::Layout]);
    let mut bytes = good.clone();
    for copy in [0, 4096] {
        put(&mut bytes, copy + 116, 3u32.to_le_bytes());
        put(&mut bytes, copy + 136, 4097u64.to_le_bytes());
        put(&mut bytes, copy + 160, 1u64.to_le_bytes());
        seal(&mut bytes, copy);
    }
    assert_eq!(kinds(&check(&bytes)), [FindingKind::Layout; 3]);
    assert_eq!(kinds(&both(92, &[0, 0, 0, 0])), [FindingKind::Geometry]);
}

#[test]
fn a_superblock_of_another_image_is_told_by_the_pages() {
    let good = used(true).bytes;
    let mut bytes = good.clone();
    let other = Oracle::new(&mut fastrand::Rng::with_seed(9), 30, true).bytes;
    bytes[..4096].copy_from_slice(&other[..4096]);
    let report = check(&bytes);
    let found = only(&report, FindingKind::SuperblockForeign);
    assert_eq!((found.bytes.clone(), found.remedy), (0..4096, Remedy::Repair));
    assert_eq!(report.image.unwrap().uuid.as_bytes()[..], good[UUID..UUID + 16]);
    // Nobody can tell any more.
    bytes[PAGES..PAGES + 8192].fill(0);
    assert_eq!(only(&check(&bytes), FindingKind::SuperblockForeign).remedy, Remedy::Copy);
}

#[test]
fn lost_pages_are_told_each_with_its_zones() {
    let oracle = large();
    let at = |page, newest: bool| {
        oracle.slot(page, if newest { oracle.newest_slot(page) } else { 1 - oracle.newest_slot(page) })
    };
    let damaged = |places: &[usize]| {
        let mut bytes = oracle.bytes.clone();
        for &place in places {
            bytes[place + 200..place + 260].fill(0x5a);
        }
        check(&bytes)
    };
    // The older places: nothing is lost.
    let report = damaged(&[at(0, false), at(1, false), at(2, false)]);
    assert_eq!(kinds(&report), [FindingKind::SlotDamaged; 3]);
    assert_eq!((report.problems(), report.repairable()), (3, 3));
    assert_eq!(report.findings[1].zones.0, [504..=1007]);
    // Both places of page 1, the newest of page 2.
    let report = damaged(&[at(1, true), at(1, false), at(2, true)]);
    assert_eq!(kinds(&report)[..2], [FindingKind::PageLost; 2]);
    assert_eq!(report.findings[0].zones.0, [504..=1007]);
    assert_eq!(report.findings[2].zones.0, [1008..=1099]);
    assert_eq!(report.repairable(), 0);
    // The newest of all three.
    let report = damaged(&[at(0, true), at(1, true), at(2, true)]);
    assert_eq!(kinds(&report)[..3], [FindingKind::PageNewestLost; 3]);
    assert_eq!(only(&report, FindingKind::SequenceSum).remedy, Remedy::Copy);
    // One newest, one older: it can't be told which is which, and nothing is touched.
    let report = damaged(&[at(0, true), at(2, false)]);
    assert_eq!(kinds(&report)[..2], [FindingKind::SlotDamaged; 2]);
    assert_eq!((report.repairable(), report.repair_len_bytes()), (0, 0));
    only(&report, FindingKind::SequenceSum);
    // One bit of the newest version can be told from the checksum and the sum; the older place beside it, too.
    let mut bytes = oracle.bytes.clone();
    bytes[at(2, true) + 77] ^= 0x10;
    bytes[at(0, false) + 3000] = !bytes[at(0, false) + 3000];
    let report = check(&bytes);
    assert_eq!(kinds(&report), [FindingKind::SlotDamaged, FindingKind::PageNewestLost]);
    assert_eq!(report.repairable(), 2);
}

#[test]
fn a_page_of_another_place_or_image_is_none() {
    let oracle = large();
    let mut bytes = oracle.bytes.clone();
    let older = oracle.slot(0, 1 - oracle.newest_slot(0));
    bytes[older + UUID] ^= 1;
    seal(&mut bytes, older);
    let report = check(&bytes);
    assert!(only(&report, FindingKind::SlotDamaged).found.contains("belongs to another image ("));
    let other = oracle.slot(1, 0);
    bytes.copy_within(other..other + 4096, older);
    assert!(only(&check(&bytes), FindingKind::SlotDamaged).found.contains("says that it is page 1"));
    // A write that was lost; the same version twice; twice with different contents.
    let mut bytes = oracle.bytes.clone();
    let newest = oracle.slot(0, oracle.newest_slot(0));
    let sequence = u64_at(&bytes, newest + SEQUENCE);
    put(&mut bytes, older + SEQUENCE, (sequence - 2).to_le_bytes());
    seal(&mut bytes, older);
    assert_eq!(kinds(&check(&bytes)), [FindingKind::SlotStale]);
    bytes.copy_within(newest..newest + 4096, older);
    assert!(only(&check(&bytes), FindingKind::SlotDamaged).found.contains("the same version"));
    put(&mut bytes, older + ENTRIES + 4 * 8, closed(1).to_bits().to_le_bytes());
    put(&mut bytes, older + ENTRIES + 5 * 8, closed(1).to_bits().to_le_bytes());
    bytes[older + 40] = 1;
    seal(&mut bytes, older);
    assert_eq!(kinds(&check(&bytes))[..2], [FindingKind::PageLost; 2]);
    // A state that can't be, in the place that does not count.
    let mut bytes = oracle.bytes.clone();
    put(&mut bytes, older + ENTRIES + 4 * 8, (5u64 << 56).to_le_bytes());
    seal(&mut bytes, older);
    assert_eq!(kinds(&check(&bytes)), [FindingKind::SlotStale]);
    // The superblock forgot the last flush.
    let mut bytes = oracle.bytes.clone();
    for copy in [0, 4096] {
        bytes[copy + SUM] -= 1;
        seal(&mut bytes, copy);
    }
    assert!(only(&check(&bytes), FindingKind::SequenceSum).found.contains("newer"));
}

#[test]
fn states_that_can_not_be_are_told_all() {
    let oracle = used(true);
    let mut bytes = oracle.bytes.clone();
    let newest = oracle.slot(0, oracle.newest_slot(0));
    for (zone, bits) in [(0usize, 1u64 << 56), (3, 5 << 56), (4, 4 << 56 | 9), (29, 1 << 56 | 1)] {
        put(&mut bytes, newest + ENTRIES + 8 * zone, bits.to_le_bytes());
    }
    seal(&mut bytes, newest);
    let report = check(&bytes);
    let found: Vec<_> = report.findings.iter().filter(|f| f.kind == FindingKind::ZoneState).collect();
    let zones: Vec<u32> = found.iter().map(|finding| *finding.zones.0[0].start()).collect();
    assert_eq!(zones, [0, 3, 4, 29]);
    assert_eq!(found[1].bytes, (newest + ENTRIES + 24) as u64..(newest + ENTRIES + 32) as u64);
    // In the live area they count only after a kill.
    let mut bytes = used(false).bytes;
    put(&mut bytes, LIVE + 8 * 3, (5u64 << 56).to_le_bytes());
    let report = check(&bytes);
    let found = only(&report, FindingKind::ZoneState);
    assert_eq!((found.bytes.clone(), found.remedy), ((LIVE + 24) as u64..(LIVE + 32) as u64, Remedy::Advice));
    assert!(check_in(&medium_of(&bytes), LATER_BOOT).is_clean());
    // Too many active zones.
    let mut bytes = oracle.bytes.clone();
    for zone in 2..9 {
        put(&mut bytes, newest + ENTRIES + 8 * zone, closed(1).to_bits().to_le_bytes());
    }
    seal(&mut bytes, newest);
    only(&check(&bytes), FindingKind::TooManyActive);
}

#[test]
fn a_short_file_says_which_zones_lose_what() {
    let oracle = used(true);
    let last_used = (0..30)
        .map(|zone| (zone, oracle.states[zone].wp_sectors as usize))
        .rfind(|(_, wp)| *wp > 0)
        .map(|(zone, wp)| oracle.zone(zone) + wp * 512)
        .unwrap();
    for len in (DATA..oracle.bytes.len()).step_by(256) {
        let report = check(&oracle.bytes[..len]);
        let short = only(&report, FindingKind::FileTooShort);
        assert_eq!(short.bytes, len as u64..oracle.bytes.len() as u64);
        assert_eq!(short.remedy == Remedy::Repair, len >= last_used, "{len}");
        let cut: Vec<u32> = report
            .findings
            .iter()
            .filter(|finding| finding.kind == FindingKind::ZoneCut)
            .map(|finding| *finding.zones.0[0].start())
            .collect();
        let expected: Vec<u32> = (0..30)
            .filter(|&zone| {
                let state = oracle.states[zone];
                let sectors = if state.condition == Condition::NotWp { 4 } else { state.wp_sectors as usize };
                sectors > 0 && oracle.zone(zone) + sectors * 512 > len
            })
            .map(|zone| zone as u32)
            .collect();
        assert_eq!(cut, expected, "{len}");
    }
    // Cut in the structures: they are missing, and so is everything behind.
    for len in [8, 4095, 4096, 8191, 8192, PAGES + 5000, LIVE, LIVE + 10, DATA - 1] {
        let report = check(&oracle.bytes[..len]);
        assert!(kinds(&report).contains(&FindingKind::FileTooShort), "{len}: {}", text(&report));
        assert_eq!(report.repairable(), 0, "{len}: {}", text(&report));
    }
    let mut longer = oracle.bytes.clone();
    longer.extend([1; 1000]);
    assert_eq!(kinds(&check(&longer)), [FindingKind::FileLonger]);
}

#[test]
fn data_behind_a_write_pointer_is_found_in_a_closed_image() {
    let oracle = used(true);
    let (zone, state) = (2..30)
        .map(|zone| (zone, oracle.states[zone]))
        .find(|(_, state)| state.condition == Condition::Closed)
        .unwrap();
    let behind = oracle.zone(zone) + state.wp_sectors as usize * 512;
    for at in [behind, behind + 511, oracle.zone(zone + 1) - 1] {
        let mut bytes = oracle.bytes.clone();
        bytes[at] = 7;
        let report = check(&bytes);
        let found = only(&report, FindingKind::BehindWritePointer);
        assert_eq!(found.bytes, at as u64..at as u64 + 1);
        assert_eq!(found.zones.0, [zone as u32..=zone as u32]);
        assert_eq!((report.problems(), report.repairable(), report.repair_len_bytes()), (1, 0, 0));
        let options = CheckOptions { clear_behind: true, ..with_boot(BOOT) };
        let report = ImageStore::check_on(&*medium_of(&bytes), options).unwrap();
        assert_eq!((report.problems(), report.repairable(), report.repair_len_bytes()), (1, 1, 512));
    }
    // An open one: the next opening removes it.
    let live = used(false);
    let zone = (2..30).find(|&zone| live.states[zone].condition == Condition::Empty).unwrap();
    let mut bytes = live.bytes.clone();
    bytes[live.zone(zone)] = 7;
    let report = check(&bytes);
    assert!(report.findings.is_empty(), "{}", text(&report));
    let next = report.next_opening.unwrap();
    assert_eq!((next.swept_bytes, next.swept_zones), (512, 1));
    // A zone that the medium has given up may have anything there.
    let mut bytes = oracle.bytes.clone();
    let newest = oracle.slot(0, oracle.newest_slot(0));
    for (zone, condition) in [(28, Condition::ReadOnly), (29, Condition::Offline)] {
        let state = ZoneState { condition, wp_sectors: 0 };
        put(&mut bytes, newest + ENTRIES + 8 * zone, state.to_bits().to_le_bytes());
        bytes[oracle.zone(zone)] = 7;
    }
    seal(&mut bytes, newest);
    let report = check(&bytes);
    assert!(report.is_clean(), "{}", text(&report));
    // A hole below a write pointer is legal zeros.
    let mut bytes = oracle.bytes.clone();
    bytes[behind - 512..behind].fill(0);
    let report = check(&bytes);
    assert_eq!(only(&report, FindingKind::HolesBelowWritePointer).severity, Severity::Note);
    assert_eq!(report.findings.len(), 1);
}

#[test]
fn what_is_not_described_is_a_note() {
    let mut bytes = used(true).bytes;
    for at in [PAGES + 8192, LIVE + 30 * 8, DATA - 1] {
        bytes[at] = 1;
    }
    let report = check(&bytes);
    assert_eq!(kinds(&report), [FindingKind::Undescribed; 3]);
    assert!(report.is_clean());
    assert_eq!(report.findings[2].bytes, DATA as u64 - 1..DATA as u64);
}

#[test]
fn an_image_that_was_not_closed_says_what_the_next_opening_does() {
    let mut rng = seeded("an_image_that_was_not_closed_says_what_the_next_opening_does");
    for _ in 0..20 {
        let oracle = Oracle::new(&mut rng, 600, false);
        let report = check(&oracle.bytes);
        assert!(report.is_clean(), "{}", text(&report));
        let next = report.next_opening.unwrap();
        assert!(next.live_area_counts);
        let medium = oracle.medium();
        oracle.holds(&medium, BOOT).unwrap();
        // A torn write of a page, and another boot: what was flushed counts.
        let report = check_in(&medium_of(&oracle.bytes), LATER_BOOT);
        assert!(report.is_clean() && !report.next_opening.unwrap().live_area_counts);
        let mut bytes = oracle.bytes.clone();
        let page = rng.usize(..2);
        let slot = oracle.slot(page, 1 - oracle.newest_slot(page));
        bytes[slot + 2048..slot + 4096].fill(0x55);
        let report = check_in(&medium_of(&bytes), LATER_BOOT);
        let found = only(&report, FindingKind::SlotDamaged);
        assert_eq!((found.severity, found.remedy), (Severity::Note, Remedy::NextOpening));
        assert!(report.next_opening.unwrap().pages_written >= 1);
    }
    let mut bytes = used(true).bytes;
    for copy in [0, 4096] {
        put(&mut bytes, copy + LIVE_BOOT_ID, [0xff; 16]);
        seal(&mut bytes, copy);
    }
    assert_eq!(check(&bytes).image.unwrap().last_use, LastUse::MediumFailed);
}

#[test]
fn a_crash_is_no_finding() {
    let mut rng = seeded("a_crash_is_no_finding");
    let oracle = Oracle::new(&mut rng, 600, true);
    let mut boot = BOOT;
    let medium = oracle.medium();
    for n in 0..80 {
        // An opening, commits of all kinds and a closing, stopped somewhere.
        medium.die_after(rng.u64(1..40));
        let work = || -> Result<(), StoreError> {
            let store = ImageStore::open_on(medium.clone(), options(boot, false))?;
            for zone in [2, 3, 599] {
                let empty = ZoneState::EMPTY;
                store.publish(zone, empty);
                store.commit(&Commit { reset: &[zone], ..Commit::default() }).durable?;
                let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
                let _ = lane.write_now(u64::from(zone) * 4 * 512, &[n + 1; 1024]);
                if medium.is_dead() {
                    return Ok(());
                }
                store.publish(zone, full(2));
                store.commit(&Commit { flush: true, ..Commit::default() }).durable?;
            }
            store.close()
        };
        let _ = work();
        medium.revive();
        if n % 2 == 0 {
            medium.cut_power();
            boot = [n | 0x80; 16];
        }
        // What is torn now is repaired by the next opening, which is not refused.
        let report = check_in(&medium, boot);
        assert_eq!(report.opens, Opens::Yes, "{}", text(&report));
        let torn = [FindingKind::SuperblockDamaged, FindingKind::SlotDamaged, FindingKind::SuperblockOlder];
        let known = |finding: &Finding| torn.contains(&finding.kind) || finding.severity == Severity::Note;
        assert!(report.findings.iter().all(known), "{}", text(&report));
        if n % 3 == 0 {
            let store = ImageStore::open_on(medium.clone(), options(boot, false)).unwrap();
            if n % 2 == 0 {
                store.close().unwrap();
            }
            drop(store);
            let report = check_in(&medium, boot);
            assert!(report.is_clean(), "{}", text(&report));
        }
    }
}

#[test]
fn only_so_many_findings_are_kept_and_the_others_counted() {
    let oracle = large();
    let mut bytes = oracle.bytes.clone();
    for zone in 100..900 {
        bytes[oracle.zone(zone) + 3 * 512] = 1;
    }
    let medium = medium_of(&bytes);
    let options = CheckOptions { findings_max: 10, clear_behind: true, ..with_boot(BOOT) };
    let report = ImageStore::check_on(&*medium, options).unwrap();
    assert_eq!((report.findings.len(), report.omitted.repairable), (10, 790));
    assert_eq!((report.problems(), report.repairable()), (800, 800));
}
