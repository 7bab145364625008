//! `vzbd serve --inject`: each fault of the medium, what it is on the wire, and what the disk is afterwards, over kills and restarts too.
//! What a Linux guest makes of it is in `guest/tests/faults.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]

mod common;

use std::path::{Path, PathBuf};

use common::{Daemon, Place, SMALL, pattern, vzbd_json};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::{Client, Request};

const ZONE_SECTORS: u64 = 2048;
const SECTOR: usize = 512;

/// What is served, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Ram,
    IoUring,
    Sync,
}

const EVERYWHERE: [On; 3] = [On::Ram, On::IoUring, On::Sync];

/// A zoned disk with these faults.
fn zoned(place: &Place, on: On, rules: &[&str]) -> (PathBuf, Daemon) {
    let mut options: Vec<&str> = rules.iter().flat_map(|rule| ["--inject", *rule]).collect();
    let target = match on {
        On::Ram => {
            options.extend(SMALL.split(' '));
            PathBuf::from("ram")
        }
        On::IoUring | On::Sync => {
            options.extend(["--io", if on == On::Sync { "sync" } else { "io_uring" }]);
            place.small_image()
        }
    };
    let daemon = Daemon::start(&target, &place.path("sock"), &options);
    (target, daemon)
}

fn start_of(zone: u64) -> u64 {
    zone * ZONE_SECTORS
}

#[track_caller]
fn call(client: &mut Client, request: Request, status: Status) -> Vec<u8> {
    client.call(0, request).unwrap().expect(status).data
}

/// A zone's condition and its write pointer from its start.
fn zone(client: &mut Client, zone: u64) -> (u8, u64) {
    let found = client.zone_report_all().unwrap()[zone as usize];
    (found.z_state, found.z_wp.get() - found.z_start.get())
}

#[track_caller]
fn check(client: &mut Client, number: u64, condition: ZoneState, wp: u64) {
    assert_eq!(zone(client, number), (condition as u8, wp), "zone {number}");
}

/// After a kill, and after an orderly restart, without faults.
fn restarts(target: &Path, place: &Place, daemon: Daemon, check: impl Fn(&mut Client)) {
    if target == Path::new("ram") {
        return;
    }
    daemon.kill();
    let daemon = Daemon::start(target, &place.path("sock"), &[]);
    check(&mut daemon.client(1));
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    let daemon = Daemon::start(target, &place.path("sock"), &[]);
    check(&mut daemon.client(1));
}

#[test]
fn v28_a_zone_that_can_not_be_written_is_read_only_also_after_a_restart() {
    for on in EVERYWHERE {
        for fault in ["eio", "torn"] {
            let place = Place::new();
            let rule = format!("write:{fault}@zone=5,after=1");
            let (target, daemon) = zoned(&place, on, &[&rule]);
            let mut client = daemon.client(1);
            let data = pattern(5, 4096);
            call(&mut client, Request::write(start_of(5), &data), Status::Ok);
            call(&mut client, Request::write(start_of(5) + 8, &pattern(6, 8192)), Status::IoErr);
            let found = move |client: &mut Client| {
                check(client, 5, ZoneState::ReadOnly, ZONE_SECTORS);
                for request in [
                    Request::write(start_of(5) + 8, &pattern(6, 4096)),
                    Request::zone_append(start_of(5), &pattern(6, 4096)),
                    Request::zone_reset(start_of(5)),
                    Request::zone_finish(start_of(5)),
                    Request::zone_open(start_of(5)),
                    Request::zone_close(start_of(5)),
                ] {
                    call(client, request, Status::ZoneInvalidCmd);
                }
                let read = call(client, Request::read(start_of(5), 16 * SECTOR), Status::Ok);
                assert_eq!(read[..4096], pattern(5, 4096));
                assert!(read[4096..].iter().all(|byte| *byte == 0), "something of the failed write is left");
            };
            found(&mut client);
            // The rest of the disk goes on.
            call(&mut client, Request::write(start_of(6), &data), Status::Ok);
            call(&mut client, Request::flush(), Status::Ok);
            drop(client);
            restarts(&target, &place, daemon, found);
            if on == On::Sync {
                let report = vzbd_json(&["report", target.to_str().unwrap()]);
                assert_eq!(report["zones"][5]["condition"], "read-only");
            }
        }
    }
}

#[test]
fn v29_a_zone_that_can_not_be_read_is_offline_also_after_a_restart() {
    for on in EVERYWHERE {
        let place = Place::new();
        let (target, daemon) = zoned(&place, on, &["read:eio@zone=5", "read:eio@lba=12300"]);
        let mut client = daemon.client(1);
        for zone in [5, 6] {
            call(&mut client, Request::write(start_of(zone), &pattern(zone, 65536)), Status::Ok);
        }
        call(&mut client, Request::read(start_of(5) + 8, 4096), Status::IoErr);
        // A bad sector alone costs no zone.
        call(&mut client, Request::read(start_of(6), 65536), Status::IoErr);
        check(&mut client, 6, ZoneState::ImplicitOpen, 128);
        let read = call(&mut client, Request::read(start_of(6) + 16, 112 * SECTOR), Status::Ok);
        assert_eq!(read, pattern(6, 65536)[16 * SECTOR..]);
        let found = |client: &mut Client| {
            check(client, 5, ZoneState::Offline, ZONE_SECTORS);
            call(client, Request::read(start_of(5), 4096), Status::ZoneInvalidCmd);
            call(client, Request::write(start_of(5) + 128, &pattern(6, 4096)), Status::ZoneInvalidCmd);
            call(client, Request::zone_reset(start_of(5)), Status::ZoneInvalidCmd);
        };
        found(&mut client);
        drop(client);
        restarts(&target, &place, daemon, found);
    }
}

#[test]
fn a_full_host_is_an_error_and_nothing_else() {
    for on in EVERYWHERE {
        for errno in ["enospc", "edquot", "efbig"] {
            let place = Place::new();
            let rule = format!("write:{errno}@zone=5..7,times=2");
            let (_, daemon) = zoned(&place, on, &[&rule]);
            let mut client = daemon.client(1);
            call(&mut client, Request::write(start_of(5), &pattern(5, 4096)), Status::IoErr);
            call(&mut client, Request::zone_append(start_of(6), &pattern(5, 4096)), Status::IoErr);
            check(&mut client, 5, ZoneState::Empty, 0);
            check(&mut client, 6, ZoneState::Empty, 0);
            call(&mut client, Request::write(start_of(5), &pattern(5, 4096)), Status::Ok);
            assert_eq!(call(&mut client, Request::read(start_of(5), 4096), Status::Ok), pattern(5, 4096));
        }
    }
}

#[test]
fn a_short_transfer_is_no_failure() {
    for on in EVERYWHERE {
        let place = Place::new();
        let (_, daemon) = zoned(&place, on, &["write:short", "read:short"]);
        let mut client = daemon.client(1);
        for (at, len) in [(0, 512), (1, 1536), (start_of(5), 65536), (start_of(5) + 128, 4096)] {
            let data = pattern(at, len);
            call(&mut client, Request::write(at, &data), Status::Ok);
            assert_eq!(call(&mut client, Request::read(at, len), Status::Ok), data, "{on:?} {len} at {at}");
        }
        check(&mut client, 5, ZoneState::ImplicitOpen, 136);
    }
}

#[test]
fn after_a_failed_flush_nothing_is_claimed_durable() {
    for on in EVERYWHERE {
        let place = Place::new();
        let (target, daemon) = zoned(&place, on, &["flush:eio@after=2,times=1"]);
        let mut client = daemon.client(1);
        call(&mut client, Request::write(start_of(5), &pattern(5, 4096)), Status::Ok);
        call(&mut client, Request::zone_finish(start_of(6)), Status::Ok);
        call(&mut client, Request::flush(), Status::Ok);
        call(&mut client, Request::write(start_of(5) + 8, &pattern(6, 4096)), Status::Ok);
        // It failed once; that a later one would succeed proves nothing.
        for request in [
            Request::flush(),
            Request::flush(),
            Request::zone_reset(start_of(6)),
            Request::zone_reset_all(),
            Request::zone_finish(start_of(5)),
        ] {
            call(&mut client, request, Status::IoErr);
        }
        // Reads and writes go on: what is there can be saved elsewhere.
        let both = [pattern(5, 4096), pattern(6, 4096)].concat();
        assert_eq!(call(&mut client, Request::read(start_of(5), 8192), Status::Ok), both);
        check(&mut client, 6, ZoneState::Full, ZONE_SECTORS);
        drop(client);
        if on == On::Ram {
            continue;
        }
        // An orderly end can't make it durable either, and says so.
        let (status, log) = daemon.stop();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("could not be closed cleanly"), "{log}");
        let daemon = Daemon::start(&target, &place.path("sock"), &[]);
        let mut client = daemon.client(1);
        check(&mut client, 5, ZoneState::Closed, 8);
        check(&mut client, 6, ZoneState::Full, ZONE_SECTORS);
        let read = call(&mut client, Request::read(start_of(5), 8192), Status::Ok);
        assert_eq!((&read[..4096], &read[4096..]), (&pattern(5, 4096)[..], &[0; 4096][..]));
        call(&mut client, Request::flush(), Status::Ok);
    }
}

#[test]
fn a_full_host_during_a_reset_passes() {
    for on in EVERYWHERE {
        let place = Place::new();
        let (_, daemon) = zoned(&place, on, &["reset:enospc@zone=5,times=2"]);
        let mut client = daemon.client(1);
        for zone in [5, 6] {
            call(&mut client, Request::write(start_of(zone), &pattern(zone, 65536)), Status::Ok);
        }
        call(&mut client, Request::zone_reset(start_of(6)), Status::Ok);
        for request in [Request::zone_reset_all(), Request::zone_reset(start_of(5))] {
            call(&mut client, request, Status::IoErr);
            check(&mut client, 5, ZoneState::Empty, 0);
            let read = call(&mut client, Request::read(start_of(5), 65536), Status::Ok);
            assert!(read.iter().all(|byte| *byte == 0));
            call(&mut client, Request::write(start_of(5), &pattern(7, 4096)), Status::IoErr);
        }
        call(&mut client, Request::zone_reset(start_of(5)), Status::Ok);
        call(&mut client, Request::write(start_of(5), &pattern(7, 4096)), Status::Ok);
        assert_eq!(call(&mut client, Request::read(start_of(5), 4096), Status::Ok), pattern(7, 4096));
    }
}

#[test]
fn a_bad_medium_under_a_reset_takes_the_zone_offline_also_after_a_restart() {
    for on in EVERYWHERE {
        let place = Place::new();
        let (target, daemon) = zoned(&place, on, &["reset:eio@lba=10240..12288"]);
        let mut client = daemon.client(1);
        for zone in [5, 6] {
            call(&mut client, Request::write(start_of(zone), &pattern(zone, 65536)), Status::Ok);
        }
        call(&mut client, Request::zone_reset_all(), Status::IoErr);
        let found = |client: &mut Client| {
            check(client, 5, ZoneState::Offline, ZONE_SECTORS);
            check(client, 6, ZoneState::Empty, 0);
        };
        found(&mut client);
        drop(client);
        restarts(&target, &place, daemon, found);
    }
}

#[test]
fn a_plain_disk_fails_where_it_fails() {
    for io in ["io_uring", "sync", "ram"] {
        let place = Place::new();
        let raw = place.path("disk.raw");
        std::fs::File::create(&raw).unwrap().set_len(16 << 20).unwrap();
        let rules =
            ["write:eio@lba=100", "read:eio@lba=200", "clear:eio@lba=300", "flush:eio@after=1,times=1"];
        let mut options: Vec<&str> = rules.iter().flat_map(|rule| ["--inject", *rule]).collect();
        options.extend(["--zoned", "none"]);
        let target = if io == "ram" { PathBuf::from("ram") } else { raw };
        options.extend(if io == "ram" { ["--size", "16M"] } else { ["--io", io] });
        let daemon = Daemon::start(&target, &place.path("sock"), &options);
        let mut client = daemon.client(1);
        for at in [96, 200, 296] {
            let (write, read, clear) = match at {
                96 => (Status::IoErr, Status::Ok, Status::Ok),
                200 => (Status::Ok, Status::IoErr, Status::Ok),
                _ => (Status::Ok, Status::Ok, Status::IoErr),
            };
            call(&mut client, Request::write(at, &pattern(at, 4096)), write);
            call(&mut client, Request::read(at, 4096), read);
            call(&mut client, Request::discard(&[(at, 8)]), clear);
            call(&mut client, Request::write_zeroes(&[(at, 8)], false), clear);
        }
        call(&mut client, Request::flush(), Status::Ok);
        for _ in 0..2 {
            call(&mut client, Request::flush(), Status::IoErr);
        }
    }
}

/// Inside the cage, too, the queue finds what it needs to go on.
#[test]
fn an_engine_that_fails_costs_what_was_under_way_and_the_queue_goes_on() {
    for on in EVERYWHERE {
        let place = Place::new();
        let (_, daemon) = zoned(&place, on, &["engine:eio@after=30,times=1"]);
        let mut client = daemon.client(1);
        let mut expected = Vec::new();
        let mut failed = 0;
        for number in 0..60 {
            let data = pattern(number, 4096);
            let done = client.call(0, Request::zone_append(start_of(5), &data)).unwrap();
            match done.status == Status::Ok as u8 {
                true => expected.extend(data),
                false => failed += 1,
            }
        }
        assert!(failed <= 1, "{on:?}: {failed}");
        check(&mut client, 5, ZoneState::ImplicitOpen, expected.len() as u64 / 512);
        assert!(call(&mut client, Request::read(start_of(5), expected.len()), Status::Ok) == expected);
        call(&mut client, Request::flush(), Status::Ok);
        drop(client);
        let (status, log) = daemon.stop();
        assert!(status.success(), "{log}");
        assert!(log.contains("it goes on with"), "{log}");
    }
}
