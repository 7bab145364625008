//! Disks of all shapes that are allowed: made, shown, served, used; profiles; zones taken out of use by hand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::fs;
use std::process::Command;

use common::{Daemon, Place, pattern, vzbd, vzbd_bytes, vzbd_fails, vzbd_json, vzbd_ok, vzbd_takes};

/// Of each zone one field, by number.
#[track_caller]
fn zones(target: &str, field: &str) -> Vec<serde_json::Value> {
    vzbd_json(&["report", target])["zones"]
        .as_array()
        .unwrap()
        .iter()
        .map(|zone| zone[field].clone())
        .collect()
}

/// What `vzbd create` says beside making the disk.
#[track_caller]
fn notes(args: &[&str]) -> String {
    let made = vzbd(args);
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stderr).unwrap()
}

#[test]
fn capacities_in_turn_and_conventional_zones_anywhere() {
    let place = Place::new();
    let image = place.path("odd.zbd");
    let path = image.to_str().unwrap();
    let said = notes(&[
        "create",
        path,
        "--size",
        "11.5M",
        "--zone-size",
        "1M",
        "--zone-capacity",
        "1M,512K,4K",
        "--conventional",
        "0,4..6",
        "--max-open",
        "1",
        "--max-active",
        "1",
        "--max-append",
        "0",
    ]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("several capacities") && said.contains("no zone append"), "{said}");
    let (a, b, c) = (2048, 1024, 8);
    let capacities = [a, a, b, c, a, a, a, b, c, a, b, c];
    assert_eq!(zones(path, "capacity_sectors"), capacities);
    let info = vzbd_json(&["info", path]);
    assert_eq!(info["zones"]["conventional"], 3);
    assert_eq!(info["zones"]["zone_capacities_bytes"], serde_json::json!([1 << 20, 512 << 10, 4096]));

    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    let sock = daemon.socket();
    assert_eq!(zones(sock, "capacity_sectors"), capacities);
    assert_eq!(vzbd_json(&["info", sock])["zones"], info["zones"]);
    // A zone of one block is full with it; one zone at a time is active.
    vzbd_takes(&["write", sock, "--zone", "3"], &pattern(3, 4096));
    vzbd_takes(&["write", sock, "--zone", "1"], &pattern(1, 8192));
    let said = vzbd_fails(1, &["open", sock, "2"]);
    assert!(said.contains("active") && said.contains("zone 2"), "{said}");
    vzbd_takes(&["write", sock, "--sector", "10000"], &pattern(5, 4096));
    assert!(daemon.stop().0.success());
    let conditions = zones(path, "condition");
    assert_eq!([&conditions[1], &conditions[2], &conditions[3]], ["closed", "empty", "full"]);
    assert_eq!(vzbd_bytes(&["read", path, "--sector", "10000", "--length", "4K"]), pattern(5, 4096));
    assert_eq!(vzbd_bytes(&["read", path, "--zone", "3"]), pattern(3, 4096));
    vzbd_ok(&["check", path]);
}

#[test]
fn a_host_aware_disk_is_written_anywhere_and_managed_by_zones() {
    let place = Place::new();
    let image = place.path("aware.zbd");
    let path = image.to_str().unwrap();
    let said = notes(&[
        "create",
        path,
        "--zoned",
        "host-aware",
        "--size",
        "8M",
        "--zone-size",
        "1M",
        "--conventional",
        "1",
    ]);
    assert!(said.contains("regular"), "{said}");
    assert_eq!(vzbd_json(&["info", path])["model"], "host-aware");
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    let sock = daemon.socket();
    let info = vzbd_json(&["info", sock]);
    assert_eq!((&info["model"], &info["zones"]["preferred"]), (&"host-aware".into(), &7.into()));
    // In the middle of a zone, then before that, then across two of them.
    vzbd_takes(&["write", sock, "--zone", "2", "--offset", "512K"], &pattern(1, 4096));
    vzbd_takes(&["write", sock, "--zone", "2", "--offset", "64K"], &pattern(2, 4096));
    vzbd_takes(&["write", sock, "--sector", "8184"], &pattern(3, 8192));
    let found = serde_json::Value::from(zones(sock, "wp_sector")[2..5].to_vec());
    assert_eq!(found, serde_json::json!([2 * 2048 + 1032, null, 4 * 2048 + 8]));
    assert_eq!(zones(sock, "type")[1], "sequential-write-preferred");
    let mut expected = vec![0; 528_384];
    expected[65_536..][..4096].copy_from_slice(&pattern(2, 4096));
    expected[524_288..].copy_from_slice(&pattern(1, 4096));
    assert_eq!(vzbd_bytes(&["read", sock, "--zone", "2"]), expected);
    // Across what was never written.
    let across = vzbd_bytes(&["read", sock, "--sector", "5000", "--length", "2M"]);
    let at = (8184 - 5000) * 512;
    assert_eq!(across[at..at + 8192], pattern(3, 8192));
    assert!(across[..64].iter().all(|byte| *byte == 0));
    let said = vzbd_fails(2, &["append", sock, "5", "--input", "/dev/null"]);
    assert!(said.contains("has no append"), "{said}");
    vzbd_ok(&["finish", sock, "5"]);
    vzbd_ok(&["reset", sock, "3"]);
    assert!(daemon.stop().0.success());
    assert_eq!(zones(path, "condition")[1..6], ["empty", "closed", "empty", "closed", "full"]);
    assert_eq!(vzbd_bytes(&["read", path, "--zone", "2"]), expected);
    vzbd_ok(&["check", path]);
    let said = vzbd_fails(2, &["serve", path, "--zoned", "host-managed", "--socket", "unused"]);
    assert!(said.contains("is host-aware"), "{said}");
}

#[test]
fn a_profile_is_a_disk_with_a_name_that_options_change() {
    let place = Place::new();
    let image = place.path("disk.zbd");
    let path = image.to_str().unwrap();
    vzbd_ok(&["create", path, "--profile", "tiny"]);
    assert_eq!(zones(path, "index").len(), 16);
    vzbd_ok(&["create", path, "--profile", "tiny", "--size", "32M", "--conventional", "0", "--force"]);
    let info = vzbd_json(&["info", path]);
    assert_eq!((&info["zones"]["count"], &info["zones"]["conventional"]), (&8.into(), &0.into()));
    assert_eq!(info["zones"]["max_open"], 4);

    let listed = vzbd_ok(&["create", "--profile", "list"]);
    assert_eq!(listed, vzbd_ok(&["profiles"]));
    for name in ["smr-20tb", "zns-1077m", "tiny", "odd"] {
        assert!(listed.contains(name), "{listed}");
    }
    let shown = vzbd_json(&["profiles"]);
    let zns = shown.as_array().unwrap().iter().find(|profile| profile["name"] == "zns-1077m").unwrap();
    assert_eq!(zns["zone_capacities_bytes"], serde_json::json!([1077u64 << 20]));

    // One's own, by path and by name; it comes before the program's.
    let own = place.path("config/vzbd/profiles");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("tiny.toml"), "size = \"6M\"\nzone-size = \"2M\"\nzoned = \"host-aware\"\n").unwrap();
    fs::write(own.join("mine.toml"), "size = \"4M\"\nzone-size = \"1M\"\nmax-append = 0\n").unwrap();
    let create = |profile: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vzbd"));
        command.env("XDG_CONFIG_HOME", place.path("config"));
        command.args(["create", path, "--force", "--profile", profile]).output().unwrap()
    };
    assert!(create("mine").status.success());
    assert_eq!(zones(path, "index").len(), 4);
    assert!(create("tiny").status.success());
    assert_eq!(vzbd_json(&["info", path])["model"], "host-aware");
    let file = own.join("mine.toml");
    vzbd_ok(&["create", path, "--force", "--profile", file.to_str().unwrap()]);
    assert_eq!(vzbd_json(&["info", path])["zones"]["max_append_bytes"], 0);
    fs::write(own.join("bad.toml"), "zone-sice = 3\n").unwrap();
    let bad = create("bad");
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(
        bad.status.code() == Some(2) && said.contains("zone-sice") && said.contains("bad.toml"),
        "{said}"
    );

    let said = vzbd_fails(2, &["create", path, "--profile", "nope", "--force"]);
    assert!(said.contains("smr-20tb"), "{said}");
    let daemon = Daemon::start("ram".as_ref(), &place.path("sock"), &["--profile", "odd"]);
    assert_eq!(zones(daemon.socket(), "index").len(), 21);
}

#[test]
fn zones_go_out_of_use_by_hand_and_come_back() {
    let place = Place::new();
    let image = place.small_image();
    let path = image.to_str().unwrap();
    vzbd_takes(&["write", path, "--zone", "2"], &pattern(2, 8192));
    vzbd_takes(&["write", path, "--zone", "3"], &pattern(3, 768 << 10));
    vzbd_ok(&["zone", "set-state", path, "2..=4", "read-only"]);
    vzbd_ok(&["zone", "set-state", path, "3,6", "offline"]);
    assert_eq!(zones(path, "condition")[2..7], ["read-only", "offline", "read-only", "empty", "offline"]);
    vzbd_ok(&["check", path]);

    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    let sock = daemon.socket();
    let said = vzbd_fails(1, &["zone", "set-state", path, "2", "good"]);
    assert!(said.contains("in use"), "{said}");
    assert_eq!(vzbd_bytes(&["read", sock, "--zone", "2", "--length", "8K"]), pattern(2, 8192));
    let said = vzbd_fails(1, &["read", sock, "--zone", "3", "--length", "4K"]);
    assert!(said.contains("offline"), "{said}");
    let said = vzbd_fails(1, &["reset", sock, "2"]);
    assert!(said.contains("read-only"), "{said}");
    assert!(daemon.stop().0.success());

    vzbd_ok(&["zone", "set-state", path, "2..7", "good"]);
    assert_eq!(zones(path, "condition")[2..7], ["closed", "full", "empty", "empty", "empty"]);
    assert_eq!(vzbd_bytes(&["read", path, "--zone", "2"]), pattern(2, 8192));
    assert_eq!(vzbd_bytes(&["read", path, "--zone", "3"]), pattern(3, 768 << 10));
    vzbd_ok(&["check", path]);
    for (args, expected) in [
        (&["zone", "set-state", path, "1", "offline"], "zone 1 is conventional"),
        (&["zone", "set-state", path, "16", "offline"], "there is no zone 16"),
        (&["zone", "set-state", path, "3..99", "good"], "0 to 15"),
        (&["zone", "set-state", path, "3", "closed"], "closed"),
    ] {
        let said = vzbd_fails(2, args);
        assert!(said.contains(expected), "{said}");
    }
}
