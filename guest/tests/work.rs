//! Real work on our zoned disk: each recipe of `virtio_zbd_guest::work` at three geometries. Made, mounted, worked on, unmounted,
//! mounted again and compared byte by byte; then the daemon is stopped and started, and in a new guest the same once more.
//!
//! `ZBD_WORK_SEED=n` repeats a run. `ZBD_WORK_AMOUNT=1000` makes it ten times as long, and each disk is worked on in five guests
//! more.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails this way, and says its seed")]

mod common;

use std::time::Duration;

use common::{OrFail, guest, succeed};
use virtio_zbd_guest::work::{BTRFS, DM_ZONED, F2FS, FIO, Place, Recipe, ZONEFS, ZONEFS_AGGREGATED};
use virtio_zbd_guest::{Geometry, ServedDisk};

const SEED_VARIABLE: &str = "ZBD_WORK_SEED";
const AMOUNT_VARIABLE: &str = "ZBD_WORK_AMOUNT";

/// In percent of a recipe's usual work: the whole test run has to end in time.
const AMOUNT: u32 = 100;

/// How many guests more a longer run has.
const MORE_GUESTS: u32 = 5;

/// 64 zones of 64 MiB, of which 48 MiB can be written; 16 are conventional.
fn large() -> Geometry {
    Geometry::new("4G", "64M").zone_capacity("48M").conventional(16)
}

/// 64 zones of 32 MiB, none conventional.
fn sequential() -> Geometry {
    Geometry::new("2G", "32M").max_open(8).max_active(10)
}

/// 256 zones of 4 MiB with blocks of 512 bytes.
fn small() -> Geometry {
    Geometry::new("1G", "4M").zone_capacity("3M").conventional(32).block_size(512).max_append("64K")
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn works(recipe: &Recipe, geometry: &Geometry) {
    let seed = number(SEED_VARIABLE).unwrap_or_else(|| fastrand::u64(..1 << 32));
    let amount = number(AMOUNT_VARIABLE).map_or(AMOUNT, |amount| u32::try_from(amount).unwrap());
    println!("{SEED_VARIABLE}={seed}");
    let place = Place::new(seed, &mut |_| {}).or_fail("no tools").amount(amount);
    let limit = Duration::from_secs(120) * amount.div_ceil(100);

    let mut disk = ServedDisk::create(geometry).or_fail("no disk");
    let run = |disk: &ServedDisk, script: &str| {
        succeed(&guest().disk(disk.socket()).timeout(limit), script);
    };
    run(&disk, &recipe.first(&place));
    for guest in 1..=if amount > AMOUNT { 1 + MORE_GUESTS } else { 1 } {
        disk.stop().or_fail("stop");
        disk.restart().or_fail("restart");
        run(&disk, &recipe.again(&place, guest));
    }
    disk.stop().or_fail("stop");
}

#[test]
fn zonefs_in_large_zones() {
    works(&ZONEFS, &large());
}

#[test]
fn zonefs_in_sequential_zones_alone() {
    works(&ZONEFS_AGGREGATED, &sequential());
}

#[test]
fn zonefs_in_small_zones_of_which_few_may_be_open() {
    works(&ZONEFS, &small().max_open(3).max_active(4));
    works(&ZONEFS_AGGREGATED, &small().max_open(1).max_active(3));
}

#[test]
fn btrfs_in_large_zones() {
    works(&BTRFS, &large());
}

#[test]
fn btrfs_in_sequential_zones_alone() {
    works(&BTRFS, &sequential());
}

#[test]
fn btrfs_in_small_zones_of_which_few_may_be_open() {
    works(&BTRFS, &small().max_open(5).max_active(8));
}

#[test]
fn f2fs_in_large_zones() {
    works(&F2FS, &large());
}

#[test]
fn f2fs_in_whole_zones() {
    works(&F2FS, &sequential().conventional(8));
}

#[test]
fn f2fs_in_small_zones_of_which_few_may_be_open() {
    works(&F2FS, &small().max_open(6).max_active(6));
}

#[test]
fn dm_zoned_in_large_zones() {
    works(&DM_ZONED, &large().zone_capacity("64M"));
}

#[test]
fn dm_zoned_in_zones_of_which_few_may_be_open() {
    works(&DM_ZONED, &sequential().conventional(8).max_open(2).max_active(0));
}

#[test]
fn dm_zoned_in_small_zones() {
    works(&DM_ZONED, &small().zone_capacity("4M").conventional(24));
}

#[test]
fn fio_in_large_zones() {
    works(&FIO, &large());
}

#[test]
fn fio_in_sequential_zones_alone() {
    works(&FIO, &sequential());
}

#[test]
fn fio_in_small_zones_of_which_few_may_be_open() {
    works(&FIO, &small().max_open(3).max_active(4));
}
