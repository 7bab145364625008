//! A Linux guest in QEMU on `vhost-user-blk-pci`, whose disk's daemon is killed (SIGKILL) and started again, over and over, while fio
//! writes and reads back: the guest notices nothing but the time. QEMU tracks the requests in flight (INFLIGHT_SHMFD) and connects
//! again; it is an implementation of both that knows nothing of ours.
//!
//! `ZBD_KILLS` says how many kills (3 otherwise), `KILLS_SEED` repeats their moments.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::{OrFail, qemu_guest, text};
use virtio_zbd_guest::{DiskTarget, FrontEnd, Geometry, RunningGuest, ServedDisk, cache};

/// Long for a boot, and for requests to flow again, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often QEMU tries to connect again.
const RECONNECT_MS: u32 = 20;

/// fio's time for each kill: more than a kill takes where nobody else works.
const PER_KILL: Duration = Duration::from_millis(2500);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value:?}")))
}

/// Two jobs, each on a place of its own: it is written all over in random order, in requests of 4 to 64 KiB, and then read back and
/// compared, again and again.
fn fio(runtime: Duration) -> Vec<String> {
    let seconds = runtime.as_secs();
    let words = [
        "fio --name=kills --filename=/dev/vda --direct=1 --ioengine=io_uring --iodepth=16 --numjobs=2",
        "--size=4m --offset_increment=16m --rw=randwrite --bsrange=4k-64k --verify=crc32c --verify_fatal=1",
        "--fsync=32 --loops=1000000 --group_reporting --eta=never --thread --randrepeat=0",
    ];
    let words = words.iter().flat_map(|line| line.split(' ')).map(str::to_owned);
    words.chain([format!("--runtime={seconds}")]).collect()
}

/// Waits until something has been written to the disk since its daemon was started.
fn await_writes(disk: &ServedDisk, guest: &mut RunningGuest) {
    let state = || {
        let meta = disk.image_path().unwrap().metadata().unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    let (before, started) = (state(), Instant::now());
    while state() == before {
        let ended = guest.poll().or_fail("look at the guest");
        let says = || format!("{}\n{}\n{}", guest.stdout(), guest.log(), disk.log());
        assert!(ended.is_none(), "the guest has ended: {}", says());
        assert!(started.elapsed() < PATIENCE, "nothing is written any more: {}", says());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn fio_with_verify_goes_on_over_kills() {
    let kills = variable("ZBD_KILLS").unwrap_or(3);
    let seed = variable("KILLS_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("KILLS_SEED={seed} ZBD_KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);
    let target = DiskTarget::Temporary(Geometry::regular("32M"));
    let mut disk = ServedDisk::serve(target, ["--queues", "2"]).or_fail("no disk");
    let runtime = PER_KILL * u32::try_from(kills).unwrap() + Duration::from_secs(1);

    let _turn = cache::take_turn().or_fail("no turn");
    let front_end = FrontEnd::Blk { reconnect_ms: RECONNECT_MS };
    let guest = qemu_guest().front_end(front_end).processors(2).disk(disk.socket());
    let started = Instant::now();
    let mut guest = guest.start(fio(runtime)).or_fail("start QEMU");
    await_writes(&disk, &mut guest);
    println!("the guest writes after {:.1} s", started.elapsed().as_secs_f64());
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.u64(0..1000)));
        assert!(guest.poll().unwrap().is_none(), "the guest is done too early: {}", guest.stdout());
        disk.kill();
        std::thread::sleep(Duration::from_millis(random.u64(0..100)));
        disk.restart().or_fail("start the daemon again");
        await_writes(&disk, &mut guest);
    }
    println!("{kills} kills in {:.1} s", started.elapsed().as_secs_f64());
    let left = guest.finish(runtime + PATIENCE).or_fail("wait for the guest");
    let output = text(&left.stdout);
    println!("{output}");
    assert!(left.status.success(), "{output}\n{}", text(&left.stderr));
    // Both jobs are well, and something was read back.
    assert!(output.contains("err= 0") && output.contains("  READ: bw="), "{output}");
    disk.stop().or_fail("stop");
}
