//! One-liners for tests that run the bare-metal kernel.
#![allow(clippy::print_stdout, reason = "a test says its seed")]

use std::time::Duration;

use virtio_zbd_guest::{BareMetal, Machine, Qemu, Report, TestMachine, Verdict, cache};

use super::OrFail;

/// Repeats a run's random parts.
const SEED_VARIABLE: &str = "CHECKS_SEED";

/// Long for the whole list on an emulated processor (in a User-mode Linux, on a busy machine), short for a run that hangs.
pub(crate) const KERNEL_TIMEOUT: Duration = Duration::from_secs(300);

/// A machine with the test kernel of this source tree, without disks.
pub(crate) fn test_machine(machine: Machine) -> TestMachine {
    let kernel = BareMetal::build().or_fail("no kernel").test_kernel();
    TestMachine::new(&Qemu::cached().or_fail("no QEMU"), kernel, machine)
}

/// A machine with the example.
pub(crate) fn example_machine() -> TestMachine {
    let kernel = BareMetal::build().or_fail("no kernel").example();
    TestMachine::new(&Qemu::cached().or_fail("no QEMU"), kernel, Machine::Q35)
}

/// A machine whose kernel runs the driver's test list, with what the list calls `peer` in mind.
pub(crate) fn list_machine(machine: Machine, peer: &str) -> TestMachine {
    let seed = std::env::var(SEED_VARIABLE).ok().map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("{SEED_VARIABLE}={seed}");
    test_machine(machine).word(format!("peer={peer}")).word(format!("seed={seed}"))
}

/// Runs it when it is our turn.
pub(crate) fn run(machine: &TestMachine) -> Report {
    let _turn = cache::take_turn().or_fail("no turn");
    machine.run(KERNEL_TIMEOUT).or_fail("run the machine")
}

/// Runs it; each check of the list must pass or not be possible there. Gives back what the kernel printed.
pub(crate) fn pass_list(machine: &TestMachine, passed_min: u32) -> String {
    let Report { verdict, console } = run(machine);
    assert_list_passed(verdict, &console, passed_min);
    console
}

/// A kernel that stopped early, or found that nearly nothing is possible, may think well of itself: the list's last check must be
/// there, and a number of passed checks that is usual for such a disk.
pub(crate) fn assert_list_passed(verdict: Verdict, console: &str, passed_min: u32) {
    assert_eq!(verdict, Verdict::Passed, "{console}");
    assert!(console.contains("  random: requests beside a model"), "{console}");
    let summary = console.lines().find_map(|line| line.split_once(" passed, 0 failed, "));
    let passed = summary.and_then(|(before, _)| before.rsplit(' ').next()?.parse::<u32>().ok());
    assert!(passed.is_some_and(|passed| passed >= passed_min), "{passed:?} passed: {console}");
}
