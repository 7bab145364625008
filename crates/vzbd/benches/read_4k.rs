//! 4 KiB random reads at depth 32 through the socket, as requests a second: with each server a ratio to `qemu-storage-daemon`
//! on the same file, with each client (libblkio's driver, and ours in `vzbd bench`) a ratio of ours to libblkio's.
//!
//! `cargo bench -p vzbd`. Servers and clients take turns, several rounds, so that a machine that is slow for a while is slow
//! for all; the ratios are of the same round. The file is in the host's page cache: this measures the way through the
//! daemon, not a disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/peer.rs"]
mod peer;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, Place};
use peer::Peer;
use virtio_zbd_spec::Features;

const DEPTH: usize = 32;
const BLOCK_LEN: usize = 4096;
const DISK_BYTES: u64 = 256 << 20;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);

fn main() {
    // `cargo test` runs benchmarks too, with this flag: once round, to see that they work.
    let (rounds, round) = match std::env::args().any(|arg| arg == "--bench") {
        true => (ROUNDS, ROUND),
        false => (1, Duration::from_millis(100)),
    };
    let place = Place::new();
    let servers = [
        Server::ours(&place, "image, io_uring", "--io=io_uring"),
        Server::ours(&place, "image, pread", "--io=sync"),
        Server::ram(&place),
        Server::raw(&place),
        Server::qemu(&place),
    ];
    let servers: Vec<Server> = servers.into_iter().flatten().collect();
    let mut rates = vec![Vec::new(); servers.len()];
    let mut our_rates = rates.clone();
    for _ in 0..rounds {
        for ((server, rates), our_rates) in servers.iter().zip(&mut rates).zip(&mut our_rates) {
            rates.push(server.measure(round));
            our_rates.push(server.measure_ours(round));
        }
    }
    println!(
        "4 KiB random reads, depth {DEPTH}, one queue, {rounds} rounds of {round:?}, {} MiB",
        DISK_BYTES >> 20
    );
    println!(
        "{:32} {:>12} {:>28} {:>12} {:>24}",
        "server", "libblkio", "to the last (min–max)", "our driver", "to libblkio (min–max)"
    );
    let ratio = |ours: &[f64], theirs: &[f64]| {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let (low, middle, high) = spread(&ratios);
        format!("{middle:.2} ({low:.2}–{high:.2})")
    };
    let peer = rates.last().cloned().unwrap_or_default();
    for ((server, rates), our_rates) in servers.iter().zip(&rates).zip(&our_rates) {
        println!(
            "{:32} {:12.0} {:>28} {:12.0} {:>24}",
            server.name,
            spread(rates).1,
            ratio(rates, &peer),
            spread(our_rates).1,
            ratio(our_rates, rates)
        );
    }
}

/// Least, median and largest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}

struct Server {
    name: &'static str,
    socket: PathBuf,
    _running: Running,
}

enum Running {
    Ours(#[allow(dead_code, reason = "killed when dropped")] Daemon),
    Qemu(Child),
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Qemu(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    fn ours(place: &Place, name: &'static str, io: &str) -> Option<Self> {
        let image = place.path(&format!("{io}.zbd"));
        let size = DISK_BYTES.to_string();
        common::vzbd_ok(&[
            "create",
            &image.to_string_lossy(),
            "--size",
            &size,
            "--zone-size",
            "16M",
            "--max-open",
            "0",
            "--max-active",
            "0",
        ]);
        let socket = place.path(&format!("{io}.sock"));
        let daemon = Daemon::start(&image, &socket, &[io]);
        Some(Self { name, socket, _running: Running::Ours(daemon) }.filled())
    }

    fn ram(place: &Place) -> Option<Self> {
        let socket = place.path("ram.sock");
        let size = DISK_BYTES.to_string();
        let options = ["--size", &size, "--zone-size", "16M", "--max-open", "0", "--max-active", "0"];
        let daemon = Daemon::start(Path::new("ram"), &socket, &options);
        Some(Self { name: "ram", socket, _running: Running::Ours(daemon) }.filled())
    }

    fn raw(place: &Place) -> Option<Self> {
        let socket = place.path("raw.sock");
        let file = raw_file(place, "raw.img");
        let daemon = Daemon::start(&file, &socket, &["--zoned", "none"]);
        Some(Self { name: "raw file, no zones", socket, _running: Running::Ours(daemon) }.filled())
    }

    /// The peer to measure against, where it is installed (Debian: qemu-system-common or qemu-utils).
    fn qemu(place: &Place) -> Option<Self> {
        let socket = place.path("qemu.sock");
        let file = raw_file(place, "qemu.img");
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,filename={},node-name=f,aio=io_uring", file.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues=1",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            println!("qemu-storage-daemon is not installed: no ratio to it");
            return None;
        };
        let running = Running::Qemu(child);
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(10), "qemu-storage-daemon does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { name: "qemu-storage-daemon, io_uring", socket, _running: running }.filled())
    }

    fn connect(&self) -> Peer {
        let features = Features::INDIRECT_DESC | Features::EVENT_IDX | Features::FLUSH | Features::ZONED;
        Peer::connect(&self.socket, DEPTH, 1 << 20, features.bits()).unwrap()
    }

    /// Writes the whole disk, so that every read reads data.
    fn filled(self) -> Self {
        let mut peer = self.connect();
        for chunk in 0..DISK_BYTES >> 20 {
            peer.write(0, chunk << 20, 1 << 20);
            assert_eq!(peer.finish(), 0, "{}: chunk {chunk}", self.name);
        }
        self
    }

    /// Requests a second over `round`, through our driver.
    fn measure_ours(&self, round: Duration) -> f64 {
        let (socket, seconds, depth) =
            (self.socket.to_str().unwrap(), round.as_secs_f64().to_string(), DEPTH.to_string());
        let args = ["bench", socket, "--mode", "randread", "--depth", &depth, "--seconds", &seconds];
        common::vzbd_json(&args)["requests_per_second"].as_f64().unwrap()
    }

    /// Requests a second over `round`, through libblkio's driver.
    fn measure(&self, round: Duration) -> f64 {
        let mut peer = self.connect();
        let mut random = fastrand::Rng::with_seed(1);
        let mut offset = || random.u64(0..DISK_BYTES / BLOCK_LEN as u64) * BLOCK_LEN as u64;
        for buffer in 0..DEPTH {
            peer.read(buffer, offset(), BLOCK_LEN);
        }
        peer.kick();
        let start = Instant::now();
        let mut count = 0u32;
        while start.elapsed() < round {
            for (buffer, errno) in peer.wait() {
                assert_eq!(errno, 0);
                count += 1;
                peer.read(buffer, offset(), BLOCK_LEN);
            }
            if peer.queue().avail_notif_needed() {
                peer.kick();
            }
        }
        f64::from(count) / start.elapsed().as_secs_f64()
    }
}

/// A sparse file, later filled through its server.
fn raw_file(place: &Place, name: &str) -> PathBuf {
    let path = place.path(name);
    std::fs::File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    path
}
