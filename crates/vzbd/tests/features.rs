//! V4 through the socket: who does not know zones must not get at a host-managed disk. The peer is rust-vmm's front-end.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Daemon, Place};
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use virtio_zbd_spec::{DeviceStatus, Features, Status};
use virtio_zbd_testkit::{Client, ClientOptions, Error, Handshake, Request};

const PATIENCE: Duration = Duration::from_secs(10);

fn without_zones() -> Features {
    ClientOptions::default().features - Features::ZONED
}

#[test]
fn v4_over_status_features_ok_stays_clear_and_the_next_driver_gets_in() {
    let place = Place::new();
    let daemon = Daemon::start(Path::new("ram"), &place.path("sock"), &["--size", "1G"]);
    let mut handshake = Handshake::connect(place.path("sock"), PATIENCE).unwrap();
    handshake.set_owner().unwrap();
    let offered = handshake.features().unwrap();
    assert!(offered.contains(Features::ZONED));
    let protocol =
        handshake.negotiate_protocol(Protocol::STATUS | Protocol::REPLY_ACK | Protocol::CONFIG).unwrap();
    assert!(protocol.contains(Protocol::STATUS));

    // A firmware's driver without zones.
    let speaking = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    handshake.set_status(speaking, true).unwrap();
    handshake.set_features(offered - Features::ZONED).unwrap();
    handshake.set_status(speaking | DeviceStatus::FEATURES_OK, true).unwrap();
    assert_eq!(handshake.status().unwrap(), speaking, "FEATURES_OK must stay clear");

    // It gives up; the kernel comes over the same connection.
    handshake.set_status(DeviceStatus::empty(), true).unwrap();
    handshake.set_status(speaking, true).unwrap();
    handshake.set_features(offered).unwrap();
    handshake.set_status(speaking | DeviceStatus::FEATURES_OK, true).unwrap();
    assert_eq!(handshake.status().unwrap(), speaking | DeviceStatus::FEATURES_OK);
    drop(daemon);
}

#[test]
fn v4_without_status_set_features_is_answered_with_an_error() {
    let place = Place::new();
    let daemon = Daemon::start(Path::new("ram"), &place.path("sock"), &["--size", "1G"]);
    let options = ClientOptions {
        features: without_zones(),
        protocol_features: Protocol::REPLY_ACK | Protocol::CONFIG,
        ..ClientOptions::default()
    };
    let refused = Client::connect(place.path("sock"), options).map(drop);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    // The daemon has taken no harm.
    daemon.client(1).call(0, Request::flush()).unwrap().expect(Status::Ok);
}

#[test]
fn v4_a_driver_that_does_not_look_gets_nothing_but_errors() {
    let place = Place::new();
    let daemon =
        Daemon::start(Path::new("ram"), &place.path("sock"), &["--size", "1G", "--conventional", "1"]);
    daemon.client(1).call(0, Request::write(0, &[7; 4096])).unwrap().expect(Status::Ok);

    // Neither STATUS nor REPLY_ACK: there is no way to tell it.
    let options = ClientOptions {
        features: without_zones(),
        protocol_features: Protocol::CONFIG,
        ..ClientOptions::default()
    };
    let mut client = Client::connect(place.path("sock"), options).unwrap();
    client.call(0, Request::write(0, &[8; 4096])).unwrap().expect(Status::IoErr);
    let read = client.call(0, Request::read(0, 4096)).unwrap().expect(Status::IoErr);
    assert_ne!(read.data, [7; 4096]);
    client.disconnect();

    let read = daemon.client(1).call(0, Request::read(0, 4096)).unwrap().expect(Status::Ok);
    assert_eq!(read.data, [7; 4096]);
}

#[test]
fn a_plain_disk_takes_a_driver_without_zones() {
    let place = Place::new();
    let _daemon = Daemon::start(Path::new("ram"), &place.path("sock"), &["--size", "1G", "--zoned", "none"]);
    let options = ClientOptions { features: without_zones(), ..ClientOptions::default() };
    let mut client = Client::connect(place.path("sock"), options).unwrap();
    assert_eq!(client.config().zoned.model, 0);
    client.call(0, Request::write(0, &[8; 4096])).unwrap().expect(Status::Ok);
    // V12
    client.call(0, Request::zone_report(0, 128)).unwrap().expect(Status::Unsupp);
    client.call(0, Request::zone_reset_all()).unwrap().expect(Status::Unsupp);
}
