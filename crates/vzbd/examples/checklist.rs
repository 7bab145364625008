//! Our driver's test list on whatever serves a vhost-user-blk socket, and a long random run beside a naive model: `checklist SOCKET [STEPS [SEED]]`.
//! **It destroys what the disk holds.** Guest tests run it inside a guest, on a disk that is served there.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::path::PathBuf;
use std::process::ExitCode;

use virtio_zbd_checks::Peer;
use virtio_zbd_driver::Options;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(socket) = args.next().map(PathBuf::from) else {
        println!("checklist SOCKET [STEPS [SEED]]");
        return ExitCode::from(2);
    };
    let mut number =
        |default| args.next().map_or(default, |arg| arg.to_str().unwrap().parse::<u64>().unwrap());
    let (steps, seed) = (u32::try_from(number(2000)).unwrap(), number(0));
    let seed = if seed == 0 { driver::seed() } else { seed };
    let options = Options { queues: 4, ..Options::default() };

    let mut failed = driver::failed(&driver::list_with_seed(&socket, options, &Peer::EXACT, seed)).len();
    let mut disk = driver::attach(&socket, options).unwrap();
    let summary =
        virtio_zbd_checks::run_random(&mut disk, &Peer::EXACT, seed, steps, &mut |line| println!("{line}"));
    failed += usize::try_from(summary.failed).unwrap();
    println!("seed {seed}, {steps} random requests, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
