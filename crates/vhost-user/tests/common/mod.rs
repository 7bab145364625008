//! A toy device, a server around it, and a front-end that says exactly what a test wants.

#![allow(dead_code, unreachable_pub, reason = "each test is a crate of its own and uses its part")]

pub mod backend;
pub mod guest;
pub mod peer;
pub mod toy;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use tempfile::TempDir;
use virtio_zbd_vhost_user::Server;

use self::peer::Peer;
use self::toy::Toy;

/// No single step of a test takes this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server that runs in a thread of its own.
pub struct Harness {
    pub toy: Arc<Toy>,
    path: PathBuf,
    stop: Arc<OwnedFd>,
    done: Receiver<Result<(), String>>,
    _dir: Option<TempDir>,
}

impl Harness {
    pub fn start(toy: Toy) -> Self {
        Self::start_with(toy, |server| server)
    }

    /// With a server that `change` has made otherwise.
    pub fn start_with(toy: Toy, change: impl FnOnce(Server) -> Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vhost.sock");
        let server = change(Server::bind(&path).unwrap());
        Self { _dir: Some(dir), ..Self::run(toy, server, path) }
    }

    /// With a server whose socket at `path` belongs to the test.
    pub fn over(server: Server, path: &Path) -> Self {
        Self::run(Toy::new(), server, path.to_owned())
    }

    fn run(toy: Toy, server: Server, path: PathBuf) -> Self {
        let toy = Arc::new(toy);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let (sender, done) = channel();
        let (backend, stop_fd) = (Arc::clone(&toy), Arc::clone(&stop));
        thread::spawn(move || {
            let result = server.serve(&*backend, stop_fd.as_fd());
            drop(server);
            sender.send(result.map_err(|error| error.to_string())).unwrap();
        });
        Self { toy, path, stop, done, _dir: None }
    }

    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    pub fn connect(&self) -> Peer {
        Peer::connect(&self.path)
    }

    /// Tells the server to stop, without waiting.
    pub fn tell_stop(&self) {
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Stops the server and waits until it has returned. Fails if it has panicked before.
    pub fn stop(self) {
        self.end();
        assert!(!self.path.exists(), "the socket file is still there");
    }

    /// Stops a server that was given its socket.
    pub fn stop_but_leave_the_file(self) {
        self.end();
        assert!(self.path.exists(), "the socket file is gone");
    }

    fn end(&self) {
        self.tell_stop();
        self.done.recv_timeout(PATIENCE).expect("the server did not return").unwrap();
    }
}

/// A seed for a random test: a new one each time, or the one to repeat.
pub fn seed() -> u64 {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("SEED={seed}");
    seed
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
