//! Our driver on a vhost-user socket, and its test list there.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stdout, reason = "what a failing test shows")]

use std::path::Path;
use std::time::{Duration, Instant};

use virtio_zbd_checks::{Line, Peer, Verdict};
use virtio_zbd_driver::{Error, Options, VirtioBlk, Waited};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ArenaHal, ConnectOptions, VhostUserTransport};

/// The driver over a socket.
pub(crate) type Driver = VirtioBlk<ArenaHal, VhostUserTransport, ArenaBuffer>;

/// How long a disk may take for an answer, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Takes the disk behind `socket` into use.
pub(crate) fn attach(socket: &Path, options: Options) -> Result<Driver, Error> {
    let connect = ConnectOptions { timeout: PATIENCE, ..ConnectOptions::default() };
    let transport = VhostUserTransport::connect(socket, &connect).unwrap();
    VirtioBlk::with(transport, options, wait(PATIENCE), ArenaBuffer::zeroed)
}

/// Sleeps until the device calls, at most so long for one answer.
pub(crate) fn wait(
    patience: Duration,
) -> impl FnMut(&mut VhostUserTransport, u16, u64) -> Waited + Send + 'static {
    let mut end = Instant::now();
    move |transport, queue, turn| {
        let now = Instant::now();
        if turn == 0 {
            end = now + patience;
        }
        match transport.wait_used(queue, end.saturating_duration_since(now)) {
            Ok(true) => Waited::Again,
            Ok(false) => Waited::GiveUp,
            Err(_) => Waited::Gone,
        }
    }
}

/// The seed of this run: `DRIVER_SEED` repeats one.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("DRIVER_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("DRIVER_SEED={seed}");
    seed
}

/// The whole list on the disk behind `socket`.
pub(crate) fn list(socket: &Path, options: Options, peer: &Peer) -> Vec<Line> {
    list_with_seed(socket, options, peer, seed())
}

pub(crate) fn list_with_seed(socket: &Path, options: Options, peer: &Peer, seed: u64) -> Vec<Line> {
    let mut disk = attach(socket, options).unwrap();
    let mut lines = Vec::new();
    let summary = virtio_zbd_checks::run(&mut disk, peer, seed, &mut |line| {
        println!("{line}");
        lines.push(line.clone());
    });
    println!("{summary}");
    let counted = summary.passed + summary.failed + summary.skipped;
    assert_eq!(usize::try_from(counted).unwrap(), lines.len());
    lines
}

/// All lines are passed but those in `not_here`, which are not possible on this disk.
#[track_caller]
pub(crate) fn assert_passed(lines: &[Line], not_here: &[&str]) {
    let failed: Vec<_> = lines.iter().filter(|line| matches!(line.verdict, Verdict::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let skipped = lines.iter().filter(|line| matches!(line.verdict, Verdict::NotHere(_)));
    let mut skipped: Vec<_> = skipped.map(|line| line.check).collect();
    let mut expected = not_here.to_vec();
    skipped.sort_unstable();
    expected.sort_unstable();
    assert_eq!(skipped, expected, "what this disk can't be asked");
}

/// The checks that failed.
pub(crate) fn failed(lines: &[Line]) -> Vec<&'static str> {
    let failed = lines.iter().filter(|line| matches!(line.verdict, Verdict::Failed(_)));
    failed.map(|line| line.check).collect()
}

/// Stops all threads of a program with SIGSTOP. The signal alone comes some time later to each of them.
pub(crate) fn freeze(pid: u32) {
    let raw_pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(raw_pid, rustix::process::Signal::STOP).unwrap();
    let start = Instant::now();
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        // The state stands behind the name, which is in parentheses.
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    while !std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(is_stopped) {
        assert!(start.elapsed() < PATIENCE, "process {pid} does not stop");
        std::thread::yield_now();
    }
}
