//! `read`, `write`, `append`: bytes, where they go, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::path::Path;

use common::{
    Daemon, Place, pattern, vzbd_bytes, vzbd_fails, vzbd_json, vzbd_ok, vzbd_takes, vzbd_with_input,
};

/// Short appends: what is longer is several.
const SHORT_APPENDS: &str =
    "--size 16M --zone-size 1M --zone-capacity 768K --conventional 2 --max-append 64K";
const ZONE_LEN: usize = 1 << 20;
const CAPACITY: usize = 768 << 10;
const ZONE_SECTORS: usize = ZONE_LEN / 512;

#[track_caller]
fn wp(target: &str, zone: usize) -> u64 {
    vzbd_json(&["report", target])["zones"][zone]["wp_sector"].as_u64().unwrap()
}

#[test]
fn what_is_written_is_read() {
    let place = Place::new();
    let image = place.small_image();
    let daemon = place.ram(SHORT_APPENDS);
    // Over a socket and in a file: the same commands do the same.
    for target in [daemon.socket(), image.to_str().unwrap()] {
        let data = pattern(3, CAPACITY);
        let (first, second) = data.split_at(5 * 4096);
        assert_eq!(
            vzbd_takes(&["write", target, "--zone", "3"], first),
            format!("20480 bytes at sector {}\n", 3 * ZONE_SECTORS)
        );
        assert_eq!(wp(target, 3), (3 * ZONE_SECTORS + 40) as u64);
        // Without a length: what is written, and no more.
        assert_eq!(vzbd_bytes(&["read", target, "--zone", "3"]), first);
        // From the write pointer on, out of a file, to the zone's last sector.
        let file = place.path("data");
        std::fs::write(&file, second).unwrap();
        let file = file.to_str().unwrap();
        vzbd_ok(&["write", target, "--zone", "3", "--input", file]);
        assert!(vzbd_bytes(&["read", target, "--zone", "3"]) == data);
        assert_eq!(vzbd_json(&["report", target])["zones"][3]["condition"], "full");

        // Any bytes: not only whole blocks, and into a file.
        let out = place.path("out");
        let out = out.to_str().unwrap();
        vzbd_ok(&["read", target, "--zone", "3", "--offset", "5000", "--length", "300001", "--output", out]);
        assert!(std::fs::read(out).unwrap() == data[5000..305_001]);
        let sector = (3 * ZONE_SECTORS + 1).to_string();
        assert!(vzbd_bytes(&["read", target, "--sector", &sector, "--length", "1"]) == data[512..513]);
        // Behind the written part and across zones there are zeros.
        let over = vzbd_bytes(&["read", target, "--sector", &sector, "--length", "2M"]);
        assert!(
            over[..CAPACITY - 512] == data[512..] && over[CAPACITY - 512..].iter().all(|byte| *byte == 0)
        );
        assert_eq!(over.len(), 2 << 20);
        assert_eq!(vzbd_bytes(&["read", target, "--zone", "4"]), b"");
    }
}

#[test]
fn conventional_zones_and_plain_disks_are_written_anywhere() {
    let place = Place::new();
    let daemon = place.ram(SHORT_APPENDS);
    let sock = daemon.socket();
    let data = pattern(1, 8192);
    for _ in 0..2 {
        let said = vzbd_takes(&["write", sock, "--zone", "1", "--offset", "64K"], &data);
        assert_eq!(said, format!("8192 bytes at sector {}\n", ZONE_SECTORS + 128));
    }
    vzbd_takes(&["write", sock, "--sector", "8"], &data);
    assert_eq!(vzbd_bytes(&["read", sock, "--zone", "1", "--offset", "64K", "--length", "8K"]), data);
    // Without a length all of the zone.
    let zone = vzbd_bytes(&["read", sock, "--zone", "0"]);
    assert!(
        zone.len() == ZONE_LEN && zone[4096..12288] == data && zone[12288..].iter().all(|byte| *byte == 0)
    );
    assert!(daemon.stop().0.success());

    let file = place.path("plain.img");
    vzbd_ok(&["create", file.to_str().unwrap(), "--size", "8M", "--zoned", "none"]);
    let path = file.to_str().unwrap();
    let none = ["--zoned", "none"];
    // Longer than a request may be, and no multiple of 4K.
    let data = pattern(9, (3 << 20) + 512);
    vzbd_takes(&[&["write", path, "--sector", "7"], &none[..]].concat(), &data);
    assert!(std::fs::read(&file).unwrap()[7 * 512..][..data.len()] == data);
    let read = vzbd_bytes(&[&["read", path, "--sector", "7", "--length", "3146240"], &none[..]].concat());
    assert!(read == data);
    let said = vzbd_fails(1, &["read", path, "--sector", "7", "--length", "512"]);
    assert!(said.contains("not a vzbd image") && said.contains("--zoned none"), "{said}");
}

#[test]
fn appends_say_where_they_landed() {
    let place = Place::new();
    let daemon = place.ram(SHORT_APPENDS);
    let sock = daemon.socket();
    let start = 5 * ZONE_SECTORS;
    assert_eq!(
        vzbd_takes(&["append", sock, "5"], &pattern(1, 4096)),
        format!("4096 bytes at sector {start}\n")
    );
    // Longer than the disk's largest append: several.
    let data = pattern(2, 160 << 10);
    let landed: serde_json::Value =
        serde_json::from_str(&vzbd_takes(&["append", sock, "5", "--json"], &data)).unwrap();
    let span =
        |sector: usize, len_bytes: usize| serde_json::json!({ "sector": sector, "len_bytes": len_bytes });
    let expected = [span(start + 8, 65536), span(start + 136, 65536), span(start + 264, 32768)];
    assert_eq!(landed, serde_json::json!({ "landed": expected }));
    let read = vzbd_bytes(&["read", sock, "--zone", "5", "--offset", "4K"]);
    assert!(read == data);

    // A file that has no room is refused before anything is written; a pipe when there is no more room, and then what
    // landed is said.
    let file = place.path("data");
    std::fs::write(&file, pattern(3, CAPACITY)).unwrap();
    let said = vzbd_fails(2, &["append", sock, "5", "--input", file.to_str().unwrap()]);
    assert!(said.contains("786432 bytes to write") && said.contains("zone 5 takes 618496"), "{said}");
    let output = vzbd_with_input(&["append", sock, "5"], &pattern(3, CAPACITY));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("appending to zone 5") && said.contains("(576K before it is on the disk)"),
        "{said}"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 9);
    assert_eq!(wp(sock, 5), (start + 328 + 9 * 128) as u64);

    let said = vzbd_fails(1, &["append", sock, "0", "--input", file.to_str().unwrap()]);
    assert!(said.contains("zone 0") && said.contains("conventional"), "{said}");
    assert!(daemon.stop().0.success());

    let daemon = place.ram("--size 16M --zone-size 1M --max-append 0");
    let said = vzbd_fails(2, &["append", daemon.socket(), "5", "--input", file.to_str().unwrap()]);
    assert!(said.contains("no append") && said.contains("vzbd write"), "{said}");
}

#[test]
fn a_length_that_is_no_multiple_of_the_block_is_said_or_padded() {
    let place = Place::new();
    let daemon = place.ram(SHORT_APPENDS);
    let sock = daemon.socket();
    let file = place.path("data");
    let data = pattern(1, (1 << 20) + 4000);
    std::fs::write(&file, &data[..5000]).unwrap();
    for command in [&["write", sock, "--zone", "2"][..], &["append", sock, "2"]] {
        let said = vzbd_fails(2, &[command, &["--input", file.to_str().unwrap()]].concat());
        assert!(said.contains("904 bytes into a block of 4096") && said.contains("--pad"), "{said}");
    }
    assert_eq!(wp(sock, 2), 2 * ZONE_SECTORS as u64, "nothing was written");
    // From a pipe the end shows late: what is whole is written, and that is said.
    let output = vzbd_with_input(&["write", sock, "--sector", "0"], &data);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("standard input ends 4000 bytes into") && said.contains("(1M before it"), "{said}");

    // Padded with zeros, not with what was there before.
    vzbd_takes(&["write", sock, "--sector", "0", "--pad"], &data);
    let read = vzbd_bytes(&["read", sock, "--sector", "0", "--length", "1028K"]);
    assert!(read[..data.len()] == data && read[data.len()..] == [0; 96]);

    vzbd_ok(&["write", sock, "--zone", "2", "--pad", "--input", file.to_str().unwrap()]);
    vzbd_takes(&["append", sock, "2", "--pad"], &data[..1]);
    let read = vzbd_bytes(&["read", sock, "--zone", "2"]);
    assert_eq!(read.len(), 3 * 4096);
    assert!(read[..5000] == data[..5000] && read[5000..8192].iter().all(|byte| *byte == 0));
    assert!(read[8192] == data[0] && read[8193..].iter().all(|byte| *byte == 0));
    assert_eq!(
        vzbd_takes(&["write", sock, "--zone", "3"], b""),
        format!("0 bytes at sector {}\n", 3 * ZONE_SECTORS)
    );
}

#[test]
fn writes_that_the_zone_does_not_take() {
    let place = Place::new();
    let daemon = place.ram(SHORT_APPENDS);
    let sock = daemon.socket();
    let block = pattern(1, 4096);
    vzbd_takes(&["write", sock, "--zone", "4"], &block);
    let output = vzbd_with_input(&["write", sock, "--zone", "4", "--offset", "64K"], &block);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "writing to zone 4 at sector 8320",
        "UNALIGNED_WP",
        "implicit-open",
        "its write pointer is at sector 8200: write there",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(output.stdout, b"");

    // A zone's end: of a file it is known before, of a pipe it is not.
    let file = place.path("data");
    std::fs::write(&file, pattern(2, CAPACITY)).unwrap();
    let file = file.to_str().unwrap();
    let said = vzbd_fails(2, &["write", sock, "--zone", "4", "--input", file]);
    assert!(said.contains("zone 4 takes 782336 from there on"), "{said}");
    assert_eq!(wp(sock, 4), 8200);
    let output = vzbd_with_input(&["write", sock, "--zone", "4"], &pattern(2, CAPACITY));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("zone 4 takes no more at sector 9728") && said.contains("(764K before it"),
        "{said}"
    );
    assert_eq!(output.stdout, b"782336 bytes at sector 8200\n");
    // Now it is full.
    let output = vzbd_with_input(&["write", sock, "--zone", "4"], &block);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && said.contains("zone 4") && said.contains("full; reset it"),
        "{said}"
    );

    for (args, expected) in [
        (&["write", sock, "--zone", "5", "--offset", "100", "--input", file][..], "multiple of 512"),
        (&["write", sock, "--zone", "5", "--offset", "2M", "--input", file], "zone 5 has 1M"),
        (&["write", sock, "--sector", "32768", "--input", file], "past the end of the disk, which has 32768"),
        (
            &["write", sock, "--sector", "32760", "--input", file],
            "only 4096 from there to the end of the disk",
        ),
        (&["write", sock, "--zone", "5", "--sector", "5"], "cannot be used with"),
        (&["write", sock], "required"),
        (&["write", sock, "--zone", "5", "--input", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["write", sock, "--sector", "1", "--input", file], "multiples of 4096"),
        (&["read", sock, "--sector", "0"], "--length"),
        (&["read", sock, "--sector", "0", "--length", "17M"], "past the end of the disk"),
        (&["read", sock, "--sector", "18446744073709551615", "--length", "1"], "past the end of the disk"),
        (&["read", sock, "--zone", "5", "--length", "2M"], "past the end of zone 5"),
    ] {
        let said = vzbd_fails(2, args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    // On and on where zones have no end that can't be written.
    assert!(daemon.stop().0.success());
    let daemon = place.ram("--size 16M --zone-size 1M");
    let data = pattern(7, 5 << 19);
    vzbd_takes(&["write", daemon.socket(), "--sector", "4096"], &data);
    assert!(vzbd_bytes(&["read", daemon.socket(), "--sector", "4096", "--length", "2560K"]) == data);
    assert_eq!(wp(daemon.socket(), 4), 4 * 2048 + 1024);
}

#[test]
fn a_read_only_disk_is_read() {
    let place = Place::new();
    let image = place.small_image();
    let data = pattern(3, 8192);
    vzbd_takes(&["write", image.to_str().unwrap(), "--zone", "3"], &data);
    let daemon = Daemon::start(&image, &place.path("sock"), &["--read-only"]);
    let sock = daemon.socket();
    assert_eq!(vzbd_bytes(&["read", sock, "--zone", "3"]), data);
    assert_eq!(vzbd_json(&["info", sock])["read_only"], true);
    // Others may read the file at the same time.
    assert_eq!(vzbd_bytes(&["read", image.to_str().unwrap(), "--zone", "3"]), data);
    for args in [&["reset", sock, "3"][..], &["bench", sock, "--mode", "write", "--destroy-data"]] {
        let said = vzbd_fails(2, args);
        assert!(said.contains("read-only"), "{args:?}: {said}");
    }
    let output = vzbd_with_input(&["write", sock, "--zone", "3"], &data);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_was_written_is_flushed_at_the_end() {
    let place = Place::new();
    for (args, request) in [
        (&["write", "--zone", "2"][..], "Write"),
        (&["append", "2"], "Append"),
        (&["reset", "2"], "ZoneReset"),
    ] {
        let trace = "vzbd::request=trace";
        let options: Vec<_> = SHORT_APPENDS.split(' ').collect();
        let daemon = Daemon::start_logging(Path::new("ram"), &place.path("sock"), &options, trace);
        vzbd_takes(&[&args[..1], &[daemon.socket()], &args[1..]].concat(), &pattern(1, 8192));
        let (status, log) = daemon.stop();
        assert!(status.success());
        let requests: Vec<_> =
            log.lines().filter_map(|line| line.split("head ").nth(1)?.split(": ").nth(1)).collect();
        let at = requests.iter().rposition(|line| line.starts_with(request)).unwrap();
        assert!(requests[at..].iter().any(|line| line.starts_with("Flush")), "{log}");
    }
}
