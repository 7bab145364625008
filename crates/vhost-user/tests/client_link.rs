//! The way of the conformance suite over vhost-user: back-ends say no to features in four ways, and each of them can be started again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use virtio_zbd_conform::driver::{DriverLink, Reconnect};
use virtio_zbd_conform::{Link, LinkError, Started};
use virtio_zbd_driver::Waited;
use virtio_zbd_vhost_user::client::{ArenaHal, ConnectOptions, VhostUserTransport};

use self::common::PATIENCE;
use self::common::backend::{Answer, Received, Script, Scripted, reply};
use self::common::peer::{
    ALL_OFFERED, NEED_REPLY, PROTOCOL_FEATURES, REPLY_ACK, SET_FEATURES, SET_OWNER, SET_STATUS, STATUS,
};
use self::common::toy::{VERSION_1, ZONED};

type Disk = DriverLink<ArenaHal, VhostUserTransport>;

fn connect(backend: &Scripted) -> VhostUserTransport {
    let options = ConnectOptions { timeout: PATIENCE, ..ConnectOptions::default() };
    VhostUserTransport::connect(&backend.path(), &options).unwrap()
}

fn link(backend: &Scripted) -> Disk {
    let mut end = Instant::now();
    let wait = move |transport: &mut VhostUserTransport, queue: u16, turn: u64| {
        if turn == 0 {
            end = Instant::now() + PATIENCE;
        }
        match transport.wait_used(queue, end.saturating_duration_since(Instant::now())) {
            Ok(true) => Waited::Again,
            Ok(false) => Waited::GiveUp,
            Err(_) => Waited::Gone,
        }
    };
    let transport = connect(backend);
    let shows_status = transport.shows_status();
    DriverLink::new(transport, 128, wait).unwrap().showing_features_ok(shows_status)
}

fn script(protocol: u64) -> Script {
    Script { features: VERSION_1 | ZONED | PROTOCOL_FEATURES, protocol, ..Script::default() }
}

/// The features in a SET_FEATURES without ZONED: what a host-managed disk must refuse (V4).
fn lacks_zoned(received: &Received) -> bool {
    let features = || u64::from_ne_bytes(received.payload[..8].try_into().unwrap());
    received.request == SET_FEATURES && features() & ZONED == 0
}

/// Refused, accepted, and both again, on one connection.
fn refused_and_accepted(backend: &Scripted) {
    let mut link = link(backend);
    assert_eq!(link.offered(), Ok(VERSION_1 | ZONED));
    for _ in 0..2 {
        assert_eq!(link.start(VERSION_1), Ok(Started::Refused));
        assert_eq!(link.start(VERSION_1 | ZONED), Ok(Started::Accepted));
        assert_eq!(link.queue_size(), 128);
    }
    drop(link);
    assert_eq!(backend.requests().iter().filter(|request| **request == SET_OWNER).count(), 1);
}

#[test]
fn refused_by_the_status() {
    // ACKNOWLEDGE and DRIVER are all that stands of the status.
    let refused = Arc::new(Mutex::new(false));
    let backend = Scripted::start(script(ALL_OFFERED), move |received| {
        let mut refused = refused.lock().unwrap();
        match received.request {
            SET_FEATURES => *refused = lacks_zoned(received),
            common::peer::GET_STATUS if *refused => {
                return Answer::Raw(reply(received.request, &3_u64.to_ne_bytes()), 0);
            }
            // A reset: what was refused before is forgotten.
            SET_STATUS if received.payload[..8] == [0; 8] => *refused = false,
            _ => {}
        }
        Answer::Good
    });
    assert!(link(&Scripted::good(script(ALL_OFFERED))).shows_features_ok());
    refused_and_accepted(&backend);
}

#[test]
fn refused_by_an_acknowledgement() {
    let backend = Scripted::start(script(ALL_OFFERED & !STATUS), |received| match lacks_zoned(received) {
        true => {
            assert_ne!(received.flags & NEED_REPLY, 0);
            Answer::Raw(reply(SET_FEATURES, &1_u64.to_ne_bytes()), 0)
        }
        false => Answer::Good,
    });
    assert!(!link(&Scripted::good(script(ALL_OFFERED & !STATUS))).shows_features_ok());
    refused_and_accepted(&backend);
}

#[test]
fn not_refused_is_accepted() {
    for protocol in [ALL_OFFERED & !STATUS, ALL_OFFERED & !STATUS & !REPLY_ACK] {
        let backend = Scripted::good(script(protocol));
        let mut link = link(&backend);
        assert_eq!(link.start(VERSION_1), Ok(Started::Accepted));
        assert_eq!(link.start(VERSION_1 | ZONED), Ok(Started::Accepted));
    }
}

/// The next back-end at the same path.
struct Next {
    backend: Arc<Mutex<Option<Scripted>>>,
    tries: u32,
}

impl Reconnect<VhostUserTransport> for Next {
    fn reconnect(&mut self) -> Result<VhostUserTransport, String> {
        if self.tries == 0 {
            return Err("nobody is there".into());
        }
        self.tries -= 1;
        let mut backend = self.backend.lock().unwrap();
        let next = backend.take().unwrap().replace(script(ALL_OFFERED), hang_up);
        let transport = connect(&next);
        *backend = Some(next);
        Ok(transport)
    }
}

fn hang_up(received: &Received) -> Answer {
    if lacks_zoned(received) { Answer::Last(Vec::new()) } else { Answer::Good }
}

#[test]
fn refused_by_closing_the_connection() {
    let backend = Scripted::start(script(ALL_OFFERED), hang_up);
    let disk = link(&backend);
    let backend = Arc::new(Mutex::new(Some(backend)));
    let mut disk = disk.reconnecting(Next { backend: Arc::clone(&backend), tries: 2 });
    for _ in 0..2 {
        assert_eq!(disk.start(VERSION_1), Ok(Started::Refused));
        assert_eq!(disk.start(VERSION_1 | ZONED), Ok(Started::Accepted));
    }
    assert_eq!(disk.start(VERSION_1), Ok(Started::Refused));
    assert_eq!(disk.start(VERSION_1 | ZONED), Err(LinkError::Lost("nobody is there".into())));
    assert!(matches!(disk.offered(), Err(LinkError::Lost(_))));
}

#[test]
fn without_a_way_back_it_is_lost() {
    let backend = Scripted::start(script(ALL_OFFERED), hang_up);
    let mut disk = link(&backend);
    assert_eq!(disk.start(VERSION_1), Ok(Started::Refused));
    for _ in 0..2 {
        assert!(matches!(disk.start(VERSION_1 | ZONED), Err(LinkError::Lost(_))));
    }
}
