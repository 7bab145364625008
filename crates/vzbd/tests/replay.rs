//! `vzbd serve --record`, `vzbd replay` and `vzbd serve --power-cut-after`, as their users see them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::{Daemon, Place, pattern, vzbd_bytes, vzbd_fails, vzbd_json, vzbd_ok};
use rustix::process::Signal;
use virtio_zbd_spec::Status;
use virtio_zbd_testkit::{Client, Request};

const BLOCK: usize = 4096;
const ZONE_SECTORS: u64 = 2048;

/// What condition a zone is in, and how many blocks are written in it.
fn zone(image: &Path, zone: usize) -> (String, u64) {
    let report = vzbd_json(&["report", image.to_str().unwrap()]);
    let zone = &report["zones"][zone];
    (zone["condition"].as_str().unwrap().to_owned(), zone["written_sectors"].as_u64().unwrap() / 8)
}

fn blocks(image: &Path, zone: u64, count: usize) -> Vec<u8> {
    let length = (count * BLOCK).to_string();
    vzbd_bytes(&["read", image.to_str().unwrap(), "--zone", &zone.to_string(), "--length", &length])
}

fn write(client: &mut Client, sector: u64, tag: u64, blocks: usize) {
    client.call(0, Request::write(sector, &pattern(tag, blocks * BLOCK))).unwrap().expect(Status::Ok);
}

fn call(client: &mut Client, request: Request) {
    client.call(0, request).unwrap().expect(Status::Ok);
}

/// A recording: zone 3 has two blocks flushed and three that are not; block 0 (conventional) an old and a new version; zone 4 was
/// finished, zone 5 reset.
fn recording(place: &Place) -> String {
    let (image, log) = (place.small_image(), place.path("log"));
    let log = log.to_str().unwrap().to_owned();
    // What was there before is in the recording too.
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    write(&mut daemon.client(1), 6 * ZONE_SECTORS, 60, 1);
    daemon.stop();
    let daemon = Daemon::start(&image, &place.path("sock"), &["--record", &log]);
    let mut client = daemon.client(1);
    write(&mut client, 0, 1, 1);
    write(&mut client, 3 * ZONE_SECTORS, 31, 2);
    write(&mut client, 4 * ZONE_SECTORS, 41, 1);
    write(&mut client, 5 * ZONE_SECTORS, 51, 1);
    call(&mut client, Request::flush());
    write(&mut client, 0, 2, 1);
    write(&mut client, 3 * ZONE_SECTORS + 16, 32, 3);
    call(&mut client, Request::zone_finish(4 * ZONE_SECTORS));
    call(&mut client, Request::zone_reset(5 * ZONE_SECTORS));
    drop(client);
    // A kill: what is in the log is there.
    daemon.kill();
    log
}

#[test]
fn a_recording_is_listed_and_replayed() {
    let place = Place::new();
    let log = recording(&place);
    let list = vzbd_json(&["replay", &log, "--list"]);
    let line = |line: &serde_json::Value| {
        ["writes", "written_bytes", "finishes", "resets"].map(|key| line[key].as_u64().unwrap())
    };
    assert_eq!(list["flushes"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(line(&list["flushes"][0]), [4, 5 * BLOCK as u64, 0, 0]);
    assert_eq!(line(&list["rest"]), [2, 4 * BLOCK as u64, 1, 1]);
    assert_eq!(list["capacity_bytes"], 16 << 20);
    // A block, in a piece of 4096 bytes that the recorder has looked at.
    assert_eq!(list["base_bytes"], BLOCK);
    let text = vzbd_ok(&["replay", &log, "--list"]);
    assert!(text.contains("1 flushes") && text.contains("FLUSH"), "{text}");

    let make = |name: &str, options: &[&str]| {
        let path = place.path(name);
        let mut args = vec!["replay", &log, "--out", path.to_str().unwrap()];
        args.extend(options);
        vzbd_ok(&args);
        assert_eq!(vzbd_json(&["info", path.to_str().unwrap()])["closed_cleanly"], false);
        path
    };
    let flushed = make("flushed", &["--at", "flush:1", "--keep", "all"]);
    let none = make("none", &["--keep", "none"]);
    let all = make("all", &["--at", "end", "--keep", "all"]);
    for image in [&flushed, &none, &all] {
        assert_eq!(blocks(image, 6, 1), pattern(60, BLOCK), "what was there before");
        assert_eq!(blocks(image, 3, 2), pattern(31, 2 * BLOCK), "what was flushed");
    }
    for image in [&flushed, &none] {
        assert_eq!(zone(image, 3), ("closed".into(), 2));
        assert_eq!(blocks(image, 0, 1), pattern(1, BLOCK));
    }
    assert_eq!((zone(&flushed, 4), zone(&flushed, 5)), (("closed".into(), 1), ("closed".into(), 1)));
    // Finishes and resets are durable when they are answered.
    for image in [&none, &all] {
        assert_eq!((zone(image, 4).0, zone(image, 5)), ("full".into(), ("empty".into(), 0)));
        assert_eq!(blocks(image, 4, 2), [pattern(41, BLOCK), vec![0; BLOCK]].concat());
    }
    assert_eq!((zone(&all, 3), blocks(&all, 0, 1)), (("closed".into(), 5), pattern(2, BLOCK)));
    assert_eq!(blocks(&all, 3, 5), [pattern(31, 2 * BLOCK), pattern(32, 3 * BLOCK)].concat());

    // Before anything: what was there. The same seed, the same image.
    assert_eq!(zone(&make("first", &["--at", "0"]), 3), ("empty".into(), 0));
    let mut found = BTreeMap::new();
    for seed in 0..8 {
        let seed = seed.to_string();
        let image = make("random", &["--seed", &seed, "--force"]);
        let state = (zone(&image, 3).1, blocks(&image, 0, 1) == pattern(2, BLOCK));
        let again = make("again", &["--seed", &seed, "--force"]);
        assert_eq!(state, (zone(&again, 3).1, blocks(&again, 0, 1) == pattern(2, BLOCK)));
        assert!((2..=5).contains(&state.0));
        found.insert(state, seed);
    }
    assert!(found.len() > 2, "{found:?}");
}

#[test]
fn a_command_is_tried_on_many_images() {
    let place = Place::new();
    let log = recording(&place);
    let vzbd = env!("CARGO_BIN_EXE_vzbd");
    // What was flushed is there whenever the flush has ended.
    let good = format!(
        r#"[ "$VZBD_EVENT" -lt $FLUSHED ] || {vzbd} read "$VZBD_IMAGE" --zone 3 --length 8192 | cmp -s - "$EXPECTED""#
    );
    let expected = place.path("expected");
    std::fs::write(&expected, pattern(31, 2 * BLOCK)).unwrap();
    let flushed = vzbd_json(&["replay", &log, "--list"])["flushes"][0]["event"].to_string();
    let good = good.replace("$FLUSHED", &flushed).replace("$EXPECTED", expected.to_str().unwrap());
    let said = vzbd_ok(&["replay", &log, "--exec", &good, "--count", "10", "--seed", "7"]);
    assert_eq!(said, "10 images, and the command was content with each\n");
    let said = vzbd_ok(&["replay", &log, "--exec", &good, "--each-flush", "--count", "3", "--seed", "7"]);
    assert!(said.starts_with("6 images"), "{said}");
    // Who counts on more than that is told when it fails, and can see that image again.
    let bad =
        format!(r#"{vzbd} report "$VZBD_IMAGE" --format blkzone | sed -n 4p | grep -q 'wptr 0x000028'"#);
    let output =
        common::vzbd(&["replay", &log, "--exec", &bad, "--at", "end", "--count", "10", "--seed", "7"]);
    let (said, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{said}{error}");
    let failed: Vec<&str> = said.lines().filter(|line| line.starts_with("failed (exit status: 1)")).collect();
    assert!(!failed.is_empty() && failed.len() < 10, "{said}");
    assert_eq!(error, format!("vzbd: the command failed for {} of 10 images\n", failed.len()));
    for line in failed {
        let options = line.split_once("vzbd ").unwrap().1.strip_suffix(" --out IMAGE").unwrap();
        let mut args: Vec<&str> = options.split(' ').collect();
        let image = place.path("again");
        args.extend(["--force", "--out", image.to_str().unwrap()]);
        vzbd_ok(&args);
        assert_ne!(zone(&image, 3).1, 5, "{line}");
    }
}

#[test]
fn a_wrong_call_says_what_is_wrong() {
    let place = Place::new();
    let log = recording(&place);
    let image = place.path("disk.zbd");
    let image = image.to_str().unwrap();
    for (status, expected, args) in [
        (2, "what to do?", &["replay", &log] as &[&str]),
        (2, "there is no flush 2", &["replay", &log, "--out", "/nonexistent/x", "--at", "flush:2"]),
        (2, "there is no event 999", &["replay", &log, "--out", "/nonexistent/x", "--at", "999"]),
        (2, "no moment", &["replay", &log, "--out", "x", "--at", "flush"]),
        (2, "power of two", &["replay", &log, "--out", "/nonexistent/x", "--torn-block", "8K"]),
        (1, "exists already", &["replay", &log, "--out", image]),
        (1, "no recording of a disk", &["replay", image, "--list"]),
        (2, "opening it", &["replay", "/nonexistent/log", "--list"]),
        (2, "--exec", &["replay", &log, "--out", "/nonexistent/x", "--count", "3"]),
        (2, "exists already", &["serve", image, "--socket", "/nonexistent/s", "--record", &log]),
        (2, "--read-only", &["serve", image, "--socket", "/nonexistent/s", "--read-only", "--record", "x"]),
        (
            2,
            "image of a zoned disk",
            &["serve", "ram", "--socket", "/nonexistent/s", "--power-cut-after", "3"],
        ),
        (2, "power-cut-after", &["serve", image, "--socket", "/nonexistent/s", "--power-cut-seed", "3"]),
    ] {
        let said = vzbd_fails(status, args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

/// Power cuts at any change, while two queues write: what was flushed is there, and nothing that was never written.
#[test]
fn the_power_is_cut_under_load() {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let cuts = std::env::var("RECORD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    for _ in 0..cuts {
        let place = Place::new();
        let image = place.small_image();
        let (after, cut_seed) = (rng.u64(1..80), rng.u64(..));
        let options = [
            "--power-cut-after",
            &after.to_string(),
            "--power-cut-seed",
            &cut_seed.to_string(),
            "--queues",
            "2",
        ];
        let mut daemon = Daemon::start(&image, &place.path("sock"), &options);
        let mut client = daemon.client(2);
        let load = load(&mut daemon, &mut client, &mut rng);
        let status = daemon.wait();
        assert_eq!(status.code(), Some(3), "cut after {after}");
        drop(client);
        assert_eq!(vzbd_json(&["info", image.to_str().unwrap()])["closed_cleanly"], false);
        load.check(&image, &format!("cut after {after}, seed {cut_seed}"));
        // And it can be served and written again.
        let daemon = Daemon::start(&image, &place.path("sock"), &[]);
        call(&mut daemon.client(1), Request::zone_reset_all());
        let (status, log) = daemon.stop();
        assert!(status.success() && log.contains("what was flushed is there"), "{log}");
    }
}

/// What a load has done until nothing was answered any more.
#[derive(Default)]
struct Load {
    /// Of zones 2 and 3: the tags of the blocks in order, how many were flushed.
    zones: [(Vec<u64>, usize); 2],
    /// Of 8 conventional blocks: the versions that may be there.
    blocks: [Vec<u64>; 8],
}

/// Writes and flushes, two requests at a time, until the disk is silent.
fn load(daemon: &mut Daemon, client: &mut Client, rng: &mut fastrand::Rng) -> Load {
    let mut load = Load { blocks: std::array::from_fn(|_| vec![0]), ..Load::default() };
    for tag in 1.. {
        // One to each queue: a zone's append and a conventional write. Both are under way at once.
        let (zone, block) = (rng.usize(..2), rng.usize(..8));
        let count = rng.usize(1..4);
        let room = load.zones[zone].0.len() + count <= 192;
        if room {
            let data = pattern(tag, count * BLOCK);
            let start = (2 + zone as u64) * ZONE_SECTORS;
            if client.submit(0, Request::zone_append(start, &data)).is_err() {
                return load;
            }
            load.zones[zone].0.extend(vec![tag; count]);
        }
        load.blocks[block].push(tag);
        if client.submit(1, Request::write(block as u64 * 8, &pattern(tag, BLOCK))).is_err() {
            return load;
        }
        let mut silent = |client: &mut Client, queue| loop {
            match client.complete(queue, Duration::from_millis(50)) {
                Ok((_, completion)) => {
                    assert_eq!(completion.outcome(), Ok(Status::Ok), "a good answer, or none");
                    return false;
                }
                Err(_) if daemon.has_ended() => return true,
                Err(_) => {}
            }
        };
        if (room && silent(client, 0)) || silent(client, 1) {
            return load;
        }
        if rng.u32(..6) == 0 {
            if client.submit(0, Request::flush()).is_err() || silent(client, 0) {
                return load;
            }
            for (tags, flushed) in &mut load.zones {
                *flushed = tags.len();
            }
            for versions in &mut load.blocks {
                *versions = versions.split_off(versions.len() - 1);
            }
        }
    }
    load
}

impl Load {
    #[track_caller]
    fn check(&self, image: &Path, what: &str) {
        for (index, (tags, flushed)) in self.zones.iter().enumerate() {
            let wp = zone(image, 2 + index).1 as usize;
            assert!((*flushed..=tags.len()).contains(&wp), "{what}: zone {index}: {wp}, flushed {flushed}");
            if wp == 0 {
                continue;
            }
            let found = blocks(image, 2 + index as u64, wp);
            let (mut last, mut nth) = (0, 0);
            for (block, &tag) in tags[..wp].iter().enumerate() {
                nth = if tag == last { nth + 1 } else { 0 };
                last = tag;
                let expected = &pattern(tag, 3 * BLOCK)[nth * BLOCK..(nth + 1) * BLOCK];
                let found = &found[block * BLOCK..(block + 1) * BLOCK];
                // The last write was not answered: it may be a gap.
                let gap = tag == tags[tags.len() - 1] && found.iter().all(|&byte| byte == 0);
                assert!(found == expected || gap, "{what}: zone {index}, block {block}");
            }
        }
        let found = blocks(image, 0, 8);
        for (versions, found) in self.blocks.iter().zip(found.chunks(BLOCK)) {
            let there = versions.iter().any(|&tag| match tag {
                0 => found.iter().all(|&byte| byte == 0),
                tag => found == pattern(tag, BLOCK),
            });
            assert!(there, "{what}: one of {versions:?}");
        }
    }
}

/// A recording and a signal: the log is whole, and ends in the flush of the closing.
#[test]
fn a_closed_disk_ends_its_recording_with_a_flush() {
    let place = Place::new();
    let (image, log) = (place.small_image(), place.path("log"));
    let log = log.to_str().unwrap();
    let daemon = Daemon::start(&image, &place.path("sock"), &["--record", log]);
    write(&mut daemon.client(1), 3 * ZONE_SECTORS, 31, 2);
    daemon.signal(Signal::TERM);
    let (status, said) = daemon.stop();
    assert!(status.success(), "{said}");
    let list = vzbd_json(&["replay", log, "--list"]);
    assert_eq!(list["flushes"].as_array().unwrap().len(), 1);
    let out = place.path("out");
    vzbd_ok(&["replay", log, "--out", out.to_str().unwrap(), "--keep", "none"]);
    assert_eq!(blocks(&out, 3, 2), pattern(31, 2 * BLOCK));
}
