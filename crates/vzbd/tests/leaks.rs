//! Front-ends that come, stop at every point of the handshake, and go: nothing of them stays, and the next one is served.
//!
//! `LEAK_SECONDS=60` storms for longer than the two seconds of the normal run, and also waits the ten seconds that a stalled
//! message is given; `LEAK_SEED` repeats a run's choices.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "tests may"
)]

mod common;

use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place, pattern, vzbd_bytes, vzbd_ok, vzbd_takes};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

const THREADS: u64 = 24;
const MEMORY_BYTES: u64 = 1 << 20;
/// No single step takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A message of the handshake: its number, its payload, and which of the front-end's descriptors come with it.
struct Step(u32, Vec<u8>, &'static [usize]);

/// Descriptors: the guest's memory, a kick, a call, an err, the back-end's channel, an inflight buffer.
const MEMORY: usize = 0;
const KICK: usize = 1;
const CALL: usize = 2;
const ERR: usize = 3;
const CHANNEL: usize = 4;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// All that a front-end with two queues says until they run, and something after.
fn handshake() -> Vec<Step> {
    let mut steps = vec![
        Step(3, vec![], &[]),
        Step(1, vec![], &[]),
        Step(15, vec![], &[]),
        // All but INFLIGHT_SHMFD and STATUS.
        Step(16, longs(&[1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15]), &[]),
        Step(21, vec![], &[CHANNEL]),
        Step(24, [words(&[0, 96, 0]), vec![0; 96]].concat(), &[]),
        // VERSION_1 and the disk's zones, so that its queues start.
        Step(2, longs(&[1 << 32 | 1 << 30 | 1 << 17]), &[]),
        Step(5, longs(&[1, 0, MEMORY_BYTES, 0, 0]), &[MEMORY]),
    ];
    for index in 0..2_u32 {
        let place = u64::from(index) * 0x1_0000;
        let wide = u64::from(index);
        steps.push(Step(14, longs(&[wide]), &[ERR]));
        steps.push(Step(13, longs(&[wide]), &[CALL]));
        steps.push(Step(8, words(&[index, 64]), &[]));
        steps.push(Step(10, words(&[index, 0]), &[]));
        let areas = [place, place + 0x8000, place + 0x4000, 0];
        steps.push(Step(9, [words(&[index, 0]), longs(&areas)].concat(), &[]));
        steps.push(Step(12, longs(&[wide]), &[KICK]));
        steps.push(Step(18, words(&[index, 1]), &[]));
    }
    // One region more, a queue's end, and a reset.
    steps.push(Step(37, longs(&[0, 1 << 40, MEMORY_BYTES, 1 << 40, 0]), &[MEMORY]));
    steps.push(Step(11, words(&[1, 0]), &[]));
    steps.push(Step(34, vec![], &[]));
    steps
}

/// One front-end's life: `whole` messages, then `part` bytes of the next, with its descriptors if there is one byte.
fn live(socket: &Path, fds: &[OwnedFd], whole: usize, part: usize, random: &mut fastrand::Rng) {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for (n, Step(request, payload, with)) in handshake().into_iter().enumerate().take(whole + 1) {
        let len = u32::try_from(payload.len()).unwrap();
        // Those without a reply of their own want one now and then.
        let own = matches!(request, 1 | 11 | 15 | 24);
        let reply = own || (n > 3 && random.bool());
        let flags = if reply && !own { 1 | 8 } else { 1 };
        let mut message = [words(&[request, flags, len]), payload].concat();
        if n == whole {
            message.truncate(part.min(message.len() - 1));
        }
        let with: Vec<_> = with.iter().map(|at| fds[*at].as_fd()).collect();
        // Who has not been served within its patience, or was cut off for what it did before, has had its life.
        if message.is_empty() || !send(&stream, &message, &with) || n == whole {
            break;
        }
        if reply && !read_reply(&stream) {
            break;
        }
    }
    // Sometimes it says goodbye in one direction only, or waits a little.
    match random.u8(..8) {
        0 => drop(stream.shutdown(std::net::Shutdown::Write)),
        1 => thread::sleep(Duration::from_millis(random.u64(..5))),
        _ => {}
    }
}

fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

fn read_reply(mut stream: &UnixStream) -> bool {
    let mut header = [0; 12];
    if stream.read_exact(&mut header).is_err() {
        return false;
    }
    let len = u32::from_ne_bytes(header[8..].try_into().unwrap());
    stream.read_exact(&mut vec![0; usize::try_from(len).unwrap()]).is_ok()
}

/// The daemon's descriptors, by what they are, and how many threads it has.
fn held(daemon: &Daemon) -> (Vec<String>, usize) {
    let process = format!("/proc/{}", daemon.pid());
    let mut fds: Vec<String> = fs::read_dir(format!("{process}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    fds.sort();
    (fds, fs::read_dir(format!("{process}/task")).unwrap().count())
}

/// Waits until the daemon holds what it held before: the last front-end's end takes a moment.
fn assert_holds(daemon: &Daemon, before: &(Vec<String>, usize)) {
    let start = Instant::now();
    loop {
        let now = held(daemon);
        if now == *before {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "before: {before:#?}\nnow: {now:#?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn use_disk(daemon: &Daemon) {
    let data = pattern(3, 64 << 10);
    vzbd_takes(&["write", daemon.socket(), "--zone", "3", "--timeout", "60"], &data);
    assert_eq!(vzbd_bytes(&["read", daemon.socket(), "--zone", "3"]), data);
    vzbd_ok(&["reset", daemon.socket(), "3"]);
}

#[test]
fn twenty_four_at_a_time_leave_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("LEAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("LEAK_SEED={seed}");
    let duration = Duration::from_secs(number("LEAK_SECONDS").unwrap_or(2));
    let place = Place::new();
    let daemon = Daemon::start_logging(
        &place.small_image(),
        &place.path("sock"),
        &["--queues", "2"],
        "warn,virtio_zbd_vhost_user=off",
    );
    // What it makes once and keeps is there now.
    use_disk(&daemon);
    let before = {
        thread::sleep(Duration::from_millis(100));
        held(&daemon)
    };
    let steps = handshake().len();
    let lives = AtomicU64::new(0);
    let end = Instant::now() + duration;
    thread::scope(|scope| {
        for n in 0..THREADS {
            let (socket, lives) = (place.path("sock"), &lives);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ n << 32);
                let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
                let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
                ftruncate(&memory, MEMORY_BYTES).unwrap();
                let (channel, _ours) = UnixStream::pair().unwrap();
                let fds = [memory, event(), event(), event(), channel.into()];
                while Instant::now() < end {
                    let whole = random.usize(..=steps);
                    let part = random.usize(..20);
                    live(&socket, &fds, whole, part, &mut random);
                    lives.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let lives = lives.into_inner();
    println!("{lives} front-ends came and went");
    assert!(lives > 100, "only {lives} front-ends in {duration:?}");
    assert_holds(&daemon, &before);
    use_disk(&daemon);
    assert_holds(&daemon, &before);
    assert!(daemon.stop().0.success());
}

#[test]
fn each_point_of_the_handshake_is_a_good_end() {
    let place = Place::new();
    let daemon = Daemon::start_logging(
        &place.small_image(),
        &place.path("sock"),
        &["--queues", "2"],
        "warn,virtio_zbd_vhost_user=off",
    );
    use_disk(&daemon);
    thread::sleep(Duration::from_millis(100));
    let before = held(&daemon);
    let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, MEMORY_BYTES).unwrap();
    let (channel, _ours) = UnixStream::pair().unwrap();
    let fds = [memory, event(), event(), event(), channel.into()];
    let mut random = fastrand::Rng::with_seed(7);
    for whole in 0..=handshake().len() {
        for part in [0, 1, 11, 12, 13] {
            live(&place.path("sock"), &fds, whole, part, &mut random);
        }
        assert_holds(&daemon, &before);
    }
    use_disk(&daemon);
    assert!(daemon.stop().0.success());
}

/// The ones who say nothing, or stop in the middle, and do not even go.
#[test]
fn half_open_front_ends_do_not_keep_the_others_out() {
    let place = Place::new();
    let daemon = place.ram("--size 16M --zone-size 1M");
    thread::sleep(Duration::from_millis(100));
    let before = held(&daemon);
    let silent: Vec<UnixStream> = (0..24).map(|_| UnixStream::connect(place.path("sock")).unwrap()).collect();
    use_disk(&daemon);
    if std::env::var_os("LEAK_SECONDS").is_some() {
        // One that has begun a message is given ten seconds for the rest, and the next one waits for that.
        let mut stuck = &silent[7];
        assert!(send(stuck, &words(&[1, 1])[..5], &[]));
        let data = pattern(3, 4096);
        vzbd_takes(&["write", daemon.socket(), "--zone", "3", "--timeout", "60"], &data);
        assert_eq!(stuck.read(&mut [0]).unwrap(), 0, "it was not cut off");
    }
    drop(silent);
    assert_holds(&daemon, &before);
    assert!(daemon.stop().0.success());
}
