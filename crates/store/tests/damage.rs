//! Files that are no good images: each is told apart, and left as it is, byte for byte.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::sim::SimMedium;
use common::{LaneExt, closed, geometry, open, seeded};
use virtio_zbd_store::{
    Commit, CreateOptions, EngineChoice, ImageFault, ImageStore, LastUse, Medium, OpenOptions, Store,
    StoreError,
};
use virtio_zbd_zones::{Geometry, GeometryConfig, ZoneState};

const BOOT: [u8; 16] = [1; 16];
const LATER_BOOT: [u8; 16] = [2; 16];

// Where things are in an image of `geometry`, by docs/format.md and not by the code.
const SEQUENCE: usize = 16;
const LIVE_BOOT_ID: usize = 40;
const RO_COMPAT: usize = 64;
const INCOMPAT: usize = 72;
const PAGES: usize = 8192;
const ENTRIES: usize = 64;
const LIVE: usize = 65536;

fn options(read_only: bool) -> OpenOptions {
    OpenOptions { read_only, boot_id: Some(BOOT) }
}

/// A closed image with something in two of its zones, as bytes.
fn used_image() -> Vec<u8> {
    image_of(true)
}

fn image_of(close: bool) -> Vec<u8> {
    let medium = SimMedium::new(5);
    ImageStore::create_on(&*medium, geometry()).unwrap();
    let store = ImageStore::open_on(medium.clone(), options(false)).unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    for (zone, commits) in [(2u32, 1u32), (3, 2)] {
        lane.write_now(u64::from(zone) * 512 * 512, &vec![7; 8192]).unwrap();
        for n in 1..=commits {
            store.publish(zone, open(8 * n));
            store.commit(&Commit { flush: true, ..Commit::default() }).durable.unwrap();
        }
    }
    if close {
        store.close().unwrap();
    }
    medium.bytes()
}

/// Opens `bytes` as an image in every way and finds the fault; the file must be what it was.
fn fault_of(bytes: &[u8]) -> ImageFault {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.zbd");
    fs::write(&path, bytes).unwrap();
    let refused = |read_only| match ImageStore::open(&path, options(read_only)) {
        Err(StoreError::Image { fault, .. }) => fault,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    };
    let fault = refused(false);
    if !matches!(fault, ImageFault::ReadOnlyFeatures { .. }) {
        assert_eq!(refused(true), fault);
    }
    assert!(fs::read(&path).unwrap() == bytes, "{fault}: the file was changed");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let text = fault.to_string();
    assert!(text.len() > 30 && !text.contains("{"), "{text}");
    println!("{text}");
    fault
}

fn opens(bytes: &[u8], boot_id: [u8; 16]) -> ImageStore {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("good.zbd");
    fs::write(&path, bytes).unwrap();
    ImageStore::open(&path, OpenOptions { read_only: false, boot_id: Some(boot_id) }).unwrap()
}

/// CRC32C, one bit at a time: an oracle for the one in the code.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// Gives the block at `at` the checksum of what it holds now.
fn seal(bytes: &mut [u8], at: usize) {
    let block = &mut bytes[at..at + 4096];
    block[12..16].fill(0);
    let crc = crc32c(block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// Changes both copies of the superblock.
fn in_superblocks(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = used_image();
    for at in [0, 4096] {
        change(&mut bytes[at..at + 4096]);
        seal(&mut bytes, at);
    }
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: impl AsRef<[u8]>) {
    bytes[at..at + value.as_ref().len()].copy_from_slice(value.as_ref());
}

#[test]
fn the_layout_is_the_documented_one() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let bytes = used_image();
    for at in [0, 4096, PAGES, PAGES + 4096] {
        let mut sealed = bytes.clone();
        seal(&mut sealed, at);
        assert_eq!(sealed[at..at + 16], bytes[at..at + 16], "the checksum at {at}");
    }
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(&bytes[..8], b"VZBDIMG\x1a");
    assert_eq!(u32_at(8), 1);
    assert_eq!(bytes[LIVE_BOOT_ID..LIVE_BOOT_ID + 16], [0; 16]);
    assert_eq!([56, 64, 72].map(u64_at), [0; 3]);
    assert_eq!(u64_at(80), geometry().capacity_sectors());
    assert_eq!([88, 92, 96, 100, 104, 108, 112, 116].map(u32_at), [512, 384, 2, 4, 6, 256, 4096, 20]);
    assert_eq!([120, 128].map(u64_at), [8192, 8192]);
    assert_eq!([136, 144].map(u64_at), [LIVE as u64, 65536]);
    assert_eq!([152, 160].map(u64_at), [1 << 20, geometry().capacity_sectors() * 512]);
    assert!(bytes[176..4096].iter().all(|&byte| byte == 0));
    assert_eq!(bytes.len() as u64, (1 << 20) + geometry().capacity_sectors() * 512);
    // Three commits changed the page, which began with 2 in slot 0 and 1 in slot 1.
    assert_eq!(&bytes[PAGES..PAGES + 8], b"VZBDZNS\x1a");
    assert_eq!([PAGES, PAGES + 4096].map(|at| u32_at(at + 8)), [0, 0]);
    assert_eq!([PAGES, PAGES + 4096].map(|at| u64_at(at + 16)), [4, 5]);
    assert_eq!(u64_at(168), 5);
    assert_eq!(bytes[PAGES + 24..PAGES + 40], bytes[24..40], "the image's UUID");
    let entry = |zone: usize| u64_at(PAGES + 4096 + ENTRIES + 8 * zone);
    assert_eq!([0, 1, 2, 3, 4].map(entry), [0, 0, 4 << 56 | 8, 4 << 56 | 16, 1 << 56]);
    assert_eq!(entry(20), 0);
    assert_eq!(bytes[(1 << 20) + 2 * 512 * 512], 7);
}

#[test]
fn other_files_are_no_images() {
    for bytes in
        [b"".to_vec(), b"#!/bin/sh\n".to_vec(), vec![0; 1 << 21], vec![0xff; 5000], b"VZBDIM".to_vec()]
    {
        assert!(matches!(fault_of(&bytes), ImageFault::NotAnImage { .. }));
    }
    let mut damaged = used_image();
    damaged[..7].fill(0);
    damaged[4096..4100].fill(0);
    assert!(matches!(fault_of(&damaged), ImageFault::NotAnImage { .. }));
    let directory = tempfile::tempdir().unwrap();
    let refused = ImageStore::inspect(directory.path()).unwrap_err().to_string();
    assert!(refused.contains("a directory"), "{refused}");
    assert!(matches!(ImageStore::inspect(Path::new("/nowhere/at/all")), Err(StoreError::Io { .. })));
    assert!(matches!(ImageStore::inspect(Path::new("/dev/zero")), Err(StoreError::Image { .. })));
}

#[test]
fn a_short_file_says_how_long_it_should_be() {
    let bytes = used_image();
    for len in [8, 4095, 4096, 8191, 8192, 70_000, 1 << 20, bytes.len() - 1] {
        let expected_bytes = if len < 8192 { 8192 } else { bytes.len() as u64 };
        let expected = ImageFault::TooShort { expected_bytes, found_bytes: len as u64 };
        assert_eq!(fault_of(&bytes[..len]), expected);
    }
    // A longer one does no harm.
    let mut longer = bytes.clone();
    longer.extend([1; 1000]);
    opens(&longer, BOOT);
}

#[test]
fn one_superblock_is_enough() {
    let mut rng = seeded("one_superblock_is_enough");
    let good = used_image();
    for copy in [0, 4096] {
        for _ in 0..8 {
            let mut bytes = good.clone();
            // Any flipped bit; or a copy that is gone altogether.
            if rng.u8(..4) == 0 {
                bytes[copy..copy + 4096].fill(rng.u8(..));
            } else {
                bytes[copy + rng.usize(..4096)] ^= 1 << rng.u8(..8);
            }
            let store = opens(&bytes, BOOT);
            assert_eq!(store.initial_states()[3], closed(16));
            store.close().unwrap();
        }
    }
    // The damaged copy is repaired by the next writer, so that then the other one may go.
    for copy in [0, 4096] {
        let medium = medium_of(&good);
        medium.damage(copy, |bytes| bytes[..100].fill(9));
        ImageStore::open_on(medium.clone(), options(false)).unwrap().close().unwrap();
        medium.damage(4096 - copy, |bytes| bytes[..100].fill(9));
        let store = ImageStore::open_on(medium, options(false)).unwrap();
        assert_eq!(store.initial_states()[3], closed(16));
    }
}

/// A medium with these bytes on it.
fn medium_of(bytes: &[u8]) -> Arc<SimMedium> {
    let medium = SimMedium::new(1);
    medium.set_len(bytes.len() as u64).unwrap();
    medium.damage(0, |to| to.copy_from_slice(bytes));
    medium
}

#[test]
fn the_newer_superblock_counts() {
    let mut bytes = used_image();
    for (first, second) in [(7u64, 8u64), (8, 7)] {
        // The older one says that the image is live, which the newer one has ended.
        for (at, sequence) in [(0, first), (4096, second)] {
            put(&mut bytes, at + SEQUENCE, sequence.to_le_bytes());
            put(&mut bytes, at + LIVE_BOOT_ID, if sequence == 8 { [0; 16] } else { BOOT });
            seal(&mut bytes, at);
        }
        assert_eq!(opens(&bytes, BOOT).info().unwrap().last_use, LastUse::Closed);
    }
}

#[test]
fn two_bad_superblocks_are_told() {
    let mut bytes = used_image();
    bytes[100] ^= 1;
    bytes[4096] = 0;
    let ImageFault::Superblock { first, second } = fault_of(&bytes) else { panic!() };
    assert!(first.contains("checksum") && second.contains("magic"), "{first} / {second}");
    let mut bytes = used_image();
    bytes[24] ^= 1;
    seal(&mut bytes, 0);
    assert!(matches!(fault_of(&bytes), ImageFault::TwoImages { .. }));
    let bytes = in_superblocks(|block| put(block, SEQUENCE, u64::MAX.to_le_bytes()));
    assert!(matches!(fault_of(&bytes), ImageFault::Superblock { .. }));
}

#[test]
fn newer_images_are_left_to_newer_programs() {
    let version = in_superblocks(|block| put(block, 8, 2u32.to_le_bytes()));
    assert_eq!(fault_of(&version), ImageFault::Version { found: 2, supported: 1 });
    let incompat = in_superblocks(|block| put(block, INCOMPAT, 0x10u64.to_le_bytes()));
    assert_eq!(fault_of(&incompat), ImageFault::Features { unknown: 0x10 });
    let ro_compat = in_superblocks(|block| put(block, RO_COMPAT, (1u64 << 63).to_le_bytes()));
    assert_eq!(fault_of(&ro_compat), ImageFault::ReadOnlyFeatures { unknown: 1 << 63 });
    let reader = ImageStore::open_on(medium_of(&ro_compat), options(true)).unwrap();
    assert_eq!(reader.initial_states()[3], closed(16));
    // What is compatible is kept by a program that does not know it.
    let compat = in_superblocks(|block| {
        put(block, 56, 5u64.to_le_bytes());
        put(block, 4000, [9; 96]);
    });
    let medium = medium_of(&compat);
    ImageStore::open_on(medium.clone(), options(false)).unwrap().close().unwrap();
    for at in [0, 4096] {
        assert_eq!(medium.bytes()[at + 56..at + 64], 5u64.to_le_bytes());
        assert_eq!(medium.bytes()[at + 4000..at + 4096], [9; 96]);
    }
}

#[test]
fn a_superblock_that_can_not_be_is_refused() {
    let with_u64 =
        |at: usize, value: u64| fault_of(&in_superblocks(|block| put(block, at, value.to_le_bytes())));
    let with_u32 =
        |at: usize, value: u32| fault_of(&in_superblocks(|block| put(block, at, value.to_le_bytes())));
    assert!(matches!(with_u64(80, 0), ImageFault::Geometry(_)));
    assert!(matches!(with_u64(80, !7u64), ImageFault::Geometry(_)));
    assert!(matches!(with_u32(88, 0), ImageFault::Geometry(_)));
    assert!(matches!(with_u32(112, 3), ImageFault::Geometry(_)));
    assert!(matches!(with_u64(80, 19 * 512), ImageFault::Value { expected: 19, found: 20, .. }));
    assert!(matches!(with_u32(116, 19), ImageFault::Value { expected: 20, found: 19, .. }));
    assert!(matches!(with_u64(128, 4096), ImageFault::Value { .. }));
    assert!(matches!(with_u64(144, 8), ImageFault::Value { .. }));
    assert!(matches!(with_u64(160, 0), ImageFault::Value { .. }));
    for (at, value) in [
        (120, 4096u64),      // over the superblock
        (120, 8192 + 1),     // unaligned
        (120, !4095),        // past every end
        (136, 0),            // over the pages
        (136, 65536 + 4096), // unaligned
        (136, !0xffff),
        (152, 65536),           // over the live area
        (152, (1 << 20) + 512), // unaligned
        (152, i64::MAX as u64 & !0xf_ffff),
        (152, !0xf_ffff),
    ] {
        assert!(matches!(with_u64(at, value), ImageFault::Place { .. }), "{at}: {value}");
    }
    assert!(matches!(with_u64(152, 1 << 40), ImageFault::TooShort { .. }));
    // 2^24 zones, each with a state to be read: the file is too short for them, and that is seen first.
    let huge = in_superblocks(|block| {
        let zones = 1u64 << 24;
        let pages = zones.div_ceil(504);
        put(block, 80, (zones * 512).to_le_bytes());
        put(block, 116, (1u32 << 24).to_le_bytes());
        put(block, 128, (pages * 8192).to_le_bytes());
        put(block, 136, (1u64 << 29).to_le_bytes());
        put(block, 144, (zones * 8).to_le_bytes());
        put(block, 152, (1u64 << 30).to_le_bytes());
        put(block, 160, (zones << 18).to_le_bytes());
    });
    assert!(matches!(fault_of(&huge), ImageFault::TooShort { .. }));
}

#[test]
fn a_torn_page_leaves_the_one_before() {
    // Killed, the machine stopped: the newest version of the page (slot 1, sequence 5) is half on the medium.
    let whole = image_of(false);
    let mut bytes = whole.clone();
    let half = PAGES + 4096 + 2048..PAGES + 8192;
    bytes[half.clone()].fill(0x55);
    let torn = opens(&bytes, LATER_BOOT);
    assert_eq!([2, 3].map(|zone| torn.initial_states()[zone]), [closed(8), closed(8)]);
    // Half of the version before it (slot 0) instead: nothing is lost. And the damage is repaired.
    bytes = whole;
    bytes[PAGES..PAGES + 2048].fill(0x55);
    let medium = medium_of(&bytes);
    let later = OpenOptions { read_only: false, boot_id: Some(LATER_BOOT) };
    let store = ImageStore::open_on(medium.clone(), later).unwrap();
    assert_eq!(store.initial_states()[3], closed(16));
    drop(store);
    medium.damage(PAGES + 4096, |page| page[..2048].fill(0x55));
    let store =
        ImageStore::open_on(medium, OpenOptions { read_only: false, boot_id: Some([3; 16]) }).unwrap();
    assert_eq!(store.initial_states()[3], closed(16));
}

#[test]
fn an_older_page_is_not_taken_where_nothing_was_torn() {
    // The image was closed, so the newest version of the page was whole once. The one before would take away
    // eight sectors of zone 3.
    let mut bytes = used_image();
    bytes[PAGES + 4096 + 1000] ^= 4;
    let ImageFault::StalePages { zones, expected: 5, found: 4 } = fault_of(&bytes) else { panic!() };
    assert_eq!(zones.0, [0..=19]);
    // The older one is not needed.
    let mut bytes = used_image();
    bytes[PAGES + 1000] ^= 4;
    assert_eq!(opens(&bytes, BOOT).initial_states()[3], closed(16));
}

#[test]
fn pages_that_are_lost_are_named_by_their_zones() {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 1200 * 8,
        zone_sectors: 8,
        zone_capacity_sectors: 8,
        conventional_zones: 0,
        ..*geometry().config()
    })
    .unwrap();
    let medium = SimMedium::new(1);
    ImageStore::create_on(&*medium, geometry).unwrap();
    let mut bytes = medium.bytes();
    // Pages 0 and 2 of three; slot 1 of all of them comes after slot 0 of all of them.
    for at in [0, 2, 3, 5] {
        bytes[PAGES + at * 4096 + 50] ^= 1;
    }
    let ImageFault::Pages { zones, first_offset_bytes, second_offset_bytes, .. } = fault_of(&bytes) else {
        panic!()
    };
    assert_eq!(zones.0, [0..=503, 1008..=1199]);
    assert_eq!((first_offset_bytes, second_offset_bytes), (8192, 8192 + 3 * 4096));
    // A page in the place of another one is none, whole as it is; nor is one of another image.
    let mut bytes = medium.bytes();
    let page = bytes[PAGES + 4096..PAGES + 8192].to_vec();
    put(&mut bytes, PAGES, &page);
    put(&mut bytes, PAGES + 3 * 4096, &page);
    assert!(matches!(fault_of(&bytes), ImageFault::Pages { first, .. } if first.contains("page 1")));
    let mut bytes = medium.bytes();
    for at in [PAGES, PAGES + 3 * 4096] {
        bytes[at + 24] ^= 1;
        seal(&mut bytes, at);
    }
    assert!(matches!(fault_of(&bytes), ImageFault::Pages { first, .. } if first.contains("another image")));
}

#[test]
fn states_that_can_not_be_are_refused() {
    let page_fault = |zone: usize, bits: u64| {
        let mut bytes = used_image();
        put(&mut bytes, PAGES + 4096 + ENTRIES + 8 * zone, bits.to_le_bytes());
        seal(&mut bytes, PAGES + 4096);
        fault_of(&bytes)
    };
    let live_fault = |zone: usize, bits: u64| {
        let mut bytes = image_of(false);
        put(&mut bytes, LIVE + 8 * zone, bits.to_le_bytes());
        fault_of(&bytes)
    };
    for fault in [&page_fault as &dyn Fn(usize, u64) -> ImageFault, &live_fault] {
        for (zone, bits) in [
            (2, 5 << 56),           // no such condition
            (2, 4 << 56 | 1 << 40), // bytes that must be zero
            (2, 4 << 56 | 392),     // past the zone's capacity
            (2, 4 << 56 | 9),       // not a whole block
            (2, 0),                 // a conventional zone where there is none
            (0, 1 << 56),           // none where there is one
            (2, 1 << 56 | 8),       // empty, with data
            (19, 4 << 56 | 264),    // the last zone is shorter
        ] {
            let ImageFault::ZoneState { zone: found, bits: found_bits, .. } = fault(zone, bits) else {
                panic!()
            };
            assert_eq!((found as usize, found_bits), (zone, bits));
        }
    }
    assert!(
        matches!(page_fault(2, 5 << 56), ImageFault::ZoneState { offset_bytes: 12368, .. }),
        "{}",
        PAGES + 4096 + ENTRIES + 16
    );
    assert!(matches!(
        live_fault(2, 5 << 56),
        ImageFault::ZoneState { offset_bytes: 65552, area: "live area", .. }
    ));
    // After a boot the live area does not count, whatever it holds.
    let mut bytes = image_of(false);
    bytes[LIVE..2 * LIVE].fill(0xee);
    assert_eq!(opens(&bytes, LATER_BOOT).initial_states()[3], closed(16));
}

#[test]
fn more_active_zones_than_allowed_are_refused() {
    let with_active = |count: usize| {
        let mut bytes = used_image();
        for zone in 2..2 + count {
            put(&mut bytes, PAGES + 4096 + ENTRIES + 8 * zone, closed(8).to_bits().to_le_bytes());
        }
        seal(&mut bytes, PAGES + 4096);
        bytes
    };
    assert_eq!(fault_of(&with_active(7)), ImageFault::TooManyActive { found: 7, max_active_zones: 6 });
    opens(&with_active(6), BOOT);
    let open_ones = |count: usize| {
        let mut bytes = image_of(false);
        for zone in 2..2 + count {
            put(&mut bytes, LIVE + 8 * zone, open(8).to_bits().to_le_bytes());
        }
        bytes
    };
    assert_eq!(fault_of(&open_ones(7)), ImageFault::TooManyActive { found: 7, max_active_zones: 6 });
    assert_eq!(opens(&open_ones(6), BOOT).initial_states()[7], closed(8));
}

#[test]
fn random_damage_never_panics_and_never_writes_before_all_is_checked() {
    let mut rng = seeded("random_damage_never_panics_and_never_writes_before_all_is_checked");
    let originals = [used_image(), image_of(false)];
    let (mut refused, mut opened) = (0, 0);
    for _ in 0..400 {
        let mut bytes = originals[rng.usize(..2)].clone();
        for _ in 0..rng.usize(1..6) {
            let at = [0, 4096, PAGES, PAGES + 4096, LIVE][rng.usize(..5)];
            let place = at + if rng.bool() { rng.usize(..200) } else { rng.usize(..4096) };
            bytes[place] = rng.u8(..);
            // Half of the damage comes with a good checksum: it must be found for what it says.
            if rng.bool() && at != LIVE {
                seal(&mut bytes, at);
            }
        }
        if rng.u8(..8) == 0 {
            bytes.truncate(rng.usize(..bytes.len()));
        }
        let medium = medium_of(&bytes);
        match ImageStore::open_on(medium.clone(), options(false)) {
            Err(_) => {
                refused += 1;
                assert!(medium.bytes() == bytes, "a refused file was changed");
            }
            Ok(store) => {
                opened += 1;
                assert_eq!(store.initial_states().len(), 20);
                for (zone, state) in (0..).zip(store.initial_states()) {
                    state.check(&store.geometry().unwrap(), zone).unwrap();
                }
                store.close().unwrap();
            }
        }
    }
    println!("{refused} refused, {opened} opened");
    assert!(refused > 20 && opened > 20);
}

#[test]
fn a_copy_is_as_good_as_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("a.zbd"), directory.path().join("b.zbd"));
    ImageStore::create(&path, geometry(), CreateOptions::default()).unwrap();
    {
        let store = ImageStore::open(&path, options(false)).unwrap();
        store.open_lane(EngineChoice::Auto).unwrap().write_now(2 * 512 * 512, &[7; 4096]).unwrap();
        store.publish(2, open(8));
    }
    // Not closed, and with every run of zeros made a hole: the live area, too, where all zones are
    // conventional or it is unused.
    let status =
        std::process::Command::new("cp").arg("--sparse=always").args([&path, &copy]).status().unwrap();
    assert!(status.success());
    let store = ImageStore::open(&copy, options(false)).unwrap();
    assert_eq!(store.initial_states()[2], closed(8));
    assert_eq!(store.initial_states()[3], ZoneState::EMPTY);
    let content = store.open_lane(EngineChoice::Auto).unwrap().read_now(2 * 512 * 512, 8192).unwrap();
    assert_eq!(content, [vec![7; 4096], vec![0; 4096]].concat());
}
