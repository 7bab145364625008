//! Our driver on QEMU's storage daemon: a vhost-user-blk back-end that others wrote, without zones.
//!
//! `qemu-storage-daemon` is needed (Debian: package qemu-utils). Without it these tests fail and say so; to leave them out,
//! name the others: `cargo test -p vzbd --test driver_list`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod driver;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use driver::{PATIENCE, assert_passed, attach, freeze, list};
use virtio_zbd_checks::Peer;
use virtio_zbd_driver::{self as virtio, Error, Options};

const PROGRAM: &str = "qemu-storage-daemon";
const DISK_BYTES: u64 = 24 << 20;

/// What no such disk can be asked.
const NOT_HERE: [&str; 2] = ["plain: secure erase", "zoned: everything"];

/// The daemon with a raw file. Dropping it kills it.
struct Daemon {
    child: Child,
    place: tempfile::TempDir,
}

impl Daemon {
    /// Starts it with these options of the export, and waits until it listens.
    fn start(options: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        std::fs::File::create(place.path().join("disk.raw")).unwrap().set_len(DISK_BYTES).unwrap();
        let spawned = Command::new(PROGRAM)
            .current_dir(&place)
            .args(["--blockdev", "driver=file,filename=disk.raw,node-name=disk,discard=unmap"])
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=disk.sock,{options}"
            ))
            .stdin(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                panic!("{PROGRAM} can't be run ({error}): install it (Debian: apt-get install qemu-utils)")
            }
        };
        let mut daemon = Self { child, place };
        let start = Instant::now();
        // The file is there a little before it listens.
        while std::os::unix::net::UnixStream::connect(daemon.socket()).is_err() {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "{PROGRAM} with {options} ended: {ended:?}");
            assert!(start.elapsed() < PATIENCE, "{PROGRAM} does not come up");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join("disk.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn options(queues: u16) -> Options {
    Options { queues, ..Options::default() }
}

#[test]
fn the_list_on_one_queue() {
    let daemon = Daemon::start("writable=on");
    let lines = list(&daemon.socket(), options(1), &Peer::PLAIN);
    assert_passed(
        &lines,
        &[&NOT_HERE[..], &["plain: a read-only disk", "plain: requests that are too long"]].concat(),
    );
}

#[test]
fn the_list_on_four_queues() {
    let daemon = Daemon::start("writable=on,num-queues=4");
    let lines = list(&daemon.socket(), options(4), &Peer::PLAIN);
    assert_passed(
        &lines,
        &[&NOT_HERE[..], &["plain: a read-only disk", "plain: requests that are too long"]].concat(),
    );
    // Of the queues that there are only as many are used as were asked for.
    let disk = attach(&daemon.socket(), options(3)).unwrap();
    assert_eq!(disk.queue_count(), 3);
    drop(disk);
    assert_eq!(attach(&daemon.socket(), options(64)).unwrap().queue_count(), 4);
}

#[test]
fn blocks_of_4_kib() {
    let daemon = Daemon::start("writable=on,num-queues=2,logical-block-size=4096");
    let lines = list(&daemon.socket(), options(2), &Peer::PLAIN);
    assert_passed(
        &lines,
        &[&NOT_HERE[..], &["plain: a read-only disk", "plain: requests that are too long"]].concat(),
    );
}

#[test]
fn a_read_only_export() {
    let daemon = Daemon::start("writable=off,num-queues=2");
    let lines = list(&daemon.socket(), options(2), &Peer::PLAIN);
    assert_eq!(driver::failed(&lines), [""; 0]);
}

/// The device's id, as QEMU's export gives it.
#[test]
fn its_id() {
    let daemon = Daemon::start("writable=on");
    let mut disk = attach(&daemon.socket(), options(1)).unwrap();
    println!("{:?}, {:?}, {:?}", disk.id().unwrap(), disk.features(), disk.limits());
    assert_eq!(disk.capacity_sectors(), DISK_BYTES / 512);
    assert_eq!(disk.id().unwrap().to_string(), "vhost_user_blk");
}

/// The conformance suite. What does not pass stands in docs/conformance.md.
#[test]
fn the_conformance_suite() {
    let daemon = Daemon::start("writable=on,num-queues=2");
    let output = Command::new(env!("CARGO_BIN_EXE_vzbd"))
        .arg("conform")
        .arg(daemon.socket())
        // What it never answers is waited for.
        .args(["--yes", "--json", "--timeout", "1"])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let cases = json["cases"].as_array().unwrap();
    let with = |outcome: &'static str| cases.iter().filter(move |case| case["outcome"] == outcome);
    let failed: Vec<_> = with("failed").map(|case| case["id"].as_str().unwrap()).collect();
    assert_eq!(failed, ["S17-b", "G7-a", "G7-b"], "{json:#}");
    assert_eq!(output.status.code(), Some(1));
    assert!(with("passed").count() >= 30, "{json:#}");
}

/// Killed with requests in flight: an error, and an end.
#[test]
fn killed_with_requests_in_flight() {
    let mut daemon = Daemon::start("writable=on");
    let mut disk = attach(&daemon.socket(), options(1)).unwrap();
    disk.write(0, &[1; 4096]).unwrap();
    freeze(daemon.child.id());
    for _ in 0..8 {
        let buffer = disk.buffer(4096).unwrap();
        disk.submit(0, virtio::Command::Read { sector: 0, buffer }).unwrap();
    }
    disk.notify(0).unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let start = Instant::now();
    assert_eq!(disk.wait(0), Err(Error::Removed));
    assert_eq!(disk.read(0, &mut [0; 4096]), Err(Error::Removed));
    assert_eq!(disk.flush(), Err(Error::Removed));
    assert!(start.elapsed() < PATIENCE);
}
