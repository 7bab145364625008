//! Our driver on a daemon that is killed, stopped or ended: errors, never a hang, and the next driver goes on.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod common;
mod driver;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Daemon, Place, pattern};
use driver::{Driver, PATIENCE, assert_passed, attach, freeze, list, wait};
use rustix::process::Signal;
use virtio_zbd_checks::Peer;
use virtio_zbd_driver::{Command, Error, Options, Token, VirtioBlk, ZoneState};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ConnectOptions, VhostUserTransport};

const ZONE_SECTORS: u64 = 2048;
const BLOCK_LEN: usize = 4096;
const BLOCK_SECTORS: u64 = 8;

/// An image of 16 zones of 1 MiB, two of them conventional, and where it is served.
struct Disk {
    place: Place,
    image: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let place = Place::new();
        let image = place.small_image();
        Self { place, image }
    }

    fn serve(&self) -> Daemon {
        Daemon::start(&self.image, &self.socket(), &["--queues", "2"])
    }

    fn socket(&self) -> PathBuf {
        self.place.path("disk.sock")
    }

    fn attach(&self) -> Driver {
        attach(&self.socket(), Options { queues: 2, ..Options::default() }).unwrap()
    }
}

fn buffer(disk: &Driver, data: &[u8]) -> ArenaBuffer {
    let mut buffer = disk.buffer(data.len()).unwrap();
    buffer.copy_from_slice(data);
    buffer
}

/// Submits appends of a block each to the zone at `zone_start_sector`; they are in flight when this returns.
fn append(disk: &mut Driver, queue: u16, zone_start_sector: u64, count: u64) -> Vec<Token> {
    let tokens = (0..count).map(|number| {
        let buffer = buffer(disk, &pattern(number, BLOCK_LEN));
        disk.submit(queue, Command::Append { zone_start_sector, buffer }).unwrap()
    });
    let tokens = tokens.collect();
    disk.notify(queue).unwrap();
    tokens
}

/// After the loss: each request that was in flight comes out with an error, or not at all; then every call says so, at once.
#[track_caller]
fn assert_gone(disk: &mut Driver, tokens: &[Token], gone: Error) {
    let start = Instant::now();
    for queue in 0..2 {
        loop {
            match disk.complete(queue) {
                Ok(Some(completion)) => {
                    assert!(tokens.contains(&completion.token), "{completion:?}");
                    assert!(completion.result.is_err(), "{completion:?}");
                }
                Ok(None) => panic!("queue {queue}: nothing, as if the disk were there"),
                Err(error) => {
                    assert_eq!(error, gone, "queue {queue}");
                    break;
                }
            }
        }
        assert_eq!(disk.in_flight(queue), 0);
        assert_eq!(disk.wait(queue), Err(gone));
    }
    assert_eq!(disk.read(0, &mut [0; BLOCK_LEN]), Err(gone));
    assert_eq!(disk.write(0, &[0; BLOCK_LEN]), Err(gone));
    assert_eq!(disk.append(2 * ZONE_SECTORS, &[0; BLOCK_LEN]), Err(gone));
    assert_eq!(disk.reset_zone(2 * ZONE_SECTORS), Err(gone));
    assert_eq!(disk.flush(), Err(gone));
    assert_eq!(disk.zone(0), Err(gone));
    assert_eq!(disk.config_changed(), Err(gone));
    let buffer = buffer(disk, &[1; BLOCK_LEN]);
    let rejected = disk.submit(1, Command::Write { sector: 0, buffer }).unwrap_err();
    assert_eq!((rejected.error, rejected.buffer.map(|buffer| buffer[0])), (gone, Some(1)));
    assert!(start.elapsed() < PATIENCE, "that took {:?}", start.elapsed());
}

/// Stopped first, so that the requests are in flight for certain when it dies.
#[test]
fn killed_with_requests_in_flight() {
    let disk = Disk::new();
    let daemon = disk.serve();
    let mut driver = disk.attach();
    driver.write(2 * ZONE_SECTORS, &pattern(7, BLOCK_LEN)).unwrap();
    freeze(daemon.pid());
    let mut tokens = append(&mut driver, 0, 2 * ZONE_SECTORS, 20);
    tokens.extend(append(&mut driver, 1, 3 * ZONE_SECTORS, 20));
    assert_eq!((driver.in_flight(0), driver.in_flight(1)), (20, 20));
    daemon.kill();

    let start = Instant::now();
    assert_eq!(driver.wait(1), Err(Error::Removed));
    assert!(start.elapsed() < PATIENCE);
    assert_gone(&mut driver, &tokens, Error::Removed);
    drop(driver);

    // What was answered is there; of the rest nothing was taken.
    let _daemon = disk.serve();
    let mut driver = disk.attach();
    let zone = driver.zone(2 * ZONE_SECTORS).unwrap();
    assert_eq!(zone.state, ZoneState::Closed);
    assert_eq!(zone.write_pointer_sector, Some(2 * ZONE_SECTORS + BLOCK_SECTORS));
    let mut found = vec![0; BLOCK_LEN];
    driver.read(2 * ZONE_SECTORS, &mut found).unwrap();
    assert_eq!(found, pattern(7, BLOCK_LEN));
    assert_eq!(driver.zone(3 * ZONE_SECTORS).unwrap().state, ZoneState::Empty);
}

/// A synchronous call sleeps while the daemon dies.
#[test]
fn killed_under_a_call() {
    let disk = Disk::new();
    let daemon = disk.serve();
    let mut driver = disk.attach();
    freeze(daemon.pid());
    let (asleep, is_asleep) = mpsc::channel();
    let caller = std::thread::spawn(move || {
        asleep.send(()).unwrap();
        let result = driver.write(2 * ZONE_SECTORS, &pattern(1, BLOCK_LEN));
        (result, driver)
    });
    is_asleep.recv().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    daemon.kill();
    let (result, mut driver) = caller.join().unwrap();
    assert_eq!(result, Err(Error::Removed));
    assert_gone(&mut driver, &[], Error::Removed);
}

/// Killed somewhere in a stream of appends, several times: what was answered is there, in the order of the answers.
#[test]
fn killed_under_load() {
    let disk = Disk::new();
    for round in 0..4 {
        let daemon = disk.serve();
        let mut driver = disk.attach();
        driver.reset_all_zones().unwrap();
        let (progress, has_begun) = mpsc::channel();
        let writer = std::thread::spawn(move || {
            // Zones of 192 blocks, one after the other: what was answered, and the end.
            let mut answered = Vec::new();
            for number in 0.. {
                let zone_start_sector = (2 + number / 192 % 14) * ZONE_SECTORS;
                if number > 0 && number.is_multiple_of(192 * 14) {
                    driver.reset_all_zones().unwrap();
                    answered.clear();
                }
                match driver.append(zone_start_sector, &pattern(number, BLOCK_LEN)) {
                    Ok(sector) => answered.push((sector, number)),
                    Err(error) => return (answered, error),
                }
                if number == 100 * round {
                    progress.send(()).unwrap();
                }
            }
            unreachable!()
        });
        has_begun.recv().unwrap();
        daemon.kill();
        let (answered, error) = writer.join().unwrap();
        assert_eq!(error, Error::Removed, "after {} appends", answered.len());

        let daemon = disk.serve();
        let mut driver = disk.attach();
        for (sector, number) in &answered {
            let mut found = vec![0; BLOCK_LEN];
            driver.read(*sector, &mut found).unwrap();
            assert!(found == pattern(*number, BLOCK_LEN), "append {number} at sector {sector}");
        }
        drop(driver);
        assert!(daemon.stop().0.success());
    }
}

/// L8: a report is under way. The daemon dies between two of its requests.
#[test]
fn killed_under_a_report() {
    let place = Place::new();
    let socket = place.path("disk.sock");
    // 8192 zones: more than one request reports.
    let options = ["--size", "32M", "--zone-size", "4K", "--block-size", "512", "--max-append", "4K"];
    let daemon = Daemon::start(Path::new("ram"), &socket, &options);
    let mut driver = attach(&socket, Options::default()).unwrap();
    let mut zones = driver.zones(0).unwrap();
    assert_eq!(zones.next().unwrap().unwrap().start_sector, 0);
    daemon.kill();
    let rest: Vec<_> = zones.collect();
    assert_eq!(rest.last(), Some(&Err(Error::Removed)));
    assert!(rest.len() < 8191, "{}", rest.len());
    assert!(rest.iter().rev().skip(1).all(Result::is_ok));
    assert_eq!(driver.zones(0).err(), Some(Error::Removed));
}

/// Ended in order: to the driver it is gone all the same.
#[test]
fn ended_in_order() {
    let disk = Disk::new();
    let daemon = disk.serve();
    let mut driver = disk.attach();
    driver.append(5 * ZONE_SECTORS, &pattern(5, BLOCK_LEN)).unwrap();
    assert!(daemon.stop().0.success());
    assert_eq!(driver.read(0, &mut [0; BLOCK_LEN]), Err(Error::Removed));
    assert_gone(&mut driver, &[], Error::Removed);
}

/// The daemon is there, and never answers: the driver's patience ends.
#[test]
fn stopped() {
    const SHORT: Duration = Duration::from_millis(200);
    let disk = Disk::new();
    let daemon = disk.serve();
    let connect = ConnectOptions { timeout: SHORT, ..ConnectOptions::default() };
    let transport = VhostUserTransport::connect(&disk.socket(), &connect).unwrap();
    let options = Options { queues: 2, ..Options::default() };
    let mut driver: Driver = VirtioBlk::with(transport, options, wait(SHORT), ArenaBuffer::zeroed).unwrap();
    driver.write(2 * ZONE_SECTORS, &pattern(2, BLOCK_LEN)).unwrap();
    freeze(daemon.pid());
    let tokens = append(&mut driver, 1, 3 * ZONE_SECTORS, 3);
    let start = Instant::now();
    assert_eq!(driver.write(2 * ZONE_SECTORS + BLOCK_SECTORS, &[3; BLOCK_LEN]), Err(Error::TimedOut));
    assert!(start.elapsed() < PATIENCE);
    assert_gone(&mut driver, &tokens, Error::Broken);
    drop(driver);
    // It wakes up, finds that connection gone, and serves the next.
    daemon.signal(Signal::CONT);
    let mut driver = disk.attach();
    let mut found = vec![0; BLOCK_LEN];
    driver.read(2 * ZONE_SECTORS, &mut found).unwrap();
    assert_eq!(found, pattern(2, BLOCK_LEN));
}

/// One daemon after the other, one driver after the other: nothing of a loss is left behind in this process.
#[test]
fn the_list_after_a_loss() {
    let disk = Disk::new();
    for _ in 0..3 {
        let daemon = disk.serve();
        let mut driver = disk.attach();
        freeze(daemon.pid());
        append(&mut driver, 0, 2 * ZONE_SECTORS, 50);
        daemon.kill();
        assert_eq!(driver.wait(0), Err(Error::Removed));
    }
    let _daemon = disk.serve();
    let lines = list(&disk.socket(), Options { queues: 2, ..Options::default() }, &Peer::EXACT);
    assert_passed(
        &lines,
        &[
            "plain: a read-only disk",
            "plain: discard",
            "plain: requests that are too long",
            "plain: secure erase",
            "plain: write zeroes",
            "plain: write zeroes and unmap",
            "plain: zone commands on a disk without zones",
            "zoned: secure erase resets whole zones (V32)",
            "zoned: writes of less than the granularity (V26)",
        ],
    );
}
