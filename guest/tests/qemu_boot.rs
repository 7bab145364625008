//! The test kernel itself, without a disk: it comes up on each machine, and no end of it is silent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::time::Duration;

use common::OrFail;
use common::machine::{KERNEL_TIMEOUT, run, test_machine};
use virtio_zbd_guest::{Error, Machine, Verdict};

const MACHINES: [Machine; 2] = [Machine::Microvm, Machine::Q35];

#[test]
fn a_machine_without_a_disk_fails_and_says_so() {
    for machine in MACHINES {
        let report = run(&test_machine(machine));
        assert_eq!(report.verdict, Verdict::Failed, "{machine}: {}", report.console);
        assert!(report.console.contains("no virtio disk"), "{machine}: {}", report.console);
    }
}

#[test]
fn a_crash_is_told_with_its_place() {
    for (how, words) in [
        ("panic", "panicked at src/bin/test-kernel/crash.rs:"),
        ("instruction", "exception 6 (invalid opcode), error code 0x0, at instruction 0x"),
        ("access", "exception 14 (page fault), error code 0x0, at instruction 0x"),
        ("stack", "exception 14 (page fault), error code 0x2, at instruction 0x"),
    ] {
        for machine in MACHINES {
            let report = run(&test_machine(machine).word(format!("crash={how}")));
            assert_eq!(report.verdict, Verdict::Crashed, "{machine}, {how}: {}", report.console);
            assert!(report.console.contains(words), "{machine}, {how}: {}", report.console);
        }
    }
}

#[test]
fn a_machine_that_does_not_end_is_stopped_and_its_words_kept() {
    let machine = test_machine(Machine::Microvm).word("crash=hang");
    let limit = Duration::from_secs(3);
    assert!(limit < KERNEL_TIMEOUT);
    let error = machine.run(limit).unwrap_err();
    let Error::TimedOut { after, stdout, .. } = &error else { panic!("{error}") };
    assert_eq!(*after, limit);
    assert!(stdout.contains("MiB of heap, command line: crash=hang"), "{stdout}");
}

#[test]
fn qemus_own_failure_is_told_apart() {
    let machine = test_machine(Machine::Q35).args(["-device", "no-such-device"]);
    let report = machine.run(KERNEL_TIMEOUT).or_fail("start QEMU");
    assert_eq!(report.verdict, Verdict::Qemu(1), "{}", report.console);
    assert!(report.console.contains("no-such-device"), "{}", report.console);
}
