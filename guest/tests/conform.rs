//! The conformance suite where a zoned device of Linux is behind the disk: on QEMU's own virtio-blk device, from a kernel that does nothing
//! else, and on our host store. The zoned devices are null_blk's, in a User-mode Linux guest, for the host may have none.
//!
//! What QEMU's device does not keep is known and stands here, and in docs/conformance.md with what it answers and what is asked.
//! `CONFORM_CASES=V26,V4-a` runs some cases only, and expects nothing of QEMU's device.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says what it met"
)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::machine::{KERNEL_TIMEOUT, test_machine};
use common::{OrFail, guest, quoted, run, text};
use virtio_zbd_guest::{Guest, Machine, Status, Verdict, cache, programs};

const NULL_BLK: &str = "/dev/nullb0";

/// A shell's functions `disk ATTRIBUTE=VALUE...`, which makes the null_blk device /dev/nullb0, and `remove`.
const NULL_BLK_SCRIPT: &str = r#"
set -e
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
null_blk=/sys/kernel/config/nullb/nullb0
disk() {
    mkdir $null_blk
    for attribute in zoned=1 memory_backed=1 "$@"; do
        # What becomes of zones later is told later.
        case $attribute in zone_readonly=*|zone_offline=*) continue;; esac
        echo ${attribute#*=} > $null_blk/${attribute%%=*}
    done
    echo 1 > $null_blk/power
    for attribute in "$@"; do
        case $attribute in zone_readonly=*|zone_offline=*) echo ${attribute#*=} > $null_blk/${attribute%%=*};; esac
    done
}
remove() {
    echo 0 > $null_blk/power
    rmdir $null_blk
}
"#;

/// Conventional zones, limits, a read-only and an offline zone: as many cases as a null_blk can show.
const RICH: &str = "size=16 zone_size=1 zone_nr_conv=2 zone_max_open=4 zone_max_active=6 zone_readonly=0x7000 zone_offline=0x7800";

/// Does not name the limit that was met, nor that there was one: every failure is INVALID_CMD, or IOERR for OUT (Q3).
const NO_RESOURCE_STATUS: &[&str] = &[
    "V15-f", "V15-g", "V15-h", "V15-i", "V20-e", "V20-f", "V20-g", "V20-h", "V20-i", "V20-j", "V20-k",
    "V20-l", "S11-i", "G1-c", "G1-d",
];
/// A write that a zone does not take is IOERR, for whatever reason (Q3).
const IOERR_FOR_ALL: &[&str] = &[
    "V22-c", "V25-b", "V26-a", "V26-b", "V26-c", "V26-d", "V26-e", "V26-f", "V26-i", "V28-a", "V29-a",
    "V29-b",
];
/// Requests across zones are carried out: Linux cuts them at the zone's end, and QEMU does not look.
const ACROSS_ZONES: &[&str] = &["V22-b", "V22-e", "V23-j", "V25-a", "V25-d", "V25-e", "V25-g", "V25-h"];
/// FEATURES_OK is never refused (Q4).
const FEATURES: &[&str] = &["V2-b", "V4-a", "V4-b", "S4-a"];
/// An append's data is taken from its buffer only where that begins and ends at blocks in memory.
const APPEND_BUFFERS: &[&str] = &["S15-i", "S15-l"];
/// A malformed chain, or a report without room, stops the whole device.
const NEEDS_RESET: &[&str] = &["S8-c", "G4-c", "G7-a", "G7-b", "G7-c"];
/// The others.
const OTHER: &[&str] = &["S5-c", "S9-f", "S17-a", "S17-b", "G3-a", "G4-a", "V31-f"];
/// A race: an append fails where a reset is under way. It fails nearly each time.
const SOMETIMES: &str = "V23-k";

/// What `console` says of each case that did not pass or was skipped.
fn failed(console: &str) -> BTreeSet<&str> {
    let cases = console.lines().filter_map(|line| line.strip_prefix("conform "));
    let failed = cases.filter(|case| case.split(':').next().is_some_and(|head| head.ends_with(" failed")));
    failed.filter_map(|case| case.split(' ').next()).collect()
}

/// Runs the cases on QEMU's device over a null_blk with these attributes. Gives back what the kernel printed.
fn conform_qemu(attributes: &str, cases: &str) -> String {
    let machine = test_machine(Machine::Q35).word(format!("conform={cases}"));
    let machine = machine.block_node(Path::new(NULL_BLK), "").virtio_blk("");
    let argv: Vec<_> = machine.argv().iter().map(|word| quoted(word.to_string_lossy())).collect();
    let script = format!("{NULL_BLK_SCRIPT}\ndisk {attributes}\nexec {}", argv.join(" "));
    let _turn = cache::take_turn().or_fail("no turn");
    let output = null_blk_guest().timeout(KERNEL_TIMEOUT).sh(script).or_fail("run QEMU in a guest");
    let console = text(&output.stdout);
    println!("{console}");
    match output.status {
        Status::Exited(code) if matches!(Verdict::from_code(code), Verdict::Passed | Verdict::Failed) => {}
        status => panic!("QEMU: {status:?}\n{}", text(&output.stderr)),
    }
    assert!(console.contains(": conform: "), "it did not come to its end");
    console
}

fn null_blk_guest() -> Guest {
    guest().kernel_arg("null_blk.nr_devices=0")
}

#[test]
fn what_qemus_zoned_device_does_not_keep() {
    if let Ok(cases) = std::env::var("CONFORM_CASES") {
        conform_qemu(RICH, &cases);
        return;
    }
    let console = conform_qemu(RICH, "all");
    let expected: BTreeSet<&str> =
        [NO_RESOURCE_STATUS, IOERR_FOR_ALL, ACROSS_ZONES, FEATURES, APPEND_BUFFERS, NEEDS_RESET, OTHER]
            .concat()
            .into_iter()
            .collect();
    let mut found = failed(&console);
    found.remove(SOMETIMES);
    let more: Vec<_> = found.difference(&expected).collect();
    let fewer: Vec<_> = expected.difference(&found).collect();
    assert!(more.is_empty() && fewer.is_empty(), "failed, too: {more:?}; did not fail: {fewer:?}\n{console}");
}

/// `vzbd conform` on a zoned device of the host: the host store is in the way, and what it makes of Linux' answers.
#[test]
fn our_host_store_keeps_every_rule() {
    let vzbd = quoted(programs::vzbd().or_fail("no vzbd").display());
    let disks = [
        RICH,
        "size=16 zone_size=2 zone_capacity=1 zone_nr_conv=2 zone_max_open=4 zone_max_active=6 blocksize=4096",
        "size=16 zone_size=1 zone_max_open=1 zone_max_active=1 blocksize=4096",
        "size=8 zone_size=1 zone_max_open=1 zone_max_active=3 zone_append_max_sectors=0",
        "size=4 zone_size=1 zone_nr_conv=3 blocksize=4096",
        // A shorter last zone: null_blk has none where the capacity is below the size.
        "size=15 zone_size=2 zone_max_open=2 zone_max_active=2",
        // A shorter last zone that is the only sequential one.
        "size=7 zone_size=4 zone_nr_conv=1 zone_max_open=1 zone_max_active=1",
        "size=1 zone_size=1",
        "size=96 zone_size=1",
        "size=8 zone_size=4 zone_capacity=3 zone_max_active=1 zone_append_max_sectors=1",
    ];
    let runs = disks.map(|attributes| {
        format!("disk {attributes}\necho 'on {attributes}'\n{vzbd} conform {NULL_BLK} --yes || echo 'ENDED WITH '$?\nremove")
    });
    let script = format!("{NULL_BLK_SCRIPT}\n{}", runs.join("\n"));
    let output = run(&null_blk_guest(), &script).or_fail("run vzbd in a guest");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{stdout}{stderr}");
    let summaries = stdout.lines().filter(|line| line.contains(" passed, ")).count();
    assert_eq!(summaries, disks.len(), "{stdout}{stderr}");
    let failed: Vec<_> = stdout.lines().filter(|line| line.to_lowercase().contains(" failed  ")).collect();
    // The two disks with conventional zones and blocks of 4 KiB: Linux writes no less to them.
    assert!(
        failed.len() == 2 && failed.iter().all(|line| line.starts_with("S14-f ")),
        "{failed:#?}\n{stdout}"
    );
    assert!(!stdout.contains("ENDED WITH "), "{stdout}{stderr}");
}
