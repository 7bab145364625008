//! A hostile front-end: messages with descriptors, in any order, cut anywhere, to the server with a real small disk behind it.
//!
//! A naive model of the connection ([`model`]) foretells each reply and whether the connection lives. Where the model says that a
//! queue runs, a request goes through it now and then. When it is over, no descriptor and no thread is left.

mod model;
mod peer;
mod script;
mod things;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_zbd_device::{Disk, DiskConfig};
use virtio_zbd_store::{EngineChoice, RamStore};
use virtio_zbd_vhost_user::{Backend, ConnectionEnd, serve_connection};
use virtio_zbd_zones::{Geometry, GeometryConfig};
use vzbd::DiskBackend;

use crate::input::Input;
use crate::space::Space;
use crate::watch::{self, Watch};
use model::Model;
use peer::{Came, Peer};
use script::Script;
use things::Things;

/// Four zones of 32 KiB.
const SHAPE: GeometryConfig = GeometryConfig {
    capacity_sectors: 4 * 64,
    zone_sectors: 64,
    zone_capacity_sectors: 48,
    conventional_zones: 1,
    max_open_zones: 2,
    max_active_zones: 3,
    max_append_sectors: 16,
    write_granularity_bytes: 4096,
};

/// A front-end that says whatever the bytes say.
///
/// # Panics
/// The server has answered otherwise than it should, hangs, or has left something behind.
pub fn messages(data: &[u8]) {
    let watch = Watch::begin();
    let before = left_behind();
    connection(&mut Input::new(data));
    // A thread that was waited for may still be listed for a moment.
    let gone = (0..1000).any(|_| {
        if left_behind() == before {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
        false
    });
    assert!(gone, "descriptors and threads before and after: {before:?}, {:?}", left_behind());
    watch.end();
}

/// How many descriptors this process has, and how many threads that serve.
fn left_behind() -> (usize, usize) {
    let fds = fs::read_dir("/proc/self/fd").unwrap().count();
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let serving = tasks.filter(|task| {
        // One that has ended in the meantime has no name.
        let name = fs::read_to_string(task.as_ref().unwrap().path().join("comm")).unwrap_or_default();
        watch::is_ours(name.trim_end())
    });
    (fds, serving.count())
}

fn connection(input: &mut Input<'_>) {
    let store = Arc::new(RamStore::new(Geometry::new(SHAPE).unwrap()).unwrap());
    let queues = u16::try_from(model::QUEUES).unwrap();
    let config = DiskConfig { queues, block_len_bytes: 512, engine: EngineChoice::Sync };
    let disk = Disk::new(store, config).unwrap();
    let space = Space {
        shape: Some(SHAPE),
        model: 1,
        sectors: SHAPE.capacity_sectors,
        queues,
        write_back: true,
        wce: false,
    };
    let backend = DiskBackend::new(Arc::clone(&disk));
    let model = Model::new(disk.features(), backend.keeps_inflight(), space);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let server = Serving::start(backend, theirs, stop.try_clone().unwrap());
    let mut script = Script::new(model, Peer::new(ours), Things::new(), disk.features());
    let end = script.run(input);
    let expected = match (end, input.u8() % 4) {
        // The model says that it was too much.
        (false, _) => "broken",
        (true, 0) => "closed",
        (true, 1) => {
            rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
            "stopped"
        }
        (true, 2) => {
            script.begin_message(input);
            rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
            "stopped"
        }
        _ => {
            script.begin_message(input);
            "broken"
        }
    };
    // Otherwise the front-end goes now.
    let keep = (expected == "stopped").then_some(script);
    let found = match server.end() {
        ConnectionEnd::Stopped => "stopped".to_owned(),
        ConnectionEnd::Closed => "closed".to_owned(),
        ConnectionEnd::Broken(_) if expected == "broken" => "broken".to_owned(),
        ConnectionEnd::Broken(why) => why,
    };
    assert_eq!(found, expected, "how the connection ended");
    if let Some(script) = keep {
        assert!(matches!(script.peer.recv(), Came::End), "a stopped server says nothing more");
    }
    let (open, active) = disk.open_and_active();
    assert!(open <= SHAPE.max_open_zones && active <= SHAPE.max_active_zones, "{open} open, {active} active");
    disk.close().unwrap();
}

/// The server, on a thread of its own.
struct Serving {
    thread: JoinHandle<()>,
    end: Receiver<ConnectionEnd>,
}

impl Serving {
    fn start(backend: DiskBackend, socket: OwnedFd, stop: OwnedFd) -> Self {
        let (sender, end) = channel();
        let serve = move || {
            let end = serve_connection(&backend, socket, stop.as_fd());
            let _ = sender.send(end);
        };
        let thread = thread::Builder::new().name("vhost-user".into()).spawn(serve).unwrap();
        Self { thread, end }
    }

    fn end(self) -> ConnectionEnd {
        let end = (0..30).find_map(|_| self.end.recv_timeout(Duration::from_millis(500)).ok());
        let end = end.expect("the server does not return");
        self.thread.join().unwrap();
        end
    }
}
