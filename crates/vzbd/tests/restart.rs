//! One disk, many connections, restarts and a kill: what stays and what does not (D1–D5, G6).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use common::{Daemon, Place, pattern, vzbd_fails, vzbd_ok};
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use virtio_zbd_spec::{BlkConfig, Status, ZoneDescriptor, ZoneState};
use virtio_zbd_testkit::{Client, Handshake, Request};

const ZONE_SECTORS: u64 = 2048;

fn zone(client: &mut Client, zone: u64) -> (u8, u64) {
    let zones: Vec<ZoneDescriptor> = client.zone_report_all().unwrap();
    let zone = zones[zone as usize];
    (zone.z_state, zone.z_wp.get() - zone.z_start.get())
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Puts zones 2 to 7 into the conditions that there are.
fn fill(client: &mut Client) {
    for (zone, blocks) in [(2, 1), (3, 2), (4, 3), (6, 4)] {
        let data = pattern(zone, blocks * 4096);
        client.call(0, Request::write(zone * ZONE_SECTORS, &data)).unwrap().expect(Status::Ok);
    }
    client.call(0, Request::zone_open(3 * ZONE_SECTORS)).unwrap().expect(Status::Ok);
    client.call(0, Request::zone_close(4 * ZONE_SECTORS)).unwrap().expect(Status::Ok);
    client.call(0, Request::zone_open(5 * ZONE_SECTORS)).unwrap().expect(Status::Ok);
    client.call(0, Request::zone_finish(6 * ZONE_SECTORS)).unwrap().expect(Status::Ok);
    client.call(0, Request::write(0, &pattern(100, 4096))).unwrap().expect(Status::Ok);
    let found: Vec<_> = (1..8).map(|z| zone(client, z)).collect();
    use ZoneState as S;
    let expected = [
        (S::NotWp, ZONE_SECTORS),
        (S::ImplicitOpen, 8),
        (S::ExplicitOpen, 16),
        (S::Closed, 24),
        (S::ExplicitOpen, 0),
        (S::Full, ZONE_SECTORS),
        (S::Empty, 0),
    ];
    assert_eq!(found, expected.map(|(state, wp)| (state as u8, wp)));
}

/// What a restart makes of [`fill`]: open zones closed, the one with nothing in it empty.
#[track_caller]
fn check_after_restart(client: &mut Client) {
    use ZoneState as S;
    let found: Vec<_> = (1..8).map(|z| zone(client, z)).collect();
    let expected = [
        (S::NotWp, ZONE_SECTORS),
        (S::Closed, 8),
        (S::Closed, 16),
        (S::Closed, 24),
        (S::Empty, 0),
        (S::Full, ZONE_SECTORS),
        (S::Empty, 0),
    ];
    assert_eq!(found, expected.map(|(state, wp)| (state as u8, wp)));
    for (zone, blocks) in [(2, 1), (3, 2), (4, 3), (6, 4)] {
        let read = client.call(0, Request::read(zone * ZONE_SECTORS, ZONE_SECTORS as usize * 512)).unwrap();
        let mut expected = pattern(zone, blocks * 4096);
        expected.resize(ZONE_SECTORS as usize * 512, 0);
        assert!(read.expect(Status::Ok).data == expected, "zone {zone}");
    }
    let read = client.call(0, Request::read(0, 4096)).unwrap().expect(Status::Ok);
    assert_eq!(read.data, pattern(100, 4096));
}

#[test]
fn d4_a_restart_closes_open_zones_and_changes_nothing_else() {
    let place = Place::new();
    let image = place.small_image();
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    fill(&mut daemon.client(1));
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");

    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    check_after_restart(&mut daemon.client(1));
}

#[test]
fn d5_a_kill_loses_nothing_that_was_answered() {
    let place = Place::new();
    let image = place.small_image();
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    // No flush at all.
    let mut client = daemon.client(1);
    fill(&mut client);
    daemon.kill();
    drop(client);

    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    check_after_restart(&mut daemon.client(1));
}

#[test]
fn one_front_end_after_the_other_finds_what_the_last_one_left() {
    let place = Place::new();
    let daemon = Daemon::start(
        Path::new("ram"),
        &place.path("sock"),
        &["--size", "16M", "--zone-size", "1M", "--queues", "4"],
    );
    for round in 0..8u64 {
        let mut client = daemon.client(1 + round as usize % 4);
        let wp = zone(&mut client, 1);
        assert_eq!(
            wp,
            if round == 0 { (ZoneState::Empty as u8, 0) } else { (ZoneState::ImplicitOpen as u8, round * 8) }
        );
        client.call(0, Request::zone_append(ZONE_SECTORS, &pattern(round, 4096))).unwrap().expect(Status::Ok);
        let read = client.call(0, Request::read(ZONE_SECTORS, 4096)).unwrap().expect(Status::Ok);
        assert_eq!(read.data, pattern(0, 4096));
        if round % 2 == 0 {
            client.disconnect();
        } else {
            // Orderly: queues stopped first.
            client.stop().unwrap();
        }
    }
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn a_reset_gives_the_zone_s_space_back() {
    let place = Place::new();
    let image = place.small_image();
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    let mut client = daemon.client(1);
    let zone_bytes = 768 << 10;
    for zone in 4..8u64 {
        let data = pattern(zone, zone_bytes);
        client.call(0, Request::write(zone * ZONE_SECTORS, &data)).unwrap().expect(Status::Ok);
    }
    client.call(0, Request::flush()).unwrap().expect(Status::Ok);
    let full = allocated_bytes(&image);
    assert!(full >= 4 * zone_bytes as u64, "{full}");
    client.call(0, Request::zone_reset(5 * ZONE_SECTORS)).unwrap().expect(Status::Ok);
    let less = allocated_bytes(&image);
    assert!(less + zone_bytes as u64 <= full, "{less} of {full}");
    client.call(0, Request::zone_reset_all()).unwrap().expect(Status::Ok);
    let least = allocated_bytes(&image);
    assert!(least + 4 * zone_bytes as u64 <= full, "{least} of {full}");
    let read = client.call(0, Request::read(5 * ZONE_SECTORS, zone_bytes)).unwrap().expect(Status::Ok);
    assert!(read.data.iter().all(|&byte| byte == 0));
}

#[test]
fn two_programs_never_have_one_image() {
    let place = Place::new();
    let image = place.small_image();
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    let path = image.to_str().unwrap();
    let other = place.path("other");
    for args in [
        &["serve", path, "--socket", other.to_str().unwrap()][..],
        &["serve", path, "--read-only", "--socket", other.to_str().unwrap()],
        &["report", path],
        &["info", path],
        &["create", path, "--size", "16M", "--force"],
    ] {
        let said = vzbd_fails(1, args);
        assert!(said.contains("in use"), "{args:?}: {said}");
    }
    drop(daemon);
    vzbd_ok(&["report", path]);
}

#[test]
fn read_only_writes_nothing_at_all() {
    let place = Place::new();
    let image = place.small_image();
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    fill(&mut daemon.client(1));
    daemon.kill();
    let before = std::fs::read(&image).unwrap();

    let daemon = Daemon::start(&image, &place.path("sock"), &["--read-only"]);
    let mut client = daemon.client(1);
    check_after_restart(&mut client);
    for request in [
        Request::write(0, &[1; 4096]),
        Request::zone_append(7 * ZONE_SECTORS, &[1; 4096]),
        Request::zone_reset(2 * ZONE_SECTORS),
        Request::zone_finish(2 * ZONE_SECTORS),
        Request::zone_open(2 * ZONE_SECTORS),
        Request::zone_close(2 * ZONE_SECTORS),
        Request::zone_reset_all(),
    ] {
        client.call(0, request).unwrap().expect(Status::IoErr);
    }
    client.call(0, Request::flush()).unwrap().expect(Status::Ok);
    drop(client);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert!(std::fs::read(&image).unwrap() == before, "the file has changed");
}

/// QEMU shows its buffer first and then says its driver's features; others the other way round. Neither says again what the
/// driver has written to the configuration space.
#[test]
fn d1_a_driver_that_has_turned_the_cache_off_has_it_off_after_a_kill() {
    let place = Place::new();
    let (image, socket) = (place.small_image(), place.path("sock"));
    let writeback = u32::try_from(std::mem::offset_of!(BlkConfig, writeback)).unwrap();
    let begin = |features_last: bool, buffer: Option<&_>| {
        let daemon = Daemon::start(&image, &socket, &[]);
        let mut handshake = Handshake::connect(&socket, Duration::from_secs(10)).unwrap();
        handshake.set_owner().unwrap();
        let offered = handshake.features().unwrap();
        let wanted = Protocol::CONFIG | Protocol::REPLY_ACK | Protocol::INFLIGHT_SHMFD;
        handshake.negotiate_protocol(wanted).unwrap();
        let show = |handshake: &mut Handshake, now: bool| {
            if let Some(buffer) = buffer.filter(|_| now) {
                handshake.set_inflight(buffer).unwrap();
            }
        };
        show(&mut handshake, features_last);
        handshake.set_features(offered).unwrap();
        show(&mut handshake, !features_last);
        (daemon, handshake)
    };
    let mode = |handshake: &mut Handshake| handshake.config_bytes(writeback, 1).unwrap()[0];

    let (daemon, mut handshake) = begin(true, None);
    let buffer = handshake.inflight(1, 128).unwrap();
    handshake.set_inflight(&buffer).unwrap();
    assert_eq!(mode(&mut handshake), 1);
    daemon.kill();
    for features_last in [true, false] {
        let (daemon, mut handshake) = begin(features_last, Some(&buffer));
        assert_eq!(mode(&mut handshake), 1, "as it was");
        handshake.set_config(writeback, &[0]).unwrap();
        daemon.kill();
        let (daemon, mut handshake) = begin(features_last, Some(&buffer));
        assert_eq!(mode(&mut handshake), 0, "features last: {features_last}");
        handshake.set_config(writeback, &[1]).unwrap();
        daemon.kill();
    }
}
