//! `vzbd check`: what it says, how it ends, what it repairs and brings back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::fs;
use std::path::Path;

use common::{Daemon, Place, pattern, vzbd, vzbd_bytes, vzbd_fails, vzbd_json, vzbd_ok, vzbd_takes};
use serde_json::Value;

/// The first page's places are at 8192 and 12288; the superblock's sequence numbers tell which place counts.
fn newest_slot(bytes: &[u8]) -> usize {
    let sequence = |at: usize| u64::from_le_bytes(bytes[at + 16..at + 24].try_into().unwrap());
    if sequence(12288) > sequence(8192) { 12288 } else { 8192 }
}

/// A closed image with something in zones 0, 2 and 3.
fn used_image(place: &Place) -> String {
    let path = place.small_image().to_str().unwrap().to_owned();
    for (zone, tag) in [("0", 1), ("2", 2), ("3", 3), ("3", 4)] {
        vzbd_takes(&["write", &path, "--zone", zone], &pattern(tag, 16384));
    }
    path
}

/// `check` with findings: exit status 1, nothing on standard error. Returns what it printed.
#[track_caller]
fn found(args: &[&str]) -> String {
    let output = vzbd(&[&["check"], args].concat());
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn found_json(path: &str) -> Value {
    serde_json::from_str(&found(&[path, "--json"])).unwrap()
}

fn damage(path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_good_image_is_clean() {
    let place = Place::new();
    let path = used_image(&place);
    let before = fs::read(&path).unwrap();
    let said = vzbd_ok(&["check", &path]);
    assert_eq!(said.lines().last(), Some("clean"), "{said}");
    assert!(
        said.contains("closed cleanly") && said.contains("zones: 2 conventional, 12 empty, 2 closed"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 4, "{said}");
    let json = vzbd_json(&["check", &path]);
    assert_eq!((&json["clean"], &json["opens"], &json["problems"]), (&true.into(), &"yes".into(), &0.into()));
    assert_eq!(json["image"]["uuid"], vzbd_json(&["info", &path])["uuid"]);
    assert_eq!((&json["image"]["zones"], &json["next_opening"]["closed"]), (&16.into(), &2.into()));
    assert_eq!(json["findings"], Value::Array(Vec::new()));
    // Nothing to repair: nothing is kept, nothing is written.
    assert_eq!(vzbd_ok(&["check", &path, "--repair"]).lines().last(), Some("clean"));
    assert!(fs::read(&path).unwrap() == before);
    assert!(!Path::new(&format!("{path}.repair-1")).exists());
}

#[test]
fn what_is_wrong_is_said_all_of_it_repaired_and_brought_back() {
    let place = Place::new();
    let path = used_image(&place);
    let good = fs::read(&path).unwrap();
    damage(&path, |bytes| {
        bytes[4096 + 100] ^= 0xff;
        let older = 8192 + 12288 - newest_slot(bytes);
        bytes[older + 80..older + 90].fill(0x77);
        bytes[(1 << 20) + (5 << 20) + 700] = 1;
        bytes.truncate(bytes.len() - 1000);
    });
    let damaged = fs::read(&path).unwrap();
    let said = found(&[&path]);
    for expected in [
        "damage: superblock-damaged, bytes 4096 to 8191",
        "max_open_zones",
        "damage: page-slot-damaged, zones 0–15, bytes",
        "damage: behind-write-pointer, zone 5, byte 6292156",
        "fatal: file-too-short, bytes 17824792 to 17825791",
        "expected: 17825792 bytes",
        "4 problems: 3 that --repair mends, 1 where something else is to be done; it does not open",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(fs::read(&path).unwrap() == damaged, "a check has written");
    let json = found_json(&path);
    let kinds: Vec<&str> =
        json["findings"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["superblock-damaged", "page-slot-damaged", "file-too-short", "behind-write-pointer"]);
    assert!(json["refusal"].as_str().unwrap().contains("cut off"));
    assert_eq!(
        (&json["findings"][3]["zones"][0][0], &json["findings"][3]["remedy"]),
        (&5.into(), &"advice".into())
    );
    let few = found(&[&path, "--max-findings", "1"]);
    assert!(few.contains("and 3 more") && few.contains("4 problems"), "{few}");

    // What may be somebody's data is removed only on demand.
    let said = found(&[&path, "--repair"]);
    assert!(said.contains("after the repair: 1 problem where something else is to be done"), "{said}");
    assert_eq!(fs::read(&path).unwrap()[(1 << 20) + (5 << 20) + 700], 1);
    vzbd_ok(&["check", &path, "--undo", &format!("{path}.repair-1")]);
    assert!(fs::read(&path).unwrap() == damaged);
    fs::remove_file(format!("{path}.repair-1")).unwrap();
    let said = vzbd_ok(&["check", &path, "--repair", "--clear-behind"]);
    let kept = format!("{path}.repair-1");
    assert!(said.contains(&format!("vzbd check {path} --undo {kept}")), "{said}");
    assert_eq!(said.lines().last(), Some("after the repair: clean"));
    let repaired = fs::read(&path).unwrap();
    assert!(repaired[..4096] == good[..4096] && repaired[1 << 20..] == good[1 << 20..]);
    assert_eq!(vzbd_ok(&["check", &path]).lines().last(), Some("clean"));

    vzbd_ok(&["check", &path, "--undo", &kept]);
    assert!(fs::read(&path).unwrap() == damaged);
    let json = vzbd_json(&["check", &path, "--repair", "--clear-behind"]);
    assert_eq!(json["repair"]["kept"], format!("{path}.repair-2"));
    assert_eq!((&json["clean"], &json["repair"]["after"]["clean"]), (&false.into(), &true.into()));
    // Used since: it can't be undone any more.
    vzbd_takes(&["write", &path, "--zone", "6"], &pattern(5, 4096));
    let used = fs::read(&path).unwrap();
    let said = vzbd_fails(1, &["check", &path, "--undo", &kept]);
    assert!(said.contains("changed since"), "{said}");
    assert!(fs::read(&path).unwrap() == used);
}

#[test]
fn what_only_a_copy_mends_is_left_alone() {
    let place = Place::new();
    let path = used_image(&place);
    damage(&path, |bytes| {
        let newest = newest_slot(bytes);
        bytes[newest + 70..newest + 90].fill(0x77);
        bytes[33] ^= 1;
        bytes[40] ^= 1;
    });
    let damaged = fs::read(&path).unwrap();
    let said = found(&[&path]);
    assert!(said.contains("fatal: page-newest-lost, zones 0–15"), "{said}");
    // What the older states do not know of is evidence, not something to be removed.
    assert!(said.contains("note: behind-write-pointer, zone 3"), "{said}");
    assert!(
        said.contains("3 problems: 1 that --repair mends, 2 that nothing but a copy of the image mends"),
        "{said}"
    );
    let said = found(&[&path, "--repair"]);
    assert!(said.contains("after the repair: 2 problems that nothing but a copy"), "{said}");
    // Only the superblock's copy was written.
    assert!(fs::read(&path).unwrap()[4096..] == damaged[4096..]);
    let not_an_image = place.path("text");
    fs::write(&not_an_image, "#!/bin/sh\necho hello\n").unwrap();
    let said = found(&[not_an_image.to_str().unwrap()]);
    assert!(said.contains("not-an-image") && said.contains("Is it the right file?"), "{said}");
}

#[test]
fn an_image_in_use_is_said_to_be_and_a_killed_one_says_what_comes_next() {
    let place = Place::new();
    let path = used_image(&place);
    let daemon = Daemon::start(Path::new(&path), &place.path("sock"), &[]);
    vzbd_takes(&["write", daemon.socket(), "--zone", "4"], &pattern(9, 8192));
    for args in [&["check", &path][..], &["check", &path, "--repair"]] {
        let said = vzbd_fails(1, args);
        assert!(said.contains("in use") && said.contains("nobody"), "{said}");
    }
    daemon.kill();
    let said = vzbd_ok(&["check", &path]);
    assert!(said.contains("not closed: its program was stopped since this machine was booted"), "{said}");
    assert!(
        said.contains("the next opening for writing takes the zones' states from the live area"),
        "{said}"
    );
    assert_eq!(said.lines().last(), Some("clean"));
    let json = vzbd_json(&["check", &path]);
    assert_eq!(json["image"]["last_use"], "killed");
    assert_eq!(json["image"]["live_boot_id"], json["image"]["boot_id"]);
    // On another machine, or after a power cut.
    damage(&path, |bytes| {
        for copy in [0, 4096] {
            bytes[copy + 41] ^= 1;
            let crc = crc32c(&[&bytes[copy..copy + 12], &[0; 4], &bytes[copy + 16..copy + 4096]].concat());
            bytes[copy + 12..copy + 16].copy_from_slice(&crc.to_le_bytes());
        }
    });
    let said = vzbd_ok(&["check", &path]);
    assert!(said.contains("the machine has stopped since, or it comes from another one"), "{said}");
    vzbd_bytes(&["read", &path, "--zone", "4"]);
    assert_eq!(vzbd_json(&["check", &path])["image"]["last_use"], "power-lost", "reading changes nothing");
}

#[test]
fn a_wrong_call_is_told_from_a_bad_image() {
    let place = Place::new();
    let path = used_image(&place);
    let nowhere = place.path("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let directory = place.path("");
    for (args, expected) in [
        (&["check"][..], "IMAGE"),
        (&["check", nowhere], "No such file"),
        (&["check", nowhere, "--repair"], "No such file"),
        (&["check", directory.to_str().unwrap()], "a directory"),
        (&["check", "/dev/null"], "a character device"),
        (&["check", &path, "--undo", nowhere], "No such file"),
        (&["check", &path, "--undo", nowhere, "--repair"], "cannot be used with"),
        (&["check", &path, "--clear-behind"], "--repair"),
    ] {
        let said = vzbd_fails(2, args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let said = vzbd_fails(1, &["check", &path, "--undo", &path]);
    assert!(said.contains("not a file that a repair has kept"), "{said}");
}

/// CRC32C, one bit at a time.
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
