//! `bench` and `demo`: what they do to a disk, and what they leave.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place, SMALL, pattern, vzbd_fails, vzbd_json, vzbd_ok, vzbd_takes};
use rustix::process::{Pid, Signal, kill_process};

const VZBD: &str = env!("CARGO_BIN_EXE_vzbd");

fn two_queues(place: &Place) -> Daemon {
    place.ram(&format!("{SMALL} --queues 2"))
}

/// Sectors that are written in sequential zones, and how many zones are full.
fn written(target: &str) -> (u64, usize) {
    let report = vzbd_json(&["report", target]);
    let zones = report["zones"].as_array().unwrap();
    let full = zones.iter().filter(|zone| zone["condition"] == "full").count();
    let sectors = zones.iter().filter_map(|zone| zone["written_sectors"].as_u64()).sum();
    (sectors, full)
}

#[test]
fn a_benchmark_makes_as_many_requests_as_it_says() {
    let place = Place::new();
    let daemon = two_queues(&place);
    let sock = daemon.socket();
    // 400 blocks of 4 KiB: two zones of 192 are full, the third has 16.
    for (mode, full) in [("append", 2), ("write", 0)] {
        let args = ["bench", sock, "--mode", mode, "--count", "400", "--destroy-data", "--queues", "2"];
        let result = vzbd_json(&args);
        assert_eq!((&result["requests"], &result["mode"]), (&400.into(), &mode.into()));
        let (sectors, found_full) = written(sock);
        assert_eq!((sectors + found_full as u64 * 1536, found_full), (400 * 8, full), "{mode}");
    }
    // A write has a zone of its own, and six may be open.
    let result = vzbd_json(&["bench", sock, "--mode", "write", "--count", "400", "--destroy-data"]);
    assert_eq!(result["in_flight_max"], 6);
    for mode in ["read", "randread"] {
        let result =
            vzbd_json(&["bench", sock, "--mode", mode, "--count", "1000", "--depth", "8", "--queues", "2"]);
        assert_eq!((&result["requests"], &result["in_flight_max"]), (&1000.into(), &16.into()), "{mode}");
        let times: Vec<u64> = ["p50", "p90", "p99", "p999", "max"]
            .iter()
            .map(|key| result["latency_ns"][key].as_u64().unwrap())
            .collect();
        assert!(times[0] > 0 && times.is_sorted(), "{times:?}");
        assert_eq!(written(sock).0, 400 * 8, "reading writes nothing");
    }
    let text = vzbd_ok(&["bench", sock, "--count", "100", "--block-size", "64K"]);
    for part in ["randread, 64K each", "100 requests", "requests/s", "MiB/s", "p99.9"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_benchmark_goes_round_the_disk() {
    let place = Place::new();
    let daemon = two_queues(&place);
    let sock = daemon.socket();
    // 14 zones of 768 KiB, over twice; 5 blocks of 128 KiB and a rest of 128 KiB that no block of 160 KiB fits in.
    for (mode, block, count) in
        [("append", "160K", "150"), ("write", "160K", "150"), ("append", "256K", "100")]
    {
        let args = ["bench", sock, "--mode", mode, "--block-size", block, "--count", count, "--destroy-data"];
        let result = vzbd_json(&args);
        assert_eq!(result["requests"], count.parse::<u64>().unwrap(), "{mode} {block}");
        assert!(result["zones_turned_over"].as_u64().unwrap() >= 14, "{mode} {block}: {result}");
    }
    // A disk without zones has an end, too.
    assert!(daemon.stop().0.success());
    let daemon = place.ram("--size 1M --zoned none");
    for mode in ["write", "read"] {
        let args = ["bench", daemon.socket(), "--mode", mode, "--count", "1000", "--destroy-data"];
        assert_eq!(vzbd_json(&args)["requests"], 1000);
    }
}

#[test]
fn a_benchmark_destroys_nothing_that_it_was_not_told_to() {
    let place = Place::new();
    let daemon = two_queues(&place);
    let sock = daemon.socket();
    vzbd_takes(&["write", sock, "--zone", "3"], &pattern(1, 8192));
    for mode in ["write", "append"] {
        let said = vzbd_fails(2, &["bench", sock, "--mode", mode]);
        assert!(said.contains("--destroy-data"), "{said}");
        assert_eq!(written(sock), (16, 0));
    }
    for (args, expected) in [
        (&["--block-size", "1000"][..], "multiple of 4096"),
        (&["--block-size", "0"], "multiple of 4096"),
        (&["--block-size", "1G"], "at most"),
        (&["--queues", "3"], "the disk has 2"),
        (&["--depth", "0"], "0"),
        (&["--count", "0"], "0"),
        (&["--count", "5", "--seconds", "5"], "cannot be used with"),
        (&["--mode", "append", "--block-size", "1M", "--destroy-data"], "at most 512K"),
    ] {
        let said = vzbd_fails(2, &[&["bench", sock], args].concat());
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert_eq!(written(sock), (16, 0));
}

#[test]
fn ctrl_c_ends_a_benchmark_with_what_there_is() {
    let place = Place::new();
    let daemon = two_queues(&place);
    let mut child = Command::new(VZBD)
        .args(["bench", daemon.socket(), "--seconds", "600", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    daemon.wait_until_busy();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(result["requests"].as_u64().unwrap() > 0, "{result}");
}

/// Runs the demo with its files in `dir`.
fn demo(dir: &Path) -> std::process::Output {
    Command::new(VZBD).arg("demo").env("TMPDIR", dir).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_demo_shows_a_disk_and_leaves_nothing() {
    let place = Place::new();
    let dir = place.path("tmp");
    std::fs::create_dir(&dir).unwrap();
    let output = demo(&dir);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let mut at = 0;
    for part in [
        "make",
        "serve",
        "attach",
        "before",
        "write",
        "6M at the write pointer",
        "UNALIGNED_WP",
        "append",
        "64 times 128K",
        "close",
        "open",
        "finish",
        "reset",
        "reads as zeros",
        "read",
        "19M",
        "after",
        "implicit-open",
        "closed",
        "explicit-open",
        "full",
        "restart",
        "All as it must be",
    ] {
        let found =
            said[at..].find(part).unwrap_or_else(|| panic!("{part} does not come, or not here: {said}"));
        at += found + part.len();
    }
    assert!(!said.contains('\x1b'), "colours are for terminals");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_demo_that_can_not_be_says_why() {
    let place = Place::new();
    let output = demo(&place.path("nowhere"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nowhere"), "{said}");
}
