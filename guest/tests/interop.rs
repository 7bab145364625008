//! Cells of docs/interop.md: drivers on the one side, devices on the other, and the same list of deeds (`guest/interop.sh`) for each
//! pair. What the two sides say of the zones at the end is the same.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::machine::{KERNEL_TIMEOUT, assert_list_passed, list_machine, pass_list};
use common::{OrFail, assert_same_zones, guest, qemu_guest, quoted, text};
use virtio_zbd_guest::{Geometry, Guest, Machine, Output, ServedDisk, Status, Verdict, cache, programs};

/// As `guest/interop.sh` has it.
fn geometry() -> Geometry {
    Geometry::new("1G", "16M").zone_capacity("12M").conventional(4).max_open(6).max_active(8)
}

/// A User-mode Linux with the same disk as a zoned null_blk, `/dev/nullb0`.
fn host() -> Guest {
    let shape = [
        "gb=1",
        "zone_size=16",
        "zone_capacity=12",
        "zone_nr_conv=4",
        "zone_max_open=6",
        "zone_max_active=8",
    ];
    let args = ["nr_devices=1", "zoned=1", "memory_backed=1"].into_iter().chain(shape);
    args.fold(guest(), |guest, arg| guest.kernel_arg(format!("null_blk.{arg}"))).memory_mib(2048)
}

/// A machine of QEMU's in a User-mode Linux takes its time.
const INSIDE_TIMEOUT: Duration = Duration::from_secs(300);

/// What the script says of a disk of ours, behind the kernel's version.
const OURS: [&str; 11] = [
    "zoned host-managed",
    "nr_zones 64",
    "chunk_sectors 32768",
    "max_open_zones 6",
    "max_active_zones 8",
    "zone_append_max_bytes 524288",
    "write 5 ... refused: Input/output error",
    "write 5 ... refused: Input/output error",
    "what is not written reads as 00",
    "blkzone reset ... refused: Input/output error",
    "blkzone open ... refused: Value too large for defined data type",
];

/// What goes to the disk.
struct Data {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Data {
    fn new() -> Data {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut bytes = vec![0; 12 << 20];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data"), &bytes).unwrap();
        Data { dir, bytes }
    }

    /// Runs the script, and gives back what it left.
    fn cell(&self, guest: &Guest) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop.sh");
        let argv: [PathBuf; 3] = ["/bin/sh".into(), script, self.dir.path().join("data")];
        let _turn = cache::take_turn().or_fail("no turn");
        let output = guest.run(argv).or_fail("run the script");
        assert_eq!(output.status, Status::Exited(0), "{}\n{}", text(&output.stderr), output.kernel_log);
        output
    }
}

/// What the script remarked: the kernel's version apart, it is the same everywhere.
fn assert_remarks(output: &Output, version: &str, expected: &[&str]) {
    let remarks = text(&output.stderr);
    let mut lines = remarks.lines();
    assert!(lines.next().unwrap().starts_with(&format!("Linux {version}")), "{remarks}");
    assert_eq!(lines.collect::<Vec<_>>(), expected, "{remarks}");
}

/// What a report must show beside the empty zones.
fn assert_conditions(report: &str) {
    let count = |code: &str| report.matches(&format!("zcond:{code}(")).count();
    assert_eq!(report.lines().count(), 64, "{report}");
    assert_eq!([" 0", " 3", "14"].map(count), [4, 1, 2], "{report}");
    // Which of the zones that were opened by a write are closed in the meantime is the device's choice (V27).
    assert_eq!(count(" 2") + count(" 4"), 3, "{report}");
}

fn vzbd(args: &[&str], target: &Path) -> Vec<u8> {
    let output = Command::new(programs::vzbd().or_fail("no vzbd")).args(args).arg(target).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Linux on a disk that `vzbd` serves here.
fn linux_on_our_device(guest: &Guest, version: &str, mut disk: ServedDisk) {
    let data = Data::new();
    let output = data.cell(&guest.clone().disk(disk.socket()));
    assert_remarks(&output, version, &OURS);
    let guests_view = text(&output.stdout);
    assert_conditions(&guests_view);
    // Our own driver sees on the socket what Linux saw, and reads what it wrote.
    assert_eq!(text(&vzbd(&["report", "--format", "blkzone"], disk.socket())), guests_view);
    assert!(vzbd(&["read", "--zone", "5"], disk.socket()) == data.bytes[..64 * 4096]);
    assert!(vzbd(&["read", "--zone", "10"], disk.socket()) == data.bytes);
    disk.stop().or_fail("stop");
}

/// User-mode Linux, as `guest/src/kernel.rs` builds it.
const UML_VERSION: &str = "6.12.";

/// Debian's newer kernel: any version that knows zones well.
const STOCK_VERSION: &str = "";

#[test]
fn linux_in_uml_on_ram() {
    linux_on_our_device(&guest(), UML_VERSION, ServedDisk::ram(&geometry()).or_fail("no disk"));
}

#[test]
fn linux_in_uml_on_an_image() {
    linux_on_our_device(&guest(), UML_VERSION, ServedDisk::create(&geometry()).or_fail("no disk"));
}

#[test]
fn linux_in_qemu_on_ram() {
    linux_on_our_device(&qemu_guest(), STOCK_VERSION, ServedDisk::ram(&geometry()).or_fail("no disk"));
}

#[test]
fn linux_in_qemu_on_an_image() {
    linux_on_our_device(&qemu_guest(), STOCK_VERSION, ServedDisk::create(&geometry()).or_fail("no disk"));
}

/// QEMU passes a zoned null_blk of a real Linux through (in a User-mode Linux, for the machine may have none).
#[test]
fn linux_in_qemu_on_qemus_device() {
    let guest = qemu_guest().timeout(INSIDE_TIMEOUT).qemus_disk("/dev/nullb0");
    let guest = guest.inside(&host(), r#"set -e; "$@"; blkzone report /dev/nullb0"#);
    let output = Data::new().cell(&guest);
    // An append is as long as QEMU thinks; misplaced writes and limits are all the same to it (Q3); null_blk has its own pattern.
    let mut expected = OURS;
    expected[5] = "zone_append_max_bytes 130560";
    expected[8] = "what is not written reads as ff";
    expected[10] = "blkzone open ... refused: Input/output error";
    assert_remarks(&output, STOCK_VERSION, &expected);
    assert_conditions(&text(&output.stdout));
    let host = output.host.as_deref().unwrap();
    assert_eq!(host.status, Status::Exited(0), "{}", text(&host.stderr));
    assert_same_zones(&text(&output.stdout), &text(&host.stdout));
}

/// In the host: serves its zoned device, runs the guest (`"$@"`), and prints what we say of the zones and what the host says.
fn serve_on_host() -> String {
    format!(
        r#"set -eu
        {vzbd} serve /dev/nullb0 --socket /tmp/disk.sock >/tmp/daemon 2>&1 &
        daemon=$!
        trap 'cat /tmp/daemon >&2' EXIT
        until [ -S /tmp/disk.sock ]; do kill -0 $daemon; sleep 0.1; done
        status=0; "$@" || status=$?
        {vzbd} report --format blkzone /tmp/disk.sock
        blkzone report /dev/nullb0
        kill $daemon; wait $daemon
        exit $status"#,
        vzbd = quoted(programs::vzbd().or_fail("no vzbd").display()),
    )
}

#[test]
fn linux_in_qemu_on_a_hosts_zoned_device() {
    let guest = qemu_guest().timeout(INSIDE_TIMEOUT).disk("/tmp/disk.sock").inside(&host(), serve_on_host());
    let output = Data::new().cell(&guest);
    // null_blk's pattern is hidden; an append is as long as the host's kernel takes a write.
    let mut expected = OURS;
    expected[5] = "zone_append_max_bytes 130048";
    assert_remarks(&output, STOCK_VERSION, &expected);
    let guests_view = text(&output.stdout);
    assert_conditions(&guests_view);
    let host = output.host.as_deref().unwrap();
    assert_eq!(host.status, Status::Exited(0), "{}", text(&host.stderr));
    let views = text(&host.stdout);
    let views: Vec<_> = views.lines().collect();
    assert_eq!(views.len(), 2 * 64);
    assert_same_zones(&guests_view, &views[..64].join("\n"));
    assert_same_zones(&guests_view, &views[64..].join("\n"));
}

/// Our driver, our device, Linux' null_blk.
#[test]
fn our_driver_on_a_hosts_zoned_device() {
    let machine = list_machine(Machine::Q35, "exact").vhost_user(Path::new("/tmp/disk.sock"), 1);
    let script = ["sh".into(), "-c".into(), serve_on_host().into(), "sh".into()];
    let _turn = cache::take_turn().or_fail("no turn");
    let argv: Vec<std::ffi::OsString> = script.into_iter().chain(machine.argv()).collect();
    let output = host().timeout(KERNEL_TIMEOUT).run(argv).or_fail("run QEMU in a guest");
    let Status::Exited(code) = output.status else { panic!("{:?}", output.status) };
    assert_list_passed(Verdict::from_code(code), &(text(&output.stdout) + &text(&output.stderr)), 45);
}

#[test]
fn our_driver_on_an_image() {
    let mut disk = ServedDisk::create(&geometry()).or_fail("no disk");
    pass_list(&list_machine(Machine::Q35, "exact").vhost_user(disk.socket(), 1), 45);
    disk.stop().or_fail("stop");
}
