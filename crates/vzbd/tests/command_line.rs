//! What the commands say and how they end: 0 done, 1 the disk or the system said no, 2 the call was wrong.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::{Daemon, Place, vzbd, vzbd_fails, vzbd_ok};

#[test]
fn create_info_and_report_agree() {
    let place = Place::new();
    let image = place.small_image();
    let path = image.to_str().unwrap();
    let info: serde_json::Value = serde_json::from_str(&vzbd_ok(&["info", "--json", path])).unwrap();
    assert_eq!(info["capacity_bytes"], 16 << 20);
    assert_eq!(info["zones"]["count"], 16);
    assert_eq!(info["zones"]["conventional"], 2);
    assert_eq!(info["zones"]["zone_len_bytes"], 1 << 20);
    assert_eq!(info["zones"]["zone_capacity_bytes"], 768 << 10);
    assert_eq!(info["zones"]["max_open"], 6);
    assert_eq!(info["zones"]["max_active"], 8);
    assert_eq!(info["closed_cleanly"], true);

    let report: serde_json::Value = serde_json::from_str(&vzbd_ok(&["report", "--json", path])).unwrap();
    let zones = report["zones"].as_array().unwrap();
    assert_eq!(zones.len(), 16);
    assert_eq!(zones[0]["type"], "conventional");
    assert_eq!(zones[2]["type"], "sequential-write-required");
    assert_eq!(zones[2]["condition"], "empty");
    assert_eq!(zones[2]["start_sector"], 4096);
    assert_eq!(zones[2]["len_sectors"], 2048);
    assert_eq!(zones[2]["capacity_sectors"], 1536);
    assert_eq!(zones[2]["wp_sector"], 4096);
    assert_eq!(zones[0]["wp_sector"], serde_json::Value::Null, "a conventional zone has no write pointer");

    let table = vzbd_ok(&["report", path]);
    assert_eq!(table.lines().count(), 17, "a head and sixteen zones: {table}");
    let blkzone = vzbd_ok(&["report", "--format", "blkzone", path]);
    assert_eq!(
        blkzone.lines().nth(2).unwrap(),
        "  start: 0x000001000, len 0x000800, cap 0x000600, wptr 0x000000 reset:0 non-seq:0, zcond: 1(em) [type: 2(SEQ_WRITE_REQUIRED)]"
    );
}

#[test]
fn a_wrong_call_is_exit_status_2_and_says_what_to_do() {
    let place = Place::new();
    let new = place.path("new.zbd");
    let path = new.to_str().unwrap();
    let sock = place.path("sock");
    let sock = sock.to_str().unwrap();
    for (args, expected) in [
        (&["create", path, "--size", "1X"][..], "is no size"),
        (&["create", path, "--size", "1G", "--zone-size", "0"], "zone length is 0"),
        (&["create", path, "--size", "1G", "--zone-capacity", "65M"], "zone capacity"),
        (&["create", path, "--size", "1000"], "multiple of 512"),
        (&["create", path, "--size", "1G", "--block-size", "3000"], "power of two"),
        (&["create", path, "--size", "1G", "--max-open", "9", "--max-active", "8"], "must not be larger"),
        (&["create", path, "--size", "1G", "--conventional", "17"], "17 conventional zones"),
        (&["create", path, "--size", "1G", "--zoned", "none", "--conventional", "1"], "does not go with"),
        (&["serve", "ram", "--socket", sock, "--queues", "0"], "0"),
        (&["serve", path, "--socket", sock, "--size", "1G"], "--size"),
        (
            &["serve", "ram", "--socket", sock, "--inject", "write:oops"],
            "\"oops\" is no fault; there are eio,",
        ),
        (&["serve", "ram", "--socket", sock, "--inject", "write:eio@zone=16"], "no such zone, but 16 zones"),
        (
            &["serve", "ram", "--zoned", "none", "--socket", sock, "--inject", "write:eio@zone=1"],
            "has no zones",
        ),
        (&["report", path], "No such file"),
        (&["serve", path, "--socket", sock], "No such file"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let said = vzbd_fails(2, args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert!(!new.exists(), "nothing is left behind");
}

#[test]
fn what_is_there_is_not_overwritten_unless_asked_for() {
    let place = Place::new();
    let image = place.small_image();
    let path = image.to_str().unwrap();
    let before = std::fs::read(&image).unwrap();
    let said = vzbd_fails(1, &["create", path, "--size", "1G"]);
    assert!(said.contains("exists"), "{said}");
    assert!(std::fs::read(&image).unwrap() == before);
    vzbd_ok(&["create", path, "--size", "32M", "--zone-size", "1M", "--force"]);
    assert!(vzbd_ok(&["report", path]).lines().count() == 33);
}

#[test]
fn a_file_that_is_no_good_image_is_named_and_left_as_it_was() {
    let place = Place::new();
    let image = place.small_image();
    let good = std::fs::read(&image).unwrap();
    let path = place.path("bad");
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    for (what, bytes, expected) in [
        ("another program's", b"#!/bin/sh\necho hello\n".repeat(1000), "not"),
        ("empty", Vec::new(), "empty"),
        ("too short", good[..good.len() / 2].to_vec(), "cut off"),
        ("both superblocks", damage(&|b| b[64..8192].fill(0xa5)), "superblock"),
        // The states of zones 0 to 503, both copies.
        // Closed cleanly, so the older copy can't be what counts.
        ("the newer page", damage(&|b| b[8192 + 128..12288].fill(0xa5)), "zone"),
        ("both pages", damage(&|b| b[8192 + 128..16384].fill(0xa5)), "zone"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let name = path.to_str().unwrap();
        let sock = place.path("sock");
        for args in
            [&["serve", name, "--socket", sock.to_str().unwrap()][..], &["report", name], &["info", name]]
        {
            let said = vzbd_fails(1, args);
            assert!(said.contains(name) && said.contains(expected), "{what}: {args:?}: {said}");
            assert!(std::fs::read(&path).unwrap() == bytes, "{what}: {args:?} has changed the file");
        }
    }
    // One damaged copy of the superblock and the older copy of the zone states are no harm.
    let harmless = damage(&|b| {
        b[64..4096].fill(0xa5);
        b[12288 + 128..16384].fill(0xa5);
    });
    std::fs::write(&path, harmless).unwrap();
    let output = vzbd(&["report".as_ref(), path.as_os_str()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_socket_a_stale_one_is_replaced_a_live_one_is_an_error() {
    let place = Place::new();
    let sock = place.path("sock");
    // A dead listener leaves its file.
    drop(UnixListener::bind(&sock).unwrap());
    assert!(sock.exists());
    let daemon = Daemon::start(Path::new("ram"), &sock, &[]);
    assert_eq!(std::fs::metadata(&sock).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(daemon.greeting.starts_with("serving "), "{}", daemon.greeting);
    assert!(daemon.greeting.contains(&format!("virtio_uml.device={}:2", sock.display())));
    assert!(daemon.greeting.contains("vhost-user-test-device-pci"));

    let said = vzbd_fails(1, &["serve", "ram", "--socket", sock.to_str().unwrap()]);
    assert!(said.contains("sock"), "{said}");
    // The live one was left alone.
    drop(daemon.client(1));
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert!(!sock.exists(), "the socket's file goes with the daemon");

    std::fs::write(&sock, "a file").unwrap();
    let said = vzbd_fails(1, &["serve", "ram", "--socket", sock.to_str().unwrap()]);
    assert!(said.contains("socket"), "{said}");
    assert_eq!(std::fs::read(&sock).unwrap(), b"a file");
}

#[test]
fn sigterm_and_sigint_end_it_with_a_front_end_attached() {
    let place = Place::new();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut daemon = Daemon::start(Path::new("ram"), &place.path("sock"), &[]);
        let client = daemon.client(1);
        daemon.signal(signal);
        assert!(daemon.wait().success());
        drop(client);
    }
}
