//! `vzbd serve` is killed (SIGKILL) at random moments and started again, under random load of our driver, which connects again and
//! hands over the requests in flight. Nothing that was answered is missing, nothing is there twice, no request fails or hangs.
//!
//! `ZBD_KILLS=1000` for the long run (each test has so many kills; 4 otherwise), `KILLS_SEED` repeats a run's random choices; the
//! moments of the kills are the machine's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test fails this way, and says its seed"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../driver/mod.rs"]
mod driver;
mod load;
mod model;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place, vzbd_ok};
use driver::{Driver, PATIENCE, wait};
use load::Load;
use virtio_zbd_driver::{Options, VirtioBlk};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ConnectOptions, VhostUserTransport};

const QUEUES: u16 = 4;
const QUEUE_DEPTH: u16 = 32;

/// How often the whole disk is compared in a long run.
const KILLS_BETWEEN_SCANS: u64 = 50;

/// 16 zones of 1 MiB, the first two conventional.
const ZONED: &str =
    "--size 16M --zone-size 1M --zone-capacity 768K --conventional 2 --max-open 10 --max-active 0";

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value:?}")))
}

/// What the load and the one who kills know of each other.
#[derive(Default)]
struct Shared {
    /// How many kills there were; counted before each.
    killed: AtomicU64,
    /// How many requests were answered.
    answered: AtomicU64,
    /// A load that fails must not leave a thread that kills on.
    failed: AtomicBool,
}

/// What is killed, and how it is started again.
struct Victim {
    image: PathBuf,
    socket: PathBuf,
    options: Vec<String>,
}

impl Victim {
    fn start(&self) -> Daemon {
        let options: Vec<_> = self.options.iter().map(String::as_str).collect();
        Daemon::start_logging(&self.image, &self.socket, &options, "warn")
    }

    /// Kills it so many times, or until the load has failed.
    fn suffer(&self, mut daemon: Daemon, kills: u64, seed: u64, shared: &Shared) -> Daemon {
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..kills {
            // Some die before they are connected to, some over what they were handed, some later.
            if random.u8(0..4) > 0 {
                let answered = shared.answered.load(Ordering::Relaxed) + random.u64(0..200);
                let waited = Instant::now();
                while shared.answered.load(Ordering::Relaxed) < answered && waited.elapsed() < PATIENCE {
                    thread::sleep(Duration::from_micros(100));
                }
            }
            thread::sleep(Duration::from_micros(random.u64(0..3_000)));
            if shared.failed.load(Ordering::Relaxed) {
                break;
            }
            shared.killed.fetch_add(1, Ordering::Release);
            daemon.kill();
            if random.u8(0..4) == 0 {
                thread::sleep(Duration::from_micros(random.u64(0..20_000)));
            }
            daemon = self.start();
        }
        daemon
    }
}

fn attach(socket: &Path) -> Driver {
    let connect =
        ConnectOptions { timeout: PATIENCE, reconnect: Some(PATIENCE), ..ConnectOptions::default() };
    let transport = VhostUserTransport::connect(socket, &connect).unwrap();
    let options = Options { queues: QUEUES, queue_depth: QUEUE_DEPTH, ..Options::default() };
    VirtioBlk::with(transport, options, wait(PATIENCE), ArenaBuffer::zeroed).unwrap()
}

/// The load with kills over it, and the whole disk compared: now and then, at the end, and after an orderly restart.
fn run(test: &str, place: &Place, options: &str, write_back: bool) {
    let kills = variable("ZBD_KILLS").unwrap_or(4);
    let seed = variable("KILLS_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{test}: KILLS_SEED={seed} ZBD_KILLS={kills}");
    let options = format!("--queues {QUEUES} {options}");
    let options = options.split_whitespace().map(str::to_owned).collect();
    let victim = Victim { image: place.path("disk"), socket: place.path("sock"), options };
    let shared = Shared::default();
    let started = Instant::now();

    let daemon = victim.start();
    let mut disk = attach(&victim.socket);
    let zoned = disk.zoned().is_some();
    if !write_back {
        disk.set_write_back(false).unwrap();
    }
    let mut load = Load::new(disk, seed);
    let daemon = thread::scope(|scope| {
        let suffering = scope.spawn(|| victim.suffer(daemon, kills, !seed, &shared));
        let told = TellFailure(&shared.failed);
        let mut scan_at = KILLS_BETWEEN_SCANS;
        while !suffering.is_finished() {
            load.step(&shared);
            if shared.killed.load(Ordering::Acquire) >= scan_at {
                scan_at += KILLS_BETWEEN_SCANS;
                load.drain(&shared);
                load.compare_everything();
            }
        }
        // It has to go on after the last one, too.
        for _ in 0..500 {
            load.step(&shared);
        }
        load.drain(&shared);
        std::mem::forget(told);
        suffering.join().unwrap()
    });
    load.compare_everything();
    let seconds = started.elapsed().as_secs_f64();
    println!("{test}: {kills} kills in {seconds:.1} s: {}", load.counts);
    assert_eq!(shared.killed.load(Ordering::Acquire), kills);
    load.counts.assert_enough(kills);

    let load = load.detach();
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    let daemon = victim.start();
    let mut load = load.attach(attach(&victim.socket));
    load.compare_everything();
    drop(load);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    if zoned {
        println!("{}", vzbd_ok(&["check", victim.image.to_str().unwrap()]).trim_end());
    }
}

struct TellFailure<'a>(&'a AtomicBool);

impl Drop for TellFailure<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn zoned(place: &Place) {
    let path = place.path("disk");
    let mut args = vec!["create".into(), path.into_os_string()];
    args.extend(ZONED.split(' ').map(Into::into));
    vzbd_ok(&args);
}

#[test]
fn zones_with_io_uring() {
    let place = Place::new();
    zoned(&place);
    run("io_uring", &place, "--io io_uring", true);
}

#[test]
fn zones_with_pread_and_pwrite() {
    let place = Place::new();
    zoned(&place);
    run("sync", &place, "--io sync", true);
}

#[test]
fn zones_with_write_through() {
    let place = Place::new();
    zoned(&place);
    run("write-through", &place, "", false);
}

#[test]
fn a_disk_without_zones() {
    let place = Place::new();
    std::fs::File::create(place.path("disk")).unwrap().set_len(4 << 20).unwrap();
    run("plain", &place, "--zoned none", true);
}
