//! Random operations through Linux's driver, and a model beside it (`guest/src/bin/guest-work/storm`): every answer, every zone and
//! every byte has to be the same.
//!
//! `ZBD_STORM_SEED=n` repeats a run, `ZBD_STORM_OPS=n` makes each one so long: `ZBD_STORM_OPS=1000000` is a long form.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails this way, and says its seed")]

mod common;

use std::fmt::Write;
use std::time::Duration;

use common::{OrFail, guest, quoted, succeed};
use virtio_zbd_guest::{Geometry, ServedDisk, programs};

const SEED_VARIABLE: &str = "ZBD_STORM_SEED";
const OPS_VARIABLE: &str = "ZBD_STORM_OPS";

/// How many operations each geometry gets in the normal run: more than a hundred thousand together.
const OPS: u64 = 34_000;

/// For so many operations a minute, on a machine that has other things to do.
const OPS_A_MINUTE: u64 = 10_000;

/// The kernel as it comes puts requests in order and joins them.
const MERGING: &str = "merging";
const PLAIN: &str = "plain";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Answers what the program has seen.
fn storm(geometry: Geometry, max_open: u32, max_active: u32, order: &str) -> String {
    let seed = number(SEED_VARIABLE).unwrap_or_else(|| fastrand::u64(..1 << 32));
    let count = number(OPS_VARIABLE).unwrap_or(OPS);
    println!("{SEED_VARIABLE}={seed}");
    let geometry = geometry.max_open(max_open).max_active(max_active).max_append("64K");
    let mut disk = ServedDisk::create(&geometry).or_fail("no disk");
    let program = programs::guest_work().or_fail("no guest-work");
    let mut script = quoted(program.display());
    write!(script, " storm /dev/vda {seed} {count} {max_open} {max_active} {order}").unwrap();
    let limit = Duration::from_secs(60 * (1 + count / OPS_A_MINUTE));
    let seen = succeed(&guest().disk(disk.socket()).timeout(limit), &script);
    println!("{seen}");
    disk.stop().or_fail("stop");
    seen
}

/// How often something was seen.
fn count(seen: &str, what: &str) -> u64 {
    let line = seen.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
    line.map_or(0, |count| count.parse().unwrap())
}

const ERRORS: [&str; 5] = [
    "Input/output error (os error 5)",
    "Invalid argument (os error 22)",
    "No space left on device (os error 28)",
    "Value too large for defined data type (os error 75)",
    "Too many references: cannot splice (os error 109)",
];

#[test]
fn conventional_zones_a_capacity_below_the_length_and_a_last_zone_that_is_shorter() {
    let geometry = Geometry::new("10368K", "256K").zone_capacity("192K").conventional(4);
    let seen = storm(geometry, 3, 6, PLAIN);
    for what in
        ERRORS.into_iter().chain(["zone Full", "zone Closed", "zone ImplicitOpen", "zone ExplicitOpen"])
    {
        assert!(count(&seen, what) > 0, "not seen: {what}");
    }
}

#[test]
fn blocks_of_512_bytes_in_zones_without_a_gap_as_the_kernel_orders_them() {
    let seen = storm(Geometry::new("4M", "128K").block_size(512), 4, 9, MERGING);
    for what in ERRORS {
        assert!(count(&seen, what) > 0, "not seen: {what}");
    }
}

#[test]
fn no_limits() {
    let seen = storm(Geometry::new("8M", "256K").zone_capacity("200K").conventional(1), 0, 0, PLAIN);
    assert!(count(&seen, ERRORS[0]) > 0);
    assert_eq!(count(&seen, ERRORS[3]) + count(&seen, ERRORS[4]), 0);
}
