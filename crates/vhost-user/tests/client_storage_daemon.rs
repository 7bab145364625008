//! QEMU's storage daemon behind our front-end, with the block driver that comes with `virtio-drivers`: two
//! implementations that know nothing of this crate's server.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ArenaHal, ConnectOptions, Lost, VhostUserTransport};

use self::common::toy::{MQ, VERSION_1};
use self::common::{PATIENCE, eventually};

const PROGRAM: &str = "qemu-storage-daemon";
const SECTORS: usize = 2048;

/// The daemon, with a raw image that it serves.
struct Daemon {
    child: Child,
    dir: TempDir,
    queues: u16,
}

impl Daemon {
    /// None if it is not installed.
    fn start(queues: u16) -> Option<Self> {
        if Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("not tried: {PROGRAM} is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..SECTORS * 512).map(|n| pattern(n / 512, 0)[n % 512]).collect();
        fs::write(dir.path().join("disk"), bytes).unwrap();
        let daemon = Self { child: Self::spawn(&dir, queues), dir, queues };
        eventually("the daemon's socket", || daemon.socket().exists());
        Some(daemon)
    }

    fn spawn(dir: &TempDir, queues: u16) -> Child {
        Command::new(PROGRAM)
            .current_dir(dir)
            .args(["--blockdev", "driver=file,filename=disk,node-name=disk,discard=unmap"])
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=socket,writable=on,num-queues={queues}"
            ))
            .spawn()
            .unwrap()
    }

    /// Kills it, and starts another one on its disk and socket.
    fn kill_and_start(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir, self.queues);
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("socket")
    }

    fn connect(&self, timeout: Duration) -> VhostUserTransport {
        connect(&self.socket(), timeout)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(path: &Path, timeout: Duration) -> VhostUserTransport {
    // The socket file is there a little before the daemon listens.
    let options = ConnectOptions { timeout, ..ConnectOptions::default() };
    let mut transport = None;
    eventually("a connection", || {
        transport = VhostUserTransport::connect(path, &options).ok();
        transport.is_some()
    });
    transport.unwrap()
}

/// What sector `sector` holds in its `version`th state.
fn pattern(sector: usize, version: u8) -> [u8; 512] {
    std::array::from_fn(|n| u8::try_from((sector * 7 + n) % 251).unwrap().wrapping_add(version))
}

type Queue = VirtQueue<ArenaHal, 64>;

/// A driver that does nothing but read, on several queues.
fn attach(transport: &mut VhostUserTransport, queues: u16, event_idx: bool) -> Vec<Queue> {
    let features = VERSION_1 | MQ | if event_idx { 1 << 29 } else { 0 };
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(begun);
    assert_eq!(transport.read_device_features() & features, features);
    transport.write_driver_features(features);
    transport.set_status(begun | DeviceStatus::FEATURES_OK);
    let queues = (0..queues).map(|index| Queue::new(transport, index, false, event_idx).unwrap()).collect();
    transport.finish_init();
    assert_eq!(transport.monitor().lost(), None);
    queues
}

/// A request to read: its header, its data, its status. Dropped when the device is done with it.
struct Read {
    token: u16,
    header: [u8; 16],
    data: ArenaBuffer,
    status: [u8; 1],
}

#[allow(unsafe_code)]
fn submit(queue: &mut Queue, sector: usize, len_bytes: usize) -> Box<Read> {
    let mut header = [0; 16];
    header[8..].copy_from_slice(&u64::try_from(sector).unwrap().to_le_bytes());
    let data = ArenaBuffer::zeroed(len_bytes).unwrap();
    let mut read = Box::new(Read { token: 0, header, data, status: [0xff] });
    let Read { header, data, status, .. } = &mut *read;
    // SAFETY: the buffers are in the arena or in the box, and are dropped after the queue is done with them.
    read.token = unsafe { queue.add(&[header], &mut [data, status]) }.unwrap();
    read
}

#[allow(unsafe_code)]
fn finish(queue: &mut Queue, read: &mut Read) {
    let Read { token, header, data, status } = read;
    // SAFETY: the same buffers as in `submit`.
    unsafe { queue.pop_used(*token, &[header], &mut [data, status]) }.unwrap();
}

#[test]
fn queues_work_next_to_each_other_and_their_driver_sleeps() {
    let Some(daemon) = Daemon::start(3) else { return };
    let mut transport = daemon.connect(PATIENCE);
    let mut queues = attach(&mut transport, 3, false);
    assert_eq!(transport.read_config_space::<u64>(0), Ok(u64::try_from(SECTORS).unwrap()));
    assert_eq!(transport.read_config_space::<u16>(34), Ok(3), "num_queues");
    for round in 0..50 {
        let sectors: Vec<usize> = (0..3).map(|queue| (round * 37 + queue * 500) % SECTORS).collect();
        let mut reads: Vec<_> =
            (queues.iter_mut().zip(&sectors)).map(|(queue, sector)| submit(queue, *sector, 512)).collect();
        (0..3).for_each(|index| transport.notify(index));
        for (index, (queue, read)) in (0..3).zip(queues.iter_mut().zip(&mut reads)) {
            while !queue.can_pop() {
                assert!(transport.wait_used(index, PATIENCE).unwrap());
            }
            finish(queue, read);
            let sector = sectors[usize::from(index)];
            assert_eq!((read.status, &*read.data), ([0], pattern(sector, 0).as_slice()), "sector {sector}");
        }
    }
    drop((transport, queues));
}

#[test]
fn a_stop_waits_for_what_is_in_flight() {
    let Some(daemon) = Daemon::start(1) else { return };
    let mut transport = daemon.connect(PATIENCE);
    for round in 0..100 {
        let mut queues = attach(&mut transport, 1, round % 2 == 0);
        let mut reads: Vec<_> = (0..8).map(|n| submit(&mut queues[0], n * 128, 64 << 10)).collect();
        transport.notify(0);
        // At least one of them is taken.
        while !queues[0].can_pop() {
            assert!(transport.wait_used(0, PATIENCE).unwrap());
        }
        transport.set_status(DeviceStatus::empty());
        while let Some(token) = queues[0].peek_used() {
            let read = reads.iter_mut().find(|read| read.token == token).unwrap();
            finish(&mut queues[0], read);
            assert_eq!(read.status, [0]);
        }
        assert_eq!(transport.monitor().lost(), None);
    }
    drop(transport);
}

#[test]
fn a_daemon_that_is_killed_is_noticed() {
    let Some(daemon) = Daemon::start(1) else { return };
    let mut transport = daemon.connect(PATIENCE);
    let queues = attach(&mut transport, 1, false);
    // It calls once when a queue is started.
    while transport.wait_used(0, Duration::from_millis(10)).unwrap() {}
    daemon.signal(Signal::KILL);
    assert_eq!(transport.wait_used(0, PATIENCE), Err(Lost::Closed { request: None }));
    assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    drop((transport, queues));
}

/// A connection that outlives the daemon.
fn connect_for_good(daemon: &Daemon) -> VhostUserTransport {
    let options =
        ConnectOptions { timeout: PATIENCE, reconnect: Some(PATIENCE), ..ConnectOptions::default() };
    let mut transport = None;
    eventually("a connection", || {
        transport = VhostUserTransport::connect(&daemon.socket(), &options).ok();
        transport.is_some()
    });
    transport.unwrap()
}

/// It does not track its requests (no INFLIGHT_SHMFD up to version 11): it may die between them.
#[test]
fn a_daemon_that_is_killed_and_started_again_is_not_missed() {
    let Some(mut daemon) = Daemon::start(2) else { return };
    let mut transport = connect_for_good(&daemon);
    let mut queues = attach(&mut transport, 2, true);
    for round in 0..20_usize {
        let sectors: Vec<usize> = (0..10).map(|n| (round * 37 + n * 100) % SECTORS).collect();
        for (index, queue) in (0..2).zip(&mut queues) {
            let mut reads: Vec<_> = sectors.iter().map(|sector| submit(queue, *sector, 512)).collect();
            transport.notify(index);
            for _ in 0..reads.len() {
                while !queue.can_pop() {
                    assert!(transport.wait_used(index, PATIENCE).unwrap());
                }
                let token = queue.peek_used().unwrap();
                let (read, sector) =
                    reads.iter_mut().zip(&sectors).find(|(read, _)| read.token == token).unwrap();
                finish(queue, read);
                assert_eq!((read.status, &*read.data), ([0], pattern(*sector, 0).as_slice()));
            }
        }
        daemon.kill_and_start();
        // Before anything is submitted: what a dead daemon did not take looks like what it took.
        assert!(!transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    }
    assert_eq!(transport.monitor().lost(), None);
    drop((transport, queues));
}

#[test]
fn a_daemon_that_is_killed_over_requests_takes_them_with_it() {
    let Some(mut daemon) = Daemon::start(1) else { return };
    let mut transport = connect_for_good(&daemon);
    let mut queues = attach(&mut transport, 1, false);
    daemon.signal(Signal::STOP);
    let reads: Vec<_> = (0..3).map(|n| submit(&mut queues[0], n, 512)).collect();
    transport.notify(0);
    daemon.kill_and_start();
    let wait = |transport: &mut VhostUserTransport| loop {
        // It called once when the queue was started.
        match transport.wait_used(0, PATIENCE) {
            Ok(called) => assert!(called),
            Err(lost) => return lost,
        }
    };
    assert_eq!(wait(&mut transport), Lost::Untracked { requests: 3 });
    drop((transport, queues, reads));
}

#[test]
fn a_daemon_that_stands_still_is_given_up() {
    let Some(daemon) = Daemon::start(1) else { return };
    // Enough for it to answer while it runs.
    let timeout = Duration::from_secs(2);
    let mut transport = daemon.connect(timeout);
    let queues = attach(&mut transport, 1, false);
    daemon.signal(Signal::STOP);
    transport.set_status(DeviceStatus::empty());
    let lost = Lost::TimedOut { request: "GET_VRING_BASE", timeout };
    assert_eq!(transport.monitor().lost(), Some(lost));
    daemon.signal(Signal::CONT);
    drop((transport, queues));
}

#[test]
fn a_disk_is_read_written_and_attached_again() {
    let Some(daemon) = Daemon::start(3) else { return };
    for version in 0..3_u8 {
        let transport = daemon.connect(PATIENCE);
        assert_eq!(transport.queue_count(), 3);
        let monitor = transport.monitor();
        let mut disk = VirtIOBlk::<ArenaHal, _>::new(transport).unwrap();
        assert_eq!(disk.capacity(), u64::try_from(SECTORS).unwrap());
        let mut id = [0; 20];
        assert_eq!(disk.device_id(&mut id).unwrap(), 14);
        assert_eq!(&id[..14], b"vhost_user_blk");

        for sector in [0, 1, 77, SECTORS - 1] {
            let mut found = [0; 512];
            disk.read_blocks(sector, &mut found).unwrap();
            assert_eq!(found, pattern(sector, version), "sector {sector}");
            disk.write_blocks(sector, &pattern(sector, version + 1)).unwrap();
        }
        disk.flush().unwrap();
        let mut many = vec![0; 512 * 512];
        disk.read_blocks(1, &mut many).unwrap();
        for (n, found) in many.chunks(512).enumerate() {
            let version = if [0, 76].contains(&n) { version + 1 } else { 0 };
            assert_eq!(found, pattern(n + 1, version), "sector {}", n + 1);
        }
        assert!(disk.read_blocks(SECTORS, &mut [0; 512]).is_err());
        assert_eq!(monitor.lost(), None);
        drop(disk);
        assert_eq!(monitor.lost(), None);
    }
}
