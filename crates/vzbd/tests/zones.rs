//! `info`, `report` and what changes zones, over a socket and on an image.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use common::{Daemon, Place, SMALL, pattern, vzbd_fails, vzbd_json, vzbd_ok, vzbd_takes};

const ZONE_SECTORS: u64 = 2048;

/// The conditions of the zones, by number.
#[track_caller]
fn conditions(target: &str) -> Vec<String> {
    let report = vzbd_json(&["report", target]);
    let zones = report["zones"].as_array().unwrap();
    assert!((0u64..).zip(zones).all(|(index, zone)| zone["index"] == index));
    zones.iter().map(|zone| zone["condition"].as_str().unwrap().to_owned()).collect()
}

/// Two conventional zones, then these for zones 2 to 7, then empty ones.
fn small(conditions: [&str; 6]) -> Vec<String> {
    let others = ["empty"; 8];
    ["not-wp"; 2].iter().chain(&conditions).chain(&others).map(|name| (*name).to_owned()).collect()
}

#[test]
fn an_image_shows_the_same_in_its_file_and_on_its_socket() {
    let place = Place::new();
    let image = place.small_image();
    let path = image.to_str().unwrap();
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    let sock = daemon.socket();
    // Each condition that outlives the daemon.
    vzbd_takes(&["write", sock, "--zone", "2"], &pattern(2, 4096));
    vzbd_takes(&["write", sock, "--zone", "3"], &pattern(3, 768 << 10));
    vzbd_takes(&["append", sock, "15"], &pattern(15, 8192));
    vzbd_ok(&["finish", sock, "4"]);
    vzbd_ok(&["close", sock, "--all"]);
    let formats: &[&[&str]] = &[&["--format", "blkzone"], &["--format", "table"], &[]];
    let over_socket: Vec<_> =
        formats.iter().map(|format| vzbd_ok(&[&["report", sock], *format].concat())).collect();
    let (info, report) = (vzbd_json(&["info", sock]), vzbd_json(&["report", sock]));
    assert!(daemon.stop().0.success());
    for (format, over_socket) in formats.iter().zip(&over_socket) {
        assert_eq!(&vzbd_ok(&[&["report", path], *format].concat()), over_socket);
    }
    assert_eq!(
        over_socket[0].lines().collect::<Vec<_>>()[2..5],
        [
            "  start: 0x000001000, len 0x000800, cap 0x000600, wptr 0x000008 reset:0 non-seq:0, zcond: 4(cl) [type: 2(SEQ_WRITE_REQUIRED)]",
            "  start: 0x000001800, len 0x000800, cap 0x000600, wptr 0x000800 reset:0 non-seq:0, zcond:14(fu) [type: 2(SEQ_WRITE_REQUIRED)]",
            "  start: 0x000002000, len 0x000800, cap 0x000600, wptr 0x000800 reset:0 non-seq:0, zcond:14(fu) [type: 2(SEQ_WRITE_REQUIRED)]",
        ]
    );

    // What only the image knows of a full zone is null over the socket.
    let mut of_image = vzbd_json(&["report", path]);
    let written = [(3, 1536), (4, 0)].map(|(zone, sectors)| {
        let found = of_image["zones"][zone]["written_sectors"].take();
        assert_eq!(found, sectors, "zone {zone}");
    });
    assert_eq!((written.len(), of_image), (2, report));

    let of_image = vzbd_json(&["info", path]);
    for key in ["capacity_bytes", "block_len_bytes", "zones"] {
        assert_eq!(of_image[key], info[key], "{key}");
    }
    assert_eq!((&info["zones"]["open"], &info["zones"]["active"]), (&0.into(), &2.into()));
    assert_eq!(info["model"], "host-managed");
    assert_eq!((&info["queues"], &info["read_only"]), (&1.into(), &false.into()));
    // An image's serial number begins with its UUID.
    let uuid = of_image["uuid"].as_str().unwrap().replace('-', "");
    assert_eq!(info["serial"], uuid[..20]);
    assert!(info["features"].as_array().unwrap().contains(&"ZONED".into()), "{info}");
}

#[test]
fn zones_are_opened_closed_finished_and_reset() {
    let place = Place::new();
    let daemon = place.ram(SMALL);
    let sock = daemon.socket();
    assert_eq!(conditions(sock), small(["empty"; 6]));
    // One, several, and each kind of range.
    assert_eq!(vzbd_ok(&["open", sock, "2", "7"]), "");
    assert_eq!(
        conditions(sock),
        small(["explicit-open", "empty", "empty", "empty", "empty", "explicit-open"])
    );
    vzbd_ok(&["close", sock, "2", "7"]);
    vzbd_ok(&["open", sock, "2..4", "5..=6"]);
    assert_eq!(
        conditions(sock),
        small(["explicit-open", "explicit-open", "empty", "explicit-open", "explicit-open", "empty"])
    );
    // A zone that is closed with nothing in it is empty (V16).
    vzbd_ok(&["close", sock, "--all"]);
    assert_eq!(conditions(sock), small(["empty"; 6]));
    vzbd_takes(&["write", sock, "--zone", "3"], &pattern(1, 4096));
    vzbd_ok(&["open", sock, "4"]);
    assert_eq!(
        conditions(sock),
        small(["empty", "implicit-open", "explicit-open", "empty", "empty", "empty"])
    );
    vzbd_ok(&["finish", sock, "2..=4"]);
    assert_eq!(conditions(sock), small(["full", "full", "full", "empty", "empty", "empty"]));
    vzbd_ok(&["reset", sock, "2", "4"]);
    assert_eq!(conditions(sock), small(["empty", "full", "empty", "empty", "empty", "empty"]));
    // Up to the last zone; then those that are left, without those that are full or conventional.
    vzbd_ok(&["finish", sock, "10.."]);
    vzbd_ok(&["finish", sock, "--all"]);
    let all_full: Vec<_> = conditions(sock).into_iter().skip(2).collect();
    assert_eq!(all_full, vec!["full"; 14]);
    vzbd_ok(&["reset", sock, "--all"]);
    assert_eq!(conditions(sock), small(["empty"; 6]));
}

#[test]
fn what_the_disk_refuses_is_exit_status_1_with_the_zone_and_what_to_do() {
    let place = Place::new();
    let daemon = place.ram(SMALL);
    let sock = daemon.socket();
    // Six zones may be open: the seventh may not, and what was done before it is said.
    let said = vzbd_fails(1, &["open", sock, "2..10"]);
    for part in
        [sock, "opening zone 8", "sector 16384", "OPEN_RESOURCE", "6 zones may be open", "6 zones were done"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Eight may be active.
    for zone in ["2", "3", "4", "5", "6", "7"] {
        vzbd_takes(&["write", sock, "--zone", zone], &pattern(1, 4096));
    }
    vzbd_ok(&["close", sock, "--all"]);
    vzbd_ok(&["open", sock, "8..10"]);
    let said = vzbd_fails(1, &["open", sock, "10"]);
    for part in ["opening zone 10", "ACTIVE_RESOURCE", "8 zones may be active", "finish or reset one"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for (args, parts) in [
        (&["open", sock, "1"][..], &["opening zone 1", "INVALID_CMD", "conventional"][..]),
        (&["reset", sock, "0"], &["resetting zone 0", "INVALID_CMD", "conventional"]),
        (&["close", sock, "12"], &["closing zone 12", "INVALID_CMD", "the zone is empty"]),
    ] {
        let said = vzbd_fails(1, args);
        assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
    }
    vzbd_ok(&["finish", sock, "2"]);
    let said = vzbd_fails(1, &["open", sock, "2"]);
    assert!(said.contains("INVALID_CMD") && said.contains("the zone is full"), "{said}");
}

#[test]
fn zones_that_are_not_there_are_exit_status_2() {
    let place = Place::new();
    let daemon = place.ram(SMALL);
    let sock = daemon.socket();
    for (args, expected) in [
        (&["reset", sock, "16"][..], "no zone 16: the disk has 16 zones, 0 to 15"),
        (&["reset", sock, "14..=16"], "no zone 16"),
        (&["reset", sock, "20.."], "no zone 20"),
        (&["reset", sock, "3..3"], "empty range"),
        (&["reset", sock, "5..3"], "empty range"),
        (&["reset", sock, "-1"], "-1"),
        (&["reset", sock, "x"], "is no zone"),
        (&["reset", sock], "required"),
        (&["reset", sock, "3", "--all"], "cannot be used with"),
        (&["read", sock, "--zone", "16"], "no zone 16"),
        (&["append", sock, "16"], "no zone 16"),
    ] {
        let said = vzbd_fails(2, args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert_eq!(conditions(sock), small(["empty"; 6]), "and nothing was done");
}

#[test]
fn a_disk_without_zones_says_so() {
    let place = Place::new();
    let daemon = place.ram("--size 16M --zoned none");
    let sock = daemon.socket();
    for args in [
        &["report", sock][..],
        &["report", sock, "--json"],
        &["open", sock, "0"],
        &["reset", sock, "--all"],
        &["read", sock, "--zone", "0"],
        &["append", sock, "0"],
        &["bench", sock, "--mode", "append", "--destroy-data"],
    ] {
        let said = vzbd_fails(2, args);
        assert!(
            said.contains(sock) && (said.contains("no zones") || said.contains("no append")),
            "{args:?}: {said}"
        );
    }
    let info = vzbd_json(&["info", sock]);
    assert_eq!((&info["zones"], &info["model"]), (&serde_json::Value::Null, &"none".into()));
    assert_eq!((&info["capacity_bytes"], &info["block_len_bytes"]), (&(16 << 20).into(), &512.into()));
    assert!(vzbd_ok(&["info", sock]).contains("no zones"));
}

#[test]
fn an_image_that_nobody_serves_is_used_as_it_is() {
    let place = Place::new();
    let image = place.small_image();
    let path = image.to_str().unwrap();
    vzbd_takes(&["write", path, "--zone", "3"], &pattern(3, 8192));
    vzbd_ok(&["finish", path, "5"]);
    assert_eq!(conditions(path), small(["empty", "closed", "empty", "full", "empty", "empty"]));
    let wp = vzbd_json(&["report", path])["zones"][3]["wp_sector"].clone();
    assert_eq!(wp, 3 * ZONE_SECTORS + 16);
    assert_eq!(vzbd_json(&["info", path])["closed_cleanly"], true);
    vzbd_ok(&["reset", path, "3..6"]);
    assert_eq!(conditions(path), small(["empty"; 6]));
    // It would be closed again before anybody could use it.
    for command in ["open", "close"] {
        let said = vzbd_fails(2, &[command, path, "3"]);
        assert!(said.contains(path) && said.contains("nobody serves"), "{said}");
    }
    // Served, it belongs to who serves it, who has the socket.
    let _daemon = Daemon::start(&image, &place.path("sock"), &[]);
    for args in
        [&["reset", path, "3"][..], &["read", path, "--zone", "3"], &["report", path], &["info", path]]
    {
        let said = vzbd_fails(1, args);
        assert!(said.contains("in use") && said.contains("socket"), "{args:?}: {said}");
    }
}
