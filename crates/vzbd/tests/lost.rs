//! A socket with nobody behind it, with somebody who is no disk, who does not answer, or who goes away: always an end in
//! time, exit status 1, and a message that says why.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place, vzbd_fails};
use rustix::process::Signal;

/// Far more than the `--timeout 1` that the tests give: what is bounded ends long before.
const BOUND: Duration = Duration::from_secs(15);

#[test]
fn nothing_there() {
    let place = Place::new();
    let path = place.path("none");
    let said = vzbd_fails(2, &["report", path.to_str().unwrap()]);
    assert!(said.contains(path.to_str().unwrap()) && said.contains("no such socket or image"), "{said}");
    let said = vzbd_fails(2, &["report", "ram"]);
    assert!(said.contains("`vzbd serve`") && said.contains("socket"), "{said}");
    // A socket of which only the file is left.
    drop(UnixListener::bind(&path).unwrap());
    for command in ["report", "info", "bench"] {
        let said = vzbd_fails(1, &[command, path.to_str().unwrap()]);
        assert!(said.contains("nobody listens") && said.contains("vzbd serve"), "{said}");
    }
    let said = vzbd_fails(1, &["report", "/tmp"]);
    assert!(said.contains("directory"), "{said}");
    let said = vzbd_fails(2, &["report", path.to_str().unwrap(), "--zoned", "none"]);
    assert!(said.contains("--zoned"), "{said}");
    for bad in ["0", "-1", "x"] {
        vzbd_fails(2, &["report", path.to_str().unwrap(), "--timeout", bad]);
    }
}

/// A disk of which a benchmark has nothing to remark.
const PLAIN: &[&str] = &["--size", "64M", "--zoned", "none"];

/// Listens on a socket; `talk` has the first connection.
fn listener(path: &Path, talk: impl FnOnce(UnixStream) + Send + 'static) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || talk(listener.accept().unwrap().0))
}

#[test]
fn somebody_who_is_no_vhost_user_back_end() {
    let place = Place::new();
    let path = place.path("web");
    let name = path.to_str().unwrap();
    let server = listener(&path, |mut stream| {
        let _ = stream.read(&mut [0; 12]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let said = vzbd_fails(1, &["report", name]);
    assert!(said.contains(name) && said.contains("GET_FEATURES") && said.contains("vhost-user"), "{said}");
    server.join().unwrap();

    std::fs::remove_file(&path).unwrap();
    let server = listener(&path, drop);
    let said = vzbd_fails(1, &["report", name]);
    assert!(said.contains("closed the connection instead of answering GET_FEATURES"), "{said}");
    server.join().unwrap();
}

#[test]
fn somebody_who_never_answers() {
    let place = Place::new();
    let path = place.path("silent");
    let server = listener(&path, |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let start = Instant::now();
    let said = vzbd_fails(1, &["report", path.to_str().unwrap(), "--timeout", "1"]);
    assert!(said.contains("did not answer GET_FEATURES within 1s"), "{said}");
    assert!(said.contains("somebody else may be connected") && said.contains("--timeout"), "{said}");
    assert!(start.elapsed() < BOUND);
    server.join().unwrap();
}

#[test]
fn a_disk_that_somebody_else_uses() {
    let place = Place::new();
    let daemon = Daemon::start(Path::new("ram"), &place.path("sock"), &["--size", "64M"]);
    let client = daemon.client(1);
    let said = vzbd_fails(1, &["info", daemon.socket(), "--timeout", "0.5"]);
    assert!(said.contains("somebody else may be connected"), "{said}");
    drop(client);
    common::vzbd_ok(&["info", daemon.socket()]);
}

/// `vzbd bench` for longer than any test runs; returns once it is under way.
fn long_bench(daemon: &Daemon, timeout: &str) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_vzbd"))
        .args(["bench", daemon.socket(), "--seconds", "600", "--timeout", timeout])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    daemon.wait_until_busy();
    child
}

/// Its end, which comes soon.
fn end(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > BOUND {
            child.kill().unwrap();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn a_disk_that_goes_away_under_load() {
    let place = Place::new();
    let daemon = Daemon::start(Path::new("ram"), &place.path("sock"), PLAIN);
    let bench = long_bench(&daemon, "10");
    daemon.kill();
    let output = end(bench);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("closed the connection") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_disk_that_stops_answering_under_load() {
    let place = Place::new();
    let daemon = Daemon::start(Path::new("ram"), &place.path("sock"), PLAIN);
    let bench = long_bench(&daemon, "1");
    daemon.signal(Signal::STOP);
    let output = end(bench);
    daemon.signal(Signal::CONT);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("did not answer it in 1 second") && said.contains("--timeout"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
